//! JSON as Kafka Connect's converter writes it.

use std::io::Write as _;

use base64::engine::general_purpose::STANDARD;

use super::ValueError;
use super::out::{Label, Out};

/// Writes JSON as Kafka Connect's converter does: no blanks, numbers as Java prints them, bytes in base64.
pub(super) struct Json<'a, const STRICT: bool> {
    pub out: &'a mut Vec<u8>,
}

impl<const STRICT: bool> Json<'_, STRICT> {
    /// No value ends in an opening bracket (text ends in its quote), so one at the end means that nothing follows it yet.
    fn comma(&mut self) {
        if !matches!(self.out.last(), Some(b'{' | b'[')) {
            self.out.push(b',');
        }
    }

    fn real(&mut self, shortest: &impl std::fmt::LowerExp, value: f64) {
        if value.is_nan() {
            self.out.extend_from_slice(b"\"NaN\"");
        } else if value.is_infinite() {
            self.out.extend_from_slice(if value > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
        } else {
            java_number(self.out, shortest);
        }
    }
}

impl<const SCHEMA: bool> Out for Json<'_, SCHEMA> {
    const STRICT: bool = SCHEMA;

    fn buffer(&mut self) -> &mut Vec<u8> {
        self.out
    }

    fn null(&mut self) {
        self.out.extend_from_slice(b"null");
    }

    fn some(&mut self) {}

    fn some_or_default(&mut self) {}

    fn boolean(&mut self, value: bool) {
        self.out.extend_from_slice(if value { b"true" } else { b"false" });
    }

    fn int(&mut self, value: i64) {
        self.out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }

    fn float(&mut self, value: f32) {
        self.real(&value, value.into());
    }

    fn double(&mut self, value: f64) {
        self.real(&value, value);
    }

    fn text(&mut self, text: &[u8]) {
        quote(self.out, text);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.out.push(b'"');
        encode_base64(self.out, bytes, &STANDARD);
        self.out.push(b'"');
    }

    fn composed_text(
        &mut self,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        self.out.push(b'"');
        let start = self.out.len();
        compose(self.out)?;
        escape_in_place(self.out, start);
        self.out.push(b'"');
        Ok(())
    }

    fn composed_bytes(
        &mut self,
        compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        self.out.push(b'"');
        base64_in_place(self.out, &STANDARD, compose)?;
        self.out.push(b'"');
        Ok(())
    }

    fn begin_array(&mut self, _count: Option<usize>) {
        self.out.push(b'[');
    }

    fn item(&mut self) {
        self.comma();
    }

    fn end_array(&mut self) {
        self.out.push(b']');
    }

    fn begin_map(&mut self) {
        self.out.push(b'{');
    }

    fn key(&mut self, key: &[u8]) {
        self.comma();
        quote(self.out, key);
        self.out.push(b':');
    }

    fn end_map(&mut self) {
        self.out.push(b'}');
    }

    fn begin_struct(&mut self) {
        self.out.push(b'{');
    }

    fn field(&mut self, label: &Label) {
        self.comma();
        self.out.extend_from_slice(label.quoted());
    }

    fn end_struct(&mut self) {
        self.out.push(b'}');
    }
}

/// What JSON needs escaped, and how: quote, backslash and the characters below a blank.
fn escape_of(byte: u8) -> Option<([u8; 6], usize)> {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let short = |c| Some(([b'\\', c, 0, 0, 0, 0], 2));
    match byte {
        b'"' | b'\\' => short(byte),
        0x08 => short(b'b'),
        0x09 => short(b't'),
        0x0A => short(b'n'),
        0x0C => short(b'f'),
        0x0D => short(b'r'),
        0..0x20 => Some(([b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]], 6)),
        _ => None,
    }
}

/// Whether [`escape_of`] has something for a byte of it. Looks at all of them, which takes less time than to stop in between.
fn needs_escape(text: &[u8]) -> bool {
    text.iter().fold(false, |needs, byte| needs | (*byte < 0x20) | (*byte == b'"') | (*byte == b'\\'))
}

/// Appends text as a JSON string.
pub(super) fn quote(out: &mut Vec<u8>, text: &[u8]) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut from = 0;
    if needs_escape(text) {
        for (at, byte) in text.iter().enumerate() {
            if let Some((escape, length)) = escape_of(*byte) {
                out.extend_from_slice(&text[from..at]);
                out.extend_from_slice(&escape[..length]);
                from = at + 1;
            }
        }
    }
    out.extend_from_slice(&text[from..]);
    out.push(b'"');
}

/// Escapes what stands after `start`, moving it apart from the end.
fn escape_in_place(out: &mut Vec<u8>, start: usize) {
    if !needs_escape(&out[start..]) {
        return;
    }
    let length_of = |byte: &u8| escape_of(*byte).map_or(1, |(_, length)| length);
    let needed: usize = out[start..].iter().map(length_of).sum();
    let mut from = out.len();
    let mut to = start + needed;
    out.resize(to, 0);
    while to > from {
        from -= 1;
        let byte = out[from];
        match escape_of(byte) {
            None => {
                to -= 1;
                out[to] = byte;
            }
            Some((escape, length)) => {
                to -= length;
                out[to..to + length].copy_from_slice(&escape[..length]);
            }
        }
    }
}

/// Appends bytes in base64, padded.
pub(super) fn encode_base64(out: &mut Vec<u8>, bytes: &[u8], engine: &impl base64::Engine) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = engine.encode_slice(bytes, &mut out[start..]).expect("room was made for it");
    out.truncate(start + written);
}

/// Appends in base64 what `compose` appends as it is: composed behind the room that its base64 form needs, then taken off.
pub(super) fn base64_in_place(
    out: &mut Vec<u8>,
    engine: &impl base64::Engine,
    compose: impl FnOnce(&mut Vec<u8>) -> Result<(), ValueError>,
) -> Result<(), ValueError> {
    let start = out.len();
    compose(out)?;
    let raw_length = out.len() - start;
    let length = raw_length.div_ceil(3) * 4;
    out.resize(start + length + raw_length, 0);
    out.copy_within(start..start + raw_length, start + length);
    let (encoded, raw) = out[start..].split_at_mut(length);
    let written = engine.encode_slice(&*raw, encoded).expect("four places for every three bytes");
    out.truncate(start + written);
    Ok(())
}

/// A floating-point number as Java's `Double.toString` prints it: `1.0`, `0.001`, `1.0E7`. The shortest digits that are read
/// back as the same number are the same everywhere; the form tells a consumer that the number is no integer.
fn java_number(out: &mut Vec<u8>, shortest: &impl std::fmt::LowerExp) {
    let mut scientific = [0_u8; 32];
    let mut rest = &mut scientific[..];
    write!(rest, "{shortest:e}").expect("17 digits, two signs, a point, an e and three digits fit");
    let length = 32 - rest.len();
    let text = &scientific[..length];
    let e = text.iter().position(|byte| *byte == b'e').unwrap_or(length);
    let exponent: i32 =
        std::str::from_utf8(&text[(e + 1).min(length)..]).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let (is_negative, mantissa) = match text[..e].strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, &text[..e]),
    };
    let (first, fraction) = mantissa.split_at(1);
    let fraction = fraction.strip_prefix(b".").unwrap_or(fraction);
    if is_negative {
        out.push(b'-');
    }
    match exponent {
        0..7 => {
            let whole = (exponent.unsigned_abs() as usize).min(fraction.len());
            out.extend_from_slice(first);
            out.extend_from_slice(&fraction[..whole]);
            out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - whole));
            out.push(b'.');
            out.extend_from_slice(&fraction[whole..]);
            if fraction.len() == whole {
                out.push(b'0');
            }
        }
        -3..0 => {
            out.extend_from_slice(b"0.");
            out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - 1));
            out.extend_from_slice(first);
            out.extend_from_slice(fraction);
        }
        _ => {
            out.extend_from_slice(first);
            out.push(b'.');
            out.extend_from_slice(if fraction.is_empty() { b"0" } else { fraction });
            out.push(b'E');
            out.extend_from_slice(&text[e + 1..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn json(write: impl FnOnce(&mut Json<'_, false>)) -> String {
        let mut out = Vec::new();
        write(&mut Json { out: &mut out });
        String::from_utf8(out).expect("JSON is UTF-8")
    }

    #[test]
    fn numbers_are_printed_as_java_prints_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (3.0, "3.0"),
            (4.44, "4.44"),
            (-1_234.5, "-1234.5"),
            (9_999_999.0, "9999999.0"),
            (1e7, "1.0E7"),
            (12_345_678.9, "1.23456789E7"),
            (0.001, "0.001"),
            (0.000_999, "9.99E-4"),
            (-1.5e-10, "-1.5E-10"),
            (f64::MAX, "1.7976931348623157E308"),
            (f64::NAN, "\"NaN\""),
            (f64::INFINITY, "\"Infinity\""),
            (f64::NEG_INFINITY, "\"-Infinity\""),
        ] {
            assert_eq!(json(|out| out.double(value)), text);
        }
        assert_eq!(json(|out| out.float(3.3)), "3.3");
        assert_eq!(json(|out| out.float(f32::MIN_POSITIVE)), "1.1754944E-38");
    }

    #[test]
    fn text_is_escaped_the_same_on_both_ways() {
        let text = "a\"b\\c\n\r\t\u{8}\u{c}\u{1}\u{1f}/ü😀\u{7f}";
        let expected = "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001F/ü😀\u{7f}\"";
        assert_eq!(json(|out| out.text(text.as_bytes())), expected);
        let composed = json(|out| {
            out.composed_text(|buffer| {
                buffer.extend_from_slice(text.as_bytes());
                Ok(())
            })
            .expect("nothing fails");
        });
        assert_eq!(composed, expected);
        assert_eq!(serde_json::from_str::<String>(expected).expect("JSON"), text);
    }

    #[test]
    fn bytes_are_base64_the_same_on_both_ways() {
        for length in 0..70_u8 {
            let bytes: Vec<u8> = (0..length).collect();
            let composed = json(|out| {
                out.composed_bytes(|buffer| {
                    buffer.extend_from_slice(&bytes);
                    Ok(())
                })
                .expect("nothing fails");
            });
            assert_eq!(composed, json(|out| out.bytes(&bytes)));
            assert_eq!(composed, format!("\"{}\"", STANDARD.encode(&bytes)));
        }
    }
}
