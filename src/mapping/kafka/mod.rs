//! Mappings into Kafka: which tables a `[topic]` section means, and the plans and topics that it comes to.
//!
//! Every table has a topic of its own. Its changes go there one by one and in their order, so nothing is folded and no
//! column is renamed or computed: what a message says of a row is what the source says.

mod beside;
mod expand;
mod filter;
mod follow;
mod pattern;
mod plan;
mod skipped;
mod syntax;

use std::collections::BTreeMap;

use crate::catalog::TableName;

pub(super) use beside::{beside, lacking};
pub(super) use expand::{Expanded, expand, shared};
pub(super) use filter::{Rows, rows};
pub(super) use follow::bind;
pub use pattern::Pattern;
pub(super) use plan::plan;
pub use skipped::Skipped;
pub(super) use syntax::topic;
pub use syntax::{TOPIC_KEYS, TopicMapping};

/// One cluster, as it answered: its topics and how many partitions each has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveKafka {
    pub topics: BTreeMap<String, i32>,
}

/// A topic that a mapping asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredTopic {
    pub sink: String,
    pub name: String,
    pub partitions: i32,
}

/// What a topic is called where others have a table: in states, metrics and errors.
pub fn label(topic: &str) -> TableName {
    match topic.rsplit_once('.') {
        Some((front, last)) if !front.is_empty() && !last.is_empty() => TableName::new(front, last),
        _ => TableName::new("topic", topic),
    }
}
