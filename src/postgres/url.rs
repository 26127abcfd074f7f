//! A Postgres address as a user writes it: a `postgres://` URL or a `key=value` string with libpq's words.
//!
//! Two things differ from libpq, both on purpose. `sslmode` defaults to `verify-full` unless every host is this machine,
//! and the modes that silently fall back to plain text are refused. No error, `Debug` or `Display` repeats the text given:
//! it holds a password.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Secret;
use crate::diagnostic::nearest;

/// Waits for a connection unless `connect_timeout` says otherwise: long enough for a distant server, short enough to try
/// the next one while somebody watches.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const DEFAULT_PORT: u16 = 5432;

const WORDS: [&str; 14] = [
    "host",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "channel_binding",
    "application_name",
    "connect_timeout",
    "target_session_attrs",
    "options",
];

/// Words of libpq that are understood, and refused rather than ignored.
const REFUSED_WORDS: [&str; 19] = [
    "hostaddr",
    "passfile",
    "service",
    "replication",
    "client_encoding",
    "fallback_application_name",
    "gssencmode",
    "krbsrvname",
    "gsslib",
    "sslcompression",
    "sslpassword",
    "sslcrl",
    "sslcrldir",
    "sslsni",
    "sslnegotiation",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "requirepeer",
    "require_auth",
];

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A host name or an IP address.
    Tcp(String),
    /// The directory of a Unix-domain socket.
    Unix(PathBuf),
}

/// One server that may answer; several are tried in turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub address: Address,
    pub port: u16,
}

impl Endpoint {
    /// Traffic to it cannot leave this machine.
    pub fn is_local(&self) -> bool {
        match &self.address {
            Address::Unix(_) => true,
            Address::Tcp(host) => {
                host.eq_ignore_ascii_case("localhost")
                    || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host) if host.contains(':') => write!(f, "[{host}]:{}", self.port),
            Address::Tcp(host) => write!(f, "{host}:{}", self.port),
            Address::Unix(directory) => write!(f, "{}:{}", directory.display(), self.port),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslMode {
    Disable,
    /// Encrypted, to whoever answers.
    Require,
    /// Encrypted, to anybody with a certificate from a trusted authority.
    VerifyCa,
    /// Encrypted, to the host that was named.
    VerifyFull,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetSession {
    Any,
    ReadWrite,
    ReadOnly,
}

/// Where a Postgres database is and how to talk to it. `Display` shows user, hosts and database only.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgUrl {
    /// At least one.
    pub endpoints: Vec<Endpoint>,
    pub user: String,
    password: Option<Secret>,
    pub dbname: String,
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<PathBuf>,
    /// Client certificate and its key: both or neither.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    pub channel_binding: ChannelBinding,
    pub application_name: Option<String>,
    pub connect_timeout: Duration,
    pub target_session: TargetSession,
    /// Command-line options for the server process: `-c name=value …`.
    pub options: Option<String>,
}

/// The text is no Postgres address. Says which word is wrong, never what stands there.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UrlError {
    #[error("is neither a postgres:// URL nor a key=value string")]
    Form,
    #[error("holds a malformed percent-encoding")]
    PercentEncoding,
    #[error("holds an unknown parameter{}", .meant.map(|word| format!(", did you mean \"{word}\"?")).unwrap_or_default())]
    UnknownWord { meant: Option<&'static str> },
    #[error("parameter \"{0}\" is not supported")]
    RefusedWord(&'static str),
    #[error("parameter \"{word}\" must be {expected}")]
    Value { word: &'static str, expected: &'static str },
    #[error("sslmode \"{0}\" may fall back to plain text: use verify-full, verify-ca, require or disable")]
    WeakSslMode(&'static str),
    #[error("names no {0}")]
    Missing(&'static str),
}

impl PgUrl {
    pub fn parse(text: &str) -> Result<PgUrl, UrlError> {
        let text = text.trim();
        let mut words = Words::default();
        match text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")) {
            Some(rest) => words.read_url(rest)?,
            None => words.read_pairs(text)?,
        }
        words.build()
    }

    /// Sets the password if the text had none.
    pub fn or_password(mut self, password: Option<&str>) -> Self {
        self.password = self.password.or_else(|| password.map(Secret::new));
        self
    }

    /// The password given, else the environment's `PGPASSWORD`.
    pub fn password(&self) -> Option<Secret> {
        self.password.clone().or_else(|| std::env::var("PGPASSWORD").ok().map(Secret::new))
    }
}

impl fmt::Display for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<_> = self.endpoints.iter().map(Endpoint::to_string).collect();
        write!(f, "{}@{}/{}", self.user, hosts.join(","), self.dbname)
    }
}

/// What was written, by libpq's words; a later word replaces an earlier one.
#[derive(Default)]
struct Words(Vec<(&'static str, String)>);

impl Words {
    fn set(&mut self, word: &str, value: String) -> Result<(), UrlError> {
        let Some(word) = WORDS.into_iter().find(|known| *known == word) else {
            return Err(match REFUSED_WORDS.into_iter().find(|known| *known == word) {
                Some(refused) => UrlError::RefusedWord(refused),
                // The word itself is not repeated: it may be the rest of a password with a blank or a "?" in it.
                None => UrlError::UnknownWord { meant: nearest(word, WORDS) },
            });
        };
        self.0.retain(|(known, _)| *known != word);
        self.0.push((word, value));
        Ok(())
    }

    fn take(&mut self, word: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| *known == word)?;
        Some(self.0.swap_remove(at).1).filter(|value| !value.is_empty())
    }

    /// `user:password@host:port,host:port/dbname?word=value&…`, each part percent-encoded.
    fn read_url(&mut self, rest: &str) -> Result<(), UrlError> {
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, dbname) = place.split_once('/').unwrap_or((place, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        self.set("user", decode(user)?)?;
        self.set("password", decode(password)?)?;
        self.set("dbname", decode(dbname)?)?;

        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
                Some((name, port)) => (name, port.strip_prefix(':').unwrap_or(port)),
                None => host.split_once(':').unwrap_or((host, "")),
            };
            names.push(decode(name)?);
            ports.push(decode(port)?);
        }
        self.set("host", names.join(","))?;
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", ports.join(","))?;
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (word, value) = pair.split_once('=').ok_or(UrlError::Form)?;
            self.set(&decode(word)?, decode(value)?)?;
        }
        Ok(())
    }

    /// `word=value word = 'a value'`, with backslash before quote or backslash.
    fn read_pairs(&mut self, text: &str) -> Result<(), UrlError> {
        let mut rest = text;
        while !rest.is_empty() {
            let (word, tail) = rest.split_once('=').ok_or(UrlError::Form)?;
            let (value, tail) = take_value(tail.trim_start())?;
            self.set(word.trim(), value)?;
            rest = tail.trim_start();
        }
        Ok(())
    }

    fn build(mut self) -> Result<PgUrl, UrlError> {
        let endpoints = self.endpoints()?;
        let user = self.take("user").ok_or(UrlError::Missing("user"))?;
        let ssl_client = match (self.take("sslcert"), self.take("sslkey")) {
            (Some(cert), Some(key)) => Some((cert.into(), key.into())),
            (None, None) => None,
            (Some(_), None) => return Err(UrlError::Missing("sslkey beside sslcert")),
            (None, Some(_)) => return Err(UrlError::Missing("sslcert beside sslkey")),
        };
        let connect_timeout = match self.take("connect_timeout") {
            None => CONNECT_TIMEOUT,
            Some(text) => match text.parse::<u32>() {
                Ok(0) => CONNECT_TIMEOUT,
                Ok(seconds) => Duration::from_secs(u64::from(seconds)),
                Err(_) => {
                    return Err(UrlError::Value { word: "connect_timeout", expected: "a number of seconds" });
                }
            },
        };
        Ok(PgUrl {
            ssl_mode: self.ssl_mode(&endpoints)?,
            channel_binding: self.channel_binding()?,
            target_session: self.target_session()?,
            password: self.take("password").map(Secret::new),
            dbname: self.take("dbname").unwrap_or_else(|| user.clone()),
            ssl_root_cert: self.take("sslrootcert").map(PathBuf::from),
            application_name: self.take("application_name"),
            options: self.take("options"),
            connect_timeout,
            ssl_client,
            endpoints,
            user,
        })
    }

    fn endpoints(&mut self) -> Result<Vec<Endpoint>, UrlError> {
        let bad_port = UrlError::Value { word: "port", expected: "a number from 1 to 65535, or one for each host" };
        let hosts = self.take("host").ok_or(UrlError::Missing("host"))?;
        let ports = self.take("port").unwrap_or_default();
        let mut ports = ports
            .split(',')
            .map(|port| match port {
                "" => Some(DEFAULT_PORT),
                text => text.parse().ok().filter(|port| *port != 0),
            })
            .collect::<Option<Vec<u16>>>()
            .ok_or(bad_port)?;
        let hosts: Vec<_> = hosts.split(',').collect();
        if let [only] = ports[..] {
            ports = vec![only; hosts.len()];
        }
        if ports.len() != hosts.len() {
            return Err(UrlError::Value { word: "port", expected: "one number, or one for each host" });
        }
        hosts
            .into_iter()
            .zip(ports)
            .map(|(host, port)| match host {
                "" => Err(UrlError::Missing("host")),
                path if path.starts_with('/') => Ok(Endpoint { address: Address::Unix(path.into()), port }),
                name => Ok(Endpoint { address: Address::Tcp(name.to_owned()), port }),
            })
            .collect()
    }

    fn ssl_mode(&mut self, endpoints: &[Endpoint]) -> Result<SslMode, UrlError> {
        match self.take("sslmode").as_deref() {
            None if endpoints.iter().all(Endpoint::is_local) => Ok(SslMode::Disable),
            None | Some("verify-full") => Ok(SslMode::VerifyFull),
            Some("verify-ca") => Ok(SslMode::VerifyCa),
            Some("require") => Ok(SslMode::Require),
            Some("disable") => Ok(SslMode::Disable),
            Some("prefer") => Err(UrlError::WeakSslMode("prefer")),
            Some("allow") => Err(UrlError::WeakSslMode("allow")),
            Some(_) => Err(UrlError::Value { word: "sslmode", expected: "disable, require, verify-ca or verify-full" }),
        }
    }

    fn channel_binding(&mut self) -> Result<ChannelBinding, UrlError> {
        match self.take("channel_binding").as_deref() {
            None | Some("prefer") => Ok(ChannelBinding::Prefer),
            Some("require") => Ok(ChannelBinding::Require),
            Some("disable") => Ok(ChannelBinding::Disable),
            Some(_) => Err(UrlError::Value { word: "channel_binding", expected: "disable, prefer or require" }),
        }
    }

    fn target_session(&mut self) -> Result<TargetSession, UrlError> {
        match self.take("target_session_attrs").as_deref() {
            None | Some("any") => Ok(TargetSession::Any),
            Some("read-write") => Ok(TargetSession::ReadWrite),
            Some("read-only") => Ok(TargetSession::ReadOnly),
            Some(_) => Err(UrlError::Value { word: "target_session_attrs", expected: "any, read-write or read-only" }),
        }
    }
}

/// One value of a `key=value` string, and what follows it.
fn take_value(text: &str) -> Result<(String, &str), UrlError> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next().ok_or(UrlError::Form)?.1),
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            blank if !quoted && blank.is_whitespace() => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if quoted { Err(UrlError::Form) } else { Ok((value, "")) }
}

pub(crate) fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = rest.split_at_checked(2).ok_or(UrlError::PercentEncoding)?;
        let [high, low] = [digits[0], digits[1]].map(|digit| char::from(digit).to_digit(16));
        let value = high.zip(low).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        bytes.push(value.filter(|byte| *byte != 0).ok_or(UrlError::PercentEncoding)?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| UrlError::PercentEncoding)
}

#[cfg(test)]
mod tests;
