//! A private Postgres cluster in the scratch directory: on a free port of 127.0.0.1 and on a unix socket.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_postgres::Client;

use super::process::{LOOK, RunAs, end, ended_within, give_to_server_user, guarded, last_lines};
use super::scratch::Scratch;
use crate::postgres::connect::connect;
use crate::postgres::url::PgUrl;

const INITDB_WITHIN: Duration = Duration::from_secs(120);
const START_WITHIN: Duration = Duration::from_secs(60);

/// Nothing is weakened that a figure of the demo would gain from: commits are flushed as in production.
const SETTINGS: &str = "
wal_level = logical
shared_buffers = 64MB
max_connections = 40
timezone = UTC
log_timezone = UTC
";

/// Over the socket, in a directory that is closed to others, the superuser; over TCP, the daemon's role with a password.
const HBA: &str = "
local all postgres trust
host all tailwater 127.0.0.1/32 scram-sha-256
";

/// The installed servers to start.
pub struct Binaries {
    directory: PathBuf,
    /// `15.14`.
    pub version: String,
}

impl Binaries {
    /// The newest of Debian's, else what `pg_config` or the PATH leads to.
    pub fn find() -> Result<Binaries> {
        let majors = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut majors: Vec<(u32, PathBuf)> = majors
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
            .collect();
        majors.sort();
        let mut directories: Vec<PathBuf> = majors.into_iter().rev().map(|(_, directory)| directory).collect();
        if let Ok(output) = Command::new("pg_config").arg("--bindir").output() {
            directories.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
        }
        directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let has_server =
            |directory: &PathBuf| directory.join("initdb").is_file() && directory.join("postgres").is_file();
        let directory = directories
            .into_iter()
            .find(has_server)
            .context("no PostgreSQL server is installed here; on Debian: apt-get install postgresql-15")?;
        let output = Command::new(directory.join("postgres")).arg("--version").output().context("start postgres")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.trim_start_matches("postgres (PostgreSQL) ").split_whitespace().next().unwrap_or_default();
        Ok(Binaries { directory, version: version.to_owned() })
    }
}

pub struct Cluster {
    name: &'static str,
    home: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Cluster {
    /// Begins `initdb`. `start` waits for it, so that two clusters can be made at the same time.
    pub fn new(name: &'static str, scratch: &Scratch, binaries: &Binaries) -> Result<Cluster> {
        let home = scratch.make_directory(name)?;
        for directory in ["data", "socket"] {
            give_to_server_user(&scratch.make_directory(&format!("{name}/{directory}"))?)?;
        }
        let log = File::create(home.join("log"))?;
        // Over the files' own mode: the servers' user passes through here as well.
        fs::set_permissions(&home, std::os::unix::fs::PermissionsExt::from_mode(0o711))?;
        let child = guarded("KILL", RunAs::ServerUser, &binaries.directory.join("initdb"))
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(home.join("data"))
            .current_dir(&home)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start initdb through setpriv (of util-linux)")?;
        Ok(Cluster { name, home, port: 0, child: Some(child) })
    }

    pub async fn start(&mut self, binaries: &Binaries) -> Result<()> {
        let initdb = self.child.as_mut().context("initdb was not started")?;
        match ended_within(initdb, INITDB_WITHIN).await? {
            Some(status) if status.success() => self.child = None,
            Some(status) => bail!("initdb of the {} ended with {status}:{}", self.name, last_lines(&self.log(), 15)),
            None => bail!("initdb of the {} takes longer than {} s", self.name, INITDB_WITHIN.as_secs()),
        }
        let data = self.home.join("data");
        fs::write(data.join("pg_hba.conf"), HBA)?;
        let mut settings = fs::read_to_string(data.join("postgresql.conf"))?;
        settings.push_str(SETTINGS);
        fs::write(data.join("postgresql.conf"), settings)?;
        self.port = free_port()?;
        let log = File::options().append(true).open(self.log())?;
        let child = guarded("INT", RunAs::ServerUser, &binaries.directory.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k"])
            .arg(self.socket())
            .current_dir(&self.home)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start postgres")?;
        self.child = Some(child);
        self.wait_until_ready().await
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            let child = self.child.as_mut().context("the server was not started")?;
            if let Some(status) = child.try_wait()? {
                bail!("the {}'s server ended with {status}:{}", self.name, last_lines(&self.log(), 15));
            }
            // As pg_ctl does it: the eighth line of the file is the server's state.
            let state = fs::read_to_string(self.home.join("data/postmaster.pid")).unwrap_or_default();
            if state.lines().nth(7).is_some_and(|state| state.trim_end() == "ready") {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the {}'s server is not ready yet:{}", self.name, last_lines(&self.log(), 15));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// For the superuser, over the socket.
    pub fn owner_url(&self, database: &str) -> String {
        format!("postgres://postgres@/{database}?host={}&port={}", self.socket().display(), self.port)
    }

    /// For the daemon's role. The password is apart.
    pub fn daemon_url(&self, database: &str) -> String {
        format!("postgres://tailwater@127.0.0.1:{}/{database}", self.port)
    }

    /// Connects as superuser. The session ends with the client.
    pub async fn connect(&self, database: &str) -> Result<Client> {
        let url = PgUrl::parse(&self.owner_url(database)).context("the address of our own server")?;
        Ok(connect(&url, "tailwater demo").await?.client)
    }

    /// The directory of the unix socket.
    pub fn socket(&self) -> PathBuf {
        self.home.join("socket")
    }

    fn log(&self) -> PathBuf {
        self.home.join("log")
    }

    /// A fast shutdown, which disconnects clients; an immediate one where that takes too long.
    pub async fn stop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child, &[("INT", Duration::from_secs(15)), ("QUIT", Duration::from_secs(5))]).await;
        }
    }
}

/// A port of 127.0.0.1 that nobody listens on, another one at each call.
///
/// Below those that the system gives to outgoing connections: one of those could take the port before the server does.
pub fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 2_000;
    // Demos beside each other have ids close to each other, and take less than so many ports each.
    let begin = (std::process::id().wrapping_mul(61) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + begin.wrapping_add(step) % COUNT;
        if is_free(port) {
            return Ok(port);
        }
    }
    bail!("no port of 127.0.0.1 from {FIRST} to {} is free", FIRST + COUNT - 1)
}

/// Whether nobody listens on a port of 127.0.0.1.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// A password that nobody chose.
pub fn random_password() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    File::open(Path::new("/dev/urandom"))
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
