//! Who answers: the daemon's look at all ends, and its wait for those that did not.
//!
//! ```text
//!               ┌─ answers ────────▶ Ends, for one run
//!  open an end ─┼─ wrong ──────────▶ a finding: there is no run
//!        ▲      └─ no answer ──┐
//!        └───── back-off ◀─────┘     absent: the run goes on without it, until it answers
//! ```
//!
//! The looks outlive the runs: how long an absent end was waited for is not forgotten because the others began anew.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::live::{End, Ends, Missed, Opened, open};
use crate::config::Config;
use crate::mapping::MappingFile;
use crate::retry::{Backoff, Retry};

/// How long those that answer wait for the first word of the others. What takes longer joins later.
const GRACE: Duration = Duration::from_secs(10);
/// That an end is still waited for is said this often.
const SAY_EVERY: Duration = Duration::from_secs(300);

type Look = Pin<Box<dyn Future<Output = (End, Result<Opened, Missed>)> + Send>>;

/// Looks for all ends of a configuration.
pub struct RollCall {
    config: Arc<Config>,
    /// What the files map to each other.
    pairs: Vec<(End, End)>,
    looks: FuturesUnordered<Look>,
    /// Ends that are looked for.
    wanted: BTreeMap<End, Wait>,
}

struct Wait {
    backoff: Backoff,
    /// When it was last said that the end does not answer; `None` before its first look has ended.
    said: Option<Instant>,
}

impl RollCall {
    pub fn new(config: Arc<Config>, files: &[MappingFile]) -> RollCall {
        let pair = |file: &MappingFile| {
            let sinks: Vec<_> = file.sinks.iter().map(|sink| End::Sink(sink.value.clone())).collect();
            let sources = file.sources.clone().into_iter();
            sources.flat_map(move |source| {
                let source = End::Source(source.value);
                sinks.clone().into_iter().map(move |sink| (source.clone(), sink))
            })
        };
        let pairs =
            files.iter().filter(|file| !file.tables.is_empty() || file.topic.is_some()).flat_map(pair).collect();
        RollCall { config, pairs, looks: FuturesUnordered::new(), wanted: BTreeMap::new() }
    }

    /// Opens every end but those in `ends`, until a source and a sink of it have answered, or one is wrong, and the others have
    /// had their chance.
    pub async fn gather(&mut self, mut ends: Ends) -> Ends {
        let config = self.config.clone();
        for end in End::all(&config).filter(|end| !ends.has(end)) {
            self.look(end);
        }
        let mut deadline = None;
        loop {
            if deadline.is_none() && (self.can_run(&ends) || ends.findings.has_errors()) {
                deadline = Some(Instant::now() + GRACE);
            }
            if deadline.is_some() && self.wanted.values().all(|wait| wait.said.is_some()) {
                return ends;
            }
            tokio::select! {
                Some((end, looked)) = self.looks.next() => self.looked(end, looked, &mut ends),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    for (end, wait) in self.wanted.iter_mut().filter(|(_, wait)| wait.said.is_none()) {
                        wait.said = Some(Instant::now());
                        warn!("waiting for {end}: no answer within {} s", GRACE.as_secs());
                    }
                }
                else => return ends,
            }
        }
    }

    /// Waits until an end answers that the last [`gather`](RollCall::gather) did without; for ever if there is none. An end that
    /// no file names makes no difference. Cancel-safe.
    pub async fn back(&mut self) -> Ends {
        let mut ends = Ends::default();
        loop {
            let Some((end, looked)) = self.looks.next().await else { return std::future::pending().await };
            let is_mapped = self.pairs.iter().any(|(source, sink)| [source, sink].contains(&&end));
            self.looked(end.clone(), looked, &mut ends);
            if is_mapped && (ends.has(&end) || ends.findings.has_errors()) {
                return ends;
            }
        }
    }

    fn can_run(&self, ends: &Ends) -> bool {
        self.pairs.iter().any(|(source, sink)| ends.has(source) && ends.has(sink))
    }

    fn look(&mut self, end: End) {
        if !self.wanted.contains_key(&end) {
            let wait = Wait { backoff: Backoff::new(u64::from(std::process::id())), said: None };
            self.wanted.insert(end.clone(), wait);
            self.look_after(Duration::ZERO, end);
        }
    }

    fn look_after(&self, wait: Duration, end: End) {
        let config = self.config.clone();
        self.looks.push(Box::pin(async move {
            sleep(wait).await;
            let opened = open(&config, &end).await;
            (end, opened)
        }));
    }

    /// A look ended.
    fn looked(&mut self, end: End, looked: Result<Opened, Missed>, ends: &mut Ends) {
        let missed = match looked {
            Ok(opened) => {
                if self.wanted.remove(&end).is_some_and(|wait| wait.said.is_some()) {
                    info!("{end} answers");
                }
                ends.take(&end, opened);
                return;
            }
            Err(missed) if missed.retry == Retry::Never => {
                self.wanted.remove(&end);
                ends.findings.push(missed.finding);
                return;
            }
            Err(missed) => missed,
        };
        let Some(wait) = self.wanted.get_mut(&end) else { return };
        if wait.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            wait.said = Some(Instant::now());
            warn!("waiting for {end}: {}", missed.finding.message);
        } else {
            debug!("waiting for {end}: {}", missed.finding.message);
        }
        let pause = wait.backoff.next().unwrap_or(Backoff::LONGEST);
        self.look_after(pause, end);
    }
}
