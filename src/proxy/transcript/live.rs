//! `resume.memory`: what all running answers together hold.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Bytes that running answers hold, and how many they may. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Live(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    used: AtomicU64,
    limit: AtomicU64,
}

impl Live {
    /// At most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Pool { used: AtomicU64::new(0), limit: AtomicU64::new(limit) }))
    }

    /// A reload may move the limit; what is held already stays.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Bytes held now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    /// Takes `bytes`, unless that is too much.
    pub fn reserve(&self, bytes: usize) -> bool {
        let bytes = bytes as u64;
        if self.0.used.fetch_add(bytes, Relaxed).saturating_add(bytes) <= self.0.limit.load(Relaxed) {
            return true;
        }
        self.0.used.fetch_sub(bytes, Relaxed);
        false
    }

    /// Takes `bytes` in any case: they are there already.
    pub(super) fn count(&self, bytes: usize) {
        self.0.used.fetch_add(bytes as u64, Relaxed);
    }

    /// Gives `bytes` back.
    pub fn release(&self, bytes: usize) {
        self.0.used.fetch_sub(bytes as u64, Relaxed);
    }
}
