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

/// Blocks of 8 KiB in a chunk: 64 MiB, a second or so of work that a crash may cost.
const CHUNK_BLOCKS: u32 = 8_192;
/// A slot's creation waits for every transaction that is writing; after this somebody should hear of it.
const SLOT_TIMEOUT: Duration = Duration::from_secs(300);

/// Distinguishes this process's temporary slots.
static NUMBER: AtomicU32 = AtomicU32::new(0);

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("the temporary slot of the snapshot was not made")]
    Slot(#[source] WireError),
    #[error("the snapshot cannot be read")]
    Connect(#[from] ConnectError),
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

/// An exported snapshot with its readers. It lives as long as the readers' transactions.
pub struct Snapshot {
    lsn: Lsn,
    readers: Vec<Client>,
    /// Keeps the snapshot's own session, and with it the temporary slot, until all readers have it.
    _slot: ReplicationConnection,
}

/// A range of physical blocks of one table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// The table itself, or one partition of it.
    pub table: TableName,
    pub first_block: u32,
    /// `None`: to the end.
    pub end_block: Option<u32>,
}

impl Chunk {
    /// The chunk as a condition on `ctid`.
    pub fn condition(&self) -> String {
        let from = format!("ctid >= '({},0)'::tid", self.first_block);
        match self.end_block {
            Some(end) => format!("{from} AND ctid < '({end},0)'::tid"),
            None => from,
        }
    }
}

/// How a table is cut up.
pub struct Chunks {
    pub chunks: Vec<Chunk>,
    /// The planner's guess; 0 if it has none.
    pub estimated_rows: u64,
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
            connection.set_timeout(Some(SLOT_TIMEOUT))?;
            let sql =
                format!("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT", quote_ident(&name));
            let rows = connection.query(&sql)?;
            Ok::<_, WireError>((connection, rows))
        });
        let (connection, rows) =
            made.await.map_err(|error| SnapshotError::Answer(error.to_string()))?.map_err(SnapshotError::Slot)?;
        // Name, consistent point, snapshot name, plugin.
        let row = rows.into_iter().next().unwrap_or_default();
        let field = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        let lsn = field(1).parse().map_err(|_| SnapshotError::Answer("the slot has no consistent point".to_owned()))?;
        let mut readers = Vec::new();
        for _ in 0..connections {
            let client = connect(url, "tailwater copy").await?.client;
            let import = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
                quote_literal(&field(2))
            );
            client.batch_execute(&import).await?;
            readers.push(client);
        }
        Ok(Snapshot { lsn, readers, _slot: connection })
    }

    /// The snapshot holds every transaction that committed before this, and none that committed later.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    pub fn readers(&self) -> &[Client] {
        &self.readers
    }

    /// A position after everything that the readers may have seen, though the snapshot should not show it: a TRUNCATE or a
    /// rewrite takes rows away from older snapshots too. A message makes the stream pass there soon.
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

    /// Cuts a table into chunks; of a partitioned one, all its leaves.
    ///
    /// # Errors
    /// The catalog cannot be read.
    pub async fn chunks(&self, table: &TableName) -> Result<Chunks, SnapshotError> {
        let reader = self.readers.first().ok_or_else(|| SnapshotError::Answer("no reader".to_owned()))?;
        let leaves = reader
            .query(
                "SELECT n.nspname::text, c.relname::text, (pg_relation_size(c.oid) / current_setting('block_size')::int)::bigint, \
                 greatest(c.reltuples, 0)::bigint \
                 FROM pg_partition_tree($1::text::regclass) AS p JOIN pg_class AS c ON c.oid = p.relid \
                 JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE p.isleaf \
                 UNION ALL \
                 SELECT n.nspname::text, c.relname::text, (pg_relation_size(c.oid) / current_setting('block_size')::int)::bigint, \
                 greatest(c.reltuples, 0)::bigint \
                 FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
                 WHERE c.oid = $1::text::regclass AND c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_partition_tree(c.oid) WHERE isleaf)",
                &[&table.quoted()],
            )
            .await?;
        let mut chunks = Vec::new();
        let mut estimated_rows = 0;
        for leaf in leaves {
            let name = TableName::new(leaf.get::<_, &str>(0), leaf.get::<_, &str>(1));
            let blocks = u32::try_from(leaf.get::<_, i64>(2)).unwrap_or(u32::MAX);
            estimated_rows += leaf.get::<_, i64>(3).unsigned_abs();
            let mut first_block = 0u32;
            loop {
                // The last one is open at its end: the table may have grown since its size was read.
                let end_block = first_block.checked_add(CHUNK_BLOCKS).filter(|&end| end < blocks);
                chunks.push(Chunk { table: name.clone(), first_block, end_block });
                match end_block {
                    Some(end) => first_block = end,
                    None => break,
                }
            }
        }
        Ok(Chunks { chunks, estimated_rows })
    }
}
