//! `[sink.NAME]` of `kind = "kafka"`.

use std::collections::BTreeMap;

use super::super::document::{Entry, Value, find};
use super::super::{KafkaEnd, Secret};
use super::Read;
use crate::diagnostic::Finding;

pub(super) const KEYS: [&str; 11] = [
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
];

const STATE_TOPIC: &str = "tailwater.state";
/// The longest name of a topic that a broker takes.
const TOPIC_NAME_MAX: usize = 249;

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
        Some(KafkaEnd { options, registry, state_topic: self.state_topic(section), brokers: brokers? })
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

    fn state_topic(&mut self, section: &[Entry]) -> String {
        let Some(entry) = find(section, "state_topic") else { return STATE_TOPIC.to_owned() };
        let text = self.reader.string(entry).unwrap_or(STATE_TOPIC);
        let is_name = (1..=TOPIC_NAME_MAX).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !is_name {
            let finding = Finding::error("bad-value", "\"state_topic\" is no name of a topic");
            self.reader.report(&entry.node.origin, finding.hint("letters, digits, `.`, `_` and `-` make one."));
        }
        text.to_owned()
    }
}
