//! Loading a snapshot's chunks: COPY out of the source into COPY at the sink, bytes passed through.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::cursor::{self, Marks, StoredCopy};
use super::encode::masked;
use super::statements::TableStatements;
use crate::catalog::{TableName, quote_ident, quote_literal};
use crate::lsn::Lsn;
use crate::mapping::plan::{InputFrom, Mask, Meta, Plan};
use crate::sink::state::{TableState, name_text};
use crate::source::snapshot::{Chunk, Part};

/// Bytes gathered before they are sent on.
const SEND_BYTES: usize = 256 * 1024;
/// Signature, flags and header extension of a binary COPY without extension.
const HEADER_BYTES: usize = 19;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the source cannot be read")]
    Source(#[source] tokio_postgres::Error),
    #[error("the sink does not take the rows")]
    Sink(#[source] tokio_postgres::Error),
    #[error("{0}")]
    Row(String),
    /// Another daemon has taken over and copies by itself.
    #[error("another daemon took over")]
    Fenced,
}

/// A table on its way into the sink.
pub struct TableLoad<'a> {
    pub plan: &'a Plan,
    statements: TableStatements,
    marks: Marks,
    /// The target holds nothing but what the copy brings, and takes rows as they are.
    is_direct: bool,
    /// The copy goes on from an earlier one, the oldest of whose snapshots had this `xmin`.
    since: Option<u64>,
}

impl<'a> TableLoad<'a> {
    /// A copy from the first row on; see [`Loader::begin_table`].
    pub fn fresh(plan: &'a Plan, marks: Marks) -> Self {
        TableLoad { plan, statements: TableStatements::new(plan, 0), marks, is_direct: false, since: None }
    }

    /// A copy that goes on.
    pub fn resumed(plan: &'a Plan, marks: Marks, stored: &StoredCopy) -> Self {
        let statements = TableStatements::new(plan, 0);
        TableLoad {
            plan,
            marks,
            is_direct: stored.was_empty && statements.copy_into_target.is_some(),
            since: stored.oldest_xmin(),
            statements,
        }
    }

    /// How the rows of a chunk are brought in. Of a range that no earlier snapshot was read through, the target lacks every
    /// row that all of them showed; any newer row may stand in it as it was elsewhere.
    fn parts(&self, chunk: &Chunk) -> Vec<(Part, Way)> {
        match (chunk.since, self.since) {
            (Some(since), _) => vec![(Part::Newer(since), Way::Merge)],
            (None, Some(since)) if self.is_direct => {
                vec![(Part::Older(since), Way::Direct), (Part::Newer(since), Way::Merge)]
            }
            (None, None) if self.is_direct => vec![(Part::Whole, Way::Direct)],
            (None, _) => vec![(Part::Whole, Way::Merge)],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Copied into the target.
    Direct,
    /// Through the stage.
    Merge,
}

/// One connection that loads chunks.
pub struct Loader {
    client: Client,
    source: String,
    epoch: i64,
    mask_key: Arc<[u8]>,
    lsn: Lsn,
    /// The target that the session's stage is made for.
    staged: Option<TableName>,
}

impl Loader {
    pub fn new(client: Client, source: &str, epoch: i64, mask_key: Arc<[u8]>, lsn: Lsn) -> Self {
        Loader { client, source: source.to_owned(), epoch, mask_key, lsn, staged: None }
    }

    /// Registers a table's copy from the first row on.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over, or rows would come twice.
    pub async fn begin_table(&mut self, table: &mut TableLoad<'_>) -> Result<(), LoadError> {
        let plan = table.plan;
        let target = name_text(&plan.target);
        let transaction = self.client.transaction().await.map_err(LoadError::Sink)?;
        fence(&transaction, &self.source, self.epoch).await?;
        clear_in(&transaction, plan).await?;
        let row = transaction.query_one(&table.statements.is_empty, &[]).await.map_err(LoadError::Sink)?;
        let was_empty: bool = row.get(0);
        if !was_empty && plan.is_multiset() {
            let message = "the target holds rows already, and without a key they cannot be told from those of the source: \
                           empty it first";
            return Err(LoadError::Row(message.to_owned()));
        }
        transaction
            .execute(
                "INSERT INTO tailwater.table_state (source, target, origin, state, lsn, was_empty, epoch) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (source, target) DO UPDATE SET state = excluded.state, \
                 lsn = excluded.lsn, rows = 0, was_empty = excluded.was_empty, epoch = excluded.epoch, reason = NULL, updated_at = now()",
                &[
                    &plan.source,
                    &target,
                    &name_text(&plan.from),
                    &TableState::Copying.as_str(),
                    &PgLsn::from(self.lsn.0),
                    &was_empty,
                    &self.epoch,
                ],
            )
            .await
            .map_err(LoadError::Sink)?;
        transaction.commit().await.map_err(LoadError::Sink)?;
        table.is_direct = was_empty && table.statements.copy_into_target.is_some();
        Ok(())
    }

    /// Copies what is missing of one chunk and notes it with the table's state, in one transaction. Answers the rows.
    ///
    /// # Errors
    /// Either end refuses; nothing of the chunk is kept then.
    pub async fn load(
        &mut self,
        table: &TableLoad<'_>,
        chunk: &Chunk,
        reader: &Client,
        report: impl Fn(u64),
    ) -> Result<u64, LoadError> {
        let plan = table.plan;
        let parts = table.parts(chunk);
        if parts.iter().any(|(_, way)| *way == Way::Merge) {
            self.make_stage(table).await?;
        }
        let transaction = self.client.transaction().await.map_err(LoadError::Sink)?;
        let mut rows = 0;
        for (part, way) in parts {
            let (inputs, copy) = match (way, &table.statements.copy_into_target) {
                (Way::Direct, Some(copy)) => (table.statements.direct_inputs.clone(), copy),
                (Way::Direct | Way::Merge, _) => ((0..plan.inputs.len()).collect(), &table.statements.upsert_set.copy),
            };
            let query = chunk.copy_sql(&columns(plan, &inputs, self.lsn), part);
            let masks: Vec<_> = inputs.iter().map(|&input| plan.inputs[input].mask).collect();
            let masks = if masks.iter().any(Option::is_some) { masks } else { Vec::new() };
            rows += relay(reader, &query, &transaction, copy, &masks, &self.mask_key, &report).await?;
            if way == Way::Merge {
                // Where the copy is the first, a row that does not match is not in the target by it.
                let unmatch = table.statements.keyed.as_ref().and_then(|keyed| keyed.unmatch.as_ref());
                for merge in unmatch.filter(|_| table.since.is_some()).into_iter().chain([&table.statements.upsert]) {
                    transaction.execute(&merge.over_stage, &[]).await.map_err(LoadError::Sink)?;
                }
            }
        }
        let counted = i64::try_from(rows).unwrap_or(i64::MAX);
        cursor::note(&transaction, plan, chunk, &table.marks, counted).await?;
        let new = if chunk.since.is_none() { counted } else { 0 };
        let noted = transaction
            .execute(
                "UPDATE tailwater.table_state SET rows = rows + $4, updated_at = now() \
                 WHERE source = $1 AND target = $2 AND epoch = $3 AND state = 'copying' AND lsn = $5",
                &[&plan.source, &name_text(&plan.target), &self.epoch, &new, &PgLsn::from(self.lsn.0)],
            )
            .await
            .map_err(LoadError::Sink)?;
        if noted != 1 {
            return Err(LoadError::Fenced);
        }
        transaction.commit().await.map_err(LoadError::Sink)?;
        Ok(rows)
    }

    async fn make_stage(&mut self, table: &TableLoad<'_>) -> Result<(), LoadError> {
        if self.staged.as_ref() == Some(&table.plan.target) {
            return Ok(());
        }
        let set = &table.statements.upsert_set;
        let sql = format!("DROP TABLE IF EXISTS pg_temp.{}; {}", quote_ident(&set.stage), set.create);
        self.client.batch_execute(&sql).await.map_err(LoadError::Sink)?;
        self.staged = Some(table.plan.target.clone());
        Ok(())
    }

    /// All chunks of these tables are in: they wait to join the stream at the snapshot's point, and are whole at `until`.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over.
    pub async fn finish(&mut self, plans: &[&Plan], until: Lsn) -> Result<(), LoadError> {
        let targets: Vec<_> = plans.iter().map(|plan| name_text(&plan.target)).collect();
        let transaction = self.client.transaction().await.map_err(LoadError::Sink)?;
        let done = transaction
            .execute(
                "UPDATE tailwater.table_state SET state = 'catchup', until = $4, joined = false, updated_at = now() \
                 WHERE source = $1 AND target = ANY($2) AND epoch = $3 AND lsn = $5",
                &[&self.source, &targets, &self.epoch, &PgLsn::from(until.0), &PgLsn::from(self.lsn.0)],
            )
            .await
            .map_err(LoadError::Sink)?;
        if done as usize != plans.len() {
            return Err(LoadError::Fenced);
        }
        cursor::forget(&transaction, &self.source, &targets).await.map_err(LoadError::Sink)?;
        transaction.commit().await.map_err(LoadError::Sink)
    }
}

/// Takes back what a copy that came to no end had written into a target that was empty before. Children go before their
/// parents.
///
/// # Errors
/// The sink refuses, or another daemon has taken over.
pub async fn clear(client: &mut Client, epoch: i64, plan: &Plan) -> Result<(), LoadError> {
    let transaction = client.transaction().await.map_err(LoadError::Sink)?;
    fence(&transaction, &plan.source, epoch).await?;
    clear_in(&transaction, plan).await?;
    transaction.commit().await.map_err(LoadError::Sink)
}

async fn clear_in(transaction: &tokio_postgres::Transaction<'_>, plan: &Plan) -> Result<(), LoadError> {
    let target = name_text(&plan.target);
    // Locked before it is cleared: a chunk whose COMMIT is still under way is then among what is seen.
    let sql = "UPDATE tailwater.table_state SET state = 'pending', rows = 0, updated_at = now() \
               WHERE source = $1 AND target = $2 AND (state = 'copying' OR state = 'catchup' AND NOT joined) \
               RETURNING was_empty";
    let begun = transaction.query_opt(sql, &[&plan.source, &target]).await.map_err(LoadError::Sink)?;
    if begun.is_some_and(|row| row.get(0)) {
        let statements = TableStatements::new(plan, 0);
        transaction.batch_execute(&statements.clear).await.map_err(LoadError::Sink)?;
    }
    cursor::forget(transaction, &plan.source, &[target]).await.map_err(LoadError::Sink)
}

/// Fails unless this daemon is the source's owner.
pub(super) async fn fence(
    transaction: &tokio_postgres::Transaction<'_>,
    source: &str,
    epoch: i64,
) -> Result<(), LoadError> {
    let owner = transaction
        .query_opt("SELECT 1 FROM tailwater.checkpoint WHERE source = $1 AND epoch = $2", &[&source, &epoch])
        .await
        .map_err(LoadError::Sink)?;
    owner.map(|_| ()).ok_or(LoadError::Fenced)
}

/// What the source is asked for: these inputs, in the types that the sink's columns have.
fn columns(plan: &Plan, inputs: &[usize], lsn: Lsn) -> String {
    let column = |&input: &usize| {
        let input = &plan.inputs[input];
        match &input.from {
            InputFrom::Column(name) if input.stage_type == "text" => format!("{}::text", quote_ident(name)),
            InputFrom::Column(name) | InputFrom::Json { column: name, .. } => quote_ident(name),
            InputFrom::Meta(Meta::Source) => format!("{}::text", quote_literal(&plan.source)),
            InputFrom::Meta(Meta::Op) => "'snapshot'::text".to_owned(),
            InputFrom::Meta(Meta::CommitLsn) => format!("'{lsn}'::pg_lsn"),
            InputFrom::Meta(Meta::CommitTs) => "transaction_timestamp()".to_owned(),
            InputFrom::Meta(Meta::Xid) => "NULL::int8".to_owned(),
            InputFrom::Meta(Meta::SyncedAt) => "NULL::timestamptz".to_owned(),
        }
    };
    inputs.iter().map(column).collect::<Vec<_>>().join(", ")
}

/// Passes one COPY's bytes into another.
async fn relay(
    reader: &Client,
    query: &str,
    sink: &tokio_postgres::Transaction<'_>,
    copy: &str,
    masks: &[Option<Mask>],
    mask_key: &[u8],
    report: impl Fn(u64),
) -> Result<u64, LoadError> {
    let rows = reader.copy_out(query).await.map_err(LoadError::Source)?;
    let mut rows = Box::pin(rows);
    let mut into = Box::pin(sink.copy_in::<_, Bytes>(copy).await.map_err(LoadError::Sink)?);
    let mut buffer = BytesMut::with_capacity(SEND_BYTES + SEND_BYTES / 4);
    let mut pending = 0;
    let mut is_first = true;
    while let Some(message) = rows.next().await {
        let message = message.map_err(LoadError::Source)?;
        if masks.is_empty() {
            buffer.extend_from_slice(&message);
        } else {
            mask_row(&message, &mut is_first, masks, mask_key, &mut buffer)?;
        }
        pending += 1;
        if buffer.len() >= SEND_BYTES {
            let full = buffer.split().freeze();
            into.send(full).await.map_err(LoadError::Sink)?;
            buffer.reserve(SEND_BYTES + SEND_BYTES / 4);
            report(std::mem::take(&mut pending));
        }
    }
    into.send(buffer.freeze()).await.map_err(LoadError::Sink)?;
    let copied = into.as_mut().finish().await.map_err(LoadError::Sink)?;
    report(pending);
    Ok(copied)
}

/// Rewrites the masked fields of one message, which holds whole rows (the server sends one row a message).
fn mask_row(
    message: &[u8],
    is_first: &mut bool,
    masks: &[Option<Mask>],
    mask_key: &[u8],
    out: &mut BytesMut,
) -> Result<(), LoadError> {
    let cut = || LoadError::Row("a row of the snapshot is cut short".to_owned());
    let mut rest = message;
    if std::mem::take(is_first) {
        let (header, tail) = rest.split_at_checked(HEADER_BYTES).ok_or_else(cut)?;
        out.extend_from_slice(header);
        rest = tail;
    }
    while let Some((count, tail)) = rest.split_first_chunk::<2>() {
        out.extend_from_slice(count);
        rest = tail;
        for column in 0..usize::try_from(i16::from_be_bytes(*count)).unwrap_or(0) {
            let (length, tail) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
            rest = tail;
            let Ok(bytes) = usize::try_from(i32::from_be_bytes(*length)) else {
                out.extend_from_slice(length);
                continue;
            };
            let (value, tail) = rest.split_at_checked(bytes).ok_or_else(cut)?;
            rest = tail;
            match masks.get(column).copied().flatten() {
                Some(Mask::Sha256) => {
                    let masked = masked(mask_key, value);
                    out.extend_from_slice(&u32::try_from(masked.len()).unwrap_or(u32::MAX).to_be_bytes());
                    out.extend_from_slice(masked.as_bytes());
                }
                None => {
                    out.extend_from_slice(length);
                    out.extend_from_slice(value);
                }
            }
        }
    }
    Ok(())
}
