//! Values at the edges of their types: from a real Postgres, in both of its forms, into ClickHouse and back, compared with
//! what Postgres prints.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tailwater::catalog::{Column, TableName};
use tailwater::postgres::catalog::{Wanted, read_tables};
use tailwater::sink::clickhouse::http::Client;
use tailwater::tuple::Cell;
use tailwater::value::clickhouse::rowbinary::{Encoder, Fit, ValueError, reads_binary};
use tailwater::value::clickhouse::types::{ColumnType, OnOverflow, Reach, SourceType, column_type};
use tokio_postgres::SimpleQueryMessage;

use super::client;
use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::Cluster;

/// Columns of one type each, with values for them; NULL comes by itself.
const TYPES: &[(&str, &[&str])] = &[
    ("smallint", &["'-32768'", "'32767'"]),
    ("integer", &["'-2147483648'", "'2147483647'", "0"]),
    ("bigint", &["'-9223372036854775808'", "'9223372036854775807'"]),
    ("oid", &["'4294967295'"]),
    ("real", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'3.4028235e38'", "'1e-45'", "'1234567'", "'0.1'"]),
    (
        "double precision",
        &[
            "'NaN'",
            "'-Infinity'",
            "'-0'",
            "'1.7976931348623157e308'",
            "'5e-324'",
            "'1e15'",
            "'123456789012345'",
            "'0.0001'",
        ],
    ),
    (
        "numeric",
        &["'NaN'", "'Infinity'", "'-Infinity'", "'0.000'", "'-1e-40'", "repeat('9', 1000)::numeric", "'10000.10'"],
    ),
    ("numeric(12,4)", &["'NaN'", "'0'", "'99999999.9999'", "'-99999999.9999'", "'-0.0001'", "'1000000'"]),
    ("numeric(9,0)", &["'999999999'", "'-999999999'"]),
    ("numeric(76,38)", &["'NaN'", "repeat('9', 38) || '.' || repeat('9', 38)", "'-1e-38'", "'123456789.5'"]),
    ("numeric(77,0)", &["repeat('9', 77)"]),
    ("numeric(3,-2)", &["'99900'", "'-1200'"]),
    ("numeric(2,5)", &["'0.00099'"]),
    ("money", &["'-92233720368547758.08'", "'0.01'"]),
    ("boolean", &["'t'", "'f'"]),
    ("text", &["''", "E'\\\\N'", "E'a\\tb\\nc\\rd\\\\e\\x01'", "'NULL'", "repeat('é€😀', 4000)", "E'\\u00a0 '"]),
    ("varchar(5)", &["''", "'éé€€😀'", "'a    '"]),
    ("char(5)", &["''", "'a'", "'abcde'"]),
    ("name", &["'a name'"]),
    ("\"char\"", &["'x'", "''", "E'\\\\377'"]),
    ("citext", &["'Ab'"]),
    ("bytea", &["''", "'\\x00ff5c0a'", "decode(repeat('00ff', 9000), 'hex')"]),
    (
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'5874897-12-31'",
            "'0001-12-31 BC'",
            "'0001-01-01'",
            "'1899-12-31'",
            "'1900-01-01'",
            "'1969-12-31'",
            "'2000-02-29'",
            "'2299-12-31'",
            "'2300-01-01'",
            "'9999-12-31'",
            "'10000-01-01'",
        ],
    ),
    (
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'2000-01-01'",
            "'1899-12-31 23:59:59.999999'",
            "'1900-01-01'",
            "'1969-12-31 23:59:59.5'",
            "'2299-12-31 23:59:59.999999'",
            "'2300-01-01'",
            "'9999-12-31 23:59:59.999999'",
        ],
    ),
    (
        "timestamptz",
        &["'infinity'", "'0044-03-15 12:00 BC'", "'2024-02-29 12:34:56.789+05:30'", "'2299-12-31 23:59:59.999999+00'"],
    ),
    ("timestamp(0)", &["'2024-02-29 12:34:56.789'"]),
    ("time", &["'00:00'", "'24:00'", "'23:59:59.999999'"]),
    ("timetz", &["'00:00+15:59'", "'24:00-15:59'", "'12:34:56.7+00'", "'01:02+01:02:03'"]),
    (
        "interval",
        &[
            "'0'",
            "'-178000000 years'",
            "'1 mon -1 day 00:00:00.000001'",
            "'-1 year 2 mons'",
            "'-1 day +02:03'",
            "'100:00'",
        ],
    ),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'01234567-89ab-cdef-0123-456789abcdef'"]),
    ("json", &["E'{\"a\":  1, \"a\": 2}'", "E'\"\\\\u0000\"'", "'null'", "E'[1,\\n 2.50]'"]),
    ("jsonb", &["'{\"b\": [null, true, 1e400]}'", "'null'", "'\"é\"'", "'{}'"]),
    (
        "inet",
        &[
            "'10.0.0.1/8'",
            "'::1'",
            "'2001:db8::/32'",
            "'10.0.0.1'",
            "'::ffff:1.2.3.4'",
            "'::1.2.3.4'",
            "'1:0:0:2:0:0:0:3'",
            "'::'",
        ],
    ),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", &["'10101'"]),
    ("varbit", &["''", "'101010101'"]),
    ("point", &["'(1.5,-2)'", "'(NaN,Infinity)'"]),
    ("box", &["'(1,2),(3,4)'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[3,)'"]),
    ("tstzrange", &["'[2024-01-01,infinity)'", "'(,2024-01-01]'", "'(2024-01-01,2024-02-01]'"]),
    ("numrange", &["'[1.50,NaN)'"]),
    ("nummultirange", &["'{}'", "'{[1,2),(3.5,)}'"]),
    ("tsvector", &["'a:1A b:2,3'", "''"]),
    ("tsquery", &["'a & !b'"]),
    ("xml", &["'<a b=\"c\">é</a>'", "'text'"]),
    ("pg_lsn", &["'16/B374D848'", "'0/0'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("int4[]", &["'{}'", "'{1,NULL,3}'", "'[0:1]={7,8}'", "'[-1:0][2:3]={{1,2},{3,NULL}}'", "array_fill(7, '{300}')"]),
    ("text[]", &["'{}'", "'{\"\",NULL,\"NULL\",\"a\\\"b\\\\c\",\"{}\",\" \"}'", "'{{a,b},{c,d}}'"]),
    ("numeric[]", &["'{NaN,Infinity,1.50}'"]),
    ("numeric(12,4)[]", &["'{1.50,NULL}'"]),
    ("timestamptz[]", &["'{\"2024-02-29 12:00+02\",NULL}'"]),
    ("bytea[]", &["'{\"\\\\\\\\x00ff\",NULL}'"]),
    ("jsonb[]", &["ARRAY['{\"a\": null}'::jsonb, NULL]"]),
    ("daterange[]", &["'{\"[2024-01-01,2024-02-01)\",empty}'"]),
    ("interval[]", &["'{\"1 day 02:03\"}'"]),
    ("uuid[]", &["'{00000000-0000-0000-0000-000000000000}'"]),
    ("boolean[]", &["'{t,f,NULL}'"]),
    ("mood", &["'good'", "'so-so, \"really\"'"]),
    ("mood[]", &["'{good,NULL}'"]),
    ("price", &["'1.50'", "'-99999999.99'", "'NaN'"]),
    ("rebate", &["'1.5'"]),
    ("pair", &["'(1,\"a,\"\"q\"\"\")'"]),
];

const OWN_TYPES: &str = "CREATE EXTENSION citext; CREATE TYPE mood AS ENUM ('good', 'so-so, \"really\"'); \
                         CREATE DOMAIN price AS numeric(10, 2); CREATE DOMAIN rebate AS price CHECK (value > 0); CREATE TYPE pair AS (a int, b text)";

/// One column's values: text as Postgres prints it, and the binary form.
struct Values {
    column: Column,
    values: Vec<Option<(String, Bytes)>>,
}

async fn values(cluster: &Cluster) -> Result<Vec<Values>> {
    let postgres = cluster.connect("postgres").await?;
    postgres.batch_execute(OWN_TYPES).await?;
    let names: Vec<_> = TYPES.iter().enumerate().map(|(place, (name, _))| format!("c{place} {name}")).collect();
    postgres.batch_execute(&format!("CREATE TABLE corpus (id int, {})", names.join(", "))).await?;
    let catalog = read_tables(&postgres, Wanted::Named(&[TableName::new("public", "corpus")])).await?;
    let mut found = Vec::new();
    for (place, (_, literals)) in TYPES.iter().enumerate() {
        let column = catalog.tables[0].columns[place + 1].clone();
        for (id, literal) in literals.iter().enumerate() {
            postgres
                .batch_execute(&format!(
                    "INSERT INTO corpus (id, c{place}) SELECT {id}, ({literal})::{}",
                    TYPES[place].0
                ))
                .await?;
        }
        let of_column = format!("FROM corpus WHERE c{place} IS NOT NULL ORDER BY id");
        let texts = postgres.simple_query(&format!("SELECT c{place} {of_column}")).await?;
        let texts = texts.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        let copy = postgres.copy_out(&format!("COPY (SELECT c{place} {of_column}) TO STDOUT (FORMAT binary)")).await;
        let binaries = match copy {
            Ok(stream) => fields(&stream.try_collect::<Vec<_>>().await?.concat())?,
            // A type without a binary form at all.
            Err(_) => vec![Bytes::new(); literals.len()],
        };
        let values: Vec<_> = texts.zip(binaries).map(Some).chain([None]).collect();
        ensure!(values.len() == literals.len() + 1, "{}", TYPES[place].0);
        found.push(Values { column, values });
    }
    Ok(found)
}

/// The fields of a binary COPY of one column without NULLs.
fn fields(copy: &[u8]) -> Result<Vec<Bytes>> {
    let (mut rest, mut fields) = (copy.get(19..).context("a header")?, Vec::new());
    while let [0, 1, a, b, c, d, tail @ ..] = rest {
        let length = usize::try_from(i32::from_be_bytes([*a, *b, *c, *d]))?;
        fields.push(Bytes::copy_from_slice(&tail[..length]));
        rest = &tail[length..];
    }
    Ok(fields)
}

/// What the column's type cannot hold, by what Postgres prints: -1 below, 1 above, 0 without a nearest value.
fn misfit(target: &ColumnType, text: &str, reach: Reach) -> Option<i8> {
    match target {
        ColumnType::Nullable(inner) => misfit(inner, text, reach),
        ColumnType::Decimal { .. } => (text == "NaN").then_some(0),
        ColumnType::Date32 | ColumnType::DateTime64 { .. } => {
            let year = text.split('-').next().and_then(|year| year.parse::<i64>().ok());
            let (first, last) = if reach == Reach::Documented { (1900, 2299) } else { (1, 9999) };
            match (text, year) {
                ("infinity", _) => Some(1),
                ("-infinity", _) => Some(-1),
                (text, _) if text.ends_with(" BC") => Some(-1),
                (_, Some(year)) if year < first => Some(-1),
                (_, Some(year)) if year > last => Some(1),
                _ => None,
            }
        }
        // Bounds can be dropped, but dimensions have no nearest.
        ColumnType::Array(_) if text.starts_with('[') || text.starts_with("{{") => {
            Some(if text.contains("{{") { 0 } else { 1 })
        }
        _ => None,
    }
}

/// A text with which equal values are equal, whichever side printed it.
fn canonical(target: &ColumnType, text: &str) -> String {
    match target {
        ColumnType::Nullable(inner) | ColumnType::LowCardinality(inner) => canonical(inner, text),
        ColumnType::Bool => text.chars().take(1).collect(),
        ColumnType::Float32 => text.parse().map_or(text.to_owned(), |value: f32| format!("{value:?}")),
        ColumnType::Float64 => text.parse().map_or(text.to_owned(), |value: f64| format!("{value:?}")),
        ColumnType::Decimal { .. } if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        ColumnType::DateTime64 { .. } => {
            let text = text.trim_end_matches("+00");
            if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text.to_owned()
            }
        }
        _ => text.to_owned(),
    }
}

/// Both sides' texts of an array's elements, each canonical; the array of Postgres is taken apart by Postgres.
async fn expected_elements(
    postgres: &tokio_postgres::Client,
    ty: &str,
    text: &str,
    element: &ColumnType,
) -> Result<Vec<Option<String>>> {
    let is_bytes = ty == "bytea[]";
    let one = if is_bytes { "encode(x, 'hex')" } else { "x::text" };
    let row = postgres
        .query_one(&format!("SELECT ARRAY(SELECT {one} FROM unnest($1::text::{ty}) AS u(x))"), &[&text])
        .await?;
    let elements: Vec<Option<String>> = row.get(0);
    Ok(elements.into_iter().map(|text| text.map(|text| canonical(element, &text))).collect())
}

struct Check<'a> {
    http: &'a Client,
    postgres: tokio_postgres::Client,
    reach: Reach,
}

impl Check<'_> {
    /// Writes a column's values by one form and policy, reads them back and compares each.
    async fn column(
        &self,
        ty: &str,
        values: &Values,
        on_overflow: OnOverflow,
        nullable: bool,
        form: &str,
    ) -> Result<()> {
        let source = SourceType::of(&values.column);
        let target = column_type(&source, nullable, on_overflow);
        let what = format!("{ty} as {target}, {on_overflow:?}, {form}");
        let encoder = Encoder::new(&source, &target, on_overflow, self.reach).context(what.clone())?;
        self.http
            .execute(&format!("CREATE OR REPLACE TABLE v (id UInt32, v {target}) ENGINE = MergeTree ORDER BY id"))
            .await?;
        let (mut rows, mut written) = (Vec::new(), Vec::new());
        for value in &values.values {
            let cell = match value {
                None if !nullable => continue,
                None => Cell::Null,
                Some((text, _)) if form == "text" => Cell::Text(text.as_bytes()),
                Some((_, bytes)) => Cell::Binary(bytes),
            };
            let start = rows.len();
            rows.extend_from_slice(&u32::try_from(written.len())?.to_le_bytes());
            let misfit = value.as_ref().and_then(|(text, _)| misfit(&target, text, self.reach));
            let text = value.as_ref().map(|(text, _)| text.as_str());
            let found = encoder.put(&mut rows, cell);
            let expected = match (cell, misfit, on_overflow) {
                (Cell::Binary(_), ..) if !reads_binary(&source) => Err(ValueError::BinaryForm),
                (Cell::Null, ..) if !target.is_nullable() && on_overflow == OnOverflow::Clamp => Ok(Fit::Coerced),
                (_, Some(_), OnOverflow::Null) if target.is_nullable() => Ok(Fit::Coerced),
                (_, Some(-1 | 1), OnOverflow::Clamp) => Ok(Fit::Coerced),
                (_, Some(_), _) => Err(ValueError::Overflow),
                (_, None, _) => Ok(Fit::Exact),
            };
            assert_eq!(found, expected, "{what}: {text:?}");
            match found {
                Ok(_) => written.push((text, misfit)),
                Err(_) => rows.truncate(start),
            }
        }
        let count = u64::try_from(written.len())?;
        self.http
            .insert("INSERT INTO v FORMAT RowBinary", rows.into(), &[])
            .await
            .context(what.clone())?
            .has_written(count)?;
        self.compare(ty, &what, &target, on_overflow, &written).await
    }

    async fn compare(
        &self,
        ty: &str,
        what: &str,
        target: &ColumnType,
        on_overflow: OnOverflow,
        written: &[(Option<&str>, Option<i8>)],
    ) -> Result<()> {
        let shown = match (target, ty) {
            (ColumnType::Array(_), "bytea[]") => "arrayMap(x -> lower(hex(x)), v)",
            (ColumnType::Array(_), _) => "arrayMap(x -> toString(x), v)",
            (_, "bytea") => "concat('\\\\x', lower(hex(v)))",
            _ => "toString(v)",
        };
        let rows = self.http.rows(&format!("SELECT {shown} FROM v ORDER BY id")).await?;
        assert_eq!(rows.len(), written.len(), "{what}");
        for (row, (text, misfit)) in rows.iter().zip(written) {
            if let ColumnType::Array(element) = target {
                let elements = expected_elements(&self.postgres, ty, text.unwrap_or("{}"), element).await?;
                let back = row[0].as_array().context("an array")?.iter();
                let back: Vec<_> = back.map(|element| element.as_str().map(str::to_owned)).collect();
                let back: Vec<_> = back.into_iter().map(|text| text.map(|text| canonical(element, &text))).collect();
                assert_eq!(back, elements, "{what}");
                continue;
            }
            let back = row[0].as_str().map(|back| canonical(target, back));
            let limits = match (target, self.reach) {
                (ColumnType::Nullable(inner), Reach::Documented) if **inner == ColumnType::Date32 => {
                    ["1900-01-01", "2299-12-31"]
                }
                (ColumnType::Nullable(inner), Reach::FourDigits) if **inner == ColumnType::Date32 => {
                    ["0001-01-01", "9999-12-31"]
                }
                (_, Reach::Documented) => ["1900-01-01 00:00:00", "2299-12-31 23:59:59.999999"],
                (_, Reach::FourDigits) => ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"],
            };
            let expected = match (misfit, on_overflow) {
                (Some(_), OnOverflow::Null) => None,
                (Some(-1), OnOverflow::Clamp) => Some(canonical(target, limits[0])),
                (Some(_), OnOverflow::Clamp) => Some(canonical(target, limits[1])),
                _ => text.map(|text| canonical(target, text)),
            };
            assert_eq!(back, expected, "{what}");
        }
        Ok(())
    }
}

#[tokio::test]
async fn h61_every_type_comes_back_as_postgres_prints_it() -> Result<()> {
    let server = ClickHouse::start("values")?;
    let cluster = Cluster::new("values")?;
    let http = client(&server)?;
    let reach = match http.rows(Reach::PROBE).await?.as_slice() {
        [row] if row[0] == 1 => Reach::FourDigits,
        _ => Reach::Documented,
    };
    ensure!(reach == Reach::FourDigits, "ClickHouse 26.9 shows years of four digits");
    let all = values(&cluster).await?;
    let mut check = Check { http: &http, postgres: cluster.connect("postgres").await?, reach };
    for (values, (ty, _)) in all.iter().zip(TYPES) {
        for form in ["binary", "text"] {
            for on_overflow in [OnOverflow::Error, OnOverflow::Null, OnOverflow::Clamp, OnOverflow::Text] {
                check.column(ty, values, on_overflow, true, form).await?;
            }
            check.column(ty, values, OnOverflow::Error, false, form).await?;
        }
    }
    // The narrower range of older servers, for the types that have one.
    check.reach = Reach::Documented;
    for (values, (ty, _)) in
        all.iter().zip(TYPES).filter(|(_, (ty, _))| ty.starts_with("date") || ty.starts_with("timestamp"))
    {
        for on_overflow in [OnOverflow::Error, OnOverflow::Clamp] {
            check.column(ty, values, on_overflow, true, "binary").await?;
        }
    }
    Ok(())
}
