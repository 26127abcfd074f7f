//! Blanks what may be a secret in a file's text, so that a finding may draw any of its lines. Works on the text, not on
//! the parsed tree: a file with a syntax error is drawn too. Byte positions stay, so that spans stay true.

/// Keys whose values are blanked: in the file, and in an address's `key=value` form. Misspelt ones too, as their lines
/// are the ones that get drawn.
const SECRET_KEYS: [&str; 3] = ["password", "mask_salt", "passphrase"];

/// The text with each byte of a secret replaced by `*`. Errs on the side of blanking too much.
pub(super) fn redact(text: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    let lower = text.to_ascii_lowercase();
    for (start, _) in lower.match_indices("://") {
        let from = start + 3;
        let line = &text[from..line_end(text, from)];
        // The last "@" of the line: a password may hold one, and blanking past its end does no harm.
        if let (Some(colon), Some(at)) = (line.find(':'), line.rfind('@')) {
            blank(&mut bytes, from + colon + 1, from + at);
        }
    }
    for (equals, _) in lower.match_indices('=') {
        let key = lower[..equals].trim_end_matches(['"', '\'', ' ', '\t']);
        let start = key
            .rfind(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'))
            .map_or(0, |end| end + key[end..].chars().next().map_or(0, char::len_utf8));
        if is_secret(&key[start..])
            && let Some((from, to)) = value_after(text, equals + 1)
        {
            blank(&mut bytes, from, to);
        }
    }
    String::from_utf8(bytes).expect("whole characters were replaced by ASCII")
}

fn is_secret(key: &str) -> bool {
    SECRET_KEYS.iter().any(|secret| strsim::damerau_levenshtein(key, secret) <= 2)
        || (["pass", "pwd", "secret"].iter().any(|part| key.contains(part)) && !key.ends_with("_file"))
}

fn blank(bytes: &mut [u8], from: usize, to: usize) {
    if let Some(secret) = bytes.get_mut(from..to) {
        secret.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b'*');
    }
}

fn line_end(text: &str, from: usize) -> usize {
    text[from..].find('\n').map_or(text.len(), |length| from + length)
}

/// Where the value stands that begins after the `=` before `from`.
fn value_after(text: &str, from: usize) -> Option<(usize, usize)> {
    let after_equals = text[from..].trim_start_matches([' ', '\t']);
    let start = text.len() - after_equals.len();
    for triple in ["\"\"\"", "'''"] {
        if let Some(inner) = after_equals.strip_prefix(triple) {
            let length = inner.find(triple).unwrap_or(inner.len());
            return Some((start + 3, start + 3 + length));
        }
    }
    // A list or table is no secret, but was meant to be one.
    if let Some(close) =
        [('[', ']'), ('{', '}')].iter().find_map(|(open, close)| after_equals.starts_with(*open).then_some(*close))
    {
        return Some((start, start + after_equals.find(close).unwrap_or(after_equals.len())));
    }
    let line = &text[start..line_end(text, start)];
    let end = match line.chars().next() {
        Some(quote @ ('"' | '\'')) => closing_quote(line, quote).map_or(line.len(), |end| end),
        Some(_) => line.find(['"', ' ', ',', '}', '&']).unwrap_or(line.len()),
        None => return None,
    };
    let quoted = usize::from(line.starts_with(['"', '\'']));
    Some((start + quoted, start + end.max(quoted)))
}

/// The byte of the quote that closes the one at the line's start.
fn closing_quote(line: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (byte, letter) in line.char_indices().skip(1) {
        if escaped {
            escaped = false;
        } else if letter == '\\' && quote == '"' {
            escaped = true;
        } else if letter == quote {
            return Some(byte);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_are_blanked_and_nothing_moves() {
        let cases = [
            ("url = \"postgres://u:s3cret@h/d\"", "url = \"postgres://u:******@h/d\""),
            ("url = \"postgres://u@h/d\"", "url = \"postgres://u@h/d\""),
            ("url = \"postgres://u@h/d?password=s3cret&x=1\"", "url = \"postgres://u@h/d?password=******&x=1\""),
            ("password = \"s3\\\"ret\" # x", "password = \"*******\" # x"),
            ("password=\"s3cret\nslot = 1", "password=\"******\nslot = 1"),
            ("password = '''s3\ncret''' ", "password = '''**\n****''' "),
            ("pasword = 's3cret'", "pasword = '******'"),
            ("DB_PASS=\"s3cret\"", "DB_PASS=\"******\""),
            ("password = [\n's3cret'] # x", "password = *\n********] # x"),
            ("password_file = \"pw\"", "password_file = \"pw\""),
            ("\"mask_salt\" = 's3cret'", "\"mask_salt\" = '******'"),
            ("a = { password = \"é\", slot = \"x\" }", "a = { password = \"**\", slot = \"x\" }"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected);
        }
    }

    proptest! {
        #[test]
        fn length_stays(text in "(password|mask_salt|pasword|é|://|[=:@\"'é\n\\\\ a])*") {
            prop_assert_eq!(redact(&text).len(), text.len());
        }
    }
}
