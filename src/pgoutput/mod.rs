//! pgoutput's messages, read in place from one frame.
//!
//! Postgres docs, "Logical Replication Message Formats", protocol version 1 with options `binary` and `messages`. Rows are
//! borrowed; only Relation messages, which are rare, are copied out.

mod relation;

pub use relation::{Relation, RelationColumn};

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::tuple::{Tuple, TupleError};

/// What the source logged of the row before an UPDATE or DELETE.
#[derive(Clone, Copy)]
pub enum Old<'a> {
    /// The columns of the replica identity; all others read NULL here and say nothing.
    Key(Tuple<'a>),
    /// The whole row: `REPLICA IDENTITY FULL`.
    Full(Tuple<'a>),
}

impl<'a> Old<'a> {
    pub fn tuple(&self) -> Tuple<'a> {
        match self {
            Old::Key(tuple) | Old::Full(tuple) => *tuple,
        }
    }
}

/// One message.
pub enum Message<'a> {
    Begin {
        /// The commit record's start: the transaction's `commit_lsn`.
        commit_lsn: Lsn,
        commit_ts: UnixMicros,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        /// First byte after the commit record.
        end_lsn: Lsn,
        commit_ts: UnixMicros,
    },
    Relation(Relation),
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: Old<'a>,
    },
    Truncate(Truncate<'a>),
    /// `pg_logical_emit_message`; not transactional ones come at once, even from transactions that roll back.
    Logical {
        transactional: bool,
        prefix: &'a [u8],
    },
    /// Origin and Type messages: nothing that a sink needs.
    Other,
}

/// The tables of one TRUNCATE, those it cascaded to included.
#[derive(Clone, Copy)]
pub struct Truncate<'a> {
    oids: &'a [u8],
}

impl Truncate<'_> {
    pub fn relations(&self) -> impl Iterator<Item = u32> + '_ {
        self.oids.chunks_exact(4).map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
    }
}

/// A message that does not have the documented form, or is of a kind that was not asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("message of kind {0:?} is not part of the protocol version asked for")]
    UnknownKind(char),
    #[error("message of kind {0:?} is cut short or malformed")]
    Malformed(char),
    #[error("message of kind {kind:?}: {source}")]
    Tuple { kind: char, source: TupleError },
}

/// Reads one pgoutput message.
///
/// # Errors
/// An unknown kind, or bytes that do not fit the kind: the stream cannot be understood and must not be skipped.
pub fn decode(message: &[u8]) -> Result<Message<'_>, DecodeError> {
    let kind = *message.first().ok_or(DecodeError::Malformed('\0'))?;
    let mut body = Body { kind: char::from(kind), rest: &message[1..] };
    match kind {
        b'I' => {
            let relation = body.u32()?;
            body.expect(b'N')?;
            Ok(Message::Insert { relation, new: body.tuple()? })
        }
        b'U' => body.update(),
        b'D' => {
            let relation = body.u32()?;
            let marker = body.u8()?;
            let old = body.old(marker)?.ok_or(DecodeError::Malformed('D'))?;
            Ok(Message::Delete { relation, old })
        }
        b'B' => {
            let commit_lsn = body.lsn()?;
            let commit_ts = body.time()?;
            Ok(Message::Begin { commit_lsn, commit_ts, xid: body.u32()? })
        }
        b'C' => {
            body.u8()?;
            let commit_lsn = body.lsn()?;
            let end_lsn = body.lsn()?;
            Ok(Message::Commit { commit_lsn, end_lsn, commit_ts: body.time()? })
        }
        b'R' => Relation::read(&mut body).map(Message::Relation),
        b'T' => {
            let count = body.u32()?;
            body.u8()?;
            let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(4));
            let oids = length.and_then(|length| body.rest.get(..length)).ok_or(DecodeError::Malformed('T'))?;
            Ok(Message::Truncate(Truncate { oids }))
        }
        b'M' => {
            let transactional = body.u8()? & 1 != 0;
            body.lsn()?;
            Ok(Message::Logical { transactional, prefix: body.cstr()? })
        }
        b'O' | b'Y' => Ok(Message::Other),
        other => Err(DecodeError::UnknownKind(char::from(other))),
    }
}

/// The rest of a message while it is read.
struct Body<'a> {
    kind: char,
    rest: &'a [u8],
}

impl<'a> Body<'a> {
    fn cut<T>(&self) -> Result<T, DecodeError> {
        Err(DecodeError::Malformed(self.kind))
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else { return self.cut() };
        self.rest = tail;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    fn lsn(&mut self) -> Result<Lsn, DecodeError> {
        self.array().map(u64::from_be_bytes).map(Lsn)
    }

    fn time(&mut self) -> Result<UnixMicros, DecodeError> {
        self.array().map(i64::from_be_bytes).map(UnixMicros::from_postgres)
    }

    fn cstr(&mut self) -> Result<&'a [u8], DecodeError> {
        let Some(end) = self.rest.iter().position(|&byte| byte == 0) else { return self.cut() };
        let (text, tail) = self.rest.split_at(end);
        self.rest = &tail[1..];
        Ok(text)
    }

    fn expect(&mut self, marker: u8) -> Result<(), DecodeError> {
        if self.u8()? == marker { Ok(()) } else { self.cut() }
    }

    #[inline]
    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let (tuple, length) =
            Tuple::parse(self.rest).map_err(|source| DecodeError::Tuple { kind: self.kind, source })?;
        self.rest = &self.rest[length..];
        Ok(tuple)
    }

    fn old(&mut self, marker: u8) -> Result<Option<Old<'a>>, DecodeError> {
        match marker {
            b'K' => self.tuple().map(Old::Key).map(Some),
            b'O' => self.tuple().map(Old::Full).map(Some),
            b'N' => Ok(None),
            _ => self.cut(),
        }
    }

    fn update(&mut self) -> Result<Message<'a>, DecodeError> {
        let relation = self.u32()?;
        let marker = self.u8()?;
        let old = self.old(marker)?;
        if old.is_some() {
            self.expect(b'N')?;
        }
        Ok(Message::Update { relation, old, new: self.tuple()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn update_with_key_has_both_rows() {
        let message = b"U\0\0\0\x07K\0\x01t\0\0\0\x011N\0\x01t\0\0\0\x012";
        let Ok(Message::Update { relation: 7, old: Some(Old::Key(old)), new }) = decode(message) else {
            panic!("not an update with a key")
        };
        assert_eq!(old.bytes(), b"\0\x01t\0\0\0\x011");
        assert_eq!(new.bytes(), b"\0\x01t\0\0\0\x012");
    }

    #[test]
    fn truncate_names_its_relations() {
        let Ok(Message::Truncate(truncate)) = decode(b"T\0\0\0\x02\x01\0\0\0\x05\0\0\0\x06") else {
            panic!("not a truncate")
        };
        assert_eq!(truncate.relations().collect::<Vec<_>>(), [5, 6]);
        assert!(decode(b"T\xff\xff\xff\xff\x01\0\0\0\x05").is_err());
    }

    #[test]
    fn messages_of_other_protocol_versions_are_refused() {
        assert_eq!(decode(b"S\0\0\0\x01").err(), Some(DecodeError::UnknownKind('S')));
        assert_eq!(decode(b"").err(), Some(DecodeError::Malformed('\0')));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, kind in prop::sample::select(b"BCRYIUDTMO".to_vec())) {
            let message = [&[kind], bytes.as_slice()].concat();
            let _ = decode(&message);
        }
    }
}
