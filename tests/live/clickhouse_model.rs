//! The ClickHouse sink against a model: random transactions, applied in whatever batches, by sinks that die at any request and
//! begin again from an earlier checkpoint, replayed, merged, with inserts that arrive when their sender is long dead. Whenever
//! the sink says that it is as far as it ever was, the table is what the source holds; on the way there no key goes back.
//!
//! `TAILWATER_SEED` repeats a run, `TAILWATER_MODEL_STEPS` says how long it is.

mod cases;
mod history;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tailwater::batch::{Batch, BatchEnd, BatchLimits, Builder, Taken, Taking};
use tailwater::catalog::TableName;
use tailwater::checkpoint::{Checkpoint, SourceIdentity};
use tailwater::mapping::plan::{DeleteMode, Expected, Input, InputFrom, Mode, Output, OutputFrom, Plan};
use tailwater::sink::clickhouse::address::Address;
use tailwater::sink::clickhouse::ddl::{ColumnDdl, Topology, create_current_view, create_table, state_schema};
use tailwater::sink::clickhouse::state::read_checkpoint;
use tailwater::sink::clickhouse::{ClickHouseSink, Server};
use tailwater::sink::{ApplyError, SinkSetup};
use tailwater::value::clickhouse::types::{ColumnType, OnOverflow, SourceType};

use crate::support::clickhouse::ClickHouse;
use crate::support::http_proxy::{Fate, HttpProxy};
use crate::support::random::Random;
use history::History;

/// What a mapping makes of the source table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Variant {
    Plain,
    /// Columns of the target's SQL, one of which reads what may be unsent, so that rows and tombstones take other ways.
    Computed,
    Soft,
    /// Some rows are left out.
    Filtered,
}

const VARIANTS: [Variant; 4] = [Variant::Plain, Variant::Computed, Variant::Soft, Variant::Filtered];

impl Variant {
    fn plan(self) -> Plan {
        let columns = [
            ("k1", "Int64", 20, false),
            ("a", "Nullable(String)", 25, true),
            ("b", "Nullable(String)", 25, true),
            ("k2", "String", 25, false),
            ("number", "Int64", 20, false),
        ];
        let input = |(name, stage_type, oid, toastable): (&str, &str, u32, bool)| Input {
            name: name.to_owned(),
            from: InputFrom::Column(name.to_owned()),
            stage_type: stage_type.to_owned(),
            stage_type_oid: 0,
            nested: false,
            toastable,
            mask: None,
            source_type: Some(SourceType::built_in(oid, -1)),
            on_overflow: OnOverflow::Error,
        };
        let output = |(input, (name, target_type, ..)): (usize, (&str, &str, u32, bool))| Output {
            column: name.to_owned(),
            target_type: target_type.to_owned(),
            from: OutputFrom::Input { input, cast: false },
        };
        let mut outputs: Vec<Output> = columns.into_iter().enumerate().map(output).collect();
        let computed = [
            ("twice", "Int64", "number * 2", &[4][..]),
            ("told", "String", "concat(ifNull(a, '-'), ' ', ifNull(b, '-'), ' ', toString(number))", &[1, 2, 4]),
        ];
        outputs.extend(computed.into_iter().filter(|_| self == Variant::Computed).map(
            |(column, target_type, text, inputs)| Output {
                column: column.to_owned(),
                target_type: target_type.to_owned(),
                from: OutputFrom::Sql { text: text.to_owned(), inputs: inputs.to_vec() },
            },
        ));
        let is_filtered = self == Variant::Filtered;
        let softly = self == Variant::Soft;
        Plan {
            source: "src".to_owned(),
            sink: "ch".to_owned(),
            from: TableName::new("public", "t"),
            target: TableName::new("model", format!("{self:?}").to_lowercase()),
            inputs: columns.into_iter().map(input).collect(),
            outputs,
            // In another order than the columns.
            key: vec![3, 0],
            key_inputs: vec![3, 0],
            filter: is_filtered.then(|| "number % 4 != 0".to_owned()),
            filter_inputs: if is_filtered { vec![4] } else { Vec::new() },
            mode: Mode::Upsert,
            delete: if softly { DeleteMode::Soft } else { DeleteMode::Hard },
            deleted_column: softly.then(|| "gone".to_owned()),
            shared_target: false,
            parents: Vec::new(),
            source_columns: columns.iter().map(|column| column.0.to_owned()).collect(),
            follows_columns: false,
            expected: Expected::default(),
            topic: None,
        }
    }

    /// What makes a row of the target one of the source, beside not being a tombstone.
    fn is_row(self) -> &'static str {
        match self {
            Variant::Plain | Variant::Filtered => "1",
            Variant::Computed => {
                "twice = 2 * number AND told = concat(ifNull(a, '-'), ' ', ifNull(b, '-'), ' ', toString(number))"
            }
            Variant::Soft => "NOT gone",
        }
    }
}

/// A connection of the sink and the batches made for it.
struct Session {
    sink: ClickHouseSink,
    builder: Builder,
    /// Transactions that were put into the builder.
    taken: usize,
}

pub struct Arena<'a> {
    server: &'a ClickHouse,
    proxy: &'a HttpProxy,
    variant: Variant,
    plan: Arc<Plan>,
    history: History,
    session: Option<Session>,
    epoch: i64,
    /// Transactions that the checkpoint speaks of, and that were ever tried.
    at: usize,
    furthest: usize,
    /// The newest version of each key that was ever seen.
    versions: BTreeMap<String, u128>,
    comparisons: u32,
}

const ALL: BatchLimits = BatchLimits { rows: usize::MAX, bytes: usize::MAX, commits: u64::MAX };

impl<'a> Arena<'a> {
    fn new(server: &'a ClickHouse, proxy: &'a HttpProxy, variant: Variant) -> Result<Arena<'a>> {
        let plan = variant.plan();
        let column = |name: &str, column_type: &str| ColumnDdl {
            name: name.to_owned(),
            column_type: ColumnType::parse(column_type),
        };
        let mut columns: Vec<_> =
            plan.outputs.iter().map(|output| column(&output.column, &output.target_type)).collect();
        columns.extend(plan.deleted_column.iter().map(|name| column(name, "Bool")));
        for statement in state_schema(&Topology::Single) {
            server.query(&statement)?;
        }
        server.query("CREATE DATABASE IF NOT EXISTS model")?;
        server.query(&format!("DROP TABLE IF EXISTS {}", plan.target))?;
        server.query("TRUNCATE TABLE tailwater.checkpoint")?;
        server.query(&create_table(&plan.target, &columns, &plan.key, false, &Topology::Single)?)?;
        server.query(&create_current_view(&plan.target, &columns, &Topology::Single))?;
        let mut arena = Arena {
            server,
            proxy,
            variant,
            plan: Arc::new(plan),
            history: History::new(variant == Variant::Filtered),
            session: None,
            epoch: 0,
            at: 0,
            furthest: 0,
            versions: BTreeMap::new(),
            comparisons: 0,
        };
        arena.take_over(0)?;
        Ok(arena)
    }

    /// A new daemon, which finds the sink as it was after `count` transactions.
    fn take_over(&mut self, count: usize) -> Result<()> {
        self.session = None;
        self.epoch += 1;
        let Checkpoint { commit_lsn, end_lsn, ordinal, .. } = self.history.checkpoint(count);
        let epoch = self.epoch;
        self.server.query(&format!(
            "INSERT INTO tailwater.checkpoint (source, commit_lsn, end_lsn, ordinal, epoch, version) SELECT 'src', {}, {}, \
             {ordinal}, {epoch}, bitShiftLeft(toUInt128({epoch}), 64) + {}",
            commit_lsn.0, end_lsn.0, end_lsn.0
        ))?;
        self.at = count;
        Ok(())
    }

    /// The checkpoint is where a sink that died has left it.
    async fn recover(&mut self) -> Result<()> {
        self.proxy.calm();
        let server = self.connect(self.server.http_port()).await?;
        let stored = read_checkpoint(&server.client, "src").await?.context("a checkpoint")?;
        let count = self.history.count_until(stored.checkpoint.end_lsn);
        ensure!(count >= self.at, "the checkpoint went back from {} transactions to {count}", self.at);
        self.take_over(count)
    }

    async fn connect(&self, port: u16) -> Result<Arc<Server>> {
        let address = Address::parse(&format!("http://127.0.0.1:{port}/"))?;
        Ok(Arc::new(Server::connect(address, Topology::Single).await?))
    }

    async fn sink(&self) -> Result<ClickHouseSink> {
        let server = self.connect(self.proxy.port()).await?;
        let setup = SinkSetup {
            name: "ch".to_owned(),
            source: "src".to_owned(),
            plans: vec![self.plan.clone()],
            epoch: self.epoch,
            checkpoint: self.history.checkpoint(self.at),
            mask_key: Arc::from(&b"salt"[..]),
        };
        ClickHouseSink::new(server, setup, SourceIdentity::default()).map_err(anyhow::Error::msg)
    }

    fn builder(&self, from: usize, limits: BatchLimits) -> Builder {
        let mut builder = Builder::new(std::slice::from_ref(&self.plan), self.history.checkpoint(from), limits);
        builder.set_taking(0, Taking::From(tailwater::lsn::Lsn::ZERO));
        builder
    }

    /// Brings the stream up to `until` transactions and applies them; false if the sink died over it.
    async fn apply(&mut self, until: usize, limits: BatchLimits) -> Result<bool> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session { sink: self.sink().await?, builder: self.builder(self.at, limits), taken: self.at },
        };
        session.builder.set_limits(limits);
        let block = Bytes::from(self.history.stream(session.taken, until.max(session.taken)));
        session.taken = until.max(session.taken);
        let mut place = 0;
        loop {
            let taken = session.builder.push(&block, place)?;
            let batch = session.builder.take();
            if !self.apply_batch(&mut session.sink, &batch).await? {
                return Ok(false);
            }
            match taken {
                Taken::Until(rest) => place = rest,
                Taken::Whole => break,
            }
        }
        self.session = Some(session);
        Ok(true)
    }

    async fn apply_batch(&mut self, sink: &mut ClickHouseSink, batch: &Batch) -> Result<bool> {
        let tried = match batch.end {
            BatchEnd::Commit(checkpoint) => self.history.count_until(checkpoint.end_lsn),
            // Some of the next transaction, too.
            BatchEnd::Open => {
                let open = batch.transactions.last().context("a part is of a transaction")?;
                self.history.count_until(open.commit_lsn) + 1
            }
        };
        self.furthest = self.furthest.max(tried);
        match sink.apply(batch).await {
            Ok(None) => {}
            Ok(Some(durable)) => {
                self.at = self.history.count_until(durable.checkpoint().end_lsn);
                self.compare().with_context(|| format!("after a batch up to transaction {}", self.at))?;
            }
            Err(ApplyError::Transient { .. }) => return Ok(false),
            Err(error) => bail!("a batch up to transaction {tried} was refused: {error}"),
        }
        Ok(true)
    }

    /// All from `from` to the checkpoint once more, folded, as `tailwater replay` does it.
    async fn replay(&mut self, from: usize) -> Result<bool> {
        self.take_over(self.at)?;
        let mut sink = self.sink().await?;
        sink.set_tolerant(0, true);
        let mut builder = self.builder(from, ALL);
        builder.set_trust(0, false);
        builder.push(&Bytes::from(self.history.stream(from, self.at)), 0)?;
        let mut batch = builder.take();
        batch.tables.iter_mut().flat_map(|table| &mut table.entries).for_each(|entry| entry.origin = None);
        batch.end = BatchEnd::Commit(self.history.checkpoint(self.at));
        self.apply_batch(&mut sink, &batch).await
    }

    /// As it should be wherever that is promised, and no key went back.
    fn compare(&mut self) -> Result<()> {
        self.comparisons += 1;
        let (table, is_row) = (self.plan.target.to_string(), self.variant.is_row());
        let truth = self.history.after(self.at);
        let belongs = |row: &history::Row| self.variant != Variant::Filtered || history::matches(row.number);
        let line = |(k1, k2): &history::Key, row: &history::Row| {
            let [a, b] = row.texts.each_ref().map(|text| text.clone().unwrap_or("\\N".to_owned()));
            format!("{k1}\t{k2}\t{a}\t{b}\t{}", row.number)
        };
        if self.at == self.furthest {
            let truth: Vec<String> =
                truth.iter().filter(|(_, row)| belongs(row)).map(|(key, row)| line(key, row)).collect();
            let sql = format!("SELECT k1, k2, a, b, number FROM {table}_current WHERE {is_row} ORDER BY k1, k2");
            let held = self.server.query(&sql)?;
            ensure!(held == truth.join("\n"), "the table has\n{held}\nthe source\n{}", truth.join("\n"));
        }
        let sql = format!(
            "SELECT k1, k2, r.1, r.2, r.3, v, r.4 FROM (SELECT k1, k2, max(_version) AS v, \
             argMax(tuple(a, b, number, toUInt8(_deleted = 0 AND {is_row})), _version) AS r FROM {table} GROUP BY k1, k2)"
        );
        let newest = u128::from(self.history.checkpoint(self.at).commit_lsn.0 + 1) << 64;
        let mut known = BTreeMap::new();
        for text in self.server.query(&sql)?.lines() {
            let (rest, is_row) = text.rsplit_once('\t').context("two columns")?;
            let (rest, version) = rest.rsplit_once('\t').context("three columns")?;
            let key = rest.split('\t').take(2).collect::<Vec<_>>().join("\t");
            let version: u128 = version.parse()?;
            let before = self.versions.insert(key.clone(), version).unwrap_or_default();
            ensure!(before <= version, "key {key} went back from version {before} to {version}");
            known.insert(key, (rest.to_owned(), version, is_row == "1"));
        }
        let gone = self.versions.keys().find(|key| !known.contains_key(*key));
        ensure!(gone.is_none(), "nothing is known any more of key {gone:?}");
        for ((k1, k2), row) in &truth {
            let key = format!("{k1}\t{k2}");
            if !belongs(row) && !known.contains_key(&key) {
                continue;
            }
            let (text, version, is_row) = known.remove(&key).with_context(|| format!("key {key} is missing"))?;
            // The mark of a delete that comes later stands right behind the row that came in the same batch.
            let is_marked = self.variant == Variant::Soft && !is_row && version == row.version + 1;
            if version < newest && !is_marked {
                let truth = line(&(*k1, k2), row);
                let is_right = if belongs(row) { is_row && text == truth } else { !is_row };
                ensure!(is_right, "key {key} is {text} ({is_row}), not {truth}");
                // The same at every replay, whatever went wrong in between.
                ensure!(version == row.version, "{text} has version {version}, not {}", row.version);
            }
        }
        let extra = known.values().find(|(_, version, is_row)| *is_row && *version < newest);
        ensure!(extra.is_none(), "the source does not have {extra:?}");
        Ok(())
    }

    async fn step(&mut self, random: &mut Random) -> Result<&'static str> {
        let (rows, commits) = [(1, 1), (3, u64::MAX), (usize::MAX, 2), (usize::MAX, u64::MAX)]
            [usize::try_from(random.below(4)).unwrap_or_default()];
        let limits = BatchLimits { rows, commits, ..ALL };
        let some =
            |random: &mut Random, most: usize| usize::try_from(random.below(most as u64 + 1)).unwrap_or_default();
        Ok(match random.below(12) {
            0..5 => {
                (0..=random.below(3)).for_each(|_| self.history.commit_any(random));
                self.apply(self.history.len(), limits).await?;
                "apply"
            }
            5..8 => {
                // It dies at a request; those before it were done, and perhaps that one too, now or later.
                (0..=random.below(3)).for_each(|_| self.history.commit_any(random));
                let fate = [Fate::Unsent, Fate::Unanswered, Fate::Late][some(random, 2)];
                if self.session.is_none() {
                    self.apply(self.at, limits).await?;
                }
                self.proxy.cut(random.below(9), fate);
                // Sometimes it had not heard of everything.
                let until = self.at + some(random, self.history.len() - self.at);
                match self.apply(until, limits).await? {
                    true => self.proxy.calm(),
                    false => self.recover().await?,
                }
                "die"
            }
            8 => {
                let back = some(random, self.at.min(8));
                self.take_over(self.at - back)?;
                "begin earlier"
            }
            9 => {
                let from = self.at - some(random, self.at.min(12));
                self.replay(from).await?;
                "replay"
            }
            10 => {
                self.server.query(&format!("OPTIMIZE TABLE {} FINAL", self.plan.target))?;
                self.compare()?;
                "merge"
            }
            _ => {
                self.proxy.deliver()?;
                self.compare()?;
                "late arrival"
            }
        })
    }
}

/// A server whose requests go through a proxy.
fn stage(name: &str) -> Result<(ClickHouse, HttpProxy)> {
    let server = ClickHouse::start(name)?;
    let proxy = HttpProxy::start(server.http_port())?;
    Ok((server, proxy))
}

#[tokio::test(flavor = "multi_thread")]
async fn h80_tables_follow_the_model_through_deaths_replays_and_merges() -> Result<()> {
    let seed = Random::seed_from_environment();
    let steps: u32 = std::env::var("TAILWATER_MODEL_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(100);
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let (server, proxy) = stage("ch-model")?;
    for variant in VARIANTS {
        let mut arena = Arena::new(&server, &proxy, variant)?;
        let mut done: BTreeMap<&str, u32> = BTreeMap::new();
        for step in 0..steps {
            let outcome = arena.step(&mut random).await;
            let what = outcome.with_context(|| format!("{variant:?}, step {step}, seed {seed}"))?;
            *done.entry(what).or_default() += 1;
        }
        arena.apply(arena.history.len(), ALL).await?;
        proxy.deliver()?;
        arena.compare()?;
        eprintln!("{variant:?}: {done:?}, {} comparisons, {} transactions", arena.comparisons, arena.history.len());
    }
    Ok(())
}
