//! The backends as both planes see them. No tasks, no I/O.
//!
//! ```text
//!   control ──probe_passed/failed, set_models──► Backend ──state changed──► Snapshot (arc-swap) ──► proxy::route
//!   control, admin ──interrupt, drain──────────►    │
//!   proxy   ──report, note_bytes, Permit───────►    │
//!                                                   └──► FleetEvent (broadcast) ──► log, admin
//! ```
//!
//! Readers take a [`Snapshot`]; it is renewed when something that routing cares for has changed. Per backend a few
//! atomics are shared by all workers: places in use, first-token time, flags.

mod backend;
mod breaker;
mod event;
mod health;
pub mod interruption;
mod load;
mod models;
pub mod response_ids;
mod room;
mod snapshot;
mod window;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::{ArcSwap, Guard};
use tokio::{
    sync::{broadcast, mpsc, watch},
    time::Instant,
};

pub use self::{
    backend::{Backend, Outcome, Permit, Suspicion, Totals, Verdict},
    breaker::{Fault, Phase},
    event::{Change, FleetEvent},
    health::{Health, State},
    interruption::{Action, Interrupted, Notice},
    load::Load,
    models::Models,
    room::Room,
    snapshot::{Lean, Pool, Pools, Snapshot},
    window::Window,
};
use crate::config::Config;

/// Events that a slow reader may be behind before it loses the oldest.
const EVENTS: usize = 256;
/// Suspicions that may wait for the prober; above, nobody can tell.
const SUSPICIONS: usize = 1024;

/// All backends.
pub struct Fleet {
    hub: Arc<Hub>,
    suspicions: Mutex<Option<mpsc::Receiver<Suspicion>>>,
}

/// What backends tell their changes to.
struct Hub {
    start: Instant,
    snapshot: ArcSwap<Snapshot>,
    members: Mutex<Members>,
    events: broadcast::Sender<FleetEvent>,
    suspicions: mpsc::Sender<Suspicion>,
    room: Arc<Room>,
    /// Grows with every notice that comes, moves, ends, or is acted on otherwise than before.
    interruptions: watch::Sender<u64>,
    /// Notices by who gave them and what they said.
    notices: Mutex<BTreeMap<(Arc<str>, &'static str), u64>>,
}

#[derive(Default)]
struct Members {
    backends: Vec<Arc<Backend>>,
    zone: Option<Arc<str>>,
    next_id: u64,
}

/// There is no backend of that name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no backend named {0}")]
pub struct NoSuchBackend(pub String);

// === impl Fleet ===

impl Fleet {
    /// The backends of a configuration; nothing is known of them yet.
    pub fn new(config: &Config) -> Arc<Self> {
        let (suspicions, receiver) = mpsc::channel(SUSPICIONS);
        let hub = Arc::new(Hub {
            start: Instant::now(),
            snapshot: ArcSwap::default(),
            members: Mutex::default(),
            events: broadcast::channel(EVENTS).0,
            suspicions,
            room: Arc::default(),
            interruptions: watch::Sender::new(0),
            notices: Mutex::default(),
        });
        let fleet = Self { hub, suspicions: Mutex::new(Some(receiver)) };
        fleet.apply(config);
        Arc::new(fleet)
    }

    /// The fleet at this moment.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.hub.snapshot.load()
    }

    /// Takes another configuration. A backend of the same name and url keeps its state; one that is gone finishes its
    /// calls and gets no more.
    pub fn apply(&self, config: &Config) {
        let mut joined = Vec::new();
        let gone = {
            let mut members = lock(&self.hub.members);
            let mut old = std::mem::take(&mut members.backends);
            for spec in &config.backends {
                let known = old.iter().position(|b| b.spec.name == spec.name && b.spec.url == spec.url);
                let backend = match known.map(|at| old.swap_remove(at)) {
                    Some(same) if same.spec == *spec => same,
                    Some(other) => Arc::new(other.respecified(Arc::clone(spec), members.id())),
                    None => {
                        joined.push(Arc::clone(&spec.name));
                        Arc::new(Backend::new(Arc::clone(spec), members.id(), &self.hub))
                    }
                };
                members.backends.push(backend);
            }
            members.zone.clone_from(&config.zone);
            old
        };
        for backend in &gone {
            backend.leave();
            self.hub.tell(backend.name(), Change::Left, "no longer in the configuration".into());
        }
        for name in joined {
            self.hub.tell(&name, Change::Joined, "in the configuration".into());
        }
        self.hub.rebuild();
    }

    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<FleetEvent> {
        self.hub.events.subscribe()
    }

    /// Lets a backend finish what runs and gives it nothing new. True when it was not draining before.
    ///
    /// # Errors
    /// When there is no backend of that name.
    pub fn drain(&self, name: &str, reason: &str) -> Result<bool, NoSuchBackend> {
        Ok(self.named(name)?.drain(reason))
    }

    /// Gives it calls again, as its health allows, and forgets its notice. True when it was draining before.
    ///
    /// # Errors
    /// When there is no backend of that name.
    pub fn undrain(&self, name: &str) -> Result<bool, NoSuchBackend> {
        Ok(self.named(name)?.undrain())
    }

    /// Its machine goes, or may go.
    ///
    /// # Errors
    /// When there is no backend of that name.
    pub fn interrupt(&self, name: &str, notice: Notice) -> Result<Interrupted, NoSuchBackend> {
        Ok(self.named(name)?.interrupted(notice))
    }

    /// Its machine stays after all. True when it had a notice.
    ///
    /// # Errors
    /// When there is no backend of that name.
    pub fn withdraw(&self, name: &str) -> Result<bool, NoSuchBackend> {
        Ok(self.named(name)?.withdraw())
    }

    /// Changes with every notice that comes, moves or ends, and when one is acted on otherwise than before
    /// ([`Backend::leaves_at`]).
    pub fn interruptions(&self) -> watch::Receiver<u64> {
        self.hub.interruptions.subscribe()
    }

    /// Ends notices that were false alarms; when to ask again, while there are any.
    pub fn lapse_notices(&self, now: Instant) -> Option<Instant> {
        let backends = self.snapshot().backends.clone();
        backends.iter().filter_map(|backend| backend.lapse(now)).min()
    }

    /// Notices so far, by who gave them and what they said.
    pub fn notices(&self) -> BTreeMap<(Arc<str>, &'static str), u64> {
        lock(&self.hub.notices).clone()
    }

    /// Where freed places go.
    pub fn room(&self) -> &Arc<Room> {
        &self.hub.room
    }

    /// The receiving end of [`Backend::suspect`], for the prober; there is one.
    pub fn suspicions(&self) -> Option<mpsc::Receiver<Suspicion>> {
        lock(&self.suspicions).take()
    }

    fn named(&self, name: &str) -> Result<Arc<Backend>, NoSuchBackend> {
        self.snapshot().backend(name).cloned().ok_or_else(|| NoSuchBackend(name.to_owned()))
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("backends", &self.snapshot().backends).finish_non_exhaustive()
    }
}

// === impl Hub ===

impl Hub {
    /// Built and stored under one lock, so that an older view never replaces a newer one.
    fn rebuild(&self) {
        let parted = {
            let members = lock(&self.members);
            let parted = settle(&members.backends);
            let before = self.snapshot.load();
            let snapshot = Snapshot::build(members.backends.clone(), members.zone.as_ref(), &before);
            self.snapshot.store(Arc::new(snapshot));
            parted
        };
        for (backend, (change, reason)) in &parted {
            // Drained by the operator too: it was and is.
            if !matches!(change, Change::State { from, to } if from == to) {
                self.tell(backend.name(), change.clone(), Arc::clone(reason));
            }
        }
        if !parted.is_empty() {
            self.note_interruption();
        }
        self.serve_waiting();
    }

    fn note_interruption(&self) {
        self.interruptions.send_modify(|count| *count += 1);
    }

    fn note_notice(&self, notice: &Notice) {
        *lock(&self.notices).entry((Arc::clone(&notice.source), notice.action.name())).or_default() += 1;
    }

    fn serve_waiting(&self) {
        if self.room.wanted() > 0 {
            for backend in &self.snapshot.load().backends {
                backend.serve_waiting();
            }
        }
    }

    fn tell(&self, backend: &Arc<str>, change: Change, reason: Arc<str>) {
        let event = FleetEvent { backend: Arc::clone(backend), change, reason };
        if matches!(event.change, Change::Interruption { .. } | Change::Withdrawn | Change::Wary(_)) {
            tracing::warn!("{event}");
        }
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

/// A change of a backend's state, and why.
type Told = (Change, Arc<str>);

/// Decides which notices are acted on, and says what that changed. Under the lock of the members.
fn settle(backends: &[Arc<Backend>]) -> Vec<(Arc<Backend>, Told)> {
    if !backends.iter().any(|backend| backend.goes() || backend.is_hinted()) {
        return Vec::new();
    }
    let stands: Vec<_> = backends.iter().map(|backend| backend.stand()).collect();
    let (parting, wary) = (interruption::parting(&stands), interruption::wary(&stands));
    let decided = backends.iter().zip(parting.into_iter().zip(wary));
    let told = decided.flat_map(|(backend, (parted, wary))| {
        let told = [backend.set_wary(wary), backend.part(parted)];
        told.into_iter().flatten().map(|told| (Arc::clone(backend), told))
    });
    told.collect()
}

impl Members {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
