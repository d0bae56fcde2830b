//! The one error a request can meet: what a client can act on ([`Kind`]), whose fault it is ([`Origin`]), and
//! whether another try may help ([`Retry`]).
//!
//! Raised where it is known, answered in one table (`proxy/respond.rs`). `Display` prints this level only; the
//! operator's causes stay in `source()`. Configuration problems and start-up failures are other types: they never
//! meet a request.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

/// A boxed cause.
pub type Cause = Box<dyn StdError + Send + Sync>;

/// One word wide, so that results stay cheap to move through the stages.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    backend: Option<Arc<str>>,
    retry: Retry,
    retry_after: Option<std::time::Duration>,
    param: Option<Cow<'static, str>>,
    source: Option<Cause>,
}

/// The outcomes a client can act on. `docs/errors.md` lists status, type and code of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is malformed or ambiguous.
    BadRequest,
    /// The body is one that no engine would take.
    InvalidBody,
    /// The path is outside `routing.passthrough`.
    EndpointNotAllowed,
    /// The body is over `limits.request_body`.
    PayloadTooLarge,
    /// The body is in a content coding that is not known.
    UnsupportedCoding,
    /// The client sent its body too slowly or stopped.
    RequestTimeout,
    /// No backend serves the model, and all lists are known.
    ModelNotFound,
    /// The response id was issued by no backend that is known.
    ResponseNotFound,
    /// `/v1/responses` over WebSocket: use plain HTTP.
    UpgradeRequired,
    /// CONNECT, or an upgrade other than WebSocket.
    UpgradeRefused,
    /// This instance's own `Via` name came in.
    LoopDetected,
    /// `limits.queue` calls wait already.
    QueueFull,
    /// No permit within `limits.queue_timeout` or the client's own deadline.
    QueueTimeout,
    /// `limits.body_memory` is used up.
    BodyMemory,
    /// No backend can be tried.
    NoHealthyBackend,
    /// The connection could not be opened in `timeouts.connect`, was refused, or failed in TLS.
    UpstreamConnect,
    /// The backend closed or reset the connection before it answered.
    UpstreamReset,
    /// The backend's answer is not HTTP, or breaks its own framing.
    UpstreamProtocol,
    /// Every try ended in a status that asks for another.
    UpstreamFailed,
    /// Nothing came within `timeouts.first_byte`.
    UpstreamTimeout,
    /// A started answer was silent for `timeouts.between_bytes`, or its backend was found dead.
    UpstreamSilent,
    /// The answer ended before its framing said so.
    StreamCut,
    /// `timeouts.total` ran out.
    DeadlineExceeded,
    /// `Cache-Control: only-if-cached`, and it was not.
    NotCached,
    /// The client left; nobody sees this answer.
    ClientGone,
    /// A fault of ours.
    Internal,
}

/// On which side the fault lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client.
    Downstream,
    /// Sluicegate itself.
    Gateway,
    /// A backend.
    Upstream,
}

/// Whether the same call may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would do harm or not help.
    Never,
    /// It may be tried elsewhere, if its method or endpoint allows.
    Safe,
    /// Nothing of it was sent, or a reused connection died before the first byte: any call may be tried again.
    Unsent,
}

impl Error {
    /// An error whose `message` says what happened and what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            message: message.into(),
            backend: None,
            retry: Retry::Never,
            retry_after: None,
            param: None,
            source: None,
        }))
    }

    /// Adds what caused it, for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Cause>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Names the backend it happened at, in the message too where that does not name it yet.
    #[must_use]
    pub fn at(mut self, backend: &Arc<str>) -> Self {
        if !self.0.message.contains(&**backend) {
            self.0.message.insert_str(0, &format!("backend {backend}: "));
        }
        self.0.backend = Some(Arc::clone(backend));
        self
    }

    /// Says whether another try may help.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// When the client should come again.
    #[must_use]
    pub fn after(mut self, wait: std::time::Duration) -> Self {
        self.0.retry_after = Some(wait);
        self
    }

    /// The request field that is at fault.
    #[must_use]
    pub fn param(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.0.param = Some(name.into());
        self
    }

    /// The same for another request that met it too. What caused it stays with the original, which is logged.
    #[must_use]
    pub fn shared(&self) -> Self {
        Self(Box::new(Inner {
            kind: self.0.kind,
            message: self.0.message.clone(),
            backend: self.0.backend.clone(),
            retry: self.0.retry,
            retry_after: self.0.retry_after,
            param: self.0.param.clone(),
            source: None,
        }))
    }

    /// What the client can act on.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What happened, in a sentence.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened.
    pub fn backend(&self) -> Option<&Arc<str>> {
        self.0.backend.as_ref()
    }

    /// Whether another try may help.
    pub fn may_retry(&self) -> Retry {
        self.0.retry
    }

    /// When the client should come again.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        self.0.retry_after
    }

    /// The request field that is at fault.
    pub fn request_param(&self) -> Option<&str> {
        self.0.param.as_deref()
    }
}

impl Kind {
    /// On which side the fault lies.
    pub fn origin(self) -> Origin {
        use Kind::*;
        match self {
            BadRequest | InvalidBody | EndpointNotAllowed | PayloadTooLarge | UnsupportedCoding | RequestTimeout
            | ModelNotFound | ResponseNotFound | UpgradeRequired | UpgradeRefused | LoopDetected | NotCached
            | ClientGone => Origin::Downstream,
            QueueFull | QueueTimeout | BodyMemory | NoHealthyBackend | DeadlineExceeded | Internal => Origin::Gateway,
            UpstreamConnect | UpstreamReset | UpstreamProtocol | UpstreamFailed | UpstreamTimeout | UpstreamSilent
            | StreamCut => Origin::Upstream,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind).field("message", &self.0.message);
        if let Some(backend) = &self.0.backend {
            s.field("backend", backend);
        }
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}
