//! The body of an answer that outlives its backend.
//!
//! ```text
//!   Reading ── cut, or told to move ──► Going on ── there is more ──► Reading (through a Splice) ── … ──► Ended
//!                                          └── only its end was missing, or refused ──► Ended
//! ```

use std::{
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tower::Service;

use super::{
    Resume,
    continuation::{Continuation, Continued, Denied, Sender},
    counters::{Mode, Why},
    first::First,
    moves::{Order, Seat},
    plan::{Plan, tells_usage},
    refusal::Refusal,
    splice::Splice,
    tap::{Seen, Tap},
};
use crate::{
    body::Body,
    error::{Error, Kind},
    fleet::Outcome,
    protocol::endpoint::Endpoint,
    proxy::{
        Response,
        call::Call,
        record::{Record, Resumed},
    },
};

/// See the module.
pub(super) struct Streamed<S> {
    ctx: Rc<Resume>,
    inner: S,
    call: Rc<Call>,
    tap: Tap,
    /// Until the first bytes come: up to then another attempt may take this one's place.
    first: Option<Rc<First>>,
    splice: Option<Splice>,
    state: State,
    seat: Seat,
    /// Counted in `resume.memory`.
    held: usize,
    /// There was no memory for it: it cannot go on.
    forgotten: bool,
    /// Its terminator came.
    whole: bool,
    /// Something of it came.
    begun: bool,
    attempts: u32,
    /// Backends that cut it, or that it left.
    left: Vec<u64>,
    /// What it goes on from, until the first bytes of that come.
    seam: Option<(Rc<Continuation>, Turn)>,
    /// The story of the continuation that is being read.
    record: Option<Rc<Record>>,
}

enum State {
    Reading(Body),
    Going(Box<Going>),
    Ended,
}

struct Going {
    next: Pin<Box<dyn Future<Output = Result<Continued, Denied>>>>,
    turn: Turn,
    cause: Error,
    /// It is left only once the other has answered.
    old: Option<Body>,
}

/// When and why it stopped.
#[derive(Clone, Copy)]
struct Turn {
    why: Why,
    at: Instant,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

impl<S> Streamed<S>
where
    S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
    S::Future: 'static,
{
    /// `first` says whether the attempt that answers was asked for token ids.
    pub(super) fn new(ctx: Rc<Resume>, inner: S, call: Rc<Call>, body: Body, first: Option<Rc<First>>) -> Self {
        let tap = Tap::new(call.endpoint, false);
        let seat = ctx.moves.seat(&call);
        Self {
            ctx,
            inner,
            call,
            tap,
            first,
            splice: None,
            state: State::Reading(body),
            seat,
            held: 0,
            forgotten: false,
            whole: false,
            begun: false,
            attempts: 0,
            left: Vec::new(),
            seam: None,
            record: None,
        }
    }

    /// Takes what came, gives what goes on.
    #[inline]
    fn data(&mut self, data: Bytes) -> Bytes {
        if !self.begun || self.seam.is_some() {
            return self.first_data(data);
        }
        let passed = match &mut self.splice {
            None => self.tap.push(data, self.call.record.alike.take()),
            Some(splice) => splice.push(&data, &mut self.tap),
        };
        self.account();
        self.seat.said(self.tap.delivered().chunks());
        if passed.seen != Seen::Going {
            self.stopped(passed.seen);
        }
        passed.data
    }

    /// The first bytes of the answer, or of a continuation.
    fn first_data(&mut self, data: Bytes) -> Bytes {
        self.begun = true;
        let joined = self.seam.is_some();
        if self.first.take().is_some_and(|first| first.asked()) {
            self.tap = Tap::new(self.call.endpoint, true);
        }
        self.join();
        self.settle();
        let data = self.data(data);
        if joined { self.reported(data) } else { data }
    }

    /// Up to its first bytes another attempt may have taken its place.
    fn settle(&self) {
        let own = &self.call.record;
        let newest = self.record.as_ref().unwrap_or(own);
        if self.seat.is_elsewhere(newest) {
            self.seat.moved(newest);
            if !Rc::ptr_eq(own, newest) {
                own.backend.replace(newest.backend.borrow().clone());
            }
        }
    }

    fn stopped(&mut self, seen: Seen) {
        match seen {
            Seen::Going => {}
            Seen::Ended => self.complete(),
            Seen::Cut(said) => {
                let cause = self.said(&said);
                self.cut(cause);
            }
        }
    }

    /// Where the stream is to say that it was joined, a comment says it: no client stumbles over that.
    fn reported(&self, data: Bytes) -> Bytes {
        if !self.ctx.config.report {
            return data;
        }
        let Resumed { times, mode, kept, gap } = self.call.record.resumed.get();
        let gap = gap.as_millis();
        let comment = format!(": sluicegate resumed={times} mode={mode} tokens_kept={kept} gap_ms={gap}\n\n");
        [comment.as_bytes(), &data[..]].concat().into()
    }

    /// The continuation's first bytes are here: it is known now who answers, and how that is joined on.
    fn join(&mut self) {
        let Some((continuation, turn)) = self.seam.take() else { return };
        let Some((mode, said, seam)) = continuation.seam() else { return };
        self.splice = Some(Splice::new(seam));
        self.went_on(turn, mode, said);
    }

    fn went_on(&self, turn: Turn, mode: Mode, kept: u64) {
        let (record, gap) = (&self.call.record, turn.at.elapsed());
        record.cut.set(None);
        let before = record.resumed.get();
        record.resumed.set(Resumed {
            times: before.times + 1,
            mode: mode.name(),
            kept: before.kept.max(kept),
            gap: before.gap.max(gap),
        });
        self.ctx.counters.resumed(turn.why, mode, kept, gap);
        let backend = record.backend.borrow();
        tracing::info!(
            id = ?record.id, cause = turn.why.name(), mode = mode.name(), tokens_kept = kept, gap_ms = gap.as_millis() as u64,
            backend = backend.as_ref().map_or("-", |backend| &**backend.name()),
            "a stream goes on"
        );
    }

    /// Counts what is held for a continuation; with no memory for it, there will be none.
    fn account(&mut self) {
        let held = self.tap.held();
        if held > self.held && !self.forgotten {
            // In steps: this is shared by all workers.
            let grown = (held - self.held).next_multiple_of(STEP);
            if self.ctx.live.reserve(grown) {
                self.held += grown;
            } else {
                self.tap.forget();
                self.forgotten = true;
                self.ctx.live.release(mem::take(&mut self.held));
            }
        }
    }

    /// The terminator has been passed on.
    fn complete(&mut self) {
        self.whole = true;
        let Some(splice) = &self.splice else { return };
        // An engine that did not see a stop string across the seam would go on.
        self.state = State::Ended;
        let record = &self.call.record;
        if let Some(usage) = splice.total(&self.tap) {
            record.usage.set(usage);
        }
        if let Some(finish) = self.tap.delivered().finish() {
            record.finish.set(finish);
        }
    }

    /// The engine itself gave the answer up.
    fn said(&self, said: &str) -> Error {
        let newest = self.record.as_ref().unwrap_or(&self.call.record);
        let backend = newest.backend.borrow();
        let error = Error::new(Kind::StreamCut, format!("the engine gave the answer up: {said}"));
        match &*backend {
            Some(backend) => {
                backend.report(Outcome::Broken(error.message()));
                error.at(backend.name())
            }
            None => error,
        }
    }

    fn cut(&mut self, cause: Error) {
        let turn = Turn { why: Why::Cut, at: Instant::now() };
        self.left.extend(self.backend());
        match self.plan() {
            Ok(plan) => self.set_out(plan, turn, cause, None),
            Err(refusal) => self.state = State::Going(Box::new(Going::refused(refusal, turn, cause))),
        }
    }

    /// Leaves a machine that will be taken away, if it can.
    fn leave(&mut self) {
        let Ok(plan) = self.plan() else { return self.seat.stays() };
        let backend = self.backend();
        self.left.extend(backend);
        let turn = Turn { why: Why::Move, at: Instant::now() };
        let State::Reading(old) = mem::replace(&mut self.state, State::Ended) else { return };
        self.set_out(plan, turn, interrupted(), Some(old));
    }

    fn backend(&self) -> Option<u64> {
        let newest = self.record.as_ref().unwrap_or(&self.call.record);
        newest.backend.borrow().as_ref().map(|backend| backend.id)
    }

    fn plan(&self) -> Result<Plan, Refusal> {
        if self.forgotten {
            return Err(Refusal::Memory);
        }
        Plan::of(&self.ctx, &self.call, self.tap.delivered(), self.attempts)
    }

    fn set_out(&mut self, plan: Plan, turn: Turn, cause: Error, old: Option<Body>) {
        self.attempts += 1;
        let sender = Sender {
            ctx: Rc::clone(&self.ctx),
            inner: self.inner.clone(),
            call: Rc::clone(&self.call),
            avoid: self.left.clone(),
            patience: old.as_ref().map(|_| PATIENCE),
        };
        let next = Box::pin(sender.go_on(plan));
        self.state = State::Going(Box::new(Going { next, turn, cause, old }));
    }

    /// There is an answer to the attempt to go on.
    fn gone_on(&mut self, going: Going, outcome: Result<Continued, Denied>) -> Option<Result<Bytes, Error>> {
        match outcome {
            Ok(Continued::Stream { body, continuation, record }) => {
                self.seat.moved(&record);
                self.follow(&record);
                self.splice = None;
                self.record = Some(record);
                self.seam = Some((continuation, going.turn));
                self.state = State::Reading(body);
                None
            }
            Ok(Continued::Close { finish, usage }) => {
                self.went_on(going.turn, Mode::End, self.tap.delivered().chunks());
                self.whole = true;
                let record = &self.call.record;
                record.finish.set(finish);
                record.usage.set(usage.unwrap_or(record.usage.get()));
                self.state = State::Ended;
                let told = usage.filter(|_| tells_usage(&self.call));
                let close = self.tap.close(finish, told, None);
                Some(Ok(self.reported(close)))
            }
            Err(denied) if going.old.is_some() => {
                // Where it is it can stay for a while yet.
                self.left.pop();
                self.attempts -= 1;
                match denied.refusal {
                    // There may be room later.
                    Refusal::Backend => self.seat.later(),
                    _ => self.seat.stays(),
                }
                self.state = State::Reading(going.old.unwrap_or_else(Body::empty));
                None
            }
            Err(denied) => Some(Err(self.end(going.cause, &denied))),
        }
    }

    /// The answer is whose backend it comes from now.
    fn follow(&self, from: &Record) {
        let record = &self.call.record;
        record.backend.replace(from.backend.borrow().clone());
        record.attempts.set(record.attempts.get() + from.attempts.get());
    }

    fn end(&mut self, cause: Error, denied: &Denied) -> Error {
        self.state = State::Ended;
        self.ctx.counters.refused(denied.refusal);
        self.call.record.cut.set(Some(cause.kind()));
        let mut text = format!("{}; it was not continued: {}", cause.message(), denied.refusal.why());
        if let Some(detail) = &denied.detail {
            text.push_str(&format!(" ({detail})"));
        }
        let error = Error::new(cause.kind(), text);
        match cause.backend() {
            Some(backend) => error.at(backend).with_source(cause),
            None => error.with_source(cause),
        }
    }

    /// Does what it is told.
    fn obey(&mut self) {
        match self.seat.order() {
            // A message opens with the count of its prompt, which no continuation tells so early. Should it be cut before
            // that comes, another attempt takes its place.
            Some(_) if !self.begun && self.call.endpoint == Endpoint::Messages => {}
            Some(Order::Move) if !self.whole => self.leave(),
            // As good as cut; perhaps only its end is missing, or there is somebody by now.
            Some(Order::End) if !self.whole => self.cut(interrupted()),
            _ => {}
        }
    }

    /// Whether `frame` is the stream's next ordinary event: it was taken down, and goes on as it is.
    #[inline(always)]
    fn is_ordinary(&mut self, frame: &Frame<Bytes>) -> bool {
        if !self.begun || self.seam.is_some() || self.splice.is_some() {
            return false;
        }
        let (Some(alike), Some(data)) = (self.call.record.alike.get(), frame.data_ref()) else { return false };
        let Some(grown) = self.tap.known(data, alike) else { return false };
        if grown {
            self.account();
        }
        self.seat.said(self.tap.delivered().chunks());
        true
    }

    /// A frame came; gives what goes on.
    #[inline]
    fn frame(&mut self, frame: Frame<Bytes>) -> Option<Frame<Bytes>> {
        match frame.into_data() {
            Ok(data) => {
                let data = self.data(data);
                (!data.is_empty()).then(|| Frame::data(data))
            }
            // Trailers of a continuation are not this answer's.
            Err(trailers) => self.splice.is_none().then_some(trailers),
        }
    }

    /// Anything but an ordinary event, or the end.
    fn came(&mut self, polled: Polled) -> Option<Frame<Bytes>> {
        match polled {
            Poll::Ready(Some(Ok(frame))) => return self.frame(frame),
            Poll::Ready(Some(Err(error))) => self.ended(Some(error)),
            Poll::Ready(None) => self.ended(None),
            Poll::Pending => {}
        }
        None
    }

    /// The body has ended, or failed.
    fn ended(&mut self, failed: Option<Error>) {
        match failed {
            _ if self.whole => self.state = State::Ended,
            None if self.splice.is_none() && self.seam.is_none() => self.state = State::Ended,
            None => self.cut(Error::new(Kind::StreamCut, "the continuation ended before it was finished")),
            Some(error) => self.cut(error),
        }
    }
}

/// A stream that is to be moved stands still for so long at most while it waits for a place.
const PATIENCE: Duration = Duration::from_millis(250);

/// Memory is counted in steps of so many bytes.
const STEP: usize = 1024;

impl Going {
    /// Nothing to wait for.
    fn refused(refusal: Refusal, turn: Turn, cause: Error) -> Self {
        let next = Box::pin(std::future::ready(Err(Denied { refusal, detail: None })));
        Self { next, turn, cause, old: None }
    }
}

fn interrupted() -> Error {
    Error::new(Kind::StreamCut, "the machine that computes this answer is being taken away")
}

/// Nothing of it is pinned in place.
impl<S> Unpin for Streamed<S> {}

impl<S> HttpBody for Streamed<S>
where
    S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
    S::Future: 'static,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        loop {
            match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Reading(_) if this.seat.is_called() => this.obey(),
                State::Reading(body) => {
                    let polled = Pin::new(body).poll_frame(cx);
                    match &polled {
                        Poll::Pending => this.seat.waits(cx.waker()),
                        Poll::Ready(Some(Ok(frame))) if this.is_ordinary(frame) => {}
                        Poll::Ready(_) => match this.came(polled) {
                            Some(frame) => return Poll::Ready(Some(Ok(frame))),
                            None => continue,
                        },
                    }
                    return polled;
                }
                State::Going(going) => {
                    let Poll::Ready(outcome) = going.next.as_mut().poll(cx) else { return Poll::Pending };
                    let State::Going(going) = mem::replace(&mut this.state, State::Ended) else { continue };
                    if let Some(last) = this.gone_on(*going, outcome) {
                        return Poll::Ready(Some(last.map(Frame::data)));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Ended => true,
            State::Reading(body) => {
                (self.whole || self.splice.is_none() && self.seam.is_none()) && body.is_end_stream()
            }
            State::Going(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

impl<S> Drop for Streamed<S> {
    fn drop(&mut self) {
        self.ctx.live.release(self.held);
    }
}
