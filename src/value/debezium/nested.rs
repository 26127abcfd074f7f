//! Values made of values: arrays, `hstore`, points.

use std::borrow::Cow;

use super::json::Json;
use super::options::HstoreMode;
use super::out::Out;
use super::value::{ArrayKind, Common, parse, write_text};
use super::{ValueError, text_of};
use crate::tuple::Cell;

/// Dimensions that Postgres allows.
const DIMENSIONS_MAX: usize = 6;

fn take_i32(rest: &mut &[u8]) -> Result<i32, ValueError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(ValueError::Malformed)?;
    *rest = tail;
    Ok(i32::from_be_bytes(*head))
}

/// A field of a composed value; `None` for NULL.
fn take_field<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, ValueError> {
    let length = take_i32(rest)?;
    if length == -1 {
        return Ok(None);
    }
    let length = usize::try_from(length).map_err(|_| ValueError::Malformed)?;
    let (field, tail) = rest.split_at_checked(length).ok_or(ValueError::Malformed)?;
    *rest = tail;
    Ok(Some(field))
}

/// An array of one dimension. Connect has no other; JSON without a schema takes them as arrays of arrays.
pub(super) fn write_array<O: Out>(
    out: &mut O,
    array: &ArrayKind,
    common: &Common,
    cell: Cell<'_>,
) -> Result<(), ValueError> {
    let writer = Elements { array, common };
    match cell {
        Cell::Binary(value) => writer.write_binary(out, value),
        cell => writer.write_text(out, text_of(cell)?),
    }
}

struct Elements<'a> {
    array: &'a ArrayKind,
    common: &'a Common,
}

impl Elements<'_> {
    fn write_element<O: Out>(&self, out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
        out.item();
        match cell {
            Cell::Null if self.array.nullable || !O::STRICT => out.null(),
            Cell::Null => return Err(ValueError::Null),
            cell => {
                if self.array.nullable {
                    out.some();
                }
                self.array.element.write(out, self.common, cell)?;
            }
        }
        Ok(())
    }

    /// `array_send`: dimension count, whether there are NULLs, element OID, length and lower bound of each dimension; then
    /// each element.
    fn write_binary<O: Out>(&self, out: &mut O, value: &[u8]) -> Result<(), ValueError> {
        let mut rest = value;
        let dimensions = take_i32(&mut rest)?;
        let (_has_null, _element_oid) = (take_i32(&mut rest)?, take_i32(&mut rest)?);
        let dimensions = usize::try_from(dimensions).ok().filter(|count| *count <= DIMENSIONS_MAX);
        let dimensions = dimensions.ok_or(ValueError::Malformed)?;
        if dimensions > 1 && O::STRICT {
            return Err(ValueError::Nested);
        }
        let mut lengths = [0; DIMENSIONS_MAX];
        for length in &mut lengths[..dimensions] {
            *length = usize::try_from(take_i32(&mut rest)?).map_err(|_| ValueError::Malformed)?;
            let _lower_bound = take_i32(&mut rest)?;
        }
        // An empty array has no dimension.
        let lengths = if dimensions == 0 { &[0][..] } else { &lengths[..dimensions] };
        self.write_dimension(out, lengths, &mut rest)?;
        if rest.is_empty() { Ok(()) } else { Err(ValueError::Malformed) }
    }

    fn write_dimension<O: Out>(&self, out: &mut O, lengths: &[usize], rest: &mut &[u8]) -> Result<(), ValueError> {
        let Some((&length, inner)) = lengths.split_first() else { return Ok(()) };
        out.begin_array(Some(length));
        for _ in 0..length {
            // A length that is a lie ends at the first element that is not there.
            if rest.is_empty() {
                return Err(ValueError::Malformed);
            }
            if inner.is_empty() {
                self.write_element(out, take_field(rest)?.map_or(Cell::Null, Cell::Binary))?;
            } else {
                out.item();
                self.write_dimension(out, inner, rest)?;
            }
        }
        out.end_array();
        Ok(())
    }

    /// `{1,NULL,"a \"b\""}`, with `[2:3]=` before it where a dimension does not begin at 1.
    fn write_text<O: Out>(&self, out: &mut O, text: &[u8]) -> Result<(), ValueError> {
        let mut rest = match text.first() {
            Some(b'[') => text.iter().position(|byte| *byte == b'=').map_or(&[][..], |equals| &text[equals + 1..]),
            _ => text,
        };
        if O::STRICT && rest.starts_with(b"{{") {
            return Err(ValueError::Nested);
        }
        self.write_text_dimension(out, &mut rest, 1)?;
        if rest.is_empty() { Ok(()) } else { Err(ValueError::Malformed) }
    }

    fn write_text_dimension<O: Out>(&self, out: &mut O, rest: &mut &[u8], depth: usize) -> Result<(), ValueError> {
        let mut at_end = match rest.strip_prefix(b"{") {
            Some(tail) if depth <= DIMENSIONS_MAX => {
                *rest = tail;
                tail.first() == Some(&b'}')
            }
            _ => return Err(ValueError::Malformed),
        };
        out.begin_array(None);
        while !at_end {
            if rest.first() == Some(&b'{') {
                if O::STRICT {
                    return Err(ValueError::Nested);
                }
                out.item();
                self.write_text_dimension(out, rest, depth + 1)?;
            } else {
                match take_text_element(rest)? {
                    None => self.write_element(out, Cell::Null)?,
                    Some(element) => self.write_element(out, Cell::Text(&element))?,
                }
            }
            match rest.first() {
                Some(b',') => *rest = &rest[1..],
                Some(b'}') => at_end = true,
                _ => return Err(ValueError::Malformed),
            }
        }
        *rest = rest.get(1..).unwrap_or_default();
        out.end_array();
        Ok(())
    }
}

/// An element of an array's text, `None` for NULL. Copied only if it has escapes.
fn take_text_element<'a>(rest: &mut &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, ValueError> {
    if rest.first() == Some(&b'"') {
        return take_quoted(rest).map(Some);
    }
    let end = rest.iter().position(|byte| matches!(byte, b',' | b'}')).ok_or(ValueError::Malformed)?;
    let (element, tail) = rest.split_at(end);
    *rest = tail;
    match element {
        b"" => Err(ValueError::Malformed),
        b"NULL" => Ok(None),
        element if element.contains(&b'\\') => Ok(Some(unescape(element).into())),
        element => Ok(Some(element.into())),
    }
}

/// Text in double quotes, in which a backslash stands before a quote and before another backslash.
fn take_quoted<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, ValueError> {
    let body = rest.strip_prefix(b"\"").ok_or(ValueError::Malformed)?;
    let mut at = 0;
    let mut has_escape = false;
    loop {
        match body.get(at).ok_or(ValueError::Malformed)? {
            b'"' => break,
            b'\\' => {
                has_escape = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
    *rest = &body[at + 1..];
    let text = &body[..at];
    Ok(if has_escape { unescape(text).into() } else { text.into() })
}

fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = text.iter();
    let mut unescaped = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        unescaped.extend(if *byte == b'\\' { bytes.next() } else { Some(byte) });
    }
    unescaped
}

pub(super) fn write_hstore<O: Out>(out: &mut O, mode: HstoreMode, cell: Cell<'_>) -> Result<(), ValueError> {
    match mode {
        HstoreMode::Map => write_pairs(out, cell),
        HstoreMode::Json => out.composed_text(|buffer| write_pairs(&mut Json::<false> { out: buffer }, cell)),
    }
}

fn write_pairs<O: Out>(out: &mut O, cell: Cell<'_>) -> Result<(), ValueError> {
    out.begin_map();
    match cell {
        // `hstore_send`: how many pairs, then key and value of each.
        Cell::Binary(value) => {
            let mut rest = value;
            for _ in 0..take_i32(&mut rest)? {
                let key = take_field(&mut rest)?.ok_or(ValueError::Malformed)?;
                write_pair(out, key, take_field(&mut rest)?)?;
            }
            if !rest.is_empty() {
                return Err(ValueError::Malformed);
            }
        }
        // `"a"=>"1", "b"=>NULL`
        cell => {
            let mut rest = text_of(cell)?;
            while !rest.is_empty() {
                let key = take_quoted(&mut rest)?;
                rest = rest.strip_prefix(b"=>").ok_or(ValueError::Malformed)?;
                if let Some(tail) = rest.strip_prefix(b"NULL") {
                    rest = tail;
                    write_pair(out, &key, None)?;
                } else {
                    let value = take_quoted(&mut rest)?;
                    write_pair(out, &key, Some(&value))?;
                }
                rest = match rest.strip_prefix(b", ") {
                    Some(tail) if !tail.is_empty() => tail,
                    None if rest.is_empty() => rest,
                    _ => return Err(ValueError::Malformed),
                };
            }
        }
    }
    out.end_map();
    Ok(())
}

fn write_pair<O: Out>(out: &mut O, key: &[u8], value: Option<&[u8]>) -> Result<(), ValueError> {
    std::str::from_utf8(key).map_err(|_| ValueError::NotUtf8)?;
    out.key(key);
    match value {
        None => out.null(),
        Some(value) => {
            out.some();
            write_text(out, value)?;
        }
    }
    Ok(())
}

/// A point's coordinates: two numbers of eight bytes, or `(x,y)`.
pub(super) fn point(cell: Cell<'_>) -> Result<(f64, f64), ValueError> {
    match cell {
        Cell::Binary(value) => {
            let (x, y) = value.split_first_chunk::<8>().ok_or(ValueError::Malformed)?;
            Ok((f64::from_be_bytes(*x), f64::from_be_bytes(super::exact(y)?)))
        }
        cell => {
            let text = text_of(cell)?;
            let pair = text.strip_prefix(b"(").and_then(|text| text.strip_suffix(b")")).ok_or(ValueError::Malformed)?;
            let comma = pair.iter().position(|byte| *byte == b',').ok_or(ValueError::Malformed)?;
            Ok((parse(&pair[..comma])?, parse(&pair[comma + 1..])?))
        }
    }
}
