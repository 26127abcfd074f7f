//! Encoders against values whose bytes are known, and against each other: both forms of a value give the same bytes.

use proptest::prelude::*;

use super::*;

fn encoder(ty: &Type, modifier: i32, target: &str, on_overflow: OnOverflow) -> Encoder {
    let source = SourceType::built_in(ty.oid(), modifier);
    Encoder::new(&source, &ColumnType::parse(target), on_overflow, Reach::Documented).expect("the types fit")
}

/// What is appended for a cell, to something that stands there already.
fn put(encoder: &Encoder, cell: Cell<'_>) -> Result<(Vec<u8>, Fit), ValueError> {
    let mut out = b"before".to_vec();
    let fit = encoder.put(&mut out, cell);
    assert!(out.starts_with(b"before"));
    if fit.is_err() {
        assert_eq!(out, b"before", "an error leaves nothing behind");
    }
    fit.map(|fit| (out.split_off(6), fit))
}

fn exact_of(encoder: &Encoder, cell: Cell<'_>) -> Vec<u8> {
    let (bytes, fit) = put(encoder, cell).expect("it fits");
    assert_eq!(fit, Fit::Exact);
    bytes
}

fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
    let words = [digits.len() as u16, weight.cast_unsigned(), sign, scale];
    words.iter().chain(digits).flat_map(|word| word.to_be_bytes()).collect()
}

/// The binary form of a number written out.
fn numeric_of(text: &str) -> Vec<u8> {
    let (sign, text) = text.strip_prefix('-').map_or((0, text), |rest| (0x4000, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let padded = format!("{:0>width$}", whole, width = whole.len().div_ceil(4) * 4);
    let all = format!("{padded}{:0<width$}", fraction, width = fraction.len().div_ceil(4) * 4);
    let mut digits: Vec<u16> = all
        .as_bytes()
        .chunks(4)
        .map(|group| std::str::from_utf8(group).expect("ascii").parse().expect("digits"))
        .collect();
    let mut weight = (padded.len() / 4) as i16 - 1;
    // Postgres sends neither leading nor trailing zeros.
    while digits.first() == Some(&0) {
        digits.remove(0);
        weight -= 1;
    }
    while digits.last() == Some(&0) {
        digits.pop();
    }
    let weight = if digits.is_empty() { 0 } else { weight };
    numeric(weight, if digits.is_empty() { 0 } else { sign }, fraction.len() as u16, &digits)
}

fn string(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    put_string(&mut out, text.as_bytes());
    out
}

#[test]
fn null_needs_a_place() {
    let not_null = encoder(&Type::INT4, -1, "Int32", OnOverflow::Clamp);
    assert_eq!(put(&not_null, Cell::Null), Err(ValueError::Null));
    assert_eq!(put(&not_null, Cell::Unchanged), Err(ValueError::Unsent));
    let nullable = encoder(&Type::INT4, -1, "Nullable(Int32)", OnOverflow::Error);
    assert_eq!(exact_of(&nullable, Cell::Null), [1]);
    assert_eq!(exact_of(&nullable, Cell::Binary(&7_i32.to_be_bytes())), [0, 7, 0, 0, 0]);
    let array = encoder(&Type::INT4_ARRAY, -1, "Array(Nullable(Int32))", OnOverflow::Clamp);
    assert_eq!(put(&array, Cell::Null), Ok((vec![0], Fit::Coerced)));
    let array = encoder(&Type::INT4_ARRAY, -1, "Array(Nullable(Int32))", OnOverflow::Null);
    assert_eq!(put(&array, Cell::Null), Err(ValueError::Null));
}

#[test]
fn narrow_columns_follow_the_policy() {
    for (on_overflow, value, expected) in [
        (OnOverflow::Error, -1_i64, Err(ValueError::Overflow)),
        (OnOverflow::Clamp, -1, Ok((vec![0, 0], Fit::Coerced))),
        (OnOverflow::Clamp, 300, Ok((vec![0, 255], Fit::Coerced))),
        (OnOverflow::Null, 300, Ok((vec![1], Fit::Coerced))),
        (OnOverflow::Error, 255, Ok((vec![0, 255], Fit::Exact))),
    ] {
        let narrow = encoder(&Type::INT8, -1, "Nullable(UInt8)", on_overflow);
        assert_eq!(put(&narrow, Cell::Binary(&value.to_be_bytes())), expected);
        assert_eq!(put(&narrow, Cell::Text(value.to_string().as_bytes())), expected);
    }
    assert_eq!(exact_of(&encoder(&Type::OID, -1, "Int64", OnOverflow::Error), Cell::Binary(&[255; 4])).len(), 8);
}

#[test]
fn decimals_are_exact_or_follow_the_policy() {
    let values = [
        ("0", 0_i128),
        ("0.0000", 0),
        ("-0.01", -1),
        ("12345.67", 1_234_567),
        ("100020003", 10_002_000_300),
        ("-99999999.99", -9_999_999_999),
        ("0.5", 50),
    ];
    for (text, units) in values {
        for precision in [12_u8, 18, 20, 38, 39, 76] {
            let decimal = encoder(&Type::NUMERIC, -1, &format!("Decimal({precision}, 2)"), OnOverflow::Error);
            let width = if precision <= 18 {
                8
            } else if precision <= 38 {
                16
            } else {
                32
            };
            let mut expected = units.to_le_bytes().to_vec();
            expected.resize(32, if units < 0 { 255 } else { 0 });
            assert_eq!(exact_of(&decimal, Cell::Binary(&numeric_of(text))), expected[..width], "{text} {precision}");
            assert_eq!(exact_of(&decimal, Cell::Text(text.as_bytes())), expected[..width], "{text} {precision}");
        }
    }
    let least = (-99_999_i32).to_le_bytes().to_vec();
    let greatest = 99_999_i32.to_le_bytes().to_vec();
    let huge = "9".repeat(1_000);
    for (text, clamped) in [
        ("1000", Some(&greatest)),
        ("-1000", Some(&least)),
        ("1000.001", Some(&greatest)),
        (huge.as_str(), Some(&greatest)),
        ("Infinity", Some(&greatest)),
        ("-Infinity", Some(&least)),
        ("NaN", None),
        ("1.239", Some(&123_i32.to_le_bytes().to_vec())),
        ("-1.231", Some(&(-123_i32).to_le_bytes().to_vec())),
        ("0.00000001", Some(&vec![0; 4])),
    ] {
        let binary = match text {
            "NaN" => numeric(0, 0xC000, 0, &[]),
            "Infinity" => numeric(0, 0xD000, 0, &[]),
            "-Infinity" => numeric(0, 0xF000, 0, &[]),
            text => numeric_of(text),
        };
        for cell in [Cell::Binary(&binary), Cell::Text(text.as_bytes())] {
            let of = |target, on_overflow| put(&encoder(&Type::NUMERIC, -1, target, on_overflow), cell);
            assert_eq!(of("Decimal(5, 2)", OnOverflow::Error), Err(ValueError::Overflow), "{text:.9}");
            assert_eq!(of("Nullable(Decimal(5, 2))", OnOverflow::Null), Ok((vec![1], Fit::Coerced)), "{text:.9}");
            let expected = clamped.map(|bytes| (bytes.clone(), Fit::Coerced)).ok_or(ValueError::Overflow);
            assert_eq!(of("Decimal(5, 2)", OnOverflow::Clamp), expected, "{text:.9}");
            assert_eq!(of("String", OnOverflow::Text), Ok((string(text), Fit::Exact)), "{text:.9}");
        }
    }
    // 2^256 is passed before the bound is looked at.
    let widest = encoder(&Type::NUMERIC, -1, "Decimal(76, 0)", OnOverflow::Clamp);
    let (bytes, fit) = put(&widest, Cell::Binary(&numeric_of(&huge))).expect("clamped");
    assert_eq!((bytes.len(), fit), (32, Fit::Coerced));
    assert_eq!(exact_of(&widest, Cell::Text("9".repeat(76).as_bytes())), bytes);
}

#[test]
fn days_and_times_keep_their_range() {
    let date = |on_overflow| encoder(&Type::DATE, -1, "Nullable(Date32)", on_overflow);
    let (first, last) = (-25_567_i32, 120_529_i32);
    for (days, text, unix) in [
        (0_i32, "2000-01-01", Ok(10_957_i32)),
        (-36_524, "1900-01-01", Ok(first)),
        (-36_525, "1899-12-31", Err(first)),
        (109_572, "2299-12-31", Ok(last)),
        (109_573, "2300-01-01", Err(last)),
        (i32::MAX, "infinity", Err(last)),
        (i32::MIN, "-infinity", Err(first)),
        (-730_120, "0001-12-31 BC", Err(first)),
        (2_145_031_948, "5874897-12-31", Err(last)),
    ] {
        for cell in [Cell::Binary(&days.to_be_bytes()), Cell::Text(text.as_bytes())] {
            let with = |days: i32, fit| Ok(([&[0][..], &days.to_le_bytes()].concat(), fit));
            match unix {
                Ok(days) => assert_eq!(put(&date(OnOverflow::Error), cell), with(days, Fit::Exact), "{text}"),
                Err(clamped) => {
                    assert_eq!(put(&date(OnOverflow::Error), cell), Err(ValueError::Overflow), "{text}");
                    assert_eq!(put(&date(OnOverflow::Null), cell), Ok((vec![1], Fit::Coerced)), "{text}");
                    assert_eq!(put(&date(OnOverflow::Clamp), cell), with(clamped, Fit::Coerced), "{text}");
                }
            }
        }
    }
    for (target, on_overflow, text, expected) in [
        ("DateTime64(6)", OnOverflow::Error, "1970-01-01 00:00:00.000001", Ok(1_i64)),
        ("DateTime64(6)", OnOverflow::Error, "2024-02-29 12:34:56.789+05:30", Ok(1_709_190_296_789_000)),
        ("DateTime64(6)", OnOverflow::Error, "2024-02-29 12:34:56.5-02:30:15", Ok(1_709_219_111_500_000)),
        ("DateTime64(6)", OnOverflow::Error, "0044-03-15 12:00:00+00 BC", Err(ValueError::Overflow)),
        ("DateTime64(6)", OnOverflow::Clamp, "294276-12-31 23:59:59.999999", Ok(10_413_791_999_999_999)),
        ("DateTime64(6)", OnOverflow::Clamp, "-infinity", Ok(-2_208_988_800_000_000)),
        ("DateTime64(3)", OnOverflow::Error, "1970-01-01 00:00:00.001", Ok(1)),
        ("DateTime64(3)", OnOverflow::Error, "1970-01-01 00:00:00.0015", Err(ValueError::Overflow)),
        ("DateTime64(3)", OnOverflow::Clamp, "1969-12-31 23:59:59.9995", Ok(-1)),
        ("DateTime64(9)", OnOverflow::Error, "1970-01-01 00:00:01", Ok(1_000_000_000)),
        ("DateTime64(9)", OnOverflow::Error, "2262-04-12 00:00:00", Err(ValueError::Overflow)),
        ("DateTime64(6)", OnOverflow::Error, "2024-02-29", Err(ValueError::Malformed)),
        ("DateTime64(6)", OnOverflow::Error, "2024-13-29 00:00:00", Err(ValueError::Malformed)),
    ] {
        let found = put(&encoder(&Type::TIMESTAMPTZ, -1, target, on_overflow), Cell::Text(text.as_bytes()));
        assert_eq!(
            found.map(|(bytes, _)| bytes),
            expected.map(|ticks| ticks.to_le_bytes().to_vec()),
            "{target} {text}"
        );
    }
    let seconds = encoder(&Type::TIMESTAMP, -1, "DateTime", OnOverflow::Clamp);
    assert_eq!(put(&seconds, Cell::Binary(&i64::MIN.to_be_bytes())), Ok((vec![0; 4], Fit::Coerced)));
    assert_eq!(put(&seconds, Cell::Text(b"2106-02-07 06:28:15")), Ok((vec![255; 4], Fit::Exact)));
}

#[test]
fn newer_servers_reach_further() {
    let source = SourceType::built_in(Type::DATE.oid(), -1);
    let wide = Encoder::new(&source, &ColumnType::Date32, OnOverflow::Error, Reach::FourDigits).expect("the types fit");
    assert_eq!(put(&wide, Cell::Text(b"9999-12-31")), Ok((2_932_896_i32.to_le_bytes().to_vec(), Fit::Exact)));
    assert_eq!(put(&wide, Cell::Text(b"10000-01-01")), Err(ValueError::Overflow));
    assert_eq!(put(&wide, Cell::Text(b"0001-01-01")), Ok(((-719_162_i32).to_le_bytes().to_vec(), Fit::Exact)));
    assert_eq!(put(&wide, Cell::Text(b"0001-12-31 BC")), Err(ValueError::Overflow));
}

#[test]
fn arrays_have_the_column_s_dimensions() {
    let words = |words: &[i32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    let flat = |on_overflow| encoder(&Type::INT4_ARRAY, -1, "Array(Nullable(Int32))", on_overflow);
    let deep = encoder(&Type::INT4_ARRAY, -1, "Array(Array(Nullable(Int32)))", OnOverflow::Error);
    let empty = words(&[0, 0, 23]);
    let three = words(&[1, 1, 23, 3, 1, 4, 1, -1, 4, 3]);
    let shifted = words(&[1, 0, 23, 1, 0, 4, 1]);
    let nested = words(&[2, 1, 23, 1, 1, 2, 1, 4, 1, -1]);
    for (text, binary, shallow, deeper) in [
        ("{}", &empty, Ok(vec![0]), Ok(vec![0])),
        ("{1,NULL,3}", &three, Ok(vec![3, 0, 1, 0, 0, 0, 1, 0, 3, 0, 0, 0]), Err(ValueError::Overflow)),
        ("[0:0]={1}", &shifted, Err(ValueError::Overflow), Err(ValueError::Overflow)),
        ("{{1,NULL}}", &nested, Err(ValueError::Overflow), Ok(vec![1, 2, 0, 1, 0, 0, 0, 1])),
    ] {
        for cell in [Cell::Binary(binary), Cell::Text(text.as_bytes())] {
            assert_eq!(put(&flat(OnOverflow::Error), cell).map(|(bytes, _)| bytes), shallow, "{text}");
            assert_eq!(put(&deep, cell).map(|(bytes, _)| bytes), deeper, "{text}");
        }
    }
    for cell in [Cell::Binary(&shifted), Cell::Text(b"[0:0]={1}")] {
        assert_eq!(put(&flat(OnOverflow::Clamp), cell), Ok((vec![1, 0, 1, 0, 0, 0], Fit::Coerced)));
    }
    let texts = encoder(&Type::TEXT_ARRAY, -1, "Array(Nullable(String))", OnOverflow::Error);
    let expected = [&[4, 0][..], &string(""), &[1, 0], &string("NULL"), &[0], &string("a\"b\\c,}")].concat();
    assert_eq!(exact_of(&texts, Cell::Text(br#"{"",NULL,"NULL","a\"b\\c,}"}"#)), expected);
    // More elements than one byte counts.
    let many = format!("{{{}}}", ["1"; 300].join(","));
    let bytes = exact_of(&flat(OnOverflow::Error), Cell::Text(many.as_bytes()));
    assert_eq!((&bytes[..4], bytes.len()), (&[0xAC, 0x02, 0, 1][..], 2 + 300 * 5));
    for text in ["{", "{1", "{1,}", "{1}x", "{\"1}", "1", "", "{{1},2}"] {
        assert!(put(&flat(OnOverflow::Clamp), Cell::Text(text.as_bytes())).is_err(), "{text} was taken");
    }
}

#[test]
fn what_has_no_way_into_a_column_is_refused_when_it_is_planned() {
    let of = |ty: &Type, target: &str, on_overflow| {
        let source = SourceType::built_in(ty.oid(), -1);
        Encoder::new(&source, &ColumnType::parse(target), on_overflow, Reach::Documented).err()
    };
    assert!(matches!(of(&Type::FLOAT8, "Float32", OnOverflow::Error), Some(PairError::Types(_))));
    assert!(matches!(of(&Type::NUMERIC, "Float64", OnOverflow::Error), Some(PairError::Types(_))));
    assert!(matches!(of(&Type::TEXT, "UUID", OnOverflow::Error), Some(PairError::Types(_))));
    assert!(matches!(of(&Type::TEXT, "Map(String, String)", OnOverflow::Error), Some(PairError::Types(_))));
    assert!(matches!(of(&Type::DATE, "Date32", OnOverflow::Null), Some(PairError::NotNullable(_))));
    assert!(matches!(of(&Type::DATE, "Date32", OnOverflow::Text), Some(PairError::NotText(_))));
    assert_eq!(of(&Type::DATE, "String", OnOverflow::Text), None);
    assert_eq!(of(&Type::INT4, "Int64", OnOverflow::Null), None, "every value fits");
}

#[test]
fn binary_forms_that_are_not_understood_are_never_written() {
    let source = SourceType::built_in(Type::POINT.oid(), -1);
    assert!(!reads_binary(&source));
    let point = encoder(&Type::POINT, -1, "String", OnOverflow::Error);
    assert_eq!(put(&point, Cell::Binary(&[0; 16])), Err(ValueError::BinaryForm));
    assert_eq!(put(&point, Cell::Text(b"(1,2)")), Ok((string("(1,2)"), Fit::Exact)));
    let unknown = SourceType { oid: 99_999, modifier: -1, form: Form::Unknown };
    let unknown = Encoder::new(&unknown, &ColumnType::String, OnOverflow::Error, Reach::Documented).expect("text goes");
    assert_eq!(put(&unknown, Cell::Binary(b"x")), Err(ValueError::BinaryForm));
}

#[test]
fn defaults_fill_the_column() {
    for (ty, target, width) in [
        (Type::INT8, "Int64", 8),
        (Type::INT8, "Nullable(Int64)", 1),
        (Type::NUMERIC, "Decimal(39, 0)", 32),
        (Type::TEXT, "LowCardinality(String)", 1),
        (Type::UUID, "UUID", 16),
        (Type::TIMESTAMP, "DateTime64(6)", 8),
        (Type::DATE, "Date", 2),
        (Type::BOOL, "Bool", 1),
        (Type::INT4_ARRAY, "Array(Nullable(Int32))", 1),
    ] {
        let mut out = Vec::new();
        encoder(&ty, -1, target, OnOverflow::Error).put_default(&mut out);
        assert_eq!(out.len(), width, "{target}");
    }
}

proptest! {
    #[test]
    fn whole_numbers_are_turned_around(value: i64) {
        let encoder = encoder(&Type::INT8, -1, "Int64", OnOverflow::Error);
        prop_assert_eq!(exact_of(&encoder, Cell::Binary(&value.to_be_bytes())), value.to_le_bytes());
        prop_assert_eq!(exact_of(&encoder, Cell::Text(value.to_string().as_bytes())), value.to_le_bytes());
    }

    #[test]
    fn floats_read_back_bit_for_bit(bits: u64, single: u32) {
        let (value, single) = (f64::from_bits(bits), f32::from_bits(single));
        let double = encoder(&Type::FLOAT8, -1, "Float64", OnOverflow::Error);
        prop_assert_eq!(exact_of(&double, Cell::Binary(&value.to_be_bytes())), value.to_le_bytes());
        // What is printed reads back as the same number, and to the same bytes from text.
        for (ty, target, bytes) in
            [(Type::FLOAT8, "Float64", value.to_be_bytes().to_vec()), (Type::FLOAT4, "Float32", single.to_be_bytes().to_vec())]
        {
            let is_nan = if ty == Type::FLOAT8 { value.is_nan() } else { single.is_nan() };
            if is_nan {
                continue;
            }
            let mut text = Vec::new();
            print::print(&mut text, &ty, &bytes).expect("it is a float");
            let number = encoder(&ty, -1, target, OnOverflow::Error);
            prop_assert_eq!(exact_of(&number, Cell::Text(&text)), exact_of(&number, Cell::Binary(&bytes)));
        }
    }

    #[test]
    fn numerics_of_any_length_are_printed_and_read_alike(whole in "0|[1-9][0-9]{0,1000}", fraction in "[0-9]{0,40}", minus: bool) {
        let number = if fraction.is_empty() { whole } else { format!("{whole}.{fraction}") };
        let is_zero = number.bytes().all(|byte| matches!(byte, b'0' | b'.'));
        let text = if minus && !is_zero { format!("-{number}") } else { number };
        let binary = numeric_of(&text);
        let printed = encoder(&Type::NUMERIC, -1, "String", OnOverflow::Error);
        prop_assert_eq!(exact_of(&printed, Cell::Binary(&binary)), string(&text));
        for target in ["Decimal(76, 20)", "Decimal(38, 3)", "Decimal(18, 0)", "Decimal(9, 9)"] {
            for on_overflow in [OnOverflow::Error, OnOverflow::Clamp] {
                let decimal = encoder(&Type::NUMERIC, -1, target, on_overflow);
                prop_assert_eq!(put(&decimal, Cell::Binary(&binary)), put(&decimal, Cell::Text(text.as_bytes())), "{}", target);
            }
        }
    }

    #[test]
    fn times_are_printed_and_read_alike(micros: i64, days: i32) {
        for (ty, target, bytes) in [
            (Type::TIMESTAMPTZ, "DateTime64(6)", micros.to_be_bytes().to_vec()),
            (Type::TIMESTAMP, "DateTime64(3)", (micros / 1_000).to_be_bytes().to_vec()),
            (Type::DATE, "Date32", (days / 10_000).to_be_bytes().to_vec()),
        ] {
            let mut text = Vec::new();
            print::print(&mut text, &ty, &bytes).expect("it is a time");
            let clamping = encoder(&ty, -1, target, OnOverflow::Clamp);
            prop_assert_eq!(put(&clamping, Cell::Text(&text)), put(&clamping, Cell::Binary(&bytes)));
        }
    }

    #[test]
    fn uuids_and_bytes_have_two_forms_of_one_value(uuid: [u8; 16], bytes: Vec<u8>) {
        for (ty, target, value) in [(Type::UUID, "UUID", &uuid[..]), (Type::BYTEA, "String", &bytes)] {
            let mut text = Vec::new();
            print::print(&mut text, &ty, value).expect("it is its binary form");
            let encoder = encoder(&ty, -1, target, OnOverflow::Error);
            prop_assert_eq!(exact_of(&encoder, Cell::Text(&text)), exact_of(&encoder, Cell::Binary(value)));
        }
    }

    #[test]
    fn any_bytes_of_any_type_are_written_whole_or_not_at_all(oid in 0..4_600_u32, bytes: Vec<u8>, clamp: bool) {
        let source = SourceType::built_in(oid, -1);
        let on_overflow = if clamp { OnOverflow::Clamp } else { OnOverflow::Error };
        let target = super::super::types::column_type(&source, false, on_overflow);
        let encoder = Encoder::new(&source, &target, on_overflow, Reach::Documented).expect("our own choice of type");
        let _ = put(&encoder, Cell::Binary(&bytes));
        let _ = put(&encoder, Cell::Text(&bytes));
    }
}
