//! Dates, times and intervals: Debezium's `time_table` under each mode.

use super::types::written;
use super::*;

const MODES: [TimePrecision; 6] = [
    TimePrecision::Adaptive,
    TimePrecision::AdaptiveTimeMicroseconds,
    TimePrecision::Connect,
    TimePrecision::Isostring,
    TimePrecision::Microseconds,
    TimePrecision::Nanoseconds,
];

fn check(ty: &Type, modifier: i32, mode: TimePrecision, text: &str, binary: &[u8], expected: &Value) {
    let options = Options { time_precision_mode: mode, ..Options::default() };
    let column = || column("v", ty, modifier, true);
    let result = written(column(), &options, Cell::Text(text.as_bytes()));
    assert_eq!(result.as_ref(), Ok(expected), "{ty} {text} {mode:?}");
    if !binary.is_empty() {
        let result = written(column(), &options, Cell::Binary(binary));
        assert_eq!(result.as_ref(), Ok(expected), "{ty} {text} {mode:?} in binary");
    }
}

/// A value under each mode.
fn check_all(ty: &Type, modifier: i32, text: &str, binary: &[u8], expected: [Value; 6]) {
    for (mode, expected) in MODES.into_iter().zip(expected) {
        check(ty, modifier, mode, text, binary, &expected);
    }
}

#[test]
fn dates_are_days_since_1970() {
    let days = |days: i64, iso: &str| [json!(days), json!(days), json!(days), json!(iso), json!(days), json!(days)];
    for (text, since_2000, since_1970, iso) in [
        ("2016-11-04", 6_152_i32, 17_109, "2016-11-04Z"),
        ("1970-01-01", -10_957, 0, "1970-01-01Z"),
        ("0044-03-15 BC", -746_117, -735_160, "-0043-03-15Z"),
        ("0001-01-01 BC", -730_485, -719_528, "0000-01-01Z"),
        ("20000-02-29", 6_574_424, 6_585_381, "+20000-02-29Z"),
        ("infinity", i32::MAX, -2_147_472_692, "-5877611-06-21Z"),
        ("-infinity", i32::MIN, -2_147_472_691, "-5877611-06-22Z"),
    ] {
        check_all(&Type::DATE, -1, text, &since_2000.to_be_bytes(), days(since_1970, iso));
    }
}

#[test]
fn times_count_from_midnight() {
    let noonish = 49_890_000_000_i64;
    check_all(
        &Type::TIME,
        -1,
        "13:51:30",
        &noonish.to_be_bytes(),
        [json!(noonish), json!(noonish), json!(49_890_000), json!("13:51:30Z"), json!(noonish), json!(noonish * 1_000)],
    );
    let precise = 49_890_123_000_i64;
    check_all(
        &Type::TIME,
        3,
        "13:51:30.123",
        &precise.to_be_bytes(),
        [
            json!(49_890_123),
            json!(precise),
            json!(49_890_123),
            json!("13:51:30.123Z"),
            json!(precise),
            json!(precise * 1_000),
        ],
    );
    let end = 86_400_000_000_i64;
    check_all(
        &Type::TIME,
        -1,
        "24:00:00",
        &end.to_be_bytes(),
        [json!(end), json!(end), json!(86_400_000), json!("00:00:00Z"), json!(end), json!(end * 1_000)],
    );
    for cell in [Cell::Text(b"24:00:01"), Cell::Text(b"1 pm"), Cell::Binary(&[0xFF; 8]), Cell::Binary(&[0; 4])] {
        let result = written(column("v", &Type::TIME, -1, true), &Options::default(), cell);
        assert_eq!(result, Err(ValueError::Malformed));
    }
}

#[test]
fn timestamps_count_from_1970() {
    let micros = 1_478_267_490_123_456_i64;
    let of_postgres = (micros - UnixMicros::POSTGRES_EPOCH).to_be_bytes();
    let iso = json!("2016-11-04T13:51:30.123456Z");
    let text = "2016-11-04 13:51:30.123456";
    let fine = [json!(micros), json!(micros), json!(1_478_267_490_123_i64), iso, json!(micros), json!(micros * 1_000)];
    check_all(&Type::TIMESTAMP, -1, text, &of_postgres, fine.clone());
    check_all(&Type::TIMESTAMP, 6, text, &of_postgres, fine);
    let coarse = 1_478_267_490_123_i64;
    for mode in [TimePrecision::Adaptive, TimePrecision::AdaptiveTimeMicroseconds, TimePrecision::Connect] {
        check(&Type::TIMESTAMP, 3, mode, "2016-11-04 13:51:30.123", b"", &json!(coarse));
    }
    let before = -1_046_483_267_392_000_i64;
    let of_postgres = (before - UnixMicros::POSTGRES_EPOCH).to_be_bytes();
    check(&Type::TIMESTAMP, 6, TimePrecision::Adaptive, "1936-11-02 22:12:12.608", &of_postgres, &json!(before));
    // Rounded down, as time before 1970 is, too.
    let just_before = (-1 - UnixMicros::POSTGRES_EPOCH).to_be_bytes();
    check(&Type::TIMESTAMP, -1, TimePrecision::Connect, "1969-12-31 23:59:59.999999", &just_before, &json!(-1));
}

#[test]
fn timestamps_at_the_ends_of_time() {
    let adaptive = TimePrecision::Adaptive;
    let greatest = 9_223_371_331_200_000_000_i64 - 1;
    check(&Type::TIMESTAMP, 6, adaptive, "294247-01-01 23:59:59.999999", b"", &json!(greatest));
    let least = -210_831_897_600_000_001_i64;
    check(&Type::TIMESTAMP, 6, adaptive, "4713-12-31 23:59:59.999999 BC", b"", &json!(least));
    check_all(
        &Type::TIMESTAMP,
        6,
        "infinity",
        &i64::MAX.to_be_bytes(),
        [
            json!(9_223_372_036_825_200_000_i64),
            json!(9_223_372_036_825_200_000_i64),
            json!(9_223_372_036_825_200_i64),
            json!("+294247-01-10T04:00:25.2Z"),
            json!(9_223_372_036_825_200_000_i64),
            json!(i64::MAX),
        ],
    );
    check_all(
        &Type::TIMESTAMP,
        6,
        "-infinity",
        &i64::MIN.to_be_bytes(),
        [
            json!(-9_223_372_036_832_400_000_i64),
            json!(-9_223_372_036_832_400_000_i64),
            json!(-9_223_372_036_832_400_i64),
            json!("-290308-12-21T19:59:27.6Z"),
            json!(-9_223_372_036_832_400_000_i64),
            json!(i64::MIN),
        ],
    );
    for (mode, text) in [
        (TimePrecision::Nanoseconds, "2263-01-01 00:00:00"),
        (TimePrecision::Nanoseconds, "9999-12-31 00:00:00"),
        (TimePrecision::Microseconds, "294276-12-31 23:59:59.999999"),
    ] {
        let options = Options { time_precision_mode: mode, ..Options::default() };
        let result = written(column("v", &Type::TIMESTAMP, -1, true), &options, Cell::Text(text.as_bytes()));
        assert_eq!(result, Err(ValueError::OutOfRange), "{text}");
    }
    let last = (i64::MAX - 1).to_be_bytes();
    let result = written(column("v", &Type::TIMESTAMP, -1, true), &Options::default(), Cell::Binary(&last));
    assert_eq!(result, Err(ValueError::OutOfRange));
}

#[test]
fn zoned_timestamps_are_text_in_utc() {
    for (modifier, text, expected) in [
        (-1, "2016-11-04 13:51:30.123456+02", "2016-11-04T11:51:30.123456Z"),
        (-1, "2016-11-04 11:51:30+00", "2016-11-04T11:51:30.000000Z"),
        (3, "2016-11-04 11:51:30.1+00", "2016-11-04T11:51:30.100Z"),
        (0, "2016-11-04 11:51:30+00", "2016-11-04T11:51:30Z"),
        (-1, "21016-11-04 13:51:30.123456+07", "+21016-11-04T06:51:30.123456Z"),
        (-1, "294247-01-01 23:59:59.999999+00", "+294247-01-01T23:59:59.999999Z"),
        (-1, "4714-12-31 23:59:59.999999+00 BC", "-4713-12-31T23:59:59.999999Z"),
        (-1, "1880-01-01 00:00:00+00:53:28", "1879-12-31T23:06:32.000000Z"),
        (-1, "infinity", "infinity"),
        (-1, "-infinity", "-infinity"),
    ] {
        for mode in MODES {
            check(&Type::TIMESTAMPTZ, modifier, mode, text, b"", &json!(expected));
        }
    }
    let micros = (1_478_260_290_123_456 - UnixMicros::POSTGRES_EPOCH).to_be_bytes();
    let expected = json!("2016-11-04T11:51:30.123456Z");
    check(&Type::TIMESTAMPTZ, -1, TimePrecision::Adaptive, "2016-11-04 11:51:30.123456+00", &micros, &expected);
    let forever = i64::MAX.to_be_bytes();
    check(&Type::TIMESTAMPTZ, -1, TimePrecision::Adaptive, "infinity", &forever, &json!("infinity"));
}

#[test]
fn zoned_times_are_text_in_utc() {
    let binary = |micros: i64, west: i32| [&micros.to_be_bytes()[..], &west.to_be_bytes()].concat();
    for (text, micros, west, expected) in [
        ("13:51:30.123789+02", 49_890_123_789, -7_200, "11:51:30.123789Z"),
        ("13:51:30.123+02", 49_890_123_000, -7_200, "11:51:30.123Z"),
        ("01:00:00+02", 3_600_000_000, -7_200, "23:00:00Z"),
        ("24:00:00+00", 86_400_000_000, 0, "24:00:00Z"),
        ("24:00:00-05:30", 86_400_000_000, 19_800, "05:30:00Z"),
        ("00:00:00+15:59:59", 0, -57_599, "08:00:01Z"),
    ] {
        check(&Type::TIMETZ, -1, TimePrecision::Adaptive, text, &binary(micros, west), &json!(expected));
    }
}

#[test]
fn intervals_are_microseconds_or_iso() {
    let binary = |months: i32, days: i32, micros: i64| {
        [&micros.to_be_bytes()[..], &days.to_be_bytes(), &months.to_be_bytes()].concat()
    };
    let string = Options { interval_handling_mode: IntervalMode::String, ..Options::default() };
    for (text, binary, numeric, iso) in [
        (
            "1 year 2 mons 3 days 04:05:06.78",
            binary(14, 3, 14_706_780_000),
            37_091_106_780_000_i64,
            "P1Y2M3DT4H5M6.78S",
        ),
        ("00:00:00", binary(0, 0, 0), 0, "P0Y0M0DT0H0M0S"),
        ("-1 mons +1 day", binary(-1, 1, 0), -2_543_400_000_000, "P0Y-1M1DT0H0M0S"),
        ("-1 days -00:00:01.5", binary(0, -1, -1_500_000), -86_401_500_000, "P0Y0M-1DT0H0M-1.5S"),
        ("-00:00:00.5", binary(0, 0, -500_000), -500_000, "P0Y0M0DT0H0M-0.5S"),
        ("100:00:00", binary(0, 0, 360_000_000_000), 360_000_000_000, "P0Y0M0DT100H0M0S"),
    ] {
        for cell in [Cell::Text(text.as_bytes()), Cell::Binary(&binary)] {
            let column = || column("v", &Type::INTERVAL, -1, true);
            assert_eq!(written(column(), &Options::default(), cell), Ok(json!(numeric)), "{text}");
            assert_eq!(written(column(), &string, cell), Ok(json!(iso)), "{text}");
        }
    }
    let forever = binary(i32::MAX, i32::MAX, i64::MAX);
    for cell in [Cell::Text(b"infinity"), Cell::Binary(&forever)] {
        let result = written(column("v", &Type::INTERVAL, -1, true), &Options::default(), cell);
        assert_eq!(result, Err(ValueError::OutOfRange));
    }
}
