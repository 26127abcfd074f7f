//! Keys that rows left between two snapshots of a copy, by deletion or by another key, are removed from the target.
//!
//! The journal tells them. Images are not looked at: a row that exists is read through the later snapshot, whole, so that
//! no value has to be found where some row was at some time. A key that is removed although a row has it by now is among
//! those that are read again. So order does not matter, every part may be done twice, and what is done is noted at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::postgres::{broken, connect};
use super::{Broken, CopyJob};
use crate::batch::{Batch, BatchEnd, BatchLimits, BuildError, Builder, Net, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::journal::{Hold, Item, JournalError};
use crate::lsn::Lsn;
use crate::mapping::plan::{DeleteMode, Plan};
use crate::postgres::error::describe;
use crate::sink::postgres::{PostgresSink, cursor};
use crate::sink::state::name_text;
use crate::sink::{ApplyError, SinkSetup};

/// After this without news what was read is noted: a full journal takes no more in before it is let go.
const STALL: Duration = Duration::from_secs(1);

impl From<JournalError> for Broken {
    fn from(error: JournalError) -> Self {
        Broken::Again(error.to_string())
    }
}

/// Removes what left these plans' tables between their positions and `until`. Waits for the journal to get there.
pub(super) async fn remove(job: &CopyJob, tables: &[(usize, Lsn)], until: Lsn, hold: &Hold) -> Result<(), Broken> {
    let Some(from) = tables.iter().map(|(_, lsn)| *lsn).min() else { return Ok(()) };
    let start = Checkpoint { commit_lsn: from, end_lsn: from, ordinal: 0, commit_ts: None };
    let plans: Vec<_> = job.link.plans.iter().map(|plan| Arc::new(hard(plan))).collect();
    let mut remover = Remover::new(job, plans.clone(), start, tables).await?;
    let mut reader = job.shared.journal.reader(from).map_err(JournalError::from)?;
    let mut builder = Builder::new(&plans, start, limits(job));
    builder.stop_at(until);
    for &(plan_index, lsn) in tables {
        builder.set_taking(plan_index, Taking::From(lsn));
    }
    let mut ended = from >= until;
    let mut rest: Option<(Bytes, usize)> = None;
    while !ended || rest.is_some() || !builder.is_empty() {
        let mut is_stalled = false;
        if rest.is_none() && !ended && !builder.is_full() {
            let next = tokio::select! {
                biased;
                item = reader.next() => Some(item?),
                () = tokio::time::sleep(STALL) => None,
            };
            match next {
                None => is_stalled = true,
                Some(Item::Restarted) if builder.at_boundary() => {}
                // Some of a transaction that comes again may be removed already, which does no harm.
                Some(Item::Restarted) => return Err(Broken::Again("the stream began again".to_owned())),
                Some(Item::Block(block)) => {
                    ended = block.end.end_lsn >= until;
                    rest = Some((block.bytes, 0));
                }
            }
        }
        if let Some((bytes, place)) = rest.take() {
            match builder.push(&bytes, place).map_err(unreadable)? {
                Taken::Whole => {}
                Taken::Until(next) => rest = Some((bytes, next)),
            }
        }
        if builder.is_full() || is_stalled || (ended && rest.is_none()) {
            let batch = builder.take();
            let reached = builder.reached().end_lsn.min(until);
            remover.remove(batch, reached).await?;
            hold.set(reached);
        }
    }
    remover.remove(Batch::checkpoint_only(start), until).await?;
    hold.set(until);
    Ok(())
}

/// The plan with every row that left its key gone, whatever the mapping wants of deletes: none would have been copied had
/// the copy begun later.
fn hard(plan: &Plan) -> Plan {
    Plan { delete: DeleteMode::Hard, deleted_column: None, ..plan.clone() }
}

fn limits(job: &CopyJob) -> BatchLimits {
    let config = &job.link.config;
    BatchLimits { rows: config.batch_rows_max, bytes: config.batch_bytes_max, commits: u64::MAX }
}

/// A table whose changes cannot be read is copied anew.
fn unreadable(error: BuildError) -> Broken {
    let message = error.to_string();
    match error {
        BuildError::Table { plan_index, .. } => Broken::Anew { plan_index, message },
        BuildError::Frame(_) | BuildError::Assemble(_) => Broken::Again(message),
    }
}

struct Remover<'a> {
    job: &'a CopyJob,
    sink: PostgresSink,
    targets: Vec<String>,
}

impl<'a> Remover<'a> {
    async fn new(
        job: &'a CopyJob,
        plans: Vec<Arc<Plan>>,
        checkpoint: Checkpoint,
        tables: &[(usize, Lsn)],
    ) -> Result<Self, Broken> {
        let targets = tables.iter().map(|&(plan, _)| name_text(&plans[plan].target)).collect();
        let client = connect(job).await?;
        let setup = SinkSetup {
            name: job.link.name.clone(),
            source: job.link.source.clone(),
            plans,
            epoch: job.epoch,
            checkpoint,
            mask_key: job.link.mask_key.clone(),
        };
        let mut sink = PostgresSink::new(client, setup);
        // What is read may have been sent in both forms.
        sink.take_text();
        Ok(Remover { job, sink, targets })
    }

    /// Removes one batch's keys and notes how far that is, in one transaction.
    async fn remove(&mut self, mut batch: Batch, reached: Lsn) -> Result<(), Broken> {
        for table in &mut batch.tables {
            if table.truncate.is_some() {
                let message = "the source's table was truncated since".to_owned();
                return Err(Broken::Anew { plan_index: table.plan_index, message });
            }
            table.entries.retain(|entry| matches!(entry.net, Net::Delete | Net::MovedAway));
        }
        let batch = Batch { end: BatchEnd::Open, ..batch };
        self.sink.begin().await.map_err(|error| self.failed(error))?;
        self.sink.apply(&batch).await.map_err(|error| self.failed(error))?;
        let noted =
            cursor::note_gone(self.sink.client(), &self.job.link.source, self.job.epoch, &self.targets, reached);
        noted.await.map_err(|error| broken(self.job, None, error))?;
        self.sink.client().batch_execute("COMMIT").await.map_err(|error| Broken::Again(describe(&error)))
    }

    fn failed(&self, error: ApplyError) -> Broken {
        match error {
            ApplyError::Fenced { .. } => Broken::Fenced,
            ApplyError::Table { plan_index, message, .. } => Broken::Anew { plan_index, message },
            ApplyError::Transient { message } | ApplyError::Fatal { message } => Broken::Again(message),
        }
    }
}
