//! Dates, times and intervals as Postgres's `to_json` writes them. Days and microseconds count from 2000-01-01.

use super::calendar::civil_from_days;

const MICROS_PER_SECOND: i64 = 1_000_000;
const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;
const DAYS_1970_TO_2000: i64 = 10_957;

pub(super) fn date(days: i32) -> String {
    match days {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        days => {
            let (text, is_bc) = civil(i64::from(days));
            text + if is_bc { " BC" } else { "" }
        }
    }
}

/// `zone` is written after the time.
pub(super) fn timestamp(micros: i64, zone: &str) -> String {
    match micros {
        i64::MAX => "infinity".to_owned(),
        i64::MIN => "-infinity".to_owned(),
        micros => {
            let (date, is_bc) = civil(micros.div_euclid(MICROS_PER_DAY));
            let time = clock(micros.rem_euclid(MICROS_PER_DAY));
            format!("{date}T{time}{zone}{}", if is_bc { " BC" } else { "" })
        }
    }
}

/// `None` outside of a day, whose end is `24:00:00`.
pub(super) fn of_day(micros: i64) -> Option<String> {
    (0..=MICROS_PER_DAY).contains(&micros).then(|| clock(micros))
}

/// `interval_send`: microseconds, days, months. Written in `IntervalStyle` `postgres`, the default.
pub(super) fn interval(bytes: &[u8]) -> Option<String> {
    let (micros, rest) = bytes.split_first_chunk::<8>()?;
    let (days, rest) = rest.split_first_chunk::<4>()?;
    let (micros, days) = (i64::from_be_bytes(*micros), i32::from_be_bytes(*days));
    let months = i32::from_be_bytes(rest.try_into().ok()?);
    match (micros, days, months) {
        (i64::MAX, i32::MAX, i32::MAX) => return Some("infinity".to_owned()),
        (i64::MIN, i32::MIN, i32::MIN) => return Some("-infinity".to_owned()),
        _ => {}
    }
    let mut parts = Vec::new();
    // What follows a negative part says its sign.
    let mut after_negative = false;
    for (count, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if count != 0 {
            let sign = if after_negative && count > 0 { "+" } else { "" };
            parts.push(format!("{sign}{count} {unit}{}", if count == 1 { "" } else { "s" }));
            after_negative = count < 0;
        }
    }
    if micros != 0 || parts.is_empty() {
        let sign = match (micros < 0, after_negative) {
            (true, _) => "-",
            (false, true) => "+",
            (false, false) => "",
        };
        let magnitude = micros.unsigned_abs();
        parts.push(format!("{sign}{}", clock_of(magnitude)));
    }
    Some(parts.join(" "))
}

fn clock(micros: i64) -> String {
    clock_of(micros.unsigned_abs())
}

fn clock_of(micros: u64) -> String {
    let seconds = micros / MICROS_PER_SECOND.unsigned_abs();
    let fraction = micros % MICROS_PER_SECOND.unsigned_abs();
    let text = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    if fraction == 0 { text } else { format!("{text}.{fraction:06}").trim_end_matches('0').to_owned() }
}

/// `YYYY-MM-DD`, and whether the year counts back from the year 1.
fn civil(days: i64) -> (String, bool) {
    let (year, month, day) = civil_from_days(days + DAYS_1970_TO_2000);
    // There is no year 0: it is 1 BC.
    let (shown, is_bc) = if year > 0 { (year, false) } else { (1 - year, true) };
    (format!("{shown:04}-{month:02}-{day:02}"), is_bc)
}
