//! Mapping files: from the user's TOML to plans.
//!
//! ```text
//! model.toml ─▶ syntax: what was written, with places ─▶ resolve: against both ends' catalogs ─▶ Plan, ViewPlan, Published
//!                                    └▶ desired: the target tables that a mapping asks for, as DDL
//! ```

use crate::config::{Config, read_error};
use crate::diagnostic::{Finding, Findings, SourceFile};

pub mod bind;
pub mod clickhouse;
pub mod desired;
mod draft;
pub mod kafka;
pub mod offline;
pub mod plan;
mod plan_build;
pub mod publication;
pub mod resolve;
#[cfg(test)]
pub(crate) mod sample;
pub mod schema;
mod sql;
pub mod syntax;
mod syntax_column;
mod target;
pub mod types;

pub use syntax::MappingFile;

/// Reads every mapping file that the configuration names.
///
/// # Errors
/// All findings of all files.
pub fn load(config: &Config) -> Result<Vec<MappingFile>, Findings> {
    let mut files = Vec::new();
    let mut findings = Findings::default();
    for path in &config.mappings {
        match std::fs::read_to_string(path) {
            Ok(text) => match MappingFile::parse(SourceFile::new(path, text)) {
                Ok(file) => files.push(file),
                Err(found) => findings.0.extend(found.0),
            },
            Err(error) => {
                let message = format!("cannot read \"{}\": {}", path.display(), read_error(&error));
                let finding = Finding::error("unreadable-file", message);
                findings.push(
                    finding
                        .hint("`mappings` of the configuration names it, relative to the configuration's directory."),
                );
            }
        }
    }
    if findings.has_errors() { Err(findings) } else { Ok(files) }
}
