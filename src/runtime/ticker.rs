//! Coarse deadlines: one tick of 100 ms per worker instead of a timer per request.
//!
//! Setting, moving and clearing a deadline is a store. A deadline ends at the first tick that is not before it, so
//! up to 100 ms late and never early; with tokio's paused clock it is exact to the tick.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

/// The length of a tick.
pub const TICK: Duration = Duration::from_millis(100);

/// One worker's clock and all its deadlines. Cheap to clone; stays on its thread.
#[derive(Clone, Debug, Default)]
pub struct Ticker(Rc<Wheel>);

#[derive(Debug, Default)]
struct Wheel {
    now: Cell<u64>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    chores: RefCell<Vec<Chore>>,
}

#[derive(Debug)]
struct Slot {
    /// The tick at which it ends; `NEVER` when not set.
    at: u64,
    waker: Option<Waker>,
}

struct Chore(Box<dyn FnMut()>);

const NEVER: u64 = u64::MAX;

/// One deadline, reusable for the stages of one request or connection.
#[derive(Debug)]
pub struct Deadline {
    ticker: Ticker,
    slot: usize,
}

impl Ticker {
    /// Ticks for ever; a worker runs it as its first task.
    pub async fn run(self) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        interval.tick().await;
        loop {
            interval.tick().await;
            self.tick();
        }
    }

    /// Moves time on by one tick and wakes what has ended.
    pub fn tick(&self) {
        let now = self.0.now.get() + 1;
        self.0.now.set(now);
        // Indexed, and the waker taken out before it is woken: a waker may create or drop deadlines.
        let mut index = 0;
        loop {
            let waker = {
                let mut slots = self.0.slots.borrow_mut();
                let Some(slot) = slots.get_mut(index) else { break };
                if slot.at <= now { slot.waker.take() } else { None }
            };
            if let Some(waker) = waker {
                waker.wake();
            }
            index += 1;
        }
        let mut chores = std::mem::take(&mut *self.0.chores.borrow_mut());
        for chore in &mut chores {
            (chore.0)();
        }
        chores.append(&mut self.0.chores.borrow_mut());
        *self.0.chores.borrow_mut() = chores;
    }

    /// Ticks since this worker started.
    pub fn now(&self) -> u64 {
        self.0.now.get()
    }

    /// Runs `chore` at every tick: pool expiry, log flush.
    pub fn every_tick(&self, chore: impl FnMut() + 'static) {
        self.0.chores.borrow_mut().push(Chore(Box::new(chore)));
    }

    /// A deadline that is not set yet.
    pub fn deadline(&self) -> Deadline {
        let slot = self.0.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut slots = self.0.slots.borrow_mut();
            slots.push(Slot { at: NEVER, waker: None });
            slots.len() - 1
        });
        Deadline { ticker: self.clone(), slot }
    }
}

/// How many ticks last at least `time`; in 64 bits, since every event of a stream sets a deadline.
fn ticks(time: Duration) -> u64 {
    const { assert!(TICK.as_millis() == 100) };
    time.as_secs().saturating_mul(10).saturating_add(u64::from(time.subsec_millis().div_ceil(100)))
}

impl Deadline {
    /// Ends `after` from now.
    pub fn set(&self, after: Duration) {
        let at = self.ticker.now().saturating_add(ticks(after)).saturating_add(1);
        self.slot(|slot| slot.at = at);
    }

    /// Never ends, until set again.
    pub fn clear(&self) {
        self.slot(|slot| slot.at = NEVER);
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        let now = self.ticker.now();
        self.slot(|slot| slot.at <= now)
    }

    /// Ready once it has ended.
    pub fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        let now = self.ticker.now();
        // The old waker is dropped outside of the borrow: what it drops may have deadlines of its own.
        let (polled, _old) = self.slot(|slot| match &slot.waker {
            _ if slot.at <= now => (Poll::Ready(()), None),
            Some(waker) if waker.will_wake(cx.waker()) => (Poll::Pending, None),
            _ => (Poll::Pending, slot.waker.replace(cx.waker().clone())),
        });
        polled
    }

    /// Waits until it has ended.
    pub async fn over(&self) {
        poll_fn(|cx| self.poll_over(cx)).await;
    }

    fn slot<T>(&self, act: impl FnOnce(&mut Slot) -> T) -> T {
        act(&mut self.ticker.0.slots.borrow_mut()[self.slot])
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        let waker = self.slot(|slot| {
            slot.at = NEVER;
            slot.waker.take()
        });
        self.ticker.0.free.borrow_mut().push(self.slot);
        drop(waker);
    }
}

impl std::fmt::Debug for Chore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chore")
    }
}
