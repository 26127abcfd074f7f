//! What the tests of a source that changes have in common, whichever the sink: somebody who writes meanwhile, and what is to
//! be said of a table that cannot be followed.

use std::time::Duration;

use anyhow::{Result, ensure};
use tailwater::lsn::Lsn;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::cluster::Cluster;
use super::daemon::Daemon;
use super::pair::{DATABASE, SOON};
use super::wait::{Look, eventually};

/// Inserts into table `t` and updates it, until it is stopped.
pub struct Writer {
    stop: watch::Sender<bool>,
    writing: JoinHandle<Result<i32>>,
}

impl Writer {
    /// `pause`: between two transactions. The more rows there are, the more each update touches.
    pub async fn start(source: &Cluster, pause: Duration) -> Result<Writer> {
        let client = source.connect(DATABASE).await?;
        let (stop, stopped) = watch::channel(false);
        let writing = tokio::spawn(async move {
            let mut id = 1000;
            while !*stopped.borrow() {
                id += 1;
                let sql =
                    format!("INSERT INTO t (id, n) VALUES ({id}, 0); UPDATE t SET n = n + 1 WHERE id % 50 = {id} % 50");
                client.batch_execute(&sql).await?;
                tokio::time::sleep(pause).await;
            }
            Ok(id)
        });
        Ok(Writer { stop, writing })
    }

    /// Fails if hardly anything was written.
    pub async fn stop(self) -> Result<()> {
        self.stop.send(true)?;
        let last = self.writing.await??;
        ensure!(last > 1010, "only {} rows were written", last - 1000);
        Ok(())
    }
}

pub fn is_lsn(word: &str) -> bool {
    word.contains('/') && word.parse::<Lsn>().is_ok()
}

/// The reason for a quarantine names these things, where it was, and what to do.
pub fn must_explain(reason: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(reason.contains(word), "the reason does not say \"{word}\": {reason}");
    }
    ensure!(reason.split([' ', ';', ':', ',']).any(is_lsn), "the reason does not say where: {reason}");
    ensure!(reason.contains("empty the target"), "the reason does not say what to do: {reason}");
    Ok(())
}

/// Waits until the metrics say that a target table is in quarantine.
pub async fn wait_shown_quarantined(daemon: &Daemon, target: &str) -> Result<()> {
    let target = format!("{target}\"");
    eventually(SOON, "metrics say so", async || {
        let metrics = daemon.get("/metrics")?.body;
        let is_it = |line: &&str| {
            line.starts_with("tailwater_table_state{") && line.contains(&target) && line.contains("\"quarantined\"")
        };
        let sample = metrics.lines().find(is_it).unwrap_or_default().to_owned();
        Ok(if sample.ends_with(" 1") { Look::Yes(()) } else { Look::NotYet(sample) })
    })
    .await
}
