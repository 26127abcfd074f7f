//! Sessions of the sink that wait, die or get into each other's way, and a daemon that sleeps.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::STAR;
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SOON};
use crate::support::process;

const TABLES: &str = "
    CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int);
    INSERT INTO a SELECT i, 0 FROM generate_series(1, 100) i; INSERT INTO b TABLE a";

const WAITS: &str = "SELECT count(*) > 0 FROM pg_stat_activity \
                     WHERE application_name LIKE 'tailwater%' AND wait_event_type = 'Lock'";

async fn mirror(name: &str) -> Result<Mirror> {
    let tables = [("a", "a", STAR), ("b", "b", STAR)];
    // Keys between the tables make their order at the sink known.
    let sink = "ALTER TABLE mirror.b ADD FOREIGN KEY (id) REFERENCES mirror.a";
    Mirror::make(name, Recipe { source: TABLES, sink, tables: &tables, ..Recipe::default() }).await
}

/// Nothing but a delay came of it.
async fn unharmed(mirror: &mut Mirror, after: &str) -> Result<()> {
    mirror.assert_equal(after).await?;
    let log = mirror.daemon.log();
    ensure!(!log.contains("quarantined"), "after {after}: {log}");
    mirror.apply(&["UPDATE a SET n = n + 1; UPDATE b SET n = n + 1"]).await
}

#[tokio::test]
async fn deadlock_with_a_user_is_tried_again() -> Result<()> {
    let mut mirror = mirror("deadlock").await?;
    let user = mirror.sink.connect(DATABASE).await?;
    // The daemon is the one that notices, and loses.
    user.batch_execute("SET deadlock_timeout = '60s'; BEGIN; UPDATE mirror.b SET n = n WHERE id = 1").await?;
    mirror.commit(&["UPDATE a SET n = 1 WHERE id = 1; UPDATE b SET n = 1 WHERE id = 1"]).await?;
    mirror.wait_sink(SOON, "the daemon waits for the user", WAITS).await?;
    user.batch_execute("UPDATE mirror.a SET n = n WHERE id = 1; COMMIT").await?;
    ensure!(mirror.sink.log().contains("deadlock detected"), "there was no deadlock");
    unharmed(&mut mirror, "a deadlock").await
}

#[tokio::test]
async fn session_that_is_killed_while_it_applies_is_made_anew() -> Result<()> {
    let mut mirror = mirror("terminated").await?;
    let user = mirror.sink.connect(DATABASE).await?;
    for _ in 0..3 {
        user.batch_execute("BEGIN; UPDATE mirror.b SET n = n WHERE id = 1").await?;
        mirror.commit(&["UPDATE a SET n = n + 1; UPDATE b SET n = n + 1"]).await?;
        mirror.wait_sink(SOON, "the daemon waits for the user", WAITS).await?;
        let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                    WHERE application_name LIKE 'tailwater%' AND wait_event_type = 'Lock'";
        user.batch_execute(&format!("{kill}; COMMIT")).await?;
    }
    unharmed(&mut mirror, "killed sessions").await
}

#[tokio::test]
async fn locked_table_costs_nothing_but_lag() -> Result<()> {
    let mut mirror = mirror("locked").await?;
    let user = mirror.sink.connect(DATABASE).await?;
    user.batch_execute("BEGIN; LOCK TABLE mirror.a").await?;
    mirror.commit(&["UPDATE a SET n = n + 1; UPDATE b SET n = n + 1"]).await?;
    mirror.wait_sink(SOON, "the daemon waits for the lock", WAITS).await?;
    // Longer than a deadlock's timeout and than any wait of the daemon's that should end.
    user.batch_execute("SELECT pg_sleep(5); COMMIT").await?;
    unharmed(&mut mirror, "a lock").await
}

#[tokio::test]
async fn daemon_that_slept_goes_on() -> Result<()> {
    let mut mirror = mirror("slept").await?;
    process::signal("STOP", &[mirror.daemon.pid()]);
    let began = Instant::now();
    let source = mirror.source.connect(DATABASE).await?;
    let mut transactions = 0;
    while began.elapsed() < Duration::from_secs(10) {
        source.batch_execute("UPDATE a SET n = n + 1; SELECT pg_sleep(0.1)").await?;
        transactions += 1;
    }
    process::signal("CONT", &[mirror.daemon.pid()]);
    ensure!(transactions > 10, "only {transactions} transactions meanwhile");
    unharmed(&mut mirror, "ten seconds' sleep").await
}
