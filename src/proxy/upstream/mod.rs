//! Sends an [`Attempt`] to its backend and guards the answer.
//!
//! Takes an attempt, makes the response: as the backend sent it, less what concerned its connection. What the
//! attempt showed is reported to the fleet; tokens and finish are read off the passing body (`answer`).
//!
//! Acts on both legs. When the client leaves: the future or the body is dropped, and with it the upstream
//! connection, so the backend stops at once.

mod answer;
mod events;
mod own;
mod response_id;
mod timeout;
mod tunnel;

use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;
use tower::{Service, service_fn};

pub use self::own::{Counters, Own};
use self::timeout::{Over, Silence};
use super::{
    Response,
    attempt::Attempt,
    call::{Call, Fitted},
    headers::strip_response,
};
use crate::{
    client::{Client, Failure, Head, Stage, Target, Upgraded},
    config::{self, BackendUrl, ClientTls, Timeouts},
    error::{Error, Kind, Origin, Retry},
    fleet::{Backend, Notice, Outcome, interruption::BY_HEADER, response_ids::ResponseIds},
    runtime::{
        io::Duplex,
        ticker::{Deadline, Ticker},
    },
};

/// What the stage needs.
#[derive(Debug)]
pub struct Upstream {
    pub client: Client,
    pub ticker: Ticker,
    pub timeouts: Timeouts,
    pub response_ids: ResponseIds,
    pub targets: Rc<RefCell<Targets>>,
    /// What engines are sent that others are not.
    pub own: Own,
}

/// Where backends are reached, by backend id; made at first use. Kept over reloads, with the connections that hang on
/// them: a backend of the same address and TLS keeps its target even under a new id.
#[derive(Debug, Default)]
pub struct Targets {
    by_id: Vec<Option<Arc<Target>>>,
    by_address: HashMap<(BackendUrl, ClientTls), Arc<Target>>,
}

/// The stage.
pub fn upstream(
    stage: Rc<Upstream>,
) -> impl Service<Attempt, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
{
    service_fn(move |attempt: Attempt| Rc::clone(&stage).send(attempt))
}

impl Upstream {
    async fn send(self: Rc<Self>, attempt: Attempt) -> Result<Response, Error> {
        let Attempt { call, backend, permit, body, .. } = attempt;
        let target = self.target(&backend).map_err(|error| at(error, &backend))?;
        let fitted = fitted(&call, &backend)?;
        let body = self.own.body(&call, &backend, fitted.as_ref().map(|fitted| &fitted.body), body);
        let started = Instant::now();
        let own = own_credentials(&call, &backend);
        let head = Head {
            method: &call.method,
            path: fitted.as_ref().and_then(|fitted| fitted.path.as_ref()).unwrap_or(&call.path),
            headers: own.as_ref().unwrap_or(&call.headers),
            extra: &call.added,
            repeatable: call.repeatable,
        };
        let mut watch = self.watch(&call, &backend, started);
        let length = body.size_hint().exact();
        let (sent, stream) = if call.tunnel {
            // Boxed: rare, and every call would carry the room for it.
            split(watch.guard(Box::pin(self.client.upgrade(&target, head)).as_mut()).await)
        } else {
            (watch.guard(pin!(self.client.send(&target, head, body))).await, None)
        };
        let now = Instant::now();
        let record = &call.record;
        record.waited.set(record.waited.get() + (now - started));
        let mut response = self.reported(sent, &call, &backend).map_err(|error| at(error, &backend))?;
        record.head.set(Some(now));
        backend.note_bytes();
        // What comes in pieces has mostly been read when it is answered.
        backend.sent(length.unwrap_or_else(|| record.received.get()));
        if let Some(stream) = stream {
            backend.report(Outcome::Answered { ttft: None });
            return Ok(tunnel::join(response, stream, &call, permit));
        }
        // A head that tells enough is reported here, any other with its body: one outcome per answer.
        let told = of_head(&response).map(|outcome| backend.report(outcome)).is_some();
        if let Some(told) = strip_response(response.headers_mut()) {
            interrupted(&backend, &told, response.headers());
        }
        Ok(answer::guard(
            response,
            self,
            &call,
            backend,
            permit,
            watch,
            answer::Seen { sent: started, head: now, told },
        ))
    }

    fn watch(&self, call: &Call, backend: &Arc<Backend>, now: Instant) -> Watch {
        // A plain answer comes when it is finished: only the whole deadline can bound it.
        let limit = if call.stream { self.timeouts.first_byte } else { self.timeouts.total };
        let total = self.ticker.deadline();
        total.set(call.deadline.saturating_duration_since(now));
        Watch { silence: Silence::new(&self.ticker, self.timeouts.suspect, limit, Arc::clone(backend)), total }
    }

    fn target(&self, backend: &Backend) -> Result<Arc<Target>, Error> {
        let slot = usize::try_from(backend.id).unwrap_or(usize::MAX);
        if let Some(Some(target)) = self.targets.borrow().by_id.get(slot) {
            return Ok(Arc::clone(target));
        }
        self.targets.borrow_mut().make(slot, backend)
    }

    fn reported(&self, sent: Sent<Response>, call: &Call, backend: &Backend) -> Result<Response, Error> {
        let mut failure = match sent {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(failure)) => failure,
            Err(error) => {
                match error.kind() {
                    Kind::UpstreamReset => backend.report(Outcome::Reset(error.message())),
                    Kind::UpstreamTimeout => backend.report(Outcome::Broken(error.message())),
                    // The call's own deadline says nothing about the backend.
                    _ => {}
                }
                return Err(error);
            }
        };
        if let Some(untouched) = failure.untouched.take() {
            call.payload.give_back(*untouched);
        }
        let name = &backend.spec.name;
        Err(match failure.stage {
            Stage::Connect => {
                backend.report(Outcome::Refused(&failure.cause.to_string()));
                let what = if failure.timed_out { "did not accept a connection in time" } else { "cannot be reached" };
                Error::new(Kind::UpstreamConnect, format!("backend {name} {what}: {}", failure.cause))
                    .retry(Retry::Unsent)
                    .with_source(failure.cause)
            }
            Stage::Unsent | Stage::Reset => {
                backend.report(Outcome::Reset(&failure.cause.to_string()));
                let retry = if failure.stage == Stage::Unsent { Retry::Unsent } else { Retry::Safe };
                Error::new(Kind::UpstreamReset, format!("backend {name} closed the connection before it answered"))
                    .retry(retry)
                    .with_source(failure.cause)
            }
            Stage::Protocol => {
                backend.report(Outcome::Broken(&failure.cause.to_string()));
                Error::new(
                    Kind::UpstreamProtocol,
                    format!("backend {name} answered with broken HTTP: {}", failure.cause),
                )
                .with_source(failure.cause)
            }
            Stage::Request => match failure.cause.downcast::<Error>() {
                Ok(own) => *own,
                Err(cause) => Error::new(Kind::ClientGone, "the request body failed").with_source(cause),
            },
        })
    }
}

/// Names the backend in an error that is not the client's.
fn at(error: Error, backend: &Backend) -> Error {
    match error.kind().origin() {
        Origin::Downstream => error,
        _ => error.at(&backend.spec.name),
    }
}

/// The clocks of one attempt.
struct Watch {
    silence: Silence,
    /// `timeouts.total`.
    total: Deadline,
}

impl Watch {
    /// Waits for `work`, no longer than the clocks allow. It is borrowed: taken by value it would be there twice.
    async fn guard<T>(&mut self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Error> {
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            self.poll_over(cx).map(Err)
        })
        .await
    }

    fn poll_over(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Error> {
        if self.total.poll_over(cx).is_ready() {
            return Poll::Ready(Error::new(
                Kind::DeadlineExceeded,
                "timeouts.total ran out before the answer was complete",
            ));
        }
        self.silence.poll_over(cx).map(|over| match over {
            Over::Limit(limit) => Error::new(
                Kind::UpstreamTimeout,
                format!(
                    "the backend sent nothing for {} s; it may be overloaded: raise timeouts, or add capacity",
                    limit.as_secs()
                ),
            ),
            Over::Dead(reason) => {
                Error::new(Kind::UpstreamReset, format!("the backend was silent and then found dead: {reason}"))
                    .retry(Retry::Safe)
            }
        })
    }
}

impl Targets {
    /// Keeps what a new configuration still names. Targets with certificate files are made anew: the files may have
    /// changed. Connections of the others close once their answers have ended.
    pub fn keep(&mut self, backends: &[Arc<config::Backend>], client: &Client) {
        self.by_id.clear();
        self.by_address.retain(|(url, tls), target| {
            let files = tls.ca.is_some() || tls.client_cert.is_some();
            let stays = !files && backends.iter().any(|backend| backend.url == *url && backend.tls == *tls);
            if !stays {
                client.retire(target);
            }
            stays
        });
    }

    fn make(&mut self, slot: usize, backend: &Backend) -> Result<Arc<Target>, Error> {
        let key = (backend.spec.url.clone(), backend.spec.tls.clone());
        let target = match self.by_address.get(&key) {
            Some(target) => Arc::clone(target),
            None => {
                let target = Target::new(&key.0, &key.1).map_err(|problem| {
                    let text = format!("TLS towards {} cannot be set up: {problem}", backend.spec.name);
                    Error::new(Kind::UpstreamConnect, text).retry(Retry::Unsent)
                })?;
                self.by_address.insert(key, Arc::clone(&target));
                target
            }
        };
        if self.by_id.len() <= slot {
            self.by_id.resize(slot + 1, None);
        }
        self.by_id[slot] = Some(Arc::clone(&target));
        Ok(target)
    }
}

type Sent<T> = Result<Result<T, Failure>, Error>;

/// The answer to a handshake, and the backend's side of the tunnel where it is a 101.
fn split(upgraded: Sent<Upgraded>) -> (Sent<Response>, Option<Box<dyn Duplex>>) {
    match upgraded {
        Ok(Ok(Upgraded { response, stream })) => (Ok(Ok(response)), stream),
        Ok(Err(failure)) => (Ok(Err(failure)), None),
        Err(error) => (Err(error), None),
    }
}

/// A Sluicegate on the backend's machine says that it goes.
fn interrupted(backend: &Backend, told: &HeaderValue, headers: &HeaderMap) {
    match told.to_str().ok().and_then(|told| Notice::read(told, headers, BY_HEADER)) {
        Some(notice) => drop(backend.interrupted(notice)),
        None => tracing::debug!(backend = %backend.spec.name, ?told, "an interruption that cannot be read"),
    }
}

/// What the head alone tells; an answer that a body follows is reported with it.
fn of_head(response: &Response) -> Option<Outcome<'static>> {
    let status = response.status();
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some(Outcome::Full { retry_after: retry_after(response) }),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
            Some(Outcome::Status(status.as_u16()))
        }
        // vLLM's engine died: the process follows within seconds.
        StatusCode::INTERNAL_SERVER_ERROR if response.body().is_end_stream() => Some(Outcome::Status(500)),
        _ => None,
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok().map(Duration::from_secs)
}

/// What this backend is sent in place of the call's own.
fn fitted(call: &Call, backend: &Backend) -> Result<Option<Fitted>, Error> {
    call.tailor.as_ref().map_or(Ok(None), |tailor| tailor.fit(backend))
}

/// The head with the backend's own key in place of the client's credentials, where it has one.
fn own_credentials(call: &Call, backend: &Backend) -> Option<HeaderMap> {
    let key = backend.spec.api_key.as_ref()?;
    let mut bearer = HeaderValue::try_from(format!("Bearer {}", key.reveal())).ok()?;
    bearer.set_sensitive(true);
    let mut headers = call.headers.clone();
    for name in ["x-api-key", "api-key"] {
        headers.remove(name);
    }
    headers.remove(header::COOKIE);
    headers.insert(header::AUTHORIZATION, bearer);
    Some(headers)
}
