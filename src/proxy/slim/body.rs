//! The bodies of slim answers.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tokio::time::{Instant, Sleep};

use super::Counters;
use crate::{
    body::Body,
    error::Error,
    protocol::slim::{Minifier, Slimmer},
};

/// What is ready goes out when it is this much, though more may be ready.
const MOST: usize = 64 << 10;

type Next = Option<Result<Frame<Bytes>, Error>>;

/// A stream of events, slimmed.
///
/// Its deltas merge within a window that opens when one goes out: what comes in it waits for its end, what comes later
/// goes at once. So the first waits for nobody, and neither does any whose stream is slower than the window.
pub(super) struct Slimmed {
    inner: Source,
    slimmer: Slimmer,
    window: Option<Window>,
    out: Vec<u8>,
    counters: Counters,
}

struct Window {
    length: Duration,
    /// The end of the one that was opened last.
    until: Option<Instant>,
    /// Made when something has to wait for the first time.
    timer: Option<Pin<Box<Sleep>>>,
}

/// The body that is read, up to its end.
enum Source {
    Open(Body),
    /// What comes behind all that is out.
    Ended(Next),
}

impl Slimmed {
    /// Deltas wait if there is a `window`; `slimmer` must be made for it.
    pub(super) fn new(inner: Body, slimmer: Slimmer, window: Option<Duration>, counters: Counters) -> Self {
        Self {
            inner: Source::Open(inner),
            slimmer,
            window: window.map(|length| Window { length, until: None, timer: None }),
            out: Vec::new(),
            counters,
        }
    }

    /// Reads what is ready. `Pending` = all of it is read, and more will come.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Source::Open(inner) = &mut self.inner {
            let end = match ready!(Pin::new(inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        self.slimmer.push(&data, &mut self.out);
                        let enough = if self.window.is_some() { MOST } else { 1 };
                        if self.out.len() >= enough {
                            return Poll::Ready(());
                        }
                        continue;
                    }
                    Err(trailers) => {
                        self.slimmer.finish(&mut self.out);
                        Some(Ok(trailers))
                    }
                },
                // Half an event is nothing to a reader.
                Some(Err(error)) => {
                    self.slimmer.flush(&mut self.out);
                    Some(Err(error))
                }
                None => {
                    self.slimmer.finish(&mut self.out);
                    None
                }
            };
            self.inner = Source::Ended(end);
        }
        Poll::Ready(())
    }

    /// Lets the delta that waits go if it is time; else wakes when it is.
    fn wait(&mut self, cx: &mut Context<'_>) {
        let (Some(window), Some(text)) = (&mut self.window, self.slimmer.waiting()) else { return };
        if window.poll_closed(cx).is_pending() {
            return;
        }
        self.slimmer.flush(&mut self.out);
        if text > 0 {
            window.open();
        }
    }
}

impl Window {
    fn open(&mut self) {
        self.until = Some(Instant::now() + self.length);
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until.filter(|until| *until > Instant::now()) else { return Poll::Ready(()) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }
}

impl HttpBody for Slimmed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let filled = this.fill(cx);
        if filled.is_pending() {
            this.wait(cx);
        }
        this.counters.add(this.slimmer.take_saved());
        if !this.out.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.out).into()))));
        }
        match &mut this.inner {
            Source::Open(_) => Poll::Pending,
            Source::Ended(next) => Poll::Ready(next.take()),
        }
    }
}

/// Plain JSON that comes in pieces, without its white space.
pub(super) struct Minified {
    inner: Source,
    minifier: Minifier,
    counters: Counters,
}

impl Minified {
    pub(super) fn new(inner: Body, counters: Counters) -> Self {
        Self { inner: Source::Open(inner), minifier: Minifier::default(), counters }
    }
}

impl HttpBody for Minified {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        while let Source::Open(inner) = &mut this.inner {
            let mut out = Vec::new();
            let end = match ready!(Pin::new(inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        out.reserve(data.len());
                        this.minifier.push(&data, &mut out);
                        this.counters.slim.increment(data.len().saturating_sub(out.len()) as u64);
                        if out.is_empty() {
                            continue;
                        }
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                    Err(trailers) => Some(Ok(trailers)),
                },
                Some(Err(error)) => Some(Err(error)),
                None => None,
            };
            this.minifier.finish(&mut out);
            this.inner = Source::Ended(end);
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out.into()))));
            }
        }
        match &mut this.inner {
            Source::Open(_) => Poll::Pending,
            Source::Ended(next) => Poll::Ready(next.take()),
        }
    }
}
