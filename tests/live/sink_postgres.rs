//! The Postgres sink's statements against a real target: whatever a real source sends, and in whatever batches and parts it
//! is applied, the target equals the source after every commit.

mod cases;
mod replace;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tailwater::batch::{BatchEnd, BatchLimits, Builder, Taken, Taking};
use tailwater::catalog::TableName;
use tailwater::checkpoint::SourceIdentity;
use tailwater::frame;
use tailwater::lsn::Lsn;
use tailwater::mapping::plan::{DeleteMode, Expected, Input, InputFrom, Mode, Output, OutputFrom, Plan};
use tailwater::sink::SinkSetup;
use tailwater::sink::postgres::PostgresSink;
use tailwater::sink::postgres::state::{self, read_checkpoint};
use tailwater::value::clickhouse::types::OnOverflow;
use tokio_postgres::Client;

use crate::support::cluster::Cluster;
use crate::support::random::Random;

/// A name that only correct quoting survives.
const WEIRD: &str = "we\"ird'; drop table x; --";

/// Source columns: name, type, its OID, is an array, may be large.
type Described = (&'static str, &'static str, u32, bool, bool);

const COLUMNS: [Described; 8] = [
    ("k1", "bigint", 20, false, false),
    ("note", "text", 25, false, true),
    ("k2", "text", 25, false, true),
    ("doc", "jsonb", 3802, false, true),
    ("blob", "bytea", 17, false, true),
    ("amount", "numeric", 1700, false, true),
    ("at", "timestamp with time zone", 1184, false, false),
    ("flag", "boolean", 16, false, false),
];
const TAGS: Described = ("tags", "text[]", 1009, true, true);

fn input(&(name, stage_type, stage_type_oid, nested, toastable): &Described) -> Input {
    Input {
        name: name.to_owned(),
        from: InputFrom::Column(name.to_owned()),
        stage_type: stage_type.to_owned(),
        stage_type_oid,
        nested,
        toastable,
        mask: None,
        source_type: None,
        on_overflow: OnOverflow::Error,
    }
}

/// Every column as it is, under its own name.
fn plan(from: &str, target: &str, columns: &[Described], key: &[usize], is_full: bool) -> Plan {
    let mut inputs: Vec<Input> = columns.iter().map(input).collect();
    inputs.iter_mut().for_each(|input| input.toastable &= !is_full);
    let output = |(input, column): (usize, &Described)| Output {
        column: column.0.to_owned(),
        target_type: column.1.to_owned(),
        from: OutputFrom::Input { input, cast: false },
    };
    Plan {
        source: "src".to_owned(),
        sink: "dwh".to_owned(),
        from: TableName::new("public", from),
        target: TableName::new("dwh", target),
        outputs: columns.iter().enumerate().map(output).collect(),
        key: key.to_vec(),
        key_inputs: key.to_vec(),
        filter: None,
        filter_inputs: Vec::new(),
        mode: Mode::Upsert,
        delete: DeleteMode::Hard,
        deleted_column: None,
        shared_target: false,
        parents: Vec::new(),
        source_columns: columns.iter().map(|column| column.0.to_owned()).collect(),
        follows_columns: false,
        expected: Expected::default(),
        topic: None,
        inputs,
    }
}

/// What a mapping makes of the source table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variant {
    Plain,
    /// Array columns cannot stand in parameters: always by COPY into stages.
    Arrays,
    /// An expression over a large column, which the target also holds.
    Computed,
    Filtered,
    Soft,
    Ignoring,
    /// Compared with itself only, and with whole old rows only: what it keeps is not what the source has.
    InsertNew,
    /// Without a key, and so with whole old rows only.
    Keyless,
}

const VARIANTS: [Variant; 8] = [
    Variant::Plain,
    Variant::Arrays,
    Variant::Computed,
    Variant::Filtered,
    Variant::Soft,
    Variant::Ignoring,
    Variant::InsertNew,
    Variant::Keyless,
];

impl Variant {
    fn plan(self, is_full: bool) -> Plan {
        let mut columns = COLUMNS.to_vec();
        if self == Variant::Arrays {
            columns.push(TAGS);
        }
        if self == Variant::Keyless {
            // What is left of the rows may be equal.
            let mut plan = plan("src", WEIRD, &[COLUMNS[1], COLUMNS[5], COLUMNS[7]], &[], is_full);
            plan.key_inputs = vec![0, 1, 2];
            return plan;
        }
        // The key in another order than the columns.
        let mut plan = plan("src", WEIRD, &columns, &[2, 0], is_full);
        // One column has a name of its own.
        plan.outputs[1].column = WEIRD.to_owned();
        match self {
            Variant::Plain | Variant::Arrays | Variant::Keyless => {}
            Variant::Computed => plan.outputs.push(Output {
                column: "start".to_owned(),
                target_type: "character varying(7)".to_owned(),
                from: OutputFrom::Sql { text: "CAST((left(note, 5) || k1) AS varchar)".to_owned(), inputs: vec![0, 1] },
            }),
            Variant::Filtered => {
                plan.filter = Some("flag".to_owned());
                plan.filter_inputs = vec![7];
            }
            Variant::Soft => {
                plan.delete = DeleteMode::Soft;
                plan.deleted_column = Some("gone".to_owned());
            }
            Variant::Ignoring => plan.delete = DeleteMode::Ignore,
            Variant::InsertNew => plan.mode = Mode::InsertNew,
        }
        plan
    }

    /// What of the source the target is to hold; `None` where that is not a query over the source.
    fn expected(self) -> Option<String> {
        let names: Vec<_> = COLUMNS.iter().map(|column| column.0).collect();
        let columns = names.join(", ");
        match self {
            Variant::Plain => Some(format!("SELECT {columns} FROM src")),
            Variant::Arrays => Some(format!("SELECT {columns}, tags FROM src")),
            Variant::Computed => Some(format!("SELECT {columns}, left(note, 5) || k1 FROM src")),
            Variant::Filtered => Some(format!("SELECT {columns} FROM src WHERE flag")),
            Variant::Soft => Some(format!("SELECT {columns}, false FROM src")),
            Variant::Keyless => Some("SELECT note, amount, flag FROM src".to_owned()),
            Variant::Ignoring | Variant::InsertNew => None,
        }
    }
}

const SOURCE: &str = "
    CREATE TABLE src (dropped int, k1 bigint, note text, k2 text, doc jsonb, blob bytea, amount numeric, at timestamptz,
        flag boolean NOT NULL, tags text[], PRIMARY KEY (k1, k2));
    ALTER TABLE src ALTER note SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL, ALTER blob SET STORAGE EXTERNAL,
        ALTER tags SET STORAGE EXTERNAL, ALTER amount SET STORAGE EXTERNAL, DROP dropped;
    CREATE UNIQUE INDEX wide ON src (k1, k2, flag);
    CREATE PUBLICATION pub FOR TABLE src;
    CREATE SCHEMA dwh";

/// Creates the target of a plan anew.
async fn make_target(client: &Client, plan: &Plan) -> Result<()> {
    let quote = tailwater::catalog::quote_ident;
    let column = |output: &Output| format!("{} {}", quote(&output.column), output.target_type);
    let mut columns: Vec<_> = plan.outputs.iter().map(column).collect();
    columns.extend(plan.deleted_column.iter().map(|column| format!("{} boolean NOT NULL", quote(column))));
    let key: Vec<_> = plan.key.iter().map(|&output| quote(&plan.outputs[output].column)).collect();
    if !key.is_empty() {
        columns.push(format!("PRIMARY KEY ({})", key.join(", ")));
    }
    let name = plan.target.quoted();
    client
        .batch_execute(&format!("DROP TABLE IF EXISTS {name} CASCADE; CREATE TABLE {name} ({})", columns.join(", ")))
        .await?;
    Ok(())
}

/// A query's rows as sorted text.
async fn rows(client: &Client, query: &str) -> Result<Vec<String>> {
    let rows = client.query(&format!("SELECT q::text FROM ({query}) AS q ORDER BY 1"), &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn target_rows(client: &Client, plan: &Plan) -> Result<Vec<String>> {
    rows(client, &format!("TABLE {}", plan.target.quoted())).await
}

/// One random statement, or several that belong together.
fn dml(random: &mut Random, counter: &mut u32) -> String {
    *counter += 1;
    let key =
        |random: &mut Random| (random.below(3), ["a", "b", "it''s"][usize::try_from(random.below(3)).unwrap_or(0)]);
    let (one, other) = (key(random), key(random));
    let number = *counter;
    let text = |name: &str| format!("repeat(md5('{name}{number}'), 100)");
    let at = |(k1, k2): (u64, &str)| format!("k1 = {k1} AND k2 = '{k2}'");
    let mut set = vec![format!("at = '2020-01-01Z'::timestamptz + {number} * interval '1 minute'")];
    let values = [
        ("note", text("n")),
        ("doc", format!("to_jsonb({})", text("d"))),
        ("blob", format!("{}::bytea", text("b"))),
        ("amount", format!("{number}.50 + 10::numeric ^ {}", if random.one_in(2) { 9000 } else { 2 })),
        ("tags", format!("ARRAY[{}, NULL, 'x']", text("t"))),
    ];
    let toggles = random.one_in(4);
    if toggles {
        set.push("flag = NOT flag".to_owned());
    }
    for (name, value) in &values {
        // A row that comes to match a filter brings all its values along.
        if toggles || random.one_in(3) {
            set.push(format!("{name} = {}", if !toggles && random.one_in(6) { "NULL" } else { value }));
        }
    }
    let set = set.join(", ");
    let to = |(k1, k2): (u64, &str)| format!("k1 = {k1}, k2 = '{k2}'");
    let insert = format!(
        "INSERT INTO src (k1, k2, note, doc, blob, amount, at, flag, tags) SELECT {}, '{}', {}, {}, {}, {}, now(), {}, {} \
         ON CONFLICT DO NOTHING",
        one.0,
        one.1,
        values[0].1,
        values[1].1,
        values[2].1,
        values[3].1,
        random.one_in(2),
        values[4].1
    );
    match random.below(16) {
        0..5 => insert,
        5..9 => format!("UPDATE src SET {set} WHERE {}", at(one)),
        9..12 => format!(
            "UPDATE src SET {set}, {} WHERE {} AND NOT EXISTS (SELECT FROM src WHERE {})",
            to(other),
            at(one),
            at(other)
        ),
        12 if one != other => format!(
            "UPDATE src SET k1 = 99 WHERE {} AND EXISTS (SELECT FROM src WHERE {});
             UPDATE src SET {} WHERE {} AND EXISTS (SELECT FROM src WHERE k1 = 99);
             UPDATE src SET {} WHERE k1 = 99",
            at(one),
            at(other),
            to(one),
            at(other),
            to(other)
        ),
        12 | 13 => format!("DELETE FROM src WHERE {}", at(one)),
        14 => format!("DELETE FROM src WHERE {}; {insert}", at(one)),
        _ if random.one_in(4) => "TRUNCATE src".to_owned(),
        _ => "UPDATE src SET flag = flag".to_owned(),
    }
}

/// What a source sent, and what each variant's target is to hold after what had been written up to an LSN.
struct Recorded {
    messages: Vec<Vec<u8>>,
    after: BTreeMap<Lsn, Vec<Option<Vec<String>>>>,
}

async fn messages(client: &Client) -> Result<Vec<Vec<u8>>> {
    let sql = "SELECT data FROM pg_logical_slot_get_binary_changes('rec', NULL, NULL, 'proto_version', '1', \
               'publication_names', 'pub', 'binary', 'true')";
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn record(client: &Client, random: &mut Random, identity: &str) -> Result<Recorded> {
    client.batch_execute(&format!("TRUNCATE src; ALTER TABLE src REPLICA IDENTITY {identity}")).await?;
    client.query_one("SELECT pg_create_logical_replication_slot('rec', 'pgoutput')", &[]).await?;
    let mut after = BTreeMap::new();
    let mut counter = 0;
    for _ in 0..25 {
        let statements: Vec<_> = (0..=random.below(7)).map(|_| dml(random, &mut counter)).collect();
        client.batch_execute(&format!("BEGIN; {}; COMMIT", statements.join("; "))).await?;
        let mut held = Vec::new();
        for variant in VARIANTS {
            held.push(match variant.expected() {
                Some(query) => Some(rows(client, &query).await?),
                None => None,
            });
        }
        let lsn: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.get(0);
        after.insert(lsn.parse()?, held);
    }
    let messages = messages(client).await?;
    client.query_one("SELECT pg_drop_replication_slot('rec')", &[]).await?;
    Ok(Recorded { messages, after })
}

/// A sink with its plans, as the pipeline runs it.
struct Applying<'a> {
    cluster: &'a Cluster,
    plans: Vec<Arc<Plan>>,
    sink: PostgresSink,
    builder: Builder,
    applied: Vec<Lsn>,
}

impl<'a> Applying<'a> {
    async fn new(cluster: &'a Cluster, plans: Vec<Plan>, limits: BatchLimits) -> Result<Applying<'a>> {
        let client = cluster.connect("postgres").await?;
        client.batch_execute(state::STATE_SCHEMA).await?;
        client.execute("DELETE FROM tailwater.checkpoint", &[]).await?;
        let identity = SourceIdentity { system_identifier: 1, timeline: 1, ..SourceIdentity::default() };
        state::create_checkpoint(&client, "src", Lsn(1), &identity).await?;
        let plans: Vec<_> = plans.into_iter().map(Arc::new).collect();
        let sink = sink(cluster, &plans).await?;
        let mut builder = Builder::new(&plans, sink.durable().checkpoint(), limits);
        (0..plans.len()).for_each(|plan| builder.set_taking(plan, Taking::From(Lsn::ZERO)));
        Ok(Applying { cluster, plans, sink, builder, applied: Vec::new() })
    }

    /// Puts all messages through, taking a batch out whenever it is full, and at the end; `look` sees each commit.
    async fn run(&mut self, messages: &[Vec<u8>], mut look: impl AsyncFnMut(Lsn) -> Result<()>) -> Result<()> {
        let mut block = Vec::new();
        messages.iter().for_each(|message| frame::write_message(&mut block, message));
        let block = Bytes::from(block);
        let mut at = 0;
        loop {
            let taken = self.builder.push(&block, at)?;
            let batch = self.builder.take();
            self.sink.apply(&batch).await?;
            if let BatchEnd::Commit(checkpoint) = batch.end {
                self.applied.push(checkpoint.end_lsn);
                look(checkpoint.end_lsn).await?;
            }
            match taken {
                Taken::Until(rest) => at = rest,
                Taken::Whole => break,
            }
        }
        let client = self.cluster.connect("postgres").await?;
        let stored = read_checkpoint(&client, "src").await?.context("a checkpoint")?;
        ensure!(stored.checkpoint == self.builder.reached(), "the checkpoint is {:?}", stored.checkpoint);
        Ok(())
    }
}

async fn sink(cluster: &Cluster, plans: &[Arc<Plan>]) -> Result<PostgresSink> {
    let client = cluster.connect("postgres").await?;
    let stored = read_checkpoint(&client, "src").await?.context("a checkpoint")?;
    let setup = SinkSetup {
        name: "dwh".to_owned(),
        source: "src".to_owned(),
        plans: plans.to_vec(),
        epoch: stored.epoch,
        checkpoint: stored.checkpoint,
        mask_key: Arc::from(&b"salt"[..]),
    };
    Ok(PostgresSink::new(client, setup))
}

const ALL: BatchLimits = BatchLimits { rows: usize::MAX, bytes: usize::MAX, commits: u64::MAX };

#[tokio::test(flavor = "multi_thread")]
async fn target_equals_the_source_after_every_commit() -> Result<()> {
    let seed = Random::seed_from_environment();
    eprintln!("TAILWATER_SEED={seed}");
    let mut random = Random::new(seed);
    let cluster = Cluster::new("sink")?;
    let client = cluster.connect("postgres").await?;
    client.batch_execute(SOURCE).await?;
    for round in 0..6 {
        let identity = ["DEFAULT", "USING INDEX wide", "FULL"][round % 3];
        let recorded = record(&client, &mut random, identity).await?;
        for (place, variant) in VARIANTS.into_iter().enumerate() {
            if matches!(variant, Variant::InsertNew | Variant::Keyless) && identity != "FULL" {
                continue;
            }
            let mut results = Vec::new();
            // One change after the other, a few transactions at a time, everything at once.
            for (rows, commits) in [(1, 1), (7, 3), (usize::MAX, u64::MAX)] {
                let plan = variant.plan(identity == "FULL");
                make_target(&client, &plan).await?;
                let limits = BatchLimits { rows, commits, ..ALL };
                let mut applying = Applying::new(&cluster, vec![plan.clone()], limits).await?;
                let look = async |lsn: Lsn| {
                    let expected = recorded.after.range(lsn..).next().and_then(|(_, held)| held[place].clone());
                    let Some(expected) = expected else { return Ok(()) };
                    let mut held = target_rows(&client, &plan).await?;
                    held.retain(|row| variant != Variant::Soft || row.ends_with(",f)"));
                    ensure!(held == expected, "{variant:?} under {identity} differs at {lsn}");
                    Ok(())
                };
                let context = || format!("{variant:?} under {identity}, {rows} rows and {commits} commits at a time");
                applying.run(&recorded.messages, look).await.with_context(context)?;
                results.push(target_rows(&client, &plan).await?);
            }
            ensure!(results.iter().all(|rows| *rows == results[0]), "{variant:?} under {identity} depends on batches");
        }
    }
    Ok(())
}
