//! Changes that no message carries whole: other types, other names, other tables, partitions.

use anyhow::{Result, ensure};

use super::{BOTH, STAR, both, noted, other_goes_on, quarantined};
use crate::support::mirror::Recipe;
use crate::support::pair::SOON;

#[tokio::test]
async fn h32_other_type_quarantines_the_table() -> Result<()> {
    for (name, alter, words) in [
        ("bigint", "ALTER COLUMN n TYPE bigint", ["\"n\"", "integer", "bigint"]),
        (
            "timestamptz",
            "ALTER COLUMN at TYPE timestamptz",
            ["\"at\"", "timestamp without time zone", "timestamp with time zone"],
        ),
        (
            "narrow",
            "ALTER COLUMN name TYPE varchar(5) USING left(name, 2)",
            ["\"name\"", "character varying(10)", "changed from"],
        ),
    ] {
        let mirror = both(&format!("type-{name}")).await?;
        mirror.commit(&["INSERT INTO t VALUES (100, 1, 'before')"]).await?;
        mirror.commit(&[&format!("ALTER TABLE t {alter}; INSERT INTO t VALUES (101, 1, 'after')")]).await?;
        quarantined(&mirror, &["\"public.t\"", words[0], words[1], words[2]]).await?;
        let held = "SELECT count(*) = 1 AND min(id) = 100 FROM mirror.t WHERE id >= 100";
        mirror.wait_sink(SOON, "it stands right before the change", held).await?;
    }
    Ok(())
}

#[tokio::test]
async fn type_that_is_only_wider_is_followed() -> Result<()> {
    let mut mirror = both("wider").await?;
    mirror
        .apply_each(&[
            "ALTER TABLE t ALTER COLUMN name TYPE varchar(20); INSERT INTO t VALUES (100, 1, 'short')",
            "ALTER TABLE t ALTER COLUMN name TYPE text; INSERT INTO t VALUES (101, 1, 'short too')",
        ])
        .await?;
    // What the target has no room for is refused there, and said.
    mirror.commit(&["INSERT INTO t VALUES (102, 1, 'longer than ten letters')"]).await?;
    let state = "SELECT state = 'quarantined' AND coalesce(reason, '') LIKE '%22001%' FROM tailwater.table_state WHERE target = 'mirror.t'";
    mirror.wait_sink(SOON, "the row is refused", state).await?;
    other_goes_on(&mirror).await
}

#[tokio::test]
async fn h32_rewrite_that_no_message_shows_quarantines_the_table() -> Result<()> {
    let mirror = both("rewrite").await?;
    // Neither is one: nothing changes, and TRUNCATE is sent.
    mirror.source.execute("postgres", "VACUUM FULL t").await?;
    mirror
        .commit(&[
            "TRUNCATE t; INSERT INTO t VALUES (1, 1, 'new')",
            "ALTER TABLE other ALTER COLUMN n SET STATISTICS 50",
        ])
        .await?;
    mirror.wait_sink(SOON, "it goes on", "SELECT count(*) = 1 FROM mirror.t").await?;
    mirror.commit(&["ALTER TABLE t ALTER COLUMN n TYPE int USING n * 2"]).await?;
    quarantined(&mirror, &["\"public.t\"", "\"n\"", "anew"]).await
}

#[tokio::test]
async fn renamed_column_quarantines_the_table() -> Result<()> {
    let mirror = both("renamed").await?;
    mirror.commit(&["ALTER TABLE t RENAME COLUMN n TO m; UPDATE t SET m = 0 WHERE id = 1"]).await?;
    quarantined(&mirror, &["\"n\" was renamed to \"m\"", "rename = { m = \"n\" }"]).await
}

#[tokio::test]
async fn h33_renamed_table_quarantines_it() -> Result<()> {
    // With changes, and without.
    for (name, after) in [("busy", "UPDATE t2 SET n = 0 WHERE id = 1"), ("quiet", "SELECT")] {
        let mirror = both(&format!("rename-{name}")).await?;
        mirror.commit(&["INSERT INTO t VALUES (100, 1, 'before')"]).await?;
        mirror.commit(&[&format!("ALTER TABLE t RENAME TO t2; {after}")]).await?;
        quarantined(&mirror, &["\"public.t\"", "public.t2"]).await?;
        mirror.wait_sink(SOON, "it stands before the change", "SELECT count(*) = 51 FROM mirror.t").await?;
    }
    Ok(())
}

#[tokio::test]
async fn h33_other_table_under_the_same_name_quarantines_it() -> Result<()> {
    let mirror = both("swap").await?;
    mirror
        .commit(&["CREATE TABLE fresh (LIKE t INCLUDING ALL); INSERT INTO fresh TABLE t; UPDATE fresh SET n = 0;
                   ALTER TABLE t RENAME TO t_old; ALTER TABLE fresh RENAME TO t"])
        .await?;
    quarantined(&mirror, &["\"public.t\"", "OID"]).await?;
    let mirror = both("recreated").await?;
    mirror
        .commit(&["DROP TABLE t", "CREATE TABLE t (id int PRIMARY KEY, n int, name varchar(10), at timestamp)"])
        .await?;
    quarantined(&mirror, &["\"public.t\""]).await
}

#[tokio::test]
async fn h31_table_that_left_the_publication_is_quarantined() -> Result<()> {
    let mirror = both("unpublished").await?;
    mirror.commit(&["ALTER PUBLICATION tailwater_src DROP TABLE t; UPDATE t SET n = 0"]).await?;
    quarantined(&mirror, &["\"public.t\"", "left the publication"]).await
}

#[tokio::test]
async fn h34_key_outside_the_replica_identity_quarantines_the_table() -> Result<()> {
    let mirror = both("identity").await?;
    mirror
        .commit(&["ALTER TABLE t ALTER COLUMN n SET NOT NULL; CREATE UNIQUE INDEX t_n ON t (n);
                   ALTER TABLE t REPLICA IDENTITY USING INDEX t_n; UPDATE t SET id = 900 WHERE id = 9"])
        .await?;
    quarantined(&mirror, &["\"public.t\"", "\"id\"", "replica identity"]).await
}

const PARTITIONED: &str = "
    CREATE TABLE t (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (100);
    CREATE TABLE t_2 PARTITION OF t FOR VALUES FROM (100) TO (200);
    CREATE TABLE other (id int PRIMARY KEY, n int);
    INSERT INTO t SELECT i, i FROM generate_series(1, 150) i; INSERT INTO other SELECT i, i FROM generate_series(1, 50) i";

#[tokio::test]
async fn h39_partitions_are_followed_unless_they_bring_rows() -> Result<()> {
    let mut mirror = noted("partitions", Recipe { source: PARTITIONED, tables: BOTH, ..Recipe::default() }).await?;
    mirror
        .apply_each(&[
            "CREATE TABLE t_3 PARTITION OF t FOR VALUES FROM (200) TO (300); INSERT INTO t VALUES (200, 1), (201, 2)",
            "ALTER TABLE t ADD COLUMN c int DEFAULT 4; UPDATE t SET n = 0 WHERE id < 5; INSERT INTO t VALUES (202, 2, 2)",
            "CREATE TABLE t_4 (LIKE t); ALTER TABLE t_4 ADD PRIMARY KEY (id);
             ALTER TABLE t ATTACH PARTITION t_4 FOR VALUES FROM (300) TO (400); INSERT INTO t VALUES (300, 1)",
        ])
        .await?;
    // What leaves without a word is said, and the table goes on.
    mirror.commit(&["TRUNCATE t_2", "INSERT INTO t VALUES (301, 1)"]).await?;
    let told = |words: &str| {
        format!(
            "SELECT state = 'streaming' AND coalesce(reason, '') LIKE '%{words}%' FROM tailwater.table_state WHERE target = 'mirror.t'"
        )
    };
    mirror.wait_sink(SOON, "the truncated partition is told", &told("t_2%truncated")).await?;
    mirror.commit(&["ALTER TABLE t DETACH PARTITION t_3", "INSERT INTO t VALUES (302, 1)"]).await?;
    mirror.wait_sink(SOON, "the detached partition is told", &told("t_3%detached")).await?;
    mirror.wait_sink(SOON, "the table goes on", "SELECT count(*) = 1 FROM mirror.t WHERE id = 302").await?;
    // Rows that came with a partition were never sent.
    mirror
        .commit(&[
            "CREATE TABLE t_5 (LIKE t); INSERT INTO t_5 VALUES (400, 1, 1)",
            "ALTER TABLE t ATTACH PARTITION t_5 FOR VALUES FROM (400) TO (500)",
        ])
        .await?;
    quarantined(&mirror, &["t_5", "attached"]).await?;
    ensure!(mirror.daemon.ended()?.is_none(), "the daemon ended");
    Ok(())
}

#[tokio::test]
async fn table_without_a_key_is_followed_too() -> Result<()> {
    let sql = "CREATE TABLE t (id int, n int); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i % 5, 1 FROM generate_series(1, 20) i;
               CREATE TABLE other (id int PRIMARY KEY, n int); INSERT INTO other VALUES (1, 1)";
    let tables = [("t", "t", STAR), ("other", "other", STAR)];
    let mut mirror = noted("keyless-drift", Recipe { source: sql, tables: &tables, ..Recipe::default() }).await?;
    mirror
        .apply_each(&[
            "DELETE FROM t WHERE ctid = '(0,1)'; INSERT INTO t VALUES (9, 9); ALTER TABLE t ADD COLUMN c text DEFAULT 'c';
             UPDATE t SET n = 2 WHERE id = 1; DELETE FROM t WHERE ctid = '(0,3)'",
            "UPDATE t SET c = NULL WHERE id = 2; INSERT INTO t VALUES (9, 9)",
        ])
        .await
}
