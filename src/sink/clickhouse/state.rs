//! What ClickHouse remembers of a source: rows that are never changed, only outlived by a higher version.
//!
//! There is no compare-and-set in ClickHouse, so a takeover is a row with a higher epoch and a name drawn at random; of two
//! daemons that do this at once the one with the smaller name wins. A checkpoint is written only while its epoch is the
//! newest.

use std::time::Duration;

use serde_json::Value;

use super::error::ClickHouseError;
use super::http::Client;
use super::random_word;
use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity, UnixMicros};
use crate::lsn::Lsn;
use crate::mapping::clickhouse::quote_literal;
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState, name_text};
use crate::value::clickhouse::rowbinary::put_string;

/// How long two daemons that take a source over at once need to see each other.
const RACE: Duration = Duration::from_millis(300);

/// Do the state tables exist?
pub async fn has_schema(client: &Client) -> Result<bool, ClickHouseError> {
    let rows = client.rows("EXISTS TABLE tailwater.table_state").await?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|value| number(value) == 1))
}

/// Reads a source's checkpoint.
pub async fn read_checkpoint(client: &Client, source: &str) -> Result<Option<StoredCheckpoint>, ClickHouseError> {
    let sql = format!(
        "SELECT commit_lsn, end_lsn, ordinal, toUnixTimestamp64Micro(commit_ts), system_identifier, timeline, database, slot, \
         epoch FROM tailwater.checkpoint FINAL WHERE source = {}",
        quote_literal(source)
    );
    let rows = client.rows(&sql).await?;
    let Some([commit_lsn, end_lsn, ordinal, commit_ts, system, timeline, database, slot, epoch]) =
        rows.first().and_then(|row| row.first_chunk::<9>())
    else {
        return Ok(None);
    };
    Ok(Some(StoredCheckpoint {
        checkpoint: Checkpoint {
            commit_lsn: Lsn(number(commit_lsn)),
            end_lsn: Lsn(number(end_lsn)),
            ordinal: number(ordinal),
            commit_ts: (!commit_ts.is_null()).then(|| UnixMicros(signed(commit_ts))),
        },
        identity: SourceIdentity {
            system_identifier: text(system).parse().unwrap_or_default(),
            timeline: u32::try_from(number(timeline)).unwrap_or_default(),
            database: text(database),
            slot: text(slot),
        },
        epoch: signed(epoch),
    }))
}

/// Writes a source's first checkpoint, unless it has one.
pub async fn create_checkpoint(
    client: &Client,
    source: &str,
    at: Lsn,
    identity: &SourceIdentity,
) -> Result<(), ClickHouseError> {
    let checkpoint = Checkpoint { commit_lsn: at, end_lsn: at, ordinal: 0, commit_ts: None };
    let unless = format!(
        "FROM (SELECT count() AS known FROM tailwater.checkpoint WHERE source = {}) WHERE known = 0",
        quote_literal(source)
    );
    client.execute(&insert_checkpoint(source, &checkpoint, identity, 0, "", &unless)).await
}

/// Records a checkpoint. False if a newer daemon has taken the source over.
pub async fn write_checkpoint(
    client: &Client,
    source: &str,
    checkpoint: &Checkpoint,
    identity: &SourceIdentity,
    epoch: i64,
) -> Result<bool, ClickHouseError> {
    let unless = format!(
        "FROM (SELECT max(epoch) AS newest FROM tailwater.checkpoint WHERE source = {}) WHERE newest = {epoch}",
        quote_literal(source)
    );
    let sql = insert_checkpoint(source, checkpoint, identity, epoch, "", &unless);
    Ok(client.run(&sql, &[]).await?.written_rows > 0)
}

fn insert_checkpoint(
    source: &str,
    checkpoint: &Checkpoint,
    identity: &SourceIdentity,
    epoch: i64,
    owner: &str,
    unless: &str,
) -> String {
    let commit_ts = match checkpoint.commit_ts {
        Some(at) => format!("fromUnixTimestamp64Micro(toInt64({}), 'UTC')", at.0),
        None => "NULL".to_owned(),
    };
    format!(
        "INSERT INTO tailwater.checkpoint (source, commit_lsn, end_lsn, ordinal, commit_ts, system_identifier, timeline, \
         database, slot, epoch, owner, updated_at, version) SELECT {}, {}, {}, {}, {commit_ts}, {}, {}, {}, {}, {epoch}, {}, \
         now64(6, 'UTC'), bitShiftLeft(toUInt128({epoch}), 64) + toUInt64({}) {unless}",
        quote_literal(source),
        checkpoint.commit_lsn.0,
        checkpoint.end_lsn.0,
        checkpoint.ordinal,
        quote_literal(&identity.system_identifier.to_string()),
        identity.timeline,
        quote_literal(&identity.database),
        quote_literal(&identity.slot),
        quote_literal(owner),
        checkpoint.end_lsn.0,
    )
}

/// Takes the source over: no daemon with an older epoch can record a checkpoint any more. `None` if somebody else was first.
pub async fn take_over(
    client: &Client,
    source: &str,
    seen: &StoredCheckpoint,
    timeline: u32,
) -> Result<Option<i64>, ClickHouseError> {
    match read_checkpoint(client, source).await? {
        Some(now) if now.epoch == seen.epoch && now.checkpoint.end_lsn == seen.checkpoint.end_lsn => {}
        _ => return Ok(None),
    }
    let epoch = seen.epoch + 1;
    let owner = format!("{:016x}{:016x}", random_word(), random_word());
    let identity = SourceIdentity { timeline, ..seen.identity.clone() };
    client.execute(&insert_checkpoint(source, &seen.checkpoint, &identity, epoch, &owner, "")).await?;
    tokio::time::sleep(RACE).await;
    let sql = format!(
        "SELECT min(owner), max(epoch) FROM tailwater.checkpoint WHERE source = {} AND epoch >= {epoch}",
        quote_literal(source)
    );
    let rows = client.rows(&sql).await?;
    let is_mine = rows.first().is_some_and(
        |row| matches!(row.as_slice(), [first, newest] if text(first) == owner && signed(newest) == epoch),
    );
    Ok(is_mine.then_some(epoch))
}

/// Reads the states of a source's tables.
pub async fn read_tables(client: &Client, source: &str) -> Result<Vec<StoredTable>, ClickHouseError> {
    let sql = format!(
        "SELECT target, state, lsn, rows, until, joined FROM tailwater.table_state FINAL WHERE source = {}",
        quote_literal(source)
    );
    let rows = client.rows(&sql).await?;
    let table = |row: Vec<Value>| {
        let [target, state, lsn, rows, until, joined] = row.first_chunk::<6>()?;
        Some(StoredTable {
            target: text(target).parse().ok()?,
            state: TableState::from_name(&text(state))?,
            lsn: Lsn(number(lsn)),
            rows: number(rows),
            until: Lsn(number(until)),
            joined: joined.as_bool().unwrap_or(false),
        })
    };
    Ok(rows.into_iter().filter_map(table).collect())
}

/// A table's state as it is to be written.
pub struct TableRow<'a> {
    pub source: &'a str,
    pub target: &'a TableName,
    pub origin: &'a TableName,
    pub state: TableState,
    pub lsn: Lsn,
    pub until: Lsn,
    pub rows: u64,
    pub was_empty: bool,
    pub reason: Option<&'a str>,
    pub epoch: i64,
}

/// Sets a table's state; makes the row if there is none.
pub async fn write_table(client: &Client, row: &TableRow<'_>) -> Result<(), ClickHouseError> {
    let key = key_of(row.source, &name_text(row.target));
    let sql = format!(
        "INSERT INTO tailwater.table_state (source, target, origin, state, lsn, until, joined, rows, was_empty, reason, epoch, \
         updated_at, version) SELECT {}, {}, {}, {}, {}, {}, false, {}, {}, {}, {}, now64(6, 'UTC'), \
         max(version) + 1 FROM tailwater.table_state WHERE {key}",
        quote_literal(row.source),
        quote_literal(&name_text(row.target)),
        quote_literal(&name_text(row.origin)),
        quote_literal(row.state.as_str()),
        row.lsn.0,
        row.until.0,
        row.rows,
        row.was_empty,
        row.reason.map_or("NULL".to_owned(), quote_literal),
        row.epoch,
    );
    client.execute(&sql).await
}

/// Notes that copied tables follow the stream from now on.
pub async fn write_joined(client: &Client, source: &str, targets: &[String]) -> Result<(), ClickHouseError> {
    for target in targets {
        change(client, source, target, "state, lsn, until, true, rows").await?;
    }
    Ok(())
}

/// Leaves word with a table's state, which stays as it is.
pub async fn write_reason(
    client: &Client,
    source: &str,
    target: &TableName,
    reason: &str,
) -> Result<(), ClickHouseError> {
    explain(client, source, target, "state", reason).await
}

/// Takes a table out of the stream; what else is known of it stays.
pub async fn leave_out(client: &Client, source: &str, target: &TableName, reason: &str) -> Result<(), ClickHouseError> {
    explain(client, source, target, "'quarantined'", reason).await
}

async fn explain(
    client: &Client,
    source: &str,
    target: &TableName,
    state: &str,
    reason: &str,
) -> Result<(), ClickHouseError> {
    let target = name_text(target);
    let sql = format!(
        "INSERT INTO tailwater.table_state (source, target, origin, state, lsn, until, joined, rows, was_empty, reason, epoch, \
         updated_at, version) SELECT source, target, origin, {state}, lsn, until, joined, rows, was_empty, {}, epoch, \
         now64(6, 'UTC'), version + 1 FROM tailwater.table_state FINAL WHERE {}",
        quote_literal(reason),
        key_of(source, &target)
    );
    client.execute(&sql).await
}

/// Notes that a table holds what the source has, at the checkpoint.
pub async fn write_streaming(client: &Client, source: &str, target: &TableName) -> Result<(), ClickHouseError> {
    change(client, source, &name_text(target), "'streaming', lsn, until, joined, rows").await
}

/// Notes that a copy came to its end: the table waits to join the stream, and is whole at `until`.
pub async fn write_catchup(
    client: &Client,
    source: &str,
    target: &TableName,
    until: Lsn,
    rows: u64,
) -> Result<(), ClickHouseError> {
    change(client, source, &name_text(target), &format!("'catchup', lsn, {}, false, {rows}", until.0)).await
}

/// Writes a table's row again with other values for state, lsn, until, joined, rows.
async fn change(client: &Client, source: &str, target: &str, values: &str) -> Result<(), ClickHouseError> {
    let sql = format!(
        "INSERT INTO tailwater.table_state (source, target, origin, state, lsn, until, joined, rows, was_empty, reason, epoch, \
         updated_at, version) SELECT source, target, origin, {values}, was_empty, reason, epoch, now64(6, 'UTC'), version + 1 \
         FROM tailwater.table_state FINAL WHERE {}",
        key_of(source, target)
    );
    client.execute(&sql).await
}

fn key_of(source: &str, target: &str) -> String {
    format!("source = {} AND target = {}", quote_literal(source), quote_literal(target))
}

/// What is noted of the source tables that a source's targets are filled from: target and layout, as texts.
pub async fn read_layouts(client: &Client, source: &str) -> Result<Vec<(String, String)>, ClickHouseError> {
    if !has_layouts(client).await? {
        return Ok(Vec::new());
    }
    let sql = format!(
        "SELECT target, layout FROM tailwater.source_layout FINAL WHERE source = {} AND dropped = 0",
        quote_literal(source)
    );
    let rows = client.rows(&sql).await?;
    Ok(rows
        .iter()
        .filter_map(|row| row.first_chunk::<2>().map(|[target, layout]| (text(target), text(layout))))
        .collect())
}

/// An older version of the state tables is without this one.
pub async fn has_layouts(client: &Client) -> Result<bool, ClickHouseError> {
    let rows = client.rows("EXISTS TABLE tailwater.source_layout").await?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|value| number(value) == 1))
}

/// Notes what a target's source table is made of, or that nothing is known of it.
pub async fn write_layout(
    client: &Client,
    source: &str,
    target: &TableName,
    layout: Option<&str>,
) -> Result<(), ClickHouseError> {
    let sql = format!(
        "INSERT INTO tailwater.source_layout (source, target, layout, noted_at, dropped, version) \
         SELECT source, target, layout, now64(6, 'UTC'), {}, \
         (SELECT max(version) + 1 FROM tailwater.source_layout WHERE {}) \
         FROM input('source String, target String, layout String') FORMAT RowBinary",
        u8::from(layout.is_none()),
        key_of(source, &name_text(target)),
    );
    // As data, since a table with many partitions has a layout longer than a statement may be.
    let mut row = Vec::new();
    for field in [source, &name_text(target), layout.unwrap_or_default()] {
        put_string(&mut row, field.as_bytes());
    }
    client.insert(&sql, row.into(), &[]).await?.has_written(1)
}

/// Is a copy of this table under way, or was cut short, and was the table empty before it?
pub async fn is_filling(client: &Client, source: &str, target: &TableName) -> Result<bool, ClickHouseError> {
    let sql = format!(
        "SELECT state = 'copying' AND was_empty FROM tailwater.table_state FINAL WHERE {}",
        key_of(source, &name_text(target))
    );
    let rows = client.rows(&sql).await?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|value| number(value) == 1))
}

/// The newest epoch of a source.
pub async fn newest_epoch(client: &Client, source: &str) -> Result<Option<i64>, ClickHouseError> {
    let sql = format!("SELECT max(epoch) FROM tailwater.checkpoint WHERE source = {}", quote_literal(source));
    Ok(client.rows(&sql).await?.first().and_then(|row| row.first()).map(signed))
}

/// Has every view refreshed when a daemon starts next.
pub async fn forget_views(client: &Client) -> Result<(), ClickHouseError> {
    let sql = "INSERT INTO tailwater.view_state (view, source, lsn, refreshed_at, seconds, version) \
               SELECT view, source, 0, refreshed_at, seconds, version + 1 FROM tailwater.view_state FINAL";
    client.execute(sql).await
}

/// Whole numbers above 32 bits come as text.
pub fn number(value: &Value) -> u64 {
    match value {
        Value::Bool(value) => u64::from(*value),
        Value::String(text) => text.parse().unwrap_or_default(),
        other => other.as_u64().unwrap_or_default(),
    }
}

fn signed(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.parse().unwrap_or_default(),
        other => other.as_i64().unwrap_or_default(),
    }
}

/// A string, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
