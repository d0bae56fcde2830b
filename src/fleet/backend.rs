//! One backend: what was configured, and what is known of it now.
//!
//! A [`Backend`] is its configuration and a share of its state. A reload that changes the configuration makes a new
//! one with the same state, so that calls of before and after count against the same limit. Hot reads and writes are
//! atomics; the state machine behind its mutex is touched by probes, failures and the first answer after one.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption, Guard};
use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use super::{
    Hub,
    breaker::{Fault, Phase, Rate},
    event::Change,
    health::{Health, Machine, State},
    interruption::{Action, Interrupted, Notice, Stand},
    load::Load,
    models::Models,
    room::Room,
    window::Window,
};
use crate::{config, protocol::engine::Engine};

/// One inference server, as now known.
pub struct Backend {
    pub spec: Arc<config::Backend>,
    /// Unique over reloads: another configuration is another id.
    pub id: u64,
    core: Arc<Core>,
}

/// What outlives a change of configuration.
struct Core {
    hub: Weak<Hub>,
    room: Arc<Room>,
    start: Instant,
    load: Load,
    machine: Mutex<Machine>,
    // Copies of what the machine says, for readers without its lock.
    flags: AtomicU8,
    calm: AtomicBool,
    trial_at: AtomicU64,
    since: AtomicU64,
    /// When its machine goes by its notice, and the same while that is acted on.
    goes_at: AtomicU64,
    leaves_at: AtomicU64,
    /// The engine said "full" (429): others first until then.
    full_until: AtomicU64,
    /// Pieces of answers that came; only compared with itself.
    heard: AtomicU64,
    engine: ArcSwapOption<Engine>,
    models: ArcSwap<Models>,
    model_list: ArcSwapOption<Bytes>,
    answered: Window,
    failed: Window,
    totals: Totals,
}

/// Since this process started.
#[derive(Debug, Default)]
pub struct Totals {
    pub calls: AtomicU64,
    /// An answer came, whatever its status.
    pub answered: AtomicU64,
    /// No connection, no answer, a broken or cut one, or a status that asks for another try.
    pub failed: AtomicU64,
    /// 429.
    pub full: AtomicU64,
    /// Microseconds that answers took, from the request to the last byte, added up.
    pub worked: AtomicU64,
    /// Bytes of request bodies that went to it.
    pub sent: AtomicU64,
    /// Bytes of answer bodies that came from it.
    pub received: AtomicU64,
}

/// How one attempt went. Told by `upstream`, once or (answered, then cut) twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// The first bytes of the body came this long after the request had left; `None` for an answer that says nothing
    /// about the backend's pace (an error status).
    Answered { ttft: Option<Duration> },
    /// 429; come again after so long, if it said so.
    Full { retry_after: Option<Duration> },
    /// No connection: refused, not in time, or failed in TLS. The text says which.
    Refused(&'a str),
    /// The connection was closed or reset before an answer, also when it was cut as dead.
    Reset(&'a str),
    /// 502, 503, 504 or an empty 500.
    Status(u16),
    /// An answer that broke its own framing, or was cut after it began, or did not come in time.
    Broken(&'a str),
}

/// What a probe found about a backend that had fallen silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing lives there: cut at once.
    Dead(String),
    /// It answers probes, sends to others, or nobody can tell: wait on.
    Busy,
}

/// Somebody waits for a sign of life. Answered by `control::health`.
#[derive(Debug)]
pub struct Suspicion {
    pub backend: Arc<Backend>,
    pub answer: oneshot::Sender<Verdict>,
}

/// A place at a backend, given back (or handed on to a call that waits) when dropped.
pub struct Permit {
    backend: Arc<Backend>,
    /// This call is the breaker's trial.
    trial: bool,
    held: bool,
}

const USABLE: u8 = 1;
const DRAINING: u8 = 2;
const GONE: u8 = 4;
/// It has a notice, or its zone goes, and it gets calls all the same: after the others.
const HINTED: u8 = 8;
const NEVER: u64 = u64::MAX;

// === impl Backend ===

impl Backend {
    pub(super) fn new(spec: Arc<config::Backend>, id: u64, hub: &Arc<Hub>) -> Self {
        let core = Core {
            hub: Arc::downgrade(hub),
            room: Arc::clone(&hub.room),
            start: hub.start,
            load: Load::new(spec.max_concurrency, hub.start),
            machine: Mutex::new(Machine::new(Instant::now())),
            flags: AtomicU8::new(USABLE),
            calm: AtomicBool::new(false),
            trial_at: AtomicU64::new(NEVER),
            since: AtomicU64::new(0),
            goes_at: AtomicU64::new(NEVER),
            leaves_at: AtomicU64::new(NEVER),
            full_until: AtomicU64::new(0),
            heard: AtomicU64::new(0),
            engine: ArcSwapOption::empty(),
            models: ArcSwap::from_pointee(Models::configured(&spec.models)),
            model_list: ArcSwapOption::empty(),
            answered: Window::new(hub.start),
            failed: Window::new(hub.start),
            totals: Totals::default(),
        };
        Self { spec, id, core: Arc::new(core) }
    }

    /// The same backend under a new configuration.
    pub(super) fn respecified(&self, spec: Arc<config::Backend>, id: u64) -> Self {
        self.core.load.set_limit(spec.max_concurrency, Instant::now());
        if spec.models != self.spec.models {
            self.core.models.store(Arc::new(Models::configured(&spec.models)));
        }
        Self { spec, id, core: Arc::clone(&self.core) }
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.spec.name
    }

    /// Places in use, limit and pace.
    pub fn load(&self) -> &Load {
        &self.core.load
    }

    /// Counters since this process started.
    pub fn totals(&self) -> &Totals {
        &self.core.totals
    }

    /// State, reason and time. Takes the lock: for the admin plane.
    pub fn health(&self) -> Health {
        self.machine(|machine| machine.health())
    }

    /// Whether live traffic took it out.
    pub fn breaker(&self) -> Phase {
        self.machine(|machine| machine.breaker())
    }

    /// Configured or found; `None` = not known (yet).
    pub fn engine(&self) -> Option<Engine> {
        self.spec.engine.or_else(|| self.core.engine.load().as_deref().copied())
    }

    /// What it serves.
    pub fn models(&self) -> Guard<Arc<Models>> {
        self.core.models.load()
    }

    /// Whether it gets its share of calls now.
    pub fn is_usable(&self) -> bool {
        self.core.flags.load(Relaxed) & !HINTED == USABLE
    }

    /// Whether others come first: it may go soon, or goes and is the last of a model.
    pub fn is_hinted(&self) -> bool {
        self.core.flags.load(Relaxed) & HINTED != 0
    }

    /// When streams have to be off it; `None` = it stays, or nobody else could take them.
    pub fn leaves_at(&self) -> Option<Instant> {
        self.at(self.core.leaves_at.load(Relaxed))
    }

    /// The notice it has, acted on or not. Takes the lock: for the admin plane.
    pub fn notice(&self) -> Option<Notice> {
        self.machine(|machine| {
            machine.notice().map(|held| Notice { action: held.action, at: held.goes, source: Arc::clone(&held.source) })
        })
    }

    /// Told of its machine by its own answers (`x-sluicegate-interruption`), or by [`super::Fleet::interrupt`].
    pub fn interrupted(&self, notice: Notice) -> Interrupted {
        let now = Instant::now();
        if !self.change(|machine| machine.interrupt(now, &notice)) {
            return Interrupted::Known;
        }
        self.note_notice(&notice);
        match notice.action {
            Action::Rebalance => Interrupted::Hinted,
            _ if self.is_draining() => Interrupted::Draining,
            _ => Interrupted::Last,
        }
    }

    /// Its machine stays after all. True when it had a notice.
    pub fn withdraw(&self) -> bool {
        self.change(Machine::withdraw)
    }

    /// Whether it takes no new calls because the operator said so, or it left the configuration.
    pub fn is_draining(&self) -> bool {
        self.core.flags.load(Relaxed) & (DRAINING | GONE) != 0
    }

    /// Whether a reload took it out of the configuration.
    pub fn has_left(&self) -> bool {
        self.core.flags.load(Relaxed) & GONE != 0
    }

    /// When its state last changed.
    pub fn since(&self) -> Instant {
        self.core.start + Duration::from_millis(self.core.since.load(Relaxed))
    }

    /// Whether the engine said "full" a moment ago, and until when that is believed.
    pub fn full_until(&self, now: Instant) -> Option<Instant> {
        let until = self.core.start + Duration::from_millis(self.core.full_until.load(Relaxed));
        (until > now).then_some(until)
    }

    /// Takes a place, if one is free: the limit holds over all threads.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        self.core.load.take().then(|| Permit { backend: Arc::clone(self), trial: false, held: true })
    }

    /// Whether this backend is out and a call may be sent to see if it is back; cheap, and right now only.
    pub fn is_trial_due(&self, now: Instant) -> bool {
        self.core.trial_at.load(Relaxed) <= self.millis(now)
    }

    /// Takes a place as the breaker's one trial; with `anyway` also before its time, because nobody else is left. Then
    /// a place is given even when the trial is another call's: rather tried than refused.
    pub fn try_trial(self: &Arc<Self>, now: Instant, anyway: bool) -> Option<Permit> {
        if !anyway && !self.is_trial_due(now) {
            return None;
        }
        let mut permit = self.try_acquire()?;
        permit.trial = self.change(|machine| machine.try_trial(now, anyway));
        (permit.trial || anyway).then_some(permit)
    }

    /// Told by `upstream`: how an attempt went.
    pub fn report(&self, outcome: Outcome<'_>) {
        self.report_at(Instant::now(), outcome);
    }

    /// The same for who has just looked at the clock.
    pub fn report_at(&self, now: Instant, outcome: Outcome<'_>) {
        let totals = &self.core.totals;
        match outcome {
            Outcome::Answered { ttft } => {
                totals.answered.fetch_add(1, Relaxed);
                self.answered(now, ttft);
            }
            Outcome::Full { retry_after } => {
                totals.full.fetch_add(1, Relaxed);
                self.full(now, retry_after);
                self.answered(now, None);
            }
            Outcome::Refused(reason) | Outcome::Reset(reason) => self.failed(now, Fault::Connection, reason),
            Outcome::Status(status) => self.failed(now, Fault::Answer, &format!("status {status}")),
            Outcome::Broken(reason) => self.failed(now, Fault::Answer, reason),
        }
    }

    /// An answer took so long, and had so many bytes.
    pub fn worked(&self, time: Duration, received: u64) {
        self.core.totals.worked.fetch_add(u64::try_from(time.as_micros()).unwrap_or_default(), Relaxed);
        self.core.totals.received.fetch_add(received, Relaxed);
    }

    /// A request with a body of so many bytes went to it.
    pub fn sent(&self, bytes: u64) {
        self.core.totals.sent.fetch_add(bytes, Relaxed);
    }

    /// A piece of an answer came: whoever waits for a sign of life sees it.
    pub fn note_bytes(&self) {
        self.core.heard.fetch_add(1, Relaxed);
    }

    /// Grows with every piece of an answer that comes from it.
    pub fn heard(&self) -> u64 {
        self.core.heard.load(Relaxed)
    }

    /// Asks whether this silent backend still lives. [`Verdict::Busy`] when nobody can tell.
    pub async fn suspect(self: &Arc<Self>) -> Verdict {
        let (answer, verdict) = oneshot::channel();
        let asked = match self.core.hub.upgrade() {
            Some(hub) => hub.suspicions.try_send(Suspicion { backend: Arc::clone(self), answer }).is_ok(),
            None => false,
        };
        if asked { verdict.await.unwrap_or(Verdict::Busy) } else { Verdict::Busy }
    }

    /// A probe passed; it counts from `need` in a row.
    pub fn probe_passed(&self, need: u32) {
        self.change(|machine| machine.probe_passed(Instant::now(), need));
    }

    /// A probe failed; it counts from `need` in a row.
    pub fn probe_failed(&self, need: u32, reason: &str) {
        self.change(|machine| machine.probe_failed(Instant::now(), need, reason));
    }

    /// The answer to `GET /v1/models` as it last came, for a merged list.
    pub fn model_list(&self) -> Option<Bytes> {
        self.core.model_list.load().as_deref().cloned()
    }

    /// A model list came: the names on it, and the answer itself. Names that are configured stay as they are.
    pub fn set_models(&self, names: impl IntoIterator<Item = Arc<str>>, answer: Bytes) {
        self.core.model_list.store(Some(Arc::new(answer)));
        if self.spec.models != config::Models::Auto {
            return;
        }
        let models = Models::listed(names);
        if **self.core.models.load() == models {
            return;
        }
        let count = models.names().len();
        self.core.models.store(Arc::new(models));
        self.tell(Change::Models(count), "its model list says so".into());
        self.rebuild();
    }

    /// The engine was found out.
    pub fn set_engine(&self, engine: Engine) {
        if self.engine() != Some(engine) {
            self.core.engine.store(Some(Arc::new(engine)));
            self.tell(Change::Engine(engine), "found by asking".into());
        }
    }

    /// The engine's own count of calls waiting inside it; teaches `max_concurrency: auto`.
    pub fn note_waiting(&self, waiting: u32) {
        self.core.load.waiting(Instant::now(), waiting);
    }

    pub(super) fn drain(&self, reason: &str) -> bool {
        self.change(|machine| machine.drain(Instant::now(), reason))
    }

    pub(super) fn undrain(&self) -> bool {
        self.change(Machine::undrain)
    }

    pub(super) fn leave(&self) {
        self.core.flags.fetch_or(GONE, Relaxed);
    }

    pub(super) fn lapse(&self, now: Instant) -> Option<Instant> {
        if self.core.flags.load(Relaxed) & HINTED == 0 && self.core.goes_at.load(Relaxed) == NEVER {
            return None;
        }
        self.change(|machine| {
            machine.lapse(now);
            machine.notice().map(|held| held.lapses_at())
        })
    }

    /// Whether its machine goes by a notice, acted on or not.
    pub(super) fn goes(&self) -> bool {
        self.core.goes_at.load(Relaxed) != NEVER
    }

    pub(super) fn stand(&self) -> Stand {
        let goes = self.at(self.core.goes_at.load(Relaxed));
        let zone = self.spec.zone.as_ref().filter(|_| self.spec.capacity == config::Capacity::Spot);
        Stand { goes, able: self.machine(Machine::is_proven), models: self.models().clone(), spot_of: zone.cloned() }
    }

    /// Has its notice acted on, or not. Under the lock of the members: the snapshot is made by the caller, and what
    /// changed is told by it.
    pub(super) fn part(&self, parted: bool) -> Option<(Change, Arc<str>)> {
        let mut machine = self.core.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let (from, before) = (machine.health().state, machine.is_parted());
        machine.part(parted);
        if machine.is_parted() == before {
            return None;
        }
        let health = machine.health();
        self.copy(&machine, &health);
        Some((Change::State { from, to: health.state }, health.reason))
    }

    /// The like for a zone that goes, or does not any more.
    pub(super) fn set_wary(&self, wary: bool) -> Option<(Change, Arc<str>)> {
        let mut machine = self.core.machine.lock().unwrap_or_else(PoisonError::into_inner);
        if machine.is_wary() == wary {
            return None;
        }
        machine.set_wary(wary);
        let health = machine.health();
        self.copy(&machine, &health);
        let zone = self.spec.zone.as_deref().unwrap_or_default();
        let reason = if wary { format!("zone {zone} is going") } else { format!("zone {zone} stays") };
        Some((Change::Wary(wary), reason.into()))
    }

    /// Offers free places to calls that wait, as long as any takes one.
    pub(super) fn serve_waiting(self: &Arc<Self>) {
        while self.core.room.wanted() > 0
            && let Some(place) = self.try_acquire()
        {
            if !self.core.room.offer(place) {
                break;
            }
        }
    }

    fn answered(&self, now: Instant, ttft: Option<Duration>) {
        self.core.answered.add(now);
        if let Some(ttft) = ttft
            && self.core.load.answered(now, ttft)
            && self.core.room.wanted() > 0
            && let Some(hub) = self.core.hub.upgrade()
        {
            hub.serve_waiting();
        }
        if !self.core.calm.load(Relaxed) {
            self.change(|machine| machine.call_answered(now));
        }
    }

    fn full(&self, now: Instant, retry_after: Option<Duration>) {
        const BELIEVED: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
        let wait = retry_after.unwrap_or(BELIEVED.0).clamp(BELIEVED.0, BELIEVED.1);
        self.core.full_until.store(self.millis(now + wait), Relaxed);
        self.core.load.refused(now);
    }

    fn failed(&self, now: Instant, fault: Fault, reason: &str) {
        self.core.totals.failed.fetch_add(1, Relaxed);
        self.core.failed.add(now);
        let rate = Rate { answered: self.core.answered.sum(now), failed: self.core.failed.sum(now) };
        self.change(|machine| machine.call_failed(now, fault, rate, reason));
    }

    fn machine<T>(&self, read: impl FnOnce(&Machine) -> T) -> T {
        read(&self.core.machine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one way in which the state changes: copies what readers need, tells of it, renews the snapshot.
    fn change<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        let mut machine = self.core.machine.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = |machine: &Machine| (machine.health().state, machine.is_usable(), machine.notices().0);
        let before = seen(&machine);
        let out = act(&mut machine);
        let health = machine.health();
        let after = seen(&machine);
        let noticed = (before.2 != after.2).then(|| noticed(&machine));
        self.copy(&machine, &health);
        drop(machine);
        let is_news = noticed.is_some();
        if let Some((change, reason)) = noticed {
            self.tell(change, reason);
        }
        if before.0 != after.0 {
            self.tell(Change::State { from: before.0, to: after.0 }, health.reason);
        }
        if before != after {
            self.rebuild();
        }
        if is_news && let Some(hub) = self.core.hub.upgrade() {
            hub.note_interruption();
        }
        out
    }

    fn copy(&self, machine: &Machine, health: &Health) {
        let usable = if machine.is_usable() { USABLE } else { 0 };
        let draining = if health.state == State::Draining { DRAINING } else { 0 };
        let is_hinted = machine.is_wary() || machine.notice().is_some() && !machine.is_parted();
        let hinted = if is_hinted { HINTED } else { 0 };
        // GONE is set once and for ever, by others. In one step: a snapshot may be built from these at any moment. The
        // closure always answers, so this cannot fail.
        let _ = self.core.flags.fetch_update(Relaxed, Relaxed, |flags| Some(flags & GONE | usable | draining | hinted));
        self.core.calm.store(machine.is_calm(), Relaxed);
        self.core.since.store(self.millis(health.since), Relaxed);
        let goes = machine.notice().and_then(|held| held.goes).map_or(NEVER, |at| self.millis(at));
        self.core.goes_at.store(goes, Relaxed);
        self.core.leaves_at.store(if machine.is_parted() { goes } else { NEVER }, Relaxed);
        self.core.trial_at.store(machine.trial_at().map_or(NEVER, |at| self.millis(at)), Relaxed);
    }

    fn tell(&self, change: Change, reason: Arc<str>) {
        if let Some(hub) = self.core.hub.upgrade() {
            hub.tell(self.name(), change, reason);
        }
    }

    fn note_notice(&self, notice: &Notice) {
        if let Some(hub) = self.core.hub.upgrade() {
            hub.note_notice(notice);
        }
    }

    fn rebuild(&self) {
        if let Some(hub) = self.core.hub.upgrade() {
            hub.rebuild();
        }
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.core.start).as_millis() as u64
    }

    fn at(&self, millis: u64) -> Option<Instant> {
        (millis != NEVER).then(|| self.core.start + Duration::from_millis(millis))
    }
}

/// What to tell of a notice that came, moved or ended.
fn noticed(machine: &Machine) -> (Change, Arc<str>) {
    match machine.notice() {
        Some(held) => {
            let left = held.goes.map(|goes| goes.saturating_duration_since(Instant::now()));
            (Change::Interruption { action: held.action, left }, format!("says {}", held.source).into())
        }
        None => (Change::Withdrawn, machine.notices().1.into()),
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.spec.name)
            .field("id", &self.id)
            .field("flags", &self.core.flags.load(Relaxed))
            .field("in_flight", &self.core.load.in_flight())
            .finish_non_exhaustive()
    }
}

// === impl Permit ===

impl Permit {
    /// Where the place is.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// Gives the place back without offering it to calls that wait.
    pub fn release(mut self) {
        self.held = false;
        self.backend.core.load.give_back();
        self.abandon_trial();
    }

    fn abandon_trial(&mut self) {
        // An answered or failed trial has moved the breaker on: then this does nothing.
        if std::mem::take(&mut self.trial) {
            self.backend.change(|machine| machine.trial_abandoned(Instant::now()));
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        self.abandon_trial();
        let core = &self.backend.core;
        // A lowered limit: this place is gone.
        if core.room.wanted() > 0 && !core.load.is_over() {
            core.room.offer(Self { backend: Arc::clone(&self.backend), trial: false, held: true });
            return;
        }
        core.load.give_back();
        // A call that began to wait between the two lines above has seen this place taken.
        if core.room.wanted() > 0 {
            self.backend.serve_waiting();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("backend", &self.backend.spec.name)
            .field("trial", &self.trial)
            .finish_non_exhaustive()
    }
}
