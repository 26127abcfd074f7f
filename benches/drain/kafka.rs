//! The same backlogs into Kafka: its broker begins each drain from the same files, and counts only if the topics then tell
//! each change once and fold to what the source holds.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::backlog::{Backlog, HISTORY, Written};
use crate::cpu;
use crate::drain::{Measure, forget_journal, must_run, tailwater_cpu};
use crate::kafka_reader::{Content, Fold, Reader};
use crate::kept;
use crate::servers::{Servers, TAILWATER_SLOT, drop_slot, terminate};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::{Kafka, Options};

/// What the tests' broker has smaller, or shorter, than a broker has by default.
const PROPERTIES: &[(&str, &str)] = &[
    ("num.network.threads", "3"),
    ("num.io.threads", "8"),
    ("background.threads", "10"),
    ("log.cleaner.dedupe.buffer.size", "134217728"),
    ("broker.session.timeout.ms", "9000"),
    ("broker.heartbeat.interval.ms", "2000"),
    ("transaction.abort.timed.out.transaction.cleanup.interval.ms", "10000"),
];

/// As Kafka's own start script has it.
const JVM: &str = "-Xms1g -Xmx1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 -XX:InitiatingHeapOccupancyPercent=35 \
                   -XX:+ExplicitGCInvokesConcurrent -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \
                   -Dorg.slf4j.simpleLogger.log.kafka.server=info";

/// Between two questions to the daemon.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// A mapping of these tables, `"schema.table"` separated by commas.
pub fn mapping(tables: &str, more: &str) -> String {
    format!("source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [{tables}]\npartitions = 6\n{more}")
}

/// The topic of a table of the one source.
pub fn topic(table: &str) -> String {
    format!("src.public.{table}")
}

/// Kafka at the beginning of what is measured.
pub struct Stage {
    pub broker: Kafka,
    pub home: Home,
}

/// What a broker had done before something was measured.
pub struct Before {
    pid: u32,
    cpu: f64,
    log_bytes: u64,
}

impl Stage {
    /// A broker with the mapping's topics, all of them empty.
    pub fn new(source_url: &str, mapping: &str) -> Result<Stage> {
        let options =
            PROPERTIES.iter().fold(Options::default().jvm(JVM), |options, (name, value)| options.set(name, value));
        let broker = Kafka::start_with("bench-kafka", options)?;
        // `TAILWATER_BENCH_KAFKA_OPTIONS='"linger.ms" = "5"'`: what becomes of it with other options of librdkafka's.
        let options = std::env::var("TAILWATER_BENCH_KAFKA_OPTIONS").unwrap_or_default();
        let config = format!(
            "[source.src]\nurl = \"{source_url}\"\n\n[sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\noptions = {{ {options} }}\n",
            broker.bootstrap()
        );
        let home = Home::new("bench-events", &config, &[("mapping.toml", mapping)])?;
        home.setup()?;
        Ok(Stage { broker, home })
    }

    /// Brings a broker to where the backlog begins, and keeps its files.
    pub async fn prepare(servers: &Servers, backlog: &Backlog) -> Result<Stage> {
        let mut stage = Stage::new(&servers.url(&servers.source, backlog.database), &backlog.topics())?;
        let mut daemon = stage.home.run()?;
        wait_until_streaming(&mut daemon).await?;
        terminate(daemon)?;
        stage.keep()?;
        Ok(stage)
    }

    /// Stops the broker and keeps its files.
    pub fn keep(&mut self) -> Result<()> {
        self.broker.stop()?;
        kept::keep(&self.broker.directory())
    }

    /// Starts the broker on the files that were kept.
    pub fn reset(&mut self) -> Result<()> {
        self.broker.stop()?;
        kept::restore(&self.broker.directory())?;
        self.broker.resume()
    }

    pub fn before(&self) -> Result<Before> {
        let pid = self.broker.pid().context("the broker runs")?;
        Ok(Before { pid, cpu: cpu::seconds(pid), log_bytes: log_bytes(&self.broker.directory())? })
    }

    /// The broker's share of what was measured.
    pub fn since(&self, before: &Before) -> Result<Measure> {
        Ok(Measure {
            sink_cpu: cpu::seconds(before.pid) - before.cpu,
            sink_peak_mib: cpu::peak_mib(before.pid),
            log_bytes: (log_bytes(&self.broker.directory())? - before.log_bytes) as f64,
            ..Measure::default()
        })
    }

    /// Drains the backlog once.
    pub async fn drain(&mut self, servers: &Servers, written: &Written<'_>) -> Result<Measure> {
        self.reset()?;
        servers.copy_slot(written.backlog.database, TAILWATER_SLOT).await?;
        forget_journal(&self.home)?;
        servers.settle().await?;
        let source = servers.source.connect(written.backlog.database).await?;
        let marker = Reader::new(&self.broker, &topic("marker"))?;
        let before = self.before()?;

        let began = Instant::now();
        let mut daemon = self.home.run()?;
        while marker.next(ASK_EVERY)?.is_none() {
            must_run(&mut daemon, began)?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let Measure { source_cpu, own_cpu, peak_mib, .. } = tailwater_cpu(&source, &source, daemon.pid()).await?;
        let measure = Measure { seconds, source_cpu, own_cpu, peak_mib, ..self.since(&before)? };
        eprintln!(
            "bench: Kafka took {:.0} transactions, which took {:.2} s of {seconds:.2}",
            daemon.metric("tailwater_apply_seconds_count")?,
            daemon.metric("tailwater_apply_seconds_sum")?
        );

        terminate(daemon)?;
        drop_slot(&source, TAILWATER_SLOT).await?;
        let (messages, message_bytes) = self.verify(&source, written).await?;
        self.broker.stop()?;
        Ok(Measure { messages, message_bytes, ..measure })
    }

    /// Each change is told once, and rows and sums of every table are the source's. How many messages, and their bytes.
    async fn verify(&self, source: &tokio_postgres::Client, written: &Written<'_>) -> Result<(f64, f64)> {
        let (mut messages, mut bytes) = (0, 0);
        for (table, sums) in written.backlog.sums {
            let fold = if *table == HISTORY { Fold::Not } else { Fold::ByKey };
            let content = Content::read(&self.broker, &topic(table), sums, fold)?;
            content.must_be(table, &truth(source, table, sums).await?)?;
            messages += content.changes;
            bytes += content.change_bytes;
        }
        let changes = written.backlog.changes;
        ensure!(messages == changes, "{changes} changes were told by {messages} messages");
        Ok((messages as f64, bytes as f64))
    }
}

/// Rows and sums of a table at the source.
pub async fn truth(source: &tokio_postgres::Client, table: &str, sums: &[&str]) -> Result<String> {
    let sums: Vec<String> = sums.iter().map(|sum| format!("sum({sum})")).collect();
    let sql = format!("SELECT concat_ws(' ', count(*), {}) FROM {table}", sums.join(", "));
    Ok(source.query_one(&sql, &[]).await?.get(0))
}

/// Waits until every table follows the source.
pub async fn wait_until_streaming(daemon: &mut Daemon) -> Result<()> {
    let began = Instant::now();
    loop {
        must_run(daemon, began)?;
        // Until it listens there are none.
        let states = daemon.metrics().unwrap_or_default();
        let mut states =
            states.iter().filter(|(name, value)| name.starts_with("tailwater_table_state") && **value == 1.0);
        let first = states.next();
        if first.into_iter().chain(states).all(|(name, _)| name.contains("\"streaming\"")) && first.is_some() {
            return Ok(());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What the tables' topics have in their logs, compressed as it came.
fn log_bytes(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for partition in std::fs::read_dir(directory)? {
        let partition = partition?;
        if !partition.file_name().to_string_lossy().starts_with(&topic("")) {
            continue;
        }
        for file in std::fs::read_dir(partition.path())? {
            let file = file?;
            if file.path().extension().is_some_and(|extension| extension == "log") {
                bytes += file.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}
