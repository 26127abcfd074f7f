//! One source: takes it over, streams it into its journal, and keeps its appliers, copies and heartbeat going.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tracing::{info, warn};

use super::applier::{Applier, SourceShared, Tables};
use super::copy::{self, CopyJob};
use super::link::{SinkLink, SinkTables, chain};
use super::{Context, End, Observed};
use crate::checkpoint::{SourceIdentity, UnixMicros};
use crate::config::{Ack, SourceConfig};
use crate::journal::{Hold, Journal, JournalError, Options};
use crate::ledger::Ledger;
use crate::lsn::Lsn;
use crate::postgres::connect::connect;
use crate::postgres::error::describe;
use crate::postgres::url::PgUrl;
use crate::retry::Backoff;
use crate::sink::Durable;
use crate::sink::postgres::state::{self, StoredCheckpoint, TableState};
use crate::source::history::read_history;
use crate::source::probe::{SourceProbe, probe};
use crate::source::stream::{ConfirmBy, Stream, StreamError, StreamObserver, StreamShared};
use crate::telemetry::handles::{PairMetrics, SourceMetrics, Stage};
use crate::telemetry::status::SourceState;
use crate::verdict::{self, Halt, JournalRange, SinkState, Verdict};
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
    pub context: Arc<Context>,
}

/// A sink as it was read at the start.
struct SinkView {
    client: Client,
    stored: Option<StoredCheckpoint>,
    tables: SinkTables,
}

/// What taking over came to.
struct Taken {
    connection: ReplicationConnection,
    at: Lsn,
    epochs: Vec<i64>,
    durable: Vec<Durable>,
    identity: SourceIdentity,
    tables: Vec<SinkTables>,
}

/// A step of the start that did not lead on.
enum Stuck {
    /// For the moment: say so, wait, look again.
    Wait(Stage, String),
    StandBy,
    End(End),
}

impl From<Halt> for Stuck {
    fn from(halt: Halt) -> Self {
        Stuck::End(End::Halt(halt))
    }
}

impl From<JournalError> for Stuck {
    fn from(error: JournalError) -> Self {
        Stuck::End(End::Failed(chain(&error)))
    }
}

impl Source {
    /// Runs until stopped, halted or failed.
    pub async fn run(self) -> End {
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

    /// Becomes the one daemon of this source: waits as standby, decides, starts the stream, bumps the epochs.
    async fn take_over(&self, journal: &Journal, stop: &mut watch::Receiver<bool>) -> Result<Taken, End> {
        let mut backoff = Backoff::new(u64::from(std::process::id()));
        let mut standing_by = false;
        loop {
            if *stop.borrow() {
                return Err(End::Stopped);
            }
            let wait = match self.try_take_over(journal).await {
                Ok(taken) => return Ok(taken),
                Err(Stuck::End(end)) => return Err(end),
                Err(Stuck::StandBy) => {
                    if !std::mem::replace(&mut standing_by, true) {
                        info!(source = %self.name, "another session streams from the slot, standing by");
                    }
                    self.context.board.source_state(&self.name, SourceState::Standby);
                    STANDBY_PAUSE
                }
                Err(Stuck::Wait(stage, message)) => {
                    self.context.board.error(stage, "start", &self.name, &message);
                    self.context.board.source_state(&self.name, SourceState::Connecting);
                    warn!(source = %self.name, error = %message, "not started yet");
                    backoff.next().unwrap_or_default()
                }
            };
            if pause(wait, stop).await {
                return Err(End::Stopped);
            }
        }
    }

    async fn try_take_over(&self, journal: &Journal) -> Result<Taken, Stuck> {
        // The sinks first: what they hold, the source's WAL then has.
        let mut views = Vec::new();
        for link in &self.links {
            views.push(self.read_sink(link).await?);
        }
        let states: Vec<_> = self.links.iter().zip(&views).map(|(link, view)| sink_state(link, view)).collect();
        let (connection, found, at) = self.start_stream(journal, &states).await?;
        let identity = found.identity();
        let mut epochs = Vec::new();
        let mut durable = Vec::new();
        for (link, view) in self.links.iter().zip(&views) {
            let stored = self.first_checkpoint(link, view, at, &identity).await?;
            let epoch = state::take_over(&view.client, &self.name, &stored, identity.timeline).await;
            match epoch.map_err(|error| Stuck::Wait(Stage::Connect, describe(&error)))? {
                Some(epoch) => epochs.push(epoch),
                // Somebody wrote after we read: decide again with what is there now.
                None => return Err(Stuck::StandBy),
            }
            durable.push(Durable::read_back(&link.name, stored.checkpoint));
        }
        let tables = views.into_iter().map(|view| view.tables).collect();
        Ok(Taken { connection, at, epochs, durable, identity, tables })
    }

    async fn read_sink(&self, link: &SinkLink) -> Result<SinkView, Stuck> {
        let failed = |message: String| Stuck::Wait(Stage::Connect, format!("sink \"{}\": {message}", link.name));
        let client = link.connect("tailwater start").await.map_err(failed)?;
        let read = async {
            if !state::has_schema(&client).await? {
                client.batch_execute(state::STATE_SCHEMA).await?;
            }
            let stored = state::read_checkpoint(&client, &self.name).await?;
            let tables = state::read_tables(&client, &self.name).await?;
            Ok::<_, tokio_postgres::Error>((stored, tables))
        };
        let (stored, tables) = read.await.map_err(|error| failed(describe(&error)))?;
        Ok(SinkView { client, stored, tables: SinkTables::new(link, tables) })
    }

    /// A sink that holds nothing yet begins where the stream begins; its tables are copied later than that.
    async fn first_checkpoint(
        &self,
        link: &SinkLink,
        view: &SinkView,
        at: Lsn,
        identity: &SourceIdentity,
    ) -> Result<StoredCheckpoint, Stuck> {
        if let Some(stored) = &view.stored {
            return Ok(stored.clone());
        }
        let failed = |error: tokio_postgres::Error| {
            Stuck::Wait(Stage::Connect, format!("sink \"{}\": {}", link.name, describe(&error)))
        };
        state::create_checkpoint(&view.client, &self.name, at, identity).await.map_err(failed)?;
        let stored = state::read_checkpoint(&view.client, &self.name).await.map_err(failed)?;
        stored.ok_or_else(|| Stuck::Wait(Stage::Connect, "the checkpoint was not kept".to_owned()))
    }

    /// Decides whether and where to go on, and starts the stream there.
    async fn start_stream(
        &self,
        journal: &Journal,
        states: &[SinkState],
    ) -> Result<(ReplicationConnection, SourceProbe, Lsn), Stuck> {
        let connection = connect(&self.url, "tailwater start").await;
        let client =
            connection.map_err(|error| Stuck::Wait(Stage::Connect, format!("source: {}", chain(&error))))?.client;
        let mut wire = self.replication_connection().await?;
        let found = self.probe(&client).await?;
        let held = journal.held();
        let range = held.map(|held| JournalRange { first: held.first, end: held.end.end_lsn, timeline: None });
        let known = states.iter().filter_map(|state| state.identity.as_ref()).map(|identity| identity.timeline);
        let timeline = found.server.timeline;
        let mut history = None;
        if known.into_iter().any(|known| known != timeline) {
            (wire, history) =
                blocking(move || read_history(&mut wire, timeline).map(|history| (wire, history))).await?;
        }
        let ack = match self.config.ack {
            Ack::Sink => verdict::Ack::Sink,
            Ack::Journal => verdict::Ack::Journal,
        };
        let at = match verdict::decide(states, range, ack, &found.facts(history)) {
            Verdict::Resume { at } | Verdict::Bootstrap { at: Some(at) } => at,
            Verdict::Bootstrap { at: None } => {
                let slot = &self.config.slot;
                return Err(Stuck::End(End::NotSetUp(format!("replication slot \"{slot}\" does not exist"))));
            }
            Verdict::StandBy => return Err(Stuck::StandBy),
            Verdict::Halt(halt) => return Err(halt.into()),
        };
        if held.is_some_and(|held| held.end.end_lsn > at) {
            return Err(Stuck::End(End::Failed(format!(
                "the journal in \"{}\" ends after {at}, where the sinks stand, but does not reach back to it; move it away",
                self.context.config.data_dir.join(&self.name).display()
            ))));
        }
        let (slot, publication) = (self.config.slot.clone(), self.config.publication.clone());
        let wire = blocking(move || wire.start_replication(&slot, &publication, at).map(|()| wire)).await?;
        // The server silently skips what was confirmed, so look again now that nobody else can move the slot.
        let again = self.probe(&client).await?;
        let confirmed = again.slot.and_then(|slot| slot.confirmed_flush).unwrap_or_default();
        if confirmed > at {
            let sink = states.first().map(|state| state.name.clone()).unwrap_or_default();
            return Err(Halt::Gap { sink, from: at, to: confirmed, ack }.into());
        }
        Ok((wire, found, at))
    }

    async fn probe(&self, client: &Client) -> Result<SourceProbe, Stuck> {
        let found = probe(client, &self.config.slot, &self.config.publication).await;
        found.map_err(|error| Stuck::Wait(Stage::Connect, format!("source: {error}")))
    }

    async fn replication_connection(&self) -> Result<ReplicationConnection, Stuck> {
        let url = self.url.clone();
        blocking(move || ReplicationConnection::connect(&url, "tailwater stream")).await
    }

    /// The main part of a run: everything is taken over and the stream is live.
    async fn stream(&self, journal: Journal, taken: Taken, metrics: SourceMetrics, stop: watch::Receiver<bool>) -> End {
        let mut ledger = Ledger::new(&taken.durable);
        let stream = StreamShared::new(ledger.confirm());
        let confirm_by = if self.config.ack == Ack::Journal { ConfirmBy::Journal } else { ConfirmBy::Sinks };
        let shared = Arc::new(SourceShared {
            journal,
            stream,
            ledger: Mutex::new(ledger),
            confirms: confirm_by == ConfirmBy::Sinks,
        });
        let mut ended = match self.spawn_stream(&shared, taken.connection, confirm_by, taken.at, &metrics) {
            Ok(ended) => ended,
            Err(end) => return end,
        };
        let (stop_parts, parts_stop) = watch::channel(false);
        let mut parts = JoinSet::new();
        let sinks = taken.tables.into_iter().zip(&taken.epochs).enumerate();
        let epochs = taken.epochs.clone();
        for (index, (tables, &epoch)) in sinks {
            self.spawn_sink(index, epoch, tables, &shared, &parts_stop, &mut parts);
        }
        info!(source = %self.name, at = %taken.at, "streaming");
        self.context.board.source_state(&self.name, SourceState::Streaming);
        let watcher = tokio::spawn(self.watch_source(shared.clone(), metrics.clone(), stop.clone()));
        let end =
            self.supervise(&mut ended, &mut parts, &shared, confirm_by, &metrics, &epochs, taken.identity, stop).await;
        watcher.abort();
        // Whoever still applies may finish; then the source hears the last confirmation.
        let _ = stop_parts.send(true);
        let finished = async { while parts.join_next().await.is_some() {} };
        let deadline = if end == End::Stopped { STOP_DEADLINE } else { Duration::from_secs(1) };
        let _ = tokio::time::timeout(deadline, finished).await;
        shared.stream.stop();
        let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
        if let End::Halt(halt) = &end {
            let state = SourceState::Halted { reason: halt.code().to_owned(), hint: halt.hint().to_owned() };
            self.context.board.source_state(&self.name, state);
        }
        end
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one run, each used once")]
    async fn supervise(
        &self,
        ended: &mut oneshot::Receiver<Result<(), StreamError>>,
        parts: &mut JoinSet<End>,
        shared: &Arc<SourceShared>,
        confirm_by: ConfirmBy,
        metrics: &SourceMetrics,
        epochs: &[i64],
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
                    match self.reconnect(shared, confirm_by, metrics, epochs, &identity, &mut stop).await {
                        Ok(again) => *ended = again,
                        Err(end) => return end,
                    }
                }
                Some(part) = parts.join_next() => {
                    match part {
                        Ok(End::Stopped) => {}
                        Ok(end) => return end,
                        Err(error) => return End::Failed(format!("a part of source \"{}\" panicked: {error}", self.name)),
                    }
                }
                _ = stop.changed() => return End::Stopped,
            }
        }
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
        epochs: &[i64],
        identity: &SourceIdentity,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<oneshot::Receiver<Result<(), StreamError>>, End> {
        let mut backoff = Backoff::new(u64::from(std::process::id()) ^ epochs.iter().sum::<i64>().unsigned_abs());
        loop {
            let wait = backoff.next().unwrap_or_default();
            if pause(wait, stop).await {
                return Err(End::Stopped);
            }
            let durable = shared.ledger.lock().unwrap_or_else(PoisonError::into_inner).durable();
            let states: Vec<_> = durable
                .into_iter()
                .map(|(name, checkpoint)| SinkState {
                    name,
                    checkpoint: Some(checkpoint),
                    identity: Some(identity.clone()),
                    tables_known: true,
                })
                .collect();
            match self.start_stream(&shared.journal, &states).await {
                Ok((connection, _, at)) => {
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
        let observer = Box::new(Received {
            metrics: metrics.clone(),
            pairs: self.observed.iter().map(|observed| observed.pair.clone()).collect(),
        });
        let failed = |message: String| End::Failed(message);
        let stream = Stream::new(connection, shared.journal.clone(), shared.stream.clone(), confirm_by, at, observer)
            .map_err(|error| failed(chain(&error)))?;
        stream.spawn(&self.name).map_err(|error| failed(error.to_string()))
    }

    fn spawn_sink(
        &self,
        index: usize,
        epoch: i64,
        tables: SinkTables,
        shared: &Arc<SourceShared>,
        stop: &watch::Receiver<bool>,
        parts: &mut JoinSet<End>,
    ) {
        let link = self.links[index].clone();
        let observed = self.observed[index].clone();
        // Each message is a table's way into the stream; there are few, so the bound is never met in practice.
        let (sender, receiver) = mpsc::channel::<Tables>(64);
        let missing = |(plan_index, stored): (usize, &Option<state::StoredTable>)| match stored {
            Some(stored) if !matches!(stored.state, TableState::Pending | TableState::Copying) => None,
            _ => Some(plan_index),
        };
        let wanted: Vec<_> = tables.by_plan.iter().enumerate().filter_map(missing).collect();
        // Taken before the applier moves on, so that the journal keeps what the copied tables will need.
        let hold: Hold = shared.journal.hold(format!("copy {}", link.name));
        let applier = Applier::new(link.clone(), shared.clone(), observed.clone(), receiver, stop.clone(), epoch);
        parts.spawn(applier.run());
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
            restarts: tables,
            shared: shared.clone(),
            stop: stop.clone(),
        };
        parts.spawn(copy::run(job, hold, sender));
    }

    /// Looks at slot and journal now and then, and lets an idle database's slot advance.
    fn watch_source(
        &self,
        shared: Arc<SourceShared>,
        metrics: SourceMetrics,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let (name, url, config, context) =
            (self.name.clone(), self.url.clone(), self.config.clone(), self.context.clone());
        async move {
            let mut client: Option<Client> = None;
            let mut beat = std::time::Instant::now();
            let mut wal_at_beat = Lsn::ZERO;
            loop {
                if pause(WATCH_INTERVAL, &mut stop).await {
                    return;
                }
                metrics.journal_bytes.set(shared.journal.bytes());
                metrics.confirmed_flush_lsn.set(shared.stream.confirmed());
                if let Some(held) = shared.journal.held() {
                    context.board.journal_range(&name, held.first, held.end.end_lsn);
                }
                if client.as_ref().is_none_or(Client::is_closed) {
                    client = connect(&url, "tailwater watch").await.ok().map(|connection| connection.client);
                }
                let Some(session) = &client else { continue };
                let Ok(found) = probe(session, &config.slot, &config.publication).await else { continue };
                context.board.source_wal(&name, found.server.current_flush_lsn);
                if let Some(slot) = &found.slot {
                    metrics.slot_retained_wal_bytes.set(slot.retained_bytes);
                    metrics.set_slot_safe_wal(slot.safe_wal_size);
                    metrics.set_slot_active(slot.active);
                }
                // A heartbeat only where WAL moved and the stream has not heard of it: other databases' work.
                let unheard = found.server.current_flush_lsn > shared.stream.received();
                let moved = found.server.current_flush_lsn > wal_at_beat;
                if !config.heartbeat.is_zero() && beat.elapsed() >= config.heartbeat && unheard && moved {
                    beat = std::time::Instant::now();
                    if let Err(error) =
                        session.query("SELECT pg_logical_emit_message(true, 'tailwater.heartbeat', '')", &[]).await
                    {
                        warn!(source = %name, error = %describe(&error), "heartbeat failed");
                    }
                    wal_at_beat = found.server.current_flush_lsn;
                }
            }
        }
    }
}

/// Feeds the metrics from the stream's thread.
struct Received {
    metrics: SourceMetrics,
    pairs: Vec<PairMetrics>,
}

impl StreamObserver for Received {
    fn received(&mut self, bytes: usize, end_lsn: Lsn, commit_ts: Option<UnixMicros>) {
        self.metrics.received_bytes.inc_by(bytes as u64);
        self.metrics.received_lsn.set(end_lsn);
        for pair in &self.pairs {
            match commit_ts {
                Some(commit_ts) => pair.progress.committed(end_lsn, commit_ts),
                None => pair.progress.wal_reached(end_lsn),
            }
        }
    }
}

fn sink_state(link: &SinkLink, view: &SinkView) -> SinkState {
    SinkState {
        name: link.name.clone(),
        checkpoint: view.stored.as_ref().map(|stored| stored.checkpoint),
        identity: view.stored.as_ref().map(|stored| stored.identity.clone()),
        tables_known: view.tables.by_plan.iter().any(Option::is_some),
    }
}

/// Runs a blocking call of the replication connection.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T, WireError> + Send + 'static) -> Result<T, Stuck> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.sqlstate() == Some("55006") => Err(Stuck::StandBy),
        Ok(Err(error)) if error.passes() => Err(Stuck::Wait(Stage::Connect, format!("source: {}", chain(&error)))),
        Ok(Err(error)) => Err(Stuck::End(End::Failed(format!("source: {}", chain(&error))))),
        Err(error) => Err(Stuck::End(End::Failed(error.to_string()))),
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
