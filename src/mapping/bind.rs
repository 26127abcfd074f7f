//! A plan bound to one layout of its source table: which wire column feeds which input. Made once per Relation message.

use std::sync::Arc;

use super::plan::{InputFrom, Plan};
use crate::pgoutput::Relation;

/// The source table no longer has a column that the mapping names.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("column \"{column}\" is not among the columns that the source sends for \"{table}\"")]
pub struct BindError {
    pub table: String,
    pub column: String,
}

/// Where each input of a plan stands in the wire rows of one layout.
#[derive(Debug)]
pub struct Binding {
    pub plan: Arc<Plan>,
    /// Per input its wire column; `None` for what the daemon itself knows.
    pub columns: Vec<Option<usize>>,
    /// Wire columns of the key inputs, in the order of `plan.key_inputs`.
    pub key_columns: Vec<usize>,
    /// Wire columns that belong to the replica identity; a key-only old row says nothing of the others.
    pub identity: Vec<bool>,
    /// Every wire column is an input and in the inputs' order: rows pass without looking columns up.
    pub is_straight: bool,
}

impl Binding {
    /// # Errors
    /// An input's column is missing from the layout: dropped, renamed, or left out of the publication.
    pub fn new(plan: &Arc<Plan>, relation: &Relation) -> Result<Binding, BindError> {
        let position = |name: &String| {
            relation
                .columns
                .iter()
                .position(|column| &column.name == name)
                .ok_or_else(|| BindError { table: relation.name.to_string(), column: name.clone() })
        };
        let columns = plan
            .inputs
            .iter()
            .map(|input| match &input.from {
                InputFrom::Column(name) => position(name).map(Some),
                InputFrom::Meta(_) => Ok(None),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let key_columns =
            plan.key_inputs.iter().map(|&input| columns[input].expect("a key is made of source columns")).collect();
        let is_straight = columns.len() == relation.columns.len()
            && columns.iter().enumerate().all(|(index, column)| *column == Some(index));
        let identity = relation.columns.iter().map(|column| column.is_identity).collect();
        Ok(Binding { plan: plan.clone(), columns, key_columns, identity, is_straight })
    }
}
