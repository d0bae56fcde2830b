//! The admin plane. Runs on the control plane's thread, so that load cannot starve it; with `admin: same` also under
//! [`PREFIX`] of the data plane.
//!
//! | path | method | |
//! |---|---|---|
//! | `/livez` | GET | the process answers |
//! | `/readyz` | GET | it should be given work; `?verbose` lists every check |
//! | `/metrics` | GET | Prometheus text |
//! | `/api/v1/backends` | GET | state, reason, load, models of each |
//! | `/api/v1/backends/{name}/drain`, `…/undrain` | POST | takes it out, puts it back |
//! | `/api/v1/backends/{name}/interruption` | POST | its machine goes, or stays after all: `{"action","time"}` |
//! | `/api/v1/cache` | GET | kept answers: how many, of which models and tenants, how often they were of use |
//! | `/api/v1/cache` | DELETE | forgets them; `?model=…` and `?tenant=…` those alone |
//! | `/api/v1/config` | GET | what is in effect, secrets as `***`, and how the newest reload went |
//! | `/api/v1/events` | GET | server-sent events: every change in the fleet |
//! | `/api/v1/drain` | POST | as SIGTERM |

pub mod access;
mod events;
mod notice;
mod view;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use serde_json::{Value, json};

use self::access::{Refusal, Rules};
use crate::{
    body::Body,
    fleet::Fleet,
    runtime::{drain::Drain, readiness::Readiness},
    telemetry::metrics::{self, Registry},
};

/// Where the admin plane is found on a shared address.
pub const PREFIX: &str = "/-/sluicegate";

/// What the endpoints read and set off. Cheap to clone; any thread.
#[derive(Clone)]
pub struct Admin(Arc<Pieces>);

/// What [`Admin`] is made of.
pub struct Pieces {
    pub fleet: Arc<Fleet>,
    pub registry: Registry,
    pub readiness: Readiness,
    pub drain: Drain,
    /// The rules now in force: a reload may change the token.
    pub rules: Box<dyn Fn() -> Rules + Send + Sync>,
    /// The configuration in effect and how the newest reload went.
    pub config: Box<dyn Fn() -> Value + Send + Sync>,
    /// The response cache; `None` = it is off.
    pub cache: Option<Cache>,
    /// Begins the orderly end.
    pub terminate: Box<dyn Fn() + Send + Sync>,
}

/// What the admin plane may do to the response cache.
pub struct Cache {
    /// Its state.
    pub look: Box<dyn Fn() -> Value + Send + Sync>,
    /// Forgets what a query names, all without one, and says what was done; or why it cannot be understood.
    pub purge: Box<Forget>,
}

/// Takes the query of a purge.
pub type Forget = dyn Fn(Option<&str>) -> Result<Value, String> + Send + Sync;

impl Admin {
    pub fn new(pieces: Pieces) -> Self {
        Self(Arc::new(pieces))
    }

    /// Answers what lies at `path`: the request's own, less [`PREFIX`] where the address is shared. `body` is read by
    /// the one endpoint that has one, and bounded.
    pub async fn answer(&self, head: &Parts, path: &str, body: Body) -> Response<Body> {
        let rules = (self.0.rules)();
        if let Err(refusal) = rules.admit(head, path) {
            return refused(refusal);
        }
        match access::notice_of(path) {
            Some(name) if head.method == Method::POST => notice::take(&self.0.fleet, name, &head.headers, body).await,
            _ => self.endpoint(head, path, &rules),
        }
    }

    fn endpoint(&self, head: &Parts, path: &str, rules: &Rules) -> Response<Body> {
        let get = matches!(head.method, Method::GET | Method::HEAD);
        let post = head.method == Method::POST;
        let backend = path.strip_prefix("/api/v1/backends/").and_then(|rest| rest.rsplit_once('/'));
        match (path, backend) {
            ("/livez", _) if get => text(StatusCode::OK, "ok\n"),
            ("/readyz", _) if get => self.readyz(head, rules.tells_reasons(head)),
            ("/metrics", _) if get => self.metrics(),
            ("/api/v1/backends", _) if get => answer(StatusCode::OK, &view::backends(&self.0.fleet)),
            ("/api/v1/cache", _) if get => self.cache(),
            ("/api/v1/cache", _) if head.method == Method::DELETE => self.purge(head.uri.query()),
            ("/api/v1/cache", _) => wrong_method("GET, HEAD, DELETE"),
            ("/api/v1/config", _) if get => answer(StatusCode::OK, &(self.0.config)()),
            ("/api/v1/events", _) if get => events::feed(&self.0.fleet, self.0.drain.clone()),
            ("/api/v1/drain", _) if post => {
                (self.0.terminate)();
                answer(StatusCode::ACCEPTED, &json!({"draining": true}))
            }
            (_, Some((name, "drain"))) if post => self.drain_backend(name),
            (_, Some((name, "undrain"))) if post => self.undrain_backend(name),
            ("/livez" | "/readyz" | "/metrics" | "/api/v1/backends" | "/api/v1/config" | "/api/v1/events", _) => {
                wrong_method("GET, HEAD")
            }
            ("/api/v1/drain", _) | (_, Some((_, "drain" | "undrain" | "interruption"))) => wrong_method("POST"),
            ("/api/v1/prefixes" | "/dashboard", _) => {
                problem(StatusCode::NOT_FOUND, "not_in_this_version", &format!("{path} is not in this version"))
            }
            _ => problem(StatusCode::NOT_FOUND, "not_found", &format!("there is nothing at {path} of the admin plane")),
        }
    }

    fn readyz(&self, head: &Parts, reasons: bool) -> Response<Body> {
        let report = self.0.readiness.report();
        let ready = report.iter().all(|check| check.outcome.is_ok());
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let verbose =
            head.uri.query().is_some_and(|query| query.split('&').any(|p| p.split('=').next() == Some("verbose")));
        if ready && !verbose {
            return text(status, "ok\n");
        }
        let mut body = String::new();
        for check in report {
            body += &match check.outcome {
                Ok(detail) if detail.is_empty() || !reasons => format!("[+]{} ok\n", check.name),
                Ok(detail) => format!("[+]{} ok: {detail}\n", check.name),
                Err(reason) if reasons => format!("[-]{} failed: {reason}\n", check.name),
                Err(_) => format!("[-]{} failed\n", check.name),
            };
        }
        text(status, &body)
    }

    fn metrics(&self) -> Response<Body> {
        let mut response = Response::new(Body::whole(self.0.registry.render()));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::CONTENT_TYPE));
        response
    }

    fn cache(&self) -> Response<Body> {
        let off = || json!({"enabled": false});
        answer(StatusCode::OK, &self.0.cache.as_ref().map_or_else(off, |cache| (cache.look)()))
    }

    fn purge(&self, query: Option<&str>) -> Response<Body> {
        let nothing = || Ok(json!({"purged": 0}));
        match self.0.cache.as_ref().map_or_else(nothing, |cache| (cache.purge)(query)) {
            Ok(done) => answer(StatusCode::OK, &done),
            Err(reason) => problem(StatusCode::BAD_REQUEST, "bad_query", &reason),
        }
    }

    fn drain_backend(&self, name: &str) -> Response<Body> {
        match self.0.fleet.drain(name, "drained by the admin plane") {
            Ok(_) => answer(StatusCode::OK, &view::backend(&self.0.fleet, name)),
            Err(unknown) => problem(StatusCode::NOT_FOUND, "no_such_backend", &unknown.to_string()),
        }
    }

    fn undrain_backend(&self, name: &str) -> Response<Body> {
        match self.0.fleet.undrain(name) {
            Ok(_) => answer(StatusCode::OK, &view::backend(&self.0.fleet, name)),
            Err(unknown) => problem(StatusCode::NOT_FOUND, "no_such_backend", &unknown.to_string()),
        }
    }
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    with_type(status, "application/json", format!("{value}\n"))
}

fn text(status: StatusCode, body: &str) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", body.to_owned())
}

fn with_type(status: StatusCode, media: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::whole(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn problem(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    answer(status, &json!({"error": {"code": code, "message": message}}))
}

fn refused(refusal: Refusal) -> Response<Body> {
    let mut response = problem(refusal.status, refusal.code, refusal.message);
    if refusal.status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

fn wrong_method(allow: &'static str) -> Response<Body> {
    let mut response =
        problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &format!("this is asked with {allow}"));
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admin")
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cache")
    }
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pieces")
    }
}
