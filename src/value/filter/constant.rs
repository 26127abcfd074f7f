//! Constants of a condition, read as Postgres reads them beside a column of the kind: a number by its own worth, a string as
//! a value of the column's type. What Postgres would take only by guessing (a zone, a day of `'today'`) is refused.

use super::Kind;
use super::decimal::Number;
use crate::value::calendar::civil_from_days;
use crate::value::debezium::postgres_text;

/// A constant as it was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Literal {
    Boolean(bool),
    /// With its sign.
    Number(String),
    /// Without its quotes.
    String(String),
}

/// A constant in the form in which values of its kind compare.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Constant {
    Boolean(bool),
    /// A number beside whole ones: the greatest whole number that is not greater, and whether it is that number.
    Whole {
        floor: i128,
        is_exact: bool,
    },
    Number(Number),
    /// Bits of a float.
    Float(u64),
    Bytes(Vec<u8>),
    /// Days or microseconds since 2000; the greatest and the least are infinities.
    Time(i64),
}

/// Why a constant cannot stand beside a column. It is part of a mapping, so it may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ConstantError {
    #[error("a boolean is compared with TRUE or FALSE")]
    NotBoolean,
    #[error("it is compared with a number")]
    NotNumber,
    #[error("it is compared with a 'string'")]
    NotString,
    #[error("this is no whole number that the column's type can hold")]
    NotWhole,
    #[error("this number is too large or too small")]
    OutOfRange,
    #[error("this has more than 63 bytes, to which names are cut")]
    TooLong,
    #[error("a string of Postgres's holds no zero byte")]
    ZeroByte,
    #[error("this is no UUID")]
    NotUuid,
    #[error("this is no date: write 'YYYY-MM-DD', BC behind it where that is meant, 'infinity' or '-infinity'")]
    NotDate,
    #[error("this is no timestamp without a zone: write 'YYYY-MM-DD HH:MM:SS'")]
    NotTimestamp,
    #[error("this says no moment: write 'YYYY-MM-DD HH:MM:SS+00', with the zone's hours")]
    NotMoment,
}

/// Digits before and after a number's point, beyond which it is taken for a slip.
const PLACES_MAX: i32 = 1_000;

impl Constant {
    /// # Errors
    /// Postgres would refuse the comparison, or the constant, or make something of it that is easily misread.
    pub fn read(kind: Kind, literal: &Literal) -> Result<Constant, ConstantError> {
        if let Literal::String(text) = literal
            && text.contains('\0')
        {
            return Err(ConstantError::ZeroByte);
        }
        match kind {
            Kind::Boolean => boolean(literal).map(Constant::Boolean),
            Kind::Int2 => whole(literal, i16::MIN.into(), i16::MAX.into()),
            Kind::Int4 => whole(literal, i32::MIN.into(), i32::MAX.into()),
            Kind::Int8 => whole(literal, i64::MIN, i64::MAX),
            Kind::Oid => oid(literal),
            Kind::Numeric => match literal {
                Literal::String(text) => {
                    let text = text.trim_ascii();
                    Number::special(text).map_or_else(|| number(text), Ok).map(Constant::Number)
                }
                Literal::Number(text) => number(text).map(Constant::Number),
                Literal::Boolean(_) => Err(ConstantError::NotNumber),
            },
            Kind::Float4 | Kind::Float8 => float(kind, literal),
            Kind::Text | Kind::Enum => Ok(Constant::Bytes(string(literal)?.as_bytes().to_vec())),
            Kind::Padded => Ok(Constant::Bytes(string(literal)?.trim_end_matches(' ').as_bytes().to_vec())),
            Kind::Name => match string(literal)?.as_bytes() {
                name if name.len() > 63 => Err(ConstantError::TooLong),
                name => Ok(Constant::Bytes(name.to_vec())),
            },
            Kind::Uuid => {
                let text = string(literal)?;
                let bare = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
                uuid(bare.as_bytes()).map(|uuid| Constant::Bytes(uuid.to_vec())).ok_or(ConstantError::NotUuid)
            }
            Kind::Date => time(string(literal)?, date).ok_or(ConstantError::NotDate),
            Kind::Timestamp => time(string(literal)?, timestamp).ok_or(ConstantError::NotTimestamp),
            Kind::TimestampTz => time(string(literal)?, moment).ok_or(ConstantError::NotMoment),
        }
    }
}

fn string(literal: &Literal) -> Result<&str, ConstantError> {
    match literal {
        Literal::String(text) => Ok(text),
        Literal::Boolean(_) | Literal::Number(_) => Err(ConstantError::NotString),
    }
}

fn boolean(literal: &Literal) -> Result<bool, ConstantError> {
    match literal {
        Literal::Boolean(value) => Ok(*value),
        Literal::String(text) => match text.trim_ascii().to_ascii_lowercase().as_str() {
            "t" | "true" | "y" | "yes" | "on" | "1" => Ok(true),
            "f" | "false" | "n" | "no" | "off" | "0" => Ok(false),
            _ => Err(ConstantError::NotBoolean),
        },
        Literal::Number(_) => Err(ConstantError::NotBoolean),
    }
}

fn number(text: &str) -> Result<Number, ConstantError> {
    let number = Number::parse(text).ok_or(ConstantError::NotNumber)?;
    let is_near = (-PLACES_MAX..=PLACES_MAX).contains(&number.exponent());
    if is_near && number.digit_count() <= 2 * PLACES_MAX.unsigned_abs() as usize {
        Ok(number)
    } else {
        Err(ConstantError::OutOfRange)
    }
}

/// A number is compared by its worth, whatever the type holds; a string is a value of the type.
fn whole(literal: &Literal, least: i64, greatest: i64) -> Result<Constant, ConstantError> {
    match literal {
        Literal::Number(text) => {
            let (floor, is_exact) = number(text)?.floor();
            Ok(Constant::Whole { floor, is_exact })
        }
        Literal::String(text) => match text.trim_ascii().parse::<i64>() {
            Ok(value) if (least..=greatest).contains(&value) => {
                Ok(Constant::Whole { floor: value.into(), is_exact: true })
            }
            _ => Err(ConstantError::NotWhole),
        },
        Literal::Boolean(_) => Err(ConstantError::NotNumber),
    }
}

/// There is no comparison of an OID with another number; a negative one would stand for another.
fn oid(literal: &Literal) -> Result<Constant, ConstantError> {
    let text = match literal {
        Literal::Number(text) => text,
        Literal::String(text) => text.trim_ascii(),
        Literal::Boolean(_) => return Err(ConstantError::NotNumber),
    };
    let value: u32 = text.parse().map_err(|_| ConstantError::NotWhole)?;
    Ok(Constant::Whole { floor: value.into(), is_exact: true })
}

/// A number beside a `real` is a `double precision`, as Postgres has it: `r = 0.1` is false for the `real` nearest to 0.1, and
/// `r = '0.1'` is true.
fn float(kind: Kind, literal: &Literal) -> Result<Constant, ConstantError> {
    let (text, is_string) = match literal {
        Literal::Number(text) => (text.as_str(), false),
        Literal::String(text) => (text.trim_ascii(), true),
        Literal::Boolean(_) => return Err(ConstantError::NotNumber),
    };
    let special = match text.to_ascii_lowercase().as_str() {
        "nan" => Some(f64::NAN),
        "inf" | "infinity" | "+inf" | "+infinity" => Some(f64::INFINITY),
        "-inf" | "-infinity" => Some(f64::NEG_INFINITY),
        _ => None,
    };
    if let (Some(special), true) = (special, is_string) {
        return Ok(Constant::Float(special.to_bits()));
    }
    let written = number(text)?;
    let value = match kind {
        Kind::Float4 if is_string => text.parse::<f32>().map(f64::from),
        _ => text.parse::<f64>(),
    };
    let value = value.map_err(|_| ConstantError::NotNumber)?;
    let vanished = value == 0.0 && written.digit_count() > 0;
    if value.is_infinite() || vanished { Err(ConstantError::OutOfRange) } else { Ok(Constant::Float(value.to_bits())) }
}

/// With or without its hyphens.
pub(super) fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    let is_place = |at: &usize| matches!(at, 8 | 13 | 18 | 23);
    let has_hyphens = text.len() == 36;
    if !(has_hyphens || text.len() == 32) {
        return None;
    }
    let mut uuid = [0; 16];
    let mut count = 0;
    for (at, byte) in text.iter().enumerate() {
        if has_hyphens && is_place(&at) {
            if *byte != b'-' {
                return None;
            }
            continue;
        }
        let digit = u8::try_from(char::from(*byte).to_digit(16)?).ok()?;
        let place = uuid.get_mut(count / 2)?;
        *place = *place << 4 | digit;
        count += 1;
    }
    (count == 32).then_some(uuid)
}

fn time(text: &str, read: impl Fn(&str) -> Option<i64>) -> Option<Constant> {
    let text = text.trim_ascii();
    Some(Constant::Time(match text.to_ascii_lowercase().as_str() {
        "infinity" => i64::MAX,
        "-infinity" => i64::MIN,
        _ => read(text)?,
    }))
}

/// Postgres's calendar: from 4714-11-24 BC; dates to 5874897-12-31, timestamps to 294276-12-31.
const DAYS_MIN: i64 = -2_451_545;
const DAYS_MAX: i64 = 2_145_031_948;
const MICROS_MIN: i128 = -211_813_488_000_000_000;
const MICROS_END: i128 = 9_223_371_331_200_000_000;

fn date(text: &str) -> Option<i64> {
    let (day, era) = match text.strip_suffix(" BC") {
        Some(day) => (day, " BC"),
        None => (text, ""),
    };
    is_day(day, !era.is_empty())?;
    let since_2000 = postgres_text::date(format!("{day}{era}").as_bytes())? - super::DAYS_1970_TO_2000;
    (DAYS_MIN..=DAYS_MAX).contains(&since_2000).then_some(since_2000)
}

/// A day that the calendar has, written with all its digits.
fn is_day(text: &str, is_bc: bool) -> Option<()> {
    let (year, rest) = text.split_once('-')?;
    let well_formed = (4..=7).contains(&year.len()) && rest.len() == 5 && rest.as_bytes().get(2) == Some(&b'-');
    let days = postgres_text::date(format!("{text}{}", if is_bc { " BC" } else { "" }).as_bytes())?;
    let (shown_year, month, day) = civil_from_days(days);
    let shown_year = if is_bc { 1 - shown_year } else { shown_year };
    let shown = format!("{shown_year:04}-{month:02}-{day:02}");
    // There is no year 0, and no 30th of February.
    (well_formed && shown_year > 0 && shown.trim_start_matches('0') == text.trim_start_matches('0')).then_some(())
}

fn timestamp(text: &str) -> Option<i64> {
    let (text, is_bc) = era(text);
    let (day, clock) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    moment_of(day, clock, "", is_bc)
}

fn moment(text: &str) -> Option<i64> {
    let (text, is_bc) = era(text);
    let (day, rest) = text.split_once([' ', 'T'])?;
    let (clock, zone) = match rest.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, "+00"),
        None => rest.split_at(rest.find(['+', '-'])?),
    };
    is_clock(zone.get(1..)?, 1, 15)?;
    moment_of(day, clock, zone, is_bc)
}

fn era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC").map_or((text, false), |rest| (rest, true))
}

fn moment_of(day: &str, clock: &str, zone: &str, is_bc: bool) -> Option<i64> {
    is_day(day, is_bc)?;
    let whole = match clock.split_once('.') {
        Some((whole, fraction)) if whole.len() == 8 && (1..=6).contains(&fraction.len()) => whole,
        Some(_) => return None,
        None => clock,
    };
    is_clock(whole, 2, 23)?;
    let printed = format!("{day} {clock}{zone}{}", if is_bc { " BC" } else { "" });
    let since_2000 = postgres_text::timestamp(printed.as_bytes())?
        - i128::from(super::DAYS_1970_TO_2000) * i128::from(super::MICROS_PER_DAY);
    (MICROS_MIN..MICROS_END).contains(&since_2000).then(|| i64::try_from(since_2000).ok())?
}

/// `HH[:MM[:SS]]`, two digits each, at least so many parts of it.
fn is_clock(text: &str, parts_min: usize, hours_max: u8) -> Option<()> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_part = |(place, part): (usize, &&str)| {
        let limit = if place == 0 { hours_max } else { 59 };
        part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse().is_ok_and(|n: u8| n <= limit)
    };
    ((parts_min..=3).contains(&parts.len()) && parts.iter().enumerate().all(is_part)).then_some(())
}
