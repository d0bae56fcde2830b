//! The rule that a peer who owes us progress must make some.
//!
//! Only the time in which we really wait for the peer counts, so a pause of our own never looks like one of theirs;
//! and a byte now and then does not count as progress.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::ticker::{Deadline, TICK, Ticker};

/// Of every `window` of waiting, at least `least` bytes must have moved.
#[derive(Debug)]
pub struct Pace {
    ticker: Ticker,
    deadline: Deadline,
    /// Ticks of waiting after which the account is settled.
    window: u64,
    least: u64,
    /// Ticks waited in this window before the present wait.
    waited: u64,
    /// When the present wait began.
    since: Option<u64>,
    moved: u64,
}

impl Pace {
    /// A fresh account; nothing runs until [`Pace::poll_late`] is first called.
    pub fn new(ticker: &Ticker, window: Duration, least: u64) -> Self {
        let ticks = window.as_millis().div_ceil(TICK.as_millis());
        Self {
            ticker: ticker.clone(),
            deadline: ticker.deadline(),
            window: u64::try_from(ticks).unwrap_or(u64::MAX),
            least,
            waited: 0,
            since: None,
            moved: 0,
        }
    }

    /// Told while we wait for the peer; ready when the peer is too slow.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.since.is_none() {
            self.wait(self.waited);
        }
        if self.deadline.poll_over(cx).is_pending() {
            return Poll::Pending;
        }
        if self.moved < self.least {
            return Poll::Ready(());
        }
        self.moved = 0;
        self.wait(0);
        self.deadline.poll_over(cx)
    }

    /// `bytes` moved: the wait, if there was one, is over.
    pub fn moved(&mut self, bytes: u64) {
        if let Some(since) = self.since.take() {
            self.waited += self.ticker.now() - since;
            self.deadline.clear();
        }
        self.moved = self.moved.saturating_add(bytes);
        if self.moved >= self.least {
            self.moved = 0;
            self.waited = 0;
        }
    }

    fn wait(&mut self, waited: u64) {
        self.waited = waited;
        self.since = Some(self.ticker.now());
        let left = self.window.saturating_sub(waited).min(u64::from(u32::MAX));
        self.deadline.set(TICK * u32::try_from(left).unwrap_or(u32::MAX));
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn late(pace: &mut Pace) -> bool {
        pace.poll_late(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn ticks(ticker: &Ticker, n: u32) {
        (0..n).for_each(|_| ticker.tick());
    }

    #[test]
    fn a_drip_is_late_and_a_stream_is_not() {
        let ticker = Ticker::default();
        let mut pace = Pace::new(&ticker, Duration::from_secs(1), 100);
        for _ in 0..3 {
            assert!(!late(&mut pace));
            ticks(&ticker, 3);
            pace.moved(1);
        }
        assert!(!late(&mut pace), "0.9 s waited");
        ticks(&ticker, 2);
        assert!(late(&mut pace), "three bytes in more than a second");

        let mut pace = Pace::new(&ticker, Duration::from_secs(1), 100);
        for _ in 0..50 {
            assert!(!late(&mut pace));
            ticks(&ticker, 9);
            pace.moved(100);
        }
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let ticker = Ticker::default();
        let mut pace = Pace::new(&ticker, Duration::from_secs(1), 100);
        for _ in 0..9 {
            assert!(!late(&mut pace));
            ticks(&ticker, 1);
            pace.moved(1);
            ticks(&ticker, 1000);
        }
        assert!(!late(&mut pace));
    }
}
