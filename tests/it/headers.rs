//! Header rules of a proxy, seen from both ends.

use crate::support::{Gateway, sim};

#[test]
fn what_the_backend_sees() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let answer = gate.request(
        "POST",
        "/custom",
        &[
            ("x-request-id", "mine-1"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=1"),
            ("baggage", "k=v"),
            ("x-forwarded-for", "6.6.6.6"),
            ("keep-alive", "timeout=9"),
            ("te", "trailers, gzip"),
            ("proxy-authorization", "Basic x"),
            ("authorization", "Bearer client"),
        ],
        "x",
    );
    let seen = sim.last(Some("/custom")).unwrap();
    assert_eq!(seen.header("x-request-id"), Some("mine-1"));
    assert_eq!(seen.header("traceparent"), Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"));
    assert_eq!((seen.header("tracestate"), seen.header("baggage")), (Some("a=1"), Some("k=v")));
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-host"), Some("gate.test"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("host"), Some(&*sim.addr().to_string()));
    assert_eq!((seen.header("keep-alive"), seen.header("proxy-authorization")), (None, None));
    // It concerns one connection; towards an HTTP/2 backend `trailers` is said anew.
    assert_eq!(seen.header("te"), None);
    assert_eq!(seen.header("authorization"), Some("Bearer client"));
    assert!(seen.header("via").unwrap().starts_with("1.1 sluicegate-"));

    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert!(answer.header("server-timing").unwrap().starts_with("gw;dur="));
    assert_eq!(answer.header("x-sluicegate-backend"), None);
}

#[test]
fn an_id_that_cannot_be_logged_is_replaced() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    for id in [&*"x".repeat(129), "with space"] {
        let answer = gate.request("GET", "/v1/models", &[("x-request-id", id)], "");
        let made = answer.header("x-request-id").unwrap();
        assert!(made.len() == 32 && made.bytes().all(|b| b.is_ascii_hexdigit()), "{made}");
    }
}

#[test]
fn a_backends_own_key_takes_the_clients_place() {
    let sim = sim(|_| {});
    let gate = Gateway::with_config(&format!("backends: [{{name: a, url: '{}', api_key: secret-1}}]\n", sim.url()));
    gate.request("POST", "/custom", &[("authorization", "Bearer client"), ("x-api-key", "client")], "x");
    let seen = sim.last(Some("/custom")).unwrap();
    assert_eq!((seen.header("authorization"), seen.header("x-api-key")), (Some("Bearer secret-1"), None));
    let shown = gate.admin("GET", "/api/v1/config").text();
    assert!(!shown.contains("secret-1") && shown.contains("***"), "{shown}");
}

#[test]
fn a_loop_is_seen() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    gate.request("POST", "/custom", &[], "x");
    let via = sim.last(Some("/custom")).unwrap().header("via").unwrap().to_owned();
    let answer = gate.request("POST", "/custom", &[("via", &format!("1.0 other, {via}"))], "x");
    assert_eq!((answer.status, &*answer.code()), (508, "loop_detected"));
}

#[test]
fn debug_headers_say_where_it_went() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "debug_headers: true\n").healthy();
    let answer = gate.request("POST", "/custom", &[], "x");
    assert_eq!(
        (answer.header("x-sluicegate-backend"), answer.header("x-sluicegate-attempts")),
        (Some("b0"), Some("1"))
    );
}
