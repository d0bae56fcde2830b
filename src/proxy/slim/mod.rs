//! Answers without what says nothing, for those who want them so: `egress.slim`, or `x-sluicegate-slim: 1`.
//!
//! Streams of chat and completion chunks are slimmed, and with a duration for `compression.flush` their deltas merge;
//! plain JSON of known endpoints loses its white space. All else passes as it came.
//!
//! Acts on both legs: takes its field out of the request, and edits the answer. When the client leaves: the answer's
//! body is dropped, and with it the delta that waited.

mod body;
#[cfg(test)]
mod tests;

use std::{rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use http_body::Body as _;
use metrics::Counter;
use tower::{Service, service_fn};

use self::body::{Minified, Slimmed};
use super::{Arrival, Response, record::Record};
use crate::{
    body::Body,
    config::Config,
    error::Error,
    protocol::{
        endpoint::Endpoint,
        slim::{Kind, Minifier, Saved, Slimmer},
    },
    telemetry::metrics::{Name, Table},
};

/// A client's own wish: `1` for slim answers, `0` for answers as they come.
const WISH: HeaderName = HeaderName::from_static("x-sluicegate-slim");

/// What the stage needs.
#[derive(Debug)]
pub struct Slim {
    /// `egress.slim`: for everybody.
    on: bool,
    /// `compression.flush`: how long a delta may wait for others.
    window: Option<Duration>,
    counters: Counters,
}

/// Bytes that were spared.
#[derive(Clone, Debug)]
struct Counters {
    slim: Counter,
    merge: Counter,
}

/// What is made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Events(Kind),
    Json,
}

/// The stage.
pub fn slim<S>(
    stage: Rc<Slim>,
    inner: S,
) -> impl Service<Arrival, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Arrival, Response = Response, Error = Error> + Clone,
{
    service_fn(move |mut arrival: Arrival| {
        let (stage, mut inner) = (Rc::clone(&stage), inner.clone());
        let asker = stage.wanted(arrival.request.headers_mut()).then(|| Rc::clone(&arrival.record));
        async move {
            let response = inner.call(arrival).await?;
            Ok(match asker {
                Some(record) => stage.answer(response, &record),
                None => response,
            })
        }
    })
}

impl Slim {
    /// For one configuration.
    pub fn new(config: &Config, table: &Table) -> Self {
        let cause = |cause| table.counter(Name::EgressSaved, &[("cause", cause)]);
        Self {
            on: config.egress.slim,
            window: config.compression.flush,
            counters: Counters { slim: cause("slim"), merge: cause("merge") },
        }
    }

    /// Whether this request's answer is to be slim: by its own wish, else as configured. A key's own switch
    /// (`auth.keys[].slim`) belongs between the two.
    fn wanted(&self, headers: &mut HeaderMap) -> bool {
        let wished = match headers.remove(WISH).as_ref().map(HeaderValue::as_bytes) {
            Some(b"1") => true,
            Some(b"0") => false,
            _ => self.on,
        };
        wished && !forbids(headers)
    }

    fn answer(&self, mut response: Response, record: &Record) -> Response {
        let Some(form) = form(&response, record.endpoint) else { return response };
        let body = match response.body().as_whole() {
            Some(bytes) => match self.whole(form, bytes) {
                Some(smaller) => Body::whole(smaller),
                None => return response,
            },
            None => self.stream(form, std::mem::replace(response.body_mut(), Body::empty())),
        };
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = body;
        response
    }

    /// A whole answer: all of it is there together. `None` = it has nothing to lose.
    fn whole(&self, form: Form, bytes: &Bytes) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(bytes.len());
        let saved = match form {
            Form::Events(kind) => {
                let mut slimmer = Slimmer::new(kind, self.window.is_some());
                slimmer.push(bytes, &mut out);
                slimmer.finish(&mut out);
                slimmer.take_saved()
            }
            Form::Json => {
                let mut minifier = Minifier::default();
                minifier.push(bytes, &mut out);
                minifier.finish(&mut out);
                Saved { slim: (bytes.len() - out.len()) as u64, merge: 0 }
            }
        };
        self.counters.add(saved);
        (saved != Saved::default()).then_some(out)
    }

    fn stream(&self, form: Form, body: Body) -> Body {
        let counters = self.counters.clone();
        match form {
            Form::Events(kind) => {
                let slimmer = Slimmer::new(kind, self.window.is_some());
                Body::stream(Slimmed::new(body, slimmer, self.window, counters))
            }
            Form::Json => Body::stream(Minified::new(body, counters)),
        }
    }
}

impl Counters {
    fn add(&self, saved: Saved) {
        if saved.slim > 0 {
            self.slim.increment(saved.slim);
        }
        if saved.merge > 0 {
            self.merge.increment(saved.merge);
        }
    }
}

/// What can be made smaller of this answer; `None` = nothing.
fn form(response: &Response, endpoint: Endpoint) -> Option<Form> {
    let headers = response.headers();
    if endpoint == Endpoint::Passthrough
        || !response.status().is_success()
        || response.body().is_end_stream()
        || names_bytes(headers)
        || forbids(headers)
    {
        return None;
    }
    let content_type = headers.get(header::CONTENT_TYPE)?.as_bytes();
    let essence = content_type.split(|b| *b == b';').next()?.trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") {
        return Some(Form::Json);
    }
    if !essence.eq_ignore_ascii_case(b"text/event-stream") {
        return None;
    }
    match endpoint {
        Endpoint::Chat => Some(Form::Events(Kind::Chat)),
        Endpoint::Completions => Some(Form::Events(Kind::Completions)),
        // Nothing in their events repeats, or they are numbered.
        _ => None,
    }
}

/// Whether the head says something of the very bytes: a coding, a range, a digest, a strong validator.
fn names_bytes(headers: &HeaderMap) -> bool {
    headers.iter().any(|(name, value)| match *name {
        header::CONTENT_ENCODING => !value.as_bytes().eq_ignore_ascii_case(b"identity"),
        header::CONTENT_RANGE => true,
        header::ETAG => !value.as_bytes().starts_with(b"W/"),
        _ => matches!(name.as_str(), "digest" | "content-digest" | "repr-digest" | "content-md5"),
    })
}

/// `Cache-Control: no-transform`, of either side.
fn forbids(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|value| {
        value.as_bytes().split(|b| *b == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    })
}
