//! Sizes and durations as people write them: `10GiB`, `500ms`.

use std::time::Duration;

/// Reads `24h`, `500ms`, `1h30m`. A number needs its unit.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, unit, tail) = number_and_unit(rest)?;
        let milliseconds = match unit {
            "ms" => number,
            "s" => number.checked_mul(1_000)?,
            "m" | "min" => number.checked_mul(60_000)?,
            "h" => number.checked_mul(3_600_000)?,
            "d" => number.checked_mul(86_400_000)?,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(milliseconds))?;
        rest = tail;
    }
    Some(total)
}

/// Reads `64MiB`, `1GB`, `4096`. A bare number is in bytes.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit, tail) = number_and_unit(text.trim())?;
    let scale: u64 = match unit {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    if tail.is_empty() { number.checked_mul(scale) } else { None }
}

/// Splits `30m10s` into 30, `m` and `10s`. Blanks between number and unit are skipped.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let rest = rest.trim_start();
    let letters = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
    let (unit, tail) = rest.split_at(letters);
    // An unread letter that is no digit would never be read: the caller's loop would not end.
    let tail = tail.trim_start();
    if tail.starts_with(|letter: char| !letter.is_ascii_digit()) {
        return None;
    }
    Some((number.parse().ok()?, unit, tail))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_carry_units() {
        assert_eq!(duration("24h"), Some(Duration::from_secs(86_400)));
        assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5_400)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        for text in ["", "10", "10x", "-1s", "s", "1.5h", "10s!", "99999999999999999999s", "18446744073709551615d"] {
            assert_eq!(duration(text), None, "{text} was taken");
        }
    }

    #[test]
    fn sizes_are_binary_or_decimal() {
        assert_eq!(bytes("10GiB"), Some(10 << 30));
        assert_eq!(bytes("64 MiB"), Some(64 << 20));
        assert_eq!(bytes("1GB"), Some(1_000_000_000));
        assert_eq!(bytes("4096"), Some(4096));
        for text in ["", "GiB", "1gib", "1GiB1", "-1", "1.5GiB", "99999999TiB"] {
            assert_eq!(bytes(text), None, "{text} was taken");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text: String) {
            let _ = (duration(&text), bytes(&text));
        }
    }
}
