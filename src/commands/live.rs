//! Both ends as they are now, for the verbs that resolve mappings.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Client;

use crate::config::{Config, SinkConfig};
use crate::diagnostic::{Finding, Findings};
use crate::mapping::resolve::{Live, LiveSink, LiveSource};
use crate::pipeline::{chain, sink_url, source_url};
use crate::postgres::catalog::{Wanted, read_tables, read_types};
use crate::postgres::connect::{ConnectError, connect};
use crate::postgres::server::server;
use crate::postgres::url::PgUrl;
use crate::retry::{Backoff, Retry};

/// Open sessions with all ends, and what they say of themselves.
#[derive(Default)]
pub struct Ends {
    pub sources: BTreeMap<String, Client>,
    pub sinks: BTreeMap<String, Client>,
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
        let Some(client) = open(&mut ends.findings, &what, source_url(config, name), patience).await else { continue };
        match read_source(&client).await {
            Ok(source) => {
                ends.live.sources.insert(name.clone(), source);
                ends.sources.insert(name.clone(), client);
            }
            Err(message) => ends.findings.push(Finding::error("catalog", format!("{what} cannot be read: {message}"))),
        }
    }
    ends
}

async fn connect_sinks(config: &Config, patience: Patience, ends: &mut Ends) {
    for (name, sink) in &config.sinks {
        let SinkConfig::Postgres(_) = sink;
        let what = format!("sink \"{name}\"");
        let Some(client) = open(&mut ends.findings, &what, sink_url(config, name), patience).await else { continue };
        match read_sink(&client).await {
            Ok(sink) => {
                ends.live.sinks.insert(name.clone(), sink);
                ends.sinks.insert(name.clone(), client);
            }
            Err(message) => ends.findings.push(Finding::error("catalog", format!("{what} cannot be read: {message}"))),
        }
    }
}

async fn open(
    findings: &mut Findings,
    what: &str,
    url: Result<PgUrl, crate::postgres::url::UrlError>,
    patience: Patience,
) -> Option<Client> {
    let url = match url {
        Ok(url) => url,
        Err(error) => {
            findings.push(Finding::error("url", format!("url of {what} {error}")));
            return None;
        }
    };
    let mut backoff = Backoff::new(u64::from(std::process::id()));
    loop {
        let error = match connect(&url, "tailwater").await {
            Ok(connection) => return Some(connection.client),
            Err(error) => error,
        };
        if patience == Patience::None || error.retry() == Retry::Never {
            findings.push(unreachable(what, &url, &error));
            return None;
        }
        tracing::warn!(error = %chain(&error), "{what} does not answer, waiting");
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

async fn read_source(client: &Client) -> Result<LiveSource, String> {
    let facts = server(client).await.map_err(|error| error.to_string())?;
    let catalog = read_tables(client, Wanted::All).await.map_err(|error| error.to_string())?;
    Ok(LiveSource { catalog, server_version: facts.version_num })
}

async fn read_sink(client: &Client) -> Result<LiveSink, String> {
    let catalog = read_tables(client, Wanted::All).await.map_err(|error| error.to_string())?;
    let types = read_types(client).await.map_err(|error| error.to_string())?;
    Ok(LiveSink { catalog, types })
}
