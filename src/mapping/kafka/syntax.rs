//! `[topic]` of a mapping file, as it was written.

use std::ops::Range;

use super::filter::{WhereMapping, conditions};
use super::{Pattern, skipped};
use crate::catalog::TableName;
use crate::config::document::{Alone, Entry, Reader, Value, find};
use crate::diagnostic::Finding;
use crate::mapping::plan::{TopicFormat, TopicOptions};
use crate::mapping::syntax::{At, at, span};
use crate::value::debezium::{BinaryMode, DecimalMode, HstoreMode, IntervalMode, Options, TimePrecision};

pub const TOPIC_KEYS: [&str; 20] = [
    "tables",
    "exclude_tables",
    "include",
    "exclude",
    "where",
    "key",
    "name",
    "format",
    "partitions",
    "tombstones",
    skipped::KEY,
    "schemas",
    "decimal_handling_mode",
    "time_precision_mode",
    "interval_handling_mode",
    "hstore_handling_mode",
    "binary_handling_mode",
    "money_fraction_digits",
    "include_unknown_datatypes",
    "unavailable_value_placeholder",
];

/// Names of topics where the mapping does not say: what consumers of Debezium expect.
const NAME: &str = "{source}.{schema}.{table}";
const PARTITIONS: i32 = 6;
/// More than any cluster serves.
const PARTITIONS_MAX: i64 = 100_000;
const PLACEHOLDERS: [&str; 4] = ["{source}", "{database}", "{schema}", "{table}"];

/// `[topic]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicMapping {
    pub span: Range<usize>,
    /// Tables of the source, as `schema.name` with wildcards.
    pub tables: Vec<At<Pattern>>,
    pub exclude_tables: Vec<At<Pattern>>,
    /// Columns that messages have, beside those of their keys, as `schema.table.column` with wildcards; `None`: all.
    pub include: Option<Vec<At<Pattern>>>,
    /// Columns that never leave the source, in the same form.
    pub exclude: Vec<At<Pattern>>,
    pub(super) conditions: Vec<WhereMapping>,
    /// Columns that messages of a table are keyed by, where that is not the primary key.
    pub keys: Vec<KeyMapping>,
    /// With placeholders.
    pub name: At<String>,
    pub format: TopicFormat,
    pub options: TopicOptions,
    /// Of topics that `setup --create-targets` makes.
    pub partitions: i32,
    /// Made of a section whose tables are followed already: what it names was looked up once.
    pub is_followed: bool,
}

/// One table of `key = { … }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyMapping {
    pub table: At<TableName>,
    pub columns: At<Vec<At<String>>>,
}

/// Reads the section.
pub(in crate::mapping) fn topic(reader: &mut Reader, header: &Entry) -> Option<TopicMapping> {
    let section = reader.table(header)?;
    reader.unknown_keys(section, &TOPIC_KEYS, "[topic]");
    let tables = patterns(reader, section, "tables");
    if tables.is_empty() {
        let finding = Finding::error("missing-key", "[topic] names no \"tables\"");
        reader.report(&header.origin, finding.hint("add `tables = [\"public.*\"]`."));
    }
    let formats =
        [("debezium-json", TopicFormat::DebeziumJson), ("json", TopicFormat::Json), ("avro", TopicFormat::Avro)];
    let format = find(section, "format").and_then(|entry| reader.choice(entry, &formats)).unwrap_or_default();
    Some(TopicMapping {
        span: span(&header.origin),
        exclude_tables: patterns(reader, section, "exclude_tables"),
        include: include(reader, section),
        exclude: patterns(reader, section, "exclude"),
        conditions: conditions(reader, section),
        keys: keys(reader, section),
        name: name(reader, section, header),
        format,
        options: options(reader, section),
        partitions: partitions(reader, section),
        is_followed: false,
        tables,
    })
}

/// Either of the two says which columns are meant.
fn include(reader: &mut Reader, section: &[Entry]) -> Option<Vec<At<Pattern>>> {
    let entry = find(section, "include")?;
    if find(section, "exclude").is_some() {
        let finding = Finding::error("conflicting-keys", "[topic] has both \"include\" and \"exclude\"");
        reader.report(&entry.origin, finding.hint("name the columns that messages have, or those that they have not."));
    }
    let patterns = patterns(reader, section, "include");
    if patterns.is_empty() {
        reader.report(&entry.node.origin, Finding::error("bad-value", "\"include\" names no column"));
    }
    Some(patterns)
}

fn patterns(reader: &mut Reader, section: &[Entry], key: &str) -> Vec<At<Pattern>> {
    let Some(entry) = find(section, key) else { return Vec::new() };
    let texts = reader.strings(entry, Alone::Allowed).unwrap_or_default();
    let dots = if matches!(key, "include" | "exclude") { 2 } else { 1 };
    let mut patterns = Vec::new();
    for (text, origin) in texts {
        if text.matches('.').count() < dots && text != "*" {
            let form = if dots == 2 { "schema.table.column" } else { "schema.table" };
            let finding = Finding::error("bad-name", format!("\"{text}\" is not {form}"));
            reader.report(origin, finding.hint("`*` stands for any characters, `?` for one."));
        }
        patterns.push(at(Pattern::new(text), origin));
    }
    patterns
}

fn keys(reader: &mut Reader, section: &[Entry]) -> Vec<KeyMapping> {
    let Some(entry) = find(section, "key") else { return Vec::new() };
    let mut keys = Vec::new();
    for pair in reader.table(entry).unwrap_or_default() {
        let name = match pair.key.parse::<TableName>() {
            Ok(name) => at(name, &pair.origin),
            Err(message) => {
                reader.report(&pair.origin, Finding::error("bad-name", message));
                continue;
            }
        };
        let columns = reader.strings(pair, Alone::Allowed).unwrap_or_default();
        if columns.is_empty() {
            reader.report(&pair.node.origin, Finding::error("bad-value", "the key names no column"));
        }
        let columns = columns.into_iter().map(|(column, origin)| at(column.to_owned(), origin)).collect();
        keys.push(KeyMapping { table: name, columns: at(columns, &pair.node.origin) });
    }
    keys
}

fn name(reader: &mut Reader, section: &[Entry], header: &Entry) -> At<String> {
    let Some(entry) = find(section, "name") else { return at(NAME.to_owned(), &header.origin) };
    let text = reader.string(entry).unwrap_or(NAME);
    let rest = PLACEHOLDERS.iter().fold(text.to_owned(), |rest, placeholder| rest.replace(placeholder, ""));
    if text.is_empty() || rest.contains(['{', '}']) {
        let finding = Finding::error("bad-value", "\"name\" has a placeholder that is not known");
        let hint = format!("the placeholders are {}.", PLACEHOLDERS.join(", "));
        reader.report(&entry.node.origin, finding.hint(hint));
    }
    at(text.to_owned(), &entry.node.origin)
}

fn partitions(reader: &mut Reader, section: &[Entry]) -> i32 {
    let Some(entry) = find(section, "partitions") else { return PARTITIONS };
    match entry.node.value {
        Value::Integer(count) if (1..=PARTITIONS_MAX).contains(&count) => i32::try_from(count).unwrap_or(PARTITIONS),
        _ => {
            let finding = Finding::error("bad-value", format!("\"partitions\" is a number from 1 to {PARTITIONS_MAX}"));
            reader.report(&entry.node.origin, finding);
            PARTITIONS
        }
    }
}

fn boolean(reader: &mut Reader, section: &[Entry], key: &str, default: bool) -> bool {
    let Some(entry) = find(section, key) else { return default };
    match entry.node.value {
        Value::Boolean(value) => value,
        _ => {
            reader.report(&entry.node.origin, Finding::error("wrong-type", format!("\"{key}\" must be true or false")));
            default
        }
    }
}

fn choice<T: Copy + Default>(reader: &mut Reader, section: &[Entry], key: &str, choices: &[(&str, T)]) -> T {
    find(section, key).and_then(|entry| reader.choice(entry, choices)).unwrap_or_default()
}

/// Debezium's properties under the names that its users know.
fn options(reader: &mut Reader, section: &[Entry]) -> TopicOptions {
    let decimals =
        [("precise", DecimalMode::Precise), ("double", DecimalMode::Double), ("string", DecimalMode::String)];
    let times = [
        ("adaptive", TimePrecision::Adaptive),
        ("adaptive_time_microseconds", TimePrecision::AdaptiveTimeMicroseconds),
        ("connect", TimePrecision::Connect),
        ("isostring", TimePrecision::Isostring),
        ("microseconds", TimePrecision::Microseconds),
        ("nanoseconds", TimePrecision::Nanoseconds),
    ];
    let binaries = [
        ("bytes", BinaryMode::Bytes),
        ("base64", BinaryMode::Base64),
        ("base64-url-safe", BinaryMode::Base64UrlSafe),
        ("hex", BinaryMode::Hex),
    ];
    let intervals = [("numeric", IntervalMode::Numeric), ("string", IntervalMode::String)];
    let hstores = [("json", HstoreMode::Json), ("map", HstoreMode::Map)];
    let defaults = Options::default();
    let placeholder = find(section, "unavailable_value_placeholder").and_then(|entry| reader.string(entry));
    let values = Options {
        decimal_handling_mode: choice(reader, section, "decimal_handling_mode", &decimals),
        time_precision_mode: choice(reader, section, "time_precision_mode", &times),
        interval_handling_mode: choice(reader, section, "interval_handling_mode", &intervals),
        hstore_handling_mode: choice(reader, section, "hstore_handling_mode", &hstores),
        binary_handling_mode: choice(reader, section, "binary_handling_mode", &binaries),
        money_fraction_digits: fraction_digits(reader, section, defaults.money_fraction_digits),
        include_unknown_datatypes: boolean(reader, section, "include_unknown_datatypes", false),
        unavailable_value_placeholder: placeholder.unwrap_or(&defaults.unavailable_value_placeholder).to_owned(),
        schemas: boolean(reader, section, "schemas", false),
    };
    let tombstones = boolean(reader, section, "tombstones", true);
    TopicOptions { tombstones, skipped: skipped::skipped(reader, section), values }
}

fn fraction_digits(reader: &mut Reader, section: &[Entry], default: u8) -> u8 {
    let Some(entry) = find(section, "money_fraction_digits") else { return default };
    match entry.node.value {
        Value::Integer(digits @ 0..=9) => u8::try_from(digits).unwrap_or(default),
        _ => {
            let finding = Finding::error("bad-value", "\"money_fraction_digits\" is a number from 0 to 9");
            reader.report(&entry.node.origin, finding);
            default
        }
    }
}
