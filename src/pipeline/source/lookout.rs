//! What is looked at now and then while a source streams: slot, journal, heartbeat; and what the stream's thread tells.

use std::sync::Arc;

use tokio::sync::watch;
use tokio_postgres::Client;
use tracing::warn;

use super::{Source, WATCH_INTERVAL, pause};
use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::pipeline::applier::SourceShared;
use crate::postgres::connect::connect;
use crate::postgres::error::describe;
use crate::source::probe::probe;
use crate::source::stream::StreamObserver;
use crate::telemetry::handles::{PairMetrics, SourceMetrics};

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
                if client.as_ref().is_none_or(Client::is_closed) {
                    client = connect(&url, "tailwater watch").await.ok().map(|connection| connection.client);
                }
                let Some(session) = &client else { continue };
                let Ok(found) = probe(session, &config.slot, &config.publication).await else { continue };
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
                    if let Err(error) =
                        session.query("SELECT pg_logical_emit_message(true, 'tailwater.heartbeat', '')", &[]).await
                    {
                        warn!(source = %name, error = %describe(&error), "heartbeat failed");
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
