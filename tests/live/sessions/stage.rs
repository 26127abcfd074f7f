//! The sources, both warehouses and what they should hold: the model's own tables filled from all sources at once.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tailwater::lsn::Lsn;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::Cluster;
use crate::support::daemon::{Daemon, Home, flushed};
use crate::support::pair::SOON;
use crate::support::wait::{Look, eventually};

pub const PROJECTS: [&str; 3] = ["project_a", "project_b", "project_c"];
const RATES: &str = "rates";

const PROJECT_SCHEMA: &str = include_str!("../../../schemas/source/sessions.sql");
const RATES_SCHEMA: &str = include_str!("../../../schemas/source/exchange_rates.sql");
const POSTGRES_SCHEMA: &str = include_str!("../../../schemas/postgres/sessions.sql");
/// Computes each view in another way.
const POSTGRES_CHECK: &str = include_str!("../../../schemas/postgres/sessions_check.sql");
const CLICKHOUSE_VIEWS: &str = include_str!("../../../schemas/clickhouse/sessions.sql");
const MAPPINGS: [(&str, &str); 3] = [
    ("sessions.toml", include_str!("../../../mappings/sessions.toml")),
    ("sessions_clickhouse.toml", include_str!("../../../mappings/sessions_clickhouse.toml")),
    ("exchange_rates.toml", include_str!("../../../mappings/exchange_rates.toml")),
];

/// In the order in which they read each other.
const VIEWS: [&str; 5] =
    ["session_events", "transactions_in_usd", "session_first_transactions", "session_sums", "session_analytics"];

/// What is compared: each with its columns. `@` stands before a time, `#` before a number with a point.
const RELATIONS: [(&str, &str); 10] = [
    ("user_sessions", "project user_id id active page_name @last_activity_at @created_at @updated_at"),
    ("pages", "project id name @created_at"),
    ("events", "project user_id id event_name page_id @created_at"),
    ("transactions", "project id user_id @created_at #amount currency success"),
    ("exchange_rates", "currency_from currency_to #exchange_rate currency_date"),
    (VIEWS[0], "project user_id session_id event_count"),
    (VIEWS[1], "project id user_id @created_at success currency #amount #amount_usd"),
    (VIEWS[2], "project user_id session_id first_id @first_at first_in_usd_id @first_in_usd_at"),
    (VIEWS[3], "project user_id session_id transaction_count #sum_usd"),
    (
        VIEWS[4],
        "project user_id session_id transaction_count #sum_usd first_id @first_at first_in_usd_id @first_in_usd_at",
    ),
];

pub struct Stage {
    /// All databases but one.
    east: Cluster,
    /// `project_c`.
    pub west: Cluster,
    /// Databases `dwh` and, for the test alone, `truth`.
    warehouse: Cluster,
    server: ClickHouse,
    pub home: Home,
    projects: Vec<String>,
    steps: i64,
}

impl Stage {
    /// Filled, set up, with no daemon running.
    pub async fn start(name: &str, projects: &[&str]) -> Result<Stage> {
        let (east, west) = (Cluster::new(&format!("{name}-east"))?, Cluster::new(&format!("{name}-west"))?);
        let warehouse = Cluster::new(&format!("{name}-dwh"))?;
        let server = ClickHouse::start(&format!("{name}-ch"))?;
        let home = Home::new(name, "", &[])?;
        let mut stage = Stage { east, west, warehouse, server, home, projects: Vec::new(), steps: 0 };
        for database in ["dwh", "truth"] {
            stage.warehouse.execute("postgres", &format!("CREATE DATABASE {database}")).await?;
            stage.warehouse.execute(database, POSTGRES_SCHEMA).await?;
        }
        stage.east.execute("postgres", &format!("CREATE DATABASE {RATES}")).await?;
        stage.execute(RATES, RATES_SCHEMA).await?;
        stage.execute(RATES, "SELECT exchange_rates_generate(30)").await?;
        for project in projects {
            stage.add_project(project).await?;
        }
        stage.home.setup()?;
        for statement in CLICKHOUSE_VIEWS.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            stage.server.query(statement)?;
        }
        Ok(stage)
    }

    fn cluster(&self, source: &str) -> &Cluster {
        if source == "project_c" { &self.west } else { &self.east }
    }

    async fn client(&self, source: &str) -> Result<Client> {
        self.cluster(source).connect(source).await
    }

    pub async fn execute(&self, source: &str, sql: &str) -> Result<()> {
        self.cluster(source).execute(source, sql).await
    }

    /// A database with rows, and a configuration that names it. Users, sessions and the rest are numbered as everywhere.
    pub async fn add_project(&mut self, project: &str) -> Result<()> {
        self.cluster(project).execute("postgres", &format!("CREATE DATABASE {project}")).await?;
        self.execute(project, PROJECT_SCHEMA).await?;
        self.projects.push(project.to_owned());
        let seed = self.projects.len();
        self.execute(project, &format!("SELECT sessions_generate(25, {seed}); ANALYZE")).await?;
        self.configure()
    }

    fn configure(&self) -> Result<()> {
        let mut config = String::new();
        for source in self.sources() {
            let url = self.cluster(source).url(source);
            config.push_str(&format!("[source.{source}]\nurl = \"{url}\"\nheartbeat = \"500ms\"\n\n"));
        }
        for (name, kind, url) in
            [("warehouse", "postgres", self.warehouse.url("dwh")), ("clickhouse", "clickhouse", self.server.url(""))]
        {
            config.push_str(&format!("[sink.{name}]\nkind = \"{kind}\"\nurl = \"{url}\"\nidle_record = \"200ms\"\n\n"));
        }
        let list = format!("source = {:?}", self.projects);
        let mappings = MAPPINGS.map(|(name, text)| {
            let text = text.replace("source = [\"project_a\", \"project_b\", \"project_c\"]", &list);
            (name, text.replace("every = \"10s\"", "every = \"100ms\"").replace("every = \"5s\"", "every = \"100ms\""))
        });
        let mappings = mappings.each_ref().map(|(name, text)| (*name, text.as_str()));
        self.home.configure(&config, &mappings)
    }

    fn sources(&self) -> impl Iterator<Item = &str> {
        self.projects.iter().map(String::as_str).chain([RATES])
    }

    /// So many change sets in every source.
    pub async fn live_steps(&mut self, count: i64) -> Result<()> {
        let projects = self.projects.clone();
        let projects: Vec<&str> = projects.iter().map(String::as_str).collect();
        let sql = format!("SELECT exchange_rates_live_step(seed) FROM generate_series(1, {count}) AS seed");
        self.execute(RATES, &sql).await?;
        self.live_steps_of(&projects, count).await
    }

    pub async fn live_steps_of(&mut self, projects: &[&str], count: i64) -> Result<()> {
        for project in projects {
            let client = self.client(project).await?;
            for _ in 0..count {
                self.steps += 1;
                client.execute("SELECT sessions_live_step($1)", &[&self.steps]).await?;
            }
        }
        Ok(())
    }

    /// Waits until both warehouses hold what all sources have committed by now.
    pub async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        for source in self.sources() {
            self.catch_up_with(source, daemon).await?;
        }
        Ok(())
    }

    pub async fn catch_up_with(&self, source: &str, daemon: &mut Daemon) -> Result<()> {
        let target = flushed(&self.client(source).await?).await?;
        let warehouse = self.warehouse.connect("dwh").await?;
        let sql = "SELECT (SELECT end_lsn::text FROM tailwater.checkpoint WHERE source = $1), \
                   (SELECT count(*) FROM tailwater.table_state WHERE source = $1 AND state <> 'streaming')";
        let what = format!("{source} at {target} in both warehouses");
        let caught_up = eventually(SOON, &what, async || {
            if let Some(status) = daemon.ended()? {
                return Ok(Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}"))));
            }
            let row = warehouse.query_one(sql, &[&source]).await?;
            let here: Lsn = row.get::<_, Option<&str>>(0).context("no checkpoint")?.parse()?;
            let there =
                format!("SELECT toString(max(end_lsn)) FROM tailwater.checkpoint FINAL WHERE source = '{source}'");
            let there = Lsn(self.server.query(&there)?.parse()?);
            let waiting = format!(
                "SELECT count() FROM tailwater.table_state FINAL WHERE source = '{source}' AND state != 'streaming'"
            );
            let waiting = row.get::<_, i64>(1) + self.server.query(&waiting)?.parse::<i64>()?;
            let is_there = here >= target && there >= target && waiting == 0;
            let instead = format!("Postgres at {here}, ClickHouse at {there}, {waiting} tables not streaming");
            Ok(if is_there { Look::Yes(Ok(())) } else { Look::NotYet(instead) })
        });
        caught_up.await?
    }

    /// Of both warehouses.
    pub fn lag_seconds(&self, daemon: &Daemon, source: &str) -> Result<Vec<f64>> {
        let label = format!("source=\"{source}\"");
        let is_it = |key: &str| key.starts_with("tailwater_replication_lag_seconds{") && key.contains(&label);
        Ok(daemon.metrics()?.iter().filter(|(key, _)| is_it(key)).map(|(_, lag)| *lag).collect())
    }

    /// With the sources quiet and everything caught up: tables and views of both warehouses are what they should be.
    pub async fn assert_equal(&self, after: &str) -> Result<()> {
        let truth = self.truth().await?;
        ensure!(truth.values().all(|rows| !rows.is_empty()), "after {after}: something is empty");
        let warehouse = self.warehouse.connect("dwh").await?;
        // The daemon refreshes the views after the rows, here and there.
        eventually(SOON, &format!("after {after}: Postgres is right"), async || {
            let held = rows_of_postgres(&warehouse).await?;
            Ok(difference(&truth, &held).map_or(Look::Yes(()), Look::NotYet))
        })
        .await?;
        let wrong = warehouse.query(POSTGRES_CHECK, &[]).await?;
        ensure!(wrong.is_empty(), "after {after}: the model's own check finds {:?}", wrong.first());
        eventually(SOON, &format!("after {after}: ClickHouse is right"), async || {
            let held = self.rows_of_clickhouse()?;
            Ok(difference(&truth, &held).map_or(Look::Yes(()), Look::NotYet))
        })
        .await
    }

    /// The model over the union of the sources, computed from nothing.
    async fn truth(&self) -> Result<Rows> {
        let truth = self.warehouse.connect("truth").await?;
        for (table, _) in &RELATIONS[..5] {
            truth.batch_execute(&format!("TRUNCATE sessions.{table}")).await?;
        }
        for source in self.sources() {
            let client = self.client(source).await?;
            let tables = if source == RATES { &RELATIONS[4..5] } else { &RELATIONS[..4] };
            for (table, _) in tables {
                let sql = format!(
                    "SELECT coalesce(jsonb_agg(to_jsonb(t) || jsonb_build_object('project', $1::text)), '[]')::text \
                     FROM {table} AS t"
                );
                let rows: String = client.query_one(&sql, &[&source]).await?.get(0);
                let sql = format!(
                    "INSERT INTO sessions.{table} SELECT (jsonb_populate_recordset(NULL::sessions.{table}, $1::text::jsonb)).*"
                );
                truth.execute(&sql, &[&rows]).await?;
            }
        }
        for view in VIEWS {
            truth.batch_execute(&format!("REFRESH MATERIALIZED VIEW sessions.{view}")).await?;
        }
        rows_of_postgres(&truth).await
    }

    fn rows_of_clickhouse(&self) -> Result<Rows> {
        let mut all = Rows::new();
        for (relation, columns) in RELATIONS {
            let columns = columns.split(' ').map(|column| column.trim_start_matches(['@', '#']));
            let columns = columns.map(|column| format!("ifNull(toString({column}), '~')"));
            let columns = columns.collect::<Vec<_>>().join(", ");
            let suffix = if VIEWS.contains(&relation) { "" } else { "_current" };
            let sql = format!("SELECT lower(hex(concat_ws('|', {columns}))) FROM sessions.{relation}{suffix}");
            let mut rows: Vec<String> = self.server.query(&sql)?.lines().map(str::to_owned).collect();
            rows.sort();
            all.insert(relation, rows);
        }
        Ok(all)
    }
}

/// Of each relation, in hexadecimal digits, sorted.
type Rows = BTreeMap<&'static str, Vec<String>>;

async fn rows_of_postgres(client: &Client) -> Result<Rows> {
    let mut all = Rows::new();
    for (relation, columns) in RELATIONS {
        let columns = columns.split(' ').map(|column| match column.split_at(1) {
            ("@", time) => format!("coalesce(to_char({time}, 'YYYY-MM-DD HH24:MI:SS.US'), '~')"),
            ("#", number) => format!("coalesce(trim_scale({number})::text, '~')"),
            _ => format!("coalesce({column}::text, '~')"),
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        let sql =
            format!("SELECT encode(convert_to(concat_ws('|', {columns}), 'UTF8'), 'hex') FROM sessions.{relation}");
        let messages = client.simple_query(&sql).await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let mut rows: Vec<String> = rows.collect();
        rows.sort();
        all.insert(relation, rows);
    }
    Ok(all)
}

/// The first one.
fn difference(truth: &Rows, held: &Rows) -> Option<String> {
    truth.iter().find_map(|(relation, truth)| {
        let held = &held[relation];
        let missing = truth.iter().find(|row| held.binary_search(row).is_err()).map(|row| text(row));
        let surplus = held.iter().find(|row| truth.binary_search(row).is_err()).map(|row| text(row));
        let sizes = format!("{} rows instead of {}", held.len(), truth.len());
        (truth != held).then(|| format!("{relation}: {sizes}; missing {missing:?}, not to be there {surplus:?}"))
    })
}

fn text(hex: &str) -> String {
    let bytes = hex.as_bytes().chunks(2).filter_map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
    String::from_utf8_lossy(&bytes.collect::<Vec<_>>()).into_owned()
}
