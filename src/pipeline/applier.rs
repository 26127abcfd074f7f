//! One applier for one sink of one source: journal in, batches out, proofs back.
//!
//! While the sink applies one batch the next is built from whatever has arrived; when the sink is free, what there is
//! becomes the next batch. So an idle system has small batches and little delay, and a backlog gets large ones.

mod beat;
mod care;
mod catchup;
mod gather;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::warn;

use super::link::{SinkLink, SinkTables};
use super::{End, Observed};
use care::Care;

use crate::batch::{Batch, Builder, Taken};
use crate::checkpoint::Checkpoint;
use crate::journal::{Hold, Item, Journal, JournalError, Reader};
use crate::ledger::Ledger;
use crate::lsn::Lsn;
use crate::refresh::Touch;
use crate::retry::Backoff;
use crate::sink::any::{AnySink, Pace, SinkSession};
use crate::sink::{ApplyError, Durable, SinkSetup};
use crate::source::stream::StreamShared;
use crate::telemetry::handles::Stage;

/// An idle position is recorded early once it is this far ahead.
const IDLE_BYTES: u64 = 16 << 20;

/// After this without news, whole transactions do not wait for one whose rest has not come.
const STALL: Duration = Duration::from_secs(1);

/// What the snapshot tells the applier.
pub struct Tables {
    /// These plans' tables were copied and wait to join the stream, all at once.
    pub plans: Vec<usize>,
    /// The copy's point.
    pub lsn: Lsn,
    /// Where the copy ended; the tables are whole from there on.
    pub until: Lsn,
    /// Keeps in the journal what they still need; dropped when they have joined.
    pub hold: Hold,
}

/// What all parts of one source share.
pub struct SourceShared {
    pub journal: Journal,
    pub stream: Arc<StreamShared>,
    pub ledger: Mutex<Ledger>,
    /// The ledger does not decide with `ack = "journal"`.
    pub confirms: bool,
}

pub struct Applier {
    link: Arc<SinkLink>,
    shared: Arc<SourceShared>,
    observed: Arc<Observed>,
    tables: mpsc::Receiver<Tables>,
    stop: watch::Receiver<bool>,
    epoch: i64,
    /// By which the sink was taken over: for the first session.
    taken_over: Option<SinkSession>,
    hold: Hold,
    care: Care,
    /// Plans whose new rows turned out to exist already.
    merging: Vec<usize>,
    /// The source sends text, which the sink was found not to expect.
    takes_text: bool,
    /// Plans that follow the stream. The copy and the sink's memory may both tell of a table, and what it catches up with
    /// must not come twice.
    joined: BTreeSet<usize>,
    /// What plans that wait to join still need of the journal, also while there is no session.
    waiting: BTreeMap<usize, Hold>,
    /// The least position that the sink ever reported in this run.
    reported: Lsn,
}

/// The sink comes back from a batch with what became of it.
type Applied = (AnySink, Batch, Result<Option<Durable>, ApplyError>);

/// A session with the sink, from connecting to the first error.
struct Session {
    sink: Option<AnySink>,
    applying: Option<JoinHandle<Applied>>,
    builder: Builder,
    reader: Reader,
    /// A block of which only the front was taken.
    rest: Option<(Bytes, usize)>,
    /// What the sink will hold when the batch under way is applied.
    sent: Checkpoint,
    recorded_at: Instant,
    /// When the session last looked whether something is due, and when the journal last had something.
    looked_at: Instant,
    heard_at: Instant,
    started_at: Instant,
    /// Batches do not begin at shorter intervals than this.
    pace: Pace,
    /// Since when the sink waits for work.
    free_since: Instant,
    queue: VecDeque<Tables>,
    /// Announced changes of the sink's open transaction.
    touches: Vec<Touch>,
    /// Plans that joined the stream and are whole once the sink's checkpoint reaches this.
    settling: Vec<(usize, Lsn)>,
}

/// Why a session ended.
enum Over {
    /// Connect again and go on from the sink's checkpoint.
    Again {
        wait: bool,
    },
    End(End),
}

impl From<JournalError> for Over {
    fn from(error: JournalError) -> Self {
        Over::End(End::Failed(error.to_string()))
    }
}

impl Applier {
    pub fn new(
        link: Arc<SinkLink>,
        shared: Arc<SourceShared>,
        observed: Arc<Observed>,
        tables: mpsc::Receiver<Tables>,
        stop: watch::Receiver<bool>,
        epoch: i64,
    ) -> Self {
        let hold = shared.journal.hold(&link.name);
        Applier {
            link,
            shared,
            observed,
            tables,
            stop,
            epoch,
            taken_over: None,
            hold,
            care: Care::Fast,
            merging: Vec::new(),
            takes_text: false,
            joined: BTreeSet::new(),
            waiting: BTreeMap::new(),
            reported: Lsn::ZERO,
        }
    }

    /// The first session goes on from what was read when the sink was taken over.
    pub fn going_on_by(self, session: Option<SinkSession>) -> Self {
        Applier { taken_over: session, ..self }
    }

    /// Applies until told to stop or until going on would be wrong. A sink that is down costs nothing but lag.
    pub async fn run(mut self) -> End {
        let mut backoff = Backoff::new(u64::from(std::process::id()) ^ self.epoch.unsigned_abs());
        loop {
            if *self.stop.borrow() {
                return End::Stopped;
            }
            let started = Instant::now();
            let over = match self.connect().await {
                Ok(session) => self.session(session).await,
                Err(over) => over,
            };
            match over {
                Over::End(end) => return end,
                Over::Again { wait } => {
                    if started.elapsed() > Duration::from_secs(60) {
                        backoff.reset();
                    }
                    let pause = if wait { backoff.next().unwrap_or_default() } else { Duration::ZERO };
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        _ = self.stop.changed() => {}
                    }
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<Session, Over> {
        let again = |link: &SinkLink, observed: &Observed, message: String| {
            observed.error(Stage::Connect, "sink", &link.name, &message);
            warn!(sink = %link.name, error = %message, "sink cannot be reached");
            Over::Again { wait: true }
        };
        let mut connection = match self.taken_over.take() {
            Some(connection) => connection,
            None => match self.link.connect("tailwater apply").await {
                Ok(connection) => connection,
                Err(message) => return Err(again(&self.link, &self.observed, message)),
            },
        };
        let read = async {
            connection.hold(&self.link.source, self.epoch).await?;
            let stored = connection.read_checkpoint(&self.link.source).await?;
            let tables = connection.read_tables(&self.link.source).await?;
            Ok::<_, String>((stored, tables))
        };
        let (stored, tables) = match read.await {
            Ok((Some(stored), tables)) if stored.epoch == self.epoch => (stored, tables),
            Ok((Some(_), _)) => return Err(Over::End(End::fenced(&self.link.name))),
            Ok((None, _)) => {
                return Err(Over::End(End::Failed(format!("the checkpoint of sink \"{}\" is gone", self.link.name))));
            }
            Err(message) => return Err(again(&self.link, &self.observed, message)),
        };
        let checkpoint = stored.checkpoint;
        let reader = self.shared.journal.reader_ahead(checkpoint.end_lsn);
        let reader = reader.map_err(|gap| Over::End(End::gap(&self.link.name, &gap)))?;
        let setup = SinkSetup {
            name: self.link.name.clone(),
            source: self.link.source.clone(),
            plans: self.link.plans.clone(),
            epoch: self.epoch,
            checkpoint,
            mask_key: self.link.mask_key.clone(),
        };
        let mut sink = match connection.into_sink(setup, stored.identity).await {
            Ok(sink) => sink,
            Err(ApplyError::Transient { message }) => return Err(again(&self.link, &self.observed, message)),
            Err(ApplyError::Fenced { .. }) => return Err(Over::End(End::fenced(&self.link.name))),
            Err(error) => return Err(Over::End(End::Failed(format!("sink \"{}\": {error}", self.link.name)))),
        };
        if self.takes_text {
            sink.take_text();
        }
        let durable = sink.durable();
        let mut session = Session {
            sink: Some(sink),
            applying: None,
            builder: Builder::new(&self.link.plans, checkpoint, self.limits()),
            reader,
            rest: None,
            sent: checkpoint,
            recorded_at: Instant::now(),
            looked_at: Instant::now(),
            heard_at: Instant::now(),
            started_at: Instant::now(),
            pace: self.link.address.pace(Duration::ZERO),
            free_since: Instant::now(),
            queue: VecDeque::new(),
            touches: Vec::new(),
            settling: Vec::new(),
        };
        // Tables that still have to catch up take their holds before the applier's own moves on.
        self.resume_tables(&mut session, &SinkTables::new(&self.link, tables)).await?;
        self.prove(&durable);
        Ok(session)
    }

    async fn session(&mut self, mut session: Session) -> Over {
        loop {
            if let Err(over) = self.dispatch(&mut session).await {
                // Its checkpoint is what the next session begins from.
                if let Some(applying) = session.applying.take() {
                    let _ = applying.await;
                }
                return over;
            }
            let look_in = session.looks_in_at(self.link.config.idle_record);
            let wants_more = session.rest.is_none() && !session.builder.is_full() && !session.is_joining();
            let stopping = *self.stop.borrow();
            let gathers_until = session.gathers_until();
            if stopping && session.applying.is_none() && session.builder.is_empty() {
                return Over::End(End::Stopped);
            }
            tokio::select! {
                biased;
                done = async { session.applying.as_mut().expect("guarded").await }, if session.applying.is_some() => {
                    session.applying = None;
                    session.free_since = Instant::now();
                    let Ok((sink, batch, result)) = done else {
                        return Over::End(End::Failed("the sink's task panicked".to_owned()));
                    };
                    session.sink = Some(sink);
                    if let Err(over) = self.applied(&mut session, &batch, result).await {
                        return over;
                    }
                }
                item = session.reader.next(), if wants_more && !stopping => {
                    session.heard_at = Instant::now();
                    match item {
                        Ok(item) => if let Err(over) = self.take_in(&mut session, item) {
                            // Its checkpoint is what the next session begins from.
                            if let Some(applying) = session.applying.take() {
                                let _ = applying.await;
                            }
                            return over;
                        },
                        Err(error) => return error.into(),
                    }
                }
                Some(tables) = self.tables.recv(), if !stopping => self.await_boundary(&mut session, tables),
                // Looked at in `dispatch`.
                () = tokio::time::sleep_until(gathers_until.into()), if session.is_gathering() => {}
                () = tokio::time::sleep_until(look_in.into()), if session.applying.is_none() && !stopping => {
                    session.looked_at = Instant::now();
                    // Looked at in `dispatch`; the clock goes on even if there was nothing to record.
                    if session.builder.reached().end_lsn <= session.sent.end_lsn {
                        session.recorded_at = Instant::now();
                    }
                }
                _ = self.stop.changed() => {
                    // A transaction that is not whole yet is left to the next run.
                    if !session.builder.at_boundary() && session.applying.is_none() {
                        return Over::End(End::Stopped);
                    }
                }
            }
        }
    }

    /// Puts a journal item into the batch under construction.
    fn take_in(&mut self, session: &mut Session, item: Item) -> Result<(), Over> {
        match item {
            Item::Block(block) => session.rest = Some((block.bytes, 0)),
            Item::Restarted => {
                // Rows of the open transaction may be in the batch already, or in the sink's open transaction.
                if !session.builder.at_boundary() {
                    return Err(Over::Again { wait: false });
                }
            }
        }
        self.fill(session)
    }

    fn fill(&mut self, session: &mut Session) -> Result<(), Over> {
        while let Some((bytes, from)) = session.rest.take() {
            if session.builder.is_full() {
                session.rest = Some((bytes, from));
                break;
            }
            session.heard_at = Instant::now();
            match session.builder.push(&bytes, from) {
                Ok(Taken::Whole) => {}
                Ok(Taken::Until(next)) => session.rest = Some((bytes, next)),
                Err(error) => return Err(self.build_failed(error)),
            }
        }
        Ok(())
    }

    /// Gives the sink its next work, if it is free and there is some.
    async fn dispatch(&mut self, session: &mut Session) -> Result<(), Over> {
        // The rest of a block goes into the next batch while the sink works on this one, as what comes behind it does.
        self.fill(session)?;
        if session.applying.is_some() {
            return Ok(());
        }
        let ready = !session.builder.is_empty() && (session.builder.at_boundary() || session.builder.is_full());
        if ready && (!session.is_gathering() || *self.stop.borrow()) {
            self.start(session);
            return Ok(());
        }
        self.beat(session).await?;
        if ready {
            return Ok(());
        }
        if !session.builder.is_empty() || !session.builder.at_boundary() {
            return self.part_from_unfinished(session);
        }
        if let Some(tables) = session.queue.pop_front() {
            return self.join_tables(session, tables).await;
        }
        let ahead = session.builder.reached().end_lsn.bytes_since(session.sent.end_lsn);
        let due = session.recorded_at.elapsed() >= self.link.config.idle_record || self.shared.stream.is_draining();
        if ahead > 0 && (due || ahead >= IDLE_BYTES) {
            self.start(session);
        }
        Ok(())
    }

    fn start(&mut self, session: &mut Session) {
        let Some(mut sink) = session.sink.take() else { return };
        let batch = session.builder.take();
        if let crate::batch::BatchEnd::Commit(checkpoint) = batch.end {
            session.sent = checkpoint;
        }
        if let Some(oldest) = batch.oldest_commit_ts {
            self.observed.pair.progress.applying(oldest);
        }
        session.touches.push(self.link.touch(&batch));
        session.recorded_at = Instant::now();
        session.started_at = Instant::now();
        session.applying = Some(tokio::spawn(async move {
            let result = sink.apply(&batch).await;
            (sink, batch, result)
        }));
    }

    /// A batch came back.
    async fn applied(
        &mut self,
        session: &mut Session,
        batch: &Batch,
        result: Result<Option<Durable>, ApplyError>,
    ) -> Result<(), Over> {
        for (plan_index, coerced) in session.sink.as_ref().map(AnySink::take_coerced).unwrap_or_default() {
            self.observed.tables[plan_index].value_coerced.inc_by(coerced);
        }
        match result {
            Ok(Some(durable)) => {
                let took = session.started_at.elapsed();
                session.pace = self.link.address.pace(took);
                self.observed.applied(batch, took);
                self.prove(&durable);
                self.relax(session, durable.checkpoint().end_lsn);
                session.touches.clear();
                self.settle(session).await?;
                Ok(())
            }
            Ok(None) => {
                self.observed.pair.progress.working();
                self.observed.count(batch);
                Ok(())
            }
            Err(error) => self.failed(session, self.located(error, batch)).await,
        }
    }

    fn prove(&mut self, durable: &Durable) {
        let end_lsn = durable.checkpoint().end_lsn;
        self.hold.set(end_lsn);
        self.observed.pair.progress.durable(&durable.checkpoint());
        // A sink that was restored to an earlier state is healed from the journal; until it is where it was, it proves
        // nothing new.
        if end_lsn < self.reported {
            return;
        }
        self.reported = end_lsn;
        let confirm = self.shared.ledger.lock().unwrap_or_else(std::sync::PoisonError::into_inner).record(durable);
        if self.shared.confirms {
            self.shared.stream.confirm(confirm);
        }
    }
}
