//! A table's changes as plain rows, without an envelope: what Debezium's `ExtractNewRecordState` makes of its events.
//!
//! The row stands at the top, fields about the change behind it under names with a prefix (`__op`, `__source_ts_ms`). A
//! truncate has no such form, and neither has a delete of which the source sent nothing of the row; nothing is sent of both.

use schemars::JsonSchema;
use serde::Deserialize;

use super::EncodeError;
use super::column::Column;
use super::envelope::{Change, Frame, Old, Order, SourceInfo, sequence_text, transaction_id_text};
use super::form::{Form, Payload};
use super::options::Options;
use super::out::{Label, Out};
use super::schema::{Schema, Shape};
use super::shape::{Origin, ShapeError};
use super::table::{Image, RowSchemas, Table};
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::tuple::Cell;

/// `delete.tombstone.handling.mode`
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(rename = "DeleteTombstoneHandlingMode")]
pub enum DeleteHandling {
    /// Nothing is sent of a delete.
    Drop,
    /// A message without a value.
    #[default]
    Tombstone,
    /// The row before, with `__deleted` as text in it as in every row.
    Rewrite,
    /// The same, and a tombstone after it.
    RewriteWithTombstone,
    /// As `tombstone`.
    DeleteToTombstone,
}

/// What is added to the rows.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlatOptions {
    pub delete_tombstone_handling_mode: DeleteHandling,
    /// Fields of the envelope (`op`, `ts_ms`), of its source (`lsn`, `source.ts_ms`) and its transaction (`transaction.id`).
    pub add_fields: Vec<String>,
    pub add_fields_prefix: String,
}

impl Default for FlatOptions {
    fn default() -> Self {
        FlatOptions {
            delete_tombstone_handling_mode: DeleteHandling::default(),
            add_fields: Vec::new(),
            add_fields_prefix: "__".to_owned(),
        }
    }
}

/// What is to be sent of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a tombstone has no bytes"]
pub enum Flat {
    /// The bytes that were appended.
    Value,
    /// A value, and a message without one after it.
    ValueThenTombstone,
    /// A message with a key and no value.
    Tombstone,
    Nothing,
}

/// A field about the change.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Fact {
    Op,
    /// Of the event, in units of so many to the second.
    Time {
        per_micro: i64,
        micros_per: i64,
    },
    CommitTime {
        per_micro: i64,
        micros_per: i64,
    },
    Lsn,
    Xid,
    Snapshot,
    Sequence,
    TransactionId,
    TotalOrder,
    TableOrder,
    /// The same for every row.
    Constant(String),
}

struct Added {
    label: Label,
    fact: Fact,
}

/// How a table's changes become rows in JSON.
pub struct FlatShape {
    table: Table,
    handling: DeleteHandling,
    deleted: Label,
    added: Vec<Added>,
    key: Form,
    value: Form,
}

impl FlatShape {
    /// As [`TableShape::new`](super::TableShape::new).
    pub fn new(
        origin: &Origin<'_>,
        table_name: &TableName,
        columns: &[Column],
        key: &[String],
        options: &Options,
        flat: &FlatOptions,
    ) -> Result<FlatShape, ShapeError> {
        let (table, schemas) = Table::new(columns, key, options)?;
        let RowSchemas { mut value, key } = schemas.named(&origin.prefix(table_name));
        let handling = flat.delete_tombstone_handling_mode;
        let mut added = Vec::new();
        let mut fields = Vec::new();
        if matches!(handling, DeleteHandling::Rewrite | DeleteHandling::RewriteWithTombstone) {
            fields.push(("__deleted".to_owned(), Schema::from(Shape::String).optional()));
        }
        for path in &flat.add_fields {
            let (fact, shape) = source_of(path, origin, table_name).ok_or_else(|| ShapeError::NoField(path.clone()))?;
            let name = format!("{}{}", flat.add_fields_prefix, path.replace('.', "_"));
            added.push(Added { label: Label::new(&name), fact });
            fields.push((name, Schema::from(shape).optional()));
        }
        if let Shape::Struct(row) = &mut value.shape {
            row.extend(fields);
        }
        Ok(FlatShape {
            table,
            handling,
            deleted: Label::new("__deleted"),
            added,
            key: key.map_or(Form::Json, |key| Form::json(options, &key)),
            value: Form::json(options, &value),
        })
    }

    pub fn has_key(&self) -> bool {
        self.table.has_key()
    }

    /// As [`TableShape::key`](super::TableShape::key).
    pub fn key<'a>(&self, out: &mut Vec<u8>, row: impl Iterator<Item = Cell<'a>> + Clone) -> Result<(), EncodeError> {
        self.key.put_key(out, &self.table, row)
    }

    /// As [`TableShape::key_changes`](super::TableShape::key_changes).
    pub fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        self.table.key_changes(before, after)
    }

    /// Appends the message value of a change, if it has one.
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
    ) -> Result<Flat, EncodeError> {
        let (op, row, image) = match change {
            Change::Create { after } => ("c", after, Image::Full),
            Change::Read { after } => ("r", after, Image::Full),
            Change::Update { after, .. } => ("u", after, Image::Full),
            Change::Delete { before: Some(Old::Key(row)) } => ("d", row, Image::Key),
            Change::Delete { before: Some(Old::Full(row)) } => ("d", row, Image::Full),
            Change::Delete { before: None } | Change::Truncate => return Ok(Flat::Nothing),
        };
        let sent = match (op, self.handling) {
            ("d", DeleteHandling::Drop) => return Ok(Flat::Nothing),
            ("d", DeleteHandling::Tombstone | DeleteHandling::DeleteToTombstone) => return Ok(Flat::Tombstone),
            ("d", DeleteHandling::RewriteWithTombstone) => Flat::ValueThenTombstone,
            _ => Flat::Value,
        };
        let whole_old = match change {
            Change::Update { before: Some(Old::Full(old)), .. } => Some(old.clone()),
            _ => None,
        };
        let frame = Frame { info: *info, order, now };
        let row = FlatRow { shape: self, row: row.clone(), image, whole_old, op, frame };
        self.value.put(out, row).map(|()| sent)
    }
}

/// A row with what is added to it.
struct FlatRow<'s, R> {
    shape: &'s FlatShape,
    row: R,
    image: Image,
    whole_old: Option<R>,
    op: &'static str,
    frame: Frame,
}

impl<'a, R: Iterator<Item = Cell<'a>>> Payload for FlatRow<'_, R> {
    fn write<O: Out>(self, out: &mut O) -> Result<(), EncodeError> {
        let FlatShape { table, handling, deleted, added, .. } = self.shape;
        out.begin_struct();
        table.write_columns(out, self.row, self.image, self.whole_old)?;
        if matches!(handling, DeleteHandling::Rewrite | DeleteHandling::RewriteWithTombstone) {
            out.field(deleted);
            out.some();
            out.text(if self.op == "d" { b"true" } else { b"false" });
        }
        for Added { label, fact } in added {
            out.field(label);
            fact.write(out, self.op, &self.frame);
        }
        out.end_struct();
        Ok(())
    }
}

/// The field that a path names, and its type.
fn source_of(path: &str, origin: &Origin<'_>, table: &TableName) -> Option<(Fact, Shape)> {
    let constant = |text: &str| Some((Fact::Constant(text.to_owned()), Shape::String));
    let time = |per_micro, micros_per| Some((Fact::Time { per_micro, micros_per }, Shape::Int64));
    let source_time = |per_micro, micros_per| Some((Fact::CommitTime { per_micro, micros_per }, Shape::Int64));
    match path {
        "op" => Some((Fact::Op, Shape::String)),
        "ts_ms" => time(1, 1_000),
        "ts_us" => time(1, 1),
        "ts_ns" => time(1_000, 1),
        "id" | "transaction.id" => Some((Fact::TransactionId, Shape::String)),
        "total_order" | "transaction.total_order" => Some((Fact::TotalOrder, Shape::Int64)),
        "data_collection_order" | "transaction.data_collection_order" => Some((Fact::TableOrder, Shape::Int64)),
        "source.ts_ms" => source_time(1, 1_000),
        "source.ts_us" => source_time(1, 1),
        "source.ts_ns" => source_time(1_000, 1),
        _ => match path.strip_prefix("source.").unwrap_or(path) {
            "version" => constant(origin.version),
            "connector" => constant("postgresql"),
            "name" => constant(origin.name),
            "db" => constant(origin.database),
            "schema" => constant(&table.schema),
            "table" => constant(&table.name),
            "lsn" => Some((Fact::Lsn, Shape::Int64)),
            "txId" => Some((Fact::Xid, Shape::Int64)),
            "snapshot" => Some((Fact::Snapshot, Shape::String)),
            "sequence" => Some((Fact::Sequence, Shape::String)),
            _ => None,
        },
    }
}

impl Fact {
    fn write<O: Out>(&self, out: &mut O, op: &str, frame: &Frame) {
        let number = |out: &mut O, value: Option<i64>| match value {
            None => out.null(),
            Some(value) => {
                out.some();
                out.int(value);
            }
        };
        let text = |out: &mut O, value: &str| {
            out.some();
            out.text(value.as_bytes());
        };
        let scaled = |micros: i64, per_micro, micros_per| Some(micros.saturating_mul(per_micro).div_euclid(micros_per));
        match self {
            Fact::Op => text(out, op),
            Fact::Constant(value) => text(out, value),
            Fact::Time { per_micro, micros_per } => number(out, scaled(frame.now.0, *per_micro, *micros_per)),
            Fact::CommitTime { per_micro, micros_per } => {
                number(out, scaled(frame.info.committed.0, *per_micro, *micros_per));
            }
            Fact::Lsn => number(out, Some(frame.info.lsn.0.cast_signed())),
            Fact::Xid => number(out, frame.info.xid.map(i64::from)),
            Fact::Snapshot => text(out, frame.info.snapshot.name()),
            Fact::Sequence => {
                out.some();
                sequence_text(out, &frame.info);
            }
            Fact::TransactionId => match (frame.order, frame.info.xid) {
                (Some(_), Some(xid)) => {
                    out.some();
                    transaction_id_text(out, xid, frame.info.lsn);
                }
                _ => out.null(),
            },
            Fact::TotalOrder => number(out, frame.order.map(|order| order.total.cast_signed())),
            Fact::TableOrder => number(out, frame.order.map(|order| order.in_table.cast_signed())),
        }
    }
}
