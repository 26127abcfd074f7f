//! From commit to visible under a steady load of single-row transactions.
//!
//! With `synchronous_commit` on, as by default: a walsender sends what is flushed, so that without it `wal_writer_delay`
//! (200 ms) is all there is to measure, whoever reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio_postgres::Client;

use crate::drain::{DEADLINE, Measure, Way, end_subscription, native_cpu, subscription, tailwater_cpu};
use crate::servers::{Servers, TAILWATER_SLOT, drop_database, drop_slot, terminate};
use crate::support::cluster::connect;

const DATABASE: &str = "latency";
const TABLES: &str = "
    CREATE TABLE load (writer int, id int, at timestamptz NOT NULL, note text NOT NULL, PRIMARY KEY (writer, id));
    CREATE TABLE probe (id int PRIMARY KEY, at timestamptz NOT NULL)";
const MAPPING: &str = "source = \"src\"\nsink = \"dst\"\n\n\
    [table.\"public.load\"]\nfrom = \"public.load\"\ncolumns = \"*\"\n\n\
    [table.\"public.probe\"]\nfrom = \"public.probe\"\ncolumns = \"*\"\n";

const WRITERS: u32 = 4;
const TRANSACTIONS_PER_SECOND: u32 = 1_000;
const PROBE_EVERY: Duration = Duration::from_millis(100);
/// Between two looks: far below what is measured, and far from keeping a core busy.
const LOOK_EVERY: Duration = Duration::from_micros(250);

#[derive(Serialize)]
pub struct Latencies {
    pub way: Way,
    /// Sorted.
    pub millis: Vec<f64>,
    pub transactions_per_second: f64,
    pub cpu: Measure,
}

impl Latencies {
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.millis.len() * percent).div_ceil(100);
        self.millis.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

pub async fn measure(servers: &Servers, scale: f64) -> Result<Vec<Latencies>> {
    let probes = (200.0 * scale).max(50.0) as i32;
    for cluster in [&servers.source, &servers.native, &servers.tailwater] {
        drop_database(cluster, DATABASE).await?;
        cluster.create_database(DATABASE).await?;
    }
    servers.source.execute(DATABASE, TABLES).await?;
    servers.native.execute(DATABASE, TABLES).await?;
    let source = servers.source.connect(DATABASE).await?;
    source.batch_execute("CREATE PUBLICATION native FOR TABLE load, probe").await?;

    let sink = servers.native.connect(DATABASE).await?;
    source.query("SELECT pg_create_logical_replication_slot('native', 'pgoutput')", &[]).await?;
    sink.batch_execute(&subscription(servers, DATABASE, "create_slot = false, slot_name = 'native'")).await?;
    let (millis, transactions_per_second) = load_and_probe(servers, &sink, probes).await?;
    let cpu = native_cpu(&source, &sink).await?;
    let native = Latencies { way: Way::Native, millis, transactions_per_second, cpu };
    end_subscription(&sink).await?;
    drop_slot(&source, "native").await?;
    source.batch_execute("TRUNCATE load, probe").await?;

    let home = servers.home(DATABASE, MAPPING)?;
    home.setup()?;
    let mut daemon = home.run()?;
    let sink = servers.tailwater.connect(DATABASE).await?;
    daemon.wait_caught_up(&source, &sink, DEADLINE).await?;
    let (millis, transactions_per_second) = load_and_probe(servers, &sink, probes).await?;
    let cpu = tailwater_cpu(&source, &sink, daemon.pid()).await?;
    let own = Latencies { way: Way::Tailwater, millis, transactions_per_second, cpu };
    terminate(daemon)?;
    drop_slot(&source, TAILWATER_SLOT).await?;
    Ok(vec![native, own])
}

async fn load_and_probe(servers: &Servers, sink: &Client, probes: i32) -> Result<(Vec<f64>, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = connect(&servers.source.socket_url(DATABASE)).await?;
        writers.push(tokio::spawn(write(client, writer, stop.clone(), commits.clone())));
    }
    let began = Instant::now();
    let source = connect(&servers.source.socket_url(DATABASE)).await?;
    let outcome = probe(&source, sink, probes).await;
    let seconds = began.elapsed().as_secs_f64();
    let written = commits.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.context("a writer panicked")??;
    }
    let mut millis = outcome?;
    millis.sort_by(f64::total_cmp);
    Ok((millis, written as f64 / seconds))
}

async fn write(client: Client, writer: u32, stop: Arc<AtomicBool>, commits: Arc<AtomicU64>) -> Result<()> {
    let writer = i32::try_from(writer)?;
    let sql = "INSERT INTO load VALUES ($1, $2, clock_timestamp(), repeat(md5(random()::text), 3))";
    let insert = client.prepare(sql).await?;
    let every = Duration::from_secs(1) * WRITERS / TRANSACTIONS_PER_SECOND;
    let mut clock = tokio::time::interval(every);
    for id in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        clock.tick().await;
        client.execute(&insert, &[&writer, &id]).await?;
        commits.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Each probe carries the time just before its commit; the sink, on the same machine, says when it sees it.
async fn probe(source: &Client, sink: &Client, probes: i32) -> Result<Vec<f64>> {
    let insert = source.prepare("INSERT INTO probe VALUES ($1, clock_timestamp())").await?;
    let age = "SELECT extract(epoch FROM clock_timestamp() - at)::float8 * 1000 FROM probe WHERE id = $1";
    let look = sink.prepare(age).await?;
    let mut millis = Vec::new();
    let mut clock = tokio::time::interval(PROBE_EVERY);
    // The first tenth warms up: connections, plans, caches.
    let warm_up = probes / 10;
    for id in 0..probes + warm_up {
        clock.tick().await;
        let began = Instant::now();
        source.execute(&insert, &[&id]).await?;
        let seen = loop {
            if let Some(row) = sink.query_opt(&look, &[&id]).await? {
                break row.get::<_, f64>(0);
            }
            if began.elapsed() > DEADLINE {
                bail!("a probe was not seen within {DEADLINE:?}");
            }
            // The runtime's own clock ticks in whole milliseconds. Nothing else runs on this thread.
            std::thread::sleep(LOOK_EVERY);
        };
        if id >= warm_up {
            millis.push(seen);
        }
    }
    Ok(millis)
}
