//! A `[topic]` section against a source's catalog: a mapping for each table that it means.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

use super::{TopicMapping, label};
use crate::catalog::{Catalog, Column, Table, TableKind, TableName};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::plan::{DeleteMode, Mode};
use crate::mapping::syntax::{At, MappingFile, TableMapping};
use crate::mapping::syntax_column::did_you_mean;

/// One table of one source, mapped to its topic.
pub(in crate::mapping) struct Expanded {
    pub source: String,
    pub topic: String,
    pub mapping: TableMapping,
}

/// Every table that the section means, in the catalog's order.
pub(in crate::mapping) fn expand(
    file: &MappingFile,
    topic: &TopicMapping,
    source: &str,
    catalog: &Catalog,
    findings: &mut Findings,
) -> Vec<Expanded> {
    for pattern in &topic.tables {
        if !catalog.tables.iter().any(|table| pattern.value.matches(&table.name.to_string())) {
            let message = format!("no table of source \"{source}\" is meant by this");
            let finding = Finding::error("unknown-table", message).at(&file.file, pattern.span.clone());
            findings.push(finding.hint("names are \"schema.table\"; `*` stands for any characters."));
        }
    }
    let meant: Vec<&Table> = catalog.tables.iter().filter(|table| is_meant(topic, table)).collect();
    // Names that meant something need not do so any more.
    if !topic.is_followed {
        named_tables(file, topic, source, &meant, findings);
        named_columns(file, topic, source, catalog, findings);
    }
    let expanded = meant.into_iter().map(|table| {
        let name = topic_name(&topic.name.value, source, catalog, table);
        let mapping = mapping(file, topic, table, &name, findings);
        Expanded { source: source.to_owned(), topic: name, mapping }
    });
    expanded.collect()
}

/// A finding for each topic that more than one table would go to, or one table twice. What a sink remembers of a table stands
/// under its topic's name, so that of two the second would be taken for copied with the first; and rows of two sources may have
/// equal keys.
pub(in crate::mapping) fn shared(files: &[MappingFile], expanded: &[Vec<Expanded>]) -> Vec<Finding> {
    let mut known: BTreeMap<(&str, &TableName), (&Expanded, bool)> = BTreeMap::new();
    let mut findings = Vec::new();
    for (file, expanded) in files.iter().zip(expanded) {
        let Some(section) = &file.topic else { continue };
        let pairs = expanded.iter().flat_map(|one| file.sinks.iter().map(move |sink| (one, sink.value.as_str())));
        for (one, sink) in pairs {
            let (first, is_told) = match known.entry((sink, &one.mapping.target.value)) {
                Entry::Vacant(place) => {
                    place.insert((one, false));
                    continue;
                }
                Entry::Occupied(place) => place.into_mut(),
            };
            if std::mem::replace(is_told, true) {
                continue;
            }
            let table = |one: &Expanded| format!("\"{}\" of source \"{}\"", one.mapping.from.value, one.source);
            let (first, second) = (table(first), table(one));
            let whose = if first == second { format!("{first} twice") } else { format!("{first} and {second}") };
            let message = format!("topic \"{}\" of sink \"{sink}\" is to have {whose}", one.topic);
            let finding = Finding::error("duplicate-target", message).at(&file.file, section.name.span.clone());
            let hint = "a table has a topic of its own: tell them apart by {source}, {schema} and {table} in `name`, or leave \
                        one out by `exclude_tables`.";
            findings.push(finding.hint(hint));
        }
    }
    findings
}

/// `key` and `where` name tables that the section means.
fn named_tables(file: &MappingFile, topic: &TopicMapping, source: &str, meant: &[&Table], findings: &mut Findings) {
    let keys = topic.keys.iter().map(|key| ("key", &key.table));
    let conditions = topic.conditions.iter().filter_map(|mapping| Some(("where", mapping.table.as_ref()?)));
    for (what, name) in keys.chain(conditions).filter(|(_, name)| !meant.iter().any(|table| table.name == name.value)) {
        let message =
            format!("\"{what}\" names \"{}\", which is no table of source \"{source}\" that is meant here", name.value);
        let finding = Finding::error("unknown-table", message).at(&file.file, name.span.clone());
        let names: Vec<String> = meant.iter().map(|table| table.name.to_string()).collect();
        let near = did_you_mean(&name.value.to_string(), names.iter().map(String::as_str));
        findings.push(finding.hint(near.unwrap_or_else(|| "`tables` says which are.".to_owned())));
    }
}

/// A slip of the hand in `exclude` would send what must not be sent. It may also mean a column that comes later, or is gone.
fn named_columns(file: &MappingFile, topic: &TopicMapping, source: &str, catalog: &Catalog, findings: &mut Findings) {
    for pattern in topic.include.iter().flatten().chain(&topic.exclude) {
        let mut columns =
            catalog.tables.iter().flat_map(|table| table.columns.iter().map(move |column| (table, column)));
        if !columns.any(|(table, column)| pattern.value.matches(&path(table, &column.name))) {
            let message = format!("no column of source \"{source}\" is meant by this");
            let finding = Finding::warning("unknown-column", message).at(&file.file, pattern.span.clone());
            findings.push(finding.hint("names are \"schema.table.column\"; `*` stands for any characters."));
        }
    }
}

fn path(table: &Table, column: &str) -> String {
    format!("{}.{column}", table.name)
}

/// What a pattern catches beside tables that can be followed is left out, and so are partitions, whose rows are sent as their
/// root's; a plain name is taken at its word.
fn is_meant(topic: &TopicMapping, table: &Table) -> bool {
    let name = table.name.to_string();
    let can_be_followed =
        matches!(table.kind, TableKind::Table | TableKind::Partitioned) && !table.unlogged && !table.is_partition;
    let is_named =
        |pattern: &At<super::Pattern>| pattern.value.matches(&name) && (pattern.value.is_plain() || can_be_followed);
    topic.tables.iter().any(is_named) && !topic.exclude_tables.iter().any(|pattern| pattern.value.matches(&name))
}

impl TopicMapping {
    /// Whether the section means a table of this name, if there is one.
    pub fn means(&self, table: &TableName) -> bool {
        let is_it = |pattern: &At<super::Pattern>| pattern.value.matches(&table.to_string());
        self.tables.iter().any(is_it) && !self.exclude_tables.iter().any(is_it)
    }

    /// The section for one table only, which is followed already.
    pub fn of(&self, table: &TableName) -> TopicMapping {
        self.only(vec![self.pattern_of(table)])
    }

    /// The section for these tables only, which are followed already.
    pub fn only(&self, tables: Vec<At<super::Pattern>>) -> TopicMapping {
        TopicMapping { tables, is_followed: true, ..self.clone() }
    }

    /// A pattern that means one table.
    pub fn pattern_of(&self, table: &TableName) -> At<super::Pattern> {
        At { value: super::Pattern::new(&table.to_string()), span: self.name.span.clone() }
    }
}

/// Characters that a topic's name cannot have become underscores, as Debezium has it.
fn topic_name(template: &str, source: &str, catalog: &Catalog, table: &Table) -> String {
    let name = template
        .replace("{source}", source)
        .replace("{database}", &catalog.database)
        .replace("{schema}", &table.name.schema)
        .replace("{table}", &table.name.name);
    name.chars()
        .map(|char| if char.is_ascii_alphanumeric() || matches!(char, '.' | '_' | '-') { char } else { '_' })
        .collect()
}

fn mapping(
    file: &MappingFile,
    topic: &TopicMapping,
    table: &Table,
    name: &str,
    findings: &mut Findings,
) -> TableMapping {
    let given = topic.keys.iter().find(|key| key.table.value == table.name).map(|key| key.columns.clone());
    let primary = || {
        let columns = table.primary_key.iter();
        let columns = columns.map(|column| At { value: column.clone(), span: topic.span.clone() }).collect::<Vec<_>>();
        (!columns.is_empty()).then(|| At { value: columns, span: topic.span.clone() })
    };
    let key = given.or_else(primary);
    let is_key = |column: &str| key.iter().flat_map(|key| &key.value).any(|name| name.value == column);
    let mut excluded = Vec::new();
    for column in &table.columns {
        let Some(span) = left_out(topic, table, column) else { continue };
        // An excluded one is said to be, and not said again to be missing.
        if !is_key(&column.name) || column.generated {
            excluded.push(At { value: column.name.clone(), span });
        } else if topic.include.is_none() {
            let message = format!(
                "column \"{}\" of \"{}\" is excluded, and its messages are keyed by it",
                column.name, table.name
            );
            let finding = Finding::error("excluded-key", message).at(&file.file, span);
            let hint = format!("leave it, or name another key: `key = {{ \"{}\" = [\"…\"] }}`.", table.name);
            findings.push(finding.hint(hint));
        }
    }
    TableMapping {
        target: At { value: label(name), span: topic.span.clone() },
        from: At { value: table.name.clone(), span: topic.span.clone() },
        key,
        all_columns: Some(topic.span.clone()),
        columns: Vec::new(),
        rename: Vec::new(),
        exclude: excluded,
        mask: Vec::new(),
        on_overflow: Vec::new(),
        filter: None,
        mode: Mode::Append,
        delete: DeleteMode::Hard,
        deleted_column: None,
    }
}

/// What it is that leaves a column out, if something does.
fn left_out(topic: &TopicMapping, table: &Table, column: &Column) -> Option<Range<usize>> {
    let path = path(table, &column.name);
    let meant_by = |patterns: &[At<super::Pattern>]| {
        patterns.iter().find(|pattern| pattern.value.matches(&path)).map(|pattern| pattern.span.clone())
    };
    let by_pattern = match &topic.include {
        None => meant_by(&topic.exclude),
        Some(include) if meant_by(include).is_some() => None,
        Some(include) => include.first().map(|pattern| pattern.span.clone()),
    };
    // The source does not send what it generates.
    by_pattern.or(column.generated.then(|| topic.span.clone()))
}
