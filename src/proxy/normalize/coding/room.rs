//! What is decoded, as far as it came.
//!
//! Nobody knows how long it will be, and a buffer that doubles leaves all its former selves behind: in the allocator they
//! add up to more than the body. So it grows by large steps, up to the most that it may become: what of a buffer was never
//! written to takes addresses and no memory, and is given back at the end.

use bytes::Bytes;

/// The first buffer: most bodies fit.
const FIRST: usize = 64 * 1024;
/// The next is so many times as large.
const STEP: usize = 32;

#[derive(Debug)]
pub(super) struct Room {
    bytes: Vec<u8>,
    /// It never becomes longer.
    most: usize,
}

impl Room {
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most }
    }

    /// Bytes it holds, and will hold with `more`.
    pub(super) fn held(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn held_with(&self, more: usize) -> usize {
        self.bytes.len() + more
    }

    pub(super) fn push(&mut self, made: &[u8]) {
        let (length, capacity) = (self.held_with(made.len()), self.bytes.capacity());
        if length > capacity {
            let next = FIRST.max(capacity.saturating_mul(STEP)).min(self.most).max(length);
            self.bytes.reserve_exact(next - self.bytes.len());
        }
        self.bytes.extend_from_slice(made);
    }

    /// All of it.
    pub(super) fn whole(mut self) -> Bytes {
        self.bytes.shrink_to_fit();
        self.bytes.into()
    }
}
