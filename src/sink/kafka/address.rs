//! Where the brokers are, and how a client of ours is set up: our defaults, then the user's options, then what the
//! promises rest on.

use std::collections::BTreeMap;

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};

use crate::config::Secret;

/// The brokers and librdkafka's own options for them, checked. `Debug` shows no option's value: it may be a password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KafkaAddress {
    brokers: String,
    options: BTreeMap<String, Secret>,
}

/// An option that a user may not give, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    #[error("names no broker; write \"host:9092\", more of them separated by commas")]
    NoBroker,
    #[error("the option \"{name}\" may not be given: {why}")]
    Refused { name: String, why: &'static str },
    #[error("the option \"{name}\" holds a zero byte")]
    ZeroByte { name: String },
}

const EXACTLY_ONCE: &str = "exactly once rests on it";
const PARTITIONED_HERE: &str = "the partition of a key is fixed, as Kafka's Java client computes it";
const OWN_WORDS: &str = "the brokers stand in \"brokers\"";
const READS_COMMITTED: &str = "the checkpoint is read by it";
const LOADS_CODE: &str = "it loads code";
const NO_BROKERS: &str = "it replaces the brokers by a mock in memory";
const REPORTS: &str = "what is durable is known by it";

/// What would break the promises. A name that ends in "." stands for all that begin so.
const REFUSED: &[(&str, &str)] = &[
    ("enable.idempotence", EXACTLY_ONCE),
    ("enable.gapless.guarantee", EXACTLY_ONCE),
    ("acks", EXACTLY_ONCE),
    ("request.required.acks", EXACTLY_ONCE),
    ("transactional.id", EXACTLY_ONCE),
    ("queuing.strategy", EXACTLY_ONCE),
    ("delivery.report.only.error", REPORTS),
    ("partitioner", PARTITIONED_HERE),
    ("bootstrap.servers", OWN_WORDS),
    ("metadata.broker.list", OWN_WORDS),
    ("isolation.level", READS_COMMITTED),
    ("group.id", READS_COMMITTED),
    ("enable.auto.commit", READS_COMMITTED),
    ("enable.partition.eof", READS_COMMITTED),
    ("auto.offset.reset", READS_COMMITTED),
    ("allow.auto.create.topics", "topics are made with the partitions that their mapping names"),
    ("plugin.library.paths", LOADS_CODE),
    ("ssl.engine.location", LOADS_CODE),
    ("ssl.providers", LOADS_CODE),
    ("test.mock.", NO_BROKERS),
];

/// Two names of one property, either way round: librdkafka takes both, and the later one wins.
const SAME: &[(&str, &str)] = &[
    ("linger.ms", "queue.buffering.max.ms"),
    ("compression.type", "compression.codec"),
    ("delivery.timeout.ms", "message.timeout.ms"),
];

/// What a producer has unless the user says otherwise.
const PRODUCER_DEFAULTS: &[(&str, &str)] = &[
    // A transaction's end waits for its last record, so records hardly wait for company.
    ("linger.ms", "0"),
    ("compression.type", "lz4"),
    // Beside what a batch itself holds. Unit: 1,024 bytes.
    ("queue.buffering.max.kbytes", "32768"),
    ("queue.buffering.max.messages", "100000"),
    ("message.max.bytes", "1000000"),
    // Brokers that still mark the transaction before are asked again, and with small transactions that wait is the latency.
    // Doubles with each try.
    ("retry.backoff.ms", "5"),
    // How long the brokers wait for an open transaction whose producer is gone; `read_committed` readers wait with them.
    ("transaction.timeout.ms", "60000"),
];

const DEFAULTS: &[(&str, &str)] = &[
    ("client.id", "tailwater"),
    // librdkafka begins at 100 ms and doubles.
    ("reconnect.backoff.max.ms", "2000"),
    ("socket.keepalive.enable", "true"),
];

impl KafkaAddress {
    /// `brokers` as librdkafka takes them, `host:port` separated by commas; `options` under librdkafka's names.
    pub fn new(brokers: &str, options: BTreeMap<String, Secret>) -> Result<KafkaAddress, AddressError> {
        if brokers.split(',').all(|broker| broker.trim().is_empty()) || brokers.contains('\0') {
            return Err(AddressError::NoBroker);
        }
        for (name, value) in &options {
            if let Some(why) = refused(name) {
                return Err(AddressError::Refused { name: name.clone(), why });
            }
            if name.contains('\0') || value.expose().contains('\0') {
                return Err(AddressError::ZeroByte { name: name.replace('\0', "?") });
            }
        }
        Ok(KafkaAddress { brokers: brokers.to_owned(), options })
    }

    /// The same with an option that the user does not give.
    pub fn or_option(mut self, name: &str, value: &str) -> KafkaAddress {
        self.options.entry(name.to_owned()).or_insert_with(|| Secret::new(value));
        self
    }

    /// The same with an option, whatever the user gives.
    pub(super) fn with_option(mut self, name: &str, value: &str) -> KafkaAddress {
        self.options.insert(name.to_owned(), Secret::new(value));
        self
    }

    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    pub(super) fn producer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.client(PRODUCER_DEFAULTS);
        config.set("transactional.id", transactional_id).set("enable.idempotence", "true").set("acks", "all");
        config
    }

    /// A client that is asked about topics, or reads one from its beginning.
    pub(super) fn reader(&self, isolation_level: &str) -> ClientConfig {
        let mut config = self.client(&[("fetch.wait.max.ms", "20")]);
        config
            .set("isolation.level", isolation_level)
            // Groups are not used, but the option must be there.
            .set("group.id", "tailwater")
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "error")
            .set("allow.auto.create.topics", "false");
        config
    }

    pub(super) fn admin(&self) -> ClientConfig {
        self.client(&[])
    }

    /// A number that librdkafka is given, ours or the user's.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        let given = self.options.get(name).map(Secret::expose);
        let default = || PRODUCER_DEFAULTS.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        given.or_else(default)?.parse().ok()
    }

    fn client(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS.iter().chain(defaults).filter(|(name, _)| !self.gives(name)) {
            config.set(*name, *value);
        }
        for (name, value) in &self.options {
            config.set(name, value.expose());
        }
        config.set("bootstrap.servers", &self.brokers);
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// Whether the user gives this property, under either of its names.
    fn gives(&self, name: &str) -> bool {
        let other = SAME.iter().find_map(|(one, other)| match name {
            _ if name == *one => Some(*other),
            _ if name == *other => Some(*one),
            _ => None,
        });
        self.options.contains_key(name) || other.is_some_and(|other| self.options.contains_key(other))
    }
}

/// Why an option may not be given; `None` if it may.
pub fn refused(name: &str) -> Option<&'static str> {
    let matches = |known: &str| known == name || known.ends_with('.') && name.starts_with(known);
    REFUSED.iter().find(|(known, _)| matches(known)).map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(options: &[(&str, &str)]) -> Result<KafkaAddress, AddressError> {
        let options = options.iter().map(|(name, value)| ((*name).to_owned(), Secret::new(*value))).collect();
        KafkaAddress::new("localhost:9092", options)
    }

    /// What librdkafka holds after everything was set.
    fn effective(config: &ClientConfig, name: &str) -> String {
        let native = config.create_native_config().expect("librdkafka takes what was set");
        native.get(name).expect("librdkafka knows the option").trim_end_matches('\0').to_owned()
    }

    #[test]
    fn options_that_would_break_a_promise_are_refused() {
        for (name, why) in REFUSED {
            let name = if name.ends_with('.') { format!("{name}num.brokers") } else { (*name).to_owned() };
            let refused = address(&[(&name, "1")]).expect_err("it is in the table");
            assert_eq!(refused.to_string(), format!("the option \"{name}\" may not be given: {why}"));
        }
        assert_eq!(
            address(&[("sasl.password", "s3cr\0et")]),
            Err(AddressError::ZeroByte { name: "sasl.password".into() })
        );
        for brokers in ["", " , "] {
            assert_eq!(KafkaAddress::new(brokers, BTreeMap::new()), Err(AddressError::NoBroker));
        }
    }

    #[test]
    fn librdkafka_takes_every_option_of_ours() {
        let address = address(&[]).expect("no option is refused");
        let producer = address.producer("tailwater-a");
        let held = |name| effective(&producer, name);
        assert_eq!((held("enable.idempotence"), held("acks")), ("true".into(), "-1".into()));
        assert_eq!((held("transactional.id"), held("compression.type")), ("tailwater-a".into(), "lz4".into()));
        assert_eq!((held("bootstrap.servers"), held("retry.backoff.ms")), ("localhost:9092".into(), "5".into()));
        assert_eq!(effective(&address.reader("read_committed"), "isolation.level"), "read_committed");
        assert_eq!(effective(&address.admin(), "client.id"), "tailwater");
        assert_eq!(address.number("transaction.timeout.ms"), Some(60_000));
    }

    #[test]
    fn librdkafka_was_built_with_what_brokers_ask_for() {
        let features = effective(&ClientConfig::new(), "builtin.features");
        let has = |feature: &str| features.split(',').any(|built| built == feature);
        for feature in ["ssl", "sasl_plain", "sasl_scram", "gzip", "snappy", "lz4", "zstd"] {
            assert!(has(feature), "{feature} is not among {features}");
        }
    }

    /// librdkafka's map would else hold both names, and which one wins be left to chance.
    #[test]
    fn the_users_option_replaces_ours_under_either_of_its_names() {
        for name in ["linger.ms", "queue.buffering.max.ms"] {
            let producer = address(&[(name, "7")]).expect("it is not refused").producer("t");
            assert_eq!(effective(&producer, "linger.ms"), "7", "{name}");
        }
        let address = address(&[("transaction.timeout.ms", "1500")]).expect("it is not refused");
        assert_eq!(address.number("transaction.timeout.ms"), Some(1500));
    }

    #[test]
    fn debug_shows_no_value_of_an_option() {
        let address = address(&[("sasl.password", "s3cret")]).expect("it is not refused");
        let shown = format!("{address:?}");
        assert!(shown.contains("sasl.password") && !shown.contains("s3cret"), "{shown}");
    }
}
