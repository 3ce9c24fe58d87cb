//! The listening socket, with a hand on every connection.
//!
//! A twin that "accepted the post and then lost the answer" has to end the connection itself: no status, no
//! headers, nothing. HTTP servers give a handler no way to do that, so the connections pass through here and
//! can be cut by their peer's address. Never touches bytes that do go through.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use poem::{
    http::uri::Scheme,
    listener::Acceptor,
    web::{LocalAddr, RemoteAddr},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// Every open connection, by the address of its other end.
#[derive(Clone, Default)]
pub struct Connections(Arc<Mutex<HashMap<SocketAddr, Arc<Line>>>>);

/// What is known and wanted of one connection.
#[derive(Default)]
pub struct Line {
    cut: AtomicBool,
    left: AtomicBool,
}

impl Connections {
    pub fn line(&self, peer: SocketAddr) -> Option<Arc<Line>> {
        self.lock().get(&peer).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Arc<Line>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    /// From now on nothing more is written; the server closes the connection when it tries.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
    }

    /// Whether the other end has closed the connection. The server does not tell its handlers: it goes on
    /// with a request whose caller has hung up.
    pub fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }
}

/// Accepts TCP connections and registers each with [`Connections`].
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
    connections: Connections,
}

impl Listener {
    pub async fn bind(address: &str, connections: Connections) -> io::Result<Self> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        Ok(Self { socket, address, connections })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Acceptor for Listener {
    type Io = Wire;

    fn local_addr(&self) -> Vec<LocalAddr> {
        vec![LocalAddr(self.address.into())]
    }

    async fn accept(&mut self) -> io::Result<(Wire, LocalAddr, RemoteAddr, Scheme)> {
        let (stream, peer) = self.socket.accept().await?;
        // Small answers leave at once: without this, latency figures taken against the sandbox show Nagle's pauses.
        stream.set_nodelay(true)?;
        let line = Arc::new(Line::default());
        self.connections.lock().insert(peer, Arc::clone(&line));
        let wire = Wire { stream, peer, line, connections: self.connections.clone() };
        Ok((wire, LocalAddr(self.address.into()), RemoteAddr(peer.into()), Scheme::HTTP))
    }
}

/// One connection that can be cut from outside.
pub struct Wire {
    stream: TcpStream,
    peer: SocketAddr,
    line: Arc<Line>,
    connections: Connections,
}

impl Wire {
    fn refuse_if_cut(&self) -> io::Result<()> {
        if self.line.cut.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut by a fault"));
        }
        Ok(())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.line.left.store(true, Ordering::Release);
        self.connections.lock().remove(&self.peer);
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let ended = match &read {
            Poll::Ready(Ok(())) => room && buf.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if ended {
            self.line.left.store(true, Ordering::Release);
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Err(error) = self.refuse_if_cut() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Err(error) = self.refuse_if_cut() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = self.refuse_if_cut() {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
