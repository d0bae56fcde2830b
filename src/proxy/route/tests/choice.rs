//! Where a call goes.

use proptest::prelude::*;

use super::*;
use crate::fleet::{Action, Notice};

fn of_class(name: &str, capacity: Capacity, limit: u32) -> config::Backend {
    config::Backend { capacity, ..limited(name, limit) }
}

/// Picks and keeps the places of `count` calls; names in order.
fn picks(bench: &Bench, count: usize) -> (Vec<Permit>, Vec<(String, &'static str)>) {
    let snapshot = bench.fleet.snapshot();
    let pools = snapshot.candidates(None).unwrap();
    let mut all = (Vec::new(), Vec::new());
    for _ in 0..count {
        let picker = Picker { rng: &bench.ctx.rng, now: Instant::now(), tried: &[], looked: Cell::new(0) };
        if let Some((permit, why)) = capacity::pick(pools, &bench.ctx.settings.policy, &picker) {
            all.1.push((permit.backend().name().to_string(), why));
            all.0.push(permit);
        }
    }
    all
}

#[tokio::test]
async fn the_record_says_where_and_why() {
    let bench = Bench::new(&config([backend("a")]));
    let call = call();
    let record = Rc::clone(&call.record);
    assert_eq!(text(bench.send(call).await).await, "fine");
    assert_eq!((record.attempts.get(), record.why.get()), (1, "only"));
    assert_eq!(&**record.backend.borrow().as_ref().unwrap().name(), "a");
}

#[tokio::test]
async fn a_permit_lives_as_long_as_the_body() {
    let bench = Bench::new(&config([limited("a", 1)]));
    let response = bench.send(call()).await.unwrap();
    assert_eq!(bench.backend("a").load().in_flight(), 1);
    drop(response);
    assert_eq!(bench.backend("a").load().in_flight(), 0);
}

#[tokio::test]
async fn a_call_goes_to_who_serves_its_model() {
    let bench = Bench::new(&config([serving("a", &["m"]), serving("b", &["n"])]));
    for model in ["m", "n", "m"] {
        bench.send(for_model(model)).await.unwrap();
    }
    assert_eq!(bench.tried(), ["a", "b", "a"]);
}

#[tokio::test]
async fn an_unknown_model_is_told_only_after_the_lists_were_read_again() {
    let bench = Bench::new(&config([serving("a", &["m"]), serving("b", &["n", "o"])]));
    let error = bench.send(for_model("x")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ModelNotFound);
    assert_eq!(error.message(), "the model `x` does not exist; these exist: m, n, o");
    assert_eq!(bench.refreshed.borrow().len(), 1);
}

#[tokio::test]
async fn a_model_that_was_loaded_late_is_found() {
    let bench = Bench::with_refresh(&config([backend("a")]), |fleet| {
        fleet.snapshot().backend("a").unwrap().set_models(["m".into(), "late".into()], "{}".into());
    });
    bench.backend("a").set_models(["m".into()], "{}".into());
    bench.send(for_model("late")).await.unwrap();
    assert_eq!(bench.tried(), ["a"]);
}

#[tokio::test]
async fn many_models_are_told_in_part() {
    let models: Vec<String> = (10..40).map(|n| format!("m{n}")).collect();
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    let bench = Bench::new(&config([serving("a", &models)]));
    let error = bench.send(for_model("x")).await.unwrap_err();
    assert!(error.message().ends_with("m29 and 10 more (see /v1/models)"), "{}", error.message());
}

#[tokio::test]
async fn a_backend_whose_list_is_unknown_may_serve_any_model() {
    let bench = Bench::new(&config([serving("a", &["m"]), backend("b")]));
    bench.send(for_model("x")).await.unwrap();
    bench.send(for_model("m")).await.unwrap();
    assert_eq!(bench.tried(), ["b", "a"], "one that lists the model is better");
    bench.backend("a").report(Outcome::Refused("refused"));
    bench.send(for_model("m")).await.unwrap();
    assert_eq!(bench.tried()[2], "b", "one that may serve it is better than one that is out");
}

#[tokio::test]
async fn nobody_there_is_said_as_it_is() {
    let error = Bench::new(&config([])).send(call()).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (Kind::NoHealthyBackend, "no backend is configured"));
    let bench = Bench::new(&config([backend("a")]));
    bench.fleet.drain("a", "maintenance").unwrap();
    let error = bench.send(call()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NoHealthyBackend);
    assert!(error.retry_after().is_some());
}

#[tokio::test]
async fn a_pinned_call_goes_to_its_backend_alone() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    let pinned = |name: &str| Call { pinned: Some(name.into()), ..call() };
    bench.fleet.drain("b", "maintenance").unwrap();
    let call = pinned("b");
    let record = Rc::clone(&call.record);
    bench.send(call).await.unwrap();
    assert_eq!((bench.tried(), record.why.get()), (vec!["b".to_owned()], "pinned"));
    assert_eq!(bench.send(pinned("gone")).await.unwrap_err().kind(), Kind::ResponseNotFound);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_out_the_one_least_long_out_is_tried() {
    let bench = Bench::new(&config([backend("a"), backend("b"), backend("c")]));
    for name in ["b", "a", "c"] {
        bench.backend(name).report(Outcome::Refused("refused"));
        tokio::time::advance(Duration::from_millis(2)).await;
    }
    let call = call();
    let record = Rc::clone(&call.record);
    bench.send(call).await.unwrap();
    assert_eq!((bench.tried(), record.why.get()), (vec!["c".to_owned()], "last-resort"));
}

#[tokio::test]
async fn reserved_first_then_preferred_then_all() {
    let bench = Bench::new(&config([
        of_class("r", Capacity::Reserved, 2),
        of_class("s", Capacity::Spot, 10),
        of_class("d", Capacity::OnDemand, 10),
    ]));
    let (held, order) = picks(&bench, 22);
    assert_eq!(held.len(), 22, "every place is used");
    assert!(order[..2].iter().all(|pick| *pick == ("r".into(), "reserved")), "{order:?}");
    assert!(order[2..9].iter().all(|pick| *pick == ("s".into(), "prefer")), "{order:?}");
    assert!(order[9..].iter().any(|pick| *pick == ("d".into(), "spill")), "{order:?}");
    assert!(picks(&bench, 1).0.is_empty(), "and no place more");
}

#[tokio::test]
async fn the_preferred_class_is_taken_again_only_when_well_below() {
    let bench = Bench::new(&config([of_class("s", Capacity::Spot, 10), of_class("d", Capacity::OnDemand, 1000)]));
    let spot = bench.backend("s");
    let mut held: Vec<_> = (0..7).filter_map(|_| spot.try_acquire()).collect();
    assert_eq!(picks(&bench, 1).1[0].1, "spill");
    held.pop();
    assert_eq!(picks(&bench, 1).1[0].1, "spill", "0.6 is not below 0.7 - 0.1");
    held.pop();
    assert_eq!(picks(&bench, 1).1[0].1, "prefer");
    held.push(spot.try_acquire().unwrap());
    assert_eq!(picks(&bench, 1).1[0].1, "prefer", "0.6 is below 0.7");
}

#[tokio::test]
async fn on_demand_keeps_its_share() {
    let bench = Bench::new(&config([of_class("s", Capacity::Spot, 1000), of_class("d", Capacity::OnDemand, 1000)]));
    let (_held, order) = picks(&bench, 200);
    assert_eq!(order.iter().filter(|pick| **pick == ("d".into(), "share")).count(), 10);
}

#[tokio::test]
async fn the_own_zone_comes_first_until_it_is_loaded() {
    let at = |name, zone: &str| config::Backend { zone: Some(zone.into()), ..limited(name, 10) };
    let mut config = config([at("near", "here"), at("far", "there")]);
    config.zone = Some("here".into());
    let bench = Bench::new(&config);
    let (_held, order) = picks(&bench, 20);
    assert!(order[..7].iter().all(|pick| *pick == ("near".into(), "zone")), "{order:?}");
    assert_eq!(order.iter().filter(|pick| pick.0 == "far").count(), 10);
}

#[tokio::test]
async fn the_less_loaded_of_two_is_taken() {
    let bench = Bench::new(&config([backend("a"), backend("b")]));
    let (_held, order) = picks(&bench, 100);
    let on_a = order.iter().filter(|pick| pick.0 == "a").count();
    assert!((49..=51).contains(&on_a), "{on_a}");
}

/// The promise: cost per request independent of the number of backends.
#[tokio::test]
async fn two_hundred_backends_cost_as_much_to_choose_from_as_two() {
    let looked = |count: usize, full: usize| {
        let bench = Bench::new(&config((0..count).map(|n| {
            let capacity = if n % 2 == 0 { Capacity::Spot } else { Capacity::OnDemand };
            of_class(&format!("b{n}"), capacity, 100)
        })));
        let snapshot = bench.fleet.snapshot();
        let _held: Vec<_> = snapshot.backends[..full].iter().filter_map(|backend| backend.try_acquire()).collect();
        let mut most = 0;
        for _ in 0..1000 {
            let picker = Picker { rng: &bench.ctx.rng, now: Instant::now(), tried: &[], looked: Cell::new(0) };
            let pools = snapshot.candidates(None).unwrap();
            assert!(capacity::pick(pools, &bench.ctx.settings.policy, &picker).is_some());
            most = most.max(picker.looked.get());
        }
        most
    };
    assert!(looked(2, 0) <= 8);
    assert!(looked(200, 0) <= 8, "a sample of four for the class's load, and two to choose from");
    assert!(looked(200, 100) <= 8);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn nobody_out_draining_or_full_is_picked_while_another_can_take_it(
        states in prop::collection::vec(0_u8..4, 2..12),
        calls in 1_usize..20,
    ) {
        let bench = Bench::new(&config((0..states.len()).map(|n| limited(&format!("b{n}"), 30))));
        let mut held = Vec::new();
        for (n, state) in states.iter().enumerate() {
            let backend = bench.backend(&format!("b{n}"));
            match state {
                1 => backend.report(Outcome::Refused("refused")),
                2 => { bench.fleet.drain(backend.name(), "maintenance").unwrap(); }
                3 => held.extend((0..30).filter_map(|_| backend.try_acquire())),
                _ => {}
            }
        }
        let fit = states.iter().filter(|&&state| state == 0).count();
        let (_kept, order) = picks(&bench, calls);
        prop_assert_eq!(order.len(), calls.min(fit * 30));
        for (name, _) in order {
            let n: usize = name[1..].parse().unwrap();
            prop_assert_eq!(states[n], 0);
        }
    }
}

#[tokio::test]
async fn a_machine_that_may_go_is_taken_when_the_others_are_full() {
    let bench = Bench::new(&config([limited("a", 1), limited("b", 1)]));
    bench.backend("a").interrupted(Notice { action: Action::Rebalance, at: None, source: "test".into() });
    let (first, second) = (call(), call());
    let why = [Rc::clone(&first.record), Rc::clone(&second.record)];
    let held = [bench.send(first).await.unwrap(), bench.send(second).await.unwrap()];
    assert_eq!(bench.tried(), ["b", "a"]);
    assert_eq!((why[0].why.get(), why[1].why.get()), ("only", "hinted"));
    drop(held);
}

#[tokio::test]
async fn a_machine_that_goes_is_not_taken_though_it_has_room() {
    let bench = Bench::new(&config([limited("a", 9), limited("b", 9)]));
    bench.backend("a").interrupted(Notice { action: Action::Terminate, at: None, source: "test".into() });
    for _ in 0..5 {
        bench.send(call()).await.unwrap();
    }
    assert_eq!(bench.tried(), ["b"; 5]);
}
