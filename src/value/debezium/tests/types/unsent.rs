//! Values stored out of line that an UPDATE left as they were.

use super::super::super::placeholder;
use super::*;

fn unsent(column: Column, options: &Options) -> Result<Value, ValueError> {
    written(column, options, Cell::Unchanged)
}

#[test]
fn text_is_the_placeholder_and_bytes_are_its_bytes() {
    let default = Options::default();
    let base64_of = "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==";
    for (ty, expected) in [
        (Type::TEXT, PLACEHOLDER),
        (Type::VARCHAR, PLACEHOLDER),
        (Type::JSON, PLACEHOLDER),
        (Type::JSONB, PLACEHOLDER),
        (Type::XML, PLACEHOLDER),
        (Type::TS_VECTOR, PLACEHOLDER),
        (Type::BYTEA, base64_of),
    ] {
        assert_eq!(unsent(column("v", &ty, -1, true), &default), Ok(json!(expected)), "{ty}");
        assert_eq!(unsent(column("v", &ty, -1, false), &default), Ok(json!(expected)), "{ty}");
    }
    for mode in [BinaryMode::Hex, BinaryMode::Base64, BinaryMode::Base64UrlSafe] {
        let options = with(|options| options.binary_handling_mode = mode);
        assert_eq!(unsent(column("v", &Type::BYTEA, -1, true), &options), Ok(json!(PLACEHOLDER)));
    }
    let other = with(|options| options.unavailable_value_placeholder = "?".to_owned());
    assert_eq!(unsent(column("v", &Type::TEXT, -1, true), &other), Ok(json!("?")));
}

#[test]
fn arrays_and_maps_hold_the_placeholder() {
    let default = Options::default();
    let numbers: Vec<i64> = PLACEHOLDER.bytes().map(i64::from).collect();
    for (ty, expected) in [
        (Type::TEXT_ARRAY, json!([PLACEHOLDER])),
        (Type::VARCHAR_ARRAY, json!([PLACEHOLDER])),
        (Type::JSONB_ARRAY, json!([PLACEHOLDER])),
        (Type::BYTEA_ARRAY, json!(["X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="])),
        (Type::INT4_ARRAY, json!(numbers)),
        (Type::INT8_ARRAY, json!(numbers)),
        (Type::DATE_ARRAY, json!(numbers)),
        (Type::UUID_ARRAY, json!([placeholder::uuid(PLACEHOLDER)])),
    ] {
        assert_eq!(unsent(column("v", &ty, -1, true), &default), Ok(expected), "{ty}");
    }
    let hstore = || Column {
        source: SourceType { oid: 17_000, modifier: -1, form: Form::Unknown },
        type_name: "hstore".to_owned(),
        ..column("v", &Type::TEXT, -1, true)
    };
    let pair = json!({PLACEHOLDER: PLACEHOLDER});
    assert_eq!(unsent(hstore(), &default), Ok(json!(pair.to_string())));
    let map = with(|options| options.hstore_handling_mode = HstoreMode::Map);
    assert_eq!(unsent(hstore(), &map), Ok(pair));
}

#[test]
fn names_of_uuids_are_made_as_java_makes_them() {
    // RFC 1321: the MD5 of nothing is d41d8cd98f00b204e9800998ecf8427e; version and variant replace six of its bits.
    assert_eq!(placeholder::uuid(""), "d41d8cd9-8f00-3204-a980-0998ecf8427e");
}

#[test]
fn what_has_no_placeholder_is_an_error_and_never_null() {
    for ty in [Type::NUMERIC, Type::INT4, Type::VARBIT, Type::NUMERIC_ARRAY, Type::FLOAT8_ARRAY, Type::TIMESTAMP_ARRAY]
    {
        let result = unsent(column("v", &ty, -1, true), &Options::default());
        assert_eq!(result, Err(ValueError::Unsent), "{ty}");
    }
}

#[test]
fn the_whole_old_row_has_the_value_that_was_not_sent() {
    let columns = [column("id", &Type::INT4, -1, false), column("t", &Type::TEXT, -1, true)];
    let shape = shape_of("t", &columns, &["id"], &Options::default());
    let old = [Cell::Text(b"1"), Cell::Text(b"long")];
    let new = [Cell::Text(b"1"), Cell::Unchanged];
    let key = [Cell::Text(b"0"), Cell::Null];
    for (before, expected) in [(Old::Full(old.iter().copied()), "long"), (Old::Key(key.iter().copied()), PLACEHOLDER)] {
        let change = Change::Update { before: Some(before), after: new.iter().copied() };
        assert_eq!(value_of(&shape, &change)["after"]["t"], expected);
    }
}
