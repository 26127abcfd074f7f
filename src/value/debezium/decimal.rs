//! `numeric` and `money`: Connect's `Decimal` (the number without its point, in two's complement, the highest byte first,
//! no longer than it must be), `VariableScaleDecimal`, floating point or text.

use postgres_types::Type;

use super::options::DecimalMode;
use super::out::{Label, Out};
use super::{ValueError, text_of};
use crate::tuple::Cell;
use crate::value::clickhouse::rowbinary::print_text;

/// Labels of `VariableScaleDecimal`'s fields.
pub(super) struct VariableLabels {
    pub scale: Label,
    pub value: Label,
}

/// A number's digits, as they stand in its text.
#[derive(Clone, Copy)]
struct Digits<'a> {
    is_negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
}

enum Number<'a> {
    Finite(Digits<'a>),
    NaN,
    Infinity,
    MinusInfinity,
}

fn read(text: &[u8]) -> Result<Number<'_>, ValueError> {
    match text {
        b"NaN" => return Ok(Number::NaN),
        b"Infinity" => return Ok(Number::Infinity),
        b"-Infinity" => return Ok(Number::MinusInfinity),
        _ => {}
    }
    let (is_negative, digits) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(point) => (&digits[..point], &digits[point + 1..]),
        None => (digits, &[][..]),
    };
    if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
        return Err(ValueError::Malformed);
    }
    Ok(Number::Finite(Digits { is_negative, whole, fraction }))
}

/// Calls `use_text` with the number's text; of a binary number it is printed at the buffer's end and taken off again.
fn with_text<O: Out, T>(
    out: &mut O,
    cell: Cell<'_>,
    use_text: impl FnOnce(&[u8]) -> Result<T, ValueError>,
) -> Result<T, ValueError> {
    match cell {
        Cell::Binary(value) => {
            let start = out.buffer().len();
            let printed = print_text(out.buffer(), &Type::NUMERIC, value).ok_or(ValueError::Malformed);
            let result = printed.and_then(|()| use_text(&out.buffer()[start..]));
            out.buffer().truncate(start);
            result
        }
        cell => use_text(text_of(cell)?),
    }
}

/// Digits are taken nine at a time.
const GROUP: u32 = 1_000_000_000;

/// A number without its point, of any length: 128 bits, and more only where they do not do.
struct Unscaled {
    is_negative: bool,
    low: u128,
    /// The whole magnitude, lowest 32 bits first, once it has more than 128.
    wide: Option<Vec<u32>>,
}

impl Unscaled {
    /// The digits up to `scale` places after the point, with zeros for those that are missing.
    fn new(digits: Digits<'_>, scale: usize) -> Unscaled {
        let kept = &digits.fraction[..digits.fraction.len().min(scale)];
        let zeros = std::iter::repeat_n(&b'0', scale - kept.len());
        let mut unscaled = Unscaled { is_negative: digits.is_negative, low: 0, wide: None };
        let (mut group, mut factor) = (0, 1);
        for digit in digits.whole.iter().chain(kept).chain(zeros) {
            group = group * 10 + u32::from(digit - b'0');
            factor *= 10;
            if factor == GROUP {
                unscaled.append(factor, group);
                (group, factor) = (0, 1);
            }
        }
        unscaled.append(factor, group);
        unscaled
    }

    /// Makes it `factor` times as large and `group` more.
    fn append(&mut self, factor: u32, group: u32) {
        if let Some(words) = &mut self.wide {
            append_wide(words, factor, group);
            return;
        }
        match self.low.checked_mul(factor.into()).and_then(|number| number.checked_add(group.into())) {
            Some(number) => self.low = number,
            None => {
                let mut words: Vec<u32> = (0..4).map(|place| (self.low >> (32 * place)) as u32).collect();
                append_wide(&mut words, factor, group);
                self.wide = Some(words);
            }
        }
    }

    /// The shortest two's complement that still has its sign.
    fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // A zero byte first, so that the sign has its bit.
        out.push(0);
        match &self.wide {
            Some(words) => words.iter().rev().for_each(|word| out.extend_from_slice(&word.to_be_bytes())),
            None => out.extend_from_slice(&self.low.to_be_bytes()),
        }
        if self.is_negative {
            let mut carry = true;
            for byte in out[start..].iter_mut().rev() {
                (*byte, carry) = (!*byte).overflowing_add(u8::from(carry));
            }
        }
        let sign_byte = if out[start] & 0x80 == 0 { 0 } else { 0xFF };
        let spare = out[start..]
            .windows(2)
            .take_while(|pair| pair[0] == sign_byte && (pair[1] ^ sign_byte) & 0x80 == 0)
            .count();
        out.drain(start..start + spare);
    }
}

fn append_wide(words: &mut Vec<u32>, factor: u32, group: u32) {
    let mut carry = u64::from(group);
    for word in words.iter_mut() {
        let product = u64::from(*word) * u64::from(factor) + carry;
        *word = product as u32;
        carry = product >> 32;
    }
    if carry > 0 {
        words.push(carry as u32);
    }
}

/// Only finite numbers have an unscaled form.
fn finite(text: &[u8]) -> Result<Digits<'_>, ValueError> {
    match read(text)? {
        Number::Finite(digits) => Ok(digits),
        Number::NaN | Number::Infinity | Number::MinusInfinity => Err(ValueError::NotANumber),
    }
}

/// A fraction without the zeros at its end.
fn significant(fraction: &[u8]) -> usize {
    fraction.iter().rposition(|digit| *digit != b'0').map_or(0, |last| last + 1)
}

pub(super) fn write_fixed<O: Out>(out: &mut O, scale: u32, cell: Cell<'_>) -> Result<(), ValueError> {
    let unscaled = with_text(out, cell, |text| {
        let digits = finite(text)?;
        if significant(digits.fraction) > scale as usize {
            return Err(ValueError::OutOfRange);
        }
        Ok(Unscaled::new(digits, scale as usize))
    })?;
    write_unscaled(out, &unscaled)
}

fn write_unscaled<O: Out>(out: &mut O, unscaled: &Unscaled) -> Result<(), ValueError> {
    out.composed_bytes(|buffer| {
        unscaled.push(buffer);
        Ok(())
    })
}

/// With the least scale that keeps every digit.
pub(super) fn write_variable<O: Out>(out: &mut O, labels: &VariableLabels, cell: Cell<'_>) -> Result<(), ValueError> {
    let (unscaled, scale) = with_text(out, cell, |text| {
        let digits = finite(text)?;
        let scale = significant(digits.fraction);
        Ok((Unscaled::new(digits, scale), scale))
    })?;
    out.begin_struct();
    out.field(&labels.scale);
    out.int(scale as i64);
    out.field(&labels.value);
    write_unscaled(out, &unscaled)?;
    out.end_struct();
    Ok(())
}

pub(super) fn write_double<O: Out>(out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
    let value = with_text(out, cell, |text| {
        Ok(match read(text)? {
            Number::Finite(_) => parse_double(text)?,
            Number::NaN => f64::NAN,
            Number::Infinity => f64::INFINITY,
            Number::MinusInfinity => f64::NEG_INFINITY,
        })
    })?;
    out.double(value);
    Ok(())
}

fn parse_double(text: &[u8]) -> Result<f64, ValueError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(ValueError::Malformed)
}

pub(super) fn write_text<O: Out>(out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
    let special = with_text(out, cell, |text| {
        Ok(match read(text)? {
            Number::Finite(_) => None,
            // The names of Debezium's constants.
            Number::NaN => Some("NAN"),
            Number::Infinity => Some("POSITIVE_INFINITY"),
            Number::MinusInfinity => Some("NEGATIVE_INFINITY"),
        })
    })?;
    match (special, cell) {
        (Some(name), _) => out.text(name.as_bytes()),
        (None, Cell::Binary(value)) => {
            out.composed_text(|buffer| print_text(buffer, &Type::NUMERIC, value).ok_or(ValueError::Malformed))?
        }
        (None, cell) => out.text(text_of(cell)?),
    }
    Ok(())
}

/// `money`: in binary, a count of the currency's smallest unit; in text, as `lc_monetary` has it, of which, as Debezium
/// does, a sign or parentheses, one character for the currency and commas are understood.
pub(super) fn write_money<O: Out>(
    out: &mut O,
    mode: DecimalMode,
    digits: u8,
    cell: Cell<'_>,
) -> Result<(), ValueError> {
    let mut plain = [0_u8; 64];
    let length = match cell {
        Cell::Binary(value) => print_units(&mut plain, i64::from_be_bytes(super::exact(value)?), digits),
        cell => plain_money(&mut plain, text_of(cell)?),
    };
    let text = &plain[..length.ok_or(ValueError::Malformed)?];
    match mode {
        DecimalMode::Precise => write_fixed(out, digits.into(), Cell::Text(text)),
        DecimalMode::Double => write_double(out, Cell::Text(text)),
        DecimalMode::String => {
            finite(text)?;
            out.text(text);
            Ok(())
        }
    }
}

fn print_units(plain: &mut [u8; 64], units: i64, digits: u8) -> Option<usize> {
    use std::io::Write as _;
    let per_whole = 10_u64.checked_pow(digits.into())?;
    let (whole, fraction) = (units.unsigned_abs() / per_whole, units.unsigned_abs() % per_whole);
    let sign = if units < 0 { "-" } else { "" };
    let mut rest = &mut plain[..];
    match digits {
        0 => write!(rest, "{sign}{whole}").ok()?,
        digits => write!(rest, "{sign}{whole}.{fraction:0width$}", width = digits.into()).ok()?,
    }
    let left = rest.len();
    Some(64 - left)
}

fn plain_money(plain: &mut [u8; 64], text: &[u8]) -> Option<usize> {
    let (is_negative, text) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        (b'(', rest) => (true, rest.strip_suffix(b")")?),
        _ => (false, text),
    };
    let text = std::str::from_utf8(text).ok()?;
    let text = match text.chars().next()? {
        c if c.is_ascii_digit() || c == '.' => text,
        currency => &text[currency.len_utf8()..],
    };
    let mut places = plain.iter_mut();
    let sign = is_negative.then_some(b'-');
    let mut length = 0;
    for byte in sign.into_iter().chain(text.bytes().filter(|byte| *byte != b',')) {
        *places.next()? = byte;
        length += 1;
    }
    Some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_s_complement(text: &str, scale: usize) -> Vec<u8> {
        let mut out = Vec::new();
        Unscaled::new(finite(text.as_bytes()).expect("a number"), scale).push(&mut out);
        out
    }

    #[test]
    fn numbers_are_as_short_as_java_makes_them() {
        for (text, scale, bytes) in [
            ("0", 0, &[0][..]),
            ("-0.00", 2, &[0]),
            ("1.27", 2, &[127]),
            ("1.28", 2, &[0, 128]),
            ("-1.28", 2, &[128]),
            ("-1.29", 2, &[255, 127]),
            ("255", 0, &[0, 255]),
            ("-256", 0, &[255, 0]),
            ("3.3", 2, &[1, 74]),
            ("1", 5, &[1, 134, 160]),
        ] {
            assert_eq!(two_s_complement(text, scale), bytes, "{text}");
        }
    }

    #[test]
    fn numbers_have_any_length() {
        // 2^127 - 1, 2^127, 2^128 and 2^160, and less than the last.
        let edge = two_s_complement("170141183460469231731687303715884105727", 0);
        assert_eq!((edge.len(), edge[0]), (16, 0x7F));
        let edge = two_s_complement("170141183460469231731687303715884105728", 0);
        assert_eq!((edge.len(), edge[0], edge[1]), (17, 0, 0x80));
        let edge = two_s_complement("-170141183460469231731687303715884105728", 0);
        assert_eq!((edge.len(), edge[0]), (16, 0x80));
        let edge = two_s_complement("340282366920938463463374607431768211456", 0);
        assert_eq!((edge.len(), edge[0], &edge[1..]), (17, 1, &[0_u8; 16][..]));
        let edge = two_s_complement("-1461501637330902918203684832716283019655932542976", 0);
        assert_eq!((edge.len(), edge[0], &edge[1..]), (21, 0xFF, &[0_u8; 20][..]));
    }

    #[test]
    fn money_is_understood_as_debezium_understands_it() {
        let mut plain = [0; 64];
        for (text, expected) in [
            ("$1,234.11", "1234.11"),
            ("-$1,234.11", "-1234.11"),
            ("($1234.11)", "-1234.11"),
            ("€5.00", "5.00"),
            ("7", "7"),
        ] {
            let length = plain_money(&mut plain, text.as_bytes()).expect("money");
            assert_eq!(&plain[..length], expected.as_bytes());
        }
        for (units, digits, expected) in
            [(123_411, 2, "1234.11"), (-5, 2, "-0.05"), (7, 0, "7"), (i64::MIN, 3, "-9223372036854775.808")]
        {
            let length = print_units(&mut plain, units, digits).expect("fits");
            assert_eq!(&plain[..length], expected.as_bytes());
        }
    }
}
