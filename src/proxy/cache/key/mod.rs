//! Which request an answer belongs to.

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use http::{HeaderName, HeaderValue, header};
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};
use rustls::crypto::ring;

use super::{
    eligible::{Bypass, admit, has_shapes, omitted},
    entry::{Shape, Tenant},
};
use crate::{
    config::{Cache, CacheScope, Secret},
    protocol::json::Canonicaliser,
    proxy::call::Call,
};

/// How the material is laid out; another form never meets an older one's entries.
const FORM: u8 = 1;

/// Material up to this length is the proof itself.
pub const PROVEN_BY_EQUALITY: usize = 4 * 1024;

/// One request, as far as its answer depends on it, and the shape of the answer. Two keys are equal only if all that
/// may change the answer is: proof by equality, or by a 256-bit keyed hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Seeded hash of the material: finds the slot, proves nothing.
    slot: u64,
    shape: Shape,
    proof: Proof,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Proof {
    /// The material, up to [`PROVEN_BY_EQUALITY`] bytes.
    Material(Arc<[u8]>),
    /// Keyed BLAKE3 of longer material.
    Digest([u8; 32]),
}

impl Key {
    /// A key over `material`, whose hashes are `slot` and (asked for above [`PROVEN_BY_EQUALITY`]) `digest`.
    pub fn new(material: &[u8], slot: u64, digest: impl FnOnce(&[u8]) -> [u8; 32], shape: Shape) -> Self {
        let proof = if material.len() <= PROVEN_BY_EQUALITY {
            Proof::Material(material.into())
        } else {
            Proof::Digest(digest(material))
        };
        Self { slot, shape, proof }
    }

    /// The same request's key for an answer of `shape`.
    #[must_use]
    pub fn shaped(&self, shape: Shape) -> Self {
        Self { shape, ..self.clone() }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Where to look: the same for both shapes.
    pub fn slot(&self) -> u64 {
        self.slot
    }

    /// The 256-bit form, for tiers that do not hold the material.
    pub fn digest(&self, hash: impl FnOnce(&[u8]) -> [u8; 32]) -> [u8; 32] {
        match &self.proof {
            Proof::Material(material) => hash(material),
            Proof::Digest(digest) => *digest,
        }
    }

    /// Bytes it holds.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + match &self.proof {
                Proof::Material(material) => material.len() + 16,
                Proof::Digest(_) => 0,
            }
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.slot);
    }
}

/// Makes keys. One for all workers of a process: they look into the same store.
pub struct Keys {
    /// Of the hash that finds the slot; drawn at start.
    slots: RapidSecrets,
    digests: [u8; 32],
    tenants: [u8; 32],
    seals: [u8; 32],
    /// Who sent no credentials at all.
    anonymous: Tenant,
}

/// What a call is looked up by.
#[derive(Clone, Debug)]
pub struct Asks {
    /// Of the shape that was asked for.
    pub key: Key,
    pub tenant: Tenant,
    /// Tools, reasoning or the like take part: an answer of the other shape does not stand in.
    pub bound: bool,
}

/// What making a key allocates; serves again for the next.
#[derive(Debug, Default)]
pub struct Scratch {
    canonicaliser: Canonicaliser,
    material: Vec<u8>,
    /// How much of the material the head is.
    head: usize,
}

impl Scratch {
    /// Held on to between calls; more is given back.
    const MOST: usize = 256 * 1024;

    /// What of a head was in the key that was made last.
    pub fn head(&self) -> &[u8] {
        self.material.get(..self.head).unwrap_or_default()
    }

    fn trim(&mut self) {
        if self.material.capacity() + self.canonicaliser.held() > Self::MOST {
            *self = Self::default();
        }
    }
}

impl Keys {
    /// Keys that every gateway with this secret makes alike; without one, of this process alone.
    pub fn new(secret: Option<&Secret>) -> Self {
        let drawn: [u8; 32];
        let secret = match secret {
            Some(secret) => secret.reveal().as_bytes(),
            None => {
                drawn = random();
                &drawn
            }
        };
        let derived = |purpose| blake3::derive_key(purpose, secret);
        let tenants = derived("sluicegate 2026-11 cache tenants");
        Self {
            slots: RapidSecrets::seed(u64::from_le_bytes(random())),
            digests: derived("sluicegate 2026-11 cache keys"),
            seals: derived("sluicegate 2026-11 cache seals"),
            anonymous: tenant_of(&tenants, &[]),
            tenants,
        }
    }

    /// What `call` is looked up by.
    ///
    /// # Errors
    /// [`Bypass`] when its body shows that it takes no part.
    pub fn of(&self, call: &Call, cache: &Cache, scratch: &mut Scratch) -> Result<Asks, Bypass> {
        let asks = self.make(call, cache, scratch);
        scratch.trim();
        asks
    }

    fn make(&self, call: &Call, cache: &Cache, scratch: &mut Scratch) -> Result<Asks, Bypass> {
        let body = call.payload.bytes().ok_or(Bypass::Kind)?;
        let Scratch { canonicaliser, material, head: head_len } = scratch;
        let tenant = self.tenant(call, cache.scope, material);
        material.clear();
        head(material, call, tenant, &cache.vary);
        *head_len = material.len();
        if let Some(said) = &call.said
            && *said.head == **material
        {
            return Ok(said.asks.clone());
        }
        let notes = canonicaliser.write(body, &omitted(call, cache), material)?;
        admit(notes)?;
        let shape = Shape::of(call.stream && has_shapes(call.endpoint));
        let key = Key::new(material, self.slot(material), |material| self.hash(material), shape);
        Ok(Asks { key, tenant, bound: notes.bound })
    }

    /// Whose answers `call` may see.
    fn tenant(&self, call: &Call, scope: CacheScope, material: &mut Vec<u8>) -> Tenant {
        if scope == CacheScope::Shared {
            return Tenant::default();
        }
        material.clear();
        if let Some(certificate) = call.record.peer.identity {
            part(material, &certificate.0);
        }
        fields(material, call.headers.iter().filter(|(name, _)| is_credential(name)));
        if material.is_empty() { self.anonymous } else { tenant_of(&self.tenants, material) }
    }

    fn slot(&self, material: &[u8]) -> u64 {
        rapidhash_v3_seeded(material, &self.slots)
    }

    fn hash(&self, material: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.digests, material).as_bytes()
    }

    /// The 256-bit form of `key`, the same in every gateway with the same secret.
    pub fn digest(&self, key: &Key) -> [u8; 32] {
        key.digest(|material| self.hash(material))
    }

    /// What entries outside this process are sealed with.
    pub fn seal_key(&self) -> [u8; 32] {
        self.seals
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// Who somebody is to the gateway: together they make the tenant.
pub fn is_credential(name: &HeaderName) -> bool {
    matches!(*name, header::AUTHORIZATION | header::COOKIE) || matches!(name.as_str(), "x-api-key" | "api-key")
}

/// Request headers whose values are in the key. Of those that can change an answer only these may reach a backend on
/// a call whose answer may be kept.
pub fn is_keyed(name: &HeaderName, vary: &[HeaderName]) -> bool {
    let known = match name.as_str().len() {
        11 => name.as_str() == "openai-beta",
        12 => *name == header::CONTENT_TYPE,
        14 => matches!(name.as_str(), "anthropic-beta" | "openai-project"),
        17 => name.as_str() == "anthropic-version",
        19 => name.as_str() == "openai-organization",
        _ => false,
    };
    known || vary.contains(name)
}

/// What stands before the canonical body. Each part tells its length or is of a fixed one, so that no two requests
/// run into the same bytes.
fn head(out: &mut Vec<u8>, call: &Call, tenant: Tenant, vary: &[HeaderName]) {
    out.push(FORM);
    out.extend_from_slice(&tenant.0);
    part(out, call.method.as_str().as_bytes());
    part(out, call.path.as_str().as_bytes());
    out.push(u8::from(call.model.is_some()));
    part(out, call.model.as_deref().unwrap_or_default().as_bytes());
    let picked = |(name, _): &(&HeaderName, &HeaderValue)| is_keyed(name, vary);
    if vary.is_empty() {
        fields(out, call.headers.iter().filter(picked));
    } else {
        // As a backend gets them: what the gateway adds takes the place of what the client said.
        let added = || call.added.iter().map(|(name, value)| (name, value));
        let own = call.headers.iter().filter(|(name, _)| added().all(|(added, _)| added != *name));
        fields(out, own.chain(added()).filter(picked));
    }
    // No header has an empty name: the fields end here.
    part(out, b"");
}

/// Header lines, sorted by name: for each name its text, the count of its values, and the values.
fn fields<'a>(out: &mut Vec<u8>, mut lines: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>) {
    let Some(first) = lines.next() else { return };
    // Most heads have one such line: nothing to sort.
    let Some(second) = lines.next() else { return field(out, &[first]) };
    let mut all = Vec::with_capacity(8);
    all.extend([first, second]);
    all.extend(lines);
    // Stable: the values of one name stay in their order.
    all.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
    all.chunk_by(|(a, _), (b, _)| a == b).for_each(|lines| field(out, lines));
}

/// All lines of one name.
fn field(out: &mut Vec<u8>, lines: &[(&HeaderName, &HeaderValue)]) {
    let Some((name, _)) = lines.first() else { return };
    part(out, name.as_str().as_bytes());
    out.extend_from_slice(&length(lines.len()));
    for (name, value) in lines {
        let value = if **name == header::CONTENT_TYPE { media_type(value.as_bytes()) } else { value.as_bytes() };
        part(out, value);
    }
}

/// The spellings of JSON's media type that mean the same are one; others stay as they are.
fn media_type(value: &[u8]) -> &[u8] {
    const JSON: &[u8] = b"application/json";
    let Some((essence, rest)) = value.split_at_checked(JSON.len()) else { return value };
    let parameter = rest.strip_prefix(b";").map_or(rest, <[u8]>::trim_ascii);
    let plain = rest.is_empty() || rest[0] == b';' && parameter.eq_ignore_ascii_case(b"charset=utf-8");
    if plain && essence.eq_ignore_ascii_case(JSON) { JSON } else { value }
}

fn part(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&length(bytes.len()));
    out.extend_from_slice(bytes);
}

/// What is measured here comes from a head, which is bounded far below this.
fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

fn tenant_of(key: &[u8; 32], material: &[u8]) -> Tenant {
    let hash = blake3::keyed_hash(key, material);
    let mut tenant = Tenant::default();
    tenant.0.copy_from_slice(&hash.as_bytes()[..16]);
    tenant
}

/// From the system, by way of the TLS library, which has to have it anyway.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    ring::default_provider().secure_random.fill(&mut bytes).expect("the system gives random bytes");
    bytes
}

#[cfg(test)]
mod tests;
