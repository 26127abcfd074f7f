//! The first copy into Kafka: each table is one transaction of its own producer, so that of a copy that is cut short nobody
//! sees anything, and none of its messages comes twice.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio_postgres::Client;
use tracing::info;

use super::{Broken, CopyJob, Filled};
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::pipeline::drift::COPY_INTO_TOPIC_ANEW;
use crate::pipeline::drift::watch::is_planned;
use crate::postgres::error::describe;
use crate::sink::any::SinkAddress;
use crate::sink::kafka::load::{KafkaLoader, LoadError};
use crate::sink::state::TableState;
use crate::source::layout::read_layouts;
use crate::source::snapshot::{self, Chunk, Leaf, Snapshot};

/// One attempt at all tables. Those that came through are `filled`, whatever becomes of the others: their messages are told.
pub(super) async fn copy_all(job: &CopyJob, hold: &Hold, filled: &mut Vec<Filled>) -> Result<(Lsn, Lsn), Broken> {
    let SinkAddress::Kafka(cluster) = &job.link.address else {
        return Err(Broken::Again("the sink is not Kafka".to_owned()));
    };
    // All that ends here is before the snapshot; the journal keeps what comes after.
    hold.set(job.shared.stream.received().min(job.shared.journal.held().map_or(Lsn::ZERO, |held| held.end.end_lsn)));
    let snapshot = Snapshot::export(&job.url, &job.slot, job.connections).await?;
    let lsn = snapshot.lsn();
    let tables: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].target.to_string()).collect();
    info!(sink = %job.link.name, %lsn, tables = %tables.join(", "), "copying");
    // All at once, as soon as may be: what empties or rewrites a table hides its rows from the snapshot.
    let mut leaves = Vec::new();
    for &plan_index in &job.plans {
        leaves.push(snapshot.open(&job.link.plans[plan_index].from).await?);
    }
    changed(job, &snapshot).await?;
    let mut whole_from = lsn;
    for (&plan_index, leaves) in job.plans.iter().zip(&leaves) {
        let loader = KafkaLoader::new(cluster.clone(), &job.link.source, job.epoch, &job.link.plans[plan_index], lsn);
        let loader = match loader.await {
            Ok(loader) => loader,
            // What came since joins it to the stream, if the journal has that.
            Err(LoadError::There { lsn, until }) if job.shared.journal.reader(lsn).is_ok() => {
                filled.push(Filled { plan_index, lsn, until });
                continue;
            }
            Err(error) => return Err(broken(job, plan_index, error)),
        };
        job.observed.table_state(plan_index, TableState::Copying);
        let rows = copy_table(job, plan_index, leaves, &snapshot, &loader).await?;
        let until = snapshot.end(&job.url).await?;
        loader.finish(until, rows).await.map_err(|error| broken(job, plan_index, error))?;
        whole_from = whole_from.max(until);
        job.observed.table_state(plan_index, TableState::Catchup);
        job.observed.copied(plan_index);
        filled.push(Filled { plan_index, lsn, until });
    }
    Ok((lsn, whole_from))
}

/// Rows have the columns that the snapshot shows, as the changes have that come after it.
async fn changed(job: &CopyJob, snapshot: &Snapshot) -> Result<(), Broken> {
    let Some(reader) = snapshot.readers().first() else { return Ok(()) };
    let names: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].from.clone()).collect();
    let layouts = read_layouts(reader, &names).await.map_err(|error| Broken::Again(format!("source: {error}")))?;
    let is_changed = |plan: &&usize| {
        let plan = &job.link.plans[**plan];
        layouts.get(&plan.from).is_none_or(|now| !is_planned(plan, now))
    };
    match job.plans.iter().find(is_changed) {
        Some(&plan_index) => Err(Broken::Changed { plan_index, at: snapshot.lsn() }),
        None => Ok(()),
    }
}

async fn copy_table(
    job: &CopyJob,
    plan_index: usize,
    leaves: &[Leaf],
    snapshot: &Snapshot,
    loader: &KafkaLoader,
) -> Result<u64, Broken> {
    let copying = Copying {
        plan_index,
        chunks: snapshot::cut(leaves, &[]),
        estimated: leaves.iter().map(|leaf| leaf.estimated_rows).sum(),
        copied: AtomicU64::new(0),
        next: AtomicUsize::new(0),
    };
    copying.report(job, 0);
    try_join_all(snapshot.readers().iter().map(|reader| copying.run(job, loader, reader))).await?;
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
    fn report(&self, job: &CopyJob, rows: u64) {
        let copied = self.copied.fetch_add(rows, Ordering::Relaxed) + rows;
        job.observed.copying(self.plan_index, copied, self.estimated.max(copied));
        job.observed.tables[self.plan_index].snapshot_rows.inc_by(rows);
    }

    /// One connection takes chunk after chunk.
    async fn run(&self, job: &CopyJob, loader: &KafkaLoader, reader: &Client) -> Result<(), Broken> {
        let failed = |error| broken(job, self.plan_index, error);
        let mut lane = loader.lane(reader).map_err(failed)?;
        while let Some(chunk) = self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            lane.load(chunk, |rows| self.report(job, rows)).await.map_err(failed)?;
        }
        Ok(())
    }
}

fn broken(job: &CopyJob, plan_index: usize, error: LoadError) -> Broken {
    match error {
        LoadError::Fenced => Broken::Fenced,
        LoadError::Source(error) => Broken::Again(format!("source: {}", describe(&error))),
        LoadError::Passing(message) => Broken::Again(format!("sink \"{}\": {message}", job.link.name)),
        LoadError::Row(message) => Broken::Table { plan_index, message },
        LoadError::There { lsn, .. } => {
            let message = format!(
                "its topic has the table as of {lsn}, and the journal, which had what came since, does not any more; its \
                 rows would be told twice. {COPY_INTO_TOPIC_ANEW}"
            );
            Broken::Table { plan_index, message }
        }
    }
}
