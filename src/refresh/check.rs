//! What `check` finds about materialized views that are to be refreshed. Places in the user's files are the caller's to add.

use std::collections::BTreeSet;

use tokio_postgres::Client;

use super::clickhouse;
use super::graph::{View, ViewGraph, dependencies};
use crate::catalog::{TableKind, TableName, quote_ident};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::clickhouse::quoted;
use crate::mapping::plan::{RefreshMode, ViewPlan};
use crate::postgres::error::SqlError;
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::http;
use crate::sink::clickhouse::state::number;

/// Looks at the views of one sink over a connection of the role that will refresh them. `mapped` are the tables that the
/// daemon fills there. The findings of view `plans[n]` stand in place `n` of the answer.
pub async fn check_views(
    client: &Client,
    plans: &[ViewPlan],
    mapped: &BTreeSet<TableName>,
) -> Result<Vec<Findings>, SqlError> {
    let names: Vec<_> = plans.iter().map(|plan| plan.view.clone()).collect();
    let graph = dependencies(client, &names).await?;
    Ok(plans.iter().map(|plan| judge(plan, &graph, mapped)).collect())
}

/// The same for refreshable views of ClickHouse. That they exist and are refreshable was found when they were planned.
pub async fn check_clickhouse_views(
    client: &http::Client,
    plans: &[ViewPlan],
    mapped: &BTreeSet<TableName>,
) -> Result<Vec<Findings>, ClickHouseError> {
    let names: Vec<_> = plans.iter().map(|plan| plan.view.clone()).collect();
    if !names.is_empty() {
        // Where a refresh's outcome is looked up.
        client.rows("SELECT status, exception FROM system.view_refreshes LIMIT 1").await?;
    }
    let graph = clickhouse::dependencies(client, &names).await?;
    let mut all = Vec::new();
    for name in &names {
        let mut findings = Findings::default();
        let granted = client.rows(&format!("CHECK GRANT SYSTEM VIEWS ON {}", quoted(name))).await?;
        if granted.first().and_then(|row| row.first()).is_some_and(|value| number(value) == 0) {
            let hint = format!("run `GRANT SYSTEM VIEWS ON {} TO …`.", quoted(name));
            let message = format!("the sink's user may not refresh \"{name}\"");
            findings.push(Finding::error("no-refresh-right", message).hint(hint));
        }
        if let Some(view) = graph.view(name) {
            warn_of_dependencies(view, mapped, &mut findings);
        }
        all.push(findings);
    }
    Ok(all)
}

fn judge(plan: &ViewPlan, graph: &ViewGraph, mapped: &BTreeSet<TableName>) -> Findings {
    let mut findings = Findings::default();
    let name = &plan.view;
    let Some(view) = graph.view(name) else { return findings };
    let Some(found) = &view.found else {
        findings.push(Finding::error("unknown-view", format!("materialized view \"{name}\" does not exist")));
        return findings;
    };
    if found.kind != TableKind::MaterializedView {
        findings.push(Finding::error("not-a-view", format!("\"{name}\" is not a materialized view")));
        return findings;
    }
    if plan.refresh == RefreshMode::Concurrently && !found.unique_index {
        let message = format!("\"{name}\" cannot be refreshed concurrently: it has no unique index that allows it");
        let hint = format!(
            "run `CREATE UNIQUE INDEX ON {} (…)` over plain columns without a predicate, or use refresh \"plain\".",
            name.quoted()
        );
        findings.push(Finding::error("no-unique-index", message).hint(hint));
    }
    if !found.may_refresh {
        let message =
            format!("role \"{}\" may not refresh \"{name}\", which belongs to \"{}\"", graph.role, found.owner);
        let role = quote_ident(&graph.role);
        let hint = match graph.knows_maintain {
            true => format!("run `GRANT MAINTAIN ON {} TO {role}`.", name.quoted()),
            false => format!("run `ALTER MATERIALIZED VIEW {} OWNER TO {role}`.", name.quoted()),
        };
        findings.push(Finding::error("no-refresh-right", message).hint(hint));
    }
    warn_of_dependencies(view, mapped, &mut findings);
    findings
}

fn warn_of_dependencies(view: &View, mapped: &BTreeSet<TableName>, findings: &mut Findings) {
    let name = &view.name;
    if view.tables.is_disjoint(mapped) {
        let message = format!("\"{name}\" reads no table that is mapped, and so is never refreshed");
        let hint = "what a function reads that the view calls is not in the catalog; else remove it from the mapping.";
        findings.push(Finding::warning("independent-view", message).hint(hint));
    }
    for between in &view.unlisted {
        let message = format!("\"{name}\" reads materialized view \"{between}\", which nobody refreshes here");
        let hint = format!("add `[view.\"{between}\"]`.");
        findings.push(Finding::warning("unlisted-view", message).hint(hint));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::graph::tests::{graph, view};
    use super::*;
    use crate::diagnostic::Severity;

    fn codes(view: View, refresh: RefreshMode) -> Vec<(Severity, &'static str)> {
        let plan = ViewPlan { sink: "w".to_owned(), view: view.name.clone(), refresh, every: Duration::ZERO };
        let mapped = BTreeSet::from([TableName::new("s", "t")]);
        judge(&plan, &graph(vec![view]), &mapped).0.into_iter().map(|found| (found.severity, found.code)).collect()
    }

    #[test]
    fn each_fault_of_a_view_has_its_finding() {
        let good = view("v", 1, &["t", "u"], &[]);
        assert_eq!(codes(good.clone(), RefreshMode::Concurrently), []);
        let changed = |change: fn(&mut View)| {
            let mut view = good.clone();
            change(&mut view);
            view
        };
        let fact = |view: &mut View, change: fn(&mut super::super::graph::Found)| {
            change(view.found.as_mut().expect("made so"));
        };
        let mut table = good.clone();
        fact(&mut table, |found| found.kind = TableKind::Table);
        let mut bare = good.clone();
        fact(&mut bare, |found| found.unique_index = false);
        let mut foreign = good.clone();
        fact(&mut foreign, |found| found.may_refresh = false);
        let cases = [
            (changed(|view| view.found = None), (Severity::Error, "unknown-view")),
            (table, (Severity::Error, "not-a-view")),
            (bare.clone(), (Severity::Error, "no-unique-index")),
            (foreign, (Severity::Error, "no-refresh-right")),
            (changed(|view| view.tables.clear()), (Severity::Warning, "independent-view")),
            (
                changed(|view| view.unlisted.extend([TableName::new("s", "between")])),
                (Severity::Warning, "unlisted-view"),
            ),
        ];
        for (view, expected) in cases {
            assert_eq!(codes(view, RefreshMode::Concurrently), [expected]);
        }
        assert_eq!(codes(bare, RefreshMode::Auto), []);
    }
}
