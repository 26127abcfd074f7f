//! Claims about the command line.

use clap::{Command, CommandFactory, error::ErrorKind};

use super::*;

fn parse(line: &str) -> Result<Cli, ErrorKind> {
    Cli::try_parse_from(line.split(' ')).map_err(|error| error.kind())
}

#[test]
fn declarations_are_consistent() {
    Cli::command().debug_assert();
}

fn visit(command: &Command, check: &mut impl FnMut(&Command)) {
    check(command);
    command.get_subcommands().filter(|verb| verb.get_name() != "help").for_each(|verb| visit(verb, check));
}

#[test]
fn every_verb_has_an_example_that_parses() {
    visit(&Cli::command(), &mut |command| {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("Example"), "{name} has no example");
        for line in help.lines().filter_map(|line| line.strip_prefix("  tailwater ")) {
            let words = line.split("  ").next().unwrap_or_default().split(['|', '>']).next().unwrap_or_default().trim();
            parse(&format!("tailwater {words}")).unwrap_or_else(|error| panic!("tailwater {words}: {error}"));
        }
    });
}

#[test]
fn every_verb_and_flag_says_what_it_is() {
    visit(&Cli::command(), &mut |command| {
        assert!(command.get_about().is_some(), "{} has no description", command.get_name());
        for arg in command.get_arguments() {
            assert!(arg.get_help().is_some(), "{} {} has no help", command.get_name(), arg.get_id());
        }
    });
}

#[test]
fn exit_codes_stand_in_the_help_and_differ() {
    let help = Cli::command().render_help().to_string();
    for (idx, exit) in Exit::ALL.iter().enumerate() {
        assert!(help.contains(exit.meaning()), "{exit:?} is not in\n{help}");
        assert!(Exit::ALL[..idx].iter().all(|earlier| earlier.code() < exit.code()), "{exit:?} is out of order");
    }
}

#[test]
fn replay_needs_a_start_and_bounds_only_what_is_printed() {
    for (line, kind) in [
        ("", ErrorKind::MissingRequiredArgument),
        (" --from-lsn 0/1 --from-time 1h", ErrorKind::ArgumentConflict),
        (" --from-lsn 0/1 --to-lsn 0/2", ErrorKind::MissingRequiredArgument),
        (" --from-lsn 0/1 --to stdout --sink w", ErrorKind::ArgumentConflict),
        (" --from-lsn nonsense", ErrorKind::ValueValidation),
    ] {
        assert_eq!(parse(&format!("tailwater replay{line}")).err(), Some(kind), "{line}");
    }
    for line in ["--to-lsn 0/2 --dry-run", "--to-lsn 0/2 --to stdout", "--to stdout --dry-run --to-lsn 0/2"] {
        assert!(parse(&format!("tailwater replay --from-lsn 0/1 {line}")).is_ok(), "{line}");
    }
    let Ok(Cli { verb: Verb::Replay(replay), .. }) =
        parse("tailwater replay --from-lsn 0/16B3748 --table dwh.a --table dwh.b")
    else {
        panic!("refused")
    };
    assert_eq!(replay.from_lsn, Some(Lsn(0x16B_3748)));
    assert_eq!(replay.tables, [TableName::new("dwh", "a"), TableName::new("dwh", "b")]);
}

#[test]
fn configuration_file_may_stand_on_either_side_of_the_verb() {
    for line in ["tailwater --config x.toml run", "tailwater run --config x.toml"] {
        assert_eq!(parse(line).expect("taken").config, PathBuf::from("x.toml"), "{line}");
    }
}

#[test]
fn moments_are_times_or_durations() {
    assert_eq!(parse_moment("90s"), Ok(Moment::Ago(Duration::from_secs(90))));
    assert_eq!(parse_moment("2h"), Ok(Moment::Ago(Duration::from_secs(7_200))));
    assert_eq!(parse_moment("1970-01-01T00:00:01Z"), Ok(Moment::At(UnixMicros(1_000_000))));
    for text in ["", "h", "-1h", "1w", "1é", "12:00", "99999999999999999999d", "18446744073709551615d"] {
        assert!(parse_moment(text).is_err(), "{text} was taken");
    }
    assert_eq!(Moment::Ago(Duration::from_secs(1)).at(UnixMicros(5_000_000)), UnixMicros(4_000_000));
}
