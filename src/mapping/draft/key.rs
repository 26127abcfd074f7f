//! The key of a mapping: which columns form it, and whether the source's replica identity can always make it.

use std::ops::Range;

use super::{Draft, DraftColumn, DraftFrom, Drafting};
use crate::catalog::ReplicaIdentity;
use crate::diagnostic::Finding;
use crate::mapping::plan::{Meta, Mode};
use crate::mapping::syntax_column::did_you_mean;
use crate::mapping::types;

impl<'a> Drafting<'a> {
    /// The key's columns and where to point for it. `None` after a finding.
    pub(super) fn key(&mut self, columns: &[DraftColumn<'a>]) -> Option<(Vec<usize>, Range<usize>)> {
        let target = &self.mapping.target;
        let Some(key) = &self.mapping.key else {
            if self.mapping.mode == Mode::Append {
                return Some((Vec::new(), target.span.clone()));
            }
            return Some((self.default_key(columns)?, target.span.clone()));
        };
        let mut positions = Vec::new();
        for name in &key.value {
            match columns.iter().position(|column| column.target == name.value) {
                Some(position) => positions.push(position),
                // With columns named one by one, the offline check says it.
                None if self.mapping.all_columns.is_some() => {
                    let message = format!("the key's column \"{}\" is not mapped", name.value);
                    let finding = Finding::error("key-not-mapped", message).label("a column of the target");
                    let hint = did_you_mean(&name.value, columns.iter().map(|column| column.target.as_str()));
                    let hint = hint.unwrap_or_else(|| "`rename` the source's column to it.".to_owned());
                    self.report(name.span.clone(), finding.hint(hint));
                }
                None => {}
            }
        }
        (positions.len() == key.value.len()).then(|| (positions, key.span.clone()))
    }

    fn default_key(&mut self, columns: &[DraftColumn<'a>]) -> Option<Vec<usize>> {
        let span = self.mapping.target.span.clone();
        if self.table.primary_key.is_empty() {
            let is_full = self.table.replica_identity == ReplicaIdentity::Full;
            if is_full && self.mapping.mode == Mode::Upsert {
                self.whole_rows(columns);
                return (!self.found.has_errors()).then(Vec::new);
            }
            let message = format!("table \"{}\" has no primary key, and the mapping names no key", self.table.name);
            let hint = "add `key = [\"…\"]`, target columns that are unique together";
            let hint = match is_full {
                true => format!("{hint}."),
                false => format!(
                    "{hint}, or run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source: then no key is needed.",
                    self.table.name.quoted()
                ),
            };
            self.report(span, Finding::error("no-key", message).hint(hint));
            return None;
        }
        let mut key = Vec::new();
        if self.file.sources.len() > 1 {
            key.extend(columns.iter().position(|column| matches!(column.from, DraftFrom::Meta(Meta::Source))));
        }
        for name in &self.table.primary_key {
            let is_it = |column: &DraftColumn<'_>| matches!(column.from, DraftFrom::Column(from) if &from.name == name);
            match columns.iter().position(is_it) {
                Some(position) => key.push(position),
                None => {
                    let message = format!("\"{name}\", of the primary key of \"{}\", is not mapped", self.table.name);
                    let finding = Finding::error("key-not-mapped", message);
                    self.report(span.clone(), finding.hint("map it, or name another key with `key = [\"…\"]`."));
                }
            }
        }
        (!self.found.has_errors()).then_some(key)
    }

    /// Without a key a row is found by all its values, so the target must hold them as they came.
    fn whole_rows(&mut self, columns: &[DraftColumn<'a>]) {
        let none = format!("\"{}\" has no key", self.table.name);
        let hint = "add `key = [\"…\"]`, target columns that are unique together.";
        for column in columns.iter().filter(|column| !matches!(column.from, DraftFrom::Column(_))) {
            let message = format!("{none}, and column \"{}\" is not a column of it as it is", column.target);
            let finding = Finding::error("needs-key", message).label("a row is found by what the source has");
            self.report(column.span.clone(), finding.hint(hint));
        }
        if let Some(filter) = &self.mapping.filter {
            let message = format!("{none}, and \"where\" cannot be used without one");
            self.report(filter.span.clone(), Finding::error("needs-key", message).hint(hint));
        }
        if let Some(deleted) = &self.mapping.deleted_column {
            let message = format!("{none}, and delete \"soft\" cannot be used without one");
            self.report(deleted.span.clone(), Finding::error("needs-key", message).hint(hint));
        }
    }

    /// What the source sends of an old row must hold all that the key is made of.
    pub(super) fn identity(&mut self, draft: &Draft<'a>) {
        let table = self.table;
        let full = format!("run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source", table.name.quoted());
        if table.identity_columns.is_empty() && table.replica_identity != ReplicaIdentity::Full {
            let message = format!("table \"{}\" has no replica identity", table.name);
            let finding = Finding::error("no-replica-identity", message).label("its updates and deletes would fail");
            let hint = format!("{full}, or give it a primary key, or `REPLICA IDENTITY USING INDEX`.");
            self.report(self.mapping.from.span.clone(), finding.hint(hint));
            return;
        }
        if let Some(partition) = &table.straying_partition {
            let (name, identity) = (partition.quoted(), table.replica_identity);
            let message = format!("partition \"{partition}\" has another replica identity than \"{}\"", table.name);
            let finding = Finding::error("no-replica-identity", message).label("old rows of its would lack values");
            let hint = match identity {
                ReplicaIdentity::Default => format!("run `ALTER TABLE {name} REPLICA IDENTITY DEFAULT` at the source."),
                ReplicaIdentity::Full | ReplicaIdentity::Index | ReplicaIdentity::Nothing => format!(
                    "run `ALTER TABLE {name} REPLICA IDENTITY FULL` at the source, and so for each partition made later."
                ),
            };
            self.report(self.mapping.from.span.clone(), finding.hint(hint));
        }
        for position in &draft.key {
            let column = &draft.columns[*position];
            if let DraftFrom::Meta(meta) = column.from
                && meta != Meta::Source
            {
                let message = format!("key column \"{}\" changes with every change of the row", column.target);
                let finding = Finding::error("bad-key", message);
                self.report(column.span.clone(), finding.hint("of meta only \"source\" can be part of a key."));
            }
            for read in column.from.reads() {
                if types::is_float(&types::without_modifier(&read.wire_type)) && draft.mask(read).is_none() {
                    let message = format!("key column \"{}\" is {}", column.target, read.type_name);
                    let finding = Finding::error("float-key", message).label("equal floats need not be found again");
                    self.report(draft.key_span.clone(), finding.hint("use a key of another type."));
                }
                let identified =
                    table.replica_identity == ReplicaIdentity::Full || table.identity_columns.contains(&read.name);
                if !identified {
                    let message = format!(
                        "key column \"{}\" needs \"{}\", which is outside the replica identity of \"{}\"",
                        column.target, read.name, table.name
                    );
                    let finding = Finding::error("key-outside-identity", message);
                    let hint = format!("a delete would not say which row it is: {full}, or choose another key.");
                    self.report(draft.key_span.clone(), finding.hint(hint));
                }
            }
        }
    }
}
