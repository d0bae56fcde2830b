//! Notices: from the machine's own service, pushed by others, told by a gateway on the backend's machine.

use std::time::Duration;

use serde_json::Value;
use sluicegate::sim::{
    self,
    metadata::{Cloud, Config, Metadata},
};

use crate::support::{Answer, Exchange, Gateway, sim};

/// Longer than any test waits for.
const LEAD: Duration = Duration::from_secs(600);

fn metadata(cloud: Cloud, change: impl FnOnce(&mut Config)) -> Metadata {
    let mut config = Config::of(cloud);
    change(&mut config);
    Metadata::start(config).expect("the service starts")
}

fn push(gate: &Gateway, name: &str, token: &str, body: &str) -> Answer {
    let path = format!("/api/v1/backends/{name}/interruption");
    let authorization = format!("Bearer {token}");
    Exchange::start(gate.admin, "POST", &path, &[("authorization", &authorization)], body.as_bytes()).finish()
}

fn backend(view: &str, name: &str) -> Value {
    let view: Value = serde_json::from_str(view).unwrap();
    view["backends"].as_array().unwrap().iter().find(|backend| backend["name"] == name).unwrap().clone()
}

/// In front of `sims`, and watching `metadata`.
fn watching(sims: &[&sim::Handle], metadata: &Metadata) -> Gateway {
    let extra = format!("interruption: {{source: auto, endpoint: '{}'}}\n", metadata.url());
    let gate = Gateway::new(sims, &extra).healthy();
    let probe = |path: &str| metadata.asked().iter().any(|asked| asked.contains(path));
    for _ in 0..3_000 {
        if probe("instance-action") || probe("preempted") || probe("scheduledevents") {
            return gate;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("it never looked: {:?}", metadata.asked());
}

#[test]
fn a_notice_of_this_machine_takes_readiness_and_its_backends_away() {
    for (cloud, action, said) in
        [(Cloud::Aws, "stop", "stop"), (Cloud::Gcp, "", "terminate"), (Cloud::Azure, "Preempt", "terminate")]
    {
        let (a, b) = (sim(|_| {}), sim(|_| {}));
        // An hour and a day ahead, and its answers say so.
        let metadata = metadata(cloud, |config| config.skew = 90_000);
        let gate = watching(&[&a, &b], &metadata);
        metadata.notice(action, Duration::from_secs(100));
        let ready = gate.until("/readyz?verbose", |text| text.contains("[-]interruption"));
        assert!(ready.contains(said), "{ready}");
        // Both go at the same time: one of them stays, since nobody else has the model.
        let view = gate.until("/api/v1/backends", |text| text.contains("\"draining\""));
        let (first, second) = (backend(&view, "b0"), backend(&view, "b1"));
        assert_eq!((&first["state"], &second["state"]), (&"draining".into(), &"healthy".into()), "{view}");
        for backend in [first, second] {
            let left = backend["interruption"]["seconds_left"].as_u64().unwrap();
            assert!(left <= 100, "{backend}");
            assert!(cloud == Cloud::Gcp || left > 60, "by the clock of the service: {backend}");
            assert_eq!(backend["interruption"]["action"], said, "{backend}");
        }
        assert_eq!(
            gate.post("/v1/chat/completions", r#"{"model":"sim","messages":[{"role":"user","content":"hi"}]}"#).status,
            200
        );
        metadata.take_back();
        gate.until("/api/v1/backends", |text| !text.contains("\"draining\"") && !text.contains("seconds_left"));
        assert_eq!(gate.admin("GET", "/readyz").status, 200);
    }
}

#[test]
fn tokens_that_are_forgotten_and_times_that_move_change_nothing() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let metadata = metadata(Cloud::Aws, |config| config.moving = true);
    let gate = watching(&[&a, &b], &metadata);
    metadata.forget_tokens();
    metadata.notice("terminate", Duration::from_secs(120));
    gate.until("/api/v1/backends", |text| text.contains("\"draining\""));
    let counted = "sluicegate_interruption_notices_total{source=\"aws\",action=\"terminate\"}";
    let looks = || metadata.asked().iter().filter(|asked| asked.contains("instance-action")).count();
    let before = looks();
    while looks() < before + 2 {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(gate.metric(counted), 2.0, "one for each backend");
    assert!(metadata.asked().iter().filter(|asked| asked.starts_with("PUT")).count() >= 2);
}

#[test]
fn azures_events_of_other_machines_are_not_ours() {
    let a = sim(|_| {});
    let metadata = metadata(Cloud::Azure, |config| config.first = Duration::from_secs(3));
    metadata.hint();
    let gate = watching(&[&a], &metadata);
    let looks = || metadata.asked().iter().filter(|asked| asked.contains("scheduledevents")).count();
    while looks() < 3 {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(gate.admin("GET", "/readyz").status, 200);
}

#[test]
fn a_pushed_notice_is_acted_on_and_taken_back() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let config = format!(
        "admin_token: admin\ninterruption_token: all\nbackends:\n  - {{name: b0, url: '{}', interruption_token: one}}\n  \
         - {{name: b1, url: '{}'}}\ndebug_headers: true\n",
        a.url(),
        b.url()
    );
    let gate = Gateway::with_config(&config);
    let view = || {
        let head =
            "GET /api/v1/backends HTTP/1.1\r\nhost: a\r\nauthorization: Bearer admin\r\nconnection: close\r\n\r\n";
        Exchange::raw(gate.admin, head.as_bytes()).finish().text()
    };
    while !view().matches("\"healthy\"").count().eq(&2) {
        std::thread::park_timeout(Duration::from_millis(10));
    }
    const NOTICE: &str = r#"{"action":"terminate","time":"2031-01-07T01:03:47Z"}"#;
    assert_eq!(push(&gate, "b0", "wrong", NOTICE).status, 401);
    assert_eq!(push(&gate, "b1", "one", NOTICE).status, 401, "this token is another's");
    let told = push(&gate, "b0", "one", NOTICE);
    assert_eq!(
        (told.status, &told.json()["outcome"], &told.json()["state"]),
        (200, &"draining".into(), &"draining".into())
    );
    assert!(told.json().get("calls").is_none(), "and nothing else is shown");
    for _ in 0..8 {
        assert_eq!(gate.request("POST", "/custom", &[], "x").header("x-sluicegate-backend"), Some("b1"));
    }
    let shown = backend(&view(), "b0");
    assert_eq!((&shown["interruption"]["source"], &shown["interruption"]["leaving"]), (&"push".into(), &true.into()));
    assert_eq!(push(&gate, "b1", "all", &NOTICE.replace("2031", "2032")).json()["outcome"], "last", "of its model");
    assert_eq!(push(&gate, "b1", "all", r#"{"action":"none"}"#).json()["outcome"], "withdrawn");
    assert_eq!(push(&gate, "b1", "all", r#"{"action":"rebalance"}"#).json()["outcome"], "hinted");
    assert_eq!(push(&gate, "b0", "admin", r#"{"action":"none"}"#).json()["state"], "healthy");

    assert_eq!(push(&gate, "none", "all", NOTICE).status, 404);
    assert_eq!(push(&gate, "b0", "all", "{}").code(), "bad_notice");
    assert_eq!(push(&gate, "b0", "all", &"x".repeat(5_000)).status, 413);
    let path = "/api/v1/backends/b0/drain";
    assert_eq!(Exchange::start(gate.admin, "POST", path, &[("authorization", "Bearer all")], b"").finish().status, 401);
    let get = Exchange::start(
        gate.admin,
        "GET",
        &path.replace("drain", "interruption"),
        &[("authorization", "Bearer admin")],
        b"",
    );
    assert_eq!(get.finish().header("allow"), Some("POST"));
}

#[test]
fn a_gateway_on_the_machine_tells_the_outer_one_and_nobody_else() {
    let (behind, beside) = (sim(|_| {}), sim(|_| {}));
    let metadata = metadata(Cloud::Gcp, |_| {});
    let inner = watching(&[&behind], &metadata);
    let config = format!(
        "debug_headers: true\nbackends:\n  - {{name: spot, url: 'http://{}'}}\n  - {{name: other, url: '{}'}}\n",
        inner.addr,
        beside.url()
    );
    let outer = Gateway::with_config(&config).healthy();
    metadata.notice("", LEAD);
    // Its probes bring the news, though no call goes there.
    let view = outer.until("/api/v1/backends", |text| backend(text, "spot")["state"] == "draining");
    let told = &backend(&view, "spot")["interruption"];
    assert_eq!((&told["action"], &told["source"]), (&"terminate".into(), &"header".into()), "{told}");
    assert!(told["seconds_left"].as_u64().unwrap() <= 30, "{told}");
    assert_eq!(inner.get("/v1/models").header("x-sluicegate-interruption"), None, "a client is not told");
    let by_gateway = inner.request("GET", "/custom", &[("via", "1.1 sluicegate-0815, 1.1 cache")], "");
    assert!(by_gateway.header("x-sluicegate-interruption").unwrap().starts_with("terminate;20"));
    for _ in 0..4 {
        let answer = outer.request("POST", "/custom", &[], "x");
        assert_eq!(answer.header("x-sluicegate-backend"), Some("other"));
        assert_eq!(answer.header("x-sluicegate-interruption"), None);
    }
    metadata.take_back();
    outer.until("/api/v1/backends", |text| backend(text, "spot")["state"] == "healthy");
}

#[test]
fn the_end_of_a_gateway_is_told_in_its_answers() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let inner = Gateway::new(&[&a], "drain: {delay: 200s}\n").healthy();
    // Without probes: the answers alone.
    let outer = Gateway::with_config(&format!(
        "health: {{interval: 600s}}\ndebug_headers: true\nbackends:\n  - {{name: spot, url: 'http://{}'}}\n  \
         - {{name: other, url: '{}'}}\n",
        inner.addr,
        b.url()
    ))
    .healthy();
    inner.terminate();
    inner.until("/readyz?verbose", |text| text.contains("[-]draining"));
    let told = (0..200).find_map(|_| {
        let answer = outer.request("POST", "/custom", &[], "x");
        assert_eq!(answer.header("x-sluicegate-interruption"), None, "it goes no further");
        let view = outer.admin("GET", "/api/v1/backends").text();
        Some(backend(&view, "spot")).filter(|spot| spot["state"] == "draining")
    });
    let notice = &told.expect("one of the calls went there")["interruption"];
    assert_eq!((&notice["action"], &notice["source"]), (&"terminate".into(), &"header".into()));
    assert!((190..=225).contains(&notice["seconds_left"].as_u64().unwrap()), "{notice}");
    assert_eq!(outer.request("POST", "/custom", &[], "x").header("x-sluicegate-backend"), Some("other"));
}

#[test]
fn other_gateways_are_told() {
    let (a, b, c) = (sim(|_| {}), sim(|_| {}), sim(|_| {}));
    let outer = Gateway::new(&[&a, &b], "interruption_token: shared\n").healthy();
    let metadata = metadata(Cloud::Aws, |config| (config.tokens, config.strict) = (false, false));
    let extra = format!(
        "interruption_token: shared\ninterruption: {{source: aws, endpoint: '{}', notify: ['http://{}/b1']}}\n",
        metadata.url(),
        outer.admin
    );
    let _inner = Gateway::new(&[&c], &extra).healthy();
    metadata.hint();
    let view = outer.until("/api/v1/backends", |text| !backend(text, "b1")["interruption"].is_null());
    let hint = &backend(&view, "b1")["interruption"];
    assert_eq!((&hint["action"], &hint["leaving"]), (&"rebalance".into(), &false.into()));
    metadata.notice("terminate", Duration::from_secs(100));
    let view = outer.until("/api/v1/backends", |text| backend(text, "b1")["state"] == "draining");
    let left = backend(&view, "b1")["interruption"]["seconds_left"].as_u64().unwrap();
    assert!((60..=100).contains(&left), "{left}");
}

#[test]
fn a_gateway_that_ends_pushes_it_too() {
    let (a, b, c) = (sim(|_| {}), sim(|_| {}), sim(|_| {}));
    let outer = Gateway::new(&[&a, &b], "interruption_token: shared\n").healthy();
    let extra = format!(
        "interruption_token: shared\ndrain: {{delay: 200s}}\ninterruption: {{notify: ['http://{}/b1']}}\n",
        outer.admin
    );
    let inner = Gateway::new(&[&c], &extra).healthy();
    inner.terminate();
    let view = outer.until("/api/v1/backends", |text| backend(text, "b1")["state"] == "draining");
    let told = &backend(&view, "b1")["interruption"];
    assert_eq!((&told["action"], &told["source"]), (&"terminate".into(), &"push".into()));
    assert!((150..=225).contains(&told["seconds_left"].as_u64().unwrap()), "{told}");
    // Its own backends are not concerned.
    assert!(backend(&inner.admin("GET", "/api/v1/backends").text(), "b0")["interruption"].is_null());
}
