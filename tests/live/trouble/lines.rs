//! Lines that go silent, and lines that end in the middle of a commit.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::support::cluster::Cluster;
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SOON};
use crate::support::proxy::{Cut, Proxy};
use crate::support::wait::{Look, eventually};

/// Without a key at the target, whatever is applied twice is there twice.
const APPENDED: &[(&str, &str, &str)] =
    &[("entries", "entries", "mode = \"append\"\ncolumns = \"*\""), ("rows", "rows", "columns = \"*\"")];

const TABLES: &str = "CREATE TABLE entries (id int PRIMARY KEY, n int); CREATE TABLE rows (id int PRIMARY KEY, n int);
                      INSERT INTO rows SELECT i, 0 FROM generate_series(1, 10) i; INSERT INTO entries TABLE rows";

#[tokio::test]
async fn h10_commit_of_unknown_outcome_is_applied_exactly_once() -> Result<()> {
    let (source, sink) = (Cluster::new("unknown-source")?, Cluster::new("unknown-sink")?);
    let proxy = Proxy::start(sink.port())?;
    let (direct, proxied) =
        (sink.url(DATABASE), sink.url(DATABASE).replace(&sink.port().to_string(), &proxy.port().to_string()));
    let config = [(direct.as_str(), proxied.as_str())];
    let recipe = Recipe { source: TABLES, tables: APPENDED, config: &config, ..Recipe::default() };
    let mut mirror = Mirror::between("unknown", source, sink, recipe).await?;
    for round in 0..6 {
        let at = if round % 2 == 0 { Cut::AfterCommit } else { Cut::BeforeCommit };
        proxy.cut(at);
        let first = 100 + round * 10_000;
        // Now and then as many rows as go another way into the table.
        let last = first + if round >= 4 { 5_000 } else { 5 };
        mirror
            .apply(&[&format!(
                "INSERT INTO entries SELECT i, {round} FROM generate_series({first}, {last}) i;
                 UPDATE rows SET n = n + 1"
            )])
            .await?;
        ensure!(proxy.cuts() == round + 1, "round {round}: {} cuts", proxy.cuts());
    }
    Ok(())
}

#[tokio::test]
async fn h13_source_that_fell_silent_is_reached_again() -> Result<()> {
    let (source, sink) = (Cluster::new("silent-source")?, Cluster::new("silent-sink")?);
    let proxy = Proxy::start(source.port())?;
    let (direct, proxied) =
        (source.url(DATABASE), source.url(DATABASE).replace(&source.port().to_string(), &proxy.port().to_string()));
    // So that the abandoned session gives up the slot, as a server does whose client is gone.
    source.set("wal_sender_timeout", "5s")?;
    source.reload();
    let config = [(direct.as_str(), proxied.as_str())];
    let recipe = Recipe { source: TABLES, tables: APPENDED, config: &config, ..Recipe::default() };
    let mut mirror = Mirror::between("silent", source, sink, recipe).await?;
    let watch = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'tailwater watch'";
    let source = mirror.source.connect(DATABASE).await?;
    eventually(SOON, "the source is looked at", async || {
        Ok(if source.query(watch, &[]).await?.is_empty() { Look::NotYet("no".to_owned()) } else { Look::Yes(()) })
    })
    .await?;
    proxy.silence();
    let began = Instant::now();
    mirror.commit(&["UPDATE rows SET n = n + 1; INSERT INTO entries VALUES (100, 0)"]).await?;
    mirror.assert_equal("a silence").await?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(60), "it took {took:?}");
    // Everything else that had a session with the source has one again: the slot goes on being looked at.
    let wal = |mirror: &Mirror| Ok::<_, anyhow::Error>(mirror.daemon.status()?["sources"][0]["wal_lsn"].to_string());
    let before = wal(&mirror)?;
    mirror.source.execute(DATABASE, "CREATE TABLE other AS SELECT generate_series(1, 10000)").await?;
    eventually(SOON, "the source's position is seen to move", async || {
        let now = wal(&mirror)?;
        Ok(if now != before { Look::Yes(()) } else { Look::NotYet(now) })
    })
    .await
}
