//! The data plane: the life of a request.
//!
//! ```text
//!  http::Request ─► observe ─► compress ─► normalize ─► cache ─► route ─► upstream ─► backend
//!                   (record)   (wish)      (Call)       (key)    (Attempt)
//!  http::Response ◄─ observe ◄─ compress ◄───────────── cache ◄─ route ◄── upstream ◄──┘
//!                   (log, end)  (encode)                (share)  (replace)  (meter, silence)
//! ```
//!
//! [`stack`] lists the stages in order. They do not know each other: they share the types of this folder, and each
//! is a [`tower::Service`] over the next. All of it lives on one worker thread and is not `Send`.

pub mod attempt;
pub mod cache;
pub mod cached;
pub mod call;
pub mod compress;
pub mod headers;
pub mod local;
pub mod memory;
pub mod normalize;
pub mod observe;
pub mod record;
pub mod respond;
pub mod resume;
pub mod route;
pub mod salt;
pub mod seen;
pub mod slim;
pub mod stack;
pub mod transcript;
pub mod upstream;

use std::{convert::Infallible, fmt, future::Future, pin::Pin, rc::Rc, task};

use http::HeaderName;

use crate::{
    body::{Body, Upload},
    listener::Peer,
};

/// What every stage answers with.
pub type Response = http::Response<Body>;

/// The id that ties client, log and backend together.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request as it comes off a connection.
#[derive(Debug)]
pub struct Inbound {
    /// Boxed: it passes through many hands before it is taken apart.
    pub request: Box<http::Request<Upload>>,
    pub peer: Rc<Peer>,
    /// What this connection adds to its requests.
    pub forwarded: Rc<headers::Forwarded>,
}

/// A request whose story has begun.
#[derive(Debug)]
pub struct Arrival {
    pub request: Box<http::Request<Upload>>,
    pub forwarded: Rc<headers::Forwarded>,
    pub record: Rc<record::Record>,
}

/// A request under way at the edge.
pub type EdgeFuture = Pin<Box<dyn Future<Output = Result<Response, Infallible>>>>;

/// The whole stack behind one pointer: the one box of a request's way.
#[derive(Clone)]
pub struct EdgeService(Rc<dyn Fn(Inbound) -> EdgeFuture>);

impl EdgeService {
    /// Boxes a stack.
    pub fn new<S>(stack: S) -> Self
    where
        S: tower::Service<Inbound, Response = Response, Error = Infallible, Future: 'static> + Clone + 'static,
    {
        Self(Rc::new(move |inbound| Box::pin(stack.clone().call(inbound))))
    }

    /// Answers one request.
    pub fn answer(&self, inbound: Inbound) -> EdgeFuture {
        (self.0)(inbound)
    }
}

impl tower::Service<Inbound> for EdgeService {
    type Response = Response;
    type Error = Infallible;
    type Future = EdgeFuture;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, inbound: Inbound) -> EdgeFuture {
        self.answer(inbound)
    }
}

impl fmt::Debug for EdgeService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EdgeService")
    }
}
