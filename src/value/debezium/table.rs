//! A table's rows: one writer a column, in the order in which the wire has them.

use super::column::{Column, choose};
use super::envelope::Old;
use super::options::Options;
use super::out::{Label, Out};
use super::schema::{Schema, Shape};
use super::shape::ShapeError;
use super::value::{Common, Kind};
use super::{EncodeError, ValueError};
use crate::tuple::Cell;

/// Which of a row's columns its image has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Image {
    /// All.
    Full,
    /// Those of the replica identity; NULL in the others says nothing.
    Key,
}

struct Field {
    name: String,
    label: Label,
    kind: Kind,
    nullable: bool,
}

struct KeyField {
    column: usize,
    field: Field,
}

/// A table's columns as far as events have them.
pub(super) struct Table {
    /// In the wire's order; `None` for one that is left out.
    fields: Vec<Option<Field>>,
    key: Vec<KeyField>,
    common: Common,
}

/// What is said of a table's rows and keys; structs without a name yet.
pub(super) struct RowSchemas {
    pub value: Schema,
    /// `None` without a key.
    pub key: Option<Schema>,
}

impl RowSchemas {
    /// With their names, which begin with the table's.
    pub fn named(self, prefix: &str) -> RowSchemas {
        let named = |schema: Schema, suffix: &str| Schema { name: Some(format!("{prefix}.{suffix}")), ..schema };
        RowSchemas { value: named(self.value, "Value"), key: self.key.map(|key| named(key, "Key")) }
    }
}

impl Table {
    pub fn new(columns: &[Column], key: &[String], options: &Options) -> Result<(Table, RowSchemas), ShapeError> {
        let mut value_fields = Vec::new();
        let mut fields = Vec::with_capacity(columns.len());
        for column in columns {
            let chosen = if column.excluded { None } else { choose(column, options) };
            fields.push(chosen.map(|(kind, schema)| {
                value_fields.push((column.name.clone(), schema.optional_if(column.nullable)));
                Field::new(column, kind)
            }));
        }
        let mut key_fields = Vec::new();
        let mut keys = Vec::with_capacity(key.len());
        for name in key {
            let found = columns.iter().enumerate().find(|(_, column)| &column.name == name);
            let (place, column) = found.ok_or_else(|| ShapeError::NoColumn(name.clone()))?;
            let (kind, schema) = choose(column, options).ok_or_else(|| ShapeError::KeyType(name.clone()))?;
            key_fields.push((name.clone(), schema.optional_if(column.nullable)));
            keys.push(KeyField { column: place, field: Field::new(column, kind) });
        }
        let schemas = RowSchemas {
            value: Schema::from(Shape::Struct(value_fields)),
            key: (!key_fields.is_empty()).then(|| Schema::from(Shape::Struct(key_fields))),
        };
        let common = Common::new(&options.unavailable_value_placeholder);
        Ok((Table { fields, key: keys, common }, schemas))
    }

    pub fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Writes a row's key, its columns in the key's order.
    pub fn write_key<'a, O: Out>(
        &self,
        out: &mut O,
        row: impl Iterator<Item = Cell<'a>> + Clone,
    ) -> Result<(), EncodeError> {
        out.begin_struct();
        for KeyField { column, field } in &self.key {
            let cell = row.clone().nth(*column).ok_or(EncodeError::Layout)?;
            out.field(&field.label);
            field.write(out, &self.common, cell, Image::Full).map_err(|error| field.error(error))?;
        }
        out.end_struct();
        Ok(())
    }

    /// Whether a row has another key than the row before it, as far as both have it.
    pub fn key_changes<'a, R: Iterator<Item = Cell<'a>> + Clone>(&self, before: &Old<R>, after: R) -> bool {
        match before {
            Old::Key(old) => self.key_differs(Image::Key, old.clone(), after),
            Old::Full(old) => self.key_differs(Image::Full, old.clone(), after),
        }
    }

    fn key_differs<'a>(
        &self,
        image: Image,
        old: impl Iterator<Item = Cell<'a>> + Clone,
        new: impl Iterator<Item = Cell<'a>> + Clone,
    ) -> bool {
        self.key.iter().any(|KeyField { column, .. }| {
            match (old.clone().nth(*column), new.clone().nth(*column)) {
                (_, Some(Cell::Unchanged)) => false,
                // The column is no part of the replica identity.
                (Some(Cell::Null), _) if image == Image::Key => false,
                (old, new) => old != new,
            }
        })
    }

    /// Writes a row. A value that it leaves unsent is taken from `whole_old`, the whole row before the change, if that was
    /// sent.
    pub fn write_row<'a, O: Out>(
        &self,
        out: &mut O,
        row: impl Iterator<Item = Cell<'a>>,
        image: Image,
        whole_old: Option<impl Iterator<Item = Cell<'a>>>,
    ) -> Result<(), EncodeError> {
        out.begin_struct();
        self.write_columns(out, row, image, whole_old)?;
        out.end_struct();
        Ok(())
    }

    /// The row's columns, without the struct around them.
    pub fn write_columns<'a, O: Out>(
        &self,
        out: &mut O,
        mut row: impl Iterator<Item = Cell<'a>>,
        image: Image,
        mut whole_old: Option<impl Iterator<Item = Cell<'a>>>,
    ) -> Result<(), EncodeError> {
        for field in &self.fields {
            let mut cell = row.next().ok_or(EncodeError::Layout)?;
            if let Some(old) = &mut whole_old {
                let old = old.next().ok_or(EncodeError::Layout)?;
                if cell == Cell::Unchanged {
                    cell = old;
                }
            }
            if let Some(field) = field {
                out.field(&field.label);
                field.write(out, &self.common, cell, image).map_err(|error| field.error(error))?;
            }
        }
        if row.next().is_some() { Err(EncodeError::Layout) } else { Ok(()) }
    }
}

impl Field {
    fn new(column: &Column, kind: Kind) -> Field {
        Field { name: column.name.clone(), label: Label::new(&column.name), kind, nullable: column.nullable }
    }

    #[cold]
    fn error(&self, error: ValueError) -> EncodeError {
        EncodeError::Value { column: self.name.clone(), error }
    }

    #[inline]
    fn write<O: Out>(&self, out: &mut O, common: &Common, cell: Cell<'_>, image: Image) -> Result<(), ValueError> {
        match cell {
            Cell::Null if self.nullable => out.null(),
            Cell::Null if image == Image::Key => self.kind.write_zero(out, common)?,
            Cell::Null if O::STRICT => return Err(ValueError::Null),
            Cell::Null => out.null(),
            cell => {
                if self.nullable {
                    out.some();
                }
                match cell {
                    Cell::Unchanged => self.kind.write_placeholder(out, common)?,
                    cell => self.kind.write(out, common, cell)?,
                }
            }
        }
        Ok(())
    }
}
