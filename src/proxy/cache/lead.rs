//! The one who leads: its call goes to a backend, and what comes is written into the transcript that others follow.
//!
//! Its [`Pump`] is driven by the leader's own polls while nobody else reads: no task, no wake more than without a cache.
//! Once another joins, or the leader has left while the answer is to go on, it drives itself, on the leader's worker.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;
use tower::Service;

use super::{
    Cache, Entry, Key, Question, Running, Shape,
    control::{self, Freshness},
    eligible::has_shapes,
    has_usage_event, is_credential, is_keyed, keep,
    reader::{Asker, Followed, Seat},
};
use crate::{
    body::Body,
    error::{Error, Kind},
    protocol::endpoint::Endpoint,
    proxy::{
        Response,
        cached::Cached,
        call::Call,
        record::Record,
        transcript::{self, Facts, Head, Reader, Room, Transcript, Whole, Writer},
    },
    runtime::ticker::Deadline,
};

/// The deadline of a call that is led: each reader has its own.
const FAR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Drives one led call.
pub(super) struct Pump {
    transcript: Arc<Transcript>,
    work: RefCell<Option<Box<Work>>>,
    /// It drives itself.
    adopted: Cell<bool>,
    /// The leader, where it waits and drives.
    leader: RefCell<Option<Waker>>,
    /// The head's own fields, for the leader.
    own: RefCell<Option<HeaderMap>>,
    cache: Rc<Cache>,
}

/// How far a poll came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Moved,
    Waits,
    Done,
}

type Calling = Pin<Box<dyn Future<Output = Result<Got, Error>>>>;

/// What the call came to.
enum Got {
    Response(Response),
    /// The second tier had it.
    Kept(Box<Entry>),
}

enum State {
    Calling(Calling),
    Reading(Body),
}

/// The call and where it is written. Dropped at its end, given up, or by a panic inside: the writer fails the
/// transcript, the lead takes it out of flight.
struct Work {
    state: State,
    /// Taken at the end.
    writer: Option<Writer>,
    lead: Lead,
}

/// What decides about the answer.
struct Lead {
    cache: Rc<Cache>,
    key: Key,
    running: Arc<Running>,
    record: Rc<Record>,
    endpoint: Endpoint,
    shape: Shape,
    /// The leader's own patience.
    patience: Instant,
    /// The headers that may be given again, or why it is not kept.
    verdict: Result<HeaderMap, keep::Reason>,
    /// How long it is fresh, how old it came, and whether it may stand in for an error.
    ttl: Duration,
    age: Duration,
    strict: bool,
    settled: bool,
}

impl Cache {
    /// Leads: the backend is asked once, and whoever comes meanwhile follows.
    pub(super) async fn lead<S>(
        self: Rc<Self>,
        call: Call,
        question: Question,
        running: Arc<Running>,
        writer: Writer,
        reader: Reader,
        mut inner: S,
    ) -> Result<Response, Error>
    where
        S: Service<Call, Response = Response, Error = Error> + 'static,
        S::Future: 'static,
    {
        call.record.cached.set(if question.wants.no_cache { Cached::Request } else { Cached::Miss });
        let asker = Asker::of(&call, &question);
        let lead = Lead {
            cache: Rc::clone(&self),
            key: question.asks.key.clone(),
            running,
            record: Rc::clone(&call.record),
            endpoint: call.endpoint,
            shape: question.asks.key.shape(),
            patience: call.wait_until.unwrap_or(call.deadline).min(call.deadline),
            verdict: Err("cancelled"),
            ttl: self.config.ttl,
            age: Duration::ZERO,
            strict: false,
            settled: false,
        };
        let question = Rc::new(question);
        let (ctx, asked) = (Rc::clone(&self), Rc::clone(&question));
        let led = self.led(call);
        let second = self.shared.second.is_some();
        let calling = Box::pin(async move {
            if second && let Some(entry) = ctx.second(led.model.as_deref(), &asked).await {
                return Ok(Got::Kept(Box::new(entry)));
            }
            inner.call(led).await.map(Got::Response)
        });
        let pump = Rc::new(Pump {
            transcript: Arc::clone(writer.transcript()),
            work: RefCell::new(Some(Box::new(Work { state: State::Calling(calling), writer: Some(writer), lead }))),
            adopted: Cell::new(false),
            leader: RefCell::default(),
            own: RefCell::default(),
            cache: Rc::clone(&self),
        });
        self.desk.register(pump.transcript.id(), Rc::clone(&pump) as Rc<dyn transcript::Pump>);
        match Seat::leader(&self, reader, asker, pump).answer(&question).await {
            Followed::Answer(answer) => answer,
            Followed::Again | Followed::Unfit | Followed::Alone => {
                Err(Error::new(Kind::Internal, "the leader of an answer was told to ask again"))
            }
        }
    }

    /// The call as the backend gets it: what is not in the key stays here, so that it cannot change the answer.
    fn led(&self, mut call: Call) -> Call {
        let stays = |name: &HeaderName| is_keyed(name, &self.config.vary) || is_neutral(name);
        call.added.retain(|(name, _)| stays(name));
        let mut headers = HeaderMap::with_capacity(call.headers.len());
        for (name, value) in &call.headers {
            if is_credential(name) || stays(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        Call {
            headers,
            alias: None,
            wait_until: Some(call.wait_until.unwrap_or(call.deadline).min(call.deadline)),
            deadline: Instant::now() + FAR,
            ask_usage: call.stream && has_shapes(call.endpoint),
            ..call
        }
    }
}

/// Ids, and the way it came: no more than numbers, and what keeps it out of a loop. What else tells of the one client
/// that leads (`Forwarded`, `X-Forwarded-*`, `baggage`, `tracestate`) could change the answer that all are given.
fn is_neutral(name: &HeaderName) -> bool {
    *name == header::VIA
        || matches!(name.as_str(), "x-request-id" | "traceparent" | "b3")
        || name.as_str().starts_with("x-b3-")
}

// === impl Pump ===

impl Pump {
    /// Whether it is the leader that drives it.
    pub(super) fn is_inline(&self) -> bool {
        !self.adopted.get()
    }

    /// Goes on until something was written, or it has to wait.
    pub(super) fn step(&self, cx: &mut Context<'_>) -> Step {
        let Some(mut work) = self.work.borrow_mut().take() else { return Step::Done };
        // A panic inside drops the work, and with it all that others wait for.
        let step = work.poll(cx, &self.own);
        if step != Step::Done {
            self.work.replace(Some(work));
        }
        step
    }

    /// The leader waits, and is to be told when it drives no more.
    pub(super) fn leader_waits(&self, waker: &Waker) {
        let mut leader = self.leader.borrow_mut();
        if !leader.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *leader = Some(waker.clone());
        }
    }

    /// The leader reads no more.
    pub(super) fn leader_left(&self) {
        if !self.is_inline() {
            return;
        }
        if self.cache.config.linger.is_zero() || !self.transcript.is_open() {
            if self.transcript.close_if_idle() {
                self.give_up();
            }
            // Else somebody joined this moment: it is about to be adopted.
        } else {
            self.transcript.adopt();
        }
    }

    /// The head's own fields: the leader's.
    pub(super) fn own_headers(&self) -> Option<HeaderMap> {
        self.own.borrow_mut().take()
    }

    fn give_up(&self) {
        let work = self.work.borrow_mut().take();
        drop(work);
    }

    /// Until the end, or until nobody is left for it.
    async fn drive(self: Rc<Self>) {
        let mut linger: Option<Deadline> = None;
        poll_fn(|cx| self.poll_drive(cx, &mut linger)).await;
    }

    fn poll_drive(&self, cx: &mut Context<'_>, linger: &mut Option<Deadline>) -> Poll<()> {
        loop {
            match self.transcript.room(cx.waker()) {
                Room::Go => *linger = None,
                Room::Wait => return Poll::Pending,
                Room::Nobody => {
                    if self.lingered(cx, linger) && self.transcript.close_if_idle() {
                        self.give_up();
                        return Poll::Ready(());
                    }
                }
            }
            match self.step(cx) {
                Step::Moved => {}
                Step::Waits => return Poll::Pending,
                Step::Done => return Poll::Ready(()),
            }
        }
    }

    /// Whether it has gone on for long enough with nobody there.
    fn lingered(&self, cx: &mut Context<'_>, linger: &mut Option<Deadline>) -> bool {
        if self.cache.config.linger.is_zero() || !self.transcript.is_open() {
            return true;
        }
        let deadline = linger.get_or_insert_with(|| {
            let deadline = self.cache.ticker.deadline();
            deadline.set(self.cache.config.linger);
            deadline
        });
        deadline.poll_over(cx).is_ready()
    }
}

impl transcript::Pump for Pump {
    fn adopt(self: Rc<Self>) {
        if self.adopted.replace(true) {
            return;
        }
        if self.work.borrow().is_some() {
            spawn(Rc::clone(&self).drive());
        }
        // It waits for the backend's bytes: from here on for the transcript's.
        if let Some(leader) = self.leader.take() {
            leader.wake();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "it ends with its answer, or when nobody reads; the worker waits for it")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio::task::spawn_local(task);
}

// === impl Work ===

impl Work {
    fn poll(&mut self, cx: &mut Context<'_>, own: &RefCell<Option<HeaderMap>>) -> Step {
        match &mut self.state {
            State::Calling(calling) => {
                let Poll::Ready(got) = calling.as_mut().poll(cx) else { return Step::Waits };
                match got {
                    Ok(Got::Response(response)) => self.head(response, own),
                    Ok(Got::Kept(entry)) => self.kept(*entry, own),
                    Err(error) => self.fail(error),
                }
            }
            State::Reading(body) => {
                let Poll::Ready(next) = Pin::new(&mut *body).poll_frame(cx) else { return Step::Waits };
                match next {
                    Some(Ok(frame)) => {
                        // Trailers tell nothing that may be given again.
                        let Ok(data) = frame.into_data() else { return Step::Moved };
                        if body.is_end_stream() {
                            return self.whole(data);
                        }
                        self.write(&data)
                    }
                    Some(Err(error)) => self.fail(error),
                    None => self.whole(Bytes::new()),
                }
            }
        }
    }

    fn write(&mut self, data: &Bytes) -> Step {
        let Some(writer) = &mut self.writer else { return Step::Done };
        let recorded = writer.is_recorded();
        writer.push(data);
        if recorded && !writer.is_recorded() {
            // Too long, or no memory for it: latecomers lead their own.
            self.lead.refuse("too-large");
        }
        Step::Moved
    }

    fn head(&mut self, response: Response, own: &RefCell<Option<HeaderMap>>) -> Step {
        let (mut head, body) = response.into_parts();
        let lead = &mut self.lead;
        let vary = &lead.cache.config.vary;
        let verdict = keep::head(lead.endpoint, lead.shape, head.status, &head.headers, vary)
            .and_then(|headers| lead.fresh(&head.headers).map(|()| headers));
        let open = verdict.is_ok();
        let headers = match &verdict {
            Ok(headers) => {
                control::downstream(&mut head.headers, lead.cache.config.downstream, lead.ttl);
                let mut shared = headers.clone();
                control::downstream(&mut shared, lead.cache.config.downstream, lead.ttl);
                shared
            }
            Err(_) => for_all(&head.headers),
        };
        match verdict {
            Ok(headers) => {
                lead.verdict = Ok(headers);
                if lead.record.cached.get() == Cached::Miss {
                    lead.record.cached.set(Cached::Stored);
                }
            }
            Err(reason) => lead.refuse(reason),
        }
        own.replace(Some(head.headers));
        let Some(writer) = &mut self.writer else { return Step::Done };
        let told = self.lead.told();
        writer.head(Head { status: head.status, headers, open, told });
        if let Some(whole) = body.as_whole() {
            let whole = whole.clone();
            return self.whole(whole);
        }
        if body.is_end_stream() {
            return self.whole(Bytes::new());
        }
        self.state = State::Reading(body);
        Step::Moved
    }

    /// The body is complete by its framing, `last` its end.
    fn whole(&mut self, last: Bytes) -> Step {
        let Some(mut writer) = self.writer.take() else { return Step::Done };
        let facts = self.lead.facts();
        if self.lead.record.resumed.get().times > 0 {
            // What another replica went on with is true, and need not be what one alone would have said.
            self.lead.refuse("resumed");
        }
        let sealed = match &self.lead.verdict {
            Ok(_) => writer.seal(&last),
            Err(_) => None,
        };
        let entry = match &sealed {
            Some(body) => self.lead.entry(body, facts),
            None => {
                self.lead.refuse("too-large");
                None
            }
        };
        if let Some(entry) = &entry {
            self.lead.keep(entry);
        }
        self.lead.settled = true;
        writer.whole(last, sealed, Whole { facts, entry });
        Step::Done
    }

    /// The second tier had it: kept here too, and given to all.
    fn kept(&mut self, entry: Entry, own: &RefCell<Option<HeaderMap>>) -> Step {
        let Some(mut writer) = self.writer.take() else { return Step::Done };
        let entry = Arc::new(entry);
        let lead = &mut self.lead;
        let now = Instant::now();
        let left = entry.fresh_for(now).unwrap_or_default();
        let headers = lead.cache.kept_headers(&entry, entry.shape, left, now, HeaderMap::new());
        own.replace(Some(headers.clone()));
        let (record, facts) = (&lead.record, entry.facts);
        record.cached.set(Cached::Hit(left.as_secs()));
        record.usage.set(facts.usage);
        record.finish.set(facts.finish);
        record.first_byte.set(Some(now));
        record.last_byte.set(Some(now));
        lead.cache.shared.spare(facts.took);
        let store = &lead.cache.shared.store;
        lead.cache.shared.inflight.seal(&lead.key, &lead.running, || store.put(lead.key.clone(), Arc::clone(&entry)));
        lead.settled = true;
        writer.head(Head { status: StatusCode::OK, headers, open: true, told: facts.told });
        let body = entry.body.clone();
        writer.whole(body.clone(), Some(body), Whole { facts, entry: Some(entry) });
        Step::Done
    }

    fn fail(&mut self, error: Error) -> Step {
        self.lead.refuse(if self.lead.verdict.is_ok() { "cut" } else { "failed" });
        let own = match error.kind() {
            Kind::ClientGone => true,
            Kind::QueueTimeout => Instant::now() >= self.lead.patience,
            _ => false,
        };
        if let Some(writer) = self.writer.take() {
            writer.fail(error, own);
        }
        Step::Done
    }
}

// === impl Lead ===

impl Lead {
    /// It will not be kept; nobody joins any more.
    fn refuse(&mut self, reason: keep::Reason) {
        if !std::mem::replace(&mut self.settled, true) {
            self.cache.counters.not_stored(reason);
            self.cache.shared.inflight.remove(&self.key, &self.running);
        }
        self.verdict = Err(reason);
        if self.record.cached.get() == Cached::Stored {
            self.record.cached.set(Cached::Miss);
        }
    }

    /// What the backend says of how long it may be given.
    fn fresh(&mut self, headers: &HeaderMap) -> Result<(), keep::Reason> {
        let said = Freshness::of(headers);
        if said.is_over() {
            return Err("cache-control");
        }
        self.ttl = said.left.map_or(self.ttl, |left| left.min(self.ttl));
        (self.age, self.strict) = (said.age, said.strict);
        Ok(())
    }

    fn facts(&self) -> Facts {
        let record = &self.record;
        let body = record.head.get().map_or(Duration::ZERO, |head| head.elapsed());
        Facts {
            usage: record.usage.get(),
            finish: record.finish.get(),
            engine: record.backend.borrow().as_ref().and_then(|backend| backend.engine()),
            took: record.waited.get() + body,
            told: self.told(),
        }
    }

    /// Whether the answer tells its usage in itself.
    fn told(&self) -> bool {
        self.shape == Shape::Plain
            || !has_usage_event(self.endpoint)
            || self.running.usage
            || self.record.usage_asked.get()
    }

    /// The answer as it may be given again.
    fn entry(&mut self, body: &Bytes, facts: Facts) -> Option<Arc<Entry>> {
        if let Err(reason) = keep::body(self.endpoint, self.shape, body) {
            self.refuse(reason);
            return None;
        }
        let Ok(headers) = std::mem::replace(&mut self.verdict, Err("stored")) else { return None };
        let now = Instant::now();
        Some(Arc::new(Entry {
            endpoint: self.endpoint,
            shape: self.shape,
            headers,
            body: body.clone(),
            facts,
            model: self.running.model.clone(),
            tenant: self.running.tenant,
            // A machine that runs for less long than the answer is old cannot say that: it counts as new.
            stored: now.checked_sub(self.age).unwrap_or(now),
            expires: now + self.ttl,
            strict: self.strict,
        }))
    }

    /// Kept, unless a purge or a newer one came between.
    fn keep(&self, entry: &Arc<Entry>) {
        let shared = &self.cache.shared;
        let digest = shared.second.as_ref().map(|second| (second, shared.keys.digest(&self.key)));
        let kept = shared.inflight.seal(&self.key, &self.running, || {
            shared.store.put(self.key.clone(), Arc::clone(entry));
            if let Some((second, digest)) = digest {
                second.put(digest, entry);
            }
        });
        if kept {
            self.cache.counters.stored.increment(1);
        } else {
            self.cache.counters.not_stored("purged");
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        if !self.settled {
            self.refuse("cancelled");
        }
        self.cache.desk.done(self.running.transcript.id());
    }
}

/// Of a head that may not be given again: what those get who followed it already.
fn for_all(headers: &HeaderMap) -> HeaderMap {
    const FOR_ALL: [HeaderName; 7] = [
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_LANGUAGE,
        header::CACHE_CONTROL,
        header::RETRY_AFTER,
        HeaderName::from_static("x-should-retry"),
    ];
    let mut shared = HeaderMap::with_capacity(4);
    for name in FOR_ALL {
        for value in headers.get_all(&name) {
            shared.append(name.clone(), value.clone());
        }
    }
    shared
}

impl std::fmt::Debug for Pump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pump").field("transcript", &self.transcript).finish_non_exhaustive()
    }
}
