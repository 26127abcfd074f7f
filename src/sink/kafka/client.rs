//! What librdkafka tells of its own accord: lines for its log, trouble with brokers, and what became of each record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::ProducerContext;
use tokio::sync::Notify;
use tracing::debug;

use super::failure::{Flags, KafkaFailure};

/// How long one blocking call of librdkafka's may take. What takes longer goes on with the next call, so that whoever
/// waits can be told to stop between two.
pub(super) const SLICE: Duration = Duration::from_secs(1);

/// One client's reports. librdkafka calls it from threads of its own.
#[derive(Default)]
pub(super) struct Reports {
    /// The last trouble with brokers, with librdkafka's text of it.
    trouble: Mutex<Option<(RDKafkaErrorCode, String)>>,
    /// The first record of a transaction that was refused, or timed out.
    undelivered: Mutex<Option<KafkaFailure>>,
    /// Records of a transaction were given up because of something else.
    purged: AtomicBool,
    /// Records that were delivered or given up, ever.
    reported: AtomicU64,
    /// Told at each.
    pub(super) progress: Notify,
}

impl Reports {
    pub(super) fn reported(&self) -> u64 {
        self.reported.load(Ordering::Acquire)
    }

    pub(super) fn undelivered(&self) -> Option<KafkaFailure> {
        self.undelivered.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn purged(&self) -> bool {
        self.purged.load(Ordering::Acquire)
    }

    /// For a new transaction: what went wrong before is no reason any more.
    pub(super) fn forget(&self) {
        *self.undelivered.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.purged.store(false, Ordering::Release);
    }

    /// The failure with its reason, if librdkafka gave one. Whoever is not let in is denied, although librdkafka goes on
    /// trying and only says that time ran out.
    pub(super) fn explain(&self, failure: KafkaFailure) -> KafkaFailure {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match (&failure, &*trouble) {
            (KafkaFailure::Transient { .. }, Some((code @ RDKafkaErrorCode::Authentication, reason))) => {
                KafkaFailure::of_code("connect", "", *code, Flags::default()).because(Some(reason))
            }
            (KafkaFailure::Transient { .. }, Some((_, reason))) => failure.because(Some(reason)),
            _ => failure,
        }
    }

    /// What stands in the way for good, although librdkafka goes on trying.
    pub(super) fn denied(&self) -> Option<KafkaFailure> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let (code, reason) = trouble.as_ref().filter(|(code, _)| *code == RDKafkaErrorCode::Authentication)?;
        Some(KafkaFailure::of_code("connect", "", *code, Flags::default()).because(Some(reason)))
    }
}

impl ClientContext for Reports {
    fn log(&self, _level: RDKafkaLogLevel, facility: &str, line: &str) {
        // What matters comes as an error, with a verdict; these lines are for whoever looks closer.
        debug!(target: "librdkafka", facility, line);
    }

    fn stats_raw(&self, _statistics: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        debug!(target: "librdkafka", %code, reason);
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        // That all brokers are down says less than why the last one is.
        if code != RDKafkaErrorCode::AllBrokersDown || trouble.is_none() {
            *trouble = Some((code, reason.to_owned()));
        }
    }
}

impl ConsumerContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        match result {
            Ok(_) => {}
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight), _)) => {
                self.purged.store(true, Ordering::Release);
            }
            Err((error, record)) => {
                let mut first = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert_with(|| {
                    KafkaFailure::of("send a record", record.topic(), error).about_returned(result)
                });
            }
        }
        self.reported.fetch_add(1, Ordering::Release);
        self.progress.notify_one();
    }
}
