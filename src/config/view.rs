//! The effective configuration as the admin plane shows it: in the words of the file, secrets blanked.

use std::{fmt, sync::Arc};

use serde_json::{Value, json};

use super::{
    AdminAt, Backend, BackendUrl, Cache, Capacity, Cidr, ClientTls, Concurrency, Config, Level, Listen, MASK, Models,
    Normalize, Notify, Passthrough, Profile, Redis, Scheme, Secret, ServerTls, units::Period, units::Size,
};
use crate::protocol::engine::Engine;

impl Config {
    /// All that is in effect, defaults and overrides included. Secrets are `***`; what is unset is left out.
    pub fn view(&self) -> Value {
        let (routing, retry, timeouts, health) = (&self.routing, &self.retry, &self.timeouts, &self.health);
        let (limits, drain, log) = (&self.limits, &self.drain, &self.log);
        let aliases: serde_json::Map<_, _> =
            routing.aliases.iter().map(|(alias, model)| (alias.to_string(), Value::from(&**model))).collect();
        set(json!({
            "listen": match &self.listen {
                Listen::Tcp(address) => address.to_string(),
                Listen::Unix(path) => format!("unix:{}", path.display()),
            },
            "admin": match self.admin.at {
                AdminAt::Off => "off".to_owned(),
                AdminAt::Same => "same".to_owned(),
                AdminAt::Tcp(address) => address.to_string(),
            },
            "admin_token": masked(&self.admin.token),
            "admin_tls": self.admin.tls.as_ref().map(server_tls),
            "interruption_token": masked(&self.admin.interruption_token),
            "workers": self.workers,
            "profile": match self.profile {
                Profile::Default => "default",
                Profile::Serverless => "serverless",
            },
            "tls": self.tls.as_ref().map(server_tls),
            "trusted_proxies": networks(&self.trusted_proxies),
            "debug_headers": self.debug_headers,
            "cors": { "origins": self.cors },
            "backends": self.backends.iter().map(backend).collect::<Vec<_>>(),
            "zone": self.zone.as_deref(),
            "routing": {
                "prefer": routing.prefer.map_or("none", Capacity::name),
                "spill_at": routing.spill_at,
                "on_demand_share": routing.on_demand_share,
                "passthrough": match &routing.passthrough {
                    Passthrough::All => json!("all"),
                    Passthrough::Known => json!("known"),
                    Passthrough::Paths(paths) => json!(paths),
                },
                "aliases": aliases,
            },
            "retry": {
                "attempts": retry.attempts,
                "budget": retry.budget,
                "min_per_second": retry.min_per_second,
            },
            "timeouts": {
                "connect": Period(timeouts.connect),
                "first_byte": Period(timeouts.first_byte),
                "suspect": Period(timeouts.suspect),
                "between_bytes": Period(timeouts.between_bytes),
                "total": Period(timeouts.total),
            },
            "health": {
                "path": health.path.as_deref().unwrap_or("auto"),
                "interval": Period(health.interval),
                "timeout": Period(health.timeout),
                "unhealthy_after": health.unhealthy_after,
                "healthy_after": health.healthy_after,
            },
            "resume": {
                "mode": self.resume.mode,
                "attempts": self.resume.attempts,
                "memory": Size(self.cache.live_memory),
                "report": self.resume.report,
                "plain_as_stream": self.resume.plain_as_stream,
            },
            "stream": {
                "keepalive": Period(self.stream.keepalive),
                "headers_after": Period(self.stream.headers_after),
            },
            "interruption": {
                "source": self.interruption.source,
                "endpoint": self.interruption.endpoint.as_ref().map(BackendUrl::to_string),
                "notify": self.interruption.notify.iter()
                    .map(|Notify { gateway, backend }| format!("{gateway}/{backend}"))
                    .collect::<Vec<_>>(),
            },
            "cache": cache(&self.cache),
            "compression": {
                "algorithms": self.compression.algorithms,
                "min_size": Size(self.compression.min_size as u64),
                "flush": self.compression.flush.map_or_else(|| "event".to_owned(), |flush| Period(flush).to_string()),
                "memory": Size(self.compression.memory),
                "exclude": networks(&self.compression.exclude),
            },
            "egress": { "slim": self.egress.slim },
            "normalize": normalize(&self.normalize),
            "limits": {
                "request_body": Size(limits.request_body as u64),
                "body_memory": Size(limits.body_memory as u64),
                "header_bytes": Size(limits.header_bytes as u64),
                "header_timeout": Period(limits.header_timeout),
                "connections": limits.connections,
                "queue": limits.queue,
                "queue_timeout": Period(limits.queue_timeout),
            },
            "drain": { "delay": Period(drain.delay), "grace": Period(drain.grace) },
            "log": { "format": if log.json { "json" } else { "text" }, "level": level(log.level), "access": log.access },
        }))
    }
}

fn networks(networks: &[Cidr]) -> Vec<String> {
    networks.iter().map(|network| format!("{}/{}", network.address, network.prefix)).collect()
}

fn cache(cache: &Cache) -> Value {
    json!({
        "capacity": Size(cache.capacity),
        "ttl": Period(cache.ttl),
        "mode": cache.mode,
        "scope": cache.scope,
        "max_entry": Size(cache.max_entry as u64),
        "ignore": cache.ignore,
        "vary": cache.vary.iter().map(http::HeaderName::as_str).collect::<Vec<_>>(),
        "linger": Period(cache.linger),
        "stale_if_error": Period(cache.stale_if_error),
        "downstream": cache.downstream,
        "redis": cache.redis.as_ref().map(redis),
    })
}

fn redis(redis: &Redis) -> String {
    let scheme = if redis.tls { "rediss" } else { "redis" };
    let user = redis.username.as_deref().unwrap_or_default();
    let password = redis.password.as_ref().map_or_else(String::new, |_| format!(":{MASK}"));
    let at = if user.is_empty() && password.is_empty() { "" } else { "@" };
    let host = if redis.host.contains(':') { format!("[{}]", redis.host) } else { redis.host.to_string() };
    format!("{scheme}://{user}{password}{at}{host}:{}/{}", redis.port, redis.database)
}

fn normalize(normalize: &Normalize) -> Value {
    let prompts: serde_json::Map<_, _> =
        normalize.system_prompts.iter().map(|(name, text)| (name.to_string(), Value::from(&**text))).collect();
    json!({
        "validate": normalize.validate,
        "minify": normalize.minify,
        "nulls": normalize.nulls,
        "dedupe_images": normalize.dedupe_images,
        "max_tokens_cap": normalize.max_tokens_cap,
        "default_max_tokens": normalize.default_max_tokens,
        "strip": normalize.strip,
        "system_prompts": (!prompts.is_empty()).then_some(prompts),
        "images": normalize.max_pixels.map(|pixels| json!({ "max_pixels": pixels })),
        "isolate_prefix_cache": normalize.isolate_prefix_cache,
    })
}

/// Leaves out what is unset.
fn set(value: Value) -> Value {
    match value {
        Value::Object(fields) => fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, set(v))).collect(),
        Value::Array(items) => items.into_iter().map(set).collect(),
        other => other,
    }
}

fn masked(secret: &Option<Secret>) -> Option<&'static str> {
    secret.as_ref().map(|_| MASK)
}

fn server_tls(tls: &ServerTls) -> Value {
    json!({ "cert": tls.cert, "key": tls.key, "client_ca": tls.client_ca })
}

fn backend(backend: &Arc<Backend>) -> Value {
    let tls = &backend.tls;
    json!({
        "name": &*backend.name,
        "url": backend.url.to_string(),
        "engine": engine(backend.engine),
        "capacity": backend.capacity.name(),
        "zone": backend.zone.as_deref(),
        "models": match &backend.models {
            Models::Auto => json!("auto"),
            Models::Any => json!("any"),
            Models::List(models) => models.iter().map(|m| &**m).collect(),
        },
        "max_concurrency": match backend.max_concurrency {
            Concurrency::Unlimited => Value::Null,
            Concurrency::Auto => json!("auto"),
            Concurrency::Limit(n) => json!(n),
        },
        "api_key": masked(&backend.api_key),
        "interruption_token": masked(&backend.interruption_token),
        "tls": (*tls != ClientTls::default()).then(|| json!({
            "ca": tls.ca,
            "client_cert": tls.client_cert,
            "client_key": tls.client_key,
            "server_name": tls.server_name,
        })),
    })
}

fn engine(engine: Option<Engine>) -> &'static str {
    match engine {
        None => "auto",
        Some(Engine::Vllm) => "vllm",
        Some(Engine::Sglang) => "sglang",
        Some(Engine::LlamaCpp) => "llamacpp",
        Some(Engine::Tgi) => "tgi",
        Some(Engine::Ollama) => "ollama",
        Some(Engine::Triton) => "triton",
        Some(Engine::OpenAi) => "openai",
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// As it is written in the file.
impl fmt::Display for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, default_port) = match self.scheme {
            Scheme::Http => ("http", 80),
            Scheme::Https => ("https", 443),
            Scheme::H2c => ("h2c", 80),
            Scheme::Unix => {
                let path = self.unix.as_deref().unwrap_or_else(|| std::path::Path::new(""));
                return write!(f, "unix:{}", path.display());
            }
        };
        write!(f, "{scheme}://")?;
        if self.host.contains(':') {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.port != default_port {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.base_path)
    }
}
