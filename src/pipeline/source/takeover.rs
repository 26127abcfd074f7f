//! Becoming the one daemon of a source: wait as standby, decide, start the stream, fence whoever was before.
//!
//! What a sink shows may be less than what it holds, where a daemon that died left something undecided. Then the slot is
//! taken first, for whoever streams from it is no dead one; with it in hand the dead are fenced and the sink is looked at
//! again. Only what stays so is decided upon: an older position than the true one could look like a gap.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::Client;
use tracing::{debug, info, warn};

use super::slot::with_slot;
use super::{STANDBY_PAUSE, Source, pause};
use crate::checkpoint::SourceIdentity;
use crate::config::Ack;
use crate::diagnostic::chain;
use crate::journal::{Journal, JournalError};
use crate::ledger::Unread;
use crate::lsn::Lsn;
use crate::pipeline::End;
use crate::pipeline::link::{SinkLink, SinkTables};
use crate::postgres::connect::connect;
use crate::retry::Backoff;
use crate::sink::Durable;
use crate::sink::any::{Said, SinkAddress, SinkSession};
use crate::sink::state::{StoredCheckpoint, StoredTable};
use crate::source::history::read_history;
use crate::source::probe::{SourceProbe, probe};
use crate::telemetry::handles::Stage;
use crate::telemetry::status::SourceState;
use crate::verdict::{self, Halt, JournalRange, SinkState, Sinks, Verdict};
use crate::wire::{ReplicationConnection, ValueForm, WireError};

/// How long a sink may take to say what it holds; it is asked for little, or makes its state tables.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// A sink that answers one question and not the next is looked for no sooner: coming back, it interrupts the others.
const BACK_AFTER: Duration = Duration::from_secs(5);

/// All that is ours was ended, and something is open yet.
const NOT_OURS: &str = "a sink holds what somebody else began and has not ended; of Kafka, `kafka-transactions.sh \
    find-hanging` shows transactions that nobody will end";

/// A sink as it was read at the start.
struct SinkView {
    session: SinkSession,
    stored: Option<StoredCheckpoint>,
    tables: SinkTables,
    is_settled: bool,
}

/// What taking over came to.
pub(super) struct Taken {
    pub(super) connection: ReplicationConnection,
    pub(super) at: Lsn,
    pub(super) identity: SourceIdentity,
    pub(super) sinks: Vec<TakenSink>,
    /// The others, each of which holds back what is confirmed.
    pub(super) unread: Vec<Unread>,
    /// Those of them, by link, that answered when the run was prepared and do not any more.
    pub(super) lost: Vec<usize>,
}

/// A sink that was read and now takes changes from us alone.
pub(super) struct TakenSink {
    /// Of the link.
    pub(super) index: usize,
    pub(super) epoch: i64,
    pub(super) durable: Durable,
    pub(super) tables: SinkTables,
    /// What the applier begins with, if the sink need not be asked again.
    pub(super) session: Option<SinkSession>,
}

/// A stream that was started.
pub(super) struct Started {
    pub(super) connection: ReplicationConnection,
    pub(super) at: Lsn,
    found: SourceProbe,
    /// What the source had been told, and now nobody else can tell it.
    confirmed: Lsn,
}

/// A step of the start that did not lead on.
pub(in crate::pipeline) enum Stuck {
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
        let (views, lost) = self.read_settled().await?;
        let states: Vec<_> = views.iter().map(|(index, view)| sink_state(&self.links[*index], view)).collect();
        let lost_names = lost.iter().map(|index| self.links[*index].name.clone());
        let unread: Vec<_> = self.absent.iter().cloned().chain(lost_names).collect();
        let started = self.start_stream(journal, Sinks { read: &states, unread: &unread }).await?;
        let identity = started.found.identity();
        let mut sinks = Vec::new();
        for (index, mut view) in views {
            let link = &self.links[index];
            let stored = self.first_checkpoint(link, &view, started.at, &identity).await?;
            let epoch = view.session.take_over(&self.name, &stored, identity.timeline).await;
            // Where somebody wrote after we read: decide again with what is there now.
            let epoch = epoch.map_err(|message| Stuck::Wait(Stage::Connect, message))?.ok_or(Stuck::StandBy)?;
            let durable = Durable::read_back(&link.name, stored.checkpoint);
            // Whoever was fenced may have brought a table since.
            let tables = view.session.read_tables(&self.name).await;
            let tables = tables.map_err(|message| Stuck::Wait(Stage::Connect, message))?;
            self.leave_out_unmapped(link, &view.session, &tables, durable.checkpoint().end_lsn).await?;
            let (tables, session) = (SinkTables::new(link, tables), view.session.taken_over());
            sinks.push(TakenSink { index, epoch, durable, tables, session });
        }
        for &index in &lost {
            let name = &self.links[index].name;
            warn!(source = %self.name, sink = %name, "sink does not answer any more, going on without it");
            self.context.board.pair_waits(&self.name, name, &format!("sink \"{name}\""));
        }
        let unread = unread.iter().map(|sink| Unread::new(sink, started.confirmed)).collect();
        Ok(Taken { connection: started.connection, at: started.at, identity, sinks, unread, lost })
    }

    /// What changes from here on in a table that nobody maps comes nowhere. Should it be mapped again, it must not go on as if
    /// nothing had been.
    async fn leave_out_unmapped(
        &self,
        link: &SinkLink,
        session: &SinkSession,
        tables: &[StoredTable],
        at: Lsn,
    ) -> Result<(), Stuck> {
        let anew = match link.address {
            SinkAddress::Postgres(_) | SinkAddress::ClickHouse(..) => {
                "empty the target, delete its row from tailwater.table_state"
            }
            SinkAddress::Kafka(_) => {
                "write a message without a value under the table's key to the sink's state topic, as the manual shows,"
            }
        };
        for table in link.unmapped(tables) {
            let reason = format!(
                "no mapping means the table any more; it has its changes up to {at}, and none that came later; to have it again, \
                 {anew} and map it: it is copied anew"
            );
            warn!(source = %self.name, sink = %link.name, table = %table.target, reason = %reason, "table is left out");
            let written = session.leave_out(&self.name, &table.target, &reason).await;
            written.map_err(|message| Stuck::Wait(Stage::Connect, message))?;
        }
        Ok(())
    }

    /// Reads all sinks, and has nothing in them left undecided.
    async fn read_settled(&self) -> Result<(Vec<(usize, SinkView)>, Vec<usize>), Stuck> {
        let read = self.read_sinks().await?;
        let undecided: Vec<_> = read.0.iter().map(|(_, view)| view).filter(|view| !view.is_settled).collect();
        if undecided.is_empty() {
            return Ok(read);
        }
        info!(source = %self.name, "a sink holds what somebody else began, taking the slot to end that");
        let settle = join_all(undecided.iter().map(|view| view.session.settle(&self.name)));
        let Some(settled) = with_slot(&self.url, &self.config, settle).await? else { return Ok(read) };
        settled.into_iter().collect::<Result<(), _>>().map_err(|message| Stuck::Wait(Stage::Connect, message))?;
        let read = self.read_sinks().await?;
        match read.0.iter().all(|(_, view)| view.is_settled) {
            true => Ok(read),
            false => Err(Stuck::Wait(Stage::Connect, NOT_OURS.to_owned())),
        }
    }

    /// Reads all sinks at once: what each holds, and which of them do not say so, by link.
    async fn read_sinks(&self) -> Result<(Vec<(usize, SinkView)>, Vec<usize>), Stuck> {
        let reads = join_all(self.links.iter().map(|link| read_sink(link))).await;
        let (mut views, mut lost, mut first) = (Vec::new(), Vec::new(), None);
        for (index, read) in reads.into_iter().enumerate() {
            match read {
                Ok(view) => views.push((index, view)),
                Err(message) => {
                    let name = &self.links[index].name;
                    self.context.board.error(Stage::Connect, "start", name, &message);
                    first.get_or_insert_with(|| format!("sink \"{name}\": {message}"));
                    lost.push(index);
                }
            }
        }
        match first {
            Some(message) if views.is_empty() => Err(Stuck::Wait(Stage::Connect, message)),
            _ => Ok((views, lost)),
        }
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
    pub(super) async fn start_stream(&self, journal: &Journal, sinks: Sinks<'_>) -> Result<Started, Stuck> {
        let connection = connect(&self.url, "tailwater start").await;
        let client =
            connection.map_err(|error| Stuck::Wait(Stage::Connect, format!("source: {}", chain(&error))))?.client;
        let mut wire = self.replication_connection().await?;
        let found = self.probe(&client).await?;
        let held = journal.held();
        let range = held.map(|held| JournalRange { first: held.first, end: held.end.end_lsn, timeline: None });
        let known = sinks.read.iter().filter_map(|state| state.identity.as_ref()).map(|identity| identity.timeline);
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
        let at = match verdict::decide(sinks, range, ack, &found.facts(history)) {
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
        let form = self.value_form();
        let wire = blocking(move || wire.start_replication(&slot, &publication, at, form).map(|()| wire)).await?;
        // The server silently skips what was confirmed, so look again now that nobody else can move the slot.
        let again = self.probe(&client).await?;
        let confirmed = again.slot.and_then(|slot| slot.confirmed_flush).unwrap_or_default();
        if confirmed > at {
            let sink = sinks.read.first().map(|state| state.name.clone()).unwrap_or_default();
            return Err(Halt::Gap { sink, from: at, to: confirmed, ack }.into());
        }
        Ok(Started { connection: wire, at, found, confirmed })
    }

    /// Text if a sink has to read what it understands in no other form; binary costs less everywhere.
    fn value_form(&self) -> ValueForm {
        let wants_text = |link: &SinkLink| match link.address {
            // It passes values on.
            SinkAddress::Postgres(_) => false,
            SinkAddress::ClickHouse(..) | SinkAddress::Kafka(_) => link.plans.iter().any(|plan| plan.wants_text()),
        };
        if self.links.iter().any(|link| wants_text(link)) { ValueForm::Text } else { ValueForm::Binary }
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

/// What a sink holds of the link's source.
///
/// # Errors
/// Why it does not say, as text without secrets.
async fn read_sink(link: &SinkLink) -> Result<SinkView, String> {
    let read = async {
        let session = link.connect("tailwater start").await?;
        session.ensure_state().await?;
        let Said { stored, tables, is_settled } = session.look(&link.source).await?;
        Ok(SinkView { session, stored, tables: SinkTables::new(link, tables), is_settled })
    };
    let late = |_| format!("no answer within {} s", READ_WITHIN.as_secs());
    timeout(READ_WITHIN, read).await.map_err(late)?
}

/// Looks for a sink that the run goes on without, until it says what it holds.
pub(super) async fn back(link: Arc<SinkLink>, mut stop: watch::Receiver<bool>) -> End {
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        if pause(backoff.next().unwrap_or_default().max(BACK_AFTER), &mut stop).await {
            return End::Stopped;
        }
        let read = tokio::select! {
            read = read_sink(&link) => read,
            _ = stop.changed() => return End::Stopped,
        };
        match read {
            Ok(_) => {
                info!(source = %link.source, sink = %link.name, "sink answers again");
                return End::Back;
            }
            Err(error) => debug!(source = %link.source, sink = %link.name, %error, "sink does not answer"),
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
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, WireError> + Send + 'static,
) -> Result<T, Stuck> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if error.sqlstate() == Some("55006") => Err(Stuck::StandBy),
        Ok(Err(error)) if error.passes() => Err(Stuck::Wait(Stage::Connect, format!("source: {}", chain(&error)))),
        Ok(Err(error)) => Err(Stuck::End(End::Failed(format!("source: {}", chain(&error))))),
        Err(error) => Err(Stuck::End(End::Failed(error.to_string()))),
    }
}
