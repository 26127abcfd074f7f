//! Kafka: a transactional producer of its own per source, and what is asked of topics before it writes.
//!
//! ```text
//! address   where the brokers are, and how a client is set up   ─┬─▶ producer   begin ▶ send … ▶ commit
//! failure   what went wrong, as one of five verdicts            ─┤
//! partition which partition a key belongs to                    ─┴─▶ topics     create, count partitions, read back
//! ```

pub mod address;
mod client;
pub mod failure;
pub mod partition;
pub mod producer;
pub mod topics;

#[cfg(test)]
mod tests;
