//! Kept answers in memory, up to a capacity; the least recently used go first.
//!
//! moka's TinyLFU would refuse new answers once it is full, so the order is plain LRU. Two of its habits cost memory and
//! are bounded here. Its maintenance is lazy: it is asked for whenever `PENDING_AT_MOST` bytes were put. And what it
//! removed stays in an epoch's garbage until other threads let go: so it holds slots, and a slot is emptied at once.
//!
//! An answer's encoded twins stand in its slot. moka weighs what is put, so a twin is kept by putting the answer anew, in
//! a slot that weighs more: once for each coding of an answer, where room set aside for twins that may never come would be
//! lost to other answers.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use moka::{notification::RemovalCause, policy::EvictionPolicy, sync::Cache};
use tokio::time::Instant;

use super::{Entry, Key, Tenant, entry::held};
use crate::protocol::coding::Coding;

#[cfg(test)]
mod tests;

/// What the map, its order and the allocator take for an entry beside key and answer. Measured with jemalloc: resident
/// memory of 33,000 entries of 1.2 KiB, less their own bytes.
const OVERHEAD: usize = 600;
/// Bytes that may be put before what is over the capacity goes. Small answers are looked after by moka itself, after
/// 64 of them.
const PENDING_AT_MOST: u64 = 1 << 20;

/// Keys are changed one at a time, in this many groups.
const CHANGING: usize = 16;

/// The kept answers of all workers.
pub struct Store {
    answers: Cache<Key, Arc<Slot>, Slots>,
    capacity: u64,
    /// Bytes put since the last maintenance that was asked for.
    pending: AtomicU64,
    pending_at_most: u64,
    counts: Arc<Counts>,
    /// Held while a key's answer is put, put anew or purged: nothing comes back that was replaced or purged meanwhile.
    changing: [Mutex<()>; CHANGING],
}

/// The place of one answer; empty once it was removed.
struct Slot {
    weight: u32,
    answer: Mutex<Option<Arc<Entry>>>,
    twins: Twins,
    /// The same answer stands in a newer slot.
    moved: AtomicBool,
}

/// An answer in other codings: as it is kept, and without its usage event, as most readers of a stream get it.
type Twins = [[Option<Bytes>; 2]; Coding::ALL.len()];

#[derive(Debug, Default)]
struct Counts {
    stored: AtomicU64,
    evicted: AtomicU64,
    replaced: AtomicU64,
    expired: AtomicU64,
    purged: AtomicU64,
}

/// What is to be forgotten: all, or what belongs to a model, a tenant, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Purge {
    pub model: Option<Arc<str>>,
    pub tenant: Option<Tenant>,
}

/// A look at the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub entries: u64,
    /// Memory in use, keys and order included.
    pub bytes: u64,
    pub capacity: u64,
    /// Answers ever put.
    pub stored: u64,
    /// Those that went for want of room.
    pub evicted: u64,
    /// Those that a newer one took the place of.
    pub replaced: u64,
    /// Those that were met when nobody might have them any more.
    pub expired: u64,
    pub purged: u64,
}

/// How much of the store belongs to somebody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub entries: u64,
    pub bytes: u64,
}

/// The store by owners.
#[derive(Clone, Debug, Default)]
pub struct Shares {
    pub models: HashMap<Option<Arc<str>>, Share>,
    pub tenants: HashMap<Tenant, Share>,
}

impl Store {
    /// At most `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        let counts = Arc::<Counts>::default();
        let told = Arc::clone(&counts);
        // No initial capacity: growing by segments costs no more, and an idle gateway holds nothing.
        let answers = Cache::builder()
            .max_capacity(capacity)
            .weigher(|_: &Key, slot: &Arc<Slot>| slot.weight)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |_, slot, cause| {
                slot.empty();
                match cause {
                    RemovalCause::Size => told.evicted.fetch_add(1, Relaxed),
                    RemovalCause::Replaced if slot.moved.load(Relaxed) => 0,
                    RemovalCause::Replaced => told.replaced.fetch_add(1, Relaxed),
                    // Counted by who did it; moka's own clock is not used.
                    RemovalCause::Explicit | RemovalCause::Expired => 0,
                };
            })
            .build_with_hasher(Slots);
        let pending_at_most = PENDING_AT_MOST.min(capacity / 16);
        Self { answers, capacity, pending: AtomicU64::new(0), pending_at_most, counts, changing: Default::default() }
    }

    /// The answer kept under `key`, also one that is not fresh any more, unless it expired `stale_for` ago or earlier,
    /// or may not be given then at all: such is dropped.
    pub fn get(&self, key: &Key, now: Instant, stale_for: Duration) -> Option<Arc<Entry>> {
        let slot = self.answers.get(key)?;
        let answer = match slot.answer() {
            // It moved between the two looks.
            None if slot.moved.load(Relaxed) => self.answers.get(key)?.answer()?,
            answer => answer?,
        };
        if answer.is_of_use(now, stale_for) {
            return Some(answer);
        }
        // A newer one may have come meanwhile; it would be fresh for long, and is a miss once.
        if self.answers.remove(key).is_some() {
            self.counts.expired.fetch_add(1, Relaxed);
        }
        None
    }

    /// How many were ever put. Where it has not moved, a second look finds what the first did.
    pub fn puts(&self) -> u64 {
        self.counts.stored.load(Relaxed)
    }

    /// Keeps `entry`; one that is under `key` already goes.
    pub fn put(&self, key: Key, entry: Arc<Entry>) {
        let weight = key.weight() + entry.weight() + OVERHEAD;
        let Ok(weight) = u32::try_from(weight) else { return };
        if u64::from(weight) > self.capacity {
            return;
        }
        let slot =
            Slot { weight, answer: Mutex::new(Some(entry)), twins: Twins::default(), moved: AtomicBool::new(false) };
        {
            let _changing = self.changing(&key);
            self.answers.insert(key, Arc::new(slot));
        }
        self.counts.stored.fetch_add(1, Relaxed);
        self.maintain(weight);
    }

    /// `entry` in `coding`, its usage event taken out or not, if it is under `key` and was offered before.
    pub fn twin(&self, key: &Key, entry: &Arc<Entry>, coding: Coding, stripped: bool) -> Option<Bytes> {
        let slot = self.answers.get(key)?;
        slot.holds(entry).then(|| slot.twins[coding as usize][usize::from(stripped)].clone())?
    }

    /// Keeps `twin`, which is `entry` in `coding`, beside it, as long as it is kept itself.
    pub fn offer(&self, key: &Key, entry: &Arc<Entry>, coding: Coding, stripped: bool, twin: Bytes) {
        let more = held(twin.len());
        {
            let _changing = self.changing(key);
            let Some(old) = self.answers.get(key).filter(|old| old.holds(entry)) else { return };
            let weight = u32::try_from(more).ok().and_then(|more| old.weight.checked_add(more));
            let Some(weight) = weight.filter(|weight| u64::from(*weight) <= self.capacity) else { return };
            let mut twins = old.twins.clone();
            if twins[coding as usize][usize::from(stripped)].replace(twin).is_some() {
                return;
            }
            let slot =
                Slot { weight, answer: Mutex::new(Some(Arc::clone(entry))), twins, moved: AtomicBool::new(false) };
            old.moved.store(true, Relaxed);
            self.answers.insert(key.clone(), Arc::new(slot));
        }
        self.maintain(u32::try_from(more).unwrap_or(u32::MAX));
    }

    fn changing(&self, key: &Key) -> MutexGuard<'_, ()> {
        // The remainder is far below any usize.
        let group = (key.slot() % CHANGING as u64) as usize;
        self.changing[group].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for maintenance once enough was put.
    fn maintain(&self, weight: u32) {
        let weight = u64::from(weight);
        if self.pending.fetch_add(weight, Relaxed) + weight > self.pending_at_most {
            self.pending.store(0, Relaxed);
            self.answers.run_pending_tasks();
        }
    }

    /// Forgets every answer that `what` matches and that was put before this call, and says how many. About 2 µs each.
    pub fn purge(&self, what: &Purge) -> u64 {
        let mut purged = 0;
        // It meets every key that was there when it began; whatever is under such a key goes.
        for (key, slot) in &self.answers {
            let Some(answer) = slot.answer() else { continue };
            if what.matches(answer.model.as_deref(), answer.tenant) {
                let _changing = self.changing(&key);
                purged += u64::from(self.answers.remove(&*key).is_some());
            }
        }
        self.answers.run_pending_tasks();
        self.counts.purged.fetch_add(purged, Relaxed);
        purged
    }

    /// Sizes and counts, for metrics and the admin plane.
    pub fn stats(&self) -> Stats {
        self.answers.run_pending_tasks();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        Stats {
            entries: self.answers.entry_count(),
            bytes: self.answers.weighted_size(),
            capacity: self.capacity,
            stored: count(&self.counts.stored),
            evicted: count(&self.counts.evicted),
            replaced: count(&self.counts.replaced),
            expired: count(&self.counts.expired),
            purged: count(&self.counts.purged),
        }
    }

    /// What belongs to whom. Looks at every entry.
    pub fn shares(&self) -> Shares {
        let mut shares = Shares::default();
        for (_, slot) in &self.answers {
            let Some(answer) = slot.answer() else { continue };
            shares.models.entry(answer.model.clone()).or_default().add(slot.weight);
            shares.tenants.entry(answer.tenant).or_default().add(slot.weight);
        }
        shares
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("capacity", &self.capacity).field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl Slot {
    fn answer(&self) -> Option<Arc<Entry>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn holds(&self, entry: &Arc<Entry>) -> bool {
        self.answer().is_some_and(|answer| Arc::ptr_eq(&answer, entry))
    }

    fn empty(&self) {
        let gone = self.answer.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Freed outside the lock.
        drop(gone);
    }
}

impl Share {
    fn add(&mut self, weight: u32) {
        self.entries += 1;
        self.bytes += u64::from(weight);
    }
}

impl Purge {
    /// Whether an answer of `model`, for `tenant`, is among them.
    pub fn matches(&self, model: Option<&str>, tenant: Tenant) -> bool {
        self.model.as_deref().is_none_or(|wanted| model == Some(wanted))
            && self.tenant.is_none_or(|wanted| wanted == tenant)
    }

    /// Whether it is everything.
    pub fn is_all(&self) -> bool {
        self.model.is_none() && self.tenant.is_none()
    }
}

/// Keys are hashed when they are made, with a seed: the map takes that hash.
#[derive(Clone, Copy, Debug)]
struct Slots;

/// What [`Slots`] builds.
#[derive(Debug, Default)]
struct SlotHasher(u64);

impl BuildHasher for Slots {
    type Hasher = SlotHasher;

    fn build_hasher(&self) -> SlotHasher {
        SlotHasher::default()
    }
}

impl Hasher for SlotHasher {
    fn write_u64(&mut self, slot: u64) {
        self.0 = slot;
    }

    /// Not what a [`Key`] writes; folded in all the same.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
