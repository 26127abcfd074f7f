//! A private schema registry in a scratch directory, on a free port of 127.0.0.1: Apicurio Registry with its memory for a
//! store, which lets in whom it knows by user and password, from the archive that `tests/install.sh` unpacks below the target directory. It speaks Confluent's API. What is
//! written under its schemas is read by `avro.py`, which shares no code with the daemon.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::cluster::free_port;
use super::process;
use super::scratch::Scratch;
use super::server::{Server, installed};
use super::wait::Look;

const READER: &str = include_str!("avro.py");

/// A cold JVM on a busy machine takes its time.
const START_WITHIN: Duration = Duration::from_secs(90);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Where Confluent's API stands.
pub const API: &str = "/apis/ccompat/v7";

/// How its JVM runs: small, and quick to start rather than quick in the end.
const JVM: &[&str] = &["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"];

/// Who may do everything, who may only read, and the first of them as HTTP has it.
pub const WRITER: &str = "tail:s3cret";
pub const READER_ALONE: &str = "guest:s3cret";
const AUTHORIZATION: &str = "Basic dGFpbDpzM2NyZXQ=";

/// Basic authentication, as Quarkus has it; without these Apicurio asks nobody.
const SECURITY: &[(&str, &str)] = &[
    ("oidc.tenant-enabled", "false"),
    ("http.auth.basic", "true"),
    ("security.users.embedded.plain-text", "true"),
    ("security.users.embedded.users.tail", "s3cret"),
    ("security.users.embedded.roles.tail", "sr-admin"),
    ("security.users.embedded.users.guest", "s3cret"),
    ("security.users.embedded.roles.guest", "sr-readonly"),
    ("http.auth.policy.readers.roles-allowed", "sr-admin,sr-readonly"),
    ("http.auth.policy.writers.roles-allowed", "sr-admin"),
    ("http.auth.permission.read.paths", "/apis/*"),
    ("http.auth.permission.read.methods", "GET,HEAD"),
    ("http.auth.permission.read.policy", "readers"),
    ("http.auth.permission.write.paths", "/apis/*"),
    ("http.auth.permission.write.methods", "POST,PUT,DELETE"),
    ("http.auth.permission.write.policy", "writers"),
];

pub struct Registry {
    server: Server,
    scratch: Scratch,
    port: u16,
}

impl Registry {
    pub fn start(name: &str) -> Result<Registry> {
        let scratch = Scratch::new(name)?;
        let mut registry = Registry { server: Server::new("the registry", scratch.path()), scratch, port: 0 };
        // Another process may take a port between our look and the server's.
        for _ in 0..5 {
            registry.port = free_port()?;
            match registry.resume() {
                Ok(()) => return Ok(registry),
                Err(_) if registry.log().contains("already in use") => {}
                Err(err) => return Err(err),
            }
        }
        bail!("no free port was found for registry \"{name}\"");
    }

    /// Starts a killed registry on its port; of what it held it knows nothing.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new("java");
        command.args(JVM).arg("-Dquarkus.http.host=127.0.0.1").arg(format!("-Dquarkus.http.port={}", self.port));
        command.args(SECURITY.iter().map(|(name, value)| format!("-Dquarkus.{name}={value}")));
        command.arg("-jar").arg(program()?).current_dir(self.scratch.path());
        let port = self.port;
        self.server.start(&mut command, "", START_WITHIN, || {
            let (status, _) = ask(port, "GET", "/subjects", None)?;
            Ok(if status == 200 { Look::Yes(()) } else { Look::NotYet(format!("it answers {status}")) })
        })
    }

    /// SIGKILL, with whatever it was doing.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    /// Freezes (`STOP`) or thaws (`CONT`) it.
    pub fn signal(&self, name: &str) {
        self.server.signal(name);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// As a configuration names it.
    pub fn url(&self) -> String {
        self.url_of(WRITER)
    }

    /// For this user, with the password.
    pub fn url_of(&self, user: &str) -> String {
        format!("http://{user}@127.0.0.1:{}{API}", self.port)
    }

    /// Registers a schema as somebody else would.
    pub fn register(&self, subject: &str, schema: &str) -> Result<()> {
        let body = json!({ "schema": schema });
        self.done("POST", &format!("/subjects/{subject}/versions"), &body)
    }

    /// What a new schema of the subject must be to those before it: `BACKWARD`, `NONE`, …
    pub fn set_compatibility(&self, subject: &str, level: &str) -> Result<()> {
        self.done("PUT", &format!("/config/{subject}"), &json!({ "compatibility": level }))
    }

    /// The subjects that have a schema, in order.
    pub fn subjects(&self) -> Result<Vec<String>> {
        let (status, body) = ask(self.port, "GET", "/subjects", None)?;
        ensure!(status == 200, "the registry answers {status}: {body}");
        let mut subjects: Vec<String> = serde_json::from_str(&body)?;
        subjects.sort();
        Ok(subjects)
    }

    /// What messages say, to a reader that knows no more than their bytes and this registry.
    pub fn decode(&self, messages: &[&[u8]]) -> Result<Vec<Value>> {
        let (program, lines) = (self.scratch.path().join("avro.py"), self.scratch.path().join("messages"));
        fs::write(&program, READER)?;
        let hex = |message: &&[u8]| message.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n";
        fs::write(&lines, messages.iter().map(hex).collect::<String>())?;
        let mut command = Command::new(installed("registry/python/bin/python")?);
        let text = process::run(command.arg(&program).args([&self.place(), AUTHORIZATION]).stdin(File::open(&lines)?))?;
        let values: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        ensure!(values.len() == messages.len(), "{} messages were read as {}", messages.len(), values.len());
        Ok(values)
    }

    fn place(&self) -> String {
        format!("http://127.0.0.1:{}{API}", self.port)
    }

    fn done(&self, method: &str, path: &str, body: &Value) -> Result<()> {
        let (status, answer) = ask(self.port, method, path, Some(body))?;
        ensure!(status == 200, "{method} {path}: the registry answers {status}: {answer}");
        Ok(())
    }

    /// Everything it has said.
    pub fn log(&self) -> String {
        self.server.log()
    }
}

fn ask(port: u16, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    // HTTP/1.0: the answer ends with the connection and comes in no chunks.
    write!(
        stream,
        "{method} {API}{path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: {AUTHORIZATION}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of head")?;
    let status = head.split_whitespace().nth(1).context("the answer has no status")?.parse()?;
    Ok((status, body.to_owned()))
}

/// The one archive of that name; the installed version is `tests/install.sh`'s to know.
fn program() -> Result<PathBuf> {
    for file in fs::read_dir(installed("registry/installed")?.with_file_name(""))? {
        let path = file?.path();
        if path.to_string_lossy().ends_with("-runner.jar") {
            return Ok(path);
        }
    }
    bail!("the registry's program is missing: run tests/install.sh test")
}
