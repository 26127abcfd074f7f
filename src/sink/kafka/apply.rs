//! Applying a batch: every change a message, in the source's order, and the checkpoint behind them in the same transaction.

use super::encode::{At, Images};
use super::{KafkaSink, apply_error};
use crate::batch::{Batch, BatchEnd, Net, RowRef, TableBatch};
use crate::checkpoint::UnixMicros;
use crate::sink::{ApplyError, Durable};
use crate::tuple::Cell;
use crate::value::debezium::Old;

impl KafkaSink {
    /// Applies a batch; `None` for a part of a larger transaction, which stays open.
    ///
    /// # Errors
    /// See [`ApplyError`]. Nothing of the open transaction is seen by whoever reads committed messages only.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        self.begin().await?;
        let now = UnixMicros::now();
        for batched in &batch.tables {
            self.send_table(batch, batched, now).await?;
        }
        let BatchEnd::Commit(checkpoint) = batch.end else { return Ok(None) };
        assert!(checkpoint.end_lsn >= self.checkpoint.end_lsn, "checkpoint goes back to {}", checkpoint.end_lsn);
        self.commit(checkpoint).await?;
        Ok(Some(self.durable()))
    }

    async fn send_table(&mut self, batch: &Batch, batched: &TableBatch, now: UnixMicros) -> Result<(), ApplyError> {
        let plan_index = batched.plan_index;
        let at_table = |message: String| ApplyError::Table { plan_index, code: None, message };
        let messages = self.tables[plan_index].as_mut().map_err(|refused| at_table(refused.clone()))?;
        let (mut rows, mut olds) = (Rows::new(batch, batched), Rows::new(batch, batched));
        for entry in &batched.entries {
            let row = &batched.rows[entry.row as usize];
            let begin = &batch.transactions[row.transaction as usize];
            // The message's first row tells where the change stands in the WAL.
            let first = entry.origin.map_or(row, |origin| &batched.rows[origin as usize]);
            let lsn = batch.change_lsn(first).unwrap_or(begin.commit_lsn);
            let before = (row.transaction as usize).checked_sub(1).map(|before| batch.transactions[before].commit_lsn);
            let last_commit = before.unwrap_or(self.checkpoint.commit_lsn);
            let at = At { begin, last_commit, lsn, ordinal: row.ordinal, now };
            let images = match (entry.net, entry.origin) {
                (Net::Delete | Net::MovedAway | Net::Nothing, _) => Images::Delete(old(row, rows.read(entry.row))),
                (Net::Insert, _) => Images::Insert(rows.read(entry.row)),
                (Net::Upsert | Net::Tombstone, None) => Images::Update(None, rows.read(entry.row)),
                (Net::Upsert | Net::Tombstone, Some(origin)) => {
                    let before = old(&batched.rows[origin as usize], olds.read(origin));
                    Images::Update(Some(before), rows.read(entry.row))
                }
            };
            for message in messages.change(images, &at).map_err(at_table)? {
                let sent = message.send(&mut self.producer).await;
                sent.map_err(|failure| match &failure {
                    super::KafkaFailure::TooLarge { .. } => at_table(failure.to_string()),
                    _ => apply_error(&failure),
                })?;
            }
        }
        Ok(())
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
