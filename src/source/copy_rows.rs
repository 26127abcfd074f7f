//! The rows of a binary COPY out of the source (Postgres docs, "COPY", "Binary Format").

use crate::tuple::Cell;

/// Signature, flags and header extension of a COPY without extension.
const HEADER_BYTES: usize = 19;

/// The message ends inside a row.
#[derive(Debug, thiserror::Error)]
#[error("a row of the snapshot is cut short")]
pub struct CutShort;

/// Takes the messages of one COPY apart. Every message holds whole rows.
#[derive(Default)]
pub struct CopyRows {
    is_begun: bool,
}

impl CopyRows {
    /// The rows of the next message.
    ///
    /// # Errors
    /// The first message is shorter than its header.
    pub fn message<'a>(&mut self, message: &'a [u8]) -> Result<MessageRows<'a>, CutShort> {
        let header = if std::mem::replace(&mut self.is_begun, true) { 0 } else { HEADER_BYTES };
        let (_, rest) = message.split_at_checked(header).ok_or(CutShort)?;
        Ok(MessageRows { rest })
    }
}

/// The same room for the cells of another message.
pub fn emptied<'a>(mut cells: Vec<Cell<'_>>) -> Vec<Cell<'a>> {
    cells.clear();
    cells.into_iter().map(|_| Cell::Null).collect()
}

/// What is left of one message.
pub struct MessageRows<'a> {
    rest: &'a [u8],
}

impl<'a> MessageRows<'a> {
    /// Puts the next row's cells in place of those that `cells` holds; false if there is none.
    ///
    /// # Errors
    /// The message ends inside a row.
    pub fn next(&mut self, cells: &mut Vec<Cell<'a>>) -> Result<bool, CutShort> {
        if self.rest.is_empty() {
            return Ok(false);
        }
        let count = i16::from_be_bytes(*self.take()?);
        // The trailer has -1.
        let Ok(count) = usize::try_from(count) else { return Ok(false) };
        cells.clear();
        for _ in 0..count {
            match usize::try_from(i32::from_be_bytes(*self.take()?)) {
                Err(_) => cells.push(Cell::Null),
                Ok(length) => {
                    let (value, rest) = self.rest.split_at_checked(length).ok_or(CutShort)?;
                    self.rest = rest;
                    cells.push(Cell::Binary(value));
                }
            }
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], CutShort> {
        let (bytes, rest) = self.rest.split_first_chunk().ok_or(CutShort)?;
        self.rest = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_of_cells_is_kept_between_messages() {
        let (cells, message) = (Vec::with_capacity(100), vec![1, 2]);
        let mut cells = emptied(cells);
        cells.push(Cell::Binary(&message));
        let room = emptied(cells);
        assert!(room.is_empty() && room.capacity() >= 100);
    }

    fn header() -> Vec<u8> {
        [b"PGCOPY\n\xff\r\n\0".as_slice(), &[0; 8]].concat()
    }

    fn rows(message: &[u8]) -> Result<Vec<Vec<Cell<'_>>>, CutShort> {
        let (mut rows, mut cells) = (CopyRows::default().message(message)?, Vec::new());
        let mut seen = Vec::new();
        while rows.next(&mut cells)? {
            seen.push(cells.clone());
        }
        Ok(seen)
    }

    #[test]
    fn rows_are_taken_apart_and_the_trailer_ends_them() {
        let row = b"\0\x02\0\0\0\x01a\xff\xff\xff\xff";
        let message = [&header(), &row[..], row, b"\xff\xff"].concat();
        assert_eq!(rows(&message).expect("whole"), vec![vec![Cell::Binary(b"a"), Cell::Null]; 2]);
    }

    #[test]
    fn cut_rows_are_an_error() {
        let message = [&header(), &b"\0\x01\0\0\0\x05ab"[..]].concat();
        for length in 0..message.len() {
            // What ends before a row is no row at all.
            assert_eq!(rows(&message[..length]).is_ok(), length == header().len(), "{length}");
        }
    }
}
