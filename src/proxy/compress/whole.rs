//! Bodies that are here whole: small ones at once, large ones a piece at a time.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use async_compression::{
    Level,
    brotli::EncoderParams,
    tokio::bufread::{BrotliEncoder, GzipEncoder, ZstdEncoder},
    zstd::CParameter,
};
use bytes::{Buf as _, Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use super::{
    encoder::{self, Kind},
    pool::{Lease, Pool, SCRATCH, Share},
};
use crate::{
    body::{Body, Representation},
    error::{self, Error},
    protocol::coding::Coding,
};

/// A longer body is encoded in pieces: this much takes 0.3 ms.
pub(super) const AT_ONCE: usize = 64 * 1024;
/// Input of one turn of the worker.
const PIECE: usize = 32 * 1024;

/// All of `body`, encoded.
///
/// # Errors
/// A fault of the codec.
pub(super) fn at_once(lease: &mut Lease, body: &Bytes) -> Result<Bytes, Error> {
    // JSON comes down to a third, events to a tenth.
    let mut out = BytesMut::with_capacity(body.len() / 3 + 128);
    lease.finish(body, &mut out)?;
    lease.pool().counters.encoded(lease.coding(), body.len(), out.len());
    Ok(out.freeze())
}

/// `body`, encoded as it is read; what came out is offered to `kept`. `None` when there is no memory for an encoder.
pub(super) fn in_pieces(
    pool: &Rc<Pool>,
    coding: Coding,
    body: Bytes,
    kept: Option<Rc<dyn Representation>>,
) -> Option<Body> {
    let kind = Kind::of(coding, false);
    let share = pool.reserve(kind.cost())?;
    let before = body.len();
    let pieces = Pieces { rest: body, left: PIECE };
    let encoder: Pin<Box<dyn AsyncRead>> = match coding {
        Coding::Gzip => Box::pin(GzipEncoder::with_quality(pieces, Level::Precise(encoder::GZIP_WHOLE))),
        Coding::Zstd => {
            let window =
                [CParameter::window_log(encoder::ZSTD_WINDOW_LOG), CParameter::hash_log(encoder::ZSTD_HASH_LOG)];
            Box::pin(ZstdEncoder::with_quality_and_params(pieces, Level::Precise(encoder::ZSTD_LEVEL), &window))
        }
        Coding::Br => {
            let params = EncoderParams::default().quality(Level::Precise(encoder::BR_WHOLE));
            Box::pin(BrotliEncoder::with_params(pieces, params.window_size(encoder::BR_WINDOW_LOG)))
        }
    };
    let twin = kept.map(|kept| (kept, BytesMut::new()));
    let room = vec![0; SCRATCH].into();
    Some(Body::stream(InPieces { encoder, room, coding, before, twin, pool: Rc::clone(pool), share: Some(share) }))
}

/// A large body on its way through an encoder.
struct InPieces {
    encoder: Pin<Box<dyn AsyncRead>>,
    /// What is read is written here first.
    room: Box<[u8]>,
    coding: Coding,
    /// Bytes that are not counted yet.
    before: usize,
    twin: Option<(Rc<dyn Representation>, BytesMut)>,
    pool: Rc<Pool>,
    /// Of the memory for the encoder; `None` at the end.
    share: Option<Share>,
}

impl HttpBody for InPieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        if this.share.is_none() {
            return Poll::Ready(None);
        }
        let mut read = ReadBuf::new(&mut this.room);
        if let Err(cause) = ready!(this.encoder.as_mut().poll_read(cx, &mut read)) {
            this.share = None;
            return Poll::Ready(Some(Err(Error::new(error::Kind::Internal, "an encoder failed").with_source(cause))));
        }
        let out = read.filled();
        this.pool.counters.encoded(this.coding, std::mem::take(&mut this.before), out.len());
        if out.is_empty() {
            this.share = None;
            if let Some((kept, twin)) = this.twin.take() {
                kept.offer(this.coding, &twin.freeze());
            }
            return Poll::Ready(None);
        }
        if let Some((_, twin)) = &mut this.twin {
            twin.extend_from_slice(out);
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::copy_from_slice(out)))))
    }

    fn is_end_stream(&self) -> bool {
        self.share.is_none()
    }
}

/// Gives a buffer piece by piece, and the worker's other tasks a turn between them.
struct Pieces {
    rest: Bytes,
    /// Of this piece; 0 = its turn is over.
    left: usize,
}

impl AsyncBufRead for Pieces {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        if this.left == 0 && !this.rest.is_empty() {
            this.left = PIECE;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(&this.rest[..this.left.min(this.rest.len())]))
    }

    fn consume(mut self: Pin<&mut Self>, read: usize) {
        self.rest.advance(read);
        self.left -= read;
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let piece = ready!(self.as_mut().poll_fill_buf(cx))?;
        let read = piece.len().min(into.remaining());
        into.put_slice(&piece[..read]);
        self.consume(read);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    #[test]
    fn each_piece_is_a_turn() {
        let body = Bytes::from(vec![b'x'; 2 * PIECE + 5]);
        let mut pieces = Pieces { rest: body, left: PIECE };
        let mut cx = Context::from_waker(Waker::noop());
        let mut seen = Vec::new();
        loop {
            match Pin::new(&mut pieces).poll_fill_buf(&mut cx) {
                Poll::Pending => seen.push(0),
                Poll::Ready(piece) => {
                    let length = piece.unwrap().len();
                    if length == 0 {
                        break;
                    }
                    seen.push(length);
                    Pin::new(&mut pieces).consume(length);
                }
            }
        }
        assert_eq!(seen, [PIECE, 0, PIECE, 0, 5]);
    }
}
