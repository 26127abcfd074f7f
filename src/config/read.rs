//! From the merged tree to [`Config`]: known keys, types, units, defaults, secrets from files.

mod address;
mod kafka;
mod registry;
mod sink;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::document::{Alone, Entry, Origin, Reader, Value, find};
use super::{Ack, Config, Http, JournalConfig, Log, LogFormat, OnHalt, Secret, SourceConfig, read_error, units};
use crate::diagnostic::{Finding, Findings, SourceFile};

const TOP_KEYS: [&str; 9] =
    ["mappings", "data_dir", "http", "log", "mask_salt", "mask_salt_file", "on_halt", "source", "sink"];
const SOURCE_KEYS: [&str; 10] = [
    "url",
    "url_file",
    "password",
    "password_file",
    "slot",
    "publication",
    "ack",
    "heartbeat",
    "snapshot_connections",
    "journal",
];
const JOURNAL_KEYS: [&str; 4] = ["retention", "max_bytes", "segment_bytes", "memory_bytes"];
/// Postgres's limit on the length of a name (`NAMEDATALEN` less one).
const NAME_BYTES_MAX: usize = 63;

pub(super) fn config(file: &Arc<SourceFile>, entries: &[Entry], findings: Findings) -> Result<Config, Findings> {
    let base = file.path.parent().map(Path::to_owned).unwrap_or_default();
    let mut read = Read { reader: Reader { file: file.clone(), findings }, base };
    read.reader.unknown_keys(entries, &TOP_KEYS, "the configuration");
    let config = Config {
        mappings: read.mappings(entries),
        data_dir: read.path(entries, "data_dir").unwrap_or_else(|| read.base.join("tailwater-data")),
        http: read.http(entries),
        log: read.log(entries),
        on_halt: read.choice(entries, "on_halt", &[("exit", OnHalt::Exit), ("stay", OnHalt::Stay)]),
        mask_salt: read.mask_salt(entries),
        sources: read.named(entries, "source", Read::source),
        sinks: read.named(entries, "sink", Read::sink),
        warnings: Findings::default(),
        file: file.clone(),
    };
    let findings = read.reader.findings;
    if findings.has_errors() { Err(findings) } else { Ok(Config { warnings: findings, ..config }) }
}

struct Read {
    reader: Reader,
    /// Directory of the configuration file, to which relative paths refer.
    base: PathBuf,
}

impl Read {
    fn mappings(&mut self, entries: &[Entry]) -> Vec<PathBuf> {
        let Some(entry) = find(entries, "mappings") else {
            let finding = Finding::error("missing-key", "the configuration names no mapping files");
            self.reader.report(&Origin::File(0..0), finding.hint("add `mappings = [\"mappings/model.toml\"]`."));
            return Vec::new();
        };
        // An environment variable holds one string: its paths are separated by commas.
        if let (Origin::Variable(_), Value::String(text)) = (&entry.node.origin, &entry.node.value) {
            return text.split(',').map(|path| self.base.join(path.trim())).collect();
        }
        let paths = self.reader.strings(entry, Alone::Refused).unwrap_or_default();
        if paths.is_empty() && matches!(entry.node.value, Value::Array(_)) {
            self.reader.report(&entry.node.origin, Finding::error("bad-value", "\"mappings\" names no file"));
        }
        paths.into_iter().map(|(path, _)| self.base.join(path)).collect()
    }

    /// Without a salt a hash is found by hashing likely values.
    fn mask_salt(&mut self, entries: &[Entry]) -> Option<Secret> {
        let salt = self.secret(entries, "mask_salt", &Origin::Nowhere)?;
        if salt.expose().is_empty() {
            let entry = find(entries, "mask_salt").or(find(entries, "mask_salt_file"))?;
            self.reader.report(&entry.origin, Finding::error("bad-value", "the salt of masks is empty"));
        }
        Some(salt)
    }

    fn path(&mut self, entries: &[Entry], key: &str) -> Option<PathBuf> {
        let text = self.reader.string(find(entries, key)?)?;
        Some(self.base.join(text))
    }

    fn http(&mut self, entries: &[Entry]) -> Http {
        let mut http = Http { listen: Some(([127, 0, 0, 1], 9629).into()) };
        let Some(section) = find(entries, "http").and_then(|entry| self.reader.table(entry)) else { return http };
        self.reader.unknown_keys(section, &["listen"], "[http]");
        let Some(entry) = find(section, "listen") else { return http };
        match self.reader.string(entry) {
            Some("off") => http.listen = None,
            Some(text) => match text.parse() {
                Ok(address) => http.listen = Some(address),
                Err(_) => {
                    let finding = Finding::error("bad-value", "\"listen\" must be an IP address and a port");
                    self.reader.report(&entry.node.origin, finding.hint("for example \"127.0.0.1:9629\", or \"off\"."));
                }
            },
            None => {}
        }
        http
    }

    fn log(&mut self, entries: &[Entry]) -> Log {
        let mut log = Log { format: LogFormat::Auto, level: "info".to_owned() };
        let Some(section) = find(entries, "log").and_then(|entry| self.reader.table(entry)) else { return log };
        self.reader.unknown_keys(section, &["format", "level"], "[log]");
        let formats = [("auto", LogFormat::Auto), ("human", LogFormat::Human), ("json", LogFormat::Json)];
        log.format = self.choice(section, "format", &formats);
        if let Some(level) = find(section, "level").and_then(|entry| self.reader.string(entry)) {
            log.level = level.to_owned();
        }
        log
    }

    fn choice<T: Copy + Default>(&mut self, section: &[Entry], key: &str, choices: &[(&str, T)]) -> T {
        find(section, key).and_then(|entry| self.reader.choice(entry, choices)).unwrap_or_default()
    }

    /// The tables of `[source.NAME]` or `[sink.NAME]`, each read by `one`.
    fn named<T>(
        &mut self,
        entries: &[Entry],
        kind: &str,
        one: fn(&mut Read, &str, &Entry, &[Entry]) -> Option<T>,
    ) -> BTreeMap<String, T> {
        let mut named = BTreeMap::new();
        let Some(entry) = find(entries, kind) else {
            let finding = Finding::error("missing-key", format!("the configuration has no [{kind}.NAME]"));
            self.reader.report(&Origin::File(0..0), finding.hint(format!("add a `[{kind}.NAME]` with its `url`.")));
            return named;
        };
        for entry in self.reader.table(entry).unwrap_or_default() {
            if !is_name(&entry.key) {
                self.bad_name(&entry.origin, &format!("the name of a {kind}"));
            }
            if let Some(section) = self.reader.table(entry)
                && let Some(value) = one(self, &entry.key, entry, section)
            {
                named.insert(entry.key.clone(), value);
            }
        }
        named
    }

    fn bad_name(&mut self, origin: &Origin, what: &str) {
        let message = format!("{what} must have 1 to {NAME_BYTES_MAX} of a-z, 0-9 and _");
        self.reader.report(origin, Finding::error("bad-name", message));
    }

    fn source(&mut self, name: &str, header: &Entry, section: &[Entry]) -> Option<SourceConfig> {
        self.reader.unknown_keys(section, &SOURCE_KEYS, &format!("[source.{name}]"));
        let url = self.url(header, section);
        let default_name = format!("tailwater_{name}");
        Some(SourceConfig {
            password: self.secret(section, "password", &header.origin),
            slot: self.pg_name(header, section, "slot", &default_name),
            publication: self.pg_name(header, section, "publication", &default_name),
            ack: self.choice(section, "ack", &[("sink", Ack::Sink), ("journal", Ack::Journal)]),
            heartbeat: self.duration(section, "heartbeat", Duration::from_secs(10)),
            snapshot_connections: self.number(section, "snapshot_connections", 2, 1..=16),
            journal: self.journal(name, section),
            url: url?,
        })
    }

    fn pg_name(&mut self, header: &Entry, section: &[Entry], key: &str, default: &str) -> String {
        let Some(entry) = find(section, key) else {
            if default.len() > NAME_BYTES_MAX && is_name(&header.key) {
                let message = format!("\"{default}\" is too long for the name of a {key}");
                let finding = Finding::error("bad-name", message);
                self.reader.report(&header.origin, finding.hint(format!("give a shorter `{key}`.")));
            }
            return default.to_owned();
        };
        match self.reader.string(entry) {
            Some(text) if is_name(text) => text.to_owned(),
            Some(_) => {
                self.bad_name(&entry.node.origin, &format!("\"{key}\""));
                default.to_owned()
            }
            None => default.to_owned(),
        }
    }

    fn journal(&mut self, name: &str, section: &[Entry]) -> JournalConfig {
        let defaults = JournalConfig::default();
        let Some(entry) = find(section, "journal") else { return defaults };
        let Some(section) = self.reader.table(entry) else { return defaults };
        self.reader.unknown_keys(section, &JOURNAL_KEYS, &format!("[source.{name}.journal]"));
        let journal = JournalConfig {
            retention: self.duration(section, "retention", defaults.retention),
            max_bytes: self.bytes(section, "max_bytes", defaults.max_bytes),
            segment_bytes: self.bytes(section, "segment_bytes", defaults.segment_bytes),
            memory_bytes: self.bytes(section, "memory_bytes", defaults.memory_bytes),
        };
        // The open segment is never deleted: a cap below two of them would stop the stream for good.
        if journal.max_bytes / 2 < journal.segment_bytes {
            let finding = Finding::error("bad-value", "\"max_bytes\" must hold at least two segments");
            let place = find(section, "max_bytes").or(find(section, "segment_bytes")).unwrap_or(entry);
            self.reader.report(&place.node.origin, finding.hint("raise `max_bytes` or lower `segment_bytes`."));
        }
        journal
    }

    /// A secret given as `key`, or as a file's content by `key_file`.
    fn secret(&mut self, section: &[Entry], key: &str, header: &Origin) -> Option<Secret> {
        let file_key = format!("{key}_file");
        match (find(section, key), find(section, &file_key)) {
            (None, None) => None,
            (Some(entry), None) => Some(Secret::new(self.reader.string(entry)?)),
            (Some(_), Some(second)) => {
                let message = format!("both \"{key}\" and \"{file_key}\" are given");
                let origin = if matches!(second.origin, Origin::Nowhere) { header } else { &second.origin };
                self.reader.report(origin, Finding::error("conflicting-keys", message).hint("remove one of them."));
                None
            }
            (None, Some(entry)) => {
                let path = self.base.join(self.reader.string(entry)?);
                match std::fs::read_to_string(&path) {
                    Ok(text) => Some(Secret::new(text.trim_end_matches(['\r', '\n']))),
                    Err(error) => {
                        let message = format!("cannot read \"{}\": {}", path.display(), read_error(&error));
                        self.reader.report(&entry.node.origin, Finding::error("unreadable-file", message));
                        None
                    }
                }
            }
        }
    }

    fn duration(&mut self, section: &[Entry], key: &str, default: Duration) -> Duration {
        let Some(entry) = find(section, key) else { return default };
        let Some(text) = self.reader.string(entry) else { return default };
        units::duration(text).unwrap_or_else(|| {
            let finding = Finding::error("bad-value", format!("\"{key}\" is not a duration"));
            self.reader.report(&entry.node.origin, finding.hint("write a number with ms, s, m, h or d: \"500ms\"."));
            default
        })
    }

    fn bytes(&mut self, section: &[Entry], key: &str, default: u64) -> u64 {
        let Some(entry) = find(section, key) else { return default };
        let size = match &entry.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            _ => match self.reader.string(entry) {
                Some(text) => units::bytes(text),
                None => return default,
            },
        };
        match size {
            Some(size) if size > 0 => size,
            _ => {
                let finding = Finding::error("bad-value", format!("\"{key}\" is not a size"));
                self.reader.report(&entry.node.origin, finding.hint("write bytes, or a unit: \"64MiB\", \"10GiB\"."));
                default
            }
        }
    }

    fn number(
        &mut self,
        section: &[Entry],
        key: &str,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> usize {
        let Some(entry) = find(section, key) else { return default };
        let number = match (&entry.node.value, &entry.node.origin) {
            (Value::Integer(number), _) => usize::try_from(*number).ok(),
            (Value::String(text), Origin::Variable(_)) => text.parse().ok(),
            (Value::String(text), _) if entry.node.substituted => text.parse().ok(),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => number,
            _ => {
                let message = format!("\"{key}\" must be a number from {} to {}", range.start(), range.end());
                self.reader.report(&entry.node.origin, Finding::error("bad-value", message));
                default
            }
        }
    }
}

/// Names of slots, publications, sources and sinks.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}
