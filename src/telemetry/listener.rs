//! A TCP listener whose connections are few and cannot be held open for nothing.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// Connections served at once; more wait in the system's queue.
const CONNECTIONS_MAX: usize = 64;

/// A connection on which nothing was answered for this long is closed: an idle one, and one that sends its request a byte
/// at a time.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(10);

/// After a failed accept: out of descriptors, most likely, which the next try would be, too.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct Limited {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    silence: Duration,
}

impl Limited {
    pub fn new(listener: TcpListener, silence: Duration) -> Self {
        Limited { listener, permits: Arc::new(Semaphore::new(CONNECTIONS_MAX)), silence }
    }
}

impl Listener for Limited {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (silence, deadline) = (self.silence, Box::pin(sleep(self.silence)));
                    return (Connection { stream, silence, deadline, _permit: permit }, peer);
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// One connection. Its deadline moves with every byte of an answer that was taken, never with what the peer sends.
pub(super) struct Connection {
    stream: TcpStream,
    silence: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn in_time(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.deadline.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    fn written(&mut self, outcome: Poll<io::Result<usize>>, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(Ok(_)) => self.deadline.as_mut().reset(Instant::now() + self.silence),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.in_time(context)?,
        }
        outcome
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.in_time(context)?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(outcome, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(context, parts);
        this.written(outcome, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn accepted(silence: Duration) -> (Limited, TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut limited = Limited::new(listener, silence);
        let peer = TcpStream::connect(limited.local_addr().expect("bound")).await.expect("connected");
        let (connection, _) = limited.accept().await;
        (limited, peer, connection)
    }

    #[tokio::test]
    async fn a_request_sent_a_byte_at_a_time_is_cut_off() {
        let (_limited, mut peer, mut connection) = accepted(Duration::from_millis(50)).await;
        let trickle = async {
            while peer.write_all(b"G").await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let reading = async {
            let mut buffer = [0; 16];
            loop {
                if let Err(error) = connection.read(&mut buffer).await {
                    return error.kind();
                }
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(20), async {
            tokio::select! { kind = reading => Some(kind), () = trickle => None }
        });
        assert_eq!(ended.await.expect("in time"), Some(io::ErrorKind::TimedOut));
    }

    #[tokio::test]
    async fn connections_are_counted_until_they_are_dropped() {
        let (limited, _peer, connection) = accepted(SILENCE_MAX).await;
        assert_eq!(limited.permits.available_permits(), CONNECTIONS_MAX - 1);
        drop(connection);
        assert_eq!(limited.permits.available_permits(), CONNECTIONS_MAX);
    }
}
