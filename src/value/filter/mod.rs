//! A condition on a row, decided on its cells as they came from Postgres's wire, text or binary, by SQL's three truths.
//!
//! Constants are in the form of their column's values before the first row comes; deciding allocates nothing.

mod constant;
mod decimal;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use postgres_types::Type;
use serde::Serialize;

pub use constant::{Constant, ConstantError, Literal};

use super::clickhouse::types::{Form, SourceType};
use super::debezium::postgres_text;
use crate::tuple::Cell;
use decimal::Decimal;

/// A condition, compiled. It is shown, and compared with another, as it was written.
#[derive(Clone, Eq, Debug, Serialize)]
pub struct Filter {
    text: String,
    #[serde(skip)]
    test: Test,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Filter) -> bool {
        self.text == other.text
    }
}

/// One node of a condition. Columns are inputs of a plan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Test {
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
    IsNull(usize),
    /// `IS TRUE`, `IS FALSE`, and of `None` `IS UNKNOWN`: never NULL itself.
    Is(Box<Test>, Option<bool>),
    /// A boolean column.
    Holds(usize),
    Compare {
        input: usize,
        kind: Kind,
        operator: Operator,
        constant: Constant,
    },
    OneOf {
        input: usize,
        kind: Kind,
        constants: Vec<Constant>,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Operator {
    /// The same with its two sides exchanged.
    pub fn flipped(self) -> Operator {
        match self {
            Operator::Equal | Operator::NotEqual => self,
            Operator::Less => Operator::Greater,
            Operator::LessOrEqual => Operator::GreaterOrEqual,
            Operator::Greater => Operator::Less,
            Operator::GreaterOrEqual => Operator::LessOrEqual,
        }
    }

    pub fn is_equality(self) -> bool {
        matches!(self, Operator::Equal | Operator::NotEqual)
    }

    fn holds(self, ordering: Ordering) -> bool {
        match self {
            Operator::Equal => ordering.is_eq(),
            Operator::NotEqual => ordering.is_ne(),
            Operator::Less => ordering.is_lt(),
            Operator::LessOrEqual => ordering.is_le(),
            Operator::Greater => ordering.is_gt(),
            Operator::GreaterOrEqual => ordering.is_ge(),
        }
    }
}

/// How the values of a column compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Boolean,
    Int2,
    Int4,
    Int8,
    Oid,
    Numeric,
    Float4,
    Float8,
    Text,
    /// `character(n)`: blanks at the end say nothing.
    Padded,
    Name,
    Enum,
    Uuid,
    Date,
    Timestamp,
    TimestampTz,
}

impl Kind {
    /// `None`: values of this type are not compared here.
    pub fn of(source: &SourceType) -> Option<Kind> {
        match source.form {
            Form::Enum => return Some(Kind::Enum),
            Form::BuiltIn => {}
            Form::TextAlike | Form::Unknown | Form::Text => return None,
        }
        Some(match Type::from_oid(source.oid)? {
            Type::BOOL => Kind::Boolean,
            Type::INT2 => Kind::Int2,
            Type::INT4 => Kind::Int4,
            Type::INT8 => Kind::Int8,
            Type::OID => Kind::Oid,
            Type::NUMERIC => Kind::Numeric,
            Type::FLOAT4 => Kind::Float4,
            Type::FLOAT8 => Kind::Float8,
            Type::TEXT | Type::VARCHAR => Kind::Text,
            Type::BPCHAR => Kind::Padded,
            Type::NAME => Kind::Name,
            Type::UUID => Kind::Uuid,
            Type::DATE => Kind::Date,
            Type::TIMESTAMP => Kind::Timestamp,
            Type::TIMESTAMPTZ => Kind::TimestampTz,
            _ => return None,
        })
    }

    /// Whether less and greater can be told here. Of text the collation tells, and of an enum the order of its labels,
    /// which the source does not send.
    pub fn is_ordered(self) -> bool {
        !matches!(self, Kind::Text | Kind::Padded | Kind::Name | Kind::Enum)
    }
}

/// A row of which it cannot be said whether it matches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{why}")]
pub struct Undecided {
    pub input: usize,
    pub why: Why,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Why {
    #[error("the source left the value unsent")]
    Unsent,
    #[error("the value has not the form that its type has on the wire")]
    Malformed,
}

impl Filter {
    pub fn new(text: &str, test: Test) -> Filter {
        Filter { text: text.to_owned(), test }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same over rows whose inputs stand elsewhere.
    pub fn moved(&self, place: &impl Fn(usize) -> usize) -> Filter {
        Filter { text: self.text.clone(), test: self.test.moved(place) }
    }

    /// Whether the row, by input, is one for which the condition is true: not false and not NULL.
    ///
    /// # Errors
    /// What the condition reads of the row is not there, or is no value of its type.
    pub fn matches(&self, row: &[Cell<'_>]) -> Result<bool, Undecided> {
        Ok(self.test.truth(row)? == Some(true))
    }
}

impl Test {
    fn moved(&self, place: &impl Fn(usize) -> usize) -> Test {
        let all = |tests: &[Test]| tests.iter().map(|test| test.moved(place)).collect();
        match self {
            Test::All(tests) => Test::All(all(tests)),
            Test::Any(tests) => Test::Any(all(tests)),
            Test::Not(test) => Test::Not(Box::new(test.moved(place))),
            Test::Is(test, truth) => Test::Is(Box::new(test.moved(place)), *truth),
            Test::IsNull(input) => Test::IsNull(place(*input)),
            Test::Holds(input) => Test::Holds(place(*input)),
            Test::Compare { input, kind, operator, constant } => {
                Test::Compare { input: place(*input), kind: *kind, operator: *operator, constant: constant.clone() }
            }
            Test::OneOf { input, kind, constants } => {
                Test::OneOf { input: place(*input), kind: *kind, constants: constants.clone() }
            }
        }
    }

    /// `None` is NULL.
    fn truth(&self, row: &[Cell<'_>]) -> Result<Option<bool>, Undecided> {
        match self {
            Test::All(tests) => of_many(tests, row, false),
            Test::Any(tests) => of_many(tests, row, true),
            Test::Not(test) => Ok(test.truth(row)?.map(|truth| !truth)),
            Test::Is(test, truth) => Ok(Some(test.truth(row)? == *truth)),
            Test::IsNull(input) => match cell_of(row, *input) {
                Cell::Unchanged => Err(Undecided { input: *input, why: Why::Unsent }),
                cell => Ok(Some(cell == Cell::Null)),
            },
            Test::Holds(input) => compare(row, *input, Kind::Boolean, &Constant::Boolean(true), Operator::Equal),
            Test::Compare { input, kind, operator, constant } => compare(row, *input, *kind, constant, *operator),
            Test::OneOf { input, kind, constants } => {
                for constant in constants {
                    let truth = compare(row, *input, *kind, constant, Operator::Equal)?;
                    if truth != Some(false) {
                        return Ok(truth);
                    }
                }
                Ok(Some(false))
            }
        }
    }
}

/// AND and OR: one that is `decisive` settles it, whatever is not known of the others.
fn of_many(tests: &[Test], row: &[Cell<'_>], decisive: bool) -> Result<Option<bool>, Undecided> {
    let mut outcome = Ok(Some(!decisive));
    for test in tests {
        match test.truth(row) {
            Ok(Some(truth)) if truth == decisive => return Ok(Some(decisive)),
            Ok(Some(_)) => {}
            Ok(None) => outcome = outcome.and(Ok(None)),
            Err(undecided) => outcome = outcome.and(Err(undecided)),
        }
    }
    outcome
}

/// A row that is too short lacks the value.
fn cell_of<'a>(row: &[Cell<'a>], input: usize) -> Cell<'a> {
    row.get(input).copied().unwrap_or(Cell::Unchanged)
}

fn compare(
    row: &[Cell<'_>],
    input: usize,
    kind: Kind,
    constant: &Constant,
    operator: Operator,
) -> Result<Option<bool>, Undecided> {
    let cell = match cell_of(row, input) {
        Cell::Null => return Ok(None),
        Cell::Unchanged => return Err(Undecided { input, why: Why::Unsent }),
        cell => cell,
    };
    match order(kind, cell, constant) {
        Some(ordering) => Ok(Some(operator.holds(ordering))),
        None => Err(Undecided { input, why: Why::Malformed }),
    }
}

/// How a value stands to a constant of its kind.
fn order(kind: Kind, cell: Cell<'_>, constant: &Constant) -> Option<Ordering> {
    Some(match constant {
        Constant::Boolean(constant) => boolean(cell)?.cmp(constant),
        Constant::Whole { floor, is_exact } => match i128::from(whole(kind, cell)?).cmp(floor) {
            // The constant lies between this number and the next.
            Ordering::Equal if !is_exact => Ordering::Less,
            ordering => ordering,
        },
        Constant::Number(constant) => Decimal::of_cell(cell)?.compare(&constant.as_decimal()),
        Constant::Float(bits) => order_floats(float(kind, cell)?, f64::from_bits(*bits)),
        Constant::Bytes(constant) => match kind {
            Kind::Uuid => uuid(cell)?.as_slice().cmp(constant),
            Kind::Padded => bytes(cell)?.trim_ascii_end_blanks().cmp(constant),
            _ => bytes(cell)?.cmp(constant),
        },
        Constant::Time(constant) => time(kind, cell)?.cmp(constant),
    })
}

fn bytes(cell: Cell<'_>) -> Option<&[u8]> {
    match cell {
        Cell::Text(value) | Cell::Binary(value) => Some(value),
        Cell::Null | Cell::Unchanged => None,
    }
}

/// Without the blanks at the end, which are no other white space.
trait TrimBlanks {
    fn trim_ascii_end_blanks(&self) -> &[u8];
}

impl TrimBlanks for [u8] {
    fn trim_ascii_end_blanks(&self) -> &[u8] {
        let end = self.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        &self[..end]
    }
}

fn boolean(cell: Cell<'_>) -> Option<bool> {
    match cell {
        Cell::Binary([1]) | Cell::Text(b"t") => Some(true),
        Cell::Binary([0]) | Cell::Text(b"f") => Some(false),
        _ => None,
    }
}

fn parsed<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn whole(kind: Kind, cell: Cell<'_>) -> Option<i64> {
    match (kind, cell) {
        (_, Cell::Text(text)) => parsed(text),
        (Kind::Int2, Cell::Binary(value)) => Some(i16::from_be_bytes(value.try_into().ok()?).into()),
        (Kind::Int4, Cell::Binary(value)) => Some(i32::from_be_bytes(value.try_into().ok()?).into()),
        (Kind::Int8, Cell::Binary(value)) => Some(i64::from_be_bytes(value.try_into().ok()?)),
        (Kind::Oid, Cell::Binary(value)) => Some(u32::from_be_bytes(value.try_into().ok()?).into()),
        _ => None,
    }
}

/// The text of a `real` is that of its own shortest form, so it is read as one.
fn float(kind: Kind, cell: Cell<'_>) -> Option<f64> {
    match (kind, cell) {
        (Kind::Float4, Cell::Binary(value)) => Some(f32::from_be_bytes(value.try_into().ok()?).into()),
        (Kind::Float4, Cell::Text(text)) => parsed::<f32>(text).map(f64::from),
        (Kind::Float8, Cell::Binary(value)) => Some(f64::from_be_bytes(value.try_into().ok()?)),
        (Kind::Float8, Cell::Text(text)) => parsed(text),
        _ => None,
    }
}

/// As Postgres orders them: NaN equals itself and is greater than all others, and there is one zero.
fn order_floats(one: f64, other: f64) -> Ordering {
    one.partial_cmp(&other).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}

fn uuid(cell: Cell<'_>) -> Option<[u8; 16]> {
    match cell {
        Cell::Binary(value) => value.try_into().ok(),
        Cell::Text(text) => constant::uuid(text),
        Cell::Null | Cell::Unchanged => None,
    }
}

const DAYS_1970_TO_2000: i64 = 10_957;
const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Days or microseconds since 2000, of which the greatest and the least stand for infinities.
fn time(kind: Kind, cell: Cell<'_>) -> Option<i64> {
    match (kind, cell) {
        (Kind::Date, Cell::Binary(value)) => Some(match i32::from_be_bytes(value.try_into().ok()?) {
            i32::MAX => i64::MAX,
            i32::MIN => i64::MIN,
            days => days.into(),
        }),
        (_, Cell::Binary(value)) => Some(i64::from_be_bytes(value.try_into().ok()?)),
        (_, Cell::Text(b"infinity")) => Some(i64::MAX),
        (_, Cell::Text(b"-infinity")) => Some(i64::MIN),
        (Kind::Date, Cell::Text(text)) => Some(postgres_text::date(text)? - DAYS_1970_TO_2000),
        (_, Cell::Text(text)) => {
            let since_2000 = postgres_text::timestamp(text)? - i128::from(DAYS_1970_TO_2000 * MICROS_PER_DAY);
            i64::try_from(since_2000).ok()
        }
        (_, Cell::Null | Cell::Unchanged) => None,
    }
}
