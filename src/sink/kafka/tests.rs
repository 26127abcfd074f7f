//! The verdict of each failure, on librdkafka's mock of a cluster: brokers in this process that fail on demand. What a
//! mock does not do (fence, hide what was aborted, time transactions out) is tested on a real broker, in `tests/live`.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr as Code};

use super::address::KafkaAddress;
use super::failure::KafkaFailure;
use super::oversize::{Limit, Oversize};
use super::producer::{Producer, Record};
use super::topics::{describe, topics};
use crate::config::Secret;

const TOPIC: &str = "orders";

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster(broker_count: i32) -> Cluster {
    let cluster = MockCluster::new(broker_count).expect("a mock needs no more than ports");
    cluster.create_topic(TOPIC, 2, broker_count).expect("a mock makes topics");
    cluster
}

fn address(cluster: &Cluster, options: &[(&str, &str)]) -> KafkaAddress {
    let quick = [("retry.backoff.ms", "10"), ("reconnect.backoff.max.ms", "100")];
    let options = quick.iter().chain(options).map(|(name, value)| ((*name).to_owned(), Secret::new(*value)));
    KafkaAddress::new(&cluster.bootstrap_servers(), options.collect::<BTreeMap<_, _>>()).expect("no option is refused")
}

async fn connect(cluster: &Cluster, options: &[(&str, &str)]) -> Producer {
    Producer::connect(&address(cluster, options), "tailwater-orders").await.expect("the mock lets everybody in")
}

fn record(partition: i32, value: &[u8]) -> Record<'_> {
    Record { topic: TOPIC, partition, key: Some(b"key"), value: Some(value), headers: &[], timestamp_ms: 1 }
}

async fn transaction(producer: &mut Producer) -> Result<(), KafkaFailure> {
    producer.begin().await?;
    producer.send(&record(0, b"a")).await?;
    producer.send(&record(1, b"b")).await?;
    producer.commit().await
}

/// What one transaction comes to after a request was answered by these errors.
async fn after(request: RDKafkaApiKey, errors: &[Code]) -> (Producer, Cluster, Result<(), KafkaFailure>) {
    let cluster = cluster(1);
    let mut producer = connect(&cluster, &[]).await;
    cluster.request_errors(request, errors);
    let outcome = transaction(&mut producer).await;
    (producer, cluster, outcome)
}

fn is_transient(outcome: &Result<(), KafkaFailure>) -> bool {
    matches!(outcome, Err(KafkaFailure::Transient { .. }))
}

#[tokio::test]
async fn what_can_be_tried_again_is_not_seen() {
    let cases = [
        (RDKafkaApiKey::Produce, Code::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION),
        (RDKafkaApiKey::Produce, Code::RD_KAFKA_RESP_ERR__TRANSPORT),
        (RDKafkaApiKey::Produce, Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS),
        (RDKafkaApiKey::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_CONCURRENT_TRANSACTIONS),
        (RDKafkaApiKey::EndTxn, Code::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS),
        (RDKafkaApiKey::EndTxn, Code::RD_KAFKA_RESP_ERR_NOT_COORDINATOR),
        (RDKafkaApiKey::EndTxn, Code::RD_KAFKA_RESP_ERR__TRANSPORT),
    ];
    for (request, code) in cases {
        let (producer, _cluster, outcome) = after(request, &[code, code]).await;
        assert_eq!(outcome, Ok(()), "{request:?} {code:?}");
        assert!(producer.is_usable());
    }
}

/// The topic alone.
fn without_sizes(failure: KafkaFailure) -> KafkaFailure {
    match failure {
        KafkaFailure::TooLarge(oversize) => KafkaFailure::TooLarge(Oversize::of_topic(&oversize.topic)),
        other => other,
    }
}

#[tokio::test]
async fn a_record_that_brokers_refuse_ends_the_session() {
    let cases = [
        (Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, KafkaFailure::TooLarge(Oversize::of_topic(TOPIC))),
        (Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, denied("send a record of topic \"orders\"")),
    ];
    for (code, expected) in cases {
        let (mut producer, cluster, outcome) = after(RDKafkaApiKey::Produce, &[code]).await;
        assert_eq!(outcome.map_err(without_sizes), Err(expected), "{code:?}");
        producer.abort().await.expect("the brokers are there");
        assert!(!producer.is_usable(), "{code:?}");
        let mut next = connect(&cluster, &[]).await;
        assert_eq!(transaction(&mut next).await, Ok(()), "{code:?}");
    }
}

#[tokio::test]
async fn a_topic_that_is_denied_before_anything_was_sent_leaves_the_producer_in_use() {
    let code = Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let (mut producer, _cluster, outcome) = after(RDKafkaApiKey::AddPartitionsToTxn, &[code]).await;
    assert_eq!(outcome, Err(denied("send records")));
    producer.abort().await.expect("the brokers are there");
    assert!(producer.is_usable());
    assert_eq!(transaction(&mut producer).await, Ok(()));
}

fn denied(what: &str) -> KafkaFailure {
    KafkaFailure::Denied { message: format!("{what}: TopicAuthorizationFailed (Broker: Topic authorization failed)") }
}

#[tokio::test]
async fn a_session_that_was_lost_is_transient() {
    let code = Code::RD_KAFKA_RESP_ERR_UNKNOWN_PRODUCER_ID;
    let (_, _cluster, outcome) = after(RDKafkaApiKey::EndTxn, &[code]).await;
    assert!(is_transient(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn a_fenced_producer_is_of_no_more_use() {
    let cases = [
        (RDKafkaApiKey::Produce, Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH),
        (RDKafkaApiKey::AddPartitionsToTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (RDKafkaApiKey::EndTxn, Code::RD_KAFKA_RESP_ERR_PRODUCER_FENCED),
        (RDKafkaApiKey::EndTxn, Code::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH),
    ];
    for (request, code) in cases {
        let (producer, _cluster, outcome) = after(request, &[code]).await;
        assert_eq!(outcome, Err(KafkaFailure::Fenced), "{request:?} {code:?}");
        assert!(!producer.is_usable(), "{request:?} {code:?}");
    }
}

#[tokio::test]
async fn whoever_may_not_use_the_id_is_told_at_once() {
    let cluster = cluster(1);
    let code = Code::RD_KAFKA_RESP_ERR_TRANSACTIONAL_ID_AUTHORIZATION_FAILED;
    cluster.request_errors(RDKafkaApiKey::InitProducerId, &[code]);
    let outcome = Producer::connect(&address(&cluster, &[]), "tailwater-orders").await.map(drop);
    assert!(matches!(outcome, Err(KafkaFailure::Denied { .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_leader_that_moves_in_a_transaction_is_followed() {
    let cluster = cluster(3);
    let mut producer = connect(&cluster, &[]).await;
    cluster.partition_leader(TOPIC, 0, Some(1)).expect("broker 1 is there");
    assert_eq!(transaction(&mut producer).await, Ok(()));
    producer.begin().await.expect("the last one is over");
    producer.send(&record(0, b"before")).await.expect("there is room");
    cluster.partition_leader(TOPIC, 0, Some(2)).expect("broker 2 is there");
    producer.send(&record(0, b"after")).await.expect("there is room");
    assert_eq!(producer.commit().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_come_back_in_time_are_waited_for() {
    let cluster = cluster(1);
    let mut producer = connect(&cluster, &[]).await;
    assert_eq!(transaction(&mut producer).await, Ok(()));
    cluster.broker_down(-1).expect("the mock can be down");
    producer.begin().await.expect("to begin takes no broker");
    producer.send(&record(0, b"a")).await.expect("there is room");
    let mut commit = Box::pin(producer.commit());
    let early = tokio::time::timeout(Duration::from_millis(300), &mut commit).await;
    assert!(early.is_err(), "nothing is committed without brokers: {early:?}");
    cluster.broker_up(-1).expect("the mock can be up");
    assert_eq!(commit.await, Ok(()));
}

#[tokio::test]
async fn brokers_that_stay_away_are_a_transient_failure() {
    let cluster = cluster(1);
    let options = [("message.timeout.ms", "500"), ("transaction.timeout.ms", "5000")];
    let mut producer = connect(&cluster, &options).await;
    cluster.broker_down(-1).expect("the mock can be down");
    let outcome = transaction(&mut producer).await;
    assert!(is_transient(&outcome), "{outcome:?}");
    let unreached = Producer::connect_within(Duration::from_millis(100), &address(&cluster, &[]), "other").await;
    assert!(is_transient(&unreached.map(drop)));

    cluster.broker_up(-1).expect("the mock can be up");
    producer.abort().await.expect("the brokers are back");
    assert!(!producer.is_usable());
    assert_eq!(transaction(&mut connect(&cluster, &[]).await).await, Ok(()));
}

#[tokio::test]
async fn a_record_beyond_our_own_limit_names_its_topic() {
    let cluster = cluster(1);
    let mut producer = connect(&cluster, &[("message.max.bytes", "1000")]).await;
    producer.begin().await.expect("none is open");
    let outcome = producer.send(&record(0, &[b'x'; 2000])).await;
    let Err(KafkaFailure::TooLarge(oversize)) = &outcome else { panic!("{outcome:?}") };
    assert_eq!((oversize.topic.as_str(), oversize.limit), (TOPIC, Limit::Sink(1000)));
    assert!(oversize.bytes >= 2000, "{oversize}");
    producer.abort().await.expect("the brokers are there");
    assert_eq!(transaction(&mut producer).await, Ok(()));
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let cluster = cluster(1);
    cluster.broker_round_trip_time(-1, Duration::from_millis(5)).expect("the mock can be slow");
    let mut producer = connect(&cluster, &[("queue.buffering.max.messages", "10")]).await;
    producer.begin().await.expect("none is open");
    for _ in 0..500 {
        producer.send(&record(0, b"a")).await.expect("room is waited for");
    }
    assert_eq!(producer.commit().await, Ok(()));
}

#[tokio::test]
async fn a_topic_that_is_not_there_is_fatal() {
    let cluster = cluster(1);
    let mut producer = connect(&cluster, &[("topic.metadata.propagation.max.ms", "100")]).await;
    producer.begin().await.expect("none is open");
    let missing = Record { partition: 7, ..record(0, b"a") };
    let outcome = match producer.send(&missing).await {
        Ok(()) => producer.commit().await,
        refused => refused,
    };
    assert!(matches!(&outcome, Err(KafkaFailure::Fatal { message }) if message.contains(TOPIC)), "{outcome:?}");
}

/// Brokers name topics that they cannot tell of yet, or any more: such a one has an error and no partitions.
#[tokio::test]
async fn a_topic_of_no_partitions_is_none() {
    let cluster = cluster(1);
    cluster.create_topic("other", 3, 1).expect("a mock makes topics");
    let address = address(&cluster, &[]);
    assert_eq!(topics(&address).await, Ok(BTreeMap::from([(TOPIC.to_owned(), 2), ("other".to_owned(), 3)])));
    let unknown = Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    cluster.topic_error(TOPIC, unknown).expect("the mock can deny");
    assert_eq!(topics(&address).await, Ok(BTreeMap::from([("other".to_owned(), 3)])));
    assert_eq!(describe(&address, TOPIC).await, Ok(None));
}
