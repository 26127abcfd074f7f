//! The first copy of a table goes on while everything else streams, whatever is in flight.

use std::sync::Arc;

use anyhow::{Result, ensure};

use crate::support::checker::Checker;
use crate::support::cluster::Options;
use crate::support::daemon::Home;
use crate::support::oracle::Oracle;
use crate::support::pair::{DATABASE, Pair, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};
use crate::support::workload::{Load, SEED_SQL, TABLES, Workload, mirror_mapping};

/// Copies under load, with the oracle and the checker watching from the moment when all tables stream.
async fn copied_under_load(version: Version) -> Result<()> {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let pair = Pair::bare("snapshot", version, Options::default()).await?;
    let oracle = Arc::new(Oracle::start(&pair.source, DATABASE, TABLES).await?);
    pair.source.execute(DATABASE, SEED_SQL).await?;
    let load = Load::start(&pair.source, DATABASE, Workload::ALL, &mut random);

    // Some tables first, the rest added to the mapping while those stream.
    let config = Home::pair_config(&pair.source, &pair.sink, DATABASE);
    pair.home.configure(&config, &[("mapping.toml", &mirror_mapping(&TABLES[..2]))])?;
    pair.home.setup()?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    pair.home.configure(&config, &[("mapping.toml", &mirror_mapping(TABLES))])?;
    pair.home.setup()?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;

    let copied: Vec<String> = daemon
        .metrics()?
        .into_iter()
        .filter(|(name, rows)| name.starts_with("tailwater_snapshot_rows_total") && *rows > 0.0)
        .map(|(name, _)| name)
        .collect();
    ensure!(!copied.iter().any(|name| name.contains("accounts")), "copied again: {copied:?}");

    let checker = Checker::start(&pair.source, &pair.sink, DATABASE, &oracle);
    eventually(SOON, "twenty comparisons under load", async || {
        checker.verdict()?;
        let tally = checker.tally();
        Ok(if tally.comparisons >= 20 { Look::Yes(()) } else { Look::NotYet(format!("{tally:?}")) })
    })
    .await?;
    load.stop().await?;
    checker.stop().await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_14_are_copied_under_load() -> Result<()> {
    copied_under_load(Version::V14).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_15_are_copied_under_load() -> Result<()> {
    copied_under_load(Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_16_are_copied_under_load() -> Result<()> {
    copied_under_load(Version::V16).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_17_are_copied_under_load() -> Result<()> {
    copied_under_load(Version::V17).await
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_18_are_copied_under_load() -> Result<()> {
    copied_under_load(Version::V18).await
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_that_is_killed_goes_on_and_doubles_nothing() -> Result<()> {
    let mut random = Random::new(Random::seed_from_environment());
    let pair = Pair::start("killed-copy", Version::V15, Options::default()).await?;
    let rows = "INSERT INTO ledger SELECT 1, line, 1, repeat('x', 100) FROM generate_series(1, 300000) line";
    pair.source.execute(DATABASE, rows).await?;
    let load = Load::start(&pair.source, DATABASE, &[Workload::Churn("churn"), Workload::Bank], &mut random);
    let mut daemon = pair.home.run()?;
    let sink = pair.sink().await?;
    for _ in 0..3 {
        eventually(SOON, "a copy is under way", async || {
            let sql = "SELECT count(*) FILTER (WHERE state::text = 'copying'), count(*) FROM tailwater.table_state";
            let row = sink.query_one(sql, &[]).await?;
            let (copying, all): (i64, i64) = (row.get(0), row.get(1));
            let late = all > 0 && crate::support::daemon::tables_not_streaming(&sink).await? == 0;
            let under_way = copying > 0 || late;
            Ok(if under_way { Look::Yes(()) } else { Look::NotYet(format!("{copying} of {all}")) })
        })
        .await?;
        daemon.kill9();
        daemon = pair.home.run()?;
    }
    pair.catch_up(&mut daemon).await?;
    load.stop().await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await
}
