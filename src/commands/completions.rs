//! `tailwater completions`: a shell's completion script.

use clap::CommandFactory as _;

use super::say_raw;
use crate::cli::{Cli, Completions, Exit};

pub fn run(args: &Completions) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tailwater", &mut script);
    say_raw(&script);
    Exit::Done
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;
    use clap_complete::Shell;

    use super::*;

    #[test]
    fn every_shell_is_offered_every_verb() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "tailwater", &mut script);
            let script = String::from_utf8(script).expect("scripts are text");
            for verb in Cli::command().get_subcommands() {
                assert!(script.contains(verb.get_name()), "{shell} does not know {}", verb.get_name());
            }
        }
    }
}
