//! What stands between a daemon and a Kafka broker, reads the requests, and at a chosen one strikes the daemon dead: before
//! the broker sees it, or when the broker has done it and the daemon has not heard. On threads of its own.
//!
//! A request and its answer are frames: a length of four bytes, then of a request the kind (two bytes), the version (two)
//! and a number (four) that the answer begins with. Kafka's protocol guide, "Common Request and Response Structure".

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use super::cluster::free_port;
use super::process;

/// Kinds of requests, as the protocol guide numbers them.
pub const PRODUCE: i16 = 0;
pub const LIST_OFFSETS: i16 = 2;
pub const INIT_PRODUCER_ID: i16 = 22;
pub const ADD_PARTITIONS: i16 = 24;
pub const END_TRANSACTION: i16 = 26;

/// More than any request of the tests.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// A request, by its kind and by words that its bytes hold; of a word behind a `!`, that they do not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step(pub i16, pub &'static [&'static str]);

impl Step {
    fn is(&self, request: &[u8]) -> bool {
        let fits = |word: &&str| match word.strip_prefix('!') {
            Some(absent) => !has(request, absent),
            None => has(request, word),
        };
        kind(request) == Some(self.0) && self.1.iter().all(fits)
    }
}

/// What becomes of a request, and of who sent it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// The daemon dies before the broker sees it.
    Unsent,
    /// The daemon dies when the broker has done it, and has not heard.
    Unanswered,
    /// The daemon is frozen, and the broker sees it when the test says so.
    Late,
}

#[derive(Default)]
struct State {
    /// The broker's port.
    target: u16,
    /// What has to come yet, in this order; the last is struck.
    path: Vec<Step>,
    fate: Option<Fate>,
    victim: Option<u32>,
    struck: u64,
    /// Late requests may go.
    released: bool,
    /// Topics, with those whose partitions are added to transactions in their place.
    forgotten: Vec<(&'static str, &'static str)>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        let goes_on = |state: &mut State| !until(state) && !state.closed;
        self.changed.wait_while(state, goes_on).unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to become of a request.
    fn fate_of(&self, request: &[u8]) -> Option<Fate> {
        let mut state = self.state();
        if !state.path.first()?.is(request) {
            return None;
        }
        state.path.remove(0);
        if state.path.is_empty() { state.fate.take() } else { None }
    }

    /// Has a request name other topics, if it is one of those.
    fn forget(&self, request: &mut [u8]) -> bool {
        let state = self.state();
        let mut swapped = false;
        if kind(request) == Some(ADD_PARTITIONS) {
            for (topic, instead) in &state.forgotten {
                swapped |= swap(request, topic, instead);
            }
        }
        swapped
    }

    fn remember(&self, answer: &mut [u8]) {
        for (topic, instead) in &self.state().forgotten {
            swap(answer, instead, topic);
        }
    }

    fn strike(&self, signal: &str) {
        let mut state = self.wait(self.state(), |state| state.victim.is_some());
        let victim = state.victim.take();
        process::signal(signal, &victim.into_iter().collect::<Vec<_>>());
        state.struck += 1;
    }
}

pub struct KafkaProxy {
    port: u16,
    shared: Arc<Shared>,
}

impl KafkaProxy {
    /// Takes connections from now on, for a broker that is told of later.
    pub fn start() -> Result<KafkaProxy> {
        let port = free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("the proxy's port")?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.state().closed {
                    return;
                }
                let target = theirs.state().target;
                // A broker that is down is a connection that ends at once.
                if let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)) {
                    let _ = Line::open(client, server, &theirs);
                }
            }
        });
        Ok(KafkaProxy { port, shared })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn carry_to(&self, port: u16) {
        self.shared.state().target = port;
    }

    /// The request at the end of this path meets its fate, with the daemon that [`KafkaProxy::victim`] names.
    pub fn arm(&self, path: &[Step], fate: Fate) {
        let mut state = self.shared.state();
        (state.path, state.fate, state.victim, state.released) = (path.to_vec(), Some(fate), None, false);
    }

    pub fn victim(&self, pid: u32) {
        self.shared.state().victim = Some(pid);
        self.shared.changed.notify_all();
    }

    /// From now on the broker takes transactions to have partitions of the second topic of a pair where they have some of the
    /// first, and leaves their end out there, as some brokers do (KAFKA-20734). Names are as long as each other.
    pub fn forget(&self, topics: &[(&'static str, &'static str)]) {
        self.shared.state().forgotten = topics.to_vec();
    }

    pub fn struck(&self) -> u64 {
        self.shared.state().struck
    }

    /// The broker sees what was held back.
    pub fn release(&self) {
        self.shared.state().released = true;
        self.shared.changed.notify_all();
    }
}

impl Drop for KafkaProxy {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
        // Wakes the listener.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

/// One connection, carried by two threads.
struct Line {
    shared: Arc<Shared>,
    /// The number of the request whose answer the daemon does not live to hear.
    last: Mutex<Option<[u8; 4]>>,
    /// The numbers of requests that name other topics than the daemon did.
    swapped: Mutex<Vec<Vec<u8>>>,
}

impl Line {
    fn open(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> Result<()> {
        let line = Arc::new(Line { shared: Arc::clone(shared), last: Mutex::default(), swapped: Mutex::default() });
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let (there, back) = ((client.try_clone()?, server.try_clone()?), (server, client));
        let other = Arc::clone(&line);
        thread::spawn(move || line.pump(there.0, there.1, Line::forth));
        thread::spawn(move || other.pump(back.0, back.1, Line::back));
        Ok(())
    }

    /// Carries frames until either end closes or `pass` says that this is the end.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, pass: fn(&Line, &mut [u8]) -> bool) {
        while let Ok(mut frame) = read_frame(&mut from) {
            if !pass(self, &mut frame[4..]) || to.write_all(&frame).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn forth(&self, request: &mut [u8]) -> bool {
        if self.shared.forget(request) {
            self.swapped.lock().unwrap_or_else(PoisonError::into_inner).extend(request.get(4..8).map(<[u8]>::to_vec));
        }
        match self.shared.fate_of(request) {
            None => true,
            Some(Fate::Unsent) => {
                self.shared.strike("KILL");
                false
            }
            Some(Fate::Unanswered) => {
                let number = request.get(4..8).and_then(|bytes| bytes.try_into().ok());
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = number;
                true
            }
            Some(Fate::Late) => {
                self.shared.strike("STOP");
                drop(self.shared.wait(self.shared.state(), |state| state.released));
                true
            }
        }
    }

    fn back(&self, answer: &mut [u8]) -> bool {
        let mut swapped = self.swapped.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = swapped.iter().position(|number| answer.starts_with(number)) {
            swapped.remove(at);
            self.shared.remember(answer);
        }
        drop(swapped);
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|number| !answer.starts_with(&number)) {
            return true;
        }
        self.shared.strike("KILL");
        false
    }
}

fn has(request: &[u8], word: &str) -> bool {
    request.windows(word.len()).any(|window| window == word.as_bytes())
}

/// Writes `to` wherever `from` stands; `false` if that is nowhere.
fn swap(frame: &mut [u8], from: &str, to: &str) -> bool {
    assert_eq!(from.len(), to.len(), "lengths in the frame stay as they are");
    let is_there = |at: &usize| frame[*at..].starts_with(from.as_bytes());
    let places: Vec<usize> = (0..frame.len()).filter(is_there).collect();
    for &at in &places {
        frame[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    !places.is_empty()
}

fn kind(request: &[u8]) -> Option<i16> {
    Some(i16::from_be_bytes(request.get(..2)?.try_into().ok()?))
}

/// A frame with its length.
fn read_frame(from: &mut TcpStream) -> Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    if length > FRAME_BYTES_MAX {
        bail!("a frame of {length} bytes");
    }
    frame.resize(4 + length, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}
