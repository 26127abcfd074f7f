//! SQL connections to either end, all with the same pinned session.
//!
//! A role's or a database's own settings change how values are written as text, which objects a name finds, and how long
//! a statement may run. Startup options outrank them, so every session reads and writes the same bytes.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::poll_fn;
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding as Binding, SslMode as Ssl, TargetSessionAttrs};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;

use super::error::SqlError;
use super::tls::{TlsError, client_config};
use super::url::{Address, ChannelBinding, Endpoint, PgUrl, SslMode, TargetSession};
use crate::retry::Retry;

/// Settings of every session, the replication connection's included.
///
/// `pg_temp` stands last in the path, or a temporary table could hide a catalog. Row security is off, so that a role it
/// binds gets an error instead of fewer rows. A role's time limits must not cut a copy that runs for hours.
pub const SESSION: [(&str, &str); 12] = [
    ("search_path", "pg_catalog,pg_temp"),
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("standard_conforming_strings", "on"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "0"),
];

/// How long sent bytes may stay unacknowledged before the line counts as dead.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
pub const KEEPALIVE_RETRIES: u32 = 3;

/// An open session. The driver carries its bytes and ends by itself when `client` is dropped.
pub struct Connection {
    pub client: Client,
    pub driver: JoinHandle<Result<(), SqlError>>,
    canceller: Canceller,
}

impl Connection {
    /// Says goodbye to the server and waits until it is said.
    pub async fn close(self) {
        drop(self.client);
        // A driver that failed has nobody left to tell: the calls that it failed under have told it.
        let _ = self.driver.await;
    }

    /// Stops whatever statement runs on this session, from anywhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    tls: Option<MakeRustlsConnect>,
}

impl Canceller {
    /// Asks the server to cancel; the statement then fails with 57014, unless it was done before.
    pub async fn cancel(&self) -> Result<(), SqlError> {
        match &self.tls {
            Some(tls) => self.token.cancel_query(tls.clone()).await?,
            None => self.token.cancel_query(NoTls).await?,
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot connect to {endpoint}")]
    Refused {
        endpoint: Endpoint,
        #[source]
        source: SqlError,
    },
    #[error("no answer from {endpoint} within {} s", after.as_secs())]
    TimedOut { endpoint: Endpoint, after: Duration },
}

impl ConnectError {
    pub fn retry(&self) -> Retry {
        match self {
            ConnectError::Tls(_) => Retry::Never,
            ConnectError::Refused { source, .. } => source.retry(),
            ConnectError::TimedOut { .. } => Retry::Backoff,
        }
    }
}

/// Opens a session on the first endpoint that takes one; the last endpoint's error if none does.
pub async fn connect(url: &PgUrl, app_name: &str) -> Result<Connection, ConnectError> {
    connect_with(url, app_name, &[]).await
}

/// As [`connect`], with more settings of the session, such as `lock_timeout`.
pub async fn connect_with(url: &PgUrl, app_name: &str, settings: &[(&str, &str)]) -> Result<Connection, ConnectError> {
    let tls = client_config(url)?.map(|config| MakeRustlsConnect::new(config.as_ref().clone()));
    let mut outcome = None;
    for endpoint in &url.endpoints {
        let config = config(url, endpoint, app_name, settings);
        // Nobody can listen on a socket's directory, and no certificate can name it.
        let tls = tls.clone().filter(|_| matches!(endpoint.address, Address::Tcp(_)));
        let attempt = async {
            match tls {
                Some(tls) => {
                    let (client, connection) = config.connect(tls.clone()).await?;
                    Ok(driven(client, connection, Some(tls)))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await?;
                    Ok(driven(client, connection, None))
                }
            }
        };
        let failed = match tokio::time::timeout(url.connect_timeout, attempt).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(source)) => ConnectError::Refused { endpoint: endpoint.clone(), source },
            Err(_) => ConnectError::TimedOut { endpoint: endpoint.clone(), after: url.connect_timeout },
        };
        debug!(endpoint = %endpoint, error = %failed, "connection not made");
        outcome = Some(failed);
    }
    Err(outcome.expect("a PgUrl has at least one endpoint"))
}

/// The startup packet's `options`: the user's first, then the pinned ones, which so win.
pub fn startup_options(url: &PgUrl, settings: &[(&str, &str)]) -> String {
    let mut text = url.options.clone().unwrap_or_default();
    for (name, value) in SESSION.iter().chain(settings) {
        if !text.is_empty() {
            text.push(' ');
        }
        let escaped = value.replace('\\', "\\\\").replace(' ', "\\ ");
        text.push_str(&format!("-c {name}={escaped}"));
    }
    text
}

fn config(url: &PgUrl, endpoint: &Endpoint, app_name: &str, settings: &[(&str, &str)]) -> Config {
    let mut config = Config::new();
    let mut ssl_mode = if url.ssl_mode == SslMode::Disable { Ssl::Disable } else { Ssl::Require };
    match &endpoint.address {
        Address::Tcp(host) => config.host(host),
        Address::Unix(directory) => {
            ssl_mode = Ssl::Disable;
            config.host_path(directory)
        }
    };
    config
        .port(endpoint.port)
        .user(&url.user)
        .dbname(&url.dbname)
        .ssl_mode(ssl_mode)
        .channel_binding(match url.channel_binding {
            ChannelBinding::Disable => Binding::Disable,
            ChannelBinding::Prefer => Binding::Prefer,
            ChannelBinding::Require => Binding::Require,
        })
        .target_session_attrs(match url.target_session {
            TargetSession::Any => TargetSessionAttrs::Any,
            TargetSession::ReadWrite => TargetSessionAttrs::ReadWrite,
            TargetSession::ReadOnly => TargetSessionAttrs::ReadOnly,
        })
        .application_name(url.application_name.as_deref().unwrap_or(app_name))
        .options(startup_options(url, settings))
        .keepalives(true)
        .keepalives_idle(KEEPALIVE_IDLE)
        .keepalives_interval(KEEPALIVE_INTERVAL)
        .keepalives_retries(KEEPALIVE_RETRIES)
        .tcp_user_timeout(TCP_USER_TIMEOUT);
    if let Some(password) = url.password() {
        config.password(password.expose());
    }
    config
}

fn driven<S, T>(
    client: Client,
    mut connection: tokio_postgres::Connection<S, T>,
    tls: Option<MakeRustlsConnect>,
) -> Connection
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let canceller = Canceller { token: client.cancel_token(), tls };
    let driver = tokio::spawn(async move {
        let mut messages = poll_fn(move |context| connection.poll_message(context));
        while let Some(message) = messages.next().await {
            // A notice's text may quote values: RAISE NOTICE in a user's function does.
            if let AsyncMessage::Notice(notice) = message? {
                debug!(severity = notice.severity(), sqlstate = notice.code().code(), "notice from the server");
            }
        }
        Ok(())
    });
    Connection { client, driver, canceller }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_settings_come_after_the_users() {
        let url = PgUrl::parse("host=h user=u options='-c timezone=CET'").expect("well formed");
        let options = startup_options(&url, &[("lock_timeout", "1 s")]);
        assert!(options.starts_with("-c timezone=CET -c search_path=pg_catalog,pg_temp "), "{options}");
        assert!(options.ends_with(" -c lock_timeout=1\\ s"), "{options}");
        assert!(options.find("timezone=UTC") > options.find("timezone=CET"));
    }

    #[tokio::test]
    async fn every_endpoint_is_tried_and_the_last_error_told() {
        let url = PgUrl::parse("postgres://u:hunter2@127.0.0.1:1,%2Fnowhere:2/d").expect("well formed");
        let error = connect(&url, "test").await.err().expect("nothing listens there");
        assert_eq!(error.to_string(), "cannot connect to /nowhere:2");
        assert_eq!(error.retry(), Retry::Backoff);
        assert!(!format!("{error:?}").contains("hunter2"));
    }
}
