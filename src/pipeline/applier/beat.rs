//! Signs of life of a sink that has nothing to apply.

use std::time::{Duration, Instant};

use super::{Applier, Over, STALL, Session};
use crate::sink::any::AnySink;

impl Session {
    /// When it is to be looked at the latest whether something is due.
    pub(super) fn looks_in_at(&self, idle_record: Duration) -> Instant {
        let look_in = self.looked_at + idle_record.min(STALL);
        let beats_at = self.sink.as_ref().and_then(AnySink::heartbeat_due_at);
        beats_at.map_or(look_in, |beats_at| look_in.min(beats_at))
    }
}

impl Applier {
    /// Those behind the sink may want to hear that it is there.
    pub(super) async fn beat(&mut self, session: &mut Session) -> Result<(), Over> {
        let Some(sink) = &mut session.sink else { return Ok(()) };
        match sink.heartbeat().await {
            Ok(()) => Ok(()),
            Err(error) => self.failed(session, error).await,
        }
    }
}
