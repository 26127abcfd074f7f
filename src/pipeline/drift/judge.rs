//! What a change of a source table means for one mapping of it. Pure.

use crate::mapping::syntax::{ColumnFrom, TableMapping};
use crate::mapping::types::TypeChange;
use crate::source::layout::{BeforeText, Change, LayoutColumn, Storage};

/// What is to be done.
#[derive(Debug, Default)]
pub struct Judged {
    /// Columns that the target is to get.
    pub added: Vec<(LayoutColumn, Option<BeforeText>)>,
    /// Why the target is no longer what the source has.
    pub broken: Vec<String>,
    /// What somebody should hear of, and what the target can live with.
    pub notes: Vec<String>,
    /// Tables that became partitions: with rows that were not sent?
    pub attached: Vec<Storage>,
    /// Partitions in other files: emptied without a word?
    pub refiled: Vec<Storage>,
}

/// Judges all changes of a mapping's source table.
pub fn judge(mapping: &TableMapping, changes: &[Change]) -> Judged {
    let mut judged = Judged::default();
    for change in changes {
        match change {
            Change::OtherTable { old, new } => judged.broken.push(format!(
                "the table was dropped and created again, or another one has its name now (OID {new}, was {old})"
            )),
            Change::Added { column, before } => {
                if mapping.all_columns.is_some() && uses(mapping, &column.name) && !column.generated {
                    judged.added.push((column.clone(), before.clone()));
                }
            }
            Change::Dropped { column } if uses(mapping, column) => {
                judged.notes.push(format!("column \"{column}\" was dropped; the target keeps what it has in it"))
            }
            Change::Renamed { old, new } => {
                if let Some(why) = renamed(mapping, old, new) {
                    judged.broken.push(why);
                }
            }
            Change::Type { column, old, new, change: TypeChange::Different } if uses(mapping, column) => {
                judged.broken.push(format!(
                    "column \"{column}\" changed from {old} to {new}, and what its rows became was not sent"
                ));
            }
            Change::Rewritten { column } if uses(mapping, column) => judged.broken.push(format!(
                "an ALTER TABLE wrote column \"{column}\" of all rows anew, and what they became was not sent"
            )),
            Change::Attached(storage) => judged.attached.push(storage.clone()),
            Change::Refiled(storage) => judged.refiled.push(storage.clone()),
            Change::Gone(storage) => judged.notes.push(format!(
                "partition \"{}\" was detached or dropped; its rows stay in the target, for nothing was sent",
                storage.table()
            )),
            Change::Dropped { .. } | Change::Type { .. } | Change::Rewritten { .. } | Change::NewPartition(_) => {}
        }
    }
    judged
}

/// Why a renamed column cannot be followed; `None` if the mapping says where it goes.
fn renamed(mapping: &TableMapping, old: &str, new: &str) -> Option<String> {
    if mapping.all_columns.is_some() {
        let target = |name: &str| {
            let renamed = mapping.rename.iter().find(|(from, _)| from.value == name);
            renamed.map_or(name.to_owned(), |(_, to)| to.value.clone())
        };
        let matters = uses(mapping, old) || uses(mapping, new);
        let target_old = target(old);
        let why = format!(
            "column \"{old}\" was renamed to \"{new}\": say `rename = {{ {new} = \"{target_old}\" }}` in the mapping, or \
             rename the target's column"
        );
        return (matters && target(new) != target_old).then_some(why);
    }
    uses(mapping, old).then(|| format!("column \"{old}\" was renamed to \"{new}\": change the mapping"))
}

/// Does the mapping read this source column? Of an expression, as soon as it has the name in it.
fn uses(mapping: &TableMapping, name: &str) -> bool {
    if mapping.exclude.iter().any(|excluded| excluded.value == name) {
        return false;
    }
    let named = mapping.columns.iter().any(|column| match &column.from.value {
        ColumnFrom::Column(column) | ColumnFrom::Json { column, .. } => column == name,
        ColumnFrom::Sql(text) => text.contains(name),
        ColumnFrom::Value(_) | ColumnFrom::Meta(_) => false,
    });
    let filtered = mapping.filter.as_ref().is_some_and(|filter| filter.value.contains(name));
    mapping.all_columns.is_some() || named || filtered
}
