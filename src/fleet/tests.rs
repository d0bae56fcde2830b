use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use tokio::time::{Instant, advance};

use super::{
    testing::{backend, config, limited},
    *,
};
use crate::config::{self, Capacity, Concurrency};

fn names(pool: &[Arc<Backend>]) -> Vec<&str> {
    pool.iter().map(|backend| &**backend.name()).collect()
}

fn named(fleet: &Fleet, name: &str) -> Arc<Backend> {
    Arc::clone(fleet.snapshot().backend(name).unwrap())
}

fn serving(name: &str, models: &[&str]) -> config::Backend {
    let models = models.iter().map(|&model| model.into()).collect();
    config::Backend { models: config::Models::List(models), ..backend(name) }
}

#[tokio::test]
async fn a_refused_connection_takes_a_backend_out_at_once() {
    let fleet = Fleet::new(&config([backend("a"), backend("b")]));
    let mut events = fleet.subscribe();
    named(&fleet, "a").report(Outcome::Refused("connection refused"));
    let snapshot = fleet.snapshot();
    let pools = snapshot.candidates(None).unwrap();
    assert_eq!(names(&pools.every.all), ["b"]);
    assert_eq!(names(&pools.out), ["a"]);
    let event = events.try_recv().unwrap();
    assert_eq!(event.change, Change::State { from: State::Unknown, to: State::Unhealthy });
    assert_eq!(event.to_string(), "backend a is unhealthy, was unknown: connection refused");
}

#[tokio::test]
async fn a_passed_probe_brings_it_back() {
    let fleet = Fleet::new(&config([backend("a")]));
    let a = named(&fleet, "a");
    a.report(Outcome::Reset("connection reset"));
    assert!(!fleet.snapshot().may_serve());
    a.probe_passed(1);
    assert!(a.is_usable() && fleet.snapshot().may_serve());
}

#[tokio::test(start_paused = true)]
async fn one_call_in_a_while_tries_whether_it_is_back() {
    let fleet = Fleet::new(&config([backend("a")]));
    let a = named(&fleet, "a");
    a.report(Outcome::Refused("connection refused"));
    assert!(a.try_trial(Instant::now(), false).is_none());
    advance(Duration::from_secs(1)).await;
    let trial = a.try_trial(Instant::now(), false).unwrap();
    assert!(a.try_trial(Instant::now(), false).is_none(), "one at a time");
    drop(trial);
    let trial = a.try_trial(Instant::now(), false).expect("the first was abandoned");
    a.report(Outcome::Answered { ttft: None });
    drop(trial);
    assert!(a.is_usable());
}

#[tokio::test]
async fn a_429_says_full_and_not_ill() {
    let fleet = Fleet::new(&config([backend("a")]));
    let a = named(&fleet, "a");
    for _ in 0..20 {
        a.report(Outcome::Full { retry_after: None });
    }
    assert!(a.is_usable() && a.full_until(Instant::now()).is_some());
}

#[tokio::test]
async fn drained_backends_are_nowhere_until_undrained() {
    let fleet = Fleet::new(&config([backend("a"), backend("b")]));
    assert_eq!(fleet.drain("a", "maintenance"), Ok(true));
    assert_eq!(fleet.drain("a", "maintenance"), Ok(false));
    let snapshot = fleet.snapshot();
    let pools = snapshot.candidates(None).unwrap();
    assert_eq!((names(&pools.every.all), names(&pools.out)), (vec!["b"], vec![]));
    assert_eq!(&*named(&fleet, "a").health().reason, "maintenance");
    assert_eq!(fleet.undrain("a"), Ok(true));
    assert_eq!(fleet.snapshot().candidates(None).unwrap().every.all.len(), 2);
    assert_eq!(fleet.drain("c", "x").unwrap_err().to_string(), "there is no backend named c");
}

#[tokio::test]
async fn models_are_found_by_list_and_unknown_lists_may_serve_any() {
    let fleet = Fleet::new(&config([serving("a", &["m", "n"]), serving("b", &["m"]), backend("c")]));
    {
        let snapshot = fleet.snapshot();
        assert_eq!(names(&snapshot.candidates(Some("m")).unwrap().every.all), ["a", "b"]);
        assert!(snapshot.candidates(Some("x")).is_none() && !snapshot.known());
        assert_eq!(names(&snapshot.unlisted().every.all), ["c"]);
    }
    named(&fleet, "c").set_models(["x".into()], "{}".into());
    let snapshot = fleet.snapshot();
    assert_eq!(names(&snapshot.candidates(Some("x")).unwrap().every.all), ["c"]);
    assert!(snapshot.known() && snapshot.unlisted().is_empty());
    assert_eq!(snapshot.model_names().iter().map(|name| &**name).collect::<Vec<_>>(), ["m", "n", "x"]);
}

#[tokio::test]
async fn a_backend_for_any_model_is_a_candidate_for_all() {
    let any = config::Backend { models: config::Models::Any, ..backend("b") };
    let fleet = Fleet::new(&config([serving("a", &["m"]), any]));
    let snapshot = fleet.snapshot();
    assert_eq!(names(&snapshot.candidates(Some("m")).unwrap().every.all), ["a", "b"]);
    assert_eq!(names(&snapshot.unlisted().every.all), ["b"]);
}

#[tokio::test]
async fn configured_models_stay_whatever_the_list_says() {
    let fleet = Fleet::new(&config([serving("a", &["m"])]));
    let a = named(&fleet, "a");
    a.set_models(["n".into()], "{}".into());
    assert!(a.models().lists("m") && !a.models().lists("n"));
}

#[tokio::test]
async fn pools_are_sorted_by_class_and_zone() {
    let at = |name, capacity, zone: &str| config::Backend { capacity, zone: Some(zone.into()), ..backend(name) };
    let mut config = config([
        at("s1", Capacity::Spot, "here"),
        at("s2", Capacity::Spot, "there"),
        at("r", Capacity::Reserved, "there"),
    ]);
    config.zone = Some("here".into());
    let fleet = Fleet::new(&config);
    let snapshot = fleet.snapshot();
    let pools = snapshot.candidates(None).unwrap();
    assert_eq!((names(&pools.spot.all), names(&pools.spot.near)), (vec!["s1", "s2"], vec!["s1"]));
    assert_eq!(names(&pools.reserved.all), ["r"]);
    assert_eq!((pools.every.all.len(), names(&pools.every.near)), (3, vec!["s1"]));
}

#[tokio::test]
async fn a_reload_keeps_the_state_of_same_name_and_url() {
    let fleet = Fleet::new(&config([limited("a", 2), backend("b")]));
    let (a, b) = (named(&fleet, "a"), named(&fleet, "b"));
    let permit = a.try_acquire().unwrap();
    a.probe_passed(1);
    let mut events = fleet.subscribe();

    fleet.apply(&config([limited("a", 1), backend("c")]));
    let new = named(&fleet, "a");
    assert_ne!(new.id, a.id, "another configuration is another id");
    assert_eq!((new.load().in_flight(), new.load().limit()), (1, Some(1)));
    assert_eq!(new.health().state, State::Healthy);
    assert!(new.try_acquire().is_none());
    drop(permit);
    assert!(new.try_acquire().is_some());
    assert!(b.has_left() && fleet.snapshot().backend("b").is_none());
    assert_eq!(events.try_recv().unwrap().change, Change::Left);
    assert_eq!(events.try_recv().unwrap().change, Change::Joined);

    let before = named(&fleet, "c").id;
    fleet.apply(&config([limited("a", 1), backend("c")]));
    assert_eq!((named(&fleet, "a").id, named(&fleet, "c").id), (new.id, before), "nothing changed");
}

#[tokio::test]
async fn suspicion_reaches_the_prober_and_its_verdict_comes_back() {
    let fleet = Fleet::new(&config([backend("a")]));
    let a = named(&fleet, "a");
    let mut suspicions = fleet.suspicions().unwrap();
    assert!(fleet.suspicions().is_none(), "there is one prober");
    let judge = async {
        let suspicion = suspicions.recv().await.unwrap();
        suspicion.answer.send(Verdict::Dead("refused".into())).unwrap();
    };
    let (verdict, ()) = tokio::join!(a.suspect(), judge);
    assert_eq!(verdict, Verdict::Dead("refused".into()));
    drop(suspicions);
    assert_eq!(a.suspect().await, Verdict::Busy, "nobody can tell");
}

#[test]
fn everything_shared_is_send_and_sync() {
    fn shared<T: Send + Sync>() {}
    shared::<Fleet>();
    shared::<Backend>();
    shared::<Permit>();
    shared::<Snapshot>();
}

#[tokio::test]
async fn the_limit_holds_over_threads() {
    let fleet = Fleet::new(&config([limited("a", 5)]));
    let a = named(&fleet, "a");
    let most = AtomicU32::new(0);
    let running = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    if let Some(permit) = a.try_acquire() {
                        most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        running.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                }
            });
        }
    });
    assert!(most.into_inner() <= 5);
    assert_eq!(a.load().in_flight(), 0);
}

#[derive(Clone, Debug)]
enum Op {
    Acquire,
    Release(usize),
    Fail,
    Pass,
    Limit(u32),
    Trial,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Acquire),
        3 => any::<usize>().prop_map(Op::Release),
        1 => Just(Op::Fail),
        1 => Just(Op::Pass),
        1 => (1_u32..8).prop_map(Op::Limit),
        1 => Just(Op::Trial),
    ]
}

proptest! {
    #[test]
    fn in_flight_is_the_permits_held_and_grows_never_above_the_limit(ops in prop::collection::vec(op(), 1..200)) {
        let fleet = Fleet::new(&config([limited("a", 3)]));
        let mut limit = 3;
        let mut held = Vec::new();
        for op in ops {
            let a = named(&fleet, "a");
            let before = a.load().in_flight();
            match op {
                Op::Acquire => held.extend(a.try_acquire()),
                Op::Release(at) if !held.is_empty() => drop(held.swap_remove(at % held.len())),
                Op::Release(_) => {}
                Op::Fail => a.report(Outcome::Reset("reset")),
                Op::Pass => a.probe_passed(1),
                Op::Trial => held.extend(a.try_trial(Instant::now(), true)),
                Op::Limit(places) => {
                    limit = places;
                    let spec = config::Backend { max_concurrency: Concurrency::Limit(places), ..backend("a") };
                    fleet.apply(&config([spec]));
                }
            }
            let now = a.load().in_flight();
            prop_assert_eq!(now as usize, held.len());
            prop_assert!(now <= before || now <= limit);
        }
        drop(held);
        prop_assert_eq!(named(&fleet, "a").load().in_flight(), 0);
    }
}
