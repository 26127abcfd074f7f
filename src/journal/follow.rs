//! Reading a journal without its lock: beside the daemon that writes it, or after it. For `tail` and `replay`.
//!
//! What the writer does is enough to follow from outside: blocks are appended with one call and prove themselves by their
//! checksums, a segment gets its name only once it has its head, and whatever takes the place of a file does so by rename,
//! so that a file once opened stays what it was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

use super::compress::blocks_to_keep;
use super::cursor::{Cursor, Unreadable};
use super::reader::without_open_tail;
use super::recover::segment_files;
use super::{Block, Held, Item, JournalError, NotHeld};

/// How often the live end is looked at: a person at a terminal calls it at once.
const POLL: Duration = Duration::from_millis(200);
/// A file may be deleted between listing and opening it; more often in a row it is not.
const ATTEMPTS: usize = 10;

/// Where a follower begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// As early as can be.
    First,
    /// After everything that ends here.
    At(Lsn),
    /// Where the journal ends now.
    End,
}

/// Reads the journal in `dir` from `from` on. Takes no lock and holds no segment.
///
/// # Errors
/// `NotHeld` if the journal does not hold `from` or nothing at all; the directory or a segment cannot be read.
pub fn follow(dir: &Path, from: Start) -> Result<Follower, JournalError> {
    let held = held_in(dir)?;
    let wanted = match from {
        Start::First => held.map(|held| held.first).unwrap_or_default(),
        Start::At(lsn) => lsn,
        Start::End => held.map(|held| held.end.end_lsn).unwrap_or_default(),
    };
    let Some(held) = held.filter(|held| (held.first..=held.end.end_lsn).contains(&wanted)) else {
        return Err(NotHeld { from: wanted, held }.into());
    };
    Ok(Follower { dir: dir.to_owned(), held, from: wanted, place: None, reached: wanted })
}

/// What can be read of the journal in `dir`, `None` if there is none.
fn held_in(dir: &Path) -> Result<Option<Held>, JournalError> {
    for _ in 0..ATTEMPTS {
        match try_held(dir) {
            Ok(held) => return Ok(held),
            Err((path, error)) if !is_gone(&error) => return Err(error.into_error(&path, Lsn::ZERO, Lsn(u64::MAX))),
            Err(_) => {}
        }
    }
    Ok(None)
}

fn try_held(dir: &Path) -> Result<Option<Held>, (PathBuf, Unreadable)> {
    let files = files_in(dir).map_err(|error| (dir.to_owned(), error))?;
    let mut first = None;
    let mut end = None;
    for (idx, (lsn, path)) in files.iter().enumerate() {
        let mut cursor = Cursor::open(path).map_err(|error| (path.clone(), error))?;
        let joined = idx > 0 && cursor.header.continues == Some(files[idx - 1].0);
        if !joined {
            first = Some(*lsn);
        }
        if idx + 1 == files.len() {
            whole_blocks(&mut cursor).map_err(|error| (path.clone(), error))?;
            end = Some(cursor.boundary);
        }
    }
    Ok(first.zip(end).map(|(first, end)| Held { first, end }))
}

/// Segment files; none where no daemon has run yet.
fn files_in(dir: &Path) -> Result<Vec<(Lsn, PathBuf)>, Unreadable> {
    match segment_files(dir) {
        Ok(files) => Ok(files),
        Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(JournalError::Io { source, .. }) => Err(Unreadable::Io(source)),
        Err(error) => Err(Unreadable::Io(io::Error::other(error))),
    }
}

fn is_gone(error: &Unreadable) -> bool {
    matches!(error, Unreadable::Io(error) if error.kind() == io::ErrorKind::NotFound)
}

/// Goes to the end of what is whole, and says how many blocks that is. The last one may still be being written.
fn whole_blocks(cursor: &mut Cursor) -> Result<u64, Unreadable> {
    let length = fs::metadata(cursor.path()).map_err(Unreadable::Io)?.len();
    loop {
        match cursor.peek() {
            Ok(Some(header)) if cursor.offset() + header.record_bytes() <= length => cursor.skip(&header),
            Ok(_) | Err(Unreadable::Damaged(_)) => return Ok(cursor.block),
            Err(error) => return Err(error),
        }
    }
}

/// An open segment.
struct Place {
    first: Lsn,
    path: PathBuf,
    cursor: Cursor,
    /// Blocks that hold anything but a transaction left open at the segment's end, where the next one begins with it anew.
    keep: u64,
}

impl Place {
    /// Reads the next block that counts.
    fn read(&mut self) -> Result<Option<Block>, Unreadable> {
        if self.cursor.block >= self.keep {
            return Ok(None);
        }
        let block = self.cursor.read()?;
        Ok(if self.cursor.block == self.keep { block.map(without_open_tail) } else { block })
    }
}

/// One follower. It first yields one block, possibly empty, with the Relation messages in force where it starts, outside
/// any transaction; then every block from there on. Where nobody writes meanwhile, it never yields `Restarted`: what a lost
/// connection cut off is left out.
pub struct Follower {
    dir: PathBuf,
    held: Held,
    from: Lsn,
    /// `None` before the first block.
    place: Option<Place>,
    /// Every transaction that ends here or before was yielded, or was not asked for.
    reached: Lsn,
}

impl Follower {
    /// What the journal held when the follower was made.
    pub fn held(&self) -> Held {
        self.held
    }

    /// Every transaction that ends after this is yielded; what comes first may end at it or before.
    pub fn from(&self) -> Lsn {
        self.from
    }

    /// The next block, waiting for it at the live end. Blocks the thread.
    ///
    /// # Errors
    /// As [`try_next`](Follower::try_next).
    pub fn wait_next(&mut self) -> Result<Item, JournalError> {
        loop {
            match self.try_next()? {
                Some(item) => return Ok(item),
                None => sleep(POLL),
            }
        }
    }

    /// The next block if it is there.
    ///
    /// # Errors
    /// `Damaged`, `Io`, and `NotHeld` if what comes next was deleted or is behind a gap.
    pub fn try_next(&mut self) -> Result<Option<Item>, JournalError> {
        let Some(place) = &mut self.place else { return self.begin().map(Some) };
        if let Ok(Some(block)) = place.read() {
            return Ok(Some(self.passed(block)));
        }
        // Looked for before the last read: what a segment has when the next one is there, is all that it will have.
        let next = next_of(&self.dir, place.first)?;
        match place.read() {
            Ok(Some(block)) => return Ok(Some(self.passed(block))),
            Ok(None) => {}
            Err(Unreadable::Damaged(at)) if next.is_none() && !place.cursor.header.compressed => {
                return self.unfinished(at);
            }
            Err(error) => return Err(self.lost(error)),
        }
        if let Some(again) = self.replaced()? {
            return Ok(Some(again));
        }
        match next {
            None => Ok(None),
            Some(next) => self.enter(next),
        }
    }

    /// Opens the segment where to begin, and yields the Relation messages in force there.
    fn begin(&mut self) -> Result<Item, JournalError> {
        for _ in 0..ATTEMPTS {
            let files = segment_files(&self.dir)?;
            let after = files.partition_point(|(first, _)| *first <= self.from);
            let Some((first, path)) = after.checked_sub(1).and_then(|idx| files.get(idx)) else { break };
            let opened = open_at(path, self.from)
                .and_then(|(cursor, relations)| Ok((cursor, relations, keep(&self.dir, *first, path)?)));
            match opened {
                Ok((cursor, relations, keep)) => {
                    let block = Block {
                        bytes: relations.into(),
                        start: cursor.boundary,
                        end: cursor.boundary,
                        has_relation: true,
                        received_at: UnixMicros::now(),
                    };
                    self.place = Some(Place { first: *first, path: path.clone(), cursor, keep });
                    return Ok(Item::Block(block));
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error.into_error(path, self.from, Lsn(u64::MAX))),
            }
        }
        Err(self.gone())
    }

    /// A bad block at the live end is most likely one that is being written; not so if whole ones stand behind it.
    fn unfinished(&mut self, at: u64) -> Result<Option<Item>, JournalError> {
        let Some(place) = &mut self.place else { return Ok(None) };
        match place.cursor.valid_record_after(at) {
            Ok(None) => return Ok(None),
            Ok(Some(_)) => {}
            Err(error) => return Err(self.lost(error)),
        }
        // It may have become whole meanwhile, and the next one too.
        match place.read() {
            Ok(block) => Ok(block.map(|block| self.passed(block))),
            Err(error) => Err(self.lost(error)),
        }
    }

    /// A file of the same name took the place of the open one, in which there was nothing but a transaction that comes
    /// again.
    fn replaced(&mut self) -> Result<Option<Item>, JournalError> {
        let Some(place) = &mut self.place else { return Ok(None) };
        match Cursor::open(&place.path) {
            Ok(now) if now.header.salt != place.cursor.header.salt => {
                place.cursor = now;
                place.keep = u64::MAX;
                Ok(Some(Item::Restarted))
            }
            Ok(_) => Ok(None),
            // Deleted, which does not hurt those who have it open.
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error.into_error(&place.path, self.reached, Lsn(u64::MAX))),
        }
    }

    /// Goes to the next segment. `None`: look again.
    fn enter(&mut self, (first, path): (Lsn, PathBuf)) -> Result<Option<Item>, JournalError> {
        let Some(place) = &self.place else { return Ok(None) };
        let cursor = match Cursor::open(&path) {
            Ok(cursor) => cursor,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into_error(&path, self.reached, Lsn(u64::MAX))),
        };
        if cursor.header.continues != Some(place.first) {
            return Err(self.gone());
        }
        let (end, restarts) = (place.cursor.boundary, cursor.header.restarts);
        if end.end_lsn != cursor.header.start.end_lsn || (end.in_transaction && !restarts) {
            let at = place.cursor.offset();
            return Err(Unreadable::Damaged(at).into_error(&place.path, end.end_lsn, cursor.header.start.end_lsn));
        }
        // What was cut off is told only to those who have seen it.
        let told = restarts && place.keep == u64::MAX;
        let keep = match keep(&self.dir, first, &path) {
            Ok(keep) => keep,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into_error(&path, self.reached, Lsn(u64::MAX))),
        };
        self.place = Some(Place { first, path, cursor, keep });
        if told { Ok(Some(Item::Restarted)) } else { self.try_next() }
    }

    fn passed(&mut self, block: Block) -> Item {
        self.reached = self.reached.max(block.end.end_lsn);
        Item::Block(block)
    }

    fn gone(&self) -> JournalError {
        let held = held_in(&self.dir).ok().flatten();
        NotHeld { from: self.reached, held }.into()
    }

    fn lost(&self, error: Unreadable) -> JournalError {
        let file = self.place.as_ref().map_or(&self.dir, |place| &place.path);
        error.into_error(file, self.reached, Lsn(u64::MAX))
    }
}

/// The segment after the one that begins at `first`.
fn next_of(dir: &Path, first: Lsn) -> Result<Option<(Lsn, PathBuf)>, JournalError> {
    Ok(segment_files(dir)?.into_iter().find(|(other, _)| *other > first))
}

/// How many blocks of the segment count: all, unless the next one is there and begins with the transaction left open.
fn keep(dir: &Path, first: Lsn, path: &Path) -> Result<u64, Unreadable> {
    let files = files_in(dir)?;
    let Some((_, next)) = files.into_iter().find(|(other, _)| *other > first) else { return Ok(u64::MAX) };
    let header = Cursor::open(&next)?.header;
    if header.restarts && header.continues == Some(first) { blocks_to_keep(path) } else { Ok(u64::MAX) }
}

/// The segment open at the last place between transactions and not after `from`, and the Relation messages there.
fn open_at(path: &Path, from: Lsn) -> Result<(Cursor, Vec<u8>), Unreadable> {
    let blocks = whole_blocks(&mut Cursor::open(path)?)?;
    let mut cursor = Cursor::open(path)?;
    let relations = cursor.seek(from, blocks)?;
    Ok((cursor, relations.to_frames()))
}
