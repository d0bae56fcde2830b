//! What of a head may pass a proxy, and what it must add (RFC 9110 §7.6, RFC 7239).

use std::{fmt::Write as _, net::IpAddr};

use http::{
    HeaderMap, HeaderName, HeaderValue, Version,
    header::{self, Entry},
};

use crate::{
    config::Cidr,
    error::{Error, Kind},
    fleet::interruption,
};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// What a backend tells an outer Sluicegate; it never goes further.
pub const INTERRUPTION: HeaderName = HeaderName::from_static(interruption::HEADER);

/// Fields of the gateway's own for a backend: each once, in the place of any of the same name.
pub type Added = Vec<(HeaderName, HeaderValue)>;

/// As many as there ever are.
pub const MOST_ADDED: usize = 6;

/// How this instance names itself in `Via`.
#[derive(Clone, Debug)]
pub struct Via {
    name: String,
    http1: HeaderValue,
    http2: HeaderValue,
}

impl Via {
    /// `instance` is unique to this process: two Sluicegates in a row are no loop.
    pub fn new(instance: &str) -> Self {
        let name = format!("sluicegate-{instance}");
        let value =
            |version| HeaderValue::try_from(format!("{version} {name}")).expect("an instance name is visible ASCII");
        Self { http1: value("1.1"), http2: value("2.0"), name }
    }

    /// This instance, as HTTP/1.1 names it.
    pub fn own(&self) -> &HeaderValue {
        &self.http1
    }

    /// Whether a request came through a Sluicegate.
    pub fn shows_one(headers: &HeaderMap) -> bool {
        let is_one = |hop: &[u8]| {
            let name = hop.trim_ascii().split(u8::is_ascii_whitespace).nth(1);
            name.is_some_and(|name| name.starts_with(b"sluicegate-"))
        };
        headers.get_all(header::VIA).iter().any(|value| value.as_bytes().split(|b| *b == b',').any(is_one))
    }

    /// Adds this instance to the way `headers` came: in `added` where it is the first.
    ///
    /// # Errors
    /// [`Kind::LoopDetected`] when it is there already.
    pub fn stamp(&self, headers: &mut HeaderMap, added: &mut Added, version: Version) -> Result<(), Error> {
        let own = if version == Version::HTTP_2 { &self.http2 } else { &self.http1 };
        match headers.entry(header::VIA) {
            Entry::Vacant(_) => added.push((header::VIA, own.clone())),
            Entry::Occupied(mut way) => {
                let been_here = |value: &HeaderValue| {
                    value
                        .as_bytes()
                        .split(|b| *b == b',')
                        .any(|hop| hop.trim_ascii().split(u8::is_ascii_whitespace).nth(1) == Some(self.name.as_bytes()))
                };
                if way.iter().any(been_here) {
                    return Err(Error::new(
                        Kind::LoopDetected,
                        format!("this request came through {} already: a backend's url leads back to it", self.name),
                    ));
                }
                way.append(own.clone());
            }
        }
        Ok(())
    }
}

/// Removes what concerns the client's connection only, and fields that only this gateway may set.
pub fn strip_request(headers: &mut HeaderMap) {
    // `TE: trailers` is the one coding that may pass: gRPC insists on it.
    // Looked for, not hashed: most heads have none.
    let trailers = headers.iter().find(|(name, _)| **name == header::TE).is_some_and(|(_, te)| {
        te.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    });
    strip(headers, |name| is_hop_by_hop(name) || matches!(*name, header::EXPECT | header::CONTENT_LENGTH));
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what concerns the backend's connection only. Gives what it told of its own interruption.
pub fn strip_response(headers: &mut HeaderMap) -> Option<HeaderValue> {
    strip(headers, is_hop_by_hop)
}

/// Removes the fields that `goes` picks, and those that `Connection` names. The names are looked through, since most
/// heads have none of them and each removal of an absent field would cost a hash.
fn strip(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) -> Option<HeaderValue> {
    let mut told = None;
    while let Some(name) = headers.keys().find(|name| goes(name)).cloned() {
        if name == header::CONNECTION {
            for name in named_in_connection(headers) {
                headers.remove(name);
            }
        }
        let is_told = name == INTERRUPTION;
        let removed = headers.remove(name);
        if is_told {
            told = removed;
        }
    }
    told
}

/// Fields that concern one connection only, and what a backend tells an outer Sluicegate. `te`, `upgrade` and
/// `transfer-encoding` are among them: what is forwarded is framed anew.
fn is_hop_by_hop(name: &HeaderName) -> bool {
    // By length first: this is asked for every field of every head.
    match name.as_str().len() {
        2 => name == header::TE,
        7 => name == header::UPGRADE,
        10 => name == header::CONNECTION || name.as_str() == "keep-alive",
        16 => name.as_str() == "proxy-connection",
        17 => name == header::TRANSFER_ENCODING,
        19 => name == header::PROXY_AUTHORIZATION,
        25 => *name == INTERRUPTION,
        _ => false,
    }
}

fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        // These are the message's own: naming them in Connection is an attack (RFC 9110 §7.6.1).
        .filter(|name| {
            !matches!(*name, header::HOST | header::CONTENT_LENGTH | header::CONTENT_TYPE | header::AUTHORIZATION)
        })
        .collect()
}

/// What the connection adds to each of its requests; made once per connection.
#[derive(Debug)]
pub struct Forwarded {
    trusted: bool,
    address: HeaderValue,
    proto: HeaderValue,
    forwarded: HeaderValue,
}

impl Forwarded {
    /// For a client at `address` (`None` on a unix socket, which is trusted: it is this machine).
    pub fn new(address: Option<IpAddr>, tls: bool, trusted: &[Cidr]) -> Self {
        let proto = if tls { "https" } else { "http" };
        let mut node = String::new();
        match address {
            Some(IpAddr::V6(ip)) => write!(node, "\"[{ip}]\""),
            Some(ip) => write!(node, "{ip}"),
            None => write!(node, "unknown"),
        }
        .expect("writing to a String does not fail");
        let text = |s: String| HeaderValue::try_from(s).expect("an address is visible ASCII");
        Self {
            trusted: address.is_none_or(|ip| trusted.iter().any(|net| net.contains(ip))),
            address: text(address.map_or_else(|| "unknown".to_owned(), |ip| ip.to_string())),
            proto: HeaderValue::from_static(proto),
            forwarded: text(format!("for={node};proto={proto}")),
        }
    }

    /// The client's address as text; `unknown` where it has none.
    pub fn address(&self) -> &str {
        self.address.to_str().unwrap_or("unknown")
    }

    /// Appends to what a trusted proxy said; replaces what anybody else claims.
    pub fn stamp(&self, headers: &mut HeaderMap, added: &mut Added, host: Option<HeaderValue>) {
        if self.trusted {
            added.push((X_FORWARDED_FOR, joined(headers, &X_FORWARDED_FOR, &self.address)));
            added.push((header::FORWARDED, joined(headers, &header::FORWARDED, &self.forwarded)));
            if !headers.contains_key(X_FORWARDED_PROTO) {
                added.push((X_FORWARDED_PROTO, self.proto.clone()));
            }
            if let Some(host) = host.filter(|_| !headers.contains_key(X_FORWARDED_HOST)) {
                added.push((X_FORWARDED_HOST, host));
            }
            return;
        }
        added.push((X_FORWARDED_FOR, self.address.clone()));
        added.push((header::FORWARDED, self.forwarded.clone()));
        added.push((X_FORWARDED_PROTO, self.proto.clone()));
        match host {
            Some(host) => added.push((X_FORWARDED_HOST, host)),
            None => drop(headers.remove(X_FORWARDED_HOST)),
        }
    }
}

/// What `headers` say under `name`, and `own` behind it.
fn joined(headers: &HeaderMap, name: &HeaderName, own: &HeaderValue) -> HeaderValue {
    let joined = headers.get_all(name).iter().fold(Vec::new(), |mut all: Vec<u8>, value| {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b", ");
        all
    });
    if joined.is_empty() {
        return own.clone();
    }
    HeaderValue::from_maybe_shared(bytes::Bytes::from([&joined, own.as_bytes()].concat()))
        .unwrap_or_else(|_| own.clone())
}

#[cfg(test)]
mod tests;
