//! What a mapping into ClickHouse can say of a column, through the daemon; and rows that the target never takes.

use anyhow::{Result, ensure};

use crate::support::lake::Lake;
use crate::support::pair::{DATABASE, SOON};

const TABLES: &str = "
    CREATE TABLE visit (id bigint PRIMARY KEY, payload jsonb, body json, email text, card int, price numeric(10,2), at timestamptz);
    ALTER TABLE visit REPLICA IDENTITY FULL;
    INSERT INTO visit VALUES
        (1, '{\"user\": {\"id\": 7, \"name\": \"it''s \\\"x\\\"\", \"a.b\": true}, \"n\": null, \"list\": [1, {\"k\": 2.50}], \"huge\": 1e400, \"fine\": 0.12345678901234567890123}', '{\"a\":  1}', 'a@b.c', 42, 1.50, '2024-02-29 12:00+00'),
        (2, NULL, NULL, NULL, NULL, NULL, NULL)";

const MAPPING: &str = r#"
[table."mirror.visit"]
from = "public.visit"
delete = "soft"
mask = { email = "sha256", card = "sha256" }

[table."mirror.visit".columns]
id = "id"
email = "email"
card = "card"
user_id = { json = "payload.user.id", type = "Nullable(Int64)" }
user_name = { json = "payload.user.name" }
dotted = { json = 'payload.user."a.b"' }
nothing = { json = "payload.n" }
missing = { json = "payload.user.x.y" }
deep = { json = "payload.list" }
fine = { json = "payload.fine" }
second = { json = "payload.list.1.k", type = "Nullable(Decimal(10, 3))" }
spaced = { json = "body.a" }
origin = { value = "it's \\ here" }
level = { value = 3 }
ratio = { value = 0.25 }
fresh = { value = true }
since = { value = 2024-02-29 }
doubled = { sql = "price * 2", type = "Nullable(Decimal(12, 2))" }
source = { meta = "source" }
op = { meta = "op" }
lsn = { meta = "commit_lsn" }
changed_at = { meta = "commit_ts" }
xid = { meta = "xid" }
synced_at = { meta = "synced_at" }
"#;

const SHOWN: &str = "user_id, user_name, dotted, nothing, missing, deep, fine, second, spaced, origin, level, ratio, fresh, since, doubled, source, op";

#[tokio::test(flavor = "multi_thread")]
async fn every_origin_of_a_column_works_in_copy_and_stream() -> Result<()> {
    let mut lake = Lake::start("ch-origins", TABLES, MAPPING).await?;
    let row = |id: u32| lake.server.query(&format!("SELECT {SHOWN} FROM mirror.visit_current WHERE id = {id}"));
    let constants = "it\\'s \\\\ here\t3\t0.25\ttrue\t2024-02-29";
    let whole = |op: &str| {
        format!(
            "7\tit\\'s \"x\"\ttrue\t\\N\t\\N\t[1, {{\"k\": 2.50}}]\t0.12345678901234567890123\t2.5\t1\t{constants}\t3\tsrc\t{op}"
        )
    };
    let empty = |op: &str| format!("\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t\\N\t{constants}\t\\N\tsrc\t{op}");
    ensure!(row(1)? == whole("snapshot"), "{} is not {}", row(1)?, whole("snapshot"));
    ensure!(row(2)? == empty("snapshot"), "{} is not {}", row(2)?, empty("snapshot"));

    lake.commit(&[
        "INSERT INTO visit SELECT 3, payload, body, email, card, price, at FROM visit WHERE id = 1",
        "UPDATE visit SET email = 'x' WHERE id = 2",
        "INSERT INTO visit (id) VALUES (4), (5)",
        "DELETE FROM visit WHERE id = 5; UPDATE visit SET id = 6 WHERE id = 4",
    ])
    .await?;
    lake.catch_up().await?;
    let row = |id: u32| lake.server.query(&format!("SELECT {SHOWN} FROM mirror.visit_current WHERE id = {id}"));
    ensure!(row(3)? == whole("insert"), "{} is not {}", row(3)?, whole("insert"));
    ensure!(row(2)? == empty("update"), "{} is not {}", row(2)?, empty("update"));
    ensure!(row(6)? == empty("update") && row(4)?.is_empty(), "a row that moved: {} and {}", row(6)?, row(4)?);

    // A hash is one of the text, the same in copy and stream, and never the value.
    let hashed = lake.server.query(
        "SELECT uniqExact(email), uniqExact(card), min(length(card)), countIf(card = '42') FROM mirror.visit_current WHERE id IN (1, 3)",
    )?;
    ensure!(hashed == "1\t1\t64\t0", "{hashed}");
    let known = "SELECT email = lower(hex(HMAC('SHA256', 'a@b.c', 'salt'))) AND card = lower(hex(HMAC('SHA256', '42', 'salt'))) \
                 FROM mirror.visit_current WHERE id = 1";
    match lake.server.query(known) {
        Ok(same) => ensure!(same == "1", "the hash is not that of the text"),
        Err(error) => ensure!(error.to_string().contains("UNKNOWN_FUNCTION"), "{error}"),
    }
    // What the daemon knows of each change.
    let source = lake.source.connect(DATABASE).await?;
    let committed = source.query_one("SELECT xmin::text::bigint FROM visit WHERE id = 3", &[]).await?.get::<_, i64>(0);
    let meta = lake.server.query(&format!(
        "SELECT xid = {committed}, lsn > (SELECT max(lsn) FROM mirror.visit_current WHERE op = 'snapshot'), \
         abs(dateDiff('second', changed_at, now())) < 600, synced_at >= changed_at - INTERVAL 1 MINUTE, \
         (SELECT count() FROM mirror.visit_current WHERE op = 'snapshot' AND xid IS NULL) FROM mirror.visit_current WHERE id = 3"
    ))?;
    ensure!(meta == "1\t1\t1\t1\t1", "{meta}");
    let soft = lake.server.query("SELECT id, _tailwater_deleted FROM mirror.visit_current WHERE id > 4 ORDER BY id")?;
    ensure!(soft == "5\ttrue\n6\tfalse", "{soft}");
    Ok(())
}

const POISONED: &str = "
    CREATE TABLE t (id int PRIMARY KEY, n int, at date);
    CREATE TABLE other (id int PRIMARY KEY, n int);
    INSERT INTO t SELECT i, i FROM generate_series(1, 50) i; INSERT INTO other SELECT i, i FROM generate_series(1, 50) i";

/// A row that the server refuses, and one that cannot be written at all: as in Postgres, what precedes it is there, the table
/// is out with its reason, and every other table goes on.
#[tokio::test(flavor = "multi_thread")]
async fn row_that_can_never_be_written_quarantines_its_table_alone() -> Result<()> {
    let mut lake = Lake::start("ch-poison", POISONED, &Lake::all_of(&["t", "other"])).await?;
    for (number, (make, poison, words)) in [
        (
            "ALTER TABLE mirror.t ADD CONSTRAINT small CHECK n < 1000",
            "UPDATE t SET n = 424242 WHERE id = 2",
            &["VIOLATED_CONSTRAINT"][..],
        ),
        (
            "ALTER TABLE mirror.t DROP CONSTRAINT small",
            "UPDATE t SET at = 'infinity' WHERE id = 2",
            &["column \"at\"", "on_overflow"],
        ),
    ]
    .iter()
    .enumerate()
    {
        lake.server.query(make)?;
        let before = 100 + number;
        lake.commit(&[
            &format!("INSERT INTO t VALUES ({before}, 0); UPDATE other SET n = n + 1"),
            &format!("INSERT INTO t VALUES (20{number}, 0); {poison}; UPDATE other SET n = n + 1 WHERE id = 1"),
            "INSERT INTO t VALUES (300, 0); DELETE FROM t WHERE id = 300; UPDATE other SET n = n + 1 WHERE id < 9",
        ])
        .await?;
        let reason = lake.quarantined("mirror.t").await?;
        for word in words.iter().chain(&["in the transaction committed at"]) {
            ensure!(reason.contains(word), "the reason does not say \"{word}\": {reason}");
        }
        ensure!(!reason.contains("424242"), "the reason has the value: {reason}");
        lake.assert_equal("other", &["id", "n"], "its neighbour's row").await?;
        let held = lake.server.query(&format!("SELECT count() FROM mirror.t_current WHERE id = {before}"))?;
        ensure!(held == "1", "what preceded the row is not there");
        ensure!(lake.daemon.status()?.to_string().contains("quarantined"), "the status does not say so");
        ensure!(lake.daemon.ended()?.is_none(), "the daemon ended");

        // Brought back: the cause is mended, the target emptied, the state forgotten.
        lake.daemon.terminate()?;
        lake.commit(&["UPDATE t SET n = 0, at = NULL"]).await?;
        lake.server.query("TRUNCATE TABLE mirror.t")?;
        lake.server.query("DELETE FROM tailwater.table_state WHERE target = 'mirror.t'")?;
        lake.daemon = lake.home.run()?;
        let state = "SELECT state FROM tailwater.table_state FINAL WHERE target = 'mirror.t'";
        lake.wait_sink("it was copied", state, "streaming").await?;
        lake.commit(&["UPDATE t SET n = n + 1"]).await?;
        lake.assert_equal("t", &["id", "n", "at"], "the new copy").await?;
    }
    // In the copy as well.
    lake.daemon.terminate()?;
    lake.commit(&["CREATE TABLE late (id int PRIMARY KEY, at date); INSERT INTO late VALUES (1, 'infinity')"]).await?;
    lake.remap(&Lake::all_of(&["t", "other", "late"]))?;
    lake.home.setup()?;
    lake.daemon = lake.home.run()?;
    let reason = lake.quarantined("mirror.late").await?;
    ensure!(reason.contains("column \"at\""), "{reason}");
    lake.commit(&["UPDATE other SET n = n + 1"]).await?;
    lake.assert_equal("other", &["id", "n"], "a copy that failed").await
}

#[tokio::test(flavor = "multi_thread")]
async fn daemon_told_to_stop_at_such_a_row_stops_and_goes_on_once_it_is_mended() -> Result<()> {
    let mapping = Lake::all_of(&["t", "other"]);
    let mut lake = Lake::start_with("ch-poison-stop", POISONED, &mapping, "on_error = \"stop\"\n").await?;
    lake.server.query("ALTER TABLE mirror.t ADD CONSTRAINT small CHECK n < 1000")?;
    lake.commit(&["UPDATE other SET n = 0", "UPDATE t SET n = 424242 WHERE id = 2", "UPDATE other SET n = 1"]).await?;
    let status = lake.daemon.wait_ended(SOON)?;
    ensure!(status.code() == Some(1), "the daemon ended with {status}");
    let log = lake.daemon.log();
    ensure!(log.contains("mirror.t") && log.contains("VIOLATED_CONSTRAINT"), "{log}");
    ensure!(!log.contains("424242"), "the log has the value");
    let state = lake.server.query("SELECT DISTINCT state FROM tailwater.table_state FINAL")?;
    ensure!(state == "streaming", "{state}");
    lake.server.query("ALTER TABLE mirror.t DROP CONSTRAINT small")?;
    lake.daemon = lake.home.run()?;
    lake.assert_equal("t", &["id", "n"], "the mended target").await?;
    lake.assert_equal("other", &["id", "n"], "the mended target").await
}

/// Rows that do not match `where` may change as they like; one that comes to match must bring its large value along.
#[tokio::test(flavor = "multi_thread")]
async fn filtered_rows_with_unsent_values_are_left_alone_until_they_match() -> Result<()> {
    let tables = "CREATE TABLE note (id int PRIMARY KEY, body text, n int NOT NULL, seen int NOT NULL DEFAULT 0);
        ALTER TABLE note ALTER body SET STORAGE EXTERNAL;
        INSERT INTO note SELECT i, repeat('x', 5000), i FROM generate_series(1, 9) i";
    let mapping = "[table.\"mirror.note\"]\nfrom = \"public.note\"\ncolumns = \"*\"\nwhere = \"n % 3 = 0\"\n";
    let mut lake = Lake::start("ch-filtered", tables, mapping).await?;
    let shown = "SELECT groupArray((id, n, seen, length(body))) FROM (SELECT * FROM mirror.note_current ORDER BY id)";
    lake.commit(&["UPDATE note SET seen = 1", "UPDATE note SET n = 12, body = 'short' WHERE id = 1"]).await?;
    lake.commit(&["UPDATE note SET n = 4 WHERE id = 3", "UPDATE note SET seen = 2 WHERE id = 3"]).await?;
    lake.catch_up().await?;
    let held = lake.server.query(shown)?;
    ensure!(held == "[(1,12,1,5),(6,6,1,5000),(9,9,1,5000)]", "{held}");
    lake.commit(&["UPDATE note SET n = 15 WHERE id = 2"]).await?;
    let reason = lake.quarantined("mirror.note").await?;
    ensure!(reason.contains("FUNCTION_THROW_IF"), "{reason}");
    Ok(())
}
