use std::{
    collections::{BTreeMap, HashSet},
    fs,
    rc::Rc,
};

use bytes::Bytes;
use http::{HeaderMap, Method, uri::PathAndQuery};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::{Duration, Instant};

use super::*;
use crate::{
    fleet::testing,
    listener::{Fingerprint, Peer},
    protocol::{endpoint::Endpoint, json},
    proxy::{
        call::{Asked, Payload},
        memory::Memory,
        record::Record,
    },
};

fn keys() -> Keys {
    Keys::new(Some(&Secret::new("golden")))
}

fn settings() -> Cache {
    testing::config([]).cache
}

/// What `normalize` makes of a request.
fn call(path: &str, headers: &[(&str, &str)], body: &str) -> Call {
    peer_call(Peer::default(), path, headers, body)
}

fn peer_call(peer: Peer, path: &str, headers: &[(&str, &str)], body: &str) -> Call {
    let now = Instant::now();
    let fields = json::scan(body.as_bytes()).unwrap_or_default();
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.append(HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let path: PathAndQuery = path.parse().unwrap();
    Call {
        endpoint: Endpoint::of(&Method::POST, path.path()),
        method: Method::POST,
        path,
        headers: map,
        added: Vec::new(),
        model: fields.model.map(|model| model.text.into()),
        alias: None,
        edited: false,
        salt: None,
        stream: fields.stream == Some(true),
        asked: Asked::default(),
        payload: Payload::whole(Bytes::copy_from_slice(body.as_bytes()), Memory::new(1 << 20).reserve()),
        pinned: None,
        avoid: Vec::new(),
        tailor: None,
        deadline: now + Duration::from_secs(1800),
        wait_until: None,
        tunnel: false,
        said: None,
        ask_usage: false,
        repeatable: true,
        record: Rc::new(Record::new(now, HeaderValue::from_static("id"), &http::Request::new(()), Rc::new(peer))),
    }
}

const CHAT: &str = "/v1/chat/completions";
const BODY: &str = r#"{"model":"m","messages":[]}"#;

fn key_of(call: &Call) -> Result<Key, Bypass> {
    keys().of(call, &settings(), &mut Scratch::default()).map(|asks| asks.key.shaped(Shape::Plain)).map(|mut key| {
        // Drawn anew for each `Keys`.
        key.slot = 0;
        key
    })
}

fn key(path: &str, headers: &[(&str, &str)], body: &str) -> Key {
    key_of(&call(path, headers, body)).unwrap()
}

#[derive(Debug, Deserialize, Serialize, PartialEq)]
struct Vector {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    canonical: String,
    digest: String,
}

/// The form of a key is a format: gateways of several versions share entries by it. `UPDATE=1` rewrites the vectors,
/// and then [`FORM`] must change too.
#[test]
fn golden_vectors_stand() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/cache-keys.json");
    let text = fs::read_to_string(path).unwrap();
    let written: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert!(written.len() > 10);
    let keys = keys();
    let made: Vec<_> = written
        .iter()
        .map(|vector| {
            let headers: Vec<_> = vector.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            let call = call(&vector.path, &headers, &vector.body);
            let mut form = Vec::new();
            Canonicaliser::default().write(vector.body.as_bytes(), &omitted(&call, &settings()), &mut form).unwrap();
            let asks = keys.of(&call, &settings(), &mut Scratch::default()).unwrap();
            Vector {
                path: vector.path.clone(),
                headers: vector.headers.clone(),
                body: vector.body.clone(),
                canonical: String::from_utf8(form).unwrap(),
                digest: keys.digest(&asks.key).iter().map(|byte| format!("{byte:02x}")).collect(),
            }
        })
        .collect();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(path, serde_json::to_string_pretty(&made).unwrap() + "\n").unwrap();
    } else {
        assert_eq!(made, written);
    }
    assert_eq!(made.iter().map(|vector| &vector.digest).collect::<HashSet<_>>().len(), made.len());
}

#[test]
fn all_parts_of_a_request_are_in_its_key() {
    let json = ("content-type", "application/json");
    let same = key(CHAT, &[json], BODY);
    assert_eq!(key(CHAT, &[("content-type", "Application/JSON; charset=UTF-8")], BODY), same);
    assert_eq!(key(CHAT, &[json, ("x-other", "1"), ("accept", "*/*"), ("user-agent", "x")], BODY), same);
    let mut all = HashSet::from([same]);
    let mut other = |key| assert!(all.insert(key));
    other(key("/v1/completions", &[json], BODY));
    other(key("/v1/chat/completions?x", &[json], BODY));
    other(key(CHAT, &[], BODY));
    other(key(CHAT, &[("content-type", "application/json; charset=latin1")], BODY));
    other(key(CHAT, &[json, json], BODY));
    other(key(CHAT, &[json, ("anthropic-version", "1")], BODY));
    other(key(CHAT, &[json, ("anthropic-beta", "1")], BODY));
    other(key(CHAT, &[json, ("openai-organization", "1")], BODY));
    other(key(CHAT, &[json, ("openai-project", "1")], BODY));
    other(key(CHAT, &[json, ("openai-beta", "1")], BODY));
    other(key_of(&Call { model: Some("n".into()), ..call(CHAT, &[json], BODY) }).unwrap());
    other(key_of(&Call { model: None, ..call(CHAT, &[json], BODY) }).unwrap());
}

#[test]
fn headers_named_in_vary_are_in_the_key() {
    let keys = keys();
    let cache = Cache { vary: vec!["x-b".parse().unwrap(), "x-a".parse().unwrap()], ..settings() };
    let swapped = Cache { vary: vec!["x-a".parse().unwrap(), "x-b".parse().unwrap()], ..settings() };
    let of = |headers: &[(&str, &str)], cache: &Cache| {
        keys.of(&call(CHAT, headers, BODY), cache, &mut Scratch::default()).unwrap().key
    };
    let forms: [&[(&str, &str)]; 9] = [
        &[],
        &[("x-a", "")],
        &[("x-a", "1")],
        &[("x-b", "1")],
        &[("x-a", "1"), ("x-a", "2")],
        &[("x-a", "2"), ("x-a", "1")],
        &[("x-a", "1, 2")],
        &[("x-a", "1"), ("x-b", "2")],
        &[("x-a", "12"), ("x-b", "")],
    ];
    let all: HashSet<_> = forms.iter().map(|headers| of(headers, &cache)).collect();
    assert_eq!(all.len(), forms.len());
    assert_eq!(of(&[("x-b", "2"), ("x-a", "1")], &swapped), of(forms[7], &cache));
}

#[test]
fn who_has_other_credentials_is_another_tenant() {
    let keys = keys();
    let of = |peer: Peer, headers: &[(&str, &str)], scope| {
        let cache = Cache { scope, ..settings() };
        keys.of(&peer_call(peer, CHAT, headers, BODY), &cache, &mut Scratch::default()).unwrap().tenant
    };
    let peer = |byte: Option<u8>| {
        let mut peer = Peer::default();
        peer.identity = byte.map(|byte| Fingerprint([byte; 32]));
        peer
    };
    let tenant = |byte, headers: &[(&str, &str)]| of(peer(byte), headers, CacheScope::Tenant);
    let all = [
        tenant(None, &[]),
        tenant(Some(1), &[]),
        tenant(Some(2), &[]),
        tenant(None, &[("authorization", "Bearer a")]),
        tenant(None, &[("authorization", "Bearer b")]),
        tenant(Some(1), &[("authorization", "Bearer b")]),
        tenant(None, &[("x-api-key", "Bearer a")]),
        tenant(None, &[("api-key", "Bearer a")]),
        tenant(None, &[("cookie", "Bearer a")]),
        tenant(None, &[("cookie", "Bearer "), ("cookie", "a")]),
        tenant(None, &[("authorization", "Bearer a"), ("x-api-key", "b")]),
        tenant(None, &[("authorization", "")]),
        Tenant::default(),
    ];
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    assert_eq!(tenant(None, &[("x-other", "a")]), all[0]);
    assert_eq!(of(peer(Some(1)), &[("authorization", "Bearer a")], CacheScope::Shared), Tenant::default());
    // And the tenant is in the key.
    assert_ne!(key(CHAT, &[("authorization", "a")], BODY), key(CHAT, &[], BODY));
}

#[test]
fn keys_agree_between_gateways_only_by_their_secret() {
    let long = format!(r#"{{"model":"m","messages":["{}"]}}"#, "x".repeat(8 * 1024));
    for body in [BODY, &long] {
        let call = call(CHAT, &[("authorization", "a")], body);
        let digest = |keys: &Keys| {
            let asks = keys.of(&call, &settings(), &mut Scratch::default()).unwrap();
            (keys.digest(&asks.key), asks.tenant)
        };
        assert_eq!(digest(&keys()), digest(&keys()));
        let own = Keys::new(None);
        let other = digest(&Keys::new(Some(&Secret::new("other"))));
        assert_ne!(digest(&keys()).0, other.0);
        assert_ne!(digest(&keys()).1, other.1);
        assert_ne!(digest(&own), digest(&Keys::new(None)));
        let asks = own.of(&call, &settings(), &mut Scratch::default()).unwrap();
        assert_eq!(own.digest(&asks.key), own.digest(&asks.key.shaped(asks.key.shape().other())));
    }
    assert_ne!(keys().seal_key(), Keys::new(Some(&Secret::new("other"))).seal_key());
    assert!(!format!("{:?}", keys()).contains("golden"));
}

#[test]
fn how_an_answer_is_delivered_is_not_in_the_key() {
    let keys = keys();
    let of = |path: &str, more: &str| {
        let body = format!(r#"{{"model":"m","input":"x","prompt":"x"{more}}}"#);
        keys.of(&call(path, &[], &body), &settings(), &mut Scratch::default()).unwrap().key
    };
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"] {
        let plain = of(path, "");
        assert_eq!(plain.shape(), Shape::Plain);
        assert_eq!(of(path, r#","stream":false"#), plain);
        assert_eq!(of(path, r#","stream":true"#), plain.shaped(Shape::Stream));
        assert_eq!(of(path, r#","stream":true"#).slot(), plain.slot());
        // What an engine may or may not take for true.
        assert_ne!(of(path, r#","stream":"true""#), plain);
        assert_ne!(of(path, r#","stream":1"#), plain);
    }
    let usage = r#","stream":true,"stream_options":{"include_usage":true}"#;
    assert_eq!(of(CHAT, usage), of(CHAT, r#","stream":true"#));
    assert_ne!(of("/v1/responses", usage), of("/v1/responses", r#","stream":true"#));
    assert_ne!(of(CHAT, r#","stream_options":{"include_usage":true}"#), of(CHAT, ""));
    // Where there is one shape only, `stream` says nothing that is known.
    assert_eq!(of("/v1/embeddings", r#","stream":true"#).shape(), Shape::Plain);
    assert_ne!(of("/v1/embeddings", r#","stream":true"#), of("/v1/embeddings", ""));
}

#[test]
fn further_members_are_ignored_where_configured() {
    let cache = Cache { ignore: vec!["trace".to_owned()], ..settings() };
    let of = |body: &str| keys().of(&call(CHAT, &[], body), &cache, &mut Scratch::default()).map(|asks| asks.key.proof);
    assert_eq!(of(r#"{"model":"m","trace":1}"#).unwrap(), of(r#"{"model":"m"}"#).unwrap());
    assert_ne!(of(r#"{"model":"m","a":{"trace":1}}"#).unwrap(), of(r#"{"model":"m","a":{}}"#).unwrap());
}

#[test]
fn what_is_not_from_the_body_alone_has_no_key() {
    for (body, why) in [
        (r#"{"a":1,"a":2}"#, Bypass::DuplicateKeys),
        (r#"{"a":"\ud800"}"#, Bypass::NotJson),
        ("[]", Bypass::NotJson),
        (r#"{"web_search_options":{}}"#, Bypass::Tools),
        (r#"{"a":{"url":"http://a"}}"#, Bypass::RemoteContent),
        (r#"{"session_params":{"id":1}}"#, Bypass::Stateful),
    ] {
        assert_eq!(key_of(&call(CHAT, &[], body)).unwrap_err(), why, "{body}");
    }
}

#[test]
fn little_is_held_between_calls() {
    let long = format!(r#"{{"model":"m","messages":["{}"]}}"#, "x".repeat(1 << 20));
    let mut scratch = Scratch::default();
    keys().of(&call(CHAT, &[], &long), &settings(), &mut scratch).unwrap();
    assert!(scratch.material.capacity() <= Scratch::MOST);
}

/// Of the request schemas of OpenAI, Anthropic and vLLM (and some of SGLang's and llama.cpp's), per endpoint.
#[derive(Deserialize)]
struct Schema {
    path: String,
    base: Map<String, Value>,
    ignored: Vec<String>,
    /// Values that keep a request out.
    bypass: Map<String, Value>,
    /// Each with one value that it may have.
    fields: Map<String, Value>,
}

/// Two bodies that differ in one field, or in something within it, never have one key; each has its own again when
/// its members come in another order.
#[test]
fn no_two_bodies_alias() {
    let text = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/request-fields.json")).unwrap();
    let schemas: BTreeMap<String, Schema> = serde_json::from_slice(&text).unwrap();
    assert_eq!(schemas.len(), 7);
    let mut compared = 0;
    for schema in schemas.values() {
        let of = |body: &str| key_of(&call(&schema.path, &[], body));
        for (name, value) in &schema.fields {
            let known = of(&with(&schema.base, name, Some(&value.to_string()), false));
            assert!(known.is_ok(), "{} {name}: {known:?}", schema.path);
            let mut texts = variants(value);
            texts.extend(variants(&Value::Null));
            texts.sort();
            texts.dedup();
            let mut seen = HashSet::new();
            // Absent is a value too.
            for text in texts.iter().map(|text| Some(&**text)).chain([None]) {
                let body = with(&schema.base, name, text, false);
                let Ok(key) = of(&body) else { continue };
                assert_eq!(of(&with(&schema.base, name, text, true)).as_ref(), Ok(&key), "{body}");
                assert!(seen.insert(key), "{} shares its key", body);
                compared += 1;
            }
        }
        let base = of(&with(&schema.base, "", None, false)).unwrap();
        for name in &schema.ignored {
            assert_eq!(of(&with(&schema.base, name, Some("true"), true)).unwrap(), base, "{} {name}", schema.path);
            assert!(!schema.fields.contains_key(name), "{name} is in both lists");
        }
        for (name, value) in &schema.bypass {
            assert!(of(&with(&schema.base, name, Some(&value.to_string()), false)).is_err(), "{name} {value}");
        }
    }
    assert!(compared > 4000, "{compared}");
}

/// `base` with the member `name` set to `text`, or without it; `other` turns order and white space round.
fn with(base: &Map<String, Value>, name: &str, text: Option<&str>, other: bool) -> String {
    let member = |name: &str, text: &str| format!("{}:{text}", Value::from(name));
    let mut members: Vec<_> = base
        .iter()
        .filter_map(|(known, value)| {
            if known == name { text.map(|text| member(name, text)) } else { Some(member(known, &value.to_string())) }
        })
        .collect();
    if !base.contains_key(name) {
        members.extend(text.map(|text| member(name, text)));
    }
    if !other {
        return format!("{{{}}}", members.join(","));
    }
    members.reverse();
    format!(" {{\n  {}\r\n}}\t", members.join(" ,\n  "))
}

/// Spellings of `value` and of values that differ from it in one thing; no two say the same.
fn variants(value: &Value) -> Vec<String> {
    let mut texts = vec![value.to_string()];
    match value {
        Value::Null => texts.extend(["false", "0", "\"\"", "\"null\"", "[]", "{}", "[null]"].map(str::to_owned)),
        Value::Bool(truth) => {
            texts.extend([(!truth).to_string(), format!("\"{truth}\""), u8::from(*truth).to_string()])
        }
        Value::Number(number) => {
            let text = number.to_string();
            texts.extend([format!("{text}e0"), format!("-{text}"), format!("\"{text}\""), format!("{text}1")]);
            texts.push(if text.contains('.') { format!("{text}0") } else { format!("{text}.0") });
            texts.extend(["9007199254740992", "9007199254740993", "1e400", "1E400"].map(str::to_owned));
        }
        Value::String(text) => {
            let of = |text: String| Value::from(text).to_string();
            texts.extend([" ", "\u{e9}", "e\u{301}", "\0", "\u{1f600}", "\""].map(|more| of(format!("{text}{more}"))));
            texts.push(of(text.to_uppercase() + "X"));
            texts.push(json!([text]).to_string());
        }
        Value::Array(elements) => {
            let of = |elements: &[String]| format!("[{}]", elements.join(","));
            let spelled: Vec<_> = elements.iter().map(Value::to_string).collect();
            texts.push(of(&spelled.iter().rev().cloned().collect::<Vec<_>>()));
            texts.push(format!("[{value}]"));
            texts.push(format!("{{\"0\":{value}}}"));
            texts.push(of(&[&spelled[..], &["null".to_owned()]].concat()));
            for (index, element) in elements.iter().enumerate() {
                texts.push(of(&[&spelled[..index], &spelled[index + 1..]].concat()));
                for variant in variants(element) {
                    let mut spelled = spelled.clone();
                    spelled[index] = variant;
                    texts.push(of(&spelled));
                }
            }
        }
        Value::Object(members) => {
            texts.push(format!("[{value}]"));
            texts.push(Value::from(value.to_string()).to_string());
            for (name, member) in members {
                texts.push(with(members, name, None, false));
                texts.push(with(members, "\u{0}new", Some(&member.to_string()), false));
                texts.extend(variants(member).iter().map(|text| with(members, name, Some(text), false)));
            }
        }
    }
    texts
}

/// docs/cache.md lists what is left out.
#[test]
fn documentation_tells_what_is_left_out() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cache.md")).unwrap();
    let table = text.split("<!-- ignored").nth(1).and_then(|rest| rest.split("<!-- /ignored").next()).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert_eq!(rows.len(), 7);
    for row in rows {
        let mut words = row.split('`').skip(1).step_by(2);
        let body = r#"{"stream":true}"#;
        let cache = settings();
        let call = call(words.next().unwrap(), &[], body);
        let omit = omitted(&call, &cache);
        let mut expected = omit.members.to_vec();
        expected.extend(omit.stream.then_some("stream"));
        expected.extend(omit.usage.then_some("stream_options"));
        assert_eq!(words.collect::<Vec<_>>(), expected, "{row}");
    }
    for bypass in Bypass::ALL {
        assert!(text.contains(&format!("| `{}` |", bypass.detail())), "{bypass:?}");
    }
}
