//! A table's events in Avro, under the schemas that Confluent's `AvroConverter` registers for Debezium's.
//!
//! The bytes here are the datum alone; who sends it puts Confluent's prefix before it, a zero byte and the schema's number.
//! Schema and field names are made such as Avro takes (`schema.name.adjustment.mode` and `field.name.adjustment.mode` are
//! `avro`).

use std::collections::HashSet;

use super::column::Column;
use super::envelope::{self, Change, Envelope, Event, Frame, Old, Order, SourceInfo};
use super::form::Form;
use super::names::{avro_field, avro_name, topic_name};
use super::options::Options;
use super::out::{Label, Out};
use super::schema::{Schema, Shape};
use super::shape::{Origin, ShapeError};
use super::table::{RowSchemas, Table};
use super::{EncodeError, ValueError};
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::tuple::Cell;

pub(super) mod schema;

/// Writes Avro's binary encoding. (Avro specification, "Binary Encoding".)
pub(super) struct Avro<'a> {
    out: &'a mut Vec<u8>,
    /// The array being written said before how many elements it has. Avro's arrays of Connect are never nested.
    counted: bool,
}

impl<'a> Avro<'a> {
    pub fn new(out: &'a mut Vec<u8>) -> Avro<'a> {
        Avro { out, counted: false }
    }
}

/// Zigzag, seven bits a byte, the lowest first.
fn push_long(out: &mut Vec<u8>, value: i64) {
    let mut left = (value << 1 ^ value >> 63).cast_unsigned();
    while left >= 0x80 {
        out.push((left & 0x7F) as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    push_long(out, i64::try_from(length).expect("memory is smaller"));
}

/// Bytes of `compose` with their length before them, which is known only afterwards: most take one byte, for which room is
/// left.
fn composed(out: &mut Vec<u8>, compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>) -> Result<(), ValueError> {
    let at = out.len();
    out.push(0);
    compose(out)?;
    let end = out.len();
    push_length(out, end - at - 1);
    let prefix_bytes = out.len() - end;
    if prefix_bytes == 1 {
        out[at] = out[end];
        out.pop();
    } else {
        out[at + 1..].rotate_right(prefix_bytes);
        out.remove(at);
    }
    Ok(())
}

impl Out for Avro<'_> {
    const STRICT: bool = true;

    fn buffer(&mut self) -> &mut Vec<u8> {
        self.out
    }

    // An optional schema is the union of null and the value; with a default it is the other way round.
    fn null(&mut self) {
        self.out.push(0);
    }

    fn some(&mut self) {
        self.out.push(2);
    }

    fn some_or_default(&mut self) {
        self.out.push(0);
    }

    fn boolean(&mut self, value: bool) {
        self.out.push(u8::from(value));
    }

    fn int(&mut self, value: i64) {
        push_long(self.out, value);
    }

    fn float(&mut self, value: f32) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn double(&mut self, value: f64) {
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.bytes(text);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        push_length(self.out, bytes.len());
        self.out.extend_from_slice(bytes);
    }

    fn composed_text(
        &mut self,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        composed(self.out, compose)
    }

    fn composed_bytes(
        &mut self,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        composed(self.out, compose)
    }

    // An array is blocks, each with its count before it, and a count of 0 at the end. Where the count is not known, each
    // element is a block.
    fn begin_array(&mut self, count: Option<usize>) {
        self.counted = count.is_some();
        if let Some(count) = count.filter(|count| *count > 0) {
            push_length(self.out, count);
        }
    }

    fn item(&mut self) {
        if !self.counted {
            push_length(self.out, 1);
        }
    }

    fn end_array(&mut self) {
        self.out.push(0);
    }

    fn begin_map(&mut self) {}

    fn key(&mut self, key: &[u8]) {
        push_length(self.out, 1);
        self.bytes(key);
    }

    fn end_map(&mut self) {
        self.out.push(0);
    }

    fn begin_struct(&mut self) {}

    fn field(&mut self, _label: &Label) {}

    fn end_struct(&mut self) {}
}

/// How a table's changes become messages in Avro.
pub struct AvroShape {
    table: Table,
    envelope: Envelope,
    key_schema: Option<String>,
    value_schema: String,
}

impl AvroShape {
    /// As [`TableShape::new`](super::TableShape::new).
    pub fn new(
        origin: &Origin<'_>,
        table_name: &TableName,
        columns: &[Column],
        key: &[String],
        options: &Options,
    ) -> Result<AvroShape, ShapeError> {
        let (table, schemas) = Table::new(columns, key, options)?;
        let envelope = Envelope::new(Avro::new(&mut Vec::new()), origin, table_name);
        let prefix = origin.prefix(table_name);
        let RowSchemas { value, key } = schemas.named(&prefix);
        let name = avro_name(&format!("{}.Envelope", topic_name(&prefix)));
        let value_schema = schema::text(&envelope::schema(name, adjusted(value)?));
        let key_schema = key.map(adjusted).transpose()?.map(|key| schema::text(&key));
        Ok(AvroShape { table, envelope, key_schema, value_schema })
    }

    /// The schema to register under `<topic>-key`; `None` without a key.
    pub fn key_schema(&self) -> Option<&str> {
        self.key_schema.as_deref()
    }

    /// The schema to register under `<topic>-value`.
    pub fn value_schema(&self) -> &str {
        &self.value_schema
    }

    pub fn has_key(&self) -> bool {
        self.table.has_key()
    }

    /// As [`TableShape::key`](super::TableShape::key).
    pub fn key<'a>(&self, out: &mut Vec<u8>, row: impl Iterator<Item = Cell<'a>> + Clone) -> Result<(), EncodeError> {
        Form::Avro.put_key(out, &self.table, row)
    }

    /// As [`TableShape::key_changes`](super::TableShape::key_changes).
    pub fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        self.table.key_changes(before, after)
    }

    /// As [`TableShape::value`](super::TableShape::value).
    pub fn value<'a, R: Iterator<Item = Cell<'a>> + Clone>(
        &self,
        out: &mut Vec<u8>,
        change: &Change<R>,
        info: &SourceInfo,
        order: Option<Order>,
        now: UnixMicros,
    ) -> Result<(), EncodeError> {
        let frame = Frame { info: *info, order, now };
        Form::Avro.put(out, Event { envelope: &self.envelope, table: &self.table, change, frame })
    }
}

/// A row's or key's schema with its name and its fields' such as Avro takes.
fn adjusted(schema: Schema) -> Result<Schema, ShapeError> {
    let mut taken = HashSet::new();
    let shape = match schema.shape {
        Shape::Struct(fields) => {
            let mut renamed = Vec::with_capacity(fields.len());
            for (field, schema) in fields {
                let name = avro_field(&field);
                if !taken.insert(name.clone()) {
                    return Err(ShapeError::SameField(field));
                }
                renamed.push((name, schema));
            }
            Shape::Struct(renamed)
        }
        other => other,
    };
    Ok(Schema { shape, name: schema.name.as_deref().map(avro_name), ..schema })
}
