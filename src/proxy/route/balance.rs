//! Power of two choices: of two random backends the less loaded gets the call (Mitzenmacher 2001: the longest queue
//! is then O(log log n)). The cost does not depend on how many there are, unless most of them are full.

use std::{cell::Cell, sync::Arc};

use tokio::time::Instant;

use crate::fleet::{Backend, Permit};

/// Pairs drawn before all are looked at.
const DRAWS: usize = 3;
/// Backends looked at for the load of a pool.
const SAMPLE: usize = 4;

/// Draws backends for one call.
#[derive(Debug)]
pub(super) struct Picker<'a> {
    pub(super) rng: &'a Rng,
    pub(super) now: Instant,
    /// Ids not to be picked.
    pub(super) tried: &'a [u64],
    /// Backends looked at, for the test that counts them.
    pub(super) looked: Cell<u32>,
}

impl Picker<'_> {
    /// A place at the better of two, or of a few more when those are full or were tried; with `scan` at any at all.
    pub(super) fn pick(&self, pool: &[Arc<Backend>], scan: bool) -> Option<Permit> {
        match pool {
            [] => return None,
            [only] => return self.take(only),
            _ => {}
        }
        for _ in 0..DRAWS {
            let (a, b) = self.pair(pool);
            let (first, second) = if a.load().cost(self.now) <= b.load().cost(self.now) { (a, b) } else { (b, a) };
            if let Some(permit) = self.take(first).or_else(|| self.take(second)) {
                return Some(permit);
            }
        }
        if scan { self.scan(pool) } else { None }
    }

    /// The mean share of places in use, from a few of them; exact up to four.
    pub(super) fn share(&self, pool: &[Arc<Backend>]) -> f64 {
        let count = pool.len().min(SAMPLE);
        let start = if pool.len() > SAMPLE { self.rng.below(pool.len()) } else { 0 };
        let step = (pool.len() / SAMPLE).max(1);
        let sum: f64 = (0..count).map(|i| self.look(&pool[(start + i * step) % pool.len()]).load().share()).sum();
        if count == 0 { 0.0 } else { sum / count as f64 }
    }

    /// One at random.
    pub(super) fn any<'p>(&self, pool: &'p [Arc<Backend>]) -> Option<&'p Arc<Backend>> {
        if pool.is_empty() { None } else { Some(self.look(&pool[self.rng.below(pool.len())])) }
    }

    fn scan(&self, pool: &[Arc<Backend>]) -> Option<Permit> {
        let (head, tail) = pool.split_at(self.rng.below(pool.len()));
        tail.iter().chain(head).find_map(|backend| self.take(self.look(backend)))
    }

    fn pair<'p>(&self, pool: &'p [Arc<Backend>]) -> (&'p Arc<Backend>, &'p Arc<Backend>) {
        let a = self.rng.below(pool.len());
        let b = (a + 1 + self.rng.below(pool.len() - 1)) % pool.len();
        (self.look(&pool[a]), self.look(&pool[b]))
    }

    fn take(&self, backend: &Arc<Backend>) -> Option<Permit> {
        let fit = backend.is_usable() && !self.tried.contains(&backend.id) && backend.full_until(self.now).is_none();
        if fit { backend.try_acquire() } else { None }
    }

    fn look<'p>(&self, backend: &'p Arc<Backend>) -> &'p Arc<Backend> {
        self.looked.set(self.looked.get() + 1);
        backend
    }
}

/// A worker's own source of chance (xorshift64*, Vigna 2016): good enough to spread load, worth nothing as a secret.
#[derive(Debug)]
pub(super) struct Rng(Cell<u64>);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(Cell::new(seed | 1))
    }

    /// Seeded by the process's hash keys.
    pub(super) fn from_entropy() -> Self {
        use std::hash::{BuildHasher, RandomState};
        Self::new(RandomState::new().hash_one(0))
    }

    /// Below `n`, which is not 0.
    pub(super) fn below(&self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// From 0 to 1.
    pub(super) fn unit(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}
