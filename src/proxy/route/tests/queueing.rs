//! Waiting when every place is taken.

use std::pin::pin;

use super::*;

fn full(limit: u32) -> (Bench, Permit) {
    let bench = Bench::new(&config([limited("a", limit)]));
    let held = bench.backend("a").try_acquire().unwrap();
    (bench, held)
}

#[tokio::test(start_paused = true)]
async fn a_freed_place_goes_to_who_waited_longest() {
    let (bench, held) = full(1);
    let service = bench.service();
    let mut first = pin!(service.clone().oneshot(call()));
    let mut second = pin!(service.oneshot(call()));
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    assert_eq!(bench.queue.len(), 2);
    drop(held);
    assert!(bench.backend("a").try_acquire().is_none(), "nobody new can take it in between");
    assert!(poll_once(second.as_mut()).is_pending());
    let answer = first.await.unwrap();
    assert_eq!(bench.queue.len(), 1);
    drop(answer);
    second.await.unwrap();
    assert_eq!((bench.queue.len(), bench.backend("a").load().in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn newcomers_go_behind_those_who_wait_for_the_same() {
    let (bench, held) = full(1);
    let service = bench.service();
    let mut first = pin!(service.clone().oneshot(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    drop(held);
    let mut late = pin!(service.oneshot(call()));
    assert!(poll_once(late.as_mut()).is_pending());
    drop(first.await);
    late.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_leaves_hands_the_place_on() {
    let (bench, held) = full(1);
    let service = bench.service();
    let mut first = Box::pin(service.clone().oneshot(call()));
    let mut second = pin!(service.oneshot(call()));
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    drop(held);
    drop(first);
    second.await.unwrap();
    assert_eq!((bench.queue.len(), bench.backend("a").load().in_flight()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_for_another_model_does_not_stand_in_the_way() {
    let with =
        |name: &str, model: &str| config::Backend { max_concurrency: Concurrency::Limit(1), ..serving(name, &[model]) };
    let bench = Bench::new(&config([with("a", "m"), with("b", "n")]));
    let held = bench.backend("a").try_acquire().unwrap();
    let busy = bench.backend("b").try_acquire().unwrap();
    let service = bench.service();
    let mut first = pin!(service.clone().oneshot(for_model("m")));
    let mut second = pin!(service.clone().oneshot(for_model("n")));
    assert!(poll_once(first.as_mut()).is_pending() && poll_once(second.as_mut()).is_pending());
    drop(busy);
    second.await.unwrap();
    assert!(poll_once(first.as_mut()).is_pending());
    service.oneshot(for_model("n")).await.unwrap();
    drop(held);
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_turns_away() {
    let mut config = config([limited("a", 1)]);
    config.limits.queue = 1;
    let bench = Bench::new(&config);
    let _held = bench.backend("a").try_acquire().unwrap();
    let service = bench.service();
    let mut first = pin!(service.clone().oneshot(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    let error = service.oneshot(call()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::QueueFull);
    let wait = error.retry_after().unwrap();
    assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_the_queues_timeout_or_the_calls_deadline() {
    let (bench, _held) = full(1);
    let start = Instant::now();
    let patient = call();
    let record = Rc::clone(&patient.record);
    let error = bench.send(patient).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed().as_secs()), (Kind::QueueTimeout, 120));
    assert_eq!(record.queued.get().as_secs(), 120);
    let start = Instant::now();
    let hurried = Call { deadline: start + Duration::from_secs(3), ..call() };
    let error = bench.send(hurried).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed().as_secs()), (Kind::QueueTimeout, 3));
    assert!(error.message().contains("deadline"), "{}", error.message());
    let start = Instant::now();
    let impatient = Call { wait_until: Some(start + Duration::from_secs(2)), ..call() };
    assert_eq!((bench.send(impatient).await.unwrap_err().kind(), start.elapsed().as_secs()), (Kind::QueueTimeout, 2));
    assert_eq!(bench.queue.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_comes_up_serves_those_who_wait() {
    let bench = Bench::new(&config([limited("a", 1), limited("b", 1)]));
    let _held = bench.backend("a").try_acquire().unwrap();
    bench.backend("b").probe_failed(1, "no answer");
    let mut first = pin!(bench.send(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    bench.backend("b").probe_passed(1);
    first.await.unwrap();
    assert_eq!(bench.tried(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_serves_those_who_wait() {
    let (bench, _held) = full(1);
    let mut first = pin!(bench.send(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    bench.fleet.apply(&config([limited("a", 2)]));
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_failed_try_waits_for_another_backend_that_is_full() {
    let bench = Bench::new(&config([limited("a", 1), limited("b", 1)]));
    bench.on("a", Step::Status(503, "away"));
    let held = bench.backend("b").try_acquire().unwrap();
    let mut first = pin!(bench.send(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    drop(held);
    assert_eq!(first.await.unwrap().status(), 200);
    assert_eq!(bench.tried(), ["a", "b"]);
}

#[tokio::test]
async fn places_freed_on_one_thread_wake_calls_on_another() {
    let (bench, held) = full(1);
    let (freed, free) = oneshot::channel();
    let other = std::thread::spawn(move || {
        free.blocking_recv().unwrap();
        drop(held);
    });
    let mut waits = pin!(bench.send(call()));
    assert!(poll_once(waits.as_mut()).is_pending());
    freed.send(()).unwrap();
    waits.await.unwrap();
    other.join().unwrap();
}

#[tokio::test]
async fn many_threads_lose_no_place_and_no_call() {
    let fleet = Fleet::new(&config([limited("a", 3), limited("b", 2)]));
    let queue = Queue::new(&fleet);
    let budget = Budget::new();
    let config = config([]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                runtime.block_on(async {
                    let settings = Settings::new(&config.routing, config.retry, &config.limits);
                    let refresh: Refresh = Rc::new(|_| Box::pin(std::future::ready(())));
                    let ctx = Context::new(
                        Arc::clone(&fleet),
                        Arc::clone(&queue),
                        Arc::clone(&budget),
                        settings,
                        refresh,
                        Counters::noop(),
                    );
                    let upstream = tower::service_fn(|attempt: Attempt| async move {
                        let Attempt { backend, permit, .. } = attempt;
                        assert!(backend.load().in_flight() <= backend.load().limit().unwrap());
                        tokio::task::yield_now().await;
                        Ok::<_, Error>(Response::new(Body::whole("x").with_tail(Box::new(Keeps(permit)))))
                    });
                    let service = route(ctx, upstream);
                    for _ in 0..50 {
                        let mut calls: Vec<_> =
                            (0..5).map(|_| Box::pin(service.clone().oneshot(call().into()))).collect();
                        std::future::poll_fn(|cx| {
                            calls.retain_mut(|call| match call.as_mut().poll(cx) {
                                Poll::Ready(answer) => {
                                    answer.unwrap();
                                    false
                                }
                                Poll::Pending => true,
                            });
                            if calls.is_empty() { Poll::Ready(()) } else { Poll::Pending }
                        })
                        .await;
                    }
                });
            });
        }
    });
    assert_eq!(queue.len(), 0);
    assert!(fleet.snapshot().backends.iter().all(|backend| backend.load().in_flight() == 0));
    let calls: u64 = fleet.snapshot().backends.iter().map(|backend| backend.totals().calls.load(Relaxed)).sum();
    assert_eq!(calls, 4 * 50 * 5);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_place_at_once() {
    let bench = Bench::new(&config([limited("a", 1)]));
    let (_keep, held) = oneshot::channel();
    bench.on("a", Step::Held(held));
    let mut first = Box::pin(bench.send(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    assert_eq!(bench.backend("a").load().in_flight(), 1);
    drop(first);
    assert_eq!(bench.backend("a").load().in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_try_the_last_resort_when_all_went_out() {
    let (bench, _held) = full(2);
    let other = bench.backend("a").try_acquire().unwrap();
    let mut waits = pin!(bench.send(call()));
    assert!(poll_once(waits.as_mut()).is_pending());
    bench.backend("a").report(Outcome::Refused("refused"));
    drop(other);
    waits.await.unwrap();
    assert_eq!(bench.tried(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_some_lets_others_pass_to_the_rest() {
    let bench = Bench::new(&config([limited("a", 1), limited("b", 1)]));
    bench.on("a", Step::Status(503, "away"));
    let _held = bench.backend("b").try_acquire().unwrap();
    let mut first = pin!(bench.send(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    let second = bench.send(call()).await.unwrap();
    assert_eq!((second.status(), bench.tried()), (StatusCode::OK, vec!["a".to_owned(), "a".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_moment_of_fullness_holds_nobody_longer_than_itself() {
    let bench = Bench::new(&config([backend("a")]));
    bench.on("a", Step::Status(429, "full"));
    let service = bench.service();
    let start = Instant::now();
    let mut first = pin!(service.clone().oneshot(call()));
    let mut second = pin!(service.clone().oneshot(call()));
    let mut third = pin!(service.oneshot(call()));
    assert!(poll_once(first.as_mut()).is_pending());
    assert!(poll_once(second.as_mut()).is_pending() && poll_once(third.as_mut()).is_pending());
    let (first, second, third) = tokio::join!(first, second, third);
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    assert!(start.elapsed() < Duration::from_millis(350), "{:?}", start.elapsed());
}
