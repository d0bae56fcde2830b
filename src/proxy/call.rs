//! A [`Call`]: one request as the stages below `normalize` see it.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use tokio::time::Instant;

use super::record::Record;
use crate::{body::Body, protocol::endpoint::Endpoint};

/// A normalised request. Made once by `normalize`, shared (not copied) by the attempts that `route` makes of it.
#[derive(Debug)]
pub struct Call {
    pub endpoint: Endpoint,
    pub method: Method,
    /// As it came, without a backend's base path.
    pub path: PathAndQuery,
    /// Ready for a backend: hop-by-hop fields gone, ids, `Via` and forwarding fields set. `Host`,
    /// framing and a backend's own credentials are added per attempt.
    pub headers: HeaderMap,
    pub payload: Payload,
    /// The model to route by, aliases resolved; `None` when the request names none.
    pub model: Option<Arc<str>>,
    /// The alias the client used for it: answers are renamed back.
    pub alias: Option<Arc<str>>,
    /// Whether a streamed answer was asked for.
    pub stream: bool,
    /// The backend that holds the state this call refers to (a response id).
    pub pinned: Option<Arc<str>>,
    /// When the client no longer wants the answer: its own deadline or `timeouts.total`.
    pub deadline: Instant,
    /// Known endpoints and idempotent methods may be sent twice (CONTRACT: before the first byte of a body).
    pub repeatable: bool,
    /// What is told of it at its end.
    pub record: Rc<Record>,
}

/// The request's content.
#[derive(Debug)]
pub enum Payload {
    /// Read whole, so that it can be sent again. The memory is counted against `limits.body_memory`.
    Whole(Bytes),
    /// Streamed through; taken by the first attempt.
    Upload(RefCell<Option<Body>>),
}

impl Payload {
    /// A body for the next attempt; `None` when a streamed one is gone already.
    pub fn next(&self) -> Option<Body> {
        match self {
            Self::Whole(bytes) => Some(Body::whole(bytes.clone())),
            Self::Upload(body) => body.borrow_mut().take(),
        }
    }
}
