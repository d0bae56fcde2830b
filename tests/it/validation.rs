//! The bodies of `tests/fixtures/bodies.json` through the data plane: what is valid reaches the backend byte for byte,
//! what is not gets its exact answer and never leaves.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::{Gateway, sim};

#[test]
fn bodies_pass_unchanged_or_get_the_exact_answer() {
    for level in ["light", "strict"] {
        let sim = sim(|_| {});
        let backend = format!("backends: [{{name: b0, url: '{}', models: any, engine: openai}}]\n", sim.url());
        let gate = Gateway::with_config(&format!(
            "{backend}normalize: {{validate: {level}}}\ncache: {{mode: off}}\nresume: {{mode: off}}\n"
        ))
        .healthy();
        let (mut passed, mut refused) = (0, 0);
        for case in cases() {
            let (name, path, body) = (case["name"].as_str().unwrap(), path(&case), body(&case));
            let before = sim.last(None);
            let same = |now: Option<Arc<_>>| now.map(|now| Arc::as_ptr(&now)) == before.as_ref().map(Arc::as_ptr);
            let answer = gate.request("POST", path, &[("content-type", "application/json")], &body);
            if case[level] == "pass" {
                assert_ne!((answer.status, &*code(&answer.text())), (400, "invalid_body"), "{name}");
                assert!(!same(sim.last(None)), "{name} never came");
                let seen = sim.last(Some(path)).unwrap();
                assert!(seen.body == body, "{name} was changed on its way");
                passed += 1;
                continue;
            }
            assert_eq!(answer.status, 400, "{name} ({level}): {}", answer.text());
            assert!(same(sim.last(None)), "{name} left the gateway");
            let said = &case[level];
            let expected = if path.starts_with("/v1/messages") {
                json!({"type": "invalid_request_error", "message": said["message"]})
            } else {
                json!({"message": said["message"], "type": "invalid_request_error", "param": said["param"], "code": "invalid_body"})
            };
            assert_eq!(answer.json()["error"], expected, "{name} ({level})");
            refused += 1;
        }
        assert!(passed >= 90 && refused >= 60, "{level}: {passed} passed, {refused} refused");
    }
}

#[test]
fn without_validation_the_engine_judges() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "normalize: {validate: off}\n").healthy();
    for body in ["{\"model\":\"sim\",\"messages\":7}", "not JSON"] {
        gate.post("/v1/chat/completions", body);
        assert_eq!(sim.last(Some("/v1/chat/completions")).unwrap().body, body.as_bytes());
    }
}

fn code(answer: &str) -> String {
    let value: Value = serde_json::from_str(answer).unwrap_or_default();
    value["error"]["code"].as_str().unwrap_or_default().to_owned()
}

fn cases() -> Vec<Value> {
    serde_json::from_str(include_str!("../fixtures/bodies.json")).unwrap()
}

fn path(case: &Value) -> &'static str {
    match case["endpoint"].as_str().unwrap() {
        "chat" => "/v1/chat/completions",
        "completions" => "/v1/completions",
        "embeddings" => "/v1/embeddings",
        "responses" => "/v1/responses",
        "messages" => "/v1/messages",
        "count_tokens" => "/v1/messages/count_tokens",
        "rerank" => "/v1/rerank",
        "score" => "/v1/score",
        other => panic!("no such endpoint: {other}"),
    }
}

fn body(case: &Value) -> Vec<u8> {
    if let Some(hex) = case["hex"].as_str() {
        let digits = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        return hex.as_bytes().chunks(2).map(digits).collect();
    }
    let text = case["body"].as_str().unwrap();
    let Some([open, times, close]) = case["repeat"].as_array().map(Vec::as_slice) else { return text.into() };
    let (open, close) = (open.as_str().unwrap(), close.as_str().unwrap());
    let times = usize::try_from(times.as_u64().unwrap()).unwrap();
    let inner = if close.is_empty() { "" } else { "0" };
    text.replace("@{1}@", &format!("{}{inner}{}", open.repeat(times), close.repeat(times))).into()
}
