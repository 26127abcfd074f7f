//! Claims about the HTTP surface, over real connections on the loopback.

use std::net::Ipv4Addr;

use super::*;
use crate::telemetry::fetch::{self, Answer};
use crate::telemetry::status::SourceState;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Daemon {
    url: String,
    state: HttpState,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<io::Result<()>>,
}

async fn daemon() -> Daemon {
    let metrics = Metrics::new("1.0.0");
    let board = StatusBoard::new("1.0.0", metrics.clone());
    board.add_source("lms", "slot", "publication");
    let state = HttpState { metrics, board };
    let (stop, stopped) = oneshot::channel();
    let stopped = async move {
        let _ = stopped.await;
    };
    let (bound, serving) = serve((Ipv4Addr::LOCALHOST, 0).into(), state.clone(), stopped).await.expect("a free port");
    Daemon { url: format!("http://{bound}"), state, stop, serving: tokio::spawn(serving) }
}

impl Daemon {
    async fn get(&self, path: &'static str) -> (u16, String) {
        let url = self.url.clone();
        let Answer { code, body } =
            tokio::task::spawn_blocking(move || fetch::get(&url, path)).await.expect("joined").expect("answered");
        (code, String::from_utf8(body).expect("text"))
    }

    async fn raw(&self, request: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.url["http://".len()..]).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        answer
    }
}

#[tokio::test]
async fn endpoints_answer() {
    let daemon = daemon().await;
    let (code, text) = daemon.get("/metrics").await;
    assert!(code == 200 && text.contains("tailwater_build_info{version=\"1.0.0\"} 1"), "{code} {text}");
    let (code, text) = daemon.get("/").await;
    assert!(code == 200 && text.contains("<title>tailwater"), "{code}");
    assert_eq!(daemon.get("/healthz").await, (200, "ok\n".into()));
    assert_eq!(daemon.get("/readyz").await, (503, "source lms is connecting\n".into()));
    daemon.state.board.source_state("lms", SourceState::Standby);
    assert_eq!(daemon.get("/readyz").await, (503, "standby\n".into()));
    daemon.state.board.source_state("lms", SourceState::Streaming);
    assert_eq!(daemon.get("/readyz").await, (200, "ready\n".into()));
    let (code, text) = daemon.get("/status").await;
    let status: Status = serde_json::from_str(&text).expect("a document");
    assert_eq!((code, status.sources[0].state.clone()), (200, SourceState::Streaming));
    assert_eq!(daemon.get("/history").await.0, 200);
    assert_eq!(daemon.get("/../etc/passwd").await.0, 404);
    daemon.state.board.source_state("lms", SourceState::Halted { reason: "gap".into(), hint: String::new() });
    assert_eq!(daemon.get("/healthz").await, (503, "source lms is halted: gap\n".into()));
}

#[tokio::test]
async fn only_reading_is_allowed() {
    let daemon = daemon().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let answer = daemon.raw(&format!("{method} /status HTTP/1.0\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.0 405"), "{method}: {answer}");
    }
}

#[tokio::test]
async fn a_foreign_host_name_is_refused_on_loopback() {
    let daemon = daemon().await;
    let answer = daemon.raw("GET /status HTTP/1.0\r\nHost: evil.example:9629\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 403") && !answer.contains("lms"), "{answer}");
    let answer = daemon.raw("GET /status HTTP/1.0\r\nHost: localhost:1\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.0 200") && answer.contains("content-security-policy: default-src 'none'"),
        "{answer}"
    );
}

#[test]
fn host_names_of_the_loopback_are_its_own() {
    let loopback: IpAddr = Ipv4Addr::new(127, 0, 0, 2).into();
    for host in ["localhost", "LocalHost:9629", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9629", "127.0.0.2:9629"] {
        assert!(host_is_allowed(host.as_bytes(), loopback), "{host} was refused");
    }
    for host in
        ["", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "[::1", "[evil]:1", "127.0.0.3"]
    {
        assert!(!host_is_allowed(host.as_bytes(), loopback), "{host} was taken");
    }
    assert!(!host_is_allowed(b"\xff", loopback));
    assert!(host_is_allowed(b"tailwater.internal", Ipv4Addr::UNSPECIFIED.into()));
}

#[tokio::test]
async fn shutdown_ends_it_with_connections_open() {
    let daemon = daemon().await;
    let idle = tokio::net::TcpStream::connect(&daemon.url["http://".len()..]).await.expect("connected");
    assert!(daemon.stop.send(()).is_ok());
    let ended = timeout(Duration::from_secs(10), daemon.serving).await;
    assert!(ended.expect("in time").expect("joined").is_ok());
    drop(idle);
}

#[test]
fn page_asks_nobody_else() {
    // The name of SVG's namespace is no address.
    let page = PAGE.replace("http://www.w3.org/2000/svg", "");
    for outside in ["//", "http:", "https:", "ws:", "@import", "url(", "src="] {
        assert!(!page.contains(outside), "{outside} is in the page");
    }
    assert!(!page.contains("innerHTML"), "names from a database must stay text");
}
