use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request};
use tokio::time::Instant;

use super::*;
use crate::{
    fleet::testing,
    listener::{Fingerprint, Peer},
    protocol::json,
    proxy::{
        cache::{Keys, Scratch},
        call::Payload,
        memory::Memory,
    },
};

const CHAT: &str = "/v1/chat/completions";

fn call(path: &str, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Call {
    let (now, body) = (Instant::now(), body.as_ref());
    let request = Request::post(path).body(()).unwrap();
    let record = Record::new(now, HeaderValue::from_static("id"), &request, Rc::new(Peer::default()));
    let fields = json::scan(body).unwrap_or_default();
    let map = headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()));
    Call {
        endpoint: record.endpoint,
        method: http::Method::POST,
        path: record.path.clone(),
        headers: map.collect(),
        added: Vec::new(),
        payload: Payload::whole(Bytes::copy_from_slice(body), Memory::new(1 << 24).reserve()),
        model: fields.model.map(|model| model.text.into()),
        alias: None,
        edited: false,
        salt: None,
        stream: fields.stream == Some(true),
        asked: Asked { greedy: fields.greedy, ..Asked::default() },
        said: None,
        ask_usage: false,
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: now,
        wait_until: None,
        tunnel: false,
        repeatable: true,
        record: Rc::new(record),
    }
}

/// What the stages do with a call that is answered from the cache: whether its body was known, and its key.
fn answered(seen: &Seen, keys: &Keys, mut call: Call) -> (bool, Asks) {
    call.said = found(seen, &call);
    let mut scratch = Scratch::default();
    let asks = keys.of(&call, &testing::config([]).cache, &mut scratch).unwrap();
    if call.said.is_none() {
        seen.remember(&call, scratch.head(), &asks);
    }
    (call.said.is_some(), asks)
}

fn found(seen: &Seen, call: &Call) -> Option<Rc<Said>> {
    seen.find(&call.record, &call.headers, call.payload.bytes().unwrap())
}

fn body(n: usize, length: usize) -> String {
    format!(r#"{{"temperature":0,"model":"m","n":{n},"prompt":"{}"}}"#, "x".repeat(length))
}

#[test]
fn the_same_bytes_are_read_once_and_have_the_same_key() {
    let (seen, keys) = (Seen::new(), Keys::new(None));
    for length in [10, 1000, 5000, 60_000] {
        let ask = || call(CHAT, &[("content-type", "application/json")], body(length, length));
        let (known, first) = answered(&seen, &keys, ask());
        assert!(!known);
        let (known, again) = answered(&seen, &keys, ask());
        assert!(known, "{length}");
        assert_eq!((first.key, first.tenant, first.bound), (again.key, again.tenant, again.bound));
        let said = found(&seen, &ask()).unwrap();
        assert_eq!((said.model.as_deref(), said.stream, said.asked.greedy), (Some("m"), false, true));
    }
}

#[test]
fn whatever_differs_is_read() {
    let (seen, keys) = (Seen::new(), Keys::new(None));
    let json = ("content-type", "application/json");
    let long = body(1, 3000);
    answered(&seen, &keys, call(CHAT, &[json], &long));
    assert!(found(&seen, &call(CHAT, &[json], &long)).is_some());
    assert!(found(&seen, &call("/v1/completions", &[json], &long)).is_none());
    assert!(found(&seen, &call(CHAT, &[json, ("authorization", "Bearer a")], &long)).is_none());
    for at in 0..long.len() {
        let mut other = long.clone().into_bytes();
        other[at] ^= 1;
        assert!(found(&seen, &call(CHAT, &[json], other)).is_none(), "{at}");
    }
    // The body is known, but not under this head: its key is made anew.
    let ask = |kind| answered(&seen, &keys, call(CHAT, &[("content-type", kind)], &long));
    let (known, own) = ask("application/json");
    assert!(known);
    let (known, other) = ask("text/plain");
    assert!(known);
    assert_ne!(own.key, other.key);
    let (_, plain) = answered(&Seen::new(), &keys, call(CHAT, &[("content-type", "text/plain")], &long));
    assert_eq!(other.key, plain.key);
}

#[test]
fn tenants_do_not_meet() {
    let (seen, keys) = (Seen::new(), Keys::new(None));
    let text = body(1, 100);
    for name in ["authorization", "x-api-key", "api-key", "cookie"] {
        let ask = |value| call(CHAT, &[(name, value)], &text);
        answered(&seen, &keys, ask("a"));
        assert!(found(&seen, &ask("a")).is_some());
        assert!(found(&seen, &ask("b")).is_none(), "{name}");
    }
    let mut certified = call(CHAT, &[], &text);
    answered(&seen, &keys, call(CHAT, &[], &text));
    let record = Rc::get_mut(&mut certified.record).unwrap();
    let mut peer = Peer::default();
    peer.identity = Some(Fingerprint([1; 32]));
    record.peer = Rc::new(peer);
    assert!(found(&seen, &certified).is_none());
}

#[test]
fn what_may_mean_something_else_is_not_remembered() {
    let (seen, keys) = (Seen::new(), Keys::new(None));
    // The model may be that of the query.
    let queried = || call("/v1/chat/completions?model=m", &[], r#"{"temperature":0}"#);
    answered(&seen, &keys, queried());
    assert!(found(&seen, &queried()).is_none());
    // The body that came was another: it named an alias.
    let text = body(1, 10);
    answered(&seen, &keys, Call { alias: Some("a".into()), edited: true, ..call(CHAT, &[], &text) });
    assert!(found(&seen, &call(CHAT, &[], &text)).is_none());
    let long = body(1, LONGEST);
    answered(&seen, &keys, call(CHAT, &[], &long));
    assert!(found(&seen, &call(CHAT, &[], &long)).is_none());
}

#[test]
fn it_is_bounded_and_keeps_what_is_met() {
    let (seen, keys) = (Seen::new(), Keys::new(None));
    let often = body(0, 100);
    for n in 0..5000 {
        answered(&seen, &keys, call(CHAT, &[], &often));
        answered(&seen, &keys, call(CHAT, &[], body(n + 1, n % 3000)));
        let kept = seen.kept.borrow();
        let held: usize = kept.places.iter().flatten().map(|place| place.said.weight()).sum();
        assert_eq!(kept.held, held);
        assert!(held <= MOST_HELD);
    }
    seen.purged(0);
    assert!(seen.kept.borrow().held > 0);
    seen.purged(1);
    assert!(seen.kept.borrow().places.is_empty());
    assert_eq!(seen.kept.borrow().held, 0);
}
