//! Tests that need no services.

mod config;
mod mapping;
