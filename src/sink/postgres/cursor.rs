//! Where the copies stand: the ranges of each source table that the sink holds, written in the transaction that brought
//! their rows.
//!
//! A range is worth something to a later copy as long as three things are what they were: where rows stand in the source's
//! table, the files of the target, and the plan. Each is remembered with it.

use std::collections::HashMap;

use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, GenericClient, Transaction};

use super::encode::masked;
use super::load::{LoadError, fence};
use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::sink::state::{TableState, name_text};
use crate::source::snapshot::{Chunk, Copied};

/// A table of which a copy was begun, as the sink remembers it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCopy {
    /// Every row that left its key before this is gone from the target.
    pub lsn: Lsn,
    /// Nothing was in the target but what the copy brought.
    pub was_empty: bool,
    pub rows: u64,
    pub chunks: Vec<StoredChunk>,
}

/// A range that was copied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredChunk {
    pub range: Copied,
    /// Of the first snapshot that it was copied under; the range has the last one's.
    pub first_xmin: u64,
    pub origin_layout: String,
    pub target_layout: String,
    pub plan: String,
}

impl StoredCopy {
    /// The `xmin` of the oldest snapshot that any row of the copy came from.
    pub fn oldest_xmin(&self) -> Option<u64> {
        self.chunks.iter().map(|chunk| chunk.first_xmin).min()
    }
}

/// Takes over what an earlier attempt at these tables left; its transactions have ended or fail from here on.
///
/// # Errors
/// The sink refuses, or another daemon has taken over.
pub async fn adopt(
    client: &mut Client,
    source: &str,
    epoch: i64,
    targets: &[String],
) -> Result<HashMap<String, StoredCopy>, LoadError> {
    let transaction = client.transaction().await.map_err(LoadError::Sink)?;
    fence(&transaction, source, epoch).await?;
    // Locked before chunks are read: one whose COMMIT is still under way is then among what is seen.
    let sql = "SELECT target, lsn, was_empty, rows FROM tailwater.table_state \
               WHERE source = $1 AND target = ANY($2) AND state = $3 ORDER BY target FOR UPDATE";
    let copying = TableState::Copying.as_str();
    let rows = transaction.query(sql, &[&source, &targets, &copying]).await.map_err(LoadError::Sink)?;
    let stored = |row: &tokio_postgres::Row| {
        let copy = StoredCopy {
            lsn: Lsn(row.get::<_, PgLsn>(1).into()),
            was_empty: row.get(2),
            rows: row.get::<_, i64>(3).unsigned_abs(),
            chunks: Vec::new(),
        };
        (row.get::<_, String>(0), copy)
    };
    let mut copies: HashMap<_, _> = rows.iter().map(stored).collect();
    let sql = "UPDATE tailwater.table_state SET epoch = $4 WHERE source = $1 AND target = ANY($2) AND state = $3";
    transaction.execute(sql, &[&source, &targets, &copying, &epoch]).await.map_err(LoadError::Sink)?;
    let sql = "SELECT target, relation, first_block, end_block, shown_xid, origin_layout, target_layout, plan, first_xid \
               FROM tailwater.copy_chunk WHERE source = $1 AND target = ANY($2)";
    for row in transaction.query(sql, &[&source, &targets]).await.map_err(LoadError::Sink)? {
        if let Some(copy) = copies.get_mut(row.get::<_, &str>(0)) {
            copy.chunks.push(chunk(&row));
        }
    }
    transaction.commit().await.map_err(LoadError::Sink)?;
    Ok(copies)
}

fn chunk(row: &tokio_postgres::Row) -> StoredChunk {
    let block = |block: i64| u32::try_from(block).unwrap_or(u32::MAX);
    StoredChunk {
        range: Copied {
            relation: row.get(1),
            first_block: block(row.get(2)),
            end_block: row.get::<_, Option<i64>>(3).map(block),
            xmin: row.get::<_, i64>(4).unsigned_abs(),
        },
        origin_layout: row.get(5),
        target_layout: row.get(6),
        plan: row.get(7),
        first_xmin: row.get::<_, i64>(8).unsigned_abs(),
    }
}

/// What stays the same for all chunks that an attempt brings to one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marks {
    pub lsn: Lsn,
    pub xmin: u64,
    pub target_layout: String,
    pub plan: String,
}

/// Notes a chunk in the transaction that brought its rows. One that was copied before keeps its count: what is copied
/// again are mostly rows that it had.
pub(super) async fn note(
    transaction: &Transaction<'_>,
    plan: &Plan,
    chunk: &Chunk,
    marks: &Marks,
    rows: i64,
) -> Result<(), LoadError> {
    let sql = "INSERT INTO tailwater.copy_chunk AS c (source, target, relation, first_block, end_block, rows, lsn, shown_xid, \
               first_xid, origin_layout, target_layout, plan) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9, $10, $11) \
               ON CONFLICT (source, target, relation, first_block) DO UPDATE SET lsn = excluded.lsn, \
               shown_xid = excluded.shown_xid, copied_at = now()";
    transaction
        .execute(
            sql,
            &[
                &plan.source,
                &name_text(&plan.target),
                &chunk.relation,
                &i64::from(chunk.first_block),
                &chunk.end_block.map(i64::from),
                &rows,
                &PgLsn::from(marks.lsn.0),
                &i64::try_from(marks.xmin).unwrap_or(i64::MAX),
                &chunk.layout,
                &marks.target_layout,
                &marks.plan,
            ],
        )
        .await
        .map_err(LoadError::Sink)?;
    Ok(())
}

/// No range of these tables is worth anything any more.
pub(super) async fn forget(
    client: &impl GenericClient,
    source: &str,
    targets: &[String],
) -> Result<(), tokio_postgres::Error> {
    let sql = "DELETE FROM tailwater.copy_chunk WHERE source = $1 AND target = ANY($2)";
    client.execute(sql, &[&source, &targets]).await.map(drop)
}

/// Notes that every row which left its key before `lsn` is gone from these targets; part of an open transaction.
///
/// # Errors
/// The sink refuses, or another daemon has taken over.
pub async fn note_gone(
    client: &Client,
    source: &str,
    epoch: i64,
    targets: &[String],
    lsn: Lsn,
) -> Result<(), LoadError> {
    let sql = "UPDATE tailwater.table_state SET lsn = greatest(lsn, $4), updated_at = now() \
               WHERE source = $1 AND epoch = $2 AND target = ANY($3) AND state = 'copying'";
    let noted =
        client.execute(sql, &[&source, &epoch, &targets, &PgLsn::from(lsn.0)]).await.map_err(LoadError::Sink)?;
    if noted as usize == targets.len() { Ok(()) } else { Err(LoadError::Fenced) }
}

/// The files of a target: a target that is emptied, made anew or swapped has others. An unlogged one, which a crash empties
/// in place, is never the same twice.
///
/// # Errors
/// The sink refuses.
pub async fn target_layout(client: &Client, target: &TableName) -> Result<String, LoadError> {
    let sql = "SELECT concat(string_agg(concat(c.oid, ':', pg_relation_filenode(c.oid)), ' ' ORDER BY c.oid), \
               CASE WHEN bool_or(c.relpersistence = 'u') THEN clock_timestamp() END) \
               FROM pg_class AS c WHERE c.oid = $1::text::regclass \
               OR c.oid IN (SELECT p.relid FROM pg_partition_tree($1::text::regclass) AS p)";
    let row = client.query_one(sql, &[&target.quoted()]).await.map_err(LoadError::Sink)?;
    let files: String = row.get(0);
    // Of many partitions there are many.
    Ok(masked(&[], files.as_bytes()))
}

/// A digest of what decides how a row of the source becomes one of the target.
pub fn plan_digest(plan: &Plan, mask_key: &[u8]) -> String {
    let text = serde_json::to_vec(plan).expect("a plan is plain data with text keys");
    let is_masked = plan.inputs.iter().any(|input| input.mask.is_some());
    masked(if is_masked { mask_key } else { &[] }, &text)
}
