//! The encrypted end that a server has which knows no TLS itself: it answers with a certificate and passes on what was said.
//! On a thread of its own, so that it goes on while a test blocks.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::certificates::Certificates;

pub struct TlsProxy {
    port: u16,
    greeted: Arc<AtomicU64>,
    /// Dropped, it ends the thread.
    _stop: oneshot::Sender<()>,
}

impl TlsProxy {
    /// Carries what comes encrypted to a port of its own to `target` on this machine.
    pub fn start(target: u16, certificates: &Certificates) -> Result<TlsProxy> {
        let chain = CertificateDer::pem_file_iter(&certificates.server)?.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&certificates.server_key)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the proxy's port")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let greeted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&greeted);
        thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    // In either case the test is over.
                    _ = serve(listener, target, &acceptor, &count) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(TlsProxy { port, greeted, _stop: stop })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// How many clients have believed it.
    pub fn greeted(&self) -> u64 {
        self.greeted.load(Ordering::SeqCst)
    }
}

async fn serve(
    listener: std::net::TcpListener,
    target: u16,
    acceptor: &TlsAcceptor,
    greeted: &Arc<AtomicU64>,
) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let (acceptor, greeted) = (acceptor.clone(), Arc::clone(greeted));
        tokio::spawn(async move {
            // A client that does not believe hangs up.
            let mut client = acceptor.accept(client).await?;
            greeted.fetch_add(1, Ordering::SeqCst);
            let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}
