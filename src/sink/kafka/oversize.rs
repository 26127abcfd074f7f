//! Messages that are refused for their length: by librdkafka, for `message.max.bytes` of ours, or by the brokers, for
//! `max.message.bytes` of the topic. Brokers measure whole batches, so that small messages may be refused for their company:
//! then batches are made shorter, and only who is refused alone is too long.

use std::fmt;

use rdkafka::message::{Headers as _, Message as _};
use rdkafka::producer::DeliveryResult;
use tracing::warn;

use super::cluster::Cluster;
use super::encode::{LSN_HEADER, ORDINAL_HEADER};
use super::failure::KafkaFailure;
use super::producer::Record;
use super::topics::message_bytes_max;
use super::{KafkaSink, apply_error};
use crate::sink::ApplyError;

/// A message that was refused for its length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Oversize {
    pub topic: String,
    /// Of its key, its value and its headers.
    pub bytes: usize,
    /// The commit of its transaction and its place there, as its headers have them.
    pub change: Option<(String, String)>,
    pub limit: Limit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// `message.max.bytes` of the sink.
    Sink(u64),
    /// `max.message.bytes` of the topic; `None` where it is not told.
    Topic(Option<u64>),
}

impl fmt::Display for Oversize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Oversize { topic, bytes, .. } = self;
        write!(f, "a message of {bytes} bytes for topic \"{topic}\"")?;
        if let Some((lsn, ordinal)) = &self.change {
            match ordinal.as_str() {
                COPIED => write!(f, ", of a row copied at {lsn},")?,
                ordinal => write!(f, ", of change {ordinal} at {lsn},")?,
            }
        }
        match self.limit {
            Limit::Sink(limit) => write!(
                f,
                " is longer than message.max.bytes, {limit} (raise that in the sink's options and max.message.bytes of the topic"
            )?,
            Limit::Topic(Some(limit)) => {
                write!(f, " is longer than the topic takes, {limit} (raise its max.message.bytes")?;
            }
            Limit::Topic(None) => write!(f, " is longer than the topic takes (raise its max.message.bytes")?,
        }
        write!(f, ", or leave large columns out with \"exclude\")")
    }
}

impl Oversize {
    /// Of a code alone, when no message is known.
    pub(super) fn of_topic(topic: &str) -> Oversize {
        Oversize { topic: topic.to_owned(), bytes: 0, change: None, limit: Limit::Topic(None) }
    }

    fn of_parts<'h>(
        topic: &str,
        (key, value): (Option<&[u8]>, Option<&[u8]>),
        headers: impl Iterator<Item = (&'h str, &'h [u8])>,
    ) -> Oversize {
        let mut oversize = Oversize::of_topic(topic);
        oversize.bytes = key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len);
        let (mut lsn, mut ordinal) = (None, None);
        for (name, value) in headers {
            oversize.bytes += name.len() + value.len();
            match name {
                LSN_HEADER => lsn = Some(String::from_utf8_lossy(value).into_owned()),
                ORDINAL_HEADER => ordinal = Some(String::from_utf8_lossy(value).into_owned()),
                _ => {}
            }
        }
        oversize.change = lsn.zip(ordinal);
        oversize
    }
}

impl KafkaFailure {
    /// With what is known of the message that librdkafka did not take.
    pub(super) fn about(self, record: &Record<'_>, limit: u64) -> KafkaFailure {
        let KafkaFailure::TooLarge(_) = self else { return self };
        let headers = record.headers.iter().copied();
        let oversize = Oversize::of_parts(record.topic, (record.key, record.value), headers);
        KafkaFailure::TooLarge(Oversize { limit: Limit::Sink(limit), ..oversize })
    }

    /// With what is known of the message that came back.
    pub(super) fn about_returned(self, returned: &DeliveryResult<'_>) -> KafkaFailure {
        let (KafkaFailure::TooLarge(_), Err((_, record))) = (&self, returned) else { return self };
        let headers = record.headers().map(|headers| headers.iter()).into_iter().flatten();
        let headers = headers.map(|header| (header.key, header.value.unwrap_or_default()));
        KafkaFailure::TooLarge(Oversize::of_parts(record.topic(), (record.key(), record.payload()), headers))
    }
}

/// Rows of a copy stand before every change.
const COPIED: &str = "0";

/// Of a batch, for what stands around its messages.
const BATCH_SHARE: u64 = 10;

impl Cluster {
    /// What a refusal comes to: the message with its topic's limit, or, after batches as long as the topic does not take, that
    /// batches are shorter from the next producer on.
    pub(super) async fn judge(&self, failure: KafkaFailure) -> KafkaFailure {
        let KafkaFailure::TooLarge(oversize @ Oversize { limit: Limit::Topic(_), .. }) = failure else {
            return failure;
        };
        let limit = message_bytes_max(self.address(), &oversize.topic).await;
        // Where the limit is not told, every message goes alone.
        let batch_bytes = limit.map_or(1, |limit| (limit - limit / BATCH_SHARE).max(1));
        if self.shorten_batches(batch_bytes) {
            let topic = &oversize.topic;
            warn!(topic, batch_bytes, "a batch was longer than the topic takes, shorter ones from now on");
            let message =
                format!("a batch was longer than topic \"{topic}\" takes; {batch_bytes} bytes at most from now on");
            return KafkaFailure::Transient { message };
        }
        KafkaFailure::TooLarge(Oversize { limit: Limit::Topic(limit), ..oversize })
    }
}

impl KafkaSink {
    /// What was done in the open transaction, or that a message of it was refused for its length, whatever was being done when
    /// that came out.
    pub(super) async fn judged<T>(&mut self, outcome: Result<T, ApplyError>) -> Result<T, ApplyError> {
        match (outcome, self.producer.oversize()) {
            (Err(_), Some(oversize)) => Err(self.refused(oversize).await),
            (outcome, _) => outcome,
        }
    }

    /// What it means for the batch that a message was not taken, whose table need not be the one that was being sent. The
    /// transaction is given up: who writes a table's state would wait for its end.
    async fn refused(&mut self, oversize: Oversize) -> ApplyError {
        // A producer that cannot even abort is connected anew, which aborts as well.
        let _ = self.producer.abort().await;
        let failure = self.cluster.judge(KafkaFailure::TooLarge(oversize)).await;
        let KafkaFailure::TooLarge(oversize) = &failure else { return apply_error(&failure) };
        match self.topics.iter().position(|topic| *topic == oversize.topic) {
            Some(plan_index) => ApplyError::Table { plan_index, code: None, message: oversize.to_string() },
            None => apply_error(&failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_is_told_without_its_values() {
        let headers: &[(&str, &[u8])] = &[("lsn", b"0/16B3748"), ("ordinal", b"7")];
        let (key, value) = (Some(&b"s3cret"[..]), Some(&[b'x'; 2_000][..]));
        let record = Record { topic: "src.public.notes", partition: 0, key, value, headers, timestamp_ms: 0 };
        let refused = KafkaFailure::TooLarge(Oversize::of_topic("src.public.notes")).about(&record, 1_000);
        assert_eq!(
            refused.to_string(),
            "a message of 2026 bytes for topic \"src.public.notes\", of change 7 at 0/16B3748, is longer than message.max.bytes, \
             1000 (raise that in the sink's options and max.message.bytes of the topic, or leave large columns out with \
             \"exclude\")"
        );
        assert!(!format!("{refused:?}").contains("s3cret"));
        let other = KafkaFailure::Fenced.about(&record, 1_000);
        assert_eq!(other, KafkaFailure::Fenced);
    }
}
