//! `tailwater demo`: the whole of it on two private Postgres clusters, a ClickHouse server and, where it is asked for, a
//! Kafka broker, with an online school's data.
//!
//! ```text
//!                                                                ┌──▶ warehouse ◀──┐
//!  writer ──▶ source ──▶ tailwater setup, run (this same binary) ┤                 ├── watchers
//!                                  └── /status ──▶ screen        ├──▶ ClickHouse ◀─┤
//!                                                                └──▶ Kafka ───────┴── a consumer
//! ```
//!
//! Where ClickHouse is not installed it says so and goes on with Postgres alone.
//!
//! Everything is in one scratch directory. Whatever way the demo ends, its processes end with it, and the directory goes;
//! where it was killed, the next demo removes what was left.

mod clickhouse;
mod cluster;
mod daemon;
mod events;
mod kafka;
mod process;
mod scratch;
mod screen;
mod summary;
mod topics;
mod writer;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_postgres::Client;

use self::clickhouse::ClickHouse;
use self::cluster::{Binaries, Cluster, random_password};
use self::daemon::{CLICKHOUSE_SINK, Daemon, KAFKA_SINK, POSTGRES_SINK, SOURCE, Servers, WAREHOUSE};
use self::events::{Reader, Seen};
use self::kafka::{Installed, Kafka};
use self::scratch::Scratch;
use self::screen::{Screen, one_line};
use self::summary::{Ends, Summary, ask};
use self::writer::{Eye, Watcher, Writer};
use super::{runtime, say_error};
use crate::cli::{Cli, Demo, Exit};
use crate::postgres::error::describe;
use crate::telemetry::human::{count, seconds};
use crate::telemetry::metrics::TableState;
use crate::telemetry::status::{SourceState, Status};

const SOURCE_SCHEMA: &str = include_str!("../../../schemas/source/lessons.sql");
const SOURCE_GRANTS: &str = include_str!("../../../deploy/grants/source.sql");
const WAREHOUSE_SCHEMA: &str = include_str!("../../../schemas/postgres/lessons.sql");
const WAREHOUSE_GRANTS: &str = include_str!("../../../deploy/grants/warehouse.sql");
const CLICKHOUSE_VIEWS: &str = include_str!("../../../schemas/clickhouse/lessons.sql");

/// 60 courses have 28,800 lessons.
const COURSES: i32 = 60;

/// The first copy takes a second or two; a loaded machine may need longer.
const COPY_WITHIN: Duration = Duration::from_secs(180);

/// For the first changes to be seen, past the time that was asked for.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

/// Between two frames, of the copy and of the table.
const COPY_FRAME: Duration = Duration::from_millis(50);
const FRAME: Duration = Duration::from_millis(500);

/// What the names of the source's topics begin with.
const TOPICS: &str = "lms.public.";

pub fn run(cli: &Cli, args: &Demo) -> Exit {
    // Children must be started from a thread that lives as long as the process: `block_on` stays on this one.
    match runtime().block_on(demo(cli, args)) {
        Ok(exit) => exit,
        Err(error) => {
            say_error(&format!("error: {error:#}"));
            Exit::Failed
        }
    }
}

async fn demo(cli: &Cli, args: &Demo) -> Result<Exit> {
    let mut signals = Signals::new()?;
    let mut screen = Screen::new(cli.color);
    let mut house =
        House { daemon: None, clickhouse: None, kafka: None, clusters: Vec::new(), scratch: Scratch::new()? };
    let outcome = tokio::select! {
        biased;
        () = signals.next() => None,
        outcome = play(&mut house, &mut screen, args) => Some(outcome),
    };
    screen.settle();
    let outcome = match outcome {
        Some(Err(error)) => Some(Err(house.explain(error))),
        other => other,
    };
    if outcome.is_none() {
        screen.line("\nstopping the daemon and its servers …");
    }
    tokio::select! {
        () = house.close() => {}
        // Asked twice: at once then. Dropping the house kills what is left in it.
        () = signals.next() => {}
    }
    drop(house);
    match outcome {
        None => {
            screen.line("everything is gone again");
            Ok(Exit::Done)
        }
        Some(outcome) => outcome,
    }
}

/// What there is to take down. Dropped, whatever still runs is killed and the directory removed.
struct House {
    daemon: Option<Daemon>,
    clickhouse: Option<ClickHouse>,
    kafka: Option<Kafka>,
    clusters: Vec<Cluster>,
    scratch: Scratch,
}

impl House {
    /// The daemon first, as it holds connections to all servers.
    async fn close(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            daemon.stop().await;
        }
        let clickhouse = async {
            if let Some(server) = &mut self.clickhouse {
                server.stop().await;
            }
        };
        let kafka = async {
            if let Some(broker) = &mut self.kafka {
                broker.stop().await;
            }
        };
        let mut clusters = self.clusters.iter_mut();
        let clusters = async {
            match (clusters.next(), clusters.next()) {
                (Some(source), Some(warehouse)) => drop(tokio::join!(source.stop(), warehouse.stop())),
                (Some(only), None) => only.stop().await,
                (None, _) => {}
            }
        };
        tokio::join!(clickhouse, kafka, clusters);
    }

    /// The error with the daemon's last words, before its log goes away with everything else.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let lines = self.daemon.as_ref().map(Daemon::last_lines).unwrap_or_default();
        let text = format!("{error:#}");
        if lines.is_empty() || text.contains(&lines) {
            error
        } else {
            anyhow!("{text}\nthe daemon's last lines:{lines}")
        }
    }
}

/// What asks the demo to end: Ctrl-C, a supervisor, a terminal that is closed.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> Result<Signals> {
        let of = |kind| signal(kind).context("listen for signals");
        Ok(Signals([of(SignalKind::interrupt())?, of(SignalKind::terminate())?, of(SignalKind::hangup())?]))
    }

    /// The next one. Cancel-safe.
    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// The play from the first to the last act. May be dropped at any point.
async fn play(house: &mut House, screen: &mut Screen, args: &Demo) -> Result<Exit> {
    let began = Instant::now();
    let password = random_password()?;
    // Before anything is started: what was asked for and is not there ends the demo.
    let kafka = args.kafka.then(Installed::find).transpose()?;
    make_servers(house, screen, kafka, &password).await?;
    let [source, warehouse] = &house.clusters[..] else { bail!("two servers were not made") };
    fill(source, warehouse, &password, screen).await?;

    let servers = Servers { source, warehouse, clickhouse: house.clickhouse.as_ref(), kafka: house.kafka.as_ref() };
    let daemon = house.daemon.insert(Daemon::configure(&house.scratch, &servers, &password)?);
    daemon.set_up(source).await?;
    let clickhouse = match servers.clickhouse {
        Some(server) => {
            server.execute(CLICKHOUSE_VIEWS).await.context("make ClickHouse's views")?;
            Some(server.client()?)
        }
        None => None,
    };
    let events = servers.kafka.map(|kafka| Reader::start(kafka, TOPICS)).transpose()?;
    screen.done("setup", "publication, slot, state tables; in Postgres its roles have the least rights");
    let writer = Writer::start(source.connect(SOURCE).await?);
    let warehouse_client = warehouse.connect(WAREHOUSE).await?;
    daemon.start().await?;
    screen.done("status", &format!("{}/, as JSON /status, for Prometheus /metrics", daemon.url()));
    say_where_to_look(&servers, &house.scratch, screen);
    let source_client = source.connect(SOURCE).await?;
    let ends = Ends {
        source: &source_client,
        warehouse: &warehouse_client,
        clickhouse: clickhouse.as_ref(),
        events: events.as_ref(),
    };
    watch_copy(daemon, &writer, &ends, screen).await?;
    screen
        .line(&format!("\nstreaming after {}; lessons change all the while\n", seconds(began.elapsed().as_secs_f64())));

    let mut eyes = vec![(POSTGRES_SINK, Eye::Postgres(warehouse.connect(WAREHOUSE).await?))];
    if let Some(server) = servers.clickhouse {
        eyes.push((CLICKHOUSE_SINK, Eye::ClickHouse(server.client()?)));
    }
    if let Some(reader) = &events {
        eyes.push((KAFKA_SINK, Eye::Kafka(reader.checkpoint.clone())));
    }
    let watchers = eyes.into_iter().map(|(sink, eye)| Watcher::start(sink, eye, writer.newest.clone()));
    let watchers: Vec<Watcher> = watchers.collect();
    let length = args.seconds.map(Duration::from_secs);
    watch_stream(daemon, (&writer, &watchers, events.as_ref()), screen, length).await?;

    screen.settle();
    screen.line("\nthe writer stops; waiting until all has arrived and the views are refreshed …\n");
    let last = writer.stop().await?;
    let summary = Summary::take(&ends, daemon, &last).await?;
    let mut delays = Vec::new();
    for watcher in watchers {
        delays.push(watcher.stop().await?);
    }
    let status = daemon.status().await?.unwrap_or_default();
    screen.line(&summary.render(&last, &status, &delays));
    if summary.is_equal() {
        return Ok(Exit::Done);
    }
    bail!("source and warehouses differ")
}

/// How to look further.
fn say_where_to_look(servers: &Servers<'_>, scratch: &Scratch, screen: &mut Screen) {
    let warehouse = servers.warehouse;
    let psql = format!("psql -h {} -p {} -U postgres {WAREHOUSE}", warehouse.socket().display(), warehouse.port);
    screen.done("warehouse", &psql);
    if let Some(server) = servers.clickhouse {
        let password = scratch.path().join("password");
        let curl = format!("curl -u \"tailwater:$(cat {})\" {}", password.display(), server.address());
        screen.done("ClickHouse", &format!("{curl} -d 'SHOW TABLES FROM dwh'"));
    }
    if let Some(kafka) = servers.kafka {
        screen.done("Kafka", &kafka.read_by_hand(&format!("{TOPICS}course")));
    }
    screen.line("");
}

async fn make_servers(house: &mut House, screen: &mut Screen, kafka: Option<Installed>, password: &str) -> Result<()> {
    let binaries = Binaries::find()?;
    if let Some(installed) = kafka {
        house.kafka = Some(Kafka::new(&house.scratch, installed, password)?);
    }
    if let Some(python) = ClickHouse::find() {
        house.clickhouse = Some(ClickHouse::start(&house.scratch, python, password)?);
    }
    for name in ["source", "warehouse"] {
        house.clusters.push(Cluster::new(name, &house.scratch, &binaries)?);
    }
    if let Some(kafka) = &mut house.kafka {
        kafka.start().await?;
    }
    for cluster in &mut house.clusters {
        cluster.start(&binaries).await?;
    }
    let ports: Vec<String> = house.clusters.iter().map(|cluster| cluster.port.to_string()).collect();
    screen
        .done("servers", &format!("PostgreSQL {} twice, ports {} of 127.0.0.1", binaries.version, ports.join(" and ")));
    match &mut house.clickhouse {
        Some(server) => match server.ready().await {
            Ok(version) => {
                screen.done("", &format!("ClickHouse {version}, ports {} and {}", server.http_port, server.tcp_port));
            }
            Err(error) => {
                server.stop().await;
                house.clickhouse = None;
                screen.done("", &format!("no ClickHouse: Postgres alone, for {error:#}"));
            }
        },
        None => screen.done("", "no ClickHouse: it is not installed (tests/install.sh demo does it); Postgres alone"),
    }
    if let Some(kafka) = &mut house.kafka {
        let version = kafka.ready().await?;
        screen.done("", &format!("Kafka {version}, one node, port {}", kafka.port));
    }
    screen.done("files", &format!("all in {}", house.scratch.path().display()));
    Ok(())
}

/// Schemas, rows and the daemon's role, as an owner would make them.
async fn fill(source: &Cluster, warehouse: &Cluster, password: &str, screen: &mut Screen) -> Result<()> {
    for (cluster, database) in [(source, SOURCE), (warehouse, WAREHOUSE)] {
        execute(&cluster.connect("postgres").await?, &format!("CREATE DATABASE {database}")).await?;
    }
    let (source, warehouse) = (source.connect(SOURCE).await?, warehouse.connect(WAREHOUSE).await?);
    let role_password = format!("ALTER ROLE tailwater PASSWORD '{password}'");
    for sql in [WAREHOUSE_SCHEMA, WAREHOUSE_GRANTS, &role_password] {
        execute(&warehouse, sql).await.context("prepare the warehouse")?;
    }
    for sql in [SOURCE_SCHEMA, SOURCE_GRANTS, &role_password] {
        execute(&source, sql).await.context("prepare the source")?;
    }
    let rows = ask(&source, &format!("SELECT public.lessons_generate({COURSES})")).await.context("make lessons")?;
    let lessons: i64 = rows.first().context("lessons_generate returns a row")?.get(0);
    // The copies' progress bars go by the planner's estimates.
    execute(&source, "ANALYZE").await?;
    screen.done(
        "source",
        &format!("{} lessons of {COURSES} courses; a writer will change them", count(lessons.unsigned_abs())),
    );
    Ok(())
}

async fn execute(client: &Client, sql: &str) -> Result<()> {
    client.batch_execute(sql).await.map_err(|error| anyhow!("{}", describe(&error)))
}

/// Until every table streams.
async fn watch_copy(daemon: &mut Daemon, writer: &Writer, ends: &Ends<'_>, screen: &mut Screen) -> Result<()> {
    let began = Instant::now();
    let mut bars = screen.bars();
    loop {
        let status = daemon.status().await?.unwrap_or_default();
        bars.show(&status);
        refuse_trouble(&status)?;
        let is_copied = status.tables.iter().all(|table| table.state == TableState::Streaming);
        if !status.tables.is_empty() && is_copied && ends.have_read_copies()? {
            break;
        }
        if writer.has_failed() {
            bail!("the writer failed during the first copy");
        }
        if began.elapsed() > COPY_WITHIN {
            bail!("the first copy is not done after {} s", COPY_WITHIN.as_secs());
        }
        tokio::time::sleep(COPY_FRAME).await;
    }
    let copied = ends.copied().await?;
    bars.finish(&copied);
    drop(bars);
    if screen.is_terminal() {
        // The bars leave the cursor behind the last of them.
        screen.line("");
    }
    if !screen.is_terminal() {
        for (sink, table, rows) in copied {
            screen.done("copied", &format!("{table} to {sink}: {} rows", count(rows)));
        }
    }
    Ok(())
}

/// What a demo cannot go on with.
fn refuse_trouble(status: &Status) -> Result<()> {
    for source in &status.sources {
        if let SourceState::Halted { reason, hint } = &source.state {
            bail!("the daemon halted: {}\nhint: {hint}", reason.replace('_', " "));
        }
    }
    match status.tables.iter().find(|table| table.state == TableState::Quarantined) {
        Some(table) => bail!("table {} is quarantined: {}", table.table, table.reason.as_deref().unwrap_or_default()),
        None => Ok(()),
    }
}

/// Until the time is over, if it ever is, and there was something to be seen: on a busy machine that may take longer.
async fn watch_stream(
    daemon: &mut Daemon,
    (writer, watchers, events): (&Writer, &[Watcher], Option<&Reader>),
    screen: &mut Screen,
    length: Option<Duration>,
) -> Result<()> {
    let began = Instant::now();
    loop {
        let status = daemon.status().await?.unwrap_or_default();
        refuse_trouble(&status)?;
        let left = length.map(|length| length.saturating_sub(began.elapsed()));
        let is_over = left.is_some_and(|left| left.is_zero());
        let has_shown = watchers.iter().all(|watcher| watcher.last.borrow().is_some()) && have_told(events)?;
        let seen = watchers.iter().filter_map(|watcher| Some((watcher.sink, watcher.last.borrow().clone()?)));
        let seen = seen.map(|(sink, seen)| {
            format!("{}, visible in {sink} after {}", seen.what, seconds(seen.delay.as_secs_f64()))
        });
        let mut seen: Vec<String> = seen.collect();
        if seen.is_empty() {
            seen.push("looking for the first change".to_owned());
        }
        let end = left.map_or_else(
            || "Ctrl-C ends it".to_owned(),
            |left| format!("ends in {} s, Ctrl-C ends it now", left.as_secs() + 1),
        );
        let mut below: Vec<String> = seen.iter().map(|seen| format!("just now    {seen}")).collect();
        let mut line = format!("{}; {}", one_line(&status), seen.join("; "));
        if let Some(reader) = events {
            let lines = message_lines(&mut *reader.seen()?);
            line.extend(lines.iter().take(2).map(|line| format!("; {line}")));
            let headings = std::iter::once("in Kafka").chain(std::iter::repeat(""));
            below.extend(headings.zip(lines).map(|(heading, line)| format!("{heading:<12}{line}")));
        }
        below.extend([format!("status      {}/", daemon.url()), format!("            {end}")]);
        screen.frame(&status, &below, &line);
        let is_late = length.is_some_and(|length| began.elapsed() > length + SHOWN_WITHIN);
        if is_over && (has_shown || is_late) || writer.has_failed() || watchers.iter().any(Watcher::has_failed) {
            return Ok(());
        }
        tokio::time::sleep(left.filter(|left| !left.is_zero()).map_or(FRAME, |left| left.min(FRAME))).await;
    }
}

/// Whether a change was read from Kafka, where there is one.
fn have_told(events: Option<&Reader>) -> Result<bool> {
    let Some(reader) = events else { return Ok(true) };
    let seen = reader.seen()?;
    Ok(seen.messages > seen.copies)
}

/// How many messages come, and the newest of them.
fn message_lines(seen: &mut Seen) -> Vec<String> {
    let rate = count(seen.rate().round() as u64);
    let total = format!("{rate} messages/s, {} read back", count(seen.messages));
    std::iter::once(total).chain(seen.newest().map(str::to_owned)).collect()
}
