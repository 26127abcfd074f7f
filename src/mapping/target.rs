//! A draft resolved at the sink's end: does the target take what the mapping gives it? If so, the plan.

use std::borrow::Cow;
use std::ops::Range;

use super::desired::DesiredTable;
use super::draft::{Draft, DraftColumn, DraftFrom};
use super::plan::{Meta, Mode, Plan};
use super::plan_build::Build;
use super::resolve::{LiveSink, table_hint};
use super::types;
use crate::catalog::{Column, Table, TableKind};
use crate::diagnostic::{Finding, Findings};

/// Names of the two ends that a plan joins.
#[derive(Clone, Copy)]
pub(super) struct Ends<'a> {
    pub source: &'a str,
    pub sink: &'a str,
}

/// The plan, or findings why there is none.
pub(super) fn plan(
    draft: &Draft<'_>,
    ends: Ends<'_>,
    sink: &LiveSink,
    assume: &[DesiredTable],
    findings: &mut Findings,
) -> Option<Plan> {
    let mut check = Check { draft, ends, found: Findings::default() };
    let plan = check.table(sink, assume).and_then(|table| {
        check.columns(&table);
        check.user_arrays();
        check.unwritten(&table);
        check.unique_key(&table);
        check.deleted_column(&table);
        let sink_types = &sink.types;
        let (plan, unknown) = Build::plan(draft, ends, &table, sink_types);
        for column in unknown {
            check.unknown_type(column);
        }
        (!check.found.has_errors()).then_some(plan)
    });
    findings.0.extend(check.found.0);
    plan
}

struct Check<'d, 'a> {
    draft: &'d Draft<'a>,
    ends: Ends<'d>,
    found: Findings,
}

impl<'d> Check<'d, '_> {
    fn report(&mut self, span: &Range<usize>, finding: Finding) {
        self.found.push(finding.at(&self.draft.file.file, span.clone()));
    }

    fn table<'t>(&mut self, sink: &'t LiveSink, assume: &[DesiredTable]) -> Option<Cow<'t, Table>> {
        let draft = self.draft;
        let target = &draft.mapping.target;
        let is_it = |desired: &&DesiredTable| desired.sink == self.ends.sink && desired.target == target.value;
        let Some(table) = sink.catalog.table(&target.value) else {
            if let Some(desired) = assume.iter().find(is_it) {
                return Some(Cow::Owned(desired.as_table()));
            }
            let message = format!("table \"{}\" does not exist in sink \"{}\"", target.value, self.ends.sink);
            let near = table_hint(&target.value, &sink.catalog);
            let near = if near.starts_with("did you mean") { format!("{near} ") } else { String::new() };
            let hint =
                format!("{near}`tailwater setup --create-targets` creates it, `tailwater schema ddl` shows how.");
            self.report(&target.span, Finding::error("unknown-target", message).hint(hint));
            return None;
        };
        if !matches!(table.kind, TableKind::Table | TableKind::Partitioned) {
            let message = format!("\"{}\" of sink \"{}\" is not a table", target.value, self.ends.sink);
            let finding = Finding::error("not-a-table", message);
            self.report(&target.span, finding.hint("a materialized view is mapped under `[view]`."));
            return None;
        }
        Some(Cow::Borrowed(table))
    }

    fn columns(&mut self, table: &Table) {
        for column in &self.draft.columns {
            let Some(target) = table.column(&column.target) else {
                self.missing_column(column, table);
                continue;
            };
            if target.generated {
                let message = format!("column \"{}\" of \"{}\" is generated", target.name, table.name);
                let finding = Finding::error("generated-column", message).label("cannot be written");
                let hint = if column.starred { "add it to `exclude`." } else { "remove it." };
                self.report(&column.span, finding.hint(hint));
            }
            self.type_fits(column, target);
        }
    }

    /// These pass in the form in which they came, which no other database reads.
    fn user_arrays(&mut self) {
        let draft = self.draft;
        let reads =
            draft.columns.iter().flat_map(|column| column.from.reads().iter().map(move |read| (read, &column.span)));
        let filter = draft.mapping.filter.as_ref().map_or(&draft.mapping.target.span, |filter| &filter.span);
        let mut told: Vec<&str> = Vec::new();
        for (read, span) in reads.chain(draft.filter_reads.iter().map(|read| (read, filter))) {
            if !is_user_array(read) || told.contains(&read.name.as_str()) {
                continue;
            }
            told.push(&read.name);
            let message =
                format!("column \"{}\" is an array of a type that other databases number differently", read.name);
            let finding = Finding::error("unsupported-type", message).label(read.type_name.clone());
            self.report(span, finding.hint("exclude it, or store it as text[] at the source."));
        }
    }

    fn missing_column(&mut self, column: &DraftColumn<'_>, table: &Table) {
        let names = table.columns.iter().map(|column| column.name.as_str());
        let finding = self.draft.missing_column(column, &table.name, names);
        self.report(&column.span, finding);
    }

    fn type_fits(&mut self, column: &DraftColumn<'_>, target: &Column) {
        let given = match &column.from {
            DraftFrom::Column(from) => (self.draft.stage_type(from), from.type_name.clone()),
            DraftFrom::Meta(meta) => (meta_type(*meta).to_owned(), meta_type(*meta).to_owned()),
            // The sink types these itself when it prepares the statement.
            DraftFrom::Sql { .. } | DraftFrom::Value(_) | DraftFrom::Json { .. } => return,
        };
        let (stage_type, declared) = given;
        if !types::assignable(&stage_type, &types::without_modifier(&target.wire_type)) {
            let message = format!(
                "column \"{}\" is {}, and cannot take {}",
                target.name,
                target.type_name,
                if declared == stage_type { declared } else { format!("{declared} (sent as {stage_type})") }
            );
            let finding = Finding::error("incompatible-type", message);
            let hint = format!("change the target's type, or convert: `{} = {{ sql = \"…\" }}`.", column.target);
            self.report(&column.span, finding.hint(hint));
        }
    }

    /// Columns that no row may lack, and that nothing fills.
    fn unwritten(&mut self, table: &Table) {
        let deleted = self.draft.mapping.deleted_column.as_ref().map(|column| column.value.as_str());
        for column in &table.columns {
            let written = self.draft.columns.iter().any(|mapped| mapped.target == column.name)
                || deleted == Some(column.name.as_str());
            if column.not_null && !column.has_default && !column.generated && !written {
                let message = format!("column \"{}\" of \"{}\" is NOT NULL and not mapped", column.name, table.name);
                let finding = Finding::error("unmapped-column", message).label("every row would be refused");
                let hint = "map it, or give it a default in the target.";
                self.report(&self.draft.mapping.target.span, finding.hint(hint));
            }
        }
    }

    fn unique_key(&mut self, table: &Table) {
        if self.draft.mapping.mode == Mode::Append || self.draft.is_multiset() {
            return;
        }
        let key: Vec<&DraftColumn<'_>> = self.draft.key.iter().filter_map(|key| self.draft.columns.get(*key)).collect();
        if key.iter().any(|column| table.column(&column.target).is_none()) {
            return;
        }
        let same = |unique: &&Vec<String>| {
            unique.len() == key.len() && key.iter().all(|column| unique.contains(&column.target))
        };
        if table.unique_keys.iter().find(same).is_none() {
            let names: Vec<&str> = key.iter().map(|column| column.target.as_str()).collect();
            let quoted: Vec<String> = names.iter().map(|name| crate::catalog::quote_ident(name)).collect();
            let message = format!("target \"{}\" has no unique index on exactly ({})", table.name, names.join(", "));
            let finding = Finding::error("no-unique-key", message).label("rows are found by this key");
            let hint =
                format!("run `CREATE UNIQUE INDEX ON {} ({})` at the sink.", table.name.quoted(), quoted.join(", "));
            self.report(&self.draft.key_span, finding.hint(hint));
        }
        for column in key {
            self.key_cast(column, table);
            let nullable_target = table.column(&column.target).is_some_and(|target| !target.not_null);
            let nullable_source = column.from.reads().iter().any(|read| !read.not_null);
            if nullable_target && nullable_source {
                let message = format!("key column \"{}\" may be NULL, and NULLs are not unique", column.target);
                let finding = Finding::error("nullable-key", message);
                let hint = "make it NOT NULL at either end, or choose another key.";
                self.report(&self.draft.key_span, finding.hint(hint));
            }
        }
    }

    /// Rows that differ at the source must differ in the target.
    fn key_cast(&mut self, column: &DraftColumn<'_>, table: &Table) {
        let (DraftFrom::Column(from), Some(target)) = (&column.from, table.column(&column.target)) else { return };
        let (stage_type, plain) = (self.draft.stage_type(from), types::without_modifier(&target.wire_type));
        if types::drops_a_part(&stage_type, &plain) {
            let message = format!("key column \"{}\" is cut from {stage_type} to {plain}", column.target);
            let finding = Finding::error("bad-key", message).label("different rows may become one");
            self.report(&column.span, finding.hint("give the target's column the source's type."));
        }
    }

    fn deleted_column(&mut self, table: &Table) {
        let Some(deleted) = &self.draft.mapping.deleted_column else { return };
        let name = crate::catalog::quote_ident(&deleted.value);
        match table.column(&deleted.value) {
            Some(column) if types::without_modifier(&column.wire_type) == "boolean" => {}
            Some(column) => {
                let message = format!("deleted column \"{}\" is {}, not boolean", column.name, column.type_name);
                self.report(&deleted.span, Finding::error("wrong-type", message));
            }
            None => {
                let message =
                    format!("deleted column \"{}\" does not exist in target \"{}\"", deleted.value, table.name);
                let hint = format!(
                    "run `ALTER TABLE {} ADD COLUMN {name} boolean NOT NULL DEFAULT false` at the sink.",
                    table.name.quoted()
                );
                self.report(&deleted.span, Finding::error("unknown-column", message).hint(hint));
            }
        }
    }

    fn unknown_type(&mut self, column: &Column) {
        let message = format!(
            "type {} of column \"{}\" does not exist in sink \"{}\"",
            column.wire_type, column.name, self.ends.sink
        );
        let reads = |mapped: &&DraftColumn<'_>| mapped.from.reads().iter().any(|read| read.name == column.name);
        let span = match self.draft.columns.iter().find(reads) {
            Some(mapped) => mapped.span.clone(),
            None => self.draft.mapping.target.span.clone(),
        };
        let hint = "create the type there under the same name, or exclude the column.";
        self.report(&span, Finding::error("unknown-type", message).hint(hint));
    }
}

/// What a meta column is, as an SQL type without modifier.
pub(super) fn meta_type(meta: Meta) -> &'static str {
    match meta {
        Meta::Source | Meta::Op => "text",
        Meta::CommitLsn => "pg_lsn",
        Meta::CommitTs | Meta::SyncedAt => "timestamp with time zone",
        Meta::Xid => "bigint",
    }
}

/// Arrays carry their element type's OID in their binary form, and that of a user's type differs between databases.
fn is_user_array(column: &Column) -> bool {
    /// First OID that is not Postgres's own (`FirstNormalObjectId`).
    const FIRST_USER_OID: u32 = 16384;
    column.wire_type.ends_with("[]") && column.wire_oid >= FIRST_USER_OID
}
