use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use proptest::prelude::*;
use serde_json::Value;
use tokio::time::Instant;

use super::*;
use crate::{
    protocol::usage::{Finish, Usage},
    proxy::cache::{Facts, Tenant, edit::Edit, keep},
};

fn entry(endpoint: Endpoint, shape: Shape, body: &str) -> Entry {
    let now = Instant::now();
    Entry {
        endpoint,
        shape,
        headers: HeaderMap::new(),
        body: Bytes::copy_from_slice(body.as_bytes()),
        facts: Facts { usage: Usage::default(), finish: Finish::Stop, engine: None, took: Duration::ZERO, told: true },
        model: Some(Arc::from("m")),
        tenant: Tenant::default(),
        stored: now,
        expires: now,
        strict: false,
    }
}

fn made(endpoint: Endpoint, from: Shape, body: &str) -> Option<String> {
    convert(&entry(endpoint, from, body), from.other()).map(|made| String::from_utf8(made.to_vec()).unwrap())
}

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/real/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// `text` with what differs between any two runs blanked: ids, times, timings, the last bits of log probabilities.
/// Everything else, the order of members and the spelling of values included, stays.
fn blanked(text: &str) -> String {
    let id = |c: char| c.is_ascii_alphanumeric();
    let mut out = String::new();
    let mut rest = text;
    loop {
        let marks =
            ["\"chatcmpl-", "\"cmpl-", "\"resp_", "\"msg_", "\"created\":", "\"created_at\":", "\"completed_at\":"];
        let logs = ["\"logprob\":"];
        let timing = ["_ms\":", "_per_second\":"];
        let all = marks.iter().chain(&logs).chain(&timing);
        let Some((at, mark)) = all.filter_map(|mark| Some((rest.find(mark)?, *mark))).min() else {
            return out + rest;
        };
        let (before, after) = rest.split_at(at + mark.len());
        out += before;
        // Numbers of one run to two digits after the point.
        if logs.contains(&mark) {
            out += &after[..5];
        }
        rest = after.trim_start_matches(|c: char| id(c) || matches!(c, '.' | '-' | '+'));
    }
}

/// The proof for stream → plain: the same bytes as the engine's own plain answer to the same request.
#[test]
fn a_stream_made_plain_is_the_engines_plain_answer() {
    use Endpoint::{Chat, Completions, Messages, Responses};
    for (name, endpoint, stream) in [
        ("llamacpp-chat", Chat, "-usage.sse"),
        ("llamacpp-chat-stop", Chat, "-usage.sse"),
        ("llamacpp-chat-stopword", Chat, "-usage.sse"),
        ("llamacpp-chat-n2", Chat, "-usage.sse"),
        ("llamacpp-chat-logprobs", Chat, "-usage.sse"),
        ("llamacpp-completions", Completions, ".sse"),
        ("llamacpp-completions-n2", Completions, ".sse"),
        ("llamacpp-completions-logprobs", Completions, ".sse"),
        ("llamacpp-responses", Responses, ".sse"),
        ("llamacpp-responses-stop", Responses, ".sse"),
        ("llamacpp-messages", Messages, ".sse"),
        ("llamacpp-messages-stopword", Messages, ".sse"),
        ("vllm-chat", Chat, "-usage.sse"),
        ("vllm-chat-length", Chat, "-usage.sse"),
        ("vllm-chat-n2", Chat, "-usage.sse"),
        ("vllm-completions", Completions, "-usage.sse"),
        ("vllm-completions-n2", Completions, "-usage.sse"),
    ] {
        let made = made(endpoint, Shape::Stream, &fixture(&format!("{name}{stream}")));
        let made = made.unwrap_or_else(|| panic!("{name} is not converted"));
        let theirs = fixture(&format!("{name}.json"));
        if name.starts_with("vllm") {
            assert_eq!(made, theirs, "{name}");
        }
        assert_eq!(blanked(&made), blanked(&theirs), "{name}");
        assert_eq!(keep::body(endpoint, Shape::Plain, made.as_bytes()), Ok(()));
    }
}

/// What cannot be told from the stream, or is not in it.
#[test]
fn what_is_not_proven_is_not_made() {
    use Endpoint::{Chat, Completions};
    // No usage in the stream.
    for name in ["llamacpp-chat.sse", "vllm-chat.sse", "llamacpp-chat-n2.sse"] {
        assert_eq!(made(Chat, Shape::Stream, &fixture(name)), None, "{name}");
    }
    assert_eq!(made(Completions, Shape::Stream, &fixture("vllm-completions.sse")), None);
    // An empty text: whether log probabilities were asked for does not show.
    assert_eq!(made(Chat, Shape::Stream, &fixture("llamacpp-chat-empty-usage.sse")), None);
    let chat = fixture("llamacpp-chat-usage.sse");
    let vllm = fixture("vllm-chat-usage.sse");
    for (stream, from, to) in [
        (&chat, "\"delta\":{\"content\":\"I\"}", "\"delta\":{\"reasoning_content\":\"I\"}"),
        (&chat, "\"delta\":{\"content\":\"I\"}", "\"delta\":{\"tool_calls\":[]}"),
        (&chat, "\"delta\":{\"content\":\"I\"}", "\"delta\":{\"content\":\"I\"},\"x\":1"),
        (&chat, "\"index\":0", "\"index\":1"),
        (
            &chat,
            "\"system_fingerprint\":\"b0-unknown\",\"object\":\"chat.completion.chunk\",\"usage\"",
            "\"object\":\"chat.completion.chunk\",\"usage\"",
        ),
        (&chat, "data: [DONE]\n\n", ""),
        (&chat, "\"finish_reason\":\"length\"", "\"finish_reason\":null"),
        (&vllm, "vllm-0.32.0", "vllm-0.33.0"),
        (&vllm, "\"content\":\"The\"", "\"content\":\"<think>\""),
        (&vllm, "\"content\":\"The\"", "\"reasoning\":\"The\""),
        (&vllm, "\"finish_reason\":null,\"token_ids\":null", "\"finish_reason\":null,\"token_ids\":[5]"),
        (
            &vllm,
            "\"prompt_tokens_details\"",
            "\"completion_tokens_details\":{\"reasoning_tokens\":0},\"prompt_tokens_details\"",
        ),
        (&vllm, "\"system_fingerprint\"", "\"metrics\":{},\"system_fingerprint\""),
    ] {
        let changed = stream.replace(from, to);
        assert_ne!(&changed, stream, "{from}");
        let single = if from == "\"index\":0" { changed.replacen(to, from, 1) } else { changed };
        assert_eq!(made(Chat, Shape::Stream, &single), None, "{from} -> {to}");
    }
    // One more token in one shape than in the other.
    let logged = fixture("llamacpp-chat-logprobs-usage.sse");
    assert_eq!(made(Chat, Shape::Stream, &logged.replace("\"length\"", "\"stop\"")), None);
    assert_eq!(made(Chat, Shape::Stream, &logged.replace("\"completion_tokens\":3", "\"completion_tokens\":4")), None);
    // Other engines, other endpoints, and their own errors.
    for name in
        ["sglang-chat", "transformers-chat", "vllm-chat", "vllm-chat-tools", "tgi-chat-error", "llamacpp-chat-timings"]
    {
        let stream = fixture(&format!("../{name}.sse"));
        assert_eq!(made(Chat, Shape::Stream, &stream), None, "{name}");
    }
    for endpoint in [Endpoint::Embeddings, Endpoint::Rerank, Endpoint::Score] {
        assert_eq!(made(endpoint, Shape::Plain, r#"{"data":[]}"#), None);
    }
    assert_eq!(made(Endpoint::Responses, Shape::Plain, &fixture("llamacpp-responses.json")), None);
    // The first token is a part of a character: there the engine leaves out the event with the role, or with the id.
    assert_eq!(made(Chat, Shape::Plain, &fixture("llamacpp-chat-stop.json")), None);
    assert_eq!(made(Endpoint::Messages, Shape::Plain, &fixture("llamacpp-messages-stop.json")), None);
    assert_eq!(made(Endpoint::Messages, Shape::Stream, &fixture("llamacpp-messages-stop.sse")), None);
    // Several choices: each has a usage of its own in llama.cpp's stream.
    assert_eq!(made(Chat, Shape::Plain, &fixture("llamacpp-chat-n2.json")), None);
}

/// The proof for plain → stream: every event has the members of one the engine sends at that place, and the stream, made
/// plain again, is the answer.
#[test]
fn a_plain_answer_made_a_stream_adds_up_to_it() {
    use Endpoint::{Chat, Completions, Messages};
    for (name, endpoint) in [
        ("llamacpp-chat", Chat),
        ("llamacpp-chat-stopword", Chat),
        ("llamacpp-chat-logprobs", Chat),
        ("llamacpp-completions", Completions),
        ("llamacpp-completions-logprobs", Completions),
        ("llamacpp-messages", Messages),
        ("llamacpp-messages-stopword", Messages),
        ("vllm-chat", Chat),
        ("vllm-chat-n2", Chat),
        ("vllm-completions", Completions),
        ("vllm-completions-n2", Completions),
    ] {
        let plain = fixture(&format!("{name}.json"));
        let stream = made(endpoint, Shape::Plain, &plain).unwrap_or_else(|| panic!("{name} is not converted"));
        assert_eq!(keep::body(endpoint, Shape::Stream, stream.as_bytes()), Ok(()), "{name}");
        assert_eq!(made(endpoint, Shape::Stream, &stream).as_deref(), Some(&*plain), "{name}");
        let asked = if matches!(endpoint, Messages) || name.starts_with("llamacpp-compl") { "" } else { "-usage" };
        let theirs = fixture(&format!("{name}{asked}.sse"));
        let shapes = |stream: &str| {
            let mut shapes: Vec<_> =
                events(stream).unwrap().iter().map(|(name, data)| format!("{name} {}", skeleton(data))).collect();
            shapes.dedup();
            shapes
        };
        if name.starts_with("llamacpp") {
            assert_eq!(shapes(&stream).len(), shapes(&theirs).len(), "{name}\n{stream}\n{theirs}");
        }
        for shape in shapes(&stream) {
            assert!(shapes(&theirs).contains(&shape), "{name}: {shape} is none of\n{:#?}", shapes(&theirs));
        }
        // Who did not ask gets what the engine sends without the question.
        let edit = Edit { endpoint, alias: None, strip_usage: true };
        let stripped = edit.whole(Shape::Stream, &Bytes::from(stream));
        let theirs = fixture(&format!("{name}.sse"));
        for shape in shapes(std::str::from_utf8(&stripped).unwrap()) {
            assert!(shapes(&theirs).contains(&shape), "{name}: {shape} is none of\n{:#?}", shapes(&theirs));
        }
    }
}

/// The text with every string that is no name and every number left out.
fn skeleton(json: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(json) else { return json.to_owned() };
    fn write(value: &Value, json: &str, out: &mut String) {
        match value {
            // The order is the text's own: a map would sort it.
            Value::Object(map) => {
                let mut names: Vec<_> = map.iter().collect();
                names.sort_by_key(|(name, _)| json.find(&format!("\"{name}\":")));
                for (name, value) in names {
                    *out += name;
                    out.push('{');
                    write(value, json, out);
                    out.push('}');
                }
            }
            Value::Array(list) if list.iter().all(Value::is_number) => out.push('n'),
            Value::Array(list) => list.iter().for_each(|value| {
                out.push('[');
                write(value, json, out);
            }),
            Value::Null => out.push('0'),
            Value::String(_) => out.push('s'),
            Value::Bool(_) | Value::Number(_) => out.push('n'),
        }
    }
    let mut out = String::new();
    write(&value, json, &mut out);
    out
}

/// The content of the answer to one request on a connection of its own.
async fn asked(addr: std::net::SocketAddr, path: &str, body: &Value) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: sim\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return rest.to_owned();
    }
    let mut content = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap_or(0);
        content += &after[..size];
        rest = after.get(size + 2..).unwrap_or_default();
    }
    content
}

/// The simulated engine tells both shapes of one request, with everything a request may ask for.
#[tokio::test]
async fn both_shapes_of_the_simulated_engine() {
    let config = crate::sim::Config { engine: crate::sim::Engine::LlamaCpp, ..Default::default() };
    let sim = crate::sim::Sim::start(config).unwrap();
    for (endpoint, path, more, back) in [
        (Endpoint::Chat, "/v1/chat/completions", serde_json::json!({}), true),
        (Endpoint::Chat, "/v1/chat/completions", serde_json::json!({"n": 3}), false),
        (Endpoint::Chat, "/v1/chat/completions", serde_json::json!({"logprobs": true}), true),
        (Endpoint::Completions, "/v1/completions", serde_json::json!({}), true),
        (Endpoint::Completions, "/v1/completions", serde_json::json!({"n": 2}), false),
    ] {
        let mut body = serde_json::json!({"model": "sim", "max_tokens": 4, "ignore_eos": true, "prompt": "hello",
            "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        // Its words are of all languages, and a chat that begins with another than ours is not made a stream.
        let mut plain = String::new();
        for seed in 0..100 {
            body["seed"] = seed.into();
            plain = asked(sim.addr(), path, &body).await;
            if plain.is_ascii() {
                break;
            }
        }
        body["stream"] = true.into();
        body["stream_options"] = serde_json::json!({"include_usage": true});
        let stream = asked(sim.addr(), path, &body).await;
        let answer = made(endpoint, Shape::Stream, &stream).unwrap_or_else(|| panic!("{more}: {stream}"));
        assert_eq!(blanked(&answer), blanked(&plain), "{more}");
        let again = made(endpoint, Shape::Plain, &plain);
        assert!(plain.is_ascii(), "{plain}");
        assert_eq!(again.is_some(), back, "{more}");
        if let Some(again) = again {
            assert_eq!(made(endpoint, Shape::Stream, &again).as_deref(), Some(&*plain), "{more}");
            if more.get("logprobs").is_some() {
                // Told token by token, the events are the engine's own.
                assert_eq!(blanked(&again), blanked(&stream));
            }
        }
    }
}

#[test]
fn vllm_without_usage_byte_for_byte() {
    for (name, endpoint) in [
        ("vllm-chat", Endpoint::Chat),
        ("vllm-chat-length", Endpoint::Chat),
        ("vllm-chat-n2", Endpoint::Chat),
        ("vllm-completions", Endpoint::Completions),
        ("vllm-completions-n2", Endpoint::Completions),
    ] {
        let edit = Edit { endpoint, alias: None, strip_usage: true };
        let asked = Bytes::from(fixture(&format!("{name}-usage.sse")));
        assert_eq!(edit.whole(Shape::Stream, &asked), fixture(&format!("{name}.sse")), "{name}");
    }
}

#[test]
fn the_same_shape_is_the_same_memory() {
    let kept = entry(Endpoint::Chat, Shape::Stream, "data: [DONE]\n\n");
    let given = convert(&kept, Shape::Stream).unwrap();
    assert_eq!((given.as_ptr(), given.len()), (kept.body.as_ptr(), kept.body.len()));
}

/// The recordings show why: the plain answer repeats the request's last message.
#[test]
fn a_request_that_is_gone_on_with_is_not_exchangeable() {
    let made = made(Endpoint::Chat, Shape::Stream, &fixture("llamacpp-chat-prefill-usage.sse")).unwrap();
    assert_ne!(blanked(&made), blanked(&fixture("llamacpp-chat-prefill.json")));
    let user = r#"{"role":"user","content":"Say \"assistant\"."}"#;
    let assistant = r#"{"content":"Blue is","role":"assistant"}"#;
    for (request, expected) in [
        (format!(r#"{{"messages":[{user},{assistant},{user}]}}"#), true),
        (format!(r#"{{"messages":[{user},{assistant}]}}"#), false),
        (format!(r#"{{"input":[{assistant}]}}"#), false),
        (r#"{"input":"assistant","prompt":"x","echo":false}"#.to_owned(), true),
        (r#"{"prompt":"x","echo":true}"#.to_owned(), false),
        (format!(r#"{{"messages":[{user}],"continue_final_message":true}}"#), false),
        (format!(r#"{{"messages":[{user}],"add_generation_prompt":false}}"#), false),
        (format!(r#"{{"messages":[{user}],"kv_transfer_params":{{}}}}"#), false),
        (format!(r#"{{"messages":[{user}],"kv_transfer_params":null}}"#), true),
        (format!(r#"{{"messages":[{user}]"#), false),
    ] {
        assert_eq!(exchangeable(request.as_bytes()), expected, "{request}");
    }
}

#[test]
fn heads_as_the_engine_writes_them() {
    let of = |server: &'static str, shape, more: Option<&'static str>| {
        let mut kept = entry(Endpoint::Chat, shape, "");
        kept.headers.insert("server", HeaderValue::from_static(server));
        kept.headers.insert("content-type", content_type(shape));
        if let Some(value) = more {
            kept.headers.insert("x-accel-buffering", HeaderValue::from_static(value));
        }
        let head = |to| {
            let mut head = HeaderMap::new();
            headers(&mut head, &kept, to);
            head
        };
        let made = head(shape.other());
        assert_eq!(head(shape), kept.headers);
        let text = |name: &str| made.get(name).map(|value| value.to_str().unwrap().to_owned());
        (text("content-type").unwrap(), text("x-accel-buffering"), text("server").unwrap())
    };
    let text = str::to_owned;
    assert_eq!(
        of("llama.cpp", Shape::Stream, Some("no")),
        (text("application/json; charset=utf-8"), None, text("llama.cpp"))
    );
    assert_eq!(of("llama.cpp", Shape::Plain, None), (text("text/event-stream"), Some(text("no")), text("llama.cpp")));
    assert_eq!(of("uvicorn", Shape::Plain, None), (text("text/event-stream; charset=utf-8"), None, text("uvicorn")));
    assert_eq!(of("uvicorn", Shape::Stream, None), (text("application/json"), None, text("uvicorn")));
}

proptest! {
    /// Whatever the text is, it survives both ways; and the two are each other's inverse.
    #[test]
    fn any_text_survives(text in "\\PC{1,40}|[a-z\"\\\\\n\t\u{1}\u{7f}\u{1F308}]{1,20}") {
        let quoted = serde_json::to_string(&text).unwrap();
        for name in ["llamacpp-chat", "vllm-chat", "llamacpp-completions"] {
            let endpoint = if name.ends_with("chat") { Endpoint::Chat } else { Endpoint::Completions };
            let mut plain = fixture(&format!("{name}.json"));
            let member = if endpoint == Endpoint::Chat { "\"content\":\"" } else { "\"text\":\"" };
            let start = plain.find(member).unwrap() + member.len() - 1;
            let end = start + 1 + plain[start + 1..].replace("\\\\", "__").replace("\\\"", "__").find('"').unwrap() + 1;
            plain.replace_range(start..end, &quoted);
            let stream = made(endpoint, Shape::Plain, &plain);
            if stream.is_none() {
                prop_assert!(name != "vllm-chat" || text.contains(['<', '[', '◁']), "{}", text);
                prop_assert!(name != "llamacpp-chat" || !text.is_ascii(), "{}", text);
                prop_assert!(name != "llamacpp-completions");
                continue;
            }
            prop_assert_eq!(made(endpoint, Shape::Stream, &stream.unwrap()), Some(plain));
        }
    }

    #[test]
    fn never_panics(body in "(data: )?[\\[\\]{}\",:a-z0-9\n ]{0,60}") {
        for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Responses, Endpoint::Messages] {
            for shape in [Shape::Plain, Shape::Stream] {
                let _ = made(endpoint, shape, &body);
            }
        }
    }
}
