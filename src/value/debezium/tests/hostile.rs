//! Bytes that no server sends.

use proptest::prelude::*;

use super::*;

fn columns(oid: u32, modifier: i32) -> Vec<Column> {
    let named = |type_name: &str| Column {
        name: "v".to_owned(),
        source: SourceType { oid: 17_000, modifier, form: Form::Unknown },
        type_name: type_name.to_owned(),
        labels: Vec::new(),
        nullable: true,
        excluded: false,
    };
    let is_array = Type::from_oid(oid).is_some_and(|ty| ty.name().starts_with('_'));
    let built_in =
        Column { source: SourceType::built_in(oid, modifier), ..named(if is_array { "some[]" } else { "some" }) };
    vec![built_in, named("hstore"), named("ltree[]"), named("hstore[]")]
}

fn options(number: u8) -> Options {
    use TimePrecision::{Adaptive, Connect, Isostring, Nanoseconds};
    let pick = |place: u8| usize::from(number >> place & 3);
    Options {
        time_precision_mode: [Adaptive, Connect, Isostring, Nanoseconds][pick(0)],
        decimal_handling_mode: [DecimalMode::Precise, DecimalMode::Double, DecimalMode::String, DecimalMode::Precise]
            [pick(2)],
        interval_handling_mode: [IntervalMode::Numeric, IntervalMode::String][pick(4) & 1],
        hstore_handling_mode: [HstoreMode::Json, HstoreMode::Map][pick(4) >> 1],
        binary_handling_mode: [BinaryMode::Bytes, BinaryMode::Base64, BinaryMode::Base64UrlSafe, BinaryMode::Hex]
            [pick(6)],
        include_unknown_datatypes: true,
        ..Options::default()
    }
}

fn check(oid: u32, modifier: i32, number: u8, cell: Cell<'_>) {
    for column in columns(oid, modifier) {
        let name = TableName::new("s", "t");
        let options = options(number);
        let columns = [column];
        let json = TableShape::new(&ORIGIN, &name, &columns, &[], &options).expect("a shape");
        let avro = AvroShape::new(&ORIGIN, &name, &columns, &[], &options).expect("a shape");
        let cells = [cell];
        let change = Change::Create { after: cells.iter().copied() };
        let mut out = b"x".to_vec();
        match json.value(&mut out, &change, &info(), None, NOW) {
            Ok(()) => drop(read(&out[1..])),
            Err(_) => assert_eq!(out, b"x", "what failed left something behind"),
        }
        out.truncate(1);
        if avro.value(&mut out, &change, &info(), None, NOW).is_err() {
            assert_eq!(out, b"x", "what failed left something behind");
        }
    }
}

/// Text that looks as if it were a value.
fn almost() -> impl Strategy<Value = String> {
    prop_oneof![
        "[-+0-9:. ]{0,24}( BC)?",
        "[0-9]{1,12}-[0-9]{1,2}-[0-9]{1,2} [0-9]{1,10}:[0-9]{1,2}:[0-9]{1,2}(\\.[0-9]{1,7})?[-+][0-9]{1,10}( BC)?",
        "[0-9]{1,2}:[0-9]{2}:[0-9]{2}[-+][0-9]{1,10}:[0-9]{1,10}",
        "-?[0-9]{1,60}(\\.[0-9]{0,60})?",
        "-?[0-9]{1,11} (year|mons|days) -?[0-9]{1,10}:[0-9]{2}:[0-9]{2}",
        "[{},\"NUL\\\\a1=> ()]{0,24}",
        "\\\\x[0-9a-f]{0,9}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn no_bytes_panic(oid in 0..4_700_u32, modifier in -2..2_000_000_i32, number: u8, bytes: Vec<u8>) {
        check(oid, modifier, number, Cell::Binary(&bytes));
    }

    #[test]
    fn no_fixed_width_panics(number: u8, modifier in -1..7, bytes: [u8; 16]) {
        for (ty, width) in [
            (Type::INT8, 8), (Type::FLOAT4, 4), (Type::FLOAT8, 8), (Type::MONEY, 8), (Type::DATE, 4), (Type::TIME, 8),
            (Type::TIMETZ, 12), (Type::TIMESTAMP, 8), (Type::TIMESTAMPTZ, 8), (Type::INTERVAL, 16), (Type::POINT, 16),
            (Type::UUID, 16),
        ] {
            check(ty.oid(), modifier, number, Cell::Binary(&bytes[..width]));
        }
    }

    #[test]
    fn no_text_panics(place in 0..24_usize, modifier in -1..7, number: u8, text in almost()) {
        let types = [
            Type::INT4, Type::FLOAT8, Type::NUMERIC, Type::MONEY, Type::DATE, Type::TIME, Type::TIMETZ, Type::TIMESTAMP,
            Type::TIMESTAMPTZ, Type::INTERVAL, Type::POINT, Type::UUID, Type::BYTEA, Type::BIT, Type::VARBIT, Type::JSON,
            Type::INT4_ARRAY, Type::TEXT_ARRAY, Type::NUMERIC_ARRAY, Type::TIMESTAMPTZ_ARRAY, Type::BYTEA_ARRAY,
            Type::TS_RANGE, Type::BOOL, Type::OID,
        ];
        check(types[place].oid(), modifier, number, Cell::Text(text.as_bytes()));
    }
}

#[test]
fn a_number_of_all_the_digits_that_postgres_allows_is_written_at_once() {
    let digits = "9".repeat(131_072);
    let value = super::types::written(
        column("v", &Type::NUMERIC, -1, true),
        &Options::default(),
        Cell::Text(digits.as_bytes()),
    );
    let value = value.expect("a number");
    assert_eq!(value["scale"], 0);
    // 131,072 digits are 435,412 bits and one for the sign.
    assert_eq!(value["value"].as_str().expect("text").len(), (435_413_usize.div_ceil(8)).div_ceil(3) * 4);
}
