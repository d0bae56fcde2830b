//! The crate's one body type, for both directions.
//!
//! A small enum: nothing, one whole buffer, the client's own upload, or anything else boxed. A [`Tail`] sees every
//! frame and the end, however it comes: whole, failed, or dropped because the reader left.

use std::{
    cell::Cell,
    fmt, mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use crate::{
    error::{Error, Kind},
    protocol::coding::Coding,
    runtime::{hush::Hush, pace::Pace, ticker::Ticker},
};

/// A message body: frames of [`Bytes`] and trailers. Not `Send`: it stays on its worker.
pub struct Body {
    form: Form,
    tail: Option<Box<dyn Tail>>,
}

/// A stream that stands before another for a while, and then only hands it through.
pub trait Passing: HttpBody<Data = Bytes, Error = Error> {
    /// The other, once it can take this one's place.
    fn settled(&mut self) -> Option<Body>;
}

/// A whole body whose encoded forms are kept: who encodes it offers what came out, and the next need not.
pub trait Representation {
    /// The body in `coding`, if it is kept.
    fn twin(&self, coding: Coding) -> Option<Bytes>;
    /// `bytes` are the body in `coding`.
    fn offer(&self, coding: Coding, bytes: &Bytes);
}

/// A streamed body that is not one of the plain forms.
pub type Stream = Pin<Box<dyn HttpBody<Data = Bytes, Error = Error>>>;

enum Form {
    Empty,
    Whole(Bytes),
    /// Boxed as it is rare: a client that takes a coding, and an answer that is kept.
    Kept(Box<Kept>),
    /// Boxed: every answer would carry the room for it.
    Upload(Box<Upload>),
    Stream(Stream),
    Passing(Box<dyn Passing + Unpin>),
}

/// A whole buffer that is kept.
struct Kept {
    bytes: Bytes,
    representation: Rc<dyn Representation>,
}

/// The client's request body as the listener hands it over. It fails with [`Kind::RequestTimeout`] when, of
/// [`UPLOAD_WINDOW`] spent waiting for the client, less than [`UPLOAD_LEAST`] bytes came.
pub struct Upload {
    incoming: Incoming,
    source: Option<Source>,
}

/// Where an upload comes from.
struct Source {
    ticker: Ticker,
    /// Made at the first wait: most bodies come with their head.
    pace: Option<Box<Pace>>,
    lease: Lease,
    #[expect(dead_code, reason = "held for its drop: the connection reads this body until then")]
    reading: Lease,
    /// Of the connection's task.
    hush: Hush,
}

/// Waiting time of which an account of an upload's progress is taken.
pub const UPLOAD_WINDOW: Duration = Duration::from_secs(60);
/// Bytes that must come in it, so that a byte a minute is not progress.
pub const UPLOAD_LEAST: u64 = 1024;

/// Counts itself in a cell while it lives: what on a connection is still alive.
#[derive(Debug)]
pub struct Lease(Rc<Cell<u32>>);

/// How a body ended.
#[derive(Debug)]
pub enum End<'a> {
    /// The last frame was handed over.
    Whole,
    /// It failed on the way; the reader sees the same error.
    Failed(&'a Error),
    /// The reader left before the end.
    Dropped,
}

/// Watches one body go by.
pub trait Tail {
    /// A data frame of this body is about to be handed to the reader.
    fn data(&mut self, data: &Bytes);
    /// The body ended; called exactly once.
    fn end(self: Box<Self>, how: End<'_>);
}

impl Body {
    /// No bytes at all.
    pub fn empty() -> Self {
        Form::Empty.into()
    }

    /// One whole buffer.
    pub fn whole(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Form::Whole(bytes).into() }
    }

    /// One whole buffer, whose encoded forms are kept too.
    pub fn kept(bytes: Bytes, representation: Rc<dyn Representation>) -> Self {
        if bytes.is_empty() { Self::empty() } else { Form::Kept(Box::new(Kept { bytes, representation })).into() }
    }

    /// The client's request body, from the listener or as hyper reads it.
    pub fn upload(upload: impl Into<Upload>) -> Self {
        let upload = upload.into();
        if HttpBody::is_end_stream(&upload) { Self::empty() } else { Form::Upload(Box::new(upload)).into() }
    }

    /// Any other body.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = Error> + 'static,
    {
        Form::Stream(Box::pin(body)).into()
    }

    /// A stream that gives way to another: from then on it costs nothing.
    pub fn passing(body: impl Passing + Unpin + 'static) -> Self {
        Form::Passing(Box::new(body)).into()
    }

    /// Sets the watcher; a body has one.
    #[must_use]
    pub fn with_tail(mut self, tail: Box<dyn Tail>) -> Self {
        debug_assert!(self.tail.is_none(), "a body has one tail");
        self.tail = Some(tail);
        self
    }

    /// The whole content, when it is here already.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.form {
            Form::Whole(bytes) => Some(bytes),
            Form::Kept(kept) => Some(&kept.bytes),
            _ => None,
        }
    }

    /// Where encoded forms of it are kept.
    pub fn representation(&self) -> Option<Rc<dyn Representation>> {
        match &self.form {
            Form::Kept(kept) => Some(Rc::clone(&kept.representation)),
            _ => None,
        }
    }

    /// Reads all of it, up to `cap` bytes; trailers are dropped.
    ///
    /// # Errors
    /// [`Kind::PayloadTooLarge`] above `cap`; else what the body itself fails with.
    pub async fn read(mut self, cap: usize) -> Result<Bytes, Error> {
        let mut first = Bytes::new();
        let mut rest = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut self).poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else { continue };
            if first.len() + rest.len() + data.len() > cap {
                return Err(too_large(cap));
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
                continue;
            }
            rest.extend_from_slice(&mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
        Ok(if rest.is_empty() { first } else { rest.into() })
    }

    fn into_form(mut self) -> Form {
        // A watched one goes on inside of another.
        if self.tail.is_some() { Form::Stream(Box::pin(self)) } else { mem::replace(&mut self.form, Form::Empty) }
    }

    fn finish(&mut self, how: End<'_>) {
        if let Some(tail) = self.tail.take() {
            tail.end(how);
        }
    }
}

/// The error for a body of more than `cap` bytes.
pub fn too_large(cap: usize) -> Error {
    Error::new(
        Kind::PayloadTooLarge,
        format!("the body is larger than {cap} bytes; send less, or raise limits.request_body"),
    )
}

impl From<Form> for Body {
    fn from(form: Form) -> Self {
        Self { form, tail: None }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let polled = match &mut this.form {
            Form::Empty => Poll::Ready(None),
            Form::Whole(bytes) => {
                let bytes = mem::take(bytes);
                this.form = Form::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Form::Kept(kept) => {
                let bytes = mem::take(&mut kept.bytes);
                this.form = Form::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Form::Upload(upload) => Pin::new(&mut **upload).poll_frame(cx),
            Form::Stream(stream) => stream.as_mut().poll_frame(cx),
            Form::Passing(stream) => {
                let polled = Pin::new(&mut **stream).poll_frame(cx);
                if polled.is_ready()
                    && let Some(settled) = stream.settled()
                {
                    this.form = settled.into_form();
                }
                polled
            }
        };
        let Poll::Ready(next) = polled else { return Poll::Pending };
        if this.tail.is_none() {
            return Poll::Ready(next);
        }
        match &next {
            Some(Ok(frame)) => {
                if let (Some(tail), Some(data)) = (&mut this.tail, frame.data_ref()) {
                    tail.data(data);
                }
                // hyper does not poll again once the length is reached. It drops a stream then, which tells its end; of
                // anything else the end is told here.
                if matches!(this.form, Form::Empty | Form::Upload(_)) && HttpBody::is_end_stream(this) {
                    this.finish(End::Whole);
                }
            }
            Some(Err(error)) => {
                if let Some(tail) = this.tail.take() {
                    tail.end(End::Failed(error));
                }
            }
            None => this.finish(End::Whole),
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        match &self.form {
            Form::Empty => true,
            Form::Whole(_) | Form::Kept(_) => false,
            Form::Upload(upload) => upload.is_end_stream(),
            Form::Stream(stream) => stream.is_end_stream(),
            Form::Passing(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.form {
            Form::Empty => SizeHint::with_exact(0),
            Form::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Form::Kept(kept) => SizeHint::with_exact(kept.bytes.len() as u64),
            Form::Upload(upload) => upload.size_hint(),
            Form::Stream(stream) => stream.size_hint(),
            Form::Passing(stream) => stream.size_hint(),
        }
    }
}

fn upload_failed(cause: hyper::Error) -> Error {
    let (kind, what) = if cause.is_timeout() {
        (Kind::RequestTimeout, "the request body came too slowly")
    } else if cause.is_incomplete_message() || cause.is_closed() || cause.is_canceled() {
        (Kind::ClientGone, "the client stopped before its request was complete")
    } else {
        (Kind::BadRequest, "the request's body breaks its framing (RFC 9112 §7)")
    };
    Error::new(kind, what).with_source(cause)
}

impl Upload {
    /// An upload that must make progress and keeps both leases, of what is alive and of what is being read, until it has
    /// ended or is dropped. Its last piece wakes nobody through `hush`.
    pub fn new(incoming: Incoming, ticker: &Ticker, [lease, reading]: [Lease; 2], hush: &Hush) -> Self {
        let ended = HttpBody::is_end_stream(&incoming);
        let source = || Source { ticker: ticker.clone(), pace: None, lease, reading, hush: hush.clone() };
        Self { incoming, source: (!ended).then(source) }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let incoming = &mut this.incoming;
        let Some(source) = &mut this.source else { return Pin::new(incoming).poll_frame(cx).map_err(upload_failed) };
        let waker = cx.waker();
        let poll = || {
            let polled = Pin::new(&mut *incoming).poll_frame(cx);
            (polled, incoming.is_end_stream())
        };
        let (polled, ended) = source.hush.quietly(waker, poll, |(_, ended)| !ended);
        match polled {
            Poll::Pending => {
                let pace =
                    source.pace.get_or_insert_with(|| Box::new(Pace::new(&source.ticker, UPLOAD_WINDOW, UPLOAD_LEAST)));
                ready!(pace.poll_late(cx));
                Poll::Ready(Some(Err(too_slow())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(pace), Some(data)) = (&mut source.pace, frame.data_ref()) {
                    pace.moved(data.len() as u64);
                }
                if ended {
                    this.source = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                this.source = None;
                Poll::Ready(end.map(|end| end.map_err(upload_failed)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl From<Incoming> for Upload {
    fn from(incoming: Incoming) -> Self {
        Self { incoming, source: None }
    }
}

/// For services that want hyper's own type. The connection cannot see any more when the body ends, so it keeps its
/// buffers from then on, and slow bodies are not cut.
impl From<Upload> for Incoming {
    fn from(upload: Upload) -> Self {
        if let Some(source) = upload.source {
            source.lease.forfeit();
        }
        upload.incoming
    }
}

impl From<Upload> for Body {
    fn from(upload: Upload) -> Self {
        Self::upload(upload)
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl Lease {
    /// Stands in the cell, beside the count, once a lease was given up without its end being known.
    pub const FORFEIT: u32 = 1 << 31;

    /// Counts in `cell` from now on.
    pub fn new(cell: &Rc<Cell<u32>>) -> Self {
        cell.set(cell.get() + 1);
        Self(Rc::clone(cell))
    }

    /// Leaves its mark for ever: [`Lease::FORFEIT`] is in the cell from now on.
    pub fn forfeit(self) {
        self.0.set(self.0.get() | Self::FORFEIT);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn too_slow() -> Error {
    let message = "the request body came too slowly: less than 1 KiB in a minute; send it without pauses";
    Error::new(Kind::RequestTimeout, message)
}

impl Drop for Body {
    fn drop(&mut self) {
        // An empty answer is never polled: it is whole all the same.
        let how = if HttpBody::is_end_stream(self) { End::Whole } else { End::Dropped };
        self.finish(how);
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.form {
            Form::Empty => "Body(empty)",
            Form::Whole(_) | Form::Kept(_) => "Body(whole)",
            Form::Upload(_) => "Body(upload)",
            Form::Stream(_) | Form::Passing(_) => "Body(stream)",
        })
    }
}
