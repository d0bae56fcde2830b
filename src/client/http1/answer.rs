//! A streamed answer: reads as its reader asks, goes on uploading meanwhile, gives the connection back at the end.

use std::{
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::{
    framing::Decoder,
    head::Keep,
    upload::{Fault, Upload},
};
use crate::{
    client::{Worker, cut, malformed, pool::Conn},
    error::Error,
};

/// From so many bytes left on, content is read into a buffer of its own instead of the scratch: no second copy.
const OWN_BUFFER: u64 = 8 * 1024;

/// The largest such buffer.
const MAX_FRAME: u64 = 64 * 1024;

/// The body of an answer that did not come whole in one read.
#[derive(Debug)]
pub(super) struct Answer {
    worker: Rc<Worker>,
    /// `None` once the connection was given back or closed.
    open: Option<Open>,
    /// Content that is ready.
    ready: Bytes,
    trailers: Option<Box<HeaderMap>>,
    /// What the reader is told after `ready`.
    error: Option<Error>,
}

#[derive(Debug)]
struct Open {
    conn: Conn,
    keep: Keep,
    decoder: Decoder,
    upload: Upload,
}

impl Answer {
    /// A body whose head came with `bytes` after it, in the worker's scratch.
    pub(super) fn new(
        worker: &Rc<Worker>,
        (conn, keep): (Conn, Keep),
        decoder: Decoder,
        upload: Upload,
        bytes: &mut [u8],
    ) -> Self {
        let open = Some(Open { conn, keep, decoder, upload });
        let mut this = Self { worker: Rc::clone(worker), open, ready: Bytes::new(), trailers: None, error: None };
        this.decode(bytes);
        this
    }

    /// All of it, when it is here and has no trailers.
    pub(super) fn take_whole(&mut self) -> Option<Bytes> {
        let is_whole = self.open.is_none() && self.trailers.is_none() && self.error.is_none();
        is_whole.then(|| std::mem::take(&mut self.ready))
    }

    /// Takes the framing off what was read; ends with the body's end or a fault.
    fn decode(&mut self, bytes: &mut [u8]) {
        let Some(open) = &mut self.open else { return };
        let step = open.decoder.decode(bytes);
        if !step.data.is_empty() {
            self.ready = Bytes::copy_from_slice(&bytes[step.data]);
        }
        if let Some(fault) = step.fault {
            self.fail(malformed(fault));
        } else if open.decoder.is_done() {
            self.finish(step.used < bytes.len());
        }
    }

    fn fail(&mut self, error: Error) {
        self.open = None;
        self.error = Some(error);
    }

    /// The body is whole: the connection may carry the next request, unless bytes came that nobody asked for, or the
    /// backend answered without waiting for the end of this one.
    fn finish(&mut self, surplus: bool) {
        let Some(mut open) = self.open.take() else { return };
        self.trailers = open.decoder.take_trailers().map(Box::new);
        if !surplus && open.upload.is_done() {
            self.worker.pool.put(open.conn, open.keep, self.worker.ticker.now());
        }
    }

    /// Reads once.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = &mut self.open else { return Poll::Ready(()) };
        if !open.upload.is_done() {
            match open.upload.poll(&mut open.conn.wire, cx) {
                Poll::Ready(Err(Fault::Body(error))) => {
                    self.fail(error);
                    return Poll::Ready(());
                }
                // It takes no more, but may still have the rest of its answer.
                Poll::Ready(Err(Fault::Wire(_))) => {
                    open.upload = Upload::abandoned();
                    open.keep.alive = false;
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        match open.decoder.left() {
            Some(left) if left > OWN_BUFFER => {
                // No buffer is made for a read that must wait.
                ready!(open.conn.wire.poll_may_read(cx));
                self.read_own(left, cx)
            }
            _ => self.read_scratch(cx),
        }
    }

    fn read_own(&mut self, left: u64, cx: &mut Context<'_>) -> Poll<()> {
        let Some(open) = &mut self.open else { return Poll::Ready(()) };
        let size = usize::try_from(left.min(MAX_FRAME)).unwrap_or(usize::MAX);
        let mut buffer = bytes::BytesMut::with_capacity(size);
        let mut limited = (&mut buffer).limit_to(size);
        let read = ready!(pin!(open.conn.wire.read_buf(&mut limited)).poll(cx));
        match read {
            Ok(0) => self.eof(None),
            Ok(count) => {
                open.decoder.skip(count);
                // A buffer that stayed mostly empty would be held for nothing.
                self.ready = if count < size / 2 { Bytes::copy_from_slice(&buffer) } else { buffer.freeze() };
                if open.decoder.is_done() {
                    self.finish(false);
                }
            }
            Err(error) => self.eof(Some(error)),
        }
        Poll::Ready(())
    }

    fn read_scratch(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let worker = Rc::clone(&self.worker);
        let mut scratch = worker.scratch.borrow_mut();
        let Some(open) = &mut self.open else { return Poll::Ready(()) };
        let mut buf = ReadBuf::new(&mut scratch);
        match ready!(Pin::new(&mut open.conn.wire).poll_read(cx, &mut buf)) {
            Ok(()) if buf.filled().is_empty() => self.eof(None),
            Ok(()) => self.decode(buf.filled_mut()),
            Err(error) => self.eof(Some(error)),
        }
        Poll::Ready(())
    }

    /// The connection ended: the end of a body that lasts as long as it, else a cut. An error is always a cut.
    fn eof(&mut self, error: Option<io::Error>) {
        let Some(open) = self.open.take() else { return };
        match error {
            None if open.decoder.ends_with_connection() => {}
            None => self.error = Some(cut(io::ErrorKind::UnexpectedEof.into())),
            Some(error) => self.error = Some(cut(error)),
        }
    }
}

trait LimitTo<'a> {
    fn limit_to(self, size: usize) -> bytes::buf::Limit<&'a mut bytes::BytesMut>;
}

impl<'a> LimitTo<'a> for &'a mut bytes::BytesMut {
    /// The allocator may give more room than asked for; not a byte more may be read than belongs to this body.
    fn limit_to(self, size: usize) -> bytes::buf::Limit<&'a mut bytes::BytesMut> {
        bytes::BufMut::limit(self, size)
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.ready)))));
            }
            if let Some(error) = this.error.take() {
                return Poll::Ready(Some(Err(error)));
            }
            if let Some(trailers) = this.trailers.take() {
                return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
            }
            if this.open.is_none() {
                return Poll::Ready(None);
            }
            ready!(this.poll_read(cx));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.ready.is_empty() && self.trailers.is_none() && self.error.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        let here = self.ready.len() as u64;
        match &self.open {
            Some(open) => match open.decoder.left() {
                Some(left) => SizeHint::with_exact(here.saturating_add(left)),
                None => SizeHint::default(),
            },
            None if self.error.is_some() || self.trailers.is_some() => SizeHint::default(),
            None => SizeHint::with_exact(here),
        }
    }
}
