//! Heartbeats: now and then a message that says the source's messages still come, though there may be none.
//!
//! One goes with the checkpoint of a batch when it is due, and by itself when the sink has nothing else to do. It says nothing of
//! positions and moves none.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::beside::{Buffers, Channel};
use super::cluster::Cluster;
use super::failure::KafkaFailure;
use super::producer::Producer;
use super::{KafkaSink, apply_error};
use crate::checkpoint::UnixMicros;
use crate::mapping::plan::Plan;
use crate::sink::ApplyError;
use crate::value::debezium::Message;

pub(super) struct Heart {
    channel: Channel,
    source: String,
    every: Duration,
    due_at: Instant,
}

impl Heart {
    /// `None` if nobody asked for heartbeats.
    pub async fn of(cluster: &Cluster, source: &str, plans: &[Arc<Plan>]) -> Result<Option<Heart>, ApplyError> {
        let beside = cluster.beside();
        let (Some(topic), Some(heartbeats)) = (beside.heartbeat_topic(source), &beside.heartbeats) else {
            return Ok(None);
        };
        let channel = Channel::open(cluster, topic, plans, [Message::HeartbeatKey, Message::HeartbeatValue]).await?;
        let (source, every) = (source.to_owned(), heartbeats.every);
        Ok(Some(Heart { channel, source, every, due_at: Instant::now() + every }))
    }

    /// Sends a heartbeat into the open transaction, if it is time.
    pub async fn beat(&mut self, producer: &mut Producer) -> Result<(), KafkaFailure> {
        if Instant::now() < self.due_at {
            return Ok(());
        }
        let now = UnixMicros::now();
        let Buffers { messages, key, value } = self.channel.buffers();
        messages.heartbeat_key(key, &self.source);
        messages.heartbeat_value(value, now);
        self.channel.send(producer, &[], now).await?;
        self.due_at = Instant::now() + self.every;
        Ok(())
    }
}

impl KafkaSink {
    /// When the next heartbeat is to be sent by itself. Not while a transaction is open: it goes with that one's checkpoint.
    pub fn heartbeat_due_at(&self) -> Option<Instant> {
        self.heart.as_ref().filter(|_| !self.is_open).map(|heart| heart.due_at)
    }

    /// Sends a heartbeat in a transaction of its own, if it is time and no other is open. The checkpoint stays where it is.
    ///
    /// # Errors
    /// See [`ApplyError`].
    pub async fn heartbeat(&mut self) -> Result<(), ApplyError> {
        if self.heartbeat_due_at().is_none_or(|due_at| Instant::now() < due_at) {
            return Ok(());
        }
        self.begin().await?;
        let Some(heart) = &mut self.heart else { return Ok(()) };
        let sent = async {
            heart.beat(&mut self.producer).await?;
            self.producer.commit().await
        };
        sent.await.map_err(|failure| apply_error(&failure))?;
        self.is_open = false;
        Ok(())
    }
}
