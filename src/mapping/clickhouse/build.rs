//! The plan's inputs and outputs for ClickHouse, laid out once everything is known to fit.

use super::{ClickHouseTable, quote_literal};
use crate::catalog::{Column, ReplicaIdentity};
use crate::mapping::draft::{Draft, DraftColumn, DraftFrom};
use crate::mapping::plan::{Input, InputFrom, Meta, Output, OutputFrom, Plan};
use crate::mapping::plan_build::{Layout, distinct, sql};
use crate::mapping::target::Ends;
use crate::value::clickhouse::types::{ColumnType, OnOverflow, SourceType, column_type};

pub(super) struct Build<'d, 'a> {
    draft: &'d Draft<'a>,
    inputs: Vec<Input>,
}

impl<'d, 'a> Build<'d, 'a> {
    pub(super) fn plan(draft: &'d Draft<'a>, ends: Ends<'_>, table: &ClickHouseTable) -> Plan {
        let mut build = Build { draft, inputs: Vec::new() };
        let mapped = draft.columns.iter().filter_map(|column| Some((column, table.column(&column.target)?)));
        let outputs: Vec<Output> = mapped.map(|(column, target)| build.output(column, &target.type_name)).collect();
        let filter_inputs: Vec<usize> = draft.filter_reads.iter().map(|column| build.natural_input(column)).collect();
        let input = |read| build.input_of(read).expect("the key's columns are among the outputs");
        let key_inputs = distinct(draft.key_reads().map(input));
        Layout { inputs: build.inputs, outputs, key_inputs, filter_inputs, parents: Vec::new() }.plan(draft, ends)
    }

    fn output(&mut self, column: &DraftColumn<'a>, target_type: &str) -> Output {
        let from = match &column.from {
            DraftFrom::Column(from) if self.is_read_by_sql(from) => {
                let input = self.natural_input(from);
                OutputFrom::Input { input, cast: self.inputs[input].stage_type != target_type }
            }
            DraftFrom::Column(from) => OutputFrom::Input { input: self.input(from, target_type), cast: false },
            DraftFrom::Meta(Meta::SyncedAt) => sql(convert("now64(6, 'UTC')", target_type), Vec::new()),
            DraftFrom::Meta(meta) => {
                let input = self.meta(*meta, target_type);
                OutputFrom::Input { input, cast: self.inputs[input].stage_type != target_type }
            }
            DraftFrom::Value(literal) => sql(convert(&quote_literal(&literal.text), target_type), Vec::new()),
            DraftFrom::Sql { text, reads } => {
                // A comment at the text's end must not swallow what follows it.
                let end = if text.contains("--") { "\n" } else { "" };
                let inputs = reads.iter().map(|read| self.natural_input(read)).collect();
                sql(convert(&format!("({text}{end})"), target_type), inputs)
            }
            DraftFrom::Json { column, path } => {
                let input = self.json_input(column, path);
                OutputFrom::Input { input, cast: self.inputs[input].stage_type != target_type }
            }
        };
        Output { column: column.target.clone(), target_type: target_type.to_owned(), from }
    }

    /// Some expression reads the column, so it has to be there in the type that it has by nature.
    fn is_read_by_sql(&self, column: &Column) -> bool {
        let reads = |mapped: &DraftColumn<'_>| match &mapped.from {
            DraftFrom::Column(_) | DraftFrom::Json { .. } => false,
            other => other.reads().iter().any(|read| read.name == column.name),
        };
        self.draft.columns.iter().any(reads) || self.draft.filter_reads.iter().any(|read| read.name == column.name)
    }

    fn natural_input(&mut self, column: &'a Column) -> usize {
        let source = SourceType::of(column);
        let natural = match self.draft.mask(column) {
            Some(_) if column.not_null => ColumnType::String,
            Some(_) => ColumnType::Nullable(Box::new(ColumnType::String)),
            None => column_type(&source, !column.not_null, self.draft.on_overflow(column)),
        };
        self.input(column, &natural.to_string())
    }

    fn input_of(&self, column: &Column) -> Option<usize> {
        let is_it = |input: &Input| matches!(&input.from, InputFrom::Column(name) if *name == column.name);
        self.inputs.iter().position(is_it)
    }

    /// What the daemon finds in a JSON column. ClickHouse's own functions round numbers, and find nothing in a document with
    /// one that is too large for them.
    fn json_input(&mut self, column: &'a Column, path: &[String]) -> usize {
        let from = InputFrom::Json { column: column.name.clone(), path: path.to_vec() };
        if let Some(known) = self.inputs.iter().position(|input| input.from == from) {
            return known;
        }
        let mut name = format!("_tailwater_json_{}", self.inputs.len());
        while self.draft.table.column(&name).is_some() {
            name.push('_');
        }
        self.inputs.push(Input {
            name,
            from,
            stage_type: "Nullable(String)".to_owned(),
            stage_type_oid: 0,
            nested: false,
            toastable: column.toastable && self.draft.table.replica_identity != ReplicaIdentity::Full,
            mask: self.draft.mask(column),
            source_type: Some(SourceType::of(column)),
            on_overflow: OnOverflow::Error,
        });
        self.inputs.len() - 1
    }

    /// The input that carries a source column. Two targets of different types for one column: the second is cast.
    fn input(&mut self, column: &'a Column, stage_type: &str) -> usize {
        if let Some(known) = self.input_of(column) {
            return known;
        }
        self.inputs.push(Input {
            name: column.name.clone(),
            from: InputFrom::Column(column.name.clone()),
            stage_type: stage_type.to_owned(),
            stage_type_oid: 0,
            nested: false,
            toastable: column.toastable && self.draft.table.replica_identity != ReplicaIdentity::Full,
            mask: self.draft.mask(column),
            source_type: Some(SourceType::of(column)),
            on_overflow: self.draft.on_overflow(column),
        });
        self.inputs.len() - 1
    }

    /// Sent in the target's type where the bytes are the same.
    fn meta(&mut self, meta: Meta, target_type: &str) -> usize {
        if let Some(known) = self.inputs.iter().position(|input| input.from == InputFrom::Meta(meta)) {
            return known;
        }
        let mut name = match meta {
            Meta::Source => "_tailwater_source",
            Meta::Op => "_tailwater_op",
            Meta::CommitLsn => "_tailwater_commit_lsn",
            Meta::CommitTs => "_tailwater_commit_ts",
            Meta::Xid => "_tailwater_xid",
            Meta::SyncedAt => "_tailwater_synced_at",
        }
        .to_owned();
        let is_alike = ColumnType::parse(target_type).bare() == ColumnType::parse(meta_type(meta)).bare();
        while self.draft.table.column(&name).is_some() {
            name.push('_');
        }
        self.inputs.push(Input {
            name,
            from: InputFrom::Meta(meta),
            stage_type: if is_alike { target_type } else { meta_type(meta) }.to_owned(),
            stage_type_oid: 0,
            nested: false,
            toastable: false,
            mask: None,
            source_type: None,
            on_overflow: OnOverflow::Error,
        });
        self.inputs.len() - 1
    }
}

/// What a meta column is in ClickHouse. An LSN is a number there, so that it can be compared.
pub(super) fn meta_type(meta: Meta) -> &'static str {
    match meta {
        Meta::Source | Meta::Op => "LowCardinality(String)",
        Meta::CommitLsn => "UInt64",
        Meta::CommitTs | Meta::SyncedAt => "DateTime64(6, 'UTC')",
        Meta::Xid => "Nullable(UInt32)",
    }
}

/// A conversion that fails where a value does not fit; ClickHouse's own wraps around.
pub fn convert(expression: &str, target_type: &str) -> String {
    let is_nested = ["Array(", "Map(", "Tuple("].iter().any(|nested| target_type.starts_with(nested));
    let function = if is_nested { "CAST" } else { "accurateCast" };
    format!("{function}({expression}, {})", quote_literal(target_type))
}
