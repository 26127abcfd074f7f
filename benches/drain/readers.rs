//! Reading a backlog's stream with no sink behind: what no drain can be faster than.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use tailwater::checkpoint::UnixMicros;
use tailwater::config::JournalConfig;
use tailwater::frame::Boundary;
use tailwater::journal::{Journal, Options};
use tailwater::ledger::{JournalSynced, Ledger};
use tailwater::lsn::Lsn;
use tailwater::postgres::url::PgUrl;
use tailwater::source::stream::{ConfirmBy, Stream, StreamObserver, StreamShared};
use tailwater::wire::{Gulp, ReplicationConnection, Reply, ValueForm};

use crate::cpu;
use crate::drain::{DEADLINE, Measure};
use crate::servers::{Servers, program};
use crate::support::process;
use crate::support::scratch::Scratch;

/// As in tailwater's stream: a pause after a small read while more is coming, so that small packets are read together.
const NAP: Duration = Duration::from_micros(300);
const LARGE_GULP: usize = 64 * 1024;
/// Shorter than `wal_sender_timeout`.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

pub fn recvlogical(servers: &Servers, database: &str, end: Lsn) -> Result<Measure> {
    let began = Instant::now();
    let mut child = program("pg_recvlogical")?
        .args(["--start", "--slot=reader", "--file=/dev/null", "--fsync-interval=0", "--no-loop"])
        .args(["--option=proto_version=1", "--option=publication_names=native", "--option=binary=true"])
        .arg(format!("--endpos={end}"))
        .arg(format!("--dbname={}", servers.url(&servers.source, database)))
        .stdin(Stdio::null())
        .spawn()
        .context("start pg_recvlogical")?;
    let pid = child.id();
    let mut source_cpu = Walsender::default();
    // Not waited for at once: until then `/proc` says what it cost.
    while process::is_alive(pid) {
        source_cpu.look(servers);
        std::thread::sleep(Duration::from_millis(5));
    }
    let measure = Measure {
        seconds: began.elapsed().as_secs_f64(),
        source_cpu: source_cpu.seconds,
        own_cpu: cpu::seconds(pid),
        ..Measure::default()
    };
    let status = child.wait()?;
    if !status.success() {
        bail!("pg_recvlogical ended with {status}");
    }
    Ok(measure)
}

/// Reads with tailwater's connection and throws the bytes away.
pub fn wire(servers: &Servers, database: &str, end: Lsn) -> Result<Measure> {
    let own_before = cpu::own_seconds();
    let began = Instant::now();
    let mut connection = start(servers, database)?;
    connection.set_timeout(Some(Duration::from_millis(100)))?;
    let mut boundary = Boundary::new(Lsn::ZERO);
    let mut status = Instant::now();
    let mut read = Instant::now();
    while boundary.end_lsn < end {
        let before = Instant::now();
        if let Gulp::Bytes(count) = connection.gulp()? {
            let now = Instant::now();
            loop {
                let (scan, walked) = boundary.walk(connection.pending(), usize::MAX);
                walked?;
                if scan.bytes == 0 {
                    break;
                }
                connection.take(scan.bytes);
            }
            let is_busy = now - before < Duration::from_millis(1) || now - read < Duration::from_millis(1);
            if is_busy && count < LARGE_GULP {
                std::thread::sleep(NAP);
            }
            read = Instant::now();
        }
        if status.elapsed() > STATUS_INTERVAL {
            status = Instant::now();
            connection.send_status(Lsn::ZERO, Reply::NotNeeded)?;
        }
        if began.elapsed() > DEADLINE {
            bail!("not read within {DEADLINE:?}");
        }
    }
    let mut source_cpu = Walsender::default();
    let measure = Measure {
        seconds: began.elapsed().as_secs_f64(),
        own_cpu: cpu::own_seconds() - own_before,
        source_cpu: source_cpu.look(servers),
        ..Measure::default()
    };
    connection.finish()?;
    Ok(measure)
}

/// Reads with tailwater's stream into a journal, as the daemon does.
pub fn journal(servers: &Servers, database: &str, end: Lsn) -> Result<Measure> {
    let scratch = Scratch::new("journal")?;
    let own_before = cpu::own_seconds();
    let began = Instant::now();
    let config = JournalConfig::default();
    let journal = Journal::open(Options {
        dir: scratch.path().join("src"),
        retention: config.retention,
        max_bytes: config.max_bytes,
        segment_bytes: config.segment_bytes,
        memory_bytes: config.memory_bytes,
        fsync: false,
        system_identifier: None,
    })?;
    let at = Lsn(1);
    let shared = StreamShared::new(Ledger::journal_rules(JournalSynced::after_sync(Lsn::ZERO)));
    let connection = start(servers, database)?;
    let stream = Stream::new(connection, journal.clone(), shared.clone(), ConfirmBy::Sinks, at, Box::new(Unheard))?;
    let mut ended = stream.spawn("bench")?;
    while shared.received() < end {
        if let Ok(outcome) = ended.try_recv() {
            outcome?;
            bail!("the stream ended");
        }
        if began.elapsed() > DEADLINE {
            bail!("not read within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let seconds = began.elapsed().as_secs_f64();
    let source_cpu = Walsender::default().look(servers);
    let own_cpu = cpu::own_seconds() - own_before;
    shared.stop();
    tokio::task::block_in_place(|| ended.blocking_recv())??;
    Ok(Measure { seconds, source_cpu, own_cpu, ..Measure::default() })
}

fn start(servers: &Servers, database: &str) -> Result<ReplicationConnection> {
    let url = PgUrl::parse(&servers.url(&servers.source, database))?;
    let mut connection = ReplicationConnection::connect(&url, "bench reader")?;
    connection.start_replication("reader", "native", Lsn::ZERO, ValueForm::Binary)?;
    Ok(connection)
}

struct Unheard;

impl StreamObserver for Unheard {
    fn received(&mut self, _: usize, _: Lsn, _: Option<UnixMicros>) {}
}

/// The one walsender of the source, found among the postmaster's children by its title.
#[derive(Default)]
struct Walsender {
    pid: Option<u32>,
    seconds: f64,
}

impl Walsender {
    /// Its CPU seconds; the last ones known when it is gone.
    fn look(&mut self, servers: &Servers) -> f64 {
        if self.pid.is_none() {
            let children = servers.source.postmaster_pid().map(process::children).unwrap_or_default();
            self.pid = children.into_iter().find(|pid| {
                let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&title).contains("walsender")
            });
        }
        self.seconds = self.seconds.max(self.pid.map_or(0.0, cpu::seconds));
        self.seconds
    }
}
