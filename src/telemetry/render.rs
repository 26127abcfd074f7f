//! The status document as text for a terminal. Pure: the same document and width give the same text.

use super::human::{bar, bytes, count, seconds};
use super::metrics::TableState;
use super::status::{CopyStatus, SourceState, Status, TableStatus};
use super::time::{format_utc, parse_utc};
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;

/// Characters of a snapshot's progress bar.
const BAR_WIDTH: usize = 20;

/// Errors shown: the newest.
const ERRORS_SHOWN: usize = 5;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Paint {
    Plain,
    Dim,
    Good,
    Wait,
    Bad,
}

impl Paint {
    /// The parameter of the terminal's "select graphic rendition".
    fn code(self) -> &'static str {
        match self {
            Paint::Plain => "0",
            Paint::Dim => "2",
            Paint::Good => "32",
            Paint::Wait => "33",
            Paint::Bad => "31",
        }
    }
}

#[derive(Clone)]
struct Cell {
    text: String,
    paint: Paint,
}

impl Cell {
    fn new(text: impl Into<String>, paint: Paint) -> Cell {
        // Names come from a database: a control character among them must not reach the terminal.
        let text: String =
            text.into().chars().map(|shown| if shown.is_control() { '\u{FFFD}' } else { shown }).collect();
        Cell { text, paint }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

fn plain(text: impl Into<String>) -> Cell {
    Cell::new(text, Paint::Plain)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

use Align::{Left, Right};

/// The document as lines of at most `width` characters, the last one ended. `color` adds terminal colours.
pub fn render_table(status: &Status, width: usize, color: bool) -> String {
    let mut page = Page { text: String::new(), width, color };
    page.line(&[
        plain(format!("tailwater {}", status.version)),
        Cell::new(
            format!(
                "  up {}, {} of memory, {} of CPU",
                seconds(status.uptime_seconds),
                bytes(status.resident_bytes),
                seconds(status.cpu_seconds)
            ),
            Paint::Dim,
        ),
    ]);
    sources(&mut page, status);
    pairs(&mut page, status);
    tables(&mut page, status);
    views(&mut page, status);
    errors(&mut page, status);
    page.text
}

fn sources(page: &mut Page, status: &Status) {
    let columns = [
        ("source", Left),
        ("state", Left),
        ("slot", Left),
        ("received", Left),
        ("confirmed", Left),
        ("kept WAL", Right),
        ("journal", Right),
    ];
    let row = |source: &super::status::SourceStatus| {
        vec![
            plain(&source.source),
            Cell::new(source.state.as_str(), source_paint(&source.state)),
            plain(&source.slot),
            lsn(source.received_lsn),
            lsn(source.confirmed_flush_lsn),
            plain(bytes(source.retained_bytes)),
            plain(bytes(source.journal.bytes)),
        ]
    };
    page.table(&columns, status.sources.iter().map(row).collect());
    for source in &status.sources {
        if let SourceState::Halted { reason, hint } = &source.state {
            page.line(&[Cell::new(format!("{} is halted: {}", source.source, reason.replace('_', " ")), Paint::Bad)]);
            page.line(&[plain(format!("hint: {hint}"))]);
        }
    }
}

fn pairs(page: &mut Page, status: &Status) {
    let columns = [
        ("source", Left),
        ("sink", Left),
        ("checkpoint", Left),
        ("lag", Right),
        ("behind", Right),
        ("rows/s", Right),
        ("rows", Right),
        ("transactions", Right),
        ("", Left),
    ];
    let row = |pair: &super::status::PairStatus| {
        vec![
            plain(&pair.source),
            plain(&pair.sink),
            lsn(pair.checkpoint),
            plain(seconds(pair.lag_seconds)),
            plain(bytes(pair.lag_bytes)),
            plain(count(pair.rows_per_second.round() as u64)),
            plain(count(pair.rows)),
            plain(count(pair.transactions)),
            match &pair.waiting {
                Some(for_whom) => Cell::new(format!("waiting for {for_whom}"), Paint::Wait),
                None => plain(""),
            },
        ]
    };
    page.table(&columns, status.pairs.iter().map(row).collect());
}

fn tables(page: &mut Page, status: &Status) {
    let columns = [
        ("table", Left),
        ("source", Left),
        ("sink", Left),
        ("state", Left),
        ("rows", Right),
        ("lag", Right),
        ("", Left),
    ];
    let row = |table: &TableStatus| {
        vec![
            plain(&table.table),
            plain(&table.source),
            plain(&table.sink),
            Cell::new(table.state.as_str(), table_paint(table.state)),
            plain(count(table.rows)),
            plain(seconds(table.lag_seconds)),
            match (&table.copy, &table.reason) {
                (Some(copy), _) => plain(progress_line(copy)),
                (None, Some(reason)) => Cell::new(reason, Paint::Bad),
                (None, None) => plain(""),
            },
        ]
    };
    page.table(&columns, status.tables.iter().map(row).collect());
}

fn views(page: &mut Page, status: &Status) {
    let columns =
        [("view", Left), ("sink", Left), ("reflects", Left), ("behind", Right), ("took", Right), ("age", Right)];
    let now = parse_utc(&status.at);
    let row = |view: &super::status::ViewStatus| {
        let age = || Some(now?.0.saturating_sub(parse_utc(view.refreshed_at.as_deref()?)?.0) as f64 / 1e6);
        vec![
            plain(&view.view),
            plain(&view.sink),
            lsn(view.lsn.unwrap_or_default()),
            plain(seconds(view.staleness_seconds)),
            plain(view.seconds.map_or_else(dash, seconds)),
            plain(age().map_or_else(dash, seconds)),
        ]
    };
    page.table(&columns, status.views.iter().map(row).collect());
}

fn errors(page: &mut Page, status: &Status) {
    let columns = [("error at", Left), ("in", Left), ("about", Left), ("times", Right), ("message", Left)];
    let row = |error: &super::status::ErrorStatus| {
        let whole_seconds = parse_utc(&error.at).map(|at| UnixMicros(at.0 - at.0.rem_euclid(1_000_000)));
        vec![
            plain(whole_seconds.map_or_else(|| error.at.clone(), format_utc)),
            plain(format!("{}, {}", error.stage, error.kind)),
            plain(&error.about),
            plain(count(error.count)),
            Cell::new(&error.message, Paint::Bad),
        ]
    };
    let shown = status.errors.iter().rev().take(ERRORS_SHOWN);
    page.table(&columns, shown.map(row).collect());
}

/// `██████░░░░ 53 %  1,234 of about 2,345 rows, 600 rows/s, 2 s left`.
pub fn progress_line(copy: &CopyStatus) -> String {
    let rate = format!("{} rows/s", count(copy.rows_per_second.round() as u64));
    let left = copy.eta_seconds.map(|eta| format!(", {} left", seconds(eta))).unwrap_or_default();
    match copy.fraction() {
        Some(fraction) => format!(
            "{} {:>2.0} %  {} of about {} rows, {rate}{left}",
            bar(fraction, BAR_WIDTH),
            fraction * 100.0,
            count(copy.copied_rows),
            count(copy.estimated_rows)
        ),
        None => format!("{} rows, {rate}", count(copy.copied_rows)),
    }
}

fn lsn(lsn: Lsn) -> Cell {
    if lsn == Lsn::ZERO { plain(dash()) } else { plain(lsn.to_string()) }
}

fn dash() -> String {
    "–".into()
}

fn source_paint(state: &SourceState) -> Paint {
    match state {
        SourceState::Streaming => Paint::Good,
        SourceState::Connecting | SourceState::Waiting | SourceState::Standby | SourceState::PausedByJournal => {
            Paint::Wait
        }
        SourceState::Halted { .. } => Paint::Bad,
    }
}

fn table_paint(state: TableState) -> Paint {
    match state {
        TableState::Streaming => Paint::Good,
        TableState::Pending | TableState::Copying | TableState::Catchup | TableState::Paused => Paint::Wait,
        TableState::Quarantined => Paint::Bad,
    }
}

/// Text under construction: cells are cut at the width before they are coloured.
struct Page {
    text: String,
    width: usize,
    color: bool,
}

impl Page {
    /// A blank line, headers and rows in aligned columns; nothing at all without rows.
    fn table(&mut self, columns: &[(&str, Align)], rows: Vec<Vec<Cell>>) {
        if rows.is_empty() {
            return;
        }
        self.text.push('\n');
        let headers: Vec<Cell> = columns.iter().map(|(name, _)| Cell::new(*name, Paint::Dim)).collect();
        let widest = |idx: usize| {
            let cells = rows.iter().chain([&headers]).filter_map(|row| row.get(idx));
            cells.map(Cell::width).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns.len()).map(widest).collect();
        for row in [&headers].into_iter().chain(&rows) {
            let mut line = Vec::new();
            for ((cell, (_, align)), width) in row.iter().zip(columns).zip(&widths) {
                let padding = plain(" ".repeat(width.saturating_sub(cell.width())));
                let gap = plain(if line.is_empty() { "" } else { "  " });
                line.push(gap);
                match align {
                    Left => line.extend([cell.clone(), padding]),
                    Right => line.extend([padding, cell.clone()]),
                }
            }
            self.line(&line);
        }
    }

    fn line(&mut self, cells: &[Cell]) {
        // What stands after the last visible character is padding.
        let end = cells.iter().rposition(|cell| !cell.text.trim_end().is_empty()).map_or(0, |last| last + 1);
        let cells = cells.get(..end).unwrap_or(cells);
        let whole: usize = cells.iter().map(Cell::width).sum();
        let mut left = if whole > self.width { self.width.saturating_sub(1) } else { whole };
        for cell in cells {
            let shown: String = cell.text.chars().take(left).collect();
            left -= shown.chars().count();
            if self.color && cell.paint != Paint::Plain && !shown.is_empty() {
                self.text.push_str(&format!("\u{1b}[{}m{shown}\u{1b}[0m", cell.paint.code()));
            } else {
                self.text.push_str(&shown);
            }
        }
        if whole > self.width {
            self.text.push('…');
        }
        self.text.push('\n');
    }
}

#[cfg(test)]
mod tests;
