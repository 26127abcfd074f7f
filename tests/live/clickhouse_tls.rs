//! ClickHouse over HTTPS, by what secret files say: whom the daemon believes, and what it says of whom it does not.

use std::fs;

use anyhow::{Result, ensure};

use crate::support::certificates::Certificates;
use crate::support::clickhouse::ClickHouse;
use crate::support::cluster::{Cluster, Options};
use crate::support::daemon::Home;
use crate::support::pair::{DATABASE, SOON};
use crate::support::postgres::Version;
use crate::support::scratch::Scratch;
use crate::support::tls_proxy::TlsProxy;
use crate::support::wait::{Look, eventually};

const MODEL: &str = "CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items VALUES (1, 'one')";
const MAPPING: &str =
    "source = \"src\"\nsink = \"ch\"\n[table.\"mirror.items\"]\nfrom = \"public.items\"\ncolumns = \"*\"\n";

struct Stage {
    source: Cluster,
    server: ClickHouse,
    scratch: Scratch,
}

impl Stage {
    async fn start(name: &str) -> Result<Stage> {
        let source = Cluster::start(&format!("{name}-source"), Version::V15, Options::default())?;
        source.execute(DATABASE, MODEL).await?;
        let server = ClickHouse::start_with_password(&format!("{name}-ch"), "warehouse", "geheim")?;
        Ok(Stage { source, server, scratch: Scratch::new(name)? })
    }

    fn certificates(&self, name: &str, names: &str, days: i32) -> Result<Certificates> {
        Certificates::make_until(&self.scratch.path().join(name), names, days)
    }

    /// User and password stand in files and nowhere else.
    fn home(&self, name: &str, scheme: &str, port: u16, parameters: &str) -> Result<Home> {
        let (url, password) = (self.scratch.path().join("url"), self.scratch.path().join("password"));
        fs::write(&url, format!("{scheme}://warehouse@localhost:{port}/?{parameters}\n"))?;
        fs::write(&password, "geheim\n")?;
        let config = format!(
            "[source.src]\nurl = \"{}\"\nheartbeat = \"500ms\"\n\n\
             [sink.ch]\nkind = \"clickhouse\"\nurl_file = \"{}\"\npassword_file = \"{}\"\nidle_record = \"200ms\"\n",
            self.source.url(DATABASE),
            url.display(),
            password.display()
        );
        Home::new(name, &config, &[("mapping.toml", MAPPING)])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_is_reached_over_verified_tls() -> Result<()> {
    let stage = Stage::start("ch-tls").await?;
    let ours = stage.certificates("ours", "DNS:localhost", 30)?;
    let proxy = TlsProxy::start(stage.server.http_port(), &ours)?;
    let parameters = format!("sslrootcert={}&compress=lz4", ours.root.display());
    let home = stage.home("ch-tls", "https", proxy.port(), &parameters)?;
    home.must(&["check"]).err().map_or(Ok(()), |error| {
        // Nothing is set up yet, which it can only know from the other end of TLS.
        ensure!(format!("{error:#}").contains("mirror.items"), "{error:#}");
        Ok(())
    })?;
    home.setup()?;
    home.must(&["check"])?;
    let mut daemon = home.run()?;
    let holds = async |rows: &str| {
        eventually(SOON, &format!("ClickHouse holds {rows}"), async || {
            let held = stage.server.query("SELECT * FROM mirror.items_current ORDER BY id FORMAT CSV")?;
            Ok(if held == rows { Look::Yes(()) } else { Look::NotYet(held) })
        })
        .await
    };
    holds("1,\"one\"").await?;
    stage
        .source
        .execute(DATABASE, "INSERT INTO items VALUES (2, 'two'); UPDATE items SET name = 'eins' WHERE id = 1")
        .await?;
    holds("1,\"eins\"\n2,\"two\"").await?;
    ensure!(proxy.greeted() > 0, "nothing went through the proxy");
    daemon.terminate()?;
    ensure!(!daemon.log().contains("geheim"), "the log says a password");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clickhouse_that_cannot_be_verified_is_one_finding() -> Result<()> {
    let stage = Stage::start("ch-untrusted").await?;
    let ours = stage.certificates("ours", "DNS:localhost", 30)?;
    let elsewhere = stage.certificates("elsewhere", "DNS:clickhouse.example", 30)?;
    let expired = stage.certificates("expired", "DNS:localhost", -1)?;
    let plain = stage.server.http_port();
    let verified = TlsProxy::start(plain, &ours)?;
    let stranger = TlsProxy::start(plain, &elsewhere)?;
    let old = TlsProxy::start(plain, &expired)?;
    let trusting = |certificates: &Certificates| format!("sslrootcert={}", certificates.root.display());
    let cases: &[(&str, &str, u16, String, &[&str])] = &[
        (
            "unknown authority",
            "https",
            verified.port(),
            trusting(&elsewhere),
            &["invalid peer certificate", "sslrootcert"],
        ),
        ("the machine's authorities", "https", verified.port(), String::new(), &["invalid peer certificate"]),
        ("wrong name", "https", stranger.port(), trusting(&elsewhere), &["not valid for name", "localhost"]),
        ("expired", "https", old.port(), trusting(&expired), &["invalid peer certificate", "xpired"]),
        // Some greetings make the server answer what is no TLS, and some make it wait for more.
        ("no TLS", "https", plain, trusting(&ours), &["cannot connect"]),
        ("no TLS, encrypted only", "https", plain, "sslmode=require".to_owned(), &["cannot connect"]),
        ("TLS where none is meant", "http", verified.port(), String::new(), &["the connection to ClickHouse broke"]),
        ("no such file", "https", verified.port(), "sslrootcert=/nowhere.crt".to_owned(), &["/nowhere.crt"]),
    ];
    for (name, scheme, port, parameters, words) in cases {
        let home = stage.home("ch-untrusted", scheme, *port, parameters)?;
        for arguments in [&["check"][..], &["setup", "--create-targets"]] {
            let outcome = home.command(arguments)?;
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            ensure!(!outcome.status.success(), "{name}: {arguments:?} succeeded: {said}");
            let errors = said.lines().filter(|line| line.starts_with("error")).count();
            ensure!(errors == 1 && said.contains("sink \"ch\""), "{name}: {arguments:?}: {said}");
            for word in *words {
                ensure!(said.contains(word), "{name}: {arguments:?} does not say \"{word}\": {said}");
            }
            ensure!(!said.contains("geheim"), "{name}: {arguments:?} says a password: {said}");
        }
    }
    // Verified as far as is asked: the authority without the name, and nothing at all.
    for (port, parameters) in [
        (stranger.port(), format!("{}&sslmode=verify-ca", trusting(&elsewhere))),
        (old.port(), "sslmode=require".to_owned()),
    ] {
        let before = stranger.greeted() + old.greeted();
        let outcome = stage.home("ch-untrusted", "https", port, &parameters)?.command(&["check"])?;
        // Its targets are not made yet, which it knows from the other end.
        let said = format!("{}{}", outcome.stdout, outcome.stderr);
        ensure!(said.contains("mirror.items") && !said.contains("let us in"), "{parameters}: {said}");
        ensure!(stranger.greeted() + old.greeted() > before, "{parameters}: nobody was greeted");
    }
    let tables = stage.server.query("SELECT count() FROM system.tables WHERE database IN ('mirror', 'tailwater')")?;
    ensure!(tables == "0", "{tables} tables were made");
    Ok(())
}
