//! Tries before the first byte.

use super::*;

const REFUSED: (Kind, Retry) = (Kind::UpstreamConnect, Retry::Unsent);
const RESET: (Kind, Retry) = (Kind::UpstreamReset, Retry::Safe);

fn fail((kind, retry): (Kind, Retry)) -> Step {
    Step::Fail(kind, retry)
}

/// Whoever is tried first gets the first step.
fn both(bench: &Bench, step: impl Fn() -> Step) {
    bench.on("a", step()).on("b", step());
}

#[tokio::test(start_paused = true)]
async fn each_failure_that_asks_for_it_is_tried_elsewhere_with_the_same_body() {
    let failures: [fn() -> Step; 7] = [
        || fail(REFUSED),
        || fail(RESET),
        || Step::Status(502, "bad"),
        || Step::Status(503, "away"),
        || Step::Status(504, "late"),
        || Step::Status(500, ""),
        || Step::Status(429, "full"),
    ];
    for failure in failures {
        let bench = Bench::new(&config([backend("a"), backend("b")]));
        both(&bench, failure);
        // Only the first of the two fails: the other's step is taken away.
        let call = call();
        let record = Rc::clone(&call.record);
        let script = Rc::clone(&bench.script);
        let upstream = tower::service_fn(move |attempt: Attempt| {
            let script = Rc::clone(&script);
            async move {
                if attempt.number == 2 {
                    script.borrow_mut().steps.clear();
                }
                answer(&script, attempt).await
            }
        });
        let answer = route(Rc::clone(&bench.ctx), upstream).oneshot(call.into()).await.unwrap();
        assert_eq!(answer.status(), 200);
        let tried = bench.tried();
        assert!(tried.len() == 2 && tried[0] != tried[1], "{tried:?}");
        assert!(bench.script.borrow().bodies.iter().all(|body| body == "hello"));
        assert_eq!((record.attempts.get(), record.why.get()), (2, "retry"));
    }
}

#[tokio::test(start_paused = true)]
async fn other_answers_pass_as_they_are() {
    for (status, body) in [(200, "x"), (400, "x"), (401, ""), (404, "x"), (500, "this request was too hard")] {
        let bench = Bench::new(&config([backend("a"), backend("b")]));
        both(&bench, || Step::Status(status, body));
        let answer = bench.send(call()).await.unwrap();
        assert_eq!((answer.status().as_u16(), bench.tried().len()), (status, 1));
        assert!(!answer.headers().contains_key("x-should-retry"));
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_are_not_tried_again() {
    for kind in [Kind::UpstreamTimeout, Kind::DeadlineExceeded] {
        let bench = Bench::new(&config([backend("a"), backend("b")]));
        both(&bench, || Step::Fail(kind, Retry::Safe));
        assert_eq!(bench.send(call()).await.unwrap_err().kind(), kind);
        assert_eq!(bench.tried().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_repeated_is_tried_again_only_when_nothing_was_sent() {
    let failures: [(fn() -> Step, usize); 3] =
        [(|| fail(REFUSED), 3), (|| fail(RESET), 1), (|| Step::Status(503, "away"), 1)];
    for (failure, tries) in failures {
        let bench = Bench::new(&config([backend("a"), backend("b")]));
        both(&bench, failure);
        let _ = bench.send(Call { repeatable: false, ..call() }).await;
        assert_eq!(bench.tried().len(), tries, "both refuse, then one answers");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_gone_cannot_be_sent_again() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    both(&bench, || fail(REFUSED));
    let payload = Payload::upload(Body::whole("once"));
    let error = bench.send(Call { payload, ..call() }).await.unwrap_err();
    assert_eq!((error.kind(), bench.tried().len()), (Kind::UpstreamConnect, 1));
}

#[tokio::test(start_paused = true)]
async fn never_the_same_backend_twice_while_another_is_left() {
    for _ in 0..20 {
        let bench = Bench::new(&config([backend("a"), backend("b"), backend("c")]));
        for name in ["a", "b", "c"] {
            bench.on(name, Step::Status(503, "away"));
        }
        bench.send(call()).await.unwrap();
        let mut tried = bench.tried();
        tried.sort();
        assert_eq!(tried, ["a", "b", "c"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_answer_passes_with_the_advice_not_to_retry() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    for _ in 0..3 {
        let fields: &[_] = &[("retry-after", "7"), ("x-own", "yes")];
        bench.on("a", Step::Fields(503, fields, "away")).on("b", Step::Fields(503, fields, "away"));
    }
    let answer = bench.send(call()).await.unwrap();
    assert_eq!((answer.status(), bench.tried().len()), (StatusCode::SERVICE_UNAVAILABLE, 3));
    assert_eq!(answer.headers()["x-should-retry"], "false");
    assert_eq!(
        (&answer.headers()["retry-after"], &answer.headers()["x-own"]),
        (&"7".parse().unwrap(), &"yes".parse().unwrap())
    );
    assert_eq!(text(Ok(answer)).await, "away");
    assert_eq!(bench.backend("a").load().in_flight() + bench.backend("b").load().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_error_tells_of_all_tries() {
    let bench = Bench::new(&config([backend("a")]));
    for _ in 0..3 {
        bench.on("a", fail(RESET));
    }
    let start = Instant::now();
    let error = bench.send(call()).await.unwrap_err();
    assert_eq!(error.message(), "backend a: no luck (3 tries: a, a, a)");
    assert_eq!((error.kind(), error.may_retry()), (Kind::UpstreamReset, Retry::Never));
    assert!(start.elapsed() >= Duration::from_millis(30), "the same backend is not hammered");
    assert!(start.elapsed() <= Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn tries_end_with_the_budget() {
    let mut config = config([backend("a"), backend("b")]);
    config.retry = config::Retry { attempts: 3, budget: 0.0, min_per_second: 0 };
    let bench = Bench::new(&config);
    both(&bench, || Step::Status(503, "away"));
    let answer = bench.send(call()).await.unwrap();
    assert_eq!((answer.status().as_u16(), bench.tried().len()), (503, 1));
    assert!(!answer.headers().contains_key("x-should-retry"), "nothing else was tried");
}

#[tokio::test(start_paused = true)]
async fn a_full_backend_is_tried_again_when_it_may_have_room() {
    let bench = Bench::new(&config([backend("a")]));
    bench.on("a", Step::Status(429, "full"));
    let start = Instant::now();
    let call = call();
    let record = Rc::clone(&call.record);
    assert_eq!(text(bench.send(call).await).await, "fine");
    assert!(record.queued.get() >= Duration::from_millis(250) && start.elapsed() < Duration::from_secs(1));
}
