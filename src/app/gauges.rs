//! Values that are computed when somebody scrapes: the fleet, the queue, memory, certificates.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::UNIX_EPOCH,
};

use tokio::time::Instant;

use super::Shared;
use crate::{
    fleet::{Action, State},
    listener::tls::Reloading,
    proxy::cache::remote::Remote,
    telemetry::{
        Outlet,
        metrics::{Name, Sink},
    },
};

const STATES: [State; 4] = [State::Unknown, State::Healthy, State::Unhealthy, State::Draining];

/// Has them computed at every scrape. Holds `shared` weakly: the registry is a part of it.
pub(super) fn collect(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.registry.collector(move |sink| {
        if let Some(shared) = weak.upgrade() {
            process(&shared, sink);
            cache(&shared, sink);
            fleet(&shared, sink);
        }
    });
}

fn process(shared: &Shared, sink: &mut Sink) {
    sink.set(Name::BuildInfo, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    sink.set(Name::QueueLength, &[], shared.queue.len() as f64);
    sink.set(Name::BodyMemory, &[], shared.memory.used() as f64);
    sink.set(Name::CompressionMemory, &[], shared.encoders.used() as f64);
    sink.set(Name::CacheUnderWay, &[], shared.cache.under_way() as f64);
    sink.set(Name::CacheLive, &[], shared.cache.live.used() as f64);
    sink.set(Name::CacheSecondsSaved, &[], shared.cache.spared().as_secs_f64());
    let dropped = shared.access.as_ref().map_or(0, Outlet::dropped);
    sink.set(Name::LogDropped, &[("log", "access")], dropped as f64);
    for (plane, tls) in [("data", &shared.tls), ("admin", &shared.admin_tls)] {
        if let Some(ends) = tls.as_ref().and_then(|tls: &Arc<Reloading>| tls.expires()) {
            let since = ends.duration_since(UNIX_EPOCH).unwrap_or_default();
            sink.set(Name::CertificateExpiry, &[("plane", plane)], since.as_secs_f64());
        }
    }
}

fn cache(shared: &Shared, sink: &mut Sink) {
    let kept = shared.cache.store.stats();
    sink.set(Name::CacheEntries, &[], kept.entries as f64);
    sink.set(Name::CacheBytes, &[], kept.bytes as f64);
    let removed =
        [("evicted", kept.evicted), ("replaced", kept.replaced), ("expired", kept.expired), ("purged", kept.purged)];
    for (reason, count) in removed {
        sink.set(Name::CacheRemoved, &[("reason", reason)], count as f64);
    }
    let remote = shared.remote.as_ref().map(Remote::stats).unwrap_or_default();
    sink.set(Name::CacheRemoteConnected, &[], f64::from(u8::from(remote.connected)));
    sink.set(Name::CacheRemoteLost, &[], remote.lost as f64);
    for (outcome, count) in remote.reads() {
        sink.set(Name::CacheRemoteReads, &[("outcome", outcome)], count as f64);
    }
    for (outcome, count) in remote.writes() {
        sink.set(Name::CacheRemoteWrites, &[("outcome", outcome)], count as f64);
    }
}

fn fleet(shared: &Shared, sink: &mut Sink) {
    notices(shared, sink);
    let clock = Instant::now();
    let snapshot = shared.fleet.snapshot();
    for backend in &snapshot.backends {
        let name = ("backend", &**backend.name());
        let now = backend.health().state;
        for state in STATES {
            sink.set(Name::BackendState, &[name, ("state", state.name())], f64::from(u8::from(state == now)));
        }
        let left = backend.notice().and_then(|notice| notice.at);
        let left = left.map_or(-1.0, |at| at.saturating_duration_since(clock).as_secs_f64());
        sink.set(Name::BackendLeavesIn, &[name], left);
        sink.set(Name::BackendInFlight, &[name], f64::from(backend.load().in_flight()));
        let totals = backend.totals();
        let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let outcomes = [("answered", &totals.answered), ("failed", &totals.failed), ("full", &totals.full)];
        let worked = totals.worked.load(Relaxed) as f64 / 1e6;
        sink.set(Name::BackendSeconds, &[name, ("capacity", backend.spec.capacity.name())], worked);
        let zone = backend.spec.zone.as_deref();
        let hop = hop(snapshot.zone.as_deref(), zone);
        for (direction, bytes) in [("sent", &totals.sent), ("received", &totals.received)] {
            let labels = [name, ("zone", zone.unwrap_or_default()), ("hop", hop), ("direction", direction)];
            sink.set(Name::BackendBytes, &labels, count(bytes));
        }
        for (outcome, counter) in outcomes {
            sink.set(Name::BackendRequests, &[name, ("outcome", outcome)], count(counter));
        }
    }
}

/// Whether bytes between this gateway and a backend leave their zone.
fn hop(own: Option<&str>, theirs: Option<&str>) -> &'static str {
    match (own, theirs) {
        (Some(own), Some(theirs)) if own == theirs => "same",
        (Some(_), Some(_)) => "cross",
        _ => "unknown",
    }
}

/// Who gives notices: what watches this machine, what is pushed, what backends say in their answers.
const SOURCES: [&str; 5] = ["aws", "gcp", "azure", "push", "header"];

fn notices(shared: &Shared, sink: &mut Sink) {
    let came = shared.fleet.notices();
    for source in SOURCES {
        for action in Action::ALL {
            let count = came.get(&(source.into(), action.name())).copied().unwrap_or(0);
            sink.set(Name::InterruptionNotices, &[("source", source), ("action", action.name())], count as f64);
        }
    }
}
