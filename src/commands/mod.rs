//! What the verbs do. Each file is one verb; errors become text and an exit code here.

mod check;
mod completions;
mod journal;
mod live;
mod run;
mod schema;
mod setup;
mod status;

use std::io::{Write as _, stderr, stdout};
use std::process::ExitCode;

use crate::cli::{Cli, Exit, Verb};
use crate::config::Config;
use crate::diagnostic::Findings;

/// Runs the command line's verb.
pub fn dispatch(cli: &Cli) -> ExitCode {
    let exit = match &cli.verb {
        Verb::Check(args) => check::run(cli, args),
        Verb::Setup(args) => setup::run(cli, args),
        Verb::Run(args) => run::run(cli, args),
        Verb::Status(args) => status::run(cli, args),
        Verb::Replay(_) | Verb::Tail(_) => Exit::Usage,
        Verb::Schema(args) => schema::run(cli, args),
        Verb::Journal(args) => journal::run(cli, args),
        Verb::Completions(args) => completions::run(args),
        Verb::Demo(_) => Exit::Usage,
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
