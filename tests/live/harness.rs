//! That the support code itself can be trusted: clusters start, die and come back as the other tests assume.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::support::certificates::Certificates;
use crate::support::checker::Checker;
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

/// A lie told by the sink, what the checker says of it, and how the sink tells the truth again.
const LIES: &[(&str, &str, &str)] = &[
    (
        "UPDATE mirror.churn SET number = 1 WHERE id = 7",
        "its mirror has",
        "UPDATE mirror.churn SET number = 0 WHERE id = 7",
    ),
    (
        "UPDATE mirror.accounts_a SET balance = 999 WHERE id = 1; UPDATE mirror.accounts_a SET balance = 1001 WHERE id = 2",
        "public.accounts_a had",
        "UPDATE mirror.accounts_a SET balance = 1000",
    ),
    ("UPDATE mirror.accounts_b SET balance = 999 WHERE id = 1", "999", "UPDATE mirror.accounts_b SET balance = 1000"),
    (
        "DELETE FROM mirror.ledger WHERE line = 2",
        "1999 rows",
        "INSERT INTO mirror.ledger SELECT 0, 2, 0.02, 'first', '2024-02-29 12:00Z'",
    ),
    (
        "UPDATE tailwater.checkpoint SET end_lsn = end_lsn - 1",
        "",
        "UPDATE tailwater.checkpoint SET end_lsn = end_lsn + 1",
    ),
    (
        "UPDATE tailwater.table_state SET state = 'copying' WHERE relation = 'public.churn'",
        "not any more",
        "UPDATE tailwater.table_state SET state = 'streaming'",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn checker_finds_every_lie_and_no_other() -> Result<()> {
    let (source, sink) = (Cluster::new("honest-source")?, Cluster::new("lying-sink")?);
    source.execute("postgres", SCHEMA).await?;
    let oracle = Arc::new(Oracle::start(&source, "postgres", TABLES).await?);
    source.execute("postgres", SEED_SQL).await?;
    let client = source.connect("postgres").await?;
    client.query_one("SELECT pg_create_logical_replication_slot('daemon', 'pgoutput')", &[]).await?;
    let confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'daemon'";
    let confirmed: String = client.query_one(confirmed, &[]).await?.get(0);
    let states: Vec<String> = TABLES.iter().map(|table| format!("('{table}', 'streaming')")).collect();
    let honest = format!(
        "CREATE SCHEMA mirror; SET search_path = mirror; {SCHEMA}; {SEED_SQL}; CREATE SCHEMA tailwater;
         CREATE TABLE tailwater.checkpoint (end_lsn pg_lsn);
         INSERT INTO tailwater.checkpoint VALUES ('{confirmed}');
         CREATE TABLE tailwater.table_state (relation text, state text);
         INSERT INTO tailwater.table_state VALUES {}",
        states.join(", ")
    );
    sink.execute("postgres", &honest).await?;
    for (lie, finding, truth) in LIES {
        let checker = Checker::start(&source, &sink, "postgres", &oracle);
        eventually(Duration::from_secs(60), "honest looks of every kind", async || {
            let tally = checker.tally();
            let enough = tally.comparisons > 2 && tally.totals > 2 && tally.confirmations > 2;
            Ok(if enough { Look::Yes(()) } else { Look::NotYet(format!("{tally:?}")) })
        })
        .await?;
        checker.verdict()?;
        sink.execute("postgres", lie).await?;
        let found = eventually(Duration::from_secs(60), lie, async || {
            Ok(checker.verdict().err().map_or(Look::NotYet("nothing found".to_owned()), Look::Yes))
        })
        .await?;
        ensure!(found.to_string().contains(finding), "{lie}: {found}");
        sink.execute("postgres", truth).await?;
    }
    Ok(())
}
