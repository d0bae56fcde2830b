//! The control plane: tasks that change what the data plane sees.
//!
//! | task | reads | writes | if it fails |
//! |---|---|---|---|
//! | `health` ([`health::Prober`]) | backends' health paths and model lists | fleet: health, engine, models | restart, last state kept |
//! | `interruption` ([`interruption::watch`]) | this machine's metadata service | fleet: notices of backends here; readiness; other gateways | restart, last notice kept |
//!
//! Probing needs a client, not sockets of its own: a [`Ask`] goes into an async closure, an [`Answer`] or a [`Fault`]
//! comes out. `app` gives one made of `client`; tests give a script.

pub mod health;
pub mod interruption;
pub mod live;
pub mod reload;

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use crate::{config, protocol::engine::Engine};

/// Where an engine lists its models.
const MODELS: &str = "/v1/models";

/// One GET to a backend. Whoever sends it adds the base path and the backend's `api_key`, reads a bounded body, and
/// opens a new connection when none is idle.
#[derive(Clone, Debug)]
pub struct Ask {
    pub backend: Arc<config::Backend>,
    pub path: String,
    /// The asker stops waiting then by itself; here for the client's own deadlines.
    pub timeout: Duration,
}

/// What came back, whatever the status.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why nothing came back. The text is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No connection: refused, no route, no such name, TLS failed.
    #[error("{0}")]
    Unreachable(String),
    /// Closed or reset before an answer.
    #[error("{0}")]
    Reset(String),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// It answered something that is not HTTP.
    #[error("{0}")]
    Other(String),
}

/// What is known of engines; the functions of `protocol::engine`.
#[derive(Clone, Copy, Debug)]
pub struct Engines {
    /// From the `Server` field and the body of a model list.
    pub detect: fn(Option<&str>, &[u8]) -> Option<Engine>,
    /// From the body of `/info`.
    pub detect_by_info: fn(&[u8]) -> Option<Engine>,
    pub health_path: fn(Engine) -> &'static str,
    /// The ids on a model list; `None` when it is not one.
    pub models: fn(&[u8]) -> Option<Vec<Arc<str>>>,
    /// The name of the gauge in its `/metrics` that counts calls waiting inside it.
    pub waiting: fn(Engine) -> Option<&'static str>,
}

/// What asking for a model list brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Listing {
    engine: Option<Engine>,
    models: Option<Vec<Arc<str>>>,
    answer: Bytes,
}

/// Asks once, with its deadline kept here.
async fn ask<P>(probe: &P, backend: &Arc<config::Backend>, path: &str, timeout: Duration) -> Result<Answer, Fault>
where
    P: AsyncFn(Ask) -> Result<Answer, Fault>,
{
    let ask = Ask { backend: Arc::clone(backend), path: path.to_owned(), timeout };
    match tokio::time::timeout(timeout, probe(ask)).await {
        Ok(answered) => answered,
        Err(_) => Err(Fault::Timeout(timeout)),
    }
}

/// Reads a model list, and from it which engine it is; TGI tells by another path.
async fn listing<P>(
    probe: &P,
    engines: &Engines,
    backend: &Arc<config::Backend>,
    answer: Answer,
    timeout: Duration,
) -> Listing
where
    P: AsyncFn(Ask) -> Result<Answer, Fault>,
{
    let server = answer.headers.get(header::SERVER).and_then(|value| value.to_str().ok());
    let models = if answer.status.is_success() { (engines.models)(&answer.body) } else { None };
    let mut engine = backend.engine.or_else(|| (engines.detect)(server, &answer.body));
    if engine.is_none()
        && let Ok(info) = ask(probe, backend, "/info", timeout).await
        && info.status.is_success()
    {
        engine = (engines.detect_by_info)(&info.body);
    }
    Listing { engine, models, answer: answer.body }
}

/// Why an answer to a health check does not say "healthy".
fn unwell(path: &str, answer: &Answer) -> String {
    // llama.cpp says so in the body while it starts; it may take minutes and is no fault.
    if answer.body.windows(13).any(|window| window.eq_ignore_ascii_case(b"loading model")) {
        return "loading model".to_owned();
    }
    format!("{path} answered {}", answer.status)
}

/// Runs all to their end, at the same time and on this task.
async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut ready = true;
        for (future, output) in &mut running {
            if output.is_none() {
                match Pin::new(future).poll(cx) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => ready = false,
                }
            }
        }
        if ready { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
