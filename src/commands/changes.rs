//! Changes as lines: what `tail` and `replay --to stdout` print, and what `replay --dry-run` counts.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::assemble::{AssembleError, Assembler, Begin, Change, Step};
use crate::catalog::{ReplicaIdentity, TableName};
use crate::checkpoint::Position;
use crate::frame::{self, FrameError};
use crate::journal::Item;
use crate::lsn::Lsn;
use crate::pgoutput::{Old, Relation};
use crate::telemetry::time::format_utc;
use crate::tuple::{Cell, Tuple};
use crate::value::{write_json, write_text};

/// The journal holds what is no stream.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("journal holds what is no frame")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
}

/// Which changes are wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Range {
    /// Transactions that commit at this LSN or later,
    pub from: Lsn,
    /// and before this one.
    pub to: Lsn,
    /// Source tables; all if `None`.
    pub tables: Option<Vec<TableName>>,
}

/// One change of one table.
#[derive(Clone, Copy)]
pub enum Body<'a> {
    Row(Change<'a>),
    Truncate,
}

/// A change with all that is known of it.
pub struct Seen<'a> {
    pub begin: Begin,
    pub ordinal: u64,
    pub relation: &'a Relation,
    pub body: Body<'a>,
}

/// Walks journal blocks and shows the wanted changes, each once.
pub struct Walk {
    range: Range,
    assembler: Assembler,
    /// A transaction that was cut off comes again from its beginning: what was shown of it is not shown again.
    shown: Position,
}

impl Walk {
    pub fn new(range: Range) -> Self {
        Walk { range, assembler: Assembler::default(), shown: Position::default() }
    }

    /// Shows the wanted changes of a block.
    ///
    /// # Errors
    /// The block does not make sense.
    pub fn take(&mut self, item: &Item, mut show: impl FnMut(&Seen<'_>)) -> Result<(), ReadError> {
        let Item::Block(block) = item else {
            self.assembler.forget_open_transaction();
            return Ok(());
        };
        let mut at = 0;
        while at < block.bytes.len() {
            let Some((frame, length)) = frame::take(&block.bytes[at..])? else {
                return Err(FrameError::Length(-1).into());
            };
            at += length;
            match self.assembler.push(frame)? {
                Step::Change { relation, ordinal, change } => {
                    self.show(&[relation], ordinal, Body::Row(change), &mut show);
                }
                Step::Truncate { ordinal, truncate } => {
                    let tables: Vec<_> = truncate.relations().filter_map(|oid| self.assembler.index_of(oid)).collect();
                    self.show(&tables, ordinal, Body::Truncate, &mut show);
                }
                Step::Begin(_) | Step::Commit(_) | Step::Relation(_) | Step::Idle(_) | Step::Quiet => {}
            }
        }
        Ok(())
    }

    fn show(&mut self, relations: &[usize], ordinal: u64, body: Body<'_>, show: &mut impl FnMut(&Seen<'_>)) {
        let Some(begin) = self.assembler.open() else { return };
        let position = Position { commit_lsn: begin.commit_lsn, ordinal };
        if position <= self.shown || !(self.range.from..self.range.to).contains(&begin.commit_lsn) {
            return;
        }
        self.shown = position;
        for &index in relations {
            let relation = &self.assembler.relations()[index];
            if self.range.tables.as_ref().is_none_or(|tables| tables.contains(&relation.name)) {
                show(&Seen { begin, ordinal, relation, body });
            }
        }
    }
}

impl<'a> Seen<'a> {
    pub fn op(&self) -> &'static str {
        match &self.body {
            Body::Row(Change::Insert { .. }) => "insert",
            Body::Row(Change::Update { .. }) => "update",
            Body::Row(Change::Delete { .. }) => "delete",
            Body::Truncate => "truncate",
        }
    }

    fn old(&self) -> Option<Old<'a>> {
        match &self.body {
            Body::Row(Change::Update { old, .. }) => *old,
            Body::Row(Change::Delete { old }) => Some(*old),
            Body::Row(Change::Insert { .. }) | Body::Truncate => None,
        }
    }

    fn new_row(&self) -> Option<Tuple<'a>> {
        match &self.body {
            Body::Row(Change::Insert { new } | Change::Update { new, .. }) => Some(*new),
            Body::Row(Change::Delete { .. }) | Body::Truncate => None,
        }
    }

    /// `LSN op table column=value …`: the columns of the replica identity, after an update the new ones.
    pub fn human(&self) -> String {
        let mut line = format!("{} {:<8} {}", self.begin.commit_lsn, self.op(), self.relation.name);
        let row = self.new_row().or_else(|| self.old().map(|old| old.tuple()));
        for (column, cell) in row.iter().flat_map(|row| self.relation.columns.iter().zip(row.cells())) {
            // All columns are the identity, or none is.
            let all = matches!(self.relation.replica_identity, ReplicaIdentity::Full | ReplicaIdentity::Nothing);
            if column.is_identity || all {
                let _ = write!(line, " {}=", column.name);
                write_json(&mut line, column.type_oid, cell);
            }
        }
        line
    }

    /// One JSON object. `old` is what the source logged of the row before: its key where that changed, the whole row under
    /// `REPLICA IDENTITY FULL`, else null.
    pub fn json(&self) -> String {
        let begin = &self.begin;
        let mut line = format!(
            r#"{{"lsn":"{}","commit_ts":"{}","xid":{},"ordinal":{},"op":"{}","schema":"#,
            begin.commit_lsn,
            format_utc(begin.commit_ts),
            begin.xid,
            self.ordinal,
            self.op(),
        );
        write_text(&mut line, &self.relation.name.schema);
        line.push_str(r#","table":"#);
        write_text(&mut line, &self.relation.name.name);
        let (old, new) = (self.old(), self.new_row());
        line.push_str(r#","key":"#);
        self.object(&mut line, old.map(|old| old.tuple()).or(new), true);
        line.push_str(r#","old":"#);
        self.object(&mut line, old.map(|old| old.tuple()), matches!(old, Some(Old::Key(_))));
        line.push_str(r#","new":"#);
        self.object(&mut line, new, false);
        line.push('}');
        line
    }

    fn object(&self, line: &mut String, row: Option<Tuple<'_>>, identity_only: bool) {
        let Some(row) = row else {
            line.push_str("null");
            return;
        };
        let mut separator = '{';
        let cells = self.relation.columns.iter().zip(row.cells());
        for (column, cell) in cells.filter(|(column, _): &(_, Cell<'_>)| column.is_identity || !identity_only) {
            line.push(separator);
            write_text(line, &column.name);
            line.push(':');
            write_json(line, column.type_oid, cell);
            separator = ',';
        }
        line.push_str(if separator == '{' { "{}" } else { "}" });
    }
}

/// What a range does to each table.
#[derive(Debug, Default)]
pub struct Tally {
    /// Inserts, updates, deletes and truncates by source table.
    pub tables: BTreeMap<TableName, [u64; 4]>,
    pub transactions: u64,
    pub first: Option<Begin>,
    pub last: Option<Begin>,
}

impl Tally {
    pub fn add(&mut self, seen: &Seen<'_>) {
        let counts = self.tables.entry(seen.relation.name.clone()).or_default();
        let kind = match &seen.body {
            Body::Row(Change::Insert { .. }) => 0,
            Body::Row(Change::Update { .. }) => 1,
            Body::Row(Change::Delete { .. }) => 2,
            Body::Truncate => 3,
        };
        counts[kind] += 1;
        if self.last.is_none_or(|last| last.commit_lsn != seen.begin.commit_lsn) {
            self.transactions += 1;
        }
        self.first.get_or_insert(seen.begin);
        self.last = Some(seen.begin);
    }
}

#[cfg(test)]
mod tests;
