//! The state machine of one backend: what probes, live traffic and the operator say, made into one state with its
//! reason.
//!
//! ```text
//!   Unknown ──► Healthy ⇄ Unhealthy          Draining: laid over any of them, by the operator until undrained, by a
//!                                            notice until that ends
//! ```
//!
//! * A probe counts after `health.unhealthy_after` failures or `health.healthy_after` passes in a row.
//! * A refused or reset connection of live traffic counts at once; a passed probe or trial takes it back.
//! * The first answer of live traffic makes an unknown backend healthy (the only way without probes).
//! * What a probe found, live traffic does not overrule: an engine that still loads its model may answer some paths.

use std::{fmt, sync::Arc};

use tokio::time::Instant;

use super::{
    breaker::{Breaker, Fault, Phase, Rate},
    interruption::{Held, Notice},
};

/// Whether a backend gets calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Nothing is known yet: it may get calls.
    Unknown,
    Healthy,
    Unhealthy,
    /// Finishes what runs, takes nothing new.
    Draining,
}

/// A state, why, and since when.
#[derive(Clone, Debug)]
pub struct Health {
    pub state: State,
    pub reason: Arc<str>,
    pub since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Unknown,
    Healthy,
    /// Live traffic found no server there.
    Gone,
    /// The prober says so.
    Sick,
}

/// Pure: time comes in as an argument.
#[derive(Debug)]
pub(super) struct Machine {
    condition: Condition,
    reason: Arc<str>,
    since: Instant,
    /// Probes failed, or passed, in a row.
    fails: u32,
    passes: u32,
    drain: Option<(Arc<str>, Instant)>,
    notice: Option<Held>,
    /// It takes nothing new because of its notice: there are others. Never without one.
    parted: bool,
    /// Others of its zone go: it may be next.
    wary: bool,
    /// Grows with every change of the notice.
    notices: u64,
    /// Why the last notice ended.
    ended: &'static str,
    breaker: Breaker,
}

impl Machine {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            condition: Condition::Unknown,
            reason: "not asked yet".into(),
            since: now,
            fails: 0,
            passes: 0,
            drain: None,
            notice: None,
            parted: false,
            wary: false,
            notices: 0,
            ended: "",
            breaker: Breaker::default(),
        }
    }

    pub(super) fn health(&self) -> Health {
        if let Some((reason, since)) = &self.drain {
            return Health { state: State::Draining, reason: Arc::clone(reason), since: *since };
        }
        if let (Some(held), true) = (&self.notice, self.parted) {
            let reason = format!("its machine goes ({}), says {}", held.action, held.source).into();
            return Health { state: State::Draining, reason, since: held.since };
        }
        let state = match self.condition {
            Condition::Unknown if self.breaker.is_closed() => State::Unknown,
            Condition::Healthy if self.breaker.is_closed() => State::Healthy,
            _ => State::Unhealthy,
        };
        Health { state, reason: Arc::clone(&self.reason), since: self.since }
    }

    pub(super) fn breaker(&self) -> Phase {
        self.breaker.phase()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some() || self.parted
    }

    /// Whether it gets its share of calls.
    pub(super) fn is_usable(&self) -> bool {
        !self.parted && self.is_able()
    }

    /// Whether it would, were it not for its notice.
    fn is_able(&self) -> bool {
        self.drain.is_none()
            && matches!(self.condition, Condition::Unknown | Condition::Healthy)
            && self.breaker.is_closed()
    }

    /// Whether it would, and is known to work.
    pub(super) fn is_proven(&self) -> bool {
        self.is_able() && self.condition == Condition::Healthy
    }

    /// Whether a success has nothing to change here: the hot path then takes no lock.
    pub(super) fn is_calm(&self) -> bool {
        self.condition == Condition::Healthy && self.breaker.is_calm()
    }

    /// When a call may be sent to see whether it is back; `None` when there is no such trial to make.
    pub(super) fn trial_at(&self) -> Option<Instant> {
        if self.is_draining() || self.condition == Condition::Sick { None } else { self.breaker.trial_at() }
    }

    pub(super) fn probe_passed(&mut self, now: Instant, need: u32) {
        self.fails = 0;
        self.passes = self.passes.saturating_add(1);
        if self.passes < need {
            return;
        }
        self.breaker.probed();
        if self.notice.as_ref().is_some_and(|held| held.is_over(now)) {
            self.end_notice("it was out, and came back");
        }
        if self.condition != Condition::Healthy {
            self.enter(now, Condition::Healthy, "health check passed".into());
        } else if self.breaker.is_closed() && &*self.reason != "health check passed" {
            self.reason = "health check passed".into();
        }
    }

    pub(super) fn probe_failed(&mut self, now: Instant, need: u32, reason: &str) {
        self.passes = 0;
        self.fails = self.fails.saturating_add(1);
        if self.condition == Condition::Sick {
            if &*self.reason != reason {
                self.reason = reason.into();
            }
        } else if self.fails >= need {
            self.enter(now, Condition::Sick, reason.into());
        }
    }

    pub(super) fn call_answered(&mut self, now: Instant) {
        if self.breaker.answered() || self.condition == Condition::Unknown && self.breaker.is_closed() {
            let heals = matches!(self.condition, Condition::Unknown | Condition::Gone | Condition::Healthy);
            if heals {
                self.enter(now, Condition::Healthy, "answers calls".into());
            }
        }
    }

    pub(super) fn call_failed(&mut self, now: Instant, fault: Fault, rate: Rate, reason: &str) {
        let before = self.breaker.is_closed();
        self.breaker.failed(now, fault, rate);
        if fault == Fault::Connection && self.condition != Condition::Sick {
            // The next passed probe counts anew.
            self.passes = 0;
            if self.condition == Condition::Gone {
                self.reason = reason.into();
            } else {
                self.enter(now, Condition::Gone, reason.into());
            }
        } else if before && !self.breaker.is_closed() && self.condition != Condition::Sick {
            self.reason = format!("taken out after failed calls, the last: {reason}").into();
            self.since = now;
        }
    }

    pub(super) fn try_trial(&mut self, now: Instant, anyway: bool) -> bool {
        self.breaker.try_trial(now, anyway)
    }

    pub(super) fn trial_abandoned(&mut self, now: Instant) {
        self.breaker.trial_abandoned(now);
    }

    /// True when it was not draining before.
    pub(super) fn drain(&mut self, now: Instant, reason: &str) -> bool {
        let first = self.drain.is_none();
        if first {
            self.drain = Some((reason.into(), now));
        }
        first
    }

    /// Takes back the operator's word and any notice. True when it was draining before.
    pub(super) fn undrain(&mut self) -> bool {
        let was = self.is_draining();
        self.drain = None;
        self.withdraw();
        was
    }

    /// True when this is news.
    pub(super) fn interrupt(&mut self, now: Instant, notice: &Notice) -> bool {
        let news = match &mut self.notice {
            Some(held) => held.hear(now, notice),
            None => {
                self.notice = Some(Held::new(now, notice));
                true
            }
        };
        self.notices += u64::from(news);
        news
    }

    /// True when there was a notice.
    pub(super) fn withdraw(&mut self) -> bool {
        self.end_notice("taken back")
    }

    /// Ends a notice that was a false alarm. True when there was one.
    pub(super) fn lapse(&mut self, now: Instant) -> bool {
        let over = self.notice.as_ref().is_some_and(|held| held.lapses_at() <= now);
        over && self.end_notice("its time is long over, and nobody repeats it")
    }

    pub(super) fn notice(&self) -> Option<&Held> {
        self.notice.as_ref()
    }

    /// How often the notice changed, and why the last one ended.
    pub(super) fn notices(&self) -> (u64, &'static str) {
        (self.notices, self.ended)
    }

    pub(super) fn is_wary(&self) -> bool {
        self.wary
    }

    pub(super) fn set_wary(&mut self, wary: bool) {
        self.wary = wary;
    }

    pub(super) fn is_parted(&self) -> bool {
        self.parted
    }

    /// Whether its machine's going is acted on; without a notice it never is.
    pub(super) fn part(&mut self, parted: bool) {
        self.parted = parted && self.notice.as_ref().is_some_and(|held| held.goes.is_some());
    }

    fn end_notice(&mut self, why: &'static str) -> bool {
        let was = self.notice.take().is_some();
        self.parted = false;
        if was {
            (self.notices, self.ended) = (self.notices + 1, why);
        }
        was
    }

    fn enter(&mut self, now: Instant, condition: Condition, reason: Arc<str>) {
        let is_out = |condition| matches!(condition, Condition::Gone | Condition::Sick);
        // Another finding about one that is out already: it is out since the first.
        if !(is_out(self.condition) && is_out(condition)) {
            self.since = now;
        }
        if is_out(condition)
            && let Some(held) = &mut self.notice
        {
            held.note_out();
        }
        self.condition = condition;
        self.reason = reason;
        self.fails = 0;
    }
}

impl State {
    /// Its name in metrics, logs and the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Draining => "draining",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUIET: Rate = Rate { answered: 0, failed: 1 };

    fn state(machine: &Machine) -> State {
        machine.health().state
    }

    #[tokio::test(start_paused = true)]
    async fn probes_count_after_their_number_in_a_row() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        assert_eq!(state(&machine), State::Unknown);
        assert!(machine.is_usable());
        machine.probe_passed(now, 1);
        assert_eq!(state(&machine), State::Healthy);
        machine.probe_failed(now, 2, "no answer");
        assert_eq!(state(&machine), State::Healthy);
        machine.probe_passed(now, 1);
        machine.probe_failed(now, 2, "no answer");
        assert_eq!(state(&machine), State::Healthy, "a pass between starts the row anew");
        machine.probe_failed(now, 2, "no answer");
        assert_eq!(state(&machine), State::Unhealthy);
        assert_eq!(&*machine.health().reason, "no answer");
        machine.probe_passed(now, 2);
        assert_eq!(state(&machine), State::Unhealthy);
        machine.probe_passed(now, 2);
        assert_eq!(state(&machine), State::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn the_reason_follows_while_it_stays_unhealthy() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.probe_failed(now, 1, "connection refused");
        machine.probe_failed(now + Duration::from_secs(1), 1, "loading model");
        let health = machine.health();
        assert_eq!((&*health.reason, health.since), ("loading model", now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_call_counts_at_once_and_a_probe_takes_it_back() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.probe_passed(now, 1);
        machine.call_failed(now, Fault::Connection, QUIET, "connection refused");
        assert_eq!(state(&machine), State::Unhealthy);
        assert!(!machine.is_usable());
        assert_eq!(machine.trial_at(), Some(now + Duration::from_secs(1)));
        machine.probe_passed(now, 1);
        assert_eq!(state(&machine), State::Healthy);
        assert!(machine.is_usable());
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_out_since_the_first_sign() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.call_failed(now, Fault::Connection, QUIET, "connection refused");
        machine.probe_failed(now + Duration::from_secs(2), 1, "no answer");
        let health = machine.health();
        assert_eq!((&*health.reason, health.since), ("no answer", now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_call_heals_what_calls_found_but_not_what_a_probe_found() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut machine = Machine::new(now);
        machine.call_failed(now, Fault::Connection, QUIET, "connection refused");
        assert!(machine.try_trial(later, false));
        machine.call_answered(later);
        assert_eq!(state(&machine), State::Healthy);

        machine.call_failed(later, Fault::Connection, QUIET, "connection refused");
        machine.probe_failed(later, 1, "connection refused");
        assert_eq!(machine.trial_at(), None, "the prober decides");
        machine.call_answered(later);
        assert_eq!(state(&machine), State::Unhealthy);
    }

    #[tokio::test(start_paused = true)]
    async fn live_answers_alone_make_it_healthy() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.call_answered(now);
        assert_eq!(state(&machine), State::Healthy);
        assert!(machine.is_calm());
    }

    #[tokio::test(start_paused = true)]
    async fn draining_lies_over_the_rest() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.probe_passed(now, 1);
        assert!(machine.drain(now, "asked for by the operator"));
        assert!(!machine.drain(now, "again"));
        assert_eq!(state(&machine), State::Draining);
        assert!(!machine.is_usable());
        machine.probe_failed(now, 1, "no answer");
        assert_eq!(state(&machine), State::Draining);
        assert!(machine.undrain());
        assert_eq!(state(&machine), State::Unhealthy);
    }

    #[tokio::test(start_paused = true)]
    async fn bad_answers_take_it_out_with_their_reason() {
        let now = Instant::now();
        let mut machine = Machine::new(now);
        machine.probe_passed(now, 1);
        for _ in 0..5 {
            machine.call_failed(now, Fault::Answer, QUIET, "status 503");
        }
        assert_eq!(state(&machine), State::Unhealthy);
        assert!(machine.health().reason.contains("status 503"));
        machine.probe_passed(now, 1);
        assert!(!machine.is_usable(), "its health path said so all the while");
    }
}
