//! What an operator sees of a running daemon: metrics, status, health, the status page and logs.
//!
//! ```text
//!  pipeline parts ──▶ Metrics (counters, PairProgress) ──▶ /metrics
//!                 ──▶ StatusBoard ──▶ Status ──▶ /status, /, `tailwater status`
//!                                        └─────▶ health ──▶ /healthz, /readyz
//! ```
//!
//! Nothing here holds a row value, a password or a connection string.

pub mod board;
mod families;
pub mod fetch;
mod handles;
pub mod health;
pub mod http;
pub mod human;
mod listener;
pub mod log;
pub mod metrics;
pub mod process;
pub mod progress;
mod rate;
pub mod render;
pub mod status;
pub mod time;
