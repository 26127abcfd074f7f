//! The plan's inputs and outputs, laid out once everything is known to fit.

use std::collections::BTreeMap;

use super::draft::{Draft, DraftColumn, DraftFrom};
use super::plan::{Expected, ExpectedColumn, Input, InputFrom, Meta, Output, OutputFrom, Plan};
use super::target::{Ends, meta_type};
use super::types;
use crate::catalog::{Column, ReplicaIdentity, Table, TableName, TypeKind, quote_ident, quote_literal};
use crate::value::clickhouse::types::{OnOverflow, SourceType};

/// OIDs of the types that meta columns and text stand-ins have (`pg_type.dat`).
const TEXT_OID: u32 = 25;
const BIGINT_OID: u32 = 20;
const TIMESTAMPTZ_OID: u32 = 1184;
const PG_LSN_OID: u32 = 3220;
/// Types below are Postgres's own and have the same OID in every database (`FirstNormalObjectId`).
const FIRST_USER_OID: u32 = 16384;

pub(super) struct Build<'d, 'a> {
    draft: &'d Draft<'a>,
    sink_types: &'d BTreeMap<String, u32>,
    inputs: Vec<Input>,
    /// Columns whose type the sink does not have.
    unknown: Vec<&'a Column>,
}

impl<'d, 'a> Build<'d, 'a> {
    /// The plan, and columns whose type the sink lacks, without which the plan cannot be used.
    pub fn plan(
        draft: &'d Draft<'a>,
        ends: Ends<'_>,
        table: &Table,
        sink_types: &'d BTreeMap<String, u32>,
    ) -> (Plan, Vec<&'a Column>) {
        let mut build = Build { draft, sink_types, inputs: Vec::new(), unknown: Vec::new() };
        let mapped = draft.columns.iter().filter_map(|column| Some((column, table.column(&column.target)?)));
        let outputs: Vec<Output> = mapped.map(|(column, target)| build.output(column, target, ends.source)).collect();
        let filter_inputs: Vec<usize> = draft.filter_reads.iter().map(|column| build.input(column)).collect();
        let mut key_inputs = build.key_inputs();
        if draft.is_multiset() {
            key_inputs = (0..build.inputs.len()).collect();
        }
        let parents = table.foreign_keys.iter().map(|key| key.references.clone());
        let mut parents: Vec<_> = parents.filter(|parent| *parent != table.name).collect();
        parents.sort();
        parents.dedup();
        let layout = Layout { inputs: build.inputs, outputs, key_inputs, filter_inputs, parents };
        (layout.plan(draft, ends), build.unknown)
    }

    fn output(&mut self, column: &DraftColumn<'a>, target: &Column, source: &str) -> Output {
        let cast_type = types::without_modifier(&target.wire_type);
        let from = match &column.from {
            DraftFrom::Column(from) => {
                let input = self.input(from);
                OutputFrom::Input { input, cast: self.inputs[input].stage_type != cast_type }
            }
            DraftFrom::Meta(Meta::Source) => sql(format!("CAST({} AS {cast_type})", quote_literal(source)), Vec::new()),
            DraftFrom::Meta(Meta::SyncedAt) => match cast_type == meta_type(Meta::SyncedAt) {
                true => sql("now()".to_owned(), Vec::new()),
                false => sql(format!("CAST(now() AS {cast_type})"), Vec::new()),
            },
            DraftFrom::Meta(meta) => {
                let input = self.meta(*meta);
                OutputFrom::Input { input, cast: self.inputs[input].stage_type != cast_type }
            }
            DraftFrom::Value(literal) => {
                sql(format!("CAST({} AS {cast_type})", quote_literal(&literal.text)), Vec::new())
            }
            DraftFrom::Sql { text, reads } => {
                // A comment at the text's end must not swallow what follows it.
                let end = if text.contains("--") { "\n" } else { "" };
                let inputs = reads.iter().map(|read| self.input(read)).collect();
                sql(format!("CAST(({text}{end}) AS {cast_type})"), inputs)
            }
            DraftFrom::Json { column, path } => {
                let input = self.input(column);
                let path = quote_literal(&text_array(path));
                let value = format!("({}::jsonb #>> {path})", quote_ident(&column.name));
                let text = if cast_type == "text" { value } else { format!("CAST({value} AS {cast_type})") };
                sql(text, vec![input])
            }
        };
        Output { column: target.name.clone(), target_type: target.type_name.clone(), from }
    }

    fn key_inputs(&mut self) -> Vec<usize> {
        let draft = self.draft;
        distinct(draft.key_reads().map(|read| self.input(read)))
    }

    /// The input that carries a source column.
    fn input(&mut self, column: &'a Column) -> usize {
        let is_it = |input: &Input| matches!(&input.from, InputFrom::Column(name) if *name == column.name);
        if let Some(known) = self.inputs.iter().position(is_it) {
            return known;
        }
        let stage_type = self.draft.stage_type(column);
        let is_wire = stage_type == types::without_modifier(&column.wire_type);
        let oid = match is_wire {
            false => Some(TEXT_OID),
            true if column.wire_oid < FIRST_USER_OID => Some(column.wire_oid),
            true => self.sink_types.get(&column.wire_type).copied(),
        };
        if oid.is_none() {
            self.unknown.push(column);
        }
        let is_nested = matches!(column.type_kind, TypeKind::Array | TypeKind::Composite)
            || column.wire_type.ends_with("[]")
            || matches!(column.wire_type.as_str(), "int2vector" | "oidvector");
        self.inputs.push(Input {
            name: column.name.clone(),
            from: InputFrom::Column(column.name.clone()),
            stage_type_oid: oid.unwrap_or_default(),
            nested: is_nested && is_wire,
            toastable: column.toastable && self.draft.table.replica_identity != ReplicaIdentity::Full,
            mask: self.draft.mask(column),
            source_type: Some(SourceType::of(column)),
            on_overflow: OnOverflow::Error,
            stage_type,
        });
        self.inputs.len() - 1
    }

    fn meta(&mut self, meta: Meta) -> usize {
        if let Some(known) = self.inputs.iter().position(|input| input.from == InputFrom::Meta(meta)) {
            return known;
        }
        let (name, oid) = match meta {
            Meta::Source => ("_tailwater_source", TEXT_OID),
            Meta::Op => ("_tailwater_op", TEXT_OID),
            Meta::CommitLsn => ("_tailwater_commit_lsn", PG_LSN_OID),
            Meta::CommitTs => ("_tailwater_commit_ts", TIMESTAMPTZ_OID),
            Meta::Xid => ("_tailwater_xid", BIGINT_OID),
            Meta::SyncedAt => ("_tailwater_synced_at", TIMESTAMPTZ_OID),
        };
        // A source column may have that very name, and it comes first: `sql` may use it.
        let mut name = name.to_owned();
        while self.draft.table.column(&name).is_some() {
            name.push('_');
        }
        self.inputs.push(Input {
            name,
            from: InputFrom::Meta(meta),
            stage_type: meta_type(meta).to_owned(),
            stage_type_oid: oid,
            nested: false,
            toastable: false,
            mask: None,
            source_type: None,
            on_overflow: OnOverflow::Error,
        });
        self.inputs.len() - 1
    }
}

/// What a plan is made of beside what its draft says.
pub(super) struct Layout {
    pub inputs: Vec<Input>,
    /// Every output stands at its draft's place: a draft column without target is an error found before.
    pub outputs: Vec<Output>,
    pub key_inputs: Vec<usize>,
    pub filter_inputs: Vec<usize>,
    pub parents: Vec<TableName>,
}

impl Layout {
    pub fn plan(self, draft: &Draft<'_>, ends: Ends<'_>) -> Plan {
        let mapping = draft.mapping;
        Plan {
            source: ends.source.to_owned(),
            sink: ends.sink.to_owned(),
            from: mapping.from.value.clone(),
            target: mapping.target.value.clone(),
            key: draft.key.clone(),
            key_inputs: self.key_inputs,
            outputs: self.outputs,
            filter: mapping.filter.as_ref().map(|filter| filter.value.clone()),
            filter_inputs: self.filter_inputs,
            mode: mapping.mode,
            delete: mapping.delete,
            deleted_column: mapping.deleted_column.as_ref().map(|column| column.value.clone()),
            shared_target: draft.file.sources.len() > 1,
            parents: self.parents,
            source_columns: self.inputs.iter().filter_map(source_column).collect(),
            follows_columns: mapping.all_columns.is_some(),
            expected: expected(draft.table),
            topic: None,
            inputs: self.inputs,
        }
    }
}

/// Each once, where it comes first.
pub(super) fn distinct(inputs: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut found = Vec::new();
    inputs.for_each(|input| {
        if !found.contains(&input) {
            found.push(input);
        }
    });
    found
}

/// The table as it is now.
pub(super) fn expected(table: &Table) -> Expected {
    let column = |column: &Column| ExpectedColumn {
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: column.type_name.clone(),
        added: None,
    };
    Expected { oid: table.oid, columns: table.columns.iter().map(column).collect(), ..Expected::default() }
}

pub(super) fn sql(text: String, inputs: Vec<usize>) -> OutputFrom {
    OutputFrom::Sql { text, inputs }
}

fn source_column(input: &Input) -> Option<String> {
    match &input.from {
        InputFrom::Column(name) | InputFrom::Json { column: name, .. } => Some(name.clone()),
        InputFrom::Meta(_) => None,
    }
}

/// The parts as a `text[]` constant; what could be read as something else stands in quotes.
fn text_array(parts: &[String]) -> String {
    let parts = parts.iter().map(|part| {
        let plain = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match plain && !part.eq_ignore_ascii_case("null") {
            true => part.clone(),
            false => format!("\"{}\"", part.replace('\\', "\\\\").replace('"', "\\\"")),
        }
    });
    format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_paths_cannot_be_left() {
        let parts = ["user", "a b", "null", "x\"y\\", "é"].map(str::to_owned);
        assert_eq!(text_array(&parts), r#"{user,"a b","null","x\"y\\","é"}"#);
        assert_eq!(text_array(&[]), "{}");
    }
}
