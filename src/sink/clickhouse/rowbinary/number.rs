//! Whole numbers, decimals, UUIDs and bytes.

use std::str::FromStr;

use super::{Excess, MALFORMED, Misfit, Whole, exact, put_length, text_of};
use crate::tuple::Cell;

/// Least and greatest number of so many bytes, at most 8.
pub(super) fn limits(bytes: u8, signed: bool) -> (i128, i128) {
    let bits = u32::from(bytes) * 8;
    if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) }
}

#[inline]
pub(super) fn put_whole(out: &mut Vec<u8>, value: i128, bytes: u8) {
    out.extend_from_slice(&value.to_le_bytes()[..usize::from(bytes)]);
}

#[inline]
pub(super) fn write_whole(
    out: &mut Vec<u8>,
    from: Whole,
    bytes: u8,
    range: Option<(i128, i128)>,
    cell: Cell<'_>,
) -> Result<(), Misfit> {
    let value = match (from, cell) {
        (Whole::Int2, Cell::Binary(value)) => i64::from(i16::from_be_bytes(exact(value)?)),
        (Whole::Int4, Cell::Binary(value)) => i64::from(i32::from_be_bytes(exact(value)?)),
        (Whole::Int8, Cell::Binary(value)) => i64::from_be_bytes(exact(value)?),
        (Whole::Unsigned4, Cell::Binary(value)) => i64::from(u32::from_be_bytes(exact(value)?)),
        (_, cell) => parse(text_of(cell)?)?,
    };
    if let Some((least, greatest)) = range {
        if i128::from(value) < least {
            return Err(Misfit::Below);
        }
        if i128::from(value) > greatest {
            return Err(Misfit::Above);
        }
    }
    out.extend_from_slice(&value.to_le_bytes()[..usize::from(bytes)]);
    Ok(())
}

pub(super) fn parse<T: FromStr>(text: &[u8]) -> Result<T, Misfit> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED)
}

/// ClickHouse holds a UUID as two 64-bit numbers, the high half first, each little-endian.
#[inline]
pub(super) fn write_uuid(out: &mut Vec<u8>, cell: Cell<'_>) -> Result<(), Misfit> {
    let value: u128 = match cell {
        Cell::Binary(value) => u128::from_be_bytes(exact(value)?),
        cell => {
            let text = text_of(cell)?;
            let mut value = 0_u128;
            let mut count = 0;
            for byte in text.iter().filter(|byte| **byte != b'-') {
                value = value << 4 | u128::from(hex_digit(*byte)?);
                count += 1;
            }
            if count != 32 {
                return Err(MALFORMED);
            }
            value
        }
    };
    out.extend_from_slice(&((value >> 64) as u64).to_le_bytes());
    out.extend_from_slice(&(value as u64).to_le_bytes());
    Ok(())
}

fn hex_digit(byte: u8) -> Result<u8, Misfit> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(MALFORMED),
    }
}

/// `bytea` in text: `\x` and two digits a byte (`bytea_output = 'hex'`, which the connection asks for).
pub(super) fn write_bytes(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Misfit> {
    let digits = text.strip_prefix(b"\\x").ok_or(MALFORMED)?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(MALFORMED);
    }
    put_length(out, pairs.len());
    for [high, low] in pairs {
        out.push(hex_digit(*high)? << 4 | hex_digit(*low)?);
    }
    Ok(())
}

/// 256 bits, the lowest 64 first.
type Wide = [u64; 4];

/// `number * factor + addend`; `None` past 256 bits.
#[inline]
fn grow(number: &mut Wide, factor: u64, addend: u64) -> Option<()> {
    let mut carry = u128::from(addend);
    for word in number.iter_mut() {
        let product = u128::from(*word) * u128::from(factor) + carry;
        *word = product as u64;
        carry = product >> 64;
    }
    (carry == 0).then_some(())
}

/// A `Decimal` column: an integer of 4, 8, 16 or 32 bytes that counts units of `10^-scale`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Decimal {
    scale: u8,
    bytes: u8,
    /// The first magnitude that has too many digits: `10^precision`.
    bound: Wide,
}

/// `numeric_send`: digit count, weight, sign, display scale, then digits of base 10,000. The weight is the power of 10,000
/// that the first digit counts.
#[derive(Clone, Copy)]
pub(super) struct Numeric<'a> {
    pub sign: Sign,
    pub weight: i32,
    pub display_scale: usize,
    digits: &'a [[u8; 2]],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Plus,
    Minus,
    NaN,
    Infinity,
    MinusInfinity,
}

impl<'a> Numeric<'a> {
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Option<Numeric<'a>> {
        let (header, digits) = bytes.split_first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let (pairs, rest) = digits.as_chunks::<2>();
        if !rest.is_empty() || pairs.len() != usize::from(word(0)) {
            return None;
        }
        let sign = match word(4) {
            0 => Sign::Plus,
            0x4000 => Sign::Minus,
            0xC000 => Sign::NaN,
            0xD000 => Sign::Infinity,
            0xF000 => Sign::MinusInfinity,
            _ => return None,
        };
        let weight = i32::from(word(2).cast_signed());
        Some(Numeric { sign, weight, display_scale: usize::from(word(6)), digits: pairs })
    }

    /// The digit that counts this power of 10,000; those not sent are zero. `None` if it is no digit.
    #[inline]
    pub fn digit(&self, power: i32) -> Option<u16> {
        let place = usize::try_from(self.weight - power).ok();
        match place.and_then(|place| self.digits.get(place)) {
            None => Some(0),
            Some(pair) => Some(u16::from_be_bytes(*pair)).filter(|digit| *digit < 10_000),
        }
    }

    /// The power of 10,000 that the last sent digit counts.
    fn last_power(&self) -> i32 {
        self.weight + 1 - i32::try_from(self.digits.len()).unwrap_or(i32::MAX)
    }
}

impl Decimal {
    pub fn new(precision: u8, scale: u8) -> Decimal {
        let mut bound = [1, 0, 0, 0];
        for _ in 0..precision {
            grow(&mut bound, 10, 0).expect("10^76 is less than 2^256");
        }
        let bytes = match precision {
            0..=9 => 4,
            10..=18 => 8,
            19..=38 => 16,
            _ => 32,
        };
        Decimal { scale, bytes, bound }
    }

    pub fn bytes(&self) -> usize {
        usize::from(self.bytes)
    }

    pub fn put_limit(&self, out: &mut Vec<u8>, is_least: bool) {
        let mut greatest = self.bound;
        // The bound is a power of ten, hence even where it is not 1, and 1 - 1 does not borrow either.
        for word in &mut greatest {
            let (less, borrowed) = word.overflowing_sub(1);
            *word = less;
            if !borrowed {
                break;
            }
        }
        self.put(out, greatest, is_least);
    }

    fn put(&self, out: &mut Vec<u8>, mut magnitude: Wide, is_negative: bool) {
        if is_negative {
            let mut carry = true;
            for word in &mut magnitude {
                (*word, carry) = (!*word).overflowing_add(u64::from(carry));
            }
        }
        let end = out.len() + self.bytes();
        magnitude.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
        out.truncate(end);
    }

    fn finish(&self, out: &mut Vec<u8>, magnitude: Wide, is_negative: bool) -> Result<(), Misfit> {
        if magnitude.iter().rev().ge(self.bound.iter().rev()) {
            return Err(if is_negative { Misfit::Below } else { Misfit::Above });
        }
        self.put(out, magnitude, is_negative);
        Ok(())
    }

    #[inline]
    pub fn write(&self, out: &mut Vec<u8>, cell: Cell<'_>, excess: Excess) -> Result<(), Misfit> {
        match cell {
            Cell::Binary(value) => self.write_binary(out, Numeric::read(value).ok_or(MALFORMED)?, excess),
            cell => self.write_text(out, text_of(cell)?, excess),
        }
    }

    fn write_binary(&self, out: &mut Vec<u8>, numeric: Numeric<'_>, excess: Excess) -> Result<(), Misfit> {
        let is_negative = match numeric.sign {
            Sign::Plus => false,
            Sign::Minus => true,
            Sign::NaN => return Err(Misfit::NoNearest),
            Sign::Infinity => return Err(Misfit::Above),
            Sign::MinusInfinity => return Err(Misfit::Below),
        };
        let too_large = if is_negative { Misfit::Below } else { Misfit::Above };
        let mut magnitude: Wide = [0; 4];
        // Places after the point that still count.
        let mut scale_left = u32::from(self.scale);
        let mut power = numeric.weight.max(-1);
        let last = numeric.last_power();
        while power >= 0 {
            let digit = numeric.digit(power).ok_or(MALFORMED)?;
            grow(&mut magnitude, 10_000, digit.into()).ok_or(too_large)?;
            // Zeros that were not sent, up to the point.
            if magnitude == [0; 4] && power < last {
                break;
            }
            power -= 1;
        }
        let mut power = -1;
        while scale_left > 0 {
            let digit = numeric.digit(power).ok_or(MALFORMED)?;
            if scale_left >= 4 {
                grow(&mut magnitude, 10_000, digit.into()).ok_or(too_large)?;
                scale_left -= 4;
                power -= 1;
                continue;
            }
            let cut = 10_u16.pow(4 - scale_left);
            grow(&mut magnitude, 10_u64.pow(scale_left), (digit / cut).into()).ok_or(too_large)?;
            if digit % cut != 0 && excess == Excess::Refused {
                return Err(Misfit::TooFine);
            }
            scale_left = 0;
            power -= 1;
        }
        if excess == Excess::Refused {
            while power >= last {
                if numeric.digit(power).ok_or(MALFORMED)? != 0 {
                    return Err(Misfit::TooFine);
                }
                power -= 1;
            }
        }
        self.finish(out, magnitude, is_negative)
    }

    fn write_text(&self, out: &mut Vec<u8>, text: &[u8], excess: Excess) -> Result<(), Misfit> {
        match text {
            b"NaN" => return Err(Misfit::NoNearest),
            b"Infinity" => return Err(Misfit::Above),
            b"-Infinity" => return Err(Misfit::Below),
            _ => {}
        }
        let (is_negative, digits) = match text.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let too_large = if is_negative { Misfit::Below } else { Misfit::Above };
        let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
            Some(point) => (&digits[..point], &digits[point + 1..]),
            None => (digits, &[][..]),
        };
        if whole.is_empty() || !whole.iter().chain(fraction).all(u8::is_ascii_digit) {
            return Err(MALFORMED);
        }
        let (kept, dropped) = fraction.split_at(fraction.len().min(self.scale.into()));
        if excess == Excess::Refused && dropped.iter().any(|digit| *digit != b'0') {
            return Err(Misfit::TooFine);
        }
        let mut magnitude: Wide = [0; 4];
        for digit in whole.iter().chain(kept) {
            grow(&mut magnitude, 10, (digit - b'0').into()).ok_or(too_large)?;
        }
        for _ in kept.len()..usize::from(self.scale) {
            grow(&mut magnitude, 10, 0).ok_or(too_large)?;
        }
        self.finish(out, magnitude, is_negative)
    }
}
