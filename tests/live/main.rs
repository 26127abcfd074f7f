//! Tests against real servers, which they start themselves.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod findings;
mod harness;
mod huge;
mod patience;
mod replay;
mod setup;
mod snapshot;
mod spine;
mod startup;
mod surface;
