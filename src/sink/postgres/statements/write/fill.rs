//! Rows with holes, completed from what the target holds: first into a stage of target columns, then into the target.

use super::{ORIGIN, Writer, create_stage, in_temp};
use crate::catalog::quote_ident;
use crate::mapping::plan::{Output, OutputFrom};
use crate::sink::postgres::statements::held_by;

/// The target held the row before the batch.
const PRESENT: &str = "_tailwater_present";

impl Writer<'_> {
    /// Rows completed from their old place, as the target's columns. Done before anything is deleted; they are written
    /// with the other images, so that what this batch deletes is gone by then.
    pub(in super::super) fn fill(&self, from: &str) -> String {
        let at_origin = self.joined("o", ORIGIN);
        let first = &self.key_columns()[0];
        match &self.plan.filter {
            None => self.filled_stage(&format!(
                "(SELECT {} FROM {from} JOIN {} AS o ON {at_origin}) AS s",
                self.filled_inputs("o"),
                self.target
            )),
            Some(_) => self.filled_stage(&format!(
                "(SELECT {}, o.{first} IS NOT NULL AS {PRESENT}{} FROM {from} LEFT JOIN {} AS o ON {at_origin}) AS s",
                self.filled_inputs("o"),
                self.masks(),
                self.target
            )),
        }
    }

    /// The target may lack rows that the stream still speaks of: they are left out. One that may come to match the filter
    /// is none of these, and nobody has the values that were not sent.
    pub(in super::super) fn fill_tolerant(&self, from: &str) -> String {
        let first = &self.key_columns()[0];
        let columns = self.plan.outputs.iter().map(|output| quote_ident(&output.column));
        let columns: Vec<_> = columns
            .map(|column| format!("CASE WHEN o.{first} IS NOT NULL THEN o.{column} ELSE p.{column} END AS {column}"))
            .collect();
        // What either place holds, as one row.
        let held = format!("LATERAL (SELECT {}) AS h", columns.join(", "));
        let is_there = format!("h.{first} IS NOT NULL");
        let only = if self.plan.filter.is_some() { String::new() } else { format!(" WHERE {is_there}") };
        self.filled_stage(&format!(
            "(SELECT {}, {is_there} AS {PRESENT}{} FROM {from} LEFT JOIN {target} AS o ON {} LEFT JOIN {target} AS p ON {} \
             CROSS JOIN {held}{only}) AS s",
            self.filled_inputs("h"),
            self.masks(),
            self.joined("o", ORIGIN),
            self.joined("p", ""),
            target = self.target,
        ))
    }

    fn filled_stage(&self, from: &str) -> String {
        let mut columns: Vec<_> = (0..self.plan.outputs.len()).map(|output| format!("v{output}")).collect();
        let mut values: Vec<_> = (0..self.plan.outputs.len()).map(|output| self.value(output)).collect();
        if let Some(filter) = &self.plan.filter {
            columns.push("matches".to_owned());
            // A row that comes to match while the target lacks it cannot be completed: that must not pass in silence.
            let may_match = self.may_match(filter);
            values.push(format!(
                "CASE WHEN s.{PRESENT} THEN ({filter}) IS TRUE ELSE 1 / (CASE WHEN {may_match} THEN 0 ELSE 1 END) = 0 END"
            ));
        }
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {from}",
            in_temp(&self.stage("filled")),
            columns.join(", "),
            values.join(", ")
        )
    }

    /// Whether a row with holes that the target lacks may match, as far as the values that were sent tell.
    fn may_match(&self, filter: &str) -> String {
        let unchanged = self.plan.filter_inputs.iter().map(|&input| self.is_unchanged("s", input));
        let known: Vec<String> = unchanged.clone().flatten().collect();
        if known.is_empty() {
            return format!("({filter})");
        }
        // If nothing that the filter reads has changed, the row still does not match.
        let is_same = if unchanged.clone().all(|unchanged| unchanged.is_some()) {
            known.join(" AND ")
        } else {
            "false".to_owned()
        };
        format!("CASE WHEN {is_same} THEN false WHEN {} THEN true ELSE ({filter}) END", known.join(" OR "))
    }

    /// The inputs with their holes filled from the target row `old`.
    fn filled_inputs(&self, old: &str) -> String {
        let filled = self.plan.inputs.iter().enumerate().map(|(index, input)| {
            let name = quote_ident(&input.name);
            match (self.is_unchanged("s", index), held_by(self.plan, index)) {
                (Some(unchanged), Some(output)) => {
                    let column = quote_ident(&self.plan.outputs[output].column);
                    let stage_type = &input.stage_type;
                    format!("CASE WHEN {unchanged} THEN ({old}.{column})::{stage_type} ELSE s.{name} END AS {name}")
                }
                _ => format!("s.{name} AS {name}"),
            }
        });
        filled.collect::<Vec<_>>().join(", ")
    }

    /// The target row `alias` has the key of the row `s`, or of its old place.
    fn joined(&self, alias: &str, place: &str) -> String {
        let column_of = |input: usize| match place {
            "" => format!("s.{}", quote_ident(&self.plan.inputs[input].name)),
            place => format!("s.{place}_{input}"),
        };
        let renamed =
            |&input: &usize| format!("{} AS {}", column_of(input), quote_ident(&self.plan.inputs[input].name));
        let equal = self.plan.key.iter().map(|&index| {
            let output = &self.plan.outputs[index];
            let value = match &output.from {
                OutputFrom::Input { input, cast } => {
                    self.converted(&column_of(*input), *input, *cast, &output.target_type)
                }
                OutputFrom::Sql { text, inputs } if inputs.is_empty() => format!("({text})"),
                // A sub-select so that a key expression finds its inputs by their plain names.
                OutputFrom::Sql { text, .. } => {
                    let renamed = self.plan.key_inputs.iter().map(renamed).collect::<Vec<_>>().join(", ");
                    format!("(SELECT ({text}) FROM (SELECT {renamed}) AS s)")
                }
            };
            format!("{alias}.{} = {value}", quote_ident(&output.column))
        });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    pub(in super::super) fn create_filled(&self) -> String {
        let value = |(index, output): (usize, &Output)| format!("v{index} {}", output.target_type);
        let mut columns: Vec<_> = self.plan.outputs.iter().enumerate().map(value).collect();
        columns.extend(self.plan.filter.iter().map(|_| "matches boolean".to_owned()));
        create_stage(&self.stage("filled"), &columns)
    }

    pub(in super::super) fn write_filled(&self) -> Vec<String> {
        let filled = in_temp(&self.stage("filled"));
        let mut values: Vec<_> = (0..self.plan.outputs.len()).map(|output| format!("n.v{output}")).collect();
        values.extend(self.plan.deleted_column.iter().map(|_| "false".to_owned()));
        let at_key = self
            .plan
            .key
            .iter()
            .map(|&output| format!("t.{} = n.v{output}", quote_ident(&self.plan.outputs[output].column)));
        let unmatch = format!(
            "DELETE FROM {} AS t USING {filled} AS n WHERE n.matches IS NOT TRUE AND {}",
            self.target,
            at_key.collect::<Vec<_>>().join(" AND ")
        );
        let write = format!(
            "INSERT INTO {} AS t ({}) SELECT {} FROM {filled} AS n{}{}",
            self.target,
            self.columns().join(", "),
            values.join(", "),
            self.plan.filter.as_ref().map_or("", |_| " WHERE n.matches"),
            self.on_conflict(),
        );
        self.plan.filter.iter().map(|_| unmatch.clone()).chain([write.clone()]).collect()
    }
}
