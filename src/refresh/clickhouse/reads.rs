//! Which tables a query names, from the text that ClickHouse keeps: there every table stands with its database.
//!
//! Names are `database.table`, so every such pair is taken; a pair that is a column of an alias is no table that exists, and
//! drops out where the names are looked up. What a function reads by a name in a string, as `dictGet`, is not seen.

use crate::catalog::TableName;

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Name(String),
    Dot,
    Other,
}

/// Every `a.b` of a query.
pub(super) fn tables(query: &str) -> Vec<TableName> {
    let tokens = tokens(query);
    let pair = |window: &[Token]| match window {
        [Token::Name(database), Token::Dot, Token::Name(table)] => Some(TableName::new(database, table)),
        _ => None,
    };
    tokens.windows(3).filter_map(pair).collect()
}

/// The table that a materialized view fills: `CREATE MATERIALIZED VIEW d.v [REFRESH …] TO d.t (…) AS …`.
pub(super) fn filled_table(create: &str) -> Option<TableName> {
    let tokens = tokens(create.strip_prefix("CREATE MATERIALIZED VIEW ")?);
    let is = |token: &Token, word: &str| matches!(token, Token::Name(name) if name == word);
    for window in tokens.windows(4) {
        // The columns, or the query.
        if window[0] == Token::Other || is(&window[0], "AS") {
            return None;
        }
        if let [to, Token::Name(database), Token::Dot, Token::Name(table)] = window
            && is(to, "TO")
        {
            return Some(TableName::new(database, table));
        }
    }
    None
}

fn tokens(sql: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = sql.chars().peekable();
    while let Some(c) = rest.next() {
        let token = match c {
            '`' | '"' => Token::Name(quoted(&mut rest, c)),
            '\'' => {
                quoted(&mut rest, c);
                Token::Other
            }
            '.' => Token::Dot,
            c if c.is_alphabetic() || c == '_' => {
                let mut name = String::from(c);
                while let Some(next) = rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(next);
                }
                Token::Name(name)
            }
            // The number of `EVERY 1 YEAR`.
            c if c.is_whitespace() || c.is_ascii_digit() => continue,
            _ => Token::Other,
        };
        tokens.push(token);
    }
    tokens
}

/// What stands up to the closing quote, escapes undone.
fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char) -> String {
    let mut name = String::new();
    while let Some(c) = rest.next() {
        match c {
            '\\' => name.extend(rest.next()),
            c if c == quote && rest.next_if_eq(&quote).is_none() => break,
            c => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_found_in_every_place_of_a_query() {
        let cases: &[(&str, &[&str])] = &[
            ("SELECT id, v FROM dwh.t FINAL WHERE _deleted = 0", &["dwh.t"]),
            ("WITH x AS (SELECT * FROM dwh.tt) SELECT x.n FROM x", &["dwh.tt", "x.n"]),
            ("SELECT 'dwh.a', 'it\\'s dwh.b', 1.5 FROM `d w`.`t``1`", &["d w.t`1"]),
            ("SELECT 1 FROM d.a AS a INNER JOIN d.b AS b ON a.id = b.id", &["d.a", "d.b", "a.id", "b.id"]),
            ("SELECT 1 FROM numbers(10)", &[]),
        ];
        for (query, expected) in cases {
            let found: Vec<String> =
                tables(query).iter().map(|table| format!("{}.{}", table.schema, table.name)).collect();
            assert_eq!(found, *expected, "{query}");
        }
    }

    #[test]
    fn filled_table_is_found_in_the_head_only() {
        let cases = [
            ("CREATE MATERIALIZED VIEW d.v REFRESH EVERY 1 YEAR TO d.t (`n` UInt64) AS SELECT 1", Some("t")),
            ("CREATE MATERIALIZED VIEW d.v TO d.`t` AS SELECT 1", Some("t")),
            ("CREATE MATERIALIZED VIEW d.v (`TO` UInt64) ENGINE = MergeTree AS SELECT 1 AS TO FROM d.x", None),
            ("CREATE MATERIALIZED VIEW d.v REFRESH EVERY 1 YEAR AS SELECT n AS TO, d.x FROM d.t", None),
            ("CREATE TABLE d.t (`n` UInt64)", None),
        ];
        for (create, expected) in cases {
            assert_eq!(filled_table(create), expected.map(|name| TableName::new("d", name)), "{create}");
        }
    }
}
