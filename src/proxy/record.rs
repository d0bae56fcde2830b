//! What one request will be remembered by: filled by the stages, told once at its end by `observe`.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::{HeaderValue, Method, uri::PathAndQuery};
use tokio::time::Instant;

use super::cached::Cached;
use crate::{
    error::Kind,
    fleet::Backend,
    listener::Peer,
    protocol::{
        coding::Coding,
        endpoint::{self, Dialect, Endpoint},
        usage::{Alike, Finish, Usage},
    },
};

/// One request's story. Every field has one writer: the stage it stands under. Where an answer was kept or shared, `cache`
/// writes what `upstream` would have.
#[derive(Debug)]
pub struct Record {
    // observe
    /// When the head was read.
    pub start: Instant,
    /// `x-request-id`: the client's own or made here.
    pub id: HeaderValue,
    pub method: Method,
    pub path: PathAndQuery,
    pub peer: Rc<Peer>,
    /// How errors are told on this path.
    pub dialect: Dialect,
    pub endpoint: Endpoint,
    // compress
    /// Until there is an answer, the coding it may leave in; then the one it leaves in.
    pub coding: Cell<Option<Coding>>,
    // normalize
    pub model: RefCell<Option<Arc<str>>>,
    pub stream: Cell<bool>,
    /// Bytes of the request's body, as far as they were read.
    pub received: Cell<u64>,
    /// Time spent reading the client's body: its own pace, not ours.
    pub receiving: Cell<Duration>,
    // cache
    pub cached: Cell<Cached>,
    /// Time it took to find a kept answer.
    pub looked_up: Cell<Option<Duration>>,
    // resume
    pub resumed: Cell<Resumed>,
    // route
    pub backend: RefCell<Option<Arc<Backend>>>,
    /// Tries made, the first included.
    pub attempts: Cell<u32>,
    /// Time spent waiting for a place.
    pub queued: Cell<Duration>,
    /// Why it went where it went.
    pub why: Cell<&'static str>,
    // upstream
    /// The attempt that answers was asked to tell its usage in the stream, by the client or by us.
    pub usage_asked: Cell<bool>,
    /// Time spent waiting for backends, up to the head of the answer that was taken.
    pub waited: Cell<Duration>,
    /// When the answer's head came.
    pub head: Cell<Option<Instant>>,
    /// When the first byte of its body came.
    pub first_byte: Cell<Option<Instant>>,
    /// When the newest byte of its body came.
    pub last_byte: Cell<Option<Instant>>,
    pub usage: Cell<Usage>,
    pub finish: Cell<Finish>,
    /// Of the newest bytes of a stream, where they are an event like the one before: what needs not be compared again.
    pub alike: Cell<Option<Alike>>,
    /// What cut the answer.
    pub cut: Cell<Option<Kind>>,
}

/// How an answer went on after it was cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// How often; 0 = it never was.
    pub times: u32,
    /// The newest way of it.
    pub mode: &'static str,
    /// Tokens that did not have to be computed again, at most.
    pub kept: u64,
    /// The longest it stood still.
    pub gap: Duration,
}

impl Record {
    /// A story that has just begun.
    pub fn new(start: Instant, id: HeaderValue, request: &http::Request<impl Sized>, peer: Rc<Peer>) -> Self {
        let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        Self {
            start,
            id,
            method: request.method().clone(),
            dialect: endpoint::dialect(path.path()),
            endpoint: Endpoint::of(request.method(), path.path()),
            path,
            peer,
            coding: Cell::default(),
            model: RefCell::default(),
            stream: Cell::default(),
            received: Cell::default(),
            receiving: Cell::default(),
            cached: Cell::default(),
            looked_up: Cell::default(),
            resumed: Cell::default(),
            backend: RefCell::default(),
            attempts: Cell::default(),
            queued: Cell::default(),
            why: Cell::new("-"),
            usage_asked: Cell::default(),
            waited: Cell::default(),
            head: Cell::default(),
            first_byte: Cell::default(),
            last_byte: Cell::default(),
            usage: Cell::default(),
            finish: Cell::default(),
            alike: Cell::default(),
            cut: Cell::default(),
        }
    }
}
