//! The crate's one body type, for both directions.
//!
//! A small enum: nothing, one whole buffer, the client's own upload, or anything else boxed. A [`Tail`] sees every
//! frame and the end, however it comes: whole, failed, or dropped because the reader left.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::error::{Error, Kind};

/// A message body: frames of [`Bytes`] and trailers. Not `Send`: it stays on its worker.
pub struct Body {
    form: Form,
    tail: Option<Box<dyn Tail>>,
}

/// A streamed body that is not one of the plain forms.
pub type Stream = Pin<Box<dyn HttpBody<Data = Bytes, Error = Error>>>;

enum Form {
    Empty,
    Whole(Bytes),
    Upload(hyper::body::Incoming),
    Stream(Stream),
}

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

    /// The client's request body as hyper reads it.
    pub fn upload(incoming: hyper::body::Incoming) -> Self {
        if HttpBody::is_end_stream(&incoming) { Self::empty() } else { Form::Upload(incoming).into() }
    }

    /// Any other body.
    pub fn stream<B>(body: B) -> Self
    where
        B: HttpBody<Data = Bytes, Error = Error> + 'static,
    {
        Form::Stream(Box::pin(body)).into()
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
            _ => None,
        }
    }

    /// Reads all of it, up to `cap` bytes; trailers are dropped.
    ///
    /// # Errors
    /// [`Kind::PayloadTooLarge`] above `cap`; else what the body itself fails with.
    pub async fn read(mut self, cap: usize) -> Result<Bytes, Error> {
        if let Form::Whole(bytes) = &self.form
            && bytes.len() <= cap
        {
            return Ok(bytes.clone());
        }
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
            rest.extend_from_slice(&std::mem::take(&mut first));
            rest.extend_from_slice(&data);
        }
        Ok(if rest.is_empty() { first } else { rest.into() })
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
                let bytes = std::mem::take(bytes);
                this.form = Form::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Form::Upload(incoming) => Pin::new(incoming).poll_frame(cx).map(|f| f.map(|f| f.map_err(upload_failed))),
            Form::Stream(stream) => stream.as_mut().poll_frame(cx),
        };
        let Poll::Ready(next) = polled else { return Poll::Pending };
        match &next {
            Some(Ok(frame)) => {
                if let (Some(tail), Some(data)) = (&mut this.tail, frame.data_ref()) {
                    tail.data(data);
                }
                // hyper does not poll again once the length is reached: the end is told here.
                if this.tail.is_some() && HttpBody::is_end_stream(this) {
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
            Form::Whole(_) => false,
            Form::Upload(incoming) => incoming.is_end_stream(),
            Form::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.form {
            Form::Empty => SizeHint::with_exact(0),
            Form::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Form::Upload(incoming) => incoming.size_hint(),
            Form::Stream(stream) => stream.size_hint(),
        }
    }
}

fn upload_failed(cause: hyper::Error) -> Error {
    let (kind, what) = if cause.is_timeout() {
        (Kind::RequestTimeout, "the request body came too slowly")
    } else {
        (Kind::ClientGone, "the client stopped before its request was complete")
    };
    Error::new(kind, what).with_source(cause)
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
            Form::Whole(_) => "Body(whole)",
            Form::Upload(_) => "Body(upload)",
            Form::Stream(_) => "Body(stream)",
        })
    }
}
