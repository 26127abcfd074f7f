//! What the verbs do. Each file is one verb; errors become text and an exit code here.

mod check;
mod live;
mod run;
mod setup;

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
        Verb::Status(_)
        | Verb::Replay(_)
        | Verb::Tail(_)
        | Verb::Schema(_)
        | Verb::Journal(_)
        | Verb::Completions(_)
        | Verb::Demo(_) => Exit::Usage,
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

/// Prints to stderr.
fn say_error(text: &str) {
    let _ = writeln!(stderr(), "{text}");
}

/// The runtime of a verb that talks to servers.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the system gives threads and a poller")
}
