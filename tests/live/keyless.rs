//! Tables without a key: the target holds as many of each row as the source does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use crate::support::cluster::Cluster;
use crate::support::daemon::{Daemon, Home};
use crate::support::pair::{DATABASE, SOON};
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};

/// Types without equality, values that are equal and not the same, and large ones.
const SOURCE: &str = "
    CREATE TYPE mood AS ENUM ('glad', 'sad');
    CREATE TABLE log (n int, word varchar(5), price numeric, ratio float8, doc json, spot point, mood mood, tags text[],
        body text);
    ALTER TABLE log REPLICA IDENTITY FULL, ALTER body SET STORAGE EXTERNAL";

/// One target is created by `setup`; one stores other types, so that rows which differ at the source become equal; one has
/// partitions, in which equal places are not the same.
const SINK: &str = "
    CREATE SCHEMA mirror;
    CREATE TYPE mood AS ENUM ('sad', 'glad');
    CREATE TABLE mirror.shaped (n bigint, word char(7), price numeric(8, 1), mood mood);
    CREATE TABLE mirror.parted (n int, body text) PARTITION BY HASH (n);
    CREATE TABLE mirror.parted_0 PARTITION OF mirror.parted FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE mirror.parted_1 PARTITION OF mirror.parted FOR VALUES WITH (MODULUS 2, REMAINDER 1)";

const MAPPING: &str = r#"
source = "src"
sink = "dst"

[table."mirror.log"]
from = "public.log"
columns = "*"

[table."mirror.shaped"]
from = "public.log"
columns = { n = "n", word = "word", price = "price", mood = "mood" }

[table."mirror.parted"]
from = "public.log"
columns = { n = "n", body = "body" }
"#;

/// What of the source each target holds.
const TARGETS: [(&str, &str); 3] = [
    ("mirror.log", "SELECT n, word, price, ratio, doc, spot, mood::text, tags, body FROM log"),
    ("mirror.shaped", "SELECT n::bigint, word::char(7), price::numeric(8, 1), mood::text FROM log"),
    ("mirror.parted", "SELECT n, body FROM log"),
];

/// Of the load that kills interrupt.
const LOAD_COMMITS: u32 = 500;

struct Keyless {
    source: Cluster,
    sink: Cluster,
    home: Home,
}

impl Keyless {
    async fn new(name: &str) -> Result<Keyless> {
        let (source, sink) = (Cluster::new(&format!("{name}-source"))?, Cluster::new(&format!("{name}-sink"))?);
        source.execute(DATABASE, SOURCE).await?;
        sink.execute(DATABASE, SINK).await?;
        let home = Home::pair(name, &source, &sink, DATABASE, MAPPING)?;
        home.setup()?;
        Ok(Keyless { source, sink, home })
    }

    async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        let (source, sink) = (self.source.connect(DATABASE).await?, self.sink.connect(DATABASE).await?);
        daemon.wait_caught_up(&source, &sink, SOON).await.map(drop)
    }

    /// Every target has each row as often as the source.
    async fn assert_equal(&self) -> Result<()> {
        let (source, sink) = (self.source.connect(DATABASE).await?, self.sink.connect(DATABASE).await?);
        for (target, query) in TARGETS {
            let (expected, held) = (counts(&source, query).await?, counts(&sink, &format!("TABLE {target}")).await?);
            let lost: Vec<_> = expected.iter().filter(|row| !held.contains(row)).take(3).collect();
            let strange: Vec<_> = held.iter().filter(|row| !expected.contains(row)).take(3).collect();
            ensure!(expected == held, "{target} differs: expected {lost:?}, found {strange:?}");
        }
        Ok(())
    }
}

/// Rows as text and how often each is there.
async fn counts(client: &Client, query: &str) -> Result<Vec<(String, i64)>> {
    let sql = format!("SELECT q::text, count(*) FROM ({query}) AS q GROUP BY 1 ORDER BY 1");
    Ok(client.query(&sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// One of few values, so that equal rows are common.
fn any(random: &mut Random, values: &[&str]) -> String {
    let place = usize::try_from(random.below(values.len() as u64)).unwrap_or_default();
    values[place].to_owned()
}

fn values(random: &mut Random) -> [(&'static str, String); 9] {
    [
        ("n", any(random, &["NULL", "0", "1"])),
        ("word", any(random, &["NULL", "'a'", "''"])),
        ("price", any(random, &["1.0", "1.00", "1.04"])),
        ("ratio", any(random, &["0", "'-0'", "'NaN'", "0.1"])),
        ("doc", any(random, &["NULL", "'{\"a\":1}'", "'{\"a\": 1}'"])),
        ("spot", any(random, &["NULL", "'(1, 2)'"])),
        ("mood", any(random, &["NULL", "'glad'"])),
        ("tags", any(random, &["NULL", "'{a,NULL}'"])),
        ("body", any(random, &["'small'", "repeat(md5('x'), 80)"])),
    ]
}

/// One random statement; `random` alone decides which rows it touches.
fn dml(random: &mut Random) -> String {
    let values = values(random);
    let seed = random.below(1_000_000);
    let some = |count: u64| {
        format!("ctid = ANY(ARRAY(SELECT ctid FROM log ORDER BY md5(ctid::text || '{seed}') LIMIT {count}))")
    };
    let of = |count: u64| {
        let values: Vec<_> = values.iter().map(|(_, value)| value.as_str()).collect();
        format!("INSERT INTO log SELECT {} FROM generate_series(1, {count})", values.join(", "))
    };
    match random.below(40) {
        0..14 => of(1 + random.below(3)),
        14..24 => {
            let set: Vec<_> =
                values.iter().filter(|_| random.one_in(3)).map(|(name, to)| format!("{name} = {to}")).collect();
            let set = if set.is_empty() { "n = n".to_owned() } else { set.join(", ") };
            format!("UPDATE log SET {set} WHERE {}", some(1 + random.below(5)))
        }
        24..36 => format!("DELETE FROM log WHERE {}", some(1 + random.below(4))),
        36 => of(2_500),
        37 => format!("DELETE FROM log WHERE {}", some(2_400)),
        38 => "UPDATE log SET n = 1 - n, word = left(word || 'b', 2)".to_owned(),
        _ => "TRUNCATE log".to_owned(),
    }
}

fn transaction(random: &mut Random) -> String {
    let statements: Vec<_> = (0..=random.below(4)).map(|_| dml(random)).collect();
    format!("BEGIN; {}; COMMIT", statements.join("; "))
}

fn seeded() -> Random {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    Random::new(seed)
}

#[tokio::test]
async fn each_row_is_there_as_often_as_at_the_source() -> Result<()> {
    let mut random = seeded();
    let pair = Keyless::new("keyless").await?;
    let pairs = "INSERT INTO log SELECT NULL, 'twin', 1, 0, '{}' FROM generate_series(1, 2)";
    pair.source.execute(DATABASE, pairs).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;

    let one = "DELETE FROM log WHERE ctid = (SELECT ctid FROM log WHERE word = 'twin' LIMIT 1)";
    pair.source.execute(DATABASE, one).await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    let sink = pair.sink.connect(DATABASE).await?;
    ensure!(counts(&sink, "SELECT word FROM mirror.log").await? == [("(twin)".to_owned(), 1)], "not exactly one went");

    for _ in 0..8 {
        for _ in 0..12 {
            pair.source.execute(DATABASE, &transaction(&mut random)).await?;
        }
        pair.catch_up(&mut daemon).await?;
        pair.assert_equal().await?;
    }
    ensure!(!daemon.log().contains("batch refused"), "a batch was refused");
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_neither_double_nor_lose_a_row() -> Result<()> {
    let mut random = seeded();
    let pair = Keyless::new("keyless-kill").await?;
    pair.source.execute(DATABASE, &transaction(&mut random)).await?;
    pair.source.execute(DATABASE, "INSERT INTO log (n) SELECT i % 3 FROM generate_series(1, 20000) i").await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = pair.source.connect(DATABASE).await?;
    let (stopped, mut choices) = (stop.clone(), random.fork());
    let load = tokio::spawn(async move {
        let mut commits = 0u32;
        // As much as can be caught up with, however long the kills take.
        while commits < LOAD_COMMITS && !stopped.load(Ordering::Relaxed) {
            writer.batch_execute(&transaction(&mut choices)).await?;
            commits += 1;
        }
        Ok::<_, tokio_postgres::Error>(commits)
    });
    let mut daemon = pair.home.run()?;
    for _ in 0..8 {
        // Not a wait for anything: when a kill comes is part of the draw.
        tokio::time::sleep(std::time::Duration::from_millis(100 + random.below(900))).await;
        daemon.kill9();
        daemon = pair.home.run()?;
    }
    stop.store(true, Ordering::Relaxed);
    ensure!(load.await?? > 0, "there was no load");
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    daemon.terminate()
}

/// Waits until a table is quarantined; why.
async fn quarantined(sink: &Client, target: &str) -> Result<String> {
    let sql = "SELECT reason FROM tailwater.table_state WHERE target = $1 AND state = 'quarantined'";
    eventually(SOON, &format!("{target} is quarantined"), async || {
        let row = sink.query_opt(sql, &[&target]).await?;
        Ok(row.map_or(Look::NotYet("it is not".to_owned()), |row| Look::Yes(row.get(0))))
    })
    .await
}

#[tokio::test]
async fn row_that_the_target_lacks_stops_its_table_only() -> Result<()> {
    let pair = Keyless::new("keyless-missing").await?;
    pair.source.execute(DATABASE, "INSERT INTO log (n) VALUES (1), (1), (2)").await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let sink = pair.sink.connect(DATABASE).await?;
    sink.execute("DELETE FROM mirror.log WHERE n = 2", &[]).await?;
    pair.source.execute(DATABASE, "DELETE FROM log WHERE n = 2").await?;
    let reason = quarantined(&sink, "mirror.log").await?;
    ensure!(reason.contains("is missing in the target"), "{reason}");
    eventually(SOON, "the other table goes on", async || {
        let held = counts(&sink, "SELECT n FROM mirror.shaped").await?;
        Ok(if held == [("(1)".to_owned(), 2)] { Look::Yes(()) } else { Look::NotYet(format!("{held:?}")) })
    })
    .await
}

#[tokio::test]
async fn target_that_is_not_empty_is_not_copied_into() -> Result<()> {
    let pair = Keyless::new("keyless-filled").await?;
    pair.sink.execute(DATABASE, "INSERT INTO mirror.log (n) VALUES (7)").await?;
    pair.source.execute(DATABASE, "INSERT INTO log (n) VALUES (7)").await?;
    let _daemon = pair.home.run()?;
    let sink = pair.sink.connect(DATABASE).await?;
    eventually(SOON, "the daemon has made its tables", async || {
        let there = sink.query_one("SELECT to_regclass('tailwater.table_state') IS NOT NULL", &[]).await?;
        Ok(if there.get(0) { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await?;
    let reason = quarantined(&sink, "mirror.log").await?;
    ensure!(reason.contains("empty it first"), "{reason}");
    ensure!(counts(&sink, "SELECT n FROM mirror.log").await? == [("(7)".to_owned(), 1)], "rows came");
    Ok(())
}

#[tokio::test]
async fn replay_into_a_table_without_a_key_is_refused() -> Result<()> {
    let pair = Keyless::new("keyless-replay").await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    let before = crate::support::daemon::flushed(&pair.source.connect(DATABASE).await?).await?.to_string();
    pair.source.execute(DATABASE, "INSERT INTO log (n) VALUES (1)").await?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    let arguments = ["replay", "--from-lsn", &before, "--table", "mirror.log"];
    let outcome = pair.home.command(&arguments)?;
    let line = outcome.stderr.lines().find(|line| line.contains("has no key")).context(outcome.stderr.clone())?;
    ensure!(outcome.status.code() == Some(1) && line.contains("would add its rows again"), "{}", outcome.stderr);
    pair.assert_equal().await
}
