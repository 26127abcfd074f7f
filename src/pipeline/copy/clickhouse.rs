//! The first copy into ClickHouse: all tables under one snapshot, each chunk by whoever is free.
//!
//! A copy that was cut short begins anew: its rows are cleared if the table was empty before, since what the source has
//! deleted meanwhile would stay. Rows that are copied twice are one row each.

use futures_util::future::try_join_all;
use tokio_postgres::Client;

use super::under_way::{UnderWay, broken, export, open_all, received, show_filled};
use super::{Broken, CopyJob};
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::sink::any::SinkSession;
use crate::sink::clickhouse::load::{ClickHouseLoader, Landed, TableLoad};
use crate::source::snapshot::{self, Leaf, Snapshot};

/// One attempt at all tables.
pub(super) async fn copy_all(job: &CopyJob, hold: &Hold) -> Result<(Lsn, Lsn), Broken> {
    let SinkSession::ClickHouse(server) = job.link.connect("tailwater copy").await.map_err(Broken::Again)? else {
        unreachable!("a Postgres sink is copied into by its own way")
    };
    hold.set(received(job));
    let snapshot = export(job).await?;
    let lsn = snapshot.lsn();
    let loader = ClickHouseLoader::new(server, &job.link.source, job.epoch, job.link.mask_key.clone(), lsn);
    let leaves = open_all(job, &snapshot).await?;
    let mut rows = Vec::new();
    for (&plan_index, leaves) in job.plans.iter().zip(&leaves) {
        rows.push(copy_table(job, plan_index, leaves, &snapshot, &loader).await?);
    }
    let until = snapshot.end(&job.url).await?;
    for (&plan_index, rows) in job.plans.iter().zip(rows) {
        let finished = loader.finish(&job.link.plans[plan_index], until, rows).await;
        finished.map_err(|error| broken(job, plan_index, error))?;
        show_filled(job, plan_index);
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
    let table = loader.begin_table(&job.link.plans[plan_index]).await;
    let table = table.map_err(|error| broken(job, plan_index, error))?;
    let under_way = UnderWay::new(job, plan_index, leaves, snapshot::cut(leaves, &[]), 0);
    try_join_all(snapshot.readers().iter().map(|reader| copy_chunks(&under_way, &table, reader))).await?;
    Ok(under_way.copied())
}

/// One connection takes chunk after chunk.
async fn copy_chunks(under_way: &UnderWay<'_>, table: &TableLoad<'_>, reader: &Client) -> Result<(), Broken> {
    let report = |landed: Landed| {
        under_way.advance(landed.rows);
        under_way.metrics().snapshot_rows.inc_by(landed.rows);
        under_way.metrics().value_coerced.inc_by(landed.coerced);
    };
    let failed = |error| broken(under_way.job, under_way.plan_index, error);
    let mut lane = table.lane(reader);
    while let Some((place, chunk)) = under_way.take() {
        let range = u32::try_from(place).expect("a table has fewer than 2^32 ranges of blocks");
        lane.load(chunk, range, report).await.map_err(failed)?;
    }
    lane.end(report).await.map_err(failed)
}
