//! A consumer of the demo's topics: it reads committed messages only, shows the newest ones, and folds each topic by key
//! into the rows that it tells of, to be compared with the source at the end.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Map, Value};
use tokio::sync::watch;

use super::kafka::Kafka;
use crate::lsn::Lsn;
use crate::sink::kafka::encode::{LSN_HEADER, ORDINAL_HEADER};
use crate::sink::kafka::state::{CheckpointRecord, StateKey, TableRecord};
use crate::value::debezium::PLACEHOLDER;

/// Where the daemon keeps the checkpoint of the one source.
pub const STATE_TOPIC: &str = "tailwater.state-events-lms";

/// How soon the thread sees that it is to end.
const POLL: Duration = Duration::from_millis(100);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Newest messages that are shown.
const SHOWN: usize = 4;

/// What messages a second are counted over.
const RATE_OVER: Duration = Duration::from_secs(2);

/// Reads in a thread of its own. Dropped, that ends.
pub struct Reader {
    seen: Arc<Mutex<Seen>>,
    /// The last checkpoint that was read.
    pub checkpoint: watch::Receiver<Lsn>,
    stop: Arc<AtomicBool>,
}

/// What was read so far.
#[derive(Default)]
pub struct Seen {
    /// Those of the tables' topics.
    pub messages: u64,
    /// Those of them that tell a row of a first copy.
    pub copies: u64,
    newest: VecDeque<String>,
    /// By topic.
    pub folds: BTreeMap<String, Fold>,
    /// Rows of each table's first copy by topic, as the state topic says.
    tables: BTreeMap<String, u64>,
    failure: Option<String>,
    /// What librdkafka said since the last message and gets over by itself, as it says, and since when.
    trouble: Option<(Instant, String)>,
    /// How many messages there were when, over the last seconds.
    samples: VecDeque<(Instant, u64)>,
}

impl Reader {
    /// Begins to read every topic whose name begins with `prefix`, from its beginning, and what the daemon remembers.
    pub fn start(kafka: &Kafka, prefix: &str) -> Result<Reader> {
        let mut config = kafka.client();
        config
            .set("isolation.level", "read_committed")
            // Groups are not used, but librdkafka wants one to be named.
            .set("group.id", "tailwater-demo")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "20");
        let consumer: BaseConsumer = config.create().context("make a consumer")?;
        let topics = assign(&consumer, prefix)?;
        let seen =
            Seen { folds: topics.into_iter().map(|topic| (topic, Fold::default())).collect(), ..Seen::default() };
        let (seen, stop) = (Arc::new(Mutex::new(seen)), Arc::new(AtomicBool::new(false)));
        let (tell, checkpoint) = watch::channel(Lsn::ZERO);
        let reader = Reader { seen: seen.clone(), checkpoint, stop: stop.clone() };
        let read = move || {
            while !stop.load(Ordering::Relaxed) {
                let outcome = match consumer.poll(POLL) {
                    None => Ok(()),
                    Some(Ok(message)) if message.topic() == STATE_TOPIC => {
                        let at = lock(&seen).take_state(&message);
                        at.map(|at| tell.send_modify(|last| *last = at.unwrap_or(*last)))
                    }
                    Some(Ok(message)) => lock(&seen).take(&message),
                    Some(Err(KafkaError::MessageConsumption(code))) => {
                        lock(&seen).trouble.get_or_insert_with(|| (Instant::now(), code.to_string()));
                        Ok(())
                    }
                    Some(Err(error)) => Err(anyhow!(error).context("read Kafka")),
                };
                if let Err(error) = outcome {
                    lock(&seen).failure = Some(format!("{error:#}"));
                    break;
                }
            }
        };
        std::thread::Builder::new().name("events".to_owned()).spawn(read).context("start a thread")?;
        Ok(reader)
    }

    /// # Errors
    /// It ended, as it only does when it fails, or it was in trouble too long.
    pub fn seen(&self) -> Result<MutexGuard<'_, Seen>> {
        let seen = lock(&self.seen);
        match (&seen.failure, &seen.trouble) {
            (Some(failure), _) => bail!("{failure}"),
            (None, Some((since, trouble))) if since.elapsed() > ANSWER_WITHIN => bail!("read Kafka: {trouble}"),
            (None, _) => Ok(seen),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The topics' names.
fn assign(consumer: &BaseConsumer, prefix: &str) -> Result<Vec<String>> {
    let metadata = consumer.fetch_metadata(None, ANSWER_WITHIN).context("list Kafka's topics")?;
    let (mut from, mut topics) = (TopicPartitionList::new(), Vec::new());
    for topic in
        metadata.topics().iter().filter(|topic| topic.name().starts_with(prefix) || topic.name() == STATE_TOPIC)
    {
        for partition in topic.partitions() {
            from.add_partition_offset(topic.name(), partition.id(), Offset::Beginning)?;
        }
        if topic.name() != STATE_TOPIC {
            topics.push(topic.name().to_owned());
        }
    }
    consumer.assign(&from).context("read Kafka's topics")?;
    Ok(topics)
}

impl Seen {
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<()> {
        let topic = message.topic();
        let key = message.key().with_context(|| format!("a message of {topic} has no key"))?;
        let fold = self.folds.get_mut(topic).with_context(|| format!("topic {topic} was not there before"))?;
        let at = position(message).with_context(|| format!("a message of {topic} does not say where it stands"))?;
        let op = fold.take(key, at, message.payload()).with_context(|| format!("a message of {topic}"))?;
        self.messages += 1;
        self.copies += u64::from(op == 'r');
        self.trouble = None;
        if self.newest.len() == SHOWN {
            self.newest.pop_front();
        }
        self.newest.push_back(format!("{op}  {topic}  {}  {}", String::from_utf8_lossy(key), at.0));
        Ok(())
    }

    /// Takes a record of the state topic; where the checkpoint is, if it says that. There is one source.
    fn take_state(&mut self, message: &BorrowedMessage<'_>) -> Result<Option<Lsn>> {
        let (Some(key), Some(value)) = (message.key(), message.payload()) else { return Ok(None) };
        match serde_json::from_slice(key) {
            Ok(StateKey::Checkpoint { .. }) => {
                let stored = CheckpointRecord::read(value).map_err(|error| anyhow!("{error}"))?;
                Ok(Some(stored.checkpoint.end_lsn))
            }
            Ok(StateKey::Table { .. }) => {
                let record = TableRecord::parse(value).map_err(|error| anyhow!("{error}"))?;
                self.tables.insert(record.topic, record.rows);
                Ok(None)
            }
            Err(_) => Ok(None),
        }
    }

    /// Whether all that the first copies brought was read. Each table's is noted in the transaction that ends it.
    pub fn has_read_copies(&self) -> bool {
        self.tables.len() == self.folds.len() && self.copies >= self.tables.values().sum()
    }

    /// Messages a second, over the last ones; asked at each frame.
    pub fn rate(&mut self) -> f64 {
        let now = Instant::now();
        self.samples.push_back((now, self.messages));
        while self.samples.len() > 2 && self.samples.get(1).is_some_and(|(then, _)| now - *then >= RATE_OVER) {
            self.samples.pop_front();
        }
        match self.samples.front() {
            Some((then, messages)) if now > *then => (self.messages - messages) as f64 / (now - *then).as_secs_f64(),
            _ => 0.0,
        }
    }

    /// How many rows the first copy of each table brought: topic, rows.
    pub fn copied(&self) -> impl Iterator<Item = (&str, u64)> {
        self.tables.iter().map(|(topic, rows)| (topic.as_str(), *rows))
    }

    /// The newest messages, the last one first: what happened, in which topic, to which key, at which commit.
    pub fn newest(&self) -> impl Iterator<Item = &str> {
        self.newest.iter().rev().map(String::as_str)
    }
}

fn position(message: &BorrowedMessage<'_>) -> Option<(Lsn, u64)> {
    let headers = message.headers()?;
    let text = |name: &str| {
        let header = headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(header.value?).ok()
    };
    Some((text(LSN_HEADER)?.parse().ok()?, text(ORDINAL_HEADER)?.parse().ok()?))
}

/// One topic, folded by key.
#[derive(Default)]
pub struct Fold {
    keys: HashMap<Vec<u8>, Told>,
    pub messages: u64,
    /// Messages that came a second time, or before an earlier one of their key.
    pub repeats: u64,
}

/// What the last message of a key said.
struct Told {
    at: (Lsn, u64),
    /// None once it is deleted.
    row: Option<RowHash>,
}

/// A row's columns in the order of their names, each as a hash of its JSON.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowHash(Vec<u64>);

impl RowHash {
    pub fn new(row: &Map<String, Value>) -> RowHash {
        RowHash(row.iter().map(|(name, value)| hash(name, value)).collect())
    }

    /// Of an image that leaves out large values which did not change: those are as they were.
    fn over(row: &Map<String, Value>, earlier: Option<&RowHash>) -> Option<RowHash> {
        let columns = row.iter().enumerate().map(|(index, (name, value))| match value {
            Value::String(text) if text == PLACEHOLDER => earlier.and_then(|row| row.0.get(index).copied()),
            value => Some(hash(name, value)),
        });
        columns.collect::<Option<Vec<u64>>>().map(RowHash)
    }
}

fn hash(name: &str, value: &Value) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, value.to_string()).hash(&mut hasher);
    hasher.finish()
}

impl Fold {
    /// Takes a message; what it says happened.
    fn take(&mut self, key: &[u8], at: (Lsn, u64), value: Option<&[u8]>) -> Result<char> {
        self.messages += 1;
        let earlier = self.keys.get(key);
        let Some(value) = value else {
            // A tombstone stands at the position of the delete before it.
            let is_behind_delete = earlier.is_some_and(|told| told.at == at && told.row.is_none());
            self.repeats += u64::from(!is_behind_delete);
            return Ok('-');
        };
        self.repeats += u64::from(earlier.is_some_and(|told| told.at >= at));
        let value: Value = serde_json::from_slice(value).context("it is no JSON")?;
        let op =
            value.get("op").and_then(Value::as_str).and_then(|op| op.chars().next()).context("it has no \"op\"")?;
        let row = match value.get("after") {
            Some(Value::Object(row)) => {
                let earlier = earlier.and_then(|told| told.row.as_ref());
                Some(RowHash::over(row, earlier).context("it leaves out a value that was never told")?)
            }
            _ if op == 'd' => None,
            _ => bail!("it has no \"after\""),
        };
        self.keys.insert(key.to_vec(), Told { at, row });
        Ok(op)
    }

    pub fn row_count(&self) -> usize {
        self.keys.values().filter(|told| told.row.is_some()).count()
    }

    /// What the messages tell of the row with this key.
    pub fn row(&self, key: &[u8]) -> Option<&RowHash> {
        self.keys.get(key)?.row.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(fold: &mut Fold, at: u64, value: Option<&str>) -> Result<char> {
        fold.take(b"{\"id\":1}", (Lsn(at), 0), value.map(str::as_bytes))
    }

    fn row(text: &str) -> RowHash {
        RowHash::new(serde_json::from_str::<Value>(text).expect("it is JSON").as_object().expect("an object"))
    }

    #[test]
    fn the_last_message_of_a_key_is_its_row_with_large_values_as_they_were() {
        let (mut fold, key) = (Fold::default(), b"{\"id\":1}");
        let told = take(&mut fold, 1, Some(r#"{"op":"r","after":{"id":1,"a":"large","b":2}}"#));
        assert_eq!(told.expect("it is a message"), 'r');
        let update = format!(r#"{{"op":"u","after":{{"id":1,"a":"{PLACEHOLDER}","b":3}}}}"#);
        assert_eq!(take(&mut fold, 2, Some(&update)).expect("it is a message"), 'u');
        assert_eq!(fold.row(key), Some(&row(r#"{"id":1,"a":"large","b":3}"#)));
        take(&mut fold, 3, Some(r#"{"op":"d","after":null}"#)).expect("it is a message");
        take(&mut fold, 3, None).expect("it is a tombstone");
        assert_eq!((fold.row(key), fold.row_count(), fold.messages, fold.repeats), (None, 0, 4, 0));
        take(&mut fold, 4, Some(&update)).expect_err("what was left out is not known any more");
    }

    #[test]
    fn a_message_that_comes_again_or_too_late_is_counted() {
        let mut fold = Fold::default();
        let create = Some(r#"{"op":"c","after":{"id":1}}"#);
        for at in [5, 5, 4] {
            take(&mut fold, at, create).expect("it is a message");
        }
        take(&mut fold, 9, None).expect("a tombstone without a delete is one too many");
        assert_eq!(fold.repeats, 3);
    }
}
