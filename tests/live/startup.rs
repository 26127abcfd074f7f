//! Start-up decisions: a daemon never continues over a gap. Each accident ends it with its own exit code, and changes
//! nothing at either end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::cluster::{Cluster, Options, Stop};
use crate::support::pair::{DATABASE, PUBLICATION, Pair, SLOT};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};
use crate::support::workload::{SCHEMA, SEED_SQL, TABLES, mirror_mapping};

const HALT_WITHIN: Duration = Duration::from_secs(30);

/// What happened to the source while no daemon ran.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Accident {
    SlotMissing,
    SlotLost,
    Gap,
    SourceBehind,
    Diverged,
    OtherSystem,
    PublicationGone,
}

impl Accident {
    const ALL: [Accident; 7] = [
        Accident::SlotMissing,
        Accident::Gap,
        Accident::PublicationGone,
        Accident::OtherSystem,
        Accident::SlotLost,
        Accident::SourceBehind,
        Accident::Diverged,
    ];

    fn exit_code(self) -> i32 {
        match self {
            Accident::SlotMissing => 10,
            Accident::SlotLost => 11,
            Accident::Gap => 12,
            Accident::SourceBehind => 13,
            Accident::Diverged => 14,
            Accident::OtherSystem => 15,
            Accident::PublicationGone => 16,
        }
    }

    async fn happen(self, pair: &mut Pair) -> Result<()> {
        match self {
            Accident::SlotMissing => {
                let sql = format!("SELECT pg_drop_replication_slot('{SLOT}')");
                pair.source.execute(DATABASE, &sql).await
            }
            Accident::Gap => {
                pair.source.execute(DATABASE, "DELETE FROM ledger").await?;
                let sql = format!("SELECT pg_replication_slot_advance('{SLOT}', pg_current_wal_flush_lsn())");
                pair.source.execute(DATABASE, &sql).await
            }
            Accident::PublicationGone => {
                pair.source.execute(DATABASE, &format!("DROP PUBLICATION {PUBLICATION}")).await
            }
            Accident::SlotLost => lose_slot(&pair.source).await,
            Accident::OtherSystem => pair.move_to_another_system().await,
            Accident::SourceBehind => pair.source_restored(),
            Accident::Diverged => {
                pair.source_restored()?;
                pair.source.fork_timeline()?;
                // Beyond the position that the sink holds of the history that is gone.
                let more = "INSERT INTO ledger SELECT 9, line, 0, repeat('x', 200) FROM generate_series(1, 50000) line";
                pair.source.execute(DATABASE, more).await
            }
        }
    }
}

/// Lets the server drop WAL that the slot needs.
async fn lose_slot(source: &Cluster) -> Result<()> {
    source.set("max_slot_wal_keep_size", "1MB")?;
    source.set("min_wal_size", "32MB")?;
    source.set("max_wal_size", "32MB")?;
    source.reload();
    let client = source.connect(DATABASE).await?;
    for _ in 0..6 {
        client.batch_execute("SELECT pg_logical_emit_message(false, 'fill', repeat('x', 9000000))").await?;
        client.batch_execute("SELECT pg_switch_wal(); CHECKPOINT").await?;
    }
    let sql = "SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1";
    let status: Option<String> = client.query_one(sql, &[&SLOT]).await?.get(0);
    ensure!(status.as_deref() == Some("lost"), "the slot is {status:?}");
    Ok(())
}

/// The server needs a moment to see that the daemon is gone.
async fn slot_is_free(source: &Cluster) -> Result<()> {
    let client = source.connect(DATABASE).await?;
    eventually(HALT_WITHIN, "the slot is free", async || {
        let sql = "SELECT active FROM pg_replication_slots WHERE slot_name = $1";
        let active: bool = client.query_one(sql, &[&SLOT]).await?.get(0);
        Ok(if active { Look::NotYet("it is active".to_owned()) } else { Look::Yes(()) })
    })
    .await
}

impl Pair {
    /// What `before_accident` saved comes back.
    fn source_restored(&mut self) -> Result<()> {
        self.source.stop(Stop::Fast)?;
        self.source.restore("before")?;
        self.source.resume()
    }

    /// The address now leads to another server with the same tables, publication and slot.
    async fn move_to_another_system(&mut self) -> Result<()> {
        let other = Cluster::start("other", self.source.version(), Options::default().own_system())?;
        other.execute(DATABASE, SCHEMA).await?;
        let list = TABLES.join(", ");
        other.execute(DATABASE, &format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {list}")).await?;
        let slot = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')");
        other.execute(DATABASE, &slot).await?;
        other.execute(DATABASE, SEED_SQL).await?;
        self.source = other;
        let config = crate::support::daemon::Home::pair_config(&self.source, &self.sink, DATABASE);
        self.home.configure(&config, &[("mapping.toml", &mirror_mapping(TABLES))])
    }

    /// All that a verdict must leave as it is.
    async fn ends(&self) -> Result<String> {
        let sink = "SELECT (SELECT string_agg(c::text, ';') FROM tailwater.checkpoint c) || \
                    (SELECT string_agg(s::text, ';' ORDER BY s::text) FROM tailwater.table_state s) || \
                    (SELECT count(*) FROM mirror.ledger)";
        let source = "SELECT coalesce(string_agg(slot_name || confirmed_flush_lsn::text, ';'), 'none') || \
                      (SELECT count(*) FROM pg_publication) FROM pg_replication_slots";
        let sink: String = self.sink().await?.query_one(sink, &[]).await?.get(0);
        let source: String = self.source().await?.query_one(source, &[]).await?.get(0);
        Ok(format!("source {source}, sink {sink}"))
    }
}

async fn halts(version: Version, accident: Accident) -> Result<()> {
    let mut pair = Pair::start("startup", version, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    pair.source.stop(Stop::Fast)?;
    pair.source.save("before")?;
    pair.source.resume()?;
    let mut daemon = pair.home.run()?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = 1").await?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    slot_is_free(&pair.source).await?;

    accident.happen(&mut pair).await?;
    let before = pair.ends().await?;
    let mut daemon = pair.home.run()?;
    let status = daemon.wait_ended(HALT_WITHIN)?;
    ensure!(status.code() == Some(accident.exit_code()), "it ended with {status}");
    let after = pair.ends().await?;
    ensure!(before == after, "before: {before}; after: {after}");
    // `check` comes to the same verdict.
    let check = pair.home.command(&["check"])?;
    ensure!(!check.status.success(), "\"check\" found nothing");
    Ok(())
}

async fn every_accident_halts(version: Version) -> Result<()> {
    for accident in Accident::ALL {
        halts(version, accident).await.with_context(|| format!("{version}, {accident:?}"))?;
    }
    Ok(())
}

/// The README's "Starting over", step by step, after changes were lost.
#[tokio::test]
async fn starting_over_copies_everything_again() -> Result<()> {
    let mut pair = Pair::start("start-over", Version::V15, Options::default()).await?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    daemon.terminate()?;
    slot_is_free(&pair.source).await?;
    Accident::Gap.happen(&mut pair).await?;

    let targets: Vec<String> = TABLES.iter().map(|table| table.replace("public.", "mirror.")).collect();
    let state = format!(
        "DELETE FROM tailwater.checkpoint WHERE source = 'src'; DELETE FROM tailwater.table_state WHERE source = 'src'; \
         TRUNCATE {}",
        targets.join(", ")
    );
    pair.sink.execute(DATABASE, &state).await?;
    pair.source.execute(DATABASE, &format!("SELECT pg_drop_replication_slot('{SLOT}')")).await?;
    pair.home.setup()?;
    let mut daemon = pair.home.run()?;
    pair.catch_up(&mut daemon).await?;
    pair.source.execute(DATABASE, "UPDATE churn SET number = number + 1").await?;
    pair.catch_up(&mut daemon).await?;
    pair.assert_equal().await?;
    daemon.terminate()
}

#[tokio::test]
async fn source_14_is_not_continued_over_a_gap() -> Result<()> {
    every_accident_halts(Version::V14).await
}

#[tokio::test]
async fn source_15_is_not_continued_over_a_gap() -> Result<()> {
    every_accident_halts(Version::V15).await
}

#[tokio::test]
async fn source_16_is_not_continued_over_a_gap() -> Result<()> {
    every_accident_halts(Version::V16).await
}

#[tokio::test]
async fn source_17_is_not_continued_over_a_gap() -> Result<()> {
    every_accident_halts(Version::V17).await
}

#[tokio::test]
async fn source_18_is_not_continued_over_a_gap() -> Result<()> {
    every_accident_halts(Version::V18).await
}
