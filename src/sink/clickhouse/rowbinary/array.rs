//! Arrays: Postgres's of up to six dimensions into ClickHouse's arrays of arrays.

use super::{Encoder, Excess, Fit, MALFORMED, Misfit, begin_prefix, end_prefix, put_length};
use crate::tuple::Cell;

/// Dimensions that Postgres allows.
pub(super) const DIMENSIONS_MAX: usize = 6;

/// The head of an array's binary form.
pub(super) struct Head {
    pub dimensions: usize,
    pub lengths: [usize; DIMENSIONS_MAX],
    pub lower_bounds: [i32; DIMENSIONS_MAX],
}

/// `array_send`: dimension count, whether there are NULLs, element OID, length and lower bound of each dimension; then each
/// element as length (-1 for NULL) and bytes.
pub(super) fn head(rest: &mut &[u8]) -> Option<Head> {
    let dimensions = usize::try_from(take_i32(rest)?).ok().filter(|count| *count <= DIMENSIONS_MAX)?;
    let (_has_null, _element_oid) = (take_i32(rest)?, take_i32(rest)?);
    let mut head = Head { dimensions, lengths: [0; DIMENSIONS_MAX], lower_bounds: [1; DIMENSIONS_MAX] };
    for place in 0..dimensions {
        head.lengths[place] = usize::try_from(take_i32(rest)?).ok()?;
        head.lower_bounds[place] = take_i32(rest)?;
    }
    Some(head)
}

pub(super) fn take_i32(rest: &mut &[u8]) -> Option<i32> {
    let (head, tail) = rest.split_first_chunk::<4>()?;
    *rest = tail;
    Some(i32::from_be_bytes(*head))
}

/// A field of a composed value: its bytes, or `Some(None)` for NULL.
pub(super) fn take_field<'a>(rest: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_i32(rest)?;
    if length == -1 {
        return Some(None);
    }
    let (field, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = tail;
    Some(Some(field))
}

pub(super) fn write(
    out: &mut Vec<u8>,
    element: &Encoder,
    depth: u8,
    cell: Cell<'_>,
    excess: Excess,
) -> Result<Fit, Misfit> {
    match cell {
        Cell::Binary(value) => write_binary(out, element, depth, value, excess),
        Cell::Text(text) => write_text(out, element, depth, text, excess),
        Cell::Null | Cell::Unchanged => Err(MALFORMED),
    }
}

fn write_binary(out: &mut Vec<u8>, element: &Encoder, depth: u8, value: &[u8], excess: Excess) -> Result<Fit, Misfit> {
    let mut rest = value;
    let head = head(&mut rest).ok_or(MALFORMED)?;
    if head.dimensions == 0 {
        out.push(0);
        return Ok(Fit::Exact);
    }
    if head.dimensions != usize::from(depth) {
        return Err(Misfit::NoNearest);
    }
    if excess == Excess::Refused && head.lower_bounds.iter().any(|bound| *bound != 1) {
        return Err(Misfit::TooFine);
    }
    let fit = write_dimension(out, element, &head.lengths[..head.dimensions], &mut rest)?;
    if rest.is_empty() { Ok(fit) } else { Err(MALFORMED) }
}

fn write_dimension(out: &mut Vec<u8>, element: &Encoder, lengths: &[usize], rest: &mut &[u8]) -> Result<Fit, Misfit> {
    let Some((&length, inner)) = lengths.split_first() else {
        let field = take_field(rest).ok_or(MALFORMED)?;
        return element.put_value(out, field.map_or(Cell::Null, Cell::Binary)).map_err(Misfit::Error);
    };
    put_length(out, length);
    let mut fit = Fit::Exact;
    for _ in 0..length {
        // A length that is a lie ends at the first element that is not there.
        if rest.is_empty() {
            return Err(MALFORMED);
        }
        if write_dimension(out, element, inner, rest)? == Fit::Coerced {
            fit = Fit::Coerced;
        }
    }
    Ok(fit)
}

/// The text form: `{1,NULL,"a \"b\""}`, with `[2:3]=` before it where a dimension does not begin at 1.
fn write_text(out: &mut Vec<u8>, element: &Encoder, depth: u8, text: &[u8], excess: Excess) -> Result<Fit, Misfit> {
    let body = match text.first() {
        Some(b'[') if excess == Excess::Refused => return Err(Misfit::TooFine),
        Some(b'[') => text.iter().position(|byte| *byte == b'=').map(|equals| &text[equals + 1..]).ok_or(MALFORMED)?,
        _ => text,
    };
    if body == b"{}" {
        out.push(0);
        return Ok(Fit::Exact);
    }
    if body.iter().take_while(|byte| **byte == b'{').count() != usize::from(depth) {
        return Err(Misfit::NoNearest);
    }
    let mut parser = TextArray { rest: body, element, unescaped: Vec::new(), fit: Fit::Exact };
    parser.write(out, depth)?;
    if parser.rest.is_empty() { Ok(parser.fit) } else { Err(MALFORMED) }
}

struct TextArray<'a> {
    rest: &'a [u8],
    element: &'a Encoder,
    /// An element whose escapes were taken off.
    unescaped: Vec<u8>,
    fit: Fit,
}

impl TextArray<'_> {
    fn take(&mut self, expected: u8) -> Result<(), Misfit> {
        match self.rest.split_first() {
            Some((byte, tail)) if *byte == expected => {
                self.rest = tail;
                Ok(())
            }
            _ => Err(MALFORMED),
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, depth: u8) -> Result<(), Misfit> {
        if depth == 0 {
            return self.write_element(out);
        }
        self.take(b'{')?;
        let at = begin_prefix(out);
        let mut count = 0;
        loop {
            self.write(out, depth - 1)?;
            count += 1;
            if self.rest.first() == Some(&b'}') {
                break;
            }
            self.take(b',')?;
        }
        self.take(b'}')?;
        end_prefix(out, at, count);
        Ok(())
    }

    fn write_element(&mut self, out: &mut Vec<u8>) -> Result<(), Misfit> {
        let fit = if let Some(quoted) = self.rest.strip_prefix(b"\"") {
            self.unescaped.clear();
            let mut bytes = quoted.iter();
            loop {
                match bytes.next().ok_or(MALFORMED)? {
                    b'"' => break,
                    b'\\' => self.unescaped.push(*bytes.next().ok_or(MALFORMED)?),
                    byte => self.unescaped.push(*byte),
                }
            }
            self.rest = bytes.as_slice();
            self.element.put_value(out, Cell::Text(&self.unescaped))
        } else {
            let end = self.rest.iter().position(|byte| matches!(byte, b',' | b'}' | b'{' | b'"')).ok_or(MALFORMED)?;
            let (element, tail) = self.rest.split_at(end);
            self.rest = tail;
            match element {
                b"" => return Err(MALFORMED),
                b"NULL" => self.element.put_value(out, Cell::Null),
                element => self.element.put_value(out, Cell::Text(element)),
            }
        };
        if fit.map_err(Misfit::Error)? == Fit::Coerced {
            self.fit = Fit::Coerced;
        }
        Ok(())
    }
}
