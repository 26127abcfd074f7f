//! Values at the edges of their types, by the copy and by the stream, cell by cell.

use anyhow::Result;

use crate::support::mirror::Mirror;

/// Columns of one type each, and values for them; shorter lists are filled up with NULL.
const TYPES: &[(&str, &[&str])] = &[
    ("smallint", &["'-32768'", "'32767'"]),
    ("bigint", &["'-9223372036854775808'", "'9223372036854775807'"]),
    ("real", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'3.4028235e38'", "'1e-45'"]),
    ("double precision", &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'1.7976931348623157e308'", "'5e-324'"]),
    ("numeric", &["'NaN'", "'Infinity'", "'-Infinity'", "'0.000'", "'-1e-40'", "repeat('9', 400)::numeric"]),
    ("numeric(12,4)", &["'NaN'", "'0'", "'99999999.9999'", "'-0.0001'"]),
    ("money", &["'-92233720368547758.08'", "'0.01'"]),
    ("boolean", &["'t'", "'f'"]),
    ("text", &["''", "E'\\\\N'", "E'a\\tb\\nc\\rd\\\\e\\x01'", "'NULL'", "repeat('é€😀', 4000)", "E'\\u00a0 '"]),
    ("varchar(5)", &["''", "'éé€€😀'", "'a    '"]),
    ("char(5)", &["''", "'a'", "'abcde'"]),
    ("name", &["'a name'"]),
    ("\"char\"", &["'x'", "''"]),
    ("bytea", &["''", "'\\x00ff5c0a'", "decode(repeat('00ff', 9000), 'hex')"]),
    ("date", &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'", "'0001-12-31 BC'"]),
    ("timestamp", &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'294276-12-31 23:59:59.999999'", "'2000-01-01'"]),
    ("timestamptz", &["'infinity'", "'-infinity'", "'0044-03-15 12:00 BC'", "'2024-02-29 12:34:56.789+05:30'"]),
    ("time", &["'00:00'", "'24:00'", "'23:59:59.999999'"]),
    ("timetz", &["'00:00+15:59'", "'24:00-15:59'", "'12:34:56.7+00'"]),
    ("interval", &["'0'", "'-178000000 years'", "'1 mon -1 day 00:00:00.000001'", "'-1 year 2 mons'"]),
    ("uuid", &["'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"]),
    ("json", &["E'{\"a\":  1, \"a\": 2}'", "E'\"\\\\u0000\"'", "'null'", "E'[1,\\n 2.50]'"]),
    ("jsonb", &["'{\"b\": [null, true, 1e400]}'", "'null'", "'\"é\"'", "'{}'"]),
    ("inet", &["'10.0.0.1/8'", "'::1'", "'2001:db8::/32'"]),
    ("cidr", &["'10.0.0.0/8'", "'2001:db8::/32'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("bit(5)", &["'10101'"]),
    ("varbit", &["''", "'101010101'"]),
    ("point", &["'(1.5,-2)'", "'(NaN,Infinity)'"]),
    ("box", &["'(1,2),(3,4)'"]),
    ("polygon", &["'((0,0),(1,1),(2,0))'"]),
    ("int4range", &["'empty'", "'[1,5)'", "'(,)'", "'[3,)'"]),
    ("tstzrange", &["'[2024-01-01,infinity)'", "'(,2024-01-01]'"]),
    ("nummultirange", &["'{}'", "'{[1,2),(3.5,)}'"]),
    ("tsvector", &["'a:1A b:2,3'", "''"]),
    ("tsquery", &["'a & !b'"]),
    ("xml", &["'<a b=\"c\">é</a>'", "'text'"]),
    ("pg_lsn", &["'16/B374D848'", "'0/0'"]),
    ("oid", &["'4294967295'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("int4[]", &["'{}'", "'{1,NULL,3}'", "'[0:1]={7,8}'", "'[-1:0][2:3]={{1,2},{3,NULL}}'"]),
    ("text[]", &["'{}'", "'{\"\",NULL,\"NULL\",\"a\\\"b\\\\c\",\"{}\"}'"]),
    ("numeric[]", &["'{NaN,Infinity,1.50}'"]),
    ("timestamptz[]", &["'{infinity,\"2024-02-29 12:00+02\",NULL}'"]),
    ("bytea[]", &["'{\"\\\\\\\\x00ff\",NULL}'"]),
    ("jsonb[]", &["ARRAY['{\"a\": null}'::jsonb, NULL]"]),
    ("daterange[]", &["'{\"[2024-01-01,2024-02-01)\",empty}'"]),
    ("uuid[]", &["'{00000000-0000-0000-0000-000000000000}'"]),
    ("boolean[]", &["'{t,f,NULL}'"]),
    ("mood", &["'good'", "'so-so, \"really\"'"]),
    ("price", &["'1.50'"]),
];

const OWN_TYPES: &str = "CREATE TYPE mood AS ENUM ('good', 'so-so, \"really\"'); CREATE DOMAIN price AS numeric(10, 2)";

fn insert(first: usize) -> String {
    let most = TYPES.iter().map(|(_, values)| values.len()).max().unwrap_or_default();
    // One row more than there are values: nothing but NULL.
    let row = |index: usize| {
        let cells: Vec<_> = TYPES.iter().map(|(_, values)| *values.get(index).unwrap_or(&"NULL")).collect();
        format!("INSERT INTO corpus VALUES ({}, {})", first + index, cells.join(", "))
    };
    (0..=most).map(row).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn h43_every_type_comes_through_copy_and_stream() -> Result<()> {
    let columns: Vec<_> = TYPES.iter().enumerate().map(|(n, (name, _))| format!("c{n} {name}")).collect();
    let table = format!("{OWN_TYPES}; CREATE TABLE corpus (id int PRIMARY KEY, {}); {}", columns.join(", "), insert(0));
    let mut mirror = Mirror::of("corpus", &table, &["corpus"]).await?;
    let all: Vec<_> = (0..TYPES.len()).map(|n| format!("c{n}")).collect();
    let all = all.join(", ");
    // As new rows, as updates of every column, and as many at once as are copied in.
    let rotate = format!(
        "UPDATE corpus SET ({all}) = (SELECT {all} FROM corpus o WHERE o.id = (corpus.id + 1) % 7) WHERE id < 7"
    );
    let many = format!(
        "INSERT INTO corpus SELECT 1000 + 10 * i + id % 10, {all} FROM corpus, generate_series(1, 400) i WHERE id < 10"
    );
    mirror
        .apply_each(&[&insert(100), &rotate, &many, "UPDATE corpus SET id = id + 100000", "UPDATE corpus SET c0 = 1"])
        .await
}
