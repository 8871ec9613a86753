//! Connections: accepted within bounds, and drained when the daemon stops.
//!
//! Each listener has its own bound, so that a flood over TCP does not lock out
//! the operator on the socket. A client that sends no headers, or does not read
//! what it asked for, is cut; where there is no room, the one longest idle is.

use super::{
    auth::Peer,
    seats::{Seat, Seats},
    state::HttpState,
};
use axum::{Router, extract::Request};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::Service;

/// After an accept that failed (no descriptor free): long enough not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where clients come in.
#[derive(Default)]
pub struct Listeners {
    /// Over TCP.
    pub tcp: Option<TcpListener>,
    /// Over the UNIX socket.
    pub unix: Option<UnixListener>,
    /// TLS for what comes in over TCP.
    pub tls: Option<TlsAcceptor>,
}

enum Listener {
    Tcp(TcpListener, Option<TlsAcceptor>),
    Unix(UnixListener),
}

/// What serving keeps its clients to.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once, for each listener.
    pub max_connections: usize,
    /// Of these, from one address that is not loopback.
    pub max_per_peer: usize,
    /// How long a client may take to send its request's headers, and how long a
    /// connection may lie idle.
    pub header_timeout: Duration,
    /// How long a client may let our bytes lie before it is cut.
    pub write_timeout: Duration,
    /// How long requests under way may take when the daemon stops.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_connections: 4_096,
            max_per_peer: 256,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}

/// Serves the API until `shutdown` is cancelled; then accepts no more, lets
/// requests under way finish within `drain`, and cuts the rest.
pub async fn serve(
    listeners: Listeners,
    state: HttpState,
    shutdown: CancellationToken,
    drain: Duration,
) {
    let bounds = Bounds {
        drain,
        ..Bounds::default()
    };
    serve_within(listeners, super::router(state), shutdown, bounds).await;
}

/// The same with bounds of the caller's choice.
pub async fn serve_within(
    listeners: Listeners,
    router: Router,
    shutdown: CancellationToken,
    bounds: Bounds,
) {
    let tls = listeners.tls;
    let tcp = listeners.tcp.map(|tcp| Listener::Tcp(tcp, tls));
    let unix = listeners.unix.map(Listener::Unix);
    let mut accepting = JoinSet::new();
    for listener in tcp.into_iter().chain(unix) {
        accepting.spawn(accept(listener, router.clone(), shutdown.clone(), bounds));
    }
    while accepting.join_next().await.is_some() {}
}

async fn accept(listener: Listener, router: Router, shutdown: CancellationToken, bounds: Bounds) {
    let permits = Arc::new(Semaphore::new(bounds.max_connections));
    let seats = Seats::default();
    let mut connections = JoinSet::new();
    loop {
        if permits.available_permits() == 0 {
            seats.cut_one();
        }
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            Some(_) = connections.join_next() => continue,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                seats.sweep(bounds.max_connections * 2);
                let Some(seat) = seats.take(peer.address(), bounds.max_per_peer) else {
                    tracing::debug!(?peer, "too many connections from one address");
                    continue;
                };
                let connection =
                    connection(stream, peer, seat, router.clone(), shutdown.clone(), bounds);
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(bounds.drain, drained).await.is_err() {
        tracing::warn!(
            left = connections.len(),
            "requests are still under way, their connections are cut"
        );
        connections.shutdown().await;
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Arrived, Peer)> {
        match self {
            Listener::Tcp(listener, tls) => {
                let (stream, remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                let stream = match tls {
                    None => Arrived::Plain(Stream::Tcp(stream)),
                    Some(tls) => Arrived::Tls(tls.clone(), stream),
                };
                Ok((stream, Peer::Tcp { remote, local }))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let who = stream.peer_cred()?;
                let (uid, gid) = (who.uid(), who.gid());
                let stream = Arrived::Plain(Stream::Unix(stream));
                Ok((stream, Peer::Local { uid, gid }))
            }
        }
    }
}

async fn connection(
    arrived: Arrived,
    peer: Peer,
    seat: Arc<Seat>,
    router: Router,
    shutdown: CancellationToken,
    bounds: Bounds,
) {
    let greeted = tokio::select! {
        greeted = arrived.greet(bounds.header_timeout) => greeted,
        () = seat.cut.cancelled() => None,
        () = shutdown.cancelled() => None,
    };
    let Some(stream) = greeted else {
        return;
    };
    let asked = Arc::clone(&seat);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let busy = asked.request();
        let answering = router.clone().call(request);
        async move {
            let answer = answering.await;
            drop(busy);
            answer
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_buf_size(64 * 1024);
    let io = TokioIo::new(Timed::new(stream, bounds.write_timeout));
    let mut serving = pin!(builder.serve_connection(io, service));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = seat.cut.cancelled() => return,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// A connection that was accepted, before anything was said.
enum Arrived {
    Plain(Stream),
    Tls(TlsAcceptor, TcpStream),
}

impl Arrived {
    /// With TLS agreed on where it is to be; none if the client did not, or took too long.
    async fn greet(self, patience: Duration) -> Option<Stream> {
        match self {
            Arrived::Plain(stream) => Some(stream),
            Arrived::Tls(tls, stream) => {
                match tokio::time::timeout(patience, tls.accept(stream)).await {
                    Ok(Ok(stream)) => Some(Stream::Tls(Box::new(stream))),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "no TLS was agreed on");
                        None
                    }
                    Err(_) => None,
                }
            }
        }
    }
}

enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A stream whose writes fail when its reader takes nothing for too long.
struct Timed {
    stream: Stream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Timed {
    fn new(stream: Stream, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
        }
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, buf) {
            self.stalled = None;
            return Poll::Ready(written);
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
