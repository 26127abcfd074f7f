//! Statements that make tables and views, and the state tables of database `tailwater`.
//!
//! Every table is a `ReplacingMergeTree(_version, _deleted)` ordered by the source's key and nothing else: of the rows of one
//! key the one with the highest version remains, and rows are only found to be of one key by what they are ordered by. There
//! is no partition, which would keep rows of one key apart as soon as the expression's columns change. Equal versions are
//! the same change written twice, so whichever remains is right. Deleted rows stay as tombstones: cleaned up, an older insert
//! that is replayed would stand up again.

use crate::catalog::TableName;
use crate::mapping::clickhouse::{DELETED_COLUMN, VERSION_COLUMN, quote_ident, quote_literal, quoted};
use crate::value::clickhouse::types::ColumnType;

/// One column of a table to make.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColumnDdl {
    pub name: String,
    pub column_type: ColumnType,
}

/// Where tables are made: on one server, or on all of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Topology {
    #[default]
    Single,
    /// `Replicated…` tables, made `ON CLUSTER`.
    Cluster(String),
}

impl Topology {
    fn on_cluster(&self) -> String {
        match self {
            Topology::Single => String::new(),
            Topology::Cluster(name) => format!(" ON CLUSTER {}", quote_ident(name)),
        }
    }

    /// `{uuid}` and the rest are macros of the server; the path is the default's, said here since a server may have another.
    fn engine(&self, arguments: &str) -> String {
        match self {
            Topology::Single => format!("ReplacingMergeTree({arguments})"),
            Topology::Cluster(_) => format!(
                "ReplicatedReplacingMergeTree('/clickhouse/tables/{{uuid}}/{{shard}}', '{{replica}}', {arguments})"
            ),
        }
    }
}

/// Why a table would not keep one row a key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DdlError {
    #[error("table {0} has no key: ClickHouse keeps one row a key")]
    NoKey(TableName),
    #[error("key column \"{column}\" is {column_type}: equal numbers need not look equal")]
    FloatKey { column: String, column_type: ColumnType },
    #[error("key column \"{column}\" is {column_type}: a key cannot be null, nor an array")]
    NullableKey { column: String, column_type: ColumnType },
    #[error("column \"{0}\" has a name that this sink keeps for itself")]
    ReservedName(String),
    #[error("column \"{column}\" is {column_type}, into which no value can be written")]
    UnknownType { column: String, column_type: ColumnType },
}

/// What a merge must not do: `SETTINGS` of every table.
///
/// `fsync_after_insert` and `fsync_part_directory`: a row must be on disk before the checkpoint that speaks of it, or a power
/// cut leaves a checkpoint without its rows. The cleanup settings are the defaults, which a server's configuration may change.
const TABLE_SETTINGS: &str = "fsync_after_insert = 1, fsync_part_directory = 1, \
                              allow_experimental_replacing_merge_with_cleanup = 0";

/// The statement that makes a target table; `key` are indexes of `columns`. By version, every change is a row of its own.
pub fn create_table(
    table: &TableName,
    columns: &[ColumnDdl],
    key: &[usize],
    by_version: bool,
    topology: &Topology,
) -> Result<String, DdlError> {
    if key.is_empty() && !by_version {
        return Err(DdlError::NoKey(table.clone()));
    }
    let mut lines = Vec::with_capacity(columns.len() + 2);
    for ColumnDdl { name, column_type } in columns {
        if name == VERSION_COLUMN || name == DELETED_COLUMN {
            return Err(DdlError::ReservedName(name.clone()));
        }
        if matches!(column_type.bare(), ColumnType::Other(_)) {
            let (column, column_type) = (name.clone(), column_type.clone());
            return Err(DdlError::UnknownType { column, column_type });
        }
        lines.push(format!("    {} {column_type}", quote_ident(name)));
    }
    lines.push(format!("    {VERSION_COLUMN} UInt128"));
    lines.push(format!("    {DELETED_COLUMN} UInt8"));
    let key_columns = key.iter().map(|&index| &columns[index]);
    let mut names = key_columns.map(key_name).collect::<Result<Vec<_>, _>>()?;
    names.extend(by_version.then(|| VERSION_COLUMN.to_owned()));
    Ok(format!(
        "CREATE TABLE IF NOT EXISTS {}{}\n(\n{}\n)\nENGINE = {}\nORDER BY ({})\nSETTINGS {TABLE_SETTINGS}",
        quoted(table),
        topology.on_cluster(),
        lines.join(",\n"),
        topology.engine(&format!("{VERSION_COLUMN}, {DELETED_COLUMN}")),
        names.join(", "),
    ))
}

fn key_name(ColumnDdl { name, column_type }: &ColumnDdl) -> Result<String, DdlError> {
    let (column, column_type) = (name.clone(), column_type.clone());
    if column_type.is_float() {
        Err(DdlError::FloatKey { column, column_type })
    } else if column_type.is_nullable() || matches!(column_type, ColumnType::Array(_)) {
        Err(DdlError::NullableKey { column, column_type })
    } else {
        Ok(quote_ident(name))
    }
}

/// The statement that adds a column to a target table. In rows that are there it reads as `default`, an expression: parts of
/// before the column are not written anew, so the default stays in the table.
pub fn add_column(table: &TableName, column: &ColumnDdl, default: Option<&str>, topology: &Topology) -> String {
    let default = default.map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
    format!(
        "ALTER TABLE {}{} ADD COLUMN IF NOT EXISTS {} {}{default}",
        quoted(table),
        topology.on_cluster(),
        quote_ident(&column.name),
        column.column_type
    )
}

/// The table's helper view: its rows as the source has them.
pub fn current_view_name(table: &TableName) -> TableName {
    TableName::new(table.schema.clone(), format!("{}_current", table.name))
}

/// The statement that makes the helper view, over the columns that a reader wants to see.
pub fn create_current_view(table: &TableName, columns: &[ColumnDdl], topology: &Topology) -> String {
    let names: Vec<_> = columns.iter().map(|column| format!("    {}", quote_ident(&column.name))).collect();
    format!(
        "CREATE OR REPLACE VIEW {}{} AS\nSELECT\n{}\nFROM {} FINAL\nWHERE {DELETED_COLUMN} = 0",
        quoted(&current_view_name(table)),
        topology.on_cluster(),
        names.join(",\n"),
        quoted(table),
    )
}

/// Database `tailwater` and its tables, in the order of making. Every statement may run again.
///
/// Rows of these tables are never changed, only outlived: of one key the row with the highest `version` counts, so every
/// reader says FINAL. A checkpoint's is of its epoch and its `end_lsn`: what a daemon writes that another has taken over from
/// never counts.
pub fn state_schema(topology: &Topology) -> Vec<String> {
    let mut statements = vec![format!("CREATE DATABASE IF NOT EXISTS tailwater{}", topology.on_cluster())];
    for StateTable { name, columns, key, deleted, comment } in STATE_TABLES {
        let arguments = if *deleted { "version, dropped" } else { "version" };
        statements.push(format!(
            "CREATE TABLE IF NOT EXISTS tailwater.{name}{}\n({columns},\n    version UInt128\n)\nENGINE = {}\nORDER BY ({key})\n\
             SETTINGS {TABLE_SETTINGS}\nCOMMENT {}",
            topology.on_cluster(),
            topology.engine(arguments),
            quote_literal(comment),
        ));
    }
    statements
}

struct StateTable {
    name: &'static str,
    columns: &'static str,
    key: &'static str,
    /// Rows may be taken back, by `dropped = 1`.
    deleted: bool,
    comment: &'static str,
}

const STATE_TABLES: &[StateTable] = &[
    StateTable {
        name: "checkpoint",
        columns: "
    source String,
    commit_lsn UInt64,
    end_lsn UInt64,
    ordinal UInt64,
    commit_ts Nullable(DateTime64(6, 'UTC')),
    system_identifier String,
    timeline UInt32,
    database String,
    slot String,
    epoch Int64,
    owner String,
    updated_at DateTime64(6, 'UTC')",
        key: "source",
        deleted: false,
        comment: "one row a source: everything that it committed before end_lsn is in the tables",
    },
    StateTable {
        name: "table_state",
        columns: "
    source String,
    target String,
    origin String,
    state LowCardinality(String),
    lsn UInt64,
    until UInt64,
    joined Bool,
    rows UInt64,
    was_empty Bool,
    reason Nullable(String),
    epoch Int64,
    updated_at DateTime64(6, 'UTC')",
        key: "source, target",
        deleted: false,
        comment: "one row a target table: whether it streams yet, and from where",
    },
    StateTable {
        name: "view_state",
        columns: "
    view String,
    source String,
    lsn UInt64,
    refreshed_at DateTime64(6, 'UTC'),
    seconds Float64",
        key: "view, source",
        deleted: false,
        comment: "the source position that each materialized view reflects",
    },
    StateTable {
        name: "source_layout",
        columns: "
    source String,
    target String,
    layout String,
    noted_at DateTime64(6, 'UTC'),
    dropped UInt8",
        key: "source, target",
        deleted: true,
        comment: "what each source table was made of when it was last looked at",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, column_type: &str) -> ColumnDdl {
        ColumnDdl { name: name.to_owned(), column_type: ColumnType::parse(column_type) }
    }

    #[test]
    fn a_table_keeps_the_latest_row_of_each_key() {
        let columns = [column("id", "Int64"), column("a`b\\", "Nullable(String)")];
        let table = TableName::new("dwh", "t");
        let sql = create_table(&table, &columns, &[0], false, &Topology::Single).expect("it has a key");
        assert!(sql.starts_with(
            "CREATE TABLE IF NOT EXISTS `dwh`.`t`\n(\n    `id` Int64,\n    `a\\`b\\\\` Nullable(String),\n"
        ));
        assert!(sql.contains("ENGINE = ReplacingMergeTree(_version, _deleted)\nORDER BY (`id`)\n"));
        let sql =
            create_table(&table, &columns, &[0], false, &Topology::Cluster("c 1".to_owned())).expect("it has a key");
        assert!(sql.contains("`t` ON CLUSTER `c 1`\n"));
        assert!(sql.contains(
            "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', _version, _deleted)"
        ));
    }

    #[test]
    fn keys_that_do_not_tell_rows_apart_are_refused() {
        let table = TableName::new("dwh", "t");
        let of = |column_type: &str, key: &[usize]| {
            create_table(&table, &[column("k", column_type)], key, false, &Topology::Single).expect_err(column_type)
        };
        assert_eq!(of("Int64", &[]), DdlError::NoKey(table.clone()));
        assert!(matches!(of("Float64", &[0]), DdlError::FloatKey { .. }));
        assert!(matches!(of("Nullable(Float32)", &[0]), DdlError::FloatKey { .. }));
        assert!(matches!(of("Nullable(Int64)", &[0]), DdlError::NullableKey { .. }));
        assert!(matches!(of("LowCardinality(Nullable(String))", &[0]), DdlError::NullableKey { .. }));
        assert!(matches!(of("Array(Int64)", &[0]), DdlError::NullableKey { .. }));
        assert!(matches!(of("Map(String, String)", &[0]), DdlError::UnknownType { .. }));
        let reserved = create_table(&table, &[column("_deleted", "UInt8")], &[0], false, &Topology::Single);
        assert_eq!(reserved, Err(DdlError::ReservedName("_deleted".to_owned())));
    }
}
