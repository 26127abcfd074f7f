//! HTTP towards one server, for the sinks that speak it: connections that are kept, TLS where it is asked for.
//!
//! A connection is driven by whoever waits for an answer on it, so there is no task to leave behind, and an exchange that is
//! dropped takes its connection with it.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HeaderValue;
use hyper::http::response::Parts;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::postgres::tls;

/// Servers hang up on idle connections, some after 3 s; one that has been idle for this long is not used again.
const IDLE_MAX: Duration = Duration::from_secs(2);
/// Connections kept for the next request.
const IDLE_COUNT_MAX: usize = 8;
/// Answers are state rows, catalogs and schemas.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why there is no answer. Everything in it may be shown.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HttpError {
    /// The server is not reached, or the connection broke. Whether the request was carried out is not known.
    #[error("{0}")]
    Connection(String),
    /// Whoever answers does not speak TLS, or is not believed.
    #[error("{0}")]
    Tls(String),
    /// Whether the request was or will be carried out is not known.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The configuration cannot work.
    #[error("{0}")]
    Settings(String),
}

/// One server, and connections to it.
pub struct Connections {
    /// Who it is, in errors.
    peer: &'static str,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    connect_timeout: Duration,
    idle: Mutex<Vec<Line>>,
}

/// A connection and what drives it.
struct Line {
    peer: &'static str,
    sender: SendRequest<Full<Bytes>>,
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
    idle_since: Instant,
}

/// What the server answered, whatever its status.
pub struct Answer {
    pub parts: Parts,
    pub body: Bytes,
}

impl Connections {
    /// Connects to nothing yet.
    pub fn new(
        peer: &'static str,
        host: &str,
        port: u16,
        tls: Option<Arc<ClientConfig>>,
        connect_timeout: Duration,
    ) -> Connections {
        Connections { peer, host: host.to_owned(), port, tls, connect_timeout, idle: Mutex::default() }
    }

    /// What a request's `Host` header says.
    pub fn host_header(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// Sends a request over a connection that is idle, or a new one.
    ///
    /// # Errors
    /// There is no answer `within` this time. An answer that says no is none.
    pub async fn exchange(&self, request: Request<Full<Bytes>>, within: Duration) -> Result<Answer, HttpError> {
        let whole = async {
            let mut line = match self.idle_line().await {
                Some(line) => line,
                None => self.connect().await?,
            };
            let answer = line.exchange(request).await?;
            line.idle_since = Instant::now();
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_COUNT_MAX {
                idle.push(line);
            }
            Ok(answer)
        };
        timeout(within, whole).await.map_err(|_| HttpError::Timeout(within))?
    }

    /// A connection that the server has not closed as far as can be seen.
    async fn idle_line(&self) -> Option<Line> {
        loop {
            let mut line = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            if line.idle_since.elapsed() < IDLE_MAX && line.is_open().await {
                return Some(line);
            }
        }
    }

    async fn connect(&self) -> Result<Line, HttpError> {
        let (host, port) = (self.host.as_str(), self.port);
        let failed = |error: io::Error| {
            let cannot = format!("cannot connect to \"{host}\" port {port}");
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                // What came back is none of its messages.
                Some(rustls::Error::InvalidMessage(_)) => HttpError::Tls(format!("{cannot}: it does not speak TLS")),
                Some(error) => HttpError::Tls(format!("{cannot}: {error}")),
                None => HttpError::Connection(format!("{cannot}: {}", error.kind())),
            }
        };
        let opened = async {
            let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
            // Without it, the tail of a request waits for the acknowledgement of its head, 40 ms.
            stream.set_nodelay(true).map_err(failed)?;
            match &self.tls {
                None => Line::over(self.peer, stream).await,
                Some(config) => {
                    let name = tls::server_name(host).map_err(|error| HttpError::Settings(error.to_string()))?;
                    let stream = TlsConnector::from(config.clone()).connect(name, stream).await.map_err(failed)?;
                    Line::over(self.peer, stream).await
                }
            }
        };
        let patience = self.connect_timeout;
        let late = || HttpError::Connection(format!("cannot connect to \"{host}\" port {port} within {patience:?}"));
        timeout(patience, opened).await.map_err(|_| late())?
    }
}

impl Line {
    async fn over(
        peer: &'static str,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Result<Line, HttpError> {
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(peer, &error))?;
        Ok(Line { peer, sender, driver: Box::pin(driver), idle_since: Instant::now() })
    }

    /// Reads what the server has sent meanwhile, which can only be that it hangs up.
    async fn is_open(&mut self) -> bool {
        tokio::select! {
            // In this order: a connection that has ended says ready, too.
            biased;
            _ = &mut self.driver => false,
            ready = self.sender.ready() => ready.is_ok(),
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer, HttpError> {
        let (peer, sender) = (self.peer, &mut self.sender);
        let mut talk = pin!(async move {
            let response = sender.send_request(request).await.map_err(|error| broken(peer, &error))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|_| HttpError::Connection("the answer was cut short".to_owned()))?;
            Ok(Answer { parts, body: body.to_bytes() })
        });
        tokio::select! {
            biased;
            answer = &mut talk => answer,
            // It may have ended after the answer: what has arrived is still there to be read.
            _ = &mut self.driver => talk.await,
        }
    }
}

/// hyper's texts speak of the protocol only.
fn broken(peer: &str, error: &hyper::Error) -> HttpError {
    HttpError::Connection(format!("the connection to {peer} broke: {error}"))
}

/// A header's value that is shown nowhere; `what` it is, for whoever gave one that no header can carry.
pub fn secret(what: &str, text: &[u8]) -> Result<HeaderValue, HttpError> {
    let mut value = HeaderValue::from_bytes(text)
        .map_err(|_| HttpError::Settings(format!("the {what} holds a control character")))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Percent-encodes all but the characters that need no encoding anywhere in a URL.
pub fn push_encoded(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.extend([byte >> 4, byte & 15].map(|digit| char::from(b"0123456789ABCDEF"[usize::from(digit)])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_survive_the_url() {
        let mut out = String::new();
        push_encoded(&mut out, "INSERT INTO `a b`&=é%+#\n");
        assert_eq!(out, "INSERT%20INTO%20%60a%20b%60%26%3D%C3%A9%25%2B%23%0A");
    }
}
