//! What the verbs do. Each file is one verb; errors become text and an exit code here.

mod changes;
mod check;
mod completions;
mod demo;
mod journal;
mod live;
mod replay;
mod roll_call;
mod run;
mod schema;
mod setup;
mod status;
mod tail;

use std::io::{Write as _, stderr, stdout};
use std::process::ExitCode;

use crate::cli::{Cli, Exit, Verb};
use crate::config::Config;
use crate::diagnostic::{Findings, chain};
use crate::journal::{JournalError, NotHeld};
use crate::mapping::{self, MappingFile};

/// Runs the command line's verb.
pub fn dispatch(cli: &Cli) -> ExitCode {
    let exit = match &cli.verb {
        Verb::Check(args) => check::run(cli, args),
        Verb::Setup(args) => setup::run(cli, args),
        Verb::Run(args) => run::run(cli, args),
        Verb::Status(args) => status::run(cli, args),
        Verb::Replay(args) => replay::run(cli, args),
        Verb::Tail(args) => tail::run(cli, args),
        Verb::Schema(args) => schema::run(cli, args),
        Verb::Journal(args) => journal::run(cli, args),
        Verb::Completions(args) => completions::run(args),
        Verb::Demo(args) => demo::run(cli, args),
    };
    exit.into()
}

/// Reads the configuration, or shows what is wrong with it.
fn load_config(cli: &Cli) -> Result<Config, Exit> {
    let config = Config::load(&cli.config, std::env::vars()).map_err(|findings| {
        show(cli, &findings);
        Exit::Usage
    })?;
    show(cli, &config.warnings);
    Ok(config)
}

/// Reads the configuration and the mapping files it names, or shows what is wrong with them.
fn load_all(cli: &Cli) -> Result<(Config, Vec<MappingFile>), Exit> {
    let config = load_config(cli)?;
    let files = mapping::load(&config).map_err(|findings| {
        show(cli, &findings);
        Exit::Usage
    })?;
    Ok((config, files))
}

/// Shows findings on stderr, if there are any.
fn show(cli: &Cli, findings: &Findings) {
    if !findings.0.is_empty() {
        say_error(&findings.render(cli.color.on(&stderr())));
    }
}

/// Prints to stdout; a reader that went away is no error.
fn say(text: &str) {
    let _ = writeln!(stdout(), "{text}");
}

/// Prints to stdout as it is; false if the reader went away.
fn say_raw(bytes: &[u8]) -> bool {
    let mut out = stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).is_ok()
}

/// Prints to stderr.
fn say_error(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// The runtime of a verb that talks to servers.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system gives threads and a poller")
}

/// The source that the user names, or the only one.
fn pick_source<'a>(config: &'a Config, name: Option<&str>) -> Result<&'a str, Exit> {
    match name {
        Some(name) => match config.sources.get_key_value(name) {
            Some((name, _)) => Ok(name),
            None => Err(unknown_source(config, name)),
        },
        None => {
            let mut names = config.sources.keys();
            match (names.next(), names.next()) {
                (Some(only), None) => Ok(only),
                _ => {
                    say_error(&format!("error: which source?\nhint: Give --source: {}.", source_names(config)));
                    Err(Exit::Usage)
                }
            }
        }
    }
}

/// Says that there is no such source.
fn unknown_source(config: &Config, name: &str) -> Exit {
    say_error(&format!("error: there is no source \"{name}\"\nhint: There is {}.", source_names(config)));
    Exit::Usage
}

fn source_names(config: &Config) -> String {
    let names: Vec<_> = config.sources.keys().map(|name| format!("\"{name}\"")).collect();
    names.join(", ")
}

/// Rows as columns of text, two spaces between them.
fn columns(rows: &[Vec<String>]) -> String {
    let mut text = String::new();
    let count = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..count).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Says why a journal cannot be read, and what it does hold.
fn refuse_journal(source: &str, error: &JournalError) -> Exit {
    let (exit, hint) = match error {
        JournalError::NotHeld(NotHeld { held: None, .. }) => {
            (Exit::OutsideJournal, "It is written by `tailwater run`.")
        }
        JournalError::NotHeld(_) => (Exit::OutsideJournal, "`tailwater journal ls` shows all that is there."),
        JournalError::Locked { .. } => {
            (Exit::Failed, "A daemon uses it: stop it first. --to stdout and --dry-run work beside it.")
        }
        _ => (Exit::Failed, "`tailwater journal ls` shows what can be read."),
    };
    say_error(&format!("error: journal of source \"{source}\": {}\nhint: {hint}", chain(error)));
    exit
}
