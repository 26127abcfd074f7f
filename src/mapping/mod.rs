//! Mapping files: from the user's TOML to plans.

pub mod bind;
pub mod plan;
