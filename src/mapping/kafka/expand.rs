//! A `[topic]` section against a source's catalog: a mapping for each table that it means.

use super::{TopicMapping, label};
use crate::catalog::{Catalog, Table, TableKind, TableName};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::plan::{DeleteMode, Mode};
use crate::mapping::syntax::{At, MappingFile, TableMapping};

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
    catalog
        .tables
        .iter()
        .filter(|table| is_meant(topic, table))
        .map(|table| {
            let name = topic_name(&topic.name.value, source, catalog, table);
            let mapping = mapping(topic, table, &name);
            Expanded { source: source.to_owned(), topic: name, mapping }
        })
        .collect()
}

/// What a pattern catches beside tables that can be followed is left out; a plain name is taken at its word.
fn is_meant(topic: &TopicMapping, table: &Table) -> bool {
    let name = table.name.to_string();
    let can_be_followed = matches!(table.kind, TableKind::Table | TableKind::Partitioned) && !table.unlogged;
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

    /// The section for one table only.
    pub fn of(&self, table: &TableName) -> TopicMapping {
        TopicMapping { tables: vec![self.pattern_of(table)], ..self.clone() }
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

fn mapping(topic: &TopicMapping, table: &Table, name: &str) -> TableMapping {
    let given = topic.keys.iter().find(|key| key.table.value == table.name).map(|key| key.columns.clone());
    let primary = || {
        let columns = table.primary_key.iter();
        let columns = columns.map(|column| At { value: column.clone(), span: topic.span.clone() }).collect::<Vec<_>>();
        (!columns.is_empty()).then(|| At { value: columns, span: topic.span.clone() })
    };
    let excluded = table.columns.iter().filter_map(|column| {
        let path = format!("{}.{}", table.name, column.name);
        let pattern = topic.exclude.iter().find(|pattern| pattern.value.matches(&path));
        // The source does not send what it generates.
        let span = pattern.map(|pattern| pattern.span.clone()).or(column.generated.then(|| topic.span.clone()))?;
        Some(At { value: column.name.clone(), span })
    });
    TableMapping {
        target: At { value: label(name), span: topic.span.clone() },
        from: At { value: table.name.clone(), span: topic.span.clone() },
        key: given.or_else(primary),
        all_columns: Some(topic.span.clone()),
        columns: Vec::new(),
        rename: Vec::new(),
        exclude: excluded.collect(),
        mask: Vec::new(),
        on_overflow: Vec::new(),
        filter: None,
        mode: Mode::Append,
        delete: DeleteMode::Hard,
        deleted_column: None,
    }
}
