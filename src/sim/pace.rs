//! How fast a sim is: prefill, decode, jitter. A schedule is fixed when a request gets its slot, so a slow reader
//! makes nothing later than it has to be.

use std::time::Duration;

use tokio::time::Instant;

use super::generate::mix;

/// What a sim's speed is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Time to the first token.
    pub ttft: Duration,
    /// Tokens per second of one answer; 0 = as fast as they can be written.
    pub tokens_per_second: f64,
    /// Every wait is longer or shorter by up to this share, 0 to 1; the same for the same seed and request number.
    pub jitter: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { ttft: Duration::ZERO, tokens_per_second: 0.0, jitter: 0.0 }
    }
}

/// When the tokens of one answer are due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pace: Pace,
    start: Instant,
    key: u64,
}

impl Schedule {
    /// Starts now; `key` chooses the jitter.
    pub(crate) fn new(pace: Pace, key: u64) -> Self {
        Self { pace, start: Instant::now(), key }
    }

    /// When token `i` is due.
    pub(crate) fn due(&self, i: u64) -> Instant {
        self.start + self.shaken(self.pace.ttft, u64::MAX) + self.gaps(i)
    }

    fn gaps(&self, i: u64) -> Duration {
        if self.pace.tokens_per_second <= 0.0 || i == 0 {
            return Duration::ZERO;
        }
        let gap = Duration::from_secs_f64(1.0 / self.pace.tokens_per_second);
        // Only the last gap is shaken, by up to half: the order of tokens and the mean rate stay.
        let shaken = self.shaken(gap, i) / 2;
        gap.mul_f64(i as f64) - gap / 2 + shaken
    }

    fn shaken(&self, wait: Duration, i: u64) -> Duration {
        if self.pace.jitter == 0.0 {
            return wait;
        }
        let unit = mix(self.key ^ i) as f64 / u64::MAX as f64;
        wait.mul_f64(1.0 + self.pace.jitter.clamp(0.0, 1.0) * (2.0 * unit - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokens_are_due_after_prefill_at_the_rate() {
        let pace = Pace { ttft: Duration::from_millis(300), tokens_per_second: 50.0, jitter: 0.0 };
        let schedule = Schedule::new(pace, 1);
        let start = Instant::now();
        assert_eq!(schedule.due(0) - start, Duration::from_millis(300));
        assert_eq!(schedule.due(10) - start, Duration::from_millis(500));
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_keeps_order_and_repeats_itself() {
        let pace = Pace { ttft: Duration::from_millis(300), tokens_per_second: 50.0, jitter: 1.0 };
        let (one, two) = (Schedule::new(pace, 7), Schedule::new(pace, 7));
        assert!((0..100).all(|i| one.due(i) == two.due(i) && one.due(i) <= one.due(i + 1)));
        assert_ne!(one.due(0), Schedule::new(pace, 8).due(0));
    }
}
