//! From messages to transactions: relations are remembered, changes get their place, boundaries are told.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, UnixMicros};
use crate::frame::Frame;
use crate::lsn::Lsn;
use crate::pgoutput::{self, DecodeError, Message, Old, Relation, Truncate};
use crate::tuple::Tuple;

/// What every change of a transaction shares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Begin {
    pub commit_lsn: Lsn,
    pub commit_ts: UnixMicros,
    pub xid: u32,
}

/// One change of a row, or of whole tables.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    Insert { new: Tuple<'a> },
    Update { old: Option<Old<'a>>, new: Tuple<'a> },
    Delete { old: Old<'a> },
}

/// What a frame means for those who follow the stream.
pub enum Step<'a> {
    /// Nothing that a sink needs.
    Quiet,
    Begin(Begin),
    /// The relation at this index of [`Assembler::relations`] is new or has a new layout.
    Relation(usize),
    /// A row of the relation at this index.
    Change {
        relation: usize,
        ordinal: u64,
        change: Change<'a>,
    },
    Truncate {
        ordinal: u64,
        truncate: Truncate<'a>,
    },
    /// The transaction is whole; this checkpoint becomes true when it is applied.
    Commit(Checkpoint),
    /// Between transactions: everything up to here was sent.
    Idle(Lsn),
}

/// The stream does not make sense; nothing after this point may be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AssembleError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("row of relation {oid} came before the relation was described")]
    UnknownRelation { oid: u32 },
    #[error("{what} came outside a transaction")]
    OutsideTransaction { what: &'static str },
    #[error("transaction {commit_lsn} began inside another")]
    NestedTransaction { commit_lsn: Lsn },
    #[error("transaction {begun} was closed by the commit of {committed}")]
    OtherCommit { begun: Lsn, committed: Lsn },
}

/// Follows one stream of frames.
#[derive(Default)]
pub struct Assembler {
    relations: Vec<Arc<Relation>>,
    by_oid: HashMap<u32, usize>,
    /// The relation of the last row: rows of one table mostly come in runs.
    last: Option<(u32, usize)>,
    open: Option<Begin>,
    ordinal: u64,
}

impl Assembler {
    /// Every relation described so far; an index stays with its table's OID.
    pub fn relations(&self) -> &[Arc<Relation>] {
        &self.relations
    }

    /// The index of a relation, if it was described.
    pub fn index_of(&self, oid: u32) -> Option<usize> {
        self.by_oid.get(&oid).copied()
    }

    /// The transaction between its BEGIN and its COMMIT.
    pub fn open(&self) -> Option<Begin> {
        self.open
    }

    /// The connection was lost inside a transaction, which will come again from its BEGIN.
    pub fn forget_open_transaction(&mut self) {
        self.open = None;
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// The stream is malformed or out of order. Every error is final: nothing after it can be trusted.
    pub fn push<'a>(&mut self, frame: Frame<'a>) -> Result<Step<'a>, AssembleError> {
        let message = match frame {
            Frame::Keepalive(keepalive) if self.open.is_none() => return Ok(Step::Idle(keepalive.wal_end)),
            Frame::Keepalive(_) => return Ok(Step::Quiet),
            Frame::Message(message) => pgoutput::decode(message)?,
        };
        match message {
            Message::Insert { relation, new } => self.change(relation, Change::Insert { new }),
            Message::Update { relation, old, new } => self.change(relation, Change::Update { old, new }),
            Message::Delete { relation, old } => self.change(relation, Change::Delete { old }),
            Message::Truncate(truncate) => {
                self.inside("a truncate")?;
                self.ordinal += 1;
                Ok(Step::Truncate { ordinal: self.ordinal, truncate })
            }
            Message::Begin { commit_lsn, commit_ts, xid } => self.begin(Begin { commit_lsn, commit_ts, xid }),
            Message::Commit { commit_lsn, end_lsn, commit_ts } => self.commit(commit_lsn, end_lsn, commit_ts),
            Message::Relation(relation) => Ok(Step::Relation(self.remember(relation))),
            Message::Logical { .. } | Message::Other => Ok(Step::Quiet),
        }
    }

    fn begin(&mut self, begin: Begin) -> Result<Step<'static>, AssembleError> {
        if self.open.is_some() {
            return Err(AssembleError::NestedTransaction { commit_lsn: begin.commit_lsn });
        }
        self.open = Some(begin);
        self.ordinal = 0;
        Ok(Step::Begin(begin))
    }

    fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn, commit_ts: UnixMicros) -> Result<Step<'static>, AssembleError> {
        let begin = self.open.take().ok_or(AssembleError::OutsideTransaction { what: "a commit" })?;
        if begin.commit_lsn != commit_lsn || end_lsn <= commit_lsn {
            return Err(AssembleError::OtherCommit { begun: begin.commit_lsn, committed: commit_lsn });
        }
        Ok(Step::Commit(Checkpoint { commit_lsn, end_lsn, ordinal: self.ordinal, commit_ts: Some(commit_ts) }))
    }

    fn inside(&self, what: &'static str) -> Result<Begin, AssembleError> {
        self.open.ok_or(AssembleError::OutsideTransaction { what })
    }

    #[inline]
    fn change<'a>(&mut self, oid: u32, change: Change<'a>) -> Result<Step<'a>, AssembleError> {
        self.inside("a row")?;
        let relation = match self.last {
            Some((last, index)) if last == oid => index,
            _ => {
                let index = self.index_of(oid).ok_or(AssembleError::UnknownRelation { oid })?;
                self.last = Some((oid, index));
                index
            }
        };
        self.ordinal += 1;
        Ok(Step::Change { relation, ordinal: self.ordinal, change })
    }

    fn remember(&mut self, relation: Relation) -> usize {
        let oid = relation.oid;
        match self.by_oid.get(&oid) {
            Some(&index) => {
                self.relations[index] = Arc::new(relation);
                index
            }
            None => {
                self.relations.push(Arc::new(relation));
                self.by_oid.insert(oid, self.relations.len() - 1);
                self.relations.len() - 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Keepalive;

    const RELATION: &[u8] = b"R\0\0\0\x07public\0t\0d\0\x01\x01id\0\0\0\0\x17\xff\xff\xff\xff";
    const INSERT: &[u8] = b"I\0\0\0\x07N\0\x01t\0\0\0\x011";

    fn begin(lsn: u64) -> Vec<u8> {
        [b"B".as_slice(), &lsn.to_be_bytes(), &[0; 8], &[0, 0, 0, 9]].concat()
    }

    fn commit(lsn: u64, end: u64) -> Vec<u8> {
        [b"C\0".as_slice(), &lsn.to_be_bytes(), &end.to_be_bytes(), &[0; 8]].concat()
    }

    fn keepalive(lsn: u64) -> Frame<'static> {
        Frame::Keepalive(Keepalive { wal_end: Lsn(lsn), sent_at: UnixMicros(0), reply_requested: false })
    }

    #[test]
    fn changes_are_numbered_from_one_in_each_transaction() {
        let mut assembler = Assembler::default();
        for lsn in [100, 200] {
            assembler.push(Frame::Message(&begin(lsn))).expect("begin");
            assembler.push(Frame::Message(RELATION)).expect("relation");
            for expected in 1..=3 {
                let step = assembler.push(Frame::Message(INSERT)).expect("insert");
                assert!(matches!(step, Step::Change { relation: 0, ordinal, .. } if ordinal == expected));
            }
            let closing = commit(lsn, lsn + 10);
            let Ok(Step::Commit(checkpoint)) = assembler.push(Frame::Message(&closing)) else { panic!("no commit") };
            assert_eq!((checkpoint.end_lsn, checkpoint.ordinal), (Lsn(lsn + 10), 3));
        }
    }

    #[test]
    fn keepalive_inside_a_transaction_is_no_boundary() {
        let mut assembler = Assembler::default();
        assert!(matches!(assembler.push(keepalive(50)), Ok(Step::Idle(Lsn(50)))));
        assembler.push(Frame::Message(&begin(100))).expect("begin");
        assert!(matches!(assembler.push(keepalive(500)), Ok(Step::Quiet)));
    }

    #[test]
    fn disorder_is_an_error() {
        let fails = |messages: &[&[u8]]| {
            let mut assembler = Assembler::default();
            messages.iter().find_map(|message| assembler.push(Frame::Message(message)).err())
        };
        assert!(matches!(fails(&[RELATION, INSERT]), Some(AssembleError::OutsideTransaction { .. })));
        assert!(matches!(fails(&[&begin(1), INSERT]), Some(AssembleError::UnknownRelation { oid: 7 })));
        assert!(matches!(fails(&[&begin(1), &begin(2)]), Some(AssembleError::NestedTransaction { .. })));
        assert!(matches!(fails(&[&begin(1), &commit(2, 3)]), Some(AssembleError::OtherCommit { .. })));
        assert!(matches!(fails(&[&begin(1), &commit(1, 1)]), Some(AssembleError::OtherCommit { .. })));
    }

    #[test]
    fn a_new_layout_keeps_its_index() {
        let mut assembler = Assembler::default();
        assert!(matches!(assembler.push(Frame::Message(RELATION)), Ok(Step::Relation(0))));
        let wider = b"R\0\0\0\x07public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff\0x\0\0\0\0\x17\xff\xff\xff\xff";
        assert!(matches!(assembler.push(Frame::Message(wider)), Ok(Step::Relation(0))));
        assert_eq!(assembler.relations()[0].columns.len(), 2);
    }
}
