//! The words of a condition, by Postgres's lexical rules as far as they go here.

use std::ops::Range;

use super::FilterError;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// Folded to lower case unless it stood in double quotes.
    Name {
        name: String,
        quoted: bool,
    },
    Number(String),
    String(String),
    Symbol(&'static str),
}

/// The longer ones first.
const SYMBOLS: [&str; 13] = ["<>", "!=", "<=", ">=", "::", "=", "<", ">", "(", ")", ",", "+", "-"];

/// The tokens with their places.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token, Range<usize>)>, FilterError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.as_bytes().get(at) {
        let (start, rest) = (at, &text[at..]);
        let token = match byte {
            b' ' | b'\t' | b'\r' | b'\n' => {
                at += 1;
                continue;
            }
            b'\'' | b'"' => {
                let quote = char::from(byte);
                let Some((inside, length)) = quoted(rest, quote) else {
                    return Err(FilterError::new(start..text.len(), "the quote is not closed"));
                };
                at += length;
                match quote {
                    '\'' => Token::String(inside),
                    _ => Token::Name { name: inside, quoted: true },
                }
            }
            _ if starts_number(rest) => {
                at += number_length(rest);
                Token::Number(text[start..at].to_owned())
            }
            _ if is_name_byte(byte) => {
                at += rest.bytes().take_while(|byte| is_name_byte(*byte) || matches!(byte, b'0'..=b'9' | b'$')).count();
                Token::Name { name: text[start..at].to_ascii_lowercase(), quoted: false }
            }
            _ => {
                let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) else {
                    // Not a name byte, hence ASCII: it is one character.
                    return Err(FilterError::new(start..start + 1, "this is not understood here"));
                };
                at += symbol.len();
                Token::Symbol(symbol)
            }
        };
        tokens.push((token, start..at));
    }
    Ok(tokens)
}

/// Letters, `_`, and every byte of a character beyond ASCII, as in Postgres's scanner.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn starts_number(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    is_digit(0) || (bytes.first() == Some(&b'.') && is_digit(1))
}

/// Digits, a point, an exponent; and letters right behind, with which it is none.
fn number_length(text: &str) -> usize {
    let mut before = b' ';
    let takes = |byte: &u8| {
        let is_sign = matches!(byte, b'+' | b'-') && matches!(before, b'e' | b'E');
        before = *byte;
        is_sign || byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_')
    };
    text.as_bytes().iter().copied().take_while(takes).count()
}

/// What stands in quotes, of which a doubled one is one, and how long it is with them.
fn quoted(text: &str, quote: char) -> Option<(String, usize)> {
    let mut inside = String::new();
    let mut chars = text.char_indices().skip(1).peekable();
    while let Some((at, char)) = chars.next() {
        if char != quote {
            inside.push(char);
        } else if chars.next_if(|(_, next)| *next == quote).is_some() {
            inside.push(quote);
        } else {
            return Some((inside, at + 1));
        }
    }
    None
}
