//! The target tables that mappings ask for: what `setup --create-targets` creates and `schema ddl` prints.

use super::clickhouse::{self, ClickHouseTable};
use super::draft::{Draft, DraftColumn, DraftFrom};
use super::kafka::{DesiredTopic, Expanded, beside};
use super::offline::is_postgres;
use super::plan::Mode;
use super::resolve::{Live, LiveSource, expand, source_table, without_repeats};
use super::syntax::{MappingFile, TableMapping};
use super::target::meta_type;
use super::types;
use crate::catalog::{Column, ReplicaIdentity, Table, TableKind, TableName, TypeKind, quote_ident, quote_literal};
use crate::config::Config;
use crate::diagnostic::{Finding, Findings};

/// A target table as its mapping describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredTable {
    pub sink: String,
    pub target: TableName,
    pub columns: Vec<DesiredColumn>,
    /// Empty for mode "append", and for a table without a key.
    pub primary_key: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredColumn {
    pub name: String,
    /// SQL text with modifier.
    pub type_name: String,
    pub not_null: bool,
    /// SQL text.
    pub default: Option<&'static str>,
}

impl DesiredTable {
    /// The table as its catalog would show it once created.
    pub(super) fn as_table(&self) -> Table {
        let columns = self.columns.iter().map(DesiredColumn::as_column);
        Table {
            oid: 0,
            name: self.target.clone(),
            kind: TableKind::Table,
            columns: columns.collect(),
            primary_key: self.primary_key.clone(),
            unique_keys: if self.primary_key.is_empty() { Vec::new() } else { vec![self.primary_key.clone()] },
            replica_identity: ReplicaIdentity::Default,
            identity_columns: self.primary_key.clone(),
            foreign_keys: Vec::new(),
            row_security: false,
            unlogged: false,
            is_partition: false,
            straying_partition: None,
            rows_estimate: 0,
        }
    }
}

/// The target tables that mappings ask for and that are not there yet.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub tables: Vec<DesiredTable>,
    /// By sink.
    pub clickhouse: Vec<(String, ClickHouseTable)>,
    pub topics: Vec<DesiredTopic>,
}

/// The target tables that are not in `live`: all of them where it is empty.
pub fn desired_tables(config: &Config, files: &[MappingFile], live: &Live) -> (Desired, Findings) {
    let mut findings = Findings::default();
    let mut desired = Desired::default();
    for file in files {
        for Expanded { topic, .. } in expand(file, live, &mut findings) {
            desired.add_topic(file, &topic, live);
        }
        for (sink, topic, _) in beside(config, file) {
            desired.add_one(&sink, &topic, 1, live);
        }
        for mapping in &file.tables {
            for source in &file.sources {
                let wanting = file.sinks.iter().map(|sink| sink.value.as_str()).filter(|sink| {
                    let target = &mapping.target.value;
                    !live.has_target(sink, target) && !desired.has(sink, target) && config.sinks.contains_key(*sink)
                });
                let wanting: Vec<&str> = wanting.collect();
                let Some(end) = live.sources.get(&source.value) else { continue };
                if wanting.is_empty() {
                    continue;
                }
                let Some(table) = source_table(file, mapping, &source.value, end, &mut findings) else { continue };
                let Some(draft) = Draft::make(file, mapping, table, &mut findings) else { continue };
                for sink in wanting {
                    desired.add(config, sink, &draft, &mut findings);
                }
            }
        }
    }
    (desired, without_repeats(findings))
}

impl Desired {
    /// A Postgres sink's part.
    pub fn of_postgres(&self, sink: &str) -> Vec<DesiredTable> {
        self.tables.iter().filter(|table| table.sink == sink).cloned().collect()
    }

    /// A ClickHouse sink's part.
    pub fn of_clickhouse(&self, sink: &str) -> Vec<ClickHouseTable> {
        self.clickhouse.iter().filter(|(of, _)| of == sink).map(|(_, table)| table.clone()).collect()
    }

    /// A Kafka sink's part.
    pub fn of_kafka(&self, sink: &str) -> impl Iterator<Item = &DesiredTopic> {
        self.topics.iter().filter(move |topic| topic.sink == sink)
    }

    fn has(&self, sink: &str, target: &TableName) -> bool {
        self.tables.iter().any(|table| table.sink == sink && table.target == *target)
            || self.clickhouse.iter().any(|(of, table)| of == sink && table.name == *target)
    }

    /// A topic for every Kafka sink that lacks it.
    fn add_topic(&mut self, file: &MappingFile, topic: &str, live: &Live) {
        let partitions = file.topic.as_ref().map_or(1, |section| section.partitions);
        for sink in &file.sinks {
            self.add_one(&sink.value, topic, partitions, live);
        }
    }

    fn add_one(&mut self, sink: &str, topic: &str, partitions: i32, live: &Live) {
        let is_lacking = live.kafka.get(sink).is_some_and(|end| !end.topics.contains_key(topic));
        let is_known = self.topics.iter().any(|known| known.sink == sink && known.name == topic);
        if is_lacking && !is_known {
            self.topics.push(DesiredTopic { sink: sink.to_owned(), name: topic.to_owned(), partitions });
        }
    }

    fn add(&mut self, config: &Config, sink: &str, draft: &Draft<'_>, findings: &mut Findings) {
        if is_postgres(config, sink) {
            let Some((columns, primary_key)) = columns(draft, findings) else { return };
            let target = draft.mapping.target.value.clone();
            self.tables.push(DesiredTable { sink: sink.to_owned(), target, columns, primary_key });
        } else {
            let table = clickhouse::desired(draft, findings);
            self.clickhouse.extend(table.map(|table| (sink.to_owned(), table)));
        }
    }
}

/// A target table as it is.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    Postgres(&'a Table),
    ClickHouse(&'a ClickHouseTable),
}

impl Target<'_> {
    fn has(self, column: &str) -> bool {
        match self {
            Target::Postgres(table) => table.column(column).is_some(),
            Target::ClickHouse(table) => table.column(column).is_some(),
        }
    }
}

/// Columns that a mapping of all columns asks for and an existing target lacks, by the source column's name.
pub fn missing_columns(
    file: &MappingFile,
    mapping: &TableMapping,
    source: &str,
    end: &LiveSource,
    target: Target<'_>,
) -> Vec<(String, DesiredColumn)> {
    // What is wrong is said when all is resolved.
    let mut unsaid = Findings::default();
    let table = source_table(file, mapping, source, end, &mut unsaid);
    let Some(draft) = table.and_then(|table| Draft::make(file, mapping, table, &mut unsaid)) else { return Vec::new() };
    let missing = draft.columns.iter().filter(|column| column.starred && !target.has(&column.target));
    let desired = missing.filter_map(|column| {
        let DraftFrom::Column(from) = &column.from else { return None };
        let type_name = match target {
            Target::Postgres(_) => type_name(&draft, column)?,
            Target::ClickHouse(_) => clickhouse::added_type(&draft, from),
        };
        // Its NOT NULL may be taken back at the source, of which nobody would hear.
        let desired = DesiredColumn { name: column.target.clone(), type_name, not_null: false, default: None };
        Some((from.name.clone(), desired))
    });
    desired.collect()
}

impl DesiredColumn {
    /// The statement that adds the column to a table; rows that are there get `value`.
    pub fn add_to(&self, table: &TableName, value: Option<&str>) -> String {
        let (table, name) = (table.quoted(), quote_ident(&self.name));
        let add = format!("ALTER TABLE {table} ADD COLUMN {name} {}", self.type_name);
        match value {
            None => add,
            // The default goes again: every new row brings its own value.
            Some(value) => format!(
                "{add} DEFAULT CAST({} AS {}); ALTER TABLE {table} ALTER COLUMN {name} DROP DEFAULT",
                quote_literal(value),
                self.type_name
            ),
        }
    }

    /// The column as the catalog would show it.
    pub fn as_column(&self) -> Column {
        Column {
            name: self.name.clone(),
            type_oid: 0,
            type_modifier: -1,
            type_name: self.type_name.clone(),
            wire_type: types::without_modifier(&self.type_name),
            wire_oid: 0,
            wire_modifier: -1,
            type_kind: TypeKind::Base,
            not_null: self.not_null,
            generated: false,
            has_default: self.default.is_some(),
            toastable: false,
            has_binary: true,
            equals_bytewise: true,
            enum_labels: Vec::new(),
        }
    }
}

fn columns(draft: &Draft<'_>, findings: &mut Findings) -> Option<(Vec<DesiredColumn>, Vec<String>)> {
    let mut columns = Vec::new();
    let mut complete = true;
    let in_key = |position: usize| draft.mapping.mode != Mode::Append && draft.key.contains(&position);
    for (position, column) in draft.columns.iter().enumerate() {
        let Some(type_name) = type_name(draft, column) else {
            complete = false;
            let message = format!("the type of column \"{}\" is not known before it exists", column.target);
            let finding = Finding::error("missing-type", message).at(&draft.file.file, column.span.clone());
            findings.push(finding.hint("say it: `{ sql = \"…\", type = \"boolean\" }`, or create the table yourself."));
            continue;
        };
        let not_null = matches!(column.from, DraftFrom::Column(from) if from.not_null) || in_key(position);
        columns.push(DesiredColumn { name: column.target.clone(), type_name, not_null, default: None });
    }
    if let Some(deleted) = &draft.mapping.deleted_column {
        columns.push(DesiredColumn {
            name: deleted.value.clone(),
            type_name: "boolean".to_owned(),
            not_null: true,
            default: Some("false"),
        });
    }
    let key = match draft.mapping.mode {
        Mode::Append => Vec::new(),
        Mode::Upsert | Mode::InsertNew => draft.key.iter().map(|key| draft.columns[*key].target.clone()).collect(),
    };
    complete.then_some((columns, key))
}

/// The column's type where the target is yet to be created.
fn type_name(draft: &Draft<'_>, column: &DraftColumn<'_>) -> Option<String> {
    if let Some(declared) = column.declared_type {
        return Some(declared.value.clone());
    }
    match &column.from {
        DraftFrom::Column(from) => {
            let stage_type = draft.stage_type(from);
            let is_itself =
                from.type_kind != TypeKind::Domain && stage_type == types::without_modifier(&from.wire_type);
            Some(if is_itself { from.type_name.clone() } else { stage_type })
        }
        DraftFrom::Meta(meta) => Some(meta_type(*meta).to_owned()),
        DraftFrom::Value(literal) => Some(literal.natural_type.to_owned()),
        DraftFrom::Sql { .. } | DraftFrom::Json { .. } => None,
    }
}

/// The statements that create `tables`, schemas first.
pub fn ddl(tables: &[DesiredTable]) -> String {
    let mut schemas: Vec<&str> = tables.iter().map(|table| table.target.schema.as_str()).collect();
    schemas.sort_unstable();
    schemas.dedup();
    let mut text = String::new();
    for schema in schemas {
        text.push_str(&format!("CREATE SCHEMA IF NOT EXISTS {};\n", quote_ident(schema)));
    }
    for table in tables {
        let mut lines: Vec<String> = table.columns.iter().map(column_ddl).collect();
        if !table.primary_key.is_empty() {
            let key: Vec<String> = table.primary_key.iter().map(|column| quote_ident(column)).collect();
            lines.push(format!("    PRIMARY KEY ({})", key.join(", ")));
        }
        text.push_str(&format!(
            "\nCREATE TABLE IF NOT EXISTS {} (\n{}\n);\n",
            table.target.quoted(),
            lines.join(",\n")
        ));
    }
    text
}

fn column_ddl(column: &DesiredColumn) -> String {
    let default = column.default.map(|default| format!(" DEFAULT {default}")).unwrap_or_default();
    let not_null = if column.not_null { " NOT NULL" } else { "" };
    format!("    {} {}{not_null}{default}", quote_ident(&column.name), column.type_name)
}
