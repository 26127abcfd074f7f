//! Building batches: blocks of frames go in, batches come out at transaction boundaries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::fold::Fold;
use super::terms::{BatchLimits, BuildError, TableCause, Taken, Taking};
use super::{Batch, BatchEnd, Emptied, RowOp, RowRef};
use crate::assemble::{AssembleError, Assembler, Begin, Change, Step};
use crate::catalog::{ReplicaIdentity, TableName};
use crate::checkpoint::{Checkpoint, UnixMicros};
use crate::frame::{self, FrameError};
use crate::lsn::Lsn;
use crate::mapping::bind::Binding;
use crate::mapping::plan::Plan;
use crate::pgoutput::Relation;
use crate::tuple::Tuple;

/// Behind by less than this, a stream counts as live. Well above `wal_writer_delay`, by which commits with
/// `synchronous_commit = off` are sent late.
const LIVE: Duration = Duration::from_secs(1);
/// The longest that a batch is held back for more: a tenth of the least that it is behind.
const GATHER_MAX: Duration = Duration::from_millis(100);
/// Rows that are worth no further wait: what a batch costs by itself is small beside them.
const GATHER_ROWS: usize = 20_000;

/// A target's place in the builder.
struct Route {
    plan: Arc<Plan>,
    taking: Taking,
    trusts_inserts: bool,
    /// Index into `folds` while the table is in the batch.
    fold: Option<usize>,
    /// Rows of the table in the last batch.
    expected: usize,
    /// The layout of the relation it was last bound to.
    bound: Option<(Arc<Relation>, Arc<Binding>)>,
}

/// Turns a stream of frames into batches for one sink.
pub struct Builder {
    assembler: Assembler,
    routes: Vec<Route>,
    /// Per relation of the assembler: the routes fed by it.
    fed: Vec<Vec<usize>>,
    folds: Vec<Fold>,
    blocks: Vec<Bytes>,
    block_bytes: usize,
    transactions: Vec<Begin>,
    /// The last commit before the batch, and the last one.
    last_commit: Lsn,
    committed: Lsn,
    commits: u64,
    oldest_commit_ts: Option<UnixMicros>,
    rows: usize,
    /// How long after its commit the last transaction was sent.
    behind: Duration,
    /// Transactions that commit here or later are left out.
    until: Lsn,
    /// The open transaction is to be left out.
    skipping: bool,
    /// Checkpoint of the last transaction that was taken whole; those that commit before it are left out.
    reached: Checkpoint,
    /// A part of the open transaction was handed out.
    split: bool,
    limits: BatchLimits,
}

impl Builder {
    /// A builder for a sink that stands at `checkpoint`.
    pub fn new(plans: &[Arc<Plan>], checkpoint: Checkpoint, limits: BatchLimits) -> Self {
        let route = |plan: &Arc<Plan>| Route {
            plan: plan.clone(),
            taking: Taking::No,
            trusts_inserts: true,
            fold: None,
            expected: 0,
            bound: None,
        };
        Builder {
            assembler: Assembler::default(),
            routes: plans.iter().map(route).collect(),
            fed: Vec::new(),
            folds: Vec::new(),
            blocks: Vec::new(),
            block_bytes: 0,
            transactions: Vec::new(),
            commits: 0,
            oldest_commit_ts: None,
            rows: 0,
            behind: Duration::ZERO,
            until: Lsn(u64::MAX),
            skipping: false,
            last_commit: checkpoint.commit_lsn,
            committed: checkpoint.commit_lsn,
            reached: checkpoint,
            split: false,
            limits,
        }
    }

    /// Says whether a table takes changes. Only between batches.
    pub fn set_taking(&mut self, plan_index: usize, taking: Taking) {
        assert!(self.routes[plan_index].fold.is_none(), "a table's state changes between batches only");
        self.routes[plan_index].taking = taking;
    }

    /// Whether an insert proves that the target lacks the key. Not so while a table catches up, in a replay, or after a
    /// conflict.
    pub fn set_trust(&mut self, plan_index: usize, trusts_inserts: bool) {
        self.routes[plan_index].trusts_inserts = trusts_inserts;
    }

    /// Leaves out transactions that commit at this LSN or later: for catching up to a checkpoint.
    pub fn stop_at(&mut self, until: Lsn) {
        self.until = until;
    }

    pub fn set_limits(&mut self, limits: BatchLimits) {
        self.limits = limits;
    }

    /// Frames, relations or rows wait in it.
    pub fn is_empty(&self) -> bool {
        self.commits == 0 && self.rows == 0 && self.folds.is_empty()
    }

    /// Between transactions.
    pub fn at_boundary(&self) -> bool {
        self.assembler.open().is_none()
    }

    /// The boundary that everything taken so far reaches.
    pub fn reached(&self) -> Checkpoint {
        self.reached
    }

    /// No more should be put in before a batch is taken out.
    pub fn is_full(&self) -> bool {
        self.rows >= self.limits.rows || self.block_bytes >= self.limits.bytes || self.commits >= self.limits.commits
    }

    /// The source sends what it committed a while ago.
    pub fn is_behind(&self) -> bool {
        self.behind >= LIVE
    }

    /// How long a sink that is free should wait for more. While the source sends what it committed long ago, more comes
    /// at once, and few large batches cost the sink a fraction of many small ones. A live stream never waits.
    pub fn gathers_for(&self) -> Duration {
        if !self.is_behind() || self.rows >= GATHER_ROWS || self.is_full() {
            return Duration::ZERO;
        }
        GATHER_MAX
    }

    /// Commit time of the oldest transaction that waits.
    pub fn oldest_commit_ts(&self) -> Option<UnixMicros> {
        self.oldest_commit_ts
    }

    /// Takes the frames of a block from `from` on. Stops early when the batch is full at a commit.
    ///
    /// # Errors
    /// The stream is broken, or one table's changes cannot be taken; nothing of the batch may then be used.
    pub fn push(&mut self, block: &Bytes, from: usize) -> Result<Taken, BuildError> {
        let block_index = index_of(self.blocks.len());
        let mut at = from;
        self.blocks.push(block.clone());
        self.block_bytes += block.len() - from;
        while at < block.len() {
            let Some((frame, length)) = frame::take(&block[at..])? else {
                return Err(BuildError::Frame(FrameError::Length(-1)));
            };
            let step = self.assembler.push(frame)?;
            let frame_at = at;
            at += length;
            match step {
                Step::Change { relation, ordinal, change } => {
                    if !self.skipping {
                        self.change(block, block_index, relation, ordinal, &change)?;
                        // A transaction that outgrows the batch is handed out in parts, by rows rather than by blocks.
                        if self.rows >= self.limits.rows && at < block.len() {
                            return Ok(Taken::Until(at));
                        }
                    }
                }
                Step::Begin(begin) => self.begin(begin),
                Step::Commit(checkpoint) => {
                    self.behind = behind(frame::sent_at(&block[frame_at..]), checkpoint.commit_ts);
                    self.commit(checkpoint);
                    if self.is_full() && at < block.len() {
                        return Ok(Taken::Until(at));
                    }
                }
                Step::Relation(index) => self.feed(index),
                Step::Truncate { truncate, ordinal } => {
                    if !self.skipping {
                        let lsn = frame::message_lsn(&block[frame_at..]);
                        for (place, oid) in (0..).zip(truncate.relations()) {
                            let transaction = self.transaction();
                            self.truncate(oid, Emptied { entries_before: 0, transaction, ordinal, place, lsn })?;
                        }
                    }
                }
                Step::Idle(lsn) => self.idle(lsn),
                Step::Quiet => {}
            }
        }
        if self.folds.is_empty() {
            // No row points into the blocks.
            self.blocks.clear();
            self.block_bytes = 0;
        }
        Ok(Taken::Whole)
    }

    /// The connection was lost inside a transaction. Call only when no part of it was handed out; otherwise the sink's
    /// transaction has to be rolled back and the builder made anew.
    pub fn has_split_transaction(&self) -> bool {
        self.split
    }

    /// The batch so far: whole transactions if at a boundary, else a part of the open one.
    pub fn take(&mut self) -> Batch {
        let open = self.assembler.open().filter(|_| !self.skipping);
        let end = if open.is_none() { BatchEnd::Commit(self.reached) } else { BatchEnd::Open };
        self.split = end == BatchEnd::Open;
        let oldest_commit_ts = std::mem::replace(&mut self.oldest_commit_ts, open.map(|open| open.commit_ts));
        for route in &mut self.routes {
            route.expected = route.fold.take().map_or(0, |fold| self.folds[fold].len());
        }
        self.rows = 0;
        self.block_bytes = 0;
        let transactions = std::mem::take(&mut self.transactions);
        self.transactions.extend(open);
        Batch {
            blocks: std::mem::take(&mut self.blocks),
            transactions,
            last_commit: std::mem::replace(&mut self.last_commit, self.committed),
            tables: std::mem::take(&mut self.folds).into_iter().map(Fold::finish).collect(),
            end,
            commits: std::mem::take(&mut self.commits),
            oldest_commit_ts,
        }
    }

    fn begin(&mut self, begin: Begin) {
        // A commit record that starts before the sink's position was applied; the next one starts there at the earliest.
        // After a lost connection the stream may also repeat what was taken since.
        self.skipping = begin.commit_lsn < self.reached.end_lsn || begin.commit_lsn >= self.until;
        if !self.skipping {
            self.transactions.push(begin);
            self.oldest_commit_ts.get_or_insert(begin.commit_ts);
        }
    }

    fn commit(&mut self, checkpoint: Checkpoint) {
        if std::mem::take(&mut self.skipping) {
            return;
        }
        assert!(
            checkpoint.end_lsn > self.reached.end_lsn,
            "commits go back: {} then {}",
            self.reached.end_lsn,
            checkpoint.end_lsn
        );
        self.reached = checkpoint;
        self.committed = checkpoint.commit_lsn;
        self.commits += 1;
    }

    fn idle(&mut self, lsn: Lsn) {
        // Between transactions the source reports only when it has nothing else to send.
        self.behind = Duration::ZERO;
        if lsn > self.reached.end_lsn {
            self.reached = Checkpoint { commit_lsn: lsn, end_lsn: lsn, ordinal: 0, commit_ts: self.reached.commit_ts };
        }
    }

    /// A relation was described: find the tables it feeds. By its OID too: under another name it is still theirs, and none of
    /// its rows may be passed over in silence.
    fn feed(&mut self, index: usize) {
        let relation = &self.assembler.relations()[index];
        if self.fed.len() <= index {
            self.fed.resize_with(index + 1, Vec::new);
        }
        let is_fed =
            |(_, route): &(usize, &Route)| route.plan.from == relation.name || route.plan.expected.oid == relation.oid;
        self.fed[index] = self.routes.iter().enumerate().filter(is_fed).map(|(route, _)| route).collect();
    }

    #[inline]
    fn change(
        &mut self,
        block: &Bytes,
        block_index: u32,
        relation: usize,
        ordinal: u64,
        change: &Change<'_>,
    ) -> Result<(), BuildError> {
        let is_full = self.assembler.relations()[relation].replica_identity == ReplicaIdentity::Full;
        for fed in 0..self.fed[relation].len() {
            let route = self.fed[relation][fed];
            if !self.takes(route) {
                continue;
            }
            let fold = self.fold_for(route, relation)?;
            let binding = self.folds[fold].binding();
            let transaction = self.transaction();
            let fold = &mut self.folds[fold];
            // Columns that this layout does not have yet are written out behind the row.
            let wider = self.routes[route].bound.as_ref().filter(|(_, binding)| binding.appended_columns > 0);
            let wider = wider.map(|(_, binding)| binding.clone());
            let mut row = |tuple: &Tuple<'_>, key_only, op| {
                let (mut block_index, mut start, mut length) =
                    (block_index, place(block, tuple.bytes()), tuple.bytes().len());
                if let Some(binding) = &wider {
                    let bytes = binding.widened(tuple.bytes());
                    (block_index, start, length) = (index_of(self.blocks.len()), 0, bytes.len());
                    self.block_bytes += length;
                    self.blocks.push(bytes.into());
                }
                RowRef {
                    block: block_index,
                    start,
                    length: u32::try_from(length).expect("a row is shorter than 4 GiB"),
                    binding,
                    key_only,
                    has_unchanged: tuple.has_unchanged(),
                    earlier: None,
                    transaction,
                    ordinal,
                    op,
                }
            };
            let done = match change {
                Change::Insert { new } => {
                    let new = row(new, false, RowOp::Insert);
                    fold.insert(&self.blocks, new)
                }
                Change::Update { old: None, .. } if is_full => Err(fold.partition_strays()),
                Change::Update { old, new } => {
                    let old = old.as_ref().map(|old| row(&old.tuple(), is_key_only(old), RowOp::Update));
                    let new = row(new, false, RowOp::Update);
                    fold.update(&self.blocks, old, new)
                }
                Change::Delete { old } => {
                    let old = row(&old.tuple(), is_key_only(old), RowOp::Delete);
                    fold.delete(&self.blocks, old)
                }
            };
            done.map_err(|missing| self.table_error(route, missing.into()))?;
            self.rows += 1;
        }
        Ok(())
    }

    fn truncate(&mut self, oid: u32, statement: Emptied) -> Result<(), BuildError> {
        let Some(relation) = self.assembler.index_of(oid) else {
            return Err(AssembleError::UnknownRelation { oid }.into());
        };
        let commit_lsn = self.assembler.open().map_or(Lsn::ZERO, |open| open.commit_lsn);
        for route in self.fed[relation].clone() {
            if self.takes(route) {
                let fold = self.fold_for(route, relation)?;
                self.folds[fold].truncate(commit_lsn, statement);
            }
        }
        Ok(())
    }

    /// The open transaction's index in the batch.
    fn transaction(&self) -> u32 {
        u32::try_from(self.transactions.len() - 1).expect("few transactions in a batch")
    }

    fn takes(&self, route: usize) -> bool {
        match self.routes[route].taking {
            Taking::No => false,
            Taking::From(lsn) => self.assembler.open().is_some_and(|open| open.commit_lsn >= lsn),
        }
    }

    /// The route's fold in this batch, bound to the relation's present layout.
    fn fold_for(&mut self, route_index: usize, relation: usize) -> Result<usize, BuildError> {
        let relation = &self.assembler.relations()[relation];
        let commit_lsn = self.assembler.open().map_or(Lsn::ZERO, |open| open.commit_lsn);
        let route = &mut self.routes[route_index];
        // Most changes follow one of the same table.
        if let (Some((bound, binding)), Some(fold)) = (&route.bound, route.fold)
            && Arc::ptr_eq(bound, relation)
            && self.folds[fold].is_bound_to(binding)
        {
            return Ok(fold);
        }
        let binding = match &route.bound {
            Some((bound, binding)) if Arc::ptr_eq(bound, relation) => binding.clone(),
            _ => match Binding::new(&route.plan, relation, commit_lsn).map(Arc::new) {
                Ok(binding) => route.bound.insert((relation.clone(), binding)).1.clone(),
                Err(error) => return Err(self.table_error(route_index, Box::new(error).into())),
            },
        };
        let fold = *route.fold.get_or_insert_with(|| {
            self.folds.push(Fold::new(route_index, &binding, route.trusts_inserts, route.expected));
            self.folds.len() - 1
        });
        if !self.folds[fold].is_bound_to(&binding) {
            self.folds[fold].rebind(&binding);
        }
        Ok(fold)
    }

    fn table_error(&self, route: usize, cause: TableCause) -> BuildError {
        BuildError::Table {
            plan_index: route,
            target: self.target(route).to_string(),
            commit_lsn: self.assembler.open().map_or(Lsn::ZERO, |open| open.commit_lsn),
            cause,
        }
    }

    fn target(&self, route: usize) -> &TableName {
        &self.routes[route].plan.target
    }
}

/// By the source's clock alone.
fn behind(sent_at: Option<UnixMicros>, commit_ts: Option<UnixMicros>) -> Duration {
    let micros = sent_at.zip(commit_ts).map_or(0, |(sent_at, commit_ts)| sent_at.0.saturating_sub(commit_ts.0));
    Duration::from_micros(u64::try_from(micros).unwrap_or_default())
}

fn index_of(count: usize) -> u32 {
    u32::try_from(count).expect("a batch holds fewer than 2^32 blocks")
}

fn is_key_only(old: &crate::pgoutput::Old<'_>) -> bool {
    matches!(old, crate::pgoutput::Old::Key(_))
}

/// Where a row that was read in place stands in its block.
fn place(block: &Bytes, row: &[u8]) -> u32 {
    let offset = row.as_ptr().addr() - block.as_ptr().addr();
    u32::try_from(offset).expect("a block is shorter than 4 GiB")
}
