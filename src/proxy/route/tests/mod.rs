//! The stage over a scripted `upstream`: what each backend answers is set by the test.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    task::{Context as TaskContext, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, uri::PathAndQuery};
use http_body::Frame;
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::*;
use crate::{
    body::{End, Tail},
    config::{Capacity, Concurrency, Config, Models},
    error::Retry,
    fleet::{
        Outcome,
        testing::{backend, config, limited},
    },
    listener::Peer,
    proxy::{
        call::{Asked, Payload},
        memory::Memory,
        record::Record,
    },
};

mod choice;
mod queueing;
mod replacing;
mod retrying;

/// What one try is answered with.
enum Step {
    Status(u16, &'static str),
    /// With these header fields.
    Fields(u16, &'static [(&'static str, &'static str)], &'static str),
    Fail(Kind, Retry),
    /// A stream of these pieces, then its end or this error.
    Stream(&'static str, Vec<&'static str>, Option<(Kind, Retry)>),
    /// The answer waits for the test.
    Held(oneshot::Receiver<()>),
}

/// The stage and the world around it.
struct Bench {
    fleet: Arc<Fleet>,
    queue: Arc<Queue>,
    ctx: Rc<Context>,
    script: Rc<RefCell<Script>>,
    refreshed: Rc<RefCell<Vec<Arc<str>>>>,
}

#[derive(Default)]
struct Script {
    steps: HashMap<String, VecDeque<Step>>,
    /// Backends in the order they were tried.
    tried: Vec<String>,
    bodies: Vec<Bytes>,
}

/// Keeps the permit until the body ends, as `upstream` does.
struct Keeps(#[allow(dead_code, reason = "held, not read")] Permit);

impl Tail for Keeps {
    fn data(&mut self, _: &Bytes) {}
    fn end(self: Box<Self>, _: End<'_>) {}
}

struct Pieces(VecDeque<&'static str>, Option<(Kind, Retry)>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(match self.0.pop_front() {
            Some(piece) => Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))),
            None => self.1.take().map(|(kind, retry)| Err(Error::new(kind, "it broke").retry(retry))),
        })
    }
}

impl Bench {
    fn new(config: &Config) -> Self {
        Self::with_refresh(config, |_| {})
    }

    fn with_refresh(config: &Config, act: impl Fn(&Fleet) + 'static) -> Self {
        let fleet = Fleet::new(config);
        let queue = Queue::new(&fleet);
        let refreshed = Rc::new(RefCell::new(Vec::new()));
        let (seen, known) = (Rc::clone(&refreshed), Arc::clone(&fleet));
        let refresh: Refresh = Rc::new(move |model| {
            seen.borrow_mut().push(model);
            act(&known);
            Box::pin(std::future::ready(()))
        });
        let settings = Settings::new(&config.routing, config.retry, &config.limits);
        let ctx =
            Context::new(Arc::clone(&fleet), Arc::clone(&queue), Budget::new(), settings, refresh, Counters::noop());
        Self { fleet, queue, ctx, script: Rc::default(), refreshed }
    }

    fn on(&self, name: &str, step: Step) -> &Self {
        self.script.borrow_mut().steps.entry(name.to_owned()).or_default().push_back(step);
        self
    }

    fn backend(&self, name: &str) -> Arc<Backend> {
        Arc::clone(self.fleet.snapshot().backend(name).unwrap())
    }

    fn tried(&self) -> Vec<String> {
        self.script.borrow().tried.clone()
    }

    fn service(&self) -> impl Service<Call, Response = Response<Body>, Error = Error> + Clone + use<> {
        let script = Rc::clone(&self.script);
        let upstream = tower::service_fn(move |attempt: Attempt| {
            let script = Rc::clone(&script);
            async move { answer(&script, attempt).await }
        });
        route(Rc::clone(&self.ctx), upstream).map_request(Rc::new)
    }

    async fn send(&self, call: Call) -> Answer {
        self.service().oneshot(call).await
    }
}

async fn answer(script: &RefCell<Script>, attempt: Attempt) -> Answer {
    let Attempt { backend, permit, body, .. } = attempt;
    let sent = body.read(1 << 20).await?;
    let step = {
        let mut script = script.borrow_mut();
        script.tried.push(backend.name().to_string());
        script.bodies.push(sent);
        script.steps.get_mut(&**backend.name()).and_then(VecDeque::pop_front)
    };
    let plain = |permit, status, text: &'static str| {
        let body = Body::whole(Bytes::from_static(text.as_bytes())).with_tail(Box::new(Keeps(permit)));
        Response::builder().status::<u16>(status).body(body).unwrap()
    };
    match step {
        None => Ok(plain(permit, 200, "fine")),
        Some(Step::Status(status, text)) => {
            report(&backend, status);
            Ok(plain(permit, status, text))
        }
        Some(Step::Fields(status, fields, text)) => {
            report(&backend, status);
            let mut response = plain(permit, status, text);
            for (name, value) in fields {
                response.headers_mut().insert(*name, value.parse().unwrap());
            }
            Ok(response)
        }
        Some(Step::Fail(kind, retry)) => {
            match kind {
                Kind::UpstreamConnect => backend.report(Outcome::Refused("connection refused")),
                Kind::UpstreamReset => backend.report(Outcome::Reset("connection reset")),
                _ => {}
            }
            Err(Error::new(kind, "no luck").at(backend.name()).retry(retry))
        }
        Some(Step::Stream(kind, pieces, end)) => {
            let body = Body::stream(Pieces(pieces.into(), end)).with_tail(Box::new(Keeps(permit)));
            Ok(Response::builder().header("content-type", kind).body(body).unwrap())
        }
        Some(Step::Held(until)) => {
            let _ = until.await;
            Ok(plain(permit, 200, "at last"))
        }
    }
}

fn report(backend: &Backend, status: u16) {
    match status {
        429 => backend.report(Outcome::Full { retry_after: None }),
        502..=504 => backend.report(Outcome::Status(status)),
        _ => backend.report(Outcome::Answered { ttft: None }),
    }
}

fn call() -> Call {
    let now = Instant::now();
    Call {
        endpoint: crate::protocol::endpoint::Endpoint::Chat,
        method: Method::POST,
        path: PathAndQuery::from_static("/v1/chat/completions"),
        headers: HeaderMap::new(),
        added: Vec::new(),
        payload: Payload::whole(Bytes::from_static(b"hello"), Memory::new(1 << 20).reserve()),
        model: None,
        alias: None,
        edited: false,
        salt: None,
        stream: false,
        asked: Asked::default(),
        said: None,
        ask_usage: false,
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: now + Duration::from_secs(1800),
        wait_until: None,
        tunnel: false,
        repeatable: true,
        record: Rc::new(Record::new(
            now,
            http::HeaderValue::from_static("id"),
            &http::Request::new(()),
            Rc::new(Peer::default()),
        )),
    }
}

fn for_model(model: &str) -> Call {
    Call { model: Some(model.into()), ..call() }
}

fn serving(name: &str, models: &[&str]) -> config::Backend {
    let models = Models::List(models.iter().map(|&model| model.into()).collect());
    config::Backend { models, ..backend(name) }
}

async fn text(answer: Answer) -> String {
    String::from_utf8(answer.unwrap().into_body().read(1 << 20).await.unwrap().to_vec()).unwrap()
}

/// Runs `future` until it can go no further without something else happening.
fn poll_once<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut TaskContext::from_waker(std::task::Waker::noop()))
}
