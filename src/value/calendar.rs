//! Days counted from 1970-01-01 and the proleptic Gregorian calendar, whose year 0 is 1 BC.

/// Days of the years before `year`, counted from year 0 of the proleptic Gregorian calendar.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    year * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) + 1
}

fn month_lengths(year: i64) -> [i64; 12] {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
}

/// Days from 1970-01-01 to a day.
pub fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let whole_months = usize::try_from(month - 1).unwrap_or(0);
    let before: i64 = month_lengths(year).iter().take(whole_months).sum();
    days_before_year(year) - days_before_year(1970) + before + day - 1
}

/// Year, month and day of so many days after 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let since_zero = days + days_before_year(1970);
    // 146,097 days are 400 years; the guess is at most one year off.
    let mut year = (since_zero * 400).div_euclid(146_097);
    while days_before_year(year) > since_zero {
        year -= 1;
    }
    while days_before_year(year + 1) <= since_zero {
        year += 1;
    }
    let mut left = since_zero - days_before_year(year);
    let mut month = 1;
    for length in month_lengths(year) {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}
