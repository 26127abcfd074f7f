//! Tests against real servers, which they start themselves.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod harness;
mod huge;
mod patience;
mod spine;
mod startup;
