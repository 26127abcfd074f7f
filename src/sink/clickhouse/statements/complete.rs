//! The statement that completes rows of which the source left large values unsent.
//!
//! The values are where the row stood last, and where that is, only the target knows: of a batch that was tried before, some
//! rows may have moved already, and others may stand where they came from. So a row is staged once for each of its places,
//! with the versions that it had there, and stands where the latest version is one of these: it is written to its next place
//! before its tombstone is written, or another row, where it was. What is computed of a large value and others is computed
//! of the completed row.
//!
//! A row that stands nowhere, and whose own key does not hold something newer, is missing: the target lacks what it should
//! hold. A row that comes to match `where` is among these, since nobody has the values that the source left unsent. For one
//! that does not match there is a tombstone, as for a whole row: another may have stood at its key, of whose end nothing else
//! tells. Where the target may be ahead of the changes that come (a replay, a table that catches up), a row of which a place
//! holds what is newer than the row is left out: it is gone from there.

use super::{Writer, kept_or_key};
use crate::mapping::clickhouse::{DELETED_COLUMN, VERSION_COLUMN, quote_ident};
use crate::mapping::plan::{OutputFrom, Plan};

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
    /// INSERT … SELECT, up to what is selected from.
    head: String,
    /// The staged rows beside what the target holds, as a SELECT; the same row once for each of its places.
    rows: String,
    /// What `head` reads of `rows`, where that has other names there.
    named: Option<String>,
    has_filter: bool,
    /// Of a row's places the one where it stands, or else the one with the newest version.
    pick: String,
}

impl Complete {
    pub fn statement(&self, missing: Missing, places: Places) -> String {
        let Complete { head, rows, named, has_filter, pick } = self;
        let pick = if places == Places::Several { pick } else { "" };
        // The condition may be looked at for rows that another one has left out, and so holds both.
        let stands = match missing {
            Missing::Passes if !has_filter => "`_stands`".to_owned(),
            Missing::Passes => stands_or_throws("`_is_past`"),
            Missing::Fails => stands_or_throws("0"),
        };
        match named {
            None => format!("{head} FROM ({rows}{pick}) WHERE `_is_new` AND {stands}"),
            Some(named) => format!("{head} FROM (SELECT {named} FROM ({rows}{pick}) WHERE `_is_new` AND {stands})"),
        }
    }
}

fn stands_or_throws(unless: &str) -> String {
    format!(
        "if(`_stands` OR `_filtered`, 1, throwIf(`_is_new` AND NOT `_stands` AND NOT `_filtered` AND NOT {unless}, \
         'a row that the source changed is missing in the target'))"
    )
}

/// Where an output's value comes from if the row may lack what it reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// It reads nothing that may be unsent.
    Row,
    /// The target's own value, if something was unsent.
    Target,
    /// It is computed of the completed inputs.
    Completed,
}

/// The output that holds an input, where a value that was not sent is found again.
fn held_by(plan: &Plan, wanted: usize) -> Option<usize> {
    plan.outputs.iter().position(|output| matches!(output.from, OutputFrom::Input { input, .. } if input == wanted))
}

impl Writer<'_> {
    /// What an output reads of these inputs.
    fn reads(&self, output: usize, of: &[usize]) -> Vec<usize> {
        let reads: &[usize] = match &self.plan.outputs[output].from {
            OutputFrom::Input { input, .. } => std::slice::from_ref(input),
            OutputFrom::Sql { inputs, .. } => inputs,
        };
        reads.iter().copied().filter(|input| of.contains(input)).collect()
    }

    fn source(&self, output: usize, toastable: &[usize]) -> Source {
        let unsent = self.reads(output, toastable);
        match &self.plan.outputs[output].from {
            _ if unsent.is_empty() => Source::Row,
            OutputFrom::Sql { .. } if unsent.iter().all(|&input| held_by(self.plan, input).is_some()) => {
                Source::Completed
            }
            _ => Source::Target,
        }
    }

    pub(super) fn complete(&self, into: &str, toastable: &[usize]) -> Complete {
        let plan = self.plan;
        let outputs = || 0..plan.outputs.len();
        let of = |source: Source| outputs().filter(move |&output| self.source(output, toastable) == source);
        let every: Vec<usize> = (0..plan.inputs.len()).collect();
        // Inputs that are completed, with those that are read beside them.
        let inputs: Vec<usize> = every
            .iter()
            .copied()
            .filter(|&input| of(Source::Completed).any(|output| self.reads(output, &every).contains(&input)))
            .collect();
        let kept: Vec<usize> = of(Source::Target).collect();
        let held = |output: usize| {
            let place = kept.iter().position(|&kept| kept == output);
            format!("c._cur.{}", place.expect("an output that may be unknown is kept") + 1)
        };
        let value = |output: usize| match self.source(output, toastable) {
            Source::Row => Some(format!("s.`_out_{output}` AS `_value_{output}`")),
            Source::Target => {
                let holes: Vec<_> =
                    self.reads(output, toastable).iter().map(|input| format!("s.`_hole_{input}`")).collect();
                let holes = holes.join(" OR ");
                Some(format!("if(({holes}) != 0, {}, s.`_out_{output}`) AS `_value_{output}`", held(output)))
            }
            Source::Completed => None,
        };
        let completed = |&input: &usize| match held_by(plan, input).filter(|_| toastable.contains(&input)) {
            Some(output) => {
                let stage_type = &plan.inputs[input].stage_type;
                let is_alike = plan.outputs[output].target_type == *stage_type;
                let held = if is_alike { held(output) } else { super::convert(&held(output), stage_type) };
                format!("if(s.`_hole_{input}` != 0, {held}, s.`_in_{input}`) AS `_completed_{input}`")
            }
            None => format!("s.`_in_{input}` AS `_completed_{input}`"),
        };
        let own_keys: Vec<_> = (0..plan.key.len()).map(|place| format!("`_key_{place}`")).collect();
        let (mark_column, mark) = self.mark("false");
        let listed = |names: Vec<String>| names.join(", ");
        let read = |output: usize| match self.source(output, toastable) {
            Source::Completed => self.expression(output),
            Source::Row | Source::Target => format!("`_value_{output}`"),
        };
        let known = outputs().filter(|&output| self.source(output, toastable) != Source::Completed);
        let named = known
            .map(|output| format!("`_value_{output}`"))
            .chain(["`_at_last`".to_owned(), "`_filtered`".to_owned()])
            .chain(
                inputs
                    .iter()
                    .map(|&input| format!("`_completed_{input}` AS {}", quote_ident(&plan.inputs[input].name))),
            );
        Complete {
            has_filter: plan.filter.is_some(),
            head: format!(
                "INSERT INTO {into} ({}{mark_column}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT {}{mark}, `_at_last`, `_filtered`",
                self.all(),
                listed(outputs().map(read).collect()),
            ),
            rows: format!(
                "SELECT {}, {}, s.{VERSION_COLUMN} AS `_at_last`, \
                 s.`_filtered` AS `_filtered`, s.{VERSION_COLUMN} > d._at AS `_is_new`, \
                 c._at > s.{VERSION_COLUMN} AS `_is_past`, c._at AS `_latest`, \
                 c._found > 0 AND c._gone = 0 AND c._at >= s.`_since` AND c._at < s.`_before` AS `_stands` \
                 FROM ({}) AS s LEFT JOIN ({}) AS c ON {} LEFT JOIN ({}) AS d ON {}",
                listed(outputs().filter_map(value).chain(inputs.iter().map(completed)).collect()),
                listed(own_keys.iter().map(|key| format!("s.{key} AS {key}")).collect()),
                self.staged(toastable, &inputs),
                self.latest(&kept_or_key(&kept, plan), &self.origin_values().join(", ")),
                self.join("c", "_from_"),
                self.latest(&plan.key, &self.key_values().join(", ")),
                self.join("d", "_key_"),
            ),
            named: (!inputs.is_empty()).then(|| listed(named.collect())),
            pick: format!(" ORDER BY `_stands` DESC, `_latest` DESC LIMIT 1 BY {}", own_keys.join(", ")),
        }
    }

    /// The staged rows with all that is computed from their inputs as they came, and these inputs.
    fn staged(&self, toastable: &[usize], inputs: &[usize]) -> String {
        let plan = self.plan;
        let computed = (0..plan.outputs.len())
            .filter(|&output| self.source(output, toastable) != Source::Completed)
            .map(|output| format!("{} AS `_out_{output}`", self.expression(output)));
        let came = inputs.iter().map(|&input| format!("{} AS `_in_{input}`", quote_ident(&plan.inputs[input].name)));
        let named = |values: Vec<String>, name: &'static str| {
            values.into_iter().enumerate().map(move |(place, value)| format!("{value} AS `{name}{place}`"))
        };
        let flags = toastable.iter().map(|input| format!("`_hole_{input}`"));
        let filter = plan.filter.as_ref().map_or("0".to_owned(), |filter| format!("ifNull(({filter}\n), 0) = 0"));
        let columns: Vec<_> = computed
            .chain(came)
            .chain(named(self.key_values(), "_key_"))
            .chain(named(self.origin_values(), "_from_"))
            .chain(flags)
            .chain([format!("`_since`, `_before`, {VERSION_COLUMN}, {filter} AS `_filtered`")])
            .collect();
        format!("SELECT {} FROM {}", columns.join(", "), self.stage)
    }
}
