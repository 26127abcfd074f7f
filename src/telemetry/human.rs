//! Numbers as people read them.

/// `980 B`, `1.2 MB`: decimal units, as disks and networks are sold.
pub fn bytes(count: u64) -> String {
    let mut number = count as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB", "PB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        // What would round to 1000.0 belongs to the next unit.
        if number < 999.95 {
            break;
        }
        number /= 1_000.0;
        unit = larger;
    }
    if unit == "B" { format!("{count} B") } else { format!("{number:.1} {unit}") }
}

/// `35 ms`, `2.4 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`.
pub fn seconds(seconds: f64) -> String {
    if seconds <= 0.0 {
        return "0 s".into();
    }
    if seconds < 0.999_5 {
        return format!("{:.0} ms", (seconds * 1e3).max(1.0));
    }
    if seconds < 59.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..3_600 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A bar of `width` characters, filled in eighths.
pub fn bar(fraction: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let filled = (fraction.clamp(0.0, 1.0) * width as f64 * 8.0) as usize;
    let partial = EIGHTHS.get(filled % 8).copied().unwrap_or_default();
    let empty = width.saturating_sub(filled.div_ceil(8));
    format!("{}{partial}{}", "█".repeat(filled / 8), "░".repeat(empty))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_change_unit_where_rounding_says() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_234_567, "1.2 MB"),
            (999_960, "1.0 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_at_most_two_units() {
        for (number, text) in [
            (-1.0, "0 s"),
            (0.000_01, "1 ms"),
            (0.035, "35 ms"),
            (0.999_6, "1.0 s"),
            (2.44, "2.4 s"),
            (59.96, "1 min 0 s"),
            (185.0, "3 min 5 s"),
            (3_599.6, "1 h 0 min"),
            (7_800.0, "2 h 10 min"),
            (356_400.0, "4 d 3 h"),
        ] {
            assert_eq!(seconds(number), text);
        }
    }

    #[test]
    fn counts_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn bars_always_have_their_width() {
        assert_eq!(bar(0.5, 4), "██░░");
        assert_eq!(bar(0.99, 4), "███▉");
        for step in -1..=101 {
            assert_eq!(bar(f64::from(step) / 100.0, 10).chars().count(), 10, "{step}");
        }
        assert_eq!(bar(f64::NAN, 3).chars().count(), 3);
    }
}
