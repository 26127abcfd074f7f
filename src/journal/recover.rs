//! What a directory holds after whatever ended the last process: every whole block, and nothing else.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::frame::Boundary;
use crate::lsn::Lsn;

use super::cursor::{Cursor, Unreadable};
use super::format::{HEADER_BYTES, RECORD_MAGIC, SegmentHeader};
use super::relations::Relations;
use super::segments::Segment;
use super::{JournalError, Options};

pub(super) const EXTENSION: &str = "seg";

/// A new segment before it has its head.
pub(super) const NEW_EXTENSION: &str = "seg.new";

/// A segment being compressed.
pub(super) const COMPRESSING_EXTENSION: &str = "seg.tmp";

#[derive(Default)]
pub(super) struct Recovered {
    pub segments: Vec<Segment>,
    pub end: Option<Boundary>,
    pub relations: Relations,
}

pub(super) fn recover(options: &Options) -> Result<Recovered, JournalError> {
    remove_unfinished(&options.dir)?;
    let mut files = segment_files(&options.dir)?;
    let last = loop {
        let Some((first, path)) = files.last() else { return Ok(Recovered::default()) };
        match recover_last(path, *first)? {
            Some(last) => break last,
            None => {
                fs::remove_file(path).map_err(JournalError::io("remove journal segment", path))?;
                files.pop();
            }
        }
    };
    let expected = options.system_identifier.unwrap_or_default();
    let (found, file) = (last.header.system_identifier, last.path.clone());
    if expected != 0 && found != 0 && expected != found {
        return Err(JournalError::OtherSource { file, found, expected });
    }
    files.pop();
    let mut segments = Vec::with_capacity(files.len() + 1);
    for (idx, (first, path)) in files.iter().enumerate() {
        let next = files.get(idx + 1).map_or(last.header.start.end_lsn, |(next, _)| *next);
        let cursor = Cursor::open(path).map_err(|error| error.into_error(path, *first, next))?;
        segments.push(segment(path, &cursor.header, *first, segments.last())?);
    }
    let first = last.header.start.end_lsn;
    let mut last_segment = segment(&last.path, &last.header, first, segments.last())?;
    last_segment.blocks = Some(last.blocks);
    if !last.header.compressed {
        last_segment.closed_at = None;
    }
    segments.push(last_segment);
    if options.fsync {
        make_durable(&options.dir, &segments)?;
    }
    Ok(Recovered { segments, end: Some(last.end), relations: last.relations })
}

/// The last process may not have synced what it wrote; the slot is confirmed only from here on. Compressed segments were.
fn make_durable(dir: &Path, segments: &[Segment]) -> Result<(), JournalError> {
    for segment in segments.iter().filter(|segment| !segment.compressed) {
        let synced = File::open(&segment.path).and_then(|file| file.sync_all());
        synced.map_err(JournalError::io("sync journal segment", &segment.path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(JournalError::io("sync journal directory", dir))
}

/// Segment files by their first LSN, oldest first.
pub(super) fn segment_files(dir: &Path) -> Result<Vec<(Lsn, PathBuf)>, JournalError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(JournalError::io("list journal directory", dir))? {
        let path = entry.map_err(JournalError::io("list journal directory", dir))?.path();
        if let Some(first) = first_of(&path) {
            files.push((first, path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

pub(super) fn segment_path(dir: &Path, first: Lsn) -> PathBuf {
    dir.join(format!("{:016X}.{EXTENSION}", first.0))
}

fn first_of(path: &Path) -> Option<Lsn> {
    let stem = path.file_name()?.to_str()?.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    let first = Lsn(u64::from_str_radix(stem, 16).ok()?);
    (format!("{:016X}", first.0) == stem).then_some(first)
}

fn remove_unfinished(dir: &Path) -> Result<(), JournalError> {
    for entry in fs::read_dir(dir).map_err(JournalError::io("list journal directory", dir))? {
        let path = entry.map_err(JournalError::io("list journal directory", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(NEW_EXTENSION) || name.ends_with(COMPRESSING_EXTENSION) {
            fs::remove_file(&path).map_err(JournalError::io("remove unfinished journal segment", &path))?;
        }
    }
    Ok(())
}

fn segment(path: &Path, header: &SegmentHeader, first: Lsn, before: Option<&Segment>) -> Result<Segment, JournalError> {
    if header.start.end_lsn != first {
        // Renamed by hand, or the name's bytes are wrong: the order of the files can no longer be trusted.
        return Err(Unreadable::Damaged(0).into_error(path, first, header.start.end_lsn));
    }
    let file = fs::metadata(path).map_err(JournalError::io("read journal segment", path))?;
    let id = before.map_or(0, |before| before.id + 1);
    Ok(Segment {
        id,
        replaces: id,
        path: path.to_owned(),
        salt: header.salt,
        start: header.start,
        continues: header.continues,
        joined: before.is_some_and(|before| header.continues == Some(before.start.end_lsn)),
        restarts: header.restarts,
        blocks: None,
        bytes: file.len(),
        closed_at: Some(file.modified().unwrap_or_else(|_| SystemTime::now())),
        compressed: header.compressed,
        busy: false,
    })
}

struct Last {
    path: PathBuf,
    header: SegmentHeader,
    blocks: u64,
    end: Boundary,
    relations: Relations,
}

/// Checks every byte of the last segment and cuts a torn record at its end. `None` if it is torn before its first block.
fn recover_last(path: &Path, first: Lsn) -> Result<Option<Last>, JournalError> {
    let mut cursor = match Cursor::open(path) {
        Ok(cursor) => cursor,
        Err(Unreadable::Damaged(_)) if !may_hold_blocks(path)? => return Ok(None),
        Err(error) => return Err(error.into_error(path, first, Lsn(u64::MAX))),
    };
    let mut relations = Relations::default();
    relations.collect(cursor.head().1);
    loop {
        match cursor.read() {
            Ok(Some(block)) if block.has_relation => relations.collect(&block.bytes),
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(Unreadable::Damaged(at)) if !cursor.header.compressed => {
                cut_torn_tail(&cursor, at)?;
                break;
            }
            Err(error) => return Err(error.into_error(path, cursor.boundary.end_lsn, Lsn(u64::MAX))),
        }
    }
    let (header, blocks, end) = (cursor.header, cursor.block, cursor.boundary);
    Ok(Some(Last { path: path.to_owned(), header, blocks, end, relations }))
}

/// Cuts the file at `at` if nothing readable follows the bad record there: then it is what a crash left of an append.
fn cut_torn_tail(cursor: &Cursor, at: u64) -> Result<(), JournalError> {
    let (path, from) = (cursor.path(), cursor.boundary.end_lsn);
    if let Some(after) = cursor.valid_record_after(at).map_err(|error| error.into_error(path, from, Lsn(u64::MAX)))? {
        let to = if after.start.in_transaction { after.end.end_lsn } else { after.start.end_lsn };
        return Err(Unreadable::Damaged(at).into_error(path, from, to));
    }
    let file = OpenOptions::new().write(true).open(path).map_err(JournalError::io("open journal segment", path))?;
    file.set_len(at).and_then(|()| file.sync_all()).map_err(JournalError::io("cut journal segment", path))
}

/// Whether anything behind the head's own start looks like a record: then a bad head is damage, and not what a power cut
/// left of a new file.
fn may_hold_blocks(path: &Path) -> Result<bool, JournalError> {
    let bytes = fs::read(path).map_err(JournalError::io("read journal segment", path))?;
    let behind = bytes.get(HEADER_BYTES + RECORD_MAGIC.len()..).unwrap_or_default();
    Ok(behind.windows(RECORD_MAGIC.len()).any(|part| part == RECORD_MAGIC))
}
