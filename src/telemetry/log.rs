//! Log lines, to stderr: for people, or one JSON object a line.

use std::io::{self, IsTerminal};

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The environment variable with the filter: `info`, `tailwater::source=debug,warn`.
pub const FILTER_VARIABLE: &str = "TAILWATER_LOG";

/// What is logged where nothing else is said. Libraries below are heard only when they warn.
const FILTER_DEFAULT: &str = "warn,tailwater=info";

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people; colour on a terminal
    #[default]
    Human,
    /// One JSON object a line
    Json,
}

/// Why logging did not start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{FILTER_VARIABLE} is not a log filter")]
    Filter(#[source] ParseError),
    #[error("logging was started twice")]
    Twice,
}

/// Starts logging for the process. `color` is for [`Format::Human`]; see [`on_terminal`].
///
/// # Errors
/// [`LogError::Filter`] if the variable does not parse, [`LogError::Twice`] at a second call.
pub fn init(format: Format, color: bool, level: &str) -> Result<(), LogError> {
    let filter = filter(std::env::var(FILTER_VARIABLE).ok().as_deref().or(Some(level)))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match format {
        Format::Human => lines.with_ansi(color).with_target(false).try_init(),
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    started.map_err(|_| LogError::Twice)
}

/// Whether stderr, where log lines go, is a terminal.
pub fn on_terminal() -> bool {
    io::stderr().is_terminal()
}

/// A bare level speaks of tailwater, not of every library below it.
fn filter(text: Option<&str>) -> Result<EnvFilter, LogError> {
    let text = text.map(str::trim).filter(|text| !text.is_empty()).unwrap_or(FILTER_DEFAULT);
    let bare = text.parse::<tracing::Level>().is_ok();
    let directives = if bare { format!("warn,tailwater={text}") } else { text.to_owned() };
    EnvFilter::try_new(directives).map_err(LogError::Filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_for_tailwater_alone() {
        let shown = filter(Some("debug")).expect("a level").to_string();
        assert!(shown.contains("tailwater=debug") && shown.contains("warn"), "{shown}");
        assert_eq!(filter(None).expect("default").to_string(), filter(Some(" ")).expect("default").to_string());
        assert!(filter(Some("tailwater::source=debug,info")).is_ok());
    }

    #[test]
    fn a_filter_that_does_not_parse_is_refused() {
        assert!(matches!(filter(Some("tailwater=loud")), Err(LogError::Filter(_))));
    }
}
