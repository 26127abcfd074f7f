//! Changes of a source's tables while they are followed: looked for, followed, or stopped at.
//!
//! ```text
//!  Relation message that does not fit ─▶ applier ─┐
//!  another look at the catalog ────────▶ watch ───┴▶ End::Drift ─▶ the run ends at a boundary
//!                                                                     │
//!        plans, new columns at the targets, tables in quarantine ◀── settle: both ends, what the sink remembers
//! ```
//!
//! A message tells only what a row looks like. That a column's values were written anew, that a table is another one, that a
//! partition came with rows: of this there is no message, so the sink remembers what each table was made of when its rows
//! were copied, and the catalog is compared with that.

mod added;
mod cases;
mod edges;
mod gone;
mod judge;
mod rows;
pub(super) mod store;
mod told;
mod topics;
mod unsettled;
mod warehouse;
pub(super) mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Client;
use tracing::{error, info, warn};

use crate::catalog::TableName;
use crate::config::{Config, OnError};
use crate::diagnostic::{Finding, Findings};
use crate::lsn::Lsn;
use crate::mapping::MappingFile;
use crate::mapping::clickhouse::ClickHouseColumn;
use crate::mapping::desired::DesiredColumn;
use crate::mapping::plan::Plan;
use crate::mapping::resolve::{Live, Resolved, resolve, topic_tables};
use crate::mapping::syntax::At;
use crate::postgres::catalog::{Wanted, read_tables};
use crate::sink::clickhouse::{Server, catalog};
use crate::sink::kafka::cluster::Cluster;
use crate::sink::state::TableState;
use crate::source::layout::Layout;
use cases::{Case, SourceNow, by_sink, cases, look};
use edges::{add_columns, before_added};
pub use told::GONE_TOPIC;
use told::told;
pub use unsettled::Unsettled;
use warehouse::{Warehouse, WarehouseError};
pub use watch::announce;

/// How a quarantined table comes back.
pub const COPY_ANEW: &str =
    "mend it, empty the target, delete its row from tailwater.table_state and start again: it is copied anew";

/// The same of a table that goes to Kafka.
pub const COPY_INTO_TOPIC_ANEW: &str = "mend it, write a message without a value under the table's key to the sink's state topic, as the manual shows, \
     and start again: it is copied anew, into the same topic";

/// A source table that is not what its plan was made for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drift {
    pub source: String,
    pub table: TableName,
    /// The transaction that showed it.
    pub at: Lsn,
    pub why: String,
}

/// Sessions with both ends, by name.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    pub sources: &'a BTreeMap<String, Client>,
    /// Postgres.
    pub sinks: &'a BTreeMap<String, Client>,
    pub clickhouse: &'a BTreeMap<String, Server>,
    pub kafka: &'a BTreeMap<String, Arc<Cluster>>,
}

impl<'a> Ends<'a> {
    /// A sink of either kind.
    fn warehouse(self, sink: &str) -> Option<Warehouse<'a>> {
        let postgres = self.sinks.get(sink).map(Warehouse::Postgres);
        postgres.or_else(|| self.clickhouse.get(sink).map(Warehouse::ClickHouse))
    }
}

/// When a run is prepared.
#[derive(Clone, Copy)]
pub enum Occasion<'a> {
    /// Somebody asks what a start would find; nothing is changed.
    Look,
    /// The daemon starts: what is wrong with a mapping is said, and keeps it from starting.
    Start,
    /// It runs, and one of its tables changed: what is wrong keeps that table out.
    Drift { drift: &'a Drift, before: &'a Resolved },
    /// It runs, and an end answers that it began without: for that one the daemon starts, the others go on.
    Back { before: &'a Resolved },
}

impl<'a> Occasion<'a> {
    /// What ran until now.
    fn before(self) -> Option<&'a Resolved> {
        match self {
            Occasion::Look | Occasion::Start => None,
            Occasion::Drift { before, .. } | Occasion::Back { before } => Some(before),
        }
    }

    fn is_running(self, source: &str, sink: &str) -> bool {
        let is_it = |plan: &Plan| plan.source == source && plan.sink == sink;
        self.before().is_some_and(|before| before.plans.iter().any(is_it))
    }
}

/// Something that whoever watches must hear of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    pub source: String,
    pub sink: String,
    pub target: TableName,
    pub message: String,
    pub is_quarantined: bool,
}

/// What a run begins with.
#[derive(Debug, Default)]
pub struct Settled {
    pub resolved: Resolved,
    /// Errors among them: there is nothing to run.
    pub findings: Findings,
    pub reports: Vec<Report>,
    /// Sinks' tables that were taken to have columns which they do not have yet.
    pub pretended: Vec<(String, TableName)>,
}

/// Brings plans, targets and states in line with what the sources are now.
///
/// # Errors
/// An end does not answer, or a table is broken and the sink is told to stop then.
pub async fn settle(
    config: &Config,
    files: &[MappingFile],
    live: &mut Live,
    ends: Ends<'_>,
    occasion: Occasion<'_>,
) -> Result<Settled, Unsettled> {
    let mut sources = BTreeMap::new();
    for (name, client) in ends.sources {
        let mapped = files.iter().filter(|file| file.sources.iter().any(|source| &source.value == name));
        let mut tables: Vec<_> =
            mapped.clone().flat_map(|file| file.tables.iter().map(|table| table.from.value.clone())).collect();
        tables.extend(mapped.flat_map(|file| topic_tables(file, name, live)));
        tables.sort();
        tables.dedup();
        sources.insert(name.clone(), look(config, name, client, &tables, live).await?);
    }
    let files = by_sink(files);
    let cases = cases(&files, live, ends, &sources).await?;
    let (settled, lost) = (Settled::default(), Vec::new());
    let mut settling = Settling { config, files, live, ends, occasion, sources, cases, lost, settled };
    settling.run().await?;
    Ok(settling.settled)
}

struct Settling<'a> {
    config: &'a Config,
    files: Vec<MappingFile>,
    live: &'a mut Live,
    ends: Ends<'a>,
    occasion: Occasion<'a>,
    sources: BTreeMap<String, SourceNow>,
    cases: Vec<Case>,
    /// Tables of Kafka sinks that cannot be followed any more, and why.
    lost: Vec<(Plan, String)>,
    settled: Settled,
}

impl Settling<'_> {
    async fn run(&mut self) -> Result<(), Unsettled> {
        let is_changed = |case: &Case| !case.follow.is_empty() || !case.broken.is_empty();
        let waits = |case: usize| is_changed(&self.cases[case]) && !self.may_write(case);
        if matches!(self.occasion, Occasion::Start | Occasion::Back { .. }) && (0..self.cases.len()).any(waits) {
            return Err(Unsettled::StandBy);
        }
        self.follow().await?;
        self.leave_out();
        self.keep_topics();
        self.resolve();
        let gone = self.gone_topics().await?;
        if self.settled.findings.has_errors() {
            return Ok(());
        }
        for gone in gone {
            self.note_gone(gone).await?;
        }
        for index in 0..self.cases.len() {
            if self.may_write(index) {
                self.note(index).await?;
            }
        }
        self.note_topics().await?;
        self.expect_of_topics();
        self.expect().await
    }

    /// A standby changes nothing.
    fn may_write(&self, case: usize) -> bool {
        self.may_write_of(&self.cases[case].source)
    }

    /// Adds columns to targets.
    async fn follow(&mut self) -> Result<(), Unsettled> {
        for index in 0..self.cases.len() {
            let is_writing = self.may_write(index);
            let case = &mut self.cases[index];
            if case.follow.is_empty() || !case.broken.is_empty() {
                continue;
            }
            let added: Vec<_> = case.follow.iter().filter_map(|follow| follow.desired.clone()).collect();
            if is_writing {
                let done = match self.ends.warehouse(&case.sink) {
                    Some(Warehouse::Postgres(client)) => add_columns(client, case).await?,
                    Some(Warehouse::ClickHouse(server)) => {
                        added::add_columns(server, &self.live.clickhouse[&case.sink], case).await?
                    }
                    None => continue,
                };
                if let Err(why) = done {
                    let unfollowed = case.follow.iter();
                    case.left_out.extend(unfollowed.map(|follow| (follow.column.name.clone(), follow.desired.clone())));
                    case.broken.push(why);
                    continue;
                }
                for follow in &case.follow {
                    let column = &follow.column.name;
                    info!(sink = %case.sink, table = %case.target, column, "column was added at the source and is followed");
                }
            } else if !added.is_empty() {
                let names: Vec<_> = added.iter().map(|column| format!("\"{}\"", column.name)).collect();
                let message =
                    format!("\"{}\" lacks {}, which `tailwater run` adds to it", case.target, names.join(", "));
                self.settled.findings.push(Finding::warning("column-added", message));
                self.settled.pretended.push((case.sink.clone(), case.target.clone()));
            }
            pretend(self.live, case, &added);
        }
        if matches!(self.occasion, Occasion::Look) {
            return Ok(());
        }
        for (name, client) in self.ends.sinks {
            // As it is now, the new columns' types and all.
            let is_changed = self.cases.iter().any(|case| &case.sink == name && !case.follow.is_empty());
            if let Some(sink) = self.live.sinks.get_mut(name).filter(|_| is_changed) {
                sink.catalog = read_tables(client, Wanted::All).await?;
            }
        }
        for (name, server) in self.ends.clickhouse {
            if self.cases.iter().any(|case| &case.sink == name && !case.follow.is_empty()) {
                let read = catalog::read_tables(&server.client).await.map_err(WarehouseError::from)?;
                self.live.clickhouse.insert(name.clone(), read);
            }
        }
        Ok(())
    }

    /// Takes columns that cannot be followed out of their mappings. Who only looks is told of them: what is to be published
    /// does not change by it.
    fn leave_out(&mut self) {
        for case in &self.cases {
            if matches!(self.occasion, Occasion::Look) {
                told(case, &self.files[case.file], &mut self.settled.findings);
                let wanted: Vec<_> = case.left_out.iter().filter_map(|(_, desired)| desired.clone()).collect();
                if !wanted.is_empty() {
                    pretend(self.live, case, &wanted);
                    self.settled.pretended.push((case.sink.clone(), case.target.clone()));
                }
                continue;
            }
            let mapping = &mut self.files[case.file].tables[case.table];
            let span = mapping.all_columns.clone().unwrap_or_default();
            for (column, _) in &case.left_out {
                mapping.exclude.push(At { value: column.clone(), span: span.clone() });
            }
        }
    }

    /// Plans for all that can have one. While the daemon runs, and for a table that is out already, an error concerns that
    /// table only.
    fn resolve(&mut self) {
        let mut without = self.files.clone();
        let mut gone = Vec::new();
        for (file_index, file) in self.files.iter().enumerate() {
            for (table_index, mapping) in file.tables.iter().enumerate() {
                let alone = MappingFile { tables: vec![mapping.clone()], views: Vec::new(), ..file.clone() };
                let (_, findings) = resolve(self.config, &[alone], self.live);
                let Some(finding) =
                    findings.0.iter().find(|finding| finding.severity == crate::diagnostic::Severity::Error)
                else {
                    continue;
                };
                let why = match &finding.hint {
                    Some(hint) => format!("{}: {hint}", finding.message),
                    None => finding.message.clone(),
                };
                let concerned =
                    |case: &&mut Case| case.file == file_index && case.table == table_index && !case.is_copied_anew();
                let is_running = |case: &Case| self.occasion.is_running(&case.source, &case.sink);
                let is_out = |case: &Case| case.state == Some(TableState::Quarantined) || !case.broken.is_empty();
                let concerned: Vec<_> = self.cases.iter_mut().filter(concerned).collect();
                if concerned.is_empty() || !concerned.iter().all(|case| is_running(case) || is_out(case)) {
                    continue;
                }
                for case in concerned {
                    if case.broken.is_empty() {
                        case.broken.push(why.clone());
                    }
                    gone.push((case.source.clone(), case.sink.clone(), case.target.clone()));
                }
                without[file_index].tables.retain(|other| other.target.value != mapping.target.value);
            }
        }
        let (mut resolved, findings) = resolve(self.config, &without, self.live);
        if let Some(before) = self.occasion.before() {
            let is_gone = |plan: &&Plan| {
                gone.iter()
                    .any(|(source, sink, target)| (&plan.source, &plan.sink, &plan.target) == (source, sink, target))
            };
            // It takes no changes, but it is still shown.
            resolved.plans.extend(before.plans.iter().filter(is_gone).cloned());
        }
        self.settled.resolved = resolved;
        self.settled.findings.0.extend(findings.0);
    }

    /// Writes down what became of one table.
    async fn note(&mut self, index: usize) -> Result<(), Unsettled> {
        let at = match self.occasion {
            Occasion::Drift { drift, .. } if drift.table == self.cases[index].from => {
                format!(", seen in the transaction committed at {}", drift.at)
            }
            _ => format!(", seen at {}", self.sources[&self.cases[index].source].settled),
        };
        let case = &self.cases[index];
        let Some(warehouse) = self.ends.warehouse(&case.sink) else { return Ok(()) };
        if case.is_copied_anew() {
            if case.stored.is_some() {
                store::forget(warehouse, &case.source, &case.target).await?;
            }
            return Ok(());
        }
        if case.state == Some(TableState::Quarantined) {
            return Ok(());
        }
        for note in &case.notes {
            let message = format!("\"{}\": {note}{at}", case.from);
            warn!(sink = %case.sink, table = %case.target, "{message}");
            warehouse.tell(&case.source, &case.target, &message).await?;
            self.settled.reports.push(report(case, message, false));
        }
        if !case.broken.is_empty() {
            let (why, stands) = (case.broken.join("; "), self.stands(warehouse, &case.source).await?);
            let message = format!("\"{}\": {why}{at}{stands}; {COPY_ANEW}", case.from);
            if self.config.sinks[&case.sink].on_error == OnError::Stop {
                return Err(Unsettled::Stop(format!("table \"{}\": {message}", case.target)));
            }
            error!(sink = %case.sink, table = %case.target, reason = %message, "table is quarantined");
            warehouse.quarantine(&case.source, &case.from, &case.target, &message).await?;
            self.settled.reports.push(report(case, message, true));
            return Ok(());
        }
        store::ensure(warehouse).await?;
        if let Some(layout) = layout_of(case).filter(|layout| case.stored.as_ref() != Some(layout)) {
            store::write(warehouse, &case.source, &case.target, &layout).await?;
        }
        Ok(())
    }

    /// Tells the plans what the stream may show of their tables.
    async fn expect(&mut self) -> Result<(), Unsettled> {
        for plan in &mut self.settled.resolved.plans {
            let is_it =
                |case: &&Case| (&case.source, &case.sink, &case.target) == (&plan.source, &plan.sink, &plan.target);
            let Some(case) = self.cases.iter().find(is_it) else { continue };
            plan.expected.settled = case.settled;
            plan.expected.awaited.clone_from(&case.awaited);
            let Some(layout) = layout_of(case).filter(|_| !case.is_copied_anew()) else { continue };
            let Some(warehouse) = self.ends.warehouse(&case.sink) else { continue };
            for column in layout.columns.iter().filter(|column| column.added) {
                let value = before_added(&self.ends.sources[&case.source], warehouse, column).await?;
                if let Some(expected) = plan.expected.columns.iter_mut().find(|expected| expected.name == column.name) {
                    expected.added = Some(value);
                }
            }
        }
        Ok(())
    }
}

fn report(case: &Case, message: String, is_quarantined: bool) -> Report {
    Report {
        source: case.source.clone(),
        sink: case.sink.clone(),
        target: case.target.clone(),
        message,
        is_quarantined,
    }
}

/// Takes columns for there that the target does not have yet.
fn pretend(live: &mut Live, case: &Case, added: &[DesiredColumn]) {
    let sink = live.sinks.get_mut(&case.sink);
    let table = sink.and_then(|sink| sink.catalog.tables.iter_mut().find(|table| table.name == case.target));
    if let Some(table) = table {
        table.columns.extend(added.iter().map(DesiredColumn::as_column));
    }
    let sink = live.clickhouse.get_mut(&case.sink);
    let table = sink.and_then(|sink| sink.tables.iter_mut().find(|table| table.name == case.target));
    if let Some(table) = table {
        table.columns.extend(added.iter().map(|column| ClickHouseColumn {
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            default_kind: String::new(),
        }));
    }
}

/// The table as it is now, as far as the target follows it.
fn layout_of(case: &Case) -> Option<Layout> {
    let mut layout = case.now.clone()?;
    let Some(stored) = &case.stored else { return Some(layout) };
    layout = layout.with_added(stored);
    layout.columns.retain(|column| !case.left_out.iter().any(|(name, _)| *name == column.name));
    for follow in &case.follow {
        if let Some(column) = layout.columns.iter_mut().find(|column| column.number == follow.column.number) {
            column.added = true;
            column.missing = follow.value.iter().cloned().collect();
        }
    }
    Some(layout)
}
