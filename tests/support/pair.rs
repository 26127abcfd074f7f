//! A source with the workloads' tables, a sink that mirrors them, and a home for daemons between the two.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use super::cluster::{Cluster, Options};
use super::daemon::{Daemon, Home};
use super::oracle::digest::{self, Table};
use super::postgres::Version;
use super::workload::{SCHEMA, SEED_SQL, TABLES, mirror_mapping};

pub const DATABASE: &str = "postgres";

/// What `Home::pair` makes of source `src`.
pub const SLOT: &str = "tailwater_src";
pub const PUBLICATION: &str = "tailwater_src";

/// For what a few thousand rows and a restart need on a busy small machine.
pub const SOON: Duration = Duration::from_secs(180);

pub struct Pair {
    pub source: Cluster,
    pub sink: Cluster,
    pub home: Home,
}

impl Pair {
    /// Both servers with the seed's rows at the source and nothing at the sink; set up, with no daemon running.
    pub async fn start(name: &str, version: Version, options: Options) -> Result<Pair> {
        let pair = Pair::bare(name, version, options).await?;
        pair.source.execute(DATABASE, SEED_SQL).await?;
        pair.home.setup()?;
        Ok(pair)
    }

    /// The same before the seed and before `tailwater setup`.
    pub async fn bare(name: &str, version: Version, options: Options) -> Result<Pair> {
        let source = Cluster::start(&format!("{name}-source"), version, options)?;
        let sink = Cluster::new(&format!("{name}-sink"))?;
        source.execute(DATABASE, SCHEMA).await?;
        sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let home = Home::pair(name, &source, &sink, DATABASE, &mirror_mapping(TABLES))?;
        Ok(Pair { source, sink, home })
    }

    pub async fn source(&self) -> Result<Client> {
        self.source.connect(DATABASE).await
    }

    pub async fn sink(&self) -> Result<Client> {
        self.sink.connect(DATABASE).await
    }

    /// Waits until the sink holds what the source has committed by now.
    pub async fn catch_up(&self, daemon: &mut Daemon) -> Result<()> {
        daemon.wait_caught_up(&self.source().await?, &self.sink().await?, SOON).await.map(drop)
    }

    /// With the source quiet: every table of the sink is what it is at the source.
    pub async fn assert_equal(&self) -> Result<()> {
        let (source, sink) = (self.source().await?, self.sink().await?);
        let mut tables = Vec::new();
        for name in TABLES {
            tables.push(Table::describe(&source, name).await?);
        }
        let truth = digest::source_digests(&source, &tables).await?;
        let state = digest::sink_state(&sink, &tables).await?.context("the sink has no checkpoint")?;
        ensure!(state.digests == truth, "the source has {truth:?}, the sink {:?}", state.digests);
        Ok(())
    }
}
