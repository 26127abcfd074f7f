//! TLS towards Postgres: one rustls configuration per address, shared by SQL and replication connections.
//!
//! The cryptography is named explicitly (ring), never the process's default, so that no other library's choice matters.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tracing::warn;

use super::url::{PgUrl, SslMode};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read certificates from \"{}\"", path.display())]
    Certificates {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("\"{}\" holds no certificate", .0.display())]
    NoCertificate(PathBuf),
    #[error("cannot read the private key from \"{}\"", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    #[error("this machine has no trusted certificate authorities, set sslrootcert")]
    NoAuthorities,
    #[error("the client certificate and key cannot be used")]
    Client(#[source] Error),
    #[error("the certificate authorities cannot be used")]
    Authorities(#[source] rustls::client::VerifierBuilderError),
    #[error("TLS versions are not available")]
    Versions(#[source] Error),
    #[error("\"{0}\" is neither a host name nor an IP address")]
    ServerName(String),
}

/// The configuration that `sslmode` asks for; `None` for `disable`.
///
/// `require` verifies nothing, as in libpq, unless `sslrootcert` is given: then, as in libpq, it is `verify-ca`.
pub fn client_config(url: &PgUrl) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    let client = url.ssl_client.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
    config(url.ssl_mode, url.ssl_root_cert.as_deref(), client)
}

/// The same for whatever speaks TLS: a mode, a file of authorities, and a client certificate with its key.
pub fn config(
    mode: SslMode,
    root_cert: Option<&Path>,
    client: Option<(&Path, &Path)>,
) -> Result<Option<Arc<ClientConfig>>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let verifier = match (mode, root_cert) {
        (SslMode::Disable, _) => return Ok(None),
        (SslMode::Require, None) => {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| warn!("sslmode=require encrypts but does not verify who answers; use verify-full"));
            Verifier { check: Check::Nothing, provider: provider.clone() }
        }
        (SslMode::Require | SslMode::VerifyCa, _) => verifier(root_cert, Name::Ignored, &provider)?,
        (SslMode::VerifyFull, _) => verifier(root_cert, Name::Verified, &provider)?,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match client {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert)?;
            let key =
                PrivateKeyDer::from_pem_file(key).map_err(|source| TlsError::Key { path: key.to_owned(), source })?;
            builder.with_client_auth_cert(chain, key).map_err(TlsError::Client)?
        }
    };
    Ok(Some(Arc::new(config)))
}

/// The name that the server's certificate must carry, and that is sent as SNI.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsError::ServerName(host.to_owned()))
}

fn verifier(root_cert: Option<&Path>, name: Name, provider: &Arc<CryptoProvider>) -> Result<Verifier, TlsError> {
    let (given, none) = match root_cert {
        Some(path) => (certificates(path)?, TlsError::NoCertificate(path.to_owned())),
        None => (rustls_native_certs::load_native_certs().certs, TlsError::NoAuthorities),
    };
    chain_verifier(given, name, provider)?.ok_or(none)
}

/// `None` if no certificate can be used.
fn chain_verifier(
    trusted: Vec<CertificateDer<'static>>,
    name: Name,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Verifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    if roots.is_empty() {
        return Ok(None);
    }
    let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(TlsError::Authorities)?;
    Ok(Some(Verifier { check: Check::Chain { chain, trusted, name }, provider: provider.clone() }))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Certificates { path: path.to_owned(), source };
    let given: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if given.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(given) }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Name {
    Verified,
    Ignored,
}

#[derive(Debug)]
enum Check {
    Nothing,
    Chain {
        chain: Arc<WebPkiServerVerifier>,
        /// The certificates that `chain` was made of.
        trusted: Vec<CertificateDer<'static>>,
        name: Name,
    },
}

/// Verifies as much of the server's certificate as `sslmode` asks. The handshake's signatures are always verified.
#[derive(Debug)]
struct Verifier {
    check: Check,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Check::Chain { chain, trusted, name } = &self.check else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is looked at before the name, so a wrong name means that the chain is right.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if *name == Name::Ignored => Ok(ServerCertVerified::assertion()),
            // A self-signed certificate as `openssl req -x509` makes it says that it is an authority, which no server may
            // be. Given byte for byte in sslrootcert, it is trusted for itself; its dates were looked at before.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if trusted.iter().any(|own| own == end_entity) =>
            {
                if *name == Name::Verified {
                    verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                }
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
