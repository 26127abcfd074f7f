//! The daemon's own settings: `tailwater.toml` under environment overrides, read once at start, every finding at once.
//!
//! ```text
//! tailwater.toml ─▶ layers: file < TAILWATER__A__B ─▶ ${VAR} in string leaves ─▶ read: defaults, units, *_file ─▶ Config
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::diagnostic::{Finding, Findings, SourceFile};

mod beside;
pub mod document;
mod layers;
mod read;
mod redact;
pub mod units;

pub use beside::{BesideRows, Heartbeats};

/// A password, or an address that may hold one. It is shown nowhere; who needs it calls [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the connection or the hash that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// `tailwater.toml`, checked and with defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Mapping files, absolute or relative to the working directory.
    pub mappings: Vec<PathBuf>,
    pub data_dir: PathBuf,
    pub http: Http,
    pub log: Log,
    pub on_halt: OnHalt,
    /// Key of `mask = { column = "sha256" }`.
    pub mask_salt: Option<Secret>,
    pub sources: BTreeMap<String, SourceConfig>,
    pub sinks: BTreeMap<String, SinkConfig>,
    /// Odd, but no reason to stop.
    pub warnings: Findings,
    /// The file it was read from, secrets blanked.
    pub file: Arc<SourceFile>,
}

/// `[http]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Http {
    /// `None` after `listen = "off"`.
    pub listen: Option<SocketAddr>,
}

/// What the daemon does once it has halted, with a verdict that a human must act on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnHalt {
    /// It ends, with the verdict's exit code.
    #[default]
    Exit,
    /// It goes on to serve metrics and status, so that the verdict can be scraped, and ends with that code when stopped.
    Stay,
}

/// `[log]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    pub format: LogFormat,
    /// A `tracing` filter: `info`, or `info,tailwater::sink=debug`.
    pub level: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// Human on a terminal, else JSON.
    #[default]
    Auto,
    Human,
    Json,
}

/// What the source's slot waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Ack {
    /// Every sink's checkpoint: losing the data directory loses nothing.
    #[default]
    Sink,
    /// The journal's fsync: a warehouse that is down never fills the source's disk.
    Journal,
}

/// `[source.NAME]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceConfig {
    pub url: Secret,
    /// Takes precedence over one inside `url`.
    pub password: Option<Secret>,
    pub slot: String,
    pub publication: String,
    pub ack: Ack,
    /// Between two messages that let an idle database's slot advance; zero is off.
    pub heartbeat: Duration,
    /// Connections that copy one source's tables side by side, 1 to 16.
    pub snapshot_connections: usize,
    pub journal: JournalConfig,
}

/// `[source.NAME.journal]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalConfig {
    /// How long segments are kept for `replay` after every sink has them.
    pub retention: Duration,
    /// At this size the stream stops reading and the slot holds the WAL.
    pub max_bytes: u64,
    pub segment_bytes: u64,
    /// What the live end may hold for appliers that keep up.
    pub memory_bytes: u64,
}

impl Default for JournalConfig {
    fn default() -> Self {
        JournalConfig {
            retention: Duration::from_secs(24 * 60 * 60),
            max_bytes: 10 << 30,
            segment_bytes: 64 << 20,
            memory_bytes: 32 << 20,
        }
    }
}

/// What happens to a table whose row can never be applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnError {
    /// The sink stops.
    Stop,
    /// That table stops and says so; the others go on.
    #[default]
    Quarantine,
}

/// `[sink.NAME]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SinkConfig {
    pub on_error: OnError,
    pub batch_rows_max: usize,
    pub batch_bytes_max: usize,
    /// How often a position without rows is recorded while a source is idle.
    pub idle_record: Duration,
    pub end: SinkEnd,
}

/// Where a sink is reached, by `kind`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SinkEnd {
    Postgres(PostgresEnd),
    ClickHouse(ClickHouseEnd),
    Kafka(KafkaEnd),
}

/// `kind = "kafka"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaEnd {
    /// `host:port`, several with commas between.
    pub brokers: String,
    /// Settings of librdkafka under its own names; some may be secrets.
    pub options: BTreeMap<String, Secret>,
    /// Where `format = "avro"` registers its schemas.
    pub registry: Option<RegistryEnd>,
    /// The compacted topic that holds checkpoints and table states.
    pub state_topic: String,
    pub beside: BesideRows,
}

/// `schema_registry`: one that speaks Confluent's API.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistryEnd {
    /// `http://` or `https://`; may have a path, under which the API stands.
    pub url: Secret,
    /// User and password take precedence over those inside `url`.
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Certificates of the authorities that vouch for an `https://` one, in place of the machine's own.
    pub ca_file: Option<PathBuf>,
}

/// `kind = "postgres"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PostgresEnd {
    pub url: Secret,
    /// Takes precedence over one inside `url`.
    pub password: Option<Secret>,
}

/// `kind = "clickhouse"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClickHouseEnd {
    /// The HTTP interface: `http://user@host:8123` or `https://user@host:8443?sslrootcert=…`.
    pub url: Secret,
    /// Takes precedence over one inside `url`.
    pub password: Option<Secret>,
    /// Tables are replicated and made `ON CLUSTER` of this name.
    pub cluster: Option<String>,
}

impl Config {
    /// Reads the file and lays the environment over it. Only names that begin with `TAILWATER__` override; any name may
    /// stand in `${…}`.
    ///
    /// # Errors
    /// All findings, warnings included, if one of them is an error.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Config, Findings> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let message = format!("cannot read \"{}\": {}", path.display(), read_error(&error));
            let hint = "name the configuration with `--config FILE` or `TAILWATER_CONFIG`.";
            Findings(vec![Finding::error("unreadable-file", message).hint(hint)])
        })?;
        Config::parse(path, &text, environment)
    }

    /// Like [`Config::load`], of a text that is at hand. Secret files are still read from beside `path`.
    pub fn parse(
        path: &Path,
        text: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Findings> {
        let environment: BTreeMap<String, String> = environment.collect();
        let file = SourceFile::new(path, redact::redact(text));
        let (entries, findings) = layers::merge(&file, text, &environment)?;
        read::config(&file, &entries, findings)
    }
}

/// An IO error as a person says it, without the operating system's number.
pub(crate) fn read_error(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file",
        std::io::ErrorKind::PermissionDenied => "permission denied",
        std::io::ErrorKind::IsADirectory => "it is a directory",
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text",
        _ => "the file could not be read",
    }
}
