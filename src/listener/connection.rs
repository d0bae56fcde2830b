//! The life of one connection: handshake, which HTTP, its requests, its end.
//!
//! HTTP/1.1 alternates between two states. While a request is under way, or was a moment ago, hyper's connection is
//! there with its buffers (some 22 KiB). Otherwise only the bare socket stays, waiting to be readable (under 1 KiB).
//!
//! ```text
//!            bytes                     a head, then requests
//!   bare ─────────────► hyper's connection ──┐
//!    ▲                     │        ▲        │
//!    └──── idle 100 ms ────┘        └────────┘
//! ```
//! At most [`WARM`] connections of a worker wait for those 100 ms; the rest go back at once.
//! Limits: the first byte within `header_timeout` of the connect, a whole head within `header_timeout` of its first
//! byte (else 408), 75 s between requests, and a client that must make progress for us to go on makes at least 1 KiB
//! in 60 s of waiting: see [`crate::body::Upload`] for what it sends and [`STALL_WINDOW`] for what it reads.

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    marker::PhantomData,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use hyper::{server::conn::http1, service::Service};
use tokio::io::{AsyncReadExt, AsyncWrite};

use super::{
    Worker,
    bell::Ear,
    call::{Activity, Answering, Guarded},
    http2,
    io::{Flow, Io, Stream},
    peer::Peer,
    tls,
};
use crate::{
    body::{Body, Upload},
    runtime::{drain::Phase, hush::Hush, pace::Pace, ticker::Deadline},
};

/// A client that does not take what we have for it is cut when, of this much waiting, ...
pub(super) const STALL_WINDOW: Duration = Duration::from_secs(60);
/// ... it took less than this many bytes.
pub(super) const STALL_LEAST: u64 = 1024;
/// How long hyper's connection is kept after an answer: the next request of a busy client comes sooner.
const FOLD_AFTER: Duration = Duration::from_millis(100);
/// The most connections of a worker that are kept so at once. After a burst on thousands of connections there would be
/// 20 KiB held for each; to make hyper's connection anew costs a busy one some hundredths of a request.
pub(super) const WARM: usize = 128;
/// When we drain, a request that is on its way on an idle connection has this long to arrive.
const LAST_CALL: Duration = Duration::from_millis(200);
/// A connection that we close is read on for a while, so that the kernel does not reset it under our last answer
/// (RFC 9112 §9.6).
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES: usize = 64 * 1024 * 1024;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Room for the first read, which decides between HTTP/1.1 and HTTP/2.
const FIRST_READ: usize = 2048;

const LATE_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// What every state of a connection needs.
pub(super) struct Session {
    pub(super) ear: Ear,
    pub(super) deadline: Deadline,
}

/// A connection that was accepted.
pub(super) struct Arrival {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
}

/// A connection without hyper's part. Boxed where it is handed on: each function it went through would add its size
/// to the task.
struct Quiet<S, B> {
    stream: Stream,
    /// Read, and not understood yet.
    early: Bytes,
    /// The client has ended its side.
    over: bool,
    service: Guarded<S, B>,
}

/// Why hyper's connection was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nothing is under way.
    Idle,
    /// A head did not come in time.
    Late,
    /// The client reads nothing.
    Stalled,
    /// HTTP is over: closed by either side, refused, or switched to another protocol.
    Over,
}

/// What the deadline is set for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    Nothing,
    Head,
    Fold,
    Idle,
}

/// One of the [`WARM`] places.
struct Place<'a>(&'a Cell<usize>);

impl<'a> Place<'a> {
    fn take(taken: &'a Cell<usize>) -> Option<Self> {
        let count = taken.get();
        (count < WARM).then(|| {
            taken.set(count + 1);
            Self(taken)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// From accept to close; ends early when the drain does. `held` is dropped after all else.
pub(super) async fn run<M, S, B>(worker: Rc<Worker<M>>, arrival: Box<Arrival>, held: impl Sized)
where
    M: Fn(Rc<Peer>) -> S + 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let over = worker.bell.ear();
    {
        let mut serving = pin!(serve(&worker, arrival));
        poll_fn(|cx| {
            if over.listen(cx) == Phase::Ending {
                return Poll::Ready(());
            }
            serving.as_mut().poll(cx)
        })
        .await;
    }
    drop(held);
}

async fn serve<M, S, B>(worker: &Rc<Worker<M>>, arrival: Box<Arrival>)
where
    M: Fn(Rc<Peer>) -> S + 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let mut session = Session { ear: worker.bell.ear(), deadline: worker.ticker.deadline() };
    // Boxed, all that is over before the first request: every connection's task has the size of its largest part, for
    // all its life.
    if let Some(quiet) = Box::pin(begin(worker, &mut session, arrival)).await {
        http1(worker, &mut session, quiet).await;
    }
}

/// Up to the first bytes of an HTTP/1.1 connection; all of one that speaks HTTP/2.
async fn begin<M, S, B>(
    worker: &Rc<Worker<M>>,
    session: &mut Session,
    arrival: Box<Arrival>,
) -> Option<Box<Quiet<S, B>>>
where
    M: Fn(Rc<Peer>) -> S + 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let Arrival { stream, mut peer } = *arrival;
    let header_timeout = worker.settings.header_timeout;
    session.deadline.set(header_timeout);
    let (mut stream, h2) = match &worker.settings.tls {
        None => (stream, false),
        Some(tls) => {
            let shaken = tokio::select! {
                biased;
                shaken = Box::pin(tls::accept(tls, stream, &mut peer)) => shaken.ok(),
                () = session.deadline.over() => None,
            };
            let Some(shaken) = shaken else {
                worker.stats.tls_failures.increment(1);
                return None;
            };
            session.deadline.set(header_timeout);
            shaken
        }
    };
    let peer = Rc::new(peer);
    let service = Guarded {
        service: (worker.make)(Rc::clone(&peer)),
        peer: Rc::clone(&peer),
        activity: Rc::new(Activity::default()),
        ticker: worker.ticker.clone(),
        hush: Hush::default(),
        panics: worker.stats.panics.clone(),
        body: PhantomData,
    };
    if h2 {
        Box::pin(http2::serve(worker, session, stream, Bytes::new(), service)).await;
        return None;
    }
    let early = first_bytes(session, &mut stream).await?;
    if !peer.tls && early.starts_with(PREFACE) {
        Box::pin(http2::serve(worker, session, stream, early, service)).await;
        return None;
    }
    Some(Box::new(Quiet { stream, early, over: false, service }))
}

/// The first bytes of a connection: enough to know which HTTP it speaks. `None` when none came in time.
async fn first_bytes(session: &mut Session, stream: &mut Stream) -> Option<Bytes> {
    readable(session, stream).await?;
    let mut early = BytesMut::with_capacity(FIRST_READ);
    let mut called = false;
    loop {
        let read = tokio::select! {
            biased;
            read = stream.read_buf(&mut early) => read.ok()?,
            () = session.deadline.over() => return None,
            // What looked readable may not be, or be less than it takes: the drain does not wait for the rest either.
            () = poll_fn(|cx| draining(&session.ear, cx)), if !called => {
                called = true;
                session.deadline.set(LAST_CALL);
                continue;
            }
        };
        let undecided = early.len() < PREFACE.len() && PREFACE.starts_with(&early);
        if read == 0 || !undecided {
            return (!early.is_empty()).then(|| early.freeze());
        }
    }
}

/// Ready once the drain has come to idle connections.
fn draining(ear: &Ear, cx: &mut Context<'_>) -> Poll<()> {
    if ear.listen(cx) >= Phase::Draining { Poll::Ready(()) } else { Poll::Pending }
}

/// Waits for bytes on a bare socket. `None` when the session's deadline is over, or the drain lets it go.
async fn readable(session: &mut Session, stream: &mut Stream) -> Option<()> {
    let mut called = false;
    poll_fn(|cx| {
        if stream.poll_readable(cx).is_ready() {
            return Poll::Ready(Some(()));
        }
        if !called && session.ear.listen(cx) >= Phase::Draining {
            called = true;
            session.deadline.set(LAST_CALL);
        }
        session.deadline.poll_over(cx).map(|()| None)
    })
    .await
}

async fn http1<M, S, B>(worker: &Rc<Worker<M>>, session: &mut Session, mut quiet: Box<Quiet<S, B>>)
where
    M: 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    loop {
        // Boxed: most of a connection's memory, and given back while nothing is asked.
        let (end, met) = Box::pin(talk(worker, session, quiet)).await;
        quiet = met;
        match end {
            End::Idle => {
                worker.stats.folded.increment(1);
                session.deadline.set(worker.settings.idle);
                if quiet.early.is_empty() && readable(session, &mut quiet.stream).await.is_none() {
                    return;
                }
            }
            End::Late => {
                worker.stats.late_heads.increment(1);
                quiet.stream.last_word(LATE_HEAD);
                return Box::pin(linger(session, quiet.stream)).await;
            }
            End::Stalled => {
                worker.stats.stalled.increment(1);
                return;
            }
            End::Over => {
                let activity = &quiet.service.activity;
                return match quiet.service.peer.take_tunnel() {
                    Some(take) if activity.switched.get() => take(Box::new(quiet.stream), quiet.early).await,
                    _ if activity.next.borrow().as_ref().is_some_and(|answer| answer.unframed_failure.get()) => {
                        quiet.stream.reset();
                    }
                    _ if quiet.over => {}
                    _ => Box::pin(linger(session, quiet.stream)).await,
                };
            }
        }
    }
}

/// Requests and answers, until hyper's connection is given up.
async fn talk<M, S, B>(
    worker: &Rc<Worker<M>>,
    session: &mut Session,
    quiet: Box<Quiet<S, B>>,
) -> (End, Box<Quiet<S, B>>)
where
    M: 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let quiet = *quiet;
    let last = session.ear.phase() >= Phase::Draining;
    let builder = if last { &worker.http1_last } else { &worker.http1 };
    let activity = Rc::clone(&quiet.service.activity);
    let flow = Rc::new(Flow { reading: Rc::clone(&activity.reading), ..Flow::default() });
    let hush = quiet.service.hush.clone();
    let io = Io::new(quiet.stream, quiet.early, Rc::clone(&flow));
    let mut connection = builder.serve_connection(io, quiet.service);
    let end = drive(worker, session, &mut connection, (&flow, &activity, &hush), last).await;
    let parts = connection.into_parts();
    let (stream, unread) = parts.io.into_parts();
    let early = join(parts.read_buf, unread);
    (end, Box::new(Quiet { stream, early, over: flow.over.get(), service: parts.service }))
}

/// Drives hyper's connection until it is over or may be given up.
async fn drive<M, S, B>(
    worker: &Rc<Worker<M>>,
    session: &mut Session,
    connection: &mut http1::Connection<Io, Guarded<S, B>>,
    (flow, activity, hush): (&Flow, &Activity, &Hush),
    last: bool,
) -> End
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let mut draining = last;
    let mut waiting = Waiting::Nothing;
    let mut place = None;
    let mut pace: Option<Pace> = None;
    session.deadline.clear();
    poll_fn(|cx| {
        let (was_busy, requests) = (activity.is_busy(), activity.requests.get());
        if session.ear.listen(cx) >= Phase::Draining && !draining {
            draining = true;
            if waiting == Waiting::Fold || (waiting == Waiting::Head && activity.is_sure()) {
                // Idle, or in a head: taken up again with keep-alive off, so that its answer says so.
                return Poll::Ready(End::Idle);
            }
            Pin::new(&mut *connection).graceful_shutdown();
        }
        activity.turn.begin();
        let waker = hush.waker(cx);
        if connection.poll_without_shutdown(&mut Context::from_waker(&waker)).is_ready() {
            return Poll::Ready(End::Over);
        }
        let busy = activity.is_busy();
        let turned = requests != activity.requests.get();
        if was_busy || busy || turned {
            // Those bytes were of a message that hyper has understood.
            flow.fresh.set(false);
        }
        let written = flow.written.take();
        if flow.blocked.get() || pace.is_some() {
            let pace = pace.get_or_insert_with(|| Pace::new(&worker.ticker, STALL_WINDOW, STALL_LEAST));
            if written > 0 || !flow.blocked.get() {
                pace.moved(written);
            }
            if flow.blocked.get() && pace.poll_late(cx).is_ready() {
                return Poll::Ready(End::Stalled);
            }
        }
        let now = match () {
            () if busy || flow.blocked.get() => Waiting::Nothing,
            () if !activity.is_sure() => Waiting::Idle,
            () if flow.fresh.get() => Waiting::Head,
            () => Waiting::Fold,
        };
        if now != waiting || turned {
            waiting = now;
            place = None;
            match now {
                Waiting::Nothing => session.deadline.clear(),
                Waiting::Head => session.deadline.set(worker.settings.header_timeout),
                Waiting::Fold => {
                    place = Place::take(&worker.warm);
                    if place.is_none() {
                        return Poll::Ready(End::Idle);
                    }
                    session.deadline.set(FOLD_AFTER);
                }
                Waiting::Idle => session.deadline.set(worker.settings.idle),
            }
        }
        if waiting == Waiting::Nothing {
            return Poll::Pending;
        }
        ready!(session.deadline.poll_over(cx));
        Poll::Ready(match waiting {
            Waiting::Head => End::Late,
            Waiting::Fold => End::Idle,
            Waiting::Idle | Waiting::Nothing => End::Over,
        })
    })
    .await
}

/// Ends our side, and reads on until the client has ended its own.
async fn linger(session: &mut Session, mut stream: Stream) {
    session.deadline.set(LINGER);
    let mut left = LINGER_BYTES;
    let mut ended = false;
    poll_fn(|cx| {
        if session.deadline.poll_over(cx).is_ready() {
            return Poll::Ready(());
        }
        if !ended {
            let Ok(()) = ready!(Pin::new(&mut stream).poll_shutdown(cx)) else { return Poll::Ready(()) };
            ended = true;
        }
        // A turn at a time: an upload at full speed must not hold the worker.
        for _ in 0..4 {
            match ready!(stream.poll_discard(cx)) {
                Ok(1..) if left == 0 => return Poll::Ready(()),
                Ok(n @ 1..) => left = left.saturating_sub(n),
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// An empty part may still hold hyper's buffer, and is let go.
fn join(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, true) => Bytes::new(),
        (false, true) => first,
        (true, false) => second,
        _ => [first, second].concat().into(),
    }
}

/// For a connection beyond the limit: a last word, and a short while to hear it.
pub(super) async fn refuse<M>(worker: Rc<Worker<M>>, mut stream: Stream, word: &'static [u8]) {
    let mut session = Session { ear: worker.bell.ear(), deadline: worker.ticker.deadline() };
    stream.last_word(word);
    let over = worker.bell.ear();
    let mut lingering = pin!(linger(&mut session, stream));
    poll_fn(|cx| if over.listen(cx) == Phase::Ending { Poll::Ready(()) } else { lingering.as_mut().poll(cx) }).await;
}
