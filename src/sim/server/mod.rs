//! From a request to its answer: which endpoint, which fault, a slot, the tokens in their time.
//!
//! Each dialect turns a request into a [`Work`]: the bytes of its answer, whole or piece by piece, and nothing that
//! waits or sends. Everything that takes time or goes wrong is here, once for all dialects.

mod chat;
mod completions;
mod control;
mod job;
mod messages;
mod ollama;
mod pieces;
mod responses;
mod tokens;
mod vectors;

use std::sync::Arc;

use serde_json::Value;
use tokio::time::Instant;

use super::{
    engine::{Engine, Refusal},
    generate::mix,
    http2::Reply,
    pace::Schedule,
    script::{Fault, Kind, Point},
    state::{Order, Request, Shared},
    wire::{Framing, Head, Leave, Wire},
};

const JSON: &str = "application/json";

/// An answer of the model, ready to be said.
pub(crate) struct Work {
    /// Tokens it has.
    pub(crate) tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) stream: bool,
    pub(crate) content_type: &'static str,
    /// Sent with the first token.
    pub(crate) opening: String,
    /// What is sent for token `i`.
    pub(crate) frame: Box<dyn Fn(u64) -> String>,
    /// The finish is in the last frame.
    pub(crate) rides: bool,
    pub(crate) closing: Closing,
    /// Sent in place of the rest when the engine gives up after so many tokens: finish reason `abort`.
    pub(crate) aborted: Box<dyn Fn(u64) -> String>,
    /// Sent in place of the rest when it fails there: an error event and a clean end.
    pub(crate) failed: Box<dyn Fn(u64) -> String>,
    /// The plain answer; with `abort`, the one that ends after so many tokens.
    pub(crate) whole: Box<dyn Fn(Option<u64>) -> String>,
}

/// What is sent after the last token, in this order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Closing {
    pub(crate) finish: String,
    /// Empty where it is not told, or told with the finish.
    pub(crate) usage: String,
    /// The terminator.
    pub(crate) end: String,
}

impl Closing {
    pub(crate) fn whole(&self) -> String {
        [self.finish.as_str(), &self.usage, &self.end].concat()
    }
}

/// Where an answer goes.
pub(crate) enum Sink<'a> {
    One(&'a mut Wire),
    Two(Reply),
}

impl Sink<'_> {
    async fn begin(&mut self, head: &Head, framing: Framing) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.begin(head, framing).await,
            Self::Two(reply) => reply.begin(head),
        }
    }

    async fn data(&mut self, bytes: &[u8]) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.data(bytes).await,
            Self::Two(_) if bytes.is_empty() => Ok(()),
            Self::Two(reply) => reply.data(bytes).await,
        }
    }

    async fn end(&mut self, trailers: &[(&str, &str)]) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.end(trailers).await,
            Self::Two(reply) => reply.end(trailers).await,
        }
    }

    async fn whole(&mut self, head: &Head, body: &[u8]) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.whole(head, body).await,
            Self::Two(reply) => {
                reply.begin(head)?;
                if body.is_empty() { Ok(()) } else { reply.data(body).await }
            }
        }
    }

    /// Bytes that are no HTTP answer; HTTP/2 can only reset.
    async fn raw(&mut self, bytes: &[u8]) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.raw(bytes).await,
            Self::Two(_) => Err(Leave::Reset),
        }
    }

    async fn gone(&mut self) -> Leave {
        match self {
            Self::One(wire) => wire.gone().await,
            Self::Two(reply) => reply.gone().await,
        }
    }

    async fn wait(&mut self, at: Instant) -> Result<(), Leave> {
        match self {
            Self::One(wire) => wire.wait(at).await,
            Self::Two(_) if at <= Instant::now() => Ok(()),
            Self::Two(reply) => tokio::select! {
                leave = reply.gone() => Err(leave),
                () = tokio::time::sleep_until(at) => Ok(()),
            },
        }
    }
}

/// Answers one request.
pub(crate) async fn respond(shared: &Arc<Shared>, request: Arc<Request>, mut sink: Sink<'_>) -> Result<(), Leave> {
    let path = request.path();
    if path.starts_with("/sim/") {
        return control::respond(shared, &request, &mut sink).await;
    }
    let mut fault = shared.script.strike(path, &request.body);
    if let Some(body) = probe(shared, &request) {
        shared.saw(&request, true);
        let early = matches!(&fault, Some(fault) if !matches!(fault.kind, Kind::Loading | Kind::SlowHealth));
        if early && strike_early(shared, &request, &mut fault, &mut sink).await? {
            return Ok(());
        }
        return answer_probe(shared, &mut sink, fault, body).await;
    }
    shared.saw(&request, false);
    if strike_early(shared, &request, &mut fault, &mut sink).await? {
        return Ok(());
    }
    let answered = match route(shared, &request) {
        Ok(Answer::Work(work)) => generate(shared, &mut sink, work, fault.as_ref()).await,
        Ok(Answer::Whole(content_type, body)) => {
            shared.add(&shared.counters.served, 1);
            deliver(shared, &mut sink, Head::new(200, content_type), &body, fault.as_ref()).await
        }
        Ok(Answer::Grpc) => grpc(&mut sink, &request).await,
        Err(refusal) => refuse(shared, &mut sink, path, &refusal).await,
    };
    if let (Some(Fault { kind: Kind::SilentClose, .. }), Sink::One(wire)) = (&fault, &mut sink) {
        wire.silent = true;
    }
    answered
}

enum Answer {
    Work(Work),
    Whole(&'static str, Vec<u8>),
    Grpc,
}

/// Which endpoint it is.
fn route(shared: &Shared, request: &Request) -> Result<Answer, Refusal> {
    if request.header("content-type").is_some_and(|value| value.starts_with("application/grpc")) {
        return Ok(Answer::Grpc);
    }
    let engine = shared.config.engine;
    let path = request.path();
    if request.method == "GET"
        && let Some(id) = path.strip_prefix("/v1/responses/")
    {
        return responses::stored(shared, id).map(|body| Answer::Whole(JSON, body.into_bytes()));
    }
    if path == "/v1/audio/transcriptions" {
        return Ok(Answer::Whole(JSON, vectors::transcription(&request.body).into_bytes()));
    }
    let known = |path: &str| -> Option<Endpoint> {
        Some(match path {
            "/v1/chat/completions" | "/chat/completions" => chat::work,
            "/v1/completions" => completions::work,
            "/completion" if engine == Engine::LlamaCpp => completions::native,
            "/v1/responses" => responses::work,
            "/v1/messages" => messages::work,
            "/api/chat" | "/api/generate" => ollama::work,
            _ => return None,
        })
    };
    let whole = |path: &str| -> Option<WholeEndpoint> {
        Some(match path {
            "/v1/messages/count_tokens" => messages::count,
            "/v1/embeddings" => vectors::embeddings,
            "/v1/rerank" | "/rerank" | "/v2/rerank" => vectors::rerank,
            "/v1/score" | "/score" => vectors::score,
            "/tokenize" => tokens::tokenize,
            "/detokenize" => tokens::detokenize,
            _ => return None,
        })
    };
    let (work, whole) = (known(path), whole(path));
    if work.is_none() && whole.is_none() {
        return Err(not_found(engine));
    }
    if request.method != "POST" {
        let message = "Method Not Allowed".to_owned();
        return Err(Refusal { status: 405, kind: "MethodNotAllowed", message, param: None });
    }
    let body: Value = serde_json::from_slice(&request.body)
        .map_err(|error| Refusal::bad(format!("the body is not JSON: {error}"), None))?;
    match (work, whole) {
        (Some(work), _) => work(shared, &body).map(Answer::Work),
        (None, Some(whole)) => whole(shared, &body).map(|body| Answer::Whole(JSON, body.into_bytes())),
        (None, None) => Err(not_found(engine)),
    }
}

type Endpoint = fn(&Shared, &Value) -> Result<Work, Refusal>;
type WholeEndpoint = fn(&Shared, &Value) -> Result<String, Refusal>;

fn not_found(engine: Engine) -> Refusal {
    let message = if engine == Engine::LlamaCpp { "File Not Found" } else { "Not Found" };
    Refusal { status: 404, kind: "", message: message.to_owned(), param: None }
}

async fn refuse(shared: &Shared, sink: &mut Sink<'_>, path: &str, refusal: &Refusal) -> Result<(), Leave> {
    let engine = shared.config.engine;
    let body = if refusal.kind.is_empty() && engine != Engine::LlamaCpp {
        // What FastAPI says about a path it does not have.
        r#"{"detail":"Not Found"}"#.to_owned()
    } else if path.starts_with("/v1/messages") {
        Engine::anthropic_error(refusal)
    } else {
        engine.error(refusal)
    };
    sink.whole(&Head::new(refusal.status, JSON), body.as_bytes()).await
}

// === health, lists, metrics: never queued, and watched by gateways all the time ===

/// The answer to a probe, when it is one: content type and body.
fn probe(shared: &Shared, request: &Request) -> Option<(&'static str, String)> {
    let engine = shared.config.engine;
    let created = job::STARTED;
    let path = request.path();
    let get = request.method == "GET" || request.method == "HEAD";
    Some(match (path, engine) {
        ("/health", _) if get => (engine.well().0, engine.well().1.to_owned()),
        ("/v1/health", Engine::LlamaCpp) if get => (engine.well().0, engine.well().1.to_owned()),
        ("/ping", Engine::Vllm | Engine::Sglang) => ("", String::new()),
        ("/ready" | "/health_generate", Engine::Sglang) if get => ("", String::new()),
        ("/v1/models", _) if get => (JSON, engine.models(&shared.list_models(), created)),
        ("/models", Engine::LlamaCpp) if get => (JSON, engine.models(&shared.list_models(), created)),
        ("/metrics", _) if get => ("text/plain; version=0.0.4; charset=utf-8", engine.metrics(shared)),
        ("/version", Engine::Vllm) if get => (JSON, r#"{"version":"0.33.0"}"#.to_owned()),
        ("/load", Engine::Vllm) if get => (JSON, format!("{{\"server_load\":{}}}", shared.snapshot().running)),
        ("/get_model_info" | "/model_info", Engine::Sglang) if get => {
            let model = job::quoted(&shared.models().into_iter().next().unwrap_or_default());
            (JSON, format!("{{\"model_path\":{model},\"tokenizer_path\":{model},\"is_generation\":true}}"))
        }
        ("/props", Engine::LlamaCpp) if get => {
            let slots = shared.config.slots.max(1);
            let model = job::quoted(&shared.models().into_iter().next().unwrap_or_default());
            let props = format!(
                "{{\"default_generation_settings\":{{\"n_ctx\":32768}},\"total_slots\":{slots},\"model_alias\":{model},\
                 \"model_path\":\"/models/sim.gguf\",\"build_info\":\"b1-sim\",\"is_sleeping\":false}}"
            );
            (JSON, props)
        }
        _ => return None,
    })
}

async fn answer_probe(
    shared: &Shared,
    sink: &mut Sink<'_>,
    fault: Option<Fault>,
    (content_type, body): (&'static str, String),
) -> Result<(), Leave> {
    shared.add(&shared.counters.health, 1);
    match fault {
        Some(Fault { kind: Kind::Loading, .. }) => {
            let (content_type, body) = shared.config.engine.loading();
            sink.whole(&Head::new(503, content_type), body.as_bytes()).await
        }
        Some(Fault { kind: Kind::SlowHealth, lasts, .. }) => {
            sink.wait(Instant::now() + lasts).await?;
            sink.whole(&Head::new(200, content_type), body.as_bytes()).await
        }
        fault => deliver(shared, sink, Head::new(200, content_type), body.as_bytes(), fault.as_ref()).await,
    }
}

// === faults ===

/// Faults that come before anything is done for the request. `true`: it has its answer.
async fn strike_early(
    shared: &Shared,
    request: &Request,
    fault: &mut Option<Fault>,
    sink: &mut Sink<'_>,
) -> Result<bool, Leave> {
    let Some(Fault { kind, after, lasts, .. }) = fault else { return Ok(false) };
    let (kind, after, lasts) = (*kind, *after, *lasts);
    let own = |status, message: &str| Refusal {
        status,
        kind: "ServiceUnavailableError",
        message: message.to_owned(),
        param: None,
    };
    let nothing = after == Point::Nothing;
    match kind {
        Kind::Reset if nothing => fail(shared, Leave::Reset),
        Kind::Die if nothing => fail(shared, Leave::Die),
        Kind::CutEvent | Kind::CleanFin | Kind::ShortBody if nothing => fail(shared, Leave::Fin),
        Kind::ErrorEvent if nothing => {
            let message = FAILED.to_owned();
            let refusal = Refusal { status: 500, kind: "InternalServerError", message, param: None };
            refuse(shared, sink, request.path(), &refusal).await?;
            Ok(true)
        }
        Kind::Freeze if nothing => {
            freeze(shared);
            *fault = None;
            Ok(false)
        }
        Kind::Stall if nothing => {
            hold(shared, sink).await?;
            *fault = None;
            Ok(false)
        }
        Kind::Hang => {
            hold(shared, sink).await?;
            *fault = None;
            Ok(false)
        }
        Kind::Unavailable => {
            refuse(shared, sink, request.path(), &own(503, "The engine is not ready")).await?;
            Ok(true)
        }
        Kind::TooMany => {
            let body = shared.config.engine.error(&own(429, "Too many requests are waiting"));
            sink.whole(&Head::new(429, JSON).with("retry-after", "1"), body.as_bytes()).await?;
            Ok(true)
        }
        Kind::Empty500 => {
            sink.whole(&Head::new(500, ""), b"").await?;
            Ok(true)
        }
        Kind::Refuse => {
            // A sim that is ending refuses as well.
            let _ = shared.orders.send(Order::Refuse(lasts)).await;
            fail(shared, Leave::Reset)
        }
        Kind::BadHead => {
            sink.raw(b"HTTP/1.1 2OO what\r\nno colon here\r\n\r\n").await?;
            fail(shared, Leave::Fin)
        }
        Kind::HeaderBomb => {
            sink.raw(b"HTTP/1.1 200 OK\r\n").await?;
            for i in 0..1024 {
                sink.raw(format!("x-bomb-{i}: {}\r\n", "b".repeat(4096)).as_bytes()).await?;
            }
            sink.raw(b"content-length: 0\r\n\r\n").await?;
            fail(shared, Leave::Fin)
        }
        Kind::InterimBomb => {
            let some = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".repeat(100);
            for _ in 0..1000 {
                sink.raw(&some).await?;
            }
            fail(shared, Leave::Fin)
        }
        _ => Ok(false),
    }
}

fn fail<T>(shared: &Shared, leave: Leave) -> Result<T, Leave> {
    shared.add(&shared.counters.failed, 1);
    Err(leave)
}

/// The whole sim stands still until it is thawed.
fn freeze(shared: &Shared) {
    shared.set_frozen(true);
    shared.stand_still();
}

/// Silence, until the client leaves or the sim is told to release.
async fn hold(shared: &Shared, sink: &mut Sink<'_>) -> Result<(), Leave> {
    let mut released = shared.released.subscribe();
    tokio::select! {
        leave = sink.gone() => Err(leave),
        _ = released.changed() => Ok(()),
    }
}

/// Sends a whole answer, unless the fault wants it otherwise.
async fn deliver(
    shared: &Shared,
    sink: &mut Sink<'_>,
    head: Head,
    body: &[u8],
    fault: Option<&Fault>,
) -> Result<(), Leave> {
    let Some(fault) = fault else { return sink.whole(&head, body).await };
    let length = Framing::Length(body.len() as u64);
    let sent = match fault.after {
        Point::Tokens(n) if n > 0 => usize::try_from(n).unwrap_or(usize::MAX).min(body.len()),
        _ => body.len() / 2,
    };
    let half = &body[..sent];
    match fault.kind {
        Kind::Die => Err(Leave::Die),
        Kind::Freeze => {
            freeze(shared);
            sink.whole(&head, body).await
        }
        Kind::Reset | Kind::CutEvent | Kind::CleanFin | Kind::ShortBody => {
            sink.begin(&head, length).await?;
            sink.data(half).await?;
            Err(if fault.kind == Kind::Reset { Leave::Reset } else { Leave::Fin })
        }
        Kind::Stall => {
            sink.begin(&head, length).await?;
            sink.data(half).await?;
            hold(shared, sink).await?;
            sink.data(&body[half.len()..]).await
        }
        Kind::LongBody => {
            sink.whole(&head, body).await?;
            sink.raw(SURPLUS).await
        }
        Kind::ErrorEvent => {
            let refusal = Refusal { status: 500, kind: "InternalServerError", message: FAILED.to_owned(), param: None };
            let body = shared.config.engine.error(&refusal);
            sink.whole(&Head::new(500, JSON), body.as_bytes()).await
        }
        _ => sink.whole(&head, body).await,
    }
}

/// What comes after an answer that says it has ended: looks like another one.
const SURPLUS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned";
/// What an engine says of itself when it fails in the middle.
const FAILED: &str = "EngineCore encountered an issue";

// === answers of the model ===

async fn generate(shared: &Arc<Shared>, sink: &mut Sink<'_>, work: Work, fault: Option<&Fault>) -> Result<(), Leave> {
    let seat = tokio::select! {
        seat = shared.seat() => seat,
        leave = sink.gone() => return Err(leave),
    };
    shared.add(&shared.counters.prompt_tokens, work.prompt_tokens);
    let schedule = Schedule::new(shared.config.pace, mix(shared.config.seed ^ mix(shared.number())));
    let result = if work.stream {
        stream(shared, sink, &work, schedule, fault).await
    } else {
        plain(shared, sink, &work, schedule, fault).await
    };
    match result {
        Ok(()) => seat.served(),
        Err(Leave::Gone) => drop(seat),
        Err(_) => seat.failed(),
    }
    result
}

async fn plain(
    shared: &Shared,
    sink: &mut Sink<'_>,
    work: &Work,
    schedule: Schedule,
    fault: Option<&Fault>,
) -> Result<(), Leave> {
    let said = match fault {
        Some(Fault { kind: Kind::Die | Kind::Abort | Kind::Freeze, after: Point::Tokens(n), .. }) => *n,
        Some(Fault { kind: Kind::Abort, after: Point::Nothing, .. }) => 0,
        _ => work.tokens,
    };
    let said = said.min(work.tokens);
    sink.wait(schedule.due(said.saturating_sub(1))).await?;
    shared.add(&shared.counters.tokens, said);
    let aborted = fault.filter(|fault| fault.kind == Kind::Abort).map(|_| said);
    let body = (work.whole)(aborted);
    let fault = fault.cloned().map(|fault| Fault { after: scaled(fault.after, work.tokens, body.len()), ..fault });
    deliver(shared, sink, Head::new(200, JSON), body.as_bytes(), fault.as_ref()).await
}

/// A point of an answer of so many tokens as one of its body, which is so long: whatever comes behind the last token is
/// its last byte.
fn scaled(point: Point, tokens: u64, length: usize) -> Point {
    let length = length as u64;
    match point {
        Point::Tokens(n) if n < tokens => Point::Tokens(length * n / tokens),
        Point::Nothing => Point::Nothing,
        _ => Point::Tokens(length.saturating_sub(1)),
    }
}

async fn stream(
    shared: &Shared,
    sink: &mut Sink<'_>,
    work: &Work,
    schedule: Schedule,
    fault: Option<&Fault>,
) -> Result<(), Leave> {
    let engine = shared.config.engine;
    let mut head = Head::new(200, work.content_type);
    if engine == Engine::LlamaCpp {
        head = head.with("x-accel-buffering", "no");
    }
    if engine.head_first() {
        sink.begin(&head, Framing::Chunked).await?;
    }
    sink.wait(schedule.due(0)).await?;
    if !engine.head_first() {
        sink.begin(&head, Framing::Chunked).await?;
    }
    sink.data(work.opening.as_bytes()).await?;
    let last = work.tokens.saturating_sub(1);
    for i in 0..work.tokens {
        sink.wait(schedule.due(i)).await?;
        let frame = (work.frame)(i);
        let rides = work.rides && i == last;
        let here = |fault: &&Fault| fault.after == Point::Tokens(i) || (rides && fault.after == Point::Last);
        if let Some(fault) = fault.filter(here)
            && strike_within(shared, sink, work, i, fault, frame.as_bytes()).await? == Struck::Over
        {
            return Ok(());
        }
        sink.data(frame.as_bytes()).await?;
        shared.add(&shared.counters.tokens, 1);
    }
    for (point, next) in
        [(Point::Last, &work.closing.finish), (Point::Finish, &work.closing.usage), (Point::Usage, &work.closing.end)]
    {
        // One that was to come after more tokens than there are comes before the finish.
        let here = |fault: &&Fault| match fault.after {
            Point::Tokens(n) => n >= work.tokens && point == Point::Last,
            Point::Last => !work.rides && point == Point::Last,
            after => after == point,
        };
        let coming = if next.is_empty() { &work.closing.end } else { next };
        if let Some(fault) = fault.filter(here)
            && strike_within(shared, sink, work, work.tokens, fault, coming.as_bytes()).await? == Struck::Over
        {
            return Ok(());
        }
        sink.data(next.as_bytes()).await?;
    }
    sink.end(&[]).await?;
    match fault {
        Some(Fault { kind: Kind::LongBody, .. }) => sink.raw(SURPLUS).await,
        _ => Ok(()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Struck {
    GoOn,
    Over,
}

/// A fault in the middle of a stream, after so many tokens; `next` is what would have come.
async fn strike_within(
    shared: &Shared,
    sink: &mut Sink<'_>,
    work: &Work,
    said: u64,
    fault: &Fault,
    next: &[u8],
) -> Result<Struck, Leave> {
    match fault.kind {
        Kind::Die => Err(Leave::Die),
        Kind::Reset => Err(Leave::Reset),
        Kind::CleanFin | Kind::ShortBody => Err(Leave::Fin),
        Kind::CutEvent => {
            sink.data(&next[..next.len() / 2]).await?;
            Err(Leave::Fin)
        }
        Kind::Stall => {
            hold(shared, sink).await?;
            Ok(Struck::GoOn)
        }
        Kind::Freeze => {
            freeze(shared);
            Ok(Struck::GoOn)
        }
        Kind::ErrorEvent | Kind::Abort => {
            let last = if fault.kind == Kind::Abort { &work.aborted } else { &work.failed };
            sink.data(last(said).as_bytes()).await?;
            sink.end(&[]).await?;
            Ok(Struck::Over)
        }
        _ => Ok(Struck::GoOn),
    }
}

/// A call of gRPC: the message comes back, with trailers.
async fn grpc(sink: &mut Sink<'_>, request: &Request) -> Result<(), Leave> {
    let head = Head::new(200, "application/grpc").with("trailer", "grpc-status, grpc-message");
    sink.begin(&head, Framing::Chunked).await?;
    sink.data(&request.body).await?;
    sink.end(&[("grpc-status", "0"), ("grpc-message", "sim")]).await
}
