//! Types of which only the text form is understood: the source streams text for them, and every sink of it goes on.

use anyhow::{Result, ensure};

use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::flushed;
use crate::support::lake::Lake;
use crate::support::mirror::{Mirror, Recipe};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::wait::{Look, eventually};

const OWN_TYPES: &str = "
    CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION citext;
    CREATE TYPE mood AS ENUM ('good', 'so-so, \"really\"');
    CREATE TYPE pair AS (a int, b text);
    CREATE TYPE nested AS (p pair, m mood, x numeric[]);
    CREATE TYPE span AS RANGE (subtype = float8);
    CREATE DOMAIN price AS numeric(10, 2); CREATE DOMAIN near AS point;";

/// A type, its values, and whether it may be null: of those that are not, ClickHouse has another type.
const TYPES: &[(&str, &[&str])] = &[
    ("money", &["'-92233720368547758.08'", "'0.01'"]),
    ("point", &["'(1.5,-2)'", "'(NaN,Infinity)'", "'(0.1,1e-30)'"]),
    ("line", &["'{1,2.5,-3}'"]),
    ("lseg", &["'[(1,2),(3,4)]'"]),
    ("box", &["'(1,2),(3,4)'"]),
    ("path", &["'[(0,0),(1,1)]'", "'((0,0),(1,1))'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("circle", &["'<(1,2),3.5>'"]),
    ("tsvector", &["'a:1A b:2,3'", "''", "$$'it''s':4$$"]),
    ("tsquery", &["'a & !b'", "'a <-> (b | c)'"]),
    ("pg_snapshot", &["'10:20:10,14,15'"]),
    ("int2vector", &["'1 2 3'"]),
    ("box[]", &["ARRAY['(1,2),(3,4)'::box, NULL]"]),
    ("mood[]", &["'{good,NULL,\"so-so, \\\"really\\\"\"}'", "'{}'"]),
    ("pair", &["ROW(1, E'a,\"q\"\\t\\\\\\n')", "ROW(NULL, NULL)", "ROW(2, '')"]),
    ("pair[]", &["ARRAY[ROW(1, 'a b')::pair, NULL]"]),
    ("nested", &["ROW(ROW(1, '(')::pair, 'good', '{1.50,NULL}')"]),
    ("span", &["'[1.5,)'", "'empty'"]),
    ("near", &["'(3,4)'"]),
    ("hstore", &["'a => 1, \"b c\" => NULL'"]),
    ("ltree", &["'top.science.astronomy'"]),
];

/// The same types that every stream has.
const PLAIN: &[(&str, &[&str])] = &[
    ("bigint", &["'-9223372036854775808'", "0"]),
    ("real", &["'NaN'", "'-Infinity'", "'0.1'", "'1e-45'"]),
    ("double precision", &["'5e-324'", "'123456789012345'"]),
    ("numeric", &["'NaN'", "'-1e-40'", "'10000.10'"]),
    ("boolean", &["'t'", "'f'"]),
    ("text", &["''", "E'\\\\N'", "E'a\\tb\\nc\\rd\\\\e'", "E'\\\\.'"]),
    ("bytea", &["''", "'\\x00ff5c0a'"]),
    ("uuid", &["'01234567-89ab-cdef-0123-456789abcdef'"]),
    ("time", &["'24:00'", "'23:59:59.999999'"]),
    ("interval", &["'1 mon -1 day 00:00:00.000001'"]),
    ("jsonb", &["'{\"b\": [null, true, 1e40]}'"]),
    ("inet", &["'10.0.0.1/8'", "'::1'"]),
    ("varbit", &["''", "'101'"]),
    ("tstzrange", &["'[2024-01-01,infinity)'"]),
    ("int4[]", &["'{}'", "'[-1:0][2:3]={{1,2},{3,NULL}}'"]),
    ("mood", &["'good'", "'so-so, \"really\"'"]),
    ("citext", &["'Ab'"]),
];

fn columns(types: &[(&str, &[&str])], prefix: &str) -> String {
    let column = |(place, (ty, _)): (usize, &(&str, &[&str]))| format!(", {prefix}{place} {ty}");
    types.iter().enumerate().map(column).collect()
}

/// Rows from `first` on: every value of every type, and a row of nulls.
fn rows(types: &[(&str, &[&str])], prefix: &str, first: usize) -> String {
    let mut sql = format!("INSERT INTO odd (id) VALUES ({first});");
    let mut id = first;
    for (place, (ty, values)) in types.iter().enumerate() {
        for value in *values {
            id += 1;
            sql.push_str(&format!("INSERT INTO odd (id, {prefix}{place}) VALUES ({id}, ({value})::{ty});"));
        }
    }
    sql
}

fn compared(types: &[(&str, &[&str])], prefix: &str) -> Vec<String> {
    let name = |(place, (ty, _)): (usize, &(&str, &[&str]))| {
        let name = format!("{prefix}{place}");
        match *ty {
            // Raw bytes, and a number that prints in its own way.
            "bytea" => format!("encode({name}, 'hex') => lower(hex({name}))"),
            "boolean" => format!("{name}::text => {name}"),
            "real" | "double precision" => format!(
                "CASE WHEN {name} IN ('NaN', '-Infinity') THEN lower(replace({name}::text, 'inity', '')) \
                 ELSE {name}::text END => {name}"
            ),
            _ => name,
        }
    };
    types.iter().enumerate().map(name).collect()
}

/// Copied and streamed, inserted, updated and deleted: cell by cell what Postgres prints.
#[tokio::test(flavor = "multi_thread")]
async fn types_that_are_understood_as_text_only_are_what_postgres_prints() -> Result<()> {
    let table = format!(
        "{OWN_TYPES} CREATE TABLE odd (id int PRIMARY KEY{}, at timestamptz, p price NOT NULL DEFAULT 1.5);",
        columns(TYPES, "c")
    );
    let table = table + &rows(TYPES, "c", 1);
    let mut lake = Lake::start("ch-text", &table, &Lake::all_of(&["odd"])).await?;
    let domain = "SELECT type FROM system.columns WHERE table = 'odd' AND name = 'p'";
    ensure!(lake.server.query(domain)? == "Decimal(10, 2)", "{}", lake.server.query(domain)?);
    let mut names = compared(TYPES, "c");
    names.extend(["id", "trim_scale(p) => p", "to_char(at, 'YYYY-MM-DD HH24:MI:SS.US') => at"].map(str::to_owned));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    lake.assert_equal("odd", &names, "the copy").await?;
    lake.commit(&[
        &rows(TYPES, "c", 1000),
        "UPDATE odd SET at = '2024-02-29 12:34:56.789+05:30', p = 2.25 WHERE id % 3 = 0",
        "UPDATE odd SET id = id + 5000 WHERE id % 7 = 0; DELETE FROM odd WHERE id % 11 = 0",
    ])
    .await?;
    lake.assert_equal("odd", &names, "the stream").await?;
    lake.daemon.kill9();
    lake.daemon = lake.home.run()?;
    lake.commit(&["ALTER TABLE odd ADD COLUMN later pair DEFAULT ROW(1, 'x'); UPDATE odd SET p = 3 WHERE id = 1"])
        .await?;
    lake.wait_sink(
        "the column is there",
        "SELECT count() FROM system.columns WHERE table = 'odd_current' AND name = 'later'",
        "1",
    )
    .await?;
    let mut grown = names.clone();
    grown.push("later");
    lake.assert_equal("odd", &grown, "an added column").await
}

/// A ClickHouse sink that wants text is added to a source that streamed binary values into Postgres, and taken away again.
#[tokio::test(flavor = "multi_thread")]
async fn postgres_beside_it_takes_text_and_binary_values_alike() -> Result<()> {
    let table =
        format!("{OWN_TYPES} CREATE TABLE odd (id int PRIMARY KEY, note text, k uuid UNIQUE{});", columns(PLAIN, "c"));
    let table = table
        + &rows(PLAIN, "c", 1)
        + "CREATE TABLE bag (n int, t text); ALTER TABLE bag REPLICA IDENTITY FULL; \
           CREATE TABLE moving (a int, b timestamptz, v int, PRIMARY KEY (a, b)); \
           CREATE TABLE shape (id int PRIMARY KEY, at point, secret int); INSERT INTO shape VALUES (1, '(1,2)', 42); \
           CREATE TABLE big (id int PRIMARY KEY, body text, n int); ALTER TABLE big ALTER body SET STORAGE EXTERNAL;";
    let star = "columns = \"*\"";
    let masked = "columns = \"*\"\nexclude = [\"at\"]\nmask = { secret = \"sha256\" }";
    let tables = [("odd", "odd", star), ("bag", "bag", star), ("moving", "moving", star), ("big", "big", star)];
    let source = Cluster::start("text-beside-source", Version::V15, Options::default())?;
    let sink = Cluster::new("text-beside-sink")?;
    // The mirror's types are the source's.
    sink.execute(DATABASE, OWN_TYPES).await?;
    let mut mirror =
        Mirror::between("text-beside", source, sink, Recipe { source: &table, tables: &tables, ..Recipe::default() })
            .await?;
    let changes = |first: usize| {
        vec![
            rows(PLAIN, "c", first),
            format!("UPDATE odd SET note = 'n' || id, k = md5(id::text)::uuid WHERE id % 2 = 0; UPDATE odd SET id = id + 100000 WHERE id = {first}; DELETE FROM odd WHERE id = {}", first + 3),
            "INSERT INTO bag VALUES (1, 'a'), (1, 'a'), (NULL, NULL), (2, E'b\\t'); DELETE FROM bag WHERE ctid IN (SELECT min(ctid) FROM bag WHERE n = 1)".to_owned(),
            "INSERT INTO bag SELECT 7, 'seven' FROM generate_series(1, 5); UPDATE bag SET t = 'eight' WHERE n = 7".to_owned(),
            format!("INSERT INTO moving VALUES ({first}, '2024-01-01 00:00:00.5+00', 1); UPDATE moving SET a = a + 1, v = 2 WHERE a = {first}"),
            format!("INSERT INTO big VALUES ({first}, repeat('x', 9000), 1); UPDATE big SET n = n + 1; UPDATE big SET id = id + 1 WHERE id = {first}"),
            // Enough for a COPY of new rows into the target and one of rows to replace.
            format!("INSERT INTO odd (id, note, c0) SELECT i, E'many\\t\\\\\\n', i FROM generate_series({}, {}) i", first + 1000, first + 4000),
            format!("UPDATE odd SET c0 = -c0 WHERE id > {}", first + 900),
        ]
    };
    let run = async |mirror: &mut Mirror, first: usize, after: &str| -> Result<()> {
        let all = changes(first);
        mirror.commit(&all.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        mirror.assert_equal(after).await
    };
    run(&mut mirror, 10_000, "binary values").await?;

    // What the sink has not taken when the stream changes its form is one backlog with what comes then.
    let server = ClickHouse::start("text-beside-ch")?;
    let config_path = mirror.home.path().join("tailwater.toml");
    let binary_config = std::fs::read_to_string(&config_path)?;
    let mapping_path = mirror.home.path().join("mappings/mapping.toml");
    let binary_mapping = std::fs::read_to_string(&mapping_path)?;
    let config = format!(
        "mask_salt = \"salt\"\n{binary_config}\n[sink.ch]\nkind = \"clickhouse\"\nurl = \"{}\"\nidle_record = \"200ms\"\n",
        server.url("")
    );
    std::fs::write(&config_path, &config)?;
    let shape = "[table.\"mirror.shape\"]\nfrom = \"public.shape\"\ncolumns = \"*\"\nmask = { secret = \"sha256\" }\n";
    let pg_shape = format!("\n[table.\"mirror.shape\"]\nfrom = \"public.shape\"\n{masked}\n");
    std::fs::write(&mapping_path, format!("{binary_mapping}{pg_shape}"))?;
    std::fs::write(mirror.home.path().join("mappings/lake.toml"), format!("{}{shape}", Lake::TOP))?;
    let with_lake = config.replace("mappings/mapping.toml\"", "mappings/mapping.toml\", \"mappings/lake.toml\"");
    ensure!(with_lake != config, "the configuration has no list of mappings: {config}");
    let waiting = changes(15_000);
    backlog(&mut mirror, &waiting).await?;
    std::fs::write(&config_path, &with_lake)?;
    mirror.home.setup()?;
    mirror.daemon = mirror.home.run()?;
    run(&mut mirror, 20_000, "text values").await?;
    ensure!(mirror.daemon.log().contains("passed on as text"), "the stream was not text");
    mirror.source.execute(DATABASE, "INSERT INTO shape VALUES (2, '(3,4)', 42), (3, NULL, 7)").await?;
    eventually(SOON, "the lake has the shapes", async || {
        let held = server.query(
            "SELECT groupArray(toString(at)), uniqExact(secret) FROM (SELECT * FROM mirror.shape_current ORDER BY id)",
        );
        let held = held.unwrap_or_default();
        Ok(if held == "['(1,2)','(3,4)']\t2" { Look::Yes(()) } else { Look::NotYet(held) })
    })
    .await?;
    // Equal values stay equal, copied or streamed, in either warehouse and in either form.
    let one = server.query("SELECT DISTINCT secret FROM mirror.shape_current WHERE id < 3")?;
    let same = format!("SELECT count(*) = 2 FROM mirror.shape WHERE secret = '{one}'");
    mirror.wait_sink(SOON, "both warehouses hash alike", &same).await?;

    // Back to binary values, with a backlog that was sent as text.
    let waiting = changes(25_000);
    backlog(&mut mirror, &waiting).await?;
    std::fs::write(&config_path, config.split("\n[sink.ch]").next().unwrap_or_default())?;
    mirror.daemon = mirror.home.run()?;
    run(&mut mirror, 30_000, "binary values again").await?;
    mirror.source.execute(DATABASE, "INSERT INTO shape VALUES (4, NULL, 42)").await?;
    let same = format!("SELECT count(*) = 3 FROM mirror.shape WHERE secret = '{one}'");
    mirror.wait_sink(SOON, "binary values hash as text does", &same).await?;
    mirror.daemon.terminate()
}

/// Commits while the Postgres sink takes nothing, and kills the daemon as soon as its journal has all of it.
async fn backlog(mirror: &mut Mirror, transactions: &[String]) -> Result<()> {
    let holder = mirror.sink.connect(DATABASE).await?;
    holder.batch_execute("BEGIN; LOCK TABLE mirror.odd, mirror.moving, mirror.big").await?;
    mirror.commit(&transactions.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let target = flushed(&mirror.source.connect(DATABASE).await?).await?;
    eventually(SOON, "the backlog was received", async || {
        let received = mirror.daemon.metric("tailwater_received_lsn")?;
        Ok(if received >= target.0 as f64 { Look::Yes(()) } else { Look::NotYet(received.to_string()) })
    })
    .await?;
    mirror.daemon.kill9();
    holder.batch_execute("ROLLBACK").await?;
    Ok(())
}
