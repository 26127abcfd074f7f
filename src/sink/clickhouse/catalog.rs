//! What a ClickHouse server says of its tables.

use std::collections::BTreeMap;

use super::error::ClickHouseError;
use super::http::Client;
use super::state::{number, text};
use crate::catalog::TableName;
use crate::mapping::clickhouse::{ClickHouseColumn, ClickHouseTable, DELETED_COLUMN, LiveClickHouse, VERSION_COLUMN};

/// One table's.
#[derive(Default)]
struct Columns {
    all: Vec<ClickHouseColumn>,
    sorting: Vec<String>,
    partitioning: Vec<String>,
}

/// Reads all tables and views that are not the server's own.
pub async fn read_tables(client: &Client) -> Result<LiveClickHouse, ClickHouseError> {
    let databases = "database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema', 'tailwater')";
    let tables = client
        .rows(&format!(
            "SELECT database, name, engine, engine_full, create_table_query, as_select FROM system.tables \
             WHERE {databases} AND NOT is_temporary"
        ))
        .await?;
    let columns = client
        .rows(&format!(
            "SELECT database, table, name, type, default_kind, is_in_sorting_key, is_in_partition_key FROM system.columns \
             WHERE {databases} ORDER BY database, table, position"
        ))
        .await?;
    let mut of_table: BTreeMap<(String, String), Columns> = BTreeMap::new();
    for row in columns {
        let [database, table, name, type_name, default_kind, sorts, partitions] = row.as_slice() else { continue };
        let of_table = of_table.entry((text(database), text(table))).or_default();
        of_table.sorting.extend((number(sorts) == 1).then(|| text(name)));
        of_table.partitioning.extend((number(partitions) == 1).then(|| text(name)));
        of_table.all.push(ClickHouseColumn {
            name: text(name),
            type_name: text(type_name),
            default_kind: text(default_kind),
        });
    }
    let mut live = LiveClickHouse::default();
    for row in tables {
        let [database, name, engine, engine_full, create, query] = row.as_slice() else { continue };
        let place = (text(database), text(name));
        let columns = of_table.remove(&place).unwrap_or_default();
        let engine = text(engine);
        live.tables.push(ClickHouseTable {
            is_versioned: is_versioned(&text(engine_full)),
            is_refreshable: engine == "MaterializedView" && is_refreshable(&text(create)),
            name: TableName::new(place.0, place.1),
            engine,
            sorting_key: columns.sorting,
            partition_key: columns.partitioning,
            columns: columns.all,
            query: text(query),
        });
    }
    Ok(live)
}

/// `ReplacingMergeTree(_version, _deleted) ORDER BY …`, with more arguments before these where it is replicated.
fn is_versioned(engine_full: &str) -> bool {
    let arguments = engine_full.split_once(" ORDER BY").map_or(engine_full, |(engine, _)| engine);
    arguments.contains(&format!("{VERSION_COLUMN}, {DELETED_COLUMN})"))
}

/// `CREATE MATERIALIZED VIEW d.v REFRESH EVERY … AS …`: the clause stands before the columns and the query.
pub fn is_refreshable(create: &str) -> bool {
    let head = create.split_once(" AS SELECT").map_or(create, |(head, _)| head);
    [" REFRESH EVERY ", " REFRESH AFTER "].iter().any(|clause| head.contains(clause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_and_clauses_are_seen() {
        assert!(is_versioned("ReplacingMergeTree(_version, _deleted) ORDER BY id SETTINGS index_granularity = 8192"));
        assert!(is_versioned("ReplicatedReplacingMergeTree('/p', '{replica}', _version, _deleted) ORDER BY id"));
        assert!(!is_versioned("ReplacingMergeTree(_version) ORDER BY (_version, _deleted)"));
        assert!(is_refreshable(
            "CREATE MATERIALIZED VIEW d.v REFRESH EVERY 1 YEAR (`a` Int8) ENGINE = MergeTree AS SELECT 1"
        ));
        assert!(!is_refreshable("CREATE MATERIALIZED VIEW d.v TO d.t AS SELECT ' REFRESH EVERY '"));
    }
}
