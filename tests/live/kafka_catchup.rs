//! A table that is copied into Kafka and then catches up, with more than its topic takes at once.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;

use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Home, flushed};
use crate::support::kafka::Kafka;
use crate::support::kcat::read_committed;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const STATE_TOPIC: &str = "tailwater.state-events-src";

const TABLES: &str = "
    CREATE TABLE gate (id int PRIMARY KEY); INSERT INTO gate VALUES (1);
    CREATE TABLE many (id int PRIMARY KEY, body text); INSERT INTO many VALUES (0, '')";

/// Texts that do not become shorter by compression.
const CHANGES: &str =
    "INSERT INTO many SELECT id, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 30 + id * 0))
    FROM generate_series(1, 300) id";

/// Its copy waits as long as the topic wants more copies than there are brokers.
const CLOSED: &[(&str, &str)] = &[("min.insync.replicas", "2")];

/// What the daemon reads while the brokers look at what it caught up with, and takes no notice of: so that it is always told of
/// a refusal when it writes down that the table has joined.
const BALLAST: u32 = 30_000;

async fn fill_state(kafka: &Kafka) -> Result<()> {
    kafka.create_topic(STATE_TOPIC, 1, &[("cleanup.policy", "compact")]).await?;
    let mut kcat = Command::new("kcat");
    kcat.args(["-P", "-K", "|", "-t", STATE_TOPIC, "-b", &kafka.bootstrap()]).stdin(Stdio::piped());
    let mut kcat = kcat.spawn().context("start kcat")?;
    let lines: String = (0..BALLAST).map(|number| format!("ballast {number}|of no meaning\n")).collect();
    kcat.stdin.take().context("stdin")?.write_all(lines.as_bytes())?;
    ensure!(kcat.wait()?.success(), "kcat");
    Ok(())
}

async fn open(kafka: &Kafka, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create()?;
    let settings = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("min.insync.replicas", "1");
    for outcome in admin.alter_configs([&settings], &AdminOptions::new()).await? {
        outcome.map_err(|(_, code)| anyhow::anyhow!("topic {topic} was not altered: {code}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn h96_batches_get_shorter_where_a_table_catches_up() -> Result<()> {
    let source = Cluster::start("catchup-source", Version::V15, Options::default())?;
    source.execute(DATABASE, TABLES).await?;
    let kafka = Kafka::start("catchup-kafka")?;
    fill_state(&kafka).await?;
    kafka.create_topic("src.public.gate", 1, CLOSED).await?;
    kafka.create_topic("src.public.many", 1, &[("max.message.bytes", "20000")]).await?;
    let config = format!(
        "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
         [sink.events]\nkind = \"kafka\"\nbrokers = \"{}\"\nidle_record = \"200ms\"\n",
        source.url(DATABASE),
        kafka.bootstrap()
    );
    let mapping = "source = \"src\"\nsink = \"events\"\n[topic]\ntables = [\"public.*\"]\npartitions = 1\n";
    let home = Home::new("catchup", &config, &[("mapping.toml", mapping)])?;
    home.setup()?;
    let mut daemon = home.run()?;
    // The copies have begun, and the stream leaves behind what they wait for.
    eventually(SOON, "the copy waits", async || {
        let copying = daemon.log().contains("copying");
        Ok(if copying { Look::Yes(()) } else { Look::NotYet("it has not begun".to_owned()) })
    })
    .await?;
    source.execute(DATABASE, CHANGES).await?;
    let target = flushed(&source.connect(DATABASE).await?).await?;
    eventually(SOON, "the checkpoint passes the changes", async || {
        let reached = daemon.metric("tailwater_checkpoint_lsn")?;
        Ok(if reached >= target.0 as f64 { Look::Yes(()) } else { Look::NotYet(format!("{reached}")) })
    })
    .await?;
    ensure!(read_committed(&kafka, "src.public.many")?.len() <= 1, "the changes did not wait");
    open(&kafka, "src.public.gate").await?;
    let told = eventually(SOON, "all is told", async || {
        if let Some(status) = daemon.ended()? {
            return Ok(Look::Yes(Err(anyhow::anyhow!("the daemon ended with {status}: {}", daemon.log()))));
        }
        let told = read_committed(&kafka, "src.public.many")?.len();
        Ok(if told >= 301 { Look::Yes(Ok(told)) } else { Look::NotYet(format!("{told} messages")) })
    });
    let told = told.await??;
    ensure!(told == 301, "{told} messages of one row and 300 changes");
    let log = daemon.log();
    ensure!(log.contains("a batch was longer than the topic takes"), "no batch was too long, so nothing was shown");
    // Said at once of which topic, and not after another attempt that would come to the same.
    ensure!(!log.contains("for topic \"\""), "what was refused is not said: {log}");
    daemon.terminate()
}
