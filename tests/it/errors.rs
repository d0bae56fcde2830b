//! Errors of ours, in the dialect of the path, and what becomes of broken answers.

use sluicegate::sim::{Fault, Kind};

use crate::support::{Answer, Gateway, sim};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":8}"#;
const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":8,"stream":true}"#;

#[test]
fn the_shape_follows_the_path() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "limits: {request_body: 1KiB}\n").healthy();
    let large = format!(r#"{{"model":"sim","x":"{}"}}"#, "y".repeat(2000));
    let openai = gate.post("/v1/chat/completions", &large);
    assert_eq!((openai.status, &*openai.code()), (413, "payload_too_large"));
    assert!(openai.text().contains("1024") && openai.text().contains("limits.request_body"));
    let anthropic = gate.post("/v1/messages", &large);
    let json = anthropic.json();
    assert_eq!(
        (anthropic.status, &json["type"], &json["error"]["type"]),
        (413, &"error".into(), &"request_too_large".into())
    );
    let ollama = gate.post("/api/chat", &large);
    assert!(ollama.json()["error"].is_string(), "{}", ollama.text());
}

#[test]
fn nobody_answers() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    sim.kill();
    let answer = gate.post("/v1/chat/completions", CHAT);
    assert_eq!((answer.status, &*answer.code()), (502, "upstream_connect"));
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("proxy-status"), Some("sluicegate;error=connection_refused;next-hop=\"b0\""));
    assert!(answer.text().contains("b0"), "{}", answer.text());
    sim.revive().unwrap();
    let gate = gate.healthy();
    assert_eq!(gate.post("/v1/chat/completions", CHAT).status, 200);
}

/// What is cut stays cut.
const NOT_RESUMED: &str = "resume: {mode: off}\n";

fn broken(kind: Kind, body: &str) -> Answer {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], NOT_RESUMED).healthy();
    sim.fault(Fault::new(kind).after(3));
    let answer = gate.post("/v1/chat/completions", body);
    sim.clear_faults();
    // Nothing of a broken answer stays behind for the next.
    assert_eq!(gate.post("/v1/chat/completions", CHAT).status, 200, "{kind:?}");
    answer
}

#[test]
fn a_broken_head_is_a_502() {
    for kind in [Kind::BadHead, Kind::HeaderBomb, Kind::InterimBomb] {
        let answer = broken(kind, CHAT);
        assert_eq!((answer.status, &*answer.code()), (502, "upstream_protocol"), "{kind:?}");
    }
}

#[test]
fn a_cut_stream_ends_in_an_error_event_and_never_looks_whole() {
    for kind in [Kind::CleanFin, Kind::Reset, Kind::CutEvent] {
        let answer = broken(kind, STREAM);
        let text = answer.text();
        assert_eq!(answer.status, 200, "{kind:?}");
        assert!(!answer.whole && !text.contains("[DONE]"), "{kind:?}: {text}");
        let last =
            text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap_or_else(|| panic!("{text}"));
        let event: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!(event["error"]["code"], "stream_cut", "{kind:?}");
        for event in text.split("\n\n").filter(|event| !event.is_empty()) {
            let data = event.strip_prefix("data: ").unwrap_or_else(|| panic!("{kind:?}: {event:?}"));
            serde_json::from_str::<serde_json::Value>(data).unwrap_or_else(|e| panic!("{kind:?}: {e}: {event:?}"));
        }
    }
}

#[test]
fn each_dialect_has_its_own_error_event() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], NOT_RESUMED).healthy();
    let cut = |path: &str, body: &str| {
        sim.fault(Fault::new(Kind::CleanFin).after(2).times(1));
        let answer = gate.post(path, body);
        assert!(!answer.whole, "{path}");
        answer.text()
    };
    let messages = cut(
        "/v1/messages",
        r#"{"model":"sim","max_tokens":8,"stream":true,"messages":[{"role":"user","content":"hi"}]}"#,
    );
    assert!(
        messages.contains("\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\""),
        "{messages}"
    );
    let responses = cut("/v1/responses", r#"{"model":"sim","max_output_tokens":8,"stream":true,"input":"hi"}"#);
    assert!(responses.contains("\"type\":\"error\""), "{responses}");
    let ollama = cut("/api/chat", r#"{"model":"sim","messages":[{"role":"user","content":"hi"}]}"#);
    assert!(ollama.trim_end().rsplit('\n').next().unwrap().starts_with("{\"error\":"), "{ollama}");
}

#[test]
fn a_plain_answer_that_is_too_short_is_cut_and_one_too_long_harms_nobody() {
    assert!(!broken(Kind::ShortBody, CHAT).whole);
    let long = broken(Kind::LongBody, CHAT);
    assert!(long.whole && long.json()["choices"].is_array());
}

#[test]
fn upgrades_are_refused_but_for_websocket() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let upgrade = |path: &str, to: &str| gate.request("GET", path, &[("connection", "upgrade"), ("upgrade", to)], "");
    assert_eq!(upgrade("/v1/responses", "websocket").status, 426);
    assert_eq!(upgrade("/v1/realtime", "tls/1.0").status, 501);
    let connect = gate.request("CONNECT", "example.test:443", &[], "");
    assert!([400, 501].contains(&connect.status), "{}", connect.status);
}

#[test]
fn paths_outside_of_passthrough_are_closed() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "routing: {passthrough: [/sim/echo]}\n").healthy();
    assert_eq!(gate.request("POST", "/sim/echo", &[], "x").status, 200);
    assert_eq!(gate.post("/v1/chat/completions", CHAT).status, 200);
    for path in ["/sim/state", "/sim/echoes", "/metrics", "/sim/echo/../state"] {
        let answer = gate.get(path);
        assert!(answer.status == 404 || path.contains(".."), "{path}");
    }
    assert_eq!(gate.get("/metrics").code(), "endpoint_not_allowed");
}

/// A backend of a few lines: answers every POST with `answer`, in one write, and closes.
fn canned(answer: &'static str) -> std::net::SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut read = [0; 4096];
            let n = stream.read(&mut read).unwrap_or(0);
            let answer =
                if read[..n].starts_with(b"POST") { answer } else { "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" };
            let _gone = stream.write_all(answer.as_bytes());
        }
    });
    addr
}

const UNFINISHED: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";

#[test]
fn a_stream_that_came_in_one_piece_and_is_not_finished_does_not_look_whole() {
    let by_chunk = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{UNFINISHED}\r\n0\r\n\r\n",
        UNFINISHED.len()
    );
    let by_length = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{UNFINISHED}",
        UNFINISHED.len()
    );
    let done = format!("{UNFINISHED}data: [DONE]\n\n");
    let only_done =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\n{done}", done.len());
    for answer in [by_chunk, by_length, only_done] {
        let backend = canned(answer.leak());
        let gate =
            Gateway::with_config(&format!("backends: [{{url: 'http://{backend}', models: any, engine: openai}}]\n"));
        let answer = gate.post("/v1/chat/completions", STREAM);
        assert!(!answer.whole && answer.text().contains("\"code\":\"stream_cut\""), "{answer:?}");
    }
}

#[test]
fn an_http10_client_sees_a_cut_too() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], NOT_RESUMED).healthy();
    sim.fault(Fault::new(Kind::CleanFin).after(2).times(1));
    let head = format!(
        "POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        STREAM.len()
    );
    let mut exchange = crate::support::Exchange::raw(gate.addr, format!("{head}{STREAM}").as_bytes());
    assert!(exchange.is_reset(), "the end of the connection is the end of an HTTP/1.0 answer: it must not be clean");
}

#[test]
fn dot_segments_do_not_climb_out_of_a_passthrough_list() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "routing: {passthrough: [/open]}\n").healthy();
    for path in ["/open/../sim/state", "/open/%2e%2E/x", "/open/..%2fx", "/open/..%5cx", "/open/./x"] {
        assert_eq!(gate.get(path).code(), "endpoint_not_allowed", "{path}");
    }
}

#[test]
fn promised_bytes_hold_memory_for_moments_only() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "limits: {request_body: 1MiB, body_memory: 2MiB}\n").healthy();
    let promise = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1048576\r\n\r\n{";
    let _held: Vec<_> = (0..8).map(|_| crate::support::Exchange::raw(gate.addr, promise)).collect();
    let served = (0..600).any(|_| {
        std::thread::park_timeout(std::time::Duration::from_millis(50));
        gate.post("/v1/chat/completions", CHAT).status == 200
    });
    assert!(served);
}
