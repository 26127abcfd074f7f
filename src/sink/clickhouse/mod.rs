//! The ClickHouse sink: rows with a version made of the source position, so that a replay changes nothing.

pub mod address;
pub mod ddl;
pub mod error;
pub mod http;
pub mod rowbinary;
pub mod types;
