//! The one writer: appends blocks, closes segments, and says where the stream began again.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use tokio::sync::watch;

use crate::checkpoint::UnixMicros;
use crate::frame::Boundary;
use crate::lsn::Lsn;

use super::cursor::follows;
use super::format::{HEADER_BYTES, RecordHeader, SegmentHeader, is_inside_one_transaction};
use super::recover::{NEW_EXTENSION, segment_path};
use super::relations::Relations;
use super::segments::Segment;
use super::{Block, JournalError, Options, Shared};

pub(super) struct Writer {
    options: Options,
    /// Locked for as long as it is open.
    dir: File,
    shared: Arc<Shared>,
    news: watch::Sender<()>,
    /// A full channel is a thread that will look anyway.
    waker: SyncSender<()>,
    open: Option<Open>,
    end: Option<Boundary>,
    relations: Relations,
    rest: Option<Rest>,
    broken: bool,
}

/// The segment that takes blocks.
struct Open {
    file: File,
    segment: Segment,
    /// Bytes of whole records.
    bytes: u64,
}

/// The second piece of a block that was cut at a boundary, while only the first is written.
struct Rest {
    whole: (Boundary, Boundary, usize),
    piece: Block,
}

/// How a new segment stands to what is there.
enum Origin {
    /// Behind a gap, or the first.
    Fresh,
    Continues {
        restarts: bool,
    },
    /// Takes the name and the place of the open segment, all of which comes again.
    Replaces,
}

/// Makes the directory if it is missing, and keeps other processes out until the file is closed.
pub(super) fn lock_dir(path: &Path) -> Result<File, JournalError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(JournalError::io("create journal directory", path))?;
    let dir = File::open(path).map_err(JournalError::io("open journal directory", path))?;
    match dir.try_lock() {
        Ok(()) => Ok(dir),
        Err(TryLockError::WouldBlock) => Err(JournalError::Locked { dir: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(JournalError::io("lock journal directory", path)(error)),
    }
}

impl Writer {
    pub(super) fn new(
        options: Options,
        dir: File,
        (end, relations): (Option<Boundary>, Relations),
        shared: Arc<Shared>,
        news: watch::Sender<()>,
        waker: SyncSender<()>,
    ) -> Writer {
        Writer { options, dir, shared, news, waker, open: None, end, relations, rest: None, broken: false }
    }

    pub(super) fn begin(&mut self, at: Lsn) -> Result<(), JournalError> {
        self.check_whole()?;
        self.rest = None;
        match self.end {
            Some(end) if at < end.end_lsn => return Err(JournalError::BeginsBefore { at, end: end.end_lsn }),
            Some(end) if at == end.end_lsn => self.go_on(end)?,
            _ => {
                self.relations = Relations::default();
                self.start_segment(Boundary::new(at), Origin::Fresh)?;
            }
        }
        self.shared.segments().let_delete();
        self.news.send_replace(());
        Ok(())
    }

    pub(super) fn append(&mut self, block: Block) -> Result<(), JournalError> {
        self.check_whole()?;
        let whole = (block.start, block.end, block.bytes.len());
        let mut block = match &self.rest {
            Some(rest) if rest.whole == whole => rest.piece.clone(),
            _ => block,
        };
        let end = self.end.ok_or(JournalError::NotBegun)?;
        if !follows(&end, &block.start) {
            return Err(JournalError::NotContiguous { start: block.start, end });
        }
        if self.is_full()?
            && let Some((piece, rest)) = split(&block)
        {
            self.write(piece)?;
            self.rest = Some(Rest { whole, piece: rest.clone() });
            block = rest;
        }
        if self.is_full()? && !block.start.in_transaction {
            self.start_segment(block.start, Origin::Continues { restarts: false })?;
        }
        self.write(block)?;
        self.rest = None;
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<Lsn, JournalError> {
        self.check_whole()?;
        let (Some(open), Some(end)) = (&self.open, self.end) else { return Err(JournalError::NotBegun) };
        if let Err(error) = open.file.sync_data() {
            self.broken = true;
            return Err(JournalError::io("sync journal segment", &open.segment.path)(error));
        }
        Ok(end.end_lsn)
    }

    fn check_whole(&self) -> Result<(), JournalError> {
        if self.broken { Err(JournalError::Broken) } else { Ok(()) }
    }

    /// The open segment has its size, and a transaction has ended in it: the next can have a name of its own.
    fn is_full(&self) -> Result<bool, JournalError> {
        let (Some(open), Some(end)) = (&self.open, self.end) else { return Err(JournalError::NotBegun) };
        let limit = self.options.segment_bytes.min(self.options.max_bytes / 8);
        Ok(open.bytes >= limit && end.end_lsn > open.segment.start.end_lsn)
    }

    /// The stream continues where the journal ends; a transaction left open there will be sent again.
    fn go_on(&mut self, end: Boundary) -> Result<(), JournalError> {
        let closed = Boundary { in_transaction: false, ..end };
        let last = self.shared.segments().last().cloned();
        let Some(last) = last else { return self.start_segment(closed, Origin::Fresh) };
        self.reopen(&last)?;
        let restarts = end.in_transaction;
        if last.start.end_lsn == end.end_lsn {
            // All of it is the open transaction, or there is nothing in it.
            return if restarts || self.open.is_none() { self.start_segment(closed, Origin::Replaces) } else { Ok(()) };
        }
        if restarts || self.open.is_none() {
            return self.start_segment(closed, Origin::Continues { restarts });
        }
        Ok(())
    }

    /// Opens the segment that an earlier process left open.
    fn reopen(&mut self, last: &Segment) -> Result<(), JournalError> {
        if self.open.is_some() || last.closed_at.is_some() {
            return Ok(());
        }
        let path = &last.path;
        let file =
            OpenOptions::new().append(true).open(path).map_err(JournalError::io("open journal segment", path))?;
        self.open = Some(Open { file, segment: last.clone(), bytes: last.bytes });
        Ok(())
    }

    /// Closes the open segment and makes the next. On an error all is as before.
    fn start_segment(&mut self, start: Boundary, origin: Origin) -> Result<(), JournalError> {
        if self.options.fsync {
            self.sync_open()?;
        }
        let last = self.shared.segments().last().cloned();
        let id = self.shared.segments().next_id();
        let (continues, restarts) = match (&origin, &last) {
            (Origin::Continues { restarts }, Some(last)) => (Some(last.start.end_lsn), *restarts),
            (Origin::Replaces, Some(last)) => (last.continues, last.restarts),
            (Origin::Fresh, _) | (_, None) => (None, false),
        };
        let replaced = last.as_ref().filter(|_| matches!(origin, Origin::Replaces));
        let header = SegmentHeader {
            compressed: false,
            continues,
            restarts,
            start,
            system_identifier: self.options.system_identifier.unwrap_or_default(),
            opened_at: UnixMicros::now(),
            salt: salt(),
        };
        let path = segment_path(&self.options.dir, start.end_lsn);
        let (file, bytes) = self.create(&path, &header)?;
        let segment = Segment {
            id,
            replaces: replaced.map_or(id, |replaced| replaced.replaces),
            path,
            salt: header.salt,
            start,
            continues,
            joined: replaced.map_or(continues.is_some(), |replaced| replaced.joined),
            restarts,
            blocks: Some(0),
            bytes,
            closed_at: None,
            compressed: false,
            busy: false,
        };
        let mut segments = self.shared.segments();
        if replaced.is_some() {
            segments.replace_last(segment.clone())
        } else {
            segments.push(segment.clone())
        }
        drop(segments);
        self.open = Some(Open { file, segment, bytes });
        self.end = Some(start);
        // Refused only while a wake-up is waiting already, or after the thread ended with the journal.
        let _ = self.waker.try_send(());
        Ok(())
    }

    fn sync_open(&mut self) -> Result<(), JournalError> {
        if self.open.is_some() {
            self.sync()?;
        }
        Ok(())
    }

    /// Writes header and head under another name first: a segment has either both or no name.
    fn create(&mut self, path: &Path, header: &SegmentHeader) -> Result<(File, u64), JournalError> {
        let head = Block {
            bytes: self.relations.to_frames().into(),
            start: header.start,
            end: header.start,
            has_relation: true,
            received_at: header.opened_at,
        };
        let record = RecordHeader::of(&head).ok_or(JournalError::BlockSize { bytes: head.bytes.len() })?;
        let record = RecordHeader { head: true, ..record };
        let mut bytes = Vec::with_capacity(2 * HEADER_BYTES + head.bytes.len());
        bytes.extend_from_slice(&header.encode());
        bytes.extend_from_slice(&record.encode(header.salt));
        bytes.extend_from_slice(&head.bytes);
        let new_path = path.with_extension(NEW_EXTENSION);
        let made = self.make_file(&new_path, &bytes).and_then(|file| {
            fs::rename(&new_path, path)?;
            Ok(file)
        });
        if made.is_err() {
            // The error that counts is the first; the next start removes what is left.
            let _ = fs::remove_file(&new_path);
        }
        let file = made.map_err(JournalError::io("create journal segment", path))?;
        if self.options.fsync
            && let Err(error) = self.dir.sync_all()
        {
            // The name is there, but for how long is not known.
            self.broken = true;
            return Err(JournalError::io("sync journal directory", &self.options.dir)(error));
        }
        Ok((file, bytes.len() as u64))
    }

    fn make_file(&self, path: &Path, bytes: &[u8]) -> io::Result<File> {
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        file.set_len(0)?;
        file.write_all(bytes)?;
        if self.options.fsync {
            file.sync_all()?;
        }
        Ok(file)
    }

    /// Appends one record with one call of the system, and shows the block to readers.
    fn write(&mut self, block: Block) -> Result<(), JournalError> {
        if block.bytes.is_empty() {
            return Ok(());
        }
        let Some(open) = &mut self.open else { return Err(JournalError::NotBegun) };
        let record = RecordHeader::of(&block).ok_or(JournalError::BlockSize { bytes: block.bytes.len() })?;
        if let Err(error) = write_both(&mut open.file, &record.encode(open.segment.salt), &block.bytes) {
            // A piece of a record may stand there now; without it the file is good.
            self.broken = open.file.set_len(open.bytes).is_err();
            return Err(JournalError::io("append to journal segment", &open.segment.path)(error));
        }
        open.bytes += record.record_bytes();
        if block.has_relation {
            self.relations.collect(&block.bytes);
        }
        self.end = Some(block.end);
        self.shared.segments().publish(block, open.bytes);
        self.news.send_replace(());
        Ok(())
    }
}

fn write_both(file: &mut File, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < header.len() {
        match file.write_vectored(&[IoSlice::new(&header[written..]), IoSlice::new(payload)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    file.write_all(&payload[written - header.len()..])
}

/// Cuts a block that starts and ends inside transactions at the last boundary between two, if it has one.
fn split(block: &Block) -> Option<(Block, Block)> {
    if !(block.start.in_transaction && block.end.in_transaction) || is_inside_one_transaction(&block.start, &block.end)
    {
        return None;
    }
    let mut boundary = block.start;
    let mut at = 0;
    let mut cut = None;
    while at < block.bytes.len() {
        let (scan, walked) = boundary.walk(&block.bytes[at..], 1);
        if walked.is_err() || scan.bytes == 0 {
            break;
        }
        at += scan.bytes;
        if !boundary.in_transaction {
            cut = Some((at, boundary));
        }
    }
    let (at, boundary) = cut?;
    let piece = Block { bytes: block.bytes.slice(..at), end: boundary, ..block.clone() };
    let rest = Block { bytes: block.bytes.slice(at..), start: boundary, ..block.clone() };
    Some((piece, rest))
}

/// A number that no other segment is likely to have.
fn salt() -> u32 {
    (RandomState::new().hash_one(UnixMicros::now().0) & u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::super::tests::{START, Scratch, filled, next_block, read_from, simple_transactions, stream};
    use super::super::{Journal, guard};
    use super::*;

    #[test]
    fn file_that_cannot_be_put_right_is_left_alone() {
        let scratch = Scratch::new();
        let source = simple_transactions(6);
        let journal = filled(scratch.options(), &source[..5], 300);
        let next = next_block(&stream(&source, source[4].end), Boundary::new(source[4].end), usize::MAX);
        {
            // Takes no byte, and cannot be cut either.
            let mut writer = guard(&journal.inner.writer);
            let open = writer.open.as_mut().expect("begun");
            open.file = OpenOptions::new().append(true).open("/dev/full").expect("every Linux has it");
        }
        let error = journal.append(next.clone()).expect_err("full");
        assert!(matches!(error, JournalError::NoSpace { .. }), "{error}");
        assert!(matches!(journal.append(next), Err(JournalError::Broken)));
        assert!(matches!(journal.sync(), Err(JournalError::Broken)));
        assert_eq!(read_from(&journal, START).expect("readers go on"), source[..5]);
        drop(journal);
        let journal = Journal::open(scratch.options()).expect("open again");
        assert_eq!(read_from(&journal, START).expect("readable"), source[..5]);
    }

    #[test]
    fn append_that_failed_between_two_pieces_is_finished_later() {
        let scratch = Scratch::new();
        let source = simple_transactions(40);
        let bytes = stream(&source, START);
        let journal = Journal::open(scratch.options()).expect("open");
        journal.begin(START).expect("begin");
        // Past the size of a segment, inside a transaction; then a block over the next boundaries.
        let first = next_block(&bytes, Boundary::new(START), 2_200);
        let second = next_block(&bytes[first.bytes.len()..], first.end, 1_100);
        assert!(second.start.in_transaction && second.end.in_transaction);
        let (piece, _) = split(&second).expect("a transaction ends in it");
        let in_the_way = segment_path(&scratch.options().dir, piece.end.end_lsn).with_extension(NEW_EXTENSION);
        fs::create_dir(&in_the_way).expect("create");
        journal.append(first.clone()).expect("append");
        for _ in 0..2 {
            let error = journal.append(second.clone()).expect_err("the next segment cannot be made");
            assert!(matches!(error, JournalError::Io { .. }), "{error}");
            assert_eq!(journal.held().expect("begun").end, piece.end, "the first piece is in");
        }
        fs::remove_dir(&in_the_way).expect("remove");
        journal.append(second.clone()).expect("the rest goes in");
        let rest = &bytes[first.bytes.len() + second.bytes.len()..];
        journal.append(next_block(rest, second.end, usize::MAX)).expect("append");
        assert_eq!(read_from(&journal, START).expect("readable"), source);
    }

    #[test]
    fn block_is_cut_only_at_a_boundary_inside_it() {
        let source = simple_transactions(3);
        let bytes = stream(&source, START);
        let whole = next_block(&bytes, Boundary::new(START), usize::MAX);
        assert!(split(&whole).is_none(), "it ends at a boundary");
        let head = next_block(&bytes, Boundary::new(START), 1);
        let inside = next_block(&bytes[head.bytes.len()..], head.end, bytes.len() / 3 - 100);
        assert!(inside.start.in_transaction && inside.end.in_transaction && split(&inside).is_none());
        let middle = next_block(&bytes[head.bytes.len()..], head.end, bytes.len() - 200);
        let (piece, rest) = split(&middle).expect("two transactions end in it");
        assert_eq!([&piece.bytes[..], &rest.bytes[..]].concat(), middle.bytes);
        assert_eq!((piece.start, rest.end), (middle.start, middle.end));
        assert_eq!((piece.end, rest.start), (rest.start, Boundary { in_transaction: false, ..piece.end }));
        assert_eq!(piece.end.end_lsn, source[1].end);
    }
}
