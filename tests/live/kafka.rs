//! The broker of the tests does what Kafka promises, and the producer keeps those promises at it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use tailwater::checkpoint::SourceIdentity;
use tailwater::config::Secret;
use tailwater::lsn::Lsn;
use tailwater::sink::kafka::address::KafkaAddress;
use tailwater::sink::kafka::cluster::{Cluster, Remembered};
use tailwater::sink::kafka::failure::KafkaFailure;
use tailwater::sink::kafka::partition::partition_of;
use tailwater::sink::kafka::producer::{Producer, Record};
use tailwater::sink::kafka::topics;

use crate::support::kafka::Kafka;
use crate::support::kcat::{self, Isolation};
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};

const WITHIN: Duration = Duration::from_secs(60);

fn address(broker: &Kafka) -> KafkaAddress {
    address_with(broker, &[])
}

fn address_with(broker: &Kafka, options: &[(&str, &str)]) -> KafkaAddress {
    let options = options.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value)));
    KafkaAddress::new(&broker.bootstrap(), options.collect()).expect("no option is refused")
}

/// A record of text for partition 0.
fn record<'a>(topic: &'a str, key: &'a str, value: &'a str) -> Record<'a> {
    let (key, value) = (Some(key.as_bytes()), Some(value.as_bytes()));
    Record { topic, partition: 0, key, value, headers: &[], timestamp_ms: 1_700_000_000_000 }
}

async fn commit(producer: &mut Producer, records: &[Record<'_>]) -> Result<(), KafkaFailure> {
    producer.begin().await?;
    for record in records {
        producer.send(record).await?;
    }
    producer.commit().await
}

fn values(broker: &Kafka, topic: &str, isolation: Isolation) -> Result<Vec<String>> {
    let records = kcat::read(broker, topic, isolation)?;
    Ok(records.iter().filter_map(|record| record.text().1).collect())
}

/// Waits until the topic's values are these: brokers answer a commit before they mark its records.
async fn shown(broker: &Kafka, topic: &str, isolation: Isolation, expected: &[&str]) -> Result<()> {
    eventually(WITHIN, "the topic shows its records", async || {
        let found = values(broker, topic, isolation)?;
        Ok(if found == expected { Look::Yes(()) } else { Look::NotYet(format!("{found:?}")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_records_survive_kill_9_and_aborted_ones_are_not_shown() -> Result<()> {
    let began = Instant::now();
    let mut broker = Kafka::start("kafka-kill")?;
    println!("Kafka served after {:?}", began.elapsed());
    let address = address(&broker);
    topics::ensure_topic(&address, "orders", 3, None, &[]).await?;
    assert_eq!(kcat::partition_count(&broker, "orders")?, Some(3));
    assert_eq!(topics::partition_counts(&address, &["orders", "absent"]).await?, [Some(3), None]);
    assert_eq!(kcat::partition_count(&broker, "absent")?, None, "asking makes no topic");

    let mut producer = Producer::connect(&address, "tailwater-orders").await?;
    let headers: &[(&str, &[u8])] = &[("lsn", b"0/16B3748"), ("ordinal", b"1"), ("lsn", &[0xff, b','])];
    let full = Record { partition: 2, headers, ..record("orders", "k\u{1}", "first") };
    let bytes = Record { partition: 1, key: Some(&[0, 0xff, b'"']), value: Some(&[0x80]), ..full };
    let tombstone = Record { value: None, headers: &[], ..full };
    commit(&mut producer, &[full, bytes, tombstone]).await?;

    producer.begin().await?;
    producer.send(&record("orders", "gone", "aborted")).await?;
    shown(&broker, "orders", Isolation::ReadUncommitted, &["aborted", "\u{fffd}", "first"]).await?;
    producer.abort().await?;
    commit(&mut producer, &[record("orders", "last", "second")]).await?;

    broker.kill9_and_resume()?;
    let values = ["second", "\u{fffd}", "first"];
    shown(&broker, "orders", Isolation::ReadCommitted, &values).await?;
    let shown_records = kcat::read_committed(&broker, "orders")?;
    let found: Vec<_> = shown_records.iter().map(|record| (record.partition, record.text().1)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(found, [(0, text("second")), (1, text("\u{fffd}")), (2, text("first")), (2, None)]);
    assert_eq!(shown_records[1].key.as_deref(), Some(&[0, 0xff, b'"'][..]));
    assert_eq!(shown_records[1].value.as_deref(), Some(&[0x80][..]));
    let sent: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    assert_eq!(shown_records[2].headers, sent);
    assert_eq!(shown_records[2].timestamp_ms, 1_700_000_000_000);

    // The same producer goes on after the outage.
    commit(&mut producer, &[record("orders", "last", "third")]).await?;
    shown(&broker, "orders", Isolation::ReadCommitted, &["second", "third", "\u{fffd}", "first"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn second_producer_of_the_same_id_fences_the_first() -> Result<()> {
    let broker = Kafka::start("kafka-fence")?;
    let address = address(&broker);
    topics::ensure_topic(&address, "orders", 1, Some(1), &[]).await?;
    let mut first = Producer::connect(&address, "tailwater-orders").await?;
    commit(&mut first, &[record("orders", "a", "1")]).await?;
    first.begin().await?;
    first.send(&record("orders", "a", "of the first, open")).await?;

    let mut second = Producer::connect(&address, "tailwater-orders").await?;
    commit(&mut second, &[record("orders", "a", "2")]).await?;
    assert_eq!(first.commit().await, Err(KafkaFailure::Fenced));
    assert!(!first.is_usable());
    shown(&broker, "orders", Isolation::ReadCommitted, &["1", "2"]).await?;

    // Another id is another's.
    let mut other = Producer::connect(&address, "tailwater-other").await?;
    commit(&mut other, &[record("orders", "b", "3")]).await?;
    commit(&mut second, &[record("orders", "a", "4")]).await?;
    shown(&broker, "orders", Isolation::ReadCommitted, &["1", "2", "3", "4"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn compacted_topic_is_read_to_its_end_whatever_stands_there() -> Result<()> {
    let broker = Kafka::start("kafka-compacted")?;
    let address = address(&broker);
    topics::ensure_topic(&address, "state", 1, None, &[("cleanup.policy", "compact")]).await?;
    topics::ensure_topic(&address, "state", 1, None, &[]).await?;
    assert_eq!(topics::read_compacted(&address, "state").await?, BTreeMap::new());

    let mut ours = Producer::connect(&address, "ours").await?;
    commit(&mut ours, &[record("state", "a", "1"), record("state", "b", "1")]).await?;
    let tombstone = Record { value: None, ..record("state", "b", "") };
    commit(&mut ours, &[record("state", "a", "2"), tombstone]).await?;
    ours.begin().await?;
    ours.send(&record("state", "a", "never")).await?;
    shown(&broker, "state", Isolation::ReadUncommitted, &["1", "1", "2", "never"]).await?;
    ours.abort().await?;
    let rows = |rows: &[(&str, &str)]| -> BTreeMap<Vec<u8>, Vec<u8>> {
        rows.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
    };
    assert_eq!(topics::read_compacted(&address, "state").await?, rows(&[("a", "2")]));

    // What is committed behind an open transaction of another is not shown yet, and must not be missed.
    let mut other = Producer::connect(&address, "other").await?;
    other.begin().await?;
    other.send(&record("state", "o", "1")).await?;
    shown(&broker, "state", Isolation::ReadUncommitted, &["1", "1", "2", "never", "1"]).await?;
    commit(&mut ours, &[record("state", "a", "3")]).await?;
    let looked = topics::look_at_compacted(&address, "state").await?.expect("there is the topic");
    assert_eq!((looked.rows, looked.is_settled), (rows(&[("a", "2")]), false));
    let mut reading = Box::pin(topics::read_compacted(&address, "state"));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut reading).await;
    ensure!(early.is_err(), "it was read without its end: {early:?}");
    other.commit().await?;
    assert_eq!(reading.await?, rows(&[("a", "3"), ("o", "1")]));
    let looked = topics::look_at_compacted(&address, "state").await?.expect("there is the topic");
    assert_eq!((looked.rows, looked.is_settled), (rows(&[("a", "3"), ("o", "1")]), true));
    assert!(topics::look_at_compacted(&address, "absent").await?.is_none());
    Ok(())
}

/// An open transaction hides what is committed behind it. That of one source hides nothing of another's, and a dead one's is
/// ended by whoever takes its source over.
#[tokio::test(flavor = "multi_thread")]
async fn h94_open_transactions_hide_nothing_of_other_sources() -> Result<()> {
    let broker = Kafka::start("kafka-states")?;
    let cluster = Cluster::new("events", address(&broker), "tailwater.state", None);
    let (system_identifier, timeline, database) = (7, 1, "lms".to_owned());
    let identity = SourceIdentity { system_identifier, timeline, database, slot: "s".to_owned() };
    for source in ["a", "b"] {
        cluster.create_checkpoint(source, Lsn(8), &identity).await.map_err(Error::msg)?;
    }
    // A topic that somebody made beforehand and that forgets with time is not taken.
    for policy in ["delete", "compact,delete"] {
        let topic = cluster.state_topic(policy);
        broker.create_topic(&topic.replace(',', "-"), 1, &[("cleanup.policy", policy)]).await?;
        let refused = cluster.create_checkpoint(&policy.replace(',', "-"), Lsn(8), &identity).await;
        let why = refused.expect_err("it forgets");
        assert!(why.contains(&format!("cleanup.policy={policy}: set it to compact")), "{why}");
    }
    let look = async |source| cluster.look(source).await.map_err(Error::msg);
    let read = async |source| cluster.read(source).await.map_err(Error::msg);
    let mut dead = cluster.copy_producer("a").await?;
    dead.begin().await?;
    let topic = cluster.state_topic("a");
    dead.send(&record(&topic, "{}", "{}")).await?;
    shown_at_all(&broker, &topic, 2).await?;
    assert!(!look("a").await?.is_settled);

    let began = Instant::now();
    let at = |found: &Remembered| found.checkpoint.as_ref().map(|stored| (stored.checkpoint.end_lsn, stored.epoch));
    assert!(look("b").await?.is_settled);
    assert_eq!(at(&read("b").await?), Some((Lsn(8), 0)));
    let seen = look("a").await?.remembered.checkpoint.expect("it was committed before");
    let held = cluster.take_over("a", &seen, 1).await.map_err(Error::msg)?.expect("nobody wrote since");
    assert_eq!(at(&held.remembered), Some((Lsn(8), 1)));
    let (held, read) = (held.remembered.checkpoint.clone(), read("a").await?.checkpoint);
    assert_eq!(held, read, "what is handed on is what the topic has");
    assert!(began.elapsed() < Duration::from_secs(15), "it took {:?}", began.elapsed());
    assert_eq!(dead.commit().await, Err(KafkaFailure::Fenced));
    Ok(())
}

async fn shown_at_all(broker: &Kafka, topic: &str, count: usize) -> Result<()> {
    eventually(WITHIN, "the topic has its records", async || {
        let found = values(broker, topic, Isolation::ReadUncommitted)?.len();
        Ok(if found == count { Look::Yes(()) } else { Look::NotYet(format!("{found}")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn h92_java_puts_every_key_on_the_partition_that_we_do() -> Result<()> {
    let broker = Kafka::start("kafka-java")?;
    broker.create_topic("orders", 7, &[]).await?;
    let seed = Random::seed_from_environment();
    println!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let letters: Vec<char> = "abcdefghijklmnop0123456789-_{}\":,éß€𝄞".chars().collect();
    let mut key = || -> String {
        let length = random.number() % 40 + 1;
        (0..length).map(|_| letters[random.number() as usize % letters.len()]).collect()
    };
    let records: Vec<(String, String)> = (0..500).map(|number| (key(), number.to_string())).collect();
    broker.produce("orders", &records)?;
    let found = kcat::read_committed(&broker, "orders")?;
    assert_eq!(found.len(), records.len());
    for record in &found {
        let key = record.key.as_deref().expect("every record was given a key");
        assert_eq!(partition_of(key, 7), record.partition, "key {:?}", record.text().0);
    }
    assert!((0..7).all(|partition| found.iter().any(|record| record.partition == partition)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_outlives_a_kill_of_the_broker() -> Result<()> {
    let mut broker = Kafka::start("kafka-outlive")?;
    let address = address(&broker);
    topics::ensure_topic(&address, "orders", 1, None, &[]).await?;
    let mut producer = Producer::connect(&address, "tailwater-orders").await?;
    producer.begin().await?;
    producer.send(&record("orders", "a", "before")).await?;
    shown(&broker, "orders", Isolation::ReadUncommitted, &["before"]).await?;
    broker.kill9();
    producer.send(&record("orders", "a", "meanwhile")).await?;
    broker.resume()?;
    producer.send(&record("orders", "a", "after")).await?;
    producer.commit().await?;
    shown(&broker, "orders", Isolation::ReadCommitted, &["before", "meanwhile", "after"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_limits_of_the_brokers_get_their_verdicts() -> Result<()> {
    let broker = Kafka::start("kafka-limits")?;
    let quick = address_with(&broker, &[("transaction.timeout.ms", "1000")]);
    topics::ensure_topic(&quick, "orders", 1, None, &[]).await?;
    topics::ensure_topic(&quick, "small", 1, None, &[("max.message.bytes", "1000")]).await?;

    // A transaction that takes too long is ended by the brokers: then what came after it is shown.
    let mut slow = Producer::connect(&quick, "slow").await?;
    slow.begin().await?;
    slow.send(&record("orders", "a", "too late")).await?;
    shown(&broker, "orders", Isolation::ReadUncommitted, &["too late"]).await?;
    let mut other = Producer::connect(&address(&broker), "other").await?;
    commit(&mut other, &[record("orders", "b", "in time")]).await?;
    shown(&broker, "orders", Isolation::ReadCommitted, &["in time"]).await?;
    let outcome = slow.commit().await;
    let Err(KafkaFailure::Transient { message }) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(message, "the transaction took longer than transaction.timeout.ms, 1s");
    assert!(!slow.is_usable());
    let mut again = Producer::connect(&quick, "slow").await?;
    commit(&mut again, &[record("orders", "a", "again")]).await?;
    shown(&broker, "orders", Isolation::ReadCommitted, &["in time", "again"]).await?;

    // Larger than its topic takes, and nothing that compression makes small.
    let mut random = Random::new(1);
    let large: Vec<u8> = (0..5000).map(|_| random.number() as u8).collect();
    again.begin().await?;
    again.send(&Record { value: Some(&large), ..record("small", "a", "") }).await?;
    let outcome = again.commit().await;
    let Err(KafkaFailure::TooLarge(oversize)) = &outcome else { panic!("{outcome:?}") };
    assert_eq!((oversize.topic.as_str(), oversize.bytes), ("small", 5001));
    again.abort().await?;

    // What is not there stays away.
    let outcome = topics::read_compacted(&quick, "absent").await;
    assert!(matches!(&outcome, Err(KafkaFailure::Fatal { message }) if message.contains("absent")), "{outcome:?}");
    assert_eq!(kcat::partition_count(&broker, "absent")?, None);
    Ok(())
}
