//! Chooses the backend of a call, makes the tries, waits when all are full.
//!
//! ```text
//!  Call ─► who serves it ─► capacity class ─► own zone ─► two choices ─► Attempt ─► upstream
//!            candidates       capacity                     balance          │
//!              ▲                  └── all full: queue                       ▼
//!              └──────────────── retry: elsewhere, within the budget ◄── failed before its first byte
//! ```
//!
//! Takes a [`Call`], makes [`Attempt`]s. A permit goes with each and lives until the answer's body ends. When the client
//! leaves, this future (or the body) is dropped: its stand in the queue, its permit and its try end with it.

mod balance;
mod budget;
mod candidates;
mod capacity;
mod queue;
mod replace;
mod retry;

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fmt,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use http::{Response, StatusCode};
use http_body::Body as _;
use tokio::time::Instant;
use tower::Service;

use self::{
    balance::{Picker, Rng},
    candidates::Candidates,
    queue::{Ticket, Want},
    replace::{Head, Replace},
    retry::{Again, Answer},
};
pub use self::{budget::Budget, queue::Queue};
use crate::{
    body::Body,
    config,
    error::{Error, Kind},
    fleet::{Backend, Fleet, Permit, Pools},
    proxy::{attempt::Attempt, call::Call},
};

/// Asks the backends again what they serve, because this model is on nobody's list. Comes back when the lists are
/// fresh; whoever gives it sees to it that it is neither run twice at once nor all the time.
pub type Refresh = Rc<dyn Fn(Arc<str>) -> Pin<Box<dyn Future<Output = ()>>>>;

/// How long a try at the last resort is put off while that is full too.
const LAST_RESORT_PAUSE: Duration = Duration::from_millis(250);

/// How often a call that waits looks by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The configuration of this stage.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    retry: config::Retry,
    policy: capacity::Policy,
    queue: usize,
    queue_timeout: Duration,
}

/// One worker's view of what all share.
pub struct Context {
    fleet: Arc<Fleet>,
    queue: Arc<Queue>,
    budget: Arc<Budget>,
    settings: Settings,
    refresh: Refresh,
    counters: Counters,
    rng: Rng,
}

/// Tries after the first, by what failed before; handles of one worker's table.
#[derive(Clone, Debug)]
pub struct Counters {
    pub connect: metrics::Counter,
    pub reset: metrics::Counter,
    /// 502, 503, 504, an empty 500.
    pub status: metrics::Counter,
    /// 429.
    pub full: metrics::Counter,
    /// The body of an answer whose head was out already.
    pub body: metrics::Counter,
}

/// One call and its tries so far.
struct Tries<S> {
    ctx: Rc<Context>,
    inner: S,
    call: Rc<Call>,
    /// Ids of those that failed it, also before it was this call's turn; names of those that failed it here, in order.
    tried: Vec<u64>,
    names: Vec<Arc<str>>,
    number: u32,
}

/// What a look at the fleet came to.
enum Found {
    Place(Permit, &'static str),
    /// Every place is taken.
    Full {
        /// When to look again although no place was freed.
        again: Option<Instant>,
        /// Whether to wait for those that have not failed this call.
        elsewhere: bool,
    },
    /// The lists should be read again first.
    Refresh(Arc<str>),
    Nowhere(Error),
}

/// The stage: see the module.
pub fn route<S>(
    ctx: Rc<Context>,
    inner: S,
) -> impl Service<Rc<Call>, Response = Response<Body>, Error = Error, Future = impl Future<Output = Answer>> + Clone
where
    S: Service<Attempt, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    tower::service_fn(move |call: Rc<Call>| {
        let (ctx, inner, tried) = (Rc::clone(&ctx), inner.clone(), call.avoid.clone());
        let tries = Tries { ctx, inner, call, tried, names: Vec::new(), number: 0 };
        // Boxed: the futures of the stages above would each have room for it twice, and be moved with it.
        Box::pin(tries.run())
    })
}

// === impl Tries ===

impl<S> Tries<S>
where
    S: Service<Attempt, Response = Response<Body>, Error = Error> + Clone + 'static,
{
    async fn run(mut self) -> Answer {
        self.ctx.budget.deposit(self.arrived());
        let Some(mut body) = self.call.payload.next() else {
            return Err(Error::new(Kind::Internal, "the request's body was used before its first try"));
        };
        let mut permit = self.place(Again::Failed).await?;
        loop {
            let answer = self.send(permit, body).await;
            let Some(again) = retry::judge(&answer, &self.call) else { return self.finish(answer) };
            // Boxed: the ordinary call should not carry the room for what follows.
            (permit, body) = match Box::pin(self.again(answer, again)).await {
                Ok(next) => next,
                Err(last) => return last,
            };
        }
    }

    /// One try.
    async fn send(&mut self, permit: Permit, body: Body) -> Answer {
        self.number += 1;
        let backend = Arc::clone(permit.backend());
        backend.totals().calls.fetch_add(1, Relaxed);
        let record = &self.call.record;
        record.attempts.set(self.number);
        record.backend.replace(Some(Arc::clone(&backend)));
        std::future::poll_fn(|cx| self.inner.poll_ready(cx)).await?;
        self.inner.call(Attempt { call: Rc::clone(&self.call), backend, permit, body, number: self.number }).await
    }

    /// A body that has not begun to come may still be replaced.
    fn finish(self, answer: Answer) -> Answer {
        let response = answer?;
        let streams = response.body().as_whole().is_none() && !response.body().is_end_stream();
        let again = self.call.repeatable && self.call.payload.lasts() && self.number < self.ctx.settings.retry.attempts;
        Ok(if streams && again { Replace::wrap(response, self) } else { response })
    }

    /// Room and content for another try, or the answer that must do.
    async fn again(&mut self, answer: Answer, again: Again) -> Result<(Permit, Body), Answer> {
        self.note_failed();
        let now = Instant::now();
        let retry = &self.ctx.settings.retry;
        if self.number >= retry.attempts || now >= self.call.deadline {
            return Err(retry::give_up(answer, &self.names));
        }
        let Some(body) = self.call.payload.next() else { return Err(retry::give_up(answer, &self.names)) };
        if !self.ctx.budget.withdraw(now, retry) {
            return Err(retry::give_up(answer, &self.names));
        }
        let failed = self.names.last().cloned().unwrap_or_default();
        self.ctx.counters.of(&answer).increment(1);
        let answer = retry::keep(answer, &failed).await;
        match self.place(again).await {
            Ok(permit) => {
                if self.tried.contains(&permit.backend().id) {
                    let pause = retry::backoff(self.number, &self.ctx.rng);
                    tokio::time::sleep_until((Instant::now() + pause).min(self.call.deadline)).await;
                }
                Ok((permit, body))
            }
            Err(_) => Err(retry::give_up(answer, &self.names)),
        }
    }

    /// The body of another try in place of one that failed after its head; `error` when there is none that fits.
    async fn instead(mut self: Box<Self>, error: Error, head: Head) -> Result<(Body, Box<Self>), Error> {
        let mut answer = Err(error);
        let mut again = Again::Failed;
        loop {
            let (permit, body) = match self.again(answer, again).await {
                Ok(next) => next,
                Err(Ok(response)) => return Err(self.unfit(&Head::of(&response))),
                Err(Err(error)) => return Err(error),
            };
            // What cut the one that is replaced did not cut this call.
            self.call.record.cut.set(None);
            answer = self.send(permit, body).await;
            match (retry::judge(&answer, &self.call), answer) {
                (Some(more), last) => (again, answer) = (more, last),
                (None, Ok(response)) if Head::of(&response) == head => return Ok((response.into_body(), self)),
                (None, Ok(response)) => return Err(self.unfit(&Head::of(&response))),
                (None, Err(error)) => return Err(error),
            }
        }
    }

    fn unfit(&self, got: &Head) -> Error {
        let first = self.names.first().cloned().unwrap_or_default();
        let text = format!("backend {first} failed after its head, and the next answer ({got}) cannot take its place");
        Error::new(Kind::UpstreamReset, text).at(&first)
    }

    fn note_failed(&mut self) {
        if let Some(backend) = &*self.call.record.backend.borrow() {
            self.tried.push(backend.id);
            self.names.push(Arc::clone(backend.name()));
        }
    }

    fn call(&self) -> &Call {
        &self.call
    }

    /// A place for the next try.
    async fn place(&self, again: Again) -> Result<Permit, Error> {
        let ahead = !self.ctx.queue.is_empty() && self.ctx.queue.is_ahead(&Want::of(&self.call));
        let found =
            if ahead { Found::Full { again: None, elsewhere: false } } else { self.look(again, true, self.now()) };
        let (permit, why) = match found {
            Found::Place(permit, why) => (permit, why),
            Found::Nowhere(error) => return Err(error),
            // Boxed: rare, and larger than all the rest.
            slow => Box::pin(self.place_slowly(slow, again)).await?,
        };
        self.call.record.why.set(if self.number > 0 && why != "last-resort" { "retry" } else { why });
        Ok(permit)
    }

    async fn place_slowly(&self, mut found: Found, again: Again) -> Result<(Permit, &'static str), Error> {
        if let Found::Refresh(model) = found {
            // A refresh that takes longer than the client has is as good as none.
            let _ = tokio::time::timeout_at(self.call.deadline, (self.ctx.refresh)(model)).await;
            found = self.look(again, false, Instant::now());
        }
        match found {
            Found::Place(permit, why) => Ok((permit, why)),
            Found::Nowhere(error) => Err(error),
            Found::Full { again: at, elsewhere } => {
                let start = Instant::now();
                let waited = self.wait(again, at, elsewhere).await;
                let queued = &self.call.record.queued;
                queued.set(queued.get() + start.elapsed());
                waited
            }
            Found::Refresh(model) => Err(candidates::model_not_found(&self.ctx.fleet.snapshot(), &model)),
        }
    }

    /// Waits in the queue until a place is handed over, or one is found at a time when things may have changed.
    async fn wait(
        &self,
        again: Again,
        mut at: Option<Instant>,
        elsewhere: bool,
    ) -> Result<(Permit, &'static str), Error> {
        let Context { queue, settings, .. } = &*self.ctx;
        let start = Instant::now();
        let wanted = self.call.wait_until.unwrap_or(self.call.deadline).min(self.call.deadline);
        let end = (start + settings.queue_timeout).min(wanted);
        let mut want = Want::of(&self.call);
        if elsewhere {
            want.not.clone_from(&self.tried);
        }
        let ticket = queue.enter(want, settings.queue, start)?;
        // A place given back before we entered was offered to nobody, unless to those ahead.
        if ticket.is_first()
            && let Found::Place(permit, _) = self.look(again, false, Instant::now())
        {
            return Ok((permit, "queued"));
        }
        loop {
            // Also once in a while: those it waits for may have gone out meanwhile, and free no place any more.
            let stop = at.unwrap_or(end).min(end).min(Instant::now() + LOOK_AGAIN);
            if let Some(permit) = granted(&ticket, stop).await {
                return Ok((permit, "queued"));
            }
            if Instant::now() >= end {
                return Err(self.waited_in_vain(start, end == wanted));
            }
            match self.look(again, false, Instant::now()) {
                Found::Place(permit, _) => return Ok((permit, "queued")),
                Found::Nowhere(error) => return Err(error),
                Found::Full { again, .. } => at = again,
                Found::Refresh(_) => at = None,
            }
        }
    }

    fn waited_in_vain(&self, start: Instant, wanted: bool) -> Error {
        let whose = if wanted { "the request's own deadline" } else { "limits.queue_timeout" };
        let text = format!("every backend stayed full for {:.1} s, until {whose}", start.elapsed().as_secs_f64());
        Error::new(Kind::QueueTimeout, text).after(self.ctx.queue.retry_after(Instant::now()))
    }

    /// When the whole request was there.
    fn arrived(&self) -> Instant {
        self.call.record.start + self.call.record.receiving.get()
    }

    /// The first try comes right after the request: no need to look at the clock again.
    fn now(&self) -> Instant {
        if self.number == 0 { self.arrived() } else { Instant::now() }
    }

    fn look(&self, again: Again, refresh: bool, now: Instant) -> Found {
        let snapshot = self.ctx.fleet.snapshot();
        if refresh
            && candidates::wants_refresh(&snapshot, &self.call)
            && let Some(model) = &self.call.model
        {
            return Found::Refresh(Arc::clone(model));
        }
        match candidates::of(&snapshot, &self.call) {
            Candidates::Pinned(backend) => pinned(backend),
            Candidates::Any(pools) => self.choose(pools, again, now),
            Candidates::UnknownModel => {
                let model = self.call.model.as_deref().unwrap_or_default();
                Found::Nowhere(candidates::model_not_found(&snapshot, model))
            }
            Candidates::Nobody => Found::Nowhere(candidates::nobody(&snapshot, &self.call)),
        }
    }

    fn choose(&self, pools: &Pools, again: Again, now: Instant) -> Found {
        let Context { rng, settings, .. } = &*self.ctx;
        let usable = &pools.every.all;
        let picker = Picker { rng, now, tried: &self.tried, looked: Cell::new(0) };
        if usable.is_empty() {
            return last_resort(pools, &picker);
        }
        if let Some(permit) = trial(pools, &picker) {
            return Found::Place(permit, "trial");
        }
        if let Some((permit, why)) = capacity::pick(pools, &settings.policy, &picker) {
            return Found::Place(permit, why);
        }
        // Machines that may go: better than to wait, or to go again to one that failed.
        if let Some(permit) = picker.pick(&pools.hinted, true) {
            return Found::Place(permit, "hinted");
        }
        // From here on every one is full or has failed this call.
        let usable = || usable.iter().chain(&pools.hinted);
        let untried = !self.tried.is_empty() && usable().any(|backend| !self.tried.contains(&backend.id));
        // A full one is kept out for a moment by what it said, not by having been tried.
        if !untried || again == Again::Full {
            let picker = Picker { tried: &[], ..picker };
            if let Some((permit, why)) = capacity::pick(pools, &settings.policy, &picker) {
                return Found::Place(permit, why);
            }
        }
        let now = Instant::now();
        let again_at = usable().filter_map(|backend| backend.full_until(now)).min();
        Found::Full { again: again_at, elsewhere: untried && again == Again::Failed }
    }
}

fn pinned(backend: &Arc<Backend>) -> Found {
    let now = Instant::now();
    let full_until = backend.full_until(now);
    let permit = match (full_until, backend.is_usable()) {
        (Some(_), _) => None,
        (None, true) => backend.try_acquire(),
        // Nobody else has what it holds.
        (None, false) => backend.try_trial(now, true),
    };
    match permit {
        Some(permit) => Found::Place(permit, "pinned"),
        None => Found::Full { again: full_until, elsewhere: false },
    }
}

/// One call in a while is sent to a backend that is out, to see whether it is back.
fn trial(pools: &Pools, picker: &Picker<'_>) -> Option<Permit> {
    let backend = picker.any(&pools.out)?;
    if picker.tried.contains(&backend.id) { None } else { backend.try_trial(picker.now, false) }
}

/// When all are out: the one least long out, of those that have not failed this call if there are any.
fn last_resort(pools: &Pools, picker: &Picker<'_>) -> Found {
    let freshest = pools.out.iter().max_by_key(|backend| (!picker.tried.contains(&backend.id), backend.since()));
    match freshest.and_then(|backend| backend.try_trial(picker.now, true)) {
        Some(permit) => Found::Place(permit, "last-resort"),
        None => Found::Full { again: Some(picker.now + LAST_RESORT_PAUSE), elsewhere: false },
    }
}

async fn granted(ticket: &Ticket<'_>, until: Instant) -> Option<Permit> {
    tokio::time::timeout_at(until, ticket.granted()).await.ok().flatten()
}

// === impl Settings, Context ===

impl Settings {
    pub fn new(routing: &config::Routing, retry: config::Retry, limits: &config::Limits) -> Self {
        Self {
            retry,
            policy: capacity::Policy {
                prefer: routing.prefer,
                spill_at: routing.spill_at,
                on_demand_share: routing.on_demand_share,
            },
            queue: limits.queue,
            queue_timeout: limits.queue_timeout,
        }
    }
}

impl Context {
    /// `queue` and `budget` are shared by all workers and outlive a reload.
    pub fn new(
        fleet: Arc<Fleet>,
        queue: Arc<Queue>,
        budget: Arc<Budget>,
        settings: Settings,
        refresh: Refresh,
        counters: Counters,
    ) -> Rc<Self> {
        Rc::new(Self { fleet, queue, budget, settings, refresh, counters, rng: Rng::from_entropy() })
    }
}

impl Counters {
    /// Counts nothing.
    pub fn noop() -> Self {
        let noop = metrics::Counter::noop;
        Self { connect: noop(), reset: noop(), status: noop(), full: noop(), body: noop() }
    }

    fn of(&self, failed: &Answer) -> &metrics::Counter {
        match failed {
            Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => &self.full,
            Ok(_) => &self.status,
            Err(error) => match error.kind() {
                Kind::UpstreamConnect => &self.connect,
                Kind::UpstreamReset => &self.reset,
                _ => &self.body,
            },
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("fleet", &self.fleet).field("settings", &self.settings).finish_non_exhaustive()
    }
}
