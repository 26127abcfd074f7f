//! Materialized views: a refresh shows exactly the position it records, and trouble passes.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tailwater::catalog::TableName;
use tailwater::mapping::plan::{RefreshMode, ViewPlan};
use tailwater::postgres::url::PgUrl;
use tailwater::refresh::{Observer, RefreshError, Refreshed, Refresher, RefresherSetup, TouchedTables};
use tailwater::sink::any::SinkAddress;
use tailwater::sink::postgres::state::STATE_SCHEMA;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::cluster::{Cluster, Stop};
use crate::support::wait::{Look, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Commit number n adds a row to `a` if n is odd and to `b` if it is even, so a view's numbers tell its position.
/// `down` reads `up` through a plain view.
const MODEL: &str = "
CREATE SCHEMA m;
CREATE TABLE m.a (id int PRIMARY KEY);
CREATE TABLE m.b (id int PRIMARY KEY);
CREATE MATERIALIZED VIEW m.up AS SELECT 1 AS id, count(*)::int AS a_rows FROM m.a;
CREATE VIEW m.between AS SELECT id, a_rows FROM m.up;
CREATE MATERIALIZED VIEW m.down AS
    SELECT v.id, v.a_rows, (SELECT count(*)::int FROM m.a) AS a_direct, (SELECT count(*)::int FROM m.b) AS b_rows
    FROM m.between AS v;
CREATE UNIQUE INDEX ON m.up (id);
CREATE UNIQUE INDEX ON m.down (id);
";

const A: usize = 0;
const B: usize = 1;

pub fn name(text: &str) -> TableName {
    text.parse().expect("schema.name")
}

pub fn plan(view: &str, refresh: RefreshMode, every: Duration) -> ViewPlan {
    ViewPlan { sink: "warehouse".to_owned(), view: name(view), refresh, every }
}

/// Keeps what it is told, as text.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn tell(&self, text: String) {
        self.0.lock().expect("nobody panics in it").push(text);
    }

    pub fn count(&self, start: &str) -> usize {
        self.0.lock().expect("nobody panics in it").iter().filter(|text| text.starts_with(start)).count()
    }

    pub async fn wait(&self, start: &str, count: usize) -> Result<()> {
        eventually(SOON, start, async || {
            let all = self.0.lock().expect("nobody panics in it").join("; ");
            Ok(if self.count(start) >= count { Look::Yes(()) } else { Look::NotYet(all) })
        })
        .await
    }
}

impl Observer for Told {
    fn stale(&self, view: &TableName) {
        self.tell(format!("stale {view}"));
    }

    fn refreshed(&self, view: &TableName, outcome: Result<&Refreshed, &RefreshError>) {
        match outcome {
            Ok(refreshed) => self.tell(format!("refreshed {view} at {:?}", refreshed.lsns)),
            Err(error) => self.tell(format!("not refreshed {view}: {error}")),
        }
    }

    fn failed(&self, error: &RefreshError) {
        self.tell(format!("failed: {error}"));
    }
}

/// A warehouse with one source's checkpoint, and a refresher at work on it.
struct Warehouse {
    cluster: Cluster,
    client: Client,
    touched: Arc<TouchedTables>,
    told: Told,
    commits: u32,
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
    async fn new(name: &str, model: &str) -> Result<Warehouse> {
        let cluster = Cluster::new(name)?;
        cluster.execute("postgres", STATE_SCHEMA).await?;
        cluster.execute("postgres", model).await?;
        let checkpoint = "INSERT INTO tailwater.checkpoint (source, commit_lsn, end_lsn, ordinal, system_identifier, \
                          timeline, database, slot, epoch) VALUES ('src', '0/0', '0/0', 0, '1', 1, 'd', 's', 1)";
        cluster.execute("postgres", checkpoint).await?;
        let client = cluster.connect("postgres").await?;
        Ok(Warehouse { cluster, client, touched: Arc::default(), told: Told::default(), commits: 0 })
    }

    fn refresh(&self, views: Vec<ViewPlan>) -> Result<Running> {
        let setup = RefresherSetup {
            sink: "warehouse".to_owned(),
            address: SinkAddress::Postgres(PgUrl::parse(&format!("{}?sslmode=disable", self.cluster.url("postgres")))?),
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

    /// As the sink: the row and the checkpoint in one transaction, announced before and marked after.
    async fn commit(&mut self) -> Result<()> {
        self.commits += 1;
        let (table, target) = if self.commits % 2 == 1 { ("a", A) } else { ("b", B) };
        let touch = self.touched.touch([target]);
        let number = self.commits;
        let sql = format!(
            "BEGIN; INSERT INTO m.{table} VALUES ({number});
             UPDATE tailwater.checkpoint SET end_lsn = '0/0'::pg_lsn + {number}; COMMIT"
        );
        self.client.batch_execute(&sql).await?;
        drop(touch);
        Ok(())
    }

    /// Waits until `view_state` says that the view shows the last commit.
    async fn fresh(&self, view: &str) -> Result<()> {
        eventually(SOON, &format!("{view} is fresh"), async || {
            let sql = "SELECT (lsn - '0/0')::int FROM tailwater.view_state WHERE view = $1 AND source = 'src'";
            let client = self.cluster.connect("postgres").await?;
            let shown: Option<i32> = client.query_opt(sql, &[&view]).await?.map(|row| row.get(0));
            let is_fresh = shown == Some(i32::try_from(self.commits)?);
            Ok(if is_fresh { Look::Yes(()) } else { Look::NotYet(format!("{shown:?} of {}", self.commits)) })
        })
        .await
    }
}

/// What both views show and what they say they show, in one snapshot.
async fn assert_exact(client: &Client) -> Result<()> {
    let sql = "
        SELECT u.a_rows AS up_a, d.a_rows AS down_a, d.a_direct, d.b_rows,
               (SELECT (lsn - '0/0')::int FROM tailwater.view_state WHERE view = 'm.up') AS up_at,
               (SELECT (lsn - '0/0')::int FROM tailwater.view_state WHERE view = 'm.down') AS down_at
        FROM m.up AS u CROSS JOIN m.down AS d";
    let row = client.query_one(sql, &[]).await?;
    let number = |column| -> i32 { row.get(column) };
    let (up_at, down_at) = (number("up_at"), number("down_at"));
    ensure!(number("up_a") == (up_at + 1) / 2, "up says {up_at} and shows {row:?}");
    ensure!(number("a_direct") == (down_at + 1) / 2 && number("b_rows") == down_at / 2, "down says {down_at}: {row:?}");
    ensure!(number("down_a") == number("a_direct"), "down at {down_at} was made from a stale up: {row:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn refresh_shows_exactly_the_position_it_records_under_load() -> Result<()> {
    for mode in [RefreshMode::Plain, RefreshMode::Concurrently, RefreshMode::Auto] {
        let mut warehouse = Warehouse::new("exact", MODEL).await?;
        let reader = warehouse.cluster.connect("postgres").await?;
        // The upstream's own time comes rarely: mostly it goes along with what reads it.
        let views =
            vec![plan("m.down", mode, Duration::from_millis(5)), plan("m.up", mode, Duration::from_millis(200))];
        let running = warehouse.refresh(views)?;
        warehouse.told.wait("refreshed m.down", 1).await?;
        let began = Instant::now();
        while warehouse.told.count("refreshed m.down") < 60 {
            warehouse.commit().await?;
            if warehouse.commits % 3 == 0 {
                assert_exact(&reader).await?;
            }
            ensure!(began.elapsed() < SOON, "only {} refreshes", warehouse.told.count("refreshed m.down"));
        }
        warehouse.fresh("m.down").await?;
        assert_exact(&reader).await?;
        ensure!(warehouse.told.count("not") + warehouse.told.count("failed") == 0, "{:?}", warehouse.told.0);
        running.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn change_that_is_visible_but_not_yet_marked_takes_its_upstream_along() -> Result<()> {
    let mut warehouse = Warehouse::new("late", MODEL).await?;
    let every = Duration::from_millis(1);
    let running =
        warehouse.refresh(vec![plan("m.up", RefreshMode::Auto, every), plan("m.down", RefreshMode::Auto, every)])?;
    warehouse.fresh("m.down").await?;
    // The applier of `a` has committed and has not come to say so when that of `b` wakes the refresher.
    let unsaid = warehouse.touched.touch([A]);
    let sql = "BEGIN; INSERT INTO m.a VALUES (1); UPDATE tailwater.checkpoint SET end_lsn = '0/1'; COMMIT";
    warehouse.client.batch_execute(sql).await?;
    warehouse.commits = 1;
    warehouse.commit().await?;
    warehouse.fresh("m.down").await?;
    assert_exact(&warehouse.client).await?;
    drop(unsaid);
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn view_behind_the_checkpoint_is_refreshed_at_start_and_a_fresh_one_is_not() -> Result<()> {
    let empty = MODEL.replace("FROM m.between AS v;", "FROM m.between AS v WITH NO DATA;");
    let mut warehouse = Warehouse::new("start", &empty).await?;
    let views = vec![
        plan("m.up", RefreshMode::Concurrently, Duration::from_secs(600)),
        plan("m.down", RefreshMode::Concurrently, Duration::from_secs(600)),
    ];
    let running = warehouse.refresh(views.clone())?;
    warehouse.fresh("m.down").await?;
    running.stop().await?;
    // Committed, and then the daemon died before anybody was told.
    warehouse.commit().await?;
    warehouse.touched = Arc::default();
    let running = warehouse.refresh(views.clone())?;
    warehouse.fresh("m.up").await?;
    warehouse.fresh("m.down").await?;
    running.stop().await?;
    assert_exact(&warehouse.client).await?;

    let before = warehouse.told.count("refreshed m.down");
    let running = warehouse.refresh(views)?;
    warehouse.touched.mark(&[B]);
    warehouse.told.wait("refreshed m.down", before + 1).await?;
    running.stop().await?;
    ensure!(
        warehouse.told.count("stale m.up") == 2,
        "only at the first start and after the commit: {:?}",
        warehouse.told.0
    );
    ensure!(warehouse.told.count("refreshed m.up") == 2, "{:?}", warehouse.told.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn view_that_cannot_be_refreshed_holds_up_only_those_that_read_it() -> Result<()> {
    let model = format!(
        "{MODEL}
         CREATE MATERIALIZED VIEW m.bad AS SELECT 1 / (1 - count(*)) AS id FROM m.a;
         CREATE MATERIALIZED VIEW m.worse AS SELECT id FROM m.bad;
         CREATE MATERIALIZED VIEW m.gone AS SELECT id FROM m.a;"
    );
    let mut warehouse = Warehouse::new("bad", &model).await?;
    let every = Duration::from_millis(10);
    let views = ["m.worse", "m.bad", "m.gone", "m.down", "m.up"].map(|view| plan(view, RefreshMode::Auto, every));
    let running = warehouse.refresh(views.to_vec())?;
    warehouse.fresh("m.worse").await?;
    warehouse.client.batch_execute("DROP MATERIALIZED VIEW m.gone").await?;
    for _ in 0..5 {
        warehouse.commit().await?;
        warehouse.fresh("m.down").await?;
        assert_exact(&warehouse.client).await?;
    }
    let told = &warehouse.told;
    ensure!(told.count("not refreshed m.bad: error 22012: division_by_zero") == 1, "{:?}", told.0);
    ensure!(told.count("not refreshed m.worse: it reads \"m.bad\", which was not refreshed") == 1, "{:?}", told.0);
    ensure!(told.count("not refreshed m.gone") == 1, "{:?}", told.0);
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn view_waits_for_the_first_copy_of_its_table() -> Result<()> {
    let mut warehouse = Warehouse::new("copying", MODEL).await?;
    let state = "INSERT INTO tailwater.table_state (source, target, origin, state)
                 VALUES ('src', 'm.b', 'public.b', 'copying')";
    warehouse.client.batch_execute(state).await?;
    let every = Duration::from_millis(10);
    let running =
        warehouse.refresh(vec![plan("m.up", RefreshMode::Auto, every), plan("m.down", RefreshMode::Auto, every)])?;
    warehouse.commit().await?;
    warehouse.fresh("m.up").await?;
    ensure!(warehouse.told.count("refreshed m.down") == 0);
    warehouse.client.batch_execute("UPDATE tailwater.table_state SET state = 'streaming'").await?;
    warehouse.fresh("m.down").await?;
    running.stop().await
}

const SLOW: &str = "
CREATE SCHEMA m;
CREATE TABLE m.a (id int PRIMARY KEY);
CREATE TABLE m.b (id int PRIMARY KEY);
CREATE TABLE m.seconds AS SELECT 0 AS seconds;
CREATE MATERIALIZED VIEW m.slow AS
    SELECT (SELECT count(*)::int FROM m.a) AS id, pg_sleep((SELECT max(seconds) FROM m.seconds))::text AS slept;
";

/// Waits until a refresh sleeps in the server.
async fn asleep(warehouse: &Warehouse) -> Result<i32> {
    eventually(SOON, "the refresh runs", async || {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'refresher' AND wait_event = 'PgSleep'";
        let row = warehouse.client.query_opt(sql, &[]).await?;
        Ok(row.map_or(Look::NotYet("nobody sleeps".to_owned()), |row| Look::Yes(row.get(0))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_and_killed_refreshes_are_made_again_and_shutdown_waits_for_none() -> Result<()> {
    let mut warehouse = Warehouse::new("slow", SLOW).await?;
    let running = warehouse.refresh(vec![plan("m.slow", RefreshMode::Auto, Duration::from_millis(10))])?;
    warehouse.fresh("m.slow").await?;
    for kill in ["pg_cancel_backend", "pg_terminate_backend"] {
        warehouse.client.batch_execute("UPDATE m.seconds SET seconds = 600").await?;
        warehouse.commit().await?;
        warehouse.commit().await?;
        let pid = asleep(&warehouse).await?;
        warehouse.client.batch_execute("UPDATE m.seconds SET seconds = 0").await?;
        warehouse.client.query_one(&format!("SELECT {kill}($1)"), &[&pid]).await?;
        warehouse.fresh("m.slow").await?;
    }
    ensure!(warehouse.told.count("not refreshed m.slow: error 57014") == 1, "{:?}", warehouse.told.0);
    warehouse.cluster.restart(Stop::Immediate)?;
    warehouse.client = warehouse.cluster.connect("postgres").await?;
    warehouse.client.batch_execute("UPDATE m.seconds SET seconds = 600").await?;
    warehouse.commit().await?;
    asleep(&warehouse).await?;
    running.stop().await?;
    eventually(SOON, "the server has ended the refresh too", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'refresher'";
        let left: i64 = warehouse.client.query_one(sql, &[]).await?.get(0);
        Ok(if left == 0 { Look::Yes(()) } else { Look::NotYet(format!("{left} sessions")) })
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn locked_view_is_left_alone_until_its_lock_is_gone() -> Result<()> {
    let mut warehouse = Warehouse::new("locked", MODEL).await?;
    let every = Duration::from_millis(10);
    let running =
        warehouse.refresh(vec![plan("m.up", RefreshMode::Auto, every), plan("m.down", RefreshMode::Auto, every)])?;
    warehouse.fresh("m.down").await?;
    let locker = warehouse.cluster.connect("postgres").await?;
    locker.batch_execute("BEGIN; REFRESH MATERIALIZED VIEW m.down").await?;
    warehouse.commit().await?;
    warehouse.told.wait("not refreshed m.down: error 55P03", 1).await?;
    warehouse.fresh("m.up").await?;
    locker.batch_execute("ROLLBACK").await?;
    warehouse.fresh("m.down").await?;
    assert_exact(&warehouse.client).await?;
    running.stop().await
}
