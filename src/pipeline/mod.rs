//! Running it: sources, appliers, copies and refreshes of one daemon, and what they tell whoever watches.

mod applier;
mod copy;
pub mod drift;
mod link;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tracing::info;

use crate::batch::Batch;
use crate::catalog::TableName;
use crate::checkpoint::UnixMicros;
use crate::config::{Config, RegistryEnd, SinkEnd};
use crate::diagnostic::chain;
use crate::journal::NotHeld;
use crate::lsn::Lsn;
use crate::mapping::plan::ViewPlan;
use crate::mapping::resolve::{Absent, AbsentEnd, Resolved};
use crate::postgres::url::{PgUrl, UrlError};
use crate::refresh::{Observer, RefreshError, Refreshed, Refresher, RefresherSetup, TouchedTables};
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::address::Address;
use crate::sink::clickhouse::ddl::Topology;
use crate::sink::kafka::address::KafkaAddress;
use crate::sink::kafka::cluster::Cluster;
use crate::sink::kafka::registry::Registry;
use crate::sink::kafka::registry::address::RegistryAddress;

use crate::sink::state::TableState;
use crate::telemetry::board::StatusBoard;
use crate::telemetry::handles::{PairMetrics, Stage, TableMetrics, ViewMetrics};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::status::SourceState;
use crate::verdict::{Ack, Halt};
use drift::Drift;
use drift::watch::Copies;
pub use link::SinkLink;
use source::Source;

/// What every part of a run can reach.
pub struct Context {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub board: Arc<StatusBoard>,
    /// Becomes true when the daemon is to stop.
    pub stop: watch::Receiver<bool>,
}

/// How a part of the daemon ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// As asked.
    Stopped,
    /// Going on would be wrong; a human must decide.
    Halt(Halt),
    /// A table of the source is not what its plan was made for: look at the catalogs again, then go on.
    Drift(Drift),
    /// An end answers that the run was begun without: begin again with it.
    Back,
    /// `tailwater setup` has not been run.
    NotSetUp(String),
    Failed(String),
}

impl End {
    fn fenced(sink: &str) -> End {
        End::Halt(Halt::Fenced { sink: sink.to_owned() })
    }

    /// The journal no longer holds what the sink needs.
    fn gap(sink: &str, gap: &NotHeld) -> End {
        let to = gap.held.map_or(gap.from, |held| held.first);
        End::Halt(Halt::Gap { sink: sink.to_owned(), from: gap.from, to, ack: Ack::Journal })
    }
}

/// What is shown of one sink of one source.
pub struct Observed {
    pub source: String,
    pub sink: String,
    pub pair: PairMetrics,
    /// By plan.
    pub tables: Vec<TableMetrics>,
    /// Tables on their way from copy to stream.
    pub copies: Arc<Copies>,
    names: Vec<String>,
    board: Arc<StatusBoard>,
}

impl Observed {
    fn new(context: &Context, link: &SinkLink) -> Self {
        let names: Vec<_> = link.plans.iter().map(|plan| plan.target.to_string()).collect();
        Observed {
            source: link.source.clone(),
            sink: link.name.clone(),
            pair: context.metrics.pair(&link.source, &link.name),
            tables: names.iter().map(|name| context.metrics.table(&link.source, &link.name, name)).collect(),
            names,
            copies: Arc::default(),
            board: context.board.clone(),
        }
    }

    fn error(&self, stage: Stage, kind: &'static str, about: &str, message: &str) {
        self.board.error(stage, kind, about, message);
    }

    fn table_state(&self, plan_index: usize, state: TableState) {
        self.tables[plan_index].set_state(state);
        self.copies.set_state(plan_index, state);
    }

    fn copying(&self, plan_index: usize, copied: u64, estimated: u64) {
        self.board.copying(&self.source, &self.sink, &self.names[plan_index], copied, estimated);
    }

    fn copied(&self, plan_index: usize) {
        self.board.copied(&self.source, &self.sink, &self.names[plan_index]);
    }

    /// A batch with its checkpoint is in.
    fn applied(&self, batch: &Batch, took: Duration) {
        self.pair.transactions.inc_by(batch.commits);
        self.pair.apply_seconds.observe(took.as_secs_f64());
        self.count(batch);
    }

    /// Counts a batch's changes.
    fn count(&self, batch: &Batch) {
        let changes = batch.changes();
        if changes > 0 {
            self.pair.batch_rows.observe(changes as f64);
        }
        for table in &batch.tables {
            let metrics = &self.tables[table.plan_index];
            metrics.insert.inc_by(table.counts.inserts);
            metrics.update.inc_by(table.counts.updates);
            metrics.delete.inc_by(table.counts.deletes);
            metrics.truncate.inc_by(table.counts.truncates);
        }
    }
}

/// Runs every source until stopped, or until one of them cannot go on: then all stop. Pairs that lack an end are left out,
/// until `back` says that one of those ends answers.
pub async fn run(context: Arc<Context>, resolved: &Resolved, back: impl Future<Output = ()>) -> End {
    tokio::pin!(back);
    context.board.nobody_waits();
    let sources = match sources(&context, resolved) {
        Ok(sources) => sources,
        Err(error) => return End::Failed(error),
    };
    let (stop, stopped) = watch::channel(false);
    let refreshers = refreshers(&context, resolved, &sources, &stopped);
    let mut outer = context.stop.clone();
    let mut running = JoinSet::new();
    for mut source in sources {
        source.context = Arc::new(Context {
            config: context.config.clone(),
            metrics: context.metrics.clone(),
            board: context.board.clone(),
            stop: stopped.clone(),
        });
        running.spawn(source.run());
    }
    let mut end = End::Stopped;
    while !running.is_empty() {
        tokio::select! {
            ended = running.join_next() => {
                let ended = match ended {
                    Some(Ok(ended)) => ended,
                    Some(Err(error)) => End::Failed(error.to_string()),
                    None => break,
                };
                // What goes wrong on the way out of a run that is to begin again is worth more than that.
                if ended != End::Stopped && matches!(end, End::Stopped | End::Back) {
                    end = ended;
                }
                let _ = stop.send(true);
            }
            () = &mut back, if !*stop.borrow() => {
                end = End::Back;
                let _ = stop.send(true);
            }
            changed = outer.changed(), if !*stop.borrow() => {
                if changed.is_err() || *outer.borrow() {
                    info!("stopping");
                    let _ = stop.send(true);
                }
            }
        }
    }
    for refresher in refreshers {
        // A refresh under way is cancelled; a panic of it is no reason to end otherwise than asked.
        let _ = refresher.await;
    }
    end
}

/// Starts what keeps each sink's views fresh.
fn refreshers(
    context: &Arc<Context>,
    resolved: &Resolved,
    sources: &[Source],
    stop: &watch::Receiver<bool>,
) -> Vec<JoinHandle<()>> {
    let mut running = Vec::new();
    for sink in context.config.sinks.keys() {
        let views: Vec<_> = resolved.views.iter().filter(|view| &view.sink == sink).cloned().collect();
        let targets = targets_of(resolved, sink);
        if views.is_empty() || targets.is_empty() {
            continue;
        }
        // Where no source answers there is none, and nobody touches a table.
        let link = sources.iter().flat_map(|source| &source.links).find(|link| &link.name == sink);
        let touched = link.map(|link| link.touched.clone()).unwrap_or_default();
        let Ok(address) = sink_address(&context.config, sink) else { continue };
        let observer = ViewObserver::new(context, sink, &views);
        let refresher = Refresher::new(RefresherSetup {
            sink: sink.clone(),
            address,
            app_name: "tailwater refresh".to_owned(),
            views,
            targets,
            touched,
            observer,
            seed: u64::from(std::process::id()),
        });
        running.push(tokio::spawn(refresher.run(stop.clone())));
    }
    running
}

/// All target tables of a sink, each once, also those of sources that do not answer.
fn targets_of(resolved: &Resolved, sink: &str) -> Vec<TableName> {
    let planned = resolved.plans.iter().filter(|plan| plan.sink == sink).map(|plan| &plan.target);
    let absent = resolved.absent.iter().filter(|absent| absent.sink == sink).flat_map(|absent| &absent.targets);
    let targets: BTreeSet<_> = planned.chain(absent).cloned().collect();
    targets.into_iter().collect()
}

/// Feeds metrics and status from the refresher.
struct ViewObserver {
    sink: String,
    board: Arc<StatusBoard>,
    metrics: Arc<Metrics>,
    views: BTreeMap<TableName, ViewMetrics>,
}

impl ViewObserver {
    fn new(context: &Context, sink: &str, views: &[ViewPlan]) -> Self {
        let metrics = |view: &ViewPlan| (view.view.clone(), context.metrics.view(sink, &view.view.to_string()));
        ViewObserver {
            sink: sink.to_owned(),
            board: context.board.clone(),
            metrics: context.metrics.clone(),
            views: views.iter().map(metrics).collect(),
        }
    }
}

impl Observer for ViewObserver {
    fn stale(&self, view: &TableName) {
        if let Some(metrics) = self.views.get(view) {
            metrics.changed(UnixMicros::now());
        }
    }

    fn refreshed(&self, view: &TableName, outcome: Result<&Refreshed, &RefreshError>) {
        let Some(metrics) = self.views.get(view) else { return };
        match outcome {
            Ok(refreshed) => {
                let seconds = refreshed.elapsed.as_secs_f64();
                metrics.refreshed(seconds, None);
                let lsn = refreshed.lsns.iter().map(|(_, lsn)| *lsn).min().unwrap_or(Lsn::ZERO);
                self.board.refreshed(&self.sink, &view.to_string(), lsn, UnixMicros::now(), seconds);
            }
            Err(error) => {
                metrics.failed();
                self.board.error(Stage::Refresh, "view", &view.to_string(), &chain(error));
            }
        }
    }

    fn failed(&self, error: &RefreshError) {
        self.metrics.error(Stage::Refresh, "session");
        self.board.error(Stage::Refresh, "session", &self.sink, &chain(error));
    }
}

/// Brings configuration and plans together.
fn sources(context: &Arc<Context>, resolved: &Resolved) -> Result<Vec<Source>, String> {
    let config = &context.config;
    let mask_key: Arc<[u8]> = config.mask_salt.as_ref().map_or(&[][..], |salt| salt.expose().as_bytes()).into();
    let mut touched: BTreeMap<String, Arc<TouchedTables>> = BTreeMap::new();
    let mut sources = Vec::new();
    for (name, source) in &config.sources {
        let mut links: BTreeMap<&str, SinkLink> = BTreeMap::new();
        for plan in resolved.plans.iter().filter(|plan| &plan.source == name) {
            let Some((sink_name, sink)) = config.sinks.get_key_value(&plan.sink) else { continue };
            if !links.contains_key(sink_name.as_str()) {
                let link = SinkLink {
                    name: sink_name.clone(),
                    source: name.clone(),
                    address: sink_address(config, sink_name)?,
                    config: sink.clone(),
                    plans: Vec::new(),
                    mask_key: mask_key.clone(),
                    touched: touched.entry(sink_name.clone()).or_default().clone(),
                    targets: Vec::new(),
                };
                links.insert(sink_name, link);
            }
            if let Some(link) = links.get_mut(sink_name.as_str()) {
                let target = targets_of(resolved, sink_name).binary_search(&plan.target);
                link.targets.push(target.expect("every plan's target is among the sink's"));
                link.plans.push(Arc::new(plan.clone()));
            }
        }
        let absent: Vec<_> = resolved.absent.iter().filter(|absent| &absent.source == name).collect();
        if links.is_empty() && absent.is_empty() {
            continue;
        }
        context.board.add_source(name, &source.slot, &source.publication);
        for absent in &absent {
            context.board.pair_waits(name, &absent.sink, &for_whom(absent));
        }
        if links.is_empty() {
            context.board.source_state(name, SourceState::Waiting);
            continue;
        }
        let links: Vec<_> = links.into_values().map(Arc::new).collect();
        let observed = links.iter().map(|link| Arc::new(Observed::new(context, link))).collect();
        let url = source_url(config, name).map_err(|error| format!("source \"{name}\": url {error}"))?;
        sources.push(Source {
            name: name.clone(),
            config: source.clone(),
            url,
            links,
            observed,
            absent: absent.into_iter().map(|absent| absent.sink.clone()).collect(),
            context: context.clone(),
        });
    }
    Ok(sources)
}

/// Who is missing for a pair to run.
fn for_whom(absent: &Absent) -> String {
    match absent.end {
        AbsentEnd::Source => format!("source \"{}\"", absent.source),
        AbsentEnd::Sink => format!("sink \"{}\"", absent.sink),
    }
}

/// The address of a configured source.
pub fn source_url(config: &Config, name: &str) -> Result<PgUrl, UrlError> {
    let source = config.sources.get(name).ok_or(UrlError::Missing("source"))?;
    address(source.url.expose(), source.password.as_ref())
}

/// The address of a configured sink.
///
/// # Errors
/// What is wrong with its url, without it.
pub fn sink_address(config: &Config, name: &str) -> Result<SinkAddress, String> {
    let sink = config.sinks.get(name).ok_or_else(|| format!("sink \"{name}\" is not configured"))?;
    match &sink.end {
        SinkEnd::Postgres(end) => {
            let url = address(end.url.expose(), end.password.as_ref());
            Ok(SinkAddress::Postgres(url.map_err(|error| format!("sink \"{name}\": url {error}"))?))
        }
        SinkEnd::ClickHouse(end) => {
            let address = Address::of(end).map_err(|error| format!("sink \"{name}\": url {error}"))?;
            let topology = end.cluster.clone().map_or(Topology::Single, Topology::Cluster);
            Ok(SinkAddress::ClickHouse(address, topology))
        }
        SinkEnd::Kafka(end) => {
            let address = KafkaAddress::new(&end.brokers, end.options.clone());
            let address = address.map_err(|error| format!("sink \"{name}\": {error}"))?;
            let registry = end.registry.as_ref().map(|registry| schema_registry(name, registry)).transpose()?;
            let cluster = Cluster::new(name, address, &end.state_topic, registry).with_beside(end.beside.clone());
            Ok(SinkAddress::Kafka(Arc::new(cluster)))
        }
    }
}

fn schema_registry(name: &str, end: &RegistryEnd) -> Result<Registry, String> {
    let address = RegistryAddress::of(end);
    let address = address.map_err(|error| format!("sink \"{name}\": url of schema_registry {error}"))?;
    Registry::new(&address).map_err(|error| format!("sink \"{name}\": {error}"))
}

fn address(url: &str, password: Option<&crate::config::Secret>) -> Result<PgUrl, UrlError> {
    Ok(PgUrl::parse(url)?.or_password(password.map(crate::config::Secret::expose)))
}
