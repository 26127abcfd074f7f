//! Dates and times as Postgres prints them (`datestyle = 'ISO'`).

use super::MICROS_PER_SECOND;
use crate::value::calendar::days_from_civil;

pub(super) fn number(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + i64::from(digit - b'0')))
}

/// `YYYY-MM-DD[ BC]` to days since 1970.
pub(in crate::value) fn date(text: &[u8]) -> Option<i64> {
    let (text, is_bc) = era(text);
    day(text, is_bc)
}

/// Takes ` BC` off.
fn era(text: &[u8]) -> (&[u8], bool) {
    match text.strip_suffix(b" BC") {
        Some(rest) => (rest, true),
        None => (text, false),
    }
}

fn day(text: &[u8], is_bc: bool) -> Option<i64> {
    let mut parts = text.splitn(3, |byte| *byte == b'-');
    let (year, month, day) = (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
    // Postgres's own range ends with the year 5874897; what is far outside would overflow further on.
    if year > 10_000_000 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // There is no year 0: 1 BC is the one before 1.
    Some(days_from_civil(if is_bc { 1 - year } else { year }, month, day))
}

/// `HH:MM:SS[.ffffff]` to microseconds.
pub(super) fn time(text: &[u8]) -> Option<i64> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b"0"[..]),
    };
    let missing_digits = 6_u32.checked_sub(u32::try_from(fraction.len()).ok()?)?;
    let fraction = number(fraction)? * 10_i64.pow(missing_digits);
    seconds(whole)?.checked_mul(MICROS_PER_SECOND)?.checked_add(fraction)
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

/// More than Postgres's zones differ from Greenwich.
const SECONDS_EAST_MAX: i64 = 7 * 86_400;

/// A clock and what is left of the text from the zone's sign on, as seconds east of Greenwich.
fn zone(text: &[u8]) -> Option<(&[u8], i64)> {
    let at = text.iter().position(|byte| matches!(byte, b'+' | b'-')).unwrap_or(text.len());
    let (clock, zone) = text.split_at(at);
    let east = match zone.split_first() {
        None => 0,
        Some((b'-', rest)) => -seconds(rest)?,
        Some((_, rest)) => seconds(rest)?,
    };
    (east.abs() <= SECONDS_EAST_MAX).then_some((clock, east))
}

/// `HH:MM:SS[.ffffff]±HH[:MM[:SS]]` to microseconds of the clock and seconds east of Greenwich.
pub(super) fn time_with_zone(text: &[u8]) -> Option<(i64, i64)> {
    let (clock, east) = zone(text)?;
    Some((time(clock)?, east))
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff][±HH[:MM[:SS]]][ BC]` to microseconds since 1970.
pub(in crate::value) fn timestamp(text: &[u8]) -> Option<i128> {
    let (text, is_bc) = era(text);
    let space = text.iter().position(|byte| *byte == b' ')?;
    let (clock, east) = zone(&text[space + 1..])?;
    let seconds = day(&text[..space], is_bc)?.checked_mul(86_400)?.checked_sub(east)?;
    Some(i128::from(seconds) * i128::from(MICROS_PER_SECOND) + i128::from(time(clock)?))
}
