//! What is decoded, as far as it came.
//!
//! Nobody knows how long it will be, and a buffer that grows leaves all its former selves behind: in the allocator they
//! add up to more than the body. So it is kept in pieces, which are joined once at the end, each let go when it is
//! copied. Most bodies are one piece.

use std::mem;

use bytes::Bytes;

/// The first piece: most bodies fit.
const FIRST: usize = 64 * 1024;
/// No piece is larger: this much is copied at a time.
const LARGEST: usize = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Pieces {
    full: Vec<Vec<u8>>,
    last: Vec<u8>,
    /// Allocated for all of them.
    held: usize,
    length: usize,
}

impl Pieces {
    /// Bytes it holds, and will hold with `more`.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn held_with(&self, more: usize) -> usize {
        if more <= self.room() { self.held } else { self.held + self.next(more) }
    }

    fn room(&self) -> usize {
        self.last.capacity() - self.last.len()
    }

    /// The size of the next piece, which is to take what is left of `more`.
    fn next(&self, more: usize) -> usize {
        self.length.clamp(FIRST, LARGEST).max(more - self.room())
    }

    pub(super) fn push(&mut self, made: &[u8]) {
        let next = if made.len() <= self.room() { 0 } else { self.next(made.len()) };
        let (fits, rest) = made.split_at(made.len().min(self.room()));
        self.last.extend_from_slice(fits);
        self.length += made.len();
        if next > 0 {
            let full = mem::replace(&mut self.last, Vec::with_capacity(next));
            self.full.push(full);
            self.held += next;
            self.last.extend_from_slice(rest);
        }
    }

    /// All of it in one; other requests have their turn after each piece.
    pub(super) async fn join(mut self) -> Bytes {
        if self.full.iter().all(Vec::is_empty) {
            self.last.shrink_to_fit();
            return self.last.into();
        }
        self.full.push(self.last);
        let mut whole = Vec::with_capacity(self.length);
        for piece in self.full {
            whole.extend_from_slice(&piece);
            drop(piece);
            tokio::task::yield_now().await;
        }
        whole.into()
    }
}
