//! Another daemon streamed from the slot while this one could not. What is known here of the sinks may be old by then: an
//! older position than the true one could look like a gap, and whoever goes on from it is fenced.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Source;
use super::takeover::{Started, Stuck, blocking};
use crate::pipeline::End;
use crate::telemetry::handles::Stage;
use crate::verdict::Halt;

/// How long a sink may take to say who has taken it over. The source sends already, and what it sends waits.
const SAID_WITHIN: Duration = Duration::from_secs(5);

/// The sinks of a run: each link's place, and the epoch in which this daemon took it over.
pub(super) type Epochs = [(usize, i64)];

impl Source {
    /// What a stream that was started again comes to. Where another daemon has taken a sink over and is gone, all begins anew
    /// from what the sinks hold now.
    pub(super) async fn go_on(&self, started: Result<Started, Stuck>, epochs: &Epochs) -> Result<Started, Stuck> {
        match started {
            Ok(started) if self.is_overtaken(epochs).await == Some(true) => {
                // Lets go of the slot.
                let connection = started.connection;
                blocking(move || connection.finish()).await?;
                Err(Stuck::End(End::Back))
            }
            Err(Stuck::End(End::Halt(gap @ Halt::Gap { .. }))) => match self.is_overtaken(epochs).await {
                Some(true) => Err(Stuck::End(End::Back)),
                Some(false) => Err(gap.into()),
                None => {
                    let message =
                        "the slot is past what was known of the sinks, and not all of them say what they hold";
                    Err(Stuck::Wait(Stage::Connect, message.to_owned()))
                }
            },
            other => other,
        }
    }

    /// Whether another daemon has taken a sink over since; `None` if that is not known.
    async fn is_overtaken(&self, epochs: &Epochs) -> Option<bool> {
        let looks = epochs.iter().map(|&(index, epoch)| async move {
            let link = &self.links[index];
            let look = async { link.connect("tailwater reconnect").await?.look(&link.source).await };
            let said = timeout(SAID_WITHIN, look).await.ok()?.ok()?;
            Some(said.stored.is_some_and(|stored| stored.epoch > epoch))
        });
        let looked = join_all(looks).await;
        if looked.contains(&Some(true)) {
            return Some(true);
        }
        looked.into_iter().collect::<Option<Vec<_>>>().map(|_| false)
    }
}
