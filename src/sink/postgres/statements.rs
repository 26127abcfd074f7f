//! The SQL of a plan, written once at start.
//!
//! Rows reach the sink in groups, each with its own row set: plain new images (*upsert*), keys to *delete*, to *move* away
//! from and to *mark*, and images with holes (unchanged TOASTed values that only the target has), which are either put in
//! place (*partial*) or completed first (*fill*) into a stage of target columns (*filled*). A row set is either a temporary
//! stage table filled by COPY or `unnest` over array parameters; the statements are the same over both.
//!
//! Where there is no key, rows to *remove* are told by all their values.
//!
//! Every group has a stage of its own: all groups of a batch run in one transaction, which is how long a stage keeps rows.

mod write;

use crate::mapping::plan::{DeleteMode, Mode, OutputFrom, Plan};
use write::Writer;

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

/// A group's rows.
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
    /// What finds rows by their key; `None` in mode `append`, and for a multiset.
    pub keyed: Option<Keyed>,
    /// Of a multiset only.
    pub removal: Option<Removal>,
    pub truncate: String,
    /// Removes what an interrupted copy of this source had written.
    pub clear: String,
    /// Does the target hold no row of this source?
    pub is_empty: String,
    /// Rows with holes are always completed before they are written: an expression or the filter reads them, or what is
    /// written is not what is held.
    pub always_fill: bool,
}

/// The statements that find rows by all their values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Removal {
    pub set: RowSet,
    /// Each row of the set takes one away that equals it; all of them must be there.
    pub remove: Merge,
    /// The same while catching up: a TRUNCATE that the snapshot had not yet to show may have taken rows from the copy.
    pub remove_tolerant: Merge,
}

/// Many new images of rows that the target holds, as far as the stream knows: an UPDATE costs half of what an upsert does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Replace {
    pub set: RowSet,
    /// Notes for the transaction whether it found every row.
    pub update: Merge,
    /// If it did not, all rows are upserted after all.
    pub upsert: Merge,
}

/// The statements that find rows by their key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Keyed {
    /// `None` where a key cannot be looked up as it comes, or where an upsert does more than replace.
    pub replace: Option<Replace>,
    /// With `where`: rows of the upsert set that stopped matching leave the target.
    pub unmatch: Option<Merge>,
    pub delete_set: RowSet,
    /// Deletes of the source, as the mapping wants them; `None` where they are ignored.
    pub delete: Option<Merge>,
    pub move_set: RowSet,
    /// Rows whose key changed leave their old place, whatever the mapping says of deletes.
    pub move_away: Merge,
    pub mark_set: RowSet,
    /// Rows that came and were deleted in one batch, where deletes are soft.
    pub mark: Option<Merge>,
    pub partial_set: RowSet,
    /// Same key: the present columns are set. `None` where holes are always filled.
    pub partial_update: Option<Merge>,
    pub fill_set: RowSet,
    /// Key changed, or a value is computed: holes are filled from the row's old place, into `filled`.
    pub fill: Merge,
    /// The same while catching up, when the row may have moved before the snapshot was taken: what is not at the old
    /// place is looked for at the new one, and what is at neither is left to the changes that follow.
    pub fill_tolerant: Merge,
    /// Creates the stage of filled rows.
    pub create_filled: String,
    pub filled_stage: String,
    /// From the stage of filled rows to the target.
    pub write_filled: Vec<String>,
}

impl TableStatements {
    fn merges(&self) -> Vec<&Merge> {
        let mut merges = vec![&self.upsert];
        if let Some(keyed) = &self.keyed {
            let optional = [&keyed.unmatch, &keyed.delete, &keyed.mark, &keyed.partial_update];
            merges.extend(optional.into_iter().flatten());
            merges.extend([&keyed.move_away, &keyed.fill, &keyed.fill_tolerant]);
            merges.extend(keyed.replace.iter().flat_map(|replace| [&replace.update, &replace.upsert]));
        }
        if let Some(removal) = &self.removal {
            merges.extend([&removal.remove, &removal.remove_tolerant]);
        }
        merges
    }

    /// The statements that make the stages.
    pub fn stages(&self) -> Vec<&str> {
        let mut stages = vec![self.upsert_set.create.as_str()];
        if let Some(keyed) = &self.keyed {
            let sets = [&keyed.delete_set, &keyed.move_set, &keyed.mark_set, &keyed.partial_set, &keyed.fill_set];
            stages.extend(sets.map(|set| set.create.as_str()));
            stages.push(&keyed.create_filled);
            stages.extend(keyed.replace.iter().map(|replace| replace.set.create.as_str()));
        }
        stages.extend(self.removal.iter().map(|removal| removal.set.create.as_str()));
        stages
    }

    /// Every statement, for a sink to look at before it is needed.
    pub fn all(&self) -> Vec<&str> {
        let mut sets = vec![(&self.upsert_set, &self.upsert)];
        sets.extend(self.keyed.iter().map(|keyed| (&keyed.move_set, &keyed.move_away)));
        sets.extend(self.removal.iter().map(|removal| (&removal.set, &removal.remove)));
        let over_arrays =
            sets.into_iter().filter(|(set, _)| set.fits_arrays).map(|(_, merge)| merge.over_arrays.as_str());
        self.copy_into_target.as_deref().into_iter().chain(self.over_stages()).chain(over_arrays).collect()
    }

    /// The statements over stages, which take no parameter but the row count.
    pub fn over_stages(&self) -> Vec<&str> {
        let filled = self.keyed.iter().flat_map(|keyed| keyed.write_filled.iter().map(String::as_str));
        self.merges().into_iter().map(|merge| merge.over_stage.as_str()).chain(filled).collect()
    }
}

/// Unchanged values are told in columns of this many bits.
pub const MASK_BITS: usize = 63;

/// Inputs that an UPDATE may leave unsent, in the order of their bits.
pub fn toastable_inputs(plan: &Plan) -> Vec<usize> {
    (0..plan.inputs.len()).filter(|&input| plan.inputs[input].toastable).collect()
}

/// The output that holds an input as it is, where a value that was not sent is found again.
pub fn held_by(plan: &Plan, input: usize) -> Option<usize> {
    let holds = |wanted: bool| {
        let is_it = move |from: &OutputFrom| matches!(from, OutputFrom::Input { input: from, cast } if *from == input && *cast == wanted);
        plan.outputs.iter().position(|output| is_it(&output.from))
    };
    holds(false).or_else(|| holds(true))
}

impl TableStatements {
    /// `number` makes the stages' names unique in the session.
    pub fn new(plan: &Plan, number: usize) -> Self {
        let writer = Writer::new(plan, number);
        let inputs: Vec<usize> = (0..plan.inputs.len()).collect();
        let upsert_set = writer.row_set("upsert", &inputs, &[]);
        let direct_inputs = writer.direct_inputs();
        let always_fill = writer.always_fill();
        TableStatements {
            copy_into_target: direct_inputs.as_ref().map(|_| writer.copy_into_target()),
            direct_inputs: direct_inputs.unwrap_or_default(),
            upsert: writer.over(&upsert_set, |from| writer.upsert(from)),
            keyed: (plan.mode != Mode::Append && !plan.is_multiset())
                .then(|| Keyed::new(&writer, &upsert_set, always_fill)),
            removal: plan.is_multiset().then(|| Removal::new(&writer)),
            truncate: writer.truncate(),
            clear: writer.clear(),
            is_empty: writer.is_empty(),
            always_fill,
            upsert_set,
        }
    }
}

impl Removal {
    fn new(writer: &Writer<'_>) -> Self {
        let set = writer.row_set("remove", &writer.plan.key_inputs, &[]);
        Removal {
            remove: writer.over(&set, |from| counted(&writer.remove(from))),
            remove_tolerant: writer.over(&set, |from| writer.remove(from)),
            set,
        }
    }
}

impl Replace {
    fn new(writer: &Writer<'_>) -> Self {
        let inputs: Vec<usize> = (0..writer.plan.inputs.len()).collect();
        let set = writer.row_set("replace", &inputs, &[]);
        Replace {
            update: writer.over(&set, |from| writer.replace(from)),
            upsert: writer.over(&set, |from| writer.upsert_if_missed(from)),
            set,
        }
    }
}

impl Keyed {
    fn new(writer: &Writer<'_>, upsert_set: &RowSet, always_fill: bool) -> Self {
        let plan = writer.plan;
        let inputs: Vec<usize> = (0..plan.inputs.len()).collect();
        let delete_set = writer.row_set("delete", &plan.key_inputs, &[]);
        let move_set = writer.row_set("move", &plan.key_inputs, &[]);
        let mark_set = writer.row_set("mark", &plan.key_inputs, &[]);
        let partial_set = writer.row_set("partial", &inputs, &writer.partial_columns());
        let fill_set = writer.row_set("fill", &inputs, &writer.partial_columns());
        let is_soft = plan.delete == DeleteMode::Soft;
        // Under a filter rows that do not match are filled in vain, so that they are not counted but looked at one by one.
        let fill = |from: &str| match plan.filter {
            None => counted(&writer.fill(from)),
            Some(_) => writer.fill(from),
        };
        Keyed {
            replace: writer.can_replace().then(|| Replace::new(writer)),
            unmatch: plan.filter.as_ref().map(|filter| writer.over(upsert_set, |from| writer.unmatch(from, filter))),
            delete: match plan.delete {
                DeleteMode::Hard => Some(writer.over(&delete_set, |from| writer.delete(from))),
                DeleteMode::Soft => Some(writer.over(&delete_set, |from| writer.soft_delete(from))),
                DeleteMode::Ignore => None,
            },
            move_away: writer.over(&move_set, |from| writer.delete(from)),
            mark: is_soft.then(|| writer.over(&mark_set, |from| writer.soft_delete(from))),
            partial_update: (!always_fill)
                .then(|| writer.over(&partial_set, |from| counted(&writer.partial_update(from)))),
            fill: writer.over(&fill_set, fill),
            fill_tolerant: writer.over(&fill_set, |from| writer.fill_tolerant(from)),
            create_filled: writer.create_filled(),
            filled_stage: writer.stage("filled"),
            write_filled: writer.write_filled(),
            delete_set,
            move_set,
            mark_set,
            partial_set,
            fill_set,
        }
    }
}

/// Fails with `division_by_zero` unless exactly as many rows were touched as the row set has (its count is the first
/// parameter): the transaction then rolls back although its COMMIT is already under way.
fn counted(statement: &str) -> String {
    format!("WITH touched AS ({statement} RETURNING 1) SELECT 1 / (count(*) = $1::bigint)::int FROM touched")
}
