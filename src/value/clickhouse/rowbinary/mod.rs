//! Postgres values, as they stand on the wire, into ClickHouse's `RowBinary`: one encoder a column, chosen once.
//!
//! Numbers and times are little-endian, text and arrays have their length in front as a variable-length integer, and a
//! nullable value has a byte before it that is 1 for NULL. (ClickHouse docs, "RowBinary".)
//!
//! Both forms of Postgres are taken: a stream that was asked for binary still sends text where a type has no binary form.
//! What the column cannot hold follows `on_overflow`; nothing is clamped, cut or made a default on any other way. The hot
//! path, binary scalars, allocates nothing.

mod array;
mod choice;
mod number;
mod print;
#[cfg(test)]
mod tests;
mod time;

use std::borrow::Cow;

use postgres_types::Type;

use self::number::Decimal;
use self::time::{Days, Ticks};
use super::types::{ColumnType, Form, OnOverflow, Reach, SourceType};
use crate::tuple::Cell;

/// How a value got into its column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "coerced values are counted"]
pub enum Fit {
    Exact,
    /// Another value stands for it, as `on_overflow` asked.
    Coerced,
}

/// Why a value cannot be written. The value itself is never part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ValueError {
    #[error("the value is NULL, and the column cannot hold NULL")]
    Null,
    #[error("the source left the value unsent")]
    Unsent,
    #[error("the column's type cannot hold the value; set on_overflow")]
    Overflow,
    #[error("the source sent the value in binary form, of which only text is understood for this type")]
    BinaryForm,
    #[error("the value has not the form that its type has on the wire")]
    Malformed,
}

/// Why no encoder goes from one type to the other.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PairError {
    #[error("values of this type cannot be written into {0}")]
    Types(ColumnType),
    #[error("on_overflow = \"null\" needs a Nullable column, not {0}")]
    NotNullable(ColumnType),
    #[error("on_overflow = \"text\" needs a String column, not {0}")]
    NotText(ColumnType),
}

/// Why a value did not go in as it is; what the policies look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Misfit {
    /// Less than the least that the column holds.
    Below,
    /// More than the greatest.
    Above,
    /// It has digits, or bounds of an array, that the column has no place for.
    TooFine,
    /// No value of the column is nearest to it.
    NoNearest,
    /// Nothing that a policy mends.
    Error(ValueError),
}

const MALFORMED: Misfit = Misfit::Error(ValueError::Malformed);

/// Digits that the column has no place for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Excess {
    Refused,
    Dropped,
}

/// Writes the values of one column.
#[derive(Clone, PartialEq, Debug)]
pub struct Encoder {
    kind: Encoding,
    nullable: bool,
    on_overflow: OnOverflow,
}

#[derive(Clone, PartialEq, Debug)]
enum Encoding {
    Bool,
    Int {
        from: Whole,
        bytes: u8,
        /// Least and greatest of the column; `None` if the source has no other values.
        range: Option<(i128, i128)>,
    },
    Float32,
    Float64,
    Decimal(Decimal),
    Days(Days),
    Ticks(Ticks),
    Uuid,
    /// `bytea`, raw.
    Bytes,
    /// Both forms are the same bytes.
    Verbatim,
    /// Text with a version byte before it in binary form.
    Versioned,
    /// Binary form is printed.
    Printed(Type),
    /// Only the text form is understood.
    TextOnly,
    /// `depth` arrays, one in the other.
    Array {
        element: Box<Encoder>,
        depth: u8,
    },
}

/// A whole number on Postgres's wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whole {
    Int2,
    Int4,
    Int8,
    Unsigned4,
}

/// Whether the binary form of a type is understood. Of a type for which it is not, the source must send text.
pub fn reads_binary(source: &SourceType) -> bool {
    match source.form {
        Form::Enum | Form::TextAlike => true,
        Form::Unknown | Form::Text => false,
        Form::BuiltIn => source.built_in_type().is_some_and(|ty| print::is_known(&ty)),
    }
}

/// Whether the source sends a form of the type that is not understood unless it is asked for text.
pub fn wants_text(source: &SourceType) -> bool {
    source.form != Form::Text && !reads_binary(source)
}

/// Whether the text form of a type is the bytes of its binary form.
pub fn is_text_alike(source: &SourceType) -> bool {
    match source.form {
        Form::Enum | Form::TextAlike | Form::Text => true,
        Form::Unknown => false,
        Form::BuiltIn => source.built_in_type().is_some_and(|ty| {
            matches!(
                ty,
                Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::XML | Type::UNKNOWN
            )
        }),
    }
}

/// A value as Postgres prints it.
///
/// # Errors
/// The value is in binary form, and that form is not understood.
pub fn text_form<'a>(source: &SourceType, value: Cell<'a>) -> Result<Cow<'a, [u8]>, ValueError> {
    match value {
        Cell::Text(text) => Ok(Cow::Borrowed(text)),
        Cell::Binary(bytes) if is_text_alike(source) => Ok(Cow::Borrowed(bytes)),
        Cell::Binary(bytes) => {
            let ty = source.built_in_type().filter(print::is_known).ok_or(ValueError::BinaryForm)?;
            let mut text = Vec::new();
            match print::print(&mut text, &ty, bytes) {
                Ok(()) => Ok(Cow::Owned(text)),
                Err(Misfit::Error(error)) => Err(error),
                Err(_) => Err(ValueError::Malformed),
            }
        }
        Cell::Null => Err(ValueError::Null),
        Cell::Unchanged => Err(ValueError::Unsent),
    }
}

impl Encoder {
    /// The encoder from a source type into a column, whoever made the column.
    ///
    /// # Errors
    /// If some value would have to be made another one on the way although the policy does not say so, or ever fit.
    pub fn new(
        source: &SourceType,
        target: &ColumnType,
        on_overflow: OnOverflow,
        reach: Reach,
    ) -> Result<Encoder, PairError> {
        let nullable = target.is_nullable();
        let kind = choice::encoding(source, target, on_overflow, reach)?;
        let never_misfits = matches!(
            kind,
            Encoding::Verbatim
                | Encoding::Versioned
                | Encoding::Printed(_)
                | Encoding::TextOnly
                | Encoding::Bytes
                | Encoding::Bool
                | Encoding::Uuid
                | Encoding::Float32
                | Encoding::Float64
        ) || matches!(kind, Encoding::Int { range: None, .. });
        match on_overflow {
            _ if never_misfits => {}
            OnOverflow::Null if !nullable && !matches!(kind, Encoding::Array { .. }) => {
                return Err(PairError::NotNullable(target.clone()));
            }
            OnOverflow::Text => return Err(PairError::NotText(target.clone())),
            OnOverflow::Error | OnOverflow::Null | OnOverflow::Clamp => {}
        }
        Ok(Encoder { kind, nullable, on_overflow })
    }

    /// Appends a value.
    ///
    /// # Errors
    /// Nothing was appended then.
    #[inline]
    pub fn put(&self, out: &mut Vec<u8>, cell: Cell<'_>) -> Result<Fit, ValueError> {
        let start = out.len();
        let result = self.put_value(out, cell);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    #[inline]
    fn put_value(&self, out: &mut Vec<u8>, cell: Cell<'_>) -> Result<Fit, ValueError> {
        match cell {
            Cell::Null => return self.put_null(out),
            Cell::Unchanged => return Err(ValueError::Unsent),
            Cell::Text(_) | Cell::Binary(_) => {}
        }
        if self.nullable {
            out.push(0);
        }
        let start = out.len();
        match self.write(out, cell, Excess::Refused) {
            Ok(fit) => Ok(fit),
            Err(misfit) => {
                out.truncate(start);
                self.put_misfit(out, cell, misfit)
            }
        }
    }

    fn put_null(&self, out: &mut Vec<u8>) -> Result<Fit, ValueError> {
        if self.nullable {
            out.push(1);
            Ok(Fit::Exact)
        } else if matches!(self.kind, Encoding::Array { .. }) && self.on_overflow == OnOverflow::Clamp {
            out.push(0);
            Ok(Fit::Coerced)
        } else {
            Err(ValueError::Null)
        }
    }

    #[cold]
    fn put_misfit(&self, out: &mut Vec<u8>, cell: Cell<'_>, misfit: Misfit) -> Result<Fit, ValueError> {
        match (self.on_overflow, misfit) {
            (_, Misfit::Error(error)) => Err(error),
            (OnOverflow::Null, _) if self.nullable => {
                // The byte before the value said that there is one.
                out.pop();
                out.push(1);
                Ok(Fit::Coerced)
            }
            (OnOverflow::Clamp, Misfit::Below | Misfit::Above) => {
                self.put_limit(out, misfit == Misfit::Below);
                Ok(Fit::Coerced)
            }
            (OnOverflow::Clamp, Misfit::TooFine) => match self.write(out, cell, Excess::Dropped) {
                Ok(_) => Ok(Fit::Coerced),
                Err(Misfit::TooFine) => Err(ValueError::Overflow),
                Err(misfit) => self.put_misfit(out, cell, misfit),
            },
            _ => Err(ValueError::Overflow),
        }
    }

    fn put_limit(&self, out: &mut Vec<u8>, is_least: bool) {
        match &self.kind {
            Encoding::Int { bytes, range: Some((least, greatest)), .. } => {
                number::put_whole(out, if is_least { *least } else { *greatest }, *bytes);
            }
            Encoding::Decimal(decimal) => decimal.put_limit(out, is_least),
            Encoding::Days(days) => days.put_limit(out, is_least),
            Encoding::Ticks(ticks) => ticks.put_limit(out, is_least),
            _ => unreachable!("only numbers and times are below or above their column's range"),
        }
    }

    /// Appends what stands in a column that says nothing: of a tombstone, all but the key.
    pub fn put_default(&self, out: &mut Vec<u8>) {
        if self.nullable {
            out.push(1);
            return;
        }
        let width = match &self.kind {
            Encoding::Int { bytes, .. } => usize::from(*bytes),
            Encoding::Float32 => 4,
            Encoding::Float64 => 8,
            Encoding::Decimal(decimal) => decimal.bytes(),
            Encoding::Days(days) => days.bytes(),
            Encoding::Ticks(ticks) => ticks.bytes(),
            Encoding::Uuid => 16,
            // One byte: false, or an empty length.
            _ => 1,
        };
        out.resize(out.len() + width, 0);
    }

    #[inline]
    fn write(&self, out: &mut Vec<u8>, cell: Cell<'_>, excess: Excess) -> Result<Fit, Misfit> {
        match (&self.kind, cell) {
            (Encoding::Int { from, bytes, range }, cell) => number::write_whole(out, *from, *bytes, *range, cell)?,
            (Encoding::Verbatim, Cell::Binary(value) | Cell::Text(value)) => put_string(out, value),
            (Encoding::Ticks(ticks), cell) => ticks.write(out, cell, excess)?,
            (Encoding::Decimal(decimal), cell) => decimal.write(out, cell, excess)?,
            (Encoding::Uuid, cell) => number::write_uuid(out, cell)?,
            (Encoding::Float64, Cell::Binary(value)) => {
                out.extend_from_slice(&f64::from_be_bytes(exact(value)?).to_le_bytes());
            }
            (Encoding::Float64, cell) => {
                out.extend_from_slice(&number::parse::<f64>(text_of(cell)?)?.to_le_bytes());
            }
            (Encoding::Float32, Cell::Binary(value)) => {
                out.extend_from_slice(&f32::from_be_bytes(exact(value)?).to_le_bytes());
            }
            (Encoding::Float32, cell) => {
                out.extend_from_slice(&number::parse::<f32>(text_of(cell)?)?.to_le_bytes());
            }
            (Encoding::Bool, Cell::Binary([value @ (0 | 1)])) => out.push(*value),
            (Encoding::Bool, Cell::Text(b"t")) => out.push(1),
            (Encoding::Bool, Cell::Text(b"f")) => out.push(0),
            (Encoding::Bool, _) => return Err(MALFORMED),
            (Encoding::Days(days), cell) => days.write(out, cell)?,
            (Encoding::Bytes, Cell::Binary(value)) => put_string(out, value),
            (Encoding::Bytes, cell) => number::write_bytes(out, text_of(cell)?)?,
            (Encoding::Versioned, Cell::Binary(value)) => match value.split_first() {
                Some((1, document)) => put_string(out, document),
                _ => return Err(MALFORMED),
            },
            (Encoding::Printed(ty), Cell::Binary(value)) => {
                let at = begin_prefix(out);
                print::print(out, ty, value)?;
                end_prefix(out, at, out.len() - at - 1);
            }
            (Encoding::TextOnly, Cell::Binary(_)) => return Err(Misfit::Error(ValueError::BinaryForm)),
            (Encoding::Versioned | Encoding::Printed(_) | Encoding::TextOnly, cell) => put_string(out, text_of(cell)?),
            (Encoding::Array { element, depth }, cell) => return array::write(out, element, *depth, cell, excess),
            (Encoding::Verbatim, Cell::Null | Cell::Unchanged) => return Err(MALFORMED),
        }
        Ok(Fit::Exact)
    }
}

/// Whether [`print_text`] understands the type's binary form.
pub(in crate::value) fn prints(ty: &Type) -> bool {
    print::is_known(ty)
}

/// Appends a value of a built-in type as Postgres prints it; `None`, with some of it perhaps appended, if its binary form is
/// malformed or not understood.
pub(in crate::value) fn print_text(out: &mut Vec<u8>, ty: &Type, value: &[u8]) -> Option<()> {
    print::print(out, ty, value).ok()
}

fn exact<const N: usize>(value: &[u8]) -> Result<[u8; N], Misfit> {
    value.try_into().map_err(|_| MALFORMED)
}

fn text_of<'a>(cell: Cell<'a>) -> Result<&'a [u8], Misfit> {
    match cell {
        Cell::Text(text) => Ok(text),
        Cell::Binary(_) => Err(Misfit::Error(ValueError::BinaryForm)),
        Cell::Null | Cell::Unchanged => Err(MALFORMED),
    }
}

/// Appends a string that is no column's value: length and bytes.
#[inline]
pub fn put_string(out: &mut Vec<u8>, value: &[u8]) {
    put_length(out, value.len());
    out.extend_from_slice(value);
}

/// Unsigned LEB128: seven bits a byte, the lowest first.
#[inline]
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Leaves room for a length that is known only later; returns where.
fn begin_prefix(out: &mut Vec<u8>) -> usize {
    out.push(0);
    out.len() - 1
}

/// Writes the length for which room was left, making more of it where one byte does not do.
fn end_prefix(out: &mut Vec<u8>, at: usize, length: usize) {
    let body_end = out.len();
    put_length(out, length);
    let prefix_bytes = out.len() - body_end;
    if prefix_bytes > 1 {
        // The length stands behind the body now: turn it to the front, over the byte that was left.
        out[at..].rotate_right(prefix_bytes);
        out.remove(at + prefix_bytes);
    } else {
        out[at] = length as u8;
        out.truncate(body_end);
    }
}
