//! Folding: many changes of a key become one net effect, so that the sink touches each row once.
//!
//! The result equals applying the changes in order, because all that a later change leaves open (unchanged TOASTed
//! values) is looked up along the chain of earlier images, and because a key's fate is decided by its last change
//! together with whether the target held it before. Without a key whole rows are counted instead. `tests` compare it with a sequential model.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::multiset::{Images, Incomplete, Multiset};
use super::{Counts, Emptied, Entry, Net, RowRef, TableBatch, cell_at};
use crate::checkpoint::Position;
use crate::lsn::Lsn;
use crate::mapping::bind::Binding;
use crate::mapping::plan::{DeleteMode, Mode, Plan};
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::is_text_alike;

/// What finds the row came as "unchanged" and no old row carries it: the source did not log it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyMissing {
    #[error("a change of \"{table}\" does not carry the row's key")]
    Key { table: String },
    /// The table has no key.
    #[error("a change of \"{table}\" does not carry the whole old row: its replica identity is no longer FULL")]
    Row { table: String },
    /// Of a partition, which has another replica identity than the table.
    #[error(
        "an update of \"{table}\" came without the old row, though its replica identity is FULL: a partition has another one; \
         run `ALTER TABLE … REPLICA IDENTITY FULL` for each partition"
    )]
    Partition { table: String },
    /// The source was asked for another form in between: equal keys do not look equal.
    #[error("changes of \"{table}\" carry the row's key as text and in binary form")]
    Forms { table: String },
}

/// Bytes of a key in the fold's arena, with their hash.
#[derive(Clone, Copy)]
struct Key {
    hash: u64,
    start: u32,
    length: u32,
}

/// One table's part of a batch while it is built.
pub struct Fold {
    plan_index: usize,
    plan: Arc<Plan>,
    bindings: Vec<Arc<Binding>>,
    rows: Vec<RowRef>,
    truncate: Option<Position>,
    emptied: Vec<Emptied>,
    entries: Vec<Entry>,
    keys: Vec<Key>,
    key_bytes: Vec<u8>,
    by_key: HashTable<u32>,
    /// In place of all by key.
    multiset: Option<Multiset>,
    /// By key input: its two forms differ.
    has_forms: Vec<bool>,
    /// Forms in which such inputs came.
    came_as_text: bool,
    came_as_binary: bool,
    is_keyed: bool,
    /// Every change is an entry: nothing is folded.
    keeps_all: bool,
    hasher: DefaultHashBuilder,
    counts: Counts,
    /// An insert proves that the target does not hold the key. Not so while a table catches up or is replayed.
    trusts_inserts: bool,
}

impl Fold {
    /// `expected` is about how many rows will come.
    pub fn new(plan_index: usize, binding: &Arc<Binding>, trusts_inserts: bool, expected: usize) -> Self {
        let is_keyed = binding.plan.mode != Mode::Append && !binding.plan.is_multiset();
        Fold {
            plan_index,
            plan: binding.plan.clone(),
            bindings: vec![binding.clone()],
            rows: Vec::with_capacity(expected),
            truncate: None,
            emptied: Vec::new(),
            entries: Vec::with_capacity(expected),
            keys: Vec::with_capacity(if is_keyed { expected } else { 0 }),
            key_bytes: Vec::new(),
            by_key: HashTable::with_capacity(if is_keyed { expected } else { 0 }),
            multiset: binding.plan.is_multiset().then(Multiset::default),
            has_forms: has_forms(&binding.plan),
            came_as_text: false,
            came_as_binary: false,
            is_keyed,
            keeps_all: binding.plan.topic.is_some(),
            hasher: DefaultHashBuilder::default(),
            counts: Counts::default(),
            trusts_inserts,
        }
    }

    /// The table's layout changed inside the batch: rows from here on are read by this binding.
    pub fn rebind(&mut self, binding: &Arc<Binding>) {
        self.bindings.push(binding.clone());
    }

    /// The layout that new rows have.
    pub fn binding(&self) -> u16 {
        u16::try_from(self.bindings.len() - 1).expect("a table changes its layout less than 65,536 times in a batch")
    }

    pub fn is_bound_to(&self, binding: &Arc<Binding>) -> bool {
        self.bindings.last().is_some_and(|last| Arc::ptr_eq(last, binding))
    }

    /// Rows held so far.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.truncate.is_none() && self.emptied.is_empty()
    }

    fn add_row(&mut self, row: RowRef) -> u32 {
        self.rows.push(row);
        u32::try_from(self.rows.len() - 1).expect("a batch holds fewer than 2^32 rows")
    }

    /// Takes an INSERT.
    ///
    /// # Errors
    /// The row does not carry its key.
    pub fn insert(&mut self, blocks: &[Bytes], new: RowRef) -> Result<(), KeyMissing> {
        self.counts.inserts += 1;
        let row = self.add_row(new);
        if !self.is_keyed {
            return self.unkeyed(blocks, None, Some(row));
        }
        let key = self.key(blocks, row)?;
        let known = Entry { net: self.net_of_insert(), row, origin: None, clears: None };
        match self.find(key) {
            // What came and went in this batch was absent before it; anything else may be in the target.
            Some(entry) if self.entries[entry].net == Net::Nothing => self.entries[entry] = known,
            Some(entry) => self.settle(entry, Entry { net: Net::Upsert, ..known }),
            None => self.push(key, known),
        }
        Ok(())
    }

    /// Where deletes are soft or ignored the target keeps keys that the source no longer has.
    fn net_of_insert(&self) -> Net {
        if self.trusts_inserts && self.plan.delete == DeleteMode::Hard { Net::Insert } else { Net::Upsert }
    }

    /// Takes an UPDATE with the old row if one was sent.
    ///
    /// # Errors
    /// Neither row carries the key.
    pub fn update(&mut self, blocks: &[Bytes], old: Option<RowRef>, mut new: RowRef) -> Result<(), KeyMissing> {
        self.counts.updates += 1;
        let old = old.map(|old| self.add_row(old));
        // The old image answers for unchanged values: all of them under REPLICA IDENTITY FULL, else a TOASTed key.
        new.earlier = old.filter(|_| new.has_unchanged);
        let has_unchanged = new.has_unchanged;
        let row = self.add_row(new);
        if self.keeps_all {
            self.entries.push(Entry { net: Net::Upsert, row, origin: old, clears: None });
            return Ok(());
        }
        if !self.is_keyed {
            if self.multiset.is_some() && old.is_none() {
                return Err(self.row_missing());
            }
            return self.unkeyed(blocks, old, Some(row));
        }
        let new_key = self.key(blocks, row)?;
        let old_key = match old {
            Some(old) => self.key(blocks, old)?,
            None => new_key,
        };
        if self.same(old_key, new_key) {
            self.replace(new_key, row, old, has_unchanged);
        } else {
            self.relocate(old_key, new_key, old.expect("keys differ, so there is an old row"), row, has_unchanged);
        }
        Ok(())
    }

    /// The row keeps its key.
    fn replace(&mut self, key: Key, row: u32, old: Option<u32>, has_unchanged: bool) {
        let Some(entry) = self.find(key) else {
            self.push(key, Entry { net: Net::Upsert, row, origin: None, clears: None });
            return;
        };
        let before = self.entries[entry];
        if has_unchanged {
            self.chain(old.unwrap_or(row), before.row);
        }
        let (net, origin) = match before.net {
            Net::Insert => (Net::Insert, None),
            Net::Upsert => (Net::Upsert, before.origin),
            Net::Delete | Net::MovedAway | Net::Nothing | Net::Tombstone => (Net::Upsert, None),
        };
        self.settle(entry, Entry { net, row, origin, clears: None });
    }

    /// The row moves from one key to another: it leaves the old one and takes its history along.
    fn relocate(&mut self, old_key: Key, new_key: Key, old: u32, row: u32, has_unchanged: bool) {
        let mut origin = Some(old);
        let left = Entry { net: Net::MovedAway, row: old, origin: None, clears: None };
        match self.find(old_key) {
            Some(entry) => {
                let before = self.entries[entry];
                if has_unchanged {
                    self.chain(old, before.row);
                }
                // Born in this batch: the target has no old row, and the chain knows every value.
                if before.net == Net::Insert {
                    self.entries[entry] = Entry { net: Net::Nothing, ..left };
                    origin = None;
                } else {
                    origin = before.origin.or(origin);
                    self.entries[entry] = left;
                }
            }
            None => self.push(old_key, left),
        }
        let image = Entry { net: Net::Upsert, row, origin: origin.filter(|_| has_unchanged), clears: None };
        match self.find(new_key) {
            Some(entry) => self.settle(entry, image),
            None => self.push(new_key, image),
        }
    }

    /// A key that the batch knows is given another image; in mode `insert_new` only if the key is free by then.
    fn settle(&mut self, entry: usize, mut image: Entry) {
        let before = self.entries[entry].net;
        if self.plan.mode == Mode::InsertNew {
            match before {
                Net::Insert | Net::Upsert | Net::Tombstone => return,
                Net::Delete | Net::MovedAway => image.clears = Some(before),
                Net::Nothing => {}
            }
        }
        self.entries[entry] = image;
    }

    /// Takes a DELETE.
    ///
    /// # Errors
    /// The old row does not carry the key.
    pub fn delete(&mut self, blocks: &[Bytes], old: RowRef) -> Result<(), KeyMissing> {
        self.counts.deletes += 1;
        if self.keeps_all {
            let row = self.add_row(old);
            self.entries.push(Entry { net: Net::Delete, row, origin: None, clears: None });
            return Ok(());
        }
        if self.plan.mode == Mode::Append || self.plan.delete == DeleteMode::Ignore {
            return Ok(());
        }
        let row = self.add_row(old);
        if !self.is_keyed {
            return self.unkeyed(blocks, Some(row), None);
        }
        let key = self.key(blocks, row)?;
        let deleted = Entry { net: Net::Delete, row, origin: None, clears: None };
        let Some(entry) = self.find(key) else {
            self.push(key, deleted);
            return Ok(());
        };
        let before = self.entries[entry];
        self.entries[entry] = match before.net {
            Net::Insert | Net::Nothing => Entry { net: Net::Nothing, ..deleted },
            // A soft delete leaves what came in this batch as it last was.
            Net::Upsert | Net::Tombstone if self.plan.delete == DeleteMode::Soft => {
                Entry { net: Net::Tombstone, ..before }
            }
            Net::Upsert | Net::Tombstone | Net::Delete | Net::MovedAway => deleted,
        };
        Ok(())
    }

    /// Takes a TRUNCATE: all before it in the batch is void, or deleted softly. Where every change is kept, it is one more.
    pub fn truncate(&mut self, commit_lsn: Lsn, statement: Emptied) {
        self.counts.truncates += 1;
        if self.keeps_all {
            self.emptied.push(Emptied { entries_before: self.entries.len(), ..statement });
            return;
        }
        if self.plan.delete == DeleteMode::Ignore || self.plan.mode == Mode::Append {
            return;
        }
        self.truncate = Some(Position { commit_lsn, ordinal: statement.ordinal });
        if self.plan.delete == DeleteMode::Soft {
            for entry in &mut self.entries {
                if matches!(entry.net, Net::Insert | Net::Upsert) {
                    entry.net = Net::Tombstone;
                }
            }
            return;
        }
        if let Some(multiset) = &mut self.multiset {
            multiset.clear();
            self.rows.clear();
            return;
        }
        // What an earlier try at a shorter batch has sent may arrive after the TRUNCATE.
        for entry in &mut self.entries {
            *entry = Entry { net: Net::Nothing, row: entry.row, origin: None, clears: None };
        }
    }

    /// The finished part.
    pub fn finish(self) -> TableBatch {
        TableBatch {
            plan_index: self.plan_index,
            plan: self.plan,
            bindings: self.bindings,
            rows: self.rows,
            truncate: self.truncate,
            emptied: self.emptied,
            entries: self.multiset.map_or(self.entries, |multiset| multiset.entries()),
            counts: self.counts,
        }
    }

    /// Puts `earlier` at the end of the chain that starts at `row`.
    fn chain(&mut self, row: u32, earlier: u32) {
        let mut last = row;
        while let Some(next) = self.rows[last as usize].earlier {
            last = next;
        }
        if last != earlier {
            self.rows[last as usize].earlier = Some(earlier);
        }
    }

    /// A change of a table whose rows are not told apart.
    fn unkeyed(&mut self, blocks: &[Bytes], gone: Option<u32>, new: Option<u32>) -> Result<(), KeyMissing> {
        let Some(multiset) = &mut self.multiset else {
            self.entries.extend(new.map(|row| Entry { net: Net::Insert, row, origin: None, clears: None }));
            return Ok(());
        };
        let images = Images { blocks, rows: &self.rows, bindings: &self.bindings, inputs: &self.plan.key_inputs };
        for (row, by) in gone.map(|row| (row, -1)).into_iter().chain(new.map(|row| (row, 1))) {
            if multiset.count(images, row, by) == Err(Incomplete) {
                return Err(self.row_missing());
            }
        }
        Ok(())
    }

    /// What an update without the old row means where all of it is to be sent.
    pub fn partition_strays(&self) -> KeyMissing {
        KeyMissing::Partition { table: self.plan.from.to_string() }
    }

    fn row_missing(&self) -> KeyMissing {
        KeyMissing::Row { table: self.plan.from.to_string() }
    }

    fn push(&mut self, key: Key, entry: Entry) {
        let index = u32::try_from(self.entries.len()).expect("a batch holds fewer than 2^32 rows");
        self.entries.push(entry);
        self.keys.push(key);
        let keys = &self.keys;
        self.by_key.insert_unique(key.hash, index, |&other| keys[other as usize].hash);
    }

    fn find(&self, key: Key) -> Option<usize> {
        let wanted = self.bytes(key);
        let is_same = |&index: &u32| {
            let other = self.keys[index as usize];
            other.hash == key.hash && self.bytes(other) == wanted
        };
        self.by_key.find(key.hash, is_same).map(|&index| index as usize)
    }

    fn same(&self, one: Key, other: Key) -> bool {
        one.hash == other.hash && self.bytes(one) == self.bytes(other)
    }

    fn bytes(&self, key: Key) -> &[u8] {
        &self.key_bytes[key.start as usize..key.start as usize + key.length as usize]
    }

    /// Writes the key of a row into the arena.
    fn key(&mut self, blocks: &[Bytes], row: u32) -> Result<Key, KeyMissing> {
        let start = self.key_bytes.len();
        for (place, &input) in self.plan.key_inputs.iter().enumerate() {
            let cell = cell_at(blocks, &self.rows, &self.bindings, row, input);
            if self.has_forms[place] {
                self.came_as_text |= matches!(cell, Cell::Text(_));
                self.came_as_binary |= matches!(cell, Cell::Binary(_));
            }
            match cell {
                Cell::Text(value) | Cell::Binary(value) => {
                    let length = u32::try_from(value.len()).expect("a value is shorter than 4 GiB");
                    self.key_bytes.extend_from_slice(&length.to_be_bytes());
                    self.key_bytes.extend_from_slice(value);
                }
                Cell::Null => self.key_bytes.extend_from_slice(&u32::MAX.to_be_bytes()),
                Cell::Unchanged => return Err(KeyMissing::Key { table: self.plan.from.to_string() }),
            }
        }
        if self.came_as_text && self.came_as_binary {
            return Err(KeyMissing::Forms { table: self.plan.from.to_string() });
        }
        let bytes = &self.key_bytes[start..];
        let mut hasher = self.hasher.build_hasher();
        hasher.write(bytes);
        let length = u32::try_from(bytes.len()).expect("a key is shorter than 4 GiB");
        Ok(Key { hash: hasher.finish(), start: u32::try_from(start).expect("keys of a batch fit 4 GiB"), length })
    }
}

fn has_forms(plan: &Plan) -> Vec<bool> {
    let has_forms =
        |&input: &usize| plan.inputs[input].source_type.as_ref().is_some_and(|source| !is_text_alike(source));
    plan.key_inputs.iter().map(has_forms).collect()
}
