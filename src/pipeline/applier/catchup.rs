//! How tables that were copied come into the stream: what the journal kept for them is applied first.

use bytes::Bytes;
use tracing::{info, warn};

use super::{Applier, Over, Session, Tables};
use crate::batch::{BatchEnd, Builder, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::journal::Item;
use crate::lsn::Lsn;
use crate::pipeline::End;
use crate::pipeline::link::SinkTables;
use crate::sink::postgres::state::{self, TableState};

impl Applier {
    /// Tables join the stream where they left it.
    pub(super) async fn resume_tables(&mut self, session: &mut Session, tables: &SinkTables) -> Result<(), Over> {
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
            let hold = self.shared.journal.hold("catch up");
            hold.set(lsn);
            session.queue.push_back(Tables { plans: vec![plan_index], lsn, hold });
        }
        Ok(())
    }

    /// Copied tables catch up from the snapshot's point to the sink's checkpoint and join the stream there.
    pub(super) async fn join_tables(&mut self, session: &mut Session, tables: Tables) -> Result<(), Over> {
        let Tables { plans, lsn, hold } = tables;
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
        drop(hold);
        self.link.mark(&plans);
        Ok(())
    }

    /// Applies what the journal holds for these tables between their snapshot and the sink's checkpoint. May run again
    /// from the start after a crash: the changes are idempotent, and the checkpoint does not move.
    pub(super) async fn catch_up(&mut self, session: &mut Session, plans: &[usize], from: Lsn) -> Result<(), Over> {
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
                if let BatchEnd::Commit(_) = batch.end {
                    batch.end = BatchEnd::Commit(at);
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
