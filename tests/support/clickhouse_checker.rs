//! Watches, all the time that daemon and server are killed, the promises that ClickHouse's tables keep beside each other:
//!
//! - the newest version of a key never goes down while its table streams, not even of a key that is deleted;
//! - the rows at the checkpoint are what the source held there, wherever nothing ahead of it has come yet. What is ahead is
//!   allowed: rows come first and the checkpoint after them;
//! - the source is never told more than the checkpoint.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tailwater::lsn::Lsn;

use super::checker::confirmed;
use super::clickhouse::{ClickHouse, Client};
use super::cluster::{Cluster, connect};
use super::oracle::Oracle;
use super::oracle::digest::{Digest, Table, line};
use super::oracle::pgoutput::Value;
use super::watch::{Findings, Watch};

const LOOK_EVERY: Duration = Duration::from_millis(100);

pub struct ClickHouseChecker {
    pair: Arc<Pair>,
    watch: Watch,
}

/// How often was looked.
#[derive(Clone, Copy, Debug)]
pub struct Tally {
    /// At a table's versions.
    pub looks: u64,
    /// Tables at the checkpoint with nothing ahead of it.
    pub compared: u64,
    /// Tables of which something was ahead.
    pub ahead: u64,
    pub confirmations: u64,
}

struct Pair {
    source_url: String,
    server: Client,
    oracle: Arc<Oracle>,
    findings: Arc<Findings>,
    looks: AtomicU64,
    compared: AtomicU64,
    ahead: AtomicU64,
    confirmations: AtomicU64,
}

/// One table at one instant.
struct Look {
    /// Of each key, as the server prints it.
    versions: HashMap<String, u128>,
    /// Of the rows that are not deleted.
    digest: Digest,
}

impl ClickHouseChecker {
    pub fn start(source: &Cluster, server: &ClickHouse, database: &str, oracle: &Arc<Oracle>) -> ClickHouseChecker {
        let pair = Arc::new(Pair {
            source_url: source.socket_url(database),
            server: server.client(),
            oracle: Arc::clone(oracle),
            findings: Arc::default(),
            looks: AtomicU64::new(0),
            compared: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            confirmations: AtomicU64::new(0),
        });
        let tables = oracle.tables().iter();
        let mut tasks: Vec<_> =
            tables.map(|table| tokio::spawn(Arc::clone(&pair).watch_table(table.clone()))).collect();
        tasks.push(tokio::spawn(Arc::clone(&pair).watch_confirmations()));
        let watch = Watch::new(&pair.findings, tasks);
        ClickHouseChecker { pair, watch }
    }

    /// Fails if a promise was broken so far.
    pub fn verdict(&self) -> Result<()> {
        self.pair.findings.verdict()
    }

    pub fn tally(&self) -> Tally {
        self.pair.tally()
    }

    pub async fn stop(self) -> Result<Tally> {
        self.watch.stop().await?;
        Ok(self.pair.tally())
    }
}

impl Pair {
    fn tally(&self) -> Tally {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Pair { looks, compared, ahead, confirmations, .. } = self;
        Tally { looks: of(looks), compared: of(compared), ahead: of(ahead), confirmations: of(confirmations) }
    }

    async fn watch_table(self: Arc<Self>, table: Table) {
        let mut known = HashMap::new();
        while self.findings.go_on() {
            // An error is a killed server's.
            if let Ok(Err(broken)) = self.look(&table, &mut known).await {
                self.findings.find(format!("{}: {broken:#}", table.source));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The outer error is that nothing could be seen, the inner that it was wrong.
    async fn look(&self, table: &Table, known: &mut HashMap<String, u128>) -> Result<Result<()>> {
        let (position, was_streaming) = self.position(table)?;
        let look = self.table(table)?;
        let (after, is_streaming) = self.position(table)?;
        if !was_streaming || !is_streaming {
            // A copy that begins anew may clear what was there.
            known.clear();
            return Ok(Ok(()));
        }
        self.looks.fetch_add(1, Ordering::Relaxed);
        let newest = look.versions.values().max().copied().unwrap_or_default();
        let gone = known.iter().find(|(key, version)| look.versions.get(*key).is_none_or(|now| now < *version));
        if let Some((key, version)) = gone {
            let now = look.versions.get(key);
            return Ok(Err(anyhow::anyhow!("a key went back from version {version} to {now:?}")));
        }
        *known = look.versions;
        if after != position {
            return Ok(Ok(()));
        }
        if newest >= u128::from(position.0) << 64 {
            self.ahead.fetch_add(1, Ordering::Relaxed);
            return Ok(Ok(()));
        }
        self.compared.fetch_add(1, Ordering::Relaxed);
        let place = self.oracle.tables().iter().position(|other| other.source == table.source);
        let expected = self.oracle.digests_at(position).await.map(|digests| place.map(|place| digests[place]));
        Ok(expected.and_then(|expected| {
            let found = look.digest;
            ensure!(expected == Some(found), "at {position} the source had {expected:?}, ClickHouse {found:?}");
            Ok(())
        }))
    }

    /// The checkpoint, and whether the table streams.
    fn position(&self, table: &Table) -> Result<(Lsn, bool)> {
        let sql = format!(
            "SELECT (SELECT max(end_lsn) FROM tailwater.checkpoint FINAL), \
             (SELECT count() FROM tailwater.table_state FINAL WHERE target = '{}' AND state = 'streaming')",
            table.target
        );
        let text = self.server.query(&sql)?;
        let (end_lsn, streaming) = text.split_once('\t').context("two columns")?;
        Ok((Lsn(end_lsn.parse()?), streaming == "1"))
    }

    /// Key by key the row that counts, from one look at the table: the view would hide what is deleted.
    fn table(&self, table: &Table) -> Result<Look> {
        let target = &table.target;
        let (database, name) = target.split_once('.').context("a table is named database.name")?;
        let key = self.server.query(&format!(
            "SELECT sorting_key FROM system.tables WHERE database = '{database}' AND name = '{name}'"
        ))?;
        let cell = |column: &String| format!("if(isNull({column}), '~', hex(ifNull(toString({column}), '')))");
        let cells: Vec<String> = table.columns.iter().map(cell).collect();
        let sql = format!(
            "SELECT hex(toString(tuple({key}))), max(_version), argMax(_deleted, _version), \
             argMax(arrayStringConcat([{}], ' '), _version) FROM {target} GROUP BY {key}",
            cells.join(", ")
        );
        let mut look = Look { versions: HashMap::new(), digest: Digest::default() };
        for text in self.server.query(&sql)?.lines() {
            let [key, version, deleted, row]: [&str; 4] =
                text.split('\t').collect::<Vec<_>>().try_into().ok().context("four columns")?;
            look.versions.insert(key.to_owned(), version.parse()?);
            if deleted == "0" {
                let row = row.split(' ').map(value).collect::<Result<Vec<_>>>()?;
                look.digest.add(&line(&row)?);
            }
        }
        Ok(look)
    }

    async fn watch_confirmations(self: Arc<Self>) {
        while self.findings.go_on() {
            let _ = self.watch_confirmations_connected().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn watch_confirmations_connected(&self) -> Result<()> {
        let source = connect(&self.source_url).await?;
        while self.findings.go_on() {
            // The source first: read in this order, an advance between the two can only look safer than it was.
            if let Some(confirmed) = confirmed(&source).await? {
                let held = self.server.query("SELECT max(end_lsn) FROM tailwater.checkpoint FINAL")?;
                let held = Lsn(held.parse()?);
                // Before the first checkpoint the source was told nothing: its slot begins somewhere by itself.
                if held > Lsn::ZERO {
                    self.confirmations.fetch_add(1, Ordering::Relaxed);
                }
                if held > Lsn::ZERO && confirmed > held {
                    self.findings.find(format!("the source was told {confirmed}, ClickHouse holds {held}"));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

fn value(text: &str) -> Result<Value> {
    if text == "~" {
        return Ok(Value::Null);
    }
    let digits = text.as_bytes().chunks(2).map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
    Ok(Value::Text(Bytes::from(digits.collect::<Result<Vec<u8>>>()?)))
}
