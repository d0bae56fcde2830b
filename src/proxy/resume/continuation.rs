//! The calls that an answer goes on by.
//!
//! What is sent depends on the engine that gets it, and which that is, routing decides: a [`Continuation`] makes the
//! form for each attempt. Before it, engines may be asked how many tokens a text has, or what ids spell.

use std::{cell::Cell, fmt, future::poll_fn, pin::Pin, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, Request as Head, StatusCode, uri::PathAndQuery};
use http_body::Body as _;
use tokio::time::Instant;
use tower::Service;

use super::{
    Resume,
    counters::Mode,
    plan::{Ids, Plan},
    refusal::Refusal,
    request::{self, Form, Shape},
    splice::Seam,
};
use crate::{
    body::Body,
    error::{Error, Kind, Retry},
    fleet::Backend,
    protocol::{
        endpoint::{Dialect, Endpoint},
        usage::{Finish, StreamMeter, Usage},
    },
    proxy::{
        Response,
        call::{Asked, Call, Fitted, Payload, Tailor},
        record::Record,
    },
};

/// What an engine says about tokens comes at once, or it is gone on without.
const QUICK: Duration = Duration::from_secs(5);
/// Longest answer about tokens; longest error that is told.
const LONGEST: (usize, usize) = (8 << 20, 300);

/// How an answer goes on.
pub(super) enum Continued {
    /// This follows; `continuation` says how it is joined on.
    Stream { body: Body, continuation: Rc<Continuation>, record: Rc<Record> },
    /// Everything was said: these close it.
    Close { finish: Finish, usage: Option<Usage> },
}

/// Why it does not.
#[derive(Debug)]
pub(super) struct Denied {
    pub(super) refusal: Refusal,
    /// What the newest try came to.
    pub(super) detail: Option<String>,
}

/// One answer that is to go on. Fits what is sent to the engine that gets it.
pub(super) struct Continuation {
    plan: Plan,
    /// The text less the white space at its end.
    base: usize,
    /// Tokens of the text up to there; of the ids.
    said: [u64; 2],
    /// What of the text comes again after the ids.
    again: String,
    /// Tokens that the model has room for after the ids.
    room: Option<u64>,
    by_ids: Cell<bool>,
    /// Only its usage is wanted.
    probing: bool,
    mute: Rc<std::cell::RefCell<std::collections::HashSet<u64>>>,
    chosen: Cell<Option<(Mode, Shape)>>,
    refusal: Cell<Option<Refusal>>,
}

/// Sends what a continuation needs: the stages below, and the call that was cut.
pub(super) struct Sender<S> {
    pub(super) ctx: Rc<Resume>,
    pub(super) inner: S,
    pub(super) call: Rc<Call>,
    /// Backends that cut it, or that it leaves.
    pub(super) avoid: Vec<u64>,
    /// How long it waits for a place: it stands still meanwhile. `None` = as long as any call.
    pub(super) patience: Option<Duration>,
}

impl<S> Sender<S>
where
    S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
{
    /// Goes on from `plan`.
    pub(super) async fn go_on(mut self, plan: Plan) -> Result<Continued, Denied> {
        if let Some(finish) = plan.finish {
            let usage = self.usage(plan).await;
            return Ok(Continued::Close { finish, usage });
        }
        let continuation = self.prepare(plan).await;
        if continuation.left() == Some(0) {
            let usage = self.usage(continuation.into_plan()).await;
            return Ok(Continued::Close { finish: Finish::Length, usage });
        }
        let continuation = Rc::new(continuation);
        loop {
            let tailor = Rc::clone(&continuation) as Rc<dyn Tailor>;
            let (response, record) = self.send(tailor, &continuation).await?;
            if response.status() == StatusCode::OK {
                return Ok(Continued::Stream { body: response.into_body(), continuation, record });
            }
            let status = response.status();
            let detail = told(response).await;
            if !status.is_client_error() || status == StatusCode::TOO_MANY_REQUESTS {
                return Err(Denied { refusal: Refusal::Backend, detail: Some(detail) });
            }
            // A gateway in front of the engine may hide what takes ids: text goes where the first answer went.
            if !matches!(continuation.chosen.get(), Some((Mode::Tokens, _))) {
                return Err(Denied { refusal: Refusal::Rejected, detail: Some(detail) });
            }
            continuation.by_ids.set(false);
        }
    }

    /// How many tokens there are, as far as that matters.
    async fn prepare(&mut self, plan: Plan) -> Continuation {
        let mut continuation = Continuation::new(&self.ctx, plan);
        continuation.settle(self).await;
        continuation
    }

    /// What the answer used, told by a continuation of one token that nobody sees.
    async fn usage(&mut self, plan: Plan) -> Option<Usage> {
        if !plan.tells_usage || plan.used.is_some() {
            return plan.used;
        }
        let mut continuation = self.prepare(plan).await;
        let before = continuation.said[0];
        let mut said = before;
        if continuation.base < continuation.plan.text.len() {
            // White space at its end was said too; it is taken back for the continuation alone.
            said = self.count(&continuation.plan.request, &continuation.plan.text).await.unwrap_or(before);
        }
        continuation.probing = true;
        let continuation = Rc::new(continuation);
        let told = match self.probe(&continuation).await {
            // As likely cut as the answer was.
            None => self.probe(&continuation).await?,
            Some(told) => told,
        };
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Some(Usage { input: told.input.saturating_sub(narrow(before)), output: narrow(said), cached: 0 })
    }

    /// The usage of a continuation that is read for nothing else.
    async fn probe(&mut self, continuation: &Rc<Continuation>) -> Option<Usage> {
        let tailor = Rc::clone(continuation) as Rc<dyn Tailor>;
        let (response, _) = self.send(tailor, continuation).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        let mut meter = StreamMeter::new(Endpoint::Chat, Dialect::OpenAi);
        let mut body = response.into_body();
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            if let Some(data) = frame.ok()?.data_ref() {
                meter.push(data);
            }
        }
        Some(meter.usage())
    }

    /// How many tokens a part of an answer has.
    async fn count(&mut self, request: &request::Request, text: &str) -> Option<u64> {
        let (path, body) = request.tokenize(text);
        request::token_count(&self.ask(path, body).await?)
    }

    async fn send(
        &mut self,
        tailor: Rc<dyn Tailor>,
        continuation: &Continuation,
    ) -> Result<(Response, Rc<Record>), Denied> {
        let record = self.record(&self.call.path);
        let mut avoid = self.avoid.clone();
        avoid.extend(self.ctx.unable());
        let wait_until = self.waits();
        let call = Call { avoid, tailor: Some(tailor), wait_until, ..again(&self.call, &record) };
        poll_fn(|cx| self.inner.poll_ready(cx)).await.map_err(|error| denied(&error, continuation))?;
        let response = self.inner.call(Rc::new(call)).await.map_err(|error| denied(&error, continuation))?;
        Ok((response, record))
    }

    /// Asks any engine that serves the model about tokens, once more if that fails; `None` when there is no answer.
    async fn ask(&mut self, path: PathAndQuery, body: Bytes) -> Option<Bytes> {
        match self.ask_once(path.clone(), body.clone()).await {
            None => self.ask_once(path, body).await,
            answer => answer,
        }
    }

    async fn ask_once(&mut self, path: PathAndQuery, body: Bytes) -> Option<Bytes> {
        let record = self.record(&path);
        let call = Call {
            endpoint: Endpoint::Passthrough,
            payload: Payload::made(body),
            path,
            avoid: self.avoid.clone(),
            stream: false,
            deadline: self.call.deadline.min(Instant::now() + QUICK),
            wait_until: self.waits(),
            ..again(&self.call, &record)
        };
        poll_fn(|cx| self.inner.poll_ready(cx)).await.ok()?;
        let response = self.inner.call(Rc::new(call)).await.ok()?;
        if response.status() != StatusCode::OK {
            return None;
        }
        read(response.into_body(), LONGEST.0).await
    }

    fn waits(&self) -> Option<Instant> {
        self.patience.map(|patience| Instant::now() + patience)
    }

    /// A story of its own: it is not told, but for what the answer's own takes from it.
    fn record(&self, path: &PathAndQuery) -> Rc<Record> {
        let own = &self.call.record;
        let mut head = Head::new(());
        *head.method_mut() = Method::POST;
        *head.uri_mut() = path.clone().into();
        let mut record = Record::new(Instant::now(), own.id.clone(), &head, Rc::clone(&own.peer));
        // What comes is of this shape, whatever the client speaks.
        record.dialect = Dialect::OpenAi;
        Rc::new(record)
    }
}

/// The call once more, by itself.
fn again(call: &Call, record: &Rc<Record>) -> Call {
    let endpoint = if call.endpoint == Endpoint::Completions { Endpoint::Completions } else { Endpoint::Chat };
    Call {
        endpoint,
        method: Method::POST,
        path: call.path.clone(),
        headers: call.headers.clone(),
        added: call.added.clone(),
        payload: Payload::made(Bytes::from_static(b"{}")),
        said: None,
        model: call.model.clone(),
        alias: call.alias.clone(),
        edited: true,
        salt: call.salt,
        stream: true,
        asked: Asked::default(),
        ask_usage: false,
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: call.deadline,
        wait_until: None,
        tunnel: false,
        repeatable: true,
        record: Rc::clone(record),
    }
}

fn denied(error: &Error, continuation: &Continuation) -> Denied {
    let unable = continuation.refusal.get().filter(|_| error.kind() == Kind::UpstreamFailed);
    let refusal = unable.unwrap_or(match error.kind() {
        Kind::DeadlineExceeded => Refusal::Deadline,
        Kind::NoHealthyBackend
        | Kind::ModelNotFound
        | Kind::UpstreamConnect
        | Kind::UpstreamReset
        | Kind::UpstreamTimeout
        | Kind::QueueFull
        | Kind::QueueTimeout => Refusal::Backend,
        _ => Refusal::Rejected,
    });
    Denied { refusal, detail: Some(error.message().to_owned()) }
}

/// The status, and the beginning of what an engine said with it.
async fn told(response: Response) -> String {
    let status = response.status();
    let body = read(response.into_body(), LONGEST.0).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST.1)]).into_owned();
    format!("{status}: {text}")
}

async fn read(mut body: Body, most: usize) -> Option<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            if whole.len() + data.len() > most {
                return None;
            }
            whole.extend_from_slice(&data);
        }
    }
    Some(whole.freeze())
}

impl Continuation {
    fn new(ctx: &Resume, plan: Plan) -> Self {
        let base = plan.text.trim_end().len();
        let ids = plan.ids.as_ref().map_or(0, |ids| ids.said.len() as u64);
        Self {
            base,
            said: [plan.events, ids],
            again: String::new(),
            room: None,
            by_ids: Cell::new(ids > 0),
            probing: false,
            mute: Rc::clone(&ctx.mute),
            chosen: Cell::new(None),
            refusal: Cell::new(None),
            plan,
        }
    }

    /// Asks what is not known.
    async fn settle<S>(&mut self, sender: &mut Sender<S>)
    where
        S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
    {
        if let Some(Ids { said, behind: true, .. }) = &self.plan.ids {
            let (path, body) = self.plan.request.detokenize(said);
            let spelt = sender.ask(path, body).await.and_then(|answer| request::detokenized(&answer));
            match spelt.as_deref().and_then(|spelt| self.plan.text.strip_prefix(spelt)) {
                Some(again) => self.again = again.to_owned(),
                // What they spell is not what was delivered.
                None => self.by_ids.set(false),
            }
        }
        if self.by_ids.get() && self.plan.limit.is_none() {
            self.room = self.room(sender).await;
        }
        let counted = self.plan.limit.is_some() || self.plan.tells_usage;
        if self.base == 0 {
            self.said[0] = 0;
        } else if self.by_ids.get() && self.base == self.plan.text.len() && self.again.is_empty() {
            // As many, should it go on by text after all: where an engine does not take ids.
            self.said[0] = self.said[1];
        } else if counted {
            let count = sender.count(&self.plan.request, &self.plan.text[..self.base]).await;
            self.said[0] = count.unwrap_or(self.plan.events);
        }
    }

    /// A completion needs a limit; without the client's it is what the model has room for.
    async fn room<S>(&self, sender: &mut Sender<S>) -> Option<u64>
    where
        S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
    {
        let ids = self.plan.ids.as_ref()?;
        let (path, body) = self.plan.request.tokenize("");
        let length = request::context_length(&sender.ask(path, body).await?)?;
        length.checked_sub((ids.prompt.len() + ids.said.len()) as u64).filter(|room| *room > 0)
    }

    fn into_plan(self) -> Plan {
        self.plan
    }

    fn said_by_text(&self) -> u64 {
        self.said[usize::from(self.by_ids.get())]
    }

    /// Tokens that may still come.
    fn left(&self) -> Option<u64> {
        self.plan.limit.map(|limit| limit.saturating_sub(self.said_by_text()))
    }

    fn form(&self, backend: &Backend) -> Result<(Mode, Form), Refusal> {
        let engine = backend.engine().ok_or(Refusal::Engine)?;
        if !super::goes_on(Some(engine)) {
            return Err(Refusal::Engine);
        }
        let request = &self.plan.request;
        let left = |said: u64| match self.probing {
            true => Some(1),
            false => self.plan.limit.map(|limit| limit.saturating_sub(said).max(1)),
        };
        let takes_ids = !self.mute.borrow().contains(&backend.id) && request.may_ask_ids(engine);
        if let Some(ids) = self.plan.ids.as_ref().filter(|_| self.by_ids.get() && takes_ids)
            && let Ok(form) = request.by_ids(engine, &ids.prompt, &ids.said, left(self.said[1]).or(self.room))
        {
            return Ok((Mode::Tokens, form));
        }
        if self.base == 0 && !self.probing {
            return Ok((Mode::Restart, request.restart(engine)?));
        }
        if self.plan.limit.is_none() && !self.probing && request.limit(engine).is_some() {
            // The engine before had no limit; this one's own would end the answer as if it had one.
            return Err(Refusal::Untranslatable);
        }
        let form = request.by_text(engine, &self.plan.text[..self.base], left(self.said[0]), self.said[0])?;
        Ok((Mode::Text, form))
    }

    /// How the seam is made, by what the attempt that answers was sent.
    pub(super) fn seam(&self) -> Option<(Mode, u64, Seam)> {
        let (mode, shape) = self.chosen.get()?;
        let (said, swallow) = match mode {
            Mode::Tokens => (self.said[1], self.again.clone()),
            _ => (self.said[0], self.plan.text[self.base..].to_owned()),
        };
        let seam = Seam {
            shape,
            ids: mode == Mode::Tokens,
            swallow,
            said,
            stops: self.plan.request.stops().to_vec(),
            usage: self.plan.tells_usage,
        };
        Some((mode, said, seam))
    }
}

impl Tailor for Continuation {
    fn fit(&self, backend: &Backend) -> Result<Option<Fitted>, Error> {
        match self.form(backend) {
            Ok((mode, form)) => {
                self.chosen.set(Some((mode, form.shape)));
                Ok(Some(Fitted { path: Some(form.path), body: form.body }))
            }
            Err(refusal) => {
                self.refusal.set(Some(refusal));
                let text = format!("backend {} cannot go on: {}", backend.name(), refusal.why());
                Err(Error::new(Kind::UpstreamFailed, text).retry(Retry::Unsent))
            }
        }
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Continuation").field("chosen", &self.chosen.get().is_some()).finish_non_exhaustive()
    }
}
