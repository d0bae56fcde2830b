//! What may be kept: whole, good answers only.
//!
//! [`head`] judges status and headers and says which headers may be given again; [`body`] judges the content once it
//! is complete by its framing. Both name the reason when they refuse. Whatever is not understood is refused: a miss
//! costs one computation, a wrong answer costs trust.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::entry::Shape;
use crate::protocol::{endpoint::Endpoint, sse::Scanner};

mod content;

#[cfg(test)]
mod tests;

use content::Content;

/// Why an answer is not kept, as a word for metrics and logs.
pub type Reason = &'static str;

/// The headers that are given again. A list of what may be, not of what may not: engines and proxies before them invent
/// ids, limits and timings faster than any list of those could follow. Framing, dates and `Age` are each answer's own.
fn is_replayed(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_TYPE
            | header::CONTENT_LANGUAGE
            | header::VARY
            | header::SERVER
            | header::X_CONTENT_TYPE_OPTIONS
            | header::ACCESS_CONTROL_ALLOW_ORIGIN
            | header::ACCESS_CONTROL_EXPOSE_HEADERS
    ) || matches!(name.as_str(), "x-accel-buffering" | "openai-version" | "anthropic-version" | "x-robots-tag")
}

/// Judges the head of an answer of `shape`. `keyed` are the request headers that are part of the key (`cache.vary`).
///
/// # Errors
/// Why it may not be kept.
pub fn head(
    endpoint: Endpoint,
    shape: Shape,
    status: StatusCode,
    headers: &HeaderMap,
    keyed: &[HeaderName],
) -> Result<HeaderMap, Reason> {
    if status != StatusCode::OK {
        return Err("status");
    }
    if shape == Shape::Stream && !streams(endpoint) {
        return Err("content-type");
    }
    let found = Found::of(shape, headers, keyed);
    for (wrong, reason) in [
        (found.types != 1 || !found.fits, "content-type"),
        (found.cookie, "set-cookie"),
        (found.coded, "content-encoding"),
        (found.forbidden, "cache-control"),
        (found.varies, "vary"),
    ] {
        if wrong {
            return Err(reason);
        }
    }
    Ok(replayable(headers))
}

/// What a head has that matters here: found in one pass, where each look-up would cost a hash.
#[derive(Default)]
struct Found {
    types: usize,
    fits: bool,
    cookie: bool,
    coded: bool,
    forbidden: bool,
    varies: bool,
}

impl Found {
    fn of(shape: Shape, headers: &HeaderMap, keyed: &[HeaderName]) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            match *name {
                header::CONTENT_TYPE => {
                    found.types += 1;
                    found.fits = is_of(shape, value);
                }
                header::SET_COOKIE => found.cookie = true,
                header::CONTENT_ENCODING => found.coded |= !value.as_bytes().eq_ignore_ascii_case(b"identity"),
                header::CACHE_CONTROL => found.forbidden |= forbids(value),
                header::VARY => found.varies |= !varies_by_what_is_known(value, keyed),
                _ => {}
            }
        }
        found
    }
}

/// Judges a body that is complete by its framing, in one pass.
///
/// # Errors
/// Why it may not be kept.
pub fn body(endpoint: Endpoint, shape: Shape, body: &[u8]) -> Result<(), Reason> {
    let mut content = Content::of(endpoint).ok_or("kind")?;
    if std::str::from_utf8(body).is_err() {
        return Err("utf-8");
    }
    match shape {
        Shape::Plain => content.plain(body),
        Shape::Stream if streams(endpoint) => stream(&mut content, body),
        Shape::Stream => Err("kind"),
    }
}

/// Endpoints that have streams.
fn streams(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completions | Endpoint::Responses | Endpoint::Messages)
}

fn stream(content: &mut Content, body: &[u8]) -> Result<(), Reason> {
    // The bytes are here already: nothing is held but an end without its blank line.
    let mut scanner = Scanner::new(body.len());
    let mut verdict = Ok(());
    scanner.push(body, |event| {
        if verdict.is_ok() {
            verdict = content.event(event);
        }
    });
    verdict?;
    if !scanner.at_boundary() || scanner.overflowed() {
        return Err("cut");
    }
    content.ended()
}

/// Whether a `Content-Type` is that of `shape`.
fn is_of(shape: Shape, value: &HeaderValue) -> bool {
    let essence = value.as_bytes().split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let wanted: &[u8] = match shape {
        Shape::Plain => b"application/json",
        Shape::Stream => b"text/event-stream",
    };
    essence.eq_ignore_ascii_case(wanted)
}

/// Whether a `Cache-Control` line forbids that the answer is used again without asking (RFC 9111 §5.2.2). A line that
/// is not text forbids it too.
fn forbids(value: &HeaderValue) -> bool {
    let Ok(line) = value.to_str() else { return true };
    line.split(',').any(|directive| {
        let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
        let argument = argument.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" | "private" => true,
            "max-age" | "s-maxage" => argument.bytes().all(|b| b == b'0'),
            _ => false,
        }
    })
}

/// Whether the answer varies only by headers that cannot differ between two askers of one key: those in the key, and
/// those that stay at the gateway on a call whose answer may be kept. Any other, `*` too, is refused.
fn varies_by_what_is_known(value: &HeaderValue, keyed: &[HeaderName]) -> bool {
    let Ok(line) = value.to_str() else { return false };
    line.split(',').map(str::trim).filter(|name| !name.is_empty()).all(|name| {
        let stays_here = [
            header::ORIGIN,
            header::ACCEPT_ENCODING,
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::ACCESS_CONTROL_REQUEST_HEADERS,
        ];
        stays_here.iter().chain(keyed).any(|known| known.as_str().eq_ignore_ascii_case(name))
    })
}

/// A header that `Connection` names is the connection's own, whatever it is called.
fn replayable(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(4);
    let of_connection: Vec<_> =
        headers.iter().filter(|(name, _)| **name == header::CONNECTION).map(|(_, value)| value.as_bytes()).collect();
    let is_named = |name: &HeaderName| {
        let names = |value: &&[u8]| {
            value.split(|b| *b == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
        };
        of_connection.iter().any(names)
    };
    for (name, value) in headers {
        if is_replayed(name) && !is_named(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}
