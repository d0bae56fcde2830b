//! The active prober: asks every backend how it is, which engine it runs and what it serves.
//!
//! * One loop per backend, every `health.interval` ± 10 %, so that many gateways do not knock together.
//! * The path is the configured one, else the engine's, else the model list itself; a path that does not exist there
//!   (404, 405, 501) gives way to the next.
//! * A probe that is not answered in time says nothing about a backend that sends answers meanwhile.
//! * The model list is read when a backend comes up, every 30 s, and when a call asks for a model nobody lists
//!   ([`Refresher`]).
//! * A call that waits on a silent backend has it judged ([`crate::fleet::Backend::suspect`]): dead or busy.
//!
//! With `profile: serverless` nothing is asked without a call that needs it.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    rc::{Rc, Weak},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{Answer, Ask, Engines, Fault, Listing, MODELS, ask, join_all, listing, unwell};
use crate::{
    config::{self, Concurrency, Models, Profile},
    fleet::{Backend, Fleet, Notice, State, Suspicion, Verdict, interruption},
};

#[cfg(test)]
mod tests;

/// How old a model list may become.
const LIST_AGE: Duration = Duration::from_secs(30);
/// Lists are not asked for more often than this on account of calls.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);
/// Backends that joined or changed are found at least this often.
const ROUND: Duration = Duration::from_secs(1);

/// The `health` task. Stays on its thread; `run` may be called again after a failure.
pub struct Prober<P> {
    shared: Rc<Shared<P>>,
    profile: Profile,
    suspicions: tokio::sync::Mutex<mpsc::Receiver<Suspicion>>,
    refresher: Refresher,
}

struct Shared<P> {
    fleet: Arc<Fleet>,
    /// A reload may change it.
    health: RefCell<Rc<config::Health>>,
    engines: Engines,
    probe: P,
}

/// What one loop remembers of its backend.
#[derive(Debug, Default)]
struct Visit {
    /// Paths that turned out not to exist there.
    missing: usize,
    listed: Option<Instant>,
    /// The last probe passed.
    up: bool,
}

/// Has the model lists read again; any thread. Deduplicated, and at most once a second.
#[derive(Clone, Debug)]
pub struct Refresher(Arc<Lists>);

#[derive(Debug)]
struct Lists {
    wanted: Notify,
    rounds: watch::Sender<u64>,
    last: Mutex<Option<Instant>>,
    patience: Duration,
}

/// Waits for the verdict on one backend.
type Waiting = RefCell<Vec<oneshot::Sender<Verdict>>>;

impl<P> Prober<P>
where
    P: AsyncFn(Ask) -> Result<Answer, Fault> + 'static,
{
    /// `None` when the fleet has its prober already.
    pub fn new(
        fleet: Arc<Fleet>,
        health: config::Health,
        profile: Profile,
        engines: Engines,
        probe: P,
    ) -> Option<Self> {
        let suspicions = tokio::sync::Mutex::new(fleet.suspicions()?);
        let refresher = Refresher::new(health.timeout);
        Some(Self {
            shared: Rc::new(Shared { fleet, health: RefCell::new(Rc::new(health)), engines, probe }),
            profile,
            suspicions,
            refresher,
        })
    }

    /// From the next probe on.
    pub fn set_health(&self, health: config::Health) {
        self.shared.health.replace(Rc::new(health));
    }

    /// For those who need the lists now.
    pub fn refresher(&self) -> Refresher {
        self.refresher.clone()
    }

    /// Runs until dropped.
    pub async fn run(&self) {
        tokio::join!(self.watch(), self.judge(), self.refresh());
    }

    /// Keeps one loop per backend. They live in this future and end with it.
    async fn watch(&self) {
        if self.profile == Profile::Serverless {
            return;
        }
        let mut tasks = JoinSet::new();
        let mut loops: HashMap<u64, AbortHandle> = HashMap::new();
        let mut events = self.shared.fleet.subscribe();
        loop {
            let backends = self.shared.fleet.snapshot().backends.clone();
            loops.retain(|id, running| {
                let stays = backends.iter().any(|backend| backend.id == *id) && !running.is_finished();
                if !stays {
                    running.abort();
                }
                stays
            });
            for backend in backends {
                loops.entry(backend.id).or_insert_with(|| {
                    let shared = Rc::clone(&self.shared);
                    tasks.spawn_local(async move { shared.attend(&backend).await })
                });
            }
            // Ended loops are forgotten; the next round starts those anew that should not have ended.
            while tasks.try_join_next().is_some() {}
            // An event, lost events, or none for a while: in each case it is time to look again.
            let _ = tokio::time::timeout(ROUND, events.recv()).await;
        }
    }

    /// Answers those who wait for a sign of life; one probe serves all who wait on the same backend.
    async fn judge(&self) {
        let mut tasks = JoinSet::new();
        let mut trials: HashMap<u64, Weak<Waiting>> = HashMap::new();
        let mut suspicions = self.suspicions.lock().await;
        while let Some(Suspicion { backend, answer }) = suspicions.recv().await {
            trials.retain(|_, waiting| waiting.strong_count() > 0);
            while tasks.try_join_next().is_some() {}
            if let Some(waiting) = trials.get(&backend.id).and_then(Weak::upgrade) {
                waiting.borrow_mut().push(answer);
                continue;
            }
            let waiting = Rc::new(RefCell::new(vec![answer]));
            trials.insert(backend.id, Rc::downgrade(&waiting));
            let shared = Rc::clone(&self.shared);
            tasks.spawn_local(async move {
                let verdict = shared.verdict(&backend).await;
                for answer in waiting.take() {
                    // Its client may have left.
                    let _ = answer.send(verdict.clone());
                }
            });
        }
    }

    async fn refresh(&self) {
        let lists = &self.refresher.0;
        loop {
            lists.wanted.notified().await;
            if !lists.are_fresh() {
                let backends = self.shared.fleet.snapshot().backends.clone();
                let asked = backends.iter().filter(|backend| backend.health().state != State::Unhealthy);
                join_all(asked.map(|backend| self.shared.read_models(backend))).await;
                lists.note();
            }
            lists.rounds.send_modify(|round| *round += 1);
        }
    }
}

impl<P> Shared<P>
where
    P: AsyncFn(Ask) -> Result<Answer, Fault>,
{
    fn health(&self) -> Rc<config::Health> {
        Rc::clone(&self.health.borrow())
    }

    async fn attend(&self, backend: &Arc<Backend>) {
        let mut visit = Visit::default();
        loop {
            self.visit(backend, &mut visit).await;
            tokio::time::sleep(jitter(self.health().interval)).await;
        }
    }

    /// One probe and what follows from it.
    async fn visit(&self, backend: &Arc<Backend>, visit: &mut Visit) {
        let heard = backend.heard();
        let (path, answer) = self.knock(backend, visit).await;
        let was_up = std::mem::take(&mut visit.up);
        if let Ok(answer) = &answer {
            note_interruption(backend, answer);
        }
        match answer {
            Ok(answer) if is_well(&path, &answer) => {
                let due = !was_up || visit.listed.is_none_or(|at| at.elapsed() >= LIST_AGE);
                self.learn(backend, visit, due, &path, answer).await;
                visit.up = true;
                backend.probe_passed(self.health().healthy_after);
            }
            Ok(answer) => backend.probe_failed(self.health().unhealthy_after, &unwell(&path, &answer)),
            // It sends answers: it has no time for probes.
            Err(Fault::Timeout(_)) if backend.heard() != heard => visit.up = was_up,
            Err(fault) => {
                backend.probe_failed(self.health().unhealthy_after, &format!("health check {path}: {fault}"));
            }
        }
    }

    /// Asks the first health path that exists there.
    async fn knock(&self, backend: &Arc<Backend>, visit: &mut Visit) -> (String, Result<Answer, Fault>) {
        loop {
            let paths = self.paths(backend);
            let last = paths.len() - 1;
            let path = paths[visit.missing.min(last)].clone().into_owned();
            let answer = ask(&self.probe, &backend.spec, &path, self.health().timeout).await;
            let missing = answer.as_ref().is_ok_and(|answer| is_missing(answer.status));
            if missing && visit.missing < last {
                visit.missing += 1;
                continue;
            }
            return (path, answer);
        }
    }

    fn paths(&self, backend: &Backend) -> Vec<Cow<'static, str>> {
        if let Some(path) = &self.health().path {
            return vec![Cow::Owned(path.clone())];
        }
        match backend.engine() {
            Some(engine) => [(self.engines.health_path)(engine), "/health", MODELS].map(Cow::Borrowed).to_vec(),
            None => vec![Cow::Borrowed(MODELS)],
        }
    }

    /// Before a backend comes (back) up and every 30 s: what it serves, which engine it is. With a learnt limit also
    /// how many wait inside it.
    async fn learn(&self, backend: &Arc<Backend>, visit: &mut Visit, due: bool, path: &str, answer: Answer) {
        if due {
            if path == MODELS {
                self.listed(backend, answer).await;
            } else {
                self.read_models(backend).await;
            }
            visit.listed = Some(Instant::now());
            // Another engine may live there now, with another path.
            visit.missing = 0;
        }
        if backend.spec.max_concurrency == Concurrency::Auto {
            self.read_waiting(backend).await;
        }
    }

    async fn read_models(&self, backend: &Arc<Backend>) {
        if backend.spec.models != Models::Auto && backend.engine().is_some() {
            return;
        }
        if let Ok(answer) = ask(&self.probe, &backend.spec, MODELS, self.health().timeout).await {
            self.listed(backend, answer).await;
        }
    }

    async fn listed(&self, backend: &Arc<Backend>, answer: Answer) {
        let Listing { engine, models, answer } =
            listing(&self.probe, &self.engines, &backend.spec, answer, self.health().timeout).await;
        if let Some(engine) = engine {
            backend.set_engine(engine);
        }
        if let Some(models) = models {
            backend.set_models(models, answer);
        }
    }

    async fn read_waiting(&self, backend: &Arc<Backend>) {
        let Some(gauge) = backend.engine().and_then(self.engines.waiting) else { return };
        if let Ok(answer) = ask(&self.probe, &backend.spec, "/metrics", self.health().timeout).await
            && answer.status.is_success()
            && let Some(waiting) = gauge_of(&answer.body, gauge)
        {
            backend.note_waiting(waiting);
        }
    }

    /// Dead: refused, reset, or no answer while nothing else comes from it either. It is then out at once.
    async fn verdict(&self, backend: &Arc<Backend>) -> Verdict {
        let heard = backend.heard();
        let (_, answer) = self.knock(backend, &mut Visit::default()).await;
        let reason = match answer {
            Ok(_) | Err(Fault::Other(_)) => return Verdict::Busy,
            Err(Fault::Timeout(_)) if backend.heard() != heard => return Verdict::Busy,
            Err(fault @ Fault::Timeout(_)) => format!("silent, and a health check got {fault}"),
            Err(fault) => format!("silent, and a health check failed: {fault}"),
        };
        backend.probe_failed(1, &reason);
        Verdict::Dead(reason)
    }
}

// === impl Refresher ===

impl Refresher {
    fn new(timeout: Duration) -> Self {
        // Two questions may be needed per backend.
        let patience = timeout * 2 + ROUND;
        Self(Arc::new(Lists { wanted: Notify::new(), rounds: watch::Sender::new(0), last: Mutex::default(), patience }))
    }

    /// Comes back when the lists were read after this was called, or a moment before.
    pub async fn refresh(&self) {
        if self.0.are_fresh() {
            return;
        }
        let mut rounds = self.0.rounds.subscribe();
        self.0.wanted.notify_one();
        // Without a prober nobody answers: then the lists are what they are.
        let _ = tokio::time::timeout(self.0.patience, rounds.changed()).await;
    }
}

impl Lists {
    fn are_fresh(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|at| at.elapsed() < REFRESH_PAUSE)
    }

    fn note(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

impl<P> fmt::Debug for Prober<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prober").field("health", &self.shared.health).finish_non_exhaustive()
    }
}

/// A Sluicegate on the backend's machine says whether that goes, or that it does not any more.
fn note_interruption(backend: &Backend, answer: &Answer) {
    let Some(told) = answer.headers.get(interruption::HEADER) else {
        let was_told = |notice: &Notice| *notice.source == *interruption::BY_HEADER;
        if answer.status.is_success() && backend.notice().as_ref().is_some_and(was_told) {
            backend.withdraw();
        }
        return;
    };
    let read = |told| Notice::read(told, &answer.headers, interruption::BY_HEADER);
    if let Some(notice) = told.to_str().ok().and_then(read) {
        backend.interrupted(notice);
    }
}

/// A model list that wants a key, or does not exist, still comes from a server that lives.
fn is_well(path: &str, answer: &Answer) -> bool {
    answer.status.is_success() || path == MODELS && !answer.status.is_server_error()
}

fn is_missing(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)
}

/// The sum over a gauge's series in Prometheus' text format.
fn gauge_of(text: &[u8], name: &str) -> Option<u32> {
    let text = str::from_utf8(text).ok()?;
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = if rest.starts_with('{') { &rest[rest.rfind('}')? + 1..] } else { rest };
        value.starts_with(' ').then(|| value.split_whitespace().next()?.parse::<f64>().ok())?
    });
    values.reduce(|a, b| a + b).map(|sum| sum as u32)
}

fn jitter(interval: Duration) -> Duration {
    let chance = RandomState::new().hash_one(0) as u32;
    interval.mul_f64(0.9 + 0.2 * f64::from(chance) / f64::from(u32::MAX))
}
