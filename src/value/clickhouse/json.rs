//! What stands at a place in a JSON document, as Postgres's `#>>` answers: strings without quotes, everything else as it is
//! written, digit by digit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::rowbinary::ValueError;

/// The value at a path; `None` for `null` and for what is not there.
///
/// # Errors
/// The document, or the string at the path, is none that Postgres would show as text.
pub fn find<'a>(document: &'a [u8], path: &[String]) -> Result<Option<Cow<'a, str>>, ValueError> {
    let malformed = |_: serde_json::Error| ValueError::Malformed;
    let mut value: &'a RawValue = serde_json::from_slice(document).map_err(malformed)?;
    for part in path {
        let found = match value.get().as_bytes().first() {
            // Of a key that stands twice the last counts.
            Some(b'{') => {
                let fields: BTreeMap<Cow<'a, str>, &'a RawValue> =
                    serde_json::from_str(value.get()).map_err(malformed)?;
                fields.get(part.as_str()).copied()
            }
            Some(b'[') => {
                let items: Vec<&'a RawValue> = serde_json::from_str(value.get()).map_err(malformed)?;
                place(part, items.len()).and_then(|place| items.get(place).copied())
            }
            _ => None,
        };
        match found {
            Some(found) => value = found,
            None => return Ok(None),
        }
    }
    match value.get() {
        "null" => Ok(None),
        text if text.starts_with('"') => {
            serde_json::from_str::<String>(text).map(|text| Some(text.into())).map_err(malformed)
        }
        text => Ok(Some(Cow::Borrowed(text))),
    }
}

/// An element of an array, counted from 0, or from the end below that.
fn place(part: &str, length: usize) -> Option<usize> {
    let place: i64 = part.parse().ok()?;
    match usize::try_from(place) {
        Ok(place) => Some(place),
        Err(_) => length.checked_sub(usize::try_from(place.unsigned_abs()).ok()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_as_they_are_written() {
        let document = r#"{"a": 2.50, "b": {"c.d": [1, {"k": 0.12345678901234567890123}], "n": null}, "big": 1e400,
                           "s": "it's \"\u00e9\"", "a2": 1, "a2": 2, "long": 123456789012345678901234, "t": true}"#;
        let cases: [(&[&str], Option<&str>); 14] = [
            (&["a"], Some("2.50")),
            (&["b", "c.d", "1", "k"], Some("0.12345678901234567890123")),
            (&["b", "c.d", "-2"], Some("1")),
            (&["b", "c.d", "-3"], None),
            (&["b", "c.d", "7"], None),
            (&["b", "c.d", "x"], None),
            (&["b", "n"], None),
            (&["b", "c.d"], Some(r#"[1, {"k": 0.12345678901234567890123}]"#)),
            (&["big"], Some("1e400")),
            (&["s"], Some("it's \"é\"")),
            (&["a2"], Some("2")),
            (&["long"], Some("123456789012345678901234")),
            (&["t"], Some("true")),
            (&["a", "b"], None),
        ];
        for (path, expected) in cases {
            let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            assert_eq!(find(document.as_bytes(), &path).expect("a document").as_deref(), expected, "{path:?}");
        }
        assert_eq!(find(b"7", &[]), Ok(Some("7".into())));
        assert_eq!(find(b"{", &["a".to_owned()]), Err(ValueError::Malformed));
    }
}
