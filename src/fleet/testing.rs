//! Configurations for the tests of this module and of those above it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use crate::config::{
    Admin, AdminAt, Backend, BackendUrl, Cache, CacheMode, CacheScope, Capacity, ClientTls, Compression, Concurrency,
    Config, Downstream, Drain, Egress, Health, Interruption, InterruptionSource, Level, Limits, Listen, Log, Models,
    Normalize, Passthrough, Profile, Resume, ResumeMode, Retry, Routing, Scheme, Stream, Timeouts, Validate,
};

/// A backend of this name, on demand, without a limit, whose models are to be asked for.
pub(crate) fn backend(name: &str) -> Backend {
    Backend {
        name: name.into(),
        url: BackendUrl { scheme: Scheme::Http, host: name.into(), port: 8000, unix: None, base_path: "".into() },
        engine: None,
        capacity: Capacity::OnDemand,
        zone: None,
        models: Models::Auto,
        max_concurrency: Concurrency::Unlimited,
        api_key: None,
        interruption_token: None,
        tls: ClientTls::default(),
    }
}

/// The same with at most so many calls.
pub(crate) fn limited(name: &str, limit: u32) -> Backend {
    Backend { max_concurrency: Concurrency::Limit(limit), ..backend(name) }
}

/// A configuration at its defaults, but for the backends.
pub(crate) fn config(backends: impl IntoIterator<Item = Backend>) -> Config {
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let s = Duration::from_secs;
    Config {
        listen: Listen::Tcp(address),
        admin: Admin { at: AdminAt::Off, token: None, interruption_token: None, tls: None },
        workers: 1,
        profile: Profile::Default,
        tls: None,
        trusted_proxies: Vec::new(),
        debug_headers: false,
        cors: Vec::new(),
        backends: backends.into_iter().map(Arc::new).collect(),
        zone: None,
        routing: Routing {
            prefer: Some(Capacity::Spot),
            spill_at: 0.7,
            on_demand_share: 0.05,
            passthrough: Passthrough::All,
            aliases: Vec::new(),
        },
        retry: Retry { attempts: 3, budget: 0.2, min_per_second: 10 },
        timeouts: Timeouts { connect: s(1), first_byte: s(600), suspect: s(10), between_bytes: s(300), total: s(1800) },
        health: Health { path: None, interval: s(1), timeout: s(5), unhealthy_after: 2, healthy_after: 1 },
        stream: Stream { keepalive: s(15), headers_after: s(30) },
        resume: Resume { mode: ResumeMode::Auto, attempts: 3, report: false, plain_as_stream: false },
        interruption: Interruption { source: InterruptionSource::Off, endpoint: None, notify: Vec::new() },
        cache: Cache {
            capacity: 256 << 20,
            ttl: s(3600),
            mode: CacheMode::Deterministic,
            scope: CacheScope::Tenant,
            max_entry: 8 << 20,
            ignore: Vec::new(),
            vary: Vec::new(),
            linger: s(0),
            stale_if_error: s(0),
            downstream: Downstream::Private,
            redis: None,
            key: None,
            live_memory: 128 << 20,
        },
        compression: Compression {
            algorithms: Vec::new(),
            min_size: 256,
            flush: None,
            memory: 1 << 20,
            exclude: Vec::new(),
        },
        egress: Egress { slim: false },
        normalize: Normalize {
            validate: Validate::Light,
            minify: false,
            nulls: false,
            dedupe_images: false,
            max_tokens_cap: None,
            default_max_tokens: None,
            strip: Vec::new(),
            system_prompts: Default::default(),
            max_pixels: None,
            isolate_prefix_cache: false,
        },
        limits: Limits {
            request_body: 32 << 20,
            body_memory: 512 << 20,
            header_bytes: 64 << 10,
            header_timeout: s(10),
            connections: 10_000,
            queue: 1024,
            queue_timeout: s(120),
        },
        drain: Drain { delay: s(0), grace: s(25) },
        log: Log { json: false, level: Level::Info, access: true },
    }
}
