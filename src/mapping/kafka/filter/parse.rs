//! A condition's text into its tree, by recursive descent. Precedence is Postgres's: NOT binds less than a comparison, and IS
//! less than a comparison too.

use std::ops::Range;

use super::lex::{Token, tokens};
use super::{Condition, FilterError, Placed};
use crate::mapping::sql::is_reserved;
use crate::value::filter::{Literal, Operator};

/// Parentheses and NOTs inside each other. Postgres takes more, and nobody writes as many.
const DEPTH_MAX: usize = 50;

/// Reads the whole text.
///
/// # Errors
/// The first place at which it is no condition that is understood here.
pub(in crate::mapping::kafka) fn parse(text: &str) -> Result<Condition, FilterError> {
    let tokens = tokens(text)?;
    if tokens.is_empty() {
        return Err(FilterError::new(0..text.len(), "it is empty"));
    }
    let mut parser = Parser { tokens: &tokens, at: 0, depth: 0 };
    let condition = parser.condition()?;
    if parser.at < tokens.len() {
        return Err(parser.unexpected("AND, OR or the end"));
    }
    Ok(condition)
}

struct Parser<'t> {
    tokens: &'t [(Token, Range<usize>)],
    at: usize,
    depth: usize,
}

/// What a comparison has at its sides.
enum Operand {
    Column(Placed<String>),
    Constant(Placed<Literal>),
    Condition(Condition),
}

impl<'t> Parser<'t> {
    fn condition(&mut self) -> Result<Condition, FilterError> {
        let mut parts = vec![self.conjunction()?];
        while self.takes_word("or") {
            parts.push(self.conjunction()?);
        }
        Ok(one_or(parts, Condition::Any))
    }

    fn conjunction(&mut self) -> Result<Condition, FilterError> {
        let mut parts = vec![self.negation()?];
        while self.takes_word("and") {
            parts.push(self.negation()?);
        }
        Ok(one_or(parts, Condition::All))
    }

    fn negation(&mut self) -> Result<Condition, FilterError> {
        if !self.takes_word("not") {
            return self.truth();
        }
        self.deeper()?;
        let negated = self.negation()?;
        self.depth -= 1;
        Ok(Condition::Not(Box::new(negated)))
    }

    /// A predicate, and what IS says of it.
    fn truth(&mut self) -> Result<Condition, FilterError> {
        let operand = self.predicate()?;
        if !self.takes_word("is") {
            return self.alone(operand);
        }
        let negated = self.takes_word("not");
        let word = self.word().ok_or_else(|| self.unexpected("NULL, TRUE or FALSE"))?;
        let condition = match (word, operand) {
            ("null", Operand::Column(column)) => Condition::IsNull(column),
            ("null" | "unknown", operand) => self.is(operand, None)?,
            ("true", operand) => self.is(operand, Some(true))?,
            ("false", operand) => self.is(operand, Some(false))?,
            _ => return Err(self.unexpected("NULL, TRUE or FALSE")),
        };
        self.at += 1;
        Ok(if negated { Condition::Not(Box::new(condition)) } else { condition })
    }

    fn is(&self, operand: Operand, truth: Option<bool>) -> Result<Condition, FilterError> {
        Ok(Condition::Is { condition: Box::new(self.alone(operand)?), truth })
    }

    /// What stands by itself has to be true or false.
    fn alone(&self, operand: Operand) -> Result<Condition, FilterError> {
        match operand {
            Operand::Condition(condition) => Ok(condition),
            Operand::Column(column) => Ok(Condition::Holds(column)),
            Operand::Constant(constant) => Err(FilterError::new(constant.span, "a constant is no condition by itself")),
        }
    }

    fn predicate(&mut self) -> Result<Operand, FilterError> {
        let left = self.operand()?;
        if let Some(operator) = self.operator() {
            let right = self.operand()?;
            return self.comparison(left, operator, right).map(Operand::Condition);
        }
        let starts = self.at;
        let negated = self.takes_word("not");
        let is_in = self.takes_word("in");
        if !is_in && !self.takes_word("between") {
            self.at = starts;
            return Ok(left);
        }
        let column = match left {
            Operand::Column(column) => column,
            Operand::Constant(constant) => return Err(FilterError::new(constant.span, "a column has to stand here")),
            Operand::Condition(_) => {
                return Err(FilterError::new(self.span_before(starts), "a column has to stand here"));
            }
        };
        let condition = if is_in { self.list(column)? } else { self.range(column)? };
        Ok(Operand::Condition(if negated { Condition::Not(Box::new(condition)) } else { condition }))
    }

    fn comparison(&self, left: Operand, operator: Placed<Operator>, right: Operand) -> Result<Condition, FilterError> {
        match (left, right) {
            (Operand::Column(column), Operand::Constant(constant)) => {
                Ok(Condition::Compare { column, operator, constant })
            }
            (Operand::Constant(constant), Operand::Column(column)) => {
                let operator = Placed { value: operator.value.flipped(), span: operator.span };
                Ok(Condition::Compare { column, operator, constant })
            }
            (Operand::Column(_), Operand::Column(column)) => {
                Err(FilterError::new(column.span, "a column is compared with a constant, not with a column"))
            }
            _ => Err(FilterError::new(operator.span, "a column is compared with a constant")),
        }
    }

    /// `(constant, …)`.
    fn list(&mut self, column: Placed<String>) -> Result<Condition, FilterError> {
        self.symbol("(")?;
        let mut constants = vec![self.constant()?];
        while self.takes_symbol(",") {
            constants.push(self.constant()?);
        }
        self.symbol(")")?;
        Ok(Condition::OneOf { column, constants })
    }

    /// `constant AND constant`.
    fn range(&mut self, column: Placed<String>) -> Result<Condition, FilterError> {
        let low = self.constant()?;
        if !self.takes_word("and") {
            return Err(self.unexpected("AND"));
        }
        let high = self.constant()?;
        let compare = |value, constant: Placed<Literal>| {
            let operator = Placed { value, span: constant.span.clone() };
            Condition::Compare { column: column.clone(), operator, constant }
        };
        let ends = vec![compare(Operator::GreaterOrEqual, low), compare(Operator::LessOrEqual, high)];
        Ok(Condition::All(ends))
    }

    fn operand(&mut self) -> Result<Operand, FilterError> {
        if !self.takes_symbol("(") {
            return match self.literal()? {
                Some(constant) => Ok(Operand::Constant(constant)),
                None => self.column().map(Operand::Column),
            };
        }
        self.deeper()?;
        let inside = self.condition()?;
        self.depth -= 1;
        self.symbol(")")?;
        Ok(match inside {
            Condition::Holds(column) => Operand::Column(column),
            condition => Operand::Condition(condition),
        })
    }

    fn column(&mut self) -> Result<Placed<String>, FilterError> {
        let Some((Token::Name { name, quoted }, span)) = self.tokens.get(self.at) else {
            return Err(self.unexpected("a column"));
        };
        if !quoted && is_reserved(name) {
            return Err(self.unexpected("a column"));
        }
        self.at += 1;
        if self.takes_symbol("(") {
            return Err(FilterError::new(span.clone(), "functions are not called here"));
        }
        Ok(Placed { value: name.clone(), span: span.clone() })
    }

    fn constant(&mut self) -> Result<Placed<Literal>, FilterError> {
        self.literal()?.ok_or_else(|| self.unexpected("a constant"))
    }

    /// `None` where something else stands.
    fn literal(&mut self) -> Result<Option<Placed<Literal>>, FilterError> {
        let start = self.at;
        let sign = match self.tokens.get(start) {
            Some((Token::Symbol("-"), _)) => "-",
            Some((Token::Symbol("+"), _)) => "+",
            _ => "",
        };
        self.at += usize::from(!sign.is_empty());
        let Some((token, span)) = self.tokens.get(self.at) else {
            return if sign.is_empty() { Ok(None) } else { Err(self.unexpected("a number")) };
        };
        let value = match token {
            Token::Number(number) => Literal::Number(format!("{}{number}", sign.trim_start_matches('+'))),
            _ if !sign.is_empty() => return Err(self.unexpected("a number")),
            Token::String(string) => Literal::String(string.clone()),
            Token::Name { name, quoted: false } if name == "true" => Literal::Boolean(true),
            Token::Name { name, quoted: false } if name == "false" => Literal::Boolean(false),
            Token::Name { name, quoted: false } if name == "null" => {
                let message = "nothing equals NULL: write IS NULL or IS NOT NULL";
                return Err(FilterError::new(span.clone(), message));
            }
            Token::Name { .. } | Token::Symbol(_) => return Ok(None),
        };
        self.at += 1;
        let start = self.tokens.get(start).map_or(span.start, |(_, first)| first.start);
        Ok(Some(Placed { value, span: start..span.end }))
    }

    fn operator(&mut self) -> Option<Placed<Operator>> {
        let Some((Token::Symbol(symbol), span)) = self.tokens.get(self.at) else { return None };
        let value = match *symbol {
            "=" => Operator::Equal,
            "<>" | "!=" => Operator::NotEqual,
            "<" => Operator::Less,
            "<=" => Operator::LessOrEqual,
            ">" => Operator::Greater,
            ">=" => Operator::GreaterOrEqual,
            _ => return None,
        };
        self.at += 1;
        Some(Placed { value, span: span.clone() })
    }

    /// A bare word that comes next.
    fn word(&self) -> Option<&'t str> {
        match self.tokens.get(self.at) {
            Some((Token::Name { name, quoted: false }, _)) => Some(name),
            _ => None,
        }
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let is_next = self.word() == Some(word);
        self.at += usize::from(is_next);
        is_next
    }

    fn takes_symbol(&mut self, symbol: &str) -> bool {
        let is_next = matches!(self.tokens.get(self.at), Some((Token::Symbol(next), _)) if *next == symbol);
        self.at += usize::from(is_next);
        is_next
    }

    fn symbol(&mut self, symbol: &str) -> Result<(), FilterError> {
        if self.takes_symbol(symbol) { Ok(()) } else { Err(self.unexpected(&format!("\"{symbol}\""))) }
    }

    fn deeper(&mut self) -> Result<(), FilterError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            let message = format!("more than {DEPTH_MAX} parentheses and NOTs stand inside each other");
            return Err(FilterError::new(self.span_before(self.at), message));
        }
        Ok(())
    }

    fn span_before(&self, at: usize) -> Range<usize> {
        at.checked_sub(1).and_then(|at| self.tokens.get(at)).map_or(0..0, |(_, span)| span.clone())
    }

    fn unexpected(&self, wanted: &str) -> FilterError {
        match self.tokens.get(self.at) {
            Some((_, span)) => FilterError::new(span.clone(), format!("{wanted} has to stand here")),
            None => FilterError::new(self.span_before(self.at), format!("it ends where {wanted} has to stand")),
        }
    }
}

fn one_or(mut parts: Vec<Condition>, many: fn(Vec<Condition>) -> Condition) -> Condition {
    match parts.pop() {
        Some(only) if parts.is_empty() => only,
        Some(last) => {
            parts.push(last);
            many(parts)
        }
        None => many(parts),
    }
}
