//! Tables that are dropped, renamed or taken out of the log while no daemon runs, with changes before that which no sink has
//! yet, and tables that are not mapped for a while: each sink of each kind is told of, and the others go on.

use anyhow::{Context, Result, ensure};

use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::Kafka;
use crate::support::kcat::{Record, partition_count, read_committed};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const TABLES: [&str; 5] = ["stays", "dropped", "renamed", "unlogged", "made_anew"];
const STATE_TOPIC: &str = "tailwater.state-events-src";

/// With none of the sinks' daemons there.
const AWAY: [&str; 8] = [
    "INSERT INTO stays VALUES (2, 2); INSERT INTO dropped VALUES (2, 2); INSERT INTO renamed VALUES (2, 2);
     INSERT INTO unlogged VALUES (2, 2)",
    "DROP TABLE dropped",
    "INSERT INTO made_anew VALUES (2, 2); DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY, n int);
     ALTER PUBLICATION tailwater_src ADD TABLE made_anew",
    "INSERT INTO made_anew VALUES (3, 3)",
    "ALTER TABLE renamed RENAME TO other_name",
    "ALTER PUBLICATION tailwater_src DROP TABLE unlogged",
    "ALTER TABLE unlogged SET UNLOGGED",
    "INSERT INTO stays VALUES (3, 3); INSERT INTO other_name VALUES (3, 3)",
];

const MADE_ANEW: &str = "\"public.made_anew\" is another table of that name now";

const TOPICS: &str = "source = \"src\"\nsink = \"events\"\n[topic]\ntables = [\"public.*\"]\npartitions = 1\n";
/// A pattern means the table that has another name now, and it is copied.
const NEW_TOPIC: &str = "src.public.other_name";

fn rows(tables: &[&str]) -> String {
    let table = |table: &&str| format!("[table.\"mirror.{table}\"]\nfrom = \"public.{table}\"\ncolumns = \"*\"\n\n");
    let tables: String = tables.iter().map(table).collect();
    format!("source = \"src\"\nsink = [\"pg\", \"ch\"]\n\n{tables}")
}

struct Stage {
    source: Cluster,
    postgres: Cluster,
    clickhouse: ClickHouse,
    kafka: Kafka,
    home: Home,
    config: String,
}

impl Stage {
    async fn start(name: &str, tables: &[&str]) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        for table in tables {
            let sql = format!("CREATE TABLE {table} (id int PRIMARY KEY, n int); INSERT INTO {table} VALUES (1, 1)");
            source.execute(DATABASE, &sql).await?;
        }
        let postgres = Cluster::new(&format!("{name}-pg"))?;
        postgres.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let clickhouse = ClickHouse::start(&format!("{name}-ch"))?;
        let kafka = Kafka::start(&format!("{name}-kafka"))?;
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.pg]\nkind = \"postgres\"\nurl = \"{}\"\nidle_record = \"200ms\"\n\n\
             [sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\nidle_record = \"200ms\"\n\n\
             [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\n",
            source.url(DATABASE),
            postgres.url(DATABASE),
            clickhouse.url(""),
            kafka.bootstrap()
        );
        let home = Home::new(name, &config, &[("rows.toml", &rows(tables)), ("topics.toml", TOPICS)])?;
        home.setup()?;
        Ok(Stage { source, postgres, clickhouse, kafka, home, config })
    }

    /// Rows of these tables are mapped from now on, and topics of all there are.
    fn map(&self, tables: &[&str]) -> Result<()> {
        self.home.configure(&self.config, &[("rows.toml", &rows(tables)), ("topics.toml", TOPICS)])
    }

    /// `setup` says of each table that is gone where it is mapped and what to do, and changes nothing; of one that only a pattern
    /// means it warns, and makes what a start needs.
    async fn assert_set_up(&self) -> Result<()> {
        let publication = "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_publication_tables WHERE pubname = 'tailwater_src'";
        let source = self.source.connect(DATABASE).await?;
        let published: String = source.query_one(publication, &[]).await?.get(0);
        let stopped = self.home.command(&["setup", "--create-targets"])?;
        ensure!(stopped.status.code() == Some(3), "{}: {}", stopped.status, stopped.stderr);
        for (table, why) in
            [("dropped", "the table was dropped"), ("renamed", "the table is called \"public.other_name\"")]
        {
            let told = format!(": \"public.{table}\": {why}");
            ensure!(
                stopped.stderr.matches(&told).count() == 2,
                "not said of the rows and of the topic: {}",
                stopped.stderr
            );
            let line =
                rows(&TABLES).lines().position(|line| line.contains(&format!("\"public.{table}\""))).context(table)?;
            let place = format!("mappings/rows.toml:{}:8", line + 1);
            ensure!(stopped.stderr.matches(&place).count() == 1, "not at {place}: {}", stopped.stderr);
        }
        for words in [
            "no such table in the source any more",
            "remove its mapping",
            "of sink \"ch\"",
            "`exclude_tables`",
            "topics.toml:4:11",
        ] {
            ensure!(stopped.stderr.contains(words), "\"{words}\" is not said: {}", stopped.stderr);
        }
        ensure!(partition_count(&self.kafka, NEW_TOPIC)?.is_none(), "it made a topic");
        let now: String = source.query_one(publication, &[]).await?.get(0);
        ensure!(now == published, "it changed the publication: {now}");

        self.map(&["stays"])?;
        let outcome = self.home.command(&["setup", "--create-targets"])?;
        ensure!(outcome.status.success(), "{}: {}", outcome.status, outcome.stderr);
        for table in ["dropped", "renamed", "unlogged"] {
            let told = format!("warning: \"public.{table}\": ");
            ensure!(outcome.stderr.matches(&told).count() == 1, "nothing is said of {table}: {}", outcome.stderr);
        }
        ensure!(partition_count(&self.kafka, NEW_TOPIC)? == Some(1), "a table that is new there has no topic");
        self.map(&TABLES)
    }

    /// How many rows of a table each sink has been given.
    async fn held(&self, table: &str) -> Result<[i64; 3]> {
        let sql = format!("SELECT count(*) FROM mirror.{table}");
        let of_postgres = self.postgres.connect(DATABASE).await?.query_one(&sql, &[]).await?.get(0);
        let of_clickhouse = self.clickhouse.query(&format!("{sql} FINAL"))?.trim().parse()?;
        let of_kafka = read_committed(&self.kafka, &format!("src.public.{table}"))?.len();
        Ok([of_postgres, of_clickhouse, i64::try_from(of_kafka)?])
    }

    async fn wait_held(&self, table: &str, rows: i64, daemon: &mut Daemon) -> Result<()> {
        let what = format!("every sink holds {rows} rows of {table}");
        let held = eventually(SOON, &what, async || {
            if let Some(status) = daemon.ended()? {
                return Ok(Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}: {}", daemon.log()))));
            }
            let held = self.held(table).await?;
            Ok(if held == [rows; 3] { Look::Yes(Ok(())) } else { Look::NotYet(format!("{held:?}")) })
        });
        held.await?
    }

    /// Why each sink has a table in quarantine; nothing where it has not.
    async fn reasons(&self, table: &str) -> Result<[String; 3]> {
        let sql = format!(
            "SELECT coalesce(max(reason), '') FROM tailwater.table_state WHERE target = 'mirror.{table}' AND state = 'quarantined'"
        );
        let of_postgres = self.postgres.connect(DATABASE).await?.query_one(&sql, &[]).await?.get(0);
        let of_clickhouse =
            self.clickhouse.query(&sql.replace("tailwater.table_state", "tailwater.table_state FINAL"))?;
        let states = read_committed(&self.kafka, STATE_TOPIC)?;
        let is_its = |record: &&Record| record.text().0.is_some_and(|key| key.ends_with(&format!(".{table}\"}}")));
        let last = states.iter().rev().find(is_its).and_then(|record| record.value.clone()).context("a state")?;
        let last: serde_json::Value = serde_json::from_slice(&last)?;
        let reason = last["reason"].as_str().filter(|_| last["state"] == "quarantined").unwrap_or_default();
        Ok([of_postgres, of_clickhouse, reason.to_owned()])
    }

    /// Every sink says why it has the table no more, with where it was seen, up to where its changes are told, and what to do.
    async fn assert_told(&self, table: &str, words: &str, log: &str) -> Result<()> {
        for (sink, reason) in ["pg", "ch", "events"].into_iter().zip(self.reasons(table).await?) {
            for words in [&format!("\"public.{table}\""), words, "seen at ", " up to ", "copied anew"] {
                ensure!(reason.contains(words), "{table} of {sink}: the reason does not say \"{words}\": \"{reason}\"");
            }
            ensure!(log.contains(&reason.replace('"', "\\\"")) || log.contains(&reason), "not in the log: {reason}");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn h33_table_that_went_while_no_daemon_ran_is_told_by_every_sink() -> Result<()> {
    let stage = Stage::start("gone", &TABLES).await?;
    let mut daemon = stage.home.run()?;
    for table in TABLES {
        stage.wait_held(table, 1, &mut daemon).await?;
    }
    daemon.kill9();
    for sql in AWAY {
        stage.source.execute(DATABASE, sql).await?;
    }
    stage.assert_set_up().await?;

    let looked = stage.home.command(&["check"])?;
    let looked = looked.stdout + &looked.stderr;
    for table in ["dropped", "renamed", "unlogged"] {
        ensure!(looked.contains(&format!("\"public.{table}\": ")), "check says nothing of {table}: {looked}");
    }
    let mut daemon = stage.home.run()?;
    // The others go on, with what came before and behind.
    stage.wait_held("stays", 3, &mut daemon).await?;
    let log = daemon.log();
    stage.assert_told("dropped", "dropped", &log).await?;
    stage.assert_told("renamed", "\"public.other_name\"", &log).await?;
    stage.assert_told("unlogged", "the table", &log).await?;
    // Another table of the name is followed into its topic, with a warning.
    let [of_postgres, of_clickhouse, of_kafka] = stage.reasons("made_anew").await?;
    ensure!(of_postgres.contains("OID") && of_clickhouse.contains("OID"), "{of_postgres}, {of_clickhouse}");
    ensure!(of_kafka.is_empty() && log.matches(MADE_ANEW).count() == 1, "{of_kafka}");
    ensure!(looked.contains(MADE_ANEW), "check says nothing of it: {looked}");
    ensure!(stage.held("made_anew").await? == [1, 1, 3], "{:?}", stage.held("made_anew").await?);
    let status = daemon.status()?.to_string();
    for table in ["dropped", "renamed", "unlogged"] {
        ensure!(stage.held(table).await? == [1; 3], "{table}: {:?}", stage.held(table).await?);
        ensure!(status.contains(&format!("\\\"public.{table}\\\": ")), "the status page says nothing of {table}");
    }
    daemon.terminate()?;
    // It is no reason not to start again.
    stage.source.execute(DATABASE, "INSERT INTO stays VALUES (4, 4)").await?;
    let mut daemon = stage.home.run()?;
    stage.wait_held("stays", 4, &mut daemon).await?;
    ensure!(daemon.log().matches(MADE_ANEW).count() == 1, "what was said once is said again");
    daemon.terminate()
}

/// What changes meanwhile comes nowhere, so a table that is mapped again must not go on as if nothing had been.
#[tokio::test(flavor = "multi_thread")]
async fn h33_table_that_was_not_mapped_for_a_while_is_left_out_until_it_is_copied_anew() -> Result<()> {
    const BOTH: [&str; 2] = ["stays", "leaves"];
    const WHY: &str = "no mapping means the table any more";
    let stage = Stage::start("unmapped", &BOTH).await?;
    let mut daemon = stage.home.run()?;
    for table in BOTH {
        stage.wait_held(table, 1, &mut daemon).await?;
    }
    daemon.terminate()?;
    let without = format!("{TOPICS}exclude_tables = \"public.leaves\"\n");
    stage.home.configure(&stage.config, &[("rows.toml", &rows(&["stays"])), ("topics.toml", &without)])?;
    let mut daemon = stage.home.run()?;
    stage.source.execute(DATABASE, "INSERT INTO leaves VALUES (2, 2); INSERT INTO stays VALUES (2, 2)").await?;
    stage.wait_held("stays", 2, &mut daemon).await?;
    let log = daemon.log();
    ensure!(log.matches(WHY).count() == 3, "not said of each sink: {log}");
    daemon.terminate()?;

    stage.map(&BOTH)?;
    let mut daemon = stage.home.run()?;
    stage.source.execute(DATABASE, "INSERT INTO leaves VALUES (3, 3); INSERT INTO stays VALUES (3, 3)").await?;
    stage.wait_held("stays", 3, &mut daemon).await?;
    ensure!(stage.held("leaves").await? == [1; 3], "{:?}", stage.held("leaves").await?);
    for (sink, reason) in ["pg", "ch", "events"].into_iter().zip(stage.reasons("leaves").await?) {
        for words in [WHY, " up to ", "copied anew"] {
            ensure!(reason.contains(words), "{sink}: the reason does not say \"{words}\": \"{reason}\"");
        }
    }
    daemon.terminate()?;

    let anew = "TRUNCATE mirror.leaves; DELETE FROM tailwater.table_state WHERE target = 'mirror.leaves'";
    stage.postgres.execute(DATABASE, anew).await?;
    let daemon = stage.home.run()?;
    eventually(SOON, "the table is copied anew", async || {
        let [of_postgres, ..] = stage.held("leaves").await?;
        Ok(if of_postgres == 3 { Look::Yes(()) } else { Look::NotYet(format!("{of_postgres} rows")) })
    })
    .await?;
    drop(daemon);
    Ok(())
}

/// The server sends the rows of a partition as the root's: a topic of the partition would get its copy and nothing more. What it
/// logs of an old row is the partition's affair all the same.
#[tokio::test(flavor = "multi_thread")]
async fn pattern_means_the_root_of_a_partitioned_table_and_not_its_partitions() -> Result<()> {
    let stage = Stage::start("parted", &["stays"]).await?;
    let parted = "CREATE TABLE parted (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                  CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
                  ALTER TABLE parted REPLICA IDENTITY FULL;
                  INSERT INTO parted VALUES (1, 1)";
    stage.source.execute(DATABASE, parted).await?;
    let refused = stage.home.command(&["setup", "--create-targets"])?;
    let told = "partition \"public.parted_low\" has another replica identity than \"public.parted\"";
    ensure!(!refused.status.success() && refused.stderr.contains(told), "{}", refused.stderr);
    stage.source.execute(DATABASE, "ALTER TABLE parted_low REPLICA IDENTITY FULL").await?;
    stage.home.setup()?;
    ensure!(partition_count(&stage.kafka, "src.public.parted_low")?.is_none(), "a partition has a topic");
    let daemon = stage.home.run()?;
    stage.source.execute(DATABASE, "INSERT INTO parted VALUES (2, 2)").await?;
    eventually(SOON, "the root's topic has the copy and the change", async || {
        let told = read_committed(&stage.kafka, "src.public.parted")?.len();
        Ok(if told == 2 { Look::Yes(()) } else { Look::NotYet(format!("{told} messages")) })
    })
    .await?;
    // A partition that is made later has an identity of its own again.
    let later = "CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (20);
                 INSERT INTO parted VALUES (11, 1); UPDATE parted SET n = 2 WHERE id = 11";
    stage.source.execute(DATABASE, later).await?;
    eventually(SOON, "the table is left out, and why", async || {
        let log = daemon.log();
        let is_told = log.contains("a partition has another one");
        Ok(if is_told { Look::Yes(()) } else { Look::NotYet("nothing of the kind".to_owned()) })
    })
    .await?;
    drop(daemon);
    Ok(())
}
