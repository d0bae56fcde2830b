//! Where the numbers are. With one writer a change is a load and a store; with many, an atomic addition.
//!
//! Everything is relaxed: a scrape may see one number a moment earlier than another, never a torn one.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use metrics::{CounterFn, GaugeFn, HistogramFn};

use super::Kind;

/// How many threads write to a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writers {
    One,
    Many,
}

/// One series in one table.
#[derive(Clone, Debug)]
pub(super) enum Cell {
    Counter(Number),
    Gauge(Number),
    Histogram(Arc<Buckets>),
}

/// A cell as it was read.
#[derive(Debug)]
pub(super) enum Reading {
    Count(u64),
    Value(f64),
    Buckets(Vec<u64>, f64),
}

/// A counter's integer or a gauge's float (its bits). The type of the handle says who writes.
#[derive(Clone, Debug)]
pub(super) enum Number {
    One(Arc<Single>),
    Many(Arc<Multiple>),
}

/// Alone on its cache line: another worker's cells are not to be slowed by it.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Single(AtomicU64);

#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Multiple(AtomicU64);

#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Buckets {
    writers: Writers,
    bounds: &'static [f64],
    /// One more than bounds.
    counts: Box<[AtomicU64]>,
    /// Bits of a float.
    sum: AtomicU64,
}

impl Cell {
    pub(super) fn new(kind: Kind, writers: Writers) -> Self {
        match kind {
            Kind::Counter => Self::Counter(Number::new(writers)),
            Kind::Gauge => Self::Gauge(Number::new(writers)),
            Kind::Histogram(bounds) => Self::Histogram(Arc::new(Buckets {
                writers,
                bounds,
                counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
                sum: AtomicU64::new(0),
            })),
        }
    }

    pub(super) fn read(&self) -> Reading {
        match self {
            Self::Counter(cell) => Reading::Count(cell.read()),
            Self::Gauge(cell) => Reading::Value(f64::from_bits(cell.read())),
            Self::Histogram(cell) => Reading::Buckets(
                cell.counts.iter().map(|count| count.load(Relaxed)).collect(),
                f64::from_bits(cell.sum.load(Relaxed)),
            ),
        }
    }
}

impl Number {
    fn new(writers: Writers) -> Self {
        match writers {
            Writers::One => Self::One(Arc::default()),
            Writers::Many => Self::Many(Arc::default()),
        }
    }

    fn read(&self) -> u64 {
        match self {
            Self::One(cell) => cell.0.load(Relaxed),
            Self::Many(cell) => cell.0.load(Relaxed),
        }
    }

    /// A handle of the kind that is wanted.
    pub(super) fn handle<H>(self) -> H
    where
        H: From<Arc<Single>> + From<Arc<Multiple>>,
    {
        match self {
            Self::One(cell) => cell.into(),
            Self::Many(cell) => cell.into(),
        }
    }
}

impl CounterFn for Single {
    fn increment(&self, value: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(value), Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.store(self.0.load(Relaxed).max(value), Relaxed);
    }
}

impl CounterFn for Multiple {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Relaxed);
    }
}

impl GaugeFn for Single {
    fn increment(&self, value: f64) {
        let now = f64::from_bits(self.0.load(Relaxed));
        self.0.store((now + value).to_bits(), Relaxed);
    }

    fn decrement(&self, value: f64) {
        GaugeFn::increment(self, -value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

impl GaugeFn for Multiple {
    fn increment(&self, value: f64) {
        add(&self.0, value);
    }

    fn decrement(&self, value: f64) {
        add(&self.0, -value);
    }

    fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    /// Not a number is not counted: it would spoil the sum for good.
    fn record_many(&self, value: f64, count: usize) {
        if value.is_nan() {
            return;
        }
        let index = self.bounds.partition_point(|bound| *bound < value);
        // Exact below 2^53 values.
        let (times, weight) = (count as u64, value * count as f64);
        let Some(bucket) = self.counts.get(index) else { return };
        match self.writers {
            Writers::One => {
                bucket.store(bucket.load(Relaxed).wrapping_add(times), Relaxed);
                let sum = f64::from_bits(self.sum.load(Relaxed)) + weight;
                self.sum.store(sum.to_bits(), Relaxed);
            }
            Writers::Many => {
                bucket.fetch_add(times, Relaxed);
                add(&self.sum, weight);
            }
        }
    }
}

fn add(bits: &AtomicU64, value: f64) {
    // Err is impossible: the closure always gives a value.
    let _ = bits.fetch_update(Relaxed, Relaxed, |now| Some((f64::from_bits(now) + value).to_bits()));
}
