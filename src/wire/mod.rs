//! The replication connection: startup, authentication, simple queries and the CopyBoth stream, over a blocking socket.
//!
//! Why not the `pgwire-replication` crate, which otherwise serves well: it drops NoticeResponse on the stream (Postgres 18
//! turns a missing publication into a warning and silently leaves rows out), loses the last confirmation at stop, bounds
//! its queue in messages rather than bytes, and costs several microseconds of CPU a change, where one large read for many
//! changes costs a tenth. It stays in use as the independent second reader of the tests' oracle.
//!
//! The socket is read in large gulps: the server sends one small packet a change, and a reader that wakes for each makes
//! both ends pay for it.

mod auth;
mod transport;

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::backend::{self, ErrorFields, Message};
use postgres_protocol::message::frontend;

use crate::checkpoint::UnixMicros;
use crate::lsn::Lsn;
use crate::postgres::connect::startup_options;
use crate::postgres::tls::TlsError;
use crate::postgres::url::{Endpoint, PgUrl};
use crate::retry::{Retry, by_sqlstate};
use transport::Transport;

/// Bytes that one read asks for.
const READ_BYTES: usize = 512 * 1024;

/// How long the server may take to end the stream when asked to.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the replication connection failed.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The server said no. Only its code and primary message: details may hold row values.
    #[error("{message} (SQLSTATE {sqlstate})")]
    Server { sqlstate: String, message: String },
    /// A warning on the replication stream means that something was left out.
    #[error("the source warned: {message} (SQLSTATE {sqlstate})")]
    Warning { sqlstate: String, message: String },
    #[error("server asks for {0}, which is not offered: use scram-sha-256")]
    Authentication(&'static str),
    #[error("server answered against the protocol: {0}")]
    Protocol(String),
    /// The server ended the stream, as when it shuts down.
    #[error("the source ended the stream")]
    Ended,
}

impl WireError {
    /// The same may succeed later. A slot that is missing or lost is for the start-up decision to judge, again.
    pub fn passes(&self) -> bool {
        match self {
            WireError::Io(_) | WireError::Ended => true,
            WireError::Server { sqlstate, .. } => {
                matches!(sqlstate.as_str(), "42704" | "55000") || by_sqlstate(sqlstate) == Retry::Backoff
            }
            WireError::Tls(_) | WireError::Warning { .. } | WireError::Authentication(_) | WireError::Protocol(_) => {
                false
            }
        }
    }

    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            WireError::Server { sqlstate, .. } | WireError::Warning { sqlstate, .. } => Some(sqlstate),
            WireError::Io(_)
            | WireError::Tls(_)
            | WireError::Authentication(_)
            | WireError::Protocol(_)
            | WireError::Ended => None,
        }
    }
}

/// The form in which the source is asked to send values. Of a type without a binary form it always sends text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueForm {
    Binary,
    Text,
}

/// What a read brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gulp {
    Bytes(usize),
    /// The time ran out; nothing came.
    Nothing,
}

/// A connection with `replication=database`.
pub struct ReplicationConnection {
    transport: Transport,
    /// What was read and not taken, then room for the next read: cleared once when it is made, not at each read.
    buffer: BytesMut,
    filled: usize,
    /// Length to which the buffer has to grow before a frame can be whole.
    wanted: usize,
}

impl ReplicationConnection {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// The last endpoint's error.
    pub fn connect(url: &PgUrl, app_name: &str) -> Result<Self, WireError> {
        let mut last = WireError::Protocol("no host given".to_owned());
        for endpoint in &url.endpoints {
            match Self::connect_to(url, endpoint, app_name) {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_to(url: &PgUrl, endpoint: &Endpoint, app_name: &str) -> Result<Self, WireError> {
        let transport = Transport::open(url, endpoint)?;
        let mut connection = ReplicationConnection { transport, buffer: BytesMut::new(), filled: 0, wanted: 0 };
        connection.transport.set_read_timeout(Some(url.connect_timeout))?;
        let options = startup_options(url, &[]);
        let parameters = [
            ("user", url.user.as_str()),
            ("database", url.dbname.as_str()),
            ("application_name", url.application_name.as_deref().unwrap_or(app_name)),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("options", options.as_str()),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out)?;
        connection.send(&out)?;
        auth::authenticate(&mut connection, url)?;
        loop {
            match connection.message()? {
                Message::ReadyForQuery(_) => return Ok(connection),
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                _ => {}
            }
        }
    }

    /// Runs one command of the replication protocol, or SQL, and returns the last result's rows as text.
    ///
    /// # Errors
    /// The server refused it, or the connection broke.
    pub fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, WireError> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out)?;
        self.send(&out)?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            match self.message()? {
                Message::DataRow(body) => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        range.map(|range| String::from_utf8_lossy(&body.buffer()[range]).into_owned())
                    };
                    rows.push(body.ranges().map(|range| Ok(text(range))).collect()?);
                }
                Message::ErrorResponse(body) => failed = Some(server_error(body.fields())),
                Message::ReadyForQuery(_) => return failed.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Sets how long a read or query may wait; `None` waits for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> Result<(), WireError> {
        self.transport.set_read_timeout(timeout)?;
        Ok(())
    }

    /// With `false`, a read takes what is there and nothing may be sent until it is `true` again.
    pub fn set_blocking(&mut self, blocking: bool) -> Result<(), WireError> {
        self.transport.set_blocking(blocking)?;
        Ok(())
    }

    /// Turns the connection into the stream.
    ///
    /// # Errors
    /// The server refused: SQLSTATE 55006 when another session holds the slot, 42704 when there is none.
    pub fn start_replication(
        &mut self,
        slot: &str,
        publication: &str,
        at: Lsn,
        form: ValueForm,
    ) -> Result<(), WireError> {
        let is_binary = form == ValueForm::Binary;
        let publication = crate::catalog::quote_ident(publication).replace('\'', "''");
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {at} (proto_version '1', publication_names '{publication}', binary '{is_binary}', messages 'true')",
            crate::catalog::quote_ident(slot)
        );
        let mut out = BytesMut::new();
        frontend::query(&sql, &mut out)?;
        self.send(&out)?;
        loop {
            // CopyBothResponse is not among the messages that postgres-protocol knows.
            self.fill_to(5)?;
            if self.buffer[0] == b'W' {
                let length = self.length_at_front()?;
                self.fill_to(length)?;
                self.advance(length);
                return Ok(());
            }
            match self.message()? {
                Message::ErrorResponse(body) => return Err(server_error(body.fields())),
                Message::NoticeResponse(body) => notice(body.fields())?,
                Message::ParameterStatus(_) => {}
                _ => return Err(WireError::Protocol("no CopyBothResponse to START_REPLICATION".to_owned())),
            }
        }
    }

    /// Reads what is there, waiting up to the read timeout.
    ///
    /// # Errors
    /// The connection broke or was closed.
    pub fn gulp(&mut self) -> Result<Gulp, WireError> {
        let room = self.buffer.len() - self.filled;
        if room < READ_BYTES / 8 || self.wanted > self.buffer.len() {
            let length = (self.filled + READ_BYTES).max(self.wanted);
            let mut larger = BytesMut::zeroed(length);
            larger[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = larger;
        }
        let read = self.transport.read(&mut self.buffer[self.filled..]);
        self.filled += *read.as_ref().unwrap_or(&0);
        match read {
            Ok(0) => Err(WireError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => Ok(Gulp::Bytes(count)),
            Err(error) if is_timeout(&error) => Ok(Gulp::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// The bytes that were read and not taken.
    pub fn pending(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Takes whole frames off the front. The rest is kept; a frame that is cut tells how long it will be.
    pub fn take(&mut self, length: usize) -> Bytes {
        let taken = self.buffer.split_to(length).freeze();
        self.filled -= length;
        self.wanted = match self.pending().get(1..5) {
            Some(length) => u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize + 1,
            None => 0,
        };
        taken
    }

    /// Deals with a message at the front that is no CopyData frame. `Ok` if it was harmless and is gone.
    ///
    /// # Errors
    /// A server error, a warning, the stream's end, or anything unknown: never skipped.
    pub fn handle_other_message(&mut self) -> Result<(), WireError> {
        match self.message()? {
            Message::ErrorResponse(body) => Err(server_error(body.fields())),
            Message::NoticeResponse(body) => notice(body.fields()),
            Message::ParameterStatus(_) => Ok(()),
            Message::CopyDone | Message::CommandComplete(_) | Message::ReadyForQuery(_) => Err(WireError::Ended),
            _ => Err(WireError::Protocol("unexpected message in the replication stream".to_owned())),
        }
    }

    /// Tells the server what is durable: the same position as written, flushed and applied.
    ///
    /// Postgres docs, "Streaming Replication Protocol", Standby status update.
    pub fn send_status(&mut self, confirmed: Lsn, reply: Reply) -> Result<(), WireError> {
        let mut out = [0u8; 39];
        out[0] = b'd';
        out[1..5].copy_from_slice(&38u32.to_be_bytes());
        out[5] = b'r';
        for place in [6, 14, 22] {
            out[place..place + 8].copy_from_slice(&confirmed.0.to_be_bytes());
        }
        out[30..38].copy_from_slice(&UnixMicros::now().to_postgres().to_be_bytes());
        out[38] = u8::from(reply == Reply::Requested);
        self.send(&out)
    }

    /// Ends the stream in good order: the server has taken the last status and let go of the slot when this returns.
    pub fn finish(mut self) -> Result<(), WireError> {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        self.send(&out)?;
        let deadline = Instant::now() + FINISH_TIMEOUT;
        while Instant::now() < deadline {
            match crate::frame::take(self.pending()) {
                // What was under way when the server learned of the end.
                Ok(Some((_, length))) => self.advance(length),
                Ok(None) => {
                    self.gulp()?;
                }
                Err(_) => {
                    if let Message::ReadyForQuery(_) = self.message()? {
                        break;
                    }
                }
            }
        }
        out.clear();
        frontend::terminate(&mut out);
        self.send(&out)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        self.transport.write_all(bytes)?;
        self.transport.flush()?;
        Ok(())
    }

    /// The next backend message, whole.
    fn message(&mut self) -> Result<Message, WireError> {
        self.fill_to(5)?;
        let length = self.length_at_front()?;
        self.fill_to(length)?;
        let mut message = self.buffer.split_to(length);
        self.filled -= length;
        backend::Message::parse(&mut message)?.ok_or_else(|| WireError::Protocol("message cut short".to_owned()))
    }

    fn advance(&mut self, length: usize) {
        self.buffer.advance(length);
        self.filled -= length;
    }

    fn length_at_front(&self) -> Result<usize, WireError> {
        let length = i32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]);
        match usize::try_from(length) {
            Ok(length) if (4..=crate::frame::FRAME_BYTES_MAX).contains(&length) => Ok(length + 1),
            _ => Err(WireError::Protocol(format!("message length {length} is out of range"))),
        }
    }

    fn fill_to(&mut self, length: usize) -> Result<(), WireError> {
        while self.filled < length {
            self.wanted = length;
            if self.gulp()? == Gulp::Nothing {
                return Err(WireError::Io(io::ErrorKind::TimedOut.into()));
            }
        }
        self.wanted = 0;
        Ok(())
    }
}

/// Whether the server is asked to answer a status message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reply {
    Requested,
    NotNeeded,
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// Severity, SQLSTATE and primary message; nothing else, since details may hold row values.
fn fields(fields: ErrorFields<'_>) -> (String, String, String) {
    let mut found = (String::new(), String::new(), String::new());
    let each = fields.for_each(|field| {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'V' => found.0 = text(),
            b'C' => found.1 = text(),
            b'M' => found.2 = text(),
            _ => {}
        }
        Ok(())
    });
    if each.is_err() {
        found.2 = "error report is malformed".to_owned();
    }
    found
}

fn server_error(error: ErrorFields<'_>) -> WireError {
    let (_, sqlstate, message) = fields(error);
    // Messages of class 22 quote the value that was wrong.
    let message = if sqlstate.starts_with("22") { "a value could not be converted".to_owned() } else { message };
    WireError::Server { sqlstate, message }
}

fn notice(notice: ErrorFields<'_>) -> Result<(), WireError> {
    let (severity, sqlstate, message) = fields(notice);
    if severity == "WARNING" {
        return Err(WireError::Warning { sqlstate, message });
    }
    tracing::debug!(%severity, %sqlstate, "notice on the replication connection");
    Ok(())
}
