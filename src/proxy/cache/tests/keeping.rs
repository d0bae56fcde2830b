//! What is kept, for how long, and who may have it.

use proptest::prelude::*;

use super::*;

#[test]
fn a_repeat_is_a_hit() {
    run(
        |_| {},
        async |world| {
            world.plays(with(&[("x-request-id", "backend's"), ("date", "today")], PLAIN));
            let first = world.ask(call("a", false)).await;
            assert_eq!((first.cached(), first.headers.contains_key("date")), (Cached::Stored, true));
            assert_eq!(first.headers[header::CACHE_CONTROL], "private");
            tokio::time::sleep(Duration::from_secs(60)).await;
            let hit = world.ask(call("a", false)).await;
            assert_eq!((hit.body.as_str(), world.asked()), (PLAIN, 1));
            assert_eq!(hit.cached(), Cached::Hit(3540));
            assert_eq!(hit.headers[header::AGE], "60");
            assert_eq!(hit.headers[header::CACHE_CONTROL], "private");
            assert!(!hit.headers.contains_key("date") && !hit.headers.contains_key("x-request-id"));
            assert!(hit.record.looked_up.get().is_some() && hit.record.first_byte.get().is_some());
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored, "it expired");
        },
    );
}

#[test]
fn a_hit_is_the_same_memory() {
    run(
        |_| {},
        async |world| {
            world.ask(call("a", false)).await;
            let bodies = [
                world.response(call("a", false)).await.unwrap().into_body(),
                world.response(call("a", false)).await.unwrap().into_body(),
            ];
            let [one, two] = bodies.map(|body| body.as_whole().unwrap().as_ptr());
            assert_eq!(one, two);
        },
    );
}

#[test]
fn a_request_says_what_it_takes() {
    run(
        |_| {},
        async |world| {
            let other = PLAIN.replace("Hi you", "Again");
            world.ask(call("a", false)).await;
            // Not kept, not looked up.
            world.plays(with(&[], &other));
            let got = world.ask(says(call("a", false), "no-store")).await;
            assert_eq!((got.body.as_str(), got.cached()), (other.as_str(), Cached::Request));
            assert_eq!(world.ask(call("a", false)).await.body, PLAIN);
            // Computed anew, and kept instead.
            world.plays(with(&[], &other));
            assert_eq!(world.ask(says(call("a", false), "no-cache")).await.cached(), Cached::Request);
            assert_eq!(world.ask(call("a", false)).await.body, other);
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(matches!(world.ask(says(call("a", false), "max-age=10")).await.cached(), Cached::Hit(_)));
            assert_eq!(world.ask(says(call("a", false), "max-age=9")).await.cached(), Cached::Stored);
            // Kept, or an error.
            assert!(matches!(world.ask(says(call("a", false), "only-if-cached")).await.cached(), Cached::Hit(_)));
            let asked = world.asked();
            for call in [call("b", false), Call { asked: Asked::default(), ..call("b", false) }] {
                let got = world.ask(says(call, "only-if-cached")).await;
                assert_eq!((got.error, got.cached()), (Some(Kind::NotCached), Cached::Absent));
            }
            assert_eq!(world.asked(), asked);
        },
    );
}

#[test]
fn a_backend_says_what_it_gives() {
    run(
        |config| config.downstream = Downstream::Public,
        async |world| {
            for said in ["no-store", "private", "no-cache"] {
                world.plays(with(&[("cache-control", said)], PLAIN));
                assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Miss);
            }
            for said in [("set-cookie", "a=b"), ("vary", "*"), ("vary", "x-odd"), ("content-encoding", "gzip")] {
                world.plays(with(&[said], PLAIN));
                assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Miss, "{said:?}");
            }
            world.plays(with(&[("cache-control", "max-age=5")], PLAIN));
            assert_eq!(world.ask(call("a", false)).await.headers[header::CACHE_CONTROL], "max-age=5");
            let hit = world.ask(call("a", false)).await;
            assert_eq!(
                (hit.cached(), &hit.headers[header::CACHE_CONTROL]),
                (Cached::Hit(5), &"public, max-age=5".parse().unwrap())
            );
            tokio::time::sleep(Duration::from_secs(6)).await;
            assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored);
        },
    );
}

#[test]
fn a_purge_takes_what_is_kept_and_what_is_under_way() {
    run(
        |_| {},
        async |world| {
            world.ask(call("a", false)).await;
            let (mut backend, play) = stream();
            world.plays(play);
            let (leader, follower) = (world.client(call("b", true)), world.client(call("b", true)));
            settle().await;
            backend.head();
            backend.give(EVENTS[0]);
            settle().await;
            let other = Purge { model: Some("other".into()), tenant: None };
            assert_eq!(world.cache.shared.purge(&other), 0);
            assert_eq!(world.cache.shared.under_way(), 1);
            assert_eq!(world.cache.shared.purge(&Purge { model: Some("m".into()), tenant: None }), 1);
            // Those who read it have it; nobody after them.
            let (mut second, play) = stream();
            world.plays(play);
            let after = world.client(call("b", true));
            settle().await;
            backend.finish(1);
            assert_eq!(leader.await.unwrap().body, EVENTS.concat());
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
            assert_eq!(world.cache.shared.store.stats().entries, 0);
            second.head();
            second.finish(0);
            assert_eq!(after.await.unwrap().cached(), Cached::Stored);
            assert_eq!(world.asked(), 3);
            assert_eq!(world.cache.shared.store.stats().entries, 1);
        },
    );
}

#[test]
fn it_expires_while_it_is_followed() {
    run(
        |config| config.ttl = Duration::from_secs(1),
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let (leader, follower) = (world.client(call("a", true)), world.client(call("a", true)));
            settle().await;
            backend.head();
            for event in EVENTS {
                backend.give(event);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            backend.frames = None;
            assert_eq!(leader.await.unwrap().body, EVENTS.concat());
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
            assert!(matches!(world.ask(call("a", true)).await.cached(), Cached::Hit(_)), "fresh from its end on");
        },
    );
}

#[test]
fn what_is_too_long_passes_unkept_and_lets_nobody_in() {
    run(
        |config| config.max_entry = 300,
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
            backend.give(EVENTS[1]);
            backend.give(EVENTS[2]);
            settle().await;
            assert_eq!(world.cache.shared.under_way(), 0);
            let late = world.ask(call("a", false)).await;
            assert_eq!((late.cached(), world.asked()), (Cached::Stored, 2));
            backend.finish(3);
            assert_eq!(leader.await.unwrap().body, EVENTS.concat());
            assert_eq!(follower.await.unwrap().body, EVENTS.concat());
        },
    );
}

#[test]
fn without_live_memory_answers_pass_unkept() {
    run(
        |config| config.live_memory = 100,
        async |world| {
            let (mut backend, play) = stream();
            world.plays(play);
            let leader = world.client(call("a", true));
            settle().await;
            backend.head();
            backend.finish(0);
            let got = leader.await.unwrap();
            assert_eq!(got.body, EVENTS.concat());
            assert_eq!(world.cache.shared.store.stats().entries, 0);
            assert_eq!(world.cache.shared.live.used(), 0);
        },
    );
}

#[test]
fn a_full_cache_still_shares_and_takes_new_ones() {
    run(
        |config| {
            config.capacity = 20_000;
            config.max_entry = 10_000;
        },
        async |world| {
            for n in 0..100 {
                world.ask(call(&format!("fill {n}"), false)).await;
            }
            let (mut backend, play) = stream();
            world.plays(play);
            let clients: Vec<_> = (0..4).map(|_| world.client(call("new", true))).collect();
            settle().await;
            backend.head();
            backend.finish(0);
            for client in clients {
                assert_eq!(client.await.unwrap().body, EVENTS.concat());
            }
            assert!(matches!(world.ask(call("new", true)).await.cached(), Cached::Hit(_)));
            let stats = world.cache.shared.store.stats();
            assert!(stats.bytes <= 20_000 && stats.evicted > 50, "{stats:?}");
        },
    );
}

#[test]
fn off_is_off() {
    run(
        |config| config.mode = CacheMode::Off,
        async |world| {
            for _ in 0..2 {
                let got = world.ask(call("a", false)).await;
                assert_eq!((got.cached(), got.body.as_str()), (Cached::bypassed("off"), PLAIN));
            }
            assert_eq!(world.asked(), 2);
        },
    );
}

#[derive(Debug)]
struct Elsewhere(std::sync::Mutex<HashMap<[u8; 32], Arc<Entry>>>);

impl SecondTier for Arc<Elsewhere> {
    fn get<'a>(&'a self, wanted: Wanted<'a>) -> Pin<Box<dyn Future<Output = Option<Entry>> + 'a>> {
        let found = self.0.lock().unwrap().get(&wanted.digest).cloned();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let found = found?;
            Some(Entry {
                endpoint: found.endpoint,
                shape: found.shape,
                headers: found.headers.clone(),
                body: found.body.clone(),
                facts: found.facts,
                model: found.model.clone(),
                tenant: found.tenant,
                stored: found.stored,
                expires: found.expires,
                strict: found.strict,
            })
        })
    }

    fn put(&self, digest: [u8; 32], entry: &Arc<Entry>) {
        self.0.lock().unwrap().insert(digest, Arc::clone(entry));
    }

    fn purge(&self, _: &Purge) {
        self.0.lock().unwrap().clear();
    }
}

#[test]
fn what_one_gateway_stored_another_serves() {
    let config = settings(|_| {});
    let elsewhere = Arc::new(Elsewhere(std::sync::Mutex::default()));
    let secret = config::Secret::new("a key of thirty-two bytes or more");
    let gateway = || {
        let second: Box<dyn SecondTier> = Box::new(Arc::clone(&elsewhere));
        Arc::new(Shared::new(&config, Keys::new(Some(&secret)), Some(second)))
    };
    let first = gateway();
    worker(Arc::clone(&first), config.clone(), true, async |world| {
        assert_eq!(world.ask(call("a", false)).await.cached(), Cached::Stored);
        let other = World {
            cache: Cache::new(
                gateway(),
                config.clone(),
                Rc::clone(&world.cache.desk),
                world.cache.ticker.clone(),
                Rc::clone(&world.cache.counters),
            ),
            script: Rc::default(),
        };
        let clients = [other.client(call("a", false)), other.client(call("a", false))];
        let mut fates = Vec::new();
        for client in clients {
            let got = client.await.unwrap();
            assert_eq!(got.body, PLAIN);
            fates.push(got.cached());
        }
        assert!(matches!(fates[..], [Cached::Hit(_), Cached::Collapsed]), "{fates:?}");
        assert!(matches!(other.ask(call("a", false)).await.cached(), Cached::Hit(_)));
        assert!(matches!(other.ask(says(call("a", false), "only-if-cached")).await.cached(), Cached::Hit(_)));
        assert_eq!(other.ask(says(call("c", false), "only-if-cached")).await.error, Some(Kind::NotCached));
        assert_eq!(other.asked(), 0);
        first.purge(&Purge::default());
        assert!(elsewhere.0.lock().unwrap().is_empty());
        assert_eq!(world.cache.desk.running(), 0);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// However the backend's bytes are cut, leader and follower read the same and the same is kept; cut short anywhere,
    /// nothing is.
    #[test]
    fn any_split_is_kept_alike(cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10), short in any::<Option<prop::sample::Index>>()) {
        run(|_| {}, async |world| {
            let text = EVENTS.concat();
            let (mut backend, play) = stream();
            world.plays(play);
            let (leader, follower) = (world.client(call("a", true)), world.client(call("a", true)));
            settle().await;
            backend.head();
            let end = short.map_or(text.len(), |at| at.index(text.len()));
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(end + 1)).collect();
            cuts.sort_unstable();
            let mut from = 0;
            for cut in cuts.into_iter().chain([end]) {
                backend.give(&text[from..cut]);
                from = cut;
            }
            if short.is_some() {
                backend.cut();
            }
            backend.frames = None;
            let (leader, follower) = (leader.await.unwrap(), follower.await.unwrap());
            assert_eq!(leader.body, text[..end]);
            assert_eq!(follower.body, text[..end]);
            let kept = world.ask(call("a", true));
            if short.is_some() {
                assert_eq!(world.cache.shared.store.stats().entries, 0);
            } else {
                assert_eq!(kept.await.body, text);
                assert_eq!(world.asked(), 1);
            }
        });
    }
}
