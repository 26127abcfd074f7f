//! Tests that need no services.

mod config;
mod floors;
mod mapping;
mod tidy;
