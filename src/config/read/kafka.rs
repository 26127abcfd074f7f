//! `[sink.NAME]` of `kind = "kafka"`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::document::{Entry, Value, find};
use super::super::{BesideRows, Heartbeats, KafkaEnd, Secret};
use super::{NAME_BYTES_MAX, Read};
use crate::diagnostic::Finding;
use crate::value::debezium::{HEARTBEAT_PREFIX, TRANSACTION_TOPIC};

pub(super) const KEYS: [&str; 15] = [
    "kind",
    "brokers",
    "user",
    "password",
    "password_file",
    "options",
    "schema_registry",
    "state_topic",
    "on_error",
    "batch_rows_max",
    "idle_record",
    "provide_transaction_metadata",
    "topic_transaction",
    "heartbeat_interval",
    "topic_heartbeat_prefix",
];

const STATE_TOPIC: &str = "tailwater.state";
/// The longest name of a topic that a broker takes.
const TOPIC_BYTES_MAX: usize = 249;
/// `-SINK-SOURCE` comes behind it.
const STATE_TOPIC_MAX: usize = TOPIC_BYTES_MAX - 2 * (1 + NAME_BYTES_MAX);
/// The source's name and a dot come before or behind it.
const BESIDE_TOPIC_MAX: usize = TOPIC_BYTES_MAX - (1 + NAME_BYTES_MAX);

impl Read {
    pub(super) fn kafka(&mut self, header: &Entry, section: &[Entry]) -> Option<KafkaEnd> {
        let brokers = self.brokers(header, section);
        let mut options = self.options(section);
        // Under the names that every kind of sink has.
        if let Some(user) = find(section, "user").and_then(|entry| self.reader.string(entry)) {
            options.insert("sasl.username".to_owned(), Secret::new(user));
        }
        if let Some(password) = self.secret(section, "password", &header.origin) {
            options.insert("sasl.password".to_owned(), password);
        }
        let registry = self.registry(section);
        let state_topic = self.topic_name(section, "state_topic", STATE_TOPIC, STATE_TOPIC_MAX);
        Some(KafkaEnd { options, registry, state_topic, beside: self.beside(section), brokers: brokers? })
    }

    fn brokers(&mut self, header: &Entry, section: &[Entry]) -> Option<String> {
        let Some(entry) = find(section, "brokers") else {
            let finding = Finding::error("missing-key", format!("\"{}\" has no \"brokers\"", header.key));
            self.reader.report(&header.origin, finding.hint("add `brokers = \"host:9092\"`."));
            return None;
        };
        let text = self.reader.string(entry)?;
        let is_address = |broker: &str| {
            broker.trim().rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        };
        if !text.split(',').all(is_address) {
            let finding = Finding::error("bad-value", "\"brokers\" is not a list of host:port");
            self.reader.report(&entry.node.origin, finding.hint("write `brokers = \"one:9092,two:9092\"`."));
            return None;
        }
        Some(text.to_owned())
    }

    fn options(&mut self, section: &[Entry]) -> BTreeMap<String, Secret> {
        let Some(entry) = find(section, "options") else { return BTreeMap::new() };
        let mut options = BTreeMap::new();
        for option in self.reader.table(entry).unwrap_or_default() {
            let text = match &option.node.value {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Boolean(value) => value.to_string(),
                _ => {
                    let message = format!("\"{}\" must be a string, a number or a boolean", option.key);
                    let finding = Finding::error("wrong-type", message);
                    let hint = "names with points stand in quotes: `\"security.protocol\" = \"SASL_SSL\"`.";
                    self.reader.report(&option.node.origin, finding.hint(hint));
                    continue;
                }
            };
            options.insert(option.key.clone(), Secret::new(&text));
        }
        options
    }

    fn beside(&mut self, section: &[Entry]) -> BesideRows {
        let topic = self.topic_name(section, "topic_transaction", TRANSACTION_TOPIC, BESIDE_TOPIC_MAX);
        let prefix = self.topic_name(section, "topic_heartbeat_prefix", HEARTBEAT_PREFIX, BESIDE_TOPIC_MAX);
        let every = self.duration(section, "heartbeat_interval", Duration::ZERO);
        BesideRows {
            transactions: self.switch(section, "provide_transaction_metadata").then_some(topic),
            heartbeats: (!every.is_zero()).then_some(Heartbeats { every, prefix }),
        }
    }

    fn switch(&mut self, section: &[Entry], key: &str) -> bool {
        let Some(entry) = find(section, key) else { return false };
        match &entry.node.value {
            Value::Boolean(value) => return *value,
            // The environment has nothing but strings.
            Value::String(text) if text == "true" || text == "false" => return text == "true",
            _ => {}
        }
        let finding = Finding::error("wrong-type", format!("\"{key}\" must be true or false"));
        self.reader.report(&entry.node.origin, finding);
        false
    }

    fn topic_name(&mut self, section: &[Entry], key: &str, default: &str, bytes_max: usize) -> String {
        let Some(entry) = find(section, key) else { return default.to_owned() };
        let text = self.reader.string(entry).unwrap_or(default);
        let is_name = (1..=bytes_max).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !is_name {
            let finding = Finding::error("bad-value", format!("\"{key}\" is no name of a topic"));
            self.reader.report(&entry.node.origin, finding.hint("letters, digits, `.`, `_` and `-` make one."));
        }
        text.to_owned()
    }
}
