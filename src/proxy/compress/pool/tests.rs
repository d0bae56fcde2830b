//! A hard budget, and encoders that serve again.

use super::*;
use crate::telemetry::metrics::Registry;

const EACH: u64 = Kind::Zstd.cost();

fn pool(budget: &Budget) -> Rc<Pool> {
    Pool::new(budget.clone(), &Registry::new().table())
}

fn zstd(pool: &Rc<Pool>) -> Option<Lease> {
    pool.lease(Kind::Zstd).unwrap()
}

#[test]
fn an_encoder_serves_again() {
    let budget = Budget::new(10 * EACH);
    let pool = pool(&budget);
    drop((zstd(&pool).unwrap(), zstd(&pool).unwrap()));
    assert_eq!((pool.idle(), budget.used()), (2, 2 * EACH), "idle ones count");
    let lease = zstd(&pool).unwrap();
    assert_eq!((pool.idle(), budget.used()), (1, 2 * EACH));
    drop(lease);
    // One was enough since the last trim: the other goes, then the one that nobody needs any more.
    (0..TRIM_AFTER).for_each(|_| pool.tick());
    drop(zstd(&pool).unwrap());
    (0..TRIM_AFTER).for_each(|_| pool.tick());
    assert_eq!(pool.idle(), 1);
    (0..TRIM_AFTER).for_each(|_| pool.tick());
    assert_eq!((pool.idle(), budget.used()), (0, 0));
}

#[test]
fn the_budget_is_hard_and_over_all_workers() {
    let budget = Budget::new(3 * EACH);
    let (one, other) = (pool(&budget), pool(&budget));
    let mut held: Vec<_> = [&one, &one, &other].map(|pool| zstd(pool).unwrap()).into();
    assert!(zstd(&one).is_none() && zstd(&other).is_none());
    assert_eq!(budget.used(), 3 * EACH);
    drop(held.pop());
    // It was refused: nothing is kept idle until all have seen that.
    assert_eq!((other.idle(), budget.used()), (0, 2 * EACH));
    one.tick();
    drop(held.pop());
    assert_eq!(one.idle(), 1);
    // Who is refused clears the shelves of the others at their next tick.
    let held: Vec<_> = std::iter::from_fn(|| zstd(&other)).collect();
    assert_eq!((held.len(), budget.used()), (1, 3 * EACH));
    one.tick();
    assert_eq!(one.idle(), 0);
    assert!(zstd(&other).is_some());
}

#[test]
fn idle_ones_give_way_to_another_kind() {
    let budget = Budget::new(Kind::GzipStream.cost() + EACH);
    let pool = pool(&budget);
    drop((zstd(&pool), zstd(&pool)));
    assert_eq!(pool.idle(), 2);
    let gzip = pool.lease(Kind::GzipStream).unwrap().unwrap();
    assert_eq!(budget.used(), Kind::GzipStream.cost() + EACH, "one of them was enough");
    drop(gzip);
    budget.set_limit(0);
    assert!(pool.lease(Kind::BrStream).unwrap().is_none());
    assert_eq!((pool.idle(), budget.used()), (0, 0));
}

#[test]
fn brotli_does_not_serve_again() {
    let budget = Budget::new(u64::MAX);
    let pool = pool(&budget);
    drop(pool.lease(Kind::BrStream).unwrap());
    assert_eq!((pool.idle(), budget.used()), (0, 0));
}
