//! `make bench`: tailwater end to end beside native logical replication, on private clusters, in one run.
//!
//! Each backlog is written once and drained many times: a slot made before it is copied for every drain, and the sinks'
//! databases are made anew from templates. A drain counts only if the sink then equals the source. Every figure stands
//! beside the CPU it took, which on few cores says more than the time.

mod backlog;
mod clickhouse;
mod clickhouse_copy;
mod cpu;
mod drain;
mod kafka;
mod kafka_copy;
mod kafka_reader;
mod kept;
mod latency;
mod original;
mod readers;
mod report;
mod servers;
mod snapshot;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, ValueEnum};

use backlog::Backlog;
use drain::Way;
use servers::{Servers, Transport};

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    A,
    B,
    Latency,
    Snapshot,
    /// The same into ClickHouse.
    #[value(name = "clickhouse-snapshot")]
    ClickHouseSnapshot,
    /// The same into Kafka.
    KafkaSnapshot,
}

/// tailwater beside native logical replication: backlogs, latency, snapshot.
#[derive(Parser)]
struct Args {
    /// Share of the full size of everything.
    #[arg(long, env = "TAILWATER_BENCH_SCALE", default_value_t = 1.0)]
    scale: f64,
    /// Drains of each kind.
    #[arg(long, env = "TAILWATER_BENCH_ROUNDS", default_value_t = 3)]
    rounds: usize,
    /// How every stream and sink is reached; each `--transport` is reported apart.
    #[arg(long, env = "TAILWATER_BENCH_TRANSPORT", value_delimiter = ',', default_value = "socket")]
    transport: Vec<Transport>,
    /// Only these parts.
    #[arg(
        long,
        env = "TAILWATER_BENCH_ONLY",
        value_delimiter = ',',
        default_value = "a,b,latency,snapshot,clickhouse-snapshot,kafka-snapshot"
    )]
    only: Vec<Part>,
    /// Drains, and latency, only by these ways.
    #[arg(long, env = "TAILWATER_BENCH_WAYS", value_delimiter = ',')]
    ways: Vec<Way>,
    /// Lets the native subscription stream binary values too; by default it is as CREATE SUBSCRIPTION makes it.
    #[arg(long, env = "TAILWATER_BENCH_NATIVE_BINARY")]
    native_binary: bool,
    /// Lines for tailwater's `[sink.dst]`, as `batch_rows_max = 50000`.
    #[arg(long, env = "TAILWATER_BENCH_SINK", default_value = "")]
    sink: String,
    /// Also writes every single measurement to this file.
    #[arg(long, env = "TAILWATER_BENCH_JSON")]
    json: Option<PathBuf>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(run(args))
}

async fn run(args: Args) -> Result<()> {
    let began = Instant::now();
    let mut servers = Servers::start(&args.sink, args.native_binary)?;
    let ways = if args.ways.is_empty() { Way::value_variants().to_vec() } else { args.ways.clone() };
    let mut json = serde_json::Map::new();
    report::machine(args.scale);
    for backlog in [Backlog::orders(args.scale), Backlog::tpcb(args.scale)] {
        if !args.only.contains(&backlog.part) {
            continue;
        }
        let written = backlog.prepare(&servers, &ways).await?;
        for &transport in &args.transport {
            servers.transport = transport;
            let drains = drain::rounds(&servers, &written, &ways, args.rounds).await?;
            report::drains(&written, transport, &drains);
            json.insert(format!("{} {transport:?}", backlog.name), serde_json::to_value(&drains)?);
        }
        written.forget(&servers).await?;
    }
    servers.transport = args.transport.first().copied().unwrap_or(Transport::Socket);
    if args.only.contains(&Part::Latency) {
        let latencies = latency::measure(&servers, args.scale, &ways).await?;
        report::latencies(&latencies);
        json.insert("latency".to_owned(), serde_json::to_value(&latencies)?);
    }
    if args.only.contains(&Part::Snapshot) {
        let copies = snapshot::rounds(&servers, args.scale, args.rounds).await?;
        report::snapshot(&copies);
        json.insert("snapshot".to_owned(), serde_json::to_value(&copies)?);
    }
    if args.only.contains(&Part::ClickHouseSnapshot) {
        let copies = clickhouse_copy::rounds(&servers, args.scale, args.rounds).await?;
        report::clickhouse_snapshot(&copies);
        json.insert("clickhouse snapshot".to_owned(), serde_json::to_value(&copies)?);
    }
    if args.only.contains(&Part::KafkaSnapshot) {
        let copies = kafka_copy::rounds(&servers, args.scale, args.rounds).await?;
        report::kafka_snapshot(&copies);
        json.insert("kafka snapshot".to_owned(), serde_json::to_value(&copies)?);
    }
    servers.end()?;
    println!("\n{:.0} s in all", began.elapsed().as_secs_f64());
    if let Some(path) = args.json {
        std::fs::write(path, serde_json::to_string_pretty(&json)?)?;
    }
    Ok(())
}
