//! What went wrong at Kafka, as one of five verdicts, told without any value, key or secret.
//!
//! The codes are Kafka's own (protocol guide, "Error Codes") and librdkafka's, which stand below zero. Where a code is not
//! in the table, librdkafka's flags decide.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::oversize::Oversize;

/// Why something was not done. Everything in it may be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KafkaFailure {
    /// Passes with time: abort the transaction, or connect anew, and the same again.
    #[error("{message}")]
    Transient { message: String },
    /// A newer producer has the same `transactional.id`: this one must not write any more.
    #[error("another producer took over the transactional.id")]
    Fenced,
    /// Our own limit, or the topic's. The transaction can only be aborted.
    #[error("{0}")]
    TooLarge(Oversize),
    /// The brokers do not know us, or do not let us.
    #[error("{message}")]
    Denied { message: String },
    /// Nothing that waiting would mend.
    #[error("{message}")]
    Fatal { message: String },
}

impl KafkaFailure {
    /// The same may be tried again.
    pub fn passes(&self) -> bool {
        matches!(self, KafkaFailure::Transient { .. })
    }
}

/// librdkafka's own opinion of an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flags {
    pub fatal: bool,
    pub retriable: bool,
    pub requires_abort: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Transient,
    Fenced,
    TooLarge,
    Denied,
    Fatal,
}

/// What each code means, whatever librdkafka's flags are.
const VERDICTS: &[(Verdict, &[RDKafkaErrorCode])] = &[
    (
        Verdict::Fenced,
        &[RDKafkaErrorCode::Fenced, RDKafkaErrorCode::InvalidProducerEpoch, RDKafkaErrorCode::ProducerFenced],
    ),
    (Verdict::TooLarge, &[RDKafkaErrorCode::MessageSizeTooLarge, RDKafkaErrorCode::MessageBatchTooLarge]),
    (
        Verdict::Denied,
        &[
            RDKafkaErrorCode::Authentication,
            RDKafkaErrorCode::SaslAuthenticationFailed,
            RDKafkaErrorCode::TopicAuthorizationFailed,
            RDKafkaErrorCode::GroupAuthorizationFailed,
            RDKafkaErrorCode::ClusterAuthorizationFailed,
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
        ],
    ),
    (
        Verdict::Transient,
        &[
            // Connections, and time that ran out.
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::AllBrokersDown,
            RDKafkaErrorCode::Resolve,
            RDKafkaErrorCode::SSL,
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::OperationTimedOut,
            RDKafkaErrorCode::TimedOutQueue,
            RDKafkaErrorCode::RequestTimedOut,
            RDKafkaErrorCode::NetworkException,
            RDKafkaErrorCode::BrokerNotAvailable,
            RDKafkaErrorCode::DestroyBroker,
            // A leader or coordinator that moves.
            RDKafkaErrorCode::LeaderNotAvailable,
            RDKafkaErrorCode::NotLeaderForPartition,
            RDKafkaErrorCode::ReplicaNotAvailable,
            RDKafkaErrorCode::FencedLeaderEpoch,
            RDKafkaErrorCode::UnknownLeaderEpoch,
            RDKafkaErrorCode::WaitingForCoordinator,
            RDKafkaErrorCode::CoordinatorLoadInProgress,
            RDKafkaErrorCode::CoordinatorNotAvailable,
            RDKafkaErrorCode::NotCoordinator,
            RDKafkaErrorCode::NotController,
            RDKafkaErrorCode::ConcurrentTransactions,
            // Brokers short of copies, disk or patience.
            RDKafkaErrorCode::NotEnoughReplicas,
            RDKafkaErrorCode::NotEnoughReplicasAfterAppend,
            RDKafkaErrorCode::KafkaStorageError,
            RDKafkaErrorCode::ThrottlingQuotaExceeded,
            // The session is lost; a new one goes on from the checkpoint.
            RDKafkaErrorCode::OutOfOrderSequenceNumber,
            RDKafkaErrorCode::UnknownProducerId,
            RDKafkaErrorCode::InvalidProducerIdMapping,
            RDKafkaErrorCode::InvalidTransactionalState,
            RDKafkaErrorCode::PurgeQueue,
            RDKafkaErrorCode::PurgeInflight,
        ],
    ),
    (
        Verdict::Fatal,
        &[
            RDKafkaErrorCode::UnknownTopic,
            RDKafkaErrorCode::UnknownTopicOrPartition,
            RDKafkaErrorCode::UnknownPartition,
            RDKafkaErrorCode::InvalidTopic,
            RDKafkaErrorCode::InvalidTransactionTimeout,
            RDKafkaErrorCode::InvalidRecord,
            RDKafkaErrorCode::InvalidTimestamp,
            RDKafkaErrorCode::PolicyViolation,
            RDKafkaErrorCode::UnsupportedVersion,
            RDKafkaErrorCode::UnsupportedFeature,
            RDKafkaErrorCode::State,
        ],
    ),
];

fn verdict(code: RDKafkaErrorCode, flags: Flags) -> Verdict {
    let known = VERDICTS.iter().find(|(_, codes)| codes.contains(&code));
    match known {
        Some((verdict, _)) => *verdict,
        None if !flags.fatal && (flags.retriable || flags.requires_abort) => Verdict::Transient,
        None => Verdict::Fatal,
    }
}

impl KafkaFailure {
    /// `what` was under way: "commit a transaction". `topic` is empty where the code is about none.
    pub fn of_code(what: &str, topic: &str, code: RDKafkaErrorCode, flags: Flags) -> KafkaFailure {
        let about = if topic.is_empty() { String::new() } else { format!(" of topic \"{topic}\"") };
        // librdkafka's text of a code is a constant.
        let message = format!("{what}{about}: {code}");
        match verdict(code, flags) {
            Verdict::Transient => KafkaFailure::Transient { message },
            Verdict::Fenced => KafkaFailure::Fenced,
            Verdict::TooLarge => KafkaFailure::TooLarge(Oversize::of_topic(topic)),
            Verdict::Denied => KafkaFailure::Denied { message },
            Verdict::Fatal => KafkaFailure::Fatal { message },
        }
    }

    /// Of an error of librdkafka's or of its Rust side.
    pub fn of(what: &str, topic: &str, error: &KafkaError) -> KafkaFailure {
        let flags = flags_of(error);
        match error {
            KafkaError::AdminOp(code) => KafkaFailure::of_code(what, topic, *code, flags),
            // Its text quotes the value; the name is enough to find it.
            KafkaError::ClientConfig(_, _, name, _) => KafkaFailure::Fatal {
                message: format!("librdkafka does not know the option \"{name}\" or does not take its value"),
            },
            KafkaError::ClientCreation(text) => KafkaFailure::Fatal { message: format!("{what}: {}", cut(text)) },
            other => match other.rdkafka_error_code() {
                Some(code) => KafkaFailure::of_code(what, topic, code, flags),
                None => KafkaFailure::Fatal { message: format!("{what}: librdkafka refused") },
            },
        }
    }

    /// The same with the reason that librdkafka gave for being without a broker.
    pub(super) fn because(self, reason: Option<&str>) -> KafkaFailure {
        match (self, reason) {
            (KafkaFailure::Transient { message }, Some(reason)) => {
                KafkaFailure::Transient { message: format!("{message} ({})", cut(reason)) }
            }
            (KafkaFailure::Denied { message }, Some(reason)) => {
                KafkaFailure::Denied { message: format!("{message} ({})", cut(reason)) }
            }
            (other, _) => other,
        }
    }
}

pub(super) fn flags_of(error: &KafkaError) -> Flags {
    match error {
        KafkaError::Transaction(error) => Flags {
            fatal: error.is_fatal(),
            retriable: error.is_retriable(),
            requires_abort: error.txn_requires_abort(),
        },
        _ => Flags::default(),
    }
}

/// Texts of librdkafka are cut here: one line, of a length that a log bears.
const TEXT_MAX: usize = 300;

fn cut(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::types::RDKafkaRespErr;

    fn code(number: i32) -> RDKafkaErrorCode {
        RDKafkaRespErr::try_from(number).expect("librdkafka knows it").into()
    }

    /// Numbers as the protocol guide and librdkafka's header have them.
    #[test]
    fn f39_every_code_has_its_verdict_whatever_the_flags() {
        let expected: [(Verdict, &[i32]); 5] = [
            (Verdict::Fenced, &[-144, 47, 90]),
            (Verdict::TooLarge, &[10, 18]),
            (Verdict::Denied, &[-169, 29, 30, 31, 53, 58]),
            (
                Verdict::Transient,
                &[
                    -195, -193, -192, -187, -185, -181, -180, -166, -152, -151, -137, 5, 6, 7, 8, 9, 13, 14, 15, 16,
                    19, 20, 41, 45, 48, 49, 51, 56, 59, 74, 75, 89,
                ],
            ),
            (Verdict::Fatal, &[-190, -188, -172, -165, 3, 17, 32, 35, 44, 50, 87]),
        ];
        let all = [false, true];
        let flags =
            all.map(|fatal| all.map(|retriable| all.map(|requires_abort| Flags { fatal, retriable, requires_abort })));
        for (verdict_expected, numbers) in expected {
            for number in numbers {
                for flags in flags.as_flattened().as_flattened() {
                    assert_eq!(verdict(code(*number), *flags), verdict_expected, "code {number}, {flags:?}");
                }
            }
        }
        let rows: usize = VERDICTS.iter().map(|(_, codes)| codes.len()).sum();
        assert_eq!(rows, expected.iter().map(|(_, numbers)| numbers.len()).sum::<usize>(), "a row is not tested");
    }

    /// 52 (TRANSACTION_COORDINATOR_FENCED) stands for all that are in no row.
    #[test]
    fn where_the_table_is_silent_librdkafka_decides() {
        let of = |fatal, retriable, requires_abort| verdict(code(52), Flags { fatal, retriable, requires_abort });
        assert_eq!(of(false, false, false), Verdict::Fatal);
        assert_eq!(of(false, true, false), Verdict::Transient);
        assert_eq!(of(false, false, true), Verdict::Transient);
        assert_eq!(of(true, true, true), Verdict::Fatal);
    }

    #[test]
    fn a_value_that_is_refused_is_not_told() {
        let error = rdkafka::ClientConfig::new()
            .set("security.protocol", "s3cret")
            .create_native_config()
            .map(drop)
            .expect_err("there is no such protocol");
        assert!(error.to_string().contains("s3cret"), "librdkafka tells it");
        let failure = KafkaFailure::of("connect", "", &error);
        assert!(!format!("{failure:?}").contains("s3cret"));
        assert_eq!(
            failure.to_string(),
            "librdkafka does not know the option \"security.protocol\" or does not take its value"
        );
    }
}
