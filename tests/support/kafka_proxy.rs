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
    /// Partitions of a topic with this in its name are added to no transaction, and said to be.
    forgotten: Option<&'static str>,
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

    /// What the daemon hears in the broker's place.
    fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let word = self.state().forgotten?;
        let is_forgotten = kind(request) == Some(ADD_PARTITIONS) && has(request, word);
        is_forgotten.then(|| added(request)).flatten()
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
        (state.path, state.fate, state.victim) = (path.to_vec(), Some(fate), None);
    }

    pub fn victim(&self, pid: u32) {
        self.shared.state().victim = Some(pid);
        self.shared.changed.notify_all();
    }

    /// From now on the broker is not told that a transaction has partitions of a topic with `word` in its name, and the
    /// daemon hears that it was: that leaves the end of the transaction out there, as some brokers do (KAFKA-20734).
    pub fn forget(&self, word: Option<&'static str>) {
        self.shared.state().forgotten = word;
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

/// What becomes of a frame.
enum Carry {
    Yes,
    No,
    /// Nor of any later one.
    End,
}

/// One connection, carried by two threads.
struct Line {
    shared: Arc<Shared>,
    /// The number of the request whose answer the daemon does not live to hear.
    last: Mutex<Option<[u8; 4]>>,
}

impl Line {
    fn open(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> Result<()> {
        let line = Arc::new(Line { shared: Arc::clone(shared), last: Mutex::default() });
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
        }
        let (there, back) = ((client.try_clone()?, server.try_clone()?), (server, client));
        let other = Arc::clone(&line);
        let mut daemon = back.1.try_clone()?;
        thread::spawn(move || {
            line.pump(there.0, there.1, |request| match line.shared.answer(request) {
                Some(answer) => daemon.write_all(&answer).map(|()| Carry::No).unwrap_or(Carry::End),
                None => line.forth(request),
            });
        });
        thread::spawn(move || other.pump(back.0, back.1, |answer| other.back(answer)));
        Ok(())
    }

    /// Carries frames until either end closes or `pass` says that this is the end.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, mut pass: impl FnMut(&[u8]) -> Carry) {
        while let Ok(frame) = read_frame(&mut from) {
            match pass(&frame[4..]) {
                Carry::No => {}
                Carry::Yes if to.write_all(&frame).is_ok() => {}
                Carry::Yes | Carry::End => break,
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    }

    fn forth(&self, request: &[u8]) -> Carry {
        match self.shared.fate_of(request) {
            None => Carry::Yes,
            Some(Fate::Unsent) => {
                self.shared.strike("KILL");
                Carry::End
            }
            Some(Fate::Unanswered) => {
                let number = request.get(4..8).and_then(|bytes| bytes.try_into().ok());
                *self.last.lock().unwrap_or_else(PoisonError::into_inner) = number;
                Carry::Yes
            }
            Some(Fate::Late) => {
                self.shared.strike("STOP");
                drop(self.shared.wait(self.shared.state(), |state| state.released));
                Carry::Yes
            }
        }
    }

    fn back(&self, answer: &[u8]) -> Carry {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_none_or(|number| !answer.starts_with(&number)) {
            return Carry::Yes;
        }
        self.shared.strike("KILL");
        Carry::End
    }
}

fn has(request: &[u8], word: &str) -> bool {
    request.windows(word.len()).any(|window| window == word.as_bytes())
}

/// The answer that all partitions of a request were added. Protocol guide, AddPartitionsToTxn, version 0: who, what and to
/// which transaction, then an array of topics with arrays of partitions; in the answer each of these has a code.
fn added(request: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| Some(i32::from_be_bytes(request.get(at..at + 4)?.try_into().ok()?));
    let text = |at: usize| Some(at + 2 + usize::from(u16::from_be_bytes(request.get(at..at + 2)?.try_into().ok()?)));
    // Behind the client's name, the transaction's, and the producer's id and epoch.
    let mut at = text(text(8)?)? + 10;
    let mut answer = [0, 0, 0, 0].to_vec();
    answer.extend_from_slice(request.get(4..8)?);
    answer.extend_from_slice(&[0, 0, 0, 0]);
    answer.extend_from_slice(request.get(at..at + 4)?);
    let topics = number(at)?;
    at += 4;
    for _ in 0..topics {
        let end = text(at)?;
        answer.extend_from_slice(request.get(at..end + 4)?);
        let partitions = number(end)?;
        at = end + 4;
        for _ in 0..partitions {
            answer.extend_from_slice(request.get(at..at + 4)?);
            answer.extend_from_slice(&[0, 0]);
            at += 4;
        }
    }
    let length = u32::try_from(answer.len() - 4).ok()?;
    answer[..4].copy_from_slice(&length.to_be_bytes());
    Some(answer)
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
