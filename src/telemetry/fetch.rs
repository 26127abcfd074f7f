//! A GET over plain HTTP, for `tailwater status` to ask the daemon on the same machine. Nothing more is needed of it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use super::status::Status;

/// For connecting, and for each read.
const PATIENCE: Duration = Duration::from_secs(5);

/// A status document of ten thousand tables has about 3 MB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("\"{0}\" is not an address like http://127.0.0.1:9629")]
    Url(String),
    #[error("no daemon answers at {address}")]
    Unreachable { address: String, source: io::Error },
    #[error("the connection to {address} broke")]
    Broken { address: String, source: io::Error },
    #[error("{address} does not answer as a tailwater daemon does")]
    Foreign { address: String },
    #[error("{address} answers {code}")]
    Refused { address: String, code: u16 },
    #[error("the status document does not parse; is the daemon of another version?")]
    Document(#[source] serde_json::Error),
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    pub code: u16,
    pub body: Vec<u8>,
}

/// The status document of the daemon at `url`, and its text as it came. Blocks for seconds at most.
///
/// # Errors
/// [`FetchError::Unreachable`] if nothing listens there; the others if it is not a healthy daemon of this kind.
pub fn fetch_status(url: &str) -> Result<(Status, Vec<u8>), FetchError> {
    let answer = get(url, "/status")?;
    if answer.code != 200 {
        return Err(FetchError::Refused { address: url.to_owned(), code: answer.code });
    }
    let status = serde_json::from_slice(&answer.body).map_err(FetchError::Document)?;
    Ok((status, answer.body))
}

/// Asks for `path`, which begins with a slash. Blocks for seconds at most.
///
/// # Errors
/// As [`fetch_status`]; an HTTP status is no error here.
pub fn get(url: &str, path: &str) -> Result<Answer, FetchError> {
    let authority = authority(url).ok_or_else(|| FetchError::Url(url.to_owned()))?;
    let address = || authority.clone();
    let mut stream = connect(&authority).map_err(|source| FetchError::Unreachable { address: address(), source })?;
    // HTTP/1.0: the answer ends where the connection does, and is never chunked.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {authority}\r\nAccept: */*\r\n\r\n");
    let mut bytes = Vec::new();
    stream
        .write_all(request.as_bytes())
        .and_then(|()| stream.take(ANSWER_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|source| FetchError::Broken { address: address(), source })?;
    parse(&bytes).ok_or_else(|| FetchError::Foreign { address: address() })
}

/// `host:port` of an address. Only what may stand in a Host header passes.
fn authority(url: &str) -> Option<String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some(_) => return None,
        None => url,
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if authority.is_empty() || !authority.bytes().all(legal) {
        return None;
    }
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, after)| after);
    match after_host.rsplit_once(':') {
        Some((_, port)) => port.parse::<u16>().ok().map(|_| authority.to_owned()),
        None => Some(format!("{authority}:80")),
    }
}

fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let addresses: Vec<SocketAddr> = authority.to_socket_addrs()?.collect();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// An answer that is whole: one that announces a length has it.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, body) = bytes.split_at_checked(head_end)?;
    let body = body.get(4..)?;
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let code = words.next()?.parse().ok()?;
    let announced =
        lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    if let Some((_, length)) = announced
        && length.trim().parse() != Ok(body.len())
    {
        return None;
    }
    Some(Answer { code, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for (url, expected) in [
            ("http://127.0.0.1:9629", "127.0.0.1:9629"),
            ("http://localhost:9629/", "localhost:9629"),
            ("127.0.0.1:9629", "127.0.0.1:9629"),
            ("http://[::1]:9629", "[::1]:9629"),
            ("http://[::1]", "[::1]:80"),
            ("http://tailwater.internal", "tailwater.internal:80"),
        ] {
            assert_eq!(authority(url).as_deref(), Some(expected), "{url}");
        }
    }

    #[test]
    fn other_addresses_are_refused() {
        for url in
            ["", "https://localhost", "http://a b", "http://a/b", "http://a:99999", "http://u:p@h:1", "http://a\r\nX:1"]
        {
            assert!(matches!(get(url, "/status"), Err(FetchError::Url(_))), "{url} was taken");
        }
    }

    #[test]
    fn answers_are_read_and_torn_ones_refused() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(parse(whole), Some(Answer { code: 200, body: b"hi".to_vec() }));
        assert_eq!(parse(b"HTTP/1.1 503 No\r\n\r\n").map(|answer| answer.code), Some(503));
        for torn in [&whole[..whole.len() - 1], b"HTTP/1.0 200 OK\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.0\r\n\r\n", b""]
        {
            assert_eq!(parse(torn), None);
        }
    }

    #[test]
    fn a_closed_port_says_that_no_daemon_answers() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
        let error = fetch_status(&format!("http://{free}")).expect_err("nothing listens");
        assert_eq!(error.to_string(), format!("no daemon answers at {free}"));
    }
}
