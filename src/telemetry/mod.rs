//! What an operator sees of a running daemon: metrics, status, health, the status page and logs.
//!
//! ```text
//!  pipeline parts ──▶ Metrics (counters, PairProgress) ──▶ /metrics
//!                 ──▶ StatusBoard ──▶ Status ──▶ /status, /, `tailwater status`
//!                                        └─────▶ health ──▶ /healthz, /readyz
//! ```
//!
//! Nothing here holds a row value, a password or a connection string.

// Measuring.
mod families;
pub mod handles;
pub mod metrics;
pub mod process;
pub mod progress;
mod rate;
// Saying where things stand.
pub mod board;
pub mod health;
mod look;
pub mod status;
// Showing it.
pub mod fetch;
pub mod http;
pub mod human;
mod listener;
pub mod log;
pub mod render;
pub mod time;
