//! Values of each type, as in the tables of Debezium's own tests.

use super::*;

/// What a value becomes, in both forms if it has two.
fn written(ty: &Type, modifier: i32, options: &Options, cell: Cell<'_>) -> Result<Value, ValueError> {
    let shape = shape_of("t", &[column("v", ty, modifier, true)], &[], options);
    let mut out = Vec::new();
    let cells = [cell];
    match shape.value(&mut out, &Change::Create { after: cells.iter().copied() }, &info(), None, NOW) {
        Ok(()) => Ok(read(&out)["after"]["v"].clone()),
        Err(EncodeError::Value { column, error }) => {
            assert_eq!(column, "v");
            Err(error)
        }
        Err(EncodeError::Layout) => panic!("one cell for one column"),
    }
}

fn text(ty: &Type, modifier: i32, options: &Options, value: &str) -> Value {
    written(ty, modifier, options, Cell::Text(value.as_bytes())).unwrap_or_else(|error| panic!("{ty} {value}: {error}"))
}

#[test]
fn numbers_are_numbers() {
    let options = Options::default();
    for (ty, value, expected) in [
        (Type::INT2, "1", json!(1)),
        (Type::INT4, "123456", json!(123_456)),
        (Type::INT8, "1234567890123", json!(1_234_567_890_123_i64)),
        (Type::FLOAT4, "3.3", json!(3.3)),
        (Type::FLOAT8, "4.44", json!(4.44)),
        (Type::FLOAT4, "3", json!(3.0)),
        (Type::FLOAT8, "NaN", json!("NaN")),
        (Type::FLOAT8, "Infinity", json!("Infinity")),
        (Type::FLOAT4, "-Infinity", json!("-Infinity")),
        (Type::BOOL, "t", json!(true)),
        (Type::OID, "4000000000", json!(4_000_000_000_u32)),
    ] {
        assert_eq!(text(&ty, -1, &options, value), expected, "{ty} {value}");
    }
}
