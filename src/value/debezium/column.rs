//! Which Kafka Connect type a Postgres column becomes, as Debezium's Postgres connector decides it.
//!
//! | Postgres | Connect type (semantic type) |
//! |---|---|
//! | `boolean`, `bit(1)`, `varbit(1)` | boolean |
//! | `smallint`; `integer`; `bigint`, `oid` | int16; int32; int64 |
//! | `real`; `double precision` | float; double |
//! | `numeric(p,s)`, `money` | bytes (`Decimal`), double or string, by `decimal_handling_mode` |
//! | `numeric` | struct (`VariableScaleDecimal`), double or string |
//! | `text`, `varchar`, `char`, `citext`, `name`, network addresses, ranges, `isbn` | string |
//! | `json`, `jsonb`; `xml`; `uuid`; `ltree`; `tsvector`; enum | string (`Json`; `Xml`; `Uuid`; `Ltree`; `Tsvector`; `Enum`) |
//! | `bytea` | bytes or string, by `binary_handling_mode` |
//! | `bit(n)`, `varbit` | bytes, the lowest bit first (`Bits`) |
//! | `date`, `time`, `timestamp` | by `time_precision_mode` |
//! | `timestamptz`, `timetz` | string, in UTC (`ZonedTimestamp`, `ZonedTime`) |
//! | `interval` | int64 (`MicroDuration`) or string (`Interval`), by `interval_handling_mode` |
//! | `hstore` | string (`Json`) or map, by `hstore_handling_mode` |
//! | `point` | struct (`Point`) |
//! | arrays of these, but for `bit`, `interval`, `money`, `name`, `point`, `xml` | array |
//! | a domain | as its base type, with the length or scale that the domain (or one under it) sets |
//! | all others | left out, or the bytes of their text with `include_unknown_datatypes` |

use postgres_types::{Kind as PostgresKind, Type};
use serde::Serialize;

use super::options::{DecimalMode, HstoreMode, IntervalMode, Options, TimePrecision};
use super::schema::{Schema, Shape};
use super::temporal::{DateForm, TimeForm, TimestampForm};
use super::value::{ArrayKind, Kind, Placeholder, Whole};
use crate::catalog;
use crate::value::clickhouse::types::{Form, SourceType};

/// One column of a source table, in the order in which its rows have them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Column {
    pub name: String,
    pub source: SourceType,
    /// The type's name without its schema, `[]` behind it if it is an array: `hstore`, `mood[]`. Of a domain its base type's.
    pub type_name: String,
    /// Labels of the enum, or of the enum that the array is of, in their order.
    pub labels: Vec<String>,
    pub nullable: bool,
    /// Not to be sent; a key column is still part of the key.
    pub excluded: bool,
}

impl Column {
    /// A column as the catalog has it.
    pub fn of(column: &catalog::Column) -> Column {
        let bare_name = column.wire_type.rsplit('.').next().unwrap_or_default().replace('"', "");
        Column {
            name: column.name.clone(),
            source: SourceType::of(column),
            type_name: bare_name,
            labels: column.enum_labels.clone(),
            nullable: !column.not_null,
            excluded: false,
        }
    }

    /// Whether binary values of this column are understood. If not, the source must send text.
    pub fn reads_binary(&self, options: &Options) -> bool {
        match choose(self, options) {
            None => true,
            Some((kind, _)) => kind.reads_binary(),
        }
    }

    /// Whether the column is part of events at all.
    pub fn is_known(&self, options: &Options) -> bool {
        choose(self, options).is_some()
    }
}

/// How the column's values are written and what is said of them; `None` if Debezium leaves the column out.
pub(super) fn choose(column: &Column, options: &Options) -> Option<(Kind, Schema)> {
    let known = match column.type_name.strip_suffix("[]") {
        Some(element) if is_array(column) => array(column, element, options),
        _ => scalar(&column.source, &column.type_name, &column.labels, options),
    };
    known.or_else(|| {
        let opaque = (Kind::Opaque(options.binary_handling_mode), bytes_schema(options));
        options.include_unknown_datatypes.then_some(opaque)
    })
}

fn is_array(column: &Column) -> bool {
    match column.source.form {
        Form::BuiltIn => {
            Type::from_oid(column.source.oid).is_some_and(|ty| matches!(ty.kind(), PostgresKind::Array(_)))
        }
        Form::Unknown | Form::TextAlike | Form::Enum | Form::Text => true,
    }
}

fn array(column: &Column, element_name: &str, options: &Options) -> Option<(Kind, Schema)> {
    let element = match Type::from_oid(column.source.oid).filter(|_| column.source.form == Form::BuiltIn) {
        Some(ty) => match ty.kind() {
            PostgresKind::Array(element) => SourceType::built_in(element.oid(), column.source.modifier),
            _ => return None,
        },
        None => {
            let form = match element_name {
                _ if !column.labels.is_empty() => Form::Enum,
                "citext" => Form::TextAlike,
                _ => Form::Unknown,
            };
            SourceType { oid: 0, modifier: column.source.modifier, form }
        }
    };
    if let Some(Type::BIT | Type::VARBIT | Type::INTERVAL | Type::MONEY | Type::NAME | Type::POINT | Type::XML) =
        built_in(&element)
    {
        return None;
    }
    let (kind, schema) = scalar(&element, element_name, &column.labels, options)?;
    let placeholder = placeholder(&element, &kind);
    // Debezium's schema of an array of an enum, alone of all, has no place for NULL.
    let schema = schema.optional_if(element.form != Form::Enum);
    let nullable = schema.optional;
    Some((Kind::Array(Box::new(ArrayKind { element: kind, nullable, placeholder })), Schema::array(schema)))
}

/// What stands for an array that was not sent.
fn placeholder(element: &SourceType, kind: &Kind) -> Placeholder {
    match built_in(element) {
        Some(Type::INT4 | Type::DATE | Type::INT8) if matches!(kind, Kind::Int(_) | Kind::Date(DateForm::Days)) => {
            Placeholder::Numbers
        }
        Some(Type::UUID) => Placeholder::Uuid,
        _ => Placeholder::OneElement,
    }
}

fn built_in(source: &SourceType) -> Option<Type> {
    Type::from_oid(source.oid).filter(|_| source.form == Form::BuiltIn)
}

fn scalar(source: &SourceType, name: &str, labels: &[String], options: &Options) -> Option<(Kind, Schema)> {
    let plain = |kind, shape: Shape| (kind, Schema::from(shape));
    let semantic = |kind, name: &str| (kind, Schema::named(Shape::String, format!("io.debezium.{name}")));
    // A domain over an enum has its labels too.
    if source.form == Form::Enum || source.form == Form::Unknown && !labels.is_empty() {
        let (kind, schema) = semantic(Kind::Text, "data.Enum");
        return Some((kind, schema.parameter("allowed", labels.join(","))));
    }
    let Some(ty) = built_in(source) else {
        return Some(match name {
            "citext" => plain(Kind::Text, Shape::String),
            "isbn" => plain(Kind::TextOnly, Shape::String),
            "ltree" => semantic(Kind::Versioned, "data.Ltree"),
            "hstore" => hstore(options),
            _ => return None,
        });
    };
    Some(match ty {
        Type::BOOL => plain(Kind::Bool, Shape::Boolean),
        Type::INT2 => plain(Kind::Int(Whole::Int2), Shape::Int16),
        Type::INT4 => plain(Kind::Int(Whole::Int4), Shape::Int32),
        Type::INT8 => plain(Kind::Int(Whole::Int8), Shape::Int64),
        Type::OID => plain(Kind::Int(Whole::Unsigned4), Shape::Int64),
        Type::FLOAT4 => plain(Kind::Float32, Shape::Float),
        Type::FLOAT8 => plain(Kind::Float64, Shape::Double),
        Type::NUMERIC => numeric(source.modifier, options),
        Type::MONEY => money(options),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => plain(Kind::Text, Shape::String),
        Type::CHAR
        | Type::INET
        | Type::CIDR
        | Type::MACADDR
        | Type::MACADDR8
        | Type::INT4_RANGE
        | Type::INT8_RANGE
        | Type::NUM_RANGE
        | Type::TS_RANGE
        | Type::TSTZ_RANGE
        | Type::DATE_RANGE => plain(Kind::Printed(ty), Shape::String),
        Type::JSON => semantic(Kind::Text, "data.Json"),
        Type::JSONB => semantic(Kind::Versioned, "data.Json"),
        Type::XML => semantic(Kind::Text, "data.Xml"),
        Type::UUID => semantic(Kind::Uuid, "data.Uuid"),
        Type::TS_VECTOR => semantic(Kind::TextOnly, "data.Tsvector"),
        Type::BYTEA => (Kind::Bytes(options.binary_handling_mode), bytes_schema(options)),
        Type::BIT | Type::VARBIT => bits(source.modifier),
        Type::DATE => date(options),
        Type::TIME => time(source.modifier, options),
        Type::TIMETZ => semantic(Kind::TimeTz, "time.ZonedTime"),
        Type::TIMESTAMP => timestamp(source.modifier, options),
        Type::TIMESTAMPTZ => semantic(Kind::TimestampTz(digits(source.modifier)), "time.ZonedTimestamp"),
        Type::INTERVAL => interval(options),
        Type::POINT => point(),
        _ => return None,
    })
}

fn hstore(options: &Options) -> (Kind, Schema) {
    let schema = match options.hstore_handling_mode {
        HstoreMode::Json => Schema::named(Shape::String, "io.debezium.data.Json"),
        HstoreMode::Map => Shape::Map(Box::new(Schema::from(Shape::String).optional())).into(),
    };
    (Kind::Hstore(options.hstore_handling_mode), schema)
}

fn bytes_schema(options: &Options) -> Schema {
    use super::options::BinaryMode::{Base64, Base64UrlSafe, Bytes, Hex};
    match options.binary_handling_mode {
        Bytes => Shape::Bytes.into(),
        Base64 | Base64UrlSafe | Hex => Shape::String.into(),
    }
}

/// Connect's own type for decimals; its version, alone, is one that Connect sets.
fn decimal_schema(scale: u32) -> Schema {
    Schema::named(Shape::Bytes, "org.apache.kafka.connect.data.Decimal").parameter("scale", scale)
}

fn numeric(modifier: i32, options: &Options) -> (Kind, Schema) {
    match options.decimal_handling_mode {
        DecimalMode::Double => (Kind::DecimalDouble, Shape::Double.into()),
        DecimalMode::String => (Kind::DecimalText, Shape::String.into()),
        DecimalMode::Precise => match precision_and_scale(modifier) {
            Some((precision, scale)) => {
                let schema = decimal_schema(scale).parameter("connect.decimal.precision", precision);
                (Kind::Decimal { scale }, schema)
            }
            None => {
                let fields = [("scale", Schema::from(Shape::Int32)), ("value", Schema::from(Shape::Bytes))];
                let schema = Schema {
                    name: Some("io.debezium.data.VariableScaleDecimal".to_owned()),
                    doc: Some("Variable scaled decimal"),
                    ..Schema::structure(fields).version(1)
                };
                (Kind::VariableDecimal, schema)
            }
        },
    }
}

/// `numeric_typmod_in`: precision and scale in the upper and lower half, after the four bytes of a header; the scale has
/// eleven bits. A negative one means zeros before the point, which stand there as digits.
fn precision_and_scale(modifier: i32) -> Option<(u32, u32)> {
    let packed = u32::try_from(modifier.checked_sub(4)?).ok()?;
    let scale = ((packed & 0x7FF).cast_signed() ^ 1024) - 1024;
    let precision = (packed >> 16) + scale.min(0).unsigned_abs();
    Some((precision, scale.max(0).unsigned_abs()))
}

fn money(options: &Options) -> (Kind, Schema) {
    let schema = match options.decimal_handling_mode {
        DecimalMode::Precise => decimal_schema(options.money_fraction_digits.into()),
        DecimalMode::Double => Shape::Double.into(),
        DecimalMode::String => Shape::String.into(),
    };
    (Kind::Money { mode: options.decimal_handling_mode, digits: options.money_fraction_digits }, schema)
}

/// Longest `varbit`, as Debezium says it of one without a length.
const BITS_MAX: i32 = i32::MAX;

fn bits(modifier: i32) -> (Kind, Schema) {
    match modifier {
        1 => (Kind::Bit, Shape::Boolean.into()),
        length => {
            let length = if length > 0 { length } else { BITS_MAX };
            (Kind::Bits, Schema::named(Shape::Bytes, "io.debezium.data.Bits").parameter("length", length))
        }
    }
}

/// Digits of a second that the column keeps.
fn digits(modifier: i32) -> u8 {
    u8::try_from(modifier).map_or(6, |digits| digits.min(6))
}

fn date(options: &Options) -> (Kind, Schema) {
    match options.time_precision_mode {
        TimePrecision::Isostring => {
            (Kind::Date(DateForm::Iso), Schema::named(Shape::String, "io.debezium.time.IsoDate"))
        }
        TimePrecision::Connect => {
            (Kind::Date(DateForm::Days), Schema::named(Shape::Int32, "org.apache.kafka.connect.data.Date"))
        }
        TimePrecision::Adaptive
        | TimePrecision::AdaptiveTimeMicroseconds
        | TimePrecision::Microseconds
        | TimePrecision::Nanoseconds => {
            (Kind::Date(DateForm::Days), Schema::named(Shape::Int32, "io.debezium.time.Date"))
        }
    }
}

fn time(modifier: i32, options: &Options) -> (Kind, Schema) {
    let (form, shape, name) = match options.time_precision_mode {
        TimePrecision::Adaptive if digits(modifier) <= 3 => (TimeForm::Millis, Shape::Int32, "io.debezium.time.Time"),
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds | TimePrecision::Microseconds => {
            (TimeForm::Micros, Shape::Int64, "io.debezium.time.MicroTime")
        }
        TimePrecision::Nanoseconds => (TimeForm::Nanos, Shape::Int64, "io.debezium.time.NanoTime"),
        TimePrecision::Connect => (TimeForm::Millis, Shape::Int32, "org.apache.kafka.connect.data.Time"),
        TimePrecision::Isostring => (TimeForm::Iso, Shape::String, "io.debezium.time.IsoTime"),
    };
    (Kind::Time(form), Schema::named(shape, name))
}

fn timestamp(modifier: i32, options: &Options) -> (Kind, Schema) {
    let (form, shape, name) = match options.time_precision_mode {
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds if digits(modifier) <= 3 => {
            (TimestampForm::Millis, Shape::Int64, "io.debezium.time.Timestamp")
        }
        TimePrecision::Adaptive | TimePrecision::AdaptiveTimeMicroseconds | TimePrecision::Microseconds => {
            (TimestampForm::Micros, Shape::Int64, "io.debezium.time.MicroTimestamp")
        }
        TimePrecision::Nanoseconds => (TimestampForm::Nanos, Shape::Int64, "io.debezium.time.NanoTimestamp"),
        TimePrecision::Connect => (TimestampForm::Millis, Shape::Int64, "org.apache.kafka.connect.data.Timestamp"),
        TimePrecision::Isostring => (TimestampForm::Iso, Shape::String, "io.debezium.time.IsoTimestamp"),
    };
    (Kind::Timestamp(form), Schema::named(shape, name))
}

fn interval(options: &Options) -> (Kind, Schema) {
    let (shape, name) = match options.interval_handling_mode {
        IntervalMode::Numeric => (Shape::Int64, "io.debezium.time.MicroDuration"),
        IntervalMode::String => (Shape::String, "io.debezium.time.Interval"),
    };
    (Kind::Interval(options.interval_handling_mode), Schema::named(shape, name))
}

fn point() -> (Kind, Schema) {
    let fields = [
        ("x", Schema::from(Shape::Double)),
        ("y", Schema::from(Shape::Double)),
        ("wkb", Schema::from(Shape::Bytes).optional()),
        ("srid", Schema::from(Shape::Int32).optional()),
    ];
    let schema = Schema {
        name: Some("io.debezium.data.geometry.Point".to_owned()),
        doc: Some("Geometry (POINT)"),
        ..Schema::structure(fields).version(1)
    };
    (Kind::Point, schema)
}
