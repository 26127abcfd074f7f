//! Changes as events of Debezium's Postgres connector (3.x), field for field, in JSON and in Avro.
//!
//! Everything that depends on the table is decided once, in a [`TableShape`]; per change, cells go from Postgres's wire
//! straight into the message's bytes. Facts about the forms are from Debezium's documentation and its connector's behaviour.
//!
//! Where Debezium itself would lose a value, the change is an error here, so that it stops or is put aside as the user
//! asked, and is never sent as something else:
//!
//! - `NaN` and infinities in a `numeric` with `decimal_handling_mode = "precise"`, timestamps outside of the mode's range;
//! - an unsent value of a type without a placeholder (a `numeric` of thousands of digits, an array of numbers other than
//!   `integer` and `bigint`);
//! - an array of more than one dimension where there is a schema (JSON without one takes arrays of arrays).
//!
//! And NULL is NULL: the columns' defaults, which Debezium puts into its schemas and Connect's converters then into messages
//! in place of NULL, are left out.

use crate::tuple::Cell;

mod avro;
mod bytes;
mod column;
mod decimal;
mod envelope;
mod flat;
mod form;
mod json;
mod messages;
mod names;
mod nested;
mod options;
mod out;
mod placeholder;
mod schema;
mod shape;
mod table;
mod temporal;
#[cfg(test)]
mod tests;
mod value;

pub use avro::AvroShape;
pub use column::Column;
pub use envelope::{Change, Old, Order, Snapshot, SourceInfo};
pub use flat::{DeleteHandling, Flat, FlatOptions, FlatShape};
pub use messages::{Boundary, Encoding, Message, Messages};
pub use names::{
    HEARTBEAT_PREFIX, TRANSACTION_TOPIC, avro_name, heartbeat_topic, table_topic, topic_name, transaction_topic,
};
pub use options::{BinaryMode, DecimalMode, HstoreMode, IntervalMode, Options, PLACEHOLDER, TimePrecision};
pub use shape::{Origin, ShapeError, TableShape};
pub(in crate::value) use temporal::parse as postgres_text;

/// Header of the delete that an UPDATE of the key becomes: the new key, encoded as keys are.
pub const NEW_KEY_HEADER: &str = "__debezium.newkey";
/// Header of the create that follows it: the old key.
pub const OLD_KEY_HEADER: &str = "__debezium.oldkey";

/// Why a value has no form in an event. The value itself is never part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    #[error("the value is NULL, and the event's schema has no place for NULL")]
    Null,
    #[error("the source left the value unsent, and its type has no placeholder")]
    Unsent,
    #[error("the value is NaN or infinite; set decimal_handling_mode to \"string\" or \"double\"")]
    NotANumber,
    #[error("the value is outside of what its form in the event can hold")]
    OutOfRange,
    #[error("the source sent the value in binary form, of which only text is understood for this type")]
    BinaryForm,
    #[error("the value has not the form that its type has on the wire")]
    Malformed,
    #[error("the text is not UTF-8")]
    NotUtf8,
    #[error("the array has more than one dimension, for which the event's schema has no place")]
    Nested,
}

/// Why a change has no event.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("column \"{column}\": {error}")]
    Value { column: String, error: ValueError },
    #[error("the row has not as many columns as its table")]
    Layout,
}

fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], ValueError> {
    value.try_into().map_err(|_| ValueError::Malformed)
}

fn text_of<'a>(cell: Cell<'a>) -> Result<&'a [u8], ValueError> {
    match cell {
        Cell::Text(text) => Ok(text),
        Cell::Binary(_) => Err(ValueError::BinaryForm),
        Cell::Null | Cell::Unchanged => Err(ValueError::Malformed),
    }
}
