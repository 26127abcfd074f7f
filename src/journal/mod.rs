//! The journal: every frame of one source's stream, byte for byte, in segment files and, at the live end, in memory.
//!
//! ```text
//!                       ┌─ file: one write per block ── closed ─▶ compressed by a thread of the journal's own
//!  stream thread ─append┤
//!                       └─ memory: the last `memory_bytes`        readers: memory if they keep up, files if not
//! ```
//!
//! One thread writes; any number of tasks read. The writer never waits for a reader. What a crash leaves behind is a
//! prefix of what was appended: nothing written is ever changed in place, only cut at the end or replaced by rename.
//!
//! # Files
//! `<dir>/<first LSN, 16 hexadecimal digits>.seg`. All numbers little-endian, `crc` is CRC32C.
//!
//! ```text
//! segment header, 64 bytes                          record header, 64 bytes, then `stored` bytes of payload
//!  0  magic "tailwjnl"                               0  magic "twjr"
//!  8  version u32 = 1                                4  crc u32 of bytes 8..64, starting from the segment's salt
//! 12  flags u32: 1 compressed, 2 continues the       8  crc u32 of the stored payload
//!     segment before it, 4 restarts: a transaction  12  stored u32: payload bytes in the file
//!     open at that segment's end is void            16  length u32: payload bytes once decompressed
//! 16  end_lsn u64, 24 commit_lsn u64 before the     20  flags u32: 1 has a Relation message, 2 starts inside a
//!     first frame                                       transaction, 4 ends inside one, 8 zstd, 16 segment head
//! 32  first LSN u64 of the segment it continues     24  end_lsn u64, 32 commit_lsn u64 before the first frame
//! 40  system identifier u64 of the source, 0: not   40  end_lsn u64, 48 commit_lsn u64 after the last
//!     known                                         56  received_at i64, microseconds since 1970
//! 48  opened_at i64, microseconds since 1970
//! 56  salt u32, another for every segment
//! 60  crc u32 of bytes 0..60
//! ```
//!
//! The first record is the head: all Relation messages known when the segment began. Each other record is a block of
//! whole frames. A segment begins and ends between transactions, unless the next one says `restarts`. The salt keeps a
//! row value that is itself a piece of a journal from passing for a record when a damaged tail is searched.

mod compress;
mod cursor;
mod follow;
mod format;
mod listing;
mod reader;
mod recover;
mod relations;
mod segments;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::checkpoint::UnixMicros;
use crate::frame::Boundary;
use crate::lsn::Lsn;

pub use follow::{Follower, Start, follow};
pub use listing::{SegmentInfo, list};
pub use reader::{Item, Reader};

use compress::Compressor;
use recover::Recovered;
use segments::Segments;
use writer::Writer;

/// Whole frames as they came off the socket.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    pub bytes: Bytes,
    /// Before the first frame.
    pub start: Boundary,
    /// After the last frame.
    pub end: Boundary,
    /// At least one Relation message is among the frames.
    pub has_relation: bool,
    /// When the first of the bytes arrived, by this machine's clock.
    pub received_at: UnixMicros,
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The bytes are row values and stay out of any text.
        write!(f, "Block({} bytes, {:?} to {:?})", self.bytes.len(), self.start, self.end)
    }
}

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// One source's own directory; made if missing.
    pub dir: PathBuf,
    /// Closed segments older than this are deleted unless held.
    pub retention: Duration,
    /// Cap on all segments together; one transaction alone may exceed it.
    pub max_bytes: u64,
    /// A segment is closed at the first boundary between transactions after this; at most an eighth of `max_bytes`.
    pub segment_bytes: u64,
    /// Blocks kept in memory for readers at the live end. Counted by what they hold: a block that is a slice of a
    /// larger buffer keeps all of that.
    pub memory_bytes: u64,
    /// The slot is confirmed from this journal (`ack = "journal"`), so what [`Journal::sync`] returned survives a power cut.
    pub fsync: bool,
    /// Refuse segments of another server; `None` if not known.
    pub system_identifier: Option<u64>,
}

/// What can be replayed: every transaction that ends after `first` and at `end.end_lsn` or before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    pub first: Lsn,
    pub end: Boundary,
}

/// The journal cannot serve a reader from here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", match held {
    Some(held) => format!("the journal holds {} to {}, not {from}", held.first, held.end.end_lsn),
    None => format!("the journal is empty and does not hold {from}"),
})]
pub struct NotHeld {
    pub from: Lsn,
    pub held: Option<Held>,
}

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("failed to {action} \"{}\"", file.display())]
    Io {
        action: &'static str,
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Nothing was appended; the same call may be made again.
    #[error("no space left for \"{}\"", file.display())]
    NoSpace {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another process uses the journal \"{}\"", dir.display())]
    Locked { dir: PathBuf },
    /// Transactions that end after `from` and at `to` or before may be unreadable; `to` is the highest LSN there is
    /// where nothing behind the damage tells.
    #[error("segment \"{}\" is damaged at byte {at}: {from} to {to} cannot be read", file.display())]
    Damaged { file: PathBuf, at: u64, from: Lsn, to: Lsn },
    #[error("segment \"{}\" has format version {found}, this program reads {}", file.display(), format::VERSION)]
    Version { file: PathBuf, found: u32 },
    #[error("segment \"{}\" is of the server with system identifier {found}, not {expected}", file.display())]
    OtherSource { file: PathBuf, found: u64, expected: u64 },
    #[error("the stream begins at {at}, before the journal's end {end}")]
    BeginsBefore { at: Lsn, end: Lsn },
    #[error("the block starts at {start:?}, the journal ends at {end:?}")]
    NotContiguous { start: Boundary, end: Boundary },
    #[error("a block of {bytes} bytes is too large")]
    BlockSize { bytes: usize },
    #[error("nothing was begun")]
    NotBegun,
    /// An fsync or a cut failed, and what the file holds is no longer known.
    #[error("an earlier failure makes the journal read-only until it is opened again")]
    Broken,
    /// A reader's segments were deleted, or the stream began anew behind a gap.
    #[error(transparent)]
    NotHeld(#[from] NotHeld),
    #[error("the journal was closed")]
    Closed,
}

impl JournalError {
    /// For `map_err`: the error of doing `action` to `file`.
    fn io(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> JournalError {
        let file = file.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => JournalError::NoSpace { file, source },
            _ => JournalError::Io { action, file, source },
        }
    }
}

/// Keeps daemons out of a journal until it is dropped.
#[derive(Debug)]
pub struct Lock {
    /// Held for its drop.
    _dir: std::fs::File,
}

/// Locks a journal's directory without opening the journal, for a [`follow`]er that wants nobody to write meanwhile.
///
/// # Errors
/// `Locked` if a daemon has it.
pub fn lock(dir: &Path) -> Result<Lock, JournalError> {
    Ok(Lock { _dir: writer::lock_dir(dir)? })
}

/// One source's journal; clones share it. Dropping the last one ends the compression thread and frees the directory.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    /// Held for its drop, which ends the thread; before the writer's, which frees the directory.
    _compressor: Compressor,
    writer: Mutex<Writer>,
    shared: Arc<Shared>,
}

/// What the writer, the readers and the compression thread have in common.
struct Shared {
    segments: Mutex<Segments>,
    /// Moves with every change of `segments` that a waiting reader may want to see.
    news: watch::Receiver<()>,
}

impl Shared {
    fn segments(&self) -> MutexGuard<'_, Segments> {
        guard(&self.segments)
    }
}

impl Journal {
    /// Locks the directory and recovers what is in it.
    ///
    /// # Errors
    /// `Locked` if another process has it, `Version` and `OtherSource` for foreign segments, `Damaged` if a segment's
    /// header or a record of the last segment with more behind it is bad. A torn last record is cut.
    pub fn open(options: Options) -> Result<Journal, JournalError> {
        let dir = writer::lock_dir(&options.dir)?;
        let Recovered { segments, end, relations } = recover::recover(&options)?;
        let (news_sender, news) = watch::channel(());
        let segments = Segments::new(&options, segments, end);
        let shared = Arc::new(Shared { segments: Mutex::new(segments), news });
        let compressor = Compressor::start(shared.clone(), &options)?;
        let writer = Writer::new(options, dir, (end, relations), shared.clone(), news_sender, compressor.waker());
        Ok(Journal { inner: Arc::new(Inner { _compressor: compressor, writer: Mutex::new(writer), shared }) })
    }

    /// What can be replayed, `None` before the first [`begin`](Journal::begin).
    pub fn held(&self) -> Option<Held> {
        self.inner.shared.segments().held()
    }

    /// The stream starts, or starts again, at `at`. At the journal's end the journal continues, and readers are told to
    /// forget a transaction left open there, since the server sends it again whole. After the end there is a gap, and
    /// what is held begins anew at `at`; older segments stay on disk but are never joined over the gap, and readers from
    /// before it end with `NotHeld`. Segments are deleted only after this was called: take every [`Hold`] first.
    ///
    /// # Errors
    /// `BeginsBefore` if `at` is held already: the caller's bug.
    pub fn begin(&self, at: Lsn) -> Result<(), JournalError> {
        guard(&self.inner.writer).begin(at)
    }

    /// Writes a block and shows it to readers, which may see it in two pieces. Called by the stream's thread.
    ///
    /// # Errors
    /// After `NoSpace` and `Io` the file is as before, and the same block may be appended again later.
    pub fn append(&self, block: Block) -> Result<(), JournalError> {
        guard(&self.inner.writer).append(block)
    }

    /// Makes everything appended so far durable, also by an earlier process, and returns the end of the last transaction
    /// among it.
    ///
    /// # Errors
    /// After a failed sync the journal is `Broken`: the kernel may have dropped what it could not write.
    pub fn sync(&self) -> Result<Lsn, JournalError> {
        guard(&self.inner.writer).sync()
    }

    /// Whether the stream may go on reading: false at `max_bytes` while every segment is still needed. A hold at the
    /// journal's end waits for the open transaction, which must then be let in whatever its size.
    pub fn has_room(&self) -> bool {
        let victims = {
            let mut segments = self.inner.shared.segments();
            if segments.bytes() < segments.max_bytes() {
                return true;
            }
            segments.take_deletable()
        };
        compress::delete(&victims);
        let segments = self.inner.shared.segments();
        segments.bytes() < segments.max_bytes() || segments.all_caught_up()
    }

    /// Bytes of all segments on disk.
    pub fn bytes(&self) -> u64 {
        self.inner.shared.segments().bytes()
    }

    /// Keeps segments from being deleted: all of them until [`Hold::set`] is called, until the hold is dropped.
    pub fn hold(&self, name: impl Into<String>) -> Hold {
        let id = self.inner.shared.segments().add_hold(name.into());
        Hold { shared: self.inner.shared.clone(), id }
    }

    /// Every hold's name and position, for status pages.
    pub fn holds(&self) -> Vec<(String, Lsn)> {
        self.inner.shared.segments().holds()
    }

    /// Reads every transaction that ends after `from`, then waits for more. What comes first may end at `from` or
    /// before: the caller skips it. A reader does not hold segments; take a [`Hold`] first where they must stay.
    ///
    /// # Errors
    /// `from` is outside what is held.
    pub fn reader(&self, from: Lsn) -> Result<Reader, NotHeld> {
        Reader::new(self.inner.shared.clone(), from)
    }

    /// The same for a sink that may be ahead of the journal, as where this began anew further back for another sink's sake:
    /// then from the journal's end on, and the caller skips what the sink has.
    ///
    /// # Errors
    /// `from` is before what is held.
    pub fn reader_ahead(&self, from: Lsn) -> Result<Reader, NotHeld> {
        let end = self.held().map(|held| held.end.end_lsn);
        self.reader(end.map_or(from, |end| end.min(from)))
    }
}

/// A registered need of segments, given up when dropped.
pub struct Hold {
    shared: Arc<Shared>,
    id: u64,
}

impl Hold {
    /// Only what ends after `lsn` is needed from now on.
    pub fn set(&self, lsn: Lsn) {
        self.shared.segments().move_hold(self.id, lsn);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.segments().remove_hold(self.id);
    }
}

/// A thread that panicked while it held the lock left nothing half done that the others could not go on from.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
