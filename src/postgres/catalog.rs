//! Tables, columns, keys and types as a live server's catalog has them, on Postgres 14 to 18.
//!
//! Every query relies on the pinned `search_path` of [`super::connect`]: catalog names need no schema there, and
//! `format_type` qualifies whatever is not built in.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Row};

use super::error::SqlError;
use crate::catalog::{Catalog, Column, ForeignKey, ReplicaIdentity, Table, TableKind, TableName, TypeKind, UserType};

/// Which tables to read.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// Every table and view outside the system's schemas.
    All,
    /// These, as far as they exist.
    Named(&'a [TableName]),
}

/// A partition that itself has none: where the rows of a partitioned table are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaf {
    pub oid: u32,
    pub name: TableName,
    /// Planner's estimate, in pages of 8 KiB; 0 if never analysed.
    pub pages: u32,
    /// What the server logs of old rows is decided by the leaf, not by its root.
    pub replica_identity: ReplicaIdentity,
}

const TABLES: &str = "
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       c.relreplident::text AS identity, c.relrowsecurity AS row_security, c.relpersistence <> 'p' AS unlogged,
       c.relispartition AS is_partition,
       CASE WHEN c.relkind = 'p'
            THEN (SELECT ARRAY[spaces.nspname, leaf.relname]::text[]
                  FROM pg_partition_tree(c.oid) AS part
                  JOIN pg_class AS leaf ON leaf.oid = part.relid
                  JOIN pg_namespace AS spaces ON spaces.oid = leaf.relnamespace
                  WHERE part.isleaf AND leaf.relkind = 'r' AND leaf.relreplident NOT IN (c.relreplident, 'f')
                  ORDER BY 1
                  LIMIT 1)
       END AS straying_partition,
       CASE WHEN c.relkind = 'p'
            THEN (SELECT coalesce(sum(greatest(leaf.reltuples, 0)), 0)
                  FROM pg_partition_tree(c.oid) AS part
                  JOIN pg_class AS leaf ON leaf.oid = part.relid
                  WHERE part.isleaf)
            ELSE greatest(c.reltuples, 0)
       END::bigint AS rows_estimate
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
AND CASE WHEN $1
         THEN (n.nspname, c.relname) IN (SELECT * FROM unnest($2::text[], $3::text[]))
         ELSE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
    END
ORDER BY 2, 3";

// A domain's base type may be a domain again: follow until it is none. An array is a type of variable length that is
// subscripted as arrays are; int2vector and its like are not.
const COLUMNS: &str = "
WITH RECURSIVE base AS (
  SELECT t.oid AS type, t.oid AS base, t.typtype, t.typbasetype, t.typnotnull AS not_null, t.typtypmod AS modifier
  FROM pg_type AS t
  UNION ALL
  SELECT base.type, t.oid, t.typtype, t.typbasetype, base.not_null OR t.typnotnull,
         CASE WHEN base.modifier >= 0 THEN base.modifier ELSE t.typtypmod END
  FROM base
  JOIN pg_type AS t ON t.oid = base.typbasetype
  WHERE base.typtype = 'd'
)
SELECT a.attrelid, a.attname::text AS name, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod) AS type_name,
       format_type(base.base, NULL) AS wire_type, base.base AS wire_oid,
       CASE WHEN t.typtype = 'd' THEN base.modifier ELSE a.atttypmod END AS wire_modifier,
       CASE WHEN t.typlen = -1 AND t.typsubscript = 'array_subscript_handler'::regproc THEN 'a'
            ELSE t.typtype::text
       END AS type_kind,
       a.attnotnull OR base.not_null AS not_null, a.attgenerated <> '' AS generated,
       a.atthasdef AND a.attgenerated = '' OR a.attidentity <> '' OR t.typdefault IS NOT NULL AS has_default,
       a.attlen = -1 AND a.attstorage <> 'p' AS toastable, wire.typsend <> 0 AS has_binary,
       coalesce(c.collisdeterministic, true) AS equals_bytewise
FROM pg_attribute AS a
JOIN pg_type AS t ON t.oid = a.atttypid
JOIN base ON base.type = a.atttypid AND base.typtype <> 'd'
JOIN pg_type AS wire ON wire.oid = base.base
LEFT JOIN pg_collation AS c ON c.oid = a.attcollation
WHERE a.attrelid = ANY ($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

// Without the types that every table has for its rows, and their arrays. Labels are those of the type itself or of its
// elements'; an array of a domain over an enum has none.
const USER_TYPES: &str = "
WITH RECURSIVE base AS (
  SELECT t.oid AS type, t.oid AS base, t.typtype, t.typbasetype, t.typtypmod AS modifier
  FROM pg_type AS t
  WHERE t.oid >= 16384
  UNION ALL
  SELECT base.type, t.oid, t.typtype, t.typbasetype,
         CASE WHEN base.modifier >= 0 THEN base.modifier ELSE t.typtypmod END
  FROM base
  JOIN pg_type AS t ON t.oid = base.typbasetype
  WHERE base.typtype = 'd'
)
SELECT t.oid, format_type(base.base, NULL) AS wire_type, base.base AS wire_oid,
       CASE WHEN t.typtype = 'd' THEN base.modifier ELSE -1 END AS wire_modifier,
       CASE WHEN t.typlen = -1 AND t.typsubscript = 'array_subscript_handler'::regproc THEN 'a'
            ELSE t.typtype::text
       END AS type_kind,
       wire.typsend <> 0 AS has_binary,
       ARRAY(SELECT e.enumlabel::text
             FROM pg_enum AS e
             WHERE e.enumtypid IN (wire.oid, wire.typelem)
             ORDER BY e.enumsortorder) AS labels
FROM base
JOIN pg_type AS t ON t.oid = base.type
JOIN pg_type AS wire ON wire.oid = base.base
LEFT JOIN pg_type AS element ON element.oid = t.typelem
LEFT JOIN pg_class AS rows ON rows.oid IN (t.typrelid, element.typrelid) AND rows.relkind <> 'c'
WHERE base.typtype <> 'd' AND t.typtype <> 'p' AND rows.oid IS NULL";

const KEYS: &str = "
SELECT i.indrelid, i.indisprimary AS is_primary, i.indisreplident AS is_identity,
       ARRAY(SELECT a.attname::text
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.place <= i.indnkeyatts
             ORDER BY k.place) AS columns
FROM pg_index AS i
WHERE i.indrelid = ANY ($1) AND i.indisunique AND i.indimmediate AND i.indisvalid
AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indrelid, NOT i.indisprimary, i.indexrelid";

const FOREIGN_KEYS: &str = "
SELECT f.conrelid, f.condeferrable AS is_deferrable, n.nspname::text AS schema, c.relname::text AS name,
       ARRAY(SELECT a.attname::text
             FROM unnest(f.conkey) WITH ORDINALITY AS k (attnum, place)
             JOIN pg_attribute AS a ON a.attrelid = f.conrelid AND a.attnum = k.attnum
             ORDER BY k.place) AS columns
FROM pg_constraint AS f
JOIN pg_class AS c ON c.oid = f.confrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE f.contype = 'f' AND f.conrelid = ANY ($1)
ORDER BY f.conrelid, f.conname";

const LEAVES: &str = "
SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, greatest(c.relpages, 0) AS pages,
       c.relreplident::text AS identity
FROM pg_partition_tree($1::oid) AS part
JOIN pg_class AS c ON c.oid = part.relid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE part.isleaf
ORDER BY 2, 3";

/// Reads a source's tables and views, and the types beside Postgres's own, from which the columns have their labels.
pub async fn read_source(client: &Client, wanted: Wanted<'_>) -> Result<(Catalog, BTreeMap<u32, UserType>), SqlError> {
    let mut catalog = read_tables(client, wanted).await?;
    let types = read_user_types(client).await?;
    catalog.label(&types);
    Ok((catalog, types))
}

/// Reads the tables and views that a mapping may name, without the labels of their columns.
///
/// It takes four statements. A table dropped between them is left without columns, as if it had none.
pub async fn read_tables(client: &Client, wanted: Wanted<'_>) -> Result<Catalog, SqlError> {
    let (named, names) = match wanted {
        Wanted::All => (false, [].as_slice()),
        Wanted::Named(names) => (true, names),
    };
    let schemas: Vec<_> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<_> = names.iter().map(|name| name.name.as_str()).collect();
    let database = client.query_one("SELECT current_database()::text", &[]).await?.try_get(0)?;
    let rows = client.query(TABLES, &[&named, &schemas, &tables]).await?;
    let mut tables = rows.iter().map(table).collect::<Result<Vec<_>, _>>()?;

    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let mut by_oid: BTreeMap<u32, &mut Table> = tables.iter_mut().map(|table| (table.oid, table)).collect();
    for row in client.query(COLUMNS, &[&oids]).await? {
        if let Some(table) = by_oid.get_mut(&row.try_get("attrelid")?) {
            table.columns.push(column(&row)?);
        }
    }
    for row in client.query(KEYS, &[&oids]).await? {
        if let Some(table) = by_oid.get_mut(&row.try_get("indrelid")?) {
            add_key(table, &row)?;
        }
    }
    for row in client.query(FOREIGN_KEYS, &[&oids]).await? {
        if let Some(table) = by_oid.get_mut(&row.try_get("conrelid")?) {
            table.foreign_keys.push(ForeignKey {
                columns: row.try_get("columns")?,
                references: TableName { schema: row.try_get("schema")?, name: row.try_get("name")? },
                deferrable: row.try_get("is_deferrable")?,
            });
        }
    }
    for table in &mut tables {
        match table.replica_identity {
            ReplicaIdentity::Default => table.identity_columns.clone_from(&table.primary_key),
            ReplicaIdentity::Full => {
                table.identity_columns = table.columns.iter().map(|column| column.name.clone()).collect();
            }
            ReplicaIdentity::Index | ReplicaIdentity::Nothing => {}
        }
    }
    Ok(Catalog { database, tables })
}

/// The leaves under a partitioned table, at any depth; none under any other.
pub async fn leaves(client: &Client, oid: u32) -> Result<Vec<Leaf>, SqlError> {
    let rows = client.query(LEAVES, &[&oid]).await?;
    rows.iter()
        .map(|row| {
            Ok(Leaf {
                oid: row.try_get("oid")?,
                name: TableName { schema: row.try_get("schema")?, name: row.try_get("name")? },
                pages: u32::try_from(row.try_get::<_, i32>("pages")?).unwrap_or(0),
                replica_identity: replica_identity(row.try_get("identity")?)?,
            })
        })
        .collect()
}

/// Every type's OID by its name as SQL text without modifier, schema-qualified where it is not built in.
pub async fn read_types(client: &Client) -> Result<BTreeMap<String, u32>, SqlError> {
    let rows = client.query("SELECT format_type(oid, NULL), oid FROM pg_type WHERE typisdefined", &[]).await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// The types that the database has beside Postgres's own, by OID.
async fn read_user_types(client: &Client) -> Result<BTreeMap<u32, UserType>, SqlError> {
    let user_type = |row: &Row| {
        let user_type = UserType {
            wire_type: row.try_get("wire_type")?,
            wire_oid: row.try_get("wire_oid")?,
            wire_modifier: row.try_get("wire_modifier")?,
            kind: type_kind(row.try_get("type_kind")?)?,
            has_binary: row.try_get("has_binary")?,
            labels: row.try_get("labels")?,
        };
        Ok((row.try_get("oid")?, user_type))
    };
    client.query(USER_TYPES, &[]).await?.iter().map(user_type).collect()
}

fn table(row: &Row) -> Result<Table, SqlError> {
    Ok(Table {
        oid: row.try_get("oid")?,
        name: TableName { schema: row.try_get("schema")?, name: row.try_get("name")? },
        kind: match row.try_get("kind")? {
            "r" => TableKind::Table,
            "p" => TableKind::Partitioned,
            "v" => TableKind::View,
            "m" => TableKind::MaterializedView,
            "f" => TableKind::Foreign,
            _ => return Err(SqlError::unexpected("the server has an unknown kind of table")),
        },
        columns: Vec::new(),
        primary_key: Vec::new(),
        unique_keys: Vec::new(),
        replica_identity: replica_identity(row.try_get("identity")?)?,
        identity_columns: Vec::new(),
        foreign_keys: Vec::new(),
        row_security: row.try_get("row_security")?,
        unlogged: row.try_get("unlogged")?,
        is_partition: row.try_get("is_partition")?,
        straying_partition: match row.try_get::<_, Option<Vec<String>>>("straying_partition")?.as_deref() {
            Some([schema, name]) => Some(TableName::new(schema, name)),
            _ => None,
        },
        rows_estimate: u64::try_from(row.try_get::<_, i64>("rows_estimate")?).unwrap_or(0),
    })
}

fn column(row: &Row) -> Result<Column, SqlError> {
    Ok(Column {
        name: row.try_get("name")?,
        type_oid: row.try_get("atttypid")?,
        type_modifier: row.try_get("atttypmod")?,
        type_name: row.try_get("type_name")?,
        wire_type: row.try_get("wire_type")?,
        wire_oid: row.try_get("wire_oid")?,
        wire_modifier: row.try_get("wire_modifier")?,
        type_kind: type_kind(row.try_get("type_kind")?)?,
        not_null: row.try_get("not_null")?,
        generated: row.try_get("generated")?,
        has_default: row.try_get("has_default")?,
        toastable: row.try_get("toastable")?,
        has_binary: row.try_get("has_binary")?,
        equals_bytewise: row.try_get("equals_bytewise")?,
        // Read once for each type.
        enum_labels: Vec::new(),
    })
}

fn type_kind(letter: &str) -> Result<TypeKind, SqlError> {
    Ok(match letter {
        "a" => TypeKind::Array,
        "b" => TypeKind::Base,
        "c" => TypeKind::Composite,
        "d" => TypeKind::Domain,
        "e" => TypeKind::Enum,
        "m" => TypeKind::Multirange,
        "p" => TypeKind::Pseudo,
        "r" => TypeKind::Range,
        _ => return Err(SqlError::unexpected("the server has an unknown kind of type")),
    })
}

fn add_key(table: &mut Table, row: &Row) -> Result<(), SqlError> {
    let columns: Vec<String> = row.try_get("columns")?;
    if row.try_get("is_primary")? {
        table.primary_key.clone_from(&columns);
    }
    if table.replica_identity == ReplicaIdentity::Index && row.try_get("is_identity")? {
        table.identity_columns.clone_from(&columns);
    }
    table.unique_keys.push(columns);
    Ok(())
}

fn replica_identity(letter: &str) -> Result<ReplicaIdentity, SqlError> {
    match letter {
        "d" => Ok(ReplicaIdentity::Default),
        "i" => Ok(ReplicaIdentity::Index),
        "f" => Ok(ReplicaIdentity::Full),
        "n" => Ok(ReplicaIdentity::Nothing),
        _ => Err(SqlError::unexpected("the server has an unknown replica identity")),
    }
}
