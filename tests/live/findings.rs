//! Bad input: one clear finding each, a non-zero exit, and nothing created or changed at either end.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::support::cluster::Options;
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, Pair};
use crate::support::postgres::Version;

/// A mapping that is right but for one thing, and words that its finding must have.
const MAPPINGS: &[(&str, &str, &[&str])] = &[
    (
        "unknown column",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = { id = \"id\", body = \"bodi\" }\n",
        &["bodi", "body", "mapping.toml:5"],
    ),
    (
        "misspelt key of the file",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\nexlude = [\"body\"]\n",
        &["exlude", "exclude", "mapping.toml:6"],
    ),
    (
        "missing table",
        "[table.\"mirror.churn\"]\nfrom = \"public.churm\"\ncolumns = \"*\"\n",
        &["churm", "mapping.toml:4"],
    ),
    (
        "key that is no column",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\nkey = [\"idd\"]\ncolumns = \"*\"\n",
        &["idd", "mapping.toml:5"],
    ),
    ("unreadable file", "[table.\"mirror.churn\"\n", &["mapping.toml:3"]),
    (
        "incompatible type",
        "[table.\"mirror.narrow\"]\nfrom = \"public.churn\"\nkey = [\"id\"]\ncolumns = { id = \"id\", number = \"body\" }\n",
        &["number", "mapping.toml:6"],
    ),
    (
        "duplicate target",
        "[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\nrename = { extra = \"body\" }\n",
        &["body", "mapping.toml"],
    ),
];

const TOP: &str = "source = \"src\"\nsink = \"dst\"\n";

/// What `check` and `run` must leave as they found it.
async fn footprint(pair: &Pair) -> Result<String> {
    let source = "SELECT format('%s slots, %s publications, %s relations', (SELECT count(*) FROM pg_replication_slots), \
                  (SELECT count(*) FROM pg_publication), (SELECT count(*) FROM pg_class))";
    let sink = "SELECT format('%s schemas, %s relations', (SELECT count(*) FROM pg_namespace \
                WHERE nspname NOT LIKE 'pg_t%'), (SELECT count(*) FROM pg_class WHERE relname NOT LIKE 'pg_t%'))";
    let source: String = pair.source().await?.query_one(source, &[]).await?.get(0);
    let sink: String = pair.sink().await?.query_one(sink, &[]).await?.get(0);
    Ok(format!("source: {source}; sink: {sink}"))
}

/// The table that the mapping of the usual configuration fills.
const TARGET: &str = "CREATE TABLE mirror.churn (id int PRIMARY KEY, body text, extra text, number int NOT NULL)";

/// Runs each command that would act, and looks at what it says.
async fn refused(pair: &Pair, home: &Home, name: &str, words: &[&str]) -> Result<()> {
    let before = footprint(pair).await?;
    for arguments in [&["check"][..], &["setup", "--create-targets"], &["run"]] {
        let outcome = home.command(arguments)?;
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        let context = || format!("{name}: tailwater {}: {said}", arguments.join(" "));
        ensure!(!outcome.status.success(), "{} succeeded", context());
        ensure!(said.lines().filter(|line| line.starts_with("error")).count() == 1, "not one finding: {}", context());
        for word in words {
            ensure!(said.contains(word), "does not say \"{word}\": {}", context());
        }
        ensure!(!said.contains("geheim"), "says a password: {}", context());
        let after = footprint(pair).await?;
        ensure!(before == after, "before: {before}; after: {after}; {}", context());
    }
    Ok(())
}

#[tokio::test]
async fn each_wrong_mapping_has_one_finding_with_its_place() -> Result<()> {
    let pair = Pair::bare("findings", Version::V15, Options::default()).await?;
    let targets = "CREATE TABLE mirror.churn (id int PRIMARY KEY, body text, extra text, number int NOT NULL);
                   CREATE TABLE mirror.narrow (id int PRIMARY KEY, number int)";
    pair.sink.execute(DATABASE, targets).await?;
    for (name, mapping, words) in MAPPINGS {
        let home = Home::pair("findings", &pair.source, &pair.sink, DATABASE, &format!("{TOP}{mapping}"))?;
        refused(&pair, &home, name, words).await?;
    }
    Ok(())
}

#[tokio::test]
async fn missing_mapping_file_is_named() -> Result<()> {
    let pair = Pair::bare("unreadable", Version::V15, Options::default()).await?;
    fs::remove_file(pair.home.path().join("mappings/mapping.toml"))?;
    refused(&pair, &pair.home, "no mapping file", &["mapping.toml"]).await
}

/// The usual configuration with another address of the source.
fn with_source(pair: &Pair, url: &str) -> Result<()> {
    let config = Home::pair_config(&pair.source, &pair.sink, DATABASE).replace(&pair.source.url(DATABASE), url);
    let mapping = format!("{TOP}[table.\"mirror.churn\"]\nfrom = \"public.churn\"\ncolumns = \"*\"\n");
    pair.home.configure(&config, &[("mapping.toml", &mapping)]).context("write the configuration")
}

#[tokio::test]
async fn wrong_password_is_one_finding_that_does_not_say_it() -> Result<()> {
    let pair = Pair::bare("password", Version::V15, Options::default().scram()).await?;
    pair.source.execute(DATABASE, "CREATE ROLE reader LOGIN REPLICATION PASSWORD 'right'").await?;
    with_source(&pair, &pair.source.url_as("reader:geheim", DATABASE))?;
    refused(&pair, &pair.home, "wrong password", &["password"]).await
}

#[tokio::test]
async fn role_without_rights_is_one_finding() -> Result<()> {
    let pair = Pair::bare("rights", Version::V15, Options::default()).await?;
    pair.source.execute(DATABASE, "CREATE ROLE reader LOGIN").await?;
    pair.source.execute(DATABASE, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader").await?;
    pair.sink.execute(DATABASE, TARGET).await?;
    with_source(&pair, &pair.source.url_as("reader", DATABASE))?;
    refused(&pair, &pair.home, "no REPLICATION", &["REPLICATION"]).await
}

#[tokio::test]
async fn wal_level_that_is_not_logical_is_one_finding() -> Result<()> {
    let pair = Pair::bare("wal-level", Version::V15, Options::default().set("wal_level", "replica")).await?;
    pair.sink.execute(DATABASE, TARGET).await?;
    with_source(&pair, &pair.source.url(DATABASE))?;
    refused(&pair, &pair.home, "wal_level", &["wal_level", "logical"]).await
}
