//! The two formats as a writer sees them: a JSON text, or Avro's binary encoding of the same values.
//!
//! Every value is appended to one buffer; what has to be composed first (text of a range, digits of a decimal) is composed at
//! the buffer's end and moved over, so that nothing is allocated.

use super::ValueError;
use super::json::quote;

/// A struct's field name, ready to be written: quoted, with its colon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Label(Vec<u8>);

impl Label {
    pub fn new(name: &str) -> Label {
        let mut label = Vec::with_capacity(name.len() + 3);
        quote(&mut label, name.as_bytes());
        label.push(b':');
        Label(label)
    }

    /// The name in quotes and the colon.
    pub fn quoted(&self) -> &[u8] {
        &self.0
    }
}

/// A format's primitives. A value of an optional schema is `null`, or `some` and then the value.
pub(super) trait Out {
    /// The format has a schema beside it, so a value that must be there cannot be null.
    const STRICT: bool;

    /// The end of what was written; for what is written already encoded.
    fn buffer(&mut self) -> &mut Vec<u8>;

    fn null(&mut self);
    fn some(&mut self);
    /// As `some`, of an optional schema with a default that is not null.
    fn some_or_default(&mut self);
    fn boolean(&mut self, value: bool);
    /// Of any width.
    fn int(&mut self, value: i64);
    fn float(&mut self, value: f32);
    fn double(&mut self, value: f64);
    /// A string of which the bytes are valid UTF-8.
    fn text(&mut self, text: &[u8]);
    fn bytes(&mut self, bytes: &[u8]);
    /// A string that `compose` appends to the buffer.
    fn composed_text(&mut self, compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>)
    -> Result<(), ValueError>;
    /// Bytes that `compose` appends to the buffer.
    fn composed_bytes(
        &mut self,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError>;
    /// `count` is `None` where it is known only at the end.
    fn begin_array(&mut self, count: Option<usize>);
    /// Stands before each element.
    fn item(&mut self);
    fn end_array(&mut self);
    fn begin_map(&mut self);
    /// Stands before each value.
    fn key(&mut self, key: &[u8]);
    fn end_map(&mut self);
    fn begin_struct(&mut self);
    fn field(&mut self, label: &Label);
    fn end_struct(&mut self);
}
