//! The answer's body under guard: silence, truncation, tokens, the names in it.
//!
//! A whole answer that came in one read is looked at once and costs nothing afterwards. Any other is a [`Guarded`]
//! body, which holds the permit until its end.

use std::{
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Upstream, Watch,
    events::{Framing, HoldBack},
    response_id,
};
use crate::{
    body::Body,
    error::{Error, Kind, Retry},
    fleet::{Backend, Outcome, Permit},
    protocol::{
        endpoint::{Dialect, Endpoint},
        rename::{Renamer, rename_in_answer},
        usage::{self, StreamMeter},
    },
    proxy::{Response, call::Call, record::Record},
};

/// What the head showed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// When the attempt left.
    pub(super) sent: Instant,
    /// When the head came.
    pub(super) head: Instant,
    /// The outcome is reported already.
    pub(super) told: bool,
}

/// What the answer's way needs of its call. The call itself, and with it the request's body, is held only by those who
/// may send it again.
struct About {
    endpoint: Endpoint,
    stream: bool,
    alias: Option<Arc<str>>,
    record: Rc<Record>,
}

impl About {
    fn of(call: &Call) -> Self {
        let Call { endpoint, stream, alias, record, .. } = call;
        Self { endpoint: *endpoint, stream: *stream, alias: alias.clone(), record: Rc::clone(record) }
    }
}

/// Puts the answer under guard.
pub(super) fn guard(
    mut response: Response,
    stage: Rc<Upstream>,
    call: &Call,
    backend: Arc<Backend>,
    permit: Permit,
    watch: Watch,
    seen: Seen,
) -> Response {
    let call = About::of(call);
    let plain = !response.headers().contains_key(header::CONTENT_ENCODING);
    let status = response.status();
    let good = plain && status == StatusCode::OK;
    let content_type = response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let framing = Framing::of(content_type).filter(|_| plain);
    let body = std::mem::replace(response.body_mut(), Body::empty());
    if body.is_end_stream() || framing.is_none() && body.as_whole().is_some() {
        backend.worked(seen.head - seen.sent, body.as_whole().map_or(0, |whole| whole.len() as u64));
        if !seen.told {
            backend.report_at(seen.head, Outcome::Answered { ttft: None });
        }
        let headers = response.headers_mut();
        let body = if good { finished(headers, body, &stage, &call, &backend) } else { at_once(body, &call) };
        *response.body_mut() = body;
        return response;
    }
    let metered = framing.is_some() && status == StatusCode::OK;
    let renamed = good && call.alias.is_some();
    // A stream that turns out to be cut at its very end must be able to say so: no length is promised.
    if framing.is_some() || renamed {
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    let gather = match framing {
        None if renamed => Gather::Held(Vec::new()),
        None if good && call.endpoint != Endpoint::Passthrough => Gather::Beside(Vec::new()),
        _ => Gather::Nothing,
    };
    let dialect = match (framing, call.record.dialect) {
        (Some(Framing::Ndjson), _) => Dialect::Ollama,
        (_, Dialect::Ollama) => Dialect::OpenAi,
        (_, dialect) => dialect,
    };
    let guarded = Guarded {
        inner: body,
        hold: framing.map(HoldBack::new),
        meter: metered.then(|| StreamMeter::new(call.endpoint, dialect)),
        renamer: call
            .alias
            .as_deref()
            .filter(|_| renamed && framing.is_some())
            .map(|alias| Box::new(Renamer::new(dialect, alias))),
        gather,
        learn: call.endpoint == Endpoint::Responses && status == StatusCode::OK,
        good,
        seen,
        received: 0,
        between: stage.timeouts.between_bytes,
        state: State::Running,
        stage,
        call,
        backend,
        permit: Some(permit),
        watch,
    };
    *response.body_mut() = Body::stream(guarded);
    response
}

/// A plain answer longer than this is passed on without its tokens being counted, and without its name changed back.
const GATHERED: usize = 8 << 20;

/// A plain answer in pieces, kept to be read at its end.
enum Gather {
    Nothing,
    /// A copy, for its tokens.
    Beside(Vec<u8>),
    /// The answer itself, until its model can be renamed.
    Held(Vec<u8>),
}

impl Gather {
    /// Takes what was read, gives what may go on.
    fn push(&mut self, data: Bytes) -> Bytes {
        let (Self::Beside(kept) | Self::Held(kept)) = self else { return data };
        kept.extend_from_slice(&data);
        if kept.len() <= GATHERED {
            return if matches!(self, Self::Held(_)) { Bytes::new() } else { data };
        }
        match std::mem::replace(self, Self::Nothing) {
            Self::Held(kept) => kept.into(),
            _ => data,
        }
    }
}

/// A whole plain answer: tokens, finish, id, name.
fn finished(headers: &mut HeaderMap, body: Body, stage: &Upstream, call: &About, backend: &Backend) -> Body {
    let body = at_once(body, call);
    let Some(whole) = body.as_whole() else { return body };
    account(whole, stage, call, backend);
    match renamed(whole, call) {
        Some(renamed) => {
            headers.remove(header::CONTENT_LENGTH);
            Body::whole(renamed)
        }
        None => body,
    }
}

/// Its first byte, and its last, came with the head.
fn at_once(body: Body, call: &About) -> Body {
    let now = call.record.head.get();
    call.record.first_byte.set(now);
    call.record.last_byte.set(now);
    body
}

/// Reads tokens and finish off a complete plain answer.
fn account(whole: &[u8], stage: &Upstream, call: &About, backend: &Backend) {
    if call.endpoint == Endpoint::Passthrough {
        return;
    }
    let (tokens, finish) = usage::of_answer(call.endpoint, whole);
    call.record.usage.set(tokens);
    call.record.finish.set(finish);
    if call.endpoint == Endpoint::Responses
        && let Some(id) = response_id::in_answer(whole)
    {
        stage.response_ids.issued(&id, &backend.spec.name);
    }
}

fn renamed(whole: &[u8], call: &About) -> Option<Bytes> {
    rename_in_answer(whole, call.alias.as_deref()?).map(Bytes::from)
}

/// Whether a stream whose framing is complete ended before it was finished, and did not say so itself.
fn is_cut(meter: &StreamMeter) -> bool {
    !(meter.is_whole() || meter.saw_error() || meter.overflowed())
}

/// A body that watches the clocks and what goes by.
struct Guarded {
    inner: Body,
    hold: Option<HoldBack>,
    meter: Option<StreamMeter>,
    renamer: Option<Box<Renamer>>,
    gather: Gather,
    /// Whether a response id is still to be learnt.
    learn: bool,
    /// 200, and readable.
    good: bool,
    seen: Seen,
    /// Bytes so far.
    received: u64,
    between: Duration,
    state: State,
    stage: Rc<Upstream>,
    call: About,
    backend: Arc<Backend>,
    permit: Option<Permit>,
    watch: Watch,
}

enum State {
    Running,
    /// Trailers that come after the last held bytes.
    Trailers(Box<Frame<Bytes>>),
    /// Found incomplete at its end.
    Failing(Error),
    Ended,
}

type Polled = Poll<Option<Result<Frame<Bytes>, Error>>>;

impl Guarded {
    /// A read came.
    fn data(&mut self, data: Bytes) -> Bytes {
        let now = Instant::now();
        let record = &self.call.record;
        if record.first_byte.get().is_none() {
            record.first_byte.set(Some(now));
            // A plain answer comes when it is finished: its length, not the backend's pace, decides.
            let ttft = (self.call.stream && self.good).then(|| now - self.seen.sent);
            if !self.seen.told {
                self.backend.report_at(now, Outcome::Answered { ttft });
            }
        }
        record.last_byte.set(Some(now));
        self.received += data.len() as u64;
        self.backend.note_bytes();
        self.watch.silence.heard(self.between);
        let alike = self.meter.as_mut().and_then(|meter| meter.push(&data));
        if self.learn {
            self.learn_id(&data);
        }
        // One whole event, and nothing before it: it goes on as it is.
        let alone = alike.is_some() && self.hold.as_ref().is_some_and(HoldBack::is_empty);
        self.call.record.alike.set(alike.filter(|_| alone && self.renamer.is_none()));
        let data = match &mut self.hold {
            Some(_) if alone => data,
            Some(hold) => hold.push(data),
            None => self.gather.push(data),
        };
        match &mut self.renamer {
            Some(renamer) if !data.is_empty() => renamer.push(data),
            _ => data,
        }
    }

    /// The first event of a `/v1/responses` stream carries the id.
    fn learn_id(&mut self, data: &[u8]) {
        if self.meter.is_some()
            && let Some(id) = response_id::in_event(data)
        {
            self.stage.response_ids.issued(&id, &self.backend.spec.name);
            self.learn = false;
        }
    }

    /// The framing says the answer is complete: is it? Gives what was held back.
    fn complete(&mut self) -> Result<Bytes, Error> {
        self.settle();
        match std::mem::replace(&mut self.gather, Gather::Nothing) {
            Gather::Nothing => {}
            Gather::Beside(whole) => account(&whole, &self.stage, &self.call, &self.backend),
            Gather::Held(whole) => {
                account(&whole, &self.stage, &self.call, &self.backend);
                return Ok(renamed(&whole, &self.call).unwrap_or_else(|| whole.into()));
            }
        }
        if let Some(meter) = &self.meter
            && is_cut(meter)
        {
            return Err(Error::new(
                Kind::StreamCut,
                format!("backend {} ended the stream before it was finished", self.backend.spec.name),
            )
            .retry(Retry::Safe));
        }
        let rest = self.hold.as_mut().map(HoldBack::rest).unwrap_or_default();
        let Some(renamer) = &mut self.renamer else { return Ok(rest) };
        let (renamed, held) = (renamer.push(rest), renamer.finish());
        Ok(if held.is_empty() { renamed } else { [&renamed[..], &held[..]].concat().into() })
    }

    fn settle(&mut self) {
        if let Some(meter) = &self.meter {
            self.call.record.usage.set(meter.usage());
            self.call.record.finish.set(meter.finish());
        }
    }

    fn fail(&mut self, mut error: Error) -> Polled {
        self.settle();
        let fault = matches!(error.kind(), Kind::StreamCut | Kind::UpstreamProtocol | Kind::UpstreamSilent);
        // Silence carries its own answer: dead may be tried again, a limit that ran out may not.
        if matches!(error.kind(), Kind::StreamCut | Kind::UpstreamProtocol)
            && self.call.record.first_byte.get().is_none()
        {
            error = error.retry(Retry::Safe);
        }
        self.state = State::Ended;
        self.permit = None;
        self.inner = Body::empty();
        self.call.record.cut.set(Some(error.kind()));
        if fault {
            self.backend.report(Outcome::Broken(error.message()));
        }
        Poll::Ready(Some(Err(error.at(&self.backend.spec.name))))
    }

    /// The answer is complete but for `last`, which was just read, and what was held back.
    fn end(&mut self, last: Bytes, trailers: Option<Frame<Bytes>>) -> Polled {
        let rest = match self.complete() {
            Ok(rest) => rest,
            Err(error) if last.is_empty() => return self.fail(error),
            Err(error) => {
                self.state = State::Failing(error);
                return Poll::Ready(Some(Ok(Frame::data(last))));
            }
        };
        self.permit = None;
        // An answer whose body turned out to be empty.
        if self.call.record.first_byte.get().is_none() && !self.seen.told {
            self.backend.report(Outcome::Answered { ttft: None });
        }
        let rest = match (last.is_empty(), rest.is_empty()) {
            (true, _) => rest,
            (_, true) => last,
            _ => [&last[..], &rest[..]].concat().into(),
        };
        self.state = State::Ended;
        match trailers {
            Some(trailers) if rest.is_empty() => return Poll::Ready(Some(Ok(trailers))),
            Some(trailers) => self.state = State::Trailers(Box::new(trailers)),
            None => {}
        }
        Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Polled {
        let Poll::Ready(error) = self.watch.poll_over(cx) else { return Poll::Pending };
        if error.kind() == Kind::DeadlineExceeded {
            return self.fail(error);
        }
        let why = error.message().to_owned();
        let retry = error.may_retry();
        self.fail(Error::new(Kind::UpstreamSilent, why).retry(retry))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.backend.worked(self.seen.sent.elapsed(), self.received);
    }
}

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.state, State::Ended) {
                State::Ended => return Poll::Ready(None),
                State::Trailers(trailers) => return Poll::Ready(Some(Ok(*trailers))),
                State::Failing(error) => return this.fail(error),
                State::Running => this.state = State::Running,
            }
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        let ready = this.data(data);
                        // Whoever writes by a length does not poll again once it is reached: the end is now.
                        if this.inner.is_end_stream() {
                            return this.end(ready, None);
                        }
                        if !ready.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(ready))));
                        }
                    }
                    Err(trailers) => return this.end(Bytes::new(), Some(trailers)),
                },
                Poll::Ready(Some(Err(error))) => return this.fail(error),
                Poll::Ready(None) => return this.end(Bytes::new(), None),
                Poll::Pending => return this.poll_silence(cx),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        if self.hold.is_some() || matches!(self.gather, Gather::Held(_)) {
            return SizeHint::default();
        }
        self.inner.size_hint()
    }
}
