//! The first copy of a table into Kafka, beside a `COPY` of the same rows that nobody keeps: what no copy is faster than.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio_postgres::Client;

use crate::backlog::ORDERS;
use crate::cpu;
use crate::drain::{Measure, forget_journal};
use crate::kafka::{Stage, mapping, topic, truth, wait_until_streaming};
use crate::kafka_reader::{Content, Fold};
use crate::servers::{Servers, TAILWATER_SLOT, drop_database, drop_slot, program, terminate};
use crate::snapshot::fill;

const DATABASE: &str = "kafka_snapshot";
const ROWS: f64 = 2_000_000.0;
/// What both ends must agree in.
const SUMS: [&str; 5] = ["id", "customer_id", "quantity", "length(note)", "length(status)"];

#[derive(Serialize)]
pub struct KafkaCopies {
    pub rows: i64,
    /// Of the table at the source.
    pub bytes: f64,
    pub tailwater: Vec<Measure>,
    /// The rows to /dev/null.
    pub reading: Vec<Measure>,
}

pub async fn rounds(servers: &Servers, scale: f64, rounds: usize) -> Result<KafkaCopies> {
    eprintln!("bench: writing the table of the snapshot into Kafka");
    drop_database(&servers.source, DATABASE).await?;
    servers.source.create_database(DATABASE).await?;
    servers.source.execute(DATABASE, ORDERS).await?;
    let rows = (ROWS * scale) as i64;
    fill(servers, DATABASE, rows).await?;
    let source = servers.source.connect(DATABASE).await?;
    let url = format!("{}?sslmode=disable", servers.source.url(DATABASE));
    let mut stage = Stage::new(&url, &mapping("\"public.orders\"", ""))?;
    stage.keep()?;
    source.execute("SELECT pg_copy_logical_replication_slot($1, 'retained')", &[&TAILWATER_SLOT]).await?;
    let bytes = source.query_one("SELECT pg_relation_size('orders')::float8", &[]).await?.get(0);
    let mut copies = KafkaCopies { rows, bytes, tailwater: Vec::new(), reading: Vec::new() };
    for round in 0..rounds {
        for turn in 0..2 {
            servers.settle().await?;
            if (round + turn) % 2 == 0 {
                stage.reset()?;
                let measure = tailwater(servers, &stage).await?;
                eprintln!("bench: snapshot into Kafka: {:.2} s", measure.seconds);
                copies.tailwater.push(verified(&source, &stage, rows, measure).await?);
                stage.broker.stop()?;
            } else {
                let measure = reading(servers, &url)?;
                eprintln!("bench: snapshot by COPY to nowhere: {:.2} s", measure.seconds);
                copies.reading.push(measure);
            }
        }
    }
    for slot in ["retained", TAILWATER_SLOT] {
        drop_slot(&source, slot).await?;
    }
    Ok(copies)
}

async fn tailwater(servers: &Servers, stage: &Stage) -> Result<Measure> {
    servers.copy_slot(DATABASE, TAILWATER_SLOT).await?;
    forget_journal(&stage.home)?;
    let (source_cpu, before) = (source_cpu(servers)?, stage.before()?);
    let began = Instant::now();
    let mut daemon = stage.home.run()?;
    wait_until_streaming(&mut daemon).await?;
    let measure = Measure {
        seconds: began.elapsed().as_secs_f64(),
        own_cpu: cpu::seconds(daemon.pid()),
        peak_mib: cpu::peak_mib(daemon.pid()),
        ..stage.since(&before)?
    };
    // The copy's sessions have ended by now.
    let measure = Measure { source_cpu: self::source_cpu(servers)? - source_cpu, ..measure };
    terminate(daemon)?;
    Ok(measure)
}

fn reading(servers: &Servers, url: &str) -> Result<Measure> {
    let source_cpu = source_cpu(servers)?;
    let began = Instant::now();
    let mut psql: Command = program("psql")?;
    psql.args(["-qX", url, "-c", "COPY orders TO STDOUT (FORMAT binary)"]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = psql.status().context("start psql")?;
    ensure!(status.success(), "COPY ended with {status}");
    let seconds = began.elapsed().as_secs_f64();
    Ok(Measure { seconds, source_cpu: self::source_cpu(servers)? - source_cpu, ..Measure::default() })
}

fn source_cpu(servers: &Servers) -> Result<f64> {
    Ok(cpu::family_seconds(servers.source.postmaster_pid().context("the source runs")?))
}

/// Every row is told once, and they are the source's.
async fn verified(source: &Client, stage: &Stage, rows: i64, measure: Measure) -> Result<Measure> {
    let content = Content::read(&stage.broker, &topic("orders"), &SUMS, Fold::ByKey)?;
    content.must_be("orders", &truth(source, "orders", &SUMS).await?)?;
    ensure!(i64::try_from(content.copied)? == rows, "{rows} rows were told by {} messages", content.copied);
    Ok(Measure { messages: content.copied as f64, message_bytes: content.copied_bytes as f64, ..measure })
}
