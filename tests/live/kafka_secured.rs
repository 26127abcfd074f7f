//! Brokers that ask who comes, over TLS, and let him do no more than was allowed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use tailwater::config::Secret;
use tailwater::sink::kafka::address::KafkaAddress;
use tailwater::sink::kafka::failure::KafkaFailure;
use tailwater::sink::kafka::producer::{Producer, Record};
use tailwater::sink::kafka::topics;

use crate::support::certificates::Certificates;
use crate::support::kafka::{Kafka, Options, PASSWORD, USER};
use crate::support::kcat::{self, Isolation};
use crate::support::scratch::Scratch;

/// Beside the half minute for which brokers that do not answer are asked.
const AT_ONCE: Duration = Duration::from_secs(10);

fn address(broker: &Kafka, mechanism: &str, password: &str, root: &Path) -> KafkaAddress {
    let options = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", mechanism),
        ("sasl.username", USER),
        ("sasl.password", password),
        ("ssl.ca.location", root.to_str().expect("a scratch directory's path is text")),
    ];
    let options = options.map(|(name, value)| (name.to_owned(), Secret::new(value)));
    KafkaAddress::new(&broker.secured_bootstrap(), options.into()).expect("no option is refused")
}

fn record(topic: &str) -> Record<'_> {
    Record { topic, partition: 0, key: Some(b"a"), value: Some(b"1"), headers: &[], timestamp_ms: 1 }
}

async fn write(producer: &mut Producer, topic: &str) -> Result<(), KafkaFailure> {
    producer.begin().await?;
    producer.send(&record(topic)).await?;
    producer.commit().await
}

/// The message, which must name none of the secrets.
fn denied<T>(outcome: Result<T, KafkaFailure>) -> String {
    match outcome {
        Err(KafkaFailure::Denied { message }) => {
            assert!(!message.contains(PASSWORD) && !message.contains("another"), "{message}");
            message
        }
        other => panic!("not denied but {:?}", other.map(drop)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f39_only_who_is_known_and_allowed_writes() -> Result<()> {
    let scratch = Scratch::new("kafka-certificates")?;
    let certificates = Certificates::make(&scratch.path().join("ours"))?;
    let others = Certificates::make(&scratch.path().join("others"))?;
    let broker = Kafka::start_with("kafka-secured", Options::default().secured(&certificates))?;
    broker.create_topic("orders", 1, &[]).await?;
    broker.create_topic("closed", 1, &[]).await?;
    broker.create_topic("state", 1, &[("cleanup.policy", "compact")]).await?;
    let scram = address(&broker, "SCRAM-SHA-512", PASSWORD, &certificates.root);

    // A wrong password, a right one without rights, and a server that nobody vouches for.
    let wrong = address(&broker, "SCRAM-SHA-512", "another", &certificates.root);
    let message = denied(Producer::connect(&wrong, "tailwater-orders").await);
    assert!(message.contains("uthentication"), "{message}");
    denied(topics::partition_counts(&wrong, &["orders"]).await);
    let began = Instant::now();
    denied(topics::ensure_topic(&wrong, "new", 1, None, &[]).await);
    assert!(began.elapsed() < AT_ONCE, "a wrong password was told after {:?}", began.elapsed());
    denied(Producer::connect(&scram, "tailwater-orders").await);
    denied(topics::describe(&scram, "orders").await);
    let stranger = address(&broker, "PLAIN", PASSWORD, &others.root);
    let outcome = topics::describe(&stranger, "orders").await;
    let Err(KafkaFailure::Transient { message }) = &outcome else { panic!("{outcome:?}") };
    assert!(message.contains("certificate verify failed"), "{message}");

    broker.allow(&["--operation", "Write", "--operation", "Describe", "--topic", "orders", "--topic", "state"])?;
    broker.allow(&["--operation", "Read", "--topic", "state"])?;
    let words = ["--operation", "Write", "--operation", "Describe", "--transactional-id", "tailwater-"];
    broker.allow(&[&words[..], &["--resource-pattern-type", "prefixed"]].concat())?;
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let address = address(&broker, mechanism, PASSWORD, &certificates.root);
        assert_eq!(topics::partition_counts(&address, &["orders", "state"]).await?, [Some(1), Some(1)]);
        let mut producer = Producer::connect(&address, "tailwater-orders").await?;
        write(&mut producer, "orders").await?;
        write(&mut producer, "state").await?;
        assert_eq!(topics::read_compacted(&address, "state").await?, [(b"a".to_vec(), b"1".to_vec())].into());

        let message = denied(write(&mut producer, "closed").await);
        assert!(message.contains("TopicAuthorizationFailed"), "{message}");
        producer.abort().await?;
        denied(topics::ensure_topic(&address, "new", 1, None, &[]).await);
        denied(Producer::connect(&address, "of-somebody-else").await);
    }
    let closed = kcat::read(&broker, "closed", Isolation::ReadUncommitted)?;
    assert_eq!(closed, []);
    Ok(())
}
