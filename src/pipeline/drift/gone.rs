//! Tables of Kafka sinks that went while no daemon ran. A pattern means the tables that there are, so nothing else asks for one
//! that is gone; the log may have changes of it still that its topic was not told.

use tracing::{error, warn};

use super::told::told_of_topic;
use super::topics::{made_anew, report_of};
use super::warehouse::Warehouse;
use super::{COPY_INTO_TOPIC_ANEW, Occasion, Settling, Unsettled};
use crate::catalog::TableName;
use crate::config::OnError;
use crate::diagnostic::Finding;
use crate::mapping::MappingFile;
use crate::mapping::kafka::TopicMapping;
use crate::mapping::syntax::At;
use crate::pipeline::source::slot::with_slot;
use crate::pipeline::source::takeover::Stuck;
use crate::pipeline::source_url;
use crate::sink::kafka::cluster::{Cluster, Remembered};
use crate::sink::state::TableState;

/// One of them.
pub(super) struct Gone {
    source: String,
    sink: String,
    from: TableName,
    target: TableName,
    /// With table, position, and what to do.
    message: String,
    /// The table that has its name now, and is followed.
    heir: Option<u32>,
}

impl Settling<'_> {
    /// Nobody streams whose tables these are.
    pub(super) fn may_write_of(&self, source: &str) -> bool {
        match self.occasion {
            Occasion::Look => false,
            Occasion::Start | Occasion::Back { .. } => !self.sources[source].is_active,
            Occasion::Drift { .. } => true,
        }
    }

    /// Up to where a target has its changes that is set aside. While the daemon runs that is what precedes the change; who was
    /// away has what it had then.
    pub(super) async fn stands(&self, warehouse: Warehouse<'_>, source: &str) -> Result<String, Unsettled> {
        if !matches!(self.occasion, Occasion::Start | Occasion::Back { .. }) {
            return Ok(String::new());
        }
        let checkpoint = warehouse.checkpoint(source).await?;
        Ok(checkpoint.map_or(String::new(), |lsn| format!("; of its changes the target has those up to {lsn}")))
    }

    /// Tables that a topic was filled with, that the mappings mean still, and that have no plan any more. Who only looks is told
    /// of them. Of pairs that run this is known already.
    pub(super) async fn gone_topics(&mut self) -> Result<Vec<Gone>, Unsettled> {
        let mut all = Vec::new();
        for (sink, cluster) in self.ends.kafka {
            for source in self.sources.keys() {
                if self.topics(source, sink).next().is_none() || self.occasion.is_running(source, sink) {
                    continue;
                }
                let remembered = self.remembered(cluster, source).await?;
                all.extend(self.gone_of(source, sink, &remembered));
            }
        }
        if matches!(self.occasion, Occasion::Look) {
            let told: Vec<_> = all.drain(..).map(|gone| self.told(gone)).collect();
            self.settled.findings.0.extend(told);
        }
        if all.iter().any(|gone| !self.may_write_of(&gone.source)) {
            return Err(Unsettled::StandBy);
        }
        Ok(all)
    }

    /// What somebody who looks hears, at the pattern that means the table.
    fn told(&self, gone: Gone) -> Finding {
        let means = |file: &&MappingFile| file.topic.as_ref().is_some_and(|topic| topic.means(&gone.from));
        let file = self.files_of(&gone.source, &gone.sink).find(means);
        told_of_topic(gone.message, &gone.from, gone.heir.is_some(), file)
    }

    /// What a sink remembers of a source. A daemon that died may have left a transaction open, which hides what is behind it
    /// and holds up who writes there: where nobody streams, that is ended, as at the take-over.
    async fn remembered(&self, cluster: &Cluster, source: &str) -> Result<Remembered, Unsettled> {
        let looked = cluster.look(source).await.map_err(Unsettled::Kafka)?;
        if looked.is_settled || !self.may_write_of(source) {
            return Ok(looked.remembered);
        }
        let url = source_url(self.config, source).map_err(|error| Unsettled::Kafka(format!("source: {error}")))?;
        match with_slot(&url, &self.config.sources[source], cluster.fence(source)).await {
            Ok(Some(fenced)) => Ok(fenced.map_err(Unsettled::Kafka)?.remembered),
            // Since the source was looked at.
            Err(Stuck::StandBy) => Err(Unsettled::StandBy),
            Err(Stuck::Wait(_, message)) => Err(Unsettled::Kafka(message)),
            Ok(None) | Err(Stuck::End(_)) => Ok(looked.remembered),
        }
    }

    /// The files that bring these two together.
    fn files_of(&self, source: &str, sink: &str) -> impl Iterator<Item = &MappingFile> {
        self.files.iter().filter(move |file| {
            let names = |known: &[At<String>], name: &str| known.iter().any(|known| known.value == name);
            names(&file.sources, source) && names(&file.sinks, sink)
        })
    }

    fn topics(&self, source: &str, sink: &str) -> impl Iterator<Item = &TopicMapping> {
        self.files_of(source, sink).filter_map(|file| file.topic.as_ref())
    }

    fn gone_of(&self, source: &str, sink: &str, remembered: &Remembered) -> Vec<Gone> {
        let is_meant = |from: &TableName| self.topics(source, sink).any(|topic| topic.means(from));
        let planned = |from: &TableName| {
            let mut plans = self.settled.resolved.plans.iter();
            plans.find(|plan| plan.source == source && plan.sink == sink && &plan.from == from)
        };
        let catalog = self.live.sources.get(source).map(|end| &end.catalog);
        let mut gone = Vec::new();
        for (target, record) in &remembered.tables {
            let (Ok(from), Ok(target)) = (record.origin.parse::<TableName>(), target.parse()) else { continue };
            if record.state == TableState::Quarantined || !is_meant(&from) {
                continue;
            }
            let (source_name, sink_name) = (source.to_owned(), sink.to_owned());
            if let Some(plan) = planned(&from) {
                let heir = plan.expected.oid;
                if record.oid != 0 && record.oid != heir {
                    let (message, heir) = (made_anew(&from), Some(heir));
                    gone.push(Gone { source: source_name, sink: sink_name, from, target, message, heir });
                }
                continue;
            }
            let other_name = catalog
                .and_then(|catalog| catalog.tables.iter().find(|table| record.oid != 0 && table.oid == record.oid))
                .filter(|table| table.name != from);
            let why = match (other_name, catalog.is_some_and(|catalog| catalog.table(&from).is_some())) {
                (Some(table), _) => format!("the table is called \"{}\" now, which is another topic's", table.name),
                (None, true) => "the table's changes are in no log any more".to_owned(),
                (None, false) if record.oid == 0 => "the table was dropped, or has another name".to_owned(),
                (None, false) => "the table was dropped".to_owned(),
            };
            let told = match &remembered.checkpoint {
                Some(stored) => format!("its changes up to {}", stored.checkpoint.end_lsn),
                None => "none of its changes".to_owned(),
            };
            let message = format!(
                "\"{from}\": {why}, seen at {}; topic \"{}\" has {told}; {COPY_INTO_TOPIC_ANEW}",
                self.sources[source].settled, record.topic
            );
            gone.push(Gone { source: source_name, sink: sink_name, from, target, message, heir: None });
        }
        gone
    }

    /// Writes down that a table is followed no more.
    pub(super) async fn note_gone(&mut self, gone: Gone) -> Result<(), Unsettled> {
        let Gone { source, sink, from, target, message, heir } = gone;
        let Some(cluster) = self.ends.kafka.get(&sink) else { return Ok(()) };
        if let Some(oid) = heir {
            warn!(%sink, table = %target, "{message}");
            cluster.write_oid(&source, &target, oid).await.map_err(Unsettled::Kafka)?;
            self.settled.reports.push(report_of((source, sink, target), message, false));
            return Ok(());
        }
        if self.config.sinks[&sink].on_error == OnError::Stop {
            return Err(Unsettled::Stop(format!("table \"{target}\": {message}")));
        }
        error!(%sink, table = %target, reason = %message, "table is quarantined");
        let (quarantined, reason) = (TableState::Quarantined, Some(message.as_str()));
        let written = cluster.write_table(&source, &from, &target, quarantined, reason).await;
        written.map_err(Unsettled::Kafka)?;
        self.settled.reports.push(report_of((source, sink, target), message, true));
        Ok(())
    }
}
