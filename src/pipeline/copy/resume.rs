//! Which tables' copies go on from what an earlier attempt left, and which begin anew.
//!
//! A copy that goes on reads the source through a later snapshot. Three things bring the rows that the sink has to what
//! that snapshot shows: keys that were left since are removed (see [`super::gone`]), rows that were written since are read
//! again from the ranges copied before, and the other ranges are copied. Any row that neither happened to stands where it
//! stood, as it was, so the sink has it; and the tables stand at the later snapshot's point as if copied under it alone.

use std::collections::{BTreeSet, HashMap};

use tokio_postgres::Client;
use tracing::info;

use super::postgres::broken;
use super::{Broken, CopyJob};
use crate::lsn::Lsn;
use crate::mapping::plan::{DeleteMode, Mode};
use crate::sink::postgres::cursor::{self, Marks, StoredCopy};
use crate::sink::postgres::load;
use crate::sink::state::name_text;
use crate::source::snapshot::{Leaf, Snapshot};

/// One table of a copy, about to be copied.
pub(super) struct Outset {
    pub plan_index: usize,
    pub leaves: Vec<Leaf>,
    pub marks: Marks,
    /// What the copy goes on from.
    pub resumed: Option<StoredCopy>,
}

/// What the sink remembers of this job's tables, by plan; and which of them are to begin anew in any case.
pub(super) struct Memory {
    copies: HashMap<usize, StoredCopy>,
    anew: BTreeSet<usize>,
}

/// Reads what is remembered; earlier attempts cannot write any more.
pub(super) async fn recall(job: &CopyJob, client: &mut Client, anew: &BTreeSet<usize>) -> Result<Memory, Broken> {
    let names: Vec<_> = job.plans.iter().map(|&plan| name_text(&job.link.plans[plan].target)).collect();
    let adopted = cursor::adopt(client, &job.link.source, job.epoch, &names).await;
    let mut adopted = adopted.map_err(|error| broken(job, None, error))?;
    let copies = job.plans.iter().zip(&names).filter_map(|(&plan, name)| Some((plan, adopted.remove(name)?)));
    Ok(Memory { copies: copies.collect(), anew: anew.clone() })
}

impl Memory {
    /// The oldest position from which the journal is needed.
    pub fn oldest(&self) -> Option<Lsn> {
        self.copies.values().filter(|copy| !copy.chunks.is_empty()).map(|copy| copy.lsn).min()
    }

    /// Decides for every table, in the order of `plans` (parents first), and clears what is not gone on from.
    pub async fn decide(
        self,
        job: &CopyJob,
        client: &mut Client,
        snapshot: &Snapshot,
        plans: &[usize],
    ) -> Result<Vec<Outset>, Broken> {
        let Memory { mut copies, anew } = self;
        let mut outsets = Vec::new();
        let mut cleared: Vec<usize> = Vec::new();
        for &plan_index in plans {
            let plan = &job.link.plans[plan_index];
            let leaves = snapshot.open(&plan.from).await?;
            let target_layout = cursor::target_layout(client, &plan.target).await;
            let marks = Marks {
                lsn: snapshot.lsn(),
                xmin: snapshot.horizon().xmin,
                target_layout: target_layout.map_err(|error| broken(job, Some(plan_index), error))?,
                plan: cursor::plan_digest(plan, &job.link.mask_key),
            };
            let mut outset = Outset { plan_index, leaves, marks, resumed: copies.remove(&plan_index) };
            let obstacle = outset.resumed.as_ref().and_then(|copy| {
                if anew.contains(&plan_index) {
                    return Some("its rows do not fit those that it had");
                }
                // Its rows could not stay while those that they refer to go.
                let parents = cleared.iter().any(|&other| plan.parents.contains(&job.link.plans[other].target));
                parents
                    .then_some("a table that it refers to begins anew")
                    .or_else(|| outset.obstacle(job, copy, snapshot))
            });
            match (obstacle, &outset.resumed) {
                (Some(reason), Some(copy)) => {
                    if copy.rows > 0 {
                        info!(sink = %job.link.name, table = %plan.target, reason, "copy begins anew");
                    }
                    cleared.push(plan_index);
                    outset.resumed = None;
                }
                (None, Some(copy)) => {
                    let (chunks, rows) = (copy.chunks.len(), copy.rows);
                    info!(sink = %job.link.name, table = %plan.target, chunks, rows, from = %copy.lsn, "copy goes on");
                }
                (_, None) => {}
            }
            outsets.push(outset);
        }
        for &plan_index in cleared.iter().rev() {
            let clearing = load::clear(client, job.epoch, &job.link.plans[plan_index]);
            clearing.await.map_err(|error| broken(job, Some(plan_index), error))?;
        }
        Ok(outsets)
    }
}

impl Outset {
    /// Why the copy cannot go on, if so.
    fn obstacle(&self, job: &CopyJob, copy: &StoredCopy, snapshot: &Snapshot) -> Option<&'static str> {
        let plan = &job.link.plans[self.plan_index];
        let Some(oldest_xmin) = copy.oldest_xmin() else { return Some("no part of it had been copied") };
        if plan.mode != Mode::Upsert || plan.is_multiset() {
            return Some("rows that came would not be told from those that it has");
        }
        if plan.delete != DeleteMode::Hard && !copy.was_empty {
            return Some("rows that the target had before would not be told from those that it has by now");
        }
        for chunk in &copy.chunks {
            let leaf = self.leaves.iter().find(|leaf| leaf.relation == chunk.range.relation);
            if leaf.is_none_or(|leaf| leaf.layout != chunk.origin_layout) {
                return Some("the source's table was rewritten, truncated or altered since, or is another server's");
            }
            if chunk.target_layout != self.marks.target_layout {
                return Some("the target was rewritten or truncated since");
            }
            if chunk.plan != self.marks.plan {
                return Some("the mapping has changed since");
            }
        }
        if copy.lsn > snapshot.lsn() || !snapshot.horizon().tells_newer_than(oldest_xmin) {
            return Some("too much has happened since");
        }
        if job.shared.journal.reader(copy.lsn).is_err() {
            return Some("the journal does not reach back to it");
        }
        None
    }
}
