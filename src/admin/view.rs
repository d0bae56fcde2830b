//! The fleet as the admin API shows it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    fleet::{Backend, Fleet, Notice, Phase},
    telemetry::time,
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
        "capacity": backend.spec.capacity.name(),
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
        "interruption": backend.notice().map(|notice| interruption(&notice, now, backend.leaves_at().is_some())),
        "calls": count(&totals.calls),
        "answered": count(&totals.answered),
        "failed": count(&totals.failed),
        "full": count(&totals.full),
    })
}

/// A notice. `leaving` = it is acted on; else it is a hint, or nobody else serves one of the models.
fn interruption(notice: &Notice, now: Instant, leaving: bool) -> Value {
    let left = notice.at.map(|at| at.saturating_duration_since(now));
    json!({
        "action": notice.action.name(),
        "time": left.map(|left| time::rfc3339(SystemTime::now() + left)),
        "seconds_left": left.map(|left| left.as_secs()),
        "source": &*notice.source,
        "leaving": leaving,
    })
}
