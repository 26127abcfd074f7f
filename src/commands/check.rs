//! `tailwater check`: everything that can be known to be wrong before anything runs.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use super::live::{Ends, Patience, connect_all};
use super::{load_config, runtime, say, show};
use crate::cli::{Check, Cli, Exit};
use crate::config::Config;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::offline::resolve_offline;
use crate::mapping::plan::Plan;
use crate::mapping::resolve::{Resolved, resolve};
use crate::postgres::error::describe;
use crate::sink::postgres::state;
use crate::sink::postgres::statements::TableStatements;
use crate::source::probe::probe;
use crate::source::setup::SetupPlan;
use crate::verdict::{self, SinkState, Verdict};

pub fn run(cli: &Cli, args: &Check) -> Exit {
    let config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let files = match crate::mapping::load(&config) {
        Ok(files) => files,
        Err(findings) => {
            report(cli, args, &findings);
            return Exit::Usage;
        }
    };
    if args.offline {
        let findings = resolve_offline(&config, &files);
        report(cli, args, &findings);
        return if findings.has_errors() { Exit::Usage } else { Exit::Done };
    }
    let (findings, halted) = runtime().block_on(async {
        let mut ends = connect_all(&config, Patience::None).await;
        let (resolved, found) = resolve(&config, &files, &ends.live);
        let mut findings = std::mem::take(&mut ends.findings);
        findings.0.extend(found.0);
        if !findings.has_errors() {
            check_sinks(&resolved, &ends.sinks, &mut findings).await;
        }
        let halted = check_sources(&config, &resolved, &ends, &mut findings).await;
        (findings, halted)
    });
    report(cli, args, &findings);
    match halted {
        Some(exit) => exit,
        None if findings.has_errors() => Exit::Findings,
        None => {
            if !args.json {
                say("everything fits");
            }
            Exit::Done
        }
    }
}

fn report(cli: &Cli, args: &Check, findings: &Findings) {
    if args.json {
        let all: Vec<_> = findings.0.iter().map(Finding::to_json).collect();
        say(&serde_json::to_string_pretty(&all).expect("findings are plain text"));
    } else {
        show(cli, findings);
    }
}

/// Has every sink prepare the statements that it will be sent: types, columns, expressions and rights in one look.
async fn check_sinks(resolved: &Resolved, sinks: &BTreeMap<String, Client>, findings: &mut Findings) {
    for (number, plan) in resolved.plans.iter().enumerate() {
        let Some(client) = sinks.get(&plan.sink) else { continue };
        if let Err(error) = prepare(client, plan, number).await {
            let message =
                format!("sink \"{}\" does not take table \"{}\": {}", plan.sink, plan.target, describe(&error));
            let finding = Finding::error("statement", message);
            findings.push(match error.code() {
                Some(code) if code == &tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE => {
                    finding.hint("`deploy/grants/warehouse.sql` lists the rights that the sink's role needs.")
                }
                _ => finding.hint("The mapping's types and expressions must fit the target's columns."),
            });
        }
    }
}

/// Nothing stays behind: the stages are temporary, and the transaction is rolled back.
async fn prepare(client: &Client, plan: &Plan, number: usize) -> Result<(), tokio_postgres::Error> {
    let statements = TableStatements::new(plan, number);
    client.batch_execute("BEGIN").await?;
    let prepared = async {
        for create in statements.stages() {
            client.batch_execute(create).await?;
        }
        for sql in statements.all() {
            // EXPLAIN also checks the rights, which PREPARE alone leaves to the execution.
            client.prepare(sql).await?;
        }
        for sql in statements.over_stages() {
            client.batch_execute(&format!("EXPLAIN {}", sql.replace("$1::bigint", "0::bigint"))).await?;
        }
        Ok(())
    };
    let result = prepared.await;
    client.batch_execute("ROLLBACK").await?;
    result
}

/// What setup would say, and what a start would decide.
async fn check_sources(config: &Config, resolved: &Resolved, ends: &Ends, findings: &mut Findings) -> Option<Exit> {
    let mut halted = None;
    for (name, client) in &ends.sources {
        let source = &config.sources[name];
        let found = match probe(client, &source.slot, &source.publication).await {
            Ok(found) => found,
            Err(error) => {
                findings.push(Finding::error("source", format!("source \"{name}\" cannot be probed: {error}")));
                continue;
            }
        };
        let published = resolved.published.get(name).cloned().unwrap_or_default();
        let plan = SetupPlan::make(&published, &found);
        findings.0.extend(plan.findings.0.iter().cloned());
        let sinks = read_states(name, ends).await;
        let facts = found.facts(None);
        match verdict::decide(&sinks, None, verdict::Ack::Sink, &facts) {
            // Without the journal a gap is only a guess: the daemon may hold what the sinks do not have yet.
            Verdict::Halt(halt) if !matches!(halt, verdict::Halt::Gap { .. } | verdict::Halt::Diverged { .. }) => {
                findings.push(Finding::error("start", halt.to_string()).hint(halt.hint()));
                halted = Exit::ALL.into_iter().find(|exit| exit.code() == halt.exit_code());
            }
            Verdict::Halt(halt) => {
                findings.push(
                    Finding::warning("start", halt.to_string())
                        .hint("The journal may have what is missing; `tailwater run` knows."),
                );
            }
            Verdict::Bootstrap { .. } | Verdict::Resume { .. } | Verdict::StandBy => {
                if !plan.steps.is_empty() && !plan.findings.has_errors() {
                    let message = format!("source \"{name}\" is not set up for all mapped tables yet");
                    findings.push(Finding::warning("not-set-up", message).hint("Run `tailwater setup`."));
                }
            }
        }
    }
    halted
}

async fn read_states(source: &str, ends: &Ends) -> Vec<SinkState> {
    let mut states = Vec::new();
    for (name, client) in &ends.sinks {
        let known = state::has_schema(client).await.unwrap_or(false);
        let stored = if known { state::read_checkpoint(client, source).await.ok().flatten() } else { None };
        let tables = if known { state::read_tables(client, source).await.unwrap_or_default() } else { Vec::new() };
        states.push(SinkState {
            name: name.clone(),
            checkpoint: stored.as_ref().map(|stored| stored.checkpoint),
            identity: stored.map(|stored| stored.identity),
            tables_known: !tables.is_empty(),
        });
    }
    states
}
