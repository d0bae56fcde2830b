//! Before the first byte of a body, a failure moves elsewhere and the client sees nothing.

use sluicegate::sim::{Fault, Kind};

use crate::support::{Gateway, at_once, sim};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":4}"#;
const STREAM: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hi"}],"max_tokens":4,"stream":true}"#;

#[test]
fn failures_before_the_first_byte_are_unseen() {
    for kind in [Kind::Reset, Kind::Unavailable, Kind::Empty500, Kind::TooMany, Kind::SilentClose] {
        let (a, b) = (sim(|_| {}), sim(|_| {}));
        let gate = Gateway::new(&[&a, &b], "").healthy();
        a.fault(Fault::new(kind));
        for body in [CHAT, STREAM].iter().cycle().take(12) {
            let answer = gate.post("/v1/chat/completions", body);
            assert!(answer.status == 200 && answer.whole, "{kind:?}: {}", answer.text());
        }
    }
}

#[test]
fn a_stream_that_dies_between_head_and_first_byte_is_replaced() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "").healthy();
    a.fault(Fault::new(Kind::CleanFin).after(0));
    for _ in 0..8 {
        let answer = gate.post("/v1/completions", r#"{"model":"sim","prompt":"hi","max_tokens":4,"stream":true}"#);
        assert!(answer.whole && answer.text().ends_with("[DONE]\n\n"), "{}", answer.text());
    }
}

#[test]
fn the_last_answer_passes_when_all_fail_alike() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "").healthy();
    for sim in [&a, &b] {
        sim.fault(Fault::new(Kind::Unavailable));
    }
    let answer = gate.post("/v1/chat/completions", CHAT);
    assert_eq!((answer.status, answer.header("x-should-retry")), (503, Some("false")));
}

#[test]
fn what_may_not_be_repeated_is_not() {
    let (a, b) = (sim(|_| {}), sim(|_| {}));
    let gate = Gateway::new(&[&a, &b], "").healthy();
    for sim in [&a, &b] {
        sim.fault(Fault::new(Kind::Unavailable).on("/custom"));
    }
    // An unknown POST: the backend may have acted on it.
    assert_eq!(gate.request("POST", "/custom", &[("content-type", "text/plain")], "x").status, 503);
    let echoes = u8::from(a.last(Some("/custom")).is_some()) + u8::from(b.last(Some("/custom")).is_some());
    assert_eq!(echoes, 1);
}

#[test]
fn a_backend_that_dies_under_load_costs_no_request() {
    let sims = [
        sim(|c| c.pace.ttft = std::time::Duration::from_millis(5)),
        sim(|c| c.pace.ttft = std::time::Duration::from_millis(5)),
    ];
    let gate = std::sync::Arc::new(Gateway::new(&[&sims[0], &sims[1]], "").healthy());
    let load = {
        let gate = std::sync::Arc::clone(&gate);
        std::thread::spawn(move || {
            at_once(16, move |_| (0..40).filter(|_| gate.post("/v1/chat/completions", CHAT).status != 200).count())
        })
    };
    for _ in 0..3 {
        sims[0].kill();
        gate.until("/api/v1/backends", |text| text.contains("unhealthy") || load.is_finished());
        sims[0].revive().unwrap();
        gate.until("/api/v1/backends", |text| !text.contains("unhealthy") || load.is_finished());
    }
    assert_eq!(load.join().unwrap().iter().sum::<usize>(), 0);
}

#[test]
fn concurrency_is_kept_and_the_rest_waits() {
    let sim = sim(|config| config.pace.ttft = std::time::Duration::from_millis(20));
    let gate = Gateway::with_config(&format!(
        "backends: [{{name: a, url: '{}', max_concurrency: 2}}]\nlimits: {{queue: 3, queue_timeout: 30s}}\n",
        sim.url()
    ))
    .healthy();
    let gate = std::sync::Arc::new(gate);
    sim.fault(Fault::new(Kind::Hang).times(2));
    let held: Vec<_> = (0..2).map(|_| gate.start("/v1/chat/completions", CHAT)).collect();
    gate.until("/api/v1/backends", |text| text.contains("\"in_flight\":2"));
    let waiting: Vec<_> = (0..3).map(|_| gate.start("/v1/chat/completions", CHAT)).collect();
    gate.until("/metrics", |text| text.contains("sluicegate_queue_length 3"));
    let refused = gate.post("/v1/chat/completions", CHAT);
    assert_eq!((refused.status, &*refused.code()), (503, "queue_full"));
    assert!(refused.header("retry-after").is_some());
    drop(held);
    for exchange in waiting {
        assert_eq!(exchange.finish().status, 200);
    }
}

/// A backend of a few lines that answers the first request of each connection, and closes on the second without an
/// answer, after it has read it. Gives its address and the bodies it has seen.
fn one_answer_a_connection() -> (std::net::SocketAddr, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), std::sync::Arc::<std::sync::Mutex<Vec<String>>>::default());
    let all = std::sync::Arc::clone(&seen);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (mut stream, seen) = (stream, std::sync::Arc::clone(&seen));
            std::thread::spawn(move || {
                let mut read = [0; 4096];
                for turn in 0..2 {
                    let n = stream.read(&mut read).unwrap_or(0);
                    let text = String::from_utf8_lossy(&read[..n]).into_owned();
                    if let Some((head, body)) = text.split_once("\r\n\r\n")
                        && head.starts_with("POST")
                    {
                        seen.lock().unwrap().push(body.to_owned());
                    }
                    if turn == 1 || stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addr, all)
}

#[test]
fn after_a_stale_connection_only_what_may_come_twice_does() {
    let (addr, seen) = one_answer_a_connection();
    let gate = Gateway::with_config(&format!(
        "workers: 1\nprofile: serverless\nbackends: [{{url: 'http://{addr}', models: any, engine: openai}}]\n"
    ));
    let times = |body: &str| seen.lock().unwrap().iter().filter(|seen| seen.contains(body)).count();
    for n in 0..6 {
        let body = format!("{{\"unknown\":\"once-{n}.\"}}");
        let answer = gate.post("/custom", &body);
        assert_eq!(times(&body), 1, "{}", answer.text());
        assert!([200, 502].contains(&answer.status), "{answer:?}");
    }
    for n in 0..6 {
        assert_eq!(gate.post("/v1/completions", &format!("{{\"prompt\":\"twice-{n}.\"}}")).status, 200);
    }
}
