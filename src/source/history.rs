//! The history of a source's timeline, as the server tells it over a replication connection.

use crate::verdict::{self, TimelineSwitch};
use crate::wire::{ReplicationConnection, WireError};

/// Reads the history of `timeline`; `None` if the server's answer is no history, as for the first timeline.
///
/// # Errors
/// The server has no such history file, or the connection broke.
pub fn read_history(wire: &mut ReplicationConnection, timeline: u32) -> Result<Option<Vec<TimelineSwitch>>, WireError> {
    let rows = wire.query(&format!("TIMELINE_HISTORY {timeline}"))?;
    let text = rows.into_iter().next().and_then(|row| row.into_iter().nth(1)).flatten();
    Ok(text.and_then(|text| verdict::read_history(&text).ok()))
}
