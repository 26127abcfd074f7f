//! A consumer of its own, that reads committed messages only: for when a message is there, and for what a topic holds.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use serde_json::Value;

use crate::support::kafka::Kafka;

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// An event as Debezium's JSON has it.
#[derive(Deserialize)]
pub struct Event {
    pub op: char,
    pub after: Option<serde_json::Map<String, Value>>,
}

impl Event {
    pub fn parse(bytes: &[u8]) -> Result<Event> {
        serde_json::from_slice(bytes).context("an event is not what Debezium's JSON is")
    }

    pub fn number(&self, name: &str) -> Option<i64> {
        self.after.as_ref()?.get(name)?.as_i64()
    }
}

pub struct Reader {
    consumer: BaseConsumer,
    topic: String,
    partition_count: usize,
}

impl Reader {
    /// Of a whole topic.
    pub fn new(broker: &Kafka, topic: &str) -> Result<Reader> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", broker.bootstrap())
            .set("isolation.level", "read_committed")
            .set("group.id", "bench")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("check.crcs", "true")
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
        let found = found.with_context(|| format!("there is no topic {topic}"))?;
        let mut from = TopicPartitionList::new();
        for partition in found.partitions() {
            from.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        }
        consumer.assign(&from)?;
        Ok(Reader { consumer, topic: topic.to_owned(), partition_count: found.partitions().len() })
    }

    /// The next message; `None` if none came in time. Blocks.
    pub fn next(&self, patience: Duration) -> Result<Option<BorrowedMessage<'_>>> {
        let until = Instant::now() + patience;
        loop {
            match self.consumer.poll(until.saturating_duration_since(Instant::now())) {
                None => return Ok(None),
                Some(Ok(message)) => return Ok(Some(message)),
                Some(Err(KafkaError::PartitionEOF(_))) => {}
                Some(Err(error)) => return Err(error).with_context(|| format!("read {}", self.topic)),
            }
        }
    }

    /// Reads the topic, from the beginning to where every partition ends.
    fn all(&self, mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>) -> Result<()> {
        let mut at_end = vec![false; self.partition_count];
        while at_end.contains(&false) {
            match self.consumer.poll(ANSWER_WITHIN) {
                None => bail!("topic {} does not end", self.topic),
                Some(Ok(message)) => take(&message)?,
                Some(Err(KafkaError::PartitionEOF(partition))) => at_end[usize::try_from(partition)?] = true,
                Some(Err(error)) => return Err(error).with_context(|| format!("read {}", self.topic)),
            }
        }
        Ok(())
    }
}

/// Whether the last message of a key is all that counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fold {
    ByKey,
    /// Every message is a row.
    Not,
}

/// What a topic holds.
#[derive(Default, Debug)]
pub struct Content {
    /// Without those of a first copy.
    pub changes: u64,
    pub change_bytes: u64,
    /// Those of a first copy.
    pub copied: u64,
    pub copied_bytes: u64,
    rows: u64,
    sums: Vec<i64>,
}

impl Content {
    /// Reads a topic to its end; `sums` are columns, or `length(column)`.
    pub fn read(broker: &Kafka, topic: &str, sums: &[&str], fold: Fold) -> Result<Content> {
        let mut content = Content { sums: vec![0; sums.len()], ..Content::default() };
        let mut rows: HashMap<Vec<u8>, Vec<i64>> = HashMap::new();
        Reader::new(broker, topic)?.all(|message| {
            let key = message.key().context("a message has no key")?;
            let Some(value) = message.payload() else { return Ok(()) };
            let event = Event::parse(value)?;
            let bytes = (key.len() + value.len()) as u64;
            match event.op {
                'r' => (content.copied, content.copied_bytes) = (content.copied + 1, content.copied_bytes + bytes),
                _ => (content.changes, content.change_bytes) = (content.changes + 1, content.change_bytes + bytes),
            }
            let row = event.after.as_ref().map(|row| sums.iter().map(|sum| part(row, sum)).collect::<Result<Vec<_>>>());
            match (fold, row.transpose()?) {
                (Fold::ByKey, Some(row)) => drop(rows.insert(key.to_vec(), row)),
                (Fold::ByKey, None) => drop(rows.remove(key)),
                (Fold::Not, Some(row)) => content.add(&row),
                (Fold::Not, None) => bail!("a row of {topic} is deleted"),
            }
            Ok(())
        })?;
        rows.values().for_each(|row| content.add(row));
        Ok(content)
    }

    fn add(&mut self, row: &[i64]) {
        self.rows += 1;
        self.sums.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
    }

    /// Fails unless it is what the source says: the number of rows and the sums, separated by blanks.
    pub fn must_be(&self, table: &str, truth: &str) -> Result<()> {
        let held = self.sums.iter().fold(self.rows.to_string(), |held, sum| format!("{held} {sum}"));
        ensure!(held == truth, "{table}: the source holds {truth}, the topic {held}");
        Ok(())
    }
}

fn part(row: &serde_json::Map<String, Value>, sum: &str) -> Result<i64> {
    let length_of = sum.strip_prefix("length(").and_then(|rest| rest.strip_suffix(')'));
    let part = match length_of {
        Some(column) => {
            row.get(column).and_then(Value::as_str).and_then(|text| i64::try_from(text.chars().count()).ok())
        }
        None => row.get(sum).and_then(Value::as_i64),
    };
    part.with_context(|| format!("an event has no {sum}"))
}
