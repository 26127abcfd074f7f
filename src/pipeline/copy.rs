//! First copies: tables that a mapping names and a sink does not hold yet, taken while everything else streams on.
//!
//! A temporary slot exports a snapshot; its consistent point L is where all tables of this copy stand afterwards. Tables
//! are copied parents first, each in ranges of physical blocks over several connections. What the stream brings for them
//! meanwhile waits in the journal, which a hold keeps. At the end all of them join the stream together.
//!
//! Each chunk is noted at the sink in the transaction that brings its rows. A copy that was cut short goes on through a
//! later snapshot from there, see [`resume`]; where that would not be exact it begins anew, and the rows that it had written
//! into a table that was empty before are cleared first.

mod clickhouse;
mod gone;
mod kafka;
mod resume;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use futures_util::future::try_join_all;
use tokio::sync::{mpsc, watch};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::{info, warn};

use super::applier::{SourceShared, Tables};
use super::drift::Drift;
use super::link::SinkLink;
use super::{End, Observed};
use crate::diagnostic::chain;
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::postgres::error::describe;
use crate::postgres::url::PgUrl;
use crate::retry::Backoff;
use crate::sink::any::{SinkAddress, SinkSession};
use crate::sink::postgres::load::{LoadError, Loader, TableLoad};
use crate::sink::state::TableState;
use crate::source::snapshot::{self, Chunk, Snapshot, SnapshotError};
use crate::telemetry::handles::Stage;
use resume::Outset;

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
    /// Go on, after a pause, from what the sink holds by then.
    Again(String),
    /// The same, but this table does not go on: what it has stands in the way.
    Anew {
        plan_index: usize,
        message: String,
    },
    /// This table is not what its plan was made for.
    Changed {
        plan_index: usize,
        at: Lsn,
    },
    /// This table cannot be copied; the others can.
    Table {
        plan_index: usize,
        message: String,
    },
    Fenced,
}

/// A table that is in, and joins the stream by itself.
struct Filled {
    plan_index: usize,
    /// The copy's point.
    lsn: Lsn,
    /// Where it ended.
    until: Lsn,
}

impl From<SnapshotError> for Broken {
    fn from(error: SnapshotError) -> Self {
        Broken::Again(format!("source: {}", chain(&error)))
    }
}

/// Copies until all tables are in or cannot be.
pub async fn run(mut job: CopyJob, hold: Hold, joined: mpsc::Sender<Tables>) -> End {
    let mut backoff = Backoff::new(u64::from(std::process::id()) ^ 0x5eed);
    let mut anew = BTreeSet::new();
    while !job.plans.is_empty() {
        if *job.stop.borrow() {
            return End::Stopped;
        }
        let (mut stop, mut filled) = (job.stop.clone(), Vec::new());
        let attempt = tokio::select! {
            attempt = attempt(&job, &hold, &mut anew, &mut filled) => attempt,
            _ = stop.changed() => return End::Stopped,
        };
        for Filled { plan_index, lsn, until } in filled {
            job.plans.retain(|&plan| plan != plan_index);
            let hold = job.shared.journal.hold("catch up");
            hold.set(lsn);
            let _ = joined.send(Tables { plans: vec![plan_index], lsn, until, hold }).await;
        }
        match attempt {
            Ok(_) if job.plans.is_empty() => return End::Stopped,
            Ok((lsn, until)) => {
                let tables = Tables { plans: std::mem::take(&mut job.plans), lsn, until, hold };
                // Nobody receives only when the daemon is on its way out.
                let _ = joined.send(tables).await;
                return End::Stopped;
            }
            Err(Broken::Fenced) => return End::fenced(&job.link.name),
            Err(Broken::Changed { plan_index, at }) => {
                let plan = &job.link.plans[plan_index];
                let (source, table) = (plan.source.clone(), plan.from.clone());
                return End::Drift(Drift { source, table, at, why: "it changed before its copy began".to_owned() });
            }
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
            Err(Broken::Anew { plan_index, message }) => {
                let target = &job.link.plans[plan_index].target;
                warn!(sink = %job.link.name, table = %target, error = %message, "copy does not go on from what it has");
                anew.insert(plan_index);
            }
            Err(Broken::Again(message)) => {
                job.observed.error(Stage::Snapshot, "copy", &job.link.name, &message);
                warn!(sink = %job.link.name, error = %message, "copy was cut short, going on from what it has");
                if super::source::pause(backoff.next().unwrap_or_default(), &mut job.stop).await {
                    return End::Stopped;
                }
            }
        }
    }
    End::Stopped
}

/// One attempt at all tables. Answers where they stand and from where on they are whole.
async fn attempt(
    job: &CopyJob,
    hold: &Hold,
    anew: &mut BTreeSet<usize>,
    filled: &mut Vec<Filled>,
) -> Result<(Lsn, Lsn), Broken> {
    match job.link.address {
        SinkAddress::Postgres(_) => copy_all(job, hold, anew).await,
        SinkAddress::ClickHouse(..) => clickhouse::copy_all(job, hold).await,
        SinkAddress::Kafka(_) => kafka::copy_all(job, hold, filled).await,
    }
}

/// One attempt at all tables, under one snapshot. Tables in `anew` leave it once they have begun.
async fn copy_all(job: &CopyJob, hold: &Hold, anew: &mut BTreeSet<usize>) -> Result<(Lsn, Lsn), Broken> {
    let mut control = connect(job).await?;
    let memory = resume::recall(job, &mut control, anew).await?;
    // All that ends here is before the snapshot; the journal keeps what comes after, and what tables that go on need.
    let received =
        job.shared.stream.received().min(job.shared.journal.held().map_or(Lsn::ZERO, |held| held.end.end_lsn));
    hold.set(memory.oldest().map_or(received, |oldest| oldest.min(received)));
    let snapshot = Snapshot::export(&job.url, &job.slot, job.connections).await?;
    let lsn = snapshot.lsn();
    let tables: Vec<_> = job.plans.iter().map(|&plan| job.link.plans[plan].target.to_string()).collect();
    info!(sink = %job.link.name, %lsn, tables = %tables.join(", "), "copying");
    let outsets = memory.decide(job, &mut control, &snapshot, &ordered(job)).await?;
    anew.clear();
    if outsets.iter().all(|outset| outset.resumed.is_none()) {
        hold.set(received);
    }
    go_on(job, &outsets, &snapshot, hold).await?;
    let mut loaders = vec![Loader::new(control, &job.link.source, job.epoch, job.link.mask_key.clone(), lsn)];
    while loaders.len() < job.connections {
        let client = connect(job).await?;
        loaders.push(Loader::new(client, &job.link.source, job.epoch, job.link.mask_key.clone(), lsn));
    }
    for outset in outsets {
        copy_table(job, outset, &snapshot, &mut loaders).await?;
    }
    let targets: Vec<&Plan> = job.plans.iter().map(|&plan| job.link.plans[plan].as_ref()).collect();
    let until = snapshot.end(&job.url).await?;
    control_of(&mut loaders)?.finish(&targets, until).await.map_err(|error| broken(job, None, error))?;
    for &plan_index in &job.plans {
        job.observed.table_state(plan_index, TableState::Catchup);
        job.observed.copied(plan_index);
    }
    Ok((lsn, until))
}

/// Brings the tables that go on as near to the snapshot as is done without reading it.
async fn go_on(job: &CopyJob, outsets: &[Outset], snapshot: &Snapshot, hold: &Hold) -> Result<(), Broken> {
    let resumed = outsets.iter().filter_map(|outset| Some((outset.plan_index, outset.resumed.as_ref()?.lsn)));
    let resumed: Vec<_> = resumed.collect();
    if resumed.is_empty() {
        return Ok(());
    }
    for &(plan_index, _) in &resumed {
        job.observed.table_state(plan_index, TableState::Copying);
    }
    // A quiet source would be long in getting there.
    snapshot.end(&job.url).await?;
    gone::remove(job, &resumed, snapshot.lsn(), hold).await
}

async fn connect(job: &CopyJob) -> Result<Client, Broken> {
    match job.link.connect("tailwater copy").await.map_err(Broken::Again)? {
        SinkSession::Postgres(client) => Ok(client),
        SinkSession::ClickHouse(_) | SinkSession::Kafka(_) => Err(Broken::Again("the sink is not Postgres".to_owned())),
    }
}

fn control_of(loaders: &mut [Loader]) -> Result<&mut Loader, Broken> {
    loaders.first_mut().ok_or_else(|| Broken::Again("no connection".to_owned()))
}

/// Parents before children, so that foreign keys hold at every step.
fn ordered(job: &CopyJob) -> Vec<usize> {
    let order = crate::sink::postgres::parents_first(&job.link.plans);
    order.into_iter().filter(|plan| job.plans.contains(plan)).collect()
}

async fn copy_table(job: &CopyJob, outset: Outset, snapshot: &Snapshot, loaders: &mut [Loader]) -> Result<(), Broken> {
    let Outset { plan_index, leaves, marks, resumed } = outset;
    let plan = &job.link.plans[plan_index];
    let (table, chunks) = match &resumed {
        Some(stored) => {
            let copied: Vec<_> = stored.chunks.iter().map(|chunk| chunk.range.clone()).collect();
            (TableLoad::resumed(plan, marks, stored), snapshot::cut(&leaves, &copied))
        }
        None => {
            let mut table = TableLoad::fresh(plan, marks);
            let begun = control_of(loaders)?.begin_table(&mut table).await;
            begun.map_err(|error| broken(job, Some(plan_index), error))?;
            (table, snapshot::cut(&leaves, &[]))
        }
    };
    job.observed.table_state(plan_index, TableState::Copying);
    let copying = Copying {
        plan_index,
        table,
        chunks,
        is_resumed: resumed.is_some(),
        copied: AtomicU64::new(resumed.map_or(0, |stored| stored.rows)),
        estimated: leaves.iter().map(|leaf| leaf.estimated_rows).sum(),
        next: AtomicUsize::new(0),
    };
    copying.report(job, 0);
    let pairs = loaders.iter_mut().zip(snapshot.readers());
    try_join_all(pairs.map(|(loader, reader)| copy_chunks(job, &copying, reader, loader))).await?;
    Ok(())
}

/// A table whose chunks are under way.
struct Copying<'a> {
    plan_index: usize,
    table: TableLoad<'a>,
    chunks: Vec<Chunk>,
    is_resumed: bool,
    /// Rows of ranges that were not copied before, those of earlier attempts included.
    copied: AtomicU64,
    estimated: u64,
    next: AtomicUsize,
}

impl Copying<'_> {
    fn report(&self, job: &CopyJob, rows: u64) {
        let copied = self.copied.fetch_add(rows, Ordering::Relaxed) + rows;
        job.observed.copying(self.plan_index, copied, self.estimated.max(copied));
    }

    /// Rows of the earlier attempt may be in the way of those that come, where something beside the key is unique.
    fn broken(&self, job: &CopyJob, error: LoadError) -> Broken {
        let is_conflict = match &error {
            LoadError::Sink(error) => error
                .code()
                .is_some_and(|code| code.code().starts_with("23") || code == &SqlState::T_R_DEADLOCK_DETECTED),
            LoadError::Source(_) | LoadError::Row(_) | LoadError::Fenced => false,
        };
        match broken(job, Some(self.plan_index), error) {
            Broken::Again(message) | Broken::Table { message, .. } if self.is_resumed && is_conflict => {
                Broken::Anew { plan_index: self.plan_index, message }
            }
            broken => broken,
        }
    }
}

/// One pair of connections takes chunk after chunk.
async fn copy_chunks(job: &CopyJob, copying: &Copying<'_>, reader: &Client, loader: &mut Loader) -> Result<(), Broken> {
    while let Some(chunk) = copying.chunks.get(copying.next.fetch_add(1, Ordering::Relaxed)) {
        let report = |rows: u64| copying.report(job, if chunk.since.is_none() { rows } else { 0 });
        let rows = loader.load(&copying.table, chunk, reader, report).await;
        let rows = rows.map_err(|error| copying.broken(job, error))?;
        job.observed.tables[copying.plan_index].snapshot_rows.inc_by(rows);
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
