//! The first copy of a table into ClickHouse, beside ClickHouse's own `postgresql()` on the same rows, into the same table.

use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio_postgres::Client;

use crate::clickhouse::{ALL_STREAM, Stage};
use crate::drain::Measure;
use crate::original::Original;
use crate::servers::{Servers, terminate};
use crate::snapshot::MAPPING;

const DATABASE: &str = "clickhouse_snapshot";
const ROWS: f64 = 5_000_000.0;
/// What both ends must agree in.
const SUMS: [&str; 6] = ["id", "customer_id", "quantity", "price * 100", "length(note)", "length(status)"];

#[derive(Serialize)]
pub struct ClickHouseCopies {
    pub rows: i64,
    /// Of the table at the source.
    pub bytes: f64,
    pub tailwater: Vec<Measure>,
    pub table_function: Vec<Measure>,
}

pub async fn rounds(servers: &Servers, scale: f64, rounds: usize) -> Result<ClickHouseCopies> {
    eprintln!("bench: writing the table of the snapshot into ClickHouse");
    let original = Original::write(servers, DATABASE, (ROWS * scale) as i64).await?;
    let mut stage = Stage::new(&original.url, MAPPING)?;
    stage.keep()?;
    original.retain_slot().await?;
    let (rows, bytes) = (original.rows, original.bytes().await?);
    let mut copies = ClickHouseCopies { rows, bytes, tailwater: Vec::new(), table_function: Vec::new() };
    for round in 0..rounds {
        for turn in 0..2 {
            stage.reset()?;
            servers.settle().await?;
            let is_own = (round + turn) % 2 == 0;
            let (name, measures) = if is_own {
                ("tailwater", &mut copies.tailwater)
            } else {
                ("postgresql()", &mut copies.table_function)
            };
            let measure = match is_own {
                true => tailwater(&original, &stage).await?,
                false => table_function(&original, &stage)?,
            };
            eprintln!("bench: snapshot into ClickHouse by {name}: {:.2} s", measure.seconds);
            verify(&original.client, &stage).await?;
            measures.push(measure);
        }
    }
    original.drop_slots().await?;
    Ok(copies)
}

async fn tailwater(original: &Original<'_>, stage: &Stage) -> Result<Measure> {
    let before = stage.before()?;
    let (daemon, measure) = original.copy(&stage.home, async |daemon| stage.wait(daemon, ALL_STREAM).await).await?;
    let Measure { seconds, source_cpu, own_cpu, peak_mib, .. } = measure;
    let measure = Measure { seconds, source_cpu, own_cpu, peak_mib, ..stage.since(&before)? };
    terminate(daemon)?;
    Ok(measure)
}

fn table_function(original: &Original<'_>, stage: &Stage) -> Result<Measure> {
    let (source_cpu, before) = (original.source_cpu()?, stage.before()?);
    let port = original.servers.source.port();
    let began = Instant::now();
    stage.server.query(&format!(
        "INSERT INTO public.orders SELECT *, 1, 0 FROM postgresql('127.0.0.1:{port}', '{DATABASE}', 'orders', 'postgres', '')"
    ))?;
    let measure = Measure { seconds: began.elapsed().as_secs_f64(), ..stage.since(&before)? };
    Ok(Measure { source_cpu: original.source_cpu()? - source_cpu, ..measure })
}

async fn verify(source: &Client, stage: &Stage) -> Result<()> {
    let sums = SUMS.map(|sum| format!("cast(cast(sum({sum}) as bigint) as text)")).join(", ");
    let sql = format!("SELECT concat_ws(' ', cast(count(*) as text), {sums}) FROM orders");
    let truth: String = source.query_one(&sql, &[]).await?.get(0);
    let sql = sql.replace("FROM orders", "FROM public.orders_current").replace("as text", "as String");
    let held = stage.server.query(&sql)?;
    ensure!(truth == held, "the source holds {truth}, the sink {held}");
    Ok(())
}
