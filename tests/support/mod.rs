//! What the tests against real servers stand on: private Postgres clusters, the daemon as a child process, an
//! independent reader of the source that knows what every table held after every commit, and workloads.
//!
//! A target includes it by `#[path = "../support/mod.rs"] mod support;`.
#![allow(dead_code, reason = "each target uses its own part of it")]

pub mod certificates;
pub mod checker;
pub mod clickhouse;
pub mod clickhouse_checker;
pub mod cluster;
pub mod daemon;
pub mod drift;
pub mod http;
pub mod http_proxy;
pub mod kafka;
pub mod kafka_proxy;
pub mod kcat;
pub mod lake;
pub mod mirror;
pub mod oracle;
pub mod pair;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod random;
pub mod registry;
pub mod scratch;
pub mod server;
pub mod tls_proxy;
pub mod wait;
pub mod watch;
pub mod watchdog;
pub mod workload;
