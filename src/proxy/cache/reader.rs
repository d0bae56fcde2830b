//! One client at a transcript: the leader, who drives the pump while alone, or a follower.

use std::{
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Cache, Question, Shape,
    edit::{Edit, Editor},
    is_fault,
    lead::{Pump, Step},
};
use crate::{
    body::Body,
    config::CacheScope,
    error::{Error, Kind, Origin},
    proxy::{
        Response,
        cached::Cached,
        call::Call,
        record::Record,
        transcript::{End, Failure, Head, Next, Reader, Whole},
    },
    runtime::ticker::Deadline,
};

/// Who reads.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    pub(super) record: Rc<Record>,
    pub(super) edit: Edit,
    pub(super) shape: Shape,
    deadline: Instant,
}

/// A place at a transcript. Left when dropped; the leader's pump then goes on, or stops, as it must.
pub(super) struct Seat {
    /// Taken when it is dropped.
    reader: Option<Reader>,
    /// The leader's.
    pump: Option<Rc<Pump>>,
    deadline: Deadline,
    cache: Rc<Cache>,
    asker: Asker,
}

/// What came of reading.
pub(super) enum Followed {
    Answer(Result<Response, Error>),
    /// The leader's own reason ended it before its head.
    Again,
    /// It is not what was asked for.
    Unfit,
    /// It is for whoever's credentials led it: ask for oneself.
    Alone,
}

/// Why there is no head.
enum NoHead {
    Failed(Failure),
    Late(Error),
}

/// A longer plain answer is passed on without its name changed back.
const RENAMED: usize = 8 << 20;

/// What is done to the passing bytes.
enum Editing {
    None,
    Stream(Editor),
    /// A plain answer, held until it is there.
    Plain(Edit, Vec<u8>),
}

impl Asker {
    pub(super) fn of(call: &Call, question: &Question) -> Self {
        Self {
            record: Rc::clone(&call.record),
            edit: Edit {
                endpoint: call.endpoint,
                alias: call.alias.clone(),
                strip_usage: call.stream && !call.asked.usage,
            },
            shape: question.asks.key.shape(),
            deadline: call.deadline,
        }
    }
}

// === impl Seat ===

impl Seat {
    pub(super) fn leader(cache: &Rc<Cache>, reader: Reader, asker: Asker, pump: Rc<Pump>) -> Self {
        Self::new(cache, reader, asker, Some(pump))
    }

    pub(super) fn follower(cache: &Rc<Cache>, reader: Reader, asker: Asker) -> Self {
        asker.record.cached.set(Cached::Collapsed);
        Self::new(cache, reader, asker, None)
    }

    fn new(cache: &Rc<Cache>, reader: Reader, asker: Asker, pump: Option<Rc<Pump>>) -> Self {
        let deadline = cache.ticker.deadline();
        deadline.set(asker.deadline.saturating_duration_since(Instant::now()));
        Self { reader: Some(reader), pump, deadline, cache: Rc::clone(cache), asker }
    }

    /// The answer, while it comes.
    pub(super) async fn answer(mut self, question: &Question) -> Followed {
        let head = match self.head().await {
            Ok(head) => head,
            Err(NoHead::Late(error)) => return Followed::Answer(Err(error)),
            Err(NoHead::Failed(failure)) if failure.own && self.pump.is_none() => return Followed::Again,
            Err(NoHead::Failed(failure)) => return Followed::Answer(self.instead(&failure.error, question)),
        };
        if is_fault(head.status)
            && let Some(stale) = self.cache.stale(question, &self.asker)
        {
            return Followed::Answer(Ok(stale));
        }
        // Where tenants share, a refusal or a private answer is still the leader's own.
        if self.pump.is_none() && !head.open && !is_fault(head.status) && self.cache.config.scope == CacheScope::Shared
        {
            return Followed::Alone;
        }
        if question.usage && head.open && !head.told && self.pump.is_none() {
            return Followed::Unfit;
        }
        Followed::Answer(Ok(self.response(&head)))
    }

    /// An answer of the other shape, once it is whole.
    pub(super) async fn converted(mut self, question: &Question) -> Followed {
        match self.head().await {
            Ok(head) if !head.open => return Followed::Unfit,
            Ok(_) => {}
            Err(NoHead::Late(error)) => return Followed::Answer(Err(error)),
            Err(NoHead::Failed(failure)) if failure.own => return Followed::Again,
            Err(NoHead::Failed(failure)) => return Followed::Answer(Err(failure.error.shared())),
        }
        // Its frames are read, so that the pump sees that somebody does.
        let whole = loop {
            match poll_fn(|cx| self.poll(cx, Reader::poll_next)).await {
                Ok(Next::Frame(_)) => {}
                Ok(Next::Last(_, whole) | Next::End(End::Whole(whole))) => break whole,
                Ok(Next::End(End::Cut(error))) => return Followed::Answer(Err(error.shared())),
                Ok(Next::End(End::Failed(failure))) => return Followed::Answer(Err(failure.error.shared())),
                Err(error) => return Followed::Answer(Err(error)),
            }
        };
        let asker = &self.asker;
        let Some(entry) = whole.entry else { return Followed::Unfit };
        let Some(body) = question.convert(&entry) else { return Followed::Unfit };
        let now = Instant::now();
        let left = entry.fresh_for(now).unwrap_or_default();
        let mut response = self.cache.hit(&entry, &body, left, asker, now, HeaderMap::new());
        response.headers_mut().remove(header::AGE);
        Followed::Answer(Ok(response))
    }

    /// The head of what comes; a follower's clocks are set by it.
    async fn head(&mut self) -> Result<Arc<Head>, NoHead> {
        let begun = Instant::now();
        let found = poll_fn(|cx| self.poll(cx, Reader::poll_head)).await;
        if self.pump.is_none() {
            let (now, record) = (Instant::now(), &self.asker.record);
            record.waited.set(record.waited.get() + (now - begun));
            record.head.set(Some(now));
        }
        match found {
            Ok(Ok(head)) => Ok(head),
            Ok(Err(failure)) => Err(NoHead::Failed(failure)),
            Err(late) => Err(NoHead::Late(late)),
        }
    }

    /// What stands in for an answer that failed before its head.
    fn instead(&self, error: &Error, question: &Question) -> Result<Response, Error> {
        let stale = match error.kind().origin() {
            Origin::Upstream | Origin::Gateway => self.cache.stale(question, &self.asker),
            Origin::Downstream => None,
        };
        stale.ok_or_else(|| error.shared())
    }

    fn response(self, head: &Head) -> Response {
        let own = self.pump.as_ref().and_then(|pump| pump.own_headers());
        let mut headers = own.unwrap_or_else(|| head.headers.clone());
        let editing = self.editing(head.status, &headers);
        if !matches!(editing, Editing::None) {
            headers.remove(header::CONTENT_LENGTH);
        }
        let body = self.body(editing, &headers);
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = headers;
        response
    }

    /// As one piece where all of it is there.
    fn body(mut self, editing: Editing, headers: &HeaderMap) -> Body {
        let Some(reader) = &mut self.reader else { return Body::empty() };
        let ahead = match reader.poll_next(None) {
            Poll::Ready(Next::Last(data, whole)) => return self.at_once(&data, &whole, editing),
            Poll::Ready(Next::End(End::Whole(whole))) => return self.at_once(&Bytes::new(), &whole, editing),
            Poll::Ready(next) => {
                if let Poll::Ready(End::Whole(whole)) = reader.poll_end(None)
                    && let Some(entry) = &whole.entry
                {
                    let data = entry.body.clone();
                    return self.at_once(&data, &whole, editing);
                }
                Some(next)
            }
            Poll::Pending => None,
        };
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Body::stream(Reading { seat: self, ahead, editing, left: length, ended: false })
    }

    fn at_once(&self, data: &Bytes, whole: &Whole, mut editing: Editing) -> Body {
        self.note();
        self.settle(whole);
        let (first, rest) = (editing.push(data.clone()), editing.finish());
        Body::whole(joined(first, rest))
    }

    fn editing(&self, status: StatusCode, headers: &HeaderMap) -> Editing {
        let edit = &self.asker.edit;
        if edit.is_none() || status != StatusCode::OK || headers.contains_key(header::CONTENT_ENCODING) {
            return Editing::None;
        }
        let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
        let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
        if essence.eq_ignore_ascii_case(b"text/event-stream") {
            Editing::Stream(edit.editor())
        } else if edit.alias.is_some() && essence.eq_ignore_ascii_case(b"application/json") {
            Editing::Plain(edit.clone(), Vec::new())
        } else {
            Editing::None
        }
    }

    /// Waits for what `look` finds, no longer than the client does; the leader drives meanwhile.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        look: impl Fn(&mut Reader, Option<&Waker>) -> Poll<T>,
    ) -> Poll<Result<T, Error>> {
        let Some(reader) = &mut self.reader else { return Poll::Pending };
        loop {
            let inline = self.pump.as_ref().filter(|pump| pump.is_inline());
            if let Poll::Ready(found) = look(reader, inline.is_none().then(|| cx.waker())) {
                return Poll::Ready(Ok(found));
            }
            let Some(pump) = inline else { break };
            match pump.step(cx) {
                Step::Moved => {}
                Step::Waits => {
                    pump.leader_waits(cx.waker());
                    break;
                }
                Step::Done => {
                    if let Poll::Ready(found) = look(reader, Some(cx.waker())) {
                        return Poll::Ready(Ok(found));
                    }
                    break;
                }
            }
        }
        self.deadline
            .poll_over(cx)
            .map(|()| Err(Error::new(Kind::DeadlineExceeded, "timeouts.total ran out before the answer was complete")))
    }

    /// Bytes came: a follower's clocks.
    fn note(&self) {
        if self.pump.is_some() {
            return;
        }
        let (now, record) = (Some(Instant::now()), &self.asker.record);
        if record.first_byte.get().is_none() {
            record.first_byte.set(now);
        }
        record.last_byte.set(now);
    }

    /// It was whole: what a follower knows of it. The leader's own story was told by who computed it.
    fn settle(&self, whole: &Whole) {
        if self.pump.is_some() {
            return;
        }
        let record = &self.asker.record;
        record.usage.set(whole.facts.usage);
        record.finish.set(whole.facts.finish);
        self.cache.shared.spare(whole.facts.took);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.reader = None;
        if let Some(pump) = &self.pump {
            pump.leader_left();
        }
    }
}

// === impl Editing ===

impl Editing {
    fn push(&mut self, data: Bytes) -> Bytes {
        match self {
            Self::None => data,
            Self::Stream(editor) => editor.push(data),
            Self::Plain(_, held) => {
                held.extend_from_slice(&data);
                if held.len() <= RENAMED {
                    return Bytes::new();
                }
                let held = std::mem::take(held);
                *self = Self::None;
                held.into()
            }
        }
    }

    fn finish(&mut self) -> Bytes {
        match std::mem::replace(self, Self::None) {
            Self::None => Bytes::new(),
            Self::Stream(mut editor) => editor.finish(),
            Self::Plain(edit, held) => edit.whole(Shape::Plain, &held.into()),
        }
    }
}

fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (_, true) => first,
        (true, _) => second,
        _ => [&first[..], &second[..]].concat().into(),
    }
}

/// The body of one who reads while the answer comes.
struct Reading {
    seat: Seat,
    /// Read already.
    ahead: Option<Next>,
    editing: Editing,
    /// Bytes to come, where a length was promised.
    left: Option<u64>,
    ended: bool,
}

impl Reading {
    fn gives(&mut self, data: Bytes) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if data.is_empty() {
            return Poll::Ready(None);
        }
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn ends(&mut self, last: Bytes, whole: &Whole) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.ended = true;
        self.seat.settle(whole);
        let (last, rest) = (self.editing.push(last), self.editing.finish());
        self.gives(joined(last, rest))
    }

    fn fails(&mut self, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        // Events that were held back to be edited did come.
        if matches!(self.editing, Editing::Stream(_)) {
            let held = self.editing.finish();
            if !held.is_empty() {
                self.ahead = Some(Next::End(End::Cut(Arc::new(error))));
                return self.gives(held);
            }
        }
        self.ended = true;
        self.seat.asker.record.cut.set(Some(error.kind()));
        Poll::Ready(Some(Err(error)))
    }
}

impl HttpBody for Reading {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if this.ended {
                return Poll::Ready(None);
            }
            let next = match this.ahead.take() {
                Some(next) => Ok(next),
                None => match this.seat.poll(cx, Reader::poll_next) {
                    Poll::Ready(next) => next,
                    Poll::Pending => return Poll::Pending,
                },
            };
            match next {
                Ok(Next::Frame(data)) => {
                    this.seat.note();
                    let data = this.editing.push(data);
                    if !data.is_empty() {
                        return this.gives(data);
                    }
                }
                Ok(Next::Last(data, whole)) => {
                    this.seat.note();
                    return this.ends(data, &whole);
                }
                Ok(Next::End(End::Whole(whole))) => return this.ends(Bytes::new(), &whole),
                Ok(Next::End(End::Cut(error))) => return this.fails(error.shared()),
                Ok(Next::End(End::Failed(failure))) => return this.fails(failure.error.shared()),
                Err(error) => return this.fails(error),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
