//! Walks one segment file, record by record, and believes nothing that its checksums do not prove.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::frame::Boundary;
use crate::lsn::Lsn;

use super::format::{BadSegment, HEADER_BYTES, RecordHeader, SegmentHeader};
use super::relations::Relations;
use super::{Block, JournalError};

/// An open segment and a place in it, always between two records.
pub(super) struct Cursor {
    file: File,
    path: PathBuf,
    pub(super) header: SegmentHeader,
    head: (RecordHeader, Bytes),
    offset: u64,
    /// Blocks before this place.
    pub(super) block: u64,
    /// The stream's state at this place.
    pub(super) boundary: Boundary,
}

/// A segment, or what follows in it, cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    Io(io::Error),
    Version(u32),
    /// The byte at which the bad header or record begins.
    Damaged(u64),
}

impl Unreadable {
    /// With what the caller knows: the file, and the transactions that are lost if it is damaged.
    pub(super) fn into_error(self, file: &Path, from: Lsn, to: Lsn) -> JournalError {
        match self {
            Unreadable::Io(source) => JournalError::io("read journal segment", file)(source),
            Unreadable::Version(found) => JournalError::Version { file: file.to_owned(), found },
            Unreadable::Damaged(at) => JournalError::Damaged { file: file.to_owned(), at, from, to },
        }
    }
}

impl Cursor {
    /// Opens a segment, at its first block.
    pub(super) fn open(path: &Path) -> Result<Cursor, Unreadable> {
        let file = File::open(path).map_err(Unreadable::Io)?;
        let header = match read_header(&file, 0)? {
            Some(header) => header,
            None => return Err(Unreadable::Damaged(0)),
        };
        let header = SegmentHeader::decode(&header).map_err(|bad| match bad {
            BadSegment::Version(found) => Unreadable::Version(found),
            BadSegment::Damaged => Unreadable::Damaged(0),
        })?;
        let offset = HEADER_BYTES as u64;
        let head = read_header(&file, offset)?
            .and_then(|head| RecordHeader::decode(&head, header.salt))
            .filter(|head| head.head)
            .ok_or(Unreadable::Damaged(offset))?;
        let head = (head, payload(&file, &head, offset)?);
        let boundary = header.start;
        let offset = offset + head.0.record_bytes();
        Ok(Cursor { file, path: path.to_owned(), header, head, offset, block: 0, boundary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the next record begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The Relation messages known when the segment began.
    pub(super) fn head(&self) -> (&RecordHeader, &Bytes) {
        (&self.head.0, &self.head.1)
    }

    /// The header of the record at this place, `None` at the end of the file.
    pub(super) fn peek(&self) -> Result<Option<RecordHeader>, Unreadable> {
        let damaged = Unreadable::Damaged(self.offset);
        let Some(header) = read_header(&self.file, self.offset)? else { return Ok(None) };
        let Some(header) = RecordHeader::decode(&header, self.header.salt) else { return Err(damaged) };
        // A record that does not follow the one before it is not where it was written.
        if header.head || !follows(&self.boundary, &header.start) {
            return Err(damaged);
        }
        Ok(Some(header))
    }

    /// Steps over the record whose header was peeked, without reading it.
    pub(super) fn skip(&mut self, header: &RecordHeader) {
        self.offset += header.record_bytes();
        self.block += 1;
        self.boundary = header.end;
    }

    /// Reads the block at this place and steps over it, `None` at the end of the file.
    pub(super) fn read(&mut self) -> Result<Option<Block>, Unreadable> {
        let Some(header) = self.peek()? else { return Ok(None) };
        let bytes = payload(&self.file, &header, self.offset)?;
        self.skip(&header);
        Ok(Some(Block {
            bytes,
            start: header.start,
            end: header.end,
            has_relation: header.has_relation,
            received_at: header.received_at,
        }))
    }

    /// Steps over blocks until `block` is next, or the file ends.
    pub(super) fn skip_to(&mut self, block: u64) -> Result<(), Unreadable> {
        while self.block < block {
            let Some(header) = self.peek()? else { return Ok(()) };
            self.skip(&header);
        }
        Ok(())
    }

    /// Goes to the last place before block `blocks` that is between transactions and not after `from`, and says which
    /// Relation messages are in force there.
    pub(super) fn seek(&mut self, from: Lsn, blocks: u64) -> Result<Relations, Unreadable> {
        let (first_offset, first_boundary) = (self.offset, self.boundary);
        let mut place = (self.block, self.offset, self.boundary);
        let mut with_relations = Vec::new();
        while self.block < blocks {
            let Some(header) = self.peek()? else { break };
            if header.has_relation {
                with_relations.push((self.block, self.offset, self.boundary));
            }
            self.skip(&header);
            if self.boundary.end_lsn > from {
                break;
            }
            if !self.boundary.in_transaction {
                place = (self.block, self.offset, self.boundary);
            }
        }
        let mut relations = Relations::default();
        (self.block, self.offset, self.boundary) = (0, first_offset, first_boundary);
        relations.collect(self.head().1);
        for earlier in with_relations.into_iter().filter(|earlier| earlier.0 < place.0) {
            (self.block, self.offset, self.boundary) = earlier;
            if let Some(block) = self.read()? {
                relations.collect(&block.bytes);
            }
        }
        (self.block, self.offset, self.boundary) = place;
        Ok(relations)
    }

    /// Whether a whole, correct record of this segment begins anywhere after this place.
    pub(super) fn valid_record_after(&self, place: u64) -> Result<Option<RecordHeader>, Unreadable> {
        let mut window = vec![0; SEARCH_BYTES];
        let mut at = place + 1;
        loop {
            let length = read_full(&self.file, &mut window, at).map_err(Unreadable::Io)?;
            if length < HEADER_BYTES {
                return Ok(None);
            }
            for idx in 0..=length - HEADER_BYTES {
                let header = window[idx..].first_chunk().expect("a header fits into the rest of the window");
                if let Some(header) = RecordHeader::decode(header, self.header.salt)
                    && payload(&self.file, &header, at + idx as u64).is_ok()
                {
                    return Ok(Some(header));
                }
            }
            at += (length - HEADER_BYTES + 1) as u64;
        }
    }
}

/// Read at a time when a damaged segment is searched for what follows the damage.
const SEARCH_BYTES: usize = 1 << 20;

/// Whether frames after `start` may stand behind frames up to `end`. A new connection's boundary knows no commit yet, so
/// `commit_lsn` is left out.
pub(super) fn follows(end: &Boundary, start: &Boundary) -> bool {
    (end.end_lsn, end.in_transaction) == (start.end_lsn, start.in_transaction)
}

/// The payload of the record that begins at `record_offset`, as it was before it was compressed.
fn payload(file: &File, header: &RecordHeader, record_offset: u64) -> Result<Bytes, Unreadable> {
    let damaged = || Unreadable::Damaged(record_offset);
    let mut stored = vec![0; header.stored as usize];
    match file.read_exact_at(&mut stored, record_offset + HEADER_BYTES as u64) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
        Err(error) => return Err(Unreadable::Io(error)),
    }
    if crc32c::crc32c(&stored) != header.payload_crc {
        return Err(damaged());
    }
    let length = header.length as usize;
    let bytes = if header.zstd { zstd::bulk::decompress(&stored, length).map_err(|_| damaged())? } else { stored };
    if bytes.len() == length { Ok(bytes.into()) } else { Err(damaged()) }
}

/// A header's bytes, `None` at the end of the file.
fn read_header(file: &File, offset: u64) -> Result<Option<[u8; HEADER_BYTES]>, Unreadable> {
    let mut header = [0; HEADER_BYTES];
    match read_full(file, &mut header, offset).map_err(Unreadable::Io)? {
        0 => Ok(None),
        HEADER_BYTES => Ok(Some(header)),
        _ => Err(Unreadable::Damaged(offset)),
    }
}

/// Fills `bytes` as far as the file goes.
fn read_full(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut length = 0;
    while length < bytes.len() {
        match file.read_at(&mut bytes[length..], offset + length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
