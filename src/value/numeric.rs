//! `numeric`: its digits as they are, however many.

use super::push;

const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const NEGATIVE_INFINITY: u16 = 0xF000;

/// `numeric_send`: digit count, weight, sign, display scale, then digits of base 10,000. The weight is the power of 10,000
/// that the first digit counts.
pub(super) fn write(out: &mut String, bytes: &[u8]) -> Option<()> {
    let (header, digits) = bytes.split_first_chunk::<8>()?;
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let (count, weight, sign, scale) = (usize::from(word(0)), word(2).cast_signed(), word(4), usize::from(word(6)));
    if digits.len() != 2 * count {
        return None;
    }
    match sign {
        NAN => out.push_str("\"NaN\""),
        INFINITY => out.push_str("\"Infinity\""),
        NEGATIVE_INFINITY => out.push_str("\"-Infinity\""),
        0 => write_digits(out, digits, weight, scale)?,
        NEGATIVE => {
            out.push('-');
            write_digits(out, digits, weight, scale)?;
        }
        _ => return None,
    }
    Some(())
}

fn write_digits(out: &mut String, digits: &[u8], weight: i16, scale: usize) -> Option<()> {
    // The digit that counts this power of 10,000; those not sent are zero.
    let digit = |power: i32| {
        let place = usize::try_from(i32::from(weight) - power).ok();
        let pair = place.and_then(|place| digits.get(2 * place..2 * place + 2));
        pair.map_or(Some(0), |pair| Some(u16::from_be_bytes([pair[0], pair[1]])).filter(|&digit| digit < 10_000))
    };
    let mut leading = true;
    for power in (0..=i32::from(weight).max(0)).rev() {
        let digit = digit(power)?;
        if !leading {
            push(out, format_args!("{digit:04}"));
        } else if digit != 0 || power == 0 {
            push(out, format_args!("{digit}"));
            leading = false;
        }
    }
    if scale > 0 {
        out.push('.');
        let start = out.len();
        let groups = i32::try_from(scale.div_ceil(4)).ok()?;
        for power in 1..=groups {
            push(out, format_args!("{:04}", digit(-power)?));
        }
        out.truncate(start + scale);
    }
    Some(())
}
