//! A source, a sink that mirrors some of its tables, a daemon between them, and a comparison cell by cell.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::cluster::Cluster;
use super::daemon::{Daemon, Home};
use super::pair::{DATABASE, SOON};
use super::wait::{Look, eventually};

/// What is special about a mirror.
#[derive(Clone, Copy, Default)]
pub struct Recipe<'a> {
    /// Makes the source's tables and first rows.
    pub source: &'a str,
    /// Run at the sink after its tables were made: keys, checks, rows of somebody else.
    pub sink: &'a str,
    /// Source's table, its mirror, and the lines of its mapping.
    pub tables: &'a [(&'a str, &'a str, &'a str)],
    /// A line of the configuration to be replaced by others.
    pub config: &'a [(&'a str, &'a str)],
}

pub struct Mirror {
    pub source: Cluster,
    pub sink: Cluster,
    pub daemon: Daemon,
    pub home: Home,
    /// As they are written in SQL: the source's table and its mirror.
    tables: Vec<(String, String)>,
}

impl Mirror {
    /// The usual: every table under its own name, every column.
    pub async fn of(name: &str, sql: &str, tables: &[&str]) -> Result<Mirror> {
        let tables: Vec<_> = tables.iter().map(|table| (*table, *table, "columns = \"*\"")).collect();
        Mirror::make(name, Recipe { source: sql, tables: &tables, ..Recipe::default() }).await
    }

    /// Makes tables and rows, and waits until all of them stream.
    pub async fn make(name: &str, recipe: Recipe<'_>) -> Result<Mirror> {
        let source = Cluster::new(&format!("{name}-source"))?;
        let sink = Cluster::new(&format!("{name}-sink"))?;
        Mirror::between(name, source, sink, recipe).await
    }

    pub async fn between(name: &str, source: Cluster, sink: Cluster, recipe: Recipe<'_>) -> Result<Mirror> {
        source.execute(DATABASE, recipe.source).await?;
        sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let mut mapping = String::from("source = \"src\"\nsink = \"dst\"\n");
        for (table, mirror, lines) in recipe.tables {
            let (table, mirror) = (toml(table), toml(mirror));
            mapping.push_str(&format!("\n[table.\"mirror.{mirror}\"]\nfrom = \"public.{table}\"\n{lines}\n"));
        }
        let mut config = Home::pair_config(&source, &sink, DATABASE);
        for (line, others) in recipe.config {
            ensure!(config.contains(line), "the configuration has no {line}");
            config = config.replace(line, others);
        }
        let home = Home::new(name, &config, &[("mapping.toml", &mapping)])?;
        home.setup()?;
        sink.execute(DATABASE, recipe.sink).await?;
        let daemon = home.run()?;
        let quoted = |schema: &str, name: &str| format!("{schema}.\"{}\"", name.replace('"', "\"\""));
        let tables = recipe.tables.iter();
        let tables = tables.map(|(table, mirror, _)| (quoted("public", table), quoted("mirror", mirror))).collect();
        let mut mirror = Mirror { source, sink, daemon, tables, home };
        mirror.assert_equal("the copy").await?;
        Ok(mirror)
    }

    /// Runs each statement list as one transaction, and compares after all of them.
    pub async fn apply(&mut self, transactions: &[&str]) -> Result<()> {
        self.commit(transactions).await?;
        self.assert_equal(&transactions.join("\n")).await
    }

    /// Runs each statement list as one transaction at the source.
    pub async fn commit(&self, transactions: &[&str]) -> Result<()> {
        for transaction in transactions {
            self.source.execute(DATABASE, &format!("BEGIN; {transaction}; COMMIT")).await?;
        }
        Ok(())
    }

    /// The same, and after each.
    pub async fn apply_each(&mut self, transactions: &[&str]) -> Result<()> {
        for transaction in transactions {
            self.apply(&[transaction]).await?;
        }
        Ok(())
    }

    /// Waits until the sink holds all that the source has committed, and compares.
    pub async fn assert_equal(&mut self, after: &str) -> Result<()> {
        let (source, sink) = (self.source.connect(DATABASE).await?, self.sink.connect(DATABASE).await?);
        self.daemon.wait_caught_up(&source, &sink, SOON).await.with_context(|| format!("after {after}"))?;
        for (table, _) in &self.tables {
            self.compare(table, after).await?;
        }
        Ok(())
    }

    /// Compares one table as it is.
    pub async fn compare(&self, table: &str, after: &str) -> Result<()> {
        let (source, sink) = (self.source.connect(DATABASE).await?, self.sink.connect(DATABASE).await?);
        let mirrors = self.tables.iter().find(|(name, _)| name == table);
        let (_, mirror) = mirrors.with_context(|| format!("{table} is not mirrored"))?;
        let columns = columns(&sink, mirror).await?;
        let (truth, held) = (rows(&source, table, &columns).await?, rows(&sink, mirror, &columns).await?);
        ensure!(truth.len() == held.len(), "after {after}: {table} has {} rows, not {}", held.len(), truth.len());
        for (truth, held) in truth.iter().zip(&held) {
            for (column, (truth, held)) in columns.iter().zip(truth.iter().zip(held)) {
                ensure!(truth == held, "after {after}: {table}.{column} is {}, not {}", short(held), short(truth));
            }
        }
        Ok(())
    }

    /// Waits until a statement at the sink says yes.
    pub async fn wait_sink(&self, within: Duration, what: &str, sql: &str) -> Result<()> {
        let sink = self.sink.connect(DATABASE).await?;
        eventually(within, what, async || {
            let yes: bool = sink.query_one(sql, &[]).await?.get(0);
            Ok(if yes { Look::Yes(()) } else { Look::NotYet("no".to_owned()) })
        })
        .await
    }
}

/// For a basic string.
fn toml(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"")
}

async fn columns(client: &Client, table: &str) -> Result<Vec<String>> {
    let sql = "SELECT quote_ident(attname) FROM pg_attribute \
               WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
    let columns: Vec<String> = client.query(sql, &[&table]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(!columns.is_empty(), "{table} has no columns");
    Ok(columns)
}

/// All rows as text, sorted.
async fn rows(client: &Client, table: &str, columns: &[String]) -> Result<Vec<Vec<Option<String>>>> {
    let sql = format!("SELECT {} FROM {table}", columns.join(", "));
    let messages = client.simple_query(&sql).await.with_context(|| table.to_owned())?;
    let mut rows: Vec<Vec<_>> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        })
        .collect();
    rows.sort();
    Ok(rows)
}

fn short(value: &Option<String>) -> String {
    format!("{:?}", value.as_ref().map(|text| text.chars().take(80).collect::<String>()))
}
