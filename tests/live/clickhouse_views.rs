//! Refreshable materialized views of ClickHouse: refreshed by event, in their order, and never claiming too much.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;
use tailwater::mapping::plan::{RefreshMode, ViewPlan};
use tailwater::refresh::{Refresher, RefresherSetup, TouchedTables};
use tailwater::sink::any::SinkAddress;
use tailwater::sink::clickhouse::address::Address;
use tailwater::sink::clickhouse::ddl::{Topology, state_schema};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::refresh::{Told, name, plan};
use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Home, flushed};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

/// Commit number n adds a row to `a` if n is odd and to `b` if it is even. `down` reads the table that `up` fills.
const MODEL: &[&str] = &[
    "CREATE DATABASE m",
    "CREATE TABLE m.a (id UInt64) ENGINE = MergeTree ORDER BY id",
    "CREATE TABLE m.b (id UInt64) ENGINE = MergeTree ORDER BY id",
    "CREATE VIEW m.a_current AS SELECT id FROM m.a",
    "CREATE TABLE m.up_rows (a_rows UInt64) ENGINE = MergeTree ORDER BY a_rows",
    "CREATE MATERIALIZED VIEW m.up REFRESH EVERY 1 YEAR TO m.up_rows EMPTY AS SELECT count() AS a_rows FROM m.a_current",
    "CREATE MATERIALIZED VIEW m.down REFRESH EVERY 1 YEAR ENGINE = MergeTree ORDER BY a_rows EMPTY AS \
     SELECT a_rows, (SELECT count() FROM m.b) AS b_rows FROM m.up_rows",
];

const A: usize = 0;
const B: usize = 1;

/// A server with one source's checkpoint, and a refresher at work on it.
struct Warehouse {
    server: ClickHouse,
    touched: Arc<TouchedTables>,
    told: Told,
    commits: u64,
}

struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    async fn stop(self) -> Result<()> {
        let began = Instant::now();
        self.stop.send(true)?;
        self.task.await?;
        ensure!(began.elapsed() < Duration::from_secs(2), "it took {:?} to leave", began.elapsed());
        Ok(())
    }
}

impl Warehouse {
    fn new(name: &str) -> Result<Warehouse> {
        let server = ClickHouse::start(name)?;
        for statement in state_schema(&Topology::Single) {
            server.query(&statement)?;
        }
        for statement in MODEL {
            server.query(statement)?;
        }
        let mut warehouse = Warehouse { server, touched: Arc::default(), told: Told::default(), commits: 0 };
        warehouse.write_checkpoint()?;
        Ok(warehouse)
    }

    fn refresh(&self, views: Vec<ViewPlan>) -> Result<Running> {
        let setup = RefresherSetup {
            sink: "warehouse".to_owned(),
            address: SinkAddress::ClickHouse(Address::parse(&self.server.url(""))?, Topology::Single),
            app_name: "refresher".to_owned(),
            views,
            targets: vec![name("m.a"), name("m.b")],
            touched: self.touched.clone(),
            observer: self.told.clone(),
            seed: 1,
        };
        let (stop, stopped) = watch::channel(false);
        Ok(Running { stop, task: tokio::spawn(Refresher::new(setup).run(stopped)) })
    }

    fn write_checkpoint(&mut self) -> Result<()> {
        let sql = format!(
            "INSERT INTO tailwater.checkpoint (source, end_lsn, epoch, version) VALUES ('src', {0}, 1, {0})",
            self.commits
        );
        self.server.query(&sql).map(drop)
    }

    /// As the sink: the row, then the checkpoint, announced before and marked after.
    fn commit(&mut self) -> Result<()> {
        self.commits += 1;
        let (table, target) = if self.commits % 2 == 1 { ("a", A) } else { ("b", B) };
        let touch = self.touched.touch([target]);
        self.server.query(&format!("INSERT INTO m.{table} VALUES ({})", self.commits))?;
        self.write_checkpoint()?;
        drop(touch);
        Ok(())
    }

    fn recorded(&self, view: &str) -> Result<u64> {
        let sql = format!("SELECT max(lsn) FROM tailwater.view_state FINAL WHERE view = '{view}' AND source = 'src'");
        Ok(self.server.query(&sql)?.parse()?)
    }

    /// What the view says it shows is read before what it shows.
    fn assert_shows_what_it_records(&self) -> Result<()> {
        let at = self.recorded("m.down")?;
        let shown = self.server.query("SELECT a_rows, b_rows FROM m.down")?;
        let Some((a_rows, b_rows)) = shown.split_once('\t') else {
            ensure!(at == 0, "down says {at} and is empty");
            return Ok(());
        };
        let (a_rows, b_rows): (u64, u64) = (a_rows.parse()?, b_rows.parse()?);
        ensure!(a_rows >= at.div_ceil(2) && b_rows >= at / 2, "down says {at} and shows {shown}");
        Ok(())
    }

    async fn fresh(&self, view: &str) -> Result<()> {
        eventually(SOON, &format!("{view} is fresh"), async || {
            let recorded = self.recorded(view)?;
            let told = self.told.count("not refreshed");
            let is_fresh = recorded == self.commits;
            Ok(if is_fresh { Look::Yes(()) } else { Look::NotYet(format!("{recorded}, {told} times not refreshed")) })
        })
        .await
    }
}

fn soon(view: &str) -> ViewPlan {
    plan(view, RefreshMode::Auto, Duration::from_millis(10))
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_view_shows_at_least_the_position_it_records() -> Result<()> {
    let mut warehouse = Warehouse::new("chv-exact")?;
    // The upstream's own time comes rarely: mostly it goes along with what reads it.
    let views = vec![soon("m.down"), plan("m.up", RefreshMode::Auto, Duration::from_secs(3))];
    let running = warehouse.refresh(views)?;
    warehouse.commit()?;
    let began = Instant::now();
    while warehouse.told.count("refreshed m.down") < 10 {
        warehouse.commit()?;
        warehouse.assert_shows_what_it_records()?;
        ensure!(began.elapsed() < SOON, "only {} refreshes", warehouse.told.count("refreshed m.down"));
    }
    warehouse.fresh("m.down").await?;
    warehouse.assert_shows_what_it_records()?;
    ensure!(warehouse.told.count("not") + warehouse.told.count("failed") == 0);
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_view_behind_the_checkpoint_is_refreshed_at_start_and_a_fresh_one_is_not() -> Result<()> {
    let mut warehouse = Warehouse::new("chv-start")?;
    let running = warehouse.refresh(vec![soon("m.up"), soon("m.down")])?;
    warehouse.told.wait("refreshed m.down", 1).await?;
    running.stop().await?;
    // Committed, and then the daemon died before anybody was told.
    warehouse.commit()?;
    warehouse.touched = Arc::default();
    let running = warehouse.refresh(vec![soon("m.up"), soon("m.down")])?;
    warehouse.fresh("m.down").await?;
    running.stop().await?;
    warehouse.assert_shows_what_it_records()?;
    let (ups, downs) = (warehouse.told.count("refreshed m.up"), warehouse.told.count("refreshed m.down"));
    let running = warehouse.refresh(vec![soon("m.up"), soon("m.down")])?;
    warehouse.touched.mark(&[B]);
    warehouse.told.wait("refreshed m.down", downs + 1).await?;
    running.stop().await?;
    ensure!(warehouse.told.count("refreshed m.up") == ups, "it was fresh, and nothing that it reads changed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_view_that_fails_or_is_stopped_holds_up_only_those_that_read_it() -> Result<()> {
    let mut warehouse = Warehouse::new("chv-bad")?;
    for (view, query) in [
        ("bad", "SELECT throwIf(id = 1, 's3cret') AS id FROM m.a"),
        ("worse", "SELECT id FROM m.bad"),
        ("idle", "SELECT id FROM m.b"),
    ] {
        let refresh = "REFRESH EVERY 1 YEAR ENGINE = MergeTree ORDER BY tuple() EMPTY";
        warehouse.server.query(&format!("CREATE MATERIALIZED VIEW m.{view} {refresh} AS {query}"))?;
    }
    warehouse.server.query("SYSTEM STOP VIEW m.idle")?;
    let views = ["m.worse", "m.bad", "m.idle", "m.down", "m.up"].map(soon);
    let running = warehouse.refresh(views.to_vec())?;
    warehouse.fresh("m.worse").await?;
    for _ in 0..3 {
        warehouse.commit()?;
        warehouse.fresh("m.down").await?;
        warehouse.assert_shows_what_it_records()?;
    }
    let told = &warehouse.told;
    told.wait("not refreshed m.bad: ClickHouse error 395 FUNCTION_THROW_IF_VALUE_IS_NON_ZERO", 1).await?;
    told.wait("not refreshed m.worse: it reads \"m.bad\", which was not refreshed", 1).await?;
    told.wait("not refreshed m.idle: its refreshes are stopped", 1).await?;
    ensure!(told.count("refreshed m.idle") == 0);
    warehouse.server.query("SYSTEM START VIEW m.idle")?;
    warehouse.fresh("m.idle").await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_view_waits_for_the_first_copy_of_its_table() -> Result<()> {
    let mut warehouse = Warehouse::new("chv-copying")?;
    let state = |state: &str, version| {
        format!(
            "INSERT INTO tailwater.table_state (source, target, origin, state, version) \
             VALUES ('src', 'm.b', 'public.b', '{state}', {version})"
        )
    };
    warehouse.server.query(&state("copying", 1))?;
    let running = warehouse.refresh(vec![soon("m.up"), soon("m.down")])?;
    warehouse.commit()?;
    warehouse.fresh("m.up").await?;
    warehouse.commit()?;
    ensure!(warehouse.told.count("refreshed m.down") == 0, "half a table was shown");
    warehouse.server.query(&state("streaming", 2))?;
    warehouse.touched.mark(&[B]);
    warehouse.fresh("m.down").await?;
    warehouse.assert_shows_what_it_records()?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_refresher_comes_back_after_the_server_was_killed() -> Result<()> {
    let mut warehouse = Warehouse::new("chv-killed")?;
    let running = warehouse.refresh(vec![soon("m.up"), soon("m.down")])?;
    warehouse.commit()?;
    warehouse.fresh("m.down").await?;
    warehouse.server.kill9();
    warehouse.touched.mark(&[A]);
    warehouse.told.wait("failed: cannot connect", 1).await?;
    warehouse.server.resume()?;
    warehouse.commit()?;
    warehouse.fresh("m.down").await?;
    warehouse.assert_shows_what_it_records()?;
    running.stop().await
}

/// Through the whole daemon: a change at the source shows in the view over the helper view, with its position.
#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_view_follows_its_source() -> Result<()> {
    let source = Cluster::start("chv-daemon-source", Version::V15, Options::default())?;
    source.execute(DATABASE, "CREATE TABLE sale (id int PRIMARY KEY, price int NOT NULL)").await?;
    source.execute(DATABASE, "INSERT INTO sale SELECT n, n FROM generate_series(1, 10) AS n").await?;
    let server = ClickHouse::start("chv-daemon")?;
    let config = format!(
        "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
         [sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\nidle_record = \"200ms\"\n",
        source.url(DATABASE),
        server.url("")
    );
    let tables = "source = \"src\"\nsink = \"ch\"\n\n[table.\"dwh.sale\"]\nfrom = \"public.sale\"\ncolumns = \"*\"\n";
    let home = Home::new("chv-daemon", &config, &[("mapping.toml", tables)])?;
    home.setup()?;
    server.query(
        "CREATE MATERIALIZED VIEW dwh.turnover REFRESH EVERY 1 YEAR ENGINE = MergeTree ORDER BY tuple() EMPTY AS \
         SELECT count() AS sales, sum(price) AS turnover FROM dwh.sale_current",
    )?;
    home.configure(&config, &[("mapping.toml", &format!("{tables}\n[view.\"dwh.turnover\"]\nevery = \"100ms\"\n"))])?;
    home.must(&["check"])?;
    let daemon = home.run()?;
    let shows = async |expected: &str, before: Lsn| -> Result<()> {
        eventually(SOON, &format!("the view shows {expected}"), async || {
            let shown = server.query("SELECT * FROM dwh.turnover")?;
            let lsn = server.query("SELECT max(lsn) FROM tailwater.view_state FINAL WHERE view = 'dwh.turnover'")?;
            let lsn = Lsn(lsn.parse().context("a position")?);
            let is_there = shown == expected && lsn > before;
            Ok(if is_there { Look::Yes(()) } else { Look::NotYet(format!("{shown} at {lsn}, after {before}")) })
        })
        .await
    };
    shows("10\t55", Lsn::ZERO).await?;
    let before = flushed(&source.connect(DATABASE).await?).await?;
    source.execute(DATABASE, "UPDATE sale SET price = 100 WHERE id = 1; DELETE FROM sale WHERE id = 2").await?;
    shows("9\t152", before).await?;
    let status = daemon.status()?;
    ensure!(status.to_string().contains("dwh.turnover"), "{status}");
    ensure!(daemon.metric("tailwater_refresh_seconds_count")? >= 2.0, "{:?}", daemon.metrics()?);
    Ok(())
}
