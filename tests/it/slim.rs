//! Slim answers say the same in fewer bytes, to those who want them.

use serde_json::Value;

use crate::support::{Gateway, sim};

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":12,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}"#;

fn wish(value: &str) -> [(&str, &str); 2] {
    [("content-type", "application/json"), ("x-sluicegate-slim", value)]
}

/// Text, finish reasons and usage, by a full parser.
fn said(stream: &str) -> (String, Vec<String>, Vec<Value>) {
    let (mut text, mut finish, mut usage) = (String::new(), Vec::new(), Vec::new());
    for json in stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|json| *json != "[DONE]") {
        let chunk: Value = serde_json::from_str(json).unwrap();
        for choice in chunk["choices"].as_array().unwrap() {
            text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            finish.extend(choice["finish_reason"].as_str().map(str::to_owned));
        }
        usage.extend(chunk.get("usage").filter(|usage| !usage.is_null()).cloned());
    }
    (text, finish, usage)
}

#[test]
fn a_stream_by_wish_and_by_configuration() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "cache: {mode: off}").healthy();
    let plain = gate.post(CHAT, STREAM);
    let slim = gate.request("POST", CHAT, &wish("1"), STREAM);
    assert!(plain.text().contains("\"logprobs\":null"), "{}", plain.text());
    assert!(
        !slim.text().contains("null,\"logprobs\"") && !slim.text().contains("\"logprobs\":null"),
        "{}",
        slim.text()
    );
    assert_eq!(said(&slim.text()), said(&plain.text()));
    assert!(slim.whole && slim.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(sim.last(Some(CHAT)).unwrap().header("x-sluicegate-slim"), None);
    let spared = gate.metric("sluicegate_egress_saved_bytes_total{cause=\"slim\"}");
    assert!(spared > 0.0 && spared as usize <= plain.body.len(), "{spared}");

    let config = "cache: {mode: off}\negress: {slim: true}\ncompression: {flush: 5s}";
    let gate = Gateway::new(&[&sim], config).healthy();
    let merged = gate.post(CHAT, STREAM).text();
    assert_eq!(said(&merged), said(&plain.text()));
    let events = |text: &str| text.matches("\n\n").count();
    assert!(events(&merged) <= 6 && events(&slim.text()) >= 12, "{merged}");
    let as_it_came = gate.request("POST", CHAT, &wish("0"), STREAM);
    assert!(as_it_came.text().contains("\"logprobs\":null"));
}

#[test]
fn a_kept_answer_is_slim_for_those_who_want_it() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "compression: {algorithms: []}").healthy();
    let first = gate.post(CHAT, STREAM);
    let slim = gate.request("POST", CHAT, &wish("1"), STREAM);
    let again = gate.post(CHAT, STREAM);
    for answer in [&slim, &again] {
        let status = answer.header("cache-status").unwrap();
        assert!(status.contains(";hit"), "{status}, after {:?}", first.header("cache-status"));
    }
    assert_eq!(again.body, first.body);
    assert!(slim.body.len() < first.body.len());
    assert_eq!(slim.header("content-length"), Some(&*slim.body.len().to_string()));
    assert_eq!(said(&slim.text()), said(&first.text()));
}
