//! The metrics registry and its typed handles. Labels are resolved once, at start; per row a handle is one atomic addition.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus::{Registry, TextEncoder};

use super::families::Families;
use super::handles::clamped;
pub use super::handles::{
    BytesGauge, LsnGauge, PairMetrics, SourceMetrics, Stage, TableMetrics, TableState, ViewMetrics,
};
use super::process::Usage;
use crate::checkpoint::UnixMicros;

/// Content type of [`Metrics::render`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// All metrics of one daemon.
pub struct Metrics {
    registry: Registry,
    families: Families,
    /// What was handed out, for gauges that depend on the time at which one looks, and for the status document.
    handles: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    sources: Vec<SourceMetrics>,
    pairs: Vec<PairMetrics>,
    tables: Vec<TableMetrics>,
    views: Vec<ViewMetrics>,
}

impl Metrics {
    /// `version` is the crate's, with the commit where the build knows it.
    pub fn new(version: &str) -> Arc<Metrics> {
        let registry = Registry::new();
        let families = Families::register(&registry);
        families.build_info.with_label_values(&[version]).set(1);
        families.start_time_seconds.set(UnixMicros::now().0 as f64 / 1e6);
        Arc::new(Metrics { registry, families, handles: Mutex::default() })
    }

    /// The handles of one source. Calling it again gives the same ones, as with all handles here.
    pub fn source(&self, source: &str) -> SourceMetrics {
        let f = &self.families;
        let label = &[source];
        let mut handles = self.handles();
        if let Some(known) = handles.sources.iter().find(|known| known.name.as_ref() == source) {
            return known.clone();
        }
        let safe_wal_bytes = f.slot_safe_wal_bytes.with_label_values(label);
        safe_wal_bytes.set(f64::NAN);
        let made = SourceMetrics {
            name: source.into(),
            received_lsn: LsnGauge(f.received_lsn.with_label_values(label)),
            confirmed_flush_lsn: LsnGauge(f.confirmed_flush_lsn.with_label_values(label)),
            slot_retained_wal_bytes: BytesGauge(f.slot_retained_wal_bytes.with_label_values(label)),
            safe_wal_bytes,
            slot_active: f.slot_active.with_label_values(label),
            connected: f.connected.with_label_values(label),
            journal_bytes: BytesGauge(f.journal_bytes.with_label_values(label)),
            received_bytes: f.received_bytes.with_label_values(label),
            reconnects: f.reconnects.with_label_values(label),
        };
        handles.sources.push(made.clone());
        made
    }

    /// The handles of one sink fed by one source.
    pub fn pair(&self, source: &str, sink: &str) -> PairMetrics {
        let f = &self.families;
        let label = &[source, sink];
        let mut handles = self.handles();
        if let Some(known) = handles.pairs.iter().find(|pair| pair.is(source, sink)) {
            return known.clone();
        }
        let pair = PairMetrics {
            source: source.into(),
            sink: sink.into(),
            lag_bytes: BytesGauge(f.lag_bytes.with_label_values(label)),
            lag_seconds: f.lag_seconds.with_label_values(label),
            checkpoint_lsn: LsnGauge(f.checkpoint_lsn.with_label_values(label)),
            transactions: f.transactions.with_label_values(label),
            batch_rows: f.batch_rows.with_label_values(label),
            apply_seconds: f.apply_seconds.with_label_values(label),
            progress: Arc::default(),
        };
        handles.pairs.push(pair.clone());
        pair
    }

    /// The handles of one target table; its state is `pending` until set.
    pub fn table(&self, source: &str, sink: &str, table: &str) -> TableMetrics {
        let pair = self.pair(source, sink);
        let f = &self.families;
        let label = &[source, sink, table];
        let mut handles = self.handles();
        if let Some(known) =
            handles.tables.iter().find(|known| known.name.as_ref() == table && known.pair.is(source, sink))
        {
            return known.clone();
        }
        let op = |op| f.changes.with_label_values(&[source, sink, table, op]);
        let made = TableMetrics {
            name: table.into(),
            pair,
            insert: op("insert"),
            update: op("update"),
            delete: op("delete"),
            truncate: op("truncate"),
            snapshot_rows: f.snapshot_rows.with_label_values(label),
            value_coerced: f.value_coerced.with_label_values(label),
            dead_letters: f.dead_letters.with_label_values(label),
            lag_seconds: f.table_lag_seconds.with_label_values(label),
            states: TableState::ALL
                .map(|state| f.table_state.with_label_values(&[source, sink, table, state.as_str()])),
            left_stream_at: Arc::default(),
        };
        made.set_state(TableState::Pending);
        handles.tables.push(made.clone());
        made
    }

    pub fn view(&self, sink: &str, view: &str) -> ViewMetrics {
        let f = &self.families;
        let label = &[sink, view];
        let mut handles = self.handles();
        if let Some(known) = handles.views.iter().find(|known| known.key.0 == sink && known.key.1 == view) {
            return known.clone();
        }
        let made = ViewMetrics {
            key: Arc::new((sink.to_owned(), view.to_owned())),
            refresh_seconds: f.refresh_seconds.with_label_values(label),
            staleness_seconds: f.refresh_staleness_seconds.with_label_values(label),
            errors: f.refresh_errors.with_label_values(label),
            stale_since: Arc::default(),
        };
        handles.views.push(made.clone());
        made
    }

    /// Counts an error, also one that will be retried. `kind` is a constant of the code, never a message.
    pub fn error(&self, stage: Stage, kind: &'static str) {
        self.families.errors.with_label_values(&[stage.as_str(), kind]).inc();
    }

    /// The source is stopped until a human decides.
    pub fn halted(&self, source: &str, reason: &str) {
        self.families.halted.with_label_values(&[source, reason]).set(1);
    }

    /// All metrics in Prometheus's text format, with what depends on the time computed for `now`.
    ///
    /// # Errors
    /// Only if the registry holds an inconsistent family.
    pub fn render(&self, now: UnixMicros) -> Result<String, prometheus::Error> {
        self.compute(now);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    pub(super) fn pairs(&self) -> Vec<PairMetrics> {
        self.handles().pairs.clone()
    }

    pub(super) fn tables(&self) -> Vec<TableMetrics> {
        self.handles().tables.clone()
    }

    pub(super) fn views(&self) -> Vec<ViewMetrics> {
        self.handles().views.clone()
    }

    fn compute(&self, now: UnixMicros) {
        let handles = self.handles();
        for pair in &handles.pairs {
            pair.lag_seconds.set(pair.progress.lag_seconds(now));
            pair.lag_bytes.set(pair.progress.lag_bytes());
            pair.checkpoint_lsn.set(pair.progress.checkpoint_lsn());
        }
        for table in &handles.tables {
            table.lag_seconds.set(table.lag_seconds(now));
        }
        for view in &handles.views {
            view.staleness_seconds.set(view.staleness_seconds(now));
        }
        let usage = Usage::of_self();
        self.families.resident_memory_bytes.set(clamped(usage.resident_bytes));
        let counted = self.families.cpu_seconds.get();
        self.families.cpu_seconds.inc_by((usage.cpu_seconds - counted).max(0.0));
    }

    fn handles(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::lsn::Lsn;

    fn populated() -> Arc<Metrics> {
        let metrics = Metrics::new("1.2.3");
        let source = metrics.source("lms");
        source.received_lsn.set(Lsn(0x16B_3748));
        source.set_slot_safe_wal(None);
        let pair = metrics.pair("lms", "warehouse");
        pair.batch_rows.observe(3.0);
        pair.apply_seconds.observe(0.004);
        metrics.table("lms", "warehouse", "dwh.d_course").insert.inc_by(7);
        metrics.view("warehouse", "dwh.f_lesson").refreshed(0.2, None);
        metrics.error(Stage::Apply, "connection");
        metrics.halted("lms", "slot_lost");
        metrics
    }

    #[test]
    fn every_promised_metric_is_exposed() {
        let text = populated().render(UnixMicros(1)).expect("consistent");
        let promised = "replication_lag_bytes replication_lag_seconds table_lag_seconds slot_retained_wal_bytes \
            slot_safe_wal_bytes slot_active received_lsn confirmed_flush_lsn checkpoint_lsn changes_total \
            transactions_total batch_rows apply_seconds journal_bytes snapshot_rows_total table_state refresh_seconds \
            refresh_staleness_seconds value_coerced_total dead_letters_total errors_total build_info halted \
            process_resident_memory_bytes process_cpu_seconds_total";
        for name in promised.split_whitespace() {
            assert!(text.contains(&format!("# HELP tailwater_{name} ")), "{name} has no help");
            assert!(text.lines().any(|line| line.starts_with(&format!("tailwater_{name}"))), "{name} has no value");
        }
    }

    #[test]
    fn values_and_labels_stand_as_promised() {
        let text = populated().render(UnixMicros(1)).expect("consistent");
        for line in [
            "tailwater_build_info{version=\"1.2.3\"} 1",
            "tailwater_received_lsn{source=\"lms\"} 23803720",
            "tailwater_slot_safe_wal_bytes{source=\"lms\"} inf",
            "tailwater_changes_total{op=\"insert\",sink=\"warehouse\",source=\"lms\",table=\"dwh.d_course\"} 7",
            "tailwater_errors_total{kind=\"connection\",stage=\"apply\"} 1",
            "tailwater_halted{reason=\"slot_lost\",source=\"lms\"} 1",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn a_table_is_in_exactly_one_state() {
        let metrics = populated();
        let table = metrics.table("lms", "warehouse", "dwh.d_course");
        for state in TableState::ALL {
            table.set_state(state);
            let text = metrics.render(UnixMicros(1)).expect("consistent");
            let set: Vec<_> = text
                .lines()
                .filter(|line| line.starts_with("tailwater_table_state{") && line.ends_with(" 1"))
                .collect();
            assert_eq!(set.len(), 1, "{set:?}");
            assert!(set[0].contains(&format!("state=\"{}\"", state.as_str())), "{set:?}");
        }
    }

    #[test]
    fn lag_in_seconds_is_that_of_the_moment_of_the_scrape() {
        let metrics = Metrics::new("0");
        let pair = metrics.pair("lms", "warehouse");
        let table = metrics.table("lms", "warehouse", "t");
        table.set_state(TableState::Streaming);
        metrics.pair("lms", "warehouse").progress.committed(Lsn(40), UnixMicros(1_000_000));
        let text = metrics.render(UnixMicros(3_500_000)).expect("consistent");
        assert!(text.contains("tailwater_replication_lag_seconds{sink=\"warehouse\",source=\"lms\"} 2.5"), "{text}");
        assert!(
            text.contains("tailwater_table_lag_seconds{sink=\"warehouse\",source=\"lms\",table=\"t\"} 2.5"),
            "{text}"
        );
        assert!(text.contains("tailwater_replication_lag_bytes{sink=\"warehouse\",source=\"lms\"} 40"), "{text}");
        pair.progress.durable(&Checkpoint { commit_lsn: Lsn(39), end_lsn: Lsn(40), ordinal: 1, commit_ts: None });
        let text = metrics.render(UnixMicros(9_000_000)).expect("consistent");
        assert!(text.contains("tailwater_replication_lag_seconds{sink=\"warehouse\",source=\"lms\"} 0"), "{text}");
        assert!(text.contains("tailwater_checkpoint_lsn{sink=\"warehouse\",source=\"lms\"} 40"), "{text}");
    }

    #[test]
    fn staleness_counts_from_the_first_change_a_view_does_not_show() {
        let view = Metrics::new("0").view("warehouse", "v");
        assert_eq!(view.staleness_seconds(UnixMicros(9)), 0.0);
        view.changed(UnixMicros(1_000_000));
        view.changed(UnixMicros(2_000_000));
        assert_eq!(view.staleness_seconds(UnixMicros(4_000_000)), 3.0);
        view.refreshed(0.1, Some(UnixMicros(3_000_000)));
        assert_eq!(view.staleness_seconds(UnixMicros(4_000_000)), 1.0);
        view.refreshed(0.1, None);
        assert_eq!(view.staleness_seconds(UnixMicros(4_000_000)), 0.0);
    }

    #[test]
    fn hostile_names_stay_inside_their_label() {
        let metrics = Metrics::new("0");
        metrics.table("lms", "warehouse", "a\"} 1\nfake 2").delete.inc();
        let text = metrics.render(UnixMicros(1)).expect("consistent");
        assert!(!text.lines().any(|line| line.starts_with("fake")), "{text}");
    }
}
