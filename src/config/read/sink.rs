//! `[sink.NAME]`: what all kinds have in common, and where each kind is reached.

use std::time::Duration;

use super::super::document::{Entry, find};
use super::super::{ClickHouseEnd, OnError, PostgresEnd, Secret, SinkConfig, SinkEnd};
use super::Read;
use super::address::Address;
use crate::diagnostic::Finding;

/// Keys of every kind of sink.
const COMMON_KEYS: [&str; 9] = [
    "kind",
    "url",
    "url_file",
    "password",
    "password_file",
    "on_error",
    "batch_rows_max",
    "batch_bytes_max",
    "idle_record",
];
const CLICKHOUSE_KEYS: [&str; 1] = ["cluster"];

/// A kind of sink that has a place in the configuration.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Postgres,
    ClickHouse,
    Kafka,
}

impl Read {
    pub(super) fn sink(&mut self, name: &str, header: &Entry, section: &[Entry]) -> Option<SinkConfig> {
        let place = format!("[sink.{name}]");
        let Some(kind) = find(section, "kind") else {
            let finding = Finding::error("missing-key", format!("{place} has no \"kind\""));
            self.reader.report(
                &header.origin,
                finding.hint("add `kind = \"postgres\"`, `kind = \"clickhouse\"` or `kind = \"kafka\"`."),
            );
            return None;
        };
        let kinds = [("postgres", Kind::Postgres), ("clickhouse", Kind::ClickHouse), ("kafka", Kind::Kafka)];
        let end = match self.reader.choice(kind, &kinds)? {
            Kind::Postgres => {
                self.reader.unknown_keys(section, &COMMON_KEYS, &place);
                let password = self.secret(section, "password", &header.origin);
                SinkEnd::Postgres(PostgresEnd { url: self.url(header, section)?, password })
            }
            Kind::ClickHouse => {
                self.reader.unknown_keys(section, &[&COMMON_KEYS[..], &CLICKHOUSE_KEYS].concat(), &place);
                SinkEnd::ClickHouse(self.clickhouse(header, section)?)
            }
            Kind::Kafka => {
                self.reader.unknown_keys(section, &super::kafka::KEYS, &place);
                SinkEnd::Kafka(self.kafka(header, section)?)
            }
        };
        Some(self.common(section, end))
    }

    fn common(&mut self, section: &[Entry], end: SinkEnd) -> SinkConfig {
        let (rows, bytes) = match end {
            SinkEnd::Postgres(_) | SinkEnd::Kafka(_) => (100_000, 16 << 20),
            // Each insert makes a part of its own, so fewer and larger ones.
            SinkEnd::ClickHouse(_) => (500_000, 32 << 20),
        };
        SinkConfig {
            on_error: self.choice(section, "on_error", &[("stop", OnError::Stop), ("quarantine", OnError::Quarantine)]),
            batch_rows_max: self.number(section, "batch_rows_max", rows, 1..=10_000_000),
            batch_bytes_max: usize::try_from(self.bytes(section, "batch_bytes_max", bytes)).unwrap_or(usize::MAX),
            idle_record: self.duration(section, "idle_record", Duration::from_secs(10)),
            end,
        }
    }

    fn clickhouse(&mut self, header: &Entry, section: &[Entry]) -> Option<ClickHouseEnd> {
        let cluster = find(section, "cluster").and_then(|entry| self.reader.string(entry)).map(str::to_owned);
        let password = self.secret(section, "password", &header.origin);
        let example = "https://user@host:8443";
        let url = self.address(header, section, example, "\"http://\" or \"https://\"", Address::http)?;
        Some(ClickHouseEnd { url, password, cluster })
    }

    pub(super) fn url(&mut self, header: &Entry, section: &[Entry]) -> Option<Secret> {
        let example = "postgres://user@host:5432/database";
        self.address(header, section, example, "\"postgres://\"", Address::postgres)
    }

    /// The section's `url`, if it has the right form; a password in it is remarked upon.
    pub(super) fn address(
        &mut self,
        header: &Entry,
        section: &[Entry],
        example: &str,
        scheme: &str,
        read: fn(&str) -> Option<Address>,
    ) -> Option<Secret> {
        let Some(url) = self.secret(section, "url", &header.origin) else {
            if find(section, "url").is_none() && find(section, "url_file").is_none() {
                let finding = Finding::error("missing-key", format!("\"{}\" has no \"url\"", header.key));
                self.reader.report(&header.origin, finding.hint(format!("add `url = \"{example}\"`.")));
            }
            return None;
        };
        let entry = find(section, "url").or(find(section, "url_file"))?;
        let Some(address) = read(url.expose()) else {
            let finding = Finding::error("bad-value", format!("\"url\" must begin with {scheme}"));
            self.reader.report(&entry.node.origin, finding.hint(format!("for example `{example}`.")));
            return None;
        };
        let written_in_file = entry.key == "url" && !entry.node.substituted;
        if address.has_password && written_in_file && !address.is_local {
            let message = format!("the \"url\" of \"{}\" holds its password in the configuration file", header.key);
            let finding = Finding::warning("inline-password", message);
            self.reader.report(&entry.origin, finding.hint("use `password_file`, or `${VAR}` in the url."));
        }
        Some(url)
    }
}
