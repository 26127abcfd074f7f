//! The stream: one thread that owns the replication connection, fills the journal, and keeps the server informed.
//!
//! Back-pressure means that it stops reading, never that it stops talking: status messages go out on its own clock,
//! whatever the sinks do. It confirms nothing but what a [`Confirm`] says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::checkpoint::UnixMicros;
use crate::frame::{Boundary, FrameError};
use crate::journal::{Block, Journal, JournalError};
use crate::ledger::{Confirm, JournalSynced, Ledger};
use crate::lsn::Lsn;
use crate::wire::{Gulp, ReplicationConnection, Reply, WireError};

/// Longest wait for bytes before the clock is looked at.
const READ_TIMEOUT: Duration = Duration::from_millis(100);
/// A status message is sent at least this often: two may be lost before the usual `wal_sender_timeout` of 60 s.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// A new confirmation is passed on after this at the latest.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time between two answers to keepalives: a server that shuts down asks as fast as it is answered.
const REPLY_INTERVAL: Duration = Duration::from_millis(50);
/// Silence after which the server is asked for a sign of life.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// Silence after which the connection counts as dead, although nobody closed it.
const DEAD_AFTER: Duration = Duration::from_secs(40);
/// Keepalives that ask for a reply, in a row and without news between them, that mean: the source is shutting down.
const DRAINING_KEEPALIVES: u32 = 20;
/// How long a source that shuts down is made to wait for the sinks to hold what it sent.
const DRAIN_DEADLINE: Duration = Duration::from_secs(4);
/// A pause before the next read while small packets keep coming, so that they are read together.
const NAP: Duration = Duration::from_micros(300);
/// A read this large needs no pause before the next.
const LARGE_GULP: usize = 64 * 1024;
/// Largest block: small enough that a reader's batch can be cut finely.
const BLOCK_BYTES: usize = 256 * 1024;
/// With `ack = "journal"`: how often the journal is synced while it grows.
const SYNC_INTERVAL: Duration = Duration::from_millis(200);

/// A read this large is a backlog; the next ones are put together with it before they are handed on.
const GATHER_GULP: usize = 8 * 1024;
/// The longest that bytes wait for more of a backlog.
const GATHER_MAX: Duration = Duration::from_millis(3);

/// Why the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the replication stream holds what is no frame")]
    Frame(#[from] FrameError),
    #[error("no sign of life from the source for {seconds} s")]
    Silent { seconds: u64 },
    /// The source shuts down and the sinks are not up to date: it must not be kept waiting.
    #[error("the source is shutting down")]
    Draining,
}

impl StreamError {
    /// Connecting again may help.
    pub fn passes(&self) -> bool {
        match self {
            StreamError::Wire(WireError::Io(_) | WireError::Ended)
            | StreamError::Silent { .. }
            | StreamError::Draining => true,
            StreamError::Wire(WireError::Server { sqlstate, .. }) => {
                crate::retry::by_sqlstate(sqlstate) == crate::retry::Retry::Backoff
            }
            StreamError::Wire(_) | StreamError::Journal(_) | StreamError::Frame(_) => false,
        }
    }
}

/// Who decides what is confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfirmBy {
    /// The sinks, through the ledger.
    Sinks,
    /// The journal's fsync.
    Journal,
}

/// What the stream and the rest of the daemon tell each other.
#[derive(Debug)]
pub struct StreamShared {
    confirm: AtomicU64,
    stop: AtomicBool,
    received: AtomicU64,
    confirmed: AtomicU64,
    full: AtomicBool,
    draining: AtomicBool,
    source_leaves: AtomicBool,
}

impl StreamShared {
    /// Nothing is confirmed yet but what was before.
    pub fn new(confirmed: Confirm) -> Arc<Self> {
        Arc::new(StreamShared {
            confirm: AtomicU64::new(confirmed.lsn().0),
            stop: AtomicBool::new(false),
            received: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
            full: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            source_leaves: AtomicBool::new(false),
        })
    }

    /// Lets the source be told. Never goes back.
    pub fn confirm(&self, confirm: Confirm) {
        self.confirm.fetch_max(confirm.lsn().0, Ordering::Relaxed);
    }

    /// Asks the stream to send what is confirmed and end.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Everything that ends here or before is in the journal.
    pub fn received(&self) -> Lsn {
        Lsn(self.received.load(Ordering::Relaxed))
    }

    /// What the source was last told.
    pub fn confirmed(&self) -> Lsn {
        Lsn(self.confirmed.load(Ordering::Relaxed))
    }

    /// The source is shutting down and waits until everything it sent is confirmed.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Another session was told that the source is shutting down. A stream that does not read cannot hear of it.
    pub fn source_leaves(&self) {
        self.source_leaves.store(true, Ordering::Relaxed);
    }

    /// The journal is at its cap and the stream waits for the sinks.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }
}

/// The running stream.
pub struct Stream {
    connection: ReplicationConnection,
    journal: Journal,
    shared: Arc<StreamShared>,
    confirm_by: ConfirmBy,
    boundary: Boundary,
    clock: Clock,
    /// Keepalives in a row that asked for a reply and brought no news.
    asked: u32,
    draining_since: Option<Instant>,
    synced: Lsn,
    observer: Box<dyn StreamObserver>,
}

/// Told what arrives, for metrics. Called on the stream's thread once a block.
pub trait StreamObserver: Send {
    /// A block of this many bytes was added; the stream now reaches `end_lsn`, and the last transaction that ended in it
    /// was committed at `commit_ts`.
    fn received(&mut self, bytes: usize, end_lsn: Lsn, commit_ts: Option<UnixMicros>);
}

struct Clock {
    status: Instant,
    reply: Instant,
    heard: Instant,
    probed: Instant,
    synced: Instant,
    read: Instant,
}

impl Stream {
    /// Takes over a connection on which START_REPLICATION at `start` succeeded.
    ///
    /// # Errors
    /// The journal cannot begin there.
    pub fn new(
        connection: ReplicationConnection,
        journal: Journal,
        shared: Arc<StreamShared>,
        confirm_by: ConfirmBy,
        start: Lsn,
        observer: Box<dyn StreamObserver>,
    ) -> Result<Stream, StreamError> {
        journal.begin(start)?;
        shared.source_leaves.store(false, Ordering::Relaxed);
        shared.received.fetch_max(start.0, Ordering::Relaxed);
        let now = Instant::now();
        let clock = Clock { status: now, reply: now, heard: now, probed: now, synced: now, read: now };
        let boundary = Boundary::new(start);
        Ok(Stream {
            connection,
            journal,
            shared,
            confirm_by,
            boundary,
            clock,
            asked: 0,
            draining_since: None,
            synced: start,
            observer,
        })
    }

    /// Runs the stream on a thread of its own; the receiver gets why it ended, `Ok` after [`StreamShared::stop`].
    pub fn spawn(self, name: &str) -> std::io::Result<tokio::sync::oneshot::Receiver<Result<(), StreamError>>> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        thread::Builder::new().name(format!("stream {name}")).spawn(move || {
            // The receiver is gone only when the daemon is on its way out.
            let _ = sender.send(self.run());
        })?;
        Ok(receiver)
    }

    fn run(mut self) -> Result<(), StreamError> {
        self.connection.set_timeout(Some(READ_TIMEOUT))?;
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return self.finish();
            }
            let full = !self.journal.has_room();
            self.shared.full.store(full, Ordering::Relaxed);
            if full && self.shared.source_leaves.load(Ordering::Relaxed) {
                self.send_status(Reply::NotNeeded)?;
                return Err(StreamError::Draining);
            }
            if full {
                thread::sleep(READ_TIMEOUT);
                // Nobody listens, so silence says nothing.
                self.clock.heard = Instant::now();
            } else {
                self.read()?;
            }
            self.keep_in_touch()?;
        }
    }

    /// Reads what is there and hands it on.
    fn read(&mut self) -> Result<(), StreamError> {
        let before = Instant::now();
        let gulp = self.connection.gulp()?;
        let now = Instant::now();
        let Gulp::Bytes(count) = gulp else { return Ok(()) };
        self.clock.heard = now;
        if count >= GATHER_GULP {
            self.gather(now)?;
        }
        self.hand_on()?;
        // Bytes that were there at once mean that more are coming; a short pause lets them come together.
        let is_busy = now - before < Duration::from_millis(1) || now - self.clock.read < Duration::from_millis(1);
        if is_busy && count < LARGE_GULP {
            thread::sleep(NAP);
        }
        self.clock.read = Instant::now();
        Ok(())
    }

    /// Lets a stream that comes fast pile up a little: whoever waits for blocks is woken for many changes at once.
    fn gather(&mut self, since: Instant) -> Result<(), StreamError> {
        self.connection.set_blocking(false)?;
        while self.connection.pending().len() < BLOCK_BYTES / 2 && since.elapsed() < GATHER_MAX {
            thread::sleep(NAP);
            // A lost connection is for the next read to tell: what the server said last is still to be handed on.
            match self.connection.gulp() {
                Ok(Gulp::Bytes(count)) if count >= GATHER_GULP => {}
                Ok(Gulp::Bytes(_) | Gulp::Nothing) | Err(_) => break,
            }
        }
        self.clock.heard = Instant::now();
        Ok(self.connection.set_blocking(true)?)
    }

    /// Moves whole frames from the connection's buffer to the journal.
    fn hand_on(&mut self) -> Result<(), StreamError> {
        loop {
            let start = self.boundary;
            let (scan, walked) = self.boundary.walk(self.connection.pending(), BLOCK_BYTES);
            if scan.bytes > 0 {
                let bytes = self.connection.take(scan.bytes);
                let block = Block {
                    bytes,
                    start,
                    end: self.boundary,
                    has_relation: scan.has_relation,
                    received_at: UnixMicros::now(),
                };
                self.append(block)?;
                self.observer.received(scan.bytes, self.boundary.end_lsn, scan.commit_ts);
                self.shared.received.store(self.boundary.end_lsn.0, Ordering::Relaxed);
                if scan.reply_requested {
                    self.asked(start.end_lsn < self.boundary.end_lsn || scan.frames > scan.keepalives)?;
                }
            }
            match walked {
                Ok(()) if scan.bytes == 0 => return Ok(()),
                Ok(()) => {}
                Err(FrameError::UnexpectedKind(_)) => self.connection.handle_other_message()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A full disk is waited out, as a full journal is: the slot holds the WAL meanwhile.
    fn append(&mut self, block: Block) -> Result<(), StreamError> {
        loop {
            match self.journal.append(block.clone()) {
                Ok(()) => return Ok(()),
                Err(error @ JournalError::NoSpace { .. }) => {
                    if !self.shared.full.swap(true, Ordering::Relaxed) {
                        tracing::error!(%error, "journal waits for space");
                    }
                    if self.shared.stop.load(Ordering::Relaxed) {
                        return Err(error.into());
                    }
                    thread::sleep(READ_TIMEOUT);
                    self.clock.heard = Instant::now();
                    self.keep_in_touch()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The server asks for a status message.
    fn asked(&mut self, has_news: bool) -> Result<(), StreamError> {
        self.asked = if has_news { 0 } else { self.asked + 1 };
        if self.asked == 0 {
            self.draining_since = None;
            self.shared.draining.store(false, Ordering::Relaxed);
        } else if self.asked >= DRAINING_KEEPALIVES && self.draining_since.is_none() {
            tracing::info!("source is shutting down");
            self.draining_since = Some(Instant::now());
            self.shared.draining.store(true, Ordering::Relaxed);
        }
        let since = self.clock.reply.elapsed();
        if since < REPLY_INTERVAL {
            thread::sleep(REPLY_INTERVAL - since);
        }
        self.clock.reply = Instant::now();
        self.send_status(Reply::NotNeeded)
    }

    /// Everything that goes by the clock.
    fn keep_in_touch(&mut self) -> Result<(), StreamError> {
        let now = Instant::now();
        if self.confirm_by == ConfirmBy::Journal && now - self.clock.synced >= SYNC_INTERVAL {
            self.sync()?;
        }
        if self.draining_since.is_some_and(|since| now - since >= DRAIN_DEADLINE) {
            self.send_status(Reply::NotNeeded)?;
            return Err(StreamError::Draining);
        }
        let confirm = Lsn(self.shared.confirm.load(Ordering::Relaxed));
        let since_status = now - self.clock.status;
        let silence = now - self.clock.heard;
        if silence >= DEAD_AFTER {
            return Err(StreamError::Silent { seconds: silence.as_secs() });
        }
        if silence >= PROBE_AFTER && now - self.clock.probed >= PROBE_AFTER {
            self.clock.probed = now;
            return self.send_status(Reply::Requested);
        }
        let has_news = confirm > self.shared.confirmed() && since_status >= CONFIRM_INTERVAL;
        if has_news || since_status >= STATUS_INTERVAL {
            return self.send_status(Reply::NotNeeded);
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StreamError> {
        self.clock.synced = Instant::now();
        if self.boundary.end_lsn > self.synced {
            self.synced = self.journal.sync()?;
            self.shared.confirm(Ledger::journal_rules(JournalSynced::after_sync(self.synced)));
        }
        Ok(())
    }

    fn send_status(&mut self, reply: Reply) -> Result<(), StreamError> {
        let confirm = Lsn(self.shared.confirm.load(Ordering::Relaxed));
        // H03: the server takes any position, even one it has not reached, and then leaves out what comes before it.
        assert!(
            confirm <= self.boundary.end_lsn.max(self.synced),
            "{confirm} would be confirmed, but only {} was received",
            self.boundary.end_lsn
        );
        self.connection.send_status(confirm, reply)?;
        self.shared.confirmed.store(confirm.0, Ordering::Relaxed);
        self.clock.status = Instant::now();
        Ok(())
    }

    /// Sends the last confirmation and ends the stream in good order.
    fn finish(mut self) -> Result<(), StreamError> {
        if self.confirm_by == ConfirmBy::Journal {
            self.sync()?;
        }
        self.send_status(Reply::NotNeeded)?;
        self.connection.finish()?;
        Ok(())
    }
}
