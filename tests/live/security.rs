//! What the daemon may do, what it shows, and whom it believes: rights, secrets, TLS.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tailwater::postgres::url::PgUrl;
use tailwater::wire::ReplicationConnection;
use tokio_postgres::Client;

use crate::support::certificates::Certificates;
use crate::support::cluster::{Cluster, Options, connect};
use crate::support::daemon::{Daemon, Home};
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::random::Random;
use crate::support::scratch::Scratch;
use crate::support::wait::{Look, eventually};
use crate::support::workload::mirror_mapping;

const SOURCE_GRANTS: &str = include_str!("../../deploy/grants/source.sql");
const WAREHOUSE_GRANTS: &str = include_str!("../../deploy/grants/warehouse.sql");
const SOURCE_SCHEMA: &str = include_str!("../../schemas/source/lessons.sql");
const SOURCE_DIGEST: &str = include_str!("../../schemas/source/lessons_digest.sql");
const WAREHOUSE_SCHEMA: &str = include_str!("../../schemas/postgres/lessons.sql");
const WAREHOUSE_DIGEST: &str = include_str!("../../schemas/postgres/lessons_digest.sql");
const WAREHOUSE_CHECK: &str = include_str!("../../schemas/postgres/lessons_check.sql");
const LESSONS: &str = include_str!("../../mappings/lessons.toml");

/// The lessons model in databases that belong to a role `owner`, and a daemon's configuration with role `tailwater`.
struct School {
    source: Cluster,
    warehouse: Cluster,
    home: Home,
}

impl School {
    async fn start(name: &str) -> Result<School> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default().scram())?;
        let warehouse = Cluster::start(&format!("{name}-warehouse"), Version::V15, Options::default().scram())?;
        for (cluster, database) in [(&source, "lms"), (&warehouse, "dwh")] {
            let sql =
                "CREATE ROLE owner LOGIN REPLICATION PASSWORD 'owned'; CREATE ROLE tailwater LOGIN PASSWORD 'tails'";
            cluster.execute("postgres", sql).await?;
            cluster.execute("postgres", &format!("CREATE DATABASE {database} OWNER owner")).await?;
        }
        owner(&source, "lms").await?.batch_execute(SOURCE_SCHEMA).await?;
        owner(&source, "lms").await?.batch_execute("SELECT lessons_generate(3)").await?;
        source.execute("lms", SOURCE_GRANTS).await?;
        let config = format!(
            "[source.lms]\nurl = \"{}\"\npassword = \"tails\"\nheartbeat = \"500ms\"\n\n\
             [sink.warehouse]\nkind = \"postgres\"\nurl = \"{}\"\npassword = \"tails\"\nidle_record = \"200ms\"\n",
            source.url_as("tailwater", "lms"),
            warehouse.url_as("tailwater", "dwh")
        );
        let home = Home::new(name, &config, &[("lessons.toml", LESSONS)])?;
        Ok(School { source, warehouse, home })
    }

    /// `tailwater setup` with the owner's address instead of the daemon's at some ends.
    fn set_up_as_owner(&self, ends: &[&str], arguments: &[&str]) -> Result<()> {
        let addresses = [
            ("source", "TAILWATER__SOURCE__LMS__", self.source.url_as("owner", "lms")),
            ("sink", "TAILWATER__SINK__WAREHOUSE__", self.warehouse.url_as("owner", "dwh")),
        ];
        let mut environment = Vec::new();
        for (_, prefix, url) in addresses.iter().filter(|(end, ..)| ends.contains(end)) {
            environment.push((format!("{prefix}URL"), url.clone()));
            environment.push((format!("{prefix}PASSWORD"), "owned".to_owned()));
        }
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let outcome = self.home.command_with(arguments, &environment)?;
        ensure!(outcome.status.success(), "{}{}", outcome.stdout, outcome.stderr);
        Ok(())
    }

    /// Copies, follows the school's staff for a while, and compares everything, views too.
    async fn teach(&self) -> Result<()> {
        self.home.must(&["check"])?;
        let mut daemon = self.home.run()?;
        let (source, warehouse) = (owner(&self.source, "lms").await?, self.warehouse.connect("dwh").await?);
        daemon.wait_caught_up(&source, &warehouse, SOON).await?;
        for seed in 1..=40 {
            source.batch_execute(&format!("SELECT lessons_live_step({seed})")).await?;
        }
        daemon.wait_caught_up(&source, &warehouse, SOON).await?;
        self.compare(&source, &warehouse).await?;
        // Rows of a truncated table are deleted, since nothing more is granted.
        source.batch_execute("TRUNCATE stream_module_lesson").await?;
        daemon.wait_caught_up(&source, &warehouse, SOON).await?;
        self.compare(&source, &warehouse).await?;
        ensure!(!daemon.log().contains("ERROR"), "{}", daemon.log());
        daemon.terminate()
    }

    async fn compare(&self, source: &Client, warehouse: &Client) -> Result<()> {
        let truth = digests(source, SOURCE_DIGEST).await?;
        eventually(SOON, "the warehouse and its views hold what the source holds", async || {
            let held = digests(warehouse, WAREHOUSE_DIGEST).await?;
            Ok(if held == truth { Look::Yes(()) } else { Look::NotYet(format!("{held:?}, not {truth:?}")) })
        })
        .await?;
        let wrong = warehouse.query(WAREHOUSE_CHECK, &[]).await?;
        ensure!(wrong.is_empty(), "{} findings of lessons_check.sql", wrong.len());
        let behind = "SELECT count(*) FROM tailwater.view_state v, tailwater.checkpoint c WHERE v.lsn > c.end_lsn";
        ensure!(warehouse.query_one(behind, &[]).await?.get::<_, i64>(0) == 0, "a view says more than is there");
        Ok(())
    }
}

async fn owner(cluster: &Cluster, database: &str) -> Result<Client> {
    connect(&cluster.url_as("owner:owned", database)).await
}

async fn digests(client: &Client, sql: &str) -> Result<Vec<(String, i64, Option<String>)>> {
    let rows = client.query(sql, &[]).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

#[tokio::test]
async fn lessons_are_mirrored_under_exactly_the_deployed_grants() -> Result<()> {
    let school = School::start("grants").await?;
    owner(&school.warehouse, "dwh").await?.batch_execute(WAREHOUSE_SCHEMA).await?;
    school.warehouse.execute("dwh", WAREHOUSE_GRANTS).await?;
    school.set_up_as_owner(&["source"], &["setup"])?;
    school.teach().await
}

#[tokio::test]
async fn owner_may_set_up_both_ends_before_the_grants() -> Result<()> {
    let school = School::start("owner").await?;
    owner(&school.warehouse, "dwh").await?.batch_execute(WAREHOUSE_SCHEMA).await?;
    school.set_up_as_owner(&["source", "sink"], &["setup", "--create-targets"])?;
    let early = school.home.command(&["check"])?;
    ensure!(!early.status.success() && early.stderr.contains("deploy/grants/warehouse.sql"), "{}", early.stderr);
    school.warehouse.execute("dwh", WAREHOUSE_GRANTS).await?;
    school.teach().await
}

/// A source and a sink that take nothing but TLS and SCRAM, and a mapping of one table.
struct Encrypted {
    source: Cluster,
    sink: Cluster,
    certificates: Certificates,
    scratch: Scratch,
}

const TLS_MODEL: &str = "CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')";

impl Encrypted {
    async fn start(name: &str) -> Result<Encrypted> {
        let scratch = Scratch::new(name)?;
        let certificates = Certificates::make(&scratch.path().join("ours"))?;
        let options = Options::default().scram().tls(&certificates).set("log_connections", "on");
        let source = Cluster::start(&format!("{name}-source"), Version::V15, options.clone())?;
        let sink = Cluster::start(&format!("{name}-sink"), Version::V15, options)?;
        for cluster in [&source, &sink] {
            cluster.execute(DATABASE, "CREATE ROLE reader LOGIN SUPERUSER PASSWORD 'geheim'").await?;
        }
        source.execute(DATABASE, TLS_MODEL).await?;
        sink.execute(DATABASE, "CREATE SCHEMA mirror").await?;
        Ok(Encrypted { source, sink, certificates, scratch })
    }

    fn home(&self, parameters: &str) -> Result<Home> {
        let config = Home::pair_config(&self.source, &self.sink, DATABASE)
            .replace("postgres://postgres@", "postgres://reader:geheim@")
            .replace("/postgres\"", &format!("/postgres?{parameters}\""));
        Home::new("tls", &config, &[("mapping.toml", &mirror_mapping(&["public.items"]))])
    }

    /// How many sessions over TCP each end has let in so far, and how many of them without TLS.
    fn let_in(&self) -> (usize, usize) {
        let logs = [self.source.log(), self.sink.log()].concat();
        let sessions: Vec<_> = logs.lines().filter(|line| line.contains("authorized: user=reader")).collect();
        (sessions.len(), sessions.iter().filter(|line| !line.contains("SSL enabled")).count())
    }
}

#[tokio::test]
async fn both_ends_are_reached_over_verified_tls_with_scram() -> Result<()> {
    let pair = Encrypted::start("verified").await?;
    let root = pair.certificates.root.display().to_string();
    for (number, binding) in ["prefer", "require"].into_iter().enumerate() {
        let home = pair.home(&format!("sslmode=verify-full&sslrootcert={root}&channel_binding={binding}"))?;
        home.setup()?;
        let mut daemon = home.run()?;
        let (source, sink) = (pair.source.connect(DATABASE).await?, pair.sink.connect(DATABASE).await?);
        source.execute("INSERT INTO items VALUES ($1, 'more')", &[&(10 + i32::try_from(number)?)]).await?;
        daemon.wait_caught_up(&source, &sink, SOON).await?;
        let rows: i64 = sink.query_one("SELECT count(*) FROM mirror.items", &[]).await?.get(0);
        ensure!(rows == 2 + i64::try_from(number)?, "{binding}: {rows} rows");
        let open = "SELECT s.application_name, l.ssl FROM pg_stat_ssl l JOIN pg_stat_activity s USING (pid) \
                    WHERE s.usename = 'reader'";
        let mut streams = 0;
        for client in [&source, &sink] {
            for row in client.query(open, &[]).await? {
                ensure!(row.get::<_, bool>(1), "{binding}: {} is not encrypted", row.get::<_, &str>(0));
                streams += usize::from(row.get::<_, &str>(0).contains("stream"));
            }
        }
        ensure!(streams == 1, "{binding}: {streams} streams");
        daemon.terminate()?;
    }
    Ok(())
}

#[tokio::test]
async fn server_that_cannot_be_verified_is_refused_by_sql_and_by_stream() -> Result<()> {
    let pair = Encrypted::start("refused").await?;
    let other = Certificates::make(&pair.scratch.path().join("other"))?.root.display().to_string();
    let elsewhere = Certificates::make_for(&pair.scratch.path().join("elsewhere"), "DNS:db.example")?;
    let stranger = Options::default().scram().tls(&elsewhere);
    let stranger = Cluster::start("stranger", Version::V15, stranger)?;
    let plain = Cluster::start("plain", Version::V15, Options::default().scram())?;
    for cluster in [&stranger, &plain] {
        cluster.set("log_connections", "on")?;
        cluster.reload();
        cluster.execute(DATABASE, "CREATE ROLE reader LOGIN SUPERUSER PASSWORD 'geheim'").await?;
    }
    let (ours, elsewhere) = (pair.certificates.root.display().to_string(), elsewhere.root.display().to_string());
    let cases = [
        ("wrong authority", &pair.source, format!("sslmode=verify-full&sslrootcert={other}"), "certificate"),
        ("wrong name", &stranger, format!("sslmode=verify-full&sslrootcert={elsewhere}"), "not valid for name"),
        ("no TLS", &plain, format!("sslmode=verify-full&sslrootcert={ours}"), "TLS"),
        ("no TLS, encrypted only", &plain, "sslmode=require".to_owned(), "TLS"),
        ("no TLS, no binding", &plain, "sslmode=disable&channel_binding=require".to_owned(), "channel binding"),
    ];
    for (name, server, parameters, words) in cases {
        let url = format!("{}?{parameters}", server.url_as("reader:geheim", DATABASE));
        let config =
            Home::pair_config(&pair.source, &pair.sink, DATABASE).replace(&pair.source.url(DATABASE), &url).replace(
                &pair.sink.url(DATABASE),
                &format!("{}?sslmode=require", pair.sink.url_as("reader:geheim", DATABASE)),
            );
        let home = Home::new("tls", &config, &[("mapping.toml", &mirror_mapping(&["public.items"]))])?;
        for verb in ["check", "run"] {
            let outcome = home.command(&[verb])?;
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            ensure!(!outcome.status.success(), "{name}: {verb} succeeded: {said}");
            ensure!(said.contains(words) && !said.contains("geheim"), "{name}: {verb}: {said}");
        }
        let url = PgUrl::parse(&url)?;
        let stream =
            tokio::task::spawn_blocking(move || ReplicationConnection::connect(&url, "test").map(drop)).await?;
        let error = stream.err().with_context(|| format!("{name}: the stream was opened"))?;
        let said = format!("{:#}", anyhow::Error::from(error));
        ensure!(said.contains(words) && !said.contains("geheim"), "{name}: the stream: {said}");
    }
    for cluster in [&pair.source, &stranger, &plain] {
        ensure!(!cluster.log().contains("authorized: user=reader"), "somebody was let in: {}", cluster.log());
    }
    ensure!(pair.let_in().1 == 0, "a session was not encrypted");
    Ok(())
}

/// Every file under a directory, with its mode.
fn files(directory: &Path) -> Result<Vec<(PathBuf, u32)>> {
    let mut found = vec![(directory.to_owned(), fs::metadata(directory)?.mode() & 0o7777)];
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push((entry.path(), entry.metadata()?.mode() & 0o7777));
        }
    }
    Ok(found)
}

/// Everything that the daemon shows: its log, its pages, its files' names.
fn shown(home: &Home, daemon: &Daemon) -> Result<String> {
    let mut text = daemon.log();
    for page in ["/metrics", "/status", "/healthz", "/readyz"] {
        text.push_str(&daemon.get(page)?.body);
    }
    for (path, _) in files(&home.data_dir())? {
        text.push_str(&path.display().to_string());
    }
    for arguments in [&["status"][..], &["status", "--json"], &["journal", "ls"]] {
        let outcome = home.command(arguments)?;
        text.push_str(&outcome.stdout);
        text.push_str(&outcome.stderr);
    }
    Ok(text)
}

const CANARY_SOURCE: &str = "
    CREATE TABLE checked (id int PRIMARY KEY, secret text);
    CREATE TABLE single (id int PRIMARY KEY, secret text);
    CREATE TABLE converted (id int PRIMARY KEY, secret text);
    ALTER TABLE converted REPLICA IDENTITY FULL;
    CREATE TABLE short (id int PRIMARY KEY, secret text);
    CREATE TABLE raised (id int PRIMARY KEY, secret text);
    CREATE TABLE good (id int PRIMARY KEY, secret text)";

const CANARY_SINK: &str = "
    CREATE SCHEMA mirror;
    CREATE TABLE mirror.checked (id int PRIMARY KEY, secret text CONSTRAINT is_short CHECK (length(secret) < 5));
    CREATE TABLE mirror.single (id int PRIMARY KEY, secret text UNIQUE);
    CREATE TABLE mirror.converted (id int PRIMARY KEY, secret int);
    CREATE TABLE mirror.short (id int PRIMARY KEY, secret varchar(4));
    CREATE TABLE mirror.raised (id int PRIMARY KEY, secret text);
    CREATE TABLE mirror.good (id int PRIMARY KEY, secret text);
    CREATE FUNCTION mirror.refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'not %', NEW.secret USING DETAIL = NEW.secret; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON mirror.raised FOR EACH ROW EXECUTE FUNCTION mirror.refuse()";

const CANARY_MAPPING: &str = "source = \"src\"\nsink = \"dst\"\n
    [table.\"mirror.checked\"]\nfrom = \"public.checked\"\ncolumns = \"*\"
    [table.\"mirror.single\"]\nfrom = \"public.single\"\ncolumns = \"*\"
    [table.\"mirror.converted\"]\nfrom = \"public.converted\"\ncolumns = { id = \"id\", secret = { sql = \"secret::int\" } }
    [table.\"mirror.short\"]\nfrom = \"public.short\"\ncolumns = \"*\"
    [table.\"mirror.raised\"]\nfrom = \"public.raised\"\ncolumns = \"*\"
    [table.\"mirror.good\"]\nfrom = \"public.good\"\ncolumns = \"*\"\n";

#[tokio::test]
async fn no_password_and_no_value_is_shown_whatever_fails() -> Result<()> {
    let mut random = Random::new(Random::seed_from_environment());
    let mut canaries: Vec<String> = (0..8).map(|_| format!("canary{:016x}", random.number())).collect();
    let passwords = canaries.split_off(6);
    let source = Cluster::start("canary-source", Version::V15, Options::default().scram())?;
    let sink = Cluster::start("canary-sink", Version::V15, Options::default().scram())?;
    for (cluster, password) in [(&source, &passwords[0]), (&sink, &passwords[1])] {
        cluster.execute(DATABASE, &format!("ALTER ROLE postgres PASSWORD '{password}'")).await?;
    }
    source.execute(DATABASE, CANARY_SOURCE).await?;
    sink.execute(DATABASE, CANARY_SINK).await?;
    let config = Home::pair_config(&source, &sink, DATABASE)
        .replace(&source.url(DATABASE), &source.url_as(&format!("postgres:{}", passwords[0]), DATABASE))
        .replace(&sink.url(DATABASE), &sink.url_as(&format!("postgres:{}", passwords[1]), DATABASE));
    let home = Home::new("canary", &config, &[("mapping.toml", CANARY_MAPPING)])?;
    home.setup()?;
    let mut daemon = home.run_with(&[("TAILWATER_LOG", "warn,tailwater=trace")])?;
    let (from, to) = (source.connect(DATABASE).await?, sink.connect(DATABASE).await?);
    daemon.wait_caught_up(&from, &to, SOON).await?;

    let tables = ["checked", "single", "converted", "short", "raised", "good"];
    from.batch_execute(&format!("INSERT INTO single VALUES (1, '{}')", canaries[1])).await?;
    for (table, canary) in tables.iter().zip(&canaries) {
        from.batch_execute(&format!("INSERT INTO {table} VALUES (2, '{canary}')")).await?;
    }
    let quarantined = "SELECT count(*) FROM tailwater.table_state WHERE state = 'quarantined'";
    eventually(SOON, "five tables are quarantined and the good one goes on", async || {
        let left: i64 = to.query_one(quarantined, &[]).await?.get(0);
        let good: i64 = to.query_one("SELECT count(*) FROM mirror.good", &[]).await?.get(0);
        Ok(if (left, good) == (5, 1) {
            Look::Yes(())
        } else {
            Look::NotYet(format!("{left} quarantined, {good} good"))
        })
    })
    .await?;
    let mut text = shown(&home, &daemon)?;
    let reasons = to.query("SELECT reason FROM tailwater.table_state WHERE reason IS NOT NULL", &[]).await?;
    ensure!(reasons.len() == 5, "{} reasons", reasons.len());
    reasons.iter().for_each(|row| text.push_str(row.get(0)));
    for canary in canaries.iter().chain(&passwords) {
        ensure!(!text.contains(canary.as_str()), "a secret is shown: {}", around(&text, canary));
    }
    // What the constraint is called may be said, and helps.
    ensure!(text.contains("is_short"), "{text}");

    for (path, mode) in files(&home.data_dir())? {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        ensure!(mode == expected, "{} has mode {mode:o}", path.display());
    }
    daemon.terminate()
}

fn around<'a>(text: &'a str, word: &str) -> &'a str {
    text.lines().find(|line| line.contains(word)).unwrap_or_default()
}
