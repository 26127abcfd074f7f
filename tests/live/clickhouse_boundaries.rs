//! Death of the daemon at each of its writes into ClickHouse: before the server saw it, and when the server had done it and
//! the daemon had not heard. The source goes on meanwhile; the next daemon brings everything to what the source has.

use anyhow::{Result, ensure};

use crate::clickhouse_sink::{Stage, mapping};
use crate::support::http_proxy::{Fate, HttpProxy};
use crate::support::pair::{DATABASE, SOON};
use crate::support::wait::{Look, eventually};
use crate::support::workload::SEED_SQL;

/// What a first daemon writes, in this order: each dies one further than the one before.
const COPY: &[(&str, &[&str])] = &[
    ("the state tables", &["CREATE TABLE IF NOT EXISTS tailwater.checkpoint"]),
    ("the first checkpoint", &["AS known"]),
    ("the beginning of a copy", &["'copying'", "'mirror.churn'"]),
    ("a chunk", &["INSERT INTO `mirror`.`churn` ("]),
    ("a chunk of the last table", &["INSERT INTO `mirror`.`churn_full` ("]),
    ("the end of a copy", &["'catchup'", "'mirror.churn'"]),
    ("the end of the last copy", &["'catchup'", "'mirror.churn_full'"]),
    ("tables that join", &["state, lsn, until, true, rows"]),
    ("tables that stream", &["'streaming'"]),
];

/// What a daemon writes that streams, each reached by the changes of [`changes`].
const STREAM: &[(&str, &[&str])] = &[
    ("the takeover", &["INSERT INTO tailwater.checkpoint"]),
    ("the stage", &["CREATE TEMPORARY TABLE"]),
    ("staged rows", &["INSERT INTO `_tailwater_stage_"]),
    ("completed rows", &["`_is_new`"]),
    ("rows that are gathered", &["INSERT INTO `_tailwater_batch_", "FORMAT RowBinary"]),
    ("gathered rows", &["INSERT INTO `mirror`.`churn` (", "FROM `_tailwater_batch_"]),
    ("whole rows", &["INSERT INTO `mirror`.`churn_full` ("]),
    ("computed rows", &["INSERT INTO `mirror`.`accounts_a` (`id`, `balance`"]),
    ("tombstones", &["INSERT INTO `mirror`.`accounts_a` (`id`, _version"]),
    ("a TRUNCATE", &["FINAL WHERE _version <"]),
    ("the checkpoint", &["AS newest"]),
];

/// Every kind of write, other ones each time: values completed from the target, rows that move, come and go, and a TRUNCATE.
fn changes(number: usize) -> String {
    let (moved, gone) = (number * 4 + 1, number * 4 + 2);
    format!(
        "BEGIN;
         UPDATE churn SET number = number + 1 WHERE id % 5 = 0;
         UPDATE churn SET id = id + 10000 WHERE id = {moved};
         UPDATE churn_full SET extra = 'again {number}', id = id + 10000 WHERE id = {moved};
         DELETE FROM churn WHERE id = {gone}; DELETE FROM churn_full WHERE id = {gone};
         INSERT INTO churn VALUES ({gone}, repeat('new {number} ', 500), NULL, {number});
         UPDATE accounts_a SET balance = balance + 1 WHERE id > 90; DELETE FROM accounts_a WHERE id = {number};
         TRUNCATE ledger;
         INSERT INTO ledger SELECT {number}, line, line, 'note', '2024-02-29 12:00Z' FROM generate_series(1, 50) line;
         COMMIT;
         UPDATE churn SET id = id - 10000 WHERE id = 10000 + {moved};
         INSERT INTO churn VALUES (20000 + {number}, 'comes', NULL, 0); DELETE FROM churn WHERE id = 20000 + {number}"
    )
}

async fn at_every_boundary(name: &str, fate: Fate) -> Result<()> {
    // A condition has tombstones go a way of their own.
    let text =
        mapping().replace("from = \"public.accounts_a\"\n", "from = \"public.accounts_a\"\nwhere = \"balance > -1\"\n");
    ensure!(text != mapping(), "the mapping has no accounts");
    let stage = Stage::bare(name).await?;
    stage.source.execute(DATABASE, SEED_SQL).await?;
    let proxy = HttpProxy::start(stage.server.http_port())?;
    stage.configure(proxy.port(), &text)?;
    stage.home.setup()?;
    stage.server.query("DROP DATABASE tailwater SYNC")?;
    let mut number = 0;
    let mut daemon = None;
    for (place, (what, words)) in COPY.iter().chain(STREAM).enumerate() {
        let struck = proxy.struck();
        // A daemon that streams dies of what it is given; the others, and a takeover, of what they begin with.
        let streams = place > COPY.len();
        if streams {
            let mut running = stage.home.run()?;
            stage.catch_up(&mut running).await?;
            stage.assert_equal(&format!("a death before {what}")).await?;
            daemon = Some(running);
        }
        proxy.hold(words, fate);
        match daemon.is_some() {
            true => stage.source.execute(DATABASE, &changes(number)).await?,
            false => daemon = Some(stage.home.run()?),
        }
        eventually(SOON, &format!("the daemon gets to {what}"), async || {
            let is_there = proxy.struck() > struck;
            Ok(if is_there { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
        })
        .await?;
        if let Some(mut daemon) = daemon.take() {
            daemon.kill9();
        }
        stage.source.execute(DATABASE, &changes(number + 1)).await?;
        number += 2;
    }
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("all deaths").await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn death_before_any_write_loses_and_doubles_nothing() -> Result<()> {
    at_every_boundary("ch-before", Fate::Unsent).await
}

#[tokio::test(flavor = "multi_thread")]
async fn death_after_any_write_loses_and_doubles_nothing() -> Result<()> {
    at_every_boundary("ch-after", Fate::Unanswered).await
}
