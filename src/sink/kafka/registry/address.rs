//! Where a schema registry is reached: `https://user@host:8081/path`, and what stands beside it.
//!
//! No error, `Debug` or `Display` repeats the text given: it may hold a password.

use std::path::PathBuf;

use crate::config::{RegistryEnd, Secret};
use crate::postgres::url::decode;
use crate::sink::clickhouse::address::host_and_port;

const PLAIN_PORT: u16 = 80;
const TLS_PORT: u16 = 443;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegistryAddress {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    /// Under which the API stands: empty, or with a slash before it and none behind, as a request has it.
    pub path: String,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub ca_file: Option<PathBuf>,
}

/// What is wrong with it, never what stands there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegistryAddressError {
    #[error("is no http:// or https:// URL of a host, a port and a path")]
    Form,
    #[error("holds a malformed percent-encoding")]
    PercentEncoding,
    #[error("holds a password and no user")]
    NoUser,
    #[error("has a \"ca_file\", which needs an https:// URL")]
    NeedsTls,
}

impl RegistryAddress {
    /// What stands beside the URL comes before what stands inside it.
    pub fn of(end: &RegistryEnd) -> Result<RegistryAddress, RegistryAddressError> {
        let text = end.url.expose();
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(RegistryAddressError::Form),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        // The last "@": a password may hold one.
        let (login, server) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').map_or((login, None), |(user, word)| (user, Some(word)));
        let decoded = |text: &str| decode(text).map_err(|_| RegistryAddressError::PercentEncoding);
        let user = Some(decoded(user)?).filter(|user| !user.is_empty());
        let password = password.map(decoded).transpose()?.map(Secret::new);
        let (host, port) = host_and_port(server).map_err(|_| RegistryAddressError::Form)?;
        let is_path = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
        if !path.bytes().all(is_path) {
            return Err(RegistryAddressError::Form);
        }
        let address = RegistryAddress {
            host: host.to_owned(),
            port: port.unwrap_or(if tls { TLS_PORT } else { PLAIN_PORT }),
            tls,
            path: path.trim_end_matches('/').to_owned(),
            user: end.user.clone().or(user),
            password: end.password.clone().or(password),
            ca_file: end.ca_file.clone(),
        };
        match &address {
            RegistryAddress { password: Some(_), user: None, .. } => Err(RegistryAddressError::NoUser),
            RegistryAddress { ca_file: Some(_), tls: false, .. } => Err(RegistryAddressError::NeedsTls),
            _ => Ok(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(url: &str) -> RegistryEnd {
        RegistryEnd { url: Secret::new(url), user: None, password: None, ca_file: None }
    }

    #[test]
    fn addresses_are_read_with_defaults() {
        let of = |url: &str| RegistryAddress::of(&end(url)).expect("an address");
        let plain = of("http://registry");
        assert_eq!((plain.host.as_str(), plain.port, plain.path.as_str(), plain.tls), ("registry", 80, "", false));
        let full = of("https://tail%40water:s%2F3@[2001:db8::1]:8081/apis/ccompat/v7/");
        assert_eq!((full.host.as_str(), full.port, full.tls), ("2001:db8::1", 8081, true));
        assert_eq!((full.path.as_str(), full.user.as_deref()), ("/apis/ccompat/v7", Some("tail@water")));
        assert_eq!(full.password.as_ref().map(Secret::expose), Some("s/3"));
        assert_eq!(of("https://registry/").path, "");
    }

    #[test]
    fn what_stands_beside_the_url_comes_first() {
        let beside = RegistryEnd {
            user: Some("second".to_owned()),
            password: Some(Secret::new("other")),
            ..end("http://first:word@h")
        };
        let address = RegistryAddress::of(&beside).expect("an address");
        assert_eq!(address.user.as_deref(), Some("second"));
        assert_eq!(address.password.as_ref().map(Secret::expose), Some("other"));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_text() {
        for url in [
            "tcp://u:s3cret@h",
            "http://u:s3cret@",
            "http://u:s3cret@h:0",
            "http://u:s3%zzcret@h",
            "http://:s3cret@h",
            "http://u:s3cret@h/a?token=s3cret",
            "http://u:s3cret@h/a b",
        ] {
            let error = RegistryAddress::of(&end(url)).expect_err(url);
            assert!(!format!("{error} {error:?}").contains("s3"), "{error}");
        }
        let with_authority = RegistryEnd { ca_file: Some("ca.pem".into()), ..end("http://h") };
        assert_eq!(RegistryAddress::of(&with_authority), Err(RegistryAddressError::NeedsTls));
        let address = RegistryAddress::of(&end("http://u:s3cret@h")).expect("an address");
        assert!(!format!("{address:?}").contains("s3cret"));
    }
}
