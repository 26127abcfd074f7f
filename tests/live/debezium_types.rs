//! Events of rows as a real server sends them, text and binary: the tables of Debezium's own tests, with the values that
//! those tests expect.

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use tailwater::catalog::{Table, TableName};
use tailwater::checkpoint::UnixMicros;
use tailwater::lsn::Lsn;
use tailwater::postgres::catalog::{Wanted, read_source};
use tailwater::tuple::{Cell, Tuple};
use tailwater::value::debezium::{
    Change, Column, HstoreMode, IntervalMode, Options, Origin, Snapshot, SourceInfo, TableShape,
};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::cluster::{Cluster, Options as ClusterOptions};
use crate::support::postgres::Version;

pub const SCHEMA: &str = r#"
CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION citext; CREATE EXTENSION isn;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TABLE numbers (pk serial PRIMARY KEY, si smallint, i integer, bi bigint, r real, db double precision, r_nan real,
  db_ninf double precision, b boolean, o oid, d decimal(3,2), dzs decimal(4), dvs decimal, n numeric(6,4), p positive,
  m money, dn numeric(40,3));
CREATE TABLE texts (pk serial PRIMARY KEY, vc varchar(2), ch character(4), t text, b bytea, ct citext, j json, jb jsonb,
  x xml, u uuid, i inet, c cidr, ma macaddr, ma8 macaddr8, lt ltree, isbn isbn, tv tsvector, mo mood, nm name, k "char",
  q tsquery);
CREATE TABLE bits (pk serial PRIMARY KEY, bol bit(1), bs bit(2), bs7 bit(7), bv1 varbit(1), bv2 varbit(24), bvl varbit(64),
  bvu varbit);
CREATE TABLE times (pk serial PRIMARY KEY, ts timestamp, ts_ms timestamp(3), ts_us timestamp(6), tz timestamptz, date date,
  ti time, tip time(3), ttf time, ttz timetz, tptz timetz(3), it interval, tsp timestamptz(0), tz_large timestamptz,
  ts_min timestamp(6), tz_min timestamptz, ts_pinf timestamp(6), tz_ninf timestamptz, date_pinf date);
CREATE TABLE ranges (pk serial PRIMARY KEY, ts tsrange, tz tstzrange, d daterange, i4 int4range, n numrange, i8 int8range);
CREATE TABLE nests (pk serial PRIMARY KEY, p point, hs hstore, ia int[], ba bigint[], ta text[], ca char(10)[], da date[],
  na numeric(10,2)[], va numeric[], cta citext[], ina inet[], tsra tsrange[], ua uuid[], ja json[], jba jsonb[], oa oid[],
  bya bytea[], lta ltree[], moa mood[], hsa hstore[], tza timestamptz[], ma money[], two int[]);
CREATE DOMAIN price AS numeric(8,2); CREATE DOMAIN low_price AS price CHECK (VALUE < 1000);
CREATE DOMAIN milli AS timestamp(3); CREATE DOMAIN flags AS bit(3); CREATE DOMAIN humour AS mood;
CREATE DOMAIN prices AS numeric(8,2)[];
CREATE TABLE domains (pk serial PRIMARY KEY, n price, low low_price, ts milli, bs flags, mo humour, moa humour[], na prices);
"#;

/// A table, what is inserted into it and what its row then is.
pub fn tables() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "numbers",
            "1, 1, 123456, 1234567890123, 3.3, 4.44, 'NaN', '-Infinity', true, 4000000000, 1.1, 10.11, 10.1111, 22.22, 7,
             '$1234.11', -9999999999999999999999999999999999999.5",
            json!({
                "pk": 1, "si": 1, "i": 123_456, "bi": 1_234_567_890_123_i64, "r": 3.3, "db": 4.44, "r_nan": "NaN",
                "db_ninf": "-Infinity", "b": true, "o": 4_000_000_000_u32, "d": "bg==", "dzs": "Cg==",
                "dvs": {"scale": 4, "value": "AYr3"}, "n": "A2P4", "p": 7, "m": "AeIT", "dn": "4pzWDjyjW0BURgqfAAAAAfQ=",
            }),
        ),
        (
            "texts",
            r#"1, 'žš', 'cdef', 'some text', '\x000102', 'Hello World', '{"bar": "baz"}', '{"bar": "baz"}',
               '<foo>bar</foo><foo>bar</foo>', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '192.168.2.0/12',
               '192.168.100.128/25', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05',
               'Top.Collections.Pictures.Astronomy.Galaxies', '978-0-393-04002-9', 'a fat cat', 'happy', 'a name', 'k',
               'fat & rat'"#,
            json!({
                "pk": 1, "vc": "žš", "ch": "cdef", "t": "some text", "b": "AAEC", "ct": "Hello World",
                "j": "{\"bar\": \"baz\"}", "jb": "{\"bar\": \"baz\"}", "x": "<foo>bar</foo><foo>bar</foo>",
                "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "i": "192.168.2.0/12", "c": "192.168.100.128/25",
                "ma": "08:00:2b:01:02:03", "ma8": "08:00:2b:01:02:03:04:05",
                "lt": "Top.Collections.Pictures.Astronomy.Galaxies", "isbn": "0-393-04002-X", "tv": "'a' 'cat' 'fat'",
                "mo": "happy", "nm": "a name", "k": "k",
            }),
        ),
        (
            "bits",
            "1, '0', '11', '1000000', '1', '000000110000001000000001',
             '1000000000000000000000000000000000000000000000000000000000000000', '111011010001000110000001000000001'",
            json!({
                "pk": 1, "bol": false, "bs": "Aw==", "bs7": "QA==", "bv1": true, "bv2": "AQID", "bvl": "AAAAAAAAAIA=",
                "bvu": "AQIj2gE=",
            }),
        ),
        (
            "times",
            "1, '2016-11-04T13:51:30.123456', '2016-11-04T13:51:30.123456', '2016-11-04T13:51:30.123456',
             '2016-11-04T13:51:30.123456+02:00', '2016-11-04', '13:51:30', '13:51:30.123', '24:00:00',
             '13:51:30.123789+02:00', '13:51:30.123+02:00', 'P1Y2M3DT4H5M6.78S', '2016-11-04T13:51:30+02:00',
             '21016-11-04T13:51:30.123456+07:00', '4713-12-31T23:59:59.999999 BC', '4714-12-31T23:59:59.999999Z BC',
             'infinity', '-infinity', 'infinity'",
            json!({
                "pk": 1, "ts": 1_478_267_490_123_456_i64, "ts_ms": 1_478_267_490_123_i64,
                "ts_us": 1_478_267_490_123_456_i64, "tz": "2016-11-04T11:51:30.123456Z", "date": 17_109,
                "ti": 49_890_000_000_i64, "tip": 49_890_123, "ttf": 86_400_000_000_i64, "ttz": "11:51:30.123789Z",
                "tptz": "11:51:30.123Z", "it": 37_091_106_780_000_i64, "tsp": "2016-11-04T11:51:30Z",
                "tz_large": "+21016-11-04T06:51:30.123456Z", "ts_min": -210_831_897_600_000_001_i64,
                "tz_min": "-4713-12-31T23:59:59.999999Z", "ts_pinf": 9_223_372_036_825_200_000_i64,
                "tz_ninf": "-infinity", "date_pinf": -2_147_472_692,
            }),
        ),
        (
            "ranges",
            "1, '[2019-03-31 15:30:00, infinity)', '[2017-06-05 11:29:12.549426+00,)', '[2019-03-31, infinity)',
             '[1000,6000)', '[5.3,6.3)', '[1000000,6000000)'",
            json!({
                "pk": 1, "ts": "[\"2019-03-31 15:30:00\",infinity)", "tz": "[\"2017-06-05 11:29:12.549426+00\",)",
                "d": "[2019-03-31,infinity)", "i4": "[1000,6000)", "n": "[5.3,6.3)", "i8": "[1000000,6000000)",
            }),
        ),
        ("nests", NESTS, nests()),
        (
            "domains",
            "1, 123.45, -0.01, '2016-11-04T13:51:30.123', '101', 'sad', '{ok}', '{1.2}'",
            json!({
                "pk": 1, "n": "MDk=", "low": "/w==", "ts": 1_478_267_490_123_i64, "bs": "BQ==", "mo": "sad", "na": ["eA=="],
            }),
        ),
    ]
}

const NESTS: &str = r#"1, '(1,1)', '"key"=>"val", "key5"=>NULL', '{1,2,3}', '{1550166368505037572}', '{one,two,NULL}',
    '{cone,ctwo}', '{2016-11-04,2016-11-05}', '{1.2,3.4}', '{1.1,2.22,3.333}', '{four,five}', '{192.168.2.0/12}',
    '{"[2019-03-31 15:30:00, infinity)"}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}',
    array['{"bar": "baz"}']::json[], array['{"bar": "baz"}']::jsonb[], '{3,4000000000}',
    array['\x000102'::bytea, '\x030405'::bytea], '{Ship.Frigate,Ship.Destroyer}', '{happy,sad}',
    array['"key4"=>"val4"'::hstore], '{2020-04-01 13:51:02+02}', '{$1.00}', '{{1,2},{3,NULL}}'"#;

fn nests() -> Value {
    json!({
        "pk": 1,
        "p": {"x": 1.0, "y": 1.0, "wkb": "AQEAAAAAAAAAAADwPwAAAAAAAPA/", "srid": null},
        "hs": "{\"key\":\"val\",\"key5\":null}",
        "ia": [1, 2, 3], "ba": [1_550_166_368_505_037_572_i64], "ta": ["one", "two", null],
        "ca": ["cone      ", "ctwo      "], "da": [17_109, 17_110], "na": ["eA==", "AVQ="],
        "va": [{"scale": 1, "value": "Cw=="}, {"scale": 2, "value": "AN4="}, {"scale": 3, "value": "DQU="}],
        "cta": ["four", "five"], "ina": ["192.168.2.0/12"], "tsra": ["[\"2019-03-31 15:30:00\",infinity)"],
        "ua": ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"], "ja": ["{\"bar\": \"baz\"}"], "jba": ["{\"bar\": \"baz\"}"],
        "oa": [3, 4_000_000_000_u32], "bya": ["AAEC", "AwQF"], "lta": ["Ship.Frigate", "Ship.Destroyer"],
        "moa": ["happy", "sad"], "hsa": ["{\"key4\":\"val4\"}"], "tza": ["2020-04-01T11:51:02.000000Z"],
        "two": [[1, 2], [3, null]],
    })
}

fn columns(table: &Table) -> Vec<Column> {
    table.columns.iter().map(Column::of).collect()
}

/// The table's one row after a change, as the event has it.
fn after(table: &Table, cells: &[Cell<'_>], options: &Options) -> Result<Value> {
    Ok(event(table, cells, options)?["after"].clone())
}

fn event(table: &Table, cells: &[Cell<'_>], options: &Options) -> Result<Value> {
    let origin = Origin { version: "1", name: "src", database: "db" };
    let shape = TableShape::new(&origin, &table.name, &columns(table), &table.primary_key, options)?;
    let info = SourceInfo {
        committed: UnixMicros(0),
        snapshot: Snapshot::False,
        last_commit_lsn: None,
        lsn: Lsn(1),
        xid: Some(1),
    };
    let mut out = Vec::new();
    let change = Change::Create { after: cells.iter().copied() };
    shape.value(&mut out, &change, &info, None, UnixMicros(0)).with_context(|| format!("table {}", table.name))?;
    Ok(serde_json::from_slice(&out)?)
}

/// What the event's schema says of a column.
fn said(event: &Value, column: &str) -> Value {
    let field = |of: &Value, name: &str| {
        let fields = of["fields"].as_array().into_iter().flatten();
        fields.into_iter().find(|field| field["field"] == name).cloned().unwrap_or_default()
    };
    field(&field(&event["schema"], "after"), column)
}

async fn text_row(client: &Client, table: &Table) -> Result<Vec<Option<String>>> {
    for message in client.simple_query(&format!("SELECT * FROM {}", table.name.quoted())).await? {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok((0..row.len()).map(|place| row.get(place).map(str::to_owned)).collect());
        }
    }
    bail!("{} is empty", table.name)
}

/// Header and row of `COPY … (FORMAT binary)`, of which a row is like one of the stream: count, then length and bytes.
async fn binary_row(client: &Client, table: &Table, options: &Options) -> Result<Vec<u8>> {
    let chosen = |column: &Column| {
        let name = tailwater::catalog::quote_ident(&column.name);
        // What is not read in binary, the source is asked to send as text.
        if column.reads_binary(options) { name } else { format!("{name}::text") }
    };
    let list: Vec<String> = columns(table).iter().map(chosen).collect();
    let sql = format!("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT binary)", list.join(", "), table.name.quoted());
    let chunks: Vec<bytes::Bytes> = client.copy_out(&sql).await?.try_collect().await?;
    let whole = chunks.concat();
    let mut rest = whole.get(19..).context("a header")?;
    let count = usize::try_from(i16::from_be_bytes(rest[..2].try_into()?))?;
    let mut tuple = rest[..2].to_vec();
    rest = &rest[2..];
    for column in &columns(table)[..count] {
        let length = i32::from_be_bytes(rest[..4].try_into()?);
        let value = usize::try_from(length).unwrap_or(0);
        match (length, column.reads_binary(options)) {
            (-1, _) => tuple.push(b'n'),
            (_, true) => tuple.push(b'b'),
            (_, false) => tuple.push(b't'),
        }
        tuple.extend(rest[..4 + value].iter().take(if length < 0 { 0 } else { 4 + value }));
        rest = &rest[4 + value..];
    }
    Ok(tuple)
}

#[tokio::test]
async fn both_forms_of_debezium_s_tables_are_what_its_tests_expect() -> Result<()> {
    let cluster = Cluster::start("debezium-types", Version::V15, ClusterOptions::default())?;
    cluster.execute("postgres", SCHEMA).await?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("SET timezone = 'UTC'; SET intervalstyle = 'postgres'; SET extra_float_digits = 3").await?;
    let names: Vec<TableName> = tables().iter().map(|(name, ..)| TableName::new("public", *name)).collect();
    let (catalog, _) = read_source(&client, Wanted::Named(&names)).await?;
    let options = Options::default();
    for (name, values, expected) in tables() {
        client.batch_execute(&format!("INSERT INTO {name} VALUES ({values})")).await.context(name)?;
        let table = catalog.table(&TableName::new("public", name)).context("a table")?;
        let text = text_row(&client, table).await?;
        let cells: Vec<Cell<'_>> =
            text.iter().map(|value| value.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))).collect();
        let shown = after(table, &cells, &options)?;
        ensure!(shown == expected, "{name} in text is\n{shown}\nand not\n{expected}");
        let row = binary_row(&client, table, &options).await?;
        let (tuple, _) = Tuple::parse(&row)?;
        let cells: Vec<Cell<'_>> = tuple.cells().collect();
        let shown = after(table, &cells, &options)?;
        ensure!(shown == expected, "{name} in binary is\n{shown}\nand not\n{expected}");
        let other = Options {
            interval_handling_mode: IntervalMode::String,
            hstore_handling_mode: HstoreMode::Map,
            decimal_handling_mode: tailwater::value::debezium::DecimalMode::String,
            ..Options::default()
        };
        let from_text: Vec<Cell<'_>> =
            text.iter().map(|value| value.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes()))).collect();
        let (one, two) = (after(table, &from_text, &other)?, after(table, &cells, &other)?);
        // Text money is as the server prints it; its digits are the same.
        ensure!(one == two, "{name} under other modes is\n{one}\nin text and\n{two}\nin binary");
    }
    Ok(())
}

#[tokio::test]
async fn labels_of_enums_and_limits_of_domains_are_in_the_schemas() -> Result<()> {
    let cluster = Cluster::start("debezium-schemas", Version::V15, ClusterOptions::default())?;
    cluster.execute("postgres", SCHEMA).await?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute("ALTER TYPE mood ADD VALUE 'fine' BEFORE 'happy'").await?;
    let names = ["texts", "nests", "domains"].map(|name| TableName::new("public", name));
    let (catalog, _) = read_source(&client, Wanted::Named(&names)).await?;
    let of = |name: &str, column: &str| -> Result<Value> {
        let table = catalog.table(&TableName::new("public", name)).context("a table")?;
        let mut cells = vec![Cell::Null; table.columns.len()];
        cells[0] = Cell::Text(b"1");
        let event = event(table, &cells, &Options { schemas: true, ..Options::default() })?;
        Ok(said(&event, column))
    };
    let labels = json!({"allowed": "sad,ok,fine,happy"});
    for (table, column) in [("texts", "mo"), ("domains", "mo")] {
        let schema = of(table, column)?;
        assert_eq!(
            (&schema["name"], &schema["parameters"]),
            (&json!("io.debezium.data.Enum"), &labels),
            "{table}.{column}"
        );
    }
    let array = of("nests", "moa")?;
    assert_eq!((&array["type"], &array["items"]["parameters"]), (&json!("array"), &labels));
    assert_eq!(of("domains", "moa")?, Value::Null, "Debezium has no array of a domain");
    let decimal = json!({"scale": "2", "connect.decimal.precision": "8"});
    assert_eq!(of("domains", "n")?["parameters"], decimal);
    assert_eq!(of("domains", "low")?["parameters"], decimal, "through another domain");
    assert_eq!(of("domains", "na")?["items"]["parameters"], decimal);
    assert_eq!(of("domains", "ts")?["name"], "io.debezium.time.Timestamp");
    assert_eq!(of("domains", "bs")?["parameters"], json!({"length": "3"}));
    Ok(())
}
