//! Topics of messages that are of no row: made beside the tables' own, one partition each.

use std::sync::Arc;

use super::cluster::Cluster;
use super::failure::KafkaFailure;
use super::partition::partition_of;
use super::producer::{Producer, Record};
use crate::checkpoint::UnixMicros;
use crate::mapping::plan::{Plan, TopicFormat};
use crate::sink::ApplyError;
use crate::value::debezium::{Encoding, Message, Messages};

/// How the messages of a source are encoded that are of no row: as those of its first table.
fn encoding(plans: &[Arc<Plan>]) -> Encoding {
    match plans.iter().find_map(|plan| plan.topic.as_ref()) {
        Some(topic) if topic.format == TopicFormat::Avro => Encoding::Avro,
        topic => Encoding::Json { schemas: topic.is_some_and(|topic| topic.options.values.schemas) },
    }
}

/// One such topic, and how its messages are written.
pub(super) struct Channel {
    topic: String,
    partitions: i32,
    messages: Messages,
    /// What stands before each key and each value.
    prefixes: [Vec<u8>; 2],
    key: Vec<u8>,
    value: Vec<u8>,
}

/// Where a message's key and value are written.
pub(super) struct Buffers<'c> {
    pub messages: &'c Messages,
    pub key: &'c mut Vec<u8>,
    pub value: &'c mut Vec<u8>,
}

impl Channel {
    /// `kinds`: of its keys and of its values, whose schemas are registered where they are Avro.
    ///
    /// # Errors
    /// The cluster or its registry does not answer, or there is no such topic.
    pub async fn open(
        cluster: &Cluster,
        topic: String,
        plans: &[Arc<Plan>],
        kinds: [Message; 2],
    ) -> Result<Channel, ApplyError> {
        let found = cluster.partitions(&topic).await.map_err(|message| ApplyError::Transient { message })?;
        let Some(partitions) = found else {
            let message = format!("topic \"{topic}\" does not exist; `tailwater setup --create-targets` makes it");
            return Err(ApplyError::Fatal { message });
        };
        let encoding = encoding(plans);
        let prefixes = match encoding {
            Encoding::Json { .. } => Default::default(),
            Encoding::Avro => prefixes(cluster, &topic, kinds).await?,
        };
        let messages = Messages::new(encoding);
        Ok(Channel { topic, partitions, messages, prefixes, key: Vec::new(), value: Vec::new() })
    }

    /// For the next message.
    pub fn buffers(&mut self) -> Buffers<'_> {
        let Channel { messages, prefixes: [before_key, before_value], key, value, .. } = self;
        key.clone_from(before_key);
        value.clone_from(before_value);
        Buffers { messages, key, value }
    }

    /// Sends what was written.
    pub async fn send(
        &self,
        producer: &mut Producer,
        headers: &[(&str, &[u8])],
        now: UnixMicros,
    ) -> Result<(), KafkaFailure> {
        let record = Record {
            topic: &self.topic,
            partition: partition_of(&self.key, self.partitions),
            key: Some(&self.key),
            value: Some(&self.value),
            headers,
            timestamp_ms: now.0 / 1_000,
        };
        producer.send(&record).await
    }
}

/// Registers both schemas under the names that a table's have.
async fn prefixes(cluster: &Cluster, topic: &str, kinds: [Message; 2]) -> Result<[Vec<u8>; 2], ApplyError> {
    let Some(registry) = cluster.registry() else {
        let message = format!("topic \"{topic}\": Avro needs the sink's schema_registry");
        return Err(ApplyError::Fatal { message });
    };
    let mut prefixes = <[Vec<u8>; 2]>::default();
    for ((kind, side), prefix) in kinds.into_iter().zip(["key", "value"]).zip(&mut prefixes) {
        let registered = registry.register(&format!("{topic}-{side}"), &Messages::avro_schema(kind)).await;
        let id = registered.map_err(|error| match (error.passes(), error.to_string()) {
            (true, message) => ApplyError::Transient { message },
            (false, message) => ApplyError::Fatal { message },
        })?;
        *prefix = id.prefix().to_vec();
    }
    Ok(prefixes)
}
