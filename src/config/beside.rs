//! `[sink.NAME]` of `kind = "kafka"`: what it sends beside rows, under the names that Debezium's users know.

use std::time::Duration;

use crate::value::debezium::{heartbeat_topic, transaction_topic};

/// Messages of no row.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BesideRows {
    /// Where transactions are told of: a topic's name behind the source's. `None`: they are not.
    pub transactions: Option<String>,
    pub heartbeats: Option<Heartbeats>,
}

/// That a source's messages still come, though there may be none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeats {
    pub every: Duration,
    /// A topic's name before the source's.
    pub prefix: String,
}

impl BesideRows {
    pub fn transaction_topic(&self, source: &str) -> Option<String> {
        self.transactions.as_ref().map(|name| transaction_topic(source, name))
    }

    pub fn heartbeat_topic(&self, source: &str) -> Option<String> {
        self.heartbeats.as_ref().map(|heartbeats| heartbeat_topic(&heartbeats.prefix, source))
    }

    /// The topics of a source. Order within them matters, so each has one partition.
    pub fn topics(&self, source: &str) -> impl Iterator<Item = String> {
        self.transaction_topic(source).into_iter().chain(self.heartbeat_topic(source))
    }
}
