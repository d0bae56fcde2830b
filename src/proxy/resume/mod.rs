//! Keeps a streamed answer whole when its backend is not: a stream that is cut goes on at another one, and the client
//! sees one.
//!
//! ```text
//!  Call ─► inner ─► answer ─► Tap (what was delivered) ─────────────────────► client
//!                     │ cut: reset, silence, error event, abort; or moved           ▲
//!                     ▼                                                             │
//!   Plan (what was asked for, what was said) ─► Continuation ─► inner ─► Splice ────┘
//! ```
//! It lies under `cache`, so that one splice serves all who read an answer, and above `route`: a continuation is a call
//! of its own. `docs/resume.md` says what is promised and what is refused.
//!
//! Acts on the response leg; of the request only what asks for token ids. When the client leaves: the body is dropped,
//! and with it whatever continuation is under way.

mod body;
mod continuation;
mod counters;
mod first;
mod moves;
mod plan;
pub mod refusal;
pub mod request;
pub mod splice;
pub mod tap;

#[cfg(test)]
mod tests;

use std::{cell::RefCell, collections::HashSet, fmt, future::poll_fn, pin::Pin, rc::Rc, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode, header};
use http_body::Body as _;
use tower::{Service, service_fn};

use self::{body::Streamed, first::First};
pub use self::{counters::Counters, moves::Moves};
use super::{Response, call::Call, transcript::Live};
use crate::{
    body::Body,
    config::{self, ResumeMode},
    error::Error,
    fleet::Fleet,
    protocol::{endpoint::Endpoint, engine::Engine},
};

/// One worker's stage, for one configuration.
pub struct Resume {
    pub config: config::Resume,
    pub fleet: Arc<Fleet>,
    /// Memory of what was delivered (`resume.memory`).
    pub live: Live,
    /// The streams under way on this worker.
    pub moves: Rc<Moves>,
    pub counters: Rc<Counters>,
    pub forms: Forms,
    /// Ids of backends that refused to tell token ids; they are not asked again.
    pub mute: Rc<RefCell<HashSet<u64>>>,
}

/// What `cache` knows of an answer's two shapes; handed over where the stages meet.
#[derive(Clone, Copy, Debug)]
pub struct Forms {
    /// Whether the answers to this request are the same text in both shapes.
    pub alike: fn(&[u8]) -> bool,
    /// The plain form of a stream, where that is proven.
    pub to_plain: fn(Endpoint, &[u8]) -> Option<Bytes>,
}

/// A plain answer that is put together is at most so long.
const LONGEST: usize = 8 << 20;

/// The stage: see the module.
pub fn resume<S>(
    ctx: Rc<Resume>,
    inner: S,
) -> impl Service<Call, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
    S::Future: 'static,
{
    service_fn(move |call: Call| {
        let (ctx, mut inner) = (Rc::clone(&ctx), inner.clone());
        async move {
            if ctx.takes(&call) {
                // Boxed: a call that takes no part should not carry the room for it.
                return Box::pin(ctx.stream(call, inner)).await;
            }
            inner.call(Rc::new(call)).await
        }
    })
}

impl Resume {
    /// Whether its answer will be one that could go on elsewhere.
    fn takes(&self, call: &Call) -> bool {
        (call.stream || self.config.plain_as_stream && self.puts_together(call))
            && self.config.mode != ResumeMode::Off
            && matches!(
                call.endpoint,
                Endpoint::Chat | Endpoint::Completions | Endpoint::Responses | Endpoint::Messages
            )
            && call.pinned.is_none()
            && call.payload.bytes().is_some()
    }

    /// Whether its plain answer can be made of a stream.
    fn puts_together(&self, call: &Call) -> bool {
        matches!(call.endpoint, Endpoint::Chat | Endpoint::Completions)
            && call.payload.bytes().is_some_and(|body| (self.forms.alike)(body))
    }

    async fn stream<S>(self: Rc<Self>, mut call: Call, mut inner: S) -> Result<Response, Error>
    where
        S: Service<Rc<Call>, Response = Response, Error = Error> + Clone + 'static,
        S::Future: 'static,
    {
        if call.headers.contains_key(header::ACCEPT_ENCODING) {
            // What is coded cannot be gone on from.
            call.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        let plain = !call.stream;
        // A stream without it has no plain form.
        call.asked.usage |= plain;
        let first = First::of(&self, &call).map(Rc::new);
        call.tailor = first.clone().map(|first| first as Rc<_>);
        let call = Rc::new(call);
        let mut response = inner.call(Rc::clone(&call)).await?;
        if let Some(first) = &first
            && first.was_refused(&response)
        {
            let asked = call.record.backend.borrow().as_ref().map(|backend| backend.id);
            first.stop_asking();
            response = inner.call(Rc::clone(&call)).await?;
            // If it is refused all the same, it was for another reason.
            if !response.status().is_client_error() {
                self.mute.borrow_mut().extend(asked);
            }
        }
        if !is_stream(&response) {
            return Ok(response);
        }
        let (forms, again) = (self.forms, (inner.clone(), Rc::clone(&call), first.clone()));
        let response = response.map(|body| Body::stream(Streamed::new(self, inner, call, body, first)));
        if !plain {
            return Ok(response);
        }
        let (mut inner, call, first) = again;
        if let Some(whole) = put_together(forms, call.endpoint, response).await {
            return Ok(whole);
        }
        // Nothing of it has reached the client: the plain answer itself must do.
        if let Some(first) = first {
            first.stop_streaming();
        }
        call.record.cut.set(None);
        inner.call(call).await
    }

    /// Backends that no continuation can go to: engines that have no way of going on.
    fn unable(&self) -> Vec<u64> {
        let snapshot = self.fleet.snapshot();
        snapshot.backends.iter().filter(|backend| !goes_on(backend.engine())).map(|backend| backend.id).collect()
    }
}

/// A plain answer from a stream; `None` where it did not come whole, or its plain form is not known for sure.
async fn put_together(forms: Forms, endpoint: Endpoint, response: Response) -> Option<Response> {
    let (mut head, mut body) = response.into_parts();
    let mut stream = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame.ok()?.into_data() {
            if stream.len() + data.len() > LONGEST {
                return None;
            }
            stream.extend_from_slice(&data);
        }
    }
    let plain = (forms.to_plain)(endpoint, &stream)?;
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    head.headers.remove("x-accel-buffering");
    Some(Response::from_parts(head, Body::whole(plain)))
}

/// Whether an engine can go on from what was said.
fn goes_on(engine: Option<Engine>) -> bool {
    matches!(engine, Some(Engine::Vllm | Engine::Sglang | Engine::LlamaCpp))
}

/// Whether it is a stream of events that can be read.
fn is_stream(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    response.status() == StatusCode::OK
        && essence.eq_ignore_ascii_case(b"text/event-stream")
        && !response.headers().contains_key(header::CONTENT_ENCODING)
        && !response.body().is_end_stream()
}

impl fmt::Debug for Resume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resume").field("config", &self.config).finish_non_exhaustive()
    }
}
