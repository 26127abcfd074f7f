//! `numeric`: compared digit by digit, in whichever form the digits come.

use std::cmp::Ordering;

use crate::tuple::Cell;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// A number that is kept: `0.d₁d₂d₃… · 10^exponent`, without zeros at either end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Number {
    class: Class,
    exponent: i32,
    digits: Vec<u8>,
}

/// From the least to the greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    MinusInfinity,
    Negative,
    Zero,
    Positive,
    Infinity,
    NaN,
}

/// A number as it stands somewhere.
#[derive(Clone, Copy)]
pub(super) struct Decimal<'a> {
    class: Class,
    exponent: i32,
    digits: Digits<'a>,
}

/// From the first digit that is not zero.
#[derive(Clone, Copy)]
enum Digits<'a> {
    /// Each a digit.
    Plain(&'a [u8]),
    /// Characters, with a point among them.
    Text(&'a [u8]),
    /// Of base 10,000, and how many digits of the first were zeros.
    Groups(&'a [u8], u8),
}

impl Iterator for Digits<'_> {
    type Item = u8;

    fn next(&mut self) -> Option<u8> {
        match self {
            Digits::Plain(rest) => {
                let (first, tail) = rest.split_first()?;
                *rest = tail;
                Some(*first)
            }
            Digits::Text(rest) => loop {
                let (first, tail) = rest.split_first()?;
                *rest = tail;
                if *first != b'.' {
                    return Some(*first - b'0');
                }
            },
            Digits::Groups(rest, taken) => {
                let (group, tail) = rest.split_first_chunk::<2>()?;
                let divisor = [1_000, 100, 10, 1][usize::from(*taken % 4)];
                let digit = u16::from_be_bytes(*group) / divisor % 10;
                *taken += 1;
                if *taken == 4 {
                    (*rest, *taken) = (tail, 0);
                }
                u8::try_from(digit).ok()
            }
        }
    }
}

impl Number {
    /// Reads `[+-]digits[.digits][e[+-]digits]`, with a digit somewhere before the exponent.
    pub(super) fn parse(text: &str) -> Option<Number> {
        let lower = text.to_ascii_lowercase();
        let (mantissa, exponent) = match lower.split_once('e') {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (lower.as_str(), 0),
        };
        let (is_negative, digits) = match mantissa.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        if all.is_empty() || !all.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let zeros = all.iter().take_while(|digit| **digit == b'0').count();
        let last = all.iter().rposition(|digit| *digit != b'0').map_or(zeros, |last| last + 1);
        let class = match (last > zeros, is_negative) {
            (false, _) => Class::Zero,
            (true, true) => Class::Negative,
            (true, false) => Class::Positive,
        };
        let point = i32::try_from(whole.len()).ok()? - i32::try_from(zeros).ok()?;
        let exponent = point.checked_add(exponent)?;
        Some(Number { class, exponent, digits: all.get(zeros..last)?.iter().map(|digit| digit - b'0').collect() })
    }

    /// `NaN` and the infinities, in any case.
    pub(super) fn special(text: &str) -> Option<Number> {
        let class = match text.to_ascii_lowercase().as_str() {
            "nan" => Class::NaN,
            "inf" | "infinity" | "+inf" | "+infinity" => Class::Infinity,
            "-inf" | "-infinity" => Class::MinusInfinity,
            _ => return None,
        };
        Some(Number { class, exponent: 0, digits: Vec::new() })
    }

    /// How many digits stand before the point, or zeros right behind it (then negative).
    pub(super) fn exponent(&self) -> i32 {
        self.exponent
    }

    pub(super) fn digit_count(&self) -> usize {
        self.digits.len()
    }

    /// The greatest whole number that is not greater, and whether it is this one. Beyond 128 bits, the last of these.
    pub(super) fn floor(&self) -> (i128, bool) {
        if self.class == Class::Zero {
            return (0, true);
        }
        let is_negative = self.class == Class::Negative;
        let end = if is_negative { i128::MIN } else { i128::MAX };
        if self.exponent > 38 {
            return (end, true);
        }
        let places = usize::try_from(self.exponent).unwrap_or(0);
        let mut digits = self.digits.iter().copied().chain(std::iter::repeat(0)).take(places);
        let whole = digits.try_fold(0_i128, |whole, digit| whole.checked_mul(10)?.checked_add(digit.into()));
        let Some(whole) = whole else { return (end, true) };
        let is_exact = self.digits.len() <= places;
        match (is_negative, is_exact) {
            (false, _) => (whole, is_exact),
            (true, true) => (-whole, true),
            (true, false) => (-whole - 1, false),
        }
    }

    pub(super) fn as_decimal(&self) -> Decimal<'_> {
        Decimal { class: self.class, exponent: self.exponent, digits: Digits::Plain(&self.digits) }
    }
}

impl<'a> Decimal<'a> {
    pub(super) fn of_cell(cell: Cell<'a>) -> Option<Decimal<'a>> {
        match cell {
            Cell::Text(text) => Decimal::of_text(text),
            Cell::Binary(bytes) => Decimal::of_binary(bytes),
            Cell::Null | Cell::Unchanged => None,
        }
    }

    fn special(class: Class) -> Decimal<'a> {
        Decimal { class, exponent: 0, digits: Digits::Plain(&[]) }
    }

    /// As `numeric_out` prints it: no exponent, no sign before what is positive.
    fn of_text(text: &'a [u8]) -> Option<Decimal<'a>> {
        match text {
            b"NaN" => return Some(Decimal::special(Class::NaN)),
            b"Infinity" => return Some(Decimal::special(Class::Infinity)),
            b"-Infinity" => return Some(Decimal::special(Class::MinusInfinity)),
            _ => {}
        }
        let (class, digits) = match text.strip_prefix(b"-") {
            Some(rest) => (Class::Negative, rest),
            None => (Class::Positive, text),
        };
        let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
        let rest = digits.get(point + 1..).unwrap_or_default();
        if digits.len() <= usize::from(point < digits.len())
            || !digits[..point].iter().chain(rest).all(u8::is_ascii_digit)
        {
            return None;
        }
        let Some(first) = digits.iter().position(|byte| !matches!(byte, b'0' | b'.')) else {
            return Some(Decimal::special(Class::Zero));
        };
        let (first_place, point) = (i32::try_from(first).ok()?, i32::try_from(point).ok()?);
        let exponent = if first_place < point { point - first_place } else { point + 1 - first_place };
        Some(Decimal { class, exponent, digits: Digits::Text(&digits[first..]) })
    }

    /// `numeric_send`: digit count, weight, sign, display scale, then digits of base 10,000. The weight is the power of
    /// 10,000 that the first digit counts.
    fn of_binary(bytes: &'a [u8]) -> Option<Decimal<'a>> {
        let (header, groups) = bytes.split_first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let class = match word(4) {
            0 => Class::Positive,
            NEGATIVE => Class::Negative,
            NAN => return Some(Decimal::special(Class::NaN)),
            INFINITY => return Some(Decimal::special(Class::Infinity)),
            NEGATIVE_INFINITY => return Some(Decimal::special(Class::MinusInfinity)),
            _ => return None,
        };
        let (pairs, rest) = groups.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() != usize::from(word(0)) {
            return None;
        }
        if pairs.iter().any(|pair| u16::from_be_bytes(*pair) >= 10_000) {
            return None;
        }
        let Some(first) = pairs.iter().position(|pair| *pair != [0, 0]) else {
            return Some(Decimal::special(Class::Zero));
        };
        let zeros: u8 = match u16::from_be_bytes(pairs[first]) {
            1_000.. => 0,
            100..1_000 => 1,
            10..100 => 2,
            _ => 3,
        };
        let weight = i32::from(word(2).cast_signed()) - i32::try_from(first).ok()?;
        let exponent = (weight + 1) * 4 - i32::from(zeros);
        Some(Decimal { class, exponent, digits: Digits::Groups(&groups[2 * first..], zeros) })
    }

    /// Scales say nothing: 1.0 is 1.
    pub(super) fn compare(self, other: &Decimal<'_>) -> Ordering {
        let by_class = self.class.cmp(&other.class);
        let is_finite = matches!(self.class, Class::Negative | Class::Positive);
        if by_class.is_ne() || !is_finite {
            return by_class;
        }
        let magnitude = self.exponent.cmp(&other.exponent).then_with(|| compare_digits(self.digits, other.digits));
        if self.class == Class::Negative { magnitude.reverse() } else { magnitude }
    }
}

/// What one has more of counts unless it is zeros.
fn compare_digits(mut one: Digits<'_>, mut other: Digits<'_>) -> Ordering {
    loop {
        match (one.next(), other.next()) {
            (None, None) => return Ordering::Equal,
            (one_digit, other_digit) => {
                let ordering = one_digit.unwrap_or(0).cmp(&other_digit.unwrap_or(0));
                if ordering.is_ne() {
                    return ordering;
                }
            }
        }
    }
}
