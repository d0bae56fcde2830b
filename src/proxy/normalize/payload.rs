//! Reading a request's body: whole and counted, or streamed and capped.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::{
    body::{Body, Upload, too_large},
    error::{Error, Kind},
    proxy::record::Record,
};

/// `limits.body_memory`: what all workers together hold of request bodies.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    used: AtomicUsize,
    limit: AtomicUsize,
}

/// A share of [`Memory`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    /// At most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Pool { used: AtomicUsize::new(0), limit: AtomicUsize::new(limit) }))
    }

    /// A reload may move the limit; what is held already stays.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// A share of nothing yet.
    pub fn reserve(&self) -> Reservation {
        Reservation { memory: self.clone(), bytes: 0 }
    }
}

impl Reservation {
    /// Makes the share `bytes` large.
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes);
        let pool = &self.memory.0;
        let limit = pool.limit.load(Ordering::Relaxed);
        if pool.used.fetch_add(more, Ordering::Relaxed).saturating_add(more) > limit {
            pool.used.fetch_sub(more, Ordering::Relaxed);
            return Err(Error::new(
                Kind::BodyMemory,
                format!("request bodies hold all of limits.body_memory ({limit} bytes); try again, or raise it"),
            )
            .after(Duration::from_secs(1)));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads all of `body`: at most `cap` bytes, its memory reserved before it is read where the length is announced.
/// A body that came in one piece is not copied. Trailers are dropped: a whole body is framed by its length.
///
/// # Errors
/// [`Kind::PayloadTooLarge`], [`Kind::BodyMemory`], or what the client's side failed with.
pub async fn read(body: Upload, cap: usize, memory: &Memory) -> Result<(Bytes, Reservation), Error> {
    let announced = announced(&body, cap)?;
    let mut share = memory.reserve();
    share.grow(announced.unwrap_or(0))?;
    let mut body = Body::upload(body);
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
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
            whole.reserve(announced.unwrap_or(0).max(length));
            whole.extend_from_slice(&std::mem::take(&mut first));
        }
        whole.extend_from_slice(&data);
    }
    Ok((if whole.is_empty() { first } else { whole.freeze() }, share))
}

/// Streams `body` through, at most `cap` bytes of it.
///
/// # Errors
/// [`Kind::PayloadTooLarge`] at once when more is announced.
pub fn stream(body: Upload, cap: usize, record: Rc<Record>) -> Result<Body, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_given_back() {
        let memory = Memory::new(100);
        let mut a = memory.reserve();
        a.grow(60).unwrap();
        a.grow(40).unwrap();
        let mut b = memory.reserve();
        assert_eq!(b.grow(41).unwrap_err().kind(), Kind::BodyMemory);
        b.grow(40).unwrap();
        assert_eq!(memory.used(), 100);
        drop((a, b));
        assert_eq!(memory.used(), 0);
    }
}
