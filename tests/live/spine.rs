//! The main job, source to sink, for every major that may be a source.

use anyhow::{Result, ensure};

use crate::support::cluster::Options;
use crate::support::pair::{DATABASE, Pair};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::workload::{EVERY_KIND_OF_CHANGE, Load, Workload};

async fn mirrors_what_is_there_and_what_comes(version: Version) -> Result<()> {
    let pair = Pair::start("spine", version, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;

    pair.source.execute(DATABASE, EVERY_KIND_OF_CHANGE).await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;

    // What comes while nobody listens waits for the next start.
    daemon.terminate()?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1; DELETE FROM accounts_a WHERE id = 1").await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    daemon.terminate()
}

#[tokio::test]
async fn source_14_is_mirrored() -> Result<()> {
    mirrors_what_is_there_and_what_comes(Version::V14).await
}

#[tokio::test]
async fn source_15_is_mirrored() -> Result<()> {
    mirrors_what_is_there_and_what_comes(Version::V15).await
}

#[tokio::test]
async fn source_16_is_mirrored() -> Result<()> {
    mirrors_what_is_there_and_what_comes(Version::V16).await
}

#[tokio::test]
async fn source_17_is_mirrored() -> Result<()> {
    mirrors_what_is_there_and_what_comes(Version::V17).await
}

#[tokio::test]
async fn source_18_is_mirrored() -> Result<()> {
    mirrors_what_is_there_and_what_comes(Version::V18).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_drains_and_exits_0() -> Result<()> {
    let mut random = Random::new(Random::seed_from_environment());
    let pair = Pair::start("drain", Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let load = Load::start(&pair.source, DATABASE, Workload::ALL, &mut random);
    for _ in 0..3 {
        pair.catch_up(&mut daemon).await?;
        daemon.terminate()?;
        daemon = pair.home.run()?;
    }
    ensure!(load.stop().await? > 0, "there was no load");
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await
}

#[tokio::test]
async fn setup_twice_changes_nothing() -> Result<()> {
    let pair = Pair::start("setup", Version::V15, Options::default()).await?;
    let source = pair.source().await?;
    let slot = "SELECT slot_name || confirmed_flush_lsn::text FROM pg_replication_slots";
    let before: String = source.query_one(slot, &[]).await?.get(0);
    pair.home.setup()?;
    let after: String = source.query_one(slot, &[]).await?.get(0);
    ensure!(before == after, "the slot was {before}, and is {after}");
    Ok(())
}
