//! Avro under the schemas of a real registry, read by a decoder that shares nothing with the daemon.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::debezium_types::{SCHEMA as TYPES, tables};
use crate::support::certificates::Certificates;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::kafka::Kafka;
use crate::support::kcat::{Record, read_committed};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::registry::{API, READER_ALONE, Registry};
use crate::support::tls_proxy::TlsProxy;
use crate::support::wait::{Look, eventually};

const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// Two tables alike but for what of an old row is sent.
const ORDERS: &str = "CREATE TABLE orders (region text, id int, \"odd name\" text NOT NULL, big text NOT NULL,
      amount numeric(10,2) NOT NULL, placed timestamptz NOT NULL, tags text[] NOT NULL, PRIMARY KEY (region, id));
    ALTER TABLE orders ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE orders_full (LIKE orders INCLUDING ALL);
    ALTER TABLE orders_full REPLICA IDENTITY FULL;
    INSERT INTO orders VALUES ('eu', 1, 'first', repeat('x', 5000), 12.50, '2026-01-02T03:04:05Z', '{a,NULL}');
    INSERT INTO orders_full TABLE orders";

/// Each kind of change, after the first copy.
const CHANGES: [&str; 5] = [
    "INSERT INTO orders VALUES ('eu', 2, 'second', repeat('y', 5000), 1.00, '2026-01-02T03:04:06.5Z', '{}')",
    "UPDATE orders SET amount = -1.25 WHERE id = 2",
    "UPDATE orders SET id = 3 WHERE id = 2",
    "DELETE FROM orders WHERE id = 3",
    "TRUNCATE orders",
];

struct Stage {
    source: Cluster,
    kafka: Kafka,
    registry: Registry,
    home: Home,
}

impl Stage {
    async fn start(name: &str, sql: &[&str], mappings: &[(&str, &str)]) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        for sql in sql {
            source.execute(DATABASE, sql).await?;
        }
        let kafka = Kafka::start(&format!("{name}-kafka"))?;
        let registry = Registry::start(&format!("{name}-registry"))?;
        let home = Home::new(name, "", mappings)?;
        let stage = Stage { source, kafka, registry, home };
        stage.configure(&format!("schema_registry = {{ url = \"{}\" }}", stage.registry.url()), mappings)?;
        Ok(stage)
    }

    /// `more`: of the sink.
    fn configure(&self, more: &str, mappings: &[(&str, &str)]) -> Result<()> {
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\n{more}\n",
            self.source.url(DATABASE),
            self.kafka.bootstrap()
        );
        self.home.configure(&config, mappings)
    }

    /// Waits until the checkpoint has reached what the source has committed by now, with every table in one of the states.
    async fn catch_up(&self, daemon: &mut Daemon, states: &[&str]) -> Result<()> {
        daemon.wait_told_caught_up(&self.source.connect(DATABASE).await?, states, SOON).await
    }

    fn records(&self, topic: &str) -> Result<Vec<Record>> {
        read_committed(&self.kafka, topic)
    }

    /// Every message of a topic in Avro, as the independent reader has it.
    fn messages(&self, topic: &str) -> Result<Vec<Message>> {
        let records = self.records(topic)?;
        let mut bytes: Vec<&[u8]> = Vec::new();
        for record in &records {
            bytes.extend(record.key.as_deref());
            bytes.extend(record.value.as_deref());
            bytes.extend(KEY_HEADERS.iter().filter_map(|name| record.header(name)));
        }
        let mut values = self.registry.decode(&bytes)?.into_iter();
        let mut next = || values.next().context("as many values as messages");
        let mut messages = Vec::new();
        for record in &records {
            let key = record.key.as_ref().map(|_| next()).transpose()?.unwrap_or_default();
            let value = record.value.as_ref().map(|_| next()).transpose()?;
            let mut moved = Vec::new();
            for name in KEY_HEADERS.iter().filter(|name| record.header(name).is_some()) {
                moved.push((*name, next()?));
            }
            messages.push(Message { key, value, moved });
        }
        Ok(messages)
    }

    /// The same of a topic in JSON.
    fn json_messages(&self, topic: &str) -> Result<Vec<Message>> {
        let records = self.records(topic)?;
        let message = |record: &Record| {
            let parse = |bytes: &[u8]| Ok::<Value, anyhow::Error>(serde_json::from_slice(bytes)?);
            let moved = KEY_HEADERS.iter().filter_map(|name| Some((*name, record.header(name)?)));
            Ok(Message {
                key: record.key.as_deref().map(parse).transpose()?.unwrap_or_default(),
                value: record.value.as_deref().map(parse).transpose()?,
                moved: moved.map(|(name, key)| Ok((name, parse(key)?))).collect::<Result<_>>()?,
            })
        };
        records.iter().map(message).collect()
    }
}

const KEY_HEADERS: [&str; 2] = ["__debezium.newkey", "__debezium.oldkey"];

struct Message {
    /// NULL where there is none.
    key: Value,
    value: Option<Value>,
    /// Keys in headers.
    moved: Vec<(&'static str, Value)>,
}

impl Message {
    fn op(&self) -> &str {
        self.value.as_ref().map_or("tombstone", |value| value["op"].as_str().unwrap_or_default())
    }

    /// Without what two copies of one row may differ in.
    fn settled(&self) -> Value {
        let mut value = self.value.clone().unwrap_or_default();
        let times = ["ts_ms", "ts_us", "ts_ns"];
        let is_read = self.op() == "r";
        if let Some(fields) = value.as_object_mut() {
            times.iter().for_each(|time| drop(fields.remove(*time)));
        }
        if let Some(source) = value.get_mut("source").filter(|_| is_read).and_then(Value::as_object_mut) {
            times.iter().for_each(|time| drop(source.remove(*time)));
        }
        json!({ "key": self.key, "value": value, "moved": self.moved })
    }
}

/// The same, but for a `real`, whose shortest digits are those of no `double`, and for names that Avro does not take.
fn same(avro: &Value, json: &Value) -> bool {
    match (avro, json) {
        (Value::Object(one), Value::Object(two)) => {
            let named =
                |(name, value): (&String, &Value)| one.get(&name.replace(' ', "_")).is_some_and(|v| same(v, value));
            one.len() == two.len() && two.iter().all(named)
        }
        (Value::Array(one), Value::Array(two)) => {
            one.len() == two.len() && one.iter().zip(two).all(|(one, two)| same(one, two))
        }
        (Value::Number(one), Value::Number(two)) => {
            one == two || one.as_f64().zip(two.as_f64()).is_some_and(|(one, two)| one as f32 == two as f32)
        }
        _ => avro == json,
    }
}

/// Waits until the daemon has said something.
async fn said(daemon: &mut Daemon, words: &str) -> Result<()> {
    let what = format!("the daemon says {words:?}");
    let said = eventually(SOON, &what, async || {
        if daemon.log().contains(words) {
            return Ok(Look::Yes(Ok(())));
        }
        Ok(match daemon.ended()? {
            Some(status) => Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}"))),
            None => Look::NotYet(daemon.log().lines().last().unwrap_or_default().to_owned()),
        })
    });
    said.await?
}

/// Both forms of every table, each a topic of one partition.
const AVRO: &str = "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [\"public.*\"]\nname = \"avro.{table}\"\n\
                    format = \"avro\"\npartitions = 1\nskipped_operations = \"none\"\n";
const JSON: &str = "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [\"public.*\"]\nname = \"json.{table}\"\n\
                    partitions = 1\nskipped_operations = \"none\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn another_reader_finds_in_avro_what_json_says_of_every_type_and_change() -> Result<()> {
    let mappings = [("avro.toml", AVRO), ("json.toml", JSON)];
    let mut stage = Stage::start("kafka-avro", &[TYPES, ORDERS], &mappings).await?;
    let source = stage.source.connect(DATABASE).await?;
    source.batch_execute("SET timezone = 'UTC'").await?;
    let mut names = vec!["orders", "orders_full"];
    for (table, values, _) in tables() {
        source.batch_execute(&format!("INSERT INTO {table} VALUES ({values})")).await.context(table)?;
        names.push(table);
    }
    // Avro's schema has no place for an array in an array.
    source.batch_execute("ALTER TABLE nests DROP COLUMN two").await?;
    stage.home.setup()?;

    // Without its registry nothing begins, and nothing is lost by that.
    stage.registry.kill9();
    let silent = format!("the schema registry at 127.0.0.1:{} does not answer", stage.registry.port());
    let outcome = stage.home.command(&["check"])?;
    let told = outcome.stdout + &outcome.stderr;
    ensure!(!outcome.status.success() && told.contains(&silent), "check says {told}");
    let mut daemon = stage.home.run()?;
    said(&mut daemon, &silent).await?;
    stage.registry.resume()?;
    stage.catch_up(&mut daemon, &["streaming"]).await?;

    // Nothing is asked for a row: a registry that does not answer any more is not missed.
    stage.registry.signal("STOP");
    for (table, ..) in tables() {
        source
            .batch_execute(&format!(
                "INSERT INTO {table} (pk) VALUES (3);
                 INSERT INTO {table} SELECT (jsonb_populate_record(whole, '{{\"pk\": 2}}')).* FROM {table} AS whole WHERE pk = 1;
                 UPDATE {table} SET pk = 4 WHERE pk = 2; DELETE FROM {table} WHERE pk = 4"
            ))
            .await
            .context(table)?;
    }
    for sql in CHANGES {
        source.batch_execute(sql).await?;
        source.batch_execute(&sql.replacen("orders", "orders_full", 1)).await?;
    }
    stage.catch_up(&mut daemon, &["streaming"]).await?;
    stage.registry.signal("CONT");

    for (table, _, mut expected) in tables() {
        expected.as_object_mut().context("a row")?.remove("two");
        let messages = stage.messages(&format!("avro.{table}"))?;
        let ops: Vec<&str> = messages.iter().map(Message::op).collect();
        ensure!(ops == ["r", "c", "c", "d", "tombstone", "c", "d", "tombstone"], "{table}: {ops:?}");
        for (place, pk) in [(0, 1), (2, 2), (5, 4)] {
            expected["pk"] = json!(pk);
            let after = &messages[place].value.as_ref().context("a value")?["after"];
            ensure!(same(after, &expected), "{table}: message {place} is\n{after}\nand not\n{expected}");
            ensure!(messages[place].key == json!({ "pk": pk }), "{table}: key {}", messages[place].key);
        }
    }
    orders_are_told(&stage)?;
    for table in &names {
        let (avro, json) = (stage.messages(&format!("avro.{table}"))?, stage.json_messages(&format!("json.{table}"))?);
        ensure!(avro.len() == json.len(), "{table}: {} messages in Avro, {} in JSON", avro.len(), json.len());
        for (place, (avro, json)) in avro.iter().zip(&json).enumerate() {
            let (avro, json) = (avro.settled(), json.settled());
            ensure!(same(&avro, &json), "{table}: message {place} is\n{avro}\nin Avro and\n{json}\nin JSON");
        }
    }
    let subjects: BTreeSet<String> = stage.registry.subjects()?.into_iter().collect();
    let expected = names.iter().flat_map(|table| ["key", "value"].map(|what| format!("avro.{table}-{what}")));
    assert_eq!(subjects, expected.collect());
    daemon.terminate()
}

/// What became of the two tables of orders, by hand.
fn orders_are_told(stage: &Stage) -> Result<()> {
    for (topic, is_full) in [("avro.orders", false), ("avro.orders_full", true)] {
        let messages = stage.messages(topic)?;
        let ops: Vec<&str> = messages.iter().map(Message::op).collect();
        ensure!(ops == ["r", "c", "u", "d", "tombstone", "c", "d", "tombstone", "t"], "{topic}: {ops:?}");
        let key = |id: i32| json!({ "region": "eu", "id": id });
        let keys: Vec<&Value> = messages.iter().map(|message| &message.key).collect();
        let mut expected: Vec<Value> = [1, 2, 2, 2, 2, 3, 3, 3].map(key).into();
        expected.push(Value::Null);
        ensure!(keys == expected.iter().collect::<Vec<_>>(), "{topic}: {keys:?}");
        ensure!(messages[3].moved == [("__debezium.newkey", key(3))], "{topic}: {:?}", messages[3].moved);
        ensure!(messages[5].moved == [("__debezium.oldkey", key(2))], "{topic}: {:?}", messages[5].moved);
        let image = |place: usize, which: &str| messages[place].value.as_ref().map(|value| value[which].clone());
        // 100 hundredths are the byte 64, -125 the byte 83.
        let row = |id: i32, big: &str, amount: &str| {
            Some(json!({
                "region": "eu", "id": id, "odd_name": "second", "big": big, "amount": amount,
                "placed": "2026-01-02T03:04:06.500000Z", "tags": [],
            }))
        };
        let (whole, unsent) = ("y".repeat(5000), if is_full { "y".repeat(5000) } else { PLACEHOLDER.to_owned() });
        assert_eq!(image(1, "after"), row(2, &whole, "ZA=="), "{topic}");
        assert_eq!(image(2, "after"), row(2, &unsent, "gw=="), "{topic}");
        assert_eq!(image(5, "after"), row(3, &unsent, "gw=="), "{topic}");
        // Of a row known by its key, what must be there is as empty as it can be.
        let key_only = json!({
            "region": "eu", "id": 3, "odd_name": "", "big": "", "amount": "AA==", "placed": "1970-01-01T00:00:00Z", "tags": [],
        });
        let before = if is_full { row(3, &whole, "gw==") } else { Some(key_only) };
        assert_eq!(image(6, "before"), before, "{topic}");
        assert_eq!(image(2, "before"), if is_full { row(2, &whole, "ZA==") } else { Some(Value::Null) }, "{topic}");
    }
    Ok(())
}

/// A transaction of one event, and that the daemon was there.
fn what_is_of_no_row_is_told(stage: &Stage) -> Result<()> {
    let event = stage.messages("src.public.taken")?.remove(1).value.context("a value")?;
    let id = format!("{}:{}", event["source"]["txId"], event["source"]["lsn"]);
    assert_eq!(event["transaction"], json!({ "id": id, "total_order": 1, "data_collection_order": 1 }));
    let boundaries = stage.messages("src.transaction")?;
    let [begin, end] = &boundaries[..] else { bail!("{} boundaries", boundaries.len()) };
    let of = |message: &Message| message.value.clone().context("a value");
    let (begin_value, mut end_value) = (of(begin)?, of(end)?);
    let committed = event["source"]["ts_ms"].clone();
    let expected = json!({
        "status": "BEGIN", "id": id, "event_count": null, "data_collections": null, "ts_ms": committed,
    });
    assert_eq!((&begin.key, &begin_value), (&json!({ "id": id }), &expected));
    assert_eq!(end.key, json!({ "id": end_value["id"] }));
    let end_id = end_value["id"].take();
    assert_eq!(end_id.as_str().and_then(|id| id.split(':').next()), id.split(':').next());
    let counts = json!([{ "data_collection": "public.taken", "event_count": 1 }]);
    let expected = json!({
        "status": "END", "id": null, "event_count": 1, "data_collections": counts, "ts_ms": committed,
    });
    assert_eq!(end_value, expected);
    let beats = stage.messages("__debezium-heartbeat.src")?;
    assert!(beats.iter().all(|beat| beat.key == json!({ "serverName": "src" })));
    ensure!(beats.iter().all(|beat| of(beat).is_ok_and(|value| value["ts_ms"].is_i64())), "a heartbeat has no time");
    let subjects = stage.registry.subjects()?;
    for topic in ["src.transaction", "__debezium-heartbeat.src"] {
        for side in ["key", "value"] {
            ensure!(subjects.contains(&format!("{topic}-{side}")), "{topic}-{side} is not registered: {subjects:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_registry_refuses_stops_its_table_and_loses_nothing() -> Result<()> {
    let mapping =
        "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [\"public.*\"]\nformat = \"avro\"\npartitions = 1\n";
    let mappings = [("mapping.toml", mapping)];
    let sql = "CREATE TABLE taken (id int PRIMARY KEY, body text); INSERT INTO taken VALUES (1, 'a');
               CREATE TABLE refused (id int PRIMARY KEY); INSERT INTO refused VALUES (1)";
    let stage = Stage::start("kafka-refused", &[sql], &mappings).await?;
    stage.registry.register("src.public.refused-value", "\"string\"")?;
    stage.registry.set_compatibility("src.public.refused-value", "BACKWARD")?;

    // Whom it does not know, it does not let in.
    let as_user = |user: &str| format!("schema_registry = {{ url = \"{}\" }}", stage.registry.url_of(user));
    stage.configure(&as_user("tail:wr0ng"), &mappings)?;
    for verb in ["check", "run"] {
        let outcome = stage.home.command(&[verb])?;
        let told = outcome.stdout + &outcome.stderr;
        ensure!(outcome.status.code() == Some(3) && told.contains("does not let us in (401)"), "{verb} says {told}");
        ensure!(!told.contains("wr0ng"), "{verb} tells the password");
    }

    // Over TLS, believed by whom its authority is known to.
    let certificates = Certificates::make(&stage.home.path().join("ours"))?;
    let others = Certificates::make(&stage.home.path().join("others"))?;
    let proxy = TlsProxy::start(stage.registry.port(), &certificates)?;
    let over_tls = |root: &std::path::Path, more: &str| {
        let url = format!("https://tail:s3cret@127.0.0.1:{}{API}/", proxy.port());
        format!("schema_registry = {{ url = \"{url}\", ca_file = \"{}\" }}\n{more}", root.display())
    };
    stage.configure(&over_tls(&others.root, ""), &mappings)?;
    let outcome = stage.home.command(&["check"])?;
    let told = outcome.stdout + &outcome.stderr;
    ensure!(!outcome.status.success() && told.contains("invalid peer certificate"), "check says {told}");
    let beside = "provide_transaction_metadata = true\nheartbeat_interval = \"200ms\"";
    stage.configure(&over_tls(&certificates.root, beside), &mappings)?;
    stage.home.setup()?;
    ensure!(proxy.greeted() > 0, "nobody asked over TLS");

    // Who may read schemas, and not write them, finds nothing wrong until there is one to be written.
    stage.configure(&format!("{}\n{beside}", as_user(READER_ALONE)), &mappings)?;
    stage.home.must(&["check"])?;
    let mut daemon = stage.home.run()?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(1) && daemon.log().contains("does not let us in (403)"), "it ended with {status}");
    stage.configure(&over_tls(&certificates.root, beside), &mappings)?;

    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon, &["streaming", "quarantined"]).await?;
    let refusal = |subject: &str| format!("refuses the schema of subject \"{subject}\" as incompatible");
    said(&mut daemon, "table is quarantined").await?;
    said(&mut daemon, &refusal("src.public.refused-value")).await?;
    stage.source.execute(DATABASE, "INSERT INTO taken VALUES (2, 'b'); INSERT INTO refused VALUES (2)").await?;
    stage.catch_up(&mut daemon, &["streaming", "quarantined"]).await?;
    let status = daemon.status()?.to_string();
    ensure!(status.contains("src.public.refused-value"), "the status says {status}");
    eventually(SOON, "a heartbeat comes", async || {
        let beats = stage.records("__debezium-heartbeat.src")?.len();
        Ok(if beats > 0 { Look::Yes(()) } else { Look::NotYet("none".to_owned()) })
    })
    .await?;
    daemon.terminate()?;
    what_is_of_no_row_is_told(&stage)?;
    assert_eq!(stage.messages("src.public.taken")?.iter().map(Message::op).collect::<Vec<_>>(), ["r", "c"]);
    assert_eq!(stage.records("src.public.refused")?, []);

    // A table that streams, of which later rows would not be what its readers were promised.
    stage.registry.set_compatibility("src.public.taken-value", "BACKWARD")?;
    stage.source.execute(DATABASE, "ALTER TABLE taken ADD COLUMN number int NOT NULL DEFAULT 7").await?;
    stage.configure(&over_tls(&certificates.root, "on_error = \"stop\""), &mappings)?;
    let mut daemon = stage.home.run()?;
    said(&mut daemon, &refusal("src.public.taken-value")).await?;
    stage.source.execute(DATABASE, "INSERT INTO taken VALUES (3, 'c', 8)").await?;
    let status = daemon.wait_ended(SOON)?;
    ensure!(!status.success(), "it ended with {status}");
    if daemon.log().contains("s3cret") {
        bail!("the log holds the password");
    }
    stage.registry.set_compatibility("src.public.taken-value", "NONE")?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon, &["streaming", "quarantined"]).await?;
    let messages = stage.messages("src.public.taken")?;
    assert_eq!(messages.iter().map(Message::op).collect::<Vec<_>>(), ["r", "c", "c"]);
    let after = messages[2].value.as_ref().context("a value")?["after"].clone();
    assert_eq!(after, json!({ "id": 3, "body": "c", "number": 8 }));
    daemon.terminate()
}
