//! A draft against ClickHouse: does the target take what the mapping gives it? If so, the plan.

use std::ops::Range;

use super::build::Build;
use super::{ClickHouseTable, DELETED_COLUMN, LiveClickHouse, VERSION_COLUMN};
use crate::catalog::ReplicaIdentity;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::draft::{Draft, DraftColumn, DraftFrom};
use crate::mapping::plan::{Mode, Plan, ViewPlan};
use crate::mapping::syntax::{MappingFile, ViewMapping};
use crate::mapping::syntax_column::did_you_mean;
use crate::mapping::target::Ends;
use crate::value::clickhouse::rowbinary::Encoder;
use crate::value::clickhouse::types::{ColumnType, Reach, SourceType};

/// The plan, or findings why there is none.
pub(in crate::mapping) fn plan(
    draft: &Draft<'_>,
    ends: Ends<'_>,
    sink: &LiveClickHouse,
    findings: &mut Findings,
) -> Option<Plan> {
    let mut check = Check { draft, ends, found: Findings::default() };
    let plan = check.table(sink).and_then(|table| {
        check.mode();
        check.engine(table);
        check.columns(table);
        check.key(table);
        check.filter();
        check.deleted_column(table);
        (!check.found.has_errors()).then(|| Build::plan(draft, ends, table))
    });
    findings.0.extend(check.found.0);
    plan
}

struct Check<'d, 'a> {
    draft: &'d Draft<'a>,
    ends: Ends<'d>,
    found: Findings,
}

impl Check<'_, '_> {
    fn report(&mut self, span: &Range<usize>, finding: Finding) {
        self.found.push(finding.at(&self.draft.file.file, span.clone()));
    }

    fn table<'t>(&mut self, sink: &'t LiveClickHouse) -> Option<&'t ClickHouseTable> {
        let target = &self.draft.mapping.target;
        let found = sink.table(&target.value);
        if found.is_none() {
            let message = format!("table \"{}\" does not exist in sink \"{}\"", target.value, self.ends.sink);
            let names: Vec<String> = sink.tables.iter().map(|table| table.name.to_string()).collect();
            let near = did_you_mean(&target.value.to_string(), names.iter().map(String::as_str));
            let near = near.map(|near| format!("{near} ")).unwrap_or_default();
            let hint =
                format!("{near}`tailwater setup --create-targets` creates it, `tailwater schema ddl` shows how.");
            self.report(&target.span, Finding::error("unknown-target", message).hint(hint));
        }
        found
    }

    /// What only a table that can be changed in place could do.
    fn mode(&mut self) {
        let span = self.draft.mapping.target.span.clone();
        let what = match self.draft.mapping.mode {
            Mode::Upsert if self.draft.is_multiset() => "a table without a key",
            Mode::Upsert => return,
            // The version tells the rows apart; of two sources it may be the same.
            Mode::Append if self.draft.file.sources.len() > 1 && self.draft.key.is_empty() => {
                "mode \"append\" of several sources without a key"
            }
            Mode::Append => return,
            Mode::InsertNew => "mode \"insert_new\"",
        };
        let message = format!("{what} is not supported by sink \"{}\", which is ClickHouse", self.ends.sink);
        let hint = "rows are told apart by their key there: give one.";
        self.report(&span, Finding::error("unsupported-mode", message).hint(hint));
    }

    fn engine(&mut self, table: &ClickHouseTable) {
        let span = self.draft.mapping.target.span.clone();
        if !table.engine.ends_with("ReplacingMergeTree") || !table.is_versioned {
            let message =
                format!("table \"{}\" is not a ReplacingMergeTree({VERSION_COLUMN}, {DELETED_COLUMN})", table.name);
            let hint = "`tailwater schema ddl` shows how it is created.";
            self.report(&span, Finding::error("wrong-engine", message).hint(hint));
        }
        for (name, wanted) in [(VERSION_COLUMN, "UInt128"), (DELETED_COLUMN, "UInt8")] {
            if table.column(name).is_none_or(|column| column.type_name != wanted) {
                let message = format!("table \"{}\" has no column \"{name}\" of type {wanted}", table.name);
                self.report(&span, Finding::error("unknown-column", message));
            }
        }
    }

    fn columns(&mut self, table: &ClickHouseTable) {
        for column in &self.draft.columns {
            let Some(target) = table.column(&column.target) else {
                self.missing_column(column, table);
                continue;
            };
            if matches!(target.default_kind.as_str(), "MATERIALIZED" | "ALIAS") {
                let message = format!("column \"{}\" of \"{}\" is {}", target.name, table.name, target.default_kind);
                let finding = Finding::error("generated-column", message).label("cannot be written");
                let hint = if column.starred { "add it to `exclude`." } else { "remove it." };
                self.report(&column.span, finding.hint(hint));
            }
            self.type_fits(column, &ColumnType::parse(&target.type_name));
        }
    }

    fn missing_column(&mut self, column: &DraftColumn<'_>, table: &ClickHouseTable) {
        let names = table.columns.iter().map(|column| column.name.as_str());
        let finding = self.draft.missing_column(column, &table.name, names);
        self.report(&column.span, finding);
    }

    fn type_fits(&mut self, column: &DraftColumn<'_>, target: &ColumnType) {
        let DraftFrom::Column(from) = &column.from else { return };
        let source = SourceType::of(from);
        let is_masked = self.draft.mask(from).is_some();
        let pair = Encoder::new(&source, target, self.draft.on_overflow(from), Reach::default());
        if is_masked && *target.bare() != ColumnType::String || !is_masked && pair.is_err() {
            let sent = if is_masked { "a hash, which is text" } else { &from.type_name };
            let message = format!("column \"{}\" is {target}, and cannot take {sent}", column.target);
            let hint = format!("change the target's type, or convert: `{} = {{ sql = \"…\" }}`.", column.target);
            self.report(&column.span, Finding::error("incompatible-type", message).hint(hint));
        } else if !from.not_null && !target.is_nullable() && !self.draft_key_has(column) {
            let message = format!("column \"{}\" may be NULL at the source, and is {target}", column.target);
            let hint = format!("make it Nullable({target}), or convert: `{} = {{ sql = \"…\" }}`.", column.target);
            self.report(&column.span, Finding::warning("nullable-column", message).hint(hint));
        }
    }

    fn draft_key_has(&self, column: &DraftColumn<'_>) -> bool {
        self.draft.key.iter().any(|key| self.draft.columns[*key].target == column.target)
    }

    /// Rows of a key replace each other by the sorting key, so it must be the mapping's.
    fn key(&mut self, table: &ClickHouseTable) {
        let draft = self.draft;
        let key: Vec<&str> = draft.key.iter().map(|key| draft.columns[*key].target.as_str()).collect();
        let by_version = (draft.mapping.mode == Mode::Append).then_some(VERSION_COLUMN);
        let wanted: Vec<&str> = key.iter().copied().chain(by_version).collect();
        let is_same = wanted.len() == table.sorting_key.len()
            && wanted.iter().all(|name| table.sorting_key.iter().any(|by| by == name));
        if !is_same && !wanted.is_empty() {
            let message = format!(
                "table \"{}\" is ordered by ({}), the mapping's key is ({})",
                table.name,
                table.sorting_key.join(", "),
                wanted.join(", ")
            );
            let finding = Finding::error("wrong-key", message).label("rows replace each other by the sorting key");
            self.report(&draft.key_span, finding.hint("`tailwater schema ddl` shows how the table is created."));
        }
        // Of an append-only table every row is another key's.
        let straying = table.partition_key.iter().find(|name| !key.contains(&name.as_str()));
        if let (Some(name), Mode::Upsert) = (straying, draft.mapping.mode) {
            let message = format!("table \"{}\" is partitioned by \"{name}\", which is not of the key", table.name);
            let finding = Finding::error("wrong-partition", message).label("merges would not find all rows of a key");
            let hint = "partition by nothing, or by columns of the key; `tailwater schema ddl` shows how the table is created.";
            self.report(&draft.mapping.target.span, finding.hint(hint));
        }
        for column in draft.key.iter().map(|key| &draft.columns[*key]) {
            if !matches!(column.from, DraftFrom::Sql { .. } | DraftFrom::Json { .. }) {
                continue;
            }
            // What it is made of may change while it stays: then the row and the tombstone of its old place are one key and
            // one change, and nothing tells which counts.
            let message = format!("key column \"{}\" is computed", column.target);
            let finding = Finding::error("bad-key", message).label("a row could not be told from its own old place");
            self.report(&column.span, finding.hint("make the key of columns of the source as they are."));
        }
        for name in key {
            let Some(column) = table.column(name) else { continue };
            let column_type = ColumnType::parse(&column.type_name);
            if column_type.is_float() || column_type.is_nullable() {
                let message =
                    format!("key column \"{name}\" is {column_type}: equal keys may not be found to be equal");
                self.report(&draft.key_span, Finding::error("bad-key", message));
            }
        }
    }

    /// Whether a row matches is decided before what it lacks is read from the target.
    fn filter(&mut self) {
        let draft = self.draft;
        let (Some(filter), false) = (&draft.mapping.filter, draft.table.replica_identity == ReplicaIdentity::Full)
        else {
            return;
        };
        for read in draft.filter_reads.iter().filter(|read| read.toastable) {
            let message = format!(
                "\"where\" reads \"{}\", which may be large, and then an update that leaves it alone does not send it",
                read.name
            );
            let hint = format!("run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source.", draft.table.name.quoted());
            self.report(&filter.span, Finding::error("toast-unsent", message).hint(hint));
        }
    }

    fn deleted_column(&mut self, table: &ClickHouseTable) {
        let Some(deleted) = &self.draft.mapping.deleted_column else { return };
        let fits = |name: &str| matches!(name, "Bool" | "UInt8");
        if table.column(&deleted.value).is_none_or(|column| !fits(&column.type_name)) {
            let message = format!("target \"{}\" has no column \"{}\" of type Bool", table.name, deleted.value);
            self.report(&deleted.span, Finding::error("unknown-column", message));
        }
    }
}

/// A view to refresh, or findings why it cannot be.
pub(in crate::mapping) fn view_plan(
    file: &MappingFile,
    mapping: &ViewMapping,
    sink: &str,
    end: &LiveClickHouse,
    findings: &mut Findings,
) -> Option<ViewPlan> {
    let name = &mapping.view.value;
    let mut report = |finding: Finding| findings.push(finding.at(&file.file, mapping.view.span.clone()));
    let Some(view) = end.table(name) else {
        let message = format!("materialized view \"{name}\" does not exist in sink \"{sink}\"");
        let names: Vec<String> = end.tables.iter().map(|table| table.name.to_string()).collect();
        let hint = did_you_mean(&name.to_string(), names.iter().map(String::as_str));
        let hint = hint.unwrap_or_else(|| "create it with a REFRESH clause.".to_owned());
        report(Finding::error("unknown-view", message).hint(hint));
        return None;
    };
    if !view.is_refreshable {
        let message = format!("\"{name}\" of sink \"{sink}\" is not a refreshable materialized view");
        let hint = "create it with `REFRESH EVERY 1 YEAR`, say: the daemon refreshes it by event.";
        report(Finding::error("not-a-view", message).hint(hint));
        return None;
    }
    Some(ViewPlan { sink: sink.to_owned(), view: name.clone(), refresh: mapping.refresh, every: mapping.every })
}
