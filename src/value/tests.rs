//! Binary values against the text that Postgres shows for them; `tests/live/surface.rs` asks Postgres itself.

use postgres_types::{ToSql, Type};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn shown(ty: &Type, bytes: &[u8]) -> String {
    let mut out = String::new();
    write_json(&mut out, ty.oid(), Cell::Binary(bytes));
    out
}

fn value(ty: &Type, bytes: &[u8]) -> Value {
    let out = shown(ty, bytes);
    assert!(!out.contains(['\n', '\r']), "{out} is not one line");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{out}: {error}"))
}

fn encoded(ty: &Type, value: &impl ToSql) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    value.to_sql(ty, &mut bytes).expect("of this type");
    bytes.to_vec()
}

fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
    let count = u16::try_from(digits.len()).expect("few");
    let words = [count, weight.cast_unsigned(), sign, scale].into_iter().chain(digits.iter().copied());
    words.flat_map(u16::to_be_bytes).collect()
}

#[test]
fn numerics_keep_every_digit() {
    for (weight, sign, scale, digits, text) in [
        (0, 0, 0, &[][..], "0"),
        (0, 0, 2, &[], "0.00"),
        (0, 0, 2, &[1, 5_000], "1.50"),
        (0, 0x4000, 3, &[12, 3_456], "-12.345"),
        (1, 0, 0, &[1], "10000"),
        (2, 0, 1, &[1, 2, 3, 4_000], "100020003.4"),
        (-1, 0, 4, &[1], "0.0001"),
        (-2, 0, 8, &[25], "0.00000025"),
        (-1, 0, 2, &[1_200], "0.12"),
        (0, 0xC000, 0, &[], "\"NaN\""),
        (0, 0xD000, 0, &[], "\"Infinity\""),
        (0, 0xF000, 0, &[], "\"-Infinity\""),
    ] {
        assert_eq!(shown(&Type::NUMERIC, &numeric(weight, sign, scale, digits)), text);
    }
}

#[test]
fn times_are_those_of_the_calendar() {
    for (days, text) in [
        (0, "2000-01-01"),
        (59, "2000-02-29"),
        (-1, "1999-12-31"),
        (-730_119, "0001-01-01"),
        (-730_120, "0001-12-31 BC"),
        (i32::MAX, "infinity"),
        (i32::MIN, "-infinity"),
    ] {
        assert_eq!(value(&Type::DATE, &days.to_be_bytes()), text);
    }
    for (micros, text) in [
        (0, "2000-01-01T00:00:00+00:00"),
        (-1, "1999-12-31T23:59:59.999999+00:00"),
        (86_400_250_000, "2000-01-02T00:00:00.25+00:00"),
        (i64::MAX, "infinity"),
        (i64::MIN, "-infinity"),
    ] {
        assert_eq!(value(&Type::TIMESTAMPTZ, &micros.to_be_bytes()), text);
    }
    assert_eq!(value(&Type::TIMESTAMP, &0_i64.to_be_bytes()), "2000-01-01T00:00:00");
    assert_eq!(value(&Type::TIME, &86_400_000_000_i64.to_be_bytes()), "24:00:00");
}

#[test]
fn intervals_are_in_the_default_style() {
    for (months, days, micros, text) in [
        (0, 0, 0_i64, "00:00:00"),
        (14, 3, 14_706_500_000, "1 year 2 mons 3 days 04:05:06.5"),
        (-1, 1, 0, "-1 mons +1 day"),
        (0, -1, 3_600_000_000, "-1 days +01:00:00"),
        (24, 0, -1_000_000, "2 years -00:00:01"),
        (0, 0, 360_000_000_000, "100:00:00"),
    ] {
        let bytes = [&micros.to_be_bytes()[..], &i32::to_be_bytes(days), &i32::to_be_bytes(months)].concat();
        assert_eq!(value(&Type::INTERVAL, &bytes), text);
    }
}

#[test]
fn documents_stay_documents_on_one_line() {
    assert_eq!(shown(&Type::JSON, b"{\"a\" :\n [1,2.50]}"), r#"{"a" :  [1,2.50]}"#);
    assert_eq!(value(&Type::JSONB, b"\x01{\"a\": null}"), json!({"a": null}));
    assert_eq!(value(&Type::JSONB, b"\x02{}"), "\\x027b7d", "another version of the format");
}

#[test]
fn what_is_not_known_is_hexadecimal() {
    assert_eq!(value(&Type::POINT, &[1, 255]), "\\x01ff");
    assert_eq!(value(&Type::BYTEA, &[0, 171]), "\\x00ab");
    let mut out = String::new();
    write_json(&mut out, 4_000_000, Cell::Binary(b"a"));
    assert_eq!(out, r#""\\x61""#);
}

#[test]
fn cells_without_a_value_differ() {
    for (cell, text) in [(Cell::Null, "null"), (Cell::Unchanged, r#"{"unchanged":true}"#), (Cell::Text(b"7"), "\"7\"")]
    {
        let mut out = String::new();
        write_json(&mut out, Type::INT4.oid(), cell);
        assert_eq!(out, text);
    }
}

#[test]
fn arrays_are_arrays_of_arrays() {
    let of_two = [2, 0, 23, 2, 1, 1, 1, 4, 7, -1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect::<Vec<_>>();
    assert_eq!(value(&Type::INT4_ARRAY, &of_two), json!([[7], [null]]));
    assert_eq!(value(&Type::TEXT_ARRAY, &encoded(&Type::TEXT_ARRAY, &Vec::<String>::new())), json!([]));
    let lying = [1, 0, 23, i32::MAX, 1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect::<Vec<_>>();
    assert!(shown(&Type::INT4_ARRAY, &lying).starts_with("\"\\\\x"));
    let nested = [1, 0, 1_007, 1, 1, 0].iter().flat_map(|word: &i32| word.to_be_bytes()).collect::<Vec<_>>();
    assert!(shown(&Type::INT4_ARRAY, &nested).starts_with("\"\\\\x"), "no element is an array");
}

proptest! {
    #[test]
    fn numbers_come_back(number: i64, float: f64, single: f32, truth: bool) {
        prop_assert_eq!(value(&Type::INT8, &number.to_be_bytes()), number);
        prop_assert_eq!(value(&Type::BOOL, &[u8::from(truth)]), truth);
        if float.is_finite() {
            prop_assert_eq!(shown(&Type::FLOAT8, &float.to_be_bytes()).parse::<f64>(), Ok(float));
        }
        if single.is_finite() {
            prop_assert_eq!(shown(&Type::FLOAT4, &single.to_be_bytes()).parse::<f32>(), Ok(single));
        }
    }

    #[test]
    fn text_comes_back(text: String, more: Vec<Option<String>>) {
        prop_assert_eq!(value(&Type::TEXT, text.as_bytes()), text.as_str());
        prop_assert_eq!(value(&Type::TEXT_ARRAY, &encoded(&Type::TEXT_ARRAY, &more)), json!(more));
    }

    #[test]
    fn numerics_come_back(whole in 0..=9_999_999_999_u64, fraction in 0..10_000_u16, scale in 4..9_u16) {
        let digits = [(whole / 100_000_000) as u16, (whole / 10_000 % 10_000) as u16, (whole % 10_000) as u16, fraction];
        let shown = shown(&Type::NUMERIC, &numeric(2, 0, scale, &digits));
        prop_assert_eq!(shown, format!("{whole}.{fraction:04}{}", "0".repeat(usize::from(scale) - 4)));
    }

    #[test]
    fn every_day_is_the_one_after_the_one_before(days in -2_000_000..2_000_000_i64) {
        let (year, month, day) = calendar::civil_from_days(days);
        prop_assert_eq!(calendar::days_from_civil(year, month, day), days);
        let next = calendar::civil_from_days(days + 1);
        prop_assert!(next == (year, month, day + 1) || next.2 == 1);
    }

    #[test]
    fn any_bytes_of_any_type_are_one_line_of_json(oid in 0..4_200_u32, bytes: Vec<u8>) {
        let mut out = String::new();
        write_json(&mut out, oid, Cell::Binary(&bytes));
        prop_assert!(serde_json::from_str::<Value>(&out).is_ok(), "{}", out);
        prop_assert!(!out.contains('\n'));
    }
}
