//! Evens out connections over the workers.
//!
//! The kernel hashes new connections over the `SO_REUSEPORT` sockets; a few long-lived HTTP/2 connections can meet on
//! one core by chance. A worker well over the mean hands a socket it has accepted, and not read from, to the worker
//! with the fewest.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc;

use super::bind::{Accepted, Loose};

/// All workers of one listener.
#[derive(Debug)]
struct Balance {
    workers: Box<[Place]>,
}

#[derive(Debug)]
struct Place {
    open: AtomicUsize,
    inbox: mpsc::Sender<Handed>,
}

/// One worker's place among them.
#[derive(Debug)]
pub(super) struct Seat {
    balance: Arc<Balance>,
    me: usize,
    pub(super) inbox: mpsc::Receiver<Handed>,
}

/// Counts one connection at its worker while it lives.
#[derive(Debug)]
pub(super) struct Load {
    balance: Arc<Balance>,
    at: usize,
}

/// A socket on its way to another worker, counted there already.
pub(super) type Handed = (Loose, Load);

/// Sockets that may wait to be taken over; a full inbox means: keep it.
const INBOX: usize = 64;

/// Over the mean by this much before anything moves, so that small numbers and chance do not.
const SLACK: usize = 8;

pub(super) fn seats(workers: usize) -> Vec<Seat> {
    let (places, inboxes): (Vec<_>, Vec<_>) = (0..workers.max(1))
        .map(|_| {
            let (sender, inbox) = mpsc::channel(INBOX);
            (Place { open: AtomicUsize::new(0), inbox: sender }, inbox)
        })
        .unzip();
    let balance = Arc::new(Balance { workers: places.into() });
    let seat = |(me, inbox)| Seat { balance: Arc::clone(&balance), me, inbox };
    inboxes.into_iter().enumerate().map(seat).collect()
}

impl Seat {
    /// Counts a connection of this worker.
    pub(super) fn here(&self) -> Load {
        self.load(self.me)
    }

    /// Counts a connection at the worker `at`.
    fn load(&self, at: usize) -> Load {
        self.balance.workers[at].open.fetch_add(1, Ordering::Relaxed);
        Load { balance: Arc::clone(&self.balance), at }
    }

    /// Counts `accepted` here and hands it back; or gives it away, if this worker has too many.
    pub(super) fn keep(&self, accepted: Accepted) -> Option<(Accepted, Load)> {
        let Some(other) = self.lighter() else { return Some((accepted, self.here())) };
        let Ok(room) = self.balance.workers[other].inbox.try_reserve() else {
            return Some((accepted, self.here()));
        };
        // A socket that cannot leave this runtime is broken: it is dropped.
        if let Ok(loose) = accepted.loosen() {
            room.send((loose, self.load(other)));
        }
        None
    }

    /// The worker with the fewest, when this one is well over the mean.
    fn lighter(&self) -> Option<usize> {
        let workers = &self.balance.workers;
        let mine = workers[self.me].open.load(Ordering::Relaxed);
        if workers.len() == 1 || mine <= SLACK {
            return None;
        }
        let counts = || workers.iter().map(|place| place.open.load(Ordering::Relaxed));
        let mean = counts().sum::<usize>() / workers.len();
        if mine <= mean + SLACK.max(mean / 4) {
            return None;
        }
        counts().enumerate().min_by_key(|(_, open)| *open).map(|(at, _)| at)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.balance.workers[self.at].open.fetch_sub(1, Ordering::Relaxed);
    }
}
