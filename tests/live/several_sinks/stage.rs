//! One source, a Postgres and a ClickHouse that mirror its table, and trouble for either.

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;

use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home, checkpoint, flushed, tables_not_streaming};
use crate::support::pair::{DATABASE, SLOT, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const TABLES: &str = "
    CREATE TABLE entries (id int PRIMARY KEY, filler text NOT NULL, n int NOT NULL);
    INSERT INTO entries SELECT i, repeat('x', 100), 0 FROM generate_series(1, 1000) i";

const TABLE: &str = "[table.\"mirror.entries\"]\nfrom = \"public.entries\"\ncolumns = \"*\"\n";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Postgres,
    ClickHouse,
}

impl Which {
    /// In the configuration.
    pub fn name(self) -> &'static str {
        match self {
            ToPostgres => "pg",
            ToClickHouse => "ch",
        }
    }
}

pub use Which::{ClickHouse as ToClickHouse, Postgres as ToPostgres};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trouble {
    Down,
    Slow,
}

/// A source and both kinds of warehouse.
pub struct Stage {
    pub source: Cluster,
    pub postgres: Cluster,
    pub server: ClickHouse,
    pub home: Home,
    /// Lines of the source.
    options: String,
    number: i32,
}

impl Stage {
    pub async fn start(name: &str, sinks: &[Which]) -> Result<Stage> {
        Stage::start_with(name, sinks, "").await
    }

    /// With these lines of the source's configuration.
    pub async fn start_with(name: &str, sinks: &[Which], options: &str) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, TABLES).await?;
        let postgres = Cluster::new(&format!("{name}-pg"))?;
        postgres.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let server = ClickHouse::start(&format!("{name}-ch"))?;
        let home = Home::new(name, "", &[])?;
        let stage = Stage { source, postgres, server, home, options: options.to_owned(), number: 0 };
        stage.configure(sinks)?;
        Ok(stage)
    }

    pub fn configure(&self, sinks: &[Which]) -> Result<()> {
        let names: Vec<_> = sinks.iter().map(|sink| format!("\"{}\"", sink.name())).collect();
        let mapping = format!("source = \"src\"\nsink = [{}]\n\n{TABLE}", names.join(", "));
        self.home.configure(&self.config(sinks), &[("mapping.toml", &mapping)])?;
        self.home.setup()
    }

    pub fn config(&self, sinks: &[Which]) -> String {
        let url = self.source.url(DATABASE);
        let mut config = format!("[source.src]\nurl = \"{url}\"\nheartbeat = \"500ms\"\n{}\n\n", self.options);
        for sink in sinks {
            let (kind, url) = match sink {
                ToPostgres => ("postgres", self.postgres.url(DATABASE)),
                ToClickHouse => ("clickhouse", self.server.url("")),
            };
            let name = sink.name();
            config.push_str(&format!("[sink.{name}]\nkind = \"{kind}\"\nurl = \"{url}\"\nidle_record = \"200ms\"\n\n"));
        }
        config
    }

    /// Every kind of change, some of it new each time; up to where the sinks have to come to hold it.
    pub async fn change(&mut self) -> Result<Lsn> {
        self.number += 1;
        let (number, first) = (self.number, 10_000 * self.number);
        let sql = format!(
            "INSERT INTO entries SELECT i, repeat('y', 300), {number} FROM generate_series({first}, {first} + 500) i;
             UPDATE entries SET n = n + 1 WHERE id % 7 = 0;
             UPDATE entries SET id = id + 501 WHERE id BETWEEN {first} AND {first} + 3;
             DELETE FROM entries WHERE id % 11 = {number} % 11"
        );
        self.source.execute(DATABASE, &sql).await?;
        flushed(&self.source.connect(DATABASE).await?).await
    }

    /// Where a sink stands, with all tables streaming; else nowhere.
    pub async fn stands(&self, sink: Which) -> Result<Lsn> {
        match sink {
            ToPostgres => {
                let client = self.postgres.connect(DATABASE).await?;
                let waiting = tables_not_streaming(&client).await?;
                let held = checkpoint(&client).await?.unwrap_or_default();
                Ok(if waiting == 0 { held } else { Lsn::ZERO })
            }
            ToClickHouse => {
                let sql = "SELECT if((SELECT countIf(state != 'streaming') + (count() = 0) FROM tailwater.table_state FINAL) = 0, \
                           max(end_lsn), 0) FROM tailwater.checkpoint FINAL";
                Ok(Lsn(self.server.query(sql)?.parse().context("a position")?))
            }
        }
    }

    pub async fn wait(&self, sink: Which, target: Lsn, daemon: &mut Daemon) -> Result<()> {
        let what = format!("{sink:?} reaches {target}");
        let reached = eventually(SOON, &what, async || {
            if let Some(status) = daemon.ended()? {
                return Ok(Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}"))));
            }
            let held = self.stands(sink).await?;
            Ok(if held >= target { Look::Yes(Ok(())) } else { Look::NotYet(held.to_string()) })
        });
        reached.await?
    }

    /// With the source quiet: both warehouses hold what it has.
    pub async fn assert_equal(&mut self, after: &str, daemon: &mut Daemon) -> Result<()> {
        let target = flushed(&self.source.connect(DATABASE).await?).await?;
        self.wait(ToPostgres, target, daemon).await.with_context(|| after.to_owned())?;
        self.wait(ToClickHouse, target, daemon).await.with_context(|| after.to_owned())?;
        let rows = async |cluster: &Cluster, table: &str| -> Result<String> {
            let sql = format!("SELECT string_agg(concat_ws(':', id, n, length(filler)), ' ' ORDER BY id) FROM {table}");
            Ok(cluster.connect(DATABASE).await?.query_one(&sql, &[]).await?.get(0))
        };
        let truth = rows(&self.source, "entries").await?;
        let of_postgres = rows(&self.postgres, "mirror.entries").await?;
        let of_clickhouse = self.server.query(
            "SELECT arrayStringConcat(arrayMap(row -> row.2, arraySort(groupArray((id, concat(toString(id), ':', toString(n), \
             ':', toString(length(filler))))))), ' ') FROM mirror.entries_current",
        )?;
        ensure!(truth == of_postgres, "after {after}: Postgres differs");
        ensure!(truth == of_clickhouse, "after {after}: ClickHouse differs");
        Ok(())
    }

    pub fn inflict(&mut self, trouble: Trouble, sink: Which) {
        match (trouble, sink) {
            (Trouble::Down, ToPostgres) => self.postgres.kill9(),
            (Trouble::Down, ToClickHouse) => self.server.kill9(),
            (Trouble::Slow, ToPostgres) => self.postgres.signal_all("STOP"),
            (Trouble::Slow, ToClickHouse) => self.server.signal("STOP"),
        }
    }

    pub fn heal(&mut self, trouble: Trouble, sink: Which) -> Result<()> {
        match (trouble, sink) {
            (Trouble::Down, ToPostgres) => self.postgres.resume()?,
            (Trouble::Down, ToClickHouse) => self.server.resume()?,
            (Trouble::Slow, ToPostgres) => self.postgres.signal_all("CONT"),
            (Trouble::Slow, ToClickHouse) => self.server.signal("CONT"),
        }
        Ok(())
    }

    pub async fn confirmed(&self) -> Result<Lsn> {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.source.connect(DATABASE).await?.query_one(sql, &[&SLOT]).await?;
        Ok(row.get::<_, &str>(0).parse()?)
    }
}
