//! `skipped_operations = …`: Debezium's `skipped.operations`, with its letters.

use serde::Serialize;

use crate::config::document::{Alone, Entry, Reader, find};
use crate::diagnostic::Finding;

pub(super) const KEY: &str = "skipped_operations";

/// Changes of which no message is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Skipped {
    pub creates: bool,
    pub updates: bool,
    pub deletes: bool,
    pub truncates: bool,
}

impl Skipped {
    pub const NONE: Skipped = Skipped { creates: false, updates: false, deletes: false, truncates: false };
}

impl Default for Skipped {
    /// As Debezium's.
    fn default() -> Self {
        Skipped { truncates: true, ..Skipped::NONE }
    }
}

/// Reads a string with commas, as Debezium has it, or a list.
pub(super) fn skipped(reader: &mut Reader, section: &[Entry]) -> Skipped {
    let Some(entry) = find(section, KEY) else { return Skipped::default() };
    let mut skipped = Skipped::NONE;
    let texts = reader.strings(entry, Alone::Allowed).unwrap_or_default();
    let words = texts.iter().flat_map(|(text, origin)| text.split(',').map(move |word| (word.trim(), *origin)));
    let words: Vec<_> = words.collect();
    for (word, origin) in &words {
        match *word {
            "c" => skipped.creates = true,
            "u" => skipped.updates = true,
            "d" => skipped.deletes = true,
            "t" => skipped.truncates = true,
            "none" if words.len() == 1 => {}
            word => {
                let finding = Finding::error("bad-value", format!("\"{word}\" is no operation to skip"));
                let hint = "write any of \"c\", \"u\", \"d\" and \"t\", or \"none\" alone.";
                reader.report(origin, finding.hint(hint));
            }
        }
    }
    skipped
}
