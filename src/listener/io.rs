//! The socket, and the socket as hyper sees it.
//!
//! [`Io`] notes in a [`Flow`] what the connection has to know of bytes it never sees: whether some came since the
//! last head, whether a write is blocked, whether the client has ended its side.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

/// What is thrown away at once.
const DISCARDED: usize = 8 * 1024;
/// What is read ahead of a request that is under way.
const AHEAD: usize = 512;

/// A client's socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// TLS over one of the others; boxed, its state is more than a kibibyte.
    Tls(Box<TlsStream<Stream>>),
}

/// A socket for hyper, with bytes that were read from it before.
#[derive(Debug)]
pub(super) struct Io {
    stream: Stream,
    early: Bytes,
    /// hyper waits for bytes: it will see the end of the client's side by itself.
    asked: bool,
    flow: Rc<Flow>,
}

/// What happened on an [`Io`].
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes were handed over since this was last cleared.
    pub(super) fresh: Cell<bool>,
    /// The last write or flush had to wait for the client.
    pub(super) blocked: Cell<bool>,
    /// Bytes the client's side took since this was last taken.
    pub(super) written: Cell<u64>,
    /// Request bodies that are not read to their end: whoever reads them sees the end of the client's side.
    pub(super) reading: Rc<Cell<u32>>,
    /// The client has ended its side, or the socket failed: nothing more will come.
    pub(super) over: Cell<bool>,
}

impl Stream {
    /// Ready when the socket has bytes, or its end. May be ready too often, never too seldom.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Tcp(stream) => stream.poll_read_ready(cx).map(drop),
            Self::Unix(stream) => stream.poll_read_ready(cx).map(drop),
            Self::Tls(tls) => {
                let (stream, session) = tls.get_mut();
                // Bytes may be decrypted already, though the socket is dry.
                match session.process_new_packets() {
                    Ok(state) if state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {
                        stream.poll_readable(cx)
                    }
                    _ => Poll::Ready(()),
                }
            }
        }
    }

    /// The address the client connected to.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok(),
            Self::Unix(_) => None,
            Self::Tls(tls) => tls.get_ref().0.local(),
        }
    }

    /// Reads and forgets; the number of bytes, 0 at the end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut scratch = [0; DISCARDED];
        let mut read = ReadBuf::new(&mut scratch);
        Pin::new(self).poll_read(cx, &mut read).map_ok(|()| read.filled().len())
    }

    /// Closing it from now on tells the client that something went wrong (RST), where the end of the connection would
    /// be taken for the end of the answer.
    pub(super) fn reset(&self) {
        match self {
            // A socket that is gone already needs no telling.
            Self::Tcp(stream) => drop(socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO))),
            Self::Tls(stream) => stream.get_ref().0.reset(),
            Self::Unix(_) => {}
        }
    }

    /// Writes what the socket takes at once and forgets the rest: for a last word to a client that is cut off.
    pub(super) fn last_word(&mut self, bytes: &[u8]) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = Pin::new(&mut *self).poll_write(&mut cx, bytes);
        let _ = Pin::new(self).poll_flush(&mut cx);
    }
}

impl Io {
    /// `early` is read first.
    pub(super) fn new(stream: Stream, early: Bytes, flow: Rc<Flow>) -> Self {
        Self { stream, early, asked: false, flow }
    }

    /// The socket, and early bytes that were never asked for.
    pub(super) fn into_parts(self) -> (Stream, Bytes) {
        (self.stream, self.early)
    }

    /// Whether the client has ended its side while hyper asks for nothing: it writes an answer that nobody will read.
    /// Bytes that came instead, of a next request, are kept for it; the end is not looked for behind them.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while !self.asked && self.early.is_empty() && self.flow.reading.get() == 0 {
            ready!(self.stream.poll_readable(cx));
            let mut scratch = [0; AHEAD];
            let mut read = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut read)) {
                Ok(()) if !read.filled().is_empty() => self.early = Bytes::copy_from_slice(read.filled()),
                ended => {
                    self.flow.over.set(true);
                    let end = || io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(ended.err().unwrap_or_else(end));
                }
            }
        }
        Poll::Pending
    }

    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.flow.blocked.set(polled.is_pending());
        if let Poll::Ready(Ok(n)) = polled {
            self.flow.written.set(self.flow.written.get() + n as u64);
        }
        polled
    }
}

/// Tells how much was read: hyper's cursor does not.
struct Counted<'a> {
    stream: &'a mut Stream,
    read: usize,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut *self.stream).poll_read(cx, buf);
        self.read = buf.filled().len() - before;
        polled
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.asked = false;
        if !this.early.is_empty() {
            let n = this.early.len().min(buf.remaining());
            buf.put_slice(&this.early[..n]);
            this.early.advance(n);
            if this.early.is_empty() {
                this.early = Bytes::new();
            }
            this.flow.fresh.set(true);
            return Poll::Ready(Ok(()));
        }
        let mut counted = Counted { stream: &mut this.stream, read: 0 };
        let polled = Pin::new(&mut TokioIo::new(&mut counted)).poll_read(cx, buf);
        match &polled {
            Poll::Ready(Ok(())) if counted.read > 0 => this.flow.fresh.set(true),
            Poll::Ready(_) => this.flow.over.set(true),
            Poll::Pending => this.asked = true,
        }
        polled
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        let polled = self.wrote(polled);
        if polled.is_pending() { self.poll_gone(cx).map(Err) } else { polled }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper comes by here at each of its turns, unless a write is pending.
        if let Poll::Ready(gone) = self.poll_gone(cx) {
            return Poll::Ready(Err(gone));
        }
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        self.flow.blocked.set(polled.is_pending());
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
