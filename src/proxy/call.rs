//! A [`Call`]: one request as the stages below `normalize` see it.

use std::{cell::RefCell, fmt, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use http_body::Body as _;
use tokio::time::Instant;

use super::{headers, memory::Reservation, record::Record, salt::Salt, seen::Said};
use crate::{body::Body, error::Error, fleet::Backend, protocol::endpoint::Endpoint};

/// A normalised request. Made once by `normalize`, shared (not copied) by the attempts that `route` makes of it.
#[derive(Debug)]
pub struct Call {
    pub endpoint: Endpoint,
    pub method: Method,
    /// As it came, without a backend's base path.
    pub path: PathAndQuery,
    /// The client's own, hop-by-hop fields gone. `Host`, framing and a backend's own credentials are added per attempt.
    pub headers: HeaderMap,
    /// What the gateway adds: ids, `Via` and forwarding fields. They take the place of fields of the same name in
    /// `headers`, where putting them in would cost a hash each.
    pub added: headers::Added,
    pub payload: Payload,
    /// The model to route by, aliases resolved; `None` when the request names none.
    pub model: Option<Arc<str>>,
    /// The alias the client used for it: answers are renamed back.
    pub alias: Option<Arc<str>>,
    /// The payload is not what came.
    pub edited: bool,
    /// What keeps its tenant apart from others in a backend's prefix cache, where they are to be.
    pub salt: Option<Salt>,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// What else its body says of the answer it wants.
    pub asked: Asked,
    /// Its body was read before.
    pub said: Option<Rc<Said>>,
    /// The answer is shared: its stream is to tell its usage where the engine can be asked for it.
    pub ask_usage: bool,
    /// The backend that holds the state this call refers to (a response id).
    pub pinned: Option<Arc<str>>,
    /// Ids of backends it should rather not go to: they cut the answer that it continues.
    pub avoid: Vec<u64>,
    /// Where what is sent depends on who gets it.
    pub tailor: Option<Rc<dyn Tailor>>,
    /// When the client no longer wants the answer: its own deadline or `timeouts.total`.
    pub deadline: Instant,
    /// How long the client waits for a place at a backend, where it says so.
    pub wait_until: Option<Instant>,
    /// A WebSocket handshake: the answer's 101 joins both sides.
    pub tunnel: bool,
    /// Known endpoints and idempotent methods may be sent twice (CONTRACT: before the first byte of a body).
    pub repeatable: bool,
    /// What is told of it at its end.
    pub record: Rc<Record>,
}

/// Makes what one backend is sent.
pub trait Tailor: fmt::Debug {
    /// For an attempt at `backend`; `None` = the call as it is.
    ///
    /// # Errors
    /// When this backend cannot take it in any form.
    fn fit(&self, backend: &Backend) -> Result<Option<Fitted>, Error>;
}

/// What takes the place of a call's own path and content.
#[derive(Debug)]
pub struct Fitted {
    /// `None` = the call's.
    pub path: Option<PathAndQuery>,
    pub body: Bytes,
}

/// What a body says of the answer it wants, as far as that decides whether the answer may be kept or shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// An explicit `temperature` of zero.
    pub greedy: bool,
    /// A `seed` that engines take as it is.
    pub seeded: bool,
    /// `store`, where it is said.
    pub store: Option<bool>,
    /// `background`, `conversation` or `previous_response_id`: the answer is, or depends on, a backend's state.
    pub stateful: bool,
    /// `stream_options.include_usage`
    pub usage: bool,
}

/// The request's content.
#[derive(Debug)]
pub struct Payload(Kept);

#[derive(Debug)]
enum Kept {
    Empty,
    /// Read whole, so that it can be sent again; its memory is counted until the call is over.
    Whole(Bytes, #[expect(dead_code, reason = "held for its drop")] Option<Reservation>),
    /// Streamed through; taken by the first attempt.
    Upload(RefCell<Option<Body>>),
}

impl Payload {
    /// Content that was read whole, and the share of `limits.body_memory` it holds.
    pub fn whole(bytes: Bytes, share: Reservation) -> Self {
        Self(Kept::Whole(bytes, Some(share)))
    }

    /// Content that the gateway made itself.
    pub fn made(bytes: Bytes) -> Self {
        Self(Kept::Whole(bytes, None))
    }

    /// Content that passes once.
    pub fn upload(body: Body) -> Self {
        Self(if body.is_end_stream() { Kept::Empty } else { Kept::Upload(RefCell::new(Some(body))) })
    }

    /// A body for the next attempt; `None` when a streamed one is gone already.
    pub fn next(&self) -> Option<Body> {
        match &self.0 {
            Kept::Empty => Some(Body::empty()),
            Kept::Whole(bytes, _) => Some(Body::whole(bytes.clone())),
            Kept::Upload(body) => body.borrow_mut().take(),
        }
    }

    /// A try that took nothing of a streamed body gives it back.
    pub fn give_back(&self, body: Body) {
        if let Kept::Upload(kept) = &self.0 {
            kept.replace(Some(body));
        }
    }

    /// Whether it can be sent again.
    pub fn lasts(&self) -> bool {
        !matches!(self.0, Kept::Upload(_))
    }

    /// The content, where it was read.
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Kept::Whole(bytes, _) => Some(bytes),
            _ => None,
        }
    }
}
