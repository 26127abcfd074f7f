//! A session with what Kafka remembers of a source, on its way to becoming the sink.

use std::sync::Arc;

use super::KafkaSink;
use super::cluster::{Cluster, Looked, Remembered};
use super::left_open::Owners;
use super::producer::Producer;
use crate::checkpoint::SourceIdentity;
use crate::sink::{ApplyError, SinkSetup};

pub struct KafkaSession {
    pub cluster: Arc<Cluster>,
    /// From [`KafkaSession::hold`].
    held: Option<(Producer, Arc<Remembered>)>,
}

impl KafkaSession {
    pub fn new(cluster: Arc<Cluster>) -> KafkaSession {
        KafkaSession { cluster, held: None }
    }

    /// What is remembered: as it stays if it is held, else as it shows.
    pub async fn look(&self, source: &str) -> Result<(Arc<Remembered>, bool), String> {
        if let Some((_, remembered)) = &self.held {
            return Ok((Arc::clone(remembered), true));
        }
        let Looked { remembered, is_settled } = self.cluster.look(source).await?;
        Ok((Arc::new(remembered), is_settled))
    }

    /// Has nobody else write changes of the source from here on, and remembers what there is then. A later epoch than
    /// `epoch` is somebody's to whom the source belongs now, and is left in peace.
    pub async fn hold(&mut self, source: &str, epoch: i64) -> Result<(), String> {
        self.held = None;
        let shown = self.cluster.look(source).await?.remembered.checkpoint;
        if shown.is_some_and(|stored| stored.epoch > epoch) {
            return Ok(());
        }
        let mut producer = self.cluster.producer(source).await.map_err(|failure| failure.to_string())?;
        self.cluster.end_left_open_state(source, vec![&mut producer]).await?;
        let remembered = self.cluster.read(source).await?;
        let owners = Owners { changes: &mut producer, copies: None };
        self.cluster.end_left_open(&remembered, owners).await?;
        self.held = Some((producer, Arc::new(remembered)));
        Ok(())
    }

    /// # Errors
    /// The cluster or its schema registry does not answer, another checkpoint is there by now, or a plan does not fit its
    /// topic any more.
    pub async fn into_sink(mut self, setup: SinkSetup, identity: SourceIdentity) -> Result<KafkaSink, ApplyError> {
        if self.held.is_none() {
            let held = self.hold(&setup.source, setup.epoch).await;
            held.map_err(|message| ApplyError::Transient { message })?;
        }
        let fenced = ApplyError::Fenced { epoch: setup.epoch, end_lsn: setup.checkpoint.end_lsn };
        let Some((producer, remembered)) = self.held.take() else { return Err(fenced) };
        let stored = remembered.checkpoint.as_ref();
        if stored.is_none_or(|stored| stored.epoch != setup.epoch || stored.checkpoint != setup.checkpoint) {
            return Err(fenced);
        }
        KafkaSink::new(self.cluster, producer, remembered.tables.clone(), setup, identity).await
    }
}
