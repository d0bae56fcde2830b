//! The body of a stream whose head has gone out and whose first byte has not: should it fail, another try takes its
//! place, and the client sees nothing of it.
//!
//! A replacement must have the same status, content type, coding and length: the head with these is out. With
//! the first byte the backend's own body takes this one's place, and neither the call nor its payload is held any more. When the client leaves, the
//! body is dropped, and with it whatever try is under way.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tower::Service;

use super::{Tries, retry};
use crate::{
    body::{Body, Passing},
    error::Error,
    proxy::attempt::Attempt,
};

/// What of a head must not change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    status: StatusCode,
    fields: [Option<HeaderValue>; 3],
}

const FIELDS: [HeaderName; 3] = [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH];

type Trying<S> = Pin<Box<dyn Future<Output = Result<(Body, Box<Tries<S>>), Error>>>>;

/// See the module.
pub(super) struct Replace<S> {
    state: State<S>,
}

enum State<S> {
    /// Nothing of the body has come.
    Waiting {
        body: Body,
        head: Head,
        tries: Box<Tries<S>>,
    },
    Trying {
        next: Trying<S>,
        head: Head,
    },
    Passing(Body),
    Ended,
}

impl Head {
    pub(super) fn of<B>(response: &Response<B>) -> Self {
        let fields = FIELDS.map(|name| response.headers().get(name).cloned());
        Self { status: response.status(), fields }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.fields[0].as_ref().and_then(|value| value.to_str().ok()).unwrap_or("no content type");
        write!(f, "{}, {kind}", self.status)
    }
}

impl<S> Replace<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    /// `response` with a body that can still be replaced.
    pub(super) fn wrap(response: Response<Body>, tries: Tries<S>) -> Response<Body> {
        let head = Head::of(&response);
        response.map(|body| Body::passing(Self { state: State::Waiting { body, head, tries: Box::new(tries) } }))
    }
}

impl<S> Passing for Replace<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    fn settled(&mut self) -> Option<Body> {
        match &mut self.state {
            State::Passing(body) => Some(mem::replace(body, Body::empty())),
            _ => None,
        }
    }
}

impl<S> HttpBody for Replace<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let state = &mut self.state;
        loop {
            match state {
                State::Passing(body) => return Pin::new(body).poll_frame(cx),
                State::Waiting { body, tries, .. } => {
                    let Poll::Ready(polled) = Pin::new(&mut *body).poll_frame(cx) else { return Poll::Pending };
                    let fails = matches!(&polled, Some(Err(error)) if retry::may_repeat(error, tries.call()));
                    let State::Waiting { body, head, tries } = mem::replace(state, State::Ended) else { continue };
                    match polled {
                        Some(Err(error)) if fails => {
                            drop(body);
                            *state = State::Trying { next: Box::pin(tries.instead(error, head.clone())), head };
                        }
                        Some(Err(_)) | None => return Poll::Ready(polled),
                        Some(Ok(frame)) => {
                            *state = match frame.data_ref() {
                                Some(data) if data.is_empty() => State::Waiting { body, head, tries },
                                _ => State::Passing(body),
                            };
                            return Poll::Ready(Some(Ok(frame)));
                        }
                    }
                }
                State::Trying { next, .. } => {
                    let Poll::Ready(done) = next.as_mut().poll(cx) else { return Poll::Pending };
                    let State::Trying { head, .. } = mem::replace(state, State::Ended) else { continue };
                    match done {
                        Ok((body, tries)) => *state = State::Waiting { body, head, tries },
                        Err(error) => return Poll::Ready(Some(Err(error))),
                    }
                }
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Waiting { body, .. } | State::Passing(body) => body.is_end_stream(),
            State::Trying { .. } => false,
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Waiting { body, .. } | State::Passing(body) => body.size_hint(),
            State::Trying { .. } | State::Ended => SizeHint::default(),
        }
    }
}
