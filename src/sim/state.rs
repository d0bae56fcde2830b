//! What the connections of one sim share: counters, slots, models, the requests it saw, orders to its main task.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::{Config, script::Script};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub version: &'static str,
    /// In order, names spelt as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The head's own bytes; empty for HTTP/2.
    pub head: Bytes,
    pub body: Bytes,
}

impl Request {
    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a query parameter, as written.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// The first header of this name, in any case of letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }
}

/// A sim's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests that hold a slot.
    pub running: u64,
    /// Requests that wait for one.
    pub waiting: u64,
    /// Answers that went out whole.
    pub served: u64,
    /// Requests whose client left before the end.
    pub cancelled: u64,
    /// Requests that a fault or a kill ended.
    pub failed: u64,
    /// Tokens sent.
    pub tokens: u64,
    /// Tokens of prompts read.
    pub prompt_tokens: u64,
    /// Requests of any kind that came, health and model lists included.
    pub requests: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open.
    pub open: u64,
    /// Health requests answered.
    pub health: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) running: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) served: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) tokens: AtomicU64,
    pub(crate) prompt_tokens: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) accepted: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) health: AtomicU64,
}

/// What a connection or a handle asks of the main task.
#[derive(Debug)]
pub(crate) enum Order {
    /// Every socket closes, nothing listens.
    Kill(Done),
    /// Listens again on the same port.
    Revive(Done),
    /// Nothing listens for so long; open connections stay.
    Refuse(Duration),
    /// Stands still until thawed.
    Freeze,
    /// The sim ends.
    Stop,
}

/// Told when an order is carried out.
pub(crate) type Done = Option<std::sync::mpsc::SyncSender<std::io::Result<()>>>;

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) counters: Counters,
    pub(crate) script: Script,
    pub(crate) orders: mpsc::Sender<Order>,
    /// Its number goes up with every release of held requests.
    pub(crate) released: watch::Sender<u64>,
    /// Stands at `false` while dead.
    pub(crate) alive: watch::Sender<bool>,
    changed: Notify,
    dying: AtomicBool,
    frozen: Mutex<bool>,
    thawed: Condvar,
    seats: Arc<Semaphore>,
    models: Mutex<Models>,
    seen: Mutex<Seen>,
    stored: Mutex<VecDeque<(String, String)>>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Models {
    lists: u64,
    added: Vec<String>,
    removed: HashSet<String>,
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<Arc<Request>>,
    by_path: HashMap<String, Arc<Request>>,
}

/// Paths whose last request is kept.
const MOST_PATHS: usize = 64;
/// Answers of `/v1/responses` that can be asked for again.
const MOST_STORED: usize = 256;

impl Shared {
    pub(crate) fn new(config: Config, orders: mpsc::Sender<Order>) -> Self {
        let slots = if config.slots == 0 { Semaphore::MAX_PERMITS } else { config.slots };
        Self {
            script: Script::new(config.faults.clone(), config.seed),
            counters: Counters::default(),
            orders,
            released: watch::Sender::new(0),
            alive: watch::Sender::new(true),
            changed: Notify::new(),
            dying: AtomicBool::new(false),
            frozen: Mutex::new(false),
            thawed: Condvar::new(),
            seats: Arc::new(Semaphore::new(slots)),
            models: Mutex::default(),
            seen: Mutex::default(),
            stored: Mutex::default(),
            next: AtomicU64::new(0),
            config,
        }
    }

    /// A number nobody else gets.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    pub(crate) fn add(&self, counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
        self.changed.notify_waiters();
    }

    pub(crate) fn take(&self, counter: &AtomicU64) {
        counter.fetch_sub(1, Relaxed);
        self.changed.notify_waiters();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let c = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Snapshot {
            running: read(&c.running),
            waiting: read(&c.waiting),
            served: read(&c.served),
            cancelled: read(&c.cancelled),
            failed: read(&c.failed),
            tokens: read(&c.tokens),
            prompt_tokens: read(&c.prompt_tokens),
            requests: read(&c.requests),
            accepted: read(&c.accepted),
            open: read(&c.open),
            health: read(&c.health),
        }
    }

    /// Waits until the counters are as `wanted` says.
    pub(crate) async fn until(&self, wanted: impl Fn(&Snapshot) -> bool) -> Snapshot {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let now = self.snapshot();
            if wanted(&now) {
                return now;
            }
            changed.await;
        }
    }

    /// From now on what ends was killed, and did not leave.
    pub(crate) fn set_dying(&self, dying: bool) {
        self.dying.store(dying, Relaxed);
    }

    pub(crate) fn set_frozen(&self, frozen: bool) {
        *lock(&self.frozen) = frozen;
        self.thawed.notify_all();
    }

    /// Blocks the thread of the sim, and so all of it, while it is frozen.
    pub(crate) fn stand_still(&self) {
        let frozen = lock(&self.frozen);
        drop(self.thawed.wait_while(frozen, |frozen| *frozen).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits for a slot.
    pub(crate) async fn seat(self: &Arc<Self>) -> Seat {
        let mut queued = Queued { shared: Arc::clone(self), seated: false };
        self.add(&self.counters.waiting, 1);
        let permit = Arc::clone(&self.seats).acquire_owned().await.ok();
        queued.seated = true;
        drop(queued);
        self.add(&self.counters.running, 1);
        Seat { shared: Arc::clone(self), end: Ending::Left, _permit: permit }
    }

    fn left(&self) {
        let counter = if self.dying.load(Relaxed) { &self.counters.failed } else { &self.counters.cancelled };
        self.add(counter, 1);
    }

    // === models ===

    /// The model list as one that asks for it sees it; counts for late models.
    pub(crate) fn list_models(&self) -> Vec<String> {
        let names = self.models();
        lock(&self.models).lists += 1;
        names
    }

    /// The models that are there now.
    pub(crate) fn models(&self) -> Vec<String> {
        let models = lock(&self.models);
        let late = self.config.late_models.iter().filter(|late| models.lists >= late.after).map(|late| &late.name);
        let mut names: Vec<String> = Vec::new();
        for name in self.config.models.iter().chain(late).chain(&models.added) {
            if !models.removed.contains(name) && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    pub(crate) fn add_model(&self, name: &str) {
        let mut models = lock(&self.models);
        models.removed.remove(name);
        if models.added.len() < MOST_PATHS {
            models.added.push(name.to_owned());
        }
    }

    pub(crate) fn remove_model(&self, name: &str) {
        let mut models = lock(&self.models);
        models.added.retain(|known| known != name);
        if models.removed.len() < MOST_PATHS {
            models.removed.insert(name.to_owned());
        }
    }

    // === requests and answers that can be asked for again ===

    pub(crate) fn saw(&self, request: &Arc<Request>, watched: bool) {
        let mut seen = lock(&self.seen);
        if !watched {
            seen.last = Some(Arc::clone(request));
        }
        if seen.by_path.len() < MOST_PATHS || seen.by_path.contains_key(request.path()) {
            seen.by_path.insert(request.path().to_owned(), Arc::clone(request));
        }
    }

    pub(crate) fn last(&self, path: Option<&str>) -> Option<Arc<Request>> {
        let seen = lock(&self.seen);
        match path {
            Some(path) => seen.by_path.get(path).cloned(),
            None => seen.last.clone(),
        }
    }

    pub(crate) fn store(&self, id: &str, answer: String) {
        let mut stored = lock(&self.stored);
        if stored.len() == MOST_STORED {
            stored.pop_front();
        }
        stored.push_back((id.to_owned(), answer));
    }

    pub(crate) fn stored(&self, id: &str) -> Option<String> {
        lock(&self.stored).iter().find(|(known, _)| known == id).map(|(_, answer)| answer.clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stands in the queue; leaves it when dropped.
struct Queued {
    shared: Arc<Shared>,
    seated: bool,
}

impl Drop for Queued {
    fn drop(&mut self) {
        // Counted before it leaves: who sees it gone sees how.
        if !self.seated {
            self.shared.left();
        }
        self.shared.take(&self.shared.counters.waiting);
    }
}

/// One slot, held by one request until its answer ends or its client leaves.
#[derive(Debug)]
pub(crate) struct Seat {
    shared: Arc<Shared>,
    end: Ending,
    _permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Left,
    Served,
    Failed,
}

impl Seat {
    /// The answer went out whole.
    pub(crate) fn served(mut self) {
        self.end = Ending::Served;
    }

    /// A fault ended it.
    pub(crate) fn failed(mut self) {
        self.end = Ending::Failed;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let counters = &self.shared.counters;
        match self.end {
            Ending::Left => self.shared.left(),
            Ending::Served => self.shared.add(&counters.served, 1),
            Ending::Failed => self.shared.add(&counters.failed, 1),
        }
        self.shared.take(&counters.running);
    }
}

/// Counts one open connection.
pub(crate) struct Connected(Arc<Shared>);

impl Connected {
    pub(crate) fn new(shared: &Arc<Shared>) -> Self {
        shared.add(&shared.counters.accepted, 1);
        shared.add(&shared.counters.open, 1);
        Self(Arc::clone(shared))
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.take(&self.0.counters.open);
    }
}
