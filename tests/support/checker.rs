//! Watches a running pair of databases for broken promises, all the time and through any kill:
//!
//! - the bank's total at the sink is constant at every instant,
//! - the sink equals the source at the LSN that its checkpoint names, as the oracle knows it,
//! - the checkpoint never goes back,
//! - the source was never told more than the sink held.
//!
//! The promise begins when all tables are streaming; from then on it must hold without a gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tailwater::lsn::Lsn;
use tokio_postgres::Client;

use super::cluster::{Cluster, connect};
use super::daemon::checkpoint;
use super::oracle::{self, Oracle, digest};
use super::watch::{Findings, Watch};
use super::workload::{BANK_TOTAL, BANK_TOTAL_SQL};

/// Looks at totals and at the slot are cheap; a whole comparison reads every table.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const COMPARE_EVERY: Duration = Duration::from_millis(100);
const RECONNECT_EVERY: Duration = Duration::from_millis(50);

pub struct Checker {
    pair: Arc<Pair>,
    watch: Watch,
}

/// How often was looked.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    pub totals: u64,
    pub comparisons: u64,
    pub confirmations: u64,
}

struct Pair {
    source_url: String,
    sink_url: String,
    oracle: Arc<Oracle>,
    findings: Arc<Findings>,
    /// All tables were seen streaming.
    armed: AtomicBool,
    totals: AtomicU64,
    comparisons: AtomicU64,
    confirmations: AtomicU64,
}

impl Checker {
    pub fn start(source: &Cluster, sink: &Cluster, database: &str, oracle: &Arc<Oracle>) -> Checker {
        let pair = Arc::new(Pair {
            source_url: source.socket_url(database),
            sink_url: sink.socket_url(database),
            oracle: Arc::clone(oracle),
            findings: Arc::default(),
            armed: AtomicBool::new(false),
            totals: AtomicU64::new(0),
            comparisons: AtomicU64::new(0),
            confirmations: AtomicU64::new(0),
        });
        let tasks = vec![
            tokio::spawn(Arc::clone(&pair).watch_totals()),
            tokio::spawn(Arc::clone(&pair).watch_confirmations()),
            tokio::spawn(Arc::clone(&pair).compare()),
        ];
        let watch = Watch::new(&pair.findings, tasks);
        Checker { pair, watch }
    }

    pub fn oracle(&self) -> &Oracle {
        &self.pair.oracle
    }

    pub fn tally(&self) -> Tally {
        self.pair.tally()
    }

    /// Fails if a promise was broken so far.
    pub fn verdict(&self) -> Result<()> {
        self.pair.findings.verdict()
    }

    pub async fn stop(self) -> Result<Tally> {
        self.watch.stop().await?;
        Ok(self.pair.tally())
    }
}

impl Pair {
    fn tally(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Pair { totals, comparisons, confirmations, .. } = self;
        Tally { totals: of(totals), comparisons: of(comparisons), confirmations: of(confirmations) }
    }

    async fn watch_totals(self: Arc<Self>) {
        while self.findings.go_on() {
            // An error is a killed server's: connect again.
            let _ = self.watch_totals_connected().await;
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn watch_totals_connected(&self) -> Result<()> {
        let sink = connect(&self.sink_url).await?;
        while self.findings.go_on() {
            if self.armed.load(Ordering::Relaxed) {
                let total: Option<i64> = sink.query_one(BANK_TOTAL_SQL, &[]).await?.get(0);
                self.totals.fetch_add(1, Ordering::Relaxed);
                if total != Some(BANK_TOTAL) {
                    self.findings.find(format!("the sink's bank holds {total:?}, not {BANK_TOTAL}"));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn watch_confirmations(self: Arc<Self>) {
        while self.findings.go_on() {
            let _ = self.watch_confirmations_connected().await;
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn watch_confirmations_connected(&self) -> Result<()> {
        let source = connect(&self.source_url).await?;
        let sink = connect(&self.sink_url).await?;
        while self.findings.go_on() {
            // The source first: read in this order, an advance between the two can only look safer than it was.
            let confirmed = confirmed(&source).await?;
            let held = checkpoint(&sink).await?;
            if let (Some(confirmed), Some(held)) = (confirmed, held) {
                self.confirmations.fetch_add(1, Ordering::Relaxed);
                if confirmed > held {
                    self.findings.find(format!("the source was told {confirmed}, the sink holds {held}"));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    async fn compare(self: Arc<Self>) {
        let mut last = Lsn::ZERO;
        while self.findings.go_on() {
            let _ = self.compare_connected(&mut last).await;
            tokio::time::sleep(RECONNECT_EVERY).await;
        }
    }

    async fn compare_connected(&self, last: &mut Lsn) -> Result<()> {
        let sink = connect(&self.sink_url).await?;
        while self.findings.go_on() {
            if let Some(state) = digest::sink_state(&sink, self.oracle.tables()).await? {
                self.judge(last, &state).await;
            }
            tokio::time::sleep(COMPARE_EVERY).await;
        }
        Ok(())
    }

    async fn judge(&self, last: &mut Lsn, state: &digest::SinkState) {
        let at = state.end_lsn;
        if at < *last {
            self.findings.find(format!("the checkpoint went back from {last} to {at}"));
        }
        *last = at;
        let streaming = state.is_streaming(self.oracle.tables().len());
        if !streaming {
            if self.armed.load(Ordering::Relaxed) {
                self.findings.find(format!("at {at} tables that were streaming are not any more: {:?}", state.states));
            }
            return;
        }
        match self.oracle.digests_at(at).await {
            Err(err) => self.findings.find(format!("{err:#}")),
            Ok(expected) => {
                for ((table, expected), found) in self.oracle.tables().iter().zip(&expected).zip(&state.digests) {
                    if expected != found {
                        let source = &table.source;
                        self.findings.find(format!("at {at} {source} had {expected:?}, its mirror has {found:?}"));
                    }
                }
                self.comparisons.fetch_add(1, Ordering::Relaxed);
                self.armed.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// What the source was told by the daemon, whose slot is the only lasting one beside the oracle's.
pub async fn confirmed(source: &Client) -> Result<Option<Lsn>> {
    let sql = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots \
               WHERE slot_type = 'logical' AND NOT temporary AND slot_name <> $1";
    let row = source.query_opt(sql, &[&oracle::NAME]).await?;
    let text: Option<String> = row.and_then(|row| row.get(0));
    Ok(text.map(|text| text.parse()).transpose()?)
}
