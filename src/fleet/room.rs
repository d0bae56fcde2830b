//! Where freed places go: to a call that waits, before anybody else can take them.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::Permit;

/// Takes a freed place for a call that waits, or calls [`Permit::release`] on it *before* another call can begin to
/// wait (under the queue's lock): else that call would see the place taken, and nobody would offer it again.
type Taker = Box<dyn Fn(Permit) -> bool + Send + Sync>;

/// The seam between a place given back here and the queue of `proxy::route`, which this module cannot name.
#[derive(Default)]
pub struct Room {
    wanted: AtomicUsize,
    taker: OnceLock<Taker>,
}

impl Room {
    /// Sets who takes freed places; the first to do so stays. It answers whether it took the place, and calls
    /// [`Permit::release`] on one it did not take while no further call can begin to wait.
    pub fn set_taker(&self, taker: impl Fn(Permit) -> bool + Send + Sync + 'static) {
        if self.taker.set(Box::new(taker)).is_err() {
            tracing::debug!("the fleet has its queue already");
        }
    }

    /// A call waits from now on. After this, the caller looks once more whether a place is free: one that was given
    /// back before this is seen by that look, one given back after it is offered.
    pub fn want(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }

    /// A call waits no more.
    pub fn unwant(&self) {
        self.wanted.fetch_sub(1, Ordering::SeqCst);
    }

    /// Calls that wait.
    pub fn wanted(&self) -> usize {
        self.wanted.load(Ordering::SeqCst)
    }

    pub(super) fn offer(&self, place: Permit) -> bool {
        match self.taker.get() {
            Some(taker) => taker(place),
            None => {
                place.release();
                false
            }
        }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("wanted", &self.wanted()).finish_non_exhaustive()
    }
}
