//! Values of each type, as in the tables of Debezium's own tests, in both forms of Postgres's wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

mod arrays;
mod unsent;

/// What a value of such a column becomes.
pub(super) fn written(column: Column, options: &Options, cell: Cell<'_>) -> Result<Value, ValueError> {
    let name = column.name.clone();
    let shape = shape_of("t", &[column], &[], options);
    let mut out = Vec::new();
    let cells = [cell];
    match shape.value(&mut out, &Change::Create { after: cells.iter().copied() }, &info(), None, NOW) {
        Ok(()) => Ok(read(&out)["after"][name.as_str()].clone()),
        Err(EncodeError::Value { error, .. }) => Err(error),
        Err(EncodeError::Layout) => panic!("one cell for one column"),
    }
}

/// A value as text, and in binary if that form is given, becomes this.
fn check(ty: &Type, modifier: i32, options: &Options, text: &str, binary: &[u8], expected: &Value) {
    let column = || column("v", ty, modifier, true);
    assert_eq!(written(column(), options, Cell::Text(text.as_bytes())).as_ref(), Ok(expected), "{ty} {text}");
    if !binary.is_empty() {
        assert_eq!(written(column(), options, Cell::Binary(binary)).as_ref(), Ok(expected), "{ty} {text} in binary");
    }
}

fn with(change: impl FnOnce(&mut Options)) -> Options {
    let mut options = Options::default();
    change(&mut options);
    options
}

fn base64(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

fn typmod(precision: i32, scale: i32) -> i32 {
    ((precision << 16) | (scale & 0x7FF)) + 4
}

/// `numeric_send`.
fn numeric(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
    let count = u16::try_from(digits.len()).expect("few");
    let words = [count, weight.cast_unsigned(), sign, scale].into_iter().chain(digits.iter().copied());
    words.flat_map(u16::to_be_bytes).collect()
}

#[test]
fn numeric_table() {
    let options = Options::default();
    for (ty, text, binary, expected) in [
        (Type::INT2, "1", &1_i16.to_be_bytes()[..], json!(1)),
        (Type::INT4, "123456", &123_456_i32.to_be_bytes(), json!(123_456)),
        (Type::INT8, "1234567890123", &1_234_567_890_123_i64.to_be_bytes(), json!(1_234_567_890_123_i64)),
        (Type::FLOAT4, "3.3", &3.3_f32.to_be_bytes(), json!(3.3)),
        (Type::FLOAT8, "4.44", &4.44_f64.to_be_bytes(), json!(4.44)),
        (Type::FLOAT4, "3", &3_f32.to_be_bytes(), json!(3.0)),
        (Type::FLOAT8, "4", &4_f64.to_be_bytes(), json!(4.0)),
        (Type::FLOAT4, "NaN", &f32::NAN.to_be_bytes(), json!("NaN")),
        (Type::FLOAT8, "Infinity", &f64::INFINITY.to_be_bytes(), json!("Infinity")),
        (Type::FLOAT4, "-Infinity", &f32::NEG_INFINITY.to_be_bytes(), json!("-Infinity")),
        (Type::BOOL, "t", &[1], json!(true)),
        (Type::BOOL, "f", &[0], json!(false)),
        (Type::OID, "4000000000", &4_000_000_000_u32.to_be_bytes(), json!(4_000_000_000_u32)),
    ] {
        check(&ty, -1, &options, text, binary, &expected);
    }
}

#[test]
fn numeric_decimal_table() {
    let precise = Options::default();
    let string = with(|options| options.decimal_handling_mode = DecimalMode::String);
    let double = with(|options| options.decimal_handling_mode = DecimalMode::Double);
    for (modifier, text, binary, unscaled, real) in [
        (typmod(3, 2), "1.10", numeric(0, 0, 2, &[1, 1_000]), &[110][..], 1.1),
        (typmod(4, 0), "10", numeric(0, 0, 0, &[10]), &[10], 10.0),
        (typmod(3, 2), "-3.30", numeric(0, 0x4000, 2, &[3, 3_000]), &[0xFE, 0xB6], -3.3),
        (typmod(6, 4), "22.2200", numeric(0, 0, 4, &[22, 2_200]), &[0x03, 0x63, 0xF8], 22.22),
        (typmod(12, 0), "100000000", numeric(2, 0, 0, &[1]), &[0x05, 0xF5, 0xE1, 0x00], 1e8),
    ] {
        check(&Type::NUMERIC, modifier, &precise, text, &binary, &base64(unscaled));
        check(&Type::NUMERIC, modifier, &string, text, &binary, &json!(text));
        check(&Type::NUMERIC, modifier, &double, text, &binary, &json!(real));
    }
    for (text, binary, scale, unscaled) in [
        ("10.1111", numeric(0, 0, 4, &[10, 1_111]), 4, &[0x01, 0x8A, 0xF7][..]),
        ("22.2222", numeric(0, 0, 4, &[22, 2_222]), 4, &[0x03, 0x64, 0x0E]),
        ("10", numeric(0, 0, 0, &[10]), 0, &[10]),
        ("22.10", numeric(0, 0, 2, &[22, 1_000]), 1, &[0x00, 0xDD]),
        ("0.00", numeric(0, 0, 2, &[]), 0, &[0]),
    ] {
        let expected = json!({"scale": scale, "value": base64(unscaled)});
        check(&Type::NUMERIC, -1, &precise, text, &binary, &expected);
        check(&Type::NUMERIC, -1, &string, text, &binary, &json!(text));
    }
    for (text, sign, name) in
        [("NaN", 0xC000, "NAN"), ("Infinity", 0xD000, "POSITIVE_INFINITY"), ("-Infinity", 0xF000, "NEGATIVE_INFINITY")]
    {
        let binary = numeric(0, sign, 0, &[]);
        check(&Type::NUMERIC, -1, &string, text, &binary, &json!(name));
        check(&Type::NUMERIC, -1, &double, text, &binary, &json!(text));
        for modifier in [-1, typmod(3, 2)] {
            let column = || column("v", &Type::NUMERIC, modifier, true);
            assert_eq!(written(column(), &precise, Cell::Binary(&binary)), Err(ValueError::NotANumber));
            assert_eq!(written(column(), &precise, Cell::Text(text.as_bytes())), Err(ValueError::NotANumber));
        }
    }
    let too_fine = written(column("v", &Type::NUMERIC, typmod(3, 2), true), &precise, Cell::Text(b"1.001"));
    assert_eq!(too_fine, Err(ValueError::OutOfRange));
}

#[test]
fn money_has_the_scale_that_is_set() {
    let precise = Options::default();
    for (text, units, unscaled) in
        [("$1,234.11", 123_411_i64, &[0x01, 0xE2, 0x13][..]), ("-$1,234.11", -123_411, &[0xFE, 0x1D, 0xED])]
    {
        check(&Type::MONEY, -1, &precise, text, &units.to_be_bytes(), &base64(unscaled));
    }
    let string = with(|options| options.decimal_handling_mode = DecimalMode::String);
    check(&Type::MONEY, -1, &string, "-$1,234.11", &(-123_411_i64).to_be_bytes(), &json!("-1234.11"));
    let double = with(|options| options.decimal_handling_mode = DecimalMode::Double);
    check(&Type::MONEY, -1, &double, "$1,234.11", &123_411_i64.to_be_bytes(), &json!(1_234.11));
    let yen = with(|options| options.money_fraction_digits = 0);
    check(&Type::MONEY, -1, &yen, "￥127", &127_i64.to_be_bytes(), &base64(&[127]));
}

#[test]
fn string_and_text_tables() {
    let options = Options::default();
    for (ty, text, binary) in [
        (Type::VARCHAR, "\u{17E}\u{161}", "\u{17E}\u{161}".as_bytes()),
        (Type::BPCHAR, "abc ", b"abc "),
        (Type::TEXT, "some \"text\"\n", b"some \"text\"\n"),
        (Type::JSON, "{\"bar\": \"baz\"}", b"{\"bar\": \"baz\"}"),
        (Type::JSONB, "{\"bar\": \"baz\"}", b"\x01{\"bar\": \"baz\"}"),
        (Type::XML, "<foo>bar</foo><foo>bar</foo>", b"<foo>bar</foo><foo>bar</foo>"),
        (Type::INET, "192.168.2.0/12", &[2, 12, 0, 4, 192, 168, 2, 0]),
        (Type::CIDR, "192.168.100.128/25", &[2, 25, 1, 4, 192, 168, 100, 128]),
        (Type::MACADDR, "08:00:2b:01:02:03", &[8, 0, 0x2B, 1, 2, 3]),
        (Type::MACADDR8, "08:00:2b:01:02:03:04:05", &[8, 0, 0x2B, 1, 2, 3, 4, 5]),
        (Type::TS_VECTOR, "'a':1 'fat':2", b""),
    ] {
        check(&ty, -1, &options, text, binary, &json!(text));
    }
    let uuid: [u8; 16] = 0xa0ee_bc99_9c0b_4ef8_bb6d_6bb9_bd38_0a11_u128.to_be_bytes();
    let text = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
    check(&Type::UUID, -1, &options, text, &uuid, &json!(text));
    let cell = Cell::Binary(b"\xFF");
    assert_eq!(written(column("v", &Type::TEXT, -1, true), &options, cell), Err(ValueError::NotUtf8));
}

#[test]
fn extension_types_are_known_by_their_names() {
    let options = Options::default();
    let named = |name: &str, form| Column {
        source: SourceType { oid: 17_000, modifier: -1, form },
        type_name: name.to_owned(),
        ..column("v", &Type::TEXT, -1, true)
    };
    let galaxies = "Top.Collections.Pictures.Astronomy.Galaxies";
    for (column, cell, expected) in [
        (named("citext", Form::TextAlike), Cell::Binary(b"Hello World"), "Hello World"),
        (named("ltree", Form::Unknown), Cell::Text(galaxies.as_bytes()), galaxies),
        (named("ltree", Form::Unknown), Cell::Binary(b"\x01Top.Science"), "Top.Science"),
        (named("isbn", Form::Unknown), Cell::Text(b"0-393-04002-X"), "0-393-04002-X"),
        (named("mood", Form::Enum), Cell::Binary(b"happy"), "happy"),
    ] {
        assert_eq!(written(column, &options, cell), Ok(json!(expected)));
    }
    let isbn = written(named("isbn", Form::Unknown), &options, Cell::Binary(&[0; 8]));
    assert_eq!(isbn, Err(ValueError::BinaryForm));
    assert!(!named("isbn", Form::Unknown).reads_binary(&options));
    assert!(named("ltree", Form::Unknown).reads_binary(&options));
}

#[test]
fn hstore_is_json_as_text_or_a_map() {
    let hstore = || Column {
        source: SourceType { oid: 17_000, modifier: -1, form: Form::Unknown },
        type_name: "hstore".to_owned(),
        ..column("v", &Type::TEXT, -1, true)
    };
    let map = with(|options| options.hstore_handling_mode = HstoreMode::Map);
    let mut binary = vec![0, 0, 0, 2];
    for field in [Some("key_#1"), Some("val 1"), Some("k\"2\\"), None] {
        binary.extend(field.map_or(-1, |field| field.len() as i32).to_be_bytes());
        binary.extend(field.unwrap_or_default().bytes());
    }
    let text = br#""key_#1"=>"val 1", "k\"2\\"=>NULL"#;
    for cell in [Cell::Text(text), Cell::Binary(&binary)] {
        assert_eq!(written(hstore(), &map, cell), Ok(json!({"key_#1": "val 1", "k\"2\\": null})));
        let expected = r#"{"key_#1":"val 1","k\"2\\":null}"#;
        assert_eq!(written(hstore(), &Options::default(), cell), Ok(json!(expected)));
    }
    assert_eq!(written(hstore(), &map, Cell::Text(b"")), Ok(json!({})));
    for broken in [&b"\"a\"=>"[..], b"\"a\"", b"\"a\"=>\"b\", ", b"a=>b"] {
        assert_eq!(written(hstore(), &map, Cell::Text(broken)), Err(ValueError::Malformed));
    }
}

#[test]
fn bytes_have_the_form_that_is_asked_for() {
    use BinaryMode::{Base64, Base64UrlSafe, Bytes, Hex};
    for (mode, text, binary, expected) in [
        (Bytes, "\\x010203", &[1, 2, 3][..], "AQID"),
        (Hex, "\\x010203", &[1, 2, 3], "010203"),
        (Base64, "\\x010203", &[1, 2, 3], "AQID"),
        (Base64UrlSafe, "\\x010203", &[1, 2, 3], "AQID"),
        (Base64, "\\xfbff", &[0xFB, 0xFF], "+/8="),
        (Base64UrlSafe, "\\xfbff", &[0xFB, 0xFF], "-_8="),
    ] {
        let options = with(|options| options.binary_handling_mode = mode);
        check(&Type::BYTEA, -1, &options, text, binary, &json!(expected));
    }
    for broken in ["010203", "\\x1", "\\xgg"] {
        for mode in [Bytes, Hex, Base64] {
            let options = with(|options| options.binary_handling_mode = mode);
            let result = written(column("v", &Type::BYTEA, -1, true), &options, Cell::Text(broken.as_bytes()));
            assert_eq!(result, Err(ValueError::Malformed), "{broken}");
        }
    }
}

#[test]
fn unknown_types_are_left_out_or_the_bytes_of_their_text() {
    let columns = [column("pk", &Type::INT4, -1, false), column("tsq", &Type::TSQUERY, -1, true)];
    let cells = [Cell::Text(b"1"), Cell::Text(b"'fat' <-> 'cat'")];
    let change = Change::Create { after: cells.iter().copied() };
    let shape = shape_of("unknown_type_table", &columns, &["pk"], &Options::default());
    assert_eq!(value_of(&shape, &change)["after"], json!({"pk": 1}));
    use BinaryMode::{Base64, Base64UrlSafe, Bytes, Hex};
    for (mode, expected) in [
        (Bytes, "J2ZhdCcgPC0+ICdjYXQn"),
        (Base64, "J2ZhdCcgPC0+ICdjYXQn"),
        (Base64UrlSafe, "J2ZhdCcgPC0-ICdjYXQn"),
        (Hex, "2766617427203c2d3e202763617427"),
    ] {
        let options = with(|options| {
            options.include_unknown_datatypes = true;
            options.binary_handling_mode = mode;
        });
        assert!(!columns[1].reads_binary(&options) && columns[1].is_known(&options));
        let shape = shape_of("unknown_type_table", &columns, &["pk"], &options);
        assert_eq!(value_of(&shape, &change)["after"], json!({"pk": 1, "tsq": expected}));
    }
    assert!(!columns[1].is_known(&Options::default()));
}

#[test]
fn bitbin_table() {
    let options = Options::default();
    for (ty, modifier, text, binary, expected) in [
        (Type::BIT, 1, "0", &[0, 0, 0, 1, 0][..], json!(false)),
        (Type::BIT, 1, "1", &[0, 0, 0, 1, 0x80], json!(true)),
        (Type::VARBIT, 1, "1", &[0, 0, 0, 1, 0x80], json!(true)),
        (Type::BIT, 2, "11", &[0, 0, 0, 2, 0xC0], base64(&[3])),
        (Type::BIT, 7, "1000000", &[0, 0, 0, 7, 0x80], base64(&[64])),
        (Type::VARBIT, 2, "00", &[0, 0, 0, 2, 0], base64(&[])),
        (Type::VARBIT, 24, "000000110000001000000001", &[0, 0, 0, 24, 3, 2, 1], base64(&[1, 2, 3])),
        (Type::VARBIT, -1, "101", &[0, 0, 0, 3, 0xA0], base64(&[5])),
        (
            Type::VARBIT,
            -1,
            "111011010001000110000001000000001",
            &[0, 0, 0, 33, 0xED, 0x11, 0x81, 0x00, 0x80],
            base64(&[1, 2, 35, 0xDA, 1]),
        ),
    ] {
        check(&ty, modifier, &options, text, binary, &expected);
    }
    let long = format!("1{}", "0".repeat(63));
    let mut binary = vec![0, 0, 0, 64, 0x80];
    binary.extend([0; 7]);
    check(&Type::VARBIT, 64, &options, &long, &binary, &base64(&[0, 0, 0, 0, 0, 0, 0, 0x80]));
}

#[test]
fn geometry_table() {
    let expected = json!({
        "x": 1.0,
        "y": -2.5,
        "wkb": base64(&[&[1, 1, 0, 0, 0][..], &1_f64.to_le_bytes(), &(-2.5_f64).to_le_bytes()].concat()),
        "srid": null,
    });
    let binary = [1_f64.to_be_bytes(), (-2.5_f64).to_be_bytes()].concat();
    check(&Type::POINT, -1, &Options::default(), "(1,-2.5)", &binary, &expected);
}

#[test]
fn range_table() {
    let options = Options::default();
    let bound = |bytes: &[u8]| [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat();
    let int4 = [&[2][..], &bound(&1_000_i32.to_be_bytes()), &bound(&6_000_i32.to_be_bytes())].concat();
    for (ty, text, binary) in [
        (Type::TS_RANGE, "[\"2019-03-31 15:30:00\",infinity)", &b""[..]),
        (Type::TS_RANGE, "[\"2019-03-31 15:30:00\",\"2019-04-30 15:30:00\"]", b""),
        (Type::TSTZ_RANGE, "[\"2017-06-05 11:29:12.549426+00\",)", b""),
        (Type::DATE_RANGE, "[2019-03-31,infinity)", b""),
        (Type::INT4_RANGE, "[1000,6000)", &int4),
        (Type::NUM_RANGE, "[5.3,6.3)", b""),
        (Type::INT8_RANGE, "[1000000,6000000)", b""),
        (Type::INT4_RANGE, "empty", &[1]),
    ] {
        check(&ty, -1, &options, text, binary, &json!(text));
    }
    // Quotes that binary values get when printed are escaped as any others are.
    let micros = 607_361_400_000_000_i64.to_be_bytes();
    let binary = [&[18][..], &bound(&micros)].concat();
    check(&Type::TS_RANGE, -1, &options, "[\"2019-03-31 15:30:00\",)", &binary, &json!("[\"2019-03-31 15:30:00\",)"));
}
