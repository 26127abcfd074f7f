//! Readers: from memory while they keep up, from the files when they do not.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

use super::cursor::{Cursor, Unreadable};
use super::segments::{Found, Place, Segment};
use super::{Block, JournalError, NotHeld, Shared};

/// What a reader sees.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    Block(Block),
    /// Forget the transaction that is open, if one is: it comes again from its BEGIN.
    Restarted,
}

/// Read from files in one go, off the async threads: enough that going there is cheap beside it.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// One reader. It first yields one block, possibly empty, with the Relation messages in force where it starts, outside
/// any transaction; then every block from there on.
pub struct Reader {
    news: watch::Receiver<()>,
    ready: VecDeque<Item>,
    /// `None` while a read from files has it, or after that read was lost with its runtime.
    tape: Option<Tape>,
    reading: Option<JoinHandle<TapeRead>>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, from: Lsn) -> Result<Reader, NotHeld> {
        let place = shared.segments().place_of(from)?;
        let news = shared.news.clone();
        let tape = Tape { shared, place, sought: true, reached: from, cursor: None, void: None };
        Ok(Reader { news, ready: VecDeque::new(), tape: Some(tape), reading: None })
    }

    /// The next block, waiting for it at the live end. Cancel-safe: nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// `Damaged`, `Io`, `NotHeld` if it fell behind what is kept, `Closed`; each comes again at the next call.
    pub async fn next(&mut self) -> Result<Item, JournalError> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            if let Some(reading) = &mut self.reading {
                let read = reading.await;
                self.take_back(read)?;
                continue;
            }
            // Before the look, so that what comes after the look wakes us.
            self.news.borrow_and_update();
            let Some(tape) = &mut self.tape else { return Err(JournalError::Closed) };
            match tape.step()? {
                Step::Item(item) => return Ok(item),
                Step::End => self.news.changed().await.map_err(|_| JournalError::Closed)?,
                Step::Seek(_) | Step::File(_) => self.read_ahead(),
            }
        }
    }

    /// The next block if it is there. Reads at most one block from a file, on this thread.
    ///
    /// # Errors
    /// As [`next`](Reader::next), but never `Closed`.
    pub fn try_next(&mut self) -> Result<Option<Item>, JournalError> {
        if let Some(reading) = &mut self.reading {
            // Left behind by a `next` that was dropped.
            let Some(read) = reading.now_or_never() else { return Ok(None) };
            self.take_back(read)?;
        }
        if let Some(item) = self.ready.pop_front() {
            return Ok(Some(item));
        }
        let Some(tape) = &mut self.tape else { return Ok(None) };
        self.ready = tape.read(1)?;
        Ok(self.ready.pop_front())
    }

    fn read_ahead(&mut self) {
        let Some(mut tape) = self.tape.take() else { return };
        self.reading = Some(tokio::task::spawn_blocking(move || {
            let items = tape.read(READ_AHEAD_BYTES);
            (tape, items)
        }));
    }

    fn take_back(&mut self, read: Result<TapeRead, JoinError>) -> Result<(), JournalError> {
        self.reading = None;
        let (tape, items) = match read {
            Ok(read) => read,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is ending.
            Err(_) => return Err(JournalError::Closed),
        };
        self.tape = Some(tape);
        self.ready = items?;
        Ok(())
    }
}

/// The tape comes back from a read with what it read.
type TapeRead = (Tape, Result<VecDeque<Item>, JournalError>);

/// A reader's place, and the file it has open there.
struct Tape {
    shared: Arc<Shared>,
    place: Place,
    /// `place` is only the segment's start; the block where to begin is still to be found.
    sought: bool,
    /// Every transaction that ends here or before was yielded, or was not asked for.
    reached: Lsn,
    cursor: Option<(u64, Cursor)>,
    /// A segment that ends in a void transaction, and how many of its blocks hold anything else.
    void: Option<(u64, u64)>,
}

enum Step {
    Item(Item),
    /// Nothing yet.
    End,
    /// The reader's first block is to be found in this file.
    Seek(Segment),
    /// The next block is in this file.
    File(Segment),
}

impl Tape {
    /// What comes next, as far as memory tells.
    fn step(&mut self) -> Result<Step, JournalError> {
        loop {
            let segments = self.shared.segments();
            if self.sought
                && let Some(segment) = segments.get(self.place.segment)
            {
                return Ok(Step::Seek(segment.clone()));
            }
            let found = segments.find(self.place, self.reached);
            let ends_void = segments.after(self.place.segment).is_some_and(|next| next.restarts);
            let segment = segments.get(self.place.segment).filter(|_| ends_void).cloned();
            drop(segments);
            match (found, segment) {
                // What was left open there is looked for in the file, and left out.
                (Found::Memory(_), Some(segment)) => return Ok(Step::File(segment)),
                (found, _) => match found {
                    Found::Memory(block) => return Ok(Step::Item(self.passed(block))),
                    Found::File(segment) => return Ok(Step::File(segment)),
                    Found::End => return Ok(Step::End),
                    Found::Next(next) => self.enter(&next),
                    Found::Again(next) => {
                        self.enter(&next);
                        if !self.sought {
                            return Ok(Step::Item(Item::Restarted));
                        }
                    }
                    Found::Gone(gone) => return Err(gone.into()),
                },
            }
        }
    }

    /// Whatever is there, from memory or files, until it is `bytes_max` or more.
    fn read(&mut self, bytes_max: usize) -> Result<VecDeque<Item>, JournalError> {
        let mut items = VecDeque::new();
        let mut bytes = 0;
        while bytes < bytes_max {
            let item = match self.read_one() {
                Ok(Some(item)) => item,
                Ok(None) => break,
                // It comes again at the next call: the place stays before it.
                Err(_) if !items.is_empty() => break,
                Err(error) => return Err(error),
            };
            bytes += match &item {
                Item::Block(block) => block.bytes.len().max(1),
                Item::Restarted => 1,
            };
            items.push_back(item);
        }
        Ok(items)
    }

    fn read_one(&mut self) -> Result<Option<Item>, JournalError> {
        loop {
            let item = match self.step()? {
                Step::Item(item) => return Ok(Some(item)),
                Step::End => return Ok(None),
                Step::Seek(segment) => self.seek(&segment)?,
                Step::File(segment) => self.read_file(&segment)?,
            };
            if item.is_some() {
                return Ok(item);
            }
        }
    }

    /// Finds where to begin, and yields the Relation messages in force there. `None`: look again.
    fn seek(&mut self, segment: &Segment) -> Result<Option<Item>, JournalError> {
        let Some(cursor) = self.open(segment)? else { return Ok(None) };
        let from = self.reached;
        let sought = self.in_cursor(segment, cursor, |cursor| {
            let relations = cursor.seek(from, segment.blocks.unwrap_or(u64::MAX))?;
            Ok((relations, cursor.block, cursor.boundary))
        })?;
        let (relations, block, boundary) = sought;
        self.place.block = block;
        self.sought = false;
        Ok(Some(Item::Block(Block {
            bytes: relations.to_frames().into(),
            start: boundary,
            end: boundary,
            has_relation: true,
            received_at: UnixMicros::now(),
        })))
    }

    /// The next block of this file. `None`: look again.
    fn read_file(&mut self, segment: &Segment) -> Result<Option<Item>, JournalError> {
        let keep = self.blocks_before_void(segment)?;
        if self.place.block >= keep {
            self.place.block = u64::MAX;
            return Ok(None);
        }
        let Some(cursor) = self.open(segment)? else { return Ok(None) };
        let place = self.place;
        let read = self.in_cursor(segment, cursor, |cursor| {
            cursor.skip_to(place.block)?;
            Ok(if cursor.block == place.block { cursor.read()? } else { None })
        })?;
        match read {
            Some(block) if place.block + 1 == keep => Ok(Some(self.passed(without_open_tail(block)))),
            Some(block) => Ok(Some(self.passed(block))),
            None => self.check_end(segment).map(|()| None),
        }
    }

    /// How many blocks of the segment hold anything but a transaction that was left open at its end and came again in the
    /// next one; all if there is none.
    fn blocks_before_void(&mut self, segment: &Segment) -> Result<u64, JournalError> {
        let ends_void = self.shared.segments().after(segment.id).is_some_and(|next| next.restarts);
        match self.void {
            _ if !ends_void => Ok(u64::MAX),
            Some((id, keep)) if id == segment.id => Ok(keep),
            _ => {
                let keep = super::compress::blocks_to_keep(&segment.path).map_err(|error| self.lost(segment, error))?;
                self.void = Some((segment.id, keep));
                Ok(keep)
            }
        }
    }

    /// The file has no more blocks: that must be where the next segment begins.
    fn check_end(&mut self, segment: &Segment) -> Result<(), JournalError> {
        let Some((_, cursor)) = &self.cursor else { return Ok(()) };
        let segments = self.shared.segments();
        // As it is now: since `segment` was looked up it may have been closed, compressed or deleted.
        let Some(segment) = segments.get(segment.id) else { return Ok(()) };
        let next = segments.after(segment.id);
        let complete = segment.closed_at.is_some()
            // Compression leaves out the blocks of a void transaction, so that there may be fewer than were written.
            && (segment.blocks.is_none() || cursor.header.compressed)
            && next.is_none_or(|next| {
                cursor.boundary.end_lsn == next.start.end_lsn && (!cursor.boundary.in_transaction || next.restarts)
            });
        if !complete {
            let (from, to) = (cursor.boundary.end_lsn, segments.end_of(segment.id));
            return Err(Unreadable::Damaged(cursor.offset()).into_error(&segment.path, from, to));
        }
        self.place.block = u64::MAX;
        Ok(())
    }

    /// The segment's file, open; `None` if the segment went away meanwhile, and another may have its name.
    fn open(&mut self, segment: &Segment) -> Result<Option<Cursor>, JournalError> {
        if let Some((id, cursor)) = self.cursor.take()
            && id == segment.id
            && cursor.block <= self.place.block
        {
            return Ok(Some(cursor));
        }
        let opened = match Cursor::open(&segment.path) {
            Ok(cursor) if cursor.header.salt == segment.salt => return Ok(Some(cursor)),
            Ok(_) => Unreadable::Damaged(0),
            Err(error) => error,
        };
        if self.shared.segments().get(segment.id).is_none() {
            return Ok(None);
        }
        if let Unreadable::Io(error) = &opened
            && error.kind() == io::ErrorKind::NotFound
        {
            // Deleted behind our back: as damaged as can be.
            return Err(self.lost(segment, Unreadable::Damaged(0)));
        }
        Err(self.lost(segment, opened))
    }

    /// Does `read`, and keeps the cursor for the next time unless it failed.
    fn in_cursor<T>(
        &mut self,
        segment: &Segment,
        mut cursor: Cursor,
        read: impl FnOnce(&mut Cursor) -> Result<T, Unreadable>,
    ) -> Result<T, JournalError> {
        match read(&mut cursor) {
            Ok(read) => {
                self.cursor = Some((segment.id, cursor));
                Ok(read)
            }
            Err(error) => Err(self.lost(segment, error)),
        }
    }

    fn lost(&self, segment: &Segment, error: Unreadable) -> JournalError {
        let from = self.reached.max(segment.start.end_lsn);
        error.into_error(&segment.path, from, self.shared.segments().end_of(segment.id))
    }

    fn passed(&mut self, block: Block) -> Item {
        self.place.block += 1;
        self.reached = self.reached.max(block.end.end_lsn);
        Item::Block(block)
    }

    fn enter(&mut self, segment: &Segment) {
        self.void = None;
        self.place = Place { segment: segment.id, block: 0 };
        self.cursor = None;
    }
}

/// The block up to its last boundary between transactions.
pub(super) fn without_open_tail(mut block: Block) -> Block {
    if !block.end.in_transaction {
        return block;
    }
    let mut boundary = block.start;
    let mut kept = (0, boundary);
    let mut at = 0;
    while at < block.bytes.len() {
        // One frame at a time; the frames were whole when they were appended.
        let (scan, walked) = boundary.walk(&block.bytes[at..], 1);
        if walked.is_err() || scan.bytes == 0 {
            break;
        }
        at += scan.bytes;
        if !boundary.in_transaction {
            kept = (at, boundary);
        }
    }
    block.bytes.truncate(kept.0);
    block.end = kept.1;
    block
}
