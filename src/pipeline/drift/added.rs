//! Columns that a ClickHouse target gets for those that were added at the source.

use std::fmt::Write as _;

use super::cases::{Case, Follow};
use super::warehouse::{Warehouse, WarehouseError};
use super::{Unsettled, layout_of, store};
use crate::catalog::TableName;
use crate::mapping::clickhouse::{DELETED_COLUMN, LiveClickHouse, quote_ident, quote_literal, quoted};
use crate::mapping::plan::BeforeAdded;
use crate::retry::Retry;
use crate::sink::clickhouse::Server;
use crate::sink::clickhouse::ddl::{ColumnDdl, add_column, current_view_name};
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::targets::renew_view;
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::{Encoder, ValueError};
use crate::value::clickhouse::types::{ColumnType, OnOverflow, SourceType};

/// A column's value in rows that are older than it, and where it is to go.
pub(super) struct Older<'a> {
    pub source: SourceType,
    /// The target column's.
    pub target: &'a str,
    pub on_overflow: OnOverflow,
    pub value: &'a BeforeAdded,
}

/// The value as ClickHouse's SQL, made by the encoder that the stream's values go through; or why the column cannot hold it.
pub(super) async fn literal(server: &Server, older: &Older<'_>) -> Result<Result<String, String>, ClickHouseError> {
    let target = ColumnType::parse(older.target);
    let mut bytes = Vec::new();
    let encoder = Encoder::new(&older.source, &target, older.on_overflow, server.reach);
    let put = encoder.map_err(|error| error.to_string()).and_then(|encoder| {
        let cell = match older.value {
            BeforeAdded::Null => Cell::Null,
            BeforeAdded::Binary(value) => Cell::Binary(value),
            BeforeAdded::Text(value) => Cell::Text(value),
        };
        encoder.put(&mut bytes, cell).map_err(|error: ValueError| error.to_string())
    });
    if let Err(why) = put {
        return Ok(Err(why));
    }
    let mut hex = String::with_capacity(2 * bytes.len());
    for byte in &bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    // As the server prints it: of a string its bytes, which need not be text.
    let shown = if *target.bare() == ColumnType::String { "hex(v)" } else { "toString(v)" };
    let structure = quote_literal(&format!("v {}", older.target));
    let sql = format!("SELECT isNull(v), {shown} FROM format(RowBinary, {structure}, unhex('{hex}'))");
    let rows = server.client.rows(&sql).await?;
    let text = rows.first().and_then(|row| row.get(1)).and_then(|value| value.as_str());
    let value = match text {
        None => "NULL".to_owned(),
        Some(hex) if *target.bare() == ColumnType::String => string(hex),
        Some(text) => quote_literal(text),
    };
    Ok(Ok(format!("CAST({value}, {})", quote_literal(older.target))))
}

/// A string of which the bytes are known: as a person would write it, if it is text.
fn string(hex: &str) -> String {
    let digits: Vec<_> = hex.bytes().filter_map(|digit| char::from(digit).to_digit(16)).collect();
    let bytes: Vec<u8> = digits.chunks_exact(2).filter_map(|pair| u8::try_from(pair[0] << 4 | pair[1]).ok()).collect();
    match std::str::from_utf8(&bytes) {
        Ok(text) if !text.contains('\0') => quote_literal(text),
        _ => format!("unhex('{hex}')"),
    }
}

/// Does a live row hold anything but this value in the column?
pub(super) async fn holds_other(server: &Server, target: &TableName, column: &str, literal: Option<&str>) -> bool {
    let column = quote_ident(column);
    let differs = match literal {
        None => format!("{column} IS NOT NULL"),
        Some(literal) => format!("ifNull(toString({column}), '\\0') != ifNull(toString({literal}), '\\0')"),
    };
    let sql = format!(
        "SELECT count() FROM (SELECT 1 FROM {} FINAL WHERE {DELETED_COLUMN} = 0 AND {differs} LIMIT 1) \
         SETTINGS max_execution_time = 60",
        quoted(target)
    );
    // Where it cannot be told, it does.
    let rows = server.client.rows(&sql).await.unwrap_or_default();
    rows.first().and_then(|row| row.first()).map(crate::sink::clickhouse::state::number) != Some(0)
}

/// Adds the columns to the target and remembers it; or why that cannot be. Every step may be done again.
pub(super) async fn add_columns(
    server: &Server,
    live: &LiveClickHouse,
    case: &mut Case,
) -> Result<Result<(), String>, Unsettled> {
    let added = |follow: &Follow| {
        let desired = follow.desired.as_ref()?;
        Some(ColumnDdl { name: desired.name.clone(), column_type: ColumnType::parse(&desired.type_name) })
    };
    let columns: Vec<ColumnDdl> = case.follow.iter().filter_map(added).collect();
    let statements: Vec<String> = case
        .follow
        .iter()
        .filter_map(|follow| {
            Some(add_column(&case.target, &added(follow)?, follow.literal.as_deref(), &server.topology))
        })
        .collect();
    let warehouse = Warehouse::ClickHouse(server);
    store::ensure(warehouse).await?;
    for sql in &statements {
        if let Err(error) = server.client.execute(sql).await {
            if error.retry() == Retry::Backoff {
                return Err(WarehouseError::from(error).into());
            }
            return Ok(Err(format!(
                "a column was added, and the sink does not let us add it to the target: {error}; refused was: {}",
                statements.join("; ")
            )));
        }
    }
    let view = current_view_name(&case.target);
    let renewed =
        live.table(&case.target).and_then(|table| renew_view(table, live.table(&view), &columns, &server.topology));
    match renewed {
        Some(sql) => {
            if let Err(error) = server.client.execute(&sql).await {
                case.notes.push(format!("view \"{view}\" was not made anew with the added columns: {error}"));
            }
        }
        None if live.table(&view).is_some() => {
            case.notes.push(format!("view \"{view}\" is not as it was made, and was left without the added columns"));
        }
        None => {}
    }
    if let Some(layout) = layout_of(case).filter(|_| !case.is_copied_anew()) {
        store::write(warehouse, &case.source, &case.target, &layout).await?;
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_written_as_what_they_are() {
        assert_eq!(string("69742773"), "'it\\'s'");
        assert_eq!(string("00ff"), "unhex('00ff')");
        assert_eq!(string(""), "''");
    }
}
