//! `where` of a topic decides as Postgres does: many conditions over rows of every type, asked of both.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures_util::TryStreamExt;
use tailwater::catalog::TableName;
use tailwater::config::Config;
use tailwater::diagnostic::SourceFile;
use tailwater::mapping::MappingFile;
use tailwater::mapping::kafka::LiveKafka;
use tailwater::mapping::resolve::{Live, LiveSource, resolve};
use tailwater::postgres::catalog::{Wanted, read_source};
use tailwater::source::copy_rows::CopyRows;
use tailwater::tuple::Cell;
use tailwater::value::filter::Filter;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::cluster::{Cluster, Options};
use crate::support::postgres::Version;
use crate::support::random::Random;

/// A column, values that it takes, and constants that only stand beside it.
struct Sample {
    name: &'static str,
    type_name: &'static str,
    values: &'static [&'static str],
    beside: &'static [&'static str],
    ordered: bool,
}

const fn sample(
    name: &'static str,
    type_name: &'static str,
    values: &'static [&'static str],
    beside: &'static [&'static str],
) -> Sample {
    Sample { name, type_name, values, beside, ordered: true }
}

const fn unordered(sample: Sample) -> Sample {
    Sample { ordered: false, ..sample }
}

const TEXTS: &[&str] = &["''", "'a'", "'a '", "'a  '", "' a'", "'A'", "'it''s'", "'é'", "'e\u{301}'", "'a\\n'", "'0'"];

const SAMPLES: &[Sample] = &[
    sample("b", "boolean", &["TRUE", "false", "'t'", "'no'"], &["'on'", "'0'", "' yes '"]),
    sample(
        "i2",
        "smallint",
        &["0", "1", "-1", "2", "32767", "-32768", "'7'"],
        &["1.5", "-0.5", "70000", "1e2", "1.0", ".5"],
    ),
    sample(
        "i4",
        "integer",
        &["0", "1", "-1", "1000", "2147483647", "-2147483648", "'-5'"],
        &["5000000000", "1e3", "-1.5", "1e40", "-1e40", "0.0000000001", "99999999999999999999"],
    ),
    sample(
        "i8",
        "bigint",
        &["0", "-1", "42", "9223372036854775807", "-9223372036854775808"],
        &["9223372036854775807.5", "-9223372036854775808.5", "1e18", "9223372036854775808", "'42'", "41.5"],
    ),
    sample("o", "oid", &["0", "7", "4294967295", "'16384'"], &["2147483648"]),
    sample(
        "n",
        "numeric",
        &[
            "0",
            "-0.0",
            "1",
            "1.0",
            "1.10",
            "1.1",
            "-1.1",
            "0.0001",
            "0.00010",
            "-0.00012345678901234567890",
            "9999",
            "10000",
            "9999.9999",
            "-10000",
            "123456789012345678901234567890.5",
            "1e20",
            "1e-20",
            "'NaN'",
            "'Infinity'",
            "'-inf'",
            "100000000",
            "0.00009999",
            "12345.6789",
            "1234.56789",
            "'  2.50 '",
        ],
        &["1.", ".1", "-.1", "+1", "1E1", "0e5", "'+inf'", "'nan'"],
    ),
    sample("nf", "numeric(10,2)", &["0", "0.1", "-0.15", "12345678.99", "'NaN'"], &["0.15", "0.005", "1e8"]),
    sample("nn", "numeric(5,-2)", &["0", "12345", "-67890", "1234567", "150"], &["12300", "-67900", "200", "12345"]),
    sample(
        "f4",
        "real",
        &["0", "-0.0", "0.1", "0.5", "-1.5", "16777216", "3.4028235e38", "1e-45", "'NaN'", "'Infinity'", "'-Infinity'"],
        &["'0.1'", "0.100000001490116", "16777217", "1e300", "'1e-40'", "3", "0.25"],
    ),
    sample(
        "f8",
        "double precision",
        &["0", "0.1", "-0.0", "1e308", "4.9e-324", "9007199254740993", "'NaN'", "'inf'", "'-Infinity'", "1.5"],
        &["9007199254740992", "'0.1'", "0.1000000000000000055511151231257827", "1e-300", "1"],
    ),
    unordered(sample("t", "text", TEXTS, &["'nobody'"])),
    unordered(sample("vc", "varchar(5)", TEXTS, &["'longer than five'"])),
    unordered(sample("c", "char(4)", TEXTS, &["'a   '", "'longer than four'"])),
    unordered(sample("nm", "name", TEXTS, &[])),
    unordered(sample("mo", "mood", &["'sad'", "'ok'", "'so so'"], &[])),
    sample(
        "u",
        "uuid",
        &["'00000000-0000-0000-0000-000000000000'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
        &["'A0EEBC999C0B4EF8BB6D6BB9BD380A11'", "'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12}'"],
    ),
    sample(
        "d",
        "date",
        &[
            "'2000-01-01'",
            "'2024-02-29'",
            "'1969-12-31'",
            "'4714-11-24 BC'",
            "'0001-12-31 BC'",
            "'0001-01-01'",
            "'5874897-12-31'",
            "'infinity'",
            "'-infinity'",
        ],
        &["'2024-03-01'", "'10000-01-01'"],
    ),
    sample(
        "ts",
        "timestamp",
        &[
            "'2000-01-01 00:00:00'",
            "'2024-02-29 23:59:59.999999'",
            "'0044-03-15 12:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'4714-11-24 00:00:00 BC'",
            "'infinity'",
            "'-infinity'",
            "'1999-12-31 23:59:59.5'",
        ],
        &["'2024-02-29'", "'2024-02-29T23:59'", "'2000-01-01 00:00:00.000001'"],
    ),
    sample(
        "tz",
        "timestamptz",
        &[
            "'2000-01-01 00:00:00+00'",
            "'2024-02-29 23:59:59.999999-08'",
            "'0044-03-15 12:00:00+00 BC'",
            "'infinity'",
            "'-infinity'",
            "'2024-07-01 12:00:00+05:30'",
        ],
        &[
            "'2000-01-01 01:00:00+01'",
            "'2024-07-01T06:30:00Z'",
            "'2024-07-01 12:00:00+05:30:00'",
            "'2024-03-01 07:59:59.999999+00'",
        ],
    ),
    sample("dp", "positive", &["1", "2", "1000000"], &["1.5", "-1"]),
    unordered(sample("dt", "word", &["'a'", "'b'"], &["'c'"])),
];

const ROWS: usize = 60;

struct Draw(Random);

impl Draw {
    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.0.below(all.len() as u64)).expect("a small number")]
    }

    fn constant(&mut self, of: &Sample) -> String {
        let count = of.values.len() + of.beside.len();
        let place = usize::try_from(self.0.below(count as u64)).expect("a small number");
        if of.type_name.starts_with("numeric") && self.0.one_in(4) {
            return format!("{}{}.{}", self.of(&["", "-"]), self.0.below(20_000), self.0.below(20_000));
        }
        of.values.iter().chain(of.beside).nth(place).map_or_else(String::new, |text| (*text).to_owned())
    }

    fn name(&mut self, of: &Sample) -> String {
        match self.0.below(4) {
            0 => format!("\"{}\"", of.name),
            1 => of.name.to_uppercase(),
            _ => of.name.to_owned(),
        }
    }

    fn leaf(&mut self) -> String {
        let of = self.of(SAMPLES);
        let name = self.name(of);
        let operators: &[&str] = if of.ordered { &["=", "<>", "!=", "<", "<=", ">", ">="] } else { &["=", "<>", "!="] };
        let not = *self.of(&["", "NOT "]);
        match self.0.below(8) {
            0 => format!("{name} IS {not}NULL"),
            1 if of.name == "b" => format!("{name} is {not}{}", self.of(&["TRUE", "false", "Unknown"])),
            2 if of.name == "b" => format!("{not}{name}"),
            3 if of.ordered => format!("{name} {not}between {} AND {}", self.constant(of), self.constant(of)),
            4 => {
                let count = self.0.below(4) + 1;
                // In a list all are of the column's type, which the server refuses of this one.
                let list = (0..count).map(|_| self.constant(of)).filter(|constant| constant != "1e300");
                let list: Vec<String> = list.chain([of.values[0].to_owned()]).collect();
                format!("{name} {not}IN ({})", list.join(", "))
            }
            5 => format!("{} {} {name}", self.constant(of), self.of(operators)),
            _ => format!("{name} {} {}", self.of(operators), self.constant(of)),
        }
    }

    fn condition(&mut self, depth: u64) -> String {
        if depth == 0 || self.0.one_in(3) {
            return self.leaf();
        }
        match self.0.below(6) {
            0 => format!("NOT {}", self.leaf()),
            1 => format!("NOT ({})", self.condition(depth - 1)),
            2 => format!(
                "({}) IS {}{}",
                self.condition(depth - 1),
                self.of(&["", "NOT "]),
                self.of(&["TRUE", "FALSE", "NULL"])
            ),
            3 => format!("({})", self.condition(depth - 1)),
            4 => format!("{} AND {}", self.condition(depth - 1), self.condition(depth - 1)),
            _ => format!("{} or {}", self.condition(depth - 1), self.condition(depth - 1)),
        }
    }
}

/// A source with the one table `samples`, and its topic.
async fn live(client: &Client) -> Result<Live> {
    let names = [TableName::new("public", "samples")];
    let (catalog, types) = read_source(client, Wanted::Named(&names)).await?;
    let source = LiveSource { catalog, server_version: 150_000, types: types.into() };
    let kafka = LiveKafka { topics: BTreeMap::from([("src.public.samples".to_owned(), 1)]) };
    Ok(Live {
        sources: BTreeMap::from([("src".to_owned(), source)]),
        kafka: BTreeMap::from([("events".to_owned(), kafka)]),
        ..Live::default()
    })
}

fn config() -> Result<Config> {
    let config = "mappings = [\"m.toml\"]\n[source.src]\nurl = \"postgres://u@h/d\"\n\
                  [sink.events]\nkind = \"kafka\"\nbrokers = \"h:1\"\n";
    Config::parse(Path::new("tailwater.toml"), config, std::iter::empty())
        .map_err(|findings| anyhow::anyhow!(findings.render(false)))
}

/// The condition as the daemon has it, by way of a mapping file.
fn compiled(config: &Config, live: &Live, condition: &str) -> Result<Filter> {
    let text = format!(
        "source = \"src\"\nsink = \"events\"\n[topic]\ntables = \"public.samples\"\nwhere = {}\n",
        serde_json::Value::from(condition)
    );
    let file = MappingFile::parse(SourceFile::new("m.toml", text));
    let file = file.map_err(|findings| anyhow::anyhow!("{condition}\n{}", findings.render(false)))?;
    let (resolved, findings) = resolve(config, &[file], live);
    ensure!(!findings.has_errors(), "{condition}\n{}", findings.render(false));
    let topic = resolved.plans.into_iter().next().and_then(|plan| plan.topic).context("a plan")?;
    topic.filter.context("a filter")
}

/// Per row, what the server says of each condition.
async fn truths(client: &Client, conditions: &[String]) -> Result<Vec<Vec<Option<bool>>>> {
    let list: Vec<String> = conditions.iter().map(|condition| format!("({condition})")).collect();
    let sql = format!("SELECT {} FROM samples ORDER BY id", list.join(", "));
    let rows = client.query(&sql, &[]).await.with_context(|| format!("the server refused {sql}"))?;
    Ok(rows.iter().map(|row| (0..row.len()).map(|place| row.get(place)).collect()).collect())
}

async fn fill(client: &Client, draw: &mut Draw) -> Result<()> {
    let columns: Vec<String> = SAMPLES.iter().map(|sample| format!("{} {}", sample.name, sample.type_name)).collect();
    let sql = format!(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'so so'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE DOMAIN word AS text; CREATE TABLE samples (id int PRIMARY KEY, {}); ALTER TABLE samples REPLICA IDENTITY FULL",
        columns.join(", ")
    );
    client.batch_execute(&sql).await?;
    for id in 0..ROWS {
        let value =
            |sample: &Sample| if draw.0.one_in(6) { "NULL".to_owned() } else { (*draw.of(sample.values)).to_owned() };
        let values: Vec<String> = SAMPLES.iter().map(value).collect();
        client.batch_execute(&format!("INSERT INTO samples VALUES ({id}, {})", values.join(", "))).await?;
    }
    Ok(())
}

/// The server takes texts for equal whose bytes are not.
const ALIKE: &str = "
    CREATE COLLATION alike (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE COLLATION exact (provider = icu, locale = 'und');
    CREATE DOMAIN word AS text COLLATE alike; CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE samples (id int PRIMARY KEY, a text COLLATE alike, d word, v varchar(9) COLLATE alike, b char(4) COLLATE alike, e text COLLATE exact, plain text, m mood);
    ALTER TABLE samples REPLICA IDENTITY FULL;
    INSERT INTO samples VALUES (1, 'a', 'a', 'a', 'a', 'a', 'a', 'ok')";

#[tokio::test]
async fn a_text_that_only_its_collation_can_compare_is_refused() -> Result<()> {
    let cluster = Cluster::start("kafka-alike", Version::V15, Options::default())?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute(ALIKE).await?;
    let (live, config) = (live(&client).await?, config()?);
    let columns = [("a", true), ("d", true), ("v", true), ("b", true), ("e", false), ("plain", false)];
    for (column, is_refused) in columns {
        let equal: bool = client.query_one(&format!("SELECT {column} = 'A' FROM samples"), &[]).await?.try_get(0)?;
        ensure!(equal == is_refused, "{column}: the server says {equal}");
        let decided = compiled(&config, &live, &format!("plain = 'a' AND {column} IN ('A', 'B')"));
        let said = decided.err().map(|error| error.to_string());
        ensure!(said.is_some() == is_refused, "{column}: {said:?}");
        for word in ["\"public.samples\"", &format!("column \"{column}\""), "nondeterministic collation", "m.toml:5:"] {
            ensure!(said.as_ref().is_none_or(|said| said.contains(word)), "not said: {word}: {said:?}");
        }
        compiled(&config, &live, &format!("{column} IS NOT NULL"))?;
    }
    // Labels come with their types.
    ensure!(compiled(&config, &live, "m = 'fine'").is_err() && compiled(&config, &live, "m = 'ok'").is_ok());
    Ok(())
}

#[tokio::test]
async fn conditions_are_decided_as_postgres_decides_them() -> Result<()> {
    let cluster = Cluster::start("kafka-where", Version::V15, Options::default())?;
    let client = cluster.connect("postgres").await?;
    // Nothing that a session sets may matter.
    client.batch_execute("SET timezone = 'Asia/Kolkata'").await?;
    let seed = Random::seed_from_environment();
    println!("TAILWATER_SEED={seed}");
    let mut draw = Draw(Random::new(seed));
    fill(&client, &mut draw).await?;

    let (live, config) = (live(&client).await?, config()?);

    let binary: Vec<bytes::Bytes> = {
        let sql = "COPY (SELECT * FROM samples ORDER BY id) TO STDOUT (FORMAT binary)";
        client.copy_out(sql).await?.try_collect().await?
    };
    let texts: Vec<Vec<Option<String>>> = {
        let messages = client.simple_query("SELECT * FROM samples ORDER BY id").await?;
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        rows.collect()
    };

    let (mut asked, mut trues, mut nulls) = (0, 0, 0);
    for _ in 0..80 {
        let conditions: Vec<String> = (0..50).map(|_| draw.condition(3)).collect();
        let expected = truths(&client, &conditions).await?;
        for (place, condition) in conditions.iter().enumerate() {
            let (plain, negated) =
                (compiled(&config, &live, condition)?, compiled(&config, &live, &format!("NOT ({condition})"))?);
            let check = |row: usize, form: &str, cells: &[Cell<'_>]| -> Result<()> {
                let decided = match (plain.matches(cells)?, negated.matches(cells)?) {
                    (true, false) => Some(true),
                    (false, true) => Some(false),
                    (false, false) => None,
                    (true, true) => anyhow::bail!("{condition} and its contrary are true of row {row}"),
                };
                let server = expected[row][place];
                ensure!(
                    decided == server,
                    "{condition}\nof row {row} in {form} is {decided:?}, by the server {server:?}"
                );
                Ok(())
            };
            let (mut copy, mut row) = (CopyRows::default(), 0);
            for message in &binary {
                let (mut rows, mut cells) = (copy.message(message)?, Vec::new());
                while rows.next(&mut cells)? {
                    check(row, "binary", &cells)?;
                    row += 1;
                }
            }
            ensure!(row == ROWS, "{row} rows were copied");
            for (row, texts) in texts.iter().enumerate() {
                let cells: Vec<Cell<'_>> = texts
                    .iter()
                    .map(|text| text.as_ref().map_or(Cell::Null, |text| Cell::Text(text.as_bytes())))
                    .collect();
                check(row, "text", &cells)?;
                trues += usize::from(expected[row][place] == Some(true));
                nulls += usize::from(expected[row][place].is_none());
                asked += 1;
            }
        }
    }
    println!("{asked} answers, {trues} true, {nulls} NULL");
    ensure!(
        trues > asked / 10 && nulls > asked / 50,
        "what was asked shows little: {trues} true, {nulls} NULL of {asked}"
    );
    Ok(())
}
