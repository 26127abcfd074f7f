//! Draining a backlog, by each way in turn.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use tokio_postgres::Client;

use crate::backlog::Written;
use crate::servers::{Servers, TAILWATER_SLOT, drop_slot, from_template, pids, terminate};
use crate::support::cluster::last_lines;
use crate::support::daemon::{Daemon, Home};
use crate::{cpu, readers};

pub const DEADLINE: Duration = Duration::from_secs(600);
/// Between two looks for the marker: short beside any drain, and one cheap statement each.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A way to drain a backlog.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ValueEnum)]
pub enum Way {
    Native,
    Tailwater,
    /// tailwater into ClickHouse.
    #[value(name = "clickhouse")]
    ClickHouse,
    /// tailwater into Kafka, as Debezium's JSON.
    Kafka,
    /// `pg_recvlogical` to /dev/null.
    Recvlogical,
    /// tailwater's own connection, the bytes thrown away.
    Wire,
    /// tailwater's own stream into a journal, with no sink.
    Journal,
}

/// What one drain took.
#[derive(Clone, Copy, Default, Debug, Serialize)]
pub struct Measure {
    pub seconds: f64,
    /// CPU seconds of the walsender, and of other sessions at the source.
    pub source_cpu: f64,
    /// CPU seconds of the process between the servers; zero for native, which has none.
    pub own_cpu: f64,
    /// CPU seconds of the apply worker, or of tailwater's sessions at its sink.
    pub sink_cpu: f64,
    pub peak_mib: f64,
    /// The most memory of a ClickHouse server or a Kafka broker, the inserts that it took, and the parts that its tables had at the
    /// end.
    pub sink_peak_mib: f64,
    pub inserts: f64,
    pub parts: f64,
    /// What came into Kafka: messages, their keys and values in bytes, and what the topics' logs grew by.
    pub messages: f64,
    pub message_bytes: f64,
    pub log_bytes: f64,
}

/// Every measurement of one way.
#[derive(Serialize)]
pub struct Drains {
    pub way: Way,
    pub measures: Vec<Measure>,
}

/// Drains a backlog by each way, `rounds` times, each round beginning with another one.
pub async fn rounds(servers: &Servers, written: &Written<'_>, ways: &[Way], rounds: usize) -> Result<Vec<Drains>> {
    let backlog = written.backlog;
    written.home.configure(&servers.config(backlog.database), &[("mapping.toml", &backlog.mapping())])?;
    let mut drains: Vec<_> = ways.iter().map(|&way| Drains { way, measures: Vec::new() }).collect();
    for round in 0..rounds {
        for step in 0..drains.len() {
            let turn = (round + step) % drains.len();
            let way = drains[turn].way;
            let measure = once(servers, written, way).await.with_context(|| format!("drain by {way:?}"))?;
            eprintln!("bench: backlog {} round {} {way:?}: {:.2} s", backlog.name, round + 1, measure.seconds);
            drains[turn].measures.push(measure);
        }
    }
    Ok(drains)
}

async fn once(servers: &Servers, written: &Written<'_>, way: Way) -> Result<Measure> {
    let database = written.backlog.database;
    match way {
        Way::Native => native(servers, written).await,
        Way::Tailwater => tailwater(servers, written).await,
        Way::ClickHouse => {
            let mut stage = written.clickhouse.lock().await;
            stage.as_mut().context("ClickHouse was prepared")?.drain(servers, written).await
        }
        Way::Kafka => {
            let mut stage = written.kafka.lock().await;
            stage.as_mut().context("Kafka was prepared")?.drain(servers, written).await
        }
        Way::Recvlogical | Way::Wire | Way::Journal => {
            servers.copy_slot(database, "reader").await?;
            let measure = match way {
                Way::Recvlogical => readers::recvlogical(servers, database, written.end),
                Way::Wire => readers::wire(servers, database, written.end),
                _ => readers::journal(servers, database, written.end),
            };
            drop_slot(&servers.source.connect(database).await?, "reader").await?;
            measure
        }
    }
}

async fn native(servers: &Servers, written: &Written<'_>) -> Result<Measure> {
    let database = written.backlog.database;
    from_template(&servers.native, database).await?;
    servers.copy_slot(database, "native").await?;
    servers.settle().await?;
    let source = servers.source.connect(database).await?;
    let sink = servers.native.connect(database).await?;
    sink.batch_execute(&subscription(servers, database, "create_slot = false, slot_name = 'native', enabled = false"))
        .await?;

    let began = Instant::now();
    sink.batch_execute("ALTER SUBSCRIPTION bench ENABLE").await?;
    wait_marker(&sink, || Ok(())).await?;
    let seconds = began.elapsed().as_secs_f64();
    let measure = Measure { seconds, ..native_cpu(&source, &sink).await? };

    end_subscription(&sink).await?;
    drop_slot(&source, "native").await?;
    written.verify(&sink).await?;
    Ok(measure)
}

/// The statement that makes native replication's subscription, of tables that are already in step.
pub fn subscription(servers: &Servers, database: &str, options: &str) -> String {
    let url = servers.url(&servers.source, database).replace('\'', "''");
    let binary = servers.native_binary;
    format!(
        "CREATE SUBSCRIPTION bench CONNECTION '{url}' PUBLICATION native \
         WITH (copy_data = false, binary = {binary}, {options})"
    )
}

/// Leaves the slot at the source to whoever made it.
pub async fn end_subscription(sink: &Client) -> Result<()> {
    for statement in [
        "ALTER SUBSCRIPTION bench DISABLE",
        "ALTER SUBSCRIPTION bench SET (slot_name = NONE)",
        "DROP SUBSCRIPTION bench",
    ] {
        sink.batch_execute(statement).await?;
    }
    Ok(())
}

/// CPU of native replication's two ends so far.
pub async fn native_cpu(source: &Client, sink: &Client) -> Result<Measure> {
    let walsenders = pids(source, "SELECT pid FROM pg_stat_replication").await?;
    let workers = pids(sink, "SELECT pid FROM pg_stat_subscription WHERE pid IS NOT NULL").await?;
    Ok(Measure { source_cpu: cpu::total(&walsenders), sink_cpu: cpu::total(&workers), ..Measure::default() })
}

async fn tailwater(servers: &Servers, written: &Written<'_>) -> Result<Measure> {
    let database = written.backlog.database;
    from_template(&servers.tailwater, database).await?;
    servers.copy_slot(database, TAILWATER_SLOT).await?;
    forget_journal(&written.home)?;
    servers.settle().await?;
    let source = servers.source.connect(database).await?;
    let sink = servers.tailwater.connect(database).await?;

    let began = Instant::now();
    let mut daemon = written.home.run()?;
    wait_marker(&sink, || match daemon.ended()? {
        Some(status) => bail!("the daemon ended with {status}: {}", last_lines(&daemon.log(), 20)),
        None => Ok(()),
    })
    .await?;
    let seconds = began.elapsed().as_secs_f64();
    let measure = Measure { seconds, ..tailwater_cpu(&source, &sink, daemon.pid()).await? };

    terminate(daemon)?;
    drop_slot(&source, TAILWATER_SLOT).await?;
    written.verify(&sink).await?;
    Ok(measure)
}

/// The journal of an earlier round reaches further than the sink's template.
pub fn forget_journal(home: &Home) -> Result<()> {
    match std::fs::remove_dir_all(home.data_dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

/// Fails if the daemon has ended, or what was begun then takes too long.
pub fn must_run(daemon: &mut Daemon, began: Instant) -> Result<()> {
    if let Some(status) = daemon.ended()? {
        bail!("the daemon ended with {status}: {}", last_lines(&daemon.log(), 20));
    }
    ensure!(began.elapsed() < DEADLINE, "not there within {DEADLINE:?}");
    Ok(())
}

/// CPU of the daemon and of its sessions at both ends so far.
pub async fn tailwater_cpu(source: &Client, sink: &Client, pid: u32) -> Result<Measure> {
    let sessions = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'tailwater%'";
    Ok(Measure {
        seconds: 0.0,
        source_cpu: cpu::total(&pids(source, sessions).await?),
        own_cpu: cpu::seconds(pid),
        sink_cpu: cpu::total(&pids(sink, sessions).await?),
        peak_mib: cpu::peak_mib(pid),
        ..Measure::default()
    })
}

/// Waits until a reader of the sink sees the backlog's last row.
async fn wait_marker(sink: &Client, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let look = sink.prepare("SELECT EXISTS (SELECT FROM marker)").await?;
    let began = Instant::now();
    while !sink.query_one(&look, &[]).await?.get::<_, bool>(0) {
        check()?;
        if began.elapsed() > DEADLINE {
            bail!("not drained within {DEADLINE:?}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}
