//! The source's tables change while Kafka is told of them: each message has the columns, types and key of its time, as an
//! independent decoder of the same log has them, whoever is killed and however long the daemon was away.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::Kafka;
use crate::support::kcat::{Record, read_committed};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const TABLES: &str = "
    CREATE SEQUENCE at; CREATE TYPE mood AS ENUM ('good', 'bad');
    CREATE TABLE t (id serial PRIMARY KEY, at bigint NOT NULL DEFAULT nextval('at'), n int, old text);
    CREATE TABLE keyless (id int PRIMARY KEY, at bigint DEFAULT nextval('at'));
    CREATE TABLE renamed (id int PRIMARY KEY, at bigint DEFAULT nextval('at'));
    CREATE TABLE made_anew (id int PRIMARY KEY, at bigint DEFAULT nextval('at'));
    INSERT INTO t (n) SELECT i FROM generate_series(1, 50) i;
    INSERT INTO keyless VALUES (1); INSERT INTO renamed VALUES (1); INSERT INTO made_anew VALUES (1)";
const TRUTH: &str = "SELECT pg_create_logical_replication_slot('truth', 'test_decoding')";

const MAPPINGS: [(&str, &str); 2] = [
    (
        "plain.toml",
        "source = \"src\"\nsink = \"events\"\n[topic]\ntables = [\"public.*\"]\npartitions = 2\n\
         exclude = [\"public.*.password*\"]\ndecimal_handling_mode = \"string\"\n",
    ),
    (
        "schemas.toml",
        "source = \"src\"\nsink = \"events\"\n[topic]\ntables = [\"public.t\"]\nname = \"schemas.{table}\"\npartitions = 1\n\
         exclude = [\"public.*.password*\"]\nschemas = true\ndecimal_handling_mode = \"string\"\n",
    ),
];

struct Stage {
    source: Cluster,
    kafka: Kafka,
    home: Home,
}

/// A change of the table as the independent decoder has it: each column with its type.
type Told = BTreeMap<String, String>;

impl Stage {
    async fn start(name: &str) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        for sql in [TABLES, TRUTH] {
            source.execute(DATABASE, sql).await?;
        }
        let kafka = Kafka::start(&format!("{name}-kafka"))?;
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\n\
             options = {{ \"transaction.timeout.ms\" = \"10000\" }}\n",
            source.url(DATABASE),
            kafka.bootstrap()
        );
        let home = Home::new(name, &config, &MAPPINGS)?;
        home.setup()?;
        Ok(Stage { source, kafka, home })
    }

    async fn commit(&self, transactions: &[&str]) -> Result<()> {
        for transaction in transactions {
            self.source.execute(DATABASE, transaction).await?;
        }
        Ok(())
    }

    fn records(&self, topic: &str) -> Result<Vec<Record>> {
        read_committed(&self.kafka, topic)
    }

    /// Waits until a topic tells of what was written last.
    async fn told_all(&self, daemon: &mut Daemon, topic: &str, table: &str) -> Result<()> {
        let source = self.source.connect(DATABASE).await?;
        let last: i64 = source.query_one(&format!("SELECT max(at) FROM {table}"), &[]).await?.get(0);
        let what = format!("topic {topic} tells of change {last}");
        let told = eventually(SOON, &what, async || {
            if let Some(status) = daemon.ended()? {
                return Ok(Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}: {}", daemon.log()))));
            }
            let found = self.records(topic)?.iter().filter_map(|record| at(&after(record))).max();
            Ok(if found >= Some(last) { Look::Yes(Ok(())) } else { Look::NotYet(format!("{found:?}")) })
        });
        told.await?
    }

    /// What the log holds of inserts and updates of a table, by their `at`.
    async fn truth(&self, table: &str) -> Result<BTreeMap<i64, Told>> {
        let sql = "SELECT data FROM pg_logical_slot_peek_changes('truth', NULL, NULL, 'skip-empty-xacts', '1') \
                   WHERE data LIKE $1";
        let source = self.source.connect(DATABASE).await?;
        let mut truth = BTreeMap::new();
        for row in source.query(sql, &[&format!("table public.{table}: %SERT: %")]).await? {
            told(row.get(0), &mut truth)?;
        }
        for row in source.query(sql, &[&format!("table public.{table}: UPDATE: %")]).await? {
            told(row.get(0), &mut truth)?;
        }
        Ok(truth)
    }

    /// Every change once, with exactly the columns that it has in the log, each in its type's form, and in order by key.
    async fn assert_as_in_the_log(&self, topic: &str) -> Result<()> {
        let truth = self.truth("t").await?;
        let mut seen = BTreeSet::new();
        let mut by_key: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
        for record in self.records(topic)? {
            let row = after(&record);
            let Some(place) = at(&row) else { continue };
            let key = record.key.clone().context("a key")?;
            let before = by_key.insert(key, place).unwrap_or_default();
            ensure!(before <= place, "{topic}: changes {before} and {place} of a key came out of order");
            let event: Value = serde_json::from_slice(&record.value.clone().unwrap_or_default())?;
            if [&event["op"], &event["payload"]["op"]].contains(&&json!("r")) {
                continue;
            }
            ensure!(seen.insert(place), "{topic}: change {place} was told twice");
            let told = truth.get(&place).with_context(|| format!("{topic}: change {place} is not in the log"))?;
            let columns: BTreeSet<&String> = row.as_object().context("a row")?.keys().collect();
            let expected: BTreeSet<&String> = told.keys().filter(|name| !name.starts_with("password")).collect();
            ensure!(columns == expected, "{topic}: change {place} has {columns:?}, and in the log {expected:?}");
            for (name, type_name) in told.iter().filter(|(name, _)| !name.starts_with("password")) {
                let value = &row[name];
                let is_number =
                    matches!(&**type_name, "integer" | "bigint" | "date") || type_name.starts_with("timestamp");
                let fits = value.is_null() || if is_number { value.is_number() } else { value.is_string() };
                ensure!(fits, "{topic}: change {place}: {name} of type {type_name} came as another type");
            }
            if event.get("schema").is_some() {
                in_schema(&event, &row).with_context(|| format!("{topic}: change {place}"))?;
            }
        }
        let missing = truth.keys().find(|place| !seen.contains(place));
        ensure!(missing.is_none(), "{topic}: change {missing:?} was not told");
        Ok(())
    }

    /// The table is out, for this reason.
    async fn quarantined(&self, daemon: &Daemon, table: &str, words: &[&str]) -> Result<()> {
        let what = format!("{table} is quarantined");
        let reason = eventually(SOON, &what, async || {
            let states = self.records("tailwater.state-events-src")?;
            let is_its = |record: &&Record| record.text().0.is_some_and(|key| key.ends_with(&format!(".{table}\"}}")));
            let last: Value =
                states.iter().rev().find(is_its).map_or(Ok(Value::Null), |record| {
                    serde_json::from_slice(&record.value.clone().unwrap_or_default())
                })?;
            let reason = last["reason"].as_str().unwrap_or_default().to_owned();
            Ok(if last["state"] == "quarantined" { Look::Yes(reason) } else { Look::NotYet(last.to_string()) })
        });
        let reason = reason.await.with_context(|| daemon.log())?;
        for word in words.iter().chain(&["state topic", "0/"]) {
            ensure!(reason.contains(word), "{table}: the reason does not say \"{word}\": {reason}");
        }
        Ok(())
    }
}

/// One change of the decoder's text: `table public.t: INSERT: id[integer]:1 old[text]:null`.
fn told(line: &str, truth: &mut BTreeMap<i64, Told>) -> Result<()> {
    let row = line.split("RT: ").nth(1).or_else(|| line.split("UPDATE: ").nth(1)).context("a row")?;
    let row = row.rsplit("new-tuple: ").next().unwrap_or(row);
    let (mut columns, mut place) = (Told::new(), None);
    for column in row.split(' ') {
        let Some((name, rest)) = column.split_once('[') else { continue };
        let (type_name, value) = rest.split_once(']').unwrap_or((rest, ""));
        if name == "at" {
            place = Some(value.trim_start_matches(':').parse()?);
        }
        columns.insert(name.to_owned(), type_name.to_owned());
    }
    truth.insert(place.context("its place")?, columns);
    Ok(())
}

/// The row after the change, of either format.
fn after(record: &Record) -> Value {
    let event: Value = record.value.as_ref().and_then(|value| serde_json::from_slice(value).ok()).unwrap_or_default();
    let event = event.get("payload").unwrap_or(&event);
    event["after"].clone()
}

fn at(row: &Value) -> Option<i64> {
    row["at"].as_i64()
}

/// The message's own schema tells of exactly these columns, and of NULL where there is one.
fn in_schema(event: &Value, row: &Value) -> Result<()> {
    let fields = event["schema"]["fields"].as_array().context("fields")?;
    let after = fields.iter().find(|field| field["field"] == "after").context("the schema of \"after\"")?;
    let columns = after["fields"].as_array().context("columns")?;
    let names: Vec<&str> = columns.iter().filter_map(|column| column["field"].as_str()).collect();
    let found: BTreeSet<&str> = row.as_object().context("a row")?.keys().map(String::as_str).collect();
    ensure!(names.iter().copied().collect::<BTreeSet<_>>() == found, "schema {names:?}, row {found:?}");
    for column in columns {
        let name = column["field"].as_str().unwrap_or_default();
        ensure!(
            !row[name].is_null() || column["optional"] == true,
            "{name} is NULL, and its schema has no place for it"
        );
    }
    Ok(())
}

/// Inserts and updates without pause, each with an `at` of its own, whatever columns there are.
struct Load {
    stop: watch::Sender<bool>,
    running: JoinHandle<Result<u32>>,
}

impl Load {
    async fn start(source: &Cluster) -> Result<Load> {
        let writer = source.connect(DATABASE).await?;
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(async move {
            let mut count = 0;
            while !*stopped.borrow() {
                count += 1;
                let sql = format!(
                    "BEGIN; INSERT INTO t DEFAULT VALUES; UPDATE t SET at = nextval('at') WHERE id = {}; COMMIT",
                    count % 50 + 1
                );
                writer.batch_execute(&sql).await?;
                // No wait for anything: the whole topic is read again and again.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(count)
        });
        Ok(Load { stop, running })
    }

    async fn stop(self) -> Result<()> {
        self.stop.send(true)?;
        let count = self.running.await??;
        ensure!(count > 20, "only {count} transactions were written");
        Ok(())
    }
}

/// Each under load, by itself.
const UNDER_LOAD: &[&str] = &[
    "ALTER TABLE t ADD COLUMN a int DEFAULT 7",
    "ALTER TABLE t ADD COLUMN b text, ADD COLUMN password_hash text DEFAULT 's3cret'",
    "ALTER TABLE t ADD COLUMN m mood NOT NULL DEFAULT 'good', ADD COLUMN money numeric(8,2) NOT NULL DEFAULT 1.5",
    "ALTER TABLE t DROP COLUMN old",
    "ALTER TABLE t RENAME COLUMN a TO renamed",
    "ALTER TABLE t ALTER renamed TYPE text USING 'as text'",
    "ALTER TYPE mood ADD VALUE 'better'",
    "ALTER TABLE t ALTER m SET DEFAULT 'better'",
    // Layouts change inside a transaction, between its rows.
    "BEGIN; INSERT INTO t DEFAULT VALUES; ALTER TABLE t ADD COLUMN brief int DEFAULT 1; INSERT INTO t DEFAULT VALUES;
     ALTER TABLE t DROP COLUMN brief; INSERT INTO t DEFAULT VALUES; COMMIT",
];

/// While the daemon is away. The enum loses a label as one does that: by another type of its name.
const AWAY: &[&str] = &[
    "INSERT INTO t DEFAULT VALUES",
    "ALTER TABLE t ADD COLUMN day date DEFAULT '2024-02-29', ADD COLUMN again int DEFAULT 1",
    "INSERT INTO t DEFAULT VALUES; UPDATE t SET at = nextval('at') WHERE id = 3",
    "ALTER TABLE t ALTER day TYPE timestamp(3), DROP COLUMN again, ADD COLUMN password text DEFAULT 's3cret'",
    "INSERT INTO t DEFAULT VALUES; UPDATE t SET at = nextval('at') WHERE id = 4",
    "ALTER TABLE t ADD COLUMN again text DEFAULT 'text'; INSERT INTO t DEFAULT VALUES",
    "ALTER TABLE t ALTER m DROP DEFAULT, ALTER m DROP NOT NULL; UPDATE t SET m = 'good', at = nextval('at') WHERE id = 4;
     ALTER TYPE mood RENAME TO mood_before; CREATE TYPE mood AS ENUM ('good', 'better');
     ALTER TABLE t ALTER m TYPE mood USING m::text::mood; DROP TYPE mood_before",
    "UPDATE t SET m = NULL, at = nextval('at') WHERE id = 5; INSERT INTO t (m) VALUES ('better')",
    "ALTER TABLE t DROP COLUMN day",
];

#[tokio::test(flavor = "multi_thread")]
async fn h32_messages_have_the_columns_of_their_time() -> Result<()> {
    let stage = Stage::start("kafka-drift").await?;
    let mut daemon = stage.home.run()?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    let load = Load::start(&stage.source).await?;
    for (number, sql) in UNDER_LOAD.iter().enumerate() {
        stage.commit(&[sql]).await?;
        if number % 4 == 2 {
            daemon.kill9();
            daemon = stage.home.run()?;
        }
        stage.told_all(&mut daemon, "src.public.t", "t").await?;
    }
    load.stop().await?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;

    // Between a change of the table and its first row.
    stage.commit(&["ALTER TABLE t ADD COLUMN k bigint NOT NULL DEFAULT 5, DROP COLUMN b"]).await?;
    daemon.kill9();
    daemon = stage.home.run()?;
    stage.commit(&["INSERT INTO t DEFAULT VALUES"]).await?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    // NULL where there was none to come.
    stage.commit(&["ALTER TABLE t ALTER k DROP NOT NULL", "INSERT INTO t (k) VALUES (NULL)"]).await?;
    stage.told_all(&mut daemon, "schemas.t", "t").await?;
    daemon.kill9();
    stage.commit(AWAY).await?;
    let mut daemon = stage.home.run()?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    stage.told_all(&mut daemon, "schemas.t", "t").await?;
    for topic in ["src.public.t", "schemas.t"] {
        stage.assert_as_in_the_log(topic).await?;
    }
    ensure!(
        !stage
            .records("src.public.t")?
            .iter()
            .any(|record| { record.text().1.is_some_and(|value| value.contains("s3cret")) }),
        "an excluded column left the source"
    );

    // Another primary key is the messages' key from then on.
    let keyed = "ALTER TABLE t ADD COLUMN code bigint NOT NULL DEFAULT nextval('at'), DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (code)";
    stage.commit(&["UPDATE t SET at = nextval('at') WHERE id = 7", keyed]).await?;
    stage
        .commit(&["INSERT INTO t (id, code) VALUES (-1, -2)", "UPDATE t SET at = nextval('at') WHERE code = -2"])
        .await?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    stage.commit(&["DELETE FROM t WHERE code = -2", "INSERT INTO t DEFAULT VALUES"]).await?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    let keys =
        stage.records("src.public.t")?.into_iter().filter(|record| record.text().0.as_deref() == Some("{\"code\":-2}"));
    ensure!(keys.count() == 4, "an insert, an update, a delete and its tombstone have the new key");
    stage.assert_as_in_the_log("src.public.t").await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_followed_quarantines_its_table_and_comes_back() -> Result<()> {
    let stage = Stage::start("kafka-breaking").await?;
    let mut daemon = stage.home.run()?;
    for table in ["t", "keyless", "renamed", "made_anew"] {
        stage.told_all(&mut daemon, &format!("src.public.{table}"), table).await?;
    }
    stage.commit(&["ALTER TABLE keyless DROP CONSTRAINT keyless_pkey", "INSERT INTO keyless VALUES (2)"]).await?;
    stage.quarantined(&daemon, "keyless", &["no replica identity", "a primary key"]).await?;
    stage.commit(&["ALTER TABLE renamed RENAME TO moved; INSERT INTO moved VALUES (2)"]).await?;
    stage.quarantined(&daemon, "renamed", &["\"public.moved\""]).await?;
    stage.commit(&["ALTER PUBLICATION tailwater_src DROP TABLE made_anew"]).await?;
    stage.quarantined(&daemon, "made_anew", &["left the publication"]).await?;
    // A table that nobody has a topic for, and the others go on.
    stage
        .commit(&[
            "CREATE TABLE newcomer (id int PRIMARY KEY); ALTER TABLE t ADD COLUMN a int DEFAULT 7",
            "INSERT INTO t DEFAULT VALUES",
        ])
        .await?;
    stage.told_all(&mut daemon, "src.public.t", "t").await?;
    stage.assert_as_in_the_log("src.public.t").await?;
    ensure!(daemon.ended()?.is_none(), "the daemon ended");

    // As the reason and the manual say, it comes back.
    daemon.terminate()?;
    stage
        .commit(&["ALTER TABLE keyless ADD PRIMARY KEY (id); DROP TABLE newcomer; ALTER TABLE moved RENAME TO renamed"])
        .await?;
    stage.home.setup()?;
    let key = "{\"kind\":\"table\",\"source\":\"src\",\"target\":\"\\\"src.public\\\".keyless\"}";
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-Z", "-K", "|", "-t", "tailwater.state-events-src", "-b", &stage.kafka.bootstrap()])
        .stdin(Stdio::piped());
    let mut kcat = kcat.spawn()?;
    writeln!(kcat.stdin.take().context("stdin")?, "{key}|")?;
    ensure!(kcat.wait()?.success(), "kcat");
    let mut daemon = stage.home.run()?;
    stage.told_all(&mut daemon, "src.public.keyless", "keyless").await?;
    stage.commit(&["INSERT INTO keyless VALUES (3)"]).await?;
    stage.told_all(&mut daemon, "src.public.keyless", "keyless").await?;
    daemon.terminate()
}
