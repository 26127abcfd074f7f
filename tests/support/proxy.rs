//! A line between two programs that can go silent or be cut at a chosen byte. On threads of its own, so that it goes on
//! while a test blocks.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::cluster::free_port;

/// How soon a pump sees that something was asked of it.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The end of a COMMIT, as a simple query and as the server's answer to it.
const COMMIT: &[u8] = b"COMMIT\0";

/// Where to cut a connection, once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// The server never sees the COMMIT.
    BeforeCommit,
    /// The server commits; the client never hears of it.
    AfterCommit,
}

#[derive(Default)]
struct Shared {
    connections: AtomicU64,
    /// Connections with a lower number carry nothing any more, though they stay open.
    silent_below: AtomicU64,
    cut: Mutex<Option<Cut>>,
    cuts: AtomicU64,
    closed: AtomicBool,
}

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Carries what comes to a port of its own to `target` on this machine.
    pub fn start(target: u16) -> Result<Proxy> {
        let port = free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("the proxy's port")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.closed.load(Ordering::Relaxed) {
                    return;
                }
                // A server that is down is a connection that ends at once.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) {
                    let _ = Line::open(client, server, &theirs);
                }
            }
        });
        Ok(Proxy { port, shared })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every connection open now carries nothing from here on, and nobody is told. New ones work.
    pub fn silence(&self) {
        self.shared.silent_below.store(self.shared.connections.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Cuts the connection on which the next COMMIT comes.
    pub fn cut(&self, at: Cut) {
        *self.shared.cut.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(at);
    }

    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// One connection, carried by two threads.
struct Line {
    number: u64,
    shared: Arc<Shared>,
    /// The client's COMMIT went through; the server's answer to it will not.
    swallows: AtomicBool,
}

impl Line {
    fn open(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> std::io::Result<()> {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst);
        let line = Arc::new(Line { number, shared: Arc::clone(shared), swallows: AtomicBool::new(false) });
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(LOOK_EVERY))?;
        }
        let (there, back) = ((client.try_clone()?, server.try_clone()?), (server, client));
        let other = Arc::clone(&line);
        thread::spawn(move || line.pump(there.0, there.1, Line::forth));
        thread::spawn(move || other.pump(back.0, back.1, Line::back));
        Ok(())
    }

    fn is_silent(&self) -> bool {
        self.number < self.shared.silent_below.load(Ordering::SeqCst)
    }

    /// Carries bytes until either end closes or `pass` says that the line is to be cut.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, pass: fn(&Line, &[u8]) -> Pass) {
        let mut buffer = vec![0; 64 * 1024];
        // The last bytes of the reads before, so that a word cut in two is seen.
        let mut seen: Vec<u8> = Vec::new();
        while !self.shared.closed.load(Ordering::Relaxed) {
            if self.is_silent() {
                thread::sleep(LOOK_EVERY);
                continue;
            }
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
                Err(_) => break,
            };
            seen.extend_from_slice(&buffer[..length]);
            let pass = pass(self, &seen);
            let kept = seen.len().saturating_sub(COMMIT.len() - 1);
            seen.drain(..kept);
            let carried = match pass {
                Pass::On => to.write_all(&buffer[..length]).is_ok(),
                Pass::Drop => true,
                Pass::Cut => false,
            };
            if !carried {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    /// From the client to the server.
    fn forth(&self, seen: &[u8]) -> Pass {
        if !has_commit(seen) {
            return Pass::On;
        }
        match self.shared.cut.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            None => Pass::On,
            Some(Cut::BeforeCommit) => {
                self.shared.cuts.fetch_add(1, Ordering::SeqCst);
                Pass::Cut
            }
            Some(Cut::AfterCommit) => {
                self.swallows.store(true, Ordering::SeqCst);
                Pass::On
            }
        }
    }

    /// From the server to the client.
    fn back(&self, seen: &[u8]) -> Pass {
        if !self.swallows.load(Ordering::SeqCst) {
            return Pass::On;
        }
        if has_commit(seen) {
            self.shared.cuts.fetch_add(1, Ordering::SeqCst);
            return Pass::Cut;
        }
        Pass::Drop
    }
}

enum Pass {
    On,
    Drop,
    Cut,
}

fn has_commit(bytes: &[u8]) -> bool {
    bytes.windows(COMMIT.len()).any(|window| window == COMMIT)
}
