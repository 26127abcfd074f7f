//! What a batch's rows go through: entries of the same fate are sent together, in an order that keys and foreign keys bear.

use std::borrow::Cow;

use super::super::PostgresSink;
use super::super::encode::RowReader;
use super::super::statements::{Merge, Replace, RowSet, TableStatements};
use crate::batch::{Batch, Net, RowOp, TableBatch};
use crate::sink::ApplyError;
use crate::tuple::Cell;

/// Rows of a group up to which array parameters beat COPY into a stage (measured: 1 ms against 3.8 ms a batch at 100 rows,
/// even at about 2,000).
const ARRAY_ROWS_MAX: usize = 2_000;

/// New rows up to which one statement for all rows is better than a COPY besides (measured: 0.69 against 0.13 ms at 50
/// rows, 3.9 against 1.3 ms at 500; but a COPY waits for the server once).
const DIRECT_ROWS_MIN: usize = 200;

/// What a group of rows of one table is put through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Group {
    Direct,
    Upsert,
    /// New images of rows that the target holds.
    Replace,
    Delete,
    MoveAway,
    PartialUpdate,
    /// Rows with holes, completed into a stage.
    Fill,
    /// What stands in that stage, written; has no rows of its own.
    Filled,
    /// Soft deletes of what the batch itself wrote.
    Mark,
}

const GROUPS: usize = Group::Mark as usize + 1;

/// One group of one table, ready to be sent.
pub(super) struct Job<'a> {
    pub table: &'a TableBatch,
    pub group: Group,
    /// Indices into the table's entries.
    pub entries: Vec<u32>,
    /// Its rows go through COPY's text format, since the source sent text.
    pub is_text: bool,
}

impl PostgresSink {
    /// Splits the batch into groups, in the order in which they are to run.
    pub(super) fn jobs<'a>(&self, batch: &'a Batch) -> Vec<Job<'a>> {
        let mut tables: Vec<&TableBatch> = batch.tables.iter().collect();
        tables.sort_by_key(|table| self.rank[table.plan_index]);
        let (mut fills, mut deletes, mut images, mut marks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for table in tables {
            let mut groups = self.groups(batch, table);
            let is_text = self.takes_text && is_text(RowReader::new(batch, table, &self.mask_key), table);
            let mut job = |group: Group, jobs: &mut Vec<Job<'a>>| {
                let entries = std::mem::take(&mut groups[group as usize]);
                if !entries.is_empty() {
                    jobs.push(Job { table, group, entries, is_text });
                }
            };
            let fill_count = fills.len();
            job(Group::Fill, &mut fills);
            job(Group::Delete, &mut deletes);
            job(Group::MoveAway, &mut deletes);
            job(Group::Direct, &mut images);
            job(Group::Upsert, &mut images);
            job(Group::Replace, &mut images);
            if fills.len() > fill_count {
                images.push(Job { table, group: Group::Filled, entries: Vec::new(), is_text: false });
            }
            job(Group::PartialUpdate, &mut images);
            job(Group::Mark, &mut marks);
        }
        deletes.reverse();
        fills.into_iter().chain(deletes).chain(images).chain(marks).collect()
    }

    /// Indices of the table's entries, by group.
    fn groups(&self, batch: &Batch, table: &TableBatch) -> [Vec<u32>; GROUPS] {
        let statements = &self.tables[table.plan_index];
        let reader = RowReader::new(batch, table, &self.mask_key);
        let fills = statements.always_fill || self.is_tolerant[table.plan_index];
        let deletes =
            statements.removal.is_some() || statements.keyed.as_ref().is_some_and(|keyed| keyed.delete.is_some());
        let replaces = self.replaces(table);
        let mut groups: [Vec<u32>; GROUPS] = Default::default();
        for (index, entry) in table.entries.iter().enumerate() {
            let index = u32::try_from(index).expect("a batch holds fewer than 2^32 rows");
            match entry.clears.unwrap_or(entry.net) {
                Net::Delete if deletes => groups[Group::Delete as usize].push(index),
                Net::MovedAway => groups[Group::MoveAway as usize].push(index),
                Net::Delete | Net::Insert | Net::Upsert | Net::Nothing | Net::Tombstone => {}
            }
            match entry.net {
                Net::Delete | Net::MovedAway | Net::Nothing => continue,
                Net::Tombstone => groups[Group::Mark as usize].push(index),
                Net::Insert | Net::Upsert => {}
            }
            let is_direct = entry.net == Net::Insert && self.is_direct[table.plan_index];
            let has_holes = statements.keyed.is_some() && reader.has_holes(entry.row);
            let is_held = entry.net == Net::Upsert && table.rows[entry.row as usize].op == RowOp::Update;
            let group = match has_holes {
                false if is_direct => Group::Direct,
                false if is_held && replaces => Group::Replace,
                false => Group::Upsert,
                true if fills || entry.origin.is_some() => Group::Fill,
                true => Group::PartialUpdate,
            };
            groups[group as usize].push(index);
        }
        // Few new rows are cheaper to send with the others.
        if groups[Group::Direct as usize].len() <= DIRECT_ROWS_MIN && statements.upsert_set.fits_arrays {
            let direct = std::mem::take(&mut groups[Group::Direct as usize]);
            groups[Group::Upsert as usize].extend(direct);
        }
        if groups[Group::Replace as usize].len() <= ARRAY_ROWS_MAX {
            let few = std::mem::take(&mut groups[Group::Replace as usize]);
            groups[Group::Upsert as usize].extend(few);
        }
        if self.is_plain[table.plan_index] == Some(true) {
            for group in [Group::Upsert, Group::Replace, Group::Delete, Group::MoveAway] {
                in_key_order(batch, table, &mut groups[group as usize]);
            }
        }
        groups
    }

    /// Whether updated rows are replaced in place. A row that was given another key is not there yet, and is not told
    /// from others.
    fn replaces(&self, table: &TableBatch) -> bool {
        let can = self.tables[table.plan_index].keyed.as_ref().is_some_and(|keyed| keyed.replace.is_some());
        can && self.is_plain[table.plan_index] == Some(true)
            && !self.is_tolerant[table.plan_index]
            && table.entries.iter().all(|entry| entry.net != Net::MovedAway)
    }

    /// Looks once a session at each target that is to take many rows: whether order and triggers of their statements
    /// matter to it.
    pub(super) async fn look_at_targets(&mut self, batch: &Batch) -> Result<(), ApplyError> {
        for table in batch.tables.iter().filter(|table| table.entries.len() > ARRAY_ROWS_MAX) {
            if self.is_plain[table.plan_index].is_some() {
                continue;
            }
            let written = (0..table.plan.outputs.len()).filter(|output| !table.plan.key.contains(output));
            let written: Vec<&str> = written.map(|output| table.plan.outputs[output].column.as_str()).collect();
            let target = &table.plan.target;
            let found = self.client.query_opt(IS_PLAIN, &[&target.schema, &target.name, &written]).await;
            let found = found.map_err(ApplyError::control)?;
            self.is_plain[table.plan_index] = Some(found.is_some_and(|row| row.get(0)));
        }
        Ok(())
    }
}

fn is_text(mut reader: RowReader<'_>, table: &TableBatch) -> bool {
    let mut rows = table.entries.iter().flat_map(|entry| [Some(entry.row), entry.origin]).flatten();
    rows.any(|row| reader.wants_text(row))
}

/// Neighbours in the index are neighbours in the batch: pages are visited once, not once a row.
fn in_key_order(batch: &Batch, table: &TableBatch, entries: &mut [u32]) {
    if entries.len() <= ARRAY_ROWS_MAX {
        return;
    }
    entries.sort_by_cached_key(|&entry| {
        let row = table.entries[entry as usize].row;
        let mut front = [0u8; 16];
        let mut length = 0;
        for &input in &table.plan.key_inputs {
            if let Cell::Text(value) | Cell::Binary(value) = batch.cell(table, row, input) {
                let taken = value.len().min(front.len() - length);
                front[length..length + taken].copy_from_slice(&value[..taken]);
                length += taken;
            }
        }
        u128::from_be_bytes(front)
    });
}

pub(super) fn over_arrays(job: &Job<'_>, set: &RowSet) -> bool {
    set.fits_arrays && job.entries.len() <= ARRAY_ROWS_MAX && !job.is_text
}

/// The COPY of a job's rows, in their format.
pub(super) fn copy_of<'a>(job: &Job<'_>, copy: &'a str) -> Cow<'a, str> {
    match job.is_text {
        true => Cow::Owned(copy.replace("(FORMAT binary)", "(FORMAT text)")),
        false => Cow::Borrowed(copy),
    }
}

/// The group's row set tells which values are unchanged, and where the row stood.
pub(super) fn has_holes(job: &Job<'_>) -> bool {
    matches!(job.group, Group::PartialUpdate | Group::Fill)
}

/// Columns that a group's row set has beside the inputs.
pub(super) fn extra_columns(job: &Job<'_>, reader: &RowReader<'_>) -> usize {
    if has_holes(job) { reader.mask_words() + job.table.plan.key_inputs.len() } else { 0 }
}

pub(super) fn group_inputs(job: &Job<'_>) -> Vec<usize> {
    match job.group {
        Group::Delete | Group::MoveAway | Group::Mark => job.table.plan.key_inputs.clone(),
        Group::Direct | Group::Upsert | Group::Replace | Group::PartialUpdate | Group::Fill | Group::Filled => {
            (0..job.table.plan.inputs.len()).collect()
        }
    }
}

/// What a group's rows go through.
pub(super) enum Parts<'a> {
    /// COPY into the target.
    Copy(&'a str),
    /// Statements over what the sink already has.
    Write(&'a [String]),
    /// A row set and the statements that run over it.
    Merge(&'a RowSet, Vec<&'a Merge>),
    /// A row set of rows that are looked up by their key.
    Replace(&'a Replace),
}

/// One query a table and session. A unique column beside the key might be handed from row to row, so that their order
/// counts.
const IS_PLAIN: &str = "SELECT c.relkind = 'r' AND NOT (c.relhassubclass OR c.relhasrules OR c.relrowsecurity) \
    AND NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) \
    AND NOT EXISTS (SELECT FROM pg_index i LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey) \
        WHERE i.indrelid = c.oid AND (i.indisunique OR i.indisexclusion) \
        AND (a.attname = ANY ($3::text[]) OR 0 = ANY (i.indkey))) \
    FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace WHERE s.nspname = $1::text AND c.relname = $2::text";

pub(super) fn parts(statements: &TableStatements, group: Group, tolerant: bool) -> Parts<'_> {
    let keyed = statements.keyed.as_ref();
    fn merge<'a>(set: &'a RowSet, merge: Option<&'a Merge>) -> Parts<'a> {
        Parts::Merge(set, merge.into_iter().collect())
    }
    match (group, keyed) {
        (Group::Direct, _) => Parts::Copy(statements.copy_into_target.as_deref().unwrap_or_default()),
        (Group::Upsert, keyed) => {
            let unmatch = keyed.and_then(|keyed| keyed.unmatch.as_ref());
            Parts::Merge(&statements.upsert_set, unmatch.into_iter().chain([&statements.upsert]).collect())
        }
        (Group::Replace, Some(keyed)) => match &keyed.replace {
            Some(replace) => Parts::Replace(replace),
            None => Parts::Write(&[]),
        },
        (Group::Delete, Some(keyed)) => merge(&keyed.delete_set, keyed.delete.as_ref()),
        (Group::MoveAway, Some(keyed)) => merge(&keyed.move_set, Some(&keyed.move_away)),
        (Group::Mark, Some(keyed)) => merge(&keyed.mark_set, keyed.mark.as_ref()),
        (Group::PartialUpdate, Some(keyed)) => merge(&keyed.partial_set, keyed.partial_update.as_ref()),
        (Group::Fill, Some(keyed)) if tolerant => merge(&keyed.fill_set, Some(&keyed.fill_tolerant)),
        (Group::Fill, Some(keyed)) => merge(&keyed.fill_set, Some(&keyed.fill)),
        (Group::Filled, Some(keyed)) => Parts::Write(&keyed.write_filled),
        (Group::Delete, None) => match &statements.removal {
            Some(removal) if tolerant => merge(&removal.set, Some(&removal.remove_tolerant)),
            Some(removal) => merge(&removal.set, Some(&removal.remove)),
            None => Parts::Write(&[]),
        },
        // Without keys rows come and go, and nothing else.
        (_, None) => Parts::Write(&[]),
    }
}
