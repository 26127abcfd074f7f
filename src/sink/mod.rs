//! What a sink owes: apply batches with their checkpoint, prove what is durable, say where it stands.

use crate::checkpoint::Checkpoint;

pub mod postgres;

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
