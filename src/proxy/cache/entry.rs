//! A kept answer, and what is known of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use tokio::time::Instant;

use crate::protocol::endpoint::Endpoint;
pub use crate::proxy::transcript::Facts;

/// How an answer is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// One JSON document.
    Plain,
    /// Server-sent events.
    Stream,
}

impl Shape {
    /// The shape of a call that did or did not ask for a stream.
    pub fn of(stream: bool) -> Self {
        if stream { Self::Stream } else { Self::Plain }
    }

    /// The one that this is not.
    pub fn other(self) -> Self {
        match self {
            Self::Plain => Self::Stream,
            Self::Stream => Self::Plain,
        }
    }
}

/// Who asked, as far as answers are kept apart: all of one tenant share, nobody else does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tenant(pub [u8; 16]);

/// An answer that ended whole and may be given again. Its status is 200.
#[derive(Debug)]
pub struct Entry {
    pub endpoint: Endpoint,
    pub shape: Shape,
    /// Those that may be given again; without framing, ids, dates and limits.
    pub headers: HeaderMap,
    /// Without a content coding; the model's own name in it.
    pub body: Bytes,
    pub facts: Facts,
    pub model: Option<Arc<str>>,
    pub tenant: Tenant,
    /// When it was whole.
    pub stored: Instant,
    /// From then on it may stand in for an error only.
    pub expires: Instant,
}

impl Entry {
    /// Bytes it holds in memory, its own fields included.
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        size_of::<Self>() + headers + self.body.len() + self.model.as_ref().map_or(0, |model| model.len())
    }

    /// How long ago it was whole.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    /// How long it is still fresh; `None` once it is not.
    pub fn fresh_for(&self, now: Instant) -> Option<Duration> {
        self.expires.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}
