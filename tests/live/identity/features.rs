//! What a mapping may ask for, end to end, once each.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use crate::support::cluster::Cluster;
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, SOON};

const SOURCE: &str = "
    CREATE TABLE client (id int PRIMARY KEY, email text, is_test boolean NOT NULL, cents int,
        doubled int GENERATED ALWAYS AS (cents * 2) STORED, payload jsonb, title text);
    ALTER TABLE client REPLICA IDENTITY FULL;
    CREATE TABLE kept (id int PRIMARY KEY, title text, secret text);
    CREATE TABLE flagged (id int PRIMARY KEY, title text);
    INSERT INTO client (id, email, is_test, cents, payload, title) VALUES
        (1, 'a@b', false, 150, '{\"user\": {\"id\": 7, \"full name\": \"Ann\"}}', 'One'),
        (2, 'c@d', true, 250, '{\"user\": null}', 'Two');
    INSERT INTO kept VALUES (1, 'one'), (2, 'two'), (3, 'three');
    INSERT INTO flagged SELECT id, title FROM kept";

const SINK: &str = "
    CREATE SCHEMA mirror;
    CREATE TABLE mirror.client (client_id int PRIMARY KEY, email text, name text, euros numeric, twice int, user_id int,
        full_name text, kind text, origin text, op text, lsn pg_lsn, at timestamptz, xid bigint, synced timestamptz);
    CREATE TABLE mirror.kept (id int PRIMARY KEY, name text);
    CREATE TABLE mirror.flagged (id int PRIMARY KEY, title text, gone boolean NOT NULL DEFAULT false)";

const MAPPING: &str = r#"
source = "src"
sink = "dst"

[table."mirror.client"]
from = "public.client"
mask = { email = "sha256" }
where = "not is_test"

[table."mirror.client".columns]
client_id = "id"
email = "email"
name = "title"
euros = { sql = "cents / 100.0" }
twice = { sql = "cents * 2" }
user_id = { json = "payload.user.id" }
full_name = { json = 'payload.user."full name"' }
kind = { value = "client" }
origin = { meta = "source" }
op = { meta = "op" }
lsn = { meta = "commit_lsn" }
at = { meta = "commit_ts" }
xid = { meta = "xid" }
synced = { meta = "synced_at" }

[table."mirror.kept"]
from = "public.kept"
columns = "*"
rename = { title = "name" }
exclude = ["secret"]
delete = "ignore"

[table."mirror.flagged"]
from = "public.flagged"
columns = "*"
delete = "soft"
deleted_column = "gone"
"#;

/// One text per row, sorted.
async fn texts(client: &Client, sql: &str) -> Result<Vec<String>> {
    Ok(client.query(sql, &[]).await?.iter().map(|row| row.get(0)).collect())
}

const CLIENTS: &str = "SELECT concat_ws(' ', client_id, length(email), name, euros::numeric(9, 2), twice, user_id, \
                       full_name, kind, origin, op) FROM mirror.client ORDER BY 1";

#[tokio::test]
async fn every_way_to_fill_a_column_works_end_to_end() -> Result<()> {
    let (source, sink) = (Cluster::new("features-source")?, Cluster::new("features-sink")?);
    source.execute(DATABASE, SOURCE).await?;
    sink.execute(DATABASE, SINK).await?;
    let config = Home::pair_config(&source, &sink, DATABASE);
    let home = Home::new("features", &config, &[("mapping.toml", MAPPING)])?;
    let text = std::fs::read_to_string(home.path().join("tailwater.toml"))?;
    std::fs::write(home.path().join("tailwater.toml"), format!("mask_salt = \"a salt that is long enough\"\n{text}"))?;
    home.setup()?;
    let mut daemon = home.run()?;
    let (from, to) = (source.connect(DATABASE).await?, sink.connect(DATABASE).await?);
    daemon.wait_caught_up(&from, &to, SOON).await?;
    let clients = texts(&to, CLIENTS).await?;
    ensure!(clients == ["1 64 One 1.50 300 7 Ann client src snapshot"], "{clients:?}");
    let published =
        "SELECT array_to_string(attnames, ' ') FROM pg_publication_tables WHERE tablename IN ('client', 'kept')";
    let published = texts(&from, published).await?.concat();
    ensure!(!published.contains("secret"), "{published} are published");

    // A row stops matching, another comes to match; one of each kind of change to the others.
    from.batch_execute(
        "UPDATE client SET is_test = true WHERE id = 1; UPDATE client SET is_test = false WHERE id = 2;
         INSERT INTO client (id, email, is_test, cents, payload) VALUES (3, 'a@b', false, 1, '{\"user\": {\"id\": 9}}');
         DELETE FROM kept WHERE id = 1; UPDATE kept SET title = 'zwei' WHERE id = 2;
         DELETE FROM flagged WHERE id = 1; UPDATE flagged SET title = 'zwei' WHERE id = 2; UPDATE flagged SET id = 30 WHERE id = 3",
    )
    .await?;
    daemon.wait_caught_up(&from, &to, SOON).await?;
    let clients = texts(&to, CLIENTS).await?;
    ensure!(clients == ["2 64 Two 2.50 500 client src update", "3 64 0.01 2 9 client src insert"], "{clients:?}");
    let meta = "SELECT bool_and(lsn > '0/0' AND xid > 0 AND at <= synced AND at > now() - interval '1 h')::text FROM mirror.client";
    ensure!(texts(&to, meta).await? == ["true"], "what the daemon knows of a change");
    let masks: i64 = to.query_one("SELECT count(DISTINCT email) FROM mirror.client", &[]).await?.get(0);
    ensure!(masks == 2, "two addresses have {masks} masks");
    let kept = texts(&to, "SELECT concat_ws(' ', id, name) FROM mirror.kept ORDER BY id").await?;
    ensure!(kept == ["1 one", "2 zwei", "3 three"], "{kept:?}");
    let flagged = texts(&to, "SELECT concat_ws(' ', id, title, gone) FROM mirror.flagged ORDER BY id").await?;
    ensure!(flagged == ["1 one t", "2 zwei f", "30 three f"], "{flagged:?}");

    // A key that was deleted comes back.
    from.batch_execute("INSERT INTO flagged VALUES (1, 'new'); INSERT INTO kept VALUES (1, 'new')").await?;
    daemon.wait_caught_up(&from, &to, SOON).await?;
    let back = texts(&to, "SELECT concat_ws(' ', title, gone) FROM mirror.flagged WHERE id = 1").await?;
    ensure!(back == ["new f"], "{back:?}");
    // Truncate deletes softly, or is ignored.
    from.batch_execute("TRUNCATE flagged, kept").await?;
    daemon.wait_caught_up(&from, &to, SOON).await?;
    let counts = texts(
        &to,
        "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE gone), (SELECT count(*) FROM mirror.kept)) FROM mirror.flagged",
    )
    .await?;
    ensure!(counts == ["3 3 3"], "{counts:?}");
    daemon.terminate()
}
