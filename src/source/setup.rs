//! Makes a source's publication and slot, in this order: on the slot's first change the server looks the publication up as
//! it was then, and a publication made later is not there.
//!
//! Planning is pure and gives every finding at once; only [`SetupPlan::execute`] changes the source. Run twice, the
//! second time changes nothing.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::probe::{PLUGIN, PUBLISH, SourceProbe};
use crate::catalog::{quote_ident, quote_literal};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::plan::Published;
use crate::postgres::error::SqlError;
use crate::postgres::server::ServerFacts;

/// Oldest server whose `pgoutput` sends values in binary.
const OLDEST_MAJOR: u32 = 14;
/// First server whose publications have column lists.
const COLUMN_LISTS_MAJOR: u32 = 15;
/// First server that copies slots to its standbys.
const FAILOVER_MAJOR: u32 = 17;

/// What kind of object a step makes, which decides what a failure means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Publication,
    Slot,
}

/// One statement and its reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    pub target: Target,
    pub sql: String,
    pub why: String,
}

/// What to run, in order, and what stands against it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SetupPlan {
    pub steps: Vec<Step>,
    pub findings: Findings,
    database: String,
    role: String,
}

impl SetupPlan {
    /// Compares what is there with what the mappings ask to publish.
    pub fn make(published: &[Published], source: &SourceProbe) -> SetupPlan {
        let mut plan = SetupPlan {
            database: source.server.database.clone(),
            role: source.server.role.clone(),
            ..SetupPlan::default()
        };
        plan.check_names(source);
        plan.check_server(&source.server);
        let listed = plan.listed(published, source.server.major());
        plan.publication(&listed, source);
        plan.slot(source);
        plan
    }

    /// The steps as a script for `psql`.
    pub fn script(&self) -> String {
        self.steps.iter().map(|step| format!("-- {}\n{};\n", step.why, step.sql)).collect::<Vec<_>>().join("\n")
    }

    /// Runs the steps, naming each before it runs.
    ///
    /// The server makes a slot only once every transaction that writes now has ended. After `slot_timeout` the wait is
    /// given up, nothing is left behind, and the finding names who was waited for.
    pub async fn execute(
        &self,
        client: &Client,
        slot_timeout: Duration,
        mut report: impl FnMut(&Step),
    ) -> Result<(), Findings> {
        if self.findings.has_errors() {
            return Err(self.findings.clone());
        }
        for step in &self.steps {
            report(step);
            let result = match step.target {
                Target::Publication => client.batch_execute(&step.sql).await.map_err(SqlError::from),
                Target::Slot => within(client, &step.sql, slot_timeout).await,
            };
            if let Err(error) = result {
                return Err(Findings(vec![self.explain(client, step, &error).await]));
            }
        }
        Ok(())
    }

    fn check_names(&mut self, source: &SourceProbe) {
        let slot = &source.slot_name;
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if slot.is_empty() || slot.len() > 63 || !slot.bytes().all(plain) {
            let finding = Finding::error("slot-name", format!("\"{slot}\" cannot name a replication slot"));
            self.findings.push(finding.hint("Use up to 63 lower-case letters, digits and underscores."));
        }
        let publication = &source.publication_name;
        if publication.is_empty() || publication.len() > 63 || publication.contains('\0') {
            let finding = Finding::error("publication-name", "the publication's name is empty or too long");
            self.findings.push(finding.hint("Use 1 to 63 bytes."));
        }
    }

    fn check_server(&mut self, server: &ServerFacts) {
        if server.major() < OLDEST_MAJOR {
            let found = Finding::error("server-too-old", format!("the source runs Postgres {}", server.major()));
            self.findings.push(found.hint(format!("Postgres {OLDEST_MAJOR} is the oldest that can be a source.")));
        }
        if server.in_recovery {
            let found = Finding::error("source-is-standby", "the source is a standby, which takes no publication");
            self.findings.push(found.hint("Point the source's url at the primary."));
        }
        if server.wal_level != "logical" {
            let found = format!("wal_level is \"{}\", changes cannot be decoded", server.wal_level);
            let hint = "Run ALTER SYSTEM SET wal_level = 'logical' on the source and restart it.";
            self.findings.push(Finding::error("wal-level", found).hint(hint));
        }
        if !server.can_replicate {
            self.findings.push(no_replication(&server.role));
        }
        if let Some(timeout) = server.idle_replication_slot_timeout {
            let found = format!("the source drops slots that are unused for {} s", timeout.as_secs());
            let hint = "Set idle_replication_slot_timeout to 0, or never stop the daemon for so long.";
            self.findings.push(Finding::warning("idle-slot-timeout", found).hint(hint));
        }
        if server.server_encoding == "SQL_ASCII" {
            let found = "the source's encoding is SQL_ASCII, text that is not UTF-8 stops the stream";
            let hint = "Make sure that every published text is UTF-8.";
            self.findings.push(Finding::warning("server-encoding", found).hint(hint));
        }
    }

    /// What this server can be told to publish.
    fn listed(&mut self, published: &[Published], major: u32) -> Vec<Published> {
        if published.is_empty() {
            let found = Finding::error("nothing-published", "no mapping reads a table of this source");
            self.findings.push(found.hint("Name a mapping file whose `source` is this one."));
        }
        if major >= COLUMN_LISTS_MAJOR {
            return published.to_vec();
        }
        for table in published.iter().filter(|table| table.columns.is_some()) {
            let found = format!("all columns of \"{}\" leave the source, also those that are excluded", table.table);
            let hint = format!("Postgres {COLUMN_LISTS_MAJOR} is the first whose publications have column lists.");
            self.findings.push(Finding::warning("column-list", found).hint(hint));
        }
        published.iter().map(|table| Published { table: table.table.clone(), columns: None }).collect()
    }

    fn publication(&mut self, listed: &[Published], source: &SourceProbe) {
        let name = quote_ident(&source.publication_name);
        let options = format!("publish = '{PUBLISH}', publish_via_partition_root = true");
        let tables = tables_sql(listed);
        let Some(there) = &source.publication else {
            if source.slot.is_some() {
                let found = format!(
                    "replication slot \"{}\" is older than the publication that is missing, \"{}\"",
                    source.slot_name, source.publication_name
                );
                let hint = "Changes that it holds cannot be read. Drop the slot with pg_drop_replication_slot, then run \
                            `tailwater setup` again.";
                self.findings.push(Finding::error("slot-before-publication", found).hint(hint));
            }
            let sql = format!("CREATE PUBLICATION {name} FOR TABLE {tables} WITH ({options})");
            self.step(Target::Publication, sql, "publish the mapped tables; must exist before the slot".to_owned());
            return;
        };
        if there.all_tables {
            let found = format!("publication \"{}\" publishes all tables", source.publication_name);
            let hint = "Name another publication for this source; this one is not changed, others may use it.";
            self.findings.push(Finding::error("publication-all-tables", found).hint(hint));
            return;
        }
        if !there.publishes(listed) {
            let sql = format!("ALTER PUBLICATION {name} SET TABLE {tables}");
            self.step(Target::Publication, sql, "publish exactly the mapped tables and columns".to_owned());
        }
        if !there.all_operations || !there.via_root {
            let sql = format!("ALTER PUBLICATION {name} SET ({options})");
            self.step(Target::Publication, sql, "publish every operation, partitions as their root".to_owned());
        }
    }

    fn slot(&mut self, source: &SourceProbe) {
        if let Some(slot) = &source.slot {
            if let Some(reason) = slot.lost(&source.server.database) {
                let found = format!("replication slot \"{}\" cannot be used: {reason}", source.slot_name);
                let hint = "Drop it with pg_drop_replication_slot, or name another slot for this source.";
                self.findings.push(Finding::error("slot-unusable", found).hint(hint));
            }
            return;
        }
        if source.server.replication_slots >= source.server.max_replication_slots {
            self.findings.push(no_free_slot());
        }
        let failover = if source.server.major() >= FAILOVER_MAJOR { ", failover => true" } else { "" };
        let sql = format!(
            "SELECT pg_catalog.pg_create_logical_replication_slot({}, '{PLUGIN}', false, false{failover})",
            quote_literal(&source.slot_name)
        );
        self.step(Target::Slot, sql, "keep the changes from here on; waits for transactions that write now".to_owned());
    }

    fn step(&mut self, target: Target, sql: String, why: String) {
        self.steps.push(Step { target, sql, why });
    }

    /// A failed step as a finding that says what to grant or set.
    async fn explain(&self, client: &Client, step: &Step, error: &SqlError) -> Finding {
        let state = error.sqlstate().unwrap_or(&SqlState::INTERNAL_ERROR);
        let (database, role) = (quote_ident(&self.database), quote_ident(&self.role));
        match step.target {
            Target::Publication if *state == SqlState::INSUFFICIENT_PRIVILEGE => {
                let hint = format!(
                    "Run GRANT CREATE ON DATABASE {database} TO {role} and make the role an owner of every mapped table, \
                     or let their owner run what `tailwater setup --print` prints."
                );
                Finding::error("no-publication-right", error.to_string()).hint(hint)
            }
            Target::Publication if *state == SqlState::UNDEFINED_TABLE => {
                Finding::error("unknown-table", error.to_string()).hint("Run `tailwater check`.")
            }
            Target::Publication if *state == SqlState::INVALID_PARAMETER_VALUE => {
                let hint = "Views, foreign, unlogged, temporary and system tables have no changes to publish.";
                Finding::error("unpublishable-table", "a mapped relation cannot be published").hint(hint)
            }
            Target::Slot if *state == SqlState::INSUFFICIENT_PRIVILEGE => no_replication(&self.role),
            Target::Slot if *state == SqlState::CONFIGURATION_LIMIT_EXCEEDED => no_free_slot(),
            Target::Slot if *state == SqlState::QUERY_CANCELED => blocked(blockers(client).await),
            Target::Publication | Target::Slot => Finding::error("setup-failed", error.to_string()),
        }
    }
}

/// `ONLY`, because children by old-style inheritance would come as tables that nothing maps; partitions always belong to
/// their root.
fn tables_sql(listed: &[Published]) -> String {
    let table = |published: &Published| {
        let columns = published.columns.as_ref().map(|columns| {
            let quoted: Vec<_> = columns.iter().map(|column| quote_ident(column)).collect();
            format!(" ({})", quoted.join(", "))
        });
        format!("ONLY {}{}", published.table.quoted(), columns.unwrap_or_default())
    };
    listed.iter().map(table).collect::<Vec<_>>().join(", ")
}

/// Runs one statement under a time limit of the server, which undoes it cleanly.
async fn within(client: &Client, sql: &str, limit: Duration) -> Result<(), SqlError> {
    client.batch_execute(&format!("SET statement_timeout = {}", limit.as_millis().max(1))).await?;
    let result = client.batch_execute(sql).await;
    client.batch_execute("RESET statement_timeout").await?;
    Ok(result?)
}

/// A transaction that slot creation waits for.
struct Blocker {
    /// None for a prepared transaction.
    pid: Option<i32>,
    gid: Option<String>,
    state: Option<String>,
    age_seconds: Option<f64>,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, &self.gid) {
            (Some(pid), _) => write!(f, "pid {pid}")?,
            (None, Some(gid)) => write!(f, "prepared transaction \"{}\"", gid.escape_default())?,
            (None, None) => write!(f, "a prepared transaction")?,
        }
        if let Some(state) = &self.state {
            write!(f, ", {state}")?;
        }
        match self.age_seconds {
            Some(seconds) => write!(f, ", for {seconds:.0} s"),
            None => Ok(()),
        }
    }
}

// Every transaction that wrote holds a lock on its own id, and locks are visible to any role; state and age only to one
// that may see the other's session. The query's text is not asked for: it holds values.
const BLOCKERS: &str = "
SELECT l.pid, p.gid, a.state,
       extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared))::float8 AS age_seconds
FROM pg_locks AS l
LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_prepared_xacts AS p ON l.pid IS NULL AND p.transaction = l.transactionid
WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
AND l.pid IS DISTINCT FROM pg_backend_pid()
ORDER BY 4 DESC NULLS LAST
LIMIT 10";

/// Who writes now. Best effort: it explains a failure, and must not become one.
async fn blockers(client: &Client) -> Vec<Blocker> {
    let rows = client.query(BLOCKERS, &[]).await.unwrap_or_default();
    rows.iter()
        .map(|row| Blocker {
            pid: row.try_get("pid").ok().flatten(),
            gid: row.try_get("gid").ok().flatten(),
            state: row.try_get("state").ok().flatten(),
            age_seconds: row.try_get("age_seconds").ok().flatten(),
        })
        .collect()
}

fn blocked(blockers: Vec<Blocker>) -> Finding {
    let listed: Vec<_> = blockers.iter().map(Blocker::to_string).collect();
    let found = match listed.len() {
        0 => "the slot was not made in time, a transaction that writes was waited for".to_owned(),
        _ => format!("the slot was not made in time, it waits for: {}", listed.join("; ")),
    };
    Finding::error("slot-blocked", found)
        .hint("End these transactions, or run `tailwater setup` again when they are done.")
}

fn no_replication(role: &str) -> Finding {
    Finding::error("no-replication-right", format!("role \"{role}\" may not replicate")).hint(format!(
        "Run ALTER ROLE {} REPLICATION as a superuser; on Amazon RDS, GRANT rds_replication TO it.",
        quote_ident(role)
    ))
}

fn no_free_slot() -> Finding {
    Finding::error("no-free-slot", "all replication slots of the source are in use")
        .hint("Drop an unused slot, or raise max_replication_slots and restart the source.")
}

#[cfg(test)]
mod tests;
