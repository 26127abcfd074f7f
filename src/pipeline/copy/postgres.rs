//! The first copy into Postgres: all tables under one snapshot, parents first, the bytes of one COPY into another.
//!
//! Each chunk is noted at the sink in the transaction that brings its rows. A copy that was cut short goes on through a
//! later snapshot from there, see [`resume`]; where that would not be exact it begins anew, and the rows that it had written
//! into a table that was empty before are cleared first.

use std::collections::BTreeSet;

use futures_util::future::try_join_all;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::resume::{self, Outset};
use super::under_way::{UnderWay, export, received, show_filled};
use super::{Broken, CopyJob, gone};
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::postgres::error::describe;
use crate::sink::any::SinkSession;
use crate::sink::postgres::load::{LoadError, Loader, TableLoad};
use crate::sink::state::TableState;
use crate::source::snapshot::{self, Snapshot};

/// One attempt at all tables, under one snapshot. Tables in `anew` leave it once they have begun.
pub(super) async fn copy_all(job: &CopyJob, hold: &Hold, anew: &mut BTreeSet<usize>) -> Result<(Lsn, Lsn), Broken> {
    let mut control = connect(job).await?;
    let memory = resume::recall(job, &mut control, anew).await?;
    let received = received(job);
    // Tables that go on need what came since they began.
    hold.set(memory.oldest().map_or(received, |oldest| oldest.min(received)));
    let snapshot = export(job).await?;
    let lsn = snapshot.lsn();
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
        show_filled(job, plan_index);
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

pub(super) async fn connect(job: &CopyJob) -> Result<Client, Broken> {
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
    let is_resumed = resumed.is_some();
    let under_way = UnderWay::new(job, plan_index, &leaves, chunks, resumed.map_or(0, |stored| stored.rows));
    let copying = Copying { under_way, table, is_resumed };
    let pairs = loaders.iter_mut().zip(snapshot.readers());
    try_join_all(pairs.map(|(loader, reader)| copy_chunks(&copying, reader, loader))).await?;
    Ok(())
}

/// A table whose chunks are under way.
struct Copying<'a> {
    under_way: UnderWay<'a>,
    table: TableLoad<'a>,
    is_resumed: bool,
}

impl Copying<'_> {
    /// Rows of the earlier attempt may be in the way of those that come, where something beside the key is unique.
    fn broken(&self, error: LoadError) -> Broken {
        let is_conflict = match &error {
            LoadError::Sink(error) => error
                .code()
                .is_some_and(|code| code.code().starts_with("23") || code == &SqlState::T_R_DEADLOCK_DETECTED),
            LoadError::Source(_) | LoadError::Row(_) | LoadError::Fenced => false,
        };
        let plan_index = self.under_way.plan_index;
        match broken(self.under_way.job, Some(plan_index), error) {
            Broken::Again(message) | Broken::Table { message, .. } if self.is_resumed && is_conflict => {
                Broken::Anew { plan_index, message }
            }
            broken => broken,
        }
    }
}

/// One pair of connections takes chunk after chunk.
async fn copy_chunks(copying: &Copying<'_>, reader: &Client, loader: &mut Loader) -> Result<(), Broken> {
    let Copying { under_way, table, .. } = copying;
    while let Some((_, chunk)) = under_way.take() {
        let report = |rows: u64| under_way.advance(if chunk.since.is_none() { rows } else { 0 });
        let rows = loader.load(table, chunk, reader, report).await;
        let rows = rows.map_err(|error| copying.broken(error))?;
        under_way.metrics().snapshot_rows.inc_by(rows);
    }
    Ok(())
}

pub(super) fn broken(job: &CopyJob, plan_index: Option<usize>, error: LoadError) -> Broken {
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
