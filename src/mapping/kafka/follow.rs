//! A topic's plan as of one layout of its table: messages have the columns that the stream describes, not those that the
//! catalog has by now.
//!
//! The stream says of a column its name, its type's OID and its modifier. What else there is to know (what a type is that is
//! not Postgres's own, whether a column may be null, the order of a key's columns) only the catalog knows, so what it has not
//! been asked about is news. Of layouts that are older than the last look at it that is taken which is safe.

use std::borrow::Cow;
use std::sync::Arc;

use super::Pattern;
use super::plan::{input, output};
use crate::catalog::{Column, ReplicaIdentity, TypeKind};
use crate::lsn::Lsn;
use crate::mapping::bind::{BindError, Binding, Mismatch};
use crate::mapping::plan::{Plan, Topic};
use crate::mapping::types::type_name;
use crate::pgoutput::{Relation, RelationColumn};
use crate::value::clickhouse::types::{Form, SourceType};
use crate::value::debezium;
use crate::value::filter::Kind;

/// Binds to the layout that a transaction uses which committed at `commit_lsn`, by a plan made for that layout.
pub(in crate::mapping) fn bind(
    plan: &Arc<Plan>,
    topic: &Topic,
    relation: &Relation,
    commit_lsn: Lsn,
) -> Result<Binding, BindError> {
    let is_newer = commit_lsn >= plan.expected.settled;
    let follow = Follow { plan, topic, relation, is_newer };
    follow.table()?;
    let mut places = Vec::new();
    let mut columns = Vec::new();
    for (place, sent) in relation.columns.iter().enumerate() {
        if !follow.is_left_out(sent) {
            columns.push(follow.column(sent)?);
            places.push(place);
        }
    }
    let key = follow.key(&columns)?;
    let key_columns: Vec<usize> = key.iter().map(|&input| places[input]).collect();
    let filter = follow.filter(&columns, &places)?;
    let is_planned = columns.iter().map(Cow::as_ref).eq(&topic.columns) && key == plan.key_inputs;
    let plan = if is_planned { plan.clone() } else { Arc::new(follow.plan(columns, key, filter)) };
    Ok(Binding {
        plan,
        is_straight: places.len() == relation.columns.len(),
        columns: places.into_iter().map(Some).collect(),
        key_columns,
        identity: relation.columns.iter().map(|column| column.is_identity).collect(),
        appended: Vec::new(),
        appended_columns: 0,
    })
}

struct Follow<'a> {
    plan: &'a Plan,
    topic: &'a Topic,
    relation: &'a Relation,
    /// The plan's catalog may not know of the transaction that uses this layout.
    is_newer: bool,
}

impl<'a> Follow<'a> {
    fn error(&self, mismatch: Mismatch, is_news: bool) -> BindError {
        BindError { table: self.plan.from.to_string(), mismatch, is_news }
    }

    /// A second look may mend it, if there was none since.
    fn news(&self, mismatch: Mismatch) -> BindError {
        self.error(mismatch, self.is_newer)
    }

    /// Another table under the name is followed, as it would be after a restart. One that has another name is told by its OID.
    fn table(&self) -> Result<(), BindError> {
        let (old, new) = (self.plan.expected.oid, self.relation.oid);
        if self.relation.name != self.plan.from {
            return Err(self.news(Mismatch::Renamed { new: self.relation.name.clone() }));
        }
        if self.is_newer && old != 0 && old != new {
            return Err(self.news(Mismatch::OtherTable { old, new }));
        }
        Ok(())
    }

    fn is_left_out(&self, column: &RelationColumn) -> bool {
        let path = format!("{}.{}", self.plan.from, column.name);
        let is_meant_by = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.matches(&path));
        let is_key = || {
            let mut planned = self.plan.key_inputs.iter().map(|&input| self.plan.inputs[input].name.as_str());
            let is_default = self.relation.replica_identity == ReplicaIdentity::Default && !self.topic.names_key;
            is_default && column.is_identity || planned.any(|name| name == column.name)
        };
        match &self.topic.include {
            Some(include) => !is_meant_by(include) && !is_key(),
            None => is_meant_by(&self.topic.exclude),
        }
    }

    /// What messages say of a column.
    fn column(&self, sent: &RelationColumn) -> Result<Cow<'a, debezium::Column>, BindError> {
        let expected = self.plan.expected.column(&sent.name);
        let planned = self.topic.columns.iter().find(|column| column.name == sent.name);
        let is_same = expected
            .is_some_and(|expected| (expected.type_oid, expected.type_modifier) == (sent.type_oid, sent.type_modifier));
        if let Some(planned) = planned.filter(|_| is_same) {
            return Ok(Cow::Borrowed(planned));
        }
        if self.is_newer && !is_same && self.plan.expected.oid != 0 {
            let column = sent.name.clone();
            return Err(self.news(match expected {
                Some(_) => Mismatch::Retyped { column },
                None => Mismatch::Added { column },
            }));
        }
        let is_key = sent.is_identity && self.relation.replica_identity == ReplicaIdentity::Default;
        let nullable = planned.map_or(!is_key, |planned| planned.nullable);
        Ok(Cow::Owned(self.described(sent, planned, nullable)))
    }

    /// A column by its type alone. A type that is gone is taken for an enum, of which the binary form is the text, where the
    /// column is one now: so are labels taken away.
    fn described(&self, sent: &RelationColumn, planned: Option<&debezium::Column>, nullable: bool) -> debezium::Column {
        let (oid, modifier) = (sent.type_oid, sent.type_modifier);
        if let Some(known) = self.topic.types.get(&oid) {
            let column = Column {
                name: sent.name.clone(),
                type_oid: oid,
                type_modifier: modifier,
                type_name: known.wire_type.clone(),
                wire_type: known.wire_type.clone(),
                wire_oid: known.wire_oid,
                wire_modifier: if known.kind == TypeKind::Domain { known.wire_modifier } else { modifier },
                type_kind: known.kind,
                not_null: !nullable,
                generated: false,
                has_default: false,
                toastable: true,
                has_binary: known.has_binary,
                equals_bytewise: true,
                enum_labels: known.labels.clone(),
            };
            return debezium::Column::of(&column);
        }
        let name = sent.name.clone();
        if postgres_types::Type::from_oid(oid).is_some() {
            let (source, type_name) = (SourceType::built_in(oid, modifier), type_name(oid));
            return debezium::Column { name, source, type_name, labels: Vec::new(), nullable, excluded: false };
        }
        match planned.filter(|planned| !planned.labels.is_empty()) {
            Some(planned) => debezium::Column { nullable, ..planned.clone() },
            None => {
                let source = SourceType { oid, modifier, form: Form::Unknown };
                debezium::Column {
                    name,
                    source,
                    type_name: String::new(),
                    labels: Vec::new(),
                    nullable,
                    excluded: false,
                }
            }
        }
    }

    /// The inputs that messages are keyed by: the columns that the mapping names, or those of the primary key at the time.
    fn key(&self, columns: &[Cow<'_, debezium::Column>]) -> Result<Vec<usize>, BindError> {
        let relation = self.relation;
        let planned = self.plan.key_inputs.iter().map(|&input| self.plan.inputs[input].name.as_str());
        let planned: Vec<&str> = planned.collect();
        let is_default = relation.replica_identity == ReplicaIdentity::Default;
        let identity = relation.columns.iter().filter(|column| column.is_identity);
        let identity: Vec<&str> = identity.map(|column| column.name.as_str()).collect();
        let is_planned = identity.len() == planned.len() && identity.iter().all(|name| planned.contains(name));
        let mut names = &planned;
        if is_default && !self.topic.names_key && !is_planned {
            // Where there is none the source refuses every UPDATE and DELETE, and of an older one the catalog has the next.
            match identity.is_empty() {
                _ if self.is_newer && !identity.is_empty() => {
                    return Err(self.news(Mismatch::OtherKey { columns: identity.join(", ") }));
                }
                true if self.is_newer => return Err(self.news(Mismatch::NoKey)),
                true => {}
                // An older one: its columns in the order of the table's.
                false => names = &identity,
            }
        }
        let may_lack_identity = identity.is_empty() && !self.topic.names_key;
        let place = |name: &&str| {
            let column = (*name).to_owned();
            let Some(input) = columns.iter().position(|column| column.name == *name) else {
                let is_sent = relation.columns.iter().any(|column| column.name == *name);
                let mismatch = if is_sent { Mismatch::ExcludedKey { column } } else { Mismatch::Missing { column } };
                return Err(self.news(mismatch));
            };
            if !may_lack_identity && !identity.contains(name) {
                return Err(self.news(Mismatch::Identity { column }));
            }
            Ok(input)
        };
        names.iter().map(place).collect()
    }

    /// Where the inputs that `where` reads are, in the order of the plan's. Its constants are in the form of their columns'
    /// types, and whether an old row matched must be told by the replica identity.
    fn filter(&self, columns: &[Cow<'_, debezium::Column>], places: &[usize]) -> Result<Vec<usize>, BindError> {
        let place = |&input: &usize| {
            let planned = &self.topic.columns[input];
            let column = planned.name.clone();
            let Some(input) = columns.iter().position(|column| column.name == planned.name) else {
                return Err(self.news(Mismatch::Missing { column }));
            };
            if !self.relation.columns[places[input]].is_identity {
                return Err(self.news(Mismatch::FilterIdentity { column }));
            }
            if Kind::of(&columns[input].source) != Kind::of(&planned.source) {
                return Err(self.news(Mismatch::Retyped { column }));
            }
            Ok(input)
        };
        self.plan.filter_inputs.iter().map(place).collect()
    }

    fn plan(&self, columns: Vec<Cow<'_, debezium::Column>>, key: Vec<usize>, filter_inputs: Vec<usize>) -> Plan {
        let moved = |input: usize| {
            let place = self.plan.filter_inputs.iter().position(|&planned| planned == input);
            filter_inputs[place.expect("the filter reads the plan's filter inputs alone")]
        };
        let filter = self.topic.filter.as_ref().map(|filter| filter.moved(&moved));
        let columns: Vec<_> = columns.into_iter().map(Cow::into_owned).collect();
        Plan {
            inputs: columns.iter().map(input).collect(),
            outputs: columns.iter().enumerate().map(output).collect(),
            key: key.clone(),
            key_inputs: key,
            filter_inputs,
            source_columns: columns.iter().map(|column| column.name.clone()).collect(),
            topic: Some(Topic { columns, filter, ..self.topic.clone() }),
            ..self.plan.clone()
        }
    }
}

#[cfg(test)]
#[path = "follow_tests.rs"]
mod tests;
