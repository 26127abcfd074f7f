//! That the support code itself can be trusted: clusters start, die and come back as the other tests assume.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::certificates::Certificates;
use crate::support::cluster::{Cluster, Options, Stop};
use crate::support::daemon::flushed;
use crate::support::oracle::{Oracle, digest};
use crate::support::postgres::Version;
use crate::support::process;
use crate::support::random::Random;
use crate::support::scratch::Scratch;
use crate::support::wait::{Look, eventually};
use crate::support::workload::{Load, SCHEMA, SEED_SQL, TABLES, Workload};

async fn count(cluster: &Cluster) -> Result<i64> {
    Ok(cluster.connect("postgres").await?.query_one("SELECT count(*) FROM kept", &[]).await?.get(0))
}

#[tokio::test]
async fn killed_cluster_comes_back_with_what_it_had_committed() -> Result<()> {
    let mut cluster = Cluster::new("killed")?;
    cluster.execute("postgres", "CREATE TABLE kept AS SELECT generate_series(1, 1000)").await?;
    let children = process::children(cluster.postmaster_pid().unwrap_or_default());
    ensure!(!children.is_empty(), "a running server has children");
    cluster.kill9();
    ensure!(children.iter().all(|pid| !process::is_alive(*pid)), "a killed server has none");
    ensure!(cluster.connect("postgres").await.is_err(), "and serves nobody");
    cluster.resume()?;
    ensure!(count(&cluster).await? == 1000);
    cluster.restart(Stop::Fast)?;
    cluster.restart(Stop::Immediate)?;
    ensure!(count(&cluster).await? == 1000);
    Ok(())
}

#[tokio::test]
async fn every_major_starts_with_logical_decoding() -> Result<()> {
    for version in Version::ALL {
        let cluster = Cluster::start("major", version, Options::default())?;
        let client = cluster.connect("postgres").await?;
        let number: String = client.query_one("SHOW server_version_num", &[]).await?.get(0);
        ensure!(number.starts_with(&version.major().to_string()), "{version} says it is {number}");
        client.query_one("SELECT pg_create_logical_replication_slot('s', 'pgoutput')", &[]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn scram_over_tls_refuses_what_comes_in_plain() -> Result<()> {
    let scratch = Scratch::new("certificates")?;
    let certificates = Certificates::make(&scratch.path().join("tls"))?;
    let cluster = Cluster::start("tls", Version::V15, Options::default().scram().tls(&certificates))?;
    cluster.execute("postgres", "CREATE ROLE reader LOGIN PASSWORD 'secret'").await?;
    let plain = crate::support::cluster::connect(&cluster.url_as("reader:secret", "postgres")).await;
    ensure!(plain.is_err(), "a connection without TLS was taken");
    Ok(())
}

#[tokio::test]
async fn restored_cluster_forgets_and_forked_cluster_counts_on() -> Result<()> {
    let mut cluster = Cluster::new("restored")?;
    cluster.execute("postgres", "CREATE TABLE kept AS SELECT 1").await?;
    cluster.stop(Stop::Fast)?;
    cluster.save("before")?;
    cluster.resume()?;
    cluster.execute("postgres", "INSERT INTO kept SELECT 2").await?;
    cluster.stop(Stop::Fast)?;
    cluster.restore("before")?;
    cluster.resume()?;
    ensure!(count(&cluster).await? == 1);
    cluster.fork_timeline()?;
    let client = cluster.connect("postgres").await?;
    let sql = "SELECT ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int";
    ensure!(client.query_one(sql, &[]).await?.get::<_, i32>(0) == 2, "the timeline is not the second");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn oracle_knows_the_source_after_kills_under_load() -> Result<()> {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let mut source = Cluster::new("oracle")?;
    source.execute("postgres", SCHEMA).await?;
    let oracle = Oracle::start(&source, "postgres", TABLES).await?;
    source.execute("postgres", SEED_SQL).await?;
    let load = Load::start(&source, "postgres", Workload::ALL, &mut random);
    for _ in 0..3 {
        let enough = oracle.commits() + 200;
        eventually(Duration::from_secs(60), "the oracle sees more commits", async || {
            let commits = oracle.commits();
            Ok(if commits > enough { Look::Yes(()) } else { Look::NotYet(format!("{commits} commits")) })
        })
        .await?;
        source.kill9();
        source.resume()?;
    }
    load.stop().await?;
    let client = source.connect("postgres").await?;
    let truth = digest::source_digests(&client, oracle.tables()).await?;
    let known = oracle.digests_at(flushed(&client).await?).await?;
    ensure!(known == truth, "the oracle says {known:?}, the source {truth:?}");
    ensure!(truth.iter().take(3).all(|digest| digest.rows > 0), "a table is empty: {truth:?}");
    Ok(())
}
