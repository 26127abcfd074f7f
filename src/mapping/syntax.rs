//! A mapping file as it was written: every name with its place, nothing looked up yet.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::TableName;
use crate::config::document::{self, Alone, Entry, Origin, Reader, Value, find};
use crate::config::units;
use crate::diagnostic::{Finding, Findings, SourceFile};

use super::kafka::TopicMapping;
use super::plan::{DeleteMode, Mask, Meta, Mode, RefreshMode};
use crate::value::clickhouse::types::OnOverflow;

pub(super) const TOP_KEYS: [&str; 5] = ["source", "sink", "table", "view", "topic"];
pub(super) const TABLE_KEYS: [&str; 11] =
    ["from", "key", "columns", "rename", "exclude", "mask", "on_overflow", "where", "mode", "delete", "deleted_column"];
pub(super) const VIEW_KEYS: [&str; 2] = ["refresh", "every"];
pub(super) const METAS: [(&str, Meta); 6] = [
    ("source", Meta::Source),
    ("op", Meta::Op),
    ("commit_lsn", Meta::CommitLsn),
    ("commit_ts", Meta::CommitTs),
    ("xid", Meta::Xid),
    ("synced_at", Meta::SyncedAt),
];

const OVERFLOWS: [(&str, OnOverflow); 4] = [
    ("error", OnOverflow::Error),
    ("null", OnOverflow::Null),
    ("clamp", OnOverflow::Clamp),
    ("text", OnOverflow::Text),
];

/// Column that `delete = "soft"` sets where the mapping names none.
pub const DELETED_COLUMN: &str = "_tailwater_deleted";

/// Between two refreshes of a view where the mapping does not say.
const EVERY: Duration = Duration::from_secs(10);

/// Something that was written, and the bytes of the file where it stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct At<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// One mapping file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MappingFile {
    pub file: Arc<SourceFile>,
    pub sources: Vec<At<String>>,
    pub sinks: Vec<At<String>>,
    pub tables: Vec<TableMapping>,
    pub views: Vec<ViewMapping>,
    pub topic: Option<TopicMapping>,
}

/// `[table."schema.name"]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableMapping {
    pub target: At<TableName>,
    pub from: At<TableName>,
    /// Target columns; `None` asks for those that come from the source's primary key, if it has one.
    pub key: Option<At<Vec<At<String>>>>,
    /// `"*"`: every column of the source table that is not excluded.
    pub all_columns: Option<Range<usize>>,
    pub columns: Vec<ColumnMapping>,
    /// Source column to target column.
    pub rename: Vec<(At<String>, At<String>)>,
    /// Source columns that are not to be read at all.
    pub exclude: Vec<At<String>>,
    /// Source columns.
    pub mask: Vec<(At<String>, Mask)>,
    /// Source columns.
    pub on_overflow: Vec<(At<String>, OnOverflow)>,
    pub filter: Option<At<String>>,
    pub mode: Mode,
    pub delete: DeleteMode,
    /// Present exactly when `delete` is soft.
    pub deleted_column: Option<At<String>>,
}

/// One `target_column = …`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ColumnMapping {
    pub column: At<String>,
    pub from: At<ColumnFrom>,
    /// `type = "…"`: needed only where the target table is to be created.
    pub declared_type: Option<At<String>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ColumnFrom {
    /// A column of the source table.
    Column(String),
    /// An expression of the sink's SQL.
    Sql(String),
    Value(Literal),
    Meta(Meta),
    /// A value inside a JSON column.
    Json {
        column: String,
        path: Vec<String>,
    },
}

/// A constant, as text that the target type's input function reads, and the type that fits it by itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Literal {
    pub text: String,
    pub natural_type: &'static str,
}

/// `[view."schema.name"]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ViewMapping {
    pub view: At<TableName>,
    pub refresh: RefreshMode,
    pub every: Duration,
}

impl MappingFile {
    /// Reads a mapping file's text.
    ///
    /// # Errors
    /// Every finding of the file; where the TOML itself is broken, only what is wrong with that.
    pub fn parse(file: Arc<SourceFile>) -> Result<MappingFile, Findings> {
        let entries = document::parse(&file, &file.text)?;
        let mut parse = Parse { reader: Reader::new(&file) };
        let mapping = parse.file(&entries);
        let findings = parse.reader.findings;
        if findings.has_errors() { Err(findings) } else { Ok(mapping) }
    }
}

/// The bytes of an origin; in a mapping file everything comes from the file.
pub(super) fn span(origin: &Origin) -> Range<usize> {
    match origin {
        Origin::File(span) => span.clone(),
        Origin::Variable(_) | Origin::Nowhere => 0..0,
    }
}

pub(super) fn at<T>(value: T, origin: &Origin) -> At<T> {
    At { value, span: span(origin) }
}

struct Parse {
    reader: Reader,
}

impl Parse {
    fn file(&mut self, entries: &[Entry]) -> MappingFile {
        self.later_keys(entries);
        let known: Vec<&str> = TOP_KEYS.into_iter().chain(["mart"]).collect();
        let unknown: Vec<Entry> =
            entries.iter().filter(|entry| !known.contains(&entry.key.as_str())).cloned().collect();
        self.reader.unknown_keys(&unknown, &TOP_KEYS, "the mapping file");
        let sources = self.names(entries, "source");
        let sinks = self.names(entries, "sink");
        let mut tables = Vec::new();
        for (name, section) in self.named(entries, "table") {
            tables.extend(self.table(name, section));
        }
        let mut views = Vec::new();
        for (name, section) in self.named(entries, "view") {
            views.push(self.view(name, section));
        }
        let topic = find(entries, "topic").and_then(|header| super::kafka::topic(&mut self.reader, header));
        if tables.is_empty() && views.is_empty() && topic.is_none() && !self.reader.findings.has_errors() {
            let finding = Finding::error("empty-mapping", "the mapping file maps nothing");
            self.reader.report(&Origin::File(0..0), finding.hint("add a `[table.\"schema.name\"]`."));
        }
        MappingFile { file: self.reader.file.clone(), sources, sinks, tables, views, topic }
    }

    /// Keys of the mapping language that this build cannot serve yet.
    fn later_keys(&mut self, entries: &[Entry]) {
        if let Some(entry) = find(entries, "mart") {
            let finding = Finding::error("not-supported", "[mart] is not supported by this build");
            let hint = "until then a materialized view under `[view]` serves.";
            self.reader.report(&entry.origin, finding.hint(hint));
        }
    }

    fn names(&mut self, entries: &[Entry], key: &str) -> Vec<At<String>> {
        let Some(entry) = find(entries, key) else {
            let finding = Finding::error("missing-key", format!("the mapping file names no {key}"));
            self.reader.report(&Origin::File(0..0), finding.hint(format!("add `{key} = \"name\"` at its top.")));
            return Vec::new();
        };
        let names = self.reader.strings(entry, Alone::Allowed).unwrap_or_default();
        if names.is_empty() && matches!(entry.node.value, Value::Array(_)) {
            self.reader.report(&entry.node.origin, Finding::error("bad-value", format!("\"{key}\" names nothing")));
        }
        for (index, (name, origin)) in names.iter().enumerate() {
            if names[..index].iter().any(|(earlier, _)| earlier == name) {
                self.reader.report(origin, Finding::error("duplicate-name", format!("\"{name}\" is named twice")));
            }
        }
        names.into_iter().map(|(name, origin)| at(name.to_owned(), origin)).collect()
    }

    /// The tables under `[table]` or `[view]`, with their names read.
    fn named<'a>(&mut self, entries: &'a [Entry], kind: &str) -> Vec<(At<TableName>, &'a [Entry])> {
        let Some(group) = find(entries, kind).and_then(|entry| self.reader.table(entry)) else { return Vec::new() };
        let mut named = Vec::new();
        for entry in group {
            let name = self.table_name(&entry.key, &entry.origin);
            // `[table.dwh.course]` without quotes makes a table within a table: its name is the mistake, not its keys.
            let Some(name) = name else { continue };
            if let Some(section) = self.reader.table(entry) {
                named.push((name, section));
            }
        }
        named
    }

    fn table_name(&mut self, text: &str, origin: &Origin) -> Option<At<TableName>> {
        match text.parse::<TableName>() {
            Ok(name) => Some(at(name, origin)),
            Err(message) => {
                let finding = Finding::error("bad-name", message);
                self.reader
                    .report(origin, finding.hint("write the schema and the name in one string: \"public.course\"."));
                None
            }
        }
    }

    fn view(&mut self, view: At<TableName>, section: &[Entry]) -> ViewMapping {
        self.reader.unknown_keys(section, &VIEW_KEYS, &format!("[view.\"{}\"]", view.value));
        let choices =
            [("auto", RefreshMode::Auto), ("concurrently", RefreshMode::Concurrently), ("plain", RefreshMode::Plain)];
        let refresh = find(section, "refresh").and_then(|entry| self.reader.choice(entry, &choices));
        let every = find(section, "every").and_then(|entry| {
            let duration = units::duration(self.reader.string(entry)?);
            if duration.is_none() {
                let finding = Finding::error("bad-value", "\"every\" is not a duration");
                self.reader.report(&entry.node.origin, finding.hint("write a number with ms, s, m or h: \"10s\"."));
            }
            duration
        });
        ViewMapping { view, refresh: refresh.unwrap_or_default(), every: every.unwrap_or(EVERY) }
    }

    fn table(&mut self, target: At<TableName>, section: &[Entry]) -> Option<TableMapping> {
        let place = format!("[table.\"{}\"]", target.value);
        self.reader.unknown_keys(section, &TABLE_KEYS, &place);
        let from = self.required(section, "from", &target, "add `from = \"schema.table\"`, the source's table.");
        let from = from.and_then(|entry| {
            let text = self.reader.string(entry)?;
            self.table_name(text, &entry.node.origin)
        });
        let columns =
            self.required(section, "columns", &target, "add `columns = \"*\"`, or `{ target = \"source\" }`.");
        let (all_columns, columns) = columns.map(|entry| self.columns(entry)).unwrap_or_default();
        let (mode, delete) = self.modes(section);
        let deleted_column = self.deleted_column(section, delete, &target);
        Some(TableMapping {
            key: self.key(section),
            rename: self.rename(section, all_columns.is_some()),
            exclude: self.exclude(section, all_columns.is_some()),
            mask: self.mask(section),
            on_overflow: self.on_overflow(section),
            filter: self.filter(section),
            from: from?,
            all_columns,
            columns,
            mode,
            delete,
            deleted_column,
            target,
        })
    }

    fn required<'a>(
        &mut self,
        section: &'a [Entry],
        key: &str,
        target: &At<TableName>,
        hint: &str,
    ) -> Option<&'a Entry> {
        let entry = find(section, key);
        if entry.is_none() {
            let finding = Finding::error("missing-key", format!("[table.\"{}\"] has no \"{key}\"", target.value));
            self.reader.report(&Origin::File(target.span.clone()), finding.hint(hint));
        }
        entry
    }

    fn key(&mut self, section: &[Entry]) -> Option<At<Vec<At<String>>>> {
        let entry = find(section, "key")?;
        let names = self.reader.strings(entry, Alone::Allowed)?;
        if names.is_empty() {
            self.reader.report(&entry.node.origin, Finding::error("bad-value", "\"key\" names no column"));
        }
        let names = names.into_iter().map(|(name, origin)| at(name.to_owned(), origin)).collect();
        Some(at(names, &entry.node.origin))
    }

    fn filter(&mut self, section: &[Entry]) -> Option<At<String>> {
        let entry = find(section, "where")?;
        let text = self.reader.string(entry)?;
        Some(at(text.to_owned(), &entry.node.origin))
    }

    fn modes(&mut self, section: &[Entry]) -> (Mode, DeleteMode) {
        let modes = [
            ("upsert", Some(Mode::Upsert)),
            ("append", Some(Mode::Append)),
            ("insert_new", Some(Mode::InsertNew)),
            ("scd2", None),
        ];
        let mut mode = Mode::default();
        if let Some(entry) = find(section, "mode") {
            match self.reader.choice(entry, &modes) {
                Some(Some(chosen)) => mode = chosen,
                Some(None) => {
                    let finding = Finding::error("not-supported", "mode \"scd2\" is not supported by this build");
                    self.reader.report(&entry.node.origin, finding.hint("\"append\" keeps every version as a row."));
                }
                None => {}
            }
        }
        let deletes = [("hard", DeleteMode::Hard), ("soft", DeleteMode::Soft), ("ignore", DeleteMode::Ignore)];
        let entry = find(section, "delete");
        let delete = entry.and_then(|entry| self.reader.choice(entry, &deletes)).unwrap_or_default();
        if let (Mode::Append, DeleteMode::Soft, Some(entry)) = (mode, delete, entry) {
            let finding =
                Finding::error("conflicting-keys", "delete \"soft\" needs a key, and mode \"append\" has none");
            self.reader
                .report(&entry.node.origin, finding.hint("`{ meta = \"op\" }` tells deletes in an appended table."));
        }
        (mode, delete)
    }

    fn deleted_column(&mut self, section: &[Entry], delete: DeleteMode, target: &At<TableName>) -> Option<At<String>> {
        let given = find(section, "deleted_column");
        if let (Some(entry), false) = (given, delete == DeleteMode::Soft) {
            let finding = Finding::error("conflicting-keys", "\"deleted_column\" is used only with delete \"soft\"");
            self.reader.report(&entry.origin, finding.hint("add `delete = \"soft\"`, or remove it."));
            return None;
        }
        match given {
            Some(entry) => Some(at(self.reader.string(entry)?.to_owned(), &entry.node.origin)),
            None if delete == DeleteMode::Soft => {
                Some(At { value: DELETED_COLUMN.to_owned(), span: target.span.clone() })
            }
            None => None,
        }
    }

    fn needs_star(&mut self, entry: &Entry, has_star: bool) {
        if !has_star {
            let message = format!("\"{}\" is used only with `columns = \"*\"`", entry.key);
            let hint = "columns that are named one by one are renamed by their key and left out by not naming them.";
            self.reader.report(&entry.origin, Finding::error("conflicting-keys", message).hint(hint));
        }
    }

    fn rename(&mut self, section: &[Entry], has_star: bool) -> Vec<(At<String>, At<String>)> {
        let Some(entry) = find(section, "rename") else { return Vec::new() };
        self.needs_star(entry, has_star);
        let mut renames = Vec::new();
        for pair in self.reader.table(entry).unwrap_or_default() {
            if let Some(target) = self.reader.string(pair) {
                renames.push((at(pair.key.clone(), &pair.origin), at(target.to_owned(), &pair.node.origin)));
            }
        }
        renames
    }

    fn exclude(&mut self, section: &[Entry], has_star: bool) -> Vec<At<String>> {
        let Some(entry) = find(section, "exclude") else { return Vec::new() };
        self.needs_star(entry, has_star);
        let names = self.reader.strings(entry, Alone::Refused).unwrap_or_default();
        names.into_iter().map(|(name, origin)| at(name.to_owned(), origin)).collect()
    }

    fn on_overflow(&mut self, section: &[Entry]) -> Vec<(At<String>, OnOverflow)> {
        let Some(entry) = find(section, "on_overflow") else { return Vec::new() };
        let mut policies = Vec::new();
        for pair in self.reader.table(entry).unwrap_or_default() {
            if let Some(policy) = self.reader.choice(pair, &OVERFLOWS) {
                policies.push((at(pair.key.clone(), &pair.origin), policy));
            }
        }
        policies
    }

    fn mask(&mut self, section: &[Entry]) -> Vec<(At<String>, Mask)> {
        let Some(entry) = find(section, "mask") else { return Vec::new() };
        let mut masks = Vec::new();
        for pair in self.reader.table(entry).unwrap_or_default() {
            if let Some(mask) = self.reader.choice(pair, &[("sha256", Mask::Sha256)]) {
                masks.push((at(pair.key.clone(), &pair.origin), mask));
            }
        }
        masks
    }

    fn columns(&mut self, entry: &Entry) -> (Option<Range<usize>>, Vec<ColumnMapping>) {
        if let Value::String(text) = &entry.node.value {
            if text != "*" {
                let finding = Finding::error("bad-value", "\"columns\" is \"*\" or a table of columns");
                self.reader.report(&entry.node.origin, finding.hint("write `columns = { target = \"source\" }`."));
            }
            return (Some(span(&entry.node.origin)), Vec::new());
        }
        let mut all_columns = None;
        let mut columns = Vec::new();
        let Some(entries) = self.reader.table(entry) else { return (all_columns, columns) };
        for column in entries {
            if column.key == "*" {
                all_columns = Some(span(&column.origin));
                if !matches!(column.node.value, Value::Boolean(true)) {
                    let finding = Finding::error("bad-value", "\"*\" among columns must be true");
                    self.reader.report(&column.node.origin, finding.hint("write `\"*\" = true`."));
                }
            } else {
                columns.extend(super::syntax_column::column(&mut self.reader, column));
            }
        }
        if entries.is_empty() {
            self.reader.report(&entry.node.origin, Finding::error("bad-value", "\"columns\" maps no column"));
        }
        (all_columns, columns)
    }
}
