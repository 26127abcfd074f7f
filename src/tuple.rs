//! One row as it stands on the wire: pgoutput's TupleData, read in place.
//!
//! Postgres docs, "Logical Replication Message Formats", TupleData: a 16-bit column count, then for each column one byte
//! of kind (`n` null, `u` unchanged TOASTed value, `t` text, `b` binary) and, for the last two, a 32-bit length and that
//! many bytes.

use std::fmt;

/// One column's value in a wire row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    /// An out-of-line value that the UPDATE did not touch and the server did not send. Not NULL, not the old value.
    Unchanged,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

/// Shows kind and length only: row values never appear in any output.
impl fmt::Debug for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cell::Null => f.write_str("Null"),
            Cell::Unchanged => f.write_str("Unchanged"),
            Cell::Text(bytes) => write!(f, "Text({} bytes)", bytes.len()),
            Cell::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// The bytes do not have TupleData's form.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("row is cut short or malformed at column {column}")]
pub struct TupleError {
    pub column: usize,
}

/// A row that was checked once when it was received; reading its cells cannot fail.
#[derive(Clone, Copy)]
pub struct Tuple<'a> {
    bytes: &'a [u8],
    has_unchanged: bool,
}

impl<'a> Tuple<'a> {
    /// Takes one TupleData from the front of `bytes`; returns it and its length in bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<(Tuple<'a>, usize), TupleError> {
        let mut rest = bytes;
        let count = take_u16(&mut rest).ok_or(TupleError { column: 0 })?;
        let mut has_unchanged = false;
        for column in 0..usize::from(count) {
            let cell = take_cell(&mut rest).ok_or(TupleError { column })?;
            has_unchanged |= matches!(cell, Cell::Unchanged);
        }
        let length = bytes.len() - rest.len();
        Ok((Tuple { bytes: &bytes[..length], has_unchanged }, length))
    }

    /// The cells of a row that `parse` accepted before, given again as the bytes it covered.
    pub fn trusted_cells(bytes: &'a [u8]) -> Cells<'a> {
        debug_assert!(Tuple::parse(bytes).is_ok_and(|(_, length)| length == bytes.len()));
        Cells { rest: &bytes[2..] }
    }

    /// Some column is an unchanged TOASTed value that was not sent.
    pub fn has_unchanged(&self) -> bool {
        self.has_unchanged
    }

    /// The bytes that the row covers on the wire.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Columns in the row.
    pub fn len(&self) -> usize {
        usize::from(u16::from_be_bytes([self.bytes[0], self.bytes[1]]))
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The cells, in the relation's column order.
    pub fn cells(&self) -> Cells<'a> {
        Cells { rest: &self.bytes[2..] }
    }
}

/// Cells of a checked row, one after the other.
#[derive(Clone)]
pub struct Cells<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        take_cell(&mut self.rest)
    }
}

#[inline]
fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    let (head, tail) = rest.split_first_chunk::<2>()?;
    *rest = tail;
    Some(u16::from_be_bytes(*head))
}

#[inline]
fn take_cell<'a>(rest: &mut &'a [u8]) -> Option<Cell<'a>> {
    let (&kind, tail) = rest.split_first()?;
    match kind {
        b'n' => {
            *rest = tail;
            Some(Cell::Null)
        }
        b'u' => {
            *rest = tail;
            Some(Cell::Unchanged)
        }
        b't' | b'b' => {
            let (length, tail) = tail.split_first_chunk::<4>()?;
            let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
            let (value, tail) = tail.split_at_checked(length)?;
            *rest = tail;
            Some(if kind == b'b' { Cell::Binary(value) } else { Cell::Text(value) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cells_come_back_in_order() {
        let bytes = b"\x00\x04n\x75t\x00\x00\x00\x02hib\x00\x00\x00\x01\x07rest";
        let (tuple, length) = Tuple::parse(bytes).expect("well formed");
        assert_eq!(length, bytes.len() - 4);
        let cells: Vec<_> = tuple.cells().collect();
        assert_eq!(cells, [Cell::Null, Cell::Unchanged, Cell::Text(b"hi"), Cell::Binary(b"\x07")]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let bytes = b"\x00\x02t\x00\x00\x00\x02hib\x00\x00\x00\x01\x07";
        for end in 0..bytes.len() {
            assert!(Tuple::parse(&bytes[..end]).is_err(), "taken when cut at {end}");
        }
    }

    #[test]
    fn negative_length_and_unknown_kind_are_errors() {
        assert_eq!(Tuple::parse(b"\x00\x01t\xff\xff\xff\xff").err(), Some(TupleError { column: 0 }));
        assert_eq!(Tuple::parse(b"\x00\x02nx").err(), Some(TupleError { column: 1 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok((tuple, _)) = Tuple::parse(&bytes) {
                prop_assert_eq!(tuple.cells().count(), tuple.len());
            }
        }
    }
}
