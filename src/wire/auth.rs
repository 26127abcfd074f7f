//! Authentication of the replication connection: trust and SCRAM-SHA-256, with channel binding over TLS.

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::backend::Message;
use postgres_protocol::message::frontend;

use super::{ReplicationConnection, WireError, server_error};
use crate::postgres::url::{ChannelBinding as Wanted, PgUrl};

/// Answers the server until it says that the connection is authenticated.
pub(super) fn authenticate(connection: &mut ReplicationConnection, url: &PgUrl) -> Result<(), WireError> {
    match connection.message()? {
        Message::AuthenticationOk if url.channel_binding != Wanted::Require => Ok(()),
        Message::AuthenticationOk => Err(WireError::Authentication("no password, though channel_binding=require,")),
        Message::AuthenticationSasl(body) => {
            let mechanisms = body.mechanisms().map(|name| Ok(name.to_owned())).collect::<Vec<_>>()?;
            scram(connection, url, &mechanisms)
        }
        Message::AuthenticationCleartextPassword => Err(WireError::Authentication("the password in clear text")),
        Message::AuthenticationMd5Password(_) => Err(WireError::Authentication("an MD5 password")),
        Message::ErrorResponse(body) => Err(server_error(body.fields())),
        _ => Err(WireError::Authentication("an authentication method")),
    }
}

fn scram(connection: &mut ReplicationConnection, url: &PgUrl, mechanisms: &[String]) -> Result<(), WireError> {
    let offers = |mechanism: &str| mechanisms.iter().any(|offered| offered == mechanism);
    let password = url.password().ok_or(WireError::Server {
        sqlstate: "28P01".to_owned(),
        message: "the server asks for a password and none is configured".to_owned(),
    })?;
    let bound = match url.channel_binding {
        Wanted::Disable => None,
        Wanted::Prefer | Wanted::Require => connection.transport.server_end_point(),
    };
    let (mechanism, binding) = match bound {
        Some(digest) if offers(SCRAM_SHA_256_PLUS) => {
            (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(digest))
        }
        _ if url.channel_binding == Wanted::Require => {
            return Err(WireError::Authentication("a login without channel binding"));
        }
        Some(_) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
        None => (SCRAM_SHA_256, ChannelBinding::unsupported()),
    };
    if !offers(mechanism) {
        return Err(WireError::Authentication("an unknown SASL mechanism"));
    }
    let mut exchange = ScramSha256::new(password.expose().as_bytes(), binding);
    let mut out = BytesMut::new();
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut out)?;
    connection.send(&out)?;
    match connection.message()? {
        Message::AuthenticationSaslContinue(body) => exchange.update(body.data())?,
        Message::ErrorResponse(body) => return Err(server_error(body.fields())),
        _ => return Err(WireError::Protocol("no SASL challenge".to_owned())),
    }
    out.clear();
    frontend::sasl_response(exchange.message(), &mut out)?;
    connection.send(&out)?;
    match connection.message()? {
        Message::AuthenticationSaslFinal(body) => exchange.finish(body.data())?,
        Message::ErrorResponse(body) => return Err(server_error(body.fields())),
        _ => return Err(WireError::Protocol("no SASL outcome".to_owned())),
    }
    match connection.message()? {
        Message::AuthenticationOk => Ok(()),
        Message::ErrorResponse(body) => Err(server_error(body.fields())),
        _ => Err(WireError::Protocol("authentication did not end".to_owned())),
    }
}
