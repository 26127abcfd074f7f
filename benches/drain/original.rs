//! The table of which first copies are made into ClickHouse and into Kafka, and what is measured of tailwater's.

use std::time::Instant;

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::backlog::ORDERS;
use crate::cpu;
use crate::drain::{Measure, forget_journal};
use crate::servers::{Servers, TAILWATER_SLOT, drop_database, drop_slot};
use crate::snapshot::fill;
use crate::support::daemon::{Daemon, Home};

/// `orders`, in a database of its own at the source.
pub struct Original<'a> {
    pub servers: &'a Servers,
    database: &'static str,
    /// Over TCP: ClickHouse knows no other way.
    pub url: String,
    pub client: Client,
    pub rows: i64,
}

impl<'a> Original<'a> {
    pub async fn write(servers: &'a Servers, database: &'static str, rows: i64) -> Result<Original<'a>> {
        drop_database(&servers.source, database).await?;
        servers.source.create_database(database).await?;
        servers.source.execute(database, ORDERS).await?;
        fill(servers, database, rows).await?;
        let url = format!("{}?sslmode=disable", servers.source.url(database));
        Ok(Original { servers, database, url, client: servers.source.connect(database).await?, rows })
    }

    /// Keeps the slot that `tailwater setup` made, for every copy to begin at.
    pub async fn retain_slot(&self) -> Result<()> {
        self.client.execute("SELECT pg_copy_logical_replication_slot($1, 'retained')", &[&TAILWATER_SLOT]).await?;
        Ok(())
    }

    pub async fn bytes(&self) -> Result<f64> {
        Ok(self.client.query_one("SELECT pg_relation_size('orders')::float8", &[]).await?.get(0))
    }

    /// Has a daemon copy the table until `streaming` is over. What it and the source did, and the daemon, which runs on.
    pub async fn copy(
        &self,
        home: &Home,
        streaming: impl AsyncFnOnce(&mut Daemon) -> Result<()>,
    ) -> Result<(Daemon, Measure)> {
        self.servers.copy_slot(self.database, TAILWATER_SLOT).await?;
        forget_journal(home)?;
        let before = self.source_cpu()?;
        let began = Instant::now();
        let mut daemon = home.run()?;
        streaming(&mut daemon).await?;
        let measure = Measure {
            seconds: began.elapsed().as_secs_f64(),
            own_cpu: cpu::seconds(daemon.pid()),
            peak_mib: cpu::peak_mib(daemon.pid()),
            // The copy's sessions have ended by now.
            source_cpu: self.source_cpu()? - before,
            ..Measure::default()
        };
        Ok((daemon, measure))
    }

    /// CPU seconds of the source and all its sessions so far.
    pub fn source_cpu(&self) -> Result<f64> {
        Ok(cpu::family_seconds(self.servers.source.postmaster_pid().context("the source runs")?))
    }

    pub async fn drop_slots(&self) -> Result<()> {
        for slot in ["retained", TAILWATER_SLOT] {
            drop_slot(&self.client, slot).await?;
        }
        Ok(())
    }
}
