//! The value of one column of a mapping: a source column's name, or a table that says where else it comes from.

use super::plan::Meta;
use super::syntax::{At, ColumnFrom, ColumnMapping, Literal, METAS};
use crate::config::document::{Entry, Origin, Reader, Value, find};
use crate::diagnostic::{Finding, nearest};

/// Keys of which a column's table holds exactly one.
pub(super) const FROM_KEYS: [&str; 5] = ["column", "sql", "value", "meta", "json"];
/// With each of them may stand this one.
pub(super) const TYPE_KEY: &str = "type";

pub(super) fn column(reader: &mut Reader, entry: &Entry) -> Option<ColumnMapping> {
    let (from, declared_type) = match &entry.node.value {
        Value::String(name) => (ColumnFrom::Column(name.clone()), None),
        Value::Table(keys) => (computed(reader, entry, keys)?, declared_type(reader, keys)),
        value => {
            let message = format!("column \"{}\" must be a source column's name or a table", entry.key);
            let finding = Finding::error("wrong-type", message).label(format!("this is {}", value.describe()));
            reader.report(&entry.node.origin, finding.hint("a constant is written `{ value = … }`."));
            return None;
        }
    };
    let Origin::File(column_span) = entry.origin.clone() else { return None };
    let Origin::File(from_span) = entry.node.origin.clone() else { return None };
    Some(ColumnMapping {
        column: At { value: entry.key.clone(), span: column_span },
        from: At { value: from, span: from_span },
        declared_type,
    })
}

fn declared_type(reader: &mut Reader, keys: &[Entry]) -> Option<At<String>> {
    let entry = find(keys, TYPE_KEY)?;
    let text = reader.string(entry)?.to_owned();
    let Origin::File(span) = entry.node.origin.clone() else { return None };
    Some(At { value: text, span })
}

fn computed(reader: &mut Reader, column: &Entry, keys: &[Entry]) -> Option<ColumnFrom> {
    let place = format!("column \"{}\"", column.key);
    let known: Vec<&str> = FROM_KEYS.into_iter().chain([TYPE_KEY]).collect();
    reader.unknown_keys(keys, &known, &place);
    let given: Vec<&Entry> = keys.iter().filter(|key| FROM_KEYS.contains(&key.key.as_str())).collect();
    match given.as_slice() {
        [one] => from_key(reader, one),
        [] => {
            // A misspelt key was reported already, and is the reason.
            if keys.iter().all(|key| known.contains(&key.key.as_str())) {
                let finding = Finding::error("missing-key", format!("{place} says not where it comes from"));
                reader.report(&column.node.origin, finding.hint("give one of column, sql, value, meta or json."));
            }
            None
        }
        [_, second, ..] => {
            let finding = Finding::error("conflicting-keys", format!("{place} comes from two places"));
            reader.report(&second.origin, finding.hint("give one of column, sql, value, meta or json."));
            None
        }
    }
}

fn from_key(reader: &mut Reader, entry: &Entry) -> Option<ColumnFrom> {
    match entry.key.as_str() {
        "column" => Some(ColumnFrom::Column(reader.string(entry)?.to_owned())),
        "sql" => Some(ColumnFrom::Sql(reader.string(entry)?.to_owned())),
        "value" => literal(reader, entry).map(ColumnFrom::Value),
        "meta" => meta(reader, entry).map(ColumnFrom::Meta),
        _ => json(reader, entry),
    }
}

fn meta(reader: &mut Reader, entry: &Entry) -> Option<Meta> {
    reader.choice(entry, &METAS)
}

fn literal(reader: &mut Reader, entry: &Entry) -> Option<Literal> {
    let (text, natural_type) = match &entry.node.value {
        Value::String(text) => (text.clone(), "text"),
        Value::Integer(number) => (number.to_string(), "bigint"),
        Value::Float(text) => (text.clone(), "double precision"),
        Value::Boolean(boolean) => (boolean.to_string(), "boolean"),
        Value::Datetime(text) => (text.clone(), datetime_type(text)),
        Value::Array(_) | Value::Table(_) => {
            let finding = Finding::error("wrong-type", "\"value\" must be a single constant");
            reader.report(&entry.node.origin, finding.hint("lists and objects are written with `sql`."));
            return None;
        }
    };
    Some(Literal { text, natural_type })
}

/// TOML has dates, times, and timestamps with and without an offset.
fn datetime_type(text: &str) -> &'static str {
    let has_date = text.as_bytes().get(4) == Some(&b'-');
    let time = text.split_once(['T', ' ']).map_or("", |(_, time)| time);
    match (has_date, time.is_empty(), time.contains(['Z', 'z', '+', '-'])) {
        (false, _, _) => "time without time zone",
        (true, true, _) => "date",
        (true, false, false) => "timestamp without time zone",
        (true, false, true) => "timestamp with time zone",
    }
}

/// Reads `payload.user.id`: the column, and the way inside it. A part that holds a dot stands in double quotes.
fn json(reader: &mut Reader, entry: &Entry) -> Option<ColumnFrom> {
    let text = reader.string(entry)?;
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let (part, tail) = match rest.strip_prefix('"').map(|quoted| quoted.split_once('"')) {
            Some(Some((part, tail))) => (part, tail),
            Some(None) => ("", "\""),
            None => rest.split_at(rest.find('.').unwrap_or(rest.len())),
        };
        parts.push(part.to_owned());
        match tail.strip_prefix('.') {
            Some(next) => rest = next,
            None if tail.is_empty() => break,
            None => {
                parts.push(String::new());
                break;
            }
        }
    }
    if parts.iter().any(String::is_empty) {
        let finding = Finding::error("bad-value", "\"json\" must be a column and a path with dots");
        reader.report(&entry.node.origin, finding.hint("for example \"payload.user.id\"."));
        return None;
    }
    let column = parts.remove(0);
    Some(ColumnFrom::Json { column, path: parts })
}

/// `did you mean "x"?`, if there is an x.
pub(super) fn did_you_mean<'a>(written: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(written, candidates).map(|near| format!("did you mean \"{near}\"?"))
}
