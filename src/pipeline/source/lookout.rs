//! What is looked at now and then while a source streams: slot, journal, heartbeat; and what the stream's thread tells.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tracing::warn;

use super::{Source, WATCH_INTERVAL, pause};
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::pipeline::applier::SourceShared;
use crate::postgres::connect::{ConnectError, connect};
use crate::postgres::error::describe;
use crate::source::probe::probe;
use crate::source::stream::StreamObserver;
use crate::telemetry::handles::{PairMetrics, SourceMetrics};

/// How long the source may take to answer; it is asked for little.
const LOOK_TIMEOUT: Duration = Duration::from_secs(15);

/// 57P03: the server takes no sessions any more, or not yet.
fn is_shutting_down(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Refused { source, .. } if source.is(&SqlState::CANNOT_CONNECT_NOW))
}

impl Source {
    /// Looks at slot and journal now and then, and lets an idle database's slot advance.
    pub(super) fn watch_source(
        &self,
        shared: Arc<SourceShared>,
        metrics: SourceMetrics,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + use<> {
        let (name, url, config, context) =
            (self.name.clone(), self.url.clone(), self.config.clone(), self.context.clone());
        async move {
            let mut client: Option<Client> = None;
            let mut beat = std::time::Instant::now();
            let mut wal_at_beat = Lsn::ZERO;
            loop {
                if pause(WATCH_INTERVAL, &mut stop).await {
                    return;
                }
                metrics.journal_bytes.set(shared.journal.bytes());
                metrics.confirmed_flush_lsn.set(shared.stream.confirmed());
                if let Some(held) = shared.journal.held() {
                    context.board.journal_range(&name, held.first, held.end.end_lsn);
                }
                context.board.source_paused(&name, shared.stream.is_full());
                if client.as_ref().is_none_or(Client::is_closed) {
                    client = match connect(&url, "tailwater watch").await {
                        Ok(connection) => Some(connection.client),
                        Err(error) => {
                            if is_shutting_down(&error) {
                                shared.stream.source_leaves();
                            }
                            None
                        }
                    };
                }
                let Some(session) = &client else { continue };
                let Ok(found) = timeout(LOOK_TIMEOUT, probe(session, &config.slot, &config.publication)).await else {
                    // Half open: nobody closed it, and nobody answers.
                    client = None;
                    continue;
                };
                let Ok(found) = found else { continue };
                context.board.source_wal(&name, found.server.current_flush_lsn);
                if let Some(slot) = &found.slot {
                    metrics.slot_retained_wal_bytes.set(slot.retained_bytes);
                    metrics.set_slot_safe_wal(slot.safe_wal_size);
                    metrics.set_slot_active(slot.active);
                }
                // A heartbeat only where WAL moved and the stream has not heard of it: other databases' work.
                let unheard = found.server.current_flush_lsn > shared.stream.received();
                let moved = found.server.current_flush_lsn > wal_at_beat;
                if !config.heartbeat.is_zero() && beat.elapsed() >= config.heartbeat && unheard && moved {
                    beat = std::time::Instant::now();
                    let message = "SELECT pg_logical_emit_message(true, 'tailwater.heartbeat', '')";
                    match timeout(LOOK_TIMEOUT, session.query(message, &[])).await {
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => warn!(source = %name, error = %describe(&error), "heartbeat failed"),
                        Err(_) => client = None,
                    }
                    wal_at_beat = found.server.current_flush_lsn;
                }
            }
        }
    }
}

/// Feeds the metrics from the stream's thread.
pub(super) struct Received {
    pub(super) metrics: SourceMetrics,
    pub(super) pairs: Vec<PairMetrics>,
}

impl StreamObserver for Received {
    fn received(&mut self, bytes: usize, end_lsn: Lsn, commit_ts: Option<UnixMicros>) {
        self.metrics.received_bytes.inc_by(bytes as u64);
        self.metrics.received_lsn.set(end_lsn);
        for pair in &self.pairs {
            match commit_ts {
                Some(commit_ts) => pair.progress.committed(end_lsn, commit_ts),
                None => pair.progress.wal_reached(end_lsn),
            }
        }
    }
}
