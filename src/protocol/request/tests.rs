use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::protocol::json::{MAX_DEPTH, MAX_KEYS, scan};

/// `tests/fixtures/bodies.json`, which `tests/it/validation.rs` sends through a gateway and `tests/real` to engines.
/// `UPDATE=1` rewrites what it says of the two levels.
#[test]
fn bodies_are_judged_as_the_fixture_says() {
    let mut wrong = Vec::new();
    let mut lines = Vec::new();
    for mut case in fixture() {
        for (level, key) in [(Level::Light, "light"), (Level::Strict, "strict")] {
            let judged = match read(case.endpoint, &case.body, level) {
                Ok(_) => json!("pass"),
                Err(Invalid { param, message }) => json!({"param": param, "message": message}),
            };
            if judged != case.said[key] {
                wrong.push(format!("{} ({key}): {judged}, not {}", case.name, case.said[key]));
            }
            case.said[key] = judged;
        }
        lines.push(case.said.to_string());
    }
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/bodies.json");
        std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n"))).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What passes the strict level passes the light one, and both read the same from it as the scan that judges nothing.
#[test]
fn strict_is_stricter_and_all_read_the_same() {
    for case in fixture() {
        let Ok(light) = read(case.endpoint, &case.body, Level::Light) else {
            assert!(read(case.endpoint, &case.body, Level::Strict).is_err(), "{}", case.name);
            continue;
        };
        if let Ok(strict) = read(case.endpoint, &case.body, Level::Strict) {
            assert_eq!(strict, light, "{}", case.name);
        }
        let mut scanned = scan(&case.body).unwrap();
        if !matches!(case.endpoint, Endpoint::Chat | Endpoint::Completions) {
            // Nobody else has this.
            scanned.include_usage = None;
        }
        assert_eq!(scanned, light, "{}", case.name);
    }
}

struct Case {
    name: String,
    endpoint: Endpoint,
    body: Vec<u8>,
    said: Json,
}

fn fixture() -> Vec<Case> {
    let all: Vec<Json> = serde_json::from_str(include_str!("../../../tests/fixtures/bodies.json")).unwrap();
    all.into_iter()
        .map(|said| Case {
            name: said["name"].as_str().unwrap().to_owned(),
            endpoint: match said["endpoint"].as_str().unwrap() {
                "chat" => Endpoint::Chat,
                "completions" => Endpoint::Completions,
                "embeddings" => Endpoint::Embeddings,
                "responses" => Endpoint::Responses,
                "messages" => Endpoint::Messages,
                "count_tokens" => Endpoint::CountTokens,
                "rerank" => Endpoint::Rerank,
                "score" => Endpoint::Score,
                other => panic!("no such endpoint: {other}"),
            },
            body: body_of(&said),
            said,
        })
        .collect()
}

fn body_of(said: &Json) -> Vec<u8> {
    if let Some(hex) = said["hex"].as_str() {
        return hex
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
    }
    let body = said["body"].as_str().unwrap();
    let Some([open, times, close]) = said["repeat"].as_array().map(Vec::as_slice) else { return body.into() };
    let (open, close) = (open.as_str().unwrap(), close.as_str().unwrap());
    let times = usize::try_from(times.as_u64().unwrap()).unwrap();
    let inner = if close.is_empty() { "" } else { "0" };
    body.replace("@{1}@", &format!("{}{inner}{}", open.repeat(times), close.repeat(times))).into()
}

fn light(body: &str) -> Result<Fields<'_>, Invalid> {
    read(Endpoint::Chat, body.as_bytes(), Level::Light)
}

#[test]
fn the_bounds_are_those_that_are_listed() {
    let chat = |more: &str| format!(r#"{{"messages":[],"x":{more}}}"#);
    let nested = |levels: usize| chat(&format!("{}{}", "[".repeat(levels), "]".repeat(levels)));
    // The body itself is a level.
    assert!(light(&nested(MAX_DEPTH - 1)).is_ok());
    assert!(light(&nested(MAX_DEPTH)).is_err());
    let deep = format!(r#"{{"messages":[{{"role":"user","content":[{}]}}]}}"#, "[".repeat(MAX_DEPTH));
    assert!(light(&deep).unwrap_err().message.contains("nested too deeply"));
    let members = |count: usize| chat(&format!("{{{}\"z\":0}}", "\"k\":0,".repeat(count - 3)));
    assert!(light(&members(MAX_KEYS)).is_ok());
    assert!(light(&members(MAX_KEYS + 1)).unwrap_err().message.contains("too many members"));
    for (name, spelled) in [("n", "4096"), ("n", "\"4_096\""), ("best_of", "4.096e3")] {
        assert!(light(&format!(r#"{{"messages":[],"{name}":{spelled}}}"#)).is_ok(), "{spelled}");
        let more = spelled.replace('6', "7");
        assert!(light(&format!(r#"{{"messages":[],"{name}":{more}}}"#)).is_err(), "{more}");
    }
    assert_eq!(BOUNDS.iter().map(|bound| bound.most).collect::<Vec<_>>(), [512, 1_000_000, 4096]);
}

#[test]
fn text_is_judged_wherever_it_stands() {
    let pad = "x".repeat(40);
    for place in
        ["{\"messages\":[],\"@\":1}", "{\"messages\":[],\"x\":\"@\"}", "{\"messages\":[],\"x\":[{\"y\":[\"@\"]}]}"]
    {
        for before in [0, 1, 7, 8, 15, 16, 17, 33] {
            let body = |inside: &str| place.replace('@', &format!("{}{inside}{}", &pad[..before], pad));
            for fine in [r"\n", r"\u00e9", r"\ud800", "\u{7f}", "é", r#"\"\\\/\b\f\r\t"#] {
                assert_eq!(light(&body(fine)).map(drop), Ok(()), "{}", body(fine));
            }
            for wrong in ["\n", "\u{1}", "\u{1f}", "\0", r"\x", r"\u12g4", r"\u12"] {
                let at = body(wrong).find(wrong).unwrap();
                let message = light(&body(wrong)).unwrap_err().message;
                assert!(message.contains(&format!("at byte {at}:")), "{message} {}", body(wrong));
            }
        }
    }
}

#[test]
fn paths_lead_to_the_value() {
    let fault = || Fault::new("x").under("image_url").at(0).under("content").at(3).under("messages");
    assert_eq!(fault().told().param.as_deref(), Some("messages[3].content[0].image_url"));
    let fault = Fault::from(Malformed { offset: 3, what: "y" }).at(1).under("z").told();
    assert_eq!(fault.param, None);
    assert_eq!(fault.message, "The request's body is not valid: invalid JSON at byte 3: y.");
}

#[test]
fn messages_repeat_little_of_the_body() {
    let word = format!("a\\u0000{}", "é".repeat(10_000));
    let message = light(&format!(r#"{{"messages":[],"tool_choice":"{word}"}}"#)).unwrap_err().message;
    assert!(message.len() < 300 && !message.contains('\0'), "{message}");
}

/// Values as they stand in requests, right and wrong.
fn value() -> impl Strategy<Value = Json> {
    let word = prop::sample::select(vec![
        "user",
        "assistant",
        "auto",
        "text",
        "image_url",
        "data:image/png;base64,QQ==",
        "json_schema",
        "f",
        "é\n\"",
    ]);
    let name = prop::sample::select(vec![
        "role",
        "content",
        "type",
        "text",
        "image_url",
        "url",
        "function",
        "name",
        "source",
        "data",
        "json_schema",
        "schema",
        "x",
    ]);
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Into::into),
        (-3_i64..5000).prop_map(Into::into),
        (-3.0_f64..3.0).prop_map(Into::into),
        word.prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((name.clone(), inner), 0..4).prop_map(|members| Json::Object(
                members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    use Endpoint::*;
    prop::sample::select(vec![Chat, Completions, Embeddings, Responses, Messages, CountTokens, Rerank, Score])
}

proptest! {
    #[test]
    fn whatever_is_said_is_judged(
        endpoint in any_endpoint(),
        members in prop::collection::vec((0_usize..64, value()), 0..5),
        pretty in any::<bool>(),
    ) {
        let fields = schema::of(endpoint).fields;
        let body: serde_json::Map<_, _> =
            members.into_iter().map(|(at, value)| (fields[at % fields.len()].name.to_owned(), value)).collect();
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        let (light, strict) = (read(endpoint, text.as_bytes(), Level::Light), read(endpoint, text.as_bytes(), Level::Strict));
        if let Ok(strict) = &strict {
            prop_assert_eq!(Ok(strict), light.as_ref());
        }
        for fault in [light.err(), strict.err()].into_iter().flatten() {
            let param = fault.param.expect("it is JSON");
            let pointer = format!("/{}", param.replace('[', "/").replace(']', "").replace('.', "/"));
            let parent = pointer.rsplit_once('/').unwrap().0;
            prop_assert!(Json::Object(body.clone()).pointer(parent).is_some(), "{param} is nowhere in {text}");
        }
    }

    #[test]
    fn only_json_passes(text in "\\{\"messages\":\\[\\],\"[a\"\\\\u0-9n\n]{0,6}\":[\\[\\]{}\",:0-9.eE+ truefalsn-]{0,8}\\}") {
        let full = serde_json::from_str::<Json>(&text);
        prop_assert_eq!(light(&text).is_ok(), full.is_ok() || lone_surrogate(&text), "{}", text);
    }

    #[test]
    fn any_bytes_are_answered(endpoint in any_endpoint(), bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = read(endpoint, &bytes, Level::Strict);
    }
}

/// What the grammar of RFC 8259 has, but no Unicode text: the full parser refuses it.
fn lone_surrogate(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}
