//! Who may use the admin plane.
//!
//! With a token, whoever has it. Without one (allowed on a loopback address only) this machine: a browser's page from
//! elsewhere, and a name that was rebound to 127.0.0.1, are refused on every call.
//!
//! Notices of interruption have tokens of their own, which open nothing else: one for all backends, one for each.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, Method, StatusCode, header, request::Parts};

use crate::config::Secret;

/// The rules of one admin address.
#[derive(Clone, Debug)]
pub struct Rules {
    pub token: Option<Secret>,
    /// Opens the notices of all backends.
    pub notices: Option<Secret>,
    /// Opens those of one, by name.
    pub notices_of: Vec<(Arc<str>, Secret)>,
    /// On the data plane's address: then `/metrics` is guarded too.
    pub shared: bool,
    /// Its own address, which may stand in `Host` beside the loopback names.
    pub address: Option<SocketAddr>,
}

/// Why a call is refused, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub code: &'static str,
    pub message: &'static str,
}

const NO_TOKEN: Refusal = Refusal {
    status: StatusCode::UNAUTHORIZED,
    code: "unauthorized",
    message: "send `Authorization: Bearer` with the admin_token of this gateway",
};
const NO_NOTICE_TOKEN: Refusal = Refusal {
    message: "send `Authorization: Bearer` with the interruption_token of this gateway or of this backend",
    ..NO_TOKEN
};
const CROSS_SITE: Refusal = Refusal {
    status: StatusCode::FORBIDDEN,
    code: "cross_site",
    message: "calls from pages of other sites are refused; set admin_token to open this address to them",
};
const REBOUND: Refusal = Refusal {
    status: StatusCode::FORBIDDEN,
    code: "foreign_host",
    message: "the Host field must be a loopback address or localhost; set admin_token to use other names",
};

impl Rules {
    /// Whether `head` may have what lies at `path` (without the prefix of a shared address).
    ///
    /// # Errors
    /// What to answer instead.
    pub fn admit(&self, head: &Parts, path: &str) -> Result<(), Refusal> {
        let Some(token) = &self.token else { return self.admit_local(head) };
        if matches!(path, "/livez" | "/readyz") || path == "/metrics" && !self.shared {
            return Ok(());
        }
        match notice_of(path) {
            _ if has(head, token) => Ok(()),
            Some(name) if self.may_give_notice(head, name) => Ok(()),
            Some(_) => Err(NO_NOTICE_TOKEN),
            None => Err(NO_TOKEN),
        }
    }

    fn may_give_notice(&self, head: &Parts, name: &str) -> bool {
        let own = self.notices_of.iter().filter(|(of, _)| **of == *name).map(|(_, token)| token);
        head.method == Method::POST && self.notices.iter().chain(own).any(|token| has(head, token))
    }

    /// Whether a probe's caller may read reasons, not just the verdict: they name files and lines. On an address that
    /// clients share, only who has the token.
    pub fn tells_reasons(&self, head: &Parts) -> bool {
        !self.shared || self.token.as_ref().is_some_and(|token| has(head, token))
    }

    fn admit_local(&self, head: &Parts) -> Result<(), Refusal> {
        if !self.is_own_host(head) {
            return Err(REBOUND);
        }
        if is_cross_site(&head.headers, &head.method) { Err(CROSS_SITE) } else { Ok(()) }
    }

    fn is_own_host(&self, head: &Parts) -> bool {
        let host = head.headers.get(header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
        // HTTP/1.0 may leave it out; a browser never does.
        host.is_none_or(|host| is_local(name_of(host), self.address))
    }
}

/// The backend whose notices are taken at `path`.
pub(super) fn notice_of(path: &str) -> Option<&str> {
    path.strip_prefix("/api/v1/backends/")?.strip_suffix("/interruption")
}

fn has(head: &Parts, token: &Secret) -> bool {
    let given = head.headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
    let Some((scheme, given)) = given.split_at_checked(b"Bearer ".len()) else { return false };
    scheme.eq_ignore_ascii_case(b"Bearer ") && equal(given, token.reveal().as_bytes())
}

/// The host without its port and brackets.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((literal, _)) => literal,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_local(name: &str, own: Option<SocketAddr>) -> bool {
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback() || own.is_some_and(|own| own.ip() == ip))
}

/// Browsers say where a call comes from: `Sec-Fetch-Site` always, `Origin` on what may change something.
fn is_cross_site(headers: &HeaderMap, method: &Method) -> bool {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        // A link that a person typed or followed to look at something.
        return !matches!(site, "same-origin" | "none");
    }
    match text(header::ORIGIN) {
        None => headers.contains_key(header::ORIGIN),
        Some(origin) => {
            let own = text(header::HOST).is_some_and(|host| origin.split_once("://").is_some_and(|(_, at)| at == host));
            !own || method == Method::CONNECT
        }
    }
}

/// Takes as long whatever the first difference.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |all, (x, y)| all | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, fields: &[(&str, &str)]) -> Parts {
        let request =
            fields.iter().fold(http::Request::builder().method(method).uri("/"), |r, (n, v)| r.header(*n, *v));
        request.body(()).unwrap().into_parts().0
    }

    fn rules(token: Option<&str>, shared: bool) -> Rules {
        let address = Some(([127, 0, 0, 1], 9090).into());
        Rules { token: token.map(Secret::new), notices: None, notices_of: Vec::new(), shared, address }
    }

    #[test]
    fn without_a_token_this_machine_and_no_page_of_another_site() {
        let rules = rules(None, false);
        let ok = |fields: &[(&str, &str)]| rules.admit(&head("POST", fields), "/api/v1/drain");
        for host in ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "LOCALHOST", "127.9.9.9"] {
            assert_eq!(ok(&[("host", host)]), Ok(()), "{host}");
        }
        for host in ["evil.test", "evil.test:9090", "127.0.0.1.evil.test", "10.0.0.1", "localhost.evil.test:9090"] {
            assert_eq!(ok(&[("host", host)]), Err(REBOUND), "{host}");
        }
        let local = ("host", "127.0.0.1:9090");
        assert_eq!(ok(&[local, ("origin", "http://127.0.0.1:9090")]), Ok(()));
        assert_eq!(ok(&[local, ("origin", "http://evil.test")]), Err(CROSS_SITE));
        assert_eq!(ok(&[local, ("origin", "null")]), Err(CROSS_SITE));
        assert_eq!(ok(&[local, ("sec-fetch-site", "same-origin")]), Ok(()));
        assert_eq!(ok(&[local, ("sec-fetch-site", "cross-site")]), Err(CROSS_SITE));
        assert_eq!(ok(&[local, ("sec-fetch-site", "same-site")]), Err(CROSS_SITE));
    }

    #[test]
    fn with_a_token_only_who_has_it() {
        let own = rules(Some("s3cret"), false);
        let shared = rules(Some("s3cret"), true);
        for (given, good) in [
            (None, false),
            (Some("Bearer s3cret"), true),
            (Some("Bearer s3cres"), false),
            (Some("Basic s3cret"), false),
            (Some("Bearer s3cret2"), false),
        ] {
            let fields: Vec<_> = given.map(|given| ("authorization", given)).into_iter().collect();
            let head = head("GET", &fields);
            assert_eq!(own.admit(&head, "/api/v1/backends").is_ok(), good, "{given:?}");
            assert_eq!(shared.admit(&head, "/metrics").is_ok(), good, "{given:?}");
            for open in ["/livez", "/readyz"] {
                assert_eq!((own.admit(&head, open), shared.admit(&head, open)), (Ok(()), Ok(())));
            }
            assert_eq!(own.admit(&head, "/metrics"), Ok(()));
        }
    }
    #[test]
    fn a_token_for_notices_opens_nothing_else() {
        let mut rules = rules(Some("admin"), true);
        rules.notices = Some(Secret::new("all"));
        rules.notices_of = vec![("a".into(), Secret::new("one")), ("a:1".into(), Secret::new("two"))];
        let ok = |method: &str, path: &str, token: &str| {
            rules.admit(&head(method, &[("authorization", &format!("Bearer {token}"))]), path).is_ok()
        };
        let (a, b, port) =
            ("/api/v1/backends/a/interruption", "/api/v1/backends/b/interruption", "/api/v1/backends/a:1/interruption");
        for (token, opens) in [
            ("admin", [true, true, true]),
            ("all", [true, true, true]),
            ("one", [true, false, false]),
            ("two", [false, false, true]),
            ("none", [false; 3]),
        ] {
            assert_eq!([a, b, port].map(|path| ok("POST", path, token)), opens, "{token}");
            let others = ["/api/v1/backends", "/api/v1/backends/a/drain", "/api/v1/config", "/metrics"];
            assert_eq!(others.map(|path| ok("POST", path, token)), [token == "admin"; 4], "{token}");
            assert_eq!(ok("GET", a, token), token == "admin");
        }
    }
}
