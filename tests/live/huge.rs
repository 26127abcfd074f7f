//! One transaction far larger than memory. `TAILWATER_HUGE_ROWS` says how large (default ten million rows).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::cluster::{Cluster, Options, connect};
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::process;
use crate::support::workload::mirror_mapping;

const ROWS: i64 = 10_000_000;
const RESIDENT_KILOBYTES_MAX: u64 = 256 * 1024;
/// Ten minutes for the default size on two busy cores.
const WITHIN: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn huge_transaction_is_one_commit_in_bounded_memory() -> Result<()> {
    let rows = std::env::var("TAILWATER_HUGE_ROWS").map_or(Ok(ROWS), |text| text.parse())?;
    let options = || Options::default().set("max_wal_size", "8GB");
    let source = Cluster::start("huge-source", Version::V15, options())?;
    let sink = Cluster::start("huge-sink", Version::V15, options())?;
    source.execute(DATABASE, "CREATE TABLE huge (id bigint PRIMARY KEY, amount int, note text)").await?;
    sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
    let home = Home::pair("huge", &source, &sink, DATABASE, &mirror_mapping(&["public.huge"]))?;
    home.setup()?;
    let mut daemon = home.run()?;
    let (source_client, sink_client) = (source.connect(DATABASE).await?, sink.connect(DATABASE).await?);
    daemon.wait_caught_up(&source_client, &sink_client, SOON).await?;

    let watching = Arc::new(AtomicBool::new(true));
    let watcher = tokio::spawn(watch(sink.socket_url(DATABASE), Arc::clone(&watching), rows));
    let sql = "INSERT INTO huge SELECT g, g % 1000, 'note number ' || g FROM generate_series(1, $1::bigint) g";
    source_client.execute(sql, &[&rows]).await?;
    daemon.wait_caught_up(&source_client, &sink_client, WITHIN).await?;
    watching.store(false, Ordering::Relaxed);
    watcher.await??;

    let sums = "SELECT count(*), sum(amount)::bigint, max(note) FROM";
    let at_source = source_client.query_one(&format!("{sums} huge"), &[]).await?;
    let at_sink = sink_client.query_one(&format!("{sums} mirror.huge"), &[]).await?;
    for column in 0..2 {
        ensure!(at_source.get::<_, i64>(column) == at_sink.get::<_, i64>(column), "column {column} differs");
    }
    ensure!(at_source.get::<_, &str>(2) == at_sink.get::<_, &str>(2), "the notes differ");
    let (_, peak) = process::resident_kilobytes(daemon.pid()).context("the daemon runs")?;
    eprintln!("{rows} rows in one transaction: at most {peak} kB resident");
    ensure!(peak <= RESIDENT_KILOBYTES_MAX, "the daemon held {peak} kB");
    daemon.terminate()
}

/// Nobody may ever see a part of the transaction. Its first and last row stand for the rest.
async fn watch(url: String, watching: Arc<AtomicBool>, rows: i64) -> Result<()> {
    let sink = connect(&url).await?;
    while watching.load(Ordering::Relaxed) {
        let sql = "SELECT count(*) FROM mirror.huge WHERE id IN (1, $1::bigint / 2, $1::bigint)";
        let seen: i64 = sink.query_one(sql, &[&rows]).await?.get(0);
        ensure!(seen == 0 || seen == 3, "a reader saw {seen} of 3 rows of one transaction");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
