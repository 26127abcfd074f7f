//! What a sink owes: apply batches with their checkpoint, prove what is durable, say where it stands.

use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::lsn::Lsn;
use crate::mapping::plan::Plan;

pub mod any;
pub mod clickhouse;
pub mod http;
pub mod kafka;
pub mod load;
pub mod postgres;
pub mod state;

/// What a sink is made from.
pub struct SinkSetup {
    pub name: String,
    pub source: String,
    pub plans: Vec<Arc<Plan>>,
    pub epoch: i64,
    pub checkpoint: Checkpoint,
    pub mask_key: Arc<[u8]>,
}

/// Why a batch was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The connection or the server failed, or a conflict that passes: connect anew, read the checkpoint, go on.
    #[error("the sink failed for the moment: {message}")]
    Transient { message: String },
    /// Another daemon took the source over; this one must not write any more.
    #[error("the checkpoint is no longer at {end_lsn} of epoch {epoch}: another daemon took over")]
    Fenced { epoch: i64, end_lsn: Lsn },
    /// The target does not take a row.
    #[error("{message}")]
    Table {
        plan_index: usize,
        /// The sink's own code (Postgres: SQLSTATE); `None` where a value could not be encoded.
        code: Option<String>,
        message: String,
    },
    /// Nothing that waiting or leaving out a row would mend.
    #[error("{message}")]
    Fatal { message: String },
}

/// [`ApplyError::Table`]'s code where the sink was given text and was not told to expect it.
pub const TEXT_FORM: &str = "text form";

/// Proof that a sink durably holds everything up to a checkpoint. Only a sink's success makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Durable {
    sink: String,
    checkpoint: Checkpoint,
}

impl Durable {
    /// For sinks, after the commit that recorded the checkpoint was reported, or when it was read back.
    pub(in crate::sink) fn new(sink: &str, checkpoint: Checkpoint) -> Self {
        Durable { sink: sink.to_owned(), checkpoint }
    }

    /// A checkpoint that was read from the sink over a connection of its own: recorded, so durable.
    pub fn read_back(sink: &str, checkpoint: Checkpoint) -> Self {
        Durable::new(sink, checkpoint)
    }

    /// For tests of those who take proofs.
    #[cfg(test)]
    pub fn for_test(sink: &str, checkpoint: Checkpoint) -> Self {
        Durable::new(sink, checkpoint)
    }

    pub fn sink(&self) -> &str {
        &self.sink
    }

    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }
}
