//! `tailwater setup`: publication and slot at the sources, state schema and target tables at the sinks.

use std::collections::BTreeSet;
use std::time::Duration;

use super::live::{Ends, connect_all, look};
use super::{load_all, runtime, say, show};
use crate::cli::{Cli, Exit, Setup};
use crate::config::Config;
use crate::diagnostic::{Finding, Findings, Severity};
use crate::mapping::MappingFile;
use crate::mapping::desired::{Desired, ddl, desired_tables};
use crate::mapping::plan::Plan;
use crate::pipeline::drift::{GONE_TOPIC, Settled};
use crate::postgres::error::describe;
use crate::sink::clickhouse::ddl::state_schema;
use crate::sink::clickhouse::state::has_schema;
use crate::sink::clickhouse::targets::{make_targets, script};
use crate::sink::postgres::state;
use crate::source::probe::probe;
use crate::source::setup::SetupPlan;

/// How long the slot's creation waits for transactions that write.
const SLOT_TIMEOUT: Duration = Duration::from_secs(60);

pub fn run(cli: &Cli, args: &Setup) -> Exit {
    let (config, files) = match load_all(cli) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let findings = runtime().block_on(set_up(&config, &files, args));
    show(cli, &findings);
    if findings.has_errors() { Exit::Findings } else { Exit::Done }
}

/// Looks at everything first and changes nothing if anything is wrong.
async fn set_up(config: &Config, files: &[MappingFile], args: &Setup) -> Findings {
    let mut ends = connect_all(config).await;
    let mut findings = std::mem::take(&mut ends.findings);
    let mut wanted = Desired::default();
    if args.create_targets {
        let (desired, found) = desired_tables(config, files, &ends.live);
        findings.0.extend(found.0);
        wanted = desired;
        ends.live.assume = wanted.tables.clone();
        for (sink, table) in &wanted.clickhouse {
            // Planned as if it were there.
            if let Some(end) = ends.live.clickhouse.get_mut(sink) {
                end.tables.push(table.clone());
            }
        }
        for topic in &wanted.topics {
            if let Some(end) = ends.live.kafka.get_mut(&topic.sink) {
                end.topics.insert(topic.name.clone(), topic.partitions);
            }
        }
    }
    let Settled { resolved, findings: found, .. } = look(config, files, &mut ends).await;
    findings.0.extend(found.0.into_iter().filter(|finding| !findings.0.contains(finding)).collect::<Vec<_>>());
    if args.create_targets {
        findings.0.iter_mut().for_each(excuse_view);
    }
    findings.0.iter_mut().for_each(excuse_gone);
    let mut plans = Vec::new();
    for (name, client) in &ends.sources {
        let source = &config.sources[name];
        match probe(client, &source.slot, &source.publication).await {
            Ok(found) => {
                let published = resolved.published.get(name).cloned().unwrap_or_default();
                let plan = SetupPlan::make(&published, &found);
                super::check::add_setup(&mut findings, &plan);
                plans.push((name.clone(), plan));
            }
            Err(error) => {
                findings.push(Finding::error("source", format!("source \"{name}\" cannot be probed: {error}")))
            }
        }
    }
    if findings.has_errors() {
        return findings;
    }
    if args.print {
        print(&ends, &wanted, &plans, &resolved.plans);
        return findings;
    }
    if let Err(finding) = make_sinks(&ends, &wanted, &resolved.plans).await {
        findings.push(finding);
        return findings;
    }
    for (name, plan) in &plans {
        let outcome =
            plan.execute(&ends.sources[name], SLOT_TIMEOUT, |step| say(&format!("source {name}: {}", step.why)));
        if let Err(found) = outcome.await {
            findings.0.extend(found.0);
            return findings;
        }
        if plan.steps.is_empty() {
            say(&format!("source {name}: nothing to do"));
        }
    }
    findings
}

/// A view cannot be there before the tables that it reads, which are only about to be made.
fn excuse_view(finding: &mut Finding) {
    if finding.code == "unknown-view" {
        finding.severity = Severity::Warning;
        finding.hint = Some("make it once its tables are there: `check` and `run` insist on it.".to_owned());
    }
}

/// Neither the others nor the one that is gone lose anything by what is made now, and a start may need it: a table that a
/// pattern means newly has no topic yet.
fn excuse_gone(finding: &mut Finding) {
    if finding.code == GONE_TOPIC {
        finding.severity = Severity::Warning;
    }
}

/// State schema and target tables.
async fn make_sinks(ends: &Ends, wanted: &Desired, mapped: &[Plan]) -> Result<(), Finding> {
    make_clickhouse(ends, wanted).await?;
    make_kafka(ends, wanted, mapped).await?;
    for (name, client) in &ends.sinks {
        let refused = |what: &str, error: &tokio_postgres::Error| {
            Finding::error("sink", format!("sink \"{name}\" does not let us make {what}: {}", describe(error)))
                .hint("`deploy/grants/warehouse.sql` lists the rights, and what an owner may make beforehand.")
        };
        let lacks_schema = state::lacks_schema(client).await.map_err(|error| refused("the state schema", &error))?;
        if lacks_schema {
            say(&format!("sink {name}: making schema tailwater"));
            client.batch_execute(state::STATE_SCHEMA).await.map_err(|error| refused("the state schema", &error))?;
        }
        let mine = wanted.of_postgres(name);
        if !mine.is_empty() {
            let names: Vec<_> = mine.iter().map(|table| table.target.to_string()).collect();
            say(&format!("sink {name}: making {}", names.join(", ")));
            client.batch_execute(&ddl(&mine)).await.map_err(|error| refused("the target tables", &error))?;
        }
    }
    Ok(())
}

async fn make_kafka(ends: &Ends, wanted: &Desired, mapped: &[Plan]) -> Result<(), Finding> {
    for (name, cluster) in &ends.kafka {
        let refused = |what: &str, error: &str| {
            let hint = "`deploy/grants/kafka.sh` lists the ACLs that the sink's user needs.";
            Finding::error("sink", format!("sink \"{name}\" does not let us make {what}: {error}")).hint(hint)
        };
        for source in sources_of(name, mapped) {
            cluster.ensure_state(source).await.map_err(|error| refused("the state topic", &error))?;
        }
        for topic in wanted.of_kafka(name) {
            say(&format!("sink {name}: making topic {}", topic.name));
            let made = cluster.make_topic(&topic.name, topic.partitions).await;
            made.map_err(|error| refused(&format!("topic \"{}\"", topic.name), &error))?;
        }
    }
    Ok(())
}

/// Sources that have tables of a sink.
fn sources_of<'a>(sink: &str, mapped: &'a [Plan]) -> BTreeSet<&'a str> {
    mapped.iter().filter(|plan| plan.sink == sink).map(|plan| plan.source.as_str()).collect()
}

async fn make_clickhouse(ends: &Ends, wanted: &Desired) -> Result<(), Finding> {
    for (name, session) in &ends.clickhouse {
        let refused = |what: &str, error: &dyn std::error::Error| {
            let hint = "`deploy/grants/clickhouse.sql` lists the rights that the sink's user needs.";
            Finding::error("sink", format!("sink \"{name}\" does not let us make {what}: {error}")).hint(hint)
        };
        if !has_schema(&session.client).await.map_err(|error| refused("the state tables", &error))? {
            say(&format!("sink {name}: making database tailwater"));
            for statement in state_schema(&session.topology) {
                session.client.execute(&statement).await.map_err(|error| refused("the state tables", &error))?;
            }
        }
        let mine = wanted.of_clickhouse(name);
        if mine.is_empty() {
            continue;
        }
        let names: Vec<_> = mine.iter().map(|table| table.name.to_string()).collect();
        say(&format!("sink {name}: making {}", names.join(", ")));
        let statements = make_targets(&mine, &session.topology);
        for statement in statements.map_err(|error| refused("the target tables", &error))? {
            session.client.execute(&statement).await.map_err(|error| refused("the target tables", &error))?;
        }
    }
    Ok(())
}

fn print(ends: &Ends, wanted: &Desired, plans: &[(String, SetupPlan)], mapped: &[Plan]) {
    for (name, plan) in plans {
        say(&format!("-- source {name}\n{}", plan.script()));
    }
    for name in ends.sinks.keys() {
        let mine = wanted.of_postgres(name);
        say(&format!("-- sink {name}\n{}\n{}", state::STATE_SCHEMA.trim(), ddl(&mine)));
    }
    for (name, session) in &ends.clickhouse {
        let state = state_schema(&session.topology).join(";\n\n");
        // Whether the tables can be made was looked at before.
        let targets = script(&wanted.of_clickhouse(name), &session.topology).unwrap_or_default();
        say(&format!("-- sink {name}\n{state};\n\n{targets}"));
    }
    for (name, cluster) in &ends.kafka {
        let state = |source: &str| format!("{} partitions=1 cleanup.policy=compact", cluster.state_topic(source));
        let topics = wanted.of_kafka(name).map(|topic| format!("{} partitions={}", topic.name, topic.partitions));
        let topics: Vec<String> = sources_of(name, mapped).into_iter().map(state).chain(topics).collect();
        say(&format!("-- sink {name}, topics\n{}", topics.join("\n")));
    }
}
