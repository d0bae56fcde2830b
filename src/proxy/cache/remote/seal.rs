//! What Redis must not be trusted with: names tell nothing, and what comes back is believed by its seal alone.

use std::fmt::Write as _;

use super::Wanted;
use crate::proxy::cache::{Purge, Shape, Tenant};

/// Length of a seal.
pub(super) const SEAL: usize = 32;

/// Makes names and seals from the key that gateways share. Two keys on one Redis do not meet.
pub(super) struct Sealer {
    seal: [u8; 32],
    scope: [u8; 32],
    /// What all names of this key begin with.
    prefix: String,
}

impl Sealer {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let seal = blake3::derive_key("sluicegate 2026 second tier of the cache: seals of entries", key);
        let scope = blake3::derive_key("sluicegate 2026 second tier of the cache: scopes in names", key);
        let space = blake3::keyed_hash(&scope, b"space").to_hex();
        Self { seal, scope, prefix: format!("sluicegate:1:{}", &space[..8]) }
    }

    /// `sluicegate:1:<key>:<tenant>:<model>:<digest>:<shape>`. No braces: a cluster spreads them evenly.
    pub(super) fn name(&self, wanted: &Wanted<'_>) -> String {
        let (tenant, model) = (self.tenant(wanted.tenant), self.model(wanted.model));
        let mut name = format!("{}:{tenant}:{model}:", self.prefix);
        for byte in wanted.digest {
            // Into a string: it cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name.push_str(match wanted.shape {
            Shape::Plain => ":p",
            Shape::Stream => ":s",
        });
        name
    }

    /// A `MATCH` pattern for the names of what is purged: hexadecimal digits and stars.
    pub(super) fn pattern(&self, what: &Purge) -> String {
        let any = || "*".to_owned();
        let tenant = what.tenant.map_or_else(any, |tenant| self.tenant(tenant));
        let model = what.model.as_deref().map_or_else(any, |model| self.model(Some(model)));
        format!("{}:{tenant}:{model}:*", self.prefix)
    }

    /// Over the name and all that is stored under it.
    pub(super) fn seal(&self, name: &str, version: u8, rest: &[u8]) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.seal);
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&[version]).update(rest);
        hasher.finalize()
    }

    fn tenant(&self, tenant: Tenant) -> String {
        self.tag(b't', &tenant.0)
    }

    fn model(&self, model: Option<&str>) -> String {
        model.map_or_else(|| self.tag(b'-', b""), |model| self.tag(b'm', model.as_bytes()))
    }

    fn tag(&self, kind: u8, text: &[u8]) -> String {
        let mut hasher = blake3::Hasher::new_keyed(&self.scope);
        hasher.update(&[kind]).update(text);
        hasher.finalize().to_hex()[..16].to_owned()
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(model: Option<&str>) -> Wanted<'_> {
        Wanted { digest: [0xab; 32], shape: Shape::Plain, tenant: Tenant([1; 16]), model }
    }

    #[test]
    fn names_differ_by_all_they_are_made_of_and_tell_nothing() {
        let sealer = Sealer::new(&[7; 32]);
        let base = wanted(Some("llama"));
        let name = sealer.name(&base);
        assert!(name.starts_with("sluicegate:1:") && name.ends_with(&format!("{}:p", "ab".repeat(32))), "{name}");
        assert!(!name.contains("llama") && !name.contains(['{', '*', '?', '[']), "{name}");
        for other in [
            Wanted { digest: [0xac; 32], ..base },
            Wanted { shape: Shape::Stream, ..base },
            Wanted { tenant: Tenant([2; 16]), ..base },
            wanted(Some("")),
            wanted(None),
        ] {
            assert_ne!(sealer.name(&other), name, "{other:?}");
        }
        assert_ne!(Sealer::new(&[8; 32]).name(&base), name);
    }

    #[test]
    fn patterns_name_what_is_purged() {
        let sealer = Sealer::new(&[7; 32]);
        let name = sealer.name(&wanted(Some("llama")));
        let parts: Vec<_> = name.split(':').collect();
        let (model, tenant) = (Some("llama".into()), Some(Tenant([1; 16])));
        for (what, pattern) in [
            (Purge::default(), format!("sluicegate:1:{}:*:*:*", parts[2])),
            (Purge { model: model.clone(), tenant: None }, format!("sluicegate:1:{}:*:{}:*", parts[2], parts[4])),
            (Purge { model: None, tenant }, format!("sluicegate:1:{}:{}:*:*", parts[2], parts[3])),
            (Purge { model, tenant }, format!("sluicegate:1:{}:{}:{}:*", parts[2], parts[3], parts[4])),
        ] {
            assert_eq!(sealer.pattern(&what), pattern);
        }
    }
}
