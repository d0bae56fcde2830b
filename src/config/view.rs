//! The effective configuration as the admin plane shows it: in the words of the file, secrets blanked.

use std::{fmt, sync::Arc};

use serde_json::{Value, json};

use super::{
    AdminAt, Backend, BackendUrl, Capacity, ClientTls, Concurrency, Config, Level, Listen, MASK, Models, Notify,
    Passthrough, Profile, Scheme, Secret, ServerTls, units::Period, units::Size,
};
use crate::protocol::engine::Engine;

impl Config {
    /// All that is in effect, defaults and overrides included. Secrets are `***`; what is unset is left out.
    pub fn view(&self) -> Value {
        let (routing, retry, timeouts, health) = (&self.routing, &self.retry, &self.timeouts, &self.health);
        let (limits, drain, log) = (&self.limits, &self.drain, &self.log);
        let networks: Vec<_> = self.trusted_proxies.iter().map(|n| format!("{}/{}", n.address, n.prefix)).collect();
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
            "trusted_proxies": networks,
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
