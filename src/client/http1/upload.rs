//! The writing half of one exchange: head, then body, one frame at a time, as fast as the backend takes it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::Body as _;
use tokio::io::AsyncWrite;

use super::{framing::may_trail, head::field};
use crate::{
    body::Body,
    client::wire::Wire,
    error::{Error, Kind},
};

/// One request on its way out. Most are gone with the first write: what is left of the others is boxed.
#[derive(Debug, Default)]
pub(in crate::client) struct Upload {
    rest: Option<Box<Rest>>,
    /// Something was accepted by the kernel, and nothing is left.
    sent: bool,
}

/// What is still to be written. Holds at most one frame of the body.
#[derive(Debug, Default)]
struct Rest {
    /// The head, chunk sizes, trailers.
    front: Vec<u8>,
    front_at: usize,
    data: Bytes,
    back: &'static [u8],
    source: Option<Source>,
    /// Something was accepted by the kernel.
    sent: bool,
}

#[derive(Debug)]
struct Source {
    body: Body,
    /// Bytes still to come when a length was said; `None` = chunked.
    left: Option<u64>,
    /// A frame was taken: it cannot be sent again.
    taken: bool,
}

/// Why an upload ended early.
#[derive(Debug)]
pub(in crate::client) enum Fault {
    /// The request's own body failed.
    Body(Error),
    /// The backend takes no more.
    Wire(io::Error),
}

impl Upload {
    /// `front` is to be written, of which nothing was; then `data`.
    pub(super) fn whole(front: Vec<u8>, data: Bytes) -> Self {
        Rest { front, data, ..Rest::default() }.into()
    }

    /// `front`, then what `body` gives, by length or chunked.
    pub(super) fn stream(front: Vec<u8>, body: Body, length: Option<u64>) -> Self {
        Rest { front, source: Some(Source { body, left: length, taken: false }), ..Rest::default() }.into()
    }

    /// The rest of a buffer of which `sent` bytes were written.
    pub(super) fn rest(buffer: &[u8], sent: usize) -> Self {
        Rest { front: buffer[sent..].to_vec(), sent: sent > 0, ..Rest::default() }.into()
    }

    /// All of it is with the kernel.
    pub(super) fn finished() -> Self {
        Self { rest: None, sent: true }
    }

    /// Nothing more is written: the backend took no more. What is left of the body is dropped.
    pub(super) fn abandoned() -> Self {
        Self::default()
    }

    /// Nothing is left to be handed to the kernel.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_none()
    }

    /// Something was handed to the kernel.
    pub(super) fn has_sent(&self) -> bool {
        self.sent || self.rest.as_ref().is_some_and(|rest| rest.sent)
    }

    /// The streamed body, if no frame of it was taken.
    pub(super) fn untaken(&mut self) -> Option<Body> {
        let source = self.rest.as_mut()?.source.take()?;
        (!source.taken).then_some(source.body)
    }

    /// Writes on until all is written, the wire is full, or the body has nothing yet.
    pub(super) fn poll(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        if let Some(rest) = &mut self.rest {
            ready!(rest.poll(wire, cx))?;
            *self = Self::finished();
        }
        Poll::Ready(Ok(()))
    }
}

impl From<Rest> for Upload {
    fn from(rest: Rest) -> Self {
        Self { rest: Some(Box::new(rest)), sent: false }
    }
}

impl Rest {
    fn poll(&mut self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        loop {
            if self.data.is_empty() && self.back.is_empty() {
                self.pull(cx).map_err(Fault::Body)?;
            }
            if self.is_written() {
                let flushed = Pin::new(&mut *wire).poll_flush(cx).map_err(Fault::Wire)?;
                if self.source.is_some() {
                    return Poll::Pending;
                }
                ready!(flushed);
                return Poll::Ready(Ok(()));
            }
            let count = ready!(self.write(wire, cx)).map_err(Fault::Wire)?;
            self.advance(count);
        }
    }

    fn is_written(&self) -> bool {
        self.front_at == self.front.len() && self.data.is_empty() && self.back.is_empty()
    }

    fn write(&self, wire: &mut Wire, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let front = &self.front[self.front_at..];
        let count = if self.data.is_empty() && self.back.is_empty() {
            ready!(Pin::new(wire).poll_write(cx, front))?
        } else {
            let parts = [IoSlice::new(front), IoSlice::new(&self.data), IoSlice::new(self.back)];
            // An empty first slice would be all that a stream without vectored writes looks at.
            let skip = usize::from(front.is_empty()) + usize::from(front.is_empty() && self.data.is_empty());
            ready!(Pin::new(wire).poll_write_vectored(cx, &parts[skip..]))?
        };
        if count == 0 { Poll::Ready(Err(io::ErrorKind::WriteZero.into())) } else { Poll::Ready(Ok(count)) }
    }

    fn advance(&mut self, mut count: usize) {
        self.sent = true;
        let front = count.min(self.front.len() - self.front_at);
        self.front_at += front;
        count -= front;
        if self.front_at == self.front.len() {
            self.front.clear();
            self.front_at = 0;
        }
        let data = count.min(self.data.len());
        self.data.advance(data);
        self.back = &self.back[count - data..];
    }

    /// Takes the next frame, if one is there.
    fn pull(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        while let Some(source) = &mut self.source {
            let Poll::Ready(frame) = Pin::new(&mut source.body).poll_frame(cx) else { return Ok(()) };
            let Some(frame) = frame else { return self.end(None) };
            source.taken = true;
            match frame?.into_data() {
                // An empty chunk would be the end.
                Ok(data) if data.is_empty() => {}
                Ok(data) => return self.take(data),
                Err(frame) => return self.end(frame.into_trailers().ok()),
            }
        }
        Ok(())
    }

    fn take(&mut self, data: Bytes) -> Result<(), Error> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let is_last = source.body.is_end_stream();
        match &mut source.left {
            Some(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or_else(|| {
                    Error::new(Kind::BadRequest, "the request body is longer than its Content-Length")
                })?;
                if *left == 0 && is_last {
                    self.source = None;
                }
            }
            None => {
                self.front.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
                self.back = if is_last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
                if is_last {
                    self.source = None;
                }
            }
        }
        self.data = data;
        Ok(())
    }

    /// The body ended.
    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Error> {
        let Some(source) = self.source.take() else { return Ok(()) };
        match source.left {
            Some(0) => {}
            Some(left) => {
                return Err(Error::new(
                    Kind::ClientGone,
                    format!("the request body ended {left} bytes before its Content-Length"),
                ));
            }
            None => {
                self.front.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.iter().flatten().filter(|(name, _)| may_trail(name)) {
                    field(&mut self.front, name.as_str().as_bytes(), value.as_bytes());
                }
                self.front.extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }
}
