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
    /// When it was whole; earlier by the age it came with.
    pub stored: Instant,
    /// From then on it may stand in for an error only.
    pub expires: Instant,
    /// Not even that: its backend said so.
    pub strict: bool,
}

impl Entry {
    /// Bytes it holds in memory, its own fields included.
    pub fn weight(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64).sum();
        size_of::<Self>() + headers + held(self.body.len()) + self.model.as_ref().map_or(0, |model| model.len())
    }

    /// How old it is.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.stored)
    }

    /// Whether it may be given, or stand in for an error until `stale_for` after it was fresh.
    pub fn is_of_use(&self, now: Instant, stale_for: Duration) -> bool {
        self.fresh_for(now).is_some() || !self.strict && now.saturating_duration_since(self.expires) < stale_for
    }

    /// How long it is still fresh; `None` once it is not.
    pub fn fresh_for(&self, now: Instant) -> Option<Duration> {
        self.expires.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

/// What the allocator takes for `len` bytes (jemalloc 5, from its source): size classes lie a quarter of a power of two
/// apart, and from 16 KiB on each allocation has a page more, against cache conflicts.
pub(super) fn held(len: usize) -> usize {
    const LARGE: usize = 16 * 1024;
    const PAGE: usize = 4 * 1024;
    let step = if len > 128 { 1 << ((len - 1).ilog2() - 2) } else { 16 };
    let class = len.next_multiple_of(step);
    if class < LARGE { class } else { class + PAGE }
}

#[cfg(test)]
mod tests {
    use super::held;

    #[test]
    fn memory_is_counted_as_it_is_taken() {
        let classes = [(0, 0), (1, 16), (128, 128), (129, 160), (160, 160), (161, 192), (1025, 1280), (14_337, 20_480)];
        for (len, taken) in classes {
            assert_eq!(held(len), taken, "{len}");
        }
        assert_eq!(held(16 * 1024), 20 * 1024);
        assert_eq!(held(8 << 20), (8 << 20) + 4096);
        assert_eq!(held((8 << 20) + 1), (10 << 20) + 4096);
    }
}
