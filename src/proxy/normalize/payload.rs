//! Reading a request's body: whole and counted, or streamed and capped.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::{
    body::{Body, Upload, too_large},
    error::Error,
    proxy::{
        memory::{Memory, Reservation},
        record::Record,
    },
};

/// How long an announced length is believed. Until then its memory is reserved, so that of many large bodies some come
/// through and the others are told at once; after it only what has come is: promises alone hold nothing for long.
const BELIEVED: Duration = Duration::from_secs(5);

/// The pieces of a body, as they come.
pub(super) struct Frames {
    body: Upload,
    /// Its length, where it is announced.
    pub(super) announced: Option<usize>,
    belief: Option<Option<Pin<Box<Sleep>>>>,
}

impl Frames {
    /// # Errors
    /// [`Kind::PayloadTooLarge`](crate::error::Kind::PayloadTooLarge) when more than `cap` bytes are announced.
    pub(super) fn new(body: Upload, cap: usize) -> Result<Self, Error> {
        Ok(Self { announced: announced(&body, cap)?, body, belief: Some(None) })
    }

    /// The next piece; trailers are dropped. From the end of [`BELIEVED`] on `share` is no larger than `held` while it
    /// waits.
    ///
    /// # Errors
    /// What the client's side failed with.
    pub(super) async fn next(&mut self, share: &mut Reservation, held: usize) -> Result<Option<Bytes>, Error> {
        loop {
            let frame = poll_fn(|cx| {
                let polled = Pin::new(&mut self.body).poll_frame(cx);
                if polled.is_pending() && is_over(&mut self.belief, cx) {
                    share.shrink(held);
                }
                polled
            });
            match frame.await.transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => return Ok(Some(data)),
                Some(Err(_trailers)) => {}
                None => return Ok(None),
            }
        }
    }
}

/// Reads all of `body`: at most `cap` bytes. A body that came in one piece is not copied. Trailers are dropped: a whole
/// body is framed by its length.
///
/// # Errors
/// [`Kind::PayloadTooLarge`](crate::error::Kind::PayloadTooLarge),
/// [`Kind::BodyMemory`](crate::error::Kind::BodyMemory), or what the client's side failed with.
pub(super) async fn read(body: Upload, cap: usize, memory: &Memory) -> Result<(Bytes, Reservation), Error> {
    let mut frames = Frames::new(body, cap)?;
    let announced = frames.announced.unwrap_or(0);
    let mut share = memory.reserve();
    share.grow(announced)?;
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(data) = frames.next(&mut share, first.len() + whole.len()).await? {
        let length = first.len() + whole.len() + data.len();
        if length > cap {
            return Err(too_large(cap));
        }
        share.grow(length)?;
        if whole.is_empty() && first.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(announced.max(length));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, share))
}

/// Whether the time of [`BELIEVED`] has just ended. The timer is made at the first wait: most bodies come with their head.
fn is_over(belief: &mut Option<Option<Pin<Box<Sleep>>>>, cx: &mut Context<'_>) -> bool {
    let Some(timer) = belief else { return false };
    let over = timer.get_or_insert_with(|| Box::pin(sleep(BELIEVED))).as_mut().poll(cx).is_ready();
    if over {
        *belief = None;
    }
    over
}

/// Streams `body` through, at most `cap` bytes of it.
///
/// # Errors
/// [`Kind::PayloadTooLarge`] at once when more is announced.
pub(super) fn stream(body: Upload, cap: usize, record: Rc<Record>) -> Result<Body, Error> {
    announced(&body, cap)?;
    let body = Body::upload(body);
    Ok(if body.is_end_stream() { body } else { Body::stream(Capped { body, left: cap, cap, record }) })
}

fn announced(body: &Upload, cap: usize) -> Result<Option<usize>, Error> {
    match body.size_hint().exact() {
        Some(length) if length > cap as u64 => Err(too_large(cap)),
        length => Ok(length.and_then(|n| usize::try_from(n).ok())),
    }
}

/// Fails once more than the cap went by.
struct Capped {
    body: Body,
    left: usize,
    cap: usize,
    record: Rc<Record>,
}

impl HttpBody for Capped {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let Some(left) = self.left.checked_sub(data.len()) else {
                return Poll::Ready(Some(Err(too_large(self.cap))));
            };
            self.left = left;
            self.record.received.set(self.record.received.get() + data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
