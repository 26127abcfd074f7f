//! What must be known of an address before anybody connects to it.

use std::net::IpAddr;

/// A url's parts that decide whether it is fit to stand in the configuration.
pub(super) struct Address {
    pub(super) has_password: bool,
    /// Loopback or a Unix socket.
    pub(super) is_local: bool,
}

impl Address {
    /// A Postgres url; `None` if it is none.
    pub(super) fn postgres(url: &str) -> Option<Address> {
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"))?;
        let (authority, tail) = match rest.find(['/', '?']) {
            Some(end) => rest.split_at(end),
            None => (rest, ""),
        };
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let parameters = tail.split_once('?').map_or("", |(_, parameters)| parameters);
        let parameter = |name: &str| parameters.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let host = parameter("host").unwrap_or(host);
        Some(Address {
            has_password: user.contains(':') || parameter("password").is_some(),
            is_local: host.split(',').all(is_local),
        })
    }

    /// The url of an HTTP interface; `None` if it is none.
    pub(super) fn http(url: &str) -> Option<Address> {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"))?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        (!host.is_empty()).then(|| Address { has_password: user.contains(':'), is_local: is_local(host) })
    }
}

/// Does a host, with or without its port, stay on this machine? An empty one is the default Unix socket.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let is_socket = name.is_empty() || name.starts_with('/') || name.to_ascii_lowercase().starts_with("%2f");
    is_socket || name == "localhost" || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}
