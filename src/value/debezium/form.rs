//! The forms that a message's key and its value are written in: JSON, with its schema beside it or without, and Avro.

use super::EncodeError;
use super::avro::Avro;
use super::json::Json;
use super::options::Options;
use super::out::Out;
use super::schema::Schema;
use super::table::Table;
use crate::tuple::Cell;

/// What is said in one message, whatever its form.
pub(super) trait Payload {
    fn write<O: Out>(self, out: &mut O) -> Result<(), EncodeError>;
}

/// How a key, or a value, is written.
pub(super) enum Form {
    Json,
    /// What stands before the payload: `{"schema":…,"payload":`.
    JsonWithSchema(Vec<u8>),
    /// The datum alone.
    Avro,
}

impl Form {
    /// JSON, with the schema beside it if that is asked for.
    pub fn json(options: &Options, schema: &Schema) -> Form {
        if options.schemas { Form::json_with_schema(schema) } else { Form::Json }
    }

    pub fn json_with_schema(schema: &Schema) -> Form {
        let mut before = b"{\"schema\":".to_vec();
        schema.write_json(&mut before, None);
        before.extend_from_slice(b",\"payload\":");
        Form::JsonWithSchema(before)
    }

    /// Appends a message.
    ///
    /// # Errors
    /// Nothing was appended then.
    pub fn put(&self, out: &mut Vec<u8>, payload: impl Payload) -> Result<(), EncodeError> {
        let start = out.len();
        let result = match self {
            Form::Json => payload.write(&mut Json::<false> { out }),
            Form::JsonWithSchema(before) => {
                out.extend_from_slice(before);
                let result = payload.write(&mut Json::<true> { out });
                out.push(b'}');
                result
            }
            Form::Avro => payload.write(&mut Avro::new(out)),
        };
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    /// Appends the key of a row; nothing if the table has none.
    ///
    /// # Errors
    /// Nothing was appended then.
    pub fn put_key<'a>(
        &self,
        out: &mut Vec<u8>,
        table: &Table,
        row: impl Iterator<Item = Cell<'a>> + Clone,
    ) -> Result<(), EncodeError> {
        if table.has_key() { self.put(out, Key { table, row }) } else { Ok(()) }
    }
}

struct Key<'t, R> {
    table: &'t Table,
    row: R,
}

impl<'a, R: Iterator<Item = Cell<'a>> + Clone> Payload for Key<'_, R> {
    fn write<O: Out>(self, out: &mut O) -> Result<(), EncodeError> {
        self.table.write_key(out, self.row)
    }
}
