//! Which row is meant and what it holds: replica identities, key changes, values that are not sent, truncates, partitions,
//! names and types. Every table is compared cell by cell, after the copy and after what streams.

mod corpus;
mod features;

use anyhow::{Result, ensure};

use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::DATABASE;

/// One table for each replica identity; `body` of the even rows is stored out of line.
const IDENTITIES: &str = "
    CREATE TABLE by_key (id int PRIMARY KEY, code int NOT NULL, body text, note text);
    ALTER TABLE by_key ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE by_index (LIKE by_key INCLUDING ALL);
    CREATE UNIQUE INDEX by_index_code ON by_index (code);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
    CREATE TABLE by_row (LIKE by_key INCLUDING ALL);
    ALTER TABLE by_row REPLICA IDENTITY FULL;
    CREATE TABLE keyless (id int NOT NULL, code int NOT NULL, body text, note text);
    ALTER TABLE keyless ALTER body SET STORAGE EXTERNAL;
    ALTER TABLE keyless REPLICA IDENTITY FULL;
    INSERT INTO by_key SELECT i, i, repeat(md5(i::text), CASE WHEN i % 2 = 0 THEN 200 ELSE 1 END), 'first'
    FROM generate_series(1, 60) i;
    INSERT INTO by_index TABLE by_key; INSERT INTO by_row TABLE by_key; INSERT INTO keyless TABLE by_key";

/// `KEY` is the mapped key's column.
const KEY_CHANGES: &[&str] = &[
    // Swapped by way of a third key; large values stay behind.
    "UPDATE T SET KEY = 1000 WHERE KEY = 1; UPDATE T SET KEY = 1 WHERE KEY = 2; UPDATE T SET KEY = 2 WHERE KEY = 1000",
    "UPDATE T SET KEY = 1000 WHERE KEY = 4; UPDATE T SET KEY = 4 WHERE KEY = 6; UPDATE T SET KEY = 6 WHERE KEY = 8;
     UPDATE T SET KEY = 8 WHERE KEY = 1000",
    // Moved with and without another change, out of line values unchanged.
    "UPDATE T SET KEY = 100 WHERE KEY = 10; UPDATE T SET KEY = 101, note = 'moved' WHERE KEY = 12",
    "UPDATE T SET KEY = 102, body = repeat('new', 3000) WHERE KEY = 14",
    "UPDATE T SET KEY = 103, body = NULL WHERE KEY = 16",
    // Changed, moved, changed again, with the large value set before and left alone after.
    "UPDATE T SET body = repeat('one', 3000) WHERE KEY = 18; UPDATE T SET KEY = 104 WHERE KEY = 18;
     UPDATE T SET note = 'two' WHERE KEY = 104; UPDATE T SET KEY = 105 WHERE KEY = 104",
    // There and back.
    "UPDATE T SET KEY = 106 WHERE KEY = 20; UPDATE T SET KEY = 20, note = 'back' WHERE KEY = 106",
    // Onto a key that was just freed, by a delete and by a move.
    "DELETE FROM T WHERE KEY = 22; UPDATE T SET KEY = 22 WHERE KEY = 24; UPDATE T SET KEY = 24 WHERE KEY = 26",
    // Deleted and made anew; made, moved and deleted; moved and deleted.
    "DELETE FROM T WHERE KEY = 28; INSERT INTO T VALUES (28, 28, repeat('again', 2000), NULL);
     UPDATE T SET note = 'again' WHERE KEY = 28",
    "INSERT INTO T VALUES (200, 200, repeat('x', 9000), ''); UPDATE T SET KEY = 201 WHERE KEY = 200;
     DELETE FROM T WHERE KEY = 201",
    "UPDATE T SET KEY = 202 WHERE KEY = 30; DELETE FROM T WHERE KEY = 202",
    "INSERT INTO T VALUES (203, 203, repeat('y', 9000), ''); UPDATE T SET KEY = 204 WHERE KEY = 203;
     UPDATE T SET note = 'last' WHERE KEY = 204",
    // What a savepoint takes back does not count.
    "UPDATE T SET KEY = 300 WHERE KEY = 32; SAVEPOINT s; UPDATE T SET KEY = 301 WHERE KEY = 34; ROLLBACK TO s;
     UPDATE T SET note = 'kept' WHERE KEY = 34",
    // Many at once, over each other's old keys.
    "UPDATE T SET KEY = KEY + 10000 WHERE KEY BETWEEN 40 AND 60; UPDATE T SET KEY = KEY - 9999 WHERE KEY > 10000",
    "UPDATE T SET note = 'all'",
];

#[tokio::test]
async fn h36_h37_keys_change_and_swap_under_every_replica_identity() -> Result<()> {
    let tables = [
        ("by_key", "by_key", "columns = \"*\""),
        ("by_index", "by_index", "key = [\"code\"]\ncolumns = \"*\""),
        ("by_row", "by_row", "columns = \"*\""),
        ("keyless", "keyless", "key = [\"id\"]\ncolumns = \"*\""),
    ];
    let recipe = Recipe { source: IDENTITIES, tables: &tables, ..Recipe::default() };
    let keys = [("by_key", "id"), ("by_index", "code"), ("by_row", "id"), ("keyless", "id")];
    let mut changes: Vec<String> = Vec::new();
    for change in KEY_CHANGES {
        let of_table = |(table, key): &(&str, &str)| {
            // The other column of the two is a key of the source all the same.
            let text = change.replace(" T ", &format!(" {table} ")).replace("KEY", key);
            if *key == "code" {
                text.replace("VALUES (28,", "VALUES (29028,").replace("VALUES (20", "VALUES (2900")
            } else {
                text
            }
        };
        changes.push(keys.iter().map(of_table).collect::<Vec<_>>().join("; "));
    }
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    // One by one, so that each is a batch of its own; and then the whole list, as much of it in one batch as there is.
    let mut mirror = Mirror::make("identity", recipe).await?;
    mirror.apply_each(&changes).await?;
    let mut mirror = Mirror::make("identity", recipe).await?;
    mirror.apply(&changes).await?;
    let mut mirror = Mirror::make("identity", recipe).await?;
    mirror.apply(&[&changes.join("; ")]).await
}

#[tokio::test]
async fn h36_key_that_is_stored_out_of_line_is_found_again() -> Result<()> {
    let sql = "
        CREATE TABLE toasted (id text PRIMARY KEY, note text);
        ALTER TABLE toasted ALTER id SET STORAGE EXTERNAL;
        CREATE TABLE toasted_full (LIKE toasted INCLUDING ALL);
        ALTER TABLE toasted_full REPLICA IDENTITY FULL;
        INSERT INTO toasted SELECT i || repeat(md5(i::text), 75), 'first' FROM generate_series(1, 9) i;
        INSERT INTO toasted_full TABLE toasted";
    let mut mirror = Mirror::of("toasted-key", sql, &["toasted", "toasted_full"]).await?;
    let both =
        |change: &str| format!("{}; {}", change.replace(" T ", " toasted "), change.replace(" T ", " toasted_full "));
    let changes = [
        both("UPDATE T SET note = 'second' WHERE id LIKE '1%'"),
        both("UPDATE T SET id = id || 'x' WHERE id LIKE '2%'"),
        both(
            "UPDATE T SET id = '30' || id, note = NULL WHERE id LIKE '3%'; UPDATE T SET note = 'moved' WHERE id LIKE '303%'",
        ),
        both("UPDATE T SET id = 'short' WHERE id LIKE '4%'; UPDATE T SET id = repeat(md5('4'), 80) WHERE id = 'short'"),
        both("DELETE FROM T WHERE id LIKE '5%'"),
        both("INSERT INTO T VALUES (repeat('new', 800), 'a'); UPDATE T SET note = 'b' WHERE id LIKE 'new%'"),
    ];
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    mirror.apply_each(&changes).await
}

#[tokio::test]
async fn h40_truncate_reaches_every_mirrored_table_that_it_cascades_to() -> Result<()> {
    let sql = "
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
        CREATE TABLE unmapped (id int PRIMARY KEY, parent int REFERENCES parent);
        CREATE TABLE alone (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY);
        INSERT INTO parent SELECT generate_series(1, 50); INSERT INTO child SELECT id, id FROM parent;
        INSERT INTO alone TABLE parent; INSERT INTO other TABLE parent";
    let mut mirror = Mirror::of("truncate", sql, &["parent", "child", "alone", "other"]).await?;
    mirror.sink.execute(DATABASE, "ALTER TABLE mirror.child ADD FOREIGN KEY (parent) REFERENCES mirror.parent").await?;
    let sql = "CREATE TABLE public.bystander (id int REFERENCES mirror.alone); INSERT INTO bystander VALUES (NULL)";
    mirror.sink.execute(DATABASE, sql).await?;
    mirror
        .apply_each(&[
            "TRUNCATE parent CASCADE; INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1, 2)",
            "INSERT INTO alone VALUES (100); TRUNCATE alone, other; INSERT INTO other VALUES (7)",
            "UPDATE child SET parent = 1; TRUNCATE child; INSERT INTO child VALUES (1, 1); TRUNCATE parent CASCADE",
            "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1)",
            "SAVEPOINT s; TRUNCATE parent CASCADE; ROLLBACK TO s; UPDATE child SET id = 9",
        ])
        .await?;
    let sink = mirror.sink.connect(DATABASE).await?;
    let left: i64 = sink.query_one("SELECT count(*) FROM bystander", &[]).await?.get(0);
    ensure!(left == 1, "a table that is no mirror was truncated");
    Ok(())
}

#[tokio::test]
async fn h39_partitioned_table_is_mirrored_through_its_root() -> Result<()> {
    let sql = "
        CREATE TABLE year (id int, year int, note text, PRIMARY KEY (id, year)) PARTITION BY RANGE (year);
        CREATE TABLE year_old PARTITION OF year FOR VALUES FROM (0) TO (2000) PARTITION BY LIST (id);
        CREATE TABLE year_old_one PARTITION OF year_old FOR VALUES IN (1);
        CREATE TABLE year_old_rest PARTITION OF year_old DEFAULT;
        CREATE TABLE year_new (note text, year int NOT NULL, id int NOT NULL);
        ALTER TABLE year ATTACH PARTITION year_new FOR VALUES FROM (2000) TO (3000);
        INSERT INTO year SELECT i, 1950 + i, 'first' FROM generate_series(1, 99) i";
    let mut mirror = Mirror::of("partitions", sql, &["year"]).await?;
    mirror
        .apply_each(&[
            "INSERT INTO year VALUES (1, 1, 'a'), (2, 2, 'b'), (3, 2500, 'c'); INSERT INTO year_new VALUES ('d', 2600, 4)",
            // Moved from leaf to leaf, which is a delete and an insert.
            "UPDATE year SET year = 2700 WHERE id = 1 AND year = 1; UPDATE year SET year = 5 WHERE id = 3 AND year = 2500",
            "UPDATE year SET note = 'second'; DELETE FROM year_old_rest WHERE id < 10",
            "UPDATE year SET id = 1 WHERE id = 20",
            "TRUNCATE year; INSERT INTO year VALUES (1, 1, 'alone')",
            "CREATE TABLE year_far PARTITION OF year FOR VALUES FROM (3000) TO (4000); INSERT INTO year VALUES (1, 3500, 'far')",
        ])
        .await
}

#[tokio::test]
async fn names_are_names_whatever_they_hold() -> Result<()> {
    let hostile = "we\"ird'; drop table x; --";
    let long = "n".repeat(63);
    let table = format!(
        "CREATE TABLE \"we\"\"ird'; drop table x; --\" (\"Id\" int PRIMARY KEY, \"with space\" text, \"{long}\" int, \
         \"select\" text, \"qu\"\"o'te\" text, \"back\\slash\" text, \"$1\" text, \"é\" text, \"a.b\" text);
         CREATE TABLE \"Upper\" (id int PRIMARY KEY, \"ID\" int);
         CREATE TABLE \"{long}\" (id int PRIMARY KEY, t text);
         CREATE TABLE x (id int PRIMARY KEY);
         INSERT INTO \"we\"\"ird'; drop table x; --\" SELECT i, 'a', i, 'b', 'c', 'd', 'e', 'f', 'g' FROM generate_series(1, 9) i;
         INSERT INTO \"Upper\" VALUES (1, 2); INSERT INTO \"{long}\" VALUES (1, 'one'); INSERT INTO x VALUES (1)"
    );
    let mut mirror = Mirror::of("names", &table, &[hostile, "Upper", &long, "x"]).await?;
    let weird = "\"we\"\"ird'; drop table x; --\"";
    mirror
        .apply(&[
            &format!("UPDATE {weird} SET \"with space\" = 'new', \"qu\"\"o'te\" = E'\\'\"\\\\' WHERE \"Id\" < 5"),
            &format!("UPDATE {weird} SET \"Id\" = 100 WHERE \"Id\" = 5; DELETE FROM {weird} WHERE \"Id\" = 6"),
            &format!("INSERT INTO {weird} SELECT i FROM generate_series(1000, 4000) i; UPDATE \"{long}\" SET t = NULL"),
            "UPDATE \"Upper\" SET \"ID\" = 3; INSERT INTO x VALUES (2)",
            &format!("UPDATE {weird} SET \"a.b\" = 'z'; TRUNCATE \"Upper\""),
        ])
        .await
}

#[tokio::test]
async fn table_of_300_columns_is_mirrored() -> Result<()> {
    let of = |what: &dyn Fn(usize) -> String| (1..300).map(what).collect::<Vec<_>>().join(", ");
    let columns = of(&|n| format!("c{n} {}", ["int", "text", "numeric", "timestamptz"][n % 4]));
    let values = of(&|n| {
        ["NULL".to_owned(), format!("'{n}' || i"), format!("{n}.5 + i"), "'2024-02-29'".to_owned()][n % 4].clone()
    });
    let sql = format!(
        "CREATE TABLE wide (id int PRIMARY KEY, {columns});
                       INSERT INTO wide SELECT i, {values} FROM generate_series(1, 50) i"
    );
    let mut mirror = Mirror::of("wide", &sql, &["wide"]).await?;
    let set = of(&|n| format!("c{n} = NULL"));
    mirror
        .apply_each(&[
            "UPDATE wide SET c299 = now(), c1 = 'new'",
            &format!("UPDATE wide SET {set} WHERE id < 10; UPDATE wide SET id = id + 100 WHERE id > 40"),
            &format!("INSERT INTO wide SELECT i, {values} FROM generate_series(1000, 4000) i"),
        ])
        .await
}
