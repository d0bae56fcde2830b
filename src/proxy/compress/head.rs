//! What an answer's head says of being coded, and what it has to say once it is.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::names;
use crate::{protocol::coding::Coding, proxy::Response};

/// Whether an answer may be coded at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    No,
    /// A text that is of use once it is whole.
    Plain,
    /// Events: each is of use by itself.
    Stream,
}

impl Fit {
    pub(super) fn of(response: &Response) -> Self {
        let status = response.status();
        if status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::PARTIAL_CONTENT)
        {
            return Self::No;
        }
        let mut fit = Self::No;
        // One pass: each look-up would cost a hash.
        for (name, value) in response.headers() {
            let stays = match *name {
                header::CONTENT_TYPE => {
                    fit = of_type(value.as_bytes());
                    fit == Self::No
                }
                header::CONTENT_ENCODING => !value.as_bytes().eq_ignore_ascii_case(b"identity"),
                header::CACHE_CONTROL => names(value, b"no-transform"),
                header::CONTENT_RANGE => true,
                _ => is_digest(name),
            };
            if stays {
                return Self::No;
            }
        }
        fit
    }
}

/// Digests of the very bytes (RFC 9530, RFC 3230): they would not fit any more.
fn is_digest(name: &HeaderName) -> bool {
    let name = name.as_str();
    match name.len() {
        6 => name == "digest",
        11 => name == "content-md5" || name == "repr-digest",
        14 => name == "content-digest",
        _ => false,
    }
}

/// Text compresses; images, sound and archives are compressed already.
fn of_type(content_type: &[u8]) -> Fit {
    let essence = content_type.split(|b| *b == b';').next().unwrap_or_default().trim_ascii();
    let is = |name: &str| essence.eq_ignore_ascii_case(name.as_bytes());
    let starts =
        |with: &str| essence.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    let ends = |with: &str| {
        let at = essence.len().checked_sub(with.len());
        at.is_some_and(|at| essence[at..].eq_ignore_ascii_case(with.as_bytes()))
    };
    const STREAMS: [&str; 7] = [
        "text/event-stream",
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
        "application/stream+json",
    ];
    const APPLICATION: &str = "application/";
    const TEXTS: [&str; 6] = ["xml", "javascript", "x-javascript", "ecmascript", "yaml", "x-yaml"];
    // The most common first.
    if !is("application/json") && STREAMS.into_iter().any(is) {
        return Fit::Stream;
    }
    let named = || TEXTS.into_iter().any(|text| essence[APPLICATION.len()..].eq_ignore_ascii_case(text.as_bytes()));
    let plain = is("application/json")
        || starts("text/")
        || ends("+json")
        || ends("+xml")
        || ends("+yaml")
        || starts(APPLICATION) && named();
    if plain { Fit::Plain } else { Fit::No }
}

/// Says that the coding depends on who asks.
pub(super) fn vary(headers: &mut HeaderMap) {
    const FIELD: HeaderValue = HeaderValue::from_static("Accept-Encoding");
    let said = headers.get_all(header::VARY).iter().any(|value| names(value, b"accept-encoding") || names(value, b"*"));
    if said {
        return;
    }
    let merged = headers.get(header::VARY).and_then(|first| {
        let merged = [first.as_bytes(), b", ", FIELD.as_bytes()].concat();
        HeaderValue::from_bytes(&merged).ok().filter(|_| !first.is_empty())
    });
    match headers.entry(header::VARY) {
        header::Entry::Occupied(mut vary) => drop(std::mem::replace(vary.get_mut(), merged.unwrap_or(FIELD))),
        header::Entry::Vacant(vary) => drop(vary.insert(FIELD)),
    }
}

/// Says that the body is in `coding`, and no longer what was true of it without.
pub(super) fn coded(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    // Equal in meaning, not in bytes (RFC 9110 §8.8.3.3).
    if let Some(tag) = headers.get_mut(header::ETAG)
        && tag.as_bytes().starts_with(b"\"")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        *tag = weak;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::Body;

    fn answer(status: u16, fields: &[(&'static str, &'static str)]) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in fields {
            response.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        response
    }

    #[test]
    fn text_fits() {
        for (content_type, fit) in [
            ("application/json", Fit::Plain),
            ("Application/JSON; charset=utf-8", Fit::Plain),
            ("application/problem+json", Fit::Plain),
            ("text/plain", Fit::Plain),
            ("TEXT/html;charset=utf-8", Fit::Plain),
            ("image/svg+xml", Fit::Plain),
            ("application/xml", Fit::Plain),
            ("application/javascript", Fit::Plain),
            ("text/event-stream; charset=utf-8", Fit::Stream),
            ("application/x-ndjson", Fit::Stream),
            ("application/octet-stream", Fit::No),
            ("audio/mpeg", Fit::No),
            ("image/png", Fit::No),
            ("application/grpc", Fit::No),
            ("xjson", Fit::No),
            ("", Fit::No),
        ] {
            assert_eq!(Fit::of(&answer(200, &[("content-type", content_type)])), fit, "{content_type}");
        }
        assert_eq!(Fit::of(&answer(200, &[])), Fit::No);
    }

    #[test]
    fn what_was_said_otherwise_stays() {
        let json = ("content-type", "application/json");
        for (status, field) in [
            (200, ("content-encoding", "gzip")),
            (200, ("content-encoding", "identity, br")),
            (200, ("cache-control", "private, No-Transform")),
            (200, ("content-range", "bytes 0-1/2")),
            (200, ("content-digest", "sha-256=:x:")),
            (200, ("repr-digest", "sha-256=:x:")),
            (200, ("digest", "md5=x")),
            (200, ("content-md5", "x")),
            (206, ("x", "y")),
            (204, ("x", "y")),
            (304, ("x", "y")),
            (101, ("x", "y")),
        ] {
            assert_eq!(Fit::of(&answer(status, &[json, field])), Fit::No, "{status} {field:?}");
        }
        for (status, field) in
            [(200, ("content-encoding", "identity")), (404, ("cache-control", "no-store")), (500, ("x", "y"))]
        {
            assert_eq!(Fit::of(&answer(status, &[json, field])), Fit::Plain, "{status} {field:?}");
        }
    }

    #[test]
    fn vary_is_merged() {
        for (before, after) in [
            (&[][..], &["Accept-Encoding"][..]),
            (&["Origin"], &["Origin, Accept-Encoding"]),
            (&["Origin", "accept"], &["Origin, Accept-Encoding", "accept"]),
            (&["origin, accept-encoding"], &["origin, accept-encoding"]),
            (&["a", "Accept-Encoding"], &["a", "Accept-Encoding"]),
            (&["*"], &["*"]),
            (&[""], &["Accept-Encoding"]),
        ] {
            let fields: Vec<_> = before.iter().map(|value| ("vary", *value)).collect();
            let mut headers = answer(200, &fields).headers().clone();
            vary(&mut headers);
            let values: Vec<_> = headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(values, after);
        }
    }

    #[test]
    fn a_coded_head_says_only_what_holds() {
        let fields = [("etag", "\"a\""), ("content-length", "9"), ("accept-ranges", "bytes"), ("x", "y")];
        let mut headers = answer(200, &fields).headers().clone();
        coded(&mut headers, Coding::Zstd);
        let mut left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("content-encoding", "zstd"), ("etag", "W/\"a\""), ("x", "y")]);
        let mut weak = answer(200, &[("etag", "W/\"a\"")]).headers().clone();
        coded(&mut weak, Coding::Gzip);
        assert_eq!(weak["etag"], "W/\"a\"");
    }
}
