//! A mapping resolved at the source's end: which of its columns feed which target columns, what they form the key of, and
//! whether the source sends enough of them.

use std::ops::Range;

use super::plan::{Mask, Meta, Mode};
use super::sql::{self, SqlError, Word};
use super::syntax::{At, ColumnFrom, ColumnMapping, Literal, MappingFile, TableMapping};
use super::syntax_column::did_you_mean;
use super::types;
use crate::catalog::{Column, Table, TableName, TypeKind};
use crate::diagnostic::{Finding, Findings, SourceFile};
use crate::value::clickhouse::types::OnOverflow;

mod key;
mod toast;

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
    /// Of `columns`, in the key's order; empty for mode "append", and for a table that has none.
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

    /// Rows are found by all that is mapped of them, and equal ones are not told apart.
    pub fn is_multiset(&self) -> bool {
        self.key.is_empty() && self.mapping.mode == Mode::Upsert
    }

    /// Source columns that the key is made from, in the key's order.
    pub fn key_reads(&self) -> impl Iterator<Item = &'a Column> {
        self.key.iter().flat_map(|key| self.columns[*key].from.reads()).copied()
    }

    /// The target has no such column; `free` are those that it has.
    pub fn missing_column<'n>(
        &self,
        column: &DraftColumn<'_>,
        target: &TableName,
        free: impl Iterator<Item = &'n str>,
    ) -> Finding {
        let message = format!("column \"{}\" does not exist in target \"{target}\"", column.target);
        let finding = Finding::error("unknown-column", message).label("no such column at the sink");
        let free = free.filter(|name| !self.columns.iter().any(|column| column.target == *name));
        finding.hint(did_you_mean(&column.target, free).unwrap_or_else(|| match column.starred {
            true => "add it to the target, or `rename` or `exclude` it.".to_owned(),
            false => "add it to the target, or remove it.".to_owned(),
        }))
    }

    pub fn mask(&self, column: &Column) -> Option<Mask> {
        self.mapping.mask.iter().find(|(name, _)| name.value == column.name).map(|(_, mask)| *mask)
    }

    pub fn on_overflow(&self, column: &Column) -> OnOverflow {
        let policy = self.mapping.on_overflow.iter().find(|(name, _)| name.value == column.name);
        policy.map(|(_, policy)| *policy).unwrap_or_default()
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

    /// `rename`, `exclude`, `mask` and `on_overflow` name columns of the source.
    fn lists(&mut self) {
        let mapping = self.mapping;
        for name in &mapping.exclude {
            self.named_column(&name.value, name.span.clone());
        }
        let kept = mapping
            .rename
            .iter()
            .map(|(name, _)| name)
            .chain(mapping.mask.iter().map(|(name, _)| name))
            .chain(mapping.on_overflow.iter().map(|(name, _)| name));
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
            let span = place_in(&self.file.file, text, &word.span);
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
        if word.name == sql::ROW {
            let message = format!("{what} reads \"{}\", which is the row as a whole", word.name);
            let finding = Finding::error("unknown-column", message).label("not all of it may have been sent");
            self.report(span, finding.hint("name the columns that it reads."));
            return;
        }
        let names = self.table.columns.iter().map(|column| column.name.as_str());
        let hint = did_you_mean(&word.name, names);
        let message = format!("{what} reads \"{}\", which is no column of \"{}\"", word.name, self.table.name);
        match (word.quoted, hint) {
            (true, Some(hint)) => self.report(span, Finding::error("unknown-column", message).hint(hint)),
            (true, None) => self.report(span, Finding::error("unknown-column", message)),
            (false, Some(hint)) if !sql::is_common(&word.name) => {
                self.report(span, Finding::warning("unknown-column", message).hint(hint));
            }
            (false, _) => {}
        }
    }
}

/// The file's bytes of a part of a string value; the whole value where escapes make that hard to say.
pub(super) fn place_in(file: &SourceFile, text: &At<String>, part: &Range<usize>) -> Range<usize> {
    let written = file.text.get(text.span.clone()).unwrap_or_default();
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
