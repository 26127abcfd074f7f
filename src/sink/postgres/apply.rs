//! Applying a batch: every statement of it in one flight, in one transaction with the checkpoint.
//!
//! Order inside the transaction: tables emptied, rows with holes completed from their old place (into a stage), deletes
//! (children before parents), then new images (parents before children), soft deletes of these, then the checkpoint by compare-and-set on epoch and position. All
//! are sent without waiting for answers; a statement that fails aborts the transaction, so the COMMIT that is already
//! under way becomes a rollback.

mod groups;

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::SinkExt as _;
use futures_util::future::join_all;
use postgres_types::ToSql;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, Statement};

use groups::{Group, Job, Parts, copy_of, extra_columns, group_inputs, has_holes, over_arrays, parts};

use super::PostgresSink;
use super::encode::{ArrayParam, COPY_HEADER, COPY_TRAILER, EncodeError, RawParam, RowReader};
use super::statements::{Replace, SetColumn};
use crate::batch::{Batch, BatchEnd};
use crate::checkpoint::Checkpoint;
use crate::sink::{ApplyError, Durable};

/// Bytes of COPY data sent at a time.
const COPY_CHUNK_BYTES: usize = 256 * 1024;

const CHECKPOINT: &str = "WITH moved AS (UPDATE tailwater.checkpoint SET commit_lsn = $3, end_lsn = $4, ordinal = $5, \
    commit_ts = coalesce($6, commit_ts), updated_at = now() WHERE source = $1 AND epoch = $2 AND end_lsn = $7 RETURNING 1) \
    SELECT 1 / count(*)::int FROM moved";

/// The planner knows nothing of a stage, and of a target perhaps what it was long ago: a plan other than looking up each key
/// in its index may take for ever. A join that costs "disabled" is not worth compiling either.
const BY_INDEX: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; \
    SET LOCAL enable_mergejoin = off; SET LOCAL enable_memoize = off; SET LOCAL jit = off";
const BY_COST: &str = "SET LOCAL enable_seqscan TO DEFAULT; SET LOCAL enable_bitmapscan TO DEFAULT; \
    SET LOCAL enable_hashjoin TO DEFAULT; SET LOCAL enable_mergejoin TO DEFAULT; SET LOCAL enable_memoize TO DEFAULT; \
    SET LOCAL jit TO DEFAULT";

type Flight<'a> = Pin<Box<dyn Future<Output = Result<(), ApplyError>> + Send + 'a>>;

impl PostgresSink {
    /// Applies a batch; a part of a larger transaction leaves the sink's transaction open. `None` for such a part.
    ///
    /// # Errors
    /// See [`ApplyError`]. After any error the sink's transaction is rolled back or its outcome is unknown: connect anew
    /// and read the checkpoint.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        self.look_at_targets(batch).await?;
        let jobs = self.jobs(batch);
        self.prepare(&jobs, batch).await?;
        let BatchEnd::Commit(checkpoint) = batch.end else {
            self.fly(batch, &jobs, None).await?;
            self.in_transaction = true;
            return Ok(None);
        };
        assert!(checkpoint.end_lsn >= self.checkpoint.end_lsn, "checkpoint goes back to {}", checkpoint.end_lsn);
        self.fly(batch, &jobs, Some(checkpoint)).await?;
        self.in_transaction = false;
        self.checkpoint = checkpoint;
        Ok(Some(Durable::new(&self.name, checkpoint)))
    }

    /// Begins the sink's transaction ahead of the first batch in it.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn begin(&mut self) -> Result<(), ApplyError> {
        self.client.batch_execute("BEGIN").await.map_err(ApplyError::control)?;
        self.in_transaction = true;
        Ok(())
    }

    /// Sends everything and waits for all answers.
    async fn fly(&self, batch: &Batch, jobs: &[Job<'_>], commit: Option<Checkpoint>) -> Result<(), ApplyError> {
        let mut flights: Vec<Flight<'_>> = Vec::new();
        if !self.in_transaction {
            flights.push(Box::pin(async { self.client.batch_execute("BEGIN").await.map_err(ApplyError::control) }));
        }
        for &table in self.order.iter().rev() {
            if let Some(table) = batch.tables.iter().find(|batch| batch.plan_index == table && batch.truncate.is_some())
            {
                let sql = &self.tables[table.plan_index].truncate;
                flights.push(Box::pin(async move {
                    let done = self.client.batch_execute(sql).await;
                    done.map_err(|error| ApplyError::at_table(table.plan_index, &error))
                }));
            }
        }
        for job in jobs {
            self.send(batch, job, &mut flights)?;
        }
        if let Some(checkpoint) = commit {
            flights.push(Box::pin(self.write_checkpoint(checkpoint)));
            flights.push(Box::pin(async {
                self.client.batch_execute("COMMIT").await.map_err(|error| self.at_commit(error))
            }));
        }
        // The first failure is the cause; what follows it in an aborted transaction only echoes it.
        join_all(flights).await.into_iter().collect()
    }

    async fn write_checkpoint(&self, checkpoint: Checkpoint) -> Result<(), ApplyError> {
        let commit_ts = checkpoint.commit_ts.map(|ts| RawParam(ts.to_postgres().to_be_bytes().to_vec()));
        let params: [&(dyn ToSql + Sync); 7] = [
            &self.source,
            &self.epoch,
            &PgLsn::from(checkpoint.commit_lsn.0),
            &PgLsn::from(checkpoint.end_lsn.0),
            &i64::try_from(checkpoint.ordinal).unwrap_or(i64::MAX),
            &commit_ts,
            &PgLsn::from(self.checkpoint.end_lsn.0),
        ];
        let statement = self.statement(CHECKPOINT);
        match self.client.query_one(statement, &params).await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::DIVISION_BY_ZERO) => {
                Err(ApplyError::Fenced { epoch: self.epoch, end_lsn: self.checkpoint.end_lsn })
            }
            Err(error) => Err(ApplyError::control(error)),
        }
    }

    /// Makes what the jobs need and the session does not have yet: stages and prepared statements.
    async fn prepare(&mut self, jobs: &[Job<'_>], batch: &Batch) -> Result<(), ApplyError> {
        let tables = self.tables.clone();
        for job in jobs {
            let plan_index = job.table.plan_index;
            let statements = &tables[plan_index];
            let mut wanted: Vec<Cow<'_, str>> = Vec::new();
            match parts(statements, job.group, self.is_tolerant[plan_index]) {
                Parts::Copy(copy) => wanted.push(copy_of(job, copy)),
                Parts::Write(written) => wanted.extend(written.iter().map(Cow::from)),
                Parts::Merge(set, merges) if over_arrays(job, set) => {
                    wanted.extend(merges.iter().map(|merge| Cow::from(&merge.over_arrays)));
                }
                Parts::Replace(replace) => {
                    self.make_stage(&replace.set.stage, &replace.set.create).await?;
                    wanted.push(copy_of(job, &replace.set.copy));
                    wanted.extend([&replace.update.over_stage, &replace.upsert.over_stage].map(Cow::from));
                }
                Parts::Merge(set, merges) => {
                    self.make_stage(&set.stage, &set.create).await?;
                    wanted.push(copy_of(job, &set.copy));
                    wanted.extend(merges.iter().map(|merge| Cow::from(&merge.over_stage)));
                }
            }
            if let (Group::Fill, Some(keyed)) = (job.group, &statements.keyed) {
                self.make_stage(&keyed.filled_stage, &keyed.create_filled).await?;
            }
            for sql in wanted {
                self.prepare_statement(&sql).await.map_err(|error| ApplyError::at_table(plan_index, &error))?;
            }
        }
        if matches!(batch.end, BatchEnd::Commit(_)) {
            self.prepare_statement(CHECKPOINT).await.map_err(ApplyError::control)?;
        }
        Ok(())
    }

    async fn make_stage(&mut self, stage: &str, create: &str) -> Result<(), ApplyError> {
        if self.in_transaction {
            // An earlier part of this transaction may have left its rows there.
            let sql = format!("{create}; TRUNCATE pg_temp.{}", crate::catalog::quote_ident(stage));
            return self.client.batch_execute(&sql).await.map_err(ApplyError::control);
        }
        if !self.stages.contains(stage) {
            self.client.batch_execute(create).await.map_err(ApplyError::control)?;
            self.stages.insert(stage.to_owned());
        }
        Ok(())
    }

    async fn prepare_statement(&mut self, sql: &str) -> Result<(), tokio_postgres::Error> {
        if !self.statements.contains_key(sql) {
            let statement = self.client.prepare(sql).await?;
            self.statements.insert(sql.to_owned(), statement);
        }
        Ok(())
    }

    fn statement(&self, sql: &str) -> &Statement {
        self.statements.get(sql).expect("prepared before the flight")
    }

    /// Adds a job's statements to the flight.
    fn send<'a>(&'a self, batch: &'a Batch, job: &'a Job<'a>, flights: &mut Vec<Flight<'a>>) -> Result<(), ApplyError> {
        let plan_index = job.table.plan_index;
        let statements = &self.tables[plan_index];
        let (set, merges) = match parts(statements, job.group, self.is_tolerant[plan_index]) {
            Parts::Copy(copy) => {
                let copy = self.statement(&copy_of(job, copy));
                flights.push(Box::pin(self.copy(batch, job, copy, &statements.direct_inputs)));
                return Ok(());
            }
            Parts::Write(written) => {
                let write = |sql: &'a String| run(&self.client, self.statement(sql), &[], plan_index);
                flights.extend(written.iter().map(|sql| Box::pin(write(sql)) as Flight<'a>));
                return Ok(());
            }
            Parts::Replace(replace) => {
                self.replace(batch, job, replace, flights);
                return Ok(());
            }
            Parts::Merge(set, merges) => (set, merges),
        };
        let inputs = group_inputs(job);
        let count = count(job);
        if over_arrays(job, set) {
            let arrays = self
                .arrays(batch, job, &set.columns, &inputs)
                .map_err(|error| ApplyError::encode(plan_index, error))?;
            let arrays = std::sync::Arc::new(arrays);
            for merge in merges {
                let arrays = arrays.clone();
                flights.push(Box::pin(async move {
                    let mut params: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(arrays.len() + 1);
                    if is_counted(&merge.over_arrays) {
                        params.push(&count);
                    }
                    params.extend(arrays.iter().map(|array| array as &(dyn ToSql + Sync)));
                    run(&self.client, self.statement(&merge.over_arrays), &params, plan_index).await
                }));
            }
        } else {
            let copy = self.statement(&copy_of(job, &set.copy));
            flights.push(Box::pin(self.copy_owned(batch, job, copy, inputs)));
            for merge in merges {
                flights.push(Box::pin(async move {
                    let params: &[&(dyn ToSql + Sync)] = if is_counted(&merge.over_stage) { &[&count] } else { &[] };
                    run(&self.client, self.statement(&merge.over_stage), params, plan_index).await
                }));
            }
        }
        Ok(())
    }

    /// Adds a replacement's statements to the flight.
    fn replace<'a>(&'a self, batch: &'a Batch, job: &'a Job<'a>, replace: &'a Replace, flights: &mut Vec<Flight<'a>>) {
        let plan_index = job.table.plan_index;
        let set = |sql| async move { self.client.batch_execute(sql).await.map_err(ApplyError::control) };
        let copy = self.statement(&copy_of(job, &replace.set.copy));
        flights.push(Box::pin(self.copy_owned(batch, job, copy, group_inputs(job))));
        flights.push(Box::pin(set(BY_INDEX)));
        flights.push(Box::pin(async move {
            run(&self.client, self.statement(&replace.update.over_stage), &[&count(job)], plan_index).await
        }));
        flights.push(Box::pin(set(BY_COST)));
        flights.push(Box::pin(run(&self.client, self.statement(&replace.upsert.over_stage), &[], plan_index)));
    }

    async fn copy_owned(
        &self,
        batch: &Batch,
        job: &Job<'_>,
        copy: &Statement,
        inputs: Vec<usize>,
    ) -> Result<(), ApplyError> {
        self.copy(batch, job, copy, &inputs).await
    }

    /// Streams a group's rows through COPY.
    async fn copy(&self, batch: &Batch, job: &Job<'_>, copy: &Statement, inputs: &[usize]) -> Result<(), ApplyError> {
        let plan_index = job.table.plan_index;
        let failed = |error: tokio_postgres::Error| ApplyError::at_table(plan_index, &error);
        let mut sink = Box::pin(self.client.copy_in::<_, Bytes>(copy).await.map_err(failed)?);
        let mut reader = RowReader::new(batch, job.table, &self.mask_key);
        let mut chunk = Vec::with_capacity(COPY_CHUNK_BYTES + COPY_CHUNK_BYTES / 8);
        let columns = inputs.len() + extra_columns(job, &reader);
        let columns = i16::try_from(columns).expect("a table has at most 1,600 columns").to_be_bytes();
        if !job.is_text {
            chunk.extend_from_slice(COPY_HEADER);
        }
        for &entry in &job.entries {
            let put = if job.is_text {
                put_text_row(&mut reader, job, entry, inputs, &mut chunk)
            } else {
                chunk.extend_from_slice(&columns);
                self.put_row(&mut reader, job, entry, inputs, &mut chunk)
            };
            put.map_err(|error| ApplyError::encode(plan_index, error))?;
            if chunk.len() >= COPY_CHUNK_BYTES {
                let full = std::mem::replace(&mut chunk, Vec::with_capacity(COPY_CHUNK_BYTES + COPY_CHUNK_BYTES / 8));
                sink.send(Bytes::from(full)).await.map_err(failed)?;
            }
        }
        if !job.is_text {
            chunk.extend_from_slice(COPY_TRAILER);
        }
        sink.send(Bytes::from(chunk)).await.map_err(failed)?;
        sink.as_mut().finish().await.map_err(failed)?;
        Ok(())
    }

    fn put_row(
        &self,
        reader: &mut RowReader<'_>,
        job: &Job<'_>,
        entry: u32,
        inputs: &[usize],
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let entry = &job.table.entries[entry as usize];
        reader.fields(out, entry.row, inputs)?;
        if has_holes(job) {
            for word in 0..reader.mask_words() {
                super::encode::put(out, &reader.mask(entry.row, word).to_be_bytes());
            }
            reader.fields(out, entry.origin.unwrap_or(entry.row), &job.table.plan.key_inputs)?;
        }
        Ok(())
    }

    /// A group's rows as array parameters, one per column.
    fn arrays(
        &self,
        batch: &Batch,
        job: &Job<'_>,
        columns: &[SetColumn],
        inputs: &[usize],
    ) -> Result<Vec<RawParam>, EncodeError> {
        let mut reader = RowReader::new(batch, job.table, &self.mask_key);
        let mut arrays: Vec<_> = columns.iter().map(|column| ArrayParam::new(column.type_oid)).collect();
        for &entry in &job.entries {
            let entry = &job.table.entries[entry as usize];
            let (plain, extra) = arrays.split_at_mut(inputs.len());
            for (array, input) in plain.iter_mut().zip(inputs) {
                reader.fields(array.field(), entry.row, std::slice::from_ref(input))?;
            }
            if has_holes(job) {
                let (masks, origin) = extra.split_at_mut(reader.mask_words());
                for (word, mask) in masks.iter_mut().enumerate() {
                    super::encode::put(mask.field(), &reader.mask(entry.row, word).to_be_bytes());
                }
                let place = entry.origin.unwrap_or(entry.row);
                for (array, input) in origin.iter_mut().zip(&job.table.plan.key_inputs) {
                    reader.fields(array.field(), place, std::slice::from_ref(input))?;
                }
            }
        }
        Ok(arrays.into_iter().map(ArrayParam::finish).collect())
    }
}

/// A row as a line.
fn put_text_row(
    reader: &mut RowReader<'_>,
    job: &Job<'_>,
    entry: u32,
    inputs: &[usize],
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let entry = &job.table.entries[entry as usize];
    reader.text_fields(out, entry.row, inputs)?;
    if has_holes(job) {
        for word in 0..reader.mask_words() {
            out.extend_from_slice(reader.mask(entry.row, word).to_string().as_bytes());
            out.push(b'\t');
        }
        reader.text_fields(out, entry.origin.unwrap_or(entry.row), &job.table.plan.key_inputs)?;
    }
    // In place of the last tab.
    out.pop();
    out.push(b'\n');
    Ok(())
}

async fn run(
    client: &Client,
    statement: &Statement,
    params: &[&(dyn ToSql + Sync)],
    plan_index: usize,
) -> Result<(), ApplyError> {
    match client.execute(statement, params).await {
        Ok(_) => Ok(()),
        Err(error) => Err(ApplyError::at_table(plan_index, &error)),
    }
}

fn count(job: &Job<'_>) -> i64 {
    i64::try_from(job.entries.len()).unwrap_or(i64::MAX)
}

fn is_counted(sql: &str) -> bool {
    sql.starts_with("WITH touched")
}
