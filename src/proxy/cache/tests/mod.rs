//! The stage over a scripted inner service: who computes, who shares, what is kept.

use std::{collections::VecDeque, sync::Barrier, thread};

use http::{Method, uri::PathAndQuery};
use http_body::{Body as _, Frame};
use tokio::{
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tower::ServiceExt;

use super::*;
use crate::{
    config::{CacheMode, Downstream},
    fleet::testing,
    listener::Peer,
    proxy::{
        call::{Asked, Payload},
        memory::Memory,
        record::Record,
    },
};

mod ending;
mod keeping;
mod sharing;

const PLAIN: &str = r#"{"id":"c1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hi you"},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#;

/// A whole stream, an event each.
const EVENTS: [&str; 5] = [
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" you\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
    "data: {\"id\":\"c1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"}]}\n\n",
    "data: [DONE]\n\n",
];

/// What the backend does with one call.
enum Play {
    /// The whole answer, with the head.
    Whole(u16, Vec<(&'static str, &'static str)>, String),
    Fail(Kind),
    /// The same, when its cue is dropped.
    Dies(oneshot::Receiver<()>, Kind),
    /// The answer waits for its cue; then the test gives its frames.
    Live(Cue),
    Panic,
}

struct Cue {
    go: oneshot::Receiver<()>,
    kind: &'static str,
    frames: mpsc::Receiver<Result<Bytes, Kind>>,
}

/// The test's side of a [`Cue`].
struct Backend {
    go: Option<oneshot::Sender<()>>,
    frames: Option<mpsc::Sender<Result<Bytes, Kind>>>,
}

impl Backend {
    fn head(&mut self) {
        let _ = self.go.take().unwrap().send(());
    }

    fn give(&self, text: &str) {
        self.frames.as_ref().unwrap().try_send(Ok(Bytes::copy_from_slice(text.as_bytes()))).unwrap();
    }

    fn cut(&self) {
        self.frames.as_ref().unwrap().try_send(Err(Kind::StreamCut)).unwrap();
    }

    /// The rest of the events, and the end.
    fn finish(&mut self, from: usize) {
        EVENTS[from..].iter().for_each(|event| self.give(event));
        self.frames = None;
    }

    /// Whether nobody takes the answer any more.
    fn is_gone(&self) -> bool {
        self.frames.as_ref().is_none_or(mpsc::Sender::is_closed)
    }
}

fn live(kind: &'static str) -> (Backend, Play) {
    let (go, cue) = oneshot::channel();
    let (give, frames) = mpsc::channel(4096);
    (Backend { go: Some(go), frames: Some(give) }, Play::Live(Cue { go: cue, kind, frames }))
}

fn stream() -> (Backend, Play) {
    live("text/event-stream")
}

fn whole() -> Play {
    Play::Whole(200, vec![("content-type", "application/json")], PLAIN.to_owned())
}

fn with(headers: &[(&'static str, &'static str)], body: &str) -> Play {
    let mut all = vec![("content-type", "application/json")];
    all.extend(headers);
    Play::Whole(200, all, body.to_owned())
}

struct Given(mpsc::Receiver<Result<Bytes, Kind>>);

impl http_body::Body for Given {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0
            .poll_recv(cx)
            .map(|next| Some(next?.map(Frame::data).map_err(|kind| Error::new(kind, "the backend broke off"))))
    }
}

#[derive(Default)]
struct Script {
    plays: VecDeque<Play>,
    /// What the backend was asked.
    calls: Vec<Call>,
}

/// One worker: its stage over the script.
#[derive(Clone)]
struct World {
    cache: Rc<Cache>,
    script: Rc<RefCell<Script>>,
}

fn settings(change: impl FnOnce(&mut config::Cache)) -> config::Cache {
    let mut config = testing::config([]).cache;
    change(&mut config);
    config
}

fn shared(config: &config::Cache) -> Arc<Shared> {
    Arc::new(Shared::new(config, Keys::new(None), None))
}

/// Runs `test` on a worker with a paused clock.
fn run<T>(change: impl FnOnce(&mut config::Cache), test: impl AsyncFnOnce(World) -> T) -> T {
    let config = settings(change);
    worker(shared(&config), config, true, test)
}

fn worker<T>(shared: Arc<Shared>, config: config::Cache, paused: bool, test: impl AsyncFnOnce(World) -> T) -> T {
    let runtime =
        Builder::new_current_thread().enable_all().start_paused(paused).build_local(LocalOptions::default()).unwrap();
    runtime.block_on(async {
        let (ticker, desk) = (Ticker::default(), Desk::new());
        spawn(ticker.clone().run());
        spawn(Rc::clone(&desk).run());
        let counters = Counters::new(crate::telemetry::metrics::Registry::new().table());
        let cache = Cache::new(shared, config, desk, ticker, counters);
        test(World { cache, script: Rc::default() }).await
    })
}

#[expect(clippy::disallowed_methods, reason = "tasks of a test's own runtime")]
fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    tokio::task::spawn_local(task)
}

/// Lets everything run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// An answer as a client has it at the end.
#[derive(Debug)]
struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
    error: Option<Kind>,
    record: Rc<Record>,
}

impl Got {
    fn cached(&self) -> Cached {
        self.record.cached.get()
    }
}

impl World {
    fn plays(&self, play: Play) -> &Self {
        self.script.borrow_mut().plays.push_back(play);
        self
    }

    /// How often the backend was asked.
    fn asked(&self) -> usize {
        self.script.borrow().calls.len()
    }

    fn service(&self) -> impl Service<Call, Response = Response, Error = Error> + Clone + use<> {
        let script = Rc::clone(&self.script);
        let inner = service_fn(move |call: Call| {
            let play = {
                let mut script = script.borrow_mut();
                script.calls.push(call);
                script.plays.pop_front()
            };
            async move { answer(play.unwrap_or_else(whole)).await }
        });
        cache(Rc::clone(&self.cache), inner)
    }

    async fn response(&self, call: Call) -> Result<Response, Error> {
        self.service().oneshot(call).await
    }

    /// The whole answer.
    async fn ask(&self, call: Call) -> Got {
        let record = Rc::clone(&call.record);
        match self.response(call).await {
            Ok(response) => read(response, record).await,
            Err(error) => Got {
                status: 0,
                headers: HeaderMap::new(),
                body: error.message().to_owned(),
                error: Some(error.kind()),
                record,
            },
        }
    }

    /// The same, as a client of its own.
    fn client(&self, call: Call) -> JoinHandle<Got> {
        let world = self.clone();
        spawn(async move { world.ask(call).await })
    }
}

async fn read(response: Response, record: Rc<Record>) -> Got {
    let (head, mut body) = response.into_parts();
    let mut text = Vec::new();
    let mut error = None;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame {
            Ok(frame) => text.extend_from_slice(&frame.into_data().unwrap()),
            Err(failed) => error = Some(failed.kind()),
        }
    }
    Got { status: head.status.as_u16(), headers: head.headers, body: String::from_utf8(text).unwrap(), error, record }
}

async fn answer(play: Play) -> Result<Response, Error> {
    match play {
        Play::Whole(status, headers, body) => {
            let mut response = Response::new(Body::whole(body));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for (name, value) in headers {
                response.headers_mut().append(name, value.parse().unwrap());
            }
            Ok(response)
        }
        Play::Fail(kind) => Err(Error::new(kind, "no luck")),
        Play::Dies(cue, kind) => {
            let _: Result<(), _> = cue.await;
            Err(Error::new(kind, "it died"))
        }
        Play::Panic => panic!("a fault of the gateway"),
        Play::Live(Cue { go, kind, frames }) => {
            // A test that gives no cue leaves it waiting.
            if go.await.is_err() {
                std::future::pending::<()>().await;
            }
            let mut response = Response::new(Body::stream(Given(frames)));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            Ok(response)
        }
    }
}

fn call(text: &str, stream: bool) -> Call {
    let body = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}],"temperature":0,"stream":{stream}}}"#
    );
    let now = Instant::now();
    let request = http::Request::builder().uri("/v1/chat/completions").method(Method::POST).body(()).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Call {
        endpoint: Endpoint::Chat,
        method: Method::POST,
        path: PathAndQuery::from_static("/v1/chat/completions"),
        headers,
        added: Vec::new(),
        payload: Payload::whole(body.into(), Memory::new(1 << 20).reserve()),
        model: Some("m".into()),
        alias: None,
        edited: false,
        salt: None,
        stream,
        asked: Asked { greedy: true, ..Asked::default() },
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: now + Duration::from_secs(1800),
        wait_until: None,
        tunnel: false,
        repeatable: true,
        said: None,
        ask_usage: false,
        record: Rc::new(Record::new(now, HeaderValue::from_static("id"), &request, Rc::new(Peer::default()))),
    }
}

fn says(mut call: Call, control: &'static str) -> Call {
    call.headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(control));
    call
}
