//! Postgres values as ClickHouse takes them.

pub mod json;
pub mod rowbinary;
pub mod types;
