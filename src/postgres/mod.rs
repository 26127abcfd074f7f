//! The edge to Postgres that sources and sinks share: addresses, TLS, SQL connections, errors, and what a server says of
//! itself and of its tables.

pub mod url;

pub mod tls;

pub mod error;

pub mod connect;

pub mod catalog;

pub mod server;
