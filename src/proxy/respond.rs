//! The one place where an [`Error`] becomes an answer: [`TABLE`] for a head, [`Honest`] for a stream under way.
//!
//! `docs/errors.md` is this table; a test compares the two.

use std::{
    fmt::Write as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, RETRY_AFTER, UPGRADE},
};
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::record::Record;
use crate::{
    body::Body,
    error::{Error, Kind, Origin},
    protocol::{
        endpoint::Dialect,
        error::{ErrorParts, error_body, error_event},
    },
};

/// How one [`Kind`] is told.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub kind: Kind,
    pub status: StatusCode,
    /// `error.type` on OpenAI's paths; Anthropic's follows from the status.
    pub kind_name: &'static str,
    /// `error.code`: stable, for programs.
    pub code: &'static str,
    /// RFC 9209 error type in `Proxy-Status`.
    pub proxy_status: Option<&'static str>,
    /// Whether the client's own retry may help: else `x-should-retry: false` is sent.
    pub client_retry: bool,
    /// What the reader of the documentation is told.
    pub meaning: &'static str,
}

const fn row(
    kind: Kind,
    status: StatusCode,
    kind_name: &'static str,
    code: &'static str,
    proxy_status: Option<&'static str>,
    client_retry: bool,
    meaning: &'static str,
) -> Row {
    Row { kind, status, kind_name, code, proxy_status, client_retry, meaning }
}

const INVALID: &str = "invalid_request_error";
const BUSY: &str = "overloaded_error";
const FAILED: &str = "server_error";
/// Of request bodies, as `normalize` undoes them.
const CODINGS: &str = "gzip, zstd, br, deflate";
const LATE: &str = "timeout_error";
/// nginx's status for a client that left; only logs and metrics ever show it.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Every outcome of ours.
#[rustfmt::skip] // A table reads by its rows.
pub const TABLE: &[Row] = &[
    row(Kind::BadRequest, StatusCode::BAD_REQUEST, INVALID, "bad_request", Some("http_request_error"), true,
        "The request is malformed or ambiguous; the message says where."),
    row(Kind::InvalidBody, StatusCode::BAD_REQUEST, INVALID, "invalid_body", Some("http_request_error"), false,
        "The body is not JSON, or not what `normalize.validate` lets pass (docs/payload.md); the message says what is wrong, `param` where."),
    row(Kind::EndpointNotAllowed, StatusCode::NOT_FOUND, INVALID, "endpoint_not_allowed", Some("http_request_denied"), true,
        "The path is outside `routing.passthrough`."),
    row(Kind::PayloadTooLarge, StatusCode::PAYLOAD_TOO_LARGE, INVALID, "payload_too_large", Some("http_request_denied"), true,
        "The body is over `limits.request_body`."),
    row(Kind::UnsupportedCoding, StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "unsupported_coding", Some("http_request_error"), true,
        "The body's `Content-Encoding` is not known; `Accept-Encoding` lists what is."),
    row(Kind::RequestTimeout, StatusCode::REQUEST_TIMEOUT, LATE, "request_timeout", Some("http_request_error"), true,
        "The client sent its request too slowly."),
    row(Kind::ModelNotFound, StatusCode::NOT_FOUND, INVALID, "model_not_found", Some("destination_not_found"), true,
        "No backend serves the model; the message names those that exist. Sent only when every backend's list is known."),
    row(Kind::ResponseNotFound, StatusCode::NOT_FOUND, INVALID, "response_not_found", Some("destination_not_found"), true,
        "The backend that issued this response id is no longer configured."),
    row(Kind::UpgradeRequired, StatusCode::UPGRADE_REQUIRED, INVALID, "upgrade_required", Some("http_upgrade_failed"), true,
        "`/v1/responses` is not served over WebSocket: use plain HTTP."),
    row(Kind::UpgradeRefused, StatusCode::NOT_IMPLEMENTED, INVALID, "upgrade_refused", Some("http_upgrade_failed"), false,
        "CONNECT, or an upgrade other than WebSocket over HTTP/1.1."),
    row(Kind::LoopDetected, StatusCode::LOOP_DETECTED, FAILED, "loop_detected", Some("proxy_loop_detected"), false,
        "The request came through this very gateway already: a backend's address leads back to it."),
    row(Kind::QueueFull, StatusCode::SERVICE_UNAVAILABLE, BUSY, "queue_full", Some("connection_limit_reached"), true,
        "Every backend of the model is full and `limits.queue` calls wait already."),
    row(Kind::QueueTimeout, StatusCode::SERVICE_UNAVAILABLE, BUSY, "queue_timeout", Some("connection_limit_reached"), true,
        "Every backend of the model stayed full for `limits.queue_timeout`, or for as long as the client waits."),
    row(Kind::BodyMemory, StatusCode::SERVICE_UNAVAILABLE, BUSY, "body_memory", Some("proxy_internal_response"), true,
        "The bodies held at this moment fill `limits.body_memory`."),
    row(Kind::NoHealthyBackend, StatusCode::SERVICE_UNAVAILABLE, BUSY, "no_healthy_backend", Some("destination_unavailable"), true,
        "No backend that serves the model can be tried."),
    row(Kind::UpstreamConnect, StatusCode::BAD_GATEWAY, FAILED, "upstream_connect", Some("connection_refused"), false,
        "No connection to the backend: refused, unreachable, not within `timeouts.connect`, or TLS failed. Every try was made."),
    row(Kind::UpstreamReset, StatusCode::BAD_GATEWAY, FAILED, "upstream_reset", Some("connection_terminated"), false,
        "The backend closed the connection, or was found dead, before it answered. Every try was made."),
    row(Kind::UpstreamProtocol, StatusCode::BAD_GATEWAY, FAILED, "upstream_protocol", Some("http_protocol_error"), false,
        "The backend's answer is not HTTP or breaks its own framing."),
    row(Kind::UpstreamFailed, StatusCode::BAD_GATEWAY, FAILED, "upstream_failed", Some("http_response_incomplete"), false,
        "Every try ended in an answer that asks for another, and the last could not be passed on."),
    row(Kind::UpstreamTimeout, StatusCode::GATEWAY_TIMEOUT, LATE, "upstream_timeout", Some("http_response_timeout"), false,
        "The backend sent nothing within `timeouts.first_byte`."),
    row(Kind::UpstreamSilent, StatusCode::GATEWAY_TIMEOUT, LATE, "upstream_silent", Some("connection_read_timeout"), false,
        "A started answer was silent for `timeouts.between_bytes`, or its backend was found dead."),
    row(Kind::StreamCut, StatusCode::BAD_GATEWAY, FAILED, "stream_cut", Some("http_response_incomplete"), false,
        "The answer ended before its framing said so; in a stream, an error event says it."),
    row(Kind::DeadlineExceeded, StatusCode::GATEWAY_TIMEOUT, LATE, "deadline_exceeded", Some("http_response_timeout"), false,
        "`timeouts.total` ran out."),
    row(Kind::NotCached, StatusCode::GATEWAY_TIMEOUT, INVALID, "not_cached", None, true,
        "The request said `Cache-Control: only-if-cached`, and no fresh answer is kept for it."),
    row(Kind::Internal, StatusCode::INTERNAL_SERVER_ERROR, FAILED, "internal", Some("proxy_internal_error"), true,
        "A fault of the gateway; the log has its cause under the request id."),
];

/// The row of `kind`; outcomes that nobody sees share the last.
pub fn row_of(kind: Kind) -> &'static Row {
    TABLE.iter().find(|row| row.kind == kind).unwrap_or(&TABLE[TABLE.len() - 1])
}

/// The status that log and metrics show for `kind`.
pub fn status_of(kind: Kind) -> u16 {
    if kind == Kind::ClientGone { CLIENT_CLOSED_REQUEST } else { row_of(kind).status.as_u16() }
}

/// The whole answer to a request that failed with `error`.
pub fn answer(error: &Error, record: &Record) -> Response<Body> {
    let row = row_of(error.kind());
    let body = error_body(record.dialect, &parts(error, row, &record.id));
    let mut response = Response::new(Body::whole(body));
    *response.status_mut() = row.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(wait) = error.retry_after() {
        let seconds = wait.as_secs_f64().clamp(0.001, 60.0);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds.ceil() as u64));
        headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from((seconds * 1000.0) as u64));
    }
    if !row.client_retry {
        headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
    }
    match error.kind() {
        Kind::UpgradeRequired => drop(headers.insert(UPGRADE, HeaderValue::from_static("HTTP/1.1"))),
        // RFC 9110 §15.5.16
        Kind::UnsupportedCoding => drop(headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(CODINGS))),
        _ => {}
    }
    if let Some(value) = proxy_status(error, row) {
        headers.insert(HeaderName::from_static("proxy-status"), value);
    }
    response
}

fn parts<'a>(error: &'a Error, row: &Row, id: &'a HeaderValue) -> ErrorParts<'a> {
    ErrorParts {
        status: row.status.as_u16(),
        kind: row.kind_name,
        message: error.message(),
        param: error.request_param(),
        code: Some(row.code),
        request_id: id.to_str().ok(),
        sequence: None,
    }
}

/// `sluicegate;error=…;details="…"` (RFC 9209, structured field).
fn proxy_status(error: &Error, row: &Row) -> Option<HeaderValue> {
    let mut value = String::from("sluicegate");
    write!(value, ";error={}", row.proxy_status?).ok()?;
    if error.kind().origin() == Origin::Upstream
        && let Some(backend) = error.backend()
        && backend.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    {
        write!(value, ";next-hop=\"{backend}\"").ok()?;
    }
    HeaderValue::try_from(value).ok()
}

/// What comes in pieces ends honestly: a stream that can be read in its own dialect, any other by the cut alone.
pub fn honest(response: &mut Response<Body>, record: &Record) {
    if response.body().as_whole().is_some() || response.body().is_end_stream() {
        return;
    }
    let field = |name| response.headers().get(name).map_or(&b""[..], |value: &HeaderValue| value.as_bytes());
    let essence = field(CONTENT_TYPE).split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let readable = field(CONTENT_ENCODING).is_empty();
    let dialect = if readable && essence.eq_ignore_ascii_case(b"application/x-ndjson") {
        Some(Dialect::Ollama)
    } else if readable && essence.eq_ignore_ascii_case(b"text/event-stream") {
        Some(if record.dialect == Dialect::Ollama { Dialect::OpenAi } else { record.dialect })
    } else {
        None
    };
    let body = std::mem::replace(response.body_mut(), Body::empty());
    *response.body_mut() = Honest::body(body, record, dialect);
}

/// Ends a failed body honestly: in a stream of events an error event in the client's dialect, then the failure itself,
/// which makes the listener cut the connection (HTTP/1.1) or reset the stream (HTTP/2). Never a clean end.
#[derive(Debug)]
pub struct Honest {
    inner: Body,
    /// How the event is told; `None` = this is no stream of events.
    dialect: Option<Dialect>,
    request_id: HeaderValue,
    /// The last two bytes that went out: whether an event is open.
    tail: [u8; 2],
    failure: Failure,
}

/// How far a failure was told.
#[derive(Debug)]
enum Failure {
    None,
    /// What was handed over may still lie in the connection's buffer, which a failure would throw away.
    Told(Error),
    /// The connection had its turn to write.
    Sent(Error),
}

impl Honest {
    /// Wraps `body`, whose events are told in `dialect`.
    pub fn body(body: Body, record: &Record, dialect: Option<Dialect>) -> Body {
        Body::stream(Self {
            inner: body,
            dialect,
            request_id: record.id.clone(),
            tail: *b"\n\n",
            failure: Failure::None,
        })
    }

    fn event(&self, dialect: Dialect, error: &Error) -> Bytes {
        let parts = parts(error, row_of(error.kind()), &self.request_id);
        let event = error_event(dialect, &parts);
        // An event that was cut inside is closed first, else the client would read ours as its continuation.
        let open: &[u8] = match (dialect, self.tail) {
            (Dialect::Ollama, [_, b'\n']) | (_, [b'\n', b'\n']) | (_, [b'\r', b'\r']) => b"",
            (Dialect::Ollama, _) => b"\n",
            _ => b"\n\n",
        };
        if open.is_empty() { event } else { [open, &event[..]].concat().into() }
    }
}

impl HttpBody for Honest {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match std::mem::replace(&mut self.failure, Failure::None) {
            Failure::None => {}
            Failure::Told(error) => {
                self.failure = Failure::Sent(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Failure::Sent(error) => return Poll::Ready(Some(Err(error))),
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    match data.len() {
                        0 => {}
                        1 => self.tail = [self.tail[1], data[0]],
                        n => self.tail = [data[n - 2], data[n - 1]],
                    }
                    if data.ends_with(b"\r\n\r\n") {
                        self.tail = *b"\n\n";
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let event = self.dialect.map(|dialect| self.event(dialect, &error));
                self.failure = Failure::Told(error);
                match event {
                    Some(event) => Poll::Ready(Some(Ok(Frame::data(event)))),
                    None => self.poll_frame(cx),
                }
            }
            other => other,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.failure, Failure::None) && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // A stream of events promises no length: its error event would not fit. Any other keeps the one announced, and
        // breaking it is how the client learns of the cut.
        if self.dialect.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}
