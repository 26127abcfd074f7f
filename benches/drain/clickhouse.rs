//! The same backlogs into ClickHouse: its server begins each drain from the same files, and counts only if it then holds
//! what the source does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::backlog::{Backlog, Written};
use crate::cpu;
use crate::drain::{Measure, forget_journal, must_run, tailwater_cpu};
use crate::kept;
use crate::servers::{Servers, TAILWATER_SLOT, drop_slot, terminate};
use crate::support::clickhouse::ClickHouse;
use crate::support::daemon::{Daemon, Home};

/// Between two questions to the server. Each costs it 3 ms of a core, so none is asked often while something is measured.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks into a table's directory, which cost the server nothing.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// When every table of a source follows it.
pub const ALL_STREAM: &str =
    "SELECT count() > 0 AND countIf(state != 'streaming') = 0 FROM tailwater.table_state FINAL";

const INSERTS: &str = "SELECT sum(value) FROM system.events WHERE event = 'InsertQuery'";

/// ClickHouse at the beginning of what is measured.
pub struct Stage {
    pub server: ClickHouse,
    pub home: Home,
}

/// What a server had done before something was measured.
pub struct Before {
    pid: u32,
    cpu: f64,
    inserts: f64,
}

impl Stage {
    /// A server with the mapping's tables, all of them empty.
    pub fn new(source_url: &str, mapping: &str) -> Result<Stage> {
        let server = ClickHouse::start("bench-clickhouse")?;
        let config = format!(
            "[source.src]\nurl = \"{source_url}\"\n\n[sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\n",
            server.url("")
        );
        let mapping = mapping.replace("sink = \"dst\"", "sink = \"ch\"");
        let home = Home::new("bench-ch", &config, &[("mapping.toml", &mapping)])?;
        home.setup()?;
        Ok(Stage { server, home })
    }

    /// Brings a server to where the backlog begins, and keeps its files.
    pub async fn prepare(servers: &Servers, backlog: &Backlog) -> Result<Stage> {
        let mut stage = Stage::new(&servers.url(&servers.source, backlog.database), &backlog.mapping())?;
        let mut daemon = stage.home.run()?;
        stage.wait(&mut daemon, ALL_STREAM).await?;
        terminate(daemon)?;
        stage.keep()?;
        Ok(stage)
    }

    /// Stops the server and keeps its files.
    pub fn keep(&mut self) -> Result<()> {
        self.server.stop()?;
        kept::keep(&self.server.directory())
    }

    /// Starts the server on the files that were kept.
    pub fn reset(&mut self) -> Result<()> {
        self.server.stop()?;
        kept::restore(&self.server.directory())?;
        self.server.resume()
    }

    /// What the server had done until now.
    pub fn before(&self) -> Result<Before> {
        let pid = self.server.pid().context("the server runs")?;
        Ok(Before { pid, cpu: cpu::seconds(pid), inserts: self.number(INSERTS)? })
    }

    /// The server's share of what was measured.
    pub fn since(&self, before: &Before) -> Result<Measure> {
        Ok(Measure {
            sink_cpu: cpu::seconds(before.pid) - before.cpu,
            sink_peak_mib: cpu::peak_mib(before.pid),
            inserts: self.number(INSERTS)? - before.inserts,
            parts: self.number("SELECT count() FROM system.parts WHERE active AND database = 'public'")?,
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
        let marker = self.server.query("SELECT data_paths[1] FROM system.tables WHERE name = 'marker'")?;
        let marker = self.server.directory().join(marker.trim());
        let before = self.before()?;

        let began = Instant::now();
        let mut daemon = self.home.run()?;
        self.wait_for_part(&mut daemon, &marker).await?;
        self.wait(&mut daemon, "SELECT count() > 0 FROM public.marker").await?;
        let seconds = began.elapsed().as_secs_f64();
        let Measure { source_cpu, own_cpu, peak_mib, .. } = tailwater_cpu(&source, &source, daemon.pid()).await?;
        let measure = Measure { seconds, source_cpu, own_cpu, peak_mib, ..self.since(&before)? };
        eprintln!(
            "bench: ClickHouse took {:.0} inserts in {:.0} batches, which took {:.2} s of {seconds:.2}",
            measure.inserts,
            daemon.metric("tailwater_apply_seconds_count")?,
            daemon.metric("tailwater_apply_seconds_sum")?
        );

        terminate(daemon)?;
        drop_slot(&source, TAILWATER_SLOT).await?;
        self.verify(servers, written).await?;
        self.server.stop()?;
        Ok(measure)
    }

    /// Counts and sums of every table are the source's.
    async fn verify(&self, servers: &Servers, written: &Written<'_>) -> Result<()> {
        let source = servers.source.connect(written.backlog.database).await?;
        for (table, sums) in written.backlog.sums {
            let sums: Vec<String> = sums.iter().map(|sum| format!("cast(sum({sum}) as text)")).collect();
            let sql = format!("SELECT concat_ws(' ', cast(count(*) as text), {}) FROM {table}", sums.join(", "));
            let truth: String = source.query_one(&sql, &[]).await?.get(0);
            let sql = sql
                .replace(&format!("FROM {table}"), &format!("FROM public.{table}_current"))
                .replace("as text", "as String");
            let held = self.server.query(&sql)?;
            ensure!(truth == held, "{table}: the source holds {truth}, the sink {held}");
        }
        Ok(())
    }

    pub fn number(&self, sql: &str) -> Result<f64> {
        self.server.query(sql)?.trim().parse().with_context(|| sql.to_owned())
    }

    /// Waits until the statement's answer is 1.
    pub async fn wait(&self, daemon: &mut Daemon, sql: &str) -> Result<()> {
        wait(daemon, ASK_EVERY, || Ok(self.server.query(sql)?.trim() == "1")).await
    }

    /// Waits until a table that was empty has a part: its rows are on disk then, and seen at the next question.
    async fn wait_for_part(&self, daemon: &mut Daemon, directory: &Path) -> Result<()> {
        wait(daemon, LOOK_EVERY, || {
            let mut entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
            Ok(entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("all_"))))
        })
        .await
    }
}

async fn wait(daemon: &mut Daemon, every: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !look()? {
        must_run(daemon, began)?;
        tokio::time::sleep(every).await;
    }
    Ok(())
}
