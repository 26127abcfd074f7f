//! A private ClickHouse server in a scratch directory, on free ports of 127.0.0.1: the real engine and its real interfaces,
//! started by `clickhouse.py` from the package that `tests/install.sh` puts below the target directory.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cluster::free_port;
use super::scratch::Scratch;
use super::server::{Server, installed};
use super::wait::Look;

/// The program that becomes the server; the demo starts its own by the same one.
pub const LAUNCHER: &str = include_str!("clickhouse.py");

const START_WITHIN: Duration = Duration::from_secs(60);
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

pub struct ClickHouse {
    server: Server,
    scratch: Scratch,
    http_port: u16,
    tcp_port: u16,
    /// `None`: user `default` without a password.
    login: Option<(String, String)>,
}

impl ClickHouse {
    /// A server that asks nobody for a password.
    pub fn start(name: &str) -> Result<ClickHouse> {
        ClickHouse::start_for(name, None)
    }

    /// A server that knows one user, of so plain a name that XML takes it for an element's.
    pub fn start_with_password(name: &str, user: &str, password: &str) -> Result<ClickHouse> {
        ClickHouse::start_for(name, Some((user.to_owned(), password.to_owned())))
    }

    /// Gives a further user, of whom no password is asked, these rights; counts from the next start on.
    pub fn grant(&self, user: &str, grants: &[String]) -> Result<()> {
        let grants: String = grants.iter().map(|grant| format!("<query>{grant}</query>")).collect();
        let text = format!(
            "<{user}><no_password/><networks><ip>127.0.0.1</ip></networks><profile>default</profile>\
             <quota>default</quota><grants>{grants}</grants></{user}>"
        );
        Ok(fs::write(self.directory().join("more_users.xml"), text)?)
    }

    fn start_for(name: &str, login: Option<(String, String)>) -> Result<ClickHouse> {
        let scratch = Scratch::new(name)?;
        fs::write(scratch.path().join("clickhouse.py"), LAUNCHER)?;
        fs::create_dir(scratch.path().join("server"))?;
        let server = Server::new("ClickHouse", scratch.path());
        let mut server = ClickHouse { server, scratch, http_port: 0, tcp_port: 0, login };
        // Another process may take a port between our look and the server's.
        for _ in 0..5 {
            (server.http_port, server.tcp_port) = (free_port()?, free_port()?);
            match server.resume() {
                Ok(()) => return Ok(server),
                Err(_) if server.log().contains("Address already in use") => {}
                Err(err) => return Err(err),
            }
        }
        bail!("no free ports were found for ClickHouse \"{name}\"");
    }

    /// Starts a stopped or killed server on its ports and data; returns when it answers.
    pub fn resume(&mut self) -> Result<()> {
        let mut command = Command::new(installed("clickhouse/bin/python")?);
        command.arg(self.scratch.path().join("clickhouse.py")).arg(self.directory());
        command.args([self.http_port.to_string(), self.tcp_port.to_string()]);
        command.args(self.login.iter().map(|(user, _)| user)).current_dir(self.directory());
        let password = self.login.as_ref().map(|(_, password)| format!("{password}\n")).unwrap_or_default();
        let client = self.client();
        self.server.start(&mut command, &password, START_WITHIN, || {
            // Its own answer: another server may have been given the port.
            let version = client.query("SELECT version()")?;
            Ok(if version.is_empty() { Look::NotYet("an empty answer".to_owned()) } else { Look::Yes(()) })
        })
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// SIGKILL, with whatever it was doing.
    pub fn kill9(&mut self) {
        self.server.kill9();
    }

    pub fn kill9_and_resume(&mut self) -> Result<()> {
        self.kill9();
        self.resume()
    }

    /// Freezes (`STOP`) or thaws (`CONT`) the server.
    pub fn signal(&self, name: &str) {
        self.server.signal(name);
    }

    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    pub fn http_port(&self) -> u16 {
        self.http_port
    }

    /// The native interface's.
    pub fn tcp_port(&self) -> u16 {
        self.tcp_port
    }

    /// As a configuration names it, password included.
    pub fn url(&self, database: &str) -> String {
        let login = self.login.as_ref().map(|(user, password)| format!("{user}:{password}@")).unwrap_or_default();
        format!("http://{login}127.0.0.1:{}/{database}", self.http_port)
    }

    /// Asks as the server's user, also while somebody else stops and starts it.
    pub fn client(&self) -> Client {
        Client { port: self.http_port, login: self.login.clone() }
    }

    /// See [`Client::query`].
    pub fn query(&self, sql: &str) -> Result<String> {
        self.client().query(sql)
    }

    /// Runs a statement that answers one number.
    pub fn number(&self, sql: &str) -> Result<u64> {
        self.query(sql)?.trim().parse().with_context(|| sql.to_owned())
    }

    /// Runs an INSERT with its rows in `data`.
    pub fn insert(&self, sql: &str, data: &[u8]) -> Result<String> {
        self.client().insert(sql, data)
    }

    /// Everything of the server.
    pub fn directory(&self) -> PathBuf {
        self.scratch.path().join("server")
    }

    /// Everything the server has said.
    pub fn log(&self) -> String {
        self.server.log()
    }
}

/// Statements over HTTP, as one user.
#[derive(Clone)]
pub struct Client {
    port: u16,
    login: Option<(String, String)>,
}

impl Client {
    /// Runs one statement; rows come tab-separated, one a line.
    ///
    /// # Errors
    /// With the server's own text, values and all: only for tests.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.post("/", sql.as_bytes())
    }

    fn insert(&self, sql: &str, data: &[u8]) -> Result<String> {
        let mut path = String::from("/?query=");
        for byte in sql.bytes() {
            write!(path, "%{byte:02X}")?;
        }
        self.post(&path, data)
    }

    fn post(&self, path: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, self.port).into(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        let (user, password) = self.login.as_ref().map_or(("default", ""), |(user, password)| (user, password));
        // HTTP/1.0: the answer ends with the connection and comes in no chunks.
        let head = format!(
            "POST {path} HTTP/1.0\r\nX-ClickHouse-User: {user}\r\nX-ClickHouse-Key: {password}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").context("the answer has no end of head")?;
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        ensure!(status == "200", "ClickHouse answered {status}: {body}");
        Ok(body.trim_end_matches('\n').to_owned())
    }
}
