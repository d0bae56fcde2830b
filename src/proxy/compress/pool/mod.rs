//! Encoders of one worker, used again, within `compression.memory` for all workers together.
//!
//! What counts is every encoder there is, at work or idle. Idle ones go when they were not needed for a while, and at
//! once when anybody was refused one: another worker's want is seen at the next tick.

use std::{
    cell::{Cell, RefCell, RefMut},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bytes::BytesMut;
use metrics::{Counter, Gauge};

use super::encoder::{Encoder, Kind};
use crate::{
    error::Error,
    protocol::coding::Coding,
    runtime::ticker::Ticker,
    telemetry::metrics::{Name, Table},
};

/// Ticks of 100 ms after which encoders that were idle all the time go.
const TRIM_AFTER: u32 = 100;
/// Where codecs write before their output is taken up: larger than what a flush gives.
pub(super) const SCRATCH: usize = 16 * 1024;

/// `compression.memory`: what all workers' encoders take. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    used: AtomicU64,
    limit: AtomicU64,
    /// How often somebody was refused.
    refused: AtomicU64,
}

/// A part of the [`Budget`], given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    /// At most `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Memory { used: AtomicU64::new(0), limit: AtomicU64::new(limit), refused: AtomicU64::new(0) }))
    }

    /// A reload may move the limit; encoders at work stay.
    pub fn set_limit(&self, limit: u64) {
        self.0.limit.store(limit, Relaxed);
    }

    /// Bytes that encoders take now.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    fn reserve(&self, bytes: u64) -> Option<Share> {
        let limit = self.0.limit.load(Relaxed);
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.0.used.fetch_update(Relaxed, Relaxed, fits).ok()?;
        Some(Share { budget: self.clone(), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Relaxed);
    }
}

/// What was encoded; handles of one worker's table.
#[derive(Debug)]
pub(super) struct Counters {
    before: [Counter; Coding::ALL.len()],
    after: [Counter; Coding::ALL.len()],
    saved: Counter,
    at_work: Gauge,
    pub(super) refused: Counter,
    pub(super) cheaper: Counter,
    pub(super) twins: Counter,
}

impl Counters {
    fn new(table: &Table) -> Self {
        let bytes =
            |coding: Coding, side| table.counter(Name::CompressionBytes, &[("coding", coding.name()), ("side", side)]);
        let refused = |reason| table.counter(Name::CompressionRefused, &[("reason", reason)]);
        Self {
            before: Coding::ALL.map(|coding| bytes(coding, "before")),
            after: Coding::ALL.map(|coding| bytes(coding, "after")),
            saved: table.counter(Name::EgressSaved, &[("cause", "compression")]),
            at_work: table.gauge(Name::CompressionEncoders, &[]),
            refused: refused("memory"),
            cheaper: refused("cheaper"),
            twins: table.counter(Name::CompressionTwins, &[]),
        }
    }

    /// `before` bytes became `after`.
    pub(super) fn encoded(&self, coding: Coding, before: usize, after: usize) {
        self.before[coding as usize].increment(before as u64);
        self.after[coding as usize].increment(after as u64);
        self.saved.increment(before.saturating_sub(after) as u64);
    }
}

/// One worker's encoders; outlives reloads.
#[derive(Debug)]
pub struct Pool {
    budget: Budget,
    idle: RefCell<[Shelf; Kind::ALL.len()]>,
    scratch: RefCell<Box<[u8]>>,
    /// Refusals that were seen.
    refused: Cell<u64>,
    ticks: Cell<u32>,
    pub(super) counters: Counters,
}

/// Idle encoders of one kind.
#[derive(Debug, Default)]
struct Shelf {
    idle: Vec<Held>,
    /// The fewest that were idle since the last trim.
    least: usize,
}

#[derive(Debug)]
struct Held {
    encoder: Encoder,
    share: Share,
}

/// An encoder at work; goes back when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    /// Taken when it is dropped.
    held: Option<Held>,
    pool: Rc<Pool>,
}

impl Pool {
    /// An empty one, within `budget`.
    pub fn new(budget: Budget, table: &Table) -> Rc<Self> {
        Rc::new(Self {
            budget,
            idle: RefCell::default(),
            scratch: RefCell::default(),
            refused: Cell::new(0),
            ticks: Cell::new(0),
            counters: Counters::new(table),
        })
    }

    /// Lets idle encoders go with time.
    pub fn tidy(self: &Rc<Self>, ticker: &Ticker) {
        let weak = Rc::downgrade(self);
        ticker.every_tick(move || {
            if let Some(pool) = weak.upgrade() {
                pool.tick();
            }
        });
    }

    pub(super) fn tick(&self) {
        let refused = self.budget.0.refused.load(Relaxed);
        if self.refused.replace(refused) != refused {
            self.idle.borrow_mut().iter_mut().for_each(Shelf::clear);
            return;
        }
        self.ticks.set(self.ticks.get() + 1);
        if self.ticks.get() >= TRIM_AFTER {
            self.ticks.set(0);
            self.idle.borrow_mut().iter_mut().for_each(Shelf::trim);
        }
    }

    /// An encoder of `kind`, unless the budget is used up.
    ///
    /// # Errors
    /// A fault of the codec.
    pub(super) fn lease(self: &Rc<Self>, kind: Kind) -> Result<Option<Lease>, Error> {
        let idle = self.idle.borrow_mut()[kind as usize].take();
        let held = match idle {
            Some(held) => held,
            None => {
                let Some(share) = self.reserve(kind.cost()) else { return Ok(None) };
                Held { encoder: Encoder::new(kind)?, share }
            }
        };
        self.counters.at_work.increment(1.0);
        Ok(Some(Lease { held: Some(held), pool: Rc::clone(self) }))
    }

    /// Room for an encoder; this worker's idle ones give way.
    pub(super) fn reserve(&self, bytes: u64) -> Option<Share> {
        loop {
            if let Some(share) = self.budget.reserve(bytes) {
                return Some(share);
            }
            let mut idle = self.idle.borrow_mut();
            let Some(held) = idle.iter_mut().find_map(|shelf| shelf.take()) else { break };
            drop(held);
        }
        self.budget.0.refused.fetch_add(1, Relaxed);
        None
    }

    /// Where codecs of this worker write.
    pub(super) fn scratch(&self) -> RefMut<'_, Box<[u8]>> {
        let mut scratch = self.scratch.borrow_mut();
        if scratch.is_empty() {
            *scratch = vec![0; SCRATCH].into();
        }
        scratch
    }

    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.idle.borrow().iter().map(|shelf| shelf.idle.len()).sum()
    }
}

impl Shelf {
    fn take(&mut self) -> Option<Held> {
        let held = self.idle.pop();
        self.least = self.least.min(self.idle.len());
        held
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    /// Lets go of those that nobody needed since the last time.
    fn trim(&mut self) {
        self.idle.truncate(self.idle.len() - self.least);
        self.idle.shrink_to_fit();
        self.least = self.idle.len();
    }
}

impl Lease {
    pub(super) fn coding(&self) -> Coding {
        self.encoder().kind().coding()
    }

    /// [`Encoder::take`]
    pub(super) fn take(&mut self, input: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let (encoder, scratch) = self.parts();
        encoder.take(input, &mut scratch.scratch(), out)
    }

    /// [`Encoder::flush`]
    pub(super) fn flush(&mut self, input: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let (encoder, scratch) = self.parts();
        encoder.flush(input, &mut scratch.scratch(), out)
    }

    /// [`Encoder::finish`]
    pub(super) fn finish(&mut self, input: &[u8], out: &mut BytesMut) -> Result<(), Error> {
        let (encoder, scratch) = self.parts();
        encoder.finish(input, &mut scratch.scratch(), out)
    }

    /// Where it came from.
    pub(super) fn pool(&self) -> &Rc<Pool> {
        &self.pool
    }

    fn encoder(&self) -> &Encoder {
        &self.held.as_ref().expect("held until it is dropped").encoder
    }

    fn parts(&mut self) -> (&mut Encoder, &Pool) {
        (&mut self.held.as_mut().expect("held until it is dropped").encoder, &self.pool)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.counters.at_work.decrement(1.0);
        let Some(Held { encoder, share }) = self.held.take() else { return };
        // Somebody wants for memory: it is not kept.
        if self.pool.budget.0.refused.load(Relaxed) != self.pool.refused.get() {
            return;
        }
        let kind = encoder.kind();
        if let Some(encoder) = encoder.reset() {
            self.pool.idle.borrow_mut()[kind as usize].idle.push(Held { encoder, share });
        }
    }
}

#[cfg(test)]
mod tests;
