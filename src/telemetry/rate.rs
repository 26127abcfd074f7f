//! How fast a counter grows, over a sliding window.

use std::collections::VecDeque;
use std::time::Duration;

/// The window. Long enough to be steady, short enough to show that something stopped.
const WINDOW: Duration = Duration::from_secs(10);

/// Samples nearer than this to the one before are left out, so that the window is bounded whoever calls how often.
const SPACING: Duration = Duration::from_millis(200);

/// Samples of one counter.
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Duration, u64)>,
}

impl Rate {
    /// `elapsed` is a monotonic time since any fixed start.
    pub fn sample(&mut self, elapsed: Duration, count: u64) {
        if self.samples.back().is_some_and(|(at, _)| elapsed.saturating_sub(*at) < SPACING) {
            return;
        }
        self.samples.push_back((elapsed, count));
        // One sample at or before the window's start stays, to measure from.
        while self.samples.get(1).is_some_and(|(at, _)| elapsed.saturating_sub(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Growth a second between the window's first and last sample; 0 if the last one is older than the window.
    pub fn per_second(&self, elapsed: Duration) -> f64 {
        let (Some((first_at, first)), Some((last_at, last))) = (self.samples.front(), self.samples.back()) else {
            return 0.0;
        };
        let span = last_at.saturating_sub(*first_at).as_secs_f64();
        if span <= 0.0 || elapsed.saturating_sub(*last_at) > WINDOW {
            return 0.0;
        }
        last.saturating_sub(*first) as f64 / span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_measured_over_the_window_only() {
        let mut rate = Rate::default();
        let second = Duration::from_secs;
        assert_eq!(rate.per_second(second(0)), 0.0);
        rate.sample(second(0), 0);
        assert_eq!(rate.per_second(second(0)), 0.0);
        rate.sample(second(1), 1_000_000);
        for at in 2..=20 {
            rate.sample(second(at), 1_000_000 + at * 5);
        }
        assert_eq!(rate.per_second(second(20)), 5.0);
        assert_eq!(rate.per_second(second(40)), 0.0);
    }

    #[test]
    fn eager_callers_do_not_fill_the_window() {
        let mut rate = Rate::default();
        for ms in 0..100_000 {
            rate.sample(Duration::from_millis(ms), ms);
        }
        assert!(rate.samples.len() <= 52, "{}", rate.samples.len());
        assert_eq!(rate.per_second(Duration::from_millis(99_999)), 1_000.0);
    }
}
