//! One answer for all who ask at once.

use super::*;

#[test]
fn sixteen_at_once_are_computed_once() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let clients: Vec<_> = (0..16).map(|_| world.client(call("a", true))).collect();
            settle().await;
            backend.head();
            backend.give(EVENTS[0]);
            settle().await;
            let late = world.client(call("a", true));
            settle().await;
            backend.finish(1);
            let mut fates = Vec::new();
            for client in clients.into_iter().chain([late]) {
                let got = client.await.unwrap();
                assert_eq!(got.body, EVENTS.concat());
                fates.push(got.cached());
            }
            assert_eq!(world.asked(), 1);
            assert_eq!(fates.iter().filter(|fate| **fate == Cached::Stored).count(), 1);
            assert_eq!(fates.iter().filter(|fate| **fate == Cached::Collapsed).count(), 16);
            let hit = world.ask(call("a", true)).await;
            assert_eq!((hit.body, world.asked()), (EVENTS.concat(), 1));
            assert_eq!(world.cache.desk.running(), 0);
            assert_eq!(world.cache.shared.live.used(), 0);
        },
    );
}

#[test]
fn plain_ones_share_too_and_every_one_has_its_facts() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = live("application/json");
            world.plays(play);
            let clients: Vec<_> = (0..3).map(|_| world.client(call("a", false))).collect();
            settle().await;
            backend.head();
            let (first, second) = PLAIN.split_at(40);
            backend.give(first);
            settle().await;
            backend.give(second);
            backend.frames = None;
            for client in clients {
                let got = client.await.unwrap();
                assert_eq!((got.body.as_str(), got.status), (PLAIN, 200));
                assert!(got.cached() == Cached::Stored || got.record.first_byte.get().is_some());
            }
            assert_eq!(world.asked(), 1);
        },
    );
}

#[test]
fn a_leader_that_leaves_before_the_head_is_not_missed() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            let follower = world.client(call("a", true));
            settle().await;
            leader.abort();
            settle().await;
            assert!(!backend.is_gone());
            backend.head();
            backend.finish(0);
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
            assert_eq!(world.asked(), 1);
            assert!(matches!(world.ask(call("a", true)).await.cached(), Cached::Hit(_)), "it was kept");
        },
    );
}

#[test]
fn a_leader_that_leaves_in_its_stream_is_not_missed() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            backend.head();
            backend.give(EVENTS[0]);
            settle().await;
            let follower = world.client(call("a", true));
            settle().await;
            leader.abort();
            settle().await;
            backend.finish(1);
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
            assert_eq!((world.asked(), world.cache.desk.running()), (1, 0));
        },
    );
}

#[test]
fn a_leader_that_stops_reading_stops_nobody() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let asked = spawn({
                let world = world.clone();
                async move { world.response(call("a", true)).await }
            });
            settle().await;
            backend.head();
            let stopped = asked.await.unwrap().unwrap();
            let follower = world.client(call("a", true));
            settle().await;
            backend.finish(0);
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
            // Whenever it goes on, all of it is there.
            let record = call("a", true).record;
            assert_eq!(read(stopped, record).await.body, EVENTS.concat());
        },
    );
}

#[test]
fn with_nobody_left_the_backend_stops_at_once_and_the_next_leads_anew() {
    run(
        |_| {},
        async |world| {
            for head in [false, true] {
                let (mut backend, play) = stream();
                world.plays(play);
                let clients = [world.client(call("a", true)), world.client(call("a", true))];
                settle().await;
                if head {
                    backend.head();
                    backend.give(EVENTS[0]);
                    settle().await;
                }
                clients.iter().for_each(JoinHandle::abort);
                settle().await;
                assert!(backend.is_gone());
                assert_eq!((world.cache.desk.running(), world.cache.shared.under_way()), (0, 0));
            }
            let (mut backend, play) = stream();
            world.plays(play);
            let next = world.client(call("a", true));
            settle().await;
            backend.head();
            backend.finish(0);
            assert_eq!(next.await.unwrap().cached(), Cached::Stored);
            assert_eq!(world.asked(), 3);
        },
    );
}

#[test]
fn alone_the_backend_stops_in_the_same_poll() {
    run(
        |_| {},
        async |world| {
            let (_backend, play) = stream();
            world.plays(play);
            let mut service = Box::pin(world.response(call("a", true)));
            std::future::poll_fn(|cx| {
                assert!(service.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            assert_eq!(world.cache.desk.running(), 1);
            drop(service);
            assert_eq!((world.cache.desk.running(), world.cache.shared.under_way()), (0, 0));
        },
    );
}

#[test]
fn it_lingers_for_the_clients_own_retry() {
    run(
        |config| config.linger = Duration::from_secs(5),
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let first = world.client(call("a", true));
            settle().await;
            first.abort();
            settle().await;
            assert!(!backend.is_gone());
            tokio::time::sleep(Duration::from_secs(4)).await;
            let retry = world.client(call("a", true));
            settle().await;
            backend.head();
            // Past the time it would have lingered alone.
            tokio::time::sleep(Duration::from_secs(4)).await;
            backend.finish(0);
            let got = retry.await.unwrap();
            assert_eq!((got.cached(), got.body, world.asked()), (Cached::Collapsed, EVENTS.concat(), 1));

            let (backend, play) = stream();
            world.plays(play);
            let other = world.client(call("b", true));
            settle().await;
            other.abort();
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert!(backend.is_gone(), "nobody came back");
            assert_eq!(world.cache.desk.running(), 0);
        },
    );
}

#[test]
fn what_lingers_to_its_end_is_kept() {
    run(
        |config| config.linger = Duration::from_secs(5),
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let first = world.client(call("a", true));
            settle().await;
            first.abort();
            backend.head();
            backend.finish(0);
            settle().await;
            let got = world.ask(call("a", true)).await;
            assert!(matches!(got.cached(), Cached::Hit(_)));
        },
    );
}

#[test]
fn tenants_models_and_bodies_are_apart() {
    run(
        |_| {},
        async |world| {
            let other_key = |key: &'static str| {
                let mut call = call("a", false);
                call.headers.insert(header::AUTHORIZATION, HeaderValue::from_static(key));
                call
            };
            for call in [call("a", false), call("b", false), other_key("Bearer 1"), other_key("Bearer 2")] {
                assert_eq!(world.ask(call).await.cached(), Cached::Stored);
            }
            assert_eq!(world.asked(), 4);
        },
    );
}

#[test]
fn sampled_ones_are_never_shared() {
    run(
        |_| {},
        async |world| {
            let sampled = || Call { asked: Asked::default(), ..call("a", false) };
            let got = [world.client(sampled()), world.client(sampled())];
            for got in got {
                assert_eq!(got.await.unwrap().cached(), Cached::bypassed("sampled"));
            }
            assert_eq!(world.asked(), 2);
            assert_eq!(world.script.borrow().calls[0].headers.len(), 1, "it goes as it came");
        },
    );
}

#[test]
fn the_backend_gets_only_what_is_keyed_or_neutral() {
    run(
        |config| config.vary = vec!["x-region".parse().unwrap()],
        async |world| {
            let mut odd = call("a", false);
            let one = HeaderValue::from_static("1");
            let per_client = ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
            let kept = ["x-region", "authorization", "x-request-id", "traceparent", "b3", "x-b3-traceid", "via"];
            let dropped = ["x-odd", "accept", "user-agent", "baggage", "tracestate"];
            for name in kept.iter().chain(&dropped).chain(&per_client) {
                odd.headers.insert(*name, one.clone());
            }
            let added = per_client.iter().chain(&["via", "x-request-id"]);
            odd.added = added.map(|name| (http::HeaderName::from_static(name), one.clone())).collect();
            world.ask(odd).await;
            let calls = &world.script.borrow().calls;
            let mut sent: Vec<_> = calls[0].headers.keys().map(|name| name.as_str().to_owned()).collect();
            sent.sort();
            assert_eq!(
                sent,
                [
                    "authorization",
                    "b3",
                    "content-type",
                    "traceparent",
                    "via",
                    "x-b3-traceid",
                    "x-region",
                    "x-request-id"
                ]
            );
            let added: Vec<_> = calls[0].added.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(added, ["via", "x-request-id"]);
        },
    );
}

#[test]
fn a_forwarding_field_that_is_keyed_is_sent() {
    run(
        |config| config.vary = vec!["x-forwarded-host".parse().unwrap()],
        async |world| {
            let host = http::HeaderName::from_static("x-forwarded-host");
            let at = |claimed: &'static str, seen: &'static str| {
                let mut call = call("a", false);
                call.headers.insert(&host, HeaderValue::from_static(claimed));
                call.added.push((host.clone(), HeaderValue::from_static(seen)));
                call
            };
            assert_eq!(world.ask(at("x", "one.test")).await.cached(), Cached::Stored);
            // It is told apart by what the backend gets, not by what the client claims.
            assert!(matches!(world.ask(at("y", "one.test")).await.cached(), Cached::Hit(_)));
            assert_eq!(world.ask(at("x", "two.test")).await.cached(), Cached::Stored);
            let calls = &world.script.borrow().calls;
            let sent: Vec<_> = calls.iter().map(|call| call.added[0].1.clone()).collect();
            assert_eq!(sent, ["one.test", "two.test"]);
        },
    );
}

#[test]
fn followers_of_an_alias_are_told_their_own_name() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let called = |alias: Option<&str>| Call { alias: alias.map(Into::into), ..call("a", true) };
            let clients =
                [world.client(called(None)), world.client(called(Some("gpt"))), world.client(called(Some("x")))];
            settle().await;
            backend.head();
            backend.finish(0);
            for (client, name) in clients.into_iter().zip(["m", "gpt", "x"]) {
                let want = EVENTS.concat().replace("\"model\":\"m\"", &format!("\"model\":\"{name}\""));
                assert_eq!(client.await.unwrap().body, want);
            }
            assert_eq!(world.asked(), 1);
            let hit = world.ask(called(Some("later"))).await;
            assert!(hit.body.contains("\"model\":\"later\""));
        },
    );
}

#[test]
fn a_thousand_readers_on_several_workers() {
    const WORKERS: usize = 4;
    let config = settings(|_| {});
    let shared = shared(&config);
    let (led, joined) = (Arc::new(Barrier::new(WORKERS + 1)), Arc::new(Barrier::new(WORKERS + 1)));
    let (a, b, of_all, settings) = (Arc::clone(&led), Arc::clone(&joined), Arc::clone(&shared), config.clone());
    let leader = thread::spawn(move || {
        worker(of_all, settings, false, async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            a.wait();
            b.wait();
            backend.head();
            for event in EVENTS {
                backend.give(event);
                settle().await;
            }
            backend.frames = None;
            // The leader itself goes before the end; the rest is for the others.
            leader.abort();
            world.cache.desk.idle().await;
            world.asked()
        })
    });
    let followers: Vec<_> = (0..WORKERS)
        .map(|_| {
            let (a, b, shared, config) = (Arc::clone(&led), Arc::clone(&joined), Arc::clone(&shared), config.clone());
            thread::spawn(move || {
                worker(shared, config, false, async |world| {
                    a.wait();
                    let clients: Vec<_> = (0..250).map(|_| world.client(call("a", true))).collect();
                    settle().await;
                    b.wait();
                    for client in clients {
                        let got = client.await.unwrap();
                        assert_eq!((got.cached(), got.body), (Cached::Collapsed, EVENTS.concat()));
                    }
                    world.asked()
                })
            })
        })
        .collect();
    assert_eq!(leader.join().unwrap(), 1);
    assert_eq!(followers.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>(), 0);
    assert_eq!(shared.live.used(), 0);
}

#[test]
fn a_plain_caller_takes_part_in_a_stream_that_runs() {
    let text = include_str!("../../../../tests/fixtures/real/llamacpp-chat-usage.sse");
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            backend.head();
            let (first, rest) = text.split_at(text.find("\n\n").unwrap() + 2);
            backend.give(first);
            settle().await;
            let plain = [world.client(call("a", false)), world.client(call("a", false))];
            settle().await;
            // The stream is for whoever is left.
            leader.abort();
            settle().await;
            backend.give(rest);
            backend.frames = None;
            for client in plain {
                let got = client.await.unwrap();
                let answer: serde_json::Value = serde_json::from_str(&got.body).unwrap();
                assert_eq!((got.cached(), &answer["object"]), (Cached::Collapsed, &"chat.completion".into()));
                assert!(got.record.usage.get().output > 0 || got.record.first_byte.get().is_some());
            }
            assert!(matches!(world.ask(call("a", false)).await.cached(), Cached::Hit(_)));
            assert_eq!(world.asked(), 1);
        },
    );
}

#[test]
fn shapes_that_are_not_proven_equal_are_computed_each() {
    run(
        |_| {},
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            let plain = world.client(call("a", false));
            settle().await;
            backend.head();
            backend.finish(0);
            assert_eq!(leader.await.unwrap().cached(), Cached::Stored);
            let got = plain.await.unwrap();
            assert_eq!((got.cached(), got.body.as_str(), world.asked()), (Cached::Stored, PLAIN, 2));
        },
    );
}

#[test]
fn who_wants_usage_gets_a_stream_that_tells_it() {
    run(
        |_| {},
        async |world| {
            let telling = || Call { asked: Asked { greedy: true, usage: true, ..Asked::default() }, ..call("a", true) };
            let (mut silent, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            let wants = [world.client(telling()), world.client(telling())];
            settle().await;
            let (mut tells, play) = stream();
            world.plays(play);
            silent.head();
            settle().await;
            assert_eq!(world.asked(), 2, "both meet at one of their own");
            tells.head();
            tells.finish(0);
            silent.finish(0);
            for client in [leader].into_iter().chain(wants) {
                assert_eq!(client.await.unwrap().status, 200);
            }
            assert_eq!(world.asked(), 2);
        },
    );
}

#[test]
fn a_request_that_is_gone_on_with_keeps_its_shapes_apart() {
    let text = include_str!("../../../../tests/fixtures/real/llamacpp-chat-usage.sse");
    run(
        |_| {},
        async |world| {
            let gone_on = |stream: bool| {
                let body = format!(
                    r#"{{"model":"m","messages":[{{"role":"assistant","content":"Blue is"}}],"temperature":0,"stream":{stream}}}"#
                );
                Call { payload: Payload::whole(body.into(), Memory::new(1 << 20).reserve()), ..call("", stream) }
            };
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(gone_on(true));
            settle().await;
            let plain = world.ask(gone_on(false)).await;
            assert_eq!((plain.cached(), plain.body.as_str()), (Cached::Stored, PLAIN));
            backend.head();
            backend.give(text);
            backend.frames = None;
            assert_eq!(leader.await.unwrap().cached(), Cached::Stored);
            assert_eq!(world.asked(), 2);
        },
    );
}
