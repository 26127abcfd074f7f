//! A target in memory: batches are applied as the Postgres sink's statements do it, single changes as a source means them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::history::{Action, Key, Row};
use crate::batch::{Batch, Entry, Net, TableBatch};
use crate::mapping::plan::{DeleteMode, Input, Mode, Output, OutputFrom, Plan};
use crate::mapping::sample;
use crate::tuple::Cell;

/// Inputs in an order that is not the wire's.
const INPUTS: [&str; 5] = ["k", "l", "a", "b", "number"];

pub fn plan(mode: Mode, delete: DeleteMode) -> Plan {
    let input = |name: &&str| Input { toastable: matches!(*name, "a" | "b"), ..sample::input(name, "text", 25) };
    let output = |(input, name): (usize, &&str)| Output {
        column: (*name).to_owned(),
        target_type: "text".to_owned(),
        from: OutputFrom::Input { input, cast: false },
    };
    Plan {
        outputs: INPUTS.iter().enumerate().map(output).collect(),
        key: vec![0, 1],
        key_inputs: vec![0, 1],
        mode,
        delete,
        deleted_column: (delete == DeleteMode::Soft).then(|| "deleted".to_owned()),
        source_columns: INPUTS.map(str::to_owned).to_vec(),
        ..sample::plan(INPUTS.iter().map(input).collect())
    }
}

/// What the target holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rows {
    rows: BTreeMap<Key, Held>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Held {
    row: Row,
    deleted: bool,
}

impl Rows {
    pub fn of_source(source: &BTreeMap<Key, Row>) -> Rows {
        let held = |(key, row): (&Key, &Row)| (*key, Held { row: row.clone(), deleted: false });
        Rows { rows: source.iter().map(held).collect() }
    }

    /// One change, as the mapping means it.
    pub fn apply(&mut self, action: &Action, mode: Mode, delete: DeleteMode) {
        match action {
            Action::Insert { key, row } => self.put(*key, row.clone(), mode),
            Action::Update { old, key, row, .. } => {
                if old != key {
                    self.rows.remove(old);
                }
                self.put(*key, row.clone(), mode);
            }
            Action::Delete { key, .. } => match delete {
                DeleteMode::Hard => drop(self.rows.remove(key)),
                DeleteMode::Soft => self.mark(*key),
                DeleteMode::Ignore => {}
            },
            Action::Truncate => self.truncate(delete),
        }
    }

    fn put(&mut self, key: Key, row: Row, mode: Mode) {
        let held = Held { row, deleted: false };
        match mode {
            Mode::InsertNew => drop(self.rows.entry(key).or_insert(held)),
            Mode::Upsert | Mode::Append => drop(self.rows.insert(key, held)),
        }
    }

    fn mark(&mut self, key: Key) {
        if let Some(held) = self.rows.get_mut(&key) {
            held.deleted = true;
        }
    }

    fn truncate(&mut self, delete: DeleteMode) {
        match delete {
            DeleteMode::Hard => self.rows.clear(),
            DeleteMode::Soft => self.rows.values_mut().for_each(|held| held.deleted = true),
            DeleteMode::Ignore => {}
        }
    }
}

/// A target that batches are applied to.
pub struct Target {
    pub rows: Rows,
}

/// A row of a batch as far as the batch knows it.
struct Image {
    key: Key,
    texts: [Option<Option<String>>; 2],
    number: u32,
}

impl Target {
    pub fn new(rows: Rows) -> Target {
        Target { rows }
    }

    /// The order of `sink::postgres::apply`.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), TestCaseError> {
        for table in &batch.tables {
            self.table(batch, table)?;
        }
        Ok(())
    }

    fn table(&mut self, batch: &Batch, table: &TableBatch) -> Result<(), TestCaseError> {
        let plan = &table.plan;
        if table.truncate.is_some() {
            self.rows.truncate(plan.delete);
        }
        let is_image = |entry: &&Entry| matches!(entry.net, Net::Insert | Net::Upsert | Net::Tombstone);
        let mut filled = Vec::new();
        let mut partial = Vec::new();
        for entry in table.entries.iter().filter(is_image) {
            let image = image(batch, table, entry.row);
            let is_whole = image.texts.iter().all(Option::is_some);
            let origin = key(batch, table, entry.origin.unwrap_or(entry.row));
            if is_whole || entry.origin.is_some() || plan.mode == Mode::InsertNew {
                let old = self.rows.rows.get(&origin).map(|held| &held.row);
                prop_assert!(is_whole || old.is_some(), "the old place {:?} is empty", origin);
                filled.push((image.key, complete(image, old), entry.net));
            } else {
                partial.push(image);
            }
        }
        for entry in &table.entries {
            let gone = key(batch, table, entry.row);
            match entry.clears.unwrap_or(entry.net) {
                Net::Delete if plan.delete == DeleteMode::Hard => drop(self.rows.rows.remove(&gone)),
                Net::Delete if plan.delete == DeleteMode::Soft => self.rows.mark(gone),
                Net::MovedAway => drop(self.rows.rows.remove(&gone)),
                Net::Delete | Net::Insert | Net::Upsert | Net::Nothing | Net::Tombstone => {}
            }
        }
        for (key, row, net) in filled {
            let is_new = !self.rows.rows.contains_key(&key);
            prop_assert!(is_new || net != Net::Insert, "{:?} was said to be new", key);
            self.rows.put(key, row, plan.mode);
        }
        for image in partial {
            let held = self.rows.rows.get(&image.key).map(|held| held.row.clone());
            prop_assert!(held.is_some(), "{:?} is missing", image.key);
            self.rows.put(image.key, complete(image, held.as_ref()), plan.mode);
        }
        for entry in table.entries.iter().filter(|entry| entry.net == Net::Tombstone) {
            self.rows.mark(key(batch, table, entry.row));
        }
        Ok(())
    }
}

fn complete(image: Image, old: Option<&Row>) -> Row {
    let [a, b] = image.texts;
    let text = |place: usize, text: Option<Option<String>>| {
        text.unwrap_or_else(|| old.and_then(|old| old.texts[place].clone()))
    };
    Row { texts: [text(0, a), text(1, b)], number: image.number }
}

fn key(batch: &Batch, table: &TableBatch, row: u32) -> Key {
    [0, 1].map(|input| value(batch, table, row, input).flatten().and_then(|text| text.parse().ok()).expect("a key"))
}

fn image(batch: &Batch, table: &TableBatch, row: u32) -> Image {
    let number = value(batch, table, row, 4).flatten().and_then(|text| text.parse().ok()).expect("a number");
    Image { key: key(batch, table, row), texts: [2, 3].map(|input| value(batch, table, row, input)), number }
}

/// `None` is not known, `Some(None)` is NULL.
fn value(batch: &Batch, table: &TableBatch, row: u32, input: usize) -> Option<Option<String>> {
    match batch.cell(table, row, input) {
        Cell::Null => Some(None),
        Cell::Unchanged => None,
        Cell::Text(text) | Cell::Binary(text) => Some(Some(String::from_utf8_lossy(text).into_owned())),
    }
}
