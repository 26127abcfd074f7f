//! Digests of tables that do not depend on the order of rows: how many there are, and the wrapping sum of each one's
//! 128-bit hash. A row's text is what `COPY … TO STDOUT` makes of it, so that both sides can be compared byte for byte.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{StreamExt, pin_mut};
use sha2::{Digest as _, Sha256};
use tailwater::catalog::quote_ident;
use tailwater::lsn::Lsn;
use tokio_postgres::Client;

use super::pgoutput::{Tuple, Value};

/// What the text form of values depends on, set alike wherever text is made.
pub const TEXT_FORM: &[(&str, &str)] = &[
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("timezone", "UTC"),
];

#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest {
    pub rows: u64,
    sum: u128,
}

impl Digest {
    pub fn add(&mut self, line: &[u8]) {
        self.rows += 1;
        self.sum = self.sum.wrapping_add(hash(line));
    }

    pub fn remove(&mut self, line: &[u8]) {
        self.rows -= 1;
        self.sum = self.sum.wrapping_sub(hash(line));
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows/{:032x}", self.rows, self.sum)
    }
}

fn hash(line: &[u8]) -> u128 {
    let bytes = Sha256::digest(line);
    u128::from_be_bytes(bytes[..16].try_into().expect("SHA-256 has 32 bytes"))
}

/// A row as a line of COPY's text format, without the line's end (Postgres docs, "COPY", "Text Format").
pub fn line(row: &Tuple) -> Result<Vec<u8>> {
    let mut line = Vec::new();
    for (column, value) in row.iter().enumerate() {
        if column > 0 {
            line.push(b'\t');
        }
        match value {
            Value::Null => line.extend_from_slice(b"\\N"),
            Value::Unchanged => bail!("a row has a value that was not sent"),
            Value::Text(text) => text.iter().for_each(|byte| escape(*byte, &mut line)),
        }
    }
    Ok(line)
}

fn escape(byte: u8, line: &mut Vec<u8>) {
    let letter = match byte {
        b'\\' => b'\\',
        0x08 => b'b',
        0x0C => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x0B => b'v',
        plain => return line.push(plain),
    };
    line.extend_from_slice(&[b'\\', letter]);
}

/// A table and its mirror, with the source's columns in the source's order.
#[derive(Clone, Debug)]
pub struct Table {
    /// `schema.name`, both plain lower-case identifiers.
    pub source: String,
    pub target: String,
    pub columns: Vec<String>,
}

impl Table {
    /// Reads a table's columns. Its mirror is taken to be of the same name in schema `mirror`.
    pub async fn describe(client: &Client, source: &str) -> Result<Table> {
        let (_, name) = source.split_once('.').context("a table is named schema.name")?;
        let sql = "SELECT attname::text FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 \
                   AND NOT attisdropped AND attgenerated = '' ORDER BY attnum";
        let rows = client.query(sql, &[&source]).await?;
        let columns = rows.iter().map(|row| row.get(0)).collect();
        Ok(Table { source: source.to_owned(), target: format!("mirror.{name}"), columns })
    }
}

/// Which of a table's two ends is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    Source,
    Target,
}

/// The digest of a table as the client's transaction sees it.
pub async fn read(client: &Client, table: &Table, end: End) -> Result<Digest> {
    let columns: Vec<String> = table.columns.iter().map(|name| quote_ident(name)).collect();
    let name = match end {
        End::Source => &table.source,
        End::Target => &table.target,
    };
    let rows = client.copy_out(&format!("COPY (SELECT {} FROM {name}) TO STDOUT", columns.join(", "))).await?;
    pin_mut!(rows);
    let mut digest = Digest::default();
    while let Some(row) = rows.next().await {
        let row = row?;
        // The server sends one message per row, each with its line's end.
        let line = row.strip_suffix(b"\n").context("a row of COPY has no end")?;
        ensure!(!line.contains(&b'\n'), "a message of COPY has several rows");
        digest.add(line);
    }
    Ok(digest)
}

/// What one instant of the sink holds.
#[derive(Debug)]
pub struct SinkState {
    pub end_lsn: Lsn,
    /// How many tables are in which state.
    pub states: BTreeMap<String, i64>,
    pub digests: Vec<Digest>,
}

impl SinkState {
    /// Whether the promise holds yet: all tables, that many at least, are copied and have caught up.
    pub fn is_streaming(&self, tables: usize) -> bool {
        let count = self.states.get("streaming").copied().and_then(|count| usize::try_from(count).ok());
        self.states.len() == 1 && count >= Some(tables)
    }
}

/// Reads checkpoint, table states and all tables in one transaction; `None` before the first checkpoint.
pub async fn sink_state(client: &Client, tables: &[Table]) -> Result<Option<SinkState>> {
    set_text_form(client).await?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let state = sink_state_in_transaction(client, tables).await;
    client.batch_execute("ROLLBACK").await?;
    state
}

async fn sink_state_in_transaction(client: &Client, tables: &[Table]) -> Result<Option<SinkState>> {
    let Some(row) = client.query_opt("SELECT end_lsn::text FROM tailwater.checkpoint", &[]).await? else {
        return Ok(None);
    };
    let end_lsn = row.get::<_, &str>(0).parse()?;
    let sql = "SELECT state::text, count(*) FROM tailwater.table_state GROUP BY 1";
    let states = client.query(sql, &[]).await?.iter().map(|row| (row.get(0), row.get(1))).collect();
    let mut digests = Vec::new();
    for table in tables {
        digests.push(read(client, table, End::Target).await?);
    }
    Ok(Some(SinkState { end_lsn, states, digests }))
}

/// Reads all tables of the source in one transaction.
pub async fn source_digests(client: &Client, tables: &[Table]) -> Result<Vec<Digest>> {
    set_text_form(client).await?;
    client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
    let mut digests = Vec::new();
    for table in tables {
        digests.push(read(client, table, End::Source).await?);
    }
    client.batch_execute("ROLLBACK").await?;
    Ok(digests)
}

async fn set_text_form(client: &Client) -> Result<()> {
    let settings: Vec<String> = TEXT_FORM.iter().map(|(name, value)| format!("SET {name} = '{value}'")).collect();
    Ok(client.batch_execute(&settings.join(";")).await?)
}
