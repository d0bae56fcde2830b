//! A body encoded while it comes.
//!
//! ```text
//!  inner: event, event, Pending ─► one flush ─► one frame out
//! ```
//! What is ready in one poll shares one flush, so each event is decodable when it was produced and no write is made
//! smaller than it has to be.

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::pool::Lease;
use crate::{body::Body, error::Error};

/// Bytes of input after which there is a flush, although more is ready: what a codec gives for it fits a write.
const MOST: usize = 16 * 1024;
/// Where coded events are written: a block serves for about a hundred.
const BLOCK: usize = 1024;

/// What `poll_frame` gives.
type Polled = Option<Result<Frame<Bytes>, Error>>;

/// When what was encoded goes out.
#[derive(Debug)]
pub(super) enum Pace {
    /// With each event, those that are ready together as one.
    Event,
    /// As `Event`, at most once a period; what comes within it waits for its end.
    Period(Period),
    /// When the codec gives it: nobody can use a part of this body.
    End,
}

/// `compression.flush: 50ms`
#[derive(Debug)]
pub(super) struct Period {
    length: Duration,
    /// When the next flush may be; `None` = at once.
    next: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The encoded body.
#[derive(Debug)]
pub(super) struct Encoded {
    inner: Body,
    /// Given back at the end, or when the client leaves.
    lease: Option<Lease>,
    pace: Pace,
    /// The newest data, not taken by the codec yet: it is taken in one call with the flush.
    held: Bytes,
    out: BytesMut,
    /// Bytes taken since they were last counted.
    taken: usize,
    /// What comes after the last of the data: trailers, or the failure.
    after: Polled,
}

impl Pace {
    pub(super) fn every(length: Duration) -> Self {
        Self::Period(Period { length, next: None, timer: None })
    }

    /// Whether there may be a flush now; else wakes when there may.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Event => Poll::Ready(()),
            Self::Period(period) => period.poll(cx),
            Self::End => Poll::Pending,
        }
    }
}

impl Period {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(next) = self.next else { return Poll::Ready(()) };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
        if timer.deadline() != next {
            timer.as_mut().reset(next);
        }
        timer.as_mut().poll(cx)
    }
}

impl Encoded {
    pub(super) fn new(inner: Body, lease: Lease, pace: Pace) -> Self {
        Self {
            inner,
            lease: Some(lease),
            pace,
            held: Bytes::new(),
            out: BytesMut::with_capacity(BLOCK),
            taken: 0,
            after: None,
        }
    }

    /// All that came, decodable.
    fn flush(&mut self) -> Result<Bytes, Error> {
        let held = mem::take(&mut self.held);
        if let Some(lease) = &mut self.lease {
            lease.flush(&held, &mut self.out)?;
        }
        if let Pace::Period(period) = &mut self.pace {
            period.next = Some(Instant::now() + period.length);
        }
        Ok(self.counted())
    }

    /// Everything is ready that is ready now.
    fn pause(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if !self.held.is_empty() && self.pace.poll(cx).is_ready() {
            return self.give(Self::flush);
        }
        // The codec's own, in a body that is not flushed.
        if self.out.is_empty() { Poll::Pending } else { self.give(|this| Ok(this.counted())) }
    }

    /// Enough for one write.
    fn full(&mut self, cx: &mut Context<'_>) -> Poll<Polled> {
        if !matches!(self.pace, Pace::End) {
            return self.give(Self::flush);
        }
        if self.out.is_empty() {
            // Others of this worker have their turn.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.give(|this| Ok(this.counted()))
    }

    /// The end of the data; `after` it comes the end of the body.
    fn end(&mut self, after: Polled) -> Poll<Polled> {
        self.after = after;
        let polled = self.give(|this| {
            let held = mem::take(&mut this.held);
            if let Some(lease) = &mut this.lease {
                lease.finish(&held, &mut this.out)?;
            }
            Ok(this.counted())
        });
        self.lease = None;
        polled
    }

    /// What came before is still good; the frame is never ended.
    fn failed(&mut self, error: Error) -> Poll<Polled> {
        if self.held.is_empty() && self.out.is_empty() {
            self.lease = None;
            return Poll::Ready(Some(Err(error)));
        }
        self.after = Some(Err(error));
        let polled = self.give(Self::flush);
        self.lease = None;
        polled
    }

    /// Hands over what `make` makes.
    fn give(&mut self, make: impl FnOnce(&mut Self) -> Result<Bytes, Error>) -> Poll<Polled> {
        let made = make(self);
        if made.is_err() {
            (self.lease, self.after) = (None, None);
        }
        Poll::Ready(Some(made.map(Frame::data)))
    }

    /// What was encoded, out of the way.
    fn counted(&mut self) -> Bytes {
        let out = self.out.split().freeze();
        if let Some(lease) = &self.lease {
            lease.pool().counters.encoded(lease.coding(), mem::take(&mut self.taken), out.len());
        }
        out
    }

    /// Takes more. What was held goes to the codec: there is more to flush with it.
    fn push(&mut self, data: Bytes) -> Result<(), Error> {
        self.taken += data.len();
        let before = mem::replace(&mut self.held, data);
        match &mut self.lease {
            Some(lease) if !before.is_empty() => lease.take(&before, &mut self.out),
            _ => Ok(()),
        }
    }
}

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        if this.lease.is_none() {
            return Poll::Ready(this.after.take());
        }
        let mut came = 0;
        loop {
            let frame = match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return this.failed(error),
                Poll::Ready(None) => return this.end(None),
                Poll::Pending => return this.pause(cx),
            };
            match frame.into_data() {
                Ok(data) if data.is_empty() => {}
                Ok(data) => {
                    came += data.len();
                    if let Err(error) = this.push(data) {
                        return this.give(|_| Err(error));
                    }
                    if came >= MOST {
                        return this.full(cx);
                    }
                }
                Err(trailers) => return this.end(Some(Ok(trailers))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.lease.is_none() && self.after.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What of a body is there already, without waiting for more: all of it as one buffer, or as it was.
pub(super) async fn gathered(mut body: Body) -> Body {
    let mut frames = VecDeque::new();
    let ended = poll_fn(|cx| {
        Poll::Ready(loop {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(Some(frame)) => {
                    let over = frame.as_ref().map_or(true, |frame| !frame.is_data());
                    frames.push_back(frame);
                    if over {
                        break false;
                    }
                }
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        })
    })
    .await;
    if !ended {
        return if frames.is_empty() { body } else { Body::stream(Front { frames, rest: body }) };
    }
    let mut pieces = frames.into_iter().flatten().filter_map(|frame| frame.into_data().ok());
    let Some(first) = pieces.next() else { return Body::empty() };
    let Some(second) = pieces.next() else { return Body::whole(first) };
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&second);
    pieces.for_each(|piece| all.extend_from_slice(&piece));
    Body::whole(all.freeze())
}

/// A body of which some was read.
struct Front {
    frames: VecDeque<Result<Frame<Bytes>, Error>>,
    rest: Body,
}

impl HttpBody for Front {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Polled> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
