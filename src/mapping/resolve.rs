//! Mapping files against both live ends: every name resolved or reported, and a plan for each table that is right.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::clickhouse::{self, LiveClickHouse};
use super::desired::DesiredTable;
use super::draft::Draft;
use super::kafka::{self, Expanded, LiveKafka};
use super::offline::resolve_offline;
use super::plan::{Plan, Published, RefreshMode, ViewPlan};
use super::publication::{self, Need};
use super::syntax::{MappingFile, TableMapping, ViewMapping};
use super::syntax_column::did_you_mean;
use super::target;
use crate::catalog::{Catalog, Table, TableKind, TableName, UserType};
use crate::config::Config;
use crate::diagnostic::{Finding, Findings};

/// One source, as it answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveSource {
    pub catalog: Catalog,
    /// `server_version_num`: 150004 is 15.4.
    pub server_version: u32,
    /// Types that are not Postgres's own, by OID.
    pub types: Arc<BTreeMap<u32, UserType>>,
}

/// One sink, as it answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LiveSink {
    pub catalog: Catalog,
    /// Types that are not Postgres's own: name as `format_type` gives it, and OID.
    pub types: BTreeMap<String, u32>,
}

/// Both ends, by the names of `[source.NAME]` and `[sink.NAME]`. Mappings of an end that is not here are passed over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Live {
    pub sources: BTreeMap<String, LiveSource>,
    pub sinks: BTreeMap<String, LiveSink>,
    pub clickhouse: BTreeMap<String, LiveClickHouse>,
    pub kafka: BTreeMap<String, LiveKafka>,
    /// Target tables taken to exist as described, for planning before they are created.
    pub assume: Vec<DesiredTable>,
}

impl Live {
    /// Which end of a pair is not here; `None` if both are.
    fn absent_end(&self, source: &str, sink: &str) -> Option<AbsentEnd> {
        if !self.sources.contains_key(source) {
            return Some(AbsentEnd::Source);
        }
        let has_sink =
            self.sinks.contains_key(sink) || self.clickhouse.contains_key(sink) || self.kafka.contains_key(sink);
        (!has_sink).then_some(AbsentEnd::Sink)
    }

    /// Does a sink have a table of this name?
    pub fn has_target(&self, sink: &str, target: &TableName) -> bool {
        self.sinks.get(sink).is_some_and(|end| end.catalog.table(target).is_some())
            || self.clickhouse.get(sink).is_some_and(|end| end.table(target).is_some())
    }
}

/// What mapping files come to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Resolved {
    /// One for each mapping file, source, sink and table that has no error.
    pub plans: Vec<Plan>,
    pub views: Vec<ViewPlan>,
    /// What each source's publication must hold.
    pub published: BTreeMap<String, Vec<Published>>,
    /// What has no plans because an end of it is not here.
    pub absent: Vec<Absent>,
}

/// A source and a sink of which one is not here, and the tables that the files map between them. Both are configured, so none of
/// them may be taken for done with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Absent {
    pub source: String,
    pub sink: String,
    pub end: AbsentEnd,
    pub targets: Vec<TableName>,
}

/// Who does not answer; the source if neither does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AbsentEnd {
    Source,
    Sink,
}

/// Resolves all files. What is returned is whole only if the findings have no error.
pub fn resolve(config: &Config, files: &[MappingFile], live: &Live) -> (Resolved, Findings) {
    let mut findings = resolve_offline(config, files);
    let mut resolved = Resolved::default();
    let expanded: Vec<Vec<Expanded>> = files.iter().map(|file| expand(file, live, &mut findings)).collect();
    findings.0.extend(kafka::shared(files, &expanded));
    let mut needs = Vec::new();
    for (file, expanded) in files.iter().zip(&expanded) {
        for mapping in &file.tables {
            for source in &file.sources {
                let Some(end) = live.sources.get(&source.value) else { continue };
                let Some(table) = source_table(file, mapping, &source.value, end, &mut findings) else { continue };
                let Some(draft) = Draft::make(file, mapping, table, &mut findings) else { continue };
                needs.push(Need::of(&draft, &source.value, end.server_version));
                for sink in &file.sinks {
                    let names = target::Ends { source: &source.value, sink: &sink.value };
                    if let Some(end) = live.sinks.get(&sink.value) {
                        resolved.plans.extend(target::plan(&draft, names, end, &live.assume, &mut findings));
                    }
                    if let Some(end) = live.clickhouse.get(&sink.value) {
                        resolved.plans.extend(clickhouse::plan(&draft, names, end, &mut findings));
                    }
                }
            }
        }
        for Expanded { source, topic, mapping } in expanded {
            let Some(end) = live.sources.get(source) else { continue };
            let Some(table) = source_table(file, mapping, source, end, &mut findings) else { continue };
            let (Some(draft), Some(section)) = (Draft::make(file, mapping, table, &mut findings), &file.topic) else {
                continue;
            };
            needs.push(Need::of(&draft, source, end.server_version));
            let Some(rows) = kafka::rows(&draft, section, &mut findings) else { continue };
            for sink in &file.sinks {
                let names = target::Ends { source, sink: &sink.value };
                let types = &end.types;
                if let Some(end) = live.kafka.get(&sink.value) {
                    let end = (end, types);
                    resolved.plans.extend(kafka::plan(&draft, section, topic, &rows, names, end, &mut findings));
                }
            }
        }
        findings.0.extend(kafka::lacking(config, file, live));
        for view in &file.views {
            for sink in &file.sinks {
                if let Some(end) = live.sinks.get(&sink.value) {
                    resolved.views.extend(view_plan(file, view, &sink.value, end, &mut findings));
                }
                if let Some(end) = live.clickhouse.get(&sink.value) {
                    resolved.views.extend(clickhouse::view_plan(file, view, &sink.value, end, &mut findings));
                }
            }
        }
    }
    resolved.published = publication::published(&needs, &mut findings);
    resolved.absent = absent(files, live);
    (resolved, without_repeats(findings))
}

/// Every pair that has tables and lacks an end.
fn absent(files: &[MappingFile], live: &Live) -> Vec<Absent> {
    let mut all: Vec<Absent> = Vec::new();
    for file in files.iter().filter(|file| !file.tables.is_empty() || file.topic.is_some()) {
        for (source, sink) in file.sources.iter().flat_map(|source| file.sinks.iter().map(move |sink| (source, sink))) {
            let (source, sink) = (&source.value, &sink.value);
            let Some(end) = live.absent_end(source, sink) else { continue };
            let targets = file.tables.iter().map(|table| table.target.value.clone());
            match all.iter_mut().find(|absent| (&absent.source, &absent.sink) == (source, sink)) {
                Some(absent) => absent.targets.extend(targets),
                None => {
                    let (source, sink) = (source.clone(), sink.clone());
                    all.push(Absent { source, sink, end, targets: targets.collect() });
                }
            }
        }
    }
    all
}

/// The tables that a file's `[topic]` means, in every source that answered.
pub(super) fn expand(file: &MappingFile, live: &Live, findings: &mut Findings) -> Vec<Expanded> {
    let Some(topic) = &file.topic else { return Vec::new() };
    let sources = file.sources.iter().filter_map(|source| live.sources.get_key_value(&source.value));
    sources.flat_map(|(name, end)| kafka::expand(file, topic, name, &end.catalog, findings)).collect()
}

/// The tables of one source that a file's `[topic]` means.
pub fn topic_tables(file: &MappingFile, source: &str, live: &Live) -> Vec<TableName> {
    let meant = expand(file, live, &mut Findings::default()).into_iter();
    meant.filter(|expanded| expanded.source == source).map(|expanded| expanded.mapping.from.value).collect()
}

/// The source's table, if its changes can be followed.
pub(super) fn source_table<'a>(
    file: &MappingFile,
    mapping: &TableMapping,
    source: &str,
    end: &'a LiveSource,
    findings: &mut Findings,
) -> Option<&'a Table> {
    let name = &mapping.from.value;
    let mut report = |finding: Finding| findings.push(finding.at(&file.file, mapping.from.span.clone()));
    let Some(table) = end.catalog.table(name) else {
        let message = format!("table \"{name}\" does not exist in source \"{source}\"");
        report(Finding::error("unknown-table", message).hint(table_hint(name, &end.catalog)));
        return None;
    };
    let kind = match table.kind {
        TableKind::Table | TableKind::Partitioned => None,
        TableKind::View => Some("a view"),
        TableKind::MaterializedView => Some("a materialized view"),
        TableKind::Foreign => Some("a foreign table"),
    };
    if let Some(kind) = kind {
        let message = format!("\"{name}\" is {kind}, and its changes are in no log");
        report(Finding::error("not-replicable", message).hint("map the tables under it."));
        return None;
    }
    if table.unlogged {
        let message = format!("\"{name}\" is unlogged, and its changes are in no log");
        let hint = format!("run `ALTER TABLE {} SET LOGGED` at the source.", name.quoted());
        report(Finding::error("not-replicable", message).hint(hint));
        return None;
    }
    if table.row_security {
        let message = format!("\"{name}\" has row security: the first copy may see fewer rows than the stream");
        let hint = "give the role of the source's url BYPASSRLS, or a policy that shows it every row.";
        report(Finding::warning("row-security", message).hint(hint));
    }
    Some(table)
}

/// The nearest name, or what may keep the table from being seen.
pub(super) fn table_hint(name: &TableName, catalog: &Catalog) -> String {
    let names: Vec<String> = catalog.tables.iter().map(|table| table.name.to_string()).collect();
    // A table of the same name elsewhere is a likelier slip than one with a similar name.
    let elsewhere = catalog.tables.iter().find(|table| table.name.name == name.name);
    match (elsewhere, did_you_mean(&name.to_string(), names.iter().map(String::as_str))) {
        (Some(table), _) => format!("did you mean \"{}\"?", table.name),
        (None, Some(hint)) => hint,
        (None, None) => format!("names are case-sensitive; it is looked for in database \"{}\".", catalog.database),
    }
}

fn view_plan(
    file: &MappingFile,
    mapping: &ViewMapping,
    sink: &str,
    end: &LiveSink,
    findings: &mut Findings,
) -> Option<ViewPlan> {
    let name = &mapping.view.value;
    let mut report = |finding: Finding| findings.push(finding.at(&file.file, mapping.view.span.clone()));
    let Some(view) = end.catalog.table(name) else {
        let message = format!("materialized view \"{name}\" does not exist in sink \"{sink}\"");
        report(Finding::error("unknown-view", message).hint(table_hint(name, &end.catalog)));
        return None;
    };
    let hint = match view.kind {
        TableKind::MaterializedView => None,
        TableKind::View => Some("an ordinary view is always fresh: remove it from the mapping."),
        TableKind::Table | TableKind::Partitioned | TableKind::Foreign => Some("a table is mapped under `[table]`."),
    };
    if let Some(hint) = hint {
        report(Finding::error("not-a-view", format!("\"{name}\" is not a materialized view")).hint(hint));
        return None;
    }
    if mapping.refresh == RefreshMode::Concurrently && view.unique_keys.is_empty() {
        let message = format!("\"{name}\" cannot be refreshed concurrently: it has no unique index");
        let hint = format!("run `CREATE UNIQUE INDEX ON {} (…)`, or use refresh \"plain\".", name.quoted());
        report(Finding::error("no-unique-index", message).hint(hint));
        return None;
    }
    Some(ViewPlan { sink: sink.to_owned(), view: name.clone(), refresh: mapping.refresh, every: mapping.every })
}

/// Several sources and sinks may be wrong in the same way at the same place: said once.
pub(super) fn without_repeats(findings: Findings) -> Findings {
    let mut once = Findings::default();
    for finding in findings.0 {
        if !once.0.contains(&finding) {
            once.push(finding);
        }
    }
    once
}
