//! One request on its way to the service and back: checked, counted as alive, and kept from taking the connection's
//! task down.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::{body::Incoming, service::Service};

use super::{peer::Peer, strict};
use crate::{
    body::{Body, Lease, Upload},
    error::Error,
    runtime::{hush::Hush, ticker::Ticker, turn::Turn},
};

/// What the service's future must be: boxed, since hyper keeps room for one as long as the connection lives.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

/// What a connection knows of its requests.
#[derive(Debug, Default)]
pub(super) struct Activity {
    /// Futures, uploads and answers that live.
    pub(super) alive: Rc<Cell<u32>>,
    /// Requests so far.
    pub(super) requests: Cell<u64>,
    /// Requests that were dropped before their answer began, since this was last taken.
    pub(super) cancelled: Cell<u32>,
    /// A 101 was answered.
    pub(super) switched: Cell<bool>,
    /// Request bodies that are not read to their end.
    pub(super) reading: Rc<Cell<u32>>,
    /// When answers may be written.
    pub(super) turn: Rc<Turn>,
    /// The stream whose answer was just begun, for the task that HTTP/2 gives it next.
    pub(super) next: RefCell<Option<Rc<Drain>>>,
}

impl Activity {
    /// Something of a request is alive.
    pub(super) fn is_busy(&self) -> bool {
        self.alive.get() & !Lease::FORFEIT > 0
    }

    /// Whether the end of every request so far was seen.
    pub(super) fn is_sure(&self) -> bool {
        self.alive.get() & Lease::FORFEIT == 0
    }
}

/// How far an answer is taken off our hands.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// A frame was handed over and none asked for since: the client's window is closed.
    pub(super) full: Cell<bool>,
    /// Bytes handed over since this was last taken.
    pub(super) moved: Cell<u64>,
    /// The answer failed, and its client knows no framing but the end of the connection.
    pub(super) unframed_failure: Cell<bool>,
    http10: Cell<bool>,
}

/// The service of one connection, as hyper is given it.
pub(super) struct Guarded<S, B> {
    pub(super) service: S,
    pub(super) peer: Rc<Peer>,
    pub(super) activity: Rc<Activity>,
    pub(super) ticker: Ticker,
    pub(super) hush: Hush,
    pub(super) panics: metrics::Counter,
    pub(super) body: PhantomData<fn() -> B>,
}

/// Nothing in it is ever pinned.
impl<S, B> Unpin for Guarded<S, B> {}

/// A request that runs.
pub(super) struct Running {
    future: Result<Answering, Option<Response<Body>>>,
    /// It was dropped, or the answer to it is there.
    answered: bool,
    lease: Option<Lease>,
    drain: Rc<Drain>,
    peer: Rc<Peer>,
    activity: Rc<Activity>,
    panics: metrics::Counter,
}

/// An answer's body that counts as alive until it has ended.
pub(super) struct Answer {
    body: Body,
    /// Data that waits for its turn to be written.
    held: Option<Bytes>,
    turn: Rc<Turn>,
    drain: Rc<Drain>,
    _lease: Option<Lease>,
}

impl<S, B> Service<Request<Incoming>> for Guarded<S, B>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering>,
    B: From<Upload>,
{
    type Response = Response<Answer>;
    type Error = Infallible;
    type Future = Running;

    fn call(&self, request: Request<Incoming>) -> Running {
        let activity = &self.activity;
        activity.requests.set(activity.requests.get() + 1);
        let drain = Rc::new(Drain::default());
        drain.http10.set(request.version() == Version::HTTP_10);
        *activity.next.borrow_mut() = Some(Rc::clone(&drain));
        let (head, incoming) = request.into_parts();
        let future = match strict::check(&head) {
            Err(reason) => Err(Some(bad_request(reason))),
            Ok(()) => {
                let leases = [Lease::new(&activity.alive), Lease::new(&activity.reading)];
                let upload = Upload::new(incoming, &self.ticker, leases, &self.hush);
                let request = Request::from_parts(head, B::from(upload));
                // A service may do work, and fail, before it returns its future.
                catch_unwind(AssertUnwindSafe(|| self.service.call(request))).map_err(|_| {
                    self.panics.increment(1);
                    Some(failed())
                })
            }
        };
        let lease = Some(Lease::new(&activity.alive));
        Running {
            future,
            answered: false,
            lease,
            drain,
            peer: Rc::clone(&self.peer),
            activity: Rc::clone(activity),
            panics: self.panics.clone(),
        }
    }
}

impl Future for Running {
    type Output = Result<Response<Answer>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if let Ok(future) = &mut this.future {
            let response = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
                Ok(polled) => {
                    let Ok(response) = ready!(polled);
                    response
                }
                Err(_) => {
                    this.panics.increment(1);
                    failed()
                }
            };
            // The future goes now, not with hyper's slot for it.
            this.future = Err(Some(response));
        }
        ready!(this.activity.turn.poll(cx));
        this.answered = true;
        let response = match &mut this.future {
            Err(response) => response.take().unwrap_or_else(failed),
            Ok(_) => failed(),
        };
        let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        this.activity.switched.set(switched);
        if !switched {
            drop(this.peer.take_tunnel());
        }
        let (drain, lease, turn) = (Rc::clone(&this.drain), this.lease.take(), Rc::clone(&this.activity.turn));
        Poll::Ready(Ok(response.map(|body| Answer { body, held: None, turn, drain, _lease: lease })))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.answered {
            let cancelled = &self.activity.cancelled;
            cancelled.set(cancelled.get().saturating_add(1));
        }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = match self.held.take() {
            Some(held) => Poll::Ready(Some(Ok(Frame::data(held)))),
            None => Pin::new(&mut self.body).poll_frame(cx),
        };
        let polled = match polled {
            Poll::Ready(Some(Ok(frame))) if self.turn.poll(cx).is_pending() => match frame.into_data() {
                Ok(data) => {
                    self.held = Some(data);
                    Poll::Pending
                }
                Err(trailers) => Poll::Ready(Some(Ok(trailers))),
            },
            polled => polled,
        };
        let drain = &self.drain;
        drain.full.set(matches!(polled, Poll::Ready(Some(Ok(_)))));
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            drain.unframed_failure.set(drain.http10.get());
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            drain.moved.set(drain.moved.get() + data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer of the listener's own, in the shape that clients of every dialect at least print.
fn plain(status: StatusCode, kind: &str, code: &str, message: &str) -> Response<Body> {
    let text = format!(r#"{{"error":{{"message":"{message}","type":"{kind}","param":null,"code":"{code}"}}}}"#);
    let mut response = Response::new(Body::whole(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

fn bad_request(reason: &str) -> Response<Body> {
    plain(StatusCode::BAD_REQUEST, "invalid_request_error", "bad_request", reason)
}

fn failed() -> Response<Body> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "internal", "the gateway failed on this request")
}
