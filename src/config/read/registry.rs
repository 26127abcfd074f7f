//! `schema_registry` of a `[sink.NAME]` of `kind = "kafka"`.

use super::super::RegistryEnd;
use super::super::document::{Entry, find};
use super::Read;
use super::address::Address;

const KEYS: [&str; 6] = ["url", "url_file", "user", "password", "password_file", "ca_file"];

impl Read {
    pub(super) fn registry(&mut self, section: &[Entry]) -> Option<RegistryEnd> {
        let header = find(section, "schema_registry")?;
        let section = self.reader.table(header)?;
        self.reader.unknown_keys(section, &KEYS, "\"schema_registry\"");
        let user = find(section, "user").and_then(|entry| self.reader.string(entry)).map(str::to_owned);
        let password = self.secret(section, "password", &header.origin);
        let ca_file = self.path(section, "ca_file");
        let example = "https://registry:8081";
        let url = self.address(header, section, example, "\"http://\" or \"https://\"", Address::http)?;
        Some(RegistryEnd { url, user, password, ca_file })
    }
}
