//! A batch: whole source transactions, folded per key to their net effect, with the checkpoint that becomes true when it
//! is applied. Rows stay where they arrived, in the journal's blocks; a batch only points at them.

mod build;
mod fold;
mod multiset;
mod terms;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use build::Builder;
pub use fold::Fold;
pub use terms::{BatchLimits, BuildError, TableCause, Taken, Taking};

use crate::assemble::Begin;
use crate::checkpoint::{Checkpoint, Position, UnixMicros};
use crate::frame;
use crate::lsn::Lsn;
use crate::mapping::bind::Binding;
use crate::mapping::plan::Plan;
use crate::tuple::{Cell, Tuple};

/// A row on the wire, pointed at.
#[derive(Clone, Debug)]
pub struct RowRef {
    /// Index into [`Batch::blocks`].
    pub block: u32,
    pub start: u32,
    pub length: u32,
    /// Index into [`TableBatch::bindings`]: the layout the row was sent in.
    pub binding: u16,
    /// A key-only old row: columns outside the replica identity read NULL and say nothing.
    pub key_only: bool,
    /// Some cell is an unchanged TOASTed value.
    pub has_unchanged: bool,
    /// An earlier image of the same row, where an unchanged value is looked for.
    pub earlier: Option<u32>,
    /// Index into [`Batch::transactions`].
    pub transaction: u32,
    /// The change's place in its transaction, from 1.
    pub ordinal: u64,
    pub op: RowOp,
}

/// The change that made a row, for `{ meta = "op" }`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowOp {
    Insert,
    Update,
    Delete,
}

/// The net effect of a batch on one key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Net {
    /// The target does not hold the key (as far as the stream knows): the row is new.
    Insert,
    /// The row replaces what the target holds, if anything.
    Upsert,
    /// The key is deleted at the source.
    Delete,
    /// The key's row was given another key: it goes, even where deletes are soft or ignored.
    MovedAway,
    /// Came and went within the batch, or was there before the batch's TRUNCATE; its row is the one that went. A sink that cannot take back what an earlier try at
    /// a shorter batch has written buries it.
    Nothing,
    /// Soft deletes only: the row is written as by `Upsert` and then marked as deleted.
    Tombstone,
}

/// One key's net effect.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub net: Net,
    /// The row, or for a delete an old row that holds the key. Index into [`TableBatch::rows`].
    pub row: u32,
    /// Where the row stood before the batch if its key changed: a row that holds that key. Unchanged values that the batch
    /// does not know are found there.
    pub origin: Option<u32>,
    /// Mode `insert_new` only: the key was deleted or moved away before this row came, so that goes first.
    pub clears: Option<Net>,
}

/// A TRUNCATE of a table whose changes are all kept: where it stands among them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Emptied {
    /// This many of the table's entries come before it.
    pub entries_before: usize,
    /// Index into [`Batch::transactions`].
    pub transaction: u32,
    pub ordinal: u64,
    /// The table's place among those that the statement names.
    pub place: u32,
    /// Where it stands in the WAL, if its frame says so.
    pub lsn: Option<Lsn>,
}

/// What a batch does to one target table.
#[derive(Debug)]
pub struct TableBatch {
    /// Index of the plan in the builder's list.
    pub plan_index: usize,
    pub plan: Arc<Plan>,
    pub bindings: Vec<Arc<Binding>>,
    pub rows: Vec<RowRef>,
    /// The table is emptied before anything else, by the TRUNCATE that stands here.
    pub truncate: Option<Position>,
    /// Of a table whose changes are all kept (a topic): its TRUNCATEs, in their order.
    pub emptied: Vec<Emptied>,
    /// One a key. Without a key one for each row that is new or goes, so that equal rows have several.
    pub entries: Vec<Entry>,
    pub counts: Counts,
}

/// Changes of the source that went into a table's batch, before folding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserts + self.updates + self.deletes + self.truncates
    }
}

/// How a batch ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchEnd {
    /// Inside a transaction too large for one batch: the sink keeps its own transaction open for the next part.
    Open,
    /// At a boundary; the checkpoint is recorded with the rows.
    Commit(Checkpoint),
}

/// One unit of application.
#[derive(Debug)]
pub struct Batch {
    pub blocks: Vec<Bytes>,
    /// The source transactions that rows refer to.
    pub transactions: Vec<Begin>,
    /// Commit of the last transaction before these.
    pub last_commit: Lsn,
    pub tables: Vec<TableBatch>,
    pub end: BatchEnd,
    /// Source transactions that end in this batch, those without a mapped row included.
    pub commits: u64,
    /// Commit time of the oldest transaction in it.
    pub oldest_commit_ts: Option<UnixMicros>,
}

impl Batch {
    /// A batch without rows that records a checkpoint.
    pub fn checkpoint_only(checkpoint: Checkpoint) -> Batch {
        Batch {
            blocks: Vec::new(),
            transactions: Vec::new(),
            last_commit: checkpoint.commit_lsn,
            tables: Vec::new(),
            end: BatchEnd::Commit(checkpoint),
            commits: 0,
            oldest_commit_ts: None,
        }
    }

    /// Changes of the source in all tables, before folding.
    pub fn changes(&self) -> u64 {
        self.tables.iter().map(|table| table.counts.total()).sum()
    }

    /// Nothing but a checkpoint.
    pub fn is_rowless(&self) -> bool {
        let is_rowless =
            |table: &TableBatch| table.entries.is_empty() && table.truncate.is_none() && table.emptied.is_empty();
        self.tables.iter().all(is_rowless)
    }

    /// The cells of a row, in wire order; unchanged values not looked up.
    pub fn cells(&self, row: &RowRef) -> crate::tuple::Cells<'_> {
        Tuple::trusted_cells(self.bytes(row))
    }

    /// Where the change that made a row stands in the stream.
    pub fn position(&self, row: &RowRef) -> Position {
        Position { commit_lsn: self.transactions[row.transaction as usize].commit_lsn, ordinal: row.ordinal }
    }

    /// Where the change of which this is the first row stands in the WAL; `None` where its frame is not before it.
    pub fn change_lsn(&self, row: &RowRef) -> Option<Lsn> {
        frame::change_lsn(&self.blocks[row.block as usize], row.start as usize)
    }

    fn bytes(&self, row: &RowRef) -> &[u8] {
        &self.blocks[row.block as usize][row.range()]
    }

    /// An input's value in a row; an unchanged value is looked for in the row's earlier images. `Unchanged` means that
    /// only the target has it.
    pub fn cell(&self, table: &TableBatch, row: u32, input: usize) -> Cell<'_> {
        cell_at(&self.blocks, &table.rows, &table.bindings, row, input)
    }
}

impl RowRef {
    fn range(&self) -> Range<usize> {
        self.start as usize..self.start as usize + self.length as usize
    }
}

/// By input rather than by wire column: earlier images may have another layout.
#[inline]
fn cell_at<'a>(blocks: &'a [Bytes], rows: &[RowRef], bindings: &[Arc<Binding>], row: u32, input: usize) -> Cell<'a> {
    let mut next = Some(row);
    while let Some(index) = next {
        let row = &rows[index as usize];
        let binding = &bindings[row.binding as usize];
        let Some(column) = binding.columns[input] else { break };
        // A key-only image has NULL for what it does not know; that is no value.
        if !row.key_only || binding.identity[column] {
            let bytes = &blocks[row.block as usize][row.range()];
            match Tuple::trusted_cells(bytes).nth(column) {
                Some(Cell::Unchanged) | None => {}
                Some(cell) => return cell,
            }
        }
        next = row.earlier;
    }
    Cell::Unchanged
}
