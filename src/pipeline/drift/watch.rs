//! Looks at the catalog now and then while a source streams, for what no message tells; and notes what tables are made of
//! once their copy's point is fixed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_postgres::Client;
use tracing::{debug, warn};

use super::rows::unpublished;
use super::warehouse::{Warehouse, WarehouseError};
use super::{Drift, store};
use crate::catalog::TableName;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;
use crate::pipeline::link::SinkLink;
use crate::postgres::connect::connect;
use crate::postgres::url::PgUrl;
use crate::sink::any::SinkSession;
use crate::sink::state::TableState;
use crate::source::layout::{Change, Layout, read_layouts};
use crate::source::probe::{PublicationRow, probe};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long the sink is waited for before a change is acted upon.
const APPLIED_WITHIN: Duration = Duration::from_secs(60);

/// Which tables of a sink are being copied. A column that is added before the copy's point and written to is lost to the
/// copy, so what a table is made of is noted after the point was fixed, and must then be what the plan was made for.
#[derive(Default)]
pub struct Copies {
    state: Mutex<CopiesState>,
    /// Wakes the one who notes.
    begun: Notify,
}

#[derive(Default)]
struct CopiesState {
    /// Plans that wait for their copy or are in it.
    open: BTreeSet<usize>,
    /// Plans whose copy's point was fixed since somebody noted.
    due: BTreeSet<usize>,
}

impl Copies {
    /// A plan's table has another state.
    pub fn set_state(&self, plan_index: usize, state: TableState) {
        let mut copies = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state {
            TableState::Pending => {
                copies.open.insert(plan_index);
            }
            // One snapshot serves all tables of a copy, and the first of them begins after it was taken.
            TableState::Copying => {
                copies.open.insert(plan_index);
                let open = copies.open.clone();
                copies.due.extend(open);
                self.begun.notify_one();
            }
            TableState::Catchup | TableState::Streaming | TableState::Paused | TableState::Quarantined => {
                copies.open.remove(&plan_index);
            }
        }
    }

    fn take_due(&self) -> BTreeSet<usize> {
        std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).due)
    }

    fn put_back(&self, due: BTreeSet<usize>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).due.extend(due);
    }
}

/// One sink of the source that is watched.
pub struct Watch {
    pub url: PgUrl,
    pub slot: String,
    pub publication: String,
    pub link: Arc<SinkLink>,
    pub copies: Arc<Copies>,
    pub stop: watch::Receiver<bool>,
}

/// Sessions with both ends.
struct Session {
    source: Client,
    sink: SinkSession,
}

impl Watch {
    /// Watches until told to stop, or until something must be looked at more closely.
    pub async fn run(mut self) -> Option<Drift> {
        let mut session = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = self.copies.begun.notified() => {}
                _ = self.stop.changed() => return None,
            }
            if *self.stop.borrow() {
                return None;
            }
            let due = self.copies.take_due();
            let mut stop = self.stop.clone();
            let looked = tokio::select! {
                looked = self.look(&mut session, &due) => looked,
                _ = stop.changed() => return None,
            };
            match looked {
                Ok(None) => {}
                Ok(Some(drift)) => {
                    tokio::select! {
                        () = self.applied(session.as_ref(), drift.at) => return Some(drift),
                        _ = stop.changed() => return None,
                    }
                }
                Err(message) => {
                    debug!(sink = %self.link.name, error = %message, "catalog not looked at");
                    session = None;
                    self.copies.put_back(due);
                }
            }
        }
    }

    /// Waits until the sink has what precedes the look, if that takes no longer than a moment: a table that is then left out
    /// stands where it changed. A sink that lags gets there by itself, where the stream shows the change.
    async fn applied(&self, session: Option<&Session>, at: Lsn) {
        let Some(session) = session else { return };
        let deadline = tokio::time::Instant::now() + APPLIED_WITHIN;
        while tokio::time::Instant::now() < deadline {
            match session.sink.read_checkpoint(&self.link.source).await {
                Ok(Some(stored)) if stored.checkpoint.end_lsn < at => {}
                Ok(_) | Err(_) => return,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn connect(&self) -> Result<Session, String> {
        let source = connect(&self.url, "tailwater watch").await.map_err(|error| error.to_string())?.client;
        let sink = self.link.connect("tailwater watch").await?;
        if let Some(warehouse) = Warehouse::of(&sink) {
            store::ensure(warehouse).await.map_err(|error| error.to_string())?;
        }
        Ok(Session { source, sink })
    }

    async fn look(&self, session: &mut Option<Session>, due: &BTreeSet<usize>) -> Result<Option<Drift>, String> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.connect().await?),
        };
        let sql = |error: tokio_postgres::Error| crate::postgres::error::describe(&error);
        let names: Vec<TableName> = self.link.plans.iter().map(|plan| plan.from.clone()).collect();
        // The position first: what is seen happened at the latest there.
        let at =
            "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text";
        let at: Option<String> = session.source.query_one(at, &[]).await.map_err(sql)?.get(0);
        let at = at.and_then(|at| at.parse().ok()).unwrap_or(Lsn::ZERO);
        let found = probe(&session.source, &self.slot, &self.publication).await.map_err(|error| error.to_string())?;
        let published = found.publication;
        let layouts = read_layouts(&session.source, &names).await.map_err(|error| error.to_string())?;
        let Some(warehouse) = Warehouse::of(&session.sink) else {
            return self.look_at_topics(session, at, published.as_ref(), &layouts).await;
        };
        let failed = |error: WarehouseError| error.to_string();
        let stored = store::read(warehouse, &self.link.source).await.map_err(failed)?;
        let states = session.sink.read_tables(&self.link.source).await?;
        for (plan_index, plan) in self.link.plans.iter().enumerate() {
            let drift = |why: &str| {
                let (source, table) = (plan.source.clone(), plan.from.clone());
                Some(Drift { source, table, at, why: why.to_owned() })
            };
            let state = states.iter().find(|table| table.target == plan.target).map(|table| table.state);
            let now = layouts.get(&plan.from);
            if due.contains(&plan_index) {
                match now {
                    Some(now) if is_planned(plan, now) => {
                        store::write(warehouse, &plan.source, &plan.target, now).await.map_err(failed)?;
                        continue;
                    }
                    _ => return Ok(drift("it changed while its copy began")),
                }
            }
            if !matches!(state, Some(TableState::Catchup | TableState::Streaming)) {
                continue;
            }
            let Some(stored) = stored.get(&plan.target) else { continue };
            if let Some(why) = published.as_ref().and_then(|there| unpublished(there, &plan.from)) {
                return Ok(drift(why));
            }
            let Some(now) = now else { return Ok(drift("it has another name, or is gone")) };
            let changes = now.since(stored);
            if let Some(change) = changes.iter().find(|change| matters(plan, change)) {
                return Ok(drift(told(change)));
            }
            // What does not matter by itself must not be taken for a part of what comes next.
            let fresh = refreshed(stored, now);
            if fresh != *stored {
                store::write(warehouse, &plan.source, &plan.target, &fresh).await.map_err(failed)?;
            }
        }
        Ok(None)
    }

    /// What else happens to a table that goes to Kafka, its messages tell.
    async fn look_at_topics(
        &self,
        session: &Session,
        at: Lsn,
        published: Option<&PublicationRow>,
        layouts: &BTreeMap<TableName, Layout>,
    ) -> Result<Option<Drift>, String> {
        let mut changed = Vec::new();
        for plan in &self.link.plans {
            let gone = (!layouts.contains_key(&plan.from)).then_some("it has another name, or is gone");
            let why = gone.or_else(|| published.and_then(|there| unpublished(there, &plan.from)));
            changed.extend(why.map(|why| (plan.as_ref(), why)));
        }
        if changed.is_empty() {
            return Ok(None);
        }
        let states = session.sink.read_tables(&self.link.source).await?;
        let is_followed = |plan: &Plan| {
            let state = states.iter().find(|table| table.target == plan.target).map(|table| table.state);
            matches!(state, Some(TableState::Catchup | TableState::Streaming))
        };
        let drift = changed.into_iter().find(|(plan, _)| is_followed(plan)).map(|(plan, why)| {
            let (source, table) = (plan.source.clone(), plan.from.clone());
            Drift { source, table, at, why: why.to_owned() }
        });
        Ok(drift)
    }
}

/// Is the table what the plan was made for?
pub fn is_planned(plan: &Plan, now: &Layout) -> bool {
    let expected = &plan.expected;
    let columns = expected.columns.iter().map(|column| (&column.name, column.type_oid, column.type_modifier));
    let found = now.columns.iter().map(|column| (&column.name, column.type_oid, column.type_modifier));
    expected.oid == now.oid && columns.eq(found)
}

/// Must somebody look closer? Columns of a mapping that names its own may come and go.
fn matters(plan: &Plan, change: &Change) -> bool {
    match change {
        Change::NewPartition(_) => false,
        // Known, and left out on purpose.
        Change::Added { column, .. } => {
            plan.follows_columns && !column.generated && plan.expected.column(&column.name).is_none()
        }
        Change::OtherTable { .. }
        | Change::Dropped { .. }
        | Change::Renamed { .. }
        | Change::Type { .. }
        | Change::Rewritten { .. }
        | Change::Attached(_)
        | Change::Gone(_)
        | Change::Refiled(_) => true,
    }
}

fn told(change: &Change) -> &'static str {
    match change {
        Change::OtherTable { .. } => "it is another table now",
        Change::Added { .. } => "a column was added",
        Change::Dropped { .. } => "a column was dropped",
        Change::Renamed { .. } => "a column was renamed",
        Change::Type { .. } => "a column's type was changed",
        Change::Rewritten { .. } => "its rows were written anew",
        Change::Attached(_) | Change::NewPartition(_) => "a partition was attached",
        Change::Gone(_) => "a partition is gone",
        Change::Refiled(_) => "a partition was truncated or written anew",
    }
}

/// The older look with what is new of the columns that both have, and of the storage.
fn refreshed(stored: &Layout, now: &Layout) -> Layout {
    let mut fresh = stored.clone();
    for column in &mut fresh.columns {
        if let Some(known) = now.number(column.number) {
            column.changed.clone_from(&known.changed);
        }
    }
    fresh.storage.clone_from(&now.storage);
    fresh
}

/// Says why a run ends and begins again.
pub fn announce(drift: &Drift) {
    warn!(source = %drift.source, table = %drift.table, lsn = %drift.at, why = %drift.why, "the table changed, looking at it again");
}
