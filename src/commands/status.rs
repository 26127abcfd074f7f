//! `tailwater status`: what a running daemon says of itself, once or again and again.

use std::io::{IsTerminal as _, stdout};
use std::thread::sleep;
use std::time::Duration;

use super::{load_config, say_error, say_raw};
use crate::cli::{Cli, Exit, Status};
use crate::diagnostic::chain;
use crate::telemetry::fetch::{FetchError, fetch_status};
use crate::telemetry::render::render_table;

/// Between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Where the output is no terminal of a known width, lines are as long as they need to be.
const ANY_WIDTH: usize = 4_096;

/// Moves to the upper left corner and clears from there on: nothing flickers.
const REDRAW: &str = "\x1b[H\x1b[J";

pub fn run(cli: &Cli, args: &Status) -> Exit {
    let url = match address(cli, args) {
        Ok(url) => url,
        Err(exit) => return exit,
    };
    loop {
        let (status, document) = match fetch_status(&url) {
            Ok(answer) => answer,
            Err(error) => return refuse(&url, &error),
        };
        if args.json {
            say_raw(&document);
            say_raw(b"\n");
            return Exit::Done;
        }
        let page = render_table(&status, width(), cli.color.on(&stdout()));
        if !args.watch {
            say_raw(page.as_bytes());
            return Exit::Done;
        }
        let start = if stdout().is_terminal() { REDRAW } else { "" };
        if !say_raw(format!("{start}{page}").as_bytes()) {
            return Exit::Done;
        }
        sleep(WATCH_INTERVAL);
    }
}

/// What the user says, else where the configuration has the daemon listen.
fn address(cli: &Cli, args: &Status) -> Result<String, Exit> {
    if let Some(url) = &args.url {
        return Ok(url.clone());
    }
    match load_config(cli)?.http.listen {
        // A daemon that listens on all addresses is asked over the loopback.
        Some(mut listen) => {
            if listen.ip().is_unspecified() {
                listen.set_ip(if listen.is_ipv4() {
                    std::net::Ipv4Addr::LOCALHOST.into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                });
            }
            Ok(format!("http://{listen}"))
        }
        None => {
            say_error(
                "error: the configuration has http.listen = \"off\", so a daemon cannot be asked\nhint: Set [http] listen, \
                 or give --url.",
            );
            Err(Exit::NoDaemon)
        }
    }
}

fn refuse(url: &str, error: &FetchError) -> Exit {
    let (exit, hint) = match error {
        FetchError::Unreachable { .. } => {
            (Exit::NoDaemon, "Start it with `tailwater run`, or say with --url where it listens.")
        }
        FetchError::Broken { .. } | FetchError::Foreign { .. } | FetchError::Refused { .. } => {
            (Exit::NoDaemon, "Something else may listen there; `[http] listen` sets the daemon's address.")
        }
        FetchError::Url(_) => (Exit::Usage, "Leave out --url to use the configuration's http.listen."),
        FetchError::Document(_) => (Exit::Failed, "Compare `tailwater --version` with the daemon's."),
    };
    let error = chain(error);
    let about = if error.contains(url.trim_start_matches("http://").trim_end_matches('/')) {
        error
    } else {
        format!("{url}: {error}")
    };
    say_error(&format!("error: {about}\nhint: {hint}"));
    exit
}

fn width() -> usize {
    terminal_size::terminal_size_of(stdout()).map_or(ANY_WIDTH, |(width, _)| usize::from(width.0))
}
