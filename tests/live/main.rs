//! Tests against real servers, which they start themselves.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod findings;
mod harness;
mod setup;
mod huge;
mod patience;
mod snapshot;
mod spine;
mod startup;
