//! Who takes part: whose answer may be kept, and shared while it runs.

use http::Method;

use crate::{
    config::{Cache, CacheMode},
    protocol::{
        endpoint::Endpoint,
        json::{Notes, Omit, Unfit},
    },
    proxy::call::Call,
};

/// Why a call takes no part. It goes to a backend as if there were no cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// By configuration.
    Off,
    /// Its path, method or content is of a kind whose answers are not kept.
    Kind,
    /// It asks for a sample: neither `temperature` 0 nor a `seed`, and the mode is `deterministic`.
    Sampled,
    /// Its answer depends on, or is, state that a backend holds.
    Stateful,
    /// The backend is to store its answer.
    Stored,
    /// The backend runs tools for it.
    Tools,
    /// It refers to content that may change.
    RemoteContent,
    /// Its body is not strictly valid JSON.
    NotJson,
    /// Its body names a member twice: engines differ in which they take.
    DuplicateKeys,
    /// Its body is nested in a way that would cost too much to sort.
    TooComplex,
}

impl Bypass {
    pub const ALL: [Self; 10] = [
        Self::Off,
        Self::Kind,
        Self::Sampled,
        Self::Stateful,
        Self::Stored,
        Self::Tools,
        Self::RemoteContent,
        Self::NotJson,
        Self::DuplicateKeys,
        Self::TooComplex,
    ];

    /// As `detail` of `Cache-Status`, and as a label.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Kind => "kind",
            Self::Sampled => "sampled",
            Self::Stateful => "stateful",
            Self::Stored => "stored",
            Self::Tools => "tools",
            Self::RemoteContent => "remote-content",
            Self::NotJson => "not-json",
            Self::DuplicateKeys => "duplicate-keys",
            Self::TooComplex => "too-complex",
        }
    }
}

impl From<Unfit> for Bypass {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Malformed(_) => Self::NotJson,
            Unfit::Duplicate => Self::DuplicateKeys,
            Unfit::Costly => Self::TooComplex,
        }
    }
}

/// What can be said without looking into the body again. The rest is found while the key is made.
///
/// # Errors
/// [`Bypass`] when the call takes no part.
pub fn judge(call: &Call, cache: &Cache) -> Result<(), Bypass> {
    if cache.is_off() {
        return Err(Bypass::Off);
    }
    let asked = &call.asked;
    let (generates, stored) = match call.endpoint {
        Endpoint::Chat | Endpoint::Completions | Endpoint::Messages => (true, asked.store == Some(true)),
        // There, not to say it is to say yes.
        Endpoint::Responses => (true, asked.store != Some(false)),
        Endpoint::Embeddings | Endpoint::Rerank | Endpoint::Score | Endpoint::CountTokens => (false, false),
        Endpoint::Response | Endpoint::Models | Endpoint::Model | Endpoint::Passthrough => return Err(Bypass::Kind),
    };
    if call.method != Method::POST || call.tunnel || call.payload.bytes().is_none() {
        return Err(Bypass::Kind);
    }
    if asked.stateful || call.pinned.is_some() {
        return Err(Bypass::Stateful);
    }
    if stored {
        return Err(Bypass::Stored);
    }
    if cache.mode == CacheMode::Deterministic && generates && !asked.greedy && !asked.seeded {
        return Err(Bypass::Sampled);
    }
    Ok(())
}

/// What the body said of where its answer comes from.
///
/// # Errors
/// [`Bypass`] when it is not from the body alone.
pub(super) fn admit(notes: Notes) -> Result<(), Bypass> {
    if notes.stateful {
        return Err(Bypass::Stateful);
    }
    if notes.server_tools {
        return Err(Bypass::Tools);
    }
    if notes.remote {
        return Err(Bypass::RemoteContent);
    }
    Ok(())
}

/// Whether `stream` chooses between two shapes of the answer there.
pub fn has_shapes(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::Chat | Endpoint::Completions | Endpoint::Responses | Endpoint::Messages)
}

/// What is not in the key, because it cannot change the answer: docs/cache.md says why for each.
///
/// `/v1/responses` echoes `user` and `metadata` in its answer: they are in the key there.
pub(super) fn omitted<'a>(call: &Call, cache: &'a Cache) -> Omit<'a> {
    let members: &[&str] = match call.endpoint {
        Endpoint::Chat | Endpoint::Completions => &["user", "metadata"],
        Endpoint::Messages => &["metadata"],
        Endpoint::Embeddings | Endpoint::Rerank | Endpoint::Score => &["user"],
        _ => &[],
    };
    Omit {
        members,
        further: &cache.ignore,
        stream: has_shapes(call.endpoint),
        // On a plain call it is an error in some engines, and so stays in the key.
        usage: call.stream && matches!(call.endpoint, Endpoint::Chat | Endpoint::Completions),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, rc::Rc};

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        body::Body,
        fleet::testing,
        listener::Peer,
        proxy::{
            call::{Asked, Payload},
            memory::Memory,
            record::Record,
        },
    };

    fn asking(path: &'static str, asked: Asked) -> Call {
        let request = http::Request::post(path).body(()).unwrap();
        let now = Instant::now();
        let record = Record::new(now, HeaderValue::from_static("id"), &request, Rc::new(Peer::default()));
        Call {
            endpoint: record.endpoint,
            method: Method::POST,
            path: record.path.clone(),
            headers: HeaderMap::new(),
            added: Vec::new(),
            payload: Payload::whole(Bytes::from_static(b"{}"), Memory::new(1 << 20).reserve()),
            model: None,
            alias: None,
            edited: false,
            salt: None,
            stream: false,
            asked,
            pinned: None,
            avoid: Vec::new(),
            tailor: None,
            deadline: now,
            wait_until: None,
            tunnel: false,
            said: None,
            ask_usage: false,
            repeatable: true,
            record: Rc::new(record),
        }
    }

    #[test]
    fn who_takes_part_by_default() {
        use Bypass::*;
        let cache = testing::config([]).cache;
        let none = Asked::default();
        let greedy = Asked { greedy: true, ..none };
        let seeded = Asked { seeded: true, ..none };
        let chat = "/v1/chat/completions";
        let stored = |store| Asked { greedy: true, store: Some(store), ..none };
        for (path, asked, expected) in [
            (chat, none, Err(Sampled)),
            (chat, greedy, Ok(())),
            (chat, seeded, Ok(())),
            (chat, stored(true), Err(Stored)),
            (chat, stored(false), Ok(())),
            (chat, Asked { stateful: true, ..greedy }, Err(Stateful)),
            ("/v1/completions", none, Err(Sampled)),
            ("/v1/completions", greedy, Ok(())),
            ("/v1/messages", none, Err(Sampled)),
            ("/v1/messages", greedy, Ok(())),
            ("/v1/responses", greedy, Err(Stored)),
            ("/v1/responses", stored(true), Err(Stored)),
            ("/v1/responses", stored(false), Ok(())),
            ("/v1/responses", Asked { greedy: false, ..stored(false) }, Err(Sampled)),
            ("/v1/responses", Asked { stateful: true, ..stored(false) }, Err(Stateful)),
            ("/v1/embeddings", none, Ok(())),
            ("/v1/rerank", none, Ok(())),
            ("/v1/score", none, Ok(())),
            ("/v1/messages/count_tokens", none, Ok(())),
            ("/v1/responses/r/cancel", greedy, Err(Kind)),
            ("/v1/audio/speech", greedy, Err(Kind)),
            ("/v1/models", greedy, Err(Kind)),
        ] {
            assert_eq!(judge(&asking(path, asked), &cache), expected, "{path} {asked:?}");
        }
        let pinned = Call { pinned: Some("a".into()), ..asking(chat, greedy) };
        assert_eq!(judge(&pinned, &cache), Err(Stateful));
        let streamed = Call { payload: Payload::upload(Body::whole(Bytes::from_static(b"x"))), ..asking(chat, greedy) };
        assert_eq!(judge(&streamed, &cache), Err(Kind));
    }

    #[test]
    fn the_mode_decides_on_samples_alone() {
        let mut cache = Cache { mode: CacheMode::All, ..testing::config([]).cache };
        let sampled = || asking("/v1/chat/completions", Asked::default());
        assert_eq!(judge(&sampled(), &cache), Ok(()));
        assert_eq!(judge(&asking("/v1/responses", Asked::default()), &cache), Err(Bypass::Stored));
        cache.mode = CacheMode::Off;
        assert_eq!(judge(&sampled(), &cache), Err(Bypass::Off));
        let empty = Cache { capacity: 0, mode: CacheMode::All, ..cache };
        assert_eq!(judge(&sampled(), &empty), Err(Bypass::Off));
    }

    #[test]
    fn reasons_are_tokens_and_distinct() {
        let details: HashSet<_> = Bypass::ALL.iter().map(|bypass| bypass.detail()).collect();
        assert_eq!(details.len(), Bypass::ALL.len());
        assert!(details.iter().all(|detail| detail.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')));
    }
}
