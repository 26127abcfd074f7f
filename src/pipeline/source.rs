//! One source: takes it over, streams it into its journal, and keeps its appliers, copies and heartbeat going.

mod lookout;
mod overtaken;
pub(super) mod slot;
pub(super) mod takeover;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::applier::{Applier, SourceShared, Tables};
use super::copy::{self, CopyJob};
use super::link::SinkLink;
use super::{Context, End, Observed, drift};
use lookout::Received;
use overtaken::Epochs;
use takeover::{Started, Stuck, Taken, TakenSink};

use crate::checkpoint::SourceIdentity;
use crate::config::{Ack, SourceConfig};
use crate::diagnostic::chain;
use crate::journal::{Hold, Journal, JournalError, Options};
use crate::ledger::{Ledger, Unread};
use crate::lsn::Lsn;
use crate::postgres::url::PgUrl;
use crate::retry::Backoff;
use crate::sink::state::{StoredTable, TableState};
use crate::source::stream::{ConfirmBy, Stream, StreamError, StreamShared};
use crate::telemetry::handles::{SourceMetrics, Stage};
use crate::telemetry::status::SourceState;
use crate::verdict::{Halt, SinkState, Sinks};
use crate::wire::{ReplicationConnection, WireError};

/// Wait of a standby before it looks again.
const STANDBY_PAUSE: Duration = Duration::from_secs(1);
/// How often slot and journal are looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);
/// How long a stop waits for batches under way.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// One `[source.NAME]` with its sinks.
pub struct Source {
    pub name: String,
    pub config: SourceConfig,
    pub url: PgUrl,
    pub links: Vec<Arc<SinkLink>>,
    pub observed: Vec<Arc<Observed>>,
    /// Sinks that have tables of it and did not answer when the run was prepared.
    pub absent: Vec<String>,
    pub context: Arc<Context>,
}

impl Source {
    /// Runs until stopped, halted or failed.
    pub async fn run(self) -> End {
        let end = self.run_to_end().await;
        if let End::Halt(halt) = &end {
            let state = SourceState::Halted { reason: halt.code().to_owned(), hint: halt.hint().to_owned() };
            self.context.board.source_state(&self.name, state);
        }
        end
    }

    async fn run_to_end(&self) -> End {
        let mut stop = self.context.stop.clone();
        let metrics = self.context.metrics.source(&self.name);
        let journal = match self.open_journal().await {
            Ok(journal) => journal,
            Err(end) => return end,
        };
        let taken = match self.take_over(&journal, &mut stop).await {
            Ok(taken) => taken,
            Err(end) => return end,
        };
        self.stream(journal, taken, metrics, stop).await
    }

    /// Opens the journal; a standby on the same directory waits until the other is gone.
    async fn open_journal(&self) -> Result<Journal, End> {
        let mut stop = self.context.stop.clone();
        let options = Options {
            dir: self.context.config.data_dir.join(&self.name),
            retention: self.config.journal.retention,
            max_bytes: self.config.journal.max_bytes,
            segment_bytes: self.config.journal.segment_bytes,
            memory_bytes: self.config.journal.memory_bytes,
            fsync: self.config.ack == Ack::Journal,
            system_identifier: None,
        };
        loop {
            match Journal::open(options.clone()) {
                Ok(journal) => return Ok(journal),
                Err(JournalError::Locked { .. }) => {
                    self.context.board.source_state(&self.name, SourceState::Standby);
                    info!(source = %self.name, "another daemon uses the journal, standing by");
                    if pause(STANDBY_PAUSE, &mut stop).await {
                        return Err(End::Stopped);
                    }
                }
                Err(error) => return Err(End::Failed(chain(&error))),
            }
        }
    }

    /// The main part of a run: everything is taken over and the stream is live.
    async fn stream(&self, journal: Journal, taken: Taken, metrics: SourceMetrics, stop: watch::Receiver<bool>) -> End {
        let mut ledger = Ledger::new(taken.sinks.iter().map(|sink| &sink.durable), &taken.unread);
        let stream = StreamShared::new(ledger.confirm());
        let confirm_by = if self.config.ack == Ack::Journal { ConfirmBy::Journal } else { ConfirmBy::Sinks };
        let shared = Arc::new(SourceShared {
            journal,
            stream,
            ledger: Mutex::new(ledger),
            confirms: confirm_by == ConfirmBy::Sinks,
        });
        // Until every applier and copy has its own.
        let everything = shared.journal.hold("start");
        let kept: Vec<_> = taken.unread.iter().map(|unread| self.keep_for(unread, &shared.journal)).collect();
        let mut ended = match self.spawn_stream(&shared, taken.connection, confirm_by, taken.at, &metrics) {
            Ok(ended) => ended,
            Err(end) => return end,
        };
        let (stop_parts, parts_stop) = watch::channel(false);
        let mut parts = JoinSet::new();
        let epochs: Vec<_> = taken.sinks.iter().map(|sink| (sink.index, sink.epoch)).collect();
        for sink in taken.sinks {
            let index = sink.index;
            self.spawn_sink(sink, &shared, &parts_stop, &mut parts);
            let (link, copies) = (self.links[index].clone(), self.observed[index].copies.clone());
            let (slot, publication) = (self.config.slot.clone(), self.config.publication.clone());
            let url = self.url.clone();
            let watch = drift::watch::Watch { url, slot, publication, link, copies, stop: parts_stop.clone() };
            parts.spawn(async move { watch.run().await.map_or(End::Stopped, End::Drift) });
        }
        for index in taken.lost {
            parts.spawn(takeover::back(self.links[index].clone(), parts_stop.clone()));
        }
        drop(everything);
        info!(source = %self.name, at = %taken.at, "streaming");
        self.context.board.source_state(&self.name, SourceState::Streaming);
        let watcher = tokio::spawn(self.watch_source(shared.clone(), metrics.clone(), stop.clone()));
        let end =
            self.supervise(&mut ended, &mut parts, &shared, confirm_by, &metrics, &epochs, taken.identity, stop).await;
        watcher.abort();
        // Whoever still applies may finish; then the source hears the last confirmation.
        let _ = stop_parts.send(true);
        let finished = async { while parts.join_next().await.is_some() {} };
        let deadline = if matches!(end, End::Stopped | End::Drift(_) | End::Back) {
            STOP_DEADLINE
        } else {
            Duration::from_secs(1)
        };
        let _ = tokio::time::timeout(deadline, finished).await;
        shared.stream.stop();
        // It may have ended before all this, and told so.
        if !ended.is_terminated() {
            let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
        }
        drop(kept);
        end
    }

    /// Keeps in the journal what a sink may need that was not read. Where the slot waits for the sinks, the sink holds what was
    /// confirmed (at worst a table of it that still had to catch up is copied anew); where it waits for the journal alone, the
    /// sink may stand anywhere.
    fn keep_for(&self, unread: &Unread, journal: &Journal) -> Hold {
        let hold = journal.hold(format!("{}, not read yet", unread.sink()));
        match self.config.ack {
            Ack::Sink => hold.set(unread.confirmed()),
            Ack::Journal => {}
        }
        self.context.metrics.pair(&self.name, unread.sink()).progress.at_least(unread.confirmed());
        hold
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one run, each used once")]
    async fn supervise(
        &self,
        ended: &mut oneshot::Receiver<Result<(), StreamError>>,
        parts: &mut JoinSet<End>,
        shared: &Arc<SourceShared>,
        confirm_by: ConfirmBy,
        metrics: &SourceMetrics,
        epochs: &Epochs,
        identity: SourceIdentity,
        mut stop: watch::Receiver<bool>,
    ) -> End {
        loop {
            tokio::select! {
                outcome = &mut *ended => {
                    let error = match outcome {
                        Ok(Ok(())) => return End::Stopped,
                        Ok(Err(error)) => error,
                        Err(_) => return End::Failed("the stream's thread panicked".to_owned()),
                    };
                    let message = chain(&error);
                    self.context.board.error(Stage::Stream, "ended", &self.name, &message);
                    if let Some(end) = self.stream_error(&error) {
                        return end;
                    }
                    warn!(source = %self.name, error = %message, "stream ended, connecting again");
                    metrics.reconnects.inc();
                    self.context.board.source_state(&self.name, SourceState::Connecting);
                    // Somebody else may stream for good, having taken over: then a sink tells.
                    let again = tokio::select! {
                        again = self.reconnect(shared, confirm_by, metrics, epochs, &identity, &mut stop) => again,
                        end = self.part_ended(parts) => return end,
                    };
                    match again {
                        Ok(again) => *ended = again,
                        Err(end) => return end,
                    }
                }
                end = self.part_ended(parts) => return end,
                _ = stop.changed() => return End::Stopped,
            }
        }
    }

    /// Waits until a part ends that was not done or told to stop.
    async fn part_ended(&self, parts: &mut JoinSet<End>) -> End {
        while let Some(part) = parts.join_next().await {
            match part {
                Ok(End::Stopped) => {}
                Ok(end) => return end,
                Err(error) => return End::Failed(format!("a part of source \"{}\" panicked: {error}", self.name)),
            }
        }
        std::future::pending().await
    }

    /// What a stream's end means for the run; `None` if connecting again may help.
    fn stream_error(&self, error: &StreamError) -> Option<End> {
        match error {
            StreamError::Wire(WireError::Warning { .. }) => Some(End::Halt(Halt::PublicationGone {
                publication: self.config.publication.clone(),
                slot: self.config.slot.clone(),
            })),
            // A slot or publication that is gone is looked at again by the start-up decision, which names it.
            StreamError::Wire(WireError::Server { sqlstate, .. }) if matches!(sqlstate.as_str(), "42704" | "55000") => {
                None
            }
            error if error.passes() => None,
            error => Some(End::Failed(chain(error))),
        }
    }

    /// Starts the stream again at the journal's end, by the same decision as at start.
    async fn reconnect(
        &self,
        shared: &Arc<SourceShared>,
        confirm_by: ConfirmBy,
        metrics: &SourceMetrics,
        epochs: &Epochs,
        identity: &SourceIdentity,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<oneshot::Receiver<Result<(), StreamError>>, End> {
        let epochs_sum: i64 = epochs.iter().map(|(_, epoch)| epoch).sum();
        let mut backoff = Backoff::new(u64::from(std::process::id()) ^ epochs_sum.unsigned_abs());
        loop {
            let wait = backoff.next().unwrap_or_default();
            if pause(wait, stop).await {
                return Err(End::Stopped);
            }
            let (durable, unread) = {
                let ledger = shared.ledger.lock().unwrap_or_else(PoisonError::into_inner);
                (ledger.durable(), ledger.unread())
            };
            let states: Vec<_> = durable
                .into_iter()
                .map(|(name, checkpoint)| SinkState {
                    name,
                    checkpoint: Some(checkpoint),
                    identity: Some(identity.clone()),
                    tables_known: true,
                })
                .collect();
            let sinks = Sinks { read: &states, unread: &unread };
            let started = self.start_stream(&shared.journal, sinks).await;
            match self.go_on(started, epochs).await {
                Ok(Started { connection, at, .. }) => {
                    let ended = self.spawn_stream(shared, connection, confirm_by, at, metrics)?;
                    info!(source = %self.name, %at, "streaming again");
                    self.context.board.source_state(&self.name, SourceState::Streaming);
                    return Ok(ended);
                }
                Err(Stuck::End(end)) => return Err(end),
                Err(Stuck::StandBy) => {}
                Err(Stuck::Wait(stage, message)) => {
                    self.context.board.error(stage, "reconnect", &self.name, &message);
                    warn!(source = %self.name, error = %message, "not connected yet");
                }
            }
        }
    }

    fn spawn_stream(
        &self,
        shared: &SourceShared,
        connection: ReplicationConnection,
        confirm_by: ConfirmBy,
        at: Lsn,
        metrics: &SourceMetrics,
    ) -> Result<oneshot::Receiver<Result<(), StreamError>>, End> {
        let absent = self.absent.iter().map(|sink| self.context.metrics.pair(&self.name, sink));
        let pairs = self.observed.iter().map(|observed| observed.pair.clone()).chain(absent).collect();
        let observer = Box::new(Received { metrics: metrics.clone(), pairs });
        let failed = |message: String| End::Failed(message);
        let stream = Stream::new(connection, shared.journal.clone(), shared.stream.clone(), confirm_by, at, observer)
            .map_err(|error| failed(chain(&error)))?;
        stream.spawn(&self.name).map_err(|error| failed(error.to_string()))
    }

    fn spawn_sink(
        &self,
        sink: TakenSink,
        shared: &Arc<SourceShared>,
        stop: &watch::Receiver<bool>,
        parts: &mut JoinSet<End>,
    ) {
        let TakenSink { index, epoch, tables, session, .. } = sink;
        let link = self.links[index].clone();
        let observed = self.observed[index].clone();
        // Each message is a table's way into the stream; there are few, so the bound is never met in practice.
        let (sender, receiver) = mpsc::channel::<Tables>(64);
        let missing = |(plan_index, stored): (usize, &Option<StoredTable>)| match stored {
            // What came since the copy is lost with the journal.
            Some(stored) if stored.state == TableState::Catchup && !stored.joined => {
                shared.journal.reader(stored.lsn).err().map(|_| plan_index)
            }
            Some(stored) if !matches!(stored.state, TableState::Pending | TableState::Copying) => None,
            _ => Some(plan_index),
        };
        let wanted: Vec<_> = tables.by_plan.iter().enumerate().filter_map(missing).collect();
        // Taken before the applier moves on, so that the journal keeps what the copied tables will need.
        let hold: Hold = shared.journal.hold(format!("copy {}", link.name));
        let applier = Applier::new(link.clone(), shared.clone(), observed.clone(), receiver, stop.clone(), epoch);
        parts.spawn(applier.going_on_by(session).run());
        if wanted.is_empty() {
            drop(hold);
            return;
        }
        for &plan_index in &wanted {
            observed.table_state(plan_index, TableState::Pending);
        }
        let job = CopyJob {
            link,
            observed,
            url: self.url.clone(),
            connections: self.config.snapshot_connections,
            slot: self.config.slot.clone(),
            epoch,
            plans: wanted,
            shared: shared.clone(),
            stop: stop.clone(),
        };
        parts.spawn(copy::run(job, hold, sender));
    }
}

/// Waits; true if told to stop meanwhile.
pub(super) async fn pause(duration: Duration, stop: &mut watch::Receiver<bool>) -> bool {
    if *stop.borrow() {
        return true;
    }
    tokio::select! {
        () = tokio::time::sleep(duration) => false,
        _ = stop.changed() => *stop.borrow(),
    }
}
