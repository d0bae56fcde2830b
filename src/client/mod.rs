//! The HTTP client: one per worker, with its own connections, used by `proxy/upstream` and by the control plane's
//! probes.
//!
//! ```text
//!  send(target, head, body) ─► pool (LIFO) ─┬─► http1: own codec, no task per connection
//!                               │ empty     └─► http2: hyper, one driver task per connection
//!                               ▼
//!                         connector ─► resolver, Happy Eyeballs, TLS
//! ```
//!
//! Nothing here is `Send` but [`Target`]. Dropping the future of [`Client::send`] or the answer's body closes the
//! connection (HTTP/2: resets the stream) at once. Timeouts other than `connect` are the caller's: it drops.

mod connector;
pub mod http1;
mod http2;
mod pool;
pub mod resolver;
mod target;
mod tls;
mod wire;

#[cfg(test)]
mod tests;

use std::{cell::RefCell, fmt, io, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, response::Parts, uri::PathAndQuery};

pub use connector::dial;
pub use resolver::Resolver;
pub use target::Target;
pub use tls::TlsProblem;

use crate::{
    body::Body,
    error::{Cause, Error, Kind},
    runtime::{io::Duplex, ticker::Ticker},
};
use http1::exchange;
use pool::{Link, Pool};

/// The read buffer that all HTTP/1.1 connections of a worker share.
const SCRATCH: usize = 64 * 1024;

/// Bodies up to this size are copied behind the head and leave in the same `send`.
const INLINE_BODY: usize = 16 * 1024;

/// One worker's client. Cheap to clone; stays on its thread.
#[derive(Clone, Debug)]
pub struct Client(Rc<Worker>);

/// The client's bounds and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// For name, TCP and TLS together.
    pub connect: Duration,
    /// Of an answer's head, and of its trailers.
    pub header_bytes: usize,
    /// How long an HTTP/1.1 connection may lie idle: below what the engines allow (vLLM and llama.cpp close at 5 s).
    pub idle: Duration,
    /// How long an HTTP/2 connection may lie without a stream.
    pub idle_http2: Duration,
    /// Idle HTTP/1.1 connections kept per target.
    pub idle_per_target: usize,
    /// HTTP/2 connections per target; the next is opened when all streams of the others are in use.
    pub http2_connections: usize,
}

impl Settings {
    /// The two that are configured, the rest as measured to be right.
    pub fn new(connect: Duration, header_bytes: usize) -> Self {
        Self {
            connect,
            header_bytes,
            idle: Duration::from_secs(4),
            idle_http2: Duration::from_secs(60),
            idle_per_target: 512,
            http2_connections: 8,
        }
    }
}

/// Held handles of the counters that the client moves.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Connections opened.
    pub opened: metrics::Counter,
    /// Requests sent over a connection that had carried one before.
    pub reused: metrics::Counter,
    /// Idle connections that turned out to be closed by the backend.
    pub stale: metrics::Counter,
}

impl Counters {
    /// Counts nothing.
    pub fn noop() -> Self {
        let noop = metrics::Counter::noop;
        Self { opened: noop(), reused: noop(), stale: noop() }
    }
}

/// A request's head. `Host`, framing and what belongs to one connection are the client's own: such fields in
/// `headers` are not sent.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub method: &'a Method,
    /// Without the target's base path.
    pub path: &'a PathAndQuery,
    pub headers: &'a HeaderMap,
    /// Take the place of fields of the same name in `headers`; a `host` here, that of the target's own.
    pub extra: &'a [(HeaderName, HeaderValue)],
    /// Whether the backend may get this request twice.
    pub repeatable: bool,
}

/// Why no answer came.
#[derive(Debug, thiserror::Error)]
#[error("{stage}: {cause}")]
pub struct Failure {
    pub stage: Stage,
    pub cause: Cause,
    /// `connect` ran out.
    pub timed_out: bool,
    /// The request's body, where it streams and nothing of it was taken: it can be sent elsewhere.
    pub untouched: Option<Box<Body>>,
}

/// How far a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// No connection: name, refusal, TLS, time.
    Connect,
    /// A connection, but nothing of the request was taken: any request may be sent again.
    Unsent,
    /// The connection or stream ended before the answer's head.
    Reset,
    /// The answer is not HTTP, or over a bound.
    Protocol,
    /// The request's own body failed; `cause` is its [`Error`].
    Request,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "could not connect",
            Self::Unsent => "the connection ended before the request was sent",
            Self::Reset => "the connection ended before an answer came",
            Self::Protocol => "the answer is malformed",
            Self::Request => "the request's body failed",
        })
    }
}

impl Failure {
    fn new(stage: Stage, cause: impl Into<Cause>) -> Self {
        Self { stage, cause: cause.into(), timed_out: false, untouched: None }
    }

    /// The same after an earlier try: if that was sent, nothing later makes the request unsent.
    fn after(self, sent: bool) -> Self {
        let unsent = matches!(self.stage, Stage::Connect | Stage::Unsent);
        if sent && unsent { Self { stage: Stage::Reset, ..self } } else { self }
    }
}

/// What came of asking for another protocol.
pub struct Upgraded {
    /// 101 with an empty body, or the backend's refusal.
    pub response: Response<Body>,
    /// Both directions from the first byte after the head, when the answer is 101.
    pub stream: Option<Box<dyn Duplex>>,
}

impl fmt::Debug for Upgraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upgraded = self.stream.is_some();
        f.debug_struct("Upgraded").field("response", &self.response).field("upgraded", &upgraded).finish()
    }
}

/// What the requests of one worker share.
struct Worker {
    settings: Settings,
    ticker: Ticker,
    counters: Counters,
    pool: Pool,
    connector: connector::Connector,
    scratch: RefCell<Vec<u8>>,
    /// Heads are written here; kept for its capacity.
    out: RefCell<Vec<u8>>,
}

impl Client {
    /// A client whose pools expire by `ticker`.
    pub fn new(settings: Settings, ticker: Ticker, resolver: Rc<Resolver>, counters: Counters) -> Self {
        let worker = Rc::new(Worker {
            pool: Pool::new(&settings),
            connector: connector::Connector::new(resolver, settings.connect),
            scratch: RefCell::new(vec![0; SCRATCH]),
            out: RefCell::default(),
            ticker: ticker.clone(),
            counters,
            settings,
        });
        let weak = Rc::downgrade(&worker);
        ticker.every_tick(move || {
            if let Some(worker) = weak.upgrade() {
                worker.pool.expire(worker.ticker.now());
            }
        });
        Self(worker)
    }

    /// Sends a request and waits for the answer's head. An answer that came whole with it is a whole body, and its
    /// connection is free again; else the body streams from the connection.
    ///
    /// A reused connection that ends before any byte of an answer is replaced once, unseen, while the body can still
    /// be sent from its start, and the request may be sent twice or was not sent at all.
    ///
    /// # Errors
    /// See [`Stage`]. What fails after the head fails in the body: [`Kind::StreamCut`] or
    /// [`Kind::UpstreamProtocol`].
    pub async fn send(&self, target: &Arc<Target>, head: Head<'_>, body: Body) -> Result<Response<Body>, Failure> {
        let mut body = Outgoing::new(body);
        self.try_send(target, &head, &mut body).await.map_err(|failure| match body {
            Outgoing::Stream(untouched) => Failure { untouched: Some(Box::new(untouched)), ..failure },
            _ => failure,
        })
    }

    async fn try_send(
        &self,
        target: &Arc<Target>,
        head: &Head<'_>,
        body: &mut Outgoing,
    ) -> Result<Response<Body>, Failure> {
        let mut fresh = false;
        // Once a try has left, later ones that fail do not make it unsent.
        let mut sent = false;
        loop {
            let link = self.0.acquire(target, fresh).await.map_err(|failure| failure.after(sent))?;
            match link {
                Link::Http1(conn) => match exchange::send(&self.0, target, conn, head, body).await {
                    Ok(response) => return Ok(response),
                    Err(broken) if broken.is_stale(head.repeatable) && body.is_intact() && !fresh => {
                        self.0.counters.stale.increment(1);
                        sent = broken.was_sent();
                        fresh = true;
                    }
                    Err(broken) => return Err(broken.into_failure().after(sent)),
                },
                Link::Http2(stream) => match http2::send(stream, target, head, body).await {
                    Ok(response) => return Ok(response),
                    Err(failure) if failure.stage == Stage::Unsent && body.is_intact() && !fresh => fresh = true,
                    Err(failure) => return Err(failure.after(sent)),
                },
            }
        }
    }

    /// Asks for a WebSocket (RFC 6455), on a connection of its own.
    ///
    /// # Errors
    /// As [`Client::send`]; a target that speaks HTTP/2 only is a [`Stage::Protocol`].
    pub async fn upgrade(&self, target: &Arc<Target>, head: Head<'_>) -> Result<Upgraded, Failure> {
        let conn = self.0.dial_http1(target).await?;
        exchange::upgrade(&self.0, target, conn, &head).await.map_err(exchange::Broken::into_failure)
    }

    /// A small GET: probes, model lists. The caller sets the deadline.
    ///
    /// # Errors
    /// As [`Client::send`]; a cut body is a [`Stage::Reset`], one over `cap` bytes a [`Stage::Protocol`].
    pub async fn get(
        &self,
        target: &Arc<Target>,
        path: &PathAndQuery,
        headers: &HeaderMap,
        cap: usize,
    ) -> Result<(Parts, Bytes), Failure> {
        let head = Head { method: &Method::GET, path, headers, extra: &[], repeatable: true };
        let (parts, body) = self.send(target, head, Body::empty()).await?.into_parts();
        let body = body.read(cap).await.map_err(|error| {
            let stage = if error.kind() == Kind::StreamCut { Stage::Reset } else { Stage::Protocol };
            Failure::new(stage, error)
        })?;
        Ok((parts, body))
    }

    /// Forgets a target that is no longer configured: its idle connections close now, those in use after their
    /// answers.
    pub fn retire(&self, target: &Arc<Target>) {
        self.0.pool.retire(target);
    }

    /// Idle HTTP/1.1 connections to a target.
    pub fn idle(&self, target: &Arc<Target>) -> usize {
        self.0.pool.idle(target)
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// A request's body over several tries: whole ones can be sent again, streamed ones while nothing was taken.
#[derive(Debug)]
enum Outgoing {
    Empty,
    Whole(Bytes),
    Stream(Body),
    /// A streamed body of which something was taken.
    Taken,
}

impl Outgoing {
    fn new(mut body: Body) -> Self {
        use http_body::Body as _;
        if body.as_whole().is_some() {
            // Read as any reader would, so that its tail sees it.
            let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
            if let std::task::Poll::Ready(Some(Ok(frame))) = std::pin::Pin::new(&mut body).poll_frame(&mut cx)
                && let Ok(bytes) = frame.into_data()
            {
                return Self::Whole(bytes);
            }
            return Self::Empty;
        }
        if body.is_end_stream() { Self::Empty } else { Self::Stream(body) }
    }

    fn is_intact(&self) -> bool {
        !matches!(self, Self::Taken)
    }
}

/// The error of an answer's body that ended before its framing said so.
fn cut(cause: io::Error) -> Error {
    Error::new(Kind::StreamCut, "the backend closed the connection before its answer was complete").with_source(cause)
}

/// The error of an answer's body that breaks its framing.
fn malformed(cause: http1::Malformed) -> Error {
    Error::new(Kind::UpstreamProtocol, format!("the backend's answer is malformed: {cause}")).with_source(cause)
}
