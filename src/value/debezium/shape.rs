//! A table's events in JSON.

use super::EncodeError;
use super::column::Column;
use super::envelope::{self, Change, Envelope, Event, Frame, Old, Order, SourceInfo};
use super::form::Form;
use super::json::Json;
use super::names::topic_name;
use super::options::Options;
use super::table::{RowSchemas, Table};
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

impl Origin<'_> {
    /// What the names of a table's schemas begin with.
    pub(super) fn prefix(&self, table: &TableName) -> String {
        format!("{}.{}.{}", self.name, table.schema, table.name)
    }
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
    key: Form,
    value: Form,
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
        let prefix = origin.prefix(table_name);
        let RowSchemas { value, key } = schemas.named(&prefix);
        let value = envelope::schema(format!("{}.Envelope", topic_name(&prefix)), value);
        Ok(TableShape {
            table,
            envelope,
            key: key.map_or(Form::Json, |key| Form::json(options, &key)),
            value: Form::json(options, &value),
        })
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
        self.key.put_key(out, &self.table, row)
    }

    /// Whether an UPDATE gives the row another key: it is then sent as a delete and a create.
    pub fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        self.table.key_changes(before, after)
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
        let frame = Frame { info: *info, order, now };
        self.value.put(out, Event { envelope: &self.envelope, table: &self.table, change, frame })
    }
}
