use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn asked(body: &str) -> Option<String> {
    with_usage(body.as_bytes()).map(|(at, text)| [&body[..at.start], text, &body[at.end..]].concat())
}

#[test]
fn every_other_byte_stays() {
    for (body, expected) in [
        (r#" { "stream":true, "n" : 1}"#, r#" {"stream_options":{"include_usage":true}, "stream":true, "n" : 1}"#),
        (r#"{"stream":true,"stream_options": null }"#, r#"{"stream":true,"stream_options": {"include_usage":true} }"#),
        (r#"{"stream":true,"stream_options":{ }}"#, r#"{"stream":true,"stream_options":{"include_usage":true }}"#),
        (
            r#"{"stream_options":{"include_obfuscation":false},"stream":true}"#,
            r#"{"stream_options":{"include_usage":true,"include_obfuscation":false},"stream":true}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage": false }}"#,
            r#"{"stream":true,"stream_options":{"include_usage": true }}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"include_usage":null,"x":1.50}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"x":1.50}}"#,
        ),
        (
            r#"{"stream":true,"stream_options":{"continuous_usage_stats":false}}"#,
            r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false}}"#,
        ),
        (
            r#"{"prompt":[1,2],"stream":true}"#,
            r#"{"stream_options":{"include_usage":true},"prompt":[1,2],"stream":true}"#,
        ),
    ] {
        assert_eq!(asked(body).as_deref(), Some(expected), "{body}");
    }
}

#[test]
fn left_alone() {
    for body in [
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        // A plain answer has its usage; vLLM refuses the option there.
        r#"{"model":"m"}"#,
        r#"{"stream":false}"#,
        r#"{}"#,
        // Several choices.
        r#"{"stream":true,"n":2}"#,
        r#"{"stream":true,"best_of":3}"#,
        r#"{"stream":true,"prompt":["a","b"]}"#,
        r#"{"stream":true,"prompt":[[1],[2]]}"#,
        // Odd.
        r#"{"stream":true,"stream":false}"#,
        r#"{"stream":true,"stream_options":{},"stream_options":{}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}"#,
        r#"{"stream":true,"stream_options":{"include_usage":"yes"}}"#,
        r#"{"stream":true,"stream_options":7}"#,
        r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
        r#"{"stream":true"#,
        r#"[true]"#,
        "",
    ] {
        assert_eq!(asked(body), None, "{body}");
    }
}

#[test]
fn only_where_it_can_be_changed_back() {
    assert!(takes(Some(Engine::Vllm), Endpoint::Chat) && takes(Some(Engine::Vllm), Endpoint::Completions));
    assert!(takes(Some(Engine::LlamaCpp), Endpoint::Chat) && !takes(Some(Engine::LlamaCpp), Endpoint::Completions));
    assert!(!takes(Some(Engine::OpenAi), Endpoint::Chat) && !takes(None, Endpoint::Chat));
    assert!(!takes(Some(Engine::Vllm), Endpoint::Messages));
}

proptest! {
    #[test]
    fn only_the_option_changes(
        other in "[a-z]{1,4}",
        options in prop_oneof![
            Just(Value::Null),
            Just(json!({})),
            Just(json!({"a": 1})),
            Just(json!({"include_usage": null, "b": [1, {"include_usage": false}]})),
            Just(json!({"include_usage": false})),
        ],
        pretty in any::<bool>(),
    ) {
        prop_assume!(!matches!(other.as_str(), "n"));
        let mut body = json!({"stream": true, "stream_options": options, "messages": [{"content": "\"}{\n"}]});
        body[format!("x{other}")] = json!({"stream_options": {"include_usage": false}});
        let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
        let edited: Value = serde_json::from_str(&asked(&text).unwrap()).unwrap();
        if body["stream_options"].is_null() {
            body["stream_options"] = json!({});
        }
        body["stream_options"]["include_usage"] = json!(true);
        prop_assert_eq!(edited, body);
    }

    #[test]
    fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = with_usage(&body);
    }
}
