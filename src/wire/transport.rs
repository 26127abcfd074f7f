//! The socket under the replication connection: TCP, TCP with TLS, or a Unix-domain socket.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::{ClientConnection, StreamOwned};
use sha2::{Digest, Sha256};
use socket2::{SockRef, TcpKeepalive};

use super::WireError;
use crate::postgres::connect::{KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_RETRIES, TCP_USER_TIMEOUT};
use crate::postgres::tls;
use crate::postgres::url::{Address, Endpoint, PgUrl};

/// Receive buffer asked for; the kernel may give less. More room lets the sender's small packets merge.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Signature algorithms with SHA-256, as their object identifiers stand in a certificate: RSA, then ECDSA.
const SHA256_SIGNATURES: [&[u8]; 2] =
    [&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b], &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]];

pub(super) enum Transport {
    Tcp(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    Unix(UnixStream),
}

impl Transport {
    pub(super) fn open(url: &PgUrl, endpoint: &Endpoint) -> Result<Transport, WireError> {
        match &endpoint.address {
            Address::Unix(directory) => {
                let path = directory.join(format!(".s.PGSQL.{}", endpoint.port));
                Ok(Transport::Unix(UnixStream::connect(path)?))
            }
            Address::Tcp(host) => {
                let stream = connect_tcp(host, endpoint.port, url.connect_timeout)?;
                match tls::client_config(url)? {
                    None => Ok(Transport::Tcp(stream)),
                    Some(config) => encrypt(stream, host, config, url.connect_timeout),
                }
            }
        }
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => stream.set_read_timeout(timeout),
            Transport::Tls(stream) => stream.sock.set_read_timeout(timeout),
            Transport::Unix(stream) => stream.set_read_timeout(timeout),
        }
    }

    /// Whether reads wait for bytes. Writes go by it too.
    pub(super) fn set_blocking(&self, blocking: bool) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => stream.set_nonblocking(!blocking),
            Transport::Tls(stream) => stream.sock.set_nonblocking(!blocking),
            Transport::Unix(stream) => stream.set_nonblocking(!blocking),
        }
    }

    /// RFC 5929 `tls-server-end-point`: the digest of the server's certificate, by the hash of its own signature. `None`
    /// without TLS, and where that hash is not SHA-256.
    pub(super) fn server_end_point(&self) -> Option<Vec<u8>> {
        let Transport::Tls(stream) = self else { return None };
        let certificate = stream.conn.peer_certificates()?.first()?;
        let signed_by = |oid: &&[u8]| certificate.windows(oid.len()).any(|window| &window == oid);
        SHA256_SIGNATURES.iter().any(signed_by).then(|| Sha256::digest(certificate).to_vec())
    }
}

fn connect_tcp(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, WireError> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let socket = SockRef::from(&stream);
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_RETRIES);
                socket.set_tcp_keepalive(&keepalive)?;
                socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
                socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// Postgres docs, "SSL Session Encryption": the server answers one byte, `S` or `N`, and nothing may follow before the
/// handshake.
fn encrypt(
    mut stream: TcpStream,
    host: &str,
    config: std::sync::Arc<rustls::ClientConfig>,
    timeout: Duration,
) -> Result<Transport, WireError> {
    stream.set_read_timeout(Some(timeout))?;
    let mut out = BytesMut::new();
    frontend::ssl_request(&mut out);
    stream.write_all(&out)?;
    let mut answer = [0u8];
    stream.read_exact(&mut answer)?;
    if answer != *b"S" {
        return Err(WireError::Protocol("server does not offer TLS".to_owned()));
    }
    let mut connection = ClientConnection::new(config, tls::server_name(host)?)
        .map_err(|error| WireError::Protocol(format!("TLS: {error}")))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(Transport::Tls(Box::new(StreamOwned::new(connection, stream))))
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.read(buffer),
            Transport::Tls(stream) => stream.read(buffer),
            Transport::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(stream) => stream.write(buffer),
            Transport::Tls(stream) => stream.write(buffer),
            Transport::Unix(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Transport::Tcp(stream) => stream.flush(),
            Transport::Tls(stream) => stream.flush(),
            Transport::Unix(stream) => stream.flush(),
        }
    }
}
