//! How many retries the whole gateway may make: a share of its traffic and a minimum, so that a fleet in trouble
//! is not buried under its own retries (Finagle's retry budget).

use std::sync::Arc;

use tokio::time::Instant;

use crate::{config, fleet::Window};

/// Seconds that a [`Window`] counts.
const SPAN: f64 = 10.0;

/// Shared by all workers.
#[derive(Debug)]
pub struct Budget {
    calls: Window,
    retries: Window,
}

impl Budget {
    /// An unused one.
    pub fn new() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self { calls: Window::new(now), retries: Window::new(now) })
    }

    /// A call came.
    pub(super) fn deposit(&self, now: Instant) {
        self.calls.add(now);
    }

    /// Takes one retry, if there is one: of the last ten seconds' calls the share `retry.budget`, and
    /// `retry.min_per_second` on top. Workers that ask in the same instant may overdraw it by one each.
    pub(super) fn withdraw(&self, now: Instant, retry: &config::Retry) -> bool {
        let allowed = f64::from(self.calls.sum(now)) * retry.budget + f64::from(retry.min_per_second) * SPAN;
        let may = f64::from(self.retries.sum(now)) + 1.0 <= allowed;
        if may {
            self.retries.add(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn granted(budget: &Budget, retry: &config::Retry) -> u32 {
        let now = Instant::now();
        (0..10_000).take_while(|_| budget.withdraw(now, retry)).count() as u32
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_the_traffic_and_a_minimum() {
        let retry = config::Retry { attempts: 3, budget: 0.2, min_per_second: 10 };
        let budget = Budget::new();
        assert_eq!(granted(&budget, &retry), 100, "ten a second over ten seconds");
        for _ in 0..1000 {
            budget.deposit(Instant::now());
        }
        assert_eq!(granted(&budget, &retry), 200, "a fifth of a thousand calls");
        tokio::time::advance(Duration::from_secs(11)).await;
        assert_eq!(granted(&budget, &retry), 100, "old traffic is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_granted_when_nothing_is_configured() {
        let retry = config::Retry { attempts: 3, budget: 0.0, min_per_second: 0 };
        let budget = Budget::new();
        budget.deposit(Instant::now());
        assert_eq!(granted(&budget, &retry), 0);
    }

    proptest::proptest! {
        #[test]
        fn never_more_than_share_plus_minimum(calls in 0_u32..500, share in 0.0_f64..1.0, minimum in 0_u32..20) {
            let retry = config::Retry { attempts: 3, budget: share, min_per_second: minimum };
            let budget = Budget::new();
            let now = Instant::now();
            (0..calls).for_each(|_| budget.deposit(now));
            let granted = (0..10_000).take_while(|_| budget.withdraw(now, &retry)).count() as f64;
            let allowed = f64::from(calls) * share + f64::from(minimum) * 10.0;
            proptest::prop_assert!(granted <= allowed && granted > allowed - 1.0);
        }
    }
}
