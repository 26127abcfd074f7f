//! The statements that write one target table of ClickHouse, made once.
//!
//! Whole rows and tombstones are inserted; nothing is ever changed in place. A row of which the source left large values
//! unsent is completed from the target inside one INSERT … SELECT, which also leaves out what a crash after an earlier try
//! has already written: reading a value from where it was only works before the row has moved. So such a batch comes into
//! the target by one insert, see [`Gather`].

mod complete;

pub use complete::{Complete, Missing, Places};

use crate::mapping::clickhouse::{DELETED_COLUMN, VERSION_COLUMN, quote_ident, quote_literal, quoted};
use crate::mapping::plan::{InputFrom, Meta, OutputFrom, Plan};

/// What every row carries beside the mapping's columns.
const SERVICE_COLUMNS: &str = "`_version` UInt128, `_deleted` UInt8";

/// One table's statements.
#[derive(Debug)]
pub struct TableStatements {
    /// Straight into the target.
    pub direct: Inserts,
    pub gather: Gather,
    pub write_inputs: Vec<usize>,
    /// Which of `write_inputs` the key is computed from.
    pub writes_key: Vec<bool>,
    /// Tombstones may stand among the rows of `write`: nothing is computed from their empty columns.
    pub writes_tombstones: bool,
    /// Inputs that the key is computed from.
    pub bury_inputs: Vec<usize>,
    pub stage: Stage,
    /// Where the key's values of a row's old place are its key inputs as they are.
    pub finds_origin: bool,
    parts: Parts,
}

/// What puts rows into one table, the target or one like it.
#[derive(Debug)]
pub struct Inserts {
    /// Inserts whole rows of `write_inputs`, version and deleted flag.
    pub write: String,
    /// Inserts tombstones of `bury_inputs` and a version.
    pub bury: String,
    /// Inserts the staged rows with what they lack.
    pub complete: Complete,
}

/// The session's table of a batch's rows as the target is to have them, so that all of them come by one insert. In two, a
/// death between them would leave a row that stands where another came from, and that other one nowhere: smaller batches,
/// tried after it, would look for its values in vain.
#[derive(Debug)]
pub struct Gather {
    /// Afresh for each batch: the target's types may have been altered.
    pub drop: String,
    pub create: String,
    pub inserts: Inserts,
    /// Into the target.
    pub land: String,
}

/// The session's table of rows that the target completes.
#[derive(Debug)]
pub struct Stage {
    pub create: String,
    pub clear: String,
    /// Takes all inputs, a flag for each of `toastable`, the key inputs of a place, the versions that the row had there
    /// (from, and up to but without), and its own.
    pub fill: String,
    /// Takes the key's inputs and a version.
    pub fill_keys: String,
    /// Inputs that an UPDATE may leave unsent.
    pub toastable: Vec<usize>,
    /// Of each input, whether it is one of `toastable`.
    pub is_toastable: Vec<bool>,
    /// Marks the staged keys' rows as deleted (`delete = "soft"`).
    pub mark: String,
}

/// What truncations are made of.
#[derive(Debug)]
struct Parts {
    target: String,
    key: String,
    all: String,
    /// The deleted column, quoted.
    deleted: Option<String>,
    own_rows: Option<String>,
}

impl TableStatements {
    pub fn new(plan: &Plan, number: usize) -> TableStatements {
        let temporary = |name: &str| quote_ident(&format!("_tailwater_{name}_{number}"));
        let writer = Writer { plan, stage: temporary("stage") };
        let is_direct = plan.filter.is_none()
            && plan.deleted_column.is_none()
            && plan.outputs.iter().all(|output| matches!(output.from, OutputFrom::Input { cast: false, .. }));
        let bury_inputs = writer.key_reads();
        let write_inputs = if is_direct { writer.output_inputs() } else { (0..plan.inputs.len()).collect() };
        let toastable = writer.toastable();
        let inserts = |into: &str| Inserts {
            write: if is_direct { writer.direct(into) } else { writer.computed(into) },
            bury: writer.bury(into, &bury_inputs),
            complete: writer.complete(into, &toastable),
        };
        TableStatements {
            direct: inserts(&writer.target()),
            gather: writer.gather(&temporary("batch"), &inserts),
            writes_key: write_inputs.iter().map(|input| bury_inputs.contains(input)).collect(),
            write_inputs,
            writes_tombstones: is_direct,
            stage: writer.stage(&bury_inputs, toastable),
            finds_origin: plan.key.iter().all(|&key| match &plan.outputs[key].from {
                OutputFrom::Input { cast, .. } => !cast,
                OutputFrom::Sql { .. } => false,
            }),
            bury_inputs,
            parts: writer.parts(),
        }
    }

    /// Empties the table as of a version: newer rows stay, and older ones that come again stay dead.
    pub fn truncate(&self, version: u128, softly: bool) -> String {
        let Parts { target, key, all, deleted, own_rows } = &self.parts;
        let own = own_rows.as_ref().map(|own| format!(" AND {own}")).unwrap_or_default();
        match deleted {
            Some(deleted) if softly => format!(
                "INSERT INTO {target} ({all}, {deleted}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT {all}, true, \
                 toUInt128('{version}'), 0 FROM {target} FINAL WHERE {VERSION_COLUMN} < toUInt128('{version}') \
                 AND {DELETED_COLUMN} = 0{own}"
            ),
            _ => format!(
                "INSERT INTO {target} ({key}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT {key}, toUInt128('{version}'), 1 \
                 FROM {target} FINAL WHERE {VERSION_COLUMN} < toUInt128('{version}') AND {DELETED_COLUMN} = 0{own}"
            ),
        }
    }

    /// Removes what a copy that was cut short has left: all of the table, or this source's part of it.
    pub fn clear(&self) -> String {
        match &self.parts.own_rows {
            Some(own) => format!("ALTER TABLE {} DELETE WHERE {own} SETTINGS mutations_sync = 2", self.parts.target),
            None => format!("TRUNCATE TABLE {}", self.parts.target),
        }
    }

    /// Buries what is below a version, without asking whether it is the latest of its key: where there is nothing, which is
    /// the rule, only versions are read.
    pub fn bury_below(&self, version: u128) -> String {
        let Parts { target, key, own_rows, .. } = &self.parts;
        let own = own_rows.as_ref().map(|own| format!(" AND {own}")).unwrap_or_default();
        format!(
            "INSERT INTO {target} ({key}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT DISTINCT {key}, \
             toUInt128('{version}'), 1 FROM {target} WHERE {VERSION_COLUMN} < toUInt128('{version}'){own}"
        )
    }

    /// Removes rows of lower versions for good.
    pub fn remove_below(&self, version: u128) -> String {
        let own = self.parts.own_rows.as_ref().map(|own| format!(" AND {own}")).unwrap_or_default();
        format!(
            "ALTER TABLE {} DELETE WHERE {VERSION_COLUMN} < toUInt128('{version}'){own} SETTINGS mutations_sync = 2",
            self.parts.target
        )
    }

    /// Whether the table, or this source's part of it, holds anything: one row of one number.
    pub fn is_empty(&self) -> String {
        let own = self.parts.own_rows.as_ref().map(|own| format!(" WHERE {own}")).unwrap_or_default();
        format!("SELECT count() = 0 FROM (SELECT 1 FROM {}{own} LIMIT 1)", self.parts.target)
    }
}

struct Writer<'a> {
    plan: &'a Plan,
    /// Quoted.
    stage: String,
}

impl Writer<'_> {
    fn target(&self) -> String {
        quoted(&self.plan.target)
    }

    fn output_inputs(&self) -> Vec<usize> {
        let input = |from: &OutputFrom| match from {
            OutputFrom::Input { input, .. } => Some(*input),
            OutputFrom::Sql { .. } => None,
        };
        self.plan.outputs.iter().filter_map(|output| input(&output.from)).collect()
    }

    /// Inputs that the key is computed from, those that only the daemon knows included.
    fn key_reads(&self) -> Vec<usize> {
        let mut reads: Vec<usize> = Vec::new();
        for &key in &self.plan.key {
            match &self.plan.outputs[key].from {
                OutputFrom::Input { input, .. } => reads.push(*input),
                OutputFrom::Sql { inputs, .. } => reads.extend(inputs),
            }
        }
        reads.sort_unstable();
        reads.dedup();
        reads
    }

    fn columns(&self, outputs: impl IntoIterator<Item = usize>) -> String {
        let names: Vec<_> = outputs.into_iter().map(|output| quote_ident(&self.plan.outputs[output].column)).collect();
        names.join(", ")
    }

    fn all(&self) -> String {
        self.columns(0..self.plan.outputs.len())
    }

    /// An output's value over the inputs' names.
    fn expression(&self, output: usize) -> String {
        let output = &self.plan.outputs[output];
        match &output.from {
            OutputFrom::Input { input, cast } => {
                let name = quote_ident(&self.plan.inputs[*input].name);
                if *cast { convert(&name, &output.target_type) } else { name }
            }
            OutputFrom::Sql { text, .. } => text.clone(),
        }
    }

    /// 1 where the row does not belong into the target.
    fn deleted(&self) -> String {
        match &self.plan.filter {
            Some(filter) => format!("if(ifNull(({filter}\n), 0) = 0, 1, {DELETED_COLUMN})"),
            None => DELETED_COLUMN.to_owned(),
        }
    }

    fn structure(&self, inputs: &[usize]) -> String {
        let column = |&input: &usize| {
            let input = &self.plan.inputs[input];
            format!("{} {}", quote_ident(&input.name), input.stage_type)
        };
        inputs.iter().map(column).collect::<Vec<_>>().join(", ")
    }

    /// Inputs that an UPDATE may leave unsent.
    fn toastable(&self) -> Vec<usize> {
        (0..self.plan.inputs.len()).filter(|&input| self.plan.inputs[input].toastable).collect()
    }

    fn gather(&self, batch: &str, inserts: &impl Fn(&str) -> Inserts) -> Gather {
        let (mark_column, _) = self.mark("");
        let columns = format!("{}{mark_column}, {VERSION_COLUMN}, {DELETED_COLUMN}", self.all());
        let target = self.target();
        Gather {
            drop: format!("DROP TEMPORARY TABLE IF EXISTS {batch}"),
            create: format!("CREATE TEMPORARY TABLE {batch} ENGINE = Memory AS SELECT {columns} FROM {target} WHERE 0"),
            inserts: inserts(batch),
            land: format!("INSERT INTO {target} ({columns}) SELECT {columns} FROM {batch}"),
        }
    }

    fn direct(&self, into: &str) -> String {
        format!("INSERT INTO {into} ({}, {VERSION_COLUMN}, {DELETED_COLUMN}) FORMAT RowBinary", self.all())
    }

    fn computed(&self, into: &str) -> String {
        let every: Vec<usize> = (0..self.plan.inputs.len()).collect();
        let structure = format!("{}, {SERVICE_COLUMNS}", self.structure(&every));
        let values: Vec<_> = (0..self.plan.outputs.len()).map(|output| self.expression(output)).collect();
        let (mark_column, mark) = self.mark("false");
        format!(
            "INSERT INTO {into} ({}{mark_column}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT {}{mark}, {VERSION_COLUMN}, {} \
             FROM input({}) FORMAT RowBinary",
            self.all(),
            values.join(", "),
            self.deleted(),
            quote_literal(&structure)
        )
    }

    /// The deleted column and what is written into it, each with its comma.
    fn mark(&self, value: &str) -> (String, String) {
        match &self.plan.deleted_column {
            Some(column) => (format!(", {}", quote_ident(column)), format!(", {value}")),
            None => (String::new(), String::new()),
        }
    }

    fn key(&self) -> String {
        self.columns(self.plan.key.iter().copied())
    }

    fn key_values(&self) -> Vec<String> {
        self.plan.key.iter().map(|&key| self.expression(key)).collect()
    }

    fn bury(&self, into: &str, inputs: &[usize]) -> String {
        format!(
            "INSERT INTO {into} ({}, {VERSION_COLUMN}, {DELETED_COLUMN}) SELECT {}, {VERSION_COLUMN}, 1 FROM input({}) \
             FORMAT RowBinary",
            self.key(),
            self.key_values().join(", "),
            quote_literal(&format!("{}, `_version` UInt128", self.structure(inputs)))
        )
    }

    fn stage(&self, key_reads: &[usize], toastable: Vec<usize>) -> Stage {
        let plan = self.plan;
        let every: Vec<usize> = (0..plan.inputs.len()).collect();
        let names = |inputs: &[usize]| -> Vec<String> {
            inputs.iter().map(|&input| quote_ident(&plan.inputs[input].name)).collect()
        };
        let flags: Vec<String> = toastable.iter().map(|input| format!("`_hole_{input}`")).collect();
        let origins: Vec<String> = key_reads.iter().map(|input| format!("`_origin_{input}`")).collect();
        let origin_structure =
            key_reads.iter().zip(&origins).map(|(&input, name)| format!("{name} {}", plan.inputs[input].stage_type));
        let structure: Vec<String> = std::iter::once(self.structure(&every))
            .chain(flags.iter().map(|flag| format!("{flag} UInt8")))
            .chain(origin_structure)
            .chain(["`_since`", "`_before`", "`_version`"].map(|name| format!("{name} UInt128")))
            .collect();
        let versions = ["`_since`", "`_before`", "`_version`"].map(str::to_owned);
        let all_names: Vec<_> = names(&every).into_iter().chain(flags).chain(origins).chain(versions).collect();
        let key_names: Vec<_> = names(key_reads).into_iter().chain(["`_version`".to_owned()]).collect();
        let stage = &self.stage;
        Stage {
            create: format!("CREATE TEMPORARY TABLE IF NOT EXISTS {stage} ({}) ENGINE = Memory", structure.join(", ")),
            clear: format!("TRUNCATE TABLE {stage}"),
            fill: format!("INSERT INTO {stage} ({}) FORMAT RowBinary", all_names.join(", ")),
            fill_keys: format!("INSERT INTO {stage} ({}) FORMAT RowBinary", key_names.join(", ")),
            mark: self.mark_rows(),
            is_toastable: plan.inputs.iter().map(|input| input.toastable).collect(),
            toastable,
        }
    }

    /// The target's latest state of each of some keys: `_cur` (a tuple of these outputs), `_gone`, `_found`, `_at`.
    fn latest(&self, outputs: &[usize], keys: &str) -> String {
        let key = self.key();
        let columns = self.columns(outputs.iter().copied());
        format!(
            "SELECT {key}, argMax(tuple({columns}), {VERSION_COLUMN}) AS _cur, \
             argMax({DELETED_COLUMN}, {VERSION_COLUMN}) AS _gone, count() AS _found, max({VERSION_COLUMN}) AS _at \
             FROM {} WHERE ({key}) IN (SELECT {keys} FROM {}) GROUP BY {key}",
            self.target(),
            self.stage
        )
    }

    /// Joins `side`, which has the key's columns, to the staged rows by these values.
    fn join(&self, side: &str, values: &str) -> String {
        let on = self.plan.key.iter().enumerate().map(|(place, &key)| {
            format!("{side}.{} = s.`{values}{place}`", quote_ident(&self.plan.outputs[key].column))
        });
        on.collect::<Vec<_>>().join(" AND ")
    }

    /// The key of a row's old place. Where the key is computed it is taken to be the row's own.
    fn origin_values(&self) -> Vec<String> {
        let value = |&key: &usize| match &self.plan.outputs[key].from {
            OutputFrom::Input { input, cast: false } => format!("`_origin_{input}`"),
            _ => self.expression(key),
        };
        self.plan.key.iter().map(value).collect()
    }

    fn mark_rows(&self) -> String {
        let every: Vec<usize> = (0..self.plan.outputs.len()).collect();
        let values: Vec<_> = every.iter().map(|output| format!("c._cur.{}", output + 1)).collect();
        let keys = self.key_values();
        let staged: Vec<_> =
            keys.iter().enumerate().map(|(place, value)| format!("{value} AS `_key_{place}`")).collect();
        let (mark_column, mark) = self.mark("true");
        format!(
            "INSERT INTO {} ({}{mark_column}, {VERSION_COLUMN}, {DELETED_COLUMN}) \
             SELECT {}{mark}, s.{VERSION_COLUMN}, 0 FROM (SELECT {}, {VERSION_COLUMN} FROM {}) AS s \
             LEFT JOIN ({}) AS c ON {} WHERE c._found > 0 AND c._gone = 0 AND s.{VERSION_COLUMN} > c._at",
            self.target(),
            self.all(),
            values.join(", "),
            staged.join(", "),
            self.stage,
            self.latest(&every, &keys.join(", ")),
            self.join("c", "_key_"),
        )
    }

    fn parts(&self) -> Parts {
        // Of a target that several sources feed, only this one's rows are its own.
        let by_source = self.plan.shared_target.then(|| {
            self.plan.outputs.iter().find_map(|output| {
                let OutputFrom::Input { input, .. } = output.from else { return None };
                let is_source = self.plan.inputs[input].from == InputFrom::Meta(Meta::Source);
                is_source.then(|| format!("{} = {}", quote_ident(&output.column), quote_literal(&self.plan.source)))
            })
        });
        Parts {
            target: self.target(),
            key: self.key(),
            all: self.all(),
            deleted: self.plan.deleted_column.as_deref().map(quote_ident),
            own_rows: by_source.flatten(),
        }
    }
}

/// `tuple()` of nothing has no type.
fn kept_or_key(kept: &[usize], plan: &Plan) -> Vec<usize> {
    if kept.is_empty() { plan.key.clone() } else { kept.to_vec() }
}

fn convert(expression: &str, target_type: &str) -> String {
    crate::mapping::clickhouse::convert(expression, target_type)
}
