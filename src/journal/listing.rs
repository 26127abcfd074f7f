//! What is in a journal's directory, for `journal ls`. Needs no lock, so it works beside a running daemon.

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

use super::JournalError;
use super::cursor::{Cursor, Unreadable};
use super::recover::segment_files;

/// One segment file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    pub file: PathBuf,
    /// It holds the transactions that end after `first` …
    pub first: Lsn,
    /// … and at `end` or before.
    pub end: Lsn,
    /// On disk.
    pub bytes: u64,
    /// Of frames, decompressed.
    pub frame_bytes: u64,
    pub compressed: bool,
    /// It continues the segment before it; if not, there is a gap between them.
    pub continues: bool,
    pub opened_at: UnixMicros,
    /// When it was last written to.
    pub written_at: UnixMicros,
    /// The byte from which it cannot be read; in the segment being written that may be a block not yet whole.
    pub unreadable_at: Option<u64>,
}

/// The segments in `dir`, oldest first. Reads headers only, so damage inside a block is not seen.
///
/// # Errors
/// The directory or a file cannot be read, or a segment's own header is damaged or of another version.
pub fn list(dir: &Path) -> Result<Vec<SegmentInfo>, JournalError> {
    let mut segments: Vec<SegmentInfo> = Vec::new();
    for (first, file) in segment_files(dir)? {
        match inspect(&file, segments.last()) {
            Ok(info) => segments.push(info),
            // Deleted since the directory was listed.
            Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into_error(&file, first, first)),
        }
    }
    Ok(segments)
}

fn inspect(file: &Path, before: Option<&SegmentInfo>) -> Result<SegmentInfo, Unreadable> {
    let mut cursor = Cursor::open(file)?;
    let mut frame_bytes = 0;
    let unreadable_at = loop {
        match cursor.peek() {
            Ok(Some(header)) => {
                frame_bytes += u64::from(header.length);
                cursor.skip(&header);
            }
            Ok(None) => break None,
            Err(Unreadable::Damaged(at)) => break Some(at),
            Err(error) => return Err(error),
        }
    };
    let metadata = fs::metadata(file).map_err(Unreadable::Io)?;
    let written =
        metadata.modified().map_err(Unreadable::Io)?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let header = cursor.header;
    Ok(SegmentInfo {
        file: file.to_owned(),
        first: header.start.end_lsn,
        end: cursor.boundary.end_lsn,
        bytes: metadata.len(),
        frame_bytes,
        compressed: header.compressed,
        continues: before.is_some_and(|before| header.continues == Some(before.first)),
        opened_at: header.opened_at,
        written_at: UnixMicros(i64::try_from(written.as_micros()).unwrap_or(i64::MAX)),
        unreadable_at,
    })
}
