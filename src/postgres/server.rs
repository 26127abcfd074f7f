//! What a server says of itself: version, settings that matter to replication, position and rights.

use std::time::Duration;

use tokio_postgres::{Client, Row};

use super::error::SqlError;
use crate::lsn::Lsn;

/// Facts about a server and the role that asks, read in one statement.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerFacts {
    /// `server_version_num`: 150018 is 15.18.
    pub version_num: u32,
    pub database: String,
    /// The role that is connected.
    pub role: String,
    /// `logical` is needed of a source.
    pub wal_level: String,
    /// Bytes of WAL that a slot may hold back; `None` is without limit.
    pub max_slot_wal_keep_size: Option<u64>,
    /// Postgres 18 drops slots that were unused for so long; `None` is never.
    pub idle_replication_slot_timeout: Option<Duration>,
    /// `None` is never.
    pub wal_sender_timeout: Option<Duration>,
    pub max_replication_slots: u32,
    pub replication_slots: u32,
    pub server_encoding: String,
    pub system_identifier: u64,
    pub timeline: u32,
    /// The end of what is durably written; of a standby, of what is replayed.
    pub current_flush_lsn: Lsn,
    pub in_recovery: bool,
    pub is_superuser: bool,
    /// May stream and create slots.
    pub can_replicate: bool,
}

impl ServerFacts {
    /// 15 of 15.18.
    pub fn major(&self) -> u32 {
        self.version_num / 10_000
    }
}

// The control file still names the old timeline until the first checkpoint after a promotion; the name of the WAL file in
// use does not lag. A hosted service grants replication through a role of its own.
const FACTS: &str = "
SELECT current_setting('server_version_num')::int AS version_num, current_database()::text AS database,
       current_user::text AS role, current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int AS max_replication_slots,
       (SELECT count(*) FROM pg_replication_slots)::int AS replication_slots,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size') AS keep_size_mb,
       (SELECT CASE unit WHEN 'min' THEN 60 ELSE 1 END * setting::bigint
        FROM pg_settings WHERE name = 'idle_replication_slot_timeout') AS idle_timeout_s,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout') AS sender_timeout_ms,
       current_setting('server_encoding') AS server_encoding,
       (SELECT system_identifier FROM pg_control_system()) AS system_identifier,
       CASE WHEN pg_is_in_recovery()
            THEN (SELECT timeline_id FROM pg_control_checkpoint())
            ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int
       END AS timeline,
       CASE WHEN pg_is_in_recovery()
            THEN coalesce(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())
            ELSE pg_current_wal_flush_lsn()
       END::text AS flush_lsn,
       pg_is_in_recovery() AS in_recovery, r.rolsuper AS is_superuser,
       r.rolsuper OR r.rolreplication
       OR EXISTS (SELECT FROM pg_roles AS hosted
                  WHERE hosted.rolname = 'rds_replication' AND pg_has_role(hosted.oid, 'member')) AS can_replicate
FROM pg_roles AS r
WHERE r.rolname = current_user";

/// Reads the facts; any role may.
pub async fn server(client: &Client) -> Result<ServerFacts, SqlError> {
    let row = client.query_one(FACTS, &[]).await?;
    let positive = |name| -> Result<Option<u64>, SqlError> {
        let value: Option<i64> = row.try_get(name)?;
        Ok(value.and_then(|value| u64::try_from(value).ok()))
    };
    let above_zero = |value: Option<u64>| value.filter(|value| *value > 0);
    Ok(ServerFacts {
        version_num: count(&row, "version_num")?,
        database: row.try_get("database")?,
        role: row.try_get("role")?,
        wal_level: row.try_get("wal_level")?,
        max_slot_wal_keep_size: positive("keep_size_mb")?.map(|megabytes| megabytes.saturating_mul(1 << 20)),
        idle_replication_slot_timeout: above_zero(positive("idle_timeout_s")?).map(Duration::from_secs),
        wal_sender_timeout: above_zero(positive("sender_timeout_ms")?).map(Duration::from_millis),
        max_replication_slots: count(&row, "max_replication_slots")?,
        replication_slots: count(&row, "replication_slots")?,
        server_encoding: row.try_get("server_encoding")?,
        // The catalog shows the unsigned identifier as a signed number.
        system_identifier: row.try_get::<_, i64>("system_identifier")?.cast_unsigned(),
        timeline: row.try_get::<_, i32>("timeline")?.cast_unsigned(),
        current_flush_lsn: lsn(&row, "flush_lsn")?.unwrap_or_default(),
        in_recovery: row.try_get("in_recovery")?,
        is_superuser: row.try_get("is_superuser")?,
        can_replicate: row.try_get("can_replicate")?,
    })
}

/// A `pg_lsn` column selected as text.
pub fn lsn(row: &Row, name: &str) -> Result<Option<Lsn>, SqlError> {
    let text: Option<&str> = row.try_get(name)?;
    text.map(|text| text.parse().map_err(|_| SqlError::unexpected(format!("column {name} is not an LSN")))).transpose()
}

fn count(row: &Row, name: &str) -> Result<u32, SqlError> {
    u32::try_from(row.try_get::<_, i32>(name)?).map_err(|_| SqlError::unexpected(format!("{name} is negative")))
}
