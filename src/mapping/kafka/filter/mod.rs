//! `where` of a `[topic]`: a small part of SQL that the daemon decides itself, row by row.
//!
//! ```text
//! text ─▶ lex: words, numbers, strings, symbols ─▶ parse: Condition, with places ─▶ bind: against a table, to a `Filter`
//! ```
//!
//! ```text
//! condition  = conjunction { OR conjunction }
//! conjunction = negation { AND negation }
//! negation   = NOT negation | predicate [ IS [NOT] (NULL | TRUE | FALSE | UNKNOWN) ]
//! predicate  = ( condition ) | column | column op constant | constant op column
//!            | column [NOT] IN ( constant, … ) | column [NOT] BETWEEN constant AND constant
//! op         = "=" | "<>" | "!=" | "<" | "<=" | ">" | ">="
//! constant   = number | 'string' | TRUE | FALSE
//! ```
//!
//! What it means, NULL included, is what it means in Postgres.

mod bind;
mod lex;
mod parse;
mod section;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(in crate::mapping) use bind::{Rows, rows};
pub(super) use parse::parse;
pub(super) use section::{WhereMapping, conditions};

use crate::value::filter::{Literal, Operator};

/// Said wherever something else stands.
pub(super) const SUBSET: &str = "\"where\" of a topic takes `column op constant` with = <> < <= > >=, [NOT] IN (…), \
    [NOT] BETWEEN … AND …, IS [NOT] NULL, TRUE or FALSE, and AND, OR, NOT and parentheses around these.";

/// A part of the text, with its place there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Placed<T> {
    pub value: T,
    pub span: Range<usize>,
}

/// Why the text is no condition that is understood here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct FilterError {
    pub message: String,
    pub span: Range<usize>,
}

impl FilterError {
    fn new(span: Range<usize>, message: impl Into<String>) -> FilterError {
        FilterError { message: message.into(), span }
    }
}

/// A condition as it was written, names not looked up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Is {
        condition: Box<Condition>,
        truth: Option<bool>,
    },
    IsNull(Placed<String>),
    /// A column by itself.
    Holds(Placed<String>),
    Compare {
        column: Placed<String>,
        operator: Placed<Operator>,
        constant: Placed<Literal>,
    },
    OneOf {
        column: Placed<String>,
        constants: Vec<Placed<Literal>>,
    },
}
