//! Notices: this machine goes, and when; or it may go soon.
//!
//! * A *hint* ([`Action::Rebalance`]) makes a backend the second choice: it gets calls when the others have no room.
//! * With any other notice a backend *leaves*: nothing new goes to it, and what runs has to be off it by its time.
//! * Unless a model would be left without a backend. Then it stays as the second choice, until another can serve what
//!   it serves: that is decided anew whenever the fleet changes. Of several that leave, the one that
//!   goes last stays.
//! * Where half of a zone's spot machines leave, and two at least, the others may be next: they are the second choice
//!   too.
//! * A notice ends when it is taken back, when the backend was out and comes back after its time, or when it still
//!   runs ten minutes after it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use http::{HeaderMap, header};
use tokio::time::Instant;

use super::models::Models;
use crate::telemetry::time;

/// What a Sluicegate tells another of its machine: `action;time`.
pub const HEADER: &str = "x-sluicegate-interruption";
/// The source of what is told so.
pub const BY_HEADER: &str = "header";
/// The least that clouds give, for a notice that tells no time.
const LEAD: Duration = Duration::from_secs(30);
/// No notice is longer: a clock is wrong.
const MOST_LEAD: Duration = Duration::from_secs(3600);
/// Two times this near are the same: services tell whole seconds, and clocks differ.
const SAME: Duration = Duration::from_secs(2);
/// Long after its time, and with nobody repeating it, a notice was a false alarm.
const LAPSE: Duration = Duration::from_secs(600);
/// The same for a hint.
const HINT_LAPSE: Duration = Duration::from_secs(3600);

/// What happens to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Terminate,
    Stop,
    Hibernate,
    /// It may be taken soon: a hint.
    Rebalance,
}

/// What was said about a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub action: Action,
    /// When the machine goes; `None` = not said, then soon.
    pub at: Option<Instant>,
    /// Who said so: `aws`, `gcp`, `azure`, `push`, `header`.
    pub source: Arc<str>,
}

/// What a notice led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupted {
    /// Nothing new goes there, and what runs moves off in time.
    Draining,
    /// It is the second choice from now on.
    Hinted,
    /// Nobody else serves one of its models: it goes on as long as it can.
    Last,
    /// The same was said before.
    Known,
}

/// The notice of the machine that this gateway itself runs on, for all threads.
#[derive(Debug, Default)]
pub struct Own {
    is_set: AtomicBool,
    notice: ArcSwapOption<Notice>,
}

/// A notice as a backend holds it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) action: Action,
    /// `None` for a hint.
    pub(super) goes: Option<Instant>,
    pub(super) source: Arc<str>,
    pub(super) since: Instant,
    /// When it was last said.
    heard: Instant,
    /// The backend was out since.
    was_out: bool,
}

/// A backend as far as [`parting`] is concerned.
#[derive(Clone, Debug)]
pub(super) struct Stand {
    /// When its machine goes, if it does.
    pub(super) goes: Option<Instant>,
    /// It would get calls, were it not for its notice, and has answered before: one that never did covers nobody.
    pub(super) able: bool,
    pub(super) models: Arc<Models>,
    /// Its zone, when it is a spot machine of one.
    pub(super) spot_of: Option<Arc<str>>,
}

/// Of a zone's spot machines, at least so many leave when the zone does.
const ZONE_LEAST: usize = 2;

// === impl Action ===

impl Action {
    pub const ALL: [Self; 4] = [Self::Terminate, Self::Stop, Self::Hibernate, Self::Rebalance];

    /// Its name in metrics, logs, headers and the admin API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Terminate => "terminate",
            Self::Stop => "stop",
            Self::Hibernate => "hibernate",
            Self::Rebalance => "rebalance",
        }
    }

    /// The action of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name().eq_ignore_ascii_case(name))
    }

    /// Whether the machine goes; else it only may.
    pub fn leaves(self) -> bool {
        self != Self::Rebalance
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Notice ===

impl Notice {
    /// Of a time by somebody's clock, which says `clock` now.
    pub fn new(action: Action, time: Option<SystemTime>, clock: SystemTime, source: &str) -> Self {
        let left = |time: SystemTime| time.duration_since(clock).unwrap_or_default().min(MOST_LEAD);
        Self { action, at: time.map(|time| Instant::now() + left(time)), source: source.into() }
    }

    /// Reads `action;time` from a head that was just made.
    pub fn read(text: &str, headers: &HeaderMap, source: &str) -> Option<Self> {
        let (action, time) = text.split_once(';').map_or((text, None), |(action, time)| (action, Some(time)));
        let time = match time.map(str::trim) {
            None | Some("") => None,
            Some(time) => Some(time::parse_rfc3339(time)?),
        };
        Some(Self::new(Action::named(action.trim())?, time, clock(headers), source))
    }

    /// `action;time`, by this machine's clock.
    pub fn told(&self) -> String {
        let time = self.at.map(|at| SystemTime::now() + at.saturating_duration_since(Instant::now()));
        time.map_or_else(|| self.action.to_string(), |time| format!("{};{}", self.action, time::rfc3339(time)))
    }
}

/// What the clock says of who made a head: its `Date`, unless it was made long ago. Without one ours must do.
pub fn clock(headers: &HeaderMap) -> SystemTime {
    let date = headers.get(header::DATE).filter(|_| !headers.contains_key(header::AGE));
    date.and_then(|date| time::parse_http_date(date.to_str().ok()?)).unwrap_or_else(SystemTime::now)
}

// === impl Own ===

impl Own {
    /// What is known from now on.
    pub fn set(&self, notice: Option<Notice>) {
        let is_set = notice.is_some();
        self.notice.store(notice.map(Arc::new));
        self.is_set.store(is_set, Relaxed);
    }

    /// Whether there is one: as cheap as can be.
    pub fn is_set(&self) -> bool {
        self.is_set.load(Relaxed)
    }

    pub fn get(&self) -> Option<Arc<Notice>> {
        self.notice.load_full()
    }
}

// === impl Held ===

impl Held {
    pub(super) fn new(now: Instant, notice: &Notice) -> Self {
        let soon = if notice.action == Action::Hibernate { now } else { now + LEAD };
        let goes = notice.action.leaves().then(|| notice.at.unwrap_or(soon));
        let source = Arc::clone(&notice.source);
        Self { action: notice.action, goes, source, since: now, heard: now, was_out: false }
    }

    /// Takes what is said now. True when it is news: another action, another time by who said it first, an earlier one
    /// by anybody else.
    pub(super) fn hear(&mut self, now: Instant, notice: &Notice) -> bool {
        let news = self.is_news(now, notice);
        self.heard = now;
        if news {
            *self = Self { since: self.since, was_out: self.was_out, ..Self::new(now, notice) };
        }
        news
    }

    pub(super) fn note_out(&mut self) {
        self.was_out = true;
    }

    /// Whether it was about the machine that was here before: this one answers.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.was_out && self.goes.is_none_or(|goes| goes <= now)
    }

    /// When it is held for a false alarm, unless it is said again.
    pub(super) fn lapses_at(&self) -> Instant {
        self.goes.map_or(self.heard + HINT_LAPSE, |goes| goes.max(self.heard) + LAPSE)
    }

    fn is_news(&self, now: Instant, notice: &Notice) -> bool {
        match (self.goes, Self::new(now, notice).goes) {
            (None, goes) => goes.is_some(),
            // A hint beside a notice says nothing new.
            (Some(_), None) => false,
            // It says it again, and still not when.
            (Some(_), Some(_)) if notice.at.is_none() => false,
            // Its time has passed: whoever goes on telling it tells the same.
            (Some(old), Some(new)) if new <= now && old <= now + SAME && notice.action == self.action => false,
            (Some(old), Some(new)) => {
                let same = self.source == notice.source;
                old > new + SAME || same && (new > old + SAME || notice.action != self.action)
            }
        }
    }
}

/// Which of the backends part with their machines now: all that leave, but for the last that serves a model.
pub(super) fn parting(stands: &[Stand]) -> Vec<bool> {
    let mut parted = vec![false; stands.len()];
    let mut leaving: Vec<_> = (0..stands.len()).filter(|&at| stands[at].goes.is_some()).collect();
    leaving.sort_by_key(|&at| stands[at].goes);
    for at in leaving {
        let others: Vec<_> = (0..stands.len())
            .filter(|&other| other != at && stands[other].able && !parted[other])
            .map(|other| &*stands[other].models)
            .collect();
        parted[at] = is_covered(&stands[at].models, &others);
    }
    parted
}

/// Which of the backends that stay are in a zone that is going.
pub(super) fn wary(stands: &[Stand]) -> Vec<bool> {
    let mut zones: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for stand in stands {
        if let Some(zone) = &stand.spot_of {
            let (all, leaving) = zones.entry(zone).or_default();
            *all += 1;
            *leaving += usize::from(stand.goes.is_some());
        }
    }
    let is_going = |zone: &str| zones.get(zone).is_some_and(|(all, gone)| *gone >= ZONE_LEAST && gone * 2 >= *all);
    stands.iter().map(|stand| stand.goes.is_none() && stand.spot_of.as_deref().is_some_and(is_going)).collect()
}

/// Whether `others` may serve all that `models` does.
fn is_covered(models: &Models, others: &[&Models]) -> bool {
    match models {
        Models::Unknown | Models::Any => others.iter().any(|other| !matches!(other, Models::Known(_))),
        Models::Known(names) => {
            !others.is_empty() && names.iter().all(|name| others.iter().any(|other| other.may_serve(name)))
        }
    }
}
