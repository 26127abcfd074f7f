//! The replication stream's frames: CopyData messages as they come off the socket, walked without copying.
//!
//! Postgres docs, "Streaming Replication Protocol": inside each CopyData (`d`, 32-bit length) stands either XLogData
//! (`w`, start of the WAL data, current end of WAL, the server's clock, then one pgoutput message) or a primary keepalive
//! (`k`, end of WAL, clock, one byte that asks for a reply). The journal keeps these frames byte for byte, so the live
//! stream, a replay and a test script are the same thing.

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// `d`, length, `w`, two LSNs, clock: what stands before the pgoutput message.
pub const XLOG_HEADER_BYTES: usize = 1 + 4 + 1 + 8 + 8 + 8;

/// Longest frame taken: Postgres cannot build a message above 1 GiB.
pub const FRAME_BYTES_MAX: usize = 1 << 30;

/// One CopyData frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// One pgoutput message. The frame's own LSNs are left out: they are 0 for some messages and never a position.
    Message(&'a [u8]),
    Keepalive(Keepalive),
}

/// A primary keepalive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// End of the last record the server decoded: every commit that ends here or before was sent before this frame.
    pub wal_end: Lsn,
    /// The server's clock when it sent this.
    pub sent_at: UnixMicros,
    /// The server asks for a status message at once.
    pub reply_requested: bool,
}

/// The bytes are not a CopyData frame of the replication stream.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("unexpected message of kind {0:#04x} in the replication stream")]
    UnexpectedKind(u8),
    #[error("frame length {0} is out of range")]
    Length(i64),
    #[error("frame of kind {0:#04x} is malformed")]
    Malformed(u8),
}

/// Takes the frame at the front of `bytes`: it and its length, or `None` if it is not all there yet.
///
/// # Errors
/// Anything but a CopyData message of kind `w` or `k`; the caller decides what another backend message means.
#[inline]
pub fn take(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    if kind != b'd' {
        return Err(FrameError::UnexpectedKind(kind));
    }
    let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(*length);
    let total = match usize::try_from(length) {
        Ok(length) if (5..=FRAME_BYTES_MAX).contains(&length) => length + 1,
        _ => return Err(FrameError::Length(i64::from(length))),
    };
    let Some(frame) = bytes.get(..total) else { return Ok(None) };
    let payload = &frame[5..];
    let frame = match payload[0] {
        b'w' => {
            Frame::Message(payload.get(25..).filter(|message| !message.is_empty()).ok_or(FrameError::Malformed(b'w'))?)
        }
        b'k' => Frame::Keepalive(keepalive(payload).ok_or(FrameError::Malformed(b'k'))?),
        other => return Err(FrameError::Malformed(other)),
    };
    Ok(Some((frame, total)))
}

/// Where the change stands in the WAL of whose message the first row begins at `row`: what its frame says of itself. Rows of
/// one COPY may share it, so it is for people and other systems, never for order. `None` if there is no such frame.
pub fn change_lsn(bytes: &[u8], row: usize) -> Option<Lsn> {
    // Kind, relation and kind of the row stand between the frame's head and the row.
    let head = bytes.get(row.checked_sub(XLOG_HEADER_BYTES + 6)?..)?;
    let lsn = head.get(6..)?.first_chunk::<8>()?;
    let is_frame = head[0] == b'd' && head[5] == b'w' && matches!(head[XLOG_HEADER_BYTES], b'I' | b'U' | b'D');
    is_frame.then(|| Lsn(u64::from_be_bytes(*lsn)))
}

/// Where the message stands in the WAL whose frame stands at the front of `bytes`, as the frame says; `None` if it does not.
pub fn message_lsn(bytes: &[u8]) -> Option<Lsn> {
    let lsn = u64::from_be_bytes(*bytes.get(6..)?.first_chunk::<8>()?);
    (lsn != 0).then_some(Lsn(lsn))
}

/// The server's clock when it sent the message whose frame stands at the front of `bytes`.
pub fn sent_at(bytes: &[u8]) -> Option<UnixMicros> {
    let clock = bytes.get(XLOG_HEADER_BYTES - 8..)?.first_chunk::<8>()?;
    Some(UnixMicros::from_postgres(i64::from_be_bytes(*clock)))
}

fn keepalive(payload: &[u8]) -> Option<Keepalive> {
    let (&wal_end, rest) = payload.get(1..)?.split_first_chunk::<8>()?;
    let (&clock, rest) = rest.split_first_chunk::<8>()?;
    let [reply] = rest else { return None };
    Some(Keepalive {
        wal_end: Lsn(u64::from_be_bytes(wal_end)),
        sent_at: UnixMicros::from_postgres(i64::from_be_bytes(clock)),
        reply_requested: *reply != 0,
    })
}

/// Writes a frame around a pgoutput message, as the server would, with LSNs of 0. For relations repeated at a journal
/// segment's head, and for tests.
pub fn write_message(out: &mut Vec<u8>, message: &[u8]) {
    let length = i32::try_from(XLOG_HEADER_BYTES - 1 + message.len()).expect("a message fits the protocol");
    out.push(b'd');
    out.extend_from_slice(&length.to_be_bytes());
    out.push(b'w');
    out.extend_from_slice(&[0; 24]);
    out.extend_from_slice(message);
}

/// Writes a keepalive frame, as the server would. For tests and bounded replays.
pub fn write_keepalive(out: &mut Vec<u8>, wal_end: Lsn, reply_requested: bool) {
    out.extend_from_slice(&[b'd', 0, 0, 0, 22, b'k']);
    out.extend_from_slice(&wal_end.0.to_be_bytes());
    out.extend_from_slice(&[0; 8]);
    out.push(u8::from(reply_requested));
}

/// What a run of frames contains, without decoding rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// Bytes of whole frames at the front.
    pub bytes: usize,
    /// Frames among them.
    pub frames: usize,
    /// Transactions that end among them.
    pub commits: usize,
    /// At least one Relation message is among them.
    pub has_relation: bool,
    /// Some keepalive asks for a reply.
    pub reply_requested: bool,
    /// Keepalives among them.
    pub keepalives: usize,
    /// When the source committed the last of the transactions that end among them.
    pub commit_ts: Option<UnixMicros>,
}

/// Follows the stream's transaction boundaries from frame to frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boundary {
    /// The stream holds everything up to here: the `end_lsn` of the last commit, or a later keepalive between
    /// transactions. Never moves back.
    pub end_lsn: Lsn,
    /// `commit_lsn` of the last transaction that ended.
    pub commit_lsn: Lsn,
    /// Between a BEGIN and its COMMIT.
    pub in_transaction: bool,
}

impl Boundary {
    /// Everything before `start` is held; the stream begins there, between transactions.
    pub fn new(start: Lsn) -> Self {
        Boundary { end_lsn: start, commit_lsn: Lsn::ZERO, in_transaction: false }
    }

    /// Walks the whole frames at the front of `bytes`, moving the boundary over them, up to `bytes_max` (at least one
    /// frame is taken if one is whole).
    ///
    /// # Errors
    /// Stops at the first frame that is not part of the replication stream; `scan` then tells how far the walk came.
    pub fn walk(&mut self, bytes: &[u8], bytes_max: usize) -> (Scan, Result<(), FrameError>) {
        let mut scan = Scan::default();
        while scan.bytes < bytes_max {
            match take(&bytes[scan.bytes..]) {
                Ok(Some((frame, length))) => {
                    if let Err(error) = self.step(&frame, &mut scan) {
                        return (scan, Err(error));
                    }
                    scan.bytes += length;
                    scan.frames += 1;
                }
                Ok(None) => break,
                Err(error) => return (scan, Err(error)),
            }
        }
        (scan, Ok(()))
    }

    #[inline]
    fn step(&mut self, frame: &Frame<'_>, scan: &mut Scan) -> Result<(), FrameError> {
        match frame {
            Frame::Keepalive(keepalive) => {
                scan.keepalives += 1;
                scan.reply_requested |= keepalive.reply_requested;
                if !self.in_transaction && keepalive.wal_end > self.end_lsn {
                    self.end_lsn = keepalive.wal_end;
                }
            }
            Frame::Message(message) => match message[0] {
                b'B' => self.in_transaction = true,
                b'C' => {
                    // Commit: flags, commit_lsn, end_lsn, clock.
                    let (commit_lsn, end_lsn) = commit_lsns(message).ok_or(FrameError::Malformed(b'C'))?;
                    self.in_transaction = false;
                    self.commit_lsn = commit_lsn;
                    self.end_lsn = self.end_lsn.max(end_lsn);
                    scan.commits += 1;
                    let clock = message.get(18..).and_then(|rest| rest.first_chunk::<8>());
                    scan.commit_ts = clock.map(|clock| UnixMicros::from_postgres(i64::from_be_bytes(*clock)));
                }
                b'R' => scan.has_relation = true,
                _ => {}
            },
        }
        Ok(())
    }
}

fn commit_lsns(message: &[u8]) -> Option<(Lsn, Lsn)> {
    let (&commit_lsn, rest) = message.get(2..)?.split_first_chunk::<8>()?;
    let &end_lsn = rest.first_chunk::<8>()?;
    Some((Lsn(u64::from_be_bytes(commit_lsn)), Lsn(u64::from_be_bytes(end_lsn))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
        let mut message = vec![b'C', 0];
        message.extend_from_slice(&commit_lsn.to_be_bytes());
        message.extend_from_slice(&end_lsn.to_be_bytes());
        message.extend_from_slice(&[0; 8]);
        message
    }

    #[test]
    fn frames_are_walked_and_a_cut_one_waits() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, b"Bxxx");
        write_message(&mut bytes, b"Rxxx");
        write_message(&mut bytes, &commit(90, 100));
        let whole = bytes.len();
        write_keepalive(&mut bytes, Lsn(120), true);
        let mut boundary = Boundary::new(Lsn(50));
        let (scan, result) = boundary.walk(&bytes[..bytes.len() - 1], usize::MAX);
        assert_eq!(result, Ok(()));
        assert_eq!((scan.bytes, scan.frames, scan.commits, scan.has_relation), (whole, 3, 1, true));
        assert_eq!((boundary.end_lsn, boundary.commit_lsn, boundary.in_transaction), (Lsn(100), Lsn(90), false));
        let (scan, _) = boundary.walk(&bytes[whole..], usize::MAX);
        assert!(scan.reply_requested);
        assert_eq!(boundary.end_lsn, Lsn(120));
    }

    #[test]
    fn keepalive_inside_a_transaction_moves_nothing() {
        let mut bytes = Vec::new();
        write_message(&mut bytes, b"Bxxx");
        write_keepalive(&mut bytes, Lsn(500), false);
        let mut boundary = Boundary::new(Lsn(50));
        boundary.walk(&bytes, usize::MAX).1.expect("well formed");
        assert_eq!(boundary.end_lsn, Lsn(50));
        assert!(boundary.in_transaction);
    }

    #[test]
    fn other_backend_messages_are_named() {
        assert_eq!(take(b"N\0\0\0\x08xxxx"), Err(FrameError::UnexpectedKind(b'N')));
        assert_eq!(take(b"d\xff\xff\xff\xff"), Err(FrameError::Length(-1)));
        assert_eq!(take(b"d\0\0\0\x05z"), Err(FrameError::Malformed(b'z')));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let mut framed = Vec::new();
            write_message(&mut framed, if bytes.is_empty() { b"x" } else { &bytes });
            let _ = Boundary::new(Lsn::ZERO).walk(&framed, usize::MAX);
            let _ = Boundary::new(Lsn::ZERO).walk(&bytes, usize::MAX);
        }
    }
}
