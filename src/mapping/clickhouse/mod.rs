//! Mappings into ClickHouse: what a server says of its tables, and the plans and tables that a mapping comes to there.
//!
//! Every target is a `ReplacingMergeTree(_version, _deleted)` ordered by the mapping's key: rows are only ever inserted, and
//! of a key's rows the one with the highest version counts.

mod build;
mod desired;
mod plan;

use crate::catalog::TableName;

pub use build::convert;
pub(super) use desired::{added_type, desired};
pub(super) use plan::{plan, view_plan};

/// Orders the states of a key: `commit_lsn << 64 | ordinal`.
pub const VERSION_COLUMN: &str = "_version";
/// 1 where the state is that there is no row.
pub const DELETED_COLUMN: &str = "_deleted";

/// One server, as it answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveClickHouse {
    pub tables: Vec<ClickHouseTable>,
}

impl LiveClickHouse {
    pub fn table(&self, name: &TableName) -> Option<&ClickHouseTable> {
        self.tables.iter().find(|table| &table.name == name)
    }
}

/// One table or view; its schema is ClickHouse's database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClickHouseTable {
    pub name: TableName,
    /// `system.tables.engine`: `ReplicatedReplacingMergeTree`, `MaterializedView`, …
    pub engine: String,
    /// Version and deleted column among the engine's arguments.
    pub is_versioned: bool,
    pub sorting_key: Vec<String>,
    /// Columns that the partition is computed from.
    pub partition_key: Vec<String>,
    pub columns: Vec<ClickHouseColumn>,
    /// A materialized view with a REFRESH clause.
    pub is_refreshable: bool,
    /// The query of a view, as the server keeps it: every table with its database.
    pub query: String,
}

impl ClickHouseTable {
    pub fn column(&self, name: &str) -> Option<&ClickHouseColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClickHouseColumn {
    pub name: String,
    /// As the server writes it.
    pub type_name: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, `EPHEMERAL`, or nothing.
    pub default_kind: String,
}

/// An identifier as ClickHouse's SQL: in backticks, with what would end them escaped.
pub fn quote_ident(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`").replace('\0', ""))
}

/// A string constant as ClickHouse's SQL.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'").replace('\0', "\\0"))
}

/// A table's name as ClickHouse's SQL.
pub fn quoted(name: &TableName) -> String {
    format!("{}.{}", quote_ident(&name.schema), quote_ident(&name.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_constants_cannot_be_left() {
        assert_eq!(quoted(&TableName::new("d", "a`b\\")), r"`d`.`a\`b\\`");
        assert_eq!(quote_literal("it's \\ \0"), r"'it\'s \\ \0'");
    }
}
