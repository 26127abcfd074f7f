//! A batch's rows as RowBinary: one encoder an input, chosen once for the plan.

use crate::batch::{Batch, RowOp, TableBatch};
use crate::checkpoint::Position;
use crate::lsn::Lsn;
use crate::mapping::plan::{Input, InputFrom, Mask, Meta, Plan};
use crate::sink::postgres::encode::masked;
use crate::tuple::Cell;
use crate::value::clickhouse::json;
use crate::value::clickhouse::rowbinary::{Encoder, Fit, PairError, ValueError, text_form};
use crate::value::clickhouse::types::{ColumnType, OnOverflow, Reach, SourceType};

/// Why a row cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("column \"{column}\": {cause}")]
pub struct RowError {
    pub column: String,
    #[source]
    pub cause: ValueError,
}

/// A version of a row: positions in their order, the same at every replay.
pub fn version(position: Position) -> u128 {
    (u128::from(position.commit_lsn.0) << 64) | u128::from(position.ordinal)
}

/// The version of a snapshot's rows: before every change that comes after it.
pub fn snapshot_version(lsn: Lsn) -> u128 {
    version(Position { commit_lsn: lsn, ordinal: 0 })
}

/// Versions of a snapshot's rows where nothing but the version tells them apart: from here on, so many below the
/// snapshot's own that no two are the same. `range` numbers what is read by itself.
pub fn first_snapshot_version(lsn: Lsn, range: u32) -> u128 {
    assert!(range < 1 << 24, "a table has fewer than 2^24 ranges of blocks");
    (u128::from(lsn.0.saturating_sub(1)) << 64) | (u128::from(range) << 40)
}

/// How one input is written.
#[derive(Debug)]
enum InputEncoder {
    Column(Encoder),
    Masked { encoder: Encoder, mask: Mask, source: SourceType },
    Json { encoder: Encoder, path: Vec<String>, source: SourceType },
    Meta { meta: Meta, nullable: bool },
}

/// Writes the rows of one plan.
#[derive(Debug)]
pub struct RowEncoder {
    inputs: Vec<InputEncoder>,
    names: Vec<String>,
    source: Vec<u8>,
    mask_key: Vec<u8>,
}

/// What a row's surroundings say of it.
#[derive(Clone, Copy)]
pub struct RowMeta {
    pub op: &'static str,
    pub commit_lsn: Lsn,
    /// Microseconds since 1970.
    pub commit_ts: i64,
    pub xid: Option<u32>,
}

impl RowMeta {
    pub fn of(batch: &Batch, table: &TableBatch, row: u32) -> RowMeta {
        let row = &table.rows[row as usize];
        let begin = &batch.transactions[row.transaction as usize];
        let op = match row.op {
            RowOp::Insert => "insert",
            RowOp::Update => "update",
            RowOp::Delete => "delete",
        };
        RowMeta { op, commit_lsn: begin.commit_lsn, commit_ts: begin.commit_ts.0, xid: Some(begin.xid) }
    }
}

impl RowEncoder {
    /// # Errors
    /// An input's type does not go into its column: the mapping was not checked against this target.
    pub fn new(plan: &Plan, mask_key: &[u8], reach: Reach) -> Result<RowEncoder, PairError> {
        let text = || SourceType::built_in(postgres_types::Type::TEXT.oid(), -1);
        let encoder = |input: &Input| -> Result<InputEncoder, PairError> {
            let column = ColumnType::parse(&input.stage_type);
            Ok(match (&input.from, &input.source_type, input.mask) {
                (InputFrom::Meta(meta), ..) => InputEncoder::Meta { meta: *meta, nullable: column.is_nullable() },
                (InputFrom::Json { path, .. }, source, _) => InputEncoder::Json {
                    encoder: Encoder::new(&text(), &column, OnOverflow::Error, reach)?,
                    path: path.clone(),
                    source: source.clone().unwrap_or_else(text),
                },
                (InputFrom::Column(_), source, Some(mask)) => InputEncoder::Masked {
                    encoder: Encoder::new(&text(), &column, OnOverflow::Error, reach)?,
                    mask,
                    source: source.clone().unwrap_or_else(text),
                },
                (InputFrom::Column(_), source, None) => {
                    let source = source.clone().unwrap_or_else(text);
                    InputEncoder::Column(Encoder::new(&source, &column, input.on_overflow, reach)?)
                }
            })
        };
        Ok(RowEncoder {
            inputs: plan.inputs.iter().map(encoder).collect::<Result<_, _>>()?,
            names: plan.inputs.iter().map(|input| input.name.clone()).collect(),
            source: plan.source.clone().into_bytes(),
            mask_key: mask_key.to_vec(),
        })
    }

    /// Appends one input's value. Answers how many values another stands for.
    #[inline]
    pub fn put(&self, out: &mut Vec<u8>, input: usize, cell: Cell<'_>, meta: &RowMeta) -> Result<u64, RowError> {
        let fit = match &self.inputs[input] {
            InputEncoder::Column(encoder) => encoder.put(out, cell),
            InputEncoder::Masked { encoder, mask: Mask::Sha256, source } => match cell {
                Cell::Text(_) | Cell::Binary(_) => text_form(source, cell)
                    .and_then(|value| encoder.put(out, Cell::Text(masked(&self.mask_key, &value).as_bytes()))),
                other => encoder.put(out, other),
            },
            InputEncoder::Json { encoder, path, source } => match cell {
                Cell::Text(_) | Cell::Binary(_) => text_form(source, cell).and_then(|document| {
                    let found = json::find(&document, path)?;
                    encoder.put(out, found.as_deref().map_or(Cell::Null, |found| Cell::Text(found.as_bytes())))
                }),
                other => encoder.put(out, other),
            },
            InputEncoder::Meta { meta: which, nullable } => {
                self.put_meta(out, *which, *nullable, meta);
                Ok(Fit::Exact)
            }
        };
        match fit {
            Ok(fit) => Ok(u64::from(fit == Fit::Coerced)),
            Err(cause) => Err(RowError { column: self.names[input].clone(), cause }),
        }
    }

    /// Appends what stands in a column that says nothing.
    pub fn put_default(&self, out: &mut Vec<u8>, input: usize) {
        match &self.inputs[input] {
            InputEncoder::Column(encoder)
            | InputEncoder::Masked { encoder, .. }
            | InputEncoder::Json { encoder, .. } => encoder.put_default(out),
            InputEncoder::Meta { meta, nullable } => {
                let none = RowMeta { op: "", commit_lsn: Lsn::ZERO, commit_ts: 0, xid: None };
                self.put_meta(out, *meta, *nullable, &none);
            }
        }
    }

    fn put_meta(&self, out: &mut Vec<u8>, which: Meta, nullable: bool, meta: &RowMeta) {
        let xid = if which == Meta::Xid { meta.xid } else { Some(0) };
        if nullable {
            out.push(u8::from(xid.is_none()));
        }
        match which {
            Meta::Source => put_text(out, &self.source),
            Meta::Op => put_text(out, meta.op.as_bytes()),
            Meta::CommitLsn => out.extend_from_slice(&meta.commit_lsn.0.to_le_bytes()),
            Meta::CommitTs | Meta::SyncedAt => out.extend_from_slice(&meta.commit_ts.to_le_bytes()),
            Meta::Xid => {
                if let Some(xid) = xid {
                    out.extend_from_slice(&xid.to_le_bytes());
                }
            }
        }
    }
}

/// A string with its length as a variable-length integer in front.
fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    let mut length = text.len();
    while length >= 0x80 {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_go_by_commit_then_by_place() {
        let at = |commit_lsn, ordinal| version(Position { commit_lsn: Lsn(commit_lsn), ordinal });
        assert!(at(1, u64::MAX) < at(2, 0) && at(2, 0) < at(2, 1));
        assert_eq!(at(1, 2), (1 << 64) + 2);
    }
}
