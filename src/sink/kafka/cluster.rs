//! One cluster as a sink: where it is reached, what it remembers of each source, and who writes there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::address::KafkaAddress;
use super::failure::KafkaFailure;
use super::left_open::{Owners, end_left_open, end_left_open_state, places};
use super::producer::Producer;
use super::registry::Registry;
use super::state::{CheckpointRecord, StateKey, TableRecord};
use super::state_record;
use super::topics::{Rows, describe, ensure_topic, look_at_compacted, read_compacted, setting, topics};
use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity};
use crate::config::BesideRows;
use crate::lsn::Lsn;
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState, name_text};

/// `transaction.max.timeout.ms` of brokers, unless it is set.
const COPY_TIMEOUT_MS: &str = "900000";

/// librdkafka's default of `batch.size`.
const BATCH_BYTES: u64 = 1_000_000;

/// What the transactional ids of a source have behind its name: of its changes, its first copies, its tables' states.
const CHANGES: &str = "";
const COPIES: &str = "-copy";
const STATES: &str = "-state";

/// Where a sink's brokers are, and what its topics and transactional ids are called.
///
/// What is remembered of a source stands in a topic of its own, so that nobody writes there but by the ids of that source.
/// Whoever fences these knows that nothing there is undecided any more; an open transaction of another source would hide
/// what was committed behind it for as long as it is open.
pub struct Cluster {
    /// The `[sink.NAME]`.
    sink: String,
    address: KafkaAddress,
    state_topic: String,
    /// Batches are no longer than this. Unit: bytes.
    batch_bytes: AtomicU64,
    registry: Option<Registry>,
    beside: BesideRows,
}

/// What a sink remembers of one source.
#[derive(Default)]
pub struct Remembered {
    pub checkpoint: Option<StoredCheckpoint>,
    /// By target.
    pub tables: BTreeMap<String, TableRecord>,
}

/// What is remembered of a source, read when those who wrote changes of it before were fenced. It stays so: whoever writes
/// there next either is the producer, or has fenced it.
pub struct Held {
    pub producer: Producer,
    pub remembered: Arc<Remembered>,
}

/// What is remembered of a source, read when everybody who wrote for it before was fenced, with the producers that did it.
pub struct Fenced {
    pub changes: Producer,
    pub copies: Producer,
    pub remembered: Remembered,
}

/// What a sink shows of its memory at once.
pub struct Looked {
    pub remembered: Remembered,
    /// Nobody has a transaction open that may hide something later.
    pub is_settled: bool,
}

impl Remembered {
    fn read(rows: &Rows) -> Result<Remembered, String> {
        let mut remembered = Remembered::default();
        for (key, value) in rows {
            match serde_json::from_slice::<StateKey>(key) {
                Ok(StateKey::Checkpoint { .. }) => remembered.checkpoint = Some(CheckpointRecord::read(value)?),
                Ok(StateKey::Table { target, .. }) => {
                    remembered.tables.insert(target, TableRecord::parse(value)?);
                }
                // What a later version writes beside.
                Err(_) => {}
            }
        }
        Ok(remembered)
    }

    /// Where each table stands.
    pub fn stored_tables(&self) -> Result<Vec<StoredTable>, String> {
        let stored = self.tables.iter().map(|(target, record)| {
            let target = target.parse().map_err(|_| "the state topic names a table that has no name".to_owned())?;
            record.stored(target)
        });
        stored.collect()
    }
}

impl Cluster {
    pub fn new(sink: &str, address: KafkaAddress, state_topic: &str, registry: Option<Registry>) -> Cluster {
        let (beside, batch_bytes) = (BesideRows::default(), AtomicU64::new(u64::MAX));
        Cluster { sink: sink.to_owned(), address, state_topic: state_topic.to_owned(), batch_bytes, registry, beside }
    }

    /// What is sent beside rows.
    pub fn with_beside(self, beside: BesideRows) -> Cluster {
        Cluster { beside, ..self }
    }

    pub fn beside(&self) -> &BesideRows {
        &self.beside
    }

    /// Where schemas are registered, if any are.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    pub fn address(&self) -> &KafkaAddress {
        &self.address
    }

    /// The compacted topic of what is remembered of a source.
    pub fn state_topic(&self, source: &str) -> String {
        // Neither name has a `-`. A `.` or `_` here could make two names that Kafka takes for one.
        format!("{}-{}-{source}", self.state_topic, self.sink)
    }

    async fn connect(&self, address: &KafkaAddress, source: &str, what: &str) -> Result<Producer, KafkaFailure> {
        let id = format!("tailwater-{}-{source}{what}", self.sink);
        match self.batch_bytes.load(Ordering::Relaxed) {
            u64::MAX => Producer::connect(address, &id).await,
            bytes => Producer::connect(&address.clone().with_option("batch.size", &bytes.to_string()), &id).await,
        }
    }

    /// Producers that connect from now on make no longer batches; `false` if they are no longer as it is.
    pub(super) fn shorten_batches(&self, bytes: u64) -> bool {
        let known = self.batch_bytes.fetch_min(bytes, Ordering::Relaxed);
        known.min(self.address.number("batch.size").unwrap_or(BATCH_BYTES)) > bytes
    }

    /// The one producer for a source's changes: fences older ones.
    pub async fn producer(&self, source: &str) -> Result<Producer, KafkaFailure> {
        self.connect(&self.address, source, CHANGES).await
    }

    /// The one producer for a source's first copies. A table is one transaction, as long as brokers allow by default.
    pub async fn copy_producer(&self, source: &str) -> Result<Producer, KafkaFailure> {
        let address = self.address.clone().or_option("transaction.timeout.ms", COPY_TIMEOUT_MS);
        self.connect(&address, source, COPIES).await
    }

    /// Fences whoever wrote for a source before, ends what they left open, and reads what they have written.
    pub async fn fence(&self, source: &str) -> Result<Fenced, String> {
        let fenced = tokio::try_join!(
            self.producer(source),
            self.copy_producer(source),
            self.connect(&self.address, source, STATES)
        );
        let (mut changes, mut copies, mut states) = fenced.map_err(|failure| failure.to_string())?;
        let writers = vec![&mut changes, &mut copies, &mut states];
        let remembered = self.read_ended(source, writers).await?;
        Ok(Fenced { changes, copies, remembered })
    }

    /// Fences whoever wrote changes of a source before, and ends what they left open. First copies may be under way.
    pub async fn hold(&self, source: &str) -> Result<Held, String> {
        let mut producer = self.producer(source).await.map_err(|failure| failure.to_string())?;
        let remembered = self.read_ended(source, vec![&mut producer]).await?;
        self.end_left_open(source, &remembered, Owners { changes: &mut producer, copies: None }).await?;
        Ok(Held { producer, remembered: Arc::new(remembered) })
    }

    /// Makes a source's state topic if it is not there.
    pub async fn ensure_state(&self, source: &str) -> Result<(), String> {
        let (topic, settings) = (self.state_topic(source), [("cleanup.policy", "compact")]);
        let made = async {
            ensure_topic(&self.address, &topic, 1, None, &settings).await?;
            describe(&self.address, &topic).await
        };
        match made.await.map_err(|failure| failure.to_string())? {
            Some(1) | None => {}
            Some(partitions) => return Err(format!("state topic \"{topic}\" has {partitions} partitions, not one")),
        }
        // One that somebody made beforehand: what is deleted with time is where tables stand, and they would be copied again.
        match setting(&self.address, &topic, "cleanup.policy").await {
            Some(policy) if policy != "compact" => Err(format!(
                "state topic \"{topic}\" has cleanup.policy={policy}: set it to compact, or what it holds is lost"
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// How many partitions a topic has; `None` if there is no such topic.
    pub async fn partitions(&self, topic: &str) -> Result<Option<i32>, String> {
        describe(&self.address, topic).await.map_err(|failure| failure.to_string())
    }

    /// Every topic with how many partitions it has.
    pub async fn topics(&self) -> Result<BTreeMap<String, i32>, KafkaFailure> {
        topics(&self.address).await
    }

    /// Makes a topic with what the brokers have for its settings.
    pub async fn make_topic(&self, name: &str, partitions: i32) -> Result<(), String> {
        ensure_topic(&self.address, name, partitions, None, &[]).await.map_err(|failure| failure.to_string())
    }

    /// What is remembered of a source as it shows now: without waiting for anybody, and so perhaps not the last.
    pub async fn look(&self, source: &str) -> Result<Looked, String> {
        let shown = look_at_compacted(&self.address, &self.state_topic(source)).await;
        match shown.map_err(|failure| failure.to_string())? {
            Some(shown) => Ok(Looked { remembered: Remembered::read(&shown.rows)?, is_settled: shown.is_settled }),
            None => Ok(Looked { remembered: Remembered::default(), is_settled: true }),
        }
    }

    /// What is remembered of a source, behind every transaction that is open now. For whoever has fenced all others: what
    /// is open then is this daemon's own, and short.
    pub async fn read(&self, source: &str) -> Result<Remembered, String> {
        let rows = read_compacted(&self.address, &self.state_topic(source)).await;
        Remembered::read(&rows.map_err(|failure| failure.to_string())?)
    }

    /// What is remembered of a source, for these writers, who have fenced those of their ids. What brokers have left open of it
    /// is given up.
    async fn read_ended(&self, source: &str, writers: Vec<&mut Producer>) -> Result<Remembered, String> {
        let Looked { remembered, is_settled } = self.look(source).await?;
        if is_settled {
            // Nothing is hidden, so that is all.
            return Ok(remembered);
        }
        let ended = end_left_open_state(&self.address, &self.state_topic(source), &remembered, writers).await;
        ended.map_err(|failure| failure.to_string())?;
        self.read(source).await
    }

    /// Gives up what brokers have left open of a source that was not committed. Not heartbeats: one that comes late, or twice,
    /// says no more than that we are there.
    async fn end_left_open(&self, source: &str, remembered: &Remembered, owners: Owners<'_>) -> Result<(), String> {
        let mut places = places(remembered);
        if let Some(topic) = self.beside.transaction_topic(source) {
            let partitions = self.partitions(&topic).await?.unwrap_or_default();
            places.extend((0..partitions).map(|partition| (topic.clone(), partition)));
        }
        end_left_open(&self.address, &places, remembered, owners).await.map_err(|failure| failure.to_string())
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
        let failed = |failure: KafkaFailure| failure.to_string();
        let mut producer = self.connect(&self.address, source, STATES).await.map_err(failed)?;
        let mut tables = self.read(source).await?.tables;
        let record = tables.remove(&name_text(target)).unwrap_or_else(|| TableRecord::new(origin, ""));
        let record = TableRecord { state, reason: reason.map(str::to_owned), ..record };
        self.write(&mut producer, source, &StateKey::table(source, target), &record.to_bytes()).await.map_err(failed)
    }

    /// Notes that a table's messages are another table's of that name from now on.
    pub async fn write_oid(&self, source: &str, target: &TableName, oid: u32) -> Result<(), String> {
        let failed = |failure: KafkaFailure| failure.to_string();
        let mut producer = self.connect(&self.address, source, STATES).await.map_err(failed)?;
        let Some(record) = self.read(source).await?.tables.remove(&name_text(target)) else { return Ok(()) };
        let record = TableRecord { oid, ..record };
        self.write(&mut producer, source, &StateKey::table(source, target), &record.to_bytes()).await.map_err(failed)
    }

    /// Writes state by itself, in a transaction of its own.
    async fn write(
        &self,
        producer: &mut Producer,
        source: &str,
        key: &[u8],
        record: &[u8],
    ) -> Result<(), KafkaFailure> {
        producer.begin().await?;
        producer.send(&state_record(&self.state_topic(source), key, record)).await?;
        producer.commit().await
    }

    /// Writes a source's first checkpoint, unless it has one.
    pub async fn create_checkpoint(&self, source: &str, at: Lsn, identity: &SourceIdentity) -> Result<(), String> {
        let failed = |failure: KafkaFailure| failure.to_string();
        self.ensure_state(source).await?;
        let Fenced { changes: mut producer, remembered, .. } = self.fence(source).await?;
        if remembered.checkpoint.is_some() {
            return Ok(());
        }
        let checkpoint = Checkpoint { commit_lsn: at, end_lsn: at, ordinal: 0, commit_ts: None };
        let record = CheckpointRecord::new(&checkpoint, identity, 0).to_bytes();
        self.write(&mut producer, source, &StateKey::checkpoint(source), &record).await.map_err(failed)?;
        // Whoever looks now is shown it.
        self.read(source).await.map(drop)
    }

    /// Takes a source over: who wrote for it before is fenced from here on. Answers what is remembered then, under a new epoch;
    /// `None` if somebody wrote after `seen` was read.
    pub async fn take_over(
        &self,
        source: &str,
        seen: &StoredCheckpoint,
        timeline: u32,
    ) -> Result<Option<Held>, String> {
        let Fenced { changes: mut producer, mut copies, mut remembered } = self.fence(source).await?;
        if remembered.checkpoint.as_ref() != Some(seen) {
            return Ok(None);
        }
        let owners = Owners { changes: &mut producer, copies: Some(&mut copies) };
        self.end_left_open(source, &remembered, owners).await?;
        let epoch = seen.epoch + 1;
        let identity = SourceIdentity { timeline, ..seen.identity.clone() };
        let record = CheckpointRecord::new(&seen.checkpoint, &identity, epoch).to_bytes();
        match self.write(&mut producer, source, &StateKey::checkpoint(source), &record).await {
            Ok(()) => {
                remembered.checkpoint = Some(StoredCheckpoint { checkpoint: seen.checkpoint, identity, epoch });
                Ok(Some(Held { producer, remembered: Arc::new(remembered) }))
            }
            Err(KafkaFailure::Fenced) => Ok(None),
            Err(failure) => Err(failure.to_string()),
        }
    }
}
