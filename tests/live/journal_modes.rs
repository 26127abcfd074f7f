//! What the journal is for: a sink that is away, a source that must not wait for it, a sink that was put back, and what
//! happens when the journal itself is lost or full.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tailwater::lsn::Lsn;

use crate::support::cluster::{Cluster, Options, Stop};
use crate::support::daemon::{Daemon, Home, checkpoint, flushed};
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SLOT, SOON};
use crate::support::postgres::Version;
use crate::support::process;
use crate::support::wait::{Look, eventually};

const TABLES: &str = "
    CREATE TABLE entries (id int PRIMARY KEY, filler text, n int);
    INSERT INTO entries SELECT i, repeat('x', 100), 0 FROM generate_series(1, 100) i";

const HEARTBEAT: &str = "heartbeat = \"500ms\"";
const ACK_JOURNAL: &str = "heartbeat = \"500ms\"\nack = \"journal\"";
const SMALL_JOURNAL: &str =
    "heartbeat = \"500ms\"\njournal = { max_bytes = \"4MiB\", segment_bytes = \"1MiB\", memory_bytes = \"1MiB\" }";

async fn mirror(name: &str, source_options: &str) -> Result<Mirror> {
    let tables = [("entries", "entries", "columns = \"*\"")];
    let config = [(HEARTBEAT, source_options)];
    Mirror::make(name, Recipe { source: TABLES, tables: &tables, config: &config, ..Recipe::default() }).await
}

/// What the source was told, and the oldest WAL that it keeps for the slot.
async fn slot(source: &Cluster) -> Result<(Lsn, Lsn)> {
    let sql = "SELECT confirmed_flush_lsn::text, restart_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
    let row = source.connect(DATABASE).await?.query_one(sql, &[&SLOT]).await?;
    Ok((row.get::<_, &str>(0).parse()?, row.get::<_, &str>(1).parse()?))
}

/// Every kind of change, some of it new with each number.
async fn change(source: &Cluster, number: i32) -> Result<()> {
    let first = 1_000 * number;
    let sql = format!(
        "INSERT INTO entries SELECT i, repeat('y', 500), {number} FROM generate_series({first}, {first} + 500) i;
         UPDATE entries SET n = n + 1 WHERE id % 7 = 0; UPDATE entries SET id = id + 501 WHERE id BETWEEN {first} AND {first} + 3;
         DELETE FROM entries WHERE id % 11 = {number} % 11"
    );
    source.execute(DATABASE, &sql).await
}

async fn wait_released(source: &Cluster, target: Lsn) -> Result<()> {
    eventually(SOON, "the source keeps no WAL for the slot", async || {
        // The oldest WAL kept moves when a running-transactions record comes by, which a checkpoint writes.
        source.execute(DATABASE, "CHECKPOINT").await?;
        let (confirmed, restart) = slot(source).await?;
        let moved = confirmed >= target && restart >= target;
        Ok(if moved { Look::Yes(()) } else { Look::NotYet(format!("{confirmed}, {restart} of {target}")) })
    })
    .await
}

#[tokio::test]
async fn source_is_released_while_the_sink_is_away() -> Result<()> {
    let mut mirror = mirror("released", ACK_JOURNAL).await?;
    mirror.sink.kill9();
    for number in 1..=5 {
        change(&mirror.source, number).await?;
    }
    let target = flushed(&mirror.source.connect(DATABASE).await?).await?;
    wait_released(&mirror.source, target).await?;
    ensure!(mirror.daemon.ended()?.is_none(), "the daemon did not outlive its sink");

    // What is only in the journal now outlives the daemon too.
    mirror.daemon.kill9();
    mirror.daemon = mirror.home.run()?;
    change(&mirror.source, 6).await?;
    mirror.sink.resume()?;
    mirror.assert_equal("the sink came back").await?;
    change(&mirror.source, 7).await?;
    mirror.assert_equal("the sink is there").await
}

#[tokio::test]
async fn source_is_told_no_more_than_the_sink_holds_otherwise() -> Result<()> {
    let mut mirror = mirror("kept", HEARTBEAT).await?;
    let held = checkpoint(&mirror.sink.connect(DATABASE).await?).await?.unwrap_or_default();
    mirror.sink.kill9();
    for number in 1..=3 {
        change(&mirror.source, number).await?;
    }
    let target = flushed(&mirror.source.connect(DATABASE).await?).await?;
    wait_received(&mirror.daemon, target).await?;
    mirror.daemon.kill9();
    // The last word may have been an idle position that the sink recorded after it was asked.
    let (confirmed, _) = slot(&mirror.source).await?;
    mirror.sink.resume()?;
    let now = checkpoint(&mirror.sink.connect(DATABASE).await?).await?.unwrap_or_default();
    ensure!(held <= now && confirmed <= now && now < target, "told {confirmed}, held {held}, then {now} of {target}");

    // So the whole journal may be lost.
    fs::remove_dir_all(mirror.home.data_dir())?;
    mirror.daemon = mirror.home.run()?;
    mirror.assert_equal("the journal was lost").await
}

async fn wait_received(daemon: &Daemon, target: Lsn) -> Result<()> {
    eventually(SOON, "the daemon has read everything", async || {
        let received: Lsn = daemon.status()?["sources"][0]["received_lsn"].as_str().unwrap_or("0/0").parse()?;
        Ok(if received >= target { Look::Yes(()) } else { Look::NotYet(format!("{received} of {target}")) })
    })
    .await
}

#[tokio::test]
async fn journal_that_held_the_only_copy_is_missed_at_start() -> Result<()> {
    let mut mirror = mirror("missed", ACK_JOURNAL).await?;
    mirror.sink.kill9();
    change(&mirror.source, 1).await?;
    let target = flushed(&mirror.source.connect(DATABASE).await?).await?;
    wait_released(&mirror.source, target).await?;
    mirror.daemon.kill9();
    fs::remove_dir_all(mirror.home.data_dir())?;
    mirror.sink.resume()?;
    let before = slot(&mirror.source).await?;
    mirror.daemon = mirror.home.run()?;
    let status = mirror.daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(12), "ended with {status}: {}", mirror.daemon.log());
    ensure!(slot(&mirror.source).await? == before, "the slot was moved");
    Ok(())
}

fn bytes_below(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { bytes_below(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

async fn wait_state(daemon: &Daemon, wanted: &str) -> Result<()> {
    eventually(SOON, &format!("the stream is {wanted}"), async || {
        let state = daemon.status()?["sources"][0]["state"].to_string();
        Ok(if state.contains(wanted) { Look::Yes(()) } else { Look::NotYet(state) })
    })
    .await
}

#[tokio::test]
async fn full_journal_leaves_the_rest_to_the_slot() -> Result<()> {
    let mut mirror = mirror("full", SMALL_JOURNAL).await?;
    mirror.sink.kill9();
    // Text that does not compress, about 20 MB of it.
    let noise = "(SELECT string_agg(md5((i * j)::text || random()), '') FROM generate_series(1, 30) j)";
    for number in 1..=10 {
        let first = 10_000 * number;
        let sql = format!("INSERT INTO entries SELECT i, {noise}, 0 FROM generate_series({first}, {first} + 2000) i");
        mirror.source.execute(DATABASE, &sql).await?;
    }
    wait_state(&mirror.daemon, "paused_by_journal").await?;
    let page = mirror.home.must(&["status"])?;
    ensure!(page.contains("paused"), "{page}");
    let target = flushed(&mirror.source.connect(DATABASE).await?).await?;
    let (confirmed, restart) = slot(&mirror.source).await?;
    ensure!(
        confirmed < target && target.bytes_since(restart) > 8 << 20,
        "the slot holds only from {restart} to {target}"
    );
    // One transaction may pass the cap, since it was begun below.
    let bytes = bytes_below(&mirror.home.data_dir())?;
    ensure!(bytes < 8 << 20, "the journal has {bytes} bytes");
    // A source that goes is not made to wait for the sink.
    let began = Instant::now();
    mirror.source.stop(Stop::Fast)?;
    ensure!(began.elapsed() < Duration::from_secs(15), "the source needed {:?} to stop", began.elapsed());
    mirror.source.resume()?;
    wait_state(&mirror.daemon, "paused_by_journal").await?;
    mirror.sink.resume()?;
    mirror.assert_equal("the journal was full").await?;
    wait_state(&mirror.daemon, "streaming").await
}

/// A table whose copy ends when the journal is full, inside a transaction: it joins all the same, and makes room by it.
#[tokio::test]
async fn full_journal_keeps_no_copied_table_from_joining() -> Result<()> {
    const BOTH: [&str; 2] = ["entries", "late"];
    let (source, sink) = (Cluster::new("joining-source")?, Cluster::new("joining-sink")?);
    source
        .execute(
            DATABASE,
            &format!("{TABLES}; CREATE TABLE late AS TABLE entries; ALTER TABLE late ADD PRIMARY KEY (id)"),
        )
        .await?;
    sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
    let config = Home::pair_config(&source, &sink, DATABASE).replace(HEARTBEAT, SMALL_JOURNAL);
    ensure!(config.contains(SMALL_JOURNAL), "the journal is not small");
    let table = |table: &&str| format!("\n[table.\"mirror.{table}\"]\nfrom = \"public.{table}\"\ncolumns = \"*\"\n");
    let mapping = format!("source = \"src\"\nsink = \"dst\"\n{}", BOTH.iter().map(table).collect::<String>());
    let home = Home::new("joining", &config, &[("mapping.toml", &mapping)])?;
    home.setup()?;
    let held = sink.connect(DATABASE).await?;
    let gate = "CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS
                    'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NULL; END';
                CREATE TRIGGER gate BEFORE INSERT ON mirror.late EXECUTE FUNCTION gate();
                SELECT pg_advisory_lock(7)";
    held.batch_execute(gate).await?;
    let mut daemon = home.run()?;
    eventually(SOON, "the copy waits", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        let waits: i64 = held.query_one(sql, &[]).await?.get(0);
        Ok(if waits > 0 { Look::Yes(()) } else { Look::NotYet("it does not".to_owned()) })
    })
    .await?;
    // Each larger than what is left of a segment, so that the last one is cut.
    let noise = "(SELECT string_agg(md5((i * j)::text || random()), '') FROM generate_series(1, 30) j)";
    for number in 1..=5 {
        let first = 10_000 * number;
        let sql = format!(
            "INSERT INTO entries SELECT i, {noise}, 0 FROM generate_series({first}, {first} + 2000) i;
             UPDATE late SET n = {number}"
        );
        source.execute(DATABASE, &sql).await?;
    }
    wait_state(&daemon, "paused_by_journal").await?;
    // Longer than whole transactions wait for another's rest.
    tokio::time::sleep(Duration::from_secs(2)).await;
    held.batch_execute("SELECT pg_advisory_unlock(7)").await?;
    daemon.wait_caught_up(&source.connect(DATABASE).await?, &held, SOON).await?;
    for table in BOTH {
        let sum = "SELECT count(*)::text || ' ' || sum(n) || ' ' || sum(length(filler))";
        let of_source: String =
            source.connect(DATABASE).await?.query_one(&format!("{sum} FROM {table}"), &[]).await?.get(0);
        let of_sink: String = held.query_one(&format!("{sum} FROM mirror.{table}"), &[]).await?.get(0);
        ensure!(of_sink == of_source, "{table}: {of_sink}, not {of_source}");
    }
    daemon.terminate()
}

#[tokio::test]
async fn transaction_larger_than_the_journal_goes_through() -> Result<()> {
    let tables = [("entries", "entries", "columns = \"*\"")];
    let config =
        [(HEARTBEAT, SMALL_JOURNAL), ("kind = \"postgres\"", "kind = \"postgres\"\nbatch_bytes_max = \"1MiB\"")];
    let recipe = Recipe { source: TABLES, tables: &tables, config: &config, ..Recipe::default() };
    let mut mirror = Mirror::make("larger", recipe).await?;
    // Small ones before it, in the batch in which it begins.
    process::signal("STOP", &[mirror.daemon.pid()]);
    change(&mirror.source, 1).await?;
    change(&mirror.source, 2).await?;
    let large = "INSERT INTO entries SELECT i, repeat('z', 400), 0 FROM generate_series(100000, 130000) i";
    mirror.source.execute(DATABASE, &format!("BEGIN; {large}; DELETE FROM entries WHERE id % 3 = 0; COMMIT")).await?;
    process::signal("CONT", &[mirror.daemon.pid()]);
    change(&mirror.source, 3).await?;
    mirror.assert_equal("a large transaction").await
}

/// Puts the sink back to where it was before the last changes, which the source has been told it holds.
async fn put_back(mirror: &mut Mirror) -> Result<Lsn> {
    change(&mirror.source, 1).await?;
    mirror.assert_equal("the first changes").await?;
    mirror.sink.stop(Stop::Fast)?;
    mirror.sink.save("before")?;
    mirror.sink.resume()?;
    for number in 2..=4 {
        change(&mirror.source, number).await?;
    }
    mirror.assert_equal("the last changes").await?;
    mirror.daemon.terminate()?;
    let reached = checkpoint(&mirror.sink.connect(DATABASE).await?).await?.unwrap_or_default();
    mirror.sink.stop(Stop::Fast)?;
    mirror.sink.restore("before")?;
    mirror.sink.resume()?;
    let now = checkpoint(&mirror.sink.connect(DATABASE).await?).await?.unwrap_or_default();
    let (confirmed, _) = slot(&mirror.source).await?;
    ensure!(now < reached && now < confirmed, "the sink is at {now}, was at {reached}; told {confirmed}");
    Ok(confirmed)
}

#[tokio::test]
async fn sink_that_was_put_back_is_healed_from_the_journal() -> Result<()> {
    let mut mirror = mirror("healed", HEARTBEAT).await?;
    put_back(&mut mirror).await?;
    mirror.daemon = mirror.home.run()?;
    change(&mirror.source, 5).await?;
    mirror.assert_equal("the sink was put back").await
}

#[tokio::test]
async fn sink_that_was_put_back_stays_so_without_a_journal() -> Result<()> {
    let mut mirror = mirror("unhealed", HEARTBEAT).await?;
    put_back(&mut mirror).await?;
    fs::remove_dir_all(mirror.home.data_dir())?;
    mirror.daemon = mirror.home.run()?;
    let status = mirror.daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(12), "ended with {status}: {}", mirror.daemon.log());
    Ok(())
}

#[tokio::test]
async fn slot_of_17_is_kept_for_the_standby() -> Result<()> {
    let source = Cluster::start("failover", Version::V17, Options::default())?;
    let tables = [("entries", "entries", "columns = \"*\"")];
    let recipe = Recipe { source: TABLES, tables: &tables, ..Recipe::default() };
    let mirror = Mirror::between("failover", source, Cluster::new("failover-sink")?, recipe).await?;
    let sql = "SELECT failover FROM pg_replication_slots WHERE slot_name = $1";
    let failover: bool = mirror.source.connect(DATABASE).await?.query_one(sql, &[&SLOT]).await?.get(0);
    ensure!(failover, "the slot is not synchronised to a standby");
    Ok(())
}
