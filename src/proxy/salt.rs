//! Tenants apart in a backend's prefix cache (`normalize.isolate_prefix_cache`).
//!
//! How long a prefill takes tells whether others sent the same text before (CVE-2025-46570). Engines that keep the
//! prefixes of requests with unlike `cache_salt` apart are given one that only this gateway can make. One that a client
//! sends itself does not isolate, as anybody may send the same; it goes into the gateway's, so that it still divides
//! that client's own prefixes.

use std::fmt;

use http::HeaderMap;
use rustls::crypto::ring;

use super::cache::is_credential;
use crate::{config::Secret, listener::Fingerprint};

/// Makes salts. One for all workers: a tenant's prefixes are good on whichever it comes to.
#[derive(Clone, Copy)]
pub struct Salts([u8; 32]);

/// One tenant's.
#[derive(Clone, Copy)]
pub struct Salt([u8; 32]);

impl Salts {
    /// Salts that every gateway with this secret makes alike; without one, of this process alone.
    pub fn new(secret: Option<&Secret>) -> Self {
        let drawn: [u8; 32];
        let secret = match secret {
            Some(secret) => secret.reveal().as_bytes(),
            None => {
                let mut bytes = [0; 32];
                ring::default_provider().secure_random.fill(&mut bytes).expect("the system gives random bytes");
                drawn = bytes;
                &drawn
            }
        };
        Self(blake3::derive_key("sluicegate 2026-11 prefix cache salts", secret))
    }

    /// Of who comes with this certificate and these credentials; who has none is one tenant with all others like that.
    pub fn of(self, certificate: Option<Fingerprint>, headers: &HeaderMap) -> Salt {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[u8::from(certificate.is_some())]);
        if let Some(certificate) = certificate {
            hasher.update(&certificate.0);
        }
        let mut lines: Vec<_> = headers.iter().filter(|(name, _)| is_credential(name)).collect();
        // Stable: the values of one name stay in their order.
        lines.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in lines {
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        Salt(*hasher.finalize().as_bytes())
    }
}

impl Salt {
    /// As engines take it: 128 bits in hexadecimal. `own` is what the client sent.
    pub fn text(self, own: &str) -> String {
        blake3::keyed_hash(&self.0, own.as_bytes()).to_hex()[..32].to_owned()
    }
}

impl fmt::Debug for Salts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salts")
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().expect("a name"), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn each_tenant_has_its_own() {
        let salts = Salts::new(None);
        let of = |lines| salts.of(None, &headers(lines)).text("");
        let a = of(&[("authorization", "a"), ("x-api-key", "k"), ("accept", "x")]);
        assert_eq!(a, of(&[("x-api-key", "k"), ("authorization", "a"), ("accept", "y")]));
        for other in [&[][..], &[("authorization", "ak")], &[("authorization", "a")], &[("x-api-key", "a")]] {
            assert_ne!(a, of(other), "{other:?}");
        }
        let certified = salts.of(Some(Fingerprint([1; 32])), &headers(&[])).text("");
        assert_ne!(certified, of(&[]));
        assert!(a.len() == 32 && a.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }

    #[test]
    fn a_clients_own_divides_only_what_is_its_own() {
        let (one, other) = (Salts::new(None), Salts::new(None));
        let none = headers(&[]);
        assert_ne!(one.of(None, &none).text(""), one.of(None, &none).text("mine"));
        assert_eq!(one.of(None, &none).text("mine"), one.of(None, &none).text("mine"));
        assert_ne!(one.of(None, &none).text("mine"), other.of(None, &none).text("mine"));
        let tenant = one.of(None, &headers(&[("authorization", "a")]));
        assert_ne!(one.of(None, &none).text("mine"), tenant.text("mine"));
    }

    #[test]
    fn gateways_with_one_secret_agree() {
        let secret = Secret::new("0123456789abcdef");
        let of = |secret| Salts::new(Some(secret)).of(None, &HeaderMap::new()).text("x");
        assert_eq!(of(&secret), of(&secret));
    }
}
