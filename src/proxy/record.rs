//! What one request will be remembered by: filled by the stages, told once at its end by `observe`.

use std::{
    cell::{Cell, RefCell},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{error::Kind, protocol::endpoint::Endpoint};

/// One request's story. Every field has one writer: the stage it is named for.
#[derive(Debug)]
pub struct Record {
    /// When the head was read.
    pub start: Instant,
    /// `x-request-id`.
    pub id: RefCell<http::HeaderValue>,
    // normalize
    pub endpoint: Cell<Endpoint>,
    pub model: RefCell<Option<Arc<str>>>,
    pub stream: Cell<bool>,
    // route
    pub backend: RefCell<Option<Arc<crate::fleet::Backend>>>,
    pub attempts: Cell<u32>,
    pub queued: Cell<Duration>,
    /// Why it went where it went.
    pub why: Cell<&'static str>,
    // upstream
    /// When the first attempt left for a backend.
    pub sent: Cell<Option<Instant>>,
    /// When the answer's head came.
    pub head: Cell<Option<Instant>>,
    /// When the first byte of its body came.
    pub first_byte: Cell<Option<Instant>>,
    pub usage: Cell<crate::protocol::usage::Usage>,
    pub finish: Cell<crate::protocol::usage::Finish>,
    /// What cut the answer.
    pub cut: Cell<Option<Kind>>,
}
