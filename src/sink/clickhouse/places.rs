//! Where a row may stand in the target: its places in the batch, each with the versions that it had there.

use super::encode::version;
use crate::batch::{Batch, TableBatch};

/// One place of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// A row of the batch that has the place's key.
    pub row: u32,
    /// The first version that the row had there; 0 where it stood before the batch.
    pub since: u128,
    /// The version that it no longer had there.
    pub before: u128,
}

impl Place {
    /// All places of a row of which the batch does not know every value, from the last one back to where the row stood
    /// before the batch.
    pub fn all(batch: &Batch, batched: &TableBatch, row: u32, key_inputs: &[usize]) -> Vec<Place> {
        let version = |row: u32| version(batch.position(&batched.rows[row as usize]));
        let is_same = |one: u32, other: u32| {
            key_inputs.iter().all(|&input| batch.cell(batched, one, input) == batch.cell(batched, other, input))
        };
        let mut places = Vec::with_capacity(1);
        let mut place = Place { row, since: version(row), before: version(row) };
        while let Some(earlier) = batched.rows[place.row as usize].earlier {
            // The image from which the row was moved has the version of the move.
            if !is_same(place.row, earlier) {
                places.push(place);
                place = Place { row: earlier, since: version(earlier), before: place.since };
            } else {
                place = Place { row: earlier, since: version(earlier), ..place };
            }
        }
        places.push(Place { since: 0, ..place });
        // Where it came to by its last change nothing can be looked for.
        places.retain(|place| place.since < place.before);
        places
    }
}
