//! The `tailwater` command: everything is in the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    tailwater::commands::dispatch(&tailwater::cli::Cli::parse())
}
