//! A ClickHouse address as a user writes it: `https://user@host:8443/database?sslrootcert=…`.
//!
//! No error, `Debug` or `Display` repeats the text given: it may hold a password.

use std::path::PathBuf;
use std::time::Duration;

use crate::config::{ClickHouseEnd, Secret};
use crate::postgres::url::{CONNECT_TIMEOUT, SslMode, decode};

const PLAIN_PORT: u16 = 8123;
const TLS_PORT: u16 = 8443;

/// Whether rows are compressed on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    None,
    Lz4,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<Secret>,
    /// Where an unqualified name is looked for.
    pub database: String,
    /// `Disable` of an `http://` address.
    pub ssl_mode: SslMode,
    pub ssl_root_cert: Option<PathBuf>,
    /// Client certificate and its key: both or neither.
    pub ssl_client: Option<(PathBuf, PathBuf)>,
    pub connect_timeout: Duration,
    pub compression: Compression,
}

/// The text is no ClickHouse address. Says which word is wrong, never what stands there.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("is no http:// or https:// URL")]
    Form,
    #[error("holds a malformed percent-encoding")]
    PercentEncoding,
    #[error("holds an unknown parameter; known are sslmode, sslrootcert, sslcert, sslkey, connect_timeout, compress")]
    UnknownWord,
    #[error("parameter \"{word}\" must be {expected}")]
    Value { word: &'static str, expected: &'static str },
    #[error("parameter \"{0}\" needs an https:// URL")]
    NeedsTls(&'static str),
}

impl Address {
    /// Of a configured sink: what stands beside its address comes before what stands inside it.
    pub fn of(end: &ClickHouseEnd) -> Result<Address, AddressError> {
        let mut address = Address::parse(end.url.expose())?;
        if let Some(password) = &end.password {
            address.password = Some(password.clone());
        }
        Ok(address)
    }

    pub fn parse(text: &str) -> Result<Address, AddressError> {
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(AddressError::Form),
        };
        let (rest, words) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // The last "@": a password may hold one.
        let (login, server) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(Secret::new(decoded(password)?))),
            None => (login, None),
        };
        let (host, port) = host_and_port(server)?;
        let or_default = |text: String| if text.is_empty() { "default".to_owned() } else { text };
        let local = is_this_machine(host);
        let mut address = Address {
            host: host.to_owned(),
            port: port.unwrap_or(if tls { TLS_PORT } else { PLAIN_PORT }),
            user: or_default(decoded(user)?),
            password,
            database: or_default(decoded(path)?),
            ssl_mode: if tls { SslMode::VerifyFull } else { SslMode::Disable },
            ssl_root_cert: None,
            ssl_client: None,
            connect_timeout: CONNECT_TIMEOUT,
            // Between processes of one machine compressing costs more than it saves.
            compression: if local { Compression::None } else { Compression::Lz4 },
        };
        address.read_words(words)?;
        Ok(address)
    }

    fn read_words(&mut self, words: &str) -> Result<(), AddressError> {
        let (mut cert, mut key) = (None, None);
        for pair in words.split('&').filter(|pair| !pair.is_empty()) {
            let (word, value) = pair.split_once('=').ok_or(AddressError::UnknownWord)?;
            let value = decoded(value)?;
            match word {
                "sslmode" => self.ssl_mode = self.mode(&value)?,
                "sslrootcert" => self.ssl_root_cert = Some(self.tls_only("sslrootcert", value)?.into()),
                "sslcert" => cert = Some(PathBuf::from(self.tls_only("sslcert", value)?)),
                "sslkey" => key = Some(PathBuf::from(self.tls_only("sslkey", value)?)),
                "connect_timeout" => {
                    let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
                    let bad = AddressError::Value { word: "connect_timeout", expected: "a number of seconds" };
                    self.connect_timeout = Duration::from_secs(seconds.ok_or(bad)?);
                }
                "compress" => {
                    self.compression = match value.as_str() {
                        "none" => Compression::None,
                        "lz4" => Compression::Lz4,
                        _ => return Err(AddressError::Value { word: "compress", expected: "\"lz4\" or \"none\"" }),
                    }
                }
                _ => return Err(AddressError::UnknownWord),
            }
        }
        self.ssl_client = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err(AddressError::Value { word: "sslcert", expected: "given together with \"sslkey\"" }),
        };
        Ok(())
    }

    fn tls_only<T>(&self, word: &'static str, value: T) -> Result<T, AddressError> {
        if self.ssl_mode == SslMode::Disable { Err(AddressError::NeedsTls(word)) } else { Ok(value) }
    }

    fn mode(&self, value: &str) -> Result<SslMode, AddressError> {
        let mode = match value {
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => {
                let expected = "\"require\", \"verify-ca\" or \"verify-full\"";
                return Err(AddressError::Value { word: "sslmode", expected });
            }
        };
        self.tls_only("sslmode", mode)
    }
}

fn decoded(text: &str) -> Result<String, AddressError> {
    decode(text).map_err(|_| AddressError::PercentEncoding)
}

/// An IPv6 address stands in brackets.
pub(in crate::sink) fn host_and_port(server: &str) -> Result<(&str, Option<u16>), AddressError> {
    let (host, rest) = match server.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').ok_or(AddressError::Form)?,
        None => server.split_at(server.find(':').unwrap_or(server.len())),
    };
    if host.is_empty() {
        return Err(AddressError::Form);
    }
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok((host, None)),
        None => Err(AddressError::Form),
        Some(port) => {
            let bad = AddressError::Value { word: "port", expected: "a number from 1 to 65535" };
            Ok((host, Some(port.parse().ok().filter(|port| *port != 0).ok_or(bad)?)))
        }
    }
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_defaults() {
        let plain = Address::parse("http://127.0.0.1").expect("an address");
        assert_eq!((plain.port, plain.user.as_str(), plain.database.as_str()), (8123, "default", "default"));
        assert_eq!((plain.ssl_mode, plain.compression), (SslMode::Disable, Compression::None));
        let full =
            Address::parse("https://tail%40water:s%2F3@[2001:db8::1]:9440/dwh?sslmode=verify-ca&sslrootcert=%2Fca.pem")
                .expect("an address");
        assert_eq!((full.host.as_str(), full.port), ("2001:db8::1", 9440));
        assert_eq!((full.user.as_str(), full.database.as_str()), ("tail@water", "dwh"));
        assert_eq!(full.password.as_ref().map(Secret::expose), Some("s/3"));
        assert_eq!((full.ssl_mode, full.compression), (SslMode::VerifyCa, Compression::Lz4));
        assert_eq!(full.ssl_root_cert, Some(PathBuf::from("/ca.pem")));
        assert_eq!(Address::parse("https://ch.internal/").expect("an address").ssl_mode, SslMode::VerifyFull);
    }

    #[test]
    fn a_password_beside_the_address_comes_first() {
        let mut end = ClickHouseEnd { url: Secret::new("https://one:first@h"), password: None, cluster: None };
        let password = |end: &ClickHouseEnd| Address::of(end).expect("an address").password;
        assert_eq!(password(&end).as_ref().map(Secret::expose), Some("first"));
        end.password = Some(Secret::new("second"));
        assert_eq!(password(&end).as_ref().map(Secret::expose), Some("second"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_text() {
        for text in [
            "tcp://u:s3cret@h",
            "http://u:s3cret@",
            "http://u:s3cret@h:0",
            "http://u:s3cret@h:x",
            "http://u:s3%zzcret@h",
            "http://u:s3cret@h?sslmode=require",
            "https://u:s3cret@h?sslmode=disable",
            "https://u:s3cret@h?password=s3cret",
            "https://u:s3cret@h?sslcert=s3cret",
            "https://u:s3cret@h?compress=s3cret",
            "https://u:s3cret@h?connect_timeout=0",
        ] {
            let error = Address::parse(text).expect_err(text);
            assert!(!format!("{error} {error:?}").contains("s3"), "{error}");
        }
        let address = Address::parse("http://u:s3cret@h").expect("an address");
        assert!(!format!("{address:?}").contains("s3cret"));
    }
}
