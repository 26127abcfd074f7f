//! The daemon of the demo: this same binary with a configuration of its own, as a user would run it.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::clickhouse::ClickHouse;
use super::cluster::{Cluster, free_port, is_free};
use super::kafka::Kafka;
use super::process::{LOOK, RunAs, end, ended_within, guarded, last_lines};
use super::scratch::Scratch;
use crate::telemetry::fetch::{FetchError, fetch_status};
use crate::telemetry::status::Status;

const MAPPING: &str = include_str!("../../../mappings/lessons.toml");
const CLICKHOUSE_MAPPING: &str = include_str!("../../../mappings/lessons_clickhouse.toml");
const KAFKA_MAPPING: &str = include_str!("../../../mappings/lessons_events.toml");

const SETUP_WITHIN: Duration = Duration::from_secs(120);

/// Until it answers over HTTP.
const START_WITHIN: Duration = Duration::from_secs(60);

/// From SIGTERM: what is in flight is drained first.
const DRAIN_WITHIN: Duration = Duration::from_secs(15);

/// Where a daemon listens unless told otherwise, so that `tailwater status` finds it.
const USUAL_PORT: u16 = 9629;

const PORTS_TRIED: u32 = 5;

/// What the daemon says of a port that is somebody else's.
const PORT_IS_TAKEN: &str = "cannot listen on";

/// Lines of the daemon's log that an error shows.
const LOG_LINES: usize = 15;

/// The databases' names, at the source and in the warehouse.
pub const SOURCE: &str = "lms";
pub const WAREHOUSE: &str = "dwh";

/// The sinks' names, as the mappings say them.
pub const POSTGRES_SINK: &str = "warehouse";
pub const CLICKHOUSE_SINK: &str = "clickhouse";
pub const KAFKA_SINK: &str = "events";

/// Where the demo's servers are. No ClickHouse where it is not installed, no Kafka unless it is asked for.
pub struct Servers<'a> {
    pub source: &'a Cluster,
    pub warehouse: &'a Cluster,
    pub clickhouse: Option<&'a ClickHouse>,
    pub kafka: Option<&'a Kafka>,
}

pub struct Daemon {
    program: PathBuf,
    home: PathBuf,
    /// `tailwater.toml` but for `[http]`, which `start` finds a port for.
    config: String,
    port: u16,
    child: Option<Child>,
}

impl Daemon {
    /// Writes `tailwater.toml`, the mappings and the password.
    pub fn configure(scratch: &Scratch, servers: &Servers<'_>, password: &str) -> Result<Daemon> {
        let home = scratch.path().to_owned();
        let mut mappings = vec![("mappings/lessons.toml", MAPPING)];
        let mut more_sinks = String::new();
        if let Some(clickhouse) = servers.clickhouse {
            mappings.push(("mappings/lessons_clickhouse.toml", CLICKHOUSE_MAPPING));
            more_sinks = format!(
                "\n[sink.{CLICKHOUSE_SINK}]\nkind          = \"clickhouse\"\nurl           = \"{}\"\npassword_file = \"password\"\n",
                clickhouse.url()
            );
        }
        if let Some(kafka) = servers.kafka {
            mappings.push(("mappings/lessons_events.toml", KAFKA_MAPPING));
            more_sinks.push_str(&format!("\n[sink.{KAFKA_SINK}]\n{}", kafka.sink_lines()));
        }
        let names: Vec<&str> = mappings.iter().map(|(name, _)| *name).collect();
        let config = format!(
            "# Written by `tailwater demo`.\n\
             mappings = {names:?}\n\
             data_dir = \"journal\"\n\n\
             [source.lms]\nurl           = \"{}\"\npassword_file = \"password\"\n\n\
             [sink.{POSTGRES_SINK}]\nkind          = \"postgres\"\nurl           = \"{}\"\npassword_file = \"password\"\n\
             {more_sinks}",
            servers.source.daemon_url(SOURCE),
            servers.warehouse.daemon_url(WAREHOUSE)
        );
        scratch.make_directory("mappings")?;
        for (name, text) in mappings {
            fs::write(home.join(name), text)?;
        }
        fs::write(home.join("tailwater.toml"), &config)?;
        let secret = File::options().write(true).create_new(true).mode(0o600).open(home.join("password"))?;
        std::io::Write::write_all(&mut &secret, password.as_bytes())?;
        let program = std::env::current_exe().context("find this program's own file")?;
        Ok(Daemon { program, home, config, port: USUAL_PORT, child: None })
    }

    fn tailwater(&self, log: &Path) -> Result<Command> {
        let mut command = guarded("TERM", RunAs::Ourselves, &self.program);
        // The demo is the same whatever the caller's environment says of other daemons and databases.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("TAILWATER") || text.starts_with("PG") {
                command.env_remove(&name);
            }
        }
        let log = File::options().create(true).append(true).open(log)?;
        command.current_dir(&self.home).stdout(log.try_clone()?).stderr(log);
        command.args(["--color", "never", "--config"]).arg(self.home.join("tailwater.toml"));
        Ok(command)
    }

    /// `tailwater setup`, which also makes ClickHouse's tables and Kafka's topics. A publication takes the tables' owner; all the rest is the
    /// daemon's own role.
    pub async fn set_up(&mut self, source: &Cluster) -> Result<()> {
        let log = self.home.join("setup.log");
        let child = self
            .tailwater(&log)?
            .env("TAILWATER__SOURCE__LMS__URL", source.owner_url(SOURCE))
            .args(["setup", "--create-targets"])
            .spawn()
            .context("start tailwater setup")?;
        match ended_within(self.child.insert(child), SETUP_WITHIN).await? {
            Some(status) if status.success() => self.child = None,
            Some(status) => bail!("tailwater setup ended with {status}:{}", last_lines(&log, LOG_LINES)),
            None => bail!("tailwater setup takes longer than {} s", SETUP_WITHIN.as_secs()),
        }
        Ok(())
    }

    /// `tailwater run`; returns when it answers over HTTP. A port that another program took meanwhile is exchanged.
    pub async fn start(&mut self) -> Result<()> {
        for tries_left in (0..PORTS_TRIED).rev() {
            self.port = if is_free(USUAL_PORT) { USUAL_PORT } else { free_port()? };
            let config = format!("{}\n[http]\nlisten = \"127.0.0.1:{}\"\n", self.config, self.port);
            fs::write(self.home.join("tailwater.toml"), config)?;
            match self.run().await {
                Err(_) if tries_left > 0 && self.last_lines().contains(PORT_IS_TAKEN) => fs::remove_file(self.log())?,
                outcome => return outcome,
            }
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<()> {
        let child = self.tailwater(&self.log())?.args(["run", "--log-format", "human"]).spawn();
        self.child = Some(child.context("start tailwater run")?);
        let deadline = Instant::now() + START_WITHIN;
        // Only the daemon knows whether it is itself that answers at this address, and not another one.
        let listens = format!("status at {}/", self.url());
        while self.status().await?.is_none() || !fs::read_to_string(self.log())?.contains(&listens) {
            if Instant::now() > deadline {
                bail!("the daemon does not answer at {} after {} s", self.url(), START_WITHIN.as_secs());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// What the daemon says of itself; `None` while it does not answer yet.
    ///
    /// # Errors
    /// It has ended: its last log lines are in the error.
    pub async fn status(&mut self) -> Result<Option<Status>> {
        if let Some(status) = self.child.as_mut().context("the daemon was not started")?.try_wait()? {
            self.child = None;
            bail!("the daemon ended with {status}; its last lines:{}", self.last_lines());
        }
        let url = self.url();
        let fetched = tokio::task::spawn_blocking(move || fetch_status(&url)).await?;
        match fetched {
            Ok((status, _)) => Ok(Some(status)),
            Err(FetchError::Unreachable { .. } | FetchError::Broken { .. }) => Ok(None),
            Err(error) => Err(error).context("ask the daemon for its status"),
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn log(&self) -> PathBuf {
        self.home.join("tailwater.log")
    }

    pub fn last_lines(&self) -> String {
        last_lines(&self.log(), LOG_LINES)
    }

    pub async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child, &[("TERM", DRAIN_WITHIN)]).await;
        }
    }
}
