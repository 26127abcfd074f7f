//! The HTTP surface: `/metrics`, `/healthz`, `/readyz`, `/status`, and at `/` a page that draws them. It only reads.
//!
//! There is nothing to authorise, so what protects it is its address (loopback unless configured otherwise), a check of
//! the `Host` header against DNS rebinding, and limits: see `listener` for those of a connection.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::board::{History, SAMPLE_EVERY, StatusBoard};
use super::health::{Verdict, healthz, readyz};
use super::listener::{Limited, SILENCE_MAX};
use super::metrics::{Metrics, TEXT_FORMAT};
use super::status::Status;
use crate::checkpoint::UnixMicros;

/// The status page, whole: no asset is loaded from anywhere.
const PAGE: &str = include_str!("page.html");

/// For one answer. Answers come from memory; one that takes longer is stuck.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long answers under way may take after the shutdown was asked for.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// Nothing from elsewhere, no frames; script and style are the page's own.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the answers are made from.
#[derive(Clone)]
pub struct HttpState {
    pub metrics: Arc<Metrics>,
    pub board: Arc<StatusBoard>,
}

/// Binds `addr` and gives the address it got (a port of 0 is chosen by the system), and the future that serves until
/// `shutdown` ends. That future also takes the samples of which rates and curves are made.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(
    addr: SocketAddr,
    state: HttpState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<(SocketAddr, impl Future<Output = io::Result<()>> + Send + 'static)> {
    let listener = TcpListener::bind(addr).await?;
    let bound = listener.local_addr()?;
    let board = state.board.clone();
    let app = router(state, bound.ip());
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        // An error means that the sender is gone, which is a wish to stop, too.
        let _ = stopped.await;
    };
    let serving = async move {
        let serving =
            axum::serve(Limited::new(listener, SILENCE_MAX), app).with_graceful_shutdown(stopped).into_future();
        tokio::pin!(serving);
        // The end of serving first: it carries an error. All three may be dropped at any point.
        tokio::select! {
            biased;
            ended = &mut serving => return ended,
            () = shutdown => {}
            () = sample_forever(&board) => {}
        }
        drop(stop);
        timeout(DRAIN_MAX, serving).await.unwrap_or(Ok(()))
    };
    Ok((bound, serving))
}

async fn sample_forever(board: &StatusBoard) {
    let mut ticks = interval(SAMPLE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        board.sample();
    }
}

fn router(state: HttpState, bound: IpAddr) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/status", get(status))
        .route("/history", get(history))
        .route("/metrics", get(metrics))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .fallback(not_found)
        .layer(from_fn_with_state(bound, guard))
        .layer(from_fn(finish))
        .with_state(state)
}

async fn page() -> Html<&'static str> {
    Html(PAGE)
}

async fn status(State(state): State<HttpState>) -> Json<Status> {
    Json(state.board.snapshot())
}

async fn history(State(state): State<HttpState>) -> Json<Vec<History>> {
    Json(state.board.history())
}

async fn metrics(State(state): State<HttpState>) -> Response {
    match state.metrics.render(UnixMicros::now()) {
        Ok(text) => ([(header::CONTENT_TYPE, TEXT_FORMAT)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics could not be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, "metrics could not be rendered\n").into_response()
        }
    }
}

async fn health(State(state): State<HttpState>) -> Response {
    answer(healthz(&state.board.snapshot()), "ok\n")
}

async fn ready(State(state): State<HttpState>) -> Response {
    answer(readyz(&state.board.snapshot()), "ready\n")
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "not found: there are /, /status, /metrics, /healthz, /readyz\n").into_response()
}

fn answer(verdict: Verdict, good: &'static str) -> Response {
    match verdict {
        Verdict::Good => good.into_response(),
        Verdict::Bad(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// Refuses a browser that was led here under another name, and bounds the time of an answer.
async fn guard(State(bound): State<IpAddr>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(HeaderValue::as_bytes);
    // Browsers always send one; a probe that speaks HTTP/1.0 may not.
    if !host.is_none_or(|host| host_is_allowed(host, bound)) {
        return (StatusCode::FORBIDDEN, "this name is not served here\n").into_response();
    }
    match timeout(ANSWER_MAX, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::GATEWAY_TIMEOUT.into_response(),
    }
}

/// Headers of every answer.
async fn finish(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// On a loopback address only its own names are served: a page from elsewhere whose name was made to resolve to this
/// machine sends that name. On other addresses the operator's names are unknown, and the network is the guard.
fn host_is_allowed(host: &[u8], bound: IpAddr) -> bool {
    if !bound.is_loopback() {
        return true;
    }
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    let name = match host.strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']').map_or("", |(address, _)| address),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "::1" || name.parse() == Ok(bound)
}

#[cfg(test)]
mod tests;
