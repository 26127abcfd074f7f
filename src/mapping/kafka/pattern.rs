//! Names with wildcards: `*` for any characters, `?` for one.

use serde::Serialize;

/// A name in which `*` and `?` stand for others.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: &str) -> Self {
        Pattern(text.to_owned())
    }

    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }

    /// It names one thing only.
    pub fn is_plain(&self) -> bool {
        !self.0.contains(['*', '?'])
    }
}

/// Goes back to the last `*` at every mismatch: its earlier ones need no second look. Both are UTF-8, so what stands for any
/// character is always at the begin of one.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, place));
                at += 1;
            }
            Some(b'?') => {
                at += 1;
                place += char_length(name[place]);
            }
            Some(byte) if *byte == name[place] => {
                at += 1;
                place += 1;
            }
            _ => {
                let Some((before, taken)) = star else { return false };
                (at, place) = (before + 1, taken + char_length(name[taken]));
                star = Some((before, place));
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// How many bytes a character of UTF-8 has that begins with this one.
fn char_length(first: u8) -> usize {
    match first {
        0xF0.. => 4,
        0xE0.. => 3,
        0xC0.. => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stand_for_what_they_should() {
        for (pattern, name, expected) in [
            ("public.*", "public.course", true),
            ("public.*", "other.course", false),
            ("*", "", true),
            ("*.log_?", "a.log_1", true),
            ("*.log_?", "a.log_12", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("public.course", "public.course", true),
            ("public.course", "public.courses", false),
            ("**", "x", true),
            ("?", "", false),
            ("public.caf?", "public.café", true),
            ("public.caf??", "public.café", false),
            ("*é?", "öéü", true),
            ("*é", "öéü", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(name), expected, "{pattern} and {name}");
        }
    }
}
