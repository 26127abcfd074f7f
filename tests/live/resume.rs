//! A first copy that was cut short goes on from the ranges that the sink holds, whatever happened to them meanwhile.

mod gated;

use anyhow::{Context, Result, ensure};
use tailwater::catalog::TableName;
use tailwater::postgres::url::PgUrl;
use tailwater::source::snapshot::{Snapshot, SnapshotError};

use crate::support::cluster::Cluster;
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};
use gated::{Gated, MAPPING, ROWS, Recipe, USUAL, Writer, copied};

/// What moves rows about while no daemon runs: room in the ranges that were copied for rows that were not, keys that are
/// given up, taken over and swapped, and values that only the copy brings.
const MOVES: &[&str] = &[
    "DELETE FROM big WHERE id < 20000 AND id % 10 = 0",
    "VACUUM big",
    "UPDATE big SET number = number + 1 WHERE id > 90000 AND id % 10 = 1",
    "UPDATE big SET id = id + 1000000 WHERE id BETWEEN 95000 AND 95200",
    "UPDATE big SET number = -number WHERE id BETWEEN 30000 AND 30400",
    "UPDATE big SET id = -1 WHERE id = 41; UPDATE big SET id = 41 WHERE id = 99941; UPDATE big SET id = 99941 WHERE id = -1",
    "DELETE FROM big WHERE id = 61; UPDATE big SET id = 61 WHERE id = 99961",
    "DELETE FROM big WHERE id = 81; INSERT INTO big VALUES (81, NULL, 'again', 0)",
];

/// Rows that move from a range not yet copied into one that was, and all else that happens between two snapshots.
async fn moved_rows_are_copied_and_few_others(version: Version) -> Result<()> {
    let gated = Gated::new("moves", version).await?;
    gated.cut_short(3).await?;
    for statements in MOVES {
        gated.client.batch_execute(statements).await?;
    }
    let sql = "SELECT count(*) FROM big WHERE id > 90000 AND ctid < '(2048,0)' AND body IS NOT NULL";
    let moved: i64 = gated.client.query_one(sql, &[]).await?.get(0);
    ensure!(moved > 100, "only {moved} rows moved into the first range");

    // The second attempt is cut short too, between the rows that it reads again and those that it reads first.
    let mut daemon = gated.home.run()?;
    gated.let_in(4).await?;
    // After its snapshot: values that are not sent, of rows that moved.
    gated.client.batch_execute("UPDATE big SET number = number + 7 WHERE id > 90000 AND id % 20 = 1").await?;
    gated.kill(&mut daemon).await?;
    for statements in MOVES {
        gated.client.batch_execute(statements).await?;
    }
    let had = gated.rows_in_chunks().await?;
    let mut daemon = gated.home.run()?;
    daemon.wait_serving().await?;
    let shown = format!("\"copied_rows\":{had},");
    eventually(SOON, "progress begins where it was", async || {
        let body = daemon.get("/status")?.body.replace(' ', "");
        Ok(if body.contains(&shown) { Look::Yes(()) } else { Look::NotYet(body) })
    })
    .await?;
    gated.let_in(5).await?;
    gated.client.batch_execute("UPDATE big SET number = number + 9 WHERE id % 20 = 1").await?;
    gated.complete(&mut daemon).await?;
    ensure!(!daemon.log().contains("begins anew"), "the copy went on each time");
    // What was not there, and what was written in ranges that were.
    let (rows, most) = (copied(&daemon)?, ROWS - had + 10_000);
    ensure!(rows <= most, "{rows} rows were copied where {had} were there, not at most {most}");
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_rows_of_15_are_copied_and_few_others() -> Result<()> {
    moved_rows_are_copied_and_few_others(Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_rows_of_18_are_copied_and_few_others() -> Result<()> {
    moved_rows_are_copied_and_few_others(Version::V18).await
}

async fn killed_copy_costs_the_chunks_in_flight(version: Version) -> Result<()> {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let gated = Gated::new("kills", version).await?;
    let writer = Writer::start(&gated.source, random.fork()).await?;
    let mut rows = 0;
    for chunks in [1, 3, 4, 5, 6] {
        let mut daemon = gated.home.run()?;
        daemon.wait_serving().await?;
        gated.let_in(chunks).await?;
        rows += copied(&daemon)?;
        gated.kill(&mut daemon).await?;
    }
    let mut daemon = gated.home.run()?;
    daemon.wait_serving().await?;
    gated.held.execute("UPDATE gate SET chunks = 1000000", &[]).await?;
    daemon.wait_caught_up(&gated.client, &gated.held, SOON).await?;
    rows += copied(&daemon)?;
    let commits = writer.stop().await?;
    gated.complete(&mut daemon).await?;
    eprintln!("{commits} commits, {rows} rows copied over six attempts at {ROWS}");
    ensure!(!daemon.log().contains("begins anew"), "the copy went on each time");
    // Begun anew each time it would be some three times the table.
    ensure!(rows < ROWS * 3 / 2, "{rows} rows were copied");
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_copy_of_15_costs_the_chunks_in_flight() -> Result<()> {
    killed_copy_costs_the_chunks_in_flight(Version::V15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_copy_of_18_costs_the_chunks_in_flight() -> Result<()> {
    killed_copy_costs_the_chunks_in_flight(Version::V18).await
}

/// After the second snapshot: values that are not sent.
const UNSENT: &str = "UPDATE big SET number = number + 1 WHERE id % 20 = 1";

/// Each kind of plan for which a copy goes on ends as if it had never been cut short.
async fn goes_on(name: &str, recipe: Recipe, meanwhile: &[&str], then: &str) -> Result<()> {
    let gated = Gated::make(name, Version::V15, recipe).await?;
    gated.cut_short(3).await?;
    for statements in meanwhile {
        gated.client.batch_execute(statements).await?;
    }
    let mut daemon = gated.home.run()?;
    gated.let_in(4).await?;
    gated.client.batch_execute(then).await?;
    gated.complete(&mut daemon).await?;
    ensure!(!daemon.log().contains("begins anew"), "the copy went on");
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_stopped_matching_are_gone_when_the_copy_went_on() -> Result<()> {
    let recipe = Recipe {
        lines: "where = \"number % 3 <> 0\"\n",
        truth: "(SELECT * FROM big WHERE number % 3 <> 0) AS q",
        ..USUAL
    };
    // No row comes to match by this.
    goes_on("filtered", recipe, MOVES, "UPDATE big SET number = number + 3 WHERE id % 20 = 1").await
}

/// A row that comes to match while the table is copied, by an update that leaves a large value unsent: nobody has it.
#[tokio::test(flavor = "multi_thread")]
async fn row_that_comes_to_match_without_its_values_is_not_lost_in_silence() -> Result<()> {
    let gated =
        Gated::make("matching", Version::V15, Recipe { lines: "where = \"number % 3 <> 0\"\n", ..USUAL }).await?;
    let daemon = gated.home.run()?;
    gated.let_in(2).await?;
    gated.client.batch_execute("UPDATE big SET number = 22 WHERE id = 21").await?;
    gated.held.execute("UPDATE gate SET chunks = 1000000", &[]).await?;
    eventually(SOON, "the table is quarantined", async || {
        let row = gated.held.query_one("SELECT state::text, reason FROM tailwater.table_state", &[]).await?;
        let (state, reason): (String, Option<String>) = (row.get(0), row.get(1));
        Ok(if state == "quarantined" { Look::Yes(()) } else { Look::NotYet(format!("{state}, {reason:?}")) })
    })
    .await?;
    drop(daemon);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_deleted_between_two_snapshots_are_never_marked_but_gone() -> Result<()> {
    let recipe = Recipe {
        lines: "delete = \"soft\"\n",
        held: "(SELECT * FROM mirror.big WHERE NOT _tailwater_deleted) AS q",
        ..USUAL
    };
    goes_on("soft", recipe, MOVES, UNSENT).await
}

/// Three leaves of three chunks; the first and part of the second are copied when the copy is cut short.
const PARTITIONED: &str = "
    CREATE TABLE big (id int PRIMARY KEY, body text, note text, number int NOT NULL) PARTITION BY RANGE (id);
    ALTER TABLE big ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE PLAIN;
    CREATE TABLE big_a PARTITION OF big FOR VALUES FROM (-10) TO (40000) WITH (autovacuum_enabled = off);
    CREATE TABLE big_b PARTITION OF big FOR VALUES FROM (40000) TO (80000) WITH (autovacuum_enabled = off);
    CREATE TABLE big_c PARTITION OF big FOR VALUES FROM (80000) TO (2000000) WITH (autovacuum_enabled = off);
    INSERT INTO big SELECT id, CASE WHEN id % 20 = 1 THEN repeat(md5(id::text), 100) END, repeat('n', 1000), id
    FROM generate_series(1, 100000) id";

#[tokio::test(flavor = "multi_thread")]
async fn copy_of_partitions_goes_on() -> Result<()> {
    let across = "DELETE FROM big WHERE id BETWEEN 1001 AND 1100;
                  UPDATE big SET id = id - 49000 WHERE id BETWEEN 50001 AND 50100;
                  CREATE TABLE big_d PARTITION OF big FOR VALUES FROM (3000000) TO (4000000);
                  UPDATE big SET id = id + 3000000 WHERE id BETWEEN 60001 AND 60100";
    let meanwhile: Vec<_> = MOVES.iter().copied().chain([across]).collect();
    goes_on("parts", Recipe { source: PARTITIONED, ..USUAL }, &meanwhile, UNSENT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_begins_anew_when_a_copied_partition_is_gone() -> Result<()> {
    let gated = Gated::make("detached", Version::V15, Recipe { source: PARTITIONED, ..USUAL }).await?;
    gated.cut_short(3).await?;
    gated.client.batch_execute("ALTER TABLE big DETACH PARTITION big_a").await?;
    let mut daemon = gated.home.run()?;
    gated.complete(&mut daemon).await?;
    ensure!(daemon.log().contains("begins anew"), "what was copied of it is no longer of the table");
    daemon.terminate()
}

/// Rows of `big` refer to rows of `parent`, at both ends.
const FAMILY: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, name text);
    INSERT INTO parent SELECT id, 'first' FROM generate_series(1, 100) id;
    CREATE TABLE big (id int PRIMARY KEY, body text, note text, number int NOT NULL REFERENCES parent) WITH (autovacuum_enabled = off);
    ALTER TABLE big ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE PLAIN;
    INSERT INTO big SELECT id, NULL, repeat('n', 1000), 1 + id % 100 FROM generate_series(1, 100000) id";

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_refer_to_each_other_go_on_or_begin_anew_together() -> Result<()> {
    let sections = "[table.\"mirror.parent\"]\nfrom = \"public.parent\"\ncolumns = \"*\"\n";
    let gated = Gated::make("family", Version::V15, Recipe { source: FAMILY, sections, ..USUAL }).await?;
    gated.held.batch_execute("ALTER TABLE mirror.big ADD FOREIGN KEY (number) REFERENCES mirror.parent").await?;
    gated.cut_short(3).await?;
    let meanwhile = "DELETE FROM big WHERE number = 7; DELETE FROM parent WHERE id = 7;
                     INSERT INTO parent VALUES (101, 'new'); UPDATE big SET number = 101 WHERE number = 8;
                     UPDATE parent SET name = 'other' WHERE id = 9";
    gated.client.batch_execute(meanwhile).await?;
    gated.cut_short(6).await?;
    let log = std::fs::read_to_string(gated.home.path().join("log"))?;
    ensure!(log.contains("copy goes on") && !log.contains("begins anew"), "both went on");
    gated.client.batch_execute("VACUUM FULL parent").await?;
    let mut daemon = gated.home.run()?;
    gated.complete(&mut daemon).await?;
    let log = daemon.log();
    ensure!(log.contains("a table that it refers to begins anew"), "both began anew");
    let sql = "SELECT string_agg(concat_ws(' ', id, name), ',' ORDER BY id) FROM ";
    let truth: String = gated.client.query_one(&format!("{sql} parent"), &[]).await?.get(0);
    let held: String = gated.held.query_one(&format!("{sql} mirror.parent"), &[]).await?.get(0);
    ensure!(truth == held, "parents differ");
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_goes_on_by_itself_after_its_connections_broke() -> Result<()> {
    let gated = Gated::new("broken", Version::V15).await?;
    let mut daemon = gated.home.run()?;
    let had = gated.let_in(4).await?;
    for client in [&gated.client, &gated.held] {
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tailwater copy'";
        client.execute(sql, &[]).await?;
        gated.client.batch_execute("UPDATE big SET number = 0 WHERE id % 1000 = 1").await?;
        eventually(SOON, "the copy goes on", async || {
            let times = daemon.log().matches("copy goes on").count();
            Ok(if times >= 1 { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
        })
        .await?;
    }
    gated.complete(&mut daemon).await?;
    let rows = copied(&daemon)?;
    ensure!(rows < ROWS * 3 / 2, "{rows} rows were copied, {had} before the connections broke");
    daemon.terminate()
}

/// The first daemon's chunks wait at the gate while another takes its tables over.
#[tokio::test(flavor = "multi_thread")]
async fn chunk_of_a_daemon_that_was_taken_over_is_not_kept() -> Result<()> {
    let gated = Gated::new("overtaken", Version::V15).await?;
    let mut daemon = gated.home.run()?;
    gated.let_in(2).await?;
    gated.held.batch_execute("UPDATE tailwater.table_state SET epoch = epoch + 1").await?;
    let had = gated.rows_in_chunks().await?;
    gated.held.batch_execute("UPDATE gate SET chunks = 1000000").await?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(!status.success() && daemon.log().contains("took over"), "it ended with {status}");
    let rows = gated.rows_in_chunks().await?;
    ensure!(rows == had, "{had} rows were in chunks, {rows} are");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_begins_anew_where_going_on_would_not_be_exact() -> Result<()> {
    let gated = Gated::new("anew", Version::V15).await?;
    let data = gated.home.data_dir();
    let narrower = MAPPING.replace("\"*\"\n", "\"*\"\nexclude = [\"note\"]\n");
    let config = Home::pair_config(&gated.source, &gated.sink, DATABASE);
    // What is done at either end while no daemon runs, and what is said of it.
    let cases = [
        ("VACUUM FULL big", "", "rewritten"),
        ("ALTER TABLE big ALTER number TYPE bigint; ALTER TABLE big ALTER number TYPE int", "", "rewritten"),
        ("ALTER TABLE big DROP note; ALTER TABLE big ADD note text DEFAULT 'x'", "", "altered"),
        (
            "TRUNCATE big; INSERT INTO big (id, note, number) SELECT id, repeat('n', 1000), id FROM generate_series(1, 60000) id",
            "",
            "truncated",
        ),
        ("", "TRUNCATE mirror.big", "the target was"),
        ("", "journal", "the journal does not reach back"),
        ("", "mapping", "the mapping has changed"),
    ];
    for (at_source, at_sink, reason) in cases {
        gated.cut_short(2).await?;
        gated.client.batch_execute(at_source).await?;
        match at_sink {
            "journal" => std::fs::remove_dir_all(&data)?,
            "mapping" => gated.home.configure(&config, &[("mapping.toml", &narrower)])?,
            sql => gated.held.batch_execute(sql).await?,
        }
        let mut daemon = gated.home.run()?;
        let before = daemon.log().len();
        if at_sink == "mapping" {
            gated.held.batch_execute("UPDATE gate SET chunks = 1000000").await?;
            daemon.wait_caught_up(&gated.client, &gated.held, SOON).await?;
        } else {
            gated.complete(&mut daemon).await.with_context(|| format!("after {at_source}{at_sink}"))?;
        }
        let log = daemon.log();
        let said = log.get(before..).unwrap_or_default();
        let line = said.lines().find(|line| line.contains("begins anew")).context("it went on")?;
        ensure!(line.contains(reason), "after {at_source}{at_sink}: {line}");
        daemon.terminate()?;
        gated
            .held
            .batch_execute("DELETE FROM tailwater.table_state; TRUNCATE mirror.big; UPDATE gate SET chunks = 0")
            .await?;
    }
    Ok(())
}

/// The journal is lost when all is copied and nothing of what came since is applied yet.
#[tokio::test(flavor = "multi_thread")]
async fn copy_that_cannot_catch_up_begins_anew() -> Result<()> {
    let gated = Gated::new("lost", Version::V15).await?;
    gated.cut_short(2).await?;
    let join =
        "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
                CREATE TRIGGER never BEFORE UPDATE ON tailwater.table_state FOR EACH ROW
                WHEN (NEW.joined AND NOT OLD.joined) EXECUTE FUNCTION never();
                UPDATE gate SET chunks = 1000000";
    gated.held.batch_execute(join).await?;
    let mut daemon = gated.home.run()?;
    eventually(SOON, "the table waits to join the stream", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query ~ 'joined = true'";
        let joining: i64 = gated.held.query_one(sql, &[]).await?.get(0);
        Ok(if joining > 0 { Look::Yes(()) } else { Look::NotYet("nobody joins".to_owned()) })
    })
    .await?;
    daemon.kill9();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'tailwater %'";
    gated.held.execute(sql, &[]).await?;
    // As if the stream had gone on meanwhile.
    gated.client.batch_execute("DELETE FROM big WHERE id % 7 = 0").await?;
    let sql = "DROP TRIGGER never ON tailwater.table_state; UPDATE tailwater.checkpoint SET end_lsn = t.lsn + 1
               FROM (SELECT max(lsn) AS lsn FROM tailwater.table_state) AS t WHERE end_lsn <= t.lsn";
    gated.held.batch_execute(sql).await?;
    std::fs::remove_dir_all(gated.home.data_dir())?;
    let mut daemon = gated.home.run()?;
    gated.complete(&mut daemon).await?;
    daemon.terminate()
}

/// What an earlier version of the daemon has made lacks what this one keeps.
#[tokio::test(flavor = "multi_thread")]
async fn state_schema_of_an_earlier_version_is_completed() -> Result<()> {
    let gated = Gated::new("earlier", Version::V15).await?;
    gated.held.batch_execute("DROP TABLE tailwater.copy_chunk").await?;
    gated.cut_short(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_exchanged_a_unique_value_make_the_copy_begin_anew() -> Result<()> {
    let gated = Gated::new("unique", Version::V15).await?;
    gated.client.batch_execute("CREATE UNIQUE INDEX ON big (number)").await?;
    gated.held.batch_execute("CREATE UNIQUE INDEX ON mirror.big (number)").await?;
    gated.cut_short(3).await?;
    let swap = "UPDATE big SET number = -1 WHERE id = 5; UPDATE big SET number = 5 WHERE id = 20000; \
                UPDATE big SET number = 20000 WHERE id = 5";
    gated.client.batch_execute(swap).await?;
    let mut daemon = gated.home.run()?;
    gated.complete(&mut daemon).await?;
    ensure!(daemon.log().contains("copy does not go on from what it has"), "the conflict was met");
    daemon.terminate()
}

/// An ALTER TABLE that rewrites takes the rows away from older snapshots, and nothing in the stream tells.
#[tokio::test(flavor = "multi_thread")]
async fn rewrite_after_the_snapshot_is_no_empty_table() -> Result<()> {
    let source = Cluster::new("rewritten")?;
    source
        .execute(DATABASE, "CREATE TABLE kept AS SELECT 1 AS number; CREATE TABLE rewritten AS SELECT 1 AS number")
        .await?;
    let url = PgUrl::parse(&format!("{}?sslmode=disable", source.url(DATABASE)))?;
    let snapshot = Snapshot::export(&url, "copy", 2).await?;
    source.execute(DATABASE, "ALTER TABLE rewritten ALTER number TYPE bigint").await?;
    let kept = snapshot.open(&TableName::new("public", "kept")).await?;
    ensure!(kept.len() == 1);
    let rewritten = snapshot.open(&TableName::new("public", "rewritten")).await;
    ensure!(matches!(rewritten, Err(SnapshotError::Rewritten(_))), "it looks empty now: {rewritten:?}");

    // From then on nobody can.
    let blocked =
        source.execute(DATABASE, "SET lock_timeout = '100ms'; ALTER TABLE kept ALTER number TYPE bigint").await;
    ensure!(blocked.is_err(), "the table was rewritten under the copy");
    Ok(())
}
