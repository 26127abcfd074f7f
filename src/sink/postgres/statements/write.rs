//! The statements' texts.

mod fill;
mod remove;
mod replace;

use std::fmt::Write as _;

use super::{MASK_BITS, Merge, RowSet, SetColumn, toastable_inputs};
use crate::catalog::{TableName, quote_ident};
use crate::mapping::plan::{DeleteMode, Mode, OutputFrom, Plan};

const UNCHANGED: &str = "_tailwater_unchanged";
const ORIGIN: &str = "_tailwater_origin";

pub(super) struct Writer<'a> {
    pub plan: &'a Plan,
    number: usize,
    target: String,
    toastable: Vec<usize>,
}

impl<'a> Writer<'a> {
    pub fn new(plan: &'a Plan, number: usize) -> Self {
        Writer { plan, number, target: plan.target.quoted(), toastable: toastable_inputs(plan) }
    }

    pub fn stage(&self, group: &str) -> String {
        format!("tailwater_{group}_{}", self.number)
    }

    pub fn row_set(&self, group: &str, inputs: &[usize], extra: &[SetColumn]) -> RowSet {
        let stage = self.stage(group);
        let input = |&index: &usize| {
            let input = &self.plan.inputs[index];
            SetColumn { name: input.name.clone(), sql_type: input.stage_type.clone(), type_oid: input.stage_type_oid }
        };
        let columns: Vec<SetColumn> = inputs.iter().map(input).chain(extra.iter().cloned()).collect();
        let defined = columns.iter().map(|column| format!("{} {}", quote_ident(&column.name), column.sql_type));
        RowSet {
            create: create_stage(&stage, &defined.collect::<Vec<_>>()),
            copy: format!("COPY {} FROM STDIN (FORMAT binary)", in_temp(&stage)),
            fits_arrays: inputs.iter().all(|&input| !self.plan.inputs[input].nested),
            stage,
            columns,
        }
    }

    /// Masks of unchanged values, then the key of the row's old place.
    pub fn partial_columns(&self) -> Vec<SetColumn> {
        let mask = |word| SetColumn { name: format!("{UNCHANGED}_{word}"), sql_type: "int8".to_owned(), type_oid: 20 };
        let origin = self.plan.key_inputs.iter().map(|&input| SetColumn {
            name: format!("{ORIGIN}_{input}"),
            sql_type: self.plan.inputs[input].stage_type.clone(),
            type_oid: self.plan.inputs[input].stage_type_oid,
        });
        (0..self.mask_words()).map(mask).chain(origin).collect()
    }

    fn mask_words(&self) -> usize {
        self.toastable.len().div_ceil(MASK_BITS)
    }

    /// The statement over the stage and over arrays. The first parameter of a counted statement is the row count.
    pub fn over(&self, set: &RowSet, write: impl Fn(&str) -> String) -> Merge {
        let names: Vec<_> = set.columns.iter().map(|column| quote_ident(&column.name)).collect();
        let over_stage = write(&format!("{} AS s", in_temp(&set.stage)));
        let first = if over_stage.contains("$1::bigint") { 2 } else { 1 };
        let arrays: Vec<_> = set
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| format!("${}::{}[]", index + first, column.sql_type))
            .collect();
        let over_arrays = write(&format!("unnest({}) AS s({})", arrays.join(", "), names.join(", ")));
        Merge { over_stage, over_arrays }
    }

    /// An output's value over the row `s`.
    fn value(&self, output: usize) -> String {
        let output = &self.plan.outputs[output];
        match &output.from {
            OutputFrom::Input { input, cast } => {
                let name = format!("s.{}", quote_ident(&self.plan.inputs[*input].name));
                self.converted(&name, *input, *cast, &output.target_type)
            }
            OutputFrom::Sql { text, .. } => format!("({text})"),
        }
    }

    /// Assignment casts check lengths; an explicit cast would cut silently. Only text to what is no string needs one.
    fn converted(&self, name: &str, input: usize, cast: bool, target_type: &str) -> String {
        let is_needed = cast && self.plan.inputs[input].stage_type == "text" && !is_string(target_type);
        if is_needed { format!("{name}::{target_type}") } else { name.to_owned() }
    }

    fn columns(&self) -> Vec<String> {
        let mapped = self.plan.outputs.iter().map(|output| quote_ident(&output.column));
        mapped.chain(self.plan.deleted_column.iter().map(|column| quote_ident(column))).collect()
    }

    fn values(&self) -> Vec<String> {
        let mapped = (0..self.plan.outputs.len()).map(|output| self.value(output));
        mapped.chain(self.plan.deleted_column.iter().map(|_| "false".to_owned())).collect()
    }

    fn key_columns(&self) -> Vec<String> {
        self.plan.key.iter().map(|&output| quote_ident(&self.plan.outputs[output].column)).collect()
    }

    /// `k0`, `k1`, …: the key's values over `s`, named.
    fn key_values(&self) -> String {
        let named =
            self.plan.key.iter().enumerate().map(|(index, &output)| format!("{} AS k{index}", self.value(output)));
        named.collect::<Vec<_>>().join(", ")
    }

    /// The target row `t` has the key of `n`.
    fn key_matches(&self, target: &str) -> String {
        let columns = self.key_columns();
        let equal = columns.iter().enumerate().map(|(index, column)| format!("{target}.{column} = n.k{index}"));
        equal.collect::<Vec<_>>().join(" AND ")
    }

    fn matching(&self) -> String {
        self.plan.filter.as_ref().map(|filter| format!(" WHERE ({filter})")).unwrap_or_default()
    }

    pub fn upsert(&self, from: &str) -> String {
        format!(
            "INSERT INTO {} AS t ({}) SELECT {} FROM {from}{}{}",
            self.target,
            self.columns().join(", "),
            self.values().join(", "),
            self.matching(),
            self.on_conflict(),
        )
    }

    fn on_conflict(&self) -> String {
        let keys = self.key_columns();
        let set: Vec<_> = self
            .columns()
            .into_iter()
            .filter(|column| !keys.contains(column))
            .map(|column| format!("{column} = excluded.{column}"))
            .collect();
        match self.plan.mode {
            Mode::Append => String::new(),
            _ if self.plan.is_multiset() => String::new(),
            Mode::Upsert if !set.is_empty() => {
                format!(" ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), set.join(", "))
            }
            Mode::Upsert | Mode::InsertNew => format!(" ON CONFLICT ({}) DO NOTHING", keys.join(", ")),
        }
    }

    pub fn unmatch(&self, from: &str, filter: &str) -> String {
        format!(
            "DELETE FROM {} AS t USING (SELECT {} FROM {from} WHERE ({filter}) IS NOT TRUE) AS n WHERE {}",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    pub fn delete(&self, from: &str) -> String {
        format!(
            "DELETE FROM {} AS t USING (SELECT {} FROM {from}) AS n WHERE {}",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    pub fn soft_delete(&self, from: &str) -> String {
        let column = quote_ident(self.plan.deleted_column.as_deref().unwrap_or_default());
        format!(
            "UPDATE {} AS t SET {column} = true FROM (SELECT {} FROM {from}) AS n WHERE {} AND t.{column} IS NOT TRUE",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    /// A DELETE rather than TRUNCATE: a reader's snapshot taken before keeps seeing what it saw, foreign keys are
    /// respected, and no further privilege is needed.
    pub fn truncate(&self) -> String {
        let of_this_source = self.of_this_source();
        match (&self.plan.deleted_column, self.plan.delete) {
            (Some(column), DeleteMode::Soft) => {
                let column = quote_ident(column);
                let and = if of_this_source.is_empty() { " WHERE" } else { " AND" };
                format!("UPDATE {} SET {column} = true{of_this_source}{and} {column} IS NOT TRUE", self.target)
            }
            _ => format!("DELETE FROM {}{of_this_source}", self.target),
        }
    }

    /// Restricts a statement to the rows that this source owns, where several feed the table.
    fn of_this_source(&self) -> String {
        if self.plan.shared_target {
            let literal = self.plan.key.iter().filter_map(|&output| {
                let output = &self.plan.outputs[output];
                match &output.from {
                    OutputFrom::Sql { text, inputs } if inputs.is_empty() => {
                        Some(format!("{} = ({text})", quote_ident(&output.column)))
                    }
                    OutputFrom::Sql { .. } | OutputFrom::Input { .. } => None,
                }
            });
            format!(" WHERE {}", literal.collect::<Vec<_>>().join(" AND "))
        } else {
            String::new()
        }
    }

    pub fn clear(&self) -> String {
        format!("DELETE FROM {}{}", self.target, self.of_this_source())
    }

    pub fn is_empty(&self) -> String {
        format!("SELECT NOT EXISTS (SELECT FROM {}{})", self.target, self.of_this_source())
    }

    fn is_unchanged(&self, alias: &str, input: usize) -> Option<String> {
        let bit = self.toastable.iter().position(|&toastable| toastable == input)?;
        Some(format!("({alias}.{UNCHANGED}_{} & {}) <> 0", bit / MASK_BITS, 1i64 << (bit % MASK_BITS)))
    }

    fn masks(&self) -> String {
        (0..self.mask_words()).map(|word| format!(", s.{UNCHANGED}_{word}")).collect()
    }

    pub fn partial_update(&self, from: &str) -> String {
        let keys = self.key_columns();
        let mut set: Vec<String> = Vec::new();
        let mut select = String::new();
        for (index, output) in self.plan.outputs.iter().enumerate() {
            let column = quote_ident(&output.column);
            if keys.contains(&column) {
                continue;
            }
            let kept = match &output.from {
                OutputFrom::Input { input, .. } => self.is_unchanged("n", *input),
                OutputFrom::Sql { .. } => None,
            };
            set.push(match kept {
                // A column that is its own old value keeps its TOAST pointer: nothing is read or written again.
                Some(kept) => format!("{column} = CASE WHEN {kept} THEN t.{column} ELSE n.v{index} END"),
                None => format!("{column} = n.v{index}"),
            });
            write!(select, ", {} AS v{index}", self.value(index)).expect("writing to a string cannot fail");
        }
        set.extend(self.plan.deleted_column.iter().map(|column| format!("{} = false", quote_ident(column))));
        format!(
            "UPDATE {} AS t SET {} FROM (SELECT {}{select}{} FROM {from}) AS n WHERE {}",
            self.target,
            set.join(", "),
            self.key_values(),
            self.masks(),
            self.key_matches("t"),
        )
    }

    pub fn always_fill(&self) -> bool {
        let toastable = |inputs: &[usize]| inputs.iter().any(|&input| self.plan.inputs[input].toastable);
        let is_computed = self.plan.outputs.iter().any(|output| match &output.from {
            OutputFrom::Sql { inputs, .. } => toastable(inputs),
            // The old value and the new one would be of different types in one CASE.
            OutputFrom::Input { input, cast } => {
                *cast && toastable(&[*input]) && self.plan.inputs[*input].stage_type != "text"
            }
        });
        let is_all_key = self.plan.key.len() == self.plan.outputs.len() && self.plan.deleted_column.is_none();
        is_computed || is_all_key || self.plan.filter.is_some() || self.plan.mode != Mode::Upsert
    }

    pub fn direct_inputs(&self) -> Option<Vec<usize>> {
        let plain = self.plan.filter.is_none()
            && self.plan.deleted_column.is_none()
            && self.plan.delete == DeleteMode::Hard
            && self.plan.mode != Mode::InsertNew;
        let input = |output: &crate::mapping::plan::Output| match &output.from {
            OutputFrom::Input { input, cast: false } => Some(*input),
            OutputFrom::Input { .. } | OutputFrom::Sql { .. } => None,
        };
        plain.then(|| self.plan.outputs.iter().map(input).collect::<Option<Vec<_>>>()).flatten()
    }

    pub fn copy_into_target(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.target, self.columns().join(", "))
    }
}

fn in_temp(stage: &str) -> String {
    TableName::new("pg_temp", stage).quoted()
}

fn create_stage(stage: &str, columns: &[String]) -> String {
    let name = in_temp(stage);
    format!("CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({}) ON COMMIT DELETE ROWS", columns.join(", "))
}

/// Anything may be assigned to these, and their lengths are checked then.
fn is_string(target_type: &str) -> bool {
    let base = target_type.split('(').next().unwrap_or_default().trim_end();
    matches!(base, "text" | "character varying" | "varchar" | "character" | "bpchar" | "name")
}
