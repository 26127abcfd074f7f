//! Why settling came to nothing.

use super::warehouse::WarehouseError;
use crate::postgres::error::SqlError;
use crate::retry::Retry;
use crate::sink::clickhouse::error::ClickHouseError;

/// Why there is nothing to run.
#[derive(Debug, thiserror::Error)]
pub enum Unsettled {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    ClickHouse(ClickHouseError),
    /// Kafka does not take what became of a table.
    #[error("{0}")]
    Kafka(String),
    /// Another daemon streams, and will do what there is to do, or end: look again later.
    #[error("another daemon streams from the slot, and a table changed or may have")]
    StandBy,
    /// `on_error = "stop"`.
    #[error("{0}")]
    Stop(String),
}

impl Unsettled {
    /// Only an end that does not answer may do so later.
    pub fn retry(&self) -> Retry {
        match self {
            Unsettled::Sql(error) => error.retry(),
            Unsettled::ClickHouse(error) => error.retry(),
            Unsettled::Kafka(_) => Retry::Backoff,
            Unsettled::StandBy | Unsettled::Stop(_) => Retry::Never,
        }
    }
}

impl From<WarehouseError> for Unsettled {
    fn from(error: WarehouseError) -> Self {
        match error {
            WarehouseError::Sql(error) => Unsettled::Sql(error),
            WarehouseError::ClickHouse(error) => Unsettled::ClickHouse(error),
        }
    }
}

impl From<tokio_postgres::Error> for Unsettled {
    fn from(error: tokio_postgres::Error) -> Self {
        Unsettled::Sql(error.into())
    }
}
