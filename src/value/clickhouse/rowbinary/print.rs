//! Binary values as Postgres prints them, with `datestyle = 'ISO'`, `intervalstyle = 'postgres'` and the zone UTC.
//!
//! Postgres docs do not give the binary forms; each is that of the type's `send` function.

use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use postgres_types::{Kind, Type};

use super::number::{Numeric, Sign};
use super::time::{MICROS_PER_DAY, MICROS_PER_SECOND};
use super::{MALFORMED, Misfit, ValueError, exact};
use crate::value::calendar::civil_from_days;

mod nested;

const NO_BINARY: Misfit = Misfit::Error(ValueError::BinaryForm);

/// Is the binary form of this built-in type understood?
pub(super) fn is_known(ty: &Type) -> bool {
    match ty.kind() {
        // int2vector and oidvector are arrays that print otherwise, and a box parts elements by a semicolon.
        Kind::Array(element) => !matches!(*ty, Type::INT2_VECTOR | Type::OID_VECTOR) && is_known(element),
        Kind::Range(element) | Kind::Multirange(element) => is_known(element),
        _ => matches!(
            *ty,
            Type::BOOL
                | Type::CHAR
                | Type::INT2
                | Type::INT4
                | Type::INT8
                | Type::OID
                | Type::XID
                | Type::CID
                | Type::FLOAT4
                | Type::FLOAT8
                | Type::NUMERIC
                | Type::TEXT
                | Type::VARCHAR
                | Type::BPCHAR
                | Type::NAME
                | Type::XML
                | Type::UNKNOWN
                | Type::JSON
                | Type::JSONB
                | Type::JSONPATH
                | Type::BYTEA
                | Type::UUID
                | Type::DATE
                | Type::TIME
                | Type::TIMETZ
                | Type::TIMESTAMP
                | Type::TIMESTAMPTZ
                | Type::INTERVAL
                | Type::INET
                | Type::CIDR
                | Type::MACADDR
                | Type::MACADDR8
                | Type::BIT
                | Type::VARBIT
                | Type::PG_LSN
        ),
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to memory cannot fail");
}

/// Appends all that there is to say of a value.
fn whole(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Misfit> {
    out.extend_from_slice(text);
    Ok(())
}

/// Appends the text of a value.
pub(super) fn print(out: &mut Vec<u8>, ty: &Type, bytes: &[u8]) -> Result<(), Misfit> {
    match *ty {
        Type::BOOL => out.push(match bytes {
            [0] => b'f',
            [1] => b't',
            _ => return Err(MALFORMED),
        }),
        Type::CHAR => match bytes {
            [0] => {}
            [byte] if *byte >= 0x80 => push(out, format_args!("\\{byte:03o}")),
            [byte] => out.push(*byte),
            _ => return Err(MALFORMED),
        },
        Type::INT2 => push(out, format_args!("{}", i16::from_be_bytes(exact(bytes)?))),
        Type::INT4 => push(out, format_args!("{}", i32::from_be_bytes(exact(bytes)?))),
        Type::INT8 => push(out, format_args!("{}", i64::from_be_bytes(exact(bytes)?))),
        Type::OID | Type::XID | Type::CID => push(out, format_args!("{}", u32::from_be_bytes(exact(bytes)?))),
        Type::FLOAT4 => {
            let value = f32::from_be_bytes(exact(bytes)?);
            float(out, &value, f64::from(value), 6);
        }
        Type::FLOAT8 => {
            let value = f64::from_be_bytes(exact(bytes)?);
            float(out, &value, value, 15);
        }
        Type::NUMERIC => numeric(out, bytes)?,
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::XML | Type::UNKNOWN | Type::JSON => {
            out.extend_from_slice(bytes);
        }
        Type::JSONB | Type::JSONPATH => match bytes.split_first() {
            Some((1, document)) => out.extend_from_slice(document),
            _ => return Err(MALFORMED),
        },
        Type::BYTEA => {
            out.extend_from_slice(b"\\x");
            hex(out, bytes, None);
        }
        Type::UUID => {
            let value: [u8; 16] = exact(bytes)?;
            for (place, group) in
                [&value[..4], &value[4..6], &value[6..8], &value[8..10], &value[10..]].iter().enumerate()
            {
                if place > 0 {
                    out.push(b'-');
                }
                hex(out, group, None);
            }
        }
        Type::DATE => date(out, i32::from_be_bytes(exact(bytes)?)),
        Type::TIMESTAMP => timestamp(out, i64::from_be_bytes(exact(bytes)?), ""),
        Type::TIMESTAMPTZ => timestamp(out, i64::from_be_bytes(exact(bytes)?), "+00"),
        Type::TIME => clock(out, i64::from_be_bytes(exact(bytes)?).unsigned_abs()),
        Type::TIMETZ => time_with_zone(out, bytes)?,
        Type::INTERVAL => interval(out, bytes)?,
        Type::INET | Type::CIDR => network(out, bytes)?,
        Type::MACADDR => hex(out, &exact::<6>(bytes)?, Some(b':')),
        Type::MACADDR8 => hex(out, &exact::<8>(bytes)?, Some(b':')),
        Type::BIT | Type::VARBIT => bits(out, bytes)?,
        Type::PG_LSN => push(out, format_args!("{}", crate::lsn::Lsn(u64::from_be_bytes(exact(bytes)?)))),
        _ => match ty.kind() {
            Kind::Array(element) => nested::array(out, element, bytes)?,
            Kind::Range(element) => nested::range(out, element, bytes)?,
            Kind::Multirange(element) => nested::multirange(out, element, bytes)?,
            _ => return Err(NO_BINARY),
        },
    }
    Ok(())
}

fn hex(out: &mut Vec<u8>, bytes: &[u8], between: Option<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (place, byte) in bytes.iter().enumerate() {
        if place > 0 {
            out.extend(between);
        }
        out.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// Shortest digits that read back as the same number, with an exponent where the number has more digits before the point
/// than the type is sure of, or more than four zeros after it (`float8out` with `extra_float_digits` above 0).
fn float(out: &mut Vec<u8>, shortest: &(impl std::fmt::Display + std::fmt::LowerExp), value: f64, sure_digits: i32) {
    if value.is_nan() {
        return out.extend_from_slice(b"NaN");
    }
    if value.is_infinite() {
        return out.extend_from_slice(if value > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    let start = out.len();
    push(out, format_args!("{shortest:e}"));
    let e = out[start..].iter().rposition(|byte| *byte == b'e').map_or(out.len(), |at| start + at);
    let exponent: i32 = std::str::from_utf8(&out[e + 1..]).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
    if value != 0.0 && !(-4..sure_digits).contains(&exponent) {
        out.truncate(e);
        push(out, format_args!("e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.unsigned_abs()));
    } else {
        out.truncate(start);
        push(out, format_args!("{shortest}"));
    }
}

fn numeric(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Misfit> {
    let numeric = Numeric::read(bytes).ok_or(MALFORMED)?;
    match numeric.sign {
        Sign::NaN => return whole(out, b"NaN"),
        Sign::Infinity => return whole(out, b"Infinity"),
        Sign::MinusInfinity => return whole(out, b"-Infinity"),
        Sign::Minus => out.push(b'-'),
        Sign::Plus => {}
    }
    let mut leading = true;
    for power in (0..=numeric.weight.max(0)).rev() {
        let digit = numeric.digit(power).ok_or(MALFORMED)?;
        if !leading {
            out.extend(four_digits(digit));
        } else if digit != 0 || power == 0 {
            let digits = four_digits(digit);
            let zeros = digits.iter().take(3).take_while(|digit| **digit == b'0').count();
            out.extend_from_slice(&digits[zeros..]);
            leading = false;
        }
    }
    if numeric.display_scale > 0 {
        out.push(b'.');
        let start = out.len();
        for power in 1..=numeric.display_scale.div_ceil(4) {
            let power = i32::try_from(power).map_err(|_| MALFORMED)?;
            out.extend(four_digits(numeric.digit(-power).ok_or(MALFORMED)?));
        }
        out.truncate(start + numeric.display_scale);
    }
    Ok(())
}

fn four_digits(number: u16) -> [u8; 4] {
    [number / 1_000, number / 100 % 10, number / 10 % 10, number % 10].map(|digit| b'0' + digit as u8)
}

fn two_digits(out: &mut Vec<u8>, number: u64) {
    if number < 100 {
        out.extend([b'0' + (number / 10) as u8, b'0' + (number % 10) as u8]);
    } else {
        push(out, format_args!("{number}"));
    }
}

/// Appends the day; returns whether the year counts back from the year 1.
fn civil(out: &mut Vec<u8>, days_since_2000: i64) -> bool {
    let (year, month, day) = civil_from_days(days_since_2000 + 10_957);
    // There is no year 0: it is 1 BC.
    let (shown, is_bc) = if year > 0 { (year, false) } else { (1 - year, true) };
    push(out, format_args!("{shown:04}-{month:02}-{day:02}"));
    is_bc
}

fn date(out: &mut Vec<u8>, days: i32) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        days => {
            if civil(out, days.into()) {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

fn timestamp(out: &mut Vec<u8>, micros: i64, zone: &str) {
    match micros {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        micros => {
            let is_bc = civil(out, micros.div_euclid(MICROS_PER_DAY));
            out.push(b' ');
            clock(out, micros.rem_euclid(MICROS_PER_DAY).unsigned_abs());
            out.extend_from_slice(zone.as_bytes());
            if is_bc {
                out.extend_from_slice(b" BC");
            }
        }
    }
}

/// `HH:MM:SS` and as many digits of a second as there are.
fn clock(out: &mut Vec<u8>, micros: u64) {
    let (seconds, fraction) = (micros / MICROS_PER_SECOND.unsigned_abs(), micros % MICROS_PER_SECOND.unsigned_abs());
    two_digits(out, seconds / 3_600);
    out.push(b':');
    two_digits(out, seconds / 60 % 60);
    out.push(b':');
    two_digits(out, seconds % 60);
    if fraction != 0 {
        push(out, format_args!(".{fraction:06}"));
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// `timetz_send`: microseconds of the day, then the zone in seconds west of Greenwich.
fn time_with_zone(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Misfit> {
    let (micros, zone) = bytes.split_first_chunk::<8>().ok_or(MALFORMED)?;
    clock(out, i64::from_be_bytes(*micros).unsigned_abs());
    let west = i32::from_be_bytes(exact(zone)?);
    out.push(if west > 0 { b'-' } else { b'+' });
    let seconds = u64::from(west.unsigned_abs());
    two_digits(out, seconds / 3_600);
    if seconds % 3_600 != 0 {
        out.push(b':');
        two_digits(out, seconds / 60 % 60);
        if seconds % 60 != 0 {
            out.push(b':');
            two_digits(out, seconds % 60);
        }
    }
    Ok(())
}

/// `interval_send`: microseconds, days, months.
fn interval(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Misfit> {
    let (micros, rest) = bytes.split_first_chunk::<8>().ok_or(MALFORMED)?;
    let (days, rest) = rest.split_first_chunk::<4>().ok_or(MALFORMED)?;
    let (micros, days) = (i64::from_be_bytes(*micros), i32::from_be_bytes(*days));
    let months = i32::from_be_bytes(exact(rest)?);
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return whole(out, b"infinity"),
        (i64::MIN, i32::MIN, i32::MIN) => return whole(out, b"-infinity"),
        _ => {}
    }
    let start = out.len();
    // What follows a negative part says its sign.
    let mut after_negative = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count == 0 {
            continue;
        }
        let space = if out.len() > start { " " } else { "" };
        let sign = if after_negative && count > 0 { "+" } else { "" };
        push(out, format_args!("{space}{sign}{count} {unit}{}", if count == 1 { "" } else { "s" }));
        after_negative = count < 0;
    }
    if micros != 0 || out.len() == start {
        if out.len() > start {
            out.push(b' ');
        }
        if micros < 0 {
            out.push(b'-');
        } else if after_negative {
            out.push(b'+');
        }
        clock(out, micros.unsigned_abs());
    }
    Ok(())
}

/// `network_send`: family (2, or 3 for IPv6), mask bits, whether it is a `cidr`, address length, address.
fn network(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Misfit> {
    let &[family, mask_bits, is_cidr, length, ref address @ ..] = bytes else { return Err(MALFORMED) };
    let all_bits = match (family, length) {
        (2, 4) => {
            push(out, format_args!("{}", Ipv4Addr::from(exact::<4>(address)?)));
            32
        }
        (3, 16) => {
            let address = Ipv6Addr::from(exact::<16>(address)?);
            match address.segments() {
                // Postgres shows these as IPv4, too.
                [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => {
                    push(out, format_args!("::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))));
                }
                _ => push(out, format_args!("{address}")),
            }
            128
        }
        _ => return Err(MALFORMED),
    };
    if is_cidr == 1 || mask_bits != all_bits {
        push(out, format_args!("/{mask_bits}"));
    }
    Ok(())
}

/// `varbit_send`: how many bits, then them, the last byte filled up.
fn bits(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Misfit> {
    let (count, bytes) = bytes.split_first_chunk::<4>().ok_or(MALFORMED)?;
    let count = usize::try_from(i32::from_be_bytes(*count)).map_err(|_| MALFORMED)?;
    if bytes.len() != count.div_ceil(8) {
        return Err(MALFORMED);
    }
    out.extend((0..count).map(|bit| b'0' + (bytes[bit / 8] >> (7 - bit % 8) & 1)));
    Ok(())
}
