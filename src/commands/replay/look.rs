//! `replay --to stdout` and `replay --dry-run`: beside a daemon or without one, nothing is written anywhere.

use std::io::{BufWriter, IsTerminal as _, Write as _, stdout};

use indicatif::{ProgressBar, ProgressStyle};

use super::Asked;
use crate::checkpoint::UnixMicros;
use crate::cli::Exit;
use crate::commands::changes::{Range, Seen, Tally, Walk};
use crate::commands::{columns, refuse_journal, say_error, say_raw};
use crate::journal::{Follower, Item, NotHeld};
use crate::lsn::Lsn;
use crate::telemetry::human::count;
use crate::telemetry::time::format_utc;

pub fn run(asked: &Asked<'_>) -> Result<(), Exit> {
    let mut follower = asked.follow()?;
    let (from, held) = (follower.from(), follower.held());
    let to = asked.args.to_lsn.unwrap_or(held.end.end_lsn);
    if to > held.end.end_lsn {
        return Err(refuse_journal(asked.source, &NotHeld { from: to, held: Some(held) }.into()));
    }
    if to < from {
        say_error(&format!("error: nothing lies from {from} to {to}"));
        return Err(Exit::Usage);
    }
    let tables = if asked.args.tables.is_empty() && asked.args.sink.is_none() {
        None
    } else {
        Some(asked.ways().iter().map(|way| way.from.clone()).collect())
    };
    let range = Range { from, to, tables };
    if asked.args.dry_run {
        let mut tally = Tally::default();
        walk(asked, &mut follower, range, |seen| {
            tally.add(seen);
            true
        })?;
        say_raw(summary(asked, from, to, &tally).as_bytes());
        return Ok(());
    }
    let mut out = BufWriter::new(stdout().lock());
    walk(asked, &mut follower, range, |seen| writeln!(out, "{}", seen.json()).is_ok())?;
    // A reader that went away is no error.
    let _ = out.flush();
    Ok(())
}

/// Shows the range's changes until `show` has seen enough.
fn walk(
    asked: &Asked<'_>,
    follower: &mut Follower,
    range: Range,
    mut show: impl FnMut(&Seen<'_>) -> bool,
) -> Result<(), Exit> {
    let (from, to) = (range.from, range.to);
    let bar = if asked.args.dry_run || !stdout().is_terminal() { progress(from, to) } else { ProgressBar::hidden() };
    let mut walk = Walk::new(range);
    let mut wanted = true;
    while let (true, Some(item)) = (wanted, follower.try_next().map_err(|error| refuse_journal(asked.source, &error))?)
    {
        walk.take(&item, |seen| wanted = wanted && show(seen)).map_err(|error| {
            say_error(&format!("error: source \"{}\": {error}", asked.source));
            Exit::Failed
        })?;
        if let Item::Block(block) = &item {
            bar.set_position(block.end.end_lsn.bytes_since(from));
            wanted = wanted && block.end.end_lsn < to;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// On stderr, if that is a terminal.
pub(super) fn progress(from: Lsn, to: Lsn) -> ProgressBar {
    let bar = ProgressBar::new(to.bytes_since(from));
    let template = "{bar:30} {bytes} of {total_bytes} of WAL, {binary_bytes_per_sec}, {eta} left";
    bar.with_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn summary(asked: &Asked<'_>, from: Lsn, to: Lsn, tally: &Tally) -> String {
    let times = match (&tally.first, &tally.last) {
        (Some(first), Some(last)) => {
            let time = |at: UnixMicros| format_utc(at);
            format!(", committed {} to {}", time(first.commit_ts), time(last.commit_ts))
        }
        _ => String::new(),
    };
    let mut rows =
        vec![["SINK", "TABLE", "FROM", "INSERT", "UPDATE", "DELETE", "TRUNCATE"].map(str::to_owned).to_vec()];
    for way in asked.ways() {
        if let Some(counts) = tally.tables.get(way.from) {
            let names = [way.sink.to_owned(), way.target.to_string(), way.from.to_string()];
            rows.push(names.into_iter().chain(counts.map(count)).collect());
        }
    }
    let head = format!("{from} to {to}: {} transactions with changes{times}\n", count(tally.transactions));
    if rows.len() == 1 { head } else { format!("{head}\n{}", columns(&rows)) }
}
