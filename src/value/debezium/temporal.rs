//! Dates, times and intervals in Debezium's forms.
//!
//! Postgres counts from 2000-01-01 and prints years before 1 with `BC`; Debezium counts from 1970-01-01 in the proleptic
//! calendar, whose year 0 is 1 BC, and prints years as Java's `ISO_LOCAL_DATE` does: four digits, with a sign before what
//! is longer or negative.

use super::ValueError;
use super::out::Out;
use crate::tuple::Cell;

mod interval;
pub(in crate::value) mod parse;

pub(super) use interval::Interval;

/// 2000-01-01, from which Postgres counts.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;
const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// What Debezium's connector makes of a `date` of `infinity` and `-infinity` that it streams, in days since 1970: the days
/// -5877611-06-21 and -5877611-06-22.
const INFINITE_DAYS: (i64, i64) = (-2_147_472_692, -2_147_472_691);

/// `PGStatement.DATE_POSITIVE_INFINITY` and its counterpart, as microseconds since 1970.
const INFINITE_MICROS: (i64, i64) = (9_223_372_036_825_200_000, -9_223_372_036_832_400_000);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DateForm {
    Days,
    Iso,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TimeForm {
    Millis,
    Micros,
    Nanos,
    Iso,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TimestampForm {
    Millis,
    Micros,
    Nanos,
    Iso,
}

/// A point in time or one of the ends of all time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moment<T> {
    Finite(T),
    Infinity,
    MinusInfinity,
}

/// The value's number on the wire, in which the greatest and the least stand for infinities.
fn moment_of<T: PartialEq + Copy>(value: T, greatest: T, least: T) -> Moment<T> {
    match value {
        value if value == greatest => Moment::Infinity,
        value if value == least => Moment::MinusInfinity,
        value => Moment::Finite(value),
    }
}

fn moment_of_text<T>(text: &[u8], parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<Moment<T>, ValueError> {
    match text {
        b"infinity" => Ok(Moment::Infinity),
        b"-infinity" => Ok(Moment::MinusInfinity),
        text => parse(text).map(Moment::Finite).ok_or(ValueError::Malformed),
    }
}

pub(super) fn write_date<O: Out>(out: &mut O, form: DateForm, cell: Cell<'_>) -> Result<(), ValueError> {
    let moment = match cell {
        Cell::Binary(value) => moment_of(i32::from_be_bytes(super::exact(value)?), i32::MAX, i32::MIN),
        cell => match moment_of_text(super::text_of(cell)?, parse::date)? {
            Moment::Finite(days) => {
                let since_2000 = days - POSTGRES_EPOCH_DAYS;
                Moment::Finite(i32::try_from(since_2000).map_err(|_| ValueError::OutOfRange)?)
            }
            Moment::Infinity => Moment::Infinity,
            Moment::MinusInfinity => Moment::MinusInfinity,
        },
    };
    let days = match moment {
        Moment::Finite(days) => i64::from(days) + POSTGRES_EPOCH_DAYS,
        Moment::Infinity => INFINITE_DAYS.0,
        Moment::MinusInfinity => INFINITE_DAYS.1,
    };
    match form {
        DateForm::Days => out.int(days),
        DateForm::Iso => out.composed_text(|buffer| {
            push_date(buffer, days);
            buffer.push(b'Z');
            Ok(())
        })?,
    }
    Ok(())
}

pub(super) fn write_time<O: Out>(out: &mut O, form: TimeForm, cell: Cell<'_>) -> Result<(), ValueError> {
    let micros = match cell {
        Cell::Binary(value) => i64::from_be_bytes(super::exact(value)?),
        cell => parse::time(super::text_of(cell)?).ok_or(ValueError::Malformed)?,
    };
    if !(0..=MICROS_PER_DAY).contains(&micros) {
        return Err(ValueError::Malformed);
    }
    match form {
        TimeForm::Millis => out.int(micros / 1_000),
        TimeForm::Micros => out.int(micros),
        TimeForm::Nanos => out.int(micros * 1_000),
        // As Debezium does it, the end of the day comes out as the begin of the next.
        TimeForm::Iso => out.composed_text(|buffer| {
            push_clock(buffer, micros % MICROS_PER_DAY, Fraction::AsNeeded);
            buffer.push(b'Z');
            Ok(())
        })?,
    }
    Ok(())
}

/// `timetz`: always text, in UTC.
pub(super) fn write_time_with_zone<O: Out>(out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
    let (micros, seconds_east) = match cell {
        Cell::Binary(value) => {
            let (micros, west) = value.split_first_chunk::<8>().ok_or(ValueError::Malformed)?;
            (i64::from_be_bytes(*micros), -i64::from(i32::from_be_bytes(super::exact(west)?)))
        }
        cell => parse::time_with_zone(super::text_of(cell)?).ok_or(ValueError::Malformed)?,
    };
    if !(0..=MICROS_PER_DAY).contains(&micros) {
        return Err(ValueError::Malformed);
    }
    out.composed_text(|buffer| {
        if micros == MICROS_PER_DAY && seconds_east == 0 {
            buffer.extend_from_slice(b"24:00:00Z");
        } else {
            let in_utc = (micros - seconds_east * MICROS_PER_SECOND).rem_euclid(MICROS_PER_DAY);
            push_clock(buffer, in_utc, Fraction::AsNeeded);
            buffer.push(b'Z');
        }
        Ok(())
    })
}

/// Microseconds since 1970, which need more than 64 bits at the end of Postgres's range.
fn micros_since_1970(cell: Cell<'_>) -> Result<Moment<i128>, ValueError> {
    match cell {
        Cell::Binary(value) => Ok(match moment_of(i64::from_be_bytes(super::exact(value)?), i64::MAX, i64::MIN) {
            Moment::Finite(micros) => {
                Moment::Finite(i128::from(micros) + i128::from(POSTGRES_EPOCH_DAYS * MICROS_PER_DAY))
            }
            Moment::Infinity => Moment::Infinity,
            Moment::MinusInfinity => Moment::MinusInfinity,
        }),
        cell => moment_of_text(super::text_of(cell)?, parse::timestamp),
    }
}

pub(super) fn write_timestamp<O: Out>(out: &mut O, form: TimestampForm, cell: Cell<'_>) -> Result<(), ValueError> {
    let (micros, infinite_nanos) = match micros_since_1970(cell)? {
        Moment::Finite(micros) => (micros, None),
        Moment::Infinity => (i128::from(INFINITE_MICROS.0), Some(i64::MAX)),
        Moment::MinusInfinity => (i128::from(INFINITE_MICROS.1), Some(i64::MIN)),
    };
    let in_64_bits = |value: i128| i64::try_from(value).map_err(|_| ValueError::OutOfRange);
    match (form, infinite_nanos) {
        (TimestampForm::Millis, _) => out.int(in_64_bits(micros.div_euclid(1_000))?),
        (TimestampForm::Micros, _) => out.int(in_64_bits(micros)?),
        (TimestampForm::Nanos, Some(infinite)) => out.int(infinite),
        (TimestampForm::Nanos, None) => out.int(in_64_bits(micros * 1_000)?),
        (TimestampForm::Iso, _) => out.composed_text(|buffer| push_timestamp(buffer, micros, Fraction::AsNeeded))?,
    }
    Ok(())
}

/// `timestamptz`: always text, in UTC, with as many digits of a second as the column keeps. Of a column that keeps none,
/// with as many as there are.
pub(super) fn write_timestamp_with_zone<O: Out>(out: &mut O, digits: u8, cell: Cell<'_>) -> Result<(), ValueError> {
    let fraction = if digits == 0 { Fraction::AsNeeded } else { Fraction::Digits(digits) };
    match micros_since_1970(cell)? {
        Moment::Finite(micros) => out.composed_text(|buffer| push_timestamp(buffer, micros, fraction))?,
        Moment::Infinity => out.text(b"infinity"),
        Moment::MinusInfinity => out.text(b"-infinity"),
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Fraction {
    /// No zeros at the end, and nothing for none.
    AsNeeded,
    Digits(u8),
}

fn push_timestamp(out: &mut Vec<u8>, micros: i128, fraction: Fraction) -> Result<(), ValueError> {
    let per_day = i128::from(MICROS_PER_DAY);
    let days = i64::try_from(micros.div_euclid(per_day)).map_err(|_| ValueError::OutOfRange)?;
    push_date(out, days);
    out.push(b'T');
    push_clock(out, i64::try_from(micros.rem_euclid(per_day)).map_err(|_| ValueError::OutOfRange)?, fraction);
    out.push(b'Z');
    Ok(())
}

/// `YYYY-MM-DD` of days since 1970.
fn push_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = crate::value::calendar::civil_from_days(days);
    match year {
        ..0 => out.push(b'-'),
        0..10_000 => {}
        10_000.. => out.push(b'+'),
    }
    push_padded(out, year.unsigned_abs(), 4);
    for part in [month, day] {
        out.push(b'-');
        push_padded(out, part.unsigned_abs(), 2);
    }
}

/// `HH:MM:SS` and the fraction.
fn push_clock(out: &mut Vec<u8>, micros: i64, fraction: Fraction) {
    let seconds = (micros / MICROS_PER_SECOND).unsigned_abs();
    let rest = (micros % MICROS_PER_SECOND).unsigned_abs();
    push_padded(out, seconds / 3_600, 2);
    for part in [seconds / 60 % 60, seconds % 60] {
        out.push(b':');
        push_padded(out, part, 2);
    }
    match fraction {
        Fraction::AsNeeded => push_fraction(out, rest),
        Fraction::Digits(digits) => {
            out.push(b'.');
            push_padded(out, rest, 6);
            out.truncate(out.len() - 6 + usize::from(digits));
        }
    }
}

/// The point and the digits of so many microseconds, without zeros at the end; nothing for none.
fn push_fraction(out: &mut Vec<u8>, micros: u64) {
    if micros > 0 {
        out.push(b'.');
        push_padded(out, micros, 6);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// A number with zeros in front where it has fewer digits. Every change has several; `format_args!` takes three times the
/// instructions.
fn push_padded(out: &mut Vec<u8>, number: u64, digits: usize) {
    let mut buffer = itoa::Buffer::new();
    let text = buffer.format(number).as_bytes();
    out.extend_from_slice(&b"000000"[text.len().min(digits)..digits]);
    out.extend_from_slice(text);
}
