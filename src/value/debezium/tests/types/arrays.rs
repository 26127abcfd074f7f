//! Arrays: Debezium's `array_table`.

use super::*;

fn named(type_name: &str, form: Form, labels: &[&str]) -> Column {
    Column {
        source: SourceType { oid: 17_000, modifier: -1, form },
        type_name: type_name.to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        ..column("v", &Type::TEXT, -1, true)
    }
}

/// `array_send` of one dimension.
fn binary(element_oid: u32, elements: &[Option<&[u8]>]) -> Vec<u8> {
    let has_null = i32::from(elements.iter().any(Option::is_none));
    let mut out = Vec::new();
    for word in [1, has_null, element_oid.cast_signed(), elements.len() as i32, 1] {
        out.extend(word.to_be_bytes());
    }
    for element in elements {
        out.extend(element.map_or(-1, |bytes| bytes.len() as i32).to_be_bytes());
        out.extend(element.unwrap_or_default());
    }
    out
}

#[test]
fn array_table() {
    let options = Options::default();
    let numeric = |scale: i32, unscaled: &[u8]| json!({"scale": scale, "value": base64(unscaled)});
    for (ty, modifier, text, expected) in [
        (Type::INT4_ARRAY, -1, "{1,2,3}", json!([1, 2, 3])),
        (Type::INT8_ARRAY, -1, "{1550166368505037572}", json!([1_550_166_368_505_037_572_i64])),
        (Type::TEXT_ARRAY, -1, "{one,two,three}", json!(["one", "two", "three"])),
        (Type::BPCHAR_ARRAY, 14, r#"{"cone      ","ctwo      "}"#, json!(["cone      ", "ctwo      "])),
        (Type::VARCHAR_ARRAY, 14, "{vcone,vctwo}", json!(["vcone", "vctwo"])),
        (Type::DATE_ARRAY, -1, "{2016-11-04,2016-11-05}", json!([17_109, 17_110])),
        (Type::NUMERIC_ARRAY, typmod(10, 2), "{1.20,3.40}", json!([base64(&[120]), base64(&[1, 84])])),
        (Type::NUMERIC_ARRAY, -1, "{1.1,2.22}", json!([numeric(1, &[11]), numeric(2, &[0, 222])])),
        (Type::INET_ARRAY, -1, "{192.168.2.0/12,192.168.1.1}", json!(["192.168.2.0/12", "192.168.1.1"])),
        (Type::CIDR_ARRAY, -1, "{192.168.0.0/25}", json!(["192.168.0.0/25"])),
        (Type::MACADDR_ARRAY, -1, "{08:00:2b:01:02:03}", json!(["08:00:2b:01:02:03"])),
        (
            Type::TS_RANGE_ARRAY,
            -1,
            r#"{"[\"2019-03-31 15:30:00\",infinity)"}"#,
            json!(["[\"2019-03-31 15:30:00\",infinity)"]),
        ),
        (Type::INT4_RANGE_ARRAY, -1, r#"{"[1,6)","[1,4)"}"#, json!(["[1,6)", "[1,4)"])),
        (
            Type::UUID_ARRAY,
            -1,
            "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}",
            json!(["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]),
        ),
        (Type::JSON_ARRAY, -1, r#"{"{\"bar\": \"baz\"}"}"#, json!(["{\"bar\": \"baz\"}"])),
        (Type::JSONB_ARRAY, -1, r#"{"{\"bar\": \"baz\"}"}"#, json!(["{\"bar\": \"baz\"}"])),
        (Type::OID_ARRAY, -1, "{3,4000000000}", json!([3, 4_000_000_000_u32])),
        (Type::BYTEA_ARRAY, -1, r#"{"\\x000102","\\x030405"}"#, json!(["AAEC", "AwQF"])),
        (Type::TIMETZ_ARRAY, -1, "{13:51:02+02,14:51:03+02}", json!(["11:51:02Z", "12:51:03Z"])),
        (Type::TIMESTAMPTZ_ARRAY, -1, r#"{"2020-04-01 13:51:02+02"}"#, json!(["2020-04-01T11:51:02.000000Z"])),
        (Type::TIME_ARRAY, -1, "{00:01:02,01:02:03}", json!([62_000_000, 3_723_000_000_i64])),
        (Type::BOOL_ARRAY, -1, "{t,f,NULL}", json!([true, false, null])),
        (Type::FLOAT8_ARRAY, -1, "{1.5,NaN}", json!([1.5, "NaN"])),
        (Type::TEXT_ARRAY, -1, "{}", json!([])),
        (Type::TEXT_ARRAY, -1, r#"{NULL,"NULL","a\"b\\c,}"}"#, json!([null, "NULL", "a\"b\\c,}"])),
        (Type::INT4_ARRAY, -1, "[2:3]={1,2}", json!([1, 2])),
    ] {
        check(&ty, modifier, &options, text, b"", &expected);
    }
}

#[test]
fn binary_arrays_are_the_same() {
    let options = Options::default();
    let (one, two) = (1_i32.to_be_bytes(), 2_i32.to_be_bytes());
    let ints = binary(23, &[Some(&one), None, Some(&two)]);
    check(&Type::INT4_ARRAY, -1, &options, "{1,NULL,2}", &ints, &json!([1, null, 2]));
    let empty = [0_i32, 0, 25].iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    check(&Type::TEXT_ARRAY, -1, &options, "{}", &empty, &json!([]));
    let documents = binary(3802, &[Some(b"\x01{}")]);
    check(&Type::JSONB_ARRAY, -1, &options, "{\"{}\"}", &documents, &json!(["{}"]));
}

#[test]
fn arrays_of_extension_types_and_enums() {
    let options = Options::default();
    for (column, text, expected) in [
        (
            named("ltree[]", Form::Unknown, &[]),
            "{Ship.Frigate,Ship.Destroyer}",
            json!(["Ship.Frigate", "Ship.Destroyer"]),
        ),
        (named("citext[]", Form::Unknown, &[]), "{four,five}", json!(["four", "five"])),
        (named("mood[]", Form::Unknown, &["sad", "happy"]), "{happy,sad}", json!(["happy", "sad"])),
        (
            named("hstore[]", Form::Unknown, &[]),
            r#"{"\"key4\"=>\"val4\", \"key5\"=>NULL","\"key6\"=>\"val6\""}"#,
            json!([r#"{"key4":"val4","key5":null}"#, r#"{"key6":"val6"}"#]),
        ),
    ] {
        assert_eq!(written(column, &options, Cell::Text(text.as_bytes())), Ok(expected), "{text}");
    }
    for ty in [Type::MONEY_ARRAY, Type::NAME_ARRAY, Type::INTERVAL_ARRAY, Type::XML_ARRAY, Type::POINT_ARRAY] {
        assert!(!column("v", &ty, -1, true).is_known(&options), "Debezium leaves {ty} out");
    }
}

#[test]
fn more_dimensions_are_arrays_of_arrays_where_no_schema_forbids_it() {
    let two = [2, 0, 23, 2, 1, 1, 1, 4, 7, -1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect::<Vec<_>>();
    check(&Type::INT4_ARRAY, -1, &Options::default(), "{{7},{NULL}}", &two, &json!([[7], [null]]));
    let strict = with(|options| options.schemas = true);
    for cell in [Cell::Text(b"{{7},{NULL}}"), Cell::Binary(&two)] {
        let result = written(column("v", &Type::INT4_ARRAY, -1, true), &strict, cell);
        assert_eq!(result, Err(ValueError::Nested));
    }
}

#[test]
fn broken_arrays_are_errors() {
    let lie = [1, 0, 23, i32::MAX, 1].iter().flat_map(|word: &i32| word.to_be_bytes()).collect::<Vec<_>>();
    let mut cells = vec![Cell::Binary(&lie), Cell::Binary(&lie[..7])];
    for text in ["", "{", "{1", "{1,", "{1,}", "{,}", "{1}}", "{\"1}", "[2:3]", "{1}{"] {
        cells.push(Cell::Text(text.as_bytes()));
    }
    for cell in cells {
        let result = written(column("v", &Type::INT4_ARRAY, -1, true), &Options::default(), cell);
        assert_eq!(result, Err(ValueError::Malformed), "{cell:?}");
    }
}
