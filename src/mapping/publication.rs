//! What each source's publication must hold: its tables, and of each the columns that some mapping needs.
//!
//! A column left out of the publication never leaves the source, neither in the stream nor in a copy.

use std::collections::BTreeMap;

use super::draft::Draft;
use super::plan::Published;
use super::syntax::{At, MappingFile};
use crate::catalog::{ReplicaIdentity, Table, TableName};
use crate::diagnostic::{Finding, Findings};

/// First server whose publications have column lists.
const COLUMN_LISTS_SINCE: u32 = 150_000;

/// What one mapping needs of one table of one source.
pub(super) struct Need<'a> {
    source: String,
    table: &'a Table,
    columns: Vec<&'a str>,
    /// `columns = "*"` without `exclude`: also columns that do not exist yet.
    everything: bool,
    excluded: &'a [At<String>],
    file: &'a MappingFile,
    server_version: u32,
}

impl<'a> Need<'a> {
    pub fn of(draft: &Draft<'a>, source: &str, server_version: u32) -> Need<'a> {
        let reads = draft.columns.iter().flat_map(|column| column.from.reads()).chain(&draft.filter_reads);
        Need {
            source: source.to_owned(),
            table: draft.table,
            columns: reads.map(|column| column.name.as_str()).collect(),
            everything: draft.mapping.all_columns.is_some() && draft.mapping.exclude.is_empty(),
            excluded: &draft.mapping.exclude,
            file: draft.file,
            server_version,
        }
    }
}

/// The publication of each source, and a warning for every excluded column that must be published all the same.
pub(super) fn published(needs: &[Need<'_>], findings: &mut Findings) -> BTreeMap<String, Vec<Published>> {
    let mut tables: BTreeMap<(&str, &TableName), Vec<&Need<'_>>> = BTreeMap::new();
    for need in needs {
        tables.entry((&need.source, &need.table.name)).or_default().push(need);
    }
    let mut published: BTreeMap<String, Vec<Published>> = BTreeMap::new();
    for ((source, name), needs) in tables {
        let columns = columns(&needs);
        for need in &needs {
            for excluded in need.excluded {
                if let Some(reason) = why_published(&needs, columns.as_deref(), &excluded.value) {
                    let message =
                        format!("excluded column \"{}\" of \"{name}\" still leaves the source", excluded.value);
                    let finding = Finding::warning("exclude-not-pushed-down", message);
                    findings.push(finding.at(&need.file.file, excluded.span.clone()).hint(reason));
                }
            }
        }
        published.entry(source.to_owned()).or_default().push(Published { table: name.clone(), columns });
    }
    published
}

/// The column list of one table; `None` for all columns.
fn columns(needs: &[&Need<'_>]) -> Option<Vec<String>> {
    let first = needs.first()?;
    if first.server_version < COLUMN_LISTS_SINCE
        || first.table.replica_identity == ReplicaIdentity::Full
        || needs.iter().any(|need| need.everything)
    {
        return None;
    }
    let sent: Vec<&str> =
        first.table.columns.iter().filter(|column| !column.generated).map(|column| column.name.as_str()).collect();
    let needed = |name: &str| {
        first.table.identity_columns.iter().any(|column| column == name)
            || needs.iter().any(|need| need.columns.contains(&name))
    };
    let columns: Vec<String> = sent.iter().filter(|name| needed(name)).map(|name| (*name).to_owned()).collect();
    (columns.len() < sent.len()).then_some(columns)
}

/// Why a column that one mapping excludes is sent, if it is.
fn why_published(needs: &[&Need<'_>], columns: Option<&[String]>, column: &str) -> Option<String> {
    let first = needs.first()?;
    if first.table.column(column).is_none_or(|column| column.generated) {
        return None;
    }
    match columns {
        Some(columns) if !columns.iter().any(|name| name == column) => None,
        _ if first.server_version < COLUMN_LISTS_SINCE => {
            Some("column lists of publications need Postgres 15 at the source.".to_owned())
        }
        _ if first.table.replica_identity == ReplicaIdentity::Full => {
            Some("REPLICA IDENTITY FULL sends whole rows, and allows no column list.".to_owned())
        }
        _ if first.table.identity_columns.iter().any(|name| name == column) => {
            Some("it belongs to the table's replica identity.".to_owned())
        }
        _ => Some("another mapping of the same table needs it.".to_owned()),
    }
}
