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

fn notice(action: Action, seconds: u64) -> Notice {
    Notice { action, at: Some(Instant::now() + Duration::from_secs(seconds)), source: "test".into() }
}

/// Two that have answered.
fn two() -> Arc<Fleet> {
    proven(Fleet::new(&config([serving("a", &["m"]), serving("b", &["m"])])))
}

fn proven(fleet: Arc<Fleet>) -> Arc<Fleet> {
    fleet.snapshot().backends.iter().for_each(|backend| backend.probe_passed(1));
    fleet
}

fn hinted(fleet: &Fleet) -> Vec<String> {
    fleet.snapshot().candidates(Some("m")).unwrap().hinted.iter().map(|b| b.name().to_string()).collect()
}

fn usable(fleet: &Fleet) -> Vec<String> {
    fleet.snapshot().candidates(Some("m")).unwrap().every.all.iter().map(|b| b.name().to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_goes_gets_nothing_new_until_the_notice_is_taken_back() {
    let fleet = two();
    let (mut events, mut changes) = (fleet.subscribe(), fleet.interruptions());
    assert_eq!(fleet.interrupt("a", notice(Action::Terminate, 120)), Ok(Interrupted::Draining));
    let a = named(&fleet, "a");
    assert_eq!(a.leaves_at(), Some(Instant::now() + Duration::from_secs(120)));
    assert_eq!((a.health().state, usable(&fleet)), (State::Draining, vec!["b".to_owned()]));
    assert_eq!(&*a.health().reason, "its machine goes (terminate), says test");
    assert!(changes.has_changed().unwrap());
    let left = Some(Duration::from_secs(120));
    assert_eq!(events.try_recv().unwrap().change, Change::Interruption { action: Action::Terminate, left });
    assert_eq!(
        events.try_recv().unwrap().to_string(),
        "backend a is draining, was healthy: its machine goes (terminate), says test"
    );

    changes.mark_unchanged();
    assert_eq!(fleet.interrupt("a", notice(Action::Terminate, 121)), Ok(Interrupted::Known));
    assert!(!changes.has_changed().unwrap(), "the same again");
    assert_eq!(fleet.withdraw("a"), Ok(true));
    assert_eq!((usable(&fleet).len(), a.leaves_at()), (2, None));
    assert!(changes.has_changed().unwrap());
    assert_eq!(fleet.withdraw("a"), Ok(false));
    assert_eq!(events.try_recv().unwrap().change, Change::Withdrawn);

    assert_eq!(fleet.interrupt("a", notice(Action::Stop, 60)), Ok(Interrupted::Draining));
    assert_eq!(fleet.undrain("a"), Ok(true), "the operator knows better");
    assert_eq!((usable(&fleet).len(), a.notice()), (2, None));
    assert!(fleet.interrupt("c", notice(Action::Stop, 60)).is_err());
    assert_eq!(fleet.notices().get(&("test".into(), "terminate")), Some(&1), "what is known is not counted");
}

#[tokio::test(start_paused = true)]
async fn the_last_of_a_model_stays_until_there_is_another() {
    let fleet = two();
    let (a, b) = (named(&fleet, "a"), named(&fleet, "b"));
    a.report(Outcome::Refused("connection refused"));
    assert_eq!(fleet.interrupt("b", notice(Action::Terminate, 120)), Ok(Interrupted::Last));
    assert_eq!((usable(&fleet), b.leaves_at()), (vec!["b".to_owned()], None));
    let mut changes = fleet.interruptions();
    a.probe_passed(1);
    assert_eq!((usable(&fleet), b.leaves_at().is_some()), (vec!["a".to_owned()], true), "now it may go");
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    a.probe_failed(1, "no answer");
    assert_eq!((usable(&fleet), b.leaves_at()), (vec!["b".to_owned()], None), "and now it may not");
    assert!(changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn one_that_never_answered_stands_in_for_nobody() {
    let fleet = Fleet::new(&config([serving("a", &["m"]), serving("b", &["m"])]));
    assert_eq!(fleet.interrupt("a", notice(Action::Terminate, 120)), Ok(Interrupted::Last));
    named(&fleet, "b").probe_passed(1);
    assert_eq!(usable(&fleet), ["b"], "now it does");
}

#[tokio::test(start_paused = true)]
async fn a_notice_whose_time_has_passed_is_no_news_each_time_it_is_said() {
    let fleet = two();
    let by = |seconds: u64, source: &str| Notice { source: source.into(), ..notice(Action::Terminate, seconds) };
    assert_eq!(fleet.interrupt("a", by(10, "aws")), Ok(Interrupted::Draining));
    for _ in 0..3 {
        advance(Duration::from_secs(15)).await;
        // A time that is over is told as now.
        assert_eq!(fleet.interrupt("a", by(0, "aws")), Ok(Interrupted::Known));
    }
    let a = named(&fleet, "a");
    a.probe_failed(1, "no answer");
    assert_eq!(fleet.interrupt("a", by(30, "aws")), Ok(Interrupted::Draining), "another time is");
    advance(Duration::from_secs(31)).await;
    a.probe_passed(1);
    assert_eq!(a.notice(), None, "it was out when the newer one came, and came back after it");
}

#[tokio::test(start_paused = true)]
async fn when_all_go_the_one_that_goes_last_stays() {
    let fleet = two();
    assert_eq!(fleet.interrupt("a", notice(Action::Terminate, 120)), Ok(Interrupted::Draining));
    assert_eq!(fleet.interrupt("b", notice(Action::Terminate, 30)), Ok(Interrupted::Draining));
    assert_eq!((usable(&fleet), named(&fleet, "a").leaves_at()), (vec!["a".to_owned()], None));
}

#[tokio::test(start_paused = true)]
async fn a_hint_makes_it_the_second_choice_and_a_notice_is_more_than_a_hint() {
    let fleet = two();
    assert_eq!(fleet.interrupt("a", notice(Action::Rebalance, 0)), Ok(Interrupted::Hinted));
    assert_eq!((usable(&fleet), hinted(&fleet)), (vec!["b".to_owned()], vec!["a".to_owned()]));
    assert!(named(&fleet, "a").is_usable() && named(&fleet, "a").leaves_at().is_none());
    assert_eq!(fleet.interrupt("b", notice(Action::Rebalance, 0)), Ok(Interrupted::Hinted));
    assert_eq!((usable(&fleet).len(), hinted(&fleet).len()), (2, 0), "where all are, none is");
    assert_eq!(fleet.interrupt("a", notice(Action::Hibernate, 0)), Ok(Interrupted::Draining));
    assert_eq!(fleet.interrupt("a", notice(Action::Rebalance, 0)), Ok(Interrupted::Known));
    assert_eq!(named(&fleet, "a").leaves_at(), Some(Instant::now()));
}

#[tokio::test(start_paused = true)]
async fn a_notice_without_a_time_means_soon_and_an_earlier_time_is_believed_from_anybody() {
    let fleet = two();
    let a = named(&fleet, "a");
    let say = |at: Option<u64>, source: &str| {
        let at = at.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        a.interrupted(Notice { action: Action::Terminate, at, source: source.into() })
    };
    let left = || a.leaves_at().map(|at| at.duration_since(Instant::now()).as_secs());
    assert_eq!((say(None, "push"), left()), (Interrupted::Draining, Some(30)));
    advance(Duration::from_secs(10)).await;
    assert_eq!((say(None, "push"), left()), (Interrupted::Known, Some(20)));
    assert_eq!((say(Some(100), "header"), left()), (Interrupted::Known, Some(20)));
    assert_eq!((say(Some(10), "header"), left()), (Interrupted::Draining, Some(10)));
    assert_eq!((say(Some(100), "header"), left()), (Interrupted::Draining, Some(100)));
}

#[tokio::test(start_paused = true)]
async fn a_notice_ends_when_another_machine_comes_up_or_long_after_its_time() {
    let fleet = two();
    let a = named(&fleet, "a");
    fleet.interrupt("a", notice(Action::Terminate, 30)).unwrap();
    a.probe_failed(1, "no answer");
    a.probe_passed(1);
    assert!(a.notice().is_some(), "a moment's trouble before its time");
    advance(Duration::from_secs(31)).await;
    a.probe_failed(1, "no answer");
    assert_eq!(a.health().state, State::Draining);
    a.probe_passed(1);
    assert_eq!((a.notice(), a.health().state), (None, State::Healthy));

    fleet.interrupt("a", notice(Action::Terminate, 30)).unwrap();
    assert_eq!(fleet.lapse_notices(Instant::now()), Some(Instant::now() + Duration::from_secs(630)));
    advance(Duration::from_secs(630)).await;
    assert_eq!(fleet.lapse_notices(Instant::now()), None);
    assert!(a.is_usable());
}

#[tokio::test(start_paused = true)]
async fn when_a_zone_goes_its_other_spot_machines_are_the_second_choice() {
    let spot = |name: &str, zone: &str, capacity| config::Backend {
        zone: Some(zone.into()),
        capacity,
        ..serving(name, &["m"])
    };
    let fleet = proven(Fleet::new(&config([
        spot("a1", "a", Capacity::Spot),
        spot("a2", "a", Capacity::Spot),
        spot("a3", "a", Capacity::Spot),
        spot("base", "a", Capacity::OnDemand),
        spot("b1", "b", Capacity::Spot),
    ])));
    let mut events = fleet.subscribe();
    fleet.interrupt("a1", notice(Action::Terminate, 120)).unwrap();
    assert_eq!(hinted(&fleet), Vec::<String>::new());
    fleet.interrupt("a2", notice(Action::Terminate, 120)).unwrap();
    assert_eq!((hinted(&fleet), usable(&fleet)), (vec!["a3".to_owned()], vec!["base".to_owned(), "b1".to_owned()]));
    let told = std::iter::from_fn(|| events.try_recv().ok()).find(|event| event.change == Change::Wary(true));
    assert_eq!(told.unwrap().to_string(), "backend a3 is the second choice: zone a is going");
    fleet.withdraw("a1").unwrap();
    assert_eq!((hinted(&fleet).len(), usable(&fleet).len()), (0, 4));
}

fn stand() -> impl Strategy<Value = interruption::Stand> {
    let models = prop_oneof![
        3 => prop::collection::vec("[a-c]", 1..3).prop_map(|names| Models::listed(names.into_iter().map(Arc::from))),
        1 => Just(Models::Unknown),
        1 => Just(Models::Any),
    ];
    (prop::option::of(0_u64..5), any::<bool>(), models).prop_map(|(goes, able, models)| {
        let goes = goes.map(|seconds| *ORIGIN + Duration::from_secs(seconds));
        interruption::Stand { goes, able, models: Arc::new(models), spot_of: None }
    })
}

static ORIGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

proptest! {
    #[test]
    fn no_notice_takes_away_the_last_backend_of_a_model(stands in prop::collection::vec(stand(), 1..6)) {
        let parted = interruption::parting(&stands);
        let serve = |model: &str, with_parted: bool| {
            stands.iter().zip(&parted).any(|(stand, parted)| {
                stand.able && (with_parted || !parted) && stand.models.may_serve(model)
            })
        };
        for model in ["a", "b", "c", "other"] {
            prop_assert_eq!(serve(model, true), serve(model, false), "{}", model);
        }
        for (stand, parted) in stands.iter().zip(&parted) {
            prop_assert!(stand.goes.is_some() || !parted);
        }
    }
}
