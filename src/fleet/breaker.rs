//! The circuit breaker of one backend: takes it out after live traffic failed there, and lets one call through to
//! see whether it is back.
//!
//! ```text
//!            connection refused or reset: at once
//!            5 failures in a row, or half of ≥ 10 in 10 s
//!   Closed ───────────────────────────────────────────────► Open (1 s, then 2 s, 4 s … 60 s)
//!     ▲                                                      │  time is over: the next call is the trial
//!     └────────────── trial answered ◄── HalfOpen ◄──────────┘
//!                                            │ trial failed: Open again, for twice as long
//! ```
//!
//! A passed probe closes a breaker that opened for a connection failure: the door is open again. It does not close
//! one that opened for bad answers, because the health path said "fine" all the while.

use std::time::Duration;

use tokio::time::Instant;

/// How long it is open at first, and at most.
const OPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Failures in a row that open it, whatever the traffic.
const IN_A_ROW: u32 = 5;
/// A failure rate means something from this many answers on.
const VOLUME: u32 = 10;

/// What went wrong at a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection, or it was closed before an answer: the server is not there.
    Connection,
    /// It is there and does its work badly: 502/503/504, an empty 500, a cut or broken answer.
    Answer,
}

/// What the last ten seconds held.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    pub(super) answered: u32,
    pub(super) failed: u32,
}

/// Which of its three states it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Closed,
    /// Nobody is let through before `until`.
    Open {
        until: Instant,
        fault: Fault,
    },
    /// One call is under way to see.
    HalfOpen {
        fault: Fault,
    },
}

/// Pure: time comes in as an argument.
#[derive(Debug)]
pub(super) struct Breaker {
    phase: Phase,
    /// Openings since it last closed: the exponent of the open time.
    openings: u32,
    in_a_row: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { phase: Phase::Closed, openings: 0, in_a_row: 0 }
    }
}

impl Breaker {
    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether calls may go through without asking.
    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether there is nothing a success could change.
    pub(super) fn is_calm(&self) -> bool {
        self.is_closed() && self.in_a_row == 0
    }

    /// A call failed.
    pub(super) fn failed(&mut self, now: Instant, fault: Fault, rate: Rate) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        let opens = match self.phase {
            // What was sent before it opened fails after it: no news.
            Phase::Open { .. } => false,
            Phase::HalfOpen { .. } => true,
            Phase::Closed => {
                let answers = rate.answered.saturating_add(rate.failed);
                fault == Fault::Connection
                    || self.in_a_row >= IN_A_ROW
                    || answers >= VOLUME && rate.failed.saturating_mul(2) >= answers
            }
        };
        if opens {
            self.open(now, fault);
        }
    }

    /// A call was answered. True when this closed it.
    pub(super) fn answered(&mut self) -> bool {
        match self.phase {
            // Sent before it opened.
            Phase::Open { .. } => false,
            Phase::HalfOpen { .. } => {
                self.close();
                true
            }
            Phase::Closed => {
                self.in_a_row = 0;
                false
            }
        }
    }

    /// A probe was answered well.
    pub(super) fn probed(&mut self) {
        if let Phase::Open { fault: Fault::Connection, .. } | Phase::HalfOpen { fault: Fault::Connection } = self.phase
        {
            self.close();
        }
    }

    /// When the next trial may start; `None` when there is none to make.
    pub(super) fn trial_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Open { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Takes the one trial, when it is due or when nobody else is left (`anyway`).
    pub(super) fn try_trial(&mut self, now: Instant, anyway: bool) -> bool {
        match self.phase {
            Phase::Open { until, fault } if anyway || until <= now => {
                self.phase = Phase::HalfOpen { fault };
                true
            }
            _ => false,
        }
    }

    /// The trial ended without saying anything (its client left): the next call may try at once.
    pub(super) fn trial_abandoned(&mut self, now: Instant) {
        if let Phase::HalfOpen { fault } = self.phase {
            self.phase = Phase::Open { until: now, fault };
        }
    }

    fn open(&mut self, now: Instant, fault: Fault) {
        let time = OPEN.0.saturating_mul(1 << self.openings.min(6)).min(OPEN.1);
        self.openings = self.openings.saturating_add(1);
        self.phase = Phase::Open { until: now + time, fault };
    }

    fn close(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Rate = Rate { answered: 0, failed: 1 };

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        breaker.failed(now, Fault::Connection, QUIET);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_failure_opens_at_once() {
        let now = Instant::now();
        assert_eq!(opened(now).phase(), Phase::Open { until: now + Duration::from_secs(1), fault: Fault::Connection });
    }

    #[tokio::test(start_paused = true)]
    async fn bad_answers_open_by_number_in_a_row() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failed(now, Fault::Answer, QUIET);
        }
        assert!(breaker.is_closed());
        breaker.answered();
        for _ in 0..4 {
            breaker.failed(now, Fault::Answer, QUIET);
        }
        assert!(breaker.is_closed(), "an answer between starts the row anew");
        breaker.failed(now, Fault::Answer, QUIET);
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn bad_answers_open_by_rate_when_there_is_volume() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        breaker.failed(now, Fault::Answer, Rate { answered: 4, failed: 5 });
        assert!(breaker.is_closed(), "nine answers say little");
        breaker.failed(now, Fault::Answer, Rate { answered: 6, failed: 5 });
        assert!(breaker.is_closed(), "less than half");
        breaker.failed(now, Fault::Answer, Rate { answered: 5, failed: 5 });
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_trial_when_the_time_is_over_and_it_closes_on_an_answer() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(!breaker.try_trial(now + Duration::from_millis(999), false));
        assert!(breaker.try_trial(now + Duration::from_secs(1), false));
        assert!(!breaker.try_trial(now + Duration::from_secs(1), false), "one trial only");
        assert!(breaker.answered());
        assert!(breaker.is_calm());
    }

    #[tokio::test(start_paused = true)]
    async fn the_open_time_doubles_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        let mut times = Vec::new();
        for _ in 0..8 {
            let until = breaker.trial_at().unwrap();
            times.push((until - now).as_secs());
            now = until;
            assert!(breaker.try_trial(now, false));
            breaker.failed(now, Fault::Connection, QUIET);
        }
        assert_eq!(times, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_closes_only_what_a_connection_failure_opened() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.probed();
        assert!(breaker.is_closed());
        for _ in 0..5 {
            breaker.failed(now, Fault::Answer, QUIET);
        }
        breaker.probed();
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_abandoned_trial_is_given_to_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert!(breaker.try_trial(now, true), "when nobody else is left it need not be due");
        breaker.trial_abandoned(now);
        assert!(breaker.try_trial(now, false));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_before_it_opened_changes_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let phase = breaker.phase();
        assert!(!breaker.answered());
        breaker.failed(now + Duration::from_millis(500), Fault::Connection, QUIET);
        assert_eq!(breaker.phase(), phase);
    }
}
