//! The merged list, models that come late, aliases.

use crate::support::{Gateway, sim};

const CHAT: &str = r#"{"model":"NAME","messages":[{"role":"user","content":"hi"}],"max_tokens":2}"#;

fn chat(model: &str) -> String {
    CHAT.replace("NAME", model)
}

#[test]
fn lists_are_merged_and_each_model_goes_to_its_backend() {
    let a = sim(|config| config.models = vec!["org/a".into(), "both".into()]);
    let b = sim(|config| config.models = vec!["b".into(), "both".into()]);
    let gate = Gateway::new(&[&a, &b], "").healthy();
    let list = gate.get("/v1/models").json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["b", "both", "org/a"]);
    assert_eq!(list["data"][0]["owned_by"], "vllm");
    assert_eq!(gate.get("/v1/models/org/a").json()["id"], "org/a");
    assert_eq!(gate.get("/v1/models/org%2Fa").json()["id"], "org/a");
    assert_eq!(gate.get("/v1/models/none").status, 404);

    let (before_a, before_b) = (a.state().served, b.state().served);
    for _ in 0..4 {
        assert_eq!(gate.post("/v1/chat/completions", &chat("org/a")).status, 200);
        assert_eq!(gate.post("/v1/chat/completions", &chat("b")).status, 200);
    }
    assert!(a.state().served >= before_a + 4 && b.state().served >= before_b + 4);
}

#[test]
fn the_model_is_found_wherever_it_is_named() {
    let a = sim(|config| config.models = vec!["a".into()]);
    let b = sim(|config| config.models = vec!["b".into()]);
    let gate = Gateway::new(&[&a, &b], "").healthy();
    let form = "--X\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f.wav\"\r\n\r\nRIFF\r\n--X\r\n\
                Content-Disposition: form-data; name=\"model\"\r\n\r\nb\r\n--X--\r\n";
    for _ in 0..6 {
        gate.request("POST", "/v1/audio/transcriptions", &[("content-type", "multipart/form-data; boundary=X")], form);
        gate.post("/v1/tokenize", r#"{"prompt":"x","model":"b"}"#);
        gate.post("/v1/messages/count_tokens", r#"{"messages":[{"role":"user","content":"x"}],"model":"b"}"#);
        gate.post("/api/chat", r#"{"messages":[{"role":"user","content":"x"}],"model":"b","stream":false}"#);
        gate.request("POST", "/custom?model=b", &[("content-type", "text/plain")], "x");
    }
    for path in ["/v1/audio/transcriptions", "/v1/tokenize", "/v1/messages/count_tokens", "/api/chat", "/custom"] {
        assert!(b.last(Some(path)).is_some(), "{path} reached b");
        assert!(a.last(Some(path)).is_none(), "{path} reached a");
    }
    let seen = b.last(Some("/v1/audio/transcriptions")).unwrap();
    assert_eq!(seen.body, form.as_bytes());
}

#[test]
fn a_model_that_appears_late_is_found_by_a_refresh() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let answer = gate.post("/v1/chat/completions", &chat("lora"));
    assert_eq!((answer.status, &*answer.code()), (404, "model_not_found"));
    assert!(answer.text().contains("sim"), "{}", answer.text());
    assert_eq!(answer.json()["error"]["param"], "model");
    sim.add_model("late");
    // Lists are not read more than once a second on account of calls.
    let found = (0..200).any(|_| {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        gate.post("/v1/chat/completions", &chat("late")).status == 200
    });
    assert!(found);
}

#[test]
fn an_alias_changes_the_name_and_nothing_else() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "routing: {aliases: {gpt-x: sim}}\n").healthy();
    let plain = gate.post("/v1/chat/completions", &chat("gpt-x"));
    assert_eq!(plain.json()["model"], "gpt-x");
    let seen = sim.last(Some("/v1/chat/completions")).unwrap();
    assert_eq!(seen.body, chat("sim").as_bytes());
    let stream =
        gate.post("/v1/chat/completions", &chat("gpt-x").replace("\"max_tokens\"", "\"stream\":true,\"max_tokens\""));
    assert!(stream.whole);
    let text = stream.text();
    assert!(text.contains("\"model\":\"gpt-x\"") && !text.contains("\"model\":\"sim\""), "{text}");
    assert!(gate.get("/v1/models").text().contains("\"gpt-x\""));
}

#[test]
fn a_response_returns_to_the_backend_that_issued_it() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "debug_headers: true\n").healthy();
    for turn in 0..8 {
        let stream = turn % 2 == 1;
        let first = gate.post(
            "/v1/responses",
            &format!(r#"{{"model":"sim","input":"hi","max_output_tokens":2,"stream":{stream}}}"#),
        );
        let issuer = first.header("x-sluicegate-backend").unwrap().to_owned();
        let text = first.text();
        let id = text.split("\"id\":\"resp_").nth(1).unwrap().split('"').next().unwrap();
        let next = gate
            .post("/v1/responses", &format!(r#"{{"model":"sim","input":"go on","previous_response_id":"resp_{id}"}}"#));
        assert_eq!(next.header("x-sluicegate-backend"), Some(&*issuer));
        let read = gate.get(&format!("/v1/responses/resp_{id}"));
        assert_eq!(read.header("x-sluicegate-backend"), Some(&*issuer));
    }
}
