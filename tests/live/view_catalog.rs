//! What the catalog says of materialized views: what they read, and whether they can be refreshed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tailwater::catalog::TableName;
use tailwater::mapping::plan::RefreshMode;
use tailwater::refresh::{ViewGraph, check_views, dependencies};
use tokio_postgres::Client;

use crate::refresh::{name, plan};
use crate::support::cluster::{Cluster, Options};
use crate::support::postgres::Version;

const CATALOG: &str = r#"
CREATE SCHEMA c;
CREATE TABLE c.plain (id int);
CREATE TABLE c."od.d" (id int);
CREATE TABLE c.part (id int) PARTITION BY LIST (id);
CREATE TABLE c.part_one PARTITION OF c.part FOR VALUES IN (1);
CREATE MATERIALIZED VIEW c.hidden AS SELECT id FROM c.plain;
CREATE MATERIALIZED VIEW c.base AS SELECT id, id AS other FROM c.part_one;
CREATE VIEW c.inner_view AS SELECT b.id FROM c.base AS b JOIN c."od.d" USING (id);
CREATE VIEW c.outer_view AS SELECT id FROM c.inner_view UNION SELECT id FROM c.hidden;
CREATE MATERIALIZED VIEW c.top AS WITH w AS (SELECT id FROM c.outer_view) SELECT id FROM w WITH NO DATA;
CREATE MATERIALIZED VIEW c.alone AS SELECT 1 AS id;
CREATE UNIQUE INDEX ON c.base (id) WHERE id > 0;
CREATE UNIQUE INDEX ON c.base ((id + 1));
CREATE INDEX ON c.base (id);
CREATE UNIQUE INDEX ON c.top (id);
CREATE ROLE refresher LOGIN;
CREATE ROLE keeper;
GRANT USAGE ON SCHEMA c TO refresher;
GRANT keeper TO refresher;
ALTER MATERIALIZED VIEW c.alone OWNER TO keeper;
"#;

fn names(list: &[&str]) -> BTreeSet<TableName> {
    list.iter().map(|text| name(text)).collect()
}

async fn as_refresher(cluster: &Cluster) -> Result<Client> {
    crate::support::cluster::connect(&cluster.url_as("refresher", "postgres")).await
}

#[tokio::test]
async fn dependencies_are_followed_through_everything_on_every_major() -> Result<()> {
    for version in Version::ALL {
        let cluster = Cluster::start("depends", version, Options::default())?;
        cluster.execute("postgres", CATALOG).await?;
        let client = as_refresher(&cluster).await?;
        let listed = ["c.top", "c.alone", "c.base", "c.missing", "c.outer_view"].map(name);
        let graph: ViewGraph = dependencies(&client, &listed).await?;
        let view = |text: &str| graph.view(&name(text)).context("listed");
        let place = |text: &str| graph.views.iter().position(|view| view.name == name(text));
        ensure!(place("c.base") < place("c.top"), "{graph:?}");
        let top = view("c.top")?;
        ensure!(top.tables == names(&["c.plain", "c.\"od.d\"", "c.part", "c.part_one"]), "{top:?}");
        ensure!((&top.upstream, &top.unlisted) == (&names(&["c.base"]), &names(&["c.hidden"])), "{top:?}");
        let facts = |text: &str| -> Result<_> {
            let found = view(text)?.found.as_ref().context("there is one")?;
            Ok((found.populated, found.unique_index, found.may_refresh))
        };
        ensure!(facts("c.top")? == (false, true, false) && facts("c.base")? == (true, false, false), "{graph:?}");
        ensure!(facts("c.alone")? == (true, false, true), "a member of the owning role may");
        ensure!(view("c.missing")?.found.is_none());
        let maintain = version.major() >= 17;
        ensure!(graph.knows_maintain == maintain && graph.role == "refresher");
        if maintain {
            cluster.execute("postgres", "GRANT MAINTAIN ON c.base TO refresher").await?;
            let graph = dependencies(&client, &listed).await?;
            let base = graph.view(&name("c.base")).and_then(|view| view.found.as_ref()).context("there is one")?;
            ensure!(base.may_refresh, "{base:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn check_finds_what_would_fail_at_the_first_refresh() -> Result<()> {
    let cluster = Cluster::new("checkviews")?;
    cluster.execute("postgres", CATALOG).await?;
    let client = as_refresher(&cluster).await?;
    let plans = ["c.top", "c.alone", "c.base", "c.missing", "c.outer_view"]
        .map(|view| plan(view, RefreshMode::Concurrently, Duration::from_secs(1)));
    let found = check_views(&client, &plans, &names(&["c.part"])).await?;
    let codes: Vec<Vec<_>> = found.iter().map(|of| of.0.iter().map(|finding| finding.code).collect()).collect();
    let expected = [
        vec!["no-refresh-right", "unlisted-view"],
        vec!["no-unique-index", "independent-view"],
        vec!["no-unique-index", "no-refresh-right"],
        vec!["unknown-view"],
        vec!["not-a-view"],
    ];
    ensure!(codes == expected, "{codes:?}");
    let hint = found[2].0[1].hint.as_deref().unwrap_or_default();
    cluster.execute("postgres", hint.split('`').nth(1).context("a statement to run")?).await?;
    let found = check_views(&client, &plans[2..3], &names(&["c.part"])).await?;
    ensure!(found[0].0.len() == 1, "the hint did not help: {found:?}");
    Ok(())
}
