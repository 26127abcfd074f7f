//! What a builder is told, and what it answers.

use super::fold::KeyMissing;
use crate::assemble::AssembleError;
use crate::frame::FrameError;
use crate::lsn::Lsn;
use crate::mapping::bind::BindError;

/// When a batch is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// Rows of the target, before folding.
    pub rows: usize,
    /// Bytes of the blocks that the batch keeps alive.
    pub bytes: usize,
    /// Source transactions.
    pub commits: u64,
}

/// Why a stream cannot be turned into batches.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BuildError {
    #[error("journal holds what is no frame")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Assemble(#[from] AssembleError),
    /// Concerns one table only.
    #[error("table \"{target}\" cannot take the changes of transaction {commit_lsn}: {cause}")]
    Table { plan_index: usize, target: String, commit_lsn: Lsn, cause: TableCause },
}

/// What is wrong with one table's changes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableCause {
    #[error(transparent)]
    Bind(#[from] Box<BindError>),
    #[error(transparent)]
    Key(#[from] KeyMissing),
}

/// Whether a table takes changes from the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taking {
    /// Not yet, or not any more: its changes are left out.
    No,
    /// Changes of transactions that commit at this LSN or later; earlier ones are in its snapshot.
    From(Lsn),
}

/// How far a block was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// All of it.
    Whole,
    /// The batch is full; the block's frames from this byte on belong to the next one.
    Until(usize),
}
