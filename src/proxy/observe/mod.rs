//! Begins and ends every request's story: id, clocks, the access line, the metrics; turns every error into an answer.
//!
//! Takes an [`Inbound`] request, makes an [`Arrival`]. The `Story` is told exactly once: when the answer's body
//! ends, or when the client leaves before.
//!
//! Acts on both legs. When the client leaves: the story is told with status 499.

mod access_log;
mod metrics;

use std::{cell::RefCell, convert::Infallible, rc::Rc, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Method, header};
use http_body::Body as _;
use tokio::time::Instant;
use tower::{Service, service_fn};

pub use self::metrics::Metrics;
use super::{
    Arrival, Inbound, Response, X_REQUEST_ID,
    headers::{Forwarded, INTERRUPTION, Via},
    record::Record,
    respond,
};
use crate::{
    body::{Body, End, Tail},
    error::{Error, Kind},
    fleet::interruption::Own,
    protocol::endpoint::Endpoint,
    telemetry::{access::AccessLog, digits},
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// Length of an id that is made here.
const ID: usize = 32;
/// Longer ids are replaced: what comes from outside goes into logs.
const LONGEST_ID: usize = 128;

/// What the stage needs.
#[derive(Debug)]
pub struct Observe {
    pub metrics: Rc<Metrics>,
    /// `None` = `log.access` is off.
    pub access_log: Option<Rc<AccessLog>>,
    /// `debug_headers`
    pub debug_headers: bool,
    pub ids: Rc<Ids>,
    /// Of the machine that this gateway runs on.
    pub own: Arc<Own>,
    /// Where values of header fields are written.
    pub scratch: RefCell<Vec<u8>>,
}

/// Makes request ids: 128 random bits in hex.
#[derive(Debug)]
pub struct Ids {
    random: RefCell<Wyrand>,
    /// Where the next few are written: an id of its own block would need a second one as soon as it is cloned.
    room: RefCell<BytesMut>,
}

/// Ids that share a block: as long as one of them lives, all of it does.
const IDS_A_BLOCK: usize = 16;

#[derive(Debug)]
struct Wyrand(u64);

impl Ids {
    /// `seed` must differ between workers and processes; the ids are unique, not secret.
    pub fn new(seed: u64) -> Self {
        Self { random: RefCell::new(Wyrand(seed)), room: RefCell::default() }
    }

    fn next(&self) -> HeaderValue {
        let (mut random, mut room) = (self.random.borrow_mut(), self.room.borrow_mut());
        if room.capacity() < ID {
            *room = BytesMut::with_capacity(ID * IDS_A_BLOCK);
        }
        for _ in 0..2 {
            room.extend_from_slice(&hex(random.next()));
        }
        HeaderValue::from_maybe_shared(room.split().freeze()).expect("hex digits are visible ASCII")
    }
}

/// The 16 digits of `bits`, the lowest first. All eight of a half at once: the digits lie in the bytes of a word.
fn hex(bits: u64) -> [u8; 16] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let digits = |bits: u64| {
        // Eight times four bits, spread over eight bytes.
        let spread = (bits | bits << 16) & 0x0000_ffff_0000_ffff;
        let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
        let spread = (spread | spread << 4) & (0x0f * EACH);
        // 1 in each byte that is a letter.
        let letters = (spread + 6 * EACH) >> 4 & EACH;
        (spread + u64::from(b'0') * EACH + letters * u64::from(b'a' - b'0' - 10)).to_le_bytes()
    };
    let mut text = [0; 16];
    text[..8].copy_from_slice(&digits(bits & 0xffff_ffff));
    text[8..].copy_from_slice(&digits(bits >> 32));
    text
}

impl Wyrand {
    /// wyrand, by Wang Yi: two multiplications a number.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0xa076_1d64_78bd_642f);
        let wide = u128::from(self.0) * u128::from(self.0 ^ 0xe703_7ed1_a0b4_28db);
        (wide >> 64) as u64 ^ wide as u64
    }
}

/// The stage.
pub fn observe<S>(
    stage: Rc<Observe>,
    inner: S,
) -> impl Service<
    Inbound,
    Response = Response,
    Error = Infallible,
    Future = impl Future<Output = Result<Response, Infallible>>,
> + Clone
where
    S: Service<Arrival, Response = Response, Error = Error> + Clone,
{
    service_fn(move |inbound: Inbound| {
        let (stage, mut inner) = (Rc::clone(&stage), inner.clone());
        async move {
            let Inbound { request, peer, forwarded } = inbound;
            let id = stage.id(&request);
            let record = Rc::new(Record::new(Instant::now(), id, &*request, peer));
            let tells = stage.own.is_set() && Via::shows_one(request.headers());
            let story = Story::begin(&stage, &record, &forwarded, tells);
            let outcome = inner.call(Arrival { request, forwarded, record }).await;
            Ok(story.answer(outcome))
        }
    })
}

impl Observe {
    fn id(&self, request: &http::Request<impl Sized>) -> HeaderValue {
        request
            .headers()
            .get(X_REQUEST_ID)
            .filter(|id| (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic))
            .cloned()
            .unwrap_or_else(|| self.ids.next())
    }
}

/// One request's story, told when it is dropped.
pub(super) struct Story {
    stage: Rc<Observe>,
    pub(super) record: Rc<Record>,
    pub(super) forwarded: Rc<Forwarded>,
    /// 0 until there is an answer.
    pub(super) status: u16,
    /// Bytes of the answer's body that went out.
    pub(super) sent: u64,
    /// What the client was told, where it was an error of ours.
    pub(super) error: Option<Kind>,
    /// The client left before the end.
    pub(super) left: bool,
    /// Time this gateway itself took before the head went out.
    pub(super) overhead: Duration,
    /// An outer Sluicegate is told of this machine's interruption.
    tells: bool,
    /// Since the start, when nothing more is to come: known with the head, if the body is whole by then.
    took: Option<Duration>,
}

impl Story {
    fn begin(stage: &Rc<Observe>, record: &Rc<Record>, forwarded: &Rc<Forwarded>, tells: bool) -> Box<Self> {
        stage.metrics.begun();
        Box::new(Self {
            stage: Rc::clone(stage),
            record: Rc::clone(record),
            forwarded: Rc::clone(forwarded),
            status: 0,
            sent: 0,
            error: None,
            left: true,
            overhead: Duration::ZERO,
            tells,
            took: None,
        })
    }

    fn answer(mut self: Box<Self>, outcome: Result<Response, Error>) -> Response {
        let mut response = match outcome {
            Ok(mut response) => {
                respond::honest(&mut response, &self.record);
                response
            }
            Err(error) => {
                if error.kind() == Kind::Internal {
                    tracing::error!(id = ?self.record.id, error = ?error, "internal error");
                }
                self.error = Some(error.kind());
                respond::answer(&error, &self.record)
            }
        };
        self.status = self.error.map_or(response.status().as_u16(), respond::status_of);
        let took = self.record.start.elapsed();
        self.overhead = self.gateway_time(took);
        self.took = (response.body().as_whole().is_some() || response.body().is_end_stream()).then_some(took);
        self.dress(&mut response);
        if self.record.method == Method::HEAD {
            response = without_body(response);
        }
        // A tunnel is no body: its story ends with the handshake.
        let body = std::mem::replace(response.body_mut(), Body::empty());
        *response.body_mut() = body.with_tail(self);
        response
    }

    /// Since the start, less the waits that were not ours: the client's upload, the queue, the backend.
    fn gateway_time(&self, took: Duration) -> Duration {
        let record = &self.record;
        took.saturating_sub(record.receiving.get() + record.queued.get() + record.waited.get())
    }

    /// Adds the fields of ours.
    fn dress(&self, response: &mut Response) {
        let record = &self.record;
        let headers = response.headers_mut();
        headers.insert(X_REQUEST_ID, record.id.clone());
        if let Some(status) = record.cached.get().status(&mut self.stage.scratch.borrow_mut()) {
            // Ours is the last member.
            headers.append(header::CACHE_STATUS, status);
        }
        if let Some(timing) = self.server_timing() {
            headers.append(SERVER_TIMING, timing);
        }
        if self.tells
            && let Some(notice) = self.stage.own.get()
            && let Ok(told) = HeaderValue::try_from(notice.told())
        {
            headers.insert(INTERRUPTION, told);
        }
        if self.stage.debug_headers {
            if let Some(backend) = &*record.backend.borrow()
                && let Ok(name) = HeaderValue::from_str(&backend.spec.name)
            {
                headers.insert(HeaderName::from_static("x-sluicegate-backend"), name);
            }
            headers.insert(HeaderName::from_static("x-sluicegate-attempts"), HeaderValue::from(record.attempts.get()));
            headers.insert(HeaderName::from_static("x-sluicegate-why"), HeaderValue::from_static(record.why.get()));
        }
    }

    /// `gw;dur=0.021, queue;dur=3.0, cache;dur=0.005, ttfb;dur=184.2`, in milliseconds.
    fn server_timing(&self) -> Option<HeaderValue> {
        let text = &mut *self.stage.scratch.borrow_mut();
        text.clear();
        text.extend_from_slice(b"gw;dur=");
        digits::millis(text, self.overhead);
        if !self.record.queued.get().is_zero() {
            text.extend_from_slice(b", queue;dur=");
            digits::millis(text, self.record.queued.get());
        }
        if let Some(took) = self.record.looked_up.get() {
            text.extend_from_slice(b", cache;dur=");
            digits::millis(text, took);
        }
        if let Some(head) = self.record.head.get() {
            text.extend_from_slice(b", ttfb;dur=");
            digits::millis(text, head - self.record.start);
        }
        HeaderValue::from_bytes(text).ok()
    }
}

/// The head of an answer to HEAD says the length of the body that is left out.
fn without_body(response: Response) -> Response {
    let (mut head, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    Response::from_parts(head, Body::empty())
}

impl Tail for Story {
    fn data(&mut self, data: &Bytes) {
        self.sent += data.len() as u64;
    }

    fn end(mut self: Box<Self>, how: End<'_>) {
        self.left = matches!(how, End::Dropped);
    }
}

impl Drop for Story {
    fn drop(&mut self) {
        if self.left && self.status == 0 {
            self.status = respond::status_of(Kind::ClientGone);
        }
        // A whole body goes out with its head: one look at the clock serves both.
        let took = match self.took {
            Some(took) if !self.left => took,
            _ => self.record.start.elapsed(),
        };
        self.stage.metrics.ended(self, took);
        if let Some(log) = &self.stage.access_log {
            log.line(self.record.start + took, |line| access_log::write(line, self, took));
        }
    }
}

/// The endpoint's name in logs and labels.
pub(super) fn endpoint_name(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Chat => "chat",
        Endpoint::Completions => "completions",
        Endpoint::Embeddings => "embeddings",
        Endpoint::Responses => "responses",
        Endpoint::Response => "response",
        Endpoint::Messages => "messages",
        Endpoint::CountTokens => "count_tokens",
        Endpoint::Rerank => "rerank",
        Endpoint::Score => "score",
        Endpoint::Models => "models",
        Endpoint::Model => "model",
        Endpoint::Passthrough => "passthrough",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_ids() {
        for bits in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX, 0xa0a0_0909_5f5f_9a9a] {
            let plain: String = format!("{bits:016x}").chars().rev().collect();
            assert_eq!(std::str::from_utf8(&hex(bits)).unwrap(), plain);
        }
        let ids = Ids::new(7);
        let (first, second) = (ids.next(), ids.next());
        assert_eq!(first.len(), 32);
        assert_ne!(first, second);
        let many: std::collections::HashSet<_> = (0..1000).map(|_| ids.next()).collect();
        assert!(many.len() == 1000 && many.iter().all(|id| id.len() == 32));
    }
}
