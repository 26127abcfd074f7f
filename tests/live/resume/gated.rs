//! A copy whose chunks are let into the target as the test wishes, and a writer at its source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::{Daemon, Home};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::wait::{Look, eventually};

/// Seven rows a block, so that the table has seven chunks; every twentieth has a value that is stored out of line, which
/// updates leave out of the stream.
pub const ROWS: i64 = 100_000;
pub const SOURCE: &str = "
    CREATE TABLE big (id int PRIMARY KEY, body text, note text, number int NOT NULL) WITH (autovacuum_enabled = off);
    ALTER TABLE big ALTER body SET STORAGE EXTERNAL, ALTER note SET STORAGE PLAIN;
    INSERT INTO big SELECT id, CASE WHEN id % 20 = 1 THEN repeat(md5(id::text), 100) END, repeat('n', 1000), id
    FROM generate_series(1, 100000) id";

pub const MAPPING: &str =
    "source = \"src\"\nsink = \"dst\"\n\n[table.\"mirror.big\"]\nfrom = \"public.big\"\ncolumns = \"*\"\n";

/// Lets no more than so many chunks into the target.
const GATE: &str = "
    CREATE TABLE gate AS SELECT 0 AS chunks;
    CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        -- One at a time, and each sees those before it: never one too many.
        PERFORM pg_advisory_xact_lock(1);
        WHILE (SELECT count(*) FROM tailwater.copy_chunk) >= (SELECT chunks FROM public.gate) LOOP
            PERFORM pg_sleep(0.01);
        END LOOP;
        RETURN NULL;
    END $$;
    CREATE TRIGGER gate BEFORE INSERT ON mirror.big EXECUTE FUNCTION gate()";

/// What is copied, where it differs from the usual.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub source: &'static str,
    /// Lines of the mapping's section.
    pub lines: &'static str,
    /// Further sections.
    pub sections: &'static str,
    /// What of the source the target is to hold, and what of the target that is.
    pub truth: &'static str,
    pub held: &'static str,
}

pub const USUAL: Recipe = Recipe { source: SOURCE, lines: "", sections: "", truth: "big", held: "mirror.big" };

pub struct Gated {
    recipe: Recipe,
    pub source: Cluster,
    pub sink: Cluster,
    pub home: Home,
    pub client: Client,
    pub held: Client,
}

impl Gated {
    pub async fn new(name: &str, version: Version) -> Result<Gated> {
        Gated::make(name, version, USUAL).await
    }

    pub async fn make(name: &str, version: Version, recipe: Recipe) -> Result<Gated> {
        let source = Cluster::start(&format!("{name}-source"), version, Options::default())?;
        let sink = Cluster::new(&format!("{name}-sink"))?;
        source.execute(DATABASE, recipe.source).await?;
        sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        let home =
            Home::pair(name, &source, &sink, DATABASE, &format!("{MAPPING}{}\n{}", recipe.lines, recipe.sections))?;
        home.setup()?;
        sink.execute(DATABASE, GATE).await?;
        let (client, held) = (source.connect(DATABASE).await?, sink.connect(DATABASE).await?);
        Ok(Gated { recipe, source, sink, home, client, held })
    }

    /// Opens the gate for so many chunks and waits until they are in; the rows that came with them.
    pub async fn let_in(&self, chunks: i32) -> Result<i64> {
        self.held.execute("UPDATE gate SET chunks = $1", &[&chunks]).await?;
        eventually(SOON, &format!("{chunks} chunks are in"), async || {
            let sql = "SELECT count(*)::int, coalesce(sum(rows), 0)::bigint FROM tailwater.copy_chunk";
            let row = self.held.query_one(sql, &[]).await?;
            let (found, rows): (i32, i64) = (row.get(0), row.get(1));
            Ok(if found >= chunks { Look::Yes(rows) } else { Look::NotYet(format!("{found}")) })
        })
        .await
    }

    /// Kills the daemon; what it has at the sink waits at the gate and would not notice.
    pub async fn kill(&self, daemon: &mut Daemon) -> Result<()> {
        daemon.kill9();
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tailwater copy'";
        self.held.execute(sql, &[]).await?;
        Ok(())
    }

    /// Copies so many chunks, then kills the daemon, whose checkpoint is past the copy's snapshot by then.
    pub async fn cut_short(&self, chunks: i32) -> Result<()> {
        let mut daemon = self.home.run()?;
        self.let_in(chunks).await?;
        eventually(SOON, "the checkpoint has passed the snapshot", async || {
            let sql =
                "SELECT (SELECT min(end_lsn) FROM tailwater.checkpoint) > (SELECT max(lsn) FROM tailwater.table_state)";
            let passed: bool = self.held.query_one(sql, &[]).await?.get(0);
            Ok(if passed { Look::Yes(()) } else { Look::NotYet("not yet".to_owned()) })
        })
        .await?;
        self.kill(&mut daemon).await
    }

    pub async fn rows_in_chunks(&self) -> Result<i64> {
        let sql = "SELECT coalesce(sum(rows), 0)::bigint FROM tailwater.copy_chunk";
        Ok(self.held.query_one(sql, &[]).await?.get(0))
    }

    /// Opens the gate for good and waits until the table streams and equals the source's.
    pub async fn complete(&self, daemon: &mut Daemon) -> Result<()> {
        self.held.execute("UPDATE gate SET chunks = 1000000", &[]).await?;
        daemon.wait_caught_up(&self.client, &self.held, SOON).await?;
        self.assert_equal().await
    }

    pub async fn assert_equal(&self) -> Result<()> {
        let (truth, held) =
            (digests(&self.client, self.recipe.truth).await?, digests(&self.held, self.recipe.held).await?);
        let differ: Vec<_> = truth.iter().filter(|row| !held.contains(row)).take(3).collect();
        ensure!(truth == held, "the target differs, of the source's rows by {differ:?} among others");
        let left: i64 = self.held.query_one("SELECT count(*) FROM tailwater.copy_chunk", &[]).await?.get(0);
        ensure!(left == 0, "{left} chunks are remembered after the copy");
        Ok(())
    }
}

/// A digest for each hundred keys.
async fn digests(client: &Client, table: &str) -> Result<Vec<(i32, i64, String)>> {
    let sql = format!(
        "SELECT id / 100, count(*), md5(string_agg(concat_ws('|', id, md5(body), md5(note), number), ',' ORDER BY id)) \
         FROM {table} GROUP BY 1 ORDER BY 1"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

pub fn copied(daemon: &Daemon) -> Result<i64> {
    Ok(daemon.metric("tailwater_snapshot_rows_total")? as i64)
}

/// A writer that never rests: values that are not sent, keys that change, rows that go and come.
pub struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<u64>>,
}

impl Writer {
    pub async fn start(source: &Cluster, mut random: Random) -> Result<Writer> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (stop.clone(), source.connect(DATABASE).await?);
        let task = tokio::spawn(async move {
            let mut commits = 0;
            while !stopped.load(Ordering::Relaxed) {
                client.batch_execute(&transaction(&mut random)).await?;
                commits += 1;
            }
            Ok(commits)
        });
        Ok(Writer { stop, task })
    }

    pub async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("the writer panicked")?
    }
}

fn transaction(random: &mut Random) -> String {
    let mut sql = String::from("BEGIN;");
    for _ in 0..=random.below(3) {
        // Half of it on few keys, so that much happens to the same rows.
        let range = if random.one_in(2) { 300 } else { 100_000 };
        let (one, two) = (random.id(range), random.id(range));
        let number = random.below(1_000_000);
        let free = format!("NOT EXISTS (SELECT FROM big WHERE id = {two})");
        sql.push_str(&match random.below(10) {
            0..5 => format!("UPDATE big SET number = {number} WHERE id = {one};"),
            5 => format!("UPDATE big SET id = {two} WHERE id = {one} AND {free};"),
            6 => format!(
                "UPDATE big SET id = -1 WHERE id = {one}; UPDATE big SET id = {one} WHERE id = {two}; \
                 UPDATE big SET id = {two} WHERE id = -1;"
            ),
            7 => format!("DELETE FROM big WHERE id = {one};"),
            8 => format!(
                "SAVEPOINT s; INSERT INTO big VALUES ({two}, repeat(md5('{number}'), 90), 'new', {number}) \
                 ON CONFLICT DO NOTHING; RELEASE s;"
            ),
            _ => format!("UPDATE big SET body = repeat(md5('{number}'), 80) WHERE id = {one};"),
        });
    }
    sql.push_str("COMMIT");
    sql
}
