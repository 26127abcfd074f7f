//! The target tables that mappings ask ClickHouse for.

use super::build::meta_type;
use super::{ClickHouseColumn, ClickHouseTable, DELETED_COLUMN, VERSION_COLUMN};
use crate::catalog::Column;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::draft::{Draft, DraftColumn, DraftFrom};
use crate::mapping::plan::Mode;
use crate::value::clickhouse::types::{ColumnType, SourceType, column_type};

/// The table as its catalog would show it once created.
pub(in crate::mapping) fn desired(draft: &Draft<'_>, findings: &mut Findings) -> Option<ClickHouseTable> {
    let mut columns = Vec::new();
    let mut complete = true;
    for (position, column) in draft.columns.iter().enumerate() {
        let Some(type_name) = type_name(draft, position, column) else {
            complete = false;
            let message = format!("the type of column \"{}\" is not known before it exists", column.target);
            let finding = Finding::error("missing-type", message).at(&draft.file.file, column.span.clone());
            findings.push(finding.hint("say it: `{ sql = \"…\", type = \"UInt8\" }`, or create the table yourself."));
            continue;
        };
        columns.push(ClickHouseColumn { name: column.target.clone(), type_name, default_kind: String::new() });
    }
    let mut own = |name: &str, type_name: &str, default_kind: &str| {
        columns.push(ClickHouseColumn {
            name: name.to_owned(),
            type_name: type_name.to_owned(),
            default_kind: default_kind.to_owned(),
        });
    };
    if let Some(deleted) = &draft.mapping.deleted_column {
        own(&deleted.value, "Bool", "DEFAULT");
    }
    own(VERSION_COLUMN, "UInt128", "");
    own(DELETED_COLUMN, "UInt8", "");
    complete.then(|| ClickHouseTable {
        name: draft.mapping.target.value.clone(),
        engine: "ReplacingMergeTree".to_owned(),
        is_versioned: true,
        sorting_key: draft
            .key
            .iter()
            .map(|key| draft.columns[*key].target.clone())
            // Every change is a row of its own, and the same one when it comes again.
            .chain((draft.mapping.mode == Mode::Append).then(|| VERSION_COLUMN.to_owned()))
            .collect(),
        partition_key: Vec::new(),
        columns,
        is_refreshable: false,
        query: String::new(),
    })
}

/// The type of a column that is added to a target. Rows that are older than it may have none in it; only an array, which
/// cannot be null, is one where the source's column is never null.
pub(in crate::mapping) fn added_type(draft: &Draft<'_>, from: &Column) -> String {
    let source = SourceType::of(from);
    if draft.mask(from).is_some() {
        return ColumnType::Nullable(Box::new(ColumnType::String)).to_string();
    }
    let natural = column_type(&source, !from.not_null, draft.on_overflow(from));
    match natural {
        ColumnType::Array(_) => natural.to_string(),
        _ => column_type(&source, true, draft.on_overflow(from)).to_string(),
    }
}

fn type_name(draft: &Draft<'_>, position: usize, column: &DraftColumn<'_>) -> Option<String> {
    if let Some(declared) = column.declared_type {
        return Some(declared.value.clone());
    }
    let in_key = draft.key.contains(&position);
    match &column.from {
        DraftFrom::Column(from) => {
            let nullable = !from.not_null && !in_key;
            let natural = match draft.mask(from) {
                Some(_) if nullable => ColumnType::Nullable(Box::new(ColumnType::String)),
                Some(_) => ColumnType::String,
                None => column_type(&SourceType::of(from), nullable, draft.on_overflow(from)),
            };
            Some(natural.to_string())
        }
        DraftFrom::Meta(meta) => Some(meta_type(*meta).to_owned()),
        DraftFrom::Value(literal) => Some(
            match literal.natural_type {
                "bigint" => "Int64",
                "double precision" => "Float64",
                "boolean" => "Bool",
                "date" => "Date32",
                "timestamp without time zone" | "timestamp with time zone" => "DateTime64(6, 'UTC')",
                _ => "String",
            }
            .to_owned(),
        ),
        DraftFrom::Json { .. } => Some("Nullable(String)".to_owned()),
        DraftFrom::Sql { .. } => None,
    }
}
