//! `replay` into sinks: from the asked start to each sink's checkpoint, in one transaction of the sink, so that no reader
//! sees an older state than before.

use std::sync::Arc;

use bytes::Bytes;

use super::look::progress;
use super::parts::Parts;
use super::{Asked, Way};
use crate::batch::{BatchEnd, BatchLimits, Builder, Taken, Taking};
use crate::checkpoint::Checkpoint;
use crate::cli::Exit;
use crate::commands::live::{Ends, connect_all, look};
use crate::commands::{refuse_journal, runtime, say, say_error, show};
use crate::journal::{Follower, Held, Item, NotHeld, Start, follow, lock};
use crate::lsn::Lsn;
use crate::mapping::plan::{Mode, Plan};
use crate::mapping::resolve::Resolved;
use crate::pipeline::drift::Settled;
use crate::pipeline::{SinkLink, sink_address};
use crate::sink::any::{AnySink, SinkSession};
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState};
use crate::sink::{ApplyError, SinkSetup};
use crate::source::probe::probe;
use crate::telemetry::human::count;

/// A row that waits in a batch costs about so much beside its bytes.
const ROW_OVERHEAD_BYTES: usize = 128;

pub fn run(asked: &Asked<'_>) -> Result<(), Exit> {
    runtime().block_on(async {
        // Kept until the end: no daemon of this directory writes meanwhile.
        let _lock = lock(&asked.dir()).map_err(|error| refuse_journal(asked.source, &error))?;
        let follower = asked.follow()?;
        let (from, held) = (follower.from(), follower.held());
        let mut ends = connect_all(asked.config).await;
        let Settled { resolved, findings: found, .. } = look(asked.config, asked.files, &mut ends).await;
        ends.findings.0.extend(found.0);
        show(asked.cli, &ends.findings);
        if ends.findings.has_errors() {
            return Err(Exit::Findings);
        }
        check_slot(asked, &ends).await?;
        let mut sinks: Vec<&str> = asked.ways().iter().map(|way| way.sink).collect();
        sinks.sort_unstable();
        sinks.dedup();
        for sink in sinks {
            let link = link(asked, &resolved, sink)?;
            Replaying::start(asked, link, from, held).await?.run().await?;
        }
        Ok(())
    })
}

fn failed(message: &str, hint: &str) -> Exit {
    say_error(&format!("error: {message}\nhint: {hint}"));
    Exit::Failed
}

/// A daemon on another machine does not lock this directory, but it streams from the slot.
async fn check_slot(asked: &Asked<'_>, ends: &Ends) -> Result<(), Exit> {
    let source = &asked.config.sources[asked.source];
    let Some(client) = ends.sources.get(asked.source) else { return Ok(()) };
    let found = probe(client, &source.slot, &source.publication).await;
    let found = found.map_err(|error| failed(&error.to_string(), "Nothing was changed."))?;
    if found.slot.is_some_and(|slot| slot.active) {
        let message = format!("a daemon streams from slot \"{}\"", source.slot);
        return Err(failed(&message, "Stop it first. --to stdout and --dry-run work beside it."));
    }
    Ok(())
}

fn link(asked: &Asked<'_>, resolved: &Resolved, sink: &str) -> Result<SinkLink, Exit> {
    let address = sink_address(asked.config, sink).map_err(|message| failed(&message, UNCHANGED))?;
    let of_pair = |plan: &&Plan| plan.source == asked.source && plan.sink == sink;
    let plans: Vec<_> = resolved.plans.iter().filter(of_pair).cloned().map(Arc::new).collect();
    Ok(SinkLink {
        name: sink.to_owned(),
        source: asked.source.to_owned(),
        address,
        config: asked.config.sinks[sink].clone(),
        // Nobody refreshes views here.
        touched: Arc::default(),
        targets: vec![0; plans.len()],
        plans,
        mask_key: asked.config.mask_salt.as_ref().map_or(&[][..], |salt| salt.expose().as_bytes()).into(),
    })
}

/// One sink's replay, ready to run.
struct Replaying<'a> {
    asked: &'a Asked<'a>,
    link: SinkLink,
    session: SinkSession,
    stored: StoredCheckpoint,
    /// Plans to replay, with their snapshot's point.
    tables: Vec<(usize, Lsn)>,
    from: Lsn,
    held: Held,
}

impl<'a> Replaying<'a> {
    async fn start(asked: &'a Asked<'a>, link: SinkLink, from: Lsn, held: Held) -> Result<Replaying<'a>, Exit> {
        let refuse = |message: String| failed(&format!("sink \"{}\": {message}", link.name), "Nothing was changed.");
        let session = link.connect("tailwater replay").await.map_err(refuse)?;
        let read = async {
            if !session.has_state().await? {
                return Ok(None);
            }
            let stored = session.read_checkpoint(&link.source).await?;
            Ok::<_, String>(stored.zip(Some(session.read_tables(&link.source).await?)))
        };
        let Some((stored, states)) = read.await.map_err(refuse)? else {
            let message = format!("sink \"{}\" holds nothing of source \"{}\" yet", link.name, link.source);
            return Err(failed(&message, "`tailwater run` makes the first copy; there is nothing to replay."));
        };
        let tables = choose(asked, &link, &states)?;
        Ok(Replaying { asked, link, session, stored, tables, from, held })
    }

    async fn run(mut self) -> Result<(), Exit> {
        let at = self.stored.checkpoint;
        let name = &self.link.name;
        if self.from >= at.end_lsn {
            say(&format!("sink {name}: stands at {}, nothing after {} to replay", at.end_lsn, self.from));
            return Ok(());
        }
        if self.held.end.end_lsn < at.end_lsn {
            let refused = NotHeld { from: at.end_lsn, held: Some(self.held) };
            return Err(refuse_journal(self.asked.source, &refused.into()));
        }
        if self.tables.is_empty() {
            say(&format!("sink {name}: no table to replay into"));
            return Ok(());
        }
        let refuse = |message: String| failed(&format!("sink \"{name}\": {message}"), "Nothing was changed.");
        // From here on no daemon that was started before can write.
        let epoch = self.session.take_over(self.asked.source, &self.stored, self.stored.identity.timeline).await;
        let epoch = epoch.map_err(refuse)?;
        let Some(epoch) = epoch else {
            return Err(failed(
                &format!("somebody else writes into sink \"{name}\" for source \"{}\"", self.asked.source),
                "Stop that daemon first.",
            ));
        };
        let setup = SinkSetup {
            name: name.clone(),
            source: self.asked.source.to_owned(),
            plans: self.link.plans.clone(),
            epoch,
            checkpoint: at,
            mask_key: self.link.mask_key.clone(),
        };
        let mut builder = self.builder(at);
        let sink = self.session.into_sink(setup, self.stored.identity.clone()).await;
        let mut sink = sink.map_err(|error| refuse(error.to_string()))?;
        // The range may hold both forms.
        sink.take_text();
        for &(plan_index, lsn) in &self.tables {
            builder.set_taking(plan_index, Taking::From(lsn));
            builder.set_trust(plan_index, false);
            sink.set_tolerant(plan_index, true);
        }
        // Nobody writes meanwhile, so there is no restart among what it yields.
        let follower = follow(&self.asked.dir(), Start::At(self.from));
        let follower = follower.map_err(|error| refuse_journal(self.asked.source, &error))?;
        // First: a refresh too many is harmless, one too few shows old rows until the next change.
        if let Err(message) = sink.forget_views().await {
            return Err(failed(&format!("sink \"{name}\": {message}"), UNCHANGED));
        }
        let changes =
            apply(&mut sink, &self.link.plans, builder, follower, at).await.map_err(|stopped| match stopped {
                Stopped::Journal(exit) => exit,
                Stopped::Other { message, hint } => failed(&format!("sink \"{name}\": {message}"), hint),
            })?;
        say(&format!("sink {name}: replayed {} to {}, {} changes", self.from, at.end_lsn, count(changes)));
        Ok(())
    }

    fn builder(&self, at: Checkpoint) -> Builder {
        let config = &self.link.config;
        let limits = BatchLimits {
            rows: config.batch_rows_max.max(config.batch_bytes_max / ROW_OVERHEAD_BYTES),
            bytes: config.batch_bytes_max,
            commits: u64::MAX,
        };
        let start = Checkpoint { commit_lsn: self.from, end_lsn: self.from, ordinal: 0, commit_ts: None };
        let mut builder = Builder::new(&self.link.plans, start, limits);
        builder.stop_at(at.end_lsn);
        builder
    }
}

/// The plans that can be replayed; those that cannot are named.
fn choose(asked: &Asked<'_>, link: &SinkLink, states: &[StoredTable]) -> Result<Vec<(usize, Lsn)>, Exit> {
    let ways = asked.ways();
    let is_wanted = |plan: &Plan| ways.iter().any(|way: &Way<'_>| way.sink == link.name && *way.target == plan.target);
    let mut tables = Vec::new();
    for (plan_index, plan) in link.plans.iter().enumerate().filter(|(_, plan)| is_wanted(plan)) {
        let stored = states.iter().find(|table| table.target == plan.target);
        let why = match stored {
            _ if plan.mode == Mode::Append => "is in mode \"append\": a replay would add its rows again".to_owned(),
            _ if plan.is_multiset() => "has no key: a replay would add its rows again".to_owned(),
            Some(stored) if stored.state == TableState::Streaming => {
                tables.push((plan_index, stored.lsn));
                continue;
            }
            Some(stored) => format!("is {}, not streaming", stored.state.as_str()),
            None => "was not copied yet".to_owned(),
        };
        let message = format!("table \"{}\" of sink \"{}\" {why}", plan.target, link.name);
        if !asked.args.tables.is_empty() {
            return Err(failed(&message, "Nothing was changed."));
        }
        say_error(&format!("warning: {message}; it is left out"));
    }
    Ok(tables)
}

/// Why a replay ended early; the sink's transaction is rolled back with its connection.
enum Stopped {
    Journal(Exit),
    Other { message: String, hint: &'static str },
}

const UNCHANGED: &str = "Nothing was changed.";

/// Applies the range in as few parts as memory allows, all of them in one transaction. The checkpoint stays where it is.
async fn apply(
    sink: &mut AnySink,
    plans: &[Arc<Plan>],
    mut builder: Builder,
    mut follower: Follower,
    at: Checkpoint,
) -> Result<u64, Stopped> {
    let other = |message: String| Stopped::Other { message, hint: UNCHANGED };
    let from = follower.from();
    let bar = progress(from, at.end_lsn);
    let source = plans.first().map_or(String::new(), |plan| plan.source.clone());
    let mut parts = Parts::new(plans.len());
    let mut rest: Option<(Bytes, usize)> = None;
    let mut ended = false;
    let mut changes = 0;
    let mut read = false;
    while !ended {
        if rest.is_none() && !read {
            match follower.try_next().map_err(|error| Stopped::Journal(refuse_journal(&source, &error)))? {
                Some(Item::Block(block)) => {
                    bar.set_position(block.end.end_lsn.bytes_since(from));
                    read = block.end.end_lsn >= at.end_lsn;
                    rest = Some((block.bytes, 0));
                }
                Some(Item::Restarted) => {}
                None => read = true,
            }
        }
        if let Some((bytes, place)) = rest.take() {
            match builder.push(&bytes, place) {
                Ok(Taken::Whole) => {}
                Ok(Taken::Until(next)) => rest = Some((bytes, next)),
                Err(error) => return Err(other(error.to_string())),
            }
        }
        ended = read && rest.is_none();
        if builder.is_full() || ended {
            let mut batch = builder.take();
            batch.end = if ended { BatchEnd::Commit(at) } else { BatchEnd::Open };
            changes += batch.changes();
            parts.fit(&mut batch, ended).map_err(|error| Stopped::Other {
                message: error.to_string(),
                hint: "Nothing was changed. Raise batch_bytes_max of the sink, or start later.",
            })?;
            sink.apply(&batch).await.map_err(|error| other(describe_apply(plans, &error)))?;
        }
    }
    bar.finish_and_clear();
    Ok(changes)
}

fn describe_apply(plans: &[Arc<Plan>], error: &ApplyError) -> String {
    match error {
        ApplyError::Table { plan_index, .. } => format!("table \"{}\": {error}", plans[*plan_index].target),
        ApplyError::Transient { .. } | ApplyError::Fenced { .. } | ApplyError::Fatal { .. } => error.to_string(),
    }
}
