//! Typed handles of metrics: made once by [`super::metrics::Metrics`], kept by the part of the pipeline that moves them.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::progress::PairProgress;
pub use crate::sink::state::TableState;

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// A gauge that shows a WAL position as its byte number.
#[derive(Clone, Debug)]
pub struct LsnGauge(pub(super) IntGauge);

impl LsnGauge {
    pub fn set(&self, lsn: Lsn) {
        self.0.set(clamped(lsn.0));
    }

    pub fn get(&self) -> Lsn {
        Lsn(u64::try_from(self.0.get()).unwrap_or(0))
    }
}

/// A gauge that shows bytes.
#[derive(Clone, Debug)]
pub struct BytesGauge(pub(super) IntGauge);

impl BytesGauge {
    pub fn set(&self, bytes: u64) {
        self.0.set(clamped(bytes));
    }

    pub fn get(&self) -> u64 {
        u64::try_from(self.0.get()).unwrap_or(0)
    }
}

pub(super) fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// What is measured of one source.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    pub(super) name: Arc<str>,
    pub received_lsn: LsnGauge,
    pub confirmed_flush_lsn: LsnGauge,
    pub slot_retained_wal_bytes: BytesGauge,
    pub(super) safe_wal_bytes: Gauge,
    pub(super) slot_active: IntGauge,
    pub(super) connected: IntGauge,
    pub journal_bytes: BytesGauge,
    pub received_bytes: IntCounter,
    pub reconnects: IntCounter,
}

impl SourceMetrics {
    /// `pg_replication_slots.safe_wal_size`: NULL (`None`) where `max_slot_wal_keep_size` sets no limit.
    pub fn set_slot_safe_wal(&self, bytes: Option<i64>) {
        self.safe_wal_bytes.set(bytes.map_or(f64::INFINITY, |bytes| bytes as f64));
    }

    pub fn set_slot_active(&self, active: bool) {
        self.slot_active.set(i64::from(active));
    }

    pub(super) fn set_connected(&self, connected: bool) {
        self.connected.set(i64::from(connected));
    }
}

/// What is measured of one sink fed by one source.
#[derive(Clone, Debug)]
pub struct PairMetrics {
    pub(super) source: Arc<str>,
    pub(super) sink: Arc<str>,
    pub(super) lag_bytes: BytesGauge,
    pub(super) lag_seconds: Gauge,
    pub(super) checkpoint_lsn: LsnGauge,
    pub transactions: IntCounter,
    pub batch_rows: Histogram,
    pub apply_seconds: Histogram,
    /// What the stream and the applier report. Checkpoint and lag are read from it whenever someone looks.
    pub progress: Arc<PairProgress>,
}

impl PairMetrics {
    pub fn source(&self) -> &str {
        &self.source
    }

    pub fn sink(&self) -> &str {
        &self.sink
    }

    pub(super) fn is(&self, source: &str, sink: &str) -> bool {
        self.source.as_ref() == source && self.sink.as_ref() == sink
    }
}

/// What is measured of one target table.
#[derive(Clone, Debug)]
pub struct TableMetrics {
    pub(super) name: Arc<str>,
    pub(super) pair: PairMetrics,
    pub insert: IntCounter,
    pub update: IntCounter,
    pub delete: IntCounter,
    pub truncate: IntCounter,
    pub snapshot_rows: IntCounter,
    pub value_coerced: IntCounter,
    pub dead_letters: IntCounter,
    pub(super) lag_seconds: Gauge,
    pub(super) states: [IntGauge; TableState::ALL.len()],
    /// Microseconds since 1970 when the table stopped to follow the stream, or was first seen; 0 while it follows.
    pub(super) left_stream_at: Arc<AtomicI64>,
}

impl TableMetrics {
    pub fn set_state(&self, state: TableState) {
        // The new state first: a reader in between finds the old one or the new one, never none.
        for pass in [true, false] {
            let of_pass = self.states.iter().zip(TableState::ALL).filter(|(_, of)| (*of == state) == pass);
            of_pass.for_each(|(gauge, _)| gauge.set(i64::from(pass)));
        }
        match state {
            TableState::Streaming => self.left_stream_at.store(0, Relaxed),
            TableState::Pending
            | TableState::Copying
            | TableState::Catchup
            | TableState::Paused
            | TableState::Quarantined => {
                // Only the first step away counts: a failed exchange means that it has already left.
                let _ = self.left_stream_at.compare_exchange(0, UnixMicros::now().0, Relaxed, Relaxed);
            }
        }
    }

    pub fn state(&self) -> TableState {
        let set = self.states.iter().zip(TableState::ALL).find(|(gauge, _)| gauge.get() == 1);
        set.map_or(TableState::Pending, |(_, state)| state)
    }

    /// Changes applied, truncates not counted.
    pub fn rows(&self) -> u64 {
        [&self.insert, &self.update, &self.delete].iter().map(|counter| counter.get()).sum()
    }

    /// Lag of the stream that the table follows, or the time since it followed one.
    pub fn lag_seconds(&self, now: UnixMicros) -> f64 {
        match self.left_stream_at.load(Relaxed) {
            0 => self.pair.progress.lag_seconds(now),
            left_at => now.0.saturating_sub(left_at).max(0) as f64 / 1e6,
        }
    }
}

/// What is measured of one materialized view.
#[derive(Clone, Debug)]
pub struct ViewMetrics {
    pub(super) key: Arc<(String, String)>,
    pub(super) refresh_seconds: Histogram,
    pub(super) staleness_seconds: Gauge,
    pub(super) errors: IntCounter,
    /// Microseconds since 1970 of the oldest change that the view does not show; 0 if it shows all.
    pub(super) stale_since: Arc<AtomicI64>,
}

impl ViewMetrics {
    /// Data under the view changed at `at` (when the sink committed it).
    pub fn changed(&self, at: UnixMicros) {
        // A failed exchange means that an older change is waiting already.
        let _ = self.stale_since.compare_exchange(0, at.0, Relaxed, Relaxed);
    }

    /// A refresh ended; `stale_since` is the first change that came too late for it.
    pub fn refreshed(&self, seconds: f64, stale_since: Option<UnixMicros>) {
        self.refresh_seconds.observe(seconds);
        self.stale_since.store(stale_since.map_or(0, |at| at.0), Relaxed);
    }

    pub fn failed(&self) {
        self.errors.inc();
    }

    /// Age of the oldest change that the view does not show.
    pub fn staleness_seconds(&self, now: UnixMicros) -> f64 {
        match self.stale_since.load(Relaxed) {
            0 => 0.0,
            since => now.0.saturating_sub(since).max(0) as f64 / 1e6,
        }
    }
}

/// The part of the pipeline in which an error was met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    Connect,
    Stream,
    Journal,
    Decode,
    Map,
    Apply,
    Snapshot,
    Refresh,
    Slot,
}

impl Stage {
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Connect => "connect",
            Stage::Stream => "stream",
            Stage::Journal => "journal",
            Stage::Decode => "decode",
            Stage::Map => "map",
            Stage::Apply => "apply",
            Stage::Snapshot => "snapshot",
            Stage::Refresh => "refresh",
            Stage::Slot => "slot",
        }
    }
}
