//! What every kind of sink remembers of a source: its checkpoint, and where each table stands.

use serde::{Deserialize, Serialize};

use crate::catalog::TableName;
use crate::checkpoint::{Checkpoint, SourceIdentity};
use crate::lsn::Lsn;

/// The checkpoint row of one source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredCheckpoint {
    pub checkpoint: Checkpoint,
    pub identity: SourceIdentity,
    /// Counts the daemons that took the source over; a daemon with an older one can write nothing.
    pub epoch: i64,
}

/// Where a table stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    #[default]
    Pending,
    Copying,
    Catchup,
    Streaming,
    Paused,
    Quarantined,
}

impl TableState {
    pub const ALL: [TableState; 6] = [
        TableState::Pending,
        TableState::Copying,
        TableState::Catchup,
        TableState::Streaming,
        TableState::Paused,
        TableState::Quarantined,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            TableState::Pending => "pending",
            TableState::Copying => "copying",
            TableState::Catchup => "catchup",
            TableState::Streaming => "streaming",
            TableState::Paused => "paused",
            TableState::Quarantined => "quarantined",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        TableState::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// The state row of one target table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredTable {
    pub target: TableName,
    pub state: TableState,
    /// The snapshot's point: changes of transactions that commit from here on are to be applied.
    pub lsn: Lsn,
    /// Where the copy ended: only from here on the table is as the source has it, since a TRUNCATE during the copy empties
    /// even the snapshot's view of a table.
    pub until: Lsn,
    /// In `catchup`: the table follows the stream already and only waits for `until`.
    pub joined: bool,
    /// Rows copied.
    pub rows: u64,
}

/// A table's name as the state tables hold it: readable back by `TableName::from_str`.
pub fn name_text(name: &TableName) -> String {
    let part = |part: &str| if part.contains('.') { format!("\"{part}\"") } else { part.to_owned() };
    format!("{}.{}", part(&name.schema), part(&name.name))
}
