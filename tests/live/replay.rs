//! `tailwater replay` over the journal that a real daemon wrote.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use tailwater::lsn::Lsn;

use crate::support::cluster::Options;
use crate::support::daemon::{Daemon, Home, flushed};
use crate::support::pair::{DATABASE, Pair};
use crate::support::postgres::Version;
use crate::support::workload::{TABLES, mirror_mapping};

/// Every kind of change, key swaps of rows with out-of-line values among them.
const CHANGES: &str = "
    BEGIN;
    UPDATE churn SET id = 1000 WHERE id = 150;
    UPDATE churn SET id = 150 WHERE id = 151;
    UPDATE churn SET id = 151 WHERE id = 1000;
    COMMIT;
    UPDATE churn SET number = number + 1 WHERE id > 180;
    UPDATE churn_full SET id = 2000, number = 5 WHERE id = 199;
    DELETE FROM churn WHERE id = 191;
    INSERT INTO churn VALUES (191, repeat('again', 2000), NULL, 0), (300, 'new', NULL, 3);
    DELETE FROM accounts_a WHERE id <= 10;
    UPDATE accounts_b SET balance = balance + 7 WHERE id <= 10;
    TRUNCATE ledger;
    INSERT INTO ledger VALUES (1, 1, 'NaN', E'tab\\t', 'infinity'), (1, 2, 1.5, 'x', NULL)";

/// A pair whose daemon has run: the position before the changes, and the daemon, caught up after them.
async fn changed(name: &str) -> Result<(Pair, Lsn, Daemon)> {
    let pair = Pair::start(name, Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let before = flushed(&pair.source().await?).await?;
    pair.source.execute(DATABASE, CHANGES).await?;
    pair.catch_up(&mut daemon).await?;
    Ok((pair, before, daemon))
}

/// A digest of the rows with out-of-line values.
async fn digest(sink: &Client) -> Result<String> {
    let sql =
        "SELECT md5(string_agg(t::text, ',' ORDER BY t::text)) FROM (SELECT id, number, md5(body) FROM mirror.churn) t";
    Ok(sink.query_one(sql, &[]).await?.get(0))
}

#[tokio::test]
async fn damaged_rows_are_healed() -> Result<()> {
    let (pair, before, mut daemon) = changed("replay-heal").await?;
    daemon.terminate()?;
    pair.sink
        .execute(
            DATABASE,
            "UPDATE mirror.accounts_b SET balance = 0 WHERE id <= 5;
             DELETE FROM mirror.accounts_b WHERE id = 6;
             INSERT INTO mirror.accounts_a VALUES (3, 3);
             UPDATE mirror.churn SET body = 'broken', number = 77 WHERE id = 191;
             DELETE FROM mirror.churn WHERE id = 300;
             UPDATE mirror.churn SET number = -1 WHERE id = 200;
             DELETE FROM mirror.churn_full WHERE id = 2000;
             DELETE FROM mirror.ledger",
        )
        .await?;
    let from = before.to_string();
    pair.home.must(&["replay", "--from-lsn", &from])?;
    pair.assert_equal().await?;

    // And the daemon goes on where it was.
    let mut daemon = pair.home.run()?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    daemon.terminate()
}

#[tokio::test]
async fn healthy_sink_stays_as_it_is() -> Result<()> {
    let (pair, before, mut daemon) = changed("replay-healthy").await?;
    daemon.terminate()?;
    let sink = pair.sink().await?;
    let was = digest(&sink).await?;
    for _ in 0..2 {
        pair.home.must(&["replay", "--from-lsn", &before.to_string()])?;
        pair.assert_equal().await?;
    }
    ensure!(digest(&sink).await? == was, "rows changed");
    let out = pair.home.must(&["replay", "--from-time", "1h"]);
    // The journal began less than an hour ago, so it cannot know that it has everything since.
    let refused = out.err().context("the journal is younger")?.to_string();
    ensure!(refused.contains("the journal of source \"src\" begins at"), "{refused}");
    Ok(())
}

fn with_small_batches(pair: &Pair) -> Result<()> {
    let config = Home::pair_config(&pair.source, &pair.sink, DATABASE)
        .replace("kind = \"postgres\"", "kind = \"postgres\"\nbatch_bytes_max = \"1MiB\"");
    pair.home.configure(&config, &[("mapping.toml", &mirror_mapping(TABLES))])
}

/// The target holds the swapped rows already; with the range in parts, whose body is whose cannot be told.
#[tokio::test]
async fn move_to_a_place_of_an_earlier_part_is_refused() -> Result<()> {
    let pair = Pair::start("replay-moves", Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let before = flushed(&pair.source().await?).await?;
    let swap = "BEGIN; UPDATE churn SET id = 1000 WHERE id = 150; UPDATE churn SET id = 150 WHERE id = 151; \
                UPDATE churn SET id = 151 WHERE id = 1000; COMMIT";
    pair.source.execute(DATABASE, swap).await?;
    let filler = "INSERT INTO ledger SELECT 10, line, line, repeat('x', 500), now() FROM generate_series(1, 5000) line";
    pair.source.execute(DATABASE, filler).await?;
    pair.source
        .execute(DATABASE, "UPDATE churn SET id = 1001 WHERE id = 152; UPDATE churn SET id = 152 WHERE id = 150")
        .await?;
    pair.source.execute(DATABASE, "UPDATE churn SET id = 150 WHERE id = 1001").await?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    pair.home.must(&["replay", "--from-lsn", &before.to_string()])?;
    pair.assert_equal().await?;
    with_small_batches(&pair)?;
    let outcome = pair.home.command(&["replay", "--from-lsn", &before.to_string()])?;
    ensure!(outcome.status.code() == Some(1) && outcome.stderr.contains("batch_bytes_max"), "{}", outcome.stderr);
    pair.assert_equal().await
}

#[tokio::test]
async fn range_in_many_parts_is_one_transaction() -> Result<()> {
    let pair = Pair::start("replay-parts", Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let before = flushed(&pair.source().await?).await?;
    for round in 0..6 {
        let sql = format!(
            "INSERT INTO ledger SELECT {round} + 10, line, line, repeat('x', 500), now() FROM generate_series(1, 5000) line;
             UPDATE accounts_a SET balance = balance + 1;
             DELETE FROM ledger WHERE txn = {round} + 9 AND line > 100"
        );
        pair.source.execute(DATABASE, &sql).await?;
    }
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    with_small_batches(&pair)?;
    pair.sink
        .execute(DATABASE, "DELETE FROM mirror.ledger WHERE txn > 12; UPDATE mirror.accounts_a SET balance = 0")
        .await?;
    pair.home.must(&["replay", "--from-lsn", &before.to_string()])?;
    pair.assert_equal().await
}

#[tokio::test]
async fn what_the_journal_does_not_hold_is_refused() -> Result<()> {
    let (pair, before, mut daemon) = changed("replay-outside").await?;
    for arguments in [
        &["replay", "--from-lsn", "0/1", "--to", "stdout"][..],
        &["replay", "--from-lsn", "FFFFFFFF/0", "--dry-run"],
        &["replay", "--from-lsn", &before.to_string(), "--to-lsn", "FFFFFFFF/0", "--dry-run"],
    ] {
        let outcome = pair.home.command(arguments)?;
        ensure!(outcome.status.code() == Some(4), "{arguments:?} ended with {}: {}", outcome.status, outcome.stderr);
        ensure!(outcome.stderr.contains("the journal holds"), "{}", outcome.stderr);
    }
    // Into a sink only when nobody streams.
    let outcome = pair.home.command(&["replay", "--from-lsn", &before.to_string()])?;
    ensure!(outcome.status.code() == Some(1) && outcome.stderr.contains("stop it first"), "{}", outcome.stderr);
    daemon.terminate()?;
    let outcome = pair.home.command(&["replay", "--from-lsn", "0/1"])?;
    ensure!(outcome.status.code() == Some(4), "ended with {}: {}", outcome.status, outcome.stderr);
    Ok(())
}

#[tokio::test]
async fn dry_run_counts_and_stdout_shows_beside_a_daemon() -> Result<()> {
    let (pair, before, mut daemon) = changed("replay-look").await?;
    let from = before.to_string();
    let counted = pair.home.must(&["replay", "--from-lsn", &from, "--dry-run"])?;
    let line = |table: &str| {
        let line = counted.lines().find(|line| line.contains(table)).context("no such table")?;
        Ok::<_, anyhow::Error>(line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    ensure!(line("mirror.accounts_b ")?[3..] == ["0", "10", "0", "0"], "{counted}");
    ensure!(line("mirror.accounts_a ")?[3..] == ["0", "0", "10", "0"], "{counted}");
    ensure!(line("mirror.ledger")?[3..] == ["2", "0", "0", "1"], "{counted}");

    let shown = pair.home.must(&["replay", "--from-lsn", &from, "--table", "mirror.ledger", "--to", "stdout"])?;
    let lines: Vec<serde_json::Value> = shown.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let ops: Vec<_> = lines.iter().map(|line| line["op"].as_str().unwrap_or_default()).collect();
    ensure!(ops == ["truncate", "insert", "insert"], "{shown}");
    ensure!(lines[1]["new"]["note"] == "tab\t" && lines[1]["new"]["at"] == "infinity", "{shown}");
    daemon.terminate()
}
