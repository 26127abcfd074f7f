//! The SQL of a plan, written once at start.
//!
//! Rows reach the sink in up to three groups per table, each with its own row set: plain new images (*upsert*), keys to
//! delete (*delete*), and images with holes (*partial*: unchanged TOASTed values that only the target has). A row set is
//! either a temporary stage table filled by COPY or `unnest` over array parameters; the statements are the same over both.

use std::fmt::Write as _;

use crate::catalog::{TableName, quote_ident};
use crate::mapping::plan::{DeleteMode, Mode, OutputFrom, Plan};

/// One column of a row set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetColumn {
    pub name: String,
    /// As SQL text.
    pub sql_type: String,
    pub type_oid: u32,
}

/// A statement over a row set, in both its forms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Merge {
    pub over_stage: String,
    pub over_arrays: String,
}

/// A group's row set and what is done with it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowSet {
    /// Name of the stage in `pg_temp`.
    pub stage: String,
    pub columns: Vec<SetColumn>,
    /// The row set can stand in array parameters: no column is itself an array or composite.
    pub fits_arrays: bool,
    pub create: String,
    pub copy: String,
}

/// All statements of one plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TableStatements {
    /// COPY straight into the target, where every output is an input of the same type.
    pub copy_into_target: Option<String>,
    /// Inputs in the order of `copy_into_target`'s columns.
    pub direct_inputs: Vec<usize>,
    pub upsert_set: RowSet,
    pub upsert: Merge,
    /// With `where`: rows that stopped matching leave the target.
    pub unmatch: Option<Merge>,
    pub delete_set: RowSet,
    /// Deletes of the source, as the mapping wants them; `None` where they are ignored.
    pub delete: Option<Merge>,
    /// Rows whose key changed leave their old place, whatever the mapping says of deletes.
    pub move_away: Merge,
    pub partial_set: RowSet,
    /// Same key: the present columns are set.
    pub partial_update: Merge,
    /// Key changed, or an expression needs the unchanged value: it is read from the row's old place.
    pub partial_fill: Merge,
    /// With `where`: filled rows that stopped matching leave the target.
    pub partial_unmatch: Option<Merge>,
    /// The same while catching up, when the row may have moved before the snapshot was taken: what is not at the old
    /// place is looked for at the new one.
    pub partial_fill_tolerant: Merge,
    pub truncate: String,
    /// Removes what an interrupted copy of this source had written.
    pub clear: String,
    /// Does the target hold no row of this source?
    pub is_empty: String,
    /// An expression or the filter reads a value that may be unchanged: partial rows are always filled.
    pub always_fill: bool,
}

impl TableStatements {
    fn merges(&self) -> Vec<&Merge> {
        let optional = [&self.unmatch, &self.delete, &self.partial_unmatch];
        let always =
            [&self.upsert, &self.move_away, &self.partial_update, &self.partial_fill, &self.partial_fill_tolerant];
        optional.into_iter().flatten().chain(always).collect()
    }

    /// Every statement, for a sink to look at before it is needed.
    pub fn all(&self) -> Vec<&str> {
        let merges = self.merges();
        let over_stage = merges.iter().map(|merge| merge.over_stage.as_str());
        let sets = [(&self.upsert_set, &self.upsert), (&self.delete_set, &self.move_away)];
        let over_arrays =
            sets.into_iter().filter(|(set, _)| set.fits_arrays).map(|(_, merge)| merge.over_arrays.as_str());
        self.copy_into_target.as_deref().into_iter().chain(over_stage).chain(over_arrays).collect()
    }

    /// The statements over stages, which take no parameter but the row count.
    pub fn over_stages(&self) -> Vec<&str> {
        self.merges().into_iter().map(|merge| merge.over_stage.as_str()).collect()
    }
}

const UNCHANGED: &str = "_tailwater_unchanged";

/// Bit of a toastable input in the mask of unchanged values; `None` for inputs that always come.
pub fn unchanged_bit(plan: &Plan, input: usize) -> Option<u32> {
    if !plan.inputs[input].toastable {
        return None;
    }
    let bit = plan.inputs[..input].iter().filter(|earlier| earlier.toastable).count();
    u32::try_from(bit).ok().filter(|&bit| bit < 63)
}

impl TableStatements {
    /// `number` makes the stages' names unique in the session.
    pub fn new(plan: &Plan, number: usize) -> Self {
        let writer = Writer { plan, target: plan.target.quoted() };
        let inputs: Vec<usize> = (0..plan.inputs.len()).collect();
        let upsert_set = writer.row_set(number, "upsert", &inputs, &[]);
        let delete_set = writer.row_set(number, "delete", &plan.key_inputs, &[]);
        let partial_set = writer.row_set(number, "partial", &inputs, &writer.partial_columns());
        let direct_inputs = writer.direct_inputs();
        TableStatements {
            copy_into_target: direct_inputs.as_ref().map(|_| writer.copy_into_target()),
            direct_inputs: direct_inputs.unwrap_or_default(),
            upsert: writer.over(&upsert_set, |from| writer.upsert(from)),
            unmatch: plan.filter.as_ref().map(|filter| writer.over(&upsert_set, |from| writer.unmatch(from, filter))),
            delete: match plan.delete {
                DeleteMode::Hard => Some(writer.over(&delete_set, |from| writer.delete(from))),
                DeleteMode::Soft => Some(writer.over(&delete_set, |from| writer.soft_delete(from))),
                DeleteMode::Ignore => None,
            },
            move_away: writer.over(&delete_set, |from| writer.delete(from)),
            partial_update: writer.over(&partial_set, |from| counted(&writer.partial_update(from))),
            // Under a filter fewer rows than the set has may be written, so they cannot be counted.
            partial_fill: writer.over(&partial_set, |from| match plan.filter {
                None => counted(&writer.partial_fill(from, false)),
                Some(_) => writer.partial_fill(from, false),
            }),
            partial_unmatch: plan
                .filter
                .as_ref()
                .map(|filter| writer.over(&partial_set, |from| writer.unmatch(&writer.filled(from, true), filter))),
            partial_fill_tolerant: writer.over(&partial_set, |from| writer.partial_fill(from, true)),
            truncate: writer.truncate(),
            clear: format!("DELETE FROM {}{}", writer.target, writer.of_this_source()),
            is_empty: format!("SELECT NOT EXISTS (SELECT FROM {}{})", writer.target, writer.of_this_source()),
            always_fill: writer.always_fill(),
            upsert_set,
            delete_set,
            partial_set,
        }
    }
}

/// Fails with `division_by_zero` unless exactly as many rows were touched as the row set has (its count is the last
/// parameter): the transaction then rolls back although its COMMIT is already under way.
fn counted(statement: &str) -> String {
    format!("WITH touched AS ({statement} RETURNING 1) SELECT 1 / (count(*) = $1::bigint)::int FROM touched")
}

struct Writer<'a> {
    plan: &'a Plan,
    target: String,
}

impl Writer<'_> {
    fn row_set(&self, number: usize, group: &str, inputs: &[usize], extra: &[SetColumn]) -> RowSet {
        let stage = format!("tailwater_{group}_{number}");
        let input = |&index: &usize| {
            let input = &self.plan.inputs[index];
            SetColumn { name: input.name.clone(), sql_type: input.stage_type.clone(), type_oid: input.stage_type_oid }
        };
        let columns: Vec<SetColumn> = inputs.iter().map(input).chain(extra.iter().cloned()).collect();
        let defined: Vec<_> =
            columns.iter().map(|column| format!("{} {}", quote_ident(&column.name), column.sql_type)).collect();
        let name = TableName::new("pg_temp", &stage).quoted();
        RowSet {
            create: format!(
                "CREATE TEMPORARY TABLE IF NOT EXISTS {name} ({}) ON COMMIT DELETE ROWS",
                defined.join(", ")
            ),
            copy: format!("COPY {name} FROM STDIN (FORMAT binary)"),
            fits_arrays: inputs.iter().all(|&input| !self.plan.inputs[input].nested),
            stage,
            columns,
        }
    }

    /// Mask of unchanged values, then the key of the row's old place.
    fn partial_columns(&self) -> Vec<SetColumn> {
        let mask = SetColumn { name: UNCHANGED.to_owned(), sql_type: "int8".to_owned(), type_oid: 20 };
        let origin = self.plan.key_inputs.iter().map(|&input| SetColumn {
            name: format!("_tailwater_origin_{input}"),
            sql_type: self.plan.inputs[input].stage_type.clone(),
            type_oid: self.plan.inputs[input].stage_type_oid,
        });
        std::iter::once(mask).chain(origin).collect()
    }

    /// The statement over the stage and over arrays. The first parameter of a counted statement is the row count.
    fn over(&self, set: &RowSet, write: impl Fn(&str) -> String) -> Merge {
        let names: Vec<_> = set.columns.iter().map(|column| quote_ident(&column.name)).collect();
        let stage = TableName::new("pg_temp", &set.stage).quoted();
        let over_stage = write(&format!("{stage} AS s"));
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
                let input = &self.plan.inputs[*input];
                let name = format!("s.{}", quote_ident(&input.name));
                // Assignment casts check lengths; an explicit cast would cut silently. Only text to another type needs one.
                if *cast && input.stage_type == "text" { format!("{name}::{}", output.target_type) } else { name }
            }
            OutputFrom::Sql { text, .. } => format!("({text})"),
        }
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

    fn upsert(&self, from: &str) -> String {
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
            Mode::Upsert if !set.is_empty() => {
                format!(" ON CONFLICT ({}) DO UPDATE SET {}", keys.join(", "), set.join(", "))
            }
            Mode::Upsert | Mode::InsertNew => format!(" ON CONFLICT ({}) DO NOTHING", keys.join(", ")),
        }
    }

    fn unmatch(&self, from: &str, filter: &str) -> String {
        format!(
            "DELETE FROM {} AS t USING (SELECT {} FROM {from} WHERE ({filter}) IS NOT TRUE) AS n WHERE {}",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    fn delete(&self, from: &str) -> String {
        format!(
            "DELETE FROM {} AS t USING (SELECT {} FROM {from}) AS n WHERE {}",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    fn soft_delete(&self, from: &str) -> String {
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
    fn truncate(&self) -> String {
        let of_this_source = self.of_this_source();
        match (&self.plan.deleted_column, self.plan.delete) {
            (Some(column), DeleteMode::Soft) => {
                format!("UPDATE {} SET {} = true{of_this_source}", self.target, quote_ident(column))
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

    fn is_unchanged(&self, alias: &str, input: usize) -> Option<String> {
        unchanged_bit(self.plan, input).map(|bit| format!("({alias}.{UNCHANGED} & {}) <> 0", 1i64 << bit))
    }

    fn partial_update(&self, from: &str) -> String {
        let keys = self.key_columns();
        let mut set = String::new();
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
            let separator = if set.is_empty() { "" } else { ", " };
            match kept {
                // A column that is its own old value keeps its TOAST pointer: nothing is read or written again.
                Some(kept) => write!(set, "{separator}{column} = CASE WHEN {kept} THEN t.{column} ELSE n.v{index} END"),
                None => write!(set, "{separator}{column} = n.v{index}"),
            }
            .expect("writing to a string cannot fail");
            write!(select, ", {} AS v{index}", self.value(index)).expect("writing to a string cannot fail");
        }
        if let Some(column) = &self.plan.deleted_column {
            write!(set, ", {} = false", quote_ident(column)).expect("writing to a string cannot fail");
        }
        format!(
            "UPDATE {} AS t SET {set} FROM (SELECT {}{select}, s.{UNCHANGED} FROM {from}) AS n WHERE {}",
            self.target,
            self.key_values(),
            self.key_matches("t"),
        )
    }

    /// Rows are completed from their old place, then upserted like any other.
    fn partial_fill(&self, from: &str, tolerant: bool) -> String {
        self.upsert(&self.filled(from, tolerant))
    }

    /// The row set `s` with its holes filled.
    fn filled(&self, from: &str, tolerant: bool) -> String {
        let filled = self.plan.inputs.iter().enumerate().map(|(index, input)| {
            let name = quote_ident(&input.name);
            match (self.is_unchanged("s", index), self.copied_to(index)) {
                (Some(unchanged), Some(column)) => {
                    let old = if tolerant {
                        format!(
                            "CASE WHEN o.{0} IS NOT NULL THEN o.{column} ELSE p.{column} END",
                            self.key_columns()[0]
                        )
                    } else {
                        format!("o.{column}")
                    };
                    format!("CASE WHEN {unchanged} THEN ({old})::{} ELSE s.{name} END AS {name}", input.stage_type)
                }
                _ => format!("s.{name} AS {name}"),
            }
        });
        let filled = filled.collect::<Vec<_>>().join(", ");
        let at_origin = self.joined("o", true);
        let join = if tolerant {
            let present = self.key_columns().remove(0);
            format!(
                "LEFT JOIN {0} AS o ON {at_origin} LEFT JOIN {0} AS p ON {1} WHERE o.{present} IS NOT NULL OR p.{present} IS NOT NULL",
                self.target,
                self.joined("p", false)
            )
        } else {
            format!("JOIN {} AS o ON {at_origin}", self.target)
        };
        format!("(SELECT {filled} FROM {from} {join}) AS s")
    }

    /// The target row `alias` has the key of the row `s`, or of its old place.
    fn joined(&self, alias: &str, at_origin: bool) -> String {
        let renamed = |&input: &usize| {
            let name = quote_ident(&self.plan.inputs[input].name);
            if at_origin { format!("s.\"_tailwater_origin_{input}\" AS {name}") } else { format!("s.{name} AS {name}") }
        };
        let renamed = self.plan.key_inputs.iter().map(renamed).collect::<Vec<_>>().join(", ");
        let equal = self.plan.key.iter().map(|&output| {
            let column = quote_ident(&self.plan.outputs[output].column);
            // A sub-select so that a key expression finds its inputs by their plain names.
            format!("{alias}.{column} = (SELECT {} FROM (SELECT {renamed}) AS s)", self.value(output))
        });
        equal.collect::<Vec<_>>().join(" AND ")
    }

    /// The target column that holds an input as it is.
    fn copied_to(&self, input: usize) -> Option<String> {
        self.plan.outputs.iter().find_map(|output| match &output.from {
            OutputFrom::Input { input: from, .. } if *from == input => Some(quote_ident(&output.column)),
            OutputFrom::Input { .. } | OutputFrom::Sql { .. } => None,
        })
    }

    fn always_fill(&self) -> bool {
        let toastable = |inputs: &[usize]| inputs.iter().any(|&input| self.plan.inputs[input].toastable);
        let in_outputs = self.plan.outputs.iter().any(|output| match &output.from {
            OutputFrom::Sql { inputs, .. } => toastable(inputs),
            OutputFrom::Input { .. } => false,
        });
        in_outputs || self.plan.filter.is_some()
    }

    fn direct_inputs(&self) -> Option<Vec<usize>> {
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

    fn copy_into_target(&self) -> String {
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.target, self.columns().join(", "))
    }
}
