//! Refreshable materialized views of ClickHouse: `SYSTEM REFRESH VIEW`, and waiting for its end.
//!
//! There is no snapshot in which views could be refreshed together. So the sources' checkpoints are read first, and only a
//! refresh that began later counts: the view then shows at least them. A view over another is refreshed after it, and finds
//! its new content, which takes the old one's place at once and whole.

mod reads;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::RefreshError;
use super::graph::{Found, Listed, Reads, ViewGraph, in_order};
use super::session::Refused;
use crate::catalog::{TableKind, TableName};
use crate::lsn::Lsn;
use crate::mapping::clickhouse::{quote_literal, quoted};
use crate::mapping::plan::ViewPlan;
use crate::sink::clickhouse::catalog::is_refreshable;
use crate::sink::clickhouse::error::{ClickHouseError, Exception};
use crate::sink::clickhouse::http::Client;
use crate::sink::clickhouse::state::{has_schema, number, text};
use crate::sink::state::name_text;

/// REFRESH_FAILED: what `SYSTEM WAIT VIEW` says of a refresh that ended badly.
const REFRESH_FAILED: i32 = 730;

/// Views that are refreshed one after the other.
pub(super) struct Round<'a> {
    client: &'a Client,
    /// Each source's checkpoint before the first refresh: its `end_lsn`.
    pub lsns: Vec<(String, Lsn)>,
    /// Tables that hold a part of their rows.
    pub partial: BTreeSet<TableName>,
}

impl<'a> Round<'a> {
    pub async fn begin(client: &'a Client) -> Result<Round<'a>, RefreshError> {
        let lsns = checkpoints(client).await?;
        let partial = "SELECT target FROM tailwater.table_state FINAL WHERE state IN ('pending', 'copying', 'catchup')";
        let rows = client.rows(partial).await?;
        let partial = rows.iter().filter_map(|row| text(row.first()?).parse().ok()).collect();
        Ok(Round { client, lsns, partial })
    }

    pub async fn refresh(&self, plan: &ViewPlan) -> Result<Result<Duration, Refused>, RefreshError> {
        let began = Instant::now();
        match self.try_refresh(&plan.view).await {
            Ok(()) => Ok(Ok(began.elapsed())),
            // The view's own affair.
            Err(error @ (RefreshError::Stopped | RefreshError::ClickHouse(ClickHouseError::Server(_)))) => {
                Ok(Err(Refused(error)))
            }
            Err(error) => Err(error),
        }
    }

    async fn try_refresh(&self, view: &TableName) -> Result<(), RefreshError> {
        let name = quoted(view);
        // One that began before the checkpoints were read may have missed what they promise.
        self.wait(&name).await?;
        self.client.execute(&format!("SYSTEM REFRESH VIEW {name}")).await?;
        let failed = self.wait(&name).await?;
        let sql = format!(
            "SELECT status = 'Disabled', exception FROM system.view_refreshes WHERE database = {} AND view = {}",
            quote_literal(&view.schema),
            quote_literal(&view.name)
        );
        let rows = self.client.rows(&sql).await?;
        let (disabled, exception) = match rows.first().map(Vec::as_slice) {
            Some([disabled, exception]) => (number(disabled) == 1, text(exception)),
            _ => (false, String::new()),
        };
        match failed {
            // Its text holds the refresh's own exception, of which the text may hold values.
            Some(error) => {
                let head = exception.split_once(", Stack trace").map_or(exception.as_str(), |(head, _)| head);
                Err(Exception::read(None, head).map_or(error, ClickHouseError::Server).into())
            }
            None if disabled => Err(RefreshError::Stopped),
            None => Ok(()),
        }
    }

    /// Waits until no refresh runs; the answer is why the last one failed.
    async fn wait(&self, name: &str) -> Result<Option<ClickHouseError>, ClickHouseError> {
        let sql = format!("SYSTEM WAIT VIEW {name}");
        loop {
            match self.client.execute(&sql).await {
                Ok(()) => return Ok(None),
                // It takes longer than we wait for a statement.
                Err(ClickHouseError::Timeout(_)) => {}
                Err(error) if error.code() == Some(REFRESH_FAILED) => return Ok(Some(error)),
                Err(error) => return Err(error),
            }
        }
    }

    pub async fn commit(self, refreshed: &BTreeMap<&TableName, Duration>) -> Result<(), ClickHouseError> {
        let row = |(view, took): (&&TableName, &Duration), source: &str, lsn: Lsn| {
            let (view, source) = (quote_literal(&name_text(view)), quote_literal(source));
            format!("({view}, {source}, {}, {})", lsn.0, took.as_secs_f64())
        };
        let rows: Vec<_> = refreshed
            .iter()
            .flat_map(|view| self.lsns.iter().map(move |(source, lsn)| row(view, source, *lsn)))
            .collect();
        if rows.is_empty() {
            return Ok(());
        }
        let sql = format!(
            "INSERT INTO tailwater.view_state (view, source, lsn, refreshed_at, seconds, version) \
             SELECT view, source, lsn, now64(6, 'UTC'), seconds, (SELECT max(version) FROM tailwater.view_state) + 1 \
             FROM values('view String, source String, lsn UInt64, seconds Float64', {})",
            rows.join(", ")
        );
        self.client.execute(&sql).await
    }
}

async fn checkpoints(client: &Client) -> Result<Vec<(String, Lsn)>, RefreshError> {
    if !has_schema(client).await? {
        return Err(RefreshError::NoState);
    }
    let rows = client.rows("SELECT source, end_lsn FROM tailwater.checkpoint FINAL ORDER BY source").await?;
    Ok(rows.iter().filter_map(|row| Some((text(row.first()?), Lsn(number(row.get(1)?))))).collect())
}

/// Of these views, those that do not show every source's checkpoint, by their place.
pub(super) async fn behind(client: &Client, plans: &[ViewPlan]) -> Result<Vec<usize>, RefreshError> {
    let checkpoints = checkpoints(client).await?;
    let shown: BTreeMap<(String, String), Lsn> = client
        .rows("SELECT view, source, lsn FROM tailwater.view_state FINAL")
        .await?
        .iter()
        .filter_map(|row| Some(((text(row.first()?), text(row.get(1)?)), Lsn(number(row.get(2)?)))))
        .collect();
    let is_behind = |plan: &ViewPlan| {
        let view = name_text(&plan.view);
        checkpoints.iter().any(|(source, lsn)| shown.get(&(view.clone(), source.clone())) != Some(lsn))
    };
    Ok((0..plans.len()).filter(|&place| is_behind(&plans[place])).collect())
}

/// Reads what the listed views depend on: through plain views, materialized ones and the tables that these fill.
pub(super) async fn dependencies(client: &Client, views: &[TableName]) -> Result<ViewGraph, ClickHouseError> {
    let rows = client
        .rows(
            "SELECT database, name, engine, toString(uuid), create_table_query, as_select FROM system.tables \
             WHERE database NOT IN ('system', 'INFORMATION_SCHEMA', 'information_schema', 'tailwater') AND NOT is_temporary",
        )
        .await?;
    Ok(graph(&rows, views))
}

fn graph(rows: &[Vec<Value>], views: &[TableName]) -> ViewGraph {
    let rows: Vec<&[Value; 6]> = rows.iter().filter_map(|row| row.first_chunk()).collect();
    let mut met = Reads::default();
    let mut listed = Listed::new();
    let mut numbers = BTreeMap::new();
    for (number, [database, name, engine, uuid, create, _]) in (0u32..).zip(&rows) {
        let table = TableName::new(text(database), text(name));
        let refreshable = text(engine) == "MaterializedView" && is_refreshable(&text(create));
        // An incremental view is one that rows pass through, as through a plain one.
        let kind = match text(engine).as_str() {
            "MaterializedView" if refreshable => "m",
            "MaterializedView" | "View" => "v",
            _ => "r",
        };
        if refreshable && views.contains(&table) {
            listed.insert(table.clone(), (number, found(&text(uuid))));
        }
        numbers.insert(table.clone(), number);
        met.relations.insert(number, (table, kind.to_owned()));
    }
    for (number, [.., create, query]) in (0u32..).zip(&rows) {
        let named = reads::tables(&text(query));
        let known = named.iter().filter_map(|table| numbers.get(table)).filter(|read| **read != number);
        met.reads.entry(number).or_default().extend(known);
        // What reads the table that a view fills reads the view.
        let filled = reads::filled_table(&text(create)).and_then(|table| numbers.get(&table));
        if let Some(filled) = filled {
            met.reads.entry(*filled).or_default().insert(number);
        }
    }
    let views = views.iter().map(|view| met.view(view, &listed)).collect();
    ViewGraph { role: String::new(), knows_maintain: false, views: in_order(views) }
}

/// What there is to know of a refreshable view: readers never wait for its refresh, and it always holds something.
fn found(uuid: &str) -> Found {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    Found {
        incarnation: u64::from_str_radix(&digits, 16).unwrap_or_default(),
        kind: TableKind::MaterializedView,
        populated: true,
        unique_index: true,
        owner: String::new(),
        may_refresh: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, engine: &str, uuid: &str, create: &str, query: &str) -> Vec<Value> {
        ["dwh", name, engine, uuid, create, query].map(|text| Value::String(text.to_owned())).to_vec()
    }

    #[test]
    fn views_are_followed_through_helpers_and_filled_tables() {
        let refreshable = |name: &str, to: &str| {
            format!("CREATE MATERIALIZED VIEW dwh.{name} REFRESH EVERY 1 YEAR{to} (`n` Int8) AS SELECT 1")
        };
        let rows = [
            row("t", "ReplacingMergeTree", "1", "CREATE TABLE dwh.t", ""),
            row("t_current", "View", "2", "CREATE VIEW dwh.t_current AS SELECT", "SELECT id FROM dwh.t FINAL"),
            row("u", "ReplacingMergeTree", "3", "CREATE TABLE dwh.u", ""),
            row("sums", "SummingMergeTree", "4", "CREATE TABLE dwh.sums", ""),
            row(
                "feed",
                "MaterializedView",
                "5",
                "CREATE MATERIALIZED VIEW dwh.feed TO dwh.sums (`n` Int8) AS SELECT n FROM dwh.u",
                "SELECT n FROM dwh.u",
            ),
            row("store", "MergeTree", "6", "CREATE TABLE dwh.store", ""),
            row("up", "MaterializedView", "7", &refreshable("up", " TO dwh.store"), "SELECT 1 FROM dwh.t_current"),
            row("down", "MaterializedView", "8", &refreshable("down", ""), "SELECT 1 FROM dwh.store, dwh.sums"),
        ];
        let names = |names: &[&str]| names.iter().map(|name| TableName::new("dwh", *name)).collect::<BTreeSet<_>>();
        let listed = [TableName::new("dwh", "down"), TableName::new("dwh", "up"), TableName::new("dwh", "gone")];
        let found = graph(&rows, &listed);
        let order: Vec<_> = found.views.iter().map(|view| view.name.name.as_str()).collect();
        assert!(order.iter().position(|name| *name == "up") < order.iter().position(|name| *name == "down"));
        let down = found.view(&listed[0]).expect("it was asked for");
        assert_eq!(down.tables, names(&["t", "store", "sums", "u"]));
        assert_eq!((&down.upstream, &down.unlisted), (&names(&["up"]), &BTreeSet::new()));
        assert_eq!(found.view(&listed[2]).expect("it was asked for").found, None);
        let alone = graph(&rows, &listed[..1]);
        assert_eq!(alone.views[0].unlisted, names(&["up"]));
    }
}
