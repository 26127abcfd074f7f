//! Trouble at the sink and on the way there and back: rows that are refused, rows that are there already, keys between
//! tables, locks, sessions that die, lines that go silent or end in the middle of a commit.

mod lines;
mod sessions;

use anyhow::{Context, Result, ensure};

use crate::support::drift::is_lsn;
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SOON};
use crate::support::process;

const STAR: &str = "columns = \"*\"";

const TWO_TABLES: &str = "
    CREATE TABLE good (id int PRIMARY KEY, n int); CREATE TABLE bad (id int PRIMARY KEY, n int);
    INSERT INTO good SELECT i, i FROM generate_series(1, 20) i; INSERT INTO bad TABLE good";

const POISON: &[&str] = &[
    "INSERT INTO good VALUES (100, 1); INSERT INTO bad VALUES (100, 1)",
    "INSERT INTO good VALUES (101, 1); INSERT INTO bad VALUES (101, 1), (102, -1), (103, 1)",
    "INSERT INTO good VALUES (104, 1); UPDATE bad SET n = 7 WHERE id = 1; UPDATE good SET n = 99 WHERE id < 5",
];

const REFUSES: &str = "ALTER TABLE mirror.bad ADD CONSTRAINT positive CHECK (n > 0)";

#[tokio::test]
async fn row_that_is_refused_quarantines_its_table_and_no_other() -> Result<()> {
    let tables = [("good", "good", STAR), ("bad", "bad", STAR)];
    let recipe = Recipe { source: TWO_TABLES, sink: REFUSES, tables: &tables, ..Recipe::default() };
    let mut mirror = Mirror::make("poison", recipe).await?;
    mirror.commit(POISON).await?;
    let state = "SELECT state = 'quarantined' FROM tailwater.table_state WHERE target LIKE '%bad%'";
    mirror.wait_sink(SOON, "the table is quarantined", state).await?;
    let goes_on = "SELECT count(*) = 23 AND count(*) FILTER (WHERE n = 99) = 4 FROM mirror.good";
    mirror.wait_sink(SOON, "the other table goes on", goes_on).await?;
    mirror.compare("public.\"good\"", "the poison").await?;

    // The refused table stands right before the transaction that holds the row.
    let sink = mirror.sink.connect(DATABASE).await?;
    let held: Vec<i32> = sink
        .query("SELECT id FROM mirror.bad WHERE id >= 100 ORDER BY id", &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect();
    ensure!(held == [100], "{held:?}");
    let reason: String =
        sink.query_one("SELECT reason FROM tailwater.table_state WHERE reason IS NOT NULL", &[]).await?.get(0);
    ensure!(reason.contains("positive"), "{reason}");

    let status = mirror.daemon.status()?;
    let tables = status["tables"].as_array().context("a list of tables")?;
    let of = |name: &str| tables.iter().find(|table| table["table"].as_str().is_some_and(|table| table.contains(name)));
    ensure!(of("bad").is_some_and(|table| table["state"] == "quarantined"), "{status}");
    ensure!(of("good").is_some_and(|table| table["state"] == "streaming"), "{status}");
    let metrics = mirror.daemon.get("/metrics")?.body;
    let sample = metrics.lines().find(|line| {
        line.starts_with("tailwater_table_state{") && line.contains("mirror.bad") && line.contains("\"quarantined\"")
    });
    ensure!(sample.is_some_and(|line| line.ends_with(" 1")), "{sample:?}");
    let log = mirror.daemon.log();
    ensure!(log.lines().any(|line| line.contains("quarantined") && line.contains("mirror.bad")), "{log}");

    // It stays so after a restart, and the others go on.
    mirror.daemon.terminate()?;
    mirror.daemon = mirror.home.run()?;
    mirror.commit(&["INSERT INTO bad VALUES (200, 1); INSERT INTO good VALUES (200, 1)"]).await?;
    mirror.wait_sink(SOON, "the other table goes on", "SELECT count(*) = 24 FROM mirror.good").await?;
    let held: i64 = sink.query_one("SELECT count(*) FROM mirror.bad WHERE id >= 100", &[]).await?.get(0);
    ensure!(held == 1, "the quarantined table was written");
    mirror.daemon.terminate()
}

#[tokio::test]
async fn row_that_is_refused_stops_the_daemon_where_that_is_asked_for() -> Result<()> {
    let tables = [("good", "good", STAR), ("bad", "bad", STAR)];
    let config = [("kind = \"postgres\"", "kind = \"postgres\"\non_error = \"stop\"")];
    let recipe = Recipe { source: TWO_TABLES, sink: REFUSES, tables: &tables, config: &config };
    let mut mirror = Mirror::make("poison-stop", recipe).await?;
    mirror.commit(POISON).await?;
    let status = mirror.daemon.wait_ended(SOON)?;
    let log = mirror.daemon.log();
    ensure!(status.code() == Some(1), "ended with {status}: {log}");
    let said = log.lines().rev().find(|line| line.contains("mirror.bad") && line.contains("positive"));
    let said = said.with_context(|| format!("does not say why: {log}"))?;
    ensure!(said.split([' ', '=', '(', ')', ',']).any(is_lsn), "does not say where: {said}");
    // Nothing of the transaction that holds the row is there.
    let sink = mirror.sink.connect(DATABASE).await?;
    let held =
        "SELECT (SELECT count(*) FROM mirror.good WHERE id > 100) + (SELECT count(*) FROM mirror.bad WHERE id > 100)";
    ensure!(sink.query_one(held, &[]).await?.get::<_, i64>(0) == 0, "a part of a transaction is there");
    // With the reason gone it goes on, with nothing lost.
    mirror.sink.execute(DATABASE, "ALTER TABLE mirror.bad DROP CONSTRAINT positive").await?;
    mirror.daemon = mirror.home.run()?;
    mirror.assert_equal("the constraint went").await
}

#[tokio::test]
async fn row_that_somebody_else_wrote_is_taken_over() -> Result<()> {
    let sql = "CREATE TABLE rows (id int PRIMARY KEY, n int); INSERT INTO rows VALUES (0, 0)";
    let mut mirror = Mirror::of("by-hand", sql, &["rows"]).await?;
    mirror.sink.execute(DATABASE, "INSERT INTO mirror.rows VALUES (5, -5), (2999, -1), (7000, -1)").await?;
    // Enough new rows for the way that expects none of them to be there.
    mirror
        .apply_each(&[
            "INSERT INTO rows SELECT i, i FROM generate_series(1, 3000) i; INSERT INTO rows VALUES (7000, 1)",
            "INSERT INTO rows SELECT i, i FROM generate_series(3001, 6001) i",
        ])
        .await
}

const FAMILY: &str = "
    CREATE TABLE parent (id int PRIMARY KEY, name text);
    CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent, twin int REFERENCES child);
    INSERT INTO parent SELECT i, 'p' || i FROM generate_series(1, 40) i;
    INSERT INTO child SELECT i, i FROM generate_series(1, 40) i";

const FAMILY_KEYS: &str = "
    ALTER TABLE mirror.child ADD FOREIGN KEY (parent) REFERENCES mirror.parent;
    ALTER TABLE mirror.child ADD FOREIGN KEY (twin) REFERENCES mirror.child";

const FAMILY_LIFE: &[&str] = &[
    "INSERT INTO parent VALUES (100, 'new'); INSERT INTO child VALUES (100, 100, NULL)",
    "DELETE FROM child WHERE id = 1; DELETE FROM parent WHERE id = 1",
    // The old parent goes in the transaction in which its child finds another.
    "UPDATE child SET parent = 3 WHERE id = 2; DELETE FROM parent WHERE id = 2",
    "INSERT INTO parent VALUES (101, 'newer'); UPDATE child SET parent = 101 WHERE id = 4; DELETE FROM parent WHERE id = 4",
    // In the one after.
    "UPDATE child SET parent = NULL WHERE id = 5",
    "DELETE FROM parent WHERE id = 5",
    // The parent's key changes with its children; rows that refer to each other.
    "INSERT INTO parent VALUES (106, 'p6'); UPDATE child SET parent = 106 WHERE parent = 6; DELETE FROM parent WHERE id = 6",
    "INSERT INTO child VALUES (201, 7, NULL); INSERT INTO child VALUES (202, 7, 201); UPDATE child SET twin = 202 WHERE id = 201",
    "UPDATE child SET twin = NULL WHERE id = 201; DELETE FROM child WHERE id = 202; DELETE FROM child WHERE id = 201",
    "DELETE FROM child WHERE id > 30; DELETE FROM parent WHERE id BETWEEN 31 AND 40; INSERT INTO parent VALUES (31, 'again')",
];

#[tokio::test]
async fn foreign_keys_of_the_target_hold_at_every_statement() -> Result<()> {
    let tables = [("parent", "parent", STAR), ("child", "child", STAR)];
    let recipe = Recipe { source: FAMILY, sink: FAMILY_KEYS, tables: &tables, ..Recipe::default() };
    let mut mirror = Mirror::make("family", recipe).await?;
    mirror.apply_each(FAMILY_LIFE).await?;
    ensure!(mirror.daemon.ended()?.is_none(), "the daemon ended");

    // The same in one batch, as it is after the daemon slept.
    let mut mirror = Mirror::make("family", recipe).await?;
    process::signal("STOP", &[mirror.daemon.pid()]);
    mirror.commit(FAMILY_LIFE).await?;
    process::signal("CONT", &[mirror.daemon.pid()]);
    mirror.assert_equal("one batch").await?;

    // And in one transaction.
    let mut mirror = Mirror::make("family", recipe).await?;
    mirror.apply(&[&FAMILY_LIFE.join("; ")]).await
}

#[tokio::test]
async fn values_that_are_unique_may_change_hands() -> Result<()> {
    let sql = "CREATE TABLE seats (id int PRIMARY KEY, seat text UNIQUE, n int);
               INSERT INTO seats SELECT i, 's' || i, 0 FROM generate_series(1, 30) i";
    let tables = [("seats", "seats", STAR)];
    let sink = "ALTER TABLE mirror.seats ADD UNIQUE (seat)";
    let changes = [
        "UPDATE seats SET seat = NULL WHERE id = 1; UPDATE seats SET seat = 's1' WHERE id = 2; UPDATE seats SET seat = 's2' WHERE id = 1",
        "UPDATE seats SET seat = 'x' WHERE id = 3; UPDATE seats SET seat = 's3' WHERE id = 4",
        "DELETE FROM seats WHERE id = 5; INSERT INTO seats VALUES (55, 's5', 1)",
        "UPDATE seats SET seat = 'y' WHERE id = 6",
        "INSERT INTO seats VALUES (66, 's6', 1); UPDATE seats SET n = n + 1",
        "UPDATE seats SET id = 77 WHERE id = 7; INSERT INTO seats VALUES (7, 'z', 0); UPDATE seats SET seat = 'w' WHERE id = 77;
         UPDATE seats SET seat = 's7' WHERE id = 7",
    ];
    let recipe = Recipe { source: sql, sink, tables: &tables, ..Recipe::default() };
    let mut mirror = Mirror::make("seats", recipe).await?;
    mirror.apply_each(&changes).await?;
    let mut mirror = Mirror::make("seats", recipe).await?;
    process::signal("STOP", &[mirror.daemon.pid()]);
    mirror.commit(&changes).await?;
    process::signal("CONT", &[mirror.daemon.pid()]);
    mirror.assert_equal("one batch").await?;
    let mut mirror = Mirror::make("seats", recipe).await?;
    mirror.apply(&[&changes.join("; ")]).await
}
