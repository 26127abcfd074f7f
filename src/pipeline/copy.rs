//! First copies: tables that a mapping names and a sink does not hold yet, taken while everything else streams on.
//!
//! A temporary slot exports a snapshot; its consistent point L is where all tables of this copy stand afterwards. Tables
//! are copied one after the other, each in ranges of physical blocks over several connections. What the stream brings for
//! them meanwhile waits in the journal, which a hold keeps. At the end all of them join the stream together.
//!
//! How a table is copied into each kind of sink, and what is made of a copy that was cut short, is said in files of their
//! own; [`under_way`] is what they have in common.

mod clickhouse;
mod gone;
mod kafka;
mod postgres;
mod resume;
mod under_way;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tracing::warn;

use super::applier::{SourceShared, Tables};
use super::drift::Drift;
use super::link::SinkLink;
use super::{End, Observed};
use crate::diagnostic::chain;
use crate::journal::Hold;
use crate::lsn::Lsn;
use crate::postgres::url::PgUrl;
use crate::retry::Backoff;
use crate::sink::any::SinkAddress;
use crate::sink::state::TableState;
use crate::source::snapshot::SnapshotError;
use crate::telemetry::handles::Stage;

/// What is to be copied, from where to where.
pub struct CopyJob {
    pub link: Arc<SinkLink>,
    pub observed: Arc<Observed>,
    pub url: PgUrl,
    pub connections: usize,
    /// The source's slot: its name is the stem of the temporary one's.
    pub slot: String,
    pub epoch: i64,
    pub plans: Vec<usize>,
    pub shared: Arc<SourceShared>,
    pub stop: watch::Receiver<bool>,
}

/// Why a copy did not come to its end.
enum Broken {
    /// Go on, after a pause, from what the sink holds by then.
    Again(String),
    /// The same, but this table does not go on: what it has stands in the way.
    Anew {
        plan_index: usize,
        message: String,
    },
    /// This table is not what its plan was made for.
    Changed {
        plan_index: usize,
        at: Lsn,
    },
    /// This table cannot be copied; the others can.
    Table {
        plan_index: usize,
        message: String,
    },
    Fenced,
}

/// A table that is in, and joins the stream by itself.
struct Filled {
    plan_index: usize,
    /// The copy's point.
    lsn: Lsn,
    /// Where it ended.
    until: Lsn,
}

impl From<SnapshotError> for Broken {
    fn from(error: SnapshotError) -> Self {
        Broken::Again(format!("source: {}", chain(&error)))
    }
}

/// Copies until all tables are in or cannot be.
pub async fn run(mut job: CopyJob, hold: Hold, joined: mpsc::Sender<Tables>) -> End {
    let mut backoff = Backoff::new(u64::from(std::process::id()) ^ 0x5eed);
    let mut anew = BTreeSet::new();
    while !job.plans.is_empty() {
        if *job.stop.borrow() {
            return End::Stopped;
        }
        let (mut stop, mut filled) = (job.stop.clone(), Vec::new());
        let attempt = tokio::select! {
            attempt = attempt(&job, &hold, &mut anew, &mut filled) => attempt,
            _ = stop.changed() => return End::Stopped,
        };
        for Filled { plan_index, lsn, until } in filled {
            job.plans.retain(|&plan| plan != plan_index);
            let hold = job.shared.journal.hold("catch up");
            hold.set(lsn);
            let _ = joined.send(Tables { plans: vec![plan_index], lsn, until, hold }).await;
        }
        match attempt {
            Ok(_) if job.plans.is_empty() => return End::Stopped,
            Ok((lsn, until)) => {
                let tables = Tables { plans: std::mem::take(&mut job.plans), lsn, until, hold };
                // Nobody receives only when the daemon is on its way out.
                let _ = joined.send(tables).await;
                return End::Stopped;
            }
            Err(Broken::Fenced) => return End::fenced(&job.link.name),
            Err(Broken::Changed { plan_index, at }) => {
                let plan = &job.link.plans[plan_index];
                let (source, table) = (plan.source.clone(), plan.from.clone());
                return End::Drift(Drift { source, table, at, why: "it changed before its copy began".to_owned() });
            }
            Err(Broken::Table { plan_index, message }) => {
                let target = job.link.plans[plan_index].target.to_string();
                job.observed.error(Stage::Snapshot, "table", &target, &message);
                if job.link.config.on_error == crate::config::OnError::Stop {
                    return End::Failed(format!("table \"{target}\" cannot be copied: {message}"));
                }
                warn!(sink = %job.link.name, table = %target, reason = %message, "table is quarantined");
                if job.link.quarantine(plan_index, &message).await.is_ok() {
                    job.plans.retain(|&plan| plan != plan_index);
                    job.observed.table_state(plan_index, TableState::Quarantined);
                }
            }
            Err(Broken::Anew { plan_index, message }) => {
                let target = &job.link.plans[plan_index].target;
                warn!(sink = %job.link.name, table = %target, error = %message, "copy does not go on from what it has");
                anew.insert(plan_index);
            }
            Err(Broken::Again(message)) => {
                job.observed.error(Stage::Snapshot, "copy", &job.link.name, &message);
                warn!(sink = %job.link.name, error = %message, "copy was cut short, going on from what it has");
                if super::source::pause(backoff.next().unwrap_or_default(), &mut job.stop).await {
                    return End::Stopped;
                }
            }
        }
    }
    End::Stopped
}

/// One attempt at all tables. Answers where they stand and from where on they are whole.
async fn attempt(
    job: &CopyJob,
    hold: &Hold,
    anew: &mut BTreeSet<usize>,
    filled: &mut Vec<Filled>,
) -> Result<(Lsn, Lsn), Broken> {
    match job.link.address {
        SinkAddress::Postgres(_) => postgres::copy_all(job, hold, anew).await,
        SinkAddress::ClickHouse(..) => clickhouse::copy_all(job, hold).await,
        SinkAddress::Kafka(_) => kafka::copy_all(job, hold, filled).await,
    }
}
