//! A plan bound to one layout of its source table: which wire column feeds which input. Made once per Relation message.
//!
//! The layout may be older than the catalog from which the plan was made, as after a restart with a backlog, or newer. What
//! is older and lacks a column that was added since is given the value that such a row has at the source. What is newer
//! and does not fit is news: somebody must look at the catalog again. Messages of a Kafka sink have the columns of the layout
//! instead, whatever they are.

use std::sync::Arc;

use super::kafka;
use super::plan::{BeforeAdded, ExpectedColumn, InputFrom, Plan};
use super::types::{TypeChange, type_change, type_name};
use crate::catalog::{ReplicaIdentity, TableName};
use crate::lsn::Lsn;
use crate::pgoutput::{Relation, RelationColumn};

/// The source table is not what the plan was made for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("\"{table}\": {mismatch}")]
pub struct BindError {
    pub table: String,
    pub mismatch: Mismatch,
    /// The plan's catalog may be older than the change.
    pub is_news: bool,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Mismatch {
    #[error("column \"{column}\" is not sent any more: it was dropped or renamed, or left the publication")]
    Missing { column: String },
    #[error("column \"{column}\" was added")]
    Added { column: String },
    #[error("column \"{column}\" has another type")]
    Retyped { column: String },
    #[error("its primary key is another one now ({columns})")]
    OtherKey { columns: String },
    #[error("it has no primary key any more, and the mapping names no key to keep its messages in order by")]
    NoKey,
    #[error("column \"{column}\" of its key never leaves the source, as the mapping has it")]
    ExcludedKey { column: String },
    #[error("column \"{column}\" changed from {old} to {new}, and what its rows became was not sent")]
    Type { column: String, old: String, new: String },
    #[error("it is another table of that name now (OID {new}, was {old}), and what became of its rows was not sent")]
    OtherTable { old: u32, new: u32 },
    #[error("it is called \"{new}\" now")]
    Renamed { new: TableName },
    #[error(
        "column \"{column}\" of the key is outside the replica identity now, so a change need not say which row it is"
    )]
    Identity { column: String },
    #[error(
        "column \"{column}\", which \"where\" reads, is outside the replica identity now, so a change need not say whether \
         its old row matched"
    )]
    FilterIdentity { column: String },
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
    /// Cells, in the form of the wire, that stand after those of a row: columns that this layout does not have yet.
    pub appended: Vec<u8>,
    /// How many cells these are.
    pub appended_columns: u16,
}

impl Binding {
    /// Binds to the layout that a transaction uses which committed at `commit_lsn`.
    ///
    /// # Errors
    /// The layout lacks what the plan needs, or has what it should know, or has it in another form.
    pub fn new(plan: &Arc<Plan>, relation: &Relation, commit_lsn: Lsn) -> Result<Binding, BindError> {
        if let Some(topic) = &plan.topic {
            return kafka::bind(plan, topic, relation, commit_lsn);
        }
        let mut bind = Bind {
            plan,
            relation,
            is_newer: commit_lsn >= plan.expected.settled,
            appended: Vec::new(),
            appended_columns: 0,
            identity: relation.columns.iter().map(|column| column.is_identity).collect(),
        };
        bind.table()?;
        bind.unknown_columns()?;
        let columns = plan.inputs.iter().map(|input| match &input.from {
            InputFrom::Column(name) | InputFrom::Json { column: name, .. } => bind.column(name).map(Some),
            InputFrom::Meta(_) => Ok(None),
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let key_columns: Vec<usize> =
            plan.key_inputs.iter().map(|&input| columns[input].expect("a key is made of source columns")).collect();
        bind.key(&key_columns)?;
        let width = bind.identity.len();
        let is_straight =
            columns.len() == width && columns.iter().enumerate().all(|(index, column)| *column == Some(index));
        let Bind { appended, appended_columns, identity, .. } = bind;
        Ok(Binding { plan: plan.clone(), columns, key_columns, identity, is_straight, appended, appended_columns })
    }

    /// A row of this layout, as `TupleData`, with the columns that the layout does not have yet.
    pub fn widened(&self, row: &[u8]) -> Vec<u8> {
        let (count, cells) = row.split_at(2);
        let columns = u16::from_be_bytes([count[0], count[1]]).saturating_add(self.appended_columns);
        let mut wide = Vec::with_capacity(row.len() + self.appended.len());
        wide.extend_from_slice(&columns.to_be_bytes());
        wide.extend_from_slice(cells);
        wide.extend_from_slice(&self.appended);
        wide
    }
}

struct Bind<'a> {
    plan: &'a Plan,
    relation: &'a Relation,
    /// The plan's catalog may not know of the transaction that uses this layout.
    is_newer: bool,
    appended: Vec<u8>,
    appended_columns: u16,
    /// Of the relation's columns and then of those appended.
    identity: Vec<bool>,
}

impl Bind<'_> {
    fn error(&self, mismatch: Mismatch) -> BindError {
        let is_fresh = match mismatch {
            Mismatch::Missing { .. } | Mismatch::Added { .. } | Mismatch::Identity { .. } => true,
            // Nothing that a second look could mend.
            Mismatch::Type { .. } | Mismatch::OtherTable { .. } | Mismatch::Renamed { .. } => false,
            // Of messages.
            Mismatch::Retyped { .. }
            | Mismatch::OtherKey { .. }
            | Mismatch::NoKey
            | Mismatch::ExcludedKey { .. }
            | Mismatch::FilterIdentity { .. } => false,
        };
        BindError { table: self.plan.from.to_string(), mismatch, is_news: is_fresh && self.is_newer }
    }

    fn table(&self) -> Result<(), BindError> {
        let old = self.plan.expected.oid;
        if old == 0 {
            return Ok(());
        }
        if self.relation.oid != old {
            return Err(self.error(Mismatch::OtherTable { old, new: self.relation.oid }));
        }
        if self.relation.name != self.plan.from {
            return Err(self.error(Mismatch::Renamed { new: self.relation.name.clone() }));
        }
        Ok(())
    }

    /// A plan for all columns must know them all. One that is older than the catalog and not in it was dropped since.
    fn unknown_columns(&self) -> Result<(), BindError> {
        let expected = &self.plan.expected;
        if !self.plan.follows_columns || !self.is_newer || expected.oid == 0 {
            return Ok(());
        }
        let is_unknown = |column: &&RelationColumn| {
            expected.column(&column.name).is_none() || expected.awaited.contains(&column.name)
        };
        match self.relation.columns.iter().find(is_unknown) {
            Some(column) => Err(self.error(Mismatch::Added { column: column.name.clone() })),
            None => Ok(()),
        }
    }

    /// The wire column of a source column.
    fn column(&mut self, name: &str) -> Result<usize, BindError> {
        let expected = self.plan.expected.column(name);
        let Some(index) = self.relation.columns.iter().position(|column| column.name == name) else {
            if let Some(added) = expected.and_then(|expected| expected.added.as_ref())
                && !self.is_newer
            {
                return Ok(self.append(added));
            }
            return Err(self.error(Mismatch::Missing { column: name.to_owned() }));
        };
        if let Some(expected) = expected {
            self.same_type(expected, &self.relation.columns[index])?;
        }
        Ok(index)
    }

    fn same_type(&self, expected: &ExpectedColumn, sent: &RelationColumn) -> Result<(), BindError> {
        let planned = (expected.type_oid, expected.type_modifier);
        let sent_type = (sent.type_oid, sent.type_modifier);
        let (old, new) = if self.is_newer { (planned, sent_type) } else { (sent_type, planned) };
        if type_change(old, new) != TypeChange::Different {
            return Ok(());
        }
        let sent_name = if sent.type_oid == expected.type_oid {
            format!("{} of another length or precision", type_name(sent.type_oid))
        } else {
            type_name(sent.type_oid)
        };
        let planned_name = expected.type_name.clone();
        let (old, new) = if self.is_newer { (planned_name, sent_name) } else { (sent_name, planned_name) };
        Err(self.error(Mismatch::Type { column: sent.name.clone(), old, new }))
    }

    /// Gives every row of this layout one more column.
    fn append(&mut self, value: &BeforeAdded) -> usize {
        let mut put = |kind: u8, value: &[u8]| {
            self.appended.push(kind);
            let length = u32::try_from(value.len()).expect("a default is shorter than 4 GiB");
            self.appended.extend_from_slice(&length.to_be_bytes());
            self.appended.extend_from_slice(value);
        };
        match value {
            BeforeAdded::Null => self.appended.push(b'n'),
            BeforeAdded::Binary(value) => put(b'b', value),
            BeforeAdded::Text(value) => put(b't', value),
        }
        self.appended_columns += 1;
        self.identity.push(self.relation.replica_identity == ReplicaIdentity::Full);
        self.identity.len() - 1
    }

    /// What is sent of an old row must hold the key, or an UPDATE may move a row without saying from where.
    fn key(&self, key_columns: &[usize]) -> Result<(), BindError> {
        let Some(&outside) = key_columns.iter().find(|&&column| !self.identity[column]) else { return Ok(()) };
        if self.plan.expected.oid == 0 {
            return Ok(());
        }
        let column = self.relation.columns.get(outside).map(|column| column.name.clone()).unwrap_or_default();
        Err(self.error(Mismatch::Identity { column }))
    }
}

#[cfg(test)]
#[path = "bind_tests.rs"]
mod tests;
