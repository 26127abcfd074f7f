//! Both ends as they are now, for the verbs that resolve mappings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio_postgres::Client;

use crate::config::Config;
use crate::diagnostic::{Finding, Findings, chain};
use crate::mapping::MappingFile;
use crate::mapping::clickhouse::LiveClickHouse;
use crate::mapping::kafka::LiveKafka;
use crate::mapping::resolve::{Live, LiveSink, LiveSource, resolve};
use crate::pipeline::drift::{self, Occasion, Settled};
use crate::pipeline::{sink_address, source_url};
use crate::postgres::catalog::{Wanted, read_source as read_catalog, read_tables, read_types};
use crate::postgres::connect::{ConnectError, connect};
use crate::postgres::error::SqlError;
use crate::postgres::server::server;
use crate::postgres::url::PgUrl;
use crate::retry::Retry;
use crate::sink::any::SinkAddress;
use crate::sink::clickhouse::address::Address;
use crate::sink::clickhouse::ddl::Topology;
use crate::sink::clickhouse::error::ClickHouseError;
use crate::sink::clickhouse::{Server, catalog as clickhouse_catalog};
use crate::sink::kafka::cluster::Cluster;

/// Open sessions with all ends, and what they say of themselves.
#[derive(Default)]
pub struct Ends {
    pub sources: BTreeMap<String, Client>,
    pub sinks: BTreeMap<String, Client>,
    pub clickhouse: BTreeMap<String, Server>,
    pub kafka: BTreeMap<String, Arc<Cluster>>,
    pub live: Live,
    pub findings: Findings,
}

impl Ends {
    /// Takes in an end that answered.
    pub fn take(&mut self, end: &End, opened: Opened) {
        let name = end.name().to_owned();
        match opened {
            Opened::Source(client, live) => {
                self.live.sources.insert(name.clone(), live);
                self.sources.insert(name, client);
            }
            Opened::Postgres(client, live) => {
                self.live.sinks.insert(name.clone(), live);
                self.sinks.insert(name, client);
            }
            Opened::ClickHouse(server, live) => {
                self.live.clickhouse.insert(name.clone(), live);
                self.clickhouse.insert(name, server);
            }
            Opened::Kafka(cluster, live) => {
                self.live.kafka.insert(name.clone(), live);
                self.kafka.insert(name, cluster);
            }
        }
    }

    /// The sessions, and what the ends say of themselves.
    pub fn sessions(&mut self) -> (drift::Ends<'_>, &mut Live) {
        let Ends { sources, sinks, clickhouse, kafka, live, .. } = self;
        (drift::Ends { sources, sinks, clickhouse, kafka }, live)
    }

    pub fn has(&self, end: &End) -> bool {
        match end {
            End::Source(name) => self.sources.contains_key(name),
            End::Sink(name) => {
                self.sinks.contains_key(name) || self.clickhouse.contains_key(name) || self.kafka.contains_key(name)
            }
        }
    }
}

/// One configured end, by its name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum End {
    Source(String),
    Sink(String),
}

impl End {
    /// All that are configured.
    pub fn all(config: &Config) -> impl Iterator<Item = End> {
        let sources = config.sources.keys().cloned().map(End::Source);
        sources.chain(config.sinks.keys().cloned().map(End::Sink))
    }

    fn name(&self) -> &str {
        match self {
            End::Source(name) | End::Sink(name) => name,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Source(name) => write!(f, "source \"{name}\""),
            End::Sink(name) => write!(f, "sink \"{name}\""),
        }
    }
}

/// An end that answered, and what it said of itself.
pub enum Opened {
    Source(Client, LiveSource),
    Postgres(Client, LiveSink),
    ClickHouse(Server, LiveClickHouse),
    Kafka(Arc<Cluster>, LiveKafka),
}

/// An end that did not.
pub struct Missed {
    pub finding: Finding,
    /// Whether waiting can help.
    pub retry: Retry,
}

/// Connects to every configured end and reads its catalog; one that does not answer is a finding.
pub async fn connect_all(config: &Config) -> Ends {
    connect_to(config, End::all(config)).await
}

/// Connects to the sources only.
pub async fn connect_sources(config: &Config) -> Ends {
    connect_to(config, config.sources.keys().cloned().map(End::Source)).await
}

async fn connect_to(config: &Config, wanted: impl Iterator<Item = End>) -> Ends {
    let mut ends = Ends::default();
    for end in wanted {
        match open(config, &end).await {
            Ok(opened) => ends.take(&end, opened),
            Err(missed) => ends.findings.push(missed.finding),
        }
    }
    ends
}

/// Connects to one end and reads its catalog.
pub async fn open(config: &Config, end: &End) -> Result<Opened, Missed> {
    let wrong = |message: String| Missed { finding: Finding::error("url", message), retry: Retry::Never };
    match end {
        End::Source(name) => {
            let url = source_url(config, name).map_err(|error| wrong(format!("url of {end} {error}")))?;
            let (client, live) = open_postgres(end, &url, read_source).await?;
            Ok(Opened::Source(client, live))
        }
        End::Sink(name) => match sink_address(config, name).map_err(wrong)? {
            SinkAddress::Postgres(url) => {
                let (client, live) = open_postgres(end, &url, read_sink).await?;
                Ok(Opened::Postgres(client, live))
            }
            SinkAddress::ClickHouse(address, topology) => {
                let (server, live) = open_clickhouse(end, address, topology).await?;
                Ok(Opened::ClickHouse(server, live))
            }
            SinkAddress::Kafka(cluster) => {
                let live = open_kafka(end, &cluster).await?;
                Ok(Opened::Kafka(cluster, live))
            }
        },
    }
}

/// What a start would find: mappings resolved, and what became of tables that are held already. Nothing is changed.
pub async fn look(config: &Config, files: &[MappingFile], ends: &mut Ends) -> Settled {
    let (sessions, live) = ends.sessions();
    match drift::settle(config, files, live, sessions, Occasion::Look).await {
        Ok(settled) => settled,
        // What stands in the way there is said where states and sources are looked at.
        Err(_) => {
            let (resolved, findings) = resolve(config, files, &ends.live);
            Settled { resolved, findings, ..Settled::default() }
        }
    }
}

async fn open_postgres<T>(
    end: &End,
    url: &PgUrl,
    read: impl AsyncFn(&Client) -> Result<T, SqlError>,
) -> Result<(Client, T), Missed> {
    let connection = connect(url, "tailwater").await;
    let connection =
        connection.map_err(|error| Missed { finding: unreachable(end, url, &error), retry: error.retry() })?;
    match read(&connection.client).await {
        Ok(live) => Ok((connection.client, live)),
        Err(error) => {
            let finding = Finding::error("catalog", format!("{end} cannot be read: {error}"));
            Err(Missed { finding, retry: error.retry() })
        }
    }
}

async fn open_clickhouse(end: &End, address: Address, topology: Topology) -> Result<(Server, LiveClickHouse), Missed> {
    let place = format!("{}:{}", address.host, address.port);
    let opened = async {
        let server = Server::connect(address, topology).await?;
        let live = clickhouse_catalog::read_tables(&server.client).await?;
        Ok::<_, ClickHouseError>((server, live))
    };
    opened.await.map_err(|error| {
        let finding = Finding::error("unreachable", format!("{end} at {place} does not let us in: {error}"));
        let finding = match (&error, error.retry()) {
            (ClickHouseError::Tls(_), _) => finding.hint(
                "Is this its HTTPS interface, is `sslrootcert` its authority, and is its certificate for this name?",
            ),
            (_, Retry::Backoff) => finding.hint("Is the server up, and is this its HTTP interface?"),
            (_, Retry::Never) => finding.hint("Check user, password and grants; `deploy/grants` has the roles."),
        };
        Missed { finding, retry: error.retry() }
    })
}

async fn open_kafka(end: &End, cluster: &Cluster) -> Result<LiveKafka, Missed> {
    let topics = cluster.topics().await.map_err(|failure| {
        let finding = Finding::error("unreachable", format!("{end} does not let us in: {failure}"));
        match failure.passes() {
            true => Missed {
                finding: finding.hint("Is the broker up, and is this its listener for clients?"),
                retry: Retry::Backoff,
            },
            false => Missed {
                finding: finding.hint("Check user, password and options; `deploy/grants/kafka.sh` has the ACLs."),
                retry: Retry::Never,
            },
        }
    })?;
    if let Some(registry) = cluster.registry() {
        registry.probe().await.map_err(|error| {
            let finding = Finding::error("unreachable", format!("{end}: {error}"));
            match error.passes() {
                true => Missed {
                    finding: finding.hint("Is the registry up, and is `schema_registry` its address?"),
                    retry: Retry::Backoff,
                },
                false => Missed {
                    finding: finding.hint("Check url, user and password of `schema_registry`."),
                    retry: Retry::Never,
                },
            }
        })?;
    }
    Ok(LiveKafka { topics })
}

fn unreachable(end: &End, url: &PgUrl, error: &ConnectError) -> Finding {
    let finding = Finding::error("unreachable", format!("{end} at {url} does not let us in: {}", chain(error)));
    match error.retry() {
        Retry::Backoff => finding.hint("Is the server up, and does its address stand in the url?"),
        Retry::Never => finding.hint("Check user, password, database and pg_hba.conf; `deploy/grants` has the roles."),
    }
}

async fn read_source(client: &Client) -> Result<LiveSource, SqlError> {
    let facts = server(client).await?;
    let (catalog, types) = read_catalog(client, Wanted::All).await?;
    Ok(LiveSource { catalog, server_version: facts.version_num, types: types.into() })
}

async fn read_sink(client: &Client) -> Result<LiveSink, SqlError> {
    let catalog = read_tables(client, Wanted::All).await?;
    Ok(LiveSink { catalog, types: read_types(client).await? })
}
