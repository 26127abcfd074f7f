//! A look at a source before anything is asked of it: the server, the configured slot and the configured publication.

use std::collections::BTreeSet;

use tokio_postgres::{Client, Row};

use crate::catalog::TableName;
use crate::checkpoint::SourceIdentity;
use crate::lsn::Lsn;
use crate::mapping::plan::Published;
use crate::postgres::error::SqlError;
use crate::postgres::server::{ServerFacts, lsn, server};
use crate::verdict::{SlotFacts, SourceFacts, TimelineSwitch};

/// The only output plugin that is spoken here.
pub const PLUGIN: &str = "pgoutput";

/// The four operations as `publish` spells them.
pub const PUBLISH: &str = "insert, update, delete, truncate";

/// `pg_replication_slots`, the configured slot's row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotRow {
    pub confirmed_flush: Option<Lsn>,
    pub restart_lsn: Option<Lsn>,
    pub active: bool,
    pub active_pid: Option<i32>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Postgres 17 and later.
    pub invalidation_reason: Option<String>,
    /// `None` for a physical slot.
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    /// Copied to standbys; Postgres 17 and later.
    pub failover: bool,
    /// Bytes of WAL that may still be written before the slot is in danger; `None` without limit.
    pub safe_wal_size: Option<i64>,
    /// Bytes of WAL that the slot holds back.
    pub retained_bytes: u64,
    /// Transactions since the oldest whose dead catalog rows the slot keeps.
    pub catalog_xmin_age: Option<i32>,
}

impl SlotRow {
    /// Why changes can no longer be read from it by a daemon connected to `database`.
    pub fn lost(&self, database: &str) -> Option<String> {
        if let Some(reason) = &self.invalidation_reason {
            return Some(reason.clone());
        }
        if self.wal_status.as_deref() == Some("lost") {
            return Some("wal_removed".to_owned());
        }
        match (&self.plugin, &self.database) {
            (None, _) => Some("it is a physical slot".to_owned()),
            (Some(plugin), _) if plugin != PLUGIN => Some(format!("its plugin is \"{plugin}\", not {PLUGIN}")),
            (_, Some(other)) if other != database => Some(format!("it belongs to database \"{other}\"")),
            _ => None,
        }
    }
}

/// One table of a publication.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicationTable {
    pub name: TableName,
    /// The column list in the catalog's order; `None` without one.
    pub columns: Option<Vec<String>>,
    /// Has a row filter, which turns updates into inserts and deletes.
    pub filtered: bool,
}

/// `pg_publication`, the configured publication's row and its tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicationRow {
    /// `FOR ALL TABLES`.
    pub all_tables: bool,
    /// Publishes whole schemas; Postgres 15 and later.
    pub schemas: bool,
    /// All four operations.
    pub all_operations: bool,
    pub via_root: bool,
    pub tables: Vec<PublicationTable>,
}

impl PublicationRow {
    /// Publishes exactly these tables, whole or by the same columns.
    pub fn publishes(&self, published: &[Published]) -> bool {
        let wanted: BTreeSet<_> =
            published.iter().map(|table| (&table.table, table.columns.as_ref().map(BTreeSet::from_iter))).collect();
        let given: BTreeSet<_> =
            self.tables.iter().map(|table| (&table.name, table.columns.as_ref().map(BTreeSet::from_iter))).collect();
        !self.all_tables && !self.schemas && !self.tables.iter().any(|table| table.filtered) && wanted == given
    }
}

/// Everything that setup and the start-up decision ask of a source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceProbe {
    pub server: ServerFacts,
    pub slot_name: String,
    pub slot: Option<SlotRow>,
    pub publication_name: String,
    pub publication: Option<PublicationRow>,
}

impl SourceProbe {
    /// Who this source is, as a checkpoint records it.
    pub fn identity(&self) -> SourceIdentity {
        SourceIdentity {
            system_identifier: self.server.system_identifier,
            timeline: self.server.timeline,
            database: self.server.database.clone(),
            slot: self.slot_name.clone(),
        }
    }

    /// The facts that the start-up decision needs. The history of the current timeline comes from a replication
    /// connection (`TIMELINE_HISTORY`), and is needed only if a sink knows another timeline.
    pub fn facts(&self, history: Option<Vec<TimelineSwitch>>) -> SourceFacts {
        SourceFacts {
            identity: self.identity(),
            flush_lsn: self.server.current_flush_lsn,
            slot: self.slot.as_ref().map(|slot| SlotFacts {
                confirmed_flush: slot.confirmed_flush,
                active: slot.active,
                lost: slot.lost(&self.server.database),
            }),
            publication: self.publication_name.clone(),
            publication_exists: self.publication.is_some(),
            history,
        }
    }
}

// Columns that an older server does not have are read through the row's JSON, where they are then absent. Postgres 16
// has `conflicting` for a reason, and sets it on slots that lost their WAL too.
const SLOT: &str = "
SELECT s.confirmed_flush_lsn::text AS confirmed_flush, s.restart_lsn::text AS restart_lsn, s.active, s.active_pid,
       s.wal_status, s.plugin::text AS plugin, s.database::text AS database, s.temporary, s.safe_wal_size,
       coalesce(to_jsonb(s) ->> 'invalidation_reason',
                CASE WHEN (to_jsonb(s) ->> 'conflicting')::boolean AND s.wal_status <> 'lost'
                     THEN 'conflicting'
                END) AS invalidation_reason,
       coalesce((to_jsonb(s) ->> 'failover')::boolean, false) AS failover, age(s.catalog_xmin) AS catalog_xmin_age
FROM pg_replication_slots AS s
WHERE s.slot_name = $1::text";

const PUBLICATION: &str = "
SELECT p.oid, p.puballtables AS all_tables, p.pubviaroot AS via_root,
       p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AS all_operations
FROM pg_publication AS p
WHERE p.pubname = $1::text";

const PUBLICATION_TABLES: &str = "
SELECT n.nspname::text AS schema, c.relname::text AS name, to_jsonb(pr) ->> 'prqual' IS NOT NULL AS filtered,
       CASE WHEN jsonb_typeof(to_jsonb(pr) -> 'prattrs') = 'array'
            THEN ARRAY(SELECT a.attname::text
                       FROM jsonb_array_elements_text(to_jsonb(pr) -> 'prattrs') AS k (attnum)
                       JOIN pg_attribute AS a ON a.attrelid = pr.prrelid AND a.attnum = k.attnum::int
                       ORDER BY a.attnum)
       END AS columns
FROM pg_publication_rel AS pr
JOIN pg_class AS c ON c.oid = pr.prrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE pr.prpubid = $1
ORDER BY 1, 2";

/// Reads server, publication and slot. Called after the sinks were read: what they hold, the server's WAL then has.
pub async fn probe(client: &Client, slot_name: &str, publication_name: &str) -> Result<SourceProbe, SqlError> {
    let facts = server(client).await?;
    let publication = match client.query_opt(PUBLICATION, &[&publication_name]).await? {
        Some(row) => Some(publication(client, &row, facts.major()).await?),
        None => None,
    };
    let slot = client.query_opt(SLOT, &[&slot_name]).await?;
    let slot = slot.as_ref().map(|row| slot_row(row, facts.current_flush_lsn)).transpose()?;
    Ok(SourceProbe {
        server: facts,
        slot_name: slot_name.to_owned(),
        slot,
        publication_name: publication_name.to_owned(),
        publication,
    })
}

fn slot_row(row: &Row, flush_lsn: Lsn) -> Result<SlotRow, SqlError> {
    let restart_lsn = lsn(row, "restart_lsn")?;
    Ok(SlotRow {
        confirmed_flush: lsn(row, "confirmed_flush")?,
        restart_lsn,
        active: row.try_get("active")?,
        active_pid: row.try_get("active_pid")?,
        wal_status: row.try_get("wal_status")?,
        invalidation_reason: row.try_get("invalidation_reason")?,
        plugin: row.try_get("plugin")?,
        database: row.try_get("database")?,
        temporary: row.try_get("temporary")?,
        failover: row.try_get("failover")?,
        safe_wal_size: row.try_get("safe_wal_size")?,
        retained_bytes: restart_lsn.map_or(0, |restart_lsn| flush_lsn.bytes_since(restart_lsn)),
        catalog_xmin_age: row.try_get("catalog_xmin_age")?,
    })
}

async fn publication(client: &Client, row: &Row, major: u32) -> Result<PublicationRow, SqlError> {
    let oid: u32 = row.try_get("oid")?;
    let schemas = if major >= 15 {
        let text = "SELECT EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = $1)";
        client.query_one(text, &[&oid]).await?.try_get(0)?
    } else {
        false
    };
    let tables = client.query(PUBLICATION_TABLES, &[&oid]).await?;
    let tables = tables.iter().map(|row| {
        Ok(PublicationTable {
            name: TableName { schema: row.try_get("schema")?, name: row.try_get("name")? },
            columns: row.try_get("columns")?,
            filtered: row.try_get("filtered")?,
        })
    });
    Ok(PublicationRow {
        all_tables: row.try_get("all_tables")?,
        schemas,
        all_operations: row.try_get("all_operations")?,
        via_root: row.try_get("via_root")?,
        tables: tables.collect::<Result<_, SqlError>>()?,
    })
}
