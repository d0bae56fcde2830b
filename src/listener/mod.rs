//! Sockets → calls of a service. Knows nothing of proxying.
//!
//! [`bind()`] opens one socket per worker; [`serve`] runs on the worker's own thread, accepts, and makes a service for
//! each connection. One port speaks HTTP/1.1 and HTTP/2 (by prior knowledge, or by ALPN when there is TLS).
//!
//! ```text
//!  bind ─► serve ─► connection ─┬─► hyper http1 ─► call ─► service
//!           │  ▲                └─► http2 ───────► call ─► service
//!           ▼  │
//!          balance (other workers)
//! ```
//! Nothing is unbounded: connections ([`Limit`]), bytes and time of a head, streams, uploads and answers that do not
//! move (`connection.rs`), HTTP/2 floods (`http2.rs`). What of HTTP is ambiguous is refused ([`strict`]).

use std::{
    cell::Cell,
    convert::Infallible,
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::{Request, Response};
use hyper::{server::conn::http1, service::Service};
use tokio::sync::Notify;

use self::{
    balance::{Load, Seat},
    bell::Bell,
    bind::{Accepted, Listener},
};
use crate::{
    body::{Body, Upload},
    config::Limits,
    runtime::{
        drain::{Drain, Phase},
        ticker::Ticker,
    },
};

mod balance;
mod bell;
mod bind;
mod call;
mod connection;
mod http2;
mod io;
mod peer;
pub mod strict;
pub mod tls;

pub use self::{
    bind::{BindError, Socket, bind},
    call::Answering,
    peer::{Fingerprint, Peer, Tunnel},
};

/// How a listener treats its connections.
#[derive(Debug)]
pub struct Settings {
    /// Largest head of a request, in bytes.
    pub header_bytes: usize,
    /// Most fields in a head.
    pub max_headers: usize,
    /// From connect to the first byte, from there to a whole head, and for the TLS handshake.
    pub header_timeout: Duration,
    /// How long a connection may be without a request.
    pub idle: Duration,
    /// Shared by all workers.
    pub limit: Limit,
    /// `None` = in clear.
    pub tls: Option<Arc<tls::Reloading>>,
}

/// The most connections at once, over the whole process.
#[derive(Clone, Debug)]
pub struct Limit(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    open: AtomicUsize,
    most: AtomicUsize,
}

/// One connection's place under a [`Limit`].
#[derive(Debug)]
struct Slot(Limit);

/// What a listener counts; handles of one worker's table.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Connections accepted, the refused ones among them.
    pub accepted: metrics::Counter,
    /// Connections refused over the limit.
    pub refused: metrics::Counter,
    /// Times that accepting failed for want of descriptors or memory.
    pub accept_failures: metrics::Counter,
    /// Connections closed because a head came too slowly.
    pub late_heads: metrics::Counter,
    /// Connections and HTTP/2 streams cut because the client took nothing.
    pub stalled: metrics::Counter,
    /// HTTP/2 connections ended because requests were taken back too fast.
    pub floods: metrics::Counter,
    /// TLS handshakes that failed or took too long.
    pub tls_failures: metrics::Counter,
    /// Times that an idle connection was folded up to its socket.
    pub folded: metrics::Counter,
    /// Service calls that panicked.
    pub panics: metrics::Counter,
    /// Connections open now.
    pub open: metrics::Gauge,
}

/// What the connections of one worker share. `M` makes their services.
struct Worker<M> {
    settings: Rc<Settings>,
    ticker: Ticker,
    stats: Stats,
    drain: Drain,
    bell: Bell,
    http1: http1::Builder,
    /// The same, with each answer the last of its connection.
    http1_last: http1::Builder,
    /// Connections that are idle and still have hyper's buffers.
    warm: Cell<usize>,
    census: Rc<Census>,
    refusing: Rc<Census>,
    make: M,
}

/// Counts tasks.
#[derive(Debug, Default)]
struct Census {
    count: Cell<usize>,
    empty: Notify,
}

/// One task of a [`Census`].
#[derive(Debug)]
struct Task(Rc<Census>);

/// Fields in a head, as hyper and most servers have it.
const MAX_HEADERS: usize = 100;
/// Time without a request after which a connection is closed: longer than the idle time of the pools in front of us
/// (60 s in many load balancers), so that they close first and no request meets a closing connection.
const IDLE: Duration = Duration::from_secs(75);
/// What hyper may read at once, and what it may hold of an answer for a slow reader; hyper begins with 8 KiB and doubles
/// it for who sends more. A body of up to this size then mostly comes in one piece and needs no copy to be whole. A head
/// that does not end may be as long before it is refused.
const BUFFER: usize = 128 * 1024;
/// How long nothing is accepted when descriptors or memory have run out.
const PAUSE: Duration = Duration::from_millis(100);
/// Refused clients that each worker gives time to read why, and the share of the limit that they may be: they have
/// descriptors too. More are closed at once.
const REFUSALS: (usize, usize) = (64, 64);
/// At the end of the grace every task is told to drop what it has; one that does not within this is left behind.
const DROP_WITHIN: Duration = Duration::from_secs(1);

const REFUSAL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 127\r\n\r\n\
{\"error\":{\"message\":\"the gateway has too many connections; try again\",\"type\":\"server_error\",\
\"param\":null,\"code\":\"connections\"}}";

/// Accepts on `socket` and serves every connection with a service that `make` makes for it, until the drain lets go:
/// from [`Phase::Draining`] on only what waits in the backlog is accepted, answers say `Connection: close` (HTTP/2:
/// GOAWAY), idle connections close; it returns when the last has ended, or at [`Phase::Ending`] drops them all.
///
/// Runs on a current-thread runtime inside a `LocalSet` or `LocalRuntime`; `ticker` must be running.
///
/// # Errors
/// When the socket cannot be put on this thread's runtime.
pub async fn serve<M, S, B>(
    socket: Socket,
    settings: Rc<Settings>,
    ticker: Ticker,
    mut drain: Drain,
    stats: Stats,
    make: M,
) -> std::io::Result<()>
where
    M: Fn(Rc<Peer>) -> S + 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let (listener, mut seat) = socket.into_parts()?;
    let worker = Rc::new(Worker::new(settings, ticker, drain.clone(), stats, make));
    accept(&worker, &listener, &mut seat, &mut drain).await;

    worker.bell.ring(Phase::Draining);
    listener.dry(|accepted| worker.open(accepted, seat.here()));
    seat.inbox.close();
    while let Ok(handed) = seat.inbox.try_recv() {
        worker.take(handed);
    }
    tokio::select! {
        () = worker.census.empty() => return Ok(()),
        () = drain.reached(Phase::Ending) => {}
    }
    worker.bell.ring(Phase::Ending);
    let patience = worker.ticker.deadline();
    patience.set(DROP_WITHIN);
    tokio::select! {
        () = worker.census.empty() => {}
        () = patience.over() => tracing::warn!(tasks = worker.census.count.get(), "connections left behind"),
    }
    Ok(())
}

/// Accepts until the drain says stop.
async fn accept<M, S, B>(worker: &Rc<Worker<M>>, listener: &Listener, seat: &mut Seat, drain: &mut Drain)
where
    M: Fn(Rc<Peer>) -> S + 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let mut stop = pin!(drain.reached(Phase::Draining));
    let pause = worker.ticker.deadline();
    let mut exhausted = false;
    loop {
        let accepted = poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            while let Poll::Ready(Some(handed)) = seat.inbox.poll_recv(cx) {
                worker.take(handed);
            }
            listener.poll_accept(cx).map(Some)
        })
        .await;
        match accepted {
            None => return,
            Some(Ok(accepted)) => {
                exhausted = false;
                if let Some((accepted, load)) = seat.keep(accepted) {
                    worker.open(accepted, load);
                }
            }
            // That client left before its turn.
            Some(Err(error)) if is_of_one_client(&error) => {}
            Some(Err(error)) => {
                worker.stats.accept_failures.increment(1);
                if !std::mem::replace(&mut exhausted, true) {
                    tracing::error!(
                        %error,
                        "cannot accept connections; they wait until descriptors are free: raise the limit of open \
                         files (ulimit -n) or lower limits.connections"
                    );
                }
                pause.set(PAUSE);
                tokio::select! {
                    () = stop.as_mut() => return,
                    () = pause.over() => {}
                }
            }
        }
    }
}

/// accept(2) passes on errors of the one connection it would have given.
fn is_of_one_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | HostUnreachable
            | TimedOut
    )
}

impl<M: 'static> Worker<M> {
    fn new(settings: Rc<Settings>, ticker: Ticker, drain: Drain, stats: Stats, make: M) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .auto_date_header(false)
            // It would look for the end of the client's side with a new buffer of 8 KiB at each poll: `Io` does without.
            .half_close(true)
            .writev(false)
            .header_read_timeout(None)
            .max_header_size(settings.header_bytes)
            .max_buf_size(settings.header_bytes.max(BUFFER));
        if settings.max_headers != MAX_HEADERS {
            http1.max_headers(settings.max_headers);
        }
        let mut http1_last = http1.clone();
        http1_last.keep_alive(false);
        let (bell, census, refusing) = (Bell::new(), Rc::default(), Rc::default());
        Self { settings, ticker, stats, drain, bell, http1, http1_last, warm: Cell::new(0), census, refusing, make }
    }

    fn census(&self) -> Task {
        Task::of(&self.census)
    }

    /// Takes over a connection that another worker accepted.
    fn take<S, B>(self: &Rc<Self>, (loose, load): balance::Handed)
    where
        M: Fn(Rc<Peer>) -> S,
        S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
        B: From<Upload> + 'static,
    {
        if let Ok(accepted) = loose.fasten() {
            self.open(accepted, load);
        }
    }

    /// Starts a connection's task, or refuses it.
    fn open<S, B>(self: &Rc<Self>, accepted: Accepted, load: Load)
    where
        M: Fn(Rc<Peer>) -> S,
        S: Service<Request<B>, Response = Response<Body>, Error = Infallible, Future = Answering> + 'static,
        B: From<Upload> + 'static,
    {
        self.stats.accepted.increment(1);
        let Some(slot) = self.settings.limit.take() else {
            self.refuse(accepted);
            return;
        };
        let worker = Rc::clone(self);
        let held = (slot, load, self.census(), self.drain.guard(), Gauged::new(&self.stats.open));
        let Accepted { stream, address } = accepted;
        let arrival = Box::new(connection::Arrival { peer: Peer::new(address, stream.local()), stream });
        spawn(connection::run(worker, arrival, held));
    }

    fn refuse(self: &Rc<Self>, accepted: Accepted) {
        self.stats.refused.increment(1);
        // Nobody who is in the middle of a handshake could read it.
        let most = (1 + self.settings.limit.most() / REFUSALS.1).min(REFUSALS.0);
        if self.settings.tls.is_some() || self.refusing.count.get() >= most {
            return;
        }
        let tasks = (Task::of(&self.refusing), self.census());
        let worker = Rc::clone(self);
        spawn(async move {
            let _tasks = tasks;
            connection::refuse(worker, accepted.stream, REFUSAL).await;
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "connections are counted by serve(), which ends after them")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

impl Settings {
    /// As configured; `limit` is shared by all listeners that count together.
    pub fn new(limits: &Limits, limit: Limit, tls: Option<Arc<tls::Reloading>>) -> Self {
        Self {
            header_bytes: limits.header_bytes,
            max_headers: MAX_HEADERS,
            header_timeout: limits.header_timeout,
            idle: IDLE,
            limit,
            tls,
        }
    }
}

impl Limit {
    /// At most `most` connections.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Counted { open: AtomicUsize::new(0), most: AtomicUsize::new(most) }))
    }

    /// Changes the limit; connections over a lower one stay.
    pub fn set(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.0.open.load(Ordering::Relaxed)
    }

    fn most(&self) -> usize {
        self.0.most.load(Ordering::Relaxed)
    }

    fn take(&self) -> Option<Slot> {
        let most = self.most();
        let slot = Slot(self.clone());
        // The slot is counted first and gives itself back.
        (self.0.open.fetch_add(1, Ordering::Relaxed) < most).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stats {
    /// Counts nothing.
    pub fn noop() -> Self {
        use metrics::{Counter, Gauge};
        Self {
            accepted: Counter::noop(),
            refused: Counter::noop(),
            accept_failures: Counter::noop(),
            late_heads: Counter::noop(),
            stalled: Counter::noop(),
            floods: Counter::noop(),
            tls_failures: Counter::noop(),
            folded: Counter::noop(),
            panics: Counter::noop(),
            open: Gauge::noop(),
        }
    }
}

/// One connection in the gauge.
#[derive(Debug)]
struct Gauged(metrics::Gauge);

impl Gauged {
    fn new(gauge: &metrics::Gauge) -> Self {
        gauge.increment(1);
        Self(gauge.clone())
    }
}

impl Drop for Gauged {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

impl Census {
    async fn empty(&self) {
        while self.count.get() > 0 {
            self.empty.notified().await;
        }
    }
}

impl Task {
    fn of(census: &Rc<Census>) -> Self {
        census.count.set(census.count.get() + 1);
        Self(Rc::clone(census))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.empty.notify_one();
        }
    }
}

#[cfg(test)]
mod tests;
