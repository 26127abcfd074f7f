//! Arrays, ranges and multiranges, whose parts are quoted where they would not be read back as they are.

use postgres_types::Type;

use super::super::array::{Head, head, take_field};
use super::super::{MALFORMED, Misfit};
use super::{print, push, whole};

/// How an element is quoted inside another value: which bytes ask for quotes, and what stands before `"` and `\`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quoting {
    Array,
    Range,
}

impl Quoting {
    fn is_special(self, byte: u8) -> bool {
        let is_space = matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c);
        is_space
            || match self {
                Quoting::Array => matches!(byte, b'"' | b'\\' | b'{' | b'}' | b','),
                Quoting::Range => matches!(byte, b'"' | b'\\' | b'(' | b')' | b'[' | b']' | b','),
            }
    }
}

/// Puts what was appended since `start` into quotes if it would not be read back as it is.
fn quote(out: &mut Vec<u8>, start: usize, quoting: Quoting) {
    let text = &out[start..];
    let reads_as_null = quoting == Quoting::Array && text.eq_ignore_ascii_case(b"null");
    let is_special = text.iter().any(|byte| quoting.is_special(*byte));
    if !(text.is_empty() || reads_as_null || is_special) {
        return;
    }
    let text = out.split_off(start);
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(if quoting == Quoting::Array { b'\\' } else { byte });
        }
        out.push(byte);
    }
    out.push(b'"');
}

pub(super) fn array(out: &mut Vec<u8>, element: &Type, bytes: &[u8]) -> Result<(), Misfit> {
    let mut rest = bytes;
    let Head { dimensions, lengths, lower_bounds } = head(&mut rest).ok_or(MALFORMED)?;
    if dimensions == 0 {
        return whole(out, b"{}");
    }
    if lower_bounds.iter().any(|bound| *bound != 1) {
        for place in 0..dimensions {
            let (first, length) = (i64::from(lower_bounds[place]), i64::try_from(lengths[place]).unwrap_or(i64::MAX));
            push(out, format_args!("[{first}:{}]", first.saturating_add(length - 1)));
        }
        out.push(b'=');
    }
    array_dimension(out, element, &lengths[..dimensions], &mut rest)?;
    if rest.is_empty() { Ok(()) } else { Err(MALFORMED) }
}

fn array_dimension(out: &mut Vec<u8>, element: &Type, lengths: &[usize], rest: &mut &[u8]) -> Result<(), Misfit> {
    let Some((&length, inner)) = lengths.split_first() else {
        match take_field(rest).ok_or(MALFORMED)? {
            None => out.extend_from_slice(b"NULL"),
            Some(field) => {
                let start = out.len();
                print(out, element, field)?;
                quote(out, start, Quoting::Array);
            }
        }
        return Ok(());
    };
    out.push(b'{');
    for place in 0..length {
        if rest.is_empty() {
            return Err(MALFORMED);
        }
        if place > 0 {
            out.push(b',');
        }
        array_dimension(out, element, inner, rest)?;
    }
    out.push(b'}');
    Ok(())
}

/// `range_send`: flags, then each bound that is not infinite.
pub(super) fn range(out: &mut Vec<u8>, element: &Type, bytes: &[u8]) -> Result<(), Misfit> {
    const EMPTY: u8 = 1;
    const LOWER_INCLUSIVE: u8 = 2;
    const UPPER_INCLUSIVE: u8 = 4;
    const LOWER_INFINITE: u8 = 8;
    const UPPER_INFINITE: u8 = 16;
    let (&flags, mut rest) = bytes.split_first().ok_or(MALFORMED)?;
    if flags & EMPTY != 0 {
        return whole(out, b"empty");
    }
    out.push(if flags & LOWER_INCLUSIVE != 0 { b'[' } else { b'(' });
    for (infinite, after) in [(LOWER_INFINITE, b','), (UPPER_INFINITE, b')')] {
        if flags & infinite == 0 {
            let bound = take_field(&mut rest).flatten().ok_or(MALFORMED)?;
            let start = out.len();
            print(out, element, bound)?;
            quote(out, start, Quoting::Range);
        }
        let is_end = after == b')';
        out.push(if is_end && flags & UPPER_INCLUSIVE != 0 { b']' } else { after });
    }
    if rest.is_empty() { Ok(()) } else { Err(MALFORMED) }
}

/// `multirange_send`: how many ranges, then each.
pub(super) fn multirange(out: &mut Vec<u8>, element: &Type, bytes: &[u8]) -> Result<(), Misfit> {
    let (count, mut rest) = bytes.split_first_chunk::<4>().ok_or(MALFORMED)?;
    let count = u32::from_be_bytes(*count);
    out.push(b'{');
    for place in 0..count {
        if place > 0 {
            out.push(b',');
        }
        range(out, element, take_field(&mut rest).flatten().ok_or(MALFORMED)?)?;
    }
    out.push(b'}');
    if rest.is_empty() { Ok(()) } else { Err(MALFORMED) }
}
