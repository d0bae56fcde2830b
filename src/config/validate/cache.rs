//! The section `cache`.

use std::sync::Arc;

use http::HeaderName;

use super::Validator;
use crate::config::{Backend, Cache, CacheScope, Redis, Secret, file, secret::short, url};

/// Keys that stand in engines' own examples for "no key": many clients send the same.
const PLACEHOLDERS: [&str; 8] =
    ["empty", "none", "dummy", "token-abc123", "sk-no-key-required", "no-key-required", "not-needed", "ollama"];

impl Validator<'_> {
    pub(super) fn cache(&mut self, cache: &file::Cache, resume: &file::Resume) -> Cache {
        if cache.max_entry > cache.capacity && cache.capacity.0 > 0 {
            let path = if self.source.is_set("cache.max_entry") { "cache.max_entry" } else { "cache.capacity" };
            let reason = format!("`max_entry` ({}) is greater than `capacity` ({})", cache.max_entry, cache.capacity);
            self.error(path, reason, "no answer of that size could be kept");
        }
        let redis = cache.redis.as_ref().and_then(|redis| self.redis(redis, cache.key_file.is_some()));
        Cache {
            capacity: cache.capacity.0,
            ttl: cache.ttl.0,
            mode: cache.mode,
            scope: cache.scope,
            max_entry: usize::try_from(cache.max_entry.0).unwrap_or(usize::MAX),
            ignore: cache.ignore.clone(),
            vary: self.vary(&cache.vary),
            linger: cache.linger.0,
            stale_if_error: cache.stale_if_error.0,
            downstream: cache.downstream,
            redis,
            key: cache.key_file.as_ref().and_then(|file| self.read_secret("cache.key_file", file)),
            live_memory: resume.memory.0,
        }
    }

    fn redis(&mut self, redis: &Secret, has_key: bool) -> Option<Redis> {
        if !has_key {
            self.error("cache.redis", "`redis` needs `key_file`", "name a file with the key that seals entries");
        }
        if !cfg!(feature = "redis") {
            let help = "use a build with the feature `redis`, which is on by default, or take it out";
            self.error("cache.redis", "this build has no client of Redis", help);
        }
        self.parsed("cache.redis", redis.reveal(), url::redis)
    }

    /// Without `auth` a tenant is whoever sends the same credentials. Which ones clients send cannot be seen here; where
    /// the backends are asked with a placeholder, clients are likely to send it too.
    pub(super) fn shared_keys(&mut self, cache: &Cache, backends: &[Arc<Backend>], has_auth: bool) {
        if has_auth || cache.is_off() || cache.scope == CacheScope::Shared {
            return;
        }
        let is_placeholder = |key: &Secret| PLACEHOLDERS.contains(&key.reveal().to_ascii_lowercase().as_str());
        if let Some(i) = backends.iter().position(|backend| backend.api_key.as_ref().is_some_and(is_placeholder)) {
            self.warn(
                &format!("backends[{i}].api_key"),
                "a placeholder: users who all send the same key, or none, are one tenant, and share cached answers",
                "give each user a key of their own, or set `cache.mode: off`; `cache.scope: shared` if that is meant",
            );
        }
    }

    fn vary(&mut self, names: &[String]) -> Vec<HeaderName> {
        let mut known = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match HeaderName::try_from(name.as_str()) {
                Ok(name) => known.push(name),
                Err(_) => {
                    let path = format!("cache.vary[{i}]");
                    self.error(&path, format!("`{}` is not the name of a header", short(name)), "such as `x-region`");
                }
            }
        }
        known
    }
}
