//! Tables of Kafka sinks while they are followed. A topic takes messages of any form, so nothing is altered there and nothing
//! remembered: what the source's tables are by now is what later messages are made of.

use std::sync::Arc;

use tracing::{error, warn};

use super::rows::unpublished;
use super::{COPY_INTO_TOPIC_ANEW, Occasion, Report, Settling, Unsettled};
use crate::catalog::TableName;
use crate::config::OnError;
use crate::diagnostic::Severity;
use crate::lsn::Lsn;
use crate::mapping::MappingFile;
use crate::mapping::kafka::TopicMapping;
use crate::mapping::plan::Plan;
use crate::mapping::resolve::resolve;
use crate::sink::state::TableState;

impl Settling<'_> {
    /// While the daemon runs, a pair keeps the tables that it has, and each of them by itself: one that cannot be followed any
    /// more is left out, and one that is new waits for a start, where it may need a topic and a place in the publication.
    pub(super) fn keep_topics(&mut self) {
        let Some(before) = self.occasion.before() else { return };
        let (mut kept, mut followed, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        let mut files = std::mem::take(&mut self.files);
        for file in &mut files {
            let Some(topic) = file.topic.take() else { continue };
            for one in pairs(file, &topic) {
                let (source, sink) = (&one.sources[0].value, &one.sinks[0].value);
                if !self.occasion.is_running(source, sink) {
                    kept.push(one);
                    continue;
                }
                let is_its = |plan: &&Plan| {
                    (&plan.source, &plan.sink) == (source, sink) && plan.topic.is_some() && topic.means(&plan.from)
                };
                let mut tables = Vec::new();
                for plan in before.plans.iter().filter(is_its) {
                    let alone = MappingFile { topic: Some(topic.of(&plan.from)), ..one.clone() };
                    match self.unfollowable(plan, alone) {
                        Some(why) => lost.push((plan, why)),
                        None => {
                            followed.push(plan);
                            tables.push(topic.pattern_of(&plan.from));
                        }
                    }
                }
                if !tables.is_empty() {
                    kept.push(MappingFile { topic: Some(topic.only(tables)), ..one });
                }
            }
        }
        // Those of before stay at their places.
        files.extend(kept);
        self.files = files;
        // Two files may mean the same table and send it to a topic each.
        lost.retain(|(plan, _)| !followed.contains(plan));
        self.lost = lost.into_iter().map(|(plan, why)| (plan.clone(), why)).collect();
        self.lost.dedup_by(|(one, _), (other, _)| (&one.source, &one.target) == (&other.source, &other.target));
    }

    /// Why a table's changes cannot go on to its topic, if so.
    fn unfollowable(&self, plan: &Plan, alone: MappingFile) -> Option<String> {
        let catalog = &self.live.sources[&plan.source].catalog;
        if catalog.table(&plan.from).is_none() {
            let renamed = catalog.tables.iter().find(|table| table.oid == plan.expected.oid);
            return Some(match renamed {
                Some(table) => format!("the table is called \"{}\" now, which is another topic's", table.name),
                None => "the table was dropped".to_owned(),
            });
        }
        let now = &self.sources[&plan.source];
        if let Some(why) = now.publication.as_ref().and_then(|there| unpublished(there, &plan.from)) {
            return Some(why.to_owned());
        }
        let (resolved, findings) = resolve(self.config, &[alone], self.live);
        if resolved.plans.iter().any(|found| found.target == plan.target) {
            return None;
        }
        let finding = findings.0.into_iter().find(|finding| finding.severity == Severity::Error)?;
        Some(match finding.hint {
            Some(hint) => format!("{}: {hint}", finding.message),
            None => finding.message,
        })
    }

    /// Writes down which tables are followed no more. They take no changes, but are still shown.
    pub(super) async fn note_topics(&mut self) -> Result<(), Unsettled> {
        let Occasion::Drift { drift, .. } = self.occasion else {
            self.settled.resolved.plans.extend(self.lost.iter().map(|(plan, _)| plan.clone()));
            return Ok(());
        };
        for (plan, why) in std::mem::take(&mut self.lost) {
            let Some(cluster) = self.ends.kafka.get(&plan.sink) else { continue };
            let tables = cluster.look(&plan.source).await.and_then(|looked| looked.remembered.stored_tables());
            let tables = tables.map_err(Unsettled::Kafka)?;
            self.settled.resolved.plans.push(plan.clone());
            if tables.iter().any(|table| table.target == plan.target && table.state == TableState::Quarantined) {
                continue;
            }
            let at = if drift.table == plan.from { drift.at } else { self.sources[&plan.source].settled };
            let message = format!("\"{}\": {why}, seen at {at}; {COPY_INTO_TOPIC_ANEW}", plan.from);
            if self.config.sinks[&plan.sink].on_error == OnError::Stop {
                return Err(Unsettled::Stop(format!("table \"{}\": {message}", plan.target)));
            }
            error!(sink = %plan.sink, table = %plan.target, reason = %message, "table is quarantined");
            let (quarantined, reason) = (TableState::Quarantined, Some(message.as_str()));
            let written = cluster.write_table(&plan.source, &plan.from, &plan.target, quarantined, reason).await;
            written.map_err(Unsettled::Kafka)?;
            self.settled.reports.push(report(&plan, message, true));
        }
        Ok(())
    }

    /// Tells plans of topics how old the catalog is that they were made from, and what types were seen before it.
    pub(super) fn expect_of_topics(&mut self) {
        for plan in self.settled.resolved.plans.iter_mut().filter(|plan| plan.topic.is_some()) {
            let Some(now) = self.sources.get(&plan.source) else { continue };
            plan.expected.settled = if now.unsettled.contains(&plan.from) { Lsn::ZERO } else { now.settled };
            let is_it = |before: &&Plan| (&before.source, &before.target) == (&plan.source, &plan.target);
            let Some(before) = self.occasion.before().and_then(|before| before.plans.iter().find(is_it)) else {
                continue;
            };
            if let (Some(topic), Some(before)) = (&mut plan.topic, &before.topic)
                && before.types.keys().any(|oid| !topic.types.contains_key(oid))
            {
                let types = Arc::make_mut(&mut topic.types);
                before.types.iter().for_each(|(oid, known)| {
                    types.entry(*oid).or_insert_with(|| known.clone());
                });
            }
            if before.expected.oid != plan.expected.oid {
                let message = made_anew(&plan.from);
                warn!(sink = %plan.sink, table = %plan.target, "{message}");
                self.settled.reports.push(report(plan, message, false));
            }
        }
    }
}

fn report(plan: &Plan, message: String, is_quarantined: bool) -> Report {
    report_of((plan.source.clone(), plan.sink.clone(), plan.target.clone()), message, is_quarantined)
}

/// Of a table that has an older one's name and topic.
pub(super) fn made_anew(table: &TableName) -> String {
    format!(
        "\"{table}\" is another table of that name now: its changes are followed, and of the rows of the one before nothing is \
         said"
    )
}

/// Source, sink and target of a table, and what somebody should hear of it.
pub(super) fn report_of(
    (source, sink, target): (String, String, TableName),
    message: String,
    is_quarantined: bool,
) -> Report {
    Report { source, sink, target, message, is_quarantined }
}

/// A file for each source and sink that it brings together.
fn pairs(file: &MappingFile, topic: &TopicMapping) -> Vec<MappingFile> {
    let pair = |source, sink| MappingFile {
        sources: vec![source],
        sinks: vec![sink],
        topic: Some(topic.clone()),
        ..file.clone()
    };
    let pairs = file.sources.iter().flat_map(|source| file.sinks.iter().map(move |sink| (source, sink)));
    pairs.map(|(source, sink)| pair(source.clone(), sink.clone())).collect()
}
