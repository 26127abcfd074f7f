//! The same backlogs into ClickHouse: its server begins each drain from the same files, and counts only if it then holds
//! what the source does.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::backlog::{Backlog, Written};
use crate::cpu;
use crate::drain::{DEADLINE, Measure, forget_journal, tailwater_cpu};
use crate::servers::{Servers, TAILWATER_SLOT, drop_slot, terminate};
use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::last_lines;
use crate::support::daemon::{Daemon, Home};
use crate::support::process::run;

/// Between two looks for the marker; each is a request of its own there.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// ClickHouse at the beginning of a backlog.
pub struct Stage {
    server: ClickHouse,
    home: Home,
}

impl Stage {
    /// Brings a server to where the backlog begins, and keeps its files.
    pub async fn prepare(servers: &Servers, backlog: &Backlog) -> Result<Stage> {
        let server = ClickHouse::start("bench-clickhouse")?;
        let config = format!(
            "[source.src]\nurl = \"{}\"\n\n[sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\n",
            servers.url(&servers.source, backlog.database),
            server.url("")
        );
        let mapping = backlog.mapping().replace("sink = \"dst\"", "sink = \"ch\"");
        let home = Home::new("bench-ch", &config, &[("mapping.toml", &mapping)])?;
        home.setup()?;
        let mut stage = Stage { server, home };
        let mut daemon = stage.home.run()?;
        stage
            .wait(
                &mut daemon,
                "SELECT count() > 0 AND countIf(state != 'streaming') = 0 FROM tailwater.table_state FINAL",
            )
            .await?;
        terminate(daemon)?;
        stage.server.stop()?;
        copy(stage.server.directory(), stage.kept())?;
        Ok(stage)
    }

    fn kept(&self) -> PathBuf {
        self.server.directory().with_extension("kept")
    }

    /// Drains the backlog once.
    pub async fn drain(&mut self, servers: &Servers, written: &Written<'_>) -> Result<Measure> {
        self.server.stop()?;
        std::fs::remove_dir_all(self.server.directory())?;
        copy(self.kept(), self.server.directory())?;
        self.server.resume()?;
        servers.copy_slot(written.backlog.database, TAILWATER_SLOT).await?;
        forget_journal(&self.home)?;
        servers.settle().await?;
        let source = servers.source.connect(written.backlog.database).await?;
        let pid = self.server.pid().context("the server runs")?;
        let before =
            (cpu::seconds(pid), self.number("SELECT sum(value) FROM system.events WHERE event = 'InsertQuery'")?);

        let began = Instant::now();
        let mut daemon = self.home.run()?;
        self.wait(&mut daemon, "SELECT count() > 0 FROM public.marker").await?;
        let seconds = began.elapsed().as_secs_f64();
        let at_source = tailwater_cpu(&source, &source, daemon.pid()).await?;
        let sink_cpu = cpu::seconds(pid) - before.0;
        let inserts = self.number("SELECT sum(value) FROM system.events WHERE event = 'InsertQuery'")? - before.1;
        let parts = self.number("SELECT count() FROM system.parts WHERE active AND database = 'public'")?;
        eprintln!(
            "bench: ClickHouse took {inserts:.0} inserts, {:.1} a second, and has {parts:.0} active parts",
            inserts / seconds
        );

        terminate(daemon)?;
        drop_slot(&source, TAILWATER_SLOT).await?;
        self.verify(servers, written).await?;
        self.server.stop()?;
        Ok(Measure { seconds, sink_cpu, ..at_source })
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

    fn number(&self, sql: &str) -> Result<f64> {
        self.server.query(sql)?.trim().parse().with_context(|| sql.to_owned())
    }

    async fn wait(&self, daemon: &mut Daemon, sql: &str) -> Result<()> {
        let began = Instant::now();
        while self.server.query(sql).is_ok_and(|answer| answer.trim() != "1") || began.elapsed().is_zero() {
            if let Some(status) = daemon.ended()? {
                bail!("the daemon ended with {status}: {}", last_lines(&daemon.log(), 20));
            }
            ensure!(began.elapsed() < DEADLINE, "not drained within {DEADLINE:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.server.query(sql)?;
        Ok(())
    }
}

fn copy(from: PathBuf, to: PathBuf) -> Result<()> {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}
