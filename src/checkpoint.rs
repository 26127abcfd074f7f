//! Where a change stands in its source's history, and what a sink durably holds of it.

use crate::lsn::Lsn;

/// Microseconds since 1970-01-01 00:00 UTC, by the source's clock. For people and for lag in seconds, never for order:
/// commit times may go backwards.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// Postgres counts from 2000-01-01, 10,957 days after 1970-01-01.
    pub const POSTGRES_EPOCH: i64 = 10_957 * 86_400 * 1_000_000;

    /// From the wire's microseconds since 2000-01-01.
    pub fn from_postgres(micros: i64) -> Self {
        UnixMicros(micros.saturating_add(Self::POSTGRES_EPOCH))
    }

    /// To the wire's microseconds since 2000-01-01.
    pub fn to_postgres(self) -> i64 {
        self.0.saturating_sub(Self::POSTGRES_EPOCH)
    }

    /// This machine's time now. Only for lag in seconds and for the status messages that carry a clock.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixMicros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// The order of a change: by its transaction's commit, then by its place inside the transaction.
///
/// A change's own LSN cannot order changes: transactions interleave in the WAL, and all rows of a COPY may share one LSN.
/// The ordinal counts the row and truncate messages of a transaction from 1; 0 stands before the first, where the rows of
/// a snapshot taken at this LSN stand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    pub commit_lsn: Lsn,
    pub ordinal: u64,
}

/// A boundary between source transactions up to which a sink holds everything.
///
/// Order and de-duplication go by `commit_lsn`; only `end_lsn` is ever confirmed to the source (the server skips a
/// transaction whose commit record *starts* before the confirmed position, so confirming `commit_lsn` repeats one
/// and confirming `end_lsn + 1` may lose one).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Checkpoint {
    /// Start of the last applied transaction's commit record; of an idle advance, the same as `end_lsn`.
    pub commit_lsn: Lsn,
    /// First byte after that commit record. Streaming resumes here.
    pub end_lsn: Lsn,
    /// Changes that the last transaction had.
    pub ordinal: u64,
    /// When the source committed it; `None` for an idle advance with no transaction before it.
    pub commit_ts: Option<UnixMicros>,
}

/// Which server, history and slot a checkpoint speaks of: a restored, failed-over or recreated source has another.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SourceIdentity {
    /// `IDENTIFY_SYSTEM`'s `systemid`: made at initdb, kept by physical copies.
    pub system_identifier: u64,
    /// The timeline in force when the checkpoint was written.
    pub timeline: u32,
    /// The database's name: a slot belongs to one database.
    pub database: String,
    pub slot: String,
}
