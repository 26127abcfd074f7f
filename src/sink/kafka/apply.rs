//! Applying a batch: every change a message, in the source's order, and the checkpoint behind them in the same transaction.

use std::sync::Arc;

use super::encode::{At, Images};
use super::{KafkaSink, apply_error};
use crate::batch::{Batch, BatchEnd, Emptied, Entry, Net, RowRef, TableBatch};
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::sink::{ApplyError, Durable};
use crate::tuple::Cell;
use crate::value::debezium::{EncodeError, Old, ValueError};

impl KafkaSink {
    /// Applies a batch; `None` for a part of a larger transaction, which stays open.
    ///
    /// # Errors
    /// See [`ApplyError`]. Nothing of the open transaction is seen by whoever reads committed messages only.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        let outcome = self.apply_batch(batch).await;
        self.judged(outcome).await
    }

    async fn apply_batch(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        self.begin().await?;
        let now = UnixMicros::now();
        if self.transactions.is_some() {
            self.send_in_order(batch, now).await?;
        } else {
            for batched in &batch.tables {
                let mut reader = Reader::new(batch, batched);
                for step in steps(batched) {
                    self.send(batch, &mut reader, step, now).await?;
                }
            }
        }
        let BatchEnd::Commit(checkpoint) = batch.end else { return Ok(None) };
        assert!(checkpoint.end_lsn >= self.checkpoint.end_lsn, "checkpoint goes back to {}", checkpoint.end_lsn);
        if let Some(transactions) = &mut self.transactions {
            transactions.end(&mut self.producer).await.map_err(|failure| apply_error(&failure))?;
        }
        self.commit(checkpoint).await?;
        Ok(Some(self.durable()))
    }

    /// All tables' changes in the order in which the source made them, so that each can be told its place.
    async fn send_in_order(&mut self, batch: &Batch, now: UnixMicros) -> Result<(), ApplyError> {
        let mut readers: Vec<_> = batch.tables.iter().map(|batched| Reader::new(batch, batched)).collect();
        let all = readers
            .iter()
            .enumerate()
            .flat_map(|(table, reader)| steps(reader.batched).map(move |step| (reader.order(step), table, step)));
        let mut all: Vec<_> = all.collect();
        // What is equal there is one change that goes to several topics.
        all.sort_by_key(|(order, table, _)| (*order, *table));
        for (_, table, step) in all {
            self.send(batch, &mut readers[table], step, now).await?;
        }
        Ok(())
    }

    async fn send<'a>(
        &mut self,
        batch: &'a Batch,
        reader: &mut Reader<'a>,
        step: Step,
        now: UnixMicros,
    ) -> Result<(), ApplyError> {
        let plan_index = reader.batched.plan_index;
        let at_table = |message: String| ApplyError::Table { plan_index, code: None, message };
        let place = reader.place(step);
        let transaction = place.transaction as usize;
        let begin = &batch.transactions[transaction];
        let before = transaction.checked_sub(1).map(|before| batch.transactions[before].commit_lsn);
        let last_commit = before.unwrap_or(batch.last_commit);
        let lsn = place.lsn.unwrap_or(begin.commit_lsn);
        // What a table catches up with after its copy is of transactions whose end was told before.
        let is_told = begin.commit_lsn >= self.checkpoint.end_lsn;
        let mut transactions = self.transactions.as_mut().filter(|_| is_told);
        let order = transactions.as_ref().map(|transactions| transactions.next(begin, plan_index));
        let at = At { begin, last_commit, lsn, ordinal: place.ordinal, order, now };
        let table = &mut self.tables[plan_index];
        if let Some(plan) = reader.plan(step).filter(|plan| !table.is_at(plan)) {
            table.follow(&self.cluster, plan).await?;
        }
        let sent = loop {
            let messages = table.messages().map_err(at_table)?;
            let Some(images) = messages.admit(reader.images(step)).map_err(at_table)? else { return Ok(()) };
            let error = match messages.change(images, &at) {
                Ok(sent) => break sent,
                Err(error) => error,
            };
            let is_admitted = match &error {
                EncodeError::Value { column, error: ValueError::Null } => {
                    table.admit_null(&self.cluster, column).await?
                }
                EncodeError::Value { .. } | EncodeError::Layout => false,
            };
            if !is_admitted {
                return Err(at_table(error.to_string()));
            }
        };
        if let Some(transactions) = &mut transactions {
            let counted = transactions.count(&mut self.producer, begin, lsn, plan_index, sent.events());
            counted.await.map_err(|failure| apply_error(&failure))?;
        }
        for message in table.messages().map_err(at_table)?.messages(sent, at.now) {
            message.send(&self.producer).await.map_err(|failure| apply_error(&failure))?;
        }
        Ok(())
    }
}

/// One change of a table's batch.
#[derive(Clone, Copy)]
enum Step {
    Entry(Entry),
    Emptied(Emptied),
}

/// A table's changes in the source's order.
fn steps(batched: &TableBatch) -> impl Iterator<Item = Step> {
    let ends = batched.emptied.iter().map(|emptied| (emptied.entries_before, Some(*emptied)));
    let ends = ends.chain(std::iter::once((batched.entries.len(), None)));
    let runs = ends.scan(0, |from, (until, emptied)| Some((std::mem::replace(from, until)..until, emptied)));
    runs.flat_map(|(run, emptied)| {
        batched.entries[run].iter().copied().map(Step::Entry).chain(emptied.map(Step::Emptied))
    })
}

/// Where a change stands.
struct Place {
    /// Index into [`Batch::transactions`].
    transaction: u32,
    ordinal: u64,
    /// In the WAL, if that is known.
    lsn: Option<Lsn>,
}

/// Reads a table's changes.
struct Reader<'a> {
    batch: &'a Batch,
    batched: &'a TableBatch,
    rows: Rows<'a>,
    olds: Rows<'a>,
}

impl<'a> Reader<'a> {
    fn new(batch: &'a Batch, batched: &'a TableBatch) -> Self {
        Reader { batch, batched, rows: Rows::new(batch, batched), olds: Rows::new(batch, batched) }
    }

    fn row(&self, row: u32) -> &'a RowRef {
        &self.batched.rows[row as usize]
    }

    /// The plan of the layout in which the change was sent, if it is one of a row.
    fn plan(&self, step: Step) -> Option<&'a Arc<Plan>> {
        let Step::Entry(entry) = step else { return None };
        Some(&self.batched.bindings[self.row(entry.row).binding as usize].plan)
    }

    fn place(&self, step: Step) -> Place {
        match step {
            Step::Emptied(emptied) => {
                Place { transaction: emptied.transaction, ordinal: emptied.ordinal, lsn: emptied.lsn }
            }
            Step::Entry(entry) => {
                let row = self.row(entry.row);
                // The message's first row tells where the change stands in the WAL.
                let lsn = self.batch.change_lsn(self.row(entry.origin.unwrap_or(entry.row)));
                Place { transaction: row.transaction, ordinal: row.ordinal, lsn }
            }
        }
    }

    /// Changes of one statement are told apart by the tables' places in it.
    fn order(&self, step: Step) -> (u32, u64, u32) {
        match step {
            Step::Emptied(emptied) => (emptied.transaction, emptied.ordinal, emptied.place),
            Step::Entry(entry) => {
                let row = self.row(entry.row);
                (row.transaction, row.ordinal, 0)
            }
        }
    }

    fn images(&mut self, step: Step) -> Images<'_, 'a> {
        let Step::Entry(entry) = step else { return Images::Truncate };
        let row = self.row(entry.row);
        match (entry.net, entry.origin) {
            (Net::Delete | Net::MovedAway | Net::Nothing, _) => Images::Delete(old(row, self.rows.read(entry.row))),
            (Net::Insert, _) => Images::Insert(self.rows.read(entry.row)),
            (Net::Upsert | Net::Tombstone, None) => Images::Update(None, self.rows.read(entry.row)),
            (Net::Upsert | Net::Tombstone, Some(origin)) => {
                let before = old(self.row(origin), self.olds.read(origin));
                Images::Update(Some(before), self.rows.read(entry.row))
            }
        }
    }
}

/// What an old row is known by.
fn old<'r, 'a>(row: &RowRef, cells: &'r [Cell<'a>]) -> Old<&'r [Cell<'a>]> {
    if row.key_only { Old::Key(cells) } else { Old::Full(cells) }
}

/// Rows of a table's batch by input, one at a time.
struct Rows<'a> {
    batch: &'a Batch,
    batched: &'a TableBatch,
    wire: Vec<Cell<'a>>,
    cells: Vec<Cell<'a>>,
}

impl<'a> Rows<'a> {
    fn new(batch: &'a Batch, batched: &'a TableBatch) -> Self {
        Rows { batch, batched, wire: Vec::new(), cells: Vec::new() }
    }

    /// A row's cells by input. Of a key-only image all but the replica identity are NULL, as on the wire.
    fn read(&mut self, row: u32) -> &[Cell<'a>] {
        let reference = &self.batched.rows[row as usize];
        let binding = &self.batched.bindings[reference.binding as usize];
        self.wire.clear();
        self.wire.extend(self.batch.cells(reference));
        self.cells.clear();
        for (input, column) in binding.columns.iter().enumerate() {
            let cell = column.and_then(|column| self.wire.get(column).copied()).unwrap_or(Cell::Unchanged);
            let looks_back = cell == Cell::Unchanged && reference.earlier.is_some();
            self.cells.push(if looks_back { self.batch.cell(self.batched, row, input) } else { cell });
        }
        &self.cells
    }
}
