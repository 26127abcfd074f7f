//! Which encoding goes from a type of Postgres into a column.

use postgres_types::Type;

use super::number::{Decimal, limits};
use super::time::{Days, Ticks};
use super::{Encoder, Encoding, PairError, Whole, print};
use crate::value::clickhouse::types::{ColumnType, Form, OnOverflow, Reach, SourceType};

pub(super) fn encoding(
    source: &SourceType,
    target: &ColumnType,
    on_overflow: OnOverflow,
    reach: Reach,
) -> Result<Encoding, PairError> {
    let refused = || PairError::Types(target.clone());
    let ty = source.built_in_type();
    let encoding = match (ty.as_ref(), target.bare()) {
        (None, ColumnType::String) => match source.form {
            Form::Enum | Form::TextAlike => Encoding::Verbatim,
            Form::BuiltIn | Form::Unknown | Form::Text => Encoding::TextOnly,
        },
        (Some(ty), ColumnType::String) => match *ty {
            Type::BYTEA => Encoding::Bytes,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON | Type::XML | Type::UNKNOWN => {
                Encoding::Verbatim
            }
            Type::JSONB | Type::JSONPATH => Encoding::Versioned,
            _ if print::is_known(ty) => Encoding::Printed(ty.clone()),
            _ => Encoding::TextOnly,
        },
        (Some(&Type::BOOL), ColumnType::Bool | ColumnType::Int { bytes: 1, signed: false }) => Encoding::Bool,
        (Some(ty), &ColumnType::Int { bytes, signed }) => {
            let from = Whole::of(ty).ok_or_else(refused)?;
            let (least, greatest) = limits(bytes, signed);
            let (own_least, own_greatest) = from.limits();
            let fits = least <= own_least && own_greatest <= greatest;
            Encoding::Int { from, bytes, range: (!fits).then_some((least, greatest)) }
        }
        (Some(&Type::FLOAT4), ColumnType::Float32) => Encoding::Float32,
        (Some(&Type::FLOAT8), ColumnType::Float64) => Encoding::Float64,
        (Some(&Type::NUMERIC), &ColumnType::Decimal { precision, scale }) => {
            Encoding::Decimal(Decimal::new(precision, scale))
        }
        (Some(&Type::UUID), ColumnType::Uuid) => Encoding::Uuid,
        (Some(&Type::DATE), ColumnType::Date32) => Encoding::Days(Days::Date32(reach)),
        (Some(&Type::DATE), ColumnType::Date) => Encoding::Days(Days::Date),
        (Some(&(Type::TIMESTAMP | Type::TIMESTAMPTZ)), ColumnType::DateTime { .. }) => {
            Encoding::Ticks(Ticks::seconds())
        }
        (Some(&(Type::TIMESTAMP | Type::TIMESTAMPTZ)), ColumnType::DateTime64 { precision, .. }) => {
            Encoding::Ticks(Ticks::of_precision(*precision, reach))
        }
        (Some(_), ColumnType::Array(inner)) => {
            let element = source.element().ok_or_else(refused)?;
            let (mut depth, mut innermost) = (1, &**inner);
            while let ColumnType::Array(next) = innermost {
                (depth, innermost) = (depth + 1, &**next);
            }
            Encoding::Array { element: Box::new(Encoder::new(&element, innermost, on_overflow, reach)?), depth }
        }
        _ => return Err(refused()),
    };
    Ok(encoding)
}

impl Whole {
    fn of(ty: &Type) -> Option<Whole> {
        Some(match *ty {
            Type::INT2 => Whole::Int2,
            Type::INT4 => Whole::Int4,
            Type::INT8 => Whole::Int8,
            Type::OID | Type::XID | Type::CID => Whole::Unsigned4,
            _ => return None,
        })
    }

    fn limits(self) -> (i128, i128) {
        match self {
            Whole::Int2 => limits(2, true),
            Whole::Int4 => limits(4, true),
            Whole::Int8 => limits(8, true),
            Whole::Unsigned4 => limits(4, false),
        }
    }
}
