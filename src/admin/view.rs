//! The fleet as the admin API shows it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    config::Capacity,
    fleet::{Backend, Fleet, Phase},
};

/// All backends, in the order of the configuration.
pub(super) fn backends(fleet: &Fleet) -> Value {
    let snapshot = fleet.snapshot();
    json!({
        "backends": snapshot.backends.iter().map(|backend| of(backend)).collect::<Vec<_>>(),
        "models": names(snapshot.model_names()),
    })
}

/// One of them; null when there is none of that name.
pub(super) fn backend(fleet: &Fleet, name: &str) -> Value {
    fleet.snapshot().backend(name).map_or(Value::Null, |backend| of(backend))
}

fn names(names: &[Arc<str>]) -> Vec<&str> {
    names.iter().map(|name| &**name).collect()
}

fn of(backend: &Backend) -> Value {
    let now = Instant::now();
    let (health, load, totals) = (backend.health(), backend.load(), backend.totals());
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    json!({
        "name": &**backend.name(),
        "url": backend.spec.url.to_string(),
        "state": health.state.name(),
        "reason": &*health.reason,
        "since_seconds": now.saturating_duration_since(health.since).as_secs(),
        "engine": backend.engine().map(|engine| engine.name()),
        "capacity": match backend.spec.capacity {
            Capacity::Spot => "spot",
            Capacity::OnDemand => "on_demand",
            Capacity::Reserved => "reserved",
        },
        "zone": backend.spec.zone.as_deref(),
        "models": names(backend.models().names()),
        "in_flight": load.in_flight(),
        "limit": load.limit(),
        "first_token_ms": load.ttft(now).as_secs_f64() * 1000.0,
        "breaker": match backend.breaker() {
            Phase::Closed => "closed",
            Phase::Open { .. } => "open",
            Phase::HalfOpen { .. } => "half_open",
        },
        "calls": count(&totals.calls),
        "answered": count(&totals.answered),
        "failed": count(&totals.failed),
        "full": count(&totals.full),
    })
}
