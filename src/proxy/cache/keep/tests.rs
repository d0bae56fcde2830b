use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn headers(list: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    list.iter().map(pair).fold(HeaderMap::new(), |mut map, (name, value)| {
        map.append(name, value);
        map
    })
}

/// A plain chat answer's head with these headers more.
fn judged(more: &[(&str, &str)]) -> Result<HeaderMap, Reason> {
    let list = [&[("content-type", "application/json; charset=utf-8")], more].concat();
    head(Endpoint::Chat, Shape::Plain, StatusCode::OK, &headers(&list), &[HeaderName::from_static("x-lora")])
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[test]
fn what_a_head_may_not_say() {
    for (more, reason) in [
        (&[("set-cookie", "a=b")][..], "set-cookie"),
        (&[("content-encoding", "gzip")], "content-encoding"),
        (&[("cache-control", "no-store")], "cache-control"),
        (&[("cache-control", "public, Private")], "cache-control"),
        (&[("cache-control", "public"), ("cache-control", "private=\"x-user\"")], "cache-control"),
        (&[("cache-control", "no-cache")], "cache-control"),
        (&[("cache-control", "max-age=0")], "cache-control"),
        (&[("cache-control", "s-maxage=\"0\"")], "cache-control"),
        (&[("vary", "*")], "vary"),
        (&[("vary", "Origin, *")], "vary"),
        (&[("vary", "Origin"), ("vary", "Authorization")], "vary"),
        (&[("vary", "x-request-id")], "vary"),
        (&[("vary", "Cookie")], "vary"),
        (&[("content-type", "application/json")], "content-type"),
    ] {
        assert_eq!(judged(more), Err(reason), "{more:?}");
    }
    for more in [
        &[("cache-control", "public, max-age=60")][..],
        &[("content-encoding", "identity")],
        &[("vary", "Origin, accept-encoding"), ("vary", "X-LoRA,")],
    ] {
        assert!(judged(more).is_ok(), "{more:?}");
    }
}

#[test]
fn status_and_type_by_shape() {
    let of = |endpoint, shape, status, kind: &str| {
        head(endpoint, shape, status, &headers(&[("content-type", kind)]), &[]).map(|_| ())
    };
    let ok = StatusCode::OK;
    assert_eq!(of(Endpoint::Chat, Shape::Stream, ok, "text/event-stream; charset=utf-8"), Ok(()));
    assert_eq!(of(Endpoint::Chat, Shape::Plain, ok, "Application/JSON"), Ok(()));
    assert_eq!(of(Endpoint::Chat, Shape::Plain, ok, "text/event-stream"), Err("content-type"));
    assert_eq!(of(Endpoint::Chat, Shape::Stream, ok, "application/json"), Err("content-type"));
    assert_eq!(of(Endpoint::Embeddings, Shape::Stream, ok, "text/event-stream"), Err("content-type"));
    assert_eq!(of(Endpoint::Chat, Shape::Plain, ok, "text/html"), Err("content-type"));
    for status in [201, 202, 206, 304, 400, 429, 500, 503] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(of(Endpoint::Chat, Shape::Plain, status, "application/json"), Err("status"));
    }
    assert_eq!(head(Endpoint::Chat, Shape::Plain, ok, &HeaderMap::new(), &[]), Err("content-type"));
}

#[test]
fn only_what_is_everybodys_is_replayed() {
    let kept = judged(&[
        ("server", "uvicorn"),
        ("vary", "Origin"),
        ("x-accel-buffering", "no"),
        ("access-control-allow-origin", ""),
        ("connection", "close, X-Robots-Tag"),
        ("x-robots-tag", "none"),
        ("x-request-id", "r"),
        ("request-id", "r"),
        ("x-vllm-request-id", "r"),
        ("date", "Tue, 24 Nov 2026 14:00:00 GMT"),
        ("age", "3"),
        ("content-length", "3"),
        ("x-ratelimit-remaining-requests", "3"),
        ("anthropic-ratelimit-tokens-limit", "3"),
        ("retry-after", "3"),
        ("openai-processing-ms", "3"),
        ("openai-organization", "acme"),
        ("cf-ray", "r"),
        ("traceparent", "00-0-0-00"),
        ("server-timing", "a"),
        ("via", "1.1 x"),
        ("cache-status", "x; hit"),
        ("etag", "\"x\""),
        ("x-anything", "new"),
    ])
    .unwrap();
    let mut names: Vec<_> = kept.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["access-control-allow-origin", "content-type", "server", "vary", "x-accel-buffering"]);
}

#[test]
fn whole_streams_are_kept_and_others_are_not() {
    use Endpoint::{Chat, Completions, Messages, Responses};
    for (name, endpoint, expected) in [
        ("vllm-chat", Chat, Ok(())),
        ("vllm-chat-n2", Chat, Ok(())),
        ("vllm-chat-tools", Chat, Ok(())),
        ("vllm-completions", Completions, Ok(())),
        ("sglang-chat", Chat, Ok(())),
        ("llamacpp-chat", Chat, Ok(())),
        ("llamacpp-chat-timings", Chat, Ok(())),
        ("anthropic-messages", Messages, Ok(())),
        ("responses", Responses, Ok(())),
        ("responses-incomplete", Responses, Ok(())),
        ("vllm-chat-error", Chat, Err("error")),
        ("sglang-chat-error", Chat, Err("error")),
        ("tgi-chat-error", Chat, Err("error")),
        ("vllm-chat-abort", Chat, Err("aborted")),
        ("vllm-chat-cut", Chat, Err("cut")),
        // No [DONE].
        ("transformers-chat", Chat, Err("unfinished")),
        ("llamacpp-native", Chat, Err("unknown-event")),
        ("anthropic-error", Messages, Err("error")),
        ("responses-failed", Responses, Err("error")),
        ("responses-error", Responses, Err("error")),
        ("vllm-chat", Endpoint::Embeddings, Err("kind")),
        ("vllm-chat", Endpoint::Passthrough, Err("kind")),
        ("vllm-chat", Messages, Err("unknown-event")),
    ] {
        assert_eq!(body(endpoint, Shape::Stream, &fixture(&format!("{name}.sse"))), expected, "{name}");
    }
}

/// Every recording of a real engine, plain and streamed.
fn recordings() -> Vec<(Endpoint, Shape, Vec<u8>)> {
    let dir = format!("{}/tests/fixtures/real", env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let endpoint = match name.split('-').nth(1).unwrap().split('.').next().unwrap() {
            "chat" => Endpoint::Chat,
            "completions" => Endpoint::Completions,
            "responses" => Endpoint::Responses,
            _ => Endpoint::Messages,
        };
        let shape = Shape::of(path.extension().is_some_and(|kind| kind == "sse"));
        all.push((endpoint, shape, std::fs::read(&path).unwrap()));
    }
    assert!(all.len() > 30);
    all
}

#[test]
fn real_answers_are_kept_and_no_beginning_of_one_is() {
    for (endpoint, shape, whole) in recordings() {
        assert_eq!(body(endpoint, shape, &whole), Ok(()), "{}", String::from_utf8_lossy(&whole));
        // Of long ones, every byte of the first and the last events.
        let long = whole.len() > 3000;
        for at in (0..whole.len()).filter(|at| !long || *at < 500 || whole.len() - at < 1500) {
            assert!(body(endpoint, shape, &whole[..at]).is_err(), "{at} of {}", String::from_utf8_lossy(&whole));
        }
    }
}

#[test]
fn no_beginning_of_a_made_up_one_either() {
    for (name, endpoint) in [
        ("vllm-chat", Endpoint::Chat),
        ("vllm-chat-n2", Endpoint::Chat),
        ("anthropic-messages", Endpoint::Messages),
        ("responses", Endpoint::Responses),
    ] {
        let whole = fixture(&format!("{name}.sse"));
        for at in 0..whole.len() {
            assert!(body(endpoint, Shape::Stream, &whole[..at]).is_err(), "{name} {at}");
        }
    }
}

fn chat(text: &str) -> Result<(), Reason> {
    body(Endpoint::Chat, Shape::Plain, text.as_bytes())
}

#[test]
fn poisoned_plain_answers() {
    assert_eq!(chat(r#"{"choices":[{"index":0,"finish_reason":"stop"}],"error":null}"#), Ok(()));
    for (text, reason) in [
        (r#"{"choices":[{"index":0,"finish_reason":null}]}"#, "unfinished"),
        (r#"{"choices":[{"index":0}]}"#, "unfinished"),
        (r#"{"choices":[{"index":0,"finish_reason":""}]}"#, "unfinished"),
        (r#"{"choices":[]}"#, "unfinished"),
        (r#"{}"#, "unfinished"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":null}]}"#, "unfinished"),
        (r#"{"choices":[{"index":1,"finish_reason":"stop"}]}"#, "unfinished"),
        (r#"{"choices":[{"index":0,"finish_reason":"abort"}]}"#, "aborted"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":"error"}]}"#, "aborted"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"}],"error":{"message":"x"}}"#, "error"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop","error":{"code":502}}]}"#, "error"),
        (r#"{"object":"error","message":"x"}"#, "error"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"}],"choices":[]}"#, "duplicate"),
        (r#"{"choices":[{"index":128,"finish_reason":"stop"}]}"#, "too-many-choices"),
        (r#"{"choices":["stop"]}"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"}]"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"}]}}"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop"}],}"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop","x":"\x"}]}"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop","x":"\u12G4"}]}"#, "json"),
        ("{\"choices\":[{\"index\":0,\"finish_reason\":\"stop\",\"x\":\"a\nb\"}]}", "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop","x":01}]}"#, "json"),
        (r#"{"choices":[{"index":0,"finish_reason":"stop","x":NaN}]}"#, "json"),
        (r#"[{"finish_reason":"stop"}]"#, "json"),
        ("Internal Server Error", "json"),
        ("", "json"),
    ] {
        assert_eq!(chat(text), Err(reason), "{text}");
    }
    assert_eq!(body(Endpoint::Chat, Shape::Plain, b"{\"x\":\"\xff\"}"), Err("utf-8"));
    // White space between values is none of a string's.
    assert_eq!(chat("{\n\t\"choices\":\r\n[{\"index\":0,\"finish_reason\":\"stop\",\"x\":\"\\\\\\\"\"}]}\n"), Ok(()));
}

#[test]
fn poisoned_streams() {
    let event = |json: &str| format!("data: {json}\n\n");
    let good = event(r#"{"choices":[{"index":0,"finish_reason":"stop"}]}"#);
    let done = event("[DONE]");
    let of = |text: &str| body(Endpoint::Chat, Shape::Stream, text.as_bytes());
    assert_eq!(of(&(good.clone() + &done)), Ok(()));
    assert_eq!(of(&(": ping\n\n".to_owned() + &good + ": ping\n\n" + &done)), Ok(()));
    for (text, reason) in [
        (good.clone(), "unfinished"),
        (done.clone(), "unfinished"),
        (good.clone() + &done + &good, "after-end"),
        (good.clone() + &done + &done, "after-end"),
        (good.clone() + &event("not json") + &done, "json"),
        (good.clone() + &event(r#"{"choices":[{"index":1,"finish_reason":null}]}"#) + &done, "unfinished"),
        (good.clone() + &event(r#"{"error":{"message":"x"}}"#) + &done, "error"),
        (good.clone() + &event(r#"{"detail":"x"}"#) + &done, "unknown-event"),
        (good.clone() + "event: error\ndata: {\"choices\":[]}\n\n" + &done, "error"),
        (good.clone() + &event("[DONE]").replace("\n\n", "\n"), "cut"),
        (good + &done + "data: {\"choices", "cut"),
    ] {
        assert_eq!(of(&text), Err(reason), "{text}");
    }
    let of = |text: &str| body(Endpoint::Messages, Shape::Stream, text.as_bytes());
    assert_eq!(of(&event(r#"{"type":"message_stop"}"#)), Err("unfinished"));
    let aborted =
        event(r#"{"type":"message_delta","delta":{"stop_reason":"abort"}}"#) + &event(r#"{"type":"message_stop"}"#);
    assert_eq!(of(&aborted), Err("aborted"));
    let of = |text: &str| body(Endpoint::Responses, Shape::Stream, text.as_bytes());
    let last = |status: &str| event(&format!(r#"{{"type":"response.completed","response":{{"status":"{status}"}}}}"#));
    assert_eq!(of(&last("completed")), Ok(()));
    assert_eq!(of(&last("in_progress")), Err("unfinished"));
    assert_eq!(of(&last("cancelled")), Err("aborted"));
}

#[test]
fn other_plain_answers() {
    let of = |endpoint, text: &str| body(endpoint, Shape::Plain, text.as_bytes());
    assert_eq!(of(Endpoint::Embeddings, r#"{"data":[{"embedding":[0.1,-2e-3]}]}"#), Ok(()));
    assert_eq!(of(Endpoint::Rerank, r#"[{"score":0.5,"index":0}]"#), Ok(()));
    assert_eq!(of(Endpoint::Score, r#"{"data":[],"error":{"code":1}}"#), Err("error"));
    assert_eq!(of(Endpoint::Embeddings, r#"{"data":[{"embedding":[0.1,"#), Err("json"));
    assert_eq!(of(Endpoint::Responses, r#"{"status":"completed","error":null}"#), Ok(()));
    assert_eq!(of(Endpoint::Responses, r#"{"status":"incomplete"}"#), Ok(()));
    assert_eq!(of(Endpoint::Responses, r#"{"status":"queued"}"#), Err("unfinished"));
    assert_eq!(of(Endpoint::Responses, r#"{"status":"failed","error":null}"#), Err("aborted"));
    assert_eq!(of(Endpoint::Messages, r#"{"type":"message","stop_reason":"end_turn"}"#), Ok(()));
    assert_eq!(of(Endpoint::Messages, r#"{"type":"message","stop_reason":null}"#), Err("unfinished"));
    assert_eq!(of(Endpoint::Messages, r#"{"type":"error","error":{"type":"api_error"}}"#), Err("error"));
    assert_eq!(of(Endpoint::Models, r#"{"data":[]}"#), Err("kind"));
}

proptest! {
    /// What is kept parses with a strict reader, too.
    #[test]
    fn kept_is_strict_json(text in "[\\\\\"u0-9a-f{}\\[\\],:\n\t x]{0,24}") {
        let whole = format!("{{\"data\":{text}}}");
        if body(Endpoint::Embeddings, Shape::Plain, whole.as_bytes()).is_ok() {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&whole).is_ok(), "{}", whole);
        }
        let quoted = serde_json::json!({ "data": text }).to_string();
        prop_assert_eq!(body(Endpoint::Embeddings, Shape::Plain, quoted.as_bytes()), Ok(()));
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        for endpoint in [Endpoint::Chat, Endpoint::Responses, Endpoint::Messages, Endpoint::Embeddings] {
            for shape in [Shape::Plain, Shape::Stream] {
                let _ = body(endpoint, shape, &Bytes::copy_from_slice(&bytes));
            }
        }
    }
}
