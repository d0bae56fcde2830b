//! Identical requests cost the backend one answer: kept, or still running.

use std::time::Duration;

use sluicegate::sim;

use crate::support::{Answer, Exchange, Gateway, at_once, sim};

const PATH: &str = "/v1/chat/completions";

fn chat(text: &str, more: &str) -> String {
    format!(
        r#"{{"model":"sim","messages":[{{"role":"user","content":"{text}"}}],"max_tokens":6,"temperature":0{more}}}"#
    )
}

fn stream(text: &str) -> String {
    chat(text, r#","stream":true"#)
}

fn status(answer: &Answer) -> String {
    answer.header("cache-status").unwrap_or_default().to_owned()
}

/// `sim` computed as many answers; the newest may be on its way into the count.
fn computed(sim: &sim::Handle, answers: u64) {
    for _ in 0..1_000 {
        if sim.state().served >= answers {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(sim.state().served, answers);
}

/// A sim that takes its time, so that many meet at one answer.
fn slow() -> sim::Handle {
    sim(|config| {
        config.pace.ttft = Duration::from_millis(300);
        config.pace.tokens_per_second = 50.0;
    })
}

#[test]
fn a_repeat_is_a_hit_to_the_byte() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    for (body, answers) in [(chat("one", ""), 1), (stream("two"), 2)] {
        let first = gate.post(PATH, &body);
        assert_eq!((first.status, status(&first).as_str()), (200, "sluicegate;fwd=miss;stored"), "{}", first.text());
        let second = gate.post(PATH, &body);
        assert!(status(&second).starts_with("sluicegate;hit;ttl=3"), "{}", status(&second));
        assert_eq!((second.body, second.whole), (first.body, true));
        assert_eq!(second.headers.iter().find(|(name, _)| name == "age").map(|(_, age)| age.as_str()), Some("0"));
        computed(&backend, answers);
    }
    assert!(gate.metric("sluicegate_cache_requests_total{outcome=\"hit\",reason=\"\"}") >= 2.0);
    assert!(gate.metric("sluicegate_cache_tokens_saved_total{kind=\"output\"}") > 0.0);
}

#[test]
fn spelling_is_one_and_every_field_counts() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    let first = gate.post(PATH, &chat("a", ""));
    let twisted =
        r#" { "temperature" : 0, "max_tokens":6 ,"messages":[{"content":"\u0061","role":"user"}],"model":"sim"}"#;
    let again = gate.post(PATH, twisted);
    assert!(status(&again).contains(";hit;"), "{}", status(&again));
    assert_eq!(again.body, first.body);
    for other in [chat("b", ""), chat("a", r#","top_p":1"#), chat("a", r#","seed":1"#), chat("a", r#","n":1"#)] {
        let answer = gate.post(PATH, &other);
        assert_eq!(status(&answer), "sluicegate;fwd=miss;stored", "{other}");
    }
}

#[test]
fn another_key_never_hits() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    let body = chat("mine", "");
    let with =
        |key: &str| gate.request("POST", PATH, &[("content-type", "application/json"), ("authorization", key)], &body);
    for key in ["Bearer a", "Bearer b", "Bearer c"] {
        assert_eq!(status(&with(key)), "sluicegate;fwd=miss;stored");
    }
    assert!(status(&with("Bearer a")).contains(";hit;"));
    assert_eq!(status(&gate.post(PATH, &body)), "sluicegate;fwd=miss;stored", "nobody is somebody else");
}

#[test]
fn sixteen_at_once_cost_one_answer() {
    for bodies in [[chat("p", ""), chat("p", "")], [stream("s"), stream("s")]] {
        let backend = slow();
        let gate = Gateway::new(&[&backend], "").healthy();
        let addr = gate.addr;
        let of = move |i: usize| bodies[i % 2].clone();
        let answers = at_once(16, move |i| {
            let json = [("content-type", "application/json")];
            Exchange::start(addr, "POST", PATH, &json, of(i).as_bytes()).finish()
        });
        assert!(answers.iter().all(|answer| answer.status == 200 && answer.whole && answer.body == answers[0].body));
        computed(&backend, 1);
        let collapsed = answers.iter().filter(|answer| status(answer) == "sluicegate;fwd=miss;collapsed").count();
        assert!(collapsed > 0, "{:?}", answers.iter().map(status).collect::<Vec<_>>());
    }
}

#[test]
fn plain_and_stream_at_once_cost_one_answer() {
    let backend = sim(|config| {
        config.engine = sim::Engine::LlamaCpp;
        config.pace.ttft = Duration::from_millis(300);
    });
    let gate = Gateway::new(&[&backend], "").healthy();
    let addr = gate.addr;
    let answers = at_once(16, move |i| {
        let body = if i % 2 == 0 { chat("mixed", "") } else { stream("mixed") };
        Exchange::start(addr, "POST", PATH, &[("content-type", "application/json")], body.as_bytes()).finish()
    });
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.whole));
    computed(&backend, 1);
    let plain = answers[0].json();
    assert!(!plain["choices"][0]["message"]["content"].as_str().unwrap().is_empty());
    assert!(answers[1].text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn sampled_ones_are_never_shared() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    let body = r#"{"model":"sim","messages":[{"role":"user","content":"dice"}],"max_tokens":4}"#;
    for _ in 0..2 {
        assert_eq!(status(&gate.post(PATH, body)), "sluicegate;fwd=bypass;detail=sampled");
    }
    computed(&backend, 2);
}

#[test]
fn the_leader_may_hang_up() {
    let backend = slow();
    let gate = Gateway::new(&[&backend], "").healthy();
    let mut leader = gate.start(PATH, &stream("long"));
    leader.until("data:");
    let follower = gate.start(PATH, &stream("long"));
    gate.until("/metrics", |text| text.contains("\nsluicegate_requests_in_flight 2"));
    drop(leader);
    let answer = follower.finish();
    assert!(answer.whole && answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
    computed(&backend, 1);
}

#[test]
fn what_the_request_says_holds() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    let says = |control: &str| {
        let headers = [("content-type", "application/json"), ("cache-control", control)];
        gate.request("POST", PATH, &headers, chat("said", ""))
    };
    let absent = says("only-if-cached");
    assert_eq!((absent.status, absent.code().as_str()), (504, "not_cached"));
    assert_eq!(status(&says("no-store")), "sluicegate;fwd=request");
    assert_eq!(status(&says("no-cache")), "sluicegate;fwd=request");
    assert!(status(&says("only-if-cached")).contains(";hit;"));
    let off = Gateway::new(&[&backend], "cache: {mode: off}\n").healthy();
    assert_eq!(status(&off.post(PATH, &chat("said", ""))), "sluicegate;fwd=bypass;detail=off");
}

#[test]
fn a_purge_forgets() {
    let backend = sim(|_| {});
    let gate = Gateway::new(&[&backend], "").healthy();
    gate.post(PATH, &chat("gone", ""));
    assert_eq!(gate.admin("DELETE", "/api/v1/cache?model=sim").json()["purged"], 1);
    assert_eq!(status(&gate.post(PATH, &chat("gone", ""))), "sluicegate;fwd=miss;stored");
}

#[test]
fn the_drain_waits_for_those_who_follow_on_another_worker() {
    let backend = slow();
    let gate = Gateway::new(&[&backend], "workers: 2\n").healthy();
    let mut leaders: Vec<_> = (0..4).map(|_| gate.start(PATH, &stream("drained"))).collect();
    leaders.iter_mut().for_each(|leader| drop(leader.until("data:")));
    gate.terminate();
    // Whichever leads: it goes, and the others have it all.
    drop(leaders.remove(0));
    for follower in leaders {
        assert!(follower.finish().whole);
    }
    assert_eq!(gate.ended(), Ok(()));
}
