//! First copies: tables that a mapping names and a sink does not hold yet, taken while everything else streams on.
//!
//! A temporary slot exports a snapshot; its consistent point L is where all tables of this copy stand afterwards. Tables
//! are copied parents first, each in ranges of physical blocks over several connections. What the stream brings for them
//! meanwhile waits in the journal, which a hold keeps. At the end all of them join the stream together.
//!
//! A crash loses the exported snapshot, so a copy that was cut short begins anew: the rows that it had written into a
//! table that was empty before are cleared first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tracing::{info, warn};

use super::applier::{SourceShared, Tables};
use super::link::SinkLink;
use super::{End, Observed};
use crate::diagnostic::chain;
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::postgres::error::describe;
use crate::postgres::url::PgUrl;
use crate::retry::Backoff;
use crate::sink::any::SinkSession;
use crate::sink::postgres::load::{LoadError, Loader};
use crate::sink::state::TableState;
use crate::source::snapshot::{Chunk, Snapshot, SnapshotError};
use crate::telemetry::handles::Stage;

/// What is to be copied, from where to where.
pub struct CopyJob {
    pub link: Arc<SinkLink>,
    pub observed: Arc<Observed>,
    pub url: PgUrl,
    pub connections: usize,
    /// The source's slot: its name is the stem of the temporary one's.
    pub slot: String,
    pub epoch: i64,
    pub plans: Vec<usize>,
    pub shared: Arc<SourceShared>,
    pub stop: watch::Receiver<bool>,
}

/// Why a copy did not come to its end.
enum Broken {
    /// From the start, after a pause.
    Again(String),
    /// This table cannot be copied; the others can.
    Table {
        plan_index: usize,
        message: String,
    },
    Fenced,
}

impl From<SnapshotError> for Broken {
    fn from(error: SnapshotError) -> Self {
        Broken::Again(format!("source: {}", chain(&error)))
    }
}

/// Copies until all tables are in or cannot be.
pub async fn run(mut job: CopyJob, hold: Hold, joined: mpsc::Sender<Tables>) -> End {
    let mut backoff = Backoff::new(u64::from(std::process::id()) ^ 0x5eed);
    while !job.plans.is_empty() {
        if *job.stop.borrow() {
            return End::Stopped;
        }
        let mut stop = job.stop.clone();
        let attempt = tokio::select! {
            attempt = copy_all(&job, &hold) => attempt,
            _ = stop.changed() => return End::Stopped,
        };
        match attempt {
            Ok((lsn, until)) => {
                let tables = Tables { plans: std::mem::take(&mut job.plans), lsn, until, hold };
                // Nobody receives only when the daemon is on its way out.
                let _ = joined.send(tables).await;
                return End::Stopped;
            }
            Err(Broken::Fenced) => return End::fenced(&job.link.name),
            Err(Broken::Table { plan_index, message }) => {
                let target = job.link.plans[plan_index].target.to_string();
                job.observed.error(Stage::Snapshot, "table", &target, &message);
                if job.link.config.on_error == crate::config::OnError::Stop {
                    return End::Failed(format!("table \"{target}\" cannot be copied: {message}"));
                }
                warn!(sink = %job.link.name, table = %target, reason = %message, "table is quarantined");
                if job.link.quarantine(plan_index, &message).await.is_ok() {
                    job.plans.retain(|&plan| plan != plan_index);
                    job.observed.table_state(plan_index, TableState::Quarantined);
                }
            }
            Err(Broken::Again(message)) => {
                job.observed.error(Stage::Snapshot, "copy", &job.link.name, &message);
                warn!(sink = %job.link.name, error = %message, "copy was cut short, beginning anew");
                if super::source::pause(backoff.next().unwrap_or_default(), &mut job.stop).await {
                    return End::Stopped;
                }
            }
        }
    }
    End::Stopped
}

/// One attempt at all tables, under one snapshot.
async fn copy_all(job: &CopyJob, hold: &Hold) -> Result<(Lsn, Lsn), Broken> {
    // All that ends here is before the snapshot; the journal keeps what comes after.
    hold.set(job.shared.stream.received().min(job.shared.journal.held().map_or(Lsn::ZERO, |held| held.end.end_lsn)));
    let again = |message: String| Broken::Again(message);
    let snapshot = Snapshot::export(&job.url, &job.slot, job.connections).await?;
    let lsn = snapshot.lsn();
    let tables: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].target.to_string()).collect();
    info!(sink = %job.link.name, %lsn, tables = %tables.join(", "), "copying");
    let mut loaders = Vec::new();
    for _ in 0..job.connections {
        let SinkSession::Postgres(client) = job.link.connect("tailwater copy").await.map_err(again)? else {
            return Err(again("not a Postgres sink".to_owned()));
        };
        loaders.push(Loader::new(client, &job.link.source, job.epoch, job.link.mask_key.clone(), lsn));
    }
    for &plan_index in &ordered(job) {
        copy_table(job, plan_index, &snapshot, &mut loaders).await?;
    }
    let targets: Vec<&Plan> = job.plans.iter().map(|&plan| job.link.plans[plan].as_ref()).collect();
    let control = loaders.first().ok_or_else(|| again("no connection".to_owned()))?;
    let until = snapshot.end(&job.url).await?;
    control.finish(&targets, until).await.map_err(|error| broken(job, None, error))?;
    for &plan_index in &job.plans {
        job.observed.table_state(plan_index, TableState::Catchup);
        job.observed.copied(plan_index);
    }
    Ok((lsn, until))
}

/// Parents before children, so that foreign keys hold at every step.
fn ordered(job: &CopyJob) -> Vec<usize> {
    let order = crate::sink::postgres::parents_first(&job.link.plans);
    order.into_iter().filter(|plan| job.plans.contains(plan)).collect()
}

async fn copy_table(
    job: &CopyJob,
    plan_index: usize,
    snapshot: &Snapshot,
    loaders: &mut [Loader],
) -> Result<(), Broken> {
    let plan = &job.link.plans[plan_index];
    let failed = |error: LoadError| broken(job, Some(plan_index), error);
    let control = loaders.first_mut().ok_or_else(|| Broken::Again("no connection".to_owned()))?;
    let direct = control.begin_table(plan).await.map_err(failed)?;
    job.observed.table_state(plan_index, TableState::Copying);
    let chunks = snapshot.chunks(&plan.from).await?;
    let progress = Progress { copied: AtomicU64::new(0), estimated: chunks.estimated_rows, next: AtomicUsize::new(0) };
    job.observed.copying(plan_index, 0, progress.estimated);
    let workers = loaders
        .iter_mut()
        .zip(snapshot.readers())
        .map(|(loader, reader)| copy_chunks(job, plan_index, reader, loader, &chunks.chunks, &progress, direct));
    try_join_all(workers).await?;
    Ok(())
}

struct Progress {
    copied: AtomicU64,
    estimated: u64,
    next: AtomicUsize,
}

/// One pair of connections takes chunk after chunk.
async fn copy_chunks(
    job: &CopyJob,
    plan_index: usize,
    reader: &Client,
    loader: &mut Loader,
    chunks: &[Chunk],
    progress: &Progress,
    direct: bool,
) -> Result<(), Broken> {
    let plan = &job.link.plans[plan_index];
    while let Some(chunk) = chunks.get(progress.next.fetch_add(1, Ordering::Relaxed)) {
        let report = |rows: u64| {
            let copied = progress.copied.fetch_add(rows, Ordering::Relaxed) + rows;
            job.observed.copying(plan_index, copied, progress.estimated.max(copied));
        };
        let rows = loader.load(plan, chunk, reader, direct, report).await;
        let rows = rows.map_err(|error| broken(job, Some(plan_index), error))?;
        job.observed.tables[plan_index].snapshot_rows.inc_by(rows);
    }
    Ok(())
}

fn broken(job: &CopyJob, plan_index: Option<usize>, error: LoadError) -> Broken {
    match (error, plan_index) {
        (LoadError::Fenced, _) => Broken::Fenced,
        (LoadError::Source(error), _) => Broken::Again(format!("source: {}", describe(&error))),
        (LoadError::Row(message), Some(plan_index)) => Broken::Table { plan_index, message },
        (LoadError::Row(message), None) => Broken::Again(message),
        (LoadError::Sink(error), Some(plan_index)) => {
            let message = describe(&error);
            match error.code() {
                Some(code) if crate::retry::by_sqlstate(code.code()) == crate::retry::Retry::Never => {
                    Broken::Table { plan_index, message }
                }
                _ => Broken::Again(format!("sink \"{}\": {message}", job.link.name)),
            }
        }
        (LoadError::Sink(error), None) => Broken::Again(describe(&error)),
    }
}
