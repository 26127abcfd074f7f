//! What every copy does, whatever the sink: one snapshot for all tables, and each table's chunks taken by whoever is free.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tracing::info;

use super::{Broken, CopyJob};
use crate::lsn::Lsn;
use crate::postgres::error::describe;
use crate::sink::load::LoadError;
use crate::sink::state::TableState;
use crate::source::snapshot::{Chunk, Leaf, Snapshot};
use crate::telemetry::handles::TableMetrics;

/// All that ends before here is before a snapshot that is exported next; the journal keeps what comes after.
pub(super) fn received(job: &CopyJob) -> Lsn {
    job.shared.stream.received().min(job.shared.journal.held().map_or(Lsn::ZERO, |held| held.end.end_lsn))
}

/// The snapshot under which one attempt copies all tables.
pub(super) async fn export(job: &CopyJob) -> Result<Snapshot, Broken> {
    let snapshot = Snapshot::export(&job.url, &job.slot, job.connections).await?;
    let tables: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].target.to_string()).collect();
    info!(sink = %job.link.name, lsn = %snapshot.lsn(), tables = %tables.join(", "), "copying");
    Ok(snapshot)
}

/// All tables at once, as soon as may be: what empties or rewrites a table hides its rows from the snapshot, and a table that
/// was opened cannot be emptied.
pub(super) async fn open_all(job: &CopyJob, snapshot: &Snapshot) -> Result<Vec<Vec<Leaf>>, Broken> {
    let mut leaves = Vec::new();
    for &plan_index in &job.plans {
        leaves.push(snapshot.open(&job.link.plans[plan_index].from).await?);
    }
    Ok(leaves)
}

/// The table is in, up to what came during its copy.
pub(super) fn show_filled(job: &CopyJob, plan_index: usize) {
    job.observed.table_state(plan_index, TableState::Catchup);
    job.observed.copied(plan_index);
}

/// A table whose chunks are under way.
pub(super) struct UnderWay<'a> {
    pub job: &'a CopyJob,
    pub plan_index: usize,
    chunks: Vec<Chunk>,
    /// Rows of ranges that were not copied before, those of earlier attempts included.
    copied: AtomicU64,
    estimated: u64,
    next: AtomicUsize,
}

impl<'a> UnderWay<'a> {
    /// `chunks` are what is to be copied of `leaves`, of which so many rows are `copied` already.
    pub fn new(job: &'a CopyJob, plan_index: usize, leaves: &[Leaf], chunks: Vec<Chunk>, copied: u64) -> Self {
        job.observed.table_state(plan_index, TableState::Copying);
        let under_way = UnderWay {
            job,
            plan_index,
            chunks,
            copied: AtomicU64::new(copied),
            estimated: leaves.iter().map(|leaf| leaf.estimated_rows).sum(),
            next: AtomicUsize::new(0),
        };
        under_way.advance(0);
        under_way
    }

    /// The next chunk that nobody has taken yet, and its place among all.
    pub fn take(&self) -> Option<(usize, &Chunk)> {
        let place = self.next.fetch_add(1, Ordering::Relaxed);
        Some((place, self.chunks.get(place)?))
    }

    /// Shows that the copy is so many rows further.
    pub fn advance(&self, rows: u64) {
        let copied = self.copied.fetch_add(rows, Ordering::Relaxed) + rows;
        self.job.observed.copying(self.plan_index, copied, self.estimated.max(copied));
    }

    pub fn metrics(&self) -> &TableMetrics {
        &self.job.observed.tables[self.plan_index]
    }

    pub fn copied(self) -> u64 {
        self.copied.into_inner()
    }
}

/// What an error of a sink that writes each row itself means for its table.
pub(super) fn broken(job: &CopyJob, plan_index: usize, error: LoadError) -> Broken {
    match error {
        LoadError::Fenced => Broken::Fenced,
        LoadError::Source(error) => Broken::Again(format!("source: {}", describe(&error))),
        LoadError::Passing(message) => Broken::Again(format!("sink \"{}\": {message}", job.link.name)),
        LoadError::Row(message) => Broken::Table { plan_index, message },
    }
}
