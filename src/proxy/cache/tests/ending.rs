//! How answers end, and who is told.

use super::*;

#[test]
fn a_backend_that_dies_before_the_head_is_one_error_for_all() {
    run(
        |_| {},
        async |world| {
            let (cue, dies) = oneshot::channel();
            world.plays(Play::Dies(dies, Kind::UpstreamConnect));
            let clients: Vec<_> = (0..4).map(|_| world.client(call("a", true))).collect();
            settle().await;
            drop(cue);
            for client in clients {
                assert_eq!(client.await.unwrap().error, Some(Kind::UpstreamConnect));
            }
            assert_eq!((world.asked(), world.cache.shared.under_way()), (1, 0));
            // Nothing of it stands: the next is computed.
            assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored);
        },
    );
}

#[test]
fn attempts_that_are_used_up_are_used_up_for_all() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let clients: Vec<_> = (0..4).map(|_| world.client(call("a", true))).collect();
            settle().await;
            backend.head();
            backend.give(EVENTS[0]);
            settle().await;
            backend.cut();
            for client in clients {
                let got = client.await.unwrap();
                assert_eq!((got.body.as_str(), got.error), (EVENTS[0], Some(Kind::StreamCut)));
            }
            assert_eq!(world.asked(), 1);
            assert_eq!(world.cache.shared.store.stats().entries, 0);
        },
    );
}

#[test]
fn the_leaders_own_patience_is_not_the_others() {
    run(
        |_| {},
        async |world| {
            let (release, held) = oneshot::channel();
            let (go, cue) = oneshot::channel::<()>();
            let calls = Rc::new(std::cell::Cell::new(0));
            let count = Rc::clone(&calls);
            let first = RefCell::new(Some((held, cue)));
            let first = Rc::new(first);
            let inner = service_fn(move |call: Call| {
                count.set(count.get() + 1);
                let turn = first.borrow_mut().take();
                async move {
                    let Some((held, _cue)) = turn else { return answer(whole()).await };
                    let _: Result<(), _> = held.await;
                    assert!(call.wait_until.is_some());
                    Err(Error::new(Kind::QueueTimeout, "every backend stayed full"))
                }
            });
            let stage = cache(Rc::clone(&world.cache), inner);
            let mut impatient = call("a", false);
            impatient.wait_until = Some(Instant::now() + Duration::from_secs(1));
            let leader = spawn(stage.clone().oneshot(impatient));
            settle().await;
            let (one, two) = (spawn(stage.clone().oneshot(call("a", false))), spawn(stage.oneshot(call("a", false))));
            settle().await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            release.send(()).unwrap();
            assert_eq!(leader.await.unwrap().unwrap_err().kind(), Kind::QueueTimeout);
            assert!(one.await.unwrap().is_ok() && two.await.unwrap().is_ok());
            assert_eq!(calls.get(), 2, "one of them led anew, for both");
            drop(go);
        },
    );
}

#[test]
fn errors_are_shared_with_those_who_follow_and_never_kept() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = live("application/json");
            let Play::Live(cue) = play else { return };
            world.plays(Play::Live(cue));
            let clients: Vec<_> = (0..3).map(|_| world.client(call("a", false))).collect();
            settle().await;
            backend.head();
            backend.give("{\"oops\":");
            settle().await;
            // The head promised well: others still join. The body is no answer.
            backend.give("1}");
            backend.frames = None;
            for client in clients {
                assert_eq!(client.await.unwrap().body, "{\"oops\":1}");
            }
            assert_eq!(world.cache.shared.store.stats().entries, 0);
            for status in [400, 404, 429, 500, 503] {
                world.plays(Play::Whole(status, vec![("content-type", "application/json")], "{}".to_owned()));
                let got = world.ask(call("a", false)).await;
                assert_eq!((got.status, got.cached()), (status, Cached::Miss));
            }
            assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored, "then the good answer is");
        },
    );
}

#[test]
fn a_head_that_may_not_be_kept_lets_nobody_else_in() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = live("text/plain");
            world.plays(play);
            let (leader, follower) = (world.client(call("a", false)), world.client(call("a", false)));
            settle().await;
            backend.head();
            backend.give("odd");
            settle().await;
            let late = world.ask(call("a", false)).await;
            assert_eq!((late.cached(), world.asked()), (Cached::Stored, 2));
            backend.frames = None;
            assert_eq!((leader.await.unwrap().body, follower.await.unwrap().body), ("odd".into(), "odd".into()));
        },
    );
}

#[test]
fn each_keeps_its_own_deadline() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let within = |seconds| {
                let mut call = call("a", true);
                call.deadline = Instant::now() + Duration::from_secs(seconds);
                call
            };
            let (leader, early, late) = (world.client(within(20)), world.client(within(10)), world.client(within(60)));
            settle().await;
            backend.head();
            backend.give(EVENTS[0]);
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(leader.await.unwrap().error, Some(Kind::DeadlineExceeded));
            assert_eq!(early.await.unwrap().error, Some(Kind::DeadlineExceeded));
            backend.finish(1);
            let got = late.await.unwrap();
            assert_eq!((got.body, got.error), (EVENTS.concat(), None));
        },
    );
}

#[test]
fn a_backend_that_hangs_ends_with_its_last_reader() {
    run(
        |_| {},
        async |world| {
            let (backend, play) = stream();
            world.plays(play);
            let mut waits = call("a", true);
            waits.deadline = Instant::now() + Duration::from_secs(5);
            let got = world.ask(waits).await;
            assert_eq!(got.error, Some(Kind::DeadlineExceeded));
            assert!(backend.is_gone());
            assert_eq!(world.cache.desk.running(), 0);
        },
    );
}

#[test]
fn a_panic_hangs_nobody() {
    run(
        |_| {},
        async |world| {
            world.plays(Play::Panic);
            let leader = world.client(call("a", true));
            assert!(leader.await.unwrap_err().is_panic());
            assert_eq!((world.cache.desk.running(), world.cache.shared.under_way()), (0, 0));

            // Under way when it happens: followers are told.
            let (release, held) = oneshot::channel::<()>();
            let held = Rc::new(RefCell::new(Some(held)));
            let inner = service_fn(move |_: Call| {
                let held = held.borrow_mut().take();
                async move {
                    if let Some(held) = held {
                        let _ = held.await;
                        panic!("a fault of the gateway");
                    }
                    answer(whole()).await
                }
            });
            let stage = cache(Rc::clone(&world.cache), inner);
            let leader = spawn(stage.clone().oneshot(call("b", false)));
            settle().await;
            let follower = spawn(stage.clone().oneshot(call("b", false)));
            settle().await;
            release.send(()).unwrap();
            assert_eq!(follower.await.unwrap().unwrap_err().kind(), Kind::Internal);
            assert_eq!(leader.await.unwrap().unwrap_err().kind(), Kind::Internal);
            assert!(stage.oneshot(call("b", false)).await.is_ok());
            assert_eq!(world.cache.desk.running(), 0);
        },
    );
}

#[test]
fn a_stale_answer_stands_in_for_an_error() {
    let stale = |config: &mut config::Cache| {
        config.ttl = Duration::from_secs(10);
        config.stale_if_error = Duration::from_secs(100);
    };
    run(stale, async |world| {
        world.ask(call("a", false)).await;
        tokio::time::sleep(Duration::from_secs(50)).await;
        world.plays(Play::Fail(Kind::NoHealthyBackend));
        let got = world.ask(call("a", false)).await;
        assert_eq!((got.body.as_str(), got.cached(), got.error), (PLAIN, Cached::Stale, None));
        assert_eq!(got.headers[header::AGE], "50");
        world.plays(Play::Whole(503, vec![], String::new()));
        assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stale);
        // Nor does one stand in that is older than the client takes.
        world.plays(Play::Whole(503, vec![], String::new()));
        assert_eq!(world.ask(says(call("a", false), "max-age=20")).await.status, 503);
        // The request's own fault is told.
        world.plays(Play::Whole(400, vec![], "{}".to_owned()));
        assert_eq!(world.ask(call("a", false)).await.status, 400);
        tokio::time::sleep(Duration::from_secs(100)).await;
        world.plays(Play::Fail(Kind::NoHealthyBackend));
        assert_eq!(world.ask(call("a", false)).await.error, Some(Kind::NoHealthyBackend));
    });
}

#[test]
fn what_must_be_asked_for_again_stands_in_for_nothing() {
    let stale = |config: &mut config::Cache| {
        config.ttl = Duration::from_secs(10);
        config.stale_if_error = Duration::from_secs(100);
    };
    for line in ["must-revalidate", "max-age=60, proxy-revalidate", "s-maxage=60"] {
        run(stale, async |world| {
            world.plays(with(&[("cache-control", line)], PLAIN));
            world.ask(call("a", false)).await;
            assert!(matches!(world.ask(call("a", false)).await.cached(), Cached::Hit(_)));
            tokio::time::sleep(Duration::from_secs(11)).await;
            world.plays(Play::Fail(Kind::NoHealthyBackend));
            assert_eq!(world.ask(call("a", false)).await.error, Some(Kind::NoHealthyBackend), "{line}");
        });
    }
}

#[test]
fn an_answer_that_comes_aged_is_fresh_for_less() {
    run(
        |_| {},
        async |world| {
            world.plays(with(&[("cache-control", "max-age=60"), ("age", "50")], PLAIN));
            assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored);
            tokio::time::sleep(Duration::from_secs(4)).await;
            let got = world.ask(call("a", false)).await;
            assert_eq!((got.cached(), &got.headers[header::AGE]), (Cached::Hit(6), &HeaderValue::from_static("54")));
            // A client's own bound counts from where the answer was made.
            assert_eq!(world.ask(says(call("a", false), "max-age=53")).await.cached(), Cached::Stored);
            tokio::time::sleep(Duration::from_secs(4000)).await;
            let over = [("cache-control", "max-age=60"), ("age", "60")];
            for head in [&over[..], &[("expires", "0")], &[("expires", "Sun, 06 Nov 1994 08:49:37 GMT")]] {
                world.plays(with(head, PLAIN));
                assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Miss, "{head:?}");
            }
        },
    );
}

#[test]
fn where_tenants_share_what_may_not_be_kept_is_still_its_leaders() {
    run(
        |config| config.scope = config::CacheScope::Shared,
        async |world| {
            // Its head says that it may not be kept.
            let (mut backend, play) = live("text/html");
            world.plays(play);
            let clients: Vec<_> = (0..2).map(|_| world.client(call("a", false))).collect();
            settle().await;
            backend.head();
            backend.give("mine");
            backend.frames = None;
            let mut bodies = Vec::new();
            for client in clients {
                bodies.push(client.await.unwrap().body);
            }
            assert_eq!(bodies, ["mine", PLAIN]);
            assert_eq!(world.asked(), 2);
        },
    );
}
