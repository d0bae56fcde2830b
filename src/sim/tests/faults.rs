//! Each fault does what it says, at the byte it says.

use super::*;

fn streamed() -> Value {
    chat(json!({"stream": true, "max_tokens": 10}))
}

const CHAT: &str = "/v1/chat/completions";

/// The tokens a stream brought before it stopped.
fn tokens(reply: &Reply) -> usize {
    let text = String::from_utf8_lossy(&reply.body).into_owned();
    let whole = text.split_inclusive("\n\n").filter(|event| event.ends_with("\n\n"));
    let data =
        whole.filter_map(|event| event.strip_prefix("data: ")).filter_map(|data| serde_json::from_str(data).ok());
    data.filter(|event: &Value| {
        event["choices"][0]["delta"]["content"].as_str().is_some_and(|content| !content.is_empty())
    })
    .count()
}

/// One stream from a sim with one fault that strikes once; a second request must do well.
async fn strike(fault: Fault) -> Reply {
    let sim = start(Config::default());
    sim.fault(fault.clone().times(1));
    let reply = ask_json(sim.addr(), CHAT, &streamed()).await;
    if fault.kind != Kind::Die && fault.kind != Kind::Refuse {
        let after = ask_json(sim.addr(), CHAT, &streamed()).await;
        assert_eq!((after.status, after.end, tokens(&after)), (200, End::Whole, 10), "after {fault}");
    }
    reply
}

#[tokio::test]
async fn streams_are_cut_after_so_many_tokens() {
    for (kind, end) in [
        (Kind::Reset, End::Reset),
        (Kind::CleanFin, End::Truncated),
        (Kind::CutEvent, End::Truncated),
        (Kind::ShortBody, End::Truncated),
        (Kind::Die, End::Truncated),
        (Kind::ErrorEvent, End::Whole),
        (Kind::Abort, End::Whole),
    ] {
        for after in [1, 4, 9] {
            let reply = strike(Fault::new(kind).after(after)).await;
            assert_eq!((reply.status, reply.end), (200, end), "{kind:?} after {after}");
            // RST throws away what the client has not read yet.
            if end != End::Reset {
                assert_eq!(tokens(&reply) as u64, after, "{kind:?}");
            }
            let in_event = !reply.body.ends_with(b"\n\n");
            if kind != Kind::Reset {
                assert_eq!(in_event, kind == Kind::CutEvent, "{kind:?}");
            }
        }
    }
}

#[tokio::test]
async fn an_ending_is_cut_before_the_finish_after_it_and_before_the_terminator() {
    let usage = chat(json!({"stream": true, "max_tokens": 10, "stream_options": {"include_usage": true}}));
    for engine in [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp] {
        for (point, told) in
            [(Point::Last, [false, false]), (Point::Finish, [true, false]), (Point::Usage, [true, true])]
        {
            for kind in [Kind::CleanFin, Kind::CutEvent] {
                let sim = start(Config { engine, length: Some(30), ..Config::default() });
                sim.fault(Fault::new(kind).at(point).times(1));
                let reply = ask_json(sim.addr(), CHAT, &usage).await;
                let text = reply.text();
                let whole: String = text.split_inclusive("\n\n").filter(|event| event.ends_with("\n\n")).collect();
                let finish = whole.contains("\"finish_reason\":\"length\"");
                assert_eq!([finish, whole.contains("\"usage\":")], told, "{engine:?} {point}");
                assert_eq!(reply.end, End::Truncated);
                assert!(!whole.contains("[DONE]"));
            }
        }
    }
}

#[tokio::test]
async fn nothing_comes_of_what_fails_before_the_head() {
    for kind in [Kind::Die, Kind::CleanFin, Kind::CutEvent, Kind::Reset] {
        let sim = start(Config::default());
        sim.fault(Fault::new(kind).at(Point::Nothing).times(1));
        assert_eq!(ask_json(sim.addr(), CHAT, &streamed()).await.status, 0, "{kind:?}");
    }
    assert_eq!(strike(Fault::new(Kind::ErrorEvent).at(Point::Nothing)).await.status, 500);
}

#[tokio::test]
async fn a_plain_answer_is_cut_where_its_tokens_are() {
    for (point, share) in [(Point::Tokens(1), 0.1), (Point::Tokens(9), 0.9), (Point::Last, 1.0)] {
        let sim = start(Config::default());
        let whole = ask_json(sim.addr(), CHAT, &chat(json!({"max_tokens": 10}))).await.body.len();
        sim.fault(Fault::new(Kind::CleanFin).at(point).times(1));
        let cut = ask_json(sim.addr(), CHAT, &chat(json!({"max_tokens": 10}))).await;
        assert_eq!(cut.end, End::Truncated);
        let right = ((whole as f64 * share) as usize).min(whole - 1);
        assert_eq!(cut.body.len(), right, "{point}");
    }
}

#[tokio::test]
async fn a_frozen_sim_is_silent_on_every_connection_and_goes_on_when_thawed() {
    let sim = start(Config::default());
    sim.fault(Fault::new(Kind::Freeze).after(3).times(1));
    let mut stream = connect(sim.addr()).await;
    stream.write_all(&post(CHAT, &streamed())).await.unwrap();
    sim.until(|now| now.tokens == 3).await;
    // Its socket still takes connections: the kernel does.
    let mut other = connect(sim.addr()).await;
    other.write_all(&get("/health")).await.unwrap();
    let silent = tokio::time::timeout(Duration::from_millis(50), other.read(&mut [0; 8])).await;
    assert!(silent.is_err());
    sim.thaw();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(tokens(&parse(&bytes, false)), 10);
    sim.freeze();
    sim.thaw();
    assert_eq!(ask(sim.addr(), &get("/health")).await.status, 200);
}

#[tokio::test]
async fn a_failed_engine_says_so_and_then_done() {
    let reply = strike(Fault::new(Kind::ErrorEvent).after(2)).await;
    assert!(reply.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(reply.events().last().unwrap()["error"]["code"], 500);
    let aborted = strike(Fault::new(Kind::Abort).after(2)).await;
    assert_eq!(aborted.events().last().unwrap()["choices"][0]["finish_reason"], "abort");
}

#[tokio::test]
async fn before_the_head_it_resets_answers_badly_or_not_at_all() {
    let reset = strike(Fault::new(Kind::Reset)).await;
    assert_eq!((reset.status, reset.end), (0, End::Reset));
    let unavailable = strike(Fault::new(Kind::Unavailable)).await;
    assert_eq!((unavailable.status, &unavailable.json()["error"]["code"]), (503, &json!(503)));
    let full = strike(Fault::new(Kind::TooMany)).await;
    assert_eq!((full.status, full.headers["retry-after"].as_str()), (429, "1"));
    let empty = strike(Fault::new(Kind::Empty500)).await;
    assert_eq!((empty.status, empty.body.len(), empty.end), (500, 0, End::Whole));
    assert_eq!(strike(Fault::new(Kind::BadHead)).await.status, 0);
    let bomb = strike(Fault::new(Kind::HeaderBomb)).await;
    assert_eq!(bomb.headers.len(), 1025);
    assert_eq!(strike(Fault::new(Kind::InterimBomb)).await.status, 103);
}

#[tokio::test]
async fn lengths_lie_on_plain_answers() {
    let sim = start(Config::default());
    sim.fault(Fault::new(Kind::ShortBody).times(1));
    let short = ask_json(sim.addr(), CHAT, &chat(json!({"max_tokens": 5}))).await;
    assert_eq!((short.status, short.end), (200, End::Truncated));
    sim.fault(Fault::new(Kind::LongBody).times(1));
    let long = ask_json(sim.addr(), CHAT, &chat(json!({"max_tokens": 5}))).await;
    assert!(long.json()["choices"][0]["message"]["content"].is_string());
    assert!(long.surplus.ends_with(b"poisoned"));
    sim.fault(Fault::new(Kind::ErrorEvent).times(1));
    assert_eq!(ask_json(sim.addr(), CHAT, &chat(json!({}))).await.status, 500);
    sim.fault(Fault::new(Kind::Abort).after(2).times(1));
    let aborted = ask_json(sim.addr(), CHAT, &chat(json!({}))).await.json();
    assert_eq!(aborted["choices"][0]["finish_reason"], "abort");
    assert_eq!(aborted["choices"][0]["message"]["content"], expected("hello", "sim", 0, 2).concat());
}

#[tokio::test]
async fn what_hangs_or_stalls_goes_on_when_released() {
    for fault in [Fault::new(Kind::Hang), Fault::new(Kind::Stall).after(3)] {
        let sim = start(Config::default());
        sim.fault(fault.clone().times(1));
        let mut stream = connect(sim.addr()).await;
        stream.write_all(&post(CHAT, &streamed())).await.unwrap();
        let mut bytes = Vec::new();
        if fault.kind == Kind::Stall {
            sim.until(|now| now.tokens == 3).await;
        } else {
            sim.until(|now| now.requests == 1).await;
        }
        // A release that comes before the hold would be lost: repeat until all is there.
        let read = stream.read_to_end(&mut bytes);
        tokio::pin!(read);
        loop {
            tokio::select! {
                done = &mut read => { done.unwrap(); break; }
                () = tokio::task::yield_now() => sim.release(),
            }
        }
        let reply = parse(&bytes, false);
        assert_eq!((tokens(&reply), reply.end), (10, End::Whole), "{fault}");
    }
}

#[tokio::test]
async fn a_dead_sim_listens_no_more_until_it_is_revived() {
    let sim = start(Config { faults: vec!["die-after=2,times=1".parse().unwrap()], ..Config::default() });
    let mut bystander = connect(sim.addr()).await;
    sim.until(|now| now.open == 1).await;
    let reply = ask_json(sim.addr(), CHAT, &streamed()).await;
    assert_eq!((tokens(&reply), reply.end), (2, End::Truncated));
    sim.died().await;
    assert!(!sim.is_alive());
    assert_eq!(bystander.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(TcpStream::connect(sim.addr()).await.is_err());
    sim.revive().unwrap();
    assert!(sim.is_alive());
    assert_eq!(tokens(&ask_json(sim.addr(), CHAT, &streamed()).await), 10);
    let now = sim.state();
    assert_eq!((now.served, now.failed, now.cancelled, now.running), (1, 1, 0, 0));
}

#[tokio::test]
async fn a_killed_sim_ends_what_runs_with_fin() {
    let sim = start(Config { faults: vec![Fault::new(Kind::Stall).after(2)], ..Config::default() });
    let mut stream = connect(sim.addr()).await;
    stream.write_all(&post(CHAT, &streamed())).await.unwrap();
    sim.until(|now| now.tokens == 2).await;
    sim.kill();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    let reply = parse(&bytes, false);
    assert_eq!((tokens(&reply), reply.end), (2, End::Truncated));
    assert_eq!(sim.state().failed, 1);
}

#[tokio::test]
async fn refusing_ends_by_itself() {
    let sim = start(Config::default());
    sim.fault(Fault::new(Kind::Refuse).times(1).lasts(Duration::from_millis(50)));
    let reply = ask_json(sim.addr(), CHAT, &streamed()).await;
    assert_eq!(reply.end, End::Reset);
    while TcpStream::connect(sim.addr()).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(sim.is_alive());
}

#[tokio::test]
async fn health_loads_or_is_slow() {
    for engine in [Engine::Vllm, Engine::Sglang, Engine::LlamaCpp] {
        let sim = start(Config { engine, ..Config::default() });
        assert_eq!(ask(sim.addr(), &get("/health")).await.status, 200);
        sim.fault(Fault::new(Kind::Loading).times(1));
        assert_eq!(ask_json(sim.addr(), CHAT, &streamed()).await.status, 200);
        let loading = ask(sim.addr(), &get("/health")).await;
        assert_eq!(loading.status, 503);
        assert_eq!(loading.text().contains("Loading model"), engine == Engine::LlamaCpp);
        let began = Instant::now();
        sim.fault(Fault::new(Kind::SlowHealth).times(1).lasts(Duration::from_millis(30)));
        assert_eq!(ask(sim.addr(), &get("/health")).await.status, 200);
        assert!(began.elapsed() >= Duration::from_millis(30));
    }
}

#[tokio::test]
async fn faults_are_ordered_seen_and_cleared_over_http() {
    let sim = start(Config::default());
    let order = json!({"fault": "503", "times": 2, "path": CHAT});
    assert_eq!(ask_json(sim.addr(), "/sim/fault", &order).await.status, 200);
    assert_eq!(ask_json(sim.addr(), CHAT, &streamed()).await.status, 503);
    let left = ask(sim.addr(), &get("/sim/fault")).await.json();
    assert_eq!(left["faults"][0], "503,after=0,p=1,ms=1000,times=1,path=/v1/chat/completions");
    let clear = "DELETE /sim/fault HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(sim.addr(), clear.as_bytes()).await.status, 200);
    assert_eq!(ask_json(sim.addr(), CHAT, &streamed()).await.status, 200);
    let wrong = ask_json(sim.addr(), "/sim/fault", &json!({"fault": "dye"})).await;
    assert!(wrong.status == 400 && wrong.text().contains("unknown fault"));
}
