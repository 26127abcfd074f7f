//! A source, a ClickHouse server that follows some of its tables, a daemon between them, and a comparison of both ends.

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;
use tokio_postgres::SimpleQueryMessage;

use super::clickhouse::ClickHouse;
use super::cluster::{Cluster, Options};
use super::daemon::{Daemon, Home};
use super::pair::{DATABASE, SOON};
use super::postgres::Version;
use super::wait::{Look, eventually};

pub struct Lake {
    pub source: Cluster,
    pub server: ClickHouse,
    pub home: Home,
    pub daemon: Daemon,
}

impl Lake {
    /// Makes the source's tables, sets up what the mapping asks for in database `mirror`, and waits until all of it streams.
    pub async fn start(name: &str, tables: &str, mapping: &str) -> Result<Lake> {
        Lake::start_with(name, tables, mapping, "").await
    }

    /// The same with more lines in the sink's configuration.
    pub async fn start_with(name: &str, tables: &str, mapping: &str, lines: &str) -> Result<Lake> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, tables).await?;
        let server = ClickHouse::start(&format!("{name}-ch"))?;
        let config = format!("mask_salt = \"salt\"\n\n{}{lines}", Lake::config(&source, &server));
        let home = Home::new(name, &config, &[("mapping.toml", &format!("{}{mapping}", Lake::TOP))])?;
        home.setup()?;
        let daemon = home.run()?;
        let mut lake = Lake { source, server, home, daemon };
        lake.catch_up().await?;
        Ok(lake)
    }

    pub const TOP: &str = "source = \"src\"\nsink = \"ch\"\n\n";

    /// Source `src` and sink `ch`.
    pub fn config(source: &Cluster, server: &ClickHouse) -> String {
        format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\nidle_record = \"200ms\"\n",
            source.url(DATABASE),
            server.url("")
        )
    }

    /// Every column of tables of schema `public`, each under its own name.
    pub fn all_of(tables: &[&str]) -> String {
        let table =
            |table: &&str| format!("[table.\"mirror.{table}\"]\nfrom = \"public.{table}\"\ncolumns = \"*\"\n\n");
        tables.iter().map(table).collect()
    }

    /// Writes another mapping; counts from the next command or daemon on.
    pub fn remap(&self, mapping: &str) -> Result<()> {
        Ok(std::fs::write(self.home.path().join("mappings/mapping.toml"), format!("{}{mapping}", Lake::TOP))?)
    }

    /// Runs each statement list as one transaction at the source.
    pub async fn commit(&self, transactions: &[&str]) -> Result<()> {
        for transaction in transactions {
            self.source.execute(DATABASE, &format!("BEGIN; {transaction}; COMMIT")).await?;
        }
        Ok(())
    }

    pub fn number(&self, sql: &str) -> Result<u64> {
        self.server.number(sql)
    }

    /// Waits until the sink's checkpoint has reached what the source has committed by now, with every table streaming that
    /// is not in quarantine.
    pub async fn catch_up(&mut self) -> Result<()> {
        catch_up(&mut self.daemon, &self.source, &self.server, &["streaming", "quarantined"]).await
    }

    /// Waits until a statement at the sink says this.
    pub async fn wait_sink(&self, what: &str, sql: &str, expected: &str) -> Result<()> {
        eventually(SOON, what, async || {
            let found = self.server.query(sql)?;
            Ok(if found == expected { Look::Yes(()) } else { Look::NotYet(found) })
        })
        .await
    }

    /// The reason that a table's state has, once it is in quarantine.
    pub async fn quarantined(&self, target: &str) -> Result<String> {
        let sql = format!(
            "SELECT ifNull(reason, '') FROM tailwater.table_state FINAL WHERE target = '{target}' AND state = 'quarantined'"
        );
        eventually(SOON, &format!("{target} is quarantined"), async || {
            let reason = self.server.query(&sql)?;
            Ok(if reason.is_empty() { Look::NotYet("not yet".to_owned()) } else { Look::Yes(reason) })
        })
        .await
    }

    /// Waits for the sink and compares a table's rows with those of its helper view. A column is named alike at both ends, or
    /// has its expression of each: `source => sink`.
    pub async fn assert_equal(&mut self, table: &str, columns: &[&str], after: &str) -> Result<()> {
        self.catch_up().await.with_context(|| format!("after {after}"))?;
        self.compare(table, columns, after).await
    }

    pub async fn compare(&self, table: &str, columns: &[&str], after: &str) -> Result<()> {
        compare(&self.source, &self.server, table, columns, after).await
    }
}

/// Waits until the sink's checkpoint has reached what the source has committed by now, with every table in one of these
/// states.
pub async fn catch_up(daemon: &mut Daemon, source: &Cluster, server: &ClickHouse, states: &[&str]) -> Result<()> {
    let states = states.join("', '");
    let waiting = format!("SELECT countIf(state NOT IN ('{states}')) + (count() = 0) FROM tailwater.table_state FINAL");
    let look = async |_: &Daemon| {
        let reached = server.number("SELECT max(end_lsn) FROM tailwater.checkpoint FINAL")?;
        Ok((Lsn(reached), server.number(&waiting)?))
    };
    daemon.wait_reached(&source.connect(DATABASE).await?, SOON, look).await.map(drop)
}

/// With the source quiet: the helper view of a table in database `mirror` holds the rows of the source's table.
pub async fn compare(source: &Cluster, server: &ClickHouse, table: &str, columns: &[&str], after: &str) -> Result<()> {
    let sides: Vec<(&str, &str)> =
        columns.iter().map(|column| column.split_once(" => ").unwrap_or((column, column))).collect();
    let of_source =
        sides.iter().map(|(source, _)| format!("encode(convert_to(coalesce(({source})::text, '~'), 'UTF8'), 'hex')"));
    let sql = format!(
        "SET TimeZone = 'UTC'; SELECT concat_ws(' ', {}) FROM {table}",
        of_source.collect::<Vec<_>>().join(", ")
    );
    let messages = source.connect(DATABASE).await?.simple_query(&sql).await?;
    let mut truth: Vec<String> = messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .collect();
    truth.sort();
    let of_sink = sides.iter().map(|(_, sink)| format!("lower(hex(ifNull(toString({sink}), '~')))"));
    let sql = format!(
        "SELECT arrayStringConcat([{}], ' ') FROM mirror.{}_current",
        of_sink.collect::<Vec<_>>().join(", "),
        table.rsplit('.').next().unwrap_or(table)
    );
    let mut held: Vec<String> = server.query(&sql)?.lines().map(str::to_owned).collect();
    held.sort();
    let differing = truth.iter().zip(&held).find(|(truth, held)| truth != held);
    ensure!(
        truth == held,
        "after {after}: {table} has {} rows, the source {}; first difference {:?}",
        held.len(),
        truth.len(),
        differing.map(|(truth, held)| (shown(truth), shown(held)))
    );
    Ok(())
}

/// A row as it was before it became hexadecimal.
fn shown(row: &str) -> String {
    let cell = |cell: &str| -> String {
        let pairs = cell.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
        let bytes: Vec<u8> = pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).take(60).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    row.split(' ').map(cell).collect::<Vec<_>>().join(" | ")
}
