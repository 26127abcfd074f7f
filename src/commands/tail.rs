//! `tailwater tail`: changes as they arrive, out of the journal that a daemon writes.

use std::io::{BufWriter, Write as _, stdout};

use super::changes::{Range, Walk};
use super::{load_config, pick_source, refuse_journal, say_error};
use crate::catalog::TableName;
use crate::cli::{Cli, Exit, Tail};
use crate::config::Config;
use crate::journal::{Start, follow};
use crate::lsn::Lsn;

pub fn run(cli: &Cli, args: &Tail) -> Exit {
    match print(cli, args) {
        Ok(()) => Exit::Done,
        Err(exit) => exit,
    }
}

fn print(cli: &Cli, args: &Tail) -> Result<(), Exit> {
    let config = load_config(cli)?;
    let source = pick_source(&config, args.source.as_deref())?;
    check_tables(&config, source, &args.tables)?;
    let start = args.from_lsn.map_or(Start::End, Start::At);
    let mut follower = follow(&config.data_dir.join(source), start).map_err(|error| refuse_journal(source, &error))?;
    let tables = if args.tables.is_empty() { None } else { Some(args.tables.clone()) };
    let mut walk = Walk::new(Range { from: follower.from(), to: Lsn(u64::MAX), tables });
    let mut out = BufWriter::new(stdout().lock());
    loop {
        let item = match follower.try_next().map_err(|error| refuse_journal(source, &error))? {
            Some(item) => item,
            None => {
                if out.flush().is_err() {
                    return Ok(());
                }
                follower.wait_next().map_err(|error| refuse_journal(source, &error))?
            }
        };
        let mut written = Ok(());
        let taken = walk.take(&item, |seen| {
            if written.is_ok() {
                written = writeln!(out, "{}", if args.json { seen.json() } else { seen.human() });
            }
        });
        if let Err(error) = taken {
            say_error(&format!("error: source \"{source}\": {error}"));
            return Err(Exit::Failed);
        }
        if written.is_err() {
            // The reader went away.
            return Ok(());
        }
    }
}

/// A table that no mapping reads is not published, so waiting for its changes would be in vain.
fn check_tables(config: &Config, source: &str, wanted: &[TableName]) -> Result<(), Exit> {
    // Wrong mappings are not this verb's business.
    let Ok(files) = crate::mapping::load(config) else { return Ok(()) };
    let of_source = files.iter().filter(|file| file.sources.iter().any(|name| name.value == source));
    let read: Vec<&TableName> = of_source.flat_map(|file| &file.tables).map(|table| &table.from.value).collect();
    match wanted.iter().find(|table| !read.contains(table)) {
        Some(table) => {
            let names: Vec<_> = read.iter().map(ToString::to_string).collect();
            say_error(&format!(
                "error: no mapping reads table \"{table}\" of source \"{source}\"\nhint: There is {}.",
                names.join(", ")
            ));
            Err(Exit::Usage)
        }
        None => Ok(()),
    }
}
