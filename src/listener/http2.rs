//! HTTP/2 on one connection, with bounds on all that a client can make us hold or do.
//!
//! Floods: h2 counts streams that were reset before they were accepted or by our own errors (`RESETS`), empty DATA
//! frames, and CONTINUATION frames of one head, and ends the connection with GOAWAY `ENHANCE_YOUR_CALM`. A request
//! that is reset a little later has been started already, at a cost to a backend: those are counted here
//! ([`Cancelled`]). Answers to PING and SETTINGS do not pile up: nothing more is read until they are taken. A head
//! that drips cannot answer our pings in between, so it ends with the keep-alive.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::{
    rt::{Executor, Sleep, Timer},
    server::conn::http2,
    service::Service,
};

use super::{
    Worker,
    call::{Activity, Answering, Guarded},
    connection::{STALL_LEAST, STALL_WINDOW, Session},
    io::{Flow, Io, Stream},
};
use crate::{
    body::{Body, Upload},
    runtime::{drain::Phase, pace::Pace, ticker::TICK},
};

/// Streams a client may have open at once on one connection.
const STREAMS: u32 = 128;
/// Bytes of an upload that we take in before the service has read them: of a stream, and of a connection.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of an answer that wait for the client's window.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams reset too early, or for the client's errors, before the connection ends: rapid reset (CVE-2023-44487).
const RESETS: usize = 32;
const LOCAL_RESETS: usize = 128;
/// Silence after which the client is asked whether it lives, and how long it has for the answer.
const PING_AFTER: Duration = Duration::from_secs(20);
const PING_WITHIN: Duration = Duration::from_secs(20);

/// Requests that a client may take back before their answer began: a burst of this many (a proxy before us may lose
/// all its clients at once) ...
const CANCELLED: u64 = 512;
/// ... and so many a second for ever.
const CANCELLED_PER_SECOND: u64 = 100;

/// A bucket that leaks.
struct Cancelled {
    level: u64,
    at: u64,
}

impl Cancelled {
    /// Adds `more` at the tick `now`; true when it flows over.
    fn is_flood(&mut self, more: u32, now: u64) -> bool {
        let ticks_per_second = u64::try_from(Duration::from_secs(1).as_millis() / TICK.as_millis()).unwrap_or(1);
        let leaked = (now - self.at) * CANCELLED_PER_SECOND / ticks_per_second;
        self.at = now;
        self.level = self.level.saturating_sub(leaked) + u64::from(more);
        self.level > CANCELLED
    }
}

/// Serves until the client leaves, the drain is over, or the connection has been without a request for as long as
/// an idle one may be.
pub(super) async fn serve<M, S, B>(
    worker: &Rc<Worker<M>>,
    session: &mut Session,
    stream: Stream,
    early: Bytes,
    service: Guarded<S, B>,
) where
    M: 'static,
    S: Service<Request<B>, Response = Response<Body>, Error = std::convert::Infallible, Future = Answering> + 'static,
    B: From<Upload> + 'static,
{
    let activity = Rc::clone(&service.activity);
    let flow = Rc::new(Flow::default());
    let io = Io::new(stream, early, Rc::clone(&flow));
    let streams = Streams { worker: Rc::clone(worker), activity: Rc::clone(&activity) };
    let mut connection = Box::pin(builder(worker, streams).serve_connection(io, service));
    let mut ending = false;
    let mut idle = false;
    let mut pace = None;
    let mut cancelled = Cancelled { level: 0, at: worker.ticker.now() };
    poll_fn(|cx| {
        if !ending && session.ear.listen(cx) >= Phase::Draining {
            ending = true;
            idle = false;
            connection.as_mut().graceful_shutdown();
        }
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if cancelled.is_flood(activity.cancelled.take(), worker.ticker.now()) {
            worker.stats.floods.increment(1);
            connection.as_mut().graceful_shutdown();
            // For the GOAWAY to leave; then everything is dropped.
            let _ = connection.as_mut().poll(cx);
            return Poll::Ready(());
        }
        let written = flow.written.take();
        if flow.blocked.get() || pace.is_some() {
            let pace = pace.get_or_insert_with(|| Pace::new(&worker.ticker, STALL_WINDOW, STALL_LEAST));
            if written > 0 || !flow.blocked.get() {
                pace.moved(written);
            }
            if flow.blocked.get() && pace.poll_late(cx).is_ready() {
                worker.stats.stalled.increment(1);
                return Poll::Ready(());
            }
        }
        let busy = activity.is_busy();
        if !busy && !idle {
            session.deadline.set(if ending { STALL_WINDOW } else { worker.settings.idle });
        }
        idle = !busy;
        if idle && session.deadline.poll_over(cx).is_ready() {
            // Ending for a while already: what is left is a client that takes nothing more.
            if ending {
                return Poll::Ready(());
            }
            ending = true;
            session.deadline.set(STALL_WINDOW);
            connection.as_mut().graceful_shutdown();
            return connection.as_mut().poll(cx).map(drop);
        }
        Poll::Pending
    })
    .await;
}

fn builder<M: 'static>(worker: &Rc<Worker<M>>, streams: Streams<M>) -> http2::Builder<Streams<M>> {
    let mut builder = http2::Builder::new(streams);
    builder
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(worker.settings.header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(LOCAL_RESETS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .timer(Clock)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_WITHIN);
    builder
}

/// Runs each stream of a connection as a task of the worker.
struct Streams<M> {
    worker: Rc<Worker<M>>,
    activity: Rc<Activity>,
}

impl<M> Clone for Streams<M> {
    fn clone(&self) -> Self {
        Self { worker: Rc::clone(&self.worker), activity: Rc::clone(&self.activity) }
    }
}

impl<M: 'static, F: Future + 'static> Executor<F> for Streams<M> {
    /// hyper calls the service and hands over the stream's future right after it: `next` is of the same stream. A
    /// client that keeps a stream's window closed for too long has that stream reset, by dropping its future.
    fn execute(&self, future: F) {
        let drain = self.activity.next.borrow_mut().take();
        let worker = Rc::clone(&self.worker);
        let task = worker.census();
        let streaming = async move {
            let _task = task;
            let mut future = pin!(future);
            let mut pace = None;
            poll_fn(|cx| {
                if future.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(());
                }
                let Some(drain) = &drain else { return Poll::Pending };
                let moved = drain.moved.take();
                if drain.full.get() || pace.is_some() {
                    let pace = pace.get_or_insert_with(|| Pace::new(&worker.ticker, STALL_WINDOW, STALL_LEAST));
                    if moved > 0 || !drain.full.get() {
                        pace.moved(moved);
                    }
                    if drain.full.get() && pace.poll_late(cx).is_ready() {
                        worker.stats.stalled.increment(1);
                        return Poll::Ready(());
                    }
                }
                Poll::Pending
            })
            .await;
        };
        #[expect(clippy::disallowed_methods, reason = "a stream ends with its connection, and serve() counts it")]
        tokio::task::spawn_local(streaming);
    }
}

/// tokio's time for hyper's pings.
#[derive(Clone, Copy, Debug)]
struct Clock;

struct Nap(Pin<Box<tokio::time::Sleep>>);

#[expect(clippy::disallowed_types, reason = "hyper's trait speaks in std's instants; converted at once")]
impl Timer for Clock {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn Sleep>> {
        Box::pin(Nap(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    fn now(&self) -> std::time::Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Future for Nap {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl Sleep for Nap {}
