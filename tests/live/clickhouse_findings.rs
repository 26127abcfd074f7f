//! Bad input with a ClickHouse sink: one clear finding each, a non-zero exit, and nothing created or changed at either end.

use anyhow::{Result, ensure};

use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options, free_port};
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};
use crate::support::workload::SCHEMA;

const TOP: &str = "source = \"src\"\nsink = \"ch\"\n";

/// A mapping that is right but for one thing, and words that its finding must have.
const MAPPINGS: &[(&str, &str, &[&str])] = &[
    (
        "unknown column of the target",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", bodi = \"body\" }\n",
        &["bodi", "body", "mapping.toml:5"],
    ),
    (
        "wrong type",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", number = \"body\" }\n",
        &["number", "Int32", "text", "mapping.toml:5"],
    ),
    (
        "key that is not what the table is ordered by",
        "[table.\"mirror.askew\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", number = \"number\" }\n",
        &["ordered by (number)", "(id)", "mapping.toml"],
    ),
    (
        "rows of a key in several partitions (H82)",
        "[table.\"mirror.parted\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", number = \"number\" }\n",
        &["partitioned by \"number\"", "not of the key", "mapping.toml:3"],
    ),
    (
        "key that is computed",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\nkey = [\"id\"]\ncolumns = { id = { sql = \"abs(id)\" } }\n",
        &["\"id\" is computed", "as they are", "mapping.toml:6"],
    ),
    (
        "engine that keeps every row",
        "[table.\"mirror.heap\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\" }\n",
        &["mirror.heap", "ReplacingMergeTree(_version, _deleted)", "mapping.toml:3"],
    ),
    (
        "missing table",
        "[table.\"mirror.churm\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\n",
        &["mirror.churm", "mirror.churn", "mapping.toml:3"],
    ),
    (
        "mode that needs a table to look into",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\nmode = \"insert_new\"\n",
        &["insert_new", "ClickHouse", "mapping.toml:3"],
    ),
    (
        "whole rows of a table without a key",
        "[table.\"mirror.churn\"]\nfrom = \"public.keyless\"\ncolumns = { id = \"id\", number = \"number\" }\n",
        &["a table without a key", "ClickHouse", "give one", "mapping.toml:3"],
    ),
    (
        "view that is a table",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\n[view.\"mirror.heap\"]\n",
        &["mirror.heap", "not a refreshable materialized view", "mapping.toml:6"],
    ),
];

/// The same, found by asking the server to look at the statements.
const EXPRESSIONS: &[(&str, &str, &[&str])] = &[
    (
        "expression over a column that is not there",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", number = { sql = \"nummer + 1\" } }\n",
        &["mirror.churn", "nummer"],
    ),
    (
        "expression over the wrong type",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\n\
         columns = { id = \"id\", number = { sql = \"number + [1]\" } }\n",
        &["mirror.churn", "plus"],
    ),
    (
        "function that is not there",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", number = { sql = \"absolute(number)\" } }\n",
        &["mirror.churn", "absolute"],
    ),
    (
        "condition that is no SQL",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\" }\nwhere = \"number >\"\n",
        &["mirror.churn", "SYNTAX_ERROR"],
    ),
];

const TARGETS: &[&str] = &[
    "CREATE DATABASE mirror",
    "CREATE TABLE mirror.churn (id Int32, body Nullable(String), extra Nullable(String), number Int32, _version UInt128, \
     _deleted UInt8) ENGINE = ReplacingMergeTree(_version, _deleted) ORDER BY id",
    "CREATE TABLE mirror.askew (id Int32, number Int32, _version UInt128, _deleted UInt8) \
     ENGINE = ReplacingMergeTree(_version, _deleted) ORDER BY number",
    "CREATE TABLE mirror.parted (id Int32, number Int32, _version UInt128, _deleted UInt8) \
     ENGINE = ReplacingMergeTree(_version, _deleted) ORDER BY id PARTITION BY intDiv(number, 1000)",
    "CREATE TABLE mirror.heap (id Int32, _version UInt128, _deleted UInt8) ENGINE = MergeTree ORDER BY id",
];

struct Stage {
    source: Cluster,
    server: ClickHouse,
}

impl Stage {
    async fn start(name: &str) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, SCHEMA).await?;
        let keyless =
            "CREATE TABLE keyless (id int NOT NULL, number int NOT NULL); ALTER TABLE keyless REPLICA IDENTITY FULL";
        source.execute(DATABASE, keyless).await?;
        let server = ClickHouse::start_with_password(&format!("{name}-ch"), "warehouse", "richtig")?;
        for statement in TARGETS {
            server.query(statement)?;
        }
        Ok(Stage { source, server })
    }

    fn home(&self, name: &str, url: &str, mapping: &str) -> Result<Home> {
        let config = format!(
            "[source.src]\nurl = \"{}\"\n\n[sink.ch]\nkind = \"clickhouse\"\nurl = \"{url}\"\n",
            self.source.url(DATABASE)
        );
        Home::new(name, &config, &[("mapping.toml", &format!("{TOP}{mapping}"))])
    }

    async fn footprint(&self) -> Result<String> {
        let source = "SELECT format('%s slots, %s publications', (SELECT count(*) FROM pg_replication_slots), \
                      (SELECT count(*) FROM pg_publication))";
        let source: String = self.source.connect(DATABASE).await?.query_one(source, &[]).await?.get(0);
        // A view's refresh comes and goes with tables of its own, and merges come when they like.
        let tables = "SELECT concat(database, '.', name, if(engine LIKE '%ReplacingMergeTree', ' FINAL', '')) FROM system.tables \
                      WHERE database IN ('mirror', 'tailwater') AND NOT startsWith(name, '.') \
                      AND NOT startsWith(name, '_tmp_replace_') ORDER BY ALL";
        let mut sink = Vec::new();
        for table in self.server.query(tables)?.lines() {
            sink.push(format!("{table} {}", self.server.query(&format!("SELECT count() FROM {table}"))?));
        }
        Ok(format!("source: {source}; sink: {}", sink.join(", ")))
    }

    /// Runs each of the commands, and looks at what it says.
    async fn refused(&self, home: &Home, name: &str, words: &[&str], commands: &[&[&str]]) -> Result<()> {
        let before = self.footprint().await?;
        for arguments in commands {
            let outcome = home.command(arguments)?;
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            let context = || format!("{name}: tailwater {}: {said}", arguments.join(" "));
            ensure!(!outcome.status.success(), "{} succeeded", context());
            let errors = said.lines().filter(|line| line.starts_with("error")).count();
            ensure!(errors == 1, "not one finding: {}", context());
            for word in words {
                ensure!(said.contains(word), "does not say \"{word}\": {}", context());
            }
            ensure!(!said.contains("geheim"), "says a password: {}", context());
            let after = self.footprint().await?;
            ensure!(before == after, "before: {before}; after: {after}; {}", context());
        }
        Ok(())
    }
}

#[tokio::test]
async fn each_wrong_mapping_into_clickhouse_has_one_finding_with_its_place() -> Result<()> {
    let stage = Stage::start("ch-findings").await?;
    for (name, mapping, words) in MAPPINGS {
        let home = stage.home("ch-findings", &stage.server.url(""), mapping)?;
        stage.refused(&home, name, words, &[&["check"], &["setup"], &["run"]]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn expressions_are_looked_at_by_clickhouse_before_anything_runs() -> Result<()> {
    let stage = Stage::start("ch-expressions").await?;
    for (name, mapping, words) in EXPRESSIONS {
        let home = stage.home("ch-expressions", &stage.server.url(""), mapping)?;
        stage.refused(&home, name, words, &[&["check"]]).await?;
    }
    let good = "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\n\
                columns = { id = \"id\", body = \"body\", number = { sql = \"number + 1\" } }\n\
                where = \"number > 0\"\n";
    let home = stage.home("ch-expressions", &stage.server.url(""), good)?;
    let before = stage.footprint().await?;
    home.must(&["check"])?;
    ensure!(before == stage.footprint().await?, "check changed something");
    Ok(())
}

#[tokio::test]
async fn clickhouse_that_does_not_let_us_in_is_one_finding() -> Result<()> {
    let stage = Stage::start("ch-unreachable").await?;
    let mapping = "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\n";
    let nobody = format!("http://warehouse:geheim@127.0.0.1:{}/", free_port()?);
    let right = stage.server.url("");
    let wrong = right.replace("richtig", "geheim");
    let cases: &[(&str, &str, &[&str])] = &[
        ("wrong password", &wrong, &["sink \"ch\"", "Authentication failed"]),
        ("nobody there", &nobody, &["sink \"ch\"", "cannot connect"]),
    ];
    for (name, url, words) in cases {
        let home = stage.home("ch-unreachable", url, mapping)?;
        stage.refused(&home, name, words, &[&["check"], &["setup", "--create-targets"]]).await?;
    }
    Ok(())
}

const GRANTS: &str = include_str!("../../deploy/grants/clickhouse.sql");

/// The deployed grants for database `mirror`, as the test server's configuration takes them.
fn grants() -> Vec<String> {
    let code: Vec<&str> = GRANTS.lines().filter(|line| !line.starts_with("--")).collect();
    let statements = code.join("\n").replace("dwh.", "mirror.");
    let grants = statements.split(';').map(str::trim).filter(|statement| statement.starts_with("GRANT"));
    grants.map(|grant| grant.trim_end_matches(" TO tailwater").to_owned()).collect()
}

/// Everything that the daemon does: a copy, rows to complete, deletes, a TRUNCATE, a view.
#[tokio::test(flavor = "multi_thread")]
async fn daemon_runs_under_exactly_the_deployed_grants() -> Result<()> {
    let mut stage = Stage::start("ch-grants").await?;
    stage
        .source
        .execute(DATABASE, "INSERT INTO churn SELECT n, repeat('x', 9000 + n), NULL, n FROM generate_series(1, 9) AS n")
        .await?;
    stage.source.execute(DATABASE, "ALTER TABLE churn ALTER body SET STORAGE EXTERNAL").await?;
    stage.server.query(
        "CREATE MATERIALIZED VIEW mirror.counted REFRESH EVERY 1 YEAR ENGINE = MergeTree ORDER BY n EMPTY AS \
         SELECT count() AS n, sum(number) AS total, sum(length(body)) AS bytes FROM mirror.churn FINAL WHERE _deleted = 0",
    )?;
    let mapping = "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\n\
                   [view.\"mirror.counted\"]\nevery = \"50ms\"\n";
    stage.home("ch-grants-owner", &stage.server.url(""), mapping)?.must(&["setup"])?;
    let grants = grants();
    ensure!(grants.len() == 7, "{grants:?}");
    stage.server.grant("tailwater", &grants)?;
    stage.server.kill9_and_resume()?;
    let url = stage.server.url("").replace("warehouse:richtig@", "tailwater@");
    let home = stage.home("ch-grants", &url, mapping)?;
    home.must(&["check"])?;
    let daemon = home.run()?;
    let shows = async |expected: &str| {
        eventually(SOON, &format!("the view shows {expected}"), async || {
            let shown = stage.server.query("SELECT * FROM mirror.counted")?;
            Ok(if shown == expected { Look::Yes(()) } else { Look::NotYet(shown) })
        })
        .await
    };
    shows("9\t45\t81045").await?;
    stage.source.execute(DATABASE, "UPDATE churn SET number = 10 WHERE id = 1; DELETE FROM churn WHERE id = 9").await?;
    shows("8\t45\t72036").await?;
    stage.source.execute(DATABASE, "TRUNCATE churn; INSERT INTO churn VALUES (1, 'a', NULL, 1)").await?;
    shows("1\t1\t1").await?;
    drop(daemon);

    // Each right taken away, and for the targets all but what shows them at all.
    for (missing, left, words) in [
        (1, Some("GRANT SELECT ON mirror.*"), &["mirror.churn", "Not enough privileges"][..]),
        (0, None, &["read its state", "deploy/grants/clickhouse.sql"]),
        (2, None, &["mirror.churn", "Not enough privileges"]),
        (3, None, &["mirror.churn", "TABLE ENGINE ON Memory"]),
        (4, None, &["mirror.churn", "READ ON FILE"]),
        (5, None, &["may not refresh \"mirror.counted\"", "GRANT SYSTEM VIEWS"]),
        (6, None, &["views of sink \"ch\" cannot be read", "system.view_refreshes"]),
    ] {
        let mut fewer = grants.clone();
        let missing = fewer.remove(missing);
        fewer.extend(left.map(str::to_owned));
        stage.server.grant("tailwater", &fewer)?;
        stage.server.kill9_and_resume()?;
        stage.refused(&home, &missing, words, &[&["check"]]).await?;
    }
    Ok(())
}
