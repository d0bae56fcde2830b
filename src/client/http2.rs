//! HTTP/2 towards a backend: hyper's client, for `h2c://` and where ALPN chose it.
//!
//! hyper splits a connection into a handle and a driver; the driver is a task of its own, since it must run (window
//! updates, pings, GOAWAY) also while no request of ours is being polled. It ends with its connection, and that ends
//! when the last handle and stream are dropped.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    pin::Pin,
    rc::{Rc, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version, header, uri::Scheme};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http2::{Connection, SendRequest},
};

use super::{
    Failure, Head, Outgoing, Settings, Stage, Target, cut,
    http1::head::is_hop_by_hop,
    wire::{HyperIo, Wire},
};
use crate::{
    body::Body,
    error::{Cause, Error, Kind},
};

/// A ping goes out when a connection with open streams was silent for so long.
const PING_AFTER: Duration = Duration::from_secs(15);

/// The connection is dead when the pong takes longer.
const PONG_WITHIN: Duration = Duration::from_secs(10);

/// What a backend may send ahead on one stream, and on all of a connection, while a client reads slowly.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// One connection, shared by many requests.
pub(super) struct Shared {
    sender: SendRequest<Watched>,
    /// Owned by the driver's task; knows what the backend's SETTINGS allow.
    driven: Weak<RefCell<Connection<HyperIo, Watched, LocalExecutor>>>,
    load: Rc<Load>,
}

#[derive(Debug, Default)]
struct Load {
    streams: Cell<usize>,
    /// The tick of the latest use.
    used: Cell<u64>,
}

/// A place for one request on a connection.
pub(super) struct Stream {
    sender: SendRequest<Watched>,
    place: Place,
}

/// Counts as an open stream while it lives.
#[derive(Debug)]
struct Place(Rc<Load>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
    }
}

impl Shared {
    /// Shakes hands on a connected wire and starts the driver.
    pub(super) async fn open(wire: Wire, settings: &Settings) -> Result<Self, Failure> {
        let header_list = u32::try_from(settings.header_bytes).unwrap_or(u32::MAX);
        let (sender, connection) = hyper::client::conn::http2::Builder::new(LocalExecutor)
            .timer(Clock)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(header_list)
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PONG_WITHIN)
            .keep_alive_while_idle(false)
            .handshake(HyperIo(wire))
            .await
            .map_err(|error| Failure::new(Stage::Connect, error))?;
        let connection = Rc::new(RefCell::new(connection));
        let driven = Rc::downgrade(&connection);
        hyper::rt::Executor::execute(&LocalExecutor, async move {
            // Each request on it is told by its own future or body.
            if let Err(error) = poll_fn(|cx| Pin::new(&mut *connection.borrow_mut()).poll(cx)).await {
                tracing::debug!(%error, "an HTTP/2 connection to a backend ended");
            }
        });
        Ok(Self { sender, driven, load: Rc::default() })
    }

    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// How many more streams the backend allows.
    pub(super) fn room(&self) -> usize {
        let allowed = match self.driven.upgrade() {
            Some(connection) => connection.try_borrow().map_or(0, |driven| driven.current_max_send_streams()),
            None => 0,
        };
        allowed.saturating_sub(self.load.streams.get())
    }

    pub(super) fn stream(&self, now: u64) -> Stream {
        self.load.streams.set(self.load.streams.get() + 1);
        self.load.used.set(now);
        Stream { sender: self.sender.clone(), place: Place(Rc::clone(&self.load)) }
    }

    /// Whether it is worth keeping: open, and busy or used in the last `idle` ticks.
    pub(super) fn is_wanted(&self, now: u64, idle: u64) -> bool {
        if self.load.streams.get() > 0 {
            self.load.used.set(now);
        }
        self.is_open() && now < self.load.used.get().saturating_add(idle)
    }
}

/// Sends a request on its place.
pub(super) async fn send(
    stream: Stream,
    target: &Target,
    head: &Head<'_>,
    body: &mut Outgoing,
) -> Result<Response<Body>, Failure> {
    let Stream { mut sender, place } = stream;
    let (content, kept) = match std::mem::replace(body, Outgoing::Taken) {
        Outgoing::Empty => (Body::empty(), Outgoing::Empty),
        Outgoing::Whole(bytes) => (Body::whole(bytes.clone()), Outgoing::Whole(bytes)),
        Outgoing::Stream(stream) => (stream, Outgoing::Taken),
        Outgoing::Taken => (Body::empty(), Outgoing::Taken),
    };
    *body = kept;
    let failed = Rc::new(RefCell::new(None));
    let watched = Watched { body: content, failed: Rc::clone(&failed) };
    let request = request(target, head, watched)?;
    match sender.try_send_request(request).await {
        Ok(response) => Ok(response.map(|incoming| Body::stream(Answer::new(incoming, place)))),
        Err(mut refused) => {
            if let Some(request) = refused.take_message() {
                if matches!(body, Outgoing::Taken) {
                    *body = Outgoing::Stream(request.into_body().body);
                }
                return Err(Failure::new(Stage::Unsent, refused.into_error()));
            }
            if let Some(error) = failed.take() {
                return Err(Failure::new(Stage::Request, error));
            }
            let error = refused.into_error();
            Err(Failure::new(stage(&error), error))
        }
    }
}

/// The head in HTTP/2's form (RFC 9113 §8.3).
fn request(target: &Target, head: &Head<'_>, body: Watched) -> Result<Request<Watched>, Failure> {
    let scheme = if target.tls().is_some() { Scheme::HTTPS } else { Scheme::HTTP };
    let own_host = head.extra.iter().find(|(name, _)| name == header::HOST);
    let authority = own_host.and_then(|(_, value)| value.to_str().ok()).unwrap_or(target.authority());
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(format!("{}{}", target.prefix(head.path), head.path))
        .build()
        .map_err(|error| Failure::new(Stage::Unsent, error))?;
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = fields(head);
    Ok(request)
}

fn fields(head: &Head<'_>) -> HeaderMap {
    let is_ours = |name: &header::HeaderName| {
        is_hop_by_hop(name) || [header::HOST, header::CONTENT_LENGTH, header::EXPECT].contains(name)
    };
    let mut fields = HeaderMap::with_capacity(head.headers.len() + head.extra.len());
    for (name, value) in head.headers {
        if !is_ours(name) && !head.extra.iter().any(|(extra, _)| extra == name) {
            fields.append(name.clone(), value.clone());
        }
    }
    for (name, value) in head.extra.iter().filter(|(name, _)| !is_ours(name)) {
        fields.append(name.clone(), value.clone());
    }
    // gRPC servers insist on it; it says what holds here for every request.
    if fields.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    fields
}

/// How far a request came that hyper took but could not bring to an answer.
fn stage(error: &hyper::Error) -> Stage {
    let Some(h2) = find_h2(error) else { return Stage::Reset };
    let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM);
    // RFC 9113 §6.8, §8.7: streams above the GOAWAY's last one, and refused ones, were not processed.
    if h2.is_remote() && (h2.is_go_away() || refused) {
        Stage::Unsent
    } else if !h2.is_remote() && (h2.is_go_away() || h2.is_reset()) {
        Stage::Protocol
    } else {
        Stage::Reset
    }
}

fn find_h2<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a h2::Error> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

/// A request's body that remembers why it failed: hyper tells the backend, but not the caller.
struct Watched {
    body: Body,
    failed: Rc<RefCell<Option<Error>>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the request's body failed")]
struct BodyFailed;

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = BodyFailed;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyFailed>>> {
        Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Err(error)) => {
                self.failed.replace(Some(error));
                Some(Err(BodyFailed))
            }
            Some(Ok(frame)) => Some(Ok(frame)),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body; dropping it resets the stream.
struct Answer {
    incoming: Incoming,
    /// Free for the next request once this one ended; then `None`.
    place: Option<Place>,
    /// What Content-Length promises still.
    left: Option<u64>,
}

impl Answer {
    fn new(incoming: Incoming, place: Place) -> Self {
        let left = incoming.size_hint().exact();
        Self { incoming, place: Some(place), left }
    }

    /// hyper takes a stream that was reset with NO_ERROR for one that ended: it is whole only if it was closed by
    /// END_STREAM, or all that was promised has come.
    fn end(&mut self) -> Option<Result<Frame<Bytes>, Error>> {
        self.place = None;
        let is_whole = self.incoming.is_end_stream() || self.left == Some(0);
        let reset = || std::io::Error::new(std::io::ErrorKind::ConnectionReset, "the stream was reset");
        (!is_whole).then(|| Err(cut(reset())))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.place.is_none() {
            // hyper would tell the same error for ever.
            return Poll::Ready(None);
        }
        Poll::Ready(match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (&mut self.left, frame.data_ref()) {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                self.place = None;
                Some(Err(body_failed(error)))
            }
            None => self.end(),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

fn body_failed(cause: hyper::Error) -> Error {
    if stage(&cause) == Stage::Protocol {
        return Error::new(Kind::UpstreamProtocol, "the backend's HTTP/2 stream is malformed").with_source(cause);
    }
    cut(std::io::Error::other(Cause::from(cause)))
}

/// hyper's tasks of a connection stay on this worker.
#[derive(Clone, Copy, Debug)]
struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
{
    #[expect(
        clippy::disallowed_methods,
        reason = "a connection's driver and its body pipes end with the connection; see the module's doc"
    )]
    fn execute(&self, task: F) {
        tokio::task::spawn_local(async move {
            task.await;
        });
    }
}

/// tokio's time for hyper's pings.
#[derive(Clone, Copy, Debug)]
struct Clock;

/// A sleep of [`Clock`].
struct Sleep(Pin<Box<tokio::time::Sleep>>);

impl hyper::rt::Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Box::pin(tokio::time::sleep(duration))))
    }

    #[expect(clippy::disallowed_types, reason = "the signature of hyper's trait; made from tokio's clock in `now`")]
    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Sleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    #[expect(clippy::disallowed_types, reason = "the signature of hyper's trait")]
    fn now(&self) -> std::time::Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for Sleep {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("load", &self.load).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("place", &self.place).finish_non_exhaustive()
    }
}
