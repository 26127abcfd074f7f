//! Every metric by name: what it means, its unit and its labels. Labels are names of the configuration, never data.

use prometheus::{
    Counter, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    core::Collector,
};

/// Powers of four, from single rows to the largest batch that memory allows.
const BATCH_ROWS: &[f64] = &[1.0, 4.0, 16.0, 64.0, 256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

/// From a pipelined single row on a loopback to a very large transaction, seconds.
const APPLY_SECONDS: &[f64] = &[0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0];

/// Refreshes of views: seconds.
const REFRESH_SECONDS: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0];

const SOURCE: &[&str] = &["source"];
const PAIR: &[&str] = &["source", "sink"];
const TABLE: &[&str] = &["source", "sink", "table"];
const VIEW: &[&str] = &["sink", "view"];

pub(super) struct Families {
    pub lag_bytes: IntGaugeVec,
    pub lag_seconds: GaugeVec,
    pub table_lag_seconds: GaugeVec,
    pub slot_retained_wal_bytes: IntGaugeVec,
    pub slot_safe_wal_bytes: GaugeVec,
    pub slot_active: IntGaugeVec,
    pub connected: IntGaugeVec,
    pub reconnects: IntCounterVec,
    pub received_bytes: IntCounterVec,
    pub received_lsn: IntGaugeVec,
    pub confirmed_flush_lsn: IntGaugeVec,
    pub checkpoint_lsn: IntGaugeVec,
    pub changes: IntCounterVec,
    pub transactions: IntCounterVec,
    pub batch_rows: HistogramVec,
    pub apply_seconds: HistogramVec,
    pub journal_bytes: IntGaugeVec,
    pub snapshot_rows: IntCounterVec,
    pub table_state: IntGaugeVec,
    pub refresh_seconds: HistogramVec,
    pub refresh_staleness_seconds: GaugeVec,
    pub refresh_errors: IntCounterVec,
    pub value_coerced: IntCounterVec,
    pub dead_letters: IntCounterVec,
    pub errors: IntCounterVec,
    pub halted: IntGaugeVec,
    pub build_info: IntGaugeVec,
    pub resident_memory_bytes: IntGauge,
    pub cpu_seconds: Counter,
    pub start_time_seconds: Gauge,
}

impl Families {
    #[rustfmt::skip] // One line a metric: this is the table that a reader looks names up in.
    pub fn register(registry: &Registry) -> Families {
        let r = registry;
        Families {
            lag_bytes: gauges(r, "tailwater_replication_lag_bytes", "Bytes of the source's WAL beyond the sink's checkpoint.", PAIR),
            lag_seconds: float_gauges(r, "tailwater_replication_lag_seconds", "Age in seconds of the oldest commit not yet in the sink; 0 when caught up.", PAIR),
            table_lag_seconds: float_gauges(r, "tailwater_table_lag_seconds", "As tailwater_replication_lag_seconds, for one table; of a table that is not streaming, seconds since it was.", TABLE),
            slot_retained_wal_bytes: gauges(r, "tailwater_slot_retained_wal_bytes", "Bytes of WAL that the source keeps for the slot.", SOURCE),
            slot_safe_wal_bytes: float_gauges(r, "tailwater_slot_safe_wal_bytes", "Bytes of WAL that may still be written before the slot is in danger of being lost; +Inf without a limit, NaN until known.", SOURCE),
            slot_active: gauges(r, "tailwater_slot_active", "1 while some connection streams from the slot.", SOURCE),
            connected: gauges(r, "tailwater_source_connected", "1 while this daemon streams from the source.", SOURCE),
            reconnects: counters(r, "tailwater_reconnects_total", "Times the stream had to be opened again.", SOURCE),
            received_bytes: counters(r, "tailwater_received_bytes_total", "Bytes of replication messages received.", SOURCE),
            received_lsn: gauges(r, "tailwater_received_lsn", "End of what was received of the source's WAL, as a byte position.", SOURCE),
            confirmed_flush_lsn: gauges(r, "tailwater_confirmed_flush_lsn", "What the source was told it may forget, as a byte position.", SOURCE),
            checkpoint_lsn: gauges(r, "tailwater_checkpoint_lsn", "End of what the sink durably holds of the source, as a byte position.", PAIR),
            changes: counters(r, "tailwater_changes_total", "Changes of the source applied, by operation: insert, update, delete, truncate.", &["source", "sink", "table", "op"]),
            transactions: counters(r, "tailwater_transactions_total", "Source transactions applied.", PAIR),
            batch_rows: histograms(r, "tailwater_batch_rows", "Rows written in one batch, after folding per key.", PAIR, BATCH_ROWS),
            apply_seconds: histograms(r, "tailwater_apply_seconds", "Seconds from handing a batch to the sink to its commit.", PAIR, APPLY_SECONDS),
            journal_bytes: gauges(r, "tailwater_journal_bytes", "Bytes of the journal's segment files on disk.", SOURCE),
            snapshot_rows: counters(r, "tailwater_snapshot_rows_total", "Rows copied by snapshots.", TABLE),
            table_state: gauges(r, "tailwater_table_state", "1 for the state that the table is in, 0 for the others.", &["source", "sink", "table", "state"]),
            refresh_seconds: histograms(r, "tailwater_refresh_seconds", "Seconds that one refresh of the view took.", VIEW, REFRESH_SECONDS),
            refresh_staleness_seconds: float_gauges(r, "tailwater_refresh_staleness_seconds", "Seconds since data under the view changed that the view does not show; 0 when it shows all.", VIEW),
            refresh_errors: counters(r, "tailwater_refresh_errors_total", "Refreshes of the view that failed.", VIEW),
            value_coerced: counters(r, "tailwater_value_coerced_total", "Values that the target could not hold and that on_overflow replaced.", TABLE),
            dead_letters: counters(r, "tailwater_dead_letters_total", "Rows put into the dead-letter table.", TABLE),
            errors: counters(r, "tailwater_errors_total", "Errors met, retried ones included, by stage and kind.", &["stage", "kind"]),
            halted: gauges(r, "tailwater_halted", "1 if the source is stopped until a human decides, by reason.", &["source", "reason"]),
            build_info: gauges(r, "tailwater_build_info", "Always 1; the version is in the label.", &["version"]),
            resident_memory_bytes: add(r, IntGauge::new("tailwater_process_resident_memory_bytes", "Resident memory of the daemon in bytes.")),
            cpu_seconds: add(r, Counter::new("tailwater_process_cpu_seconds_total", "User and system CPU time of the daemon in seconds.")),
            start_time_seconds: add(r, Gauge::new("tailwater_process_start_time_seconds", "When the daemon started, in seconds since 1970-01-01 UTC.")),
        }
    }
}

fn gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels))
}

fn float_gauges(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
    add(registry, GaugeVec::new(Opts::new(name, help), labels))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
    add(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, made: prometheus::Result<C>) -> C {
    let family = made.expect("names, labels and buckets are constants, checked by a test");
    registry.register(Box::new(family.clone())).expect("no two families share a name");
    family
}
