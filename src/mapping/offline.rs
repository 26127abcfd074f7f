//! What can be said of mapping files without a database: names of sources and sinks, targets mapped twice, keys among the
//! columns, expressions that cannot be one.

use std::collections::BTreeMap;
use std::ops::Range;

use super::draft::{error_place, place_in};
use super::plan::{Meta, Mode, TopicFormat};
use super::sql;
use super::syntax::{At, ColumnFrom, MappingFile, TableMapping};
use super::syntax_column::did_you_mean;
use crate::catalog::TableName;
use crate::config::{Config, SinkEnd};
use crate::diagnostic::{Finding, Findings};

/// Everything that is wrong whatever the databases hold.
pub fn resolve_offline(config: &Config, files: &[MappingFile]) -> Findings {
    let mut findings = Findings::default();
    for file in files {
        let mut check = Check { file, config, findings: &mut findings };
        check.ends();
        check.kinds();
        for table in &file.tables {
            check.table(table);
        }
    }
    duplicate_targets(files, &mut findings);
    findings
}

struct Check<'a> {
    file: &'a MappingFile,
    config: &'a Config,
    findings: &'a mut Findings,
}

impl Check<'_> {
    fn report(&mut self, span: &Range<usize>, finding: Finding) {
        self.findings.push(finding.at(&self.file.file, span.clone()));
    }

    fn ends(&mut self) {
        let sources: Vec<&str> = self.config.sources.keys().map(String::as_str).collect();
        let sinks: Vec<&str> = self.config.sinks.keys().map(String::as_str).collect();
        for (kind, names, known) in [("source", &self.file.sources, sources), ("sink", &self.file.sinks, sinks)] {
            for name in names.iter().filter(|name| !known.contains(&name.value.as_str())) {
                let message = format!("{kind} \"{}\" is not in the configuration", name.value);
                let finding = Finding::error(if kind == "source" { "unknown-source" } else { "unknown-sink" }, message);
                let hint = did_you_mean(&name.value, known.iter().copied());
                let hint = hint.unwrap_or_else(|| format!("add `[{kind}.{}]` to the configuration.", name.value));
                self.report(&name.span, finding.hint(hint));
            }
        }
    }

    /// Tables and views do not go to Kafka, and topics nowhere else.
    fn kinds(&mut self) {
        for sink in &self.file.sinks {
            let Some(configured) = self.config.sinks.get(&sink.value) else { continue };
            let is_kafka = matches!(configured.end, SinkEnd::Kafka(_));
            if let (SinkEnd::Kafka(end), Some(topic)) = (&configured.end, &self.file.topic)
                && topic.format == TopicFormat::Avro
                && end.registry.is_none()
            {
                let message = format!("sink \"{}\" has no \"schema_registry\" for Avro's schemas", sink.value);
                let hint = format!(
                    "add `schema_registry = {{ url = \"http://host:8081\" }}` to `[sink.{}]`, or choose another format.",
                    sink.value
                );
                self.report(&topic.span, Finding::error("no-registry", message).hint(hint));
            }
            let has_others = !self.file.tables.is_empty() || !self.file.views.is_empty();
            if is_kafka && has_others {
                let message = format!("sink \"{}\" is Kafka, which takes no [table] and no [view]", sink.value);
                let finding = Finding::error("wrong-sink", message);
                self.report(&sink.span, finding.hint("put `[topic]` into a mapping file of its own."));
            }
            if !is_kafka && let Some(topic) = &self.file.topic {
                let finding = Finding::error("wrong-sink", format!("sink \"{}\" is not Kafka", sink.value));
                self.report(&topic.span, finding.hint("`[topic]` needs a sink of `kind = \"kafka\"`."));
            }
        }
    }

    fn table(&mut self, table: &TableMapping) {
        self.repeats(table);
        if let Some(filter) = &table.filter {
            self.expression(filter, "\"where\"");
        }
        for column in &table.columns {
            if let ColumnFrom::Sql(text) = &column.from.value {
                let text = At { value: text.clone(), span: column.from.span.clone() };
                self.expression(&text, "\"sql\"");
            }
        }
        if let (Some((column, _)), None) = (table.mask.first(), &self.config.mask_salt) {
            let finding = Finding::error("missing-salt", "\"mask\" needs a salt, and the configuration has none");
            let hint = "set `mask_salt_file`, so that hashes cannot be found by trying values.";
            self.report(&column.span, finding.hint(hint));
        }
        if let Some(deleted) = &table.deleted_column
            && table.columns.iter().any(|column| column.column.value == deleted.value)
        {
            let message = format!("\"{}\" is the deleted column, and mapped too", deleted.value);
            self.report(&deleted.span, Finding::error("duplicate-column", message).hint("remove it from `columns`."));
        }
        self.key(table);
    }

    fn repeats(&mut self, table: &TableMapping) {
        let key = table.key.iter().flat_map(|key| &key.value).collect::<Vec<_>>();
        for names in [key, table.exclude.iter().collect()] {
            for (index, name) in names.iter().enumerate() {
                if names[..index].iter().any(|earlier| earlier.value == name.value) {
                    let message = format!("\"{}\" is named twice", name.value);
                    self.report(&name.span, Finding::error("duplicate-name", message));
                }
            }
        }
    }

    fn expression(&mut self, text: &At<String>, what: &str) {
        if let Err(error) = sql::names(&text.value) {
            let span = place_in(&self.file.file, text, &error_place(&error, text));
            let finding = Finding::error("bad-sql", format!("{what} is not one expression: {error}"));
            self.report(&span, finding);
        }
    }

    fn key(&mut self, table: &TableMapping) {
        if let (Some(key), None) = (&table.key, &table.all_columns) {
            for name in &key.value {
                let mapped = table.columns.iter().map(|column| column.column.value.as_str());
                if mapped.clone().any(|column| column == name.value) {
                    continue;
                }
                let message = format!("the key's column \"{}\" is not mapped", name.value);
                let finding = Finding::error("key-not-mapped", message).label("a column of the target");
                let hint = did_you_mean(&name.value, mapped);
                let hint = hint.unwrap_or_else(|| format!("add `{} = \"…\"` to `columns`.", name.value));
                self.report(&name.span, finding.hint(hint));
            }
        }
        if self.file.sources.len() < 2 || table.mode == Mode::Append {
            return;
        }
        let is_source = |from: &ColumnFrom| matches!(from, ColumnFrom::Meta(Meta::Source));
        let of_source = table.columns.iter().find(|column| is_source(&column.from.value));
        let (span, hint) = match (of_source, &table.key) {
            (None, _) => (
                &table.target.span,
                "add a column `{ meta = \"source\" }` and put it into the key: rows of two sources may have equal ids."
                    .to_owned(),
            ),
            (Some(column), Some(key)) if !key.value.iter().any(|name| name.value == column.column.value) => {
                (&key.span, format!("put \"{}\" into the key.", column.column.value))
            }
            (Some(_), _) => return,
        };
        let message = "several sources feed this table, and its key does not say which";
        self.report(&span.clone(), Finding::error("source-not-in-key", message).hint(hint));
    }
}

/// A table or view of a sink is written by one mapping only; each of several is told.
fn duplicate_targets(files: &[MappingFile], findings: &mut Findings) {
    type Written<'a> = (&'a MappingFile, &'a Range<usize>);
    let mut places: BTreeMap<(&str, &TableName), Vec<Written<'_>>> = BTreeMap::new();
    for file in files {
        let tables = file.tables.iter().map(|table| &table.target);
        for target in tables.chain(file.views.iter().map(|view| &view.view)) {
            for sink in &file.sinks {
                places.entry((&sink.value, &target.value)).or_default().push((file, &target.span));
            }
        }
    }
    for ((sink, target), places) in places.into_iter().filter(|(_, places)| places.len() > 1) {
        for (index, (file, span)) in places.iter().enumerate() {
            let (other, other_span) = places[if index == 0 { 1 } else { 0 }];
            let (line, _) = other.file.line_column(other_span.start);
            let message = format!("\"{target}\" of sink \"{sink}\" is mapped more than once");
            let finding = Finding::error("duplicate-target", message).at(&file.file, (*span).clone());
            findings.push(finding.hint(format!("the other is in {}, line {line}.", other.file.path.display())));
        }
    }
}

/// Does the configuration have a Postgres sink of that name?
pub(super) fn is_postgres(config: &Config, sink: &str) -> bool {
    config.sinks.get(sink).is_some_and(|sink| matches!(sink.end, SinkEnd::Postgres(_)))
}
