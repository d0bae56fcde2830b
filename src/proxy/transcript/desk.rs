//! Where news of transcripts reach a worker, and are handed on to its own tasks.
//!
//! ```text
//!  any thread:  Transcript ─ ring(id), adopt(id) ─► Home (a mailbox)
//!  the worker:  Home ─► Desk::run ─► the readers that wait here · the pump that is to go on by itself
//! ```
//! A frame wakes one task per worker, however many readers wait there; each worker wakes its own.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use tokio::sync::Notify;

use crate::runtime::hash::Quick;

/// A worker's mailbox.
#[derive(Debug, Default)]
pub struct Home(Mutex<Mail>);

#[derive(Debug, Default)]
struct Mail {
    /// Transcripts that moved on.
    rung: Vec<u64>,
    /// Transcripts whose pump has to go on by itself.
    adopted: Vec<u64>,
    reader: Option<Waker>,
}

/// A worker's own side: stays on its thread.
#[derive(Default)]
pub struct Desk {
    home: Arc<Home>,
    /// transcript → its readers that wait on this worker.
    waiting: RefCell<HashMap<u64, Waiting, Quick>>,
    pumps: RefCell<HashMap<u64, Rc<dyn Pump>>>,
    /// Pumps that live.
    running: Cell<usize>,
    idle: Notify,
}

/// Readers of one transcript, by their slot. Its room serves again from frame to frame.
#[derive(Default)]
struct Waiting {
    wakers: Vec<Option<Waker>>,
    count: usize,
}

/// What writes a transcript.
pub trait Pump {
    /// Goes on by itself from now on: somebody else reads too, or its first reader has left.
    fn adopt(self: Rc<Self>);
}

impl Home {
    pub(super) fn ring(&self, transcript: u64) {
        self.post(|mail| mail.rung.push(transcript));
    }

    pub(super) fn adopt(&self, transcript: u64) {
        self.post(|mail| mail.adopted.push(transcript));
    }

    fn post(&self, write: impl FnOnce(&mut Mail)) {
        let reader = {
            let mut mail = self.mail();
            write(&mut mail);
            mail.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn mail(&self) -> MutexGuard<'_, Mail> {
        // Nothing of a mail is half done at a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// One worker's.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Hands mail on, for ever: a task of its own on the worker.
    pub async fn run(self: Rc<Self>) {
        poll_fn(|cx| self.poll_mail(cx)).await
    }

    fn poll_mail(&self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let (rung, adopted) = {
                let mut mail = self.home.mail();
                if mail.rung.is_empty() && mail.adopted.is_empty() {
                    mail.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                (std::mem::take(&mut mail.rung), std::mem::take(&mut mail.adopted))
            };
            for transcript in adopted {
                let pump = self.pumps.borrow().get(&transcript).cloned();
                if let Some(pump) = pump {
                    pump.adopt();
                }
            }
            for transcript in rung {
                self.wake(transcript);
            }
        }
    }

    /// Wakes those who wait for `transcript`.
    fn wake(&self, transcript: u64) {
        let Some(mut wakers) = self.waiting.borrow_mut().get_mut(&transcript).map(Waiting::take) else { return };
        wakers.drain(..).flatten().for_each(Waker::wake);
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&transcript)
            && waiting.wakers.is_empty()
        {
            waiting.wakers = wakers;
        }
    }

    /// Waits until no pump lives any more.
    pub async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.running.get() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// Pumps that live on this worker.
    pub fn running(&self) -> usize {
        self.running.get()
    }

    /// `pump` writes `transcript`, until it says that it is done.
    pub fn register(&self, transcript: u64, pump: Rc<dyn Pump>) {
        if self.pumps.borrow_mut().insert(transcript, pump).is_none() {
            self.running.set(self.running.get() + 1);
        }
    }

    /// Its pump is done.
    pub fn done(&self, transcript: u64) {
        let pump = self.pumps.borrow_mut().remove(&transcript);
        if pump.is_none() {
            return;
        }
        self.running.set(self.running.get() - 1);
        if self.running.get() == 0 {
            self.idle.notify_waiters();
        }
    }

    /// Transcripts that somebody here waits for, or did.
    #[cfg(test)]
    pub(super) fn awaited(&self) -> usize {
        self.waiting.borrow().len()
    }

    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    /// Has `waker` woken when `transcript` moves on.
    pub(super) fn wait(&self, transcript: u64, slot: usize, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        let old = waiting.entry(transcript).or_default().put(slot, waker.clone());
        drop(waiting);
        drop(old);
    }

    /// This reader waits no more.
    pub(super) fn forget(&self, transcript: u64, slot: usize) {
        let mut waiting = self.waiting.borrow_mut();
        let Some(readers) = waiting.get_mut(&transcript) else { return };
        let waker = readers.forget(slot);
        if readers.count == 0 {
            waiting.remove(&transcript);
        }
        drop(waiting);
        drop(waker);
    }
}

impl Waiting {
    /// Gives the one that stood there.
    fn put(&mut self, slot: usize, waker: Waker) -> Option<Waker> {
        if slot >= self.wakers.len() {
            self.wakers.resize_with(slot + 1, || None);
        }
        let old = self.wakers[slot].replace(waker);
        self.count += usize::from(old.is_none());
        old
    }

    fn forget(&mut self, slot: usize) -> Option<Waker> {
        let waker = self.wakers.get_mut(slot)?.take();
        self.count -= usize::from(waker.is_some());
        waker
    }

    fn take(&mut self) -> Vec<Option<Waker>> {
        self.count = 0;
        std::mem::take(&mut self.wakers)
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("running", &self.running.get()).finish_non_exhaustive()
    }
}
