//! Times of day as people write and read them, in UTC: RFC 3339, without a time zone database.

use crate::checkpoint::UnixMicros;
use crate::value::calendar::{civil_from_days, days_from_civil};

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;

/// `2026-03-01T09:30:00.25Z`; the fraction only where there is one.
pub fn format_utc(at: UnixMicros) -> String {
    let seconds = at.0.div_euclid(MICROS_PER_SECOND);
    let micros = at.0.rem_euclid(MICROS_PER_SECOND);
    let (year, month, day) = civil_from_days(seconds.div_euclid(SECONDS_PER_DAY));
    let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}").trim_end_matches('0').to_owned() };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Reads `2026-03-01T09:30:00Z`, with a space for the `T`, without seconds, with a fraction, or with an offset like
/// `+02:00`. The zone may not be left out: a time that depends on the machine that reads it moves data nobody meant.
pub fn parse_utc(text: &str) -> Option<UnixMicros> {
    let (date, time) = text.trim().split_once(['T', 't', ' '])?;
    let (time, offset_seconds) = split_zone(time.trim())?;
    let mut date_parts = date.splitn(3, '-');
    let year = number(date_parts.next()?, 4)?;
    let month = number(date_parts.next()?, 2)?;
    let day = number(date_parts.next()?, 2)?;
    if !(1..=12).contains(&month) || day < 1 || civil_from_days(days_from_civil(year, month, day)) != (year, month, day)
    {
        return None;
    }
    let mut time_parts = time.splitn(3, ':');
    let hour = number(time_parts.next()?, 2)?;
    let minute = number(time_parts.next()?, 2)?;
    let (second, micros) = match time_parts.next() {
        Some(seconds) => match seconds.split_once('.') {
            Some((whole, fraction)) => (number(whole, 2)?, fraction_micros(fraction)?),
            None => (number(seconds, 2)?, 0),
        },
        None => (0, 0),
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_from_civil(year, month, day);
    let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second - offset_seconds;
    Some(UnixMicros(seconds * MICROS_PER_SECOND + micros))
}

/// The time without its zone, and the zone's seconds east of UTC.
fn split_zone(time: &str) -> Option<(&str, i64)> {
    if let Some(utc) = time.strip_suffix(['Z', 'z']) {
        return Some((utc, 0));
    }
    let sign_at = time.rfind(['+', '-'])?;
    let (time, zone) = time.split_at_checked(sign_at)?;
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    if hours > 15 || minutes > 59 {
        return None;
    }
    let seconds = hours * 3_600 + minutes * 60;
    Some((time.trim_end(), if zone.starts_with('-') { -seconds } else { seconds }))
}

fn number(text: &str, digits: usize) -> Option<i64> {
    let plain = text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn fraction_micros(digits: &str) -> Option<i64> {
    if digits.is_empty() || digits.len() > 6 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<6}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_stand_as_written() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000_000, "2000-02-29T00:00:00Z"),
            (UnixMicros::POSTGRES_EPOCH, "2000-01-01T00:00:00Z"),
            (1_772_357_400_250_000, "2026-03-01T09:30:00.25Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
        ] {
            assert_eq!(format_utc(UnixMicros(micros)), text);
            assert_eq!(parse_utc(text), Some(UnixMicros(micros)), "{text}");
        }
    }

    #[test]
    fn zones_are_converted_and_spaces_taken() {
        let noon = parse_utc("2026-03-01T12:00:00Z");
        assert!(noon.is_some());
        for text in ["2026-03-01 12:00Z", "2026-03-01 14:00:00+02:00", "2026-03-01T06:30:00.0-05:30"] {
            assert_eq!(parse_utc(text), noon, "{text}");
        }
    }

    #[test]
    fn a_time_without_a_zone_or_out_of_range_is_refused() {
        for text in [
            "",
            "2026-03-01",
            "2026-03-01T12:00:00",
            "2026-02-29T00:00Z",
            "2026-13-01T00:00Z",
            "2026-03-01T24:00Z",
            "2026-3-1T00:00Z",
            "2026-03-01T12:00:00.Z",
            "2026-03-01T12:00:00.1234567Z",
            "2026-03-01T12:00+2",
            "é-é-éTéZ",
        ] {
            assert_eq!(parse_utc(text), None, "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn every_time_round_trips(micros in 0..253_402_300_799_999_999_i64) {
            prop_assert_eq!(parse_utc(&format_utc(UnixMicros(micros))), Some(UnixMicros(micros)));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_utc(&text);
        }
    }
}
