//! The verdicts of `/healthz` and `/readyz`: pure functions of the status document.

use super::status::{SourceState, Status};

/// Behind and without a sign of progress for this long is a stall. Longer than any pause that heals by itself (a
/// reconnect, a checkpoint of the sink), short enough to act on.
pub const STALL_SECONDS: f64 = 60.0;

/// An answer for a supervisor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Good,
    /// One line saying why not.
    Bad(String),
}

impl Verdict {
    fn from_reasons(reasons: Vec<String>) -> Verdict {
        if reasons.is_empty() { Verdict::Good } else { Verdict::Bad(reasons.join("; ")) }
    }
}

/// Bad if a source is halted, or if WAL moved and a sink's checkpoint did not while the source was connected. A source
/// that cannot be reached is no stall, and neither is a sink that did not answer at the start: starting this daemon again
/// would not bring it back.
pub fn healthz(status: &Status) -> Verdict {
    let halted = status.sources.iter().filter_map(|source| match &source.state {
        SourceState::Halted { reason, .. } => Some(format!("source {} is halted: {reason}", source.source)),
        SourceState::Connecting
        | SourceState::Waiting
        | SourceState::Standby
        | SourceState::Streaming
        | SourceState::PausedByJournal => None,
    });
    let stalled = status.pairs.iter().filter(|pair| pair.waiting.is_none()).filter_map(|pair| {
        let connected = status.source(&pair.source).is_some_and(|source| source.state.is_connected());
        (connected && pair.stalled_seconds >= STALL_SECONDS).then(|| {
            format!(
                "sink {} stands at {} of source {} for {:.0} s, {} bytes behind",
                pair.sink, pair.checkpoint, pair.source, pair.stalled_seconds, pair.lag_bytes
            )
        })
    });
    Verdict::from_reasons(halted.chain(stalled).collect())
}

/// Good once every source is streaming, and no sink of it is still to pass the start-up checks. A hot standby is not ready, so
/// that traffic and roll-outs wait for the holder.
pub fn readyz(status: &Status) -> Verdict {
    if status.sources.is_empty() {
        return Verdict::Bad("starting".into());
    }
    if status.sources.iter().all(|source| source.state == SourceState::Standby) {
        return Verdict::Bad("standby".into());
    }
    let waiting = status.sources.iter().filter(|source| !source.state.is_connected());
    let waiting = waiting.map(|source| format!("source {} is {}", source.source, source.state.as_str()));
    let without = status.pairs.iter().filter_map(|pair| {
        let connected = status.source(&pair.source).is_some_and(|source| source.state.is_connected());
        let for_whom = pair.waiting.as_ref().filter(|_| connected)?;
        Some(format!("source {} goes on without {for_whom}", pair.source))
    });
    Verdict::from_reasons(waiting.chain(without).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::telemetry::status::{PairStatus, SourceStatus};

    fn status(state: SourceState, stalled_seconds: f64) -> Status {
        Status {
            sources: vec![SourceStatus { source: "lms".into(), state, ..SourceStatus::default() }],
            pairs: vec![PairStatus {
                source: "lms".into(),
                sink: "warehouse".into(),
                checkpoint: Lsn(0x10),
                lag_bytes: 99,
                stalled_seconds,
                ..PairStatus::default()
            }],
            ..Status::default()
        }
    }

    fn halted() -> SourceState {
        SourceState::Halted { reason: "slot_lost".into(), hint: "Copy again.".into() }
    }

    #[test]
    fn a_stall_of_a_connected_source_is_unhealthy_after_a_minute() {
        assert_eq!(healthz(&status(SourceState::Streaming, 59.9)), Verdict::Good);
        let reason = "sink warehouse stands at 0/10 of source lms for 60 s, 99 bytes behind";
        assert_eq!(healthz(&status(SourceState::Streaming, 60.0)), Verdict::Bad(reason.into()));
        assert!(matches!(healthz(&status(SourceState::PausedByJournal, 61.0)), Verdict::Bad(_)));
    }

    #[test]
    fn an_unreachable_source_and_a_standby_are_healthy() {
        assert_eq!(healthz(&status(SourceState::Connecting, 500.0)), Verdict::Good);
        assert_eq!(healthz(&status(SourceState::Standby, 500.0)), Verdict::Good);
    }

    #[test]
    fn what_did_not_answer_at_the_start_is_unready_and_no_stall() {
        let mut without = status(SourceState::Streaming, 500.0);
        without.pairs[0].waiting = Some("sink \"warehouse\"".into());
        assert_eq!(healthz(&without), Verdict::Good);
        assert_eq!(readyz(&without), Verdict::Bad("source lms goes on without sink \"warehouse\"".into()));
        let mut absent = status(SourceState::Waiting, 500.0);
        absent.pairs[0].waiting = Some("source \"lms\"".into());
        assert_eq!(healthz(&absent), Verdict::Good);
        assert_eq!(readyz(&absent), Verdict::Bad("source lms is waiting".into()));
    }

    #[test]
    fn a_halt_is_unhealthy_and_unready() {
        assert_eq!(healthz(&status(halted(), 0.0)), Verdict::Bad("source lms is halted: slot_lost".into()));
        assert_eq!(readyz(&status(halted(), 0.0)), Verdict::Bad("source lms is halted".into()));
    }

    #[test]
    fn ready_means_that_every_source_streams() {
        assert_eq!(readyz(&Status::default()), Verdict::Bad("starting".into()));
        assert_eq!(readyz(&status(SourceState::Connecting, 0.0)), Verdict::Bad("source lms is connecting".into()));
        assert_eq!(readyz(&status(SourceState::Standby, 0.0)), Verdict::Bad("standby".into()));
        assert_eq!(readyz(&status(SourceState::Streaming, 0.0)), Verdict::Good);
        assert_eq!(readyz(&status(SourceState::PausedByJournal, 0.0)), Verdict::Good);
        let mut two = status(SourceState::Streaming, 0.0);
        two.sources.push(SourceStatus { source: "crm".into(), ..SourceStatus::default() });
        assert_eq!(readyz(&two), Verdict::Bad("source crm is connecting".into()));
    }
}
