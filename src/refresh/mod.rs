//! Materialized views of a sink, refreshed after tables that they depend on changed.
//!
//! ```text
//!  appliers ──▶ TouchedTables ──▶ schedule: what is due ──▶ round: refresh together ──▶ tailwater.view_state
//!              (a set, never waits)      ▲                   (a connection of its own)
//!                             graph: what reads what
//! ```
//!
//! In Postgres a round is one REPEATABLE READ transaction, and a view shows exactly the positions that are recorded; in
//! ClickHouse views are refreshed one after the other, and each shows at least them.
//!
//! The refresher has its own connection and nobody waits for it, so a slow refresh delays no checkpoint. Nothing is lost
//! with it: which views are behind stands in the sink, and is asked on every new connection. A view that reads a table of
//! which a first copy is under way keeps its content until that table streams: half a table is a state that the source
//! never had.

mod check;
mod clickhouse;
mod graph;
mod round;
mod schedule;
mod session;
mod touched;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{debug, info, warn};

pub use check::{check_clickhouse_views, check_views};
pub use graph::{Found, View, ViewGraph, dependencies};
pub use touched::{Touch, TouchedTables};

use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::mapping::plan::ViewPlan;
use crate::postgres::connect::ConnectError;
use crate::postgres::error::SqlError;
use crate::retry::{Backoff, Retry};
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::error::ClickHouseError;
use schedule::Schedule;
use session::{Refused, Session};

/// What a person must mend is not tried more often than this.
const PERMANENT_WAIT: Duration = Duration::from_secs(60);

/// How long a view waits for the first copy of a table to end before it asks again.
const COPY_WAIT: Duration = Duration::from_secs(1);

/// How old the catalog's answer may be when tables change that no view is known to read. (Before a refresh it is asked
/// again in any case.)
const GRAPH_AGE_MAX: Duration = Duration::from_secs(60);

/// Told of everything that happens to views. Called from the refresher's task: must not block.
pub trait Observer: Send + Sync {
    /// The view no longer shows what its tables hold; called once until it does again.
    fn stale(&self, view: &TableName);
    /// A refresh was committed, or was not made.
    fn refreshed(&self, view: &TableName, outcome: Result<&Refreshed, &RefreshError>);
    /// The connection or the state tables failed, so no view was refreshed; it is tried again.
    fn failed(&self, error: &RefreshError);
}

/// What a view shows since its last refresh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refreshed {
    /// The position of every source of the sink: an `end_lsn`.
    pub lsns: Vec<(String, Lsn)>,
    /// How long the REFRESH took.
    pub elapsed: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Sql(#[from] SqlError),
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// In ClickHouse, by `SYSTEM STOP VIEW`.
    #[error("its refreshes are stopped at the server; run `SYSTEM START VIEW`")]
    Stopped,
    /// The daemon's first start makes them.
    #[error("the state tables do not exist yet")]
    NoState,
    #[error("Kafka has no views")]
    NoViews,
    #[error("it reads \"{upstream}\", which was not refreshed")]
    Upstream { upstream: TableName },
}

impl RefreshError {
    pub fn retry(&self) -> Retry {
        match self {
            RefreshError::Connect(error) => error.retry(),
            RefreshError::Sql(error) => error.retry(),
            RefreshError::ClickHouse(error) => error.retry(),
            RefreshError::NoViews => Retry::Never,
            RefreshError::Upstream { .. } | RefreshError::Stopped | RefreshError::NoState => Retry::Backoff,
        }
    }
}

/// What a refresher is made from.
pub struct RefresherSetup<O> {
    /// The `[sink.NAME]`, for logs.
    pub sink: String,
    pub address: SinkAddress,
    pub app_name: String,
    /// The views of this sink.
    pub views: Vec<ViewPlan>,
    /// The tables that the daemon fills there; `touched` speaks of them by index.
    pub targets: Vec<TableName>,
    pub touched: Arc<TouchedTables>,
    pub observer: O,
    /// For the waits between tries.
    pub seed: u64,
}

/// Keeps the views of one sink fresh.
pub struct Refresher<O> {
    setup: RefresherSetup<O>,
    schedule: Schedule,
    /// Of the connection: the waits while it fails, and why it failed last.
    backoff: Backoff,
    cause: Option<String>,
    /// The same of each view.
    troubles: Vec<Trouble>,
}

struct Trouble {
    backoff: Backoff,
    cause: Option<String>,
}

/// What became of one view of a round.
enum Outcome {
    Done(Duration),
    Failed(RefreshError),
    /// A table that it reads is being copied.
    Copying(TableName),
    /// As its upstream, the view at this index.
    Blocked(usize),
}

impl<O: Observer> Refresher<O> {
    pub fn new(setup: RefresherSetup<O>) -> Self {
        let trouble = |place: usize| Trouble { backoff: Backoff::new(setup.seed ^ (place as u64 + 1)), cause: None };
        Refresher {
            schedule: Schedule::new(&setup.views, setup.targets.clone()),
            backoff: Backoff::new(setup.seed),
            cause: None,
            troubles: (0..setup.views.len()).map(trouble).collect(),
            setup,
        }
    }

    /// Runs until `shutdown` says true or its sender is gone; then cancels what runs and returns within two seconds.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        if self.setup.views.is_empty() {
            return;
        }
        while let Err(error) = self.session(&mut shutdown).await {
            self.setup.observer.failed(&error);
            log_once(&mut self.cause, &error, &self.setup.sink, None);
            let wait = match error.retry() {
                Retry::Backoff => self.backoff.next().unwrap_or(Backoff::LONGEST),
                Retry::Never => PERMANENT_WAIT,
            };
            tokio::select! {
                biased;
                () = stopped(&mut shutdown) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One connection's life; ends well only at shutdown.
    async fn session(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), RefreshError> {
        // Shutdown first, so that a busy refresher cannot overlook it.
        let session = tokio::select! {
            biased;
            () = stopped(shutdown) => return Ok(()),
            session = Session::open(&self.setup.address, &self.setup.app_name) => session?,
        };
        tokio::select! {
            biased;
            () = stopped(shutdown) => {}
            outcome = self.serve(&session) => match outcome {
                Err(error) => return Err(error),
                Ok(never) => match never {},
            },
        }
        session.leave().await;
        Ok(())
    }

    async fn serve(&mut self, session: &Session) -> Result<Infallible, RefreshError> {
        self.look(session).await?;
        let mut looked = Instant::now();
        for view in session.behind(&self.setup.views).await? {
            if self.schedule.mark_stale(view) {
                self.setup.observer.stale(&self.setup.views[view].view);
            }
        }
        loop {
            let touched = self.setup.touched.take();
            for view in self.schedule.touch(&touched) {
                self.setup.observer.stale(&self.setup.views[view].view);
            }
            if !touched.is_empty() && looked.elapsed() > GRAPH_AGE_MAX {
                self.look(session).await?;
                looked = Instant::now();
            }
            let now = Instant::now();
            match self.schedule.next_due(now) {
                Some(due) if due <= now => {
                    let graph = self.look(session).await?;
                    looked = Instant::now();
                    self.round(session, &graph).await?;
                }
                due => tokio::select! {
                    () = self.setup.touched.changed() => {}
                    () = until(due) => {}
                },
            }
            // Not before: a round that fails again and again is to be tried less and less.
            self.backoff.reset();
            self.cause = None;
        }
    }

    /// Reads what the views depend on.
    async fn look(&mut self, session: &Session) -> Result<ViewGraph, RefreshError> {
        let names: Vec<_> = self.setup.views.iter().map(|plan| plan.view.clone()).collect();
        let graph = session.dependencies(&names).await?;
        for view in self.schedule.learn(&graph) {
            self.setup.observer.stale(&self.setup.views[view].view);
        }
        Ok(graph)
    }

    /// Refreshes what is due, together.
    async fn round(&mut self, session: &Session, graph: &ViewGraph) -> Result<(), RefreshError> {
        let began = Instant::now();
        let round = session.begin().await?;
        let partial: BTreeSet<_> = round.partial().iter().filter_map(|table| self.schedule.target(table)).collect();
        // Asked after the snapshot was taken: every change that the snapshot shows has been announced by now.
        let group = self.schedule.group(began, &self.setup.touched.seen());
        let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
        for view in group {
            let plan = &self.setup.views[view];
            // A view whose upstream waits for a copy waits for the same: its tables are its upstream's, too.
            let failed = |other: &usize| matches!(outcomes.get(other), Some(Outcome::Failed(_)));
            let outcome = if let Some(table) = partial.iter().find(|&&table| self.schedule.reads(view, &[table].into()))
            {
                Outcome::Copying(self.setup.targets[*table].clone())
            } else if let Some(upstream) = self.schedule.upstream(view).find(failed) {
                Outcome::Blocked(upstream)
            } else if let Some(known) = graph.view(&plan.view) {
                match round.refresh(plan, known).await? {
                    Ok(elapsed) => Outcome::Done(elapsed),
                    Err(Refused(error)) => Outcome::Failed(error),
                }
            } else {
                continue;
            };
            outcomes.insert(view, outcome);
        }
        let done = outcomes.iter().filter_map(|(view, outcome)| match outcome {
            Outcome::Done(elapsed) => Some((&self.setup.views[*view].view, *elapsed)),
            _ => None,
        });
        let done = done.collect();
        let lsns = round.lsns().to_vec();
        round.commit(&done).await?;
        self.settle(outcomes, &lsns, began);
        Ok(())
    }

    /// Notes and tells what became of the views of a round that was committed.
    fn settle(&mut self, outcomes: BTreeMap<usize, Outcome>, lsns: &[(String, Lsn)], began: Instant) {
        // Those that wait for another one's next try last, when that is known.
        let mut outcomes = Vec::from_iter(outcomes);
        outcomes.sort_by_key(|(_, outcome)| matches!(outcome, Outcome::Blocked(_)));
        for (view, outcome) in outcomes {
            let name = &self.setup.views[view].view;
            let trouble = &mut self.troubles[view];
            match outcome {
                Outcome::Done(elapsed) => {
                    let again = trouble.cause.take().is_some();
                    trouble.backoff.reset();
                    self.schedule.refreshed(view, began);
                    let elapsed_ms = elapsed.as_millis() as u64;
                    match again {
                        true => info!(sink = %self.setup.sink, view = %name, elapsed_ms, "view is refreshed again"),
                        false => debug!(sink = %self.setup.sink, view = %name, elapsed_ms, "view refreshed"),
                    }
                    let refreshed = Refreshed { lsns: lsns.to_vec(), elapsed };
                    self.setup.observer.refreshed(name, Ok(&refreshed));
                }
                Outcome::Copying(table) => {
                    if trouble.cause.replace(format!("copying {table}")).is_none() {
                        info!(sink = %self.setup.sink, view = %name, table = %table, "view waits for a table's first copy");
                    }
                    self.schedule.postpone(view, Instant::now() + COPY_WAIT);
                }
                Outcome::Failed(error) => {
                    let wait = match error.retry() {
                        Retry::Backoff => trouble.backoff.next().unwrap_or(Backoff::LONGEST),
                        Retry::Never => PERMANENT_WAIT.max(self.setup.views[view].every),
                    };
                    self.schedule.postpone(view, Instant::now() + wait);
                    log_once(&mut trouble.cause, &error, &self.setup.sink, Some(name));
                    self.setup.observer.refreshed(name, Err(&error));
                }
                Outcome::Blocked(upstream) => {
                    let error = RefreshError::Upstream { upstream: self.setup.views[upstream].view.clone() };
                    self.schedule.postpone_with(view, upstream);
                    log_once(&mut trouble.cause, &error, &self.setup.sink, Some(name));
                    self.setup.observer.refreshed(name, Err(&error));
                }
            }
        }
    }
}

/// A cause is a person's business when it is new.
fn log_once(last: &mut Option<String>, error: &RefreshError, sink: &str, view: Option<&TableName>) {
    let cause = match error {
        RefreshError::Connect(ConnectError::Refused { source, .. }) => format!("{error}: {source}"),
        _ => error.to_string(),
    };
    let view = view.map(tracing::field::display);
    if last.as_ref() == Some(&cause) {
        debug!(sink, view, error = %cause, "refresh failed again");
    } else {
        warn!(sink, view, error = %cause, "refresh failed");
        *last = Some(cause);
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// A sender that is gone will never say stop: that is a stop.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}
