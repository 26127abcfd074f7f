//! What a `[topic]` section says, through the daemon and a real broker.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::{Value, json};

use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::Kafka;
use crate::support::kcat::{Record, read_committed};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};

struct Stage {
    source: Cluster,
    kafka: Kafka,
    home: Home,
}

impl Stage {
    /// A source with these tables, and a home for mapping files of one `[topic]` each.
    async fn start(name: &str, schema: &str, options: &str, topics: &[(&str, &str)]) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, schema).await?;
        let kafka = Kafka::start(&format!("{name}-kafka"))?;
        let home = Home::new(name, "", &[])?;
        let stage = Stage { source, kafka, home };
        stage.configure(options, topics)?;
        Ok(stage)
    }

    fn configure(&self, options: &str, topics: &[(&str, &str)]) -> Result<()> {
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\n{options}\n",
            self.source.url(DATABASE),
            self.kafka.bootstrap()
        );
        let section = |text: &str| format!("source = \"src\"\nsink = \"events\"\n\n[topic]\npartitions = 1\n{text}\n");
        let files: Vec<_> = topics.iter().map(|(name, text)| (format!("{name}.toml"), section(text))).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        self.home.configure(&config, &files)
    }

    /// Waits until the checkpoint has reached what the source has committed by now, and no table is on its way to the
    /// stream.
    async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        let source = self.source.connect(DATABASE).await?;
        daemon.wait_told_caught_up(&source, &["streaming", "quarantined"], SOON).await
    }

    fn records(&self, topic: &str) -> Result<Vec<Record>> {
        read_committed(&self.kafka, topic)
    }

    /// Keys and values of a topic's messages, as JSON.
    fn messages(&self, topic: &str) -> Result<Vec<(Value, Value)>> {
        let read = |text: Option<String>| -> Result<Value> {
            text.map_or(Ok(Value::Null), |text| Ok(serde_json::from_str(&text)?))
        };
        self.records(topic)?.iter().map(|record| Ok((read(record.text().0)?, read(record.text().1)?))).collect()
    }

    /// What a topic's messages are in short: the op, the key's `id`, and whether the row came from or went to another key.
    fn told(&self, topic: &str) -> Result<Vec<String>> {
        let mut told = Vec::new();
        for (record, (key, value)) in self.records(topic)?.iter().zip(self.messages(topic)?) {
            let op = value["op"].as_str().unwrap_or("tombstone");
            let moved =
                ["newkey", "oldkey"].iter().filter(|name| record.header(&format!("__debezium.{name}")).is_some());
            let moved: String = moved.map(|name| format!(" {name}")).collect();
            told.push(format!("{op} {}{moved}", key["id"]));
        }
        Ok(told)
    }
}

const SCHEMA: &str = "
    CREATE TABLE plain (id int PRIMARY KEY, body text, secret text);
    CREATE TABLE kept (id int PRIMARY KEY, body text);
    CREATE TABLE orders (id int PRIMARY KEY, status text, total numeric(10,2), secret text);
    ALTER TABLE orders REPLICA IDENTITY FULL;
    CREATE TABLE docs (id int PRIMARY KEY, body text, number int);
    ALTER TABLE docs REPLICA IDENTITY FULL; ALTER TABLE docs ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE flips (id int PRIMARY KEY, shown boolean);
    ALTER TABLE flips REPLICA IDENTITY FULL;
    CREATE TABLE audit (id int, what text);
    ALTER TABLE audit REPLICA IDENTITY FULL;
    CREATE SCHEMA odd;
    CREATE TABLE odd.\"größe x\" (id int PRIMARY KEY, price numeric(10,2), at timestamp, day date, hidden text, total_net int);
    CREATE TABLE odd.secret_1 (id int PRIMARY KEY);
    INSERT INTO plain VALUES (1, 'one', 'geheim');
    INSERT INTO kept VALUES (1, 'one');
    INSERT INTO orders VALUES (1, 'open', 10, 'geheim'), (2, 'draft', 50, 'geheim'), (3, 'open', 9.99, 'geheim'), (4, 'open', NULL, 'geheim');
    INSERT INTO docs VALUES (1, repeat('x', 5000), 1), (2, 'none', 1);
    INSERT INTO flips SELECT id, id % 2 = 0 FROM generate_series(1, 300) id;
    INSERT INTO audit VALUES (7, 'first');
    INSERT INTO odd.\"größe x\" VALUES (1, 12.5, '2024-02-29 12:00:00', '2024-02-29', 'geheim', 3)";

const TOPICS: &[(&str, &str)] = &[
    ("plain", "tables = \"public.plain\"\nformat = \"json\"\nexclude = \"public.plain.sec*\""),
    ("kept", "tables = \"public.kept\"\nformat = \"json\"\ntombstones = false"),
    (
        "orders",
        "tables = [\"public.orders\", \"public.docs\", \"public.flips\"]\nexclude = \"*.*.secret\"\n\
         where = { \"public.orders\" = \"status <> 'draft' AND total >= 10\", \"public.docs\" = \"body <> 'none'\", \
         \"public.flips\" = \"shown\" }",
    ),
    ("audit", "tables = \"public.audit\"\nkey = { \"public.audit\" = [\"id\"] }\nschemas = true"),
    (
        "odd",
        "tables = \"odd.*\"\nexclude_tables = \"odd.secret_?\"\nname = \"{database}.{schema}-{table}!\"\n\
         include = [\"odd.*.price\", \"odd.*.at\", \"odd.*.day\", \"odd.*.total_*\"]\n\
         decimal_handling_mode = \"string\"\ntime_precision_mode = \"isostring\"",
    ),
];

/// One statement a change, so that each is told where it happens.
const CHANGES: &str = "
    INSERT INTO plain VALUES (2, 'two', 'geheim'); UPDATE plain SET body = 'uno' WHERE id = 1; DELETE FROM plain WHERE id = 2;
    UPDATE kept SET body = 'uno' WHERE id = 1; DELETE FROM kept WHERE id = 1;
    UPDATE orders SET status = 'open' WHERE id = 2;
    UPDATE orders SET total = 5 WHERE id = 1;
    UPDATE orders SET total = 20 WHERE id = 1;
    UPDATE orders SET total = 60 WHERE id = 2;
    INSERT INTO orders VALUES (5, 'draft', 100, 'geheim');
    INSERT INTO orders VALUES (6, 'open', 100, 'geheim');
    UPDATE orders SET id = 7 WHERE id = 6;
    UPDATE orders SET id = 8, status = 'draft' WHERE id = 7;
    UPDATE orders SET id = 9, status = NULL WHERE id = 8;
    UPDATE orders SET id = 10, status = 'open' WHERE id = 9;
    UPDATE orders SET secret = 'geheim2' WHERE id = 3;
    DELETE FROM orders WHERE id = 5;
    DELETE FROM orders WHERE id = 2;
    UPDATE docs SET number = 2;
    UPDATE docs SET body = 'none' WHERE id = 1;
    UPDATE docs SET number = 3;
    UPDATE audit SET what = 'second'; UPDATE odd.\"größe x\" SET price = 0.10, hidden = 'geheim3'; INSERT INTO odd.secret_1 VALUES (1)";

/// Shows and hides rows until told to stop.
async fn flip(source: &Cluster, seed: u64, mut stop: tokio::sync::oneshot::Receiver<()>) -> Result<u64> {
    let client = source.connect(DATABASE).await?;
    let (mut random, mut flips) = (Random::new(seed), 0);
    while stop.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
        let sql = "UPDATE flips SET shown = NOT shown WHERE id = $1 OR id = $2";
        client.execute(sql, &[&random.id(300), &random.id(300)]).await?;
        flips += 1;
    }
    Ok(flips)
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_what_their_section_says() -> Result<()> {
    let mut stage = Stage::start("kafka-topics", SCHEMA, "", TOPICS).await?;
    stage.home.setup()?;
    // Rows come and go from before the copy until the table has joined the stream.
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let seed = Random::seed_from_environment();
    println!("TAILWATER_SEED={seed}");
    let mut daemon = stage.home.run()?;
    let (flips, running) = tokio::join!(flip(&stage.source, seed, stopped), async {
        let running = stage.catch_up(&mut daemon).await;
        let _ = stop.send(());
        running
    });
    running?;
    println!("{} flips", flips?);
    stage.source.execute(DATABASE, CHANGES).await?;
    stage.catch_up(&mut daemon).await?;

    rows_alone(&stage)?;
    filtered(&stage).await?;
    named_and_formed(&stage)?;
    daemon.terminate()?;
    partitions_changed(&mut stage).await
}

fn rows_alone(stage: &Stage) -> Result<()> {
    let key = |id: i32| json!({ "id": id });
    let plain = stage.messages("src.public.plain")?;
    let expected = [
        (key(1), json!({ "id": 1, "body": "one" })),
        (key(2), json!({ "id": 2, "body": "two" })),
        (key(1), json!({ "id": 1, "body": "uno" })),
        (key(2), Value::Null),
    ];
    ensure!(plain == expected, "{plain:?}");
    let kept = stage.messages("src.public.kept")?;
    ensure!(
        kept == [(key(1), json!({ "id": 1, "body": "one" })), (key(1), json!({ "id": 1, "body": "uno" }))],
        "{kept:?}"
    );
    Ok(())
}

async fn filtered(stage: &Stage) -> Result<()> {
    let told = stage.told("src.public.orders")?;
    let expected = [
        "r 1",
        "c 2",
        "d 1",
        "tombstone 1",
        "c 1",
        "u 2",
        "c 6",
        "d 6 newkey",
        "tombstone 6",
        "c 7 oldkey",
        "d 7",
        "tombstone 7",
        "c 10",
        "d 2",
        "tombstone 2",
    ];
    ensure!(told == expected, "{told:?}");
    let updated = stage.messages("src.public.orders")?.into_iter().find(|(_, value)| value["op"] == "u");
    let updated = updated.context("an update")?.1;
    // Of the excluded column not even the old row says anything.
    ensure!(updated["before"] == json!({ "id": 2, "status": "open", "total": "E4g=" }), "{updated}");
    let secret = |bytes: &[u8]| bytes.windows(6).any(|window| window == b"geheim");
    for topic in ["src.public.orders", "src.public.plain", "postgres.odd-gr__e_x_"] {
        for record in stage.records(topic)? {
            let mut parts = record.headers.iter().map(|(_, value)| value.as_slice()).chain(record.key.as_deref());
            ensure!(!parts.any(secret) && !record.value.as_deref().is_some_and(secret), "{topic} tells a secret");
        }
    }

    // What the condition reads was large and left unsent: the old row has it.
    ensure!(
        stage.told("src.public.docs")? == ["r 1", "u 1", "d 1", "tombstone 1"],
        "{:?}",
        stage.told("src.public.docs")?
    );
    let docs = stage.messages("src.public.docs")?;
    ensure!(docs[1].1["after"] == json!({ "id": 1, "body": "x".repeat(5000), "number": 2 }), "the row is not whole");

    let mut shown = BTreeSet::new();
    for (key, value) in stage.messages("src.public.flips")? {
        let id = key["id"].as_i64().context("a key")?;
        match value["op"].as_str() {
            Some("c") => ensure!(shown.insert(id), "{id} was created, and there before"),
            Some("r") => drop(shown.insert(id)),
            Some("d") => ensure!(shown.remove(&id), "{id} was deleted, and not there"),
            None => {}
            op => bail!("{id}: op {op:?} of a table of which rows only come and go"),
        }
    }
    let rows = stage.source.connect(DATABASE).await?.query("SELECT id FROM flips WHERE shown", &[]).await?;
    let expected: BTreeSet<i64> = rows.iter().map(|row| i64::from(row.get::<_, i32>(0))).collect();
    ensure!(shown == expected, "shown are {shown:?}, not {expected:?}");
    Ok(())
}

fn named_and_formed(stage: &Stage) -> Result<()> {
    let audit = stage.messages("src.public.audit")?;
    let payloads: Vec<_> =
        audit.iter().map(|(key, value)| (&key["payload"], &value["payload"]["after"]["what"])).collect();
    ensure!(
        payloads == [(&json!({ "id": 7 }), &json!("first")), (&json!({ "id": 7 }), &json!("second"))],
        "{payloads:?}"
    );
    ensure!(audit[0].1["schema"]["name"] == "src.public.audit.Envelope", "{}", audit[0].1["schema"]);

    let odd = stage.messages("postgres.odd-gr__e_x_")?;
    let rows: Vec<_> = odd.iter().map(|(_, value)| &value["after"]).collect();
    let row = |price: &str| json!({ "id": 1, "price": price, "at": "2024-02-29T12:00:00Z", "day": "2024-02-29Z", "total_net": 3 });
    ensure!(rows == [&row("12.50"), &row("0.10")], "{rows:?}");
    let made = stage
        .kafka
        .tool("org.apache.kafka.tools.TopicCommand", &["--bootstrap-server", &stage.kafka.bootstrap(), "--list"])?;
    ensure!(!made.contains("secret_1"), "an excluded table has a topic: {made}");
    Ok(())
}

/// H92: where a key's messages are would be another place from then on.
async fn partitions_changed(stage: &mut Stage) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", stage.kafka.bootstrap()).create()?;
    let within = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    for outcome in admin.create_partitions([&NewPartitions::new("src.public.kept", 2)], &within).await? {
        outcome.map_err(|(name, code)| anyhow::anyhow!("topic {name} was not changed: {code}"))?;
    }
    let mut daemon = stage.home.run()?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(1), "the daemon ended with {status}");
    let log = daemon.log();
    for words in [
        "topic \"src.public.kept\" has 2 partitions and had 1 when its first message came",
        "map the table to a new topic",
    ] {
        ensure!(log.contains(words), "it does not say {words:?}: {log}");
    }
    Ok(())
}

const LARGE: &str = "
    CREATE TABLE fine (id int PRIMARY KEY, body text);
    CREATE TABLE ours (id int PRIMARY KEY, body text);
    CREATE TABLE theirs (id int PRIMARY KEY, body text);
    CREATE TABLE old (id int PRIMARY KEY, body text);
    CREATE TABLE later (id int PRIMARY KEY, body text);
    CREATE FUNCTION noise(length int) RETURNS text LANGUAGE sql VOLATILE AS
        $$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, length / 32) $$;
    INSERT INTO old VALUES (1, noise(150000));
    INSERT INTO fine VALUES (0, 'here')";

/// Ids of a topic's rows, each told once.
fn ids(stage: &Stage, table: &str) -> Result<Vec<i64>> {
    let mut ids = BTreeMap::new();
    for (key, _) in stage.messages(&format!("src.public.{table}"))? {
        *ids.entry(key["id"].as_i64().context("a key")?).or_insert(0) += 1;
    }
    ensure!(ids.values().all(|times| *times == 1), "{table}: told more than once: {ids:?}");
    Ok(ids.into_keys().collect())
}

/// Waits until a table is in quarantine, and looks at what is said of it.
async fn quarantined(daemon: &Daemon, table: &str, words: &[&str]) -> Result<()> {
    let state =
        |name: &str| name.starts_with("tailwater_table_state") && name.contains(&format!("src.public.{table}\""));
    eventually(SOON, &format!("{table} is in quarantine"), async || {
        let metrics = daemon.metrics()?;
        let found =
            metrics.iter().find(|(name, value)| state(name) && name.contains("\"quarantined\"") && **value == 1.0);
        Ok(found.map_or_else(
            || Look::NotYet(format!("{:?}", metrics.keys().filter(|name| state(name)).collect::<Vec<_>>())),
            |_| Look::Yes(()),
        ))
    })
    .await?;
    let log = daemon.log();
    let topic = format!("topic \"src.public.{table}\"");
    let said = log.lines().find(|line| line.contains("table is quarantined") && line.contains(&topic));
    let said = said.with_context(|| format!("nothing is said of {table}: {log}"))?;
    for word in words {
        ensure!(said.contains(word), "it does not say {word:?}: {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_messages_follow_on_error_and_nothing_else_suffers() -> Result<()> {
    let options = "options = { \"message.max.bytes\" = \"100000\" }";
    let topics = [("all", "tables = \"public.*\"\ntombstones = false")];
    let stage = Stage::start("kafka-large", LARGE, options, &topics).await?;
    stage.kafka.create_topic("src.public.theirs", 1, &[("max.message.bytes", "20000")]).await?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    // A row that is there already: the other tables are copied.
    quarantined(&daemon, "old", &["is longer than message.max.bytes, 100000", "a message of 150"]).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(ids(&stage, "fine")? == [0]);

    // Small messages, whose batch would be longer than the topic takes.
    let many = "INSERT INTO theirs SELECT id, noise(1000) FROM generate_series(1, 300) id";
    stage.source.execute(DATABASE, many).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(ids(&stage, "theirs")?.len() == 300);
    ensure!(
        daemon.log().contains("a batch was longer than the topic takes"),
        "no batch was too long, so nothing was shown"
    );

    // Beyond the topic's limit, and among others of the same transaction.
    let sql = "BEGIN; INSERT INTO fine VALUES (1, 'before'); INSERT INTO theirs VALUES (500, 'small'), (501, noise(60000)); \
               INSERT INTO fine VALUES (2, 'after'); COMMIT; INSERT INTO fine VALUES (3, 'next')";
    stage.source.execute(DATABASE, sql).await?;
    let words = ["a message of 60", "takes, 20000", "committed at 0/", "raise its max.message.bytes", "\"exclude\""];
    quarantined(&daemon, "theirs", &words).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(ids(&stage, "fine")? == [0, 1, 2, 3], "{:?}", ids(&stage, "fine")?);
    ensure!(ids(&stage, "theirs")?.len() == 300, "a part of a transaction was told");

    // Beyond our own.
    let sql = "BEGIN; INSERT INTO ours VALUES (1, noise(150000)); INSERT INTO fine VALUES (4, 'with it'); COMMIT";
    stage.source.execute(DATABASE, sql).await?;
    quarantined(&daemon, "ours", &["a message of 150", "message.max.bytes, 100000", "committed at 0/"]).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(ids(&stage, "fine")? == [0, 1, 2, 3, 4]);
    ensure!(ids(&stage, "ours")?.is_empty());
    daemon.terminate()?;

    // Told to stop, it stops, and what came before is there.
    stage.configure(&format!("on_error = \"stop\"\n{options}"), &topics)?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.source.execute(DATABASE, "BEGIN; INSERT INTO fine VALUES (5, 'last'); COMMIT; BEGIN; INSERT INTO later VALUES (1, noise(150000)); COMMIT").await?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(1), "the daemon ended with {status}");
    let log = daemon.log();
    ensure!(log.contains("error: table \"src.public.later\": a message of 150"), "{log}");
    ensure!(ids(&stage, "fine")? == [0, 1, 2, 3, 4, 5]);
    ensure!(ids(&stage, "later")?.is_empty());
    Ok(())
}
