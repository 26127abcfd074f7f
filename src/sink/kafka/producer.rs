//! A transactional, idempotent producer for one source of one sink.
//!
//! ```text
//! connect ──▶ begin ──▶ send … ──▶ commit ──▶ begin …
//!                          └─────▶ abort ───▶ begin …
//! ```
//!
//! `send` copies a record into librdkafka's queue and waits only while that is full; librdkafka's own threads do the rest,
//! and one more takes their reports. What blocks runs on tokio's blocking threads, in slices of a second, so that no
//! executor waits and whoever waits can be dropped. A future that was dropped half-way leaves the producer of no use.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ThreadedProducer};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::address::KafkaAddress;
use super::client::{Reports, SLICE};
use super::failure::{Flags, KafkaFailure, flags_of};
use super::oversize::Oversize;

/// How long `connect` may take. A transaction that a producer before us left open is aborted first.
const CONNECT_WITHIN: Duration = Duration::from_secs(30);

/// How long the brokers may take over the end of a transaction whose records are all delivered.
const END_WITHIN: Duration = Duration::from_secs(30);

/// How long to wait before librdkafka is told again to ask for a producer's id, and for how long it is told so often. By itself
/// it asks again after half a second, also if it only had no connection yet, or if the brokers were still ending what the
/// producer before had left open.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);
const ASK_OFTEN_FOR: Duration = Duration::from_secs(2);

/// How often a wait looks up, should a report have been missed.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// One record to send.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(&'a str, &'a [u8])],
    /// Since 1970. Unit: milliseconds.
    pub timestamp_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No transaction is open.
    Ready,
    Open,
    /// A call did not return or failed for good, or a record was refused.
    Unknown,
}

pub struct Producer {
    /// `None` only while it is dropped.
    native: Option<Native>,
    state: State,
    /// When the last transaction was begun.
    began: Instant,
    transaction_timeout: Duration,
    /// `message.max.bytes`.
    message_bytes_max: u64,
    /// A record that librdkafka did not take for its length.
    oversize: Mutex<Option<Oversize>>,
    /// Records sent, ever. Several may send at once.
    sent: AtomicU64,
}

type Native = Arc<ThreadedProducer<Reports>>;

/// How a call of librdkafka's ended that failed.
struct Ended {
    failure: KafkaFailure,
    /// The transaction is still there to be aborted, and was not committed.
    abortable: bool,
}

impl Producer {
    /// Takes the `transactional_id` over: a producer that had it is fenced, its open transaction aborted. Only then is
    /// what it committed all there is, so the checkpoint is read afterwards.
    pub async fn connect(address: &KafkaAddress, transactional_id: &str) -> Result<Producer, KafkaFailure> {
        Producer::connect_within(CONNECT_WITHIN, address, transactional_id).await
    }

    pub(super) async fn connect_within(
        within: Duration,
        address: &KafkaAddress,
        transactional_id: &str,
    ) -> Result<Producer, KafkaFailure> {
        let config = address.producer(transactional_id);
        let timeout_ms = address.number("transaction.timeout.ms").unwrap_or(60_000);
        let made = spawn_blocking(move || config.create_with_context(Reports::default())).await;
        let native = made.map_err(|_| lost("connect"))?.map_err(|err| KafkaFailure::of("connect", "", &err))?;
        let mut producer = Producer {
            native: Some(Arc::new(native)),
            state: State::Unknown,
            began: Instant::now(),
            transaction_timeout: Duration::from_millis(timeout_ms),
            message_bytes_max: address.number("message.max.bytes").unwrap_or(1_000_000),
            oversize: Mutex::default(),
            sent: AtomicU64::new(0),
        };
        let often_until = Instant::now() + ASK_OFTEN_FOR;
        let ask = move |native: &Native| {
            native.init_transactions(if Instant::now() < often_until { ASK_AGAIN_AFTER } else { SLICE })
        };
        let outcome = producer.in_slices("connect", within, ask).await;
        outcome.map_err(|ended| ended.failure)?;
        producer.state = State::Ready;
        Ok(producer)
    }

    /// Whether it can go on, after [`Producer::abort`] if a transaction is open; otherwise connect anew.
    pub fn is_usable(&self) -> bool {
        self.state != State::Unknown && self.native().client().fatal_error().is_none()
    }

    fn refused(&self) -> MutexGuard<'_, Option<Oversize>> {
        self.oversize.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message because of which the transaction can only be aborted, if it is for its length.
    pub(super) fn oversize(&self) -> Option<Oversize> {
        self.refused().clone().or_else(|| match self.reports().undelivered() {
            Some(KafkaFailure::TooLarge(oversize)) => Some(oversize),
            _ => None,
        })
    }

    pub async fn begin(&mut self) -> Result<(), KafkaFailure> {
        assert_eq!(self.state, State::Ready, "a transaction is begun when none is open");
        self.state = State::Unknown;
        self.began = Instant::now();
        // Those of an aborted transaction may still be under way.
        while self.reports().reported() < self.sent.load(Ordering::Relaxed) && self.began.elapsed() < END_WITHIN {
            let _ = timeout(LOOK_EVERY, self.reports().progress.notified()).await;
        }
        self.reports().forget();
        *self.refused() = None;
        let outcome = self.in_slices("begin a transaction", END_WITHIN, |native| native.begin_transaction()).await;
        outcome.map_err(|ended| ended.failure)?;
        self.state = State::Open;
        Ok(())
    }

    /// Copies a record into librdkafka's queue; waits for room there. Success says nothing about delivery.
    ///
    /// # Errors
    /// Of this record, or of one sent before. Nothing but [`Producer::abort`] is then left to do.
    pub async fn send(&self, record: &Record<'_>) -> Result<(), KafkaFailure> {
        assert_eq!(self.state, State::Open, "records are sent inside a transaction");
        loop {
            let Err((error, _)) = self.native().send(native_record(record)) else {
                self.sent.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            };
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => self.progress().await?,
                // Refused because of something that happened before.
                KafkaError::MessageProduction(RDKafkaErrorCode::State | RDKafkaErrorCode::Fatal) => {
                    self.check().await?;
                    return Err(self.judge("send a record", record.topic, &error));
                }
                _ => {
                    let failure = self.judge("send a record", record.topic, &error);
                    let failure = failure.about(record, self.message_bytes_max);
                    if let KafkaFailure::TooLarge(oversize) = &failure {
                        *self.refused() = Some(oversize.clone());
                    }
                    return Err(failure);
                }
            }
        }
    }

    /// Waits until every record is delivered, then commits. On success all of them are durable, and readers are
    /// shown all or none; the brokers mark them as committed right after they have answered.
    ///
    /// # Errors
    /// As long as [`Producer::is_usable`], nothing was committed, and [`Producer::abort`] is next. Else it is not known
    /// whether it was: connect anew and read the checkpoint.
    pub async fn commit(&mut self) -> Result<(), KafkaFailure> {
        assert_eq!(self.state, State::Open, "a transaction is committed that was begun");
        self.deliver().await?;
        self.state = State::Unknown;
        let outcome = self.in_slices("commit a transaction", END_WITHIN, commit).await;
        self.state = match &outcome {
            Ok(()) => State::Ready,
            Err(ended) if ended.abortable => State::Open,
            Err(_) => State::Unknown,
        };
        outcome.map_err(|ended| ended.failure)
    }

    /// Waits until every record is delivered.
    pub(super) async fn deliver(&self) -> Result<(), KafkaFailure> {
        while self.reports().reported() < self.sent.load(Ordering::Relaxed) {
            self.progress().await?;
        }
        self.delivered().await
    }

    /// Gives up every record since [`Producer::begin`]. After that the producer may be of no more use: see
    /// [`Producer::is_usable`].
    ///
    /// # Errors
    /// Also if the brokers were not told yet of a transaction that was just begun: they then know none to abort. Connect
    /// anew, which aborts as well.
    pub async fn abort(&mut self) -> Result<(), KafkaFailure> {
        if self.state == State::Ready {
            return Ok(());
        }
        self.state = State::Unknown;
        // A record that was refused leaves a gap in its partition's sequence, on which the next transaction would fail.
        let no_gap = self.reports().undelivered().is_none();
        let abort = |native: &Native| native.abort_transaction(SLICE);
        let outcome = self.in_slices("abort a transaction", END_WITHIN, abort).await;
        outcome.map_err(|ended| ended.failure)?;
        if no_gap {
            self.state = State::Ready;
        }
        Ok(())
    }

    /// Waits until a record is delivered or given up, and looks up now and then whether the transaction still stands.
    async fn progress(&self) -> Result<(), KafkaFailure> {
        if timeout(LOOK_EVERY, self.reports().progress.notified()).await.is_err() {
            self.check().await?;
        }
        self.delivered().await
    }

    /// Whether no record was given up yet.
    async fn delivered(&self) -> Result<(), KafkaFailure> {
        if let Some(failure) = self.reports().undelivered() {
            return Err(self.reports().explain(failure));
        }
        if self.reports().purged() {
            self.check().await?;
            return Err(KafkaFailure::Transient { message: "send records: they were given up".to_owned() });
        }
        Ok(())
    }

    /// Why the transaction can only be aborted, if so. librdkafka tells whoever asks for what is not possible in an open
    /// transaction, such as to begin one, and does nothing else.
    async fn check(&self) -> Result<(), KafkaFailure> {
        let native = Arc::clone(self.native());
        let asked = spawn_blocking(move || native.begin_transaction()).await.map_err(|_| lost("send records"))?;
        let Err(error) = asked else {
            return Err(KafkaFailure::Fatal { message: "librdkafka began a transaction inside another".to_owned() });
        };
        let flags = flags_of(&error);
        if flags.fatal || flags.requires_abort { Err(self.judge("send records", "", &error)) } else { Ok(()) }
    }

    /// Runs a blocking call again and again until it is through. Each goes on where the last one ran out of time.
    async fn in_slices(
        &self,
        what: &'static str,
        within: Duration,
        call: impl Fn(&Native) -> KafkaResult<()> + Copy + Send + 'static,
    ) -> Result<(), Ended> {
        let until = Instant::now() + within;
        loop {
            let native = Arc::clone(self.native());
            let Ok(outcome) = spawn_blocking(move || call(&native)).await else {
                return Err(Ended { failure: lost(what), abortable: false });
            };
            let Err(error) = outcome else { return Ok(()) };
            let flags = flags_of(&error);
            if let Some(failure) = self.reports().denied() {
                return Err(Ended { failure, abortable: false });
            }
            if flags.retriable && !flags.fatal && Instant::now() < until {
                // Not all that can be tried again took its time to fail.
                tokio::time::sleep(LOOK_EVERY / 10).await;
                continue;
            }
            let abortable = flags.requires_abort && !flags.fatal;
            return Err(Ended { failure: self.judge(what, "", &error), abortable });
        }
    }

    fn judge(&self, what: &str, topic: &str, error: &KafkaError) -> KafkaFailure {
        let failure = match self.native().client().fatal_error() {
            Some((code, _)) => KafkaFailure::of_code(what, topic, code, Flags { fatal: true, ..flags_of(error) }),
            None => KafkaFailure::of(what, topic, error),
        };
        // The brokers end a transaction that takes too long, and then say no more than that its producer is not the one
        // they know. If another one has taken over meanwhile, the checkpoint tells.
        if failure == KafkaFailure::Fenced && self.began.elapsed() >= self.transaction_timeout {
            let message =
                format!("the transaction took longer than transaction.timeout.ms, {:?}", self.transaction_timeout);
            return KafkaFailure::Transient { message };
        }
        self.reports().explain(failure)
    }

    fn native(&self) -> &Native {
        self.native.as_ref().expect("only a producer that is dropped has none")
    }

    fn reports(&self) -> &Reports {
        self.native().client().context()
    }
}

/// Blocks. The reports of all records were taken already, but librdkafka may still count the last of them, and rdkafka
/// would then wait for a tenth of a second.
fn commit(native: &Native) -> KafkaResult<()> {
    let until = Instant::now() + LOOK_EVERY;
    while native.in_flight_count() > 0 && Instant::now() < until {
        std::thread::yield_now();
    }
    native.commit_transaction(SLICE)
}

fn native_record<'a>(record: &Record<'a>) -> BaseRecord<'a, [u8], [u8]> {
    let headers = (!record.headers.is_empty()).then(|| {
        let headers = OwnedHeaders::new_with_capacity(record.headers.len());
        record.headers.iter().fold(headers, |headers, (key, value)| headers.insert(Header { key, value: Some(*value) }))
    });
    BaseRecord {
        topic: record.topic,
        partition: Some(record.partition),
        payload: record.value,
        key: record.key,
        timestamp: Some(record.timestamp_ms),
        headers,
        delivery_opaque: (),
    }
}

/// A blocking call did not come back: it panicked, or the runtime ends.
fn lost(what: &str) -> KafkaFailure {
    KafkaFailure::Transient { message: format!("{what}: the call was given up") }
}

impl Drop for Producer {
    fn drop(&mut self) {
        let (native, is_open) = (self.native.take(), self.state == State::Open);
        // Waits for brokers and threads.
        let end = move || {
            // Readers wait behind an open transaction; should this fail, until the next producer of the id.
            if let Some(native) = native.as_ref().filter(|_| is_open) {
                let _ = native.abort_transaction(SLICE);
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(end)),
            Err(_) => end(),
        }
    }
}
