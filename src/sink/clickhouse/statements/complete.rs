//! The statement that completes rows of which the source left large values unsent.
//!
//! The values are where the row stood last, and where that is, only the target knows: of a batch that was tried before, some
//! rows may have moved already, and others may stand where they came from. So a row is staged once for each of its places,
//! with the versions that it had there, and stands where the latest version is one of these: it is written to its next place
//! before its tombstone is written, or another row, where it was.
//!
//! A row that stands nowhere, and whose own key does not hold something newer, is missing: the target lacks what it should
//! hold. A row that comes to match `where` is among these, since nobody has the values that the source left unsent; one that
//! does not match is left out. Where the target may be ahead of the changes that come (a replay, a table that catches up),
//! so is one of which a place holds what is newer than the row: it is gone from there.

use super::{Writer, kept_or_key};
use crate::mapping::clickhouse::{DELETED_COLUMN, VERSION_COLUMN};
use crate::mapping::plan::OutputFrom;

/// What becomes of a row that the target should hold and does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    Fails,
    /// It is left out: a later change removes it in any case.
    Passes,
}

/// How often rows are staged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Places {
    /// Each once.
    #[default]
    One,
    /// Some for several places.
    Several,
}

/// The statement in its parts.
#[derive(Debug)]
pub struct Complete {
    select: String,
    has_filter: bool,
    /// Of a row's places the one where it stands, or else the one with the newest version.
    pick: String,
}

impl Complete {
    pub fn statement(&self, missing: Missing, places: Places) -> String {
        let pick = if places == Places::Several { &self.pick } else { "" };
        // The condition may be looked at for rows that another one has left out, and so holds both.
        let stands = match missing {
            Missing::Passes if !self.has_filter => "`_stands`".to_owned(),
            Missing::Passes => stands_or_throws("`_filtered` AND NOT `_is_past`"),
            Missing::Fails => stands_or_throws("`_filtered`"),
        };
        format!("{}{pick}) WHERE `_is_new` AND {stands}", self.select)
    }
}

fn stands_or_throws(unless: &str) -> String {
    format!(
        "if(`_stands`, 1, throwIf(`_is_new` AND NOT `_stands` AND NOT {unless}, \
         'a row that the source changed is missing in the target'))"
    )
}

impl Writer<'_> {
    pub(super) fn complete(&self, into: &str, toastable: &[usize]) -> Complete {
        let plan = self.plan;
        // Outputs that may be unknown, with the inputs on which that depends.
        let depends = |output: usize| -> Vec<usize> {
            let reads: &[usize] = match &plan.outputs[output].from {
                OutputFrom::Input { input, .. } => std::slice::from_ref(input),
                OutputFrom::Sql { inputs, .. } => inputs,
            };
            reads.iter().copied().filter(|input| toastable.contains(input)).collect()
        };
        let outputs = || 0..plan.outputs.len();
        let kept: Vec<usize> = outputs().filter(|&output| !depends(output).is_empty()).collect();
        let value = |output: usize| {
            let holes: Vec<_> = depends(output).iter().map(|input| format!("s.`_hole_{input}`")).collect();
            match kept.iter().position(|&known| known == output) {
                Some(place) => {
                    let holes = holes.join(" OR ");
                    format!("if(({holes}) != 0, c._cur.{}, s.`_out_{output}`) AS `_value_{output}`", place + 1)
                }
                None => format!("s.`_out_{output}` AS `_value_{output}`"),
            }
        };
        let own_keys: Vec<_> = (0..plan.key.len()).map(|place| format!("`_key_{place}`")).collect();
        let (mark_column, mark) = self.mark("false");
        let listed = |names: Vec<String>| names.join(", ");
        Complete {
            has_filter: plan.filter.is_some(),
            select: format!(
                "INSERT INTO {into} ({}{mark_column}, {VERSION_COLUMN}, {DELETED_COLUMN}) \
                 SELECT {}{mark}, `_at_last`, `_filtered` FROM (SELECT {}, {}, s.{VERSION_COLUMN} AS `_at_last`, \
                 s.`_filtered` AS `_filtered`, s.{VERSION_COLUMN} > d._at AS `_is_new`, \
                 c._at > s.{VERSION_COLUMN} AS `_is_past`, c._at AS `_latest`, \
                 c._found > 0 AND c._gone = 0 AND c._at >= s.`_since` AND c._at < s.`_before` AS `_stands` \
                 FROM ({}) AS s LEFT JOIN ({}) AS c ON {} LEFT JOIN ({}) AS d ON {}",
                self.all(),
                listed(outputs().map(|output| format!("`_value_{output}`")).collect()),
                listed(outputs().map(value).collect()),
                listed(own_keys.iter().map(|key| format!("s.{key} AS {key}")).collect()),
                self.staged(toastable),
                self.latest(&kept_or_key(&kept, plan), &self.origin_values().join(", ")),
                self.join("c", "_from_"),
                self.latest(&plan.key, &self.key_values().join(", ")),
                self.join("d", "_key_"),
            ),
            pick: format!(" ORDER BY `_stands` DESC, `_latest` DESC LIMIT 1 BY {}", own_keys.join(", ")),
        }
    }

    /// The staged rows with all that is computed from their inputs.
    fn staged(&self, toastable: &[usize]) -> String {
        let plan = self.plan;
        let computed = (0..plan.outputs.len()).map(|output| format!("{} AS `_out_{output}`", self.expression(output)));
        let named = |values: Vec<String>, name: &'static str| {
            values.into_iter().enumerate().map(move |(place, value)| format!("{value} AS `{name}{place}`"))
        };
        let flags = toastable.iter().map(|input| format!("`_hole_{input}`"));
        let filter = plan.filter.as_ref().map_or("0".to_owned(), |filter| format!("ifNull(({filter}\n), 0) = 0"));
        let columns: Vec<_> = computed
            .chain(named(self.key_values(), "_key_"))
            .chain(named(self.origin_values(), "_from_"))
            .chain(flags)
            .chain([format!("`_since`, `_before`, {VERSION_COLUMN}, {filter} AS `_filtered`")])
            .collect();
        format!("SELECT {} FROM {}", columns.join(", "), self.stage)
    }
}
