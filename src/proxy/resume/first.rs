//! The first attempts of a call: where the engine can tell the ids of the tokens it sends, it is asked to; and where a plain
//! answer is to outlive its backend, a stream is asked for in its place.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashSet,
    fmt,
    rc::Rc,
};

use bytes::Bytes;
use http::StatusCode;

use super::{Resume, request::Request};
use crate::{
    config::ResumeMode,
    error::Error,
    fleet::Backend,
    protocol::{endpoint::Endpoint, engine::Engine},
    proxy::{
        Response,
        call::{Call, Fitted, Tailor},
    },
};

/// What the attempts of one call are sent.
pub(super) struct First {
    endpoint: Endpoint,
    body: Bytes,
    /// Ids are of use.
    ids: bool,
    /// A plain answer is wanted, and a stream may be asked for.
    plain: bool,
    /// Read when the first engine is met that matters; `None` = not of a kind that goes on.
    request: OnceCell<Option<Request>>,
    mute: Rc<RefCell<HashSet<u64>>>,
    /// The newest attempt was asked for ids.
    asked: Cell<bool>,
    /// No ids any more; no stream any more.
    stopped: [Cell<bool>; 2],
}

impl First {
    /// `None` where every attempt is sent the call as it is.
    pub(super) fn of(ctx: &Resume, call: &Call) -> Option<Self> {
        let told = matches!(call.endpoint, Endpoint::Chat | Endpoint::Completions);
        let (ids, plain) = (told && ctx.config.mode == ResumeMode::Auto, !call.stream);
        if !ids && !plain {
            return None;
        }
        Some(Self {
            endpoint: call.endpoint,
            body: call.payload.bytes()?.clone(),
            ids,
            plain,
            request: OnceCell::new(),
            mute: Rc::clone(&ctx.mute),
            asked: Cell::new(false),
            stopped: Default::default(),
        })
    }

    /// Whether the attempt that answers was asked for ids.
    pub(super) fn asked(&self) -> bool {
        self.asked.get()
    }

    /// No attempt is asked for ids any more.
    pub(super) fn stop_asking(&self) {
        self.stopped[0].set(true);
    }

    /// No attempt is asked for a stream in place of a plain answer any more.
    pub(super) fn stop_streaming(&self) {
        self.stopped[1].set(true);
    }

    /// Whether the engine does not know what it was asked for. It names the field it stumbles over.
    pub(super) fn was_refused(&self, response: &Response) -> bool {
        let refused = matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY);
        self.asked()
            && refused
            && response.body().as_whole().is_some_and(|body| memchr::memmem::find(body, b"return_token_ids").is_some())
    }

    fn request(&self) -> Option<&Request> {
        self.request.get_or_init(|| Request::read(self.endpoint, &self.body).ok()).as_ref()
    }

    /// Whether `backend` is asked for ids, and for a stream in place of a plain answer.
    fn asks(&self, backend: &Backend) -> [bool; 2] {
        let Some(engine) = backend.engine() else { return [false; 2] };
        let told = self.ids && !self.stopped[0].get() && !self.mute.borrow().contains(&backend.id);
        let shaped = self.plain && !self.stopped[1].get() && matches!(engine, Engine::Vllm | Engine::LlamaCpp);
        let ids = told && matches!(engine, Engine::Vllm | Engine::Sglang) && (shaped || !self.plain);
        [ids && self.request().is_some_and(|request| request.may_ask_ids(engine)), shaped]
    }
}

impl Tailor for First {
    fn fit(&self, backend: &Backend) -> Result<Option<Fitted>, Error> {
        let [ids, stream] = self.asks(backend);
        self.asked.set(ids);
        let request = if ids || stream { self.request() } else { None };
        Ok(request.map(|request| {
            let body = if stream { request.as_stream(ids) } else { request.with_ids() };
            Fitted { path: None, body }
        }))
    }
}

impl fmt::Debug for First {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("First").field("asked", &self.asked).finish_non_exhaustive()
    }
}
