//! The sessions model: four databases in two clusters, one daemon, both warehouses.

mod stage;

use anyhow::{Result, ensure};

use self::stage::{PROJECTS, Stage};

/// What a test of views must not miss: the same ids in every project, what has no rate yet, borders, values at the edge.
const CASES: &str = "
    INSERT INTO user_sessions VALUES
        (9001, 1, true, 'cart', '2026-03-05 12:00', '2026-03-05 10:00', '2026-03-05 12:30'),
        (9001, 2, NULL, NULL, NULL, '2026-03-05 14:00', NULL),
        (9002, 1, false, E'tab\\tand ''quote''', '2026-03-06 10:00', '2026-03-06 10:00', '2026-03-06 10:00');
    INSERT INTO events VALUES
        (9001, 1, 'view', 1, '2026-03-05 10:00'), (9001, 2, 'view', 1, '2026-03-05 12:00'),
        (9001, 3, 'view', 1, '2026-03-05 12:00:00.000001'), (9001, 4, NULL, NULL, NULL),
        (9002, 1, 'view', 1, '2026-03-06 10:00');
    INSERT INTO transactions VALUES
        (1, 9001, '2026-03-05 12:30', 10.0000000001, 'EUR', true), (2, 9001, '2026-03-05 11:00', 7, 'USD', true),
        (3, 9001, '2026-03-05 11:00', 8, 'EUR', true), (4, 9001, '2026-03-05 10:30', 9, 'USD', false),
        (5, 9001, '2026-03-05 11:30', 12345678901234567890.12, 'XXX', true), (6, 9001, NULL, 1, 'USD', true),
        (7, 9001, '2026-03-05 11:31', NULL, 'USD', true), (8, 9001, '2026-03-05 11:32', -3.50, NULL, NULL),
        (1, 9002, '2026-03-06 10:00', 5, 'JPY', true);";

/// Changes in places that lie far from where they are seen.
const CHANGES: &str = "
    BEGIN;
    UPDATE user_sessions SET updated_at = '2026-03-05 12:29', last_activity_at = '2026-03-05 12:00:00.000001'
        WHERE user_id = 9001 AND id = 1;
    UPDATE user_sessions SET id = 3 WHERE user_id = 9001 AND id = 2;
    INSERT INTO transactions VALUES (9, 9001, '2026-03-05 10:00', 1.10, 'GBP', true);
    UPDATE transactions SET currency = 'USD' WHERE user_id = 9002;
    DELETE FROM transactions WHERE user_id = 9001 AND id = 2;
    DELETE FROM events WHERE user_id = 1;
    DELETE FROM user_sessions WHERE user_id = 2 AND id = 1;
    UPDATE pages SET name = 'home' WHERE id = 1;
    COMMIT";

const RATES: &str = "
    UPDATE exchange_rates SET exchange_rate = exchange_rate * 1.5 WHERE currency_from = 'EUR' AND currency_date = '2026-03-05';
    DELETE FROM exchange_rates WHERE currency_from = 'GBP' AND currency_date = '2026-03-05';
    INSERT INTO exchange_rates VALUES ('XXX', 'USD', 0.000000000000000001, '2026-03-05')";

#[tokio::test(flavor = "multi_thread")]
async fn projects_side_by_side_are_the_same_star_in_both_warehouses() -> Result<()> {
    let mut stage = Stage::start("sessions", &PROJECTS).await?;
    for project in PROJECTS {
        stage.execute(project, CASES).await?;
    }
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("the copies").await?;

    stage.execute("project_a", CHANGES).await?;
    stage.execute("rates", RATES).await?;
    stage.live_steps(60).await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("changes in all sources").await?;
    stage.execute("project_b", "TRUNCATE events").await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("TRUNCATE in one project").await?;

    stage.west.kill9();
    stage.live_steps_of(&["project_a", "project_b"], 20).await?;
    stage.execute("rates", "SELECT exchange_rates_live_step(7)").await?;
    for source in ["project_a", "project_b", "rates"] {
        stage.catch_up_with(source, &mut daemon).await?;
        let lag = stage.lag_seconds(&daemon, source)?;
        ensure!(lag.len() == 2 && lag.iter().all(|lag| *lag < 5.0), "{source} lags {lag:?} s behind");
    }
    let connected = daemon.metrics()?;
    ensure!(connected["tailwater_source_connected{source=\"project_c\"}"] == 0.0, "project_c is said to be there");
    stage.west.resume()?;
    stage.live_steps_of(&["project_c"], 20).await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("the return of a project").await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn project_that_is_down_at_the_start_joins_the_others_later() -> Result<()> {
    let mut stage = Stage::start("sessions-absent", &PROJECTS).await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    daemon.terminate()?;

    stage.live_steps(10).await?;
    stage.west.kill9();
    let mut daemon = stage.home.run()?;
    let others = ["project_a", "project_b"];
    stage.live_steps_of(&others, 20).await?;
    stage.execute("rates", RATES).await?;
    for source in others.into_iter().chain(["rates"]) {
        stage.catch_up_with(source, &mut daemon).await?;
    }
    let metrics = daemon.metrics()?;
    for (source, connected) in [("project_a", 1.0), ("project_b", 1.0), ("rates", 1.0), ("project_c", 0.0)] {
        ensure!(metrics[&format!("tailwater_source_connected{{source=\"{source}\"}}")] == connected, "{source}");
    }
    let page = stage.home.must(&["status"])?;
    ensure!(page.contains("waiting for source \"project_c\""), "{page}");
    let ready = daemon.get("/readyz")?;
    ensure!(ready.status == 503 && ready.body.contains("project_c"), "{} {}", ready.status, ready.body);

    stage.west.resume()?;
    stage.live_steps(10).await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("the project joined").await?;
    daemon.terminate()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_project_is_one_more_source_and_a_name() -> Result<()> {
    let mut stage = Stage::start("sessions-more", &PROJECTS).await?;
    let mut daemon = stage.home.run()?;
    stage.catch_up(&mut daemon).await?;
    daemon.terminate()?;

    let all = ["project_a", "project_b", "project_c", "project_d"];
    stage.add_project("project_d").await?;
    stage.home.setup()?;
    let mut daemon = stage.home.run()?;
    stage.live_steps_of(&all, 20).await?;
    stage.catch_up(&mut daemon).await?;
    stage.assert_equal("one more project").await?;
    let metrics = daemon.metrics()?;
    let copied = |source: &str| -> f64 {
        let of = |key: &str| key.starts_with("tailwater_snapshot_rows_total") && key.contains(&format!("\"{source}\""));
        metrics.iter().filter(|(key, _)| of(key)).map(|(_, rows)| rows).sum()
    };
    ensure!(copied("project_d") > 100.0, "{} rows of project_d were copied", copied("project_d"));
    for source in ["project_a", "project_b", "project_c", "rates"] {
        ensure!(copied(source) == 0.0, "{} rows of {source} were copied again", copied(source));
    }
    daemon.terminate()
}
