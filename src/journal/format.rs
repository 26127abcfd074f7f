//! A segment's bytes: the two headers, encoded and checked. See the module above for the layout.

use crate::checkpoint::UnixMicros;
use crate::frame::Boundary;
use crate::lsn::Lsn;

use super::Block;

pub(super) const VERSION: u32 = 1;

/// Both headers have this size, so that records stay aligned for whoever looks at them with `hexdump`.
pub(super) const HEADER_BYTES: usize = 64;

const SEGMENT_MAGIC: &[u8; 8] = b"tailwjnl";

pub(super) const RECORD_MAGIC: &[u8; 4] = b"twjr";

type Header = [u8; HEADER_BYTES];

const COMPRESSED: u32 = 1;
const CONTINUES: u32 = 2;
const RESTARTS: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub compressed: bool,
    /// First LSN of the segment that this one continues, `None` at the start of a run.
    pub continues: Option<Lsn>,
    pub restarts: bool,
    pub start: Boundary,
    pub system_identifier: u64,
    pub opened_at: UnixMicros,
    pub salt: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BadSegment {
    Version(u32),
    Damaged,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Header {
        let mut header = [0; HEADER_BYTES];
        let flags = flag(self.compressed, COMPRESSED)
            | flag(self.continues.is_some(), CONTINUES)
            | flag(self.restarts, RESTARTS);
        header[..8].copy_from_slice(SEGMENT_MAGIC);
        put(&mut header, 8, VERSION.to_le_bytes());
        put(&mut header, 12, flags.to_le_bytes());
        put(&mut header, 16, self.start.end_lsn.0.to_le_bytes());
        put(&mut header, 24, self.start.commit_lsn.0.to_le_bytes());
        put(&mut header, 32, self.continues.unwrap_or_default().0.to_le_bytes());
        put(&mut header, 40, self.system_identifier.to_le_bytes());
        put(&mut header, 48, self.opened_at.0.to_le_bytes());
        put(&mut header, 56, self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&header[..60]);
        put(&mut header, 60, crc.to_le_bytes());
        header
    }

    pub(super) fn decode(header: &Header) -> Result<SegmentHeader, BadSegment> {
        if &header[..8] != SEGMENT_MAGIC {
            return Err(BadSegment::Damaged);
        }
        // Before the checksum: another version may keep it elsewhere.
        match u32_at(header, 8) {
            VERSION => {}
            other => return Err(BadSegment::Version(other)),
        }
        if crc32c::crc32c(&header[..60]) != u32_at(header, 60) {
            return Err(BadSegment::Damaged);
        }
        let flags = u32_at(header, 12);
        Ok(SegmentHeader {
            compressed: flags & COMPRESSED != 0,
            continues: (flags & CONTINUES != 0).then(|| Lsn(u64_at(header, 32))),
            restarts: flags & RESTARTS != 0,
            start: Boundary {
                end_lsn: Lsn(u64_at(header, 16)),
                commit_lsn: Lsn(u64_at(header, 24)),
                in_transaction: false,
            },
            system_identifier: u64_at(header, 40),
            opened_at: UnixMicros(u64_at(header, 48).cast_signed()),
            salt: u32_at(header, 56),
        })
    }
}

const HAS_RELATION: u32 = 1;
const STARTS_INSIDE: u32 = 2;
const ENDS_INSIDE: u32 = 4;
const ZSTD: u32 = 8;
const HEAD: u32 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub payload_crc: u32,
    pub stored: u32,
    pub length: u32,
    pub has_relation: bool,
    pub zstd: bool,
    pub head: bool,
    pub start: Boundary,
    pub end: Boundary,
    pub received_at: UnixMicros,
}

impl RecordHeader {
    /// The header of `block` as it is, or `None` if it is too long for one record.
    pub(super) fn of(block: &Block) -> Option<RecordHeader> {
        let length = u32::try_from(block.bytes.len()).ok()?;
        Some(RecordHeader {
            payload_crc: crc32c::crc32c(&block.bytes),
            stored: length,
            length,
            has_relation: block.has_relation,
            zstd: false,
            head: false,
            start: block.start,
            end: block.end,
            received_at: block.received_at,
        })
    }

    pub(super) fn encode(&self, salt: u32) -> Header {
        let mut header = [0; HEADER_BYTES];
        let flags = flag(self.has_relation, HAS_RELATION)
            | flag(self.start.in_transaction, STARTS_INSIDE)
            | flag(self.end.in_transaction, ENDS_INSIDE)
            | flag(self.zstd, ZSTD)
            | flag(self.head, HEAD);
        header[..4].copy_from_slice(RECORD_MAGIC);
        put(&mut header, 8, self.payload_crc.to_le_bytes());
        put(&mut header, 12, self.stored.to_le_bytes());
        put(&mut header, 16, self.length.to_le_bytes());
        put(&mut header, 20, flags.to_le_bytes());
        put(&mut header, 24, self.start.end_lsn.0.to_le_bytes());
        put(&mut header, 32, self.start.commit_lsn.0.to_le_bytes());
        put(&mut header, 40, self.end.end_lsn.0.to_le_bytes());
        put(&mut header, 48, self.end.commit_lsn.0.to_le_bytes());
        put(&mut header, 56, self.received_at.0.to_le_bytes());
        let crc = crc32c::crc32c_append(salt, &header[8..]);
        put(&mut header, 4, crc.to_le_bytes());
        header
    }

    /// The header in these bytes, `None` if they are not one of this segment.
    pub(super) fn decode(header: &Header, salt: u32) -> Option<RecordHeader> {
        if &header[..4] != RECORD_MAGIC || crc32c::crc32c_append(salt, &header[8..]) != u32_at(header, 4) {
            return None;
        }
        let flags = u32_at(header, 20);
        let boundary = |at: usize, inside: u32| Boundary {
            end_lsn: Lsn(u64_at(header, at)),
            commit_lsn: Lsn(u64_at(header, at + 8)),
            in_transaction: flags & inside != 0,
        };
        Some(RecordHeader {
            payload_crc: u32_at(header, 8),
            stored: u32_at(header, 12),
            length: u32_at(header, 16),
            has_relation: flags & HAS_RELATION != 0,
            zstd: flags & ZSTD != 0,
            head: flags & HEAD != 0,
            start: boundary(24, STARTS_INSIDE),
            end: boundary(40, ENDS_INSIDE),
            received_at: UnixMicros(u64_at(header, 56).cast_signed()),
        })
    }

    /// Header and payload.
    pub(super) fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.stored)
    }

    /// Every frame belongs to the one transaction that was open before and still is.
    pub(super) fn is_inside_one_transaction(&self) -> bool {
        is_inside_one_transaction(&self.start, &self.end)
    }
}

/// Between these two lies no boundary between transactions.
pub(super) fn is_inside_one_transaction(start: &Boundary, end: &Boundary) -> bool {
    start.in_transaction && end.in_transaction && start.commit_lsn == end.commit_lsn
}

fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

fn put<const N: usize>(header: &mut Header, at: usize, value: [u8; N]) {
    header[at..at + N].copy_from_slice(&value);
}

fn u32_at(header: &Header, at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(header: &Header, at: usize) -> u64 {
    u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"))
}
