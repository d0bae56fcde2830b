//! One answer in its other shape: a stream made plain, a plain answer made a stream.
//!
//! Only what is proven. Every event and every member is compared with the form that is known of an engine, name by name
//! in its order; whatever has one member more, one less, or another order is not converted. Values are carried over as
//! the engine wrote them, byte for byte.
//!
//! | engine | stream → plain | plain → stream |
//! |---|---|---|
//! | llama.cpp | the bytes of its plain form: chat, completions, responses, messages | chat, completions, messages |
//! | vLLM 0.32 | the bytes of its plain form: chat, completions | chat, completions |
//!
//! Each kind of value is that of the run that is kept: ids, `created`, llama.cpp's `timings`. A stream that is made
//! from a plain answer has all text in one event (one for each token where log probabilities tell them apart): where
//! the engine would have cut it is not known. Every event is one the engine could have sent, and what a client gathers
//! from them is the plain answer.
//!
//! Not converted: tools and reasoning (engines' two shapes differ), empty texts, streams without usage, SGLang (its
//! plain form has a `weight_version` that its stream does not tell), other versions of vLLM (each writes other `null`s),
//! llama.cpp's plain responses (their stream has `timings`), and log probabilities whose last token only one shape has.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::entry::{Entry, Shape};
use crate::protocol::{endpoint::Endpoint, sse::Scanner};

mod llamacpp;
mod question;
mod raw;
mod vllm;

pub use question::exchangeable;

#[cfg(test)]
mod tests;

/// The entry's body in shape `to`; `None` where that is not proven. The answer alone does not tell everything: the
/// request must be [`exchangeable`], too.
///
/// A stream that is made here tells its usage: [`Edit`](super::edit::Edit) takes it out for who did not ask.
pub fn convert(entry: &Entry, to: Shape) -> Option<Bytes> {
    if entry.shape == to {
        return Some(entry.body.clone());
    }
    let body = std::str::from_utf8(&entry.body).ok()?;
    let made = match (to, entry.endpoint) {
        (Shape::Plain, endpoint) => plain(endpoint, body),
        (Shape::Stream, Endpoint::Chat) => llamacpp::chat_to_stream(body).or_else(|| vllm::chat_to_stream(body)),
        (Shape::Stream, Endpoint::Completions) => {
            llamacpp::completion_to_stream(body).or_else(|| vllm::completion_to_stream(body))
        }
        (Shape::Stream, Endpoint::Messages) => llamacpp::message_to_stream(body),
        (Shape::Stream, _) => None,
    }?;
    Some(made.into())
}

/// The plain form of a stream that told its usage; `None` where that is not proven.
pub fn to_plain(endpoint: Endpoint, stream: &[u8]) -> Option<Bytes> {
    plain(endpoint, std::str::from_utf8(stream).ok()?).map(Bytes::from)
}

fn plain(endpoint: Endpoint, stream: &str) -> Option<String> {
    let events = events(stream)?;
    match endpoint {
        Endpoint::Chat => llamacpp::chat_to_plain(&events).or_else(|| vllm::chat_to_plain(&events)),
        Endpoint::Completions => llamacpp::completion_to_plain(&events).or_else(|| vllm::completion_to_plain(&events)),
        Endpoint::Responses => llamacpp::response_to_plain(&events),
        Endpoint::Messages => llamacpp::message_to_plain(&events),
        _ => None,
    }
}

/// Adds the head of the entry's answer in shape `to`, as its engine writes it there.
pub fn headers(headers: &mut HeaderMap, entry: &Entry, to: Shape) {
    for (name, value) in &entry.headers {
        headers.append(name, value.clone());
    }
    if entry.shape == to {
        return;
    }
    let llamacpp = headers.get(header::SERVER).is_some_and(|server| server == "llama.cpp");
    let kind = match (llamacpp, to) {
        (true, Shape::Plain) => HeaderValue::from_static("application/json; charset=utf-8"),
        (false, Shape::Stream) => HeaderValue::from_static("text/event-stream; charset=utf-8"),
        _ => content_type(to),
    };
    headers.insert(header::CONTENT_TYPE, kind);
    headers.remove(UNBUFFERED);
    if llamacpp && to == Shape::Stream {
        headers.insert(UNBUFFERED, HeaderValue::from_static("no"));
    }
}

/// Said of a stream, to proxies.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The type of a shape.
pub fn content_type(shape: Shape) -> HeaderValue {
    HeaderValue::from_static(match shape {
        Shape::Plain => "application/json",
        Shape::Stream => "text/event-stream",
    })
}

/// One event: its name and its data.
type Event<'a> = (&'a str, &'a str);

/// All events of a stream.
fn events(body: &str) -> Option<Vec<Event<'_>>> {
    let mut all = Vec::new();
    let mut scanner = Scanner::new(body.len());
    let mut known = true;
    scanner.push(body.as_bytes(), |event| {
        // The events lie in the body: only one of several data lines would be a copy.
        match (within(body, event.name), within(body, event.data)) {
            (Some(name), Some(data)) => all.push((name, data)),
            _ => known = false,
        }
    });
    (known && scanner.at_boundary() && !scanner.overflowed()).then_some(all)
}

/// `part` as a piece of `body`, if it is one.
fn within<'a>(body: &'a str, part: &[u8]) -> Option<&'a str> {
    if part.is_empty() {
        return Some("");
    }
    let start = (part.as_ptr() as usize).checked_sub(body.as_ptr() as usize)?;
    body.get(start..start.checked_add(part.len())?)
}
