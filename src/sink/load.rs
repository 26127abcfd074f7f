//! Why a snapshot does not get into a sink that writes each row itself; Postgres takes the bytes of a COPY as they are.

use crate::source::copy_rows::CutShort;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the source cannot be read")]
    Source(#[source] tokio_postgres::Error),
    /// Passes with time.
    #[error("{0}")]
    Passing(String),
    /// The target does not take a row, or a row cannot be made.
    #[error("{0}")]
    Row(String),
    /// Another daemon has taken over and copies by itself.
    #[error("another daemon took over")]
    Fenced,
}

impl From<CutShort> for LoadError {
    fn from(error: CutShort) -> Self {
        LoadError::Row(error.to_string())
    }
}
