//! A session with what Kafka remembers of a source, on its way to becoming the sink.

use std::sync::Arc;

use super::KafkaSink;
use super::cluster::{Cluster, Held, Looked, Remembered};
use crate::checkpoint::SourceIdentity;
use crate::sink::state::StoredCheckpoint;
use crate::sink::{ApplyError, SinkSetup};

pub struct KafkaSession {
    pub cluster: Arc<Cluster>,
    /// From [`KafkaSession::take_over`] or [`KafkaSession::hold`].
    held: Option<Held>,
}

impl KafkaSession {
    pub fn new(cluster: Arc<Cluster>) -> KafkaSession {
        KafkaSession { cluster, held: None }
    }

    /// What is remembered: as it stays if it is held, else as it shows.
    pub async fn look(&self, source: &str) -> Result<(Arc<Remembered>, bool), String> {
        if let Some(Held { remembered, .. }) = &self.held {
            return Ok((Arc::clone(remembered), true));
        }
        let Looked { remembered, is_settled } = self.cluster.look(source).await?;
        Ok((Arc::new(remembered), is_settled))
    }

    /// Begins an epoch, in which nobody else writes changes of the source: see [`Cluster::take_over`].
    pub async fn take_over(
        &mut self,
        source: &str,
        seen: &StoredCheckpoint,
        timeline: u32,
    ) -> Result<Option<i64>, String> {
        self.held = self.cluster.take_over(source, seen, timeline).await?;
        Ok(self.held.as_ref().and_then(|held| held.remembered.checkpoint.as_ref()).map(|stored| stored.epoch))
    }

    /// Has nobody else write changes of the source from here on, and remembers what there is then, unless that is so already.
    /// A later epoch than `epoch` is somebody's to whom the source belongs now, and is left in peace.
    pub async fn hold(&mut self, source: &str, epoch: i64) -> Result<(), String> {
        if self.held.is_some() {
            return Ok(());
        }
        let shown = self.cluster.look(source).await?.remembered.checkpoint;
        if shown.is_some_and(|stored| stored.epoch > epoch) {
            return Ok(());
        }
        self.held = Some(self.cluster.hold(source).await?);
        Ok(())
    }

    /// # Errors
    /// The cluster or its schema registry does not answer, another checkpoint is there by now, or a plan does not fit its
    /// topic any more.
    pub async fn into_sink(mut self, setup: SinkSetup, identity: SourceIdentity) -> Result<KafkaSink, ApplyError> {
        let held = self.hold(&setup.source, setup.epoch).await;
        held.map_err(|message| ApplyError::Transient { message })?;
        let fenced = ApplyError::Fenced { epoch: setup.epoch, end_lsn: setup.checkpoint.end_lsn };
        let Some(Held { producer, remembered }) = self.held.take() else { return Err(fenced) };
        let stored = remembered.checkpoint.as_ref();
        if stored.is_none_or(|stored| stored.epoch != setup.epoch || stored.checkpoint != setup.checkpoint) {
            return Err(fenced);
        }
        KafkaSink::new(self.cluster, producer, remembered.tables.clone(), setup, identity).await
    }
}
