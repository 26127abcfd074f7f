//! What to do at start, from what the sinks, the journal and the source say. Pure: the same facts, the same verdict.
//!
//! S is what a sink holds, J the journal's end, C the slot's `confirmed_flush_lsn`, W the source's flushed end of WAL, F
//! where the source left the timeline on which S (or J) was reached. The first line that fits decides:
//!
//! | facts | verdict |
//! |---|---|
//! | a sink holds another system's, database's or slot's data | halt `other_system` |
//! | no slot, no sink holds anything | bootstrap, slot to be made |
//! | no slot | halt `slot_missing` |
//! | slot invalidated | halt `slot_lost` |
//! | slot but no publication | halt `publication_gone` |
//! | slot in use | stand by |
//! | no sink holds anything | bootstrap from C |
//! | S > W, or J > W | halt `source_behind` |
//! | F < S, F < J, or F unknown | halt `diverged` |
//! | C > S, and C > J or the journal does not reach back to S | halt `gap` |
//! | else | resume at the later of S and J |
//!
//! A sink that does not answer is left out: what it holds is judged when it comes back, with all others again. Until then it
//! may need everything from C on, for the source was told no more than it holds. So the stream resumes at J if J >= C, and
//! else not behind C, even if no sink that answered needs what comes there.
//!
//! The server takes any start position without complaint: below C it silently forwards, above W it silently skips. So
//! nothing here may be left to it. Read the sinks first and the slot after: a slot only moves up.

use crate::checkpoint::{Checkpoint, SourceIdentity};
use crate::lsn::Lsn;

/// What one sink durably says of this source.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SinkState {
    /// The `[sink.NAME]`.
    pub name: String,
    pub checkpoint: Option<Checkpoint>,
    /// Whose checkpoint it is.
    pub identity: Option<SourceIdentity>,
    /// The sink has state of at least one table of this source.
    pub tables_known: bool,
}

impl SinkState {
    fn timeline(&self) -> Option<u32> {
        self.identity.as_ref().map(|identity| identity.timeline)
    }

    fn is_blank(&self) -> bool {
        self.checkpoint.is_none() && !self.tables_known
    }

    /// Where the sink stands; at the very beginning if it holds tables but no longer knows.
    fn end_lsn(&self) -> Lsn {
        self.checkpoint.map_or(Lsn::ZERO, |checkpoint| checkpoint.end_lsn)
    }
}

/// All sinks that have tables of the source.
#[derive(Clone, Copy, Debug)]
pub struct Sinks<'a> {
    pub read: &'a [SinkState],
    /// Names of those that do not answer.
    pub unread: &'a [String],
}

/// When the slot advances.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ack {
    Sink,
    Journal,
}

/// What the journal holds: every change from `first` up to `end`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalRange {
    pub first: Lsn,
    pub end: Lsn,
    /// The source's timeline when `end` was written; if nobody noted it, the lowest sink's is taken, the older guess.
    pub timeline: Option<u32>,
}

/// The configured slot as the source has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotFacts {
    /// `None` while the slot is being made.
    pub confirmed_flush: Option<Lsn>,
    pub active: bool,
    /// Why nothing can be read from it any more.
    pub lost: Option<String>,
}

/// A timeline that the source has left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimelineSwitch {
    pub timeline: u32,
    /// What this timeline wrote from here on, the source does not have.
    pub left_at: Lsn,
}

/// A line of a timeline history file is not `timeline LSN reason`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("timeline history is malformed at line {0}")]
pub struct HistoryError(pub usize);

/// Reads what `TIMELINE_HISTORY` answers: one line for each timeline left, oldest first.
pub fn read_history(text: &str) -> Result<Vec<TimelineSwitch>, HistoryError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(line_idx, line)| {
            let mut words = line.split_whitespace();
            let timeline = words.next().and_then(|word| word.parse().ok());
            let left_at = words.next().and_then(|word| word.parse().ok());
            match (timeline, left_at) {
                (Some(timeline), Some(left_at)) => Ok(TimelineSwitch { timeline, left_at }),
                _ => Err(HistoryError(line_idx + 1)),
            }
        })
        .collect()
}

/// The source as it answered now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceFacts {
    /// With the slot's configured name.
    pub identity: SourceIdentity,
    pub flush_lsn: Lsn,
    pub slot: Option<SlotFacts>,
    pub publication: String,
    pub publication_exists: bool,
    /// History of the current timeline; needed only if a sink knows an older one.
    pub history: Option<Vec<TimelineSwitch>>,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No sink holds anything: copy all tables and stream from here. `None`: the slot must be made first.
    Bootstrap {
        at: Option<Lsn>,
    },
    /// START_REPLICATION here. A journal that does not end exactly here has no use any more and begins anew.
    Resume {
        at: Lsn,
    },
    /// Another session streams from the slot: wait until it is gone, then ask again.
    StandBy,
    Halt(Halt),
}

/// Why the daemon must not go on. Each has its own name, exit code and way out.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Halt {
    #[error("replication slot \"{slot}\" does not exist, but sink \"{sink}\" holds changes up to {at}")]
    SlotMissing { slot: String, sink: String, at: Lsn },
    #[error("replication slot \"{slot}\" is lost ({reason}), changes from {from} on are gone")]
    SlotLost { slot: String, reason: String, from: Lsn },
    #[error(
        "changes from {from} to {to} are gone: the slot has passed them and neither sink \"{sink}\" nor the journal has them"
    )]
    Gap { sink: String, from: Lsn, to: Lsn, ack: Ack },
    #[error("the source's WAL ends at {flush_lsn}, before {at} that {holder} holds already")]
    SourceBehind { holder: String, at: Lsn, flush_lsn: Lsn },
    #[error("the source is on timeline {timeline} and {}, before {at} that {holder} holds of timeline {old_timeline}", left(*.fork))]
    Diverged { holder: String, at: Lsn, old_timeline: u32, timeline: u32, fork: Option<Lsn> },
    #[error("sink \"{sink}\" holds data of {what} {expected}, the source is {what} {found}")]
    OtherSystem { sink: String, what: &'static str, expected: String, found: String },
    #[error("publication \"{publication}\" does not exist, but replication slot \"{slot}\" does")]
    PublicationGone { publication: String, slot: String },
    #[error("another daemon took over sink \"{sink}\"")]
    Fenced { sink: String },
}

fn left(fork: Option<Lsn>) -> String {
    match fork {
        Some(fork) => format!("left that history at {fork}"),
        None => "does not know that history".to_owned(),
    }
}

impl Halt {
    /// Stable name, for the metric and for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Halt::SlotMissing { .. } => "slot_missing",
            Halt::SlotLost { .. } => "slot_lost",
            Halt::Gap { .. } => "gap",
            Halt::SourceBehind { .. } => "source_behind",
            Halt::Diverged { .. } => "diverged",
            Halt::OtherSystem { .. } => "other_system",
            Halt::PublicationGone { .. } => "publication_gone",
            Halt::Fenced { .. } => "fenced",
        }
    }

    /// Documented, and never given to another cause.
    pub fn exit_code(&self) -> u8 {
        match self {
            Halt::SlotMissing { .. } => 10,
            Halt::SlotLost { .. } => 11,
            Halt::Gap { .. } => 12,
            Halt::SourceBehind { .. } => 13,
            Halt::Diverged { .. } => 14,
            Halt::OtherSystem { .. } => 15,
            Halt::PublicationGone { .. } => 16,
            Halt::Fenced { .. } => 17,
        }
    }

    /// The way out, as a sentence.
    pub fn hint(&self) -> &'static str {
        match self {
            Halt::SlotMissing { .. } => {
                "If the source failed over, go back to the server that has the slot. Else start over: see \"Starting over\" \
                 in the README."
            }
            Halt::SlotLost { .. } => {
                "Start over: see \"Starting over\" in the README; then raise max_slot_wal_keep_size, or set ack = \"journal\"."
            }
            Halt::Gap { ack: Ack::Sink, .. } => {
                "If the sink was restored, restore a later state of it. Else start over: see \"Starting over\" in the README."
            }
            Halt::Gap { ack: Ack::Journal, .. } => {
                "Bring back the journal's directory: with ack = \"journal\" it alone holds what the sinks do not have yet. \
                 Else start over: see \"Starting over\" in the README."
            }
            Halt::SourceBehind { .. } | Halt::Diverged { .. } => {
                "The source was restored or failed over to a server that lacked changes, so the sink holds rows that the \
                 source never had. Point at the right server, or start over: see \"Starting over\" in the README."
            }
            Halt::OtherSystem { .. } => {
                "Check the source's url and slot. If the change is meant, give the source a new name or start over: see \
                 \"Starting over\" in the README."
            }
            Halt::PublicationGone { .. } => {
                "Changes made without the publication cannot be read. Start over: see \"Starting over\" in the README."
            }
            Halt::Fenced { .. } => "Run one daemon for each source, or let this one wait as standby.",
        }
    }
}

/// The start-up decision: see the table above.
pub fn decide(sinks: Sinks<'_>, journal: Option<JournalRange>, ack: Ack, source: &SourceFacts) -> Verdict {
    match examine(sinks, journal, ack, source) {
        Ok(verdict) => verdict,
        Err(halt) => Verdict::Halt(halt),
    }
}

fn examine(sinks: Sinks<'_>, journal: Option<JournalRange>, ack: Ack, source: &SourceFacts) -> Result<Verdict, Halt> {
    for sink in sinks.read {
        same_system(sink, &source.identity)?;
    }
    // A blank sink beside one that is not: its tables are copied while the stream goes on from the other's position.
    let lowest = sinks.read.iter().filter(|sink| !sink.is_blank()).min_by_key(|sink| sink.end_lsn());
    let slot_name = source.identity.slot.clone();
    let slot = match (&source.slot, lowest) {
        (Some(slot), _) => slot,
        (None, None) => return Ok(Verdict::Bootstrap { at: None }),
        (None, Some(sink)) => {
            return Err(Halt::SlotMissing { slot: slot_name, sink: sink.name.clone(), at: sink.end_lsn() });
        }
    };
    if let Some(reason) = &slot.lost {
        let from = lowest.map_or(slot.confirmed_flush.unwrap_or_default(), SinkState::end_lsn);
        return Err(Halt::SlotLost { slot: slot_name, reason: reason.clone(), from });
    }
    if !source.publication_exists {
        return Err(Halt::PublicationGone { publication: source.publication.clone(), slot: slot_name });
    }
    // Sinks and slot move under whoever streams now, so comparing them would prove nothing.
    let confirmed_flush = match slot.confirmed_flush {
        Some(confirmed_flush) if !slot.active => confirmed_flush,
        _ => return Ok(Verdict::StandBy),
    };
    for sink in sinks.read {
        same_history(format!("sink \"{}\"", sink.name), sink.end_lsn(), sink.timeline(), source)?;
    }
    let unread_from = (!sinks.unread.is_empty()).then_some(confirmed_flush);
    let Some(lowest) = lowest else {
        return match unread_from {
            None => Ok(Verdict::Bootstrap { at: Some(confirmed_flush) }),
            Some(_) => Ok(Verdict::Resume { at: reach(None, unread_from, journal, source)? }),
        };
    };
    let at = reach(Some(lowest), unread_from, journal, source)?;
    if confirmed_flush > at {
        return Err(Halt::Gap { sink: lowest.name.clone(), from: at, to: confirmed_flush, ack });
    }
    Ok(Verdict::Resume { at })
}

/// Up to where nothing is missing: the journal's end if the journal reaches back to the sink, else the sink itself. A sink
/// that was not read may need what comes after `unread_from`, so the stream does not begin behind that; what it needs from
/// before, the journal has kept.
fn reach(
    lowest: Option<&SinkState>,
    unread_from: Option<Lsn>,
    journal: Option<JournalRange>,
    source: &SourceFacts,
) -> Result<Lsn, Halt> {
    let sink_end = lowest.map(SinkState::end_lsn);
    let goes_on = |journal: &JournalRange| {
        sink_end.is_none_or(|end| journal.first <= end)
            && (sink_end.is_some_and(|end| end <= journal.end) || unread_from.is_some_and(|from| from <= journal.end))
    };
    match journal.filter(goes_on) {
        Some(journal) => {
            let timeline = journal.timeline.or(lowest.and_then(SinkState::timeline));
            same_history("the journal".to_owned(), journal.end, timeline, source)?;
            Ok(journal.end)
        }
        None => Ok(sink_end.into_iter().chain(unread_from).min().unwrap_or(Lsn::ZERO)),
    }
}

fn same_system(sink: &SinkState, found: &SourceIdentity) -> Result<(), Halt> {
    let Some(expected) = &sink.identity else { return Ok(()) };
    let pairs = [
        ("system", expected.system_identifier.to_string(), found.system_identifier.to_string()),
        ("database", format!("\"{}\"", expected.database), format!("\"{}\"", found.database)),
        ("slot", format!("\"{}\"", expected.slot), format!("\"{}\"", found.slot)),
    ];
    match pairs.into_iter().find(|(_, expected, found)| expected != found) {
        None => Ok(()),
        Some((what, expected, found)) => Err(Halt::OtherSystem { sink: sink.name.clone(), what, expected, found }),
    }
}

/// The source still has everything up to `at` that was taken from it on `old_timeline`.
fn same_history(holder: String, at: Lsn, old_timeline: Option<u32>, source: &SourceFacts) -> Result<(), Halt> {
    if at > source.flush_lsn {
        return Err(Halt::SourceBehind { holder, at, flush_lsn: source.flush_lsn });
    }
    let timeline = source.identity.timeline;
    let Some(old_timeline) = old_timeline.filter(|old| *old != timeline) else { return Ok(()) };
    // A timeline that the source has never been on, be it newer or from another branch, stands in no history of its own.
    let history = source.history.as_deref().unwrap_or_default();
    let fork = history.iter().find(|switch| switch.timeline == old_timeline).map(|switch| switch.left_at);
    match fork {
        Some(fork) if at <= fork => Ok(()),
        _ => Err(Halt::Diverged { holder, at, old_timeline, timeline, fork }),
    }
}

#[cfg(test)]
mod tests;
