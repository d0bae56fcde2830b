//! The streams under way on one worker, and how they leave a machine that is going to be taken away.
//!
//! A notice gives a time. What will have ended by then stays; the rest is moved before it, spread over the time there
//! is, the longest first, so that those who take it up are not met all at once. At the time itself what could not be
//! moved is ended.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    fmt,
    rc::Rc,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::request::Request;
use crate::{
    fleet::Backend,
    proxy::{call::Call, record::Record},
};

/// How often the streams of a machine that goes are looked at.
const STEP: Duration = Duration::from_millis(250);
/// A stream that nobody had room for is left alone for so long.
const PAUSE: Duration = Duration::from_secs(2);
/// All should have left so long before the machine goes.
const MARGIN: Duration = Duration::from_secs(3);

/// What a stream is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Go on elsewhere, if it can.
    Move,
    /// The machine goes now.
    End,
}

/// One worker's streams.
#[derive(Default)]
pub struct Moves {
    streams: RefCell<Vec<Option<Rc<Under>>>>,
    free: RefCell<Vec<usize>>,
    /// An answer began on a machine that is going already.
    late: Notify,
}

/// One stream under way.
struct Under {
    call: Rc<Call>,
    backend: RefCell<Option<Arc<Backend>>>,
    /// When it came to that backend, and what had been said by then.
    since: Cell<(Instant, u64)>,
    /// Events of text so far.
    said: Cell<u64>,
    /// Tokens it may have at most.
    limit: OnceCell<Option<u64>>,
    order: Cell<Option<Order>>,
    stays: Cell<bool>,
    /// There was no room for it elsewhere: not to be moved before that.
    not_before: Cell<Option<Instant>>,
    waker: RefCell<Option<Waker>>,
}

/// A stream's place among those under way.
pub(super) struct Seat {
    moves: Rc<Moves>,
    under: Rc<Under>,
    at: usize,
}

impl Moves {
    /// One worker's.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Gives orders whenever `notices` says that something is new, and while a machine is going. For ever.
    pub async fn run(self: Rc<Self>, mut notices: watch::Receiver<u64>) {
        loop {
            notices.borrow_and_update();
            let going = self.look(Instant::now());
            let changed = notices.changed();
            let outcome = if going {
                tokio::select! { outcome = changed => outcome, () = tokio::time::sleep(STEP) => Ok(()) }
            } else {
                tokio::select! { outcome = changed => outcome, () = self.late.notified() => Ok(()) }
            };
            if outcome.is_err() {
                // The fleet is gone: so is the process.
                return;
            }
        }
    }

    /// A place for the stream that answers `call`.
    pub(super) fn seat(self: &Rc<Self>, call: &Rc<Call>) -> Seat {
        let under = Rc::new(Under {
            call: Rc::clone(call),
            backend: RefCell::new(call.record.backend.borrow().clone()),
            since: Cell::new((Instant::now(), 0)),
            said: Cell::new(0),
            limit: OnceCell::new(),
            order: Cell::new(None),
            stays: Cell::new(false),
            not_before: Cell::new(None),
            waker: RefCell::default(),
        });
        let mut streams = self.streams.borrow_mut();
        let at = self.free.borrow_mut().pop().unwrap_or_else(|| {
            streams.push(None);
            streams.len() - 1
        });
        streams[at] = Some(Rc::clone(&under));
        self.began(&under);
        Seat { moves: Rc::clone(self), under, at }
    }

    /// Sees to it that the stream is looked at, if its machine is going: the notice came before it.
    fn began(&self, under: &Under) {
        if under.backend.borrow().as_ref().is_some_and(|backend| backend.leaves_at().is_some()) {
            self.late.notify_one();
        }
    }

    /// Orders what is due; whether there is a stream on a machine that goes.
    fn look(&self, now: Instant) -> bool {
        let mut leaving: HashMap<Arc<str>, (Instant, Vec<Rc<Under>>)> = HashMap::new();
        for under in self.streams.borrow().iter().flatten() {
            let backend = under.backend.borrow();
            if let Some(backend) = &*backend
                && let Some(at) = backend.leaves_at()
            {
                leaving.entry(Arc::clone(backend.name())).or_insert((at, Vec::new())).1.push(Rc::clone(under));
            }
        }
        for (at, streams) in leaving.values() {
            due(*at, streams, now);
        }
        !leaving.is_empty()
    }
}

/// Orders those of one machine, which goes `at` a time.
fn due(at: Instant, streams: &[Rc<Under>], now: Instant) {
    if now >= at {
        return streams.iter().for_each(|under| under.order(Order::End));
    }
    let last = at.checked_sub(MARGIN).unwrap_or(at);
    let left = last.saturating_duration_since(now);
    let mut long: Vec<_> = streams
        .iter()
        .filter(|under| !under.stays.get() && under.not_before.get().is_none_or(|at| at <= now))
        .map(|under| (under.takes(now), under))
        .filter(|(takes, _)| *takes > left)
        .collect();
    long.sort_by_key(|(takes, _)| std::cmp::Reverse(*takes));
    let steps = (left.as_millis() / STEP.as_millis()).max(1);
    let count = long.len().div_ceil(usize::try_from(steps).unwrap_or(usize::MAX));
    long.iter().take(count).for_each(|(_, under)| under.order(Order::Move));
}

impl Under {
    /// How long it will take yet, by its pace so far and the most tokens it may have.
    fn takes(&self, now: Instant) -> Duration {
        let limit = self.limit.get_or_init(|| {
            let body = self.call.payload.bytes()?;
            let engine = self.backend.borrow().as_ref()?.engine()?;
            Request::read(self.call.endpoint, body).ok()?.limit(engine)
        });
        let (since, before) = self.since.get();
        let said = self.said.get().saturating_sub(before);
        let Some(limit) = limit.filter(|_| said > 0) else { return Duration::MAX };
        let each = now.saturating_duration_since(since).as_secs_f64() / said as f64;
        let left = limit.saturating_sub(self.said.get()) as f64;
        Duration::try_from_secs_f64(each * left).unwrap_or(Duration::MAX)
    }

    /// An order to move that came meanwhile is about what failed just now.
    fn forget_move(&self) {
        if self.order.get() == Some(Order::Move) {
            self.order.set(None);
        }
    }

    fn order(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Seat {
    /// Whether it is told to do something.
    #[inline]
    pub(super) fn is_called(&self) -> bool {
        self.under.order.get().is_some()
    }

    /// What it is told to do, once.
    pub(super) fn order(&self) -> Option<Order> {
        self.under.order.take()
    }

    /// It waits for bytes, and for orders.
    pub(super) fn waits(&self, waker: &Waker) {
        let mut known = self.under.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }

    /// So many events of text so far.
    pub(super) fn said(&self, events: u64) {
        self.under.said.set(events);
    }

    /// It cannot be moved: it goes on where it is until the end.
    pub(super) fn stays(&self) {
        self.under.stays.set(true);
        self.under.forget_move();
    }

    /// Nobody had room for it: it is tried again after a while.
    pub(super) fn later(&self) {
        self.under.not_before.set(Some(Instant::now() + PAUSE));
        self.under.forget_move();
    }

    /// Whether another backend than the one it stands for gave the answer of `record`.
    pub(super) fn is_elsewhere(&self, record: &Record) -> bool {
        let id = |backend: &Option<Arc<Backend>>| backend.as_ref().map(|backend| backend.id);
        id(&self.under.backend.borrow()) != id(&record.backend.borrow())
    }

    /// Another backend answers now.
    pub(super) fn moved(&self, record: &Record) {
        self.under.backend.replace(record.backend.borrow().clone());
        self.under.since.set((Instant::now(), self.under.said.get()));
        self.under.order.set(None);
        self.under.stays.set(false);
        self.under.not_before.set(None);
        self.moves.began(&self.under);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.moves.streams.borrow_mut()[self.at] = None;
        self.moves.free.borrow_mut().push(self.at);
    }
}

impl fmt::Debug for Moves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moves").field("streams", &self.streams.borrow().iter().flatten().count()).finish()
    }
}
