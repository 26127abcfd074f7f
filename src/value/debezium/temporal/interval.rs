//! Intervals: months, days and time apart, as Postgres keeps them.

use std::io::Write as _;

use super::{MICROS_PER_SECOND, parse, push_fraction};
use crate::tuple::Cell;
use crate::value::debezium::ValueError;

/// Days of a month, as Debezium counts them.
const DAYS_PER_MONTH: f64 = 365.25 / 12.0;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(in crate::value::debezium) struct Interval {
    months: i32,
    days: i32,
    micros: i64,
}

impl Interval {
    pub fn read(cell: Cell<'_>) -> Result<Interval, ValueError> {
        let interval = match cell {
            Cell::Binary(value) => Interval::of_binary(value).ok_or(ValueError::Malformed)?,
            cell => match crate::value::debezium::text_of(cell)? {
                b"infinity" | b"-infinity" => return Err(ValueError::OutOfRange),
                text => Interval::of_text(text).ok_or(ValueError::Malformed)?,
            },
        };
        match (interval.months, interval.days, interval.micros) {
            (i32::MAX, i32::MAX, i64::MAX) | (i32::MIN, i32::MIN, i64::MIN) => Err(ValueError::OutOfRange),
            _ => Ok(interval),
        }
    }

    /// `interval_send`: microseconds, days, months.
    fn of_binary(value: &[u8]) -> Option<Interval> {
        let (micros, rest) = value.split_first_chunk::<8>()?;
        let (days, months) = rest.split_first_chunk::<4>()?;
        Some(Interval {
            months: i32::from_be_bytes(months.try_into().ok()?),
            days: i32::from_be_bytes(*days),
            micros: i64::from_be_bytes(*micros),
        })
    }

    /// `1 year 2 mons -3 days +04:05:06.5` (`intervalstyle = 'postgres'`).
    fn of_text(text: &[u8]) -> Option<Interval> {
        let mut interval = Interval::default();
        let mut words = text.split(|byte| *byte == b' ');
        while let Some(word) = words.next() {
            let (is_negative, digits) = match word.split_first()? {
                (b'-', rest) => (true, rest),
                (b'+', rest) => (false, rest),
                _ => (false, word),
            };
            let sign = if is_negative { -1 } else { 1 };
            if digits.contains(&b':') {
                interval.micros = sign * parse::time(digits)?;
                continue;
            }
            let count = i32::try_from(sign * parse::number(digits)?).ok()?;
            match words.next()? {
                b"year" | b"years" => interval.months = interval.months.checked_add(count.checked_mul(12)?)?,
                b"mon" | b"mons" => interval.months = interval.months.checked_add(count)?,
                b"day" | b"days" => interval.days = count,
                _ => return None,
            }
        }
        Some(interval)
    }

    fn seconds_and_micros(self) -> (i64, i64) {
        (self.micros / MICROS_PER_SECOND, self.micros % MICROS_PER_SECOND)
    }

    /// `io.debezium.time.MicroDuration`: reckoned in floating point step by step as Debezium does, so that the last digits
    /// come out the same.
    pub fn approximate_micros(self) -> i64 {
        let (seconds, micros) = self.seconds_and_micros();
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        let seconds = (seconds % 60) as f64 + micros as f64 / MICROS_PER_SECOND as f64;
        let days = f64::from(self.months) * DAYS_PER_MONTH + f64::from(self.days);
        let seconds = ((days * 24.0 + hours as f64) * 60.0 + minutes as f64) * 60.0 + seconds;
        (seconds * 1e6) as i64
    }

    /// `P1Y2M3DT4H5M6.78S`; all parts are there, each with its own sign.
    pub fn push_iso(self, out: &mut Vec<u8>) {
        let (seconds, micros) = self.seconds_and_micros();
        let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
        push(out, format_args!("P{}Y{}M{}DT{hours}H{minutes}M", self.months / 12, self.months % 12, self.days));
        if self.micros < 0 && seconds % 60 == 0 && micros != 0 {
            out.push(b'-');
        }
        push(out, format_args!("{}", seconds % 60));
        push_fraction(out, micros.unsigned_abs());
        out.push(b'S');
    }
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing to memory cannot fail");
}
