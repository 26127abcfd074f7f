//! The closed set of sinks behind one face: what appliers, copies and the start-up ask of any of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Client;

use super::clickhouse::address::Address;
use super::clickhouse::ddl::{Topology, state_schema};
use super::clickhouse::error::ClickHouseError;
use super::clickhouse::state::TableRow;
use super::clickhouse::{ClickHouseSink, Server, state as clickhouse};
use super::kafka::KafkaSink;
use super::kafka::cluster::Cluster;
use super::kafka::session::KafkaSession;
use super::postgres::{PostgresSink, state};
use super::state::{StoredCheckpoint, StoredTable, TableState, name_text};
use super::{ApplyError, Durable, SinkSetup};
use crate::batch::{Batch, Builder};
use crate::catalog::TableName;
use crate::checkpoint::SourceIdentity;
use crate::diagnostic::chain;
use crate::lsn::Lsn;
use crate::postgres::connect::connect;
use crate::postgres::error::describe;
use crate::postgres::url::PgUrl;

/// Where a sink is reached, ready to be connected to.
#[derive(Clone)]
pub enum SinkAddress {
    Postgres(PgUrl),
    ClickHouse(Address, Topology),
    Kafka(Arc<Cluster>),
}

/// A session with what a sink remembers: checkpoints and table states. Errors are text without secrets or row values.
pub enum SinkSession {
    Postgres(Client),
    ClickHouse(Arc<Server>),
    Kafka(KafkaSession),
}

/// What a sink says of a source.
pub struct Said {
    pub stored: Option<StoredCheckpoint>,
    pub tables: Vec<StoredTable>,
    /// It stays so if nobody writes. Else somebody who may be dead by now has begun what is not decided yet, and holds back
    /// from view what is: see [`SinkSession::settle`].
    pub is_settled: bool,
}

/// The least time between the beginnings of two batches.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    live: Duration,
    behind: Duration,
}

impl Pace {
    /// Before the batch that is being built.
    pub fn of(&self, builder: &Builder) -> Duration {
        if builder.is_behind() { self.behind } else { self.live }
    }
}

/// Each insert makes a part, which merges must take in again: some a second they do beside anything.
const CLICKHOUSE_PACE: Duration = Duration::from_millis(200);
/// What the source sends late may be shown a little later still, and an insert costs the server 8 ms by itself: once a
/// second, as ClickHouse's own documentation asks for, unless a batch is full before.
const CLICKHOUSE_PACE_BEHIND: Duration = Duration::from_secs(1);
/// A server that is slow has more to merge than it likes.
const CLICKHOUSE_PACE_MAX: Duration = Duration::from_secs(5);

impl SinkAddress {
    /// After a batch that took so long.
    pub fn pace(&self, took: Duration) -> Pace {
        match self {
            SinkAddress::Postgres(_) | SinkAddress::Kafka(_) => Pace { live: Duration::ZERO, behind: Duration::ZERO },
            SinkAddress::ClickHouse(..) => {
                let live = (2 * took).clamp(CLICKHOUSE_PACE, CLICKHOUSE_PACE_MAX);
                Pace { live, behind: live.max(CLICKHOUSE_PACE_BEHIND) }
            }
        }
    }

    /// A session with the sink.
    ///
    /// # Errors
    /// Why there is none, as text without secrets.
    pub async fn connect(&self, app_name: &str) -> Result<SinkSession, String> {
        match self {
            SinkAddress::Postgres(url) => {
                let connection = connect(url, app_name).await.map_err(|error| chain(&error))?;
                // A role's default must not turn a reported commit into a hope.
                let durable = connection.client.batch_execute("SET synchronous_commit = on").await;
                durable.map_err(|error| describe(&error))?;
                Ok(SinkSession::Postgres(connection.client))
            }
            SinkAddress::ClickHouse(address, topology) => {
                let server = Server::connect(address.clone(), topology.clone()).await.map_err(text)?;
                Ok(SinkSession::ClickHouse(Arc::new(server)))
            }
            // Whether it answers is found out with the first question.
            SinkAddress::Kafka(cluster) => Ok(SinkSession::Kafka(KafkaSession::new(cluster.clone()))),
        }
    }
}

impl SinkSession {
    /// Makes the state tables if they are not there.
    pub async fn ensure_state(&self) -> Result<(), String> {
        match self {
            SinkSession::Postgres(client) => {
                let lacks_schema = state::lacks_schema(client).await.map_err(|error| describe(&error))?;
                if lacks_schema {
                    client.batch_execute(state::STATE_SCHEMA).await.map_err(|error| describe(&error))?;
                }
                Ok(())
            }
            SinkSession::ClickHouse(server) => {
                if !clickhouse::has_schema(&server.client).await.map_err(text)? {
                    for statement in state_schema(&server.topology) {
                        server.client.execute(&statement).await.map_err(text)?;
                    }
                }
                Ok(())
            }
            // A source's topic is made with its first checkpoint.
            SinkSession::Kafka(_) => Ok(()),
        }
    }

    /// Do the state tables exist?
    pub async fn has_state(&self) -> Result<bool, String> {
        match self {
            SinkSession::Postgres(client) => state::has_schema(client).await.map_err(|error| describe(&error)),
            SinkSession::ClickHouse(server) => clickhouse::has_schema(&server.client).await.map_err(text),
            SinkSession::Kafka(_) => Ok(true),
        }
    }

    /// All that the sink says of a source, without waiting for anybody.
    pub async fn look(&self, source: &str) -> Result<Said, String> {
        if let SinkSession::Kafka(session) = self {
            let (remembered, is_settled) = session.look(source).await?;
            let tables = remembered.stored_tables()?;
            return Ok(Said { stored: remembered.checkpoint.clone(), tables, is_settled });
        }
        let stored = self.read_checkpoint(source).await?;
        Ok(Said { stored, tables: self.read_tables(source).await?, is_settled: true })
    }

    /// Ends what dead daemons began and nobody will decide. For whoever has the source's slot: a living one is fenced, too.
    pub async fn settle(&self, source: &str) -> Result<(), String> {
        match self {
            // There a dead one's transaction ends with its connection, or hides nothing.
            SinkSession::Postgres(_) | SinkSession::ClickHouse(_) => Ok(()),
            SinkSession::Kafka(session) => session.cluster.fence(source).await.map(drop),
        }
    }

    /// What is read next stays so, unless a later epoch than `epoch` has begun: for whoever goes on from there.
    pub async fn hold(&mut self, source: &str, epoch: i64) -> Result<(), String> {
        match self {
            // They compare when they write.
            SinkSession::Postgres(_) | SinkSession::ClickHouse(_) => Ok(()),
            SinkSession::Kafka(session) => session.hold(source, epoch).await,
        }
    }

    pub async fn read_checkpoint(&self, source: &str) -> Result<Option<StoredCheckpoint>, String> {
        match self {
            SinkSession::Postgres(client) => {
                state::read_checkpoint(client, source).await.map_err(|error| describe(&error))
            }
            SinkSession::ClickHouse(server) => clickhouse::read_checkpoint(&server.client, source).await.map_err(text),
            SinkSession::Kafka(session) => Ok(session.look(source).await?.0.checkpoint.clone()),
        }
    }

    pub async fn read_tables(&self, source: &str) -> Result<Vec<StoredTable>, String> {
        match self {
            SinkSession::Postgres(client) => state::read_tables(client, source).await.map_err(|error| describe(&error)),
            SinkSession::ClickHouse(server) => clickhouse::read_tables(&server.client, source).await.map_err(text),
            SinkSession::Kafka(session) => session.look(source).await?.0.stored_tables(),
        }
    }

    /// Writes a source's first checkpoint, unless it has one.
    pub async fn create_checkpoint(&self, source: &str, at: Lsn, identity: &SourceIdentity) -> Result<(), String> {
        match self {
            SinkSession::Postgres(client) => {
                state::create_checkpoint(client, source, at, identity).await.map_err(|error| describe(&error))
            }
            SinkSession::ClickHouse(server) => {
                clickhouse::create_checkpoint(&server.client, source, at, identity).await.map_err(text)
            }
            SinkSession::Kafka(session) => session.cluster.create_checkpoint(source, at, identity).await,
        }
    }

    /// Takes the source over: no daemon with an older epoch can write any more. `None` if somebody else wrote meanwhile.
    pub async fn take_over(
        &mut self,
        source: &str,
        seen: &StoredCheckpoint,
        timeline: u32,
    ) -> Result<Option<i64>, String> {
        match self {
            SinkSession::Postgres(client) => {
                state::take_over(client, source, seen, timeline).await.map_err(|error| describe(&error))
            }
            SinkSession::ClickHouse(server) => {
                clickhouse::take_over(&server.client, source, seen, timeline).await.map_err(text)
            }
            SinkSession::Kafka(session) => session.take_over(source, seen, timeline).await,
        }
    }

    /// The session, if that it took a source over is worth something to whoever writes: they need not do it again.
    pub fn taken_over(self) -> Option<SinkSession> {
        match self {
            // They compare when they write, by connections of their own.
            SinkSession::Postgres(_) | SinkSession::ClickHouse(_) => None,
            session @ SinkSession::Kafka(_) => Some(session),
        }
    }

    /// Sets a table's state; makes the row if there is none.
    pub async fn write_table(
        &self,
        source: &str,
        origin: &TableName,
        target: &TableName,
        table: TableState,
        reason: Option<&str>,
    ) -> Result<(), String> {
        match self {
            SinkSession::Postgres(client) => {
                let written = state::write_table(client, source, origin, target, table, Lsn::ZERO, reason);
                written.await.map_err(|error| describe(&error))
            }
            SinkSession::ClickHouse(server) => {
                let row = TableRow {
                    source,
                    target,
                    origin,
                    state: table,
                    lsn: Lsn::ZERO,
                    until: Lsn::ZERO,
                    rows: 0,
                    was_empty: false,
                    reason,
                    epoch: 0,
                };
                clickhouse::write_table(&server.client, &row).await.map_err(text)
            }
            SinkSession::Kafka(session) => session.cluster.write_table(source, origin, target, table, reason).await,
        }
    }

    /// Takes a table out of the stream that has a state already; what else is known of it stays.
    pub async fn leave_out(&self, source: &str, target: &TableName, reason: &str) -> Result<(), String> {
        match self {
            SinkSession::Postgres(client) => {
                state::leave_out(client, source, target, reason).await.map_err(|error| describe(&error))
            }
            SinkSession::ClickHouse(server) => {
                clickhouse::leave_out(&server.client, source, target, reason).await.map_err(text)
            }
            SinkSession::Kafka(session) => {
                let quarantined = TableState::Quarantined;
                session.cluster.write_table(source, target, target, quarantined, Some(reason)).await
            }
        }
    }

    /// The session becomes the sink that applies batches.
    ///
    /// # Errors
    /// A plan does not fit its target any more, or the sink does not answer.
    pub async fn into_sink(self, setup: SinkSetup, identity: SourceIdentity) -> Result<AnySink, ApplyError> {
        match self {
            SinkSession::Postgres(client) => Ok(AnySink::Postgres(Box::new(PostgresSink::new(client, setup)))),
            SinkSession::ClickHouse(server) => {
                let sink = ClickHouseSink::new(server, setup, identity);
                Ok(AnySink::ClickHouse(Box::new(sink.map_err(|message| ApplyError::Fatal { message })?)))
            }
            SinkSession::Kafka(session) => Ok(AnySink::Kafka(Box::new(session.into_sink(setup, identity).await?))),
        }
    }
}

/// A sink that applies one source's batches.
pub enum AnySink {
    Postgres(Box<PostgresSink>),
    ClickHouse(Box<ClickHouseSink>),
    Kafka(Box<KafkaSink>),
}

fn text(error: ClickHouseError) -> String {
    error.to_string()
}

impl AnySink {
    /// Applies a batch; `None` for a part of a larger transaction.
    ///
    /// # Errors
    /// See [`ApplyError`]: after any error connect anew and read the checkpoint.
    pub async fn apply(&mut self, batch: &Batch) -> Result<Option<Durable>, ApplyError> {
        match self {
            AnySink::Postgres(sink) => sink.apply(batch).await,
            AnySink::ClickHouse(sink) => sink.apply(batch).await,
            AnySink::Kafka(sink) => sink.apply(batch).await,
        }
    }

    /// Values of each plan's table for which `on_overflow` had another written, since the last time.
    pub fn take_coerced(&self) -> Vec<(usize, u64)> {
        match self {
            // It holds what the source's types hold.
            AnySink::Postgres(_) | AnySink::Kafka(_) => Vec::new(),
            AnySink::ClickHouse(sink) => sink.take_coerced().collect(),
        }
    }

    /// What is applied from here to the next checkpoint is one, if the sink can do that.
    ///
    /// # Errors
    /// The sink does not answer.
    pub async fn begin(&mut self) -> Result<(), ApplyError> {
        match self {
            AnySink::Postgres(sink) => sink.begin().await,
            // Its rows say by their versions what they are worth; nothing is held back.
            AnySink::ClickHouse(_) => Ok(()),
            AnySink::Kafka(sink) => sink.begin().await,
        }
    }

    /// When a sign of life is to be sent, though there may be nothing to apply.
    pub fn heartbeat_due_at(&self) -> Option<Instant> {
        match self {
            AnySink::Postgres(_) | AnySink::ClickHouse(_) => None,
            AnySink::Kafka(sink) => sink.heartbeat_due_at(),
        }
    }

    /// Sends it, if it is time. What the sink holds stays as it is.
    ///
    /// # Errors
    /// See [`ApplyError`]: after any error connect anew and read the checkpoint.
    pub async fn heartbeat(&mut self) -> Result<(), ApplyError> {
        match self {
            AnySink::Postgres(_) | AnySink::ClickHouse(_) => Ok(()),
            AnySink::Kafka(sink) => sink.heartbeat().await,
        }
    }

    /// What the sink durably holds.
    pub fn durable(&self) -> Durable {
        match self {
            AnySink::Postgres(sink) => sink.durable(),
            AnySink::ClickHouse(sink) => sink.durable(),
            AnySink::Kafka(sink) => sink.durable(),
        }
    }

    /// New rows of this table go through the merge from now on: the target turned out to hold some of them.
    pub fn merge_inserts(&mut self, plan_index: usize) {
        match self {
            AnySink::Postgres(sink) => sink.merge_inserts(plan_index),
            // Every insert is a merge there, and in Kafka every message is new.
            AnySink::ClickHouse(_) | AnySink::Kafka(_) => {}
        }
    }

    /// Rows may hold values as text from now on.
    pub fn take_text(&mut self) {
        match self {
            AnySink::Postgres(sink) => sink.take_text(),
            // They read each value as it comes.
            AnySink::ClickHouse(_) | AnySink::Kafka(_) => {}
        }
    }

    /// The table may hold rows newer than the changes that come.
    pub fn set_tolerant(&mut self, plan_index: usize, tolerant: bool) {
        match self {
            AnySink::Postgres(sink) => sink.set_tolerant(plan_index, tolerant),
            AnySink::ClickHouse(sink) => sink.set_tolerant(plan_index, tolerant),
            // Nothing is looked up there.
            AnySink::Kafka(_) => {}
        }
    }

    /// Notes that copied tables follow the stream from now on, with what the last `begin` began.
    ///
    /// # Errors
    /// Also of what was applied before and is refused only now.
    pub async fn write_joined(&mut self, source: &str, targets: &[String]) -> Result<(), ApplyError> {
        let written = match self {
            AnySink::Postgres(sink) => {
                state::write_joined(sink.client(), source, targets).await.map_err(|error| describe(&error))
            }
            AnySink::ClickHouse(sink) => clickhouse::write_joined(sink.client(), source, targets).await.map_err(text),
            AnySink::Kafka(sink) => return sink.write_joined(targets).await,
        };
        written.map_err(|message| ApplyError::Transient { message })
    }

    /// Notes that a table holds what the source has, at the checkpoint.
    pub async fn write_streaming(&mut self, source: &str, target: &TableName) -> Result<(), String> {
        match self {
            AnySink::Postgres(sink) => {
                state::write_streaming(sink.client(), source, target).await.map_err(|error| describe(&error))
            }
            AnySink::ClickHouse(sink) => clickhouse::write_streaming(sink.client(), source, target).await.map_err(text),
            AnySink::Kafka(sink) => sink.write_streaming(&name_text(target)).await,
        }
    }

    /// Has every view refreshed when a daemon starts next: rows under them are about to change behind its back.
    pub async fn forget_views(&self) -> Result<(), String> {
        match self {
            AnySink::Postgres(sink) => state::forget_views(sink.client()).await.map_err(|error| describe(&error)),
            AnySink::ClickHouse(sink) => clickhouse::forget_views(sink.client()).await.map_err(text),
            // It has none.
            AnySink::Kafka(_) => Ok(()),
        }
    }
}
