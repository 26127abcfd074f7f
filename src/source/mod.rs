//! The edge to a source: what its slot and publication are, and how they come to be.

pub mod history;

pub mod copy_rows;
pub mod layout;

pub mod probe;

pub mod setup;

pub mod snapshot;

pub mod stream;
