//! What a live Postgres says of its tables: plain data, read once at start (by `source::catalog` and the Postgres sink),
//! against which mappings are resolved.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// A schema-qualified name of a table or view.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

impl TableName {
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName { schema: schema.into(), name: name.into() }
    }

    /// The name as SQL text: both parts in double quotes.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }
}

/// As a user writes it in a mapping: `schema.name`, unquoted.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TableName {
    type Err = String;

    /// Reads `schema.name`. A part that holds a dot stands in double quotes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, tail) = if let Some(quoted) = rest.strip_prefix('"') {
                let end = quoted.find('"').ok_or_else(|| format!("\"{text}\" has an unclosed quote"))?;
                (&quoted[..end], &quoted[end + 1..])
            } else {
                let end = rest.find('.').unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            };
            parts.push(part);
            match tail.strip_prefix('.') {
                Some(next) => rest = next,
                None if tail.is_empty() => break,
                None => return Err(format!("\"{text}\" is not schema.name")),
            }
        }
        match parts.as_slice() {
            [schema, name] if !schema.is_empty() && !name.is_empty() => Ok(TableName::new(*schema, *name)),
            _ => Err(format!("\"{text}\" is not schema.name")),
        }
    }
}

/// An identifier as SQL text: in double quotes, inner ones doubled. The only way a name reaches a statement.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"").replace('\0', ""))
}

/// A string constant as SQL text, safe whatever `standard_conforming_strings` says.
pub fn quote_literal(text: &str) -> String {
    let escaped = text.replace('\'', "''").replace('\0', "");
    if escaped.contains('\\') { format!("E'{}'", escaped.replace('\\', "\\\\")) } else { format!("'{escaped}'") }
}

/// `REPLICA IDENTITY`: what of the old row the source logs with an UPDATE or DELETE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    /// The columns of a chosen unique index.
    Index,
    /// The whole row.
    Full,
    /// Nothing: UPDATE and DELETE fail on a published table.
    Nothing,
}

/// `pg_class.relkind`, as far as a mapping can name one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TableKind {
    Table,
    Partitioned,
    View,
    MaterializedView,
    Foreign,
}

/// `pg_type.typtype`, as far as values pass differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TypeKind {
    Base,
    Enum,
    Domain,
    Composite,
    Array,
    Range,
    Multirange,
    Pseudo,
}

/// A type that is not Postgres's own, as the values of its columns pass on the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserType {
    /// As [`Column::wire_type`], [`Column::wire_oid`] and [`Column::wire_modifier`] have it.
    pub wire_type: String,
    pub wire_oid: u32,
    pub wire_modifier: i32,
    pub kind: TypeKind,
    pub has_binary: bool,
    /// Of an enum, a domain over one, or an array of one: in their order.
    pub labels: Vec<String>,
}

/// One column of a live table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Column {
    pub name: String,
    /// The declared type's OID; of a domain, the domain's.
    pub type_oid: u32,
    /// `atttypmod`: length or precision, -1 if none.
    pub type_modifier: i32,
    /// The declared type as SQL text with modifier, schema-qualified where it is not built in: `numeric(19,5)`.
    pub type_name: String,
    /// What passes on the wire, as SQL text without modifier: of a domain its base type, of an enum its own name.
    pub wire_type: String,
    /// OID of `wire_type`.
    pub wire_oid: u32,
    /// Length or precision of `wire_type`: `type_modifier`, or of a domain what the domain says.
    pub wire_modifier: i32,
    pub type_kind: TypeKind,
    pub not_null: bool,
    /// Generated columns are never sent before Postgres 18, and cannot be written.
    pub generated: bool,
    pub has_default: bool,
    /// May be stored out of line, so an UPDATE may leave it unsent.
    pub toastable: bool,
    /// The type has a binary send function; without one the server sends text even where binary was asked for.
    pub has_binary: bool,
    /// What is equal in it has the same bytes: its collation is deterministic, if it has one.
    pub equals_bytewise: bool,
    /// Of an enum, a domain over one and an array of one: its labels, in their order. A sink's are not asked for.
    pub enum_labels: Vec<String>,
}

/// A foreign key of a live table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ForeignKey {
    pub columns: Vec<String>,
    pub references: TableName,
    pub deferrable: bool,
}

/// One live table or view.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Table {
    pub oid: u32,
    pub name: TableName,
    pub kind: TableKind,
    /// In `attnum` order, dropped ones left out.
    pub columns: Vec<Column>,
    /// Empty if there is none, or if it is deferrable (which cannot serve as replica identity).
    pub primary_key: Vec<String>,
    /// Columns of each unique, immediate, non-partial index without expressions, the primary key's included.
    pub unique_keys: Vec<Vec<String>>,
    pub replica_identity: ReplicaIdentity,
    /// Columns of the replica identity; all for `Full`, none for `Nothing`.
    pub identity_columns: Vec<String>,
    pub foreign_keys: Vec<ForeignKey>,
    /// Row security is enabled: a role it binds would copy fewer rows than it streams.
    pub row_security: bool,
    /// Unlogged or temporary: its changes are never decoded.
    pub unlogged: bool,
    /// Of a partitioned table; its rows are sent as the root's where that is published.
    pub is_partition: bool,
    /// Of a partitioned table: a partition whose replica identity is less than the table's. It decides what is logged of an old
    /// row, whatever the table's own says; that one is not handed down.
    pub straying_partition: Option<TableName>,
    /// Planner's estimate of rows; 0 if never analysed.
    pub rows_estimate: u64,
}

impl Table {
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// The tables of one database that a mapping may name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Catalog {
    pub database: String,
    pub tables: Vec<Table>,
}

impl Catalog {
    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.iter().find(|table| &table.name == name)
    }

    /// Columns get the labels that their types have.
    pub fn label(&mut self, types: &BTreeMap<u32, UserType>) {
        for column in self.tables.iter_mut().flat_map(|table| &mut table.columns) {
            if let Some(known) = types.get(&column.type_oid) {
                column.enum_labels.clone_from(&known.labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_quoted() {
        assert_eq!("public.course".parse(), Ok(TableName::new("public", "course")));
        assert_eq!("\"a.b\".c".parse(), Ok(TableName::new("a.b", "c")));
        for text in ["course", "a.b.c", ".b", "a.", "\"a.b", "\"a\"x.b"] {
            assert!(text.parse::<TableName>().is_err(), "{text} was taken");
        }
        assert_eq!(TableName::new("p", "we\"ird'; drop").quoted(), "\"p\".\"we\"\"ird'; drop\"");
    }

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }
}
