//! Which ClickHouse type a Postgres column becomes, and ClickHouse types as text.
//!
//! A value that lands in a `String` is what Postgres prints, byte for byte; only `bytea` is its raw bytes.
//!
//! | Postgres | ClickHouse | what the type cannot hold |
//! |---|---|---|
//! | `smallint`, `integer`, `bigint` | `Int16`, `Int32`, `Int64` | |
//! | `oid`, `xid`, `cid` | `UInt32` | |
//! | `real`, `double precision` | `Float32`, `Float64`, with `NaN`, infinities and `-0` | |
//! | `numeric(p,s)` of up to 76 digits | `Decimal(p, s)` | `NaN` |
//! | `numeric`, or of more than 76 digits | `String`: `Decimal` would cut digits | |
//! | `boolean` | `Bool` | |
//! | `text`, `varchar`, `char(n)` with its blanks, `name`, `citext`, `xml` | `String` | |
//! | enum | `LowCardinality(String)`: labels may be added and renamed | |
//! | `uuid` | `UUID` | |
//! | `bytea` | `String`, raw bytes | |
//! | `date` | `Date32` | before 1900, after 2299 (see [`Reach`]), infinities |
//! | `timestamp`, `timestamptz` | `DateTime64(6, 'UTC')`, whatever the server's zone | the same |
//! | `time`, `timetz`, `interval` | `String` | |
//! | `json`, `jsonb` | `String`: ClickHouse's `JSON` drops duplicate keys, nulls and digits | |
//! | array of one of these, not null | `Array(Nullable(…))` | more than one dimension, a first index other than 1 |
//! | array that may be null | `String`: an `Array` cannot be null and must not become empty | |
//! | range, multirange, network, bit, `pg_lsn`, composite, geometric, text search, all others | `String` | |
//! | domain | as its base type, with the domain's precision | |
//!
//! Of types whose binary form is not understood (see `rowbinary::reads_binary`) the source must send text.
//!
//! `Nullable(…)` only where the source column can be null. `on_overflow` says what becomes of a value that the type cannot
//! hold; `text` makes the whole column a `String`, `clamp` makes a null array an empty one.

use std::fmt;

use postgres_types::{Kind, Type};
use schemars::JsonSchema;
use serde::Serialize;

use crate::catalog::{Column, TypeKind};

/// What is written for a value that the target column cannot hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnOverflow {
    /// Nothing: the row is in error.
    #[default]
    Error,
    /// NULL.
    Null,
    /// The nearest value that the column can hold. `NaN` has none.
    Clamp,
    /// The column is a `String`, which holds everything.
    Text,
}

/// How far the server's `Date32` and `DateTime64` reach. What lies outside it takes, and shows other days for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reach {
    /// From 1900 to 2299, what ClickHouse's documentation promises.
    #[default]
    Documented,
    /// From 0001 to 9999: newer servers.
    FourDigits,
}

impl Reach {
    /// A query whose one value, `1`, says [`Reach::FourDigits`].
    pub const PROBE: &str = "SELECT toString(toDate32(2932896)) = '9999-12-31' AND toString(toDate32(-719162)) = '0001-01-01' \
                             AND toString(fromUnixTimestamp64Micro(253402300799999999, 'UTC')) = '9999-12-31 23:59:59.999999'";
}

/// A column's type at the source, as far as its values' forms depend on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct SourceType {
    /// Of a domain its base type's.
    pub oid: u32,
    /// `atttypmod`, -1 if there is none or it is not known.
    pub modifier: i32,
    pub form: Form,
}

/// How the values of a type look that is not built in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// By its OID.
    BuiltIn,
    /// Its binary form is the bytes of its text form.
    TextAlike,
    Enum,
    /// Only its text form is understood.
    Unknown,
    /// It has no binary form.
    Text,
}

impl SourceType {
    pub fn built_in(oid: u32, modifier: i32) -> Self {
        SourceType { oid, modifier, form: Form::BuiltIn }
    }

    pub fn of(column: &Column) -> Self {
        let bare_name = column.wire_type.rsplit('.').next().unwrap_or_default();
        let form = match column.type_kind {
            _ if !column.has_binary => Form::Text,
            TypeKind::Enum => Form::Enum,
            _ if Type::from_oid(column.wire_oid).is_some() => Form::BuiltIn,
            _ if bare_name == "citext" => Form::TextAlike,
            _ => Form::Unknown,
        };
        SourceType { oid: column.wire_oid, modifier: column.wire_modifier, form }
    }

    pub(super) fn built_in_type(&self) -> Option<Type> {
        if self.form == Form::BuiltIn { Type::from_oid(self.oid) } else { None }
    }

    /// The element's type, if this is an array of a built-in type.
    pub(super) fn element(&self) -> Option<SourceType> {
        match self.built_in_type()?.kind() {
            // An array's modifier is its elements'.
            Kind::Array(element) => Some(SourceType::built_in(element.oid(), self.modifier)),
            _ => None,
        }
    }
}

/// A ClickHouse type, as far as values can be written into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ColumnType {
    Bool,
    /// 1, 2, 4 or 8 bytes.
    Int {
        bytes: u8,
        signed: bool,
    },
    Float32,
    Float64,
    Decimal {
        precision: u8,
        scale: u8,
    },
    String,
    Uuid,
    Date,
    Date32,
    DateTime {
        zone: Option<String>,
    },
    DateTime64 {
        precision: u8,
        zone: Option<String>,
    },
    UInt128,
    Array(Box<ColumnType>),
    Nullable(Box<ColumnType>),
    LowCardinality(Box<ColumnType>),
    /// No value of ours can be written into it.
    Other(String),
}

/// Decimal digits that ClickHouse's widest `Decimal` holds.
pub const DECIMAL_DIGITS_MAX: u32 = 76;

/// The type that a column of ours gets for a column of the source.
pub fn column_type(source: &SourceType, nullable: bool, on_overflow: OnOverflow) -> ColumnType {
    if source.form == Form::Enum {
        return wrap(ColumnType::LowCardinality(Box::new(wrap(ColumnType::String, nullable))), false);
    }
    if let Some(element) = source.element() {
        let holds_null = !nullable || on_overflow == OnOverflow::Clamp;
        return if holds_null && on_overflow != OnOverflow::Text && element.element().is_none() {
            ColumnType::Array(Box::new(wrap(scalar_type(&element, on_overflow), true)))
        } else {
            wrap(ColumnType::String, nullable)
        };
    }
    let scalar = scalar_type(source, on_overflow);
    wrap(scalar, nullable || on_overflow == OnOverflow::Null && has_overflow(source))
}

fn wrap(inner: ColumnType, nullable: bool) -> ColumnType {
    if nullable { ColumnType::Nullable(Box::new(inner)) } else { inner }
}

/// The type has values that its column cannot hold.
fn has_overflow(source: &SourceType) -> bool {
    matches!(
        scalar_type(source, OnOverflow::Error),
        ColumnType::Decimal { .. } | ColumnType::Date32 | ColumnType::DateTime64 { .. }
    )
}

fn scalar_type(source: &SourceType, on_overflow: OnOverflow) -> ColumnType {
    let signed = |bytes| ColumnType::Int { bytes, signed: true };
    match source.built_in_type() {
        Some(Type::BOOL) => ColumnType::Bool,
        Some(Type::INT2) => signed(2),
        Some(Type::INT4) => signed(4),
        Some(Type::INT8) => signed(8),
        Some(Type::OID | Type::XID | Type::CID) => ColumnType::Int { bytes: 4, signed: false },
        Some(Type::FLOAT4) => ColumnType::Float32,
        Some(Type::FLOAT8) => ColumnType::Float64,
        Some(Type::UUID) => ColumnType::Uuid,
        Some(Type::NUMERIC) if on_overflow != OnOverflow::Text => decimal(source.modifier),
        Some(Type::DATE) if on_overflow != OnOverflow::Text => ColumnType::Date32,
        Some(Type::TIMESTAMP | Type::TIMESTAMPTZ) if on_overflow != OnOverflow::Text => {
            ColumnType::DateTime64 { precision: 6, zone: Some("UTC".to_owned()) }
        }
        _ => ColumnType::String,
    }
}

/// `numeric_typmod_in`: precision and scale in the upper and lower half, after the four bytes of a header; the scale has
/// eleven bits and may be negative or larger than the precision.
fn decimal(modifier: i32) -> ColumnType {
    let Ok(packed) = u32::try_from(modifier - 4) else { return ColumnType::String };
    let precision = (packed >> 16) & 0xFFFF;
    let scale = ((packed & 0x7FF) as i32 ^ 1024) - 1024;
    // A negative scale: so many more digits, which are zeros. A scale above the precision: so many more zeros after the point.
    let scale_of_ours = scale.max(0).unsigned_abs();
    let digits = (precision + scale.min(0).unsigned_abs()).max(scale_of_ours);
    match (u8::try_from(digits), u8::try_from(scale_of_ours)) {
        (Ok(precision), Ok(scale)) if digits <= DECIMAL_DIGITS_MAX => ColumnType::Decimal { precision, scale },
        _ => ColumnType::String,
    }
}

impl ColumnType {
    /// Reads a type as `system.columns` names it. What is not known becomes [`ColumnType::Other`].
    pub fn parse(text: &str) -> ColumnType {
        parse(text.trim()).unwrap_or_else(|| ColumnType::Other(text.trim().to_owned()))
    }

    pub fn is_nullable(&self) -> bool {
        match self {
            ColumnType::Nullable(_) => true,
            ColumnType::LowCardinality(inner) => inner.is_nullable(),
            _ => false,
        }
    }

    /// Equal values need not look equal (`-0`, `0`) nor be found again (`NaN`).
    pub fn is_float(&self) -> bool {
        match self {
            ColumnType::Float32 | ColumnType::Float64 => true,
            ColumnType::Nullable(inner) | ColumnType::LowCardinality(inner) => inner.is_float(),
            _ => false,
        }
    }

    /// Without `Nullable` and `LowCardinality`, which the bytes of a value do not show.
    pub fn bare(&self) -> &ColumnType {
        match self {
            ColumnType::Nullable(inner) | ColumnType::LowCardinality(inner) => inner.bare(),
            other => other,
        }
    }
}

fn parse(text: &str) -> Option<ColumnType> {
    let (name, arguments) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), rest.strip_suffix(')')?.trim()),
        None => (text, ""),
    };
    let inner = || Box::new(ColumnType::parse(arguments));
    let int = |bytes, signed| ColumnType::Int { bytes, signed };
    Some(match name {
        "Nullable" => ColumnType::Nullable(inner()),
        "LowCardinality" => ColumnType::LowCardinality(inner()),
        "Array" => ColumnType::Array(inner()),
        "Bool" => ColumnType::Bool,
        "Int8" => int(1, true),
        "Int16" => int(2, true),
        "Int32" => int(4, true),
        "Int64" => int(8, true),
        "UInt8" => int(1, false),
        "UInt16" => int(2, false),
        "UInt32" => int(4, false),
        "UInt64" => int(8, false),
        "UInt128" => ColumnType::UInt128,
        "Float32" => ColumnType::Float32,
        "Float64" => ColumnType::Float64,
        "String" => ColumnType::String,
        "UUID" => ColumnType::Uuid,
        "Date" => ColumnType::Date,
        "Date32" => ColumnType::Date32,
        "DateTime" => ColumnType::DateTime { zone: zone(arguments)? },
        "DateTime64" => {
            let (precision, rest) = arguments.split_once(',').unwrap_or((arguments, ""));
            let precision = precision.trim().parse().ok().filter(|precision| *precision <= 9)?;
            ColumnType::DateTime64 { precision, zone: zone(rest)? }
        }
        "Decimal" => {
            let (precision, scale) = arguments.split_once(',')?;
            let (precision, scale) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
            (scale <= precision && u32::from(precision) <= DECIMAL_DIGITS_MAX && precision > 0)
                .then_some(ColumnType::Decimal { precision, scale })?
        }
        _ => return None,
    })
}

/// A time zone in quotes, or nothing.
fn zone(text: &str) -> Option<Option<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(None);
    }
    let name = text.strip_prefix('\'')?.strip_suffix('\'')?;
    Some(Some(name.to_owned()))
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::Bool => f.write_str("Bool"),
            ColumnType::Int { bytes, signed } => {
                write!(f, "{}Int{}", if *signed { "" } else { "U" }, u16::from(*bytes) * 8)
            }
            ColumnType::Float32 => f.write_str("Float32"),
            ColumnType::Float64 => f.write_str("Float64"),
            ColumnType::Decimal { precision, scale } => write!(f, "Decimal({precision}, {scale})"),
            ColumnType::String => f.write_str("String"),
            ColumnType::Uuid => f.write_str("UUID"),
            ColumnType::Date => f.write_str("Date"),
            ColumnType::Date32 => f.write_str("Date32"),
            ColumnType::DateTime { zone: None } => f.write_str("DateTime"),
            ColumnType::DateTime { zone: Some(zone) } => write!(f, "DateTime('{zone}')"),
            ColumnType::DateTime64 { precision, zone: None } => write!(f, "DateTime64({precision})"),
            ColumnType::DateTime64 { precision, zone: Some(zone) } => write!(f, "DateTime64({precision}, '{zone}')"),
            ColumnType::UInt128 => f.write_str("UInt128"),
            ColumnType::Array(inner) => write!(f, "Array({inner})"),
            ColumnType::Nullable(inner) => write!(f, "Nullable({inner})"),
            ColumnType::LowCardinality(inner) => write!(f, "LowCardinality({inner})"),
            ColumnType::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OnOverflow::{Clamp, Error, Null, Text};

    fn named(ty: &Type, modifier: i32, nullable: bool, on_overflow: OnOverflow) -> String {
        column_type(&SourceType::built_in(ty.oid(), modifier), nullable, on_overflow).to_string()
    }

    fn typmod(precision: i32, scale: i32) -> i32 {
        ((precision << 16) | (scale & 0x7FF)) + 4
    }

    #[test]
    fn every_source_type_has_one_target() {
        let cases: [(Type, i32, bool, OnOverflow, &str); 28] = [
            (Type::INT2, -1, false, Error, "Int16"),
            (Type::INT8, -1, true, Error, "Nullable(Int64)"),
            (Type::OID, -1, false, Error, "UInt32"),
            (Type::FLOAT4, -1, false, Error, "Float32"),
            (Type::NUMERIC, -1, false, Error, "String"),
            (Type::NUMERIC, typmod(12, 4), false, Error, "Decimal(12, 4)"),
            (Type::NUMERIC, typmod(12, 4), false, Text, "String"),
            (Type::NUMERIC, typmod(12, 4), false, Null, "Nullable(Decimal(12, 4))"),
            (Type::NUMERIC, typmod(76, 0), false, Error, "Decimal(76, 0)"),
            (Type::NUMERIC, typmod(77, 0), false, Error, "String"),
            (Type::NUMERIC, typmod(3, -2), false, Error, "Decimal(5, 0)"),
            (Type::NUMERIC, typmod(2, 5), false, Error, "Decimal(5, 5)"),
            (Type::BOOL, -1, false, Null, "Bool"),
            (Type::VARCHAR, 9, true, Error, "Nullable(String)"),
            (Type::UUID, -1, false, Error, "UUID"),
            (Type::BYTEA, -1, false, Error, "String"),
            (Type::DATE, -1, false, Error, "Date32"),
            (Type::DATE, -1, true, Text, "Nullable(String)"),
            (Type::TIMESTAMP, 0, false, Clamp, "DateTime64(6, 'UTC')"),
            (Type::TIMESTAMPTZ, -1, true, Error, "Nullable(DateTime64(6, 'UTC'))"),
            (Type::INTERVAL, -1, false, Error, "String"),
            (Type::JSONB, -1, false, Error, "String"),
            (Type::INT4_ARRAY, -1, false, Error, "Array(Nullable(Int32))"),
            (Type::INT4_ARRAY, -1, true, Error, "Nullable(String)"),
            (Type::INT4_ARRAY, -1, true, Clamp, "Array(Nullable(Int32))"),
            (Type::NUMERIC_ARRAY, typmod(5, 1), false, Error, "Array(Nullable(Decimal(5, 1)))"),
            (Type::TEXT_ARRAY, -1, false, Text, "String"),
            (Type::INT4_RANGE, -1, false, Error, "String"),
        ];
        for (ty, modifier, nullable, on_overflow, expected) in cases {
            assert_eq!(named(&ty, modifier, nullable, on_overflow), expected, "{ty} {modifier} {on_overflow:?}");
        }
        let mood = SourceType { oid: 16_400, modifier: -1, form: Form::Enum };
        assert_eq!(column_type(&mood, false, Error).to_string(), "LowCardinality(String)");
        assert_eq!(column_type(&mood, true, Error).to_string(), "LowCardinality(Nullable(String))");
    }

    #[test]
    fn types_are_read_as_the_server_names_them() {
        for text in [
            "LowCardinality(Nullable(String))",
            "Array(Array(Nullable(Int32)))",
            "DateTime64(3)",
            "DateTime64(6, 'Europe/Berlin')",
            "DateTime('UTC')",
            "Decimal(76, 38)",
            "UInt128",
            "Date",
        ] {
            let read = ColumnType::parse(text);
            assert_eq!(read.to_string(), text);
            assert!(!matches!(read, ColumnType::Other(_)), "{text} is known");
        }
        for text in ["Map(String, String)", "Decimal(77, 0)", "DateTime64(10)", "Enum8('a' = 1)", "Nested(", ""] {
            assert_eq!(ColumnType::parse(text), ColumnType::Other(text.to_owned()));
        }
        assert_eq!(ColumnType::parse("Decimal(9,2)"), ColumnType::Decimal { precision: 9, scale: 2 });
    }
}
