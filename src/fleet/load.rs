//! The load of one backend: places in use against its limit, and the peak-sensitive average of its first-token
//! time. All atomics: every worker reads and writes them for every call.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::config::Concurrency;

/// How fast an old first-token time is forgotten (Finagle's and linkerd's decay).
const DECAY: Duration = Duration::from_secs(10);
/// What a backend counts as that has not answered yet, and the least that a measured one counts as: below it,
/// differences are noise next to what a model server does.
const FLOOR: Duration = Duration::from_millis(30);
/// Places a backend without a limit counts as when its share in use is asked for.
const NOMINAL: u32 = 64;
/// No limit.
const UNLIMITED: u32 = u32::MAX;

/// Places and pace of one backend.
#[derive(Debug)]
pub struct Load {
    in_flight: AtomicU32,
    limit: AtomicU32,
    ttft: PeakEwma,
    /// Only with `max_concurrency: auto`.
    learnt: Mutex<Option<Learnt>>,
    learns: std::sync::atomic::AtomicBool,
}

impl Load {
    pub fn new(limit: Concurrency, start: Instant) -> Self {
        let load = Self {
            in_flight: AtomicU32::new(0),
            limit: AtomicU32::new(UNLIMITED),
            ttft: PeakEwma::new(start),
            learnt: Mutex::new(None),
            learns: false.into(),
        };
        load.set_limit(limit, start);
        load
    }

    /// Takes what the configuration says now. A learnt limit is kept while it stays `auto`.
    pub fn set_limit(&self, limit: Concurrency, now: Instant) {
        let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        let places = match limit {
            Concurrency::Unlimited => UNLIMITED,
            Concurrency::Limit(places) => places.max(1),
            Concurrency::Auto => learnt.get_or_insert_with(|| Learnt::new(now)).places(),
        };
        if limit != Concurrency::Auto {
            *learnt = None;
        }
        self.learns.store(learnt.is_some(), Ordering::Relaxed);
        self.limit.store(places, Ordering::Relaxed);
    }

    /// Takes a place, unless all are taken: never more than the limit over all threads.
    pub(super) fn take(&self) -> bool {
        self.in_flight
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n < self.limit.load(Ordering::Relaxed)).then(|| n + 1)
            })
            .is_ok()
    }

    pub(super) fn give_back(&self) {
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u32 {
        // In one order with `Room::want`: a call that begins to wait sees every place given back before it did.
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Calls it may run at once; `None` = as many as come.
    pub fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|&limit| limit != UNLIMITED)
    }

    /// Whether a call would find a place.
    pub fn has_room(&self) -> bool {
        self.in_flight() < self.limit.load(Ordering::Relaxed)
    }

    /// Whether more run than may: the limit was lowered meanwhile.
    pub(super) fn is_over(&self) -> bool {
        self.in_flight() > self.limit.load(Ordering::Relaxed)
    }

    /// The share of its places in use; without a limit, of 64.
    pub fn share(&self) -> f64 {
        f64::from(self.in_flight()) / f64::from(self.limit().unwrap_or(NOMINAL))
    }

    /// The average first-token time, peaks first.
    pub fn ttft(&self, now: Instant) -> Duration {
        self.ttft.get(now)
    }

    /// What one more call would meet here: those before it, each at the pace last seen. Only for comparing.
    pub fn cost(&self, now: Instant) -> f64 {
        (f64::from(self.in_flight()) + 1.0) * self.ttft(now).max(FLOOR).as_secs_f64()
    }

    /// A first token came after `ttft`. True when the limit grew.
    pub(super) fn answered(&self, now: Instant, ttft: Duration) -> bool {
        self.ttft.record(now, ttft);
        self.learn(|learnt, in_flight| learnt.answered(now, ttft, in_flight))
    }

    /// The engine said it is full.
    pub(super) fn refused(&self, now: Instant) {
        self.learn(|learnt, _| learnt.shrink(now));
    }

    /// The engine's own count of calls that wait inside it.
    pub(super) fn waiting(&self, now: Instant, waiting: u32) {
        self.learn(|learnt, _| {
            learnt.waiting = waiting;
            if waiting > 0 {
                learnt.shrink(now);
            }
        });
    }

    fn learn(&self, act: impl FnOnce(&mut Learnt, u32)) -> bool {
        // Busy: another worker is learning from its own answer, one sample less does not matter.
        if !self.learns.load(Ordering::Relaxed) {
            return false;
        }
        let Ok(mut guard) = self.learnt.try_lock() else { return false };
        let Some(learnt) = guard.as_mut() else { return false };
        act(learnt, self.in_flight());
        let places = learnt.places();
        self.limit.swap(places, Ordering::Relaxed) < places
    }
}

/// `max_concurrency: auto`, additive increase and multiplicative decrease as in TCP:
///
/// * starts at 16 places, never below 1, never above 1024;
/// * grows by one per limit's worth of answers, while at least half of the places are in use (else nothing says
///   that more would work), the engine has nobody waiting, and first tokens come in less than twice their best time
///   plus 100 ms;
/// * shrinks by a tenth, at most once a second, when first tokens are slower than that, the engine reports waiting
///   calls, or it answers 429;
/// * the best time drifts up by a tenth every 10 s, so that a change of the load's kind is learnt too.
#[derive(Debug)]
struct Learnt {
    limit: f64,
    best: Option<Duration>,
    drifted: Instant,
    shrunk: Option<Instant>,
    waiting: u32,
}

impl Learnt {
    const START: f64 = 16.0;
    const RANGE: (f64, f64) = (1.0, 1024.0);
    const SLACK: Duration = Duration::from_millis(100);

    fn new(now: Instant) -> Self {
        Self { limit: Self::START, best: None, drifted: now, shrunk: None, waiting: 0 }
    }

    fn places(&self) -> u32 {
        self.limit as u32
    }

    fn answered(&mut self, now: Instant, ttft: Duration, in_flight: u32) {
        let mut best = self.best.unwrap_or(ttft);
        if now.saturating_duration_since(self.drifted) >= DECAY {
            best = best.mul_f64(1.1);
            self.drifted = now;
        }
        let best = best.min(ttft);
        self.best = Some(best);
        if ttft > best * 2 + Self::SLACK {
            self.shrink(now);
        } else if self.waiting == 0 && f64::from(in_flight) * 2.0 >= self.limit {
            self.limit = (self.limit + 1.0 / self.limit).min(Self::RANGE.1);
        }
    }

    fn shrink(&mut self, now: Instant) {
        if self.shrunk.is_none_or(|last| now.saturating_duration_since(last) >= Duration::from_secs(1)) {
            self.limit = (self.limit * 0.9).max(Self::RANGE.0);
            self.shrunk = Some(now);
        }
    }
}

/// Peak-sensitive exponentially weighted moving average: a slower value counts at once and whole, faster ones only
/// bit by bit; without news it decays, so that a backend that was slow once is tried again.
///
/// Value (µs) and time of writing (ms) share one word, so that they change together.
#[derive(Debug)]
struct PeakEwma {
    start: Instant,
    word: AtomicU64,
}

impl PeakEwma {
    fn new(start: Instant) -> Self {
        Self { start, word: AtomicU64::new(FLOOR.as_micros() as u64) }
    }

    fn get(&self, now: Instant) -> Duration {
        Duration::from_micros(Self::decayed(self.word.load(Ordering::Relaxed), self.stamp(now)).0 as u64)
    }

    fn record(&self, now: Instant, value: Duration) {
        let (stamp, value) = (self.stamp(now), value.as_micros().min(u128::from(u32::MAX)) as f64);
        // The closure always answers, so this cannot fail.
        let _ = self.word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let (old, weight) = Self::decayed(word, stamp);
            let new = if value >= old { value } else { old + value * (1.0 - weight) };
            Some(u64::from(stamp) << 32 | new.min(f64::from(u32::MAX)) as u64)
        });
    }

    /// What is left of the stored value, and the weight it was multiplied with.
    fn decayed(word: u64, now: u32) -> (f64, f64) {
        let age = now.wrapping_sub((word >> 32) as u32) as i32;
        let weight = (-f64::from(age.max(0)) / (DECAY.as_millis() as f64)).exp();
        (f64::from(word as u32) * weight, weight)
    }

    /// Milliseconds, wrapping after 49 days: only differences are used.
    fn stamp(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_millis() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_fades() {
        let now = Instant::now();
        let load = Load::new(Concurrency::Unlimited, now);
        load.answered(now, ms(1000));
        assert_eq!(load.ttft(now), ms(1000));
        load.answered(now + ms(100), ms(50));
        let after = load.ttft(now + ms(100));
        assert!(after > ms(980) && after < ms(1000), "{after:?}");
        assert!(load.ttft(now + ms(60_000)) < ms(5));
    }

    #[tokio::test(start_paused = true)]
    async fn the_cost_grows_with_calls_and_with_time() {
        let now = Instant::now();
        let (quick, slow) = (Load::new(Concurrency::Unlimited, now), Load::new(Concurrency::Unlimited, now));
        slow.answered(now, ms(300));
        assert!(quick.cost(now) < slow.cost(now));
        for _ in 0..20 {
            assert!(quick.take());
        }
        assert!(quick.cost(now) > slow.cost(now));
    }

    #[tokio::test(start_paused = true)]
    async fn places_end_at_the_limit() {
        let now = Instant::now();
        let load = Load::new(Concurrency::Limit(2), now);
        assert!(load.take() && load.take() && !load.take());
        assert_eq!(load.share(), 1.0);
        load.set_limit(Concurrency::Limit(1), now);
        assert!(load.is_over());
        load.give_back();
        assert!(!load.has_room());
        load.give_back();
        assert!(load.has_room());
    }

    #[tokio::test(start_paused = true)]
    async fn auto_grows_under_load_and_shrinks_when_first_tokens_slow_down() {
        let now = Instant::now();
        let load = Load::new(Concurrency::Auto, now);
        assert_eq!(load.limit(), Some(16));
        for _ in 0..40 {
            load.answered(now, ms(50));
        }
        assert_eq!(load.limit(), Some(16), "nothing in use: nothing to learn");
        for _ in 0..16 {
            assert!(load.take());
        }
        for _ in 0..40 {
            load.answered(now, ms(50));
        }
        let grown = load.limit().unwrap();
        assert!(grown > 16, "{grown}");
        load.answered(now, ms(900));
        load.answered(now, ms(900));
        let shrunk = load.limit().unwrap();
        assert!(shrunk < grown && shrunk >= grown * 8 / 10, "once a second: {grown} → {shrunk}");
        load.waiting(now + ms(1000), 3);
        assert!(load.limit().unwrap() < shrunk);
    }
}
