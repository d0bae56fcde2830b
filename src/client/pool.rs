//! One worker's connections, by target. The one used last is used next, so that the rest can expire.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use super::{Failure, Settings, Stage, Target, Worker, http1::head::Keep, http2, wire::Wire};
use crate::{
    config::Scheme,
    runtime::{hash::Quick, ticker::TICK},
};

/// An HTTP/1.1 connection in use.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) wire: Wire,
    /// Requests sent on it, the present one included.
    pub(super) uses: u32,
    /// How many the backend allows in all.
    limit: u32,
    /// Where it goes when it is free; gone once its target was retired.
    home: Weak<Shelf>,
}

/// What a request travels on.
#[derive(Debug)]
pub(super) enum Link {
    Http1(Conn),
    Http2(http2::Stream),
}

/// All shelves of a worker.
#[derive(Debug)]
pub(super) struct Pool {
    shelves: RefCell<HashMap<Key, Rc<Shelf>, Quick>>,
    idle_ticks: u64,
    idle_http2_ticks: u64,
    per_target: usize,
}

/// A target's address in memory: unique, since its shelf holds the target.
type Key = usize;

#[derive(Debug)]
pub(super) struct Shelf {
    target: Arc<Target>,
    idle: RefCell<Vec<Idle>>,
    http2: RefCell<Vec<http2::Shared>>,
    speaks: Cell<Speaks>,
    /// Held while a connection is opened whose protocol is unknown or that many requests can share.
    dialing: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Idle {
    conn: Conn,
    /// The tick from which on it is not used any more.
    until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Speaks {
    Http1,
    Http2,
    /// ALPN will tell.
    Unknown,
}

impl Conn {
    fn new(wire: Wire, home: Weak<Shelf>) -> Self {
        Self { wire, uses: 0, limit: u32::MAX, home }
    }

    /// Whether it has carried a request before the present one.
    pub(super) fn is_reused(&self) -> bool {
        self.uses > 1
    }
}

fn key(target: &Arc<Target>) -> Key {
    Arc::as_ptr(target).addr()
}

impl Pool {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            shelves: RefCell::default(),
            idle_ticks: ticks(settings.idle),
            idle_http2_ticks: ticks(settings.idle_http2),
            per_target: settings.idle_per_target,
        }
    }

    fn shelf(&self, target: &Arc<Target>) -> Rc<Shelf> {
        let mut shelves = self.shelves.borrow_mut();
        Rc::clone(shelves.entry(key(target)).or_insert_with(|| Rc::new(Shelf::new(target))))
    }

    /// Takes the connection used last, if it is still good; those found closed are counted in `stale`.
    fn take(&self, target: &Arc<Target>, now: u64, stale: &metrics::Counter) -> Option<Conn> {
        let shelves = self.shelves.borrow();
        let mut idle = shelves.get(&key(target))?.idle.borrow_mut();
        while let Some(mut candidate) = idle.pop() {
            if now >= candidate.until {
                // The rest lies there for longer still, mostly; the next tick clears it.
                continue;
            }
            if candidate.conn.wire.is_quiet() {
                return Some(candidate.conn);
            }
            stale.increment(1);
        }
        None
    }

    /// Takes a connection back whose answer ended exactly; closes it when it may not be used again.
    pub(super) fn put(&self, mut conn: Conn, keep: Keep, now: u64) {
        let own = keep.timeout.map_or(self.idle_ticks, |seconds| {
            // A second less than the backend says, for the way of its FIN and of our request.
            self.idle_ticks.min(ticks(Duration::from_secs(u64::from(seconds.saturating_sub(1)))))
        });
        if let Some(max) = keep.max {
            // Engines say either how many are left or how many there may be in all: the lower reading holds.
            conn.limit = conn.limit.min(max.saturating_add(conn.uses.saturating_sub(1)));
        }
        if !keep.alive || own == 0 || conn.uses >= conn.limit {
            return;
        }
        let Some(shelf) = conn.home.upgrade() else { return };
        let mut idle = shelf.idle.borrow_mut();
        if idle.len() < self.per_target {
            idle.push(Idle { conn, until: now + own });
        }
    }

    /// Closes what lay idle for too long, forgets targets that nobody else knows any more.
    pub(super) fn expire(&self, now: u64) {
        self.shelves.borrow_mut().retain(|_, shelf| {
            let mut idle = shelf.idle.borrow_mut();
            idle.retain(|idle| now < idle.until);
            if idle.is_empty() && idle.capacity() > 16 {
                *idle = Vec::new();
            }
            let mut http2 = shelf.http2.borrow_mut();
            http2.retain(|shared| shared.is_wanted(now, self.idle_http2_ticks));
            !(idle.is_empty() && http2.is_empty() && Arc::strong_count(&shelf.target) == 1)
        });
    }

    pub(super) fn retire(&self, target: &Arc<Target>) {
        self.shelves.borrow_mut().remove(&key(target));
    }

    pub(super) fn idle(&self, target: &Arc<Target>) -> usize {
        self.shelves.borrow().get(&key(target)).map_or(0, |shelf| shelf.idle.borrow().len())
    }
}

#[cfg(test)]
impl Pool {
    /// Whether nothing was heard on the connection that would be used next.
    pub(super) fn is_quiet(&self, target: &Arc<Target>) -> bool {
        let shelves = self.shelves.borrow();
        let mut idle = shelves[&key(target)].idle.borrow_mut();
        idle.last_mut().is_none_or(|idle| idle.conn.wire.is_quiet())
    }

    /// Streams that open HTTP/2 connections have left; `None` = there is no connection.
    pub(super) fn room(&self, target: &Arc<Target>) -> Option<usize> {
        let shelves = self.shelves.borrow();
        let http2 = shelves.get(&key(target))?.http2.borrow();
        http2.iter().filter(|shared| shared.is_open()).map(http2::Shared::room).max()
    }
}

impl Shelf {
    fn new(target: &Arc<Target>) -> Self {
        let speaks = match target.scheme() {
            Scheme::Http | Scheme::Unix => Speaks::Http1,
            Scheme::H2c => Speaks::Http2,
            Scheme::Https => Speaks::Unknown,
        };
        Self {
            target: Arc::clone(target),
            idle: RefCell::default(),
            http2: RefCell::default(),
            speaks: Cell::new(speaks),
            dialing: tokio::sync::Mutex::new(()),
        }
    }

    /// A stream on the connection that has the most room; when all are full, only if no further one may be opened.
    fn stream(&self, connections: usize, now: u64) -> Option<http2::Stream> {
        let mut http2 = self.http2.borrow_mut();
        http2.retain(http2::Shared::is_open);
        let roomiest = http2.iter().max_by_key(|shared| shared.room())?;
        (roomiest.room() > 0 || http2.len() >= connections).then(|| roomiest.stream(now))
    }
}

impl Worker {
    /// A connection from the pool, or a new one; `fresh` asks for a new one.
    pub(super) async fn acquire(&self, target: &Arc<Target>, fresh: bool) -> Result<Link, Failure> {
        if !fresh && let Some(conn) = self.pool.take(target, self.ticker.now(), &self.counters.stale) {
            return Ok(Link::Http1(self.used(conn)));
        }
        // Boxed: rare, and larger than the rest of a request put together.
        Box::pin(self.acquire_new(target)).await
    }

    /// A new connection, or a stream on an open HTTP/2 one.
    async fn acquire_new(&self, target: &Arc<Target>) -> Result<Link, Failure> {
        let now = self.ticker.now();
        let shelf = self.pool.shelf(target);
        if shelf.speaks.get() == Speaks::Http1 {
            return self.dial(&shelf, target).await;
        }
        if let Some(stream) = shelf.stream(self.settings.http2_connections, now) {
            self.counters.reused.increment(1);
            return Ok(Link::Http2(stream));
        }
        // Others may be opening the connection that this request can share.
        let shared = async {
            let _dialing = shelf.dialing.lock().await;
            match shelf.stream(self.settings.http2_connections, self.ticker.now()) {
                Some(stream) => Ok(Link::Http2(stream)),
                None => self.dial(&shelf, target).await,
            }
        };
        tokio::time::timeout(self.settings.connect, shared).await.unwrap_or_else(|_| Err(late(self.settings.connect)))
    }

    /// A new connection that speaks HTTP/1.1.
    pub(super) async fn dial_http1(&self, target: &Arc<Target>) -> Result<Conn, Failure> {
        if target.scheme() == Scheme::H2c {
            return Err(Failure::new(
                Stage::Protocol,
                "an h2c:// backend has no WebSockets here; give it an http:// url",
            ));
        }
        let (wire, _) = self.connector.connect(target, true).await?;
        self.counters.opened.increment(1);
        Ok(self.used(Conn::new(wire, Rc::downgrade(&self.pool.shelf(target)))))
    }

    async fn dial(&self, shelf: &Rc<Shelf>, target: &Arc<Target>) -> Result<Link, Failure> {
        let (wire, is_http2) = self.connector.connect(target, false).await?;
        self.counters.opened.increment(1);
        if !is_http2 {
            shelf.speaks.set(Speaks::Http1);
            return Ok(Link::Http1(self.used(Conn::new(wire, Rc::downgrade(shelf)))));
        }
        shelf.speaks.set(Speaks::Http2);
        let shared = http2::Shared::open(wire, &self.settings).await?;
        let stream = shared.stream(self.ticker.now());
        shelf.http2.borrow_mut().push(shared);
        Ok(Link::Http2(stream))
    }

    /// Puts a stream of a test's own into the pool.
    #[cfg(test)]
    pub(super) fn adopt(&self, target: &Arc<Target>, wire: Wire, uses: u32) {
        let shelf = self.pool.shelf(target);
        let conn = Conn { uses, ..Conn::new(wire, Rc::downgrade(&shelf)) };
        shelf.idle.borrow_mut().push(Idle { conn, until: u64::MAX });
    }

    fn used(&self, mut conn: Conn) -> Conn {
        conn.uses += 1;
        if conn.is_reused() {
            self.counters.reused.increment(1);
        }
        conn
    }
}

/// The failure of a connection that was not there in time.
pub(super) fn late(limit: Duration) -> Failure {
    let cause = format!("no connection within {} ms (timeouts.connect)", limit.as_millis());
    Failure { timed_out: true, ..Failure::new(Stage::Connect, cause) }
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX / 2)
}
