//! Postgres values as ClickHouse takes them.

pub mod rowbinary;
pub mod types;
