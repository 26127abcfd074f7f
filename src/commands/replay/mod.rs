//! `tailwater replay`: a part of the journal once more, printed, counted or applied.

mod look;
mod parts;
mod sink;

use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::cli::{Cli, Exit, Replay};
use crate::config::Config;
use crate::frame::{self, Frame};
use crate::journal::{Follower, Held, Item, JournalError, Start, follow, list};
use crate::lsn::Lsn;
use crate::mapping::MappingFile;
use crate::pgoutput::{self, Message};
use crate::telemetry::time::format_utc;

use super::{load_all, pick_source, refuse_journal, say_error};

pub fn run(cli: &Cli, args: &Replay) -> Exit {
    match replay(cli, args) {
        Ok(()) => Exit::Done,
        Err(exit) => exit,
    }
}

/// What every kind of replay needs.
struct Asked<'a> {
    cli: &'a Cli,
    args: &'a Replay,
    config: &'a Config,
    files: &'a [MappingFile],
    source: &'a str,
}

fn replay(cli: &Cli, args: &Replay) -> Result<(), Exit> {
    let (config, files) = load_all(cli)?;
    let source = pick_source(&config, args.source.as_deref())?;
    let asked = Asked { cli, args, config: &config, files: &files, source };
    asked.check_names()?;
    if args.to.is_some() || args.dry_run { look::run(&asked) } else { sink::run(&asked) }
}

/// One table's way: which source table feeds which target in which sink.
struct Way<'a> {
    from: &'a TableName,
    target: &'a TableName,
    sink: &'a str,
}

impl Asked<'_> {
    fn dir(&self) -> std::path::PathBuf {
        self.config.data_dir.join(self.source)
    }

    /// All that the mappings say of this source, and the command line asks for.
    fn ways(&self) -> Vec<Way<'_>> {
        let wanted = &self.args.tables;
        let of_source = self.files.iter().filter(|file| file.sources.iter().any(|name| name.value == self.source));
        let mut ways = Vec::new();
        for file in of_source {
            for table in file.tables.iter().filter(|table| wanted.is_empty() || wanted.contains(&table.target.value)) {
                let sinks = file.sinks.iter().map(|sink| sink.value.as_str());
                let sinks = sinks.filter(|sink| self.args.sink.as_deref().is_none_or(|only| only == *sink));
                ways.extend(sinks.map(|sink| Way { from: &table.from.value, target: &table.target.value, sink }));
            }
        }
        ways
    }

    fn check_names(&self) -> Result<(), Exit> {
        if let Some(sink) = &self.args.sink
            && !self.config.sinks.contains_key(sink)
        {
            let names: Vec<_> = self.config.sinks.keys().map(|name| format!("\"{name}\"")).collect();
            say_error(&format!("error: there is no sink \"{sink}\"\nhint: There is {}.", names.join(", ")));
            return Err(Exit::Usage);
        }
        let ways = self.ways();
        if let Some(table) = self.args.tables.iter().find(|table| ways.iter().all(|way| way.target != *table)) {
            say_error(&format!(
                "error: no mapping of source \"{}\" fills table \"{table}\"\nhint: --table takes target tables, as `tailwater \
                 status` lists them.",
                self.source
            ));
            return Err(Exit::Usage);
        }
        Ok(())
    }

    /// A follower at the asked start.
    fn follow(&self) -> Result<Follower, Exit> {
        let refuse = |error: JournalError| refuse_journal(self.source, &error);
        match (self.args.from_lsn, self.args.from_time) {
            (Some(lsn), _) => follow(&self.dir(), Start::At(lsn)).map_err(refuse),
            (None, Some(time)) => {
                let at = time.at(UnixMicros::now());
                let lsn = match first_since(&self.dir(), at).map_err(refuse)? {
                    Since::From(lsn) => lsn,
                    Since::Unknown { first, held } => {
                        say_error(&format!(
                            "error: the journal of source \"{}\" begins at {} with what was committed at {}, not {}\nhint: \
                             `tailwater journal ls` shows all that is there.",
                            self.source,
                            held.first,
                            first.map_or("no time".to_owned(), format_utc),
                            format_utc(at)
                        ));
                        return Err(Exit::OutsideJournal);
                    }
                };
                follow(&self.dir(), Start::At(lsn)).map_err(refuse)
            }
            (None, None) => {
                say_error("error: where from?\nhint: Give --from-lsn or --from-time.");
                Err(Exit::Usage)
            }
        }
    }
}

/// Where a time lies in the journal.
enum Since {
    /// From here on; the journal's end if nothing was committed since.
    From(Lsn),
    /// The journal began after that time, so earlier transactions may be missing.
    Unknown { first: Option<UnixMicros>, held: Held },
}

/// Finds the first transaction that was committed at `at` or later, by the source's clock.
fn first_since(dir: &std::path::Path, at: UnixMicros) -> Result<Since, JournalError> {
    let mut follower = follow(dir, Start::First)?;
    let held = follower.held();
    let mut first = None;
    let mut found = None;
    while let (None, Some(item)) = (found, follower.try_next()?) {
        let Item::Block(block) = item else { continue };
        for (commit_lsn, commit_ts) in begins(&block.bytes) {
            first.get_or_insert(commit_ts);
            if commit_ts >= at {
                found.get_or_insert(commit_lsn);
            }
        }
        if block.end.end_lsn >= held.end.end_lsn {
            break;
        }
    }
    let opened_at = list(dir)?.into_iter().rfind(|segment| !segment.continues).map(|segment| segment.opened_at);
    if first.is_none_or(|first| first >= at) && opened_at.is_none_or(|opened_at| opened_at > at) {
        return Ok(Since::Unknown { first, held });
    }
    Ok(Since::From(found.unwrap_or(held.end.end_lsn).max(held.first)))
}

/// The transactions that begin in these frames.
fn begins(mut bytes: &[u8]) -> Vec<(Lsn, UnixMicros)> {
    let mut begins = Vec::new();
    while let Ok(Some((frame, length))) = frame::take(bytes) {
        if let Frame::Message(message @ [b'B', ..]) = frame
            && let Ok(Message::Begin { commit_lsn, commit_ts, .. }) = pgoutput::decode(message)
        {
            begins.push((commit_lsn, commit_ts));
        }
        bytes = &bytes[length..];
    }
    begins
}
