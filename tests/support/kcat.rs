//! Topics as an independent reader sees them: `kcat`, Debian's, over its own librdkafka.

use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::kafka::Kafka;
use super::process;

/// Bytes as they were sent; the reader's JSON has them in strings, which need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Raw;
        impl Visitor<'_> for Raw {
            type Value = Bytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Raw)
    }
}

/// One record of a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    /// `None`: a tombstone.
    pub value: Option<Vec<u8>>,
    /// In their order; a name may stand twice.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// A record as kcat prints it.
#[derive(Deserialize)]
struct Printed {
    topic: String,
    partition: i32,
    offset: i64,
    ts: i64,
    #[serde(default)]
    headers: Vec<Bytes>,
    key: Option<Bytes>,
    payload: Option<Bytes>,
}

impl Record {
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_slice())
    }

    /// Key and value, for short comparisons of text.
    pub fn text(&self) -> (Option<String>, Option<String>) {
        let text = |bytes: &Option<Vec<u8>>| bytes.as_ref().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        (text(&self.key), text(&self.value))
    }

    fn read(line: &[u8]) -> Result<Record> {
        let printed: Printed =
            serde_json::from_slice(line).with_context(|| format!("kcat printed {}", String::from_utf8_lossy(line)))?;
        let headers = printed.headers.chunks_exact(2).map(|pair| {
            let [name, value] = pair else { unreachable!("chunks of two") };
            (String::from_utf8_lossy(&name.0).into_owned(), value.0.clone())
        });
        Ok(Record {
            topic: printed.topic,
            partition: printed.partition,
            offset: printed.offset,
            timestamp_ms: printed.ts,
            key: printed.key.map(|key| key.0),
            value: printed.payload.map(|value| value.0),
            headers: headers.collect(),
        })
    }
}

/// What a reader is shown of transactions that were not committed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    ReadCommitted,
    ReadUncommitted,
}

/// Everything that stands in a topic now, partition by partition. One that is open to `ReadCommitted` ends where the
/// first transaction that is still open begins.
pub fn read(broker: &Kafka, topic: &str, isolation: Isolation) -> Result<Vec<Record>> {
    let isolation = match isolation {
        Isolation::ReadCommitted => "isolation.level=read_committed",
        Isolation::ReadUncommitted => "isolation.level=read_uncommitted",
    };
    let mut command = Command::new("kcat");
    command.args(["-C", "-q", "-e", "-J", "-o", "beginning", "-b", &broker.bootstrap(), "-t", topic]);
    command.args(["-X", isolation, "-X", "fetch.wait.max.ms=10"]);
    let output = command.output().context("start kcat: is it installed? tests/install.sh test does it")?;
    anyhow::ensure!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut records = lines.map(Record::read).collect::<Result<Vec<_>>>()?;
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

/// Everything that a `read_committed` reader is shown.
pub fn read_committed(broker: &Kafka, topic: &str) -> Result<Vec<Record>> {
    read(broker, topic, Isolation::ReadCommitted)
}

/// How many partitions a topic has; `None`: there is no such topic.
pub fn partition_count(broker: &Kafka, topic: &str) -> Result<Option<usize>> {
    let text = process::run(Command::new("kcat").args(["-L", "-J", "-b", &broker.bootstrap()]))?;
    let listing: serde_json::Value = serde_json::from_str(&text)?;
    let topics = listing["topics"].as_array().context("kcat lists topics")?;
    let found = topics.iter().find(|known| known["topic"] == topic);
    Ok(found.and_then(|topic| topic["partitions"].as_array()).map(Vec::len))
}
