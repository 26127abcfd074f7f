//! A range of the journal without the transactions that a lost connection cut off: each of those comes again whole, and
//! its first piece must not be applied before it.

use bytes::Bytes;

use crate::frame::{self, Frame};
use crate::journal::{Follower, Item, JournalError};
use crate::lsn::Lsn;

/// From the frame at `from` to the restart at item `to` nothing counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Void {
    item: usize,
    from: usize,
    to: usize,
}

/// What a first reading found. The second one sees the same items, since nobody writes meanwhile.
#[derive(Default, Debug)]
pub struct Voids {
    voids: Vec<Void>,
    open: Option<(usize, usize)>,
    items: usize,
}

impl Voids {
    /// Reads up to `to`.
    ///
    /// # Errors
    /// The journal's.
    pub fn find(follower: &mut Follower, to: Lsn) -> Result<Voids, JournalError> {
        let mut voids = Voids::default();
        while let Some(item) = follower.try_next()? {
            voids.look(&item);
            if reaches(&item, to) {
                break;
            }
        }
        // A piece at the very end has no restart behind it: it lies after `to`.
        Ok(voids)
    }

    fn look(&mut self, item: &Item) {
        let number = self.items;
        self.items += 1;
        let Item::Block(block) = item else {
            if let Some((item, from)) = self.open.take() {
                self.voids.push(Void { item, from, to: number });
            }
            return;
        };
        let mut at = 0;
        while let Ok(Some((frame, length))) = frame::take(&block.bytes[at..]) {
            match frame {
                Frame::Message([b'B', ..]) => self.open = Some((number, at)),
                Frame::Message([b'C', ..]) => self.open = None,
                Frame::Message(_) | Frame::Keepalive(_) => {}
            }
            at += length;
        }
    }

    /// What counts of the item of this number.
    fn counting(&self, number: usize, bytes: &Bytes) -> Bytes {
        match self.voids.iter().find(|void| (void.item..void.to).contains(&number)) {
            None => bytes.clone(),
            Some(void) if void.item == number => bytes.slice(..void.from),
            Some(_) => Bytes::new(),
        }
    }
}

/// The second reading.
pub struct Whole {
    follower: Follower,
    voids: Voids,
    to: Lsn,
    next: usize,
    ended: bool,
}

impl Whole {
    pub fn new(follower: Follower, voids: Voids, to: Lsn) -> Self {
        Whole { follower, voids, to, next: 0, ended: false }
    }

    /// The next frames, and how far the journal is read then; `None` at the end of the range.
    ///
    /// # Errors
    /// The journal's.
    pub fn next_frames(&mut self) -> Result<Option<(Bytes, Lsn)>, JournalError> {
        while !self.ended {
            let Some(item) = self.follower.try_next()? else { break };
            self.ended = reaches(&item, self.to);
            let number = self.next;
            self.next += 1;
            if let Item::Block(block) = item {
                return Ok(Some((self.voids.counting(number, &block.bytes), block.end.end_lsn)));
            }
        }
        Ok(None)
    }
}

fn reaches(item: &Item, to: Lsn) -> bool {
    matches!(item, Item::Block(block) if block.end.end_lsn >= to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::UnixMicros;
    use crate::frame::Boundary;
    use crate::journal::Block;

    fn block(messages: &[&[u8]]) -> Item {
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| frame::write_message(&mut bytes, message));
        let boundary = Boundary::new(Lsn(1));
        let (start, end) = (boundary, boundary);
        Item::Block(Block { bytes: bytes.into(), start, end, has_relation: false, received_at: UnixMicros(0) })
    }

    fn messages(mut bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        while let Ok(Some((Frame::Message(message), length))) = frame::take(bytes) {
            found.push(String::from_utf8_lossy(message).into_owned());
            bytes = &bytes[length..];
        }
        found
    }

    #[test]
    fn cut_off_pieces_do_not_count() {
        let items = [
            block(&[b"B1", b"I1", b"C1", b"B2", b"I2"]),
            block(&[b"I3"]),
            Item::Restarted,
            block(&[b"B2", b"I2"]),
            Item::Restarted,
            block(&[b"B2", b"I2", b"I3", b"C2"]),
            Item::Restarted,
            block(&[b"B3", b"C3"]),
        ];
        let mut voids = Voids::default();
        items.iter().for_each(|item| voids.look(item));
        let mut left = Vec::new();
        for (number, item) in items.iter().enumerate() {
            if let Item::Block(block) = item {
                left.extend(messages(&voids.counting(number, &block.bytes)));
            }
        }
        assert_eq!(left, ["B1", "I1", "C1", "B2", "I2", "I3", "C2", "B3", "C3"]);
    }
}
