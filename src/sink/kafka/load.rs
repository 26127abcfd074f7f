//! Loading a snapshot into Kafka: binary COPY out of the source, each row a message that says it was read.

use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio_postgres::Client;

use super::cluster::Cluster;
use super::encode::Messages;
use super::failure::KafkaFailure;
use super::producer::Producer;
use super::registry::{RegistryError, SchemaIds, register_plan};
use super::state::{StateKey, TableRecord};
use super::state_record;
use crate::catalog::quote_ident;
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::sink::load::LoadError;
use crate::sink::state::{StoredTable, TableState, name_text};
use crate::source::copy_rows::{CopyRows, emptied};
use crate::source::snapshot::{Chunk, Part};

impl From<KafkaFailure> for LoadError {
    fn from(failure: KafkaFailure) -> Self {
        match failure {
            // By whom is seen at the next attempt: by a daemon that has taken over, or by one that was taken over and awoke.
            KafkaFailure::Fenced => LoadError::Passing(failure.to_string()),
            failure if failure.passes() => LoadError::Passing(failure.to_string()),
            failure => LoadError::Row(failure.to_string()),
        }
    }
}

impl From<RegistryError> for LoadError {
    fn from(error: RegistryError) -> Self {
        match error {
            // Who is not let in ends as a whole where batches are applied; the table is not to blame.
            RegistryError::Passing { .. } | RegistryError::Denied { .. } | RegistryError::Unusable { .. } => {
                LoadError::Passing(error.to_string())
            }
            RegistryError::Incompatible { .. } | RegistryError::Invalid { .. } | RegistryError::Plan(_) => {
                LoadError::Row(error.to_string())
            }
        }
    }
}

/// Rows between two reports of how far a copy is.
const REPORT_ROWS: u64 = 4_096;

/// How a table's copy begins.
pub enum Begun {
    Loading(Box<KafkaLoader>),
    /// The topic has the table already: a copy was committed of which that was not known.
    There {
        lsn: Lsn,
        until: Lsn,
    },
}

/// Loads one table, all of it in one transaction.
pub struct KafkaLoader {
    source: String,
    plan: Arc<Plan>,
    lsn: Lsn,
    state_topic: String,
    /// What the source is asked for.
    columns: String,
    database: String,
    schemas: Option<SchemaIds>,
    cluster: Arc<Cluster>,
    /// Shared by the connections that read.
    producer: Producer,
}

impl KafkaLoader {
    /// Begins the transaction; who copied this table before is fenced.
    ///
    /// # Errors
    /// The cluster does not answer, or another daemon has taken over.
    pub async fn begin(
        cluster: Arc<Cluster>,
        source: &str,
        epoch: i64,
        plan: &Arc<Plan>,
        lsn: Lsn,
    ) -> Result<Begun, LoadError> {
        // A daemon that has taken over is left in peace.
        let shown = cluster.look(source).await.map_err(LoadError::Passing)?.remembered.checkpoint;
        if shown.is_some_and(|stored| stored.epoch > epoch) {
            return Err(LoadError::Fenced);
        }
        let mut producer = cluster.copy_producer(source).await?;
        // After that: who took over before it has another epoch, and who does later fences this one when it copies.
        let remembered = cluster.read(source).await.map_err(LoadError::Passing)?;
        let stored = remembered.checkpoint.ok_or_else(|| LoadError::Passing("the checkpoint is gone".to_owned()))?;
        if stored.epoch != epoch {
            return Err(LoadError::Fenced);
        }
        // One who is fenced by now may have brought the table, or an attempt of our own whose end nobody told us.
        let there = remembered.tables.get(&name_text(&plan.target)).filter(|record| record.is_filled());
        if let Some(record) = there {
            let StoredTable { lsn, until, .. } = record.stored(plan.target.clone()).map_err(LoadError::Row)?;
            return Ok(Begun::There { lsn, until });
        }
        let schemas = register_plan(cluster.registry(), plan, &stored.identity.database).await?;
        producer.begin().await?;
        let messages = Messages::new(plan, &stored.identity.database, schemas).map_err(LoadError::Row)?;
        Ok(Begun::Loading(Box::new(KafkaLoader {
            source: source.to_owned(),
            plan: plan.clone(),
            lsn,
            state_topic: cluster.state_topic(source),
            columns: columns(plan, &messages),
            database: stored.identity.database,
            schemas,
            cluster,
            producer,
        })))
    }

    /// The way of one reader's rows to the topic.
    ///
    /// # Errors
    /// See [`Messages::new`].
    pub fn lane<'a>(&'a self, reader: &'a Client) -> Result<Lane<'a>, LoadError> {
        let messages = Messages::new(&self.plan, &self.database, self.schemas).map_err(LoadError::Row)?;
        Ok(Lane { loader: self, reader, messages })
    }

    /// All chunks of the table are in: they and the table's state become visible at once. It waits to join the stream at
    /// the snapshot's point, and is whole at `until`.
    ///
    /// # Errors
    /// The transaction was not committed; nothing of it is seen.
    pub async fn finish(self, until: Lsn, rows: u64) -> Result<(), LoadError> {
        let mut producer = self.producer;
        let Some(topic) = &self.plan.topic else { return Err(LoadError::Row("the plan has no topic".to_owned())) };
        let record = TableRecord {
            state: TableState::Catchup,
            oid: self.plan.expected.oid,
            partitions: topic.partitions,
            lsn: self.lsn.to_string(),
            until: until.to_string(),
            rows,
            ..TableRecord::new(&self.plan.from, &topic.name)
        };
        let key = StateKey::table(&self.source, &self.plan.target);
        let record = record.to_bytes();
        let ended = async {
            producer.send(&state_record(&self.state_topic, &key, &record)).await?;
            producer.commit().await
        };
        match ended.await {
            Ok(()) => Ok(()),
            Err(failure) => {
                // Who writes the table's state would wait for the transaction's end.
                let _ = producer.abort().await;
                Err(self.cluster.judge(failure).await.into())
            }
        }
    }
}

/// Takes chunks by one connection to the source, one after the other.
pub struct Lane<'a> {
    loader: &'a KafkaLoader,
    reader: &'a Client,
    messages: Messages,
}

impl Lane<'_> {
    /// Copies one chunk, and tells of its rows some at a time.
    ///
    /// # Errors
    /// Either end refuses, or a row cannot be written.
    pub async fn load(&mut self, chunk: &Chunk, report: impl Fn(u64)) -> Result<(), LoadError> {
        let KafkaLoader { columns, producer, lsn, cluster, .. } = self.loader;
        let rows = self.reader.copy_out(&chunk.copy_sql(columns, Part::Whole)).await.map_err(LoadError::Source)?;
        let mut rows = Box::pin(rows);
        let (mut copy, now) = (CopyRows::default(), UnixMicros::now());
        let (mut taken, mut room) = (0, Vec::new());
        while let Some(message) = rows.next().await {
            let message = message.map_err(LoadError::Source)?;
            let (mut rows, mut cells) = (copy.message(&message)?, emptied(room));
            while rows.next(&mut cells)? {
                taken += 1;
                if self.messages.takes(&cells).map_err(LoadError::Row)? {
                    let message = self.messages.read(&cells, *lsn, now).map_err(LoadError::Row)?;
                    if let Err(failure) = message.send(producer).await {
                        return Err(cluster.judge(failure).await.into());
                    }
                }
            }
            // A message is a row, mostly.
            if taken >= REPORT_ROWS {
                report(std::mem::take(&mut taken));
            }
            room = emptied(cells);
        }
        report(taken);
        Ok(())
    }
}

/// The plan's columns, as text where the binary form is not understood.
fn columns(plan: &Plan, messages: &Messages) -> String {
    let columns = plan.source_columns.iter().enumerate().map(|(input, name)| {
        let name = quote_ident(name);
        if messages.wants_text(input) { format!("{name}::text") } else { name }
    });
    columns.collect::<Vec<_>>().join(", ")
}
