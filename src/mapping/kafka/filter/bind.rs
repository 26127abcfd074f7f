//! A condition against the table whose rows it decides about.

use std::ops::Range;

use super::super::TopicMapping;
use super::{Condition, Placed, SUBSET, WhereMapping};
use crate::catalog::{Column, ReplicaIdentity};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::draft::{Draft, DraftFrom, place_in};
use crate::mapping::syntax::At;
use crate::mapping::syntax_column::did_you_mean;
use crate::value::clickhouse::types::SourceType;
use crate::value::filter::{Constant, Filter, Kind, Literal, Operator, Test};

/// Which rows of a table are sent.
#[derive(Default)]
pub(in crate::mapping) struct Rows {
    /// `None`: all.
    pub filter: Option<Filter>,
    /// What the filter reads: the draft's columns, which are a plan's inputs at their places.
    pub inputs: Vec<usize>,
}

/// What the section says of the table's rows; `None` after a finding.
pub(in crate::mapping) fn rows(draft: &Draft<'_>, section: &TopicMapping, findings: &mut Findings) -> Option<Rows> {
    let is_meant = |mapping: &&WhereMapping| mapping.table.as_ref().is_none_or(|table| table.value == draft.table.name);
    let Some(WhereMapping { text, condition, .. }) = section.conditions.iter().find(is_meant) else {
        return Some(Rows::default());
    };
    let mut binding = Binding { text, draft, found: Findings::default(), inputs: Vec::new() };
    let test = binding.test(condition);
    if !binding.found.has_errors() {
        binding.unsent();
    }
    let failed = binding.found.has_errors();
    findings.0.extend(binding.found.0);
    let test = test.filter(|_| !failed)?;
    Some(Rows { filter: Some(Filter::new(text.value.trim(), test)), inputs: binding.inputs })
}

struct Binding<'b, 'a> {
    text: &'b At<String>,
    draft: &'b Draft<'a>,
    found: Findings,
    inputs: Vec<usize>,
}

impl<'a> Binding<'_, 'a> {
    fn report(&mut self, span: &Range<usize>, finding: Finding) {
        let place = place_in(&self.draft.file.file, self.text, span);
        self.found.push(finding.at(&self.draft.file.file, place));
    }

    /// All that is wrong is found, not only the first.
    fn test(&mut self, condition: &Condition) -> Option<Test> {
        match condition {
            Condition::All(parts) => self.tests(parts).map(Test::All),
            Condition::Any(parts) => self.tests(parts).map(Test::Any),
            Condition::Not(inner) => Some(Test::Not(Box::new(self.test(inner)?))),
            Condition::Is { condition, truth } => Some(Test::Is(Box::new(self.test(condition)?), *truth)),
            Condition::IsNull(column) => self.input(column).map(|(input, _)| Test::IsNull(input)),
            Condition::Holds(name) => {
                let (input, column) = self.input(name)?;
                if Kind::of(&SourceType::of(column)) == Some(Kind::Boolean) {
                    return Some(Test::Holds(input));
                }
                let message = format!("column \"{}\" is {}, not boolean", name.value, column.type_name);
                self.report(&name.span, Finding::error("wrong-type", message).hint(SUBSET));
                None
            }
            Condition::Compare { column, operator, constant } => {
                let (input, kind) = self.compared(column)?;
                self.ordered(column, kind, operator)?;
                let constant = self.constant(column, kind, constant)?;
                Some(Test::Compare { input, kind, operator: operator.value, constant })
            }
            Condition::OneOf { column, constants } => {
                let (input, kind) = self.compared(column)?;
                // A list is of one type, and beside a `real` that is `real`; one number alone stays what it is.
                let as_real = kind == Kind::Float4 && constants.len() > 1;
                let constants = constants.iter().map(|constant| match &constant.value {
                    Literal::Number(number) if as_real => {
                        Placed { value: Literal::String(number.clone()), span: constant.span.clone() }
                    }
                    _ => constant.clone(),
                });
                let read: Vec<_> = constants.map(|constant| self.constant(column, kind, &constant)).collect();
                let constants = read.into_iter().collect::<Option<Vec<_>>>()?;
                Some(Test::OneOf { input, kind, constants })
            }
        }
    }

    fn tests(&mut self, parts: &[Condition]) -> Option<Vec<Test>> {
        let tests: Vec<_> = parts.iter().map(|part| self.test(part)).collect();
        tests.into_iter().collect()
    }

    /// The input that a name stands for.
    fn input(&mut self, name: &Placed<String>) -> Option<(usize, &'a Column)> {
        let draft = self.draft;
        let table = draft.table;
        let from = draft.columns.iter().enumerate().find_map(|(input, column)| match column.from {
            DraftFrom::Column(from) if from.name == name.value => Some((input, from)),
            _ => None,
        });
        let Some((input, column)) = from else {
            self.absent(name);
            return None;
        };
        let is_known = table.replica_identity == ReplicaIdentity::Full || table.identity_columns.contains(&column.name);
        if !is_known {
            let message = format!(
                "\"where\" reads \"{}\", which is outside the replica identity of \"{}\"",
                column.name, table.name
            );
            let finding = Finding::error("where-outside-identity", message);
            let hint = format!(
                "an update or delete would not say whether the old row matched: run `ALTER TABLE {} REPLICA IDENTITY FULL` \
                 at the source.",
                table.name.quoted()
            );
            self.report(&name.span, finding.hint(hint));
        }
        if !self.inputs.contains(&input) {
            self.inputs.push(input);
        }
        Some((input, column))
    }

    fn absent(&mut self, name: &Placed<String>) {
        let table = self.draft.table;
        let finding = match table.column(&name.value) {
            Some(column) if column.generated => {
                let message = format!(
                    "column \"{}\" of \"{}\" is generated, and the source does not send it",
                    name.value, table.name
                );
                Finding::error("generated-column", message)
            }
            Some(_) => {
                let message = format!("column \"{}\" is excluded, and used here", name.value);
                Finding::error("excluded-column", message).hint("let the messages have it, or do without it here.")
            }
            None => {
                let message = format!("\"where\" reads \"{}\", which is no column of \"{}\"", name.value, table.name);
                let finding = Finding::error("unknown-column", message);
                let names = table.columns.iter().map(|column| column.name.as_str());
                match did_you_mean(&name.value, names) {
                    Some(hint) => finding.hint(hint),
                    None => finding,
                }
            }
        };
        self.report(&name.span, finding);
    }

    fn compared(&mut self, name: &Placed<String>) -> Option<(usize, Kind)> {
        let (input, column) = self.input(name)?;
        let kind = Kind::of(&SourceType::of(column));
        if kind.is_some() && !column.equals_bytewise {
            let message = format!(
                "column \"{}\" of \"{}\" has a nondeterministic collation, so only the source knows which texts are equal",
                name.value, self.draft.table.name
            );
            let hint =
                "of such a column only IS [NOT] NULL can be asked; or give it a deterministic collation at the source.";
            self.report(&name.span, Finding::error("nondeterministic-collation", message).hint(hint));
            return None;
        }
        if kind.is_none() {
            let message = format!("column \"{}\" is {}, which is not compared here", name.value, column.type_name);
            let hint = "compared are boolean, integers, oid, numeric, real, double precision, text, varchar, char, name, enums, \
                uuid, date, timestamp and timestamptz; of any other column only IS [NOT] NULL can be asked.";
            self.report(&name.span, Finding::error("wrong-type", message).hint(hint));
        }
        Some((input, kind?))
    }

    fn ordered(&mut self, name: &Placed<String>, kind: Kind, operator: &Placed<Operator>) -> Option<()> {
        if kind.is_ordered() || operator.value.is_equality() {
            return Some(());
        }
        let (why, what) = match kind {
            Kind::Enum => ("the order of an enum's labels is not sent with its values", "an enum"),
            _ => ("the order of texts is their collation's, which only the source has", "text"),
        };
        let message = format!("column \"{}\" is {what}, of which only = <> and IN are decided here", name.value);
        self.report(&operator.span, Finding::error("bad-where", message).label(why).hint(SUBSET));
        None
    }

    fn constant(&mut self, name: &Placed<String>, kind: Kind, literal: &Placed<Literal>) -> Option<Constant> {
        let column = self.draft.table.column(&name.value)?;
        let read = Constant::read(kind, &literal.value);
        let label = match &literal.value {
            Literal::String(label) if kind == Kind::Enum => {
                Some(label).filter(|label| !column.enum_labels.contains(label))
            }
            _ => None,
        };
        let finding = match (read, label) {
            (Ok(constant), None) => return Some(constant),
            (Ok(_), Some(label)) => {
                let message =
                    format!("column \"{}\" is {}, which has no label '{label}'", name.value, column.type_name);
                let labels = column.enum_labels.iter().map(|label| format!("'{label}'")).collect::<Vec<_>>();
                Finding::error("bad-where", message).hint(format!("its labels are {}.", labels.join(", ")))
            }
            (Err(error), _) => {
                Finding::error("bad-where", format!("column \"{}\" is {}: {error}", name.value, column.type_name))
            }
        };
        self.report(&literal.span, finding);
        None
    }

    /// A row that comes to match is a create, and wants all its values.
    fn unsent(&mut self) {
        let table = self.draft.table;
        let mut columns = self.draft.columns.iter().flat_map(|column| column.from.reads());
        let Some(column) = columns.find(|column| column.toastable) else { return };
        if table.replica_identity == ReplicaIdentity::Full {
            return;
        }
        let message = format!("a row that comes to match \"where\" by an update may lack \"{}\"", column.name);
        let finding = Finding::warning("toast-unsent", message).label("a large value is sent only when it changes");
        let hint = format!(
            "run `ALTER TABLE {} REPLICA IDENTITY FULL` at the source, so that such a row is whole; without it the message \
             has the placeholder.",
            table.name.quoted()
        );
        self.report(&(0..self.text.value.len()), finding.hint(hint));
    }
}
