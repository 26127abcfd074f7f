//! ClickHouse's HTTP interface: statements, small answers, and inserts of which the server says how many rows it wrote.
//!
//! Plain hyper rather than the `clickhouse` crate, which throws the summary of an insert away and so cannot say how many
//! rows were written.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};

use super::address::{Address, Compression};
use super::error::{ClickHouseError, Exception};
use crate::postgres::tls;
use crate::sink::http::{Answer, Connections, HttpError, push_encoded, secret};

/// What every statement is run with, whatever the user's profile says.
const SETTINGS: &[(&str, &str)] = &[
    // The status line comes after the work is done, so that it tells of every error, and the summary is complete.
    ("wait_end_of_query", "1"),
    // A row is in its table when the answer comes. The other way is the default from 26 on.
    ("async_insert", "0"),
    // A block that equals an earlier one would be dropped without a word. Equal rows replace each other by version anyway.
    ("insert_deduplicate", "0"),
    // Neither clamped nor wrapped: an error. The encoders keep the range; this is for what ClickHouse computes.
    ("date_time_overflow_behavior", "throw"),
    // NULL for a column that cannot hold it is an error, never the type's default: of what is read, and of `sql` columns.
    ("input_format_null_as_default", "0"),
    ("insert_null_as_default", "0"),
    // Of a row that a join does not find, the versions are 0 and not NULL, which no condition is true of.
    ("join_use_nulls", "0"),
    // Into a Distributed table: the shards have the rows when the answer comes.
    ("distributed_foreground_insert", "1"),
    // One insert is one block and one part, and so all of it or nothing: far above what a batch holds in rows, and no limit in
    // bytes, since rows that the target completes may be of any size.
    ("max_insert_block_size", "16777216"),
    ("min_insert_block_size_rows", "16777216"),
    ("min_insert_block_size_bytes", "0"),
    // By default INSERT … SELECT may write by as many threads as there are cores, each its own part.
    ("max_insert_threads", "1"),
    // A batch holds a key once, so there is nothing to replace among the rows of one insert, and looking for it costs a third
    // of the insert. Merges and FINAL look at rows that come by one insert as at any others.
    ("optimize_on_insert", "0"),
    // A table of 1,600 columns has a long statement.
    ("max_query_size", "4194304"),
];

/// How long a statement may take; ClickHouse's own limit for a silent connection.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// One server, and connections to it.
pub struct Client {
    address: Address,
    connections: Connections,
}

/// What the server did for a statement: `X-ClickHouse-Summary`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    pub written_rows: u64,
    pub written_bytes: u64,
    pub read_rows: u64,
}

impl Client {
    /// Reads certificates; connects to nothing yet.
    pub fn new(address: Address) -> Result<Client, ClickHouseError> {
        let client = address.ssl_client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        let tls = tls::config(address.ssl_mode, address.ssl_root_cert.as_deref(), client)
            .map_err(|error| ClickHouseError::Settings(error.to_string()))?;
        let connections = Connections::new("ClickHouse", &address.host, address.port, tls, address.connect_timeout);
        let http = Client { address, connections };
        // So that a user or password that no header can carry is found now.
        http.request(&[], Bytes::new())?;
        Ok(http)
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Runs a statement that has no rows to give.
    pub async fn execute(&self, sql: &str) -> Result<(), ClickHouseError> {
        self.execute_with(sql, &[]).await
    }

    /// The same with further settings, as those of a session.
    pub async fn execute_with(&self, sql: &str, more: &[(&str, &str)]) -> Result<(), ClickHouseError> {
        let request = self.request(more, Bytes::copy_from_slice(sql.as_bytes()))?;
        self.exchange(request).await.map(drop)
    }

    /// Runs a statement that writes, and says what it wrote.
    pub async fn run(&self, sql: &str, more: &[(&str, &str)]) -> Result<Summary, ClickHouseError> {
        self.summary(self.request(more, Bytes::copy_from_slice(sql.as_bytes()))?).await
    }

    /// Rows of a query without a FORMAT, each a list of values. Whole numbers above 32 bits and decimals come as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Vec<serde_json::Value>>, ClickHouseError> {
        let settings = [
            ("default_format", "JSONCompactEachRow"),
            ("output_format_json_quote_64bit_integers", "1"),
            ("output_format_json_quote_decimals", "1"),
            ("output_format_json_quote_denormals", "1"),
        ];
        let request = self.request(&settings, Bytes::copy_from_slice(sql.as_bytes()))?;
        let body = self.exchange(request).await?.body;
        let rows = serde_json::Deserializer::from_slice(&body).into_iter().collect::<Result<_, _>>();
        rows.map_err(|_| ClickHouseError::Answer("the rows are not JSON"))
    }

    /// Runs an INSERT with `FORMAT …` at its end and the rows in `data`.
    ///
    /// # Errors
    /// After [`ClickHouseError::Connection`] and [`ClickHouseError::Timeout`] the rows may be there, all of them, or come
    /// there still: the same again is right, since they have the same versions.
    pub async fn insert(&self, sql: &str, data: Bytes, more: &[(&str, &str)]) -> Result<Summary, ClickHouseError> {
        let mut settings = vec![("query", sql)];
        settings.extend(more);
        let mut request = match self.address.compression {
            Compression::None => return self.summary(self.request(&settings, data)?).await,
            Compression::Lz4 => self.request(&settings, compressed(&data)?)?,
        };
        request.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("lz4"));
        self.summary(request).await
    }

    async fn summary(&self, request: Request<Full<Bytes>>) -> Result<Summary, ClickHouseError> {
        let answer = self.exchange(request).await?;
        let missing = ClickHouseError::Answer("it has no X-ClickHouse-Summary");
        Summary::read(&answer.parts.headers).ok_or(missing)
    }

    fn request(&self, settings: &[(&str, &str)], body: Bytes) -> Result<Request<Full<Bytes>>, ClickHouseError> {
        let mut target = String::from("/?database=");
        push_encoded(&mut target, &self.address.database);
        for (name, value) in SETTINGS.iter().chain(settings) {
            target.push('&');
            target.push_str(name);
            target.push('=');
            push_encoded(&mut target, value);
        }
        let password = self.address.password.as_ref().map_or("", |password| password.expose());
        Request::builder()
            .method(Method::POST)
            .uri(target)
            .header(HOST, self.connections.host_header())
            // hyper leaves it out where there is no body, and ClickHouse insists on it.
            .header(CONTENT_LENGTH, body.len())
            .header("X-ClickHouse-User", secret("user", self.address.user.as_bytes())?)
            .header("X-ClickHouse-Key", secret("password", password.as_bytes())?)
            .body(Full::new(body))
            .map_err(|_| ClickHouseError::Settings("the address makes no valid request".to_owned()))
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClickHouseError> {
        checked(self.connections.exchange(request, STATEMENT_TIMEOUT).await?)
    }
}

impl From<HttpError> for ClickHouseError {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Connection(message) => ClickHouseError::Connection(message),
            HttpError::Tls(message) => ClickHouseError::Tls(message),
            HttpError::Timeout(within) => ClickHouseError::Timeout(within),
            HttpError::Settings(message) => ClickHouseError::Settings(message),
        }
    }
}

fn checked(answer: Answer) -> Result<Answer, ClickHouseError> {
    let code = answer.parts.headers.get("X-ClickHouse-Exception-Code");
    if answer.parts.status == StatusCode::OK && code.is_none() {
        return Ok(answer);
    }
    let code = code.and_then(|code| code.to_str().ok()?.parse().ok());
    match Exception::read(code, &String::from_utf8_lossy(&answer.body)) {
        Some(exception) => Err(ClickHouseError::Server(exception)),
        // Not ClickHouse, but something before it.
        None if answer.parts.status.is_server_error() => {
            Err(ClickHouseError::Connection(format!("a proxy answered with {}", answer.parts.status)))
        }
        None => Err(ClickHouseError::Answer("neither a success nor an exception of ClickHouse")),
    }
}

impl Summary {
    fn read(headers: &HeaderMap) -> Option<Summary> {
        let text = headers.get("X-ClickHouse-Summary")?.to_str().ok()?;
        let json: serde_json::Value = serde_json::from_str(text).ok()?;
        let number = |name: &str| json.get(name)?.as_str()?.parse().ok();
        Some(Summary {
            written_rows: number("written_rows")?,
            written_bytes: number("written_bytes").unwrap_or_default(),
            read_rows: number("read_rows").unwrap_or_default(),
        })
    }

    /// Fails if rows got lost on the way to the table. Materialized views over it may write more.
    pub fn has_written(&self, sent: u64) -> Result<(), ClickHouseError> {
        let written = self.written_rows;
        if written < sent { Err(ClickHouseError::Written { sent, written }) } else { Ok(()) }
    }
}

/// The LZ4 frame format, which is HTTP's `Content-Encoding: lz4` as ClickHouse reads it.
fn compressed(data: &[u8]) -> Result<Bytes, ClickHouseError> {
    let failed = || ClickHouseError::Settings("the rows cannot be compressed".to_owned());
    let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::with_capacity(data.len() / 2));
    encoder.write_all(data).map_err(|_| failed())?;
    encoder.finish().map(Bytes::from).map_err(|_| failed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_rows_are_an_error() {
        let mut headers = HeaderMap::new();
        assert_eq!(Summary::read(&headers), None);
        let text = r#"{"read_rows":"3","written_rows":"2","written_bytes":"20","elapsed_ns":"1"}"#;
        headers.insert("X-ClickHouse-Summary", HeaderValue::from_static(text));
        let summary = Summary::read(&headers).expect("it is whole");
        assert_eq!(summary, Summary { written_rows: 2, written_bytes: 20, read_rows: 3 });
        assert_eq!(summary.has_written(2), Ok(()));
        assert_eq!(summary.has_written(3), Err(ClickHouseError::Written { sent: 3, written: 2 }));
    }

    #[test]
    fn passwords_that_no_header_carries_are_refused_at_once() {
        let address = Address::parse("http://u:a%0Ab@127.0.0.1").expect("an address");
        let error = Client::new(address).err().expect("a line end is refused");
        assert_eq!(error.to_string(), "the password holds a control character");
    }
}
