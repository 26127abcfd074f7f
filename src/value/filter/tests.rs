//! What is known without a server; `tests/live/kafka_where.rs` asks one about thousands of conditions.

use proptest::prelude::*;

use super::*;

const KINDS: [Kind; 16] = [
    Kind::Boolean,
    Kind::Int2,
    Kind::Int4,
    Kind::Int8,
    Kind::Oid,
    Kind::Numeric,
    Kind::Float4,
    Kind::Float8,
    Kind::Text,
    Kind::Padded,
    Kind::Name,
    Kind::Enum,
    Kind::Uuid,
    Kind::Date,
    Kind::Timestamp,
    Kind::TimestampTz,
];

fn string(text: &str) -> Literal {
    Literal::String(text.to_owned())
}

fn equals(kind: Kind, literal: &Literal) -> Test {
    let constant = Constant::read(kind, literal).expect("a constant of this kind");
    Test::Compare { input: 0, kind, operator: Operator::Equal, constant }
}

#[test]
fn constants_that_are_easily_misread_are_refused() {
    let cases: &[(Kind, &[&str], ConstantError)] = &[
        (
            Kind::Date,
            &["2024-02-30", "0000-01-01", "24-01-01", "2024-1-1", "today", "5874898-01-01", ""],
            ConstantError::NotDate,
        ),
        (Kind::Date, &["4714-11-23 BC", "2024-01-01 00:00", "2023-02-29", "-0001-01-01"], ConstantError::NotDate),
        (
            Kind::Timestamp,
            &["2024-01-01 00:00:00+00", "2024-01-01 24:00:00", "now", "2024-01-01 1:00"],
            ConstantError::NotTimestamp,
        ),
        (
            Kind::Timestamp,
            &["2024-01-01 00:00:00.1234567", "2024-01-01 00:60:00", "294277-01-01"],
            ConstantError::NotTimestamp,
        ),
        (
            Kind::TimestampTz,
            &["2024-01-01 00:00:00", "2024-01-01", "2024-01-01 00:00:00 CET"],
            ConstantError::NotMoment,
        ),
        (
            Kind::TimestampTz,
            &["2024-01-01 00:00:00+1", "2024-01-01 00:00:00+99", "2024-02-30 00:00:00Z"],
            ConstantError::NotMoment,
        ),
        (Kind::Int2, &["32768", "1.0", "", "x"], ConstantError::NotWhole),
        (Kind::Oid, &["-1", "4294967296"], ConstantError::NotWhole),
        (Kind::Float4, &["1e39", "1e-60"], ConstantError::OutOfRange),
        (Kind::Uuid, &["a0eebc99", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g", ""], ConstantError::NotUuid),
        (Kind::Boolean, &["maybe", ""], ConstantError::NotBoolean),
        (Kind::Text, &["a\0b"], ConstantError::ZeroByte),
    ];
    for (kind, texts, error) in cases {
        for text in *texts {
            assert_eq!(Constant::read(*kind, &string(text)), Err(*error), "{kind:?} {text:?}");
        }
    }
    let long = "n".repeat(64);
    assert_eq!(Constant::read(Kind::Name, &string(&long)), Err(ConstantError::TooLong));
}

#[test]
fn what_settles_a_condition_needs_nothing_else() {
    let (is_a, row) = (equals(Kind::Text, &string("a")), [Cell::Text(b"a"), Cell::Unchanged]);
    let unsent = || Test::IsNull(1);
    let undecided = Err(Undecided { input: 1, why: Why::Unsent });
    let truth = |test: Test| test.truth(&row);
    assert_eq!(truth(Test::Any(vec![unsent(), is_a.clone()])), Ok(Some(true)));
    assert_eq!(truth(Test::All(vec![unsent(), Test::Not(Box::new(is_a.clone()))])), Ok(Some(false)));
    assert_eq!(truth(Test::All(vec![unsent(), is_a.clone()])), undecided);
    assert_eq!(truth(Test::Any(vec![Test::Not(Box::new(is_a)), unsent()])), undecided);
    assert_eq!(truth(Test::IsNull(7)), Err(Undecided { input: 7, why: Why::Unsent }), "a row that is too short");
}

#[test]
fn a_filter_is_told_by_its_text_and_shows_no_row() {
    let filter = Filter::new("a", Test::IsNull(0));
    assert_eq!(filter, Filter::new("a", Test::IsNull(0)));
    assert_eq!(serde_json::to_string(&filter).expect("it is JSON"), r#"{"text":"a"}"#);
    let refused =
        Filter::new("b", equals(Kind::Int4, &Literal::Number("1".to_owned()))).matches(&[Cell::Text(b"s3cret")]);
    let undecided = refused.expect_err("no number");
    assert_eq!(undecided.to_string(), "the value has not the form that its type has on the wire");
    assert!(!format!("{undecided:?}").contains("s3cret"));
}

proptest! {
    #[test]
    fn no_bytes_and_no_constant_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..24),
        text in "[-+0-9.eEnN:Tt {}Z]{0,24}",
        number in "[-]?[0-9]{0,45}[.]?[0-9]{0,5}",
    ) {
        for kind in KINDS {
            for literal in [string(&text), Literal::Number(number.clone()), Literal::Boolean(true)] {
                let Ok(constant) = Constant::read(kind, &literal) else { continue };
                for cell in [Cell::Binary(&bytes), Cell::Text(&bytes), Cell::Text(text.as_bytes()), Cell::Text(number.as_bytes())] {
                    let _ = order(kind, cell, &constant);
                }
            }
        }
    }

    #[test]
    fn numbers_of_64_bits_are_ordered_as_numbers(one: i64, other: i64, places in 0_usize..19) {
        // The same digits with a point among them.
        let shown = |number: i64| {
            let digits = format!("{:020}", number.unsigned_abs());
            let (whole, fraction) = digits.split_at(20 - places);
            format!("{}{whole}.{fraction}", if number < 0 { "-" } else { "" })
        };
        let (one_text, other_text) = (shown(one), shown(other));
        let constant = Constant::read(Kind::Numeric, &Literal::Number(other_text)).expect("a number");
        prop_assert_eq!(order(Kind::Numeric, Cell::Text(one_text.as_bytes()), &constant), Some(one.cmp(&other)));
    }
}
