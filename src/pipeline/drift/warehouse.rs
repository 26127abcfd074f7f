//! A sink as settling sees it: where its tables stand, and what can be written beside them.

use tokio_postgres::Client;

use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::postgres::error::SqlError;
use crate::retry::Retry;
use crate::sink::any::SinkSession;
use crate::sink::clickhouse::Server;
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::state::{self as clickhouse_state, TableRow};
use crate::sink::postgres::state;
use crate::sink::state::{StoredTable, TableState, name_text};

/// A session with a sink of either kind.
#[derive(Clone, Copy)]
pub enum Warehouse<'a> {
    Postgres(&'a Client),
    ClickHouse(&'a Server),
}

/// A sink of either kind did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WarehouseError {
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
}

impl From<tokio_postgres::Error> for WarehouseError {
    fn from(error: tokio_postgres::Error) -> Self {
        WarehouseError::Sql(error.into())
    }
}

impl WarehouseError {
    pub fn retry(&self) -> Retry {
        match self {
            WarehouseError::Sql(error) => error.retry(),
            WarehouseError::ClickHouse(error) => error.retry(),
        }
    }
}

impl<'a> Warehouse<'a> {
    /// `None`: it has no tables.
    pub fn of(session: &'a SinkSession) -> Option<Warehouse<'a>> {
        match session {
            SinkSession::Postgres(client) => Some(Warehouse::Postgres(client)),
            SinkSession::ClickHouse(server) => Some(Warehouse::ClickHouse(server)),
            SinkSession::Kafka(_) => None,
        }
    }
}

impl Warehouse<'_> {
    /// The states of a source's tables; none before the first start.
    pub async fn tables(self, source: &str) -> Result<Vec<StoredTable>, WarehouseError> {
        Ok(match self {
            Warehouse::Postgres(client) if !state::has_schema(client).await? => Vec::new(),
            Warehouse::Postgres(client) => state::read_tables(client, source).await?,
            Warehouse::ClickHouse(server) if !clickhouse_state::has_schema(&server.client).await? => Vec::new(),
            Warehouse::ClickHouse(server) => clickhouse_state::read_tables(&server.client, source).await?,
        })
    }

    /// Up to where the sink has a source's changes.
    pub async fn checkpoint(self, source: &str) -> Result<Option<Lsn>, WarehouseError> {
        let stored = match self {
            Warehouse::Postgres(client) => state::read_checkpoint(client, source).await?,
            Warehouse::ClickHouse(server) => clickhouse_state::read_checkpoint(&server.client, source).await?,
        };
        Ok(stored.map(|stored| stored.checkpoint.end_lsn))
    }

    /// Takes a table out of the stream.
    pub async fn quarantine(
        self,
        source: &str,
        origin: &TableName,
        target: &TableName,
        reason: &str,
    ) -> Result<(), WarehouseError> {
        let quarantined = TableState::Quarantined;
        match self {
            Warehouse::Postgres(client) => {
                state::write_table(client, source, origin, target, quarantined, Lsn::ZERO, Some(reason)).await?;
            }
            Warehouse::ClickHouse(server) => {
                let (lsn, until, reason) = (Lsn::ZERO, Lsn::ZERO, Some(reason));
                let (rows, was_empty, epoch) = (0, false, 0);
                let row =
                    TableRow { source, target, origin, state: quarantined, lsn, until, rows, was_empty, reason, epoch };
                clickhouse_state::write_table(&server.client, &row).await?;
            }
        }
        Ok(())
    }

    /// Leaves word in a table's state, which stays as it is.
    pub async fn tell(self, source: &str, target: &TableName, message: &str) -> Result<(), WarehouseError> {
        match self {
            Warehouse::Postgres(client) => {
                let sql = "UPDATE tailwater.table_state SET reason = $3, updated_at = now() WHERE source = $1 AND target = $2";
                client.execute(sql, &[&source, &name_text(target), &message]).await?;
            }
            Warehouse::ClickHouse(server) => {
                clickhouse_state::write_reason(&server.client, source, target, message).await?;
            }
        }
        Ok(())
    }
}
