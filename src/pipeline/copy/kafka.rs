//! The first copy into Kafka: each table is one transaction of its own producer, so that of a copy that is cut short nobody
//! sees anything, and none of its messages comes twice.

use futures_util::future::try_join_all;
use tokio_postgres::Client;

use super::under_way::{UnderWay, broken, export, open_all, received, show_filled};
use super::{Broken, CopyJob, Filled};
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::pipeline::drift::COPY_INTO_TOPIC_ANEW;
use crate::pipeline::drift::watch::is_planned;
use crate::sink::any::SinkAddress;
use crate::sink::kafka::load::{Begun, KafkaLoader};
use crate::source::layout::read_layouts;
use crate::source::snapshot::{self, Leaf, Snapshot};

/// One attempt at all tables. Those that came through are `filled`, whatever becomes of the others: their messages are told.
pub(super) async fn copy_all(job: &CopyJob, hold: &Hold, filled: &mut Vec<Filled>) -> Result<(Lsn, Lsn), Broken> {
    let SinkAddress::Kafka(cluster) = &job.link.address else {
        return Err(Broken::Again("the sink is not Kafka".to_owned()));
    };
    hold.set(received(job));
    let snapshot = export(job).await?;
    let lsn = snapshot.lsn();
    let leaves = open_all(job, &snapshot).await?;
    changed(job, &snapshot).await?;
    let mut whole_from = lsn;
    for (&plan_index, leaves) in job.plans.iter().zip(&leaves) {
        let plan = &job.link.plans[plan_index];
        let begun = KafkaLoader::begin(cluster.clone(), &job.link.source, job.epoch, plan, lsn).await;
        let loader = match begun.map_err(|error| broken(job, plan_index, error))? {
            Begun::Loading(loader) => loader,
            // What came since joins it to the stream, if the journal has that.
            Begun::There { lsn, until } if job.shared.journal.reader(lsn).is_ok() => {
                filled.push(Filled { plan_index, lsn, until });
                continue;
            }
            Begun::There { lsn, .. } => return Err(would_be_told_twice(plan_index, lsn)),
        };
        let rows = copy_table(job, plan_index, leaves, &snapshot, &loader).await?;
        let until = snapshot.end(&job.url).await?;
        loader.finish(until, rows).await.map_err(|error| broken(job, plan_index, error))?;
        whole_from = whole_from.max(until);
        show_filled(job, plan_index);
        filled.push(Filled { plan_index, lsn, until });
    }
    Ok((lsn, whole_from))
}

fn would_be_told_twice(plan_index: usize, lsn: Lsn) -> Broken {
    let message = format!(
        "its topic has the table as of {lsn}, and the journal, which had what came since, does not any more; its rows would \
         be told twice. {COPY_INTO_TOPIC_ANEW}"
    );
    Broken::Table { plan_index, message }
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
    let under_way = UnderWay::new(job, plan_index, leaves, snapshot::cut(leaves, &[]), 0);
    try_join_all(snapshot.readers().iter().map(|reader| copy_chunks(&under_way, loader, reader))).await?;
    Ok(under_way.copied())
}

/// One connection takes chunk after chunk.
async fn copy_chunks(under_way: &UnderWay<'_>, loader: &KafkaLoader, reader: &Client) -> Result<(), Broken> {
    let report = |rows| {
        under_way.advance(rows);
        under_way.metrics().snapshot_rows.inc_by(rows);
    };
    let failed = |error| broken(under_way.job, under_way.plan_index, error);
    let mut lane = loader.lane(reader).map_err(failed)?;
    while let Some((_, chunk)) = under_way.take() {
        lane.load(chunk, report).await.map_err(failed)?;
    }
    Ok(())
}
