//! The status document: what `/status` serves and `tailwater status` shows. Plain data; fields are only ever added.

use serde::{Deserialize, Serialize};

use super::metrics::TableState;
use crate::lsn::Lsn;

/// A running daemon at one moment.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    pub version: String,
    /// When this was taken, RFC 3339 in UTC.
    pub at: String,
    pub uptime_seconds: f64,
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub sources: Vec<SourceStatus>,
    pub pairs: Vec<PairStatus>,
    pub tables: Vec<TableStatus>,
    pub views: Vec<ViewStatus>,
    /// The newest last.
    pub errors: Vec<ErrorStatus>,
}

impl Status {
    pub fn source(&self, name: &str) -> Option<&SourceStatus> {
        self.sources.iter().find(|source| source.source == name)
    }
}

/// What a source's stream is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum SourceState {
    #[default]
    Connecting,
    /// It did not answer when the run began, or none of its sinks did: the others go on without it, and it joins them when its
    /// end answers.
    Waiting,
    /// Another daemon holds the slot; this one takes over when it goes.
    Standby,
    Streaming,
    /// The journal is at its cap: the stream stopped reading, the slot holds the WAL.
    PausedByJournal,
    /// Stopped until a human decides.
    Halted {
        reason: String,
        hint: String,
    },
}

impl SourceState {
    pub fn as_str(&self) -> &'static str {
        match self {
            SourceState::Connecting => "connecting",
            SourceState::Waiting => "waiting",
            SourceState::Standby => "standby",
            SourceState::Streaming => "streaming",
            SourceState::PausedByJournal => "paused by journal",
            SourceState::Halted { .. } => "halted",
        }
    }

    /// The replication connection is up.
    pub fn is_connected(&self) -> bool {
        matches!(self, SourceState::Streaming | SourceState::PausedByJournal)
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceStatus {
    pub source: String,
    pub slot: String,
    pub publication: String,
    #[serde(flatten)]
    pub state: SourceState,
    pub received_lsn: Lsn,
    pub confirmed_flush_lsn: Lsn,
    /// Where the source's WAL ended when the slot was last looked at.
    pub wal_lsn: Lsn,
    /// WAL that the source keeps for the slot.
    pub retained_bytes: u64,
    pub journal: JournalStatus,
    pub reconnects: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    pub bytes: u64,
    /// The earliest position that a replay may start from.
    pub first: Lsn,
    pub end: Lsn,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PairStatus {
    pub source: String,
    pub sink: String,
    pub checkpoint: Lsn,
    /// When the source committed the last transaction that the sink holds.
    pub checkpoint_commit_ts: Option<String>,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    /// Changes applied a second, over the last ten seconds.
    pub rows_per_second: f64,
    /// Changes applied since the daemon started.
    pub rows: u64,
    /// Source transactions applied since the daemon started.
    pub transactions: u64,
    /// Since when the sink is behind and does not move; 0 while it moves or has nothing to do.
    pub stalled_seconds: f64,
    /// For whom the pair waits, left out until then. Its checkpoint is not known: what is said of its lag counts from the slot's
    /// position at the start, or from what was known earlier.
    pub waiting: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TableStatus {
    pub source: String,
    pub sink: String,
    /// The target table.
    pub table: String,
    pub state: TableState,
    /// Changes applied since the daemon started.
    pub rows: u64,
    pub lag_seconds: f64,
    /// Present while the table is being copied.
    pub copy: Option<CopyStatus>,
    /// Why it is paused or quarantined.
    pub reason: Option<String>,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CopyStatus {
    pub copied_rows: u64,
    /// The planner's estimate: it may be wrong, and `copied_rows` may pass it.
    pub estimated_rows: u64,
    pub rows_per_second: f64,
    /// `None` while the rate or the estimate is unknown.
    pub eta_seconds: Option<f64>,
}

impl CopyStatus {
    /// From 0 to 1; below 1 until the copy has ended, whatever the estimate said. `None` without an estimate.
    pub fn fraction(&self) -> Option<f64> {
        (self.estimated_rows > 0).then(|| (self.copied_rows as f64 / self.estimated_rows as f64).min(0.99))
    }
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ViewStatus {
    pub sink: String,
    pub view: String,
    /// What the view reflects the source up to.
    pub lsn: Option<Lsn>,
    /// When the last refresh ended, RFC 3339 in UTC.
    pub refreshed_at: Option<String>,
    /// How long the last refresh took.
    pub seconds: Option<f64>,
    /// Age of the oldest change that the view does not show; 0 when it shows all.
    pub staleness_seconds: f64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ErrorStatus {
    /// When, RFC 3339 in UTC; of repetitions the last.
    pub at: String,
    pub stage: String,
    pub kind: String,
    /// The source, sink, table or view that it is about.
    pub about: String,
    /// Without row values and secrets.
    pub message: String,
    /// How often it came in a row.
    pub count: u64,
}
