//! A TOML text as a tree that knows where each key and value stands, and a reader that collects findings on its way
//! through the tree instead of stopping at the first.

use std::ops::Range;
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Finding, Findings, SourceFile, nearest};

/// Where a key or value was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Bytes of the file.
    File(Range<usize>),
    /// An environment variable of this name.
    Variable(String),
    /// Nowhere in particular.
    Nowhere,
}

/// A value and where it stands. No `Debug`: it may be a secret.
#[derive(Clone)]
pub struct Node {
    pub origin: Origin,
    pub value: Value,
    /// `${VAR}` was replaced in it, so what it says is not what the file says.
    pub substituted: bool,
}

/// One `key = value`.
#[derive(Clone)]
pub struct Entry {
    pub key: String,
    pub origin: Origin,
    pub node: Node,
}

#[derive(Clone)]
pub enum Value {
    String(String),
    Integer(i64),
    /// Kept as written.
    Float(String),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    /// In the file's order.
    Table(Vec<Entry>),
}

impl Value {
    /// What it is, for "expected a string, found …".
    pub fn describe(&self) -> &'static str {
        match self {
            Value::String(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Boolean(_) => "a boolean",
            Value::Datetime(_) => "a date or time",
            Value::Array(_) => "a list",
            Value::Table(_) => "a table",
        }
    }
}

/// The entry of a table by its key.
pub fn find<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Entry> {
    entries.iter().find(|entry| entry.key == key)
}

/// Parses `text`; findings point into `file`, whose text has the same length.
///
/// # Errors
/// Every syntax error of the text, not only the first.
pub fn parse(file: &Arc<SourceFile>, text: &str) -> Result<Vec<Entry>, Findings> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut findings = Findings::default();
    let mut last_line = None;
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        // After one error the parser finds its feet at the next line: more of the same line says nothing new.
        let line = file.line_column(span.start).0;
        if last_line == Some(line) {
            continue;
        }
        last_line = Some(line);
        let message = error.message().lines().collect::<Vec<_>>().join(", ");
        findings.push(Finding::error("syntax", format!("invalid TOML: {message}")).at(file, span));
    }
    if findings.0.is_empty() {
        let mut integers = Vec::new();
        let entries = table_entries(table.get_ref(), &mut integers);
        for span in integers {
            findings.push(Finding::error("wrong-type", "the integer does not fit 64 bits").at(file, span));
        }
        if findings.0.is_empty() {
            return Ok(entries);
        }
    }
    Err(findings)
}

fn table_entries(table: &DeTable<'_>, too_large: &mut Vec<Range<usize>>) -> Vec<Entry> {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let node = node(value.get_ref(), value.span(), too_large);
            (key.span().start, Entry { key: key.get_ref().to_string(), origin: Origin::File(key.span()), node })
        })
        .collect();
    entries.sort_by_key(|(start, _)| *start);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn node(value: &DeValue<'_>, span: Range<usize>, too_large: &mut Vec<Range<usize>>) -> Node {
    let value = match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                too_large.push(span.clone());
                Value::Integer(0)
            }
        },
        DeValue::Float(float) => Value::Float(float.as_str().to_owned()),
        DeValue::Boolean(boolean) => Value::Boolean(*boolean),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| node(item.get_ref(), item.span(), too_large)).collect())
        }
        DeValue::Table(table) => Value::Table(table_entries(table, too_large)),
    };
    Node { origin: Origin::File(span), value, substituted: false }
}

/// Reads values out of a tree and notes what is wrong with them.
pub struct Reader {
    pub file: Arc<SourceFile>,
    pub findings: Findings,
}

impl Reader {
    pub fn new(file: &Arc<SourceFile>) -> Self {
        Reader { file: file.clone(), findings: Findings::default() }
    }

    /// Notes a finding at the place where something was written.
    pub fn report(&mut self, origin: &Origin, mut finding: Finding) {
        match origin {
            Origin::File(span) => finding = finding.at(&self.file, span.clone()),
            Origin::Variable(name) => finding.message.push_str(&format!(", from the environment variable \"{name}\"")),
            Origin::Nowhere => {}
        }
        self.findings.push(finding);
    }

    fn wrong_type(&mut self, key: &str, node: &Node, wanted: &str) {
        let finding = Finding::error("wrong-type", format!("\"{key}\" must be {wanted}"));
        self.report(&node.origin, finding.label(format!("this is {}", node.value.describe())));
    }

    /// Notes each key that is not `known`. `place` names the table: `[source.lms]`.
    pub fn unknown_keys(&mut self, entries: &[Entry], known: &[&str], place: &str) {
        for entry in entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let finding = Finding::error("unknown-key", format!("unknown key \"{}\" in {place}", entry.key));
            let finding = match nearest(&entry.key, known.iter().copied()) {
                Some(near) => finding.label("no such key").hint(format!("did you mean \"{near}\"?")),
                None => finding.label("no such key").hint(format!("the keys here are: {}.", known.join(", "))),
            };
            self.report(&entry.origin, finding);
        }
    }

    pub fn string<'a>(&mut self, entry: &'a Entry) -> Option<&'a str> {
        match &entry.node.value {
            Value::String(text) => Some(text),
            _ => {
                self.wrong_type(&entry.key, &entry.node, "a string");
                None
            }
        }
    }

    pub fn table<'a>(&mut self, entry: &'a Entry) -> Option<&'a [Entry]> {
        match &entry.node.value {
            Value::Table(entries) => Some(entries),
            _ => {
                self.wrong_type(&entry.key, &entry.node, "a table");
                None
            }
        }
    }

    /// A list of strings, each with its place; `alone` says that one string may stand without brackets.
    pub fn strings<'a>(&mut self, entry: &'a Entry, alone: Alone) -> Option<Vec<(&'a str, &'a Origin)>> {
        let items = match (&entry.node.value, alone) {
            (Value::String(text), Alone::Allowed) => return Some(vec![(text.as_str(), &entry.node.origin)]),
            (Value::Array(items), _) => items,
            (_, Alone::Allowed) => {
                self.wrong_type(&entry.key, &entry.node, "a string or a list of strings");
                return None;
            }
            (_, Alone::Refused) => {
                self.wrong_type(&entry.key, &entry.node, "a list of strings");
                return None;
            }
        };
        let mut strings = Vec::new();
        for item in items {
            match &item.value {
                Value::String(text) => strings.push((text.as_str(), &item.origin)),
                _ => self.wrong_type(&entry.key, item, "a list of strings"),
            }
        }
        Some(strings)
    }

    /// One of a few words, each with what it stands for.
    pub fn choice<T: Copy>(&mut self, entry: &Entry, choices: &[(&str, T)]) -> Option<T> {
        let word = self.string(entry)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word) {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        let finding = Finding::error("bad-value", format!("\"{}\" must be one of {}", entry.key, quoted.join(", ")));
        let finding = match nearest(word, names) {
            Some(near) => finding.hint(format!("did you mean \"{near}\"?")),
            None => finding,
        };
        self.report(&entry.node.origin, finding);
        None
    }
}

/// May one string stand for a list of one?
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Alone {
    Allowed,
    Refused,
}
