//! The `tailwater` binary as a user has it: a directory with `tailwater.toml` and mappings, commands, a running daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;
use tokio_postgres::Client;

use super::cluster::{Cluster, free_port, last_lines};
use super::http::{self, Response};
use super::process;
use super::scratch::Scratch;
use super::wait::{Look, eventually, eventually_blocking};

const BINARY: &str = env!("CARGO_BIN_EXE_tailwater");

/// On a busy machine.
const START_WITHIN: Duration = Duration::from_secs(90);
/// SIGTERM drains what is in flight first.
const END_WITHIN: Duration = Duration::from_secs(60);
/// Commands other than `run` on the small databases of tests.
const COMMAND_WITHIN: Duration = Duration::from_secs(180);

/// A configuration in a directory of its own; daemons and commands run in it.
pub struct Home {
    scratch: Scratch,
    http_port: u16,
}

/// What a command did.
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Home {
    /// `config` holds the `[source.…]` and `[sink.…]` tables; the list of mappings, the data directory and the HTTP
    /// address are added. `mappings` are file names and texts.
    pub fn new(name: &str, config: &str, mappings: &[(&str, &str)]) -> Result<Home> {
        let home = Home { scratch: Scratch::new(name)?, http_port: free_port()? };
        home.configure(config, mappings)?;
        Ok(home)
    }

    /// Source `src` is database `database` of `source`, sink `dst` the one of the same name of `sink`.
    pub fn pair(name: &str, source: &Cluster, sink: &Cluster, database: &str, mapping: &str) -> Result<Home> {
        Home::new(name, &Home::pair_config(source, sink, database), &[("mapping.toml", mapping)])
    }

    /// An idle source's position is recorded at once, so that tests need not wait for it.
    pub fn pair_config(source: &Cluster, sink: &Cluster, database: &str) -> String {
        format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.dst]\nkind = \"postgres\"\nurl = \"{}\"\nidle_record = \"200ms\"\n",
            source.url(database),
            sink.url(database)
        )
    }

    /// Writes the files anew, for what runs next.
    pub fn configure(&self, config: &str, mappings: &[(&str, &str)]) -> Result<()> {
        fs::create_dir_all(self.path().join("mappings"))?;
        for (name, text) in mappings {
            fs::write(self.path().join("mappings").join(name), text)?;
        }
        let names: Vec<String> = mappings.iter().map(|(name, _)| format!("\"mappings/{name}\"")).collect();
        let text = format!(
            "mappings = [{}]\ndata_dir = \"{}\"\n\n{config}\n[http]\nlisten = \"127.0.0.1:{}\"\n",
            names.join(", "),
            self.path().join("data").display(),
            self.http_port
        );
        fs::write(self.path().join("tailwater.toml"), text)?;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    fn tailwater(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        // No setting of the machine's user may leak into a test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| {
            let name = name.to_string_lossy();
            name.starts_with("TAILWATER_") || name.starts_with("PG")
        }) {
            command.env_remove(name);
        }
        command.current_dir(self.path()).args(["--config", "tailwater.toml"]).args(arguments).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end, however it ends.
    pub fn command(&self, arguments: &[&str]) -> Result<Outcome> {
        self.command_with(arguments, &[])
    }

    pub fn command_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Outcome> {
        let (stdout, stderr) = (self.path().join("command.out"), self.path().join("command.err"));
        let mut child = self
            .tailwater(arguments)
            .envs(environment.iter().copied())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("start {BINARY}"))?;
        let ended = eventually_blocking(COMMAND_WITHIN, &format!("tailwater {} ends", arguments.join(" ")), || {
            Ok(child.try_wait()?.map_or(Look::NotYet("it still runs".to_owned()), Look::Yes))
        });
        if ended.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let (stdout, stderr) = (fs::read_to_string(stdout)?, fs::read_to_string(stderr)?);
        let said = || format!("it said:\n{}\n{}", last_lines(&stdout, 20), last_lines(&stderr, 20));
        Ok(Outcome { status: ended.with_context(said)?, stdout, stderr })
    }

    /// Runs a command that must succeed; its standard output.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let outcome = self.command(arguments)?;
        ensure!(
            outcome.status.success(),
            "tailwater {} ended with {}:\n{}\n{}",
            arguments.join(" "),
            outcome.status,
            last_lines(&outcome.stdout, 20),
            last_lines(&outcome.stderr, 20)
        );
        Ok(outcome.stdout)
    }

    /// Starts a command that runs until it is killed.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Running> {
        let stdout_path = self.path().join("running.out");
        let child = self
            .tailwater(arguments)
            .stdout(File::create(&stdout_path)?)
            .spawn()
            .with_context(|| format!("start {BINARY}"))?;
        Ok(Running { child, stdout_path })
    }

    /// Creates publication, slot and target tables as a new user would.
    pub fn setup(&self) -> Result<()> {
        self.must(&["setup", "--create-targets"]).map(drop)
    }

    /// Starts the daemon; what it says goes to a file, and to the test's output if the test fails.
    pub fn run(&self) -> Result<Daemon> {
        self.run_with(&[])
    }

    pub fn run_with(&self, environment: &[(&str, &str)]) -> Result<Daemon> {
        let log_path = self.path().join("log");
        let log = File::options().create(true).append(true).open(&log_path)?;
        let child = self
            .tailwater(&["run"])
            .envs(environment.iter().copied())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {BINARY}"))?;
        Ok(Daemon { child, log_path, http_port: self.http_port })
    }
}

/// A running command other than the daemon. Dropped, it is killed.
pub struct Running {
    child: Child,
    stdout_path: PathBuf,
}

impl Running {
    /// What it has printed so far.
    pub fn stdout(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.stdout_path)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running daemon. Dropped, it is killed.
pub struct Daemon {
    child: Child,
    log_path: PathBuf,
    http_port: u16,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for it to end by itself.
    pub fn wait_ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let child = &mut self.child;
        let ended = eventually_blocking(deadline, "the daemon ends", || {
            Ok(child.try_wait()?.map_or(Look::NotYet("it still runs".to_owned()), Look::Yes))
        });
        ended.with_context(|| last_lines(&self.log(), 20))
    }

    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end and expects that it does, with exit code 0.
    pub fn terminate(&mut self) -> Result<()> {
        process::signal("TERM", &[self.pid()]);
        let status = self.wait_ended(END_WITHIN)?;
        ensure!(status.success(), "after SIGTERM the daemon ended with {status}: {}", last_lines(&self.log(), 20));
        Ok(())
    }

    /// Everything that daemons of this home have said.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap_or_default()
    }

    pub fn get(&self, path: &str) -> Result<Response> {
        http::get(self.http_port, path)
    }

    pub fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.get("/status")?.body)?)
    }

    pub fn metrics(&self) -> Result<BTreeMap<String, f64>> {
        Ok(http::samples(&self.get("/metrics")?.body))
    }

    /// The sum of all samples of a metric, whatever their labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let metrics = self.metrics()?;
        let of_name = |key: &str| key == name || key.strip_prefix(name).is_some_and(|labels| labels.starts_with('{'));
        Ok(metrics.iter().filter(|(key, _)| of_name(key)).map(|(_, value)| value).sum())
    }

    /// Waits until it answers over HTTP; from then on it also minds signals.
    pub async fn wait_serving(&self) -> Result<()> {
        let served = eventually(START_WITHIN, "the daemon answers over HTTP", async || {
            self.get("/status").map(|_| Look::Yes(()))
        });
        served.await.with_context(|| last_lines(&self.log(), 20))
    }

    /// Waits until the sink holds everything that the source had committed when this was called, with all its tables
    /// streaming; the sink's checkpoint. Fails at once if the daemon ends.
    pub async fn wait_caught_up(&mut self, source: &Client, sink: &Client, deadline: Duration) -> Result<Lsn> {
        let look = async |_: &Daemon| {
            let waiting = tables_not_streaming(sink).await?;
            Ok((checkpoint(sink).await?.unwrap_or(Lsn::ZERO), u64::try_from(waiting)?))
        };
        self.wait_reached(source, deadline, look).await
    }

    /// The same by what the daemon itself tells, with every table in one of these states: of a sink that cannot be asked.
    pub async fn wait_told_caught_up(&mut self, source: &Client, states: &[&str], deadline: Duration) -> Result<()> {
        let look = async |daemon: &Daemon| {
            let metrics = daemon.metrics()?;
            let is_expected = |name: &str| states.iter().any(|state| name.contains(&format!("\"{state}\"")));
            let waiting = metrics.iter().filter(|(name, value)| {
                name.starts_with("tailwater_table_state") && **value == 1.0 && !is_expected(name)
            });
            Ok((Lsn(daemon.metric("tailwater_checkpoint_lsn")? as u64), waiting.count() as u64))
        };
        self.wait_reached(source, deadline, look).await.map(drop)
    }

    /// Waits until a look finds a checkpoint at what the source has committed by now, and no table on its way to where it
    /// is to be; that checkpoint. Fails at once if the daemon ends.
    pub async fn wait_reached(
        &mut self,
        source: &Client,
        deadline: Duration,
        mut look: impl AsyncFnMut(&Daemon) -> Result<(Lsn, u64)>,
    ) -> Result<Lsn> {
        let target = flushed(source).await?;
        let mut ended = None;
        let reached = eventually(deadline, &format!("the sink's checkpoint reaches {target}"), async || {
            if let Some(status) = self.child.try_wait()? {
                ended = Some(status);
                return Ok(Look::Yes(Lsn::ZERO));
            }
            let (reached, waiting) = look(self).await?;
            if reached >= target && waiting == 0 {
                return Ok(Look::Yes(reached));
            }
            Ok(Look::NotYet(format!("checkpoint {reached}, {waiting} tables on their way")))
        })
        .await;
        if let Some(status) = ended {
            anyhow::bail!("the daemon ended with {status}: {}", last_lines(&self.log(), 20));
        }
        reached.with_context(|| format!("the daemon's last lines:\n{}", last_lines(&self.log(), 20)))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill9();
        // The test runner shows this only if the test failed.
        eprintln!("--- last lines of the daemon\n{}", last_lines(&self.log(), 40));
    }
}

/// Up to where the source's WAL is durable: every commit that returned to its client lies before it.
pub async fn flushed(source: &Client) -> Result<Lsn> {
    let row = source.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?;
    Ok(row.get::<_, &str>(0).parse()?)
}

/// What the sink says it holds; `None` before the first checkpoint. Tests have one source per sink.
pub async fn checkpoint(sink: &Client) -> Result<Option<Lsn>> {
    let row = sink.query_opt("SELECT end_lsn::text FROM tailwater.checkpoint", &[]).await?;
    row.map(|row| Ok(row.get::<_, &str>(0).parse()?)).transpose()
}

/// Tables that are still being copied, are paused or quarantined. That no table is known yet counts as one.
pub async fn tables_not_streaming(sink: &Client) -> Result<i64> {
    let sql = "SELECT count(*) FILTER (WHERE state::text <> 'streaming') + (count(*) = 0)::int \
               FROM tailwater.table_state";
    Ok(sink.query_one(sql, &[]).await?.get(0))
}
