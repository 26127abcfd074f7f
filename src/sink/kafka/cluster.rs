//! One cluster as a sink: where it is reached, what it remembers of each source, and who writes there.

use std::collections::BTreeMap;

use super::address::KafkaAddress;
use super::failure::KafkaFailure;
use super::producer::Producer;
use super::registry::Registry;
use super::state::{CheckpointRecord, StateKey, TableRecord};
use super::state_record;
use super::topics::{describe, ensure_topic, read_compacted, topics};
use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity};
use crate::lsn::Lsn;
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState, name_text};

/// `transaction.max.timeout.ms` of brokers, unless it is set.
const COPY_TIMEOUT_MS: &str = "900000";

/// A cluster that has answered.
pub struct Cluster {
    /// The `[sink.NAME]`: of transactional ids.
    sink: String,
    address: KafkaAddress,
    state_topic: String,
    registry: Option<Registry>,
}

/// What a sink remembers of one source.
#[derive(Default)]
pub struct Remembered {
    pub checkpoint: Option<StoredCheckpoint>,
    /// By target.
    pub tables: BTreeMap<String, TableRecord>,
}

impl Cluster {
    pub fn new(sink: &str, address: KafkaAddress, state_topic: &str, registry: Option<Registry>) -> Cluster {
        Cluster { sink: sink.to_owned(), address, state_topic: state_topic.to_owned(), registry }
    }

    /// Where schemas are registered, if any are.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    pub fn address(&self) -> &KafkaAddress {
        &self.address
    }

    pub fn state_topic(&self) -> &str {
        &self.state_topic
    }

    /// The one producer for a source's changes (or, with `what`, for something else of the source): fences older ones.
    pub async fn producer(&self, source: &str, what: &str) -> Result<Producer, KafkaFailure> {
        let id = format!("tailwater-{}-{source}{what}", self.sink);
        Producer::connect(&self.address, &id).await
    }

    /// The one producer for a source's first copies. A table is one transaction, as long as brokers allow by default.
    pub async fn copy_producer(&self, source: &str) -> Result<Producer, KafkaFailure> {
        let address = self.address.clone().or_option("transaction.timeout.ms", COPY_TIMEOUT_MS);
        Producer::connect(&address, &format!("tailwater-{}-{source}-copy", self.sink)).await
    }

    /// Makes the state topic if it is not there.
    pub async fn ensure_state(&self) -> Result<(), String> {
        if self.has_state().await? {
            return Ok(());
        }
        let settings = [("cleanup.policy", "compact")];
        ensure_topic(&self.address, &self.state_topic, 1, None, &settings).await.map_err(|failure| failure.to_string())
    }

    pub async fn has_state(&self) -> Result<bool, String> {
        let found = describe(&self.address, &self.state_topic).await.map_err(|failure| failure.to_string())?;
        match found {
            Some(1) => Ok(true),
            Some(partitions) => {
                Err(format!("state topic \"{}\" has {partitions} partitions, not one", self.state_topic))
            }
            None => Ok(false),
        }
    }

    /// Every topic with how many partitions it has.
    pub async fn topics(&self) -> Result<BTreeMap<String, i32>, KafkaFailure> {
        topics(&self.address).await
    }

    /// Makes a topic with what the brokers have for its settings.
    pub async fn make_topic(&self, name: &str, partitions: i32) -> Result<(), String> {
        ensure_topic(&self.address, name, partitions, None, &[]).await.map_err(|failure| failure.to_string())
    }

    /// What is remembered of a source.
    pub async fn read(&self, source: &str) -> Result<Remembered, String> {
        let records = read_compacted(&self.address, &self.state_topic).await.map_err(|failure| failure.to_string())?;
        let mut remembered = Remembered::default();
        for (key, value) in &records {
            match serde_json::from_slice::<StateKey>(key) {
                Ok(StateKey::Checkpoint { source: of }) if of == source => {
                    remembered.checkpoint = Some(CheckpointRecord::read(value)?);
                }
                Ok(StateKey::Table { source: of, target }) if of == source => {
                    remembered.tables.insert(target, TableRecord::parse(value)?);
                }
                // Another source's, or what a later version writes beside.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(remembered)
    }

    /// Where each table of a source stands.
    pub async fn read_tables(&self, source: &str) -> Result<Vec<StoredTable>, String> {
        let tables = self.read(source).await?.tables;
        let stored = tables.iter().map(|(target, record)| {
            let target = target.parse().map_err(|_| "the state topic names a table that has no name".to_owned())?;
            record.stored(target)
        });
        stored.collect()
    }

    /// Sets a table's state; makes the record if there is none.
    pub async fn write_table(
        &self,
        source: &str,
        origin: &TableName,
        target: &TableName,
        state: TableState,
        reason: Option<&str>,
    ) -> Result<(), String> {
        let mut tables = self.read(source).await?.tables;
        let record = tables.remove(&name_text(target)).unwrap_or_else(|| TableRecord::new(origin, ""));
        let record = TableRecord { state, reason: reason.map(str::to_owned), ..record };
        self.write(source, "-state", &[(StateKey::table(source, target), record.to_bytes())]).await
    }

    /// Writes state by itself, in a transaction of its own.
    pub async fn write(&self, source: &str, what: &str, records: &[(Vec<u8>, Vec<u8>)]) -> Result<(), String> {
        let mut producer = self.producer(source, what).await.map_err(|failure| failure.to_string())?;
        let written = async {
            producer.begin().await?;
            for (key, value) in records {
                producer.send(&state_record(&self.state_topic, key, value)).await?;
            }
            producer.commit().await
        };
        written.await.map_err(|failure| failure.to_string())
    }

    /// Writes a source's first checkpoint, unless it has one.
    pub async fn create_checkpoint(&self, source: &str, at: Lsn, identity: &SourceIdentity) -> Result<(), String> {
        if self.read(source).await?.checkpoint.is_some() {
            return Ok(());
        }
        let checkpoint = Checkpoint { commit_lsn: at, end_lsn: at, ordinal: 0, commit_ts: None };
        let record = CheckpointRecord::new(&checkpoint, identity, 0).to_bytes();
        self.write(source, "", &[(StateKey::checkpoint(source), record)]).await
    }

    /// Takes a source over: who wrote for it before is fenced from here on. `None` if somebody wrote after `seen` was read.
    pub async fn take_over(&self, source: &str, seen: &StoredCheckpoint, timeline: u32) -> Result<Option<i64>, String> {
        let mut producer = self.producer(source, "").await.map_err(|failure| failure.to_string())?;
        if self.read(source).await?.checkpoint.as_ref() != Some(seen) {
            return Ok(None);
        }
        let epoch = seen.epoch + 1;
        let identity = SourceIdentity { timeline, ..seen.identity.clone() };
        let record = CheckpointRecord::new(&seen.checkpoint, &identity, epoch).to_bytes();
        let written = async {
            producer.begin().await?;
            producer.send(&state_record(&self.state_topic, &StateKey::checkpoint(source), &record)).await?;
            producer.commit().await
        };
        match written.await {
            Ok(()) => Ok(Some(epoch)),
            Err(KafkaFailure::Fenced) => Ok(None),
            Err(failure) => Err(failure.to_string()),
        }
    }
}
