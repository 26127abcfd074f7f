//! Claims about errors, against a server in memory that answers every query with the error it was given.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_postgres::{Config, NoTls};

use super::*;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("short");
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

/// Lets the client in, waits for its query, answers and hangs up.
async fn serve(mut stream: DuplexStream, fields: Vec<(u8, &'static str)>) {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await.expect("a startup packet");
    let mut startup = vec![0; usize::try_from(u32::from_be_bytes(length)).expect("short") - 4];
    stream.read_exact(&mut startup).await.expect("a whole startup packet");
    let welcome = [message(b'R', &[0; 4]), message(b'Z', b"I")].concat();
    stream.write_all(&welcome).await.expect("the client listens");
    let _ = stream.read_u8().await.expect("a query");
    if fields.is_empty() {
        return;
    }
    let mut body = Vec::new();
    for (kind, text) in fields {
        body.extend([&[kind], text.as_bytes(), &[0]].concat());
    }
    body.push(0);
    stream.write_all(&[message(b'E', &body), message(b'Z', b"I")].concat()).await.expect("the client listens");
    // The rest of the query, until the client has gone.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

async fn failure(fields: &[(u8, &'static str)]) -> SqlError {
    let (ours, theirs) = duplex(4096);
    let server = tokio::spawn(serve(theirs, fields.to_vec()));
    let (client, connection) = Config::new().user("u").connect_raw(ours, NoTls).await.expect("the server is ours");
    let driver = tokio::spawn(connection);
    let error = client.batch_execute("SELECT").await.expect_err("the server only fails");
    drop(client);
    let _ = driver.await.expect("the driver does not panic");
    server.await.expect("the server does not panic");
    error.into()
}

fn answer(code: &'static str, text: &'static str) -> Vec<(u8, &'static str)> {
    vec![(b'S', "ERROR"), (b'V', "ERROR"), (b'C', code), (b'M', text)]
}

#[tokio::test]
async fn names_are_told_and_values_are_not() {
    let mut fields = answer("23505", "duplicate key value violates unique constraint \"course_pkey\"");
    fields.extend([
        (b'D', "Key (email)=(hunter2) already exists."),
        (b'H', "hunter2"),
        (b'W', "COPY course, line 1: hunter2"),
        (b'q', "SELECT 'hunter2'"),
        (b's', "public"),
        (b't', "course"),
        (b'n', "course_pkey"),
    ]);
    let error = failure(&fields).await;
    assert_eq!(
        error.to_string(),
        "error 23505: duplicate key value violates unique constraint \"course_pkey\" \
         (schema \"public\", table \"course\", constraint \"course_pkey\")"
    );
    assert!(!format!("{error:?}").contains("hunter2"));
    assert!(std::error::Error::source(&error).is_none());
    assert_eq!((error.names().constraint.as_deref(), error.retry()), (Some("course_pkey"), Retry::Never));
    assert!(error.is(&SqlState::UNIQUE_VIOLATION));
}

#[tokio::test]
async fn messages_that_quote_values_are_replaced_by_their_condition() {
    let cases = [
        ("22P02", "error 22P02: invalid_text_representation"),
        ("22003", "error 22003: numeric_value_out_of_range"),
        ("22ZZZ", "error 22ZZZ: data_exception"),
        ("P0001", "error P0001: raised by a function"),
        ("38000", "error 38000: external_routine_exception"),
    ];
    for (code, expected) in cases {
        assert_eq!(failure(&answer(code, "invalid input: \"hunter2\"")).await.to_string(), expected);
    }
}

#[tokio::test]
async fn one_error_is_one_line() {
    let error = failure(&answer("42703", "column \"a\nb\x1b[31m\" does not exist")).await;
    assert_eq!(error.to_string(), "error 42703: column \"a b [31m\" does not exist");
}

#[tokio::test]
async fn broken_line_may_hold_again() {
    let error = failure(&[]).await;
    assert_eq!(error.to_string(), "connection closed");
    assert_eq!((error.sqlstate(), error.retry()), (None, Retry::Backoff));
}

#[tokio::test]
async fn retry_goes_by_the_servers_code() {
    assert_eq!(failure(&answer("57P01", "terminating connection")).await.retry(), Retry::Backoff);
    assert_eq!(failure(&answer("42501", "permission denied")).await.retry(), Retry::Never);
}
