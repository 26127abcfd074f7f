//! What is told beside rows: TRUNCATE, transactions with the place of each of their events, heartbeats. The truth is
//! `test_decoding`'s.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kafka_boundaries::bury;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::{Kafka, Options as BrokerOptions};
use crate::support::kafka_proxy::{Fate, KafkaProxy, PRODUCE, Step};
use crate::support::kcat::{self, Isolation, Record};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const SCHEMA: &str = "
    CREATE TABLE one (id int PRIMARY KEY, n int NOT NULL);
    CREATE TABLE two (id int PRIMARY KEY, n int NOT NULL);
    ALTER TABLE two REPLICA IDENTITY FULL;
    CREATE TABLE three (id int PRIMARY KEY REFERENCES one);
    CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (10);
    CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (10) TO (100);
    CREATE TABLE quiet (id int PRIMARY KEY, n int NOT NULL);
    CREATE TABLE unmapped (id int PRIMARY KEY);
    INSERT INTO one SELECT id, 0 FROM generate_series(1000, 1004) id";

/// Each of one partition, so that its offsets are the order of all of its events.
const LOUD: [&str; 4] = ["one", "two", "three", "parted"];
const TABLES: [&str; 5] = ["one", "two", "three", "parted", "quiet"];

const MAPPINGS: [(&str, &str); 2] = [
    (
        "loud.toml",
        "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [\"public.one\", \"public.two\", \"public.three\", \
         \"public.parted\"]\npartitions = 1\nskipped_operations = \"none\"\n",
    ),
    (
        "quiet.toml",
        "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = \"public.quiet\"\nskipped_operations = [\"u\", \"t\"]\n",
    ),
];

/// Transactions one by one; those of several statements are one.
const TRANSACTIONS: [&str; 11] = [
    "INSERT INTO one VALUES (1, 1)",
    "INSERT INTO one VALUES (2, 1); INSERT INTO two VALUES (1, 1), (2, 2); UPDATE one SET n = 2 WHERE id = 1",
    // The key changes, seen through either identity; another update sends as much and changes none.
    "UPDATE one SET id = 20 WHERE id = 2; UPDATE two SET id = 20, n = 5 WHERE id = 2; UPDATE two SET n = 6 WHERE id = 1",
    "INSERT INTO unmapped VALUES (1)",
    "INSERT INTO quiet VALUES (1, 1), (2, 2); INSERT INTO three VALUES (1)",
    "UPDATE quiet SET n = n + 1; TRUNCATE quiet",
    "INSERT INTO quiet VALUES (3, 3); UPDATE quiet SET id = 4 WHERE id = 3; UPDATE quiet SET n = 9; DELETE FROM quiet",
    // More than one at a time, twice, and in the midst of a transaction of many batches.
    "TRUNCATE one CASCADE",
    "INSERT INTO parted VALUES (1), (11); TRUNCATE parted; INSERT INTO parted VALUES (2)",
    "DO $$ BEGIN
       FOR i IN 1..100 LOOP
         INSERT INTO one VALUES (i, 0); INSERT INTO two VALUES (100 + i, i); DELETE FROM two WHERE id = 50 + i;
         IF i % 40 = 0 THEN TRUNCATE one, three; TRUNCATE two; INSERT INTO three SELECT 1 WHERE false; END IF;
       END LOOP;
     END $$",
    "TRUNCATE two; TRUNCATE two",
];

/// Larger than all batches of a while.
const LARGE: &str = "DO $$ BEGIN
    FOR i IN 1000..9000 LOOP INSERT INTO one VALUES (i, 0); INSERT INTO two VALUES (i, 0); END LOOP; END $$";
const FIRST_OF_LARGE: Step = Step(PRODUCE, &["src.public.one"]);

/// One event: its table and Debezium's letter.
type Event = (String, String);

/// What the source says of a transaction that has events.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    xid: String,
    events: Vec<Event>,
}

impl Told {
    fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for (table, _) in &self.events {
            *counts.entry(format!("public.{table}")).or_default() += 1;
        }
        counts
    }
}

struct Stage {
    source: Cluster,
    kafka: Kafka,
    home: Home,
}

impl Stage {
    fn committed(&self, topic: &str) -> Result<Vec<Record>> {
        kcat::read_committed(&self.kafka, topic)
    }

    fn events(&self, table: &str) -> Result<Vec<(Record, Value)>> {
        let all = self.committed(&format!("src.public.{table}"))?.into_iter();
        let read = all.filter_map(|record| record.value.clone().map(|value| (record, value)));
        read.map(|(record, value)| Ok((record, serde_json::from_slice(&value)?))).collect()
    }

    async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        daemon.wait_told_caught_up(&self.source.connect(DATABASE).await?, &["streaming"], SOON).await
    }

    /// The source's own account of every transaction that has events.
    async fn truth(&self) -> Result<Vec<Told>> {
        let sql =
            "SELECT xid::text, data FROM pg_logical_slot_peek_changes('truth', NULL, NULL, 'skip-empty-xacts', '1')";
        let mut all: Vec<Told> = Vec::new();
        for row in self.source.connect(DATABASE).await?.query(sql, &[]).await? {
            let (xid, data): (&str, &str) = (row.get(0), row.get(1));
            let Some((names, change)) = data.strip_prefix("table ").and_then(|rest| rest.split_once(": ")) else {
                continue;
            };
            let events = names.split(", ").flat_map(|name| events(name, change)).collect::<Vec<_>>();
            match all.last_mut().filter(|last| last.xid == xid) {
                Some(last) => last.events.extend(events),
                None => all.push(Told { xid: xid.to_owned(), events }),
            }
        }
        all.retain(|told| !told.events.is_empty());
        Ok(all)
    }

    fn heartbeats(&self) -> Result<Vec<Record>> {
        self.committed("__beats.src")
    }
}

/// What one change of `test_decoding`'s comes to, by hand.
fn events(name: &str, change: &str) -> Vec<Event> {
    let table = name.trim_start_matches("public.");
    let root = if table.starts_with("parted_") { "parted" } else { table };
    let key =
        |part: &str| part.split_once("id[integer]:").map(|(_, rest)| rest.split(' ').next().unwrap_or("").to_owned());
    let moves = change.split_once("new-tuple:").is_some_and(|(old, new)| key(old) != key(new));
    let ops = match change.split(':').next().unwrap_or_default() {
        "INSERT" => vec!["c"],
        "UPDATE" if moves => vec!["d", "c"],
        "UPDATE" if table == "quiet" => vec![],
        "UPDATE" => vec!["u"],
        "DELETE" => vec!["d"],
        // A root is emptied together with what is under it, and told alone.
        "TRUNCATE" if table == "quiet" || root != table => vec![],
        "TRUNCATE" => vec!["t"],
        other => panic!("{other}"),
    };
    let is_mapped = TABLES.contains(&root);
    ops.into_iter().filter(|_| is_mapped).map(|op| (root.to_owned(), op.to_owned())).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The boundaries that are told are those of the truth, with its counts.
fn check_boundaries(stage: &Stage, truth: &[Told]) -> Result<()> {
    let mut records = stage.committed("src.transaction")?.into_iter();
    for told in truth {
        let mut next = || -> Result<Value> {
            let record = records.next().context("a boundary is missing")?;
            let (key, value): (Value, Value) = (
                serde_json::from_slice(record.key.as_deref().context("a key")?)?,
                serde_json::from_slice(record.value.as_deref().context("a value")?)?,
            );
            ensure!(key["id"] == value["id"], "{key} is the key of {value}");
            ensure!(text(&value["id"]).split(':').next() == Some(&told.xid), "{value} comes where {} does", told.xid);
            Ok(value)
        };
        let (begin, end) = (next()?, next()?);
        ensure!(begin["status"] == "BEGIN" && begin["event_count"].is_null(), "{begin}");
        ensure!(end["status"] == "END" && end["event_count"] == told.events.len(), "{end} for {told:?}");
        let counts = end["data_collections"].as_array().context("counts")?.iter();
        let counts =
            counts.map(|one| (text(&one["data_collection"]).to_owned(), one["event_count"].as_u64().unwrap_or(0)));
        ensure!(counts.collect::<BTreeMap<_, _>>() == told.counts(), "{end} for {told:?}");
    }
    ensure!(records.next().is_none(), "a boundary of no event");
    Ok(())
}

/// Every event has its place, and there are no others; in topics of one partition they stand in order.
fn check_events(stage: &Stage, truth: &[Told]) -> Result<()> {
    let mut found: BTreeMap<(String, u64), (String, String, u64)> = BTreeMap::new();
    let order: BTreeMap<&str, usize> = truth.iter().enumerate().map(|(at, told)| (told.xid.as_str(), at)).collect();
    // In the order of the stream, not of batches of seven rows; the same throughout a transaction.
    let mut last_commits: BTreeMap<usize, String> = BTreeMap::new();
    for table in TABLES {
        let mut last = (0, 0);
        for (record, event) in stage.events(table)? {
            if event["op"] == "r" {
                ensure!(event["transaction"].is_null(), "{event}");
                continue;
            }
            let block = &event["transaction"];
            let id = format!("{}:{}", event["source"]["txId"], event["source"]["lsn"]);
            ensure!(block["id"] == id.as_str(), "{event}");
            let xid = event["source"]["txId"].to_string();
            let total = block["total_order"].as_u64().context("an order")?;
            let at = (*order.get(xid.as_str()).context("a transaction of no event")?, total);
            if LOUD.contains(&table) {
                ensure!(last < at, "{table}: {event} comes too late");
                last = at;
            }
            let sequence: Vec<String> = serde_json::from_str(text(&event["source"]["sequence"]))?;
            let known = last_commits.entry(at.0).or_insert_with(|| sequence[0].clone());
            ensure!(*known == sequence[0], "{event}: the last commit before its transaction was {known}");
            if event["op"] == "t" {
                ensure!(record.key.is_none() && record.partition == 0, "{record:?}");
                ensure!(event["before"].is_null() && event["after"].is_null(), "{event}");
            }
            let in_table = block["data_collection_order"].as_u64().context("an order")?;
            let twice = found.insert((xid, total), (table.to_owned(), text(&event["op"]).to_owned(), in_table));
            ensure!(twice.is_none(), "{event} and {twice:?} have one place");
        }
    }
    let positions: Vec<u64> = last_commits.values().map(|lsn| lsn.parse()).collect::<Result<_, _>>()?;
    ensure!(positions.is_sorted(), "the last commits go back: {positions:?}");
    let mut expected = BTreeMap::new();
    for told in truth {
        let mut in_tables: BTreeMap<&str, u64> = BTreeMap::new();
        for (total, (table, op)) in (1..).zip(&told.events) {
            let in_table = in_tables.entry(table).or_default();
            *in_table += 1;
            expected.insert((told.xid.clone(), total), (table.clone(), op.clone(), *in_table));
        }
    }
    for (place, event) in &expected {
        ensure!(found.get(place) == Some(event), "at {place:?} is {:?}, not {event:?}", found.get(place));
    }
    ensure!(found.len() == expected.len(), "{} events, not {}", found.len(), expected.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_transactions_and_heartbeats_are_told_as_debezium_tells_them() -> Result<()> {
    let source = Cluster::start("kafka-events-source", Version::V15, Options::default())?;
    source.execute(DATABASE, SCHEMA).await?;
    let proxy = KafkaProxy::start()?;
    let kafka = Kafka::start_with("kafka-events", BrokerOptions::default().proxied(proxy.port()))?;
    proxy.carry_to(kafka.proxied_port());
    let config = format!(
        "[source.src]\nurl = \"{}\"\nheartbeat = \"0s\"\n\n\
         [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\nbatch_rows_max = 7\n\
         provide_transaction_metadata = true\nheartbeat_interval = \"300ms\"\ntopic_heartbeat_prefix = \"__beats\"\n",
        source.url(DATABASE),
        proxy.bootstrap()
    );
    let home = Home::new("kafka-events", &config, &MAPPINGS)?;
    let refused = home.command(&["check"])?;
    ensure!(refused.stderr.contains("topic \"src.transaction\", which [sink.events] asks for"), "{}", refused.stderr);
    home.setup()?;
    let mut stage = Stage { source, kafka, home };
    assert_eq!(kcat::partition_count(&stage.kafka, "src.transaction")?, Some(1));
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.source.execute(DATABASE, "SELECT pg_create_logical_replication_slot('truth', 'test_decoding')").await?;
    for transaction in TRANSACTIONS {
        stage.source.execute(DATABASE, transaction).await?;
    }
    stage.catch_up(&mut daemon).await?;
    let truth = stage.truth().await?;
    assert_eq!(truth.len(), 9, "two transactions have no event");
    check_boundaries(&stage, &truth)?;
    check_events(&stage, &truth)?;

    // A daemon that dies inside a transaction of many batches tells it once, from its first event on.
    let before = stage.committed("src.public.one")?.len();
    let struck = proxy.struck();
    proxy.arm(&[FIRST_OF_LARGE], Fate::Unanswered);
    proxy.victim(daemon.pid());
    stage.source.execute(DATABASE, LARGE).await?;
    bury(&proxy, struck, daemon, "it sends the first of a large transaction").await?;
    let all = kcat::read(&stage.kafka, "src.public.one", Isolation::ReadUncommitted)?.len();
    ensure!(all > before, "the broker has nothing of it");
    assert_eq!(stage.committed("src.public.one")?.len(), before, "none of it is committed");
    daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    let truth = stage.truth().await?;
    check_boundaries(&stage, &truth)?;
    check_events(&stage, &truth)?;

    check_heartbeats(&mut stage).await?;
    daemon.terminate()
}

/// They come while there is nothing to tell, and while there is.
async fn check_heartbeats(stage: &mut Stage) -> Result<()> {
    let before = stage.heartbeats()?.len();
    let more = async |count: usize, busy: &str| {
        eventually(SOON, "heartbeats come", async || {
            if !busy.is_empty() {
                stage.source.execute(DATABASE, busy).await?;
            }
            let found = stage.heartbeats()?.len();
            Ok(if found >= count { Look::Yes(found) } else { Look::NotYet(format!("{found} heartbeats")) })
        })
        .await
    };
    let quiet = more(before + 4, "").await?;
    more(quiet + 4, "UPDATE quiet SET n = n + 1; UPDATE one SET n = n + 1 WHERE id = 1000").await?;
    let mut last = 0;
    for record in stage.heartbeats()? {
        let (key, value) = record.text();
        assert_eq!(serde_json::from_str::<Value>(&key.context("a key")?)?, json!({"serverName": "src"}));
        let value: Value = serde_json::from_str(&value.context("a value")?)?;
        let told = value["ts_ms"].as_i64().context("a time")?;
        ensure!(told - last >= Duration::from_millis(300).as_millis() as i64, "heartbeats come too often: {value}");
        last = told;
    }
    Ok(())
}
