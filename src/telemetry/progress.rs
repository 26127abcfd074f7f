//! How far one sink has come with one source: shared by the stream, the applier and whoever looks.
//!
//! Lag in seconds is the age of the oldest commit that the sink does not hold. Commits come far faster than anyone looks,
//! so their times are sampled: one every tenth of a second while the sink is behind, and always the last one.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::checkpoint::{Checkpoint, UnixMicros};
use crate::lsn::Lsn;

/// Commit times nearer than this are told apart only for the last commit: the error of `lag_seconds` while lag is short.
const SAMPLE_MICROS: i64 = 100_000;

/// Samples kept; when full, every other is dropped and the interval doubles, so the error stays near lag / 4096.
const SAMPLES_MAX: usize = 8_192;

/// Progress of one sink in one source.
#[derive(Debug)]
pub struct PairProgress {
    started: Instant,
    wal_lsn: AtomicU64,
    checkpoint_lsn: AtomicU64,
    /// Microseconds; 0 while unknown.
    checkpoint_commit_ts: AtomicI64,
    /// Commit time of the oldest transaction in the applier's hands; 0 if it holds none.
    applying_commit_ts: AtomicI64,
    /// Milliseconds after `started` of the last sign of progress, or of the moment when work appeared.
    moved_ms: AtomicU64,
    commits: Mutex<CommitTimes>,
}

impl Default for PairProgress {
    fn default() -> Self {
        PairProgress {
            started: Instant::now(),
            wal_lsn: AtomicU64::new(0),
            checkpoint_lsn: AtomicU64::new(0),
            checkpoint_commit_ts: AtomicI64::new(0),
            applying_commit_ts: AtomicI64::new(0),
            moved_ms: AtomicU64::new(0),
            commits: Mutex::new(CommitTimes::default()),
        }
    }
}

impl PairProgress {
    /// The source's WAL is known to reach `lsn`: from the stream, a keepalive, or a look at the server.
    pub fn wal_reached(&self, lsn: Lsn) {
        let before = self.wal_lsn.fetch_max(lsn.0, Relaxed);
        let checkpoint = self.checkpoint_lsn.load(Relaxed);
        // A sink that had nothing to do until now has not been standing still.
        if before <= checkpoint && checkpoint < lsn.0 {
            self.moved();
        }
    }

    /// The stream saw a commit that ends at `end_lsn`.
    pub fn committed(&self, end_lsn: Lsn, commit_ts: UnixMicros) {
        self.wal_reached(end_lsn);
        self.commits().push(end_lsn, commit_ts);
    }

    /// The applier took a batch whose oldest transaction was committed at `oldest_commit_ts`. Needed after a restart, when
    /// the journal holds commits that this run's stream never saw.
    pub fn applying(&self, oldest_commit_ts: UnixMicros) {
        self.applying_commit_ts.store(oldest_commit_ts.0, Relaxed);
        self.moved();
    }

    /// Rows went to the sink inside a transaction that is not finished: no checkpoint, but no stall either.
    pub fn working(&self) {
        self.moved();
    }

    /// The sink durably holds everything up to `checkpoint`.
    pub fn durable(&self, checkpoint: &Checkpoint) {
        self.checkpoint_lsn.store(checkpoint.end_lsn.0, Relaxed);
        if let Some(commit_ts) = checkpoint.commit_ts {
            self.checkpoint_commit_ts.store(commit_ts.0, Relaxed);
        }
        self.applying_commit_ts.store(0, Relaxed);
        self.wal_lsn.fetch_max(checkpoint.end_lsn.0, Relaxed);
        self.commits().forget(checkpoint.end_lsn);
        self.moved();
    }

    /// Nobody knows what the sink holds, but for `lsn`: lag counts from there, unless more is known from earlier.
    pub fn at_least(&self, lsn: Lsn) {
        let unknown = self.checkpoint_lsn.compare_exchange(0, lsn.0, Relaxed, Relaxed).is_ok();
        if unknown {
            self.wal_lsn.fetch_max(lsn.0, Relaxed);
            self.moved();
        }
    }

    pub fn checkpoint_lsn(&self) -> Lsn {
        Lsn(self.checkpoint_lsn.load(Relaxed))
    }

    /// When the source committed the last transaction that the sink holds.
    pub fn checkpoint_commit_ts(&self) -> Option<UnixMicros> {
        Some(self.checkpoint_commit_ts.load(Relaxed)).filter(|micros| *micros != 0).map(UnixMicros)
    }

    /// Bytes of known WAL beyond the checkpoint.
    pub fn lag_bytes(&self) -> u64 {
        Lsn(self.wal_lsn.load(Relaxed)).bytes_since(self.checkpoint_lsn())
    }

    /// Age of the oldest commit not yet in the sink, by the source's clock and this machine's; 0 when caught up.
    pub fn lag_seconds(&self, now: UnixMicros) -> f64 {
        let applying = Some(self.applying_commit_ts.load(Relaxed)).filter(|micros| *micros != 0).map(UnixMicros);
        let streamed = self.commits().oldest_after(self.checkpoint_lsn());
        let oldest = [applying, streamed].into_iter().flatten().min();
        oldest.map_or(0.0, |oldest| now.0.saturating_sub(oldest.0).max(0) as f64 / 1e6)
    }

    /// How long the sink has been behind without a sign of progress; zero when caught up.
    pub fn stalled_for(&self) -> Duration {
        if self.lag_bytes() == 0 {
            return Duration::ZERO;
        }
        self.started.elapsed().saturating_sub(Duration::from_millis(self.moved_ms.load(Relaxed)))
    }

    fn moved(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(elapsed_ms, Relaxed);
    }

    fn commits(&self) -> MutexGuard<'_, CommitTimes> {
        self.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits that a sink may not hold yet: ends and times, in WAL order, thinned.
#[derive(Debug)]
struct CommitTimes {
    samples: VecDeque<(Lsn, UnixMicros)>,
    last: Option<(Lsn, UnixMicros)>,
    interval_micros: i64,
}

impl Default for CommitTimes {
    fn default() -> Self {
        CommitTimes { samples: VecDeque::new(), last: None, interval_micros: SAMPLE_MICROS }
    }
}

impl CommitTimes {
    fn push(&mut self, end_lsn: Lsn, commit_ts: UnixMicros) {
        self.last = Some((end_lsn, commit_ts));
        let apart = |(_, sampled): &(Lsn, UnixMicros)| commit_ts.0.saturating_sub(sampled.0) >= self.interval_micros;
        if !self.samples.back().is_none_or(apart) {
            return;
        }
        if self.samples.len() == SAMPLES_MAX {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.interval_micros = self.interval_micros.saturating_mul(2);
        }
        self.samples.push_back((end_lsn, commit_ts));
    }

    fn forget(&mut self, checkpoint_lsn: Lsn) {
        while self.samples.front().is_some_and(|(end_lsn, _)| *end_lsn <= checkpoint_lsn) {
            self.samples.pop_front();
        }
        if self.samples.is_empty() {
            self.interval_micros = SAMPLE_MICROS;
        }
    }

    fn oldest_after(&self, checkpoint_lsn: Lsn) -> Option<UnixMicros> {
        let pending = |(end_lsn, _): &&(Lsn, UnixMicros)| *end_lsn > checkpoint_lsn;
        let sampled = self.samples.iter().find(pending);
        sampled.or(self.last.as_ref().filter(pending)).map(|(_, commit_ts)| *commit_ts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> UnixMicros {
        UnixMicros(second * 1_000_000)
    }

    fn checkpoint(end_lsn: u64, commit_ts: UnixMicros) -> Checkpoint {
        Checkpoint { commit_lsn: Lsn(end_lsn - 1), end_lsn: Lsn(end_lsn), ordinal: 1, commit_ts: Some(commit_ts) }
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_commit_not_in_the_sink() {
        let progress = PairProgress::default();
        assert_eq!(progress.lag_seconds(at(100)), 0.0);
        progress.committed(Lsn(10), at(50));
        progress.committed(Lsn(20), at(60));
        assert_eq!(progress.lag_seconds(at(100)), 50.0);
        assert_eq!(progress.lag_bytes(), 20);
        progress.durable(&checkpoint(10, at(50)));
        assert_eq!(progress.lag_seconds(at(100)), 40.0);
        assert_eq!(progress.lag_bytes(), 10);
        progress.durable(&checkpoint(20, at(60)));
        assert_eq!(progress.lag_seconds(at(100)), 0.0);
        assert_eq!(progress.lag_bytes(), 0);
        assert_eq!(progress.checkpoint_commit_ts(), Some(at(60)));
    }

    #[test]
    fn a_commit_between_samples_still_counts_as_pending() {
        let progress = PairProgress::default();
        progress.committed(Lsn(10), at(50));
        progress.committed(Lsn(20), UnixMicros(at(50).0 + 1));
        progress.durable(&checkpoint(10, at(50)));
        assert!(progress.lag_seconds(at(51)) > 0.99);
    }

    #[test]
    fn commit_after_an_idle_hour_is_not_an_hour_late() {
        let progress = PairProgress::default();
        progress.committed(Lsn(10), at(0));
        progress.durable(&checkpoint(10, at(0)));
        progress.committed(Lsn(20), at(3_600));
        assert_eq!(progress.lag_seconds(at(3_601)), 1.0);
    }

    #[test]
    fn commits_of_an_earlier_run_count_once_the_applier_holds_them() {
        let progress = PairProgress::default();
        progress.durable(&checkpoint(10, at(0)));
        progress.wal_reached(Lsn(500));
        progress.applying(at(5));
        assert_eq!(progress.lag_seconds(at(25)), 20.0);
        progress.durable(&checkpoint(500, at(6)));
        assert_eq!(progress.lag_seconds(at(25)), 0.0);
    }

    #[test]
    fn samples_are_bounded_and_keep_the_oldest() {
        let mut times = CommitTimes::default();
        for second in 0..100_000 {
            times.push(Lsn(second as u64 + 1), at(second));
            assert!(times.samples.len() <= SAMPLES_MAX);
        }
        assert_eq!(times.oldest_after(Lsn::ZERO), Some(at(0)));
        assert_eq!(times.oldest_after(Lsn(99_999)), Some(at(99_999)));
        times.forget(Lsn(100_000));
        assert_eq!(times.oldest_after(Lsn(100_000)), None);
        assert_eq!(times.interval_micros, SAMPLE_MICROS);
    }

    #[test]
    fn lag_of_a_sink_that_was_not_read_counts_from_what_it_surely_holds() {
        let progress = PairProgress::default();
        progress.at_least(Lsn(1_000));
        assert_eq!((progress.lag_bytes(), progress.lag_seconds(at(9))), (0, 0.0));
        progress.committed(Lsn(1_010), at(5));
        assert_eq!((progress.lag_bytes(), progress.lag_seconds(at(9))), (10, 4.0));
        progress.durable(&checkpoint(1_005, at(4)));
        progress.at_least(Lsn(1_000));
        assert_eq!(progress.checkpoint_lsn(), Lsn(1_005));
    }

    #[test]
    fn a_sink_with_nothing_to_do_is_not_stalled() {
        let progress = PairProgress::default();
        progress.durable(&checkpoint(10, at(0)));
        assert_eq!(progress.stalled_for(), Duration::ZERO);
        progress.wal_reached(Lsn(11));
        assert!(progress.stalled_for() < Duration::from_secs(30));
    }
}
