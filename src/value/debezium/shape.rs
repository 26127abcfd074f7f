//! A table's events in JSON.

use super::EncodeError;
use super::column::Column;
use super::envelope::{self, Change, Envelope, Frame, Old, Order, SourceInfo};
use super::json::Json;
use super::names::topic_name;
use super::options::Options;
use super::schema::Schema;
use super::table::{Image, Table};
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::tuple::Cell;

/// What of `source` is the same for a whole source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin<'a> {
    /// Of the program that makes the events.
    pub version: &'a str,
    /// Debezium's `topic.prefix`, the logical name of the source.
    pub name: &'a str,
    pub database: &'a str,
}

/// Why a table's events have no shape.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ShapeError {
    #[error("key column \"{0}\" is not in the table")]
    NoColumn(String),
    #[error("key column \"{0}\" is of a type that events leave out")]
    KeyType(String),
    #[error("an event has no field \"{0}\"")]
    NoField(String),
    #[error("column \"{0}\" has the name of another one, once both are such as Avro takes")]
    SameField(String),
}

/// How a table's changes become messages in JSON.
pub struct TableShape {
    table: Table,
    envelope: Envelope,
    /// What stands before a key and before a value where schemas are sent: `{"schema":…,"payload":`.
    schemas: Option<Prefixes>,
}

struct Prefixes {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl TableShape {
    /// `columns` in the order of the rows' cells, `key` in the order in which the message key shall have them.
    pub fn new(
        origin: &Origin<'_>,
        table_name: &TableName,
        columns: &[Column],
        key: &[String],
        options: &Options,
    ) -> Result<TableShape, ShapeError> {
        let (table, schemas) = Table::new(columns, key, options)?;
        let envelope = Envelope::new(Json::<false> { out: &mut Vec::new() }, origin, table_name);
        let schemas = options.schemas.then(|| {
            let prefix = format!("{}.{}.{}", origin.name, table_name.schema, table_name.name);
            let named = |schema: Schema, suffix: &str| Schema { name: Some(format!("{prefix}.{suffix}")), ..schema };
            let value = envelope::schema(format!("{}.Envelope", topic_name(&prefix)), named(schemas.value, "Value"));
            let key = schemas.key.map(|key| wrapper(&named(key, "Key"))).unwrap_or_default();
            Prefixes { key, value: wrapper(&value) }
        });
        Ok(TableShape { table, envelope, schemas })
    }

    /// Whether the table's messages have a key. Without one, Debezium's key is null.
    pub fn has_key(&self) -> bool {
        self.table.has_key()
    }

    /// Appends the message key of a row, or of the row before a change; nothing if the table has no key. Also what the
    /// headers [`OLD_KEY_HEADER`](super::OLD_KEY_HEADER) and [`NEW_KEY_HEADER`](super::NEW_KEY_HEADER) hold.
    ///
    /// # Errors
    /// Nothing was appended then.
    pub fn key<'a>(&self, out: &mut Vec<u8>, row: impl Iterator<Item = Cell<'a>> + Clone) -> Result<(), EncodeError> {
        if !self.has_key() {
            return Ok(());
        }
        let start = out.len();
        let result = match &self.schemas {
            None => self.table.write_key(&mut Json::<false> { out }, row),
            Some(prefixes) => {
                out.extend_from_slice(&prefixes.key);
                let result = self.table.write_key(&mut Json::<true> { out }, row);
                out.push(b'}');
                result
            }
        };
        undo_on_error(out, start, result)
    }

    /// Whether an UPDATE gives the row another key: it is then sent as a delete and a create.
    pub fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        match before {
            Old::Key(old) => self.table.key_differs(Image::Key, old.clone(), after),
            Old::Full(old) => self.table.key_differs(Image::Full, old.clone(), after),
        }
    }

    /// Appends the message value of a change: Debezium's envelope. After a delete comes a tombstone, a message with the same
    /// key and no value.
    ///
    /// # Errors
    /// Nothing was appended then.
    pub fn value<'a, R: Iterator<Item = Cell<'a>> + Clone>(
        &self,
        out: &mut Vec<u8>,
        change: &Change<R>,
        info: &SourceInfo,
        order: Option<Order>,
        now: UnixMicros,
    ) -> Result<(), EncodeError> {
        let start = out.len();
        let frame = Frame { info: *info, order, now };
        let result = match &self.schemas {
            None => self.envelope.write(&mut Json::<false> { out }, &self.table, change, &frame),
            Some(prefixes) => {
                out.extend_from_slice(&prefixes.value);
                let result = self.envelope.write(&mut Json::<true> { out }, &self.table, change, &frame);
                out.push(b'}');
                result
            }
        };
        undo_on_error(out, start, result)
    }
}

pub(super) fn undo_on_error(
    out: &mut Vec<u8>,
    start: usize,
    result: Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// `{"schema":…,"payload":`, to be closed behind the payload.
pub(super) fn wrapper(schema: &Schema) -> Vec<u8> {
    let mut out = b"{\"schema\":".to_vec();
    schema.write_json(&mut out, None);
    out.extend_from_slice(b",\"payload\":");
    out
}
