//! The daemon into ClickHouse: the workloads' tables, copied and streamed, through kills and replays.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::clickhouse::ClickHouse;
use crate::support::clickhouse_checker::ClickHouseChecker;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::lake;
use crate::support::oracle::Oracle;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};
use crate::support::workload::{EVERY_KIND_OF_CHANGE, Load, SCHEMA, SEED_SQL, TABLES, Workload};

/// What Postgres can hold and ClickHouse's types cannot goes as text.
pub fn mapping() -> String {
    let mut text = String::from("source = \"src\"\nsink = \"ch\"\n");
    for table in TABLES {
        let name = table.rsplit('.').next().unwrap_or(table);
        text.push_str(&format!("\n[table.\"mirror.{name}\"]\nfrom = \"{table}\"\ncolumns = \"*\"\n"));
        if name == "ledger" {
            text.push_str("on_overflow = { amount = \"text\", at = \"text\" }\n");
        }
    }
    text
}

/// A source with the workloads' tables and a ClickHouse server that mirrors them.
pub struct Stage {
    pub source: Cluster,
    pub server: ClickHouse,
    pub home: Home,
}

impl Stage {
    /// With the seed's rows at the source and empty tables at the sink.
    pub async fn start(name: &str) -> Result<Stage> {
        let stage = Stage::bare(name).await?;
        stage.source.execute(DATABASE, SEED_SQL).await?;
        stage.home.setup()?;
        Ok(stage)
    }

    /// The same before the seed and before `tailwater setup`.
    pub async fn bare(name: &str) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, SCHEMA).await?;
        let server = ClickHouse::start(&format!("{name}-ch"))?;
        let home = Home::new(name, "", &[])?;
        let stage = Stage { source, server, home };
        stage.configure(stage.server.http_port(), &mapping())?;
        Ok(stage)
    }

    /// ClickHouse at that port of this machine, and this mapping, for what runs next.
    pub fn configure(&self, port: u16, mapping: &str) -> Result<()> {
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.ch]\nkind = \"clickhouse\"\nurl = \"http://127.0.0.1:{port}/\"\nidle_record = \"200ms\"\n",
            self.source.url(DATABASE)
        );
        self.home.configure(&config, &[("mapping.toml", mapping)])
    }

    /// Waits until the sink's checkpoint has reached what the source has committed by now, with every table streaming.
    pub async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        lake::catch_up(daemon, &self.source, &self.server, &["streaming"]).await
    }

    /// With the source quiet: every table holds, for each key, what the source holds.
    pub async fn assert_equal(&self, after: &str) -> Result<()> {
        for table in TABLES {
            let columns: &[&str] = match table.rsplit('.').next().unwrap_or(table) {
                "ledger" => &["txn", "line", "amount", "note", "at"],
                "accounts_a" | "accounts_b" => &["id", "balance"],
                _ => &["id", "body", "extra", "number"],
            };
            lake::compare(&self.source, &self.server, table, columns, after).await?;
        }
        Ok(())
    }

    fn optimize(&self) -> Result<()> {
        for table in TABLES {
            let name = table.rsplit('.').next().unwrap_or(table);
            self.server.query(&format!("OPTIMIZE TABLE mirror.{name} FINAL"))?;
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copied_and_streamed_rows_are_what_the_source_has() -> Result<()> {
    let stage = Stage::start("ch-spine").await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("the copy").await?;
    stage.source.execute(DATABASE, EVERY_KIND_OF_CHANGE).await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("every kind of change").await?;
    daemon.terminate()?;
    stage.source.execute(DATABASE, "UPDATE churn SET number = number + 1; DELETE FROM accounts_a WHERE id = 1").await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("a restart").await?;
    daemon.terminate()
}

/// H80: what is written again has the versions that it had.
#[tokio::test(flavor = "multi_thread")]
async fn replay_of_the_whole_journal_changes_no_result() -> Result<()> {
    let mut random = Random::new(Random::seed_from_environment());
    let stage = Stage::start("ch-replay").await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    let load = Load::start(&stage.source, DATABASE, Workload::ALL, &mut random);
    for _ in 0..4 {
        stage.catch_up(&mut daemon).await?;
        stage.optimize()?;
    }
    load.stop().await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("the load").await?;
    daemon.terminate()?;
    let held = stage.home.must(&["journal", "ls", "--json"])?;
    let held: serde_json::Value = serde_json::from_str(&held)?;
    let first = held.pointer("/0/first").and_then(|lsn| lsn.as_str());
    let first = first.with_context(|| format!("no first position in {held}"))?;
    stage.home.must(&["replay", "--from-lsn", first])?;
    stage.assert_equal("a replay").await?;
    stage.optimize()?;
    stage.assert_equal("a replay and merges").await
}

/// Rows that nothing but their version tells apart.
#[tokio::test(flavor = "multi_thread")]
async fn appended_rows_are_each_kept_once() -> Result<()> {
    let mut stage = Stage::start("ch-append").await?;
    let table = "CREATE TABLE log (line text); ALTER TABLE log REPLICA IDENTITY FULL; \
                 INSERT INTO log SELECT 'same' FROM generate_series(1, 5000)";
    stage.source.execute(DATABASE, table).await?;
    let text = mapping() + "[table.\"mirror.log\"]\nfrom = \"public.log\"\ncolumns = \"*\"\nmode = \"append\"\n";
    std::fs::write(stage.home.path().join("mappings/mapping.toml"), text)?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    let held = |stage: &Stage| stage.server.number("SELECT count() FROM mirror.log_current");
    ensure!(held(&stage)? == 5000, "the copy has {} rows", held(&stage)?);
    for _ in 0..3 {
        stage.source.execute(DATABASE, "INSERT INTO log SELECT 'same' FROM generate_series(1, 1000)").await?;
        daemon.kill9();
        stage.server.kill9_and_resume()?;
        daemon = stage.home.run()?;
    }
    stage.catch_up(&mut daemon).await?;
    stage.server.query("OPTIMIZE TABLE mirror.log FINAL")?;
    ensure!(held(&stage)? == 8000, "{} rows after three kills", held(&stage)?);
    daemon.terminate()
}

/// H61: what a type cannot hold is replaced and counted where the mapping says so; else its table stops and names it.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_do_not_fit_follow_the_policy() -> Result<()> {
    let stage = Stage::start("ch-overflow").await?;
    let tables = "CREATE TABLE kept (id int PRIMARY KEY, a timestamptz, b timestamptz); \
                  CREATE TABLE strict (id int PRIMARY KEY, a timestamptz); \
                  INSERT INTO kept VALUES (1, 'infinity', 'infinity'); INSERT INTO strict VALUES (1, now())";
    stage.source.execute(DATABASE, tables).await?;
    let text = mapping()
        + "[table.\"mirror.kept\"]\nfrom = \"public.kept\"\ncolumns = \"*\"\n\
           on_overflow = { a = \"null\", b = \"clamp\" }\n\
           [table.\"mirror.strict\"]\nfrom = \"public.strict\"\ncolumns = \"*\"\n";
    std::fs::write(stage.home.path().join("mappings/mapping.toml"), text)?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.source.execute(DATABASE, "INSERT INTO kept VALUES (2, '-infinity', '-infinity')").await?;
    stage.catch_up(&mut daemon).await?;
    let held =
        stage.server.query("SELECT id, isNull(a), b > '2100-01-01 00:00:00' FROM mirror.kept_current ORDER BY id")?;
    ensure!(held == "1\t1\t1\n2\t1\t0", "{held}");
    let metrics = daemon.metrics()?;
    let coerced = metrics.iter().filter(|(name, _)| name.starts_with("tailwater_value_coerced_total"));
    let coerced: f64 = coerced.filter(|(name, _)| name.contains("mirror.kept")).map(|(_, value)| value).sum();
    ensure!(coerced == 4.0, "{coerced} values were counted");

    stage.source.execute(DATABASE, "INSERT INTO strict VALUES (2, 'infinity')").await?;
    let sql = "SELECT ifNull(reason, '') FROM tailwater.table_state FINAL WHERE target = 'mirror.strict' AND state = 'quarantined'";
    let reason = eventually(SOON, "the table is quarantined", async || {
        let reason = stage.server.query(sql)?;
        Ok(if reason.is_empty() { Look::NotYet("not yet".to_owned()) } else { Look::Yes(reason) })
    })
    .await?;
    ensure!(reason.contains("\"a\"") && reason.contains("on_overflow"), "{reason}");
    stage.source.execute(DATABASE, "INSERT INTO kept VALUES (3, now(), now())").await?;
    eventually(SOON, "the others go on", async || {
        let rows = stage.server.number("SELECT count() FROM mirror.kept_current")?;
        Ok(if rows == 3 { Look::Yes(()) } else { Look::NotYet(format!("{rows} rows")) })
    })
    .await?;
    daemon.terminate()
}

/// Kills of the daemon and of the server at random moments under every workload. Meanwhile no key goes back, and what is not
/// ahead of the checkpoint is what the source held there.
#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_and_double_nothing() -> Result<()> {
    let kills: u32 = std::env::var("TAILWATER_CLICKHOUSE_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let mut stage = Stage::bare("ch-crash").await?;
    let oracle = Arc::new(Oracle::start(&stage.source, DATABASE, TABLES).await?);
    stage.source.execute(DATABASE, SEED_SQL).await?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    let checker = ClickHouseChecker::start(&stage.source, &stage.server, DATABASE, &oracle);
    let load = Load::start(&stage.source, DATABASE, Workload::ALL, &mut random);
    for kill in 0..kills {
        tokio::time::sleep(Duration::from_millis(random.below(900) + 100)).await;
        if random.below(3) == 0 {
            stage.server.kill9_and_resume()?;
        } else {
            daemon.kill9();
            daemon = stage.home.run()?;
        }
        checker.verdict().with_context(|| format!("after {} kills", kill + 1))?;
        if kill % 7 == 6 {
            stage.catch_up(&mut daemon).await?;
            stage.optimize()?;
        }
    }
    load.stop().await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("all kills").await?;
    let tally = checker.stop().await?;
    eprintln!("{kills} kills: {tally:?}");
    ensure!(tally.compared > kills.into() && tally.looks > u64::from(3 * kills), "too few looks: {tally:?}");
    daemon.terminate()
}

/// A lie told by the server, what the checker says of it, and how the server tells the truth again. Lies about the position
/// come last: what they did to the checker's past is not undone.
const LIES: &[(&str, &str, &str)] = &[
    (
        "ALTER TABLE mirror.churn UPDATE number = 1 WHERE id = 7",
        "public.churn: at",
        "ALTER TABLE mirror.churn UPDATE number = 0 WHERE id = 7",
    ),
    (
        "ALTER TABLE mirror.accounts_a UPDATE _deleted = 1 WHERE id = 3",
        "public.accounts_a: at",
        "ALTER TABLE mirror.accounts_a UPDATE _deleted = 0 WHERE id = 3",
    ),
    (
        "INSERT INTO mirror.ledger (txn, line, _version) VALUES (77, 1, 0)",
        "public.ledger: at",
        "ALTER TABLE mirror.ledger DELETE WHERE txn = 77",
    ),
    (
        "ALTER TABLE tailwater.checkpoint UPDATE end_lsn = end_lsn - 1 WHERE 1",
        "",
        "ALTER TABLE tailwater.checkpoint UPDATE end_lsn = end_lsn + 1 WHERE 1",
    ),
    (
        "ALTER TABLE mirror.accounts_b DELETE WHERE id = 1",
        "public.accounts_b: a key went back from version",
        "SELECT 1",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn checker_of_clickhouse_finds_every_lie_and_no_other() -> Result<()> {
    let stage = Stage::bare("clickhouse-lies").await?;
    let oracle = Arc::new(Oracle::start(&stage.source, DATABASE, TABLES).await?);
    stage.source.execute(DATABASE, SEED_SQL).await?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    for (lie, finding, truth) in LIES {
        let checker = ClickHouseChecker::start(&stage.source, &stage.server, DATABASE, &oracle);
        eventually(SOON, "honest looks of every kind", async || {
            let tally = checker.tally();
            let enough = tally.compared > 2 * TABLES.len() as u64 && tally.confirmations > 2;
            Ok(if enough { Look::Yes(()) } else { Look::NotYet(format!("{tally:?}, {:?}", checker.verdict())) })
        })
        .await?;
        checker.verdict()?;
        let at_once = |sql: &str| match sql.starts_with("ALTER") {
            true => format!("{sql} SETTINGS mutations_sync = 2"),
            false => sql.to_owned(),
        };
        stage.server.query(&at_once(lie))?;
        let found = eventually(SOON, lie, async || {
            Ok(checker.verdict().err().map_or(Look::NotYet("nothing found".to_owned()), Look::Yes))
        })
        .await?;
        ensure!(found.to_string().contains(finding), "{lie}: {found}");
        stage.server.query(&at_once(truth))?;
    }
    Ok(())
}
