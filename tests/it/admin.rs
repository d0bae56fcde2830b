//! The admin plane beside a running data plane.

use crate::support::{Exchange, Gateway, sim};

#[test]
fn probes_metrics_and_the_reason_why_a_backend_is_out() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "").healthy();
    assert_eq!(gate.admin("GET", "/livez").text(), "ok\n");
    let ready = gate.admin("GET", "/readyz?verbose").text();
    assert!(ready.contains("[+]draining ok") && ready.contains("[+]backends ok: 2 of 2 may get calls"), "{ready}");
    b.kill();
    let view = gate.until("/api/v1/backends", |text| text.contains("unhealthy"));
    let view: serde_json::Value = serde_json::from_str(&view).unwrap();
    let out = &view["backends"][1];
    assert_eq!((&out["name"], &out["state"]), (&"b1".into(), &"unhealthy".into()));
    assert!(out["reason"].as_str().unwrap().contains("refused"), "{out}");
    let metrics = gate.admin("GET", "/metrics");
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    assert_eq!(gate.metric("sluicegate_backend_state{backend=\"b1\",state=\"unhealthy\"}"), 1.0);
    assert_eq!(gate.metric("sluicegate_requests_total{endpoint=\"chat\",code=\"200\"}"), 0.0);
    assert!(metrics.text().contains("sluicegate_requests_total{endpoint=\"chat\",code=\"200\"} 0\n"));
}

#[test]
fn bytes_that_leave_the_zone_are_told_apart() {
    let (near, far) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::with_config(&format!(
        "zone: a\nbackends:\n  - {{name: near, url: 'http://{}', zone: a, models: [sim]}}\n  - {{name: far, url: 'http://{}', zone: b, models: [far]}}\n",
        near.addr(),
        far.addr()
    ))
    .healthy();
    let body = |model: &str| format!(r#"{{"model":"{model}","prompt":"p","max_tokens":4}}"#);
    let ask = |model: &str| gate.post("/v1/completions", &body(model));
    let length = body("sim").len() as f64;
    let bytes = |backend: &str, zone: &str, hop: &str, direction: &str| {
        let labels = format!("backend=\"{backend}\",zone=\"{zone}\",hop=\"{hop}\",direction=\"{direction}\"");
        gate.metric(&format!("sluicegate_backend_bytes_total{{{labels}}}"))
    };
    let answer = ask("sim");
    assert_eq!(bytes("near", "a", "same", "sent"), length);
    assert_eq!(bytes("near", "a", "same", "received"), answer.body.len() as f64);
    assert_eq!((bytes("far", "b", "cross", "sent"), bytes("far", "b", "cross", "received")), (0.0, 0.0));
    let answer = ask("far");
    assert_eq!((bytes("far", "b", "cross", "sent"), bytes("near", "a", "same", "sent")), (length, length));
    assert_eq!(bytes("far", "b", "cross", "received"), answer.body.len() as f64);
}

#[test]
fn a_backend_is_drained_and_put_back() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "debug_headers: true\n").healthy();
    assert_eq!(gate.admin("POST", "/api/v1/backends/b0/drain").json()["state"], "draining");
    for _ in 0..8 {
        assert_eq!(gate.request("POST", "/custom", &[], "x").header("x-sluicegate-backend"), Some("b1"));
    }
    assert_eq!(gate.admin("POST", "/api/v1/backends/b0/undrain").json()["state"], "healthy");
    assert_eq!(gate.admin("POST", "/api/v1/backends/none/drain").status, 404);
    assert_eq!(gate.admin("GET", "/api/v1/backends/b0/drain").header("allow"), Some("POST"));
}

#[test]
fn the_cache_is_shown_and_forgotten_by_model_and_tenant() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let ask = |text: &str, key: &str| {
        let body = format!(r#"{{"model":"sim","prompt":"{text}","temperature":0,"max_tokens":4}}"#);
        let fields = [("content-type", "application/json"), ("authorization", key)];
        gate.request("POST", "/v1/completions", &fields, body).header("cache-status").unwrap().to_owned()
    };
    for text in ["a", "b", "c"] {
        assert_eq!(ask(text, "Bearer one"), "sluicegate;fwd=miss;stored");
    }
    assert_eq!(ask("a", "Bearer two"), "sluicegate;fwd=miss;stored");
    assert!(ask("a", "Bearer one").starts_with("sluicegate;hit;ttl="));
    let shown = gate.admin("GET", "/api/v1/cache").json();
    assert_eq!((&shown["entries"], &shown["capacity"]), (&4.into(), &(256 << 20).into()), "{shown}");
    assert_eq!((&shown["models"][0]["model"], &shown["models"][0]["entries"]), (&"sim".into(), &4.into()), "{shown}");
    assert_eq!((&shown["requests"]["hit"], &shown["requests"]["miss"]), (&1.into(), &4.into()), "{shown}");
    assert!(shown["second_tier"].is_null());
    assert_eq!(gate.metric("sluicegate_cache_entries"), 4.0);

    let largest = shown["tenants"][0]["tenant"].as_str().unwrap().to_owned();
    assert_eq!(shown["tenants"][0]["entries"], 3);
    for (query, gone) in [("?model=other", 0), (&*format!("?model=sim&tenant={largest}"), 3), ("", 1)] {
        let answer = gate.admin("DELETE", &format!("/api/v1/cache{query}"));
        assert_eq!((answer.status, answer.json()["purged"].as_u64()), (200, Some(gone)), "{query}");
    }
    assert_eq!(ask("a", "Bearer one"), "sluicegate;fwd=miss;stored");
    assert_eq!(gate.metric("sluicegate_cache_removed_total{reason=\"purged\"}"), 4.0);

    // What was meant to be small is not taken for everything; pages of other sites are kept out.
    for query in ["?modle=sim", "?tenant=x", "?model="] {
        let answer = gate.admin("DELETE", &format!("/api/v1/cache{query}"));
        assert_eq!((answer.status, &*answer.code()), (400, "bad_query"), "{query}");
    }
    assert_eq!(gate.admin("POST", "/api/v1/cache").header("allow"), Some("GET, HEAD, DELETE"));
    let foreign =
        b"DELETE /api/v1/cache HTTP/1.1\r\nhost: localhost\r\norigin: http://evil.test\r\nconnection: close\r\n\r\n";
    assert_eq!(Exchange::raw(gate.admin, foreign).finish().status, 403);
    assert_eq!(gate.admin("GET", "/api/v1/cache").json()["entries"], 1);
}

#[test]
fn a_cache_without_room_is_off() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "cache: {capacity: 0}\n").healthy();
    assert_eq!(gate.admin("GET", "/api/v1/cache").json()["enabled"], false);
    assert_eq!(gate.admin("DELETE", "/api/v1/cache").json()["purged"], 0);
}

#[test]
fn events_are_fed() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let mut feed = Exchange::raw(gate.admin, b"GET /api/v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
    feed.until("\r\n\r\n");
    gate.admin("POST", "/api/v1/backends/b0/drain");
    let seen = feed.until("\"to\":\"draining\"");
    assert!(seen.contains("event: state\ndata: {\"backend\":\"b0\""), "{seen}");
}

#[test]
fn strangers_are_refused_and_a_token_opens() {
    let sim = sim(|_| {});
    let gate = Gateway::new(&[&sim], "").healthy();
    let foreign =
        Exchange::raw(gate.admin, b"GET /metrics HTTP/1.1\r\nhost: evil.test\r\nconnection: close\r\n\r\n").finish();
    assert_eq!((foreign.status, &*foreign.code()), (403, "foreign_host"));

    let config = format!("admin: same\nadmin_token: s3cret\nbackends: [{{url: '{}'}}]\n", sim.url());
    let gate = Gateway::on_one_port(&config);
    let ask = |path: &str, headers: &[(&str, &str)]| gate.request("GET", path, headers, "");
    assert_eq!(ask("/-/sluicegate/livez", &[]).status, 200);
    assert_eq!(ask("/-/sluicegate/metrics", &[]).status, 401);
    assert_eq!(ask("/-/sluicegate/metrics", &[("authorization", "Bearer s3cret")]).status, 200);
    // The data plane does not know the admin plane's paths.
    assert_ne!(ask("/metrics", &[]).text(), ask("/-/sluicegate/metrics", &[("authorization", "Bearer s3cret")]).text());
}
