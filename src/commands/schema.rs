//! `tailwater schema`: the target tables that mappings ask for, and the language of mapping files.

use super::live::connect_sources;
use super::{load_all, runtime, say_raw, show};
use crate::cli::{Cli, Exit, Schema, SchemaOf};
use crate::diagnostic::Finding;
use crate::mapping::desired::{ddl, desired_tables};
use crate::mapping::schema;
use crate::pipeline::sink_address;
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::targets::script;

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
    let (config, files) = match load_all(cli) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let ends = runtime().block_on(connect_sources(&config));
    let (desired, found) = desired_tables(&config, &files, &ends.live);
    let mut findings = ends.findings;
    findings.0.extend(found.0);
    let mut scripts = Vec::new();
    for name in config.sinks.keys() {
        let script = match sink_address(&config, name) {
            Ok(SinkAddress::Postgres(_)) => ddl(&desired.of_postgres(name)),
            // Its topics are made by `setup --create-targets`; they are no text.
            Ok(SinkAddress::Kafka(_)) => continue,
            Ok(SinkAddress::ClickHouse(_, topology)) => match script(&desired.of_clickhouse(name), &topology) {
                Ok(script) => script,
                Err(error) => {
                    findings.push(Finding::error("ddl", format!("sink \"{name}\": {error}")));
                    continue;
                }
            },
            Err(message) => {
                findings.push(Finding::error("url", message));
                continue;
            }
        };
        if !script.is_empty() {
            scripts.push((name, script));
        }
    }
    show(cli, &findings);
    if findings.has_errors() {
        return Exit::Findings;
    }
    let heading = |name: &str| if scripts.len() > 1 { format!("-- sink {name}\n") } else { String::new() };
    let text: String = scripts.iter().map(|(name, script)| heading(name) + script).collect();
    say_raw(text.as_bytes());
    Exit::Done
}
