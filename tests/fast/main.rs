//! Tests that need no services.

mod floors;
mod tidy;
