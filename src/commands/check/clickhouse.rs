//! What `check` has a ClickHouse sink say of the statements that it will be sent. Nothing is written.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::catalog::TableName;
use crate::diagnostic::{Finding, Findings};
use crate::mapping::plan::{DeleteMode, Plan};
use crate::mapping::resolve::Resolved;
use crate::refresh::check_clickhouse_views;
use crate::sink::clickhouse::Server;
use crate::sink::clickhouse::encode::RowEncoder;
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::http::Client;
use crate::sink::clickhouse::state::{self, number};
use crate::sink::clickhouse::statements::{Missing, Places, TableStatements};
use crate::verdict::SinkState;

const RIGHTS: &str = "`deploy/grants/clickhouse.sql` lists the rights that the sink's user needs.";
/// ACCESS_DENIED.
const DENIED: i32 = 497;

/// Statements, rights and views of every ClickHouse sink.
pub(super) async fn check_sinks(
    resolved: &Resolved,
    sinks: &BTreeMap<String, Server>,
    pretended: &[(String, TableName)],
    findings: &mut Findings,
) {
    for (name, server) in sinks {
        let plans = resolved.plans.iter().filter(|plan| &plan.sink == name);
        for (number, plan) in plans.clone().enumerate() {
            // It lacks columns that `tailwater run` adds, and would refuse what names them.
            if pretended.iter().any(|(sink, table)| sink == name && *table == plan.target) {
                continue;
            }
            if let Err(refused) = try_statements(server, plan, number).await {
                let message = format!("sink \"{name}\" does not take table \"{}\": {refused}", plan.target);
                let hint = match refused {
                    Refused::Server(ClickHouseError::Server(exception)) if exception.code == DENIED => RIGHTS,
                    _ => "The mapping's types and expressions must fit the target's columns.",
                };
                findings.push(Finding::error("statement", message).hint(hint));
            }
        }
        findings.0.extend(state_rights(name, &server.client).await);
        let views: Vec<_> = resolved.views.iter().filter(|view| &view.sink == name).cloned().collect();
        let mapped = plans.map(|plan| plan.target.clone()).collect();
        match check_clickhouse_views(&server.client, &views, &mapped).await {
            Ok(found) => findings.0.extend(found.into_iter().flat_map(|findings| findings.0)),
            Err(error) => {
                findings.push(Finding::error("views", format!("views of sink \"{name}\" cannot be read: {error}")));
            }
        }
    }
}

/// Why a table's statements cannot work.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Server(#[from] ClickHouseError),
    #[error("{0}")]
    Encoder(String),
}

/// Inserts without a row are looked at as those with rows are: names, types, expressions, rights. What would read the target is
/// only explained.
async fn try_statements(server: &Server, plan: &Plan, number: usize) -> Result<(), Refused> {
    RowEncoder::new(plan, &[], server.reach).map_err(|error| Refused::Encoder(error.to_string()))?;
    let client = &server.client;
    let statements = TableStatements::new(plan, number);
    client.insert(&statements.direct.write, Bytes::new(), &[]).await?;
    if plan.key.is_empty() {
        return Ok(());
    }
    client.insert(&statements.direct.bury, Bytes::new(), &[]).await?;
    let softly = plan.delete == DeleteMode::Soft;
    client.execute(&format!("EXPLAIN PIPELINE {}", statements.truncate(0, softly))).await?;
    let (stage, gather) = (&statements.stage, &statements.gather);
    let mut over_stage = Vec::new();
    if !stage.toastable.is_empty() {
        over_stage.push(gather.inserts.complete.statement(Missing::Fails, Places::Several));
        over_stage.push(gather.land.clone());
    }
    if softly {
        over_stage.push(stage.mark.clone());
    }
    if over_stage.is_empty() {
        return Ok(());
    }
    // What is made goes with the session.
    let session = format!("tailwater-check-{}-{number}", std::process::id());
    let settings = [("session_id", session.as_str()), ("session_timeout", "10")];
    client.execute_with(&stage.create, &settings).await?;
    client.execute_with(&gather.create, &settings).await?;
    client.insert(&stage.fill, Bytes::new(), &settings).await?;
    for sql in over_stage {
        client.execute_with(&format!("EXPLAIN PIPELINE {sql}"), &settings).await?;
    }
    Ok(())
}

/// What stands in the way of reading and writing the state tables, or of making them.
async fn state_rights(name: &str, client: &Client) -> Option<Finding> {
    let message = match state::has_schema(client).await {
        Ok(true) if granted(client, "SELECT, INSERT").await => return None,
        Ok(true) => format!("the user of sink \"{name}\" may not read and write the tables of database \"tailwater\""),
        Ok(false) if granted(client, "CREATE DATABASE, CREATE TABLE, SELECT, INSERT").await => return None,
        Ok(false) => format!("the user of sink \"{name}\" may not make database \"tailwater\", which does not exist"),
        Err(error) => format!("sink \"{name}\" does not let us read its state: {error}"),
    };
    Some(Finding::error("state", message).hint(RIGHTS))
}

/// Servers before 24.10 cannot be asked; there the statements themselves have to say it.
async fn granted(client: &Client, rights: &str) -> bool {
    match client.rows(&format!("CHECK GRANT {rights} ON tailwater.*")).await {
        Ok(rows) => rows.first().and_then(|row| row.first()).is_none_or(|value| number(value) == 1),
        Err(_) => true,
    }
}

/// What the sink holds of a source, for the start-up decision.
pub(super) async fn sink_state(name: &str, server: &Server, source: &str) -> SinkState {
    let client = &server.client;
    let known = state::has_schema(client).await.unwrap_or(false);
    let (mut stored, mut tables_known) = (None, false);
    if known {
        stored = state::read_checkpoint(client, source).await.ok().flatten();
        tables_known = state::read_tables(client, source).await.is_ok_and(|tables| !tables.is_empty());
    }
    SinkState {
        name: name.to_owned(),
        checkpoint: stored.as_ref().map(|stored| stored.checkpoint),
        identity: stored.map(|stored| stored.identity),
        tables_known,
    }
}
