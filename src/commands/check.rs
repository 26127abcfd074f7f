//! `tailwater check`: everything that can be known to be wrong before anything runs.

mod clickhouse;

use std::collections::BTreeMap;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::live::{Ends, connect_all, look};
use super::{load_config, runtime, say, show};
use crate::catalog::TableName;
use crate::cli::{Check, Cli, Exit};
use crate::config::Config;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::offline::resolve_offline;
use crate::mapping::plan::Plan;
use crate::mapping::resolve::Resolved;
use crate::pipeline::drift::Settled;
use crate::pipeline::source_url;
use crate::postgres::error::describe;
use crate::refresh::check_views;
use crate::sink::kafka::cluster::Remembered;
use crate::sink::postgres::state;
use crate::sink::postgres::statements::TableStatements;
use crate::source::history::read_history;
use crate::source::probe::{SourceProbe, probe};
use crate::source::setup::SetupPlan;
use crate::verdict::{self, JournalRange, SinkState, Sinks, Verdict};
use crate::wire::ReplicationConnection;

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
        let mut ends = connect_all(&config).await;
        let Settled { resolved, findings: found, pretended, .. } = look(&config, &files, &mut ends).await;
        let mut findings = std::mem::take(&mut ends.findings);
        findings.0.extend(found.0);
        if !findings.has_errors() {
            check_sinks(&resolved, &ends.sinks, &pretended, &mut findings).await;
            look_at_views(&resolved, &ends.sinks, &mut findings).await;
            clickhouse::check_sinks(&resolved, &ends.clickhouse, &pretended, &mut findings).await;
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
async fn check_sinks(
    resolved: &Resolved,
    sinks: &BTreeMap<String, Client>,
    pretended: &[(String, TableName)],
    findings: &mut Findings,
) {
    for (number, plan) in resolved.plans.iter().enumerate() {
        // It lacks columns that `tailwater run` adds, and would refuse what names them.
        if pretended.iter().any(|(sink, table)| *sink == plan.sink && *table == plan.target) {
            continue;
        }
        let Some(client) = sinks.get(&plan.sink) else { continue };
        if let Err(error) = prepare(client, plan, number).await {
            let message =
                format!("sink \"{}\" does not take table \"{}\": {}", plan.sink, plan.target, describe(&error));
            let finding = Finding::error("statement", message);
            findings.push(match error.code() {
                Some(code) if code == &SqlState::INSUFFICIENT_PRIVILEGE => {
                    finding.hint("`deploy/grants/warehouse.sql` lists the rights that the sink's role needs.")
                }
                _ => finding.hint("The mapping's types and expressions must fit the target's columns."),
            });
        }
    }
}

/// What stands in the way of refreshing the mapped views.
async fn look_at_views(resolved: &Resolved, sinks: &BTreeMap<String, Client>, findings: &mut Findings) {
    for (name, client) in sinks {
        let views: Vec<_> = resolved.views.iter().filter(|view| &view.sink == name).cloned().collect();
        let mapped = resolved.plans.iter().filter(|plan| &plan.sink == name).map(|plan| plan.target.clone()).collect();
        match check_views(client, &views, &mapped).await {
            Ok(found) => findings.0.extend(found.into_iter().flat_map(|findings| findings.0)),
            Err(error) => {
                findings.push(Finding::error("views", format!("views of sink \"{name}\" cannot be read: {error}")))
            }
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
        add_setup(findings, &plan);
        let sinks = read_states(name, ends, findings).await;
        let history = history(config, name, &sinks, &found).await;
        let journal = journal_range(config, name);
        let unread: Vec<_> = resolved.absent.iter().filter(|absent| &absent.source == name).collect();
        let unread: Vec<_> = unread.into_iter().map(|absent| absent.sink.clone()).collect();
        let sinks = Sinks { read: &sinks, unread: &unread };
        match verdict::decide(sinks, journal, verdict::Ack::Sink, &found.facts(history)) {
            Verdict::Halt(halt) => {
                findings.push(Finding::error("start", halt.to_string()).hint(halt.hint()));
                halted = Exit::ALL.into_iter().find(|exit| exit.code() == halt.exit_code());
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

/// Adds what setup has to say. That nothing is to be published is no news where a mapping has an error.
pub(super) fn add_setup(findings: &mut Findings, plan: &SetupPlan) {
    let had_errors = findings.has_errors();
    let news = plan.findings.0.iter().filter(|finding| !had_errors || finding.code != "nothing-published");
    findings.0.extend(news.cloned());
}

/// What the journal holds, read without its lock: a running daemon may have it.
fn journal_range(config: &Config, source: &str) -> Option<JournalRange> {
    let segments = crate::journal::list(&config.data_dir.join(source)).ok()?;
    let last = segments.last()?;
    let start = segments.iter().rposition(|segment| !segment.continues)?;
    Some(JournalRange { first: segments[start].first, end: last.end, timeline: None })
}

/// The history of the source's timeline, where a sink knows another.
async fn history(
    config: &Config,
    source: &str,
    sinks: &[SinkState],
    found: &SourceProbe,
) -> Option<Vec<verdict::TimelineSwitch>> {
    let timeline = found.server.timeline;
    let mut known = sinks.iter().filter_map(|sink| sink.identity.as_ref()).map(|identity| identity.timeline);
    if known.all(|known| known == timeline) {
        return None;
    }
    let url = source_url(config, source).ok()?;
    let read = tokio::task::spawn_blocking(move || {
        read_history(&mut ReplicationConnection::connect(&url, "tailwater")?, timeline)
    });
    read.await.ok()?.ok().flatten()
}

async fn read_states(source: &str, ends: &Ends, findings: &mut Findings) -> Vec<SinkState> {
    let mut states = Vec::new();
    for (name, client) in &ends.sinks {
        let known = state::has_schema(client).await;
        let stored = match &known {
            Ok(true) => state::read_checkpoint(client, source).await,
            Ok(false) | Err(_) => Ok(None),
        };
        if let Some(error) = known.as_ref().err().or(stored.as_ref().err())
            && error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
        {
            let message = format!("sink \"{name}\" does not let us read its state: {}", describe(error));
            findings.push(Finding::error("state", message).hint(
                "`deploy/grants/warehouse.sql` hands the schema \"tailwater\" and its tables over to the sink's role.",
            ));
        }
        let known = known.unwrap_or(false);
        let stored = stored.ok().flatten();
        let tables = if known { state::read_tables(client, source).await.unwrap_or_default() } else { Vec::new() };
        states.push(SinkState {
            name: name.clone(),
            checkpoint: stored.as_ref().map(|stored| stored.checkpoint),
            identity: stored.map(|stored| stored.identity),
            tables_known: !tables.is_empty(),
        });
    }
    for (name, server) in &ends.clickhouse {
        states.push(clickhouse::sink_state(name, server, source).await);
    }
    for (name, cluster) in &ends.kafka {
        let remembered = cluster.look(source).await.map_or_else(|_| Remembered::default(), |looked| looked.remembered);
        states.push(SinkState {
            name: name.clone(),
            checkpoint: remembered.checkpoint.as_ref().map(|stored| stored.checkpoint),
            identity: remembered.checkpoint.map(|stored| stored.identity),
            tables_known: !remembered.tables.is_empty(),
        });
    }
    states
}
