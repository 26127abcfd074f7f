//! The school's staff: one session that changes lessons at a steady rate, and another that looks how soon a warehouse
//! shows it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::clickhouse;
use crate::lsn::Lsn;
use crate::postgres::error::describe;
use crate::sink::clickhouse::http;

/// A hundred change sets a second: a busy school.
const STEP_EVERY: Duration = Duration::from_millis(10);

/// Between two change sets that are looked for in the warehouse.
const LOOK_FOR_EVERY: Duration = Duration::from_millis(200);

/// Between two looks at a warehouse for one of them; a measured delay is too long by this at most.
const POLL_EVERY: Duration = Duration::from_millis(1);
const POLL_CLICKHOUSE_EVERY: Duration = Duration::from_millis(5);

/// Delays kept: the newest.
const DELAYS_MAX: usize = 10_000;

/// The newest change set.
#[derive(Clone, Debug)]
pub struct Written {
    /// Change sets committed so far.
    pub count: u64,
    /// In the words of `lessons_live_step`.
    pub what: String,
    /// In front of its commit and behind its changes: a checkpoint that is past this holds it.
    pub lsn: Lsn,
    pub committed_at: Instant,
}

/// Dropped, it ends at once.
pub struct Writer {
    task: JoinSet<Result<()>>,
    stop: watch::Sender<bool>,
    pub newest: watch::Receiver<Option<Written>>,
}

impl Writer {
    pub fn start(source: Client) -> Writer {
        let (stop, stopped) = watch::channel(false);
        let (tell, newest) = watch::channel(None);
        Writer { task: JoinSet::from_iter([write(source, stopped, tell)]), stop, newest }
    }

    /// Whether it ended by itself, which it only does when it fails; `stop` then says why.
    pub fn has_failed(&self) -> bool {
        self.newest.has_changed().is_err()
    }

    /// Ends after the change set under way; the last one.
    pub async fn stop(mut self) -> Result<Written> {
        // A writer that is gone has nobody to tell; why it went comes out of the task.
        let _ = self.stop.send(true);
        self.task.join_next().await.context("the writer was never started")???;
        self.newest.borrow().clone().context("the writer has changed nothing")
    }
}

async fn write(source: Client, stopped: watch::Receiver<bool>, tell: watch::Sender<Option<Written>>) -> Result<()> {
    let mut ticks = interval(STEP_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut count = 0;
    for seed in 1_i64.. {
        ticks.tick().await;
        if *stopped.borrow() {
            break;
        }
        // One message, hence one transaction: the second statement still stands in front of the commit.
        let sql = format!("SELECT public.lessons_live_step({seed}); SELECT pg_current_wal_insert_lsn()");
        let answer = source.simple_query(&sql).await.map_err(|error| anyhow!("{}", describe(&error)));
        let answer = answer.context("change lessons at the source")?;
        let mut values = answer.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let (what, lsn) = values.next().zip(values.next()).context("the source did not say what it changed")?;
        if what == "nothing to change" {
            continue;
        }
        count += 1;
        let written = Written { count, what: what.to_owned(), lsn: lsn.parse()?, committed_at: Instant::now() };
        tell.send_replace(Some(written));
    }
    Ok(())
}

/// A change set that was looked for and found.
#[derive(Clone, Debug)]
pub struct Seen {
    pub what: String,
    /// From when the source's commit had returned to when a query of the warehouse showed it.
    pub delay: Duration,
}

/// How a warehouse is looked at.
pub enum Eye {
    Postgres(Client),
    ClickHouse(http::Client),
    /// The checkpoint that a consumer has read.
    Kafka(watch::Receiver<Lsn>),
}

impl Eye {
    fn poll_every(&self) -> Duration {
        match self {
            Eye::Postgres(_) | Eye::Kafka(_) => POLL_EVERY,
            Eye::ClickHouse(_) => POLL_CLICKHOUSE_EVERY,
        }
    }

    /// Whether a query of it shows what was written before this position.
    async fn shows(&self, lsn: Lsn) -> Result<bool> {
        match self {
            Eye::Postgres(client) => {
                let sql = "SELECT coalesce(bool_and(end_lsn > $1), false) FROM tailwater.checkpoint";
                let row = client.query_one(sql, &[&PgLsn::from(lsn.0)]).await;
                let row = row.map_err(|error| anyhow!("{}", describe(&error))).context("ask the warehouse")?;
                Ok(row.get(0))
            }
            Eye::ClickHouse(client) => Ok(clickhouse::checkpoint(client).await.context("ask ClickHouse")? > lsn),
            Eye::Kafka(checkpoint) => Ok(*checkpoint.borrow() > lsn),
        }
    }
}

/// Looks for change sets in a warehouse, one at a time. Dropped, it ends at once.
pub struct Watcher {
    pub sink: &'static str,
    task: JoinSet<Result<VecDeque<Duration>>>,
    stop: watch::Sender<bool>,
    pub last: watch::Receiver<Option<Seen>>,
}

impl Watcher {
    pub fn start(sink: &'static str, eye: Eye, newest: watch::Receiver<Option<Written>>) -> Watcher {
        let (stop, stopped) = watch::channel(false);
        let (tell, last) = watch::channel(None);
        Watcher { sink, task: JoinSet::from_iter([look(eye, newest, stopped, tell)]), stop, last }
    }

    /// As the writer's.
    pub fn has_failed(&self) -> bool {
        self.last.has_changed().is_err()
    }

    /// The delays measured. With the writer gone it looks for the change set under way only, which this gives up.
    pub async fn stop(mut self) -> Result<Delays> {
        let _ = self.stop.send(true);
        let ended = self.task.join_next().await.context("the watcher was never started")?;
        let mut delays: Vec<Duration> = ended??.into();
        delays.sort();
        Ok(Delays { sink: self.sink, delays })
    }
}

async fn look(
    eye: Eye,
    mut newest: watch::Receiver<Option<Written>>,
    stopped: watch::Receiver<bool>,
    tell: watch::Sender<Option<Seen>>,
) -> Result<VecDeque<Duration>> {
    let mut delays = VecDeque::new();
    let mut ticks = interval(LOOK_FOR_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        newest.mark_unchanged();
        if newest.changed().await.is_err() {
            break;
        }
        let Some(written) = newest.borrow().clone() else { continue };
        let mut polls = interval(eye.poll_every());
        polls.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Asked to stop, it looks once more.
            let is_last = *stopped.borrow();
            polls.tick().await;
            if eye.shows(written.lsn).await? {
                let delay = written.committed_at.elapsed();
                if delays.len() == DELAYS_MAX {
                    delays.pop_front();
                }
                delays.push_back(delay);
                tell.send_replace(Some(Seen { what: written.what, delay }));
                break;
            }
            if is_last {
                break;
            }
        }
    }
    Ok(delays)
}

/// Measured delays of one warehouse, the shortest first.
pub struct Delays {
    pub sink: &'static str,
    delays: Vec<Duration>,
}

impl Delays {
    pub fn count(&self) -> usize {
        self.delays.len()
    }

    /// The delay that this share of all does not exceed; `None` if nothing was measured.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.delays.len() as f64).ceil() as usize;
        self.delays.get(rank.clamp(1, self.delays.len().max(1)) - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_measured_delays() {
        let delays = Delays { sink: "warehouse", delays: (1..=100).map(Duration::from_millis).collect() };
        for (share, expected) in [(0.0, 1), (0.5, 50), (0.99, 99), (1.0, 100)] {
            assert_eq!(delays.quantile(share), Some(Duration::from_millis(expected)), "{share}");
        }
        assert_eq!(Delays { sink: "warehouse", delays: Vec::new() }.quantile(0.5), None);
    }
}
