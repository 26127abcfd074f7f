//! Rows into Postgres's binary formats: COPY rows for stages and targets, arrays for `unnest`.
//!
//! pgoutput sends values in the binary form that COPY takes, so a value is copied once, from the journal's block into the
//! buffer that goes to the socket, and never parsed.
//!
//! Postgres docs, "COPY", Binary Format; array form as `array_recv` reads it (`src/backend/utils/adt/arrayfuncs.c`).

use hmac::{Hmac, KeyInit, Mac};
use postgres_types::Type;
use sha2::Sha256;

use super::statements::{MASK_BITS, held_by, toastable_inputs};
use crate::assemble::Begin;
use crate::batch::{Batch, RowOp, RowRef, TableBatch};
use crate::mapping::bind::Binding;
use crate::mapping::plan::{Input, InputFrom, Mask, Meta, Mode, Plan};
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::text_form;
use crate::value::clickhouse::types::SourceType;

/// What stands before the first row of a binary COPY: signature, flags, length of the header's extension.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What stands after the last.
pub const COPY_TRAILER: &[u8] = &[0xff, 0xff];

/// Why a value cannot be passed to the sink.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    #[error("the source sent column \"{column}\" in text form, which type {stage_type} of the sink does not take")]
    Form { column: String, stage_type: String },
    #[error(
        "the source sent column \"{column}\" in binary form among rows in text form, and what it is as text is not known"
    )]
    Binary { column: String },
    /// Never NULL instead: the row has a value.
    #[error("the source left column \"{column}\" unsent, and the target does not hold it as it is")]
    Unsent { column: String },
}

/// Types whose text form and binary form are the same bytes.
fn is_text_alike(oid: u32) -> bool {
    // text, varchar, bpchar, json, xml, name, unknown.
    matches!(oid, 25 | 1043 | 1042 | 114 | 142 | 19 | 705)
}

/// Reads the rows of one table's batch, input by input.
pub struct RowReader<'a> {
    batch: &'a Batch,
    table: &'a TableBatch,
    plan: &'a Plan,
    mask_key: &'a [u8],
    wire: Vec<Cell<'a>>,
    wire_row: Option<u32>,
    /// Inputs that an UPDATE may leave unsent, in the order of their bits.
    toastable: Vec<usize>,
    /// Those of them that the target holds, and so may stand as NULL in a row with holes.
    may_be_unsent: Vec<bool>,
    /// By binding: wire columns and inputs are the same, in the same order, and no value is changed on its way.
    is_straight: Vec<bool>,
}

impl<'a> RowReader<'a> {
    pub fn new(batch: &'a Batch, table: &'a TableBatch, mask_key: &'a [u8]) -> Self {
        let plan: &Plan = &table.plan;
        let toastable = toastable_inputs(plan);
        let mut may_be_unsent = vec![false; plan.inputs.len()];
        for &input in &toastable {
            may_be_unsent[input] = plan.mode != Mode::Append && held_by(plan, input).is_some();
        }
        let is_masked = plan.inputs.iter().any(|input| input.mask.is_some());
        let straight = |binding: &std::sync::Arc<Binding>| binding.is_straight && !is_masked;
        let is_straight = table.bindings.iter().map(straight).collect();
        RowReader {
            batch,
            table,
            plan,
            mask_key,
            wire: Vec::new(),
            wire_row: None,
            toastable,
            may_be_unsent,
            is_straight,
        }
    }

    fn row(&self, row: u32) -> &'a RowRef {
        &self.table.rows[row as usize]
    }

    /// Takes a row's cells apart once.
    #[inline]
    fn open(&mut self, row: u32) {
        if self.wire_row != Some(row) {
            self.wire.clear();
            self.wire.extend(self.batch.cells(self.row(row)));
            self.wire_row = Some(row);
        }
    }

    /// The row lacks values that only the target has.
    pub fn has_holes(&self, row: u32) -> bool {
        self.row(row).has_unchanged && self.toastable.iter().any(|&input| self.is_hole(row, input))
    }

    /// Columns that `put_masks` writes.
    pub fn mask_words(&self) -> usize {
        self.toastable.len().div_ceil(MASK_BITS)
    }

    /// The row's unchanged values that the batch does not know, as bits of one word.
    pub fn mask(&self, row: u32, word: usize) -> i64 {
        let inputs = self.toastable.iter().skip(word * MASK_BITS).take(MASK_BITS);
        let bits = inputs.enumerate().map(|(bit, &input)| i64::from(self.is_hole(row, input)) << bit);
        bits.fold(0, |mask, bit| mask | bit)
    }

    fn is_hole(&self, row: u32, input: usize) -> bool {
        matches!(self.batch.cell(self.table, row, input), Cell::Unchanged)
    }

    /// Appends the row's fields for these inputs: length and value each, or -1 for NULL. An unchanged value that only the
    /// target has reads NULL here; the statement looks at the mask.
    #[inline]
    pub fn fields(&mut self, out: &mut Vec<u8>, row: u32, inputs: &[usize]) -> Result<(), EncodeError> {
        let table = self.table;
        let reference = &table.rows[row as usize];
        let binding = &table.bindings[reference.binding as usize];
        let is_whole = !reference.has_unchanged && !reference.key_only && self.is_straight[reference.binding as usize];
        if is_whole && inputs.iter().copied().eq(0..binding.columns.len()) {
            return self.pass(out, reference);
        }
        self.open(row);
        for &input in inputs {
            let Some(column) = binding.columns[input] else {
                self.meta(out, reference, input);
                continue;
            };
            let cell = match self.wire.get(column) {
                Some(cell) if *cell != Cell::Unchanged && (!reference.key_only || binding.identity[column]) => *cell,
                _ => self.batch.cell(table, row, input),
            };
            self.put_cell(out, cell, input)?;
        }
        Ok(())
    }

    /// Appends a row's fields as they came.
    #[inline]
    fn pass(&self, out: &mut Vec<u8>, reference: &RowRef) -> Result<(), EncodeError> {
        out.reserve(reference.length as usize);
        for (input, cell) in self.batch.cells(reference).enumerate() {
            match cell {
                Cell::Binary(value) => put(out, value),
                Cell::Null => out.extend_from_slice(&(-1i32).to_be_bytes()),
                Cell::Text(_) | Cell::Unchanged => self.put_cell(out, cell, input)?,
            }
        }
        Ok(())
    }

    #[inline]
    fn put_cell(&self, out: &mut Vec<u8>, cell: Cell<'_>, input: usize) -> Result<(), EncodeError> {
        let described = &self.plan.inputs[input];
        let value = match cell {
            Cell::Binary(value) => value,
            Cell::Null => {
                out.extend_from_slice(&(-1i32).to_be_bytes());
                return Ok(());
            }
            Cell::Unchanged if self.may_be_unsent[input] => {
                out.extend_from_slice(&(-1i32).to_be_bytes());
                return Ok(());
            }
            Cell::Unchanged => return Err(EncodeError::Unsent { column: described.name.clone() }),
            Cell::Text(value) if is_text_alike(described.stage_type_oid) => value,
            Cell::Text(_) => {
                let (column, stage_type) = (described.name.clone(), described.stage_type.clone());
                return Err(EncodeError::Form { column, stage_type });
            }
        };
        match described.mask {
            None => put(out, value),
            Some(Mask::Sha256) => put(out, self.hash(described, cell, value).as_bytes()),
        }
        Ok(())
    }

    /// Of the value's text, whichever form it came in: a copy reads text. A form that is not understood is hashed as it is.
    fn hash(&self, input: &Input, cell: Cell<'_>, bytes: &[u8]) -> String {
        let text = input.source_type.as_ref().and_then(|source| text_form(source, cell).ok());
        masked(self.mask_key, text.as_deref().unwrap_or(bytes))
    }

    /// Some value came as text for which COPY's binary format has no place.
    pub fn wants_text(&mut self, row: u32) -> bool {
        let table = self.table;
        let reference = &table.rows[row as usize];
        let binding = &table.bindings[reference.binding as usize];
        let inputs = &self.plan.inputs;
        (0..inputs.len()).any(|input| {
            binding.columns[input].is_some()
                && !is_text_alike(inputs[input].stage_type_oid)
                && matches!(self.batch.cell(table, row, input), Cell::Text(_))
        })
    }

    /// Appends the row's fields for these inputs in COPY's text format, each with a tab behind it.
    pub fn text_fields(&mut self, out: &mut Vec<u8>, row: u32, inputs: &[usize]) -> Result<(), EncodeError> {
        let table = self.table;
        let reference = &table.rows[row as usize];
        let binding = &table.bindings[reference.binding as usize];
        for &input in inputs {
            match binding.columns[input] {
                None => self.text_meta(out, reference, input),
                Some(_) => self.text_cell(out, self.batch.cell(table, row, input), input)?,
            }
            out.push(b'\t');
        }
        Ok(())
    }

    fn text_cell(&self, out: &mut Vec<u8>, cell: Cell<'_>, input: usize) -> Result<(), EncodeError> {
        let described = &self.plan.inputs[input];
        let column = || described.name.clone();
        match (cell, &described.source_type) {
            (Cell::Null, _) => out.extend_from_slice(b"\\N"),
            (Cell::Unchanged, _) if self.may_be_unsent[input] => out.extend_from_slice(b"\\N"),
            (Cell::Unchanged, _) => return Err(EncodeError::Unsent { column: column() }),
            (Cell::Text(value) | Cell::Binary(value), _) if described.mask.is_some() => {
                put_escaped(out, self.hash(described, cell, value).as_bytes());
            }
            (Cell::Text(value), _) => put_escaped(out, value),
            (Cell::Binary(_), Some(source)) => {
                let text = text_form(source, cell).map_err(|_| EncodeError::Binary { column: column() })?;
                put_escaped(out, &text);
            }
            (Cell::Binary(_), None) => return Err(EncodeError::Binary { column: column() }),
        }
        Ok(())
    }

    fn text_meta(&self, out: &mut Vec<u8>, reference: &RowRef, input: usize) {
        let InputFrom::Meta(meta) = self.plan.inputs[input].from else { return };
        let begin = &self.batch.transactions[reference.transaction as usize];
        let mut field = Vec::new();
        put_meta(&mut field, meta, &self.plan.source, begin, reference.op);
        let value = field.get(4..).unwrap_or_default();
        match meta {
            Meta::Source | Meta::Op => put_escaped(out, value),
            Meta::CommitLsn => out.extend_from_slice(begin.commit_lsn.to_string().as_bytes()),
            Meta::CommitTs => {
                let timestamptz = SourceType::built_in(Type::TIMESTAMPTZ.oid(), -1);
                let text = text_form(&timestamptz, Cell::Binary(value)).expect("eight bytes are a timestamptz");
                out.extend_from_slice(&text);
            }
            Meta::Xid => out.extend_from_slice(begin.xid.to_string().as_bytes()),
            Meta::SyncedAt => out.extend_from_slice(b"\\N"),
        }
    }

    fn meta(&self, out: &mut Vec<u8>, reference: &RowRef, input: usize) {
        let InputFrom::Meta(meta) = self.plan.inputs[input].from else { return };
        let begin = &self.batch.transactions[reference.transaction as usize];
        put_meta(out, meta, &self.plan.source, begin, reference.op);
    }
}

fn put_meta(out: &mut Vec<u8>, meta: Meta, source: &str, begin: &Begin, op: RowOp) {
    match meta {
        Meta::Source => put(out, source.as_bytes()),
        Meta::Op => put(
            out,
            match op {
                RowOp::Insert => b"insert",
                RowOp::Update => b"update",
                RowOp::Delete => b"delete",
            },
        ),
        Meta::CommitLsn => put(out, &begin.commit_lsn.0.to_be_bytes()),
        Meta::CommitTs => put(out, &begin.commit_ts.to_postgres().to_be_bytes()),
        Meta::Xid => put(out, &i64::from(begin.xid).to_be_bytes()),
        // Written as now() by the statement.
        Meta::SyncedAt => out.extend_from_slice(&(-1i32).to_be_bytes()),
    }
}

/// A keyed digest: the same value always gives the same text, and short values cannot be guessed without the salt.
pub fn masked(key: &[u8], value: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(value);
    let digest = mac.finalize().into_bytes();
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect()
}

/// Appends a value in COPY's text format. (Postgres docs, "COPY", Text Format.)
pub fn put_escaped(out: &mut Vec<u8>, value: &[u8]) {
    for &byte in value {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            byte => out.push(byte),
        }
    }
}

/// Appends one field: length and value.
#[inline]
pub fn put(out: &mut Vec<u8>, value: &[u8]) {
    let length = i32::try_from(value.len()).expect("a value is shorter than 1 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value);
}

/// One array parameter under construction.
pub struct ArrayParam {
    bytes: Vec<u8>,
    count: i32,
}

impl ArrayParam {
    pub fn new(element_oid: u32) -> Self {
        let mut bytes = Vec::new();
        // One dimension, nulls allowed, element type, length (set at the end), lower bound 1.
        for word in [1, 1, element_oid, 0, 1] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        ArrayParam { bytes, count: 0 }
    }

    /// The buffer to which exactly one field is to be appended.
    #[inline]
    pub fn field(&mut self) -> &mut Vec<u8> {
        self.count += 1;
        &mut self.bytes
    }

    pub fn finish(mut self) -> RawParam {
        self.bytes[12..16].copy_from_slice(&self.count.to_be_bytes());
        RawParam(self.bytes)
    }
}

/// A parameter that is already in its type's binary form.
pub struct RawParam(pub Vec<u8>);

/// Shows its size only: parameters are row values.
impl std::fmt::Debug for RawParam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawParam({} bytes)", self.0.len())
    }
}

impl postgres_types::ToSql for RawParam {
    fn to_sql(
        &self,
        _: &postgres_types::Type,
        out: &mut bytes::BytesMut,
    ) -> Result<postgres_types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(postgres_types::IsNull::No)
    }

    fn accepts(_: &postgres_types::Type) -> bool {
        true
    }

    postgres_types::to_sql_checked!();
}
