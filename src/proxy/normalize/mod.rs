//! The single conversion point: `http::Request` → [`Call`].
//!
//! Takes an [`Arrival`], makes a [`Call`]: hop-by-hop fields gone, ids and forwarding fields set, endpoint and model
//! known. A body is read only where the model is in it (JSON, forms), decoded where it is in a content coding; it is
//! scanned once and never written back. Edits are splices over the bytes that came ([`edit`]); until one is set, an
//! alias is the only one.
//!
//! Acts on the request. When the client leaves: the read is dropped, and with it its memory.

mod coding;
mod counters;
pub mod edit;
mod images;
mod payload;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Version, header, request::Parts};
use tokio::time::Instant;
use tower::{Service, service_fn};

use self::{
    coding::Codings,
    edit::{Alias, Change, Edit, Plan},
};
pub use self::{counters::Counters, images::Images};
use super::{
    Arrival, Response,
    call::{Asked, Call, Payload},
    headers::{self, Via},
    memory::{Memory, Reservation},
    record::Record,
    salt::Salts,
    seen::{Said, Seen},
};
use crate::{
    body::Upload,
    config::{self, Passthrough, Validate},
    error::{Error, Kind},
    fleet::response_ids::ResponseIds,
    protocol::{
        endpoint::{self, Endpoint},
        json::{self, Edits, Fields},
        multipart, query,
        request::{self, Invalid, Level},
    },
};

/// What the stage needs.
#[derive(Debug)]
pub struct Settings {
    pub via: Via,
    pub passthrough: Passthrough,
    pub rules: Rules,
    /// What the edits did.
    pub edited: Rc<edit::Counters>,
    /// What tells tenants apart in a backend's prefix cache; `None` where they may share it.
    pub salts: Option<Salts>,
    /// `limits.request_body`
    pub cap: usize,
    pub memory: Memory,
    /// `timeouts.total`
    pub total: Duration,
    pub response_ids: ResponseIds,
    /// Bodies that need not be read again.
    pub seen: Rc<Seen>,
    pub counters: Rc<Counters>,
    /// `normalize.images`; `None` = they stay as they are.
    pub images: Option<Images>,
}

/// What is made of a body that is read, whoever reads it.
#[derive(Debug)]
pub struct Rules {
    pub validate: Validate,
    /// alias → model
    pub aliases: HashMap<Arc<str>, Arc<str>>,
    pub plan: Plan,
}

/// The stage.
pub fn normalize<S>(
    settings: Rc<Settings>,
    inner: S,
) -> impl Service<Arrival, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Call, Response = Response, Error = Error> + Clone,
{
    service_fn(move |arrival| {
        let (settings, mut inner) = (Rc::clone(&settings), inner.clone());
        async move {
            let call = settings.convert(arrival).await?;
            // Stages are always ready: what they wait for, they wait for in `call`.
            inner.call(call).await
        }
    })
}

/// `read`, no longer than until `end`, and how long it took. A body that is there already costs no timer and no look at
/// a clock.
async fn within<T>(
    end: Instant,
    mut read: Pin<&mut impl Future<Output = Result<T, Error>>>,
) -> (Result<T, Error>, Duration) {
    if let Poll::Ready(done) = poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await {
        return (done, Duration::ZERO);
    }
    let start = Instant::now();
    // Boxed: rare.
    let done = Box::pin(tokio::time::timeout_at(end, read)).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::RequestTimeout, "timeouts.total ran out before the request's body was complete"))
    });
    (done, start.elapsed())
}

/// Where in a request the model was named.
#[derive(Default)]
struct Named {
    model: Option<Arc<str>>,
    alias: Option<Arc<str>>,
    stream: bool,
    asked: Asked,
    previous: Option<String>,
    said: Option<Rc<Said>>,
    /// The body is not as it came.
    edited: bool,
}

impl Named {
    /// As it was when the same body came before.
    fn again(said: Rc<Said>) -> Self {
        Self { model: said.model.clone(), stream: said.stream, asked: said.asked, said: Some(said), ..Self::default() }
    }
}

impl Settings {
    async fn convert(&self, arrival: Arrival) -> Result<Call, Error> {
        let Arrival { request, record, forwarded } = arrival;
        let (mut head, body) = request.into_parts();
        self.admit_path(&head, record.endpoint)?;
        let tunnel = upgrade(&head)?;

        let host = host(&mut head);
        headers::strip_request(&mut head.headers);
        let mut added = headers::Added::with_capacity(headers::MOST_ADDED);
        self.via.stamp(&mut head.headers, &mut added, head.version)?;
        forwarded.stamp(&mut head.headers, &mut added, host);
        added.push((super::X_REQUEST_ID, record.id.clone()));

        let (payload, named) = self.payload(&mut head, body, &record).await?;
        record.model.replace(named.model.clone());
        record.stream.set(named.stream);
        let pinned = self.pinned(&record, named.previous.as_deref());
        let salt = self.salts.map(|salts| salts.of(record.peer.identity, &head.headers));
        Ok(Call {
            endpoint: record.endpoint,
            repeatable: record.endpoint.repeatable(&head.method),
            wait_until: patience(&head.headers).and_then(|wait| record.start.checked_add(wait)),
            deadline: record.start + self.total,
            method: head.method,
            path: record.path.clone(),
            headers: head.headers,
            added,
            payload,
            model: named.model,
            alias: named.alias,
            edited: named.edited,
            salt,
            stream: named.stream,
            asked: named.asked,
            said: named.said,
            ask_usage: false,
            pinned,
            avoid: Vec::new(),
            tailor: None,
            tunnel,
            record,
        })
    }

    fn admit_path(&self, head: &Parts, endpoint: Endpoint) -> Result<(), Error> {
        let path = head.uri.path();
        let allowed = match &self.passthrough {
            Passthrough::All => true,
            Passthrough::Known => endpoint != Endpoint::Passthrough,
            Passthrough::Paths(prefixes) => {
                endpoint != Endpoint::Passthrough || !climbs(path) && prefixes.iter().any(|prefix| below(path, prefix))
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Error::new(
            Kind::EndpointNotAllowed,
            format!("{path} is not served here: it is not a known endpoint, and routing.passthrough does not list it"),
        ))
    }

    /// The body, and what it says of itself.
    async fn payload(&self, head: &mut Parts, body: Upload, record: &Rc<Record>) -> Result<(Payload, Named), Error> {
        let (form, coded) = form_of(head, record.endpoint);
        let asked = head.uri.query().and_then(query::model);
        if matches!(form, Form::Opaque) {
            let named = self.rules.named(asked.as_deref());
            let body = payload::stream(body, self.cap, Rc::clone(record))?;
            return Ok((Payload::upload(body), named));
        }
        let codings = if coded { Codings::take(&mut head.headers)? } else { None };
        let read = pin!(async {
            match &codings {
                None => {
                    let (bytes, share) = payload::read(body, self.cap, &self.memory).await?;
                    Ok((bytes.len(), bytes, share))
                }
                // Boxed: rare, and every other read would carry its room.
                Some(codings) => {
                    self.counters.decoded.increment(1);
                    Box::pin(coding::read(body, codings, self.cap, &self.memory)).await
                }
            }
        });
        let (read, took) = within(record.start + self.total, read).await;
        let (came, bytes, mut share) = read?;
        record.receiving.set(took);
        record.received.set(came as u64);
        let (bytes, mut named) = match form {
            Form::Json => match self.seen.find(record, &head.headers, &bytes) {
                Some(said) => (bytes, Named::again(said)),
                None => {
                    let bytes = match &self.images {
                        None => bytes,
                        Some(images) => {
                            Box::pin(images.scale(record.endpoint, bytes, &mut share, &self.counters)).await
                        }
                    };
                    self.json(record.endpoint, bytes, &mut share)?
                }
            },
            Form::Multipart => self.multipart(&head.headers, bytes),
            Form::Opaque => (bytes, Named::default()),
        };
        if named.model.is_none() {
            let by_query = self.rules.named(asked.as_deref());
            (named.model, named.alias) = (by_query.model, by_query.alias);
        }
        Ok((Payload::whole(bytes, share), named))
    }

    /// A JSON body, edited as the rules say. While there are two of it, both are counted.
    fn json(&self, endpoint: Endpoint, bytes: Bytes, share: &mut Reservation) -> Result<(Bytes, Named), Error> {
        let Some((mut named, edits)) = self.rules.read(endpoint, &bytes)? else { return Ok((bytes, Named::default())) };
        let blanks = edits.blanks(&bytes);
        if edits.is_empty() && blanks == 0 {
            return Ok((bytes, named));
        }
        let length = edits.length(&bytes, blanks);
        share.grow(bytes.len() + length)?;
        let edited = edits.apply(&bytes);
        drop(bytes);
        share.shrink(length);
        self.edited.edited(&edits, blanks);
        if edits.splices().iter().any(|splice| splice.cause == Edit::Strip) {
            named = self.rules.left(named, &edited);
        }
        named.edited = true;
        Ok((edited, named))
    }

    fn multipart(&self, headers: &HeaderMap, bytes: Bytes) -> (Bytes, Named) {
        let found = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|content_type| multipart::model(content_type, &bytes));
        let Some(found) = found else { return (bytes, Named::default()) };
        let mut named = self.rules.named(Some(&found.text));
        let (Some(_), Some(model)) = (&named.alias, &named.model) else { return (bytes, named) };
        let edited = multipart::replace_model(&bytes, &found.span, model).into();
        named.edited = true;
        (edited, named)
    }

    /// The backend that issued the response id which this request refers to.
    fn pinned(&self, record: &Record, previous: Option<&str>) -> Option<Arc<str>> {
        let id = match record.endpoint {
            Endpoint::Responses => previous?,
            Endpoint::Response => endpoint::response_id(record.path.path())?,
            _ => return None,
        };
        self.response_ids.issuer(id)
    }
}

impl Rules {
    /// What `normalize` and `routing` say.
    pub fn new(config: &config::Config) -> Self {
        Self {
            validate: config.normalize.validate,
            aliases: config.routing.aliases.iter().cloned().collect(),
            plan: Plan::new(&config.normalize),
        }
    }

    /// What a JSON body says, and the edits that it needs. `None` for what is no object where bodies are not judged: that
    /// is left to the engine, which knows how to refuse it.
    ///
    /// # Errors
    /// When it must not be sent.
    fn read(&self, endpoint: Endpoint, body: &[u8]) -> Result<Option<(Named, Edits<Edit>)>, Error> {
        let Some(fields) = self.fields(endpoint, body)? else { return Ok(None) };
        let named = self.said(&fields);
        let alias = match (&named.alias, &named.model, &fields.model) {
            (Some(_), Some(model), Some(at)) => Some(Alias { at: &at.span, model }),
            _ => None,
        };
        let edits = self.plan.edits(endpoint, body, alias)?;
        Ok(Some((named, edits)))
    }

    /// The one pass over all of a body.
    fn fields<'a>(&self, endpoint: Endpoint, body: &'a [u8]) -> Result<Option<Fields<'a>>, Error> {
        let level = match self.validate {
            _ if !request::is_judged(endpoint) => None,
            Validate::Off => None,
            Validate::Light => Some(Level::Light),
            Validate::Strict => Some(Level::Strict),
        };
        match level {
            None => Ok(json::scan(body).ok()),
            Some(level) => request::read(endpoint, body, level).map(Some).map_err(invalid),
        }
    }

    /// What a body still says from which fields were stripped: what an engine does not hear was not said.
    fn left(&self, named: Named, edited: &[u8]) -> Named {
        let Ok(left) = json::scan(edited) else { return named };
        // The model stands there resolved.
        let there = left.model.is_some();
        let (model, alias) = (named.model.filter(|_| there), named.alias.filter(|_| there));
        Named { model, alias, ..self.said(&left) }
    }

    /// What would be sent in place of `body`, and why.
    ///
    /// # Errors
    /// When it would be refused.
    pub fn explain(&self, endpoint: Endpoint, body: Bytes) -> Result<(Bytes, Vec<Change>), Error> {
        let Some((_, edits)) = self.read(endpoint, &body)? else { return Ok((body, Vec::new())) };
        let changes = edit::changes(&body, &edits);
        let edited = if changes.is_empty() { body } else { edits.apply(&body) };
        Ok((edited, changes))
    }

    /// What a body says.
    fn said(&self, fields: &Fields<'_>) -> Named {
        let mut named = self.named(fields.model.as_ref().map(|model| &*model.text));
        named.stream = fields.stream == Some(true);
        named.asked = Asked {
            greedy: fields.greedy,
            seeded: fields.seeded,
            store: fields.store,
            stateful: fields.conversation || fields.background == Some(true) || fields.previous_response_id.is_some(),
            usage: fields.include_usage == Some(true),
        };
        named.previous = fields.previous_response_id.as_deref().map(str::to_owned);
        named
    }

    fn named(&self, model: Option<&str>) -> Named {
        let Some(model) = model else { return Named::default() };
        match self.aliases.get_key_value(model) {
            Some((alias, model)) => {
                Named { model: Some(Arc::clone(model)), alias: Some(Arc::clone(alias)), ..Named::default() }
            }
            None => Named { model: Some(model.into()), ..Named::default() },
        }
    }
}

fn invalid(invalid: Invalid) -> Error {
    let error = Error::new(Kind::InvalidBody, invalid.message);
    match invalid.param {
        Some(param) => error.param(param),
        None => error,
    }
}

/// How a body is read for its model.
#[derive(Clone, Copy)]
enum Form {
    Json,
    Multipart,
    /// Streamed through.
    Opaque,
}

/// The form, and whether it is in a content coding.
fn form_of(head: &Parts, endpoint: Endpoint) -> (Form, bool) {
    if matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE) {
        return (Form::Opaque, false);
    }
    let known = !matches!(endpoint, Endpoint::Passthrough | Endpoint::Response | Endpoint::Models | Endpoint::Model);
    // One pass: each look-up would cost a hash.
    let (mut coded, mut content_type) = (false, None);
    for (name, value) in &head.headers {
        match *name {
            header::CONTENT_ENCODING => coded |= !value.as_bytes().eq_ignore_ascii_case(b"identity"),
            header::CONTENT_TYPE if content_type.is_none() => content_type = Some(value.as_bytes()),
            _ => {}
        }
    }
    if coded && !known {
        return (Form::Opaque, true);
    }
    let content_type = content_type.unwrap_or_default();
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let form = if essence.eq_ignore_ascii_case(b"multipart/form-data") {
        Form::Multipart
    } else if known || essence.eq_ignore_ascii_case(b"application/json") || essence.ends_with(b"+json") {
        Form::Json
    } else {
        Form::Opaque
    };
    (form, coded)
}

/// Whether `path` may lead elsewhere in a server that resolves dot segments, also percent-encoded or behind `\\`.
fn climbs(path: &str) -> bool {
    let decoded = query::percent_decode(path, false);
    decoded.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."))
}

/// Whether `path` is `prefix` or lies below it.
fn below(path: &str, prefix: &str) -> bool {
    let prefix = prefix.strip_suffix("/*").or_else(|| prefix.strip_suffix('/')).unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The authority the client used, out of the way of the backend's own.
fn host(head: &mut Parts) -> Option<http::HeaderValue> {
    let named = head.headers.remove(header::HOST);
    named.or_else(|| head.uri.authority().and_then(|authority| authority.as_str().parse().ok()))
}

/// Whether this is a WebSocket handshake to tunnel.
///
/// `Upgrade: h2c` is not followed but does no harm: RFC 9110 §7.8 lets a server ignore it, and `curl --http2` sends it.
fn upgrade(head: &Parts) -> Result<bool, Error> {
    if head.method == Method::CONNECT {
        return Err(Error::new(Kind::UpgradeRefused, "CONNECT is not served: this is a gateway, not a forward proxy"));
    }
    let Some(wanted) = head.headers.get(header::UPGRADE).filter(|_| head.version == Version::HTTP_11) else {
        return Ok(false);
    };
    let listed =
        |name: &[u8]| wanted.as_bytes().split(|b| *b == b',').any(|w| w.trim_ascii().eq_ignore_ascii_case(name));
    if listed(b"websocket") {
        if head.uri.path() == "/v1/responses" {
            return Err(Error::new(
                Kind::UpgradeRequired,
                "/v1/responses is not served over WebSocket; send the same as a POST",
            ));
        }
        if head.method != Method::GET {
            return Err(Error::new(Kind::BadRequest, "a WebSocket handshake is a GET (RFC 6455 §4.1)"));
        }
        return Ok(true);
    }
    if listed(b"h2c") {
        return Ok(false);
    }
    Err(Error::new(Kind::UpgradeRefused, "only Upgrade: websocket is tunnelled"))
}

/// How long the client itself waits, as the OpenAI and Anthropic SDKs say it.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    // Most heads have neither, and each look-up by a text would parse and hash it.
    if !headers.keys().any(|name| name.as_str().starts_with("x-stainless-")) {
        return None;
    }
    ["x-stainless-read-timeout", "x-stainless-timeout"]
        .iter()
        .find_map(|name| headers.get(*name)?.to_str().ok()?.parse::<f64>().ok())
        .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Registry;

    fn settings() -> Settings {
        Settings {
            via: Via::new("test"),
            passthrough: Passthrough::All,
            rules: Rules {
                validate: Validate::Light,
                aliases: HashMap::from([("alias".into(), "model".into())]),
                plan: Plan::default(),
            },
            edited: Rc::new(edit::Counters::new(&Registry::default().table())),
            salts: None,
            cap: 1 << 20,
            memory: Memory::new(1 << 20),
            total: Duration::from_secs(1),
            response_ids: ResponseIds::default(),
            seen: Rc::default(),
            counters: Rc::new(Counters::noop()),
            images: None,
        }
    }

    fn asked(body: &'static str) -> Asked {
        let read = settings().rules.read(Endpoint::Passthrough, body.as_bytes()).expect(body);
        read.map(|(named, _)| named.asked).unwrap_or_default()
    }

    #[test]
    fn a_body_says_what_it_asks_for() {
        let none = Asked::default();
        for (body, expected) in [
            ("{}", none),
            ("[]", none),
            (r#"{"temperature":0}"#, Asked { greedy: true, ..none }),
            (r#"{"temperature":0.5,"seed":1}"#, Asked { seeded: true, ..none }),
            (r#"{"store":false}"#, Asked { store: Some(false), ..none }),
            (r#"{"store":null,"background":false,"conversation":null}"#, none),
            (r#"{"background":true}"#, Asked { stateful: true, ..none }),
            (r#"{"conversation":"c"}"#, Asked { stateful: true, ..none }),
            (r#"{"previous_response_id":"r"}"#, Asked { stateful: true, ..none }),
            (r#"{"stream_options":{"include_usage":true}}"#, Asked { usage: true, ..none }),
        ] {
            assert_eq!(asked(body), expected, "{body}");
        }
    }

    #[test]
    fn a_body_is_judged_where_that_is_on_and_the_endpoint_known() {
        let refused = |validate, endpoint| {
            let rules = Rules { validate, ..settings().rules };
            rules.read(endpoint, br#"{"messages":1}"#).err()
        };
        let error = refused(Validate::Light, Endpoint::Chat).expect("refused");
        assert_eq!((error.kind(), error.request_param()), (Kind::InvalidBody, Some("messages")));
        assert!(refused(Validate::Off, Endpoint::Chat).is_none());
        assert!(refused(Validate::Strict, Endpoint::Passthrough).is_none());
    }

    #[test]
    fn an_alias_is_resolved_in_the_body() {
        let settings = settings();
        let mut share = settings.memory.reserve();
        let body = Bytes::from_static(br#"{"model":"alias","n":1.0}"#);
        let (bytes, named) = settings.json(Endpoint::Passthrough, body, &mut share).expect("it is well-formed");
        assert!(named.edited);
        assert_eq!(bytes, r#"{"model":"model","n":1.0}"#);
        assert_eq!((named.model.as_deref(), named.alias.as_deref()), (Some("model"), Some("alias")));
    }
}
