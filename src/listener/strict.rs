//! What of a parsed head is still ambiguous, though hyper let it pass.
//!
//! hyper (with httparse and h2) refuses by itself: white space before a colon, obs-fold, bare CR, NUL and other
//! control bytes (RFC 9112 §2.2, §5.1, §5.2; RFC 9110 §5.5), a `Content-Length` that is not a number or differs from
//! another (§6.3), a `Transfer-Encoding` whose last coding is not chunked or that stands in an HTTP/1.0 head (§6.1),
//! chunk sizes that are not hexadecimal and endless chunk extensions (§7.1); in HTTP/2, connection fields and a length
//! that is not that of the DATA frames (RFC 9113 §8.1.1, §8.2.2).
//!
//! hyper normalises, so that nothing of it reaches a service, and a forwarded head is written anew: a `Content-Length`
//! beside `Transfer-Encoding` is removed and the connection closes after the answer (§6.3 item 3, §11.2), an equal
//! second `Content-Length` is removed, a lone LF ends a line of the head and empty lines before it are skipped (§2.2),
//! chunk extensions are dropped (§7.1.1), a fragment in the target is dropped.
//!
//! The rest is refused here. `tests/it/smuggling.rs` sends each of these as raw bytes.

use http::{HeaderMap, Method, Uri, Version, header, request::Parts, uri::Authority};

/// `Err` says why the request must be answered with 400 and its connection closed.
///
/// # Errors
/// The reason in a sentence, fit for the client.
pub fn check(head: &Parts) -> Result<(), &'static str> {
    if head.version >= Version::HTTP_2 {
        two_fields(&head.headers)?;
    } else {
        codings(&head.headers)?;
    }
    let host = host(&head.headers)?;
    target(&head.method, &head.uri, head.version)?;
    same(host, &head.uri, head.version)
}

/// RFC 9112 §6.1: `chunked` alone. Another coding before it we could not take off, and two spellings of it are what
/// smuggling is made of.
fn codings(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(only) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !only.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err("Transfer-Encoding may be `chunked`, once, and nothing else");
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err("Content-Length and Transfer-Encoding exclude each other");
    }
    Ok(())
}

/// RFC 9113 §8.2.1 and §8.2.2, as far as h2 does not look: white space around values, and more than one length.
fn two_fields(headers: &HeaderMap) -> Result<(), &'static str> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if headers.values().any(|value| blank(value.as_bytes().first()) || blank(value.as_bytes().last())) {
        return Err("a field value begins or ends with white space");
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("Content-Length is given more than once");
    }
    if headers.contains_key(header::TRANSFER_ENCODING) || headers.contains_key(header::UPGRADE) {
        return Err("a connection field has no place in HTTP/2");
    }
    Ok(())
}

/// RFC 9112 §3.2: exactly one `Host` at most, and a valid one. `None` when there is none.
fn host(headers: &HeaderMap) -> Result<Option<&[u8]>, &'static str> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let Some(host) = hosts.next() else { return Ok(None) };
    if hosts.next().is_some() {
        return Err("Host is given more than once");
    }
    let valid = host.is_empty()
        || is_plain(host.as_bytes())
        || Authority::try_from(host.as_bytes()).is_ok_and(|host| !host.as_str().contains(['@', ',']));
    if valid { Ok(Some(host.as_bytes())) } else { Err("Host is not a host with an optional port") }
}

/// Whether this is a name or an IPv4 address of the usual letters, with at most a port of four digits: then there is
/// nothing to parse.
fn is_plain(host: &[u8]) -> bool {
    let name = host.iter().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-')).count();
    match host[name..] {
        [] => name > 0,
        [b':', ref port @ ..] => name > 0 && matches!(port.len(), 1..=4) && port.iter().all(u8::is_ascii_digit),
        _ => false,
    }
}

/// RFC 9112 §3.2: the form of the target fits the method; RFC 9110 §4.2.4: no user name in it.
fn target(method: &Method, uri: &Uri, version: Version) -> Result<(), &'static str> {
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("the request target holds a user name");
    }
    if method == Method::CONNECT {
        let bare = uri.authority().is_some() && uri.scheme().is_none() && uri.path_and_query().is_none();
        return if bare { Ok(()) } else { Err("the target of CONNECT is a host and a port") };
    }
    let path = uri.path();
    if path == "*" {
        return if method == Method::OPTIONS { Ok(()) } else { Err("the target `*` goes with OPTIONS alone") };
    }
    if !path.starts_with('/') || (version < Version::HTTP_2 && uri.authority().is_some() && uri.scheme().is_none()) {
        return Err("the request target is neither a path nor an http URL");
    }
    if uri.scheme().is_some_and(|scheme| !matches!(scheme.as_str(), "http" | "https")) {
        return Err("the scheme of the request target is not http or https");
    }
    Ok(())
}

/// RFC 9112 §3.2, §3.2.2 and RFC 9113 §8.3.1: HTTP/1.1 needs a `Host`, and it says what the target says.
fn same(host: Option<&[u8]>, uri: &Uri, version: Version) -> Result<(), &'static str> {
    match (host, uri.authority()) {
        (None, None) if version >= Version::HTTP_11 => Err("Host is missing"),
        (None, _) if version == Version::HTTP_11 => Err("Host is missing"),
        (Some(host), Some(authority)) if !host.eq_ignore_ascii_case(authority.as_str().as_bytes()) => {
            Err("Host and the request target name different hosts")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn verdict(version: Version, method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn what_is_plain_is_an_authority() {
        for host in ["a", "a.b", "127.0.0.1:80", "a-b.c:9999", "0"] {
            assert!(is_plain(host.as_bytes()), "{host}");
            assert_eq!(Authority::try_from(host.as_bytes()).unwrap().as_str(), host);
        }
        for host in ["", ":80", "a:", "a:12345", "a:b", "a@b", "a,b", "[::1]", "a b", "a/b", "a:1:2"] {
            assert!(!is_plain(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn plain_requests_pass() {
        let v1 = Version::HTTP_11;
        assert_eq!(verdict(v1, "GET", "/", &[("host", "a")]), Ok(()));
        assert_eq!(verdict(v1, "GET", "/", &[("host", "")]), Ok(()));
        assert_eq!(verdict(v1, "GET", "/", &[("host", "[::1]:80")]), Ok(()));
        assert_eq!(verdict(v1, "GET", "http://a:1/x", &[("host", "A:1")]), Ok(()));
        assert_eq!(verdict(v1, "OPTIONS", "*", &[("host", "a")]), Ok(()));
        assert_eq!(verdict(v1, "CONNECT", "a:1", &[("host", "a:1")]), Ok(()));
        assert_eq!(verdict(v1, "POST", "/", &[("host", "a"), ("transfer-encoding", "Chunked")]), Ok(()));
        assert_eq!(verdict(Version::HTTP_10, "GET", "/", &[]), Ok(()));
        assert_eq!(verdict(Version::HTTP_2, "GET", "http://a/x", &[]), Ok(()));
        assert_eq!(verdict(Version::HTTP_2, "GET", "http://a/x", &[("host", "a")]), Ok(()));
    }

    #[test]
    fn ambiguous_requests_do_not() {
        let v1 = Version::HTTP_11;
        let v2 = Version::HTTP_2;
        type Case<'a> = (Version, &'a str, &'a str, &'a [(&'a str, &'a str)]);
        let cases: &[Case<'_>] = &[
            (v1, "GET", "/", &[]),
            (v1, "GET", "http://a/", &[]),
            (v1, "GET", "/", &[("host", "a"), ("host", "a")]),
            (v1, "GET", "/", &[("host", "a, b")]),
            (v1, "GET", "/", &[("host", "a,b")]),
            (v1, "GET", "/", &[("host", "u@a")]),
            (v1, "GET", "/", &[("host", "a/b")]),
            (v1, "GET", "http://a/", &[("host", "b")]),
            (v1, "GET", "http://u@a/", &[("host", "u@a")]),
            (v1, "GET", "ftp://a/", &[("host", "a")]),
            (v1, "GET", "*", &[("host", "a")]),
            (v1, "GET", "a:80", &[("host", "a:80")]),
            (v1, "CONNECT", "/", &[("host", "a")]),
            (v1, "POST", "/", &[("host", "a"), ("transfer-encoding", "gzip, chunked")]),
            (v1, "POST", "/", &[("host", "a"), ("transfer-encoding", "chunked, chunked")]),
            (v1, "POST", "/", &[("host", "a"), ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
            (v1, "POST", "/", &[("host", "a"), ("transfer-encoding", "chunked"), ("content-length", "3")]),
            (v2, "POST", "http://a/", &[("content-length", "3"), ("content-length", "3")]),
            (v2, "GET", "http://a/", &[("x", " y")]),
            (v2, "GET", "http://a/", &[("x", "y\t")]),
            (v2, "GET", "http://a/", &[("host", "b")]),
            (v2, "GET", "/", &[]),
        ];
        for (version, method, uri, headers) in cases {
            assert!(verdict(*version, method, uri, headers).is_err(), "{version:?} {method} {uri} {headers:?}");
        }
    }
}
