//! What the sink remembers: `tailwater.checkpoint`, `tailwater.table_state`, `tailwater.view_state`, and while tables are
//! copied `tailwater.copy_chunk`, of which [`super::cursor`] tells.
//!
//! `checkpoint` is public: a reader may join on it to know up to which source position the tables it reads are complete,
//! since it changes in the same transaction as they do.

use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity, UnixMicros};
use crate::lsn::Lsn;
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState, name_text};

/// The state schema. Every statement may run again.
///
/// `CREATE SCHEMA IF NOT EXISTS` asks for the right to create schemas before it looks; the daemon's role has none where an
/// owner made the schema for it.
pub const STATE_SCHEMA: &str = "
DO $$
BEGIN
    IF to_regnamespace('tailwater') IS NULL THEN
        CREATE SCHEMA tailwater;
    END IF;
END
$$;
CREATE TABLE IF NOT EXISTS tailwater.checkpoint (
    source text PRIMARY KEY,
    commit_lsn pg_lsn NOT NULL,
    end_lsn pg_lsn NOT NULL,
    ordinal bigint NOT NULL,
    commit_ts timestamptz,
    system_identifier text NOT NULL,
    timeline integer NOT NULL,
    database text NOT NULL,
    slot text NOT NULL,
    epoch bigint NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS tailwater.table_state (
    source text NOT NULL,
    target text NOT NULL,
    origin text NOT NULL,
    state text NOT NULL CHECK (state IN ('pending', 'copying', 'catchup', 'streaming', 'paused', 'quarantined')),
    lsn pg_lsn NOT NULL DEFAULT '0/0',
    until pg_lsn NOT NULL DEFAULT '0/0',
    joined boolean NOT NULL DEFAULT false,
    rows bigint NOT NULL DEFAULT 0,
    was_empty boolean NOT NULL DEFAULT false,
    reason text,
    epoch bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, target)
);
CREATE TABLE IF NOT EXISTS tailwater.copy_chunk (
    source text NOT NULL,
    target text NOT NULL,
    relation oid NOT NULL,
    first_block bigint NOT NULL,
    end_block bigint,
    rows bigint NOT NULL,
    lsn pg_lsn NOT NULL,
    shown_xid bigint NOT NULL,
    first_xid bigint NOT NULL,
    origin_layout text NOT NULL,
    target_layout text NOT NULL,
    plan text NOT NULL,
    copied_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, target, relation, first_block)
);
CREATE TABLE IF NOT EXISTS tailwater.view_state (
    view text NOT NULL,
    source text NOT NULL,
    lsn pg_lsn NOT NULL,
    refreshed_at timestamptz NOT NULL,
    seconds double precision NOT NULL,
    PRIMARY KEY (view, source)
);
COMMENT ON TABLE tailwater.checkpoint IS 'one row per source: everything that it committed before end_lsn is in the tables';
COMMENT ON TABLE tailwater.table_state IS 'one row per target table: whether it streams yet, and from where';
COMMENT ON TABLE tailwater.copy_chunk IS 'one row per range of a source table that a copy under way has brought here';
COMMENT ON TABLE tailwater.view_state IS 'the source position that each materialized view reflects';
";

/// Does the state schema exist?
pub async fn has_schema(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_one("SELECT to_regclass('tailwater.table_state') IS NOT NULL", &[]).await?;
    Ok(row.get(0))
}

/// Does the state schema lack what this version keeps in it? One that an earlier version made does.
pub async fn lacks_schema(client: &Client) -> Result<bool, tokio_postgres::Error> {
    let row = client.query_one("SELECT to_regclass('tailwater.copy_chunk') IS NULL", &[]).await?;
    Ok(row.get(0))
}

/// Reads a source's checkpoint.
pub async fn read_checkpoint(client: &Client, source: &str) -> Result<Option<StoredCheckpoint>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "SELECT commit_lsn, end_lsn, ordinal, (extract(epoch FROM commit_ts) * 1000000)::bigint, system_identifier, \
             timeline, database, slot, epoch FROM tailwater.checkpoint WHERE source = $1",
            &[&source],
        )
        .await?;
    Ok(row.map(|row| StoredCheckpoint {
        checkpoint: Checkpoint {
            commit_lsn: lsn(row.get(0)),
            end_lsn: lsn(row.get(1)),
            ordinal: row.get::<_, i64>(2).unsigned_abs(),
            commit_ts: row.get::<_, Option<i64>>(3).map(UnixMicros),
        },
        identity: SourceIdentity {
            system_identifier: row.get::<_, &str>(4).parse().unwrap_or_default(),
            timeline: u32::try_from(row.get::<_, i32>(5)).unwrap_or_default(),
            database: row.get(6),
            slot: row.get(7),
        },
        epoch: row.get(8),
    }))
}

/// Writes a source's first checkpoint, unless it has one.
pub async fn create_checkpoint(
    client: &Client,
    source: &str,
    at: Lsn,
    identity: &SourceIdentity,
) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO tailwater.checkpoint (source, commit_lsn, end_lsn, ordinal, system_identifier, timeline, database, \
             slot, epoch) VALUES ($1, $2, $2, 0, $3, $4, $5, $6, 0) ON CONFLICT (source) DO NOTHING",
            &[
                &source,
                &PgLsn::from(at.0),
                &identity.system_identifier.to_string(),
                &i32::try_from(identity.timeline).unwrap_or(i32::MAX),
                &identity.database,
                &identity.slot,
            ],
        )
        .await?;
    Ok(())
}

/// Takes the source over: no daemon with an older epoch can write any more. `None` if somebody else wrote meanwhile.
pub async fn take_over(
    client: &Client,
    source: &str,
    seen: &StoredCheckpoint,
    timeline: u32,
) -> Result<Option<i64>, tokio_postgres::Error> {
    let row = client
        .query_opt(
            "UPDATE tailwater.checkpoint SET epoch = epoch + 1, timeline = $4, updated_at = now() \
             WHERE source = $1 AND epoch = $2 AND end_lsn = $3 RETURNING epoch",
            &[
                &source,
                &seen.epoch,
                &PgLsn::from(seen.checkpoint.end_lsn.0),
                &i32::try_from(timeline).unwrap_or(i32::MAX),
            ],
        )
        .await?;
    Ok(row.map(|row| row.get(0)))
}

/// Reads the states of a source's tables.
pub async fn read_tables(client: &Client, source: &str) -> Result<Vec<StoredTable>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT target, state, lsn, rows, until, joined FROM tailwater.table_state WHERE source = $1",
            &[&source],
        )
        .await?;
    let table = |row: tokio_postgres::Row| {
        Some(StoredTable {
            target: row.get::<_, &str>(0).parse().ok()?,
            state: TableState::from_name(row.get(1))?,
            lsn: lsn(row.get(2)),
            rows: row.get::<_, i64>(3).unsigned_abs(),
            until: lsn(row.get(4)),
            joined: row.get(5),
        })
    };
    Ok(rows.into_iter().filter_map(table).collect())
}

/// Sets a table's state; makes the row if there is none.
pub async fn write_table(
    client: &impl tokio_postgres::GenericClient,
    source: &str,
    origin: &TableName,
    target: &TableName,
    state: TableState,
    lsn: Lsn,
    reason: Option<&str>,
) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "INSERT INTO tailwater.table_state (source, target, origin, state, lsn, reason) VALUES ($1, $2, $3, $4, $5, $6) \
             ON CONFLICT (source, target) DO UPDATE SET state = excluded.state, lsn = excluded.lsn, \
             reason = excluded.reason, updated_at = now()",
            &[&source, &name_text(target), &name_text(origin), &state.as_str(), &PgLsn::from(lsn.0), &reason],
        )
        .await?;
    Ok(())
}

/// Takes a table out of the stream; what else is known of it stays.
pub async fn leave_out(
    client: &Client,
    source: &str,
    target: &TableName,
    reason: &str,
) -> Result<(), tokio_postgres::Error> {
    let sql = "UPDATE tailwater.table_state SET state = 'quarantined', reason = $3, updated_at = now() \
               WHERE source = $1 AND target = $2";
    client.execute(sql, &[&source, &name_text(target), &reason]).await.map(drop)
}

/// Notes that a table holds what the source has, at the checkpoint.
pub async fn write_streaming(client: &Client, source: &str, target: &TableName) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "UPDATE tailwater.table_state SET state = 'streaming', updated_at = now() WHERE source = $1 AND target = $2",
            &[&source, &name_text(target)],
        )
        .await?;
    Ok(())
}

/// Has every view refreshed when a daemon starts next: rows under them are about to change behind its back.
pub async fn forget_views(client: &Client) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("UPDATE tailwater.view_state SET lsn = '0/0'").await
}

/// Notes that copied tables follow the stream from now on. Run inside the transaction that brought them there.
pub async fn write_joined(client: &Client, source: &str, targets: &[String]) -> Result<(), tokio_postgres::Error> {
    client
        .execute(
            "UPDATE tailwater.table_state SET joined = true, updated_at = now() WHERE source = $1 AND target = ANY($2)",
            &[&source, &targets],
        )
        .await?;
    Ok(())
}

fn lsn(value: PgLsn) -> Lsn {
    Lsn(value.into())
}
