//! Cases that random histories do not reach: large groups, foreign keys, very wide rows, rows that cannot be taken.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tailwater::batch::BatchLimits;
use tailwater::catalog::TableName;
use tailwater::frame;
use tailwater::mapping::plan::{DeleteMode, InputFrom, Mask, Meta, Mode, Output, OutputFrom};
use tailwater::sink::ApplyError;
use tokio_postgres::Client;

use super::{ALL, Applying, Described, input, make_target, messages, plan, rows, sink, target_rows};
use crate::support::cluster::Cluster;

/// Runs transactions at the source between the making of a slot and its end, and returns what the slot sent.
pub async fn recorded(client: &Client, tables: &str, transactions: &[&str]) -> Result<Vec<Vec<u8>>> {
    client.batch_execute(&format!("DROP PUBLICATION IF EXISTS pub; CREATE PUBLICATION pub FOR TABLE {tables}")).await?;
    client.query_one("SELECT pg_create_logical_replication_slot('rec', 'pgoutput')", &[]).await?;
    for sql in transactions {
        client.batch_execute(sql).await?;
    }
    let messages = messages(client).await?;
    client.query_one("SELECT pg_drop_replication_slot('rec')", &[]).await?;
    Ok(messages)
}

const ID: Described = ("id", "bigint", 20, false, false);
const NAME: Described = ("name", "text", 25, false, true);

#[tokio::test(flavor = "multi_thread")]
async fn groups_too_large_for_parameters_stay_apart() -> Result<()> {
    // Regression: soft deletes and key changes shared a stage, and what was to be marked was gone.
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("CREATE SCHEMA dwh; CREATE TABLE big (id bigint PRIMARY KEY, name text)").await?;
    let fill = "INSERT INTO big SELECT n, n FROM generate_series(1, 9000) n";
    let change = "DELETE FROM big WHERE id <= 3000; UPDATE big SET id = -id WHERE id <= 6000;
        INSERT INTO big SELECT n, n FROM generate_series(20001, 23000) n; DELETE FROM big WHERE id > 20000";
    let messages = recorded(&client, "big", &[fill, change]).await?;
    for rows in [usize::MAX, 2_500] {
        let mut plan = plan("big", "big", &[ID, NAME], &[0], false);
        plan.delete = DeleteMode::Soft;
        plan.deleted_column = Some("gone".to_owned());
        make_target(&client, &plan).await?;
        // The second transaction, whole or in parts, after the first was applied.
        let mut applying = Applying::new(&cluster, vec![plan], BatchLimits { rows, commits: 1, ..ALL }).await?;
        applying.run(&messages, async |_| Ok(())).await?;
        let counts = "SELECT count(*) FILTER (WHERE gone AND id <= 3000), count(*) FILTER (WHERE gone AND id > 20000),
            count(*) FILTER (WHERE NOT gone AND id < 0), count(*) FROM dwh.big";
        let row = client.query_one(counts, &[]).await?;
        let counts: [i64; 4] = [row.get(0), row.get(1), row.get(2), row.get(3)];
        ensure!(counts == [3000, 3000, 3000, 12000], "{counts:?} at {rows} rows a batch");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_come_before_children_and_go_after_them() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client
        .batch_execute(
            "CREATE SCHEMA dwh; CREATE TABLE parent (id bigint PRIMARY KEY, name text);
             CREATE TABLE child (id bigint PRIMARY KEY, name text, parent bigint)",
        )
        .await?;
    let messages = recorded(
        &client,
        "parent, child",
        &[
            "INSERT INTO child VALUES (1, 'c', 1); INSERT INTO parent VALUES (1, 'p')",
            "DELETE FROM parent; DELETE FROM child; INSERT INTO child VALUES (2, 'c', 2);
             INSERT INTO parent VALUES (2, 'p')",
            "TRUNCATE parent, child",
        ],
    )
    .await?;
    for commits in [1, 2] {
        let mut child = plan("child", "child", &[ID, NAME, ("parent", "bigint", 20, false, false)], &[0], false);
        child.parents = vec![TableName::new("dwh", "parent")];
        let parent = plan("parent", "parent", &[ID, NAME], &[0], false);
        make_target(&client, &parent).await?;
        make_target(&client, &child).await?;
        client.batch_execute("ALTER TABLE dwh.child ADD FOREIGN KEY (parent) REFERENCES dwh.parent").await?;
        let mut applying = Applying::new(&cluster, vec![child, parent], BatchLimits { commits, ..ALL }).await?;
        applying.run(&messages, async |_| Ok(())).await?;
        ensure!(rows(&client, "TABLE dwh.child UNION ALL SELECT *, 0 FROM dwh.parent").await?.is_empty());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn any_number_of_large_columns_may_be_unsent() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    let names: Vec<String> = (0..70).map(|number| format!("c{number}")).collect();
    let defined = names.iter().map(|name| format!("{name} text")).collect::<Vec<_>>().join(", ");
    let external = names.iter().map(|name| format!("ALTER {name} SET STORAGE EXTERNAL")).collect::<Vec<_>>().join(", ");
    let values = names.iter().map(|name| format!("repeat('{name}', 1500)")).collect::<Vec<_>>().join(", ");
    client.batch_execute(&format!("CREATE SCHEMA dwh; CREATE TABLE wide (id bigint PRIMARY KEY, {defined})")).await?;
    client.batch_execute(&format!("ALTER TABLE wide {external}")).await?;
    let insert = format!("INSERT INTO wide VALUES (1, {values}), (2, {values})");
    let sql = [&*insert, "UPDATE wide SET c3 = 'x'", "UPDATE wide SET id = -id"];
    let messages = recorded(&client, "wide", &sql).await?;
    let names: Vec<&'static str> = names.into_iter().map(|name| &*name.leak()).collect();
    let columns: Vec<Described> =
        [ID].into_iter().chain(names.into_iter().map(|name| (name, "text", 25, false, true))).collect();
    let plan = plan("wide", "wide", &columns, &[0], false);
    make_target(&client, &plan).await?;
    let mut applying = Applying::new(&cluster, vec![plan.clone()], BatchLimits { commits: 1, ..ALL }).await?;
    applying.run(&messages, async |_| Ok(())).await?;
    ensure!(applying.applied.len() == 3);
    ensure!(target_rows(&client, &plan).await? == rows(&client, "TABLE wide").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unsent_value_that_nobody_holds_is_an_error_not_null() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    let source = "CREATE SCHEMA dwh; CREATE TABLE t (id bigint PRIMARY KEY, name text, flag boolean);
        ALTER TABLE t ALTER name SET STORAGE EXTERNAL";
    client.batch_execute(source).await?;
    let sql = ["INSERT INTO t VALUES (1, repeat('x', 9000), false)", "UPDATE t SET flag = true"];
    let messages = recorded(&client, "t", &sql).await?;
    let columns = [ID, NAME, ("flag", "boolean", 16, false, false)];
    let whole = plan("t", "t", &columns, &[0], false);
    // Planned when old rows came whole, computed without being held, and coming to match a filter.
    let mut changed = whole.clone();
    changed.inputs[1].toastable = false;
    let mut computed = whole.clone();
    computed.outputs[1].from = OutputFrom::Sql { text: "upper(name)".to_owned(), inputs: vec![1] };
    let mut filtered = whole.clone();
    (filtered.filter, filtered.filter_inputs) = (Some("flag".to_owned()), vec![2]);
    let mut appended = whole.clone();
    (appended.mode, appended.key, appended.key_inputs) = (Mode::Append, Vec::new(), Vec::new());
    for plan in [changed, computed, filtered, appended] {
        make_target(&client, &plan).await?;
        let mut applying = Applying::new(&cluster, vec![plan.clone()], BatchLimits { commits: 1, ..ALL }).await?;
        let error = applying.run(&messages, async |_| Ok(())).await.err().context("it was taken")?;
        let is_table = matches!(error.downcast_ref(), Some(ApplyError::Table { plan_index: 0, .. }));
        ensure!(is_table, "{error:?}");
        ensure!(applying.applied.len() == 1);
        if plan.mode == Mode::Append {
            continue;
        }
        // In one batch every value is known.
        make_target(&client, &plan).await?;
        let mut applying = Applying::new(&cluster, vec![plan.clone()], ALL).await?;
        applying.run(&messages, async |_| Ok(())).await?;
        ensure!(!target_rows(&client, &plan).await?.is_empty());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn new_rows_that_are_there_already_are_merged_at_the_second_try() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("CREATE SCHEMA dwh; CREATE TABLE big (id bigint PRIMARY KEY, name text)").await?;
    let messages = recorded(&client, "big", &["INSERT INTO big SELECT n, n FROM generate_series(1, 5000) n"]).await?;
    let plan = plan("big", "big", &[ID, NAME], &[0], false);
    make_target(&client, &plan).await?;
    client.batch_execute("INSERT INTO dwh.big VALUES (77, 'old')").await?;
    let mut applying = Applying::new(&cluster, vec![plan.clone()], ALL).await?;
    let mut block = Vec::new();
    messages.iter().for_each(|message| frame::write_message(&mut block, message));
    applying.builder.push(&Bytes::from(block), 0)?;
    let batch = applying.builder.take();
    let error = applying.sink.apply(&batch).await.err().context("it was taken")?;
    ensure!(matches!(&error, ApplyError::Table { code: Some(code), .. } if code == "23505"), "{error:?}");
    let mut again = sink(&cluster, &applying.plans).await?;
    again.merge_inserts(0);
    again.apply(&batch).await?;
    ensure!(target_rows(&client, &plan).await? == rows(&client, "TABLE big").await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_too_long_for_its_column_is_not_cut() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("CREATE SCHEMA dwh; CREATE TABLE t (id bigint PRIMARY KEY, name text)").await?;
    let messages = recorded(&client, "t", &["INSERT INTO t VALUES (1, 'longer')"]).await?;
    let mut plan = plan("t", "t", &[ID, NAME], &[0], false);
    plan.outputs[1].from = OutputFrom::Input { input: 1, cast: true };
    for (target_type, fits) in [("character varying(5)", false), ("character varying(6)", true), ("name", true)] {
        plan.outputs[1].target_type = target_type.to_owned();
        make_target(&client, &plan).await?;
        let mut applying = Applying::new(&cluster, vec![plan.clone()], ALL).await?;
        ensure!(applying.run(&messages, async |_| Ok(())).await.is_ok() == fits, "{target_type}");
        ensure!(target_rows(&client, &plan).await? == if fits { vec!["(1,longer)".to_owned()] } else { Vec::new() });
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_nothing_but_key_masked_or_told_by_the_daemon() -> Result<()> {
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("CREATE SCHEMA dwh; CREATE TABLE t (id bigint, name text, PRIMARY KEY (id, name))").await?;
    let sql = [
        "INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        "UPDATE t SET name = 'c' WHERE id = 1",
        "DELETE FROM t WHERE id = 2",
        "DELETE FROM t; INSERT INTO t VALUES (1, 'c')",
    ];
    let messages = recorded(&client, "t", &sql).await?;
    for commits in [1, 4] {
        let keys = plan("t", "keys", &[ID, NAME], &[0, 1], false);
        let mut told = plan("t", "told", &[ID, NAME], &[0], false);
        told.inputs[1].mask = Some(Mask::Sha256);
        for (meta, name, stage_type, oid) in [
            (Meta::Op, "op", "text", 25),
            (Meta::Xid, "xid", "bigint", 20),
            (Meta::CommitLsn, "lsn", "pg_lsn", 3220),
            (Meta::CommitTs, "ts", "timestamp with time zone", 1184),
        ] {
            let mut meta_input = input(&(name, stage_type, oid, false, false));
            meta_input.from = InputFrom::Meta(meta);
            let (column, target_type) = (name.to_owned(), stage_type.to_owned());
            told.outputs.push(Output {
                column,
                target_type,
                from: OutputFrom::Input { input: told.inputs.len(), cast: false },
            });
            told.inputs.push(meta_input);
        }
        make_target(&client, &keys).await?;
        make_target(&client, &told).await?;
        let limits = BatchLimits { commits, ..ALL };
        let mut applying = Applying::new(&cluster, vec![keys.clone(), told], limits).await?;
        applying.run(&messages, async |_| Ok(())).await?;
        ensure!(target_rows(&client, &keys).await? == ["(1,c)"]);
        let query = "SELECT id, length(name), name ~ '^[0-9a-f]+$', op, xid > 0, lsn < pg_current_wal_lsn(),
            now() - ts < interval '1 hour' FROM dwh.told";
        ensure!(rows(&client, query).await? == ["(1,64,t,insert,t,t,t)"]);
    }
    Ok(())
}
