//! A private Postgres server in a scratch directory, on a free port of 127.0.0.1 and on a unix socket.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio_postgres::{Client, NoTls};

use super::certificates::Certificates;
use super::postgres::Version;
use super::process::{self, give_to_unprivileged, run, unprivileged};
use super::scratch::Scratch;
use super::wait::{Look, eventually, eventually_blocking};

/// Recovery after a kill may have to read some hundred megabytes of WAL on a busy machine.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// What every cluster starts with. Tests kill processes, never the machine, so the page cache is durable enough.
const SETTINGS: &[(&str, &str)] = &[
    ("wal_level", "logical"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("shared_buffers", "64MB"),
    ("max_connections", "100"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_prepared_transactions", "10"),
    ("max_wal_size", "1GB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
];

/// How clients over TCP prove who they are. The unix socket always trusts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Authentication {
    #[default]
    Trust,
    ScramSha256,
}

#[derive(Clone, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
    authentication: Authentication,
    certificates: Option<Certificates>,
    own_system: bool,
}

impl Options {
    /// With a system identifier of its own: the others are copies of one initialised directory.
    pub fn own_system(mut self) -> Options {
        self.own_system = true;
        self
    }

    pub fn set(mut self, name: &str, value: &str) -> Options {
        self.settings.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn scram(mut self) -> Options {
        self.authentication = Authentication::ScramSha256;
        self
    }

    /// The server has these certificates and takes nothing but TLS over TCP.
    pub fn tls(mut self, certificates: &Certificates) -> Options {
        self.certificates = Some(certificates.clone());
        self
    }
}

/// How a server is asked to stop (Postgres docs, "Shutting Down the Server").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// Disconnects clients, but waits until walsenders have sent everything and been told so.
    Fast,
    /// Recovery is needed at the next start.
    Immediate,
}

pub struct Cluster {
    scratch: Scratch,
    version: Version,
    port: u16,
    postmaster: Option<Child>,
}

impl Cluster {
    /// A new cluster of Debian's Postgres with the usual settings.
    pub fn new(name: &str) -> Result<Cluster> {
        Cluster::start(name, Version::V15, Options::default())
    }

    pub fn start(name: &str, version: Version, options: Options) -> Result<Cluster> {
        let scratch = Scratch::new(name)?;
        if options.own_system {
            version.initialise(&scratch.path().join("data"))?;
        } else {
            version.fresh_data_directory(&scratch.path().join("data"))?;
        }
        fs::create_dir(scratch.path().join("socket"))?;
        give_to_unprivileged(&scratch.path().join("socket"))?;
        let mut cluster = Cluster { scratch, version, port: 0, postmaster: None };
        cluster.write_hba(&options)?;
        for (name, value) in SETTINGS {
            cluster.set(name, value)?;
        }
        if let Some(certificates) = &options.certificates {
            cluster.set("ssl", "on")?;
            cluster.set("ssl_cert_file", &certificates.server.display().to_string())?;
            cluster.set("ssl_key_file", &certificates.server_key.display().to_string())?;
        }
        for (name, value) in &options.settings {
            cluster.set(name, value)?;
        }
        // Another process may take a port between our look and the server's.
        for _ in 0..5 {
            cluster.port = free_port()?;
            match cluster.resume() {
                Ok(()) => return Ok(cluster),
                Err(_) if cluster.log().contains("could not bind") => {}
                Err(err) => return Err(err),
            }
        }
        bail!("no free port was found for cluster \"{name}\"");
    }

    fn write_hba(&self, options: &Options) -> Result<()> {
        let kind = if options.certificates.is_some() { "hostssl" } else { "host" };
        let method = match options.authentication {
            Authentication::Trust => "trust",
            Authentication::ScramSha256 => "scram-sha-256",
        };
        let mut text = String::from("local all all trust\nlocal replication all trust\n");
        for database in ["all", "replication"] {
            writeln!(text, "{kind} {database} all 127.0.0.1/32 {method}")?;
        }
        fs::write(self.data().join("pg_hba.conf"), text).context("write pg_hba.conf")
    }

    /// Sets a parameter from the next start or `reload` on; the last value set counts.
    pub fn set(&self, name: &str, value: &str) -> Result<()> {
        let mut conf = File::options().append(true).open(self.data().join("postgresql.conf"))?;
        writeln!(conf, "{name} = '{}'", value.replace('\'', "''"))?;
        Ok(())
    }

    pub fn reload(&self) {
        process::signal("HUP", &self.postmaster_pid().into_iter().collect::<Vec<_>>());
    }

    /// Starts a stopped or killed server on its port and data; returns when it takes connections.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.postmaster.is_none(), "{} runs already", self.name());
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let socket = self.socket_directory();
        let child = unprivileged(&self.version.binaries()?.join("postgres"))
            .arg("-D")
            .arg(self.data())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .arg("-k")
            .arg(&socket)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.version))?;
        self.postmaster = Some(child);
        let outcome = self.wait_until_ready();
        if outcome.is_err() {
            self.kill9();
        }
        outcome
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let name = self.name();
        let pid_file = self.data().join("postmaster.pid");
        let log = self.log_path();
        let child = self.postmaster.as_mut().context("the server was not started")?;
        let pid = child.id().to_string();
        let mut ended = false;
        eventually_blocking(START_WITHIN, &format!("{name} takes connections"), || {
            if let Some(status) = child.try_wait()? {
                ended = true;
                return Ok(Look::Yes(Some(status)));
            }
            // As pg_ctl does it: the first line names the postmaster, the eighth its state.
            let text = fs::read_to_string(&pid_file)?;
            let mut lines = text.lines();
            let ours = lines.next() == Some(&pid);
            let ready = lines.nth(6).is_some_and(|state| state.trim_end() == "ready");
            Ok(if ours && ready { Look::Yes(None) } else { Look::NotYet("not ready".to_owned()) })
        })?
        .map_or(Ok(()), |status| {
            let text = fs::read_to_string(log).unwrap_or_default();
            bail!("{name} ended with {status}: {}", last_lines(&text, 5))
        })
    }

    pub fn stop(&mut self, how: Stop) -> Result<()> {
        let name = self.name();
        let Some(child) = &mut self.postmaster else { return Ok(()) };
        let signal = match how {
            Stop::Fast => "INT",
            Stop::Immediate => "QUIT",
        };
        process::signal(signal, &[child.id()]);
        eventually_blocking(STOP_WITHIN, &format!("{name} stops ({how:?})"), || {
            Ok(if child.try_wait()?.is_some() { Look::Yes(()) } else { Look::NotYet("still there".to_owned()) })
        })?;
        self.postmaster = None;
        Ok(())
    }

    pub fn restart(&mut self, how: Stop) -> Result<()> {
        self.stop(how)?;
        self.resume()
    }

    /// SIGKILL to the postmaster and all its children, with no chance for any of them to act on the other's death.
    pub fn kill9(&mut self) {
        let Some(mut child) = self.postmaster.take() else { return };
        let postmaster = child.id();
        // Stopped first, so that it starts no child between our look and the kill. Every child is in a session of its
        // own, so no process group holds them all.
        process::signal("STOP", &[postmaster]);
        let children = process::children(postmaster);
        process::signal("KILL", &children);
        process::signal("KILL", &[postmaster]);
        let _ = child.wait();
        let gone = eventually_blocking(STOP_WITHIN, "killed backends are gone", || {
            let left = children.iter().filter(|pid| process::is_alive(**pid)).count();
            Ok(if left == 0 { Look::Yes(()) } else { Look::NotYet(format!("{left} left")) })
        });
        gone.expect("SIGKILL cannot be refused");
        // A pid in them may by now be another's, which a starting server would take for a running one.
        let _ = fs::remove_file(self.data().join("postmaster.pid"));
        let _ = fs::remove_file(self.socket_directory().join(format!(".s.PGSQL.{}.lock", self.port)));
    }

    /// Freezes (`STOP`) or thaws (`CONT`) the server and every process it has now.
    pub fn signal_all(&self, name: &str) {
        if let Some(postmaster) = self.postmaster_pid() {
            process::signal(name, &[postmaster]);
            process::signal(name, &process::children(postmaster));
        }
    }

    /// Keeps a copy of the data directory of a stopped server, for `restore`.
    pub fn save(&self, name: &str) -> Result<()> {
        ensure!(self.postmaster.is_none(), "a running server's files cannot be copied");
        run(Command::new("cp").arg("-a").arg(self.data()).arg(self.scratch.path().join(name)))?;
        Ok(())
    }

    /// Puts a stopped server's data directory back to what `save` kept.
    pub fn restore(&self, name: &str) -> Result<()> {
        ensure!(self.postmaster.is_none(), "a running server's files cannot be replaced");
        fs::remove_dir_all(self.data())?;
        run(Command::new("cp").arg("-a").arg(self.scratch.path().join(name)).arg(self.data()))?;
        Ok(())
    }

    /// Stops, recovers as from an archive that has nothing more, and so goes on in a new timeline.
    pub fn fork_timeline(&mut self) -> Result<()> {
        self.stop(Stop::Fast)?;
        self.set("restore_command", "false")?;
        // So that it is not ready before recovery has ended.
        self.set("hot_standby", "off")?;
        fs::write(self.data().join("recovery.signal"), "")?;
        give_to_unprivileged(&self.data().join("recovery.signal"))?;
        self.resume()
    }

    /// Connects as superuser over the unix socket. A lost connection shows as an error of the next statement.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        connect(&self.socket_url(database)).await
    }

    /// Runs statements as superuser.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let client = self.connect(database).await?;
        client.batch_execute(sql).await.with_context(|| format!("run {}", last_lines(sql, 3)))
    }

    pub async fn create_database(&self, name: &str) -> Result<()> {
        self.execute("postgres", &format!("CREATE DATABASE \"{name}\"")).await
    }

    /// Waits until connections are served, e.g. while another task restarts this server.
    pub async fn wait_until_served(&self) -> Result<Client> {
        eventually(START_WITHIN, "connections are served", async || Ok(Look::Yes(self.connect("postgres").await?)))
            .await
    }

    /// For the superuser over TCP.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/{database}", self.port)
    }

    /// For the superuser over the unix socket, in key-value form.
    pub fn socket_url(&self, database: &str) -> String {
        format!("host={} port={} user=postgres dbname={database}", self.socket_directory().display(), self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn version(&self) -> Version {
        self.version
    }

    pub fn socket_directory(&self) -> PathBuf {
        self.scratch.path().join("socket")
    }

    pub fn data(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    pub fn postmaster_pid(&self) -> Option<u32> {
        self.postmaster.as_ref().map(Child::id)
    }

    pub fn is_running(&self) -> bool {
        self.postmaster_pid().is_some_and(process::is_alive)
    }

    /// Everything the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn name(&self) -> String {
        let directory = self.scratch.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("{} ({directory})", self.version)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The test runner shows this only if the test failed.
        eprintln!("--- last lines of the log of {}\n{}", self.name(), last_lines(&self.log(), 15));
        // A killed server leaves a System V shared memory segment behind, of which a machine has 4,096.
        self.signal_all("CONT");
        if self.stop(Stop::Immediate).is_err() {
            self.kill9();
        }
    }
}

/// A statement that waits for ever fails its test, and says which one it was.
const PATIENCE: &str = "SET statement_timeout = '600s'; SET lock_timeout = '180s'";

/// Connects without TLS; the connection's own task ends with the client.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(PATIENCE).await?;
    Ok(client)
}

/// A port of 127.0.0.1 that nobody listens on, below the range from which the kernel gives out client ports: while a
/// server is down, none of its clients can then be given its port (or even connect to itself on it).
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    for _ in 0..1_000 {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(FIRST + (std::process::id().wrapping_mul(61) + step) % COUNT)?;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port on 127.0.0.1");
}

pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
