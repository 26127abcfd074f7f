//! What stands between a client and an HTTP server and decides what becomes of single requests: lost, done without an answer,
//! or done much later. On threads of its own, so that it goes on while a test blocks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::cluster::free_port;

/// What becomes of one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The server never sees it.
    Unsent,
    /// The server does it; the client never hears of it.
    Unanswered,
    /// The client hears nothing; the server sees it when the test says so.
    Late,
}

/// Which request, and what the client sees of it.
struct Strike {
    /// Requests that have all of these words in their statement count.
    words: Vec<String>,
    /// So many of them pass first.
    others: u64,
    fate: Fate,
    /// The connection stays open and silent; else it is closed.
    silent: bool,
}

#[derive(Default)]
struct Shared {
    strike: Mutex<Option<Strike>>,
    struck: AtomicU64,
    late: Mutex<Vec<Request>>,
    closed: AtomicBool,
}

pub struct HttpProxy {
    port: u16,
    target: u16,
    shared: Arc<Shared>,
}

impl HttpProxy {
    /// Carries what comes to a port of its own to `target` on this machine.
    pub fn start(target: u16) -> Result<HttpProxy> {
        let port = free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("the proxy's port")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.closed.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&theirs);
                // An error is an end that went away, which its other end sees.
                thread::spawn(move || drop(shared.serve(client, target)));
            }
        });
        Ok(HttpProxy { port, target, shared })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The request that comes after `others` meets its fate, and its connection is closed.
    pub fn cut(&self, others: u64, fate: Fate) {
        self.strike_at(&[], others, fate, false);
    }

    /// The next request with these words in its statement meets its fate, and its connection is closed.
    pub fn cut_at(&self, words: &str, fate: Fate) {
        self.strike_at(&[words], 0, fate, false);
    }

    /// The same, after `others` with these words.
    pub fn cut_at_one_of(&self, words: &str, others: u64, fate: Fate) {
        self.strike_at(&[words], others, fate, false);
    }

    /// The next request with all of these words in its statement meets its fate, and its client waits for ever.
    pub fn hold(&self, words: &[&str], fate: Fate) {
        self.strike_at(words, 0, fate, true);
    }

    fn strike_at(&self, words: &[&str], others: u64, fate: Fate, silent: bool) {
        let words = words.iter().map(|&words| words.to_owned()).collect();
        *self.shared.strike() = Some(Strike { words, others, fate, silent });
    }

    /// Nothing more happens to requests.
    pub fn calm(&self) {
        *self.shared.strike() = None;
    }

    /// How many requests met their fate.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// Hands the server what came late, in the order in which it came; how much that was. What becomes of it is not asked.
    pub fn deliver(&self) -> Result<usize> {
        let late = std::mem::take(&mut *self.shared.late.lock().unwrap_or_else(PoisonError::into_inner));
        for request in &late {
            request.forward(self.target)?;
        }
        Ok(late.len())
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn strike(&self) -> MutexGuard<'_, Option<Strike>> {
        self.strike.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut client: TcpStream, target: u16) -> Result<()> {
        client.set_nodelay(true)?;
        while let Some(request) = Request::read(&mut client)? {
            let Some(Strike { fate, silent, .. }) = self.judge(&request) else {
                client.write_all(&request.forward(target)?)?;
                continue;
            };
            match fate {
                Fate::Unsent => {}
                Fate::Unanswered => drop(request.forward(target)?),
                Fate::Late => self.late.lock().unwrap_or_else(PoisonError::into_inner).push(request),
            }
            self.struck.fetch_add(1, Ordering::SeqCst);
            if silent {
                // Until the client goes away.
                let _ = client.read_to_end(&mut Vec::new());
            }
            break;
        }
        Ok(())
    }

    /// Takes the strike out if this is its request.
    fn judge(&self, request: &Request) -> Option<Strike> {
        let mut next = self.strike();
        let strike = next.as_mut()?;
        let statement = if strike.words.is_empty() { String::new() } else { request.statement() };
        if !strike.words.iter().all(|words| statement.contains(words.as_str())) {
            return None;
        }
        if strike.others > 0 {
            strike.others -= 1;
            return None;
        }
        next.take()
    }
}

/// One request, whole.
struct Request {
    /// Request line and headers, without the empty line.
    head: String,
    body: Vec<u8>,
}

impl Request {
    /// `None` where the client is done.
    fn read(client: &mut TcpStream) -> Result<Option<Request>> {
        let mut bytes = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        let end = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            match client.read(&mut buffer)? {
                0 if bytes.is_empty() => return Ok(None),
                0 => bail!("a request ends early"),
                length => bytes.extend_from_slice(&buffer[..length]),
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut body = bytes.split_off(end + 4);
        let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let read = body.len();
        body.resize(length, 0);
        client.read_exact(body.get_mut(read..).context("more than one request at once")?)?;
        Ok(Some(Request { head, body }))
    }

    /// Its statement, which stands in the address or in the body, or in both.
    fn statement(&self) -> String {
        let target = self.head.split(' ').nth(1).unwrap_or_default();
        let mut bytes = Vec::new();
        let mut rest = target.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            let code = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
            match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| first == b'%') {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                None => {
                    bytes.push(first);
                    rest = tail;
                }
            }
        }
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Asks the server, over a connection that ends with the answer; the answer for a client whose connection goes on.
    fn forward(&self, target: u16) -> Result<Vec<u8>> {
        let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target))?;
        server.set_nodelay(true)?;
        let mut request = self.head.replacen(" HTTP/1.1", " HTTP/1.0", 1).into_bytes();
        request.extend_from_slice(b"\r\n\r\n");
        request.extend_from_slice(&self.body);
        server.write_all(&request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer ends early")?;
        let body = answer.split_off(end + 4);
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let told = header(&head, "content-length").and_then(|text| text.parse().ok());
        if told.is_some_and(|length: usize| length != body.len()) {
            bail!("the answer is cut short");
        }
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default().replacen("HTTP/1.0", "HTTP/1.1", 1);
        let of_connection = ["connection:", "keep-alive:", "transfer-encoding:", "content-length:"];
        let kept = lines.filter(|line| !of_connection.iter().any(|name| line.to_lowercase().starts_with(name)));
        let mut out: String = std::iter::once(status.as_str()).chain(kept).flat_map(|line| [line, "\r\n"]).collect();
        out.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        Ok([out.into_bytes(), body].concat())
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
