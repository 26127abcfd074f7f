//! Which names a piece of SQL may read as columns: a scanner over Postgres's lexical rules, not a parser.
//!
//! Strings, comments and dollar quotes are skipped; function names, types behind `::` or AS, and parts of qualified names
//! are left out. A name too many costs a column that is carried without need; a name too few cannot happen but for
//! `SELECT *`, and then the sink refuses the statement when it prepares it.

use std::ops::Range;

/// A name that may be a column.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Word {
    /// As Postgres sees it: a bare name is folded to lower case.
    pub name: String,
    pub quoted: bool,
    pub span: Range<usize>,
}

/// Why the text cannot be one expression.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SqlError {
    #[error("it is empty")]
    Empty,
    #[error("a quote or comment is not closed")]
    Unclosed(usize),
    #[error("a parenthesis is not closed")]
    OpenParenthesis(usize),
    #[error("a parenthesis was never opened")]
    CloseParenthesis(usize),
    #[error("a semicolon stands in it")]
    Semicolon(usize),
    #[error("a parameter stands in it")]
    Parameter(usize),
}

#[derive(PartialEq, Eq)]
enum Token<'a> {
    Name(Word),
    Symbol(&'a str),
    /// A string or number: something that is neither.
    Constant,
}

/// The names that `text` may read, in its order, each as often as it stands there.
pub(super) fn names(text: &str) -> Result<Vec<Word>, SqlError> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Err(SqlError::Empty);
    }
    let mut names = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let Token::Name(word) = token else { continue };
        let before = index.checked_sub(1).and_then(|index| tokens.get(index));
        let after = tokens.get(index + 1);
        let behind_as = matches!(before, Some(Token::Name(word)) if !word.quoted && word.name == "as");
        let is_part = matches!(before, Some(Token::Symbol("." | "::"))) || matches!(after, Some(Token::Symbol(".")));
        let is_function = matches!(after, Some(Token::Symbol("(")));
        let is_keyword = !word.quoted && is_listed(RESERVED, &word.name);
        let is_of_row = is_part && is_behind_row(tokens.get(..index).unwrap_or_default());
        if is_of_row && !is_function || !(behind_as || is_part || is_function || is_keyword) {
            names.push(word.clone());
        }
    }
    Ok(names)
}

/// What the row is called in the statements of a sink of Postgres: an expression may say so.
pub(super) const ROW: &str = "s";

/// What precedes is the row's name and a dot.
fn is_behind_row(tokens: &[Token<'_>]) -> bool {
    let [before @ .., Token::Name(row), Token::Symbol(".")] = tokens else { return false };
    row.name == ROW && !matches!(before.last(), Some(Token::Symbol("." | "::")))
}

fn tokens(text: &str) -> Result<Vec<Token<'_>>, SqlError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut open = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &bytes[at..];
        let start = at;
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' | 0x0b | 0x0c => at += 1,
            _ if rest.starts_with(b"--") => {
                at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
            }
            _ if rest.starts_with(b"/*") => at = comment_end(bytes, at).ok_or(SqlError::Unclosed(start))?,
            b'\'' => {
                let prefix = constant_prefix(&tokens, text, at);
                if prefix.is_some() {
                    tokens.pop();
                }
                let escapes = matches!(prefix, Some("e" | "E"));
                at = quote_end(bytes, at, b'\'', escapes).ok_or(SqlError::Unclosed(start))?;
                tokens.push(Token::Constant);
            }
            b'"' => {
                at = quote_end(bytes, at, b'"', false).ok_or(SqlError::Unclosed(start))?;
                let name = text.get(start + 1..at - 1).unwrap_or_default().replace("\"\"", "\"");
                tokens.push(Token::Name(Word { name, quoted: true, span: start..at }));
            }
            b'$' if rest.get(1).is_some_and(u8::is_ascii_digit) => return Err(SqlError::Parameter(start)),
            b'$' => {
                at = dollar_end(text, at).ok_or(SqlError::Unclosed(start))?;
                tokens.push(Token::Constant);
            }
            b'0'..=b'9' => {
                at += rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'.').count();
                tokens.push(Token::Constant);
            }
            _ if is_name_byte(byte) => {
                at += rest.iter().take_while(|byte| is_name_byte(**byte) || matches!(byte, b'0'..=b'9' | b'$')).count();
                let name = text.get(start..at).unwrap_or_default().to_ascii_lowercase();
                tokens.push(Token::Name(Word { name, quoted: false, span: start..at }));
            }
            b';' => return Err(SqlError::Semicolon(start)),
            _ => {
                at += if rest.starts_with(b"::") { 2 } else { 1 };
                match byte {
                    b'(' => open.push(start),
                    b')' => drop(open.pop().ok_or(SqlError::CloseParenthesis(start))?),
                    _ => {}
                }
                // Not a name byte, hence ASCII: the slice falls between characters.
                tokens.push(Token::Symbol(text.get(start..at).unwrap_or_default()));
            }
        }
    }
    match open.pop() {
        Some(start) => Err(SqlError::OpenParenthesis(start)),
        None => Ok(tokens),
    }
}

/// Letters, `_`, and every byte of a character beyond ASCII, as in Postgres's scanner.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

/// The letter directly before a quote that makes it another kind of constant, as in `E'\n'`: no name.
fn constant_prefix<'a>(tokens: &[Token<'_>], text: &'a str, at: usize) -> Option<&'a str> {
    let Some(Token::Name(Word { quoted: false, span, .. })) = tokens.last() else { return None };
    let letter = text.get(span.clone())?;
    (span.end == at && matches!(letter, "e" | "E" | "b" | "B" | "x" | "X" | "n" | "N")).then_some(letter)
}

/// The byte after the closing quote; a doubled quote does not close.
fn quote_end(bytes: &[u8], start: usize, quote: u8, escapes: bool) -> Option<usize> {
    let mut at = start + 1;
    loop {
        match *bytes.get(at)? {
            b'\\' if escapes => at += 2,
            byte if byte == quote && bytes.get(at + 1) == Some(&quote) => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// The byte after the comment; Postgres's comments nest.
fn comment_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = start;
    loop {
        match bytes.get(at..at + 2)? {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

/// The byte after `$tag$ … $tag$`.
fn dollar_end(text: &str, start: usize) -> Option<usize> {
    let tag_length = text[start + 1..].find('$')? + 2;
    let tag = &text[start..start + tag_length];
    if !tag[1..tag_length - 1].bytes().all(|byte| is_name_byte(byte) || byte.is_ascii_digit()) {
        return None;
    }
    let body = start + tag_length;
    Some(body + text[body..].find(tag)? + tag_length)
}

/// Keywords that cannot name a column unless quoted (Postgres docs, "SQL Key Words", the reserved ones).
const RESERVED: &str = "\
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation \
    column concurrently constraint create cross current_catalog current_date current_role current_schema \
    current_time current_timestamp current_user default deferrable desc distinct do else end except false fetch for \
    foreign freeze from full grant group having ilike in initially inner intersect into is isnull join lateral \
    leading left like limit localtime localtimestamp natural not notnull null offset on only or order outer overlaps \
    placing primary references returning right select session_user similar some symmetric table tablesample then to \
    trailing true union unique user using variadic verbose when where window with";

/// Bare words that are common in expressions without being columns: a misspelt column is not looked for among them.
const COMMON: &str = "\
    at bigint boolean bytea century char character date day decade decimal double dow doy epoch escape float hour \
    int integer interval isodow json jsonb minute month numeric over partition precision quarter real second \
    smallint text time timestamp timestamptz uuid varchar week year zone between";

/// Is the bare word likely to be a keyword or a type?
pub(super) fn is_common(word: &str) -> bool {
    is_listed(COMMON, word)
}

/// A keyword that names no column unless it is quoted.
pub(super) fn is_reserved(word: &str) -> bool {
    is_listed(RESERVED, word)
}

fn is_listed(list: &str, word: &str) -> bool {
    list.split(' ').any(|listed| listed == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn found(text: &str) -> Vec<String> {
        names(text).expect("well formed").into_iter().map(|word| word.name).collect()
    }

    #[test]
    fn columns_are_found_and_nothing_else() {
        let cases: [(&str, &[&str]); 15] = [
            ("coalesce(is_demo_enroll, false)", &["is_demo_enroll"]),
            ("Title || ' by ' || \"Author\"", &["title", "Author"]),
            ("'title' || e'it\\'s title' || E'\\\\' || x'ff'", &[]),
            ("$$title$$ || $x$ title $$ $x$ || a", &["a"]),
            ("a -- title\n + b /* c /* d */ e */ + f", &["a", "b", "f"]),
            ("a::title + cast(b as text)", &["a", "b"]),
            ("t.title + (t).u", &["t"]),
            ("left(s.title, 3) || s.\"Author\" || s.f(a) || x.s.b", &["title", "Author", "a"]),
            ("case when a then 1 else b end", &["a", "b"]),
            ("\"we\"\"ird\"", &["we\"ird"]),
            ("\"select\"", &["select"]),
            ("größe > 1e5", &["größe"]),
            ("a1$b=2", &["a1$b"]),
            ("payload->>'x'", &["payload"]),
            ("1.5+a", &["a"]),
        ];
        for (text, expected) in cases {
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_one_expression_is_an_error() {
        let cases = [
            ("", SqlError::Empty),
            (" -- x", SqlError::Empty),
            ("'a", SqlError::Unclosed(0)),
            ("a + \"b", SqlError::Unclosed(4)),
            ("/* /* */", SqlError::Unclosed(0)),
            ("$a$ x $b$", SqlError::Unclosed(0)),
            ("(a", SqlError::OpenParenthesis(0)),
            ("a) from x", SqlError::CloseParenthesis(1)),
            ("a; drop", SqlError::Semicolon(1)),
            ("$1", SqlError::Parameter(0)),
        ];
        for (text, expected) in cases {
            assert_eq!(names(text), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "[a-zé'\"$/*()\\-;:.\\\\0-9 \n]*", any: String) {
            let _ = (names(&text), names(&any));
        }
    }
}
