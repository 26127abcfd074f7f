//! Topics that a Kafka sink has beside its tables': of transactions and heartbeats.

use super::super::resolve::Live;
use super::super::syntax::MappingFile;
use crate::config::{Config, SinkEnd};
use crate::diagnostic::Finding;

/// Sink, topic and source of all that go with the file's `[topic]`.
pub(in crate::mapping) fn beside(config: &Config, file: &MappingFile) -> Vec<(String, String, String)> {
    let mut all = Vec::new();
    for sink in file.sinks.iter().filter(|_| file.topic.is_some()) {
        let Some(SinkEnd::Kafka(end)) = config.sinks.get(&sink.value).map(|sink| &sink.end) else { continue };
        for source in &file.sources {
            let topics = end.beside.topics(&source.value);
            all.extend(topics.map(|topic| (sink.value.clone(), topic, source.value.clone())));
        }
    }
    all
}

/// A finding for each of them that is not there.
pub(in crate::mapping) fn lacking(config: &Config, file: &MappingFile, live: &Live) -> Vec<Finding> {
    let Some(section) = &file.topic else { return Vec::new() };
    let lacking = beside(config, file).into_iter().filter(|(sink, topic, source)| {
        let is_lacking = live.kafka.get(sink).is_some_and(|end| !end.topics.contains_key(topic));
        is_lacking && live.sources.contains_key(source)
    });
    let finding = |(sink, topic, _): (String, String, String)| {
        let message = format!("topic \"{topic}\", which [sink.{sink}] asks for, does not exist");
        let finding = Finding::error("unknown-target", message).at(&file.file, section.span.clone());
        finding.hint("`tailwater setup --create-targets` creates it.")
    };
    lacking.map(finding).collect()
}
