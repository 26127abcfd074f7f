//! How tables that were copied come into the stream: what the journal kept for them is applied first.

use bytes::Bytes;
use tracing::{info, warn};

use super::{Applier, Over, Session, Tables};
use crate::batch::{Batch, BatchEnd, Builder, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::journal::Item;
use crate::lsn::Lsn;
use crate::pipeline::End;
use crate::pipeline::link::SinkTables;
use crate::sink::state::{TableState, name_text};

impl Applier {
    /// Tables join the stream where they left it.
    pub(super) async fn resume_tables(&mut self, session: &mut Session, tables: &SinkTables) -> Result<(), Over> {
        self.joined.clear();
        for (plan_index, stored) in tables.by_plan.iter().enumerate() {
            let Some(stored) = stored else { continue };
            self.observed.table_state(plan_index, stored.state);
            if stored.state != TableState::Catchup {
                self.waiting.remove(&plan_index);
            }
            match stored.state {
                TableState::Streaming => {
                    self.joined.insert(plan_index);
                    session.builder.set_taking(plan_index, Taking::From(stored.lsn));
                }
                TableState::Catchup if stored.joined => self.follow(session, plan_index, stored.lsn, stored.until),
                // It is copied anew: the journal, and with it what came since the copy, was lost.
                TableState::Catchup if self.shared.journal.reader(stored.lsn).is_err() => {}
                TableState::Catchup => {
                    let hold = self.shared.journal.hold("catch up");
                    hold.set(stored.lsn);
                    self.keep(plan_index, stored.lsn);
                    let (lsn, until) = (stored.lsn, stored.until);
                    session.queue.push_back(Tables { plans: vec![plan_index], lsn, until, hold });
                }
                TableState::Pending | TableState::Copying | TableState::Paused | TableState::Quarantined => {}
            }
        }
        for &plan_index in &self.merging {
            if let Some(sink) = &mut session.sink {
                sink.merge_inserts(plan_index);
            }
        }
        self.settle(session).await
    }

    /// Copied tables catch up from the snapshot's point to the sink's checkpoint and join the stream there.
    ///
    /// All of it is one transaction of the sink: a catch-up that is cut short begins again from the untouched copy, for
    /// applying changes twice could take a moved row's value from where another row is by now.
    pub(super) async fn join_tables(&mut self, session: &mut Session, tables: Tables) -> Result<(), Over> {
        let Tables { mut plans, lsn, until, hold } = tables;
        plans.retain(|plan| !self.joined.contains(plan));
        if plans.is_empty() {
            return Ok(());
        }
        let targets: Vec<_> = plans.iter().map(|&plan| name_text(&self.link.plans[plan].target)).collect();
        let Some(sink) = &mut session.sink else { return Ok(()) };
        if let Err(error) = sink.begin().await {
            return self.failed(session, error).await;
        }
        if session.sent.end_lsn > lsn {
            self.catch_up(session, &plans, lsn).await?;
        }
        let Some(sink) = &mut session.sink else { return Ok(()) };
        if let Err(error) = sink.write_joined(&self.link.source, &targets).await {
            return self.failed(session, error).await;
        }
        if let Err(error) = sink.apply(&Batch::checkpoint_only(session.sent)).await {
            return self.failed(session, error).await;
        }
        for &plan_index in &plans {
            self.follow(session, plan_index, lsn, until);
            info!(sink = %self.link.name, table = %self.link.plans[plan_index].target, %lsn, %until, "table joins the stream");
        }
        drop(hold);
        self.settle(session).await
    }

    /// Copied tables join where the session comes to a boundary next.
    pub(super) fn await_boundary(&mut self, session: &mut Session, tables: Tables) {
        tables.plans.iter().for_each(|&plan| self.keep(plan, tables.lsn));
        session.queue.push_back(tables);
    }

    /// Until the table has joined, whatever becomes of the session that is to bring it there.
    pub(super) fn keep(&mut self, plan_index: usize, from: Lsn) {
        let hold = self.shared.journal.hold("catch up");
        hold.set(from);
        self.waiting.insert(plan_index, hold);
    }

    /// The table takes changes from the stream; it is whole once the checkpoint reaches `until`.
    fn follow(&mut self, session: &mut Session, plan_index: usize, lsn: Lsn, until: Lsn) {
        self.joined.insert(plan_index);
        self.waiting.remove(&plan_index);
        session.builder.set_taking(plan_index, Taking::From(lsn));
        session.builder.set_trust(plan_index, false);
        session.settling.push((plan_index, until));
        self.observed.table_state(plan_index, TableState::Catchup);
        if let Some(sink) = &mut session.sink {
            sink.set_tolerant(plan_index, true);
        }
    }

    /// Tables whose copy ended before the sink's checkpoint are whole.
    pub(super) async fn settle(&mut self, session: &mut Session) -> Result<(), Over> {
        let Some(sink) = &mut session.sink else { return Ok(()) };
        let reached = sink.durable().checkpoint().end_lsn;
        let (whole, waiting) =
            std::mem::take(&mut session.settling).into_iter().partition(|(_, until)| *until <= reached);
        session.settling = waiting;
        let whole: Vec<(usize, Lsn)> = whole;
        for &(plan_index, _) in &whole {
            let plan = self.link.plans[plan_index].clone();
            if let Err(error) = sink.write_streaming(&plan.source, &plan.target).await {
                warn!(sink = %self.link.name, %error, "table state not written");
                return Err(Over::Again { wait: true });
            }
            sink.set_tolerant(plan_index, false);
            session.builder.set_trust(plan_index, true);
            self.observed.table_state(plan_index, TableState::Streaming);
            info!(sink = %self.link.name, table = %plan.target, "table streams");
        }
        let plans: Vec<_> = whole.into_iter().map(|(plan_index, _)| plan_index).collect();
        self.link.mark(&plans);
        Ok(())
    }

    /// Applies what the journal holds for these tables between their snapshot and the sink's checkpoint, into the sink's
    /// open transaction.
    async fn catch_up(&mut self, session: &mut Session, plans: &[usize], from: Lsn) -> Result<(), Over> {
        let at = session.sent;
        let mut reader = self.shared.journal.reader(from).map_err(|gap| Over::End(End::gap(&self.link.name, &gap)))?;
        let start = Checkpoint { commit_lsn: from, end_lsn: from, ordinal: 0, commit_ts: None };
        let mut builder = Builder::new(&self.link.plans, start, self.limits());
        builder.stop_at(at.end_lsn);
        for &plan_index in plans {
            builder.set_taking(plan_index, Taking::From(from));
            builder.set_trust(plan_index, false);
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
                let batch = Batch { end: BatchEnd::Open, ..builder.take() };
                let Some(sink) = &mut session.sink else { return Ok(()) };
                let result = sink.apply(&batch).await;
                self.observed.count(&batch);
                if let Err(error) = result {
                    return self.failed(session, error).await;
                }
            }
        }
        Ok(())
    }
}
