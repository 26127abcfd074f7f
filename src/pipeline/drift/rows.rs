//! Looks at rows and at what is published, where the catalog alone does not tell what a change means.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::catalog::{TableName, quote_ident, quote_literal};
use crate::postgres::error::SqlError;
use crate::source::probe::PublicationRow;

/// How long transactions are waited for that may have written before a publication was altered.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(30);
/// A look at rows must not hold up a start.
const PROBE_TIMEOUT: &str = "60s";

/// Why a publication does not send all changes of a table.
pub(super) fn unpublished(publication: &PublicationRow, table: &TableName) -> Option<&'static str> {
    if publication.all_tables || publication.schemas {
        return None;
    }
    match publication.tables.iter().find(|published| &published.name == table) {
        None => Some("the table left the publication, and what was changed since was not sent"),
        Some(published) if published.filtered => {
            Some("the publication filters the table's rows now, and what was changed since was not all sent")
        }
        Some(_) => None,
    }
}

/// Runs a look at rows that must end soon.
pub(super) async fn limited<T>(
    client: &Client,
    look: impl Future<Output = Result<T, SqlError>>,
) -> Result<T, SqlError> {
    client.batch_execute(&format!("SET statement_timeout = '{PROBE_TIMEOUT}'")).await?;
    let looked = look.await;
    client.batch_execute("RESET statement_timeout").await?;
    looked
}

/// Why rows may have been written with a column that was not published at the time.
pub(super) async fn unpublished_rows(
    client: &Client,
    table: &TableName,
    column: &str,
    value: Option<&str>,
) -> Result<Option<String>, SqlError> {
    // Whoever writes now may have begun before the column was published.
    let begun: String =
        client.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())::text", &[]).await?.try_get(0)?;
    let ended = format!("SELECT pg_snapshot_xmin(pg_current_snapshot()) >= {}::xid8", quote_literal(&begun));
    let deadline = Instant::now() + WRITERS_TIMEOUT;
    while !client.query_one(&ended, &[]).await?.try_get::<_, bool>(0)? {
        if Instant::now() >= deadline {
            return Ok(Some("transactions of that time have not ended yet".to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let column = quote_ident(column);
    let differs = match value {
        None => format!("{column} IS NOT NULL"),
        Some(value) => format!("{column}::text IS DISTINCT FROM {}", quote_literal(value)),
    };
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {differs})", table.quoted());
    let exists = async { Ok(client.query_one(&sql, &[]).await?.try_get::<_, bool>(0)?) };
    Ok(match limited(client, exists).await {
        Ok(false) => None,
        Ok(true) => Some("rows have values in it that may not have been sent".to_owned()),
        Err(error) => Some(format!("whether rows have values in it is not known ({error})")),
    })
}

/// Does the target hold anything but this value in the column?
pub(super) async fn holds_other(
    client: &Client,
    target: &TableName,
    column: &str,
    type_name: &str,
    value: Option<&str>,
) -> Result<bool, SqlError> {
    let column = quote_ident(column);
    let differs = match value {
        None => format!("{column} IS NOT NULL"),
        Some(value) => format!("{column}::text IS DISTINCT FROM CAST({} AS {type_name})::text", quote_literal(value)),
    };
    let sql = format!("SELECT EXISTS (SELECT FROM {} WHERE {differs})", target.quoted());
    let exists = async { Ok(client.query_one(&sql, &[]).await?.try_get::<_, bool>(0)?) };
    // Where it cannot be told, it does.
    Ok(limited(client, exists).await.unwrap_or(true))
}
