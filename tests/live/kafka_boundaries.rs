//! Death of the daemon at each of its requests to Kafka that write or decide something: before the broker saw it, and when
//! the broker had done it and the daemon had not heard. The source goes on meanwhile; whoever reads committed messages sees
//! every change once, and every row of the first copies once.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::kafka_sink::{RESTART_WITHIN, Stage};
use crate::support::daemon::Daemon;
use crate::support::kafka::{Kafka, Options};
use crate::support::kafka_proxy::{
    ADD_PARTITIONS, END_TRANSACTION, Fate, INIT_PRODUCER_ID, KafkaProxy, LIST_OFFSETS, PRODUCE, Step,
};
use crate::support::kcat::read_committed;
use crate::support::pair::{DATABASE, SLOT, SOON};
use crate::support::process;
use crate::support::wait::{Look, eventually};

const FENCE: Step = Step(INIT_PRODUCER_ID, &["tailwater-events-src", "!src-copy", "!src-state"]);
const FENCE_OF_COPIES: Step = Step(INIT_PRODUCER_ID, &["src-copy"]);
const COMMIT: Step = Step(END_TRANSACTION, &["tailwater-events-src", "!src-copy"]);
const COMMIT_OF_COPY: Step = Step(END_TRANSACTION, &["src-copy"]);
const FIRST_CHECKPOINT: Step = Step(PRODUCE, &["tailwater.state-events-src", "\"epoch\":0"]);
const TAKE_OVER: Step = Step(PRODUCE, &["tailwater.state-events-src", "!\"epoch\":0", "\"epoch\":"]);
const ROWS: Step = Step(PRODUCE, &["src-copy", "src.public."]);
const END_OF_COPY: Step = Step(PRODUCE, &["src-copy", "tailwater.state"]);
const END_OF_LAST_COPY: Step = Step(PRODUCE, &["src-copy", "tailwater.state", "src.public.moves"]);
const JOINED: Step = Step(PRODUCE, &["\"joined\":true", "!streaming"]);
const STREAMING: Step = Step(PRODUCE, &["\"joined\":true", "streaming"]);
const PARTITIONS: Step = Step(ADD_PARTITIONS, &["src.public."]);
const CHANGES: Step = Step(PRODUCE, &["src.public.", "!src-copy", "!tailwater.state"]);
const HEARTBEAT: Step = Step(PRODUCE, &["__debezium-heartbeat.src", "!tailwater.state"]);
const GIVING_UP: Step = Step(PRODUCE, &["given up"]);
const CHECKPOINT: Step = Step(PRODUCE, &["tailwater.state", "\"epoch\":"]);
const END_OF_TABLE: Step = Step(PRODUCE, &["tailwater.state-events-src", "quarantined", "churn_full"]);
const ITS_COMMIT: Step = Step(END_TRANSACTION, &["tailwater-events-src-state"]);
/// Asked five times, a look has asked two readers for beginning and end, and one of them for where to read from.
const LOOK: Step = Step(LIST_OFFSETS, &["tailwater.state-events-src"]);

/// What daemons do from the very first start to the stream, in this order.
const COPY: &[(&str, &[Step])] = &[
    ("the first fence", &[FENCE]),
    ("the first checkpoint", &[FIRST_CHECKPOINT]),
    ("its commit", &[FIRST_CHECKPOINT, COMMIT]),
    ("the take-over", &[TAKE_OVER]),
    ("its commit", &[TAKE_OVER, COMMIT]),
    ("the fence of copies", &[FENCE_OF_COPIES]),
    ("rows of a copy", &[ROWS]),
    ("the end of a copy", &[END_OF_COPY]),
    ("its commit", &[END_OF_COPY, COMMIT_OF_COPY]),
    ("the commit of the last copy", &[END_OF_LAST_COPY, COMMIT_OF_COPY]),
    ("tables that join", &[JOINED]),
    ("their commit", &[JOINED, COMMIT]),
    ("a table that streams", &[STREAMING]),
    ("its commit", &[STREAMING, COMMIT]),
];

/// What a daemon does with changes.
const STREAM: &[(&str, &[Step])] = &[
    ("the partitions of changes", &[PARTITIONS]),
    ("changes", &[PARTITIONS, CHANGES]),
    ("the checkpoint", &[PARTITIONS, CHECKPOINT]),
    ("the commit", &[PARTITIONS, COMMIT]),
];

/// What a daemon does when there are no changes.
const IDLE: &[(&str, &[Step])] = &[("a heartbeat by itself", &[HEARTBEAT]), ("its commit", &[HEARTBEAT, COMMIT])];

/// What a daemon does that finds a dead one's transaction open.
const RESTART: &[(&str, &[Step])] =
    &[("the fence", &[FENCE]), ("the take-over", &[TAKE_OVER]), ("its commit", &[TAKE_OVER, COMMIT])];

/// What a daemon does that finds a table gone.
const GONE: &[(&str, &[Step])] =
    &[("the note of a table's end", &[END_OF_TABLE]), ("its commit", &[END_OF_TABLE, ITS_COMMIT])];

/// Two transactions, each of several tables.
async fn change(stage: &Stage) -> Result<()> {
    let sql = "BEGIN; UPDATE accounts_a SET balance = balance - 1 WHERE id <= 5;
               UPDATE accounts_b SET balance = balance + 1 WHERE id <= 5; COMMIT;
               BEGIN; UPDATE accounts_b SET balance = balance - 1 WHERE id % 7 = 0;
               UPDATE moves SET number = number + 1 WHERE id % 50 = 0; COMMIT";
    stage.source.execute(DATABASE, sql).await
}

/// A stage whose daemons reach their broker by way of a proxy. What they send is not compressed, so that it can be told.
async fn stage(name: &str) -> Result<(Stage, KafkaProxy)> {
    stage_with(name, Options::default(), "").await
}

/// `more` goes into the sink's section.
async fn stage_with(name: &str, broker: Options, more: &str) -> Result<(Stage, KafkaProxy)> {
    let proxy = KafkaProxy::start()?;
    let kafka = Kafka::start_with(&format!("{name}-kafka"), broker.proxied(proxy.port()))?;
    proxy.carry_to(kafka.proxied_port());
    let options = format!("options = {{ \"compression.type\" = \"none\" }}\nheartbeat_interval = \"1s\"\n{more}");
    let stage = Stage::new(name, kafka, &proxy.bootstrap(), &options).await?;
    stage.source.execute(DATABASE, "SELECT pg_create_logical_replication_slot('truth', 'test_decoding')").await?;
    Ok((stage, proxy))
}

/// Waits until the proxy has struck, and is rid of the daemon.
pub async fn bury(proxy: &KafkaProxy, struck: u64, mut daemon: Daemon, what: &str) -> Result<()> {
    let what = format!("the daemon gets to {what}");
    let outcome = eventually(SOON, &what, async || {
        let ended = daemon.ended()?.filter(|_| proxy.struck() == struck);
        let is_there = proxy.struck() > struck;
        ensure!(ended.is_none(), "the daemon ended by itself");
        Ok(if is_there { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
    });
    outcome.await?;
    daemon.kill9();
    Ok(())
}

/// Starts a daemon that dies where the path ends.
async fn start_and_die(stage: &Stage, proxy: &KafkaProxy, what: &str, path: &[Step], fate: Fate) -> Result<()> {
    let struck = proxy.struck();
    proxy.arm(path, fate);
    let daemon = stage.home.run()?;
    proxy.victim(daemon.pid());
    bury(proxy, struck, daemon, what).await?;
    change(stage).await
}

/// With all changes told: each once, and every row of the first copies once.
async fn assert_told_once(stage: &Stage) -> Result<()> {
    for (table, rows) in [("accounts_a", 100), ("accounts_b", 100), ("moves", 300)] {
        let messages = stage.assert_exactly_once(table)?;
        let updates = stage.updates(table).await?;
        ensure!(messages == rows + updates, "{table}: {messages} messages of {rows} rows and {updates} updates");
        let copied = stage.copied(table)?;
        ensure!(copied == rows, "{table}: {copied} of {rows} rows were told as read");
    }
    stage.assert_equal(&["accounts_a", "accounts_b", "moves"], "all deaths").await
}

#[tokio::test(flavor = "multi_thread")]
async fn h94_death_at_any_request_loses_and_doubles_nothing() -> Result<()> {
    let (stage, proxy) = stage("kafka-boundaries").await?;
    for (what, path) in COPY {
        for fate in [Fate::Unsent, Fate::Unanswered] {
            start_and_die(&stage, &proxy, what, path, fate).await?;
        }
    }
    let mut longest = Duration::ZERO;
    let with_changes = STREAM.iter().map(|step| (step, true)).chain(IDLE.iter().map(|step| (step, false)));
    for ((what, path), has_changes) in with_changes {
        for fate in [Fate::Unsent, Fate::Unanswered] {
            let began = Instant::now();
            let mut daemon = stage.home.run()?;
            stage.catch_up(&mut daemon).await.with_context(|| format!("before {what}"))?;
            longest = longest.max(began.elapsed());
            let struck = proxy.struck();
            proxy.arm(path, fate);
            proxy.victim(daemon.pid());
            if has_changes {
                change(&stage).await?;
            }
            bury(&proxy, struck, daemon, what).await?;
            change(&stage).await?;
        }
    }
    for (what, path) in RESTART {
        for fate in [Fate::Unsent, Fate::Unanswered] {
            start_and_die(&stage, &proxy, what, path, fate).await?;
        }
    }
    let began = Instant::now();
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    longest = longest.max(began.elapsed());
    eprintln!("{} deaths, the slowest restart took {longest:?}", proxy.struck());
    ensure!(longest < RESTART_WITHIN, "a restart took {longest:?}");
    assert_told_once(&stage).await?;
    daemon.terminate()
}

async fn until_struck(proxy: &KafkaProxy, before: u64) -> Result<()> {
    eventually(SOON, "the daemon is frozen", async || {
        Ok(if proxy.struck() > before { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await
}

/// A daemon is frozen with its commit on the way, and another takes over. Neither the late commit nor the daemon when it
/// wakes up is let in.
#[tokio::test(flavor = "multi_thread")]
async fn h94_a_daemon_that_wakes_up_is_fenced() -> Result<()> {
    let (stage, proxy) = stage("kafka-zombie").await?;
    let mut frozen = stage.home.run()?;
    stage.catch_up(&mut frozen).await?;
    proxy.arm(&[PARTITIONS, COMMIT], Fate::Late);
    proxy.victim(frozen.pid());
    change(&stage).await?;
    until_struck(&proxy, 0).await?;

    let second = stage.second_home()?;
    let mut daemon = second.run()?;
    // What a broken line does in the end.
    let terminate =
        format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
    stage.source.execute(DATABASE, &terminate).await?;
    let began = Instant::now();
    stage.catch_up(&mut daemon).await?;
    ensure!(began.elapsed() < RESTART_WITHIN, "taking over took {:?}", began.elapsed());

    proxy.release();
    process::signal("CONT", &[frozen.pid()]);
    change(&stage).await?;
    let status = frozen.wait_ended(SOON)?;
    ensure!(status.code() == Some(17), "the daemon that woke up ended with {status}");
    let log = frozen.log();
    ensure!(log.contains("another daemon took over sink \"events\""), "it does not say why");
    stage.catch_up(&mut daemon).await?;
    assert_told_once(&stage).await?;
    daemon.terminate()
}

/// A daemon is frozen when it has seen what a dead one left open, and another takes over. The first wakes up, and ends
/// nothing: that is for whoever has the slot.
#[tokio::test(flavor = "multi_thread")]
async fn h94_a_daemon_that_starts_beside_another_fences_nobody() -> Result<()> {
    let (stage, proxy) = stage("kafka-beside").await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    daemon.kill9();
    start_and_die(&stage, &proxy, "the take-over's commit", &[TAKE_OVER, COMMIT], Fate::Unsent).await?;

    let struck = proxy.struck();
    proxy.arm(&[LOOK, LOOK, LOOK, LOOK, LOOK], Fate::Late);
    let mut frozen = stage.home.run()?;
    proxy.victim(frozen.pid());
    until_struck(&proxy, struck).await?;
    let second = stage.second_home()?;
    let mut daemon = second.run()?;
    stage.catch_up(&mut daemon).await?;

    proxy.release();
    process::signal("CONT", &[frozen.pid()]);
    eventually(SOON, "the daemon that woke up stands by", async || {
        let stands_by = frozen.log().contains("standing by");
        Ok(if stands_by { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await?;
    change(&stage).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(!daemon.log().contains("will be tried again"), "the daemon that streams was fenced");
    frozen.terminate()?;
    assert_told_once(&stage).await?;
    daemon.terminate()
}

/// A table that went while no daemon ran is noted once, whenever the daemon dies that notes it.
#[tokio::test(flavor = "multi_thread")]
async fn h33_death_while_the_end_of_a_table_is_noted() -> Result<()> {
    let (stage, proxy) = stage("kafka-gone-table").await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    daemon.kill9();
    stage.source.execute(DATABASE, "UPDATE churn_full SET id = id + 1000; DROP TABLE churn_full").await?;
    for (what, path) in GONE {
        for fate in [Fate::Unsent, Fate::Unanswered] {
            start_and_die(&stage, &proxy, what, path, fate).await?;
        }
    }
    let mut daemon = stage.home.run()?;
    let client = stage.source.connect(DATABASE).await?;
    daemon.wait_told_caught_up(&client, &["streaming", "quarantined"], SOON).await?;
    let records = read_committed(&stage.kafka, "tailwater.state-events-src")?.into_iter();
    let states: Vec<String> = records
        .map(|record| record.text())
        .filter_map(|(key, state)| state.filter(|_| key.is_some_and(|key| key.contains("churn_full"))))
        .collect();
    let noted = states.iter().filter(|state| state.contains("quarantined")).count();
    ensure!(noted == 1 && states.last().is_some_and(|last| last.contains("was dropped")), "noted: {states:?}");
    assert_told_once(&stage).await?;
    daemon.terminate()
}

/// Topics whose partitions the broker does not take for part of a transaction, and of what it takes them instead.
const ROWS_FORGOTTEN: (&str, &str) = ("src.public.accounts_a", "src.public.stands_in_");
const STATE_FORGOTTEN: (&str, &str) = ("tailwater.state-events-src", "tailwater.stands-in-for-it");
const BOUNDS_FORGOTTEN: (&str, &str) = ("src.transaction", "src.stands-in-1");

/// Brings the daemon to where it would commit, with partitions that the broker does not know of, and it dies.
async fn leave_open(
    stage: &Stage,
    proxy: &KafkaProxy,
    daemon: Daemon,
    topics: &[(&'static str, &'static str)],
) -> Result<()> {
    proxy.forget(topics);
    let struck = proxy.struck();
    proxy.arm(&[CHANGES, COMMIT], Fate::Unsent);
    proxy.victim(daemon.pid());
    change(stage).await?;
    bury(proxy, struck, daemon, "the commit").await
}

/// Starts a daemon whose broker forgets nothing any more; it says this, and goes on.
async fn start_and_say(stage: &Stage, proxy: &KafkaProxy, what: &str) -> Result<Daemon> {
    proxy.forget(&[]);
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    ensure!(daemon.log().contains(what), "it does not say: {what}");
    change(stage).await?;
    stage.catch_up(&mut daemon).await?;
    Ok(daemon)
}

/// Brokers that leave the end of a transaction out (KAFKA-20734) would tell what was given up with what is told again, by the
/// next commit, and hide what was committed until then. The first is ended at the start; the second stays.
#[tokio::test(flavor = "multi_thread")]
async fn h94_what_brokers_leave_open_is_not_told_twice() -> Result<()> {
    // This broker asks nobody whether a transaction has a partition.
    let lax = Options::default().set("transaction.partition.verification.enable", "false");
    let (stage, proxy) = stage_with("kafka-left-open", lax, "provide_transaction_metadata = true\n").await?;
    for (topic, instead) in [ROWS_FORGOTTEN, STATE_FORGOTTEN, BOUNDS_FORGOTTEN] {
        let partitions = if topic.starts_with("src.public.") { 3 } else { 1 };
        stage.kafka.create_topic(instead, partitions, &[]).await?;
    }
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    let told = stage.records("accounts_a")?.len();

    // Committed, and left open in one topic.
    proxy.forget(&[ROWS_FORGOTTEN, BOUNDS_FORGOTTEN]);
    change(&stage).await?;
    stage.catch_up(&mut daemon).await?;
    ensure!(stage.records("accounts_a")?.len() == told, "the end is there");
    daemon.kill9();
    let daemon = start_and_say(&stage, &proxy, "is shown with the next message").await?;

    // Not committed, and left open.
    leave_open(&stage, &proxy, daemon, &[ROWS_FORGOTTEN, BOUNDS_FORGOTTEN]).await?;
    let daemon = start_and_say(&stage, &proxy, "ended what brokers had left open").await?;
    leave_open(&stage, &proxy, daemon, &[ROWS_FORGOTTEN, STATE_FORGOTTEN]).await?;
    let daemon = start_and_say(&stage, &proxy, "ended what brokers had left open").await?;

    // The same, with deaths while it is ended.
    leave_open(&stage, &proxy, daemon, &[ROWS_FORGOTTEN, STATE_FORGOTTEN]).await?;
    proxy.forget(&[]);
    for fate in [Fate::Unsent, Fate::Unanswered] {
        start_and_die(&stage, &proxy, "giving up", &[GIVING_UP], fate).await?;
    }
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    assert_told_once(&stage).await?;
    daemon.terminate()?;
    let boundaries = read_committed(&stage.kafka, BOUNDS_FORGOTTEN.0)?;
    let ids: BTreeSet<_> = boundaries.iter().map(|boundary| &boundary.key).collect();
    ensure!(ids.len() == boundaries.len(), "{} messages of {} boundaries", boundaries.len(), ids.len());

    // A topic that is gone, of a table that is mapped no more, has nothing open.
    let delete = ["--bootstrap-server", &stage.kafka.bootstrap(), "--delete", "--topic", "src.public.churn_full"];
    stage.kafka.tool("org.apache.kafka.tools.TopicCommand", &delete)?;
    let others = "source = \"src\"\nsink = \"events\"\n\n[topic]\ntables = [\"public.accounts_*\", \"public.moves\"]\n\
                  partitions = 3\ndecimal_handling_mode = \"string\"\n";
    let home = stage.home_with(others)?;
    let mut daemon = home.run()?;
    stage.catch_up(&mut daemon).await?;

    // Changes that are shown, with their checkpoint hidden: to tell them again would be wrong, and so would be anything else.
    proxy.forget(&[STATE_FORGOTTEN]);
    change(&stage).await?;
    stage.catch_up(&mut daemon).await?;
    daemon.kill9();
    let mut daemon = home.run()?;
    eventually(SOON, "the daemon says why it waits", async || {
        let says = daemon.log().contains("which the checkpoint does not cover: brokers left the end");
        Ok(if says { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
    })
    .await?;
    daemon.terminate()
}
