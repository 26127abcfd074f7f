//! The verdict of each answer, on a server of one answer. What a real registry says is tested in `tests/live`.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::address::RegistryAddress;
use super::*;
use crate::config::{RegistryEnd, Secret};

fn registry(port: u16) -> Registry {
    let url = Secret::new(format!("http://tail%40water:s3cret@127.0.0.1:{port}/apis/ccompat/v7/"));
    let end = RegistryEnd { url, user: None, password: None, ca_file: None };
    Registry::new(&RegistryAddress::of(&end).expect("an address")).expect("nothing is read")
}

/// Answers the one request that comes; the request.
async fn answering(status: &str, body: &str) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    let served = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("somebody asks");
        let mut request = Vec::new();
        // A body of ours ends with a brace, and a request without one with an empty line.
        while !(request.ends_with(b"}") || request.starts_with(b"GET") && request.ends_with(b"\r\n\r\n")) {
            assert!(stream.read_buf(&mut request).await.expect("it is open") > 0, "the request was cut short");
        }
        stream.write_all(answer.as_bytes()).await.expect("it is open");
        String::from_utf8(request).expect("it is text")
    });
    (port, served)
}

async fn registered(status: &str, body: &str) -> Result<SchemaId, RegistryError> {
    let (port, served) = answering(status, body).await;
    let outcome = registry(port).register("src.public.a b-value", "\"string\"").await;
    served.await.expect("it was asked");
    outcome
}

#[tokio::test]
async fn schemas_go_in_and_their_numbers_come_back() {
    let (port, served) = answering("200 OK", r#"{"id":16909060,"version":7}"#).await;
    let id = registry(port).register("src.public.a b-value", "{\"type\":\"string\"}").await.expect("it is taken");
    assert_eq!(id.prefix(), [0, 1, 2, 3, 4]);
    let request = served.await.expect("it was asked");
    let first = "POST /apis/ccompat/v7/subjects/src.public.a%20b-value/versions HTTP/1.1\r\n";
    assert!(request.starts_with(first), "{request}");
    assert!(request.ends_with(r#"{"schema":"{\"type\":\"string\"}"}"#), "{request}");
    // "tail@water:s3cret"
    assert!(request.contains("authorization: Basic dGFpbEB3YXRlcjpzM2NyZXQ=\r\n"), "{request}");
    assert!(request.contains("content-type: application/vnd.schemaregistry.v1+json\r\n"), "{request}");
}

#[tokio::test]
async fn every_answer_has_its_verdict() {
    for status in ["500 Oh", "503 Oh", "429 Oh", "408 Oh"] {
        let error = registered(status, "{}").await.expect_err(status);
        assert!(error.passes() && error.to_string().contains(&status[..3]), "{error}");
    }
    for (status, code) in [("401 No", 401), ("403 No", 403)] {
        let outcome = registered(status, "{}").await;
        assert!(matches!(&outcome, Err(RegistryError::Denied { status, .. }) if *status == code), "{outcome:?}");
        assert!(!format!("{outcome:?}").contains("s3cret"));
    }
    let said = r#"{"error_code":409,"message":"reader type: INT\nand more"}"#;
    let error = registered("409 Conflict", said).await.expect_err("it is refused");
    assert!(matches!(error, RegistryError::Incompatible { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the schema registry refuses the schema of subject \"src.public.a b-value\" as incompatible with those before it \
         (reader type: INT); relax the subject's compatibility, or give the table another topic"
    );
    let error = registered("422 What", "not JSON").await.expect_err("it is refused");
    assert_eq!(error.to_string(), "the schema registry calls the schema of subject \"src.public.a b-value\" invalid");
    for (status, body) in [("404 No", ""), ("301 Moved", ""), ("200 OK", "<html>"), ("200 OK", r#"{"id":-1}"#)] {
        let outcome = registered(status, body).await;
        assert!(matches!(outcome, Err(RegistryError::Unusable { .. })), "{status}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_waited_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    drop(listener);
    let error = registry(port).register("a", "\"string\"").await.expect_err("nobody listens");
    assert!(error.passes(), "{error:?}");
    let expected = format!("the schema registry at 127.0.0.1:{port} does not answer: cannot connect to");
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn only_a_registry_of_avro_will_do() {
    let (port, served) = answering("200 OK", r#"["JSON","AVRO"]"#).await;
    assert_eq!(registry(port).probe().await, Ok(()));
    assert!(served.await.expect("it was asked").starts_with("GET /apis/ccompat/v7/schemas/types HTTP/1.1\r\n"));
    for body in [r#"["JSON"]"#, "<html>"] {
        let (port, _served) = answering("200 OK", body).await;
        let outcome = registry(port).probe().await;
        assert!(matches!(outcome, Err(RegistryError::Unusable { .. })), "{outcome:?}");
    }
}
