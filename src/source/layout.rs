//! What a table is made of beneath what the stream tells of it: column numbers, values of columns that rows do not have yet,
//! and the files that hold the rows. Two looks side by side show changes that no message carries.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use crate::catalog::{TableName, quote_literal};
use crate::mapping::types::{TypeChange, type_change};
use crate::postgres::error::SqlError;

/// A table as one look at the catalog shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    pub oid: u32,
    /// In the order of their numbers, dropped ones left out.
    pub columns: Vec<LayoutColumn>,
    /// The table itself, or the leaves of a partitioned one.
    pub storage: Vec<Storage>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LayoutColumn {
    /// `attnum`: never given twice in one table.
    pub number: i16,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    pub type_name: String,
    /// The transaction that last wrote the column's catalog row.
    pub changed: String,
    pub generated: bool,
    /// `attmissingval` as text: what rows have that are older than the column. Several values where partitions differ.
    pub missing: Vec<String>,
    /// The column came after the table's copy, and the target has it since; rows older than it have `missing` or NULL.
    #[serde(default)]
    pub added: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Storage {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relfilenode`: another one after TRUNCATE, VACUUM FULL, CLUSTER, and each ALTER TABLE that writes all rows anew.
    pub file: u32,
    /// The transaction that last wrote the catalog row of the table, the one that made it, and the one that made it a
    /// partition.
    pub changed: String,
    pub created: String,
    pub attached: Option<String>,
}

impl Storage {
    pub fn table(&self) -> TableName {
        TableName::new(self.schema.clone(), self.name.clone())
    }
}

/// What happened between two looks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    OtherTable {
        old: u32,
        new: u32,
    },
    /// `before`: what rows have that are older than the column; `None` if that cannot be known.
    Added {
        column: LayoutColumn,
        before: Option<BeforeText>,
    },
    Dropped {
        column: String,
    },
    Renamed {
        old: String,
        new: String,
    },
    Type {
        column: String,
        old: String,
        new: String,
        change: TypeChange,
    },
    /// The column kept its type while an ALTER TABLE wrote all rows anew.
    Rewritten {
        column: String,
    },
    /// A table that existed before became a partition.
    Attached(Storage),
    /// A partition that was created as one: its rows were all sent.
    NewPartition(Storage),
    /// A partition that was there is not there any more.
    Gone(Storage),
    /// A partition's rows stand in another file: it was truncated, or written anew as it was.
    Refiled(Storage),
}

/// The text of a value, NULL if there is none.
pub type BeforeText = Option<String>;

impl Layout {
    /// What happened between an older look and this one.
    pub fn since(&self, old: &Layout) -> Vec<Change> {
        if self.oid != old.oid {
            return vec![Change::OtherTable { old: old.oid, new: self.oid }];
        }
        let mut changes = self.columns_since(old);
        for storage in &self.storage {
            match old.storage.iter().find(|known| known.oid == storage.oid) {
                Some(known) if known.file != storage.file && storage.oid != self.oid => {
                    changes.push(Change::Refiled(storage.clone()));
                }
                Some(_) => {}
                None if storage.attached.as_ref() == Some(&storage.created) => {
                    changes.push(Change::NewPartition(storage.clone()));
                }
                None => changes.push(Change::Attached(storage.clone())),
            }
        }
        let is_gone = |known: &&Storage| !self.storage.iter().any(|storage| storage.oid == known.oid);
        changes.extend(old.storage.iter().filter(is_gone).cloned().map(Change::Gone));
        changes
    }

    fn columns_since(&self, old: &Layout) -> Vec<Change> {
        let is_refiled = self
            .storage
            .iter()
            .any(|storage| old.storage.iter().any(|known| known.oid == storage.oid && known.file != storage.file));
        let mut changes = Vec::new();
        for known in &old.columns {
            let Some(column) = self.columns.iter().find(|column| column.number == known.number) else {
                changes.push(Change::Dropped { column: known.name.clone() });
                continue;
            };
            if column.name != known.name {
                changes.push(Change::Renamed { old: known.name.clone(), new: column.name.clone() });
            }
            let mut change =
                type_change((known.type_oid, known.type_modifier), (column.type_oid, column.type_modifier));
            let is_changed = column.changed != known.changed;
            if change == TypeChange::Same {
                if is_refiled && is_changed {
                    changes.push(Change::Rewritten { column: column.name.clone() });
                }
                continue;
            }
            if is_refiled {
                change = TypeChange::Different;
            }
            let (old, new) = (known.type_name.clone(), column.type_name.clone());
            changes.push(Change::Type { column: column.name.clone(), old, new, change });
        }
        for column in self.columns.iter().filter(|column| old.number(column.number).is_none()) {
            let before = match column.missing.as_slice() {
                [value] => Some(Some(value.clone())),
                // Without a stored value old rows have NULL, unless their values were written out.
                [] if !is_refiled => Some(None),
                _ => None,
            };
            changes.push(Change::Added { column: column.clone(), before });
        }
        changes
    }

    pub fn number(&self, number: i16) -> Option<&LayoutColumn> {
        self.columns.iter().find(|column| column.number == number)
    }

    /// This look with what the older one knows of columns that came after the copy.
    pub fn with_added(&self, old: &Layout) -> Layout {
        let mut layout = self.clone();
        for column in &mut layout.columns {
            if let Some(known) = old.number(column.number).filter(|known| known.added) {
                column.added = true;
                column.missing.clone_from(&known.missing);
            }
        }
        layout
    }
}

const LAYOUTS: &str = "
SELECT n.nspname::text AS schema, c.relname::text AS name,
       jsonb_build_object(
         'oid', c.oid::bigint,
         'columns', coalesce((SELECT jsonb_agg(jsonb_build_object(
             'number', a.attnum, 'name', a.attname, 'type_oid', a.atttypid::bigint, 'type_modifier', a.atttypmod,
             'type_name', format_type(a.atttypid, a.atttypmod), 'changed', a.xmin::text, 'generated', a.attgenerated <> '',
             'missing', coalesce((SELECT jsonb_agg(DISTINCT (l.attmissingval::text::text[])[1])
                                  FROM pg_attribute AS l
                                  WHERE l.attrelid = ANY (leaves.oids) AND l.attname = a.attname AND l.atthasmissing
                                  AND NOT l.attisdropped), '[]')) ORDER BY a.attnum)
           FROM pg_attribute AS a
           WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
         'storage', coalesce((SELECT jsonb_agg(jsonb_build_object(
             'oid', s.oid::bigint, 'schema', sn.nspname, 'name', s.relname, 'file', s.relfilenode::bigint,
             'changed', s.xmin::text, 'created', t.xmin::text, 'attached', i.xmin::text) ORDER BY s.oid)
           FROM pg_class AS s
           JOIN pg_namespace AS sn ON sn.oid = s.relnamespace
           JOIN pg_type AS t ON t.oid = s.reltype
           LEFT JOIN pg_inherits AS i ON i.inhrelid = s.oid
           WHERE s.oid = ANY (leaves.oids)), '[]')
       )::text AS layout
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT CASE WHEN c.relkind = 'p'
                                THEN ARRAY(SELECT p.relid::oid FROM pg_partition_tree(c.oid) AS p WHERE p.isleaf)
                                ELSE ARRAY[c.oid]
                           END AS oids) AS leaves
WHERE (n.nspname, c.relname) IN (SELECT * FROM unnest($1::text[], $2::text[])) AND c.relkind IN ('r', 'p')";

/// Looks at these tables, as far as they exist.
pub async fn read_layouts(client: &Client, names: &[TableName]) -> Result<BTreeMap<TableName, Layout>, SqlError> {
    let schemas: Vec<_> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<_> = names.iter().map(|name| name.name.as_str()).collect();
    let rows = client.query(LAYOUTS, &[&schemas, &tables]).await?;
    let layout = |row: &tokio_postgres::Row| {
        let name = TableName { schema: row.try_get("schema")?, name: row.try_get("name")? };
        let layout = serde_json::from_str(row.try_get("layout")?);
        Ok((name, layout.map_err(|_| SqlError::unexpected("the catalog's answer has another form"))?))
    };
    rows.iter().map(layout).collect()
}

/// The name that a table has now.
pub async fn name_of(client: &Client, oid: u32) -> Result<Option<TableName>, SqlError> {
    let text = "SELECT n.nspname::text, c.relname::text FROM pg_class AS c \
                JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = $1";
    let row = client.query_opt(text, &[&oid]).await?;
    Ok(match row {
        Some(row) => Some(TableName { schema: row.try_get(0)?, name: row.try_get(1)? }),
        None => None,
    })
}

/// Does the table hold a row that is older than this transaction?
pub async fn has_older_row(client: &Client, table: &TableName, transaction: &str) -> Result<bool, SqlError> {
    let text = format!(
        "SELECT EXISTS (SELECT FROM ONLY {} WHERE age(xmin) > age({}::xid))",
        table.quoted(),
        quote_literal(transaction)
    );
    Ok(client.query_one(&text, &[]).await?.try_get(0)?)
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
