//! A start with one of the warehouses away: the other is served at once, and the one that comes back misses nothing.

use std::fs;

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;

use super::stage::{Stage, ToClickHouse, ToPostgres, Trouble, Which};
use crate::support::daemon::{Daemon, Home, flushed};
use crate::support::pair::{DATABASE, SLOT, SOON};
use crate::support::wait::{Look, eventually};

/// Who is away, and who is not.
const EACH: [(Which, Which); 2] = [(ToPostgres, ToClickHouse), (ToClickHouse, ToPostgres)];
const BOTH: [Which; 2] = [ToPostgres, ToClickHouse];

/// The slot advances with the journal, of which nothing stays that is not held.
const ACK_JOURNAL: &str = "ack = \"journal\"\njournal = { retention = \"0s\", segment_bytes = \"64KiB\" }";

/// How often daemons of this home have said that they wait for the sink.
fn times_said(home: &Home, sink: Which) -> Result<usize> {
    let log = fs::read_to_string(home.path().join("log"))?;
    Ok(log.matches(&format!("waiting for sink \"{}\"", sink.name())).count())
}

impl Stage {
    /// A daemon that ran, filled both, and was stopped.
    async fn filled(name: &str, options: &str) -> Result<Stage> {
        let mut stage = Stage::start_with(name, &BOTH, options).await?;
        let mut daemon = stage.home.run()?;
        stage.assert_equal("the copies", &mut daemon).await?;
        daemon.terminate()?;
        Ok(stage)
    }

    /// Starts a daemon, and has the sink that is there take new changes of every kind.
    async fn start_without(&mut self, sick: Which, well: Which) -> Result<Daemon> {
        let target = self.change().await?;
        let mut daemon = self.home.run()?;
        self.wait(well, target, &mut daemon).await.with_context(|| format!("{sick:?} is away"))?;
        let target = self.change().await?;
        self.wait(well, target, &mut daemon).await.with_context(|| format!("{sick:?} is still away"))?;
        Ok(daemon)
    }

    /// Once the server has seen that the daemon is gone.
    async fn wait_confirmed(&self, target: Lsn) -> Result<()> {
        eventually(SOON, "the source is told", async || {
            let confirmed = self.confirmed().await?;
            Ok(if confirmed >= target { Look::Yes(()) } else { Look::NotYet(format!("{confirmed} of {target}")) })
        })
        .await
    }

    async fn advance_slot(&self, to: Lsn) -> Result<()> {
        let sql = format!("SELECT pg_replication_slot_advance('{SLOT}', '{to}')");
        eventually(SOON, "the slot moves", async || {
            let moved = self.source.execute(DATABASE, &sql).await;
            Ok(moved.map_or_else(|error| Look::NotYet(error.to_string()), Look::Yes))
        })
        .await
    }
}

/// Everything that tells of the daemon says who is missing, and that this is no reason to start it again.
fn says_who_is_missing(daemon: &Daemon, home: &Home, sick: Which) -> Result<()> {
    let sink = format!("sink \"{}\"", sick.name());
    let page = home.must(&["status"])?;
    ensure!(page.contains(&format!("waiting for {sink}")), "{page}");
    let ready = daemon.get("/readyz")?;
    ensure!(ready.status == 503 && ready.body.contains(&sink), "{} {}", ready.status, ready.body);
    ensure!(daemon.get("/healthz")?.status == 200, "a sink that is away is no stall");
    let metrics = daemon.metrics()?;
    ensure!(metrics["tailwater_source_connected{source=\"src\"}"] == 1.0);
    let lag = |metric: &str| metrics[&format!("{metric}{{sink=\"{}\",source=\"src\"}}", sick.name())];
    let (bytes, seconds) = (lag("tailwater_replication_lag_bytes"), lag("tailwater_replication_lag_seconds"));
    // Counted from what the sink surely holds, not from nothing.
    ensure!((1.0..16e6).contains(&bytes) && seconds > 0.0, "{bytes} bytes, {seconds} s behind");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h01_start_without_a_sink_serves_the_other_and_keeps_all_for_the_first() -> Result<()> {
    let mut stage = Stage::filled("several-start", "").await?;
    for (sick, well) in EACH {
        stage.inflict(Trouble::Down, sick);
        let confirmed = stage.confirmed().await?;
        let said = times_said(&stage.home, sick)?;
        let mut daemon = stage.start_without(sick, well).await?;
        says_who_is_missing(&daemon, &stage.home, sick)?;
        ensure!(times_said(&stage.home, sick)? == said + 1, "it is not said once:\n{}", daemon.log());
        // At its end a stream confirms all that it may.
        daemon.terminate()?;
        ensure!(stage.confirmed().await? == confirmed, "the source was told more, and {sick:?} has not been asked");

        let mut daemon = stage.start_without(sick, well).await?;
        daemon.kill9();
        let mut daemon = stage.start_without(sick, well).await?;
        ensure!(stage.confirmed().await? == confirmed, "the source was told more after kill -9");
        stage.heal(Trouble::Down, sick)?;
        stage.assert_equal(&format!("{sick:?} came back"), &mut daemon).await?;
        stage.change().await?;
        stage.assert_equal("both are there again", &mut daemon).await?;
        let target = flushed(&stage.source.connect(DATABASE).await?).await?;
        stage.wait_confirmed(target).await?;
        ensure!(daemon.get("/readyz")?.status == 200, "{}", daemon.get("/readyz")?.body);
        daemon.terminate()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_a_sink_that_hangs_serves_the_other() -> Result<()> {
    let mut stage = Stage::filled("several-hangs", "").await?;
    for (sick, well) in EACH {
        stage.inflict(Trouble::Slow, sick);
        let started = stage.start_without(sick, well).await;
        stage.heal(Trouble::Slow, sick)?;
        let mut daemon = started?;
        stage.assert_equal(&format!("{sick:?} goes on"), &mut daemon).await?;
        daemon.terminate()?;
    }
    Ok(())
}

/// The journal is all that holds what the absent sink has not seen, however old it is.
#[tokio::test(flavor = "multi_thread")]
async fn h07_journal_keeps_what_a_sink_needs_that_was_not_read() -> Result<()> {
    let mut stage = Stage::filled("several-ack-journal", ACK_JOURNAL).await?;
    for (sick, well) in EACH {
        stage.inflict(Trouble::Down, sick);
        let mut daemon = stage.start_without(sick, well).await?;
        // Nobody else has it any more.
        stage.wait_confirmed(stage.stands(well).await?).await?;
        daemon.kill9();
        let mut daemon = stage.start_without(sick, well).await?;
        stage.heal(Trouble::Down, sick)?;
        stage.assert_equal(&format!("{sick:?} came back"), &mut daemon).await?;
        daemon.terminate()?;
    }
    Ok(())
}

/// The sink that is there stands further on than the one that is away, and no journal tells where that is.
#[tokio::test(flavor = "multi_thread")]
async fn h01_stream_goes_back_for_the_sink_that_is_away_when_the_journal_is_lost() -> Result<()> {
    let mut stage = Stage::filled("several-lost", "").await?;
    for (sick, well) in EACH {
        stage.inflict(Trouble::Down, sick);
        let mut daemon = stage.start_without(sick, well).await?;
        daemon.kill9();
        fs::remove_dir_all(stage.home.data_dir())?;
        let mut daemon = stage.start_without(sick, well).await?;
        stage.heal(Trouble::Down, sick)?;
        stage.assert_equal(&format!("{sick:?} came back"), &mut daemon).await?;
        daemon.terminate()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h01_gap_of_a_sink_that_comes_back_halts() -> Result<()> {
    let mut stage = Stage::filled("several-gap", "").await?;
    stage.inflict(Trouble::Down, ToClickHouse);
    let mut daemon = stage.start_without(ToClickHouse, ToPostgres).await?;
    daemon.terminate()?;
    // Somebody else told the source that all is well, and threw the journal away.
    stage.advance_slot(stage.stands(ToPostgres).await?).await?;
    fs::remove_dir_all(stage.home.data_dir())?;
    let mut daemon = stage.start_without(ToClickHouse, ToPostgres).await?;
    stage.heal(Trouble::Down, ToClickHouse)?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(12), "it ended with {status}: {}", daemon.log());
    ensure!(daemon.log().contains("sink \"ch\""), "{}", daemon.log());
    Ok(())
}

/// It answers when the run is prepared, and does not say what it holds when the stream is to begin.
#[tokio::test(flavor = "multi_thread")]
async fn sink_that_cannot_be_read_is_left_out_until_it_can() -> Result<()> {
    let mut stage = Stage::filled("several-unread", "").await?;
    let rename = "ALTER TABLE tailwater.checkpoint RENAME COLUMN";
    stage.postgres.execute(DATABASE, &format!("{rename} epoch TO hidden")).await?;
    let confirmed = stage.confirmed().await?;
    let mut daemon = stage.start_without(ToPostgres, ToClickHouse).await?;
    says_who_is_missing(&daemon, &stage.home, ToPostgres)?;
    ensure!(stage.confirmed().await? == confirmed, "the source was told more");
    stage.postgres.execute(DATABASE, &format!("{rename} hidden TO epoch")).await?;
    stage.assert_equal("it can be read", &mut daemon).await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_that_refuses_ends_the_start_whoever_else_is_away() -> Result<()> {
    let mut stage = Stage::filled("several-refuses", "").await?;
    stage.inflict(Trouble::Down, ToClickHouse);
    let file = stage.home.path().join("tailwater.toml");
    let config = fs::read_to_string(&file)?;
    let (here, nowhere) = (stage.postgres.url(DATABASE), stage.postgres.url("nowhere"));
    ensure!(config.contains(&here));
    fs::write(&file, config.replace(&here, &nowhere))?;
    let mut daemon = stage.home.run()?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(3) && daemon.log().contains("nowhere"), "it ended with {status}: {}", daemon.log());
    Ok(())
}

/// One that follows what the source's table becomes, and one that names its columns.
const MAPPINGS: [(&str, &str); 2] = [
    (
        "mapping.toml",
        "source = \"src\"\nsink = \"pg\"\n[table.\"mirror.entries\"]\nfrom = \"public.entries\"\ncolumns = \"*\"\n",
    ),
    (
        "named.toml",
        "source = \"src\"\nsink = \"ch\"\n[table.\"mirror.entries\"]\nfrom = \"public.entries\"\n\
         columns = { id = \"id\", filler = \"filler\", n = \"n\" }\n",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn h32_table_that_changes_while_a_sink_is_away_is_followed() -> Result<()> {
    let mut stage = Stage::filled("several-changes", "").await?;
    stage.home.configure(&stage.config(&BOTH), &MAPPINGS)?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("a start", &mut daemon).await?;

    // The daemon looks at all ends again, and one is not there.
    stage.inflict(Trouble::Down, ToClickHouse);
    let said = times_said(&stage.home, ToClickHouse)?;
    stage.source.execute(DATABASE, "ALTER TABLE entries ADD COLUMN first int DEFAULT 5").await?;
    let target = stage.change().await?;
    stage.wait(ToPostgres, target, &mut daemon).await.context("ClickHouse is away")?;
    ensure!(times_said(&stage.home, ToClickHouse)? == said + 1, "{}", daemon.log());
    daemon.terminate()?;
    let confirmed = stage.confirmed().await?;
    let mut daemon = stage.start_without(ToClickHouse, ToPostgres).await?;
    ensure!(stage.confirmed().await? == confirmed, "the source was told more");
    stage.heal(Trouble::Down, ToClickHouse)?;
    stage.assert_equal("ClickHouse came back", &mut daemon).await?;
    daemon.terminate()?;

    // The one that follows comes back to a table that is another.
    stage.inflict(Trouble::Down, ToPostgres);
    stage.source.execute(DATABASE, "ALTER TABLE entries ADD COLUMN second int DEFAULT 6").await?;
    let mut daemon = stage.start_without(ToPostgres, ToClickHouse).await?;
    stage.heal(Trouble::Down, ToPostgres)?;
    stage.assert_equal("Postgres came back", &mut daemon).await?;
    let sql = "SELECT count(*) FILTER (WHERE first = 5 AND second = 6), count(*) FROM mirror.entries";
    let row = stage.postgres.connect(DATABASE).await?.query_one(sql, &[]).await?;
    let (followed, all): (i64, i64) = (row.get(0), row.get(1));
    ensure!(followed == all, "{followed} of {all} rows have the new columns");
    daemon.terminate()
}
