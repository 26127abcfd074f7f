//! The ClickHouse sink: rows with a version made of the source position, so that a replay changes nothing.
//!
//! Delivery is at least once; of a key's rows the one with the highest version counts. The checkpoint is a row that is
//! inserted after the data, so what comes again after a crash is what came before, with the same versions.

pub mod address;
mod apply;
pub mod catalog;
pub mod ddl;
pub mod encode;
pub mod error;
pub mod http;
pub mod load;
mod places;
pub mod state;
pub mod statements;
pub mod targets;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

use crate::checkpoint::{Checkpoint, SourceIdentity};
use crate::mapping::plan::Plan;
use crate::sink::{ApplyError, Durable, SinkSetup};
use crate::value::clickhouse::types::Reach;
use address::Address;
use ddl::Topology;
use encode::RowEncoder;
use error::ClickHouseError;
use http::Client;
use statements::TableStatements;

/// A server that has answered, and what is to be known of it.
pub struct Server {
    pub client: Client,
    pub topology: Topology,
    pub reach: Reach,
}

impl Server {
    /// # Errors
    /// The address cannot work, or nobody answers there, or lets us in.
    pub async fn connect(address: Address, topology: Topology) -> Result<Server, ClickHouseError> {
        let client = Client::new(address)?;
        let rows = client.rows(Reach::PROBE).await?;
        let is_new = rows.first().and_then(|row| row.first()).is_some_and(|value| state::number(value) == 1);
        let reach = if is_new { Reach::FourDigits } else { Reach::Documented };
        Ok(Server { client, topology, reach })
    }
}

/// What one plan's rows are written by.
struct Table {
    encoder: RowEncoder,
    statements: TableStatements,
    /// Values for which another was written, since somebody last asked.
    coerced: AtomicU64,
}

/// A word that no other process has, as good as the keys of the standard library's hash maps.
pub(super) fn random_word() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A server-side session, for the temporary tables in it. One statement at a time.
struct Session {
    id: String,
}

impl Session {
    fn settings(&self) -> [(&str, &str); 2] {
        // Longer than the longest statement; the stage goes with the session.
        [("session_id", &self.id), ("session_timeout", "900")]
    }
}

/// Applies one source's batches.
pub struct ClickHouseSink {
    name: String,
    source: String,
    server: Arc<Server>,
    tables: Vec<Table>,
    is_tolerant: Vec<bool>,
    epoch: i64,
    checkpoint: Checkpoint,
    identity: SourceIdentity,
    session: Mutex<Session>,
}

impl ClickHouseSink {
    /// A sink that stands at the checkpoint that was read from it.
    ///
    /// # Errors
    /// A plan does not fit its target any more.
    pub fn new(server: Arc<Server>, setup: SinkSetup, identity: SourceIdentity) -> Result<ClickHouseSink, String> {
        let table = |(number, plan): (usize, &Arc<Plan>)| {
            let encoder = RowEncoder::new(plan, &setup.mask_key, server.reach);
            let encoder = encoder.map_err(|error| format!("table \"{}\": {error}", plan.target))?;
            Ok(Table { encoder, statements: TableStatements::new(plan, number), coerced: AtomicU64::new(0) })
        };
        let tables = setup.plans.iter().enumerate().map(table).collect::<Result<Vec<_>, String>>()?;
        // Nobody else may find the session: its name is made of what no other has.
        let id = format!("tailwater-{}-{}-{}-{:016x}", setup.source, setup.epoch, std::process::id(), random_word());
        Ok(ClickHouseSink {
            is_tolerant: vec![false; tables.len()],
            tables,
            name: setup.name,
            source: setup.source,
            server,
            epoch: setup.epoch,
            checkpoint: setup.checkpoint,
            identity,
            session: Mutex::new(Session { id }),
        })
    }

    pub fn client(&self) -> &Client {
        &self.server.client
    }

    /// What the sink durably holds.
    pub fn durable(&self) -> Durable {
        Durable::new(&self.name, self.checkpoint)
    }

    /// The table may hold rows newer than the changes that come.
    pub fn set_tolerant(&mut self, plan_index: usize, tolerant: bool) {
        self.is_tolerant[plan_index] = tolerant;
    }

    /// Values of each plan's table for which `on_overflow` had another written, since the last time.
    pub fn take_coerced(&self) -> impl Iterator<Item = (usize, u64)> {
        let taken = |(plan, table): (usize, &Table)| (plan, table.coerced.swap(0, Ordering::Relaxed));
        self.tables.iter().enumerate().map(taken).filter(|(_, coerced)| *coerced > 0)
    }

    /// Records a checkpoint, unless somebody else took the source over.
    async fn write_checkpoint(&mut self, checkpoint: Checkpoint) -> Result<(), ApplyError> {
        let (epoch, end_lsn) = (self.epoch, self.checkpoint.end_lsn);
        let written =
            state::write_checkpoint(&self.server.client, &self.source, &checkpoint, &self.identity, epoch).await;
        if !written.map_err(|error| apply::control(&error))? {
            return Err(ApplyError::Fenced { epoch, end_lsn });
        }
        self.checkpoint = checkpoint;
        Ok(())
    }
}
