//! The first copy of a table into Kafka, beside a `COPY` of the same rows that nobody keeps: what no copy is faster than.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::drain::Measure;
use crate::kafka::{Stage, mapping, topic, truth, wait_until_streaming};
use crate::kafka_reader::{Content, Fold};
use crate::original::Original;
use crate::servers::{Servers, program, terminate};

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
    let original = Original::write(servers, DATABASE, (ROWS * scale) as i64).await?;
    let mut stage = Stage::new(&original.url, &mapping("\"public.orders\"", ""))?;
    stage.keep()?;
    original.retain_slot().await?;
    let (rows, bytes) = (original.rows, original.bytes().await?);
    let mut copies = KafkaCopies { rows, bytes, tailwater: Vec::new(), reading: Vec::new() };
    for round in 0..rounds {
        for turn in 0..2 {
            servers.settle().await?;
            if (round + turn) % 2 == 0 {
                stage.reset()?;
                let measure = tailwater(&original, &stage).await?;
                eprintln!("bench: snapshot into Kafka: {:.2} s", measure.seconds);
                copies.tailwater.push(verified(&original, &stage, measure).await?);
                stage.broker.stop()?;
            } else {
                let measure = reading(&original)?;
                eprintln!("bench: snapshot by COPY to nowhere: {:.2} s", measure.seconds);
                copies.reading.push(measure);
            }
        }
    }
    original.drop_slots().await?;
    Ok(copies)
}

async fn tailwater(original: &Original<'_>, stage: &Stage) -> Result<Measure> {
    let before = stage.before()?;
    let (daemon, measure) = original.copy(&stage.home, wait_until_streaming).await?;
    let Measure { seconds, source_cpu, own_cpu, peak_mib, .. } = measure;
    let measure = Measure { seconds, source_cpu, own_cpu, peak_mib, ..stage.since(&before)? };
    terminate(daemon)?;
    Ok(measure)
}

fn reading(original: &Original<'_>) -> Result<Measure> {
    let source_cpu = original.source_cpu()?;
    let began = Instant::now();
    let mut psql: Command = program("psql")?;
    psql.args(["-qX", &original.url, "-c", "COPY orders TO STDOUT (FORMAT binary)"]);
    let status = psql.stdin(Stdio::null()).stdout(Stdio::null()).status().context("start psql")?;
    ensure!(status.success(), "COPY ended with {status}");
    let seconds = began.elapsed().as_secs_f64();
    Ok(Measure { seconds, source_cpu: original.source_cpu()? - source_cpu, ..Measure::default() })
}

/// Every row is told once, and they are the source's.
async fn verified(original: &Original<'_>, stage: &Stage, measure: Measure) -> Result<Measure> {
    let content = Content::read(&stage.broker, &topic("orders"), &SUMS, Fold::ByKey)?;
    content.must_be("orders", &truth(&original.client, "orders", &SUMS).await?)?;
    let rows = original.rows;
    ensure!(i64::try_from(content.copied)? == rows, "{rows} rows were told by {} messages", content.copied);
    Ok(Measure { messages: content.copied as f64, message_bytes: content.copied_bytes as f64, ..measure })
}
