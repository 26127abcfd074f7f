//! `bytea` and bit strings.

use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use super::json::{base64_in_place, encode_base64};
use super::options::BinaryMode;
use super::out::Out;
use super::{ValueError, text_of};
use crate::tuple::Cell;

/// `bytea`: as it is in binary form, `\x` and hexadecimal digits in text (`bytea_output = 'hex'`, which the connection asks
/// for).
pub(super) fn write_bytes<O: Out>(out: &mut O, mode: BinaryMode, cell: Cell<'_>) -> Result<(), ValueError> {
    let digits = match cell {
        Cell::Binary(value) => return write_raw_bytes(out, mode, value),
        cell => text_of(cell)?.strip_prefix(b"\\x").ok_or(ValueError::Malformed)?,
    };
    match mode {
        BinaryMode::Hex => {
            if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
                return Err(ValueError::Malformed);
            }
            out.text(digits);
            Ok(())
        }
        BinaryMode::Bytes => out.composed_bytes(|buffer| push_unhexed(buffer, digits)),
        BinaryMode::Base64 => {
            out.composed_text(|buffer| base64_in_place(buffer, &STANDARD, |raw| push_unhexed(raw, digits)))
        }
        BinaryMode::Base64UrlSafe => {
            out.composed_text(|buffer| base64_in_place(buffer, &URL_SAFE, |raw| push_unhexed(raw, digits)))
        }
    }
}

pub(super) fn write_raw_bytes<O: Out>(out: &mut O, mode: BinaryMode, value: &[u8]) -> Result<(), ValueError> {
    match mode {
        BinaryMode::Bytes => out.bytes(value),
        BinaryMode::Base64 => out.composed_text(|buffer| {
            encode_base64(buffer, value, &STANDARD);
            Ok(())
        })?,
        BinaryMode::Base64UrlSafe => out.composed_text(|buffer| {
            encode_base64(buffer, value, &URL_SAFE);
            Ok(())
        })?,
        BinaryMode::Hex => out.composed_text(|buffer| {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            buffer
                .extend(value.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
            Ok(())
        })?,
    }
    Ok(())
}

fn push_unhexed(out: &mut Vec<u8>, digits: &[u8]) -> Result<(), ValueError> {
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(ValueError::Malformed);
    }
    let digit = |byte: u8| (byte as char).to_digit(16).ok_or(ValueError::Malformed);
    for [high, low] in pairs {
        out.push((digit(*high)? << 4 | digit(*low)?) as u8);
    }
    Ok(())
}

/// `bit_send`: how many bits, then the bits, the first in the highest place.
fn bits_of_binary(value: &[u8]) -> Option<(usize, &[u8])> {
    let (count, bytes) = value.split_first_chunk::<4>()?;
    let count = usize::try_from(i32::from_be_bytes(*count)).ok()?;
    (bytes.len() == count.div_ceil(8)).then_some((count, bytes))
}

pub(super) fn write_bit<O: Out>(out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
    let bit = match cell {
        Cell::Binary(value) => match bits_of_binary(value) {
            Some((1, [byte])) => byte & 0x80 != 0,
            _ => return Err(ValueError::Malformed),
        },
        Cell::Text(b"0") => false,
        Cell::Text(b"1") => true,
        _ => return Err(ValueError::Malformed),
    };
    out.boolean(bit);
    Ok(())
}

/// The bits as a number, the lowest byte first and no longer than its highest bit.
pub(super) fn push_bits(out: &mut Vec<u8>, cell: Cell<'_>) -> Result<(), ValueError> {
    let start = out.len();
    match cell {
        Cell::Binary(value) => {
            let (count, bytes) = bits_of_binary(value).ok_or(ValueError::Malformed)?;
            // Bits that fill the last byte are behind the lowest one.
            let spare = bytes.len() * 8 - count;
            let mut above = 0_u16;
            for byte in bytes.iter() {
                let pair = above << 8 | u16::from(*byte);
                out.push((pair >> spare) as u8);
                above = u16::from(*byte);
            }
            out[start..].reverse();
        }
        cell => {
            let text = text_of(cell)?;
            for group in text.rchunks(8) {
                let mut byte = 0;
                for bit in group {
                    byte = byte << 1
                        | match bit {
                            b'0' => 0,
                            b'1' => 1,
                            _ => return Err(ValueError::Malformed),
                        };
                }
                out.push(byte);
            }
        }
    }
    while out.len() > start && out.last() == Some(&0) {
        out.pop();
    }
    Ok(())
}
