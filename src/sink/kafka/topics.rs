//! What is asked of topics before anything is sent: that they are there, with how many partitions, and what a compacted
//! one holds.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::address::KafkaAddress;
use super::client::{Reports, SLICE};
use super::failure::{Flags, KafkaFailure};

/// How long a question about topics may take, brokers that are just starting included.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How long a topic may be held up by transactions of others. Beyond what the brokers leave one open by default.
const SETTLED_WITHIN: Duration = Duration::from_secs(75);

/// How often it is looked whether it still is.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Makes a topic unless there is one of that name, whatever that looks like: see [`partition_counts`].
///
/// `replication`: how many brokers keep a copy; `None` leaves it to them.
pub async fn ensure_topic(
    address: &KafkaAddress,
    topic: &str,
    partition_count: i32,
    replication: Option<i32>,
    settings: &[(&str, &str)],
) -> Result<(), KafkaFailure> {
    // Also tells at once whoever is not let in: librdkafka's admin client never says why nobody answers it.
    if describe(address, topic).await?.is_some() {
        return Ok(());
    }
    let (config, topic) = (address.admin(), topic.to_owned());
    let settings: Vec<(String, String)> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    blocking("create a topic", move |runtime, _| {
        let what = "create a topic";
        let made = config.create_with_context::<Reports, AdminClient<Reports>>(Reports::default());
        let admin = made.map_err(|err| KafkaFailure::of(what, &topic, &err))?;
        // -1: as many as the brokers say.
        let copies = TopicReplication::Fixed(replication.unwrap_or(-1));
        let new = NewTopic::new(&topic, partition_count, copies);
        let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let within = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN));
        let outcomes = runtime.block_on(admin.create_topics([&new], &within));
        let outcomes = outcomes.map_err(|err| admin.inner().context().explain(KafkaFailure::of(what, &topic, &err)))?;
        for outcome in outcomes {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(KafkaFailure::of_code(what, &topic, code, Flags::default())),
            }
        }
        Ok(())
    })
    .await
}

/// How many partitions each topic has, in their order; `None`: there is no such topic. Makes none.
pub async fn partition_counts(address: &KafkaAddress, topics: &[&str]) -> Result<Vec<Option<i32>>, KafkaFailure> {
    let (address, topics) = (address.clone(), topics.iter().map(|topic| (*topic).to_owned()).collect::<Vec<_>>());
    blocking("look up a topic", move |_, _| {
        let reader = reader(&address, "read_committed")?;
        topics.iter().map(|topic| partition_count(&reader, topic)).collect()
    })
    .await
}

/// Every topic with how many partitions it has.
pub async fn topics(address: &KafkaAddress) -> Result<BTreeMap<String, i32>, KafkaFailure> {
    let address = address.clone();
    blocking("list topics", move |_, _| {
        let reader = reader(&address, "read_committed")?;
        let metadata = patiently(&reader, "list topics", "", || reader.client().fetch_metadata(None, SLICE))?;
        // Whoever would write there could name no partition.
        let there = metadata.topics().iter().filter(|topic| !topic.partitions().is_empty());
        let counted = there.map(|topic| {
            let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
            (topic.name().to_owned(), partitions)
        });
        Ok(counted.collect())
    })
    .await
}

/// The same of one topic.
pub async fn describe(address: &KafkaAddress, topic: &str) -> Result<Option<i32>, KafkaFailure> {
    Ok(partition_counts(address, &[topic]).await?.into_iter().next().flatten())
}

/// How long a topic's batches may be, with all that stands around their messages; `None` where the brokers do not tell.
pub(super) async fn message_bytes_max(address: &KafkaAddress, topic: &str) -> Option<u64> {
    setting(address, topic, "max.message.bytes").await?.parse().ok()
}

/// What a topic is set to, by the brokers' name of it; `None` where they do not tell.
pub(super) async fn setting(address: &KafkaAddress, topic: &str, name: &'static str) -> Option<String> {
    let (config, topic) = (address.admin(), topic.to_owned());
    let asked = blocking("look up a topic", move |runtime, _| {
        let what = "look up a topic";
        let made = config.create_with_context::<Reports, AdminClient<Reports>>(Reports::default());
        let admin = made.map_err(|err| KafkaFailure::of(what, &topic, &err))?;
        let within = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
        let described = runtime.block_on(admin.describe_configs([&ResourceSpecifier::Topic(&topic)], &within));
        let described = described.map_err(|err| KafkaFailure::of(what, &topic, &err))?;
        let found = described.into_iter().flatten().next();
        Ok(found.and_then(|found| found.get(name)?.value.clone()))
    });
    asked.await.ok().flatten()
}

/// What a topic of one partition holds, key by key: the last value of each, tombstones left out.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// What a topic shows of itself at once.
pub struct Shown {
    pub rows: Rows,
    /// No transaction was open on it: nothing that was committed before stands behind one and is not shown for that.
    pub is_settled: bool,
}

/// What a topic of one partition holds.
///
/// Waits for every transaction that had written to the topic when this was called, so that nothing committed before is
/// missed behind one that was still open. Who writes to it by one `transactional.id` connects a producer of it first.
pub async fn read_compacted(address: &KafkaAddress, topic: &str) -> Result<Rows, KafkaFailure> {
    let (address, topic) = (address.clone(), topic.to_owned());
    blocking("read a topic", move |_, given_up| {
        let committed = reader(&address, "read_committed")?;
        let until = Instant::now() + SETTLED_WITHIN;
        let end = end_of(&*reader(&address, "read_uncommitted")?, &topic)?;
        while end_of(&committed, &topic)? < end {
            if Instant::now() >= until || given_up.load(Ordering::Relaxed) {
                let message = format!("topic \"{topic}\" is held up by a transaction that is still open");
                return Err(KafkaFailure::Transient { message });
            }
            std::thread::sleep(LOOK_EVERY);
        }
        read_to_end(&committed, &topic, given_up)
    })
    .await
}

/// What a topic shows of itself, without waiting for anybody; `None`: there is no such topic.
///
/// # Errors
/// The brokers do not answer, or the topic has more partitions than one.
pub async fn look_at_compacted(address: &KafkaAddress, topic: &str) -> Result<Option<Shown>, KafkaFailure> {
    let (address, topic) = (address.clone(), topic.to_owned());
    blocking("look at a topic", move |_, given_up| {
        let committed = reader(&address, "read_committed")?;
        match partition_count(&committed, &topic)? {
            None => return Ok(None),
            Some(1) => {}
            Some(partitions) => {
                let message = format!("topic \"{topic}\" has {partitions} partitions, not one");
                return Err(KafkaFailure::Fatal { message });
            }
        }
        // First: what is committed while this looks makes nothing unsettled.
        let end = end_of(&*reader(&address, "read_uncommitted")?, &topic)?;
        let is_settled = end_of(&committed, &topic)? >= end;
        Ok(Some(Shown { rows: read_to_end(&committed, &topic, given_up)?, is_settled }))
    })
    .await
}

/// Runs what blocks where it may; told to give up when nobody waits any more.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce(&Handle, &AtomicBool) -> Result<T, KafkaFailure> + Send + 'static,
) -> Result<T, KafkaFailure> {
    struct GiveUp(Arc<AtomicBool>);
    impl Drop for GiveUp {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let given_up = Arc::new(AtomicBool::new(false));
    let _at_the_end = GiveUp(Arc::clone(&given_up));
    let runtime = Handle::current();
    let done = spawn_blocking(move || work(&runtime, &given_up)).await;
    done.unwrap_or_else(|_| Err(KafkaFailure::Transient { message: format!("{what}: the call was given up") }))
}

/// A client that reads. Its end takes a tenth of a second, for which nobody waits.
pub(super) struct Reading(Option<BaseConsumer<Reports>>);

impl Deref for Reading {
    type Target = BaseConsumer<Reports>;

    fn deref(&self) -> &BaseConsumer<Reports> {
        self.0.as_ref().expect("only one that is dropped has no client")
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let client = self.0.take();
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || drop(client))),
            Err(_) => drop(client),
        }
    }
}

pub(super) fn reader(address: &KafkaAddress, isolation_level: &str) -> Result<Reading, KafkaFailure> {
    let made = address.reader(isolation_level).create_with_context(Reports::default());
    made.map(|client| Reading(Some(client))).map_err(|err| KafkaFailure::of("connect", "", &err))
}

fn partition_count(reader: &BaseConsumer<Reports>, topic: &str) -> Result<Option<i32>, KafkaFailure> {
    let what = "look up a topic";
    let metadata = patiently(reader, what, topic, || reader.client().fetch_metadata(Some(topic), SLICE))?;
    let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else { return Ok(None) };
    match found.error().map(RDKafkaErrorCode::from) {
        None | Some(RDKafkaErrorCode::LeaderNotAvailable) if !found.partitions().is_empty() => {
            Ok(i32::try_from(found.partitions().len()).ok())
        }
        None => Err(KafkaFailure::of_code(what, topic, RDKafkaErrorCode::LeaderNotAvailable, Flags::default())),
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => Ok(None),
        Some(code) => Err(KafkaFailure::of_code(what, topic, code, Flags::default())),
    }
}

/// Asks again while brokers are not reached, up to a limit.
pub(super) fn patiently<T>(
    reader: &BaseConsumer<Reports>,
    what: &str,
    topic: &str,
    mut ask: impl FnMut() -> Result<T, KafkaError>,
) -> Result<T, KafkaFailure> {
    let until = Instant::now() + ANSWER_WITHIN;
    loop {
        let error = match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        // Takes the reports of what goes wrong meanwhile, and is the pause before the next try.
        drop(reader.poll(LOOK_EVERY));
        let failure = reader.context().explain(KafkaFailure::of(what, topic, &error));
        if !matches!(failure, KafkaFailure::Transient { .. }) || Instant::now() >= until {
            return Err(failure);
        }
    }
}

/// Where a topic ends. To a reader of what is committed that is the last stable offset, to another the high watermark.
fn end_of(reader: &BaseConsumer<Reports>, topic: &str) -> Result<i64, KafkaFailure> {
    let asked = patiently(reader, "look for the end", topic, || reader.fetch_watermarks(topic, 0, SLICE));
    asked.map(|(_, end)| end)
}

fn read_to_end(reader: &BaseConsumer<Reports>, topic: &str, given_up: &AtomicBool) -> Result<Rows, KafkaFailure> {
    let what = "read";
    let failed = |error: &KafkaError| reader.context().explain(KafkaFailure::of(what, topic, error));
    let mut from = TopicPartitionList::new();
    from.add_partition_offset(topic, 0, Offset::Beginning).map_err(|err| failed(&err))?;
    reader.assign(&from).map_err(|err| failed(&err))?;
    let mut rows = Rows::new();
    let mut until = Instant::now() + ANSWER_WITHIN;
    loop {
        let record = match reader.poll(LOOK_EVERY) {
            Some(Ok(record)) => record,
            // Nothing that can be shown is left; records of aborted transactions and their marks were passed over.
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(rows),
            // librdkafka has no reader without a group, and looks for its coordinator; no right to one is needed.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::GroupAuthorizationFailed))) => continue,
            Some(Err(error)) => match failed(&error) {
                KafkaFailure::Transient { .. } if Instant::now() < until => continue,
                failure => return Err(failure),
            },
            None if Instant::now() < until && !given_up.load(Ordering::Relaxed) => continue,
            None => return Err(failed(&KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut))),
        };
        until = Instant::now() + ANSWER_WITHIN;
        let Some(key) = record.key() else { continue };
        match record.payload() {
            Some(value) => drop(rows.insert(key.to_vec(), value.to_vec())),
            None => drop(rows.remove(key)),
        }
    }
}
