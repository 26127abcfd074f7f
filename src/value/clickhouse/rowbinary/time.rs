//! Dates and timestamps: days and ticks since 1970-01-01, inside the range that ClickHouse shows rightly.
//!
//! It takes ticks outside of it without a word and shows other days for them, so the range is kept here.

use super::{Excess, MALFORMED, Misfit, exact, text_of};
use crate::tuple::Cell;
use crate::value::calendar::days_from_civil;
use crate::value::clickhouse::types::Reach;

/// 2000-01-01, from which Postgres counts.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;
pub(super) const MICROS_PER_SECOND: i64 = 1_000_000;
pub(super) const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// First and last day of a column.
fn days_of(reach: Reach) -> (i64, i64) {
    match reach {
        // 1900-01-01 and 2299-12-31.
        Reach::Documented => (-25_567, 120_529),
        // 0001-01-01 and 9999-12-31.
        Reach::FourDigits => (-719_162, 2_932_896),
    }
}

/// A day column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Days {
    /// Four bytes, signed.
    Date32(Reach),
    /// Two bytes, unsigned.
    Date,
}

impl Days {
    fn range(self) -> (i64, i64) {
        match self {
            Days::Date32(reach) => days_of(reach),
            Days::Date => (0, 65_535),
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Days::Date32(_) => 4,
            Days::Date => 2,
        }
    }

    pub fn put_limit(self, out: &mut Vec<u8>, is_least: bool) {
        let (least, greatest) = self.range();
        self.put(out, if is_least { least } else { greatest });
    }

    fn put(self, out: &mut Vec<u8>, days: i64) {
        out.extend_from_slice(&days.to_le_bytes()[..self.bytes()]);
    }

    #[inline]
    pub fn write(self, out: &mut Vec<u8>, cell: Cell<'_>) -> Result<(), Misfit> {
        let days = match cell {
            Cell::Binary(value) => i64::from(i32::from_be_bytes(exact(value)?)) + POSTGRES_EPOCH_DAYS,
            cell => match text_of(cell)? {
                b"infinity" => return Err(Misfit::Above),
                b"-infinity" => return Err(Misfit::Below),
                text => {
                    let (text, is_bc) = era(text);
                    parse_date(text, is_bc).ok_or(MALFORMED)?
                }
            },
        };
        // Postgres's infinities are the ends of its own range, far outside of this one.
        self.put(out, within(days, self.range())?);
        Ok(())
    }
}

fn within(value: i64, (least, greatest): (i64, i64)) -> Result<i64, Misfit> {
    if value < least {
        Err(Misfit::Below)
    } else if value > greatest {
        Err(Misfit::Above)
    } else {
        Ok(value)
    }
}

/// A column of points in time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticks {
    /// Microseconds a tick, or ticks a microsecond.
    micros_per_tick: i64,
    ticks_per_micro: i64,
    bytes: usize,
    /// In microseconds since 1970.
    range: (i64, i64),
}

impl Ticks {
    /// `DateTime`: four bytes of seconds, unsigned.
    pub fn seconds() -> Ticks {
        let greatest = i64::from(u32::MAX) * MICROS_PER_SECOND + MICROS_PER_SECOND - 1;
        Ticks { micros_per_tick: MICROS_PER_SECOND, ticks_per_micro: 1, bytes: 4, range: (0, greatest) }
    }

    /// `DateTime64` with so many digits of a second.
    pub fn of_precision(precision: u8, reach: Reach) -> Ticks {
        let digits = u32::from(precision);
        let micros_per_tick = 10_i64.pow(6_u32.saturating_sub(digits));
        let ticks_per_micro = 10_i64.pow(digits.saturating_sub(6));
        let (first_day, last_day) = days_of(reach);
        // Nanoseconds of 64 bits go from 1677 to 2262.
        let bound = i64::MAX / ticks_per_micro;
        let range = ((first_day * MICROS_PER_DAY).max(-bound), ((last_day + 1) * MICROS_PER_DAY - 1).min(bound));
        Ticks { micros_per_tick, ticks_per_micro, bytes: 8, range }
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn put_limit(&self, out: &mut Vec<u8>, is_least: bool) {
        self.put(out, if is_least { self.range.0 } else { self.range.1 });
    }

    fn put(&self, out: &mut Vec<u8>, micros: i64) {
        let ticks = micros.div_euclid(self.micros_per_tick) * self.ticks_per_micro;
        out.extend_from_slice(&ticks.to_le_bytes()[..self.bytes]);
    }

    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, cell: Cell<'_>, excess: Excess) -> Result<(), Misfit> {
        let micros = match cell {
            Cell::Binary(value) => {
                i64::from_be_bytes(exact(value)?).saturating_add(POSTGRES_EPOCH_DAYS * MICROS_PER_DAY)
            }
            cell => match text_of(cell)? {
                b"infinity" => return Err(Misfit::Above),
                b"-infinity" => return Err(Misfit::Below),
                text => parse_timestamp(text).ok_or(MALFORMED)?,
            },
        };
        let micros = within(micros, self.range)?;
        if self.micros_per_tick > 1 && micros % self.micros_per_tick != 0 && excess == Excess::Refused {
            return Err(Misfit::TooFine);
        }
        self.put(out, micros);
        Ok(())
    }
}

/// Takes ` BC` off.
fn era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 9 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
}

/// `YYYY-MM-DD`, the year in four digits or more, to days since 1970.
fn parse_date(text: &[u8], is_bc: bool) -> Option<i64> {
    let mut parts = text.splitn(3, |byte| *byte == b'-');
    let (year, month, day) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // There is no year 0: 1 BC is the one before 1.
    Some(days_from_civil(if is_bc { 1 - year } else { year }, month, day))
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff][±HH[:MM[:SS]]][ BC]` (`datestyle = 'ISO'`) to microseconds since 1970.
fn parse_timestamp(text: &[u8]) -> Option<i64> {
    let (text, is_bc) = era(text);
    let space = text.iter().position(|byte| *byte == b' ')?;
    let (date, clock) = (&text[..space], &text[space + 1..]);
    let zone_at = clock.iter().position(|byte| matches!(byte, b'+' | b'-')).unwrap_or(clock.len());
    let (clock, zone) = clock.split_at(zone_at);
    let (clock, fraction) = match clock.iter().position(|byte| *byte == b'.') {
        Some(point) => (&clock[..point], &clock[point + 1..]),
        None => (clock, &b"0"[..]),
    };
    let missing_digits = 6_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?;
    let fraction = number(fraction)? * 10_i64.pow(missing_digits);
    let of_zone = match zone.split_first() {
        None => 0,
        Some((b'-', rest)) => -seconds(rest)?,
        Some((_, rest)) => seconds(rest)?,
    };
    let second = parse_date(date, is_bc)?.checked_mul(86_400)?.checked_add(seconds(clock)? - of_zone)?;
    // What is outside of 64 bits is as far outside of every column's range.
    Some(second.saturating_mul(MICROS_PER_SECOND).saturating_add(fraction))
}

/// `HH[:MM[:SS]]`.
fn seconds(text: &[u8]) -> Option<i64> {
    let mut units = [0; 3];
    for (place, part) in text.split(|byte| *byte == b':').enumerate() {
        *units.get_mut(place)? = number(part)?;
    }
    let [hours, minutes, seconds] = units;
    (minutes < 60 && seconds <= 60).then_some(hours * 3_600 + minutes * 60 + seconds)
}
