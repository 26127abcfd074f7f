//! A consistent view of the source for first copies: an exported snapshot and the connections that look through it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio_postgres::Client;

use crate::catalog::{TableName, quote_ident, quote_literal};
use crate::lsn::Lsn;
use crate::postgres::connect::{ConnectError, connect};
use crate::postgres::error::describe;
use crate::postgres::url::PgUrl;
use crate::wire::{ReplicationConnection, WireError};

/// Blocks of 8 KiB in a chunk: 16 MiB, a fraction of a second of work that a crash may cost.
const CHUNK_BLOCKS: u32 = 2_048;
/// A slot's creation waits for every transaction that is writing; after this somebody should hear of it.
const SLOT_TIMEOUT: Duration = Duration::from_secs(300);
/// DDL may hold a table for long, and others wait behind whoever waits for it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);
/// Transaction ids told apart by their lower halves: one is newer than another if it is less than this ahead.
const XID_WINDOW: u64 = 1 << 31;

/// Distinguishes this process's temporary slots.
static NUMBER: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the temporary slot of the snapshot was not made")]
    Slot(#[source] WireError),
    #[error("the snapshot cannot be read")]
    Connect(#[from] ConnectError),
    #[error("table \"{0}\" was truncated or rewritten just after the snapshot, which no longer shows its rows")]
    Rewritten(TableName),
    #[error("{0}")]
    Sql(String),
    #[error("{0}")]
    Answer(String),
}

impl From<tokio_postgres::Error> for SnapshotError {
    fn from(error: tokio_postgres::Error) -> Self {
        SnapshotError::Sql(describe(&error))
    }
}

/// What transactions a snapshot shows, as far as it matters to a later one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Horizon {
    /// Every transaction before it had ended: what the snapshot does not show was written by this one or a later one,
    /// subtransactions included.
    pub xmin: u64,
    /// The first transaction that had not begun.
    pub xmax: u64,
}

impl Horizon {
    /// Rows that an earlier snapshot with this `xmin` did not show can be told from the older ones.
    pub fn tells_newer_than(&self, xmin: u64) -> bool {
        xmin <= self.xmin && self.xmax - xmin < XID_WINDOW
    }
}

/// An exported snapshot with its readers. It lives as long as the readers' transactions.
pub struct Snapshot {
    lsn: Lsn,
    horizon: Horizon,
    /// The server and its history: what is told of physical places holds there only.
    cluster: String,
    readers: Vec<Client>,
    /// Keeps the snapshot's own session, and with it the temporary slot, until all readers have it.
    _slot: ReplicationConnection,
}

/// A table that holds rows itself: one that is not partitioned, or one partition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    pub relation: u32,
    pub name: TableName,
    pub blocks: u32,
    /// The planner's guess; 0 if it has none.
    pub estimated_rows: u64,
    /// As long as this is the same, a row that nobody changed stands where it stood, with the columns that it had.
    pub layout: String,
}

/// A range of physical blocks of one leaf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    pub relation: u32,
    pub table: TableName,
    pub first_block: u32,
    /// `None`: to the end.
    pub end_block: Option<u32>,
    pub layout: String,
    /// Copied already under a snapshot of this `xmin`: only rows that it did not show are missing.
    pub since: Option<u64>,
}

/// The rows of a chunk that are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Whole,
    /// At least those that a snapshot of this `xmin` did not show.
    Newer(u64),
    /// All others.
    Older(u64),
}

impl Chunk {
    /// The statement that sends the rows of a part, as these columns.
    pub fn copy_sql(&self, columns: &str, part: Part) -> String {
        let (table, condition) = (self.table.quoted(), self.part_condition(part));
        format!("COPY (SELECT {columns} FROM ONLY {table} WHERE {condition}) TO STDOUT (FORMAT binary)")
    }

    /// The chunk as a condition on `ctid`.
    fn condition(&self) -> String {
        let from = format!("ctid >= '({},0)'::tid", self.first_block);
        match self.end_block {
            Some(end) => format!("{from} AND ctid < '({end},0)'::tid"),
            None => from,
        }
    }

    /// A part of the chunk as a condition on a row's place and writer.
    fn part_condition(&self, part: Part) -> String {
        let range = self.condition();
        // A row keeps the lower half of its writer's id for ever. Of two ids less than 2^31 apart it tells which is newer; an
        // older row may pass for a newer one after a wrap-around, never the other way round.
        let is_newer = |xmin: u64| {
            format!("((xmin::text::bigint - {}) & {}) < {XID_WINDOW}", xmin & u64::from(u32::MAX), u32::MAX)
        };
        match part {
            Part::Whole => range,
            Part::Newer(xmin) => format!("{range} AND {}", is_newer(xmin)),
            Part::Older(xmin) => format!("{range} AND NOT {}", is_newer(xmin)),
        }
    }
}

/// A range of a leaf that was copied already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Copied {
    pub relation: u32,
    pub first_block: u32,
    pub end_block: Option<u32>,
    /// Of the snapshot that it was copied under.
    pub xmin: u64,
}

/// Cuts leaves into chunks: what was copied in the same ranges again, the rest anew.
pub fn cut(leaves: &[Leaf], copied: &[Copied]) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    for leaf in leaves {
        let chunk = |first_block: u32, end_block: Option<u32>, since: Option<u64>| Chunk {
            relation: leaf.relation,
            table: leaf.name.clone(),
            first_block,
            end_block,
            layout: leaf.layout.clone(),
            since,
        };
        let mut done: Vec<_> = copied.iter().filter(|done| done.relation == leaf.relation).collect();
        done.sort_by_key(|done| done.first_block);
        let mut next = Some(0u32);
        for range in done {
            let gap = next.filter(|&next| next < range.first_block);
            chunks.extend(
                gap.into_iter().flat_map(|next| steps(next, range.first_block)).map(|(a, b)| chunk(a, b, None)),
            );
            chunks.push(chunk(range.first_block, range.end_block, Some(range.xmin)));
            next = range.end_block;
        }
        let Some(next) = next else { continue };
        let mut rest: Vec<_> = steps(next, leaf.blocks.max(next)).collect();
        // The last one is open at its end: the table may have grown since its size was read.
        match rest.last_mut() {
            Some(last) => last.1 = None,
            None => rest.push((next, None)),
        }
        chunks.extend(rest.into_iter().map(|(first, end)| chunk(first, end, None)));
    }
    chunks
}

/// Ranges of at most `CHUNK_BLOCKS` from `first` to `end`.
fn steps(first: u32, end: u32) -> impl Iterator<Item = (u32, Option<u32>)> {
    (first..end)
        .step_by(CHUNK_BLOCKS as usize)
        .map(move |from| (from, Some(from.saturating_add(CHUNK_BLOCKS).min(end))))
}

impl Snapshot {
    /// Exports a snapshot and imports it on `connections` sessions.
    ///
    /// # Errors
    /// The slot was not made or the sessions were not opened; nothing is left behind.
    pub async fn export(url: &PgUrl, slot: &str, connections: usize) -> Result<Snapshot, SnapshotError> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name: String = format!("{slot:.40}_copy_{}_{number}", std::process::id());
        let slot_url = url.clone();
        let made = tokio::task::spawn_blocking(move || {
            let mut connection = ReplicationConnection::connect(&slot_url, "tailwater copy")?;
            let system = connection.query("IDENTIFY_SYSTEM")?;
            connection.set_timeout(Some(SLOT_TIMEOUT))?;
            let sql =
                format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", quote_ident(&name));
            let slot = connection.query(&sql)?;
            Ok::<_, WireError>((connection, system, slot))
        });
        let (connection, system, slot) =
            made.await.map_err(|error| SnapshotError::Answer(error.to_string()))?.map_err(SnapshotError::Slot)?;
        // System identifier, timeline, position, database.
        let cluster = format!("{}/{}", field(&system, 0), field(&system, 1));
        // Name, consistent point, snapshot name, plugin.
        let lsn = field(&slot, 1).parse();
        let lsn = lsn.map_err(|_| SnapshotError::Answer("the slot has no consistent point".to_owned()))?;
        let mut readers = Vec::new();
        for _ in 0..connections {
            let client = connect(url, "tailwater copy").await?.client;
            let import = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
                quote_literal(field(&slot, 2))
            );
            client.batch_execute(&import).await?;
            readers.push(client);
        }
        let horizon = horizon(first(&readers)?).await?;
        Ok(Snapshot { lsn, horizon, cluster, readers, _slot: connection })
    }

    /// The snapshot holds every transaction that committed before this, and none that committed later.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub fn horizon(&self) -> Horizon {
        self.horizon
    }

    pub fn readers(&self) -> &[Client] {
        &self.readers
    }

    /// A position after everything that the readers may have seen, though the snapshot should not show it: a TRUNCATE takes
    /// rows away from older snapshots too. A message makes the stream pass there soon.
    ///
    /// # Errors
    /// The source does not answer.
    pub async fn end(&self, url: &PgUrl) -> Result<Lsn, SnapshotError> {
        let client = connect(url, "tailwater copy").await?.client;
        let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() \
                   ELSE pg_logical_emit_message(true, 'tailwater.copied', '') END::text";
        let lsn: String = client.query_one(sql, &[]).await?.get(0);
        lsn.parse().map_err(|_| SnapshotError::Answer("the source's position is no LSN".to_owned()))
    }

    /// The leaves of a table, from now on safe from every ALTER TABLE, TRUNCATE and VACUUM FULL: these change files, not
    /// rows, so that older snapshots find nothing or the rows elsewhere.
    ///
    /// # Errors
    /// The catalog cannot be read, a lock is not to be had, or such a thing happened since the snapshot was taken.
    pub async fn open(&self, table: &TableName) -> Result<Vec<Leaf>, SnapshotError> {
        let reader = first(&self.readers)?;
        let named = reader.query(&leaves_of("n.nspname::text, c.relname::text"), &[&table.quoted()]).await?;
        for leaf in named {
            let name = TableName::new(leaf.get::<_, &str>(0), leaf.get::<_, &str>(1));
            // All of them at once: who waits for the first one's lock to go would keep the others from theirs.
            for reader in &self.readers {
                let sql = format!(
                    "SET LOCAL lock_timeout = {}; SELECT FROM ONLY {} WHERE false; SET LOCAL lock_timeout = 0",
                    LOCK_TIMEOUT.as_millis(),
                    name.quoted()
                );
                reader.batch_execute(&sql).await?;
            }
        }
        let leaves = reader.query(&leaves_of(LEAF), &[&table.quoted()]).await?;
        leaves.iter().map(|row| self.leaf(row)).collect()
    }

    fn leaf(&self, row: &tokio_postgres::Row) -> Result<Leaf, SnapshotError> {
        let name = TableName::new(row.get::<_, &str>(0), row.get::<_, &str>(1));
        let (shown, current): (u32, Option<u32>) = (row.get(5), row.get(6));
        // A foreign table has no file, and 0 for it.
        if current.unwrap_or_default() != shown {
            return Err(SnapshotError::Rewritten(name));
        }
        Ok(Leaf {
            relation: row.get(2),
            name,
            blocks: u32::try_from(row.get::<_, i64>(3)).unwrap_or(u32::MAX),
            estimated_rows: row.get::<_, i64>(4).unsigned_abs(),
            layout: format!("{} {shown} {}", self.cluster, row.get::<_, &str>(7)),
        })
    }
}

/// The columns of a leaf. `pg_class` is read through the snapshot, the functions see what is.
const LEAF: &str = "n.nspname::text, c.relname::text, c.oid, \
    (pg_relation_size(c.oid) / current_setting('block_size')::int)::bigint, greatest(c.reltuples, 0)::bigint, \
    c.relfilenode, pg_relation_filenode(c.oid), \
    (SELECT coalesce(md5(string_agg(concat_ws(' ', a.attnum, a.attname, format_type(a.atttypid, a.atttypmod)), ',' \
    ORDER BY a.attnum)), '') FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)";

/// A query of the leaves of the table that is its parameter: all of a partitioned one, the table itself of any other.
fn leaves_of(columns: &str) -> String {
    format!(
        "SELECT {columns} FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'f') AND (c.oid = $1::text::regclass \
         OR c.oid IN (SELECT p.relid FROM pg_partition_tree($1::text::regclass) AS p WHERE p.isleaf)) ORDER BY c.oid"
    )
}

/// What the session's snapshot shows.
async fn horizon(reader: &Client) -> Result<Horizon, SnapshotError> {
    let sql =
        "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() AS s";
    let row = reader.query_one(sql, &[]).await?;
    Ok(Horizon { xmin: row.get::<_, i64>(0).unsigned_abs(), xmax: row.get::<_, i64>(1).unsigned_abs() })
}

fn first(readers: &[Client]) -> Result<&Client, SnapshotError> {
    readers.first().ok_or_else(|| SnapshotError::Answer("no reader".to_owned()))
}

/// One field of the first row.
fn field(rows: &[Vec<Option<String>>], index: usize) -> &str {
    rows.first().and_then(|row| row.get(index)).and_then(Option::as_deref).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: u32 = 3 * CHUNK_BLOCKS + 1;

    fn leaf(relation: u32, blocks: u32) -> Leaf {
        let name = TableName::new("public", format!("t{relation}"));
        Leaf { relation, name, blocks, estimated_rows: 0, layout: String::new() }
    }

    fn ranges(leaves: &[Leaf], copied: &[Copied]) -> Vec<(u32, u32, Option<u32>, Option<u64>)> {
        let chunks = cut(leaves, copied).into_iter();
        chunks.map(|chunk| (chunk.relation, chunk.first_block, chunk.end_block, chunk.since)).collect()
    }

    fn done(relation: u32, first_block: u32, end_block: Option<u32>, xmin: u64) -> Copied {
        Copied { relation, first_block, end_block, xmin }
    }

    #[test]
    fn table_is_cut_without_gap_and_open_at_its_end() {
        let c = CHUNK_BLOCKS;
        assert_eq!(ranges(&[leaf(1, 0)], &[]), [(1, 0, None, None)]);
        assert_eq!(ranges(&[leaf(1, c)], &[]), [(1, 0, None, None)]);
        let cut =
            [(1, 0, Some(c), None), (1, c, Some(2 * c), None), (1, 2 * c, Some(3 * c), None), (1, 3 * c, None, None)];
        assert_eq!(ranges(&[leaf(1, END)], &[]), cut);
        assert_eq!(ranges(&[leaf(1, 1), leaf(2, 1)], &[]), [(1, 0, None, None), (2, 0, None, None)]);
    }

    #[test]
    fn copied_ranges_keep_their_borders_whatever_became_of_the_table() {
        let c = CHUNK_BLOCKS;
        let copied = [done(1, c, Some(2 * c), 7), done(2, 0, None, 8)];
        let expected = [
            (1, 0, Some(c), None),
            (1, c, Some(2 * c), Some(7)),
            (1, 2 * c, Some(3 * c), None),
            (1, 3 * c, None, None),
            (2, 0, None, Some(8)),
        ];
        assert_eq!(ranges(&[leaf(1, END), leaf(2, END)], &copied), expected);
        // Another size of chunks, and a table that shrank.
        let copied = [done(1, 0, Some(10), 7), done(1, 20, Some(30), 8)];
        let expected =
            [(1, 0, Some(10), Some(7)), (1, 10, Some(20), None), (1, 20, Some(30), Some(8)), (1, 30, None, None)];
        assert_eq!(ranges(&[leaf(1, 5)], &copied), expected);
    }

    #[test]
    fn newer_rows_are_told_within_half_of_all_transaction_ids() {
        let horizon = |xmin, xmax| Horizon { xmin, xmax };
        assert!(horizon(100, 105).tells_newer_than(100));
        assert!(!horizon(100, 105).tells_newer_than(101), "the snapshot is not a later one");
        assert!(horizon(100, 100 + XID_WINDOW - 1).tells_newer_than(100));
        assert!(!horizon(100, 100 + XID_WINDOW).tells_newer_than(100));
    }

    #[test]
    fn condition_is_about_the_lower_half_of_the_id() {
        let chunk = &cut(&[leaf(1, END)], &[])[0];
        assert_eq!(
            chunk.part_condition(Part::Newer((5 << 32) + 3)),
            "ctid >= '(0,0)'::tid AND ctid < '(2048,0)'::tid AND ((xmin::text::bigint - 3) & 4294967295) < 2147483648"
        );
    }
}
