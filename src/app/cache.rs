//! The response cache as the admin plane shows and purges it.

use std::{fmt::Write as _, sync::Arc};

use serde_json::{Value, json};

use super::Shared;
use crate::{
    admin,
    protocol::query::percent_decode,
    proxy::cache::{Purge, Share, Shares, Stats, Tenant, remote::RemoteStats},
    telemetry::metrics::{Name, Registry, Values},
};

/// Models and tenants that are listed, the largest first; the rest is one line.
const LISTED: usize = 100;

/// How the admin plane gets at it.
pub(super) fn handles(shared: &Arc<Shared>) -> Option<admin::Cache> {
    if shared.config.load().cache.capacity == 0 {
        return None;
    }
    let (kept, remote, registry) = (Arc::clone(&shared.cache), shared.remote.clone(), shared.registry.clone());
    let purged = Arc::clone(&shared.cache);
    Some(admin::Cache {
        look: Box::new(move || {
            let mut view = memory(&kept.store.stats(), kept.store.shares());
            view["under_way"] = json!({"answers": kept.under_way(), "bytes": kept.live.used()});
            view["requests"] = requests(&registry);
            view["second_tier"] = remote.as_ref().map_or(Value::Null, |remote| second_tier(&remote.stats()));
            view
        }),
        purge: Box::new(move |query| {
            let what = purge(query)?;
            let forgotten = purged.purge(&what);
            tracing::info!(
                forgotten,
                model = what.model.as_deref(),
                tenant = what.tenant.map(hex),
                "the cache is purged"
            );
            Ok(json!({"purged": forgotten}))
        }),
    })
}

/// What became of requests, by outcome; a bypass with its reason.
fn requests(registry: &Registry) -> Value {
    let counts = registry.counts(Name::CacheRequests);
    let named = |values: &Values| {
        let words: Vec<_> = values.iter().map(|value| &**value).filter(|value| !value.is_empty()).collect();
        words.join(":")
    };
    Value::from_iter(counts.iter().map(|(values, count)| (named(values), *count)))
}

/// What `/api/v1/cache` shows of the memory.
fn memory(stats: &Stats, shares: Shares) -> Value {
    let models = shares.models.into_iter().map(|(model, share)| (model.map(|model| model.to_string()), share));
    let tenants = shares.tenants.into_iter().map(|(tenant, share)| (Some(hex(tenant)), share));
    json!({
        "enabled": true,
        "entries": stats.entries,
        "bytes": stats.bytes,
        "capacity": stats.capacity,
        "stored": stats.stored,
        "removed": {
            "evicted": stats.evicted,
            "replaced": stats.replaced,
            "expired": stats.expired,
            "purged": stats.purged,
        },
        "models": listed("model", models.collect()),
        "tenants": listed("tenant", tenants.collect()),
    })
}

/// What it shows of the second tier.
fn second_tier(stats: &RemoteStats) -> Value {
    json!({
        "state": if stats.connected { "connected" } else { "away" },
        "lost": stats.lost,
        "reads": Value::from_iter(stats.reads()),
        "writes": Value::from_iter(stats.writes()),
    })
}

fn listed(kind: &str, mut shares: Vec<(Option<String>, Share)>) -> Vec<Value> {
    shares.sort_by(|(a_name, a), (b_name, b)| b.bytes.cmp(&a.bytes).then_with(|| a_name.cmp(b_name)));
    let rest = shares.split_off(shares.len().min(LISTED));
    let mut lines: Vec<_> = shares.into_iter().map(|(name, share)| line(kind, name, share)).collect();
    if !rest.is_empty() {
        let sum = rest.iter().fold(Share::default(), |sum, (_, share)| Share {
            entries: sum.entries + share.entries,
            bytes: sum.bytes + share.bytes,
        });
        let mut others = line(kind, None, sum);
        others["others"] = json!(rest.len());
        lines.push(others);
    }
    lines
}

fn line(kind: &str, name: Option<String>, share: Share) -> Value {
    json!({kind: name, "entries": share.entries, "bytes": share.bytes})
}

/// `model=…&tenant=…`, each at most once; nothing = everything. Anything else is refused: a purge that was meant to be
/// small must not be taken for one of everything.
fn purge(query: Option<&str>) -> Result<Purge, String> {
    let mut what = Purge::default();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode(value, true);
        let twice = match name {
            "model" if !value.is_empty() => what.model.replace(Arc::from(&*value)).is_some(),
            "tenant" => {
                let wrong = "`tenant` is 32 hexadecimal digits, as GET /api/v1/cache lists them";
                what.tenant.replace(tenant(&value).ok_or(wrong)?).is_some()
            }
            _ => return Err(format!("`{name}` is not understood: `model=…` and `tenant=…` say what to forget")),
        };
        if twice {
            return Err(format!("`{name}` is given twice"));
        }
    }
    Ok(what)
}

fn hex(tenant: Tenant) -> String {
    tenant.0.iter().fold(String::with_capacity(32), |mut text, byte| {
        // Into a string: it cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn tenant(text: &str) -> Option<Tenant> {
    let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = plain.then(|| u128::from_str_radix(text, 16).ok()).flatten()?;
    Some(Tenant(number.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_name_what_to_forget() {
        let id = "000102030405060708090a0b0c0d0e0f";
        let whose = Tenant(std::array::from_fn(|i| i as u8));
        assert_eq!(hex(whose), id);
        assert_eq!(purge(None), Ok(Purge::default()));
        assert_eq!(purge(Some("")), Ok(Purge::default()));
        let both = Purge { model: Some("org/a b".into()), tenant: Some(whose) };
        assert_eq!(purge(Some(&format!("model=org%2Fa+b&tenant={id}"))), Ok(both));
        for wrong in ["model", "model=", "models=x", "model=a&model=b", "tenant=", "tenant=00", "x", "tenant=+f"] {
            assert!(purge(Some(wrong)).is_err(), "{wrong}");
        }
        assert!(purge(Some(&format!("tenant={}", "g".repeat(32)))).is_err());
    }

    #[test]
    fn lists_are_bounded_and_begin_with_the_largest() {
        let mut shares = Shares::default();
        for n in 0..150_u8 {
            shares.tenants.insert(Tenant([n; 16]), Share { entries: 1, bytes: 1000 + u64::from(n) });
        }
        shares.models.insert(None, Share { entries: 1, bytes: 1 });
        shares.models.insert(Some("m".into()), Share { entries: 149, bytes: 9 });
        let view = memory(&Stats { entries: 150, capacity: 7, ..Stats::default() }, shares);
        assert_eq!((&view["entries"], &view["capacity"]), (&json!(150), &json!(7)));
        assert_eq!(
            view["models"],
            json!([{"model": "m", "entries": 149, "bytes": 9}, {"model": null, "entries": 1, "bytes": 1}])
        );
        let tenants = view["tenants"].as_array().unwrap();
        assert_eq!((tenants.len(), &tenants[0]["bytes"]), (101, &json!(1149)));
        let others = &tenants[100];
        assert_eq!((&others["others"], &others["entries"], &others["tenant"]), (&json!(50), &json!(50), &Value::Null));
    }
}
