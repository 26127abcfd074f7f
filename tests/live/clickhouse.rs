//! ClickHouse itself: the server of the tests, the HTTP client, the statements that make tables, and every type's values from
//! a real Postgres into it and back.

mod values;

use anyhow::{Result, ensure};
use bytes::Bytes;
use tailwater::catalog::TableName;
use tailwater::mapping::clickhouse::{quote_ident, quoted};
use tailwater::retry::Retry;
use tailwater::sink::clickhouse::address::Address;
use tailwater::sink::clickhouse::ddl::{
    ColumnDdl, Topology, create_current_view, create_table, current_view_name, state_schema,
};
use tailwater::sink::clickhouse::error::ClickHouseError;
use tailwater::sink::clickhouse::http::Client;
use tailwater::value::clickhouse::types::ColumnType;

use crate::support::clickhouse::ClickHouse;

fn client(server: &ClickHouse) -> Result<Client> {
    Ok(Client::new(Address::parse(&server.url("default"))?)?)
}

fn column(name: &str, column_type: &str) -> ColumnDdl {
    ColumnDdl { name: name.to_owned(), column_type: ColumnType::parse(column_type) }
}

/// Rows of (id, note, version, deleted).
fn rows(rows: &[(i64, &str, u128, u8)]) -> Bytes {
    let mut out = Vec::new();
    for (id, note, version, deleted) in rows {
        out.extend_from_slice(&id.to_le_bytes());
        out.push(u8::try_from(note.len()).expect("short"));
        out.extend_from_slice(note.as_bytes());
        out.extend_from_slice(&version.to_le_bytes());
        out.push(*deleted);
    }
    Bytes::from(out)
}

#[tokio::test]
async fn data_outlives_stop_and_kill_and_a_frozen_server_thaws() -> Result<()> {
    let mut server = ClickHouse::start_with_password("outlives", "tailwater", "p: 'w\"")?;
    ensure!(server.query("SELECT version()")?.starts_with("26.9."));
    server.query("CREATE TABLE t (id Int64) ENGINE = MergeTree ORDER BY id")?;
    server.query("INSERT INTO t VALUES (1)")?;
    server.kill9_and_resume()?;
    server.query("INSERT INTO t VALUES (2)")?;
    server.stop()?;
    server.resume()?;
    server.signal("STOP");
    server.signal("CONT");
    assert_eq!(server.query("SELECT id FROM t ORDER BY id")?, "1\n2");
    let stranger = Address::parse(&format!("http://127.0.0.1:{}", server.http_port()))?;
    let refused = Client::new(stranger)?.execute("SELECT * FROM t").await.expect_err("a stranger reads nothing");
    assert_eq!(refused.retry(), Retry::Never, "{refused}");
    Ok(())
}

#[tokio::test]
async fn inserts_tell_how_many_rows_were_written() -> Result<()> {
    let server = ClickHouse::start("written")?;
    for compress in ["none", "lz4"] {
        let client = Client::new(Address::parse(&format!("{}?compress={compress}", server.url("default")))?)?;
        client
            .execute(
                "CREATE OR REPLACE TABLE t (id Int64, note String, v UInt128, d UInt8) ENGINE = MergeTree ORDER BY id",
            )
            .await?;
        let many: Vec<_> = (0..50_000).map(|id| (id, "a note that compresses well", 1, 0)).collect();
        let summary = client.insert("INSERT INTO t FORMAT RowBinary", rows(&many), &[]).await?;
        assert_eq!(summary.written_rows, 50_000, "{compress}");
        summary.has_written(50_000)?;
        let parts = client.rows("SELECT count() FROM system.parts WHERE table = 't' AND active").await?;
        assert_eq!(parts, [["1"]], "one insert is one part");
        let large = "INSERT INTO t SELECT number, repeat('large', 8_000), 1, 0 FROM numbers(30_000)";
        client.execute("TRUNCATE TABLE t").await?;
        client.run(large, &[]).await?.has_written(30_000)?;
        let parts = client.rows("SELECT count() FROM system.parts WHERE table = 't' AND active").await?;
        assert_eq!(parts, [["1"]], "of 1.2 GB, too");
        // The same rows again are the same rows again, not a duplicate that is dropped.
        assert_eq!(client.insert("INSERT INTO t FORMAT RowBinary", rows(&many), &[]).await?.written_rows, 50_000);
        // Of rows that a condition keeps out, the server does not say that it wrote them.
        let some = "INSERT INTO t SELECT id, note, v, d FROM input('id Int64, note String, v UInt128, d UInt8') \
                    WHERE id >= 10 FORMAT RowBinary";
        assert_eq!(client.insert(some, rows(&many[..20]), &[]).await?.written_rows, 10);
    }
    Ok(())
}

#[tokio::test]
async fn errors_are_told_without_values_and_classified() -> Result<()> {
    let mut server = ClickHouse::start("errors")?;
    let client = client(&server)?;
    client.execute("CREATE TABLE t (id UInt8, at DateTime64(6, 'UTC')) ENGINE = MergeTree ORDER BY id").await?;
    let missing = client.execute("SELECT * FROM nowhere").await.expect_err("there is no such table");
    assert_eq!((missing.code(), missing.retry()), (Some(60), Retry::Never));
    ensure!(missing.to_string().contains("nowhere"), "{missing}");
    for (sql, data) in [
        ("INSERT INTO t (id) FORMAT TSV", "s3cret"),
        ("INSERT INTO t (id) FORMAT TSV", "\\N"),
        ("INSERT INTO t (at) FORMAT TSV", "s3cret"),
        ("INSERT INTO t SELECT toUInt8(s) FROM input('s String') FORMAT TSV", "s3cret"),
        ("INSERT INTO t (id) SELECT CAST(NULL, 'Nullable(UInt8)') FROM input('s String') FORMAT TSV", "s3cret"),
        (
            "INSERT INTO t (at) SELECT parseDateTime64BestEffort(s, 6) FROM input('s String') FORMAT TSV",
            "10300-01-01 00:00:00",
        ),
        ("INSERT INTO t (id, at) FORMAT RowBinary", "s3cret"),
    ] {
        let error = client.insert(sql, Bytes::from(data), &[]).await.expect_err(sql);
        ensure!(matches!(error, ClickHouseError::Server(_)), "{sql}: {error}");
        ensure!(!format!("{error} {error:?}").contains(data), "{sql}: {error}");
    }
    assert_eq!(server.query("SELECT count() FROM t")?, "0");
    server.kill9();
    let gone = client.execute("SELECT 1").await.expect_err("nobody answers");
    assert_eq!(gone.retry(), Retry::Backoff, "{gone}");
    server.resume()?;
    client.execute("SELECT 1").await?;
    Ok(())
}

#[tokio::test]
async fn h80_versions_decide_whatever_the_order_of_arrival() -> Result<()> {
    let server = ClickHouse::start("versions")?;
    let client = client(&server)?;
    for statement in state_schema(&Topology::Single) {
        client.execute(&statement).await?;
        client.execute(&statement).await?;
    }
    let table = TableName::new("d`'\\ x", "we\"ird'; drop table x; --`\\");
    let columns = [column("i`d\\", "Int64"), column("no'te", "String")];
    client.execute(&format!("CREATE DATABASE {}", quote_ident(&table.schema))).await?;
    let create = create_table(&table, &columns, &[0], false, &Topology::Single)?;
    let view = create_current_view(&table, &columns, &Topology::Single);
    for statement in [&create, &create, &view, &view] {
        client.execute(statement).await?;
    }
    let insert = format!("INSERT INTO {} FORMAT RowBinary", quoted(&table));
    let high = 1_u128 << 127;
    for batch in [
        // Later changes first, then earlier ones, as a replay after a crash brings them.
        rows(&[(1, "new", high + 2, 0), (2, "", high + 5, 1), (3, "back", high + 9, 0)]),
        rows(&[(1, "old", high + 1, 0), (2, "gone", 7, 0), (3, "", high + 8, 1), (4, "truncated", 10, 0)]),
        rows(&[(1, "new", high + 2, 0), (2, "", high + 5, 1)]),
    ] {
        client.insert(&insert, batch, &[]).await?.has_written(2)?;
    }
    let current = format!("SELECT * FROM {} ORDER BY 1", quoted(&current_view_name(&table)));
    let before = server.query(&current)?;
    assert_eq!(before, "1\tnew\n3\tback\n4\ttruncated");
    client.execute(&format!("OPTIMIZE TABLE {} FINAL", quoted(&table))).await?;
    assert_eq!(server.query(&current)?, before, "merges change no result");
    client.insert(&insert, rows(&[(2, "gone", 7, 0)]), &[]).await?;
    assert_eq!(server.query(&current)?, before, "a tombstone outlives merges");
    Ok(())
}
