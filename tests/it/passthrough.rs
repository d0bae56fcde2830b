//! What the gateway does not have to change reaches the backend, and comes back, byte for byte.

use sluicegate::sim::{Fault, Kind};

use crate::support::{Exchange, Gateway, sim};

/// Odd on purpose: key order, white space, number spellings, escapes, unknown and doubled fields.
const ODD: &str = "{ \"zeta\" : 1.0e0,\t\"model\":\"sim\",\r\n\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9\\/é\"}],\
                   \"seed\": 9007199254740993, \"unknown\":{\"b\":[1 , 2],\"a\":null}, \"max_tokens\":2, \"zeta\" : 2 }";

#[test]
fn a_body_reaches_the_backend_as_it_was_sent() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    assert_eq!(gate.post("/v1/chat/completions", ODD).status, 200);
    let seen = sim.last(Some("/v1/chat/completions")).unwrap();
    assert_eq!(seen.body, ODD.as_bytes());
    assert_eq!(seen.header("content-length"), Some(&*ODD.len().to_string()));
    assert_eq!(seen.header("transfer-encoding"), None);
}

#[test]
fn every_method_and_path_passes() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    for (method, path, body) in [
        ("PUT", "/custom?x=%2F..%2f&y", "text, not JSON"),
        ("POST", "/custom//double//", "\0\u{1}binary"),
        ("POST", "/v1/tokenize", r#"{"model":"sim","prompt":"a b"}"#),
        ("DELETE", "/custom", ""),
    ] {
        let answer = gate.request(method, path, &[("content-type", "application/octet-stream")], body);
        assert_ne!(answer.status, 502, "{method} {path}: {}", answer.text());
        let seen = sim.last(path.split('?').next()).unwrap_or_else(|| panic!("{method} {path} never came"));
        assert_eq!((seen.method.as_str(), seen.target.as_str(), &seen.body[..]), (method, path, body.as_bytes()));
    }
}

#[test]
fn a_chunked_upload_streams_through() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let mut exchange = Exchange::raw(
        gate.addr,
        b"POST /sim/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/octet-stream\r\n\
          transfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n",
    );
    // The echo of the first piece comes before the second is sent: nothing waits for the end.
    exchange.until("first");
    exchange.send(b"6\r\nsecond\r\n0\r\n\r\n");
    let answer = exchange.finish();
    assert!(answer.whole);
    assert_eq!(answer.text(), "firstsecond");
}

#[test]
fn expect_100_continue_is_answered() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;
    let mut exchange = Exchange::raw(
        gate.addr,
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nexpect: 100-continue\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    assert!(exchange.until("\r\n\r\n").starts_with("HTTP/1.1 100"));
    exchange.send(body.as_bytes());
    assert!(exchange.until("\"usage\"").contains("HTTP/1.1 200"));
    assert_eq!(sim.last(Some("/v1/completions")).unwrap().header("expect"), None);
}

#[test]
fn every_event_comes_when_it_was_made() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    sim.fault(Fault::new(Kind::Stall).after(3).times(1));
    let mut stream = gate.start(
        "/v1/chat/completions",
        r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"stream":true,"max_tokens":9}"#,
    );
    // The backend stands still after three tokens: they are all here, and the role before them.
    let seen = stream.until_it(|read| read.matches("\"content\":").count() == 4);
    assert!(seen.starts_with("HTTP/1.1 200"), "{seen}");
    sim.release();
    let answer = stream.finish();
    assert!(answer.whole);
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn a_client_that_leaves_frees_the_backend() {
    let sim = sim(|config| config.pace.tokens_per_second = 5.0);
    let gate = Gateway::new(&[&sim], "").healthy();
    for stream in ["true", "false"] {
        let before = sim.state().cancelled;
        let exchange = gate.start(
            "/v1/chat/completions",
            &format!(
                r#"{{"model":"sim","messages":[{{"role":"user","content":"hi"}}],"max_tokens":500,"stream":{stream}}}"#
            ),
        );
        block_on(sim.until(|state| state.running == 1));
        drop(exchange);
        block_on(sim.until(|state| state.cancelled == before + 1 && state.running == 0));
    }
    gate.until("/metrics", |text| text.contains("sluicegate_clients_gone_total 2\n"));
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}
