//! Random kill -9 of the daemon, the source and the sink under load. `TAILWATER_KILLS` says how many (default 50),
//! `TAILWATER_SEED` repeats a run's choices.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::support::checker::Checker;
use crate::support::cluster::Cluster;
use crate::support::daemon::{Daemon, Home};
use crate::support::oracle::{Oracle, digest};
use crate::support::random::Random;
use crate::support::workload::{Load, SCHEMA, SEED_SQL, TABLES, Workload, mirror_mapping};

const DATABASE: &str = "postgres";
const KILLS: u64 = 50;

/// After so many kills everybody may catch up, which shows that nothing is stuck.
const KILLS_BETWEEN_CATCH_UPS: u64 = 10;
const CATCH_UP_WITHIN: Duration = Duration::from_secs(300);

#[derive(Default)]
struct Kills {
    daemon: u64,
    source: u64,
    sink: u64,
    /// Not a kill, but as good an occasion to lose something.
    terminated: u64,
}

impl Kills {
    fn total(&self) -> u64 {
        self.daemon + self.source + self.sink
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Kills { daemon, source, sink, terminated } = self;
        write!(f, "{} kills (daemon {daemon}, source {source}, sink {sink}), {terminated} SIGTERM", self.total())
    }
}

struct Arena {
    source: Cluster,
    sink: Cluster,
    home: Home,
    daemon: Daemon,
    checker: Checker,
    kills: Kills,
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_equals_the_source_through_random_kills() -> Result<()> {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let wanted = std::env::var("TAILWATER_KILLS").map_or(Ok(KILLS), |text| text.parse()).context("TAILWATER_KILLS")?;
    let began = Instant::now();

    let (mut arena, load) = Arena::open(&mut random).await?;
    let mut next_catch_up = KILLS_BETWEEN_CATCH_UPS;
    while arena.kills.total() < wanted {
        // Not a wait for anything: when a kill comes is part of the draw.
        tokio::time::sleep(Duration::from_millis(random.below(2_500))).await;
        arena.strike(&mut random).await?;
        arena.verdict()?;
        if arena.kills.total() >= next_catch_up {
            next_catch_up += KILLS_BETWEEN_CATCH_UPS;
            arena.catch_up().await?;
            let (commits, seconds) = (load.commits(), began.elapsed().as_secs());
            eprintln!("{}, {commits} commits, {:?}, {seconds} s", arena.kills, arena.checker.tally());
        }
    }
    let commits = load.stop().await?;
    arena.close().await?;
    eprintln!("seed {seed}: {commits} source commits in {} s", began.elapsed().as_secs());
    Ok(())
}

impl Arena {
    /// Everything up and under load; the daemon's first copy of the tables may well be hit by the first kills.
    async fn open(random: &mut Random) -> Result<(Arena, Load)> {
        let (source, sink) = (Cluster::new("source")?, Cluster::new("sink")?);
        source.execute(DATABASE, SCHEMA).await?;
        sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let oracle = Arc::new(Oracle::start(&source, DATABASE, TABLES).await?);
        source.execute(DATABASE, SEED_SQL).await?;
        let load = Load::start(&source, DATABASE, Workload::ALL, random);
        let home = Home::pair("crash", &source, &sink, DATABASE, &mirror_mapping(TABLES))?;
        home.setup()?;
        let daemon = home.run()?;
        let checker = Checker::start(&source, &sink, DATABASE, &oracle);
        Ok((Arena { source, sink, home, daemon, checker, kills: Kills::default() }, load))
    }

    /// Kills one of the three, or two at once, and starts it again a moment later.
    async fn strike(&mut self, random: &mut Random) -> Result<()> {
        let down = Duration::from_millis(random.below(700));
        match random.below(12) {
            0..5 => {
                self.kill_daemon();
                tokio::time::sleep(down / 4).await;
                self.daemon = self.home.run()?;
            }
            5..8 => {
                self.kill_sink();
                tokio::time::sleep(down).await;
                self.sink.resume()?;
            }
            8..10 => {
                self.kill_source();
                tokio::time::sleep(down).await;
                self.source.resume()?;
            }
            10 => {
                self.kill_daemon();
                let source_too = random.one_in(2);
                if source_too {
                    self.kill_source()
                } else {
                    self.kill_sink()
                }
                tokio::time::sleep(down).await;
                if source_too {
                    self.source.resume()?
                } else {
                    self.sink.resume()?
                }
                self.daemon = self.home.run()?;
            }
            _ => {
                self.daemon.wait_serving().await?;
                self.daemon.terminate()?;
                self.kills.terminated += 1;
                self.daemon = self.home.run()?;
            }
        }
        Ok(())
    }

    fn kill_daemon(&mut self) {
        self.daemon.kill9();
        self.kills.daemon += 1;
    }

    fn kill_source(&mut self) {
        self.source.kill9();
        self.kills.source += 1;
    }

    fn kill_sink(&mut self) {
        self.sink.kill9();
        self.kills.sink += 1;
    }

    /// No promise is broken, and the daemon outlives the death of either database.
    fn verdict(&mut self) -> Result<()> {
        self.checker.verdict().with_context(|| format!("after {}", self.kills))?;
        let ended = self.daemon.ended()?;
        ensure!(ended.is_none(), "after {} the daemon ended by itself: {ended:?}", self.kills);
        Ok(())
    }

    async fn catch_up(&mut self) -> Result<()> {
        let source = self.source.connect(DATABASE).await?;
        let sink = self.sink.connect(DATABASE).await?;
        self.daemon.wait_caught_up(&source, &sink, CATCH_UP_WITHIN).await?;
        self.verdict()
    }

    /// With the load gone, both databases are equal, and the daemon ends when asked.
    async fn close(mut self) -> Result<()> {
        self.catch_up().await?;
        let source = self.source.connect(DATABASE).await?;
        let sink = self.sink.connect(DATABASE).await?;
        let tables = self.checker.oracle().tables();
        let truth = digest::source_digests(&source, tables).await?;
        let state = digest::sink_state(&sink, tables).await?.context("the sink has a checkpoint")?;
        ensure!(state.digests == truth, "in the end the source has {truth:?}, the sink {:?}", state.digests);
        let tally = self.checker.stop().await?;
        ensure!(
            tally.comparisons >= self.kills.total() && tally.totals >= 10 * self.kills.total(),
            "too few looks to mean anything: {tally:?}"
        );
        self.daemon.terminate()?;
        eprintln!("{}: nothing lost, nothing doubled, never a torn state; {tally:?}", self.kills);
        Ok(())
    }
}
