//! One slot, two warehouses: trouble of one leaves the other's lag alone, and costs no row.

mod stage;
mod start;

use anyhow::{Context, Result, ensure};

use crate::support::daemon::tables_not_streaming;
use crate::support::pair::{DATABASE, SOON};
use crate::support::wait::{Look, eventually};
use stage::{Stage, ToClickHouse, ToPostgres, Trouble};

#[tokio::test(flavor = "multi_thread")]
async fn sink_in_trouble_leaves_the_other_alone_and_comes_back_whole() -> Result<()> {
    let mut stage = Stage::start("several", &[ToPostgres, ToClickHouse]).await?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the copies", &mut daemon).await?;
    for trouble in [Trouble::Down, Trouble::Slow] {
        for (sick, well) in [(ToPostgres, ToClickHouse), (ToClickHouse, ToPostgres)] {
            let held = stage.stands(sick).await?;
            stage.inflict(trouble, sick);
            let mut target = held;
            for _ in 0..3 {
                target = stage.change().await?;
                stage.wait(well, target, &mut daemon).await.with_context(|| format!("{sick:?} is {trouble:?}"))?;
            }
            let confirmed = stage.confirmed().await?;
            ensure!(confirmed < target, "the source was told {confirmed}, which {sick:?} cannot hold");
            stage.heal(trouble, sick)?;
            stage.assert_equal(&format!("{sick:?} was {trouble:?}"), &mut daemon).await?;
        }
    }
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_table_of_one_sink_stops_there_alone_and_is_brought_back() -> Result<()> {
    let mut stage = Stage::start("several-broken", &[ToPostgres, ToClickHouse]).await?;
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the copies", &mut daemon).await?;
    stage.server.query("ALTER TABLE mirror.entries DROP COLUMN filler")?;
    for _ in 0..3 {
        let target = stage.change().await?;
        stage.wait(ToPostgres, target, &mut daemon).await?;
    }
    let state = "SELECT state FROM tailwater.table_state FINAL WHERE target = 'mirror.entries'";
    eventually(SOON, "the table is quarantined", async || {
        let state = stage.server.query(state)?;
        Ok(if state == "quarantined" { Look::Yes(()) } else { Look::NotYet(state) })
    })
    .await?;
    let client = stage.postgres.connect(DATABASE).await?;
    ensure!(tables_not_streaming(&client).await? == 0);
    daemon.terminate()?;

    // The way back that the README tells.
    for mend in [
        "ALTER TABLE mirror.entries ADD COLUMN filler String",
        "TRUNCATE TABLE mirror.entries",
        "DELETE FROM tailwater.table_state WHERE target = 'mirror.entries'",
    ] {
        stage.server.query(mend)?;
    }
    let mut daemon = stage.home.run()?;
    stage.assert_equal("the table was mended", &mut daemon).await?;
    stage.change().await?;
    stage.assert_equal("the mended table streams", &mut daemon).await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn sink_that_is_added_later_is_filled_while_the_other_streams_on() -> Result<()> {
    let mut stage = Stage::start("several-added", &[ToPostgres]).await?;
    let mut daemon = stage.home.run()?;
    let target = stage.change().await?;
    stage.wait(ToPostgres, target, &mut daemon).await?;
    daemon.terminate()?;
    stage.configure(&[ToPostgres, ToClickHouse])?;
    let mut daemon = stage.home.run()?;
    for _ in 0..5 {
        let target = stage.change().await?;
        stage.wait(ToPostgres, target, &mut daemon).await?;
    }
    stage.assert_equal("the other sink was added", &mut daemon).await?;
    daemon.terminate()
}
