//! The file's tree with the environment's values laid over it, and `${VAR}` replaced in the file's strings.

use std::collections::BTreeMap;
use std::sync::Arc;

use config::{Environment, File, FileFormat, ValueKind};

use super::document::{self, Entry, Node, Origin, Value};
use crate::diagnostic::{Finding, Findings, SourceFile};

/// What an overriding variable's name begins with; further parts stand behind double underscores.
const PREFIX: &str = "TAILWATER__";

/// The merged tree, with findings that did not keep it from being made.
///
/// # Errors
/// Syntax errors: without a tree nothing else can be said.
pub(super) fn merge(
    file: &Arc<SourceFile>,
    text: &str,
    environment: &BTreeMap<String, String>,
) -> Result<(Vec<Entry>, Findings), Findings> {
    let mut entries = document::parse(file, text)?;
    let mut findings = Findings::default();
    for entry in &mut entries {
        substitute_all(&mut entry.node, file, environment, &mut findings);
    }
    // The layering library reads a key with a dot or a bracket as a path, so such keys are set aside; as no known key
    // has one, they are reported as unknown.
    let (plain, odd): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| is_plain(&entry.key));
    let overrides = overrides(environment, &mut findings);
    if overrides.is_empty() {
        return Ok((plain.into_iter().chain(odd).collect(), findings));
    }
    let mut text_of_plain = toml::Table::new();
    if let Ok(table) = text.parse::<toml::Table>() {
        text_of_plain.extend(table.into_iter().filter(|(key, _)| is_plain(key)));
    }
    let layered = config::Config::builder()
        .add_source(File::from_str(&text_of_plain.to_string(), FileFormat::Toml))
        .add_source(Environment::with_prefix("TAILWATER").separator("__").source(Some(overrides)))
        .build();
    match layered {
        Ok(layered) => {
            let mut merged = overlay(&plain, layered.cache.kind, PREFIX);
            merged.extend(odd);
            Ok((merged, findings))
        }
        Err(_) => {
            let message = "the environment's overrides do not fit the configuration's tables";
            let finding = Finding::error("bad-variable", message);
            findings
                .push(finding.hint("a variable and its parent are both set: `TAILWATER__A` and `TAILWATER__A__B`."));
            Err(findings)
        }
    }
}

fn is_plain(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// The variables that override, those with an unreadable name reported and left out.
fn overrides(environment: &BTreeMap<String, String>, findings: &mut Findings) -> config::Map<String, String> {
    let mut overrides = config::Map::new();
    for (name, value) in environment {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        if path.split("__").all(is_plain) {
            overrides.insert(name.clone(), value.clone());
        } else {
            let message = format!("the environment variable \"{name}\" does not name a setting");
            let hint = "parts stand between double underscores: `TAILWATER__SOURCE__LMS__URL`.";
            findings.push(Finding::error("bad-variable", message).hint(hint));
        }
    }
    overrides
}

/// Takes from `layered` what the environment set, and all else as the file has it, with its places.
fn overlay(entries: &[Entry], layered: ValueKind, variable: &str) -> Vec<Entry> {
    let ValueKind::Table(mut layered) = layered else { return entries.to_vec() };
    let mut merged = Vec::new();
    for entry in entries {
        let name = format!("{variable}{}", entry.key.to_uppercase());
        let node = match layered.remove(&entry.key) {
            Some(value) => overlay_node(Some(&entry.node), value, &name),
            None => entry.node.clone(),
        };
        merged.push(Entry { node, ..entry.clone() });
    }
    let mut added: Vec<(String, config::Value)> = layered.into_iter().collect();
    added.sort_by(|one, other| one.0.cmp(&other.0));
    for (key, value) in added {
        let node = overlay_node(None, value, &format!("{variable}{}", key.to_uppercase()));
        merged.push(Entry { key, origin: node.origin.clone(), node });
    }
    merged
}

fn overlay_node(node: Option<&Node>, value: config::Value, variable: &str) -> Node {
    let from_environment = value.origin().is_some();
    match (value.kind, node) {
        (kind @ ValueKind::Table(_), node) => {
            let known = match node {
                Some(Node { value: Value::Table(entries), .. }) => entries.as_slice(),
                _ => &[],
            };
            let entries = overlay(known, kind, &format!("{variable}__"));
            let origin = match node {
                Some(node) => node.origin.clone(),
                None => entries.first().map_or(Origin::Nowhere, |entry| entry.node.origin.clone()),
            };
            Node { origin, value: Value::Table(entries), substituted: false }
        }
        (ValueKind::String(text), _) if from_environment => {
            Node { origin: Origin::Variable(variable.to_owned()), value: Value::String(text), substituted: true }
        }
        (_, Some(node)) => node.clone(),
        // Only the environment adds keys, and only strings.
        (_, None) => Node { origin: Origin::Nowhere, value: Value::Table(Vec::new()), substituted: false },
    }
}

fn substitute_all(
    node: &mut Node,
    file: &Arc<SourceFile>,
    environment: &BTreeMap<String, String>,
    findings: &mut Findings,
) {
    match &mut node.value {
        Value::String(text) if text.contains("${") => match substitute(text, environment) {
            Ok(replaced) => {
                *text = replaced;
                node.substituted = true;
            }
            Err(error) => {
                let mut finding = error.finding();
                if let Origin::File(span) = &node.origin {
                    finding = finding.at(file, span.clone());
                }
                findings.push(finding);
            }
        },
        Value::Array(items) => {
            for item in items {
                substitute_all(item, file, environment, findings);
            }
        }
        Value::Table(entries) => {
            for entry in entries {
                substitute_all(&mut entry.node, file, environment, findings);
            }
        }
        Value::String(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {}
    }
}

#[derive(Debug, PartialEq, Eq)]
enum SubstituteError {
    NotSet(String),
    Malformed,
}

impl SubstituteError {
    fn finding(&self) -> Finding {
        match self {
            SubstituteError::NotSet(name) => {
                Finding::error("variable-not-set", format!("the environment variable \"{name}\" is not set"))
                    .hint(format!("set it, or give a default: `${{{name}:-value}}`."))
            }
            SubstituteError::Malformed => {
                Finding::error("bad-value", "a \"${\" does not begin `${NAME}` or `${NAME:-default}`")
                    .hint("a dollar sign and brace that shall stay are written `$${`.")
            }
        }
    }
}

/// Replaces `${NAME}` and `${NAME:-default}`; as in a shell, the default also stands for an empty value. `$${` is `${`.
fn substitute(text: &str, environment: &BTreeMap<String, String>) -> Result<String, SubstituteError> {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        if let Some(literal) = before.strip_suffix('$') {
            replaced.push_str(literal);
            replaced.push_str("${");
            rest = after;
            continue;
        }
        replaced.push_str(before);
        let end = after.find('}').ok_or(SubstituteError::Malformed)?;
        let (name, default) = match after[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&after[..end], None),
        };
        if !is_plain(name) {
            return Err(SubstituteError::Malformed);
        }
        match (environment.get(name), default) {
            (Some(value), Some(default)) if value.is_empty() => replaced.push_str(default),
            (Some(value), _) => replaced.push_str(value),
            (None, Some(default)) => replaced.push_str(default),
            (None, None) => return Err(SubstituteError::NotSet(name.to_owned())),
        }
        rest = &after[end + 1..];
    }
    replaced.push_str(rest);
    Ok(replaced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn substituted(text: &str) -> Result<String, SubstituteError> {
        let environment = BTreeMap::from([("HOST".to_owned(), "db".to_owned()), ("NONE".to_owned(), String::new())]);
        substitute(text, &environment)
    }

    #[test]
    fn variables_are_replaced_after_parsing() {
        assert_eq!(substituted("a ${HOST} b ${HOST}").as_deref(), Ok("a db b db"));
        assert_eq!(substituted("${MISSING:-x}${NONE:-y}${NONE}").as_deref(), Ok("xy"));
        assert_eq!(substituted("$${HOST} $5").as_deref(), Ok("${HOST} $5"));
        assert_eq!(substituted("${MISSING}"), Err(SubstituteError::NotSet("MISSING".to_owned())));
        for text in ["${", "${HOST", "${}", "${a b}", "${HOST:x}"] {
            assert_eq!(substituted(text), Err(SubstituteError::Malformed), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[${}:\\-a-zé]*") {
            let _ = substituted(&text);
        }
    }
}
