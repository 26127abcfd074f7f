//! The Kafka sink: each change is a message, exactly once for whoever reads committed messages only.
//!
//! One transaction of the producer holds whole source transactions and, in a compacted topic, the checkpoint behind them.
//! Nothing is durable before that transaction is committed, and after it everything is.
//!
//! ```text
//! address   where the brokers are, and how a client is set up   ─┬─▶ producer   begin ▶ send … ▶ commit   ─┬─▶ apply, load
//! failure   what went wrong, as one of five verdicts            ─┤                                         │
//! registry  schemas go in, their numbers come back              ─┤                                         │
//! partition which partition a key belongs to                    ─┴─▶ topics     create, count, read back  ─┼─▶ cluster
//!                                                                    left_open  what brokers did not end  ─┘
//! ```
//!
//! Beside rows, if asked: `transactions` tells where each begins and ends and numbers its events, `heartbeat` that we are there;
//! both by a channel of `beside`.

pub mod address;
mod admit;
mod apply;
mod beside;
mod client;
pub mod cluster;
pub mod encode;
pub mod failure;
mod heartbeat;
pub mod left_open;
pub mod load;
pub mod oversize;
pub mod partition;
pub mod producer;
pub mod registry;
pub mod session;
pub mod state;
mod tables;
#[cfg(test)]
mod tests;
pub mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::checkpoint::{Checkpoint, SourceIdentity, UnixMicros};
use crate::mapping::plan::Plan;
use crate::sink::state::{TableState, name_text};
use crate::sink::{ApplyError, Durable, SinkSetup};
use cluster::Cluster;
use failure::KafkaFailure;
use heartbeat::Heart;
use producer::{Producer, Record};
use state::{CheckpointRecord, StateKey, TableRecord};
use tables::Table;
use transactions::Transactions;

/// Applies one source's batches.
pub struct KafkaSink {
    name: String,
    source: String,
    cluster: Arc<Cluster>,
    producer: Producer,
    /// By plan.
    tables: Vec<Table>,
    /// By plan.
    topics: Vec<String>,
    transactions: Option<Transactions>,
    heart: Option<Heart>,
    /// A transaction is begun and not ended.
    is_open: bool,
    epoch: i64,
    checkpoint: Checkpoint,
    identity: SourceIdentity,
    /// Where tables stand, by target: as it was read, and as it was written since.
    records: BTreeMap<String, TableRecord>,
}

impl KafkaSink {
    /// A sink that stands at the checkpoint that was read from it, with what was read beside it. Who wrote for the source
    /// before the producer was connected is fenced.
    ///
    /// # Errors
    /// The schema registry does not answer, or a plan does not fit its topic any more.
    pub(in crate::sink) async fn new(
        cluster: Arc<Cluster>,
        producer: Producer,
        records: BTreeMap<String, TableRecord>,
        setup: SinkSetup,
        identity: SourceIdentity,
    ) -> Result<KafkaSink, ApplyError> {
        let fits = setup.plans.iter().try_for_each(|plan| same_partitions(plan, &records));
        fits.map_err(|message| ApplyError::Fatal { message })?;
        let mut tables = Vec::with_capacity(setup.plans.len());
        for plan in &setup.plans {
            tables.push(Table::new(&cluster, plan, &identity.database).await?);
        }
        let topic = |plan: &Arc<Plan>| plan.topic.as_ref().map(|topic| topic.name.clone()).unwrap_or_default();
        Ok(KafkaSink {
            topics: setup.plans.iter().map(topic).collect(),
            tables,
            transactions: Transactions::of(&cluster, &setup.source, &setup.plans).await?,
            heart: Heart::of(&cluster, &setup.source, &setup.plans).await?,
            name: setup.name,
            source: setup.source,
            cluster,
            producer,
            is_open: false,
            epoch: setup.epoch,
            checkpoint: setup.checkpoint,
            identity,
            records,
        })
    }

    /// What the sink durably holds.
    pub fn durable(&self) -> Durable {
        Durable::new(&self.name, self.checkpoint)
    }

    /// What comes from here to the next checkpoint is one transaction.
    pub async fn begin(&mut self) -> Result<(), ApplyError> {
        if !self.is_open {
            self.producer.begin().await.map_err(|failure| apply_error(&failure))?;
            self.is_open = true;
        }
        Ok(())
    }

    /// Writes the checkpoint into the open transaction and commits it, with a heartbeat if one is due.
    async fn commit(&mut self, checkpoint: Checkpoint) -> Result<(), ApplyError> {
        if let Some(heart) = &mut self.heart {
            heart.beat(&mut self.producer).await.map_err(|failure| apply_error(&failure))?;
        }
        let record = CheckpointRecord::new(&checkpoint, &self.identity, self.epoch).to_bytes();
        let key = StateKey::checkpoint(&self.source);
        self.state(&key, &record).await?;
        self.producer.commit().await.map_err(|failure| apply_error(&failure))?;
        self.is_open = false;
        self.checkpoint = checkpoint;
        Ok(())
    }

    async fn state(&mut self, key: &[u8], record: &[u8]) -> Result<(), ApplyError> {
        let topic = self.cluster.state_topic(&self.source);
        self.producer.send(&state_record(&topic, key, record)).await.map_err(|failure| apply_error(&failure))
    }

    /// Notes that copied tables follow the stream from now on, in the open transaction.
    ///
    /// # Errors
    /// See [`ApplyError`]: what they caught up with is in the same transaction, and may be refused only now.
    pub async fn write_joined(&mut self, targets: &[String]) -> Result<(), ApplyError> {
        let outcome = self.note_joined(targets).await.map_err(|message| ApplyError::Transient { message });
        self.judged(outcome).await
    }

    async fn note_joined(&mut self, targets: &[String]) -> Result<(), String> {
        let is_known = |target| self.records.get(target).is_some_and(TableRecord::is_filled);
        if !targets.iter().all(is_known) {
            // Copied since this sink began.
            self.records = self.cluster.read(&self.source).await?.tables;
        }
        for target in targets {
            let record = self.record(target)?;
            let record = TableRecord { joined: true, ..record };
            self.write_table(target, record).await?;
        }
        Ok(())
    }

    /// Notes that a table's topic holds what the source has, at the checkpoint.
    pub async fn write_streaming(&mut self, target: &str) -> Result<(), String> {
        let record = self.record(target)?;
        // What is open has no checkpoint yet, and must not be committed by the way.
        assert!(!self.is_open, "a table's state is written between batches");
        self.begin().await.map_err(|error| error.to_string())?;
        self.write_table(target, TableRecord { state: TableState::Streaming, ..record }).await?;
        self.producer.commit().await.map_err(|failure| failure.to_string())?;
        self.is_open = false;
        Ok(())
    }

    fn record(&self, target: &str) -> Result<TableRecord, String> {
        self.records.get(target).cloned().ok_or_else(|| format!("no state of {target}"))
    }

    /// Writes into the open transaction. If that is not committed, this sink is of no more use.
    async fn write_table(&mut self, target: &str, record: TableRecord) -> Result<(), String> {
        let key = StateKey::Table { source: self.source.clone(), target: target.to_owned() }.to_bytes();
        self.state(&key, &record.to_bytes()).await.map_err(|error| error.to_string())?;
        self.records.insert(target.to_owned(), record);
        Ok(())
    }
}

/// H92: where a key's messages are follows from how many partitions there are. With another number later ones would go
/// elsewhere, and overtake those before.
fn same_partitions(plan: &Plan, tables: &BTreeMap<String, TableRecord>) -> Result<(), String> {
    let (Some(topic), Some(record)) = (&plan.topic, tables.get(&name_text(&plan.target))) else { return Ok(()) };
    if record.partitions == 0 || record.partitions == topic.partitions {
        return Ok(());
    }
    Err(format!(
        "topic \"{}\" has {} partitions and had {} when its first message came, so keys would change their place and lose \
         their order: map the table to a new topic",
        topic.name, topic.partitions, record.partitions
    ))
}

/// A record of the state topic, which has one partition.
fn state_record<'a>(topic: &'a str, key: &'a [u8], value: &'a [u8]) -> Record<'a> {
    let timestamp_ms = UnixMicros::now().0 / 1_000;
    Record { topic, partition: 0, key: Some(key), value: Some(value), headers: &[], timestamp_ms }
}

/// What a failure means for the batch. One who is fenced looks at the checkpoint before it gives up: a session of the same
/// daemon may have been the one that fenced.
fn apply_error(failure: &KafkaFailure) -> ApplyError {
    let message = failure.to_string();
    match failure {
        KafkaFailure::Transient { .. } | KafkaFailure::Fenced => ApplyError::Transient { message },
        KafkaFailure::TooLarge(_) | KafkaFailure::Denied { .. } | KafkaFailure::Fatal { .. } => {
            ApplyError::Fatal { message }
        }
    }
}
