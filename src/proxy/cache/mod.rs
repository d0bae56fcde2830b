//! Never compute twice: kept answers, and one running answer shared by all who ask for it.
//!
//! ```text
//!  Call ─► judge ─► key ─► store ── kept ──► hit
//!            │ no            │
//!            ▼               ▼ in flight, under its shard's lock; the store is asked again inside it
//!       inner, bypass     under way ── joined ──► its transcript is read, live
//!                            │ nobody
//!                            ▼ leads: second tier ─► inner ─► pump ─► transcript ─► may it be kept? ─► store
//! ```
//!
//! Acts on both legs. When the client leaves: an answer that others follow goes on for them; with nobody left it stops,
//! at once or after `cache.linger`. Hits and followers wait in no queue and take no place at a backend.

mod control;
pub mod edit;
mod eligible;
mod entry;
pub mod form;
mod inflight;
pub mod keep;
mod key;
mod lead;
mod reader;
pub mod remote;
mod store;
mod sync;
#[cfg(test)]
mod tests;

use std::{
    cell::{OnceCell, RefCell},
    collections::HashMap,
    fmt, mem,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use metrics::Counter;
use tokio::time::Instant;
use tower::{Service, service_fn};

use self::{
    control::Wants,
    reader::{Asker, Followed, Seat},
    remote::{Remote, Wanted},
};
pub use self::{
    eligible::{Bypass, has_shapes, judge},
    entry::{Entry, Facts, Shape, Tenant},
    inflight::{Entered, Inflight},
    key::{Asks, Key, Keys, PROVEN_BY_EQUALITY, Scratch, is_credential, is_keyed},
    store::{Purge, Share, Shares, Stats, Store},
};
use super::{
    Response,
    cached::Cached,
    call::Call,
    seen::Seen,
    transcript::{Desk, Live, Reader, Transcript, Writer},
};
use crate::{
    body::{Body, Representation},
    config,
    error::{Error, Kind},
    protocol::{coding::Coding, endpoint::Endpoint},
    runtime::ticker::Ticker,
    telemetry::metrics::{Name, Table},
};

/// What all workers share.
pub struct Shared {
    pub store: Store,
    pub keys: Keys,
    /// Memory of the answers under way.
    pub live: Live,
    inflight: Inflight<Key, Running>,
    second: Option<Box<dyn SecondTier>>,
    /// Microseconds that backends were spared.
    spared: AtomicU64,
    purges: AtomicU64,
}

/// Kept answers outside this process. Slow or gone, it has nothing.
pub trait SecondTier: fmt::Debug + Send + Sync {
    /// What is kept there.
    fn get<'a>(&'a self, wanted: Wanted<'a>) -> Pin<Box<dyn Future<Output = Option<Entry>> + 'a>>;
    /// Keeps `entry`, some time soon.
    fn put(&self, digest: [u8; 32], entry: &Arc<Entry>);
    /// Forgets what matches.
    fn purge(&self, what: &Purge);
}

impl SecondTier for Remote {
    fn get<'a>(&'a self, wanted: Wanted<'a>) -> Pin<Box<dyn Future<Output = Option<Entry>> + 'a>> {
        Box::pin(async move { Self::get(self, &wanted).await })
    }

    fn put(&self, digest: [u8; 32], entry: &Arc<Entry>) {
        Self::put(self, digest, entry);
    }

    fn purge(&self, what: &Purge) {
        Self::purge(self, what);
    }
}

/// An answer under way.
#[derive(Debug)]
struct Running {
    transcript: Arc<Transcript>,
    model: Option<Arc<str>>,
    tenant: Tenant,
    /// Its leader asked for the usage event: it is certain to come.
    usage: bool,
}

/// One worker's stage, for one configuration.
#[derive(Debug)]
pub struct Cache {
    pub shared: Arc<Shared>,
    pub config: config::Cache,
    pub desk: Rc<Desk>,
    pub ticker: Ticker,
    pub counters: Rc<Counters>,
    /// Bodies that were answered from here.
    pub seen: Rc<Seen>,
    scratch: RefCell<Scratch>,
}

/// What became of answers; handles of one worker's table.
#[derive(Debug)]
pub struct Counters {
    table: Table,
    stored: Counter,
    not_stored: RefCell<HashMap<&'static str, Counter>>,
}

/// An answer in the store, for whoever encodes it.
struct Kept {
    shared: Arc<Shared>,
    key: Key,
    entry: Arc<Entry>,
    /// Its reader does not get its usage event.
    stripped: bool,
}

impl Representation for Kept {
    fn twin(&self, coding: Coding) -> Option<Bytes> {
        self.shared.store.twin(&self.key, &self.entry, coding, self.stripped)
    }

    fn offer(&self, coding: Coding, bytes: &Bytes) {
        // Copied where the buffer has room to spare: what is counted is what is held.
        self.shared.store.offer(&self.key, &self.entry, coding, self.stripped, Bytes::copy_from_slice(bytes));
    }
}

/// How a call goes on after the first look.
enum First {
    /// As without a cache.
    Plain,
    Answer(Result<Response, Error>),
    Look(Question),
}

/// Fields that a kept answer gets beside its own: `Age`, `Cache-Control`, and those of `observe`.
const OF_OURS: usize = 6;

/// What is looked for.
#[derive(Debug)]
struct Question {
    asks: Asks,
    wants: Wants,
    /// The key of the other shape, where an answer of that can stand in.
    other: Option<Key>,
    /// The request's own body, and what it says of the other shape: read once it matters.
    body: Bytes,
    exchangeable: OnceCell<bool>,
    /// Answers ever put into the store, before it was looked into for this.
    puts: u64,
    /// A stream that has to tell its usage.
    usage: bool,
    /// It met one that did not: only one that is certain to will do.
    strict: bool,
}

/// The stage: see the module.
pub fn cache<S>(
    ctx: Rc<Cache>,
    inner: S,
) -> impl Service<Call, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Call, Response = Response, Error = Error> + Clone + 'static,
    S::Future: 'static,
{
    service_fn(move |mut call: Call| {
        let (ctx, mut inner) = (Rc::clone(&ctx), inner.clone());
        async move {
            match ctx.first(&mut call) {
                First::Plain => inner.call(call).await,
                First::Answer(answer) => answer,
                // Boxed: a call that takes no part should not carry the room for it.
                First::Look(question) => Box::pin(ctx.look(call, question, inner)).await,
            }
        }
    })
}

// === impl Shared ===

impl Shared {
    /// Empty, with a second tier where there is one.
    pub fn new(config: &config::Cache, keys: Keys, second: Option<Box<dyn SecondTier>>) -> Self {
        Self {
            store: Store::new(config.capacity),
            keys,
            live: Live::new(config.live_memory),
            inflight: Inflight::new(),
            second,
            spared: AtomicU64::new(0),
            purges: AtomicU64::new(0),
        }
    }

    /// Forgets what matches, also what is under way and would be kept. Gives how many were kept here.
    pub fn purge(&self, what: &Purge) -> u64 {
        let out_of_flight = || self.inflight.purge(|running| what.matches(running.model.as_deref(), running.tenant));
        self.purges.fetch_add(1, Relaxed);
        // What was computed goes nowhere from here on.
        out_of_flight();
        if let Some(second) = &self.second {
            second.purge(what);
            // Those that read it there just before it was forgotten.
            out_of_flight();
        }
        // Last: nothing that matched can come here any more.
        self.store.purge(what)
    }

    /// Answers under way that others may join.
    pub fn under_way(&self) -> usize {
        self.inflight.len()
    }

    /// Backend time that hits and followers did not take: what the answer took when it was computed.
    pub fn spared(&self) -> Duration {
        Duration::from_micros(self.spared.load(Relaxed))
    }

    fn spare(&self, took: Duration) {
        self.spared.fetch_add(u64::try_from(took.as_micros()).unwrap_or_default(), Relaxed);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("store", &self.store).field("live", &self.live).finish_non_exhaustive()
    }
}

// === impl Counters ===

impl Counters {
    pub fn new(table: Table) -> Rc<Self> {
        let stored = table.counter(Name::CacheStored, &[]);
        Rc::new(Self { table, stored, not_stored: RefCell::default() })
    }

    fn not_stored(&self, reason: &'static str) {
        let mut known = self.not_stored.borrow_mut();
        let counter =
            known.entry(reason).or_insert_with(|| self.table.counter(Name::CacheNotStored, &[("reason", reason)]));
        counter.increment(1);
    }
}

// === impl Cache ===

impl Cache {
    /// One worker's, for `config`.
    pub fn new(
        shared: Arc<Shared>,
        config: config::Cache,
        desk: Rc<Desk>,
        ticker: Ticker,
        counters: Rc<Counters>,
    ) -> Rc<Self> {
        Rc::new(Self { shared, config, desk, ticker, counters, seen: Rc::default(), scratch: RefCell::default() })
    }

    /// What can be done without waiting. A call that is answered needs its headers no more: their room serves again.
    fn first(&self, call: &mut Call) -> First {
        if call.endpoint == Endpoint::Passthrough {
            return First::Plain;
        }
        self.seen.purged(self.shared.purges.load(Relaxed));
        let wants = Wants::of(&call.headers);
        let told = &call.record.cached;
        let asked = judge(call, &self.config).and_then(|()| {
            if wants.no_store {
                return Ok(None);
            }
            self.shared.keys.of(call, &self.config, &mut self.scratch.borrow_mut()).map(Some)
        });
        let asks = match asked {
            Ok(Some(asks)) => asks,
            other => {
                if wants.only_if_cached {
                    return First::Answer(Err(not_cached(call)));
                }
                told.set(other.map_or_else(|bypass| Cached::Bypass(bypass as u8), |_| Cached::Request));
                return First::Plain;
            }
        };
        let exchange = !asks.bound && has_shapes(call.endpoint);
        let other = exchange.then(|| asks.key.shaped(asks.key.shape().other()));
        let question = Question {
            asks,
            wants,
            other,
            body: call.payload.bytes().cloned().unwrap_or_default(),
            exchangeable: OnceCell::new(),
            puts: self.shared.store.puts(),
            usage: needs_usage(call),
            strict: false,
        };
        let now = Instant::now();
        if let Some((entry, body)) = self.find(&question, now) {
            if call.said.is_none() {
                self.seen.remember(call, self.scratch.borrow().head(), &question.asks);
            }
            let asker = Asker::of(call, &question);
            let room = mem::take(&mut call.headers);
            return First::Answer(Ok(self.fresh(&question, &entry, &body, &asker, now, room)));
        }
        if wants.only_if_cached && self.shared.second.is_none() {
            return First::Answer(Err(not_cached(call)));
        }
        First::Look(question)
    }

    /// A fresh answer that is kept here.
    fn kept(&self, question: &Question, asker: &Asker, begun: Instant) -> Option<Response> {
        let (entry, body) = self.find(question, begun)?;
        Some(self.fresh(question, &entry, &body, asker, begun, HeaderMap::new()))
    }

    fn fresh(
        &self,
        question: &Question,
        entry: &Arc<Entry>,
        body: &Bytes,
        asker: &Asker,
        begun: Instant,
        room: HeaderMap,
    ) -> Response {
        let left = entry.fresh_for(begun).unwrap_or_default();
        asker.record.cached.set(Cached::Hit(left.as_secs()));
        let mut response = self.hit(entry, body, left, asker, begun, room);
        // Converted, or under another name, it is no twin of what is kept.
        let as_kept = body.as_ptr() == entry.body.as_ptr() && asker.edit.alias.is_none();
        if as_kept && asker.record.coding.get().is_some() {
            let sent = mem::replace(response.body_mut(), Body::empty());
            *response.body_mut() = match sent.as_whole() {
                Some(bytes) => {
                    let (shared, key) = (Arc::clone(&self.shared), question.asks.key.clone());
                    let kept = Kept { shared, key, entry: Arc::clone(entry), stripped: !asker.edit.is_none() };
                    Body::kept(bytes.clone(), Rc::new(kept))
                }
                None => sent,
            };
        }
        asker.record.looked_up.set(Some(begun.elapsed()));
        response
    }

    /// The entry, and its body in the shape that is asked for.
    fn find(&self, question: &Question, now: Instant) -> Option<(Arc<Entry>, Bytes)> {
        if question.wants.no_cache {
            return None;
        }
        let fresh = |key: &Key| {
            let entry = self.shared.store.get(key, now, self.config.stale_if_error)?;
            question.takes(&entry, now).then_some(entry)
        };
        if let Some(entry) = fresh(&question.asks.key) {
            let body = entry.body.clone();
            return Some((entry, body));
        }
        let entry = fresh(question.other.as_ref()?)?;
        let body = question.convert(&entry)?;
        Some((entry, body))
    }

    /// An answer that is not fresh any more, in place of an error.
    fn stale(&self, question: &Question, asker: &Asker) -> Option<Response> {
        if self.config.stale_if_error.is_zero() || question.wants.no_cache {
            return None;
        }
        let now = Instant::now();
        let get = |key: &Key| {
            let entry = self.shared.store.get(key, now, self.config.stale_if_error)?;
            question.wants.takes(entry.age(now)).then_some(entry)
        };
        let (entry, body) = match get(&question.asks.key) {
            Some(entry) if entry.facts.told || !question.usage => (Arc::clone(&entry), entry.body.clone()),
            _ => {
                let entry = get(question.other.as_ref()?)?;
                let body = question.convert(&entry)?;
                (entry, body)
            }
        };
        asker.record.cached.set(Cached::Stale);
        asker.record.cut.set(None);
        Some(self.hit(&entry, &body, Duration::ZERO, asker, now, HeaderMap::new()))
    }

    /// `body`, in the shape that was asked for, of an answer that is whole. Its head is written where `room` was.
    fn hit(
        &self,
        entry: &Entry,
        body: &Bytes,
        left: Duration,
        asker: &Asker,
        now: Instant,
        room: HeaderMap,
    ) -> Response {
        let record = &asker.record;
        record.usage.set(entry.facts.usage);
        record.finish.set(entry.facts.finish);
        record.first_byte.set(Some(now));
        record.last_byte.set(Some(now));
        self.shared.spare(entry.facts.took);
        let mut response = Response::new(Body::whole(asker.edit.whole(asker.shape, body)));
        *response.headers_mut() = self.kept_headers(entry, asker.shape, left, now, room);
        response
    }

    /// The head of an answer that is kept.
    fn kept_headers(
        &self,
        entry: &Entry,
        shape: Shape,
        left: Duration,
        now: Instant,
        mut headers: HeaderMap,
    ) -> HeaderMap {
        headers.clear();
        headers.reserve(entry.headers.len() + OF_OURS);
        form::headers(&mut headers, entry, shape);
        headers.insert(header::AGE, HeaderValue::from(entry.age(now).as_secs()));
        control::downstream(&mut headers, self.config.downstream, left);
        headers
    }

    /// Joins, finds or leads, until there is an answer.
    async fn look<S>(self: Rc<Self>, call: Call, mut question: Question, mut inner: S) -> Result<Response, Error>
    where
        S: Service<Call, Response = Response, Error = Error> + 'static,
        S::Future: 'static,
    {
        if question.wants.only_if_cached {
            return self.kept_elsewhere(&call, &question).await;
        }
        loop {
            let asker = Asker::of(&call, &question);
            let mut begun = None;
            match self.enter(&question, &call, &asker, &mut begun) {
                Entered::Sealed(hit) => return Ok(hit),
                Entered::Joined(0, reader) => match Seat::follower(&self, reader, asker).answer(&question).await {
                    Followed::Answer(answer) => return answer,
                    Followed::Again => {}
                    Followed::Unfit => question.strict = true,
                    Followed::Alone => {
                        call.record.cached.set(Cached::Miss);
                        return inner.call(call).await;
                    }
                },
                // Each shape for itself from here on.
                Entered::Joined(..) if !question.is_exchangeable() => question.other = None,
                Entered::Joined(_, reader) => match Seat::follower(&self, reader, asker).converted(&question).await {
                    Followed::Answer(answer) => return answer,
                    Followed::Again => {}
                    Followed::Unfit | Followed::Alone => question.other = None,
                },
                Entered::Leads(running) => {
                    let Some((writer, reader)) = begun else {
                        return Err(Error::new(Kind::Internal, "an answer was led that was never begun"));
                    };
                    return self.lead(call, question, running, writer, reader, inner).await;
                }
            }
        }
    }

    fn enter(
        &self,
        question: &Question,
        call: &Call,
        asker: &Asker,
        begun: &mut Option<(Writer, Reader)>,
    ) -> Entered<Response, Reader, Running> {
        let (own, other) = (&question.asks.key, question.other.as_ref());
        let both = [own, other.unwrap_or(own)];
        self.shared.inflight.enter(
            if other.is_some() { &both } else { &both[..1] },
            !question.wants.no_cache,
            |running| if question.strict && !running.usage { None } else { running.transcript.join(&self.desk) },
            // Whoever was sealed since the first look counted it before letting go of this lock.
            || {
                let moved = self.shared.store.puts() != question.puts;
                moved.then(|| self.kept(question, asker, Instant::now())).flatten()
            },
            || {
                let (writer, reader) = Transcript::begin(&self.desk, self.config.max_entry, &self.shared.live);
                let transcript = Arc::clone(writer.transcript());
                *begun = Some((writer, reader));
                let (model, tenant) = (call.model.clone(), question.asks.tenant);
                Arc::new(Running { transcript, model, tenant, usage: question.usage })
            },
        )
    }

    /// Kept elsewhere, or an error: nobody computes it.
    async fn kept_elsewhere(&self, call: &Call, question: &Question) -> Result<Response, Error> {
        let Some(entry) = self.second(call.model.as_deref(), question).await else {
            return Err(not_cached(call));
        };
        let now = Instant::now();
        let left = entry.fresh_for(now).unwrap_or_default();
        call.record.cached.set(Cached::Hit(left.as_secs()));
        Ok(self.hit(&entry, &entry.body, left, &Asker::of(call, question), now, HeaderMap::new()))
    }

    /// What the second tier has, fresh and as it is asked for.
    async fn second(&self, model: Option<&str>, question: &Question) -> Option<Entry> {
        let second = self.shared.second.as_deref()?;
        if question.wants.no_cache {
            return None;
        }
        let asks = &question.asks;
        let digest = self.shared.keys.digest(&asks.key);
        let entry = second.get(Wanted { digest, shape: asks.key.shape(), tenant: asks.tenant, model }).await?;
        question.takes(&entry, Instant::now()).then_some(entry)
    }
}

impl Question {
    /// Whether the two shapes of its answer hold the same, as far as that is the request's doing.
    fn is_exchangeable(&self) -> bool {
        *self.exchangeable.get_or_init(|| form::exchangeable(&self.body))
    }

    /// An answer of the other shape, in the one that is asked for.
    fn convert(&self, entry: &Entry) -> Option<Bytes> {
        if !self.is_exchangeable() {
            return None;
        }
        form::convert(entry, self.asks.key.shape())
    }

    /// Whether `entry` is fresh, and as it was asked for.
    fn takes(&self, entry: &Entry, now: Instant) -> bool {
        let tells = !self.usage || entry.facts.told || entry.shape != self.asks.key.shape();
        tells && entry.fresh_for(now).is_some() && self.wants.takes(entry.age(now))
    }
}

/// Whether the answer has an event that only comes to those who ask for it.
fn needs_usage(call: &Call) -> bool {
    call.stream && call.asked.usage && has_usage_event(call.endpoint)
}

fn has_usage_event(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completions)
}

fn not_cached(call: &Call) -> Error {
    call.record.cached.set(Cached::Absent);
    Error::new(Kind::NotCached, "no fresh answer is kept for this request, and its Cache-Control says only-if-cached")
}

/// Whether an answer of this status says nothing of the request.
fn is_fault(status: StatusCode) -> bool {
    status.is_server_error()
}
