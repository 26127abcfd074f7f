//! A private ClickHouse server in the scratch directory, where the engine is installed: the second warehouse.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cluster::free_port;
use super::process::{LOOK, RunAs, end, guarded, last_lines};
use super::scratch::Scratch;
use crate::config::Secret;
use crate::lsn::Lsn;
use crate::sink::clickhouse::address::Address;
use crate::sink::clickhouse::http::Client;

/// The program that becomes the server; the tests start theirs by the same one.
const LAUNCHER: &str = include_str!("../../../tests/support/clickhouse.py");

/// The daemon's user in it, who may do everything: the server is nobody else's.
const USER: &str = "tailwater";

const START_WITHIN: Duration = Duration::from_secs(120);

pub struct ClickHouse {
    home: PathBuf,
    pub http_port: u16,
    pub tcp_port: u16,
    password: String,
    child: Option<Child>,
}

impl ClickHouse {
    /// The interpreter that has the engine: `tests/install.sh demo` puts it below the target directory that this program
    /// was built in.
    pub fn find() -> Option<PathBuf> {
        let program = std::env::current_exe().ok()?;
        let complete = |above: &&std::path::Path| above.join("clickhouse/installed").is_file();
        let python = program.ancestors().skip(1).find(complete)?.join("clickhouse/bin/python");
        python.is_file().then_some(python)
    }

    /// Begins to start it; `ready` waits until it answers.
    pub fn start(scratch: &Scratch, python: PathBuf, password: &str) -> Result<ClickHouse> {
        let home = scratch.make_directory("clickhouse")?;
        let directory = scratch.make_directory("clickhouse/server")?;
        let launcher = home.join("clickhouse.py");
        fs::write(&launcher, LAUNCHER)?;
        let (http_port, tcp_port) = (free_port()?, free_port()?);
        let log = File::create(home.join("log"))?;
        let mut child = guarded("TERM", RunAs::Ourselves, &python)
            .arg(launcher)
            .arg(&directory)
            .args([http_port.to_string(), tcp_port.to_string(), USER.to_owned()])
            .current_dir(&directory)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start ClickHouse")?;
        let told = child.stdin.take().map(|mut input| writeln!(input, "{password}"));
        let server = ClickHouse { home, http_port, tcp_port, password: password.to_owned(), child: Some(child) };
        told.context("the server has no standard input")?.context("tell ClickHouse its password")?;
        Ok(server)
    }

    /// Waits until it answers; its version.
    pub async fn ready(&mut self) -> Result<String> {
        let client = self.client()?;
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let log = self.home.join("log");
            if let Some(status) = self.child.as_mut().context("ClickHouse was not started")?.try_wait()? {
                bail!("ClickHouse ended with {status}:{}", last_lines(&log, 15));
            }
            match ask(&client, "SELECT version()").await {
                Ok(rows) => return Ok(rows.first().and_then(|row| row.first()).cloned().unwrap_or_default()),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("ClickHouse is not ready yet:{}", last_lines(&log, 15))));
                }
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// For the daemon. The password is apart.
    pub fn url(&self) -> String {
        format!("http://{USER}@127.0.0.1:{}", self.http_port)
    }

    /// For whoever wants to look; without the user.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}/", self.http_port)
    }

    pub fn client(&self) -> Result<Client> {
        let mut address = Address::parse(&self.url()).context("the address of our own server")?;
        address.password = Some(Secret::new(self.password.clone()));
        Ok(Client::new(address)?)
    }

    /// A file of statements, each ended by a semicolon at the end of a line.
    pub async fn execute(&self, script: &str) -> Result<()> {
        let client = self.client()?;
        for statement in script.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            client.execute(statement).await?;
        }
        Ok(())
    }

    /// Its data goes with the demo, so it need not be asked twice.
    pub async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child, &[("TERM", Duration::from_secs(5))]).await;
        }
    }
}

/// The rows of a query, each value as text.
pub async fn ask(client: &Client, sql: &str) -> Result<Vec<Vec<String>>> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let rows = client.rows(sql).await?;
    Ok(rows.into_iter().map(|row| row.into_iter().map(text).collect()).collect())
}

/// What it durably holds of the one source.
pub async fn checkpoint(client: &Client) -> Result<Lsn> {
    let rows = ask(client, "SELECT end_lsn FROM tailwater.checkpoint FINAL").await?;
    let at = rows.first().and_then(|row| row.first());
    Ok(Lsn(at.and_then(|at| at.parse().ok()).unwrap_or_default()))
}
