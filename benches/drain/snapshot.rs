//! The first copy of a table, beside `COPY | COPY` between the same servers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;
use tokio_postgres::Client;

use crate::backlog::{ORDER, ORDERS};
use crate::drain::{Measure, forget_journal, must_run, tailwater_cpu};
use crate::servers::{
    Servers, TAILWATER_SLOT, copy_pipe, drop_database, drop_slot, from_template, keep_as_template, terminate,
};
use crate::support::daemon::{Home, tables_not_streaming};

const DATABASE: &str = "snapshot";
pub const MAPPING: &str =
    "source = \"src\"\nsink = \"dst\"\n\n[table.\"public.orders\"]\nfrom = \"public.orders\"\ncolumns = \"*\"\n";

#[derive(Serialize)]
pub struct Copies {
    pub rows: i64,
    pub tailwater: Vec<Measure>,
    pub pipe: Vec<Measure>,
}

pub async fn rounds(servers: &Servers, scale: f64, rounds: usize) -> Result<Copies> {
    eprintln!("bench: writing the table of the snapshot");
    for cluster in [&servers.source, &servers.native, &servers.tailwater] {
        drop_database(cluster, DATABASE).await?;
        cluster.create_database(DATABASE).await?;
    }
    let rows = (2_000_000.0 * scale) as i64;
    servers.source.execute(DATABASE, ORDERS).await?;
    servers.native.execute(DATABASE, ORDERS).await?;
    fill(servers, DATABASE, rows).await?;
    let source = servers.source.connect(DATABASE).await?;
    let home = servers.home(DATABASE, MAPPING)?;
    home.setup()?;
    source.execute("SELECT pg_copy_logical_replication_slot($1, 'retained')", &[&TAILWATER_SLOT]).await?;
    for cluster in [&servers.native, &servers.tailwater] {
        keep_as_template(cluster, DATABASE).await?;
    }
    let truth = digest(&source).await?;
    let mut copies = Copies { rows, tailwater: Vec::new(), pipe: Vec::new() };
    for round in 0..rounds {
        for turn in 0..2 {
            let (cluster, measures) = match (round + turn) % 2 {
                0 => (&servers.tailwater, &mut copies.tailwater),
                _ => (&servers.native, &mut copies.pipe),
            };
            from_template(cluster, DATABASE).await?;
            servers.settle().await?;
            let sink = cluster.connect(DATABASE).await?;
            let measure = match (round + turn) % 2 {
                0 => tailwater(servers, &home, &source, &sink).await?,
                _ => pipe(servers)?,
            };
            ensure!(digest(&sink).await? == truth, "the copy is not what the source holds");
            measures.push(measure);
        }
    }
    for slot in ["retained", TAILWATER_SLOT] {
        drop_slot(&source, slot).await?;
    }
    Ok(copies)
}

/// Fills the source's table.
pub async fn fill(servers: &Servers, database: &str, rows: i64) -> Result<()> {
    let insert = format!("INSERT INTO orders SELECT {ORDER} FROM generate_series(1, {rows}) i");
    servers.source.execute(database, &insert).await?;
    servers.source.execute(database, "VACUUM ANALYZE orders").await
}

async fn tailwater(servers: &Servers, home: &Home, source: &Client, sink: &Client) -> Result<Measure> {
    servers.copy_slot(DATABASE, TAILWATER_SLOT).await?;
    forget_journal(home)?;
    let began = Instant::now();
    let mut daemon = home.run()?;
    while tables_not_streaming(sink).await? > 0 {
        must_run(&mut daemon, began)?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let measure = Measure { seconds, ..tailwater_cpu(source, sink, daemon.pid()).await? };
    eprintln!("bench: snapshot by tailwater: {seconds:.2} s");
    terminate(daemon)?;
    Ok(measure)
}

fn pipe(servers: &Servers) -> Result<Measure> {
    let began = Instant::now();
    copy_pipe(&servers.url(&servers.source, DATABASE), &servers.url(&servers.native, DATABASE), "orders")?;
    let seconds = began.elapsed().as_secs_f64();
    eprintln!("bench: snapshot by COPY | COPY: {seconds:.2} s");
    Ok(Measure { seconds, ..Measure::default() })
}

async fn digest(client: &Client) -> Result<(i64, i64)> {
    let row = client.query_one("SELECT count(*), sum(hash_record(t)::bigint)::bigint FROM orders t", &[]).await?;
    Ok((row.get(0), row.get(1)))
}
