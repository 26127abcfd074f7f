//! Loading a snapshot into ClickHouse: binary COPY out of the source, row by row into RowBinary, in large inserts.
//!
//! Every row stands at the snapshot's point, below every change that comes after it. Each reader fills inserts of its own,
//! over the ends of chunks, and goes on while the last one is under way.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::Server;
use super::encode::{RowEncoder, RowMeta, first_snapshot_version, snapshot_version};
use super::error::ClickHouseError;
use super::state::{self, TableRow};
use super::statements::TableStatements;
use crate::catalog::quote_ident;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::{InputFrom, Mode, Plan};
use crate::retry::Retry;
use crate::sink::load::LoadError;
use crate::sink::state::TableState;
use crate::source::copy_rows::{CopyRows, emptied};
use crate::source::snapshot::{Chunk, Part};
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::reads_binary;

/// An insert is sent at this many bytes or rows: few parts, and one block each.
const INSERT_BYTES: usize = 32 << 20;
const INSERT_ROWS: u64 = 1_000_000;

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
    pub async fn begin_table<'a>(&'a self, plan: &'a Plan) -> Result<TableLoad<'a>, LoadError> {
        if state::newest_epoch(&self.server.client, &self.source).await.map_err(refused)? != Some(self.epoch) {
            return Err(LoadError::Fenced);
        }
        let table = TableLoad::new(self, plan)?;
        let statements = &table.statements;
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
        state::write_table(&self.server.client, &row).await.map_err(refused)?;
        Ok(table)
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
                Mode::Upsert | Mode::InsertNew => statements.bury_below(snapshot_version(self.lsn) - 1),
            };
            self.server.client.execute(&older).await.map_err(refused)?;
        }
        state::write_catchup(&self.server.client, &self.source, &plan.target, until, rows).await.map_err(refused)
    }
}

fn refused(error: ClickHouseError) -> LoadError {
    match error.retry() {
        Retry::Backoff => LoadError::Passing(error.to_string()),
        Retry::Never => LoadError::Row(error.to_string()),
    }
}

/// A table on its way, with what every row of it needs, made once.
pub struct TableLoad<'a> {
    loader: &'a ClickHouseLoader,
    plan: &'a Plan,
    statements: TableStatements,
    encoder: RowEncoder,
    /// What the source is asked for: its columns among the inputs, as text where the binary form is not understood.
    columns: String,
    written: Vec<Written>,
    meta: RowMeta,
}

/// An input as it is written, and where its value stands among the columns that are read.
struct Written {
    input: usize,
    value: Value,
}

#[derive(Clone, Copy)]
enum Value {
    Binary(usize),
    Text(usize),
    /// Only the daemon knows it.
    Meta,
}

impl<'a> TableLoad<'a> {
    fn new(loader: &'a ClickHouseLoader, plan: &'a Plan) -> Result<TableLoad<'a>, LoadError> {
        let encoder = RowEncoder::new(plan, &loader.mask_key, loader.server.reach)
            .map_err(|error| LoadError::Row(error.to_string()))?;
        let statements = TableStatements::new(plan, 0);
        let mut columns = Vec::new();
        let mut values = Vec::with_capacity(plan.inputs.len());
        for input in &plan.inputs {
            let place = columns.len();
            values.push(match &input.from {
                InputFrom::Meta(_) => Value::Meta,
                InputFrom::Column(name) | InputFrom::Json { column: name, .. }
                    if input.source_type.as_ref().is_some_and(|source| !reads_binary(source)) =>
                {
                    columns.push(format!("{}::text", quote_ident(name)));
                    Value::Text(place)
                }
                InputFrom::Column(name) | InputFrom::Json { column: name, .. } => {
                    columns.push(quote_ident(name));
                    Value::Binary(place)
                }
            });
        }
        let written = statements.write_inputs.iter().map(|&input| Written { input, value: values[input] }).collect();
        let meta = RowMeta { op: "snapshot", commit_lsn: loader.lsn, commit_ts: UnixMicros::now().0, xid: None };
        Ok(TableLoad { loader, plan, statements, encoder, columns: columns.join(", "), written, meta })
    }

    /// The way of one reader's rows to the server.
    pub fn lane(&self, reader: &'a Client) -> Lane<'_> {
        Lane { table: self, reader, body: Body::default(), under_way: None }
    }

    /// Appends a row.
    #[inline]
    fn row(&self, cells: &[Cell<'_>], version: u128, body: &mut Body) -> Result<(), LoadError> {
        let column = |place: usize| {
            cells.get(place).copied().ok_or_else(|| LoadError::Row("a row of the snapshot is too short".to_owned()))
        };
        for Written { input, value } in &self.written {
            let cell = match *value {
                Value::Binary(place) => column(place)?,
                Value::Text(place) => match column(place)? {
                    Cell::Binary(text) => Cell::Text(text),
                    cell => cell,
                },
                Value::Meta => Cell::Null,
            };
            let put = self.encoder.put(&mut body.bytes, *input, cell, &self.meta);
            body.coerced += put.map_err(|error| LoadError::Row(error.to_string()))?;
        }
        body.bytes.extend_from_slice(&version.to_le_bytes());
        body.bytes.push(0);
        body.rows += 1;
        Ok(())
    }
}

/// One insert's rows.
#[derive(Default)]
struct Body {
    bytes: Vec<u8>,
    rows: u64,
    /// Values for which `on_overflow` had another written.
    coerced: u64,
}

/// Rows that the server has, and for how many values of them `on_overflow` had another written.
#[derive(Clone, Copy, Debug)]
pub struct Landed {
    pub rows: u64,
    pub coerced: u64,
}

/// Takes chunks by one connection to the source, one after the other.
pub struct Lane<'a> {
    table: &'a TableLoad<'a>,
    reader: &'a Client,
    body: Body,
    under_way: Option<JoinHandle<Result<Landed, ClickHouseError>>>,
}

impl Lane<'_> {
    /// Takes one chunk. Its last rows wait for the insert to be full, or for `end`.
    ///
    /// # Errors
    /// Either end refuses, or a row cannot be written.
    pub async fn load(&mut self, chunk: &Chunk, range: u32, report: impl Fn(Landed)) -> Result<(), LoadError> {
        let sql = chunk.copy_sql(&self.table.columns, Part::Whole);
        let rows = self.reader.copy_out(&sql).await.map_err(LoadError::Source)?;
        let mut rows = Box::pin(rows);
        // Where only the version tells rows apart, each has its own.
        let (mut version, step) = match self.table.plan.mode {
            Mode::Append => (first_snapshot_version(self.table.loader.lsn, range), 1),
            Mode::Upsert | Mode::InsertNew => (snapshot_version(self.table.loader.lsn), 0),
        };
        let (mut copy, mut room) = (CopyRows::default(), Vec::new());
        while let Some(message) = rows.next().await {
            let message = message.map_err(LoadError::Source)?;
            let (mut rows, mut cells) = (copy.message(&message)?, emptied(room));
            while rows.next(&mut cells)? {
                self.table.row(&cells, version, &mut self.body)?;
                version += step;
            }
            room = emptied(cells);
            if self.body.bytes.len() >= INSERT_BYTES || self.body.rows >= INSERT_ROWS {
                self.send(&report).await?;
            }
        }
        Ok(())
    }

    /// Sends what is left and waits until the server has everything.
    ///
    /// # Errors
    /// The sink refuses.
    pub async fn end(mut self, report: impl Fn(Landed)) -> Result<(), LoadError> {
        if self.body.rows > 0 {
            self.send(&report).await?;
        }
        self.landed(&report).await
    }

    /// Inserts beside the encoding of what follows, once the insert before is done.
    async fn send(&mut self, report: &impl Fn(Landed)) -> Result<(), LoadError> {
        self.landed(report).await?;
        let room = self.body.bytes.len();
        let Body { bytes, rows, coerced } =
            std::mem::replace(&mut self.body, Body { bytes: Vec::with_capacity(room), ..Body::default() });
        let (server, sql) = (self.table.loader.server.clone(), self.table.statements.direct.write.clone());
        self.under_way = Some(tokio::spawn(async move {
            server.client.insert(&sql, Bytes::from(bytes), &[]).await?.has_written(rows)?;
            Ok(Landed { rows, coerced })
        }));
        Ok(())
    }

    async fn landed(&mut self, report: &impl Fn(Landed)) -> Result<(), LoadError> {
        let Some(insert) = self.under_way.take() else { return Ok(()) };
        let done = insert.await.map_err(|error| LoadError::Passing(error.to_string()))?;
        report(done.map_err(refused)?);
        Ok(())
    }
}
