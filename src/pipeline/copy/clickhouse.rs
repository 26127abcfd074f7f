//! The first copy into ClickHouse: all tables under one snapshot, each chunk by whoever is free.
//!
//! A copy that was cut short begins anew: its rows are cleared if the table was empty before, since what the source has
//! deleted meanwhile would stay. Rows that are copied twice are one row each.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio_postgres::Client;
use tracing::info;

use super::{Broken, CopyJob};
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::postgres::error::describe;
use crate::sink::any::SinkSession;
use crate::sink::clickhouse::load::{ClickHouseLoader, Landed, LoadError, TableLoad};
use crate::sink::state::TableState;
use crate::source::snapshot::{self, Chunk, Leaf, Snapshot};

/// One attempt at all tables.
pub(super) async fn copy_all(job: &CopyJob, hold: &Hold) -> Result<(Lsn, Lsn), Broken> {
    let SinkSession::ClickHouse(server) = job.link.connect("tailwater copy").await.map_err(Broken::Again)? else {
        unreachable!("a Postgres sink is copied into by its own way")
    };
    // All that ends here is before the snapshot; the journal keeps what comes after.
    hold.set(job.shared.stream.received().min(job.shared.journal.held().map_or(Lsn::ZERO, |held| held.end.end_lsn)));
    let snapshot = Snapshot::export(&job.url, &job.slot, job.connections).await?;
    let lsn = snapshot.lsn();
    let tables: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].target.to_string()).collect();
    info!(sink = %job.link.name, %lsn, tables = %tables.join(", "), "copying");
    let loader = ClickHouseLoader::new(server, &job.link.source, job.epoch, job.link.mask_key.clone(), lsn);
    // All at once, as soon as may be: what empties or rewrites a table hides its rows from the snapshot, and a table that was
    // opened cannot be emptied.
    let mut leaves = Vec::new();
    for &plan_index in &job.plans {
        leaves.push(snapshot.open(&job.link.plans[plan_index].from).await?);
    }
    let mut rows = Vec::new();
    for (&plan_index, leaves) in job.plans.iter().zip(&leaves) {
        rows.push(copy_table(job, plan_index, leaves, &snapshot, &loader).await?);
    }
    let until = snapshot.end(&job.url).await?;
    for (&plan_index, rows) in job.plans.iter().zip(rows) {
        let finished = loader.finish(&job.link.plans[plan_index], until, rows).await;
        finished.map_err(|error| broken(job, plan_index, error))?;
        job.observed.table_state(plan_index, TableState::Catchup);
        job.observed.copied(plan_index);
    }
    Ok((lsn, until))
}

async fn copy_table(
    job: &CopyJob,
    plan_index: usize,
    leaves: &[Leaf],
    snapshot: &Snapshot,
    loader: &ClickHouseLoader,
) -> Result<u64, Broken> {
    let plan = &job.link.plans[plan_index];
    let table = loader.begin_table(plan).await.map_err(|error| broken(job, plan_index, error))?;
    job.observed.table_state(plan_index, TableState::Copying);
    let copying = Copying {
        plan_index,
        chunks: snapshot::cut(leaves, &[]),
        estimated: leaves.iter().map(|leaf| leaf.estimated_rows).sum(),
        copied: AtomicU64::new(0),
        next: AtomicUsize::new(0),
    };
    copying.report(job, Landed { rows: 0, coerced: 0 });
    try_join_all(snapshot.readers().iter().map(|reader| copying.run(job, &table, reader))).await?;
    Ok(copying.copied.into_inner())
}

/// A table whose chunks are under way.
struct Copying {
    plan_index: usize,
    chunks: Vec<Chunk>,
    estimated: u64,
    copied: AtomicU64,
    next: AtomicUsize,
}

impl Copying {
    fn report(&self, job: &CopyJob, landed: Landed) {
        let copied = self.copied.fetch_add(landed.rows, Ordering::Relaxed) + landed.rows;
        job.observed.copying(self.plan_index, copied, self.estimated.max(copied));
        let metrics = &job.observed.tables[self.plan_index];
        metrics.snapshot_rows.inc_by(landed.rows);
        metrics.value_coerced.inc_by(landed.coerced);
    }

    /// One connection takes chunk after chunk.
    async fn run(&self, job: &CopyJob, table: &TableLoad<'_>, reader: &Client) -> Result<(), Broken> {
        let report = |landed| self.report(job, landed);
        let failed = |error| broken(job, self.plan_index, error);
        let mut lane = table.lane(reader);
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = self.chunks.get(place) else { break };
            let range = u32::try_from(place).expect("a table has fewer than 2^32 ranges of blocks");
            lane.load(chunk, range, report).await.map_err(failed)?;
        }
        lane.end(report).await.map_err(failed)
    }
}

fn broken(job: &CopyJob, plan_index: usize, error: LoadError) -> Broken {
    match error {
        LoadError::Fenced => Broken::Fenced,
        LoadError::Source(error) => Broken::Again(format!("source: {}", describe(&error))),
        LoadError::Passing(message) => Broken::Again(format!("sink \"{}\": {message}", job.link.name)),
        LoadError::Row(message) => Broken::Table { plan_index, message },
    }
}
