//! An entry as bytes: `version, seal, stored, expires, endpoint, shape, finish, engine, tokens, seconds, flags,
//! tenant, model, headers, body`, numbers in little endian.
//!
//! The seal is over the name it is stored under and all that follows: what was damaged, forged, or moved to another
//! name is refused before anything of it is read.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::Instant;

use super::seal::{SEAL, Sealer};
use crate::{
    protocol::{
        endpoint::Endpoint,
        engine::Engine,
        usage::{Finish, Usage},
    },
    proxy::cache::{Entry, Facts, Shape, Tenant},
};

/// Of this layout. A gateway that knows another one takes it for a miss.
const VERSION: u8 = 2;
/// Flags: the answer tells its usage; it may not stand in for an error.
const TOLD: u8 = 1;
const STRICT: u8 = 2;
/// An entry of no model.
const NO_MODEL: u16 = u16::MAX;

/// One moment on both clocks: entries hold the process's own, Redis the world's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) instant: Instant,
    pub(super) unix_ms: u64,
}

impl Clock {
    pub(super) fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix_ms: ms(unix) }
    }

    fn unix(&self, at: Instant) -> u64 {
        match at.checked_duration_since(self.instant) {
            Some(ahead) => self.unix_ms.saturating_add(ms(ahead)),
            None => self.unix_ms.saturating_sub(ms(self.instant - at)),
        }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Why bytes are no entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Not what a gateway with this key stored under this name.
    Seal,
    /// Its time is over.
    Expired,
    /// Sealed by us, and not of this layout.
    Layout,
}

/// `entry` as it is stored under `name`, and how long for. `None` if it is not worth it any more.
pub(super) fn encode(entry: &Entry, name: &str, sealer: &Sealer, clock: Clock) -> Option<(Vec<u8>, Duration)> {
    let left = entry.fresh_for(clock.instant)?;
    let mut out = Vec::with_capacity(1 + SEAL + 256 + entry.weight());
    out.push(VERSION);
    out.extend_from_slice(&[0; SEAL]);
    write(&mut out, entry, clock)?;
    let (head, rest) = out.split_at_mut(1 + SEAL);
    head[1..].copy_from_slice(sealer.seal(name, VERSION, rest).as_bytes());
    Some((out, left))
}

fn write(out: &mut Vec<u8>, entry: &Entry, clock: Clock) -> Option<()> {
    out.extend_from_slice(&clock.unix(entry.stored).to_le_bytes());
    out.extend_from_slice(&clock.unix(entry.expires).to_le_bytes());
    let facts = &entry.facts;
    out.push(code_of(&ENDPOINTS, entry.endpoint)?);
    out.push(code_of(&SHAPES, entry.shape)?);
    out.push(code_of(&FINISHES, facts.finish)?);
    out.push(facts.engine.map_or(Some(0), |engine| code_of(&ENGINES, engine))?);
    for count in [facts.usage.input, facts.usage.output, facts.usage.cached] {
        out.extend_from_slice(&count.to_le_bytes());
    }
    out.extend_from_slice(&u64::try_from(facts.took.as_micros()).unwrap_or(u64::MAX).to_le_bytes());
    out.push(if facts.told { TOLD } else { 0 } | if entry.strict { STRICT } else { 0 });
    out.extend_from_slice(&entry.tenant.0);
    match entry.model.as_deref() {
        None => out.extend_from_slice(&NO_MODEL.to_le_bytes()),
        Some(model) => short(out, model.as_bytes())?,
    }
    out.extend_from_slice(&u16::try_from(entry.headers.len()).ok()?.to_le_bytes());
    for (name, value) in &entry.headers {
        short(out, name.as_str().as_bytes())?;
        short(out, value.as_bytes())?;
    }
    out.extend_from_slice(&entry.body);
    Some(())
}

/// Bytes with their length before them.
fn short(out: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    let length = u16::try_from(bytes.len()).ok().filter(|length| *length != NO_MODEL)?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    Some(())
}

/// The entry that was stored under `name`.
pub(super) fn decode(stored: Bytes, name: &str, sealer: &Sealer, clock: Clock) -> Result<Entry, Refused> {
    let mut rest = stored;
    if rest.len() < 1 + SEAL || rest.get_u8() != VERSION {
        return Err(Refused::Seal);
    }
    let mut seal = [0; SEAL];
    rest.copy_to_slice(&mut seal);
    // Compared in constant time.
    if sealer.seal(name, VERSION, &rest) != blake3::Hash::from_bytes(seal) {
        return Err(Refused::Seal);
    }
    read(rest, clock)
}

/// What follows the seal.
fn read(mut rest: Bytes, clock: Clock) -> Result<Entry, Refused> {
    let rest = &mut rest;
    let (stored, expires) = (u64_of(rest)?, u64_of(rest)?);
    let endpoint = of_code(&ENDPOINTS, u8_of(rest)?)?;
    let shape = of_code(&SHAPES, u8_of(rest)?)?;
    let finish = of_code(&FINISHES, u8_of(rest)?)?;
    let engine = match u8_of(rest)? {
        0 => None,
        code => Some(of_code(&ENGINES, code)?),
    };
    let usage = Usage { input: u32_of(rest)?, output: u32_of(rest)?, cached: u32_of(rest)? };
    let took = Duration::from_micros(u64_of(rest)?);
    let flags = u8_of(rest)?;
    let mut tenant = [0; 16];
    tenant.copy_from_slice(&take(rest, 16)?);
    let tenant = Tenant(tenant);
    let model = match u16_of(rest)? {
        NO_MODEL => None,
        length => Some(model(&take(rest, usize::from(length))?)?),
    };
    let headers = headers(rest)?;
    let (stored, expires) = times(stored, expires, clock)?;
    let facts = Facts { usage, finish, engine, took, told: flags & TOLD != 0 };
    let (body, strict) = (std::mem::take(rest), flags & STRICT != 0);
    Ok(Entry { endpoint, shape, headers, body, facts, model, tenant, stored, expires, strict })
}

/// The writer's clock may be ahead of ours: never fresh for longer than it was at first.
fn times(stored: u64, expires: u64, clock: Clock) -> Result<(Instant, Instant), Refused> {
    let whole = expires.checked_sub(stored).ok_or(Refused::Layout)?;
    let left = expires.saturating_sub(clock.unix_ms).min(whole);
    if left == 0 {
        return Err(Refused::Expired);
    }
    let age = Duration::from_millis(clock.unix_ms.saturating_sub(stored));
    // A machine that runs for less long than the entry is old cannot say that: it counts as new.
    let stored = clock.instant.checked_sub(age).unwrap_or(clock.instant);
    let expires = clock.instant.checked_add(Duration::from_millis(left)).ok_or(Refused::Layout)?;
    Ok((stored, expires))
}

fn model(text: &[u8]) -> Result<Arc<str>, Refused> {
    std::str::from_utf8(text).map(Arc::from).map_err(|_| Refused::Layout)
}

fn headers(rest: &mut Bytes) -> Result<HeaderMap, Refused> {
    let count = u16_of(rest)?;
    let mut headers = HeaderMap::new();
    for _ in 0..count {
        let length = usize::from(u16_of(rest)?);
        let name = HeaderName::from_bytes(&take(rest, length)?).map_err(|_| Refused::Layout)?;
        let length = usize::from(u16_of(rest)?);
        let value = HeaderValue::from_bytes(&take(rest, length)?).map_err(|_| Refused::Layout)?;
        headers.try_append(name, value).map_err(|_| Refused::Layout)?;
    }
    Ok(headers)
}

fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, Refused> {
    if rest.len() < length { Err(Refused::Layout) } else { Ok(rest.split_to(length)) }
}

fn u8_of(rest: &mut Bytes) -> Result<u8, Refused> {
    rest.try_get_u8().map_err(|_| Refused::Layout)
}

fn u16_of(rest: &mut Bytes) -> Result<u16, Refused> {
    rest.try_get_u16_le().map_err(|_| Refused::Layout)
}

fn u32_of(rest: &mut Bytes) -> Result<u32, Refused> {
    rest.try_get_u32_le().map_err(|_| Refused::Layout)
}

fn u64_of(rest: &mut Bytes) -> Result<u64, Refused> {
    rest.try_get_u64_le().map_err(|_| Refused::Layout)
}

/// Codes of the layout: never given to another meaning.
const ENDPOINTS: [(u8, Endpoint); 8] = [
    (1, Endpoint::Chat),
    (2, Endpoint::Completions),
    (3, Endpoint::Embeddings),
    (4, Endpoint::Responses),
    (5, Endpoint::Messages),
    (6, Endpoint::CountTokens),
    (7, Endpoint::Rerank),
    (8, Endpoint::Score),
];
const SHAPES: [(u8, Shape); 2] = [(1, Shape::Plain), (2, Shape::Stream)];
const FINISHES: [(u8, Finish); 8] = [
    (0, Finish::None),
    (1, Finish::Stop),
    (2, Finish::Length),
    (3, Finish::ToolCalls),
    (4, Finish::ContentFilter),
    (5, Finish::Abort),
    (6, Finish::Error),
    (7, Finish::Other),
];
const ENGINES: [(u8, Engine); 7] = [
    (1, Engine::Vllm),
    (2, Engine::Sglang),
    (3, Engine::LlamaCpp),
    (4, Engine::Tgi),
    (5, Engine::Ollama),
    (6, Engine::Triton),
    (7, Engine::OpenAi),
];

/// `None` for what is never kept.
fn code_of<T: PartialEq>(codes: &[(u8, T)], meaning: T) -> Option<u8> {
    codes.iter().find(|(_, known)| *known == meaning).map(|(code, _)| *code)
}

fn of_code<T: Copy>(codes: &[(u8, T)], code: u8) -> Result<T, Refused> {
    codes.iter().find(|(known, _)| *known == code).map(|(_, meaning)| *meaning).ok_or(Refused::Layout)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*, sample::select};

    use super::*;

    const NAME: &str = "sluicegate:1:00:11:22:33:p";

    fn sealer() -> Sealer {
        Sealer::new(&[3; 32])
    }

    fn clock() -> Clock {
        Clock { instant: Instant::now() + Duration::from_secs(100_000), unix_ms: 1_800_000_000_000 }
    }

    /// An entry that was whole `age` ms before [`clock`] and is fresh for `left` ms more.
    fn entries(clock: Clock) -> impl Strategy<Value = Entry> {
        let of = |codes: Vec<u8>| select(codes);
        let facts = (any::<[u32; 3]>(), of((0..8).collect()), of((0..8).collect()), 0..u64::MAX / 2);
        let kind = (of((1..9).collect()), of(vec![1, 2]), any::<[u8; 16]>(), option::of(".{0,40}"));
        let headers = vec(("[a-z][a-z0-9-]{0,20}", "[ -~]{0,40}"), 0..6);
        (facts, kind, headers, vec(any::<u8>(), 0..2000), 0..90_000_000_u64, 1..90_000_000_u64).prop_map(
            move |((usage, finish, engine, took), (endpoint, shape, tenant, model), fields, body, age, left)| Entry {
                endpoint: of_code(&ENDPOINTS, endpoint).unwrap(),
                shape: of_code(&SHAPES, shape).unwrap(),
                headers: fields
                    .iter()
                    .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap()))
                    .collect(),
                body: body.into(),
                facts: Facts {
                    usage: Usage { input: usage[0], output: usage[1], cached: usage[2] },
                    finish: of_code(&FINISHES, finish).unwrap(),
                    engine: (engine > 0).then(|| of_code(&ENGINES, engine).unwrap()),
                    took: Duration::from_micros(took),
                    told: engine % 2 == 0,
                },
                model: model.map(Arc::from),
                tenant: Tenant(tenant),
                stored: clock.instant - Duration::from_millis(age),
                expires: clock.instant + Duration::from_millis(left),
                strict: finish % 2 == 0,
            },
        )
    }

    fn told(entry: &Entry) -> String {
        format!("{entry:?}")
    }

    fn one(clock: Clock) -> Entry {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        Entry {
            endpoint: Endpoint::Chat,
            shape: Shape::Plain,
            headers,
            body: Bytes::from_static(b"{\"choices\":[]}"),
            facts: Facts {
                usage: Usage { input: 1, output: 2, cached: 0 },
                finish: Finish::Stop,
                engine: Some(Engine::Vllm),
                took: Duration::from_millis(1500),
                told: true,
            },
            model: Some("llama".into()),
            tenant: Tenant([9; 16]),
            stored: clock.instant - Duration::from_secs(1),
            expires: clock.instant + Duration::from_secs(59),
            strict: false,
        }
    }

    proptest! {
        #[test]
        fn what_went_in_comes_out(entry in entries(clock())) {
            // The strategy's clock is another moment than this one: times are compared by themselves.
            let clock = Clock { instant: entry.stored + Duration::from_millis(5), unix_ms: 1_800_000_000_000 };
            let (bytes, left) = encode(&entry, NAME, &sealer(), clock).unwrap();
            prop_assert_eq!(Some(left), entry.fresh_for(clock.instant));
            let read = decode(bytes.into(), NAME, &sealer(), clock).unwrap();
            prop_assert_eq!(told(&read), told(&entry));
        }

        #[test]
        fn any_damage_is_a_miss(entry in entries(clock()), at in any::<prop::sample::Index>(), bits in 1..=255_u8, cut in any::<bool>()) {
            let clock = Clock { instant: entry.stored, unix_ms: 1_800_000_000_000 };
            let (mut bytes, _) = encode(&entry, NAME, &sealer(), clock).unwrap();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= bits;
            }
            prop_assert_eq!(decode(bytes.into(), NAME, &sealer(), clock).unwrap_err(), Refused::Seal);
        }

        #[test]
        fn bytes_of_any_kind_are_refused_or_read_and_no_more(bytes in vec(any::<u8>(), 0..400), stored in 0..u64::MAX) {
            let _ = decode(bytes.clone().into(), NAME, &sealer(), clock());
            let _ = read(bytes.clone().into(), clock());
            // Past the times, into the rest.
            let mut later = stored.to_le_bytes().to_vec();
            later.extend_from_slice(&u64::MAX.to_le_bytes());
            later.extend_from_slice(&[1, 1, 1, 1]);
            later.extend_from_slice(&bytes);
            let _ = read(later.into(), clock());
        }
    }

    #[test]
    fn moved_to_another_name_or_sealed_with_another_key_is_a_miss() {
        let clock = clock();
        let (mut bytes, _) = encode(&one(clock), NAME, &sealer(), clock).unwrap();
        assert!(decode(bytes.clone().into(), NAME, &sealer(), clock).is_ok());
        assert_eq!(decode(bytes.clone().into(), "another", &sealer(), clock).unwrap_err(), Refused::Seal);
        assert_eq!(decode(bytes.clone().into(), NAME, &Sealer::new(&[4; 32]), clock).unwrap_err(), Refused::Seal);
        bytes.push(0);
        assert_eq!(decode(bytes.into(), NAME, &sealer(), clock).unwrap_err(), Refused::Seal);
    }

    #[test]
    fn time_goes_on_in_redis_and_clocks_may_differ() {
        let clock = clock();
        let (bytes, left) = encode(&one(clock), NAME, &sealer(), clock).unwrap();
        assert_eq!(left, Duration::from_secs(59));
        let at = |ms: i64| Clock { unix_ms: clock.unix_ms.saturating_add_signed(ms), ..clock };
        let read = |ms| decode(bytes.clone().into(), NAME, &sealer(), at(ms));
        let later = read(30_000).unwrap();
        assert_eq!(later.age(clock.instant), Duration::from_secs(31));
        assert_eq!(later.fresh_for(clock.instant), Some(Duration::from_secs(29)));
        assert_eq!(read(59_000).unwrap_err(), Refused::Expired);
        // Ours is an hour behind: as fresh as it was when it was whole, and new.
        let early = read(-3_600_000).unwrap();
        assert_eq!(
            (early.age(clock.instant), early.fresh_for(clock.instant)),
            (Duration::ZERO, Some(Duration::from_secs(60)))
        );
        let gone = Clock { instant: clock.instant + Duration::from_secs(60), ..clock };
        assert!(encode(&one(clock), NAME, &sealer(), gone).is_none());
    }

    #[test]
    fn what_is_never_kept_is_not_written() {
        let clock = clock();
        let entry = Entry { endpoint: Endpoint::Passthrough, ..one(clock) };
        assert!(encode(&entry, NAME, &sealer(), clock).is_none());
        let entry = Entry { model: Some("m".repeat(70_000).into()), ..one(clock) };
        assert!(encode(&entry, NAME, &sealer(), clock).is_none());
    }

    /// A file of another version reads this layout: it must not change unseen.
    #[test]
    fn the_layout_is_what_it_was() {
        let clock = clock();
        let (bytes, _) = encode(&one(clock), NAME, &sealer(), clock).unwrap();
        assert_eq!(
            blake3::hash(&bytes).to_hex().as_str(),
            "7de08c9c1a2cb14775364487752b0d175926d6bef3c7ffc43c450f971879e95d"
        );
    }
}
