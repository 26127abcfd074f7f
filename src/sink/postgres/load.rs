//! Loading a snapshot's chunks: COPY out of the source into COPY at the sink, bytes passed through.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::encode::masked;
use super::statements::TableStatements;
use crate::catalog::{quote_ident, quote_literal};
use crate::lsn::Lsn;
use crate::mapping::plan::{InputFrom, Mask, Meta, Plan};
use crate::sink::state::{TableState, name_text};
use crate::source::snapshot::Chunk;

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

/// One connection that loads chunks.
pub struct Loader {
    client: Client,
    source: String,
    epoch: i64,
    mask_key: Arc<[u8]>,
    lsn: Lsn,
    stages: HashSet<String>,
}

impl Loader {
    pub fn new(client: Client, source: &str, epoch: i64, mask_key: Arc<[u8]>, lsn: Lsn) -> Self {
        Loader { client, source: source.to_owned(), epoch, mask_key, lsn, stages: HashSet::new() }
    }

    /// Registers a table's copy. Rows of a copy that was cut short are cleared if the table was empty before it.
    /// Answers whether chunks may be copied straight into the target.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over, or rows would come twice.
    pub async fn begin_table(&mut self, plan: &Plan) -> Result<bool, LoadError> {
        let statements = TableStatements::new(plan, 0);
        let transaction = self.client.transaction().await.map_err(LoadError::Sink)?;
        fence(&transaction, &self.source, self.epoch).await?;
        // Locked before it is cleared: a chunk whose COMMIT is still under way is then among what is seen.
        let cut_short = transaction
            .query_opt(
                "SELECT state = $3 AND was_empty FROM tailwater.table_state WHERE source = $1 AND target = $2 FOR UPDATE",
                &[&plan.source, &name_text(&plan.target), &TableState::Copying.as_str()],
            )
            .await
            .map_err(LoadError::Sink)?;
        if cut_short.is_some_and(|row| row.get(0)) {
            transaction.batch_execute(&statements.clear).await.map_err(LoadError::Sink)?;
        }
        let row = transaction.query_one(&statements.is_empty, &[]).await.map_err(LoadError::Sink)?;
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
                    &name_text(&plan.target),
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
        Ok(was_empty && statements.copy_into_target.is_some())
    }

    /// Copies one chunk and counts it in the table's state, in one transaction. Answers the rows.
    ///
    /// # Errors
    /// Either end refuses; nothing of the chunk is kept then.
    pub async fn load(
        &mut self,
        plan: &Plan,
        chunk: &Chunk,
        reader: &Client,
        direct: bool,
        report: impl Fn(u64),
    ) -> Result<u64, LoadError> {
        let statements = TableStatements::new(plan, 0);
        let inputs: Vec<usize> =
            if direct { statements.direct_inputs.clone() } else { (0..plan.inputs.len()).collect() };
        if !direct && self.stages.insert(plan.target.to_string()) {
            self.client
                .batch_execute(&format!("DROP TABLE IF EXISTS pg_temp.{}", quote_ident(&statements.upsert_set.stage)))
                .await
                .map_err(LoadError::Sink)?;
            self.stages.retain(|stage| stage == &plan.target.to_string());
            self.client.batch_execute(&statements.upsert_set.create).await.map_err(LoadError::Sink)?;
        }
        let transaction = self.client.transaction().await.map_err(LoadError::Sink)?;
        let copy =
            if direct { statements.copy_into_target.as_deref() } else { Some(statements.upsert_set.copy.as_str()) };
        let query = select(plan, chunk, &inputs, self.lsn);
        let masks: Vec<_> = inputs.iter().map(|&input| plan.inputs[input].mask).collect();
        let masks = if masks.iter().any(Option::is_some) { masks } else { Vec::new() };
        let rows =
            relay(reader, &query, &transaction, copy.unwrap_or_default(), &masks, &self.mask_key, report).await?;
        if !direct {
            transaction.execute(&statements.upsert.over_stage, &[]).await.map_err(LoadError::Sink)?;
        }
        let counted = transaction
            .execute(
                "UPDATE tailwater.table_state SET rows = rows + $4, updated_at = now() \
                 WHERE source = $1 AND target = $2 AND epoch = $3",
                &[&plan.source, &name_text(&plan.target), &self.epoch, &i64::try_from(rows).unwrap_or(i64::MAX)],
            )
            .await
            .map_err(LoadError::Sink)?;
        if counted != 1 {
            return Err(LoadError::Fenced);
        }
        transaction.commit().await.map_err(LoadError::Sink)?;
        Ok(rows)
    }

    /// All chunks of these tables are in: they wait to join the stream at the snapshot's point, and are whole at `until`.
    ///
    /// # Errors
    /// The sink refuses, or another daemon has taken over.
    pub async fn finish(&self, plans: &[&Plan], until: Lsn) -> Result<(), LoadError> {
        let targets: Vec<_> = plans.iter().map(|plan| name_text(&plan.target)).collect();
        let done = self
            .client
            .execute(
                "UPDATE tailwater.table_state SET state = 'catchup', until = $4, joined = false, updated_at = now() \
                 WHERE source = $1 AND target = ANY($2) AND epoch = $3",
                &[&self.source, &targets, &self.epoch, &PgLsn::from(until.0)],
            )
            .await
            .map_err(LoadError::Sink)?;
        if done as usize == plans.len() { Ok(()) } else { Err(LoadError::Fenced) }
    }
}

/// Fails unless this daemon is the source's owner.
async fn fence(transaction: &tokio_postgres::Transaction<'_>, source: &str, epoch: i64) -> Result<(), LoadError> {
    let owner = transaction
        .query_opt("SELECT 1 FROM tailwater.checkpoint WHERE source = $1 AND epoch = $2", &[&source, &epoch])
        .await
        .map_err(LoadError::Sink)?;
    owner.map(|_| ()).ok_or(LoadError::Fenced)
}

/// The source's query of a chunk: the inputs in the order asked for, in the types that the sink's columns have.
fn select(plan: &Plan, chunk: &Chunk, inputs: &[usize], lsn: Lsn) -> String {
    let column = |&input: &usize| {
        let input = &plan.inputs[input];
        match &input.from {
            InputFrom::Column(name) if input.stage_type == "text" => format!("{}::text", quote_ident(name)),
            InputFrom::Column(name) => quote_ident(name),
            InputFrom::Meta(Meta::Source) => format!("{}::text", quote_literal(&plan.source)),
            InputFrom::Meta(Meta::Op) => "'snapshot'::text".to_owned(),
            InputFrom::Meta(Meta::CommitLsn) => format!("'{lsn}'::pg_lsn"),
            InputFrom::Meta(Meta::CommitTs) => "transaction_timestamp()".to_owned(),
            InputFrom::Meta(Meta::Xid) => "NULL::int8".to_owned(),
            InputFrom::Meta(Meta::SyncedAt) => "NULL::timestamptz".to_owned(),
        }
    };
    let columns: Vec<_> = inputs.iter().map(column).collect();
    format!(
        "COPY (SELECT {} FROM ONLY {} WHERE {}) TO STDOUT (FORMAT binary)",
        columns.join(", "),
        chunk.table.quoted(),
        chunk.condition()
    )
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
