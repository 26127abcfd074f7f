//! Three private clusters: a source, native replication's sink and tailwater's sink, none slowed by its disk.

use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tokio_postgres::Client;

use crate::support::cluster::{Cluster, Options, Stop};
use crate::support::daemon::{Daemon, Home};
use crate::support::postgres::Version;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Transport {
    /// The unix socket.
    Socket,
    /// Loopback, without TLS.
    Tcp,
}

/// The slot of tailwater's source `src`.
pub const TAILWATER_SLOT: &str = "tailwater_src";

pub struct Servers {
    pub source: Cluster,
    pub native: Cluster,
    pub tailwater: Cluster,
    pub transport: Transport,
    pub native_binary: bool,
    sink_options: String,
}

impl Servers {
    pub fn start(sink_options: &str, native_binary: bool) -> Result<Servers> {
        let options = |wal_level: &str| {
            let settings = [
                ("wal_level", wal_level),
                ("shared_buffers", "512MB"),
                ("max_wal_size", "32GB"),
                ("checkpoint_timeout", "1h"),
                ("autovacuum", "off"),
            ];
            settings.into_iter().fold(Options::default(), |options, (name, value)| options.set(name, value))
        };
        Ok(Servers {
            source: Cluster::start("bench-source", Version::V15, options("logical"))?,
            native: Cluster::start("bench-native", Version::V15, options("replica"))?,
            tailwater: Cluster::start("bench-tailwater", Version::V15, options("replica"))?,
            transport: Transport::Socket,
            native_binary,
            sink_options: sink_options.to_owned(),
        })
    }

    /// Of a database, in the form that libpq, tokio-postgres and tailwater all read.
    pub fn url(&self, cluster: &Cluster, database: &str) -> String {
        match self.transport {
            Transport::Socket => {
                let directory = cluster.socket_directory();
                format!("postgres://postgres@/{database}?host={}&port={}", directory.display(), cluster.port())
            }
            Transport::Tcp => format!("{}?sslmode=disable", cluster.url(database)),
        }
    }

    /// A configuration of tailwater between databases of this name.
    pub fn home(&self, database: &str, mapping: &str) -> Result<Home> {
        Home::new("bench", &self.config(database), &[("mapping.toml", mapping)])
    }

    pub fn config(&self, database: &str) -> String {
        format!(
            "[source.src]\nurl = \"{}\"\n\n[sink.dst]\nkind = \"postgres\"\nurl = \"{}\"\n{}\n",
            self.url(&self.source, database),
            self.url(&self.tailwater, database),
            self.sink_options
        )
    }

    /// A slot as it was when `retained` was made, so that the same WAL streams again.
    pub async fn copy_slot(&self, database: &str, name: &str) -> Result<()> {
        let source = self.source.connect(database).await?;
        drop_slot(&source, name).await?;
        source.execute("SELECT pg_copy_logical_replication_slot('retained', $1)", &[&name]).await?;
        Ok(())
    }

    /// Every checkpointer has nothing left to do.
    pub async fn settle(&self) -> Result<()> {
        for cluster in [&self.source, &self.native, &self.tailwater] {
            cluster.execute("postgres", "CHECKPOINT").await?;
        }
        Ok(())
    }

    /// Stops the servers and removes their files, without the last words that a failed run shows.
    pub fn end(self) -> Result<()> {
        for mut cluster in [self.source, self.native, self.tailwater] {
            cluster.stop(Stop::Immediate)?;
            let path = cluster.data().parent().context("data stands in a directory")?.to_owned();
            std::mem::forget(cluster);
            std::fs::remove_dir_all(path)?;
        }
        Ok(())
    }
}

/// Ends a daemon without the last words that a failed run shows.
pub fn terminate(mut daemon: Daemon) -> Result<()> {
    daemon.terminate()?;
    std::mem::forget(daemon);
    Ok(())
}

pub async fn drop_slot(source: &Client, name: &str) -> Result<()> {
    // A walsender may still be on its way out.
    let end = "SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots \
               WHERE slot_name = $1 AND active_pid IS NOT NULL";
    source.query(end, &[&name]).await?;
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
    source.query(drop, &[&name]).await?;
    Ok(())
}

/// Keeps a database as the template of later ones.
pub async fn keep_as_template(cluster: &Cluster, database: &str) -> Result<()> {
    drop_database(cluster, &format!("{database}_start")).await?;
    cluster.execute("postgres", &format!("ALTER DATABASE {database} RENAME TO {database}_start")).await
}

/// Makes a database anew from its template.
pub async fn from_template(cluster: &Cluster, database: &str) -> Result<()> {
    drop_database(cluster, database).await?;
    let create = format!("CREATE DATABASE {database} TEMPLATE {database}_start STRATEGY file_copy");
    cluster.execute("postgres", &create).await
}

pub async fn drop_database(cluster: &Cluster, database: &str) -> Result<()> {
    cluster.execute("postgres", &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await
}

/// The process ids that a query finds.
pub async fn pids(client: &Client, sql: &str) -> Result<Vec<u32>> {
    let rows = client.query(sql, &[]).await?;
    rows.iter().map(|row| Ok(u32::try_from(row.get::<_, i32>(0))?)).collect()
}

/// One of Postgres's client programs.
pub fn program(name: &str) -> Result<Command> {
    Ok(Command::new(Version::V15.binaries()?.join(name)))
}

/// Copies a table between databases of the same name: what a person would type.
pub fn copy_pipe(from: &str, to: &str, table: &str) -> Result<()> {
    let psql = Version::V15.binaries()?.join("psql");
    let psql = psql.display();
    let script = format!(
        "set -o pipefail; {psql} -qX '{from}' -c 'COPY {table} TO STDOUT (FORMAT binary)' | \
         {psql} -qX '{to}' -v ON_ERROR_STOP=1 -c 'COPY {table} FROM STDIN (FORMAT binary)'"
    );
    let status = Command::new("bash").arg("-c").arg(script).status().context("start bash")?;
    if !status.success() {
        bail!("COPY of {table} ended with {status}");
    }
    Ok(())
}
