//! When a sink that is free should wait for more.

use std::time::Instant;

use super::Session;

impl Session {
    /// The sink is free and has work, and yet more is worth waiting for.
    pub(super) fn is_gathering(&self) -> bool {
        self.applying.is_none() && !self.builder.is_empty() && Instant::now() < self.gathers_until()
    }

    pub(super) fn gathers_until(&self) -> Instant {
        let by_backlog = self.free_since + self.builder.gathers_for();
        let is_due = self.builder.is_full() || self.is_joining();
        if is_due { by_backlog } else { by_backlog.max(self.started_at + self.pace.of(&self.builder)) }
    }

    /// Copied tables wait for the sink to have all that was taken: no more is taken until they have joined.
    pub(super) fn is_joining(&self) -> bool {
        !self.queue.is_empty() && self.builder.at_boundary()
    }
}
