//! What the demo shows: drawn in place on a terminal, plain lines now and then everywhere else.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use console::Term;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::say;
use crate::cli::Color;
use crate::telemetry::human::{count, seconds};
use crate::telemetry::metrics::TableState;
use crate::telemetry::render::render_table;
use crate::telemetry::status::Status;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// Wider than this, a table is only harder to read.
const WIDTH_MAX: usize = 120;

pub struct Screen {
    /// None where the output goes to a file or a pipe.
    term: Option<Term>,
    color: bool,
    /// Lines of the frame that stands on the terminal.
    drawn: usize,
    last_line: Option<Instant>,
}

impl Screen {
    pub fn new(color: Color) -> Screen {
        let stdout = std::io::stdout();
        let term = stdout.is_terminal().then(Term::buffered_stdout);
        Screen { term, color: color.on(&stdout), drawn: 0, last_line: None }
    }

    pub fn is_terminal(&self) -> bool {
        self.term.is_some()
    }

    /// A line that stays: what was done, and what came of it.
    pub fn done(&mut self, what: &str, result: &str) {
        say(&format!("{}  {result}", self.dim(&format!("{what:<10}"))));
    }

    /// A line that stays.
    pub fn line(&mut self, text: &str) {
        say(text);
    }

    fn dim(&self, text: &str) -> String {
        if self.color { format!("\u{1b}[2m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Draws over the frame before. Elsewhere than on a terminal only `line` is printed, now and then.
    pub fn frame(&mut self, status: &Status, below: &[String], line: &str) {
        let Some(term) = self.term.clone() else {
            if self.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
                self.last_line = Some(Instant::now());
                say(line);
            }
            return;
        };
        let (height, width) = term.size_checked().unwrap_or((24, 80));
        let width = usize::from(width).min(WIDTH_MAX);
        let mut text = render_table(status, width, self.color);
        text.push('\n');
        for line in below {
            text.extend(line.chars().take(width));
            text.push('\n');
        }
        let lines: Vec<&str> = text.lines().collect();
        // What scrolled out of the terminal could not be drawn over: the last lines are what matters then.
        let lines = lines.get(lines.len().saturating_sub(usize::from(height).saturating_sub(1))..).unwrap_or_default();
        let mut frame = String::new();
        for line in lines {
            frame.push_str(line);
            frame.push_str("\u{1b}[K\n");
        }
        // A terminal that went away is noticed by its hang-up signal.
        let _ = term.move_cursor_up(self.drawn);
        let _ = term.write_str(&frame);
        let _ = term.clear_to_end_of_screen();
        let _ = term.flush();
        self.drawn = lines.len();
    }

    /// Leaves the frame where it stands.
    pub fn settle(&mut self) {
        self.drawn = 0;
        self.last_line = None;
    }

    /// Progress bars of the first copies; none where there is no terminal.
    pub fn bars(&self) -> Bars {
        let target = if self.is_terminal() { ProgressDrawTarget::stdout() } else { ProgressDrawTarget::hidden() };
        Bars { group: MultiProgress::with_draw_target(target), bars: Vec::new(), color: self.color }
    }
}

/// One bar a table and sink.
pub struct Bars {
    group: MultiProgress,
    bars: Vec<(String, ProgressBar)>,
    color: bool,
}

impl Bars {
    pub fn show(&mut self, status: &Status) {
        for table in &status.tables {
            let bar = self.bar(&table.sink, &table.table);
            if let Some(copy) = &table.copy {
                bar.set_length(copy.estimated_rows.max(copy.copied_rows));
                bar.set_position(copy.copied_rows);
                bar.set_message(rate(copy.rows_per_second));
            }
            match table.state {
                TableState::Pending | TableState::Copying => {}
                TableState::Catchup => bar.set_message("catches up"),
                TableState::Streaming => bar.set_message("streams"),
                TableState::Paused | TableState::Quarantined => bar.set_message(table.state.as_str()),
            }
        }
    }

    /// All is copied: the rows of each table, as the warehouses say.
    pub fn finish(&mut self, copied: &[(&str, String, u64)]) {
        for (sink, table, rows) in copied {
            let bar = self.bar(sink, table);
            bar.set_length((*rows).max(1));
            bar.set_position((*rows).max(1));
            bar.abandon_with_message("streams");
        }
    }

    fn bar(&mut self, sink: &str, table: &str) -> ProgressBar {
        let name = format!("{sink:<11} {table}");
        if let Some((_, bar)) = self.bars.iter().find(|(known, _)| *known == name) {
            return bar.clone();
        }
        let template = if self.color {
            "{prefix:<38} {bar:18.green/dim} {percent:>3} % {human_pos:>8} rows  {msg}"
        } else {
            "{prefix:<38} {bar:18} {percent:>3} % {human_pos:>8} rows  {msg}"
        };
        let style = ProgressStyle::with_template(template).expect("the template is well formed");
        let bar = self.group.add(ProgressBar::new(1).with_style(style.progress_chars("█▉▊▋▌▍▎▏░")));
        bar.set_prefix(name.clone());
        self.bars.push((name, bar.clone()));
        bar
    }
}

fn rate(rows_per_second: f64) -> String {
    if rows_per_second < 1.0 { String::new() } else { format!("{} rows/s", count(rows_per_second.round() as u64)) }
}

/// The whole status in one line.
pub fn one_line(status: &Status) -> String {
    let pairs = status.pairs.iter().map(|pair| {
        // One of several says which it is.
        let sink = if status.pairs.len() > 1 { format!("{} ", pair.sink) } else { String::new() };
        format!(
            "{sink}lag {}, {} rows/s, checkpoint {}",
            seconds(pair.lag_seconds),
            count(pair.rows_per_second.round() as u64),
            pair.checkpoint
        )
    });
    let stalest = status.views.iter().map(|view| view.staleness_seconds).reduce(f64::max);
    let views = stalest.map(|stalest| format!("views {} behind", seconds(stalest)));
    pairs.chain(views).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::status::{PairStatus, ViewStatus};

    #[test]
    fn one_line_has_lag_rate_checkpoint_and_the_stalest_view() {
        let pair = PairStatus { lag_seconds: 0.004, rows_per_second: 123.4, ..PairStatus::default() };
        let view = |staleness_seconds| ViewStatus { staleness_seconds, ..ViewStatus::default() };
        let status = Status { pairs: vec![pair], views: vec![view(0.0), view(2.1)], ..Status::default() };
        assert_eq!(one_line(&status), "lag 4 ms, 123 rows/s, checkpoint 0/0, views 2.1 s behind");
    }
}
