//! `tailwater schema`: the target tables that mappings ask for, and the language of mapping files.

use super::live::{Patience, connect_sources};
use super::{load_config, runtime, say_raw, show};
use crate::cli::{Cli, Exit, Schema, SchemaOf};
use crate::mapping::desired::{DesiredTable, ddl, desired_tables};
use crate::mapping::schema;

pub fn run(cli: &Cli, args: &Schema) -> Exit {
    match args.of {
        SchemaOf::Json => {
            say_raw(schema::json().as_bytes());
            Exit::Done
        }
        SchemaOf::Ddl => print_ddl(cli),
    }
}

fn print_ddl(cli: &Cli) -> Exit {
    let config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let files = match crate::mapping::load(&config) {
        Ok(files) => files,
        Err(findings) => {
            show(cli, &findings);
            return Exit::Usage;
        }
    };
    let ends = runtime().block_on(connect_sources(&config, Patience::None));
    let (tables, found) = desired_tables(&config, &files, &ends.live);
    let mut findings = ends.findings;
    findings.0.extend(found.0);
    show(cli, &findings);
    if findings.has_errors() {
        return Exit::Findings;
    }
    let mut sinks: Vec<&str> = tables.iter().map(|table| table.sink.as_str()).collect();
    sinks.sort_unstable();
    sinks.dedup();
    let mut text = String::new();
    for sink in &sinks {
        let mine: Vec<DesiredTable> = tables.iter().filter(|table| &table.sink == sink).cloned().collect();
        if sinks.len() > 1 {
            text.push_str(&format!("-- sink {sink}\n"));
        }
        text.push_str(&ddl(&mine));
    }
    say_raw(text.as_bytes());
    Exit::Done
}
