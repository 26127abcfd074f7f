//! Applying a batch: one insert a table, more only where there are soft deletes or a TRUNCATE; then the checkpoint.
//!
//! Everything may be done again from any point and in other batches: a row that comes a second time has the same version, and
//! one to be completed is found wherever it is by then, see `places`. That holds only if of a batch with such rows the target
//! has all or nothing, so they come to it together with the whole rows and the tombstones, see `statements::Gather`.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::encode::{RowError, RowMeta, version};
use super::error::ClickHouseError;
use super::places::Place;
use super::statements::{Missing, Places};
use super::{ClickHouseSink, Session, Table};
use crate::batch::{Batch, BatchEnd, Entry, Net, TableBatch};
use crate::mapping::plan::DeleteMode;
use crate::retry::Retry;
use crate::sink::{ApplyError, Durable};
use crate::tuple::Cell;

/// Version and deleted flag of a row.
const SERVICE_BYTES: usize = 17;

/// What a batch does to one table, as bodies of inserts.
#[derive(Default)]
struct Work {
    /// Rows that the target completes, each once for every place where it may stand.
    holes: Body,
    places: Places,
    /// Keys of rows that are marked as deleted, be they there or be they brought by this batch.
    marks: Body,
    /// Whole rows, and tombstones where they may stand among them.
    rows: Body,
    tombstones: Body,
    coerced: u64,
}

#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    rows: u64,
}

impl ClickHouseSink {
    /// Applies a batch; `None` for a part of a larger transaction, which has no checkpoint.
    ///
    /// # Errors
    /// See [`ApplyError`]. What was written before the error stays and does no harm.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        try_join_all(batch.tables.iter().map(|table| self.apply_table(batch, table))).await?;
        let BatchEnd::Commit(checkpoint) = batch.end else { return Ok(None) };
        assert!(checkpoint.end_lsn >= self.checkpoint.end_lsn, "checkpoint goes back to {}", checkpoint.end_lsn);
        self.write_checkpoint(checkpoint).await?;
        Ok(Some(Durable::new(&self.name, checkpoint)))
    }

    async fn apply_table(&self, batch: &Batch, batched: &TableBatch) -> Result<(), ApplyError> {
        let plan_index = batched.plan_index;
        let table = &self.tables[plan_index];
        let at_table = |error: ClickHouseError| at_table(plan_index, &error);
        let missing = if self.is_tolerant[plan_index] { Missing::Passes } else { Missing::Fails };
        let mut work = table.work(batch, batched).map_err(|error| ApplyError::Table {
            plan_index,
            code: None,
            message: error.to_string(),
        })?;
        table.coerced.fetch_add(work.coerced, Ordering::Relaxed);
        let marks = std::mem::take(&mut work.marks);
        let lacks = !table.statements.stage.toastable.is_empty() && batched.rows.iter().any(|row| row.has_unchanged);
        let written = match lacks && work.inserts() > 1 {
            true => self.land(table, work, missing).await,
            false => self.write(table, work, missing).await,
        };
        written.map_err(at_table)?;
        self.mark(table, marks).await.map_err(at_table)?;
        // Rows that stood there before and moved first must have moved.
        if let Some(position) = batched.truncate {
            let softly = batched.plan.delete == DeleteMode::Soft;
            let sql = table.statements.truncate(version(position), softly);
            self.server.client.execute(&sql).await.map_err(at_table)?;
        }
        Ok(())
    }

    /// Puts what came as one kind of rows, or rows that nothing binds to each other, straight into the target.
    async fn write(&self, table: &Table, work: Work, missing: Missing) -> Result<(), ClickHouseError> {
        let direct = &table.statements.direct;
        if work.holes.rows > 0 {
            let complete = direct.complete.statement(missing, work.places);
            let session = self.session.lock().await;
            self.through_stage(table, &session, &table.statements.stage.fill, work.holes, &complete).await?;
        }
        self.insert(&direct.write, work.rows, &[]).await?;
        self.insert(&direct.bury, work.tombstones, &[]).await
    }

    /// Gathers rows that are bound to each other, and puts them into the target by one insert.
    async fn land(&self, table: &Table, work: Work, missing: Missing) -> Result<(), ClickHouseError> {
        let session = self.session.lock().await;
        let landed = self.gather_and_land(table, &session, work, missing).await;
        // Also of rows that did not land: they would lie in the server's memory for as long as the session is remembered.
        let dropped = self.server.client.execute_with(&table.statements.gather.drop, &session.settings()).await;
        landed.and(dropped)
    }

    async fn gather_and_land(
        &self,
        table: &Table,
        session: &Session,
        work: Work,
        missing: Missing,
    ) -> Result<(), ClickHouseError> {
        let (client, gather, settings) = (&self.server.client, &table.statements.gather, session.settings());
        let complete = gather.inserts.complete.statement(missing, work.places);
        let at_least = work.rows.rows + work.tombstones.rows;
        client.execute_with(&gather.drop, &settings).await?;
        client.execute_with(&gather.create, &settings).await?;
        self.through_stage(table, session, &table.statements.stage.fill, work.holes, &complete).await?;
        self.insert(&gather.inserts.write, work.rows, &settings).await?;
        self.insert(&gather.inserts.bury, work.tombstones, &settings).await?;
        client.run(&gather.land, &settings).await?.has_written(at_least)
    }

    async fn mark(&self, table: &Table, marks: Body) -> Result<(), ClickHouseError> {
        if marks.rows == 0 {
            return Ok(());
        }
        let session = self.session.lock().await;
        let stage = &table.statements.stage;
        self.through_stage(table, &session, &stage.fill_keys, marks, &stage.mark).await
    }

    async fn insert(&self, sql: &str, body: Body, settings: &[(&str, &str)]) -> Result<(), ClickHouseError> {
        if body.rows == 0 {
            return Ok(());
        }
        let summary = self.server.client.insert(sql, Bytes::from(body.bytes), settings).await?;
        summary.has_written(body.rows)
    }

    /// Lays rows into the session's stage and has the server take them from there.
    async fn through_stage(
        &self,
        table: &Table,
        session: &Session,
        fill: &str,
        body: Body,
        then: &str,
    ) -> Result<(), ClickHouseError> {
        if body.rows == 0 {
            return Ok(());
        }
        let (client, stage, settings) = (&self.server.client, &table.statements.stage, session.settings());
        client.execute_with(&stage.create, &settings).await?;
        client.execute_with(&stage.clear, &settings).await?;
        client.insert(fill, Bytes::from(body.bytes), &settings).await?.has_written(body.rows)?;
        client.execute_with(then, &settings).await?;
        client.execute_with(&stage.clear, &settings).await
    }
}

impl Work {
    /// How many inserts it takes.
    fn inserts(&self) -> usize {
        [&self.holes, &self.rows, &self.tombstones].iter().filter(|body| body.rows > 0).count()
    }
}

/// A table's rows, each taken apart once.
struct Rows<'a> {
    batch: &'a Batch,
    batched: &'a TableBatch,
    wire: Vec<Cell<'a>>,
    open: Option<u32>,
    /// Tombstones are at least this new: rows that came before a TRUNCATE are dead as of it.
    floor: u128,
}

impl<'a> Rows<'a> {
    /// An input's value; `Unchanged` means that only the target has it.
    #[inline]
    fn cell(&mut self, row: u32, input: usize) -> Cell<'a> {
        let (batch, batched) = (self.batch, self.batched);
        let reference = &batched.rows[row as usize];
        if reference.key_only {
            return batch.cell(batched, row, input);
        }
        if self.open != Some(row) {
            self.wire.clear();
            self.wire.extend(batch.cells(reference));
            self.open = Some(row);
        }
        match batched.bindings[reference.binding as usize].columns[input].map(|column| self.wire[column]) {
            Some(Cell::Unchanged) => batch.cell(batched, row, input),
            Some(cell) => cell,
            // What the daemon knows is no cell.
            None => Cell::Null,
        }
    }

    fn version(&self, row: u32) -> u128 {
        version(self.batch.position(&self.batched.rows[row as usize]))
    }
}

impl Table {
    /// Encodes a table's part of a batch.
    fn work(&self, batch: &Batch, batched: &TableBatch) -> Result<Work, RowError> {
        let mut work = Work::default();
        // A cell on the wire has five bytes before it, of which these do not make more: room for all, taken once.
        let room = batched.entries.iter().map(|entry| batched.rows[entry.row as usize].length as usize + SERVICE_BYTES);
        work.rows.bytes.reserve(room.sum());
        let softly = batched.plan.delete == DeleteMode::Soft;
        let floor = batched.truncate.filter(|_| !softly).map_or(0, version);
        let mut rows = Rows { batch, batched, wire: Vec::new(), open: None, floor };
        for entry in &batched.entries {
            match entry.net {
                Net::Insert | Net::Upsert => self.image(&mut rows, entry, &mut work)?,
                Net::Tombstone => {
                    self.image(&mut rows, entry, &mut work)?;
                    // Above the image, and not above what may come later: the delete itself stands behind the image.
                    self.key_row(&mut rows, entry.row, &mut work.marks, 1)?;
                }
                // A batch that ended between its coming and its going may have been written before a crash.
                Net::Delete | Net::Nothing if softly => self.key_row(&mut rows, entry.row, &mut work.marks, 0)?,
                Net::Delete | Net::MovedAway | Net::Nothing if self.statements.writes_tombstones => {
                    self.tombstone(&mut rows, entry.row, &mut work.rows)?;
                }
                Net::Delete | Net::MovedAway | Net::Nothing => {
                    self.key_row(&mut rows, entry.row, &mut work.tombstones, 0)?
                }
            }
        }
        Ok(work)
    }

    /// A new image: whole, or with what the target has to complete.
    fn image(&self, rows: &mut Rows<'_>, entry: &Entry, work: &mut Work) -> Result<(), RowError> {
        let row = entry.row;
        let toastable = &self.statements.stage.toastable;
        let may_lack = rows.batched.rows[row as usize].has_unchanged;
        if may_lack && toastable.iter().any(|&input| rows.cell(row, input) == Cell::Unchanged) {
            return self.row_with_holes(rows, entry.row, work);
        }
        let meta = RowMeta::of(rows.batch, rows.batched, row);
        let out = &mut work.rows.bytes;
        for &input in &self.statements.write_inputs {
            work.coerced += self.encoder.put(out, input, rows.cell(row, input), &meta)?;
        }
        out.extend_from_slice(&rows.version(row).to_le_bytes());
        out.push(0);
        work.rows.rows += 1;
        Ok(())
    }

    fn row_with_holes(&self, rows: &mut Rows<'_>, row: u32, work: &mut Work) -> Result<(), RowError> {
        let places = Place::all(rows.batch, rows.batched, row, &self.statements.bury_inputs);
        if places.len() > 1 {
            work.places = Places::Several;
        }
        for place in places {
            self.staged_row(rows, row, &place, work)?;
        }
        Ok(())
    }

    /// A row as it is staged for one place.
    fn staged_row(&self, rows: &mut Rows<'_>, row: u32, place: &Place, work: &mut Work) -> Result<(), RowError> {
        let toastable = &self.statements.stage.toastable;
        let meta = RowMeta::of(rows.batch, rows.batched, row);
        let out = &mut work.holes.bytes;
        for (input, &is_toastable) in self.statements.stage.is_toastable.iter().enumerate() {
            match rows.cell(row, input) {
                Cell::Unchanged if is_toastable => self.encoder.put_default(out, input),
                cell => work.coerced += self.encoder.put(out, input, cell, &meta)?,
            }
        }
        for &input in toastable {
            out.push(u8::from(rows.cell(row, input) == Cell::Unchanged));
        }
        for &input in &self.statements.bury_inputs {
            work.coerced += self.encoder.put(out, input, rows.cell(place.row, input), &meta)?;
        }
        for version in [place.since, place.before, rows.version(row)] {
            out.extend_from_slice(&version.to_le_bytes());
        }
        work.holes.rows += 1;
        Ok(())
    }

    /// A key and a version.
    fn key_row(&self, rows: &mut Rows<'_>, row: u32, body: &mut Body, above: u128) -> Result<(), RowError> {
        let meta = RowMeta::of(rows.batch, rows.batched, row);
        for &input in &self.statements.bury_inputs {
            self.encoder.put(&mut body.bytes, input, rows.cell(row, input), &meta)?;
        }
        body.bytes.extend_from_slice(&(rows.version(row).max(rows.floor) + above).to_le_bytes());
        body.rows += 1;
        Ok(())
    }

    /// A tombstone among whole rows: only its key says something.
    fn tombstone(&self, rows: &mut Rows<'_>, row: u32, body: &mut Body) -> Result<(), RowError> {
        let meta = RowMeta::of(rows.batch, rows.batched, row);
        for (&input, &is_key) in self.statements.write_inputs.iter().zip(&self.statements.writes_key) {
            if is_key {
                self.encoder.put(&mut body.bytes, input, rows.cell(row, input), &meta)?;
            } else {
                self.encoder.put_default(&mut body.bytes, input);
            }
        }
        body.bytes.extend_from_slice(&rows.version(row).max(rows.floor).to_le_bytes());
        body.bytes.push(1);
        body.rows += 1;
        Ok(())
    }
}

/// Authentication, rights and settings concern the sink; what else does not pass concerns the table.
pub(super) fn at_table(plan_index: usize, error: &ClickHouseError) -> ApplyError {
    let message = error.to_string();
    match (error.retry(), error) {
        (Retry::Backoff, _) => ApplyError::Transient { message },
        (Retry::Never, ClickHouseError::Server(exception)) if !matches!(exception.code, 192..=194 | 497 | 516) => {
            ApplyError::Table { plan_index, code: Some(exception.code.to_string()), message }
        }
        (Retry::Never, _) => ApplyError::Fatal { message },
    }
}

/// An error of a statement that concerns no table.
pub(super) fn control(error: &ClickHouseError) -> ApplyError {
    let message = error.to_string();
    match error.retry() {
        Retry::Backoff => ApplyError::Transient { message },
        Retry::Never => ApplyError::Fatal { message },
    }
}
