//! What a daemon does while one of its databases is idle, stopped, or hangs, and while another daemon is there.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tailwater::lsn::Lsn;

use crate::support::cluster::{Options, Stop};
use crate::support::daemon::{Daemon, Home, checkpoint, flushed};
use crate::support::pair::{DATABASE, Pair, SLOT, SOON};
use crate::support::postgres::Version;
use crate::support::process;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};
use crate::support::workload::{Load, TABLES, Workload, mirror_mapping};

async fn pair(name: &str, options: Options) -> Result<(Pair, Daemon)> {
    let pair = Pair::start(name, Version::V15, options).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    Ok((pair, daemon))
}

#[tokio::test]
async fn idle_database_pins_no_wal_while_another_is_busy() -> Result<()> {
    let (pair, mut daemon) = pair("idle", Options::default()).await?;
    pair.source.create_database("busy").await?;
    let busy = "CREATE TABLE filler AS SELECT g, repeat('x', 500) FROM generate_series(1, 50000) g";
    pair.source.execute("busy", busy).await?;
    let (source, sink) = (pair.source().await?, pair.sink().await?);
    let target = flushed(&source).await?;
    let sql = "SELECT confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    eventually(SOON, "the slot moves past what another database wrote", async || {
        let row = source.query_one(sql, &[&SLOT]).await?;
        let (confirmed, restart): (Lsn, Lsn) = (row.get::<_, &str>(0).parse()?, row.get::<_, &str>(1).parse()?);
        let held = checkpoint(&sink).await?.unwrap_or(Lsn::ZERO);
        ensure!(confirmed <= held, "the source was told {confirmed}, the sink holds {held}");
        // The oldest WAL kept moves on when a running-transactions record comes by, which a checkpoint writes.
        source.batch_execute("CHECKPOINT").await?;
        let moved = confirmed >= target && restart >= target;
        Ok(if moved { Look::Yes(()) } else { Look::NotYet(format!("{confirmed}, restart at {restart}, of {target}")) })
    })
    .await?;
    daemon.terminate()
}

#[tokio::test]
async fn stalled_sink_does_not_block_the_source_from_a_fast_shutdown() -> Result<()> {
    let (mut pair, mut daemon) = pair("stalled", Options::default()).await?;
    pair.sink.signal_all("STOP");
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    let began = Instant::now();
    let stopped = pair.source.stop(Stop::Fast);
    let took = began.elapsed();
    pair.sink.signal_all("CONT");
    stopped?;
    ensure!(took < Duration::from_secs(15), "the source needed {took:?} to stop");
    pair.source.resume()?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_that_is_down_costs_nothing_but_lag() -> Result<()> {
    let (mut pair, mut daemon) = pair("down", Options::default()).await?;
    let mut random = Random::new(Random::seed_from_environment());
    pair.sink.kill9();
    let load = Load::start(&pair.source, DATABASE, Workload::ALL, &mut random);
    eventually(SOON, "2,000 transactions commit meanwhile", async || {
        let commits = load.commits();
        Ok(if commits >= 2_000 { Look::Yes(()) } else { Look::NotYet(format!("{commits}")) })
    })
    .await?;
    ensure!(daemon.ended()?.is_none(), "the daemon did not outlive its sink");
    pair.sink.resume()?;
    load.stop().await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await
}

/// A second home on the same databases: its own data directory and HTTP port, the same slot and sink.
fn second_home(pair: &Pair) -> Result<Home> {
    Home::pair("second", &pair.source, &pair.sink, DATABASE, &mirror_mapping(TABLES))
}

async fn wait_standby(daemon: &Daemon) -> Result<()> {
    eventually(SOON, "the second daemon stands by", async || {
        let status = daemon.status()?;
        let state = status["sources"][0]["state"].to_string();
        Ok(if state.contains("standby") { Look::Yes(()) } else { Look::NotYet(state) })
    })
    .await
}

#[tokio::test]
async fn second_daemon_stands_by_and_takes_over() -> Result<()> {
    let (pair, mut first) = pair("standby", Options::default()).await?;
    let home = second_home(&pair)?;
    let mut second = home.run()?;
    wait_standby(&second).await?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    pair.catch_up(&mut first).await?;
    first.kill9();
    pair.source.execute(DATABASE, "UPDATE churn_full SET number = number + 1").await?;
    pair.catch_up(&mut second).await?;
    pair.assert_equal().await
}

#[tokio::test]
async fn daemon_that_slept_through_a_takeover_writes_nothing() -> Result<()> {
    // The walsender gives up on the frozen daemon after this, which frees the slot.
    let (pair, mut first) = pair("fenced", Options::default().set("wal_sender_timeout", "2s")).await?;
    let home = second_home(&pair)?;
    let mut second = home.run()?;
    wait_standby(&second).await?;
    process::signal("STOP", &[first.pid()]);
    for _ in 0..20 {
        pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    }
    pair.catch_up(&mut second).await?;
    process::signal("CONT", &[first.pid()]);
    for _ in 0..20 {
        pair.source
            .execute(DATABASE, "UPDATE churn SET number = number + 1; DELETE FROM ledger WHERE line < 5")
            .await?;
    }
    pair.catch_up(&mut second).await?;
    pair.assert_equal().await?;
    // It may stand by now, or have ended saying that it was fenced; it may not have failed in another way.
    let ended = first.ended()?.and_then(|status| status.code());
    ensure!(ended.is_none_or(|code| code == 17), "the first daemon ended with {ended:?}");
    Ok(())
}

/// It slept while the other took over, and has nothing to write that would tell it so.
#[tokio::test]
async fn daemon_that_lost_the_slot_takes_it_back_when_the_other_dies() -> Result<()> {
    let (pair, mut first) = pair("lost-slot", Options::default()).await?;
    let home = second_home(&pair)?;
    let mut second = home.run()?;
    wait_standby(&second).await?;
    eventually(SOON, "the first daemon has nothing left to record", async || {
        let [received, held] = [first.metric("tailwater_received_lsn")?, first.metric("tailwater_checkpoint_lsn")?];
        Ok(if received <= held { Look::Yes(()) } else { Look::NotYet(format!("{received} and {held}")) })
    })
    .await?;
    process::signal("STOP", &[first.pid()]);
    let terminate =
        format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    pair.source.execute(DATABASE, &terminate).await?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    pair.catch_up(&mut second).await?;
    process::signal("CONT", &[first.pid()]);
    eventually(SOON, "the first daemon misses its stream", async || {
        let tries = first.metric("tailwater_reconnects_total")?;
        Ok(if tries > 0.0 { Look::Yes(()) } else { Look::NotYet(format!("{tries} times")) })
    })
    .await?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    pair.catch_up(&mut second).await?;
    // The slot is past what the first one knows of the sink.
    let target = flushed(&pair.source().await?).await?;
    eventually(SOON, "the source is told", async || {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let row = pair.source().await?.query_one(sql, &[&SLOT]).await?;
        let confirmed: Lsn = row.get::<_, &str>(0).parse()?;
        Ok(if confirmed >= target { Look::Yes(()) } else { Look::NotYet(confirmed.to_string()) })
    })
    .await?;
    second.kill9();
    pair.source.execute(DATABASE, "UPDATE churn_full SET number = number + 1").await?;
    pair.catch_up(&mut first).await?;
    pair.assert_equal().await?;
    first.terminate()
}

#[tokio::test]
async fn daemon_whose_source_is_away_stops_when_it_is_told_to() -> Result<()> {
    let (mut pair, mut daemon) = pair("away", Options::default()).await?;
    pair.source.kill9();
    eventually(SOON, "the daemon connects again", async || {
        let tries = daemon.metric("tailwater_reconnects_total")?;
        Ok(if tries > 0.0 { Look::Yes(()) } else { Look::NotYet(format!("{tries} times")) })
    })
    .await?;
    daemon.terminate()
}
