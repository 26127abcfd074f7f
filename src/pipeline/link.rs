//! What the parts of one source need to know of one of its sinks.

use std::sync::Arc;

use crate::batch::Batch;
use crate::config::SinkConfig;
use crate::mapping::plan::Plan;
use crate::refresh::{Touch, TouchedTables};
use crate::sink::any::{SinkAddress, SinkSession};
use crate::sink::state::{StoredTable, TableState};

/// One sink of one source.
pub struct SinkLink {
    pub name: String,
    /// The `[source.NAME]` on the other side.
    pub source: String,
    pub address: SinkAddress,
    pub config: SinkConfig,
    pub plans: Vec<Arc<Plan>>,
    /// Key of masked columns.
    pub mask_key: Arc<[u8]>,
    /// What is told to whoever refreshes the sink's views.
    pub touched: Arc<TouchedTables>,
    /// By plan, the table's index among all targets of the sink.
    pub targets: Vec<usize>,
}

impl SinkLink {
    /// A session with the sink.
    ///
    /// # Errors
    /// Why there is none, as text without secrets.
    pub async fn connect(&self, app_name: &str) -> Result<SinkSession, String> {
        self.address.connect(app_name).await
    }

    /// Takes a table out of the stream for good: until somebody sets its state back.
    pub async fn quarantine(&self, plan_index: usize, reason: &str) -> Result<(), String> {
        let session = self.connect("tailwater state").await?;
        let plan = &self.plans[plan_index];
        session.write_table(&plan.source, &plan.from, &plan.target, TableState::Quarantined, Some(reason)).await
    }

    /// Announces to whoever refreshes views that a batch is about to change its tables; held until it is known how the
    /// commit ended.
    pub fn touch(&self, batch: &Batch) -> Touch {
        self.touched.touch(batch.tables.iter().map(|table| self.targets[table.plan_index]))
    }

    /// These tables joined the stream with all their rows.
    pub fn mark(&self, plans: &[usize]) {
        self.touched.mark(&plans.iter().map(|&plan| self.targets[plan]).collect::<Vec<_>>());
    }
}

impl SinkLink {
    /// Tables that were in the stream and that no mapping means any more.
    pub fn unmapped<'a>(&'a self, stored: &'a [StoredTable]) -> impl Iterator<Item = &'a StoredTable> {
        let was_in = |state| matches!(state, TableState::Copying | TableState::Catchup | TableState::Streaming);
        stored
            .iter()
            .filter(move |table| was_in(table.state) && self.plans.iter().all(|plan| plan.target != table.target))
    }
}

/// A sink's table states, by plan.
pub struct SinkTables {
    pub by_plan: Vec<Option<StoredTable>>,
}

impl SinkTables {
    pub fn new(link: &SinkLink, mut stored: Vec<StoredTable>) -> Self {
        let by_plan = link.plans.iter().map(|plan| {
            let place = stored.iter().position(|table| table.target == plan.target)?;
            Some(stored.swap_remove(place))
        });
        SinkTables { by_plan: by_plan.collect() }
    }
}
