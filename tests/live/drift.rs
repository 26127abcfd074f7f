//! The source's tables change while they are followed: what can be followed is, and what cannot be is said, with nothing
//! lost in any other table.

mod shapes;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::cluster::Cluster;
use crate::support::drift::{Writer, is_lsn, must_explain, wait_shown_quarantined};
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SOON};

const STAR: &str = "columns = \"*\"";

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, n int, name varchar(10), at timestamp DEFAULT '2026-01-01');
    CREATE TABLE other (id int PRIMARY KEY, n int);
    INSERT INTO t SELECT i, i, 'n' || i FROM generate_series(1, 50) i; INSERT INTO other SELECT i, i FROM generate_series(1, 50) i";

const BOTH: &[(&str, &str, &str)] = &[("t", "t", STAR), ("other", "other", STAR)];

/// A mirror whose daemon has noted what its tables are made of.
async fn noted(name: &str, recipe: Recipe<'_>) -> Result<Mirror> {
    let mirror = Mirror::make(name, recipe).await?;
    wait_noted(&mirror, recipe.tables.len()).await?;
    Ok(mirror)
}

async fn wait_noted(mirror: &Mirror, tables: usize) -> Result<()> {
    let sql = format!("SELECT count(*) = {tables} FROM tailwater.source_layout");
    mirror.wait_sink(SOON, "what the tables are made of is noted", &sql).await
}

async fn both(name: &str) -> Result<Mirror> {
    noted(name, Recipe { source: TABLES, tables: BOTH, ..Recipe::default() }).await
}

/// The table is out, for this reason, and the other one goes on.
async fn quarantined(mirror: &Mirror, words: &[&str]) -> Result<()> {
    let state = "SELECT state = 'quarantined' FROM tailwater.table_state WHERE target = 'mirror.t'";
    mirror.wait_sink(SOON, "the table is quarantined", state).await?;
    let sink = mirror.sink.connect(DATABASE).await?;
    let sql = "SELECT reason FROM tailwater.table_state WHERE target = 'mirror.t'";
    let reason: String = sink.query_one(sql, &[]).await?.get(0);
    must_explain(&reason, words)?;
    wait_shown_quarantined(&mirror.daemon, "mirror.t").await?;
    other_goes_on(mirror).await
}

async fn other_goes_on(mirror: &Mirror) -> Result<()> {
    let source = mirror.source.connect(DATABASE).await?;
    let row = source.query_one("UPDATE other SET n = n + 1000 WHERE id = 1 RETURNING n", &[]).await?;
    let sql = format!("SELECT n = {} FROM mirror.other WHERE id = 1", row.get::<_, i32>(0));
    mirror.wait_sink(SOON, "the other table goes on", &sql).await?;
    mirror.compare("public.\"other\"", "the change of its neighbour").await
}

async fn has_column(mirror: &Mirror, column: &str) -> Result<bool> {
    let sink = mirror.sink.connect(DATABASE).await?;
    let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'mirror.t'::regclass AND attname = $1 AND NOT attisdropped)";
    Ok(sink.query_one(sql, &[&column]).await?.get(0))
}

#[tokio::test]
async fn h32_added_columns_are_followed_with_the_values_that_old_rows_have() -> Result<()> {
    let mut mirror = both("added").await?;
    mirror
        .apply_each(&[
            // Layouts change inside a transaction, between its rows.
            "INSERT INTO t VALUES (100, 1, 'a'); UPDATE t SET n = -n WHERE id = 1; ALTER TABLE t ADD COLUMN c int DEFAULT 7;
             INSERT INTO t VALUES (101, 1, 'b'); UPDATE t SET n = -n WHERE id < 3",
            "ALTER TABLE t ADD COLUMN d text",
            "UPDATE t SET d = 'set' WHERE id = 5; DELETE FROM t WHERE id = 6",
            "ALTER TABLE t ADD COLUMN e numeric(12,3) DEFAULT 1.5, ADD COLUMN f timestamptz NOT NULL DEFAULT now(),
             ADD COLUMN g int[] DEFAULT '{1,2}', ADD COLUMN h jsonb DEFAULT '{\"a\": \"it''s\"}'; UPDATE t SET id = id + 1000 WHERE id = 7",
            "INSERT INTO t (id) VALUES (102); UPDATE t SET c = 8, e = NULL WHERE id = 8",
            // A default that is set later is no value of rows that are there.
            "ALTER TABLE t ADD COLUMN i int; ALTER TABLE t ALTER COLUMN i SET DEFAULT 3; INSERT INTO t (id) VALUES (103)",
        ])
        .await?;
    for column in ["c", "d", "e", "f", "g", "h", "i"] {
        ensure!(has_column(&mirror, column).await?, "no column {column}");
    }
    other_goes_on(&mirror).await?;
    ensure!(mirror.daemon.ended()?.is_none(), "the daemon ended");
    // What it knows of old rows holds after a restart.
    mirror.daemon.terminate()?;
    mirror.daemon = mirror.home.run()?;
    mirror.apply_each(&["UPDATE t SET n = 0 WHERE id BETWEEN 10 AND 20", "INSERT INTO t (id) VALUES (104)"]).await?;
    // And in a replay from before the columns.
    mirror.daemon.terminate()?;
    mirror
        .sink
        .execute(DATABASE, "UPDATE mirror.t SET c = -1, e = -1, i = -1 WHERE id IN (1, 2, 7, 8, 100, 1007)")
        .await?;
    let segments = mirror.home.must(&["journal", "ls", "--json"])?;
    let segments: serde_json::Value = serde_json::from_str(&segments)?;
    let first = first_lsn(&segments).with_context(|| format!("no position in {segments}"))?;
    mirror.home.must(&["replay", "--from-lsn", &first])?;
    for id in [1, 2, 8, 100, 1007] {
        let sql =
            format!("SELECT c <> -1 AND e IS DISTINCT FROM -1 AND i IS DISTINCT FROM -1 FROM mirror.t WHERE id = {id}");
        ensure!(sink_says(&mirror, &sql).await?, "row {id} was not replayed");
    }
    mirror.sink.execute(DATABASE, "UPDATE mirror.t SET c = 7, e = 1.5, i = NULL WHERE id = 7").await?;
    mirror.daemon = mirror.home.run()?;
    mirror.assert_equal("the replay").await
}

/// Where the journal begins.
fn first_lsn(segments: &serde_json::Value) -> Option<String> {
    match segments {
        serde_json::Value::String(text) if is_lsn(text) => Some(text.clone()),
        serde_json::Value::Array(items) => items.iter().find_map(first_lsn),
        serde_json::Value::Object(fields) => ["first", "from"].iter().find_map(|name| first_lsn(fields.get(*name)?)),
        _ => None,
    }
}

async fn sink_says(mirror: &Mirror, sql: &str) -> Result<bool> {
    Ok(mirror.sink.connect(DATABASE).await?.query_one(sql, &[]).await?.get(0))
}

#[tokio::test]
async fn column_added_under_load_loses_no_row() -> Result<()> {
    let mut mirror = both("added-load").await?;
    let writer = Writer::start(&mirror.source, Duration::ZERO).await?;
    for (number, default) in ["DEFAULT 5", "", "DEFAULT 6"].iter().enumerate() {
        let alter = format!("ALTER TABLE t ADD COLUMN x{number} int {default}");
        mirror.source.execute(DATABASE, &alter).await?;
        let sql = format!(
            "SELECT count(*) = 1 FROM pg_attribute WHERE attrelid = 'mirror.t'::regclass AND attname = 'x{number}'"
        );
        mirror.wait_sink(SOON, "the column is there", &sql).await?;
    }
    writer.stop().await?;
    mirror.assert_equal("three columns under load").await
}

#[tokio::test]
async fn columns_that_came_and_went_while_the_daemon_was_down_are_followed() -> Result<()> {
    let mut mirror = both("down").await?;
    mirror.daemon.kill9();
    mirror
        .commit(&[
            "INSERT INTO t VALUES (100, 1, 'a'); UPDATE t SET n = 0 WHERE id < 4",
            "ALTER TABLE t ADD COLUMN a int DEFAULT 1; INSERT INTO t (id) VALUES (101); UPDATE t SET n = 1, a = 5 WHERE id = 5",
            "ALTER TABLE t ADD COLUMN b text DEFAULT 'b'; INSERT INTO t (id, a) VALUES (102, 9); UPDATE t SET b = NULL WHERE id = 7",
            "ALTER TABLE t ADD COLUMN c bigint; UPDATE t SET c = 4, a = 4 WHERE id = 8; DELETE FROM t WHERE id = 9",
            "ALTER TABLE t DROP COLUMN a; INSERT INTO t (id, b) VALUES (103, 'x'); UPDATE t SET n = 3 WHERE id = 10",
        ])
        .await?;
    mirror.daemon = mirror.home.run()?;
    mirror.assert_equal("the backlog").await?;
    ensure!(has_column(&mirror, "b").await? && has_column(&mirror, "c").await?, "a column is missing");
    ensure!(!has_column(&mirror, "a").await?, "a column that is no more was made");
    mirror.apply_each(&["INSERT INTO t (id) VALUES (104)", "ALTER TABLE t ADD COLUMN a int; UPDATE t SET a = id"]).await
}

#[tokio::test]
async fn column_that_a_mapping_names_its_own_of_is_left_alone() -> Result<()> {
    let tables = [("t", "t", "columns = { id = \"id\", n = \"n\" }"), ("other", "other", STAR)];
    let mut mirror = noted("named", Recipe { source: TABLES, tables: &tables, ..Recipe::default() }).await?;
    mirror
        .apply_each(&[
            "ALTER TABLE t ADD COLUMN c int DEFAULT 7; UPDATE t SET n = 0",
            "INSERT INTO t (id) VALUES (100)",
        ])
        .await?;
    mirror.apply(&["ALTER TABLE t DROP COLUMN name, DROP COLUMN c; UPDATE t SET n = 5 WHERE id > 10"]).await?;
    ensure!(!has_column(&mirror, "c").await?, "a column that nobody asked for");
    Ok(())
}

#[tokio::test]
async fn h32_volatile_default_quarantines_the_table() -> Result<()> {
    let mut mirror = both("volatile").await?;
    mirror.commit(&["INSERT INTO t VALUES (100, 1, 'before')"]).await?;
    mirror
        .commit(&["ALTER TABLE t ADD COLUMN c double precision DEFAULT random(); UPDATE t SET n = 0 WHERE id = 1"])
        .await?;
    quarantined(&mirror, &["\"public.t\"", "\"c\"", "default"]).await?;
    // What came before the change is there, and nothing after it.
    let sink = mirror.sink.connect(DATABASE).await?;
    let held: i64 = sink.query_one("SELECT count(*) FROM mirror.t WHERE id = 100", &[]).await?.get(0);
    ensure!(held == 1, "a row before the change is missing");
    let n: i32 = sink.query_one("SELECT n FROM mirror.t WHERE id = 1", &[]).await?.get(0);
    ensure!(n == 1, "a row after the change was applied");

    // As the reason says, it comes back.
    mirror.daemon.terminate()?;
    mirror.sink.execute(DATABASE, "TRUNCATE mirror.t; ALTER TABLE mirror.t ADD COLUMN c double precision").await?;
    mirror.sink.execute(DATABASE, "DELETE FROM tailwater.table_state WHERE target = 'mirror.t'").await?;
    mirror.daemon = mirror.home.run()?;
    let copied = "SELECT count(*) = 2 FROM tailwater.table_state WHERE state = 'streaming'";
    mirror.wait_sink(SOON, "it was copied", copied).await?;
    mirror.assert_equal("the new copy").await
}

#[tokio::test]
async fn column_that_was_dropped_and_added_again_is_not_taken_for_the_old_one() -> Result<()> {
    let mirror = both("again").await?;
    mirror.commit(&["ALTER TABLE t DROP COLUMN n; UPDATE t SET name = 'x' WHERE id = 1"]).await?;
    mirror.wait_sink(SOON, "the rest is followed", "SELECT name = 'x' FROM mirror.t WHERE id = 1").await?;
    let note = "SELECT state = 'streaming' AND coalesce(reason, '') LIKE '%\"n\" was dropped%' FROM tailwater.table_state WHERE target = 'mirror.t'";
    mirror.wait_sink(SOON, "it is said", note).await?;
    mirror.commit(&["ALTER TABLE t ADD COLUMN n int DEFAULT 3; UPDATE t SET name = 'y' WHERE id = 1"]).await?;
    quarantined(&mirror, &["\"n\" was added", "dropped"]).await
}

#[tokio::test]
async fn sink_that_may_not_be_altered_is_told_what_to_run() -> Result<()> {
    let (source, sink) = (Cluster::new("norights-source")?, Cluster::new("norights-sink")?);
    let url = sink.url_as("writer", DATABASE);
    let all = sink.url(DATABASE);
    let tables = "GRANT USAGE ON SCHEMA mirror TO writer; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA mirror TO writer;
                  ALTER SCHEMA tailwater OWNER TO writer; ALTER TABLE tailwater.checkpoint OWNER TO writer;
                  ALTER TABLE tailwater.table_state OWNER TO writer; ALTER TABLE tailwater.view_state OWNER TO writer";
    sink.execute(DATABASE, "CREATE ROLE writer LOGIN").await?;
    let recipe = Recipe { source: TABLES, tables: BOTH, sink: tables, ..Recipe::default() };
    let mut mirror = Mirror::between("norights", source, sink, recipe).await?;
    wait_noted(&mirror, 2).await?;
    mirror.sink.execute(DATABASE, "ALTER TABLE tailwater.source_layout OWNER TO writer").await?;
    mirror.daemon.terminate()?;
    let path = mirror.home.path().join("tailwater.toml");
    let config = std::fs::read_to_string(&path)?.replace(&all, &url);
    std::fs::write(&path, config)?;
    mirror.daemon = mirror.home.run()?;
    mirror.apply(&["UPDATE t SET n = 5 WHERE id = 5"]).await?;
    mirror.commit(&["ALTER TABLE t ADD COLUMN c int DEFAULT 7; INSERT INTO t (id) VALUES (100)"]).await?;
    quarantined(&mirror, &["owner", "ALTER TABLE \"mirror\".\"t\" ADD COLUMN \"c\" integer"]).await
}

#[tokio::test]
async fn column_outside_the_publications_list_is_asked_for_and_then_followed() -> Result<()> {
    let tables = [("t", "t", "columns = \"*\"\nexclude = [\"name\"]"), ("other", "other", STAR)];
    let mut mirror = noted("list", Recipe { source: TABLES, tables: &tables, ..Recipe::default() }).await?;
    mirror.commit(&["ALTER TABLE t ADD COLUMN c int DEFAULT 7; UPDATE t SET n = 0 WHERE id = 1"]).await?;
    let note = "SELECT state = 'streaming' AND coalesce(reason, '') LIKE '%\"c\" was added%tailwater setup%' \
                FROM tailwater.table_state WHERE target = 'mirror.t'";
    mirror.wait_sink(SOON, "it is said what to do", note).await?;
    let check = mirror.home.command(&["check"])?;
    ensure!(check.stderr.contains("tailwater setup"), "{}", check.stderr);
    mirror.apply(&["UPDATE t SET n = 1 WHERE id = 1"]).await?;
    mirror.home.must(&["setup"])?;
    mirror.commit(&["UPDATE t SET n = 2 WHERE id = 2"]).await?;
    mirror
        .wait_sink(
            SOON,
            "the column is followed",
            "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'mirror.t'::regclass AND attname = 'c')",
        )
        .await?;
    mirror.apply(&["UPDATE t SET c = id; INSERT INTO t (id) VALUES (100)"]).await?;
    let error = mirror.daemon.log().lines().find(|line| line.contains("quarantined")).map(str::to_owned);
    ensure!(error.is_none(), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn table_that_cannot_be_followed_stops_the_daemon_where_that_is_asked_for() -> Result<()> {
    let config = [("kind = \"postgres\"", "kind = \"postgres\"\non_error = \"stop\"")];
    let recipe = Recipe { source: TABLES, tables: BOTH, config: &config, ..Recipe::default() };
    let mut mirror = noted("drift-stop", recipe).await?;
    mirror.commit(&["UPDATE other SET n = 3; INSERT INTO t VALUES (100, 1, 'before')"]).await?;
    mirror
        .commit(&["ALTER TABLE t RENAME COLUMN n TO m; UPDATE t SET m = 0 WHERE id = 1; UPDATE other SET n = 4"])
        .await?;
    let status = mirror.daemon.wait_ended(Duration::from_secs(120))?;
    let log = mirror.daemon.log();
    ensure!(status.code() == Some(1), "ended with {status}: {log}");
    log.lines().find(|line| line.contains("renamed to \"m\"")).context("does not say why")?;
    let sink = mirror.sink.connect(DATABASE).await?;
    let held =
        "SELECT (SELECT count(*) FROM mirror.t WHERE id = 100) + (SELECT count(*) FROM mirror.other WHERE n = 4)";
    ensure!(sink.query_one(held, &[]).await?.get::<_, i64>(0) == 1, "it does not stand before the change");
    // The mapping says where the column goes, and nothing was lost.
    let path = mirror.home.path().join("mappings/mapping.toml");
    let mapping = std::fs::read_to_string(&path)?;
    let mapping = mapping.replacen(STAR, "columns = \"*\"\nrename = { m = \"n\" }", 1);
    std::fs::write(&path, mapping)?;
    mirror.daemon = mirror.home.run()?;
    let same = "SELECT (SELECT count(*) FROM mirror.t WHERE id = 1 AND n = 0) = 1 AND (SELECT count(*) FROM mirror.other WHERE n = 4) = 50";
    mirror.wait_sink(SOON, "it goes on", same).await
}
