//! One look at the measured and the noted: how a line of the status document is put together.

use std::time::Duration;

use super::board::Notes;
use super::metrics::{PairMetrics, TableMetrics, ViewMetrics};
use super::status::{CopyStatus, PairStatus, TableStatus, ViewStatus};
use super::time::format_utc;
use crate::checkpoint::UnixMicros;

pub(super) struct Look<'a> {
    pub notes: &'a Notes,
    /// Since the daemon started, for rates.
    pub elapsed: Duration,
    /// For ages.
    pub now: UnixMicros,
}

impl Look<'_> {
    pub fn pair(&self, pair: &PairMetrics, tables: &[TableMetrics]) -> PairStatus {
        let progress = &pair.progress;
        let curve = self.notes.curves.get(&pair_key(pair));
        PairStatus {
            source: pair.source().to_owned(),
            sink: pair.sink().to_owned(),
            checkpoint: progress.checkpoint_lsn(),
            checkpoint_commit_ts: progress.checkpoint_commit_ts().map(format_utc),
            lag_bytes: progress.lag_bytes(),
            lag_seconds: progress.lag_seconds(self.now),
            rows_per_second: curve.map_or(0.0, |curve| curve.rate.per_second(self.elapsed)),
            rows: rows_of(pair, tables),
            transactions: pair.transactions.get(),
            stalled_seconds: progress.stalled_for().as_secs_f64(),
            waiting: self.notes.waiting.get(&pair_key(pair)).cloned(),
        }
    }

    pub fn table(&self, table: &TableMetrics) -> TableStatus {
        let (source, sink) = pair_key(&table.pair);
        let key = (source.clone(), sink.clone(), table.name.to_string());
        let copy = self.notes.copies.get(&key).map(|copy| {
            let rows_per_second = copy.rate.per_second(self.elapsed);
            let left = copy.estimated_rows.saturating_sub(copy.copied_rows);
            let known = rows_per_second > 0.0 && left > 0;
            CopyStatus {
                copied_rows: copy.copied_rows,
                estimated_rows: copy.estimated_rows,
                rows_per_second,
                eta_seconds: known.then(|| left as f64 / rows_per_second),
            }
        });
        TableStatus {
            source,
            sink,
            table: table.name.to_string(),
            state: table.state(),
            rows: table.rows(),
            lag_seconds: table.lag_seconds(self.now),
            copy,
            reason: self.notes.reasons.get(&key).cloned(),
        }
    }

    pub fn view(&self, view: &ViewMetrics) -> ViewStatus {
        let (sink, name) = view.key.as_ref();
        let note = self.notes.views.get(view.key.as_ref());
        ViewStatus {
            sink: sink.clone(),
            view: name.clone(),
            lsn: note.map(|note| note.lsn),
            refreshed_at: note.map(|note| format_utc(note.refreshed_at)),
            seconds: note.map(|note| note.seconds),
            staleness_seconds: view.staleness_seconds(self.now),
        }
    }
}

/// Source and sink.
pub(super) fn pair_key(pair: &PairMetrics) -> (String, String) {
    (pair.source().to_owned(), pair.sink().to_owned())
}

/// Changes applied to all tables of the pair.
pub(super) fn rows_of(pair: &PairMetrics, tables: &[TableMetrics]) -> u64 {
    let of_pair = |table: &&TableMetrics| table.pair.is(pair.source(), pair.sink());
    tables.iter().filter(of_pair).map(TableMetrics::rows).sum()
}
