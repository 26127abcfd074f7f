//! Running it: sources, appliers, copies and refreshes of one daemon, and what they tell whoever watches.

mod applier;
mod copy;
mod link;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use crate::batch::Batch;
use crate::config::{Config, SinkConfig};
use crate::journal::NotHeld;
use crate::mapping::resolve::Resolved;
use crate::postgres::url::{PgUrl, UrlError};
use crate::sink::postgres::state::TableState;
use crate::telemetry::board::StatusBoard;
use crate::telemetry::handles::{PairMetrics, Stage, TableMetrics};
use crate::telemetry::metrics::Metrics;
use crate::verdict::{Ack, Halt};
pub use link::{SinkLink, chain};
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
            board: context.board.clone(),
        }
    }

    fn error(&self, stage: Stage, kind: &'static str, about: &str, message: &str) {
        self.board.error(stage, kind, about, message);
    }

    fn table_state(&self, plan_index: usize, state: TableState) {
        self.tables[plan_index].set_state(state);
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

/// Runs every source until stopped, or until one of them cannot go on: then all stop.
pub async fn run(context: Arc<Context>, resolved: &Resolved) -> End {
    let sources = match sources(&context, resolved) {
        Ok(sources) => sources,
        Err(error) => return End::Failed(error),
    };
    let (stop, stopped) = watch::channel(false);
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
                if ended != End::Stopped && end == End::Stopped {
                    end = ended;
                }
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
    end
}

/// Brings configuration and plans together.
fn sources(context: &Arc<Context>, resolved: &Resolved) -> Result<Vec<Source>, String> {
    let config = &context.config;
    let mask_key: Arc<[u8]> = config.mask_salt.as_ref().map_or(&[][..], |salt| salt.expose().as_bytes()).into();
    let mut sources = Vec::new();
    for (name, source) in &config.sources {
        let mut links: BTreeMap<&str, SinkLink> = BTreeMap::new();
        for plan in resolved.plans.iter().filter(|plan| &plan.source == name) {
            let Some((sink_name, SinkConfig::Postgres(sink))) = config.sinks.get_key_value(&plan.sink) else {
                continue;
            };
            if !links.contains_key(sink_name.as_str()) {
                let link = SinkLink {
                    name: sink_name.clone(),
                    source: name.clone(),
                    url: sink_url(config, sink_name).map_err(|error| format!("sink \"{sink_name}\": url {error}"))?,
                    config: sink.clone(),
                    plans: Vec::new(),
                    mask_key: mask_key.clone(),
                    touched: Arc::new(|_| {}),
                };
                links.insert(sink_name, link);
            }
            if let Some(link) = links.get_mut(sink_name.as_str()) {
                link.plans.push(Arc::new(plan.clone()));
            }
        }
        if links.is_empty() {
            continue;
        }
        context.board.add_source(name, &source.slot, &source.publication);
        let links: Vec<_> = links.into_values().map(Arc::new).collect();
        let observed = links.iter().map(|link| Arc::new(Observed::new(context, link))).collect();
        let url = source_url(config, name).map_err(|error| format!("source \"{name}\": url {error}"))?;
        sources.push(Source {
            name: name.clone(),
            config: source.clone(),
            url,
            links,
            observed,
            context: context.clone(),
        });
    }
    Ok(sources)
}

/// The address of a configured source.
pub fn source_url(config: &Config, name: &str) -> Result<PgUrl, UrlError> {
    let source = config.sources.get(name).ok_or(UrlError::Missing("source"))?;
    address(source.url.expose(), source.password.as_ref())
}

/// The address of a configured sink.
pub fn sink_url(config: &Config, name: &str) -> Result<PgUrl, UrlError> {
    match config.sinks.get(name) {
        Some(SinkConfig::Postgres(sink)) => address(sink.url.expose(), sink.password.as_ref()),
        None => Err(UrlError::Missing("sink")),
    }
}

fn address(url: &str, password: Option<&crate::config::Secret>) -> Result<PgUrl, UrlError> {
    Ok(PgUrl::parse(url)?.or_password(password.map(crate::config::Secret::expose)))
}
