//! The broker of the tests does what Kafka promises, and the producer keeps those promises at it.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use tailwater::sink::kafka::address::KafkaAddress;
use tailwater::sink::kafka::failure::KafkaFailure;
use tailwater::sink::kafka::producer::{Producer, Record};
use tailwater::sink::kafka::topics;

use crate::support::kafka::Kafka;
use crate::support::kcat::{self, Isolation};

fn address(broker: &Kafka) -> KafkaAddress {
    KafkaAddress::new(&broker.bootstrap(), BTreeMap::new()).expect("no option is refused")
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
    producer.abort().await?;
    commit(&mut producer, &[record("orders", "last", "second")]).await?;

    broker.kill9_and_resume()?;
    let shown = kcat::read_committed(&broker, "orders")?;
    let found: Vec<_> = shown.iter().map(|record| (record.partition, record.text().1)).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(found, [(0, text("second")), (1, text("\u{fffd}")), (2, text("first")), (2, None)]);
    assert_eq!(shown[1].key.as_deref(), Some(&[0, 0xff, b'"'][..]));
    assert_eq!(shown[1].value.as_deref(), Some(&[0x80][..]));
    let sent: Vec<_> = headers.iter().map(|(name, value)| ((*name).to_owned(), value.to_vec())).collect();
    assert_eq!(shown[2].headers, sent);
    assert_eq!(shown[2].timestamp_ms, 1_700_000_000_000);

    // The same producer goes on after the outage.
    commit(&mut producer, &[record("orders", "last", "third")]).await?;
    assert_eq!(values(&broker, "orders", Isolation::ReadCommitted)?, ["second", "third", "\u{fffd}", "first"]);
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
    assert_eq!(values(&broker, "orders", Isolation::ReadCommitted)?, ["1", "2"]);

    // Another id is another's.
    let mut other = Producer::connect(&address, "tailwater-other").await?;
    commit(&mut other, &[record("orders", "b", "3")]).await?;
    commit(&mut second, &[record("orders", "a", "4")]).await?;
    assert_eq!(values(&broker, "orders", Isolation::ReadCommitted)?, ["1", "2", "3", "4"]);
    Ok(())
}
