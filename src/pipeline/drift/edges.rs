//! What settling asks of the two ends, one table at a time.

use postgres_types::{FromSql, Type};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::cases::Case;
use super::warehouse::{Warehouse, WarehouseError};
use super::{Unsettled, layout_of, store};
use crate::catalog::quote_literal;
use crate::mapping::plan::BeforeAdded;
use crate::source::layout::LayoutColumn;

/// Adds the columns to the target and remembers it, in one transaction; or why that cannot be.
pub(super) async fn add_columns(client: &Client, case: &Case) -> Result<Result<(), String>, Unsettled> {
    let statements: Vec<_> = case
        .follow
        .iter()
        .filter_map(|follow| Some(follow.desired.as_ref()?.add_to(&case.target, follow.value.as_deref())))
        .collect();
    let warehouse = Warehouse::Postgres(client);
    store::ensure(warehouse).await?;
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '10s'").await?;
    let done = async {
        client.batch_execute(&statements.join("; ")).await?;
        match layout_of(case).filter(|_| !case.is_copied_anew()) {
            Some(layout) => store::write(warehouse, &case.source, &case.target, &layout).await,
            None => Ok(()),
        }
    };
    let done: Result<(), WarehouseError> = done.await;
    client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    let error = match done {
        Ok(()) => return Ok(Ok(())),
        Err(WarehouseError::Sql(error)) => error,
        Err(error) => return Err(error.into()),
    };
    if error.is(&SqlState::LOCK_NOT_AVAILABLE) || error.sqlstate().is_none() {
        return Err(error.into());
    }
    let hint = match error.sqlstate() {
        Some(code) if code == &SqlState::INSUFFICIENT_PRIVILEGE => "; let the table's owner run: ",
        _ => "; refused was: ",
    };
    Ok(Err(format!(
        "a column was added, and the sink does not let us add it to the target: {}{hint}{}",
        error,
        statements.join("; ")
    )))
}

/// A value as it comes over the wire.
struct Raw(Option<Vec<u8>>);

impl<'a> FromSql<'a> for Raw {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(Some(raw.to_vec())))
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Raw(None))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

/// What the source would send of a column in a row that is older than it.
pub(super) async fn before_added(
    client: &Client,
    warehouse: Warehouse<'_>,
    column: &LayoutColumn,
) -> Result<BeforeAdded, Unsettled> {
    let [text] = column.missing.as_slice() else { return Ok(BeforeAdded::Null) };
    // Of every type its text is understood there.
    if matches!(warehouse, Warehouse::ClickHouse(_)) {
        return Ok(BeforeAdded::Text(text.clone().into_bytes()));
    }
    let sql = format!("SELECT CAST({} AS {})", quote_literal(text), column.type_name);
    match client.query_one(&sql, &[]).await {
        Ok(row) => Ok(match row.try_get::<_, Raw>(0)?.0 {
            Some(value) => BeforeAdded::Binary(value),
            None => BeforeAdded::Null,
        }),
        // A type without a binary form is sent as text.
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_FUNCTION) => {
            Ok(BeforeAdded::Text(text.clone().into_bytes()))
        }
        Err(error) => Err(error.into()),
    }
}
