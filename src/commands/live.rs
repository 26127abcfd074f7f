//! Both ends as they are now, for the verbs that resolve mappings.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;

use crate::config::Config;
use crate::diagnostic::{Finding, Findings, chain};
use crate::mapping::MappingFile;
use crate::mapping::clickhouse::LiveClickHouse;
use crate::mapping::resolve::{Live, LiveSink, LiveSource, resolve};
use crate::pipeline::drift::{self, Occasion, Settled};
use crate::pipeline::{sink_address, source_url};
use crate::postgres::catalog::{Wanted, read_tables, read_types};
use crate::postgres::connect::{ConnectError, connect};
use crate::postgres::error::SqlError;
use crate::postgres::server::server;
use crate::postgres::url::PgUrl;
use crate::retry::{Backoff, Retry};
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::address::Address;
use crate::sink::clickhouse::ddl::Topology;
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::{Server, catalog as clickhouse_catalog};

/// Open sessions with all ends, and what they say of themselves.
#[derive(Default)]
pub struct Ends {
    pub sources: BTreeMap<String, Client>,
    pub sinks: BTreeMap<String, Client>,
    pub clickhouse: BTreeMap<String, Server>,
    pub live: Live,
    pub findings: Findings,
}

/// What to do about an end that does not answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// A finding.
    None,
    /// Wait until it does, if waiting can help.
    Wait,
}

/// Connects to every configured end and reads its catalog.
pub async fn connect_all(config: &Config, patience: Patience) -> Ends {
    let mut ends = connect_sources(config, patience).await;
    connect_sinks(config, patience, &mut ends).await;
    ends
}

/// Connects to the sources only.
pub async fn connect_sources(config: &Config, patience: Patience) -> Ends {
    let mut ends = Ends::default();
    for name in config.sources.keys() {
        let what = format!("source \"{name}\"");
        let url = match source_url(config, name) {
            Ok(url) => url,
            Err(error) => {
                ends.findings.push(Finding::error("url", format!("url of {what} {error}")));
                continue;
            }
        };
        if let Some((client, source)) = open(&mut ends.findings, &what, url, patience, read_source).await {
            ends.live.sources.insert(name.clone(), source);
            ends.sources.insert(name.clone(), client);
        }
    }
    ends
}

/// What a start would find: mappings resolved, and what became of tables that are held already. Nothing is changed.
pub async fn look(config: &Config, files: &[MappingFile], ends: &mut Ends) -> Settled {
    let sessions = drift::Ends { sources: &ends.sources, sinks: &ends.sinks };
    match drift::settle(config, files, &mut ends.live, sessions, Occasion::Look).await {
        Ok(settled) => settled,
        // What stands in the way there is said where states and sources are looked at.
        Err(_) => {
            let (resolved, findings) = resolve(config, files, &ends.live);
            Settled { resolved, findings, ..Settled::default() }
        }
    }
}

async fn connect_sinks(config: &Config, patience: Patience, ends: &mut Ends) {
    for name in config.sinks.keys() {
        let what = format!("sink \"{name}\"");
        let url = match sink_address(config, name) {
            Ok(SinkAddress::Postgres(url)) => url,
            Ok(SinkAddress::ClickHouse(address, topology)) => {
                let opened = open_clickhouse(&mut ends.findings, &what, address, topology, patience).await;
                if let Some((server, live)) = opened {
                    ends.live.clickhouse.insert(name.clone(), live);
                    ends.clickhouse.insert(name.clone(), server);
                }
                continue;
            }
            Err(message) => {
                ends.findings.push(Finding::error("url", message));
                continue;
            }
        };
        if let Some((client, sink)) = open(&mut ends.findings, &what, url, patience, read_sink).await {
            ends.live.sinks.insert(name.clone(), sink);
            ends.sinks.insert(name.clone(), client);
        }
    }
}

/// Connects and reads; what does not pass with time is a finding.
async fn open<T>(
    findings: &mut Findings,
    what: &str,
    url: PgUrl,
    patience: Patience,
    read: impl AsyncFn(&Client) -> Result<T, SqlError>,
) -> Option<(Client, T)> {
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        let (finding, retry) = match connect(&url, "tailwater").await {
            Ok(connection) => match read(&connection.client).await {
                Ok(answer) => return Some((connection.client, answer)),
                Err(error) => {
                    let message = format!("{what} cannot be read: {error}");
                    (Finding::error("catalog", message), error.retry())
                }
            },
            Err(error) => (unreachable(what, &url, &error), error.retry()),
        };
        if patience == Patience::None || retry == Retry::Never {
            findings.push(finding);
            return None;
        }
        tracing::warn!("{}, waiting", finding.message);
        tokio::time::sleep(backoff.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

/// The same for ClickHouse.
async fn open_clickhouse(
    findings: &mut Findings,
    what: &str,
    address: Address,
    topology: Topology,
    patience: Patience,
) -> Option<(Server, LiveClickHouse)> {
    let place = format!("{}:{}", address.host, address.port);
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        let opened = async {
            let server = Server::connect(address.clone(), topology.clone()).await?;
            let live = clickhouse_catalog::read_tables(&server.client).await?;
            Ok::<_, ClickHouseError>((server, live))
        };
        let error = match opened.await {
            Ok(opened) => return Some(opened),
            Err(error) => error,
        };
        if patience == Patience::None || error.retry() == Retry::Never {
            let finding = Finding::error("unreachable", format!("{what} at {place} does not let us in: {error}"));
            findings.push(match error.retry() {
                Retry::Backoff => finding.hint("Is the server up, and is this its HTTP interface?"),
                Retry::Never => finding.hint("Check user, password and grants; `deploy/grants` has the roles."),
            });
            return None;
        }
        tracing::warn!("{what} at {place}: {error}, waiting");
        tokio::time::sleep(backoff.next().unwrap_or(Duration::from_secs(1))).await;
    }
}

fn unreachable(what: &str, url: &PgUrl, error: &ConnectError) -> Finding {
    let finding = Finding::error("unreachable", format!("{what} at {url} does not let us in: {}", chain(error)));
    match error.retry() {
        Retry::Backoff => finding.hint("Is the server up, and does its address stand in the url?"),
        Retry::Never => finding.hint("Check user, password, database and pg_hba.conf; `deploy/grants` has the roles."),
    }
}

async fn read_source(client: &Client) -> Result<LiveSource, SqlError> {
    let facts = server(client).await?;
    let catalog = read_tables(client, Wanted::All).await?;
    Ok(LiveSource { catalog, server_version: facts.version_num })
}

async fn read_sink(client: &Client) -> Result<LiveSink, SqlError> {
    let catalog = read_tables(client, Wanted::All).await?;
    Ok(LiveSink { catalog, types: read_types(client).await? })
}
