//! What settling asks of the two ends, one table at a time.

use postgres_types::{FromSql, Type};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::cases::Case;
use super::{Unsettled, layout_of, store};
use crate::catalog::quote_literal;
use crate::mapping::plan::BeforeAdded;
use crate::postgres::error::describe;
use crate::sink::state::name_text;
use crate::source::layout::LayoutColumn;

/// Adds the columns to the target and remembers it, in one transaction; or why that cannot be.
pub(super) async fn add_columns(client: &Client, case: &Case) -> Result<Result<(), String>, Unsettled> {
    let statements: Vec<_> = case
        .follow
        .iter()
        .filter_map(|follow| Some(follow.desired.as_ref()?.add_to(&case.target, follow.value.as_deref())))
        .collect();
    store::ensure(client).await?;
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '10s'").await?;
    let done = async {
        client.batch_execute(&statements.join("; ")).await?;
        match layout_of(case).filter(|_| !case.is_copied_anew()) {
            Some(layout) => store::write(client, &case.source, &case.target, &layout).await,
            None => Ok(()),
        }
    };
    let done = done.await;
    client.batch_execute(if done.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    let Err(error) = done else { return Ok(Ok(())) };
    if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) || error.code().is_none() {
        return Err(error.into());
    }
    let hint = match error.code() {
        Some(code) if code == &SqlState::INSUFFICIENT_PRIVILEGE => "; let the table's owner run: ",
        _ => "; refused was: ",
    };
    Ok(Err(format!(
        "a column was added, and the sink does not let us add it to the target: {}{hint}{}",
        describe(&error),
        statements.join("; ")
    )))
}

/// Leaves word in the table's state, which stays as it is.
pub(super) async fn tell(client: &Client, case: &Case, message: &str) -> Result<(), Unsettled> {
    let sql = "UPDATE tailwater.table_state SET reason = $3, updated_at = now() WHERE source = $1 AND target = $2";
    client.execute(sql, &[&case.source, &name_text(&case.target), &message]).await?;
    Ok(())
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
pub(super) async fn before_added(client: &Client, column: &LayoutColumn) -> Result<BeforeAdded, Unsettled> {
    let [text] = column.missing.as_slice() else { return Ok(BeforeAdded::Null) };
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
