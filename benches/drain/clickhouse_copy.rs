//! The first copy of a table into ClickHouse, beside ClickHouse's own `postgresql()` on the same rows, into the same table.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tokio_postgres::Client;

use crate::backlog::ORDERS;
use crate::clickhouse::{ALL_STREAM, Stage};
use crate::cpu;
use crate::drain::{Measure, forget_journal};
use crate::servers::{Servers, TAILWATER_SLOT, drop_database, drop_slot, terminate};
use crate::snapshot::{MAPPING, fill};

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
    drop_database(&servers.source, DATABASE).await?;
    servers.source.create_database(DATABASE).await?;
    servers.source.execute(DATABASE, ORDERS).await?;
    let rows = (ROWS * scale) as i64;
    fill(servers, DATABASE, rows).await?;
    let source = servers.source.connect(DATABASE).await?;
    // ClickHouse knows no other way than TCP.
    let url = format!("{}?sslmode=disable", servers.source.url(DATABASE));
    let mut stage = Stage::new(&url, MAPPING)?;
    stage.keep()?;
    source.execute("SELECT pg_copy_logical_replication_slot($1, 'retained')", &[&TAILWATER_SLOT]).await?;
    let bytes = source.query_one("SELECT pg_relation_size('orders')::float8", &[]).await?.get(0);
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
            let measure = if is_own { tailwater(servers, &stage).await? } else { table_function(servers, &stage)? };
            eprintln!("bench: snapshot into ClickHouse by {name}: {:.2} s", measure.seconds);
            verify(&source, &stage).await?;
            measures.push(measure);
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
    stage.wait(&mut daemon, ALL_STREAM).await?;
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

fn table_function(servers: &Servers, stage: &Stage) -> Result<Measure> {
    let (source_cpu, before) = (source_cpu(servers)?, stage.before()?);
    let began = Instant::now();
    stage.server.query(&format!(
        "INSERT INTO public.orders SELECT *, 1, 0 FROM postgresql('127.0.0.1:{}', '{DATABASE}', 'orders', 'postgres', '')",
        servers.source.port()
    ))?;
    let measure = Measure { seconds: began.elapsed().as_secs_f64(), ..stage.since(&before)? };
    Ok(Measure { source_cpu: self::source_cpu(servers)? - source_cpu, ..measure })
}

fn source_cpu(servers: &Servers) -> Result<f64> {
    Ok(cpu::family_seconds(servers.source.postmaster_pid().context("the source runs")?))
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
