//! A count of the last ten seconds, shared by all threads without a lock.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

/// The span that is counted.
const SPAN: Duration = Duration::from_secs(10);

const SLOTS: usize = SPAN.as_secs() as usize;

/// Ten slots of one second. A slot holds the second it counts and the count itself in one word, so that the first
/// to write in a new second also clears what was there ten seconds ago. Two threads that cross the edge of a second
/// together may lose a count: it is a rate, not a ledger.
#[derive(Debug)]
pub struct Window {
    start: Instant,
    slots: [AtomicU64; SLOTS],
}

impl Window {
    /// An empty count that starts now.
    pub fn new(start: Instant) -> Self {
        Self { start, slots: Default::default() }
    }

    /// Counts one more.
    pub fn add(&self, now: Instant) {
        let second = self.second(now);
        let slot = &self.slots[second as usize % SLOTS];
        let word = slot.load(Relaxed);
        let fresh = u64::from(second) << 32 | 1;
        let renewed = word >> 32 != u64::from(second) && slot.compare_exchange(word, fresh, Relaxed, Relaxed).is_ok();
        if !renewed {
            slot.fetch_add(1, Relaxed);
        }
    }

    /// How many there were in the last ten seconds.
    pub fn sum(&self, now: Instant) -> u32 {
        let second = self.second(now);
        let recent = |word: u64| {
            let age = second.wrapping_sub((word >> 32) as u32);
            if (age as usize) < SLOTS { word as u32 } else { 0 }
        };
        self.slots.iter().map(|slot| recent(slot.load(Relaxed))).fold(0, u32::saturating_add)
    }

    /// From 1, so that an untouched slot counts no second.
    fn second(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32 + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn counts_ten_seconds_and_forgets_older_ones() {
        let window = Window::new(Instant::now());
        window.add(Instant::now());
        window.add(Instant::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        window.add(Instant::now());
        assert_eq!(window.sum(Instant::now()), 3);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(window.sum(Instant::now()), 1);
        window.add(Instant::now());
        assert_eq!(window.sum(Instant::now()), 2);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(window.sum(Instant::now()), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_untouched_window_is_empty() {
        assert_eq!(Window::new(Instant::now()).sum(Instant::now()), 0);
    }
}
