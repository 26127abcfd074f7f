//! Values on the wire as JSON, for people and scripts who look at changes: `tail`, `replay --to stdout`.
//!
//! A binary value becomes what Postgres's own `to_json` makes of it in UTC: numbers as numbers, `NaN` and infinities and
//! OIDs as text, times as ISO 8601, json as it is, arrays as arrays. Text stays text. Types without a case here come as their
//! bytes in hexadecimal, `\x…`, as `bytea` does.

pub mod calendar;
pub mod clickhouse;
pub mod debezium;
pub mod filter;
mod numeric;
mod time;

use std::fmt::Write as _;

use postgres_types::{Kind, Type};
use serde::de::IgnoredAny;

use crate::tuple::Cell;

/// Appends a cell of a column of this type as JSON, on one line.
pub fn write_json(out: &mut String, type_oid: u32, cell: Cell<'_>) {
    match cell {
        Cell::Null => out.push_str("null"),
        Cell::Unchanged => out.push_str(r#"{"unchanged":true}"#),
        Cell::Text(text) => write_text(out, &String::from_utf8_lossy(text)),
        Cell::Binary(bytes) => {
            let start = out.len();
            if write_binary(out, type_oid, bytes).is_none() {
                // Not what the type's binary form should be, or a type that is not known here.
                out.truncate(start);
                write_hex(out, bytes);
            }
        }
    }
}

/// Appends a string as JSON.
pub fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Control characters of ISO 6429 too: a row's value must not move a terminal's cursor.
            c if c.is_control() => push(out, format_args!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

fn write_hex(out: &mut String, bytes: &[u8]) {
    out.push_str("\"\\\\x");
    for byte in bytes {
        push(out, format_args!("{byte:02x}"));
    }
    out.push('"');
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to a string cannot fail");
}

/// Postgres docs do not give the binary forms; each is that of the type's `send` function.
fn write_binary(out: &mut String, type_oid: u32, bytes: &[u8]) -> Option<()> {
    let ty = Type::from_oid(type_oid)?;
    match ty {
        Type::BOOL => match bytes {
            [0] => out.push_str("false"),
            [1] => out.push_str("true"),
            _ => return None,
        },
        Type::INT2 => push(out, format_args!("{}", i16::from_be_bytes(bytes.try_into().ok()?))),
        Type::INT4 => push(out, format_args!("{}", i32::from_be_bytes(bytes.try_into().ok()?))),
        Type::INT8 => push(out, format_args!("{}", i64::from_be_bytes(bytes.try_into().ok()?))),
        Type::OID | Type::XID | Type::CID => {
            push(out, format_args!("\"{}\"", u32::from_be_bytes(bytes.try_into().ok()?)));
        }
        Type::FLOAT4 => {
            let value = f32::from_be_bytes(bytes.try_into().ok()?);
            write_float(out, &value, f64::from(value));
        }
        Type::FLOAT8 => {
            let value = f64::from_be_bytes(bytes.try_into().ok()?);
            write_float(out, &value, value);
        }
        Type::NUMERIC => numeric::write(out, bytes)?,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::XML | Type::UNKNOWN | Type::CHAR => {
            write_text(out, std::str::from_utf8(bytes).ok()?);
        }
        Type::JSON => write_document(out, bytes)?,
        Type::JSONB => match bytes.split_first()? {
            (1, document) => write_document(out, document)?,
            _ => return None,
        },
        Type::BYTEA => write_hex(out, bytes),
        Type::UUID => write_uuid(out, bytes.try_into().ok()?),
        Type::DATE => quoted(out, &time::date(i32::from_be_bytes(bytes.try_into().ok()?))),
        Type::TIME => quoted(out, &time::of_day(i64::from_be_bytes(bytes.try_into().ok()?))?),
        Type::TIMESTAMP => quoted(out, &time::timestamp(i64::from_be_bytes(bytes.try_into().ok()?), "")),
        Type::TIMESTAMPTZ => quoted(out, &time::timestamp(i64::from_be_bytes(bytes.try_into().ok()?), "+00:00")),
        Type::INTERVAL => quoted(out, &time::interval(bytes)?),
        Type::PG_LSN => {
            let lsn = crate::lsn::Lsn(u64::from_be_bytes(bytes.try_into().ok()?));
            push(out, format_args!("\"{lsn}\""));
        }
        _ => match ty.kind() {
            Kind::Array(_) => write_array(out, bytes)?,
            _ => return None,
        },
    }
    Some(())
}

fn quoted(out: &mut String, text: &str) {
    push(out, format_args!("\"{text}\""));
}

/// JSON has no NaN and no infinity.
fn write_float(out: &mut String, shortest: &(impl std::fmt::Display + std::fmt::LowerExp), value: f64) {
    if value.is_nan() {
        out.push_str("\"NaN\"");
    } else if value.is_infinite() {
        out.push_str(if value > 0.0 { "\"Infinity\"" } else { "\"-Infinity\"" });
    } else if value != 0.0 && !(1e-4..1e15).contains(&value.abs()) {
        push(out, format_args!("{shortest:e}"));
    } else {
        push(out, format_args!("{shortest}"));
    }
}

fn write_uuid(out: &mut String, bytes: &[u8; 16]) {
    out.push('"');
    for (idx, byte) in bytes.iter().enumerate() {
        if matches!(idx, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        push(out, format_args!("{byte:02x}"));
    }
    out.push('"');
}

/// A JSON document as it is, but on one line: outside strings a line end is a space, and inside there is none.
fn write_document(out: &mut String, bytes: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(bytes).ok()?;
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    out.extend(text.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }));
    Some(())
}

/// Array dimensions that Postgres allows.
const DIMENSIONS_MAX: usize = 6;

fn write_array(out: &mut String, bytes: &[u8]) -> Option<()> {
    let mut rest = bytes;
    let count = usize::try_from(take_i32(&mut rest)?).ok().filter(|&count| count <= DIMENSIONS_MAX)?;
    let _has_null = take_i32(&mut rest)?;
    let element_oid = take_i32(&mut rest)?.cast_unsigned();
    if matches!(Type::from_oid(element_oid)?.kind(), Kind::Array(_)) {
        return None;
    }
    let mut lengths = Vec::with_capacity(count);
    for _ in 0..count {
        lengths.push(usize::try_from(take_i32(&mut rest)?).ok()?);
        let _lower_bound = take_i32(&mut rest)?;
    }
    if lengths.is_empty() {
        out.push_str("[]");
    } else {
        write_dimension(out, element_oid, &lengths, &mut rest)?;
    }
    rest.is_empty().then_some(())
}

fn write_dimension(out: &mut String, element_oid: u32, lengths: &[usize], rest: &mut &[u8]) -> Option<()> {
    let Some((&length, inner)) = lengths.split_first() else {
        let size = take_i32(rest)?;
        if size == -1 {
            out.push_str("null");
            return Some(());
        }
        let (element, tail) = rest.split_at_checked(usize::try_from(size).ok()?)?;
        *rest = tail;
        return write_binary(out, element_oid, element);
    };
    out.push('[');
    for place in 0..length {
        // A length that is a lie ends at the first element that is not there.
        if rest.is_empty() {
            return None;
        }
        if place > 0 {
            out.push(',');
        }
        write_dimension(out, element_oid, inner, rest)?;
    }
    out.push(']');
    Some(())
}

fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(i32::from_be_bytes(*head))
}

#[cfg(test)]
mod tests;
