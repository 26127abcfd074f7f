//! The source's tables change while ClickHouse follows them: what can be followed is, and what cannot be is said in the same
//! words as for Postgres, with nothing lost in any other table.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::drift::{Writer, must_explain, wait_shown_quarantined};
use crate::support::lake::Lake;
use crate::support::pair::DATABASE;

const TABLES: &str = "
    CREATE TABLE t (id int PRIMARY KEY, n int, name varchar(10));
    CREATE TABLE other (id int PRIMARY KEY, n int);
    INSERT INTO t SELECT i, i, 'n' || i FROM generate_series(1, 50) i; INSERT INTO other SELECT i, i FROM generate_series(1, 50) i";

async fn noted(name: &str) -> Result<Lake> {
    let lake = Lake::start(name, TABLES, &Lake::all_of(&["t", "other"])).await?;
    wait_noted(&lake, 2).await?;
    Ok(lake)
}

async fn wait_noted(lake: &Lake, tables: u32) -> Result<()> {
    let sql = "SELECT count() FROM tailwater.source_layout FINAL";
    lake.wait_sink("what the tables are made of is noted", sql, &tables.to_string()).await
}

async fn other_goes_on(lake: &Lake) -> Result<()> {
    let source = lake.source.connect(DATABASE).await?;
    let row = source.query_one("UPDATE other SET n = n + 1000 WHERE id = 1 RETURNING n", &[]).await?;
    let n: i32 = row.get(0);
    lake.wait_sink("the other table goes on", "SELECT n FROM mirror.other_current WHERE id = 1", &n.to_string())
        .await?;
    lake.compare("other", &["id", "n"], "the change of its neighbour").await
}

/// The table is out, for this reason.
async fn quarantined(lake: &Lake, table: &str, words: &[&str]) -> Result<()> {
    let reason = lake.quarantined(&format!("mirror.{table}")).await?;
    must_explain(&reason, words).with_context(|| table.to_owned())?;
    wait_shown_quarantined(&lake.daemon, &format!("mirror.{table}")).await
}

const GROWN: &[&str] = &[
    "id",
    "n",
    "name",
    "c",
    "d",
    "trim_scale(e) => e",
    "to_char(f, 'YYYY-MM-DD HH24:MI:SS.US') => f",
    "g",
    "replace(trim(both '{}' from k::text), 'NULL', '') => arrayStringConcat(arrayMap(x -> ifNull(toString(x), ''), k), ',')",
    "h",
    "encode(b, 'hex') => lower(hex(b))",
    "m",
    "i",
];

#[tokio::test(flavor = "multi_thread")]
async fn h32_added_columns_are_followed_with_the_values_that_old_rows_have() -> Result<()> {
    let mut lake = noted("ch-added").await?;
    let steps: &[(&str, &[&str])] = &[
        // Layouts change inside a transaction, between its rows.
        (
            "INSERT INTO t VALUES (100, 1, 'a'); UPDATE t SET n = -n WHERE id = 1; ALTER TABLE t ADD COLUMN c int DEFAULT 7;
             INSERT INTO t VALUES (101, 1, 'b'); UPDATE t SET n = -n WHERE id < 3",
            &["id", "n", "name", "c"],
        ),
        ("ALTER TABLE t ADD COLUMN d text", &["id", "n", "name", "c", "d"]),
        ("UPDATE t SET d = 'set' WHERE id = 5; DELETE FROM t WHERE id = 6", &["id", "n", "name", "c", "d"]),
        (
            "CREATE TYPE mood AS ENUM ('good', 'it''s \\');
             ALTER TABLE t ADD COLUMN e numeric(12,3) DEFAULT 1.5, ADD COLUMN f timestamptz NOT NULL DEFAULT now(),
             ADD COLUMN g int[] DEFAULT '{1,2}', ADD COLUMN k int[] NOT NULL DEFAULT '{1,NULL}',
             ADD COLUMN h jsonb DEFAULT '{\"a\": \"it''s \\\\\"}', ADD COLUMN b bytea DEFAULT '\\x00ff27',
             ADD COLUMN m mood DEFAULT 'it''s \\'; UPDATE t SET id = id + 1000 WHERE id = 7",
            &GROWN[..GROWN.len() - 1],
        ),
        (
            "INSERT INTO t (id) VALUES (102); UPDATE t SET c = 8, e = NULL WHERE id = 8; DELETE FROM t WHERE id = 9",
            &GROWN[..GROWN.len() - 1],
        ),
        // A default that is set later is no value of rows that are there.
        ("ALTER TABLE t ADD COLUMN i int; ALTER TABLE t ALTER COLUMN i SET DEFAULT 3; INSERT INTO t (id) VALUES (103)", GROWN),
    ];
    for (transaction, columns) in steps {
        lake.commit(&[transaction]).await?;
        let last = columns.last().and_then(|column| column.split(" => ").last()).context("a column")?;
        let name = last.trim_start_matches("lower(hex(").trim_end_matches("))");
        let sql = format!("SELECT count() FROM system.columns WHERE table = 't_current' AND name = '{name}'");
        lake.wait_sink(&format!("the view has column {name}"), &sql, "1").await?;
        lake.assert_equal("t", columns, transaction).await?;
    }
    other_goes_on(&lake).await?;
    lake.server.query("OPTIMIZE TABLE mirror.t FINAL")?;
    lake.assert_equal("t", GROWN, "merges").await?;
    // What it knows of old rows holds after a restart.
    lake.daemon.terminate()?;
    lake.daemon = lake.home.run()?;
    lake.commit(&["UPDATE t SET n = 0 WHERE id BETWEEN 10 AND 20", "INSERT INTO t (id) VALUES (104)"]).await?;
    lake.assert_equal("t", GROWN, "a restart").await?;
    // And in a replay from before the columns.
    lake.daemon.terminate()?;
    let segments: serde_json::Value = serde_json::from_str(&lake.home.must(&["journal", "ls", "--json"])?)?;
    let first = segments.pointer("/0/first").and_then(|lsn| lsn.as_str()).context("no first position")?;
    lake.home.must(&["replay", "--from-lsn", first])?;
    lake.daemon = lake.home.run()?;
    lake.assert_equal("t", GROWN, "the replay").await
}

#[tokio::test(flavor = "multi_thread")]
async fn column_added_under_load_loses_no_row() -> Result<()> {
    let mut lake = noted("ch-added-load").await?;
    // Below what a busy small machine carries.
    let writer = Writer::start(&lake.source, Duration::from_millis(10)).await?;
    for (number, default) in ["DEFAULT 5", "", "DEFAULT 6"].iter().enumerate() {
        lake.source.execute(DATABASE, &format!("ALTER TABLE t ADD COLUMN x{number} int {default}")).await?;
        let sql = format!("SELECT count() FROM system.columns WHERE table = 't_current' AND name = 'x{number}'");
        lake.wait_sink("the column is there", &sql, "1").await?;
    }
    writer.stop().await?;
    lake.assert_equal("t", &["id", "n", "name", "x0", "x1", "x2"], "three columns under load").await
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_came_and_went_while_the_daemon_was_down_are_followed() -> Result<()> {
    let mut lake = noted("ch-down").await?;
    lake.daemon.kill9();
    lake.commit(&[
        "INSERT INTO t VALUES (100, 1, 'a'); UPDATE t SET n = 0 WHERE id < 4",
        "ALTER TABLE t ADD COLUMN a int DEFAULT 1; INSERT INTO t (id) VALUES (101); UPDATE t SET n = 1, a = 5 WHERE id = 5",
        "ALTER TABLE t ADD COLUMN b text DEFAULT 'b'; INSERT INTO t (id, a) VALUES (102, 9); UPDATE t SET b = NULL WHERE id = 7",
        "ALTER TABLE t ADD COLUMN c bigint; UPDATE t SET c = 4, a = 4 WHERE id = 8; DELETE FROM t WHERE id = 9",
        "ALTER TABLE t DROP COLUMN a; INSERT INTO t (id, b) VALUES (103, 'x'); UPDATE t SET n = 3 WHERE id = 10",
    ])
    .await?;
    let check = lake.home.command(&["check"])?;
    ensure!(check.status.success() && check.stderr.contains("which `tailwater run` adds to it"), "{}", check.stderr);
    lake.daemon = lake.home.run()?;
    lake.wait_sink(
        "the columns are there",
        "SELECT count() FROM system.columns WHERE table = 't_current' AND name IN ('b', 'c')",
        "2",
    )
    .await?;
    lake.assert_equal("t", &["id", "n", "name", "b", "c"], "the backlog").await?;
    ensure!(
        lake.number("SELECT count() FROM system.columns WHERE table = 't' AND name = 'a'")? == 0,
        "a column that is no more was made"
    );
    lake.commit(&[
        "INSERT INTO t (id) VALUES (104)",
        "ALTER TABLE t DROP COLUMN name; UPDATE t SET n = 9 WHERE id = 11",
    ])
    .await?;
    let note = "SELECT state, position(ifNull(reason, ''), '\"name\" was dropped') > 0 FROM tailwater.table_state FINAL WHERE target = 'mirror.t'";
    lake.wait_sink("it is said", note, "streaming\t1").await?;
    lake.assert_equal("t", &["id", "n", "b", "c"], "a dropped column").await
}

/// Each change to a table of its own, all under one daemon.
const BREAKING: &[(&str, &[&str])] = &[
    (
        "ALTER TABLE {} RENAME COLUMN n TO m; UPDATE {} SET m = 0 WHERE id = 1",
        &["\"n\" was renamed to \"m\"", "rename"],
    ),
    ("ALTER TABLE {} ALTER n TYPE bigint; UPDATE {} SET n = 0 WHERE id = 1", &["\"n\"", "integer", "bigint"]),
    ("ALTER TABLE {} ALTER n TYPE int USING n * 2", &["\"n\"", "anew"]),
    (
        "ALTER TABLE {} ADD COLUMN c double precision DEFAULT random(); UPDATE {} SET n = 0 WHERE id = 1",
        &["\"c\"", "default that each row computed"],
    ),
    ("ALTER TABLE {} ADD COLUMN c date DEFAULT 'infinity'", &["\"c\"", "default that the target cannot hold"]),
    ("ALTER TABLE {} RENAME TO moved", &["moved"]),
    ("ALTER PUBLICATION tailwater_src DROP TABLE {}", &["publication"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_quarantines_its_table_with_the_same_words() -> Result<()> {
    let names: Vec<String> = (0..BREAKING.len()).map(|place| format!("b{place}")).collect();
    let make = |name: &String| {
        format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, n int); INSERT INTO {name} SELECT i, i FROM generate_series(1, 9) i;"
        )
    };
    let tables: String = names.iter().map(make).collect::<String>() + TABLES;
    let mut mapped: Vec<&str> = names.iter().map(String::as_str).collect();
    mapped.push("other");
    let mut lake = Lake::start("ch-breaking", &tables, &Lake::all_of(&mapped)).await?;
    wait_noted(&lake, u32::try_from(mapped.len())?).await?;
    for ((change, words), name) in BREAKING.iter().zip(&names) {
        lake.commit(&[&change.replace("{}", name)]).await?;
        quarantined(&lake, name, words).await?;
        let held = lake.server.query(&format!("SELECT sum(n) FROM mirror.{name}_current"))?;
        ensure!(held == "45", "{change}: a row after the change was applied: {held}");
        other_goes_on(&lake).await?;
    }
    ensure!(lake.daemon.ended()?.is_none(), "the daemon ended");

    // As the reason says, it comes back.
    lake.daemon.terminate()?;
    lake.server.query("TRUNCATE TABLE mirror.b2")?;
    lake.server.query("DELETE FROM tailwater.table_state WHERE target = 'mirror.b2'")?;
    lake.daemon = lake.home.run()?;
    let streaming = "SELECT state FROM tailwater.table_state FINAL WHERE target = 'mirror.b2'";
    lake.wait_sink("it was copied", streaming, "streaming").await?;
    lake.commit(&["UPDATE b2 SET n = n + 1"]).await?;
    lake.assert_equal("b2", &["id", "n"], "the new copy").await
}

#[tokio::test(flavor = "multi_thread")]
async fn user_that_may_not_alter_is_told_what_to_run_and_a_view_of_ones_own_is_left() -> Result<()> {
    let mut lake = noted("ch-norights").await?;
    lake.daemon.terminate()?;
    lake.server.query("CREATE OR REPLACE VIEW mirror.other_current AS SELECT id, n, n * 2 AS twice FROM mirror.other FINAL WHERE _deleted = 0")?;
    lake.daemon = lake.home.run()?;
    lake.commit(&["ALTER TABLE other ADD COLUMN c int; UPDATE other SET c = 5 WHERE id = 5"]).await?;
    lake.wait_sink("the column is followed", "SELECT c FROM mirror.other FINAL WHERE id = 5", "5").await?;
    let note = "SELECT state, position(ifNull(reason, ''), 'is not as it was made') > 0 FROM tailwater.table_state FINAL WHERE target = 'mirror.other'";
    lake.wait_sink("it is said of the view", note, "streaming\t1").await?;
    lake.daemon.terminate()?;

    let grants = [
        "GRANT SELECT, INSERT ON tailwater.*",
        "GRANT SELECT, INSERT, TRUNCATE, ALTER DELETE ON mirror.*",
        "GRANT CREATE TEMPORARY TABLE ON *.*",
        "GRANT TABLE ENGINE ON Memory",
        "GRANT READ ON FILE",
    ];
    lake.server.grant("writer", &grants.map(str::to_owned))?;
    lake.server.kill9_and_resume()?;
    let path = lake.home.path().join("tailwater.toml");
    let config = std::fs::read_to_string(&path)?.replace("http://", "http://writer@");
    std::fs::write(&path, config)?;
    lake.daemon = lake.home.run()?;
    lake.commit(&["ALTER TABLE t ADD COLUMN c int DEFAULT 7; INSERT INTO t (id) VALUES (100)"]).await?;
    quarantined(&lake, "t", &["Not enough privileges", "ALTER TABLE `mirror`.`t` ADD COLUMN IF NOT EXISTS `c`"]).await
}
