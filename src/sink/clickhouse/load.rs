//! Loading a snapshot into ClickHouse: binary COPY out of the source, row by row into RowBinary, in large inserts.
//!
//! Every row stands at the snapshot's point, below every change that comes after it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;

use super::Server;
use super::encode::{RowEncoder, RowMeta, first_snapshot_version, snapshot_version};
use super::error::ClickHouseError;
use super::state::{self, TableRow};
use super::statements::TableStatements;
use crate::catalog::quote_ident;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::{Input, InputFrom, Mode, Plan};
use crate::retry::Retry;
use crate::sink::state::TableState;
use crate::source::snapshot::Chunk;
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::reads_binary;

/// An insert is sent at this many bytes or rows: few parts, and one block each.
const INSERT_BYTES: usize = 32 << 20;
const INSERT_ROWS: u64 = 1_000_000;
/// Signature, flags and header extension of a binary COPY without extension.
const HEADER_BYTES: usize = 19;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the source cannot be read")]
    Source(#[source] tokio_postgres::Error),
    /// Passes with time.
    #[error("{0}")]
    Passing(String),
    /// The table does not take a row, or a row cannot be made.
    #[error("{0}")]
    Row(String),
    /// Another daemon has taken over and copies by itself.
    #[error("another daemon took over")]
    Fenced,
}

/// Loads chunks into one server.
pub struct ClickHouseLoader {
    server: Arc<Server>,
    source: String,
    epoch: i64,
    mask_key: Arc<[u8]>,
    lsn: Lsn,
}

impl ClickHouseLoader {
    pub fn new(server: Arc<Server>, source: &str, epoch: i64, mask_key: Arc<[u8]>, lsn: Lsn) -> Self {
        ClickHouseLoader { server, source: source.to_owned(), epoch, mask_key, lsn }
    }

    /// Registers a table's copy. Rows of a copy that was cut short are cleared if the table was empty before it: what the
    /// source has deleted since would stay.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over.
    pub async fn begin_table(&self, plan: &Plan) -> Result<(), LoadError> {
        if state::newest_epoch(&self.server.client, &self.source).await.map_err(refused)? != Some(self.epoch) {
            return Err(LoadError::Fenced);
        }
        let statements = TableStatements::new(plan, 0);
        let cut_short = state::is_filling(&self.server.client, &self.source, &plan.target).await.map_err(refused)?;
        if cut_short {
            self.server.client.execute(&statements.clear()).await.map_err(refused)?;
        }
        let rows = self.server.client.rows(&statements.is_empty()).await.map_err(refused)?;
        let was_empty = rows.first().and_then(|row| row.first()).is_some_and(|value| state::number(value) == 1);
        let row = TableRow {
            source: &self.source,
            target: &plan.target,
            origin: &plan.from,
            state: TableState::Copying,
            lsn: self.lsn,
            until: Lsn::ZERO,
            rows: 0,
            was_empty,
            reason: None,
            epoch: self.epoch,
        };
        state::write_table(&self.server.client, &row).await.map_err(refused)
    }

    /// Copies one chunk. Answers the rows, and the values for which `on_overflow` had another written.
    ///
    /// # Errors
    /// Either end refuses, or a row cannot be written.
    pub async fn load(
        &self,
        plan: &Plan,
        chunk: &Chunk,
        range: u32,
        reader: &tokio_postgres::Client,
        report: impl Fn(u64),
    ) -> Result<(u64, u64), LoadError> {
        let statements = TableStatements::new(plan, 0);
        let encoder = RowEncoder::new(plan, &self.mask_key, self.server.reach)
            .map_err(|error| LoadError::Row(error.to_string()))?;
        let rows = reader.copy_out(&select(plan, chunk)).await.map_err(LoadError::Source)?;
        let mut rows = Box::pin(rows);
        let meta = RowMeta { op: "snapshot", commit_lsn: self.lsn, commit_ts: UnixMicros::now().0, xid: None };
        // Where only the version tells rows apart, each has its own.
        let (version, step) = match plan.mode {
            Mode::Append => (first_snapshot_version(self.lsn, range), 1),
            Mode::Upsert | Mode::InsertNew => (snapshot_version(self.lsn), 0),
        };
        let inputs = &statements.write_inputs;
        let mut chunk_rows = ChunkRows { plan, encoder: &encoder, inputs, meta, version, step, coerced: 0 };
        let (mut body, mut pending, mut loaded) = (Vec::new(), 0, 0);
        let mut under_way: Option<JoinHandle<Result<(), ClickHouseError>>> = None;
        let mut is_first = true;
        while let Some(message) = rows.next().await {
            let message = message.map_err(LoadError::Source)?;
            pending += chunk_rows.encode(&message, &mut is_first, &mut body)?;
            if body.len() >= INSERT_BYTES || pending >= INSERT_ROWS {
                landed(under_way.take()).await?;
                under_way = Some(self.send(&statements.write, std::mem::take(&mut body), pending));
                loaded += pending;
                report(std::mem::take(&mut pending));
            }
        }
        landed(under_way.take()).await?;
        if pending > 0 {
            landed(Some(self.send(&statements.write, body, pending))).await?;
            loaded += pending;
            report(pending);
        }
        Ok((loaded, chunk_rows.coerced))
    }

    /// Inserts beside the encoding of what follows.
    fn send(&self, sql: &str, body: Vec<u8>, rows: u64) -> JoinHandle<Result<(), ClickHouseError>> {
        let (server, sql) = (self.server.clone(), sql.to_owned());
        tokio::spawn(async move { server.client.insert(&sql, Bytes::from(body), &[]).await?.has_written(rows) })
    }

    /// All chunks of a table are in: it waits to join the stream at the snapshot's point, and is whole at `until`.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over.
    pub async fn finish(&self, plan: &Plan, until: Lsn, rows: u64) -> Result<(), LoadError> {
        if state::newest_epoch(&self.server.client, &self.source).await.map_err(refused)? != Some(self.epoch) {
            return Err(LoadError::Fenced);
        }
        // An insert of an attempt that was killed may have come to its end after the table was cleared.
        if state::is_filling(&self.server.client, &self.source, &plan.target).await.map_err(refused)? {
            let statements = TableStatements::new(plan, 0);
            let older = match plan.mode {
                Mode::Append => statements.remove_below(first_snapshot_version(self.lsn, 0)),
                Mode::Upsert | Mode::InsertNew => statements.truncate(snapshot_version(self.lsn) - 1, false),
            };
            self.server.client.execute(&older).await.map_err(refused)?;
        }
        state::write_catchup(&self.server.client, &self.source, &plan.target, until, rows).await.map_err(refused)
    }
}

async fn landed(insert: Option<JoinHandle<Result<(), ClickHouseError>>>) -> Result<(), LoadError> {
    match insert {
        None => Ok(()),
        Some(insert) => match insert.await {
            Ok(done) => done.map_err(refused),
            Err(error) => Err(LoadError::Passing(error.to_string())),
        },
    }
}

fn refused(error: ClickHouseError) -> LoadError {
    match error.retry() {
        Retry::Backoff => LoadError::Passing(error.to_string()),
        Retry::Never => LoadError::Row(error.to_string()),
    }
}

/// The source's query of a chunk: its columns among the inputs, as text where the binary form is not understood.
fn select(plan: &Plan, chunk: &Chunk) -> String {
    let columns = plan.inputs.iter().filter_map(|input| {
        let InputFrom::Column(name) = &input.from else { return None };
        let is_text = input.source_type.as_ref().is_some_and(|source| !reads_binary(source));
        Some(if is_text { format!("{}::text", quote_ident(name)) } else { quote_ident(name) })
    });
    format!(
        "COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT (FORMAT binary)",
        columns.collect::<Vec<_>>().join(", "),
        chunk.table.quoted(),
        chunk.condition()
    )
}

/// Turns COPY's rows into RowBinary.
struct ChunkRows<'a> {
    plan: &'a Plan,
    encoder: &'a RowEncoder,
    inputs: &'a [usize],
    meta: RowMeta,
    version: u128,
    step: u128,
    coerced: u64,
}

impl ChunkRows<'_> {
    /// Encodes the whole rows of one message. Answers how many.
    fn encode(&mut self, message: &[u8], is_first: &mut bool, out: &mut Vec<u8>) -> Result<u64, LoadError> {
        let cut = || LoadError::Row("a row of the snapshot is cut short".to_owned());
        let mut rest = message;
        if std::mem::take(is_first) {
            rest = rest.split_at_checked(HEADER_BYTES).ok_or_else(cut)?.1;
        }
        let mut rows = 0;
        while let Some((count, tail)) = rest.split_first_chunk::<2>() {
            rest = tail;
            // The trailer.
            let Ok(count) = usize::try_from(i16::from_be_bytes(*count)) else { break };
            let mut cells = Vec::with_capacity(count);
            for _ in 0..count {
                let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
                rest = tail;
                match usize::try_from(i32::from_be_bytes(*length)) {
                    Err(_) => cells.push(Cell::Null),
                    Ok(length) => {
                        let (value, tail) = rest.split_at_checked(length).ok_or_else(cut)?;
                        rest = tail;
                        cells.push(Cell::Binary(value));
                    }
                }
            }
            self.row(&cells, out)?;
            rows += 1;
        }
        Ok(rows)
    }

    fn row(&mut self, cells: &[Cell<'_>], out: &mut Vec<u8>) -> Result<(), LoadError> {
        for &input in self.inputs {
            let cell = match &self.plan.inputs[input].from {
                InputFrom::Meta(_) => Cell::Null,
                InputFrom::Column(_) => self.cell(cells, input)?,
            };
            self.coerced +=
                self.encoder.put(out, input, cell, &self.meta).map_err(|error| LoadError::Row(error.to_string()))?;
        }
        out.extend_from_slice(&self.version.to_le_bytes());
        self.version += self.step;
        out.push(0);
        Ok(())
    }

    fn cell<'c>(&self, cells: &[Cell<'c>], input: usize) -> Result<Cell<'c>, LoadError> {
        let is_column = |input: &Input| matches!(input.from, InputFrom::Column(_));
        let place = self.plan.inputs[..input].iter().filter(|input| is_column(input)).count();
        let cell = *cells.get(place).ok_or_else(|| LoadError::Row("a row of the snapshot is too short".to_owned()))?;
        let source = self.plan.inputs[input].source_type.as_ref();
        Ok(match cell {
            Cell::Binary(text) if source.is_some_and(|source| !reads_binary(source)) => Cell::Text(text),
            cell => cell,
        })
    }
}
