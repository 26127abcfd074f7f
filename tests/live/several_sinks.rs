//! One slot, two warehouses: trouble of one leaves the other's lag alone, and costs no row.

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
enum Which {
    Postgres,
    ClickHouse,
}

use Which::{ClickHouse as ToClickHouse, Postgres as ToPostgres};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Trouble {
    Down,
    Slow,
}

/// A source and both kinds of warehouse.
struct Stage {
    source: Cluster,
    postgres: Cluster,
    server: ClickHouse,
    home: Home,
    number: i32,
}

impl Stage {
    async fn start(name: &str, sinks: &[Which]) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, TABLES).await?;
        let postgres = Cluster::new(&format!("{name}-pg"))?;
        postgres.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let server = ClickHouse::start(&format!("{name}-ch"))?;
        let home = Home::new(name, "", &[])?;
        let stage = Stage { source, postgres, server, home, number: 0 };
        stage.configure(sinks)?;
        Ok(stage)
    }

    fn configure(&self, sinks: &[Which]) -> Result<()> {
        let mut config = format!("[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n", self.source.url(DATABASE));
        let mut names = Vec::new();
        for sink in sinks {
            let (name, kind, url) = match sink {
                ToPostgres => ("pg", "postgres", self.postgres.url(DATABASE)),
                ToClickHouse => ("ch", "clickhouse", self.server.url("")),
            };
            config.push_str(&format!("[sink.{name}]\nkind = \"{kind}\"\nurl = \"{url}\"\nidle_record = \"200ms\"\n\n"));
            names.push(format!("\"{name}\""));
        }
        let mapping = format!("source = \"src\"\nsink = [{}]\n\n{TABLE}", names.join(", "));
        self.home.configure(&config, &[("mapping.toml", &mapping)])?;
        self.home.setup()
    }

    /// Every kind of change, some of it new each time; up to where the sinks have to come to hold it.
    async fn change(&mut self) -> Result<Lsn> {
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
    async fn stands(&self, sink: Which) -> Result<Lsn> {
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

    async fn wait(&self, sink: Which, target: Lsn, daemon: &mut Daemon) -> Result<()> {
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
    async fn assert_equal(&mut self, after: &str, daemon: &mut Daemon) -> Result<()> {
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

    fn inflict(&mut self, trouble: Trouble, sink: Which) {
        match (trouble, sink) {
            (Trouble::Down, ToPostgres) => self.postgres.kill9(),
            (Trouble::Down, ToClickHouse) => self.server.kill9(),
            (Trouble::Slow, ToPostgres) => self.postgres.signal_all("STOP"),
            (Trouble::Slow, ToClickHouse) => self.server.signal("STOP"),
        }
    }

    fn heal(&mut self, trouble: Trouble, sink: Which) -> Result<()> {
        match (trouble, sink) {
            (Trouble::Down, ToPostgres) => self.postgres.resume()?,
            (Trouble::Down, ToClickHouse) => self.server.resume()?,
            (Trouble::Slow, ToPostgres) => self.postgres.signal_all("CONT"),
            (Trouble::Slow, ToClickHouse) => self.server.signal("CONT"),
        }
        Ok(())
    }

    async fn confirmed(&self) -> Result<Lsn> {
        let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1";
        let row = self.source.connect(DATABASE).await?.query_one(sql, &[&SLOT]).await?;
        Ok(row.get::<_, &str>(0).parse()?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_in_trouble_leaves_the_other_alone_and_comes_back_whole() -> Result<()> {
    let mut stage = Stage::start("several", &[ToPostgres, ToClickHouse]).await?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the copies", &mut daemon).await?;
    for trouble in [Trouble::Down, Trouble::Slow] {
        for (sick, well) in [(ToPostgres, ToClickHouse), (ToClickHouse, ToPostgres)] {
            let held = stage.stands(sick).await?;
            stage.inflict(trouble, sick);
            let mut target = held;
            for _ in 0..3 {
                target = stage.change().await?;
                stage.wait(well, target, &mut daemon).await.with_context(|| format!("{sick:?} is {trouble:?}"))?;
            }
            let confirmed = stage.confirmed().await?;
            ensure!(confirmed < target, "the source was told {confirmed}, which {sick:?} cannot hold");
            stage.heal(trouble, sick)?;
            stage.assert_equal(&format!("{sick:?} was {trouble:?}"), &mut daemon).await?;
        }
    }
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_table_of_one_sink_stops_there_alone_and_is_brought_back() -> Result<()> {
    let mut stage = Stage::start("several-broken", &[ToPostgres, ToClickHouse]).await?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the copies", &mut daemon).await?;
    stage.server.query("ALTER TABLE mirror.entries DROP COLUMN filler")?;
    for _ in 0..3 {
        let target = stage.change().await?;
        stage.wait(ToPostgres, target, &mut daemon).await?;
    }
    let state = "SELECT state FROM tailwater.table_state FINAL WHERE target = 'mirror.entries'";
    eventually(SOON, "the table is quarantined", async || {
        let state = stage.server.query(state)?;
        Ok(if state == "quarantined" { Look::Yes(()) } else { Look::NotYet(state) })
    })
    .await?;
    let client = stage.postgres.connect(DATABASE).await?;
    ensure!(tables_not_streaming(&client).await? == 0);
    daemon.terminate()?;

    // The way back that the README tells.
    for mend in [
        "ALTER TABLE mirror.entries ADD COLUMN filler String",
        "TRUNCATE TABLE mirror.entries",
        "DELETE FROM tailwater.table_state WHERE target = 'mirror.entries'",
    ] {
        stage.server.query(mend)?;
    }
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the table was mended", &mut daemon).await?;
    stage.change().await?;
    stage.assert_equal("the mended table streams", &mut daemon).await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_that_is_added_later_is_filled_while_the_other_streams_on() -> Result<()> {
    let mut stage = Stage::start("several-added", &[ToPostgres]).await?;
    let mut daemon = stage.home.run()?;
    let target = stage.change().await?;
    stage.wait(ToPostgres, target, &mut daemon).await?;
    daemon.terminate()?;
    stage.configure(&[ToPostgres, ToClickHouse])?;
    let mut daemon = stage.home.run()?;
    for _ in 0..5 {
        let target = stage.change().await?;
        stage.wait(ToPostgres, target, &mut daemon).await?;
    }
    stage.assert_equal("the other sink was added", &mut daemon).await?;
    daemon.terminate()
}

/// A start needs every sink: until each has said where it stands, the source is told nothing.
#[tokio::test(flavor = "multi_thread")]
async fn start_waits_for_a_sink_that_is_down_and_then_loses_nothing() -> Result<()> {
    let mut stage = Stage::start("several-start", &[ToPostgres, ToClickHouse]).await?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the copies", &mut daemon).await?;
    daemon.terminate()?;
    let held = stage.stands(ToClickHouse).await?;
    stage.server.kill9();
    let target = stage.change().await?;
    let mut daemon = stage.home.run()?;
    eventually(SOON, "it says for whom it waits", async || {
        let log = daemon.log();
        Ok(if log.contains("sink \"ch\"") && log.contains("waiting") { Look::Yes(()) } else { Look::NotYet(log) })
    })
    .await?;
    let confirmed = stage.confirmed().await?;
    ensure!(confirmed <= held && held < target, "the source was told {confirmed}, and the sink held {held}");
    ensure!(daemon.ended()?.is_none(), "it gave up");
    stage.server.resume()?;
    stage.assert_equal("the sink came back", &mut daemon).await?;
    daemon.terminate()
}
