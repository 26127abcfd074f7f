//! From commit to visible under a steady load of single-row transactions.
//!
//! With `synchronous_commit` on, as by default: a walsender sends what is flushed, so that without it `wal_writer_delay`
//! (200 ms) is all there is to measure, whoever reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rdkafka::message::Message as _;
use serde::Serialize;
use tokio_postgres::{Client, Statement};

use tailwater::telemetry::time::parse_utc;

use crate::drain::{DEADLINE, Measure, Way, end_subscription, native_cpu, subscription, tailwater_cpu};
use crate::kafka;
use crate::kafka_reader::{Event, Reader};
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
/// For one message to arrive; it is told at once.
const WAIT_FOR_MESSAGE: Duration = Duration::from_millis(100);

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

pub async fn measure(servers: &Servers, scale: f64, ways: &[Way]) -> Result<Vec<Latencies>> {
    let probes = (200.0 * scale).max(50.0) as i32;
    let mut all = Vec::new();
    for cluster in [&servers.source, &servers.native, &servers.tailwater] {
        drop_database(cluster, DATABASE).await?;
        cluster.create_database(DATABASE).await?;
    }
    servers.source.execute(DATABASE, TABLES).await?;
    servers.native.execute(DATABASE, TABLES).await?;
    let source = servers.source.connect(DATABASE).await?;
    for way in ways {
        all.extend(match way {
            Way::Native => Some(native(servers, &source, probes).await?),
            Way::Tailwater => Some(tailwater(servers, &source, probes).await?),
            Way::Kafka => Some(into_kafka(servers, &source, probes).await?),
            Way::ClickHouse | Way::Recvlogical | Way::Wire | Way::Journal => None,
        });
        source.batch_execute("TRUNCATE load, probe").await?;
    }
    Ok(all)
}

async fn native(servers: &Servers, source: &Client, probes: i32) -> Result<Latencies> {
    source.batch_execute("CREATE PUBLICATION native FOR TABLE load, probe").await?;
    let sink = servers.native.connect(DATABASE).await?;
    source.query("SELECT pg_create_logical_replication_slot('native', 'pgoutput')", &[]).await?;
    sink.batch_execute(&subscription(servers, DATABASE, "create_slot = false, slot_name = 'native'")).await?;
    let (millis, transactions_per_second) = load_and_probe(servers, &Eye::sql(&sink).await?, probes).await?;
    let cpu = native_cpu(source, &sink).await?;
    end_subscription(&sink).await?;
    drop_slot(source, "native").await?;
    Ok(Latencies { way: Way::Native, millis, transactions_per_second, cpu })
}

async fn tailwater(servers: &Servers, source: &Client, probes: i32) -> Result<Latencies> {
    let home = servers.home(DATABASE, MAPPING)?;
    home.setup()?;
    let mut daemon = home.run()?;
    let sink = servers.tailwater.connect(DATABASE).await?;
    daemon.wait_caught_up(source, &sink, DEADLINE).await?;
    let (millis, transactions_per_second) = load_and_probe(servers, &Eye::sql(&sink).await?, probes).await?;
    let cpu = tailwater_cpu(source, &sink, daemon.pid()).await?;
    terminate(daemon)?;
    drop_slot(source, TAILWATER_SLOT).await?;
    Ok(Latencies { way: Way::Tailwater, millis, transactions_per_second, cpu })
}

async fn into_kafka(servers: &Servers, source: &Client, probes: i32) -> Result<Latencies> {
    let mapping = kafka::mapping("\"public.load\", \"public.probe\"", "");
    let stage = kafka::Stage::new(&servers.url(&servers.source, DATABASE), &mapping)?;
    let mut daemon = stage.home.run()?;
    kafka::wait_until_streaming(&mut daemon).await?;
    let before = stage.before()?;
    let eye = Eye::Topic(Reader::new(&stage.broker, &kafka::topic("probe"))?);
    let (millis, transactions_per_second) = load_and_probe(servers, &eye, probes).await?;
    let Measure { source_cpu, own_cpu, peak_mib, .. } = tailwater_cpu(source, source, daemon.pid()).await?;
    let cpu = Measure { source_cpu, own_cpu, peak_mib, ..stage.since(&before)? };
    terminate(daemon)?;
    drop_slot(source, TAILWATER_SLOT).await?;
    Ok(Latencies { way: Way::Kafka, millis, transactions_per_second, cpu })
}

/// How a reader of the sink looks for a probe.
enum Eye<'a> {
    Sql(&'a Client, Statement),
    /// Whoever reads committed messages.
    Topic(Reader),
}

impl Eye<'_> {
    async fn sql(sink: &Client) -> Result<Eye<'_>> {
        let age = "SELECT extract(epoch FROM clock_timestamp() - at)::float8 * 1000 FROM probe WHERE id = $1";
        Ok(Eye::Sql(sink, sink.prepare(age).await?))
    }

    /// How old a probe is, if it is there; looks for a moment. The sink's clock, or this process's, is the source's: they are
    /// on one machine.
    async fn age_millis(&self, id: i32) -> Result<Option<f64>> {
        match self {
            Eye::Sql(sink, look) => {
                let found = sink.query_opt(look, &[&id]).await?.map(|row| row.get(0));
                if found.is_none() {
                    // The runtime's own clock ticks in whole milliseconds. Nothing else runs on this thread.
                    std::thread::sleep(LOOK_EVERY);
                }
                Ok(found)
            }
            Eye::Topic(reader) => {
                let Some(message) = reader.next(WAIT_FOR_MESSAGE)? else { return Ok(None) };
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as f64;
                let Some(value) = message.payload() else { return Ok(None) };
                let event = Event::parse(value)?;
                if event.number("id") != Some(i64::from(id)) {
                    return Ok(None);
                }
                let at = event.after.as_ref().and_then(|row| row.get("at")?.as_str());
                let at = at.and_then(parse_utc).context("a probe does not say when it was written")?;
                Ok(Some((now - at.0 as f64) / 1_000.0))
            }
        }
    }
}

async fn load_and_probe(servers: &Servers, eye: &Eye<'_>, probes: i32) -> Result<(Vec<f64>, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = connect(&servers.source.socket_url(DATABASE)).await?;
        writers.push(tokio::spawn(write(client, writer, stop.clone(), commits.clone())));
    }
    let began = Instant::now();
    let source = connect(&servers.source.socket_url(DATABASE)).await?;
    let outcome = probe(&source, eye, probes).await;
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
async fn probe(source: &Client, eye: &Eye<'_>, probes: i32) -> Result<Vec<f64>> {
    let insert = source.prepare("INSERT INTO probe VALUES ($1, clock_timestamp())").await?;
    let mut millis = Vec::new();
    let mut clock = tokio::time::interval(PROBE_EVERY);
    // The first tenth warms up: connections, plans, caches.
    let warm_up = probes / 10;
    for id in 0..probes + warm_up {
        clock.tick().await;
        let began = Instant::now();
        source.execute(&insert, &[&id]).await?;
        let seen = loop {
            if let Some(millis) = eye.age_millis(id).await? {
                break millis;
            }
            if began.elapsed() > DEADLINE {
                bail!("a probe was not seen within {DEADLINE:?}");
            }
        };
        if id >= warm_up {
            millis.push(seen);
        }
    }
    Ok(millis)
}
