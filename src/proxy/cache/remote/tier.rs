//! What workers and the admin plane hold.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU32, AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Relaxed},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use redis::{Value, aio::MultiplexedConnection};
use tokio::{
    sync::{Notify, mpsc},
    time::timeout,
};

use super::{
    RemoteStats, Wanted,
    codec::{self, Clock, Refused},
    keeper::Keeper,
    seal::Sealer,
};
use crate::proxy::cache::{Entry, Purge};

/// How long a read may take. In the same network a Redis answers within one millisecond.
pub(super) const READ_WITHIN: Duration = Duration::from_millis(50);
/// Reads in a row that failed before no more are made.
pub(super) const FAILURES: u32 = 5;
/// Answers that wait to be written, and their bytes.
pub(super) const QUEUE: usize = 1024;
const QUEUED_BYTES: usize = 16 << 20;
/// Purges that wait for Redis; above, they become one of everything.
const PURGES: usize = 256;
/// What an entry may be larger than its body.
const HEAD: usize = 64 << 10;

/// The second tier, from any thread.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sealer: Sealer,
    pub(super) max_entry: usize,
    /// `None` while it is away.
    pub(super) connection: ArcSwapOption<MultiplexedConnection>,
    /// Reads in a row that failed.
    pub(super) failures: AtomicU32,
    /// Tells the keeper that the connection is of no use.
    pub(super) lost: Notify,
    pub(super) writes: mpsc::Sender<Write>,
    pub(super) queued: Arc<AtomicUsize>,
    pub(super) purges: Mutex<Purges>,
    pub(super) purged: Notify,
    pub(super) counts: Counts,
}

/// What is to be written.
#[derive(Debug)]
pub struct Waiting(Arc<Inner>, mpsc::Receiver<Write>);

impl Waiting {
    /// The one who writes it, over streams that `connect` opens.
    pub fn keeper<C>(self, connect: C) -> Keeper<C> {
        Keeper::new(self.0, self.1, connect)
    }
}

/// What is to be removed.
#[derive(Debug, Default)]
pub(super) struct Purges {
    /// Not done yet: what they match is not asked for.
    pub(super) waiting: Vec<(u64, Purge)>,
    /// Ever asked for. An answer that was read across one may be what it removes.
    begun: u64,
}

/// An answer on its way.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) digest: [u8; 32],
    pub(super) entry: Arc<Entry>,
    _room: Room,
}

/// Bytes taken of the queue, given back when dropped.
#[derive(Debug)]
struct Room(Arc<AtomicUsize>, usize);

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) away: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) unwritten: AtomicU64,
    pub(super) lost: AtomicU64,
}

impl Remote {
    /// With the key that all gateways have. What waits is for its keeper, on the control thread.
    pub fn new(key: &[u8; 32], max_entry: usize) -> (Self, Waiting) {
        let (writes, waiting) = mpsc::channel(QUEUE);
        let inner = Arc::new(Inner {
            sealer: Sealer::new(key),
            max_entry,
            connection: ArcSwapOption::empty(),
            failures: AtomicU32::new(0),
            lost: Notify::new(),
            writes,
            queued: Arc::default(),
            purges: Mutex::default(),
            purged: Notify::new(),
            counts: Counts::default(),
        });
        (Self(Arc::clone(&inner)), Waiting(inner, waiting))
    }

    /// The answer that some gateway stored. `None` after 50 ms at the latest.
    pub async fn get(&self, wanted: &Wanted<'_>) -> Option<Entry> {
        let inner = &*self.0;
        let Some(connection) = inner.connection.load_full() else {
            inner.counts.away.fetch_add(1, Relaxed);
            return None;
        };
        let Some(begun) = inner.purges().allow(wanted) else {
            inner.counts.misses.fetch_add(1, Relaxed);
            return None;
        };
        let name = inner.sealer.name(wanted);
        let stored = match timeout(READ_WITHIN, inner.read(&connection, &name)).await {
            Ok(Ok(stored)) => stored,
            Ok(Err(())) => {
                inner.counts.failed.fetch_add(1, Relaxed);
                inner.failed(&connection);
                return None;
            }
            Err(_) => {
                inner.counts.late.fetch_add(1, Relaxed);
                inner.failed(&connection);
                return None;
            }
        };
        inner.failures.store(0, Relaxed);
        inner.judge(stored, &name, wanted, begun)
    }

    /// Stores `entry` when there is time, for as long as it is fresh.
    pub fn put(&self, digest: [u8; 32], entry: &Arc<Entry>) {
        let inner = &*self.0;
        let is_away = inner.connection.load().is_none();
        if is_away || entry.body.len() > inner.max_entry || !inner.enqueue(digest, entry) {
            inner.counts.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Has all gateways' entries that `what` matches removed. From now on they are misses here, even while Redis is
    /// away: then it is done once it is back.
    pub fn purge(&self, what: &Purge) {
        self.0.purges().add(what);
        self.0.purged.notify_one();
    }

    pub fn stats(&self) -> RemoteStats {
        let (counts, count) = (&self.0.counts, |counter: &AtomicU64| counter.load(Relaxed));
        RemoteStats {
            connected: self.0.connection.load().is_some(),
            hits: count(&counts.hits),
            misses: count(&counts.misses),
            away: count(&counts.away),
            late: count(&counts.late),
            failed: count(&counts.failed),
            refused: count(&counts.refused),
            written: count(&counts.written),
            dropped: count(&counts.dropped),
            unwritten: count(&counts.unwritten),
            lost: count(&counts.lost),
        }
    }
}

impl Inner {
    /// What is stored under `name`; empty if nothing is. A range, so that whatever lies there has a bound.
    async fn read(&self, connection: &MultiplexedConnection, name: &str) -> Result<Bytes, ()> {
        let mut command = redis::cmd("GETRANGE");
        command.arg(name).arg(0).arg(self.max_entry + HEAD);
        match connection.clone().send_packed_command(&command).await {
            Ok(Value::BulkString(stored)) => Ok(stored.into()),
            Ok(Value::Nil) => Ok(Bytes::new()),
            Ok(_) | Err(_) => Err(()),
        }
    }

    fn judge(&self, stored: Bytes, name: &str, wanted: &Wanted<'_>, begun: u64) -> Option<Entry> {
        if stored.is_empty() {
            self.counts.misses.fetch_add(1, Relaxed);
            return None;
        }
        let entry = codec::decode(stored, name, &self.sealer, Clock::now())
            .inspect_err(|refused| {
                // Expired ones are met where clocks differ; the others are nobody's doing by chance.
                if *refused != Refused::Expired {
                    tracing::warn!(
                        ?refused,
                        "the second tier holds an entry that no gateway with this key stored there"
                    );
                }
            })
            .ok()
            .filter(|entry| entry.tenant == wanted.tenant && entry.shape == wanted.shape);
        let Some(entry) = entry else {
            self.counts.refused.fetch_add(1, Relaxed);
            return None;
        };
        let purged = self.purges().begun != begun;
        let counter = if purged { &self.counts.misses } else { &self.counts.hits };
        counter.fetch_add(1, Relaxed);
        (!purged).then_some(entry)
    }

    /// One more read that failed on `connection`.
    fn failed(&self, connection: &Arc<MultiplexedConnection>) {
        if self.failures.fetch_add(1, AcqRel) + 1 < FAILURES {
            return;
        }
        // Only that one: a newer one has done nothing wrong.
        let current = self.connection.load();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, connection)) {
            self.connection.compare_and_swap(&current, None);
            self.lost.notify_one();
        }
    }

    /// Whether there was room for it.
    fn enqueue(&self, digest: [u8; 32], entry: &Arc<Entry>) -> bool {
        let size = entry.weight();
        let taken = self.queued.fetch_update(AcqRel, Relaxed, |queued| {
            Some(queued + size).filter(|queued| *queued <= QUEUED_BYTES || queued == &size)
        });
        if taken.is_err() {
            return false;
        }
        let room = Room(Arc::clone(&self.queued), size);
        self.writes.try_send(Write { digest, entry: Arc::clone(entry), _room: room }).is_ok()
    }

    pub(super) fn purges(&self) -> MutexGuard<'_, Purges> {
        self.purges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Purges {
    fn add(&mut self, what: &Purge) {
        self.begun += 1;
        // One like it may be half done: this one begins anew.
        self.waiting.retain(|(_, other)| other != what);
        if self.waiting.len() >= PURGES || what.is_all() {
            self.waiting = vec![(self.begun, Purge::default())];
        } else {
            self.waiting.push((self.begun, what.clone()));
        }
    }

    /// How many were begun, unless one that waits is about what is wanted.
    fn allow(&self, wanted: &Wanted<'_>) -> Option<u64> {
        let is_purged = self.waiting.iter().any(|(_, what)| what.matches(wanted.model, wanted.tenant));
        (!is_purged).then_some(self.begun)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, AcqRel);
    }
}
