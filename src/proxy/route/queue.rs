//! The one queue of calls for which every backend is full, shared by all workers.
//!
//! First come, first served, among those that a freed place suits: a place goes straight from the call that ends to
//! the one that has waited longest, so that nobody new can take it in between. The lock is touched only when somebody
//! waits or begins to. When the client leaves, its ticket is dropped and a place already given to it moves on.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, Kind},
    fleet::{Backend, Fleet, Permit, Room, Window},
    proxy::call::Call,
};

/// The longest a client is told to wait, and what it is told when nothing was served of late.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));

/// Calls that wait for a place.
#[derive(Debug)]
pub struct Queue {
    line: Mutex<Line>,
    room: Arc<Room>,
    served: Window,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    want: Want,
    granted: Option<Permit>,
    /// Whoever stood before has gone: time to look by itself.
    nudged: bool,
    waker: Option<Waker>,
}

/// Which places suit a call.
#[derive(Clone, Debug, Default)]
pub(super) struct Want {
    pub(super) model: Option<Arc<str>>,
    pub(super) pinned: Option<Arc<str>>,
    /// Ids that failed it already, while others are left.
    pub(super) not: Vec<u64>,
}

/// One call's stand in the queue.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    queue: &'a Queue,
    number: u64,
}

impl Queue {
    /// The queue of a fleet; it takes every place that is freed while somebody waits.
    pub fn new(fleet: &Fleet) -> Arc<Self> {
        let queue = Arc::new(Self {
            line: Mutex::default(),
            room: Arc::clone(fleet.room()),
            served: Window::new(Instant::now()),
        });
        let taker = Arc::downgrade(&queue);
        fleet.room().set_taker(move |place| match taker.upgrade() {
            Some(queue) => queue.take(place),
            None => {
                place.release();
                false
            }
        });
        queue
    }

    /// Calls that wait now.
    pub fn len(&self) -> usize {
        self.room.wanted()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// When a client that was turned away may come again, by how fast calls were served of late.
    pub(super) fn retry_after(&self, now: Instant) -> Duration {
        let rate = f64::from(self.served.sum(now)) / 10.0;
        if rate == 0.0 {
            return RETRY_AFTER.1;
        }
        let seconds = ((self.len() + 1) as f64 / rate).ceil();
        Duration::from_secs(seconds as u64).clamp(Duration::from_secs(1), RETRY_AFTER.0)
    }

    /// Whether somebody who wants the same is in the line already: newcomers go behind.
    pub(super) fn is_ahead(&self, want: &Want) -> bool {
        !self.is_empty() && self.line().waiting.values().any(|w| w.granted.is_none() && w.want.rivals(want))
    }

    /// Takes a stand at the end.
    pub(super) fn enter(&self, want: Want, capacity: usize, now: Instant) -> Result<Ticket<'_>, Error> {
        let mut line = self.line();
        if line.waiting.len() >= capacity {
            let text = format!("every backend is full and {capacity} calls wait already (limits.queue)");
            drop(line);
            return Err(Error::new(Kind::QueueFull, text).after(self.retry_after(now)));
        }
        let number = line.next;
        line.next += 1;
        line.waiting.insert(number, Waiting { want, granted: None, nudged: false, waker: None });
        self.room.want();
        Ok(Ticket { queue: self, number })
    }

    /// Gives a freed place to the first it suits.
    fn take(&self, place: Permit) -> bool {
        let mut line = self.line();
        let first = line.waiting.values_mut().find(|w| w.granted.is_none() && w.want.suits(place.backend()));
        let Some(first) = first else {
            // Still under the lock: see `Room::set_taker`.
            place.release();
            return false;
        };
        first.granted = Some(place);
        let waker = first.waker.take();
        drop(line);
        self.served.add(Instant::now());
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Whether nobody ahead wants the same.
    pub(super) fn is_first(&self) -> bool {
        let line = self.queue.line();
        let Some(own) = line.waiting.get(&self.number) else { return false };
        !line.waiting.range(..self.number).any(|(_, w)| w.granted.is_none() && w.want.rivals(&own.want))
    }

    /// Waits for a place, or (`None`) for a moment at which a look may find one.
    pub(super) async fn granted(&self) -> Option<Permit> {
        std::future::poll_fn(|cx| self.poll_granted(cx)).await
    }

    fn poll_granted(&self, cx: &mut Context<'_>) -> Poll<Option<Permit>> {
        let mut line = self.queue.line();
        let waiting = line.waiting.get_mut(&self.number).expect("a ticket stands in the line until it is dropped");
        match waiting.granted.take() {
            Some(permit) => Poll::Ready(Some(permit)),
            None if std::mem::take(&mut waiting.nudged) => Poll::Ready(None),
            None => {
                waiting.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut line = self.queue.line();
        let gone = line.waiting.remove(&self.number);
        let next = line.waiting.values_mut().find(|w| w.granted.is_none());
        let waker = next.and_then(|next| {
            next.nudged = true;
            next.waker.take()
        });
        drop(line);
        self.queue.room.unwant();
        // Outside the lock: a place that was granted and not used goes to the next.
        drop(gone);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Want {
    pub(super) fn of(call: &Call) -> Self {
        Self { model: call.model.clone(), pinned: call.pinned.clone(), not: Vec::new() }
    }

    fn suits(&self, backend: &Backend) -> bool {
        if let Some(name) = &self.pinned {
            return name == backend.name() && !backend.has_left();
        }
        backend.is_usable()
            && !self.not.contains(&backend.id)
            && self.model.as_deref().is_none_or(|model| backend.models().may_serve(model))
    }

    /// Whether `other` would take from this one. Who waits for some backends only lets others pass to the rest.
    fn rivals(&self, other: &Self) -> bool {
        self.not.is_empty() && self.pinned == other.pinned && self.model == other.model
    }
}
