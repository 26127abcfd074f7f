//! Batches of a replay, made fit for a target that holds later rows.
//!
//! A value that the source did not send again (unchanged TOAST) is in the target. While streaming it is looked for where
//! the row stood before; a replay finds the target as of its checkpoint, where another row may stand there by now. The
//! whole range folded per key ends at that checkpoint, so the value is where the row ends up: at its own key.
//!
//! A range that is too large for one fold is applied in parts, within one transaction of the sink. Then a row's own place
//! may have been written by an earlier part, with the values of another row that stood there in between; a row that moves
//! to such a place without all of its values cannot be replayed.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use crate::batch::{Batch, Entry, Net, TableBatch};
use crate::tuple::Cell;

/// Keys remembered of earlier parts. Past it no row may move without all of its values.
const KEYS_MAX: usize = 8_000_000;

/// The range needs more memory than a batch may have.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "too much lies between there and the checkpoint to be replayed in one piece: a row of \"{table}\" was given another key"
)]
pub struct TooLarge {
    pub table: String,
}

/// What earlier parts did.
#[derive(Default)]
pub struct Parts {
    hasher: RandomState,
    /// By plan: hashes of the keys that were written or deleted.
    touched: Vec<HashSet<u64>>,
    /// By plan: all keys were.
    all_touched: Vec<bool>,
    count: usize,
}

impl Parts {
    pub fn new(plans: usize) -> Self {
        Parts { touched: vec![HashSet::new(); plans], all_touched: vec![false; plans], ..Parts::default() }
    }

    /// Makes the next part fit. `is_last` saves remembering it.
    ///
    /// # Errors
    /// The part cannot be applied after those before it.
    pub fn fit(&mut self, batch: &mut Batch, is_last: bool) -> Result<(), TooLarge> {
        for index in 0..batch.tables.len() {
            let table = &batch.tables[index];
            let plan_index = table.plan_index;
            if table.truncate.is_some() {
                self.all_touched[plan_index] = true;
            }
            for entry in &table.entries {
                let moved_with_holes = entry.origin.is_some() && has_holes(batch, table, entry);
                if is_last && !moved_with_holes {
                    continue;
                }
                let key = self.key_hash(batch, table, entry);
                let known = self.all_touched[plan_index] || self.touched[plan_index].contains(&key);
                if moved_with_holes && known {
                    return Err(TooLarge { table: table.plan.target.to_string() });
                }
                if !is_last && !self.all_touched[plan_index] {
                    if self.count < KEYS_MAX && self.touched[plan_index].insert(key) {
                        self.count += 1;
                    } else if self.count >= KEYS_MAX {
                        self.all_touched[plan_index] = true;
                    }
                }
            }
            for entry in &mut batch.tables[index].entries {
                entry.origin = None;
            }
        }
        Ok(())
    }

    fn key_hash(&self, batch: &Batch, table: &TableBatch, entry: &Entry) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for &input in &table.plan.key_inputs {
            match batch.cell(table, entry.row, input) {
                Cell::Text(value) | Cell::Binary(value) => {
                    hasher.write_usize(value.len());
                    hasher.write(value);
                }
                Cell::Null | Cell::Unchanged => hasher.write_usize(usize::MAX),
            }
        }
        hasher.finish()
    }
}

/// Only the target has some of the row's values.
fn has_holes(batch: &Batch, table: &TableBatch, entry: &Entry) -> bool {
    let row = &table.rows[entry.row as usize];
    if !row.has_unchanged || !matches!(entry.net, Net::Insert | Net::Upsert | Net::Tombstone) {
        return false;
    }
    // What the daemon itself knows has no column.
    let columns = table.bindings[usize::from(row.binding)].columns.iter().enumerate();
    let mut sent = columns.filter_map(|(input, column)| column.map(|_| input));
    sent.any(|input| batch.cell(table, entry.row, input) == Cell::Unchanged)
}
