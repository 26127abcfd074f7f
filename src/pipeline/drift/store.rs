//! What a sink remembers of its tables' sources: `tailwater.source_layout`, one row per target table.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::catalog::TableName;
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

type SqlResult<T> = Result<T, tokio_postgres::Error>;

/// Makes the table if it is not there.
pub async fn ensure(client: &Client) -> SqlResult<()> {
    let is_there: bool = client.query_one(IS_THERE, &[]).await?.get(0);
    if is_there { Ok(()) } else { client.batch_execute(TABLE).await }
}

/// All that is stored for a source.
pub async fn read(client: &Client, source: &str) -> SqlResult<BTreeMap<TableName, Layout>> {
    let is_there: bool = client.query_one(IS_THERE, &[]).await?.get(0);
    if !is_there {
        return Ok(BTreeMap::new());
    }
    let rows = client.query("SELECT target, layout FROM tailwater.source_layout WHERE source = $1", &[&source]).await?;
    // A row of another version's form is as good as none.
    let stored = rows
        .iter()
        .filter_map(|row| Some((row.get::<_, &str>(0).parse().ok()?, serde_json::from_str(row.get(1)).ok()?)));
    Ok(stored.collect())
}

/// Stores a table's layout, in the transaction of what belongs to it.
pub async fn write(
    client: &impl tokio_postgres::GenericClient,
    source: &str,
    target: &TableName,
    layout: &Layout,
) -> SqlResult<()> {
    let text = serde_json::to_string(layout).expect("names and numbers become JSON");
    client
        .execute(
            "INSERT INTO tailwater.source_layout (source, target, layout) VALUES ($1, $2, $3) \
             ON CONFLICT (source, target) DO UPDATE SET layout = excluded.layout, noted_at = now()",
            &[&source, &name_text(target), &text],
        )
        .await?;
    Ok(())
}

/// The table is to be copied: what was known of it says nothing any more.
pub async fn forget(client: &Client, source: &str, target: &TableName) -> SqlResult<()> {
    let text = "DELETE FROM tailwater.source_layout WHERE source = $1 AND target = $2";
    client.execute(text, &[&source, &name_text(target)]).await?;
    Ok(())
}
