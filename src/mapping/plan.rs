//! A mapping compiled against both live ends: names, types and keys are settled here, once, so that per row only bytes move.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::kafka::Pattern;
use crate::catalog::{TableName, UserType};
use crate::lsn::Lsn;
use crate::mapping::kafka::Skipped;
use crate::value::clickhouse::rowbinary::wants_text;
use crate::value::clickhouse::types::{OnOverflow, SourceType};
use crate::value::debezium;
use crate::value::filter::Filter;

/// What the daemon knows of a change beside its columns: `{ meta = "…" }`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Meta {
    /// Name of the `[source.NAME]`, as text.
    Source,
    /// `insert`, `update`, `delete` or `snapshot`, as text.
    Op,
    /// The transaction's commit LSN, as `pg_lsn`; of a snapshot row, the snapshot's point.
    CommitLsn,
    /// The transaction's commit time, as `timestamptz`; of a snapshot row, the snapshot's start.
    CommitTs,
    /// The source's 32-bit transaction id, as `bigint`; NULL in a snapshot row.
    Xid,
    /// When the sink's transaction ran, as `timestamptz`: the sink's `now()`.
    SyncedAt,
}

/// How a masked column's value is replaced before it is written anywhere but the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// Keyed SHA-256 (HMAC with the configured salt) of the value's text, as 64 lowercase hex digits.
    Sha256,
}

/// Where an input column's value comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InputFrom {
    /// A column of the source table.
    Column(String),
    /// What stands in a JSON column at this place, for a sink that cannot be trusted to find it.
    Json {
        column: String,
        path: Vec<String>,
    },
    Meta(Meta),
}

/// One column that a row carries from the decoder to the sink: the columns of the sink's stage.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Input {
    /// Unique in the plan; a source column's own name, so that `sql` may use it.
    pub name: String,
    pub from: InputFrom,
    /// The type it has in the stage, as SQL text of the sink: a source column's wire type, `text` for one that has no
    /// binary form or that is an enum. Of ClickHouse the type in which it is sent.
    pub stage_type: String,
    /// OID of `stage_type` on the sink.
    pub stage_type_oid: u32,
    /// Its binary form cannot stand in an `unnest` argument: arrays and composites.
    pub nested: bool,
    /// An UPDATE may leave it unsent.
    pub toastable: bool,
    pub mask: Option<Mask>,
    /// The column's type at the source; `None` for what the daemon knows.
    pub source_type: Option<SourceType>,
    /// Of a ClickHouse sink: what is written for a value that the column's type cannot hold.
    pub on_overflow: OnOverflow,
}

/// Where a target column's value comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputFrom {
    /// An input, as it is. `cast` says that the types differ and the value goes through an assignment cast.
    Input { input: usize, cast: bool },
    /// An SQL expression of the sink over the inputs' names (quoted identifiers of the stage row).
    Sql {
        text: String,
        /// Inputs that the text may read.
        inputs: Vec<usize>,
    },
}

/// One column of the target that the plan writes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Output {
    pub column: String,
    /// The target column's type as SQL text, with modifier.
    pub target_type: String,
    pub from: OutputFrom,
}

impl Output {
    /// The type that a cast of the value names: the target's without its modifier, so that storing the value checks its
    /// length and does not cut it, as an explicit `::varchar(3)` would.
    pub fn cast_type(&self) -> String {
        super::types::without_modifier(&self.target_type)
    }
}

/// What a row of the source does to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One target row per key, the latest.
    #[default]
    Upsert,
    /// Every change is a new row; keys are not looked at.
    Append,
    /// A key that exists is left alone.
    InsertNew,
}

/// What a DELETE (and a TRUNCATE) of the source does to the target.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeleteMode {
    /// The row goes.
    #[default]
    Hard,
    /// The row stays and its `deleted_column` becomes true.
    Soft,
    /// Nothing happens.
    Ignore,
}

/// The source table as the plan was made for it: what the stream's description of the table is compared with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Expected {
    /// The table's OID; 0 if nothing is known, and then nothing is compared.
    pub oid: u32,
    /// What transactions that committed before this did to the table, the plan knows: the catalog was read later. Until
    /// somebody says so, every transaction is taken for such a one. No part of what the plan is: it moves with each start.
    #[serde(skip)]
    pub settled: Lsn,
    /// All columns that the plan knows of, whether it reads them or not.
    pub columns: Vec<ExpectedColumn>,
    /// Columns that the source has, that belong to the plan, and that it does without until something is done about them.
    pub awaited: Vec<String>,
}

impl Default for Expected {
    fn default() -> Self {
        Expected { oid: 0, settled: Lsn(u64::MAX), columns: Vec::new(), awaited: Vec::new() }
    }
}

impl Expected {
    pub fn column(&self, name: &str) -> Option<&ExpectedColumn> {
        self.columns.iter().find(|column| column.name == name)
    }
}

/// One column of the source table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExpectedColumn {
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
    /// As SQL text with modifier, for people.
    pub type_name: String,
    /// What a row has that was written before the column was added; `None` for a column that is as old as the copy.
    #[serde(skip)]
    pub added: Option<BeforeAdded>,
}

/// The value, in the form of the wire, of a column that a row does not have yet.
#[derive(Clone, PartialEq, Eq)]
pub enum BeforeAdded {
    Null,
    Binary(Vec<u8>),
    Text(Vec<u8>),
}

/// A value is never shown.
impl fmt::Debug for BeforeAdded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BeforeAdded::Null => "Null",
            BeforeAdded::Binary(_) => "Binary",
            BeforeAdded::Text(_) => "Text",
        })
    }
}

/// Where the changes of one table go in Kafka, and in which form.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Topic {
    pub name: String,
    /// Of the names in envelopes and schemas: the source's name.
    pub prefix: String,
    pub format: TopicFormat,
    pub options: TopicOptions,
    /// Partitions that the topic has: a key's place follows from their number.
    pub partitions: i32,
    /// `where`: rows for which it is not true have no messages. It reads the plan's `filter_inputs`, all of the replica identity.
    pub filter: Option<Filter>,
    /// By input: what an envelope's schema says of the column.
    pub columns: Vec<debezium::Column>,
    /// The only columns that messages have beside the key's, also of those that come later, as `schema.table.column`.
    pub include: Option<Vec<Pattern>>,
    /// Columns that never leave the source, also those that come later, as `schema.table.column`.
    pub exclude: Vec<Pattern>,
    /// The mapping names the key. Otherwise it is the primary key that the table has at the time.
    pub names_key: bool,
    /// What the source's own types are, by OID, for columns that come later.
    #[serde(skip)]
    pub types: Arc<BTreeMap<u32, UserType>>,
}

impl Topic {
    /// Columns of which nothing is known: the source sent them before their types were dropped.
    pub fn gone(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().filter(|column| column.type_name.is_empty()).map(|column| column.name.as_str())
    }
}

/// How messages are written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct TopicOptions {
    /// A delete is followed by a message without a value, so that compaction forgets the key.
    pub tombstones: bool,
    pub skipped: Skipped,
    pub values: debezium::Options,
}

/// `format = …` of a `[topic]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TopicFormat {
    /// Debezium's envelope.
    #[default]
    DebeziumJson,
    /// The row alone, without an envelope.
    Json,
    /// Debezium's envelope in Avro, under schemas that a Confluent-compatible registry holds.
    Avro,
}

/// One `[table."schema.name"]` for one source and one sink, compiled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Plan {
    /// The `[source.NAME]`.
    pub source: String,
    /// The `[sink.NAME]`.
    pub sink: String,
    pub from: TableName,
    pub target: TableName,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// Outputs that form the target's key, in the mapping's order. Empty in mode `append`, and where equal rows are not told
    /// apart, see [`Plan::is_multiset`].
    pub key: Vec<usize>,
    /// Inputs from which the key is made; all of them belong to the source table's replica identity. Of a multiset all
    /// inputs: a row is found by all that is known of it.
    pub key_inputs: Vec<usize>,
    /// `where`, in the sink's SQL over the inputs' names; rows for which it is not true are not in the target.
    pub filter: Option<String>,
    /// Inputs that `filter` may read.
    pub filter_inputs: Vec<usize>,
    pub mode: Mode,
    pub delete: DeleteMode,
    /// The boolean column that `delete = "soft"` sets.
    pub deleted_column: Option<String>,
    /// Several sources feed the target: a TRUNCATE touches only rows whose key says this source.
    pub shared_target: bool,
    /// Target tables that this one's foreign keys point to.
    pub parents: Vec<TableName>,
    /// Columns that the source query of a snapshot reads, in the inputs' order, meta inputs left out.
    pub source_columns: Vec<String>,
    /// `columns = "*"`: a column added at the source is to be added here.
    pub follows_columns: bool,
    pub expected: Expected,
    /// Of a Kafka sink: what its messages look like. Mode is `append` then, and every change is an entry of its own.
    pub topic: Option<Topic>,
}

impl Plan {
    /// The table has no key, and its target holds as many of each row as the source does: an INSERT adds a row, a DELETE
    /// takes one away that equals the old row, an UPDATE does both.
    pub fn is_multiset(&self) -> bool {
        self.mode == Mode::Upsert && self.key.is_empty()
    }

    /// A sink that has to read the values needs the text form of one of them, which the source sends only where all are text.
    pub fn wants_text(&self) -> bool {
        match &self.topic {
            None => self.inputs.iter().any(|input| input.source_type.as_ref().is_some_and(wants_text)),
            Some(topic) => topic.columns.iter().any(|column| !column.reads_binary(&topic.options.values)),
        }
    }
}

/// `refresh = …` of a `[view]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RefreshMode {
    /// Concurrently where a unique index allows it, else plain: the default.
    #[default]
    Auto,
    /// Readers are never blocked; needs a unique index without predicate.
    Concurrently,
    /// Readers wait while it runs.
    Plain,
}

/// One `[view."schema.name"]` for one sink, compiled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ViewPlan {
    pub sink: String,
    pub view: TableName,
    pub refresh: RefreshMode,
    /// Not more often than this.
    pub every: Duration,
}

/// What one source must publish of one table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Published {
    pub table: TableName,
    /// The publication's column list; `None` publishes all columns (and those added later).
    pub columns: Option<Vec<String>>,
}
