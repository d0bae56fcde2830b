//! One request and the head of its answer, over one connection, reading while writing.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Malformed,
    answer::Answer,
    framing::Decoder,
    head::{self, AnswerHead, Reader, Sent},
    upload::{Fault, Upload},
};
use crate::{
    body::Body,
    client::{
        Failure, Head, INLINE_BODY, Outgoing, SCRATCH, Stage, Target, Upgraded, Worker, pool::Conn, wire::Prefixed,
    },
    error::Error,
    runtime::turn::turn,
};

/// An exchange that gave no answer; its connection is closed.
#[derive(Debug)]
pub(in crate::client) struct Broken {
    why: Why,
    /// Nothing came back on a connection that had worked before.
    stale: bool,
    sent: bool,
}

#[derive(Debug)]
enum Why {
    Ended(io::Error),
    Malformed(Malformed),
    Request(Error),
}

impl Broken {
    /// Whether the backend most likely closed the idle connection while this request was on its way. One that must
    /// not come twice may have been read before that.
    pub(in crate::client) fn is_stale(&self, repeatable: bool) -> bool {
        self.stale && matches!(self.why, Why::Ended(_)) && (repeatable || !self.sent)
    }

    pub(in crate::client) fn was_sent(&self) -> bool {
        self.sent
    }

    pub(in crate::client) fn into_failure(self) -> Failure {
        match self.why {
            Why::Ended(cause) if self.sent => Failure::new(Stage::Reset, cause),
            Why::Ended(cause) => Failure::new(Stage::Unsent, cause),
            Why::Malformed(cause) => Failure::new(Stage::Protocol, cause),
            Why::Request(cause) => Failure::new(Stage::Request, cause),
        }
    }
}

/// Sends a request; an answer that came whole in the first read has freed the connection already.
pub(in crate::client) async fn send(
    worker: &Rc<Worker>,
    target: &Target,
    conn: Conn,
    head: &Head<'_>,
    body: &mut Outgoing,
) -> Result<Response<Body>, Broken> {
    let mut exchange = Exchange::new(worker, conn, head, false);
    // A body that streams is at its client's pace already.
    if !matches!(body, Outgoing::Stream(_)) {
        turn().await;
    }
    poll_fn(|cx| {
        exchange.start(cx, target, head, body);
        Poll::Ready(())
    })
    .await;
    let answered = poll_fn(|cx| exchange.poll(cx)).await;
    if answered.is_err()
        && matches!(body, Outgoing::Taken)
        && let Some(untaken) = exchange.upload.untaken()
    {
        *body = Outgoing::Stream(untaken);
    }
    let (answer_head, scratch_range) = answered?;
    Ok(exchange.answer(answer_head, scratch_range))
}

/// Asks for another protocol.
pub(in crate::client) async fn upgrade(
    worker: &Rc<Worker>,
    target: &Target,
    conn: Conn,
    head: &Head<'_>,
) -> Result<Upgraded, Broken> {
    let mut exchange = Exchange::new(worker, conn, head, true);
    let mut front = Vec::new();
    head::write(&mut front, target, head, Sent::Upgrade);
    exchange.upload = Upload::whole(front, Bytes::new());
    let (answer_head, rest) = poll_fn(|cx| exchange.poll(cx)).await?;
    if answer_head.status != http::StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Upgraded { response: exchange.answer(answer_head, rest), stream: None });
    }
    let first = worker.scratch.borrow()[rest].to_vec();
    let stream = exchange.conn.map(|conn| Box::new(Prefixed::new(first, conn.wire)) as _);
    Ok(Upgraded { response: response(answer_head, Body::empty()).0, stream })
}

/// Up to the answer's head.
struct Exchange<'a> {
    worker: &'a Rc<Worker>,
    /// Taken by the answer.
    conn: Option<Conn>,
    upload: Upload,
    reader: Reader,
    /// Why writing ended early; the answer may be there all the same.
    write_error: Option<io::Error>,
    heard: bool,
}

/// Bytes after the head, in the worker's scratch: good until the task waits again.
type Rest = std::ops::Range<usize>;

impl<'a> Exchange<'a> {
    fn new(worker: &'a Rc<Worker>, conn: Conn, head: &Head<'_>, upgrade: bool) -> Self {
        let reader = Reader::new(worker.settings.header_bytes, *head.method == Method::HEAD, upgrade);
        Self { worker, conn: Some(conn), upload: Upload::default(), reader, write_error: None, heard: false }
    }

    /// Writes the head, with a small body behind it in the same `send`; what is left becomes the upload.
    fn start(&mut self, cx: &mut Context<'_>, target: &Target, head: &Head<'_>, body: &mut Outgoing) {
        let mut out = self.worker.out.take();
        out.clear();
        let (sent, inline) = match body {
            Outgoing::Empty => (Sent::Nothing, None),
            Outgoing::Whole(bytes) => {
                (Sent::Length(bytes.len() as u64), Some(&*bytes).filter(|bytes| bytes.len() <= INLINE_BODY))
            }
            Outgoing::Stream(stream) => (stream.size_hint().exact().map_or(Sent::Chunked, Sent::Length), None),
            Outgoing::Taken => (Sent::Nothing, None),
        };
        head::write(&mut out, target, head, sent);
        if let Some(bytes) = inline {
            out.extend_from_slice(bytes);
        }
        self.upload = match (std::mem::replace(body, Outgoing::Taken), sent) {
            (Outgoing::Stream(stream), Sent::Length(length)) => Upload::stream(out.clone(), stream, Some(length)),
            (Outgoing::Stream(stream), _) => Upload::stream(out.clone(), stream, None),
            (Outgoing::Whole(bytes), _) if bytes.len() > INLINE_BODY => {
                *body = Outgoing::Whole(bytes.clone());
                Upload::whole(out.clone(), bytes)
            }
            (kept, _) => {
                *body = kept;
                self.write_now(cx, &out)
            }
        };
        if out.capacity() <= SCRATCH {
            self.worker.out.replace(out);
        }
    }

    /// One `send` straight from the worker's buffer: nothing is copied unless the socket is full.
    fn write_now(&mut self, cx: &mut Context<'_>, out: &[u8]) -> Upload {
        let Some(conn) = &mut self.conn else { return Upload::default() };
        match Pin::new(&mut conn.wire).poll_write(cx, out) {
            // A stream of TLS keeps bytes of its own until it is flushed.
            Poll::Ready(Ok(count))
                if count == out.len() && matches!(Pin::new(&mut conn.wire).poll_flush(cx), Poll::Ready(Ok(()))) =>
            {
                Upload::finished()
            }
            Poll::Ready(Ok(count)) => Upload::rest(out, count),
            Poll::Ready(Err(error)) => {
                self.write_error = Some(error);
                Upload::default()
            }
            Poll::Pending => Upload::rest(out, 0),
        }
    }

    /// Uploads and listens until the head is there.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(AnswerHead, Rest), Broken>> {
        loop {
            if self.write_error.is_none() && !self.upload.is_done() {
                self.poll_upload(cx)?;
            }
            let Some(conn) = &mut self.conn else {
                return Poll::Ready(Err(self.ended(io::ErrorKind::NotConnected.into())));
            };
            let mut scratch = self.worker.scratch.borrow_mut();
            let mut buf = ReadBuf::new(&mut scratch);
            let read = ready!(Pin::new(&mut conn.wire).poll_read(cx, &mut buf));
            let bytes = buf.filled();
            if let Err(error) = read {
                return Poll::Ready(Err(self.ended(error)));
            }
            if bytes.is_empty() {
                return Poll::Ready(Err(self.ended(io::ErrorKind::UnexpectedEof.into())));
            }
            self.heard = true;
            match self.reader.push(bytes) {
                Ok(None) => {}
                Ok(Some((head, used))) => return Poll::Ready(Ok((head, used..bytes.len()))),
                Err(fault) => return Poll::Ready(Err(self.broken(Why::Malformed(fault)))),
            }
        }
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let Some(conn) = &mut self.conn else { return Ok(()) };
        match self.upload.poll(&mut conn.wire, cx) {
            Poll::Ready(Err(Fault::Body(error))) => Err(self.broken(Why::Request(error))),
            // An early answer may be on its way: reading tells.
            Poll::Ready(Err(Fault::Wire(error))) => {
                self.write_error = Some(error);
                Ok(())
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    /// The end of the connection; a failed write says more about why than the read after it.
    fn ended(&mut self, read: io::Error) -> Broken {
        let why = self.write_error.take().unwrap_or(read);
        self.broken(Why::Ended(why))
    }

    fn broken(&mut self, why: Why) -> Broken {
        let reused = self.conn.as_ref().is_some_and(Conn::is_reused);
        self.conn = None;
        Broken { why, stale: reused && !self.heard, sent: self.upload.has_sent() || self.heard }
    }

    /// The answer, with what is here of its body.
    fn answer(mut self, head: AnswerHead, rest: Rest) -> Response<Body> {
        let (mut response, framing, mut keep) = response(head, Body::empty());
        let Some(conn) = self.conn.take() else { return response };
        keep.alive &= self.write_error.is_none();
        if self.write_error.is_some() {
            // Nothing more is written; the connection is not used again, since the request on it is not whole.
            self.upload = Upload::abandoned();
        }
        let decoder = Decoder::new(framing, self.worker.settings.header_bytes);
        let mut scratch = self.worker.scratch.borrow_mut();
        let mut answer = Answer::new(self.worker, (conn, keep), decoder, self.upload, &mut scratch[rest]);
        *response.body_mut() = match answer.take_whole() {
            Some(bytes) => Body::whole(bytes),
            None => Body::stream(answer),
        };
        response
    }
}

fn response(head: AnswerHead, body: Body) -> (Response<Body>, super::framing::Framing, head::Keep) {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    (response, head.framing, head.keep)
}
