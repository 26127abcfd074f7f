//! `where` of a `[topic]` section: one condition for all its tables, or one for each that is named.

use super::{Condition, SUBSET, parse};
use crate::catalog::TableName;
use crate::config::document::{Entry, Reader, Value, find};
use crate::diagnostic::Finding;
use crate::mapping::draft::place_in;
use crate::mapping::syntax::{At, at};

/// A condition of the section.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::mapping::kafka) struct WhereMapping {
    /// `None`: for every table.
    pub table: Option<At<TableName>>,
    pub text: At<String>,
    pub condition: Condition,
}

/// Reads `where`. What is no condition is a finding, and left out.
pub(in crate::mapping::kafka) fn conditions(reader: &mut Reader, section: &[Entry]) -> Vec<WhereMapping> {
    let Some(entry) = find(section, "where") else { return Vec::new() };
    match &entry.node.value {
        Value::Table(entries) => entries
            .iter()
            .filter_map(|pair| match pair.key.parse::<TableName>() {
                Ok(name) => condition(reader, Some(at(name, &pair.origin)), pair),
                Err(message) => {
                    reader.report(&pair.origin, Finding::error("bad-name", message));
                    None
                }
            })
            .collect(),
        Value::String(_) => condition(reader, None, entry).into_iter().collect(),
        other => {
            let finding = Finding::error("wrong-type", "\"where\" must be a string, or a table of strings by table");
            let finding = finding.label(format!("this is {}", other.describe()));
            reader.report(&entry.node.origin, finding.hint("write `where = { \"public.orders\" = \"total > 0\" }`."));
            Vec::new()
        }
    }
}

fn condition(reader: &mut Reader, table: Option<At<TableName>>, entry: &Entry) -> Option<WhereMapping> {
    let text = at(reader.string(entry)?.to_owned(), &entry.node.origin);
    match parse(&text.value) {
        Ok(condition) => Some(WhereMapping { table, text, condition }),
        Err(error) => {
            let place = place_in(&reader.file, &text, &error.span);
            let finding = Finding::error("bad-where", format!("\"where\" is not understood: {error}"));
            reader.findings.push(finding.at(&reader.file, place).hint(SUBSET));
            None
        }
    }
}
