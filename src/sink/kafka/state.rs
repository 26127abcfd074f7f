//! What Kafka remembers of a source: records of a compacted topic of its own, the last of each key counts.
//!
//! A checkpoint is written in the transaction that brings the changes before it, so both are there or neither. Who
//! initialises a source's transactional id fences everybody who held it before, which makes a takeover safe.

use serde::{Deserialize, Serialize};

use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity, UnixMicros};
use crate::lsn::Lsn;
use crate::sink::state::{StoredCheckpoint, StoredTable, TableState, name_text};

/// A key of the state topic.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum StateKey {
    Checkpoint { source: String },
    Table { source: String, target: String },
}

impl StateKey {
    pub fn checkpoint(source: &str) -> Vec<u8> {
        json(&StateKey::Checkpoint { source: source.to_owned() })
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    pub fn table(source: &str, target: &TableName) -> Vec<u8> {
        json(&StateKey::Table { source: source.to_owned(), target: name_text(target) })
    }
}

/// A checkpoint as the topic holds it. Positions are text, as everywhere a person reads them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckpointRecord {
    pub commit_lsn: String,
    pub end_lsn: String,
    pub ordinal: u64,
    /// Microseconds since 1970.
    pub commit_ts: Option<i64>,
    /// As text: more than a JSON number is sure to hold.
    pub system_identifier: String,
    pub timeline: u32,
    pub database: String,
    pub slot: String,
    pub epoch: i64,
}

impl CheckpointRecord {
    pub fn new(checkpoint: &Checkpoint, identity: &SourceIdentity, epoch: i64) -> Self {
        CheckpointRecord {
            commit_lsn: checkpoint.commit_lsn.to_string(),
            end_lsn: checkpoint.end_lsn.to_string(),
            ordinal: checkpoint.ordinal,
            commit_ts: checkpoint.commit_ts.map(|at| at.0),
            system_identifier: identity.system_identifier.to_string(),
            timeline: identity.timeline,
            database: identity.database.clone(),
            slot: identity.slot.clone(),
            epoch,
        }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    /// # Errors
    /// The record is not one of these.
    pub fn read(bytes: &[u8]) -> Result<StoredCheckpoint, String> {
        let record: CheckpointRecord = parse(bytes)?;
        let system_identifier = record.system_identifier.parse();
        Ok(StoredCheckpoint {
            checkpoint: Checkpoint {
                commit_lsn: lsn(&record.commit_lsn)?,
                end_lsn: lsn(&record.end_lsn)?,
                ordinal: record.ordinal,
                commit_ts: record.commit_ts.map(UnixMicros),
            },
            identity: SourceIdentity {
                system_identifier: system_identifier.map_err(|_| damaged("its system identifier is no number"))?,
                timeline: record.timeline,
                database: record.database,
                slot: record.slot,
            },
            epoch: record.epoch,
        })
    }
}

/// A table's state as the topic holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableRecord {
    pub state: TableState,
    /// The source's table.
    pub origin: String,
    /// Which of that name; 0 where that was not written down.
    #[serde(default)]
    pub oid: u32,
    pub topic: String,
    /// How many partitions the topic had when its first message came: which key is where follows from it.
    pub partitions: i32,
    pub lsn: String,
    pub until: String,
    pub joined: bool,
    pub rows: u64,
    pub reason: Option<String>,
}

impl TableRecord {
    /// Of a table of which nothing is known yet.
    pub fn new(origin: &TableName, topic: &str) -> Self {
        TableRecord {
            state: TableState::Pending,
            origin: name_text(origin),
            oid: 0,
            topic: topic.to_owned(),
            partitions: 0,
            lsn: Lsn::ZERO.to_string(),
            until: Lsn::ZERO.to_string(),
            joined: false,
            rows: 0,
            reason: None,
        }
    }

    /// Its topic holds the table as it was copied.
    pub fn is_filled(&self) -> bool {
        matches!(self.state, TableState::Catchup | TableState::Streaming)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        json(self)
    }

    /// # Errors
    /// The record is not one of these.
    pub fn parse(bytes: &[u8]) -> Result<TableRecord, String> {
        parse(bytes)
    }

    /// # Errors
    /// A position is none.
    pub fn stored(&self, target: TableName) -> Result<StoredTable, String> {
        Ok(StoredTable {
            target,
            state: self.state,
            lsn: lsn(&self.lsn)?,
            until: lsn(&self.until)?,
            joined: self.joined,
            rows: self.rows,
        })
    }
}

fn lsn(text: &str) -> Result<Lsn, String> {
    text.parse().map_err(|_| damaged("a position of it is none"))
}

fn parse<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|_| damaged("it is not what this version writes"))
}

fn damaged(what: &str) -> String {
    format!("a record of the state topic cannot be read: {what}")
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a record of texts and numbers is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let checkpoint =
            Checkpoint { commit_lsn: Lsn(5), end_lsn: Lsn(9), ordinal: 3, commit_ts: Some(UnixMicros(-7)) };
        let identity = SourceIdentity {
            system_identifier: u64::MAX,
            timeline: 2,
            database: "lms".to_owned(),
            slot: "s".to_owned(),
        };
        let record = CheckpointRecord::new(&checkpoint, &identity, 4);
        let stored = CheckpointRecord::read(&record.to_bytes()).expect("it was written by us");
        assert_eq!(stored, StoredCheckpoint { checkpoint, identity, epoch: 4 });

        let table = TableRecord {
            state: TableState::Catchup,
            origin: "public.course".to_owned(),
            oid: 16_400,
            topic: "lms.public.course".to_owned(),
            partitions: 6,
            lsn: "0/10".to_owned(),
            until: "1/20".to_owned(),
            joined: false,
            rows: 7,
            reason: None,
        };
        assert_eq!(TableRecord::parse(&table.to_bytes()), Ok(table.clone()));
        // As it was before OIDs were written down.
        let text = String::from_utf8(table.to_bytes()).expect("JSON").replace("\"oid\":16400,", "");
        assert_eq!(TableRecord::parse(text.as_bytes()), Ok(TableRecord { oid: 0, ..table }));
    }

    #[test]
    fn foreign_records_are_refused_without_being_shown() {
        for bytes in [&b"s3cret"[..], b"{}", br#"{"commit_lsn":"s3cret"}"#] {
            let error = CheckpointRecord::read(bytes).expect_err("not ours");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
