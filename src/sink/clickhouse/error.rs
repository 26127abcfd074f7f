//! What went wrong at ClickHouse, told without any row value.
//!
//! Exception texts quote the values they are about, so only code and name of an exception are kept, and the text of those
//! that speak of statements, names, rights and resources. No statement of ours holds a row's value as a literal.

use std::fmt;

use crate::retry::Retry;

/// A failed statement or connection. Everything in it may be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClickHouseError {
    #[error("{0}")]
    Server(Exception),
    /// The server is not reached, or the connection broke. Whether a statement under way was carried out is not known.
    #[error("{0}")]
    Connection(String),
    /// Whoever answers does not speak TLS, or is not believed.
    #[error("{0}")]
    Tls(String),
    /// Whether the statement was or will be carried out is not known.
    #[error("no answer within {0:?}")]
    Timeout(std::time::Duration),
    /// The configuration cannot work.
    #[error("{0}")]
    Settings(String),
    #[error("the server's answer is not understood: {0}")]
    Answer(&'static str),
    /// Fewer rows than were sent: something between us and the table dropped some.
    #[error("{sent} rows were sent and {written} written")]
    Written { sent: u64, written: u64 },
}

/// The server's own error.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exception {
    pub code: i32,
    /// `TOO_MANY_PARTS`; empty if the answer does not have it.
    pub name: String,
    /// Only of an exception whose text is not about values.
    pub text: Option<String>,
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Some(text) => write!(f, "{text} ({} {})", self.code, self.name),
            None => write!(f, "ClickHouse error {} {}", self.code, self.name),
        }
    }
}

/// Codes whose text speaks of statements, names, rights or resources, never of values. (`src/Common/ErrorCodes.cpp`.)
const TOLD: [i32; 27] = [
    16,  // NO_SUCH_COLUMN_IN_TABLE
    42,  // NUMBER_OF_ARGUMENTS_DOESNT_MATCH
    43,  // ILLEGAL_TYPE_OF_ARGUMENT
    46,  // UNKNOWN_FUNCTION
    47,  // UNKNOWN_IDENTIFIER
    57,  // TABLE_ALREADY_EXISTS
    60,  // UNKNOWN_TABLE
    62,  // SYNTAX_ERROR
    81,  // UNKNOWN_DATABASE
    82,  // DATABASE_ALREADY_EXISTS
    115, // UNKNOWN_SETTING
    159, // TIMEOUT_EXCEEDED
    164, // READONLY
    170, // CLUSTER_DOESNT_EXIST
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    210, // NETWORK_ERROR
    225, // NO_ZOOKEEPER
    241, // MEMORY_LIMIT_EXCEEDED
    242, // TABLE_IS_READ_ONLY
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS
    285, // TOO_FEW_LIVE_REPLICAS
    386, // NO_COMMON_TYPE
    497, // ACCESS_DENIED
    516, // AUTHENTICATION_FAILED
    701, // CLUSTER_DOESNT_EXIST
    999, // KEEPER_EXCEPTION
];

/// Codes that pass with time; the same again is then right, since a row written twice stays one row.
const TRANSIENT: [i32; 33] = [
    3,   // UNEXPECTED_END_OF_FILE: the connection broke within the body
    74,  // CANNOT_READ_FROM_FILE_DESCRIPTOR
    75,  // CANNOT_WRITE_TO_FILE_DESCRIPTOR
    76,  // CANNOT_OPEN_FILE
    95,  // CANNOT_READ_FROM_SOCKET
    96,  // CANNOT_WRITE_TO_SOCKET
    159, // TIMEOUT_EXCEEDED
    160, // TOO_SLOW
    202, // TOO_MANY_SIMULTANEOUS_QUERIES
    203, // NO_FREE_CONNECTION
    209, // SOCKET_TIMEOUT
    210, // NETWORK_ERROR
    225, // NO_ZOOKEEPER
    236, // ABORTED
    241, // MEMORY_LIMIT_EXCEEDED
    242, // TABLE_IS_READ_ONLY: a replica lost its Keeper session
    243, // NOT_ENOUGH_SPACE
    252, // TOO_MANY_PARTS
    254, // NO_ACTIVE_REPLICAS
    265, // ALL_REPLICAS_ARE_STALE
    279, // ALL_CONNECTION_TRIES_FAILED
    285, // TOO_FEW_LIVE_REPLICAS
    286, // UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE
    319, // UNKNOWN_STATUS_OF_INSERT
    369, // ALL_REPLICAS_LOST
    394, // QUERY_WAS_CANCELLED: by a person, or at the server's shutdown
    415, // ALL_REPLICAS_LOST of older servers
    425, // SYSTEM_ERROR
    439, // CANNOT_SCHEDULE_TASK
    473, // DEADLOCK_AVOIDED
    573, // EPOLL_ERROR
    722, // ASYNC_LOAD_WAIT_FAILED: the server is still starting
    999, // KEEPER_EXCEPTION
];

/// What is not known to pass does not.
pub fn by_code(code: i32) -> Retry {
    if TRANSIENT.contains(&code) { Retry::Backoff } else { Retry::Never }
}

impl ClickHouseError {
    pub fn retry(&self) -> Retry {
        match self {
            ClickHouseError::Server(exception) => by_code(exception.code),
            ClickHouseError::Connection(_)
            | ClickHouseError::Tls(_)
            | ClickHouseError::Timeout(_)
            | ClickHouseError::Written { .. } => Retry::Backoff,
            ClickHouseError::Settings(_) | ClickHouseError::Answer(_) => Retry::Never,
        }
    }

    /// The server's code, if the server answered.
    pub fn code(&self) -> Option<i32> {
        match self {
            ClickHouseError::Server(exception) => Some(exception.code),
            _ => None,
        }
    }
}

/// An exception's text is cut here: some repeat a whole statement.
const TEXT_MAX: usize = 400;

impl Exception {
    /// From an answer's `X-ClickHouse-Exception-Code`, if it has one, and its body:
    /// `Code: 60. DB::Exception: Unknown table … (UNKNOWN_TABLE) (version 26.9.2.1)`.
    pub fn read(code: Option<i32>, body: &str) -> Option<Exception> {
        let from_body = || body.strip_prefix("Code: ")?.split('.').next()?.parse().ok();
        let code = code.or_else(from_body)?;
        let (text, version) = body.trim_end().rsplit_once(" (version ").unwrap_or((body.trim_end(), ""));
        debug_assert!(!version.contains('\n'));
        let (text, name) = match text.strip_suffix(')').and_then(|text| text.rsplit_once('(')) {
            Some((text, name)) if is_name(name) => (text, name),
            _ => (text, ""),
        };
        let text = text.split_once("DB::Exception: ").map_or(text, |(_, text)| text);
        let line = text.lines().next().unwrap_or_default().trim_end_matches([' ', '.']);
        let line: String = line.chars().take(TEXT_MAX).collect();
        let text = (TOLD.contains(&code) && !line.is_empty()).then_some(line);
        Some(Exception { code, name: name.to_owned(), text })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h77_codes_are_classified() {
        for code in [159, 202, 209, 210, 236, 241, 242, 243, 252, 285, 319, 394, 999] {
            assert_eq!(by_code(code), Retry::Backoff, "{code}");
        }
        for code in [6, 16, 27, 33, 38, 41, 47, 53, 60, 62, 69, 70, 72, 117, 164, 192, 349, 407, 497, 516, 0, 100_000] {
            assert_eq!(by_code(code), Retry::Never, "{code}");
        }
    }

    #[test]
    fn texts_of_names_are_told_and_texts_of_values_are_not() {
        let unknown = "Code: 60. DB::Exception: Unknown table expression identifier 'dwh.t' in scope SELECT 1. \
                       (UNKNOWN_TABLE) (version 26.9.2.1)\n";
        let read = Exception::read(Some(60), unknown).expect("it has a code");
        assert_eq!((read.code, read.name.as_str()), (60, "UNKNOWN_TABLE"));
        assert!(read.to_string().starts_with("Unknown table expression identifier 'dwh.t'"));
        let quoting = "Code: 27. DB::Exception: Cannot parse input: expected 'x' before: 's3cret value': (at row 1)\n: \
                       While executing. (CANNOT_PARSE_INPUT_ASSERTION_FAILED) (version 26.9.2.1)";
        let read = Exception::read(None, quoting).expect("it has a code");
        assert_eq!(read.to_string(), "ClickHouse error 27 CANNOT_PARSE_INPUT_ASSERTION_FAILED");
        assert!(!format!("{read:?}").contains("s3cret"));
        assert_eq!(Exception::read(None, "<html>502</html>"), None);
    }

    #[test]
    fn what_stands_in_parentheses_is_no_name_unless_it_looks_like_one() {
        let read = Exception::read(Some(6), "Code: 6. DB::Exception: Cannot parse (a value)").expect("it has a code");
        assert_eq!((read.name.as_str(), read.text), ("", None));
    }
}
