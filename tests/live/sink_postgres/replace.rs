//! Batches of many updated rows, which are replaced in place where the target allows it.

use anyhow::{Result, ensure};
use tailwater::batch::BatchLimits;
use tailwater::mapping::plan::{DeleteMode, Output, OutputFrom, Plan};

use super::cases::recorded;
use super::{ALL, Applying, Described, make_target, plan, rows, target_rows};
use crate::support::cluster::Cluster;

const COLUMNS: [Described; 4] = [
    ("place", "integer", 23, false, false),
    ("name", "text", 25, false, true),
    ("id", "bigint", 20, false, false),
    ("large", "text", 25, false, true),
];

const SOURCE: &str = "CREATE SCHEMA dwh; CREATE TABLE big (place int, name text, id bigint PRIMARY KEY, large text);
    ALTER TABLE big ALTER large SET STORAGE EXTERNAL";
/// Every tenth row has a value that updates leave unsent.
const FILL: &str = "INSERT INTO big SELECT n, 'first', n * 7919 % 9001 - 4000,
    CASE WHEN n % 10 = 0 THEN repeat(n::text, 3000) END FROM generate_series(1, 9000) n";
/// Updated rows among new and deleted ones.
const CHANGE: &str = "UPDATE big SET name = CASE WHEN place % 7 > 0 THEN 'second' END WHERE place <= 8000;
    DELETE FROM big WHERE place > 8500; INSERT INTO big SELECT n, 'new', n FROM generate_series(20001, 20300) n";

/// The plan's target after both transactions; in between, `meanwhile` runs there. Also, whether rows were replaced.
async fn applied(plan: &Plan, change: &str, make: &str, meanwhile: &str) -> Result<(Vec<String>, Vec<String>, bool)> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute(SOURCE).await?;
    let messages = recorded(&client, "big", &[FILL, change]).await?;
    make_target(&client, plan).await?;
    client.batch_execute(make).await?;
    let mut applying = Applying::new(&cluster, vec![plan.clone()], BatchLimits { commits: 1, ..ALL }).await?;
    let mut commits = 0;
    let look = async |_| {
        commits += 1;
        Ok(client.batch_execute(if commits == 1 { meanwhile } else { "" }).await?)
    };
    applying.run(&messages, look).await?;
    let prepared =
        "SELECT EXISTS (SELECT FROM pg_prepared_statements WHERE statement LIKE 'WITH touched AS (UPDATE%set_config%')";
    let replaced = applying.sink.client().query_one(prepared, &[]).await?.get(0);
    let settings = "SELECT bool_and(setting = reset_val) FROM pg_settings WHERE name ~ '^(enable_|jit$)'";
    let reset: bool = applying.sink.client().query_one(settings, &[]).await?.get(0);
    ensure!(reset, "a setting outlived its statement");
    Ok((target_rows(&client, plan).await?, rows(&client, "TABLE big").await?, replaced))
}

#[tokio::test(flavor = "multi_thread")]
async fn many_updated_rows_are_replaced_and_missing_ones_come_back() -> Result<()> {
    let plan = plan("big", "big", &COLUMNS, &[2], false);
    // Rows that somebody removed at the target are written again, those with unsent values aside.
    for meanwhile in ["", "DELETE FROM dwh.big WHERE id % 3 = 1 AND large IS NULL AND place <= 8000"] {
        let (held, source, replaced) = applied(&plan, CHANGE, "", meanwhile).await?;
        ensure!(held == source, "{} rows instead of {}", held.len(), source.len());
        ensure!(replaced);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replaced_rows_are_computed_and_live_again() -> Result<()> {
    let mut plan = plan("big", "big", &COLUMNS, &[2], false);
    plan.delete = DeleteMode::Soft;
    plan.deleted_column = Some("gone".to_owned());
    plan.outputs.push(Output {
        column: "computed".to_owned(),
        target_type: "text".to_owned(),
        from: OutputFrom::Sql { text: "name || place".to_owned(), inputs: vec![0] },
    });
    let (held, _, replaced) = applied(&plan, CHANGE, "", "UPDATE dwh.big SET gone = true").await?;
    ensure!(replaced);
    let of = |end: &str| held.iter().filter(|row| row.ends_with(end)).count();
    ensure!((of(",t)"), of(",f)")) == (500 + 500, 8000 + 300), "{} and {}", of(",t)"), of(",f)"));
    ensure!(held.iter().filter(|row| row.contains(",second,") && row.contains(",second1")).count() > 500);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_unique_column_go_from_row_to_row() -> Result<()> {
    let plan = plan("big", "big", &COLUMNS, &[2], false);
    // Each row takes the value that the row before it, in the order of changes, has let go.
    let change = "DO $$ DECLARE row record; BEGIN
        FOR row IN SELECT id FROM big ORDER BY place DESC LOOP UPDATE big SET place = place + 1, large = NULL WHERE id = row.id; END LOOP;
        END $$";
    let (held, source, replaced) = applied(&plan, change, "CREATE UNIQUE INDEX ON dwh.big (place)", "").await?;
    ensure!(held == source, "{} rows instead of {}", held.len(), source.len());
    ensure!(!replaced);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_table_with_triggers_are_upserted() -> Result<()> {
    let plan = plan("big", "big", &COLUMNS, &[2], false);
    let make = "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
        CREATE TRIGGER keep BEFORE INSERT ON dwh.big FOR EACH ROW EXECUTE FUNCTION keep()";
    let (held, source, replaced) = applied(&plan, CHANGE, make, "").await?;
    ensure!(held == source, "{} rows instead of {}", held.len(), source.len());
    ensure!(!replaced);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_change_keys_among_many_updated_ones() -> Result<()> {
    let plan = plan("big", "big", &COLUMNS, &[2], false);
    let change = "UPDATE big SET name = 'second', id = CASE WHEN place % 100 = 1 THEN id + 100000 ELSE id END";
    let (held, source, _) = applied(&plan, change, "", "").await?;
    ensure!(held == source);
    Ok(())
}
