//! Which class of backends a call goes to first: what is paid for anyway, then what is cheap, then whatever has room.
//!
//! 1. `reserved`, until its places are taken;
//! 2. `routing.prefer` while its load is below `spill_at`. Above, by load over all, until it is a tenth below again;
//!    `on_demand_share` of the calls go to on-demand all the same, so that it stays warm and known good;
//! 3. by load over all.
//!
//! Within each, the own zone first, by the same measure of load.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::balance::Picker;
use crate::{
    config::Capacity,
    fleet::{Backend, Permit, Pool, Pools},
};

/// How far below `spill_at` the preferred class must be before it is preferred again.
const RETURN: f64 = 0.1;
/// Thousandths of a call that on-demand may be owed.
const MOST_OWED: i32 = 3000;

/// `routing`, as far as it concerns this.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) prefer: Option<Capacity>,
    pub(super) spill_at: f64,
    pub(super) on_demand_share: f64,
}

/// A place for one call and why there, or nothing when all places are taken.
pub(super) fn pick(pools: &Pools, policy: &Policy, picker: &Picker<'_>) -> Option<(Permit, &'static str)> {
    let every = &pools.every;
    if let [only] = &every.all[..] {
        return Some((picker.pick(std::slice::from_ref(only), false)?, "only"));
    }
    let (first, why) = first(pools, policy, picker);
    let (near, zoned) = zone(first, policy, picker);
    let picked = picker
        .pick(near, false)
        .map(|permit| (permit, if zoned && why == "p2c" { "zone" } else { why }))
        .or_else(|| Some((picker.pick(&first.all, false)?, why)))
        .or_else(|| Some((picker.pick(&every.all, true)?, "spill")))?;
    settle(pools, policy, &picked.0);
    Some(picked)
}

fn first<'a>(pools: &'a Pools, policy: &Policy, picker: &Picker<'_>) -> (&'a Pool, &'static str) {
    if !pools.reserved.all.is_empty() && picker.share(&pools.reserved.all) < 1.0 {
        return (&pools.reserved, "reserved");
    }
    let Some(prefer) = policy.prefer else { return (&pools.every, "p2c") };
    let preferred = pools.class(prefer);
    if preferred.all.is_empty() || preferred.all.len() == pools.every.all.len() {
        return (&pools.every, "p2c");
    }
    if owes_on_demand(pools, policy) {
        return (&pools.on_demand, "share");
    }
    let load = picker.share(&preferred.all);
    let lean = &pools.lean;
    let bound = if lean.spilled.load(Relaxed) { policy.spill_at - RETURN } else { policy.spill_at };
    let spills = load >= bound;
    if spills != lean.spilled.load(Relaxed) {
        lean.spilled.store(spills, Relaxed);
    }
    if spills { (&pools.every, "spill") } else { (preferred, "prefer") }
}

/// The near ones of `pool`, as long as they are not loaded themselves.
fn zone<'a>(pool: &'a Pool, policy: &Policy, picker: &Picker<'_>) -> (&'a [Arc<Backend>], bool) {
    let splits = !pool.near.is_empty() && pool.near.len() < pool.all.len();
    if splits && picker.share(&pool.near) < policy.spill_at { (&pool.near, true) } else { (&pool.all, false) }
}

/// Counts this call towards `on_demand_share`, and says whether on-demand is owed one.
fn owes_on_demand(pools: &Pools, policy: &Policy) -> bool {
    if policy.prefer == Some(Capacity::OnDemand) || pools.on_demand.all.is_empty() {
        return false;
    }
    let part = (policy.on_demand_share * 1000.0) as i32;
    // Not more than is paid in one go: a class that was full for an hour is not flooded afterwards. The closure always
    // answers, so this cannot fail.
    let owed = pools.lean.owed.fetch_update(Relaxed, Relaxed, |owed| Some((owed + part).min(MOST_OWED)));
    owed.unwrap_or(0) + part >= 1000
}

/// A call that went to on-demand for any reason pays what is owed, down to nothing.
fn settle(pools: &Pools, policy: &Policy, permit: &Permit) {
    if policy.prefer == Some(Capacity::Spot) && permit.backend().spec.capacity == Capacity::OnDemand {
        // The closure always answers, so this cannot fail.
        let _ = pools.lean.owed.fetch_update(Relaxed, Relaxed, |owed| Some((owed - 1000).max(0)));
    }
}
