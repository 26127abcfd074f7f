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

/// The same as one script.
///
/// # Errors
/// See [`make_targets`].
pub fn script(tables: &[ClickHouseTable], topology: &Topology) -> Result<String, DdlError> {
    Ok(make_targets(tables, topology)?.iter().map(|statement| format!("{statement};\n\n")).collect())
}
