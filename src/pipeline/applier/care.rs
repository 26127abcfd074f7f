//! What an applier does about a table that does not take a row: look closer, batch by batch, and in the end leave the
//! table out or stop.

use tracing::{error, info, warn};

use super::{Applier, Over, STALL, Session};
use crate::batch::{Batch, BatchLimits, BuildError, TableCause};
use crate::config::OnError;
use crate::lsn::Lsn;
use crate::pipeline::End;
use crate::pipeline::drift::{COPY_ANEW, COPY_INTO_TOPIC_ANEW, Drift};
use crate::sink::any::SinkAddress;
use crate::sink::state::TableState;
use crate::sink::{ApplyError, TEXT_FORM};
use crate::telemetry::handles::Stage;

/// How often a failing batch was cut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Care {
    /// Batches as large as they get.
    Fast,
    /// One source transaction a batch, until past this position.
    OneTransaction(Lsn),
    /// One change a part, in the source's order, until past this position.
    OneChange(Lsn),
}

impl Applier {
    /// What a batch's failure means for the session: it never goes on.
    pub(super) async fn failed(&mut self, session: &Session, error: ApplyError) -> Result<(), Over> {
        match error {
            ApplyError::Transient { message } => {
                self.observed.error(Stage::Apply, "transient", &self.link.name, &message);
                warn!(sink = %self.link.name, error = %message, "batch not applied, will be tried again");
                Err(Over::Again { wait: true })
            }
            // The checkpoint is not where it was: by another daemon, or by a batch of ours whose connection broke while the server
            // still worked on it. The next session reads whose it is, and ends if it is not ours.
            ApplyError::Fenced { .. } if matches!(self.link.address, SinkAddress::Postgres(_)) => {
                info!(sink = %self.link.name, "the checkpoint has moved, looking again");
                Err(Over::Again { wait: true })
            }
            ApplyError::Fenced { .. } => Err(Over::End(End::fenced(&self.link.name))),
            ApplyError::Fatal { message } => {
                self.observed.error(Stage::Apply, "fatal", &self.link.name, &message);
                Err(Over::End(End::Failed(format!("sink \"{}\": {message}", self.link.name))))
            }
            ApplyError::Table { plan_index, code, message } => {
                let reached = session.builder.reached().end_lsn.max(session.sent.end_lsn);
                self.table_failed(plan_index, code.as_deref(), &message, reached).await
            }
        }
    }

    pub(super) fn limits(&self) -> BatchLimits {
        let config = &self.link.config;
        let fast = BatchLimits { rows: config.batch_rows_max, bytes: config.batch_bytes_max, commits: u64::MAX };
        match self.care {
            Care::Fast => fast,
            Care::OneTransaction(_) => BatchLimits { commits: 1, ..fast },
            Care::OneChange(_) => BatchLimits { commits: 1, rows: 1, ..fast },
        }
    }

    /// A table's failure with its place in the stream, once the batch is cut down to the change that is refused.
    pub(super) fn located(&self, error: ApplyError, batch: &Batch) -> ApplyError {
        match (error, self.care, batch.transactions.last()) {
            (ApplyError::Table { plan_index, code, message }, Care::OneChange(_), Some(begin)) => {
                let message = format!("{message}, in the transaction committed at {}", begin.commit_lsn);
                ApplyError::Table { plan_index, code, message }
            }
            (error, ..) => error,
        }
    }

    /// A table did not take a row: look closer, and in the end leave the table out or stop.
    pub(super) async fn table_failed(
        &mut self,
        plan_index: usize,
        sqlstate: Option<&str>,
        message: &str,
        reached: Lsn,
    ) -> Result<(), Over> {
        let target = self.link.plans[plan_index].target.to_string();
        // A row that exists already: another writer, or a table that was not empty. Its new rows are merged from now on.
        if sqlstate == Some("23505") && !self.merging.contains(&plan_index) {
            info!(sink = %self.link.name, table = %target, "new rows exist in the target already and are merged from now on");
            self.merging.push(plan_index);
            return Err(Over::Again { wait: false });
        }
        // As when another sink of the source has to read what it understands as text only.
        if sqlstate == Some(TEXT_FORM) && !self.takes_text {
            info!(sink = %self.link.name, "the source sends values as text, and they are passed on as text from now on");
            self.takes_text = true;
            return Err(Over::Again { wait: false });
        }
        self.care = match self.care {
            Care::Fast => Care::OneTransaction(reached),
            Care::OneTransaction(until) => Care::OneChange(until.max(reached)),
            Care::OneChange(_) => {
                self.observed.error(Stage::Apply, "table", &target, message);
                return Err(self.leave_out(plan_index, message).await);
            }
        };
        warn!(sink = %self.link.name, table = %target, error = %message, "batch refused, trying smaller ones");
        Err(Over::Again { wait: false })
    }

    /// The stream cannot be read for one table, or not at all.
    pub(super) fn build_failed(&mut self, build_error: BuildError) -> Over {
        match &build_error {
            BuildError::Table { plan_index, commit_lsn, cause, .. } => {
                let (plan_index, message) = (*plan_index, build_error.to_string());
                // First what precedes the transaction is applied, up to its boundary.
                if self.care == Care::Fast {
                    self.care = Care::OneTransaction(Lsn(commit_lsn.0 + 1));
                    return Over::Again { wait: false };
                }
                let plan = self.link.plans[plan_index].clone();
                if let TableCause::Bind(error) = cause
                    && error.is_news
                {
                    self.care = Care::Fast;
                    let why = error.mismatch.to_string();
                    let (source, table) = (plan.source.clone(), plan.from.clone());
                    return Over::End(End::Drift(Drift { source, table, at: *commit_lsn, why }));
                }
                self.observed.error(Stage::Map, "table", &plan.target.to_string(), &message);
                // The state is written over a connection of its own, before the next session reads it.
                let link = self.link.clone();
                let anew = if plan.topic.is_some() { COPY_INTO_TOPIC_ANEW } else { COPY_ANEW };
                let reason = format!("{message}; {anew}");
                if link.config.on_error == OnError::Stop {
                    return Over::End(End::Failed(reason));
                }
                error!(sink = %link.name, table = %plan.target, reason = %reason, "table is quarantined");
                self.observed.table_state(plan_index, TableState::Quarantined);
                tokio::spawn(async move { link.quarantine(plan_index, &reason).await });
                Over::Again { wait: true }
            }
            BuildError::Frame(_) | BuildError::Assemble(_) => {
                self.observed.error(Stage::Decode, "stream", &self.link.name, &build_error.to_string());
                Over::End(End::Failed(build_error.to_string()))
            }
        }
    }

    pub(super) async fn leave_out(&mut self, plan_index: usize, message: &str) -> Over {
        let plan = self.link.plans[plan_index].clone();
        if self.link.config.on_error == OnError::Stop {
            return Over::End(End::Failed(format!("table \"{}\": {message}", plan.target)));
        }
        error!(sink = %self.link.name, table = %plan.target, reason = %message, "table is quarantined");
        match self.link.quarantine(plan_index, message).await {
            Ok(()) => {
                self.care = Care::Fast;
                self.observed.table_state(plan_index, TableState::Quarantined);
                Over::Again { wait: false }
            }
            Err(error) => {
                warn!(sink = %self.link.name, %error, "quarantine not written, will be tried again");
                Over::Again { wait: true }
            }
        }
    }

    /// Whole transactions that wait in one batch with the front of another, whose rest does not come, are applied without
    /// it. At a full journal the rest cannot come before they are, nor before tables have joined that still need the journal: for
    /// that a session has to stand at a boundary, as it does where it begins.
    pub(super) fn part_from_unfinished(&mut self, session: &Session) -> Result<(), Over> {
        let is_silent = session.heard_at.elapsed() >= STALL;
        let is_full = self.shared.stream.is_full();
        if is_silent && is_full && !session.queue.is_empty() {
            return Err(Over::Again { wait: false });
        }
        let whole = session.builder.reached().end_lsn;
        let waits = whole > session.sent.end_lsn && is_silent;
        // The front of a large transaction is in the sink already, and only a full journal is worth doing it again.
        let in_sink = !session.touches.is_empty();
        if !waits || self.care != Care::Fast || (in_sink && !is_full) {
            return Ok(());
        }
        self.care = Care::OneTransaction(whole);
        Err(Over::Again { wait: false })
    }

    /// Past the place where a batch failed, batches may grow again.
    pub(super) fn relax(&mut self, session: &mut Session, reached: Lsn) {
        let until = match self.care {
            Care::Fast => return,
            Care::OneTransaction(until) | Care::OneChange(until) => until,
        };
        if reached >= until {
            self.care = Care::Fast;
        } else if let Care::OneChange(until) = self.care {
            self.care = Care::OneTransaction(until);
        }
        session.builder.set_limits(self.limits());
    }
}
