//! Load on the source, from a seed: each workload is a task with a connection of its own, which it makes anew when the
//! source dies under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::cluster::{Cluster, connect};
use super::random::Random;

/// Every table of the workloads.
pub const TABLES: &[&str] =
    &["public.accounts_a", "public.accounts_b", "public.ledger", "public.churn", "public.churn_full"];

/// `churn.body` is stored out of line as soon as it is large, so that updates leave it out of the stream.
pub const SCHEMA: &str = "
    CREATE TABLE accounts_a (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE accounts_b (id int PRIMARY KEY, balance bigint NOT NULL);
    CREATE TABLE ledger (txn bigint, line int, amount numeric(12, 2), note text, at timestamptz, PRIMARY KEY (txn, line));
    CREATE TABLE churn (id int PRIMARY KEY, body text, extra text, number int NOT NULL);
    ALTER TABLE churn ALTER body SET STORAGE EXTERNAL;
    CREATE TABLE churn_full (LIKE churn INCLUDING ALL);
    ALTER TABLE churn_full REPLICA IDENTITY FULL";

/// The mapping that mirrors them into schema `mirror`.
pub fn mirror_mapping(tables: &[&str]) -> String {
    let mut text = String::from("source = \"src\"\nsink = \"dst\"\n");
    for table in tables {
        let name = table.rsplit('.').next().unwrap_or(table);
        text.push_str(&format!("\n[table.\"mirror.{name}\"]\nfrom = \"{table}\"\ncolumns = \"*\"\n"));
    }
    text
}

const ACCOUNTS: u32 = 100;
/// What all accounts hold together, for ever.
pub const BANK_TOTAL: i64 = 2 * 100 * 1_000;
pub const BANK_TOTAL_SQL: &str = "SELECT ((SELECT sum(balance) FROM mirror.accounts_a) + \
                                  (SELECT sum(balance) FROM mirror.accounts_b))::bigint";

pub const SEED_SQL: &str = "
    BEGIN;
    INSERT INTO accounts_a SELECT id, 1000 FROM generate_series(1, 100) id;
    INSERT INTO accounts_b SELECT id, 1000 FROM generate_series(1, 100) id;
    COMMIT;
    INSERT INTO churn SELECT id, repeat(md5(id::text), id), 'extra', 0 FROM generate_series(1, 200) id;
    INSERT INTO churn_full SELECT * FROM churn;
    INSERT INTO ledger SELECT 0, line, line / 100.0, 'first', '2024-02-29 12:00Z' FROM generate_series(1, 2000) line";

/// What the workloads cannot be sure to do in a short time, in one transaction.
pub const EVERY_KIND_OF_CHANGE: &str = "
    BEGIN;
    UPDATE churn SET id = 1000 WHERE id = 150;
    UPDATE churn SET id = 150 WHERE id = 151;
    UPDATE churn SET id = 151 WHERE id = 1000;
    UPDATE churn_full SET id = 2000, number = 5 WHERE id = 199;
    UPDATE churn SET number = number + 1 WHERE id > 180;
    UPDATE churn SET body = NULL WHERE id = 190;
    DELETE FROM churn WHERE id = 191;
    INSERT INTO churn VALUES (191, repeat('again', 2000), NULL, 0);
    DELETE FROM churn_full WHERE id < 10;
    TRUNCATE ledger;
    INSERT INTO ledger VALUES (1, 1, 'NaN', E'tab\\t', 'infinity');
    COMMIT";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Workload {
    /// Transfers between the two tables of accounts.
    Bank,
    /// Transactions of 1 to 500 rows with their number, some by COPY, whose rows all share one LSN; old ones are deleted.
    Append,
    /// Key changes and swaps, delete and insert again, out-of-line values set, unset and unchanged, truncate.
    Churn(&'static str),
}

impl Workload {
    pub const ALL: &[Workload] =
        &[Workload::Bank, Workload::Bank, Workload::Append, Workload::Churn("churn"), Workload::Churn("churn_full")];

    /// The pause between two transactions: the load must stay below what a busy small machine carries, or the daemon
    /// would never catch up between kills.
    fn pause(self) -> Duration {
        match self {
            Workload::Bank => Duration::from_millis(4),
            Workload::Append => Duration::from_millis(25),
            Workload::Churn(_) => Duration::from_millis(10),
        }
    }

    async fn transaction(self, client: &mut Client, random: &mut Random) -> Result<()> {
        match self {
            Workload::Bank => transfer(client, random).await,
            Workload::Append => append(client, random).await,
            Workload::Churn(table) => churn(client, random, table).await,
        }
    }
}

/// Running workloads.
pub struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(source: &Cluster, database: &str, workloads: &[Workload], random: &mut Random) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let commits = Arc::new(AtomicU64::new(0));
        let task = |workload: &Workload| {
            let url = source.socket_url(database);
            tokio::spawn(keep_going(*workload, url, random.fork(), Arc::clone(&stop), Arc::clone(&commits)))
        };
        let tasks = workloads.iter().map(task).collect();
        Load { stop, commits, tasks }
    }

    /// How many transactions returned to their client as committed.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Lets every workload finish its transaction. The source must be up.
    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let commits = self.commits();
        for task in self.tasks {
            task.await.context("a workload panicked")?;
        }
        Ok(commits)
    }
}

async fn keep_going(
    workload: Workload,
    url: String,
    mut random: Random,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
) {
    let mut client = None;
    while !stop.load(Ordering::Relaxed) {
        let Some(open) = &mut client else {
            client = connect(&url).await.ok();
            if client.is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            continue;
        };
        match workload.transaction(open, &mut random).await {
            Ok(()) => {
                commits.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) if open.is_closed() => client = None,
            Err(err) => {
                // The source is just dying; or the workload itself is wrong, which must be seen.
                eprintln!("workload {workload:?}: {err:#}");
                client = None;
            }
        }
        tokio::time::sleep(workload.pause()).await;
    }
}

async fn transfer(client: &mut Client, random: &mut Random) -> Result<()> {
    let amount = i64::try_from(random.below(50))? - 25;
    let (from, to) = (random.id(ACCOUNTS), random.id(ACCOUNTS));
    let transaction = client.transaction().await?;
    transaction.execute("UPDATE accounts_a SET balance = balance - $1 WHERE id = $2", &[&amount, &from]).await?;
    transaction.execute("UPDATE accounts_b SET balance = balance + $1 WHERE id = $2", &[&amount, &to]).await?;
    Ok(transaction.commit().await?)
}

async fn append(client: &mut Client, random: &mut Random) -> Result<()> {
    let rows = i32::try_from(if random.one_in(8) { random.below(500) + 1 } else { random.below(20) + 1 })?;
    let transaction = client.transaction().await?;
    let number: i64 = transaction.query_one("SELECT coalesce(max(txn), 0) + 1 FROM ledger", &[]).await?.get(0);
    if random.one_in(2) {
        let copy = "COPY ledger (txn, line, amount, note, at) FROM STDIN";
        let sink = transaction.copy_in::<_, Bytes>(copy).await?;
        futures_util::pin_mut!(sink);
        let line = |line| format!("{number}\t{line}\t{line}.50\tby \\\\ COPY\t2024-02-29 12:00:00.123456+02\n");
        sink.send(Bytes::from((1..=rows).map(line).collect::<String>())).await?;
        sink.finish().await?;
    } else {
        let sql = "INSERT INTO ledger SELECT $1, line, line / 100.0, nullif(md5(line::text), ''), now() \
                   FROM generate_series(1, $2) line";
        transaction.execute(sql, &[&number, &rows]).await?;
    }
    // Keeps the table small enough to be read whole at every look of the checker.
    if random.one_in(20) {
        transaction.execute("DELETE FROM ledger WHERE txn < $1", &[&(number - 150)]).await?;
    }
    Ok(transaction.commit().await?)
}

/// The keys of a churned table; the one above is the temporary key of a swap.
const CHURN_KEYS: u32 = 300;
const SPARE_KEY: u32 = 1_000_000;

async fn churn(client: &mut Client, random: &mut Random, table: &str) -> Result<()> {
    let mut sql = String::from("BEGIN;\n");
    for _ in 0..=random.below(4) {
        if random.one_in(6) {
            // What a savepoint takes back must not arrive.
            sql.push_str(&format!("SAVEPOINT taken_back;\n{};\nROLLBACK TO taken_back;\n", step(random, table)));
        }
        sql.push_str(&step(random, table));
        sql.push_str(";\n");
    }
    sql.push_str(if random.one_in(15) { "ROLLBACK" } else { "COMMIT" });
    Ok(client.batch_execute(&sql).await?)
}

fn step(random: &mut Random, table: &str) -> String {
    let (one, two) = (random.id(CHURN_KEYS), random.id(CHURN_KEYS));
    let number = random.below(1_000_000);
    // From 32 bytes to 12 kB: in line, and out of line.
    let longest = if random.one_in(2) { 400 } else { 8 };
    let body = format!("repeat(md5('{number}'), {})", 1 + random.below(longest));
    let free = format!("NOT EXISTS (SELECT FROM {table} WHERE id = {two})");
    match random.below(64) {
        0..10 => format!("UPDATE {table} SET number = {number} WHERE id = {one}"),
        10..16 => format!("UPDATE {table} SET body = {body} WHERE id = {one}"),
        16..19 => format!("UPDATE {table} SET body = NULL WHERE id = {one}"),
        19..22 => {
            format!("UPDATE {table} SET extra = CASE WHEN extra IS NULL THEN E'a\\t\\\\b\\n' END WHERE id = {one}")
        }
        22..28 => format!("UPDATE {table} SET id = {two} WHERE id = {one} AND {free}"),
        28..31 => format!("UPDATE {table} SET id = {two}, body = {body} WHERE id = {one} AND {free}"),
        31..38 => format!(
            "UPDATE {table} SET id = {SPARE_KEY} WHERE id = {one}; UPDATE {table} SET id = {one} WHERE id = {two}; \
             UPDATE {table} SET id = {two} WHERE id = {SPARE_KEY}"
        ),
        38..43 => format!(
            "DELETE FROM {table} WHERE id = {one}; INSERT INTO {table} VALUES ({one}, {body}, 'again', {number})"
        ),
        43..46 => format!("DELETE FROM {table} WHERE id = {one}"),
        46..63 => format!("INSERT INTO {table} VALUES ({one}, {body}, NULL, {number}) ON CONFLICT DO NOTHING"),
        _ if random.one_in(6) => format!("TRUNCATE {table}"),
        _ => format!("UPDATE {table} SET number = number + 1"),
    }
}
