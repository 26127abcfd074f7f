//! tailwater tails Postgres logical replication slots, maps each change through declarative mappings, and applies it
//! exactly once to star schemas.
//!
//! ```text
//!  source Postgres                                       one applier per sink
//!  ┌──────────┐ CopyData ┌────────┐ frames ┌─────────┐   ┌──────────────────────────────────────────────┐
//!  │ walsender├─────────▶│ stream ├───────▶│ journal ├──▶│ decode ▶ assemble ▶ map ▶ batch ▶ sink.apply │
//!  └────▲─────┘          └───▲────┘        └────┬────┘   └───────────────────────────────┬──────────────┘
//!       │ status             │ Confirm          │ replay --from-lsn                      │ Durable(checkpoint)
//!       └────────────────────┴───────────── ledger: min over sinks ◀─────────────────────┘
//! ```
//!
//! Modules stand in floors; a file imports only from floors above it in this list (`tests/fast/floors.rs` keeps it so).

// Floor 0: vocabulary. No IO, async, clock or log.
pub mod catalog;
pub mod checkpoint;
pub mod diagnostic;
pub mod lsn;
pub mod tuple;
// Floor 1: decode, pure.
pub mod assemble;
pub mod frame;
pub mod pgoutput;
pub mod value;
// Floor 2: configuration and mapping, pure.
pub mod config;
pub mod mapping;
// Floor 3: decisions and contracts, pure. (Of `sink` only the contract, `sink/mod.rs`; the sinks themselves are edges and stand on floor 4.)
pub mod batch;
pub mod ledger;
pub mod retry;
pub mod sink;
pub mod verdict;
// Floor 4: edges, async, one outside each.
pub mod journal;
pub mod postgres;
pub mod refresh;
pub mod source;
pub mod wire;
// Floor 5: running it.
pub mod pipeline;
pub mod telemetry;
// Floor 6: surface.
pub mod cli;
pub mod commands;
