//! The verbs that only look, beside a running daemon and without one.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::cluster::Options;
use crate::support::daemon::{Home, flushed};
use crate::support::pair::{DATABASE, Pair, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

#[tokio::test]
async fn tail_prints_changes_as_they_come() -> Result<()> {
    let pair = Pair::start("tail", Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let tail = pair.home.spawn(&["tail", "--table", "public.churn", "--json"])?;
    let mut number = 0;
    // The first changes may come before the tail has opened the journal.
    let line = eventually(SOON, "the tail prints a change", async || {
        number += 1;
        let sql =
            format!("UPDATE churn SET number = {number} WHERE id = 3; UPDATE accounts_a SET balance = 1 WHERE id = 1");
        pair.source.execute(DATABASE, &sql).await?;
        Ok(tail.stdout()?.lines().next().map_or(Look::NotYet("nothing".to_owned()), |line| Look::Yes(line.to_owned())))
    })
    .await?;
    let line: Value = serde_json::from_str(&line)?;
    ensure!(line["op"] == "update" && line["table"] == "churn", "{line}");
    ensure!(line["key"]["id"] == 3 && line["new"]["id"] == 3, "{line}");
    ensure!(line["new"]["number"].as_i64().is_some_and(|shown| shown >= 1 && shown <= number), "{line}");
    drop(tail);

    let from = flushed(&pair.source().await?).await?.to_string();
    pair.source.execute(DATABASE, "INSERT INTO accounts_b VALUES (777, 5)").await?;
    pair.catch_up(&mut daemon).await?;
    let tail = pair.home.spawn(&["tail", "--from-lsn", &from])?;
    eventually(SOON, "the tail starts where it was told", async || {
        let text = tail.stdout()?;
        Ok(if text.contains("insert   public.accounts_b id=777") { Look::Yes(()) } else { Look::NotYet(text) })
    })
    .await?;
    daemon.terminate()
}

/// Types that have a case of their own, with values at their edges; the last column has none.
const VALUES: &str = "
    SET intervalstyle = postgres; SET timezone = 'UTC';
    CREATE TABLE edges (id int PRIMARY KEY, b bool, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, t text, v varchar(9),
        c char(4), d date, ts timestamp, tz timestamptz, tm time, iv interval, u uuid, j json, jb jsonb, o oid, l pg_lsn,
        ia int4[], ta text[], na numeric[], da date[], ba bool[], ja jsonb[]);
    INSERT INTO edges VALUES
    (1, true, -32768, 9223372036854775807, 1.5, -1e-300, 123456789.000100, E'a\"\\\\\\n\\u0007é', 'v', 'c', '2024-02-29',
     '2024-02-29 12:34:56.789', '1999-12-31 23:59:59.999999Z', '24:00', '-1 mon +2 days -03:04:05.6',
     '00112233-4455-6677-8899-aabbccddeeff', E'{\"a\":\\n [1, 2.50]}', '{\"b\": [null, true]}', 4294967295, '16/B374D848',
     '{{1,2},{3,NULL}}', '{a,NULL,\"q\\\"\"}', '{1.50,NaN}', '{2024-02-29,infinity}', '{t,f}', ARRAY['{\"x\": 1}'::jsonb]),
    (2, false, 0, 0, 'NaN', '-Infinity', 'NaN', '', '', '', 'infinity', '-infinity', 'infinity', '00:00:00.000001',
     '1 year 1 day', NULL, 'null', '[]', 0, '0/0', '{}', '{}', '{0.0001}', '{0044-03-15 BC}', '{}', '{}'),
    (3, NULL, NULL, NULL, 1e20, 1e15, -0.00000025, NULL, NULL, NULL, '0001-01-01', '294276-12-31 23:59:59', '0044-03-15 BC',
     '12:00', '0', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{100000000000000000000}', NULL, NULL, NULL)";

#[tokio::test]
async fn values_are_what_to_json_makes_of_them() -> Result<()> {
    let pair = Pair::bare("values", Version::V15, Options::default()).await?;
    let columns = VALUES.find("INSERT").context("two parts")?;
    pair.source.execute(DATABASE, &VALUES[..columns]).await?;
    let mapping =
        "source = \"src\"\nsink = \"dst\"\n[table.\"mirror.edges\"]\nfrom = \"public.edges\"\ncolumns = \"*\"\n";
    let config = Home::pair_config(&pair.source, &pair.sink, DATABASE);
    pair.home.configure(&config, &[("mapping.toml", mapping)])?;
    pair.home.setup()?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let source = pair.source().await?;
    let from = flushed(&source).await?.to_string();
    pair.source.execute(DATABASE, &VALUES[columns..]).await?;
    pair.catch_up(&mut daemon).await?;
    let shown = pair.home.must(&["replay", "--from-lsn", &from, "--to", "stdout"])?;
    source.batch_execute("SET timezone = 'UTC'").await?;
    let rows = source.query("SELECT to_json(edges)::text FROM edges ORDER BY id", &[]).await?;
    ensure!(shown.lines().count() == rows.len(), "{shown}");
    for (line, row) in shown.lines().zip(rows) {
        let shown: Value = serde_json::from_str(line)?;
        let truth: Value = serde_json::from_str(row.get(0))?;
        for (column, value) in truth.as_object().context("an object")? {
            ensure!(&shown["new"][column] == value, "{column} is {value}, shown as {}", shown["new"][column]);
        }
    }
    daemon.terminate()
}

#[tokio::test]
async fn status_answers_with_a_daemon_and_exits_5_without() -> Result<()> {
    let pair = Pair::start("status", Version::V15, Options::default()).await?;
    let none = pair.home.command(&["status"])?;
    ensure!(none.status.code() == Some(5) && none.stderr.contains("tailwater run"), "{}", none.stderr);
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let page = pair.home.must(&["status"])?;
    ensure!(page.contains("src") && page.contains("mirror.churn"), "{page}");
    let document: Value = serde_json::from_str(&pair.home.must(&["status", "--json"])?)?;
    ensure!(document["pairs"][0]["sink"] == "dst", "{document}");
    daemon.terminate()
}

#[tokio::test]
async fn journal_is_listed_with_a_daemon_and_without() -> Result<()> {
    let pair = Pair::start("journal-ls", Version::V15, Options::default()).await?;
    ensure!(pair.home.must(&["journal", "ls"])?.contains("the journal is empty"), "no daemon has run");
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    ensure!(pair.home.must(&["journal", "ls"])?.contains("src: holds"), "a daemon runs");
    daemon.terminate()?;
    let listed: Value = serde_json::from_str(&pair.home.must(&["journal", "ls", "--json"])?)?;
    ensure!(listed[0]["source"] == "src" && listed[0]["unreadable_at"].is_null(), "{listed}");
    let unknown = pair.home.command(&["journal", "ls", "--source", "other"])?;
    ensure!(unknown.status.code() == Some(2) && unknown.stderr.contains("\"src\""), "{}", unknown.stderr);
    Ok(())
}

#[tokio::test]
async fn printed_ddl_makes_the_targets() -> Result<()> {
    let pair = Pair::bare("ddl", Version::V15, Options::default()).await?;
    let ddl = pair.home.must(&["schema", "ddl"])?;
    pair.sink.execute(DATABASE, &ddl).await?;
    let made = pair.sink().await?.query("SELECT 1 FROM pg_tables WHERE schemaname = 'mirror'", &[]).await?;
    ensure!(made.len() == 5, "{ddl}");
    let again = pair.home.must(&["schema", "ddl"])?;
    ensure!(again == ddl, "the sink was asked");
    Ok(())
}
