//! One value from Postgres's wire into an event.

use postgres_types::Type;

use super::bytes::{push_bits, write_bit, write_bytes, write_raw_bytes};
use super::decimal::{self, VariableLabels};
use super::nested;
use super::options::{BinaryMode, DecimalMode, HstoreMode, IntervalMode};
use super::out::{Label, Out};
use super::temporal::{self, DateForm, Interval, TimeForm, TimestampForm};
use super::{ValueError, exact, text_of};
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::{print_text, prints};

/// How a column's values are read and written, decided once.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Kind {
    Bool,
    Int(Whole),
    Float32,
    Float64,
    /// Both forms are the same text.
    Text,
    /// Text with a version byte before it in binary form.
    Versioned,
    /// Binary form is printed as Postgres prints it.
    Printed(Type),
    /// Only the text form is understood.
    TextOnly,
    Uuid,
    Bytes(BinaryMode),
    /// Of an unknown type, the bytes of its text.
    Opaque(BinaryMode),
    /// One bit: a boolean.
    Bit,
    Bits,
    Date(DateForm),
    Time(TimeForm),
    TimeTz,
    Timestamp(TimestampForm),
    /// With so many digits of a second.
    TimestampTz(u8),
    Interval(IntervalMode),
    Decimal {
        scale: u32,
    },
    VariableDecimal,
    DecimalDouble,
    DecimalText,
    Money {
        mode: DecimalMode,
        digits: u8,
    },
    Point,
    Hstore(HstoreMode),
    Array(Box<ArrayKind>),
}

#[derive(Clone, PartialEq, Debug)]
pub(super) struct ArrayKind {
    pub element: Kind,
    /// The element's schema has a place for NULL.
    pub nullable: bool,
    pub placeholder: Placeholder,
}

/// What stands for an array that was not sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Placeholder {
    /// The placeholder as the only element.
    OneElement,
    /// The placeholder's bytes, each a number.
    Numbers,
    /// A UUID made of the placeholder.
    Uuid,
}

/// A whole number on Postgres's wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Whole {
    Int2,
    Int4,
    Int8,
    Unsigned4,
}

/// What all values of a table share.
pub(super) struct Common {
    pub placeholder: String,
    /// The placeholder's UUID: version 3 of it, without a name space.
    pub placeholder_uuid: String,
    pub decimal_labels: VariableLabels,
    pub point_labels: [Label; 4],
}

impl Common {
    pub fn new(placeholder: &str) -> Common {
        Common {
            placeholder: placeholder.to_owned(),
            placeholder_uuid: super::placeholder::uuid(placeholder),
            decimal_labels: VariableLabels { scale: Label::new("scale"), value: Label::new("value") },
            point_labels: ["x", "y", "wkb", "srid"].map(Label::new),
        }
    }
}

impl Kind {
    /// Whether the binary form is understood.
    pub fn reads_binary(&self) -> bool {
        match self {
            Kind::TextOnly | Kind::Opaque(_) => false,
            Kind::Printed(ty) => prints(ty),
            Kind::Array(array) => array.element.reads_binary(),
            _ => true,
        }
    }

    /// Writes a value that is neither NULL nor unsent.
    pub fn write<O: Out>(&self, out: &mut O, common: &Common, cell: Cell<'_>) -> Result<(), ValueError> {
        match self {
            Kind::Int(from) => out.int(whole(*from, cell)?),
            Kind::Text => write_text(out, bytes_of(cell)?)?,
            Kind::Timestamp(form) => temporal::write_timestamp(out, *form, cell)?,
            Kind::TimestampTz(digits) => temporal::write_timestamp_with_zone(out, *digits, cell)?,
            Kind::Decimal { scale } => decimal::write_fixed(out, *scale, cell)?,
            Kind::Bool => out.boolean(match cell {
                Cell::Binary([1]) | Cell::Text(b"t") => true,
                Cell::Binary([0]) | Cell::Text(b"f") => false,
                _ => return Err(ValueError::Malformed),
            }),
            Kind::Float32 => out.float(match cell {
                Cell::Binary(value) => f32::from_be_bytes(exact(value)?),
                cell => parse(text_of(cell)?)?,
            }),
            Kind::Float64 => out.double(match cell {
                Cell::Binary(value) => f64::from_be_bytes(exact(value)?),
                cell => parse(text_of(cell)?)?,
            }),
            Kind::Versioned => match cell {
                Cell::Binary(value) => match value.split_first() {
                    Some((1, text)) => write_text(out, text)?,
                    _ => return Err(ValueError::Malformed),
                },
                cell => write_text(out, text_of(cell)?)?,
            },
            Kind::Uuid => write_printed(out, &Type::UUID, cell)?,
            Kind::Printed(ty) => write_printed(out, ty, cell)?,
            Kind::TextOnly => write_text(out, text_of(cell)?)?,
            Kind::Bytes(mode) => write_bytes(out, *mode, cell)?,
            Kind::Opaque(mode) => write_raw_bytes(out, *mode, text_of(cell)?)?,
            Kind::Bit => write_bit(out, cell)?,
            Kind::Bits => out.composed_bytes(|buffer| push_bits(buffer, cell))?,
            Kind::Date(form) => temporal::write_date(out, *form, cell)?,
            Kind::Time(form) => temporal::write_time(out, *form, cell)?,
            Kind::TimeTz => temporal::write_time_with_zone(out, cell)?,
            Kind::Interval(mode) => {
                let interval = Interval::read(cell)?;
                write_interval(out, *mode, interval)?;
            }
            Kind::VariableDecimal => decimal::write_variable(out, &common.decimal_labels, cell)?,
            Kind::DecimalDouble => decimal::write_double(out, cell)?,
            Kind::DecimalText => decimal::write_text(out, cell)?,
            Kind::Money { mode, digits } => decimal::write_money(out, *mode, *digits, cell)?,
            Kind::Point => {
                let (x, y) = nested::point(cell)?;
                write_point(out, common, x, y);
            }
            Kind::Hstore(mode) => nested::write_hstore(out, *mode, cell)?,
            Kind::Array(array) => nested::write_array(out, array, common, cell)?,
        }
        Ok(())
    }

    /// Writes the value that Debezium gives a column that must have one where the old row's image has none: 0 of its kind.
    pub fn write_zero<O: Out>(&self, out: &mut O, common: &Common) -> Result<(), ValueError> {
        match self {
            Kind::Bool | Kind::Bit => out.boolean(false),
            Kind::Int(_) => out.int(0),
            Kind::Float32 => out.float(0.0),
            Kind::Float64 | Kind::DecimalDouble => out.double(0.0),
            Kind::Text | Kind::Versioned | Kind::Printed(_) | Kind::TextOnly | Kind::Uuid => out.text(b""),
            Kind::Bytes(mode) | Kind::Opaque(mode) => write_raw_bytes(out, *mode, b"")?,
            Kind::Bits => out.bytes(b""),
            Kind::Date(DateForm::Days) => out.int(0),
            Kind::Date(DateForm::Iso) => out.text(b"1970-01-01Z"),
            Kind::Time(TimeForm::Millis | TimeForm::Micros | TimeForm::Nanos) => out.int(0),
            Kind::Time(TimeForm::Iso) | Kind::TimeTz => out.text(b"00:00:00Z"),
            Kind::Timestamp(TimestampForm::Millis | TimestampForm::Micros | TimestampForm::Nanos) => out.int(0),
            Kind::Timestamp(TimestampForm::Iso) | Kind::TimestampTz(_) => out.text(b"1970-01-01T00:00:00Z"),
            Kind::Interval(mode) => write_interval(out, *mode, Interval::default())?,
            Kind::Decimal { scale } => decimal::write_fixed(out, *scale, Cell::Text(b"0"))?,
            Kind::VariableDecimal => decimal::write_variable(out, &common.decimal_labels, Cell::Text(b"0"))?,
            Kind::DecimalText => out.text(b"0"),
            Kind::Money { mode, digits } => {
                decimal::write_money(out, *mode, *digits, Cell::Binary(&0_i64.to_be_bytes()))?;
            }
            Kind::Point => write_point(out, common, 0.0, 0.0),
            Kind::Hstore(HstoreMode::Json) => out.text(b"{}"),
            Kind::Hstore(HstoreMode::Map) => {
                out.begin_map();
                out.end_map();
            }
            Kind::Array(_) => {
                out.begin_array(Some(0));
                out.end_array();
            }
        }
        Ok(())
    }
}

pub(super) fn parse<T: std::str::FromStr>(text: &[u8]) -> Result<T, ValueError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(ValueError::Malformed)
}

fn bytes_of<'a>(cell: Cell<'a>) -> Result<&'a [u8], ValueError> {
    match cell {
        Cell::Text(value) | Cell::Binary(value) => Ok(value),
        Cell::Null | Cell::Unchanged => Err(ValueError::Malformed),
    }
}

#[inline]
fn whole(from: Whole, cell: Cell<'_>) -> Result<i64, ValueError> {
    Ok(match (from, cell) {
        (Whole::Int2, Cell::Binary(value)) => i16::from_be_bytes(exact(value)?).into(),
        (Whole::Int4, Cell::Binary(value)) => i32::from_be_bytes(exact(value)?).into(),
        (Whole::Int8, Cell::Binary(value)) => i64::from_be_bytes(exact(value)?),
        (Whole::Unsigned4, Cell::Binary(value)) => u32::from_be_bytes(exact(value)?).into(),
        (_, cell) => parse(text_of(cell)?)?,
    })
}

/// A database in SQL_ASCII may hold bytes that are no text; they are not made to look like some.
pub(super) fn write_text<O: Out>(out: &mut O, text: &[u8]) -> Result<(), ValueError> {
    std::str::from_utf8(text).map_err(|_| ValueError::NotUtf8)?;
    out.text(text);
    Ok(())
}

fn write_printed<O: Out>(out: &mut O, ty: &Type, cell: Cell<'_>) -> Result<(), ValueError> {
    match cell {
        Cell::Binary(value) => out.composed_text(|buffer| print_text(buffer, ty, value).ok_or(ValueError::Malformed)),
        cell => write_text(out, text_of(cell)?),
    }
}

fn write_interval<O: Out>(out: &mut O, mode: IntervalMode, interval: Interval) -> Result<(), ValueError> {
    match mode {
        IntervalMode::Numeric => out.int(interval.approximate_micros()),
        IntervalMode::String => out.composed_text(|buffer| {
            interval.push_iso(buffer);
            Ok(())
        })?,
    }
    Ok(())
}

/// A point, and the same as OGC's well-known binary: byte order, type 1, coordinates, all little-endian.
fn write_point<O: Out>(out: &mut O, common: &Common, x: f64, y: f64) {
    let mut wkb = [0_u8; 21];
    (wkb[0], wkb[1]) = (1, 1);
    wkb[5..13].copy_from_slice(&x.to_le_bytes());
    wkb[13..].copy_from_slice(&y.to_le_bytes());
    let [x_label, y_label, wkb_label, srid_label] = &common.point_labels;
    out.begin_struct();
    out.field(x_label);
    out.double(x);
    out.field(y_label);
    out.double(y);
    out.field(wkb_label);
    out.some();
    out.bytes(&wkb);
    out.field(srid_label);
    out.null();
    out.end_struct();
}
