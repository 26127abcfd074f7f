//! What a text says, before any table is looked at.

use proptest::prelude::*;

use super::{Condition, parse};

/// With parentheses around everything.
fn shown(condition: &Condition) -> String {
    let joined =
        |parts: &[Condition], word: &str| format!("({})", parts.iter().map(shown).collect::<Vec<_>>().join(word));
    match condition {
        Condition::All(parts) => joined(parts, " and "),
        Condition::Any(parts) => joined(parts, " or "),
        Condition::Not(inner) => format!("not {}", shown(inner)),
        Condition::Is { condition, truth } => format!("({} is {truth:?})", shown(condition)),
        Condition::IsNull(column) => format!("({} is null)", column.value),
        Condition::Holds(column) => column.value.clone(),
        Condition::Compare { column, operator, constant } => {
            format!("({} {:?} {:?})", column.value, operator.value, constant.value)
        }
        Condition::OneOf { column, constants } => {
            let constants: Vec<String> = constants.iter().map(|constant| format!("{:?}", constant.value)).collect();
            format!("({} in {})", column.value, constants.join(" "))
        }
    }
}

#[test]
fn words_bind_as_in_postgres() {
    let cases = [
        ("a or b and c", "(a or (b and c))"),
        ("not a and b", "(not a and b)"),
        ("not a is null", "not (a is null)"),
        ("not a = 1 or b", "(not (a Equal Number(\"1\")) or b)"),
        ("a = 1 is true", "((a Equal Number(\"1\")) is Some(true))"),
        ("a is not unknown", "not (a is None)"),
        ("((a)) = -1", "(a Equal Number(\"-1\"))"),
        ("+ 1.5 > a", "(a Less Number(\"1.5\"))"),
        ("a not in (1, 'x''y', true)", "not (a in Number(\"1\") String(\"x'y\") Boolean(true))"),
        ("a between 1 and 2 and b", "(((a GreaterOrEqual Number(\"1\")) and (a LessOrEqual Number(\"2\"))) and b)"),
        ("A = 'A' and \"A\"\"b\" and größe", "((a Equal String(\"A\")) and A\"b and größe)"),
    ];
    for (text, expected) in cases {
        let condition = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(shown(&condition), expected, "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_and_places_are_in_it(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "a", "\"b\"", "and", "or", "not", "is", "null", "true", "in", "between", "(", ")", ",", "=", "<>", "-", "1", "'x'", "é", "'",
            ]),
            0..12,
        ),
        any: String,
    ) {
        for text in [words.join(" "), any] {
            if let Err(error) = parse(&text) {
                prop_assert!(text.get(error.span.clone()).is_some(), "{text}: {:?}", error.span);
            }
        }
    }
}
