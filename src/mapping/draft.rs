//! A mapping resolved at the source's end: which of its columns feed which target columns, what they form the key of, and
//! whether the source sends enough of them.

use std::ops::Range;

use super::plan::{Mask, Meta, Mode};
use super::sql::{self, SqlError, Word};
use super::syntax::{At, ColumnFrom, ColumnMapping, Literal, MappingFile, TableMapping};
use super::syntax_column::did_you_mean;
use super::types;
use crate::catalog::{Column, ReplicaIdentity, Table, TypeKind};
use crate::diagnostic::{Finding, Findings};

/// One target column and what it is made of.
pub(super) struct DraftColumn<'a> {
    pub target: String,
    /// Where the mapping asks for it: the column's own key, or the star.
    pub span: Range<usize>,
    pub starred: bool,
    pub from: DraftFrom<'a>,
    pub declared_type: Option<&'a At<String>>,
}

pub(super) enum DraftFrom<'a> {
    Column(&'a Column),
    Sql { text: &'a str, reads: Vec<&'a Column> },
    Value(&'a Literal),
    Meta(Meta),
    Json { column: &'a Column, path: &'a [String] },
}

impl<'a> DraftFrom<'a> {
    /// Source columns that must be carried for it.
    pub fn reads(&self) -> &[&'a Column] {
        match self {
            DraftFrom::Column(column) | DraftFrom::Json { column, .. } => std::slice::from_ref(column),
            DraftFrom::Sql { reads, .. } => reads,
            DraftFrom::Value(_) | DraftFrom::Meta(_) => &[],
        }
    }
}

/// One `[table]` for one source, without a look at the sink.
pub(super) struct Draft<'a> {
    pub file: &'a MappingFile,
    pub mapping: &'a TableMapping,
    pub table: &'a Table,
    pub columns: Vec<DraftColumn<'a>>,
    /// Of `columns`, in the key's order; empty only for mode "append".
    pub key: Vec<usize>,
    pub key_span: Range<usize>,
    pub filter_reads: Vec<&'a Column>,
}

impl<'a> Draft<'a> {
    /// Finds everything wrong at the source's end; there is no draft where a name or the key is missing.
    pub fn make(
        file: &'a MappingFile,
        mapping: &'a TableMapping,
        table: &'a Table,
        findings: &mut Findings,
    ) -> Option<Draft<'a>> {
        let mut drafting = Drafting { file, mapping, table, found: Findings::default() };
        drafting.lists();
        let columns = drafting.columns();
        let filter_reads = match &mapping.filter {
            Some(filter) => drafting.sql_reads(filter, "\"where\""),
            None => Vec::new(),
        };
        let key = drafting.key(&columns);
        let draft = key.map(|(key, key_span)| Draft { file, mapping, table, columns, key, key_span, filter_reads });
        if let Some(draft) = &draft {
            drafting.identity(draft);
            drafting.toast(draft);
        }
        let failed = drafting.found.has_errors();
        findings.0.extend(drafting.found.0);
        if failed { None } else { draft }
    }

    pub fn mask(&self, column: &Column) -> Option<Mask> {
        self.mapping.mask.iter().find(|(name, _)| name.value == column.name).map(|(_, mask)| *mask)
    }

    /// Type in which a source column is carried, without modifier. `text` stands in for what has no binary form, for
    /// enums, whose binary form is their text, and for hashes.
    pub fn stage_type(&self, column: &Column) -> String {
        if self.mask(column).is_some() || column.type_kind == TypeKind::Enum || !column.has_binary {
            return "text".to_owned();
        }
        types::without_modifier(&column.wire_type)
    }
}

struct Drafting<'a> {
    file: &'a MappingFile,
    mapping: &'a TableMapping,
    table: &'a Table,
    found: Findings,
}

impl<'a> Drafting<'a> {
    fn report(&mut self, span: Range<usize>, finding: Finding) {
        self.found.push(finding.at(&self.file.file, span));
    }

    /// `rename`, `exclude` and `mask` name columns of the source.
    fn lists(&mut self) {
        let mapping = self.mapping;
        for name in &mapping.exclude {
            self.named_column(&name.value, name.span.clone());
        }
        let kept = mapping.rename.iter().map(|(name, _)| name).chain(mapping.mask.iter().map(|(name, _)| name));
        for name in kept {
            self.column(&name.value, name.span.clone());
        }
    }

    fn named_column(&mut self, name: &str, span: Range<usize>) -> Option<&'a Column> {
        let column = self.table.column(name);
        if column.is_none() {
            let message = format!("column \"{name}\" does not exist in \"{}\"", self.table.name);
            let finding = Finding::error("unknown-column", message).label("no such column at the source");
            let names = self.table.columns.iter().map(|column| column.name.as_str());
            self.report(
                span,
                match did_you_mean(name, names) {
                    Some(hint) => finding.hint(hint),
                    None => finding,
                },
            );
        }
        column
    }

    fn is_excluded(&self, name: &str) -> bool {
        self.mapping.exclude.iter().any(|excluded| excluded.value == name)
    }

    /// A column that exists, is not excluded, and is sent.
    fn column(&mut self, name: &str, span: Range<usize>) -> Option<&'a Column> {
        let column = self.named_column(name, span.clone())?;
        if self.is_excluded(name) {
            let finding = Finding::error("excluded-column", format!("column \"{name}\" is excluded, and used here"));
            self.report(span, finding.hint("remove it from `exclude`, or from here."));
            return None;
        }
        if column.generated {
            let message =
                format!("column \"{name}\" of \"{}\" is generated, and the source does not send it", self.table.name);
            let finding = Finding::error("generated-column", message);
            self.report(span, finding.hint("compute it again with `{ sql = \"…\" }`."));
            return None;
        }
        if is_user_array(column) {
            let message = format!("column \"{name}\" is an array of a type that other databases number differently");
            let finding = Finding::error("unsupported-type", message).label(column.type_name.clone());
            self.report(span, finding.hint("exclude it, or store it as text[] at the source."));
            return None;
        }
        Some(column)
    }

    fn columns(&mut self) -> Vec<DraftColumn<'a>> {
        let mut columns: Vec<DraftColumn<'a>> = Vec::new();
        if let Some(star) = &self.mapping.all_columns {
            columns = self.starred(star);
        }
        for column in &self.mapping.columns {
            if let Some(from) = self.from(column) {
                let span = column.column.span.clone();
                let declared_type = column.declared_type.as_ref();
                let target = column.column.value.clone();
                columns.push(DraftColumn { target, span, starred: false, from, declared_type });
            }
        }
        for (index, column) in columns.iter().enumerate() {
            if columns[..index].iter().any(|earlier| earlier.target == column.target) {
                let message = format!("two columns of \"{}\" are written to \"{}\"", self.table.name, column.target);
                let finding = Finding::error("duplicate-column", message).at(&self.file.file, column.span.clone());
                self.found.push(finding.hint("`rename` or `exclude` one of them."));
            }
        }
        columns
    }

    fn starred(&mut self, star: &Range<usize>) -> Vec<DraftColumn<'a>> {
        let mut columns = Vec::new();
        for column in &self.table.columns {
            let renamed = self.mapping.rename.iter().find(|(from, _)| from.value == column.name);
            let (target, span) = match renamed {
                Some((_, to)) => (&to.value, &to.span),
                None => (&column.name, star),
            };
            let named = self.mapping.columns.iter().any(|named| &named.column.value == target);
            if named || self.is_excluded(&column.name) {
                continue;
            }
            if column.generated {
                let message =
                    format!("column \"{}\" of \"{}\" is generated and left out", column.name, self.table.name);
                let finding = Finding::warning("generated-column", message).label("the source does not send it");
                self.report(
                    star.clone(),
                    finding.hint("name it in `exclude`, or compute it again with `{ sql = \"…\" }`."),
                );
                continue;
            }
            if self.column(&column.name, star.clone()).is_some() {
                let from = DraftFrom::Column(column);
                let span = span.clone();
                columns.push(DraftColumn { target: target.clone(), span, starred: true, from, declared_type: None });
            }
        }
        columns
    }

    fn from(&mut self, mapping: &'a ColumnMapping) -> Option<DraftFrom<'a>> {
        let span = mapping.from.span.clone();
        Some(match &mapping.from.value {
            ColumnFrom::Column(name) => DraftFrom::Column(self.column(name, span)?),
            ColumnFrom::Sql(text) => {
                let at = At { value: text.clone(), span };
                DraftFrom::Sql { text, reads: self.sql_reads(&at, "\"sql\"") }
            }
            ColumnFrom::Value(literal) => DraftFrom::Value(literal),
            ColumnFrom::Meta(meta) => DraftFrom::Meta(*meta),
            ColumnFrom::Json { column, path } => {
                let column = self.column(column, span.clone())?;
                let plain = types::without_modifier(&column.wire_type);
                if !matches!(plain.as_str(), "json" | "jsonb" | "text" | "varchar") {
                    let message = format!("column \"{}\" is {}, not json", column.name, column.type_name);
                    self.report(span, Finding::error("wrong-type", message));
                    return None;
                }
                DraftFrom::Json { column, path }
            }
        })
    }

    /// The source columns that an expression reads.
    fn sql_reads(&mut self, text: &At<String>, what: &str) -> Vec<&'a Column> {
        let Ok(words) = sql::names(&text.value) else { return Vec::new() };
        let mut reads: Vec<&'a Column> = Vec::new();
        for word in words {
            let span = place_in(self.file, text, &word.span);
            if self.table.column(&word.name).is_none() {
                self.unknown_word(&word, span, what);
            } else if let Some(column) = self.column(&word.name, span)
                && !reads.iter().any(|read| read.name == column.name)
            {
                reads.push(column);
            }
        }
        reads
    }

    /// A bare word may be a keyword or a type; it is mentioned only where it looks like a column's name.
    fn unknown_word(&mut self, word: &Word, span: Range<usize>, what: &str) {
        let names = self.table.columns.iter().map(|column| column.name.as_str());
        let hint = did_you_mean(&word.name, names);
        let message = format!("{what} reads \"{}\", which is no column of \"{}\"", word.name, self.table.name);
        match (word.quoted, hint) {
            (true, Some(hint)) => self.report(span, Finding::error("unknown-column", message).hint(hint)),
            (true, None) => self.report(span, Finding::error("unknown-column", message)),
            (false, Some(hint)) if !sql::COMMON.contains(&word.name.as_str()) => {
                self.report(span, Finding::warning("unknown-column", message).hint(hint));
            }
            (false, _) => {}
        }
    }

    /// The key's columns and where to point for it. `None` after a finding.
    fn key(&mut self, columns: &[DraftColumn<'a>]) -> Option<(Vec<usize>, Range<usize>)> {
        let target = &self.mapping.target;
        let Some(key) = &self.mapping.key else {
            if self.mapping.mode == Mode::Append {
                return Some((Vec::new(), target.span.clone()));
            }
            return Some((self.default_key(columns)?, target.span.clone()));
        };
        let mut positions = Vec::new();
        for name in &key.value {
            match columns.iter().position(|column| column.target == name.value) {
                Some(position) => positions.push(position),
                // With columns named one by one, the offline check says it.
                None if self.mapping.all_columns.is_some() => {
                    let message = format!("the key's column \"{}\" is not mapped", name.value);
                    let finding = Finding::error("key-not-mapped", message).label("a column of the target");
                    let hint = did_you_mean(&name.value, columns.iter().map(|column| column.target.as_str()));
                    let hint = hint.unwrap_or_else(|| "`rename` the source's column to it.".to_owned());
                    self.report(name.span.clone(), finding.hint(hint));
                }
                None => {}
            }
        }
        (positions.len() == key.value.len()).then(|| (positions, key.span.clone()))
    }

    fn default_key(&mut self, columns: &[DraftColumn<'a>]) -> Option<Vec<usize>> {
        let span = self.mapping.target.span.clone();
        if self.table.primary_key.is_empty() {
            let message = format!("table \"{}\" has no primary key, and the mapping names no key", self.table.name);
            let finding = Finding::error("no-key", message);
            self.report(span, finding.hint("add `key = [\"…\"]`, target columns that are unique together."));
            return None;
        }
        let mut key = Vec::new();
        if self.file.sources.len() > 1 {
            key.extend(columns.iter().position(|column| matches!(column.from, DraftFrom::Meta(Meta::Source))));
        }
        for name in &self.table.primary_key {
            let is_it = |column: &DraftColumn<'_>| matches!(column.from, DraftFrom::Column(from) if &from.name == name);
            match columns.iter().position(is_it) {
                Some(position) => key.push(position),
                None => {
                    let message = format!("\"{name}\", of the primary key of \"{}\", is not mapped", self.table.name);
                    let finding = Finding::error("key-not-mapped", message);
                    self.report(span.clone(), finding.hint("map it, or name another key with `key = [\"…\"]`."));
                }
            }
        }
        (!self.found.has_errors()).then_some(key)
    }

    /// What the source sends of an old row must hold all that the key is made of.
    fn identity(&mut self, draft: &Draft<'a>) {
        let table = self.table;
        let full = format!("run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source", table.name.quoted());
        if table.identity_columns.is_empty() && table.replica_identity != ReplicaIdentity::Full {
            let message = format!("table \"{}\" has no replica identity", table.name);
            let finding = Finding::error("no-replica-identity", message).label("its updates and deletes would fail");
            let hint = format!("{full}, or give it a primary key, or `REPLICA IDENTITY USING INDEX`.");
            self.report(self.mapping.from.span.clone(), finding.hint(hint));
            return;
        }
        for position in &draft.key {
            let column = &draft.columns[*position];
            if let DraftFrom::Meta(meta) = column.from
                && meta != Meta::Source
            {
                let message = format!("key column \"{}\" changes with every change of the row", column.target);
                let finding = Finding::error("bad-key", message);
                self.report(column.span.clone(), finding.hint("of meta only \"source\" can be part of a key."));
            }
            for read in column.from.reads() {
                if types::is_float(&types::without_modifier(&read.wire_type)) && draft.mask(read).is_none() {
                    let message = format!("key column \"{}\" is {}", column.target, read.type_name);
                    let finding = Finding::error("float-key", message).label("equal floats need not be found again");
                    self.report(draft.key_span.clone(), finding.hint("use a key of another type."));
                }
                let identified =
                    table.replica_identity == ReplicaIdentity::Full || table.identity_columns.contains(&read.name);
                if !identified {
                    let message = format!(
                        "key column \"{}\" needs \"{}\", which is outside the replica identity of \"{}\"",
                        column.target, read.name, table.name
                    );
                    let finding = Finding::error("key-outside-identity", message);
                    let hint = format!("a delete would not say which row it is: {full}, or choose another key.");
                    self.report(draft.key_span.clone(), finding.hint(hint));
                }
            }
        }
    }

    /// An UPDATE leaves large values unsent that it did not touch. What is not stored as it came cannot be made again.
    fn toast(&mut self, draft: &Draft<'a>) {
        if self.table.replica_identity == ReplicaIdentity::Full {
            return;
        }
        let full = format!("run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source", self.table.name.quoted());
        let stored = |name: &str| {
            self.mapping.mode == Mode::Upsert
                && draft
                    .columns
                    .iter()
                    .any(|column| matches!(column.from, DraftFrom::Column(from) if from.name == name))
        };
        let mut findings = Vec::new();
        let filter = draft.mapping.filter.as_ref().map(|filter| (&draft.filter_reads[..], filter.span.clone(), false));
        let columns = draft.columns.iter().map(|column| {
            let plain = matches!(column.from, DraftFrom::Column(_));
            (column.from.reads(), column.span.clone(), plain && draft.mapping.mode != Mode::Append)
        });
        for (reads, span, safe) in columns.chain(filter) {
            for read in reads.iter().filter(|read| read.toastable && !safe && !stored(&read.name)) {
                let message = format!(
                    "\"{}\" of \"{}\" may be large, and then an update that leaves it alone does not send it",
                    read.name, self.table.name
                );
                let finding = Finding::error("toast-unsent", message).label("cannot be computed without it");
                let hint = match self.mapping.mode {
                    Mode::Upsert => format!("{full}, or also map the column as it is."),
                    Mode::Append | Mode::InsertNew => format!("{full}."),
                };
                findings.push((span.clone(), finding.hint(hint)));
            }
        }
        if let (Some(filter), true) = (&draft.mapping.filter, findings.is_empty())
            && let Some(column) =
                draft.columns.iter().flat_map(|column| column.from.reads()).find(|read| read.toastable)
        {
            let message = format!("a row that comes to match \"where\" by an update may lack \"{}\"", column.name);
            let finding = Finding::warning("toast-unsent", message).label("a large value is sent only when it changes");
            let hint = format!("{full}, so that such a row is whole; without it the table stops there.");
            findings.push((filter.span.clone(), finding.hint(hint)));
        }
        for (span, finding) in findings {
            self.report(span, finding);
        }
    }
}

/// Arrays carry their element type's OID in their binary form, and that of a user's type differs between databases.
fn is_user_array(column: &Column) -> bool {
    /// First OID that is not Postgres's own (`FirstNormalObjectId`).
    const FIRST_USER_OID: u32 = 16384;
    column.wire_type.ends_with("[]") && column.wire_oid >= FIRST_USER_OID
}

/// The file's bytes of a part of a string value; the whole value where escapes make that hard to say.
pub(super) fn place_in(file: &MappingFile, text: &At<String>, part: &Range<usize>) -> Range<usize> {
    let written = file.file.text.get(text.span.clone()).unwrap_or_default();
    match written.find(&text.value) {
        Some(offset) => {
            let start = text.span.start + offset;
            start + part.start..start + part.end
        }
        None => text.span.clone(),
    }
}

/// Where in the text an error lies.
pub(super) fn error_place(error: &SqlError, text: &At<String>) -> Range<usize> {
    let length = text.value.len();
    let start = match error {
        SqlError::Empty => return 0..length,
        SqlError::Unclosed(start)
        | SqlError::OpenParenthesis(start)
        | SqlError::CloseParenthesis(start)
        | SqlError::Semicolon(start)
        | SqlError::Parameter(start) => *start,
    };
    start..length.min(start + 1)
}
