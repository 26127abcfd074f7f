//! Counting whole rows, for tables without a key: of equal rows only how many more or fewer there are matters.
//!
//! Rows are equal here if the source sent the same values for all that is mapped. They are compared where they lie in the
//! blocks, so that counting costs no copy of them.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::{DefaultHashBuilder, HashTable};

use super::{Entry, Net, RowRef, cell_at};
use crate::mapping::bind::Binding;
use crate::tuple::{Cell, Tuple};

/// A row came without values that no other row of its change has either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Incomplete;

/// Where rows are read.
#[derive(Clone, Copy)]
pub(super) struct Images<'a> {
    pub blocks: &'a [Bytes],
    pub rows: &'a [RowRef],
    pub bindings: &'a [Arc<Binding>],
    /// Inputs that make up a row.
    pub inputs: &'a [usize],
}

/// Rows that are equal.
struct Equal {
    /// One of them.
    row: u32,
    hash: u64,
    /// How many came, less those that went.
    net: i64,
}

/// The rows that a batch adds to a table and takes from it.
#[derive(Default)]
pub(super) struct Multiset {
    kinds: Vec<Equal>,
    by_row: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Multiset {
    /// `by` rows like this one came, or went if it is negative.
    pub fn count(&mut self, images: Images<'_>, row: u32, by: i64) -> Result<(), Incomplete> {
        let values = images.values(row);
        if values.contains(&Cell::Unchanged) {
            return Err(Incomplete);
        }
        let hash = self.hash(&values);
        let is_equal = |&kind: &u32| {
            let kind = &self.kinds[kind as usize];
            kind.hash == hash && images.values(kind.row) == values
        };
        match self.by_row.find(hash, is_equal) {
            Some(&kind) => self.kinds[kind as usize].net += by,
            None => {
                let index = u32::try_from(self.kinds.len()).expect("a batch holds fewer than 2^32 rows");
                self.kinds.push(Equal { row, hash, net: by });
                let kinds = &self.kinds;
                self.by_row.insert_unique(hash, index, |&other| kinds[other as usize].hash);
            }
        }
        Ok(())
    }

    /// Nothing that was counted so far matters any more.
    pub fn clear(&mut self) {
        self.kinds.clear();
        self.by_row.clear();
    }

    /// An entry for every row that comes or goes.
    pub fn entries(&self) -> Vec<Entry> {
        let entries = self.kinds.iter().flat_map(|kind| {
            let net = if kind.net < 0 { Net::Delete } else { Net::Insert };
            let entry = Entry { net, row: kind.row, origin: None, clears: None };
            std::iter::repeat_n(entry, usize::try_from(kind.net.unsigned_abs()).unwrap_or(usize::MAX))
        });
        entries.collect()
    }

    fn hash(&self, values: &[Cell<'_>]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for value in values {
            match value {
                Cell::Text(bytes) | Cell::Binary(bytes) => {
                    hasher.write_usize(bytes.len());
                    hasher.write(bytes);
                }
                Cell::Null | Cell::Unchanged => hasher.write_usize(usize::MAX),
            }
        }
        hasher.finish()
    }
}

impl<'a> Images<'a> {
    /// A row's values in the inputs' order.
    fn values(self, row: u32) -> Vec<Cell<'a>> {
        let reference = &self.rows[row as usize];
        let binding = &self.bindings[reference.binding as usize];
        let bytes = &self.blocks[reference.block as usize][reference.range()];
        let wire: Vec<Cell<'a>> = Tuple::trusted_cells(bytes).collect();
        let value = |&input: &usize| match binding.columns[input].and_then(|column| wire.get(column)) {
            Some(cell) if *cell != Cell::Unchanged && !reference.key_only => *cell,
            _ => cell_at(self.blocks, self.rows, self.bindings, row, input),
        };
        self.inputs.iter().map(value).collect()
    }
}
