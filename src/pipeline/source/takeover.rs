//! Becoming the one daemon of a source: wait as standby, decide, start the stream, fence whoever was before.

use tokio::sync::watch;
use tokio_postgres::Client;
use tracing::{info, warn};

use super::{STANDBY_PAUSE, Source, pause};
use crate::checkpoint::SourceIdentity;
use crate::config::Ack;
use crate::diagnostic::chain;
use crate::journal::{Journal, JournalError};
use crate::lsn::Lsn;
use crate::pipeline::End;
use crate::pipeline::link::{SinkLink, SinkTables};
use crate::postgres::connect::connect;
use crate::retry::Backoff;
use crate::sink::Durable;
use crate::sink::any::SinkSession;
use crate::sink::state::StoredCheckpoint;
use crate::source::history::read_history;
use crate::source::probe::{SourceProbe, probe};
use crate::telemetry::handles::Stage;
use crate::telemetry::status::SourceState;
use crate::verdict::{self, Halt, JournalRange, SinkState, Verdict};
use crate::wire::{ReplicationConnection, WireError};

/// A sink as it was read at the start.
struct SinkView {
    session: SinkSession,
    stored: Option<StoredCheckpoint>,
    tables: SinkTables,
}

/// What taking over came to.
pub(super) struct Taken {
    pub(super) connection: ReplicationConnection,
    pub(super) at: Lsn,
    pub(super) epochs: Vec<i64>,
    pub(super) durable: Vec<Durable>,
    pub(super) identity: SourceIdentity,
    pub(super) tables: Vec<SinkTables>,
}

/// A step of the start that did not lead on.
pub(super) enum Stuck {
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
    /// Becomes the one daemon of this source: waits as standby, decides, starts the stream, bumps the epochs.
    pub(super) async fn take_over(&self, journal: &Journal, stop: &mut watch::Receiver<bool>) -> Result<Taken, End> {
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
            let epoch = view.session.take_over(&self.name, &stored, identity.timeline).await;
            match epoch.map_err(|message| Stuck::Wait(Stage::Connect, message))? {
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
        let session = link.connect("tailwater start").await.map_err(failed)?;
        session.ensure_state().await.map_err(failed)?;
        let stored = session.read_checkpoint(&self.name).await.map_err(failed)?;
        let tables = session.read_tables(&self.name).await.map_err(failed)?;
        Ok(SinkView { session, stored, tables: SinkTables::new(link, tables) })
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
        let failed = |message: String| Stuck::Wait(Stage::Connect, format!("sink \"{}\": {message}", link.name));
        view.session.create_checkpoint(&self.name, at, identity).await.map_err(failed)?;
        let stored = view.session.read_checkpoint(&self.name).await.map_err(failed)?;
        stored.ok_or_else(|| Stuck::Wait(Stage::Connect, "the checkpoint was not kept".to_owned()))
    }

    /// Decides whether and where to go on, and starts the stream there.
    pub(super) async fn start_stream(
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
