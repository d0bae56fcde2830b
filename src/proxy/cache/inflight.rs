//! The answers under way, by key: whoever asks for one of them joins it, and only one leads.
//!
//! Sharded; every decision about a key is made under its shard's lock, the look into the sealed store included, so
//! that an answer that is being sealed is always in one of the two. What stands here may be kept: taken out, by a purge
//! or by another that leads in its place, it is not ([`Inflight::seal`]).
//!
//! The lock is the one that the parent module calls `sync::Mutex`: `tests/loom.rs` runs this very file under loom.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use super::sync::{Mutex, lock};

/// A power of two.
const SHARDS: usize = 32;

/// Keys and what is under way for them.
pub struct Inflight<K, L> {
    shards: Box<[Mutex<Shard<K, L>>]>,
}

type Shard<K, L> = HashMap<K, Arc<L>, BuildHasherDefault<AsIs>>;

/// How a call goes on.
#[derive(Debug)]
pub enum Entered<H, P, L> {
    /// It was sealed meanwhile.
    Sealed(H),
    /// It joined what is under way for the key of this index.
    Joined(usize, P),
    /// Nobody was there: it leads.
    Leads(Arc<L>),
}

impl<K: Hash + Eq + Clone, L> Inflight<K, L> {
    /// Nothing under way.
    pub fn new() -> Self {
        Self::with_shards(SHARDS)
    }

    /// With `shards` locks, a power of two.
    pub fn with_shards(shards: usize) -> Self {
        Self { shards: (0..shards).map(|_| Mutex::new(Shard::default())).collect() }
    }

    /// Joins an answer to one of `keys`, the first preferred; or finds it sealed; or leads for the first. All of them
    /// have the same hash. What cannot be joined any more is led anew. Without `share` it leads in any case.
    pub fn enter<H, P>(
        &self,
        keys: &[&K],
        share: bool,
        join: impl Fn(&Arc<L>) -> Option<P>,
        sealed: impl FnOnce() -> Option<H>,
        lead: impl FnOnce() -> Arc<L>,
    ) -> Entered<H, P, L> {
        let Some(&own) = keys.first() else { return Entered::Leads(lead()) };
        let mut shard = lock(self.shard(own));
        if share {
            for (index, key) in keys.iter().enumerate() {
                if let Some(place) = shard.get(*key).and_then(&join) {
                    return Entered::Joined(index, place);
                }
            }
            if let Some(sealed) = sealed() {
                return Entered::Sealed(sealed);
            }
        }
        let live = lead();
        let old = shard.insert(own.clone(), Arc::clone(&live));
        // What hangs on the old one may be much.
        drop(shard);
        drop(old);
        Entered::Leads(live)
    }

    /// Takes `live` out, and has it kept if it was there: `keep` runs before anybody can miss it in both places.
    pub fn seal(&self, key: &K, live: &Arc<L>, keep: impl FnOnce()) -> bool {
        self.take(key, live, keep)
    }

    /// Takes `live` out, if it is there: nobody joins it from here on, and it is not kept.
    pub fn remove(&self, key: &K, live: &Arc<L>) -> bool {
        self.take(key, live, || {})
    }

    fn take(&self, key: &K, live: &Arc<L>, before: impl FnOnce()) -> bool {
        let mut shard = lock(self.shard(key));
        let taken = match shard.entry(key.clone()) {
            Entry::Occupied(entry) if Arc::ptr_eq(entry.get(), live) => {
                before();
                Some(entry.remove_entry())
            }
            _ => None,
        };
        drop(shard);
        taken.is_some()
    }

    /// Takes out all that `matches`; gives how many. They go on for those who follow.
    pub fn purge(&self, matches: impl Fn(&L) -> bool) -> usize {
        let out = |shard: &Mutex<Shard<K, L>>| {
            let gone: Vec<_> = lock(shard).extract_if(|_, live| matches(live)).collect();
            gone.len()
        };
        self.shards.iter().map(out).sum()
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, L>> {
        let hash = BuildHasherDefault::<AsIs>::default().hash_one(key);
        // The map itself takes the low bits for the bucket and the top seven for the tag.
        &self.shards[(hash >> 32) as usize & (self.shards.len() - 1)]
    }
}

impl<K: Hash + Eq + Clone, L> Default for Inflight<K, L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K, L> std::fmt::Debug for Inflight<K, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflight").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

/// Keys bring a seeded hash of their own: it is taken as it is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
