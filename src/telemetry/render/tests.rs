//! What `tailwater status` prints, letter by letter.

use super::*;
use crate::telemetry::status::{ErrorStatus, JournalStatus, PairStatus, SourceStatus, ViewStatus};

fn document() -> Status {
    let table = |table: &str, state, copy| TableStatus {
        source: "lms".into(),
        sink: "warehouse".into(),
        table: table.into(),
        state,
        rows: 12_345,
        lag_seconds: 0.035,
        copy,
        reason: None,
    };
    let copy =
        CopyStatus { copied_rows: 53_000, estimated_rows: 100_000, rows_per_second: 23_500.0, eta_seconds: Some(2.0) };
    Status {
        version: "0.1.0".into(),
        at: "2026-03-01T09:30:00Z".into(),
        uptime_seconds: 3_780.0,
        resident_bytes: 48_200_000,
        cpu_seconds: 12.34,
        sources: vec![SourceStatus {
            source: "lms".into(),
            slot: "tailwater_lms".into(),
            publication: "tailwater_lms".into(),
            state: SourceState::Streaming,
            received_lsn: Lsn(0x16B_3748),
            confirmed_flush_lsn: Lsn(0x16B_3700),
            wal_lsn: Lsn(0x16B_3748),
            retained_bytes: 1_234_567,
            journal: JournalStatus { bytes: 35_000_000, first: Lsn(1), end: Lsn(0x16B_3748) },
            reconnects: 0,
        }],
        pairs: vec![PairStatus {
            source: "lms".into(),
            sink: "warehouse".into(),
            checkpoint: Lsn(0x16B_3700),
            checkpoint_commit_ts: None,
            lag_bytes: 72,
            lag_seconds: 0.035,
            rows_per_second: 1_499.6,
            rows: 24_690,
            transactions: 2_469,
            stalled_seconds: 0.0,
            waiting: None,
        }],
        tables: vec![
            table("dwh.d_course", TableState::Streaming, None),
            table("ods.lesson", TableState::Copying, Some(copy)),
        ],
        views: vec![ViewStatus {
            sink: "warehouse".into(),
            view: "dwh.f_lesson".into(),
            lsn: Some(Lsn(0x16B_3700)),
            refreshed_at: Some("2026-03-01T09:29:57.5Z".into()),
            seconds: Some(0.21),
            staleness_seconds: 0.0,
        }],
        errors: vec![ErrorStatus {
            at: "2026-03-01T09:28:11.123456Z".into(),
            stage: "apply".into(),
            kind: "connection".into(),
            about: "warehouse".into(),
            message: "connection refused".into(),
            count: 3,
        }],
    }
}

#[test]
fn document_is_drawn_aligned() {
    let expected = "\
tailwater 0.1.0  up 1 h 3 min, 48.2 MB of memory, 12.3 s of CPU

source  state      slot           received   confirmed  kept WAL  journal
lms     streaming  tailwater_lms  0/16B3748  0/16B3700    1.2 MB  35.0 MB

source  sink       checkpoint    lag  behind  rows/s    rows  transactions
lms     warehouse  0/16B3700   35 ms    72 B   1,500  24,690         2,469

table         source  sink       state        rows    lag
dwh.d_course  lms     warehouse  streaming  12,345  35 ms
ods.lesson    lms     warehouse  copying    12,345  35 ms  ██████████▌░░░░░░░░░ 53 %  53,000 of about 100,000 rows, 23,500 rows/s, 2.0 s left

view          sink       reflects   behind    took    age
dwh.f_lesson  warehouse  0/16B3700     0 s  210 ms  2.5 s

error at              in                 about      times  message
2026-03-01T09:28:11Z  apply, connection  warehouse      3  connection refused
";
    assert_eq!(render_table(&document(), 200, false), expected);
}

#[test]
fn lines_are_cut_at_the_width() {
    for width in [0, 1, 20, 80] {
        for line in render_table(&document(), width, false).lines() {
            assert!(line.chars().count() <= width.max(1), "{width}: {line}");
        }
    }
    assert!(render_table(&document(), 80, false).contains("…\n"));
}

#[test]
fn colour_changes_nothing_but_colour() {
    let colored = render_table(&document(), 100, true);
    assert!(colored.contains("\u{1b}[32mstreaming\u{1b}[0m"), "{colored}");
    let mut bare = colored;
    for code in ["0", "2", "31", "32", "33"] {
        bare = bare.replace(&format!("\u{1b}[{code}m"), "");
    }
    assert_eq!(bare, render_table(&document(), 100, false));
}

#[test]
fn a_halt_shows_reason_and_hint() {
    let mut status = document();
    status.sources[0].state =
        SourceState::Halted { reason: "slot_lost".into(), hint: "Run tailwater setup, then copy again.".into() };
    let text = render_table(&status, 120, false);
    assert!(text.contains("\nlms is halted: slot lost\nhint: Run tailwater setup, then copy again.\n"), "{text}");
}

#[test]
fn control_characters_of_names_do_not_reach_the_terminal() {
    let mut status = document();
    status.tables[0].table = "a\u{1b}[2J\nb".into();
    let text = render_table(&status, 200, false);
    assert!(!text.contains('\u{1b}') && text.contains("a\u{FFFD}[2J\u{FFFD}b"), "{text}");
}

#[test]
fn an_empty_document_is_one_line() {
    assert_eq!(render_table(&Status::default(), 80, false).lines().count(), 1);
}
