//! The command line: verbs, flags and their help. What the verbs do is in `commands`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::telemetry::log::Format;
use crate::telemetry::time::parse_utc;

/// Tails Postgres, keeps star schemas in step
#[derive(Parser, Debug)]
#[command(
    name = "tailwater",
    version,
    max_term_width = 110,
    propagate_version = true,
    arg_required_else_help = true,
    about = "Tails Postgres logical replication and keeps star schemas in step with it, exactly once",
    after_help = after_help()
)]
pub struct Cli {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE", env = "TAILWATER_CONFIG", default_value = "tailwater.toml")]
    pub config: PathBuf,

    /// Colour in what is printed: auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", value_enum, default_value_t = Color::Auto)]
    pub color: Color,

    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Check configuration and mappings against both ends; show every finding at once
    Check(Check),
    /// Make the publication and the slot at the source, and tailwater's schema at the sink
    Setup(Setup),
    /// Run the daemon: copy what is missing, then stream until stopped
    Run(Run),
    /// Show a running daemon's lag, tables, views and errors
    Status(Status),
    /// Apply a part of the journal again, or print it
    Replay(Replay),
    /// Print changes as they arrive
    Tail(Tail),
    /// Print schemas: the targets' DDL, or the JSON Schema of mapping files
    Schema(Schema),
    /// Look into the journal
    Journal(Journal),
    /// Print a shell's completion script
    Completions(Completions),
    /// Show it all on private servers with sample data
    Demo(Demo),
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater check                   both databases are asked; nothing is changed\n  \
    tailwater check --offline         files only, as in a pre-commit hook\n  \
    tailwater check --json | jq '.[] | select(.severity == \"error\")'")]
pub struct Check {
    /// Look at the files only, connect to nothing
    #[arg(long)]
    pub offline: bool,

    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater setup --print           the SQL, for someone with more rights to run\n  \
    tailwater setup --create-targets  also make target tables that do not exist")]
pub struct Setup {
    /// Print the SQL and change nothing
    #[arg(long)]
    pub print: bool,

    /// Also create target tables that do not exist, from the source's catalog
    #[arg(long)]
    pub create_targets: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater run\n  \
    tailwater --config /etc/tailwater/tailwater.toml run --log-format json\n  \
    TAILWATER_LOG=tailwater::source=debug tailwater run\n\n\
    SIGTERM or Ctrl-C drains what is in flight and exits 0; a second one exits at once. Neither loses anything.")]
pub struct Run {
    /// How log lines look [default: the configuration's log.format]. Their level is in TAILWATER_LOG: info, or a filter like
    /// info,tailwater::source=debug
    #[arg(long, value_name = "FORMAT", value_enum, env = "TAILWATER_LOG_FORMAT")]
    pub log_format: Option<Format>,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater status\n  \
    tailwater status --watch\n  \
    tailwater status --json | jq '.pairs[].lag_seconds'\n  \
    tailwater status --url http://127.0.0.1:9629")]
pub struct Status {
    /// Print the status document as JSON
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,

    /// Draw again every second until Ctrl-C
    #[arg(long)]
    pub watch: bool,

    /// The daemon's address [default: the configuration's http.listen]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
}

#[derive(Args, Debug)]
#[command(
    group = ArgGroup::new("from").required(true).args(["from_lsn", "from_time"]),
    group = ArgGroup::new("bounded").args(["to", "dry_run"]).multiple(true),
    after_help = "Examples:\n  \
        tailwater replay --from-lsn 0/16B3748\n  \
        tailwater replay --from-time 2h --table dwh.f_lesson\n  \
        tailwater replay --from-time 2026-03-01T09:30:00Z --dry-run\n  \
        tailwater replay --from-lsn 0/16B3748 --to-lsn 0/17A0000 --to stdout\n\n\
        Into a sink it runs on to that sink's checkpoint, folded per key, so that no reader sees an older state than before.\n\
        What the journal no longer holds is refused with exit code 4; `tailwater journal ls` shows what it holds."
)]
pub struct Replay {
    /// Start at this position
    #[arg(long, value_name = "LSN")]
    pub from_lsn: Option<Lsn>,

    /// Start at the first transaction committed at or after this time, or this long ago
    #[arg(long, value_name = "TIME", value_parser = parse_moment)]
    pub from_time: Option<Moment>,

    /// Stop before this position; only with --to stdout or --dry-run
    #[arg(long, value_name = "LSN", requires = "bounded")]
    pub to_lsn: Option<Lsn>,

    /// Only this target table; may be repeated [default: all]
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<TableName>,

    /// The source whose journal is read [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,

    /// Only this sink [default: all that the source feeds]
    #[arg(long, value_name = "NAME", conflicts_with = "to")]
    pub sink: Option<String>,

    /// Print the changes instead of applying them, as `tail --json` does
    #[arg(long, value_name = "WHERE", value_enum)]
    pub to: Option<ReplayTo>,

    /// Say what would be applied, and apply nothing
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ReplayTo {
    /// One JSON object a line, row values included
    Stdout,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater tail\n  \
    tailwater tail --table public.course --json\n  \
    tailwater tail --from-lsn 0/16B3748\n\n\
    Reads the journal that the daemon writes: it takes no slot and slows nothing. A line says position, kind, table and key;\n\
    with --json it is the whole change, values as Postgres's to_json gives them in UTC. Values of text columns, and types\n\
    that the source sends as text, are strings; types without a JSON form are their bytes in hexadecimal, \\x....")]
pub struct Tail {
    /// The source to follow [default: the only one]
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,

    /// Only this source table; may be repeated [default: all]
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<TableName>,

    /// Start at this position [default: the end of the journal]
    #[arg(long, value_name = "LSN")]
    pub from_lsn: Option<Lsn>,

    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  \
    tailwater schema ddl\n  \
    tailwater schema json > schemas/mapping.schema.json")]
pub struct Schema {
    #[command(subcommand)]
    pub of: SchemaOf,
}

#[derive(Subcommand, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SchemaOf {
    /// The target tables that the mappings ask for, as SQL; only the sources are asked
    #[command(after_help = "Example:\n  tailwater schema ddl | psql -h dwh.internal dwh")]
    Ddl,
    /// The JSON Schema of mapping files, for completion in an editor
    #[command(after_help = "Example:\n  tailwater schema json > schemas/mapping.schema.json")]
    Json,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  tailwater journal ls")]
pub struct Journal {
    #[command(subcommand)]
    pub verb: JournalVerb,
}

#[derive(Subcommand, Debug)]
pub enum JournalVerb {
    /// List segments: positions, times and sizes; works beside a running daemon
    #[command(after_help = "Examples:\n  tailwater journal ls\n  tailwater journal ls --source lms --json")]
    Ls {
        /// Only this source's [default: all]
        #[arg(long, value_name = "NAME")]
        source: Option<String>,

        /// Print the list as JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  tailwater completions bash > /etc/bash_completion.d/tailwater")]
pub struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  tailwater demo\n  tailwater demo --kafka --seconds 20")]
pub struct Demo {
    /// End by itself after so many seconds of streaming, with a summary [default: until Ctrl-C]
    #[arg(long, value_name = "SECONDS", env = "DEMO_SECONDS")]
    pub seconds: Option<u64>,

    /// With a Kafka broker too (takes Java, and Kafka where tests/install.sh puts it)
    #[arg(long)]
    pub kafka: bool,
}

/// When to print colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

impl Color {
    /// Whether to colour what goes to `stream`.
    pub fn on(self, stream: &impl IsTerminal) -> bool {
        match self {
            Color::Always => true,
            Color::Never => false,
            // no-color.org: set to anything but nothing.
            Color::Auto => stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }
}

/// A time given on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    At(UnixMicros),
    Ago(Duration),
}

impl Moment {
    pub fn at(self, now: UnixMicros) -> UnixMicros {
        match self {
            Moment::At(at) => at,
            Moment::Ago(ago) => UnixMicros(now.0.saturating_sub(i64::try_from(ago.as_micros()).unwrap_or(i64::MAX))),
        }
    }
}

fn parse_moment(text: &str) -> Result<Moment, String> {
    let ago = || {
        let (count, seconds_each) = match text.char_indices().last()? {
            (end, 's') => (text.get(..end)?, 1),
            (end, 'm') => (text.get(..end)?, 60),
            (end, 'h') => (text.get(..end)?, 3_600),
            (end, 'd') => (text.get(..end)?, 86_400),
            _ => return None,
        };
        Some(Moment::Ago(Duration::from_secs(count.parse::<u64>().ok()?.checked_mul(seconds_each)?)))
    };
    parse_utc(text).map(Moment::At).or_else(ago).ok_or_else(|| {
        "give a time with its zone, like 2026-03-01T09:30:00Z, or how long ago, like 90s, 15m, 2h, 1d".into()
    })
}

/// How the process ends; a part of the interface. Codes 2, 3 and 10 to 16 mean that a human must decide: starting again by
/// itself would meet the same, so a service unit should not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Findings = 3,
    OutsideJournal = 4,
    NoDaemon = 5,
    SlotMissing = 10,
    SlotLost = 11,
    Gap = 12,
    SourceBehind = 13,
    Diverged = 14,
    OtherSystem = 15,
    PublicationGone = 16,
    Fenced = 17,
}

impl Exit {
    pub const ALL: [Exit; 14] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Findings,
        Exit::OutsideJournal,
        Exit::NoDaemon,
        Exit::SlotMissing,
        Exit::SlotLost,
        Exit::Gap,
        Exit::SourceBehind,
        Exit::Diverged,
        Exit::OtherSystem,
        Exit::PublicationGone,
        Exit::Fenced,
    ];

    pub fn code(self) -> u8 {
        self as u8
    }

    /// What it means, for `--help`.
    pub fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done; of a daemon: stopped by a signal, after draining",
            Exit::Failed => "failed; trying again may help (a connection, a disk)",
            Exit::Usage => "the command line or the configuration is wrong; every finding was printed",
            Exit::Findings => "the mappings do not fit the live databases; every finding was printed",
            Exit::OutsideJournal => "the journal does not hold what was asked for",
            Exit::NoDaemon => "no daemon answers (status)",
            Exit::SlotMissing => "halt: the slot is gone, but a sink has a checkpoint",
            Exit::SlotLost => "halt: the source invalidated the slot",
            Exit::Gap => "halt: the slot is past what sinks and journal hold; changes are gone",
            Exit::SourceBehind => "halt: the source is behind the checkpoint, as after a restore",
            Exit::Diverged => "halt: the source's history left the checkpoint's before it",
            Exit::OtherSystem => "halt: the checkpoint is of another server, database or slot",
            Exit::PublicationGone => "halt: the publication is gone",
            Exit::Fenced => "another daemon took over; started again, this one waits as standby",
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

fn after_help() -> String {
    let codes: Vec<_> = Exit::ALL.iter().map(|exit| format!("  {:>2}  {}", exit.code(), exit.meaning())).collect();
    format!(
        "Examples:\n  tailwater check\n  tailwater setup --create-targets\n  tailwater run\n  tailwater status --watch\n\n\
         Exit codes:\n{}",
        codes.join("\n")
    )
}

#[cfg(test)]
mod tests;
