//! What every table of the source held after every commit, learnt by a slot and a decoder that are not tailwater's.
//!
//! ```text
//!  source ── slot "oracle", pgwire-replication ──▶ pgoutput (text) ──▶ History: end_lsn → digest of each table
//!  sink   ── one REPEATABLE READ transaction ────▶ checkpoint.end_lsn + digest of each table      must be equal
//! ```

pub mod digest;
pub mod history;
pub mod pgoutput;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pgwire_replication::{Lsn as WireLsn, ReplicationClient, ReplicationConfig, ReplicationEvent};
use tailwater::lsn::Lsn;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::digest::{Digest, TEXT_FORM, Table};
use self::history::History;
use super::cluster::Cluster;
use super::wait::LOOK_EVERY;

/// Its slot and its publication.
pub const NAME: &str = "oracle";

/// Beyond any restart of the source that a test makes.
const KNOW_WITHIN: Duration = Duration::from_secs(120);

/// Everything before this is in the history; nothing at or after it may be relied on.
#[derive(Clone, Debug)]
enum Known {
    Before(Lsn),
    /// The reader met what it cannot read.
    Failed(String),
}

pub struct Oracle {
    tables: Vec<Table>,
    history: Arc<Mutex<History>>,
    known: watch::Receiver<Known>,
    reader: JoinHandle<()>,
}

impl Oracle {
    /// Starts reading `tables` (`schema.name`), which must still be empty.
    pub async fn start(source: &Cluster, database: &str, tables: &[&str]) -> Result<Oracle> {
        let client = source.connect(database).await?;
        let mut described = Vec::new();
        for name in tables {
            let table = Table::describe(&client, name).await?;
            let rows: i64 = client.query_one(&format!("SELECT count(*) FROM {name}"), &[]).await?.get(0);
            ensure!(rows == 0, "{name} has rows already: the oracle must see them come");
            described.push(table);
        }
        let list = tables.join(", ");
        client
            .batch_execute(&format!(
                "CREATE PUBLICATION {NAME} FOR TABLE {list} WITH (publish_via_partition_root = true)"
            ))
            .await?;
        let sql = "SELECT lsn::text FROM pg_create_logical_replication_slot($1, 'pgoutput')";
        let start: Lsn = client.query_one(sql, &[&NAME]).await?.get::<_, &str>(0).parse()?;

        let socket = source.socket_directory().display().to_string();
        let options = TEXT_FORM.iter().map(|(name, value)| format!("-c {name}={value}")).collect::<Vec<_>>().join(" ");
        let config = ReplicationConfig::unix(socket, source.port(), "postgres", "", database, NAME, NAME)
            .with_options(options)
            .with_status_interval(Duration::from_millis(500));
        let history = Arc::new(Mutex::new(History::new(&described, start)));
        let (tell, known) = watch::channel(Known::Before(start));
        let reader = tokio::spawn(read(config, Arc::clone(&history), tell));
        Ok(Oracle { tables: described, history, known, reader })
    }

    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// How many commits changed a table so far.
    pub fn commits(&self) -> usize {
        self.lock().commits()
    }

    /// What each table, in the order given to `start`, held when everything up to `end_lsn` had been committed. Waits
    /// until that is known, e.g. while the source is down.
    pub async fn digests_at(&self, end_lsn: Lsn) -> Result<Vec<Digest>> {
        let mut known = self.known.clone();
        // What this answers holds the channel's lock, and with a writer in line a second look would wait for ever.
        let enough = async {
            let enough = known.wait_for(|known| match known {
                Known::Before(lsn) => *lsn >= end_lsn,
                Known::Failed(_) => true,
            });
            enough.await.map(drop)
        };
        let waited = tokio::time::timeout(KNOW_WITHIN, enough).await;
        if let Known::Failed(why) = &*self.known.borrow() {
            bail!("the oracle cannot read the source: {why}");
        }
        waited
            .with_context(|| format!("the oracle did not reach {end_lsn}"))?
            .context("the oracle's reader is gone")?;
        Ok(self.lock().at(end_lsn))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Reads until aborted; a lost connection is made anew, from the last commit read.
async fn read(config: ReplicationConfig, history: Arc<Mutex<History>>, known: watch::Sender<Known>) {
    loop {
        let from = history.lock().map_or(Lsn::ZERO, |history| history.end());
        let config = config.clone().with_start_lsn(WireLsn(from.0)).with_ack_lsn(WireLsn(from.0));
        // An error here is the source's death, which the tests cause.
        if let Ok(client) = ReplicationClient::connect(config).await
            && let Err(err) = read_connection(client, &history, &known).await
        {
            known.send_replace(Known::Failed(format!("{err:#}")));
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Reads one connection until it ends. An error is something that must not be in the stream.
async fn read_connection(
    mut client: ReplicationClient,
    history: &Mutex<History>,
    known: &watch::Sender<Known>,
) -> Result<()> {
    let mut messages = Some(Vec::new());
    let mut open = false;
    while let Ok(Some(event)) = client.recv().await {
        let reached = match event {
            ReplicationEvent::Begin { .. } => {
                open = true;
                continue;
            }
            ReplicationEvent::XLogData { data, .. } => {
                messages.get_or_insert_default().push(pgoutput::decode(data)?);
                continue;
            }
            ReplicationEvent::Commit { end_lsn, .. } => {
                open = false;
                let messages = messages.take().unwrap_or_default();
                let mut history = history.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                history.commit(Lsn(end_lsn.0), messages)?;
                end_lsn
            }
            // Inside a transaction it says nothing about that transaction.
            ReplicationEvent::KeepAlive { wal_end, .. } if !open => wal_end,
            _ => continue,
        };
        client.update_applied_lsn(reached);
        known.send_if_modified(|known| match known {
            Known::Before(lsn) if lsn.0 < reached.0 => {
                *lsn = Lsn(reached.0);
                true
            }
            _ => false,
        });
    }
    Ok(())
}
