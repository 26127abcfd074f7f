//! The status board: pipeline parts write on it what no metric says; whoever looks gets both as one [`Status`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::look::{Look, pair_key, rows_of};
use super::metrics::{Metrics, Stage};
use super::process::Usage;
use super::rate::Rate;
use super::status::{ErrorStatus, JournalStatus, SourceState, SourceStatus, Status};
use super::time::format_utc;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// Errors remembered for the status document.
const ERRORS_MAX: usize = 50;

/// Characters of one error's message that are kept.
const ERROR_CHARS_MAX: usize = 400;

/// Points of the status page's curves: five minutes at one a second.
const HISTORY_POINTS: usize = 300;

/// Between two points of a curve, and two calls of [`StatusBoard::sample`].
pub const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Shared by all parts of a running daemon.
pub struct StatusBoard {
    version: String,
    metrics: Arc<Metrics>,
    started: Instant,
    notes: Mutex<Notes>,
}

#[derive(Default)]
pub(super) struct Notes {
    pub sources: BTreeMap<String, SourceNote>,
    /// By source and sink: for whom the pair waits.
    pub waiting: BTreeMap<(String, String), String>,
    pub copies: BTreeMap<TableKey, CopyNote>,
    pub reasons: BTreeMap<TableKey, String>,
    pub views: BTreeMap<(String, String), ViewNote>,
    pub errors: VecDeque<ErrorStatus>,
    pub curves: BTreeMap<(String, String), Curve>,
}

#[derive(Default)]
pub(super) struct SourceNote {
    pub slot: String,
    pub publication: String,
    pub state: SourceState,
    pub wal_lsn: Lsn,
    pub journal: (Lsn, Lsn),
}

/// Source, sink, target table.
pub(super) type TableKey = (String, String, String);

#[derive(Default)]
pub(super) struct CopyNote {
    pub copied_rows: u64,
    pub estimated_rows: u64,
    pub rate: Rate,
}

pub(super) struct ViewNote {
    pub lsn: Lsn,
    pub refreshed_at: UnixMicros,
    pub seconds: f64,
}

#[derive(Default)]
pub(super) struct Curve {
    pub rate: Rate,
    pub points: VecDeque<Point>,
}

/// One second of a pair's past.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// Milliseconds since 1970.
    pub at_ms: i64,
    pub lag_seconds: f64,
    pub rows_per_second: f64,
}

/// A pair's recent past, for the status page's curves.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct History {
    pub source: String,
    pub sink: String,
    pub points: Vec<Point>,
}

impl StatusBoard {
    pub fn new(version: &str, metrics: Arc<Metrics>) -> Arc<StatusBoard> {
        Arc::new(StatusBoard { version: version.to_owned(), metrics, started: Instant::now(), notes: Mutex::default() })
    }

    /// Names a source, before anything else is said of it.
    pub fn add_source(&self, source: &str, slot: &str, publication: &str) {
        let note = SourceNote { slot: slot.to_owned(), publication: publication.to_owned(), ..SourceNote::default() };
        self.notes().sources.insert(source.to_owned(), note);
        self.metrics.source(source).set_connected(false);
    }

    pub fn source_state(&self, source: &str, state: SourceState) {
        self.metrics.source(source).set_connected(state.is_connected());
        if let SourceState::Halted { reason, .. } = &state {
            self.metrics.halted(source, reason);
        }
        self.notes().sources.entry(source.to_owned()).or_default().state = state;
    }

    /// The pair is left out of the run until `for_whom` answers.
    pub fn pair_waits(&self, source: &str, sink: &str, for_whom: &str) {
        self.metrics.pair(source, sink);
        self.notes().waiting.insert((source.to_owned(), sink.to_owned()), for_whom.to_owned());
    }

    /// A run begins, and says anew who waits.
    pub fn nobody_waits(&self) {
        self.notes().waiting.clear();
    }

    /// Whether a stream that is up waits for room in the journal; says nothing of one that is not up.
    pub fn source_paused(&self, source: &str, paused: bool) {
        if let Some(note) = self.notes().sources.get_mut(source)
            && note.state.is_connected()
        {
            note.state = if paused { SourceState::PausedByJournal } else { SourceState::Streaming };
        }
    }

    /// Where the source's WAL ends, as a look at the server says; every sink of the source is now known to be behind it.
    pub fn source_wal(&self, source: &str, wal_lsn: Lsn) {
        self.notes().sources.entry(source.to_owned()).or_default().wal_lsn = wal_lsn;
        for pair in self.metrics.pairs().iter().filter(|pair| pair.source() == source) {
            pair.progress.wal_reached(wal_lsn);
        }
    }

    /// From where to where the journal reaches.
    pub fn journal_range(&self, source: &str, first: Lsn, end: Lsn) {
        self.notes().sources.entry(source.to_owned()).or_default().journal = (first, end);
    }

    /// A copy's progress so far, rows of earlier runs included.
    pub fn copying(&self, source: &str, sink: &str, table: &str, copied_rows: u64, estimated_rows: u64) {
        let elapsed = self.started.elapsed();
        let mut notes = self.notes();
        let copy = notes.copies.entry((source.to_owned(), sink.to_owned(), table.to_owned())).or_default();
        copy.copied_rows = copied_rows;
        copy.estimated_rows = estimated_rows;
        copy.rate.sample(elapsed, copied_rows);
    }

    pub fn copied(&self, source: &str, sink: &str, table: &str) {
        self.notes().copies.remove(&(source.to_owned(), sink.to_owned(), table.to_owned()));
    }

    /// Why a table is paused or quarantined; `None` when it no longer is. No row values.
    pub fn table_reason(&self, source: &str, sink: &str, table: &str, reason: Option<&str>) {
        let key = (source.to_owned(), sink.to_owned(), table.to_owned());
        let mut notes = self.notes();
        match reason {
            Some(reason) => notes.reasons.insert(key, one_line(reason)),
            None => notes.reasons.remove(&key),
        };
    }

    /// A refresh ended at `refreshed_at`; the view now reflects the source up to `lsn`.
    pub fn refreshed(&self, sink: &str, view: &str, lsn: Lsn, refreshed_at: UnixMicros, seconds: f64) {
        let note = ViewNote { lsn, refreshed_at, seconds };
        self.notes().views.insert((sink.to_owned(), view.to_owned()), note);
    }

    /// Counts an error and remembers it. `kind` is a constant of the code; `message` holds no row value and no secret.
    pub fn error(&self, stage: Stage, kind: &'static str, about: &str, message: &str) {
        self.metrics.error(stage, kind);
        let at = format_utc(UnixMicros::now());
        let (stage, message) = (stage.as_str(), one_line(message));
        let mut notes = self.notes();
        if let Some(last) = notes.errors.back_mut()
            && (last.stage.as_str(), last.kind.as_str(), last.about.as_str(), &last.message)
                == (stage, kind, about, &message)
        {
            last.count += 1;
            last.at = at;
            return;
        }
        if notes.errors.len() == ERRORS_MAX {
            notes.errors.pop_front();
        }
        let (stage, kind, about) = (stage.to_owned(), kind.to_owned(), about.to_owned());
        notes.errors.push_back(ErrorStatus { at, stage, kind, about, message, count: 1 });
    }

    /// Takes one point of every curve. The HTTP server calls it every [`SAMPLE_EVERY`]; without one, whoever shows rates.
    pub fn sample(&self) {
        self.sample_at(self.started.elapsed(), UnixMicros::now());
    }

    fn sample_at(&self, elapsed: Duration, now: UnixMicros) {
        let (pairs, tables) = (self.metrics.pairs(), self.metrics.tables());
        let mut notes = self.notes();
        for pair in &pairs {
            let curve = notes.curves.entry(pair_key(pair)).or_default();
            curve.rate.sample(elapsed, rows_of(pair, &tables));
            if curve.points.len() == HISTORY_POINTS {
                curve.points.pop_front();
            }
            let lag_seconds = pair.progress.lag_seconds(now);
            curve.points.push_back(Point {
                at_ms: now.0 / 1_000,
                lag_seconds,
                rows_per_second: curve.rate.per_second(elapsed),
            });
        }
    }

    /// The curves of all pairs, oldest point first.
    pub fn history(&self) -> Vec<History> {
        let notes = self.notes();
        let curve = |((source, sink), curve): (&(String, String), &Curve)| History {
            source: source.clone(),
            sink: sink.clone(),
            points: curve.points.iter().copied().collect(),
        };
        notes.curves.iter().map(curve).collect()
    }

    /// Everything, as of now.
    pub fn snapshot(&self) -> Status {
        self.snapshot_at(self.started.elapsed(), UnixMicros::now())
    }

    fn snapshot_at(&self, elapsed: Duration, now: UnixMicros) -> Status {
        let (pairs, tables, views) = (self.metrics.pairs(), self.metrics.tables(), self.metrics.views());
        let usage = Usage::of_self();
        let notes = self.notes();
        let look = Look { notes: &notes, elapsed, now };
        Status {
            version: self.version.clone(),
            at: format_utc(now),
            uptime_seconds: elapsed.as_secs_f64(),
            resident_bytes: usage.resident_bytes,
            cpu_seconds: usage.cpu_seconds,
            sources: notes.sources.iter().map(|(name, note)| self.source_status(name, note)).collect(),
            pairs: pairs.iter().map(|pair| look.pair(pair, &tables)).collect(),
            tables: tables.iter().map(|table| look.table(table)).collect(),
            views: views.iter().map(|view| look.view(view)).collect(),
            errors: notes.errors.iter().cloned().collect(),
        }
    }

    fn source_status(&self, name: &str, note: &SourceNote) -> SourceStatus {
        let measured = self.metrics.source(name);
        let (first, end) = note.journal;
        SourceStatus {
            source: name.to_owned(),
            slot: note.slot.clone(),
            publication: note.publication.clone(),
            state: note.state.clone(),
            received_lsn: measured.received_lsn.get(),
            confirmed_flush_lsn: measured.confirmed_flush_lsn.get(),
            wal_lsn: note.wal_lsn,
            retained_bytes: measured.slot_retained_wal_bytes.get(),
            journal: JournalStatus { bytes: measured.journal_bytes.get(), first, end },
            reconnects: measured.reconnects.get(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One printable line of bounded length, whatever a server said.
fn one_line(message: &str) -> String {
    let printable = |shown: char| if shown.is_control() { ' ' } else { shown };
    let mut line: String = message.chars().take(ERROR_CHARS_MAX).map(printable).collect();
    if message.chars().nth(ERROR_CHARS_MAX).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::telemetry::metrics::TableState;

    fn board() -> (Arc<StatusBoard>, Arc<Metrics>) {
        let metrics = Metrics::new("1.0.0");
        let board = StatusBoard::new("1.0.0", metrics.clone());
        board.add_source("lms", "tailwater_lms", "tailwater");
        (board, metrics)
    }

    #[test]
    fn document_holds_what_parts_wrote_and_survives_json() {
        let (board, metrics) = board();
        board.source_state("lms", SourceState::Halted { reason: "slot_lost".into(), hint: "Run resync.".into() });
        let table = metrics.table("lms", "warehouse", "dwh.d_course");
        table.set_state(TableState::Copying);
        table.insert.inc_by(3);
        metrics.view("warehouse", "dwh.f_lesson");
        board.refreshed("warehouse", "dwh.f_lesson", Lsn(9), UnixMicros(0), 0.5);
        metrics.pair("lms", "warehouse").progress.durable(&Checkpoint { end_lsn: Lsn(10), ..Checkpoint::default() });
        board.source_wal("lms", Lsn(25));
        let status = board.snapshot_at(Duration::from_secs(5), UnixMicros(1));
        assert_eq!(status.pairs[0].lag_bytes, 15);
        assert_eq!(status.pairs[0].rows, 3);
        assert_eq!(status.tables[0].state, TableState::Copying);
        assert_eq!(status.views[0].lsn, Some(Lsn(9)));
        let json = serde_json::to_value(&status).expect("plain data");
        assert_eq!(json["sources"][0]["state"], "halted");
        assert_eq!(json["sources"][0]["reason"], "slot_lost");
        assert_eq!(json["pairs"][0]["checkpoint"], "0/A");
        assert_eq!(serde_json::from_value::<Status>(json).expect("reads what it writes"), status);
        assert!(
            metrics.render(UnixMicros(1)).expect("consistent").contains("tailwater_source_connected{source=\"lms\"} 0")
        );
    }

    #[test]
    fn rates_are_of_the_last_seconds() {
        let (board, metrics) = board();
        let table = metrics.table("lms", "warehouse", "t");
        for second in 0..30 {
            board.sample_at(Duration::from_secs(second), UnixMicros(0));
            table.update.inc_by(if second < 15 { 1_000 } else { 10 });
        }
        let status = board.snapshot_at(Duration::from_secs(29), UnixMicros(0));
        assert_eq!(status.pairs[0].rows_per_second, 10.0);
        assert_eq!(board.history()[0].points.len(), 30);
    }

    #[test]
    fn curves_are_bounded() {
        let (board, metrics) = board();
        metrics.pair("lms", "warehouse");
        for second in 0..400 {
            board.sample_at(Duration::from_secs(second), UnixMicros(second as i64 * 1_000_000));
        }
        let history = board.history();
        assert_eq!(history[0].points.len(), HISTORY_POINTS);
        assert_eq!(history[0].points.last().map(|point| point.at_ms), Some(399_000));
    }

    #[test]
    fn errors_are_bounded_folded_and_single_lines() {
        let (board, metrics) = board();
        board.error(Stage::Apply, "connection", "warehouse", "refused\nby \u{1b}[31mthe server");
        board.error(Stage::Apply, "connection", "warehouse", "refused\nby \u{1b}[31mthe server");
        let errors = board.snapshot().errors;
        assert_eq!((errors.len(), errors[0].count), (1, 2));
        assert_eq!(errors[0].message, "refused by  [31mthe server");
        for idx in 0..200 {
            board.error(Stage::Decode, "truncated", "lms", &format!("{idx} {}", "x".repeat(1_000)));
        }
        let errors = board.snapshot().errors;
        assert_eq!(errors.len(), ERRORS_MAX);
        assert!(errors.iter().all(|error| error.message.chars().count() <= ERROR_CHARS_MAX + 1));
        let text = metrics.render(UnixMicros(1)).expect("consistent");
        assert!(text.contains("tailwater_errors_total{kind=\"truncated\",stage=\"decode\"} 200"), "{text}");
    }

    #[test]
    fn a_copy_shows_progress_until_it_ends() {
        let (board, metrics) = board();
        metrics.table("lms", "warehouse", "t");
        board.copying("lms", "warehouse", "t", 40, 100);
        let copy = board.snapshot().tables[0].copy.clone().expect("copying");
        assert_eq!((copy.copied_rows, copy.fraction()), (40, Some(0.4)));
        board.copying("lms", "warehouse", "t", 500, 100);
        let copy = board.snapshot().tables[0].copy.clone().expect("copying");
        assert_eq!((copy.fraction(), copy.eta_seconds), (Some(0.99), None));
        board.copied("lms", "warehouse", "t");
        assert_eq!(board.snapshot().tables[0].copy, None);
    }
}
