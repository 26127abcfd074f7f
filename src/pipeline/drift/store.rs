//! What a sink remembers of its tables' sources: `tailwater.source_layout`, one row per target table.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::warehouse::{Warehouse, WarehouseError};
use crate::catalog::TableName;
use crate::sink::clickhouse::ddl::state_schema;
use crate::sink::clickhouse::state;
use crate::sink::state::name_text;
use crate::source::layout::Layout;

/// Made by the daemon itself: its role owns the schema.
const TABLE: &str = "
CREATE TABLE tailwater.source_layout (
    source text NOT NULL,
    target text NOT NULL,
    layout text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, target)
);
COMMENT ON TABLE tailwater.source_layout IS 'what each source table was made of when it was last looked at';
";

const IS_THERE: &str = "SELECT to_regclass('tailwater.source_layout') IS NOT NULL";

/// Makes the table if it is not there.
pub async fn ensure(warehouse: Warehouse<'_>) -> Result<(), WarehouseError> {
    match warehouse {
        Warehouse::Postgres(client) => {
            if !is_there(client).await? {
                client.batch_execute(TABLE).await?;
            }
        }
        Warehouse::ClickHouse(server) => {
            if !state::has_layouts(&server.client).await? {
                for statement in state_schema(&server.topology) {
                    server.client.execute(&statement).await?;
                }
            }
        }
    }
    Ok(())
}

async fn is_there(client: &Client) -> Result<bool, tokio_postgres::Error> {
    Ok(client.query_one(IS_THERE, &[]).await?.get(0))
}

/// All that is stored for a source.
pub async fn read(warehouse: Warehouse<'_>, source: &str) -> Result<BTreeMap<TableName, Layout>, WarehouseError> {
    let rows: Vec<(String, String)> = match warehouse {
        Warehouse::Postgres(client) if !is_there(client).await? => Vec::new(),
        Warehouse::Postgres(client) => {
            let sql = "SELECT target, layout FROM tailwater.source_layout WHERE source = $1";
            client.query(sql, &[&source]).await?.iter().map(|row| (row.get(0), row.get(1))).collect()
        }
        Warehouse::ClickHouse(server) => state::read_layouts(&server.client, source).await?,
    };
    // A row of another version's form is as good as none.
    let stored =
        rows.iter().filter_map(|(target, layout)| Some((target.parse().ok()?, serde_json::from_str(layout).ok()?)));
    Ok(stored.collect())
}

/// Stores a table's layout; in Postgres in the transaction of what belongs to it.
pub async fn write(
    warehouse: Warehouse<'_>,
    source: &str,
    target: &TableName,
    layout: &Layout,
) -> Result<(), WarehouseError> {
    let text = serde_json::to_string(layout).expect("names and numbers become JSON");
    match warehouse {
        Warehouse::Postgres(client) => {
            let sql = "INSERT INTO tailwater.source_layout (source, target, layout) VALUES ($1, $2, $3) \
                       ON CONFLICT (source, target) DO UPDATE SET layout = excluded.layout, noted_at = now()";
            client.execute(sql, &[&source, &name_text(target), &text]).await?;
        }
        Warehouse::ClickHouse(server) => {
            state::write_layout(&server.client, source, target, Some(&text)).await?;
        }
    }
    Ok(())
}

/// The table is to be copied: what was known of it says nothing any more.
pub async fn forget(warehouse: Warehouse<'_>, source: &str, target: &TableName) -> Result<(), WarehouseError> {
    match warehouse {
        Warehouse::Postgres(client) => {
            let sql = "DELETE FROM tailwater.source_layout WHERE source = $1 AND target = $2";
            client.execute(sql, &[&source, &name_text(target)]).await?;
        }
        Warehouse::ClickHouse(server) => state::write_layout(&server.client, source, target, None).await?,
    }
    Ok(())
}
