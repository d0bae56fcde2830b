//! One of two backends is killed, hung, restarted, and flaps, under load.

use crate::{
    kit::{Gate, Sim, alone, backends},
    load::Load,
};

const SIM: [&str; 4] = ["--ttft", "20ms", "--tokens-per-second", "200"];
/// A hang is found within a second or two; everything else as shipped.
const QUICK: &str = "timeouts: {suspect: 500ms}\nhealth: {interval: 200ms, timeout: 1s}\nlog: {access: false}\n";
/// Answers that come before and after every blow, so that it falls on requests under way.
const SOME: u64 = 100;

/// A gateway over two backends under load, one of which is done to as `blows` says.
fn under_load(blows: impl FnOnce(&Gate, &mut Sim, &Load)) {
    let _turn = alone();
    let (mut a, b) = (Sim::start(&SIM), Sim::start(&SIM));
    let gate = Gate::start(&(backends(&a, &b) + QUICK)).healthy();
    let load = Load::start(gate.addr, 32, 16);
    load.more(SOME);
    blows(&gate, &mut a, &load);
    load.more(SOME);
    let (plain, streams) = load.finish();
    println!(
        "plain: {} whole, {} cut; streams: {} whole, {} cut with an error event; retries: {}",
        plain.whole,
        plain.cut,
        streams.whole,
        streams.cut,
        retries(&gate)
    );
    plain.no_problem("the plain answers");
    streams.no_problem("the streams");
    assert_eq!(gate.metric("sluicegate_panics_total"), 0.0);
    gate.until_metric("sluicegate_requests_in_flight", |n| n == 0.0);
}

fn retries(gate: &Gate) -> f64 {
    let text = gate.admin("/metrics").text();
    let values = text.lines().filter(|line| line.starts_with("sluicegate_retries_total{"));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn a_killed_backend_costs_no_request() {
    under_load(|gate, sim, load| {
        for _ in 0..3 {
            sim.kill();
            gate.until_state(0, "unhealthy");
            load.more(SOME);
            sim.restart();
            gate.until_state(0, "healthy");
            load.more(SOME);
        }
    });
}

#[test]
fn a_hung_backend_costs_no_request() {
    under_load(|gate, sim, load| {
        for _ in 0..2 {
            sim.signal("STOP");
            gate.until_state(0, "unhealthy");
            load.more(SOME);
            sim.signal("CONT");
            gate.until_state(0, "healthy");
            load.more(SOME);
        }
    });
}

#[test]
fn a_restarted_backend_costs_no_request() {
    under_load(|gate, sim, load| {
        for _ in 0..2 {
            sim.terminate();
            sim.restart();
            load.more(SOME);
            gate.until_state(0, "healthy");
        }
    });
}

#[test]
fn a_flapping_backend_costs_no_request() {
    under_load(|gate, sim, load| {
        for _ in 0..6 {
            sim.kill();
            load.more(20);
            sim.restart();
            load.more(20);
        }
        gate.until_state(0, "healthy");
    });
}
