//! The two backlogs: plain inserts and updates of one table (A), and TPC-B as pgbench writes it (B).

use anyhow::{Context, Result, ensure};
use tokio::sync::Mutex;
use tokio_postgres::Client;

use tailwater::lsn::Lsn;

use crate::Part;
use crate::clickhouse::Stage;
use crate::drain::Way;
use crate::kafka;
use crate::servers::{
    Servers, TAILWATER_SLOT, copy_pipe, drop_database, drop_slot, keep_as_template, program, terminate,
};
use crate::support::daemon::{Home, flushed};
use crate::support::process::run;

/// Ten columns, about 155 bytes a row.
pub const ORDERS: &str = "CREATE TABLE orders (
    id bigint PRIMARY KEY, customer_id int NOT NULL, product_id int NOT NULL, quantity smallint NOT NULL,
    price numeric(12, 2) NOT NULL, status text NOT NULL, is_paid bool NOT NULL, note text NOT NULL,
    created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)";

/// The columns' values of order `i`.
pub const ORDER: &str = "i, (i::bigint * 7919 % 100000)::int, (i::bigint * 104729 % 5000)::int, (i % 9 + 1)::smallint, \
    (i % 100000) / 100.0, 'placed', false, repeat(md5(i::text), 2), \
    '2024-01-01 00:00Z'::timestamptz + i * interval '1 second', '2024-01-01 00:00Z'::timestamptz + i * interval '1 second'";

/// Transactions of 100 statements each, in one session: as small on the wire as if clients had sent them.
const WRITE_ORDERS: &str = "
CREATE PROCEDURE insert_orders(count bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..count LOOP
        INSERT INTO orders VALUES (ORDER);
        IF i % 100 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$;
CREATE PROCEDURE update_orders(count bigint, among bigint) LANGUAGE plpgsql AS $$
BEGIN
    FOR i IN 1..count LOOP
        UPDATE orders SET status = 'shipped', is_paid = true, updated_at = updated_at + interval '1 day'
        WHERE id = i::bigint * 7919 % among + 1;
        IF i % 100 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$";

/// Without a key; rows are only inserted.
pub const HISTORY: &str = "pgbench_history";

/// pgbench's scale: a million accounts, 100 tellers, 10 branches.
const PGBENCH_SCALE: u32 = 10;
const PGBENCH_CLIENTS: u64 = 4;

pub struct Backlog {
    pub part: Part,
    pub name: &'static str,
    pub title: String,
    pub database: &'static str,
    pub changes: u64,
    transactions: u64,
    tables: &'static [&'static str],
    /// What a sink that hashes otherwise is compared by.
    pub sums: &'static [(&'static str, &'static [&'static str])],
    mapping: &'static str,
    /// What tailwater's drain is to take of native's time, and of reading alone.
    pub aims: (f64, f64),
}

impl Backlog {
    pub fn orders(scale: f64) -> Backlog {
        let inserts = hundreds(1_000_000.0 * scale);
        let updates = inserts / 200 * 100;
        Backlog {
            part: Part::A,
            name: "A",
            title: format!("{inserts} single-row inserts, then {updates} updates, 100 a transaction"),
            database: "backlog_a",
            changes: inserts + updates,
            transactions: inserts,
            tables: &["orders"],
            sums: &[("orders", &["id", "customer_id", "quantity", "length(status)"])],
            mapping: "[table.\"public.orders\"]\nfrom = \"public.orders\"\ncolumns = \"*\"\n",
            aims: (0.6, 1.15),
        }
    }

    pub fn tpcb(scale: f64) -> Backlog {
        let transactions = hundreds(200_000.0 * scale);
        Backlog {
            part: Part::B,
            name: "B",
            title: format!("{transactions} TPC-B transactions of 3 updates and an insert"),
            database: "backlog_b",
            changes: transactions * 4,
            transactions,
            tables: &["pgbench_accounts", "pgbench_branches", "pgbench_tellers", HISTORY],
            sums: &[
                ("pgbench_accounts", &["aid", "abalance"]),
                ("pgbench_branches", &["bid", "bbalance"]),
                ("pgbench_tellers", &["tid", "tbalance"]),
                (HISTORY, &["aid", "delta"]),
            ],
            mapping: "[table.\"public.pgbench_accounts\"]\nfrom = \"public.pgbench_accounts\"\ncolumns = \"*\"\n\n\
                      [table.\"public.pgbench_branches\"]\nfrom = \"public.pgbench_branches\"\ncolumns = \"*\"\n\n\
                      [table.\"public.pgbench_tellers\"]\nfrom = \"public.pgbench_tellers\"\ncolumns = \"*\"\n\n\
                      [table.\"public.pgbench_history\"]\nfrom = \"public.pgbench_history\"\ncolumns = \"*\"\n\
                      mode = \"append\"\n",
            aims: (0.45, 1.15),
        }
    }

    pub fn mapping(&self) -> String {
        format!(
            "source = \"src\"\nsink = \"dst\"\n\n{}\n[table.\"public.marker\"]\nfrom = \"public.marker\"\ncolumns = \"*\"\n",
            self.mapping
        )
    }

    /// The same tables for Kafka.
    pub fn topics(&self) -> String {
        let tables: Vec<String> = self.tables.iter().map(|table| format!("\"public.{table}\"")).collect();
        let key = self.tables.contains(&HISTORY).then_some("key = { \"public.pgbench_history\" = [\"aid\"] }\n");
        kafka::mapping(&format!("{}, \"public.marker\"", tables.join(", ")), key.unwrap_or_default())
    }

    /// Brings all sinks to where the backlog begins, keeps them as templates, and writes the backlog.
    pub async fn prepare<'a>(&'a self, servers: &Servers, ways: &[Way]) -> Result<Written<'a>> {
        eprintln!("bench: writing backlog {}", self.name);
        let database = self.database;
        for cluster in [&servers.source, &servers.native, &servers.tailwater] {
            drop_database(cluster, database).await?;
            cluster.create_database(database).await?;
        }
        self.make_tables(servers).await?;
        servers.source.execute(database, "CREATE TABLE marker (id int PRIMARY KEY)").await?;
        servers.native.execute(database, "CREATE TABLE marker (id int PRIMARY KEY)").await?;
        let source = servers.source.connect(database).await?;
        let tables = self.tables.join(", ");
        source.batch_execute(&format!("CREATE PUBLICATION native FOR TABLE {tables}, marker")).await?;
        // Before tailwater's own slot, so that it holds all that any of them is to stream.
        source.query("SELECT pg_create_logical_replication_slot('retained', 'pgoutput')", &[]).await?;
        let home = servers.home(database, &self.mapping())?;
        home.setup()?;
        let mut daemon = home.run()?;
        let sink = servers.tailwater.connect(database).await?;
        daemon.wait_caught_up(&source, &sink, crate::drain::DEADLINE).await?;
        terminate(daemon)?;
        drop(sink);
        servers.tailwater.execute(database, "VACUUM ANALYZE").await?;
        keep_as_template(&servers.tailwater, database).await?;
        if self.part == Part::B {
            for table in self.tables {
                copy_pipe(&servers.source.socket_url(database), &servers.native.socket_url(database), table)?;
            }
        }
        servers.native.execute(database, "VACUUM ANALYZE").await?;
        keep_as_template(&servers.native, database).await?;

        let clickhouse =
            if ways.contains(&Way::ClickHouse) { Some(Stage::prepare(servers, self).await?) } else { None };
        let kafka = if ways.contains(&Way::Kafka) { Some(kafka::Stage::prepare(servers, self).await?) } else { None };
        self.write(servers, &source).await?;
        source.execute("INSERT INTO marker VALUES (1)", &[]).await?;
        let end = flushed(&source).await?;
        servers.settle().await?;
        let digest = self.digest(&source).await?;
        let stream_bytes = stream_bytes(&source).await?;
        Ok(Written {
            backlog: self,
            home,
            end,
            stream_bytes,
            digest,
            clickhouse: Mutex::new(clickhouse),
            kafka: Mutex::new(kafka),
        })
    }

    /// pgbench makes its tables itself, on either side; only the source's are filled.
    async fn make_tables(&self, servers: &Servers) -> Result<()> {
        for (cluster, steps) in [(&servers.source, "dtgvp"), (&servers.native, "dtp")] {
            if self.part == Part::A {
                cluster.execute(self.database, ORDERS).await?;
                continue;
            }
            let url = cluster.socket_url(self.database);
            run(program("pgbench")?.args(["-i", "-q", "-I", steps, "-s", &PGBENCH_SCALE.to_string()]).arg(url))?;
            // It has no key; tailwater asks that its updates and deletes could be told, although there are none.
            cluster.execute(self.database, "ALTER TABLE pgbench_history REPLICA IDENTITY FULL").await?;
        }
        Ok(())
    }

    async fn write(&self, servers: &Servers, source: &Client) -> Result<()> {
        if self.part == Part::A {
            source.batch_execute(&WRITE_ORDERS.replace("ORDER)", &format!("{ORDER})"))).await?;
            let inserts = self.transactions;
            source.batch_execute(&format!("CALL insert_orders({inserts})")).await?;
            let updates = self.changes - inserts;
            source.batch_execute(&format!("CALL update_orders({updates}, {inserts})")).await?;
            return Ok(());
        }
        let each = (self.transactions / PGBENCH_CLIENTS).to_string();
        let clients = PGBENCH_CLIENTS.to_string();
        let url = servers.source.socket_url(self.database);
        run(program("pgbench")?
            .args(["-n", "-M", "prepared", "-c", &clients, "-j", "2", "-t", &each])
            .arg(url)
            .env("PGOPTIONS", "-c synchronous_commit=off"))
        .context("pgbench")?;
        Ok(())
    }

    /// Count and sum of hashes of every table.
    async fn digest(&self, client: &Client) -> Result<String> {
        let parts: Vec<String> = self
            .tables
            .iter()
            .map(|table| format!("(SELECT count(*) || ':' || coalesce(sum(hash_record(t)::bigint), 0) FROM {table} t)"))
            .collect();
        let sql = format!("SELECT concat_ws(' ', {})", parts.join(", "));
        Ok(client.query_one(&sql, &[]).await?.get(0))
    }
}

/// The messages that a reader is sent, without what frames them.
async fn stream_bytes(source: &Client) -> Result<f64> {
    let sql = "SELECT sum(length(data))::float8 FROM pg_logical_slot_peek_binary_changes('retained', NULL, NULL, \
               'proto_version', '1', 'publication_names', 'native', 'binary', 'true')";
    Ok(source.query_one(sql, &[]).await?.get(0))
}

/// A whole number of transactions of 100 changes, at least two.
fn hundreds(count: f64) -> u64 {
    (count / 100.0).round().max(2.0) as u64 * 100
}

/// A backlog that waits at the source.
pub struct Written<'a> {
    pub backlog: &'a Backlog,
    pub home: Home,
    /// Where reading it ends.
    pub end: Lsn,
    /// What a reader is sent until then.
    pub stream_bytes: f64,
    digest: String,
    /// If they are among the ways.
    pub clickhouse: Mutex<Option<Stage>>,
    pub kafka: Mutex<Option<kafka::Stage>>,
}

impl Written<'_> {
    /// Fails unless a sink holds what the source does.
    pub async fn verify(&self, sink: &Client) -> Result<()> {
        let found = self.backlog.digest(sink).await?;
        ensure!(found == self.digest, "the source holds {}, the sink {found}", self.digest);
        Ok(())
    }

    /// Lets the source's WAL go.
    pub async fn forget(&self, servers: &Servers) -> Result<()> {
        let source = servers.source.connect(self.backlog.database).await?;
        for slot in ["retained", "native", "reader", TAILWATER_SLOT] {
            drop_slot(&source, slot).await?;
        }
        Ok(())
    }
}
