//! The statements that make a mapping's target tables.

use std::collections::BTreeSet;

use super::ddl::{ColumnDdl, DdlError, Topology, create_current_view, create_table};
use crate::mapping::clickhouse::{ClickHouseTable, DELETED_COLUMN, VERSION_COLUMN, quote_ident};
use crate::value::clickhouse::types::ColumnType;

/// Databases, tables and helper views, in the order of making. Every statement may run again.
///
/// # Errors
/// A table would not keep one row a key.
pub fn make_targets(tables: &[ClickHouseTable], topology: &Topology) -> Result<Vec<String>, DdlError> {
    let databases: BTreeSet<&str> = tables.iter().map(|table| table.name.schema.as_str()).collect();
    let on_cluster = match topology {
        Topology::Single => String::new(),
        Topology::Cluster(name) => format!(" ON CLUSTER {}", quote_ident(name)),
    };
    let make = |database: &&str| format!("CREATE DATABASE IF NOT EXISTS {}{on_cluster}", quote_ident(database));
    let mut statements: Vec<String> = databases.iter().map(make).collect();
    for table in tables {
        let columns = table.columns.iter().filter(|column| ![VERSION_COLUMN, DELETED_COLUMN].contains(&&*column.name));
        let columns: Vec<ColumnDdl> = columns
            .map(|column| ColumnDdl { name: column.name.clone(), column_type: ColumnType::parse(&column.type_name) })
            .collect();
        let place = |name: &String| columns.iter().position(|column| column.name == *name);
        let key: Vec<usize> = table.sorting_key.iter().filter_map(place).collect();
        let by_version = table.sorting_key.iter().any(|name| name == VERSION_COLUMN);
        statements.push(create_table(&table.name, &columns, &key, by_version, topology)?);
        statements.push(create_current_view(&table.name, &columns, topology));
    }
    Ok(statements)
}

/// The statement that makes a table's helper view anew with columns that the table has got; `None` if the view is not there,
/// or not as it is made here.
pub fn renew_view(
    table: &ClickHouseTable,
    view: Option<&ClickHouseTable>,
    added: &[ColumnDdl],
    topology: &Topology,
) -> Option<String> {
    let own = |name: &str| [VERSION_COLUMN, DELETED_COLUMN].contains(&name);
    let is_new = |name: &str| added.iter().any(|column| column.name == name);
    let known: Vec<_> = table.columns.iter().filter(|column| !own(&column.name)).collect();
    let view = view.filter(|view| view.engine == "View")?;
    // A view without some that are new was not renewed yet.
    let shown: Vec<_> = view.columns.iter().map(|column| &column.name).collect();
    let before = known.iter().map(|column| &column.name).filter(|name| shown.contains(name) || !is_new(name));
    if !before.eq(shown.iter().copied()) {
        return None;
    }
    let known = known
        .iter()
        .map(|column| ColumnDdl { name: column.name.clone(), column_type: ColumnType::parse(&column.type_name) });
    let further = added.iter().filter(|column| table.column(&column.name).is_none()).cloned();
    let columns: Vec<_> = known.chain(further).collect();
    Some(create_current_view(&table.name, &columns, topology))
}

/// The same as one script.
///
/// # Errors
/// See [`make_targets`].
pub fn script(tables: &[ClickHouseTable], topology: &Topology) -> Result<String, DdlError> {
    Ok(make_targets(tables, topology)?.iter().map(|statement| format!("{statement};\n\n")).collect())
}
