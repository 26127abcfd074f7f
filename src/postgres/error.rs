//! What went wrong in SQL, told without any row value.
//!
//! The driver's own error must not reach a log: its `Debug` and its source hold the server's DETAIL, and some primary
//! messages quote the value they are about.

use std::io;

use tokio_postgres::error::{DbError, SqlState};

use crate::retry::{Retry, by_sqlstate};

/// A failed statement or connection. Everything in it may be shown.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", .0.text)]
pub struct SqlError(Box<Told>);

#[derive(Clone, Debug)]
struct Told {
    text: String,
    sqlstate: Option<SqlState>,
    retry: Retry,
    names: Names,
}

/// Names that the server gave with its error, for a caller that must find the row or the column.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Names {
    pub schema: Option<String>,
    pub table: Option<String>,
    pub column: Option<String>,
    pub constraint: Option<String>,
}

impl SqlError {
    /// A server's answer that has not the form expected of it: nothing to try again.
    pub fn unexpected(text: impl Into<String>) -> Self {
        let told = Told { text: text.into(), sqlstate: None, retry: Retry::Never, names: Names::default() };
        SqlError(Box::new(told))
    }

    pub fn sqlstate(&self) -> Option<&SqlState> {
        self.0.sqlstate.as_ref()
    }

    pub fn is(&self, state: &SqlState) -> bool {
        self.sqlstate() == Some(state)
    }

    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    pub fn names(&self) -> &Names {
        &self.0.names
    }
}

impl From<tokio_postgres::Error> for SqlError {
    fn from(error: tokio_postgres::Error) -> Self {
        let database = error.as_db_error();
        let name = |of: fn(&DbError) -> Option<&str>| database.and_then(of).map(str::to_owned);
        let names = Names {
            schema: name(DbError::schema),
            table: name(DbError::table),
            column: name(DbError::column),
            constraint: name(DbError::constraint),
        };
        let told = Told { text: describe(&error), sqlstate: sqlstate(&error), retry: retry(&error), names };
        SqlError(Box::new(told))
    }
}

/// The server's code, if the server answered.
pub fn sqlstate(error: &tokio_postgres::Error) -> Option<SqlState> {
    error.code().cloned()
}

/// By the server's code; without one, a line that broke may hold again, and everything else will not change.
pub fn retry(error: &tokio_postgres::Error) -> Retry {
    match (error.code(), io_cause(error)) {
        (Some(state), _) => by_sqlstate(state.code()),
        (None, _) if error.is_closed() => Retry::Backoff,
        (None, Some(cause)) => match cause.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Retry::Never,
            _ if cause.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => Retry::Never,
            _ => Retry::Backoff,
        },
        (None, None) => Retry::Never,
    }
}

/// The error in one line: severity, code, message and names. DETAIL, HINT and CONTEXT hold values and are left out; of
/// errors whose message itself holds the value, only the condition's name is shown.
pub fn describe(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), io_cause(error)) {
        (Some(database), _) => describe_answer(database),
        (None, Some(cause)) => format!("{error}: {cause}"),
        (None, None) => match std::error::Error::source(error) {
            // Of TLS and authentication; a conversion's cause could quote the value it met.
            Some(cause) if !error.to_string().contains("serializing") => format!("{error}: {cause}"),
            _ => error.to_string(),
        },
    }
}

fn io_cause(error: &tokio_postgres::Error) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

fn describe_answer(error: &DbError) -> String {
    let code = error.code().code();
    let mut text = format!("{} {code}: ", error.severity().to_lowercase());
    match quoting_condition(code) {
        Some(condition) => text.push_str(condition),
        None => text.push_str(&error.message().replace(char::is_control, " ")),
    }
    let names = [
        ("schema", error.schema()),
        ("table", error.table()),
        ("column", error.column()),
        ("constraint", error.constraint()),
    ];
    let named: Vec<_> = names.iter().filter_map(|(what, name)| name.map(|name| format!("{what} \"{name}\""))).collect();
    if !named.is_empty() {
        text.push_str(&format!(" ({})", named.join(", ")));
    }
    text
}

/// The condition's name, for codes whose messages quote data: all of class 22, and whatever the user's own functions and
/// constraints raise.
fn quoting_condition(code: &str) -> Option<&'static str> {
    let name = match code {
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22004" => "null_value_not_allowed",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22009" => "invalid_time_zone_displacement_value",
        "22012" => "division_by_zero",
        "22015" => "interval_field_overflow",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22026" => "string_data_length_mismatch",
        "22030" => "duplicate_json_object_key_value",
        "22032" => "invalid_json_text",
        "22P01" => "floating_point_exception",
        "22P02" => "invalid_text_representation",
        "22P03" => "invalid_binary_representation",
        "22P04" => "bad_copy_file_format",
        "22P05" => "untranslatable_character",
        _ if code.starts_with("22") => "data_exception",
        _ if code.starts_with("P0") => "raised by a function",
        _ if code.starts_with("38") || code.starts_with("39") => "external_routine_exception",
        _ => return None,
    };
    Some(name)
}

#[cfg(test)]
mod tests;
