//! Every line of the start-up table, and the properties that hold over all of them.

use proptest::prelude::*;

use super::{decide as decide_with, *};

/// Every sink answered.
fn decide(read: &[SinkState], journal: Option<JournalRange>, ack: Ack, source: &SourceFacts) -> Verdict {
    decide_with(Sinks { read, unread: &[] }, journal, ack, source)
}

/// Another sink did not.
fn decide_without(read: &[SinkState], journal: Option<JournalRange>, ack: Ack, source: &SourceFacts) -> Verdict {
    decide_with(Sinks { read, unread: &["away".to_owned()] }, journal, ack, source)
}

fn identity() -> SourceIdentity {
    SourceIdentity { system_identifier: 7, timeline: 2, database: "lms".into(), slot: "tail".into() }
}

fn sink(end_lsn: u64) -> SinkState {
    let lsn = Lsn(end_lsn);
    SinkState {
        name: "dwh".into(),
        checkpoint: Some(Checkpoint { commit_lsn: lsn, end_lsn: lsn, ordinal: 1, commit_ts: None }),
        identity: Some(identity()),
        tables_known: true,
    }
}

fn blank() -> SinkState {
    SinkState { name: "new".into(), ..SinkState::default() }
}

fn slot(confirmed_flush: u64) -> SlotFacts {
    SlotFacts { confirmed_flush: Some(Lsn(confirmed_flush)), active: false, lost: None }
}

/// A source at 1000 whose slot has confirmed 100.
fn source() -> SourceFacts {
    SourceFacts {
        identity: identity(),
        flush_lsn: Lsn(1000),
        slot: Some(slot(100)),
        publication: "pub".into(),
        publication_exists: true,
        history: None,
    }
}

fn journal(first: u64, end: u64) -> Option<JournalRange> {
    Some(JournalRange { first: Lsn(first), end: Lsn(end), timeline: None })
}

#[track_caller]
fn halts(verdict: Verdict, code: &str, exit_code: u8, message: &str) {
    let Verdict::Halt(halt) = verdict else { panic!("expected {code}, got {verdict:?}") };
    assert_eq!((halt.code(), halt.exit_code()), (code, exit_code));
    assert_eq!(halt.to_string(), message);
    assert!(halt.hint().ends_with('.'));
}

#[test]
fn nothing_anywhere_bootstraps() {
    let source = SourceFacts { slot: None, publication_exists: false, ..source() };
    assert_eq!(decide(&[blank()], None, Ack::Sink, &source), Verdict::Bootstrap { at: None });
}

#[test]
fn fresh_slot_is_adopted() {
    assert_eq!(decide(&[blank()], None, Ack::Sink, &source()), Verdict::Bootstrap { at: Some(Lsn(100)) });
    // A journal left from elsewhere must not move the start.
    assert_eq!(decide(&[], journal(1, 500), Ack::Journal, &source()), Verdict::Bootstrap { at: Some(Lsn(100)) });
}

#[test]
fn h17_missing_slot_halts() {
    let source = SourceFacts { slot: None, ..source() };
    let message = "replication slot \"tail\" does not exist, but sink \"dwh\" holds changes up to 0/64";
    halts(decide(&[sink(100)], None, Ack::Sink, &source), "slot_missing", 10, message);
}

#[test]
fn h18_lost_slot_halts_even_while_active() {
    let lost = SlotFacts { lost: Some("wal_removed".into()), active: true, ..slot(100) };
    let source = SourceFacts { slot: Some(lost), ..source() };
    let message = "replication slot \"tail\" is lost (wal_removed), changes from 0/C8 on are gone";
    halts(decide(&[sink(200)], None, Ack::Sink, &source), "slot_lost", 11, message);
}

#[test]
fn h01_slot_past_the_sink_halts() {
    let source = SourceFacts { slot: Some(slot(101)), ..source() };
    let message = "changes from 0/64 to 0/65 are gone: the slot has passed them and neither sink \"dwh\" nor the journal has them";
    halts(decide(&[sink(100)], None, Ack::Sink, &source), "gap", 12, message);
    assert_eq!(decide(&[sink(101)], None, Ack::Sink, &source), Verdict::Resume { at: Lsn(101) });
}

#[test]
fn h01_the_slowest_sink_rules() {
    let source = SourceFacts { slot: Some(slot(150)), ..source() };
    let verdict = decide(&[sink(200), sink(149)], None, Ack::Sink, &source);
    assert!(matches!(verdict, Verdict::Halt(Halt::Gap { from: Lsn(149), .. })), "{verdict:?}");
    assert_eq!(decide(&[sink(200), sink(150)], None, Ack::Sink, &source), Verdict::Resume { at: Lsn(150) });
    assert_eq!(decide(&[sink(200), blank()], None, Ack::Sink, &source), Verdict::Resume { at: Lsn(200) });
}

#[test]
fn sink_that_lost_its_checkpoint_row_is_a_gap() {
    let state = SinkState { checkpoint: None, ..sink(0) };
    let verdict = decide(&[state], None, Ack::Sink, &source());
    assert!(matches!(verdict, Verdict::Halt(Halt::Gap { from: Lsn::ZERO, to: Lsn(100), .. })), "{verdict:?}");
}

#[test]
fn h07_journal_fills_what_the_slot_has_passed() {
    let source = SourceFacts { slot: Some(slot(400)), ..source() };
    for ack in [Ack::Sink, Ack::Journal] {
        // (journal, where the stream resumes or the gap ends)
        let cases = [
            (journal(100, 400), Ok(400)),
            (journal(50, 500), Ok(500)),
            (journal(100, 399), Err(399)),
            (journal(101, 500), Err(100)),
            (journal(50, 99), Err(100)),
            (None, Err(100)),
        ];
        for (journal, expected) in cases {
            let verdict = decide(&[sink(100)], journal, ack, &source);
            let matched = match (&verdict, expected) {
                (Verdict::Resume { at }, Ok(end)) => at.0 == end,
                (Verdict::Halt(Halt::Gap { from, to, .. }), Err(start)) => (from.0, to.0) == (start, 400),
                _ => false,
            };
            assert!(matched, "{journal:?}: {verdict:?}");
        }
    }
}

#[test]
fn journal_that_the_sink_has_passed_is_not_resumed() {
    assert_eq!(decide(&[sink(300)], journal(50, 200), Ack::Sink, &source()), Verdict::Resume { at: Lsn(300) });
}

#[test]
fn h02_source_behind_sink_or_journal_halts() {
    let message = "the source's WAL ends at 0/3E8, before 0/3E9 that sink \"dwh\" holds already";
    halts(decide(&[sink(1001)], None, Ack::Sink, &source()), "source_behind", 13, message);
    let message = "the source's WAL ends at 0/3E8, before 0/3E9 that the journal holds already";
    halts(decide(&[sink(200)], journal(100, 1001), Ack::Sink, &source()), "source_behind", 13, message);
    assert_eq!(decide(&[sink(1000)], None, Ack::Sink, &source()), Verdict::Resume { at: Lsn(1000) });
}

#[test]
fn h26_fork_below_the_sink_halts() {
    let on_timeline_one = |end_lsn| {
        let old = SourceIdentity { timeline: 1, ..identity() };
        SinkState { identity: Some(old), ..sink(end_lsn) }
    };
    let forked = TimelineSwitch { timeline: 1, left_at: Lsn(300) };
    let source = SourceFacts { history: Some(vec![forked]), ..source() };
    assert_eq!(decide(&[on_timeline_one(300)], None, Ack::Sink, &source), Verdict::Resume { at: Lsn(300) });
    let message = "the source is on timeline 2 and left that history at 0/12C, before 0/12D that sink \"dwh\" holds of timeline 1";
    halts(decide(&[on_timeline_one(301)], None, Ack::Sink, &source), "diverged", 14, message);
}

#[test]
fn h26_fork_below_the_journal_halts_unless_the_journal_went_on_after_it() {
    let old = SinkState { identity: Some(SourceIdentity { timeline: 1, ..identity() }), ..sink(200) };
    let history = Some(vec![TimelineSwitch { timeline: 1, left_at: Lsn(300) }]);
    let source = SourceFacts { history, ..source() };
    let cases = [(None, 300, true), (None, 301, false), (Some(1), 301, false), (Some(2), 301, true)];
    for (timeline, end, resumes) in cases {
        let journal = JournalRange { first: Lsn(100), end: Lsn(end), timeline };
        let verdict = decide(std::slice::from_ref(&old), Some(journal), Ack::Journal, &source);
        let expected = if resumes {
            matches!(verdict, Verdict::Resume { at } if at.0 == end)
        } else {
            matches!(verdict, Verdict::Halt(Halt::Diverged { fork: Some(Lsn(300)), .. }))
        };
        assert!(expected, "{journal:?}: {verdict:?}");
    }
}

#[test]
fn h26_unknown_or_newer_timeline_halts() {
    let message =
        "the source is on timeline 2 and does not know that history, before 0/C8 that sink \"dwh\" holds of timeline 3";
    let newer = SinkState { identity: Some(SourceIdentity { timeline: 3, ..identity() }), ..sink(200) };
    halts(decide(std::slice::from_ref(&newer), None, Ack::Sink, &source()), "diverged", 14, message);
    let history = Some(vec![TimelineSwitch { timeline: 1, left_at: Lsn(900) }]);
    halts(decide(&[newer], None, Ack::Sink, &SourceFacts { history, ..source() }), "diverged", 14, message);
}

#[test]
fn h27_another_system_halts_before_anything_else() {
    let cases = [
        (
            SourceIdentity { system_identifier: 8, ..identity() },
            "sink \"dwh\" holds data of system 8, the source is system 7",
        ),
        (
            SourceIdentity { database: "hr".into(), ..identity() },
            "sink \"dwh\" holds data of database \"hr\", the source is database \"lms\"",
        ),
        (
            SourceIdentity { slot: "old".into(), ..identity() },
            "sink \"dwh\" holds data of slot \"old\", the source is slot \"tail\"",
        ),
    ];
    for (other, message) in cases {
        let state = SinkState { identity: Some(other), ..sink(5000) };
        let source = SourceFacts { slot: None, publication_exists: false, ..source() };
        halts(decide(&[state], None, Ack::Sink, &source), "other_system", 15, message);
    }
}

#[test]
fn h28_missing_publication_halts() {
    let source = SourceFacts { publication_exists: false, ..source() };
    let message = "publication \"pub\" does not exist, but replication slot \"tail\" does";
    halts(decide(&[sink(200)], None, Ack::Sink, &source), "publication_gone", 16, message);
    halts(decide(&[blank()], None, Ack::Sink, &source), "publication_gone", 16, message);
}

#[test]
fn h14_slot_in_use_stands_by() {
    let active = SlotFacts { active: true, ..slot(500) };
    let source = SourceFacts { slot: Some(active), ..source() };
    // The other daemon has confirmed past what was read here a moment ago: no gap.
    assert_eq!(decide(&[sink(200)], None, Ack::Sink, &source), Verdict::StandBy);
    let unfinished = SlotFacts { confirmed_flush: None, ..slot(0) };
    assert_eq!(
        decide(&[blank()], None, Ack::Sink, &SourceFacts { slot: Some(unfinished), ..source }),
        Verdict::StandBy
    );
}

#[test]
fn h01_stream_begins_where_the_sink_that_is_away_may_need_it() {
    // (sinks that answered, journal, where the stream resumes); the slot has confirmed 100.
    let cases = [
        // Without a journal the slot alone has it.
        (vec![sink(300)], None, 100),
        (vec![sink(300), sink(200)], None, 100),
        (vec![blank()], None, 100),
        // A journal that goes on from there, whether or not it has come to where the others are.
        (vec![sink(300)], journal(50, 400), 400),
        (vec![sink(300)], journal(100, 200), 200),
        (vec![blank()], journal(50, 400), 400),
        // What the slot still has of it was not told in time; no sink can be there.
        (vec![sink(300)], journal(150, 400), 400),
        // A journal that lacks what follows is of no use.
        (vec![sink(300)], journal(20, 99), 100),
        (vec![blank()], journal(20, 99), 100),
    ];
    for (sinks, journal, expected) in cases {
        for ack in [Ack::Sink, Ack::Journal] {
            let verdict = decide_without(&sinks, journal, ack, &source());
            assert_eq!(verdict, Verdict::Resume { at: Lsn(expected) }, "{sinks:?} {journal:?}");
        }
    }
}

#[test]
fn what_answered_is_judged_without_the_sink_that_is_away() {
    let beyond = SourceFacts { slot: Some(slot(400)), ..source() };
    let gap = decide_without(&[sink(300)], None, Ack::Sink, &beyond);
    assert!(matches!(gap, Verdict::Halt(Halt::Gap { from: Lsn(300), to: Lsn(400), .. })), "{gap:?}");
    let healed = decide_without(&[sink(300)], journal(300, 400), Ack::Sink, &beyond);
    assert_eq!(healed, Verdict::Resume { at: Lsn(400) });
    let behind = decide_without(&[sink(1001)], None, Ack::Sink, &source());
    assert!(matches!(behind, Verdict::Halt(Halt::SourceBehind { .. })), "{behind:?}");
    let behind = decide_without(&[blank()], journal(50, 1001), Ack::Sink, &source());
    assert!(matches!(behind, Verdict::Halt(Halt::SourceBehind { .. })), "{behind:?}");
    let unmade = SourceFacts { slot: None, ..source() };
    assert_eq!(decide_without(&[blank()], None, Ack::Sink, &unmade), Verdict::Bootstrap { at: None });
    let missing = decide_without(&[sink(200)], None, Ack::Sink, &unmade);
    assert!(matches!(missing, Verdict::Halt(Halt::SlotMissing { .. })), "{missing:?}");
}

#[test]
fn fenced_has_its_own_code() {
    let halt = Halt::Fenced { sink: "dwh".into() };
    halts(Verdict::Halt(halt), "fenced", 17, "another daemon took over sink \"dwh\"");
}

#[test]
fn gap_hint_names_the_journal_only_where_it_matters() {
    let gap = |ack| Halt::Gap { sink: "dwh".into(), from: Lsn(1), to: Lsn(2), ack };
    assert!(gap(Ack::Journal).hint().contains("journal's directory"));
    assert!(!gap(Ack::Sink).hint().contains("journal"));
}

#[test]
fn history_is_read() {
    let text = "1\t0/A000100\tno recovery target specified\n\n# note\n2\t0/B0000D8\tat restore point \"x\"\n";
    let switches = read_history(text).expect("well formed");
    assert_eq!(
        switches.iter().map(|switch| (switch.timeline, switch.left_at.0)).collect::<Vec<_>>(),
        [(1, 0xA00_0100), (2, 0xB00_00D8)]
    );
    assert_eq!(read_history("1\t0/1\tx\n2 nonsense\n"), Err(HistoryError(2)));
}

proptest! {
    /// Whatever the positions: resuming never leaves out a change that no sink and no journal has, and never starts
    /// beyond what the source has.
    #[test]
    fn resume_never_jumps(
        ends in prop::collection::vec(0_u64..40, 1..4), confirmed in 0_u64..40, flush in 0_u64..40,
        first in 0_u64..40, length in 0_u64..40, ack in prop::sample::select(vec![Ack::Sink, Ack::Journal]),
    ) {
        let sinks: Vec<_> = ends.iter().map(|end| sink(*end)).collect();
        let source = SourceFacts { slot: Some(slot(confirmed)), flush_lsn: Lsn(flush), ..source() };
        if let Verdict::Resume { at } = decide(&sinks, journal(first, first + length), ack, &source) {
            let lowest = *ends.iter().min().expect("at least one");
            prop_assert!(confirmed <= at.0 && at.0 <= flush);
            prop_assert!(ends.iter().all(|end| *end <= flush));
            prop_assert!(at.0 == lowest || (first <= lowest && at.0 == first + length));
        }
    }

    /// What a sink that is away may need, from the slot's position on, comes either from the journal or from the stream.
    #[test]
    fn resume_without_a_sink_leaves_nothing_out_for_it(
        ends in prop::collection::vec(prop::option::of(0_u64..40), 1..4), confirmed in 0_u64..40, flush in 0_u64..40,
        held in prop::option::of((0_u64..40, 0_u64..40)), ack in prop::sample::select(vec![Ack::Sink, Ack::Journal]),
    ) {
        let sinks: Vec<_> = ends.iter().map(|end| end.map_or_else(blank, sink)).collect();
        let source = SourceFacts { slot: Some(slot(confirmed)), flush_lsn: Lsn(flush), ..source() };
        let held = held.map(|(first, length)| (first, first + length));
        let range = held.and_then(|(first, end)| journal(first, end));
        if let Verdict::Resume { at } = decide_without(&sinks, range, ack, &source) {
            prop_assert!(confirmed <= at.0 && (at.0 <= flush || ends.iter().all(Option::is_none)));
            let begins_anew = at.0 == confirmed;
            let goes_on = held.is_some_and(|(first, end)| {
                at.0 == end && ends.iter().flatten().all(|end| first <= *end)
            });
            prop_assert!(begins_anew || goes_on, "{at} of {held:?}");
        }
    }

    #[test]
    fn arbitrary_history_never_panics(text: String) {
        let _ = read_history(&text);
    }
}
