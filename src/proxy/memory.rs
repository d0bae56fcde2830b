//! `limits.body_memory`: the request bodies that all workers together hold, so that they can be sent again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::error::{Error, Kind};

/// `limits.body_memory`: what all workers together hold of request bodies.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    used: AtomicUsize,
    limit: AtomicUsize,
}

/// A share of [`Memory`], given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    memory: Memory,
    bytes: usize,
}

impl Memory {
    /// At most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Pool { used: AtomicUsize::new(0), limit: AtomicUsize::new(limit) }))
    }

    /// A reload may move the limit; what is held already stays.
    pub fn set_limit(&self, limit: usize) {
        self.0.limit.store(limit, Ordering::Relaxed);
    }

    /// Bytes held now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// A share of nothing yet.
    pub fn reserve(&self) -> Reservation {
        Reservation { memory: self.clone(), bytes: 0 }
    }
}

impl Reservation {
    /// Makes the share `bytes` large.
    ///
    /// # Errors
    /// [`Kind::BodyMemory`] when all is in use.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let more = bytes.saturating_sub(self.bytes);
        let pool = &self.memory.0;
        let limit = pool.limit.load(Ordering::Relaxed);
        if pool.used.fetch_add(more, Ordering::Relaxed).saturating_add(more) > limit {
            pool.used.fetch_sub(more, Ordering::Relaxed);
            return Err(Error::new(
                Kind::BodyMemory,
                format!("request bodies hold all of limits.body_memory ({limit} bytes); try again, or raise it"),
            )
            .after(Duration::from_secs(1)));
        }
        self.bytes += more;
        Ok(())
    }
}

impl Reservation {
    /// Gives back what is above `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.memory.0.used.fetch_sub(less, Ordering::Relaxed);
        self.bytes -= less;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_given_back() {
        let memory = Memory::new(100);
        let mut a = memory.reserve();
        a.grow(60).unwrap();
        a.grow(40).unwrap();
        let mut b = memory.reserve();
        assert_eq!(b.grow(41).unwrap_err().kind(), Kind::BodyMemory);
        b.grow(40).unwrap();
        assert_eq!(memory.used(), 100);
        b.shrink(10);
        b.shrink(20);
        assert_eq!(memory.used(), 70);
        drop((a, b));
        assert_eq!(memory.used(), 0);
    }
}
