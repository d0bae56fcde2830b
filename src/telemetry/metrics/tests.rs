use super::*;

const WORKER: [(&str, &str); 2] = [("endpoint", "chat"), ("code", "200")];

fn line<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(start))
}

#[test]
fn every_name_is_well_formed() {
    let mut seen = HashSet::new();
    for name in Name::ALL {
        let spec = name.spec();
        assert!(seen.insert(spec.name), "{} twice", spec.name);
        assert_eq!(Name::find(spec.name), Some(*name));
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(plain(spec.name) && spec.labels.iter().copied().all(plain), "{}", spec.name);
        assert_eq!(spec.name.ends_with("_total"), spec.kind == Kind::Counter, "{}", spec.name);
        assert!(spec.help.ends_with('.'), "{}", spec.name);
        match spec.unit {
            Unit::Seconds => assert!(spec.name.trim_end_matches("_total").ends_with("_seconds"), "{}", spec.name),
            Unit::Bytes => assert!(spec.name.trim_end_matches("_total").ends_with("_bytes"), "{}", spec.name),
            _ => {}
        }
        if let Kind::Histogram(bounds) = spec.kind {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{}", spec.name);
        }
    }
}

#[test]
fn tables_are_summed() {
    let registry = Registry::new();
    let (one, two, shared) = (registry.table(), registry.table(), registry.shared_table());
    one.counter(Name::Requests, &WORKER).increment(2);
    two.counter(Name::Requests, &WORKER).increment(3);
    shared.counter(Name::Requests, &WORKER).increment(5);
    one.gauge(Name::InFlight, &[]).increment(4.0);
    two.gauge(Name::InFlight, &[]).increment(1.0);
    two.gauge(Name::InFlight, &[]).decrement(2.0);
    let text = registry.render();
    assert_eq!(line(&text, "sluicegate_requests_total{endpoint=\"chat\",code=\"200\"} "), Some("10"));
    assert_eq!(line(&text, "sluicegate_requests_in_flight "), Some("3"));
}

#[test]
fn a_dropped_table_keeps_its_counts() {
    let registry = Registry::new();
    registry.table().counter(Name::ClientsGone, &[]).increment(7);
    assert_eq!(line(&registry.render(), "sluicegate_clients_gone_total "), Some("7"));
}

#[test]
fn a_histogram_is_cumulative() {
    let registry = Registry::new();
    let held = registry.table().histogram(Name::Overhead, &[]);
    for value in [0.0, 0.00001, 0.000_011, 0.02, f64::NAN] {
        held.record(value);
    }
    registry.shared_table().histogram(Name::Overhead, &[]).record(0.5);
    let text = registry.render();
    let bucket = |le: &str| line(&text, &format!("sluicegate_overhead_seconds_bucket{{le=\"{le}\"}} ")).unwrap();
    assert_eq!(["0.00001", "0.00002", "0.01", "+Inf"].map(bucket), ["2", "3", "3", "5"]);
    assert_eq!(line(&text, "sluicegate_overhead_seconds_count "), Some("5"));
    let sum: f64 = line(&text, "sluicegate_overhead_seconds_sum ").unwrap().parse().unwrap();
    assert!((sum - 0.520_021).abs() < 1e-9, "{sum}");
}

#[test]
fn the_format() {
    let registry = Registry::new();
    registry.table().counter(Name::BackendRequests, &[("outcome", "ok"), ("backend", "a\"\\\nb")]).increment(1);
    let text = registry.render();
    let start = text.find("# HELP sluicegate_backend_requests_total").unwrap();
    assert!(
        text[start..].starts_with(
            "# HELP sluicegate_backend_requests_total Tries at a backend, by how they ended.\n\
             # TYPE sluicegate_backend_requests_total counter\n\
             sluicegate_backend_requests_total{backend=\"a\\\"\\\\\\nb\",outcome=\"ok\"} 1\n"
        ),
        "{}",
        &text[start..]
    );
    // Series without labels are there, at zero, before anything happened; a head comes once.
    assert_eq!(line(&text, "sluicegate_overhead_seconds_count "), Some("0"));
    assert_eq!(text.matches("# TYPE sluicegate_overhead_seconds ").count(), 1);
}

#[test]
fn series_are_bounded() {
    let registry = Registry::new();
    let table = registry.table();
    for n in 0..SERIES + 50 {
        table.counter(Name::InputTokens, &[("model", &n.to_string())]).increment(1);
    }
    // One that is known goes on, also from another table.
    registry.table().counter(Name::InputTokens, &[("model", "7")]).increment(1);
    let text = registry.render();
    assert_eq!(text.matches("sluicegate_input_tokens_total{").count(), SERIES + 1);
    assert_eq!(line(&text, "sluicegate_input_tokens_total{model=\"other\"} "), Some("50"));
    assert_eq!(line(&text, "sluicegate_input_tokens_total{model=\"7\"} "), Some("2"));
}

#[test]
fn collectors_are_asked_at_every_scrape() {
    let registry = Registry::new();
    let state = Arc::new(std::sync::atomic::AtomicU64::new(1));
    let seen = Arc::clone(&state);
    registry.collector(move |sink| {
        let value = seen.load(std::sync::atomic::Ordering::Relaxed) as f64;
        sink.set(Name::BackendInFlight, &[("backend", "a")], value);
        for n in 0..SERIES + 5 {
            sink.set(Name::BackendState, &[("backend", &n.to_string()), ("state", "healthy")], 1.0);
        }
    });
    assert_eq!(line(&registry.render(), "sluicegate_backend_in_flight{backend=\"a\"} "), Some("1"));
    state.store(9, std::sync::atomic::Ordering::Relaxed);
    let text = registry.render();
    assert_eq!(line(&text, "sluicegate_backend_in_flight{backend=\"a\"} "), Some("9"));
    assert_eq!(line(&text, "sluicegate_backend_state{backend=\"other\",state=\"other\"} "), Some("5"));
}

#[test]
fn the_facade_reaches_the_same_cells() {
    let registry = Registry::new();
    let table = registry.table();
    let metadata = Metadata::new("test", metrics::Level::INFO, None);
    let labels = vec![metrics::Label::new("code", "200"), metrics::Label::new("endpoint", "chat")];
    let key = Key::from_parts("sluicegate_requests_total", labels);
    table.register_counter(&key, &metadata).increment(1);
    table.register_counter(&Key::from_name("unheard_of"), &metadata).increment(1);
    table.counter(Name::Requests, &WORKER).increment(1);
    let text = registry.render();
    assert_eq!(line(&text, "sluicegate_requests_total{endpoint=\"chat\",code=\"200\"} "), Some("2"));
    assert!(!text.contains("unheard_of"));
}
