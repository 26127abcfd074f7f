//! One applier for one sink of one source: journal in, batches out, proofs back.
//!
//! While the sink applies one batch the next is built from whatever has arrived; when the sink is free, what there is
//! becomes the next batch. So an idle system has small batches and little delay, and a backlog gets large ones.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use super::link::{SinkLink, SinkTables};
use super::{End, Observed};
use crate::batch::{Batch, BatchLimits, BuildError, Builder, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::journal::{Hold, Item, Journal, JournalError, Reader};
use crate::ledger::Ledger;
use crate::lsn::Lsn;
use crate::refresh::Touch;
use crate::retry::Backoff;
use crate::sink::postgres::state::{self, TableState};
use crate::sink::postgres::{ApplyError, PostgresSink, SinkSetup};
use crate::source::stream::StreamShared;
use crate::telemetry::handles::Stage;

/// An idle position is recorded early once it is this far ahead.
const IDLE_BYTES: u64 = 16 << 20;

/// What the snapshot tells the applier.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tables {
    /// These plans' tables were copied as of this LSN and wait to join the stream, all at once.
    Copied { plans: Vec<usize>, lsn: Lsn },
}

/// What all parts of one source share.
pub struct SourceShared {
    pub journal: Journal,
    pub stream: Arc<StreamShared>,
    pub ledger: Mutex<Ledger>,
    /// The ledger does not decide with `ack = "journal"`.
    pub confirms: bool,
}

/// How often a failing batch was cut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Care {
    /// Batches as large as they get.
    Fast,
    /// One source transaction a batch, until past this position.
    OneTransaction(Lsn),
    /// One change a part, in the source's order, until past this position.
    OneChange(Lsn),
}

pub struct Applier {
    link: Arc<SinkLink>,
    shared: Arc<SourceShared>,
    observed: Arc<Observed>,
    tables: mpsc::Receiver<Tables>,
    stop: watch::Receiver<bool>,
    epoch: i64,
    hold: Hold,
    care: Care,
    /// Plans whose new rows turned out to exist already.
    merging: Vec<usize>,
    /// The least position that the sink ever reported in this run.
    reported: Lsn,
}

/// A session with the sink, from connecting to the first error.
struct Session {
    sink: Option<PostgresSink>,
    applying: Option<JoinHandle<(PostgresSink, Batch, Result<Option<crate::sink::Durable>, ApplyError>)>>,
    builder: Builder,
    reader: Reader,
    /// A block of which only the front was taken.
    rest: Option<(Bytes, usize)>,
    /// What the sink will hold when the batch under way is applied.
    sent: Checkpoint,
    recorded_at: Instant,
    started_at: Instant,
    /// Since when the sink waits for work.
    free_since: Instant,
    queue: VecDeque<Tables>,
    /// Announced changes of the sink's open transaction.
    touches: Vec<Touch>,
}

impl Session {
    /// The sink is free and has work, and yet more is worth waiting for.
    fn is_gathering(&self) -> bool {
        self.applying.is_none() && !self.builder.is_empty() && self.free_since.elapsed() < self.builder.gathers_for()
    }
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
            hold,
            care: Care::Fast,
            merging: Vec::new(),
            reported: Lsn::ZERO,
        }
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
        let client = match self.link.connect("tailwater apply").await {
            Ok(client) => client,
            Err(message) => return Err(again(&self.link, &self.observed, message)),
        };
        let read = async {
            let stored = state::read_checkpoint(&client, &self.link.source).await?;
            let tables = state::read_tables(&client, &self.link.source).await?;
            Ok::<_, tokio_postgres::Error>((stored, tables))
        };
        let (stored, tables) = match read.await {
            Ok((Some(stored), tables)) if stored.epoch == self.epoch => (stored, tables),
            Ok((Some(_), _)) => return Err(Over::End(End::fenced(&self.link.name))),
            Ok((None, _)) => {
                return Err(Over::End(End::Failed(format!("the checkpoint of sink \"{}\" is gone", self.link.name))));
            }
            Err(error) => return Err(again(&self.link, &self.observed, crate::postgres::error::describe(&error))),
        };
        let checkpoint = stored.checkpoint;
        let reader =
            self.shared.journal.reader(checkpoint.end_lsn).map_err(|gap| Over::End(End::gap(&self.link.name, &gap)))?;
        let sink = PostgresSink::new(
            client,
            SinkSetup {
                name: self.link.name.clone(),
                source: self.link.source.clone(),
                plans: self.link.plans.clone(),
                epoch: self.epoch,
                checkpoint,
                mask_key: self.link.mask_key.clone(),
            },
        );
        self.prove(&sink.durable());
        let mut session = Session {
            sink: Some(sink),
            applying: None,
            builder: Builder::new(&self.link.plans, checkpoint, self.limits()),
            reader,
            rest: None,
            sent: checkpoint,
            recorded_at: Instant::now(),
            started_at: Instant::now(),
            free_since: Instant::now(),
            queue: VecDeque::new(),
            touches: Vec::new(),
        };
        self.resume_tables(&mut session, &SinkTables::new(&self.link, tables)).await?;
        Ok(session)
    }

    /// Tables join the stream where they left it.
    async fn resume_tables(&mut self, session: &mut Session, tables: &SinkTables) -> Result<(), Over> {
        let mut waiting = Vec::new();
        for (plan_index, stored) in tables.by_plan.iter().enumerate() {
            let Some(stored) = stored else { continue };
            match stored.state {
                TableState::Streaming => session.builder.set_taking(plan_index, Taking::From(stored.lsn)),
                TableState::Catchup => waiting.push((plan_index, stored.lsn)),
                TableState::Pending | TableState::Copying | TableState::Paused | TableState::Quarantined => {}
            }
            self.observed.table_state(plan_index, stored.state);
        }
        for &plan_index in &self.merging {
            if let Some(sink) = &mut session.sink {
                sink.merge_inserts(plan_index);
            }
        }
        for (plan_index, lsn) in waiting {
            session.queue.push_back(Tables::Copied { plans: vec![plan_index], lsn });
        }
        Ok(())
    }

    fn limits(&self) -> BatchLimits {
        let config = &self.link.config;
        let fast = BatchLimits { rows: config.batch_rows_max, bytes: config.batch_bytes_max, commits: u64::MAX };
        match self.care {
            Care::Fast => fast,
            Care::OneTransaction(_) => BatchLimits { commits: 1, ..fast },
            Care::OneChange(_) => BatchLimits { commits: 1, rows: 1, ..fast },
        }
    }

    async fn session(&mut self, mut session: Session) -> Over {
        loop {
            if let Err(over) = self.dispatch(&mut session).await {
                return over;
            }
            let idle_in = session.recorded_at + self.link.config.idle_record;
            let wants_more = session.rest.is_none() && !session.builder.is_full();
            let stopping = *self.stop.borrow();
            let gathers_until = session.free_since + session.builder.gathers_for();
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
                    match item {
                        Ok(item) => if let Err(over) = self.take_in(&mut session, item) { return over },
                        Err(error) => return error.into(),
                    }
                }
                Some(tables) = self.tables.recv(), if !stopping => session.queue.push_back(tables),
                // Looked at in `dispatch`.
                () = tokio::time::sleep_until(gathers_until.into()), if session.is_gathering() => {}
                () = tokio::time::sleep_until(idle_in.into()), if session.applying.is_none() && !stopping => {
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
        if session.applying.is_some() {
            return Ok(());
        }
        self.fill(session)?;
        let ready = !session.builder.is_empty() && (session.builder.at_boundary() || session.builder.is_full());
        if ready {
            if !session.is_gathering() || *self.stop.borrow() {
                self.start(session);
            }
            return Ok(());
        }
        if !session.builder.is_empty() || !session.builder.at_boundary() {
            return Ok(());
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
        result: Result<Option<crate::sink::Durable>, ApplyError>,
    ) -> Result<(), Over> {
        match result {
            Ok(Some(durable)) => {
                self.observed.applied(batch, session.started_at.elapsed());
                self.prove(&durable);
                self.relax(session, durable.checkpoint().end_lsn);
                session.touches.clear();
                Ok(())
            }
            Ok(None) => {
                self.observed.pair.progress.working();
                self.observed.count(batch);
                Ok(())
            }
            Err(ApplyError::Transient { message }) => {
                self.observed.error(Stage::Apply, "transient", &self.link.name, &message);
                warn!(sink = %self.link.name, error = %message, "batch not applied, will be tried again");
                Err(Over::Again { wait: true })
            }
            Err(ApplyError::Fenced { .. }) => Err(Over::End(End::fenced(&self.link.name))),
            Err(ApplyError::Fatal { message }) => {
                self.observed.error(Stage::Apply, "fatal", &self.link.name, &message);
                Err(Over::End(End::Failed(format!("sink \"{}\": {message}", self.link.name))))
            }
            Err(ApplyError::Table { plan_index, sqlstate, message }) => {
                let reached = session.builder.reached().end_lsn.max(session.sent.end_lsn);
                self.table_failed(plan_index, sqlstate.as_deref(), &message, reached).await
            }
        }
    }

    /// A table did not take a row: look closer, and in the end leave the table out or stop.
    async fn table_failed(
        &mut self,
        plan_index: usize,
        sqlstate: Option<&str>,
        message: &str,
        reached: Lsn,
    ) -> Result<(), Over> {
        let target = self.link.plans[plan_index].target.to_string();
        // A row that exists already: another writer, or a table that was not empty. Its new rows are merged from now on.
        if sqlstate == Some("23505") && !self.merging.contains(&plan_index) {
            info!(sink = %self.link.name, table = %target, "new rows exist in the target already and are merged from now on");
            self.merging.push(plan_index);
            return Err(Over::Again { wait: false });
        }
        self.care = match self.care {
            Care::Fast => Care::OneTransaction(reached),
            Care::OneTransaction(until) => Care::OneChange(until.max(reached)),
            Care::OneChange(_) => {
                self.observed.error(Stage::Apply, "table", &target, message);
                return Err(self.leave_out(plan_index, message).await);
            }
        };
        warn!(sink = %self.link.name, table = %target, error = %message, "batch refused, trying smaller ones");
        Err(Over::Again { wait: false })
    }

    /// The stream cannot be read for one table, or not at all.
    fn build_failed(&mut self, build_error: BuildError) -> Over {
        match &build_error {
            BuildError::Table { plan_index, .. } => {
                let (plan_index, message) = (*plan_index, build_error.to_string());
                self.observed.error(Stage::Map, "table", &self.link.plans[plan_index].target.to_string(), &message);
                // The state is written over a connection of its own, before the next session reads it.
                let link = self.link.clone();
                let reason = message.clone();
                if link.config.on_error == crate::config::OnError::Stop {
                    return Over::End(End::Failed(message));
                }
                error!(sink = %link.name, table = %link.plans[plan_index].target, reason = %reason, "table is quarantined");
                tokio::spawn(async move { link.quarantine(plan_index, &reason).await });
                Over::Again { wait: true }
            }
            BuildError::Frame(_) | BuildError::Assemble(_) => {
                self.observed.error(Stage::Decode, "stream", &self.link.name, &build_error.to_string());
                Over::End(End::Failed(build_error.to_string()))
            }
        }
    }

    async fn leave_out(&mut self, plan_index: usize, message: &str) -> Over {
        let plan = self.link.plans[plan_index].clone();
        if self.link.config.on_error == crate::config::OnError::Stop {
            return Over::End(End::Failed(format!("table \"{}\": {message}", plan.target)));
        }
        error!(sink = %self.link.name, table = %plan.target, reason = %message, "table is quarantined");
        match self.link.quarantine(plan_index, message).await {
            Ok(()) => {
                self.care = Care::Fast;
                self.observed.table_state(plan_index, TableState::Quarantined);
                Over::Again { wait: false }
            }
            Err(error) => {
                warn!(sink = %self.link.name, %error, "quarantine not written, will be tried again");
                Over::Again { wait: true }
            }
        }
    }

    /// Past the place where a batch failed, batches may grow again.
    fn relax(&mut self, session: &mut Session, reached: Lsn) {
        let until = match self.care {
            Care::Fast => return,
            Care::OneTransaction(until) | Care::OneChange(until) => until,
        };
        if reached >= until {
            self.care = Care::Fast;
        } else if let Care::OneChange(until) = self.care {
            self.care = Care::OneTransaction(until);
        }
        session.builder.set_limits(self.limits());
    }

    fn prove(&mut self, durable: &crate::sink::Durable) {
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

    /// Copied tables catch up from the snapshot's point to the sink's checkpoint and join the stream there.
    async fn join_tables(&mut self, session: &mut Session, tables: Tables) -> Result<(), Over> {
        let Tables::Copied { plans, lsn } = tables;
        if session.sent.end_lsn > lsn {
            self.catch_up(session, &plans, lsn).await?;
        }
        for &plan_index in &plans {
            session.builder.set_taking(plan_index, Taking::From(lsn));
        }
        let Some(sink) = &mut session.sink else { return Ok(()) };
        for &plan_index in &plans {
            sink.set_tolerant(plan_index, false);
            let plan = self.link.plans[plan_index].clone();
            let written = state::write_table(
                sink.client(),
                &plan.source,
                &plan.from,
                &plan.target,
                TableState::Streaming,
                lsn,
                None,
            );
            if let Err(error) = written.await {
                warn!(sink = %self.link.name, error = %crate::postgres::error::describe(&error), "table state not written");
                return Err(Over::Again { wait: true });
            }
            self.observed.table_state(plan_index, TableState::Streaming);
            info!(sink = %self.link.name, table = %plan.target, %lsn, "table streams");
        }
        self.link.mark(&plans);
        Ok(())
    }

    /// Applies what the journal holds for these tables between their snapshot and the sink's checkpoint. May run again
    /// from the start after a crash: the changes are idempotent, and the checkpoint does not move.
    async fn catch_up(&mut self, session: &mut Session, plans: &[usize], from: Lsn) -> Result<(), Over> {
        let at = session.sent;
        let mut reader = self.shared.journal.reader(from).map_err(|gap| Over::End(End::gap(&self.link.name, &gap)))?;
        let start = Checkpoint { commit_lsn: from, end_lsn: from, ordinal: 0, commit_ts: None };
        let mut builder = Builder::new(&self.link.plans, start, self.limits());
        builder.stop_at(at.end_lsn);
        for &plan_index in plans {
            builder.set_taking(plan_index, Taking::From(from));
            builder.distrust_inserts(plan_index);
            self.observed.table_state(plan_index, TableState::Catchup);
            if let Some(sink) = &mut session.sink {
                sink.set_tolerant(plan_index, true);
            }
        }
        let mut ended = false;
        let mut rest: Option<(Bytes, usize)> = None;
        while !ended || rest.is_some() || !builder.is_empty() {
            if rest.is_none() && !ended && !builder.is_full() {
                match reader.next().await? {
                    Item::Restarted if builder.at_boundary() => {}
                    Item::Restarted => return Err(Over::Again { wait: false }),
                    Item::Block(block) => {
                        ended = block.end.end_lsn >= at.end_lsn;
                        rest = Some((block.bytes, 0));
                    }
                }
            }
            if let Some((bytes, place)) = rest.take() {
                match builder.push(&bytes, place) {
                    Ok(Taken::Whole) => {}
                    Ok(Taken::Until(next)) => rest = Some((bytes, next)),
                    Err(error) => return Err(self.build_failed(error)),
                }
            }
            if builder.is_full() || (ended && rest.is_none()) {
                let mut batch = builder.take();
                if let crate::batch::BatchEnd::Commit(_) = batch.end {
                    batch.end = crate::batch::BatchEnd::Commit(at);
                }
                let Some(sink) = &mut session.sink else { return Ok(()) };
                let result = sink.apply(&batch).await;
                self.observed.count(&batch);
                if let Err(error) = result {
                    return self.applied(session, &batch, Err(error)).await;
                }
            }
        }
        Ok(())
    }
}
